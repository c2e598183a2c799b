//! What can be told of a sealed file without a key.

use serde::Serialize;
use thiserror::Error;

use super::SegmentReader;
use crate::encode::{OggState, OpusHead};
use crate::time::SampleCount;

/// No more problems of one file than this are kept; the rest is counted.
const KEPT_PROBLEMS: usize = 100;

/// What is wrong with a sealed file.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SealProblem {
    /// No segment at all.
    #[error("there is no sealed segment in it")]
    NotSealed,
    /// The first segment is missing, with the stream's headers.
    #[error("it does not begin with the stream's first segment")]
    NoBeginning,
    /// Bytes between or before segments.
    #[error("{bytes} bytes that belong to no whole segment before offset {offset}")]
    Garbage {
        /// How many.
        bytes: u64,
        /// Where the next segment begins.
        offset: u64,
    },
    /// Bytes after the last whole segment.
    #[error("{bytes} bytes of an unfinished or damaged segment after offset {offset}")]
    Truncated {
        /// How many.
        bytes: u64,
        /// Where the last whole segment ends.
        offset: u64,
    },
    /// A segment does not go on where the one before it ended.
    #[error(
        "segment {segment} at offset {offset} does not follow the one before it: {pages} pages and {samples} samples are missing"
    )]
    Missing {
        /// Its number among those that are there, from 1.
        segment: u64,
        /// Where it begins.
        offset: u64,
        /// Pages that are missing before it.
        pages: u32,
        /// Samples that are missing before it.
        samples: u64,
    },
    /// Segments of another stream.
    #[error("a segment of another stream, {serial:#010x}, at offset {offset}")]
    OtherStream {
        /// Its serial number.
        serial: u32,
        /// Where it begins.
        offset: u64,
    },
    /// The mark of the end is missing.
    #[error("it has no end: the recorder is still writing, or was stopped")]
    NoEnd,
    /// Segments after the end.
    #[error("a segment after the end, at offset {offset}")]
    AfterEnd {
        /// Where it begins.
        offset: u64,
    },
}

/// What a sealed file holds, as far as it is told in plain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SealInspection {
    /// Bytes looked at.
    pub bytes: u64,
    /// Whole segments.
    pub segments: u64,
    /// Bytes that the opened stream has.
    pub plain_bytes: u64,
    /// The stream's channels and pre-skip.
    pub head: Option<OpusHead>,
    /// What a player plays: the last granule position without the pre-skip.
    pub duration: SampleCount,
    /// Whether the stream's header pages are there.
    pub begun: bool,
    /// Whether the stream's end is there.
    pub ended: bool,
    /// Where the last whole segment ends, in bytes.
    pub whole: u64,
    /// Where the stream stands after it.
    pub state: Option<OggState>,
    /// What is wrong with it, in order; at most 100.
    pub problems: Vec<SealProblem>,
    /// Problems beyond those.
    pub more_problems: u64,
}

impl SealInspection {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Looks at one sealed file, in pieces of any size.
#[derive(Debug, Default)]
pub struct SealInspector {
    reader: SegmentReader,
    found: SealInspection,
}

impl SealInspector {
    /// An inspector at the start of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.found.bytes += bytes.len() as u64;
        self.reader.push(bytes);
        self.look();
    }

    /// The verdict.
    pub fn finish(mut self) -> SealInspection {
        self.reader.end();
        self.look();
        let left = self.found.bytes - self.found.whole;
        if self.found.segments == 0 {
            self.problem(SealProblem::NotSealed);
            return self.found;
        }
        if left > 0 {
            self.problem(SealProblem::Truncated { bytes: left, offset: self.found.whole });
        }
        if !self.found.ended {
            self.problem(SealProblem::NoEnd);
        }
        self.found
    }

    fn look(&mut self) {
        let mut reader = std::mem::take(&mut self.reader);
        while let Some(segment) = reader.next_segment() {
            let (offset, header) = (segment.offset, segment.header);
            let unexplained = offset - self.found.whole;
            if unexplained > 0 {
                self.problem(SealProblem::Garbage { bytes: unexplained, offset });
            }
            self.found.whole = segment.end;
            if self.found.state.is_some_and(|state| state.serial != header.before.serial) {
                self.problem(SealProblem::OtherStream { serial: header.before.serial, offset });
                continue;
            }
            if self.found.ended {
                self.problem(SealProblem::AfterEnd { offset });
            }
            self.found.segments += 1;
            match self.found.state {
                None if !header.begins => self.problem(SealProblem::NoBeginning),
                None => self.found.begun = true,
                Some(state) if state != header.before => {
                    let pages = header.before.sequence.wrapping_sub(state.sequence);
                    let samples = header.before.granule.saturating_sub(state.granule);
                    self.problem(SealProblem::Missing { segment: self.found.segments, offset, pages, samples });
                }
                Some(_) => {}
            }
            self.found.head.get_or_insert(header.head());
            self.found.plain_bytes += u64::from(header.plain_len);
            self.found.ended |= header.ends;
            self.found.state = Some(header.after);
            self.found.duration = SampleCount(header.after.granule.saturating_sub(u64::from(header.pre_skip)));
        }
        self.reader = reader;
    }

    fn problem(&mut self, problem: SealProblem) {
        if self.found.problems.len() < KEPT_PROBLEMS {
            self.found.problems.push(problem);
        } else {
            self.found.more_problems += 1;
        }
    }
}
