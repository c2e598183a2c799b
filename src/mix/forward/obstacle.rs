//! Why sound is mixed rather than forwarded, and for how long.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::time::SampleCount;

/// Why a piece of a mix was decoded, mixed and encoded rather than forwarded.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Obstacle {
    /// More than one talks.
    #[error("more than one talks")]
    DoubleTalk,
    /// Somebody else's background is too loud to be left out, or not yet known.
    #[error("the background of those who do not talk is too loud to be left out, or not yet known")]
    Noise,
    /// There was no quiet moment yet to go over to the packets of the only talker.
    #[error("no quiet moment came to go over to the talker's packets")]
    Joint,
    /// Packets were lost and are recovered or concealed.
    #[error("packets were lost")]
    Loss,
    /// The talker is made louder or softer.
    #[error("the talker is made louder or softer")]
    Gain,
    /// The talker's packets are not Opus.
    #[error("the talker's packets are not coded in Opus")]
    NotOpus,
    /// The talker's packets are coded in stereo.
    #[error("the talker's packets are coded in stereo")]
    Stereo,
    /// The talker's clock has moved their packets too far from their place.
    #[error("the talker's clock has moved their packets too far from their place")]
    Drift,
    /// A packet holds more than there is room for.
    #[error("a packet holds more than there is room for")]
    Duration,
    /// A packet that is no Opus packet.
    #[error("a packet is malformed")]
    Malformed,
    /// A packet carries a spare copy of what must not be recorded.
    #[error("a packet carries a spare copy of what was withheld")]
    Withheld,
}

impl Obstacle {
    const ALL: [Self; 11] = [
        Self::DoubleTalk,
        Self::Noise,
        Self::Joint,
        Self::Loss,
        Self::Gain,
        Self::NotOpus,
        Self::Stereo,
        Self::Drift,
        Self::Duration,
        Self::Malformed,
        Self::Withheld,
    ];
}

/// How a mix came about: what was neither forwarded nor transcoded is packets of digital silence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardReport {
    /// Packets of the talkers, as they came.
    pub packets: u64,
    /// How long these play.
    pub forwarded: SampleCount,
    /// What was decoded, mixed and encoded, by why.
    pub transcoded: BTreeMap<Obstacle, SampleCount>,
    /// How often the stream went over to mixing, or from one talker's packets to another's.
    pub joints: u64,
}

/// [`ForwardReport`] while it is counted, which takes no memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    pub packets: u64,
    pub forwarded: SampleCount,
    pub joints: u64,
    transcoded: [SampleCount; Obstacle::ALL.len()],
}

impl Counts {
    pub(super) fn transcoded(&mut self, because: Obstacle, samples: SampleCount) {
        self.transcoded[because as usize] += samples;
    }

    pub(super) fn report(&self) -> ForwardReport {
        let some = Obstacle::ALL.into_iter().zip(self.transcoded).filter(|(_, samples)| *samples > SampleCount::ZERO);
        let Self { packets, forwarded, joints, .. } = *self;
        ForwardReport { packets, forwarded, transcoded: some.collect(), joints }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_obstacle_is_counted_under_its_own_name() {
        let mut counts = Counts::default();
        for (n, obstacle) in Obstacle::ALL.into_iter().enumerate() {
            counts.transcoded(obstacle, SampleCount(n as u64 + 1));
        }
        let report = counts.report();
        assert_eq!(report.transcoded.len(), Obstacle::ALL.len());
        assert_eq!(report.transcoded[&Obstacle::DoubleTalk], SampleCount(1));
        assert_eq!(report.transcoded[&Obstacle::Withheld], SampleCount(11));
    }
}
