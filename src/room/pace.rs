//! How often the UDP socket is read: as packets come, or now and then while they come steadily.
//!
//! A call sends fifty packets a second and talker. Woken for each of them, a process spends more on waking than on
//! recording. Nobody waits for packets: the kernel's stamps say when they came, retransmissions are asked for within what
//! the sender keeps, and what arrives before the server's word is taken in before it.

use std::time::{Duration, Instant};

use crate::clock;

/// How long the socket is left alone: retransmissions are asked for, and signs of life sent, at most so much later.
const REST: Duration = Duration::from_millis(50);

/// The same where more comes than the socket may have to hold for so long.
const SHORT_REST: Duration = Duration::from_millis(20);

/// Over how long it is found out whether packets come steadily.
const HABIT: Duration = Duration::from_secs(1);

/// With so many datagrams in [`HABIT`], fetching them now and then is less work than as they come.
const STEADY: usize = 40;

/// With so few, it is more.
const SPARSE: usize = 15;

/// What part of the socket's buffer may fill while it is left alone: the rest is for a process that gets no time.
const SHARE: usize = 8;

/// Decides when the socket is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How many datagrams may wait.
    most: usize,
    resting: bool,
    rest: Duration,
    since: Instant,
    count: usize,
}

impl Pace {
    /// For a socket that holds `capacity` datagrams.
    pub(super) fn new(capacity: usize, now: Instant) -> Self {
        Self { most: capacity / SHARE, resting: false, rest: REST, since: now, count: 0 }
    }

    /// Takes down that `count` datagrams were read, and tells whether the socket may be left alone until
    /// [`next`](Self::next). `steady` is whether nothing but packets is waited for.
    pub(super) fn rests(&mut self, count: usize, steady: bool, now: Instant) -> bool {
        self.count += count;
        if !steady {
            (self.resting, self.since, self.count) = (false, now, 0);
        } else if now.saturating_duration_since(self.since) >= HABIT {
            self.judge(now.saturating_duration_since(self.since));
            (self.since, self.count) = (now, 0);
        }
        self.resting
    }

    /// When to read the socket again that is left alone: for all calls of the process at the same moments.
    pub(super) fn next(&self, now: Instant) -> Instant {
        clock::beat(now, self.rest)
    }

    fn judge(&mut self, elapsed: Duration) {
        let during = |rest: Duration| (self.count as f64 * rest.as_secs_f64() / elapsed.as_secs_f64()) as usize;
        let enough = if self.resting { SPARSE } else { STEADY };
        let rest = [REST, SHORT_REST].into_iter().find(|rest| during(*rest) <= self.most);
        self.resting = during(HABIT) >= enough && rest.is_some();
        self.rest = rest.unwrap_or(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as a call does that gets `rate` datagrams a second, for five seconds.
    fn after_five_seconds(pace: &mut Pace, rate: usize, start: Instant) -> bool {
        let mut rests = false;
        for step in 1..=100 {
            let count = rate * step / 20 - rate * (step - 1) / 20;
            rests = pace.rests(count, true, start + REST * step as u32);
        }
        rests
    }

    #[test]
    fn a_call_that_goes_on_steadily_rests_and_a_silent_one_is_woken() {
        let start = clock::now();
        let mut pace = Pace::new(4_000, start);
        assert!(after_five_seconds(&mut pace, 100, start));
        // Discontinuous transmission: a talker sends a packet every 400 ms.
        assert!(!after_five_seconds(&mut pace, 5, start + HABIT * 5));
        // Between the two it stays as it is.
        assert!(!after_five_seconds(&mut pace, 25, start + HABIT * 10));
        assert!(after_five_seconds(&mut pace, 50, start + HABIT * 15));
        assert!(after_five_seconds(&mut pace, 25, start + HABIT * 20));
    }

    #[test]
    fn the_more_comes_the_shorter_is_the_rest() {
        let start = clock::now();
        let rest = |rate, capacity| {
            let mut pace = Pace::new(capacity, start);
            after_five_seconds(&mut pace, rate, start).then_some(pace.rest)
        };
        assert_eq!(rest(100, 400), Some(REST));
        // A hundred talkers, and the buffer that Linux gives unasked.
        assert_eq!(rest(2_000, 400), Some(SHORT_REST));
        assert_eq!(rest(5_000, 400), None);
        assert_eq!(rest(5_000, 8_000), Some(REST));
    }

    #[test]
    fn who_waits_for_a_connection_does_not_rest() {
        let start = clock::now();
        let mut pace = Pace::new(4_000, start);
        assert!(after_five_seconds(&mut pace, 100, start));
        assert!(!pace.rests(5, false, start + HABIT * 6));
        assert!(!pace.rests(500, true, start + HABIT * 6 + REST));
    }

    #[test]
    fn reading_comes_around_within_the_rest() {
        let now = clock::now();
        let next = Pace::new(4_000, now).next(now);
        assert!(next > now && next <= now + REST);
    }
}
