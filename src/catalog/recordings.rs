//! Recordings: one begins, changes, is looked at, is deleted.

use std::fmt::Write as _;

use serde_json::Value;
use sqlx::any::AnyRow;
use time::OffsetDateTime;

use super::ENDED_BY_WORD;
use super::db::{Found, Statement, Tx, json, maybe, micros, query, rounded, text, within};
use super::outbox::Notice;
use super::row::{Change, Deleted, NewRecording, Owner, Participant, Row, Status};
use super::{Catalog, CatalogError};

/// What is stored of a row, in the order in which [`values`] gives it.
const COLUMNS: &str = "recording_id, egress_id, room_name, room_id, status, outcome, reasons, engine, rule, created_at, \
     started_at, ended_at, ready_at, updated_at, duration_seconds, outputs, objects, manifest, file_url, file_size_bytes, \
     file_format, storage_provider, storage_bucket, storage_key, is_processed, thumbnail_url, metadata, retention_until, \
     legal_hold, config, owner, owner_until, deleted_at, deleted_by, deleted_why, erased_at";

/// How often a room that others begin and end at the same time is looked at.
const ATTEMPTS: u32 = 8;

/// What is to be told of a recording, made of its row as it is stored.
pub trait Tell: Fn(&Row) -> Vec<Notice> + Send + Sync {}

impl<F: Fn(&Row) -> Vec<Notice> + Send + Sync> Tell for F {}

/// Where nobody is to be told.
pub fn nobody(_: &Row) -> Vec<Notice> {
    Vec::new()
}

impl Catalog {
    /// Begins a recording, and stores what `tell` makes of its row with it (see [`nobody`]). The same again gives the row that
    /// is there.
    ///
    /// # Errors
    ///
    /// [`CatalogError::AlreadyRecorded`] where a recorder is in the room or about to be, of whichever process;
    /// [`CatalogError::Exists`] where the id is another recording's.
    pub async fn begin(&self, new: NewRecording, tell: impl Tell) -> Result<Row, CatalogError> {
        let row = normal(new.into_row());
        within(async {
            for _ in 0..ATTEMPTS {
                if let Some(begun) = self.try_begin(&row, &tell).await? {
                    return Ok(begun);
                }
            }
            Err(CatalogError::Unavailable(format!("the room {:?} does not come to rest", row.room_name)))
        })
        .await
    }

