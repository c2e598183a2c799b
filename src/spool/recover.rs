//! Orphans: recordings whose process died. Each is locked, its files are cut back to the last whole page and ended, and get
//! their names. Whoever is killed while doing that leaves an orphan with which the next one does the same.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::clock;
use crate::encode::{OggState, OpusHead};
use crate::time::SampleCount;

use super::files::tidy;
use super::history::{Closed, Entry, FileHistory, History, JOURNAL_VERSION, Made, Place, Started};
use super::journal::{Kind, kind_of, lock, path_of};
use super::names::{
    Reserve, give_name, hash_of, manifest_of, numbered, part_of, read_blocks, survey, sync_directory_of, with_suffix,
};
use super::stream::Stream;
use super::{FileError, FinishedFile};

/// A recording whose process died. As long as this is held, nobody else takes it.
#[derive(Debug)]
pub struct Orphan {
    spool: PathBuf,
    path: PathBuf,
    journal: File,
    history: History,
    started: Started,
}

/// A file of an orphan, to be gone on with.
#[derive(Debug)]
pub struct OpenStream {
    /// What it is.
    pub made: Made,
    /// How its stream begins.
    pub head: OpusHead,
    /// Where its last page left it.
    pub state: OggState,
    /// Its size, which is the end of that page, or of the segment that holds it.
    pub bytes: u64,
    pub(super) last_unit: u64,
    pub(super) file: File,
    pub(super) hash: Sha256,
}

/// A file of an orphan that is complete now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredFile {
    /// What it is.
    pub made: Made,
    /// Where it is, and what is in it.
    pub file: FinishedFile,
    /// How long it plays; none for what only tells about the recording.
    pub duration: Option<SampleCount>,
}

/// The orphans in the directory `spool`, locked, by the names of their journals; for a journal that cannot be understood,
/// why. Recordings that go on are not among them, nor the one of id `except`, nor those whose journal was written less than
/// `at_rest` ago: a process that goes on with them may be on its way. A directory that is not there has none.
///
/// # Errors
/// Where the directory cannot be read.
pub fn orphans(spool: &Path, except: Option<&str>, at_rest: Duration) -> io::Result<Vec<Result<Orphan, FileError>>> {
    let entries = match fs::read_dir(spool) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let except = except.map(|id| path_of(spool, id));
    let mut found = Vec::new();
    for path in paths.into_iter().filter(|path| except.as_ref() != Some(path)) {
        match kind_of(&path) {
            Some(Kind::Journal) if at_rest.is_zero() || rests_for(&path) >= at_rest => {
                found.extend(Orphan::at(spool, path).transpose());
            }
            Some(Kind::Journal) => {}
            Some(Kind::Begun) => forget_begun(&path),
            None => {}
        }
    }
    // A process that died between its last journal and the directory.
    tidy(spool, None);
    Ok(found)
}

/// How long ago a file was written.
pub(super) fn rests_for(path: &Path) -> Duration {
    let written = fs::metadata(path).and_then(|file| file.modified()).map(OffsetDateTime::from);
    // A clock that was put back makes it newer than it is.
    written.map_or(Duration::ZERO, |written| (clock::wall() - written).try_into().unwrap_or(Duration::ZERO))
}

/// Removes a journal that was never begun, unless somebody is about to.
fn forget_begun(path: &Path) {
    if let Ok(Some(_lock)) = lock(path) {
        // Where it cannot be removed, the next one tries.
        let _ = fs::remove_file(path);
    }
}

impl Orphan {
    /// The orphan of this recording id, locked; none where there is none, or its process lives.
    ///
    /// # Errors
    /// Where the journal cannot be read, or says nothing that this version understands.
    pub fn of(spool: &Path, recording_id: &str) -> Result<Option<Self>, FileError> {
        Self::at(spool, path_of(spool, recording_id))
    }

