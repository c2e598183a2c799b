//! Opus packets to PCM, and PCM to whole numbers.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encode::{EncodeError, Mapping, OpusHead, packet};
use crate::time::{SAMPLE_RATE, SampleCount};

/// Samples a channel in the longest Opus packet: 120 ms.
const LONGEST_PACKET: usize = 5760;

/// How many bits a sample takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(with = "u8")]
pub enum Depth {
    /// 16 bits.
    #[default]
    Bits16,
    /// 24 bits.
    Bits24,
}

impl Depth {
    /// Bits a sample.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits16 => 16,
            Self::Bits24 => 24,
        }
    }

    /// Bytes a sample.
    pub const fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// The nearest whole number to `sample` (full scale ±1), halves away from zero. What is louder than full scale becomes
    /// full scale; what is no number becomes 0. There is no dither: silence stays silence, and the same input always gives
    /// the same output.
    pub fn quantise(self, sample: f32) -> i32 {
        let scale = (1u32 << (self.bits() - 1)) as f32;
        // In f64, where adding a half is exact. A cast saturates, and makes 0 of what is no number.
        let scaled = f64::from(sample * scale);
        ((scaled + 0.5f64.copysign(scaled)) as i32).clamp(-(scale as i32), scale as i32 - 1)
    }
}

impl TryFrom<u8> for Depth {
    type Error = EncodeError;

    /// From bits.
    fn try_from(bits: u8) -> Result<Self, EncodeError> {
        match bits {
            16 => Ok(Self::Bits16),
            24 => Ok(Self::Bits24),
            other => {
                Err(EncodeError::Config { setting: "bits a sample", value: other.to_string(), allowed: "16 or 24" })
            }
        }
    }
}

impl std::str::FromStr for Depth {
    type Err = EncodeError;

    fn from_str(word: &str) -> Result<Self, EncodeError> {
        let unknown = || EncodeError::Config { setting: "bits a sample", value: word.to_owned(), allowed: "16 or 24" };
        word.parse::<u8>().ok().and_then(|bits| Self::try_from(bits).ok()).ok_or_else(unknown)
    }
}

impl From<Depth> for u8 {
    fn from(depth: Depth) -> Self {
        depth.bits()
    }
}

/// Checks that `written` samples (all channels together) are `total` for each channel.
pub(in crate::encode) fn check_total(written: u64, channels: usize, total: SampleCount) -> Result<(), EncodeError> {
    let each = written / channels as u64;
    if total.0 != each || !written.is_multiple_of(channels as u64) {
        return Err(EncodeError::End { asked: total.0, low: each, high: each });
    }
    Ok(())
}

/// The channels of a mapping that can be written.
pub(in crate::encode) fn channels_of(head: &OpusHead) -> Result<usize, EncodeError> {
    match head.mapping {
        Mapping::Mono => Ok(1),
        Mapping::Stereo | Mapping::TwoMono => Ok(2),
        Mapping::Other { family, .. } => Err(EncodeError::Config {
            setting: "channel mapping",
            value: format!("family {family}"),
            allowed: "mono, stereo, or two uncoupled mono streams",
        }),
    }
}

/// Opus packets to interleaved PCM at 48 kHz, full scale ±1: the pre-skip is dropped, the header's gain applied, the end
/// trimmed to what the stream says.
///
/// What the end may still trim is held back, so what was taken never has to be taken back. A packet that libopus refuses
/// is concealed for as long as its header says: one bad packet must not shift what comes after it.
pub struct PcmDecoder {
    decoder: opus::MSDecoder,
    channels: usize,
    pre_skip: u64,
    /// Samples a channel of the pre-skip still to drop.
    skip: usize,
    /// Samples a channel to hold back.
    trim: u64,
    held: Vec<f32>,
    /// Samples a channel that have left.
    given: u64,
    /// Samples a channel that came in, pre-skip not counted.
    decoded: u64,
    concealed: u64,
    ended: bool,
    pcm: Vec<f32>,
}

impl fmt::Debug for PcmDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PcmDecoder")
            .field("channels", &self.channels)
            .field("given", &self.given)
            .field("decoded", &self.decoded)
            .finish_non_exhaustive()
    }
}

