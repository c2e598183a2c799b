//! What is told of a recording: the event, and the bodies that receivers get.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::catalog::Row;
use crate::hex;
use crate::recording::{Outcome, OutputResult};

/// What happened to a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EventKind {
    /// What is spoken is kept.
    #[serde(rename = "recording.started")]
    Started,
    /// What is spoken is not kept for now.
    #[serde(rename = "recording.paused")]
    Paused,
    /// It goes on.
    #[serde(rename = "recording.resumed")]
    Resumed,
    /// Nothing comes of a leg although it should.
    #[serde(rename = "recording.leg_silent")]
    LegSilent,
    /// The call is over for it; its files are being finished.
    #[serde(rename = "recording.stopping")]
    Stopping,
    /// Everything of it can be read.
    #[serde(rename = "recording.ready")]
    Ready,
    /// There is no recording, or only a part of it.
    #[serde(rename = "recording.failed")]
    Failed,
    /// It was deleted, and nothing of it is left.
    #[serde(rename = "recording.deleted")]
    Deleted,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Started,
        Self::Paused,
        Self::Resumed,
        Self::LegSilent,
        Self::Stopping,
        Self::Ready,
        Self::Failed,
        Self::Deleted,
    ];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "recording.started",
            Self::Paused => "recording.paused",
            Self::Resumed => "recording.resumed",
            Self::LegSilent => "recording.leg_silent",
            Self::Stopping => "recording.stopping",
            Self::Ready => "recording.ready",
            Self::Failed => "recording.failed",
            Self::Deleted => "recording.deleted",
        }
    }

    /// Whether a recording has it once at most.
    const fn is_once(self) -> bool {
        match self {
            Self::Started | Self::Stopping | Self::Ready | Self::Failed | Self::Deleted => true,
            Self::Paused | Self::Resumed | Self::LegSilent => false,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.as_str() == word);
        found.ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("{word:?} is no event ({})", known.join(", "))
        })
    }
}

/// Something that happened to a recording.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When.
    pub at: OffsetDateTime,
    /// What else there is to say: who paused it, whose leg is silent.
    pub details: Map<String, Value>,
}

impl Event {
    /// Something that happened.
    pub fn new(kind: EventKind, at: OffsetDateTime) -> Self {
        Self { kind, at, details: Map::new() }
    }

    /// The same, with something else to say.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// What makes it the same as another of this recording: what a recording has once is told once, whoever tells it.
    pub(super) fn once(&self, recording_id: &str) -> String {
        if self.kind.is_once() {
            return format!("{recording_id}/{}", self.kind);
        }
        format!("{recording_id}/{}/{}", self.kind, self.at.unix_timestamp_nanos())
    }

    /// What is kept until it is delivered: the body of callreel's own format, without links.
    pub(super) fn body(&self, row: &Row) -> Value {
        let digest = hex::encode(Sha256::digest(self.once(&row.recording_id).as_bytes()));
        let mut body = json!({
            "id": format!("EV_{}", &digest[..32]),
            "event": self.kind.as_str(),
            "created_at": rfc3339(self.at),
            "recording": recording(row),
        });
        if !self.details.is_empty() {
            body["details"] = Value::Object(self.details.clone());
        }
        body
    }
}

/// Who gives receivers an address from which they can fetch a file.
#[async_trait]
pub trait Links: Send + Sync + 'static {
    /// The address of the object `key` of a recording: a public one, or one that is signed and valid from now on. None where
    /// there is none.
    ///
    /// # Errors
    /// What keeps it from being known now; it is asked for again.
    async fn download_url(&self, recording_id: &str, key: &str) -> Result<Option<String>, String>;
}

/// Gives no addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLinks;

#[async_trait]
impl Links for NoLinks {
    async fn download_url(&self, _: &str, _: &str) -> Result<Option<String>, String> {
        Ok(None)
    }
}

/// How a receiver wants to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// callreel's own events, all of them. The default.
    #[default]
    Callreel,
    /// `egress_ended`, as workflows know it that LiveKit Egress recorded for before: once for each recording, when it is over.
    EgressEnded,
}

