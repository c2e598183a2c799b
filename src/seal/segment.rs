//! What stands in plain before each segment.

use crate::encode::{Mapping, OggState, OpusHead, crc};
use crate::time::SampleCount;

/// What a segment begins with. The first byte is no text, so that nobody takes the file for one.
pub(super) const MAGIC: &[u8; 8] = b"\x89CRSEAL\n";

/// The version of this form; it changes when a reader of the old form would misread the new one.
const VERSION: u8 = 1;

/// How long a header is.
pub const HEADER_BYTES: usize = 60;

/// No segment is longer: the longest page there is, sealed to as many as possible, takes less.
pub const MAX_SEGMENT: usize = 96 * 1024;

const BEGINS: u8 = 1;
const ENDS: u8 = 2;

/// The plain header of a segment, 60 bytes. Numbers are little-endian.
///
/// | offset | bytes | what |
/// |---|---|---|
/// | 0 | 8 | `89 43 52 53 45 41 4C 0A` |
/// | 8 | 1 | version: 1 |
/// | 9 | 1 | 1: the stream begins in this segment; 2: it ends there |
/// | 10 | 1 | channels: 1 mono, 2 stereo, 3 two mono streams |
/// | 11 | 1 | 0 |
/// | 12 | 2 | pre-skip |
/// | 14 | 2 | 0 |
/// | 16 | 4 | serial number of the Ogg stream |
/// | 20 | 4 | sequence number of the first page |
/// | 24 | 4 | sequence number of the page after the last |
/// | 28 | 8 | granule position before the segment |
/// | 36 | 8 | granule position after it |
/// | 44 | 4 | bytes of the pages |
/// | 48 | 4 | bytes of the age file that follows |
/// | 52 | 4 | checksum of the age file, as in RFC 3533 §6 |
/// | 56 | 4 | checksum of the 56 bytes before it |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The stream begins here, with its header pages.
    pub begins: bool,
    /// The stream ends here. Where its last page does not say so, that page is meant all the same: a full disk has room
    /// for this mark.
    pub ends: bool,
    /// The stream's channels.
    pub mapping: Mapping,
    /// Samples at 48 kHz to drop at the stream's start.
    pub pre_skip: u16,
    /// Where the stream stands before the segment; `sequence` is that of its first page.
    pub before: OggState,
    /// Where it stands after it. It is the same stream.
    pub after: OggState,
    /// Bytes of the pages.
    pub plain_len: u32,
    /// Bytes of the age file.
    pub payload_len: u32,
    /// The age file's checksum.
    pub payload_crc: u32,
}

impl SegmentHeader {
    /// What of the stream's identification header is needed to end it.
    pub fn head(&self) -> OpusHead {
        OpusHead::new(self.mapping, self.pre_skip)
    }

    /// How much sound it holds.
    pub fn samples(&self) -> SampleCount {
        SampleCount(self.after.granule.saturating_sub(self.before.granule))
    }

    /// Writes it. Gives nothing for channels that are not written.
    pub(super) fn write(&self) -> Option<[u8; HEADER_BYTES]> {
        let mut out = [0; HEADER_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let mapping = match self.mapping {
            Mapping::Mono => 1,
            Mapping::Stereo => 2,
            Mapping::TwoMono => 3,
            Mapping::Other { .. } => return None,
        };
        put(MAGIC);
        let flags = if self.begins { BEGINS } else { 0 } | if self.ends { ENDS } else { 0 };
        put(&[VERSION, flags, mapping, 0]);
        put(&self.pre_skip.to_le_bytes());
        put(&[0; 2]);
        put(&self.before.serial.to_le_bytes());
        put(&self.before.sequence.to_le_bytes());
        put(&self.after.sequence.to_le_bytes());
        put(&self.before.granule.to_le_bytes());
        put(&self.after.granule.to_le_bytes());
        put(&self.plain_len.to_le_bytes());
        put(&self.payload_len.to_le_bytes());
        put(&self.payload_crc.to_le_bytes());
        let sum = crc(0, &out[..HEADER_BYTES - 4]);
        out[HEADER_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        Some(out)
    }

    /// Reads one; nothing for bytes that are none, or of a version that is not known.
    pub(super) fn read(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let is_one = bytes.starts_with(MAGIC) && u32_at(56) == crc(0, &bytes[..HEADER_BYTES - 4]);
        if !is_one || bytes[8] != VERSION {
            return None;
        }
        let mapping = match bytes[10] {
            1 => Mapping::Mono,
            2 => Mapping::Stereo,
            3 => Mapping::TwoMono,
            _ => return None,
        };
        let serial = u32_at(16);
        let header = Self {
            begins: bytes[9] & BEGINS != 0,
            ends: bytes[9] & ENDS != 0,
            mapping,
            pre_skip: u16::from_le_bytes([bytes[12], bytes[13]]),
            before: OggState { serial, sequence: u32_at(20), granule: u64_at(28) },
            after: OggState { serial, sequence: u32_at(24), granule: u64_at(36) },
            plain_len: u32_at(44),
            payload_len: u32_at(48),
            payload_crc: u32_at(52),
        };
        let fits = |length: u32| length as usize <= MAX_SEGMENT - HEADER_BYTES;
        (fits(header.payload_len) && fits(header.plain_len)).then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            begins: true,
            ends: false,
            mapping: Mapping::TwoMono,
            pre_skip: 312,
            before: OggState { serial: 7, sequence: 0xffff_fff0, granule: 1 },
            after: OggState { serial: 7, sequence: 2, granule: u64::MAX - 1 },
            plain_len: 1000,
            payload_len: 1300,
            payload_crc: 0xdead_beef,
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written_and_no_flipped_bit_is_taken() {
        for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
            let header = SegmentHeader { mapping, ends: true, ..header() };
            let bytes = header.write().unwrap();
            assert_eq!(SegmentHeader::read(&bytes), Some(header));
            for bit in 0..HEADER_BYTES * 8 {
                let mut flipped = bytes;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(SegmentHeader::read(&flipped), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn lengths_that_no_segment_has_are_refused() {
        for (plain_len, payload_len) in [(u32::MAX, 0), (0, u32::MAX), (0, MAX_SEGMENT as u32)] {
            let bytes = SegmentHeader { plain_len, payload_len, ..header() }.write().unwrap();
            assert_eq!(SegmentHeader::read(&bytes), None);
        }
    }
}
