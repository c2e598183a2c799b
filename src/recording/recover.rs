//! Recordings whose process died: their files are ended, and a manifest says what is known.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use crate::config::OutputKind;
use crate::spool::recover::{Orphan, RecoveredFile, orphans};
use crate::spool::{FileError, NewFile, Place};
use crate::time::{MediaTime, SampleCount};
use crate::upload::AdoptedFile;

use super::cuts::Cuts;
use super::handle::{OutputResult, RecordingResult, State};
use super::left_egress::{LeftEgress, add_egresses, of_egress_alone};
use super::life::LifeSoFar;
use super::manifest::{EncryptionEntry, Manifest, OutputEntry, SidecarEntry};
use super::outcome::{Outcome, Reason};

/// Held while this process looks for orphans.
static RECOVERING: Mutex<()> = Mutex::new(());

/// What became of one orphan.
#[derive(Debug)]
pub enum Recovered {
    /// Everything is where it belongs.
    Done(RecordingResult),
    /// The files are whole and wait in the spool for their store.
    UploadPending(Box<Pending>),
    /// An egress may run, and has to be stopped first.
    EgressPending(Box<LeftEgress>),
}

impl Recovered {
    /// Of which recording.
    pub fn recording_id(&self) -> &str {
        match self {
            Self::Done(result) => &result.recording_id,
            Self::UploadPending(pending) => &pending.orphan.started().recording_id,
            Self::EgressPending(left) => left.recording_id(),
        }
    }
}

/// A recording that is whole in the spool. Who brings it to its store ends it with [`Orphan::done`]; dropped, it waits for
/// the next one.
#[derive(Debug)]
pub struct Pending {
    /// The recording, still locked.
    pub orphan: Orphan,
    /// Its files.
    pub files: Vec<RecoveredFile>,
    /// Where its manifest is, and what that says.
    pub manifest: (PathBuf, Manifest),
    /// The store, without secrets.
    pub store: String,
}

/// Ends every recording in the directory `spool` whose process died; not those whose ids are `except`, nor one that this process
/// or another may be about to go on with, because its last words are not `at_rest` old. Waits for the disk.
///
/// # Errors
/// Where the directory cannot be read. A recording that cannot be ended stays as it is, and its error is among the results.
pub fn recover(spool: &Path, except: &[String], at_rest: Duration) -> io::Result<Vec<Result<Recovered, FileError>>> {
    // Nothing is left half done by a panic that the next look does not find.
    let _at_it = RECOVERING.lock().unwrap_or_else(PoisonError::into_inner);
    let found = orphans(spool, except, at_rest)?;
    Ok(found.into_iter().map(|orphan| orphan.and_then(recover_one)).collect())
}

