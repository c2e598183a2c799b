//! The LiveKit participant: joins a room, takes every participant's audio as RTP, and tells what happens there.
//!
//! [`Room::connect`] joins and returns two ends: the [`Room`], which closes the call, and [`RoomEvents`], one stream of
//! typed events and packets in the order they happened. The engine between them runs as a task of the runtime that
//! `connect` is called on, and mends what can be mended by itself: a lost signalling connection is resumed, a lost
//! session is joined anew, and media that does not come over UDP is taken over TCP.
//!
//! ```no_run
//! # async fn run() -> Result<(), callreel::room::RoomError> {
//! use callreel::room::{Credentials, Room, RoomConfig, RoomEvent};
//!
//! let credentials = Credentials::ApiKey { key: "devkey".into(), secret: "secret".into() };
//! let (room, mut events) = Room::connect(RoomConfig::new("wss://calls.example", credentials).room("support")).await?;
//! while let Some(event) = events.recv().await {
//!     match event {
//!         RoomEvent::Rtp(packet) => println!("{} {} bytes", packet.track, packet.payload.len()),
//!         RoomEvent::ParticipantLeft { .. } => break,
//!         other => println!("{other:?}"),
//!     }
//! }
//! room.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! Media comes directly from the server, over UDP or TCP; where neither connects, over a relay (TURN) that the server names.
//!
//! What the engine promises:
//!
//! * It subscribes to every audio track, now and later, and to nothing else; it publishes nothing.
//! * Events nest: a track is published after its participant joined and unpublished before it left.
//! * A packet that was lost on the way is asked for again (NACK, RFC 4585 §6.2.1) up to five times, over the last hundred
//!   packets of its stream.
//! * Sequence numbers and timestamps come without their wraps, per stream (SSRC).
//! * A panic in the engine ends one call, told as [`CloseReason::Lost`], and nothing else.
//!
//! | part | what it does |
//! |---|---|
//! | `config`, `token`, `error` | what to join, as whom, and what can be wrong with that |
//! | `signal` | the signalling connection, in its own task |
//! | `sdp`, `peer` | offers and the media connection, without IO |
//! | `roster` | participants and tracks, as a pure function of the server's messages |
//! | `repair` | when to resume, when to join anew, when to give up; pure |
//! | `renewal` | subscriptions that are taken off and put on again; pure |
//! | `data` | messages that participants send; pure |
//! | `unseal` | end-to-end encrypted frames: opened, held, or refused; pure |
//! | `media` | the connection and the ways it may take |
//! | `net` | UDP and ICE-TCP sockets, relays |
//! | `pace` | how often the UDP socket is read; pure |
//! | `engine` | the loop that joins them |
//! | `libwebrtc` | LiveKit's official SDK in place of all that, where it was [built in](RoomEngine::Libwebrtc) |

mod config;
pub(crate) mod data;
mod engine;
mod error;
pub mod event;
#[cfg(any(feature = "libwebrtc", test))]
mod libwebrtc;
mod media;
mod net;
mod pace;
mod peer;
mod queue;
#[cfg(feature = "testkit")]
mod receiver;
mod renewal;
mod repair;
mod roster;
mod sdp;
mod signal;
mod token;
mod unseal;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::call::TrackKey;

pub use config::{Credentials, RoomConfig, RoomEngine, RoomMovedPolicy, Timeouts, TransportPolicy};
pub use data::DataMessage;
pub use error::RoomError;
pub use event::{CloseReason, MediaState, RoomEvent, RoomInfo, RtpPacket, Transport};
#[cfg(feature = "testkit")]
pub use net::impairment::Impairment;
pub use queue::RoomEvents;

#[cfg(feature = "testkit")]
pub(crate) use receiver::Receiver;
pub(crate) use roster::participant;

use engine::{Engine, Request};
use signal::Signal;

/// A room we are in. Dropping it leaves.
#[derive(Debug)]
pub struct Room {
    name: String,
    identity: String,
    remarks: Vec<String>,
    requests: mpsc::UnboundedSender<Request>,
    task: JoinHandle<()>,
}

