//! The end of a file that the disk does not have yet.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// The bytes of a file from some offset to its end, in the pieces in which they came.
#[derive(Debug, Default)]
pub(super) struct Tail {
    start: u64,
    pieces: VecDeque<Bytes>,
    length: u64,
}

impl Tail {
    /// The end of a file whose first `offset` bytes the disk has.
    pub fn from_offset(offset: u64) -> Self {
        Self { start: offset, ..Self::default() }
    }

    /// Where it begins.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Where it ends: the file's length.
    pub fn end(&self) -> u64 {
        self.start + self.length
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Adds to the file.
    pub fn push(&mut self, piece: Bytes) {
        self.length += piece.len() as u64;
        self.pieces.push_back(piece);
    }

    /// Forgets the pieces that end at or before `offset`, and gives how many bytes that were.
    pub fn forget_until(&mut self, offset: u64) -> usize {
        let before = self.length;
        while let Some(piece) = self.pieces.pop_front_if(|piece| self.start + piece.len() as u64 <= offset) {
            self.start += piece.len() as u64;
            self.length -= piece.len() as u64;
        }
        (before - self.length) as usize
    }

    /// The pieces from `offset` on, at which one begins.
    pub fn pieces_from(&self, offset: u64) -> Vec<Bytes> {
        let mut at = self.start;
        let mut found = Vec::new();
        for piece in &self.pieces {
            if at >= offset {
                found.push(piece.clone());
            }
            at += piece.len() as u64;
        }
        found
    }

    /// Appends what it has of `range` to `out`.
    pub fn copy(&self, range: &Range<u64>, out: &mut BytesMut) {
        let mut at = self.start;
        for piece in &self.pieces {
            let within = |offset: u64| (offset.saturating_sub(at) as usize).min(piece.len());
            out.extend_from_slice(&piece[within(range.start)..within(range.end).max(within(range.start))]);
            at += piece.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_can_be_had_until_it_is_forgotten() {
        let mut tail = Tail::default();
        for piece in ["0123", "45", "6789"] {
            tail.push(Bytes::from_static(piece.as_bytes()));
        }
        assert_eq!(tail.forget_until(5), 4);
        assert_eq!((tail.start(), tail.end(), tail.len()), (4, 10, 6));
        for from in 4..=10u64 {
            for to in from..=10 {
                let mut out = BytesMut::new();
                tail.copy(&(from..to), &mut out);
                assert_eq!(out, "0123456789"[from as usize..to as usize]);
            }
        }
        assert_eq!(tail.pieces_from(6), [Bytes::from_static(b"6789")]);
        assert_eq!(tail.forget_until(10), 6);
        assert_eq!((tail.start(), tail.end()), (10, 10));
    }
}
