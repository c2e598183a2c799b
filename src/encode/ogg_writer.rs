//! Opus packets to an Ogg Opus byte stream (RFC 7845), without IO.

use serde::{Deserialize, Serialize};

use super::EncodeError;
use super::ogg_page::{CONTINUED, FIRST, LAST, Mapping, NO_GRANULE, OpusHead, OpusTags, PageHeader, write_page};
use super::packet;
use crate::time::SampleCount;

const MAX_LACING: usize = 255;

/// Where a stream stands at the end of a page: enough to continue it in another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OggState {
    /// The logical stream's serial number.
    pub serial: u32,
    /// The sequence number of the next page.
    pub sequence: u32,
    /// The granule position of the last page: samples at 48 kHz so far, pre-skip included.
    pub granule: u64,
}

/// Writes one logical Ogg Opus stream into a buffer that the caller empties.
///
/// The header packets stand alone on their pages with granule position 0 (RFC 7845 §3). A page is closed when it holds
/// [`page_samples`](Self::new) and the next packet comes, so the last packet always waits for what it turns out to be:
/// one of many, or the end. Each closed page is complete with its checksum; a file cut after any page plays to there.
///
/// After warming up it does not allocate, as long as the caller takes the bytes.
#[derive(Debug)]
pub struct OggOpusWriter {
    head: OpusHead,
    page_samples: u32,
    /// Up to the last closed page.
    state: OggState,
    /// Granule position after the last packet written.
    granule: u64,
    lacing: Vec<u8>,
    body: Vec<u8>,
    silence: Vec<u8>,
    out: Vec<u8>,
    ended: bool,
}

/// A last page for a stream whose pages so far left it in `state`: one packet of silence that is trimmed again, so that
/// the stream ends without a byte of it being changed.
///
/// # Errors
/// [`EncodeError::Config`] for a mapping that is not written.
pub fn closing_page(head: OpusHead, state: OggState) -> Result<Vec<u8>, EncodeError> {
    let mut writer = OggOpusWriter::resume(head, state, SampleCount::ZERO)?;
    writer.finish(writer.samples())?;
    Ok(writer.out)
}

impl OggOpusWriter {
    /// A new stream: its two header pages are ready to be taken at once. Pages hold about `page` of audio; a second
    /// costs 2 % overhead at 32 kbit/s. `serial` must differ from other streams in the same file.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written.
    pub fn new(head: OpusHead, tags: &OpusTags, serial: u32, page: SampleCount) -> Result<Self, EncodeError> {
        let mut writer = Self::resume(head, OggState { serial, sequence: 0, granule: 0 }, page)?;
        let mut packet = Vec::new();
        head.write(&mut packet)?;
        writer.write_header(FIRST, &packet);
        packet.clear();
        tags.write(&mut packet);
        writer.write_header(0, &packet);
        Ok(writer)
    }

    /// Continues a stream whose last page left it in `state`. Writes no headers.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written.
    pub fn resume(head: OpusHead, state: OggState, page: SampleCount) -> Result<Self, EncodeError> {
        let mut silence = Vec::new();
        match head.mapping {
            Mapping::Mono => packet::write_silence(960, false, &mut silence)?,
            Mapping::Stereo => packet::write_silence(960, true, &mut silence)?,
            Mapping::TwoMono => packet::join_streams(&packet::SILENCE_20_MS, &packet::SILENCE_20_MS, &mut silence)?,
            Mapping::Other { .. } => head.write(&mut silence)?,
        }
        Ok(Self {
            head,
            page_samples: u32::try_from(page.0).unwrap_or(u32::MAX),
            state,
            granule: state.granule,
            lacing: Vec::with_capacity(MAX_LACING),
            body: Vec::with_capacity(16 * 1024),
            silence,
            out: Vec::with_capacity(32 * 1024),
            ended: false,
        })
    }

    /// The identification header.
    pub fn head(&self) -> &OpusHead {
        &self.head
    }

