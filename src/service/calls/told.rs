//! What a finished recording changes in its row. Pure.

use serde_json::Value;
use time::{Duration, OffsetDateTime};

use crate::catalog::{Change, Participant, Status};
use crate::recording::{Manifest, Outcome, OutputResult, Reason, RecordingResult, State};

/// What a result and its manifest say, of a recording of whose objects `key_of` knows the key by their location. `waits` is
/// whether its files are still in the spool, `days` how long recordings are kept.
pub(super) fn of_result(
    result: &RecordingResult,
    manifest: Option<&Manifest>,
    waits: bool,
    key_of: impl Fn(&str) -> Option<String>,
    days: Option<u32>,
    now: OffsetDateTime,
) -> Change {
    let status = match (result.status, waits) {
        (_, true) => Status::Stopping,
        (State::Failed, false) => Status::Failed,
        (_, false) => Status::Ready,
    };
    let first = result.outputs.first();
    let ended_at = manifest.map_or(now, |manifest| manifest.ended_at);
    let keep = days.filter(|days| *days > 0).and_then(|days| ended_at.checked_add(Duration::days(days.into())));
    let mut change = Change {
        outcome: Some(result.outcome),
        reasons: serde_json::to_value(&result.reasons).ok(),
        ended_at: Some(ended_at),
        retention_until: status.is_finished().then_some(keep),
        duration_seconds: first.map(|output| output.duration_seconds),
        outputs: Some(result.outputs.clone()),
        ..Change::status(status)
    };
    if let Some(manifest) = manifest {
        change.started_at = Some(manifest.started_at);
        change.room_id = Some(manifest.room.sid.clone()).filter(|sid| !sid.is_empty());
        change.egress_id = manifest.egress.last().map(|egress| egress.egress_id.clone()).filter(|id| !id.is_empty());
        change.participants = people(manifest);
    }
    if waits {
        return change;
    }
    change.ready_at = Some(now);
    change.is_processed = Some(status == Status::Ready && first.is_some());
    change.manifest.clone_from(&result.manifest);
    change.objects = Some(objects(result, manifest, &key_of));
    if let Some(OutputResult { location, bytes, .. }) = first {
        change.storage_key = key_of(location);
        change.file_url = Some(location.clone());
        change.file_size_bytes = Some(*bytes);
        change.file_format = format_of(location);
    }
    change
}

/// Whether its files wait in the spool until the store takes them. One that failed may have broken down at any point: there
/// it counts whether its journal `is_in_spool`, which is then ended and told of anew.
pub(super) fn is_on_its_way(result: &RecordingResult, is_in_spool: bool) -> bool {
    match result.status {
        State::Failed => is_in_spool,
        _ => result.reasons.iter().any(|reason| matches!(reason, Reason::Upload { .. })),
    }
}

/// Everybody of whom the manifest tells, recorders not counted.
fn people(manifest: &Manifest) -> Vec<Participant> {
    let told = manifest.participants.iter();
    let mut people: Vec<_> = told.map(|one| Participant::new(&one.identity, &one.name, one.kind)).collect();
    people.sort();
    people.dedup();
    people
}

/// The keys of all that belongs to a recording.
fn objects(
    result: &RecordingResult,
    manifest: Option<&Manifest>,
    key_of: &impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let locations = result.outputs.iter().map(|output| &output.location).chain(&result.manifest);
    let mut keys: Vec<String> = locations.filter_map(|location| key_of(location)).collect();
    let beside = result.manifest.as_deref().and_then(key_of);
    if let (Some(manifest), Some(own)) = (manifest, beside) {
        let folder = own.rfind('/').map_or("", |at| &own[..=at]);
        keys.extend(manifest.sidecars.iter().map(|sidecar| format!("{folder}{}", sidecar.file)));
    }
    keys.sort();
    keys.dedup();
    keys
}

/// The container, by a file's ending; what encryption adds to it is none.
fn format_of(location: &str) -> Option<String> {
    let name = location.rsplit('/').next()?;
    let name = name.strip_suffix(".age").unwrap_or(name);
    name.rsplit_once('.').map(|(_, ext)| ext.to_owned())
}