    /// Changes a recording, and stores what `tell` makes of the row as it is then: both happen or neither.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NotFound`]; [`CatalogError::Finished`] where the change would begin it anew;
    /// [`CatalogError::AlreadyRecorded`] where it would put a second recorder into the room; [`CatalogError::Deleted`].
    pub async fn update(
        &self,
        recording_id: &str,
        change: &Change,
        at: OffsetDateTime,
        tell: impl Tell,
    ) -> Result<Row, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = self.locked(&mut tx, recording_id).await?;
            if row.deleted.is_some() {
                return Err(CatalogError::Deleted { recording_id: row.recording_id });
            }
            let becomes = change.status.unwrap_or(row.status);
            let stays = becomes == row.status || (row.status, becomes) == (Status::Failed, Status::Ready);
            if row.status.is_finished() && !stays {
                return Err(CatalogError::Finished { recording_id: row.recording_id, status: row.status });
            }
            if becomes.is_in_room() && !row.status.is_in_room() {
                self.room_is_free(&mut tx, &row.room_name).await?;
            }
            let before = std::mem::take(&mut row.objects);
            let is_new = change.objects.is_some();
            change.apply(&mut row);
            if row.status.is_finished() || !is_new {
                // Whatever was its own once is erased with it.
                row.objects.extend(before);
                row.objects.sort();
                row.objects.dedup();
            }
            row.updated_at = at;
            let mut row = normal(row);
            write(&mut tx, &row).await?;
            note_participants(&mut tx, recording_id, &change.participants).await?;
            row.participants = participants_in(&mut tx, recording_id).await?;
            self.tell_and_commit(tx, &tell(&row)).await?;
            Ok(row)
        })
        .await
    }

    /// Puts down a recording that is over and has no row yet, as one that is being finished. The same again changes nothing.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn add_late(&self, new: NewRecording) -> Result<(), CatalogError> {
        let row = normal(Row { status: Status::Stopping, ..new.into_row() });
        within(async {
            let mut tx = self.db.begin().await?;
            insert(&mut tx, &row).await?;
            tx.commit().await?;
            Ok(())
        })
        .await
    }

    /// The recording of this id, deleted ones too; none where there is no such.
    ///
    /// # Errors
    ///
    /// What any call may meet: [`CatalogError::Unavailable`], [`CatalogError::Refused`], [`CatalogError::Damaged`].
    pub async fn get(&self, recording_id: &str) -> Result<Option<Row>, CatalogError> {
        let found = self.rows("WHERE recording_id = $1", |sql| sql.bind(text(recording_id))).await?;
        Ok(found.into_iter().next())
    }

    /// The recording that an egress makes; none where none is known.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn by_egress(&self, egress_id: &str) -> Result<Option<Row>, CatalogError> {
        let found = self.rows("WHERE egress_id = $1 ORDER BY id DESC", |sql| sql.bind(text(egress_id))).await?;
        Ok(found.into_iter().next())
    }

    /// The recording whose recorder is in this room or about to be; none where nobody records it.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn recorded(&self, room_name: &str) -> Result<Option<Row>, CatalogError> {
        let which = "WHERE room_name = $1 AND status IN ('starting', 'active', 'paused') AND deleted_at IS NULL";
        let found = self.rows(which, |sql| sql.bind(text(room_name))).await?;
        Ok(found.into_iter().next())
    }

    /// All recordings that are not finished, oldest first.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn unfinished(&self) -> Result<Vec<Row>, CatalogError> {
        let which = "WHERE status IN ('starting', 'active', 'paused', 'stopping') AND deleted_at IS NULL ORDER BY id";
        self.rows(which, |sql| sql).await
    }

    /// Up to `limit` finished recordings whose time is over at `now`, and that nothing forbids deleting.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn expired(&self, now: OffsetDateTime, limit: u32) -> Result<Vec<Row>, CatalogError> {
        let which = "WHERE retention_until <= $1 AND legal_hold = 0 AND status IN ('ready', 'failed') \
                     AND deleted_at IS NULL ORDER BY retention_until, id LIMIT $2";
        self.rows(which, |sql| sql.bind(micros(now)).bind(i64::from(limit))).await
    }

    /// Forbids deleting a recording, or allows it again.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NotFound`]; [`CatalogError::Deleted`] where it is too late.
    pub async fn hold(&self, recording_id: &str, held: bool, at: OffsetDateTime) -> Result<Row, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = self.locked(&mut tx, recording_id).await?;
            if row.deleted.is_some() {
                return Err(CatalogError::Deleted { recording_id: row.recording_id });
            }
            (row.legal_hold, row.updated_at) = (held, rounded(at));
            write(&mut tx, &row).await?;
            row.participants = participants_in(&mut tx, recording_id).await?;
            tx.commit().await?;
            Ok(row)
        })
        .await
    }

    /// Takes over a recording that is not finished, for `owner`: one that is nobody's, its own, or of a process that did not
    /// say in time that it lives. None where it is somebody else's, or finished.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NotFound`].
    pub async fn adopt(
        &self,
        recording_id: &str,
        owner: &Owner,
        now: OffsetDateTime,
    ) -> Result<Option<Row>, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = self.locked(&mut tx, recording_id).await?;
            let is_free = row.owner.as_ref().is_none_or(|old| old.instance == owner.instance || old.until <= now);
            if row.status.is_finished() || row.deleted.is_some() || !is_free {
                return Ok(None);
            }
            (row.owner, row.updated_at) = (Some(owner.clone()), now);
            let mut row = normal(row);
            write(&mut tx, &row).await?;
            row.participants = participants_in(&mut tx, recording_id).await?;
            tx.commit().await?;
            Ok(Some(row))
        })
        .await
    }

    /// Says that a process lives: all recordings that are its stay so until then. Gives how many these are.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn keep_owned(&self, owner: &Owner) -> Result<u64, CatalogError> {
        within(async {
            let sql = "UPDATE recordings SET owner_until = $1 \
                       WHERE owner = $2 AND status IN ('starting', 'active', 'paused', 'stopping')";
            let done = query(sql).bind(micros(owner.until)).bind(text(&owner.instance));
            Ok(done.execute(self.db.pool()).await?.rows_affected())
        })
        .await
    }

    /// Asks for a finished recording to be deleted: from now on it is on no list. What belongs to it is erased by whoever
    /// goes through [`erasing`](Self::erasing), which a crash does not end. The same again changes nothing.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NotFound`]; [`CatalogError::Held`]; [`CatalogError::Unfinished`].
    pub async fn delete(
        &self,
        recording_id: &str,
        by: &str,
        why: &str,
        at: OffsetDateTime,
    ) -> Result<Row, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = self.locked(&mut tx, recording_id).await?;
            if row.deleted.is_none() {
                if row.legal_hold {
                    return Err(CatalogError::Held { recording_id: row.recording_id });
                }
                if !row.status.is_finished() {
                    return Err(CatalogError::Unfinished { recording_id: row.recording_id, status: row.status });
                }
                row.deleted = Some(Deleted { at, by: by.to_owned(), why: why.to_owned(), erased_at: None });
                row.updated_at = at;
                row = normal(row);
                write(&mut tx, &row).await?;
            }
            row.participants = participants_in(&mut tx, recording_id).await?;
            tx.commit().await?;
            Ok(row)
        })
        .await
    }

    /// Up to `limit` recordings that were to be deleted, and of which objects may be left.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub async fn erasing(&self, limit: u32) -> Result<Vec<Row>, CatalogError> {
        let which = "WHERE deleted_at IS NOT NULL AND erased_at IS NULL ORDER BY deleted_at, id LIMIT $1";
        self.rows(which, |sql| sql.bind(i64::from(limit))).await
    }

    /// Makes a deleted recording a tombstone, once the last of its objects is gone: who was there, where it was, what it said
    /// about people, and what was still to be told of it are forgotten. Its id, room, times, and by whom and why it was
    /// deleted stay. What `tell` makes of it is told. The same again changes nothing.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NotFound`]; [`CatalogError::Unfinished`] where nobody asked for it to be deleted.
    pub async fn tombstone(
        &self,
        recording_id: &str,
        at: OffsetDateTime,
        tell: impl Tell,
    ) -> Result<Row, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            let mut row = self.locked(&mut tx, recording_id).await?;
            let Some(deleted) = row.deleted.as_mut() else {
                return Err(CatalogError::Unfinished { recording_id: row.recording_id, status: row.status });
            };
            if deleted.erased_at.is_some() {
                return Ok(row);
            }
            deleted.erased_at = Some(at);
            row.updated_at = at;
            row.reasons = Value::Array(Vec::new());
            row.metadata = Value::Object(serde_json::Map::new());
            row.config = match row.config.get(ENDED_BY_WORD) {
                Some(ended) => serde_json::json!({ (ENDED_BY_WORD): ended }),
                None => Value::Null,
            };
            (row.outputs, row.objects) = (Vec::new(), Vec::new());
            (row.manifest, row.file_url, row.storage_key, row.thumbnail_url) = (None, None, None, None);
            (row.owner, row.retention_until) = (None, None);
            let row = normal(row);
            write(&mut tx, &row).await?;
            for table in ["participants", "notices"] {
                let sql = format!("DELETE FROM {table} WHERE recording_id = $1");
                query(sql).bind(text(recording_id)).execute(&mut *tx).await?;
            }
            self.tell_and_commit(tx, &tell(&row)).await?;
            Ok(row)
        })
        .await
    }

    /// Rows as they are found, with who was there.
    pub(super) async fn rows(
        &self,
        which: &str,
        bind: impl FnOnce(Statement) -> Statement,
    ) -> Result<Vec<Row>, CatalogError> {
        within(async {
            // One transaction would hold up others on SQLite; of a row that changes meanwhile it shows more people at most.
            let sql = bind(query(format!("SELECT id, {COLUMNS} FROM recordings {which}")));
            let found = sql.fetch_all(self.db.pool()).await?;
            let mut rows = found.iter().map(read).collect::<Result<Vec<Row>, _>>()?;
            self.add_participants(&mut rows).await?;
            Ok(rows)
        })
        .await
    }

    async fn add_participants(&self, rows: &mut [Row]) -> Result<(), CatalogError> {
        if rows.is_empty() {
            return Ok(());
        }
        // Fewer than either database takes values in one statement.
        for rows in rows.chunks_mut(500) {
            let sql = format!(
                "SELECT recording_id, identity, name, kind FROM participants WHERE recording_id IN ({})",
                numbers(1, rows.len())
            );
            let sql = rows.iter().fold(query(sql), |sql, row| sql.bind(row.recording_id.clone()));
            for found in sql.fetch_all(self.db.pool()).await? {
                let recording_id: String = Found(&found).get("recording_id")?;
                if let Some(row) = rows.iter_mut().find(|row| row.recording_id == recording_id) {
                    row.participants.push(participant(&found)?);
                }
            }
            // Each database has an order of texts of its own.
            rows.iter_mut().for_each(|row| row.participants.sort());
        }
        Ok(())
    }

    /// Begins, or gives none where another one was there and is gone again.
    async fn try_begin(&self, row: &Row, tell: &impl Tell) -> Result<Option<Row>, CatalogError> {
        let mut tx = self.db.begin().await?;
        if let Some(id) = insert(&mut tx, row).await? {
            let row = Row { id, ..row.clone() };
            self.tell_and_commit(tx, &tell(&row)).await?;
            return Ok(Some(row));
        }
        drop(tx);
        if let Some(there) = self.get(&row.recording_id).await? {
            let is_same = there.room_name == row.room_name && there.created_at == row.created_at;
            let recording_id = there.recording_id.clone();
            return if is_same { Ok(Some(there)) } else { Err(CatalogError::Exists { recording_id }) };
        }
        match self.recorded(&row.room_name).await? {
            Some(there) => Err(CatalogError::AlreadyRecorded { recording_id: there.recording_id }),
            None => Ok(None),
        }
    }

    async fn room_is_free(&self, tx: &mut Tx, room_name: &str) -> Result<(), CatalogError> {
        let sql = "SELECT recording_id FROM recordings \
                   WHERE room_name = $1 AND status IN ('starting', 'active', 'paused') AND deleted_at IS NULL";
        match query(sql).bind(room_name.to_owned()).fetch_optional(&mut **tx).await? {
            Some(found) => Err(CatalogError::AlreadyRecorded { recording_id: Found(&found).get("recording_id")? }),
            None => Ok(()),
        }
    }

    /// A row that nobody else changes until the transaction ends, without who was there.
    pub(super) async fn locked(&self, tx: &mut Tx, recording_id: &str) -> Result<Row, CatalogError> {
        let lock = self.db.for_update();
        let sql = format!("SELECT id, {COLUMNS} FROM recordings WHERE recording_id = $1{lock}");
        match query(sql).bind(text(recording_id)).fetch_optional(&mut **tx).await? {
            Some(found) => read(&found),
            None => Err(CatalogError::NotFound { recording_id: recording_id.to_owned() }),
        }
    }
}

