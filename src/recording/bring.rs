//! Recordings that others left, brought into their store: from a spool, or from the bucket alone.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use crate::config::Config;
use crate::egress::{EgressClient, EgressError};
use crate::spool::recover::{Orphan, RecoveredFile};
use crate::spool::{Entry, FileError, Upload as Step};
use crate::store::Store;
use crate::time::SampleCount;
use crate::upload::{self, Adopted, AdoptedFile, Found, Left, LeftFile, UploadError};

use super::handle::{OutputResult, RecordingResult, State};
use super::left_egress::{LeftEgress, add_egresses};
use super::manifest::{Manifest, OutputEntry};
use super::outcome::{Outcome, Reason};
use super::recover::{Ended, Pending, Recovered, interrupted, name, recover};

/// What a process that died may not have brought up yet, unless its tails are far apart: 10 s.
const MAY_LACK: SampleCount = SampleCount::from_millis(10_000);

/// How long the first and the longest wait are before an egress is told to stop again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// How long a recording that begins waits for one of its own to be told to stop.
const HALTS_WITHIN: Duration = Duration::from_secs(10);

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
    /// What the LiveKit server said of an egress that may run.
    #[error(transparent)]
    Egress(#[from] EgressError),
}

/// Ends the recordings in the directory `spool` whose process died, but not the one of id `except`, and brings those that
/// belong there into `store`.
/// Those that died only just now are left to processes that may go on with them, and looked for again after a while.
/// Egresses that may run of them are stopped, where they are at the server of `config`.
pub(super) async fn bring_others(config: Config, store: Option<Store>) {
    let (except, grace) = (config.recording_id.clone(), config.grace);
    bring_those_at_rest(&config, Some(except), store.as_ref()).await;
    tokio::time::sleep(grace).await;
    // By now this recording has begun, or goes on with its own.
    let mut wait = AGAIN.0;
    while bring_those_at_rest(&config, None, store.as_ref()).await {
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Gives whether an egress may run that could not be stopped now, and may be another time.
async fn bring_those_at_rest(config: &Config, except: Option<String>, store: Option<&Store>) -> bool {
    let (spool, grace) = (config.spool_dir(), config.grace);
    let looking = spool.clone();
    let looked = tokio::task::spawn_blocking(move || recover(&looking, except.as_slice(), grace)).await;
    let all = match looked.map_err(std::io::Error::other).flatten() {
        Ok(all) => all,
        Err(error) => {
            tracing::error!(%error, spool = %spool.display(), "cannot look for interrupted recordings");
            return false;
        }
    };
    tracing::debug!(found = all.len(), "looked for interrupted recordings");
    let mut may_run = false;
    for one in all {
        if let Err(error) = bring(config, one, store).await {
            tracing::error!(%error, "cannot recover");
            may_run |= matches!(error, RecoverError::Egress(_));
        }
    }
    may_run
}

async fn bring(config: &Config, one: Result<Recovered, FileError>, store: Option<&Store>) -> Result<(), RecoverError> {
    let one = match one? {
        Recovered::EgressPending(left) if left.is_at(&config.url) => {
            left.stop(&EgressClient::new(&config.url, &config.credentials)).await?
        }
        one => one,
    };
    match (one, store) {
        (Recovered::UploadPending(pending), Some(store)) if pending.is_for(store) => {
            pending.upload(store).await.map(|_| ())
        }
        (Recovered::EgressPending(left), _) => {
            tracing::error!(id = left.recording_id(), server = left.server(), "an egress may run at another server");
            Ok(())
        }
        (Recovered::UploadPending(_) | Recovered::Done(_), _) => Ok(()),
    }
}

/// Tells the egress to stop that an earlier process of this recording may have left running, so that the bot goes on alone.
/// Where that fails it is tried on beside the recording. What became of it is left to [`bring_others`].
pub(super) async fn stop_left_egress(config: &Config) {
    if let Ok(true) = tokio::time::timeout(HALTS_WITHIN, halt_left_egress(config)).await {
        return;
    }
    let config = config.clone();
    tokio::spawn(async move {
        let mut wait = AGAIN.0;
        while !halt_left_egress(&config).await {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(AGAIN.1);
        }
    });
}

/// Gives whether there is nothing left that this process could tell to stop.
async fn halt_left_egress(config: &Config) -> bool {
    let (spool, id) = (config.spool_dir(), config.recording_id.clone());
    let found = tokio::task::spawn_blocking(move || Orphan::of(&spool, &id)).await;
    let Ok(Ok(Some(orphan))) = found else { return true };
    let Some(running) = orphan.history().running_egress() else { return true };
    let left = LeftEgress::new(orphan, running);
    if !left.is_at(&config.url) {
        tracing::error!(server = left.server(), "an egress may run at another server");
        return true;
    }
    let halted = left.halt(&EgressClient::new(&config.url, &config.credentials)).await;
    let told = halted.inspect_err(|error| {
        tracing::error!(%error, "an egress may run that an earlier process of this recording started");
    });
    told.is_ok()
}

impl Pending {
    /// The recording's id.
    pub fn recording_id(&self) -> &str {
        &self.orphan.started().recording_id
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
        let Self { orphan, files, manifest: (_, mut manifest), .. } = self;
        let egresses: Vec<_> = orphan.history().ended_egresses().cloned().collect();
        let streams = files.iter().filter(|file| file.duration.is_some());
        let left = Left {
            recording_id: orphan.started().recording_id.clone(),
            key: orphan.started().name.clone(),
            files: streams.map(left_file).collect(),
            may_lack: if is_interrupted(&manifest) { MAY_LACK } else { SampleCount::ZERO },
            steps: orphan.history().uploads.clone(),
        };
        let (steps, orphan) = write_steps(orphan);
        let adopted = upload::finish(store, left, move |step| {
            // A writer that is gone shows at the end.
            let _ = steps.send(step);
        })
        .await?;
        if let Some(told) = adopted.told("json").await? {
            let known = serde_json::from_slice(&told).ok();
            let known = known.filter(|known: &Manifest| known.recording_id == manifest.recording_id);
            if let Some(mut known) = known {
                add_egresses(&mut known, egresses.iter());
                tracing::info!("it is told of there already");
                let result = tell(adopted, known).await?;
                orphan.done().await?;
                return Ok(result);
            }
        }
        manifest.reasons.retain(|reason| !matches!(reason, Reason::Upload { .. }));
        if manifest.reasons.is_empty() && manifest.outcome == Outcome::Degraded {
            manifest.outcome = Outcome::Complete;
        }
        for entry in &mut manifest.outputs {
            let is_it = |file: &&AdoptedFile| {
                file.what.kind == entry.kind.as_str()
                    && file.what.participant == entry.participant
                    && file.what.format() == entry.format
            };
            if let Some(file) = adopted.files().iter().find(is_it) {
                entry.file = name(Path::new(&file.key));
                (entry.bytes, entry.sha256) = (file.bytes, file.sha256.clone());
            }
        }
        for file in files.iter().filter(|file| file.duration.is_none()) {
            let failed = |error| FileError::new("cannot read", &file.file.path, error);
            let bytes = tokio::fs::read(&file.file.path).await.map_err(failed)?;
            let location = adopted.put_beside(&file.made.what.ext, bytes.into()).await?;
            for sidecar in manifest.sidecars.iter_mut().filter(|sidecar| sidecar.file == name(&file.file.path)) {
                sidecar.file = name(Path::new(&location));
            }
        }
        let result = tell(adopted, manifest).await?;
        orphan.done().await?;
        tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
        Ok(result)
    }
}

fn left_file(file: &RecoveredFile) -> LeftFile {
    let RecoveredFile { made, file, duration } = file;
    LeftFile { file: made.file, what: made.what.clone(), path: file.path.clone(), duration: *duration }
}

fn is_interrupted(manifest: &Manifest) -> bool {
    manifest.reasons.iter().any(|reason| matches!(reason, Reason::Interrupted { .. }))
}

/// A journal that a thread of its own writes, as the disk may be slow.
struct Written(tokio::task::JoinHandle<Orphan>);

/// Has the steps that are sent written into the journal of `orphan`.
fn write_steps(mut orphan: Orphan) -> (mpsc::Sender<Step>, Written) {
    let (steps, inbox) = mpsc::channel();
    let task = tokio::task::spawn_blocking(move || {
        for step in inbox {
            if let Err(error) = orphan.append(Entry::Upload(step)) {
                tracing::warn!(%error, "a step of an upload is not in the journal");
            }
        }
        orphan
    });
    (steps, Written(task))
}

impl Written {
    /// Everything is where it belongs, and nobody sends steps any more.
    async fn done(self) -> Result<(), FileError> {
        let orphan = self.0.await;
        let done = tokio::task::spawn_blocking(move || orphan.map(Orphan::done)).await;
        // Both fail only where they panic.
        done.and_then(|done| done).unwrap_or_else(|error| {
            Err(FileError::new("cannot let go of", Path::new("the journal"), std::io::Error::other(error)))
        })
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
        results.extend(recover_found(store, &found).await.transpose());
    }
    Ok(results)
}

/// Finishes from `store` alone what was found there. None where its recorder goes on with it, as its lease tells, or somebody
/// else finishes it.
///
/// # Errors
/// What the store says; it can be tried again.
pub async fn recover_found(store: &Store, found: &Found) -> Result<Option<RecordingResult>, UploadError> {
    match upload::adopt(store, &found.key).await? {
        Some(adopted) => tell_adopted(adopted).await.map(Some),
        None => {
            tracing::info!(id = found.recording_id, "goes on, or is finished by somebody else");
            Ok(None)
        }
    }
}

async fn tell_adopted(adopted: Adopted) -> Result<RecordingResult, UploadError> {
    if let Some(told) = adopted.told("json").await?
        && let Ok(manifest) = serde_json::from_slice::<Manifest>(&told)
        && manifest.recording_id == adopted.recording_id()
    {
        return tell(adopted, manifest).await;
    }
    let ended: Vec<Ended<'_>> = adopted.files().iter().map(Ended::from).collect();
    let manifest = adopted.so_far().cloned().and_then(|so_far| interrupted(so_far, None, &ended));
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
