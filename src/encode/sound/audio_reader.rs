//! WAVE, FLAC and MP3 to PCM and a verdict. Nothing in the bytes can make this panic, and memory stays bounded whatever
//! they claim.

use std::io::{self, Read};

use serde::Serialize;
use thiserror::Error;

use super::flac_reader::FlacReader;
use super::mp3_reader::Mp3Reader;
use super::wav_reader::WavReader;
use crate::encode::OpusTags;
use crate::time::SAMPLE_RATE;

/// No more problems of one file than this are kept; the rest is counted.
const KEPT_PROBLEMS: usize = 100;
/// Bytes read at once.
const BUFFER: usize = 64 * 1024;

/// A format that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AudioFormat {
    /// RIFF WAVE, or its 64-bit relatives RF64 and BW64, with PCM in whole numbers or floats.
    Wav,
    /// FLAC in its own container.
    Flac,
    /// MPEG-1, 2 or 2.5 layer III.
    Mp3,
}

/// What a file's header says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AudioInfo {
    /// The format.
    pub format: AudioFormat,
    /// Channels.
    pub channels: u8,
    /// Samples a second.
    pub rate: u32,
    /// Bits a sample, where the format has such.
    pub bits: Option<u8>,
    /// Samples a channel that the header announces; a file that is still written announces none.
    pub announced: Option<u64>,
    /// Tags, under the names they have in Ogg.
    pub tags: OpusTags,
}

/// Why a file cannot be read any further.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Reading failed.
    #[error("reading failed: {0}")]
    Io(#[from] io::Error),
    /// Another format.
    #[error("neither WAVE nor FLAC nor MP3")]
    Unknown,
    /// The format is known, this use of it is not.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The header makes no sense.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// Another sample rate than needed.
    #[error("{got} samples a second, where {needed} are needed: convert it first")]
    Rate {
        /// What the file has.
        got: u32,
        /// What is needed.
        needed: u32,
    },
}

/// What is wrong with a file that can be read.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AudioProblem {
    /// The header announces no length: the file is still written, or its writer was stopped.
    #[error("its header tells no length: it is still being written, or its writer was stopped")]
    Unfinished,
    /// It ends inside a frame, a block or a chunk.
    #[error("it ends in the middle of a {what}, {bytes} bytes into it")]
    Truncated {
        /// Of what.
        what: &'static str,
        /// How much of it is there.
        bytes: u64,
    },
    /// A number in the header that is not what was found.
    #[error("its header tells {told} {what}, where there are {found}")]
    Mismatch {
        /// Of what.
        what: &'static str,
        /// The number in the header.
        told: u64,
        /// The number found.
        found: u64,
    },
    /// A checksum that is wrong.
    #[error("the checksum of {what} is wrong")]
    BadChecksum {
        /// Of what.
        what: &'static str,
    },
    /// A frame that cannot be decoded.
    #[error("the frame at sample {sample} is damaged: {reason}")]
    BadFrame {
        /// Samples a channel before it.
        sample: u64,
        /// What the decoder says.
        reason: String,
    },
    /// Bytes that belong to nothing.
    #[error("{bytes} bytes that belong to nothing before offset {offset}")]
    Garbage {
        /// How many.
        bytes: u64,
        /// Where they end.
        offset: u64,
    },
}

/// Problems of one file, in order; their number is bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Problems {
    pub kept: Vec<AudioProblem>,
    pub more: u64,
}

impl Problems {
    pub(super) fn push(&mut self, problem: AudioProblem) {
        if self.kept.len() < KEPT_PROBLEMS {
            self.kept.push(problem);
        } else {
            self.more += 1;
        }
    }
}

/// What a whole file holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AudioInspection {
    /// What its header says.
    #[serde(flatten)]
    pub info: AudioInfo,
    /// Samples a channel that a player plays.
    pub samples: u64,
    /// What is wrong with it, in order; at most 100.
    pub problems: Vec<AudioProblem>,
    /// Problems beyond those.
    pub more_problems: u64,
}

