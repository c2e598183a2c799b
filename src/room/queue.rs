//! The way of events from the engine to whoever records: in order, and bounded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc};

use super::event::RoomEvent;

/// How many times the backlog of packets may wait in all before the consumer counts as gone: what is not a packet is
/// never thrown away.
const GONE: usize = 2;

/// Everything that happens in the room, in the order it happened.
///
/// A consumer may be late by as much as the [backlog](super::RoomConfig::backlog) holds; after that packets are thrown
/// away and [counted](RoomEvent::Overrun), while other events still wait. A consumer that never comes back ends the
/// engine.
#[derive(Debug)]
pub struct RoomEvents {
    events: mpsc::UnboundedReceiver<RoomEvent>,
    waiting: Arc<AtomicUsize>,
    word: Arc<Notify>,
    heard: Arc<Heard>,
}

/// Up to when everything that arrived was handed over.
#[derive(Debug)]
struct Heard {
    first: Instant,
    /// Nanoseconds since.
    after: AtomicU64,
}

impl RoomEvents {
    /// The next event; `None` after [`RoomEvent::Closed`]. May be dropped and called again without losing anything.
    pub async fn recv(&mut self) -> Option<RoomEvent> {
        let event = self.events.recv().await?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(event)
    }

    /// Appends up to `limit` events to `into` and tells how many; waits for the first. 0 after [`RoomEvent::Closed`].
    pub async fn recv_many(&mut self, into: &mut Vec<RoomEvent>, limit: usize) -> usize {
        let taken = self.events.recv_many(into, limit).await;
        self.waiting.fetch_sub(taken, Ordering::Relaxed);
        taken
    }

    /// Waits until something happened that is neither a packet nor a sender report: those come by the dozen, and who
    /// fetches them now and then with [`try_recv`](Self::try_recv) sleeps in between. Returns at once where it has
    /// happened since this returned last.
    pub async fn word(&self) {
        self.word.notified().await;
    }

    /// The moment up to which everything that arrived was told; fetch what waits after asking. An engine that gets no
    /// processor time, though its consumer does, falls behind the clock: what still waits in its sockets is not lost.
    pub fn heard(&self) -> Instant {
        self.heard.first + Duration::from_nanos(self.heard.after.load(Ordering::Acquire))
    }

    /// Whether nothing waits and nothing will come any more.
    pub fn is_over(&self) -> bool {
        self.events.is_closed() && self.events.is_empty()
    }

    /// The next event if one waits.
    pub fn try_recv(&mut self) -> Option<RoomEvent> {
        let event = self.events.try_recv().ok()?;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(event)
    }
}

/// The engine's end.
#[derive(Clone, Debug)]
pub(super) struct EventSender {
    events: mpsc::UnboundedSender<RoomEvent>,
    waiting: Arc<AtomicUsize>,
    word: Arc<Notify>,
    heard: Arc<Heard>,
    backlog: usize,
    dropped: u64,
}

/// A way that holds `backlog` packets.
pub(super) fn queue(backlog: usize) -> (EventSender, RoomEvents) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (waiting, word) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let heard = Arc::new(Heard { first: crate::clock::now(), after: AtomicU64::new(0) });
    (
        EventSender {
            events: sender,
            waiting: Arc::clone(&waiting),
            word: Arc::clone(&word),
            heard: Arc::clone(&heard),
            backlog,
            dropped: 0,
        },
        RoomEvents { events: receiver, waiting, word, heard },
    )
}

impl EventSender {
    /// Tells an event, or throws it away where it is one of many and too many wait.
    pub(super) fn send(&mut self, event: RoomEvent) {
        let one_of_many = match &event {
            RoomEvent::Rtp(packet) => Some(packet.arrival),
            RoomEvent::SenderReport { at, .. } => Some(*at),
            _ => None,
        };
        if let Some(at) = one_of_many {
            if self.waiting.load(Ordering::Relaxed) >= self.backlog {
                self.dropped += 1;
                return;
            }
            self.confess(at);
            self.push(event);
        } else {
            self.push(event);
            self.word.notify_one();
        }
    }

    /// All that arrived before `at` has been told.
    pub(super) fn heard(&self, at: Instant) {
        let after = at.saturating_duration_since(self.heard.first).as_nanos();
        // Centuries fit.
        self.heard.after.fetch_max(u64::try_from(after).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether the consumer is gone, or so late that it may as well be.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed() || self.waiting.load(Ordering::Relaxed) >= self.backlog.saturating_mul(GONE)
    }

    /// Tells what was thrown away, if anything was.
    pub(super) fn confess(&mut self, at: Instant) {
        if self.dropped > 0 {
            let dropped = std::mem::take(&mut self.dropped);
            self.push(RoomEvent::Overrun { dropped, at });
        }
    }

    fn push(&self, event: RoomEvent) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.events.send(event).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::TrackKey;
    use crate::room::{MediaState, Transport};
    use crate::time::RtpTime;

    fn report(ntp: u64) -> RoomEvent {
        RoomEvent::SenderReport { track: TrackKey(0), ntp, rtp: RtpTime(0), at: crate::clock::now() }
    }

    fn media() -> RoomEvent {
        RoomEvent::Media { state: MediaState::Connected(Transport::Udp), at: crate::clock::now() }
    }

    #[test]
    fn a_late_consumer_loses_what_was_beyond_the_backlog_and_is_told() {
        let (mut sender, mut events) = queue(3);
        (0..5).for_each(|n| sender.send(report(n)));
        sender.send(media());
        assert!(!sender.is_abandoned());
        for expected in 0..3 {
            assert!(matches!(events.try_recv(), Some(RoomEvent::SenderReport { ntp, .. }) if ntp == expected));
        }
        assert!(matches!(events.try_recv(), Some(RoomEvent::Media { .. })));
        sender.send(report(5));
        assert!(matches!(events.try_recv(), Some(RoomEvent::Overrun { dropped: 2, .. })));
        assert!(matches!(events.try_recv(), Some(RoomEvent::SenderReport { ntp: 5, .. })));
        assert!(events.try_recv().is_none());
    }

    #[test]
    fn what_was_heard_only_grows() {
        let (sender, events) = queue(10);
        let first = events.heard();
        sender.heard(first + Duration::from_secs(2));
        sender.heard(first + Duration::from_secs(1));
        assert_eq!(events.heard(), first + Duration::from_secs(2));
    }

    #[tokio::test]
    async fn packets_wake_nobody_up_and_everything_else_does() {
        let (mut sender, mut events) = queue(10);
        sender.send(report(1));
        let quiet = tokio::time::timeout(Duration::from_millis(20), events.word()).await;
        assert!(quiet.is_err());
        sender.send(media());
        events.word().await;
        assert!(events.try_recv().is_some() && events.try_recv().is_some());
        assert!(!events.is_over());
        sender.send(media());
        drop(sender);
        assert!(!events.is_over());
        assert!(events.try_recv().is_some() && events.is_over());
    }

    #[tokio::test]
    async fn a_consumer_that_is_gone_is_noticed() {
        let (mut sender, mut events) = queue(2);
        (0..4).for_each(|_| sender.send(media()));
        assert!(sender.is_abandoned());
        assert_eq!(events.recv_many(&mut Vec::new(), 10).await, 4);
        assert!(!sender.is_abandoned());
        drop(events);
        assert!(sender.is_abandoned());
    }
}
