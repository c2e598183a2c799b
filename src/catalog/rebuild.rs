//! A catalogue made anew from what is in a store: every manifest tells of its recording.

use std::collections::BTreeMap;

use time::OffsetDateTime;

use super::db::within;
use super::recordings::{insert, normal, note_participants, participants_in, write};
use super::row::{Change, NewRecording, Participant, Row, Status};
use super::{Catalog, CatalogError};
use crate::config::default_spool;
use crate::recording::{MANIFEST_VERSION, Manifest, Outcome, OutputResult};
use crate::seal;
use crate::store::{ObjectInfo, Store, StoreError};
use crate::upload::LiveState;

/// The most bytes of a manifest that are read.
const MANIFEST_LIMIT: u64 = 256 * 1_024 * 1_024;

/// What a rebuilt recording says beside its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// [`Row::storage_provider`].
    pub provider: String,
    /// [`Row::storage_bucket`].
    pub bucket: Option<String>,
    /// How long after their end recordings are kept that the catalogue did not know; for ever where there is none.
    pub retain: Option<time::Duration>,
}

/// What came of one object that looked like a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// The recording was not in the catalogue, and is now.
    Added {
        /// Its id.
        recording_id: String,
    },
    /// The catalogue knew less of it, or something else.
    Mended {
        /// Its id.
        recording_id: String,
    },
    /// The catalogue knew as much.
    Same {
        /// Its id.
        recording_id: String,
    },
    /// It was deleted, or is on its way there, and stays so.
    Deleted {
        /// Its id.
        recording_id: String,
    },
    /// A process is at it, and says itself what becomes of it.
    Running {
        /// Its id.
        recording_id: String,
    },
    /// Nothing of callreel's, or nothing that can be read; it was left alone.
    Left {
        /// Why.
        why: String,
    },
}

/// One step of a rebuilding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The manifest's key in the store.
    pub key: String,
    /// What came of it.
    pub rebuilt: Rebuilt,
    /// Files that the manifest names and that are not there, or have another size.
    pub lacking: Vec<String>,
}

/// Why a rebuilding came to an end. What was done until then stays; begun again, it goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RebuildError {
    /// What the store said.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the catalogue said.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl Catalog {
    /// Takes every recording into the catalogue whose manifest is in `store`, and tells of each. What the catalogue knows beyond
    /// manifests (metadata, retention, legal holds, tombstones) stays. Done twice it changes nothing.
    ///
    /// # Errors
    ///
    /// [`RebuildError`] where store or catalogue do not answer. An object that makes no sense is none.
    pub async fn rebuild(
        &self,
        store: &Store,
        place: &Place,
        now: OffsetDateTime,
        mut tell: impl FnMut(Step),
    ) -> Result<(), RebuildError> {
        let objects = store.list("").await?;
        let sizes: BTreeMap<&str, u64> = objects.iter().map(|object| (object.key.as_str(), object.size)).collect();
        for object in objects.iter().filter(|object| may_be_manifest(&object.key)) {
            let key = object.key.clone();
            match read(store, object).await? {
                Ok(manifest) => {
                    let found = FoundRecording::new(&manifest, object, store);
                    let lacking = found.lacking(&manifest, &sizes);
                    let rebuilt = self.restore(&found, place, now).await?;
                    tell(Step { key, rebuilt, lacking });
                }
                Err(why) => tell(Step { key, rebuilt: Rebuilt::Left { why }, lacking: Vec::new() }),
            }
        }
        Ok(())
    }

    /// Takes one finished recording in.
    async fn restore(
        &self,
        found: &FoundRecording,
        place: &Place,
        now: OffsetDateTime,
    ) -> Result<Rebuilt, CatalogError> {
        let recording_id = found.new.recording_id.clone();
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = found.new.clone().into_row();
            row.storage_provider.clone_from(&place.provider);
            row.storage_bucket.clone_from(&place.bucket);
            row.retention_until = place.retain.map(|retain| found.ended_at + retain);
            found.change.apply(&mut row);
            row.updated_at = now;
            if insert(&mut tx, &normal(row)).await?.is_some() {
                note_participants(&mut tx, &recording_id, &found.change.participants).await?;
                tx.commit().await?;
                return Ok(Rebuilt::Added { recording_id });
            }
            let there = self.locked(&mut tx, &recording_id).await?;
            if there.deleted.is_some() {
                return Ok(Rebuilt::Deleted { recording_id });
            }
            if !there.status.is_finished() && there.owner.as_ref().is_some_and(|owner| owner.until > now) {
                return Ok(Rebuilt::Running { recording_id });
            }
            let mut mended = there.clone();
            found.beside(&there).apply(&mut mended);
            let mut mended = normal(mended);
            let known = participants_in(&mut tx, &recording_id).await?;
            let wanted: Vec<Participant> = found.change.participants.iter().map(Participant::normal).collect();
            if mended == there && wanted.iter().all(|one| known.contains(one)) {
                return Ok(Rebuilt::Same { recording_id });
            }
            mended.updated_at = now;
            write(&mut tx, &normal(mended)).await?;
            note_participants(&mut tx, &recording_id, &wanted).await?;
            tx.commit().await?;
            Ok(Rebuilt::Mended { recording_id })
        })
        .await
    }
}

