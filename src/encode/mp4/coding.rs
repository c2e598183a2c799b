//! How a track's packets are encoded, as far as the boxes around them depend on it.

#[cfg(any(feature = "aac", test))]
use super::aac::AacHead;
use super::boxes::{put, put_u16, put_u32};
use crate::encode::{EncodeError, OpusHead};
use crate::time::SAMPLE_RATE;

/// What of a file is different with another codec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    /// The sample entry.
    pub entry: Vec<u8>,
    /// What its handler is called.
    pub name: &'static str,
    /// Samples at the start that are not played.
    pub skip: u64,
    /// Whether the tags tell that, too: of fragments, ffmpeg goes by these.
    pub is_told_in_tags: bool,
    /// Samples of a usual packet.
    pub usual: u32,
    /// So many packets before a place a decoder may need to sound right there. A group of samples names one of these by its
    /// place.
    pub rolls: &'static [u32],
    /// The samples that these packets have to hold.
    pre_roll: u32,
}

impl Coding {
    /// Opus.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a channel mapping that is not written.
    pub(super) fn opus(head: &OpusHead) -> Result<Self, EncodeError> {
        let mut opus = Vec::new();
        head.write(&mut opus)?;
        Ok(Self {
            entry: opus_entry(&opus),
            name: "Opus",
            skip: u64::from(head.pre_skip),
            is_told_in_tags: false,
            usual: 960,
            // RFC 7845 §4.6: 80 ms, which are so many packets of 2.5, 5, 10, 20, 40 and 80 ms.
            rolls: &[32, 16, 8, 4, 2, 1],
            pre_roll: 3840,
        })
    }

    /// AAC-LC as callreel writes it.
    #[cfg(any(feature = "aac", test))]
    pub(super) fn aac(head: &AacHead, bitrate: u32, skip: u64) -> Self {
        Self::aac_of(audio_entry(b"mp4a", head.channels, |out| head.put_esds(bitrate, out)), skip)
    }

    /// AAC of which the sample entry says how.
    pub(super) fn aac_of(entry: Vec<u8>, skip: u64) -> Self {
        // ISO/IEC 14496-3: a packet's windows overlap with those of the one before.
        Self { entry, name: "AAC", skip, is_told_in_tags: true, usual: 1024, rolls: &[1], pre_roll: 1024 }
    }

    /// Which of the pre-rolls, counted from 1, is enough for packets of `samples` or more.
    pub(super) fn roll_index(&self, samples: u32) -> u32 {
        let enough = self.rolls.iter().rposition(|packets| packets * samples >= self.pre_roll);
        enough.map_or(1, |place| place as u32 + 1)
    }
}

/// The sample entry of Opus, from its identification header as in Ogg, which is little-endian.
fn opus_entry(opus: &[u8]) -> Vec<u8> {
    audio_entry(b"Opus", opus[9], |out| {
        put(b"dOps", out, |out| {
            out.extend([0, opus[9], opus[11], opus[10], opus[15], opus[14], opus[13], opus[12], opus[17], opus[16]]);
            out.extend_from_slice(&opus[18..]);
        });
    })
}

/// A sample entry of sound (ISO/IEC 14496-12 §12.2.3), with what `specific` appends.
fn audio_entry(kind: &[u8; 4], channels: u8, specific: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut entry = Vec::new();
    put(kind, &mut entry, |out| {
        out.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        put_u16(u16::from(channels), out);
        put_u16(16, out);
        put_u32(0, out);
        put_u32(SAMPLE_RATE << 16, out);
        specific(out);
    });
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Mapping;

    #[test]
    fn every_packet_length_of_opus_rolls_80_ms() {
        let opus = Coding::opus(&OpusHead::new(Mapping::Mono, 312)).unwrap();
        let of = |samples| opus.rolls[opus.roll_index(samples) as usize - 1];
        assert_eq!([120, 240, 480, 960, 1920, 2880, 3840, 5760].map(of), [32, 16, 8, 4, 2, 2, 1, 1]);
    }
}