impl AudioInspection {
    /// The length in seconds.
    pub fn seconds(&self) -> f64 {
        self.samples as f64 / f64::from(self.info.rate.max(1))
    }

    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Bytes of a file, read as they are needed and counted.
pub(super) struct Source<R> {
    input: R,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes before the buffer.
    base: u64,
    ended: bool,
}

impl<R: Read> Source<R> {
    fn new(input: R) -> Self {
        Self { input, buffer: Vec::new(), at: 0, base: 0, ended: false }
    }

    /// Bytes that were consumed.
    pub(super) fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    /// The next bytes, at least `wanted` of them where there are so many, without consuming them.
    pub(super) fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.buffer.len() - self.at < wanted && !self.ended {
            self.base += self.at as u64;
            self.buffer.drain(..self.at);
            self.at = 0;
            let length = self.buffer.len();
            self.buffer.resize(length + BUFFER.max(wanted - length), 0);
            let read = loop {
                match self.input.read(&mut self.buffer[length..]) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    read => break read,
                }
            };
            self.buffer.truncate(length + *read.as_ref().unwrap_or(&0));
            self.ended = read? == 0;
        }
        Ok(&self.buffer[self.at..])
    }

    /// Consumes bytes that were peeked at.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.buffer.len());
    }

    /// Consumes bytes unseen; returns how many there were.
    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<u64> {
        let mut left = bytes;
        while left > 0 {
            let there = self.peek(1)?.len();
            if there == 0 {
                break;
            }
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            self.consume(now);
            left -= now as u64;
        }
        Ok(bytes - left)
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let there = self.peek(1)?;
        let count = there.len().min(out.len());
        out[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}

enum Kind<R: Read> {
    Wav(Box<WavReader<R>>),
    Flac(Box<FlacReader<R>>),
    Mp3(Box<Mp3Reader<R>>),
}

/// Reads a WAVE, FLAC or MP3 file from its beginning. Only what is needed is read, in pieces of 64 KiB.
pub struct AudioReader<R: Read> {
    kind: Kind<R>,
    samples: u64,
}

impl<R: Read> std::fmt::Debug for AudioReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioReader").field("info", self.info()).field("samples", &self.samples).finish_non_exhaustive()
    }
}

impl<R: Read> AudioReader<R> {
    /// Reads the header of whatever format `input` has.
    ///
    /// # Errors
    /// [`ReadError::Unknown`] where it has none of them, [`ReadError::Unsupported`] and [`ReadError::Malformed`] where
    /// the header cannot be used, [`ReadError::Io`].
    pub fn new(input: R) -> Result<Self, ReadError> {
        let mut source = Source::new(input);
        let start = source.peek(12)?;
        let kind = if start.starts_with(b"fLaC") {
            Kind::Flac(Box::new(FlacReader::new(source)?))
        } else if matches!(start.get(..4), Some(b"RIFF" | b"RF64" | b"BW64")) && start.get(8..12) == Some(b"WAVE") {
            Kind::Wav(Box::new(WavReader::new(source)?))
        } else {
            Kind::Mp3(Box::new(Mp3Reader::new(source)?))
        };
        Ok(Self { kind, samples: 0 })
    }

    /// What the header says. Tags that stand at the end are known at the end.
    pub fn info(&self) -> &AudioInfo {
        match &self.kind {
            Kind::Wav(reader) => reader.info(),
            Kind::Flac(reader) => reader.info(),
            Kind::Mp3(reader) => reader.info(),
        }
    }

    /// Refuses a file of another rate than the recorder's 48 kHz.
    ///
    /// # Errors
    /// [`ReadError::Rate`].
    pub fn check_rate(&self) -> Result<(), ReadError> {
        match self.info().rate {
            SAMPLE_RATE => Ok(()),
            got => Err(ReadError::Rate { got, needed: SAMPLE_RATE }),
        }
    }

