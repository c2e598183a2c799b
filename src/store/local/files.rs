//! The file work behind a local store. Everything here blocks.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use md5::{Digest, Md5};
use ulid::Ulid;

use super::{HIDDEN, fault, is_missing};
use crate::hex;
use crate::store::backend::{Attributes, ObjectInfo, Part};
use crate::store::error::{Fault, FaultKind};

/// The extended attribute that holds metadata, as JSON.
const METADATA: &str = "user.callreel";

/// More metadata than that is not ours.
const MAX_METADATA: usize = 8 * 1_024;

/// A synced file without its final name; removed when dropped.
pub(super) struct Temporary {
    path: PathBuf,
    file: File,
}

impl Temporary {
    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Fails where it has been renamed, as is meant.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes `content` to a new file and syncs it.
pub(super) fn write_temporary(
    root: &Path,
    content: &mut impl Read,
    attributes: &Attributes,
) -> Result<Temporary, Fault> {
    let dir = root.join(HIDDEN).join("tmp");
    create_dirs(&dir).map_err(fault)?;
    let path = dir.join(Ulid::new().to_string());
    let file = File::create_new(&path).map_err(fault)?;
    let mut temporary = Temporary { path, file };
    io::copy(content, &mut temporary.file).map_err(fault)?;
    if !attributes.metadata.is_empty() {
        write_metadata(&temporary.file, &attributes.metadata)?;
    }
    temporary.file.flush().and_then(|()| temporary.file.sync_all()).map_err(fault)?;
    Ok(temporary)
}

/// Gives a synced file its final name, and syncs that.
pub(super) fn publish(root: &Path, temporary: Temporary, target: &Path, create_only: bool) -> Result<(), Fault> {
    let parent = target.parent().unwrap_or(root);
    create_dirs(parent).map_err(fault)?;
    if create_only {
        match rename_to_free_name(&temporary.path, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Fault::new(FaultKind::AlreadyExists, "the file is there"));
            }
            result => result.map_err(fault)?,
        }
    } else {
        fs::rename(&temporary.path, target).map_err(fault)?;
    }
    sync_dir(parent).map_err(fault)
}

/// Renames without ever replacing: at once where the file system can, else by a second name for the same file.
fn rename_to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => Ok(result?),
    }
}

/// Creates a folder and what leads to it, and syncs every name that is new.
pub(super) fn create_dirs(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    create_dirs(parent)?;
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_dir(parent),
    }
}

/// Removes an object and the folders that are empty without it.
pub(super) fn remove(root: &Path, path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if !is_missing(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    for dir in path.ancestors().skip(1).take_while(|dir| *dir != root && dir.starts_with(root)) {
        if fs::remove_dir(dir).is_err() {
            break;
        }
    }
    Ok(())
}

/// An object's bytes, or what it has of a range.
pub(super) fn read(path: &Path, range: Option<Range<u64>>) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut bytes = Vec::new();
    match range {
        None => file.read_to_end(&mut bytes)?,
        Some(range) => {
            file.seek(SeekFrom::Start(range.start))?;
            file.take(range.end.saturating_sub(range.start)).read_to_end(&mut bytes)?
        }
    };
    Ok(bytes.into())
}

/// What is known of an object; `None` for what is no file.
pub(super) fn info(path: &Path, key: String) -> io::Result<Option<ObjectInfo>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    Ok(Some(ObjectInfo {
        key,
        size: metadata.len(),
        etag: etag_of(&metadata),
        last_modified: metadata.modified().ok().map(Into::into),
        metadata: read_metadata(path),
    }))
}

/// A file's mark: it changes with each write.
pub(super) fn etag(path: &Path) -> io::Result<String> {
    Ok(etag_of(&fs::metadata(path)?))
}

fn etag_of(metadata: &Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{:x}-{:x}-{:x}-{:x}", metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}

/// All objects whose keys begin with `prefix`, by key.
pub(super) fn list(root: &Path, prefix: &str) -> io::Result<Vec<ObjectInfo>> {
    let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    let mut open = vec![(root.join(folder), folder.to_owned())];
    while let Some((dir, name)) = open.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if is_missing(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            // A name that is no text is no key of ours.
            let Ok(last) = entry.file_name().into_string() else { continue };
            if last == HIDDEN {
                continue;
            }
            let key = if name.is_empty() { last } else { format!("{name}/{last}") };
            if entry.file_type()?.is_dir() {
                open.push((entry.path(), key));
            } else if key.starts_with(prefix) {
                match info(&entry.path(), key) {
                    // Gone since the folder was read.
                    Err(error) if is_missing(&error) => {}
                    info => found.extend(info?.map(|info| ObjectInfo { metadata: BTreeMap::new(), ..info })),
                }
            }
        }
    }
    found.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(found)
}

