//! What a recording sounds like: who spoke when, how loud it is, what its waveform looks like. Pure.
//!
//! | item | what it finds |
//! |---|---|
//! | [`Speakers`] | who spoke when, by track |
//! | [`webvtt`] | the same as captions |
//! | [`Peaks`] | the waveform, as players draw it |
//! | [`LoudnessMeter`] | loudness after EBU R 128 |
//! | [`Analysis`] | those of them that are wanted, of one mix |
//!
//! Memory is bounded however long a call is: what grows with time gets coarser instead.

mod envelope;
mod loudness;
mod peaks;
mod spans;
mod speakers;
mod voice;
pub mod webvtt;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::call::TrackKey;
use crate::decode::Level;
use crate::time::{MediaTime, SampleCount};

pub use loudness::{Loudness, LoudnessMeter};
pub use peaks::{Peaks, Waveform};
pub use spans::{MAX_SPANS, Span, coarsen, total, union};
pub use speakers::{Speakers, Spoken};

/// Which parts of an analysis are wanted. All of them by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnalysisConfig {
    /// Who spoke when.
    pub speakers: bool,
    /// The waveform's peaks.
    pub peaks: bool,
    /// The loudness.
    pub loudness: bool,
}

impl AnalysisConfig {
    /// Nothing is analysed, and nothing is spent on it.
    pub const OFF: Self = Self { speakers: false, peaks: false, loudness: false };
}

impl Default for AnalysisConfig {
    fn default() -> Self {
        Self { speakers: true, peaks: true, loudness: true }
    }
}

/// Listens to a mix while it is made. Nothing is allocated in the steady state.
#[derive(Debug)]
pub struct Analysis {
    speakers: Option<Speakers>,
    peaks: Option<Peaks>,
    loudness: Option<LoudnessMeter>,
}

/// What an analysis found.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// What each track said.
    pub speakers: Option<BTreeMap<TrackKey, Spoken>>,
    /// The waveform.
    pub waveform: Option<Waveform>,
    /// The loudness; none where nothing can be said, as of a recording shorter than 400 ms.
    pub loudness: Option<Loudness>,
}

impl Analysis {
    /// The wanted analysis of a mix of `channels` channels, 1 or 2; `None` where none is wanted.
    pub fn new(config: AnalysisConfig, channels: usize) -> Option<Self> {
        if config == AnalysisConfig::OFF {
            return None;
        }
        Some(Self {
            speakers: config.speakers.then(Speakers::default),
            peaks: config.peaks.then(|| Peaks::new(channels)),
            loudness: config.loudness.then(|| LoudnessMeter::new(channels)),
        })
    }

    /// Takes the mix's next PCM, interleaved.
    pub fn mixed(&mut self, pcm: &[f32]) {
        if let Some(peaks) = &mut self.peaks {
            peaks.push(pcm);
        }
        if let Some(loudness) = &mut self.loudness {
            loudness.push(pcm);
        }
    }

    /// Takes the level of one track over `frames` frames from `at` on, before its gain.
    pub fn heard(&mut self, track: TrackKey, at: MediaTime, frames: usize, level: Level) {
        if let Some(speakers) = &mut self.speakers {
            speakers.heard(track, at, SampleCount(frames as u64), level);
        }
    }

    /// Ends the analysis at `total`, the mix's length; what was mixed after it is not part of it.
    pub fn finish(self, total: SampleCount) -> Findings {
        Findings {
            speakers: self.speakers.map(|speakers| speakers.finish(MediaTime::ZERO + total)),
            waveform: self.peaks.map(|peaks| peaks.finish(total)),
            loudness: self.loudness.and_then(LoudnessMeter::finish),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_is_not_made() {
        assert!(Analysis::new(AnalysisConfig::OFF, 1).is_none());
        for (speakers, peaks, loudness) in [(true, false, false), (false, true, false), (false, false, true)] {
            let mut analysis = Analysis::new(AnalysisConfig { speakers, peaks, loudness }, 1).unwrap();
            analysis.mixed(&[0.1; 48_000]);
            analysis.heard(TrackKey(1), MediaTime::ZERO, 960, Level { peak: 0.1, rms: 0.1 });
            let found = analysis.finish(SampleCount(48_000));
            assert_eq!(
                (found.speakers.is_some(), found.waveform.is_some(), found.loudness.is_some()),
                (speakers, peaks, loudness)
            );
        }
    }
}