    /// Appends the next samples to `out`, interleaved, full scale ±1: some thousand at most. Returns how many a channel;
    /// 0 at the end. What cannot be read in the middle becomes a [problem](Self::problems), not an error.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<usize, ReadError> {
        let count = match &mut self.kind {
            Kind::Wav(reader) => reader.read(out),
            Kind::Flac(reader) => reader.read(out),
            Kind::Mp3(reader) => reader.read(out),
        }?;
        self.samples += count as u64;
        Ok(count)
    }

    /// What was found wrong so far, in order; at most 100.
    pub fn problems(&self) -> &[AudioProblem] {
        &self.all_problems().kept
    }

    /// Reads what is left, and tells what the file holds.
    ///
    /// # Errors
    /// [`ReadError::Io`].
    pub fn inspect(mut self) -> Result<AudioInspection, ReadError> {
        let mut pcm = Vec::new();
        while self.read(&mut pcm)? > 0 {
            pcm.clear();
        }
        let problems = self.all_problems().clone();
        Ok(AudioInspection {
            info: self.info().clone(),
            samples: self.samples,
            problems: problems.kept,
            more_problems: problems.more,
        })
    }

    fn all_problems(&self) -> &Problems {
        match &self.kind {
            Kind::Wav(reader) => reader.problems(),
            Kind::Flac(reader) => reader.problems(),
            Kind::Mp3(reader) => reader.problems(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::flac::FlacWriter;
    use super::super::pcm::Depth;
    use super::super::wav::WavWriter;
    use super::*;
    use crate::encode::Patch;
    use crate::encode::{Mapping, OpusHead};
    use crate::time::SampleCount;

    fn tags() -> OpusTags {
        let mut tags = OpusTags { vendor: "callreel".into(), comments: Vec::new() };
        for (name, value) in
            [("TITLE", "a room"), ("ARTIST", "Anna"), ("DATE", "2026-11-22T12:00:00Z"), ("ENCODER", "callreel")]
        {
            tags.comment(name, value).unwrap();
        }
        tags
    }

    fn noise(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..count).map(|_| random.f32() * 0.8 - 0.4).collect()
    }

    fn put(bytes: &mut [u8], patches: Vec<Patch>) {
        for patch in patches {
            let at = patch.offset as usize;
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
    }

    /// One second, and whether the sizes were put in.
    fn wav(mapping: Mapping, depth: Depth, finished: bool) -> Vec<u8> {
        let mut writer = WavWriter::new(&OpusHead::new(mapping, 0), &tags(), depth).unwrap();
        writer.write(&noise(48_000 * usize::from(mapping.channels()))).unwrap();
        let patches = writer.finish(SampleCount(48_000)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        if finished {
            put(&mut bytes, patches);
        }
        bytes
    }

    fn flac(mapping: Mapping, depth: Depth, finished: bool) -> Vec<u8> {
        let mut writer = FlacWriter::new(&OpusHead::new(mapping, 0), &tags(), depth).unwrap();
        writer.write(&noise(48_000 * usize::from(mapping.channels()))).unwrap();
        let patches = writer.finish(SampleCount(48_000)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        if finished {
            put(&mut bytes, patches);
        }
        bytes
    }

    #[cfg(feature = "mp3")]
    fn mp3(mapping: Mapping, finished: bool) -> Vec<u8> {
        use super::super::mp3::{Mp3Rate, Mp3Writer};
        let mut writer = Mp3Writer::new(&OpusHead::new(mapping, 0), &tags(), Mp3Rate::Constant(64)).unwrap();
        writer.write(&noise(48_000 * usize::from(mapping.channels()))).unwrap();
        let patches = writer.finish(SampleCount(48_000)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        if finished {
            put(&mut bytes, patches);
        }
        bytes
    }

    fn files(finished: bool) -> Vec<Vec<u8>> {
        vec![
            wav(Mapping::Mono, Depth::Bits16, finished),
            wav(Mapping::Stereo, Depth::Bits24, finished),
            flac(Mapping::Stereo, Depth::Bits16, finished),
            flac(Mapping::Mono, Depth::Bits24, finished),
            #[cfg(feature = "mp3")]
            mp3(Mapping::Mono, finished),
            #[cfg(feature = "mp3")]
            mp3(Mapping::TwoMono, finished),
        ]
    }

    fn inspect(bytes: &[u8]) -> AudioInspection {
        AudioReader::new(bytes).unwrap().inspect().unwrap()
    }

    /// Reads whatever comes, and gives how many samples a channel.
    fn drain(bytes: &[u8]) -> Option<u64> {
        Some(AudioReader::new(bytes).ok()?.inspect().ok()?.samples)
    }

    #[test]
    fn what_was_written_is_read_with_its_tags() {
        for bytes in files(true) {
            let found = inspect(&bytes);
            assert!(found.is_clean(), "{found:?}");
            assert_eq!((found.samples, found.info.announced, found.info.rate), (48_000, Some(48_000), 48_000));
            for (name, value) in &tags().comments {
                assert_eq!(found.info.tags.get(name), Some(value.as_str()), "{found:?}");
            }
        }
    }

    #[test]
    fn an_unfinished_file_says_so_and_plays() {
        for bytes in files(false) {
            let found = inspect(&bytes);
            assert_eq!(found.info.announced, None);
            assert_eq!(found.problems, [AudioProblem::Unfinished]);
            let exact = found.info.format != AudioFormat::Mp3;
            assert!(found.samples == 48_000 || !exact && (48_000..50_000).contains(&found.samples), "{found:?}");
        }
    }

    #[test]
    fn samples_of_wave_and_flac_come_back_exactly() {
        let pcm = noise(96_000);
        for (bytes, depth) in [
            (wav(Mapping::Stereo, Depth::Bits16, true), Depth::Bits16),
            (wav(Mapping::Stereo, Depth::Bits24, false), Depth::Bits24),
            (flac(Mapping::Stereo, Depth::Bits16, true), Depth::Bits16),
            (flac(Mapping::Stereo, Depth::Bits24, false), Depth::Bits24),
        ] {
            let mut reader = AudioReader::new(&bytes[..]).unwrap();
            let mut got = Vec::new();
            while reader.read(&mut got).unwrap() > 0 {}
            assert!(got.iter().map(|s| depth.quantise(*s)).eq(pcm.iter().map(|s| depth.quantise(*s))));
        }
    }

    #[test]
    fn a_cut_file_plays_to_the_last_whole_frame_before_the_cut() {
        let mut random = fastrand::Rng::with_seed(3);
        for bytes in files(false) {
            let whole = inspect(&bytes);
            let (frame, lead) = match whole.info.format {
                AudioFormat::Wav => (1, 0),
                AudioFormat::Flac => (4096, 0),
                AudioFormat::Mp3 => (1152, 576 + 529),
            };
            let ends = frame_ends(&bytes, &whole.info);
            for _ in 0..170 {
                let cut = random.usize(ends[0]..bytes.len());
                let frames = ends[1..].iter().filter(|end| **end <= cut).count() as u64;
                let expected = (frames * frame).saturating_sub(lead).min(48_000.max(whole.samples));
                assert_eq!(drain(&bytes[..cut]), Some(expected), "{:?} cut at {cut}", whole.info.format);
            }
        }
    }

    /// Where the header and then each frame end.
    fn frame_ends(bytes: &[u8], info: &AudioInfo) -> Vec<usize> {
        match info.format {
            AudioFormat::Wav => {
                let data = bytes.windows(4).position(|four| four == b"data").unwrap() + 8;
                let step = usize::from(info.channels) * usize::from(info.bits.unwrap()) / 8;
                (data..=bytes.len()).step_by(step).collect()
            }
            AudioFormat::Flac => {
                // Each frame's header holds its number.
                let mut ends = Vec::new();
                let mut number = 0;
                for at in 42..bytes.len() - 5 {
                    if bytes[at..at + 2] == [0xff, 0xf8] && bytes[at + 4] == number && bytes[at + 2] & 15 == 10 {
                        ends.push(at);
                        number += 1;
                    }
                }
                assert_eq!(ends.len(), 12);
                ends.push(bytes.len());
                ends
            }
            AudioFormat::Mp3 => {
                let mut at = super::super::mp3_id3::length(bytes).unwrap();
                let mut ends = Vec::new();
                while let Some(frame) = super::super::mp3_frame::Frame::parse(&bytes[at..]) {
                    at += frame.bytes;
                    ends.push(at);
                }
                assert_eq!(at, bytes.len());
                ends
            }
        }
    }

    #[test]
    fn damage_is_told() {
        let mut bytes = flac(Mapping::Mono, Depth::Bits16, true);
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        let found = inspect(&bytes);
        assert!(found.problems.iter().any(|p| matches!(p, AudioProblem::BadFrame { .. })), "{found:?}");

        let mut bytes = flac(Mapping::Mono, Depth::Bits16, true);
        bytes[8 + 18] ^= 1;
        assert_eq!(inspect(&bytes).problems, [AudioProblem::BadChecksum { what: "the samples" }]);

        let bytes = wav(Mapping::Mono, Depth::Bits16, true);
        let found = inspect(&bytes[..bytes.len() - 1001]);
        assert_eq!(found.samples, 48_000 - 501);
        assert!(matches!(found.problems[0], AudioProblem::Mismatch { what: "bytes of samples", .. }), "{found:?}");
    }

    #[cfg(feature = "mp3")]
    #[test]
    fn damage_in_an_mp3_is_told() {
        let whole = mp3(Mapping::Mono, true);
        let at = whole.len() / 2;
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let found = inspect(&bytes);
        assert!(found.problems.contains(&AudioProblem::BadChecksum { what: "the sound" }), "{found:?}");
        assert_eq!(found.samples, 48_000);

        let bytes = [&whole[..at], &whole[at + 1000..]].concat();
        let found = inspect(&bytes);
        assert!(found.problems.iter().any(|p| matches!(p, AudioProblem::Mismatch { .. })), "{found:?}");

        let tagged = [&whole[..], b"TAG", &[b'x'; 125]].concat();
        assert!(inspect(&tagged).is_clean(), "{:?}", inspect(&tagged));
    }

    #[test]
    fn other_rates_are_read_but_refused_for_coding() {
        let mut bytes = wav(Mapping::Mono, Depth::Bits16, true);
        let at = bytes.windows(4).position(|four| four == b"fmt ").unwrap() + 12;
        bytes[at..at + 4].copy_from_slice(&8000u32.to_le_bytes());
        let reader = AudioReader::new(&bytes[..]).unwrap();
        assert!(matches!(reader.check_rate(), Err(ReadError::Rate { got: 8000, needed: 48_000 })));
        assert_eq!(reader.inspect().unwrap().seconds(), 6.0);
    }

    #[test]
    fn what_is_no_audio_is_refused() {
        for bytes in [&b""[..], b"RIFF", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS\0\0\0\0\0\0\0\0\0\0", &[0; 70_000]] {
            assert!(AudioReader::new(bytes).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn foreign_bytes_do_no_harm(
            start in 0usize..4,
            bytes in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let start = [&b""[..], b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x02\0", b"fLaC\0\0\0\x22", b"ID3\x04\0\0\0\0"][start];
            drain(&[start, &bytes].concat());
        }
    }

    #[test]
    fn damaged_files_do_no_harm() {
        let mut random = fastrand::Rng::with_seed(11);
        for whole in files(true) {
            // The beginning is where the sizes are.
            let whole = &whole[..whole.len().min(20_000)];
            for round in 0..400 {
                let mut bytes = whole.to_vec();
                let reach = if round % 2 == 0 { 400 } else { bytes.len() };
                for _ in 0..random.usize(1..8) {
                    let at = random.usize(..reach);
                    bytes[at] = [random.u8(..), 0, 0xff][random.usize(..3)];
                }
                drain(&bytes);
            }
        }
    }
}
