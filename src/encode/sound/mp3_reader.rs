//! MP3 to PCM, by nanomp3.

use std::io::Read;

use nanomp3_core::{Decoder, MAX_SAMPLES_PER_FRAME};

use super::audio_reader::{AudioFormat, AudioInfo, AudioProblem, Problems, ReadError, Source};
use super::mp3_frame::{DECODER_DELAY, Frame, HEADER, Told, crc16};
use super::mp3_id3;
use crate::encode::OpusTags;

/// The most bytes of a tag that are looked at.
const LONGEST_TAG: usize = 1 << 20;
/// The most bytes before the first frame.
const LONGEST_LEAD: u64 = 64 * 1024;
/// ID3v1 at the end.
const OLD_TAG: usize = 128;
/// The footer of an APE tag, or its header.
const APE_TAG: usize = 32;

pub(super) struct Mp3Reader<R> {
    source: Source<R>,
    decoder: Decoder,
    info: AudioInfo,
    like: Frame,
    told: Told,
    /// Samples a channel still to drop at the start.
    skip: u64,
    /// Samples a channel still to give.
    left: Option<u64>,
    /// The frames after the one that tells about them.
    frames: u64,
    bytes: u64,
    crc: u16,
    in_step: bool,
    /// Samples a channel that have left.
    given: u64,
    pcm: Box<[f32; MAX_SAMPLES_PER_FRAME]>,
    problems: Problems,
    ended: bool,
}

/// What stands at a place.
enum Found {
    Frame(Frame),
    /// A tag of so many bytes.
    Tag(u64),
    /// A frame of which only so many bytes are there.
    Cut(u64),
    Nothing,
    End,
}

