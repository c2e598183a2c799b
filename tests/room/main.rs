//! The room engine against a real livekit-server with real publishers.

mod errors;
mod events;
mod media;
mod reconnect;
mod support;
