//! A local folder as a store.
//!
//! An object is a file at its key's path. What is unfinished lies in `.callreel` inside the folder: `tmp/` for objects on
//! their way, `uploads/{token}/` for parts. A file is synced before it is renamed or linked to its final name, and the
//! folder after, so that neither a crash nor a power cut leaves half an object. Metadata are an extended attribute of
//! the file; on a file system without those, objects have none.

mod files;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use time::OffsetDateTime;

use super::backend::{Attributes, Backend, ObjectInfo, Page, Part, PutOptions, UploadId};
use super::config::LocalConfig;
use super::error::{Fault, FaultKind, StoreError};

/// The folder of what is unfinished; no key may name it.
pub(super) const HIDDEN: &str = ".callreel";

#[derive(Debug)]
pub(super) struct LocalBackend {
    root: PathBuf,
}

impl LocalBackend {
    pub(super) fn new(config: &LocalConfig) -> Result<Self, StoreError> {
        if config.dir.as_os_str().is_empty() {
            return Err(StoreError::config("dir", "is empty"));
        }
        Ok(Self { root: config.dir.clone() })
    }

    fn object(&self, key: &str) -> PathBuf {
        self.root.join(key)
    }

    fn upload(&self, upload: &UploadId) -> Result<PathBuf, Fault> {
        // The id comes from a journal: it must not lead elsewhere.
        if upload.id.is_empty() || !upload.id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Fault::new(FaultKind::Gone, "no upload of this store"));
        }
        Ok(self.root.join(HIDDEN).join("uploads").join(&upload.id))
    }
}

#[async_trait]
impl Backend for LocalBackend {
    fn location(&self, key: &str) -> String {
        self.object(key).display().to_string()
    }

    fn part_size(&self) -> u64 {
        super::MIN_PART
    }

    async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<String, Fault> {
        let (root, target, options) = (self.root.clone(), self.object(key), options.clone());
        blocking(move || {
            let temporary = files::write_temporary(&root, &mut body.as_ref(), &options.attributes)?;
            files::publish(&root, temporary, &target, options.create_only)?;
            files::etag(&target).map_err(fault)
        })
        .await
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        let path = self.object(key);
        blocking(move || files::read(&path, range).map_err(fault)).await
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let (path, key) = (self.object(key), key.to_owned());
        blocking(move || match files::info(&path, key) {
            Ok(info) => Ok(info),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(fault(error)),
        })
        .await
    }

    async fn list(&self, prefix: &str, _from: Option<&str>) -> Result<Page<ObjectInfo>, Fault> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        blocking(move || Ok(Page { items: files::list(&root, &prefix).map_err(fault)?, next: None })).await
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Fault> {
        let root = self.root.clone();
        let paths: Vec<PathBuf> = keys.iter().map(|key| self.object(key)).collect();
        blocking(move || paths.iter().try_for_each(|path| files::remove(&root, path).map_err(fault))).await
    }

    async fn begin(&self, _key: &str, token: &str, _attributes: &Attributes) -> Result<String, Fault> {
        let dir = self.root.join(HIDDEN).join("uploads").join(token);
        blocking(move || files::create_dirs(&dir).map_err(fault)).await?;
        Ok(token.to_owned())
    }

    async fn put_part(&self, _key: &str, upload: &UploadId, number: u32, body: Bytes) -> Result<Part, Fault> {
        let (root, dir) = (self.root.clone(), self.upload(upload)?);
        blocking(move || {
            gone_unless(&dir)?;
            let temporary = files::write_temporary(&root, &mut body.as_ref(), &Attributes::default())?;
            files::publish(&root, temporary, &dir.join(files::part_name(number)), false)?;
            Ok(Part { number, size: body.len() as u64, tag: files::md5(&mut body.as_ref()).map_err(fault)? })
        })
        .await
    }

    async fn parts(&self, _key: &str, upload: &UploadId, _from: Option<&str>) -> Result<Page<Part>, Fault> {
        let dir = self.upload(upload)?;
        blocking(move || {
            gone_unless(&dir)?;
            Ok(Page { items: files::parts(&dir).map_err(fault)?, next: None })
        })
        .await
    }

