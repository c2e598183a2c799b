//! Where recordings go: one small interface over a local folder, S3 and its relatives, Azure, Google and Alibaba.
//!
//! Everything a recorder needs of a store is here and nothing else: whole objects, uploads in parts that another process
//! can go on with, names that are never overwritten, and the store's own clock.
//!
//! ```no_run
//! use bytes::Bytes;
//! use callreel::store::{Attributes, Store, StoreConfig, StoreError};
//!
//! # async fn upload() -> Result<(), StoreError> {
//! let store = Store::open(&StoreConfig::parse_url("s3://calls/2026")?).await?;
//! let upload = store.begin("call.ogg", &Attributes::typed("audio/ogg").with("recording-id", "R1")).await?;
//! // What `upload` serialises to is all that another process needs to go on here.
//! let part = store.put_part("call.ogg", &upload, 1, Bytes::from_static(b"...")).await?;
//! let object = store.complete("call.ogg", &upload, &[part], true).await?;
//! println!("{} has {} bytes", store.location("call.ogg"), object.size);
//! # Ok(())
//! # }
//! ```
//!
//! # What every backend keeps
//!
//! * An object appears under its key whole or not at all, and with `create_only` never in another's place.
//! * Every body is checked by the store against its digest before it counts as written.
//! * Attempts that may help are repeated with full jitter within the bounds of [`RetryConfig`]; each attempt ends. No call
//!   blocks a thread.
//! * A write that was carried out without an answer is recognised: each conditional write and each upload carries a token
//!   of its own in the metadata `callreel-write`, which tells our object from a stranger's.
//! * All stores of a process with the same proxy share their connections.
//!
//! Parts other than the last have [`Store::part_size`] bytes exactly: some stores take no other.

mod azure;
mod backend;
mod config;
mod error;
mod gcs;
mod http;
mod local;
mod metadata;
mod oss;
mod retry;
mod s3;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use ulid::Ulid;

pub use backend::{Attributes, ObjectInfo, Part, PutOptions, UploadId};
pub use config::{
    AssumeRole, AzureConfig, Checksum, Encryption, GcsConfig, LocalConfig, OssConfig, ProxyConfig, Retention,
    RetentionMode, RetryConfig, S3Config, Secret, StoreConfig,
};
pub use error::{Failure, StoreError};

use backend::{Backend, DELETE_BATCH, Page};
use error::{Fault, FaultKind};
use retry::retrying;

/// The metadata that holds a write's token.
const TOKEN: &str = "callreel-write";

/// Bytes that every store takes as a part, the least that S3 does.
const MIN_PART: u64 = 5 * 1_024 * 1_024;

/// Longest key in bytes, prefix included; S3, Google and Azure take no more.
const MAX_KEY: usize = 1_024;

/// A store, with everything below one prefix. Clones share it.
#[derive(Clone, Debug)]
pub struct Store {
    backend: Arc<dyn Backend>,
    prefix: Arc<str>,
    retry: RetryConfig,
}

impl Store {
    /// Makes a store ready. Nothing is sent yet, so that a store which is down does not keep a recording from starting.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`] for settings that cannot be right.
    pub async fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let (backend, prefix, retry): (Arc<dyn Backend>, &str, RetryConfig) = match config {
            StoreConfig::Local(local) => {
                let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
                (Arc::new(local::LocalBackend::new(local)?), "", retry)
            }
            StoreConfig::S3(s3) => (Arc::new(s3::S3Backend::new(s3).await?), &s3.prefix, s3.retry),
            StoreConfig::Azure(azure) => (Arc::new(azure::AzureBackend::new(azure)?), &azure.prefix, azure.retry),
            StoreConfig::Oss(oss) => (Arc::new(oss::backend(oss)?), &oss.prefix, oss.retry),
            StoreConfig::Gcs(gcs) => (Arc::new(gcs::backend(gcs)?), &gcs.prefix, gcs.retry),
        };
        let prefix = prefix.trim_matches('/');
        if !prefix.is_empty() {
            check_key(prefix).map_err(|fault| StoreError::config("prefix", fault.reason))?;
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Ok(Self { backend, prefix: prefix.into(), retry })
    }

    /// How people and their other tools call an object: `s3://bucket/key`, `gs://…`, or its path.
    pub fn location(&self, key: &str) -> String {
        self.backend.location(&self.whole(key))
    }

    /// The size in bytes that every part but the last has.
    pub fn part_size(&self) -> u64 {
        self.backend.part_size()
    }

