//! Segments to pages, with a key.

use std::fmt;
use std::io::Read;

use super::segment::SegmentHeader;
use super::{Identities, SealError, SegmentReader};
use crate::encode::{OggOpusWriter, OggState, OpusTags, PageReader, end_at_last_page};
use crate::time::SampleCount;

/// What comes out of a sealed file, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Pages that follow.
    Pages(Vec<u8>),
    /// Something is missing here.
    Lost(Loss),
}

/// Something that is missing from a sealed file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// The number, from 1, of the segment that is missing or damaged, counting those that are there.
    pub segment: u64,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many bytes of the file cannot be used.
    pub bytes: u64,
    /// How much sound is missing; none where nothing tells.
    pub samples: Option<SampleCount>,
    /// Why.
    pub why: Why,
}

/// Why something is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Bytes that are no whole segment, or none where one belongs.
    Damaged,
    /// The file ends within a segment, or between segments before its stream's end.
    Cut,
    /// None of the keys opens the segment.
    WrongKey,
    /// The segment's checksum is right, but not what is sealed in it.
    Forged(String),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, offset, bytes, samples, why } = self;
        match why {
            Why::Cut => write!(f, "it ends at segment {segment} at offset {offset}, before its stream's end")?,
            Why::Damaged => write!(f, "segment {segment} at offset {offset} is damaged or missing")?,
            Why::WrongKey => write!(f, "segment {segment} at offset {offset} is not sealed to any of these keys")?,
            Why::Forged(why) => write!(f, "segment {segment} at offset {offset} is not as it was sealed: {why}")?,
        }
        if *bytes > 0 {
            write!(f, ", {bytes} bytes of it are of no use")?;
        }
        match samples {
            Some(samples) => write!(f, "; {:.3} s of sound are lost", samples.as_secs_f64()),
            None => Ok(()),
        }
    }
}

/// Opens a sealed file that comes in pieces of any size. What is damaged is passed over and told.
///
/// The pages are those that were sealed, byte for byte. Where the segment with the stream's headers is lost, there are
/// headers anew, so that the rest plays.
#[derive(Debug)]
pub struct Opener {
    identities: Identities,
    reader: SegmentReader,
    /// Where the segments so far end.
    whole: u64,
    segments: u64,
    stands: Option<OggState>,
    ended: bool,
    /// Whether any pages were opened.
    opened: bool,
    /// What is to be told next.
    next: Option<Opened>,
}

impl Opener {
    /// Opens with any of these keys.
    pub fn new(identities: Identities) -> Self {
        Self {
            identities,
            reader: SegmentReader::new(),
            whole: 0,
            segments: 0,
            stands: None,
            ended: false,
            opened: false,
            next: None,
        }
    }

