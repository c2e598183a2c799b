//! Gains, layouts and the limiter. Pure.
//!
//! | item | what it makes of settled stretches |
//! |---|---|
//! | [`Mixdown`] | one Ogg Opus stream of all tracks together |
//! | [`DualFile`] | one of two uncoupled channels, one side of the call in each |
//! | [`TrackFile`] | one of a single participant |
//! | [`Mixer`] | nothing yet: it sums frames of PCM and keeps sums from clipping |

mod begun;
mod files;
mod forward;
mod gain;
mod lane;
mod limiter;
mod mixdown;
mod mixer;
mod packets;
mod pass_through;
mod transcoder;

use thiserror::Error;

pub use begun::Begun;
pub use files::{DualFile, Side, TrackFile};
pub use forward::{ForwardReport, Obstacle};
pub use gain::Gain;
pub use lane::{LaneReport, Mixing};
pub use limiter::CEILING_DBTP;
pub use mixdown::{Mixdown, MixdownConfig};
pub use mixer::Mixer;
pub use pass_through::{PassStats, Unpassable};
pub use transcoder::TrackReport;

use crate::decode::DecodeError;
use crate::encode::EncodeError;

/// What can go wrong while mixing down.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MixError {
    /// A track cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The mix cannot be encoded or written.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