/// `$from, $from+1, …`: the places of so many values.
pub(super) fn numbers(from: usize, count: usize) -> String {
    let mut places = String::new();
    for number in from..from + count {
        let comma = if number == from { "" } else { ", " };
        // Writing to a string does not fail.
        let _ = write!(places, "{comma}${number}");
    }
    places
}

/// A row as it will be read again.
pub(super) fn normal(mut row: Row) -> Row {
    for place in [&mut row.recording_id, &mut row.room_name, &mut row.room_id, &mut row.engine] {
        *place = text(place);
    }
    for place in [&mut row.file_format, &mut row.storage_provider] {
        *place = text(place);
    }
    for place in [&mut row.egress_id, &mut row.rule, &mut row.manifest, &mut row.file_url, &mut row.storage_bucket] {
        *place = maybe(place.as_deref());
    }
    for place in [&mut row.storage_key, &mut row.thumbnail_url] {
        *place = maybe(place.as_deref());
    }
    for place in [&mut row.created_at, &mut row.updated_at] {
        *place = rounded(*place);
    }
    for place in [&mut row.started_at, &mut row.ended_at, &mut row.ready_at, &mut row.retention_until] {
        *place = place.map(rounded);
    }
    if let Some(owner) = &mut row.owner {
        (owner.instance, owner.until) = (text(&owner.instance), rounded(owner.until));
    }
    if let Some(deleted) = &mut row.deleted {
        (deleted.by, deleted.why, deleted.at) = (text(&deleted.by), text(&deleted.why), rounded(deleted.at));
        deleted.erased_at = deleted.erased_at.map(rounded);
    }
    row
}