    /// Writes an object in one go.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] with `create_only` where another object has the key; what any call may meet:
    /// [`StoreError::Refused`], [`StoreError::Gone`] where there is no such bucket, [`StoreError::Throttled`],
    /// [`StoreError::Unavailable`], [`StoreError::Full`], [`StoreError::Mismatch`].
    pub async fn put(&self, key: &str, bytes: Bytes, options: &PutOptions) -> Result<ObjectInfo, StoreError> {
        let whole = self.checked("put", key)?;
        self.at("put", key, options.attributes.check())?;
        let mut options = options.clone();
        let token = Ulid::new().to_string();
        if options.create_only {
            options.attributes.metadata.insert(TOKEN.to_owned(), token.clone());
        }
        let size = bytes.len() as u64;
        let etag = match retrying(&self.retry, size, || self.backend.put(&whole, bytes.clone(), &options)).await {
            Ok(etag) => etag,
            // An earlier attempt may have been carried out, whatever came back of it.
            Err(fault) if options.create_only => return self.ours_or(fault, "put", key, &token).await,
            Err(fault) => return Err(self.error("put", key, fault)),
        };
        let metadata = options.attributes.metadata;
        Ok(ObjectInfo { key: key.to_owned(), size, etag, last_modified: None, metadata })
    }