    async fn complete(&self, key: &str, upload: &UploadId, parts: &[Part], create_only: bool) -> Result<(), Fault> {
        let (root, dir, target) = (self.root.clone(), self.upload(upload)?, self.object(key));
        let (parts, attributes) = (parts.to_vec(), upload.attributes.clone());
        blocking(move || {
            gone_unless(&dir)?;
            if create_only && target.exists() {
                // Said before the bytes are copied; the publishing itself is what makes sure.
                return Err(Fault::new(FaultKind::AlreadyExists, "the file is there"));
            }
            let mut whole = files::Concatenation::open(&dir, &parts)?;
            let temporary = files::write_temporary(&root, &mut whole, &attributes)?;
            files::publish(&root, temporary, &target, create_only)?;
            // The object is there: parts that stay behind cost space, not the recording.
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "the parts of a finished upload cannot be removed");
            }
            Ok(())
        })
        .await
    }

    async fn abort(&self, _key: &str, upload: &UploadId) -> Result<(), Fault> {
        let dir = self.upload(upload)?;
        blocking(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if !is_missing(&error) => Err(fault(error)),
            Ok(()) | Err(_) => Ok(()),
        })
        .await
    }

    async fn now(&self) -> Result<OffsetDateTime, Fault> {
        // The file server's clock where the folder is mounted from one.
        let root = self.root.clone();
        blocking(move || {
            let temporary = files::write_temporary(&root, &mut io::empty(), &Attributes::default())?;
            let modified = temporary.metadata().and_then(|metadata| metadata.modified()).map_err(fault)?;
            Ok(modified.into())
        })
        .await
    }

    async fn presign_get(&self, _key: &str, _valid: Duration) -> Result<String, Fault> {
        Err(Fault::new(FaultKind::Unsupported, "a file has no address to hand out"))
    }
}

/// Runs file work on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Fault::unanswered(error)),
    }
}

fn gone_unless(dir: &Path) -> Result<(), Fault> {
    match dir.is_dir() {
        true => Ok(()),
        false => Err(Fault::new(FaultKind::Gone, "there is no such upload")),
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn fault(error: io::Error) -> Fault {
    use io::ErrorKind;
    let kind = match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => FaultKind::NotFound,
        ErrorKind::AlreadyExists => FaultKind::AlreadyExists,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FaultKind::Refused,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => FaultKind::Full,
        _ => FaultKind::Unavailable,
    };
    Fault::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreConfig};

    async fn store(dir: &Path) -> Store {
        Store::open(&StoreConfig::Local(LocalConfig { dir: dir.into() })).await.unwrap()
    }

    #[tokio::test]
    async fn nothing_unfinished_is_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        let upload = store.begin("a/b.ogg", &Attributes::default()).await.unwrap();
        let part = store.put_part("a/b.ogg", &upload, 1, Bytes::from_static(b"sound")).await.unwrap();
        store.complete("a/b.ogg", &upload, &[part], true).await.unwrap();
        store.put("c", Bytes::new(), &PutOptions { create_only: true, ..PutOptions::default() }).await.unwrap();
        store.now().await.unwrap();
        for unfinished in ["tmp", "uploads"] {
            let left = std::fs::read_dir(dir.path().join(HIDDEN).join(unfinished)).unwrap().count();
            assert_eq!(left, 0, "{unfinished}");
        }
    }

    #[tokio::test]
    async fn a_journal_cannot_lead_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::create_dir(&victim).unwrap();
        let upload: UploadId = serde_json::from_str(r#"{"id":"../../victim","token":"T","attributes":{}}"#).unwrap();
        let error = store(dir.path()).await.abort("a", &upload).await.unwrap_err();
        assert!(matches!(error, StoreError::Gone(_)), "{error}");
        assert!(victim.exists());
    }

    #[tokio::test]
    async fn empty_folders_go_with_their_last_object() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path()).await;
        store.put("a/b/c", Bytes::new(), &PutOptions::default()).await.unwrap();
        store.put("a/d", Bytes::new(), &PutOptions::default()).await.unwrap();
        store.delete(&["a/b/c".to_owned()]).await.unwrap();
        assert!(!dir.path().join("a/b").exists() && dir.path().join("a/d").exists());
    }

    #[test]
    fn a_full_disk_is_told_as_one() {
        assert_eq!(fault(io::Error::from_raw_os_error(28)).kind, FaultKind::Full);
        assert_eq!(fault(io::Error::from_raw_os_error(30)).kind, FaultKind::Refused);
        assert_eq!(fault(io::Error::from_raw_os_error(5)).kind, FaultKind::Unavailable);
    }
}