/// The values of [`COLUMNS`].
fn values(sql: Statement, row: &Row) -> Statement {
    let (owner, deleted) = (row.owner.as_ref(), row.deleted.as_ref());
    sql.bind(row.recording_id.clone())
        .bind(row.egress_id.clone())
        .bind(row.room_name.clone())
        .bind(row.room_id.clone())
        .bind(row.status.as_str())
        .bind(row.outcome.map(|outcome| outcome.to_string()))
        .bind(json(&row.reasons))
        .bind(row.engine.clone())
        .bind(row.rule.clone())
        .bind(micros(row.created_at))
        .bind(row.started_at.map(micros))
        .bind(row.ended_at.map(micros))
        .bind(row.ready_at.map(micros))
        .bind(micros(row.updated_at))
        .bind(row.duration_seconds)
        .bind(json(&row.outputs))
        .bind(json(&row.objects))
        .bind(row.manifest.clone())
        .bind(row.file_url.clone())
        .bind(i64::try_from(row.file_size_bytes).unwrap_or(i64::MAX))
        .bind(row.file_format.clone())
        .bind(row.storage_provider.clone())
        .bind(row.storage_bucket.clone())
        .bind(row.storage_key.clone())
        .bind(i64::from(row.is_processed))
        .bind(row.thumbnail_url.clone())
        .bind(json(&row.metadata))
        .bind(row.retention_until.map(micros))
        .bind(i64::from(row.legal_hold))
        .bind(json(&row.config))
        .bind(owner.map(|owner| owner.instance.clone()))
        .bind(owner.map(|owner| micros(owner.until)))
        .bind(deleted.map(|deleted| micros(deleted.at)))
        .bind(deleted.map(|deleted| deleted.by.clone()))
        .bind(deleted.map(|deleted| deleted.why.clone()))
        .bind(deleted.and_then(|deleted| deleted.erased_at).map(micros))
}