/// The file name of a part.
pub(super) fn part_name(number: u32) -> String {
    format!("{number:05}.part")
}

/// The parts in an upload's folder, by number.
pub(super) fn parts(dir: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".part")).and_then(|number| number.parse().ok());
        let Some(number) = number else { continue };
        let mut file = File::open(entry.path())?;
        parts.push(Part { number, size: file.metadata()?.len(), tag: md5(&mut file)? });
    }
    parts.sort_by_key(|part| part.number);
    Ok(parts)
}

/// The MD5 of what is read, in hexadecimal.
pub(super) fn md5(content: &mut impl Read) -> io::Result<String> {
    let mut digest = Md5::new();
    let mut buffer = vec![0; 64 * 1_024];
    loop {
        match content.read(&mut buffer)? {
            0 => return Ok(hex::encode(digest.finalize())),
            read => digest.update(&buffer[..read]),
        }
    }
}

/// Reads the files of parts, one after the other.
pub(super) struct Concatenation {
    files: std::vec::IntoIter<File>,
    current: Option<File>,
}

impl Concatenation {
    /// Opens all parts first, so that a missing one is known before anything is written.
    pub(super) fn open(dir: &Path, parts: &[Part]) -> Result<Self, Fault> {
        let open = |part: &Part| {
            let mut file = File::open(dir.join(part_name(part.number))).map_err(|error| {
                let kind = if is_missing(&error) { FaultKind::Mismatch } else { fault(error).kind };
                Fault::new(kind, format!("part {} cannot be read", part.number))
            })?;
            let found = file.metadata().map_err(fault)?.len();
            if found != part.size || md5(&mut file).map_err(fault)? != part.tag {
                return Err(Fault::new(FaultKind::Mismatch, format!("part {} is not what was written", part.number)));
            }
            file.rewind().map_err(fault)?;
            Ok(file)
        };
        let files = parts.iter().map(open).collect::<Result<Vec<_>, Fault>>()?;
        Ok(Self { files: files.into_iter(), current: None })
    }
}

impl Read for Concatenation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(file) = &mut self.current {
                let read = file.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
            }
            self.current = self.files.next();
            if self.current.is_none() {
                return Ok(0);
            }
        }
    }
}

fn write_metadata(file: &File, metadata: &BTreeMap<String, String>) -> Result<(), Fault> {
    use rustix::fs::{XattrFlags, fsetxattr};
    use rustix::io::Errno;
    // A map of texts always serialises.
    let json = serde_json::to_vec(metadata).unwrap_or_default();
    match fsetxattr(file, METADATA, &json, XattrFlags::empty()) {
        Err(Errno::NOTSUP | Errno::NOSYS | Errno::PERM) => Ok(()),
        result => result.map_err(|errno| fault(errno.into())),
    }
}

fn read_metadata(path: &Path) -> BTreeMap<String, String> {
    let mut buffer = vec![0; MAX_METADATA];
    match rustix::fs::getxattr(path, METADATA, buffer.as_mut_slice()) {
        Ok(length) => serde_json::from_slice(&buffer[..length]).unwrap_or_default(),
        Err(_) => BTreeMap::new(),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_name_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("taken");
        fs::write(&target, "old").unwrap();
        let temporary = write_temporary(dir.path(), &mut &b"new"[..], &Attributes::default()).unwrap();
        let error = publish(dir.path(), temporary, &target, true).unwrap_err();
        assert_eq!(error.kind, FaultKind::AlreadyExists);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn parts_are_read_as_one() {
        let dir = tempfile::tempdir().unwrap();
        for (number, content) in [(1, "one "), (2, ""), (3, "three")] {
            fs::write(dir.path().join(part_name(number)), content).unwrap();
        }
        let parts = parts(dir.path()).unwrap();
        let mut text = String::new();
        Concatenation::open(dir.path(), &parts).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "one three");

        fs::write(dir.path().join(part_name(3)), "other").unwrap();
        assert_eq!(Concatenation::open(dir.path(), &parts).err().unwrap().kind, FaultKind::Mismatch);
    }

    #[test]
    fn the_md5_is_the_standard_one() {
        assert_eq!(md5(&mut &b"abc"[..]).unwrap(), "900150983cd24fb0d6963f7d28e17f72");
    }
}
