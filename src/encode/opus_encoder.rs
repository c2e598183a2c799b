//! PCM to Opus packets, by libopus.

use serde::{Deserialize, Serialize};

use super::EncodeError;
use super::packet;
use crate::time::SAMPLE_RATE;

/// The most bytes one packet of this encoder takes: three frames of 1275 bytes and their header (RFC 6716 §3.4).
pub const MAX_PACKET: usize = 3 * 1275 + 7;

/// What the encoder optimises for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Application {
    /// Speech: formants and harmonics are emphasised.
    #[default]
    Voip,
    /// Faithfulness to the input, music included.
    Audio,
}

/// How long one packet lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub enum FrameDuration {
    /// 10 ms.
    Ms10,
    /// 20 ms.
    #[default]
    Ms20,
    /// 40 ms.
    Ms40,
    /// 60 ms.
    Ms60,
}

impl FrameDuration {
    /// Samples a channel at 48 kHz.
    pub const fn samples(self) -> u32 {
        self.millis() * (SAMPLE_RATE / 1000)
    }

    /// Milliseconds.
    pub const fn millis(self) -> u32 {
        match self {
            Self::Ms10 => 10,
            Self::Ms20 => 20,
            Self::Ms40 => 40,
            Self::Ms60 => 60,
        }
    }
}

impl TryFrom<u32> for FrameDuration {
    type Error = EncodeError;

    /// From milliseconds.
    fn try_from(millis: u32) -> Result<Self, EncodeError> {
        match millis {
            10 => Ok(Self::Ms10),
            20 => Ok(Self::Ms20),
            40 => Ok(Self::Ms40),
            60 => Ok(Self::Ms60),
            other => Err(config("frame duration", format!("{other} ms"), "10, 20, 40 or 60 ms")),
        }
    }
}

impl From<FrameDuration> for u32 {
    fn from(duration: FrameDuration) -> Self {
        duration.millis()
    }
}

/// The highest audio bandwidth the encoder may use (RFC 6716 §2.1.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MaxBandwidth {
    /// 4 kHz.
    Narrowband,
    /// 6 kHz.
    Mediumband,
    /// 8 kHz.
    Wideband,
    /// 12 kHz.
    Superwideband,
    /// 20 kHz.
    #[default]
    Fullband,
}

impl From<MaxBandwidth> for opus::Bandwidth {
    fn from(bandwidth: MaxBandwidth) -> Self {
        match bandwidth {
            MaxBandwidth::Narrowband => Self::Narrowband,
            MaxBandwidth::Mediumband => Self::Mediumband,
            MaxBandwidth::Wideband => Self::Wideband,
            MaxBandwidth::Superwideband => Self::Superwideband,
            MaxBandwidth::Fullband => Self::Fullband,
        }
    }
}

/// How to encode. Build it from [`OpusConfig::mono`] or [`OpusConfig::stereo`] and change it with the setters; every
/// setter refuses what the encoder cannot do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpusConfig {
    channels: u8,
    bitrate: u32,
    complexity: u8,
    frame: FrameDuration,
    application: Application,
    vbr: bool,
    max_bandwidth: MaxBandwidth,
}

impl Default for OpusConfig {
    fn default() -> Self {
        Self::mono()
    }
}

impl OpusConfig {
    /// One channel of speech: 32 kbit/s, complexity 5, VOIP, 20 ms, variable bitrate, full bandwidth.
    ///
    /// By measurement (`BENCHMARKS.md`): the next complexity that is heard at all, 8, costs a third more for 0.05 of
    /// PESQ-WB, and the one below, 3, loses 0.16; longer frames lose 0.1; and for speech, AUDIO is a full point worse
    /// wherever it is cheaper.
    pub fn mono() -> Self {
        Self {
            channels: 1,
            bitrate: 32_000,
            complexity: 5,
            frame: FrameDuration::Ms20,
            application: Application::Voip,
            vbr: true,
            max_bandwidth: MaxBandwidth::Fullband,
        }
    }