impl<R: Read> Mp3Reader<R> {
    pub(super) fn new(mut source: Source<R>) -> Result<Self, ReadError> {
        let mut tags = OpusTags::default();
        while let Some(length) = mp3_id3::length(source.peek(mp3_id3::HEADER)?) {
            let kept = length.min(LONGEST_TAG);
            let there = source.peek(kept)?;
            mp3_id3::read(&there[..there.len().min(kept)], &mut tags);
            source.skip(length as u64)?;
        }
        let start = source.position();
        let like = loop {
            match look(&mut source, None)? {
                Found::Frame(frame) => break frame,
                Found::Tag(bytes) => {
                    source.skip(bytes)?;
                }
                Found::Nothing if source.position() - start < LONGEST_LEAD => source.consume(1),
                Found::Cut(_) | Found::Nothing | Found::End => return Err(ReadError::Unknown),
            }
        };
        let mut problems = Problems::default();
        let offset = source.position();
        if offset > start {
            problems.push(AudioProblem::Garbage { bytes: offset - start, offset });
        }
        let first = source.peek(like.bytes)?;
        let first = &first[..first.len().min(like.bytes)];
        let told = Told::parse(&like, first);
        let mut bytes = 0;
        if told.is_some() {
            bytes = first.len() as u64;
            let length = first.len();
            source.consume(length);
        }
        let told = told.unwrap_or_default();
        if told.lame.is_some_and(|lame| !lame.intact) {
            problems.push(AudioProblem::BadChecksum { what: "the first frame" });
        }
        if told.frames.is_none() {
            problems.push(AudioProblem::Unfinished);
        }
        let delay = told.lame.map_or(0, |lame| u64::from(lame.delay) + DECODER_DELAY);
        let announced = told.frames.map(|frames| {
            let coded = u64::from(frames) * u64::from(like.samples);
            coded.saturating_sub(told.lame.map_or(0, |lame| u64::from(lame.delay) + u64::from(lame.padding)))
        });
        let info = AudioInfo {
            format: AudioFormat::Mp3,
            channels: like.channels,
            rate: like.rate,
            bits: None,
            announced,
            tags,
        };
        Ok(Self {
            source,
            decoder: Decoder::new(),
            info,
            like,
            told,
            skip: delay,
            left: announced,
            frames: 0,
            bytes,
            crc: 0,
            in_step: true,
            given: 0,
            pcm: Box::new([0.0; MAX_SAMPLES_PER_FRAME]),
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
        while !self.ended {
            if let Some(frame) = self.next_frame()? {
                let count = self.decode(frame, out)?;
                if count > 0 {
                    return Ok(count);
                }
            } else {
                self.ended = true;
                self.compare();
            }
        }
        Ok(0)
    }

    /// The next frame, which is then whole at the place where the source is.
    fn next_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        let start = self.source.position();
        loop {
            let like = self.like;
            let found = look(&mut self.source, Some((&like, self.in_step)))?;
            let offset = self.source.position();
            if let Found::Nothing = found {
                self.in_step = false;
                self.source.consume(1);
                continue;
            }
            if offset > start {
                self.problems.push(AudioProblem::Garbage { bytes: offset - start, offset });
            }
            match found {
                Found::Frame(frame) => {
                    self.in_step = true;
                    return Ok(Some(frame));
                }
                Found::Tag(bytes) => {
                    self.source.skip(bytes)?;
                    return self.next_frame_after_tag();
                }
                Found::Cut(bytes) => self.problems.push(AudioProblem::Truncated { what: "frame", bytes }),
                Found::Nothing | Found::End => (),
            }
            return Ok(None);
        }
    }

    /// Tags end the sound; what follows them is not looked at but for its being there.
    fn next_frame_after_tag(&mut self) -> Result<Option<Frame>, ReadError> {
        while let Found::Tag(bytes) = look(&mut self.source, Some((&self.like, true)))? {
            if self.source.skip(bytes)? == 0 {
                break;
            }
        }
        let start = self.source.position();
        let bytes = self.source.skip(u64::MAX)?;
        if bytes > 0 {
            self.problems.push(AudioProblem::Garbage { bytes, offset: start + bytes });
        }
        Ok(None)
    }

    fn decode(&mut self, frame: Frame, out: &mut Vec<f32>) -> Result<usize, ReadError> {
        let bytes = self.source.peek(frame.bytes)?;
        let bytes = &bytes[..bytes.len().min(frame.bytes)];
        let channels = usize::from(frame.channels);
        let count = frame.samples as usize;
        self.crc = crc16(self.crc, bytes);
        let (_, decoded) = self.decoder.decode(bytes, &mut self.pcm[..]);
        let usable =
            decoded.is_ok_and(|info| info.samples_produced == count && usize::from(info.channels.num()) == channels);
        if !usable {
            self.pcm[..count * channels].fill(0.0);
            let reason = decoded.err().map_or_else(|| "it is not as its header says".into(), |error| error.to_string());
            self.problems.push(AudioProblem::BadFrame { sample: self.given, reason });
        }
        self.source.consume(frame.bytes);
        self.frames += 1;
        self.bytes += frame.bytes as u64;
        let dropped = self.skip.min(count as u64);
        self.skip -= dropped;
        let kept = self.left.map_or(u64::MAX, |left| left).min(count as u64 - dropped);
        if let Some(left) = &mut self.left {
            *left -= kept;
        }
        self.given += kept;
        let (start, kept) = (dropped as usize, kept as usize);
        out.extend_from_slice(&self.pcm[start * channels..(start + kept) * channels]);
        Ok(kept)
    }

    /// What the first frame told, beside what was there.
    fn compare(&mut self) {
        for (what, told, found) in [("frames", self.told.frames, self.frames), ("bytes", self.told.bytes, self.bytes)] {
            if let Some(told) = told.map(u64::from).filter(|told| *told != found) {
                self.problems.push(AudioProblem::Mismatch { what, told, found });
            }
        }
        let whole = self.told.frames.map(u64::from) == Some(self.frames);
        if let Some(lame) = self.told.lame
            && whole
            && lame.bytes > 0
            && lame.crc != self.crc
        {
            self.problems.push(AudioProblem::BadChecksum { what: "the sound" });
        }
    }
}

/// What stands where the source is. `before` is a frame of the stream, and whether this place is where the next one is
/// due; elsewhere, a frame is only believed where another follows it.
fn look<R: Read>(source: &mut Source<R>, before: Option<(&Frame, bool)>) -> Result<Found, ReadError> {
    let start = source.peek(APE_TAG)?;
    if start.is_empty() {
        return Ok(Found::End);
    }
    let is_due = before.is_none_or(|(_, in_step)| in_step);
    if start.starts_with(b"TAG") && is_due && source.peek(OLD_TAG + 1)?.len() == OLD_TAG {
        return Ok(Found::Tag(OLD_TAG as u64));
    }
    let start = source.peek(APE_TAG)?;
    if start.starts_with(b"APETAGEX") && start.len() >= APE_TAG && is_due {
        let size = u32::from_le_bytes([start[12], start[13], start[14], start[15]]);
        // In the header, the size is that of the items and the footer.
        return Ok(Found::Tag(u64::from(size) + APE_TAG as u64));
    }
    if start.len() < HEADER && before.is_some_and(|(_, in_step)| in_step) {
        return Ok(Found::Cut(start.len() as u64));
    }
    let frame = Frame::parse(start).filter(|frame| before.is_none_or(|(like, _)| frame.is_like(like)));
    let Some(frame) = frame else { return Ok(Found::Nothing) };
    let there = source.peek(frame.bytes + HEADER)?;
    if there.len() < frame.bytes {
        let is_known = before.is_some_and(|(_, in_step)| in_step);
        return Ok(if is_known { Found::Cut(there.len() as u64) } else { Found::Nothing });
    }
    let after = &there[frame.bytes..];
    let followed = match before {
        Some((_, true)) => true,
        _ => after.is_empty() || Frame::parse(after).is_some_and(|next| next.is_like(&frame)),
    };
    Ok(if followed { Found::Frame(frame) } else { Found::Nothing })
}
