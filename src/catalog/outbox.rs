//! Deliveries of outgoing webhooks: stored with the change they tell of, and kept until they were taken or given up.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::any::AnyRow;
use time::OffsetDateTime;
use tokio::sync::watch;
use ulid::Ulid;

use super::db::{Found, Tx, json, maybe, micros, query, rounded, text, within};
use super::recordings::numbers;
use super::{Catalog, CatalogError};

/// Something that one receiver is to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// The delivery's id: the same at every attempt.
    pub id: String,
    /// What makes it the same as another notice, which then is not stored: of what, and to whom.
    pub once: String,
    /// What happened: `recording.ready`…
    pub event: String,
    /// To which recording.
    pub recording_id: String,
    /// Who is to be told, by the name the receiver has in the configuration.
    pub endpoint: String,
    /// What the body is made of when it is sent.
    pub body: Value,
    /// When it happened.
    pub at: OffsetDateTime,
}

impl Notice {
    /// A notice with an id of its own. `once` names the happening; that and the receiver make it the same as another.
    pub fn new(once: &str, event: &str, recording_id: &str, endpoint: &str, body: Value, at: OffsetDateTime) -> Self {
        Self {
            id: format!("WD_{}", Ulid::from_datetime(at.into())),
            once: format!("{once}@{endpoint}"),
            event: event.to_owned(),
            recording_id: recording_id.to_owned(),
            endpoint: endpoint.to_owned(),
            body,
            at,
        }
    }
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryState {
    /// It was not taken yet.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was given up; it can be told to go again.
    Dead,
}

impl DeliveryState {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl FromStr for DeliveryState {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "pending" => Ok(Self::Pending),
            "delivered" => Ok(Self::Delivered),
            "dead" => Ok(Self::Dead),
            _ => Err(format!("{word:?} is no state of a delivery (pending, delivered, dead)")),
        }
    }
}

/// A notice and what became of it so far. Moments are UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its id.
    pub id: String,
    /// What happened.
    pub event: String,
    /// To which recording.
    pub recording_id: String,
    /// Who is to be told.
    pub endpoint: String,
    /// What the body is made of.
    pub body: Value,
    /// How it stands.
    pub state: DeliveryState,
    /// How often it was tried.
    pub attempts: u32,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Since when it is tried: since it happened, or since it was told to go again.
    #[serde(with = "time::serde::rfc3339")]
    pub tried_since: OffsetDateTime,
    /// When it is tried next.
    #[serde(with = "time::serde::rfc3339")]
    pub next_at: OffsetDateTime,
    /// When it was taken or given up.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// The receiver's last status code.
    pub last_status: Option<u16>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Whose attempt it is; what ends an attempt names it.
    #[serde(skip)]
    pub claim: Option<String>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The receiver's status code; none where there was no answer.
    pub status: Option<u16>,
    /// What went wrong; none where nothing did.
    pub error: Option<String>,
    /// When it ended.
    pub at: OffsetDateTime,
}

/// How many deliveries stand how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeliveryCounts {
    /// Not taken yet.
    pub pending: u64,
    /// Given up.
    pub dead: u64,
}

const COLUMNS: &str = "id, event, recording_id, endpoint, body, state, attempts, created_at, tried_since, next_at, \
     ended_at, last_status, last_error, claim";

