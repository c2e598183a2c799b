//! LiveKit Egress asked to record: against a double of its API that refuses what the service refuses, with real stores, real
//! processes that are killed, and a real LiveKit server where one is needed.

mod api;
mod crash;
mod engine;
mod fallback;
mod support;
