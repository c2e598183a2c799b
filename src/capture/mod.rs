//! From packets to settled stretches of the timeline. Pure: no clock reads, no IO.

mod settled;

pub use settled::{Content, Settled, Silence};