/// Stores a new row, and gives its number; none where another is in its way.
pub(super) async fn insert(tx: &mut Tx, row: &Row) -> Result<Option<i64>, CatalogError> {
    let places = numbers(1, COLUMNS.split(", ").count());
    let sql = format!("INSERT INTO recordings ({COLUMNS}) VALUES ({places}) ON CONFLICT DO NOTHING RETURNING id");
    let found = values(query(sql), row).fetch_optional(&mut **tx).await?;
    found.map(|found| Found(&found).get("id")).transpose()
}

/// Writes all of a row that is there.
pub(super) async fn write(tx: &mut Tx, row: &Row) -> Result<(), CatalogError> {
    let count = COLUMNS.split(", ").count();
    let set: Vec<String> =
        COLUMNS.split(", ").zip(1..).map(|(column, number)| format!("{column} = ${number}")).collect();
    let sql = format!("UPDATE recordings SET {} WHERE recording_id = ${}", set.join(", "), count + 1);
    match values(query(sql), row).bind(row.recording_id.clone()).execute(&mut **tx).await {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
            Err(CatalogError::Unavailable(format!("another recording of {:?} began at this moment", row.room_name)))
        }
        Err(error) => Err(error.into()),
    }
}

/// A row of [`COLUMNS`], without who was there.
fn read(found: &AnyRow) -> Result<Row, CatalogError> {
    let found = Found(found);
    let owner = match (found.get::<Option<String>>("owner")?, found.maybe_at("owner_until")?) {
        (Some(instance), Some(until)) => Some(Owner { instance, until }),
        _ => None,
    };
    let deleted = match found.maybe_at("deleted_at")? {
        Some(at) => Some(Deleted {
            at,
            by: found.get::<Option<String>>("deleted_by")?.unwrap_or_default(),
            why: found.get::<Option<String>>("deleted_why")?.unwrap_or_default(),
            erased_at: found.maybe_at("erased_at")?,
        }),
        None => None,
    };
    let outcome = match found.get::<Option<String>>("outcome")? {
        Some(word) => Some(
            serde_json::from_value(Value::String(word))
                .map_err(|error| CatalogError::Damaged(format!("outcome: {error}")))?,
        ),
        None => None,
    };
    Ok(Row {
        id: found.get("id")?,
        recording_id: found.get("recording_id")?,
        egress_id: found.get("egress_id")?,
        room_name: found.get("room_name")?,
        room_id: found.get("room_id")?,
        status: found.word("status")?,
        outcome,
        reasons: found.json("reasons")?,
        engine: found.get("engine")?,
        rule: found.get("rule")?,
        created_at: found.at("created_at")?,
        started_at: found.maybe_at("started_at")?,
        ended_at: found.maybe_at("ended_at")?,
        ready_at: found.maybe_at("ready_at")?,
        updated_at: found.at("updated_at")?,
        duration_seconds: found.get("duration_seconds")?,
        outputs: found.json("outputs")?,
        objects: found.json("objects")?,
        manifest: found.get("manifest")?,
        file_url: found.get("file_url")?,
        file_size_bytes: u64::try_from(found.get::<i64>("file_size_bytes")?).unwrap_or(0),
        file_format: found.get("file_format")?,
        storage_provider: found.get("storage_provider")?,
        storage_bucket: found.get("storage_bucket")?,
        storage_key: found.get("storage_key")?,
        is_processed: found.flag("is_processed")?,
        thumbnail_url: found.get("thumbnail_url")?,
        metadata: found.json("metadata")?,
        participants: Vec::new(),
        retention_until: found.maybe_at("retention_until")?,
        legal_hold: found.flag("legal_hold")?,
        config: found.json("config")?,
        owner,
        deleted,
    })
}