    /// Reads an object, or a range of it: what of the range the object has.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotFound`], and what any call may meet (see [`put`](Self::put)).
    pub async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let whole = self.checked("get", key)?;
        if range.as_ref().is_some_and(|range| range.is_empty()) {
            return Ok(Bytes::new());
        }
        let bytes = range.as_ref().map_or(MIN_PART, |range| range.end - range.start);
        self.run("get", key, bytes, || self.backend.get(&whole, range.clone())).await
    }

    /// What the store knows of an object; `None` where there is none. Most stores answer the same where there is no such
    /// bucket.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)).
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StoreError> {
        let whole = self.checked("head", key)?;
        let info = self.run("head", key, 0, || self.backend.head(&whole)).await?;
        Ok(info.map(|info| self.relative(info)))
    }

    /// All objects whose keys begin with `prefix`, in the order of their keys. Unfinished uploads are none.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)).
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let whole = self.whole(prefix);
        let pages = self.pages("list", prefix, |from| {
            let whole = whole.clone();
            async move { self.backend.list(&whole, from.as_deref()).await }
        });
        Ok(pages.await?.into_iter().map(|info| self.relative(info)).collect())
    }

    /// Deletes objects; those that are not there are fine.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)); some of the objects may be deleted then.
    pub async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let whole = keys.iter().map(|key| self.checked("delete", key)).collect::<Result<Vec<_>, _>>()?;
        for (batch, named) in whole.chunks(DELETE_BATCH).zip(keys.chunks(DELETE_BATCH)) {
            self.run("delete", &named[0], 0, || self.backend.delete(batch)).await?;
        }
        Ok(())
    }

    /// Begins an upload in parts. Nothing is visible under the key before [`complete`](Self::complete).
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)).
    pub async fn begin(&self, key: &str, attributes: &Attributes) -> Result<UploadId, StoreError> {
        let whole = self.checked("begin", key)?;
        self.at("begin", key, attributes.check())?;
        let token = Ulid::new().to_string();
        let attributes = attributes.clone().with(TOKEN, &token);
        let id = self.run("begin", key, 0, || self.backend.begin(&whole, &token, &attributes)).await?;
        Ok(UploadId { id, token, attributes })
    }

    /// Writes one part, `number` from 1 to 10 000; a part of the same number is replaced.
    ///
    /// # Errors
    ///
    /// [`StoreError::Gone`] where there is no such upload; what any call may meet (see [`put`](Self::put)).
    pub async fn put_part(&self, key: &str, upload: &UploadId, number: u32, bytes: Bytes) -> Result<Part, StoreError> {
        let whole = self.checked("put part", key)?;
        if !(1..=10_000).contains(&number) {
            let fault = Fault::new(FaultKind::Protocol, format!("part number {number} is not within 1 to 10000"));
            return Err(self.error("put part", key, fault));
        }
        let size = bytes.len() as u64;
        self.run("put part", key, size, || self.backend.put_part(&whole, upload, number, bytes.clone())).await
    }

    /// The parts that the store has of an upload, by number. A store that keeps no record of an upload without parts
    /// answers none of them, others [`StoreError::Gone`].
    ///
    /// # Errors
    ///
    /// [`StoreError::Gone`] where there is no such upload; what any call may meet (see [`put`](Self::put)).
    pub async fn parts(&self, key: &str, upload: &UploadId) -> Result<Vec<Part>, StoreError> {
        let whole = self.checked("list parts of", key)?;
        self.pages("list parts of", key, |from| {
            let whole = whole.clone();
            async move { self.backend.parts(&whole, upload, from.as_deref()).await }
        })
        .await
    }

    /// Makes the object of `parts`, in the order of their numbers, appear under its key, and checks its size. Done twice, by
    /// whomever, it succeeds twice.
    ///
    /// # Errors
    ///
    /// [`StoreError::AlreadyExists`] with `create_only` where an object of another upload has the key, which stays; [`StoreError::Gone`] where there is no such upload and no object of it;
    /// [`StoreError::Mismatch`] where a part or the size is not what was sent; what any call may meet (see
    /// [`put`](Self::put)). After [`StoreError::Unavailable`] it may have happened: ask again.
    pub async fn complete(
        &self,
        key: &str,
        upload: &UploadId,
        parts: &[Part],
        create_only: bool,
    ) -> Result<ObjectInfo, StoreError> {
        let whole = self.checked("complete", key)?;
        let in_order = parts.windows(2).all(|pair| pair[0].number < pair[1].number);
        if parts.is_empty() || !in_order {
            let fault = Fault::new(FaultKind::Protocol, "parts are missing, double or not in order");
            return Err(self.error("complete", key, fault));
        }
        let tried = retrying(&self.retry, 0, || self.backend.complete(&whole, upload, parts, create_only)).await;
        let size = parts.iter().map(|part| part.size).sum();
        let info = match tried {
            Ok(()) => self.written(key, upload, size).await?,
            Err(fault) => {
                let info = match self.ours_or(fault, "complete", key, &upload.token).await {
                    // A store may forget the parts with the object that took their place.
                    Err(StoreError::Gone(failure)) if create_only && matches!(self.head(key).await, Ok(Some(_))) => {
                        return Err(StoreError::AlreadyExists(failure));
                    }
                    result => result?,
                };
                // Parts may be left of an end that came between the object's appearance and theirs.
                if let Err(error) = self.abort(key, upload).await {
                    tracing::debug!(%error, "parts may be left of a finished upload");
                }
                info
            }
        };
        if info.size != size {
            let reason = format!("the object has {} bytes, its parts have {size}", info.size);
            return Err(self.error("complete", key, Fault::new(FaultKind::Mismatch, reason)));
        }
        Ok(info)
    }

    /// Forgets an upload and its parts; one that is not there is fine.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)).
    pub async fn abort(&self, key: &str, upload: &UploadId) -> Result<(), StoreError> {
        let whole = self.checked("abort", key)?;
        self.run("abort", key, 0, || self.backend.abort(&whole, upload)).await
    }

    /// The store's own clock, which all recorders that use it share; to the second.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`put`](Self::put)); [`StoreError::Protocol`] where the store tells no time.
    pub async fn now(&self) -> Result<OffsetDateTime, StoreError> {
        self.run("ask the time of", "", 0, || self.backend.now()).await
    }

    /// An address that gives the object to whoever has it, for so long.
    ///
    /// # Errors
    ///
    /// [`StoreError::Unsupported`] where the store has no such addresses; [`StoreError::Refused`] without credentials.
    pub async fn presign_get(&self, key: &str, valid: Duration) -> Result<String, StoreError> {
        let whole = self.checked("presign", key)?;
        self.run("presign", key, 0, || self.backend.presign_get(&whole, valid)).await
    }

    /// The object that an upload has just become.
    async fn written(&self, key: &str, upload: &UploadId, size: u64) -> Result<ObjectInfo, StoreError> {
        match self.head(key).await {
            Ok(Some(info)) => Ok(info),
            Ok(None) => {
                let fault = Fault::new(FaultKind::Gone, "the upload was completed, but its object is not there");
                Err(self.error("complete", key, fault))
            }
            // Keys that may only write: the store's own answer has to do.
            Err(StoreError::Refused(_)) => Ok(ObjectInfo {
                key: key.to_owned(),
                size,
                etag: String::new(),
                last_modified: None,
                metadata: upload.attributes.metadata.clone(),
            }),
            Err(error) => Err(error),
        }
    }

    /// The object under `key` if the write with this token made it, else the error that the write met.
    async fn ours_or(
        &self,
        fault: Fault,
        operation: &'static str,
        key: &str,
        token: &str,
    ) -> Result<ObjectInfo, StoreError> {
        let may_be_ours = match fault.kind {
            FaultKind::AlreadyExists | FaultKind::Gone | FaultKind::NotFound => true,
            FaultKind::Unavailable | FaultKind::Throttled | FaultKind::Protocol => true,
            FaultKind::Refused | FaultKind::Mismatch | FaultKind::Full | FaultKind::Unsupported => false,
        };
        if !may_be_ours {
            return Err(self.error(operation, key, fault));
        }
        // A store that is down has been waited for already.
        let retry =
            RetryConfig { max_retries: if fault.retry_soon() { 0 } else { self.retry.max_retries }, ..self.retry };
        let whole = self.whole(key);
        match retrying(&retry, 0, || self.backend.head(&whole)).await {
            Ok(Some(info)) if info.metadata.get(TOKEN).is_some_and(|found| found == token) => Ok(self.relative(info)),
            // Whose object it is that stands in the way is not known yet.
            Err(unknown) if unknown.retry_soon() => Err(self.error(operation, key, unknown)),
            Ok(_) | Err(_) => Err(self.error(operation, key, fault)),
        }
    }

    async fn run<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        bytes: u64,
        attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        self.at(operation, key, retrying(&self.retry, bytes, attempt).await)
    }

    async fn pages<T, F>(
        &self,
        operation: &'static str,
        key: &str,
        mut page: impl FnMut(Option<String>) -> F,
    ) -> Result<Vec<T>, StoreError>
    where
        F: Future<Output = Result<Page<T>, Fault>>,
    {
        let mut all = Vec::new();
        let mut from = None;
        loop {
            let Page { items, next } = self.run(operation, key, 0, || page(from.clone())).await?;
            all.extend(items);
            if next.is_none() {
                return Ok(all);
            }
            if next == from {
                let fault = Fault::new(FaultKind::Protocol, "the listing does not get on");
                return Err(self.error(operation, key, fault));
            }
            from = next;
        }
    }

    fn checked(&self, operation: &'static str, key: &str) -> Result<String, StoreError> {
        let whole = self.whole(key);
        self.at(operation, key, check_key(key).and_then(|()| check_key(&whole)))?;
        Ok(whole)
    }

    fn whole(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn relative(&self, mut info: ObjectInfo) -> ObjectInfo {
        if let Some(key) = info.key.strip_prefix(&*self.prefix) {
            info.key = key.to_owned();
        }
        info
    }

    fn at<T>(&self, operation: &'static str, key: &str, result: Result<T, Fault>) -> Result<T, StoreError> {
        result.map_err(|fault| self.error(operation, key, fault))
    }

    fn error(&self, operation: &'static str, key: &str, fault: Fault) -> StoreError {
        StoreError::new(fault, operation, self.location(key))
    }
}

