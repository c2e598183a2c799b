//! The files of one recording.

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::file::SpoolFile;
use super::growing::{Growing, Output};
use super::history::{Entry, Made, NewFile, Place, Started};
use super::journal::{Journal, own_directory};
use super::kept::keep;
use super::memory::Memory;
use super::names::{Reserve, digest_of, give_name, manifest_of, numbered, part_of, sync_directory_of, with_suffix};
use super::recover::{OpenFile, OpenStream, Orphan};
use super::stream::split_name;
use super::volume::{Turns, Volume};
use super::{FileError, FileEvent, FileId, FinishedFile};
use crate::encode::{OggState, OpusHead, Patch};
use crate::render::Render;

/// How long the disk may take to finish a file before it counts as dead.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a recording needs to have files.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// The directory of journals, and of files that go into a store.
    pub spool: PathBuf,
    /// What is recorded, and where to.
    pub started: Started,
    /// What may be kept in memory: as a rule [`Memory::of_process`].
    pub memory: Arc<Memory>,
}

/// The files of one recording, reserved under one name.
#[derive(Debug)]
pub struct RecordingFiles {
    spool: PathBuf,
    /// The directory below the spool that is the recording's own.
    own: Option<PathBuf>,
    stem: PathBuf,
    journal: Arc<Journal>,
    volume: Arc<Volume>,
    turns: Arc<Turns>,
    memory: Arc<Memory>,
    keep: Arc<AtomicBool>,
    files: Vec<SpoolFile>,
    /// Numbers given to files so far.
    numbers: Arc<AtomicUsize>,
    reserve: Arc<Mutex<Option<Reserve>>>,
    events: mpsc::UnboundedSender<FileEvent>,
    /// Whether there is something to recover although no file was made.
    held: bool,
    ended: bool,
}

