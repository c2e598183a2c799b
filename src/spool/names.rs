//! Names in a directory: taken once, given once, never overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::FileError;
use super::stream::{Stream, Survey};
use crate::hex;

/// Disk space held back for the manifest, so that it fits when the disk is full.
pub(super) const MANIFEST_RESERVE: usize = 64 * 1024;

/// A path with more at its end.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// What a file is called until it has its name.
pub(crate) fn part_of(path: &Path) -> PathBuf {
    with_suffix(path, ".part")
}

/// The `number`th name to try for `stem`: itself, `STEM-1`, `STEM-2`…
pub(super) fn numbered(stem: &Path, number: u32) -> PathBuf {
    if number == 0 { stem.to_owned() } else { with_suffix(stem, &format!("-{number}")) }
}

/// Renames without overwriting; where the name was taken meanwhile, the file keeps `.part` and the error says so.
pub(crate) fn give_name(part: &Path, path: &Path) -> Result<(), FileError> {
    match fs::hard_link(part, path) {
        Ok(()) => {
            fs::remove_file(part).map_err(|e| FileError::new("cannot remove", part, e))?;
            sync_directory_of(path);
            return Ok(());
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(FileError::new("does not overwrite", path, error));
        }
        // Not every file system has hard links.
        Err(_) => {}
    }
    if path.exists() {
        return Err(FileError::new("does not overwrite", path, io::ErrorKind::AlreadyExists.into()));
    }
    fs::rename(part, path).map_err(|e| FileError::new("cannot rename to", path, e))?;
    sync_directory_of(path);
    Ok(())
}

/// Makes names in the directory of `path` outlast a power cut, where the file system can.
pub(super) fn sync_directory_of(path: &Path) {
    // A file system that cannot sync directories does not need it, or has no such promise to give.
    let _ = path.parent().map(File::open).transpose().and_then(|it| it.map_or(Ok(()), |it| it.sync_all()));
}

/// The manifest's place, taken at the start so that the recording's name is ours and the space is there.
#[derive(Debug)]
pub(super) struct Reserve {
    part: PathBuf,
}

impl Reserve {
    /// Takes the first free one of `wanted`, `wanted-1`, … with nothing at it: no manifest, and no file of ending `ext`.
    /// Says each it tries to `trying` before it does.
    pub fn claim(
        wanted: &Path,
        ext: &str,
        recording_id: &str,
        mut trying: impl FnMut(&Path) -> Result<(), FileError>,
    ) -> Result<(PathBuf, Self), FileError> {
        for number in 0u32.. {
            let stem = numbered(wanted, number);
            let manifest = manifest_of(&stem);
            let output = with_suffix(&stem, &format!(".{ext}"));
            let part = part_of(&manifest);
            if manifest.exists() || output.exists() || part.exists() || part_of(&output).exists() {
                continue;
            }
            trying(&stem)?;
            match OpenOptions::new().write(true).create_new(true).open(&part) {
                Ok(mut file) => {
                    let mut blank = owner_line(recording_id).into_bytes();
                    blank.resize(MANIFEST_RESERVE, b' ');
                    if let Err(error) = file.write_all(&blank) {
                        let _ = fs::remove_file(&part);
                        return Err(FileError::new("cannot write to", &part, error));
                    }
                    sync_directory_of(&part);
                    return Ok((stem, Self { part }));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::new("cannot create", &part, error)),
            }
        }
        unreachable!("some suffix of four thousand million is free")
    }

    /// The place that a process took for this recording at `stem` before it died, if it is still there.
    pub fn left_at(stem: &Path, recording_id: &str) -> Option<Self> {
        let part = part_of(&manifest_of(stem));
        let mut start = vec![0; owner_line(recording_id).len()];
        File::open(&part).ok()?.read_exact(&mut start).ok()?;
        let ours = start == owner_line(recording_id).as_bytes() || {
            // A process that died while it wrote the manifest itself.
            let text = fs::read_to_string(&part).ok()?;
            text.contains(&format!("\"recording_id\": \"{recording_id}\""))
        };
        ours.then_some(Self { part })
    }

    /// Writes the manifest and gives it its name.
    pub fn fill(self, path: &Path, json: &[u8]) -> Result<(), FileError> {
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).open(&self.part)?;
            file.write_all(json)?;
            file.set_len(json.len() as u64)?;
            file.sync_all()
        };
        write().map_err(|e| FileError::new("cannot write", &self.part, e))?;
        give_name(&self.part, path)
    }

    /// Gives the place up.
    pub fn abandon(self) {
        // What cannot be removed is told apart from a manifest by its name.
        let _ = fs::remove_file(&self.part);
    }
}

/// Where the manifest of the recording at `stem` is.
pub(super) fn manifest_of(stem: &Path) -> PathBuf {
    with_suffix(stem, ".json")
}

/// What a place kept for a manifest begins with.
fn owner_line(recording_id: &str) -> String {
    format!("{{\"recording_id\":\"{recording_id}\"}}\n")
}

/// SHA-256 of a file's bytes, in hexadecimal.
pub fn hash_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    read_blocks(path, |block| hash.update(block))?;
    Ok(hex::encode(hash.finalize()))
}

/// SHA-256 of these bytes, in hexadecimal.
pub fn digest_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What is in a file.
pub(super) fn survey(path: &Path, stream: Stream<'_>) -> io::Result<Survey> {
    let mut surveyor = stream.surveyor();
    read_blocks(path, |block| surveyor.push(block))?;
    Ok(surveyor.finish())
}

/// Reads a file in blocks.
pub(super) fn read_blocks(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        take(&buffer[..read]);
    }
}
