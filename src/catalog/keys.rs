//! API keys: who may do what. A key itself is nowhere; the catalogue has its hash.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::rand;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::any::AnyRow;
use time::OffsetDateTime;
use ulid::Ulid;

use super::db::{Found, micros, query, rounded, text, within};
use super::{Catalog, CatalogError};
use crate::hex;
use crate::store::Secret;

/// What every key begins with, so that people and scanners know one when they see it.
const PREFIX: &str = "crk_";

/// Random bytes of a key.
const RANDOM: usize = 32;

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Look at recordings and listen to them.
    Read,
    /// Start, pause, resume and stop them.
    Record,
    /// Delete them.
    Delete,
    /// Everything, keys and deliveries included.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Record, Self::Delete, Self::Admin];

    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Record => "record",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == word);
        found.ok_or_else(|| format!("{word:?} is no scope (read, record, delete, admin)"))
    }
}

/// What is known of a key. Moments are UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id, which is no secret.
    pub id: String,
    /// Whose it is, or what for.
    pub name: String,
    /// What it allows.
    pub scopes: BTreeSet<Scope>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it ends; none for never.
    #[serde(with = "time::serde::rfc3339::option")]
    pub expires_at: Option<OffsetDateTime>,
    /// When it was taken back.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// When it was last used, to the minute.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
}

impl ApiKey {
    /// Whether it allows that.
    pub fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

const COLUMNS: &str = "id, name, hash, scopes, created_at, expires_at, revoked_at, last_used_at";

impl Catalog {
    /// Makes a key. It is shown this once and kept nowhere: what is stored is its SHA-256, which tells nothing of 256 random
    /// bits, and which, unlike a slow hash made for passwords, costs nothing at each request.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn create_key(
        &self,
        name: &str,
        scopes: &[Scope],
        expires_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<(ApiKey, Secret), CatalogError> {
        let mut random = [0; RANDOM];
        rand::fill(&mut random).map_err(|_| CatalogError::Damaged("no random bytes to be had".to_owned()))?;
        let secret = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(random));
        let key = ApiKey {
            id: format!("AK_{}", Ulid::from_datetime(now.into())),
            name: text(name),
            scopes: scopes.iter().copied().collect(),
            created_at: rounded(now),
            expires_at: expires_at.map(rounded),
            revoked_at: None,
            last_used_at: None,
        };
        let words: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
        within(async {
            let sql =
                "INSERT INTO api_keys (id, name, hash, scopes, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)";
            query(sql)
                .bind(key.id.clone())
                .bind(key.name.clone())
                .bind(hash(&secret))
                .bind(words.join(" "))
                .bind(micros(now))
                .bind(expires_at.map(micros))
                .execute(self.db.pool())
                .await?;
            Ok(())
        })
        .await?;
        Ok((key, Secret::new(secret)))
    }

    /// The key that somebody presents, if it is one, and counts at `now`. It is looked up by its hash, of which whoever guesses
    /// cannot choose a single digit.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn key_of(&self, presented: &str, now: OffsetDateTime) -> Result<Option<ApiKey>, CatalogError> {
        if !presented.starts_with(PREFIX) {
            return Ok(None);
        }
        let hash = hash(presented);
        let found = within(async {
            let sql = query(format!("SELECT {COLUMNS} FROM api_keys WHERE hash = $1")).bind(hash.clone());
            Ok(sql.fetch_optional(self.db.pool()).await?)
        });
        let Some(found) = found.await? else { return Ok(None) };
        let stored: String = Found(&found).get("hash")?;
        let key = read(&found)?;
        let is_same = verify_slices_are_equal(stored.as_bytes(), hash.as_bytes()).is_ok();
        let counts = key.revoked_at.is_none() && key.expires_at.is_none_or(|end| now < end);
        if !is_same || !counts {
            return Ok(None);
        }
        self.note_use(&key, now).await;
        Ok(Some(key))
    }

    /// Whether there is any key, be it over or revoked: who had keys once does not want to be without.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn has_keys(&self) -> Result<bool, CatalogError> {
        within(async { Ok(query("SELECT id FROM api_keys LIMIT 1").fetch_optional(self.db.pool()).await?.is_some()) })
            .await
    }

    /// All keys, oldest first, with those that do not count any more.
    ///
    /// # Errors
    ///
    /// What any call may meet (see [`get`](Self::get)).
    pub async fn keys(&self) -> Result<Vec<ApiKey>, CatalogError> {
        within(async {
            let sql = query(format!("SELECT {COLUMNS} FROM api_keys ORDER BY created_at, id"));
            sql.fetch_all(self.db.pool()).await?.iter().map(read).collect()
        })
        .await
    }

    /// Takes a key back; for one that was taken back before, that moment stays.
    ///
    /// # Errors
    ///
    /// [`CatalogError::NoEntry`]; what any call may meet (see [`get`](Self::get)).
    pub async fn revoke_key(&self, id: &str, now: OffsetDateTime) -> Result<ApiKey, CatalogError> {
        within(async {
            let sql =
                format!("UPDATE api_keys SET revoked_at = COALESCE(revoked_at, $1) WHERE id = $2 RETURNING {COLUMNS}");
            match query(sql).bind(micros(now)).bind(text(id)).fetch_optional(self.db.pool()).await? {
                Some(found) => read(&found),
                None => Err(CatalogError::NoEntry { what: "API key", id: id.to_owned() }),
            }
        })
        .await
    }

    /// Notes that a key was used, at most once a minute: nobody waits for a disk to read.
    async fn note_use(&self, key: &ApiKey, now: OffsetDateTime) {
        let minute = time::Duration::minutes(1);
        if key.last_used_at.is_some_and(|last| now - last < minute) {
            return;
        }
        let noted = within(async {
            let sql = "UPDATE api_keys SET last_used_at = $1 WHERE id = $2";
            query(sql).bind(micros(now)).bind(key.id.clone()).execute(self.db.pool()).await?;
            Ok(())
        });
        if let Err(error) = noted.await {
            tracing::debug!(%error, key = key.id, "that a key was used is not noted");
        }
    }
}

fn hash(key: &str) -> String {
    hex::encode(Sha256::digest(key.as_bytes()))
}

fn read(found: &AnyRow) -> Result<ApiKey, CatalogError> {
    let found = Found(found);
    let words: String = found.get("scopes")?;
    // A word of a newer callreel allows nothing here.
    let scopes = words.split(' ').filter_map(|word| word.parse().ok()).collect();
    Ok(ApiKey {
        id: found.get("id")?,
        name: found.get("name")?,
        scopes,
        created_at: found.at("created_at")?,
        expires_at: found.maybe_at("expires_at")?,
        revoked_at: found.maybe_at("revoked_at")?,
        last_used_at: found.maybe_at("last_used_at")?,
    })
}
