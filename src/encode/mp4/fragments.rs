//! Packets of any codec to a fragmented MP4 byte stream, without IO.

use super::boxes::{put, put_full, put_u32, put_u64};
use super::coding::Coding;
use super::movie::{self, Movie, Places};
use super::tags::{self, Gapless};
use crate::encode::{EncodeError, OpusTags, Patch};
use crate::time::SampleCount;

/// The longest fragment.
const MAX_FRAGMENT: SampleCount = SampleCount::from_millis(30_000);

/// Samples between two entries of the index.
const INDEX_EVERY: u64 = 5 * 48_000;

/// Writes one track as fragmented MP4 into a buffer that its owner empties.
///
/// A fragment is closed when it is full and the next packet comes, so the last packet always waits for what it turns out to
/// be. The bytes depend on the packets alone, not on when they are taken.
///
/// After warming up it allocates only for the index (16 bytes each 5 s), as long as the bytes are taken.
#[derive(Debug)]
pub(super) struct Fragments {
    coding: Coding,
    fragment_samples: u64,
    places: Places,
    sequence: u32,
    /// Bytes of the stream so far, whether taken or not.
    written: u64,
    /// Where the open fragment begins, and where the last packet ends, in samples, what is skipped included.
    start: u64,
    granule: u64,
    /// Sizes and durations of the open fragment's samples.
    samples: Vec<(u32, u32)>,
    body: Vec<u8>,
    /// The shortest packet of the fragment before.
    shortest_before: u32,
    /// Times and places of fragments.
    index: Vec<(u64, u64)>,
    out: Vec<u8>,
    ended: bool,
}

impl Fragments {
    /// A new file: what comes before the first fragment is ready to be taken at once.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a fragment that is too long.
    pub(super) fn new(coding: Coding, tags: &OpusTags, fragment: SampleCount) -> Result<Self, EncodeError> {
        if fragment > MAX_FRAGMENT {
            return Err(EncodeError::Config {
                setting: "fragment",
                value: format!("{} s", fragment.as_secs_f64()),
                allowed: "up to 30 s",
            });
        }
        let mut out = Vec::with_capacity(32 * 1024);
        let places = movie::write_front(&coding, tags, &Movie::Fragmented, &mut out);
        Ok(Self {
            coding,
            fragment_samples: fragment.0,
            places,
            sequence: 1,
            written: out.len() as u64,
            start: 0,
            granule: 0,
            samples: Vec::new(),
            body: Vec::with_capacity(16 * 1024),
            shortest_before: u32::MAX,
            index: Vec::new(),
            out,
            ended: false,
        })
    }

    /// Samples that were written so far and are played, the open fragment included.
    pub(super) fn samples(&self) -> SampleCount {
        SampleCount(self.granule.saturating_sub(self.coding.skip))
    }

    /// Whether packets so far hold all of a file that plays `total` samples.
    #[cfg(feature = "aac")]
    pub(super) fn reach(&self, total: SampleCount) -> bool {
        self.granule >= self.coding.skip.saturating_add(total.0)
    }

