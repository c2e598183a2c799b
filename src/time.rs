//! Time as types: where a thing lies on the recording's timeline, when it arrived, what its sender's clock said.
//!
//! Four clocks meet in a recorder, and mixing them up is how recordings drift. Each has its own type:
//!
//! | type | clock | unit |
//! |---|---|---|
//! | [`MediaTime`] | the recording's timeline | samples at 48 kHz since sample 0 |
//! | [`ClockTime`] | the recorder's monotonic clock | nanoseconds since sample 0 |
//! | [`RtpTime`] | one sender's media clock, unwrapped | ticks of the codec's RTP clock rate |
//! | [`Seq`] | no clock: the order of one stream's packets, unwrapped | packets |
//!
//! Sample 0 is the moment the server's JoinResponse arrived; [`ClockTime`] and [`MediaTime`] share that origin, so one
//! converts to the other without knowing anything else.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Samples a second of the recording timeline.
pub const SAMPLE_RATE: u32 = 48_000;

/// Samples in one slot of the timeline: 20 ms at 48 kHz.
pub const SLOT: u64 = 960;

/// An amount of the recording's timeline, in samples at 48 kHz.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SampleCount(pub u64);

impl SampleCount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// The amount that lasts `millis` milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis * (SAMPLE_RATE as u64 / 1000))
    }

    /// This amount in seconds.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / f64::from(SAMPLE_RATE)
    }

    /// This amount as a duration, rounded down to a nanosecond.
    pub fn as_duration(self) -> Duration {
        Duration::from_nanos((u128::from(self.0) * 1_000_000_000 / u128::from(SAMPLE_RATE)) as u64)
    }
}

impl Add for SampleCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for SampleCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// A point on the recording's timeline, in samples at 48 kHz since sample 0. Negative before the recording began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaTime(pub i64);

impl MediaTime {
    /// Sample 0: the start of the recording.
    pub const ZERO: Self = Self(0);

    /// The samples from `earlier` to here, or `None` where `earlier` is later.
    pub fn checked_since(self, earlier: Self) -> Option<SampleCount> {
        u64::try_from(self.0.checked_sub(earlier.0)?).ok().map(SampleCount)
    }

    /// The samples from `earlier` to here, none where `earlier` is later.
    pub fn since(self, earlier: Self) -> SampleCount {
        self.checked_since(earlier).unwrap_or(SampleCount::ZERO)
    }

    /// This point in seconds since sample 0.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / f64::from(SAMPLE_RATE)
    }
}

impl Add<SampleCount> for MediaTime {
    type Output = Self;
    fn add(self, amount: SampleCount) -> Self {
        Self(self.0 + amount.0 as i64)
    }
}

impl Sub<SampleCount> for MediaTime {
    type Output = Self;
    fn sub(self, amount: SampleCount) -> Self {
        Self(self.0 - amount.0 as i64)
    }
}

impl From<ClockTime> for MediaTime {
    fn from(time: ClockTime) -> Self {
        Self((i128::from(time.0) * i128::from(SAMPLE_RATE)).div_euclid(1_000_000_000) as i64)
    }
}

impl fmt::Display for MediaTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} s", self.as_secs_f64())
    }
}

/// A point on the recorder's monotonic clock, in nanoseconds since sample 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClockTime(pub i64);

impl ClockTime {
    /// The moment of sample 0.
    pub const ZERO: Self = Self(0);

    /// The point `micros` microseconds after sample 0.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros * 1000)
    }

    /// The point `millis` milliseconds after sample 0.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis * 1_000_000)
    }

    /// The time from `earlier` to here, zero where `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0 - earlier.0).unwrap_or(0))
    }
}

impl Add<Duration> for ClockTime {
    type Output = Self;
    fn add(self, amount: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(amount.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl From<MediaTime> for ClockTime {
    fn from(time: MediaTime) -> Self {
        Self((i128::from(time.0) * 1_000_000_000).div_euclid(i128::from(SAMPLE_RATE)) as i64)
    }
}

/// A point on one sender's media clock: the RTP timestamp (RFC 3550 §5.1) without its 32-bit wrap, in ticks of the
/// codec's RTP clock rate (48 kHz for Opus, RFC 7587 §4.1; 8 kHz for PCMU and PCMA, RFC 3551 §4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RtpTime(pub i64);

/// The RTP sequence number (RFC 3550 §5.1) without its 16-bit wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The number after this one.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How much faster one clock runs than another, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ppm(pub f64);

impl Ppm {
    /// The factor that stretches a duration of the faster clock to one of the slower.
    pub fn factor(self) -> f64 {
        1.0 + self.0 * 1e-6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_and_media_time_convert_both_ways() {
        for sample in [-48_001, -1, 0, 1, 959, 960, 48_000, 48_000 * 3600 * 24] {
            let there = ClockTime::from(MediaTime(sample));
            let back = MediaTime::from(there);
            assert!((back.0 - sample).abs() <= 1, "{sample} became {back:?}");
        }
    }

    #[test]
    fn since_never_goes_below_zero() {
        assert_eq!(MediaTime(5).checked_since(MediaTime(6)), None);
        assert_eq!(MediaTime(5).since(MediaTime(6)), SampleCount::ZERO);
        assert_eq!(ClockTime(5).since(ClockTime(6)), Duration::ZERO);
    }
}
