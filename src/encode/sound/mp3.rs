//! PCM to MP3, by LAME.

use mp3lame_encoder::{Bitrate, Builder, Encoder, FlushGap, InterleavedPcm, Mode, MonoPcm, Quality, VbrMode};
use serde::{Deserialize, Serialize};

use super::mp3_frame::{Frame, KBPS, crc16};
use super::mp3_id3;
use super::pcm::{channels_of, check_total};
use crate::encode::Patch;
use crate::encode::{EncodeError, Mapping, OpusHead, OpusTags};
use crate::time::{SAMPLE_RATE, SampleCount};

/// Samples a channel in a frame.
const FRAME: usize = 1152;
/// Samples of nothing that LAME puts in front.
const DELAY: u64 = 576;
/// What LAME may need for one frame (its manual: 1.25 × samples + 7200).
const ROOM: usize = FRAME * 5 / 4 + 7200;
/// Places remembered for the seek table.
const PLACES: usize = 512;
const LAME: &[u8; 9] = b"LAME3.100";

/// How many bits the sound gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mp3Rate {
    /// The same for each frame, in kbit/s: 32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 320.
    Constant(u16),
    /// As many as this quality needs: 0 (best, about 245 kbit/s for music in stereo) to 9 (about 65 kbit/s).
    Variable(u8),
}

impl Mp3Rate {
    /// Checks that there is such a rate.
    ///
    /// # Errors
    /// [`EncodeError::Config`] where there is none.
    pub fn check(self) -> Result<(), EncodeError> {
        let (is_there, value) = match self {
            Self::Constant(kbps) => (Self::bitrate(kbps).is_some(), format!("{kbps} kbit/s")),
            Self::Variable(quality) => (self.quality().is_some(), format!("quality {quality}")),
        };
        let allowed = "32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 320 kbit/s, or a quality of 0 to 9";
        if is_there { Ok(()) } else { Err(EncodeError::Config { setting: "MP3 rate", value, allowed }) }
    }

    fn bitrate(kbps: u16) -> Option<Bitrate> {
        Some(match kbps {
            32 => Bitrate::Kbps32,
            40 => Bitrate::Kbps40,
            48 => Bitrate::Kbps48,
            // LAME's binding leaves out 56.
            64 => Bitrate::Kbps64,
            80 => Bitrate::Kbps80,
            96 => Bitrate::Kbps96,
            112 => Bitrate::Kbps112,
            128 => Bitrate::Kbps128,
            160 => Bitrate::Kbps160,
            192 => Bitrate::Kbps192,
            224 => Bitrate::Kbps224,
            256 => Bitrate::Kbps256,
            320 => Bitrate::Kbps320,
            _ => return None,
        })
    }

    fn quality(self) -> Option<Quality> {
        const ALL: [Quality; 10] = [
            Quality::Best,
            Quality::SecondBest,
            Quality::NearBest,
            Quality::VeryNice,
            Quality::Nice,
            Quality::Good,
            Quality::Decent,
            Quality::Ok,
            Quality::SecondWorst,
            Quality::Worst,
        ];
        match self {
            Self::Variable(quality) => ALL.get(usize::from(quality)).copied(),
            Self::Constant(_) => None,
        }
    }
}

/// Writes one MP3 file at 48 kHz into a buffer that the caller empties.
///
/// It begins with an ID3v2.4 tag and a frame of no sound that tells how much LAME put in front of the sound (Info or
/// Xing, with LAME's extension). While the writer runs, that frame tells nothing of the length (players then play it, too:
/// up to 24 ms of silence);
/// [`finish`](Self::finish) gives the patch with the number of frames and bytes, a seek table, how much is to be dropped
/// at the end, and checksums. Only whole frames come out. A frame uses bits of frames before it (LAME's reservoir stays
/// on) but never of later ones, so a file cut after any frame plays to there.
pub struct Mp3Writer {
    lame: Encoder,
    rate: Mp3Rate,
    mode: ChannelMode,
    channels: usize,
    /// Interleaved samples that do not fill a frame yet.
    pending: Vec<f32>,
    /// LAME's output from where the last whole frame ends.
    coded: Vec<u8>,
    /// Where the frame of no sound begins.
    info_at: u64,
    frames: u32,
    /// Bytes of those frames.
    bytes: u64,
    crc: u16,
    /// Where every `stride`th frame begins, in bytes since the first.
    places: Vec<u64>,
    stride: u32,
    /// Samples, all channels together.
    written: u64,
    out: Vec<u8>,
    ended: bool,
}

/// How LAME codes the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChannelMode {
    Mono,
    Stereo,
    Joint,
}

