//! Opus packets to a WebM byte stream, without IO.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

use super::{TIMESTAMP_SCALE, ebml, id};
use crate::encode::{EncodeError, OpusHead, OpusTags, Patch, packet};
use crate::time::{SAMPLE_RATE, SampleCount};

/// The longest cluster: places within one are signed 16-bit milliseconds.
const MAX_CLUSTER: SampleCount = SampleCount::from_millis(30_000);

/// Decoders need this long to sound right after a seek (RFC 7845 §4.6), in nanoseconds.
const SEEK_PRE_ROLL: u64 = 80_000_000;

/// Ticks between two entries of the index: at 32 kbit/s, a seek reads 20 KB more than it needs.
const CUE_EVERY: u64 = 5_000;

/// A SeekHead's entry: its header, the 4-byte identifier and the 8-byte position with theirs.
const SEEK_ENTRY: usize = 3 + 7 + 11;

/// A Duration element: its header and a double.
const DURATION_ELEMENT: usize = 3 + 8;

/// Writes one track of Opus as WebM into a buffer that the caller empties.
///
/// A cluster is closed when it is full and the next packet comes, so the last packet always waits for what it turns out to
/// be. A file cut anywhere plays to the end of its last whole cluster. The bytes depend on the packets alone, not on when
/// they are taken.
///
/// After warming up it allocates only for the index (16 bytes each 5 s), as long as the caller takes the bytes.
#[derive(Debug)]
pub struct WebmWriter {
    head: OpusHead,
    cluster_samples: u64,
    /// Where the segment's body begins; positions in the index count from there.
    segment: u64,
    duration_at: u64,
    seek_at: u64,
    /// Identifiers and positions of what the SeekHead names.
    seeks: Vec<(u32, u64)>,
    /// Bytes of the stream so far, whether taken or not.
    written: u64,
    /// Where the open cluster begins, and where the last packet ends, in samples, pre-skip included.
    start: u64,
    granule: u64,
    blocks: Vec<Block>,
    body: Vec<u8>,
    /// Times in ticks and positions of clusters.
    cues: Vec<(u64, u64)>,
    out: Vec<u8>,
    ended: bool,
}

/// A block of the open cluster.
#[derive(Clone, Copy, Debug)]
struct Block {
    /// Where it begins in the cluster's blocks.
    at: usize,
    /// How long the packet is in it.
    packet: usize,
    /// Where the packet begins in samples.
    start: u64,
}

impl WebmWriter {
    /// A new file: what comes before the first cluster is ready to be taken at once. Clusters hold about `cluster` of audio,
    /// at most 30 s; 250 ms cost 16 bytes each, and a packet 6.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for a mapping that is not written or a cluster that is too long.
    pub fn new(head: &OpusHead, tags: &OpusTags, cluster: SampleCount) -> Result<Self, EncodeError> {
        if cluster > MAX_CLUSTER {
            return Err(EncodeError::Config {
                setting: "cluster",
                value: format!("{} s", cluster.as_secs_f64()),
                allowed: "up to 30 s",
            });
        }
        let mut codec_private = Vec::new();
        head.write(&mut codec_private)?;
        let mut writer = Self {
            head: *head,
            cluster_samples: cluster.0,
            segment: 0,
            duration_at: 0,
            seek_at: 0,
            seeks: Vec::new(),
            written: 0,
            start: 0,
            granule: 0,
            blocks: Vec::new(),
            body: Vec::with_capacity(16 * 1024),
            cues: Vec::new(),
            out: Vec::with_capacity(32 * 1024),
            ended: false,
        };
        writer.write_front(&codec_private, tags);
        writer.written = writer.out.len() as u64;
        Ok(writer)
    }

    /// Samples of audio written so far, the open cluster included; pre-skip is not counted.
    pub fn samples(&self) -> SampleCount {
        SampleCount(self.granule.saturating_sub(u64::from(self.head.pre_skip)))
    }

