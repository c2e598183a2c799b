//! WAVE, RF64 and BW64 to PCM.

use std::io::Read;

use super::audio_reader::{AudioFormat, AudioInfo, AudioProblem, Problems, ReadError, Source};
use crate::encode::OpusTags;

/// The most bytes of a chunk of tags that are looked at.
const LONGEST_TAGS: usize = 1 << 20;
/// Samples a channel read at once.
const AT_ONCE: usize = 4096;
/// A size that is not known, or stands in `ds64`.
const UNKNOWN: u64 = u32::MAX as u64;

/// How a sample is coded.
#[derive(Clone, Copy, Debug)]
enum Coding {
    Unsigned8,
    Signed(usize),
    Float32,
    Float64,
}

impl Coding {
    fn bytes(self) -> usize {
        match self {
            Self::Unsigned8 => 1,
            Self::Signed(bytes) => bytes,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    fn value(self, bytes: &[u8]) -> f32 {
        match (self, bytes) {
            (Self::Unsigned8, [value]) => (f32::from(*value) - 128.0) / 128.0,
            (Self::Float32, [a, b, c, d]) => f32::from_le_bytes([*a, *b, *c, *d]),
            (Self::Float64, bytes) => bytes.first_chunk().map_or(0.0, |bytes| f64::from_le_bytes(*bytes) as f32),
            (Self::Signed(_), bytes) => {
                let mut wide = [0; 4];
                wide[4usize.saturating_sub(bytes.len())..].copy_from_slice(&bytes[..bytes.len().min(4)]);
                (f64::from(i32::from_le_bytes(wide)) / 2_147_483_648.0) as f32
            }
            _ => 0.0,
        }
    }
}

pub(super) struct WavReader<R> {
    source: Source<R>,
    info: AudioInfo,
    coding: Coding,
    /// Bytes of one sample of all channels.
    frame: usize,
    /// Bytes of samples that the header tells, and how many were read.
    data: Option<u64>,
    read: u64,
    /// The size of everything after the first 8 bytes, where it is told.
    riff: Option<u64>,
    problems: Problems,
    ended: bool,
}

impl<R: Read> WavReader<R> {
    pub(super) fn new(mut source: Source<R>) -> Result<Self, ReadError> {
        let start = source.peek(12)?;
        let mut riff = u64::from(u32_at(start, 4));
        let is_64 = !start.starts_with(b"RIFF");
        source.consume(12);
        let mut data_64 = None;
        let mut format = None;
        let mut tags = OpusTags::default();
        let told = loop {
            let header = source.peek(8)?;
            if header.len() < 8 {
                return Err(ReadError::Malformed("there are no samples"));
            }
            let id = [header[0], header[1], header[2], header[3]];
            let size = u32_at(header, 4);
            source.consume(8);
            if &id == b"data" {
                break size;
            }
            let padded = u64::from(size) + u64::from(size % 2);
            let kept = usize::try_from(size).unwrap_or(usize::MAX).min(LONGEST_TAGS);
            match &id {
                b"ds64" if is_64 => {
                    let body = source.peek(24)?;
                    if kept < 24 || body.len() < 24 {
                        return Err(ReadError::Malformed("the chunk of the sizes is cut"));
                    }
                    riff = u64_at(body, 0);
                    data_64 = Some(u64_at(body, 8));
                }
                b"fmt " => {
                    let body = source.peek(kept.min(40))?;
                    format = Some(parse_format(&body[..body.len().min(kept)])?);
                }
                b"LIST" => read_info(source.peek(kept)?, kept, &mut tags),
                _ => (),
            }
            source.skip(padded)?;
        };
        let (channels, rate, bits, coding) = format.ok_or(ReadError::Malformed("there is no format chunk"))?;
        let frame = usize::from(channels) * coding.bytes();
        let data = match (u64::from(told), data_64) {
            (UNKNOWN, Some(size)) => Some(size),
            (UNKNOWN, None) => None,
            // Writers that could not come back left it at 0.
            (0, _) if !source.peek(1)?.is_empty() => None,
            (size, _) => Some(size),
        };
        let mut problems = Problems::default();
        if data.is_none() {
            problems.push(AudioProblem::Unfinished);
        }
        let info = AudioInfo {
            format: AudioFormat::Wav,
            channels,
            rate,
            bits: Some(bits),
            announced: data.map(|bytes| bytes / frame as u64),
            tags,
        };
        let riff = (riff != 0 && riff != UNKNOWN && data.is_some()).then_some(riff);
        Ok(Self { source, info, coding, frame, data, read: 0, riff, problems, ended: false })
    }

    pub(super) fn info(&self) -> &AudioInfo {
        &self.info
    }

    pub(super) fn problems(&self) -> &Problems {
        &self.problems
    }

    pub(super) fn read(&mut self, out: &mut Vec<f32>) -> Result<usize, ReadError> {
        if self.ended {
            return Ok(0);
        }
        let left = self.data.map_or(u64::MAX, |data| data - self.read);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(AT_ONCE * self.frame);
        let bytes = self.source.peek(wanted)?;
        let there = bytes.len().min(wanted);
        let whole = there - there % self.frame;
        let width = self.coding.bytes();
        let coding = self.coding;
        out.extend(bytes[..whole].chunks_exact(width).map(|bytes| coding.value(bytes)));
        self.source.consume(whole);
        self.read += whole as u64;
        if whole == 0 {
            self.ended = true;
            self.end(there)?;
        }
        Ok(whole / self.frame)
    }

    /// What comes after the samples, of which `rest` bytes make no whole one.
    fn end(&mut self, rest: usize) -> Result<(), ReadError> {
        self.source.consume(rest);
        let found = self.read + rest as u64;
        match self.data {
            Some(told) if told != found => {
                self.problems.push(AudioProblem::Mismatch { what: "bytes of samples", told, found });
                return Ok(());
            }
            // The byte that makes the number even is part of no sample.
            None if rest == 1 && self.read % 2 == 1 => return Ok(()),
            _ if rest > 0 => self.problems.push(AudioProblem::Truncated { what: "sample", bytes: rest as u64 }),
            _ => (),
        }
        let Some(told) = self.data else { return Ok(()) };
        self.source.skip(told % 2)?;
        loop {
            let header = self.source.peek(8)?;
            if header.len() < 8 {
                let left = header.len();
                self.source.consume(left);
                break;
            }
            let is_list = header.starts_with(b"LIST");
            let size = u32_at(header, 4);
            self.source.consume(8);
            let padded = u64::from(size) + u64::from(size % 2);
            if is_list {
                let kept = usize::try_from(size).unwrap_or(usize::MAX).min(LONGEST_TAGS);
                read_info(self.source.peek(kept)?, kept, &mut self.info.tags);
            }
            let skipped = self.source.skip(padded)?;
            if skipped < u64::from(size) {
                self.problems.push(AudioProblem::Truncated { what: "chunk", bytes: skipped });
            }
        }
        let found = self.source.position() - 8;
        if let Some(told) = self.riff
            && told.abs_diff(found) > 1
        {
            self.problems.push(AudioProblem::Mismatch { what: "bytes", told, found });
        }
        Ok(())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// Channels, rate, bits and coding.
fn parse_format(body: &[u8]) -> Result<(u8, u32, u8, Coding), ReadError> {
    if body.len() < 16 {
        return Err(ReadError::Malformed("the format chunk is cut"));
    }
    let u16_at = |at: usize| u32_at(body, at) as u16;
    let code = match u32_at(body, 0) as u16 {
        0xfffe if body.len() >= 26 => u16_at(24),
        code => code,
    };
    let (channels, rate, align, bits) =
        (u16_at(2), u32_at(body, 4), u16_at(12), (u32::from(body[14]) | u32::from(body[15]) << 8) as u16);
    let channels = u8::try_from(channels).ok().filter(|n| (1..=32).contains(n));
    let channels = channels.ok_or(ReadError::Unsupported("a number of channels beyond 1 to 32"))?;
    if rate == 0 {
        return Err(ReadError::Malformed("no samples a second"));
    }
    let coding = match (code, bits) {
        (1, 8) => Coding::Unsigned8,
        (1, 16) => Coding::Signed(2),
        (1, 24) => Coding::Signed(3),
        (1, 32) => Coding::Signed(4),
        (3, 32) => Coding::Float32,
        (3, 64) => Coding::Float64,
        _ => return Err(ReadError::Unsupported("WAVE with anything but PCM of 8, 16, 24 or 32 bits, or floats")),
    };
    if usize::from(align) != usize::from(channels) * coding.bytes() {
        return Err(ReadError::Malformed("the size of a sample does not fit its bits"));
    }
    Ok((channels, rate, bits as u8, coding))
}

/// Adds the tags of a `LIST INFO` chunk of `size` bytes.
fn read_info(bytes: &[u8], size: usize, tags: &mut OpusTags) {
    let body = &bytes[..bytes.len().min(size)];
    let Some(mut rest) = body.strip_prefix(b"INFO") else { return };
    while rest.len() >= 8 {
        let name = match &rest[..4] {
            b"INAM" => Some("TITLE"),
            b"IART" => Some("ARTIST"),
            b"ICRD" => Some("DATE"),
            b"ISFT" => Some("ENCODER"),
            b"ICMT" => Some("DESCRIPTION"),
            b"IPRD" => Some("ALBUM"),
            b"IGNR" => Some("GENRE"),
            b"ICOP" => Some("COPYRIGHT"),
            _ => None,
        };
        let size = u32_at(rest, 4) as usize;
        let Some(value) = rest[8..].get(..size) else { return };
        if let Some(name) = name {
            let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
            // The names above are all printable.
            let _ = tags.comment(name, &String::from_utf8_lossy(value));
        }
        rest = rest.get(8 + size + size % 2..).unwrap_or_default();
    }
}
