//! Many tracks to one sequence of Opus packets: decode, mix, encode.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::gain::{Gain, GainControl};
use super::packets::Packets;
use super::{MixError, Mixer};
use crate::analysis::Analysis;
use crate::call::{Codec, TrackKey};
use crate::capture::{Content, Settled};
use crate::decode::{DecodeStats, Level, TrackDecoder};
use crate::encode::{MaxBandwidth, OpusConfig, OpusEncoder, packet};
use crate::time::{MediaTime, SLOT, SampleCount};

/// Below this peak (−60 dBFS) nobody speaks.
const TRIMMED_BELOW: f32 = 0.001;

/// The encoder codes no more than the widest packet within this.
const BANDWIDTH_KEPT: SampleCount = SampleCount::from_millis(1000);

/// Frames that warm the encoder up where it begins in the middle.
const WARMING: u32 = 2;

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
    /// End of what was taken from the mixer to be encoded.
    taken: MediaTime,
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
    /// The widest of its last packets, and until when that counts.
    bandwidth: (MaxBandwidth, MediaTime),
}

impl Input {
    fn notice_bandwidth(&mut self, stretch: &Settled) {
        let (widest, until) = self.bandwidth;
        let bandwidth = match &stretch.content {
            Content::Packet { codec: Codec::Opus, payload } | Content::Recovered { next: payload } => {
                payload.first().map(|toc| packet::bandwidth(*toc))
            }
            Content::Packet { codec: Codec::Pcmu | Codec::Pcma, .. } => Some(MaxBandwidth::Narrowband),
            Content::Concealed { .. } | Content::Silence(_) => None,
        };
        if let Some(bandwidth) = bandwidth.filter(|bandwidth| *bandwidth >= widest || stretch.start >= until) {
            self.bandwidth = (bandwidth, stretch.end + BANDWIDTH_KEPT);
        }
    }
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
            taken: MediaTime::ZERO,
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
        transcoder.taken = transcoder.at;
        transcoder.warming = 1;
        Ok(transcoder)
    }

    /// Starts anew with what begins at `start`, of the tracks to `keep`. The others come back with their next stretch.
    pub(super) fn restart(&mut self, start: MediaTime, keep: impl Fn(TrackKey) -> bool) {
        let ended = &mut self.ended;
        self.tracks.retain(|key, input| {
            input.decoder.restart();
            input.ended = false;
            let keeps = keep(*key);
            if !keeps {
                ended.insert(*key, input.decoder.stats());
            }
            keeps
        });
        self.mixer.restart();
        self.at = start;
        self.taken = start;
    }

    /// How much the encoder hears before its first packet where it begins in the middle.
    pub(super) fn warm_up(&self) -> SampleCount {
        SampleCount(u64::from(WARMING * self.encoder.config().frame_duration().samples()))
    }

    /// Lets the encoder begin in the middle, so that its first packet encodes what begins at `granule`. Gives up to where
    /// one has to [listen](Self::listen) first.
    pub(super) fn begin_encoding(&mut self, granule: MediaTime) -> Result<MediaTime, MixError> {
        self.encoder.reset()?;
        let frame = u64::from(self.encoder.config().frame_duration().samples());
        let frames = (granule.since(self.taken).0 / frame).min(u64::from(WARMING));
        self.warming = frames as u32;
        Ok(granule - SampleCount(frames * frame))
    }

    /// Up to where a track can be read; `None` where it is not known.
    pub(super) fn ready(&self, track: TrackKey) -> Option<MediaTime> {
        self.tracks.get(&track).and_then(|input| input.decoder.ready())
    }

    /// No more comes of a track for now, or ever.
    pub(super) fn finish_track(&mut self, track: TrackKey, ever: bool) {
        if let Some(input) = self.tracks.get_mut(&track) {
            input.decoder.finish();
            input.ended = ever;
        }
    }

    /// End of what was encoded, or only listened to.
    pub(super) fn taken(&self) -> MediaTime {
        self.taken
    }

    /// Mixes a slot, or encodes a frame of what is mixed.
    pub(super) fn work(&mut self, out: &mut Packets) -> Result<(), MixError> {
        if self.take_frame() {
            return self.encode_frame(out);
        }
        self.mix_whole_slot();
        Ok(())
    }

    /// Mixes a slot, or lets the analysis hear some of what is mixed, up to `until`; nothing is encoded.
    pub(super) fn listen(&mut self, until: MediaTime) {
        let channels = self.encoder.config().channels();
        let frames = until.since(self.taken).0.min(SLOT).min((self.frame.len() / channels) as u64);
        let frame = &mut self.frame[..frames as usize * channels];
        if !self.mixer.take(frame) {
            return self.mix_whole_slot();
        }
        self.taken = self.taken + SampleCount(frames);
        if let Some(analysis) = &mut self.analysis {
            analysis.mixed(frame);
        }
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
                let bandwidth = (MaxBandwidth::Narrowband, stretch.start);
                entry.insert(Input { decoder, gain, level: Level::default(), ended: false, bandwidth })
            }
        };
        input.notice_bandwidth(stretch);
        Ok(input.decoder.push(stretch)?)
    }

    pub(super) fn end_track(&mut self, track: TrackKey) {
        if let Some(input) = self.tracks.get_mut(&track) {
            input.decoder.finish();
            input.ended = true;
        }
    }

    /// Sets how loud a track is made from the next slot on.
    pub(super) fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        self.gains.insert(track, gain);
        if let Some(input) = self.tracks.get_mut(&track) {
            input.gain = GainControl::new(gain, self.encoder.config().channels());
        }
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
        self.add_slot(frames);
        let quiet = self.tracks.values().all(|input| input.level.peak * input.gain.current().abs() < TRIMMED_BELOW);
        if quiet && self.hold_from.is_some_and(|from| self.at >= from) {
            self.mixer.discard();
            self.held += SampleCount(frames as u64);
        } else {
            self.write_held_silence(out)?;
            self.mixer.mix(frames);
        }
        self.pass(frames);
        Ok(())
    }

    /// Mixes a slot, whether it is silent or not.
    fn mix_whole_slot(&mut self) {
        self.add_slot(SLOT as usize);
        self.mixer.mix(SLOT as usize);
        self.pass(SLOT as usize);
    }

    /// Gives the mixer what all tracks hold in the next frames.
    fn add_slot(&mut self, frames: usize) {
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
    }

    /// Leaves these frames behind, and the tracks that end with them.
    fn pass(&mut self, frames: usize) {
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
        while self.take_frame() {
            self.encode_frame(out)?;
        }
        Ok(())
    }

    /// Takes the next frame to be encoded, if there is one.
    fn take_frame(&mut self) -> bool {
        if !self.mixer.take(&mut self.frame) {
            return false;
        }
        self.taken = self.taken + SampleCount(u64::from(self.encoder.config().frame_duration().samples()));
        if let Some(analysis) = &mut self.analysis {
            analysis.mixed(&self.frame);
        }
        true
    }

    fn encode_frame(&mut self, out: &mut Packets) -> Result<(), MixError> {
        let samples = self.encoder.config().frame_duration().samples();
        if let Some(widest) = self.tracks.values().map(|input| input.bandwidth.0).max() {
            self.encoder.limit_bandwidth(widest)?;
        }
        let packet = self.encoder.encode(&self.frame)?;
        if self.warming > 0 {
            self.warming -= 1;
        } else {
            out.push(packet, samples);
        }
        Ok(())
    }
}
