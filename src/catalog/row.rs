//! A recording as the catalogue knows it, and what can be changed of it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::db::text;
use crate::call::ParticipantKind;
use crate::recording::{Outcome, OutputResult};

/// Where a recording stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It was asked for; nothing is kept yet.
    Starting,
    /// What is spoken is kept.
    Active,
    /// What is spoken is not kept for now.
    Paused,
    /// The call is over for it; its files are being finished and brought to their store.
    Stopping,
    /// Everything is where it belongs.
    Ready,
    /// There is no recording, or only a part of it.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Starting, Self::Active, Self::Paused, Self::Stopping, Self::Ready, Self::Failed];

    /// The word for it in the catalogue and in callreel's own answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }

    /// The word that clients of the room-recording service know: `starting`, `active`, `stopping`, `ready` or `failed`. They know
    /// no pauses; a paused recording is `active` to them.
    pub const fn as_deployed(self) -> &'static str {
        match self {
            Self::Paused => Self::Active.as_str(),
            Self::Starting | Self::Active | Self::Stopping | Self::Ready | Self::Failed => self.as_str(),
        }
    }

    /// Whether nothing more happens to it.
    pub const fn is_finished(self) -> bool {
        match self {
            Self::Ready | Self::Failed => true,
            Self::Starting | Self::Active | Self::Paused | Self::Stopping => false,
        }
    }

    /// Whether a recorder is in the room, or about to be: what there is at most one of for a room.
    pub const fn is_in_room(self) -> bool {
        match self {
            Self::Starting | Self::Active | Self::Paused => true,
            Self::Stopping | Self::Ready | Self::Failed => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == word);
        found.ok_or_else(|| format!("{word:?} is no status (starting, active, paused, stopping, ready, failed)"))
    }
}

/// Somebody who was in a recorded call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Participant {
    /// Who: stable over sessions.
    pub identity: String,
    /// The name shown to people, often empty.
    #[serde(default)]
    pub name: String,
    /// LiveKit's kind, in lower case (`standard`, `sip`, `agent`…).
    #[serde(default)]
    pub kind: String,
}

impl Participant {
    /// Somebody of a kind.
    pub fn new(identity: impl Into<String>, name: impl Into<String>, kind: ParticipantKind) -> Self {
        let kind = match kind {
            ParticipantKind::Standard => "standard",
            ParticipantKind::Sip => "sip",
            ParticipantKind::Agent => "agent",
            ParticipantKind::Ingress => "ingress",
            ParticipantKind::Egress => "egress",
            ParticipantKind::Connector => "connector",
        };
        Self { identity: identity.into(), name: name.into(), kind: kind.to_owned() }
    }

    /// As it will be read again.
    pub(super) fn normal(&self) -> Self {
        Self { identity: text(&self.identity), name: text(&self.name), kind: text(&self.kind) }
    }
}

/// That a recording is deleted, or on its way there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deleted {
    /// When it was asked for, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who asked.
    pub by: String,
    /// Why.
    pub why: String,
    /// When the last of its objects was gone, UTC; none while some may be there.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub erased_at: Option<OffsetDateTime>,
}

