//! Many tracks to one sequence of Opus packets: decode, mix, encode.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::gain::{Gain, GainControl};
use super::packets::Packets;
use super::{MixError, Mixer};
use crate::analysis::Analysis;
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::decode::{DecodeStats, Level, TrackDecoder};
use crate::encode::{OpusConfig, OpusEncoder};
use crate::time::{MediaTime, SLOT, SampleCount};

/// Below this peak (−60 dBFS) nobody speaks.
const TRIMMED_BELOW: f32 = 0.001;

/// A sound that ended may ring on for so long.
const RING_OUT: SampleCount = SampleCount::from_millis(10);

/// What is known of a track's sound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrackReport {
    /// Level of the last 20 ms that were mixed.
    pub level: Level,
    /// What its decoder did.
    pub stats: DecodeStats,
}

/// Decodes, mixes and encodes. Its packets follow each other without a gap from where it was started.
pub(super) struct Transcoder {
    tracks: BTreeMap<TrackKey, Input>,
    gains: BTreeMap<TrackKey, Gain>,
    ended: BTreeMap<TrackKey, DecodeStats>,
    mixer: Mixer,
    encoder: OpusEncoder,
    /// End of what was mixed.
    at: MediaTime,
    slot: Vec<f32>,
    frame: Vec<f32>,
    /// Packets that only warm the encoder up, and go nowhere.
    warming: u32,
    /// From here on, silence is held back.
    hold_from: Option<MediaTime>,
    /// Frames of silence held back before `at`.
    held: SampleCount,
    finished: bool,
    analysis: Option<Box<Analysis>>,
}

struct Input {
    decoder: TrackDecoder,
    gain: GainControl,
    level: Level,
    ended: bool,
}

impl Transcoder {
    /// A transcoder whose first packet begins with sample 0 of the timeline.
    pub(super) fn new(config: &OpusConfig) -> Result<Self, MixError> {
        let encoder = OpusEncoder::new(config)?;
        let channels = config.channels();
        Ok(Self {
            tracks: BTreeMap::new(),
            gains: BTreeMap::new(),
            ended: BTreeMap::new(),
            mixer: Mixer::new(channels),
            frame: vec![0.0; encoder.frame_len()],
            slot: vec![0.0; SLOT as usize * channels],
            encoder,
            at: MediaTime::ZERO,
            warming: 0,
            hold_from: None,
            held: SampleCount::ZERO,
            finished: false,
            analysis: None,
        })
    }

    /// A transcoder that takes over in the middle of a stream, where its packets say `granule`. What it encodes from there
    /// on sounds as if it had been at work before.
    pub(super) fn taking_over(config: &OpusConfig, granule: u64) -> Result<Self, MixError> {
        let mut transcoder = Self::new(config)?;
        let frame = SampleCount(u64::from(config.frame_duration().samples()));
        transcoder.at = MediaTime(granule as i64) - frame;
        transcoder.warming = 1;
        Ok(transcoder)
    }

    /// Lets `analysis` hear what is mixed from now on.
    pub(super) fn analyse(&mut self, analysis: Analysis) {
        self.analysis = Some(Box::new(analysis));
    }

    /// The analysis of what was mixed, once it is [ended](Self::end).
    pub(super) fn take_analysis(&mut self) -> Option<Analysis> {
        self.analysis.take().map(|analysis| *analysis)
    }

    pub(super) fn pre_skip(&self) -> u16 {
        self.encoder.pre_skip()
    }

