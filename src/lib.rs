//! A recorder for LiveKit calls: every voice at its true moment, nothing of the call missing.
//!
//! A bot joins the room as a hidden participant, takes every participant's audio as RTP, puts each packet where it
//! belongs on one timeline, mixes, and writes Ogg Opus together with a manifest that accounts for every sample. It runs
//! in process with a voice agent, or as a process of its own (`callreel record`).
//!
//! ```no_run
//! use callreel::config::Config;
//! use callreel::recording::{Outcome, Recorder};
//! use callreel::room::Credentials;
//!
//! # async fn call() -> Result<(), callreel::config::ConfigError> {
//! let key = Credentials::ApiKey { key: "devkey".into(), secret: "the key's secret".into() };
//! let config = Config::new("wss://livekit.example", key, "call-1234");
//! config.validate()?;
//! let recording = Recorder::start(config);
//! // … the call goes on; the recording runs on callreel's own threads …
//! recording.stop();
//! let result = recording.wait().await;
//! assert_eq!(result.outcome, Outcome::Complete);
//! for output in &result.outputs {
//!     println!("{} lasts {:.1} s", output.location, output.duration_seconds);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A failure never reaches the call: [`Recorder::start`](recording::Recorder::start) does not fail, and what went wrong
//! is in the result. Agents start with [`entry`]; everything else about a recording is in [`config`].
//!
//! # The parts
//!
//! Data moves one way, and each part knows only what is to its left:
//!
//! [`room`] → [`capture`] → [`decode`] → [`mix`] → [`encode`] → files
//!
//! [`render`] makes other formats of the Ogg stream, [`draw`] pictures of the sound.
//!
//! Files grow in [`spool`], which loses nothing when the process dies.
//!
//! [`recording`] owns the pipeline of one call and is the only part that knows all the others. `capture`, `decode`, `mix`
//! and `encode` read no clock and do no IO: time comes in as an argument, so an hour of call is a test of a second.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod analysis;
pub mod call;
pub mod capture;
pub mod catalog;
#[doc(hidden)]
pub mod cli;
pub mod clock;
pub mod config;
pub mod decode;
pub mod draw;
pub mod e2ee;
pub mod egress;
pub mod encode;
pub mod entry;
mod hex;
pub mod mix;
pub mod notify;
pub mod recording;
pub mod render;
pub mod room;
pub mod seal;
pub mod service;
pub mod spool;
pub mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod time;
pub mod traces;
pub mod upload;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