    /// Two coupled channels: as [`OpusConfig::mono`], with 64 kbit/s for the pair. Two people who talk independently do not
    /// belong into coupled channels; give each an encoder of its own.
    pub fn stereo() -> Self {
        Self { channels: 2, bitrate: 64_000, ..Self::mono() }
    }

    /// The same for one voice of a call in a stream of its own: one channel with its share of the bitrate, in packets of
    /// 20 ms.
    pub fn for_one_voice(&self) -> Self {
        let bitrate = self.bitrate / u32::from(self.channels);
        Self { channels: 1, bitrate, frame: FrameDuration::Ms20, ..self.clone() }
    }

    /// Bits a second for all channels together: 6000 to 256 000 for each.
    pub fn bitrate(&mut self, bits_a_second: u32) -> Result<&mut Self, EncodeError> {
        let each = bits_a_second / u32::from(self.channels);
        if !(6_000..=256_000).contains(&each) {
            return Err(config("bitrate", format!("{bits_a_second} bit/s"), "6000 to 256000 bit/s a channel"));
        }
        self.bitrate = bits_a_second;
        Ok(self)
    }

    /// How hard the encoder tries, 0 (cheapest) to 10.
    pub fn complexity(&mut self, complexity: u8) -> Result<&mut Self, EncodeError> {
        if complexity > 10 {
            return Err(config("complexity", complexity.to_string(), "0 to 10"));
        }
        self.complexity = complexity;
        Ok(self)
    }

    /// How long a packet lasts. Longer ones cost less overhead and lose more when one is lost.
    pub fn frame(&mut self, frame: FrameDuration) -> &mut Self {
        self.frame = frame;
        self
    }

    /// What to optimise for.
    pub fn application(&mut self, application: Application) -> &mut Self {
        self.application = application;
        self
    }

    /// Whether the bitrate follows the signal (on by default) or stays constant.
    pub fn vbr(&mut self, vbr: bool) -> &mut Self {
        self.vbr = vbr;
        self
    }

    /// The highest audio bandwidth to code.
    pub fn max_bandwidth(&mut self, bandwidth: MaxBandwidth) -> &mut Self {
        self.max_bandwidth = bandwidth;
        self
    }

    /// Channels: 1 or 2.
    pub fn channels(&self) -> usize {
        usize::from(self.channels)
    }

    /// The packet duration.
    pub fn frame_duration(&self) -> FrameDuration {
        self.frame
    }

    /// The bitrate in bits a second.
    pub fn bits_a_second(&self) -> u32 {
        self.bitrate
    }
}

/// An Opus encoder at 48 kHz. Discontinuous transmission is always off: a file needs a packet for every moment.
///
/// Silence is nearly free: once the encoder's look-ahead holds nothing but zeros, a frame of zeros becomes a constant
/// packet of digital silence, and the encoder starts afresh at the next sound.
pub struct OpusEncoder {
    encoder: opus::Encoder,
    config: OpusConfig,
    pre_skip: u16,
    bandwidth: MaxBandwidth,
    frame_len: usize,
    packet: Vec<u8>,
    silence: Vec<u8>,
    silent_frames: u32,
    encoded_frames: u64,
}

