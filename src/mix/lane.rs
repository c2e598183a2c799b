//! One Opus stream of a file: packets passed through as long as that works, transcoded from there on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MixError;
use super::packets::Packets;
use super::pass_through::{Grid, PassStats, PassThrough, Unpassable};
use super::transcoder::Transcoder;
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::decode::DecodeError;
use crate::encode::OpusConfig;
use crate::time::{MediaTime, SampleCount};

/// Whether packets may be passed through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixing {
    /// Passed through where that is possible, else transcoded.
    #[default]
    Auto,
    /// Always transcoded: exact to the sample.
    Transcode,
}

/// How a stream came about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneReport {
    /// What was passed through.
    pub pass: PassStats,
    /// From where on it was transcoded, if it was.
    pub transcoded_from: Option<MediaTime>,
    /// Why passing through ended.
    pub because: Option<Unpassable>,
}

/// Makes one stream of packets that follow each other without a gap.
pub(super) struct Lane {
    path: Path,
    config: OpusConfig,
    pre_skip: u16,
    hold_from: Option<MediaTime>,
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
        let transcoder = Transcoder::new(config)?;
        let pre_skip = transcoder.pre_skip();
        let (path, transcoded_from) = match mixing {
            Mixing::Auto => (Path::Pass(Box::new(PassThrough::new(grid, pre_skip)), BTreeMap::new()), None),
            Mixing::Transcode => (Path::Encode(Box::new(transcoder)), Some(MediaTime::ZERO)),
        };
        let report = LaneReport { transcoded_from, ..LaneReport::default() };
        Ok(Self { path, config: config.clone(), pre_skip, hold_from: None, packets: Packets::default(), report })
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

    pub(super) fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        let unpassable = match &mut self.path {
            Path::Encode(transcoder) => return transcoder.push(stretch),
            Path::Pass(_, tracks) if !tracks.contains_key(&stretch.track) && !tracks.is_empty() => Unpassable::Several,
            Path::Pass(pass, tracks) => {
                if let Some(last) = tracks.get(&stretch.track).filter(|last| last.end != stretch.start) {
                    let (track, expected, got) = (stretch.track, last.end, stretch.start);
                    return Err(DecodeError::OutOfOrder { track, expected, got }.into());
                }
                match pass.push(stretch, &mut self.packets) {
                    Ok(()) => {
                        tracks.insert(stretch.track, stretch.clone());
                        return Ok(());
                    }
                    Err(unpassable) => unpassable,
                }
            }
        };
        self.transcode(unpassable)?;
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

    /// Fills the stream up to at least `samples` samples, of which those before `end` hold sound.
    pub(super) fn finish(&mut self, end: MediaTime, samples: u64) -> Result<(), MixError> {
        match &mut self.path {
            Path::Pass(pass, _) => {
                pass.fill(samples, &mut self.packets);
                Ok(())
            }
            Path::Encode(transcoder) => {
                transcoder.finish(end, &mut self.packets)?;
                transcoder.fill(samples, &mut self.packets)
            }
        }
    }

    /// Transcodes from here on. The last stretches are decoded again, so that nothing is heard of the change.
    fn transcode(&mut self, because: Unpassable) -> Result<(), MixError> {
        let Path::Pass(pass, tracks) = &self.path else { return Ok(()) };
        self.report.pass = pass.stats();
        self.report.because = Some(because);
        let granule = self.packets.written();
        let mut transcoder = Transcoder::taking_over(&self.config, granule)?;
        self.report.transcoded_from = Some(MediaTime(granule as i64) - SampleCount(u64::from(self.pre_skip)));
        transcoder.hold_silence_from(self.hold_from);
        for last in tracks.values() {
            transcoder.push(last)?;
        }
        self.path = Path::Encode(Box::new(transcoder));
        Ok(())
    }
}
