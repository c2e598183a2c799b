//! What is in a file, so that it can be cut, ended and checked: an Ogg stream, plain or sealed. No key is needed for that.

use crate::encode::{self, EncodeError, OggInspector, OggState, OpusHead, PageReader, Problem};
use crate::seal::{self, Recipients, SealError, SealInspector, SealProblem, Sealer, SegmentReader};
use crate::time::SampleCount;

use super::history::NewFile;

/// The ending of Ogg streams.
pub const OGG: &str = "ogg";

/// The ending of Ogg streams that are sealed.
pub const SEALED: &str = "ogg.age";

/// How a file holds its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream<'a> {
    /// As it is: whole pages, one after the other.
    Ogg,
    /// Sealed to these: whole segments, one after the other.
    Sealed(&'a Recipients),
}

/// A stream that cannot be ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// There is no such end.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The end cannot be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl NewFile {
    /// The stream in it; none for what tells about the recording.
    pub fn stream(&self) -> Option<Stream<'_>> {
        match self.ext.as_str() {
            OGG => Some(Stream::Ogg),
            SEALED => Some(Stream::Sealed(&self.recipients)),
            _ => None,
        }
    }

    /// Whether sound is in it.
    pub fn is_output(&self) -> bool {
        self.rendered.is_some() || self.stream().is_some()
    }

    /// The word for the format of what is in it, sealed or not.
    pub fn format(&self) -> &str {
        self.ext.strip_suffix(seal::EXT).and_then(|ext| ext.strip_suffix('.')).unwrap_or(&self.ext)
    }
}

/// The parts of a recording's name: without its ending, and that. An ending of sealed files is one.
pub fn split_name(name: &str) -> (&str, &str) {
    let (folder, file) = name.rfind('/').map_or(("", name), |at| name.split_at(at + 1));
    let inner = file.strip_suffix(seal::EXT).and_then(|file| file.strip_suffix('.'));
    let dot = |file: &str| file.rfind('.').filter(|dot| *dot > 0);
    match inner.and_then(dot).or_else(|| dot(file)) {
        Some(dot) => (&name[..folder.len() + dot], &file[dot + 1..]),
        None => (name, ""),
    }
}

impl Stream<'_> {
    /// How the stream begins, from the first bytes of its file. Of a sealed one that is channels and pre-skip.
    pub fn head_of(self, bytes: &[u8]) -> Option<OpusHead> {
        match self {
            Self::Ogg => encode::head_of(bytes),
            Self::Sealed(_) => {
                let mut reader = SegmentReader::new();
                reader.push(bytes);
                reader.next_segment().filter(|segment| segment.offset == 0).map(|segment| segment.header.head())
            }
        }
    }

    /// Where the stream stands after the last whole unit of `bytes`, which begin with one and were made by this process.
    pub fn state_after(self, bytes: &[u8]) -> Option<OggState> {
        match self {
            Self::Ogg => encode::state_after(bytes),
            Self::Sealed(_) => seal::state_after(bytes),
        }
    }

    /// What ends a stream that stands at `state`, to be appended.
    ///
    /// # Errors
    /// For channels that are never written, and where sealing fails.
    pub fn closing(self, head: OpusHead, state: OggState) -> Result<Vec<u8>, StreamError> {
        let page = encode::closing_page(head, state)?;
        match self {
            Self::Ogg => Ok(page),
            Self::Sealed(recipients) => {
                let mut segment = Vec::new();
                Sealer::resume(recipients.clone(), head, state).seal(&page, &mut segment)?;
                Ok(segment)
            }
        }
    }

    /// Marks the last of the whole units in `bytes` as the stream's end, in place. Gives whether there was one.
    pub fn end_in_place(self, bytes: &mut [u8]) -> bool {
        match self {
            Self::Ogg => encode::end_at_last_page(bytes),
            Self::Sealed(_) => seal::end_at_last_segment(bytes),
        }
    }

    /// A reader of its units.
    pub fn units(self) -> UnitReader {
        match self {
            Self::Ogg => UnitReader::Pages(PageReader::new()),
            Self::Sealed(_) => UnitReader::Segments(SegmentReader::new()),
        }
    }

    /// Who looks at a whole file.
    pub fn surveyor(self) -> Surveyor {
        match self {
            Self::Ogg => Surveyor::Ogg(Box::default()),
            Self::Sealed(_) => Surveyor::Sealed(Box::default()),
        }
    }
}