impl RecordingFiles {
    /// Reserves the recording's name and begins its journal. Waits for the disk.
    ///
    /// Where the name is taken, the first free one of `NAME-1`, `NAME-2`… is taken instead. What happens to files later is
    /// sent to `events`; one that breaks does not hold the others up.
    ///
    /// # Errors
    /// Where the disk refuses a directory, the journal or the name, or the recording has a journal already.
    pub fn reserve(wanted: &Reservation, events: mpsc::UnboundedSender<FileEvent>) -> Result<Self, FileError> {
        let Reservation { spool, started, memory } = wanted;
        make_directory(spool)?;
        let journal = Arc::new(Journal::begin(spool, &with_absolute_place(started)?, memory.clone())?);
        let (path, own) = match &started.place {
            Place::Directory(root) => (root.join(&started.name), None),
            Place::Store(_) => {
                let own = own_directory(journal.path());
                (own.join(Path::new(&started.name).file_name().unwrap_or_default()), Some(own))
            }
        };
        let parent = path.parent().unwrap_or(spool).to_owned();
        if let Err(error) = make_directory(&parent) {
            journal.remove();
            tidy(spool, None);
            return Err(error);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (stem, ext) = split_name(&name);
        let claimed = Reserve::claim(&path.with_file_name(stem), ext, &started.recording_id, |stem| {
            let stem = std::path::absolute(stem).map_err(|e| FileError::new("cannot find", stem, e))?;
            journal.append(&Entry::Named { stem });
            journal.sync_now();
            Ok(())
        });
        let volume = Volume::of(&parent).map_err(|e| FileError::new("cannot start the writer of", &parent, e));
        let (stem, reserve, volume) = match claimed.and_then(|(stem, reserve)| Ok((stem, reserve, volume?))) {
            Ok(all) => all,
            Err(error) => {
                journal.remove();
                tidy(spool, own.as_deref());
                return Err(error);
            }
        };
        Ok(Self {
            spool: spool.clone(),
            own,
            stem,
            journal,
            turns: Turns::on(volume.clone()),
            volume,
            memory: memory.clone(),
            keep: Arc::default(),
            files: Vec::new(),
            numbers: Arc::default(),
            reserve: Arc::new(Mutex::new(Some(reserve))),
            events,
            held: false,
            ended: false,
        })
    }

    /// Goes on with the files of a recording whose process died, which [`Orphan::open_files`] gave, in that order; each is
    /// followed by what is rendered from it. Gives who goes on rendering those, too. Waits for the disk.
    ///
    /// # Errors
    /// What the disk says; then it is an orphan as before.
    pub fn go_on(
        orphan: Orphan,
        streams: Vec<OpenStream>,
        memory: &Arc<Memory>,
        events: mpsc::UnboundedSender<FileEvent>,
    ) -> Result<(Self, Vec<(FileId, Render)>), FileError> {
        let (spool, path, journal, history, started) = orphan.into_parts();
        let nameless = || FileError::new("has no name:", &path, io::ErrorKind::NotFound.into());
        let stem = history.stem.ok_or_else(nameless)?;
        let reserve = Reserve::left_at(&stem, &started.recording_id).ok_or_else(nameless)?;
        let own = matches!(started.place, Place::Store(_)).then(|| own_directory(&path));
        let parent = stem.parent().unwrap_or(&spool);
        let volume = Volume::of(parent).map_err(|e| FileError::new("cannot start the writer of", parent, e))?;
        let journal = Arc::new(Journal::go_on(&spool, path, journal, memory.clone())?);
        let next = history.files.keys().last().map_or(0, |FileId(last)| last + 1);
        let mut files = Self {
            spool,
            own,
            stem,
            journal,
            turns: Turns::on(volume.clone()),
            volume,
            memory: memory.clone(),
            keep: Arc::default(),
            files: Vec::new(),
            numbers: Arc::new(AtomicUsize::new(next)),
            reserve: Arc::new(Mutex::new(Some(reserve))),
            events,
            held: !history.egress.is_empty(),
            ended: false,
        };
        let mut renders = Vec::new();
        for OpenStream { made, head, state, open, rendered } in streams {
            files.go_on_with(made, open, Some((head, state)));
            for (made, open, render) in rendered {
                renders.push((made.file, render));
                files.go_on_with(made, open, None);
            }
        }
        Ok((files, renders))
    }

    fn go_on_with(&mut self, made: Made, open: OpenFile, stream: Option<(OpusHead, OggState)>) {
        let Made { file, what, .. } = made;
        let (volume, memory, keep) = (self.volume.clone(), self.memory.clone(), self.keep.clone());
        let growing = Growing::going_on(volume, memory, keep, self.output(file, what.clone()), open, stream);
        self.files.push(SpoolFile { id: file, what, growing, journal: self.journal.clone() });
    }

    /// Whether somebody takes the files' bytes elsewhere while they grow, so that they are worth keeping in memory when the
    /// disk fails. Nobody does by default.
    pub fn keep_in_memory(&self, keep: bool) {
        self.keep.store(keep, Ordering::Release);
    }

    /// Keeps the journal for recovery however this ends, from now on: there is something to recover although no file was made.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Where the manifest will be.
    pub fn manifest_path(&self) -> PathBuf {
        manifest_of(&self.stem)
    }

    /// The recording's journal.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Makes a file, named by the recording's name, its suffix and its ending. Where that name is taken, by a file that was
    /// there or by another of the recording, it gets a number.
    pub fn create(&mut self, what: NewFile) -> SpoolFile {
        let id = FileId(self.numbers.fetch_add(1, Ordering::Relaxed));
        let output = self.output(id, what.clone());
        let growing = Growing::output(self.volume.clone(), self.memory.clone(), self.keep.clone(), output);
        let making = growing.clone();
        self.turns.run(move || making.make());
        let file = SpoolFile { id, what, growing, journal: self.journal.clone() };
        self.files.push(file.clone());
        file
    }

    /// The files made so far, without those that tell about the recording.
    pub fn files(&self) -> &[SpoolFile] {
        &self.files
    }

    /// Appends whole pages. Never waits.
    pub fn append(&self, file: FileId, bytes: Vec<u8>) {
        if let Some(file) = self.file(file) {
            file.growing.append(bytes.into());
        }
    }

    /// Syncs the file and gives it its name. Where its stream is not `whole`, it ends after what is there.
    ///
    /// # Errors
    /// Where the disk refuses it and its bytes are not kept in memory.
    pub async fn finish(&self, file: FileId, whole: bool) -> Result<FinishedFile, FileError> {
        self.finish_patched(file, whole, Vec::new()).await
    }

    /// As [`finish`](Self::finish), for a file whose first bytes say what only its end shows: `patches` go over them, where the
    /// disk takes them.
    ///
    /// # Errors
    /// As there.
    pub async fn finish_patched(
        &self,
        file: FileId,
        whole: bool,
        patches: Vec<Patch>,
    ) -> Result<FinishedFile, FileError> {
        let Some(file) = self.file(file) else {
            return Err(FileError::new("there is no such file of", &self.stem, io::ErrorKind::NotFound.into()));
        };
        let growing = file.growing.clone();
        self.ask(move || {
            let finished = growing.finish(whole, patches);
            // A disk that refused it is tried again.
            growing.wake();
            finished
        })
        .await
    }

    /// Removes a file that was there only to render others from, which are whole by now.
    pub async fn remove_source(&self, file: FileId) {
        let Some(file) = self.file(file).filter(|file| file.what.is_source_only) else { return };
        let growing = file.growing.clone();
        // What a disk does not remove, recovery does.
        let _ = self.ask(move || growing.remove()).await;
    }

    /// Writes a whole file that tells about the recording. Where the disk refuses it nothing is left.
    ///
    /// # Errors
    /// What the disk says.
    pub async fn write_beside(&self, what: NewFile, bytes: Vec<u8>) -> Result<FinishedFile, FileError> {
        let file = FileId(self.numbers.fetch_add(1, Ordering::Relaxed));
        let (stem, journal) = (with_suffix(&self.stem, &what.suffix), self.journal.clone());
        self.ask(move || write_whole(&journal, file, &stem, what, &bytes)).await
    }

    /// Writes the manifest beside the files.
    ///
    /// # Errors
    /// What the disk says; also the second time.
    pub async fn write_manifest(&self, json: Vec<u8>) -> Result<(), FileError> {
        let (reserve, path) = (self.reserve.clone(), self.manifest_path());
        self.ask(move || {
            // Nothing panics while it is held.
            let place = reserve.lock().unwrap_or_else(PoisonError::into_inner).take();
            let place = place.ok_or(io::ErrorKind::AlreadyExists.into());
            place.map_err(|e| FileError::new("does not overwrite", &path, e))?.fill(&path, &json)
        })
        .await
    }

    /// Everything is where it belongs: the journal goes. What lies in a recording's own directory in the spool, on its way
    /// into a store, goes as well, or where it `keeps` stays there until it [expires](super::expire).
    pub async fn done(mut self, keeps: bool) {
        self.ended = true;
        self.files.iter().for_each(|file| file.growing.give_up());
        self.journal.append(&Entry::Finished);
        let (journal, spool, own) = (self.journal.clone(), self.spool.clone(), self.own.clone());
        // A disk that does not answer keeps a journal that says so.
        let _ = self
            .ask(move || {
                journal.sync_now();
                if let Some(own) = &own {
                    let kept = if keeps { keep(&spool, own) } else { fs::remove_dir_all(own) };
                    if let Err(error) = kept {
                        tracing::warn!(%error, own = %own.display(), "what the store has stays in the spool as it is");
                    }
                }
                journal.remove();
                tidy(&spool, None);
                Ok(())
            })
            .await;
    }

    /// Ends without an end: the journal stays, for recovery.
    pub async fn leave(mut self) {
        self.ended = true;
        self.journal.commit().await;
    }

    fn output(&self, id: FileId, what: NewFile) -> Output {
        let (journal, events) = (self.journal.clone(), self.events.clone());
        Output { id, stem: with_suffix(&self.stem, &what.suffix), what, journal, events }
    }

    async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, FileError> {
        let (done, answer) = oneshot::channel();
        self.turns.run(move || {
            // Nobody waits any more.
            let _ = done.send(job());
        });
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(FileError::new(
                "the writer ended before it had written",
                &self.stem,
                io::ErrorKind::BrokenPipe.into(),
            )),
            Err(_) => Err(FileError::new("the disk does not answer for", &self.stem, io::ErrorKind::TimedOut.into())),
        }
    }

