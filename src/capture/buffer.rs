//! The packets of one track that wait for their turn, in the order they will be settled.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::call::Codec;
use crate::time::Seq;

/// What a buffered packet is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Audio,
    /// Put in by the server: takes a sequence number and no time.
    Blank,
    /// No decoder would take it.
    Broken,
}

/// A packet that waits.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Which of the track's streams it belongs to, counted from the track's first.
    pub epoch: u32,
    pub seq: Seq,
    pub kind: Kind,
    pub codec: Codec,
    pub payload: Bytes,
    /// The payload could not be decrypted.
    pub undecryptable: bool,
    /// RTP timestamp, in samples at 48 kHz.
    pub rtp: i64,
    /// How long it lasts, in samples.
    pub samples: i64,
    /// When it arrived, in samples since sample 0.
    pub arrival: f64,
    /// When it arrived, on the clock of [`Context::attended`](super::track::Context::attended).
    pub attended: i64,
}

/// A reorder buffer, sorted by epoch and sequence number.
///
/// Packets come nearly in order, so a sorted ring beats every tree, and it allocates nothing once it has grown.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Buffer {
    /// Puts a packet in its place. Gives it back where it is there already.
    pub fn insert(&mut self, entry: Entry) -> Result<(), Entry> {
        let key = |entry: &Entry| (entry.epoch, entry.seq);
        let bytes = entry.payload.len();
        match self.entries.back() {
            Some(last) if key(last) >= key(&entry) => match self.entries.binary_search_by_key(&key(&entry), key) {
                Ok(_) => return Err(entry),
                Err(index) => self.entries.insert(index, entry),
            },
            _ => self.entries.push_back(entry),
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The packet whose turn is next.
    pub fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Takes that packet out.
    pub fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.payload.len();
        Some(entry)
    }

    /// The packets of one epoch, in order.
    pub fn of(&self, epoch: u32) -> impl Iterator<Item = &Entry> {
        self.entries.iter().skip_while(move |entry| entry.epoch < epoch).take_while(move |entry| entry.epoch == epoch)
    }

    /// The packet after `seq` that is there already.
    pub fn after(&self, epoch: u32, seq: Seq) -> Option<&Entry> {
        let index = self.entries.partition_point(|entry| (entry.epoch, entry.seq) <= (epoch, seq));
        self.entries.get(index).filter(|entry| entry.epoch == epoch)
    }

    /// How many sequence numbers are missing between the packets of one epoch, from `next` on.
    pub fn holes(&self, epoch: u32, next: Seq) -> u64 {
        let mut expected = next.0;
        let mut missing = 0_u64;
        for entry in self.of(epoch) {
            missing = missing.saturating_add(entry.seq.0.saturating_sub(expected));
            expected = entry.seq.0.saturating_add(1);
        }
        missing
    }

    /// Packets waiting.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Payload bytes waiting.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(epoch: u32, seq: u64) -> Entry {
        Entry {
            epoch,
            seq: Seq(seq),
            kind: Kind::Audio,
            codec: Codec::Opus,
            payload: Bytes::from_static(b"abc"),
            undecryptable: false,
            rtp: 0,
            samples: 960,
            arrival: 0.0,
            attended: 0,
        }
    }

    #[test]
    fn packets_leave_in_order_however_they_came() {
        let mut buffer = Buffer::default();
        for (epoch, seq) in [(0, 5), (1, 1), (0, 4), (0, 9), (1, 0), (0, 6)] {
            buffer.insert(entry(epoch, seq)).unwrap();
        }
        assert!(buffer.insert(entry(0, 5)).is_err(), "a duplicate is refused");
        assert_eq!(buffer.bytes(), 18);
        assert_eq!(buffer.holes(0, Seq(3)), 3);
        assert_eq!(buffer.after(0, Seq(6)).unwrap().seq, Seq(9));
        assert!(buffer.after(0, Seq(9)).is_none());
        let left: Vec<_> = std::iter::from_fn(|| buffer.pop()).map(|entry| (entry.epoch, entry.seq.0)).collect();
        assert_eq!(left, [(0, 4), (0, 5), (0, 6), (0, 9), (1, 0), (1, 1)]);
        assert_eq!(buffer.bytes(), 0);
    }
}
