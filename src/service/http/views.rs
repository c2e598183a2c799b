//! Recordings as answers show them.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;

use crate::catalog::Row;
use crate::config::OutputKind;

/// One recording.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Recording {
    /// Its number in the catalogue.
    id: i64,
    /// Its id.
    #[schema(example = "01JD2Z7V9QK5F4ZC9W7M3N8B6A")]
    recording_id: String,
    /// LiveKit Egress's id, where that records.
    egress_id: Option<String>,
    /// The room's name.
    room_name: String,
    /// LiveKit's id of the room; empty while it is not known.
    room_id: String,
    /// `starting`, `active`, `paused`, `stopping`, `ready` or `failed`.
    #[schema(example = "ready")]
    status: String,
    /// `complete`, `degraded`, `empty`, `failed` or `blocked`; none before it is known.
    outcome: Option<String>,
    /// What keeps it from being complete.
    #[schema(value_type = Vec<Object>)]
    reasons: Value,
    /// Who records: `callreel` or `egress`.
    engine: String,
    /// The rule that wanted it; none where somebody asked.
    rule: Option<String>,
    /// When it was asked for.
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When it began.
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// When it ended.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// When everything of it could be read.
    #[schema(format = DateTime)]
    ready_at: Option<String>,
    /// How long it plays.
    duration_seconds: f64,
    /// The same for people: `30:00`.
    #[schema(example = "30:00")]
    duration_formatted: String,
    /// Its files.
    outputs: Vec<Output>,
    /// Where its manifest is.
    manifest: Option<String>,
    /// Where its first file is.
    file_url: Option<String>,
    /// Where people get its first file, for a while.
    download_url: Option<String>,
    /// The size of that.
    file_size_bytes: u64,
    /// The container.
    file_format: String,
    /// `local`, `s3`, `r2`, `azure`, `gcs` or `oss`.
    storage_provider: String,
    /// The bucket or container.
    storage_bucket: Option<String>,
    /// The key of its first file.
    storage_key: Option<String>,
    /// Whether its files are as they are meant to be.
    is_processed: bool,
    /// Where a picture of it is.
    thumbnail_url: Option<String>,
    /// What its owner wants to be kept with it.
    #[schema(value_type = Object)]
    metadata: Value,
    /// Who was there.
    participants: Vec<Participant>,
    /// When it is to be deleted; none for never.
    #[schema(format = DateTime)]
    retention_until: Option<String>,
    /// Whether it must not be deleted.
    legal_hold: bool,
    /// That it is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<Deleted>,
}

/// One file of a recording.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Output {
    /// What is in it.
    kind: OutputKind,
    /// The identity of the only one who is heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<String>,
    /// Where it is.
    location: String,
    /// How long it plays.
    duration_seconds: f64,
    /// Its size.
    bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    sha256: String,
}

/// Somebody who was there.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Participant {
    /// Who.
    identity: String,
    /// The name shown to people.
    name: String,
    /// LiveKit's kind.
    kind: String,
}

/// That a recording is deleted.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Deleted {
    /// When it was asked for.
    #[schema(format = DateTime)]
    at: Option<String>,
    /// Who asked.
    by: String,
    /// Why.
    why: String,
    /// When the last of its objects was gone.
    #[schema(format = DateTime)]
    erased_at: Option<String>,
}

impl Recording {
    /// A row, and where people get its first file.
    pub fn new(row: Row, download_url: Option<String>) -> Self {
        Self {
            id: row.id,
            recording_id: row.recording_id,
            egress_id: row.egress_id,
            room_name: row.room_name,
            room_id: row.room_id,
            status: row.status.to_string(),
            outcome: row.outcome.map(|outcome| outcome.to_string()),
            reasons: row.reasons,
            engine: row.engine,
            rule: row.rule,
            created_at: moment(Some(row.created_at)),
            started_at: moment(row.started_at),
            ended_at: moment(row.ended_at),
            ready_at: moment(row.ready_at),
            duration_seconds: row.duration_seconds,
            duration_formatted: formatted(row.duration_seconds),
            outputs: row
                .outputs
                .into_iter()
                .map(|output| Output {
                    kind: output.kind,
                    participant: output.participant,
                    location: output.location,
                    duration_seconds: output.duration_seconds,
                    bytes: output.bytes,
                    sha256: output.sha256,
                })
                .collect(),
            manifest: row.manifest,
            file_url: row.file_url,
            download_url,
            file_size_bytes: row.file_size_bytes,
            file_format: row.file_format,
            storage_provider: row.storage_provider,
            storage_bucket: row.storage_bucket,
            storage_key: row.storage_key,
            is_processed: row.is_processed,
            thumbnail_url: row.thumbnail_url,
            metadata: row.metadata,
            participants: row
                .participants
                .into_iter()
                .map(|who| Participant { identity: who.identity, name: who.name, kind: who.kind })
                .collect(),
            retention_until: moment(row.retention_until),
            legal_hold: row.legal_hold,
            deleted: row.deleted.map(|deleted| Deleted {
                at: moment(Some(deleted.at)),
                by: deleted.by,
                why: deleted.why,
                erased_at: moment(deleted.erased_at),
            }),
        }
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Recordings {
    /// The recordings, the newest first.
    pub recordings: Vec<Recording>,
    /// Give this as `cursor` for the next page; none after the last.
    pub next: Option<String>,
}

/// An address that gives a recording to whoever has it, for a while.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SignedUrl {
    /// The address.
    pub url: String,
    /// Until when it does.
    #[schema(format = DateTime)]
    pub expires_at: String,
}

/// A moment in the words of answers: UTC, as fine as it is known.
pub fn moment(at: Option<OffsetDateTime>) -> Option<String> {
    at?.to_offset(time::UtcOffset::UTC).format(&time::format_description::well_known::Rfc3339).ok()
}

/// A moment as deployed clients know it: UTC, in whole seconds.
pub fn whole_second(at: Option<OffsetDateTime>) -> Option<String> {
    moment(at.map(|at| at.replace_nanosecond(0).unwrap_or(at)))
}

/// A length of time for people: `0:07`, `30:00`, `1:02:03`.
pub fn formatted(seconds: f64) -> String {
    // Nothing plays for longer than this can hold; what is negative or no number is nothing.
    let whole = seconds.round() as u64;
    let (hours, minutes, seconds) = (whole / 3_600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn lengths_and_moments_for_people() {
        for (seconds, text) in
            [(0.0, "0:00"), (6.5, "0:07"), (1_800.0, "30:00"), (3_723.4, "1:02:03"), (f64::NAN, "0:00"), (-1.0, "0:00")]
        {
            assert_eq!(formatted(seconds), text);
        }
        let at = Some(datetime!(2025-01-20 11:00:00.5 +1));
        assert_eq!(moment(at).unwrap(), "2025-01-20T10:00:00.5Z");
        assert_eq!(whole_second(at).unwrap(), "2025-01-20T10:00:00Z");
        assert_eq!(moment(None), None);
    }
}
