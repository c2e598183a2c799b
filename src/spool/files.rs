//! The files of one recording.

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
use super::journal::Journal;
use super::kept::keep;
use super::memory::Memory;
use super::names::{Reserve, digest_of, give_name, manifest_of, numbered, part_of, sync_directory_of, with_suffix};
use super::recover::{OpenStream, Orphan};
use super::stream::split_name;
use super::volume::{Turns, Volume};
use super::{FileError, FileEvent, FileId, FinishedFile};

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
        let (root, own) = match &started.place {
            Place::Directory(root) => (root.clone(), None),
            Place::Store(_) => {
                let own = spool.join(&started.recording_id);
                (own.clone(), Some(own))
            }
        };
        let name = match own {
            Some(_) => PathBuf::from(Path::new(&started.name).file_name().unwrap_or_default()),
            None => PathBuf::from(&started.name),
        };
        let path = root.join(name);
        let parent = path.parent().unwrap_or(&root).to_owned();
        make_directory(&parent)?;
        make_directory(spool)?;
        let journal = Arc::new(Journal::begin(spool, &with_absolute_place(started)?, memory.clone())?);
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
            ended: false,
        })
    }

    /// Goes on with the files of a recording whose process died, which [`Orphan::open_files`] gave, in that order. Waits for
    /// the disk.
    ///
    /// # Errors
    /// What the disk says; then it is an orphan as before.
    pub fn go_on(
        orphan: Orphan,
        streams: Vec<OpenStream>,
        memory: &Arc<Memory>,
        events: mpsc::UnboundedSender<FileEvent>,
    ) -> Result<Self, FileError> {
        let (spool, path, journal, history, started) = orphan.into_parts();
        let nameless = || FileError::new("has no name:", &path, io::ErrorKind::NotFound.into());
        let stem = history.stem.ok_or_else(nameless)?;
        let reserve = Reserve::left_at(&stem, &started.recording_id).ok_or_else(nameless)?;
        let own = matches!(started.place, Place::Store(_)).then(|| spool.join(&started.recording_id));
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
            ended: false,
        };
        for stream in streams {
            let Made { file, what, .. } = stream.made.clone();
            let (volume, memory, keep) = (files.volume.clone(), files.memory.clone(), files.keep.clone());
            let growing = Growing::going_on(volume, memory, keep, files.output(file, what.clone()), stream);
            files.files.push(SpoolFile { id: file, what, growing, journal: files.journal.clone() });
        }
        Ok(files)
    }

    /// Whether somebody takes the files' bytes elsewhere while they grow, so that they are worth keeping in memory when the
    /// disk fails. Nobody does by default.
    pub fn keep_in_memory(&self, keep: bool) {
        self.keep.store(keep, Ordering::Release);
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
        let Some(file) = self.file(file) else {
            return Err(FileError::new("there is no such file of", &self.stem, io::ErrorKind::NotFound.into()));
        };
        let growing = file.growing.clone();
        self.ask(move || {
            let finished = growing.finish(whole);
            // A disk that refused it is tried again.
            growing.wake();
            finished
        })
        .await
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
        if self.ended || !self.files.is_empty() {
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

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::encode::Mapping;
    use crate::encode::{OggInspector, OggOpusWriter, OpusHead, OpusTags, packet};
    use crate::seal::{Recipients, Sealer};
    use crate::spool::{JOURNAL_VERSION, SEALED, What, hash_of};
    use crate::time::SampleCount;

    const OGG: &str = "ogg";

    fn wanted(root: &Path, name: &str, id: &str, memory: usize) -> Reservation {
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: id.into(),
            room: "room".into(),
            pid: 1,
            wall_zero: OffsetDateTime::UNIX_EPOCH,
            boot_zero: None,
            place: Place::Directory(root.into()),
            name: name.into(),
        };
        Reservation { spool: root.join(".spool"), started, memory: Memory::new(memory) }
    }

    fn files(root: &Path, name: &str, id: &str) -> (RecordingFiles, mpsc::UnboundedReceiver<FileEvent>) {
        let (events, inbox) = mpsc::unbounded_channel();
        (RecordingFiles::reserve(&wanted(root, name, id, 1 << 20), events).expect("a writable directory"), inbox)
    }

    fn ogg(suffix: &str) -> NewFile {
        NewFile { kind: "mix".into(), suffix: suffix.into(), ext: OGG.into(), ..NewFile::default() }
    }

    fn left(root: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A stream of a second a page, in pieces of a page each; the first has the headers, the last ends it.
    fn pages(seconds: usize) -> Vec<Vec<u8>> {
        let head = OpusHead::new(Mapping::Mono, 312);
        let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(48_000)).unwrap();
        let mut pieces = vec![Vec::new()];
        writer.take_bytes(&mut pieces[0]);
        let mut silence = Vec::new();
        packet::write_silence(960, false, &mut silence).unwrap();
        for n in 0..seconds * 50 {
            writer.write_packet(&silence, 960).unwrap();
            if n % 50 == 49 {
                writer.close_page();
                pieces.push(Vec::new());
                writer.take_bytes(pieces.last_mut().unwrap());
            }
        }
        writer.finish(SampleCount(seconds as u64 * 48_000 - 312)).unwrap();
        pieces.push(Vec::new());
        writer.take_bytes(pieces.last_mut().unwrap());
        pieces
    }

    #[tokio::test]
    async fn a_file_is_part_until_it_is_whole_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _events) = files(dir.path(), "a/b.ogg", "r1");
        let path = dir.path().join("a/b.ogg");
        let id = files.create(ogg("")).id();
        files.append(id, b"hello ".to_vec());
        files.append(id, b"world".to_vec());
        let done = files.finish(id, true).await.unwrap();
        assert_eq!((&done.path, done.cut_to, done.in_memory), (&path, None, false));
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        assert_eq!(done.sha256, hash_of(&path).unwrap());
        files.write_manifest(b"{}".to_vec()).await.unwrap();
        assert_eq!(left(&dir.path().join(".spool")), ["r1.journal"]);
        files.done(false).await;
        assert_eq!(left(dir.path()), ["a"]);
        assert_eq!(left(&dir.path().join("a")), ["b.json", "b.ogg"]);
    }

    #[tokio::test]
    async fn a_taken_name_gets_a_suffix_and_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("call.ogg"), b"mine").unwrap();
        let (first, _events) = files(dir.path(), "call.ogg", "r1");
        let (second, _more) = files(dir.path(), "call.ogg", "r2");
        assert_eq!(first.stem, dir.path().join("call-1"));
        assert_eq!(second.stem, dir.path().join("call-2"));
        assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_name_taken_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
        let path = dir.path().join("call.ogg");
        let file = files.create(ogg(""));
        files.append(file.id(), b"x".to_vec());
        file.progress().wait_for(|progress| progress.synced == 1).await.unwrap();
        fs::write(&path, b"stranger").unwrap();
        let error = files.finish(file.id(), true).await.unwrap_err();
        assert!(error.to_string().contains("does not overwrite"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"stranger");
        assert_eq!(fs::read(part_of(&path)).unwrap(), b"x");
    }

    #[tokio::test]
    async fn files_of_one_name_are_numbered() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
        fs::write(dir.path().join("call-a.ogg"), b"stranger").unwrap();
        let mut names = Vec::new();
        for file in [files.create(ogg("-a")), files.create(ogg("-a")), files.create(ogg(""))] {
            names.push(files.finish(file.id(), true).await.unwrap().path);
        }
        assert_eq!(names, ["call-a-1.ogg", "call-a-2.ogg", "call.ogg"].map(|name| dir.path().join(name)));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, mut events) = files(dir.path(), "call.ogg", "r1");
        let (bad, good) = (files.create(ogg("/nowhere/x")).id(), files.create(ogg("")).id());
        files.append(bad, b"x".to_vec());
        files.append(good, b"x".to_vec());
        assert!(files.finish(bad, true).await.unwrap_err().to_string().contains("was never created"));
        assert_eq!(files.finish(good, true).await.unwrap().bytes, 1);
        let event = events.recv().await.unwrap();
        assert!(event.file == bad && matches!(event.what, What::Broken(_)), "{event:?}");
        assert!(events.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_manifest_takes_the_reserved_place_once() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _events) = files(dir.path(), "call.ogg", "r1");
        assert_eq!(fs::metadata(dir.path().join("call.json.part")).unwrap().len(), 64 * 1024);
        files.write_manifest(b"{}".to_vec()).await.unwrap();
        assert_eq!(fs::read(dir.path().join("call.json")).unwrap(), b"{}");
        assert!(files.write_manifest(b"{}".to_vec()).await.is_err());
        assert!(!dir.path().join("call.json.part").exists());
    }

    #[tokio::test]
    async fn a_recording_that_never_had_a_file_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _events) = files(dir.path(), "call.ogg", "r1");
        assert_eq!(left(dir.path()), [".spool", "call.json.part"]);
        drop(files);
        while !left(dir.path()).is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn two_recordings_of_one_id_never_go_on_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (_first, _events) = files(dir.path(), "call.ogg", "r1");
        let (events, _inbox) = mpsc::unbounded_channel();
        let error = RecordingFiles::reserve(&wanted(dir.path(), "call.ogg", "r1", 1 << 20), events).unwrap_err();
        assert!(error.to_string().contains("goes on"), "{error}");
        assert_eq!(left(dir.path()), [".spool", "call.json.part"]);
        assert_eq!(left(&dir.path().join(".spool")), ["r1.journal"]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let (events, _inbox) = mpsc::unbounded_channel();
        let error = RecordingFiles::reserve(&wanted(dir.path(), "file/call.ogg", "r1", 1 << 20), events).unwrap_err();
        assert!(error.to_string().contains("cannot create the directory"), "{error}");
    }

    #[tokio::test]
    async fn bytes_are_offered_once_they_are_synced_and_can_be_read_before_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
        let file = files.create(ogg(""));
        let mut progress = file.progress();
        let hanging = file.growing.hang();
        files.append(file.id(), b"01234".to_vec());
        files.append(file.id(), b"56789".to_vec());
        let so_far = progress.borrow_and_update().clone();
        assert_eq!((so_far.synced, so_far.written), (0, 10));
        assert_eq!(file.read(3..8).await.unwrap(), "34567");
        assert!(file.read(3..11).await.is_err());
        drop(hanging);
        progress.wait_for(|progress| progress.synced == 10).await.unwrap();
        files.append(file.id(), b"abc".to_vec());
        for (range, expected) in [(3..8, "34567"), (8..12, "89ab"), (10..13, "abc"), (5..5, "")] {
            assert_eq!(file.read(range).await.unwrap(), expected);
        }
        let done = files.finish(file.id(), true).await.unwrap();
        assert_eq!(progress.wait_for(|progress| progress.finished.is_some()).await.unwrap().finished, Some(done));
        assert_eq!(file.read(0..13).await.unwrap(), "0123456789abc");
    }

    #[tokio::test]
    async fn a_sealed_file_that_cannot_go_on_ends_after_a_whole_segment() {
        let recipients = Recipients::parse("age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa").unwrap();
        let mut sealer = Sealer::new(recipients.clone());
        let seal = |page: &Vec<u8>| {
            let mut segment = Vec::new();
            sealer.seal(page, &mut segment).unwrap();
            segment
        };
        let pieces: Vec<Vec<u8>> = pages(4).iter().map(seal).collect();
        let fits = pieces[..3].iter().map(Vec::len).sum::<usize>();
        for kept in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (events, mut inbox) = mpsc::unbounded_channel();
            let reservation = wanted(dir.path(), "call.ogg.age", "r1", fits + 4096);
            let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
            assert_eq!(files.manifest_path(), dir.path().join("call.json"));
            files.keep_in_memory(kept);
            reservation.memory.take_anyway(4096);
            let what = NewFile {
                kind: "mix".into(),
                ext: SEALED.into(),
                recipients: recipients.clone(),
                ..NewFile::default()
            };
            let file = files.create(what.clone());
            let hanging = file.growing.hang();
            pieces.iter().for_each(|piece| files.append(file.id(), piece.clone()));
            assert!(matches!(inbox.recv().await.unwrap().what, What::Broken(_)));
            drop(hanging);
            let done = files.finish(file.id(), true).await.unwrap();
            assert_eq!(done.path, dir.path().join("call.ogg.age"));
            let mut surveyor = what.stream().unwrap().surveyor();
            surveyor.push(&fs::read(&done.path).unwrap());
            let found = surveyor.finish();
            assert!(found.ended && found.problems.is_empty(), "{:?}", found.problems);
            assert_eq!((found.duration, done.cut_to), (SampleCount(96_000 - 312), Some(SampleCount(96_000 - 312))));
        }
    }

    #[tokio::test]
    async fn too_much_for_memory_ends_the_file_after_a_whole_page() {
        for kept in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let pieces = pages(4);
            let room = pieces[..3].iter().map(Vec::len).sum::<usize>() + 4096;
            let (events, mut inbox) = mpsc::unbounded_channel();
            let reservation = wanted(dir.path(), "call.ogg", "r1", room);
            let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
            files.keep_in_memory(kept);
            reservation.memory.take_anyway(room - pieces[..3].iter().map(Vec::len).sum::<usize>());
            let file = files.create(ogg(""));
            let hanging = file.growing.hang();
            pieces.iter().for_each(|piece| files.append(file.id(), piece.clone()));
            assert!(matches!(inbox.recv().await.unwrap().what, What::Broken(_)));
            drop(hanging);
            let done = files.finish(file.id(), true).await.unwrap();
            let mut inspector = OggInspector::new();
            inspector.push(&fs::read(&done.path).unwrap());
            let found = inspector.finish();
            assert!(found.is_clean(), "{:?}", found.problems);
            assert_eq!((found.duration, done.cut_to), (SampleCount(96_000 - 312), Some(SampleCount(96_000 - 312))));
            assert_eq!((done.bytes, done.sha256), (found.bytes, hash_of(&done.path).unwrap()));
        }
    }

    /// What a process leaves that dies after the first `pages` of a call's, and half of the next.
    async fn left_behind(dir: &Path, all: &[Vec<u8>], pages: usize) -> SpoolFile {
        let (mut files, _events) = files(dir, "call.ogg", "r1");
        let file = files.create(ogg(""));
        all[..pages].iter().for_each(|page| files.append(file.id(), page.clone()));
        let length = all[..pages].iter().map(Vec::len).sum::<usize>() as u64;
        file.progress().wait_for(|progress| progress.synced == length).await.unwrap();
        let part = part_of(&dir.join("call.ogg"));
        let mut torn = fs::OpenOptions::new().append(true).open(part).unwrap();
        io::Write::write_all(&mut torn, &all[pages][..all[pages].len() / 2]).unwrap();
        file
    }

    /// The recording, as soon as the volume's thread has let go of it.
    async fn orphan(dir: &Path) -> Orphan {
        loop {
            match Orphan::of(&dir.join(".spool"), "r1").unwrap() {
                Some(orphan) => return orphan,
                None => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn another_process_goes_on_where_one_died() {
        for keep in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let all = pages(5);
            drop(left_behind(dir.path(), &all, 3).await);
            let orphan = orphan(dir.path()).await;
            let streams = orphan.open_files().unwrap().expect("a stream");
            assert_eq!((streams[0].state.granule, streams[0].state.sequence), (96_000, 4));
            let (events, _inbox) = mpsc::unbounded_channel();
            let files = RecordingFiles::go_on(orphan, streams, &Memory::new(1 << 20), events).unwrap();
            assert!(Orphan::of(&dir.path().join(".spool"), "r1").unwrap().is_none(), "it goes on");
            files.keep_in_memory(keep);
            let file = files.files()[0].clone();
            let before = all[..3].concat();
            assert_eq!(file.read(0..before.len() as u64).await.unwrap(), before);
            all[3..].iter().for_each(|page| files.append(file.id(), page.clone()));
            let done = files.finish(file.id(), true).await.unwrap();
            assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), all.concat());
            assert_eq!((done.bytes, done.sha256), (all.concat().len() as u64, hash_of(&done.path).unwrap()));
            files.write_manifest(b"{}".to_vec()).await.unwrap();
            files.done(false).await;
            assert_eq!(left(dir.path()), ["call.json", "call.ogg"]);
        }
    }

    #[tokio::test]
    async fn a_file_that_was_gone_on_with_and_broke_at_once_ends_where_the_first_process_left_it() {
        let dir = tempfile::tempdir().unwrap();
        let all = pages(5);
        drop(left_behind(dir.path(), &all, 3).await);
        let orphan = orphan(dir.path()).await;
        let streams = orphan.open_files().unwrap().expect("a stream");
        let (events, _inbox) = mpsc::unbounded_channel();
        let files = RecordingFiles::go_on(orphan, streams, &Memory::new(10), events).unwrap();
        let file = files.files()[0].id();
        files.append(file, all[3].clone());
        let done = files.finish(file, true).await.unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&fs::read(&done.path).unwrap());
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(done.cut_to, Some(SampleCount(96_000 - 312)));
    }

    #[tokio::test]
    async fn what_is_about_to_be_finished_is_not_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
        let file = files.create(ogg(""));
        pages(1).into_iter().for_each(|page| files.append(file.id(), page));
        files.finish(file.id(), true).await.unwrap();
        drop((file, files));
        let orphan = orphan(dir.path()).await;
        assert!(orphan.open_files().unwrap().is_none());
    }

    /// A disk of its own that is small: `CALLREEL_TEST_DISK` of a process in a mount namespace, else none.
    fn small_disk() -> Option<PathBuf> {
        std::env::var_os("CALLREEL_TEST_DISK").map(PathBuf::from)
    }

    /// Runs one test of this process's binary again, where a small disk is mounted.
    fn again_on_a_small_disk(test: &str) {
        let disk = tempfile::tempdir().unwrap();
        let script = r#"mount -t tmpfs -o size=256k tmpfs "$CALLREEL_TEST_DISK" && exec "$@""#;
        let output = std::process::Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("spool::files::tests::{test}"), "--nocapture"])
            .env("CALLREEL_TEST_DISK", disk.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[tokio::test]
    async fn a_full_disk_is_stood_in_for_by_memory_and_gets_everything_when_there_is_space() {
        let Some(disk) = small_disk() else {
            return again_on_a_small_disk(
                "a_full_disk_is_stood_in_for_by_memory_and_gets_everything_when_there_is_space",
            );
        };
        let (mut files, mut events) = files(&disk, "call.ogg", "r1");
        files.keep_in_memory(true);
        let file = files.create(ogg(""));
        let pieces = pages(6);
        files.append(file.id(), pieces[0].clone());
        file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
        fill(&disk);
        let big = vec![7; 100_000];
        files.append(file.id(), big.clone());
        assert!(matches!(events.recv().await.unwrap().what, What::InMemory(_)));
        let mut all = [&pieces[0][..], &big].concat();
        for piece in &pieces[1..] {
            files.append(file.id(), piece.clone());
            all.extend(piece);
        }
        let length = all.len() as u64;
        file.progress().wait_for(|progress| progress.synced == length).await.unwrap();
        assert_eq!(file.read(0..length).await.unwrap(), all);
        let finished = files.finish(file.id(), true).await.unwrap();
        assert!(finished.in_memory && finished.bytes == length);
        fs::remove_file(disk.join("ballast")).unwrap();
        assert!(matches!(events.recv().await.unwrap().what, What::BackOnDisk));
        let on_disk =
            file.progress().wait_for(|p| p.finished.as_ref().is_some_and(|f| !f.in_memory)).await.unwrap().clone();
        let on_disk = on_disk.finished.unwrap();
        assert_eq!((on_disk.bytes, &on_disk.sha256), (length, &finished.sha256));
        assert_eq!(fs::read(&on_disk.path).unwrap(), all);
        assert_eq!(hash_of(&on_disk.path).unwrap(), on_disk.sha256);
    }

    #[tokio::test]
    async fn a_full_disk_ends_a_file_that_nobody_takes_elsewhere() {
        let Some(disk) = small_disk() else {
            return again_on_a_small_disk("a_full_disk_ends_a_file_that_nobody_takes_elsewhere");
        };
        let (mut files, mut events) = files(&disk, "call.ogg", "r1");
        let file = files.create(ogg(""));
        let pieces = pages(3);
        pieces[..3].iter().for_each(|piece| files.append(file.id(), piece.clone()));
        file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
        fill(&disk);
        files.append(file.id(), vec![7; 100_000]);
        assert!(matches!(events.recv().await.unwrap().what, What::Broken(_)));
        files.append(file.id(), pieces[3].clone());
        let done = files.finish(file.id(), true).await.unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&fs::read(&done.path).unwrap());
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(done.cut_to, Some(SampleCount(96_000 - 312)));
        files.write_manifest(b"{}".to_vec()).await.unwrap();
        assert_eq!(fs::read(disk.join("call.json")).unwrap(), b"{}");
    }

    /// Takes all space there is.
    fn fill(disk: &Path) {
        use std::io::Write;
        let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
    }
}
