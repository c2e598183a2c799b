//! An MP4 byte stream, whatever its state, to packets of Opus or AAC and a verdict. Nothing in it can make this panic.

use std::collections::VecDeque;

use super::aac::AacHead;
use super::boxes::{self, Start};
use super::coding::Coding;
use super::movie::{self, Track};
use super::samples::{Sample, read_fragment};
use super::tags;
use crate::encode::{ContainerProblem as Problem, Contents, EncodeError, OpusHead, OpusTags};

/// The largest part that is kept in memory. The data of a larger fragment are read sample by sample.
const LARGEST: u64 = 64 << 20;

/// Finds the first track of Opus, or else of AAC, in a stream that comes in pieces of any size.
///
/// Packets of a fragment come when all of it has come, those of a file with one index as they come. Where that index is at the
/// end, the file has to be pushed again into the reader's [`second_reading`](Self::second_reading).
#[derive(Clone, Debug, Default)]
pub struct Mp4Reader {
    buffer: Vec<u8>,
    at: usize,
    base: u64,
    /// Bytes still to be passed over.
    skip: u64,
    /// What comes next is the first box.
    begun: bool,
    refused: bool,
    lost: bool,
    movie: Option<Movie>,
    /// Data were passed over before their index.
    data_passed: bool,
    /// Samples of the fragment whose data are awaited.
    fragment: VecDeque<Sample>,
    /// The next sample of the index.
    next: Option<Sample>,
    /// The data that are being read, where they end.
    data: Option<Data>,
    /// Where the packets so far end by the container, in ticks of the track.
    ticks: u64,
    indexed: bool,
    found: Contents,
}

#[derive(Clone, Debug)]
struct Movie {
    track: Track,
    tags: OpusTags,
}

#[derive(Clone, Copy, Debug)]
struct Data {
    end: Option<u64>,
    fragment: bool,
}

enum Step {
    Again,
    NeedsMore,
}

impl Mp4Reader {
    /// A reader at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// A reader for the same stream from its start, where the first reading came to an index after the data.
    pub fn second_reading(&self) -> Option<Self> {
        let late = self.data_passed && self.movie.as_ref().is_some_and(|movie| movie.track.table.left() > 0);
        late.then(|| self.fresh())
    }

    /// A reader for the same stream from its start, which knows the index already if it came after the data.
    pub(super) fn fresh(&self) -> Self {
        let mut fresh = Self::new();
        if self.data_passed
            && let Some(movie) = &self.movie
        {
            fresh.learn(movie.clone());
        }
        fresh
    }

    /// How its track of AAC is encoded, once that has come.
    pub fn aac(&self) -> Option<&AacHead> {
        self.found.aac.as_ref()
    }

    /// What to write about packets that are copied, once the track is known.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for what is not written.
    pub(super) fn coding(&self) -> Option<Result<Coding, EncodeError>> {
        let track = &self.movie.as_ref()?.track;
        (track.head.is_some() || track.aac.is_some()).then(|| track.coding())
    }

    /// The identification header of Opus, once it has come.
    pub fn head(&self) -> Option<&OpusHead> {
        self.found.head.as_ref()
    }

    /// The tags, once they have come.
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
        if self.refused || self.lost {
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
        if !self.begun || self.refused {
            self.found.problem(Problem::NotThis { container: "MP4" });
            return self.found;
        }
        let whole = self.found.whole;
        let rest = self.found.bytes - whole;
        if self.lost {
            self.found.problem(Problem::Garbage { bytes: rest, offset: whole });
        } else if rest > 0 {
            self.found.problem(Problem::Truncated { bytes: rest, offset: whole });
        }
        let Some(Movie { track, .. }) = self.movie.filter(|movie| movie.track.id != 0) else {
            self.found.problem(Problem::NoTrack);
            return self.found;
        };
        self.found.duration = track.duration;
        let coded = movie::scaled(self.ticks, track.timescale).unwrap_or_default();
        self.found.plays_to(coded.0, track.skip());
        if let Some(edit) = track.edit {
            self.found.total = self.found.total.min(edit);
        }
        let said = track.duration.is_some_and(|duration| self.found.total >= duration);
        self.found.ended = if track.fragmented {
            self.indexed && rest == 0 || said
        } else {
            track.table.left() == 0 && self.next.is_none()
        };
        if self.data_passed && track.table.left() > 0 {
            self.found.problem(Problem::IndexAfterData);
        } else if !self.found.ended {
            self.found.problem(Problem::NoEnd);
        }
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
        if let Some(data) = self.data {
            return self.data(data, each);
        }
        match boxes::start(self.rest()) {
            Start::Short => Step::NeedsMore,
            Start::Bad if !self.begun => self.refuse(),
            Start::Bad => {
                self.lost = true;
                Step::NeedsMore
            }
            Start::Box { kind, .. } if !self.begun && !may_begin(kind) => self.refuse(),
            Start::Box { kind, size, header } => self.next_box(kind, size, header),
        }
    }

    fn refuse(&mut self) -> Step {
        self.refused = true;
        self.buffer = Vec::new();
        self.at = 0;
        Step::NeedsMore
    }