    pub(super) fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        let input = match self.tracks.entry(stretch.track) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let decoder = TrackDecoder::new(self.encoder.config().channels())?;
                let gain = self.gains.get(&stretch.track).copied().unwrap_or_default();
                let gain = GainControl::new(gain, self.encoder.config().channels());
                entry.insert(Input { decoder, gain, level: Level::default(), ended: false })
            }
        };
        Ok(input.decoder.push(stretch)?)
    }

    pub(super) fn end_track(&mut self, track: TrackKey) {
        if let Some(input) = self.tracks.get_mut(&track) {
            input.decoder.finish();
            input.ended = true;
        }
    }

    /// Sets how loud a track is made, before its first stretch comes.
    pub(super) fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        self.gains.insert(track, gain);
    }

    /// Encodes up to `settled`, as far as whole slots go and every track has come.
    pub(super) fn advance(&mut self, settled: MediaTime, out: &mut Packets) -> Result<(), MixError> {
        let live = self.tracks.values().filter(|input| !input.ended);
        let ready = live.filter_map(|input| input.decoder.ready()).min();
        let until = ready.map_or(settled, |ready| ready.min(settled));
        let slot = SampleCount(SLOT);
        while self.at + slot <= until {
            self.mix_slot(SLOT as usize, out)?;
            self.encode_whole_frames(out)?;
        }
        Ok(())
    }

    /// Holds silence after `from` back, until a sound follows or `from` is `None` again.
    pub(super) fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.hold_from = from;
    }

    /// Mixes exactly up to `end`; nothing comes after it. Gives where the silence begins that is held back, else `end`.
    pub(super) fn drain(&mut self, end: MediaTime, out: &mut Packets) -> Result<MediaTime, MixError> {
        self.tracks.values_mut().for_each(|input| input.decoder.finish());
        while self.at < end {
            let frames = end.since(self.at).0.min(SLOT);
            self.mix_slot(frames as usize, out)?;
            self.encode_whole_frames(out)?;
        }
        Ok(self.at - self.held)
    }

    /// After [`drain`](Self::drain): encodes on until the stream holds at least `samples` samples.
    pub(super) fn end(&mut self, samples: u64, out: &mut Packets) -> Result<(), MixError> {
        if !std::mem::replace(&mut self.finished, true) {
            self.mixer.finish();
        }
        self.encode_whole_frames(out)?;
        self.fill(samples, out)
    }

    /// Encodes silence until the stream holds at least `samples` samples.
    fn fill(&mut self, samples: u64, out: &mut Packets) -> Result<(), MixError> {
        while out.written() < samples {
            let left = self.mixer.take_rest(&mut self.frame);
            if let Some(analysis) = &mut self.analysis {
                analysis.mixed(&self.frame[..left]);
            }
            self.encode_frame(out)?;
        }
        Ok(())
    }

    pub(super) fn position(&self) -> MediaTime {
        self.at
    }

    pub(super) fn least_gain(&self) -> f32 {
        self.mixer.least_gain()
    }

    pub(super) fn tracks(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        let live = self.tracks.iter();
        let live = live.map(|(key, input)| (*key, TrackReport { level: input.level, stats: input.decoder.stats() }));
        let ended = self.ended.iter();
        live.chain(ended.map(|(key, stats)| (*key, TrackReport { level: Level::default(), stats: *stats })))
    }

    fn mix_slot(&mut self, frames: usize, out: &mut Packets) -> Result<(), MixError> {
        let slot = &mut self.slot[..frames * self.encoder.config().channels()];
        for (track, input) in &mut self.tracks {
            let silent = input.decoder.read(self.at, slot).silent;
            input.level = if silent { Level::default() } else { Level::of(slot) };
            if !silent {
                if let Some(analysis) = &mut self.analysis {
                    analysis.heard(*track, self.at, frames, input.level);
                }
                let (from, to) = input.gain.next(slot);
                self.mixer.add_ramp(slot, from, to);
            }
        }
        let quiet = self.tracks.values().all(|input| input.level.peak * input.gain.current().abs() < TRIMMED_BELOW);
        if quiet && self.hold_from.is_some_and(|from| self.at >= from) {
            self.mixer.discard();
            self.held += SampleCount(frames as u64);
        } else {
            self.write_held_silence(out)?;
            self.mixer.mix(frames);
        }
        self.at = self.at + SampleCount(frames as u64);
        let at = self.at;
        let ended = &mut self.ended;
        self.tracks.retain(|key, input| {
            let over = input.ended && input.decoder.ready().is_none_or(|end| end + RING_OUT <= at);
            if over {
                ended.insert(*key, input.decoder.stats());
            }
            !over
        });
        Ok(())
    }

    fn write_held_silence(&mut self, out: &mut Packets) -> Result<(), MixError> {
        while self.held > SampleCount::ZERO {
            let frames = self.held.0.min(SLOT);
            self.mixer.insert_silence(frames as usize);
            self.encode_whole_frames(out)?;
            self.held = SampleCount(self.held.0 - frames);
        }
        Ok(())
    }

    fn encode_whole_frames(&mut self, out: &mut Packets) -> Result<(), MixError> {
        while self.mixer.take(&mut self.frame) {
            if let Some(analysis) = &mut self.analysis {
                analysis.mixed(&self.frame);
            }
            self.encode_frame(out)?;
        }
        Ok(())
    }

    fn encode_frame(&mut self, out: &mut Packets) -> Result<(), MixError> {
        let samples = self.encoder.config().frame_duration().samples();
        let packet = self.encoder.encode(&self.frame)?;
        if self.warming > 0 {
            self.warming -= 1;
        } else {
            out.push(packet, samples);
        }
        Ok(())
    }
}