impl std::fmt::Debug for Mp3Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mp3Writer")
            .field("rate", &self.rate)
            .field("channels", &self.channels)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl Mp3Writer {
    /// A new file: tag and first frame are ready to be taken at once. Two mono streams are coded as left and right
    /// without a common middle.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written and for a rate that MP3 does not have.
    pub fn new(head: &OpusHead, tags: &OpusTags, rate: Mp3Rate) -> Result<Self, EncodeError> {
        let channels = channels_of(head)?;
        let mode = match head.mapping {
            Mapping::TwoMono => ChannelMode::Stereo,
            Mapping::Stereo => ChannelMode::Joint,
            Mapping::Mono | Mapping::Other { .. } => ChannelMode::Mono,
        };
        let lame = encoder(mode, channels, rate)?;
        let mut out = mp3_id3::write(tags);
        let info_at = out.len() as u64;
        let mut writer = Self {
            lame,
            rate,
            mode,
            channels,
            pending: Vec::with_capacity(FRAME * channels),
            coded: Vec::with_capacity(2 * ROOM),
            info_at,
            frames: 0,
            bytes: 0,
            crc: 0,
            places: Vec::with_capacity(PLACES),
            stride: 1,
            written: 0,
            out: Vec::new(),
            ended: false,
        };
        out.extend(writer.info(None));
        writer.out = out;
        Ok(writer)
    }

    /// Adds interleaved samples at 48 kHz, full scale ±1, of any length. What is louder is limited to full scale, what is
    /// no number becomes 0.
    ///
    /// # Errors
    /// [`EncodeError::Ended`] after [`finish`](Self::finish), [`EncodeError::Packet`] where LAME fails.
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let full = FRAME * self.channels;
        let mut rest = pcm;
        while !rest.is_empty() {
            let (taken, after) = rest.split_at(rest.len().min(full - self.pending.len()));
            // LAME's own checks end the process where a sample is no number.
            self.pending.extend(taken.iter().map(|s| if s.is_nan() { 0.0 } else { s.clamp(-1.0, 1.0) }));
            rest = after;
            if self.pending.len() == full {
                self.encode_pending()?;
            }
        }
        self.written += pcm.len() as u64;
        Ok(())
    }

    /// Appends the whole frames to `out` and forgets them. Returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.out.len();
        out.append(&mut self.out);
        taken
    }

    /// Ends the file after `total` samples a channel, and gives the true first frame.
    ///
    /// # Errors
    /// [`EncodeError::End`] where another number was written, [`EncodeError::Ended`] the second time,
    /// [`EncodeError::Packet`] where LAME fails.
    pub fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        check_total(self.written, self.channels, total)?;
        self.ended = true;
        if !self.pending.is_empty() {
            self.encode_pending()?;
        }
        self.coded.reserve(ROOM);
        self.lame.flush_to_vec::<FlushGap>(&mut self.coded).map_err(|_| FAILED)?;
        self.collect_frames()?;
        if !self.coded.is_empty() {
            return Err(FAILED);
        }
        Ok(vec![Patch { offset: self.info_at, bytes: self.info(Some(total)) }])
    }

    fn encode_pending(&mut self) -> Result<(), EncodeError> {
        self.coded.reserve(ROOM);
        let coded = match self.channels {
            1 => self.lame.encode_to_vec(MonoPcm(&self.pending[..]), &mut self.coded),
            _ => self.lame.encode_to_vec(InterleavedPcm(&self.pending[..]), &mut self.coded),
        };
        coded.map_err(|_| FAILED)?;
        self.pending.clear();
        self.collect_frames()
    }

    /// Moves whole frames out.
    fn collect_frames(&mut self) -> Result<(), EncodeError> {
        let mut rest = &self.coded[..];
        while rest.len() >= super::mp3_frame::HEADER {
            let frame = Frame::parse(rest).ok_or(FAILED)?;
            let Some((bytes, after)) = rest.split_at_checked(frame.bytes) else { break };
            if self.frames.is_multiple_of(self.stride) {
                if self.places.len() == PLACES {
                    let mut nth = 0;
                    self.places.retain(|_| {
                        nth += 1;
                        nth % 2 == 1
                    });
                    self.stride *= 2;
                }
                if self.frames.is_multiple_of(self.stride) {
                    self.places.push(self.bytes);
                }
            }
            self.crc = crc16(self.crc, bytes);
            self.bytes += bytes.len() as u64;
            self.frames += 1;
            self.out.extend_from_slice(bytes);
            rest = after;
        }
        let left = rest.len();
        self.coded.drain(..self.coded.len() - left);
        Ok(())
    }

    /// The frame of no sound: of a running file, or of one that plays `total` samples.
    fn info(&self, total: Option<SampleCount>) -> Vec<u8> {
        // It has to hold 156 bytes and the side information.
        let kbps = match self.rate {
            Mp3Rate::Constant(kbps) => kbps.max(64),
            Mp3Rate::Variable(_) => 128,
        };
        let index = KBPS.iter().position(|known| *known == kbps).unwrap_or(9) as u8;
        let (mode, lame_mode) = match self.mode {
            ChannelMode::Mono => (0xc4, 0),
            ChannelMode::Stereo => (0x04, 1),
            ChannelMode::Joint => (0x44, 3),
        };
        let side = if self.channels == 1 { 17 } else { 32 };
        let length = 144 * usize::from(kbps) * 1000 / SAMPLE_RATE as usize;
        let mut frame = vec![0xff, 0xfb, index << 4 | 0x04, mode];
        frame.resize(4 + side, 0);
        frame.extend(match self.rate {
            Mp3Rate::Constant(_) => b"Info",
            Mp3Rate::Variable(_) => b"Xing",
        });
        let bytes = u32::try_from(length as u64 + self.bytes).ok().filter(|_| total.is_some());
        match bytes {
            Some(bytes) => {
                frame.extend([0, 0, 0, 15]);
                frame.extend(self.frames.to_be_bytes());
                frame.extend(bytes.to_be_bytes());
                frame.extend(self.seek_table(length as u64));
                let quality = match self.rate {
                    Mp3Rate::Constant(_) => 50,
                    Mp3Rate::Variable(quality) => 100 - 10 * u32::from(quality),
                };
                frame.extend(quality.to_be_bytes());
            }
            None => frame.extend([0; 4]),
        }
        let coded = u64::from(self.frames) * FRAME as u64;
        let padding = total.map_or(0, |total| coded.saturating_sub(DELAY + total.0)).min(0xfff) as u32;
        let (method, rate) = match self.rate {
            Mp3Rate::Constant(kbps) => (1, kbps.min(255) as u8),
            Mp3Rate::Variable(_) => (4, 32),
        };
        frame.extend(LAME);
        // The version of the extension and the kind of rate; what follows up to the rate is not told.
        frame.push(method);
        frame.extend([0; 10]);
        frame.push(rate);
        frame.extend_from_slice(&((DELAY as u32) << 12 | padding).to_be_bytes()[1..]);
        // 48 kHz, and the channel mode.
        frame.extend([2 << 6 | lame_mode << 2, 0, 0, 0]);
        frame.extend(bytes.unwrap_or(0).to_be_bytes());
        frame.extend(if total.is_some() { self.crc } else { 0 }.to_be_bytes());
        let sum = crc16(0, &frame);
        frame.extend(sum.to_be_bytes());
        frame.resize(length, 0);
        frame
    }

    /// Where in the file, in 256ths of its bytes, each hundredth of its time begins. `before` are the bytes of the frame
    /// of no sound.
    fn seek_table(&self, before: u64) -> [u8; 100] {
        let all = before + self.bytes;
        std::array::from_fn(|percent| {
            let frame = u64::from(self.frames) * percent as u64 / 100;
            let place = self.places.get((frame / u64::from(self.stride)) as usize).copied().unwrap_or(self.bytes);
            ((before + place) * 256 / all).min(255) as u8
        })
    }
}

