//! What must happen once: requests with an idempotency key, webhooks that come twice, work that one process does for all.

use time::OffsetDateTime;

use super::db::{Found, micros, query, text, within};
use super::{Catalog, CatalogError};

/// An answer that was given, to be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// What an idempotency key says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Idempotency {
    /// Carry it out, then [`remember`](Catalog::remember) the answer or [`forget`](Catalog::forget) the key.
    New,
    /// It was carried out; this was the answer.
    Done(Answer),
    /// It is being carried out.
    InProgress,
    /// The key was used with another request.
    Other,
}

impl Catalog {
    /// Reserves `key` of `caller` for a request with this hash until `claimed_until`: whoever carries it out has to have
    /// answered by then, else another may. The answer is kept until `expires_at`.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn idempotency(
        &self,
        caller: &str,
        key: &str,
        request_hash: &str,
        now: OffsetDateTime,
        claimed_until: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Result<Idempotency, CatalogError> {
        within(async {
            let mut tx = self.db.begin().await?;
            // What has expired, and what nobody answered in time, is as if it had never been.
            let sql = "DELETE FROM idempotency WHERE caller = $1 AND key = $2 \
                       AND (expires_at <= $3 OR (status IS NULL AND claimed_until <= $3))";
            query(sql).bind(text(caller)).bind(text(key)).bind(micros(now)).execute(&mut *tx).await?;
            let sql = "INSERT INTO idempotency (caller, key, request, claimed_until, expires_at) \
                       VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
            let reserved = query(sql)
                .bind(text(caller))
                .bind(text(key))
                .bind(text(request_hash))
                .bind(micros(claimed_until))
                .bind(micros(expires_at))
                .execute(&mut *tx)
                .await?
                .rows_affected();
            if reserved > 0 {
                tx.commit().await?;
                return Ok(Idempotency::New);
            }
            let sql = "SELECT request, status, body FROM idempotency WHERE caller = $1 AND key = $2";
            let found = query(sql).bind(text(caller)).bind(text(key)).fetch_optional(&mut *tx).await?;
            // Forgotten by another at this moment: it is new to the next attempt.
            let Some(found) = found else { return Ok(Idempotency::InProgress) };
            let found = Found(&found);
            if found.get::<String>("request")? != text(request_hash) {
                return Ok(Idempotency::Other);
            }
            let status = found.get::<Option<i64>>("status")?.and_then(|status| u16::try_from(status).ok());
            Ok(match (status, found.get::<Option<String>>("body")?) {
                (Some(status), Some(body)) => Idempotency::Done(Answer { status, body }),
                _ => Idempotency::InProgress,
            })
        })
        .await
    }

    /// Keeps the answer to a request that was [`New`](Idempotency::New).
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn remember(&self, caller: &str, key: &str, answer: &Answer) -> Result<(), CatalogError> {
        within(async {
            let sql = "UPDATE idempotency SET status = $1, body = $2 WHERE caller = $3 AND key = $4";
            let sql = query(sql).bind(i64::from(answer.status)).bind(text(&answer.body));
            sql.bind(text(caller)).bind(text(key)).execute(self.db.pool()).await?;
            Ok(())
        })
        .await
    }

    /// Frees the key of a request that came to nothing, so that it can be made again.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn forget(&self, caller: &str, key: &str) -> Result<(), CatalogError> {
        within(async {
            let sql = "DELETE FROM idempotency WHERE caller = $1 AND key = $2 AND status IS NULL";
            query(sql).bind(text(caller)).bind(text(key)).execute(self.db.pool()).await?;
            Ok(())
        })
        .await
    }

    /// Notes that a webhook came, and gives whether it is the first of this id. Forgotten after `expires_at`.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn first_of_webhook(&self, id: &str, expires_at: OffsetDateTime) -> Result<bool, CatalogError> {
        within(async {
            let sql = "INSERT INTO webhooks_seen (id, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING";
            let done = query(sql).bind(text(id)).bind(micros(expires_at)).execute(self.db.pool()).await?;
            Ok(done.rows_affected() > 0)
        })
        .await
    }

    /// Takes back that a webhook came, where nothing was made of it: the next of its id is the first again.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn forget_webhook(&self, id: &str) -> Result<(), CatalogError> {
        within(async {
            query("DELETE FROM webhooks_seen WHERE id = $1").bind(text(id)).execute(self.db.pool()).await?;
            Ok(())
        })
        .await
    }

    /// Takes or keeps a lease of a name for one process, until then. Gives whether it has it.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn lease(
        &self,
        name: &str,
        holder: &str,
        now: OffsetDateTime,
        until: OffsetDateTime,
    ) -> Result<bool, CatalogError> {
        within(async {
            let sql = "INSERT INTO leases (name, holder, until) VALUES ($1, $2, $3) \
                       ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until \
                       WHERE leases.holder = excluded.holder OR leases.until <= $4";
            let sql = query(sql).bind(text(name)).bind(text(holder)).bind(micros(until)).bind(micros(now));
            Ok(sql.execute(self.db.pool()).await?.rows_affected() > 0)
        })
        .await
    }

    /// Gives a lease back.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn release(&self, name: &str, holder: &str) -> Result<(), CatalogError> {
        within(async {
            let sql = "DELETE FROM leases WHERE name = $1 AND holder = $2";
            query(sql).bind(text(name)).bind(text(holder)).execute(self.db.pool()).await?;
            Ok(())
        })
        .await
    }
}