    fn at(spool: &Path, path: PathBuf) -> Result<Option<Self>, FileError> {
        let failed = |e| FileError::new("cannot read", &path, e);
        let Some(mut journal) = lock(&path).map_err(failed)? else { return Ok(None) };
        let mut bytes = Vec::new();
        journal.read_to_end(&mut bytes).map_err(failed)?;
        let history = History::read(&bytes);
        let Some(started) = history.started.clone() else {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it does not say what was recorded")));
        };
        if started.version > JOURNAL_VERSION {
            let error = format!("it is of version {}, and this is {JOURNAL_VERSION}", started.version);
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        // What is appended begins on a line of its own.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        journal.set_len(whole as u64).map_err(failed)?;
        io::Seek::seek(&mut journal, io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Some(Self { spool: spool.to_owned(), path, journal, history, started }))
    }

    /// What is recorded, and where to.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// All that the journal says.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Adds an entry to the journal and syncs it.
    ///
    /// # Errors
    /// What the disk says.
    pub fn append(&mut self, entry: Entry) -> Result<(), FileError> {
        let failed = |e| FileError::new("cannot write to", &self.path, e);
        let line = entry.line().map_err(|e| failed(e.into()))?;
        self.journal.write_all(&line).and_then(|()| self.journal.sync_data()).map_err(failed)?;
        self.history.add(entry);
        Ok(())
    }

    /// Cuts every stream back to its last whole page or segment, to go on with it. None where the recording was about to be finished,
    /// or there is nothing to go on with. Until somebody [does](super::RecordingFiles::go_on), it is an orphan as before.
    ///
    /// # Errors
    /// What the disk says.
    pub fn open_files(&self) -> Result<Option<Vec<OpenStream>>, FileError> {
        let History { stem, files, .. } = &self.history;
        let id = &self.started.recording_id;
        if files.is_empty() || stem.as_ref().and_then(|stem| Reserve::left_at(stem, id)).is_none() {
            return Ok(None);
        }
        let mut streams = Vec::new();
        for FileHistory { made, closed, .. } in files.values() {
            let part = part_of(&made.path);
            let Some(stream) = made.what.stream().filter(|_| closed.is_none()) else { return Ok(None) };
            if !part.exists() {
                // It was about to be made.
                continue;
            }
            match open(made, &part, stream)? {
                Opened::ToGoOn(stream) => streams.push(*stream),
                Opened::Ended => return Ok(None),
                Opened::Empty => fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?,
            }
        }
        Ok((!streams.is_empty()).then_some(streams))
    }

    /// What it takes to go on with it: its directory, its journal and what that says.
    pub(super) fn into_parts(self) -> (PathBuf, PathBuf, File, History, Started) {
        let Self { spool, path, journal, history, started } = self;
        (spool, path, journal, history, started)
    }

    /// Ends every stream after its last whole page, and gives the files their names.
    ///
    /// # Errors
    /// What the disk says; what was done by then is not done again.
    pub fn finish_files(&mut self) -> Result<Vec<RecoveredFile>, FileError> {
        let files: Vec<FileHistory> = self.history.files.values().cloned().collect();
        let mut finished = Vec::new();
        for file in files {
            finished.extend(self.finish_file(file)?);
        }
        Ok(finished)
    }

    /// The manifest that the recording's own process had written before it died.
    ///
    /// # Errors
    /// What the disk says.
    pub fn manifest(&self) -> Result<Option<(PathBuf, Vec<u8>)>, FileError> {
        for path in self.stems().map(|stem| manifest_of(&stem)) {
            let part = part_of(&path);
            if let Some(json) = self.manifest_at(&part)
                && !same_file(&part, &path)
            {
                give_name(&part, &path)?;
                return Ok(Some((path, json)));
            }
            if let Some(json) = self.manifest_at(&path) {
                // Named, and not yet without its other name.
                if same_file(&part, &path) {
                    fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?;
                }
                return Ok(Some((path, json)));
            }
            if !path.exists() {
                break;
            }
        }
        Ok(None)
    }

    /// Writes the manifest where the recording's own would have been.
    ///
    /// # Errors
    /// What the disk says.
    pub fn write_manifest(&self, json: &[u8]) -> Result<PathBuf, FileError> {
        for stem in self.stems() {
            let path = manifest_of(&stem);
            if path.exists() {
                continue;
            }
            if let Some(reserve) = Reserve::left_at(&stem, &self.started.recording_id) {
                reserve.fill(&path, json)?;
                return Ok(path);
            }
            let part = part_of(&path);
            match OpenOptions::new().write(true).create_new(true).open(&part) {
                Ok(mut file) => {
                    let written = file.write_all(json).and_then(|()| file.sync_all());
                    written.map_err(|e| FileError::new("cannot write", &part, e))?;
                    give_name(&part, &path)?;
                    return Ok(path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(FileError::new("cannot create", &part, error)),
            }
        }
        Err(FileError::new("has no name:", &self.path, io::ErrorKind::NotFound.into()))
    }

    /// Everything is where it belongs, and the journal goes. What lies in the recording's own directory in the spool goes,
    /// too.
    ///
    /// # Errors
    /// What the disk says.
    pub fn done(self) -> Result<(), FileError> {
        if let Some(stem) = &self.history.stem
            && let Some(reserve) = Reserve::left_at(stem, &self.started.recording_id)
        {
            reserve.abandon();
        }
        if let Place::Store(_) = self.started.place {
            let own = self.spool.join(&self.started.recording_id);
            match fs::remove_dir_all(&own) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::new("cannot remove", &own, error));
                }
                _ => {}
            }
        }
        fs::remove_file(&self.path).map_err(|e| FileError::new("cannot remove", &self.path, e))?;
        sync_directory_of(&self.path);
        tidy(&self.spool, None);
        Ok(())
    }

