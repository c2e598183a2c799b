//! Bytes of one recording into its store: parts, whole objects, and what is known about them.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::UploadError;
use super::state::{FileState, LiveState};
use crate::encode::Format;
use crate::spool::{FileId, SpoolFile, Upload as Step};
use crate::store::{Attributes, Part, PutOptions, Store, StoreError, UploadId};

/// What all recordings of a process may hold of parts under way: so many parts.
static BUFFERS: Semaphore = Semaphore::const_new(8);

/// How often an upload that the store has forgotten is begun anew.
const ANEW: u32 = 3;

/// The metadata that names the recording, which tells our own finished object from a stranger's.
pub(super) const RECORDING_ID: &str = "recording-id";

/// Where a file's bytes come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A file that may still grow.
    Growing(SpoolFile),
    /// A file that is complete.
    File(PathBuf),
    /// What is in no part yet; the rest cannot be read again.
    Rest {
        /// Where it begins.
        from: u64,
        /// All of it.
        bytes: Bytes,
    },
}

impl Source {
    pub(super) async fn read(&self, range: Range<u64>) -> io::Result<Bytes> {
        match self {
            Self::Growing(file) => file.read(range).await,
            Self::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read_at(&path, range)).await.map_err(io::Error::other)?
            }
            Self::Rest { from, bytes } => {
                let at = |offset: u64| offset.checked_sub(*from).and_then(|at| usize::try_from(at).ok());
                match (at(range.start), at(range.end)) {
                    (Some(start), Some(end)) if start <= end && end <= bytes.len() => Ok(bytes.slice(start..end)),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }

    /// Whether first bytes are other than they were while it grew; the first part holds all of those.
    fn is_patched(&self) -> bool {
        match self {
            Self::Growing(file) => file.progress().borrow().patched > 0,
            Self::File(_) | Self::Rest { .. } => false,
        }
    }

    fn can_begin_anew(&self) -> bool {
        !matches!(self, Self::Rest { from: 1.., .. })
    }
}

fn read_at(path: &std::path::Path, range: Range<u64>) -> io::Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    std::fs::File::open(path)?.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes.into())
}

/// One recording's way into its store.
pub(super) struct Transfer {
    pub(super) store: Store,
    pub(super) state: LiveState,
    /// Takes each step down, so that another process can go on there.
    note: Box<dyn Fn(Step) + Send + Sync>,
}

impl Transfer {
    pub(super) fn new(store: Store, state: LiveState, note: impl Fn(Step) + Send + Sync + 'static) -> Self {
        Self { store, state, note: Box::new(note) }
    }

    /// What it knows, and who takes its steps down.
    pub(super) fn into_parts(self) -> (LiveState, Box<dyn Fn(Step) + Send + Sync>) {
        (self.state, self.note)
    }

    pub(super) fn note(&mut self, step: Step) {
        (self.note)(step);
    }

