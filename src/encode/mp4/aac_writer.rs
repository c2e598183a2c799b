//! PCM to AAC in a fragmented MP4 byte stream, without IO.

use super::aac::AacHead;
use super::coding::Coding;
use super::fragments::Fragments;
use crate::encode::sound::{AAC_FRAME, AacEncoder, channels_of, check_total};
use crate::encode::{EncodeError, OpusHead, OpusTags, Patch};
use crate::time::SampleCount;

/// Writes sound as one track of AAC-LC in fragmented MP4, at 48 kHz and 64 kbit/s a channel, into a buffer that the caller
/// empties.
///
/// What the encoder puts in front of the sound is left out by the edit list. A file cut anywhere plays to the end of its last
/// whole fragment; that is up to 64 ms behind what was written.
#[derive(Debug)]
pub struct Mp4AacWriter {
    encoder: AacEncoder,
    fragments: Fragments,
    channels: usize,
    /// Interleaved samples that do not fill a frame yet.
    pending: Vec<f32>,
    /// Packets of nothing still to leave out.
    before: u64,
    /// Samples, all channels together.
    written: u64,
    ended: bool,
}

impl Mp4AacWriter {
    /// A new file, which begins like that of [`Mp4Writer`](super::Mp4Writer).
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written or a fragment that is too long, [`EncodeError::Packet`] where
    /// the encoder refuses.
    pub fn new(head: &OpusHead, tags: &OpusTags, fragment: SampleCount) -> Result<Self, EncodeError> {
        let channels = channels_of(head)?;
        let encoder = AacEncoder::new(channels as u8)?;
        // A decoder needs the packet before the sound, and no other: who ignores the edit list is late by that alone.
        let before = (encoder.delay() / AAC_FRAME as u64).saturating_sub(1);
        let skip = encoder.delay() - before * AAC_FRAME as u64;
        let coding = Coding::aac(&AacHead::low_complexity(channels as u8), encoder.bitrate(), skip);
        Ok(Self {
            pending: Vec::with_capacity(encoder.frame_len()),
            encoder,
            fragments: Fragments::new(coding, tags, fragment)?,
            channels,
            before,
            written: 0,
            ended: false,
        })
    }

