//! Other formats of a recording, made of its Ogg stream while that grows. Pure, but for [`mod@file`].
//!
//! The Ogg stream in the spool is the one truth of a recording: it is cut back, ended and gone on with after a crash. What is
//! in another format is a function of it. Nothing of that has to outlast a crash: it is made again.
//!
//! | item | what it does |
//! |---|---|
//! | [`Render`] | whole pages to bytes of one other format |
//! | [`Listener`] | pages to what they sound like |
//! | [`mod@file`] | a whole Ogg file to a whole file of another format |
//! | [`source`] | a file in any format to the Ogg stream that it holds or would be |

pub mod file;
pub mod source;

use serde::{Deserialize, Serialize};

use self::file::RenderError;
#[cfg(feature = "aac")]
use crate::encode::Mp4AacWriter;
use crate::encode::{
    Depth, EncodeError, FlacWriter, Format, LONGEST_PACKET, Mp4Codec, Mp4Writer, OggInspector, OpusHead, OpusTags,
    Patch, PcmDecoder, WavWriter, WebmWriter, packet,
};
#[cfg(feature = "mp3")]
use crate::encode::{Mp3Rate, Mp3Writer};
use crate::time::SampleCount;

/// How much is in a cluster of WebM; in a fragment of MP4, whose headers are larger, it is twice as much.
const UNIT: SampleCount = SampleCount::from_millis(250);

/// MP3 for speech: about 60 kbit/s for one channel.
#[cfg(feature = "mp3")]
const USUAL_MP3: Mp3Rate = Mp3Rate::Variable(4);

/// How what is encoded anew is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quality {
    /// Bits a sample of WAV and FLAC. Default 16.
    pub depth: Depth,
    /// Bits a second of MP3; none for a rate that varies with the sound, which is the default.
    pub mp3_bitrate: Option<u32>,
    /// The codec in MP4. Default Opus.
    pub mp4_codec: Mp4Codec,
}

/// A format that recordings can be rendered in, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendering {
    /// The format.
    pub format: Format,
    /// How.
    #[serde(default)]
    pub quality: Quality,
}

/// Renders one Ogg stream, whose pages come while it grows.
#[derive(Debug)]
pub struct Render {
    rendering: Rendering,
    pages: OggInspector,
    /// Lengths of the packets that came last, and all their bytes.
    packets: (Vec<usize>, Vec<u8>),
    /// Samples at 48 kHz in the packets so far.
    samples: u64,
    writer: Option<Writer>,
    ended: bool,
}

#[derive(Debug)]
enum Writer {
    Webm(WebmWriter),
    Mp4(Mp4Writer),
    #[cfg(feature = "aac")]
    Mp4Aac(Sound, Box<Mp4AacWriter>),
    Wav(Sound, WavWriter),
    Flac(Sound, Box<FlacWriter>),
    #[cfg(feature = "mp3")]
    Mp3(Sound, Box<Mp3Writer>),
}

impl Render {
    /// Nothing yet.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for what is Ogg already, for a format that is not in this build, and for a bitrate that it
    /// does not have.
    pub fn new(rendering: Rendering) -> Result<Self, EncodeError> {
        let impossible = |allowed| {
            let value = rendering.format.to_string();
            Err(EncodeError::Config { setting: "rendering in", value, allowed })
        };
        match rendering.format {
            Format::Ogg => return impossible("another format than Ogg"),
            #[cfg(not(feature = "mp3"))]
            Format::Mp3 => return impossible("a format of this build, which was made without the cargo feature mp3"),
            #[cfg(feature = "mp3")]
            Format::Mp3 => drop(mp3_rate(rendering.quality)?),
            #[cfg(not(feature = "aac"))]
            Format::Mp4 if rendering.quality.mp4_codec == Mp4Codec::Aac => {
                let allowed = "opus, as this build was made without the cargo feature aac";
                return Err(EncodeError::Config { setting: "MP4 codec", value: "aac".to_owned(), allowed });
            }
            _ => {}
        }
        Ok(Self {
            rendering,
            pages: OggInspector::new(),
            packets: Default::default(),
            samples: 0,
            writer: None,
            ended: false,
        })
    }

    /// How it renders.
    pub fn rendering(&self) -> Rendering {
        self.rendering
    }