/// A recording as its manifest tells of it.
struct FoundRecording {
    new: NewRecording,
    change: Change,
    ended_at: OffsetDateTime,
}

impl FoundRecording {
    fn new(manifest: &Manifest, object: &ObjectInfo, store: &Store) -> Self {
        let at = manifest.started_at;
        let beside = |file: &str| beside(&object.key, file);
        let result = |output: &crate::recording::OutputEntry| OutputResult {
            kind: output.kind,
            participant: output.participant.clone(),
            location: store.location(&beside(&output.file)),
            duration_seconds: output.duration_seconds,
            bytes: output.bytes,
            sha256: output.sha256.clone(),
        };
        let outputs: Vec<OutputResult> = manifest.outputs.iter().map(result).collect();
        let files = manifest.outputs.iter().map(|output| &output.file);
        let sidecars = manifest.sidecars.iter().map(|sidecar| &sidecar.file);
        let mut objects: Vec<String> = files.chain(sidecars).map(|file| beside(file)).collect();
        objects.push(object.key.clone());
        if !manifest.room.sid.is_empty() {
            // Where there is none, deleting it does nothing.
            objects.push(thumbnail_key(&manifest.room.sid, &manifest.recording_id));
        }
        let first = manifest.outputs.first();
        let status = if manifest.outcome == Outcome::Failed { Status::Failed } else { Status::Ready };
        // Where the bot recorded nothing itself, the egress did.
        let is_egress = !manifest.egress.is_empty() && manifest.tracks.is_empty();
        let mut participants: Vec<Participant> = manifest
            .participants
            .iter()
            .map(|one| Participant::new(one.identity.clone(), one.name.clone(), one.kind))
            .collect();
        participants.sort();
        participants.dedup_by(|next, one| next.identity == one.identity);
        let change = Change {
            status: Some(status),
            outcome: Some(manifest.outcome),
            reasons: serde_json::to_value(&manifest.reasons).ok(),
            egress_id: manifest.egress.first().map(|egress| egress.egress_id.clone()),
            room_id: Some(manifest.room.sid.clone()).filter(|sid| !sid.is_empty()),
            engine: is_egress.then(|| "egress".to_owned()),
            started_at: Some(at),
            ended_at: Some(manifest.ended_at),
            ready_at: Some(object.last_modified.unwrap_or(manifest.ended_at)),
            duration_seconds: Some(first.map_or(manifest.duration_seconds, |first| first.duration_seconds)),
            manifest: Some(store.location(&object.key)),
            file_url: outputs.first().map(|output| output.location.clone()),
            file_size_bytes: first.map(|first| first.bytes),
            file_format: first.map(|first| first.format.clone()),
            storage_key: first.map(|first| beside(&first.file)),
            is_processed: Some(status == Status::Ready),
            outputs: Some(outputs),
            objects: Some(objects),
            participants,
            ..Change::default()
        };
        let new = NewRecording::new(manifest.recording_id.clone(), manifest.room.name.clone(), at);
        Self { new, change, ended_at: manifest.ended_at }
    }