    fn next_box(&mut self, kind: [u8; 4], size: Option<u64>, header: usize) -> Step {
        self.begun = true;
        let offset = self.position();
        match (&kind, size) {
            (b"mdat", size) => {
                self.at += header;
                let end = size.map(|size| self.position().saturating_add(size));
                let fragment = !self.fragment.is_empty();
                self.data = Some(Data { end, fragment: fragment && size.is_some_and(|size| size <= LARGEST) });
                self.data_passed |= self.movie.is_none();
                Step::Again
            }
            (b"moov" | b"moof", Some(size)) if size <= LARGEST => {
                let buffer = std::mem::take(&mut self.buffer);
                let body = buffer[self.at + header..].get(..size as usize);
                let step = if body.is_some() { Step::Again } else { Step::NeedsMore };
                if let Some(body) = body {
                    match &kind {
                        b"moov" => self.moov(body),
                        _ => self.moof(body, offset),
                    }
                    self.at += header + body.len();
                    // A fragment is whole with its data.
                    if self.fragment.is_empty() {
                        self.found.whole = self.base + self.at as u64;
                    }
                }
                self.buffer = buffer;
                step
            }
            (b"moov" | b"moof", size) => {
                self.found.problem(Problem::TooLarge { bytes: size.unwrap_or(u64::MAX), offset });
                self.skip = size.unwrap_or(u64::MAX).saturating_add(header as u64);
                Step::Again
            }
            (kind, size) => {
                self.indexed |= kind == b"mfra";
                self.skip = size.unwrap_or(u64::MAX).saturating_add(header as u64);
                Step::Again
            }
        }
    }

    fn moov(&mut self, body: &[u8]) {
        if self.movie.is_none() {
            let movie = Movie { track: movie::read(body), tags: tags::read(body) };
            self.learn(movie);
        }
    }

    fn learn(&mut self, movie: Movie) {
        let track = &movie.track;
        if track.id != 0 && track.head.is_none() && track.aac.is_none() {
            self.found.problem(Problem::BadHead);
        }
        if track.others > 0 {
            self.found.problem(Problem::OtherTracks { count: track.others });
        }
        if track.edits {
            self.found.problem(Problem::Unsupported { feature: "an edit list that does more than to skip the start" });
        }
        self.found.head = track.head;
        self.found.aac = track.aac;
        self.found.tags = Some(movie.tags.clone());
        self.movie = Some(movie);
    }

    fn moof(&mut self, body: &[u8], offset: u64) {
        let Some(Movie { track, .. }) = self.movie.as_ref().filter(|movie| movie.track.id != 0) else { return };
        match read_fragment(body, offset, track) {
            Ok(fragment) => {
                if let Some(time) = fragment.time.and_then(|time| movie::scaled(time, track.timescale)) {
                    // Ticks of a coarse timescale are rounded.
                    let tolerance = if track.timescale == crate::time::SAMPLE_RATE { 0 } else { 480 };
                    self.found.compare(time.0, tolerance);
                }
                self.fragment = fragment.samples.into();
            }
            Err(problem) => self.found.problem(problem),
        }
    }

    /// Reads on in an `mdat` box.
    fn data(&mut self, data: Data, each: &mut dyn FnMut(&[u8], u32)) -> Step {
        let reached = self.base + self.buffer.len() as u64;
        if data.fragment && data.end.is_some_and(|end| reached < end) {
            return Step::NeedsMore;
        }
        let mut handed = 0;
        while let Some(sample) = self.fragment.front().copied().or_else(|| self.indexed_sample()) {
            let end = sample.offset.saturating_add(u64::from(sample.size));
            if data.end.is_some_and(|data_end| end > data_end) {
                // Not in here: in a later part of the file, or nowhere.
                if !self.fragment.is_empty() {
                    self.found.problem(Problem::Malformed { part: "trun", offset: self.position() });
                    self.fragment.clear();
                }
                break;
            }
            let Some(ahead) = sample.offset.checked_sub(self.position()) else {
                self.found.problem(Problem::Unsupported { feature: "data in another order than the samples" });
                self.drop_sample(sample);
                continue;
            };
            let have = (self.buffer.len() - self.at) as u64;
            if end > reached {
                self.at += ahead.min(have) as usize;
                return Step::NeedsMore;
            }
            self.at += ahead as usize;
            let buffer = std::mem::take(&mut self.buffer);
            let packet = &buffer[self.at..self.at + sample.size as usize];
            let ticks = self.ticks.saturating_add(u64::from(sample.duration));
            let track = self.movie.as_ref().map(|movie| &movie.track);
            self.found.packet(packet, track.and_then(|track| track.samples_of(packet, self.ticks, ticks)), each);
            self.buffer = buffer;
            self.at += sample.size as usize;
            self.ticks = ticks;
            handed += 1;
            if !data.fragment {
                self.found.whole = self.position();
            }
            self.drop_sample(sample);
        }
        self.found.units += u64::from(handed > 0);
        self.data = None;
        // What is left of it, or of the file.
        match data.end.map_or(u64::MAX, |end| end.saturating_sub(self.position())) {
            0 => self.found.whole = self.position(),
            rest => self.skip = rest,
        }
        Step::Again
    }

    /// The next sample that an index for the whole file has.
    fn indexed_sample(&mut self) -> Option<Sample> {
        if self.next.is_none() {
            let table = &mut self.movie.as_mut().filter(|movie| !self.data_passed && movie.track.id != 0)?.track.table;
            self.next = table.next();
        }
        self.next
    }

    fn drop_sample(&mut self, sample: Sample) {
        if self.fragment.front() == Some(&sample) {
            self.fragment.pop_front();
        } else {
            self.next = None;
        }
    }
}

/// Whether a file may begin with such a box.
fn may_begin(kind: [u8; 4]) -> bool {
    matches!(&kind, b"ftyp" | b"styp" | b"moov" | b"free" | b"skip" | b"wide" | b"mdat")
}
