//! An Ogg Opus byte stream, whatever its state, to pages, packets and a verdict. Nothing in it can make this panic.

use serde::Serialize;
use thiserror::Error;

use super::ogg_page::{CAPTURE, CONTINUED, FIRST, HEADER, LAST, NO_GRANULE, OpusHead, OpusTags, crc};
use super::ogg_writer::OggState;
use super::packet;
use crate::time::SampleCount;

/// No more problems of one stream than this are kept; the rest is counted.
const KEPT_PROBLEMS: usize = 100;

/// The longest packet that is put together from several pages. A longer one is given up.
const LONGEST_PACKET: usize = 1 << 20;

/// One page whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Where it begins, in bytes since the start of the stream.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// It begins with the rest of a packet of the page before.
    pub continued: bool,
    /// It begins a logical stream.
    pub first: bool,
    /// It ends a logical stream.
    pub last: bool,
    /// Granule position, or `None` where no packet ends on this page.
    pub granule: Option<u64>,
    /// The logical stream's serial number.
    pub serial: u32,
    /// Its number in the logical stream.
    pub sequence: u32,
    /// The lacing values.
    pub lacing: &'a [u8],
    /// The segments.
    pub body: &'a [u8],
}

impl<'a> Page<'a> {
    /// The packets or parts of packets on the page, and whether each ends here.
    pub fn pieces(&self) -> impl Iterator<Item = (&'a [u8], bool)> {
        let (mut lacing, mut body) = (self.lacing, self.body);
        std::iter::from_fn(move || {
            if lacing.is_empty() {
                return None;
            }
            let ends = lacing.iter().position(|value| *value < 255);
            let segments = ends.map_or(lacing.len(), |at| at + 1);
            let length: usize = lacing[..segments].iter().map(|value| usize::from(*value)).sum();
            let (piece, rest) = body.split_at(length);
            (lacing, body) = (&lacing[segments..], rest);
            Some((piece, ends.is_some()))
        })
    }
}

/// Finds pages in a byte stream that comes in pieces of any size, and passes over everything else.
#[derive(Debug, Default)]
pub struct PageReader {
    buffer: Vec<u8>,
    at: usize,
    base: u64,
    passed_over: u64,
    bad_checksums: u64,
}

impl PageReader {
    /// A reader at the start of a stream.
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

    /// The next page, or `None` where more bytes are needed. A place that looks like a page but has the wrong checksum
    /// is passed over from its second byte on, so that no page hidden in it is missed.
    pub fn next_page(&mut self) -> Option<Page<'_>> {
        loop {
            let rest = &self.buffer[self.at..];
            let Some(skip) = rest.windows(CAPTURE.len()).position(|bytes| bytes == CAPTURE) else {
                let keep = rest.len().min(CAPTURE.len() - 1);
                self.pass_over(rest.len() - keep);
                return None;
            };
            self.pass_over(skip);
            let rest = &self.buffer[self.at..];
            let header = rest.get(..HEADER)?;
            let body_at = HEADER + usize::from(header[26]);
            let lacing = rest.get(HEADER..body_at)?;
            let length = body_at + lacing.iter().map(|value| usize::from(*value)).sum::<usize>();
            let page = rest.get(..length)?;
            if header[4] != 0 || !checksum_is_right(page) {
                self.bad_checksums += 1;
                self.pass_over(1);
                continue;
            }
            let start = self.at;
            self.at += length;
            return Some(page_at(&self.buffer[start..start + length], body_at, self.base + start as u64));
        }
    }

    /// Bytes after the last page that are not (yet) a page.
    pub fn pending(&self) -> u64 {
        (self.buffer.len() - self.at) as u64
    }

    /// Bytes so far that belong to no page.
    pub fn passed_over(&self) -> u64 {
        self.passed_over
    }

    /// Places that looked like a page but had the wrong checksum or version.
    pub fn bad_checksums(&self) -> u64 {
        self.bad_checksums
    }

    fn pass_over(&mut self, bytes: usize) {
        self.at += bytes;
        self.passed_over += bytes as u64;
    }
}