    /// Adds interleaved samples at 48 kHz, full scale ±1, of any length. What is louder is limited to full scale, what is
    /// no number becomes 0.
    ///
    /// # Errors
    /// [`EncodeError::Ended`] after [`finish`](Self::finish), [`EncodeError::Packet`] where the encoder fails.
    pub fn write(&mut self, pcm: &[f32]) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let full = self.encoder.frame_len();
        let mut rest = pcm;
        while !rest.is_empty() {
            let (taken, after) = rest.split_at(rest.len().min(full - self.pending.len()));
            self.pending.extend_from_slice(taken);
            rest = after;
            if self.pending.len() == full {
                self.encode_pending()?;
            }
        }
        self.written += pcm.len() as u64;
        Ok(())
    }

    /// Appends what is complete to `out` and forgets it. Returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        self.fragments.take_bytes(out)
    }

    /// Ends the file after `total` samples a channel. Appends the index, and gives what is to be changed in front; the file is
    /// good without.
    ///
    /// # Errors
    /// [`EncodeError::End`] where another number was written, [`EncodeError::Ended`] the second time,
    /// [`EncodeError::Packet`] where the encoder fails.
    pub fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        check_total(self.written, self.channels, total)?;
        self.ended = true;
        // Silence pushes out what the encoder still holds.
        while !self.fragments.reach(total) {
            self.pending.resize(self.encoder.frame_len(), 0.0);
            self.encode_pending()?;
        }
        self.fragments.finish(total)
    }

    fn encode_pending(&mut self) -> Result<(), EncodeError> {
        let packet = self.encoder.encode(&self.pending)?;
        match self.before {
            0 => self.fragments.push(packet, AAC_FRAME as u32)?,
            _ => self.before -= 1,
        }
        self.pending.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::super::{Mp4Reader, faststart};
    use super::*;
    use crate::encode::{Contents, Mapping, patch};

    fn noise(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        (0..count).map(|n| (random.f32() - 0.5) * ((n / 9000) % 3) as f32).collect()
    }

    /// The file of `pcm` that comes in pieces, and what its end puts over the beginning.
    fn file(mapping: Mapping, pcm: &[f32], piece: usize) -> (Vec<u8>, Vec<Patch>) {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", "a room").unwrap();
        let fragment = SampleCount::from_millis(500);
        let mut writer = Mp4AacWriter::new(&OpusHead::new(mapping, 312), &tags, fragment).unwrap();
        let mut bytes = Vec::new();
        for pcm in pcm.chunks(piece) {
            writer.write(pcm).unwrap();
            writer.take_bytes(&mut bytes);
        }
        let total = SampleCount(pcm.len() as u64 / u64::from(mapping.channels()));
        let patches = writer.finish(total).unwrap();
        assert!(matches!(writer.finish(total), Err(EncodeError::Ended)));
        assert!(matches!(writer.write(&[0.0]), Err(EncodeError::Ended)));
        writer.take_bytes(&mut bytes);
        (bytes, patches)
    }

    fn read(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Contents) {
        let mut packets = Vec::new();
        let mut reader = Mp4Reader::new();
        bytes.chunks(piece).for_each(|piece| reader.push_each(piece, &mut |packet, _| packets.push(packet.to_vec())));
        (packets, reader.finish())
    }

    #[test]
    fn the_pieces_make_no_difference() {
        let pcm = noise(60_000);
        for mapping in [Mapping::Mono, Mapping::Stereo] {
            let whole = file(mapping, &pcm, 60_000);
            assert!(whole == file(mapping, &pcm, 1));
            assert!(whole == file(mapping, &pcm, 7001));
        }
    }

    #[test]
    fn what_was_written_is_read_with_and_without_patches() {
        for (mapping, total) in [(Mapping::Mono, 100_001), (Mapping::Stereo, 48_000), (Mapping::TwoMono, 1_024)] {
            let channels = mapping.channels();
            let (mut bytes, patches) = file(mapping, &noise(total * usize::from(channels)), 999);
            let total = total as u64;
            for is_patched in [false, true] {
                let (packets, found) = read(&bytes, 1000);
                assert!(found.is_clean() && found.ended, "{mapping:?} {:?}", found.problems);
                assert_eq!(found.aac, Some(AacHead { object_type: 2, rate: 48_000, channels }));
                assert_eq!((found.head, found.total), (None, SampleCount(total)));
                assert_eq!(found.duration, is_patched.then_some(SampleCount(total)));
                assert_eq!(packets.len() as u64, (total + 1024).div_ceil(1024));
                assert_eq!(found.tags.as_ref().and_then(|tags| tags.get("TITLE")), Some("a room"));
                assert!(patch::apply(&patches, &mut bytes));
            }
        }
    }

    #[test]
    fn even_a_file_of_nothing_ends() {
        for total in [0, 1, 1023, 1024, 1025] {
            let (bytes, _) = file(Mapping::Mono, &noise(total), 5000);
            let (_, found) = read(&bytes, 1000);
            assert!(found.is_clean(), "{total}: {:?}", found.problems);
            assert_eq!(found.total, SampleCount(total as u64));
        }
    }

    #[test]
    fn wherever_it_is_cut_the_whole_fragments_remain() {
        let (mut bytes, patches) = file(Mapping::Mono, &noise(480_000), 960);
        let (packets, _) = read(&bytes, 4096);
        let mut random = fastrand::Rng::with_seed(7);
        for _is_patched in [false, true] {
            for _ in 0..200 {
                let cut = random.usize(..bytes.len());
                let (read, found) = read(&bytes[..cut], random.usize(1..5000));
                assert!(read == packets[..read.len()] && found.whole <= cut as u64, "cut at {cut}");
                let behind = found.total.0 as i64 - (cut as i64 - 1_500) * 6;
                assert!(cut < 8_000 || behind > -48_000, "cut at {cut}: {:?}", found.total);
                assert!(!found.is_clean(), "cut at {cut} of {}", bytes.len());
            }
            patch::apply(&patches, &mut bytes);
        }
    }

    #[test]
    fn a_copy_with_its_index_in_front_has_the_same_packets() {
        let (mut bytes, patches) = file(Mapping::Stereo, &noise(200_002), 960);
        assert!(patch::apply(&patches, &mut bytes));
        let mut copy = Vec::new();
        assert!(faststart(&mut Cursor::new(&bytes), &mut copy).unwrap().is_clean());
        let at = |name: &[u8]| copy.windows(4).position(|window| window == name).unwrap();
        assert!(at(b"moov") < at(b"mdat") && !copy.windows(4).any(|window| window == b"moof"));
        let ((packets, found), (copied, again)) = (read(&bytes, 999), read(&copy, 999));
        assert!(packets == copied && again.is_clean() && again.ended, "{:?}", again.problems);
        assert_eq!((again.total, again.duration), (found.total, found.duration));
        assert_eq!((again.aac, again.tags), (found.aac, found.tags));
        let mut twice = Vec::new();
        faststart(&mut Cursor::new(&copy), &mut twice).unwrap();
        assert!(copy == twice);
    }

    #[test]
    fn damage_does_no_harm() {
        let (bytes, _) = file(Mapping::Mono, &noise(60_000), 960);
        let mut random = fastrand::Rng::with_seed(3);
        for n in 0..2_000 {
            let mut damaged = bytes.clone();
            let front = if n % 2 == 0 { 1_200 } else { damaged.len() };
            (0..random.usize(1..6)).for_each(|_| damaged[random.usize(..front)] = random.u8(..));
            let (one, found) = read(&damaged, random.usize(1..3000));
            let (other, same) = read(&damaged, damaged.len());
            assert!(one == other && found == same);
            let _ = faststart(&mut Cursor::new(&damaged), &mut Vec::new());
        }
    }

    #[test]
    fn samples_beyond_all_bounds_do_no_harm() {
        let pcm: Vec<f32> =
            (0..20_000).map(|n| [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e38, 1e-45][n % 5]).collect();
        assert!(file(Mapping::Mono, &pcm, 512).0.len() > 1000);
    }
}
