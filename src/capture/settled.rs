//! What capture hands on: each stretch of a track's timeline, settled once, with the reason and what to play there.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::call::{Codec, TrackKey};
use crate::time::{MediaTime, SampleCount};

/// A half-open stretch `[start, end)` of one track's timeline, settled for good.
///
/// The stretches of one track come in order, without hole or overlap: each starts where the one before it ended.
#[derive(Clone, Debug)]
pub struct Settled {
    /// The track.
    pub track: TrackKey,
    /// First sample.
    pub start: MediaTime,
    /// One past the last sample.
    pub end: MediaTime,
    /// What to play there.
    pub content: Content,
}

impl Settled {
    /// How long the stretch is on the timeline.
    pub fn len(&self) -> SampleCount {
        self.end.since(self.start)
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

/// What a settled stretch holds.
///
/// A packet's own length (its TOC times 48 kHz) and its stretch differ by a sample now and then: that is how the
/// sender's clock error is taken out. The decoder resamples to fit; a pass-through output forwards the packet whole.
#[derive(Clone, Debug)]
pub enum Content {
    /// A packet that arrived.
    Packet {
        /// What it is coded with.
        codec: Codec,
        /// The payload.
        payload: Bytes,
    },
    /// A lost packet whose successor carries in-band FEC for it (RFC 6716 §2.1.7): decode `next` with `fec = true`.
    Recovered {
        /// The payload of the packet after the lost one.
        next: Bytes,
    },
    /// A lost packet to be concealed by the decoder, faded towards silence over a run.
    Concealed {
        /// How much of this run of concealment came before this stretch.
        into_run: SampleCount,
    },
    /// Nothing was said, or nothing is known: digital silence.
    Silence(Silence),
}

/// Why a stretch is silent, as far as is known when it is settled; the ledger may learn better later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Silence {
    /// Published, but no packet yet.
    NotStarted,
    /// The sender's timestamps jumped without a hole in its sequence numbers: discontinuous transmission.
    Dtx,
    /// The publisher muted.
    Muted,
    /// The sender stopped and its clock with it: hold, and other collapsed time.
    SenderStopped,
    /// Lost, and too long to conceal; or the patience bound passed before anything came.
    Lost,
    /// The recorder was not there.
    RecorderDown,
    /// The recording was paused.
    Withheld,
    /// The sound came end-to-end encrypted, and could not be decrypted.
    Undecryptable,
}