    /// Adds the next bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.reader.push(bytes);
    }

    /// Nothing more comes.
    pub fn end(&mut self) {
        self.reader.end();
    }

    /// Whole segments so far, whether or not they could be opened.
    pub fn segments(&self) -> u64 {
        self.segments
    }

    /// What comes next, or `None` where more bytes are needed; after [`end`](Self::end), where that was all.
    pub fn next_opened(&mut self) -> Option<Opened> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        let mut reader = std::mem::take(&mut self.reader);
        let opened = match reader.next_segment() {
            Some(segment) => {
                let (offset, end, header) = (segment.offset, segment.end, segment.header);
                let lost = self.lost_before(offset, &header);
                let opened = self.open(offset, end - offset, &header, segment.payload);
                (self.whole, self.stands) = (end, Some(header.after));
                self.ended |= header.ends;
                match lost {
                    Some(lost) => {
                        self.next = Some(opened);
                        Some(Opened::Lost(lost))
                    }
                    None => Some(opened),
                }
            }
            None => None,
        };
        self.reader = reader;
        opened
    }

    /// What is missing at the end; asked once there is no next.
    pub fn lost_at_end(&self, bytes: u64) -> Option<Loss> {
        let left = bytes.saturating_sub(self.whole);
        let why = if self.ended { Why::Damaged } else { Why::Cut };
        let is_lost = left > 0 || !self.ended;
        is_lost.then(|| Loss { segment: self.segments + 1, offset: self.whole, bytes: left, samples: None, why })
    }

    /// What is missing before the segment at `offset`.
    fn lost_before(&mut self, offset: u64, header: &SegmentHeader) -> Option<Loss> {
        let (bytes, from) = (offset - self.whole, self.whole);
        let missing = match self.stands {
            Some(state) => (state != header.before).then(|| header.before.granule.saturating_sub(state.granule)),
            None => (!header.begins).then_some(header.before.granule),
        };
        self.segments += 1;
        if bytes == 0 && missing.is_none() {
            return None;
        }
        let samples = missing.map(SampleCount);
        let lost = Loss { segment: self.segments, offset: from, bytes, samples, why: Why::Damaged };
        // The damaged one counts, too, so that numbers are those of the file as it was.
        self.segments += u64::from(missing.is_some());
        Some(lost)
    }

    fn open(&mut self, offset: u64, bytes: u64, header: &SegmentHeader, payload: &[u8]) -> Opened {
        let why = match open_payload(&self.identities, payload, header.plain_len as usize) {
            Ok(mut pages) => match check(&pages, header) {
                Ok(is_ended) => {
                    if header.ends && !is_ended {
                        end_at_last_page(&mut pages);
                    }
                    if !self.opened && !header.begins {
                        pages.splice(..0, headers(header));
                    }
                    self.opened = true;
                    return Opened::Pages(pages);
                }
                Err(why) => Why::Forged(why.to_owned()),
            },
            Err(SealError::WrongKey) => Why::WrongKey,
            Err(error) => Why::Forged(error.to_string()),
        };
        Opened::Lost(Loss { segment: self.segments, offset, bytes, samples: Some(header.samples()), why })
    }
}

/// Opens a small file that was sealed as one age file.
///
/// # Errors
/// [`SealError::WrongKey`], and [`SealError::Damaged`] for anything else that is wrong with it.
pub fn open_whole(identities: &Identities, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    open_payload(identities, sealed, sealed.len())
}

fn open_payload(identities: &Identities, payload: &[u8], at_most: usize) -> Result<Vec<u8>, SealError> {
    let failed = |error: age::DecryptError| match error {
        age::DecryptError::NoMatchingKeys => SealError::WrongKey,
        error => SealError::Damaged(error.to_string()),
    };
    let decryptor = age::Decryptor::new_buffered(payload).map_err(failed)?;
    let reader = decryptor.decrypt(identities.as_age()).map_err(failed)?;
    let mut plain = Vec::with_capacity(at_most);
    reader.take(at_most as u64 + 1).read_to_end(&mut plain).map_err(|error| SealError::Damaged(error.to_string()))?;
    Ok(plain)
}

/// Whether pages are those that a header promises; gives whether they end the stream.
fn check(pages: &[u8], header: &SegmentHeader) -> Result<bool, &'static str> {
    if pages.len() != header.plain_len as usize {
        return Err("it has another length than its header says");
    }
    let mut reader = PageReader::new();
    reader.push(pages);
    let (mut at, mut state, mut is_ended) = (0, header.before, false);
    while let Some(page) = reader.next_page() {
        if page.offset != at || (page.serial, page.sequence) != (state.serial, state.sequence) {
            return Err("its pages are others than its header says");
        }
        at = page.end;
        is_ended = page.last;
        state.sequence = state.sequence.wrapping_add(1);
        state.granule = page.granule.unwrap_or(state.granule);
    }
    if at != pages.len() as u64 || state != header.after {
        return Err("its pages are others than its header says");
    }
    Ok(is_ended)
}

/// Header pages for a stream whose own are lost.
fn headers(header: &SegmentHeader) -> Vec<u8> {
    let mut pages = Vec::new();
    let writer = OggOpusWriter::new(header.head(), &OpusTags::new(), header.before.serial, SampleCount::ZERO);
    if let Ok(mut writer) = writer {
        writer.take_bytes(&mut pages);
    }
    pages
}
