//! Ogg pages (RFC 3533 §6) and the two Opus header packets (RFC 7845 §5).

use serde::{Deserialize, Serialize};

use super::EncodeError;
use super::ogg_writer::OggState;

pub(super) const CAPTURE: &[u8; 4] = b"OggS";
pub(super) const HEADER: usize = 27;
pub(super) const CONTINUED: u8 = 1;
pub(super) const FIRST: u8 = 2;
pub(super) const LAST: u8 = 4;
/// The granule position of a page on which no packet ends.
pub(super) const NO_GRANULE: u64 = u64::MAX;
const HEAD_MAGIC: &[u8; 8] = b"OpusHead";
const TAGS_MAGIC: &[u8; 8] = b"OpusTags";

const CRC_TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut value = (n as u32) << 24;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 0x8000_0000 != 0 { value << 1 ^ 0x04c1_1db7 } else { value << 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

/// Continues the checksum of RFC 3533 §6 (generator 0x04c11db7, no reflection, no final inversion).
pub(crate) fn crc(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| crc << 8 ^ CRC_TABLE[(crc >> 24) as usize ^ usize::from(*byte)])
}

/// The fields of a page's header that are not its contents.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageHeader {
    pub flags: u8,
    pub granule: u64,
    pub serial: u32,
    pub sequence: u32,
}

/// Appends a page. `lacing` holds at most 255 values that sum to the length of `body`.
pub(super) fn write_page(header: PageHeader, lacing: &[u8], body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(CAPTURE);
    out.extend([0, header.flags]);
    out.extend(header.granule.to_le_bytes());
    out.extend(header.serial.to_le_bytes());
    out.extend(header.sequence.to_le_bytes());
    out.extend([0; 4]);
    out.push(lacing.len() as u8);
    out.extend_from_slice(lacing);
    out.extend_from_slice(body);
    let sum = crc(0, &out[start..]);
    out[start + 22..start + 26].copy_from_slice(&sum.to_le_bytes());
}

/// Sets the end flag on the last of the whole pages in `bytes`, in place: a stream that cannot grow any more ends there.
/// Gives whether there was one.
pub fn end_at_last_page(bytes: &mut [u8]) -> bool {
    let mut at = 0;
    let mut last = None;
    while let Some(length) = page_len(&bytes[at..]) {
        last = Some((at, length));
        at += length;
    }
    let Some((start, length)) = last else { return false };
    let page = &mut bytes[start..start + length];
    page[5] |= LAST;
    page[22..26].fill(0);
    let sum = crc(0, page);
    page[22..26].copy_from_slice(&sum.to_le_bytes());
    true
}

/// Where a stream stands after the last of the whole pages in `bytes`, which begin with one; none where that is not so, or
/// no packet ends on that page. Checksums are not looked at: this is for pages that this process wrote.
pub fn state_after(bytes: &[u8]) -> Option<OggState> {
    let mut at = 0;
    let mut last = None;
    while let Some(length) = page_len(&bytes[at..]) {
        last = Some(&bytes[at..at + length]);
        at += length;
    }
    let (granule, rest) = last?.get(6..)?.split_first_chunk::<8>()?;
    let (serial, rest) = rest.split_first_chunk::<4>()?;
    let (sequence, _) = rest.split_first_chunk::<4>()?;
    let granule = u64::from_le_bytes(*granule);
    let sequence = u32::from_le_bytes(*sequence).wrapping_add(1);
    (granule != NO_GRANULE).then_some(OggState { serial: u32::from_le_bytes(*serial), sequence, granule })
}

/// The identification header with which the first page in `bytes` begins a stream.
pub fn head_of(bytes: &[u8]) -> Option<OpusHead> {
    let page = bytes.get(..page_len(bytes)?)?;
    OpusHead::parse(page.get(HEADER + usize::from(page[HEADER - 1])..)?)
}

