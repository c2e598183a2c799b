//! The room engine against a real livekit-server with real publishers.

mod data;
mod errors;
mod events;
mod failover;
mod media;
mod reconnect;
mod relay;
mod sealed;
mod support;