/// The smallest whole piece of a file: a page, or a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Where it ends.
    pub end: u64,
    /// The stream's serial number, and the number of its first page.
    pub begins_with: (u32, u32),
    /// The same of the page after it.
    pub followed_by: (u32, u32),
    /// Whether it ends the stream.
    pub last: bool,
}

/// Finds units in a byte stream that comes in pieces of any size, and passes over everything else.
#[derive(Debug)]
pub enum UnitReader {
    /// Pages.
    Pages(PageReader),
    /// Segments.
    Segments(SegmentReader),
}

impl UnitReader {
    /// Adds the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Pages(reader) => reader.push(bytes),
            Self::Segments(reader) => reader.push(bytes),
        }
    }

    /// The next unit, or `None` where more bytes are needed.
    pub fn next_unit(&mut self) -> Option<Unit> {
        match self {
            Self::Pages(reader) => reader.next_page().map(|page| Unit {
                offset: page.offset,
                end: page.end,
                begins_with: (page.serial, page.sequence),
                followed_by: (page.serial, page.sequence.wrapping_add(1)),
                last: page.last,
            }),
            Self::Segments(reader) => reader.next_segment().map(|segment| {
                let (before, after) = (segment.header.before, segment.header.after);
                Unit {
                    offset: segment.offset,
                    end: segment.end,
                    begins_with: (before.serial, before.sequence),
                    followed_by: (after.serial, after.sequence),
                    last: segment.header.ends,
                }
            }),
        }
    }

    /// Bytes so far that belong to no unit.
    pub fn passed_over(&self) -> u64 {
        match self {
            Self::Pages(reader) => reader.passed_over(),
            Self::Segments(reader) => reader.passed_over(),
        }
    }
}

/// What was found in a whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// How the stream begins.
    pub head: Option<OpusHead>,
    /// Whether all of its headers are there.
    pub begun: bool,
    /// Whether its end is.
    pub ended: bool,
    /// Where it stands after the last whole unit.
    pub state: Option<OggState>,
    /// What a player plays.
    pub duration: SampleCount,
    /// What is wrong with it, but for an end that is missing.
    pub problems: Vec<String>,
}

/// Looks at a whole file, in pieces of any size.
#[derive(Debug)]
pub enum Surveyor {
    /// At an Ogg stream.
    Ogg(Box<OggInspector>),
    /// At a sealed one.
    Sealed(Box<SealInspector>),
}

impl Surveyor {
    /// Looks at the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Ogg(inspector) => inspector.push(bytes),
            Self::Sealed(inspector) => inspector.push(bytes),
        }
    }

    /// What was found.
    pub fn finish(self) -> Survey {
        match self {
            Self::Ogg(inspector) => {
                let found = inspector.finish();
                let problems = found.problems.iter().filter(|problem| **problem != Problem::NoEnd);
                Survey {
                    head: found.head,
                    begun: found.tags.is_some(),
                    ended: found.ended,
                    state: found.state,
                    duration: found.duration,
                    problems: problems.map(ToString::to_string).collect(),
                }
            }
            Self::Sealed(inspector) => {
                let found = inspector.finish();
                let problems = found.problems.iter().filter(|problem| **problem != SealProblem::NoEnd);
                Survey {
                    head: found.head,
                    // Two headers, a page each at least.
                    begun: found.begun && found.state.is_some_and(|state| state.sequence >= 2),
                    ended: found.ended,
                    state: found.state,
                    duration: found.duration,
                    problems: problems.map(ToString::to_string).collect(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_before_all_of_its_ending() {
        for (name, stem, ext) in [
            ("call.ogg", "call", "ogg"),
            ("2026/a.b.ogg", "2026/a.b", "ogg"),
            ("2026/a.b.ogg.age", "2026/a.b", "ogg.age"),
            ("v1.2/call", "v1.2/call", ""),
            ("v1.2/call.age", "v1.2/call", "age"),
            (".ogg.age", ".ogg", "age"),
            ("storage", "storage", ""),
        ] {
            assert_eq!(split_name(name), (stem, ext), "{name}");
        }
    }

    #[test]
    fn only_streams_are_streams() {
        let is_stream = |ext: &str| NewFile { ext: ext.into(), ..NewFile::default() }.stream().is_some();
        assert!(is_stream(OGG) && is_stream(SEALED));
        assert!(!is_stream("vtt") && !is_stream("vtt.age") && !is_stream("age"));
    }
}
