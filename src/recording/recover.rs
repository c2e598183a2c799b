//! Recordings whose process died: their files are ended, and a manifest says what is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::config::OutputKind;
use crate::spool::recover::{Orphan, RecoveredFile, orphans};
use crate::spool::{Entry, FileError, NewFile, Place};
use crate::store::Store;
use crate::time::{MediaTime, SampleCount};
use crate::upload::{self, Adopted, AdoptedFile, Left, UploadError};

use super::handle::{OutputResult, RecordingResult, State};
use super::manifest::{Manifest, OutputEntry, SidecarEntry};
use super::outcome::{Outcome, Reason};
use super::sinks::EXT;

/// Held while this process looks for orphans.
static RECOVERING: Mutex<()> = Mutex::new(());

/// What became of one orphan.
#[derive(Debug)]
pub enum Recovered {
    /// Everything is where it belongs.
    Done(RecordingResult),
    /// The files are whole and wait in the spool for their store.
    UploadPending(Pending),
}

/// A recording whose files are whole and wait in the spool for their store. As long as this is held, nobody else takes it.
#[derive(Debug)]
pub struct Pending {
    orphan: Orphan,
    files: Vec<RecoveredFile>,
    manifest: Manifest,
    store: String,
}

/// Why a recording could not be brought into its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecoverError {
    /// What the disk said.
    #[error(transparent)]
    File(#[from] FileError),
    /// What the store said.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

/// Ends every recording in the directory `spool` whose process died; not the one of id `except`. Those that go on are left
/// alone. Waits for the disk.
///
/// # Errors
/// Where the directory cannot be read. A recording that cannot be ended stays as it is, and its error is among the results.
pub fn recover(spool: &Path, except: Option<&str>) -> io::Result<Vec<Result<Recovered, FileError>>> {
    // Nothing is left half done by a panic that the next look does not find.
    let _at_it = RECOVERING.lock().unwrap_or_else(PoisonError::into_inner);
    let found = orphans(spool, except)?;
    Ok(found.into_iter().map(|orphan| orphan.and_then(recover_one)).collect())
}

/// Ends what an earlier process left of the recording of this id, so that it can be begun anew.
///
/// # Errors
/// What the disk says.
pub(super) fn make_way(spool: &Path, recording_id: &str) -> Result<(), FileError> {
    let mut orphan = Orphan::of(spool, recording_id)?;
    if orphan.is_none() {
        // This process may be at it.
        let _at_it = RECOVERING.lock().unwrap_or_else(PoisonError::into_inner);
        orphan = Orphan::of(spool, recording_id)?;
    }
    orphan.map_or(Ok(()), |orphan| recover_one(orphan).map(|_| ()))
}

/// Ends one recording whose process died.
///
/// # Errors
/// What the disk says; it can be tried again.
pub fn recover_one(mut orphan: Orphan) -> Result<Recovered, FileError> {
    let files = orphan.finish_files()?;
    let (path, manifest) = match orphan.manifest()? {
        Some((path, json)) => match serde_json::from_slice::<Manifest>(&json) {
            Ok(manifest) => (Some(path), manifest),
            Err(error) => return Err(FileError::new("cannot read", &path, error.into())),
        },
        None => match manifest_of(&orphan, &files) {
            Some(manifest) => {
                let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
                (Some(orphan.write_manifest(&json)?), manifest)
            }
            None => {
                let result = result(&orphan, None, &files);
                orphan.done()?;
                return Ok(Recovered::Done(result));
            }
        },
    };
    if let Place::Store(store) = &orphan.started().place {
        let store = store.clone();
        tracing::info!(id = orphan.started().recording_id, store, "waits for its upload");
        return Ok(Recovered::UploadPending(Pending { orphan, files, manifest, store }));
    }
    let result = result(&orphan, path.map(|path| (path, manifest)), &files);
    tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
    orphan.done()?;
    Ok(Recovered::Done(result))
}

/// The manifest of a recording that was interrupted; none where nothing was recorded.
fn manifest_of(orphan: &Orphan, files: &[RecoveredFile]) -> Option<Manifest> {
    let ended: Vec<Ended<'_>> = files.iter().map(Ended::from).collect();
    interrupted(orphan.history().so_far.clone()?, &ended)
}

/// A file of a recording that was interrupted.
struct Ended<'a> {
    what: &'a NewFile,
    name: String,
    bytes: u64,
    sha256: &'a str,
    duration: Option<SampleCount>,
}