impl Format {
    /// Whether it has a word for that.
    pub(super) fn tells(self, kind: EventKind) -> bool {
        match self {
            Self::Callreel => true,
            Self::EgressEnded => matches!(kind, EventKind::Ready | EventKind::Failed),
        }
    }

    /// The bytes that go out, with addresses that are good now; why not, where these cannot be known.
    pub(super) async fn render(self, body: &Value, links: &dyn Links) -> Result<String, String> {
        let recording_id = body["recording"]["recording_id"].as_str().unwrap_or_default();
        let mut urls = Vec::new();
        for output in outputs(body) {
            urls.push(match output["key"].as_str() {
                Some(key) => links.download_url(recording_id, key).await?,
                None => None,
            });
        }
        Ok(match self {
            Self::Callreel => callreel(body.clone(), urls).to_string(),
            Self::EgressEnded => egress_ended(body, urls).to_string(),
        })
    }
}

fn outputs(body: &Value) -> &[Value] {
    body["recording"]["outputs"].as_array().map_or(&[], Vec::as_slice)
}

fn callreel(mut body: Value, urls: Vec<Option<String>>) -> Value {
    body["recording"]["download_url"] = json!(urls.first().cloned().flatten());
    if let Some(outputs) = body["recording"]["outputs"].as_array_mut() {
        for (output, url) in outputs.iter_mut().zip(urls) {
            output["download_url"] = json!(url);
        }
    }
    body
}

fn egress_ended(body: &Value, urls: Vec<Option<String>>) -> Value {
    let recording = &body["recording"];
    let results = outputs(body).iter().zip(urls).map(|(output, url)| {
        json!({
            "filename": output.get("key").filter(|key| key.is_string()).unwrap_or(&output["location"]),
            "size": output["bytes"],
            "duration": output["duration_seconds"],
            "download_url": url,
        })
    });
    let results: Vec<Value> = results.collect();
    let status = match (recording["status"].as_str(), results.is_empty()) {
        (Some("ready"), false) => "complete",
        // Nobody was there to be heard, or nothing was to be kept.
        (Some("ready"), true) => "aborted",
        _ => "failed",
    };
    json!({
        "event": "egress_ended",
        // The id that whoever started it was given, and that is written on the room.
        "egress_id": recording["recording_id"],
        "room_name": recording["room_name"],
        "status": status,
        "file_results": results,
    })
}

/// What receivers are told of a recording: nothing of who runs it and how.
fn recording(row: &Row) -> Value {
    let mut told = json!({
        "recording_id": row.recording_id,
        "egress_id": row.egress_id,
        "room_name": row.room_name,
        "room_id": row.room_id,
        "status": row.status,
        "outcome": row.outcome.as_ref().map(Outcome::to_string),
        "reasons": row.reasons,
        "engine": row.engine,
        "rule": row.rule,
        "started_at": row.started_at.map(rfc3339),
        "ended_at": row.ended_at.map(rfc3339),
        "ready_at": row.ready_at.map(rfc3339),
        "duration_seconds": row.duration_seconds,
        "file_format": row.file_format,
        "file_size_bytes": row.file_size_bytes,
        "file_url": row.file_url,
        "storage_provider": row.storage_provider,
        "storage_bucket": row.storage_bucket,
        "storage_key": row.storage_key,
        "manifest": row.manifest,
        "metadata": row.metadata,
        "participants": row.participants,
        "outputs": row.outputs,
    });
    if let Some(outputs) = told["outputs"].as_array_mut() {
        for (output, of) in outputs.iter_mut().zip(&row.outputs) {
            output["key"] = json!(key_of(of, row));
        }
    }
    if let Some(deleted) = &row.deleted {
        told["deleted"] = json!({ "at": rfc3339(deleted.at), "by": deleted.by, "why": deleted.why });
    }
    told
}

/// The key of a file in its store.
fn key_of<'a>(output: &OutputResult, row: &'a Row) -> Option<&'a str> {
    let is_of =
        |key: &&str| output.location.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('/'));
    let keys = row.objects.iter().map(String::as_str).chain(row.storage_key.as_deref());
    keys.filter(is_of).max_by_key(|key| key.len())
}

