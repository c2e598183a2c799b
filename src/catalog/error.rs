//! What can go wrong with a catalogue.

use super::Status;

/// What can go wrong with a catalogue, by what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The address of the database makes no sense. Does not show it: there may be a password in it.
    #[error("the catalogue's address cannot be right: {0}")]
    Url(String),
    /// The database cannot be made ready.
    #[error("the catalogue cannot be opened: {0}")]
    Open(String),
    /// A newer callreel has changed the database's form.
    #[error("the catalogue has form {found} and this callreel knows {known}: it was opened by a newer one")]
    Newer {
        /// The database's.
        found: i64,
        /// The newest that is known here.
        known: i64,
    },
    /// The room is being recorded.
    #[error("the room is being recorded as {recording_id}")]
    AlreadyRecorded {
        /// The recording that is there.
        recording_id: String,
    },
    /// Another recording has this id.
    #[error("there is another recording {recording_id}")]
    Exists {
        /// The id.
        recording_id: String,
    },
    /// There is no such recording.
    #[error("there is no recording {recording_id}")]
    NotFound {
        /// The id.
        recording_id: String,
    },
    /// The recording is over, and the change would begin it anew.
    #[error("recording {recording_id} is {status} already")]
    Finished {
        /// The id.
        recording_id: String,
        /// How it ended.
        status: Status,
    },
    /// The recording is not over, and only one that is can be deleted.
    #[error("recording {recording_id} is {status}: it has to end first")]
    Unfinished {
        /// The id.
        recording_id: String,
        /// How it stands.
        status: Status,
    },
    /// The recording is deleted, or on its way there.
    #[error("recording {recording_id} is deleted")]
    Deleted {
        /// The id.
        recording_id: String,
    },
    /// A legal hold forbids deleting it.
    #[error("recording {recording_id} is under legal hold")]
    Held {
        /// The id.
        recording_id: String,
    },
    /// There is no such entry: a delivery, an API key.
    #[error("there is no {what} {id}")]
    NoEntry {
        /// What was looked for.
        what: &'static str,
        /// By which id.
        id: String,
    },
    /// A place in a list that this catalogue did not give.
    #[error("the cursor is none of this catalogue's")]
    Cursor,
    /// Something in the database is not what was written there.
    #[error("the catalogue is damaged: {0}")]
    Damaged(String),
    /// The database does not answer, or cannot take anything now. The same call may do better in a while; it may have been
    /// carried out.
    #[error("the catalogue does not answer: {0}")]
    Unavailable(String),
    /// The database refuses.
    #[error("the catalogue refuses: {0}")]
    Refused(#[source] Box<sqlx::Error>),
}

impl CatalogError {
    /// Whether the same call may do better in a while.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// Causes of PostgreSQL that pass: connections (08), resources (53), operators (57P), serialisation (40), a server that starts
/// up or follows another.
const PASSING: [&str; 8] = ["08", "40", "53", "57P", "55P03", "57014", "25006", "25P03"];

impl From<sqlx::Error> for CatalogError {
    fn from(error: sqlx::Error) -> Self {
        let passes = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => true,
            sqlx::Error::Database(told) => match told.code() {
                Some(code) if code.len() == 5 => PASSING.iter().any(|passing| code.starts_with(passing)),
                // SQLite's, whose low byte is the kind: busy, locked, I/O, full, cannot open.
                Some(code) => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 10 | 13 | 14)),
                None => false,
            },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::ColumnNotFound(_) => {
                return Self::Damaged(error.to_string());
            }
            _ => false,
        };
        if passes { Self::Unavailable(error.to_string()) } else { Self::Refused(Box::new(error)) }
    }
}
