//! The catalogue: what was recorded, where it is, who was there, what is still to be told of it.
//!
//! One interface over a SQLite file and a PostgreSQL database. Both have the same tables and pass the same tests.
//!
//! ```no_run
//! use callreel::catalog::{Catalog, CatalogError, Change, Filter, NewRecording, Status, nobody};
//!
//! # async fn example() -> Result<(), CatalogError> {
//! let now = callreel::clock::wall();
//! let catalog = Catalog::open("sqlite:///var/lib/callreel/catalog.db").await?;
//! catalog.begin(NewRecording::new("R1", "call-1234", now), nobody).await?;
//! catalog.update("R1", &Change::status(Status::Active), now, nobody).await?;
//! for row in catalog.list(&Filter::default(), None, 20).await?.rows {
//!     println!("{} {}", row.recording_id, row.status);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it keeps
//!
//! * At most one recorder is in a room or about to be: the database itself refuses a second, whichever process asks.
//! * A change and what is to be told of it are stored together or not at all, on the disk before the call returns. What was
//!   stored survives the process at any moment.
//! * A call that may have been carried out without an answer can be made again: [`CatalogError::is_transient`].
//! * Texts of others only ever reach the database as values.
//! * No secret is in it: API keys are there as their hashes, receivers of webhooks by their names.
//!
//! No call reads a clock; every moment is an argument.

mod access;
mod db;
mod error;
mod keys;
mod list;
mod once;
mod outbox;
mod rebuild;
mod recordings;
mod row;

pub use access::{Access, Pruned};
pub use error::CatalogError;
pub use keys::{ApiKey, Scope};
pub use list::{Count, Filter, MAX_PAGE, Page};
pub use once::{Answer, Idempotency};
pub use outbox::{Attempt, Delivery, DeliveryCounts, DeliveryState, Notice};
pub use rebuild::{Place, RebuildError, Rebuilt, Step, thumbnail_key};
pub use recordings::{Tell, nobody};
pub use row::{Change, Deleted, NewRecording, Owner, Participant, Row, Status};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use db::{Db, query, within};

/// What a row's `config` has where the recording was ended by somebody's word, so that its room is not recorded again. A
/// tombstone keeps it.
pub const ENDED_BY_WORD: &str = "ended_by_word";

/// How long a database that does not answer is left alone, at first and at most.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Makes a call until the database answers, however long that takes; give it a time limit where it must end. Only for calls
/// that have happened once when they are made twice, as most of [`Catalog`]'s have.
///
/// # Errors
///
/// What the call gives that no waiting helps.
pub async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, CatalogError>
where
    F: Future<Output = Result<T, CatalogError>>,
{
    let mut wait = PATIENCE.0;
    loop {
        match call().await {
            Err(error) if error.is_transient() => tracing::warn!(%error, "trying again"),
            done => return done,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(PATIENCE.1);
    }
}

/// An open catalogue. Clones share its connections.
#[derive(Clone, Debug)]
pub struct Catalog {
    db: Db,
    /// How often this process has stored something to be delivered.
    told: Arc<watch::Sender<u64>>,
}

impl Catalog {
    /// Opens a catalogue and brings its tables into form: `sqlite:///file` (made where it is missing), `sqlite::memory:` for
    /// one that ends with this value, `postgres://user:password@host/database`.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Url`]; [`CatalogError::Open`] where the file or its folder cannot be written, or the database does not
    /// let us in; [`CatalogError::Newer`]; [`CatalogError::Unavailable`] where the database does not answer.
    pub async fn open(url: &str) -> Result<Self, CatalogError> {
        Ok(Self { db: Db::open(url).await?, told: Arc::new(watch::Sender::new(0)) })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    ///
    /// [`CatalogError::Unavailable`] where it does not.
    pub async fn ping(&self) -> Result<(), CatalogError> {
        within(async {
            query("SELECT form FROM callreel_form").fetch_one(self.db.pool()).await?;
            Ok(())
        })
        .await
    }

    /// Ends all connections, once what goes on has ended.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