fn rfc3339(at: OffsetDateTime) -> String {
    // Years beyond 9999 alone have no such form.
    at.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Change, NewRecording, Status, nobody};
    use crate::config::OutputKind;
    use time::macros::datetime;

    struct Public;

    #[async_trait]
    impl Links for Public {
        async fn download_url(&self, recording_id: &str, key: &str) -> Result<Option<String>, String> {
            Ok(Some(format!("https://cdn.example/{key}?of={recording_id}")))
        }
    }

    async fn row(egress_id: Option<&str>, outputs: Vec<OutputResult>) -> Row {
        let at = datetime!(2026-11-22 10:00 UTC);
        let catalog = Catalog::open("sqlite::memory:").await.unwrap();
        catalog.begin(NewRecording::new("AJ_xxx", "sbx-xxx", at), nobody).await.unwrap();
        let change = Change {
            status: Some(Status::Ready),
            outcome: Some(Outcome::Complete),
            egress_id: egress_id.map(str::to_owned),
            objects: Some(vec!["recordings/AJ_xxx.mp3".into(), "recordings/AJ_xxx.json".into(), "xxx.mp3".into()]),
            outputs: Some(outputs),
            config: Some(json!({ "secret": "hunter2" })),
            ..Change::default()
        };
        catalog.update("AJ_xxx", &change, at, nobody).await.unwrap()
    }

    fn file() -> OutputResult {
        OutputResult {
            kind: OutputKind::Mix,
            participant: None,
            location: "s3://calls/recordings/AJ_xxx.mp3".into(),
            duration_seconds: 35.2,
            bytes: 1_354_028,
            sha256: "ab".into(),
        }
    }

    #[tokio::test]
    async fn a_workflow_gets_the_body_that_it_knows() {
        let event = Event::new(EventKind::Ready, datetime!(2026-11-22 10:01 UTC));
        let body = event.body(&row(Some("EG_xxx"), vec![file()]).await);
        let sent: Value = serde_json::from_str(&Format::EgressEnded.render(&body, &Public).await.unwrap()).unwrap();
        assert_eq!(
            sent,
            json!({
                "event": "egress_ended", "egress_id": "AJ_xxx", "room_name": "sbx-xxx", "status": "complete",
                "file_results": [{
                    "filename": "recordings/AJ_xxx.mp3", "size": 1_354_028, "duration": 35.2,
                    "download_url": "https://cdn.example/recordings/AJ_xxx.mp3?of=AJ_xxx",
                }],
            })
        );
        let own = event.body(&row(None, vec![]).await);
        let sent: Value = serde_json::from_str(&Format::EgressEnded.render(&own, &NoLinks).await.unwrap()).unwrap();
        assert_eq!((&sent["egress_id"], &sent["status"]), (&json!("AJ_xxx"), &json!("aborted")));
    }

    #[tokio::test]
    async fn an_event_of_our_own_has_links_and_no_inner_matters() {
        let event = Event::new(EventKind::Ready, datetime!(2026-11-22 10:01 UTC)).with("by", "somebody");
        let stored = event.body(&row(None, vec![file()]).await);
        let text = Format::Callreel.render(&stored, &Public).await.unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        let sent: Value = serde_json::from_str(&text).unwrap();
        let link = json!("https://cdn.example/recordings/AJ_xxx.mp3?of=AJ_xxx");
        assert_eq!(
            (&sent["recording"]["download_url"], &sent["recording"]["outputs"][0]["download_url"]),
            (&link, &link)
        );
        assert_eq!((&sent["event"], &sent["details"]["by"]), (&json!("recording.ready"), &json!("somebody")));
        assert_eq!(sent["created_at"], "2026-11-22T10:01:00Z");
        let again = Event::new(EventKind::Ready, datetime!(2026-11-22 10:09 UTC)).body(&row(None, vec![]).await);
        assert_eq!(sent["id"], again["id"], "what happens once has one id");
    }

    #[test]
    fn pauses_are_told_each_and_an_end_once() {
        let (one, other) = (datetime!(2026-11-22 10:00 UTC), datetime!(2026-11-22 10:01 UTC));
        for kind in EventKind::ALL {
            let is_same = Event::new(kind, one).once("R") == Event::new(kind, other).once("R");
            assert_eq!(is_same, kind.is_once(), "{kind}");
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
        assert!(!Format::EgressEnded.tells(EventKind::Started));
    }
}