const FAILED: EncodeError = EncodeError::Packet("LAME failed");

fn encoder(mode: ChannelMode, channels: usize, rate: Mp3Rate) -> Result<Encoder, EncodeError> {
    let refused = |_| EncodeError::Packet("LAME refused its settings");
    let mut builder = Builder::new().ok_or(FAILED)?;
    builder.set_num_channels(channels as u8).map_err(refused)?;
    builder.set_sample_rate(SAMPLE_RATE).map_err(refused)?;
    builder.set_output_sample_rate(SAMPLE_RATE.try_into().ok()).map_err(refused)?;
    builder.set_to_write_vbr_tag(false).map_err(refused)?;
    let mode = match mode {
        ChannelMode::Mono => Mode::Mono,
        ChannelMode::Stereo => Mode::Stereo,
        ChannelMode::Joint => Mode::JointStereo,
    };
    builder.set_mode(mode).map_err(refused)?;
    match rate {
        Mp3Rate::Constant(kbps) => {
            let bitrate = Mp3Rate::bitrate(kbps).ok_or_else(|| EncodeError::Config {
                setting: "MP3 bitrate",
                value: format!("{kbps} kbit/s"),
                allowed: "32, 40, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256 or 320 kbit/s",
            })?;
            builder.set_brate(bitrate).map_err(refused)?;
        }
        Mp3Rate::Variable(quality) => {
            let checked = rate.quality().ok_or_else(|| EncodeError::Config {
                setting: "MP3 quality",
                value: quality.to_string(),
                allowed: "0 to 9",
            })?;
            builder.set_vbr_mode(VbrMode::Mtrh).map_err(refused)?;
            builder.set_vbr_quality(checked).map_err(refused)?;
        }
    }
    builder.build().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::super::mp3_frame::Told;
    use super::*;

    const RATES: [Mp3Rate; 4] =
        [Mp3Rate::Constant(32), Mp3Rate::Constant(64), Mp3Rate::Constant(320), Mp3Rate::Variable(4)];

    fn file(mapping: Mapping, rate: Mp3Rate, pcm: &[f32], piece: usize) -> (Vec<u8>, Vec<Patch>, usize) {
        let mut writer = Mp3Writer::new(&OpusHead::new(mapping, 312), &OpusTags::new(), rate).unwrap();
        let mut bytes = Vec::new();
        for pcm in pcm.chunks(piece) {
            writer.write(pcm).unwrap();
            writer.take_bytes(&mut bytes);
        }
        let patches = writer.finish(SampleCount(pcm.len() as u64 / u64::from(mapping.channels()))).unwrap();
        writer.take_bytes(&mut bytes);
        let at = writer.info_at as usize;
        (bytes, patches, at)
    }

    fn noise(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..count).map(|n| (random.f32() - 0.5) * ((n / 9000) % 3) as f32).collect()
    }

    #[test]
    fn the_first_frame_tells_nothing_at_first_and_everything_at_the_end() {
        for (mapping, rate) in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono].into_iter().zip(RATES) {
            let total = 100_001;
            let (mut bytes, patches, at) = file(mapping, rate, &noise(total * usize::from(mapping.channels())), 999);
            let frame = Frame::parse(&bytes[at..]).unwrap();
            let told = Told::parse(&frame, &bytes[at..at + frame.bytes]).unwrap();
            let lame = told.lame.unwrap();
            assert_eq!((told.frames, told.bytes, lame.delay, lame.padding, lame.intact), (None, None, 576, 0, true));
            assert_eq!(patches.len(), 1);
            assert_eq!((patches[0].offset, patches[0].bytes.len()), (at as u64, frame.bytes));
            bytes[at..at + frame.bytes].copy_from_slice(&patches[0].bytes);
            let told = Told::parse(&frame, &bytes[at..at + frame.bytes]).unwrap();
            let lame = told.lame.unwrap();
            assert_eq!(told.bytes, Some((bytes.len() - at) as u32));
            assert_eq!(lame.crc, crc16(0, &bytes[at + frame.bytes..]));
            assert!(lame.intact && lame.padding >= 529);
            let coded = u64::from(told.frames.unwrap()) * 1152;
            assert_eq!(coded - u64::from(lame.delay) - u64::from(lame.padding), total as u64);
        }
    }

    #[test]
    fn the_pieces_make_no_difference() {
        let pcm = noise(60_000);
        for rate in RATES {
            let whole = file(Mapping::Stereo, rate, &pcm, 60_000);
            assert!(whole == file(Mapping::Stereo, rate, &pcm, 1));
            assert!(whole == file(Mapping::Stereo, rate, &pcm, 7001));
        }
    }

    #[test]
    fn the_seek_table_rises_from_0_and_stays_bounded() {
        let (_, patches, _) = file(Mapping::Mono, Mp3Rate::Variable(4), &noise(2_000_000), 2_000_000);
        let table = &patches[0].bytes[4 + 17 + 16..][..100];
        assert!(table.is_sorted() && table[0] <= 1 && table[99] > 240, "{table:?}");
    }

    #[test]
    fn what_mp3_does_not_have_is_refused() {
        for rate in [Mp3Rate::Constant(33), Mp3Rate::Constant(8), Mp3Rate::Variable(10)] {
            assert!(Mp3Writer::new(&OpusHead::new(Mapping::Mono, 0), &OpusTags::new(), rate).is_err());
        }
    }

    #[test]
    fn samples_beyond_all_bounds_do_no_harm() {
        let pcm: Vec<f32> =
            (0..20_000).map(|n| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, 1e-45][n % 5]).collect();
        let (bytes, _, _) = file(Mapping::Mono, Mp3Rate::Constant(64), &pcm, 512);
        assert!(bytes.len() > 1000);
    }
}