    /// Takes the next whole pages of the stream. Gives what is to be put over bytes at the beginning, once the last page
    /// was among them; what came before plays without that.
    ///
    /// # Errors
    /// [`EncodeError`] where the stream is none that the format holds; then nothing further may come.
    pub fn push(&mut self, pages: &[u8]) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            // What comes after a stream's end is none of it.
            return Ok(Vec::new());
        }
        let (lengths, bytes) = &mut self.packets;
        lengths.clear();
        bytes.clear();
        self.pages.push_each(pages, &mut |packet| {
            lengths.push(packet.len());
            bytes.extend_from_slice(packet);
        });
        let found = self.pages.so_far();
        let (Some(head), Some(tags)) = (&found.head, &found.tags) else { return Ok(Vec::new()) };
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::new(self.rendering, head, tags)?),
        };
        let end = found.state.filter(|_| found.ended).map(|state| state.granule);
        let mut rest = &bytes[..];
        for length in lengths.iter() {
            let (payload, after) = rest.split_at(*length);
            rest = after;
            // A packet that only carries the end of the Ogg stream plays nothing.
            if end.is_some_and(|end| self.samples >= end) {
                break;
            }
            let samples = packet::check(payload)?;
            writer.packet(payload, samples)?;
            self.samples += u64::from(samples);
        }
        match end {
            Some(end) => {
                self.ended = true;
                writer.finish(SampleCount(end.saturating_sub(u64::from(head.pre_skip))))
            }
            None => Ok(Vec::new()),
        }
    }

    /// Ends it where the stream stands whose last page never came; one that has ended stays as it is. Gives what
    /// [`push`](Self::push) gives at the end.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where there was no stream at all.
    pub fn finish(&mut self) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Ok(Vec::new());
        }
        let found = self.pages.so_far();
        let (Some(head), Some(state), Some(writer)) = (&found.head, found.state, &mut self.writer) else {
            return Err(EncodeError::Packet("there is no stream of them"));
        };
        self.ended = true;
        let end = state.granule.min(self.samples);
        writer.finish(SampleCount(end.saturating_sub(u64::from(head.pre_skip))))
    }

    /// Appends what is complete to `out` and forgets it. Gives how many bytes that were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        self.writer.as_mut().map_or(0, |writer| writer.take_bytes(out))
    }
}

impl Writer {
    fn new(rendering: Rendering, head: &OpusHead, tags: &OpusTags) -> Result<Self, EncodeError> {
        let Quality { depth, mp4_codec, .. } = rendering.quality;
        let sound = || Sound::new(head);
        Ok(match rendering.format {
            Format::Ogg => unreachable!("refused at the beginning"),
            Format::Webm => Self::Webm(WebmWriter::new(head, tags, UNIT)?),
            Format::Mp4 => match mp4_codec {
                Mp4Codec::Opus => Self::Mp4(Mp4Writer::new(head, tags, UNIT + UNIT)?),
                #[cfg(feature = "aac")]
                Mp4Codec::Aac => Self::Mp4Aac(sound()?, Box::new(Mp4AacWriter::new(head, tags, UNIT + UNIT)?)),
                #[cfg(not(feature = "aac"))]
                Mp4Codec::Aac => unreachable!("refused at the beginning"),
            },
            Format::Wav => Self::Wav(sound()?, WavWriter::new(head, tags, depth)?),
            Format::Flac => Self::Flac(sound()?, Box::new(FlacWriter::new(head, tags, depth)?)),
            #[cfg(feature = "mp3")]
            Format::Mp3 => {
                let rate = mp3_rate(rendering.quality)?;
                Self::Mp3(sound()?, Box::new(Mp3Writer::new(head, tags, rate)?))
            }
            #[cfg(not(feature = "mp3"))]
            Format::Mp3 => unreachable!("refused at the beginning"),
        })
    }

    fn packet(&mut self, payload: &[u8], samples: u32) -> Result<(), EncodeError> {
        match self {
            Self::Webm(writer) => writer.write_packet(payload, samples),
            Self::Mp4(writer) => writer.write_packet(payload, samples),
            #[cfg(feature = "aac")]
            Self::Mp4Aac(sound, writer) => writer.write(sound.decode(payload, samples)?),
            Self::Wav(sound, writer) => writer.write(sound.decode(payload, samples)?),
            Self::Flac(sound, writer) => writer.write(sound.decode(payload, samples)?),
            #[cfg(feature = "mp3")]
            Self::Mp3(sound, writer) => writer.write(sound.decode(payload, samples)?),
        }
    }

    fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        match self {
            Self::Webm(writer) => writer.finish(total),
            Self::Mp4(writer) => writer.finish(total),
            #[cfg(feature = "aac")]
            Self::Mp4Aac(sound, writer) => {
                writer.write(sound.finish(total)?)?;
                writer.finish(total)
            }
            Self::Wav(sound, writer) => {
                writer.write(sound.finish(total)?)?;
                writer.finish(total)
            }
            Self::Flac(sound, writer) => {
                writer.write(sound.finish(total)?)?;
                writer.finish(total)
            }
            #[cfg(feature = "mp3")]
            Self::Mp3(sound, writer) => {
                writer.write(sound.finish(total)?)?;
                writer.finish(total)
            }
        }
    }

    fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Webm(writer) => writer.take_bytes(out),
            Self::Mp4(writer) => writer.take_bytes(out),
            #[cfg(feature = "aac")]
            Self::Mp4Aac(_, writer) => writer.take_bytes(out),
            Self::Wav(_, writer) => writer.take_bytes(out),
            Self::Flac(_, writer) => writer.take_bytes(out),
            #[cfg(feature = "mp3")]
            Self::Mp3(_, writer) => writer.take_bytes(out),
        }
    }
}

/// A stream's sound.
#[derive(Debug)]
struct Sound {
    decoder: PcmDecoder,
    pcm: Vec<f32>,
}

impl Sound {
    fn new(head: &OpusHead) -> Result<Self, EncodeError> {
        // Whole packets behind the end never come here, so that it trims no more than one.
        Ok(Self { decoder: PcmDecoder::new(head, LONGEST_PACKET)?, pcm: Vec::new() })
    }

    fn decode(&mut self, payload: &[u8], samples: u32) -> Result<&[f32], EncodeError> {
        self.decoder.write_packet(payload, samples)?;
        Ok(self.take())
    }

    fn finish(&mut self, total: SampleCount) -> Result<&[f32], EncodeError> {
        self.decoder.finish(total)?;
        Ok(self.take())
    }

    fn take(&mut self) -> &[f32] {
        self.pcm.clear();
        self.decoder.take(&mut self.pcm);
        &self.pcm
    }
}

/// What takes sound: interleaved, with how many channels.
pub type Heard<'a> = &'a mut dyn FnMut(&[f32], usize) -> Result<(), RenderError>;

/// Listens to one Ogg stream, in pieces of any size.
#[derive(Debug, Default)]
pub struct Listener {
    pages: OggInspector,
    packets: Vec<Vec<u8>>,
    decoder: Option<PcmDecoder>,
    pcm: Vec<f32>,
}

impl Listener {
    /// Takes the next bytes, and hands on what they sound like. The end is not trimmed.
    ///
    /// # Errors
    /// A stream that cannot be decoded; what `heard` says.
    pub fn push(&mut self, pages: &[u8], heard: Heard<'_>) -> Result<(), RenderError> {
        let packets = &mut self.packets;
        self.pages.push_each(pages, &mut |packet| packets.push(packet.to_vec()));
        let Some(head) = self.pages.so_far().head else { return Ok(()) };
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            none => none.insert(PcmDecoder::new(&head, SampleCount::ZERO)?),
        };
        for packet in self.packets.drain(..) {
            decoder.write_packet(&packet, packet::check(&packet)?)?;
            self.pcm.clear();
            decoder.take(&mut self.pcm);
            heard(&self.pcm, decoder.channels())?;
        }
        Ok(())
    }

    /// How long the stream plays.
    pub fn finish(self) -> SampleCount {
        self.pages.finish().duration
    }
}

