//! How long capture waits, and how much it keeps.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of [`Capture`](super::Capture).
///
/// The defaults suit a recorder, which may be late but may not be wrong; a test sets single fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaptureConfig {
    /// How long a track that stopped sending is waited for. Default 4 s: longer than most network stalls that catch up.
    pub patience: Duration,
    /// How long a hole in the sequence numbers is waited for once a later packet is there. Default 1 s: a receiver asks
    /// five times, a round trip apart, so this reaches round trips of 190 ms and outlasts any reordering.
    pub hole_patience: Duration,
    /// How much of a stream is heard before its first packet is placed: the least-delayed of these packets says where
    /// the stream lies. Default 1.5 s: 75 packets, of which the best is within 5 ms of the floor at 60 ms of jitter.
    pub start_hold: Duration,
    /// How much is heard after a step in the arrival times before it is judged. Default 400 ms.
    pub judgement: Duration,
    /// How far behind the clock a silent track is settled that is not waited for. Default 500 ms: what comes next lies
    /// at most its own jitter before its arrival.
    pub quiet_lag: Duration,
    /// The same for a track that never sent, whose first packet may come as part of a burst. Default 1 s.
    pub start_lag: Duration,
    /// How long packets of a track are taken after it was unpublished: signalling may overtake media. Default 400 ms.
    pub linger: Duration,
    /// How long packets are kept back, so that what they hold can still be [withheld](super::Capture::withhold_of). Default
    /// none.
    pub lookback: Duration,
    /// Most packets buffered a track. Default 4096: over ten seconds even at 2.5 ms a packet.
    pub max_packets: usize,
    /// Most payload bytes buffered a track. Default 1 MiB: sixteen seconds at the highest bitrate of Opus.
    pub max_bytes: usize,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(4),
            hole_patience: Duration::from_secs(1),
            start_hold: Duration::from_millis(1500),
            judgement: Duration::from_millis(400),
            quiet_lag: Duration::from_millis(500),
            start_lag: Duration::from_secs(1),
            linger: Duration::from_millis(400),
            lookback: Duration::ZERO,
            max_packets: 4096,
            max_bytes: 1 << 20,
        }
    }
}

impl CaptureConfig {
    /// Whether these settings make sense together.
    pub fn validate(&self) -> Result<(), CaptureError> {
        let longest = Duration::from_secs(60);
        let waits = [
            ("patience", self.patience),
            ("hole_patience", self.hole_patience),
            ("start_hold", self.start_hold),
            ("judgement", self.judgement),
            ("quiet_lag", self.quiet_lag),
            ("start_lag", self.start_lag),
            ("linger", self.linger),
            ("lookback", self.lookback),
        ];
        if let Some((name, value)) = waits.into_iter().find(|(_, value)| *value > longest) {
            return Err(CaptureError::TooLong { name, value, longest });
        }
        for (name, value) in [("hole_patience", self.hole_patience), ("judgement", self.judgement)] {
            if value > self.patience {
                return Err(CaptureError::TooLong { name, value, longest: self.patience });
            }
        }
        if self.max_packets < 64 || self.max_bytes < 64 * 1500 {
            return Err(CaptureError::TooSmall { packets: self.max_packets, bytes: self.max_bytes });
        }
        Ok(())
    }
}

/// What is wrong with a [`CaptureConfig`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError {
    /// A wait is longer than it may be.
    #[error("{name} is {value:?}, longer than {longest:?}")]
    TooLong {
        /// Which.
        name: &'static str,
        /// What it is set to.
        value: Duration,
        /// What it may be at most.
        longest: Duration,
    },
    /// The buffer could not hold a second of audio.
    #[error("a buffer of {packets} packets and {bytes} bytes is too small: at least 64 packets and 96000 bytes")]
    TooSmall {
        /// Packets.
        packets: usize,
        /// Bytes.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(CaptureConfig::default().validate(), Ok(()));
    }

    #[test]
    fn contradictions_are_named() {
        let config = CaptureConfig { hole_patience: Duration::from_secs(5), ..CaptureConfig::default() };
        assert!(config.validate().unwrap_err().to_string().starts_with("hole_patience is 5s"));
        let config = CaptureConfig { max_packets: 1, ..CaptureConfig::default() };
        assert!(matches!(config.validate(), Err(CaptureError::TooSmall { packets: 1, .. })));
    }
}