/// The length of the page at the start of `bytes`, if there is a whole one.
fn page_len(bytes: &[u8]) -> Option<usize> {
    let segments = usize::from(*bytes.strip_prefix(CAPTURE).and(bytes.get(HEADER - 1))?);
    let lacing = bytes.get(HEADER..HEADER + segments)?;
    let length = HEADER + segments + lacing.iter().map(|value| usize::from(*value)).sum::<usize>();
    (bytes.len() >= length).then_some(length)
}

/// Which decoded channel comes from which Opus stream (RFC 7845 §5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mapping {
    /// Family 0 with one channel.
    Mono,
    /// Family 0 with two coupled channels.
    Stereo,
    /// Family 1, two channels from two independent mono streams: the first is left, the second right.
    TwoMono,
    /// Anything else; read, never written.
    Other {
        /// The mapping family.
        family: u8,
        /// Output channels.
        channels: u8,
        /// Opus streams in each packet.
        streams: u8,
    },
}

impl Mapping {
    /// Output channels.
    pub fn channels(self) -> u8 {
        match self {
            Self::Mono => 1,
            Self::Stereo | Self::TwoMono => 2,
            Self::Other { channels, .. } => channels,
        }
    }

    /// The mapping family.
    pub fn family(self) -> u8 {
        match self {
            Self::Mono | Self::Stereo => 0,
            Self::TwoMono => 1,
            Self::Other { family, .. } => family,
        }
    }
}

/// The identification header (RFC 7845 §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpusHead {
    /// Channels, and the streams they come from.
    pub mapping: Mapping,
    /// Samples at 48 kHz to drop at the start.
    pub pre_skip: u16,
    /// Sample rate of what was encoded, for information.
    pub input_rate: u32,
    /// Gain to apply when playing, in 1/256 dB.
    pub output_gain: i16,
}

impl OpusHead {
    /// The header of a 48 kHz recording without gain.
    pub fn new(mapping: Mapping, pre_skip: u16) -> Self {
        Self { mapping, pre_skip, input_rate: crate::time::SAMPLE_RATE, output_gain: 0 }
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if let Mapping::Other { .. } = self.mapping {
            return Err(EncodeError::Config {
                setting: "channel mapping",
                value: format!("family {}", self.mapping.family()),
                allowed: "mono, stereo, or two uncoupled mono streams",
            });
        }
        out.extend_from_slice(HEAD_MAGIC);
        out.extend([1, self.mapping.channels()]);
        out.extend(self.pre_skip.to_le_bytes());
        out.extend(self.input_rate.to_le_bytes());
        out.extend(self.output_gain.to_le_bytes());
        out.push(self.mapping.family());
        if self.mapping == Mapping::TwoMono {
            out.extend([2, 0, 0, 1]);
        }
        Ok(())
    }

    /// Reads a header packet, or `None` where it is none that RFC 7845 §5.1 allows.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let rest = packet.strip_prefix(HEAD_MAGIC)?;
        let (fixed, table) = rest.split_first_chunk::<11>()?;
        let (version, channels, family) = (fixed[0], fixed[1], fixed[10]);
        if version & 0xf0 != 0 || channels == 0 {
            return None;
        }
        let mapping = match (family, channels) {
            (0, 1) => Mapping::Mono,
            (0, 2) => Mapping::Stereo,
            (0, _) => return None,
            (family, channels) => {
                let (&[streams, coupled], map) = table.split_first_chunk::<2>()?;
                let map = map.get(..usize::from(channels))?;
                let decoded = u16::from(streams) + u16::from(coupled);
                if streams == 0 || coupled > streams || decoded > 255 {
                    return None;
                }
                if map.iter().any(|index| *index != 255 && u16::from(*index) >= decoded) {
                    return None;
                }
                match (family, streams, coupled, map) {
                    (1, 2, 0, [0, 1]) => Mapping::TwoMono,
                    _ => Mapping::Other { family, channels, streams },
                }
            }
        };
        Some(Self {
            mapping,
            pre_skip: u16::from_le_bytes([fixed[2], fixed[3]]),
            input_rate: u32::from_le_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            output_gain: i16::from_le_bytes([fixed[8], fixed[9]]),
        })
    }
}

