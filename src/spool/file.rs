//! One file of a recording, for whoever takes its bytes elsewhere while it grows.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};

use super::growing::Growing;
use super::history::NewFile;
use super::journal::Journal;
use super::{FileId, FinishedFile};

/// How far a file is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are safe to take elsewhere, which are whole pages: the disk has them, or is known to fail while memory has
    /// them.
    pub synced: u64,
    /// Bytes appended.
    pub written: u64,
    /// What it is, once it is complete; then `synced` and `written` are its size.
    pub finished: Option<FinishedFile>,
    /// Up to where its first bytes were written over when it was completed: who took them before takes them again.
    pub patched: u64,
}

/// A file that grows, to be read while it does.
#[derive(Clone, Debug)]
pub struct SpoolFile {
    pub(super) id: FileId,
    pub(super) what: NewFile,
    pub(super) growing: Arc<Growing>,
    pub(super) journal: Arc<Journal>,
}

impl SpoolFile {
    /// Which file of its recording it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// What is in it.
    pub fn what(&self) -> &NewFile {
        &self.what
    }

    /// How far it is. The sender lives as long as the file or its recording is held.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.growing.progress()
    }

    /// Has what was appended so far synced at once instead of within a second. Who awaits it learns when that is done, or
    /// has failed; none where the disk is at it, which it may be slow to end.
    pub fn commit(&self) -> Option<oneshot::Receiver<()>> {
        (!self.growing.is_syncing()).then(|| self.growing.commit())
    }

    /// Reads a part of what was appended so far, from memory or from the disk.
    ///
    /// # Errors
    /// `UnexpectedEof` for bytes that are not there yet, and whatever the disk says.
    pub async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.growing.read(range).await
    }

    /// The recording's journal, for steps that another process must know to go on.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }
}