    /// Uploads every full part up to `end`, and what is left after them if that is `all`.
    pub(super) async fn put_parts(
        &mut self,
        n: usize,
        source: &Source,
        end: u64,
        all: bool,
    ) -> Result<(), UploadError> {
        let mut anew = 0;
        let size = self.store.part_size();
        loop {
            let from = self.state.files[n].confirmed();
            let to = end.min(from + size);
            if to <= from || to - from < size && !all {
                return Ok(());
            }
            // Never closed.
            let _buffer = BUFFERS.acquire().await;
            let key = self.state.files[n].key.clone();
            let upload = match &self.state.files[n].upload {
                Some(upload) => upload.clone(),
                None => self.begin(n).await?,
            };
            let bytes = source.read(from..to).await.map_err(UploadError::Spool)?;
            let number = self.state.files[n].parts.len() as u32 + 1;
            match self.store.put_part(&key, &upload, number, bytes).await {
                Ok(part) => {
                    let file = self.state.files[n].file;
                    let (size, tag) = (part.size, part.tag.clone());
                    self.note(Step::PartDone { file, number, size, tag, md5: None });
                    self.state.files[n].parts.push(part);
                }
                // Somebody, or a rule of the bucket, has removed it. The spool has everything.
                Err(StoreError::Gone(why)) if anew < ANEW && source.can_begin_anew() => {
                    anew += 1;
                    tracing::warn!(%why, "the store has forgotten an upload; it begins anew");
                    self.forget_upload(n);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) async fn begin(&mut self, n: usize) -> Result<UploadId, UploadError> {
        let attributes = self.attributes(&self.state.files[n].what.ext);
        let FileState { file, key, .. } = self.state.files[n].clone();
        let upload = self.store.begin(&key, &attributes).await?;
        let upload_id = serde_json::to_string(&upload).expect("plain data becomes JSON");
        self.note(Step::Begun { file, key, upload_id });
        self.state.files[n].upload = Some(upload.clone());
        Ok(upload)
    }

    /// Gives up what was uploaded of a file in parts; it begins anew.
    pub(super) async fn give_up(&mut self, n: usize) {
        let FileState { key, upload, .. } = self.state.files[n].clone();
        if let Some(upload) = upload
            && let Err(error) = self.store.abort(&key, &upload).await
        {
            tracing::warn!(%error, "parts of an upload are left behind");
        }
        self.forget_upload(n);
    }

    fn forget_upload(&mut self, n: usize) {
        self.state.files[n].upload = None;
        self.state.files[n].parts.clear();
    }

    /// Makes the object of a file that has `len` bytes appear under its key; where a stranger has taken that meanwhile, under
    /// the first free one of `KEY-1`, `KEY-2`… Done already, it does nothing.
    pub(super) async fn complete(&mut self, n: usize, source: &Source, len: u64) -> Result<(), UploadError> {
        if self.state.files[n].stored == Some(len) {
            return Ok(());
        }
        loop {
            let done = match self.state.files[n].upload {
                None if len <= self.store.part_size() => self.put_file(n, source, len).await,
                _ => self.complete_parts(n, source, len).await,
            };
            match done {
                Ok(()) => break,
                Err(UploadError::Store(StoreError::AlreadyExists(_))) => {
                    let FileState { key, .. } = &self.state.files[n];
                    if self.is_ours(key, len).await? {
                        break;
                    }
                    if !source.can_begin_anew() {
                        return Err(UploadError::NameTaken(self.store.location(key)));
                    }
                    self.rename(n).await;
                }
                Err(error) => return Err(error),
            }
        }
        let FileState { file, key, .. } = self.state.files[n].clone();
        self.state.files[n].stored = Some(len);
        let location = self.store.location(&key);
        tracing::info!(%location, bytes = len, "uploaded");
        self.note(Step::Completed { file, location });
        Ok(())
    }

    async fn put_file(&mut self, n: usize, source: &Source, len: u64) -> Result<(), UploadError> {
        let FileState { key, what, .. } = &self.state.files[n];
        let _buffer = BUFFERS.acquire().await;
        let bytes = source.read(0..len).await.map_err(UploadError::Spool)?;
        let options = PutOptions { create_only: true, lasting: true, attributes: self.attributes(&what.ext) };
        self.store.put(key, bytes, &options).await?;
        Ok(())
    }

    async fn complete_parts(&mut self, n: usize, source: &Source, len: u64) -> Result<(), UploadError> {
        let mut anew = 0;
        loop {
            self.put_parts(n, source, len, true).await?;
            let completed = match self.put_patched(n, source).await {
                Ok(()) => {
                    let FileState { key, upload, parts, .. } = &self.state.files[n];
                    let Some(upload) = upload else {
                        return Err(UploadError::Spool(io::ErrorKind::UnexpectedEof.into()));
                    };
                    self.store.complete(key, upload, parts, true).await.map(drop)
                }
                Err(UploadError::Store(error)) => Err(error),
                Err(error) => return Err(error),
            };
            match completed {
                Ok(()) => return Ok(()),
                Err(StoreError::Gone(why)) if anew < ANEW && source.can_begin_anew() => {
                    anew += 1;
                    tracing::warn!(%why, "the store has forgotten an upload; it begins anew");
                    self.forget_upload(n);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Uploads the first part again, where its bytes were written over when the file was completed.
    async fn put_patched(&mut self, n: usize, source: &Source) -> Result<(), UploadError> {
        let FileState { key, upload: Some(upload), parts, .. } = &self.state.files[n] else { return Ok(()) };
        let Some(first) = parts.first().filter(|_| source.is_patched()) else { return Ok(()) };
        let _buffer = BUFFERS.acquire().await;
        let bytes = source.read(0..first.size).await.map_err(UploadError::Spool)?;
        // It goes before every completion anew: a note of it could be lost.
        let part = self.store.put_part(key, upload, first.number, bytes).await?;
        self.state.files[n].parts[0] = part;
        Ok(())
    }

    /// Whether the object under `key` is this recording's, and whole.
    async fn is_ours(&self, key: &str, len: u64) -> Result<bool, UploadError> {
        let found = self.store.head(key).await?;
        Ok(found.is_some_and(|object| {
            object.size == len && object.metadata.get(RECORDING_ID) == Some(&self.state.recording_id)
        }))
    }

    /// Gives a file another key.
    async fn rename(&mut self, n: usize) {
        self.give_up(n).await;
        let FileState { key, what, .. } = self.state.files[n].clone();
        let ending = format!(".{}", what.ext);
        let stem = key.strip_suffix(&ending).unwrap_or(&key);
        let taken = |key: &str| self.state.files.iter().any(|file| file.key == key);
        let fresh = fastrand::u32(..);
        let free = (1..1_000).map(|number| format!("{stem}-{number}{ending}")).find(|key| !taken(key));
        let key = free.unwrap_or_else(|| format!("{stem}-{fresh:08x}{ending}"));
        tracing::warn!(key, "the name was taken meanwhile");
        self.state.files[n].key = key;
    }

    /// Writes an object that tells about the recording; an older one of this recording is replaced.
    pub(super) async fn put_beside(&self, key: &str, ext: &str, bytes: Bytes) -> Result<(), UploadError> {
        let mut options = PutOptions { create_only: true, lasting: true, attributes: self.attributes(ext) };
        match self.store.put(key, bytes.clone(), &options).await {
            Ok(_) => Ok(()),
            Err(StoreError::AlreadyExists(why)) => {
                let found = self.store.head(key).await?;
                let ours =
                    found.is_some_and(|found| found.metadata.get(RECORDING_ID) == Some(&self.state.recording_id));
                if !ours {
                    return Err(StoreError::AlreadyExists(why).into());
                }
                options.create_only = false;
                self.store.put(key, bytes, &options).await?;
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn attributes(&self, ext: &str) -> Attributes {
        Attributes::typed(content_type(ext)).with(RECORDING_ID, &self.state.recording_id)
    }
}

/// The media type of files with this ending.
fn content_type(ext: &str) -> &'static str {
    match ext.rsplit('.').next().unwrap_or(ext) {
        "vtt" => "text/vtt",
        "png" => "image/png",
        "svg" => "image/svg+xml",
        "json" => "application/json",
        other => other.parse().map_or("application/octet-stream", Format::media_type),
    }
}

/// The name that a recording has in its store and the word for who writes it, from its journal.
pub(super) fn reserved(steps: &[Step]) -> Option<(String, String)> {
    steps.iter().rev().find_map(|step| match step {
        Step::Reserved { stem, owner } => Some((stem.clone(), owner.clone())),
        _ => None,
    })
}

/// The steps under the name that a recording has at last: what was done under another before is of no use there.
pub(super) fn under_last_name(steps: &[Step]) -> &[Step] {
    let name = |step: &Step| match step {
        Step::Reserved { stem, owner } => Some((stem.clone(), owner.clone())),
        _ => None,
    };
    let last = steps.iter().filter_map(name).next_back();
    let other = steps.iter().rposition(|step| name(step).is_some_and(|name| Some(name) != last));
    // The first of its reservations after the last of another name.
    let from = other.map_or(0, |other| {
        steps[other + 1..].iter().position(|step| name(step).is_some()).map_or(other + 1, |first| other + 1 + first)
    });
    &steps[from..]
}

/// What is known of a file from its journal.
pub(super) fn known(file: FileId, steps: &[Step], state: &mut FileState) {
    for step in under_last_name(steps) {
        match step {
            Step::Begun { file: of, key, upload_id } if *of == file => {
                state.upload = serde_json::from_str(upload_id).ok();
                state.key.clone_from(key);
                state.parts.clear();
            }
            Step::PartDone { file: of, number, size, tag, .. }
                if *of == file && *number as usize == state.parts.len() + 1 =>
            {
                state.parts.push(Part { number: *number, size: *size, tag: tag.clone() });
            }
            _ => {}
        }
    }
}