/// The comment header (RFC 7845 §5.2): who wrote the file, and `NAME=value` comments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpusTags {
    /// What wrote the stream.
    pub vendor: String,
    /// Names and values in order; a name is printable ASCII without `=`.
    pub comments: Vec<(String, String)>,
}

impl OpusTags {
    /// Tags with this program and libopus as the vendor.
    pub fn new() -> Self {
        let vendor = format!("callreel {}, {}", env!("CARGO_PKG_VERSION"), opus::version());
        Self { vendor, comments: Vec::new() }
    }

    /// Adds a comment.
    ///
    /// # Errors
    /// [`EncodeError::Config`] where `name` is not printable ASCII without `=`.
    pub fn comment(&mut self, name: &str, value: &str) -> Result<&mut Self, EncodeError> {
        if name.is_empty() || !name.bytes().all(|byte| (0x20..=0x7d).contains(&byte) && byte != b'=') {
            return Err(EncodeError::Config {
                setting: "comment name",
                value: format!("{name:?}"),
                allowed: "printable ASCII without '='",
            });
        }
        self.comments.push((name.to_owned(), value.to_owned()));
        Ok(self)
    }

    /// The value of the first comment of that name, whatever its case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.comments.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(TAGS_MAGIC);
        push_string(&[&self.vendor], out);
        out.extend((self.comments.len() as u32).to_le_bytes());
        for (name, value) in &self.comments {
            push_string(&[name, "=", value], out);
        }
    }

    /// Reads a comment packet, or `None` where it is malformed. Comments without `=` are left out.
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        let mut rest = packet.strip_prefix(TAGS_MAGIC)?;
        let vendor = take_string(&mut rest)?;
        let count = take_u32(&mut rest)?;
        let mut comments = Vec::new();
        for _ in 0..count {
            if let Some((name, value)) = take_string(&mut rest)?.split_once('=') {
                comments.push((name.to_owned(), value.to_owned()));
            }
        }
        Some(Self { vendor, comments })
    }
}

fn push_string(parts: &[&str], out: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend((length as u32).to_le_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (bytes, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*bytes))
}

fn take_string(rest: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(take_u32(rest)?).ok()?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written() {
        for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
            let head = OpusHead { output_gain: -256, ..OpusHead::new(mapping, 312) };
            let mut packet = Vec::new();
            head.write(&mut packet).unwrap();
            assert_eq!(OpusHead::parse(&packet), Some(head));
            for cut in 0..packet.len() {
                assert_eq!(OpusHead::parse(&packet[..cut]), None);
            }
        }
    }

    #[test]
    fn foreign_mappings_are_read_but_never_written() {
        let packet = [&b"OpusHead\x01\x04\x38\x01\x80\xbb\0\0\0\0\xff\x04\0"[..], &[0, 1, 2, 3]].concat();
        let head = OpusHead::parse(&packet).unwrap();
        assert_eq!(head.mapping, Mapping::Other { family: 255, channels: 4, streams: 4 });
        assert!(head.write(&mut Vec::new()).is_err());
    }

    #[test]
    fn tags_are_read_as_they_were_written() {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", "a=b").unwrap().comment("ROOM", "ünïcode").unwrap();
        let mut packet = Vec::new();
        tags.write(&mut packet);
        assert_eq!(OpusTags::parse(&packet), Some(tags.clone()));
        assert_eq!(tags.get("title"), Some("a=b"));
        assert!(tags.comment("A=B", "").is_err());
        for cut in 0..packet.len() {
            assert_eq!(OpusTags::parse(&packet[..cut]), None);
        }
    }

    #[test]
    fn a_comment_count_without_comments_costs_nothing() {
        assert_eq!(OpusTags::parse(b"OpusTags\0\0\0\0\xff\xff\xff\xff"), None);
    }
}
