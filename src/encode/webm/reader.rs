//! A WebM or Matroska byte stream, whatever its state, to Opus packets and a verdict. Nothing in it can make this panic.

use super::ebml::{self, Elements, Start, Vint};
use super::id;
use crate::encode::{ContainerProblem as Problem, Contents, OpusHead, OpusTags, packet};
use crate::time::SampleCount;

/// The largest cluster that is waited for as a whole; the blocks of a larger one are read as they come.
const LARGEST_CLUSTER: u64 = 64 << 20;

/// The largest part other than a cluster that is read.
const LARGEST_PART: u64 = 16 << 20;

/// Places that are off by less than this, 15 ms in samples, are jitter: browsers write such files.
const JITTER: u64 = 720;

/// Finds the first track of Opus in a stream that comes in pieces of any size.
///
/// Packets of a cluster of known size come when all of it has come; those of others one by one. After bytes that make no
/// sense it goes on at the next thing that looks like a cluster.
#[derive(Debug, Default)]
pub struct WebmReader {
    buffer: Vec<u8>,
    at: usize,
    base: u64,
    /// Bytes still to be passed over.
    skip: u64,
    stage: Stage,
    /// The end of the segment, where it says it.
    segment_end: Option<u64>,
    /// The cluster that is read block by block.
    open: Option<Cluster>,
    /// Where bytes that make no sense began.
    lost: Option<u64>,
    scale: u64,
    /// Ticks that the container says it lasts.
    ticks: Option<f64>,
    title: Option<String>,
    track: Option<u64>,
    /// The number by which tags name the track.
    uid: Option<u64>,
    tracks_seen: bool,
    /// What the packets' place in the container is ahead of what they hold, in samples.
    origin: Option<i128>,
    /// Nanoseconds to be dropped of the last packet.
    discard: u64,
    cues: bool,
    laced: bool,
    found: Contents,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Front,
    Top,
    Segment,
    Refused,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cluster {
    end: Option<u64>,
    timestamp: u64,
}

/// What a step came to.
enum Step {
    Again,
    NeedsMore,
}

impl WebmReader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self { scale: super::TIMESTAMP_SCALE, ..Self::default() }
    }

    /// The identification header, once it has come.
    pub fn head(&self) -> Option<&OpusHead> {
        self.found.head.as_ref()
    }

    /// The tags that have come so far.
    pub fn tags(&self) -> Option<&OpusTags> {
        self.found.tags.as_ref()
    }

    /// Looks at the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_each(bytes, &mut |_, _| ());
    }

    /// Looks at the next bytes, and hands each packet that they complete to `each`, with its samples at 48 kHz.
    pub fn push_each(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8], u32)) {
        self.found.bytes += bytes.len() as u64;
        if self.stage == Stage::Refused {
            return;
        }
        self.buffer.drain(..self.at);
        self.base += self.at as u64;
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
        while let Step::Again = self.step(each) {}
    }

    /// The verdict.
    pub fn finish(mut self) -> Contents {
        if matches!(self.stage, Stage::Front | Stage::Refused) {
            self.found.problem(Problem::NotThis { container: "WebM or Matroska" });
            return self.found;
        }
        if self.found.whole < self.found.bytes {
            let (offset, bytes) = (self.found.whole, self.found.bytes - self.found.whole);
            self.found.problem(Problem::Truncated { bytes, offset });
        }
        if self.track.is_none() {
            self.found.problem(Problem::NoTrack);
        }
        let complete = self.segment_end.is_some_and(|end| self.found.whole >= end);
        self.found.ended = complete || self.cues && self.found.whole == self.found.bytes;
        if !self.found.ended {
            self.found.problem(Problem::NoEnd);
        }
        if let (Some(title), Some(tags)) = (self.title, &mut self.found.tags)
            && tags.get("TITLE").is_none()
        {
            tags.comments.insert(0, ("TITLE".to_owned(), title));
        }
        let nanos = self.ticks.map(|ticks| ticks * self.scale as f64).filter(|nanos| *nanos > 0.0);
        self.found.duration = nanos.map(|nanos| SampleCount((nanos * 48e-6).round() as u64));
        let discard = samples(u128::from(self.discard));
        let skip = self.found.head.map_or(0, |head| u64::from(head.pre_skip));
        self.found.plays_to(self.found.coded.0.saturating_sub(discard), SampleCount(skip));
        self.found
    }

    fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    fn rest(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn step(&mut self, each: &mut dyn FnMut(&[u8], u32)) -> Step {
        if self.skip > 0 {
            let skipped = self.skip.min(self.rest().len() as u64);
            self.at += skipped as usize;
            self.skip -= skipped;
            if self.skip > 0 {
                return Step::NeedsMore;
            }
            self.found.whole = self.position();
        }
        if self.lost.is_some() && !self.find_cluster() {
            return Step::NeedsMore;
        }
        self.leave_what_has_ended();
        match ebml::start(self.rest()) {
            Start::Short => Step::NeedsMore,
            Start::Bad => self.nonsense(),
            Start::Element { id, size, header } => match self.stage {
                Stage::Front if id != id::EBML => self.refuse(),
                Stage::Front | Stage::Top => self.top_element(id, size, header),
                Stage::Segment => self.segment_element(id, size, header, each),
                Stage::Refused => Step::NeedsMore,
            },
        }
    }

    fn leave_what_has_ended(&mut self) {
        let position = self.position();
        if self.open.and_then(|cluster| cluster.end).is_some_and(|end| position >= end) {
            self.open = None;
        }
        if self.stage == Stage::Segment && self.segment_end.is_some_and(|end| position >= end) {
            self.stage = Stage::Top;
            self.open = None;
        }
    }

    fn refuse(&mut self) -> Step {
        self.stage = Stage::Refused;
        self.buffer = Vec::new();
        self.at = 0;
        Step::NeedsMore
    }

    fn nonsense(&mut self) -> Step {
        if self.stage == Stage::Front {
            return self.refuse();
        }
        self.lost = Some(self.position());
        self.at += 1;
        self.open = None;
        Step::Again
    }

    /// Goes on to what looks like a cluster's beginning. Gives whether there is one.
    fn find_cluster(&mut self) -> bool {
        let marker = id::CLUSTER.to_be_bytes();
        let place = self.rest().windows(marker.len()).position(|bytes| bytes == marker);
        let Some(place) = place else {
            self.at += self.rest().len().saturating_sub(marker.len() - 1);
            return false;
        };
        self.at += place;
        if let Some(offset) = self.lost.take() {
            self.found.problem(Problem::Garbage { bytes: self.position() - offset, offset });
        }
        self.stage = Stage::Segment;
        self.segment_end = None;
        true
    }

    /// Passes over an element's header, which is then whole.
    fn enter(&mut self, header: usize) -> Step {
        self.at += header;
        self.found.whole = self.position();
        Step::Again
    }

    fn pass_over(&mut self, header: usize, size: u64) -> Step {
        self.skip = size.saturating_add(header as u64);
        Step::Again
    }

    fn top_element(&mut self, id: u32, size: Option<u64>, header: usize) -> Step {
        match (id, size) {
            (id::SEGMENT, size) => {
                self.stage = Stage::Segment;
                let start = self.position() + header as u64;
                self.segment_end = size.map(|size| start.saturating_add(size));
                self.enter(header)
            }
            (_, Some(size)) => {
                if self.stage == Stage::Front {
                    self.stage = Stage::Top;
                }
                self.pass_over(header, size)
            }
            (_, None) => self.nonsense(),
        }
    }

    fn segment_element(&mut self, id: u32, size: Option<u64>, header: usize, each: &mut dyn FnMut(&[u8], u32)) -> Step {
        if self.open.is_some() && !in_cluster(id) {
            self.open = None;
        }
        let offset = self.position();
        match (id, size) {
            (id::CLUSTER, Some(size)) if size <= LARGEST_CLUSTER => self.whole_cluster(header, size, each),
            (id::CLUSTER, size) => {
                let end = size.map(|size| (offset + header as u64).saturating_add(size));
                self.open = Some(Cluster { end, timestamp: 0 });
                self.found.units += 1;
                self.enter(header)
            }
            (_, None) => self.nonsense(),
            (id, Some(size)) if !is_read(id) => self.pass_over(header, size),
            (_, Some(size)) if size > LARGEST_PART => {
                self.found.problem(Problem::TooLarge { bytes: size, offset });
                self.pass_over(header, size)
            }
            (id, Some(size)) => {
                let buffer = std::mem::take(&mut self.buffer);
                let body = buffer[self.at + header..].get(..size as usize);
                if let Some(body) = body {
                    self.part(id, body, each);
                    self.at += header + body.len();
                    self.found.whole = self.base + self.at as u64;
                }
                let step = if body.is_some() { Step::Again } else { Step::NeedsMore };
                self.buffer = buffer;
                step
            }
        }
    }

    fn whole_cluster(&mut self, header: usize, size: u64, each: &mut dyn FnMut(&[u8], u32)) -> Step {
        let buffer = std::mem::take(&mut self.buffer);
        let mut step = Step::NeedsMore;
        if let Some(body) = buffer[self.at + header..].get(..size as usize) {
            let mut elements = Elements(body);
            let mut cluster = Cluster::default();
            for (id, body) in elements.by_ref() {
                self.cluster_element(&mut cluster, id, body, each);
            }
            if !elements.0.is_empty() {
                self.found.problem(Problem::Malformed { part: "cluster", offset: self.position() });
            }
            self.found.units += 1;
            self.at += header + body.len();
            self.found.whole = self.position();
            step = Step::Again;
        }
        self.buffer = buffer;
        step
    }

    fn part(&mut self, id: u32, body: &[u8], each: &mut dyn FnMut(&[u8], u32)) {
        match id {
            id::INFO => self.info(body),
            id::TRACKS => self.tracks(body),
            id::TAGS => self.tags_part(body),
            id::CUES => self.cues = true,
            _ => {
                if let Some(mut cluster) = self.open {
                    self.cluster_element(&mut cluster, id, body, each);
                    self.open = Some(cluster);
                }
            }
        }
    }

    fn info(&mut self, body: &[u8]) {
        for (id, value) in Elements(body) {
            match id {
                id::TIMESTAMP_SCALE => self.scale = ebml::uint(value).max(1),
                id::DURATION => self.ticks = ebml::float(value),
                id::TITLE => self.title = Some(ebml::text(value)),
                id::MUXING_APP => self.found.tags.get_or_insert_default().vendor = ebml::text(value),
                _ => (),
            }
        }
    }

    fn tracks(&mut self, body: &[u8]) {
        if std::mem::replace(&mut self.tracks_seen, true) {
            return;
        }
        let mut others = 0;
        for (_, entry) in Elements(body).filter(|(id, _)| *id == id::TRACK_ENTRY) {
            let opus = ebml::find(entry, id::CODEC_ID).is_some_and(|codec| ebml::text(codec) == "A_OPUS");
            if !opus || self.track.is_some() {
                others += 1;
                continue;
            }
            if ebml::find(entry, id::CONTENT_ENCODINGS).is_some() {
                self.found.problem(Problem::Unsupported { feature: "a compressed or encrypted track" });
                continue;
            }
            self.track = ebml::find(entry, id::TRACK_NUMBER).map(ebml::uint);
            self.uid = ebml::find(entry, id::TRACK_UID).map(ebml::uint);
            self.found.head = ebml::find(entry, id::CODEC_PRIVATE).and_then(OpusHead::parse);
            if self.found.head.is_none() {
                self.found.problem(Problem::BadHead);
            }
        }
        if others > 0 {
            self.found.problem(Problem::OtherTracks { count: others });
        }
    }

    fn tags_part(&mut self, body: &[u8]) {
        let tags = self.found.tags.get_or_insert_default();
        for (_, tag) in Elements(body).filter(|(id, _)| *id == id::TAG) {
            let uid = ebml::find(tag, id::TARGETS).and_then(|targets| ebml::find(targets, id::TAG_TRACK_UID));
            let uid = uid.map(ebml::uint).filter(|uid| *uid != 0);
            if uid.is_some() && uid != self.uid {
                continue;
            }
            let before = tags.comments.len();
            for (_, simple) in Elements(tag).filter(|(id, _)| *id == id::SIMPLE_TAG) {
                let name = ebml::find(simple, id::TAG_NAME).map(ebml::text).unwrap_or_default();
                let Some(value) = ebml::find(simple, id::TAG_STRING).map(ebml::text) else { continue };
                let known = tags.comments[..before].iter().any(|(known, _)| known.eq_ignore_ascii_case(&name));
                if uid.is_none() || !known && !is_statistic(&name) {
                    // A name that a comment cannot have is left out.
                    let _ = tags.comment(&name, &value);
                }
            }
        }
    }

    fn cluster_element(&mut self, cluster: &mut Cluster, id: u32, body: &[u8], each: &mut dyn FnMut(&[u8], u32)) {
        match id {
            id::TIMESTAMP => cluster.timestamp = ebml::uint(body),
            id::SIMPLE_BLOCK => self.block(*cluster, body, 0, each),
            id::BLOCK_GROUP => {
                let discard = ebml::find(body, id::DISCARD_PADDING).and_then(ebml::int).unwrap_or(0);
                if let Some(block) = ebml::find(body, id::BLOCK) {
                    self.block(*cluster, block, u64::try_from(discard).unwrap_or(0), each);
                }
            }
            _ => (),
        }
    }

    fn block(&mut self, cluster: Cluster, body: &[u8], discard: u64, each: &mut dyn FnMut(&[u8], u32)) {
        let Vint::Value { value, length } = ebml::vint(body) else { return self.bad_block() };
        let Some((&[high, low, flags], packet)) = body[length..].split_first_chunk::<3>() else {
            return self.bad_block();
        };
        if value.is_none() || value != self.track {
            return;
        }
        if flags & 0x06 != 0 {
            if !std::mem::replace(&mut self.laced, true) {
                self.found.problem(Problem::Unsupported { feature: "lacing" });
            }
            return;
        }
        if self.discard > 0 {
            self.found.problem(Problem::TrimInside { index: self.found.packets.saturating_sub(1) });
        }
        self.discard = discard;
        let ticks = i128::from(cluster.timestamp) + i128::from(i16::from_be_bytes([high, low]));
        self.compare(ticks.saturating_mul(i128::from(self.scale)));
        self.found.packet(packet, packet::samples(packet), each);
    }

    /// Compares a block's place in nanoseconds with what the packets before it hold.
    fn compare(&mut self, nanos: i128) {
        let said = nanos.saturating_mul(48) / 1_000_000;
        let held = i128::from(self.found.coded.0);
        let origin = *self.origin.get_or_insert(said - held);
        let expected = u64::try_from(said - origin).unwrap_or(0);
        let jitter = JITTER.max(samples(2 * u128::from(self.scale)));
        if expected.abs_diff(self.found.coded.0) > jitter {
            self.found.compare(expected, jitter);
            self.origin = Some(said - held);
        }
    }

    fn bad_block(&mut self) {
        self.found.problem(Problem::Malformed { part: "block", offset: self.position() });
    }
}

/// Samples nearest to an amount of nanoseconds.
fn samples(nanos: u128) -> u64 {
    u64::try_from((nanos * 48 + 500_000) / 1_000_000).unwrap_or(u64::MAX)
}

/// Whether a track's tag is what a muxer counted, not what somebody said about it.
fn is_statistic(name: &str) -> bool {
    name.starts_with('_') || matches!(name, "BPS" | "DURATION" | "NUMBER_OF_FRAMES" | "NUMBER_OF_BYTES")
}

/// Whether an element belongs into a cluster.
fn in_cluster(id: u32) -> bool {
    const ENCRYPTED_BLOCK: u32 = 0xaf;
    matches!(
        id,
        id::TIMESTAMP
            | id::SIMPLE_BLOCK
            | id::BLOCK_GROUP
            | id::POSITION
            | id::PREV_SIZE
            | id::SILENT_TRACKS
            | id::VOID
            | id::CRC_32
            | ENCRYPTED_BLOCK
    )
}

/// Whether an element, other than a cluster, holds something that is read.
fn is_read(id: u32) -> bool {
    matches!(id, id::INFO | id::TRACKS | id::TAGS | id::CUES | id::TIMESTAMP | id::SIMPLE_BLOCK | id::BLOCK_GROUP)
}