fn checksum_is_right(page: &[u8]) -> bool {
    let sum = crc(crc(crc(0, &page[..22]), &[0; 4]), &page[26..]);
    page[22..26] == sum.to_le_bytes()
}

fn page_at(bytes: &[u8], body_at: usize, offset: u64) -> Page<'_> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let granule = u64::from(u32_at(6)) | u64::from(u32_at(10)) << 32;
    Page {
        offset,
        end: offset + bytes.len() as u64,
        continued: bytes[5] & CONTINUED != 0,
        first: bytes[5] & FIRST != 0,
        last: bytes[5] & LAST != 0,
        granule: (granule != NO_GRANULE).then_some(granule),
        serial: u32_at(14),
        sequence: u32_at(18),
        lacing: &bytes[HEADER..body_at],
        body: &bytes[body_at..],
    }
}

/// What is wrong with a stream.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Problem {
    /// No page at all.
    #[error("there is no Ogg page in it")]
    NotOgg,
    /// Bytes between or before pages.
    #[error("{bytes} bytes that belong to no page before offset {offset}")]
    Garbage {
        /// How many.
        bytes: u64,
        /// Where the next page begins.
        offset: u64,
    },
    /// Bytes after the last whole page.
    #[error("{bytes} bytes of an unfinished or damaged page after offset {offset}")]
    Truncated {
        /// How many.
        bytes: u64,
        /// Where the last whole page ends.
        offset: u64,
    },
    /// The first page is not an Opus identification header alone on its page.
    #[error("it does not begin with an Opus identification header alone on its page")]
    BadHead,
    /// The second packet is no comment header alone on its pages.
    #[error("the comment header is missing, malformed or shares its page")]
    BadTags,
    /// A header page whose granule position is not 0.
    #[error("the header page at offset {offset} has granule position {granule}")]
    HeaderGranule {
        /// Where the page begins.
        offset: u64,
        /// Its granule position.
        granule: u64,
    },
    /// Pages of another logical stream.
    #[error("a page of another stream, {serial:#010x}, at offset {offset}")]
    OtherStream {
        /// Its serial number.
        serial: u32,
        /// Where the page begins.
        offset: u64,
    },
    /// The page sequence numbers are not contiguous.
    #[error("page {got} where page {expected} belongs, at offset {offset}")]
    MissingPages {
        /// The number that was due.
        expected: u32,
        /// The number that came.
        got: u32,
        /// Where the page begins.
        offset: u64,
    },
    /// A packet begins without ending or ends without beginning.
    #[error("a packet is torn at offset {offset}")]
    TornPacket {
        /// Where the page begins.
        offset: u64,
    },
    /// A packet that is no Opus packet.
    #[error("packet {index} is not an Opus packet")]
    BadPacket {
        /// The number of the audio packet, from 0.
        index: u64,
    },
    /// The granule position says more than the packets hold: players disagree about what that means.
    #[error("{samples} samples are missing before granule position {granule}")]
    Gap {
        /// How many.
        samples: u64,
        /// The granule position that tells.
        granule: u64,
    },
    /// The granule position says less than the packets hold.
    #[error("granule position {granule} where the packets reach {expected}")]
    GranuleBehind {
        /// The granule position.
        granule: u64,
        /// What the packets sum to.
        expected: u64,
    },
    /// Less was played than the pre-skip.
    #[error("it ends before its pre-skip is over")]
    NothingToPlay,
    /// The end flag is missing.
    #[error("it has no end: the recorder is still writing, or was stopped")]
    NoEnd,
    /// Pages after the end.
    #[error("a page after the end, at offset {offset}")]
    AfterEnd {
        /// Where the page begins.
        offset: u64,
    },
}