    /// Adds a packet of `samples` samples at 48 kHz.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where the packet's own header says another length,
    /// [`EncodeError::Ended`] after [`finish`](Self::finish).
    pub fn write_packet(&mut self, packet: &[u8], samples: u32) -> Result<(), EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        if packet::samples(packet) != Some(samples) {
            return Err(EncodeError::Packet("its header tells another duration"));
        }
        if !self.blocks.is_empty() && self.granule - self.start >= self.cluster_samples {
            self.close_cluster();
        }
        let offset = (ticks(self.granule) - ticks(self.start)) as u16;
        self.blocks.push(Block { at: self.body.len(), packet: packet.len(), start: self.granule });
        ebml::put_id(id::SIMPLE_BLOCK, &mut self.body);
        ebml::put_size(4 + packet.len() as u64, &mut self.body);
        put_block(offset, 0x80, packet, &mut self.body);
        self.granule += u64::from(samples);
        Ok(())
    }

    /// Appends what is complete to `out` and forgets it. Returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        let taken = self.out.len();
        out.append(&mut self.out);
        taken
    }

    /// Ends the file so that it plays exactly `total` samples: packets after that end are left out, and the last one says how
    /// much of it is to be dropped. Appends the index, and gives what is to be changed in front; the file is good without.
    ///
    /// # Errors
    /// [`EncodeError::End`] where that end lies after the last packet or before the open cluster,
    /// [`EncodeError::Ended`] the second time.
    pub fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        if self.ended {
            return Err(EncodeError::Ended);
        }
        let end = u64::from(self.head.pre_skip).saturating_add(total.0);
        if !(self.start..=self.granule).contains(&end) {
            return Err(EncodeError::End { asked: end, low: self.start, high: self.granule });
        }
        while let Some(block) = self.blocks.pop_if(|block| block.start >= end) {
            self.body.truncate(block.at);
            self.granule = block.start;
        }
        self.trim(self.granule - end.min(self.granule));
        self.close_cluster();
        self.ended = true;
        self.write_cues();
        Ok(self.patches(total))
    }

    /// What comes before the first cluster. The parts to be patched come before everything that may be long.
    fn write_front(&mut self, codec_private: &[u8], tags: &OpusTags) {
        let out = &mut self.out;
        ebml::put_master(id::EBML, out, |out| {
            ebml::put_uint(id::EBML_VERSION, 1, out);
            ebml::put_uint(id::EBML_READ_VERSION, 1, out);
            ebml::put_uint(id::EBML_MAX_ID_LENGTH, 4, out);
            ebml::put_uint(id::EBML_MAX_SIZE_LENGTH, 8, out);
            ebml::put_text(id::DOC_TYPE, "webm", out);
            ebml::put_uint(id::DOC_TYPE_VERSION, 4, out);
            ebml::put_uint(id::DOC_TYPE_READ_VERSION, 2, out);
        });
        ebml::put_id(id::SEGMENT, out);
        out.extend(ebml::UNKNOWN_SIZE);
        self.segment = out.len() as u64;
        self.seek_at = self.segment;

        let (info, duration_in_info) = info(tags);
        let tracks = tracks(&self.head, codec_private, tags);
        let tags = tags_element(tags);
        let parts = [(id::INFO, &info), (id::TRACKS, &tracks), (id::TAGS, &tags)];
        let parts: Vec<_> = parts.into_iter().filter(|(_, part)| !part.is_empty()).collect();
        let mut at = seek_head_len(parts.len() + 1) as u64;
        self.duration_at = self.segment + at + duration_in_info as u64;
        for (id, part) in &parts {
            self.seeks.push((*id, at));
            at += part.len() as u64;
        }
        put_seek_head(&self.seeks, &mut self.out);
        ebml::put_void(SEEK_ENTRY, &mut self.out);
        parts.iter().for_each(|(_, part)| self.out.extend_from_slice(part));
    }

    /// Makes the open cluster's last block one of which `padding` samples are dropped.
    fn trim(&mut self, padding: u64) {
        let Some(block) = self.blocks.last().filter(|_| padding > 0) else { return };
        let packet = self.body.split_off(self.body.len() - block.packet);
        self.body.truncate(block.at);
        let offset = (ticks(block.start) - ticks(self.start)) as u16;
        ebml::put_master(id::BLOCK_GROUP, &mut self.body, |out| {
            ebml::put_master(id::BLOCK, out, |out| put_block(offset, 0, &packet, out));
            // At most 120 ms: the sign bit stays clear.
            ebml::put(id::DISCARD_PADDING, &(nanos(padding) as u32).to_be_bytes(), out);
        });
    }

    fn close_cluster(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let time = ticks(self.start);
        if self.cues.last().is_none_or(|(last, _)| time >= last + CUE_EVERY) {
            self.cues.push((time, self.written - self.segment));
        }
        let before = self.out.len();
        ebml::put_id(id::CLUSTER, &mut self.out);
        let mut timestamp = [id::TIMESTAMP as u8, 0x88, 0, 0, 0, 0, 0, 0, 0, 0];
        timestamp[2..].copy_from_slice(&time.to_be_bytes());
        ebml::put_size((timestamp.len() + self.body.len()) as u64, &mut self.out);
        self.out.extend(timestamp);
        self.out.extend_from_slice(&self.body);
        self.written += (self.out.len() - before) as u64;
        self.body.clear();
        self.blocks.clear();
        self.start = self.granule;
    }

    fn write_cues(&mut self) {
        if self.cues.is_empty() {
            return;
        }
        self.seeks.push((id::CUES, self.written - self.segment));
        let before = self.out.len();
        ebml::put_master(id::CUES, &mut self.out, |out| {
            for (time, position) in &self.cues {
                ebml::put_master(id::CUE_POINT, out, |out| {
                    ebml::put_uint(id::CUE_TIME, *time, out);
                    ebml::put_master(id::CUE_TRACK_POSITIONS, out, |out| {
                        ebml::put_uint(id::CUE_TRACK, 1, out);
                        ebml::put_uint(id::CUE_CLUSTER_POSITION, *position, out);
                    });
                });
            }
        });
        self.written += (self.out.len() - before) as u64;
    }

    fn patches(&self, total: SampleCount) -> Vec<Patch> {
        let mut duration = Vec::with_capacity(DURATION_ELEMENT);
        let scale = TIMESTAMP_SCALE as f64 / 1e9;
        ebml::put_float(id::DURATION, total.0 as f64 / (f64::from(SAMPLE_RATE) * scale), &mut duration);
        let size = ebml::wide_size(self.written - self.segment);
        let mut patches = vec![Patch { offset: self.segment - 8, bytes: size.to_vec() }];
        if !self.cues.is_empty() {
            let mut seek_head = Vec::with_capacity(seek_head_len(self.seeks.len()));
            put_seek_head(&self.seeks, &mut seek_head);
            patches.push(Patch { offset: self.seek_at, bytes: seek_head });
        }
        patches.push(Patch { offset: self.duration_at, bytes: duration });
        patches
    }
}