    fn finish_file(&mut self, file: FileHistory) -> Result<Option<RecoveredFile>, FileError> {
        let FileHistory { made, closed, .. } = file;
        let part = part_of(&made.path);
        let length = fs::metadata(&part).map(|part| part.len()).ok();
        let closed = match (closed, length) {
            // All its bytes are there, wherever.
            (Some(closed), None) => closed,
            (Some(closed), Some(length)) if closed.bytes == length => closed,
            (_, None) => return Ok(None),
            (_, Some(_)) => {
                let mended = made.what.stream().map(|stream| mend(&part, stream)).transpose()?.flatten();
                let Some(closed) = mended else {
                    fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?;
                    return Ok(None);
                };
                let Closed { bytes, sha256, cut_to } = closed.clone();
                self.append(Entry::Closed { file: made.file, bytes, sha256, cut_to })?;
                closed
            }
        };
        let Some(path) = place(&made, &part, &closed)? else { return Ok(None) };
        let Closed { bytes, sha256, cut_to } = closed;
        let found = made.what.stream().map(|stream| survey(&path, stream)).transpose();
        let found = found.map_err(|e| FileError::new("cannot read back", &path, e))?;
        let duration = found.map(|found| found.duration);
        Ok(Some(RecoveredFile { made, file: FinishedFile { path, bytes, sha256, cut_to, in_memory: false }, duration }))
    }

    fn stems(&self) -> impl Iterator<Item = PathBuf> + use<> {
        let stem = self.history.stem.clone();
        (0u32..).map_while(move |number| stem.as_deref().map(|stem| numbered(stem, number)))
    }

    /// A file that is a whole manifest of this recording.
    fn manifest_at(&self, path: &Path) -> Option<Vec<u8>> {
        let json = fs::read(path).ok()?;
        let manifest: Value = serde_json::from_slice(&json).ok()?;
        let ours = manifest.get("recording_id")?.as_str()? == self.started.recording_id;
        // A place that is only kept for one says nothing but whose it is.
        (ours && manifest.get("version").is_some()).then_some(json)
    }
}