impl PcmDecoder {
    /// A decoder for the stream that `head` begins, whose end will trim at most `trim`: one page of it, where
    /// [`OggOpusWriter`](crate::encode::OggOpusWriter) wrote it.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping other than mono, stereo and two mono streams, [`EncodeError::Opus`] where
    /// libopus cannot allocate.
    pub fn new(head: &OpusHead, trim: SampleCount) -> Result<Self, EncodeError> {
        let channels = channels_of(head)?;
        let (streams, coupled) = match head.mapping {
            Mapping::TwoMono => (2, 0),
            Mapping::Stereo => (1, 1),
            Mapping::Mono | Mapping::Other { .. } => (1, 0),
        };
        let mut decoder = opus::MSDecoder::new(SAMPLE_RATE, streams, coupled, &[0, 1][..channels])?;
        if head.output_gain != 0 {
            decoder.set_gain(i32::from(head.output_gain))?;
        }
        Ok(Self {
            decoder,
            channels,
            pre_skip: u64::from(head.pre_skip),
            skip: usize::from(head.pre_skip),
            trim: trim.0,
            held: Vec::new(),
            given: 0,
            decoded: 0,
            concealed: 0,
            ended: false,
            pcm: vec![0.0; LONGEST_PACKET * channels],
        })
    }

    /// Channels of the PCM.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Packets that libopus refused.
    pub fn concealed(&self) -> u64 {
        self.concealed
    }

