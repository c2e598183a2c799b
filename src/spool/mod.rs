//! Nothing lost on this machine: the files of recordings that go on, and what another process needs to end them.
//!
//! A file is `NAME.part` while it grows and gets its name when it is whole; nothing that exists is overwritten. What was
//! appended is written at once and synced about once a second, by the writer of the volume, which all recordings of the
//! process share. Whoever appends never waits for a disk: the bytes lie in memory until they are synced, within a bound for
//! the whole process, and can be read from there.
//!
//! Beside the files, in the spool directory, each recording has a journal: one JSON object a line, which says what there is
//! and how far it is. The recording's process holds a lock on it that the kernel releases when the process dies; a journal
//! without a lock is an orphan, and [`recover`] ends it.
//!
//! Where the disk fails and somebody takes the bytes elsewhere ([`RecordingFiles::keep_in_memory`]), memory stands in for
//! it, and the disk gets everything once it works again. Where nobody does, the file is cut back to the last whole write,
//! which is a whole Ogg page, and closed there.
//!
//! | file | what it is for |
//! |---|---|
//! | `files` | the files of one recording: what a recording holds |
//! | `file` | one file, for whoever reads while it grows |
//! | `growing` | a file that grows at its end, and the disk's failures |
//! | `tail`, `memory` | what the disk does not have yet, and how much that may be |
//! | `volume` | the writers, one a volume |
//! | `history`, `journal` | what a journal says; the one that is being written |
//! | `stream` | how a file holds its stream, plain or sealed |
//! | `kept` | what stays for a while after its store has it |
//! | `names` | names that are taken and given |
//! | `recover` | orphans |

mod file;
mod files;
mod growing;
mod history;
mod journal;
mod kept;
mod memory;
mod names;
pub mod recover;
mod stream;
mod tail;
mod volume;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::time::SampleCount;

pub use file::{Progress, SpoolFile};
pub use files::{RecordingFiles, Reservation};
pub use history::{
    Closed, EgressStep, Entry, FileHistory, History, JOURNAL_VERSION, Made, NewFile, Place, Rendered, RunningEgress,
    Started, Upload,
};
pub use journal::Journal;
pub use kept::{erase, expire};
pub use memory::Memory;
pub use names::{digest_of, hash_of};
pub(crate) use names::{give_name, part_of};
pub use stream::{OGG, SEALED, Stream, StreamError, Survey, Surveyor, Unit, UnitReader, split_name};

/// A fault of the local disk.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }

    /// What kind of fault it is.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// One of a recording's files, by the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub usize);

/// Something that happened to a file while it was written.
#[derive(Debug)]
pub struct FileEvent {
    /// Which file.
    pub file: FileId,
    /// What happened.
    pub what: What,
}

/// What can happen to a file while it is written.
#[derive(Debug)]
pub enum What {
    /// It ends here: the disk refused it, and nobody takes its bytes elsewhere.
    Broken(FileError),
    /// The disk refuses it, and memory stands in.
    InMemory(FileError),
    /// The disk has everything again.
    BackOnDisk,
}

/// A file that is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// How long it plays, where it had to be cut before its stream's end.
    pub cut_to: Option<SampleCount>,
    /// Whether the disk still refuses some of it, which only memory has.
    pub in_memory: bool,
}
