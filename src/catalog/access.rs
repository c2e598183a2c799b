//! Who looked at, listened to or changed which recording; and what time lets go.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::db::{Found, maybe, micros, query, rounded, text, within};
use super::{Catalog, CatalogError};

/// One access to a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// Its number; 0 before it is stored.
    #[serde(default)]
    pub id: i64,
    /// When, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// To which recording.
    pub recording_id: String,
    /// Who: the id of an API key, the identity of a LiveKit token, `signed-url`…
    pub who: String,
    /// What was done: `get`, `play`, `manifest`, `delete`…
    pub action: String,
    /// From which address.
    pub remote: Option<String>,
    /// The status code that was answered.
    pub status: u16,
}

/// What [`Catalog::prune`] let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deliveries that were taken long ago.
    pub deliveries: u64,
    /// Accesses of long ago.
    pub accesses: u64,
    /// Idempotency keys and ids of webhooks that have expired.
    pub expired: u64,
}

impl Catalog {
    /// Notes an access.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn log_access(&self, access: &Access) -> Result<(), CatalogError> {
        within(async {
            let sql =
                "INSERT INTO accesses (at, recording_id, who, action, remote, status) VALUES ($1, $2, $3, $4, $5, $6)";
            query(sql)
                .bind(micros(rounded(access.at)))
                .bind(text(&access.recording_id))
                .bind(text(&access.who))
                .bind(text(&access.action))
                .bind(maybe(access.remote.as_deref()))
                .bind(i64::from(access.status))
                .execute(self.db.pool())
                .await?;
            Ok(())
        })
        .await
    }

    /// Up to `limit` accesses to a recording, the last first, before the one of the number `before`.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn accesses(
        &self,
        recording_id: &str,
        before: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Access>, CatalogError> {
        within(async {
            let sql = "SELECT id, at, recording_id, who, action, remote, status FROM accesses \
                       WHERE recording_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
            let sql = query(sql).bind(text(recording_id)).bind(before.unwrap_or(i64::MAX));
            let found = sql.bind(i64::from(limit.clamp(1, super::MAX_PAGE))).fetch_all(self.db.pool()).await?;
            let read = |row| {
                let row = Found(row);
                Ok(Access {
                    id: row.get("id")?,
                    at: row.at("at")?,
                    recording_id: row.get("recording_id")?,
                    who: row.get("who")?,
                    action: row.get("action")?,
                    remote: row.get("remote")?,
                    status: u16::try_from(row.get::<i64>("status")?).unwrap_or(0),
                })
            };
            found.iter().map(read).collect()
        })
        .await
    }

    /// Lets go of deliveries that were taken before `delivered_before`, of accesses before `accessed_before`, and of everything
    /// that has expired at `now`. Recordings, tombstones and deliveries that were given up stay.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn prune(
        &self,
        now: OffsetDateTime,
        delivered_before: OffsetDateTime,
        accessed_before: OffsetDateTime,
    ) -> Result<Pruned, CatalogError> {
        let delete = async |sql: &'static str, before: OffsetDateTime| {
            within(async { Ok(query(sql).bind(micros(before)).execute(self.db.pool()).await?.rows_affected()) }).await
        };
        Ok(Pruned {
            deliveries: delete("DELETE FROM notices WHERE state = 'delivered' AND ended_at < $1", delivered_before)
                .await?,
            accesses: delete("DELETE FROM accesses WHERE at < $1", accessed_before).await?,
            expired: delete("DELETE FROM idempotency WHERE expires_at <= $1", now).await?
                + delete("DELETE FROM webhooks_seen WHERE expires_at <= $1", now).await?,
        })
    }
}
