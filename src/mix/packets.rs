//! Opus packets on their way from what makes them to what writes them.

use std::collections::VecDeque;

use crate::encode::packet;

/// A queue of packets that keeps its memory.
#[derive(Debug, Default)]
pub(super) struct Packets {
    bytes: Vec<u8>,
    /// Where the first packet begins in `bytes`.
    at: usize,
    /// Bytes and samples of each.
    lengths: VecDeque<(usize, u32)>,
    written: u64,
    silence: Vec<u8>,
}

impl Packets {
    /// Goes on where a stream has `written` samples already, with silence up to `until`, as far as whole packets of 20 ms go.
    pub(super) fn going_on(written: u64, until: u64) -> Self {
        let mut packets = Self { written, ..Self::default() };
        while packets.written + 960 <= until {
            packets.push_silence(960);
        }
        packets
    }

    pub(super) fn push(&mut self, packet: &[u8], samples: u32) {
        if self.lengths.is_empty() {
            self.bytes.clear();
            self.at = 0;
        }
        self.bytes.extend_from_slice(packet);
        self.lengths.push_back((packet.len(), samples));
        self.written += u64::from(samples);
    }

    /// Appends a packet of digital silence, mono, of a duration that Opus frames have.
    pub(super) fn push_silence(&mut self, samples: u32) {
        let mut silence = std::mem::take(&mut self.silence);
        let written = packet::write_silence(samples, false, &mut silence);
        debug_assert!(written.is_ok(), "{samples} samples are no duration that exists");
        self.push(&silence, samples);
        self.silence = silence;
    }

    /// The first packet and its samples.
    pub(super) fn first(&self) -> Option<(&[u8], u32)> {
        self.lengths.front().map(|(length, samples)| (&self.bytes[self.at..self.at + length], *samples))
    }

    /// Drops the first packet.
    pub(super) fn drop_first(&mut self) {
        if let Some((length, _)) = self.lengths.pop_front() {
            self.at += length;
        }
    }

    /// Samples of all packets so far, those taken included.
    pub(super) fn written(&self) -> u64 {
        self.written
    }
}