    fn file(&self, FileId(n): FileId) -> Option<&SpoolFile> {
        self.files.iter().find(|file| file.id == FileId(n))
    }
}

impl Drop for RecordingFiles {
    fn drop(&mut self) {
        if self.ended || self.held || !self.files.is_empty() {
            return;
        }
        // Nothing was recorded, so there is nothing to recover.
        let (reserve, journal) = (self.reserve.clone(), self.journal.clone());
        let (spool, own) = (self.spool.clone(), self.own.clone());
        self.turns.run(move || {
            if let Some(place) = reserve.lock().unwrap_or_else(PoisonError::into_inner).take() {
                place.abandon();
            }
            journal.remove();
            tidy(&spool, own.as_deref());
        });
    }
}

/// What other processes can follow, whatever their working directory.
fn with_absolute_place(started: &Started) -> Result<Started, FileError> {
    let place = match &started.place {
        Place::Directory(path) => {
            Place::Directory(std::path::absolute(path).map_err(|e| FileError::new("cannot find", path, e))?)
        }
        Place::Store(url) => Place::Store(url.clone()),
    };
    Ok(Started { place, ..started.clone() })
}

fn write_whole(
    journal: &Journal,
    file: FileId,
    stem: &Path,
    what: NewFile,
    bytes: &[u8],
) -> Result<FinishedFile, FileError> {
    let mut number = 0;
    let path = loop {
        let path = with_suffix(&numbered(stem, number), &format!(".{}", what.ext));
        if !path.exists() && !part_of(&path).exists() {
            break path;
        }
        number += 1;
    };
    let sha256 = digest_of(bytes);
    let made = std::path::absolute(&path).map_err(|e| FileError::new("cannot find", &path, e))?;
    journal.append(&Entry::Made(Made { file, path: made, what }));
    journal.append(&Entry::Closed { file, bytes: bytes.len() as u64, sha256: sha256.clone(), cut_to: None });
    journal.sync_now();
    let part = part_of(&path);
    let write = || -> io::Result<()> {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&part)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    let written =
        write().map_err(|e| FileError::new("cannot write to", &part, e)).and_then(|()| give_name(&part, &path));
    if let Err(error) = written {
        // Nothing is better than a part of it.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    Ok(FinishedFile { path, bytes: bytes.len() as u64, sha256, cut_to: None, in_memory: false })
}

fn make_directory(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(|e| FileError::new("cannot create the directory", path, e))?;
    sync_directory_of(path);
    Ok(())
}

/// Removes directories that are empty.
pub(super) fn tidy(spool: &Path, own: Option<&Path>) {
    for directory in own.into_iter().chain([spool]) {
        // Where it is in use it stays.
        let _ = fs::remove_dir(directory);
    }
}
