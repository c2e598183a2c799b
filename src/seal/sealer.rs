//! Pages to segments.

use std::io::Write;

use super::segment::{HEADER_BYTES, SegmentHeader};
use super::{Recipients, SealError, SegmentReader};
use crate::encode::{OggState, OpusHead, PageReader, crc, head_of};
use crate::time::SAMPLE_RATE;

/// No segment gets another page that makes it longer than this: a page with the longest header around it still fits.
const LONG: usize = 60_000;

/// Seals one stream as it grows.
#[derive(Clone, Debug)]
pub struct Sealer {
    recipients: Recipients,
    /// How the stream begins, and where it stands; none before its first page.
    stands: Option<(OpusHead, OggState)>,
}

/// A whole page that is to be sealed.
struct Page {
    end: usize,
    first: bool,
    last: bool,
    serial: u32,
    sequence: u32,
    granule: Option<u64>,
}

impl Sealer {
    /// For a stream that begins.
    pub fn new(recipients: Recipients) -> Self {
        Self { recipients, stands: None }
    }

    /// For a stream that goes on behind what was sealed before: of `head` the channels and the pre-skip count.
    pub fn resume(recipients: Recipients, head: OpusHead, state: OggState) -> Self {
        Self { recipients, stands: Some((head, state)) }
    }

    /// Seals whole pages, as one segment for each second of them, and appends these to `out`.
    ///
    /// # Errors
    /// [`SealError::NotPages`] for anything else than the pages that follow; nothing is appended then.
    pub fn seal(&mut self, pages: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let found = split(pages)?;
        let whole = out.len();
        let mut rest = &found[..];
        let mut from = 0;
        while !rest.is_empty() {
            let count = self.take(rest, from);
            let (these, after) = rest.split_at(count);
            let to = these[count - 1].end;
            if let Err(error) = self.segment(these, &pages[from..to], out) {
                out.truncate(whole);
                return Err(error);
            }
            (from, rest) = (to, after);
        }
        Ok(())
    }

    /// How many of `pages`, the first of which begins at `from`, make the next segment.
    fn take(&self, pages: &[Page], from: usize) -> usize {
        let before = self.stands.map_or(0, |(_, state)| state.granule);
        let too_much = |page: &Page| {
            let span = page.granule.unwrap_or(before).saturating_sub(before);
            page.end - from > LONG || span > u64::from(SAMPLE_RATE)
        };
        pages.iter().position(too_much).unwrap_or(pages.len()).max(1)
    }

    fn segment(&mut self, pages: &[Page], plain: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
        let (head, before) = match self.stands {
            Some(stands) => stands,
            None => {
                let head = head_of(plain).ok_or(SealError::NotPages("no identification header"))?;
                (head, OggState { serial: pages[0].serial, sequence: pages[0].sequence, granule: 0 })
            }
        };
        let mut after = before;
        for page in pages {
            if (page.serial, page.sequence) != (after.serial, after.sequence) {
                return Err(SealError::NotPages("a page does not follow the one before it"));
            }
            after.sequence = after.sequence.wrapping_add(1);
            after.granule = page.granule.unwrap_or(after.granule);
        }
        let payload = encrypt(&self.recipients, plain)?;
        let header = SegmentHeader {
            begins: pages[0].first,
            ends: pages.last().is_some_and(|page| page.last),
            mapping: head.mapping,
            pre_skip: head.pre_skip,
            before,
            after,
            // A segment is short.
            plain_len: plain.len() as u32,
            payload_len: payload.len() as u32,
            payload_crc: crc(0, &payload),
        };
        let header = header.write().ok_or(SealError::NotPages("channels that are never written"))?;
        out.extend_from_slice(&header);
        out.extend_from_slice(&payload);
        self.stands = Some((head, after));
        Ok(())
    }
}

/// Makes the last of the whole segments in `bytes` its stream's end, in place: a file that cannot grow any more ends there.
/// Gives whether there was one.
pub fn end_at_last_segment(bytes: &mut [u8]) -> bool {
    let mut reader = SegmentReader::new();
    reader.push(bytes);
    let mut last = None;
    while let Some(segment) = reader.next_segment() {
        last = Some((segment.offset as usize, segment.header));
    }
    let Some((at, header)) = last else { return false };
    let Some(ended) = (SegmentHeader { ends: true, ..header }).write() else { return false };
    bytes[at..at + HEADER_BYTES].copy_from_slice(&ended);
    true
}

/// Where the stream stands after the last of the segments in `bytes`, which begin with one; none where that is not so.
pub fn state_after(bytes: &[u8]) -> Option<OggState> {
    headers(bytes).last().map(|header| header.after)
}

/// The headers of the whole segments in `bytes`, which begin with one. Checksums of what follows them are not looked at:
/// this is for segments that this process made.
pub(super) fn headers(bytes: &[u8]) -> impl Iterator<Item = SegmentHeader> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, behind) = rest.split_first_chunk::<HEADER_BYTES>()?;
        let header = SegmentHeader::read(header)?;
        rest = behind.get(header.payload_len as usize..)?;
        Some(header)
    })
}

/// Seals a small file that tells about a recording, as one age file.
///
/// # Errors
/// [`SealError::Encrypt`] where the library refuses.
pub fn seal_whole(recipients: &Recipients, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    encrypt(recipients, plain)
}

fn encrypt(recipients: &Recipients, plain: &[u8]) -> Result<Vec<u8>, SealError> {
    let failed = |why: &dyn std::fmt::Display| SealError::Encrypt(why.to_string());
    let encryptor = age::Encryptor::with_recipients(recipients.as_age()).map_err(|error| failed(&error))?;
    let mut sealed = Vec::with_capacity(plain.len() + 512);
    let mut writer = encryptor.wrap_output(&mut sealed).map_err(|error| failed(&error))?;
    writer.write_all(plain).and_then(|()| writer.finish().map(|_| ())).map_err(|error| failed(&error))?;
    Ok(sealed)
}

/// The pages that make up `bytes`.
fn split(bytes: &[u8]) -> Result<Vec<Page>, SealError> {
    let mut reader = PageReader::new();
    reader.push(bytes);
    let (mut pages, mut at) = (Vec::new(), 0);
    while let Some(page) = reader.next_page() {
        if page.offset != at {
            break;
        }
        at = page.end;
        let crate::encode::Page { first, last, serial, sequence, granule, .. } = page;
        pages.push(Page { end: at as usize, first, last, serial, sequence, granule });
    }
    if at == bytes.len() as u64 { Ok(pages) } else { Err(SealError::NotPages("not all of it is pages")) }
}