    /// Adds a packet of `samples` samples.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where the packet's own header says another length, [`EncodeError::Ended`] after
    /// [`finish`](Self::finish).
    pub fn write_packet(&mut self, packet: &[u8], samples: u32) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        if packet::samples(packet) != Some(samples) {
            return Err(EncodeError::Packet("its header tells another duration"));
        }
        let count = samples as usize;
        let pcm = &mut self.pcm[..count * self.channels];
        if self.decoder.decode_float(packet, pcm, false).ok() != Some(count) {
            self.concealed += 1;
            if self.decoder.decode_float(&[], pcm, false).ok() != Some(count) {
                pcm.fill(0.0);
            }
        }
        let dropped = self.skip.min(count);
        self.skip -= dropped;
        self.held.extend_from_slice(&pcm[dropped * self.channels..]);
        self.decoded += (count - dropped) as u64;
        Ok(())
    }

    /// Appends to `out` what is sure to be played and was not given out yet; returns how many samples a channel.
    pub fn take(&mut self, out: &mut Vec<f32>) -> usize {
        let held = self.held.len() / self.channels;
        let kept = if self.ended { 0 } else { usize::try_from(self.trim).unwrap_or(usize::MAX) };
        let ready = held.saturating_sub(kept);
        out.extend(self.held.drain(..ready * self.channels));
        self.given += ready as u64;
        ready
    }

    /// Ends the stream, so that `total` samples a channel are played: the rest can be taken.
    ///
    /// # Errors
    /// [`EncodeError::End`] where that end lies after the last packet or before what was given out,
    /// [`EncodeError::Ended`] the second time.
    pub fn finish(&mut self, total: SampleCount) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        if !(self.given..=self.decoded).contains(&total.0) {
            let [asked, low, high] = [total.0, self.given, self.decoded].map(|n| n.saturating_add(self.pre_skip));
            return Err(EncodeError::End { asked, low, high });
        }
        let left = (total.0 - self.given) as usize * self.channels;
        self.held.truncate(left);
        self.ended = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Application, OpusConfig, OpusEncoder};

    fn sine(n: usize) -> f32 {
        0.5 * (n as f32 * std::f32::consts::TAU * 440.0 / 48_000.0).sin()
    }

    /// A mono encoder's packets of a tone, and its pre-skip.
    fn tone(packets: usize) -> (Vec<Vec<u8>>, u16) {
        // For speech, the encoder keeps the spectrum rather than the waveform.
        let mut config = OpusConfig::mono();
        config.application(Application::Audio).bitrate(96_000).unwrap();
        let mut encoder = OpusEncoder::new(&config).unwrap();
        let packets = (0..packets)
            .map(|n| {
                let pcm: Vec<f32> = (n * 960..(n + 1) * 960).map(sine).collect();
                encoder.encode(&pcm).unwrap().to_vec()
            })
            .collect();
        (packets, encoder.pre_skip())
    }

    #[test]
    fn quantising_saturates_and_rounds() {
        for (sample, small, large) in [
            (0.0, 0, 0),
            (1.0, 32767, 8_388_607),
            (-1.0, -32768, -8_388_608),
            (1e30, 32767, 8_388_607),
            (f32::NEG_INFINITY, -32768, -8_388_608),
            (f32::NAN, 0, 0),
            (1.5 / 32768.0, 2, 384),
            (-1.5 / 32768.0, -2, -384),
            (0.499 / 32768.0, 0, 128),
            (0.499_999_97 / 32768.0, 0, 128),
        ] {
            assert_eq!(Depth::Bits16.quantise(sample), small, "{sample}");
            assert_eq!(Depth::Bits24.quantise(sample), large, "{sample}");
        }
        for value in -32768..=32767 {
            assert_eq!(Depth::Bits16.quantise(value as f32 / 32768.0), value);
        }
        assert!(Depth::try_from(8).is_err());
    }

    #[test]
    fn a_tone_comes_out_where_it_went_in_however_it_is_taken() {
        let (packets, pre_skip) = tone(50);
        let head = OpusHead::new(Mapping::Mono, pre_skip);
        let total = SampleCount(50 * 960 - 700);
        let decode = |trim: u64, take_every: usize| {
            let mut decoder = PcmDecoder::new(&head, SampleCount(trim)).unwrap();
            let mut out = Vec::new();
            for (n, packet) in packets.iter().enumerate() {
                decoder.write_packet(packet, 960).unwrap();
                if n % take_every == 0 {
                    decoder.take(&mut out);
                }
            }
            decoder.finish(total).unwrap();
            decoder.take(&mut out);
            out
        };
        let pcm = decode(960, 1);
        assert_eq!(pcm.len() as u64, total.0);
        assert_eq!(pcm, decode(12_000, 7));
        let error: f32 = pcm.iter().enumerate().skip(4800).map(|(n, s)| (s - sine(n)).powi(2)).sum();
        assert!((error / pcm.len() as f32).sqrt() < 0.05, "{error}");
    }

    #[test]
    fn the_end_lies_between_what_was_taken_and_what_came() {
        let (packets, pre_skip) = tone(10);
        let mut decoder = PcmDecoder::new(&OpusHead::new(Mapping::Mono, pre_skip), SampleCount(960)).unwrap();
        packets.iter().for_each(|packet| decoder.write_packet(packet, 960).unwrap());
        let mut out = Vec::new();
        let given = decoder.take(&mut out) as u64;
        assert_eq!(given, 9600 - u64::from(pre_skip) - 960);
        assert!(decoder.finish(SampleCount(given - 1)).is_err());
        assert!(decoder.finish(SampleCount(9601 - u64::from(pre_skip))).is_err());
        decoder.finish(SampleCount(given)).unwrap();
        assert_eq!(decoder.take(&mut out), 0);
        assert!(matches!(decoder.write_packet(&packets[0], 960), Err(EncodeError::Ended)));
    }

    #[test]
    fn two_mono_streams_are_left_and_right() {
        let (packets, pre_skip) = tone(20);
        let mut decoder = PcmDecoder::new(&OpusHead::new(Mapping::TwoMono, pre_skip), SampleCount::ZERO).unwrap();
        let mut joined = Vec::new();
        for packet in &packets {
            joined.clear();
            packet::join_streams(packet, &packet::SILENCE_20_MS, &mut joined).unwrap();
            decoder.write_packet(&joined, 960).unwrap();
        }
        let mut out = Vec::new();
        decoder.take(&mut out);
        let loudest = |at: usize| out.iter().skip(at).step_by(2).fold(0.0, |most: f32, s| most.max(s.abs()));
        assert!(loudest(0) > 0.4 && loudest(1) < 1e-6, "{} {}", loudest(0), loudest(1));
    }

    #[test]
    fn a_refused_packet_keeps_its_place() {
        let (mut packets, pre_skip) = tone(20);
        // Two frames of which the first is longer than the packet.
        packets[10] = vec![0xf2, 251, 1];
        let mut decoder = PcmDecoder::new(&OpusHead::new(Mapping::Mono, pre_skip), SampleCount::ZERO).unwrap();
        for packet in &packets {
            decoder.write_packet(packet, packet::samples(packet).unwrap()).unwrap();
        }
        let mut out = Vec::new();
        assert_eq!(decoder.take(&mut out), 20 * 960 - usize::from(pre_skip));
        assert_eq!(decoder.concealed(), 1);
        assert!(decoder.write_packet(&packets[0], 480).is_err());
    }

    #[test]
    fn the_headers_gain_is_applied() {
        let (packets, pre_skip) = tone(20);
        let peak = |gain: i16| {
            let head = OpusHead { output_gain: gain, ..OpusHead::new(Mapping::Mono, pre_skip) };
            let mut decoder = PcmDecoder::new(&head, SampleCount::ZERO).unwrap();
            packets.iter().for_each(|packet| decoder.write_packet(packet, 960).unwrap());
            let mut out = Vec::new();
            decoder.take(&mut out);
            out.iter().fold(0.0, |most: f32, s| most.max(s.abs()))
        };
        let ratio = peak(-1541) / peak(0);
        assert!((ratio - 0.5).abs() < 0.001, "{ratio}");
    }
}