/// Notes that these were there; what is newly known of them takes the place of what was.
pub(super) async fn note_participants(
    tx: &mut Tx,
    recording_id: &str,
    participants: &[Participant],
) -> Result<(), CatalogError> {
    let sql = "INSERT INTO participants (recording_id, identity, name, kind) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (recording_id, identity) DO UPDATE SET name = excluded.name, kind = excluded.kind";
    for Participant { identity, name, kind } in participants {
        let sql = query(sql).bind(text(recording_id)).bind(text(identity)).bind(text(name)).bind(text(kind));
        sql.execute(&mut **tx).await?;
    }
    Ok(())
}

pub(super) async fn participants_in(tx: &mut Tx, recording_id: &str) -> Result<Vec<Participant>, CatalogError> {
    let sql = "SELECT identity, name, kind FROM participants WHERE recording_id = $1";
    let found = query(sql).bind(text(recording_id)).fetch_all(&mut **tx).await?;
    let mut participants = found.iter().map(participant).collect::<Result<Vec<_>, _>>()?;
    participants.sort();
    Ok(participants)
}

fn participant(found: &AnyRow) -> Result<Participant, CatalogError> {
    let found = Found(found);
    Ok(Participant { identity: found.get("identity")?, name: found.get("name")?, kind: found.get("kind")? })
}