/// How MP3 is encoded.
#[cfg(feature = "mp3")]
fn mp3_rate(quality: Quality) -> Result<Mp3Rate, EncodeError> {
    let rate = match quality.mp3_bitrate {
        None => USUAL_MP3,
        Some(bitrate) => Mp3Rate::Constant(u16::try_from(bitrate / 1_000).unwrap_or(0)),
    };
    rate.check().map(|()| rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{AudioReader, Mapping, OggOpusWriter, OpusConfig, OpusEncoder, WebmReader, patch};

    /// A second of a tone, as an Ogg stream of pages of 100 ms that ends at `total`, or does not.
    fn ogg(total: Option<u64>) -> Vec<u8> {
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        let head = OpusHead::new(Mapping::Mono, encoder.pre_skip());
        let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount::from_millis(100)).unwrap();
        for frame in 0..50 {
            let pcm: Vec<f32> = (0..960).map(|n| 0.5 * ((frame * 960 + n) as f32 * 0.05).sin()).collect();
            writer.write_packet(encoder.encode(&pcm).unwrap(), 960).unwrap();
        }
        match total {
            Some(total) => writer.finish(SampleCount(total)).unwrap(),
            None => writer.close_page(),
        }
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        bytes
    }

    fn rendered(format: Format, ogg: &[u8], piece: usize) -> Vec<u8> {
        rendered_as(Rendering { format, quality: Quality::default() }, ogg, piece)
    }

    fn rendered_as(rendering: Rendering, ogg: &[u8], piece: usize) -> Vec<u8> {
        let mut render = Render::new(rendering).unwrap();
        let (mut bytes, mut patches) = (Vec::new(), Vec::new());
        for piece in ogg.chunks(piece) {
            patches.extend(render.push(piece).unwrap());
            render.take_bytes(&mut bytes);
        }
        patches.extend(render.finish().unwrap());
        render.take_bytes(&mut bytes);
        assert!(patch::apply(&patches, &mut bytes), "{rendering:?}");
        bytes
    }

    fn samples(bytes: &[u8]) -> u64 {
        let found = AudioReader::new(bytes).unwrap().inspect().unwrap();
        assert!(found.is_clean(), "{:?}", found.problems);
        found.samples
    }

    #[test]
    fn the_same_stream_gives_the_same_bytes_however_it_comes() {
        let ogg = ogg(Some(47_000));
        for format in Format::ALL.into_iter().filter(|format| *format != Format::Ogg) {
            let whole = rendered(format, &ogg, ogg.len());
            assert_eq!(rendered(format, &ogg, 100), whole, "{format}");
            if !format.holds_opus() {
                assert_eq!(samples(&whole), 47_000, "{format}");
            }
        }
    }

    #[test]
    fn a_stream_without_an_end_ends_where_its_pages_do_and_an_end_alone_adds_nothing() {
        let (cut, pre_skip) = (ogg(None), 312);
        for format in [Format::Wav, Format::Flac] {
            assert_eq!(samples(&rendered(format, &cut, 4_000)), 48_000 - pre_skip, "{format}");
        }
        let (head, state) = (crate::encode::head_of(&cut).unwrap(), crate::encode::state_after(&cut).unwrap());
        let ended = [cut, crate::encode::closing_page(head, state).unwrap()].concat();
        assert_eq!(samples(&rendered(Format::Wav, &ended, 4_000)), 48_000 - pre_skip);
        let mut reader = WebmReader::new();
        reader.push(&rendered(Format::Webm, &ended, 4_000));
        let found = reader.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!((found.packets, found.total), (50, SampleCount(48_000 - pre_skip)));
    }

    #[test]
    #[cfg(feature = "aac")]
    fn aac_has_the_length_of_the_stream_however_that_comes() {
        let quality = Quality { mp4_codec: Mp4Codec::Aac, ..Quality::default() };
        let rendering = Rendering { format: Format::Mp4, quality };
        for (ogg, total) in [(ogg(Some(47_000)), 47_000), (ogg(None), 48_000 - 312)] {
            let whole = rendered_as(rendering, &ogg, ogg.len());
            assert!(rendered_as(rendering, &ogg, 100) == whole);
            let mut reader = crate::encode::Mp4Reader::new();
            reader.push(&whole);
            let found = reader.finish();
            assert!(found.is_clean() && found.aac.is_some(), "{:?}", found.problems);
            assert_eq!((found.total, found.duration), (SampleCount(total), Some(SampleCount(total))));
            let read = source::read(std::io::Cursor::new(whole), Format::Mp4, &OpusConfig::mono(), &mut |_, _| Ok(()));
            assert!(read.unwrap_err().to_string().contains("AAC"));
        }
    }

    #[test]
    #[cfg(not(feature = "aac"))]
    fn aac_is_refused_by_name_in_a_build_without_it() {
        let quality = Quality { mp4_codec: Mp4Codec::Aac, ..Quality::default() };
        let refused = |format| Render::new(Rendering { format, quality }).err().map(|error| error.to_string());
        assert!(refused(Format::Mp4).unwrap().contains("cargo feature aac"));
        assert_eq!(refused(Format::Wav), None);
    }

    #[test]
    fn what_is_no_other_format_or_rate_is_refused_at_the_beginning() {
        let refused = |format, mp3_bitrate| {
            let quality = Quality { mp3_bitrate, ..Quality::default() };
            Render::new(Rendering { format, quality }).err().map(|error| error.to_string())
        };
        assert!(refused(Format::Ogg, None).unwrap().contains("ogg"));
        assert!(refused(Format::Mp3, Some(65_000)).unwrap().contains("65 kbit/s"));
        assert_eq!(refused(Format::Mp3, Some(64_000)), None);
        let mut render = Render::new(Rendering { format: Format::Wav, quality: Quality::default() }).unwrap();
        assert!(render.push(b"no pages at all").unwrap().is_empty());
        assert!(render.finish().is_err());
    }
}