    /// Adds a packet that lasts `samples` samples at 48 kHz.
    ///
    /// # Errors
    /// [`EncodeError::Ended`] after [`finish`](Self::finish).
    pub(super) fn push(&mut self, packet: &[u8], samples: u32) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        if !self.samples.is_empty() && self.granule - self.start >= self.fragment_samples {
            self.close_fragment();
        }
        self.samples.push((packet.len() as u32, samples));
        self.body.extend_from_slice(packet);
        self.granule += u64::from(samples);
        Ok(())
    }

    /// Appends what is complete to `out` and forgets it. Returns how many bytes these were.
    pub(super) fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.out.len();
        out.append(&mut self.out);
        taken
    }

    /// Ends the file so that it plays exactly `total` samples: packets after that end are left out, and the last one is said
    /// to be as long as is to be played of it. Appends the index, and gives what is to be changed in front.
    ///
    /// # Errors
    /// [`EncodeError::End`] where that end lies after the last packet or before the open fragment,
    /// [`EncodeError::Ended`] the second time.
    pub(super) fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let end = self.coding.skip.saturating_add(total.0);
        if !(self.start..=self.granule).contains(&end) {
            return Err(EncodeError::End { asked: end, low: self.start, high: self.granule });
        }
        let mut rest = 0;
        while let Some((size, duration)) = self.samples.last_mut() {
            let start = self.granule - u64::from(*duration);
            if start < end {
                rest = self.granule.saturating_sub(end);
                *duration = (end.min(self.granule) - start) as u32;
                break;
            }
            self.body.truncate(self.body.len() - *size as usize);
            self.samples.pop();
            self.granule = start;
        }
        self.close_fragment();
        self.ended = true;
        self.write_index();
        let mut patches: Vec<Patch> = self
            .places
            .durations
            .iter()
            .map(|place| Patch { offset: *place, bytes: total.0.to_be_bytes().to_vec() })
            .collect();
        if let Some(place) = self.places.extends {
            let mut extends = Vec::new();
            put_full(b"mehd", 1, 0, &mut extends, |out| put_u64(total.0, out));
            patches.push(Patch { offset: place, bytes: extends });
        }
        if let Some(offset) = self.places.gapless {
            let mut bytes = Vec::new();
            tags::put_gapless(Gapless { skip: self.coding.skip, rest, total }, &mut bytes);
            patches.push(Patch { offset, bytes });
        }
        Ok(patches)
    }

    fn close_fragment(&mut self) {
        const BASE_IS_MOOF: u32 = 0x02_0000;
        let Some((_, first)) = self.samples.first().copied() else { return };
        if self.index.last().is_none_or(|(last, _)| self.start >= last + INDEX_EVERY) {
            self.index.push((self.start, self.written));
        }
        let before = self.out.len();
        let equal = self.samples.iter().all(|(_, duration)| *duration == first);
        let shortest = self.samples.iter().map(|(_, duration)| *duration).min().unwrap_or(first);
        let Self { coding, samples, body, out, sequence, start, shortest_before, .. } = self;
        let mut data_offset_at = 0;
        put(b"moof", out, |out| {
            put_full(b"mfhd", 0, 0, out, |out| put_u32(*sequence, out));
            put(b"traf", out, |out| {
                put_full(b"tfhd", 0, BASE_IS_MOOF | 8, out, |out| {
                    put_u32(1, out);
                    put_u32(first, out);
                });
                put_full(b"tfdt", 1, 0, out, |out| put_u64(*start, out));
                // The data's place and the samples' sizes, and durations where they differ.
                put_full(b"trun", 0, if equal { 0x201 } else { 0x301 }, out, |out| {
                    put_u32(samples.len() as u32, out);
                    data_offset_at = out.len();
                    put_u32(0, out);
                    for (size, duration) in samples.iter() {
                        if !equal {
                            put_u32(*duration, out);
                        }
                        put_u32(*size, out);
                    }
                });
                movie::put_roll_group(coding, samples.len() as u32, shortest.min(*shortest_before), out);
            });
        });
        let data_offset = (out.len() - before + 8) as u32;
        out[data_offset_at..data_offset_at + 4].copy_from_slice(&data_offset.to_be_bytes());
        put(b"mdat", out, |out| out.extend_from_slice(body));
        self.written += (self.out.len() - before) as u64;
        self.sequence = self.sequence.wrapping_add(1);
        self.shortest_before = shortest;
        self.samples.clear();
        self.body.clear();
        self.start = self.granule;
    }

    fn write_index(&mut self) {
        let before = self.out.len();
        put(b"mfra", &mut self.out, |out| {
            put_full(b"tfra", 1, 0, out, |out| {
                put_u32(1, out);
                put_u32(0, out);
                put_u32(self.index.len() as u32, out);
                for (time, place) in &self.index {
                    put_u64(*time, out);
                    put_u64(*place, out);
                    out.extend([1, 1, 1]);
                }
            });
            let size = (out.len() - before + 16) as u32;
            put_full(b"mfro", 0, 0, out, |out| put_u32(size, out));
        });
        self.written += (self.out.len() - before) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::super::boxes::{Fields, find};
    use super::*;
    use crate::encode::{Mapping, OpusHead, packet::SILENCE_20_MS};

    #[test]
    fn the_index_points_to_fragments() {
        let head = OpusHead::new(Mapping::Mono, 312);
        let coding = Coding::opus(&head).unwrap();
        let mut writer = Fragments::new(coding, &OpusTags::new(), SampleCount::from_millis(500)).unwrap();
        (0..1000).for_each(|_| writer.push(&SILENCE_20_MS, 960).unwrap());
        writer.finish(SampleCount(1000 * 960 - 312)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        let mut index = Fields(find(&bytes, &[b"mfra", b"tfra"]).unwrap());
        index.skip(12).unwrap();
        let count = index.u32().unwrap();
        for n in 0..count {
            let (time, place) = (index.u64().unwrap(), index.u64().unwrap() as usize);
            let tfdt = find(&bytes[place..], &[b"moof", b"traf", b"tfdt"]).unwrap();
            assert_eq!((time, &tfdt[4..]), (u64::from(n) * INDEX_EVERY, &time.to_be_bytes()[..]));
            index.skip(3).unwrap();
        }
        assert_eq!((count, index.0.len()), (4, 0));
        let size = u32::from_be_bytes(*bytes.last_chunk().unwrap()) as usize;
        assert_eq!(bytes[bytes.len() - size + 4..][..4], *b"mfra");
    }
}
