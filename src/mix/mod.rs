//! Gains, layouts and the limiter. Pure.
//!
//! [`Mixer`] sums frames of PCM; [`Mixdown`] is the whole way from settled stretches of many tracks to one Ogg Opus
//! stream.

mod limiter;
mod mixdown;
mod mixer;

use thiserror::Error;

pub use limiter::CEILING_DBTP;
pub use mixdown::{Mixdown, MixdownConfig, TrackReport};
pub use mixer::Mixer;

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
