//! PCM to WAVE, with RF64 (EBU Tech 3306) for what is longer than 4 GiB.

use super::pcm::{Depth, channels_of, check_total};
use super::pcm_tags;
use crate::encode::Patch;
use crate::encode::{EncodeError, OpusHead, OpusTags};
use crate::time::{SAMPLE_RATE, SampleCount};

/// A size that is not known, or stands in `ds64`.
const UNKNOWN: u32 = u32::MAX;
/// `ds64` without a table: three sizes of 64 bits, and the length of the table.
const DS64: u32 = 28;
/// Where the place kept for `ds64` begins: it has to be the first chunk.
const DS64_AT: u64 = 12;
/// The GUID of a sample format without its first two bytes, which are the format's code.
const SUBFORMAT: [u8; 14] = [0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];

/// Writes one WAVE file into a buffer that the caller empties.
///
/// The chunks are: a place kept for `ds64`, the format, the tags as `LIST INFO`, and the samples last. While it runs, the
/// sizes say "not known" (0xffffffff), which players take as "to the end of the file". [`finish`](Self::finish) gives the
/// patches that put the true sizes in: those of a WAVE below 4 GiB, of an RF64 from there on. Without them, players
/// that take the size at its word stop at 4 GiB.
///
/// TITLE, ARTIST, DATE, ENCODER, and DESCRIPTION or COMMENT become INAM, IART, ICRD, ISFT and ICMT; the format has no
/// place for others.
#[derive(Debug)]
pub struct WavWriter {
    channels: usize,
    depth: Depth,
    /// Bytes before the samples.
    header: u64,
    /// Samples, all channels together.
    written: u64,
    out: Vec<u8>,
    ended: bool,
}

impl WavWriter {
    /// A new file: its header is ready to be taken at once.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written.
    pub fn new(head: &OpusHead, tags: &OpusTags, depth: Depth) -> Result<Self, EncodeError> {
        let channels = channels_of(head)?;
        let mut out = Vec::new();
        out.extend(b"RIFF");
        out.extend(UNKNOWN.to_le_bytes());
        out.extend(b"WAVE");
        push_chunk(b"JUNK", &[0; DS64 as usize], &mut out);
        push_chunk(b"fmt ", &format(channels, depth), &mut out);
        push_chunk(b"LIST", &info(tags), &mut out);
        out.extend(b"data");
        out.extend(UNKNOWN.to_le_bytes());
        Ok(Self { channels, depth, header: out.len() as u64, written: 0, out, ended: false })
    }

    /// Adds interleaved samples at 48 kHz, full scale ±1, of any length.
    ///
    /// # Errors
    /// [`EncodeError::Ended`] after [`finish`](Self::finish).
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let bytes = self.depth.bytes();
        self.out.reserve(pcm.len() * bytes);
        for sample in pcm {
            self.out.extend_from_slice(&self.depth.quantise(*sample).to_le_bytes()[..bytes]);
        }
        self.written += pcm.len() as u64;
        Ok(())
    }

    /// Appends what is complete to `out` and forgets it. Returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.out.len();
        out.append(&mut self.out);
        taken
    }

    /// Ends the file after `total` samples a channel, and gives the true sizes.
    ///
    /// # Errors
    /// [`EncodeError::End`] where another number was written, [`EncodeError::Ended`] the second time.
    pub fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        check_total(self.written, self.channels, total)?;
        self.ended = true;
        let data = self.written * self.depth.bytes() as u64;
        if data % 2 == 1 {
            self.out.push(0);
        }
        let riff = self.header - 8 + data.next_multiple_of(2);
        match u32::try_from(riff) {
            Ok(riff) if riff < UNKNOWN => Ok(vec![
                Patch { offset: 4, bytes: riff.to_le_bytes().to_vec() },
                Patch { offset: self.header - 4, bytes: (data as u32).to_le_bytes().to_vec() },
            ]),
            _ => {
                let mut ds64 = b"ds64".to_vec();
                ds64.extend(DS64.to_le_bytes());
                for size in [riff, data, total.0] {
                    ds64.extend(size.to_le_bytes());
                }
                ds64.extend([0; 4]);
                Ok(vec![Patch { offset: 0, bytes: b"RF64".to_vec() }, Patch { offset: DS64_AT, bytes: ds64 }])
            }
        }
    }
}

/// Appends a chunk, padded to an even length.
fn push_chunk(id: &[u8; 4], body: &[u8], out: &mut Vec<u8>) {
    out.extend(id);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend_from_slice(body);
    if body.len() % 2 == 1 {
        out.push(0);
    }
}