impl Room {
    /// Joins, and returns as soon as the server's JoinResponse is there.
    ///
    /// Must be called on a tokio runtime, which then runs the engine. Installs a TLS provider for the process if none is
    /// set ([`ensure_crypto_provider`]).
    ///
    /// # Errors
    ///
    /// [`RoomError`] says what was wrong and where. Media is not waited for: trouble with it is told by
    /// [`RoomEvent::Media`] and in the end by [`CloseReason::Lost`].
    pub async fn connect(config: RoomConfig) -> Result<(Self, RoomEvents), RoomError> {
        let resolved = config.resolve()?;
        ensure_crypto_provider();
        let ticket = resolved.ticket.clone();
        for remark in &ticket.remarks {
            tracing::warn!(room = %ticket.room, "{remark}");
        }
        let (requests, request_queue) = mpsc::unbounded_channel();
        #[cfg(feature = "libwebrtc")]
        if config.engine == RoomEngine::Libwebrtc {
            let (sender, events) = queue::queue(config.backlog);
            let engine = libwebrtc::Engine::join(config, resolved, sender.clone(), request_queue).await?;
            let task = tokio::spawn(supervise(engine.run(), sender));
            return Ok((
                Self { name: ticket.room, identity: ticket.identity, remarks: ticket.remarks, requests, task },
                events,
            ));
        }
        let (signal, join, at) = Signal::join(config.clone(), resolved).await?;
        let (sender, events) = queue::queue(config.backlog);
        let engine = Engine::new(config, signal, sender.clone(), request_queue, &join, at)?;
        let task = tokio::spawn(supervise(engine.run(), sender));
        Ok((Self { name: ticket.room, identity: ticket.identity, remarks: ticket.remarks, requests, task }, events))
    }

    /// The room's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Who we are in it.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// What our token allows or shows that a recorder's should not; empty for a token of our own making.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// Takes the subscription to a track off and puts it on again, as a remedy where no packets come though they
    /// should. Its key stays; its stream (SSRC) may be another afterwards. Packets that come while the server does so are
    /// missed: some hundred milliseconds. Does nothing where the track is gone or this is under way.
    pub fn resubscribe(&self, track: TrackKey) {
        // An engine that has ended has no subscriptions.
        let _ = self.requests.send(Request::Resubscribe(track));
    }

    /// Has the server act out a disturbance.
    #[cfg(feature = "testkit")]
    pub fn simulate(&self, scenario: livekit_protocol::simulate_scenario::Scenario) {
        // An engine that has ended is past being disturbed.
        let _ = self.requests.send(Request::Simulate(scenario));
    }

    /// Leaves the room and waits until the server knows, two seconds at most. The last event is
    /// [`RoomEvent::Closed`]; events that wait can still be fetched.
    pub async fn close(self) {
        // An engine that has ended needs not be asked.
        let _ = self.requests.send(Request::Close);
        // The supervisor does not panic.
        let _ = self.task.await;
    }
}

/// Runs the engine in a task of its own, so that a panic in it ends this call with a word and no other.
async fn supervise(engine: impl Future<Output = ()> + Send + 'static, mut events: queue::EventSender) {
    if let Err(error) = tokio::spawn(engine).await {
        tracing::error!(%error, "the room engine failed");
        let reason = CloseReason::Lost(format!("the room engine failed: {error}"));
        events.send(RoomEvent::Closed { reason, at: crate::clock::now() });
    }
}

/// Makes TLS possible: installs a provider for the whole process, unless somebody has.
///
/// The binary calls this first thing; a program that uses the library and its own provider installs that before.
pub fn ensure_crypto_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Somebody else was faster: as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_as_the_end_of_its_call() {
        let (sender, mut events) = queue::queue(10);
        supervise(async { panic!("a bug") }, sender).await;
        match events.recv().await {
            Some(RoomEvent::Closed { reason: CloseReason::Lost(why), .. }) => assert!(why.contains("a bug"), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(events.recv().await.is_none());
    }
}
