//! One Opus stream of a file: packets passed through as long as that works, transcoded from there on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MixError;
use super::gain::Gain;
use super::packets::Packets;
use super::pass_through::{Grid, PassStats, PassThrough, Unpassable};
use super::transcoder::{TrackReport, Transcoder};
use crate::call::TrackKey;
use crate::capture::{Content, Settled};
use crate::decode::DecodeError;
use crate::encode::{OpusConfig, OpusEncoder};
use crate::time::{MediaTime, SampleCount};

/// Whether packets may be passed through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixing {
    /// Passed through where that is possible, else transcoded.
    #[default]
    Auto,
    /// Every sound transcoded: exact to the sample.
    Transcode,
}

/// How a stream came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneReport {
    /// What was passed through.
    pub pass: PassStats,
    /// From where on it was transcoded, if it was; before the first sound it is made of packets of silence.
    pub transcoded_from: Option<MediaTime>,
    /// Why passing through ended; none where it never was to begin.
    pub because: Option<Unpassable>,
}

/// Makes one stream of packets that follow each other without a gap.
pub(super) struct Lane {
    path: Path,
    config: OpusConfig,
    pre_skip: u16,
    mixing: Mixing,
    hold_from: Option<MediaTime>,
    /// Of the tracks that do not stay as they came.
    gains: BTreeMap<TrackKey, Gain>,
    pub(super) packets: Packets,
    report: LaneReport,
}

enum Path {
    /// With the last stretch of each track.
    Pass(Box<PassThrough>, BTreeMap<TrackKey, Settled>),
    Encode(Box<Transcoder>),
}

impl Lane {
    pub(super) fn new(config: &OpusConfig, mixing: Mixing, grid: Grid) -> Result<Self, MixError> {
        let pre_skip = OpusEncoder::new(config)?.pre_skip();
        Ok(Self {
            path: Path::Pass(Box::new(PassThrough::new(grid, pre_skip)), BTreeMap::new()),
            config: config.clone(),
            pre_skip,
            mixing,
            hold_from: None,
            gains: BTreeMap::new(),
            packets: Packets::default(),
            report: LaneReport::default(),
        })
    }

    /// Goes on where a stream has these packets already.
    pub(super) fn go_on(&mut self, packets: Packets) {
        self.packets = packets;
    }

    /// Sets how loud a track is made, before its first stretch comes.
    pub(super) fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        if gain != Gain::UNITY {
            self.gains.insert(track, gain);
        }
        if let Path::Encode(transcoder) = &mut self.path {
            transcoder.set_gain(track, gain);
        }
    }

    pub(super) fn pre_skip(&self) -> u16 {
        self.pre_skip
    }

    pub(super) fn report(&self) -> LaneReport {
        let mut report = self.report;
        if let Path::Pass(pass, _) = &self.path {
            report.pass = pass.stats();
        }
        report
    }

    /// What is known of the tracks that are transcoded.
    pub(super) fn tracks(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        let transcoder = match &self.path {
            Path::Pass(..) => None,
            Path::Encode(transcoder) => Some(transcoder),
        };
        transcoder.into_iter().flat_map(|transcoder| transcoder.tracks())
    }

    pub(super) fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        let sounds = !matches!(stretch.content, Content::Silence(_));
        let (pass, tracks) = match &mut self.path {
            Path::Encode(transcoder) => return transcoder.push(stretch),
            Path::Pass(pass, tracks) => (pass, tracks),
        };
        let because = if !tracks.contains_key(&stretch.track) && !tracks.is_empty() {
            Some(Unpassable::Several)
        } else if sounds && self.gains.contains_key(&stretch.track) {
            Some(Unpassable::Gain)
        } else if sounds && self.mixing == Mixing::Transcode {
            None
        } else {
            if let Some(last) = tracks.get(&stretch.track).filter(|last| last.end != stretch.start) {
                let (track, expected, got) = (stretch.track, last.end, stretch.start);
                return Err(DecodeError::OutOfOrder { track, expected, got }.into());
            }
            match pass.push(stretch, &mut self.packets) {
                Ok(()) => {
                    tracks.insert(stretch.track, stretch.clone());
                    return Ok(());
                }
                Err(unpassable) => Some(unpassable),
            }
        };
        self.transcode(because)?;
        self.push(stretch)
    }

    pub(super) fn end_track(&mut self, track: TrackKey) {
        match &mut self.path {
            Path::Pass(_, tracks) => {
                tracks.remove(&track);
            }
            Path::Encode(transcoder) => transcoder.end_track(track),
        }
    }

    pub(super) fn advance(&mut self, settled: MediaTime) -> Result<(), MixError> {
        match &mut self.path {
            // While there is a track, its stretches say what the stream holds.
            Path::Pass(pass, tracks) if tracks.is_empty() => pass.silence_until(settled, &mut self.packets),
            Path::Pass(..) => (),
            Path::Encode(transcoder) => return transcoder.advance(settled, &mut self.packets),
        }
        Ok(())
    }

    /// Holds silence after `from` back, until a sound follows or `from` is `None` again.
    pub(super) fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.hold_from = from;
        match &mut self.path {
            Path::Pass(pass, _) => pass.hold_silence_from(from),
            Path::Encode(transcoder) => transcoder.hold_silence_from(from),
        }
    }

    /// Takes everything up to `end`, after which nothing comes, and gives where the stream can end: there, or where the
    /// silence begins that is held back.
    pub(super) fn drain(&mut self, end: MediaTime) -> Result<MediaTime, MixError> {
        match &mut self.path {
            Path::Pass(..) => {
                let written = MediaTime(self.packets.written() as i64) - SampleCount(u64::from(self.pre_skip));
                Ok(self.hold_from.map_or(end, |from| from.max(written).min(end)))
            }
            Path::Encode(transcoder) => transcoder.drain(end, &mut self.packets),
        }
    }

    /// After [`drain`](Self::drain): fills the stream up to at least `samples` samples.
    pub(super) fn end(&mut self, samples: u64) -> Result<(), MixError> {
        match &mut self.path {
            Path::Pass(pass, _) => {
                pass.fill(samples, &mut self.packets);
                Ok(())
            }
            Path::Encode(transcoder) => transcoder.end(samples, &mut self.packets),
        }
    }

    /// Transcodes from here on. The last stretches are decoded again, so that nothing is heard of the change.
    fn transcode(&mut self, because: Option<Unpassable>) -> Result<(), MixError> {
        let Path::Pass(pass, tracks) = &self.path else { return Ok(()) };
        self.report.pass = pass.stats();
        self.report.because = because;
        let granule = self.packets.written();
        let mut transcoder = Transcoder::taking_over(&self.config, granule)?;
        self.report.transcoded_from = Some(MediaTime(granule as i64) - SampleCount(u64::from(self.pre_skip)));
        transcoder.hold_silence_from(self.hold_from);
        for (track, gain) in &self.gains {
            transcoder.set_gain(*track, *gain);
        }
        for last in tracks.values() {
            transcoder.push(last)?;
        }
        self.path = Path::Encode(Box::new(transcoder));
        Ok(())
    }
}