/// What a stream holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// Bytes looked at.
    pub bytes: u64,
    /// Whole pages.
    pub pages: u64,
    /// Audio packets.
    pub packets: u64,
    /// The identification header.
    pub head: Option<OpusHead>,
    /// The comment header.
    pub tags: Option<OpusTags>,
    /// What a player plays: the last granule position without the pre-skip.
    pub duration: SampleCount,
    /// What the packets hold, pre-skip and what the end trims included.
    pub coded: SampleCount,
    /// Whether the end flag is set.
    pub ended: bool,
    /// Where the last whole page ends, in bytes.
    pub whole: u64,
    /// Where the stream stands after its last whole page.
    pub state: Option<OggState>,
    /// What is wrong with it, in order; at most 100.
    pub problems: Vec<Problem>,
    /// Problems beyond those.
    pub more_problems: u64,
}

impl Inspection {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Looks at one Ogg Opus stream, in pieces of any size.
#[derive(Debug, Default)]
pub struct OggInspector {
    reader: PageReader,
    found: Inspection,
    packet: Vec<u8>,
    in_packet: bool,
    headers: u8,
    /// Granule position that the packets so far sum to, once known.
    reached: Option<u64>,
}

impl OggInspector {
    /// An inspector at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_each(bytes, &mut |_| ());
    }

