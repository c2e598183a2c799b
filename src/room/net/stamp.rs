//! When datagrams arrived: the kernel's stamps, which are of the wall clock, brought to the monotonic one.

use std::time::{Duration, Instant};

use time::OffsetDateTime;

/// How far two readings of the same pair of clocks may lie apart: a datagram is not younger than the one before it only
/// because the clocks were compared anew in between.
const JITTER: Duration = Duration::from_millis(1);

/// Turns stamps into instants, and tells stamps that cannot be true: the wall clock may be set at any moment.
#[derive(Debug)]
pub(super) struct Stamps {
    /// The two clocks, read together before a burst of datagrams is.
    pair: (Instant, OffsetDateTime),
    /// No datagram that is still to be read arrived before.
    floor: Instant,
}

impl Stamps {
    /// For a socket that was opened at `now`, which was `wall` on the wall.
    pub(super) fn new(now: Instant, wall: OffsetDateTime) -> Self {
        Self { pair: (now, wall), floor: now }
    }

    /// A burst of datagrams is about to be read.
    pub(super) fn compare(&mut self, now: Instant, wall: OffsetDateTime) {
        self.pair = (now, wall);
    }

    /// Nothing is left to read: whatever comes, came after the burst began.
    pub(super) fn emptied(&mut self) {
        self.floor = self.floor.max(self.pair.0);
    }

    /// When a datagram arrived that the kernel stamped `stamp` and that is read now. `now` is asked only where the answer
    /// matters.
    pub(super) fn arrival(&mut self, stamp: Option<OffsetDateTime>, now: impl FnOnce() -> Instant) -> Instant {
        self.floor = match stamp.and_then(|stamp| self.instant(stamp)) {
            Some(at) if at <= self.pair.0 => at,
            Some(at) => {
                let now = now();
                if at <= now + JITTER { at.min(now) } else { now }
            }
            None => now(),
        };
        self.floor
    }

    /// `stamp` on the monotonic clock; `None` where it lies before what was read already.
    fn instant(&self, stamp: OffsetDateTime) -> Option<Instant> {
        let (now, wall) = self.pair;
        let since = stamp - wall;
        let at = if since.is_negative() {
            now.checked_sub(since.unsigned_abs())?
        } else {
            now.checked_add(since.unsigned_abs())?
        };
        (at + JITTER >= self.floor).then(|| at.max(self.floor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Clocks {
        zero: Instant,
        wall: OffsetDateTime,
        stamps: Stamps,
    }

    impl Clocks {
        fn new() -> Self {
            let (zero, wall) = (crate::clock::now(), OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000));
            Self { zero, wall, stamps: Stamps::new(zero, wall) }
        }

        /// What milliseconds after the start say for a datagram that was stamped so and read then.
        fn arrival(&mut self, stamp: u32, read: u32) -> Duration {
            let (stamp, read) = (self.wall + stamp * MS, self.zero + read * MS);
            self.stamps.arrival(Some(stamp), || read) - self.zero
        }

        fn compare(&mut self, at: u32) {
            self.stamps.compare(self.zero + at * MS, self.wall + at * MS);
        }
    }

    #[test]
    fn what_waited_keeps_the_moment_of_its_arrival() {
        let mut clocks = Clocks::new();
        clocks.compare(2000);
        assert_eq!(clocks.arrival(20, 2000), 20 * MS);
        assert_eq!(clocks.arrival(40, 2001), 40 * MS);
        // Arrived while the burst was read.
        assert_eq!(clocks.arrival(2001, 2002), 2001 * MS);
    }

    #[test]
    fn a_stamp_from_the_future_is_not_believed() {
        let mut clocks = Clocks::new();
        clocks.compare(100);
        assert_eq!(clocks.arrival(5000, 101), 101 * MS);
    }

    #[test]
    fn a_stamp_from_before_the_last_empty_socket_is_not_believed() {
        let mut clocks = Clocks::new();
        clocks.compare(100);
        clocks.stamps.emptied();
        clocks.compare(200);
        assert_eq!(clocks.arrival(50, 201), 201 * MS);
        assert_eq!(clocks.arrival(202, 203), 202 * MS);
    }

    #[test]
    fn a_wall_clock_that_is_set_moves_nothing() {
        for step in [-3_600_000_i64, 3_600_000] {
            let mut clocks = Clocks::new();
            clocks.compare(100);
            assert_eq!(clocks.arrival(90, 101), 90 * MS);
            clocks.stamps.emptied();
            let stamp = clocks.wall + 150 * MS;
            clocks.wall += time::Duration::milliseconds(step);
            clocks.compare(200);
            let read = clocks.zero + 201 * MS;
            assert_eq!(clocks.stamps.arrival(Some(stamp), || read), read);
            clocks.compare(300);
            assert_eq!(clocks.arrival(290, 301), 290 * MS);
        }
    }

    #[test]
    fn clocks_read_a_little_apart_turn_no_order_round() {
        let mut clocks = Clocks::new();
        clocks.compare(100);
        assert_eq!(clocks.arrival(90, 100), 90 * MS);
        clocks.stamps.compare(clocks.zero + 110 * MS, clocks.wall + 110 * MS + MS / 2);
        assert_eq!(clocks.arrival(90, 110), 90 * MS);
    }

    #[test]
    fn without_a_stamp_the_moment_of_the_read_counts() {
        let mut clocks = Clocks::new();
        let read = clocks.zero + 7 * MS;
        assert_eq!(clocks.stamps.arrival(None, || read), read);
    }
}
