//! Finds whole segments. No key is needed for that.

use super::segment::{HEADER_BYTES, MAGIC, SegmentHeader};
use crate::encode::crc;

/// One segment whose checksums are right.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Where it begins, in bytes since the start of the file.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// What it says in plain.
    pub header: SegmentHeader,
    /// The age file in it.
    pub payload: &'a [u8],
}

/// Finds segments in a byte stream that comes in pieces of any size, and passes over everything else.
#[derive(Debug, Default)]
pub struct SegmentReader {
    buffer: Vec<u8>,
    at: usize,
    base: u64,
    passed_over: u64,
    is_all: bool,
}

impl SegmentReader {
    /// A reader at the start of a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Nothing more comes: what is not whole by now is passed over too.
    pub fn end(&mut self) {
        self.is_all = true;
    }

    /// The next segment, or `None` where more bytes are needed. What looks like a segment and is damaged is passed over from
    /// its second byte on, so that no segment behind it is missed.
    pub fn next_segment(&mut self) -> Option<Segment<'_>> {
        loop {
            let rest = &self.buffer[self.at..];
            let Some(skip) = rest.windows(MAGIC.len()).position(|bytes| bytes == MAGIC) else {
                let keep = if self.is_all { 0 } else { rest.len().min(MAGIC.len() - 1) };
                self.pass_over(rest.len() - keep);
                return None;
            };
            self.pass_over(skip);
            let rest = &self.buffer[self.at..];
            let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
                if self.is_all {
                    self.pass_over(rest.len());
                }
                return None;
            };
            let Some(header) = SegmentHeader::read(header) else {
                self.pass_over(1);
                continue;
            };
            let length = HEADER_BYTES + header.payload_len as usize;
            let Some(payload) = rest.get(HEADER_BYTES..length) else {
                if self.is_all {
                    self.pass_over(1);
                    continue;
                }
                return None;
            };
            if crc(0, payload) != header.payload_crc {
                self.pass_over(1);
                continue;
            }
            let start = self.at;
            self.at += length;
            let offset = self.base + start as u64;
            let payload = &self.buffer[start + HEADER_BYTES..start + length];
            return Some(Segment { offset, end: offset + length as u64, header, payload });
        }
    }

    /// Bytes after the last segment that are not (yet) one.
    pub fn pending(&self) -> u64 {
        (self.buffer.len() - self.at) as u64
    }

    /// Bytes so far that belong to no segment.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    fn pass_over(&mut self, bytes: usize) {
        self.at += bytes;
        self.passed_over += bytes as u64;
    }
}
