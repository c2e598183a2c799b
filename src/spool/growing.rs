//! A file that grows at its end: bytes wait in memory until the disk has synced them, and anybody may read them meanwhile.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock;
use crate::encode::{OggState, OpusHead, Patch};
use crate::hex;
use crate::time::SampleCount;

use super::history::{Entry, Made, NewFile};
use super::journal::Journal;
use super::memory::Memory;
use super::names::{give_name, hash_of, numbered, part_of, survey, sync_directory_of, with_suffix};
use super::recover::OpenFile;
use super::stream::Stream;
use super::tail::Tail;
use super::volume::Volume;
use super::{FileError, FileEvent, FileId, FinishedFile, Progress, What};

/// How long a disk may take to sync before what waits for it is offered from memory.
const LATE: Duration = Duration::from_secs(5);

/// A file that grows.
///
/// Two locks: `state` is held for moments only, so that whoever appends or reads from memory never waits for the disk; `io`
/// is held while the disk works. Who needs both takes `io` first.
#[derive(Debug)]
pub(super) struct Growing {
    volume: Arc<Volume>,
    memory: Arc<Memory>,
    plan: Plan,
    /// Whether somebody takes the bytes elsewhere, so that they are worth keeping when the disk fails.
    keep: Arc<AtomicBool>,
    /// Whether the volume's thread has been told of bytes that it did not take yet.
    woken: AtomicBool,
    /// Whether the writer knows that it is to be synced.
    listed: AtomicBool,
    /// Whether the disk refuses bytes that are kept in memory.
    failing: AtomicBool,
    /// Whether nobody needs what the disk does not have.
    given_up: AtomicBool,
    state: Mutex<State>,
    io: Mutex<Io>,
    /// Held while the disk syncs: the kernel tells of a write that failed only once, and who learns of it must be the one who
    /// says how far it got.
    syncing: Mutex<()>,
    progress: watch::Sender<Progress>,
}

/// What came of writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// The file is to be synced, and was not before.
    Unsynced,
    /// Somebody works on it.
    Busy,
    /// There is nothing to do that is not known.
    Nothing,
}

/// What kind of file it is.
#[derive(Debug)]
enum Plan {
    /// A journal, which is there already.
    Journal(PathBuf),
    /// An Ogg file, which is made by the volume's thread.
    Output(Output),
}

/// How an Ogg file is made and what is told of it.
#[derive(Debug)]
pub(super) struct Output {
    pub id: FileId,
    /// The path without number and ending.
    pub stem: PathBuf,
    pub what: NewFile,
    pub journal: Arc<Journal>,
    pub events: mpsc::UnboundedSender<FileEvent>,
}

#[derive(Debug, Default)]
struct State {
    tail: Tail,
    hash: Sha256,
    /// The file, once it is made.
    file: Option<Arc<File>>,
    /// How the stream begins.
    head: Option<OpusHead>,
    /// Where it stands at the end of the tail.
    stands: Option<OggState>,
    /// How long it plays, where it was ended before its time.
    cut_to: Option<SampleCount>,
    /// Since when bytes wait for the disk.
    unsynced_since: Option<Instant>,
    /// Nothing more is taken: too much waits for the disk.
    full: bool,
    /// Nothing more is taken: the disk gave out.
    broken: bool,
}

#[derive(Debug, Default)]
struct Io {
    path: PathBuf,
    /// Up to where the file was written.
    on_disk: u64,
    /// Up to where it was synced.
    synced: u64,
    /// Where what was written last begins.
    last_piece: u64,
    /// Where the stream stands at `on_disk`.
    ogg: Option<OggState>,
    /// The file is to be finished as soon as the disk takes it.
    unfinished: bool,
    /// What is put over its first bytes before it is finished.
    patches: Vec<Patch>,
    finished: Option<FinishedFile>,
}