/// The format chunk: plain PCM for 16 bits, extensible for more, as the format demands.
fn format(channels: usize, depth: Depth) -> Vec<u8> {
    const PCM: u16 = 1;
    const EXTENSIBLE: u16 = 0xfffe;
    let frame = channels * depth.bytes();
    let extensible = depth != Depth::Bits16;
    let mut body = Vec::new();
    body.extend(if extensible { EXTENSIBLE } else { PCM }.to_le_bytes());
    body.extend((channels as u16).to_le_bytes());
    body.extend(SAMPLE_RATE.to_le_bytes());
    body.extend((SAMPLE_RATE * frame as u32).to_le_bytes());
    body.extend((frame as u16).to_le_bytes());
    body.extend(u16::from(depth.bits()).to_le_bytes());
    if extensible {
        // Front centre, or front left and front right.
        let speakers: u32 = if channels == 1 { 4 } else { 3 };
        body.extend(22u16.to_le_bytes());
        body.extend(u16::from(depth.bits()).to_le_bytes());
        body.extend(speakers.to_le_bytes());
        body.extend(PCM.to_le_bytes());
        body.extend(SUBFORMAT);
    }
    body
}

/// The body of `LIST INFO`.
fn info(tags: &OpusTags) -> Vec<u8> {
    let comments = pcm_tags::fitting(tags);
    let joined = |name| pcm_tags::joined(&comments, name, "; ");
    let mut body = b"INFO".to_vec();
    for (id, value) in [
        (b"INAM", joined("TITLE")),
        (b"IART", joined("ARTIST")),
        (b"ICRD", joined("DATE")),
        (b"ISFT", pcm_tags::encoder(&comments, tags)),
        (b"ICMT", joined("DESCRIPTION").or_else(|| joined("COMMENT"))),
    ] {
        if let Some(value) = value {
            // The value ends at its first zero byte.
            let mut text: Vec<u8> = value.bytes().take_while(|byte| *byte != 0).collect();
            text.push(0);
            push_chunk(id, &text, &mut body);
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Mapping;

    fn writer(mapping: Mapping, depth: Depth) -> WavWriter {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", "room").unwrap();
        WavWriter::new(&OpusHead::new(mapping, 312), &tags, depth).unwrap()
    }

    fn patched(bytes: &mut [u8], patches: &[Patch]) {
        for patch in patches {
            let at = patch.offset as usize;
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
    }

    #[test]
    fn the_sizes_are_unknown_until_the_end_and_true_after() {
        let mut writer = writer(Mapping::Mono, Depth::Bits24);
        let mut bytes = Vec::new();
        let header = writer.take_bytes(&mut bytes);
        assert_eq!(bytes[4..8], [0xff; 4]);
        assert_eq!(bytes[header - 8..], *b"data\xff\xff\xff\xff");
        writer.write(&[0.5, -2.0, 2.0]).unwrap();
        let patches = writer.finish(SampleCount(3)).unwrap();
        writer.take_bytes(&mut bytes);
        assert_eq!(bytes[header..], [0, 0, 0x40, 0, 0, 0x80, 0xff, 0xff, 0x7f, 0]);
        patched(&mut bytes, &patches);
        assert_eq!(bytes[..4], *b"RIFF");
        assert_eq!(bytes[4..8], (bytes.len() as u32 - 8).to_le_bytes());
        assert_eq!(bytes[header - 4..header], 9u32.to_le_bytes());
    }

    #[test]
    fn from_4_gib_on_it_becomes_an_rf64() {
        for (samples, is_rf64) in [(1_073_741_700, false), (1_073_741_824, true), (5 * 3600 * 48_000 * 4, true)] {
            let mut writer = writer(Mapping::Stereo, Depth::Bits16);
            let mut bytes = Vec::new();
            let header = writer.take_bytes(&mut bytes) as u64;
            writer.written = 2 * samples;
            let patches = writer.finish(SampleCount(samples)).unwrap();
            patched(&mut bytes, &patches);
            assert!(patches.iter().all(|patch| patch.offset < 65_536));
            assert_eq!(bytes.starts_with(b"RF64"), is_rf64);
            if is_rf64 {
                let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
                assert_eq!(bytes[12..20], *b"ds64\x1c\0\0\0");
                assert_eq!([u64_at(20), u64_at(28), u64_at(36)], [header - 8 + 4 * samples, 4 * samples, samples]);
                assert_eq!(bytes[4..8], [0xff; 4]);
            }
        }
    }

    #[test]
    fn the_end_must_be_where_the_samples_end() {
        let mut writer = writer(Mapping::Stereo, Depth::Bits16);
        writer.write(&[0.0; 3]).unwrap();
        assert!(writer.finish(SampleCount(1)).is_err());
        writer.write(&[0.0]).unwrap();
        assert!(writer.finish(SampleCount(3)).is_err());
        writer.finish(SampleCount(2)).unwrap();
        assert!(matches!(writer.write(&[0.0]), Err(EncodeError::Ended)));
        assert!(matches!(writer.finish(SampleCount(2)), Err(EncodeError::Ended)));
    }
}
