//! PCM to FLAC (RFC 9639).

use md5::{Digest, Md5};

use super::flac_frame::{self, BLOCK};
use super::pcm::{Depth, channels_of, check_total};
use super::pcm_tags;
use crate::encode::Patch;
use crate::encode::{EncodeError, OpusHead, OpusTags};
use crate::time::{SAMPLE_RATE, SampleCount};

/// Where the contents of STREAMINFO begin.
const STREAMINFO_AT: u64 = 8;
const STREAMINFO: u8 = 0;
const VORBIS_COMMENT: u8 = 4;
const LAST_BLOCK: u8 = 0x80;

/// Writes one FLAC file into a buffer that the caller empties.
///
/// While it runs, the number of samples, the frame sizes and the checksum are 0, which means "not known" (RFC 9639 §8.2);
/// [`finish`](Self::finish) gives the patch that puts them in. Frames are complete as they come out, so a file cut after
/// any of them plays to there. All tags are kept, as Vorbis comments.
pub struct FlacWriter {
    channels: usize,
    depth: Depth,
    /// Interleaved samples of the frame being filled.
    block: Vec<i32>,
    frames: u32,
    /// The smallest and the largest frame, in bytes.
    sizes: Option<(u32, u32)>,
    md5: Md5,
    little_endian: Vec<u8>,
    /// Samples, all channels together.
    written: u64,
    out: Vec<u8>,
    ended: bool,
}

impl std::fmt::Debug for FlacWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlacWriter")
            .field("channels", &self.channels)
            .field("depth", &self.depth)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

impl FlacWriter {
    /// A new file: its header is ready to be taken at once.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written.
    pub fn new(head: &OpusHead, tags: &OpusTags, depth: Depth) -> Result<Self, EncodeError> {
        let channels = channels_of(head)?;
        let mut out = b"fLaC".to_vec();
        let empty = stream_info(channels, depth, None, 0, [0; 16]);
        push_block(STREAMINFO, &empty, &mut out);
        push_block(VORBIS_COMMENT | LAST_BLOCK, &comments(tags), &mut out);
        Ok(Self {
            channels,
            depth,
            block: Vec::with_capacity(BLOCK * channels),
            frames: 0,
            sizes: None,
            md5: Md5::new(),
            little_endian: Vec::with_capacity(BLOCK * channels * depth.bytes()),
            written: 0,
            out,
            ended: false,
        })
    }

    /// Adds interleaved samples at 48 kHz, full scale ±1, of any length.
    ///
    /// # Errors
    /// [`EncodeError::Ended`] after [`finish`](Self::finish).
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let full = BLOCK * self.channels;
        let mut rest = pcm;
        while !rest.is_empty() {
            let (taken, after) = rest.split_at(rest.len().min(full - self.block.len()));
            self.block.extend(taken.iter().map(|sample| self.depth.quantise(*sample)));
            rest = after;
            if self.block.len() == full {
                self.close_frame();
            }
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

    /// Ends the file after `total` samples a channel, and gives the true STREAMINFO.
    ///
    /// # Errors
    /// [`EncodeError::End`] where another number was written, [`EncodeError::Ended`] the second time.
    pub fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        check_total(self.written, self.channels, total)?;
        if !self.block.is_empty() {
            self.close_frame();
        }
        self.ended = true;
        let digest = std::mem::take(&mut self.md5).finalize().into();
        let bytes = stream_info(self.channels, self.depth, self.sizes, total.0, digest);
        Ok(vec![Patch { offset: STREAMINFO_AT, bytes }])
    }

    fn close_frame(&mut self) {
        self.little_endian.clear();
        for sample in &self.block {
            self.little_endian.extend_from_slice(&sample.to_le_bytes()[..self.depth.bytes()]);
        }
        self.md5.update(&self.little_endian);
        let start = self.out.len();
        flac_frame::write(&self.block, self.channels, self.depth, self.frames, &mut self.out);
        let size = (self.out.len() - start) as u32;
        let (smallest, largest) = self.sizes.unwrap_or((size, size));
        self.sizes = Some((smallest.min(size), largest.max(size)));
        self.frames += 1;
        self.block.clear();
    }
}

fn push_block(kind: u8, body: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(body);
}

/// The contents of STREAMINFO (RFC 9639 §8.2).
fn stream_info(channels: usize, depth: Depth, sizes: Option<(u32, u32)>, total: u64, digest: [u8; 16]) -> Vec<u8> {
    let (smallest, largest) = sizes.unwrap_or((0, 0));
    let mut body = Vec::with_capacity(34);
    for _ in 0..2 {
        body.extend((BLOCK as u16).to_be_bytes());
    }
    body.extend_from_slice(&smallest.to_be_bytes()[1..]);
    body.extend_from_slice(&largest.to_be_bytes()[1..]);
    // 36 bits; 0 means that the number is not known.
    let total = if total >> 36 == 0 { total } else { 0 };
    let packed =
        u64::from(SAMPLE_RATE) << 44 | (channels as u64 - 1) << 41 | (u64::from(depth.bits()) - 1) << 36 | total;
    body.extend(packed.to_be_bytes());
    body.extend(digest);
    body
}

