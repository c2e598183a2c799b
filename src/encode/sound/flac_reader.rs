//! FLAC to PCM, by claxon.

use std::io::{self, Read};

use md5::{Digest, Md5};

use super::audio_reader::{AudioFormat, AudioInfo, AudioProblem, Problems, ReadError, Source};
use crate::encode::OpusTags;

pub(super) struct FlacReader<R: Read> {
    claxon: claxon::FlacReader<Source<R>>,
    info: AudioInfo,
    /// Of all samples, where the header tells it.
    digest: Option<[u8; 16]>,
    md5: Md5,
    little_endian: Vec<u8>,
    buffer: Vec<i32>,
    samples: u64,
    problems: Problems,
    ended: bool,
}

impl<R: Read> FlacReader<R> {
    pub(super) fn new(source: Source<R>) -> Result<Self, ReadError> {
        let claxon = claxon::FlacReader::new(source).map_err(|error| match error {
            claxon::Error::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                ReadError::Malformed("it ends within its header")
            }
            claxon::Error::IoError(error) => ReadError::Io(error),
            claxon::Error::FormatError(reason) => ReadError::Malformed(reason),
            claxon::Error::Unsupported(reason) => ReadError::Unsupported(reason),
        })?;
        let header = claxon.streaminfo();
        let mut tags = OpusTags { vendor: claxon.vendor().unwrap_or_default().to_owned(), comments: Vec::new() };
        for (name, value) in claxon.tags() {
            // A name that no comment can have is no loss.
            let _ = tags.comment(name, value);
        }
        let mut problems = Problems::default();
        if header.samples.is_none() {
            problems.push(AudioProblem::Unfinished);
        }
        let info = AudioInfo {
            format: AudioFormat::Flac,
            channels: header.channels as u8,
            rate: header.sample_rate,
            bits: Some(header.bits_per_sample as u8),
            announced: header.samples,
            tags,
        };
        if info.rate == 0 || info.channels == 0 || !(4..=32).contains(&header.bits_per_sample) {
            return Err(ReadError::Malformed("the header makes no sense"));
        }
        Ok(Self {
            claxon,
            info,
            digest: Some(header.md5sum).filter(|digest| *digest != [0; 16]),
            md5: Md5::new(),
            little_endian: Vec::new(),
            buffer: Vec::new(),
            samples: 0,
            problems,
            ended: false,
        })
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
        let buffer = std::mem::take(&mut self.buffer);
        let block = match self.claxon.blocks().read_next_or_eof(buffer) {
            Ok(Some(block)) => block,
            Ok(None) => {
                self.end();
                return Ok(0);
            }
            Err(error) => {
                self.ended = true;
                let sample = self.samples;
                match error {
                    claxon::Error::IoError(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                        return Err(ReadError::Io(error));
                    }
                    claxon::Error::IoError(_) => {
                        self.problems.push(AudioProblem::BadFrame { sample, reason: "it is cut".into() });
                    }
                    claxon::Error::FormatError(reason) | claxon::Error::Unsupported(reason) => {
                        self.problems.push(AudioProblem::BadFrame { sample, reason: reason.into() });
                    }
                }
                self.count();
                return Ok(0);
            }
        };
        let count = block.duration() as usize;
        let channels = u32::from(self.info.channels);
        if block.channels() != channels {
            self.ended = true;
            let reason = "it has another number of channels".into();
            self.problems.push(AudioProblem::BadFrame { sample: self.samples, reason });
            return Ok(0);
        }
        let bits = u32::from(self.info.bits.unwrap_or(16));
        let scale = 0.5f64.powi(bits as i32 - 1);
        let bytes = bits.div_ceil(8) as usize;
        self.little_endian.clear();
        out.reserve(count * channels as usize);
        for at in 0..count {
            for channel in 0..channels {
                let sample = block.channel(channel)[at];
                self.little_endian.extend_from_slice(&sample.to_le_bytes()[..bytes]);
                out.push((f64::from(sample) * scale) as f32);
            }
        }
        if self.digest.is_some() {
            self.md5.update(&self.little_endian);
        }
        self.samples += count as u64;
        self.buffer = block.into_buffer();
        Ok(count)
    }

    fn end(&mut self) {
        self.ended = true;
        self.count();
        let found: [u8; 16] = std::mem::take(&mut self.md5).finalize().into();
        if self.digest.is_some_and(|told| told != found) {
            self.problems.push(AudioProblem::BadChecksum { what: "the samples" });
        }
    }

    fn count(&mut self) {
        if let Some(told) = self.info.announced.filter(|told| *told != self.samples) {
            self.problems.push(AudioProblem::Mismatch { what: "samples", told, found: self.samples });
        }
    }
}
