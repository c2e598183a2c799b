//! Recordings whose process died: their files are ended, and a manifest says what is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::config::OutputKind;
use crate::spool::recover::{Orphan, RecoveredFile, orphans};
use crate::spool::{FileError, Place};
use crate::time::{MediaTime, SampleCount};

use super::handle::{OutputResult, RecordingResult, State};
use super::manifest::{Manifest, OutputEntry, SidecarEntry};
use super::outcome::{Outcome, Reason};
use super::sinks::EXT;

/// Held while this process looks for orphans.
static RECOVERING: Mutex<()> = Mutex::new(());

/// What became of one orphan.
#[derive(Clone, Debug, PartialEq)]
pub enum Recovered {
    /// Everything is where it belongs.
    Done(RecordingResult),
    /// The files are whole and wait in the spool for their store.
    UploadPending {
        /// The recording's id.
        recording_id: String,
        /// The store, without secrets.
        store: String,
    },
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
        let (recording_id, store) = (orphan.started().recording_id.clone(), store.clone());
        tracing::warn!(id = recording_id, store, "upload pending");
        return Ok(Recovered::UploadPending { recording_id, store });
    }
    let result = result(&orphan, path.map(|path| (path, manifest)), &files);
    tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
    orphan.done()?;
    Ok(Recovered::Done(result))
}

/// The manifest of a recording that was interrupted; none where nothing was recorded.
fn manifest_of(orphan: &Orphan, files: &[RecoveredFile]) -> Option<Manifest> {
    let streams: Vec<_> = files.iter().filter_map(|file| Some((file, file.duration?))).collect();
    let so_far = orphan.history().so_far.clone()?;
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
    manifest.outcome = if samples == SampleCount::ZERO { Outcome::Empty } else { Outcome::Degraded };
    Some(manifest)
}

fn entry(so_far: &[OutputEntry], recovered: &RecoveredFile, duration: SampleCount) -> Option<OutputEntry> {
    let RecoveredFile { made, file, .. } = recovered;
    let kind: OutputKind = made.what.kind.parse().ok()?;
    let is_it = |entry: &&OutputEntry| entry.kind == kind && entry.participant == made.what.participant;
    let known = so_far.iter().find(is_it).cloned();
    Some(OutputEntry {
        kind,
        participant: made.what.participant.clone(),
        left: known.as_ref().map(|entry| entry.left.clone()).unwrap_or_default(),
        right: known.as_ref().map(|entry| entry.right.clone()).unwrap_or_default(),
        file: name(&file.path),
        format: EXT.into(),
        duration_seconds: (MediaTime::ZERO + duration).as_secs_f64(),
        bytes: file.bytes,
        sha256: file.sha256.clone(),
        streams: known.map(|entry| entry.streams).unwrap_or_default(),
    })
}

fn sidecar(recovered: &RecoveredFile) -> Option<SidecarEntry> {
    let RecoveredFile { made, file, .. } = recovered;
    let kind = made.what.kind.parse().ok()?;
    Some(SidecarEntry { kind, file: name(&file.path), bytes: file.bytes, sha256: file.sha256.clone() })
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