/// Gives a complete file its name, or finds it under the name that it has. None where it is nowhere.
fn place(made: &Made, part: &Path, closed: &Closed) -> Result<Option<PathBuf>, FileError> {
    let ending = format!(".{}", made.what.ext);
    let name = made.path.as_os_str().to_string_lossy();
    let stem = PathBuf::from(name.strip_suffix(&ending).unwrap_or(&name));
    for number in 0u32.. {
        let path = if number == 0 { made.path.clone() } else { with_suffix(&numbered(&stem, number), &ending) };
        if same_file(part, &path) {
            fs::remove_file(part).map_err(|e| FileError::new("cannot remove", part, e))?;
            return Ok(Some(path));
        }
        match (part.exists(), path.exists()) {
            (false, false) => return Ok(None),
            (true, false) => {
                give_name(part, &path)?;
                return Ok(Some(path));
            }
            (true, true) => {}
            (false, true) => {
                let is_it = fs::metadata(&path).is_ok_and(|there| there.len() == closed.bytes)
                    && hash_of(&path).is_ok_and(|hash| hash == closed.sha256);
                if is_it {
                    return Ok(Some(path));
                }
            }
        }
    }
    unreachable!("some suffix of four thousand million is free")
}

/// Whether both are names of one file.
fn same_file(one: &Path, other: &Path) -> bool {
    let (Ok(one), Ok(other)) = (fs::metadata(one), fs::metadata(other)) else { return false };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Cuts a stream back to its last whole page or segment and ends it there. None where not even its headers are whole.
fn mend(path: &Path, stream: Stream<'_>) -> Result<Option<Closed>, FileError> {
    let failed = |e| FileError::new("cannot mend", path, e);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let whole = whole_prefix(&file, stream).map_err(failed)?;
    file.set_len(whole).map_err(failed)?;
    let found = survey(path, stream).map_err(failed)?;
    let (Some(head), Some(state), true) = (found.head, found.state, found.begun) else { return Ok(None) };
    if !found.problems.is_empty() {
        tracing::warn!(path = %path.display(), problems = ?found.problems, "a stream that is not as it was written");
    }
    if !found.ended {
        let page = stream.closing(head, state).map_err(|e| failed(io::Error::other(e)))?;
        if let Err(error) = file.write_all_at(&page, whole) {
            tracing::warn!(path = %path.display(), %error, "there is no room for an end; the last page becomes it");
            file.set_len(whole).map_err(failed)?;
            end_in_place(&file, whole, stream).map_err(failed)?;
        }
    }
    file.sync_all().map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let sha256 = hash_of(path).map_err(failed)?;
    Ok(Some(Closed { bytes, sha256, cut_to: Some(survey(path, stream).map_err(failed)?.duration) }))
}

/// What a file turns out to be.
enum Opened {
    /// A stream that has no end yet.
    ToGoOn(Box<OpenStream>),
    /// A stream with its end.
    Ended,
    /// Not even the headers of one.
    Empty,
}

/// Cuts a stream back to its last whole page or segment.
fn open(made: &Made, part: &Path, stream: Stream<'_>) -> Result<Opened, FileError> {
    let failed = |e| FileError::new("cannot go on with", part, e);
    let file = OpenOptions::new().read(true).write(true).open(part).map_err(failed)?;
    let bytes = whole_prefix(&file, stream).map_err(failed)?;
    file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    let found = survey(part, stream).map_err(failed)?;
    let (Some(head), Some(state), true) = (found.head, found.state, found.begun) else { return Ok(Opened::Empty) };
    if found.ended {
        return Ok(Opened::Ended);
    }
    let last_unit = last_unit(&file, bytes, stream).map_err(failed)?.start;
    let mut hash = Sha256::new();
    read_blocks(part, |block| hash.update(block)).map_err(failed)?;
    Ok(Opened::ToGoOn(Box::new(OpenStream { made: made.clone(), head, state, bytes, last_unit, file, hash })))
}

/// How far a file is pages or segments of one stream, one after the other.
fn whole_prefix(file: &File, stream: Stream<'_>) -> io::Result<u64> {
    let mut reader = stream.units();
    let mut block = vec![0; 64 * 1024];
    let (mut at, mut whole, mut next) = (0, 0, None);
    loop {
        let read = file.read_at(&mut block, at)?;
        if read == 0 {
            return Ok(whole);
        }
        at += read as u64;
        reader.push(&block[..read]);
        while let Some(unit) = reader.next_unit() {
            let follows = next.is_none_or(|next| next == unit.begins_with);
            if unit.offset != whole || !follows {
                return Ok(whole);
            }
            whole = unit.end;
            next = Some(unit.followed_by);
            if unit.last {
                return Ok(whole);
            }
        }
        if reader.passed_over() > 0 {
            return Ok(whole);
        }
    }
}

/// Where the last page or segment of a file of `length` bytes is.
fn last_unit(file: &File, length: u64, stream: Stream<'_>) -> io::Result<Range<u64>> {
    let mut reader = stream.units();
    let mut block = vec![0; 64 * 1024];
    let (mut at, mut last) = (0, 0..0);
    while at < length {
        let read = file.read_at(&mut block, at)?;
        if read == 0 {
            break;
        }
        at += read as u64;
        reader.push(&block[..read]);
        while let Some(unit) = reader.next_unit() {
            last = unit.offset..unit.end;
        }
    }
    Ok(last)
}

/// Makes the last page or segment of a file of `length` bytes its stream's last.
fn end_in_place(file: &File, length: u64, stream: Stream<'_>) -> io::Result<()> {
    let last = last_unit(file, length, stream)?;
    let mut page = vec![0; (last.end - last.start) as usize];
    file.read_exact_at(&mut page, last.start)?;
    if stream.end_in_place(&mut page) {
        file.write_all_at(&page, last.start)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::encode::{Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags, packet};
    use crate::seal::{Recipients, Sealer};
    use crate::spool::{FileId, NewFile};

    const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    /// A stream of two seconds in pages of 200 ms, that was never ended.
    fn stream() -> Vec<u8> {
        let head = OpusHead::new(Mapping::Mono, 312);
        let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(9_600)).unwrap();
        let mut silence = Vec::new();
        packet::write_silence(960, false, &mut silence).unwrap();
        (0..100).for_each(|_| writer.write_packet(&silence, 960).unwrap());
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        bytes
    }

    fn entries(root: &Path) -> Vec<Entry> {
        let what = NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() };
        vec![
            Entry::Started(Started {
                version: JOURNAL_VERSION,
                recording_id: "r1".into(),
                room: "room".into(),
                pid: 1,
                wall_zero: OffsetDateTime::UNIX_EPOCH,
                boot_zero: None,
                place: Place::Directory(root.into()),
                name: "call.ogg".into(),
            }),
            Entry::Named { stem: root.join("call") },
            Entry::Made(Made { file: FileId(0), path: root.join("call.ogg"), what }),
        ]
    }

    /// What a process that died leaves.
    fn left_behind(root: &Path, stream: &[u8]) -> PathBuf {
        let spool = root.join(".spool");
        fs::create_dir_all(&spool).unwrap();
        let journal: Vec<u8> = entries(root).iter().flat_map(|entry| entry.line().unwrap()).collect();
        fs::write(spool.join("r1.journal"), [&journal[..], b"{\"entry\":\"synced\",\"fi"].concat()).unwrap();
        fs::write(root.join("call.ogg.part"), stream).unwrap();
        drop(Reserve::claim(&root.join("call"), "x", "r1", |_| Ok(())).unwrap());
        spool
    }

    fn only(spool: &Path) -> Orphan {
        let mut found = orphans(spool, None, Duration::ZERO).unwrap();
        assert_eq!(found.len(), 1);
        found.remove(0).unwrap()
    }

    fn everything(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
            match entry.is_dir() {
                true => found.extend(
                    everything(&entry)
                        .into_iter()
                        .map(|(path, bytes)| (Path::new(entry.file_name().unwrap()).join(path), bytes)),
                ),
                false => _ = found.insert(PathBuf::from(entry.file_name().unwrap()), fs::read(&entry).unwrap()),
            }
        }
        found
    }

    #[test]
    fn a_stream_cut_anywhere_keeps_every_whole_page_and_ends_properly() {
        let whole = stream();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut inspector = OggInspector::new();
            inspector.push(&whole[..cut]);
            let before = inspector.finish();
            let mended = mend(&path, Stream::Ogg).unwrap();
            assert_eq!(mended.is_some(), before.tags.is_some(), "cut at {cut}");
            let Some(closed) = mended else { continue };
            let bytes = fs::read(&path).unwrap();
            let mut inspector = OggInspector::new();
            inspector.push(&bytes);
            let found = inspector.finish();
            assert!(found.is_clean(), "cut at {cut}: {:?}", found.problems);
            assert_eq!((found.duration, Some(found.duration)), (before.duration, closed.cut_to), "cut at {cut}");
            assert_eq!(bytes[..before.whole as usize], whole[..before.whole as usize], "no page changes");
            assert_eq!((closed.bytes, &closed.sha256), (found.bytes, &hash_of(&path).unwrap()));
            assert_eq!(mend(&path, Stream::Ogg).unwrap(), Some(closed), "once more is the same, cut at {cut}");
        }
    }

    #[test]
    fn a_sealed_stream_cut_anywhere_keeps_every_whole_segment_and_is_ended_without_a_secret_key() {
        let recipients = Recipients::parse(RECIPIENT).unwrap();
        let stream_of = Stream::Sealed(&recipients);
        let mut whole = Vec::new();
        Sealer::new(recipients.clone()).seal(&stream(), &mut whole).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for cut in (0..=whole.len()).step_by(11).chain([whole.len()]) {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut surveyor = stream_of.surveyor();
            surveyor.push(&whole[..cut]);
            let before = surveyor.finish();
            let mended = mend(&path, stream_of).unwrap();
            assert_eq!(mended.is_some(), before.begun, "cut at {cut}");
            let Some(closed) = mended else { continue };
            let bytes = fs::read(&path).unwrap();
            let mut surveyor = stream_of.surveyor();
            surveyor.push(&bytes);
            let found = surveyor.finish();
            assert!(found.ended && found.problems.is_empty(), "cut at {cut}: {:?}", found.problems);
            assert_eq!((found.duration, Some(found.duration)), (before.duration, closed.cut_to), "cut at {cut}");
            assert_eq!((closed.bytes, &closed.sha256), (bytes.len() as u64, &hash_of(&path).unwrap()));
            assert_eq!(mend(&path, stream_of).unwrap(), Some(closed), "once more is the same, cut at {cut}");
        }
        assert!(!fs::read(&path).unwrap().windows(4).any(|bytes| bytes == b"OggS"));
    }

    #[test]
    fn what_follows_a_damaged_page_is_cut_off() {
        let whole = stream();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for at in (200..whole.len()).step_by(61) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            fs::write(&path, &damaged).unwrap();
            mend(&path, Stream::Ogg).unwrap().unwrap();
            let mut inspector = OggInspector::new();
            inspector.push(&fs::read(&path).unwrap());
            let found = inspector.finish();
            assert!(found.is_clean(), "{at}: {:?}", found.problems);
            assert!(found.whole <= at as u64 + 100, "nothing after {at} is kept, but the end");
        }
    }

    #[test]
    fn an_orphan_is_ended_and_nothing_else_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let spool = left_behind(dir.path(), &stream());
        let mut orphan = only(&spool);
        let files = orphan.finish_files().unwrap();
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].duration, Some(SampleCount(90 * 960 - 312)));
        assert_eq!(orphan.manifest().unwrap(), None, "a kept place is no manifest");
        assert_eq!(orphan.write_manifest(b"{}").unwrap(), dir.path().join("call.json"));
        orphan.done().unwrap();
        let left: Vec<_> = everything(dir.path()).into_keys().collect();
        assert_eq!(left, [PathBuf::from("call.json"), "call.ogg".into()]);
        assert!(!spool.exists() && orphans(&spool, None, Duration::ZERO).unwrap().is_empty());
    }

    #[test]
    fn who_dies_while_recovering_leaves_what_the_next_one_finishes_in_the_same_way() {
        let json = br#"{"version": 1, "recording_id": "r1"}"#;
        let expected = {
            let dir = tempfile::tempdir().unwrap();
            let mut orphan = only(&left_behind(dir.path(), &stream()));
            orphan.finish_files().unwrap();
            orphan.write_manifest(json).unwrap();
            orphan.done().unwrap();
            everything(dir.path())
        };
        for died_after in 0..7 {
            let dir = tempfile::tempdir().unwrap();
            let spool = left_behind(dir.path(), &stream());
            let (part, path) = (dir.path().join("call.ogg.part"), dir.path().join("call.ogg"));
            let mut orphan = only(&spool);
            match died_after {
                0 => {}
                // In the middle of the last page.
                1 => {
                    mend(&part, Stream::Ogg).unwrap();
                    let length = fs::metadata(&part).unwrap().len();
                    OpenOptions::new().write(true).open(&part).unwrap().set_len(length - 5).unwrap();
                }
                2 => _ = mend(&part, Stream::Ogg).unwrap(),
                // Between the file's two names.
                3 => {
                    orphan.finish_files().unwrap();
                    fs::hard_link(&path, &part).unwrap();
                }
                4 => _ = orphan.finish_files().unwrap(),
                5 => {
                    orphan.finish_files().unwrap();
                    orphan.write_manifest(json).unwrap();
                    fs::hard_link(dir.path().join("call.json"), dir.path().join("call.json.part")).unwrap();
                }
                _ => {
                    orphan.finish_files().unwrap();
                    orphan.write_manifest(json).unwrap();
                }
            }
            drop(orphan);
            let mut orphan = only(&spool);
            orphan.finish_files().unwrap();
            if orphan.manifest().unwrap().is_none() {
                orphan.write_manifest(json).unwrap();
            }
            orphan.done().unwrap();
            assert_eq!(everything(dir.path()), expected, "died after step {died_after}");
        }
    }

    #[test]
    fn a_recording_that_goes_on_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = left_behind(dir.path(), &stream());
        let before = everything(dir.path());
        let orphan = only(&spool);
        assert!(orphans(&spool, None, Duration::ZERO).unwrap().is_empty(), "another has it");
        drop(orphan);
        assert!(orphans(&spool, Some("r1"), Duration::ZERO).unwrap().is_empty(), "it is not wanted");
        assert!(Orphan::of(&spool, "r1").unwrap().is_some());
        // A torn line was cut off, and nothing else was touched.
        let after = everything(dir.path());
        assert_eq!(after.len(), before.len());
        assert!(before[Path::new(".spool/r1.journal")].starts_with(&after[Path::new(".spool/r1.journal")]));
    }

    #[test]
    fn a_name_that_a_stranger_took_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = left_behind(dir.path(), &stream());
        fs::write(dir.path().join("call.ogg"), b"stranger").unwrap();
        fs::write(dir.path().join("call.json"), b"{}").unwrap();
        for round in 0..2 {
            let mut orphan = only(&spool);
            let files = orphan.finish_files().unwrap();
            assert_eq!(files[0].file.path, dir.path().join("call-1.ogg"), "round {round}");
        }
        let orphan = only(&spool);
        assert_eq!(orphan.write_manifest(b"{\"version\":1}").unwrap(), dir.path().join("call-1.json"));
        orphan.done().unwrap();
        assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), b"stranger");
        assert_eq!(everything(dir.path()).len(), 4);
    }

    #[test]
    fn a_journal_that_this_version_does_not_understand_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = left_behind(dir.path(), &stream());
        let Some(Entry::Started(started)) = entries(dir.path()).into_iter().next() else { panic!("it begins so") };
        let newer = Entry::Started(Started { version: JOURNAL_VERSION + 1, ..started });
        for text in [newer.line().unwrap(), b"not a journal".to_vec(), Vec::new()] {
            fs::write(spool.join("r1.journal"), &text).unwrap();
            let found = orphans(&spool, None, Duration::ZERO).unwrap();
            assert!(matches!(&found[..], [Err(_)]));
            drop(found);
            assert_eq!(fs::read(spool.join("r1.journal")).unwrap(), text);
        }
    }

    #[test]
    fn a_journal_that_was_never_begun_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let begun = dir.path().join("r1.journal.part");
        fs::write(&begun, b"{").unwrap();
        let held = lock(&begun).unwrap();
        assert!(orphans(dir.path(), None, Duration::ZERO).unwrap().is_empty() && begun.exists());
        drop(held);
        assert!(
            orphans(dir.path(), None, Duration::ZERO).unwrap().is_empty() && !dir.path().exists(),
            "nor is its directory left"
        );
    }
}
