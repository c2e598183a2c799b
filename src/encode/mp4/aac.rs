//! AAC in MP4: what its sample entry says (ISO/IEC 14496-14 §5.6, 14496-1 §7.2.6, 14496-3 §1.6.2.1).

use std::fmt;

use serde::Serialize;

use super::boxes::{Fields, find};
#[cfg(any(feature = "aac", test))]
use super::boxes::{put_full, put_u16, put_u32};

/// MPEG-4 sound, and the profiles of MPEG-2's AAC.
const AAC: [u8; 4] = [0x40, 0x66, 0x67, 0x68];

const RATES: [u32; 13] =
    [96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350];

/// Bytes that a decoder keeps for a channel, which no packet exceeds.
#[cfg(any(feature = "aac", test))]
const LARGEST: u32 = 768;

/// Tags of the descriptors.
const ES: u8 = 3;
const DECODER_CONFIG: u8 = 4;
const DECODER_SPECIFIC: u8 = 5;
#[cfg(any(feature = "aac", test))]
const SL_CONFIG: u8 = 6;

/// How a track of AAC is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AacHead {
    /// Its object type (ISO/IEC 14496-3 table 1.17): 2 is AAC-LC.
    pub object_type: u8,
    /// Samples a second.
    pub rate: u32,
    /// Channels.
    pub channels: u8,
}

impl fmt::Display for AacHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.object_type {
            2 => write!(f, "AAC-LC at {} Hz", self.rate),
            5 => write!(f, "HE-AAC at {} Hz", self.rate),
            29 => write!(f, "HE-AAC v2 at {} Hz", self.rate),
            other => write!(f, "AAC (object type {other}) at {} Hz", self.rate),
        }
    }
}

impl AacHead {
    /// What callreel writes: AAC-LC at 48 kHz.
    #[cfg(any(feature = "aac", test))]
    pub(super) fn low_complexity(channels: u8) -> Self {
        Self { object_type: 2, rate: crate::time::SAMPLE_RATE, channels }
    }

    /// The `AudioSpecificConfig`.
    #[cfg(any(feature = "aac", test))]
    pub(super) fn config(&self) -> [u8; 2] {
        let rate = RATES.iter().position(|rate| *rate == self.rate).unwrap_or(3) as u16;
        (u16::from(self.object_type) << 11 | rate << 7 | u16::from(self.channels) << 3).to_be_bytes()
    }

    /// Appends the `esds` box of a stream of `bitrate`.
    #[cfg(any(feature = "aac", test))]
    pub(super) fn put_esds(&self, bitrate: u32, out: &mut Vec<u8>) {
        const OF_SOUND: u8 = 5 << 2 | 1;
        const OF_MP4: u8 = 2;
        put_full(b"esds", 0, 0, out, |out| {
            put_descriptor(ES, out, |out| {
                put_u16(0, out);
                out.push(0);
                put_descriptor(DECODER_CONFIG, out, |out| {
                    out.extend([AAC[0], OF_SOUND]);
                    out.extend_from_slice(&(LARGEST * u32::from(self.channels)).to_be_bytes()[1..]);
                    // At most, and on average.
                    put_u32(bitrate, out);
                    put_u32(bitrate, out);
                    put_descriptor(DECODER_SPECIFIC, out, |out| out.extend(self.config()));
                });
                put_descriptor(SL_CONFIG, out, |out| out.push(OF_MP4));
            });
        });
    }

    /// Reads the body of an `mp4a` sample entry; none where it is not AAC, or malformed.
    pub(super) fn read(entry: &[u8]) -> Option<Self> {
        let stream = descriptor(find(entry.get(28..)?, &[b"esds"])?.get(4..)?, ES)?;
        let mut fields = Fields(stream);
        fields.u16()?;
        let [flags] = fields.array()?;
        // The stream it depends on, an address, the stream it is clocked by.
        if flags & 0x80 != 0 {
            fields.skip(2)?;
        }
        if flags & 0x40 != 0 {
            let [length] = fields.array()?;
            fields.skip(usize::from(length))?;
        }
        if flags & 0x20 != 0 {
            fields.skip(2)?;
        }
        let config = descriptor(fields.0, DECODER_CONFIG)?;
        if !AAC.contains(config.first()?) {
            return None;
        }
        let of_entry = Fields(entry.get(16..)?).u16()?;
        let mut head = Self::parse(descriptor(config.get(13..)?, DECODER_SPECIFIC)?)?;
        if head.channels == 0 {
            // The stream itself tells.
            head.channels = u8::try_from(of_entry).ok()?;
        }
        Some(head)
    }

