//! Finishing what another process or machine left: from a spool, or from the bucket alone.

use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::UploadError;
use super::lease;
use super::live::clear;
use super::state::{FileState, LiveState, STATE_VERSION};
use super::transfer::{RECORDING_ID, Source, Transfer, known, reserved};
use crate::encode::EncodeError;
use crate::hex;
use crate::render::file::RenderError;
use crate::render::{self, Render, Rendering};
use crate::spool::{FileId, NewFile, Stream, Upload as Step, split_name};
use crate::store::{ObjectInfo, Store, StoreError, UploadId};
use crate::time::SampleCount;

/// How much of an object is read at once.
const BLOCK: u64 = 8 * 1024 * 1024;

/// A recording in a store that is not finished.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The key of its state object.
    pub key: String,
    /// The recording's id.
    pub recording_id: String,
}

/// A recording whose files are all in the store now, and that is still to be told about.
pub struct Adopted {
    transfer: Transfer,
    files: Vec<AdoptedFile>,
}

/// A file of such a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedFile {
    /// What it is.
    pub what: NewFile,
    /// Its key.
    pub key: String,
    /// How people call it.
    pub location: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// How long it plays; none for what is no Ogg stream.
    pub duration: Option<SampleCount>,
}

/// What a spool has of a recording that is to be finished.
#[derive(Clone, Debug)]
pub struct Left {
    /// The recording's id.
    pub recording_id: String,
    /// The key that its main object was to have, with the ending.
    pub key: String,
    /// Its complete files.
    pub files: Vec<LeftFile>,
    /// How much more of it may be here than another machine had that has finished it meanwhile, without being worth a
    /// recording of its own: what a process had not brought up when it died.
    pub may_lack: SampleCount,
    /// What its own process did, in order.
    pub steps: Vec<Step>,
}

/// A complete file in a spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftFile {
    /// Its number.
    pub file: FileId,
    /// What it is.
    pub what: NewFile,
    /// Where it is.
    pub path: PathBuf,
    /// How long it plays; none for what is no stream.
    pub duration: Option<SampleCount>,
}