    /// Where the stream stands at the end of the last closed page.
    pub fn state(&self) -> OggState {
        self.state
    }

    /// Samples of audio written so far, pages still open included; pre-skip is not counted.
    pub fn samples(&self) -> SampleCount {
        SampleCount(self.granule.saturating_sub(u64::from(self.head.pre_skip)))
    }

    /// Adds a packet of `samples` samples at 48 kHz.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where the packet's own header says another length or it is too big for a page,
    /// [`EncodeError::Ended`] after [`finish`](Self::finish).
    pub fn write_packet(&mut self, packet: &[u8], samples: u32) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        if packet::samples(packet) != Some(samples) {
            return Err(EncodeError::Packet("its header tells another duration"));
        }
        let segments = packet.len() / 255 + 1;
        if segments > MAX_LACING {
            return Err(EncodeError::Packet("too big for a page"));
        }
        let full = self.granule - self.state.granule >= u64::from(self.page_samples);
        if full || self.lacing.len() + segments > MAX_LACING {
            self.close_page();
        }
        self.push(packet, samples);
        Ok(())
    }

    /// Closes the open page, if it holds anything, so that everything written can be taken.
    pub fn close_page(&mut self) {
        if !self.lacing.is_empty() {
            self.write_open_page(0, self.granule);
        }
    }

    /// Appends the closed pages to `out` and forgets them. Returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.out.len();
        out.append(&mut self.out);
        taken
    }

    /// Ends the stream so that it plays exactly `total` samples: sets the end flag and the final granule position,
    /// `pre_skip + total` (RFC 7845 §4.4). Where no page is open, the end is carried by one more packet of silence.
    ///
    /// # Errors
    /// [`EncodeError::End`] where that end lies after the last packet or before the last closed page,
    /// [`EncodeError::Ended`] the second time.
    pub fn finish(&mut self, total: SampleCount) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let asked = u64::from(self.head.pre_skip) + total.0;
        let low = self.state.granule;
        let high = if self.lacing.is_empty() { low + 960 } else { self.granule };
        if !(low..=high).contains(&asked) {
            return Err(EncodeError::End { asked, low, high });
        }
        if self.lacing.is_empty() {
            let silence = std::mem::take(&mut self.silence);
            self.push(&silence, 960);
        }
        self.write_open_page(LAST, asked);
        self.ended = true;
        Ok(())
    }

    fn push(&mut self, packet: &[u8], samples: u32) {
        self.lacing.extend(std::iter::repeat_n(255, packet.len() / 255));
        self.lacing.push((packet.len() % 255) as u8);
        self.body.extend_from_slice(packet);
        self.granule += u64::from(samples);
    }

    fn write_open_page(&mut self, flags: u8, granule: u64) {
        let header = PageHeader { flags, granule, serial: self.state.serial, sequence: self.state.sequence };
        write_page(header, &self.lacing, &self.body, &mut self.out);
        self.lacing.clear();
        self.body.clear();
        self.state.sequence = self.state.sequence.wrapping_add(1);
        self.state.granule = granule;
    }

    /// A header packet on pages of its own; a long one goes over several.
    fn write_header(&mut self, flags: u8, packet: &[u8]) {
        let mut lacing = vec![255; packet.len() / 255];
        lacing.push((packet.len() % 255) as u8);
        let mut rest = packet;
        let mut flags = flags;
        let pages = lacing.len().div_ceil(MAX_LACING);
        for (page, lacing) in lacing.chunks(MAX_LACING).enumerate() {
            let (body, after) = rest.split_at(lacing.iter().map(|value| usize::from(*value)).sum());
            let granule = if page + 1 == pages { 0 } else { NO_GRANULE };
            let header = PageHeader { flags, granule, serial: self.state.serial, sequence: self.state.sequence };
            write_page(header, lacing, body, &mut self.out);
            self.state.sequence += 1;
            rest = after;
            flags = CONTINUED;
        }
    }
}