    /// Reads an `AudioSpecificConfig`.
    fn parse(config: &[u8]) -> Option<Self> {
        /// Explicit signalling of spectral band replication, without and with parametric stereo.
        const REPLICATED: [u8; 2] = [5, 29];
        let mut bits = Bits { bytes: config, at: 0 };
        let object_type = bits.object_type()?;
        let mut rate = bits.rate()?;
        let channels = match bits.take(4)? as u8 {
            7 => 8,
            channels => channels,
        };
        if REPLICATED.contains(&object_type) {
            rate = bits.rate()?;
        }
        Some(Self { object_type, rate, channels })
    }
}

/// Appends a descriptor of less than 128 bytes.
#[cfg(any(feature = "aac", test))]
fn put_descriptor(tag: u8, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    out.extend([tag, 0]);
    let start = out.len();
    fill(out);
    out[start - 1] = (out.len() - start) as u8;
}

/// The body of the first descriptor with `tag`.
fn descriptor(mut bytes: &[u8], tag: u8) -> Option<&[u8]> {
    loop {
        let (&[found], mut rest) = bytes.split_first_chunk()?;
        let mut length = 0;
        // Seven bits a byte, four bytes at most.
        for place in 0.. {
            let (&[byte], after) = rest.split_first_chunk()?;
            rest = after;
            length = length << 7 | usize::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                break;
            }
            if place == 3 {
                return None;
            }
        }
        let (body, after) = rest.split_at_checked(length)?;
        if found == tag {
            return Some(body);
        }
        bytes = after;
    }
}

/// Bits, from the front.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: usize) -> Option<u32> {
        let mut value = 0;
        for at in self.at..self.at + count {
            value = value << 1 | u32::from(self.bytes.get(at / 8)? >> (7 - at % 8) & 1);
        }
        self.at += count;
        Some(value)
    }

    fn object_type(&mut self) -> Option<u8> {
        match self.take(5)? as u8 {
            31 => self.take(6).map(|more| 32 + more as u8),
            object_type => Some(object_type),
        }
    }

    fn rate(&mut self) -> Option<u32> {
        match self.take(4)? as usize {
            15 => self.take(24),
            index => RATES.get(index).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::coding::Coding;
    use super::*;

    #[test]
    fn the_head_is_read_as_it_was_written() {
        for (channels, config) in [(1, [0x11, 0x88]), (2, [0x11, 0x90])] {
            let head = AacHead::low_complexity(channels);
            assert_eq!(head.config(), config);
            let entry = Coding::aac(&head, 64_000, 2048).entry;
            assert_eq!(AacHead::read(&entry[8..]), Some(head));
            for cut in 8..entry.len() {
                assert_eq!(AacHead::read(&entry[8..cut]), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn what_others_write_is_read() {
        let read = |config: &[u8]| AacHead::parse(config).map(|head| (head.object_type, head.rate, head.channels));
        // 44.1 kHz with an extension that is not needed; replicated from 24 to 48 kHz; a rate of its own; 7.1 channels.
        assert_eq!(read(&[0x12, 0x10, 0x56, 0xe5, 0x00]), Some((2, 44_100, 2)));
        assert_eq!(read(&[0x2b, 0x11, 0x88, 0x00]), Some((5, 48_000, 2)));
        assert_eq!(read(&[0x17, 0x80, 0x5d, 0xc0, 0x08]), Some((2, 48_000, 1)));
        assert_eq!(read(&[0x11, 0xb8]), Some((2, 48_000, 8)));
        assert_eq!(read(&[0x16, 0x80]), None, "no such rate");
        // ffmpeg writes lengths of four bytes.
        let long = [3, 0x80, 0x80, 0x80, 2, 7, 7];
        assert_eq!(descriptor(&long, 3), Some(&[7, 7][..]));
        assert_eq!(descriptor(&[3, 0x80, 0x80, 0x80, 0x80, 2, 7, 7], 3), None);
        assert_eq!(descriptor(&[9, 1, 0, 3, 1, 5], 3), Some(&[5][..]));
    }
}