/// Stores notices in a transaction; those that are there already stay as they are.
async fn insert(tx: &mut Tx, notices: &[Notice]) -> Result<(), CatalogError> {
    let sql = "INSERT INTO notices (id, once, event, recording_id, endpoint, body, state, attempts, created_at, \
               tried_since, next_at, claimed_until) VALUES ($1, $2, $3, $4, $5, $6, 'pending', 0, $7, $7, $7, 0) \
               ON CONFLICT DO NOTHING";
    for notice in notices {
        query(sql)
            .bind(text(&notice.id))
            .bind(text(&notice.once))
            .bind(text(&notice.event))
            .bind(text(&notice.recording_id))
            .bind(text(&notice.endpoint))
            .bind(json(&notice.body))
            .bind(micros(notice.at))
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

impl Catalog {
    /// Stores what is to be told without anything else changing.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn enqueue(&self, notices: &[Notice]) -> Result<(), CatalogError> {
        within(async { self.tell_and_commit(self.db.begin().await?, notices).await }).await
    }

    /// Ends a transaction with what is to be told of it, and wakes those of this process who deliver.
    pub(super) async fn tell_and_commit(&self, mut tx: Tx, notices: &[Notice]) -> Result<(), CatalogError> {
        insert(&mut tx, notices).await?;
        tx.commit().await?;
        if !notices.is_empty() {
            self.told.send_modify(|count| *count = count.wrapping_add(1));
        }
        Ok(())
    }

    /// Tells when this process has stored something to be delivered.
    pub(crate) fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// Takes up to `limit` deliveries to these endpoints whose time has come, the longest due first. Until `until` nobody else
    /// is given them; who ends an attempt later than that, after somebody else was given it, ends nothing.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn due(
        &self,
        endpoints: &[&str],
        now: OffsetDateTime,
        until: OffsetDateTime,
        limit: u32,
    ) -> Result<Vec<Delivery>, CatalogError> {
        if endpoints.is_empty() {
            return Ok(Vec::new());
        }
        within(async {
            let mut tx = self.db.begin().await?;
            let (places, lock) = (numbers(3, endpoints.len()), self.db.for_update_skip_locked());
            let sql = format!(
                "SELECT {COLUMNS} FROM notices WHERE state = 'pending' AND next_at <= $1 AND claimed_until <= $1 \
                 AND endpoint IN ({places}) ORDER BY next_at, id LIMIT $2{lock}"
            );
            let sql = query(sql).bind(micros(now)).bind(i64::from(limit));
            let sql = endpoints.iter().fold(sql, |sql, endpoint| sql.bind(text(endpoint)));
            let found = sql.fetch_all(&mut *tx).await?;
            let mut taken = found.iter().map(read).collect::<Result<Vec<_>, _>>()?;
            let claim = Ulid::new().to_string();
            let sql = "UPDATE notices SET claimed_until = $1, claim = $2, attempts = attempts + 1 WHERE id = $3";
            for delivery in &mut taken {
                query(sql).bind(micros(until)).bind(claim.clone()).bind(delivery.id.clone()).execute(&mut *tx).await?;
                delivery.claim = Some(claim.clone());
                delivery.attempts += 1;
            }
            tx.commit().await?;
            Ok(taken)
        })
        .await
    }

    /// When the next delivery to these endpoints is due, also where somebody has taken it; none where nothing is pending.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn next_due(&self, endpoints: &[&str]) -> Result<Option<OffsetDateTime>, CatalogError> {
        if endpoints.is_empty() {
            return Ok(None);
        }
        within(async {
            let sql = format!(
                "SELECT MIN(CASE WHEN claimed_until > next_at THEN claimed_until ELSE next_at END) AS due FROM notices \
                 WHERE state = 'pending' AND endpoint IN ({})",
                numbers(1, endpoints.len())
            );
            let sql = endpoints.iter().fold(query(sql), |sql, endpoint| sql.bind(text(endpoint)));
            let found = sql.fetch_one(self.db.pool()).await?;
            Found(&found).maybe_at("due")
        })
        .await
    }

    /// Notes that the receiver took a delivery. Gives whether the attempt was still this one's.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn delivered(&self, delivery: &Delivery, attempt: &Attempt) -> Result<bool, CatalogError> {
        self.end(delivery, attempt, DeliveryState::Delivered, attempt.at).await
    }

    /// Notes that an attempt failed; the next is due at `next_at`. Gives whether the attempt was still this one's.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn failed(
        &self,
        delivery: &Delivery,
        attempt: &Attempt,
        next_at: OffsetDateTime,
    ) -> Result<bool, CatalogError> {
        self.end(delivery, attempt, DeliveryState::Pending, next_at).await
    }

    /// Gives a delivery up after its last attempt. Gives whether the attempt was still this one's.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn dead(&self, delivery: &Delivery, attempt: &Attempt) -> Result<bool, CatalogError> {
        self.end(delivery, attempt, DeliveryState::Dead, attempt.at).await
    }

    /// Lets a delivery go again at once, whatever became of it: with the same id, and as many attempts as a new one.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NoEntry`]; as [`enqueue`](Self::enqueue).
    pub async fn redeliver(&self, id: &str, now: OffsetDateTime) -> Result<Delivery, CatalogError> {
        within(async {
            let sql = format!(
                "UPDATE notices SET state = 'pending', attempts = 0, tried_since = $1, next_at = $1, claimed_until = 0, claim = NULL, \
                 ended_at = NULL WHERE id = $2 RETURNING {COLUMNS}"
            );
            let sql = query(sql).bind(micros(now)).bind(text(id));
            match sql.fetch_optional(self.db.pool()).await? {
                Some(found) => {
                    self.told.send_modify(|count| *count = count.wrapping_add(1));
                    read(&found)
                }
                None => Err(CatalogError::NoEntry { what: "delivery", id: id.to_owned() }),
            }
        })
        .await
    }

    /// One delivery; none where there is no such.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn delivery(&self, id: &str) -> Result<Option<Delivery>, CatalogError> {
        within(async {
            let sql = query(format!("SELECT {COLUMNS} FROM notices WHERE id = $1")).bind(text(id));
            sql.fetch_optional(self.db.pool()).await?.as_ref().map(read).transpose()
        })
        .await
    }

    /// Up to `limit` deliveries that stand so, or of this recording, the newest first, before the one of the id `before`.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn deliveries(
        &self,
        state: Option<DeliveryState>,
        recording_id: Option<&str>,
        before: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Delivery>, CatalogError> {
        within(async {
            // Values that are not asked for are compared with themselves, so that one statement does for all.
            let sql = format!(
                "SELECT {COLUMNS} FROM notices WHERE ($1 = '' OR state = $1) AND ($2 = '' OR recording_id = $2) \
                 AND ($3 = '' OR id < $3) ORDER BY id DESC LIMIT $4"
            );
            let sql = query(sql)
                .bind(state.map_or("", DeliveryState::as_str))
                .bind(recording_id.map(text).unwrap_or_default())
                .bind(before.map(text).unwrap_or_default())
                .bind(i64::from(limit.clamp(1, super::MAX_PAGE)));
            sql.fetch_all(self.db.pool()).await?.iter().map(read).collect()
        })
        .await
    }

    /// How many deliveries are not taken yet, and how many were given up.
    ///
    /// # Errors
    ///
    /// As [`enqueue`](Self::enqueue).
    pub async fn delivery_counts(&self) -> Result<DeliveryCounts, CatalogError> {
        within(async {
            let sql = "SELECT state, COUNT(*) AS found FROM notices WHERE state <> 'delivered' GROUP BY state";
            let mut counts = DeliveryCounts::default();
            for row in query(sql).fetch_all(self.db.pool()).await? {
                let row = Found(&row);
                let found = u64::try_from(row.get::<i64>("found")?).unwrap_or(0);
                match row.word("state")? {
                    DeliveryState::Pending => counts.pending = found,
                    DeliveryState::Dead => counts.dead = found,
                    DeliveryState::Delivered => {}
                }
            }
            Ok(counts)
        })
        .await
    }

    async fn end(
        &self,
        delivery: &Delivery,
        attempt: &Attempt,
        state: DeliveryState,
        next_at: OffsetDateTime,
    ) -> Result<bool, CatalogError> {
        let ended_at = (state != DeliveryState::Pending).then(|| micros(rounded(attempt.at)));
        within(async {
            let sql = "UPDATE notices SET state = $1, next_at = $2, ended_at = $3, last_status = $4, last_error = $5, \
                       claimed_until = 0, claim = NULL WHERE id = $6 AND claim = $7";
            let done = query(sql)
                .bind(state.as_str())
                .bind(micros(next_at))
                .bind(ended_at)
                .bind(attempt.status.map(i64::from))
                .bind(maybe(attempt.error.as_deref()))
                .bind(delivery.id.clone())
                .bind(delivery.claim.clone().unwrap_or_default());
            Ok(done.execute(self.db.pool()).await?.rows_affected() > 0)
        })
        .await
    }
}

fn read(found: &AnyRow) -> Result<Delivery, CatalogError> {
    let found = Found(found);
    Ok(Delivery {
        id: found.get("id")?,
        event: found.get("event")?,
        recording_id: found.get("recording_id")?,
        endpoint: found.get("endpoint")?,
        body: found.json("body")?,
        state: found.word("state")?,
        attempts: u32::try_from(found.get::<i64>("attempts")?).unwrap_or(u32::MAX),
        created_at: found.at("created_at")?,
        tried_since: found.at("tried_since")?,
        next_at: found.at("next_at")?,
        ended_at: found.maybe_at("ended_at")?,
        last_status: found.get::<Option<i64>>("last_status")?.and_then(|status| u16::try_from(status).ok()),
        last_error: found.get("last_error")?,
        claim: found.get("claim")?,
    })
}
