//! The packets of a whole recording as MP4 with its index in front.

use std::io::{self, Read, Seek, SeekFrom, Write};

use super::boxes::{put_u32, put_u64};
use super::coding::Coding;
use super::movie::{self, Movie};
use super::reader::Mp4Reader;
use super::samples::Samples;
use crate::encode::{Contents, EncodeError, OpusHead, OpusTags, packet};
use crate::time::SampleCount;

/// Makes the front of an MP4 file from packets that are seen a first time.
///
/// It takes two passes, as the index comes before the data and has a size for each packet: [`add`](Self::add) all packets,
/// write what [`finish`](Self::finish) gives, and then write the packets that it kept, one after the other.
#[derive(Clone, Debug)]
pub struct Progressive {
    coding: Coding,
    tags: OpusTags,
    samples: Samples,
}

/// The front of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Front {
    /// All that comes before the first packet.
    pub bytes: Vec<u8>,
    /// Packets that follow.
    pub packets: u32,
    /// Bytes that these are.
    pub data: u64,
}

impl Progressive {
    /// An index without packets, which will be of Opus.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written.
    pub fn new(head: &OpusHead, tags: &OpusTags) -> Result<Self, EncodeError> {
        Ok(Self { coding: Coding::opus(head)?, tags: tags.clone(), samples: Samples::default() })
    }

    /// Adds a packet of `samples` samples at 48 kHz; 4 bytes of it are kept.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where the packet's own header says another length.
    pub fn add(&mut self, packet: &[u8], samples: u32) -> Result<(), EncodeError> {
        if packet::samples(packet) != Some(samples) {
            return Err(EncodeError::Packet("its header tells another duration"));
        }
        self.samples.push(packet.len() as u32, samples);
        Ok(())
    }

    /// What comes before the packets in a file that plays exactly `total` samples. Packets after that end are not counted.
    ///
    /// # Errors
    /// [`EncodeError::End`] where that end lies after the last packet.
    pub fn finish(mut self, total: SampleCount) -> Result<Front, EncodeError> {
        let end = self.coding.skip.saturating_add(total.0);
        if end > self.samples.duration {
            return Err(EncodeError::End { asked: end, low: 0, high: self.samples.duration });
        }
        self.samples.cut(end);
        let wide = self.samples.is_wide();
        let header = if wide { 16 } else { 8 };
        let front = |data| {
            let mut bytes = Vec::new();
            let movie = Movie::Progressive { samples: &self.samples, data, total };
            movie::write_front(&self.coding, &self.tags, &movie, &mut bytes);
            bytes
        };
        let length = front(0).len() as u64;
        let mut bytes = front(length + header);
        let size = header + self.samples.bytes;
        if wide {
            put_u32(1, &mut bytes);
            bytes.extend_from_slice(b"mdat");
            put_u64(size, &mut bytes);
        } else {
            put_u32(size as u32, &mut bytes);
            bytes.extend_from_slice(b"mdat");
        }
        Ok(Front { bytes, packets: self.samples.count(), data: self.samples.bytes })
    }
}

/// Copies an MP4 file of Opus or AAC, of whatever kind, from where `input` stands to one with its index in front. Gives what was found
/// in it; what could be read is copied even if something is wrong with it.
///
/// # Errors
/// What reading and writing give, and [`io::ErrorKind::InvalidData`] where there is nothing to copy.
pub fn faststart(input: &mut (impl Read + Seek), output: &mut impl Write) -> io::Result<Contents> {
    let start = input.stream_position()?;
    let mut reader = Mp4Reader::new();
    let mut index = Samples::default();
    let mut add = |packet: &[u8], samples| index.push(packet.len() as u32, samples);
    read_all(input, &mut reader, &mut add)?;
    let mut again = reader.fresh();
    if reader.second_reading().is_some() {
        reader = again.clone();
        input.seek(SeekFrom::Start(start))?;
        read_all(input, &mut reader, &mut add)?;
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let coding = reader.coding().transpose().map_err(invalid)?;
    let found = reader.finish();
    let (Some(coding), Some(tags)) = (coding, &found.tags) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no track of Opus or AAC"));
    };
    let progressive = Progressive { coding, tags: tags.clone(), samples: index };
    let front = progressive.finish(found.total).map_err(invalid)?;
    output.write_all(&front.bytes)?;
    input.seek(SeekFrom::Start(start))?;
    let (mut left, mut result) = (front.packets, Ok(()));
    read_all(input, &mut again, &mut |packet, _| {
        if left > 0 && result.is_ok() {
            left -= 1;
            result = output.write_all(packet);
        }
    })?;
    result?;
    Ok(found)
}

fn read_all(input: &mut impl Read, reader: &mut Mp4Reader, each: &mut dyn FnMut(&[u8], u32)) -> io::Result<()> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        match input.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(length) => reader.push_each(&piece[..length], each),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
}