/// The recordings below `prefix` that are not finished, whether somebody records them or not.
///
/// # Errors
/// What the store says.
pub async fn find(store: &Store, prefix: &str) -> Result<Vec<Found>, UploadError> {
    let mut found = Vec::new();
    for object in store.list(prefix).await?.into_iter().filter(|object| LiveState::is_key(&object.key)) {
        match lease::read(store, &object.key).await {
            Ok(Some(state)) if !state.done => {
                found.push(Found { key: object.key, recording_id: state.recording_id });
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a state object that cannot be read"),
        }
    }
    Ok(found)
}

/// Finishes a recording from the bucket alone. None where its recorder lives, as its lease tells, or another heir was
/// faster.
///
/// # Errors
/// What the store says; it can be tried again.
pub async fn adopt(store: &Store, key: &str) -> Result<Option<Adopted>, UploadError> {
    let owner = ulid::Ulid::new().to_string();
    let Some(state) = lease::take(store, key, &owner).await? else { return Ok(None) };
    let mut transfer = Transfer::new(store.clone(), state, |_| {});
    let is_rendered = |file: &FileState| file.what.rendered.is_some();
    let (rendered, streams): (Vec<usize>, Vec<usize>) =
        (0..transfer.state.files.len()).partition(|n| is_rendered(&transfer.state.files[*n]));
    let mut files = Vec::new();
    for n in streams {
        // What is there under its name is whole, whoever got that far.
        if let Some(found) = ours(&transfer, n).await? {
            transfer.state.files[n].stored = Some(found);
        }
        if transfer.state.files[n].stored.is_none() {
            let rest = rest_of(&transfer, n).await?;
            let confirmed = transfer.state.files[n].confirmed();
            let len = confirmed + rest.len() as u64;
            if len == 0 {
                continue;
            }
            let source = Source::Rest { from: confirmed, bytes: rest };
            let known = transfer.state.clone();
            lease::keep(store, &known, transfer.complete(n, &source, len)).await?;
            lease::renew(store, &transfer.state).await?;
        }
        files.push((n, look(&transfer, n).await?));
    }
    for n in rendered {
        let Some(of_it) = transfer.state.files[n].what.rendered else { continue };
        let source = files.iter().find(|(source, _)| transfer.state.files[*source].file == of_it.from);
        let Some((_, source)) = source.cloned() else { continue };
        if let Some(found) = ours(&transfer, n).await? {
            transfer.state.files[n].stored = Some(found);
        } else {
            transfer.give_up(n).await;
            let known = transfer.state.clone();
            let again = lease::keep(store, &known, Again::render(store, &source.key, of_it.rendering)).await?;
            if again.bytes > store.part_size() {
                // Whoever has to go on here knows of the upload.
                transfer.begin(n).await?;
                lease::renew(store, &transfer.state).await?;
            }
            let known = transfer.state.clone();
            lease::keep(store, &known, transfer.complete(n, &Source::File(again.path.clone()), again.bytes)).await?;
            lease::renew(store, &transfer.state).await?;
        }
        files.push((n, AdoptedFile { duration: source.duration, ..look(&transfer, n).await? }));
    }
    files.retain(|(_, file)| !file.what.is_source_only);
    let files = files.into_iter().map(|(_, file)| file).collect();
    Ok(Some(Adopted { transfer, files }))
}

/// An object's stream in another format, in a temporary file.
struct Again {
    path: PathBuf,
    bytes: u64,
}

impl Again {
    /// Renders what is under `key`.
    async fn render(store: &Store, key: &str, rendering: Rendering) -> Result<Self, UploadError> {
        let path = std::env::temp_dir().join(format!("callreel-{}", ulid::Ulid::new()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(UploadError::Spool)?;
        // From here on whatever happens removes it.
        let mut again = Self { path, bytes: 0 };
        let encode = |error: EncodeError| UploadError::Spool(io::Error::other(error));
        let mut render = Render::new(rendering).map_err(encode)?;
        let (mut at, mut is_last) = (0, false);
        while !is_last {
            let block = store.get(key, Some(at..at + BLOCK)).await?;
            at += block.len() as u64;
            is_last = (block.len() as u64) < BLOCK;
            let to = file.try_clone().map_err(UploadError::Spool)?;
            let rendered = tokio::task::spawn_blocking(move || -> Result<_, RenderError> {
                let written = render::file::render_block(&block, &to, &mut render)?;
                let rest = if is_last { render::file::end(&to, &mut render)? } else { 0 };
                Ok((render, written + rest))
            });
            let rendered = rendered.await.map_err(io::Error::other).and_then(|done| done.map_err(io::Error::from));
            let (back, written) = rendered.map_err(UploadError::Spool)?;
            render = back;
            again.bytes += written;
        }
        Ok(again)
    }
}

impl Drop for Again {
    fn drop(&mut self) {
        // What cannot be removed the system removes some day.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Finishes a recording whose files lie complete in a spool.
///
/// # Errors
/// [`UploadError::Lost`] where another machine is about to; what the store says. It can be tried again.
pub async fn finish(
    store: &Store,
    left: Left,
    note: impl Fn(Step) + Send + Sync + 'static,
) -> Result<Adopted, UploadError> {
    let reserved = reserved(&left.steps);
    let (wanted, ext) = split_name(&left.key);
    let mut state = LiveState {
        version: STATE_VERSION,
        recording_id: left.recording_id.clone(),
        owner: reserved.as_ref().map_or_else(|| ulid::Ulid::new().to_string(), |(_, owner)| owner.clone()),
        every_seconds: 5,
        stem: reserved.as_ref().map_or_else(|| wanted.to_owned(), |(stem, _)| stem.clone()),
        files: Vec::new(),
        so_far: None,
        done: false,
    };
    // While there is a state object it is ours; where there is none any more, another machine has finished everything.
    let is_finished = match reserved {
        Some(_) => match lease::read(store, &state.key()).await? {
            Some(there) if there.owner != state.owner && !there.done => return Err(UploadError::Lost(there.owner)),
            Some(there) if !there.done => {
                (state.files, state.so_far) = (there.files, there.so_far);
                false
            }
            Some(_) | None => true,
        },
        None => {
            take_name(store, &mut state, ext, &note).await?;
            false
        }
    };
    if is_finished {
        state.files = files_of(&state, &left, &left.steps, &[]);
        let transfer = Transfer::new(store.clone(), state, note);
        let mut files = Vec::new();
        for (n, here) in left.files.iter().enumerate() {
            if ours(&transfer, n).await?.is_none() {
                break;
            }
            let there = look(&transfer, n).await?;
            let (length, plays) = (length_of(&here.path)?, here.duration.unwrap_or_default().0);
            let longer = match there.duration {
                Some(there) => plays.saturating_sub(there.0),
                // Of what is rendered the size must do.
                None => (plays as f64 * (1.0 - there.bytes as f64 / length.max(1) as f64)) as u64,
            };
            let is_unknown = plays == 0;
            if there.bytes < length && (longer > left.may_lack.0 || is_unknown) {
                break;
            }
            files.push(there);
        }
        if files.len() == left.files.len() {
            return Ok(Adopted { transfer, files });
        }
        // What this machine recorded after it had lost the lease is nowhere else.
        tracing::warn!("another machine finished it with less than what is here, which becomes a recording of its own");
        let (old, note) = transfer.into_parts();
        state = LiveState { owner: ulid::Ulid::new().to_string(), stem: wanted.to_owned(), files: Vec::new(), ..old };
        take_name(store, &mut state, ext, &note).await?;
        return finish_files(store, state, &left, &[], note).await;
    }
    finish_files(store, state, &left, &left.steps, note).await
}

/// Takes the first free name.
async fn take_name(store: &Store, state: &mut LiveState, ext: &str, note: &impl Fn(Step)) -> Result<(), UploadError> {
    lease::reserve(store, state, ext).await?;
    note(Step::Reserved { stem: state.stem.clone(), owner: state.owner.clone() });
    Ok(())
}

/// The files on their way, as the journal has them; what the store's own state says beside is taken over.
fn files_of(state: &LiveState, left: &Left, steps: &[Step], there: &[FileState]) -> Vec<FileState> {
    let file = |LeftFile { file, what, .. }: &LeftFile| {
        let key = format!("{}{}.{}", state.stem, what.suffix, what.ext);
        let mut fresh = FileState::new(*file, what.clone(), key);
        if let Some(there) = there.iter().find(|there| there.file == *file) {
            (fresh.tails, fresh.head) = (there.tails.clone(), there.head.clone());
        }
        // What is rendered was made again.
        if what.rendered.is_none() {
            known(*file, steps, &mut fresh);
        }
        fresh
    };
    left.files.iter().map(file).collect()
}

async fn finish_files(
    store: &Store,
    mut state: LiveState,
    left: &Left,
    steps: &[Step],
    note: impl Fn(Step) + Send + Sync + 'static,
) -> Result<Adopted, UploadError> {
    state.files = files_of(&state, left, steps, &state.files);
    let mut transfer = Transfer::new(store.clone(), state, note);
    for (key, upload) in given_up(left, steps) {
        if let Err(error) = store.abort(&key, &upload).await {
            tracing::warn!(%error, "parts of an upload are left behind");
        }
    }
    let mut files = Vec::new();
    for (n, LeftFile { path, duration, .. }) in left.files.iter().enumerate() {
        let (known, len) = (transfer.state.clone(), length_of(path)?);
        lease::keep(store, &known, transfer.complete(n, &Source::File(path.clone()), len)).await?;
        lease::renew(store, &transfer.state).await?;
        let file = look(&transfer, n).await?;
        files.push(AdoptedFile { duration: file.duration.or(*duration), ..file });
    }
    Ok(Adopted { transfer, files })
}

/// Uploads that an earlier process began and nobody goes on with: of what was rendered again, and of what only served that.
fn given_up(left: &Left, steps: &[Step]) -> Vec<(String, UploadId)> {
    let goes_on = |of: FileId| left.files.iter().any(|left| left.file == of && left.what.rendered.is_none());
    let begun = steps.iter().filter_map(|step| match step {
        Step::Begun { file, key, upload_id } if !goes_on(*file) => {
            Some((key.clone(), serde_json::from_str(upload_id).ok()?))
        }
        _ => None,
    });
    begun.collect()
}

fn length_of(path: &std::path::Path) -> Result<u64, UploadError> {
    Ok(std::fs::metadata(path).map_err(UploadError::Spool)?.len())
}

/// The size of the object where a file's is to be, if it is this recording's.
async fn ours(transfer: &Transfer, n: usize) -> Result<Option<u64>, UploadError> {
    let found = transfer.store.head(&transfer.state.files[n].key).await?;
    let is_ours = |found: &ObjectInfo| found.metadata.get(RECORDING_ID) == Some(&transfer.state.recording_id);
    Ok(found.filter(is_ours).map(|found| found.size))
}

impl Adopted {
    /// The recording's id.
    pub fn recording_id(&self) -> &str {
        &self.transfer.state.recording_id
    }

    /// The manifest as its recorder knew it last.
    pub fn so_far(&self) -> Option<&Value> {
        self.transfer.state.so_far.as_ref()
    }

    /// What an object that tells about the recording says, where somebody has written it before.
    ///
    /// # Errors
    /// What the store says.
    pub async fn told(&self, ext: &str) -> Result<Option<Bytes>, UploadError> {
        match self.transfer.store.get(&format!("{}.{ext}", self.transfer.state.stem), None).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The files.
    pub fn files(&self) -> &[AdoptedFile] {
        &self.files
    }

    /// Writes an object that tells about the recording; gives where it is.
    ///
    /// # Errors
    /// What the store says.
    pub async fn put_beside(&self, ext: &str, bytes: Bytes) -> Result<String, UploadError> {
        let key = format!("{}.{ext}", self.transfer.state.stem);
        self.transfer.put_beside(&key, ext, bytes).await?;
        Ok(self.transfer.store.location(&key))
    }

    /// Everything is in its place: removes what only served to get it there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn close(mut self) -> Result<(), UploadError> {
        let Transfer { store, state, .. } = &mut self.transfer;
        let only_served = |file: &&FileState| file.what.is_source_only && file.stored.is_some();
        let told_of = |file: &&FileState| self.files.iter().any(|told| told.key == file.key);
        let keys: Vec<String> =
            state.files.iter().filter(only_served).filter(|file| !told_of(file)).map(|file| file.key.clone()).collect();
        if let Err(error) = store.delete(&keys).await {
            tracing::warn!(%error, "a stream that only served to make others stays");
        }
        clear(store, state).await
    }
}

/// What of a file is in no part: its tails, as far as they are whole pages, and an end.
async fn rest_of(transfer: &Transfer, n: usize) -> Result<Bytes, UploadError> {
    let file = &transfer.state.files[n];
    let confirmed = file.confirmed();
    let Some(first) = file.tails.first() else { return Ok(Bytes::new()) };
    let mut bytes = BytesMut::new();
    for tail in &file.tails {
        let object = transfer.store.get(&transfer.state.tail_key(file.file, *tail), None).await?;
        // A recorder that was started again writes its first tail over that of the one before it, longer.
        let gap = tail.offset != first.offset + bytes.len() as u64 || (object.len() as u64) < tail.len;
        if gap {
            tracing::warn!(offset = tail.offset, "a tail object that does not follow the one before it");
            break;
        }
        bytes.extend_from_slice(&object[..usize::try_from(tail.len).unwrap_or(usize::MAX).min(object.len())]);
    }
    let Some(behind) = confirmed.checked_sub(first.offset).and_then(|behind| usize::try_from(behind).ok()) else {
        let why = format!("nothing is there from {confirmed} to {}", first.offset);
        return Err(UploadError::State(transfer.state.key(), why));
    };
    if let Some(stream) = file.what.stream() {
        end_stream(&mut bytes, stream, &file.head);
    }
    let behind = behind.min(bytes.len());
    Ok(bytes.freeze().split_off(behind))
}

/// Cuts pages or segments back to the last whole one and ends the stream after it, as far as what is known of it allows
/// that.
fn end_stream(bytes: &mut BytesMut, stream: Stream<'_>, head: &str) {
    let mut units = stream.units();
    units.push(bytes);
    let (mut whole, mut ended) = (0, false);
    while let Some(unit) = units.next_unit() {
        (whole, ended) = (unit.end, unit.last);
    }
    bytes.truncate(usize::try_from(whole).unwrap_or(0));
    let head = hex::decode(head).and_then(|unit| stream.head_of(&unit));
    if let (false, Some(head), Some(state)) = (ended, head, stream.state_after(bytes)) {
        match stream.closing(head, state) {
            Ok(page) => bytes.extend_from_slice(&page),
            Err(error) => tracing::warn!(%error, "the stream has no end mark, which players take"),
        }
    }
}

/// Reads an object back and says what is in it.
async fn look(transfer: &Transfer, n: usize) -> Result<AdoptedFile, UploadError> {
    let FileState { key, what, .. } = &transfer.state.files[n];
    let (mut surveyor, mut hash, mut at) = (what.stream().map(Stream::surveyor), Sha256::new(), 0);
    loop {
        let block = transfer.store.get(key, Some(at..at + BLOCK)).await?;
        if let Some(surveyor) = &mut surveyor {
            surveyor.push(&block);
        }
        hash.update(&block);
        at += block.len() as u64;
        if (block.len() as u64) < BLOCK {
            break;
        }
    }
    Ok(AdoptedFile {
        what: what.clone(),
        key: key.clone(),
        location: transfer.store.location(key),
        bytes: at,
        sha256: hex::encode(hash.finalize()),
        duration: surveyor.map(|surveyor| surveyor.finish().duration),
    })
}