/// Ends what an earlier process left of the recording of this id, so that it can be begun anew.
///
/// # Errors
/// What the disk says.
pub(super) fn make_way(spool: &Path, recording_id: &str) -> Result<(), FileError> {
    let mut orphan = Orphan::of(spool, recording_id)?;
    if orphan.is_none() && Orphan::is_there(spool, recording_id) {
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
    if let Some(running) = orphan.history().running_egress() {
        return Ok(Recovered::EgressPending(Box::new(LeftEgress::new(orphan, running))));
    }
    let files = orphan.finish_files()?;
    let (path, manifest) = match orphan.manifest()? {
        Some((path, json)) => match serde_json::from_slice::<Manifest>(&json) {
            Ok(mut manifest) => {
                add_egresses(&mut manifest, orphan.history().ended_egresses());
                (path, manifest)
            }
            Err(error) => return Err(FileError::new("cannot read", &path, error.into())),
        },
        None => match manifest_of(&orphan, &files) {
            Some(manifest) => {
                let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
                (orphan.write_manifest(&json)?, manifest)
            }
            None if files.iter().any(|file| file.duration.is_some()) => {
                let said_nothing = io::Error::new(io::ErrorKind::InvalidData, "its journal does not say what is in it");
                return Err(FileError::new("cannot write the manifest of", &files[0].file.path, said_nothing));
            }
            None => {
                let result = result(&orphan, None, &files);
                tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
                orphan.done()?;
                return Ok(Recovered::Done(result));
            }
        },
    };
    if let Place::Store(store) = &orphan.started().place {
        let store = store.clone();
        tracing::warn!(id = orphan.started().recording_id, store, "upload pending");
        return Ok(Recovered::UploadPending(Box::new(Pending { orphan, files, manifest: (path, manifest), store })));
    }
    let result = result(&orphan, Some((path, manifest)), &files);
    tracing::info!(id = result.recording_id, outcome = %result.outcome, "recovered");
    orphan.done()?;
    Ok(Recovered::Done(result))
}

/// The manifest of a recording that was interrupted; none where nothing was recorded.
fn manifest_of(orphan: &Orphan, files: &[RecoveredFile]) -> Option<Manifest> {
    let ended: Vec<Ended<'_>> = files.iter().map(Ended::from).collect();
    let history = orphan.history();
    let life = history.life.clone().and_then(|life| serde_json::from_value(life).ok());
    let Some(mut manifest) = interrupted(history.so_far.clone()?, life, &ended) else {
        return of_egress_alone(history.so_far.clone(), history.ended_egresses());
    };
    add_egresses(&mut manifest, history.ended_egresses());
    Some(manifest)
}

/// A file of a recording that was interrupted.
pub(super) struct Ended<'a> {
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

/// The manifest of a recording of which `so_far` was known, and which has these files; none where nothing was recorded. `life`
/// may be newer than that.
pub(super) fn interrupted(so_far: Value, life: Option<LifeSoFar>, files: &[Ended<'_>]) -> Option<Manifest> {
    let streams: Vec<_> = files.iter().filter_map(|file| Some((file, file.duration?))).collect();
    // A journal of another version, or a damaged line: the files speak for themselves.
    let mut manifest: Manifest = serde_json::from_value(so_far).ok()?;
    if let Some(life) = life {
        manifest.pauses = life.pauses;
        if !life.lacks_consent {
            manifest.reasons.retain(|reason| !matches!(reason, Reason::NoConsent { .. }));
        }
    }
    let longest = streams.iter().map(|(_, duration)| *duration).max()?;
    let samples = Cuts::of(&manifest.pauses).to_call(MediaTime::ZERO + longest).since(MediaTime::ZERO);
    manifest.reasons.push(Reason::Interrupted { accounted_seconds: manifest.samples.min(samples).as_secs_f64() });
    manifest.outputs =
        streams.iter().filter_map(|(file, duration)| entry(&manifest.outputs, file, *duration)).collect();
    manifest.sidecars = files.iter().filter_map(sidecar).collect();
    manifest.samples = samples;
    manifest.duration_seconds = samples.as_secs_f64();
    manifest.ended_at = manifest.started_at + samples.as_duration();
    let was_blocked = manifest.reasons.iter().any(|reason| matches!(reason, Reason::NoConsent { .. }));
    manifest.outcome = match longest {
        _ if was_blocked => Outcome::Blocked,
        SampleCount::ZERO => Outcome::Empty,
        _ => Outcome::Degraded,
    };
    Some(manifest)
}

fn entry(so_far: &[OutputEntry], ended: &Ended<'_>, duration: SampleCount) -> Option<OutputEntry> {
    let kind: OutputKind = ended.what.kind.parse().ok()?;
    // What is rendered of an output has in it what that has.
    let is_it = |entry: &&OutputEntry| entry.kind == kind && entry.participant == ended.what.participant;
    let known = so_far.iter().find(is_it).cloned();
    Some(OutputEntry {
        kind,
        participant: ended.what.participant.clone(),
        left: known.as_ref().map(|entry| entry.left.clone()).unwrap_or_default(),
        right: known.as_ref().map(|entry| entry.right.clone()).unwrap_or_default(),
        file: ended.name.clone(),
        format: ended.what.format().to_owned(),
        encryption: EncryptionEntry::of(&ended.what.recipients),
        duration_seconds: (MediaTime::ZERO + duration).as_secs_f64(),
        bytes: ended.bytes,
        sha256: ended.sha256.to_owned(),
        streams: known.map(|entry| entry.streams).unwrap_or_default(),
    })
}

fn sidecar(ended: &Ended<'_>) -> Option<SidecarEntry> {
    let kind = ended.what.kind.parse().ok()?;
    let encryption = EncryptionEntry::of(&ended.what.recipients);
    let (file, sha256) = (ended.name.clone(), ended.sha256.to_owned());
    Some(SidecarEntry { kind, file, bytes: ended.bytes, sha256, encryption })
}

pub(super) fn name(path: &Path) -> String {
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

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use tokio::sync::mpsc;

    use super::*;
    use crate::encode::{Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags, packet};
    use crate::spool::{
        Entry, FileEvent, JOURNAL_VERSION, Memory, NewFile, OGG, RecordingFiles, Reservation, SpoolFile, Started,
    };

    /// A recording that goes on, with a second in its file and a manifest so far that knows half of it.
    async fn begun(root: &Path, place: Place) -> (RecordingFiles, SpoolFile, mpsc::UnboundedReceiver<FileEvent>) {
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: "r1".into(),
            room: "room".into(),
            pid: 1,
            wall_zero: OffsetDateTime::UNIX_EPOCH,
            boot_zero: None,
            place,
            name: "calls/call.ogg".into(),
        };
        let (events, inbox) = mpsc::unbounded_channel();
        let reservation = Reservation { spool: root.join("spool"), started, memory: Memory::new(1 << 20) };
        let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
        let head = OpusHead::new(Mapping::Mono, 312);
        let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(9_600)).unwrap();
        let (mut silence, mut bytes) = (Vec::new(), Vec::new());
        packet::write_silence(960, false, &mut silence).unwrap();
        (0..50).for_each(|_| writer.write_packet(&silence, 960).unwrap());
        writer.close_page();
        writer.take_bytes(&mut bytes);
        let file = files.create(NewFile { kind: "mix".into(), ext: OGG.into(), ..NewFile::default() });
        files.append(file.id(), bytes);
        let mut manifest: Manifest = serde_json::from_str(include_str!("../../fuzz/seeds/manifest.json")).unwrap();
        (manifest.recording_id, manifest.samples) = ("r1".into(), SampleCount(24_000));
        (manifest.reasons, manifest.speech, manifest.sidecars) = (Vec::new(), Vec::new(), Vec::new());
        files.journal().append(&Entry::Ledger { so_far: serde_json::to_value(manifest).unwrap() });
        files.journal().commit().await;
        file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
        (files, file, inbox)
    }

    /// The process dies: its journal is no longer locked, and what it held stays as it is.
    fn die(files: RecordingFiles, file: SpoolFile, root: &Path) {
        let journal = root.join("spool/r1.journal");
        let bytes = std::fs::read(&journal).unwrap();
        std::fs::remove_file(&journal).unwrap();
        std::fs::write(&journal, bytes).unwrap();
        drop((files, file));
    }

    fn only(root: &Path) -> Recovered {
        let mut all = recover(&root.join("spool"), &[], Duration::ZERO).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0).unwrap()
    }

    #[tokio::test]
    async fn an_interrupted_recording_is_degraded_and_says_how_far_it_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let (files, file, _events) = begun(dir.path(), Place::Directory(out.clone())).await;
        assert!(recover(&dir.path().join("spool"), &[], Duration::ZERO).unwrap().is_empty(), "it goes on");
        die(files, file, dir.path());
        let Recovered::Done(result) = only(dir.path()) else { panic!("there is no store") };
        assert_eq!((result.outcome, result.status), (Outcome::Degraded, State::Ready));
        assert_eq!(result.reasons, [Reason::Interrupted { accounted_seconds: 0.5 }]);
        let [output] = &result.outputs[..] else { panic!("{:?}", result.outputs) };
        assert_eq!(output.location, out.join("calls/call.ogg").display().to_string());
        assert!((output.duration_seconds - (48_000.0 - 312.0) / 48_000.0).abs() < 1e-9);
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(result.manifest.unwrap()).unwrap()).unwrap();
        assert_eq!((manifest.outcome, manifest.samples), (Outcome::Degraded, SampleCount(48_000 - 312)));
        assert_eq!(manifest.outputs[0].sha256, output.sha256);
        assert!(!dir.path().join("spool").exists());
    }

    #[tokio::test]
    async fn what_goes_into_a_store_waits_whole_in_the_spool_until_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (files, file, _events) = begun(dir.path(), Place::Store("s3://bucket/calls".into())).await;
        die(files, file, dir.path());
        for _ in 0..2 {
            let Recovered::UploadPending(pending) = only(dir.path()) else { panic!("nobody uploaded it") };
            assert_eq!((&pending.store[..], pending.files.len()), ("s3://bucket/calls", 1));
            assert_eq!(pending.files[0].file.path, dir.path().join("spool/r1/call.ogg"));
            let mut inspector = OggInspector::new();
            inspector.push(&std::fs::read(&pending.files[0].file.path).unwrap());
            assert!(inspector.finish().is_clean());
            assert!(pending.manifest.0.exists());
        }
        let Recovered::UploadPending(pending) = only(dir.path()) else { panic!("nobody uploaded it") };
        pending.orphan.done().unwrap();
        assert!(!dir.path().join("spool").exists());
    }

    #[tokio::test]
    async fn what_was_uploaded_is_no_longer_in_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let (files, file, _events) = begun(dir.path(), Place::Store("s3://bucket/calls".into())).await;
        files.finish(file.id(), false).await.unwrap();
        assert!(dir.path().join("spool/r1/call.ogg").exists());
        files.done(false).await;
        assert!(!dir.path().join("spool").exists());
    }
}
