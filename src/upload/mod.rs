//! The call is in the bucket while it runs: a recording's files go from the spool into a store as they grow.
//!
//! Full parts of a multipart upload go up as they fill. As that takes a quarter of an hour and more at the bitrate of
//! speech, what is in no part yet goes up every few seconds as small *tail objects*, each with the pages since the last
//! one. A *state object* beside them says what there is. With it, another machine finishes the recording from the bucket
//! alone ([`adopt`]); it is also the lease that keeps two machines from doing so at once, and the reservation of the name.
//!
//! All of it lies below the recording's name with the ending `.live/`, and goes once the objects are complete. A store that
//! is down or slow holds nobody up: this is a task of its own, the spool keeps everything meanwhile, and what is under way
//! in memory is bounded for the whole process.
//!
//! | file | what it is for |
//! |---|---|
//! | `state` | what a bucket says of a recording that goes on |
//! | `transfer` | parts and whole objects |
//! | `live` | the task of a recording that goes on |
//! | `lease` | whose recording it is |
//! | `adopt` | finishing what another process or machine left |

mod adopt;
mod lease;
mod live;
mod state;
mod transfer;

use std::io;
use std::time::Duration;

use crate::store::StoreError;

pub use adopt::{Adopted, AdoptedFile, Found, Left, LeftFile, adopt, find, finish};
pub use live::{Spur, Upload, UploadPlan, UploadStatus, Uploaded};
pub use state::{FileState, LiveState, STATE_VERSION, Tail};

/// How recordings go into a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadConfig {
    /// How often what is in no part yet goes up as an object of its own; none for never. Default 5 s.
    pub tail_every: Option<Duration>,
    /// How long the end of a recording waits for a store that is down, until the recording stays in the spool for
    /// `callreel recover`. Default 60 s.
    pub patience: Duration,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self { tail_every: Some(Duration::from_secs(5)), patience: Duration::from_secs(60) }
    }
}

/// Why a recording is not in its store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UploadError {
    /// What the store said.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spool could not be read.
    #[error("the spool cannot be read: {0}")]
    Spool(io::Error),
    /// Another process has taken the recording over.
    #[error("another recorder ({0}) has taken the recording over")]
    Lost(String),
    /// Another's object has the name, and what is in the store cannot be given another.
    #[error("{0} belongs to another recording")]
    NameTaken(String),
    /// The store had its time at the end of the recording, and more to do.
    #[error("the store was too slow")]
    TooSlow,
    /// What the bucket says makes no sense.
    #[error("{0}: {1}")]
    State(String, String),
}

impl UploadError {
    /// Whether waiting may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_retryable(),
            Self::Spool(_) | Self::Lost(_) | Self::NameTaken(_) | Self::TooSlow | Self::State(..) => false,
        }
    }
}
