//! The service as it is asked over HTTP: real sockets, real requests, also those of people who mean no good.

mod auth;
mod cli;
mod playback;
mod recordings;
mod rooms;
mod support;
mod surface;
#[cfg(feature = "otel")]
mod traces;
mod webhook;