impl Growing {
    /// A journal that is open at `path`, with `length` bytes that are synced.
    pub fn journal(volume: Arc<Volume>, memory: Arc<Memory>, path: PathBuf, file: File, length: u64) -> Arc<Self> {
        let state = State { file: Some(Arc::new(file)), tail: Tail::from_offset(length), ..State::default() };
        let io = Io { path: path.clone(), on_disk: length, synced: length, ..Io::default() };
        Self::new(volume, memory, Plan::Journal(path), Arc::new(AtomicBool::new(true)), state, io)
    }

    /// An Ogg file, which [`make`](Self::make) makes.
    pub fn output(volume: Arc<Volume>, memory: Arc<Memory>, keep: Arc<AtomicBool>, output: Output) -> Arc<Self> {
        Self::new(volume, memory, Plan::Output(output), keep, State::default(), Io::default())
    }

    /// An Ogg file that another process began.
    pub fn going_on(
        volume: Arc<Volume>,
        memory: Arc<Memory>,
        keep: Arc<AtomicBool>,
        output: Output,
        open: OpenFile,
        stream: Option<(OpusHead, OggState)>,
    ) -> Arc<Self> {
        let OpenFile { path, bytes, last_unit, file, hash } = open;
        let (file, tail) = (Some(Arc::new(file)), Tail::from_offset(bytes));
        let (head, stands) = stream.unzip();
        let state = State { file, tail, hash, head, stands, ..State::default() };
        let (on_disk, synced, ogg) = (bytes, bytes, stands);
        let io = Io { path, on_disk, synced, last_piece: last_unit, ogg, ..Io::default() };
        let growing = Self::new(volume, memory, Plan::Output(output), keep, state, io);
        growing.progress.send_modify(|progress| (progress.synced, progress.written) = (bytes, bytes));
        growing
    }

    fn new(
        volume: Arc<Volume>,
        memory: Arc<Memory>,
        plan: Plan,
        keep: Arc<AtomicBool>,
        state: State,
        io: Io,
    ) -> Arc<Self> {
        let (woken, listed, failing, given_up, syncing) = Default::default();
        let (state, io) = (Mutex::new(state), Mutex::new(io));
        let progress = watch::Sender::new(Progress::default());
        Arc::new(Self { volume, memory, plan, keep, woken, listed, failing, given_up, state, io, syncing, progress })
    }

    /// How far it is.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Appends, and tells the volume's thread.
    pub fn append(self: &Arc<Self>, bytes: Bytes) {
        if self.push(bytes) {
            self.wake();
        }
    }

    /// Appends what may wait for what is appended next.
    pub fn append_later(self: &Arc<Self>, bytes: Bytes) {
        self.push(bytes);
    }