impl OpusEncoder {
    /// An encoder that works as `config` says.
    ///
    /// # Errors
    /// [`EncodeError::Config`] where `config` was read from somewhere with impossible values, [`EncodeError::Opus`]
    /// where libopus cannot allocate.
    pub fn new(config: &OpusConfig) -> Result<Self, EncodeError> {
        let mut checked = config.clone();
        checked.bitrate(config.bitrate)?.complexity(config.complexity)?;
        let channels = match config.channels {
            1 => opus::Channels::Mono,
            2 => opus::Channels::Stereo,
            other => return Err(self::config("channels", other.to_string(), "1 or 2")),
        };
        let application = match config.application {
            Application::Voip => opus::Application::Voip,
            Application::Audio => opus::Application::Audio,
        };
        let mut encoder = opus::Encoder::new(SAMPLE_RATE, channels, application)?;
        encoder.set_bitrate(opus::Bitrate::Bits(config.bitrate as i32))?;
        encoder.set_complexity(i32::from(config.complexity))?;
        encoder.set_vbr(config.vbr)?;
        encoder.set_max_bandwidth(config.max_bandwidth.into())?;
        encoder.set_dtx(false)?;
        let pre_skip = u16::try_from(encoder.get_lookahead()?)
            .map_err(|_| EncodeError::Packet("the encoder's look-ahead does not fit into a header"))?;
        // Before the first sound the look-ahead holds nothing, too.
        let silent_frames = flush_frames(pre_skip, config.frame);
        let mut silence = Vec::with_capacity(8);
        packet::write_silence(config.frame.samples(), config.channels == 2, &mut silence)?;
        Ok(Self {
            encoder,
            config: config.clone(),
            pre_skip,
            bandwidth: config.max_bandwidth,
            frame_len: config.frame.samples() as usize * config.channels(),
            packet: vec![0; MAX_PACKET],
            silence,
            silent_frames,
            encoded_frames: 0,
        })
    }

    /// Samples a channel that a player drops at the start: the encoder's look-ahead (RFC 7845 §4.2).
    pub fn pre_skip(&self) -> u16 {
        self.pre_skip
    }

    /// What it was made with.
    pub fn config(&self) -> &OpusConfig {
        &self.config
    }

    /// Samples of one frame, all channels together.
    pub fn frame_len(&self) -> usize {
        self.frame_len
    }

    /// Frames that went through libopus; the others were digital silence.
    pub fn encoded_frames(&self) -> u64 {
        self.encoded_frames
    }

    /// Forgets what was encoded: the next frame begins a sound.
    ///
    /// # Errors
    /// [`EncodeError::Opus`].
    pub fn reset(&mut self) -> Result<(), EncodeError> {
        self.silent_frames = flush_frames(self.pre_skip, self.config.frame);
        Ok(self.encoder.reset_state()?)
    }

    /// Codes no more than `bandwidth` from here on, however much the configuration allows: bits for what is not there
    /// are lost to what is.
    ///
    /// # Errors
    /// [`EncodeError::Opus`].
    pub fn limit_bandwidth(&mut self, bandwidth: MaxBandwidth) -> Result<(), EncodeError> {
        let bandwidth = bandwidth.min(self.config.max_bandwidth);
        if bandwidth != self.bandwidth {
            self.encoder.set_max_bandwidth(bandwidth.into())?;
            self.bandwidth = bandwidth;
        }
        Ok(())
    }

    /// Encodes one frame of [`frame_len`](Self::frame_len) samples, interleaved, full scale ±1. The packet stays valid
    /// until the next call.
    ///
    /// # Errors
    /// [`EncodeError::FrameSize`], [`EncodeError::Opus`].
    pub fn encode(&mut self, pcm: &[f32]) -> Result<&[u8], EncodeError> {
        if pcm.len() != self.frame_len {
            return Err(EncodeError::FrameSize { expected: self.frame_len, got: pcm.len() });
        }
        let silent = pcm.iter().all(|sample| *sample == 0.0);
        let flushed = flush_frames(self.pre_skip, self.config.frame);
        if silent && self.silent_frames >= flushed {
            self.silent_frames = self.silent_frames.saturating_add(1);
            return Ok(&self.silence);
        }
        if self.silent_frames > flushed {
            self.encoder.reset_state()?;
        }
        self.silent_frames = if silent { self.silent_frames.saturating_add(1) } else { 0 };
        let length = self.encoder.encode_float(pcm, &mut self.packet)?;
        self.encoded_frames += 1;
        Ok(&self.packet[..length])
    }
}

/// Frames of zeros after which nothing of an earlier sound is left in the look-ahead.
fn flush_frames(pre_skip: u16, frame: FrameDuration) -> u32 {
    u32::from(pre_skip).div_ceil(frame.samples())
}

