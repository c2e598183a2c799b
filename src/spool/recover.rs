//! Orphans: recordings whose process died. Each is locked, its files are cut back to the last whole page and ended, and get
//! their names. Whoever is killed while doing that leaves an orphan with which the next one does the same.

mod streams;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::Digest;

use serde_json::Value;
use time::OffsetDateTime;

use crate::clock;
use crate::hex;
use crate::time::SampleCount;

use super::files::tidy;
use super::history::{Closed, Entry, FileHistory, History, JOURNAL_VERSION, Made, Place, Started};
use super::journal::{Kind, kind_of, lock, own_directory, path_of};
use super::names::{
    Reserve, give_name, hash_of, manifest_of, numbered, part_of, survey, sync_directory_of, with_suffix,
};
use super::{FileError, FinishedFile};
use streams::{Opened, mend, open, render_again};

pub(super) use streams::OpenFile;
pub use streams::OpenStream;

/// A recording whose process died. As long as this is held, nobody else takes it.
#[derive(Debug)]
pub struct Orphan {
    spool: PathBuf,
    path: PathBuf,
    journal: File,
    history: History,
    started: Started,
    rested: Duration,
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
/// why. Recordings that go on are not among them, nor those whose ids are `except`, nor those whose journal was written less than
/// `at_rest` ago: a process that goes on with them may be on its way. A directory that is not there has none.
///
/// # Errors
/// Where the directory cannot be read.
pub fn orphans(spool: &Path, except: &[String], at_rest: Duration) -> io::Result<Vec<Result<Orphan, FileError>>> {
    let entries = match fs::read_dir(spool) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let except: Vec<PathBuf> = except.iter().map(|id| path_of(spool, id)).collect();
    let mut found = Vec::new();
    for path in paths.into_iter().filter(|path| !except.contains(path)) {
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

    /// Whether there is a journal of this recording id, be it an orphan's or not.
    pub fn is_there(spool: &Path, recording_id: &str) -> bool {
        path_of(spool, recording_id).exists()
    }

    /// How long nobody had written its journal when it was found.
    pub fn rested(&self) -> Duration {
        self.rested
    }

    fn at(spool: &Path, path: PathBuf) -> Result<Option<Self>, FileError> {
        let failed = |e| FileError::new("cannot read", &path, e);
        let Some(mut journal) = lock(&path).map_err(failed)? else { return Ok(None) };
        let rested = rests_for(&path);
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
        // Cut at its end it would count as just written.
        if whole < bytes.len() {
            journal.set_len(whole as u64).map_err(failed)?;
        }
        io::Seek::seek(&mut journal, io::SeekFrom::End(0)).map_err(failed)?;
        Ok(Some(Self { spool: spool.to_owned(), path, journal, history, started, rested }))
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
        if self.history.last_files().any(|file| file.closed.is_some() || !file.made.what.is_output()) {
            return Ok(None);
        }
        for FileHistory { made, .. } in self.history.last_files() {
            let part = part_of(&made.path);
            let Some(stream) = made.what.stream() else { continue };
            if !part.exists() {
                // It was about to be made.
                continue;
            }
            match open(made, &part, stream)? {
                Opened::ToGoOn(mut stream) => {
                    let of_it = self.history.last_files().filter(|file| file.is_rendered_from(made.file));
                    for FileHistory { made, .. } in of_it {
                        let Some(rendered) = made.what.rendered else { continue };
                        match render_again(made, rendered.rendering, &part, false) {
                            Ok((open, render)) => stream.rendered.push((made.clone(), open, render)),
                            Err(error) => {
                                tracing::warn!(%error, "a recording is not gone on with");
                                return Ok(None);
                            }
                        }
                    }
                    streams.push(*stream);
                }
                Opened::Ended => return Ok(None),
                Opened::Empty => {
                    fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?;
                    for file in self.history.last_files().filter(|file| file.is_rendered_from(made.file)) {
                        // It may not be there.
                        let _ = fs::remove_file(part_of(&file.made.path));
                    }
                }
            }
        }
        Ok((!streams.is_empty()).then_some(streams))
    }

    /// What it takes to go on with it: its directory, its journal and what that says.
    pub(super) fn into_parts(self) -> (PathBuf, PathBuf, File, History, Started) {
        let Self { spool, path, journal, history, started, .. } = self;
        (spool, path, journal, history, started)
    }

    /// Ends every stream after its last whole page, renders from it what is rendered from it, and gives the files their
    /// names.
    ///
    /// # Errors
    /// What the disk says; what was done by then is not done again.
    pub fn finish_files(&mut self) -> Result<Vec<RecoveredFile>, FileError> {
        let files: Vec<FileHistory> = self.history.last_files().cloned().collect();
        let (rendered, sources): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| file.made.what.rendered.is_some());
        let mut finished = Vec::new();
        for source in sources {
            let is_source_only = source.made.what.is_source_only;
            let of_it: Vec<_> =
                rendered.iter().filter(|file| file.is_rendered_from(source.made.file)).cloned().collect();
            let ended =
                if is_source_only { self.end_source(source.clone())? } else { self.finish_file(source.clone())? };
            let mut is_whole = true;
            for file in of_it {
                let rendered = self.finish_rendered(file, ended.as_ref())?;
                is_whole &= rendered.is_some();
                finished.extend(rendered);
            }
            match is_source_only {
                // It goes when everything is done.
                true if is_whole => {}
                // What cannot be rendered is there as it was recorded.
                true => finished.extend(self.finish_file(source)?),
                false => finished.extend(ended),
            }
        }
        finished.sort_by_key(|file| file.made.file);
        Ok(finished)
    }

    /// Ends a stream that is there only to render others from, where it is.
    fn end_source(&mut self, file: FileHistory) -> Result<Option<RecoveredFile>, FileError> {
        let made = file.made;
        let (part, Some(stream)) = (part_of(&made.path), made.what.stream()) else { return Ok(None) };
        if !part.exists() {
            return Ok(None);
        }
        let Some(Closed { bytes, sha256, cut_to }) = mend(&part, stream)? else {
            fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?;
            return Ok(None);
        };
        let file = FinishedFile { path: part, bytes, sha256, cut_to, in_memory: false };
        Ok(Some(RecoveredFile { made, file, duration: cut_to }))
    }

    /// Renders a file again from its source, which has ended, unless it was whole.
    fn finish_rendered(
        &mut self,
        file: FileHistory,
        source: Option<&RecoveredFile>,
    ) -> Result<Option<RecoveredFile>, FileError> {
        let FileHistory { made, closed, .. } = file;
        let part = part_of(&made.path);
        let length = fs::metadata(&part).map(|part| part.len()).ok();
        let is_whole = closed.as_ref().is_some_and(|closed| length.is_none_or(|length| length == closed.bytes));
        let closed = match (closed.filter(|_| is_whole), source, made.what.rendered) {
            (Some(closed), ..) => closed,
            (None, Some(source), Some(rendered)) => {
                let (open, _) = match render_again(&made, rendered.rendering, &source.file.path, true) {
                    Ok(again) => again,
                    Err(error) => {
                        tracing::error!(%error, "a file is missing");
                        // A part of it may not even be there.
                        let _ = fs::remove_file(&part);
                        return Ok(None);
                    }
                };
                let sha256 = hex::encode(open.hash.finalize());
                let closed = Closed { bytes: open.bytes, sha256, cut_to: source.duration };
                let Closed { bytes, sha256, cut_to } = closed.clone();
                self.append(Entry::Closed { file: made.file, bytes, sha256, cut_to })?;
                closed
            }
            (None, ..) => {
                if length.is_some() {
                    fs::remove_file(&part).map_err(|e| FileError::new("cannot remove", &part, e))?;
                }
                return Ok(None);
            }
        };
        let Some(path) = place(&made, &part, &closed)? else { return Ok(None) };
        let Closed { bytes, sha256, cut_to } = closed;
        // A source goes when everything is done.
        let duration = source.and_then(|source| source.duration).or(cut_to).or(Some(SampleCount::ZERO));
        Ok(Some(RecoveredFile { made, file: FinishedFile { path, bytes, sha256, cut_to, in_memory: false }, duration }))
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
        for file in self.history.last_files().filter(|file| file.made.what.is_source_only) {
            let part = part_of(&file.made.path);
            match fs::remove_file(&part) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(FileError::new("cannot remove", &part, error));
                }
                _ => {}
            }
        }
        if let Place::Store(_) = self.started.place {
            let own = own_directory(&self.path);
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
