//! Subscriptions that are taken off and put on again, because no packets come: pure, told the time.
//!
//! The server works towards the state that was wished last, so that off and on in one breath is nothing at all. The second
//! wish waits until an offer no longer holds the track, or for as long as the server takes at most to come to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The server looks after what it has not done yet every three seconds.
const PATIENCE: Duration = Duration::from_secs(4);

/// The tracks (`TR_…`) that were taken off, and when each is put on again at the latest.
#[derive(Clone, Debug, Default)]
pub(super) struct Renewals {
    off: BTreeMap<String, Instant>,
}

impl Renewals {
    /// Begins; tells whether the track is to be taken off now, which it is not where that has been done.
    pub(super) fn begin(&mut self, track_sid: &str, now: Instant) -> bool {
        if self.off.contains_key(track_sid) {
            return false;
        }
        self.off.insert(track_sid.to_owned(), now + PATIENCE);
        true
    }

    /// What is to be put on again, given the tracks that the server's latest offer holds.
    pub(super) fn offered<'a>(&mut self, tracks: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
        self.off.extract_if(.., |sid, _| !tracks.clone().any(|track| track == sid)).map(|(sid, _)| sid).collect()
    }

    /// What is to be put on again because the server said nothing for so long.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<String> {
        self.off.extract_if(.., |_, at| *at <= now).map(|(sid, _)| sid).collect()
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.off.values().min().copied()
    }

    /// Forgets all: in a new session everything is subscribed to from the start.
    pub(super) fn clear(&mut self) {
        self.off.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_track_is_put_on_again_once_the_server_has_taken_it_off() {
        let now = crate::clock::now();
        let mut renewals = Renewals::default();
        assert!(renewals.begin("TR_a", now));
        assert!(!renewals.begin("TR_a", now), "it is under way");
        assert_eq!(renewals.offered(["TR_a", "TR_b"].into_iter()), Vec::<String>::new());
        assert_eq!(renewals.offered(["TR_b"].into_iter()), ["TR_a"]);
        assert_eq!(renewals.wake(), None);
    }

    #[test]
    fn a_server_that_says_nothing_is_not_waited_for_forever() {
        let now = crate::clock::now();
        let mut renewals = Renewals::default();
        renewals.begin("TR_a", now);
        let at = renewals.wake().unwrap();
        assert_eq!(renewals.overdue(at - Duration::from_millis(1)), Vec::<String>::new());
        assert_eq!(renewals.overdue(at), ["TR_a"]);
    }
}
