//! The codecs of one track: contents of stretches in, PCM at 48 kHz out.

use rubato::audioadapter_buffers::direct::SequentialSlice;
use rubato::{Fft, FixedSync, Resampler, ResamplerConstructionError};

use super::DecodeError;
use super::g711::{G711, Law};
use super::track::DecodeStats;
use crate::call::Codec;
use crate::encode::packet;
use crate::time::{SAMPLE_RATE, SampleCount};

/// libopus conceals and recovers in units of 2.5 ms.
const OPUS_UNIT: u64 = 120;
/// Concealment plays at full level for so long: 40 ms.
const FADE_FROM: u64 = 1920;
/// After this much concealment nothing is heard any more: 120 ms.
pub(super) const FADE_TO: u64 = 5760;
/// Over so many frames a faded level comes back to what it was: 5 ms.
const RECOVERY: f32 = 240.0;

/// What a stretch is to be made from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Make<'a> {
    /// A packet that arrived.
    Packet(Codec, &'a [u8]),
    /// The loss before this Opus packet, from its in-band FEC.
    Recover(&'a [u8]),
    /// Concealment, this far into a run of it.
    Conceal(SampleCount),
}

/// Decoder states of one track, whichever codec it uses at present.
pub(super) struct Source {
    channels: usize,
    codec: Codec,
    opus: opus::Decoder,
    g711: Option<Box<Telephone>>,
    pcm: Vec<f32>,
    /// Level of the PCM at its end: below 1 while concealment fades.
    gain: f32,
}

impl Source {
    pub(super) fn new(channels: usize) -> Result<Self, DecodeError> {
        let layout = match channels {
            1 => opus::Channels::Mono,
            2 => opus::Channels::Stereo,
            other => return Err(DecodeError::Channels(other)),
        };
        Ok(Self {
            channels,
            codec: Codec::Opus,
            opus: opus::Decoder::new(SAMPLE_RATE, layout)?,
            g711: None,
            pcm: vec![0.0; packet::MAX_SAMPLES as usize * channels],
            gain: 1.0,
        })
    }

    /// Frames at 48 kHz that a packet says it holds, or `None` where it is malformed.
    pub(super) fn samples(codec: Codec, payload: &[u8]) -> Option<u64> {
        match codec {
            Codec::Opus => packet::samples(payload).map(u64::from),
            Codec::Pcmu | Codec::Pcma => Some(6 * payload.len() as u64).filter(|samples| *samples > 0),
        }
    }

    /// Forgets what was played.
    pub(super) fn reset(&mut self) {
        // Resetting has no way to fail but a bad pointer; were it to, the old state would merely ring on.
        let _ = self.opus.reset_state();
        if let Some(telephone) = &mut self.g711 {
            telephone.reset();
        }
        self.gain = 1.0;
    }

    /// Ends a run, so that the next one begins without what a resampler still held of this one.
    pub(super) fn end_run(&mut self) {
        if let Some(telephone) = &mut self.g711 {
            telephone.end_run();
        }
        self.gain = 1.0;
    }

    /// Frames by which decoded PCM lags behind what was decoded.
    pub(super) fn lag(&self) -> u64 {
        match (self.codec, &self.g711) {
            (Codec::Pcmu | Codec::Pcma, Some(telephone)) => telephone.lag(),
            _ => 0,
        }
    }

    /// Appends the PCM of a stretch of `length` frames to `out`, and returns how many frames of PCM stand for it: as
    /// many as its packet holds, or about `length` where there is none.
    pub(super) fn decode(&mut self, make: Make<'_>, length: u64, out: &mut Vec<f32>, stats: &mut DecodeStats) -> u64 {
        let start = out.len();
        let decoded = match make {
            // libopus takes an empty slice for a lost packet, which this is not.
            Make::Packet(codec, []) => {
                self.codec = codec;
                stats.refused += 1;
                self.conceal(length, out)
            }
            Make::Packet(Codec::Opus, payload) => self.opus_packet(payload, length, out, stats),
            Make::Packet(Codec::Pcmu, payload) => self.g711_packet(Codec::Pcmu, Law::Mu, payload, out, stats),
            Make::Packet(Codec::Pcma, payload) => self.g711_packet(Codec::Pcma, Law::A, payload, out, stats),
            Make::Recover(next) => self.recover(next, length, out, stats),
            Make::Conceal(_) => {
                stats.concealed += SampleCount(length);
                self.conceal(length, out)
            }
        };
        match make {
            Make::Conceal(into_run) => self.fade(into_run.0, &mut out[start..]),
            Make::Packet(..) | Make::Recover(_) => self.come_back(&mut out[start..]),
        }
        decoded
    }

    /// Appends `frames` frames that continue what was played, and counts nothing.
    pub(super) fn ring_on(&mut self, frames: u64, out: &mut Vec<f32>) {
        let start = out.len();
        self.conceal(frames, out);
        let gain = self.gain;
        out[start..].iter_mut().for_each(|sample| *sample *= gain);
    }

    fn opus_packet(&mut self, payload: &[u8], length: u64, out: &mut Vec<f32>, stats: &mut DecodeStats) -> u64 {
        self.codec = Codec::Opus;
        match self.opus.decode_float(payload, &mut self.pcm, false) {
            Ok(frames) => {
                stats.packets += 1;
                out.extend_from_slice(&self.pcm[..frames * self.channels]);
                frames as u64
            }
            Err(_) => {
                stats.refused += 1;
                self.conceal(length, out)
            }
        }
    }

    fn recover(&mut self, next: &[u8], length: u64, out: &mut Vec<f32>, stats: &mut DecodeStats) -> u64 {
        let frames = opus_frames(length);
        let pcm = &mut self.pcm[..frames as usize * self.channels];
        match (self.codec, next) {
            (Codec::Opus, [_, ..]) if self.opus.decode_float(next, pcm, true).is_ok() => {
                stats.recovered += 1;
                out.extend_from_slice(pcm);
                frames
            }
            _ => {
                stats.refused += 1;
                self.conceal(length, out)
            }
        }
    }

    fn g711_packet(
        &mut self,
        codec: Codec,
        law: Law,
        payload: &[u8],
        out: &mut Vec<f32>,
        stats: &mut DecodeStats,
    ) -> u64 {
        self.codec = codec;
        stats.packets += 1;
        match self.telephone() {
            Ok(telephone) => telephone.decode(law, payload, out),
            Err(_) => out.extend(std::iter::repeat_n(0.0, 6 * payload.len() * self.channels)),
        }
        6 * payload.len() as u64
    }

    /// The G.711 decoder; most tracks never need one.
    fn telephone(&mut self) -> Result<&mut Telephone, ResamplerConstructionError> {
        match &mut self.g711 {
            Some(telephone) => Ok(telephone),
            none => Ok(none.insert(Box::new(Telephone::new(self.channels)?))),
        }
    }

    fn conceal(&mut self, length: u64, out: &mut Vec<f32>) -> u64 {
        match (self.codec, &mut self.g711) {
            (Codec::Pcmu | Codec::Pcma, Some(telephone)) => telephone.conceal(length, out),
            _ => self.conceal_opus(length, out),
        }
    }

    fn conceal_opus(&mut self, length: u64, out: &mut Vec<f32>) -> u64 {
        let total = opus_frames(length);
        let mut left = total;
        while left > 0 {
            // As 20 ms pieces, the unit its concealment is made for.
            let frames = left.min(960);
            let pcm = &mut self.pcm[..frames as usize * self.channels];
            if self.opus.decode_float(&[], pcm, false).is_err() {
                pcm.fill(0.0);
            }
            out.extend_from_slice(pcm);
            left -= frames;
        }
        total
    }

    fn fade(&mut self, into_run: u64, pcm: &mut [f32]) {
        let reached = into_run + (pcm.len() / self.channels) as u64;
        if reached > FADE_FROM {
            for (n, frame) in pcm.chunks_exact_mut(self.channels).enumerate() {
                let left = FADE_TO.saturating_sub(into_run + n as u64);
                let gain = (left as f32 / (FADE_TO - FADE_FROM) as f32).min(1.0);
                frame.iter_mut().for_each(|sample| *sample *= gain);
            }
        }
        self.gain = (FADE_TO.saturating_sub(reached) as f32 / (FADE_TO - FADE_FROM) as f32).min(1.0);
    }

    fn come_back(&mut self, pcm: &mut [f32]) {
        for frame in pcm.chunks_exact_mut(self.channels) {
            if self.gain >= 1.0 {
                return;
            }
            self.gain = (self.gain + 1.0 / RECOVERY).min(1.0);
            frame.iter_mut().for_each(|sample| *sample *= self.gain);
        }
    }
}

/// The least number of frames from `length` on that libopus can conceal or recover at once.
fn opus_frames(length: u64) -> u64 {
    length.next_multiple_of(OPUS_UNIT).clamp(OPUS_UNIT, u64::from(packet::MAX_SAMPLES))
}

/// G.711 and its way from 8 to 48 kHz.
struct Telephone {
    channels: usize,
    codec: G711,
    narrow: Vec<f32>,
    wide: Vec<f32>,
    resampler: Fft<f32>,
    /// Frames of the resampler's delay that are still to be dropped.
    skip: usize,
}

impl Telephone {
    /// Frames at 8 kHz that are resampled at once: 5 ms.
    const BLOCK: usize = 40;

    fn new(channels: usize) -> Result<Self, ResamplerConstructionError> {
        let resampler = Fft::new(8_000, SAMPLE_RATE as usize, Self::BLOCK, 1, FixedSync::Both)?;
        let wide = vec![0.0; resampler.output_frames_max()];
        let skip = resampler.output_delay();
        Ok(Self { channels, codec: G711::new(), narrow: Vec::with_capacity(8 * 320), wide, resampler, skip })
    }

    fn reset(&mut self) {
        self.codec.reset();
        self.end_run();
    }

    fn end_run(&mut self) {
        self.narrow.clear();
        self.resampler.reset();
        self.skip = self.resampler.output_delay();
    }

    /// The delay of the resampler, and what may wait for a whole block.
    fn lag(&self) -> u64 {
        (self.resampler.output_delay() + 6 * Self::BLOCK) as u64
    }

    fn decode(&mut self, law: Law, payload: &[u8], out: &mut Vec<f32>) {
        self.codec.decode(law, payload, &mut self.narrow);
        self.resample(out);
    }

    fn conceal(&mut self, length: u64, out: &mut Vec<f32>) -> u64 {
        let frames = length.div_ceil(6);
        self.codec.conceal(frames as usize, &mut self.narrow);
        self.resample(out);
        6 * frames
    }

    fn resample(&mut self, out: &mut Vec<f32>) {
        let block = self.resampler.input_frames_next();
        let whole = self.narrow.len() / block * block;
        for narrow in self.narrow[..whole].chunks_exact(block) {
            let wide_len = self.wide.len();
            let expect = "the slices are as long as their frame counts";
            let input = SequentialSlice::new(narrow, 1, block).expect(expect);
            let mut output = SequentialSlice::new_mut(&mut self.wide, 1, wide_len).expect(expect);
            let made = match self.resampler.process_into_buffer(&input, &mut output, None) {
                Ok((_, made)) => made,
                Err(_) => continue,
            };
            let skipped = self.skip.min(made);
            self.skip -= skipped;
            for sample in &self.wide[skipped..made] {
                out.extend(std::iter::repeat_n(*sample, self.channels));
            }
        }
        self.narrow.drain(..whole);
    }
}
