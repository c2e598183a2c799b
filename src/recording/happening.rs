//! What a recording's owner is told while it goes on.

use serde::Serialize;

use crate::time::MediaTime;

use super::outcome::{Outcome, StopReason};

/// Something that happened to a recording.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happening {
    /// The recording's id.
    pub recording_id: String,
    /// When, by the call's time.
    pub sample: MediaTime,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// What is spoken is kept from now on: the room was joined, and consent given where it is needed.
    Started,
    /// Nothing of what is spoken is kept until it goes on.
    Paused {
        /// Who paused it.
        by: String,
        /// Why.
        reason: String,
    },
    /// It goes on.
    Resumed {
        /// Who let it go on.
        by: String,
    },
    /// Nothing comes of a leg although it should.
    LegSilent {
        /// Whose, by identity.
        participant: String,
        /// Since when.
        from_sample: MediaTime,
    },
    /// A leg is heard again, or is gone.
    LegBack {
        /// Whose, by identity.
        participant: String,
    },
    /// Audio cannot reach the recorder at present.
    MediaLost,
    /// Audio reaches the recorder, for the first time or again.
    MediaBack,
    /// The recorder's process got no processor time.
    Starved {
        /// For how long, in seconds.
        seconds: f64,
    },
    /// The files are being finished.
    Stopping {
        /// Why.
        reason: StopReason,
    },
    /// It is over.
    Finished {
        /// What became of it.
        outcome: Outcome,
    },
}