/// Whose recording it is: the process that runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The process, as it calls itself over its restarts.
    pub instance: String,
    /// Until when nobody else may take it over, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// One recording. Moments are UTC, in whole microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its number in this catalogue.
    pub id: i64,
    /// Its id.
    pub recording_id: String,
    /// LiveKit Egress's id, where that records.
    pub egress_id: Option<String>,
    /// The room's name.
    pub room_name: String,
    /// LiveKit's id of the room (`RM_…`); empty while it is not known.
    pub room_id: String,
    /// Where it stands.
    pub status: Status,
    /// What became of it; none before that is known.
    pub outcome: Option<Outcome>,
    /// What keeps it from being complete: a list of [`Reason`](crate::recording::Reason)s, as JSON.
    pub reasons: Value,
    /// Who records: `callreel` or `egress`.
    pub engine: String,
    /// The rule that wanted it; none where somebody asked.
    pub rule: Option<String>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it began: sample 0, and before that is known when it was asked for.
    #[serde(with = "time::serde::rfc3339::option")]
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// When everything of it could be read.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ready_at: Option<OffsetDateTime>,
    /// When this row was last changed.
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    /// How long it plays.
    pub duration_seconds: f64,
    /// Its files.
    pub outputs: Vec<OutputResult>,
    /// The keys of everything that belongs to it, relative to its store: files, sidecars, manifest.
    pub objects: Vec<String>,
    /// Where its manifest is.
    pub manifest: Option<String>,
    /// Where its first file is, for people.
    pub file_url: Option<String>,
    /// The size of that.
    pub file_size_bytes: u64,
    /// The container: `ogg`, `mp4`, `webm`…
    pub file_format: String,
    /// Where recordings go: `local`, `s3`, `r2`, `azure`, `gcs`, `oss`.
    pub storage_provider: String,
    /// The bucket or container; none for a local folder.
    pub storage_bucket: Option<String>,
    /// The key of its first file, relative to the store.
    pub storage_key: Option<String>,
    /// Whether its files are as they are meant to be.
    pub is_processed: bool,
    /// Where a picture of it is.
    pub thumbnail_url: Option<String>,
    /// What its owner wants to be kept with it.
    pub metadata: Value,
    /// Who was there, by identity.
    pub participants: Vec<Participant>,
    /// When it is to be deleted; none for never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retention_until: Option<OffsetDateTime>,
    /// Whether it must not be deleted.
    pub legal_hold: bool,
    /// What another process needs to adopt, stop and fetch it. Without secrets.
    #[serde(skip_serializing_if = "Value::is_null", default)]
    pub config: Value,
    /// Whose it is while it is not finished.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<Owner>,
    /// That it is deleted; none where it is not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deleted: Option<Deleted>,
}

/// A recording that begins.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRecording {
    /// Its id.
    pub recording_id: String,
    /// The room's name.
    pub room_name: String,
    /// LiveKit's id of the room, empty while it is not known.
    pub room_id: String,
    /// LiveKit Egress's id, where it is known.
    pub egress_id: Option<String>,
    /// Who records: `callreel` or `egress`.
    pub engine: String,
    /// The rule that wanted it.
    pub rule: Option<String>,
    /// The container its first file will have.
    pub file_format: String,
    /// Where recordings go: `local`, `s3`, `r2`, `azure`, `gcs`, `oss`.
    pub storage_provider: String,
    /// The bucket or container.
    pub storage_bucket: Option<String>,
    /// The key its first file will have, where that is known.
    pub storage_key: Option<String>,
    /// When it is to be deleted.
    pub retention_until: Option<OffsetDateTime>,
    /// What its owner wants to be kept with it.
    pub metadata: Value,
    /// What another process needs to adopt, stop and fetch it. Without secrets.
    pub config: Value,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// When it was asked for.
    pub at: OffsetDateTime,
}

impl NewRecording {
    /// A recording of callreel's own bot into a local folder; what is not named here can be set in the fields.
    pub fn new(recording_id: impl Into<String>, room_name: impl Into<String>, at: OffsetDateTime) -> Self {
        Self {
            recording_id: recording_id.into(),
            room_name: room_name.into(),
            room_id: String::new(),
            egress_id: None,
            engine: "callreel".to_owned(),
            rule: None,
            file_format: "ogg".to_owned(),
            storage_provider: "local".to_owned(),
            storage_bucket: None,
            storage_key: None,
            retention_until: None,
            metadata: Value::Object(serde_json::Map::new()),
            config: Value::Null,
            owner: None,
            at,
        }
    }

    pub(super) fn into_row(self) -> Row {
        Row {
            id: 0,
            recording_id: self.recording_id,
            egress_id: self.egress_id,
            room_name: self.room_name,
            room_id: self.room_id,
            status: Status::Starting,
            outcome: None,
            reasons: Value::Array(Vec::new()),
            engine: self.engine,
            rule: self.rule,
            created_at: self.at,
            started_at: Some(self.at),
            ended_at: None,
            ready_at: None,
            updated_at: self.at,
            duration_seconds: 0.0,
            outputs: Vec::new(),
            objects: Vec::new(),
            manifest: None,
            file_url: None,
            file_size_bytes: 0,
            file_format: self.file_format,
            storage_provider: self.storage_provider,
            storage_bucket: self.storage_bucket,
            storage_key: self.storage_key,
            is_processed: false,
            thumbnail_url: None,
            metadata: self.metadata,
            participants: Vec::new(),
            retention_until: self.retention_until,
            legal_hold: false,
            config: self.config,
            owner: self.owner,
            deleted: None,
        }
    }
}

