//! What the room tests share: joining, and waiting for an event.

use std::time::Duration;

use callreel::call::TrackKey;
use callreel::room::{Credentials, Room, RoomConfig, RoomEvent, RoomEvents, RtpPacket};
use callreel::testkit::{LiveKitServer, SentPacket};
use tracing_subscriber::EnvFilter;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub fn credentials(server: &LiveKitServer) -> Credentials {
    Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() }
}

pub fn config(server: &LiveKitServer) -> RoomConfig {
    RoomConfig::new(server.url(), credentials(server)).room("room")
}

pub async fn join(config: RoomConfig) -> (Room, Watched) {
    // With RUST_LOG set, a failing test shows what went on; the second test of a process finds it done.
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_test_writer();
    let _ = log.try_init();
    let (room, events) = Room::connect(config).await.unwrap();
    (room, Watched { events, seen: Vec::new() })
}

/// The stream of events, and what of it was seen.
pub struct Watched {
    events: RoomEvents,
    pub seen: Vec<RoomEvent>,
}

impl Watched {
    /// Takes events until one is as wanted, which is what comes back.
    pub async fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(&RoomEvent) -> Option<T>) -> T {
        let searching = async {
            loop {
                let event = self.events.recv().await.unwrap_or_else(|| panic!("the events ended before {what}"));
                let found = wanted(&event);
                self.seen.push(event);
                if let Some(found) = found {
                    return found;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, searching).await {
            Ok(found) => found,
            Err(_) => panic!("no {what} within {PATIENCE:?}; seen: {:?}", self.lines()),
        }
    }

    /// Takes events until this one, in short form.
    pub async fn until_line(&mut self, wanted: &str) {
        self.until(wanted, |event| line(event).is_some_and(|line| line == wanted).then_some(())).await;
    }

    /// Takes events until the next packet of `track`.
    pub async fn until_packet(&mut self, track: TrackKey) -> RtpPacket {
        self.until("packet", |event| match event {
            RoomEvent::Rtp(packet) if packet.track == track => Some(packet.clone()),
            _ => None,
        })
        .await
    }

    /// Takes all that is left, to the end.
    pub async fn rest(&mut self) {
        while let Some(event) = tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("the events end") {
            self.seen.push(event);
        }
    }

    /// Everything but packets, in short form.
    pub fn lines(&self) -> Vec<String> {
        self.seen.iter().filter_map(line).collect()
    }

    pub fn packets(&self, track: TrackKey) -> Vec<RtpPacket> {
        let packet = |event: &RoomEvent| match event {
            RoomEvent::Rtp(packet) if packet.track == track => Some(packet.clone()),
            _ => None,
        };
        self.seen.iter().filter_map(packet).collect()
    }
}

/// An event in short form; packets and reports have none.
pub fn line(event: &RoomEvent) -> Option<String> {
    Some(match event {
        RoomEvent::Joined { room, .. } => format!("joined {}", room.name),
        RoomEvent::ParticipantJoined { participant, .. } => format!("+{}", participant.identity),
        RoomEvent::ParticipantUpdated { participant, .. } => format!("~{}", participant.identity),
        RoomEvent::ParticipantLeft { reason, .. } => format!("left {reason}"),
        RoomEvent::TrackPublished { track, .. } => format!("+{}", track.key),
        RoomEvent::TrackUnpublished { track, .. } => format!("-{track}"),
        RoomEvent::TrackMuted { track, muted, .. } => format!("{track} {}", if *muted { "muted" } else { "unmuted" }),
        RoomEvent::SubscriptionFailed { track, reason, .. } => format!("{track} refused: {reason}"),
        RoomEvent::Media { state, .. } => format!("media {state:?}"),
        RoomEvent::Overrun { dropped, .. } => format!("dropped {dropped}"),
        RoomEvent::Closed { reason, .. } => format!("closed {reason:?}"),
        _ => return None,
    })
}

/// Of the packets sent, those between the first and the last that were received and are missing from them.
///
/// The server forwards a publisher's own sequence numbers from the first packet on, so they can be compared.
pub fn missing(sent: &[SentPacket], received: &[RtpPacket]) -> Vec<u16> {
    let got: std::collections::HashSet<u16> = received.iter().map(|packet| packet.seq.0 as u16).collect();
    let first = sent.iter().position(|packet| got.contains(&packet.seq)).expect("something was received");
    let last = sent.iter().rposition(|packet| got.contains(&packet.seq)).unwrap_or(first);
    sent[first..=last].iter().map(|packet| packet.seq).filter(|seq| !got.contains(seq)).collect()
}