/// What tests need to stand beside a store, or in place of a provider.
#[cfg(feature = "testkit")]
pub(crate) mod testing {
    pub(crate) use super::azure::create_container;
    pub(crate) use super::http::{Answer, Pool, Request};
    pub(crate) use super::oss::{Signed as OssSigned, Signer as OssSigner};

    /// The connections that all stores without a proxy share.
    pub(crate) fn shared_http_client() -> aws_sdk_s3::config::SharedHttpClient {
        // Only a proxy can be wrong.
        Pool::shared(None).unwrap_or_else(|error| panic!("{error}")).client()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.location("").trim_end_matches('/'))
    }
}

/// Whether a key means the same in every store: no empty, `.` or `..` segments, no control characters, no backslashes.
fn check_key(key: &str) -> Result<(), Fault> {
    let failed = |reason| Err(Fault::new(FaultKind::Protocol, format!("the key {reason}")));
    if key.len() > MAX_KEY {
        return failed("is longer than 1024 bytes");
    }
    if key.split('/').any(|segment| matches!(segment, "" | "." | ".." | local::HIDDEN)) {
        return failed("is empty or has an empty, '.', '..' or '.callreel' segment");
    }
    if key.chars().any(|character| character.is_control() || character == '\\') {
        return failed("has control characters or backslashes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_could_leave_their_place_are_refused() {
        for key in ["a", "a/b.ogg", "Gespräch 7/ö", ".hidden", "a..b", &"k".repeat(1_024)] {
            assert_eq!(check_key(key), Ok(()), "{key}");
        }
        for key in ["", "/a", "a/", "a//b", "../a", "a/./b", "a\0", "a\\b", ".callreel/x", &"k".repeat(1_025)] {
            assert!(check_key(key).is_err(), "{key:?}");
        }
    }
}