/// What is to change of a recording; what is `None` stays as it is. Made twice, a change has happened once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Where it stands. A finished recording can become `ready` where it was `failed`, and nothing else.
    pub status: Option<Status>,
    /// What became of it.
    pub outcome: Option<Outcome>,
    /// What keeps it from being complete, as [`Row::reasons`].
    pub reasons: Option<Value>,
    /// LiveKit Egress's id.
    pub egress_id: Option<String>,
    /// LiveKit's id of the room.
    pub room_id: Option<String>,
    /// Who records.
    pub engine: Option<String>,
    /// When it began.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended.
    pub ended_at: Option<OffsetDateTime>,
    /// When everything of it could be read.
    pub ready_at: Option<OffsetDateTime>,
    /// How long it plays.
    pub duration_seconds: Option<f64>,
    /// Its files.
    pub outputs: Option<Vec<OutputResult>>,
    /// The keys of everything that belongs to it.
    pub objects: Option<Vec<String>>,
    /// Where its manifest is.
    pub manifest: Option<String>,
    /// Where its first file is.
    pub file_url: Option<String>,
    /// The size of that.
    pub file_size_bytes: Option<u64>,
    /// The container.
    pub file_format: Option<String>,
    /// Where recordings go.
    pub storage_provider: Option<String>,
    /// The bucket or container.
    pub storage_bucket: Option<String>,
    /// The key of its first file.
    pub storage_key: Option<String>,
    /// Whether its files are as they are meant to be.
    pub is_processed: Option<bool>,
    /// Where a picture of it is.
    pub thumbnail_url: Option<String>,
    /// What its owner wants to be kept with it; takes the place of what was there.
    pub metadata: Option<Value>,
    /// Who is known to have been there; nobody is forgotten.
    pub participants: Vec<Participant>,
    /// When it is to be deleted; `Some(None)` for never.
    pub retention_until: Option<Option<OffsetDateTime>>,
    /// What another process needs to adopt, stop and fetch it.
    pub config: Option<Value>,
}

impl Change {
    /// A change of where it stands.
    pub fn status(status: Status) -> Self {
        Self { status: Some(status), ..Self::default() }
    }

    /// What the row is afterwards; participants are kept apart.
    pub(super) fn apply(&self, row: &mut Row) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                to.clone_from(value);
            }
        }
        fn put<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        set(&mut row.status, &self.status);
        put(&mut row.outcome, &self.outcome);
        set(&mut row.reasons, &self.reasons);
        put(&mut row.egress_id, &self.egress_id);
        set(&mut row.room_id, &self.room_id);
        set(&mut row.engine, &self.engine);
        put(&mut row.started_at, &self.started_at);
        put(&mut row.ended_at, &self.ended_at);
        put(&mut row.ready_at, &self.ready_at);
        set(&mut row.duration_seconds, &self.duration_seconds);
        set(&mut row.outputs, &self.outputs);
        set(&mut row.objects, &self.objects);
        put(&mut row.manifest, &self.manifest);
        put(&mut row.file_url, &self.file_url);
        set(&mut row.file_size_bytes, &self.file_size_bytes);
        set(&mut row.file_format, &self.file_format);
        set(&mut row.storage_provider, &self.storage_provider);
        put(&mut row.storage_bucket, &self.storage_bucket);
        put(&mut row.storage_key, &self.storage_key);
        set(&mut row.is_processed, &self.is_processed);
        put(&mut row.thumbnail_url, &self.thumbnail_url);
        set(&mut row.metadata, &self.metadata);
        set(&mut row.retention_until, &self.retention_until);
        set(&mut row.config, &self.config);
        if row.status.is_finished() {
            row.owner = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_found_by_its_word_and_deployed_clients_know_its_other() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
            assert!(["starting", "active", "stopping", "stopped", "ready", "failed"].contains(&status.as_deployed()));
        }
        assert!("stopped".parse::<Status>().is_err());
    }
}