impl<'a> From<&'a RecoveredFile> for Ended<'a> {
    fn from(file: &'a RecoveredFile) -> Self {
        let RecoveredFile { made, file, duration } = file;
        let name = name(&file.path);
        Self { what: &made.what, name, bytes: file.bytes, sha256: &file.sha256, duration: *duration }
    }
}

impl<'a> From<&'a AdoptedFile> for Ended<'a> {
    fn from(file: &'a AdoptedFile) -> Self {
        let AdoptedFile { what, key, bytes, sha256, duration, .. } = file;
        Self { what, name: name(Path::new(key)), bytes: *bytes, sha256, duration: *duration }
    }
}

/// The manifest of a recording of which `so_far` was known, and which has these files; none where nothing was recorded.
fn interrupted(so_far: Value, files: &[Ended<'_>]) -> Option<Manifest> {
    let streams: Vec<_> = files.iter().filter_map(|file| Some((file, file.duration?))).collect();
    // A journal of another version, or a damaged line: the files speak for themselves.
    let mut manifest: Manifest = serde_json::from_value(so_far).ok()?;
    let samples = streams.iter().map(|(_, duration)| *duration).max()?;
    manifest.reasons.push(Reason::Interrupted { accounted_seconds: manifest.samples.min(samples).as_secs_f64() });
    manifest.outputs =
        streams.iter().filter_map(|(file, duration)| entry(&manifest.outputs, file, *duration)).collect();
    manifest.sidecars = files.iter().filter_map(sidecar).collect();
    manifest.samples = samples;
    manifest.duration_seconds = samples.as_secs_f64();
    manifest.ended_at = manifest.started_at + samples.as_duration();
    manifest.outcome = if samples == SampleCount::ZERO { Outcome::Failed } else { Outcome::Degraded };
    Some(manifest)
}

fn entry(so_far: &[OutputEntry], ended: &Ended<'_>, duration: SampleCount) -> Option<OutputEntry> {
    let kind: OutputKind = ended.what.kind.parse().ok()?;
    let is_it = |entry: &&OutputEntry| entry.kind == kind && entry.participant == ended.what.participant;
    let known = so_far.iter().find(is_it).cloned();
    Some(OutputEntry {
        kind,
        participant: ended.what.participant.clone(),
        left: known.as_ref().map(|entry| entry.left.clone()).unwrap_or_default(),
        right: known.as_ref().map(|entry| entry.right.clone()).unwrap_or_default(),
        file: ended.name.clone(),
        format: EXT.into(),
        duration_seconds: (MediaTime::ZERO + duration).as_secs_f64(),
        bytes: ended.bytes,
        sha256: ended.sha256.to_owned(),
        streams: known.map(|entry| entry.streams).unwrap_or_default(),
    })
}

fn sidecar(ended: &Ended<'_>) -> Option<SidecarEntry> {
    let kind = ended.what.kind.parse().ok()?;
    Some(SidecarEntry { kind, file: ended.name.clone(), bytes: ended.bytes, sha256: ended.sha256.to_owned() })
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn result(orphan: &Orphan, manifest: Option<(PathBuf, Manifest)>, files: &[RecoveredFile]) -> RecordingResult {
    let recording_id = orphan.started().recording_id.clone();
    let Some((path, manifest)) = manifest else {
        return RecordingResult::failed(&recording_id, Reason::Interrupted { accounted_seconds: 0.0 });
    };
    let location = |entry: &OutputEntry| {
        let found = files.iter().find(|file| name(&file.file.path) == entry.file);
        found.map_or_else(|| path.with_file_name(&entry.file), |file| file.file.path.clone()).display().to_string()
    };
    let outputs = manifest.outputs.iter().map(|entry| OutputResult::new(entry, location(entry))).collect();
    RecordingResult {
        recording_id,
        status: if manifest.outcome == Outcome::Failed { State::Failed } else { State::Ready },
        outcome: manifest.outcome,
        reasons: manifest.reasons,
        stopped_by: Some(manifest.stopped_by),
        outputs,
        manifest: Some(path.display().to_string()),
    }
}

impl Pending {
    /// The recording's id.
    pub fn recording_id(&self) -> &str {
        &self.orphan.started().recording_id
    }

    /// The store where it belongs, without secrets.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Whether that is this one.
    pub fn is_for(&self, store: &Store) -> bool {
        store.to_string() == self.store
    }

    /// Brings the recording into its store.
    ///
    /// # Errors
    /// What the store or the disk says; it can be tried again.
    pub async fn upload(self, store: &Store) -> Result<RecordingResult, RecoverError> {
        let Self { orphan, files, mut manifest, .. } = self;
        let streams = files.iter().filter(|file| file.duration.is_some());
        let left = Left {
            recording_id: orphan.started().recording_id.clone(),
            key: orphan.started().name.clone(),
            files: streams.map(|file| (file.made.file, file.made.what.clone(), file.file.path.clone())).collect(),
            steps: orphan.history().uploads.clone(),
        };
        let orphan = Arc::new(Mutex::new(Some(orphan)));
        let journal = orphan.clone();
        let adopted = upload::finish(store, left, move |step| {
            // Nothing panics while it is held.
            if let Some(orphan) = journal.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
                && let Err(error) = orphan.append(Entry::Upload(step))
            {
                tracing::warn!(%error, "a step of an upload is not in the journal");
            }
        })
        .await?;
        manifest.reasons.retain(|reason| !matches!(reason, Reason::Upload { .. }));
        if manifest.reasons.is_empty() && manifest.outcome == Outcome::Degraded {
            manifest.outcome = Outcome::Complete;
        }
        for entry in &mut manifest.outputs {
            let is_it = |file: &&AdoptedFile| {
                file.what.kind == entry.kind.as_str() && file.what.participant == entry.participant
            };
            if let Some(file) = adopted.files().iter().find(is_it) {
                entry.file = name(Path::new(&file.key));
                (entry.bytes, entry.sha256) = (file.bytes, file.sha256.clone());
            }
        }
        for file in files.iter().filter(|file| file.duration.is_none()) {
            let failed = |error| FileError::new("cannot read", &file.file.path, error);
            let bytes = std::fs::read(&file.file.path).map_err(failed)?;
            let location = adopted.put_beside(&file.made.what.ext, bytes.into()).await?;
            for sidecar in manifest.sidecars.iter_mut().filter(|sidecar| sidecar.file == name(&file.file.path)) {
                sidecar.file = name(Path::new(&location));
            }
        }
        let result = tell(adopted, manifest).await?;
        let orphan = orphan.lock().unwrap_or_else(PoisonError::into_inner).take();
        orphan.map_or(Ok(()), Orphan::done)?;
        tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
        Ok(result)
    }
}

/// Finishes from `store` alone what recorders below `prefix` have left there and do not go on with, as their leases tell.
///
/// # Errors
/// Where the store cannot be listed. A recording that cannot be finished stays as it is, and its error is among the
/// results.
pub async fn recover_from_store(
    store: &Store,
    prefix: &str,
) -> Result<Vec<Result<RecordingResult, UploadError>>, UploadError> {
    let mut results = Vec::new();
    for found in upload::find(store, prefix).await? {
        match upload::adopt(store, &found.key).await {
            Ok(Some(adopted)) => results.push(tell_adopted(adopted).await),
            Ok(None) => tracing::info!(id = found.recording_id, "goes on, or is finished by somebody else"),
            Err(error) => results.push(Err(error)),
        }
    }
    Ok(results)
}

async fn tell_adopted(adopted: Adopted) -> Result<RecordingResult, UploadError> {
    let ended: Vec<Ended<'_>> = adopted.files().iter().map(Ended::from).collect();
    let manifest = adopted.so_far().cloned().and_then(|so_far| interrupted(so_far, &ended));
    match manifest {
        Some(manifest) => tell(adopted, manifest).await,
        None => {
            let reason = Reason::Interrupted { accounted_seconds: 0.0 };
            let result = RecordingResult::failed(adopted.recording_id(), reason);
            adopted.close().await?;
            Ok(result)
        }
    }
}

/// Writes the manifest into the store, and ends the way there.
async fn tell(adopted: Adopted, manifest: Manifest) -> Result<RecordingResult, UploadError> {
    let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
    let path = adopted.put_beside("json", json.into()).await?;
    let location = |entry: &OutputEntry| {
        let found = adopted.files().iter().find(|file| name(Path::new(&file.key)) == entry.file);
        found.map_or_else(|| entry.file.clone(), |file| file.location.clone())
    };
    let outputs = manifest.outputs.iter().map(|entry| OutputResult::new(entry, location(entry))).collect();
    adopted.close().await?;
    Ok(RecordingResult {
        recording_id: manifest.recording_id,
        status: if manifest.outcome == Outcome::Failed { State::Failed } else { State::Ready },
        outcome: manifest.outcome,
        reasons: manifest.reasons,
        stopped_by: Some(manifest.stopped_by),
        outputs,
        manifest: Some(path),
    })
}