/// The result of which a manifest tells that is whole where it belongs.
pub(super) fn of_manifest(manifest: &Manifest, key: &str, location_of: impl Fn(&str) -> String) -> RecordingResult {
    let folder = key.rfind('/').map_or("", |at| &key[..=at]);
    let output = |entry: &crate::recording::OutputEntry| OutputResult {
        kind: entry.kind,
        participant: entry.participant.clone(),
        location: location_of(&format!("{folder}{}", entry.file)),
        duration_seconds: entry.duration_seconds,
        bytes: entry.bytes,
        sha256: entry.sha256.clone(),
    };
    let status = if manifest.outcome == Outcome::Failed { State::Failed } else { State::Ready };
    RecordingResult {
        recording_id: manifest.recording_id.clone(),
        status,
        outcome: manifest.outcome,
        reasons: manifest.reasons.clone(),
        stopped_by: Some(manifest.stopped_by),
        outputs: manifest.outputs.iter().map(output).collect(),
        manifest: Some(location_of(key)),
    }
}

/// What makes a recording that left nothing behind a failed one.
pub(super) fn of_nothing(message: &str, now: OffsetDateTime) -> Change {
    let reasons = [Reason::Internal { message: message.to_owned() }];
    Change {
        outcome: Some(Outcome::Failed),
        reasons: serde_json::to_value(reasons).ok(),
        ended_at: Some(now),
        outputs: Some(Vec::new()),
        ..Change::status(Status::Failed)
    }
}

/// What makes a recording one that was refused.
pub(super) fn of_refusal(why: &str, now: OffsetDateTime) -> Change {
    let reasons = serde_json::json!([{ "reason": "refused", "message": why }]);
    Change { reasons: Some(reasons), ..of_nothing(why, now) }
}

/// Metadata as it is kept: an object, whatever it was.
pub(super) fn metadata(value: Value) -> Value {
    match value {
        Value::Object(_) => value,
        Value::Null => Value::Object(serde_json::Map::new()),
        other => serde_json::json!({ "value": other }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutputKind;

    fn result(reasons: Vec<Reason>) -> RecordingResult {
        let output = OutputResult {
            kind: OutputKind::Mix,
            participant: None,
            location: "s3://calls/pre/2026/a.ogg".into(),
            duration_seconds: 12.5,
            bytes: 4_000,
            sha256: "ab".into(),
        };
        RecordingResult {
            recording_id: "R1".into(),
            status: State::Ready,
            outcome: Outcome::Complete,
            reasons,
            stopped_by: None,
            outputs: vec![output],
            manifest: Some("s3://calls/pre/2026/a.json".into()),
        }
    }

    fn key_of(location: &str) -> Option<String> {
        location.strip_prefix("s3://calls/pre/").map(str::to_owned)
    }

    #[test]
    fn a_stored_recording_is_ready_with_its_keys() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(20_000);
        let change = of_result(&result(Vec::new()), None, false, key_of, Some(30), now);
        assert_eq!(change.status, Some(Status::Ready));
        assert_eq!(change.storage_key.as_deref(), Some("2026/a.ogg"));
        assert_eq!(change.objects, Some(vec!["2026/a.json".to_owned(), "2026/a.ogg".to_owned()]));
        assert_eq!(change.file_format.as_deref(), Some("ogg"));
        assert_eq!((change.file_size_bytes, change.duration_seconds), (Some(4_000), Some(12.5)));
        assert_eq!((change.ready_at, change.is_processed), (Some(now), Some(true)));
        assert_eq!(change.retention_until, Some(Some(now + Duration::days(30))));
        let for_ever = of_result(&result(Vec::new()), None, false, key_of, Some(u32::MAX), now);
        assert_eq!(for_ever.retention_until, Some(None), "longer than there are dates");
        assert_eq!(of_result(&result(Vec::new()), None, false, key_of, None, now).retention_until, Some(None));
    }

    #[test]
    fn what_waits_in_the_spool_is_not_ready() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let waits = Reason::Upload { message: "the store is down".into() };
        let result_that_waits = result(vec![waits.clone()]);
        assert!(is_on_its_way(&result_that_waits, true) && !is_on_its_way(&result(Vec::new()), true));
        let change = of_result(&result_that_waits, None, true, key_of, Some(1), now);
        assert_eq!((change.status, change.ready_at, change.storage_key), (Some(Status::Stopping), None, None));
        assert_eq!(change.retention_until, None);
        let failed = RecordingResult { status: State::Failed, ..result(vec![waits]) };
        assert!(is_on_its_way(&failed, true), "it broke down, and what there is of it is ended later");
        assert!(!is_on_its_way(&failed, false));
        assert_eq!(of_result(&failed, None, false, key_of, None, now).status, Some(Status::Failed));
    }

    #[test]
    fn encrypted_files_have_the_format_that_is_inside() {
        assert_eq!(format_of("s3://b/a.b/call.ogg.age").as_deref(), Some("ogg"));
        assert_eq!(format_of("/var/rec/call"), None);
    }
}