    /// What of it is to be taken over into a row that is there: everything where the row never came to its end, else where
    /// things are and who was there.
    fn beside(&self, row: &Row) -> Change {
        let change = self.change.clone();
        if !row.status.is_finished() || (row.status == Status::Failed && change.status == Some(Status::Ready)) {
            return Change { ready_at: change.ready_at.filter(|_| row.ready_at.is_none()), ..change };
        }
        Change {
            status: None,
            outcome: change.outcome.filter(|_| row.outcome.is_none()),
            reasons: None,
            started_at: change.started_at.filter(|_| row.started_at.is_none()),
            ended_at: change.ended_at.filter(|_| row.ended_at.is_none()),
            ready_at: change.ready_at.filter(|_| row.ready_at.is_none()),
            engine: None,
            is_processed: None,
            // Others may belong to it that no manifest knows.
            objects: change.objects.filter(|objects| objects.iter().any(|key| !row.objects.contains(key))),
            ..change
        }
    }

    /// What the manifest names and the store does not have so.
    fn lacking(&self, manifest: &Manifest, sizes: &BTreeMap<&str, u64>) -> Vec<String> {
        let objects = self.change.objects.iter().flatten();
        let bytes = manifest.outputs.iter().map(|output| output.bytes);
        let named = objects.zip(bytes.chain(manifest.sidecars.iter().map(|sidecar| sidecar.bytes)));
        named.filter(|(key, bytes)| sizes.get(key.as_str()) != Some(bytes)).map(|(key, _)| key.clone()).collect()
    }
}

/// Whether a key is worth a look: a JSON document that is no waveform and belongs to no recording that goes on.
fn may_be_manifest(key: &str) -> bool {
    let plain = key.strip_suffix(seal::EXT).and_then(|rest| rest.strip_suffix('.')).unwrap_or(key);
    let spool = default_spool(std::path::Path::new(""));
    let is_in_spool = key.split('/').any(|segment| std::path::Path::new(segment) == spool);
    plain.ends_with(".json") && !plain.ends_with(".peaks.json") && !LiveState::is_key(key) && !is_in_spool
}

/// The manifest in an object, or why it is none.
async fn read(store: &Store, object: &ObjectInfo) -> Result<Result<Manifest, String>, StoreError> {
    if object.key.ends_with(seal::EXT) {
        return Ok(Err("it is encrypted".to_owned()));
    }
    if object.size > MANIFEST_LIMIT {
        return Ok(Err(format!("{} bytes are too many for a manifest", object.size)));
    }
    let bytes = match store.get(&object.key, None).await {
        Ok(bytes) => bytes,
        // Deleted since it was listed, or not for us.
        Err(error @ (StoreError::NotFound(_) | StoreError::Refused(_))) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error),
    };
    let json: serde_json::Value = match serde_json::from_slice(&bytes) {
        Ok(json) => json,
        Err(error) => return Ok(Err(format!("it is no JSON: {error}"))),
    };
    match json["version"].as_u64() {
        Some(version) if version == u64::from(MANIFEST_VERSION) => {}
        Some(version) if json["recording_id"].is_string() => {
            return Ok(Err(format!("a manifest of form {version}, and this callreel knows {MANIFEST_VERSION}")));
        }
        _ => return Ok(Err("it is no manifest of callreel".to_owned())),
    }
    Ok(serde_json::from_value(json).map_err(|error| format!("it is no manifest of callreel: {error}")))
}

/// The key of a file beside the manifest of this key.
fn beside(key: &str, file: &str) -> String {
    match key.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{file}"),
        None => file.to_owned(),
    }
}

/// Where the small picture of a recording is, by the room's id and its own.
pub fn thumbnail_key(room_id: &str, recording_id: &str) -> String {
    format!("recordings/{room_id}/thumbnails/{recording_id}.png")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_a_manifest_is_read() {
        for key in ["a.json", "recordings/a b.json", "a.json.age"] {
            assert!(may_be_manifest(key), "{key}");
        }
        for key in
            ["a.ogg", "a.peaks.json", "a.peaks.json.age", "a.live/state.json", ".spool/x/a.json", "json", "a.json.bak"]
        {
            assert!(!may_be_manifest(key), "{key}");
        }
    }
}