fn config(setting: &'static str, value: String, allowed: &'static str) -> EncodeError {
    EncodeError::Config { setting, value, allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tone(len: usize, from: usize) -> Vec<f32> {
        (from..from + len).map(|n| 0.5 * (n as f32 * 0.05).sin()).collect()
    }

    #[test]
    fn pre_skip_is_the_look_ahead_of_libopus() {
        assert_eq!(OpusEncoder::new(&OpusConfig::mono()).unwrap().pre_skip(), 312);
        assert_eq!(OpusEncoder::new(&OpusConfig::stereo()).unwrap().pre_skip(), 312);
    }

    #[test]
    fn every_frame_duration_makes_packets_of_that_duration() {
        for millis in [10, 20, 40, 60] {
            let frame = FrameDuration::try_from(millis).unwrap();
            let mut config = OpusConfig::mono();
            config.frame(frame);
            let mut encoder = OpusEncoder::new(&config).unwrap();
            let len = encoder.frame_len();
            for pcm in [tone(len, 0), tone(len, len), vec![0.0; len], vec![0.0; len], vec![0.0; len]] {
                assert_eq!(packet::samples(encoder.encode(&pcm).unwrap()), Some(frame.samples()));
            }
        }
        assert!(FrameDuration::try_from(30).is_err());
    }

    #[test]
    fn silence_becomes_constant_packets_and_sound_comes_back_whole() {
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        let mut decoder = opus::Decoder::new(SAMPLE_RATE, opus::Channels::Mono).unwrap();
        let mut input = tone(960 * 10, 0);
        input.extend(vec![0.0; 960 * 50]);
        input.extend(tone(960 * 10, 0));
        let mut output = Vec::new();
        for frame in input.chunks(960) {
            let mut pcm = [0.0; 960];
            decoder.decode_float(encoder.encode(frame).unwrap(), &mut pcm, false).unwrap();
            output.extend(pcm);
        }
        assert!(encoder.encoded_frames() <= 22, "{} frames went through libopus", encoder.encoded_frames());
        let power = |range: std::ops::Range<usize>| {
            output[range.clone()].iter().map(|s| s * s).sum::<f32>() / range.len() as f32
        };
        let silence = 960 * 20..960 * 60;
        let loudest = output[silence].iter().fold(0.0, |most: f32, s| most.max(s.abs()));
        assert!(loudest < 1e-4, "{loudest}");
        let (before, after) = (power(960 * 5..960 * 9), power(960 * 60 + 312 + 480..960 * 69));
        assert!((before / after - 1.0).abs() < 0.1, "power {before} before, {after} after");
        let error: f32 = (0..480).map(|n| (output[960 * 60 + 312 + n] - input[960 * 60 + n]).powi(2)).sum();
        let signal: f32 = input[960 * 60..960 * 60 + 480].iter().map(|s| s * s).sum();
        assert!(error < 0.2 * signal, "the first 10 ms after silence: error {error} of {signal}");
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let mut config = OpusConfig::mono();
        assert!(config.bitrate(5_999).unwrap_err().to_string().contains("bitrate"));
        assert!(config.bitrate(256_001).is_err());
        assert!(config.complexity(11).unwrap_err().to_string().contains("complexity"));
        assert!(OpusConfig::stereo().bitrate(11_999).is_err());
        let read = r#"{"channels":3,"bitrate":32000,"complexity":5,"frame":20,"application":"voip","vbr":true,"max_bandwidth":"fullband"}"#;
        let three: OpusConfig = serde_json::from_str(read).unwrap();
        assert!(OpusEncoder::new(&three).is_err());
    }

    #[test]
    fn a_frame_of_the_wrong_size_is_refused() {
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        assert!(matches!(encoder.encode(&[0.0; 959]), Err(EncodeError::FrameSize { expected: 960, got: 959 })));
    }
}