    /// Looks at the next bytes, and hands each audio packet that ends in them to `each`.
    pub fn push_each(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8])) {
        self.found.bytes += bytes.len() as u64;
        let mut reader = std::mem::take(&mut self.reader);
        reader.push(bytes);
        while let Some(page) = reader.next_page() {
            let (offset, end) = (page.offset, page.end);
            let unexplained = offset - self.found.whole;
            if unexplained > 0 {
                self.problem(Problem::Garbage { bytes: unexplained, offset });
            }
            self.page(&page, each);
            self.found.whole = end;
        }
        self.reader = reader;
    }

    /// What was found so far, without what only the end shows.
    pub fn so_far(&self) -> &Inspection {
        &self.found
    }

    /// The verdict.
    pub fn finish(mut self) -> Inspection {
        if self.found.pages == 0 {
            self.problem(Problem::NotOgg);
            return self.found;
        }
        let rest = self.found.bytes - self.found.whole;
        if rest > 0 {
            self.problem(Problem::Truncated { bytes: rest, offset: self.found.whole });
        }
        if self.found.head.is_some() && self.headers < 2 {
            self.problem(Problem::BadTags);
        }
        if self.in_packet {
            self.problem(Problem::TornPacket { offset: self.found.whole });
        }
        if !self.found.ended {
            self.problem(Problem::NoEnd);
        }
        if let (Some(head), Some(state)) = (self.found.head, self.found.state) {
            let skip = u64::from(head.pre_skip);
            self.found.duration = SampleCount(state.granule.saturating_sub(skip));
            if self.found.ended && state.granule < skip {
                self.problem(Problem::NothingToPlay);
            }
        }
        self.found
    }

    fn problem(&mut self, problem: Problem) {
        if self.found.problems.len() < KEPT_PROBLEMS {
            self.found.problems.push(problem);
        } else {
            self.found.more_problems += 1;
        }
    }

    fn page(&mut self, page: &Page<'_>, each: &mut dyn FnMut(&[u8])) {
        self.found.pages += 1;
        let offset = page.offset;
        let Some(state) = self.found.state else {
            return self.first_page(page);
        };
        if page.serial != state.serial {
            return self.problem(Problem::OtherStream { serial: page.serial, offset });
        }
        if self.found.ended {
            return self.problem(Problem::AfterEnd { offset });
        }
        if page.sequence != state.sequence {
            self.problem(Problem::MissingPages { expected: state.sequence, got: page.sequence, offset });
            self.in_packet = false;
        }
        if page.continued != self.in_packet {
            self.problem(Problem::TornPacket { offset });
            self.in_packet = false;
        }
        let headers_before = self.headers;
        let mut samples = 0;
        let mut skip = page.continued && !self.in_packet;
        for (piece, ends) in page.pieces() {
            if std::mem::take(&mut skip) {
                continue;
            }
            if !self.in_packet {
                self.packet.clear();
            }
            self.in_packet = !ends;
            if self.packet.len() + piece.len() > LONGEST_PACKET {
                self.problem(Problem::TornPacket { offset });
                self.packet.clear();
                continue;
            }
            self.packet.extend_from_slice(piece);
            if ends {
                samples += self.packet_ends(each);
            }
        }
        if headers_before < 2 {
            if self.headers == 2 && page.pieces().count() != 1 {
                self.problem(Problem::BadTags);
            }
            if let Some(granule) = page.granule.filter(|granule| *granule != 0) {
                self.problem(Problem::HeaderGranule { offset, granule });
            }
        } else {
            self.check_granule(page, samples);
        }
        self.found.ended = page.last;
        self.found.state = Some(OggState {
            serial: state.serial,
            sequence: page.sequence.wrapping_add(1),
            granule: page.granule.unwrap_or(state.granule),
        });
    }

    fn first_page(&mut self, page: &Page<'_>) {
        let mut pieces = page.pieces();
        let head = match (pieces.next(), pieces.next()) {
            (Some((packet, true)), None) if page.first && !page.continued => OpusHead::parse(packet),
            _ => None,
        };
        if head.is_none() {
            self.problem(Problem::BadHead);
        }
        if let Some(granule) = page.granule.filter(|granule| *granule != 0) {
            self.problem(Problem::HeaderGranule { offset: page.offset, granule });
        }
        self.found.head = head;
        self.headers = 1;
        self.found.ended = page.last;
        self.found.state = Some(OggState { serial: page.serial, sequence: page.sequence.wrapping_add(1), granule: 0 });
    }

    /// Takes the packet that has just been completed and returns its samples.
    fn packet_ends(&mut self, each: &mut dyn FnMut(&[u8])) -> u64 {
        if self.headers < 2 {
            self.headers = 2;
            self.found.tags = OpusTags::parse(&self.packet);
            if self.found.tags.is_none() {
                self.problem(Problem::BadTags);
            }
            return 0;
        }
        let index = self.found.packets;
        self.found.packets += 1;
        each(&self.packet);
        let Some(samples) = packet::samples(&self.packet) else {
            self.problem(Problem::BadPacket { index });
            return 0;
        };
        self.found.coded += SampleCount(u64::from(samples));
        u64::from(samples)
    }

    fn check_granule(&mut self, page: &Page<'_>, samples: u64) {
        let expected = self.reached.unwrap_or(0).saturating_add(samples);
        let Some(granule) = page.granule else {
            self.reached = Some(expected);
            return;
        };
        let before = self.reached.unwrap_or(0);
        if granule > expected {
            self.problem(Problem::Gap { samples: granule - expected, granule });
        } else if granule < expected && !(page.last && granule >= before) {
            self.problem(Problem::GranuleBehind { granule, expected });
        }
        self.reached = Some(granule);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ogg_page::{Mapping, PageHeader, write_page};
    use super::super::{EncodeError, OggOpusWriter, packet::SILENCE_20_MS};
    use super::*;

    const SECOND: SampleCount = SampleCount(48_000);

    fn writer() -> OggOpusWriter {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", "a test").unwrap();
        OggOpusWriter::new(OpusHead::new(Mapping::Mono, 312), &tags, 7, SECOND).unwrap()
    }

    fn stream(packets: u64, total: u64) -> Vec<u8> {
        let mut writer = writer();
        (0..packets).for_each(|_| writer.write_packet(&SILENCE_20_MS, 960).unwrap());
        writer.finish(SampleCount(total)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        bytes
    }

    fn inspect(bytes: &[u8]) -> Inspection {
        let mut inspector = OggInspector::new();
        inspector.push(bytes);
        inspector.finish()
    }

    fn page_ends(bytes: &[u8]) -> Vec<usize> {
        let mut reader = PageReader::new();
        reader.push(bytes);
        std::iter::from_fn(|| reader.next_page().map(|page| page.end as usize)).collect()
    }

    #[test]
    fn a_whole_stream_is_clean_and_as_long_as_asked() {
        let found = inspect(&stream(175, 175 * 960 - 312 - 400));
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(found.duration, SampleCount(175 * 960 - 312 - 400));
        assert_eq!((found.packets, found.pages, found.ended), (175, 2 + 4, true));
        assert_eq!(found.head, Some(OpusHead::new(Mapping::Mono, 312)));
        assert_eq!(found.tags.unwrap().get("TITLE"), Some("a test"));
    }

    #[test]
    fn header_packets_stand_alone_and_pages_last_a_second() {
        let bytes = stream(175, 175 * 960 - 312);
        let mut reader = PageReader::new();
        reader.push(&bytes);
        let mut granules = Vec::new();
        while let Some(page) = reader.next_page() {
            granules.push(page.granule.unwrap());
            assert_eq!(page.first, granules.len() == 1);
        }
        assert_eq!(granules, [0, 0, 48_000, 96_000, 144_000, 168_000]);
    }

    #[test]
    fn the_ogg_crate_reads_the_same_packets() {
        let mut writer = writer();
        let packets: Vec<Vec<u8>> = (0..300usize)
            .map(|n| std::iter::once(0xf8).chain(std::iter::repeat_n(n as u8, n * 7 % 1200)).collect())
            .collect();
        packets.iter().for_each(|packet| writer.write_packet(packet, 960).unwrap());
        writer.finish(SampleCount(300 * 960 - 312)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        let mut theirs = ogg::PacketReader::new(std::io::Cursor::new(&bytes));
        let mut read = Vec::new();
        while let Some(packet) = theirs.read_packet().unwrap() {
            read.push(packet.data);
        }
        assert_eq!(read[2..], packets[..]);
        let mut ours = Vec::new();
        let mut inspector = OggInspector::new();
        for piece in bytes.chunks(17) {
            inspector.push_each(piece, &mut |packet| ours.push(packet.to_vec()));
        }
        assert_eq!(ours, packets);
        assert!(inspector.finish().is_clean());
    }

    #[test]
    fn tags_longer_than_a_page_are_written_and_read() {
        let mut tags = OpusTags::new();
        tags.comment("LYRICS", &"la ".repeat(60_000)).unwrap();
        let mut writer = OggOpusWriter::new(OpusHead::new(Mapping::Mono, 312), &tags, 7, SECOND).unwrap();
        writer.write_packet(&SILENCE_20_MS, 960).unwrap();
        writer.finish(SampleCount(648)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        let found = inspect(&bytes);
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(found.tags, Some(tags));
    }

    #[test]
    fn an_end_on_a_closed_page_is_carried_by_silence() {
        let mut writer = writer();
        (0..10).for_each(|_| writer.write_packet(&SILENCE_20_MS, 960).unwrap());
        writer.close_page();
        assert!(matches!(writer.finish(SampleCount(9600 - 313)), Err(EncodeError::End { .. })));
        writer.finish(SampleCount(9600 - 312)).unwrap();
        assert!(writer.write_packet(&SILENCE_20_MS, 960).is_err());
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        let found = inspect(&bytes);
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!((found.duration, found.packets), (SampleCount(9600 - 312), 11));
    }

    #[test]
    fn a_resumed_stream_is_one_stream() {
        let mut first = writer();
        (0..70).for_each(|_| first.write_packet(&SILENCE_20_MS, 960).unwrap());
        let mut bytes = Vec::new();
        first.take_bytes(&mut bytes);
        let state = inspect(&bytes).state.unwrap();
        assert_eq!(state, first.state());
        let mut second = OggOpusWriter::resume(*first.head(), state, SECOND).unwrap();
        (0..30).for_each(|_| second.write_packet(&SILENCE_20_MS, 960).unwrap());
        assert_eq!(second.samples(), SampleCount(80 * 960 - 312));
        second.finish(SampleCount(80 * 960 - 312)).unwrap();
        second.take_bytes(&mut bytes);
        let found = inspect(&bytes);
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(found.duration, SampleCount(80 * 960 - 312));
    }

    #[test]
    fn wherever_it_is_cut_all_whole_pages_remain() {
        let bytes = stream(175, 175 * 960 - 312);
        let ends = page_ends(&bytes);
        for cut in 0..bytes.len() {
            let found = inspect(&bytes[..cut]);
            let whole = ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0);
            assert_eq!(found.whole, whole as u64, "cut at {cut}");
            assert!(!found.ended);
        }
    }

    #[test]
    fn a_flipped_byte_costs_its_page_and_no_other() {
        let bytes = stream(175, 175 * 960 - 312);
        let ends = page_ends(&bytes);
        let mut broken = bytes.clone();
        broken[ends[2] + 40] ^= 1;
        let found = inspect(&broken);
        assert_eq!(found.pages, ends.len() as u64 - 1);
        assert!(found.problems.iter().any(|p| matches!(p, Problem::MissingPages { expected: 3, got: 4, .. })));
        assert!(found.problems.iter().any(|p| matches!(p, Problem::Gap { samples: 48_000, .. })));
        assert!(found.problems.iter().any(|p| matches!(p, Problem::Garbage { .. })));
    }

    #[test]
    fn a_granule_jump_is_a_gap() {
        let mut bytes = stream(1, 0);
        bytes.truncate(page_ends(&bytes)[1]);
        let mut state = PageHeader { flags: 0, granule: 960, serial: 7, sequence: 2 };
        write_page(state, &[3], &SILENCE_20_MS, &mut bytes);
        state = PageHeader { flags: LAST, granule: 960 + 960 + 5, sequence: 3, ..state };
        write_page(state, &[3], &SILENCE_20_MS, &mut bytes);
        assert_eq!(inspect(&bytes).problems, [Problem::Gap { samples: 5, granule: 1925 }]);
    }

    #[test]
    fn garbage_around_pages_is_named() {
        let mut bytes = b"RIFF----".to_vec();
        bytes.extend(stream(60, 60 * 960 - 312));
        bytes.extend(b"OggS\0tail");
        let found = inspect(&bytes);
        assert_eq!(found.problems[0], Problem::Garbage { bytes: 8, offset: 8 });
        assert!(matches!(found.problems[1], Problem::Truncated { bytes: 9, .. }));
        assert_eq!(found.problems.len(), 2);
        assert_eq!(inspect(b"hello").problems, [Problem::NotOgg]);
    }

    proptest! {
        #[test]
        fn foreign_bytes_do_no_harm(
            mut bytes in prop::collection::vec(any::<u8>(), 0..400),
            fixes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            granule in any::<u64>(),
            flags in 0u8..8,
            lacing in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            inspect(&bytes);
            let body = vec![0xfb; lacing.iter().map(|l| usize::from(*l)).sum()];
            write_page(PageHeader { flags, granule, serial: 7, sequence: 2 }, &lacing, &body, &mut bytes);
            inspect(&bytes);
            let mut damaged = stream(120, 119 * 960);
            for (at, value) in fixes {
                let at = at.index(damaged.len());
                damaged[at] = value;
            }
            let cut = page_ends(&damaged).get(2).copied().unwrap_or(0);
            damaged.splice(cut..cut, bytes);
            inspect(&damaged);
        }
    }
}
