//! The journal of a recording that goes on: written with its files, locked while its process lives.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::FileError;
use super::growing::Growing;
use super::history::{Entry, History, Started};
use super::memory::Memory;
use super::names::{give_name, part_of, sync_directory_of};
use super::volume::Volume;

/// A recording's journal. As long as it is held, no other process takes the recording for an orphan.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    growing: Arc<Growing>,
}

impl Journal {
    /// Begins the journal of a recording in the directory `spool`. Where one of an earlier recording of that id still waits for
    /// its store, or for an egress to be stopped, this one gets a number.
    ///
    /// # Errors
    /// Where a recording of that id goes on, or the disk refuses the journal.
    pub(super) fn begin(spool: &Path, started: &Started, memory: Arc<Memory>) -> Result<Self, FileError> {
        let mut number = 0;
        let (path, file) = loop {
            let path = match number {
                0 => path_of(spool, &started.recording_id),
                // No id has this character.
                number => path_of(spool, &format!("{}~{number}", started.recording_id)),
            };
            match begin_at(spool, &path, started)? {
                Some(file) => break (path, file),
                None if waits_for_others(&path) => number += 1,
                None => {
                    let goes_on = io::Error::new(io::ErrorKind::AlreadyExists, "a recording of that id goes on");
                    return Err(FileError::new("cannot begin the journal", &path, goes_on));
                }
            }
        };
        let failed = |e| FileError::new("cannot begin the journal", &path, e);
        let length = file.metadata().map_err(failed)?.len();
        let volume = Volume::of(spool).map_err(failed)?;
        let growing = Growing::journal(volume, memory, path.clone(), file, length);
        Ok(Self { path, growing })
    }

    /// Goes on with a journal that another process began, and whose lock `file` holds.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn go_on(spool: &Path, path: PathBuf, file: File, memory: Arc<Memory>) -> Result<Self, FileError> {
        let failed = |e| FileError::new("cannot go on with the journal", &path, e);
        let length = file.metadata().map_err(failed)?.len();
        let volume = Volume::of(spool).map_err(failed)?;
        let growing = Growing::journal(volume, memory, path.clone(), file, length);
        Ok(Self { path, growing })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds an entry, which is synced within a second. Gives how many bytes it is.
    pub fn append(&self, entry: &Entry) -> usize {
        let line = line_of(entry).unwrap_or_default();
        let length = line.len();
        self.growing.append(line.into());
        length
    }

    /// Waits until the disk has what was appended so far, or is known to fail; then memory has it, within its bound.
    pub async fn commit(&self) {
        // A writer that is gone shows where the recording is finished.
        let _ = self.growing.commit().await;
    }

    /// As [`commit`](Self::commit), for who does not hold the journal until then.
    pub fn committed(&self) -> impl Future<Output = ()> + Send + use<> {
        let committed = self.growing.commit();
        async move {
            // As above.
            let _ = committed.await;
        }
    }

    /// Adds an entry that is only a hint, and is written with the next that is more.
    pub(super) fn append_later(&self, entry: &Entry) {
        if let Some(line) = line_of(entry) {
            self.growing.append_later(line.into());
        }
    }

    /// Syncs it on this thread.
    pub(super) fn sync_now(&self) {
        self.growing.sync_now();
        if self.growing.is_failing() {
            self.growing.wake();
        }
    }

    /// Removes it: there is nothing left to recover.
    pub(super) fn remove(&self) {
        self.growing.give_up();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the journal");
        }
        sync_directory_of(&self.path);
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.growing.give_up();
    }
}

/// Begins a journal at `path`; none where there is one.
fn begin_at(spool: &Path, path: &Path, started: &Started) -> Result<Option<File>, FileError> {
    let failed = |e| FileError::new("cannot begin the journal", path, e);
    let line = Entry::Started(started.clone()).line().map_err(|e| failed(e.into()))?;
    loop {
        let part = part_of(path);
        // Whoever ends the last recording of a spool removes the directory.
        fs::create_dir_all(spool).map_err(failed)?;
        let Some(mut file) = locked_new(&part).map_err(failed)? else { continue };
        let written = file.write_all(&line).and_then(|()| file.sync_all());
        match written.map_err(failed).and_then(|()| give_name(&part, path)) {
            Ok(()) => return Ok(Some(file)),
            // Who looks for orphans took it for one before it was locked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let _ = fs::remove_file(&part);
                return Ok(None);
            }
            Err(error) => {
                let _ = fs::remove_file(&part);
                return Err(error);
            }
        }
    }
}

/// Whether the journal at `path` is of a recording that is over: its files are ended, and somebody has to bring them up; or
/// its process died, and an egress has to be stopped that may run.
fn waits_for_others(path: &Path) -> bool {
    let history = History::read(&fs::read(path).unwrap_or_default());
    let is_left = || matches!(lock(path), Ok(Some(_)));
    if history.running_egress().is_some() {
        return is_left();
    }
    let are_ended = history.files.values().all(|file| file.closed.is_some());
    are_ended && (!history.files.is_empty() || !history.egress.is_empty() && is_left())
}

/// The directory in the spool that is the own one of the recording whose journal is at `path`.
pub(super) fn own_directory(path: &Path) -> PathBuf {
    path.with_extension("")
}

fn line_of(entry: &Entry) -> Option<Vec<u8>> {
    entry.line().inspect_err(|error| tracing::error!(%error, "an entry that cannot be written")).ok()
}

/// The ending of journals.
const EXT: &str = "journal";

/// Where the journal of a recording is.
pub(super) fn path_of(spool: &Path, recording_id: &str) -> PathBuf {
    spool.join(format!("{recording_id}.{EXT}"))
}

/// Whether a file's name is that of a journal, or of one that was about to be begun.
pub(super) fn kind_of(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?;
    if name.ends_with(&format!(".{EXT}")) {
        return Some(Kind::Journal);
    }
    name.ends_with(&format!(".{EXT}.part")).then_some(Kind::Begun)
}

/// What a file in a spool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A journal.
    Journal,
    /// A journal that was about to be begun and says nothing yet.
    Begun,
}

/// Makes a file and locks it; none where somebody else was faster.
fn locked_new(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).create_new(true).open(path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // Left by a process that died in this very moment, unless one lives that holds it.
            if lock(path)?.is_none() {
                return Err(error);
            }
            fs::remove_file(path)?;
            Ok(None)
        }
        // Somebody tidied up between.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens and locks a file that is there; none where another process holds it, or it is gone.
pub(super) fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    // Whoever held it before may have removed it; then this is the lock of a file that nobody sees.
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata()?;
    let there = fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()));
    Ok(there.then_some(file))
}