/// Ticks nearest to a place in samples.
fn ticks(samples: u64) -> u64 {
    (samples + 24) / 48
}

/// Nanoseconds nearest to an amount of samples.
fn nanos(samples: u64) -> u64 {
    (samples * 62_500 + 1) / 3
}

fn put_block(offset: u16, flags: u8, packet: &[u8], out: &mut Vec<u8>) {
    out.push(0x81);
    out.extend(offset.to_be_bytes());
    out.push(flags);
    out.extend_from_slice(packet);
}

fn seek_head_len(entries: usize) -> usize {
    5 + entries * SEEK_ENTRY
}

fn put_seek_head(seeks: &[(u32, u64)], out: &mut Vec<u8>) {
    ebml::put_master(id::SEEK_HEAD, out, |out| {
        for (id, position) in seeks {
            ebml::put_master(id::SEEK, out, |out| {
                ebml::put(id::SEEK_ID, &id.to_be_bytes(), out);
                ebml::put(id::SEEK_POSITION, &position.to_be_bytes(), out);
            });
        }
    });
}

/// The Info element, and where in it room for the duration is.
fn info(tags: &OpusTags) -> (Vec<u8>, usize) {
    let mut front = Vec::new();
    ebml::put_uint(id::TIMESTAMP_SCALE, TIMESTAMP_SCALE, &mut front);
    let place = front.len();
    let mut body = front;
    ebml::put_void(DURATION_ELEMENT, &mut body);
    let date = tags.get("DATE").and_then(|date| OffsetDateTime::parse(date, &Rfc3339).ok());
    if let Some(nanos) = date.and_then(since_2001) {
        ebml::put(id::DATE_UTC, &nanos.to_be_bytes(), &mut body);
    }
    if let Some(title) = tags.get("TITLE") {
        ebml::put_text(id::TITLE, title, &mut body);
    }
    ebml::put_text(id::MUXING_APP, &tags.vendor, &mut body);
    ebml::put_text(id::WRITING_APP, tags.get("ENCODER").unwrap_or(&tags.vendor), &mut body);
    let mut info = Vec::new();
    ebml::put(id::INFO, &body, &mut info);
    let place = place + info.len() - body.len();
    (info, place)
}

