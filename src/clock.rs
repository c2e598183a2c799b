//! The only place that reads the machine's clocks; everything else is told the time.

use std::time::{Instant, SystemTime};

use time::OffsetDateTime;

use crate::time::ClockTime;

/// The monotonic time now.
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    Instant::now()
}

/// The wall time now, in UTC.
#[allow(clippy::disallowed_methods)]
pub fn wall() -> OffsetDateTime {
    SystemTime::now().into()
}

/// The clock of one recording: it turns instants into times since sample 0.
#[derive(Clone, Copy, Debug)]
pub struct RecordingClock {
    zero: Instant,
    wall_zero: OffsetDateTime,
}

impl RecordingClock {
    /// A clock whose sample 0 was at `zero`, which was `wall_zero` on the wall.
    pub fn new(zero: Instant, wall_zero: OffsetDateTime) -> Self {
        Self { zero, wall_zero }
    }

    /// `at` as a time since sample 0.
    pub fn at(&self, at: Instant) -> ClockTime {
        match at.checked_duration_since(self.zero) {
            Some(after) => ClockTime::ZERO + after,
            None => ClockTime(-i64::try_from(self.zero.duration_since(at).as_nanos()).unwrap_or(i64::MAX)),
        }
    }

    /// The time now.
    pub fn now(&self) -> ClockTime {
        self.at(now())
    }

    /// The wall time of sample 0, in UTC.
    pub fn wall_zero(&self) -> OffsetDateTime {
        self.wall_zero
    }
}
