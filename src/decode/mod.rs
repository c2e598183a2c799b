//! From settled stretches to PCM on the timeline. Pure.
//!
//! [`TrackDecoder`] takes the stretches of one track as capture settles them and gives PCM for any run of the timeline:
//! 48 kHz, 32-bit float, full scale ±1, interleaved. Every stretch is filled exactly. Where the sender's clock and the
//! timeline differ, the PCM is resampled continuously; where they do not, it is what the codec decoded, bit for bit.

mod g711;
mod level;
mod line;
mod source;
mod track;

use thiserror::Error;

use crate::call::TrackKey;
use crate::time::MediaTime;

pub use g711::level as g711_level;
pub use level::Level;
pub use track::{DecodeStats, FrameInfo, TrackDecoder};

/// What can go wrong while decoding. A packet that the codec refuses is no error: it is concealed and counted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Something other than one or two channels was asked for.
    #[error("{0} channels are not possible: 1 or 2")]
    Channels(usize),
    /// A stretch that does not begin where the one before it ended.
    #[error("a stretch of track {track} begins at {got}, where {expected} is due")]
    OutOfOrder {
        /// The track.
        track: TrackKey,
        /// Where it has to begin.
        expected: MediaTime,
        /// Where it begins.
        got: MediaTime,
    },
    /// A codec could not be set up.
    #[error("libopus: {0}")]
    Opus(#[from] opus::Error),
    /// A resampler could not be set up.
    #[error("resampler: {0}")]
    Resampler(#[from] rubato::ResamplerConstructionError),
}
