//! A recorder for LiveKit calls.
//!
//! Data moves one way: `room` → `capture` → `decode` → `mix` → `encode` → file. `recording` owns the pipeline of one call
//! and is the only part that knows all the others. See `ARCHITECTURE.md` for the map.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod call;
pub mod capture;
pub mod clock;
pub mod decode;
pub mod encode;
pub mod mix;
pub mod room;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod time;
