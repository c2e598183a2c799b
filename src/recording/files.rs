//! The recording's files on the local disk: written by a thread of their own, so that a slow disk never holds up the call.
//!
//! A file is `NAME.part` while it grows and gets its name when it is whole; nothing that exists is overwritten. What was
//! written is synced about once a second. Where the disk fails, the file is cut back to the last whole write, which is
//! a whole Ogg page, and closed there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::encode::{self, OggInspector};
use crate::time::SampleCount;

/// How long written bytes may stay unsynced.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// Disk space held back for the manifest, so that it fits when the disk is full.
const MANIFEST_RESERVE: usize = 64 * 1024;

/// A fault of the local disk.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self { action, path: path.to_owned(), source }
    }
}

/// A fault of one file, while it is written.
#[derive(Debug)]
pub struct FileFault {
    /// Which file.
    pub file: FileId,
    /// What the disk said.
    pub error: FileError,
}

/// One of a recording's files, by the order in which they were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub usize);

/// A file that has its name.
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
}

/// The files of one recording, reserved under one name.
#[derive(Debug)]
pub struct RecordingFiles {
    stem: PathBuf,
    commands: Sender<Command>,
    thread: Option<JoinHandle<()>>,
    made: usize,
}

enum Command {
    Create { stem: PathBuf, ext: &'static str },
    Append { file: FileId, bytes: Vec<u8> },
    Finish { file: FileId, whole: bool, done: oneshot::Sender<Result<FinishedFile, FileError>> },
    Beside { stem: PathBuf, ext: &'static str, bytes: Vec<u8>, done: oneshot::Sender<Result<FinishedFile, FileError>> },
    Manifest { path: PathBuf, json: Vec<u8>, done: oneshot::Sender<Result<(), FileError>> },
}

impl RecordingFiles {
    /// Reserves `name` (relative, `/` between its parts, with its ending) below `root` and starts the writer.
    ///
    /// Where the name is taken, the first free one of `NAME-1`, `NAME-2`… is taken instead. Faults that come later are
    /// sent to `faults`; a file that has one does not hold the others up.
    pub fn reserve(root: &Path, name: &str, faults: mpsc::UnboundedSender<FileFault>) -> Result<Self, FileError> {
        let wanted = root.join(name);
        let parent = wanted.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(|e| FileError::new("cannot create the directory", parent, e))?;
        let ext = wanted.extension().map(|ext| ext.to_string_lossy().into_owned()).unwrap_or_default();
        let (stem, reserve) = claim(&wanted.with_extension(""), &ext)?;
        let (commands, inbox) = channel();
        let writer = Writer { files: Vec::new(), reserve, faults };
        let thread = std::thread::Builder::new()
            .name("callreel-files".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|e| FileError::new("cannot start the writer of", &stem, e))?;
        Ok(Self { stem, commands, thread: Some(thread), made: 0 })
    }

    /// Where the manifest will be.
    pub fn manifest_path(&self) -> PathBuf {
        with_suffix(&self.stem, ".json")
    }

    /// Makes a file, named by the recording's name, `suffix` and the ending `ext`. Where that name is taken, by a file that
    /// was there or by another of the recording, it gets a number.
    pub fn create(&mut self, suffix: &str, ext: &'static str) -> FileId {
        let file = FileId(self.made);
        self.made += 1;
        self.send(Command::Create { stem: with_suffix(&self.stem, suffix), ext });
        file
    }

    /// Appends whole pages.
    pub fn append(&self, file: FileId, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            self.send(Command::Append { file, bytes });
        }
    }

    /// Syncs the file and gives it its name. Where its stream is not `whole`, its last page becomes the stream's last.
    pub async fn finish(&self, file: FileId, whole: bool) -> Result<FinishedFile, FileError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Finish { file, whole, done });
        answer.await.unwrap_or_else(|_| Err(self.writer_gone()))
    }

    /// Writes a whole file, named by the recording's name and the ending `ext`. Where the disk refuses it nothing is left.
    pub async fn write_beside(&self, ext: &'static str, bytes: Vec<u8>) -> Result<FinishedFile, FileError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Beside { stem: self.stem.clone(), ext, bytes, done });
        answer.await.unwrap_or_else(|_| Err(self.writer_gone()))
    }

    /// Writes the manifest beside the files.
    pub async fn write_manifest(&self, json: Vec<u8>) -> Result<(), FileError> {
        let (done, answer) = oneshot::channel();
        self.send(Command::Manifest { path: self.manifest_path(), json, done });
        answer.await.unwrap_or_else(|_| Err(self.writer_gone()))
    }

    fn send(&self, command: Command) {
        // A writer that is gone drops the answer of whoever waits for one, and that is where it shows.
        let _ = self.commands.send(command);
    }

    fn writer_gone(&self) -> FileError {
        FileError::new("the writer ended before it had written", &self.stem, io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for RecordingFiles {
    fn drop(&mut self) {
        let (closed, _) = channel();
        self.commands = closed;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Writer {
    files: Vec<OpenFile>,
    reserve: Reserve,
    faults: mpsc::UnboundedSender<FileFault>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Command>) {
        let mut last_sync = clock::now();
        loop {
            match inbox.recv_timeout(SYNC_EVERY) {
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if clock::now().duration_since(last_sync) >= SYNC_EVERY {
                last_sync = self.sync();
            }
        }
        self.sync();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Create { stem, ext } => {
                let id = FileId(self.files.len());
                let file = OpenFile::create(&stem, ext).unwrap_or_else(|(path, error)| {
                    self.fault(id, error);
                    OpenFile::broken(path)
                });
                self.files.push(file);
            }
            Command::Append { file: id, bytes } => {
                if let Some(file) = self.files.get_mut(id.0)
                    && let Err(error) = file.append(&bytes)
                {
                    self.fault(id, error);
                }
            }
            Command::Finish { file, whole, done } => {
                if let Some(file) = self.files.get_mut(file.0) {
                    let _ = done.send(file.finish(whole));
                }
            }
            Command::Beside { stem, ext, bytes, done } => {
                let _ = done.send(OpenFile::write_whole(&stem, ext, &bytes));
            }
            Command::Manifest { path, json, done } => {
                let _ = done.send(self.reserve.fill(&path, &json));
            }
        }
    }

    fn sync(&mut self) -> Instant {
        for n in 0..self.files.len() {
            if let Err(error) = self.files[n].sync() {
                self.fault(FileId(n), error);
            }
        }
        clock::now()
    }

    fn fault(&self, file: FileId, error: FileError) {
        // Nobody listens any more once the recording has its result.
        let _ = self.faults.send(FileFault { file, error });
    }
}

struct OpenFile {
    path: PathBuf,
    part: PathBuf,
    file: Option<File>,
    written: u64,
    last_append: u64,
    unsynced: bool,
    broken: bool,
    hash: Sha256,
}

impl OpenFile {
    fn create(stem: &Path, ext: &str) -> Result<Self, (PathBuf, FileError)> {
        for number in 0u32.. {
            let stem = if number == 0 { stem.to_owned() } else { with_suffix(stem, &format!("-{number}")) };
            let path = with_suffix(&stem, &format!(".{ext}"));
            let part = with_suffix(&path, ".part");
            if path.exists() {
                continue;
            }
            match OpenOptions::new().read(true).write(true).create_new(true).open(&part) {
                Ok(file) => return Ok(Self { part, file: Some(file), ..Self::broken(path).mended() }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err((path, FileError::new("cannot create", &part, error))),
            }
        }
        unreachable!("some suffix of four thousand million is free")
    }

    fn write_whole(stem: &Path, ext: &str, bytes: &[u8]) -> Result<FinishedFile, FileError> {
        let mut file = Self::create(stem, ext).map_err(|(_, error)| error)?;
        let written = file.append(bytes).and_then(|()| file.finish(true));
        if written.is_err() {
            let _ = fs::remove_file(&file.part);
        }
        written
    }

    fn broken(path: PathBuf) -> Self {
        Self {
            part: with_suffix(&path, ".part"),
            path,
            file: None,
            written: 0,
            last_append: 0,
            unsynced: false,
            broken: true,
            hash: Sha256::new(),
        }
    }

    fn mended(mut self) -> Self {
        self.broken = false;
        self
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let (false, Some(file)) = (self.broken, &mut self.file) else { return Ok(()) };
        if let Err(error) = file.write_all(bytes) {
            self.broken = true;
            self.close_at_last_page();
            return Err(FileError::new("cannot write to", &self.part, error));
        }
        self.last_append = self.written;
        self.written += bytes.len() as u64;
        self.hash.update(bytes);
        self.unsynced = true;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        let (true, Some(file)) = (self.unsynced, &self.file) else { return Ok(()) };
        self.unsynced = false;
        file.sync_data().map_err(|e| FileError::new("cannot sync", &self.part, e))
    }

    fn finish(&mut self, whole: bool) -> Result<FinishedFile, FileError> {
        if !whole && !std::mem::replace(&mut self.broken, true) {
            self.close_at_last_page();
        }
        let Some(file) = self.file.take() else {
            return Err(FileError::new("was never created:", &self.part, io::ErrorKind::NotFound.into()));
        };
        let synced = file.sync_all();
        let read_back = |e| FileError::new("cannot read back", &self.part, e);
        let (sha256, cut_to) = if self.broken {
            (hash_of(&self.part).map_err(read_back)?, Some(duration_of(&self.part).map_err(read_back)?))
        } else {
            (hex(self.hash.finalize_reset().as_slice()), None)
        };
        let path = give_name(&self.part, &self.path)?;
        synced.map_err(|e| FileError::new("cannot sync", &path, e))?;
        Ok(FinishedFile { path, bytes: self.written, sha256, cut_to })
    }

    /// After a failed write: back to the last whole page, which becomes the stream's last. This takes no disk space.
    fn close_at_last_page(&mut self) {
        let Some(file) = &mut self.file else { return };
        let length = usize::try_from(self.written - self.last_append).unwrap_or(0);
        let mut tail = vec![0; length];
        let closed = file
            .set_len(self.written)
            .and_then(|()| file.seek(SeekFrom::Start(self.last_append)))
            .and_then(|_| file.read_exact(&mut tail));
        if closed.is_err() || !encode::end_at_last_page(&mut tail) {
            return;
        }
        // A disk that refuses this too leaves a file without its end mark, which players take.
        let _ = file.seek(SeekFrom::Start(self.last_append)).and_then(|_| file.write_all(&tail));
    }
}

/// The manifest's place, taken at the start so that the name is ours and the space is there.
#[derive(Debug)]
struct Reserve {
    part: PathBuf,
    filled: bool,
}

impl Reserve {
    fn fill(&mut self, path: &Path, json: &[u8]) -> Result<(), FileError> {
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).open(&self.part)?;
            file.write_all(json)?;
            file.set_len(json.len() as u64)?;
            file.sync_all()
        };
        write().map_err(|e| FileError::new("cannot write", &self.part, e))?;
        self.filled = true;
        give_name(&self.part, path).map(|_| ())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        if !self.filled {
            let _ = fs::remove_file(&self.part);
        }
    }
}

fn claim(wanted: &Path, ext: &str) -> Result<(PathBuf, Reserve), FileError> {
    for suffix in 0u32.. {
        let stem = if suffix == 0 { wanted.to_owned() } else { with_suffix(wanted, &format!("-{suffix}")) };
        let manifest = with_suffix(&stem, ".json");
        let output = with_suffix(&stem, &format!(".{ext}"));
        let part = with_suffix(&manifest, ".part");
        if manifest.exists() || output.exists() || with_suffix(&output, ".part").exists() {
            continue;
        }
        match OpenOptions::new().write(true).create_new(true).open(&part) {
            Ok(mut file) => {
                let reserve = Reserve { part: part.clone(), filled: false };
                file.write_all(&vec![b' '; MANIFEST_RESERVE])
                    .map_err(|e| FileError::new("cannot write to", &part, e))?;
                return Ok((stem, reserve));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FileError::new("cannot create", &part, error)),
        }
    }
    unreachable!("some suffix of four thousand million is free")
}

/// Renames without overwriting; where the name was taken meanwhile, the file keeps `.part` and the error says so.
fn give_name(part: &Path, path: &Path) -> Result<PathBuf, FileError> {
    match fs::hard_link(part, path) {
        Ok(()) => {
            fs::remove_file(part).map_err(|e| FileError::new("cannot remove", part, e))?;
            return Ok(path.to_owned());
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
    Ok(path.to_owned())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// SHA-256 of a file's bytes, in hexadecimal.
pub fn hash_of(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    read_blocks(path, |block| hash.update(block))?;
    Ok(hex(hash.finalize().as_slice()))
}

fn duration_of(path: &Path) -> io::Result<SampleCount> {
    let mut inspector = OggInspector::new();
    read_blocks(path, |block| inspector.push(block))?;
    Ok(inspector.finish().duration)
}

fn read_blocks(path: &Path, mut take: impl FnMut(&[u8])) -> io::Result<()> {
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(root: &Path, name: &str) -> (RecordingFiles, mpsc::UnboundedReceiver<FileFault>) {
        let (faults, inbox) = mpsc::unbounded_channel();
        (RecordingFiles::reserve(root, name, faults).expect("a writable directory"), inbox)
    }

    #[tokio::test]
    async fn a_file_is_part_until_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _faults) = files(dir.path(), "a/b.ogg");
        let path = dir.path().join("a/b.ogg");
        let id = files.create("", "ogg");
        files.append(id, b"hello ".to_vec());
        files.append(id, b"world".to_vec());
        let done = files.finish(id, true).await.unwrap();
        assert_eq!((&done.path, done.cut_to), (&path, None));
        assert_eq!(fs::read(&path).unwrap(), b"hello world");
        assert_eq!(done.sha256, hash_of(&path).unwrap());
        assert!(!with_suffix(&path, ".part").exists());
    }

    #[tokio::test]
    async fn a_taken_name_gets_a_suffix_and_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("call.ogg"), b"mine").unwrap();
        let (first, _faults) = files(dir.path(), "call.ogg");
        let (second, _more) = files(dir.path(), "call.ogg");
        assert_eq!(first.stem, dir.path().join("call-1"));
        assert_eq!(second.stem, dir.path().join("call-2"));
        assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn a_name_taken_meanwhile_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _faults) = files(dir.path(), "call.ogg");
        let path = dir.path().join("call.ogg");
        let id = files.create("", "ogg");
        files.append(id, b"x".to_vec());
        while !with_suffix(&path, ".part").exists() {
            tokio::task::yield_now().await;
        }
        fs::write(&path, b"stranger").unwrap();
        let error = files.finish(id, true).await.unwrap_err();
        assert!(error.to_string().contains("does not overwrite"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"stranger");
        assert_eq!(fs::read(with_suffix(&path, ".part")).unwrap(), b"x");
    }

    #[tokio::test]
    async fn files_of_one_name_are_numbered() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, _faults) = files(dir.path(), "call.ogg");
        fs::write(dir.path().join("call-a.ogg"), b"stranger").unwrap();
        let mut names = Vec::new();
        for id in [files.create("-a", "ogg"), files.create("-a", "ogg"), files.create("", "ogg")] {
            names.push(files.finish(id, true).await.unwrap().path);
        }
        assert_eq!(names, ["call-a-1.ogg", "call-a-2.ogg", "call.ogg"].map(|name| dir.path().join(name)));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_made_leaves_the_others_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mut files, mut faults) = files(dir.path(), "call.ogg");
        let (bad, good) = (files.create("/nowhere/x", "ogg"), files.create("", "ogg"));
        files.append(bad, b"x".to_vec());
        files.append(good, b"x".to_vec());
        assert!(files.finish(bad, true).await.unwrap_err().to_string().contains("was never created"));
        assert_eq!(files.finish(good, true).await.unwrap().bytes, 1);
        assert_eq!(faults.recv().await.unwrap().file, bad);
        assert!(faults.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_manifest_takes_the_reserved_place() {
        let dir = tempfile::tempdir().unwrap();
        let (files, _faults) = files(dir.path(), "call.ogg");
        assert_eq!(fs::metadata(dir.path().join("call.json.part")).unwrap().len(), MANIFEST_RESERVE as u64);
        files.write_manifest(b"{}".to_vec()).await.unwrap();
        assert_eq!(fs::read(dir.path().join("call.json")).unwrap(), b"{}");
        drop(files);
        assert!(!dir.path().join("call.json.part").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let (faults, _inbox) = mpsc::unbounded_channel();
        let error = RecordingFiles::reserve(dir.path(), "file/call.ogg", faults).unwrap_err();
        assert!(error.to_string().contains("cannot create the directory"), "{error}");
    }
}