    /// Tells the volume's thread that there is something to do.
    pub fn wake(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.volume.wake(self.clone());
        }
    }

    /// Whether the disk refuses bytes that memory has.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Acquire)
    }

    /// Nobody needs any more what the disk does not have by now.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Reads a part: from memory what the disk does not have for sure, the rest from the disk.
    pub async fn read(self: &Arc<Self>, range: Range<u64>) -> io::Result<Bytes> {
        let mut bytes = BytesMut::new();
        let (on_disk, file) = {
            let state = self.state();
            if range.end > state.tail.end() || range.end < range.start {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let on_disk = range.start..range.end.min(state.tail.start());
            if !on_disk.is_empty() {
                bytes.resize((on_disk.end - on_disk.start) as usize, 0);
            }
            state.tail.copy(&range, &mut bytes);
            (on_disk, state.file.clone())
        };
        if on_disk.is_empty() {
            return Ok(bytes.freeze());
        }
        let file = file.ok_or(io::ErrorKind::NotFound)?;
        let read = move || -> io::Result<Bytes> {
            let length = (on_disk.end - on_disk.start) as usize;
            file.read_exact_at(&mut bytes[..length], on_disk.start)?;
            Ok(bytes.freeze())
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Writes what waits, if nobody else works on the file, without waiting for the disk.
    pub fn write(&self) -> Written {
        self.woken.store(false, Ordering::Release);
        let mut io = match self.io.try_lock() {
            Ok(io) => io,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Written::Busy,
        };
        if self.is_failing() {
            return self.list();
        }
        // Who makes it writes what waits by then.
        if self.state().file.is_none() {
            return Written::Nothing;
        }
        if let Err(error) = self.write_out(&mut io) {
            self.fail(&mut io, error);
        }
        self.list()
    }

    /// Writes and syncs what waits, and where the disk failed tries it again. Gives whether the disk refuses it, so that it is
    /// to be tried again. Waits for the disk.
    pub fn sync(&self) -> bool {
        self.listed.store(false, Ordering::Release);
        self.sync_now();
        let again = self.is_failing() && !self.given_up.load(Ordering::Acquire);
        again && !self.listed.swap(true, Ordering::AcqRel)
    }

    /// As [`sync`](Self::sync), beside the writer.
    pub fn sync_now(&self) {
        // It guards nothing that could be left half done.
        let _alone = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = self.is_failing();
        match self.write_and_sync(failed) {
            Ok(()) => {
                if failed {
                    self.failing.store(false, Ordering::Release);
                    self.tell(What::BackOnDisk);
                }
            }
            Err(error) => self.fail(&mut self.io(), error),
        }
    }

    /// Has what was appended so far synced, beside the writer. Who awaits it learns when that is done, or has failed.
    pub fn commit(self: &Arc<Self>) -> oneshot::Receiver<()> {
        let (done, answer) = oneshot::channel();
        let growing = self.clone();
        self.volume.run(move || {
            growing.sync_now();
            // Nobody waits any more.
            let _ = done.send(());
        });
        answer
    }

    /// Whether the disk syncs it at the moment.
    pub fn is_syncing(&self) -> bool {
        matches!(self.syncing.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Makes the file, and writes what waits for it. Waits for the disk.
    pub fn make(self: &Arc<Self>) {
        self.sync_now();
        if self.is_failing() {
            self.wake();
        }
    }

    fn list(&self) -> Written {
        if self.listed.swap(true, Ordering::AcqRel) { Written::Nothing } else { Written::Unsynced }
    }

    /// Puts `patches` over its first bytes, syncs the file and gives it its name. Where its stream is not `whole` it ends after
    /// what is there.
    pub fn finish(&self, whole: bool, patches: Vec<Patch>) -> Result<FinishedFile, FileError> {
        let mut io = self.io();
        if let Some(finished) = &io.finished {
            return Ok(finished.clone());
        }
        let whole = whole && !self.state().full;
        // They tell of a whole file.
        io.patches = if whole { patches } else { Vec::new() };
        if self.is_kept() {
            if !whole {
                self.push_closing_page();
            }
            io.unfinished = true;
            drop(io);
            self.sync_now();
            let io = self.io();
            // What the disk does not take now, the memory has, and the disk gets later.
            return Ok(io.finished.clone().unwrap_or_else(|| self.finished_in_memory(&io)));
        }
        if let Err(error) = self.write_out(&mut io) {
            self.fail(&mut io, error);
        }
        if !whole && !self.state().broken {
            self.close_at_last_page(&mut io);
        }
        self.complete(&mut io)
    }

    /// Removes the file, which nobody needs any more.
    pub fn remove(&self) -> Result<(), FileError> {
        self.give_up();
        let io = self.io();
        let mut state = self.state();
        state.broken = true;
        let end = state.tail.end();
        self.memory.give_back(state.tail.forget_until(end));
        drop(state);
        let part = self.part(&io);
        std::fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))
    }

    fn push(&self, bytes: Bytes) -> bool {
        let mut state = self.state();
        if state.broken || state.full || bytes.is_empty() {
            return false;
        }
        let is_rendered = matches!(&self.plan, Plan::Output(output) if output.what.rendered.is_some());
        let has_room = if is_rendered { self.memory.take_of_half(bytes.len()) } else { self.memory.take(bytes.len()) };
        if !has_room {
            state.full = true;
            drop(state);
            let limit = self.memory.limit();
            let error = io::Error::other(format!("more than {limit} bytes wait for it"));
            self.tell(What::Broken(FileError::new("the disk does not keep up with", &self.final_path(), error)));
            return false;
        }
        self.take(&mut state, bytes);
        true
    }

    fn take(&self, state: &mut State, bytes: Bytes) {
        if let Some(stream) = self.stream() {
            if state.tail.end() == 0 {
                state.head = stream.head_of(&bytes);
            }
            state.stands = stream.state_after(&bytes).or(state.stands);
        }
        state.hash.update(&bytes);
        state.tail.push(bytes);
        let now = clock::now();
        let waits = now.saturating_duration_since(*state.unsynced_since.get_or_insert(now));
        let offered = self.failing.load(Ordering::Acquire) || self.is_kept() && waits > LATE;
        let end = state.tail.end();
        self.progress.send_modify(|progress| {
            progress.written = end;
            if offered {
                progress.synced = end;
            }
        });
    }

    /// The lock is not held while the disk syncs, so that what comes meanwhile is written.
    fn write_and_sync(&self, failed: bool) -> Result<(), FileError> {
        let (file, until, path) = {
            let mut io = self.io();
            if failed {
                // What a disk that failed says it has written, it may have lost.
                io.on_disk = io.synced;
            }
            self.write_out(&mut io)?;
            if self.state().broken || io.synced == io.on_disk {
                return self.finish_if_asked(&mut io);
            }
            (self.made(&mut io)?, io.on_disk, self.part(&io))
        };
        file.sync_data().map_err(|e| FileError::new("cannot sync", &path, e))?;
        let mut io = self.io();
        self.synced(&mut io, until);
        self.finish_if_asked(&mut io)
    }

    fn write_out(&self, io: &mut Io) -> Result<(), FileError> {
        if self.state().broken {
            return Ok(());
        }
        let file = self.made(io)?;
        let pieces = self.state().tail.pieces_from(io.on_disk);
        for piece in pieces {
            file.write_all_at(&piece, io.on_disk).map_err(|e| FileError::new("cannot write to", &self.part(io), e))?;
            io.last_piece = io.on_disk;
            io.on_disk += piece.len() as u64;
            if let Some(stream) = self.stream() {
                io.ogg = stream.state_after(&piece).or(io.ogg);
            }
        }
        Ok(())
    }

    /// The disk has everything up to `until`.
    fn synced(&self, io: &mut Io, until: u64) {
        if self.state().broken || until <= io.synced {
            return;
        }
        io.synced = until;
        let mut state = self.state();
        self.memory.give_back(state.tail.forget_until(until));
        state.unsynced_since = (state.tail.len() > 0).then(clock::now);
        self.progress.send_modify(|progress| progress.synced = progress.synced.max(until));
        drop(state);
        if let (Plan::Output(output), Some(state)) = (&self.plan, io.ogg.filter(|_| until == io.on_disk)) {
            output.journal.append_later(&Entry::Synced { file: output.id, bytes: until, state });
        }
    }

    /// The file, which is made where there is none yet.
    fn made(&self, io: &mut Io) -> Result<Arc<File>, FileError> {
        if let Some(file) = &self.state().file {
            return Ok(file.clone());
        }
        let Plan::Output(output) = &self.plan else {
            return Err(FileError::new("was never created:", &io.path, io::ErrorKind::NotFound.into()));
        };
        for number in 0u32.. {
            let path = with_suffix(&numbered(&output.stem, number), &format!(".{}", output.what.ext));
            if path.exists() {
                continue;
            }
            let part = part_of(&path);
            if part.exists() {
                continue;
            }
            if io.path != path {
                let made = std::path::absolute(&path).map_err(|e| FileError::new("cannot find", &path, e))?;
                output.journal.append(&Entry::Made(Made { file: output.id, path: made, what: output.what.clone() }));
                output.journal.sync_now();
                io.path = path;
            }
            match OpenOptions::new().read(true).write(true).create_new(true).open(&part) {
                Ok(file) => {
                    sync_directory_of(&part);
                    let file = Arc::new(file);
                    self.state().file = Some(file.clone());
                    return Ok(file);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::new("cannot create", &part, error)),
            }
        }
        unreachable!("some suffix of four thousand million is free")
    }

    /// The disk refused something: from now on memory stands in for it, or the file ends here.
    fn fail(&self, io: &mut Io, error: FileError) {
        if self.is_kept() {
            let first = !self.failing.swap(true, Ordering::AcqRel);
            let end = self.state().tail.end();
            self.progress.send_modify(|progress| progress.synced = end);
            if first {
                self.tell(What::InMemory(error));
            }
            return;
        }
        // Two may have met the same fault.
        if self.state().broken {
            return;
        }
        self.close_at_last_page(io);
        self.tell(What::Broken(error));
    }

    /// Back to the last whole write, which is a whole page and becomes the stream's last. This takes no disk space.
    fn close_at_last_page(&self, io: &mut Io) {
        let file = {
            let mut state = self.state();
            state.broken = true;
            let end = state.tail.end();
            self.memory.give_back(state.tail.forget_until(end));
            state.unsynced_since = None;
            state.file.clone()
        };
        let Some(file) = file else { return };
        let Some(stream) = self.stream() else {
            // Any beginning of it plays. What cannot be cut is longer than what is told of it.
            let _ = file.set_len(io.on_disk);
            return;
        };
        let mut page = vec![0; usize::try_from(io.on_disk - io.last_piece).unwrap_or(0)];
        let closed = file.set_len(io.on_disk).and_then(|()| file.read_exact_at(&mut page, io.last_piece));
        if closed.is_err() || !stream.end_in_place(&mut page) {
            return;
        }
        // A disk that refuses this too leaves a file without its end mark, which players take.
        let _ = file.write_all_at(&page, io.last_piece);
    }

    /// Ends a stream that is taken elsewhere: bytes that somebody may have taken already are not changed any more.
    fn push_closing_page(&self) {
        let mut state = self.state();
        let Some((head, stands)) = state.head.zip(state.stands) else { return };
        let Some(stream) = self.stream() else { return };
        let page = match stream.closing(head, stands) {
            Ok(page) => page,
            Err(error) => {
                tracing::error!(%error, "a stream has no end mark, which players take");
                return;
            }
        };
        state.cut_to = Some(SampleCount(stands.granule.saturating_sub(u64::from(head.pre_skip))));
        self.memory.take_anyway(page.len());
        self.take(&mut state, page.into());
    }

    fn finish_if_asked(&self, io: &mut Io) -> Result<(), FileError> {
        if io.unfinished && io.finished.is_none() {
            // Who asked for it may not have come to write what waits.
            self.write_out(io)?;
            self.complete(io)?;
        }
        Ok(())
    }

    /// Syncs everything and gives the file its name.
    fn complete(&self, io: &mut Io) -> Result<FinishedFile, FileError> {
        let Plan::Output(output) = &self.plan else {
            return Err(FileError::new("has its name already:", &io.path, io::ErrorKind::AlreadyExists.into()));
        };
        let (file, broken) = {
            let state = self.state();
            (state.file.clone(), state.broken)
        };
        let part = self.part(io);
        let Some(file) = file else {
            return Err(FileError::new("was never created:", &part, io::ErrorKind::NotFound.into()));
        };
        // They are right for a whole file; and of one that memory stood in for, somebody may have the first bytes already.
        let patches = std::mem::take(&mut io.patches);
        let patches = if broken || self.is_failing() { Vec::new() } else { patches };
        let patched = patch_and_sync(&file, &patches).map_err(|e| FileError::new("cannot sync", &part, e))?;
        let read_back = |e| FileError::new("cannot read back", &part, e);
        let (sha256, cut_to) = if broken {
            let found = self.stream().map(|stream| survey(&part, stream)).transpose().map_err(read_back)?;
            (hash_of(&part).map_err(read_back)?, found.map(|found| found.duration))
        } else if patched > 0 {
            (hash_of(&part).map_err(read_back)?, None)
        } else {
            (self.sha256(), self.state().cut_to)
        };
        let bytes = io.on_disk;
        output.journal.append(&Entry::Closed { file: output.id, bytes, sha256: sha256.clone(), cut_to });
        output.journal.sync_now();
        give_name(&part, &io.path)?;
        let finished = FinishedFile { path: io.path.clone(), bytes, sha256, cut_to, in_memory: false };
        io.synced = io.on_disk;
        io.finished = Some(finished.clone());
        let mut state = self.state();
        self.memory.give_back(state.tail.forget_until(io.synced));
        self.progress.send_modify(|progress| {
            progress.synced = progress.synced.max(bytes);
            progress.patched = patched;
            progress.finished = Some(finished.clone());
        });
        Ok(finished)
    }

    /// What the file will be once the disk takes it; until then memory has what is missing.
    fn finished_in_memory(&self, io: &Io) -> FinishedFile {
        let (bytes, cut_to) = {
            let state = self.state();
            (state.tail.end(), state.cut_to)
        };
        let path = if io.path.as_os_str().is_empty() { self.final_path() } else { io.path.clone() };
        let finished = FinishedFile { path, bytes, sha256: self.sha256(), cut_to, in_memory: true };
        self.progress.send_modify(|progress| {
            progress.synced = bytes;
            progress.finished = Some(finished.clone());
        });
        finished
    }

    fn sha256(&self) -> String {
        hex::encode(self.state().hash.clone().finalize())
    }

    fn tell(&self, what: What) {
        let output = match &self.plan {
            Plan::Output(output) => output,
            Plan::Journal(path) => {
                match what {
                    What::Broken(error) | What::InMemory(error) => tracing::error!(%error, "the journal cannot go on"),
                    What::BackOnDisk => tracing::info!(path = %path.display(), "the journal is on disk again"),
                }
                return;
            }
        };
        // Nobody listens any more once the recording has its result.
        let _ = output.events.send(FileEvent { file: output.id, what });
    }

    /// The stream in it; none in a journal.
    fn stream(&self) -> Option<Stream<'_>> {
        match &self.plan {
            Plan::Journal(_) => None,
            Plan::Output(output) => output.what.stream(),
        }
    }

    fn is_kept(&self) -> bool {
        self.keep.load(Ordering::Acquire)
    }

    fn part(&self, io: &Io) -> PathBuf {
        match &self.plan {
            Plan::Journal(path) => path.clone(),
            Plan::Output(_) => part_of(&io.path),
        }
    }

    fn final_path(&self) -> PathBuf {
        match &self.plan {
            Plan::Journal(path) => path.clone(),
            Plan::Output(output) => with_suffix(&output.stem, &format!(".{}", output.what.ext)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What it guards is whole between any two statements that hold it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes the file as a sync does that was under way when somebody else asked for it.
    #[cfg(test)]
    pub fn finish_beside(&self) -> Result<(), FileError> {
        let mut io = self.io();
        io.unfinished = true;
        self.finish_if_asked(&mut io)
    }

    /// Keeps everybody from writing, as a disk that hangs does.
    #[cfg(test)]
    pub fn hang(&self) -> impl Sized {
        self.io()
    }

    fn io(&self) -> MutexGuard<'_, Io> {
        // As above.
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Growing {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.memory.give_back(state.tail.len());
    }
}

/// Puts `patches` over the first bytes of a file and syncs it. Gives up to where they reach. A disk that refuses has the bytes
/// that were there before, as far as it still takes anything.
fn patch_and_sync(file: &File, patches: &[Patch]) -> io::Result<u64> {
    let read = |patch: &Patch| {
        let mut bytes = vec![0; patch.bytes.len()];
        file.read_exact_at(&mut bytes, patch.offset).map(|()| Patch { offset: patch.offset, bytes })
    };
    let before = patches.iter().map(read).collect::<io::Result<Vec<_>>>()?;
    let write = |patches: &[Patch]| patches.iter().try_for_each(|patch| file.write_all_at(&patch.bytes, patch.offset));
    let synced = write(patches).and_then(|()| file.sync_all());
    if synced.is_err() {
        let _ = write(&before);
    }
    synced.map(|()| patches.iter().map(Patch::end).max().unwrap_or(0))
}
