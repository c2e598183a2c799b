//! A file in any of the formats, as the Ogg stream that it holds or would be.

use std::io::{self, Read, Seek, SeekFrom};

use super::file::RenderError;
use crate::encode::{
    AudioReader, Contents, EncodeError, Format, Mapping, Mp4Reader, OggInspector, OggOpusWriter, OpusConfig,
    OpusEncoder, OpusHead, OpusTags, ReadError, WebmReader,
};
use crate::time::SampleCount;

/// How much is read at once.
const BLOCK: usize = 256 * 1024;

/// How much of a stream that is made here is in a page.
const PAGE: SampleCount = SampleCount::from_millis(1_000);

const AAC_IS_NOT_READ: &str = "its sound is AAC, which callreel writes but does not decode; convert the recording's Ogg, or this file with ffmpeg";

/// What takes the pages, with how many bytes of the input were read by then; of compressed sound, about.
type Take<'a> = &'a mut dyn FnMut(&[u8], u64) -> Result<(), RenderError>;

/// The format of a file, by its first bytes; none where they are of no format.
pub fn format_of(first: &[u8]) -> Option<Format> {
    match first {
        [b'O', b'g', b'g', b'S', ..] => Some(Format::Ogg),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some(Format::Webm),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => Some(Format::Mp4),
        [b'f', b'L', b'a', b'C', ..] => Some(Format::Flac),
        [b'R', b'I', b'F', b'F', ..] | [b'R' | b'B', b'F' | b'W', b'6', b'4', ..] => Some(Format::Wav),
        [b'I', b'D', b'3', ..] => Some(Format::Mp3),
        [0xff, second, ..] if *second >= 0xe0 => Some(Format::Mp3),
        _ => None,
    }
}