/// The contents of the comment block (RFC 9639 §8.6).
fn comments(tags: &OpusTags) -> Vec<u8> {
    let mut body = Vec::new();
    let push = |parts: &[&str], body: &mut Vec<u8>| {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        body.extend((length as u32).to_le_bytes());
        parts.iter().for_each(|part| body.extend_from_slice(part.as_bytes()));
    };
    push(&[&tags.vendor], &mut body);
    let kept = pcm_tags::fitting(tags);
    body.extend((kept.len() as u32).to_le_bytes());
    kept.iter().for_each(|(name, value)| push(&[name, "=", value], &mut body));
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Mapping;

    fn file(mapping: Mapping, depth: Depth, pcm: &[f32], piece: usize) -> Vec<u8> {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", "room").unwrap();
        let mut writer = FlacWriter::new(&OpusHead::new(mapping, 312), &tags, depth).unwrap();
        let mut bytes = Vec::new();
        for pcm in pcm.chunks(piece) {
            writer.write(pcm).unwrap();
            writer.take_bytes(&mut bytes);
        }
        let total = pcm.len() as u64 / u64::from(mapping.channels());
        let patches = writer.finish(SampleCount(total)).unwrap();
        writer.take_bytes(&mut bytes);
        for patch in patches {
            let at = patch.offset as usize;
            bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
        }
        bytes
    }

    fn noise(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(count as u64);
        (0..count).map(|_| random.f32() * 2.4 - 1.2).collect()
    }

    #[test]
    fn samples_come_back_as_they_were_quantised_whatever_the_length() {
        for (mapping, depth) in [(Mapping::Mono, Depth::Bits16), (Mapping::TwoMono, Depth::Bits24)] {
            let channels = usize::from(mapping.channels());
            for count in (1..70).chain([4095, 4096, 4097, 4100, 4130, 9000]) {
                let pcm = noise(count * channels);
                let bytes = file(mapping, depth, &pcm, 1000);
                let mut reader = claxon::FlacReader::new(&bytes[..]).unwrap();
                let info = reader.streaminfo();
                assert_eq!((info.samples, info.bits_per_sample), (Some(count as u64), u32::from(depth.bits())));
                let got: Vec<i32> = reader.samples().map(Result::unwrap).collect();
                let expected: Vec<i32> = pcm.iter().map(|sample| depth.quantise(*sample)).collect();
                assert!(got == expected, "{count} samples");
            }
        }
    }

    #[test]
    fn every_way_to_tell_two_channels_is_used_and_exact() {
        let (one, other) = (noise(2000), noise(1999));
        let mut told = std::collections::BTreeSet::new();
        for mix in 0..49 {
            let (left, right) = ((mix / 7 - 3) as f32 * 0.1, (mix % 7 - 3) as f32 * 0.1);
            let pcm: Vec<f32> =
                one.iter().zip(&other).flat_map(|(a, b)| [0.4 * a + left * b, 0.4 * a + right * b]).collect();
            let bytes = file(Mapping::Stereo, Depth::Bits16, &pcm, 9000);
            let mut reader = claxon::FlacReader::new(&bytes[..]).unwrap();
            let got: Vec<i32> = reader.samples().map(Result::unwrap).collect();
            let expected: Vec<i32> = pcm.iter().map(|sample| Depth::Bits16.quantise(*sample)).collect();
            assert!(got == expected, "{left} {right}");
            let frame = bytes.windows(2).position(|two| two == [0xff, 0xf8]).unwrap();
            told.insert(bytes[frame + 3] >> 4);
        }
        assert_eq!(told, [1, 8, 9, 10].into());
    }

    #[test]
    fn the_pieces_make_no_difference() {
        let pcm = noise(20_000);
        let whole = file(Mapping::Stereo, Depth::Bits16, &pcm, 20_000);
        assert!(whole == file(Mapping::Stereo, Depth::Bits16, &pcm, 1));
        assert!(whole == file(Mapping::Stereo, Depth::Bits16, &pcm, 777));
    }

    #[test]
    fn the_end_must_be_where_the_samples_end() {
        let mut writer = FlacWriter::new(&OpusHead::new(Mapping::Mono, 0), &OpusTags::new(), Depth::Bits16).unwrap();
        writer.write(&[0.0; 5]).unwrap();
        assert!(writer.finish(SampleCount(6)).is_err());
        writer.finish(SampleCount(5)).unwrap();
        assert!(matches!(writer.finish(SampleCount(5)), Err(EncodeError::Ended)));
    }
}