/// Nanoseconds since the beginning of 2001, from which Matroska counts.
fn since_2001(date: OffsetDateTime) -> Option<i64> {
    const YEAR_2001: i128 = 978_307_200_000_000_000;
    i64::try_from(date.unix_timestamp_nanos() - YEAR_2001).ok()
}

fn tracks(head: &OpusHead, codec_private: &[u8], tags: &OpusTags) -> Vec<u8> {
    let mut tracks = Vec::new();
    ebml::put_master(id::TRACKS, &mut tracks, |out| {
        ebml::put_master(id::TRACK_ENTRY, out, |out| {
            ebml::put_uint(id::TRACK_NUMBER, 1, out);
            ebml::put_uint(id::TRACK_UID, uid(tags), out);
            ebml::put_uint(id::TRACK_TYPE, 2, out);
            ebml::put_uint(id::FLAG_LACING, 0, out);
            ebml::put_text(id::LANGUAGE, "und", out);
            ebml::put_text(id::CODEC_ID, "A_OPUS", out);
            ebml::put(id::CODEC_PRIVATE, codec_private, out);
            ebml::put_uint(id::CODEC_DELAY, nanos(u64::from(head.pre_skip)), out);
            ebml::put_uint(id::SEEK_PRE_ROLL, SEEK_PRE_ROLL, out);
            ebml::put_master(id::AUDIO, out, |out| {
                ebml::put_float(id::SAMPLING_FREQUENCY, f64::from(SAMPLE_RATE), out);
                ebml::put_uint(id::CHANNELS, u64::from(head.mapping.channels()), out);
            });
        });
    });
    tracks
}

/// A number for the track, the same each time the same file is made (FNV-1a over the tags); never 0.
fn uid(tags: &OpusTags) -> u64 {
    let mut bytes = Vec::new();
    tags.write(&mut bytes);
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash >> 8).max(1)
}

/// The Tags element: each comment under its own name, about the whole file. Empty where there is no comment.
fn tags_element(tags: &OpusTags) -> Vec<u8> {
    let mut element = Vec::new();
    if tags.comments.is_empty() {
        return element;
    }
    ebml::put_master(id::TAGS, &mut element, |out| {
        ebml::put_master(id::TAG, out, |out| {
            ebml::put_master(id::TARGETS, out, |out| ebml::put_uint(id::TARGET_TYPE_VALUE, 50, out));
            for (name, value) in &tags.comments {
                ebml::put_master(id::SIMPLE_TAG, out, |out| {
                    ebml::put_text(id::TAG_NAME, name, out);
                    ebml::put_text(id::TAG_STRING, value, out);
                });
            }
        });
    });
    element
}

#[cfg(test)]
mod tests {
    use super::super::ebml::{Elements, find, uint};
    use super::*;
    use crate::encode::{Mapping, packet::SILENCE_20_MS, patch};

    #[test]
    fn the_index_and_the_seek_head_point_to_what_they_name() {
        let head = OpusHead::new(Mapping::Mono, 312);
        let mut writer = WebmWriter::new(&head, &OpusTags::new(), SampleCount::from_millis(250)).unwrap();
        (0..1000).for_each(|_| writer.write_packet(&SILENCE_20_MS, 960).unwrap());
        let patches = writer.finish(SampleCount(1000 * 960 - 312)).unwrap();
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        assert!(patch::apply(&patches, &mut bytes));
        let segment = find(&bytes, id::SEGMENT).unwrap();
        let mut seeks = 0;
        for (_, seek) in Elements(find(segment, id::SEEK_HEAD).unwrap()) {
            let place = uint(find(seek, id::SEEK_POSITION).unwrap()) as usize;
            assert!(segment[place..].starts_with(find(seek, id::SEEK_ID).unwrap()));
            seeks += 1;
        }
        let mut times = Vec::new();
        for (_, point) in Elements(find(segment, id::CUES).unwrap()) {
            let track = find(point, id::CUE_TRACK_POSITIONS).unwrap();
            let place = uint(find(track, id::CUE_CLUSTER_POSITION).unwrap()) as usize;
            let cluster = find(&segment[place..], id::CLUSTER).unwrap();
            times.push(uint(find(point, id::CUE_TIME).unwrap()));
            assert_eq!(uint(find(cluster, id::TIMESTAMP).unwrap()), *times.last().unwrap());
        }
        assert_eq!((seeks, times.as_slice()), (3, &[0, 5200, 10_400, 15_600][..]));
    }
}