/// Whether the sound of an MP4 file is AAC, which can be copied but not read.
///
/// # Errors
/// What the input says.
pub fn is_aac(mut input: impl Read) -> io::Result<bool> {
    let (mut reader, mut block) = (Mp4Reader::new(), vec![0; BLOCK]);
    while reader.head().is_none() && reader.aac().is_none() {
        match input.read(&mut block) {
            Ok(0) => break,
            Ok(read) => reader.push(&block[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reader.aac().is_some())
}

/// Reads `input`, which is in `format`, and hands the Ogg stream to `take` in pieces: its own, or its packets', or its sound
/// encoded with `opus`. Gives what is wrong with the input that did not keep it from being read.
///
/// # Errors
/// What the input or `take` says; an input that no stream can be made of.
pub fn read(
    mut input: impl Read + Seek,
    format: Format,
    opus: &OpusConfig,
    take: Take<'_>,
) -> Result<Vec<String>, RenderError> {
    match format {
        Format::Ogg => {
            let mut inspector = OggInspector::new();
            each_block(&mut input, &mut |block, at| {
                inspector.push(block);
                take(block, at)
            })?;
            Ok(inspector.finish().problems.iter().map(ToString::to_string).collect())
        }
        Format::Webm => packets(&mut input, Packets::Webm(Box::new(WebmReader::new())), take),
        Format::Mp4 => {
            let mut first = Mp4Reader::new();
            each_block(&mut input, &mut |block, _| {
                first.push(block);
                Ok(())
            })?;
            if first.aac().is_some() {
                return Err(io::Error::new(io::ErrorKind::Unsupported, AAC_IS_NOT_READ).into());
            }
            input.seek(SeekFrom::Start(0))?;
            // An index behind the data is known then.
            let reader = first.second_reading().unwrap_or_default();
            packets(&mut input, Packets::Mp4(Box::new(reader)), take)
        }
        Format::Wav | Format::Flac | Format::Mp3 => sound(input, opus, take),
    }
}

/// Reads packets out of a container.
enum Packets {
    Webm(Box<WebmReader>),
    Mp4(Box<Mp4Reader>),
}

impl Packets {
    fn push_each(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8], u32)) {
        match self {
            Self::Webm(reader) => reader.push_each(bytes, each),
            Self::Mp4(reader) => reader.push_each(bytes, each),
        }
    }

    fn head(&self) -> Option<(OpusHead, OpusTags)> {
        let (head, tags) = match self {
            Self::Webm(reader) => (reader.head(), reader.tags()),
            Self::Mp4(reader) => (reader.head(), reader.tags()),
        };
        head.map(|head| (*head, tags.cloned().unwrap_or_default()))
    }

    fn finish(self) -> Contents {
        match self {
            Self::Webm(reader) => reader.finish(),
            Self::Mp4(reader) => reader.finish(),
        }
    }
}

fn packets(input: &mut impl Read, mut reader: Packets, take: Take<'_>) -> Result<Vec<String>, RenderError> {
    let mut writer: Option<OggOpusWriter> = None;
    let (mut found, mut bytes, mut read) = (Vec::new(), Vec::new(), 0);
    each_block(input, &mut |block, at| {
        read = at;
        reader.push_each(block, &mut |packet, samples| found.push((packet.to_vec(), samples)));
        if writer.is_none() && !found.is_empty() {
            let Some((head, tags)) = reader.head() else { return Ok(()) };
            writer = Some(OggOpusWriter::new(head, &tags, fastrand::u32(..), PAGE)?);
        }
        let Some(writer) = &mut writer else { return Ok(()) };
        for (packet, samples) in found.drain(..) {
            writer.write_packet(&packet, samples)?;
        }
        bytes.clear();
        writer.take_bytes(&mut bytes);
        take(&bytes, at)
    })?;
    let contents = reader.finish();
    let Some(mut writer) = writer else { return Err(nothing(&contents)) };
    // What the container trims further than the last page allows stays.
    let total = contents.total.0.min(writer.samples().0);
    if let Err(EncodeError::End { low, .. }) = writer.finish(SampleCount(total)) {
        let pre_skip = u64::from(writer.head().pre_skip);
        writer.finish(SampleCount(low.saturating_sub(pre_skip).max(total)))?;
    }
    bytes.clear();
    writer.take_bytes(&mut bytes);
    take(&bytes, read)?;
    Ok(contents.problems.iter().map(ToString::to_string).collect())
}

fn nothing(contents: &Contents) -> RenderError {
    let why = contents.problems.first().map_or_else(|| "nothing is in it".to_owned(), ToString::to_string);
    io::Error::new(io::ErrorKind::InvalidData, why).into()
}

fn sound(input: impl Read + Seek, opus: &OpusConfig, take: Take<'_>) -> Result<Vec<String>, RenderError> {
    let mut reader = AudioReader::new(input).map_err(unreadable)?;
    reader.check_rate().map_err(unreadable)?;
    let channels = usize::from(reader.info().channels);
    let config = if channels == opus.channels() { opus.clone() } else { for_channels(channels)? };
    let mut encoder = OpusEncoder::new(&config)?;
    let mapping = if channels == 1 { Mapping::Mono } else { Mapping::Stereo };
    let head = OpusHead::new(mapping, encoder.pre_skip());
    let mut writer = OggOpusWriter::new(head, &reader.info().tags, fastrand::u32(..), PAGE)?;
    let samples = config.frame_duration().samples();
    let (mut pcm, mut bytes, mut total, mut at) = (Vec::new(), Vec::new(), 0, 0);
    loop {
        let count = reader.read(&mut pcm).map_err(unreadable)?;
        total += count as u64;
        if count == 0 {
            // The encoder is behind by the pre-skip; silence pushes the rest out, up to a whole frame.
            let held = pcm.len() / channels + usize::from(head.pre_skip);
            let frames = held.div_ceil(samples as usize).max(1);
            pcm.resize(frames * encoder.frame_len(), 0.0);
        }
        let whole = pcm.len() / encoder.frame_len() * encoder.frame_len();
        for frame in pcm[..whole].chunks_exact(encoder.frame_len()) {
            writer.write_packet(encoder.encode(frame)?, samples)?;
        }
        pcm.drain(..whole);
        if count == 0 {
            break;
        }
        at += (count * channels) as u64 * 2;
        bytes.clear();
        writer.take_bytes(&mut bytes);
        take(&bytes, at)?;
    }
    writer.finish(SampleCount(total))?;
    bytes.clear();
    writer.take_bytes(&mut bytes);
    take(&bytes, at)?;
    Ok(reader.problems().iter().map(ToString::to_string).collect())
}

fn for_channels(channels: usize) -> Result<OpusConfig, RenderError> {
    match channels {
        1 => Ok(OpusConfig::mono()),
        2 => Ok(OpusConfig::stereo()),
        _ => {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("{channels} channels; 1 or 2 can be converted"))
                .into())
        }
    }
}

fn unreadable(error: ReadError) -> RenderError {
    match error {
        ReadError::Io(error) => error.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error).into(),
    }
}

fn each_block(input: &mut impl Read, take: Take<'_>) -> Result<(), RenderError> {
    let (mut block, mut at) = (vec![0; BLOCK], 0);
    loop {
        match input.read(&mut block) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                at += read as u64;
                take(&block[..read], at)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
