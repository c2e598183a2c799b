//! The only place that reads the machine's clocks; everything else is told the time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
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

/// The machine's monotonic clock at a moment, and which boot of the machine it counts from: what a process needs to know
/// of another's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinceBoot {
    /// The kernel's id of this boot.
    pub boot: String,
    /// What the clock said, in nanoseconds.
    pub nanos: u64,
}

/// `at` as other processes of this boot can understand it; none where the kernel does not say.
#[cfg(target_os = "linux")]
pub fn since_boot(at: Instant) -> Option<SinceBoot> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).ok()?;
    let ago = u64::try_from(now().saturating_duration_since(at).as_nanos()).ok()?;
    let nanos = u64::try_from(Duration::from(clock).as_nanos()).ok()?.checked_sub(ago)?;
    Some(SinceBoot { boot, nanos })
}

/// `at` as other processes of this boot can understand it; none where the kernel does not say.
#[cfg(not(target_os = "linux"))]
pub fn since_boot(_: Instant) -> Option<SinceBoot> {
    None
}

/// The moment that another process of this boot told of; none where the machine was started anew since.
pub fn at_since_boot(told: &SinceBoot) -> Option<Instant> {
    let reference = now();
    let here = since_boot(reference)?;
    let ago = (here.boot == told.boot).then(|| here.nanos.checked_sub(told.nanos))??;
    reference.checked_sub(Duration::from_nanos(ago))
}

/// The next beat after `now` of those that come `every` so often. All who ask for the same beat get the same moments, so
/// that the process wakes up once for all of them.
pub fn beat(now: Instant, every: Duration) -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(|| now);
    let every = every.max(Duration::from_millis(1));
    let since = now.saturating_duration_since(first).as_nanos();
    let to_go = every.as_nanos() - since % every.as_nanos();
    // Not more than `every`, which was a duration.
    now + Duration::from_nanos(u64::try_from(to_go).unwrap_or(u64::MAX))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_told_to_another_process_is_the_same_there() {
        let at = now() - Duration::from_millis(1234);
        if let Some(told) = since_boot(at) {
            let here = at_since_boot(&told).unwrap();
            let off = here.max(at) - here.min(at);
            assert!(off < Duration::from_millis(50), "{off:?}");
            assert_eq!(at_since_boot(&SinceBoot { boot: "another".into(), ..told }), None);
        }
    }

    #[test]
    fn everybody_hears_the_same_beat() {
        let (now, every) = (now(), Duration::from_millis(50));
        let first = beat(now, every);
        assert!(first > now && first <= now + every);
        assert_eq!(beat(first - Duration::from_nanos(1), every), first);
        assert_eq!(beat(first, every), first + every);
        // A slower beat falls on every second of these.
        let slow = beat(now, every * 2);
        assert!(slow == first || slow == first + every);
    }
}
