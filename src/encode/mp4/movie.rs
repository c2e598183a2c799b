//! The `moov` box and what it says about the one track.

use ::time::OffsetDateTime;
use ::time::format_description::well_known::Rfc3339;

use super::aac::AacHead;
use super::boxes::{Boxes, Fields, find, put, put_full, put_u16, put_u32, put_u64};
use super::coding::Coding;
use super::samples::{Samples, Table};
use super::tags;
use crate::encode::{EncodeError, OpusHead, OpusTags, packet};
use crate::time::{SAMPLE_RATE, SampleCount};

const TRACK: u32 = 1;

/// Where in a file that begins with [`write_front`] the durations stand.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Places {
    /// 64-bit durations of the movie, the track and its edit.
    pub durations: [u64; 3],
    /// The box that becomes `mehd`.
    pub extends: Option<u64>,
    /// The box of the tags that is to tell what is not played.
    pub gapless: Option<u64>,
}

/// Which kind of movie.
pub(super) enum Movie<'a> {
    /// The samples come in fragments.
    Fragmented,
    /// The samples are in one `mdat` that begins right after.
    Progressive { samples: &'a Samples, data: u64, total: SampleCount },
}

/// Appends `ftyp` and `moov` to `out`, which is empty.
pub(super) fn write_front(coding: &Coding, tags: &OpusTags, movie: &Movie<'_>, out: &mut Vec<u8>) -> Places {
    let date = tags.get("DATE").and_then(|date| OffsetDateTime::parse(date, &Rfc3339).ok());
    let created = date.and_then(since_1904).unwrap_or(0);
    let (played, coded) = match movie {
        Movie::Fragmented => (0, 0),
        Movie::Progressive { samples, total, .. } => (total.0, samples.duration),
    };
    let mut places = Places::default();
    put(b"ftyp", out, |out| out.extend_from_slice(b"iso6\0\0\0\0iso6mp41"));
    put(b"moov", out, |out| {
        put_full(b"mvhd", 1, 0, out, |out| {
            put_u64(created, out);
            put_u64(created, out);
            put_u32(SAMPLE_RATE, out);
            places.durations[0] = out.len() as u64;
            put_u64(played, out);
            put_u32(0x1_0000, out);
            put_u16(0x100, out);
            out.extend([0; 10]);
            put_matrix(out);
            out.extend([0; 24]);
            put_u32(TRACK + 1, out);
        });
        put(b"trak", out, |out| {
            const ENABLED_IN_MOVIE: u32 = 3;
            put_full(b"tkhd", 1, ENABLED_IN_MOVIE, out, |out| {
                put_u64(created, out);
                put_u64(created, out);
                put_u32(TRACK, out);
                put_u32(0, out);
                places.durations[1] = out.len() as u64;
                put_u64(played, out);
                out.extend([0; 12]);
                put_u16(0x100, out);
                put_u16(0, out);
                put_matrix(out);
                out.extend([0; 8]);
            });
            put(b"edts", out, |out| {
                put_full(b"elst", 1, 0, out, |out| {
                    put_u32(1, out);
                    places.durations[2] = out.len() as u64;
                    put_u64(played, out);
                    put_u64(coding.skip, out);
                    put_u32(0x1_0000, out);
                });
            });
            put(b"mdia", out, |out| {
                put_full(b"mdhd", 1, 0, out, |out| {
                    put_u64(created, out);
                    put_u64(created, out);
                    put_u32(SAMPLE_RATE, out);
                    put_u64(coded, out);
                    // "und", three letters of five bits.
                    put_u16(0x55c4, out);
                    put_u16(0, out);
                });
                put_full(b"hdlr", 0, 0, out, |out| {
                    out.extend_from_slice(b"\0\0\0\0soun\0\0\0\0\0\0\0\0\0\0\0\0");
                    out.extend_from_slice(coding.name.as_bytes());
                    out.push(0);
                });
                put(b"minf", out, |out| {
                    put_full(b"smhd", 0, 0, out, |out| put_u32(0, out));
                    put(b"dinf", out, |out| {
                        put_full(b"dref", 0, 0, out, |out| {
                            put_u32(1, out);
                            put_full(b"url ", 0, 1, out, |_| ());
                        });
                    });
                    put(b"stbl", out, |out| put_sample_table(coding, movie, out));
                });
            });
        });
        if let Movie::Fragmented = movie {
            put(b"mvex", out, |out| {
                places.extends = Some(out.len() as u64);
                put(b"free", out, |out| out.extend([0; 12]));
                put_full(b"trex", 0, 0, out, |out| {
                    // Track, sample entry, duration, no size, and: depends on no other sample.
                    [TRACK, 1, coding.usual, 0, 0x0200_0000].into_iter().for_each(|value| put_u32(value, out));
                });
            });
        }
        places.gapless = tags::write(tags, coding.is_told_in_tags, out);
    });
    places
}

fn put_matrix(out: &mut Vec<u8>) {
    [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000].into_iter().for_each(|value| put_u32(value, out));
}

fn put_sample_table(coding: &Coding, movie: &Movie<'_>, out: &mut Vec<u8>) {
    put_full(b"stsd", 0, 0, out, |out| {
        put_u32(1, out);
        out.extend_from_slice(&coding.entry);
    });
    let (samples, data) = match movie {
        Movie::Fragmented => (&Samples::default(), 0),
        Movie::Progressive { samples, data, .. } => (*samples, *data),
    };
    samples.write(data, out);
    put_full(b"sgpd", 1, 0, out, |out| {
        out.extend_from_slice(b"roll");
        put_u32(2, out);
        put_u32(coding.rolls.len() as u32, out);
        coding.rolls.iter().for_each(|packets| put_u16((*packets as u16).wrapping_neg(), out));
    });
    if samples.count() > 0 {
        put_roll_group(coding, samples.count(), samples.shortest, out);
    }
}

/// Appends the `sbgp` box that puts `count` samples, none shorter than `shortest`, into the group of their pre-roll.
pub(super) fn put_roll_group(coding: &Coding, count: u32, shortest: u32, out: &mut Vec<u8>) {
    put_full(b"sbgp", 0, 0, out, |out| {
        out.extend_from_slice(b"roll");
        put_u32(1, out);
        put_u32(count, out);
        put_u32(coding.roll_index(shortest), out);
    });
}

/// Seconds since the beginning of 1904, from which MP4 counts.
fn since_1904(date: OffsetDateTime) -> Option<u64> {
    u64::try_from(date.unix_timestamp() + 2_082_844_800).ok()
}

/// What a `moov` box says about the first track of Opus, or else the first of MPEG-4 sound.
#[derive(Clone, Debug, Default)]
pub(super) struct Track {
    pub id: u32,
    pub head: Option<OpusHead>,
    pub aac: Option<AacHead>,
    /// The sample entry.
    entry: Vec<u8>,
    /// Ticks a second of the track's media.
    pub timescale: u32,
    /// Where in the media it begins to play, by the edit list.
    pub edit_start: SampleCount,
    /// What plays, by the edit list.
    pub edit: Option<SampleCount>,
    /// What plays, by whatever says it.
    pub duration: Option<SampleCount>,
    /// The samples that are not in fragments.
    pub table: Table,
    pub default_duration: u32,
    pub default_size: u32,
    pub fragmented: bool,
    /// Tracks beside it.
    pub others: u64,
    /// Edits that do more than to skip the start.
    pub edits: bool,
}

impl Track {
    /// Samples at the start that are not played.
    pub(super) fn skip(&self) -> SampleCount {
        self.head.map_or(self.edit_start, |head| SampleCount(u64::from(head.pre_skip)))
    }

    /// How long a packet lasts, at 48 kHz, that begins at `ticks` and by the container ends at `end`; none for what is no packet.
    /// Opus says that itself.
    pub(super) fn samples_of(&self, packet: &[u8], ticks: u64, end: u64) -> Option<u32> {
        if self.aac.is_none() {
            return packet::samples(packet);
        }
        let samples = scaled(end, self.timescale)?.0 - scaled(ticks, self.timescale)?.0;
        u32::try_from(samples).ok()
    }

    /// What to write about packets that are copied out of it.
    ///
    /// # Errors
    /// [`EncodeError::Config`] for what is not written.
    pub(super) fn coding(&self) -> Result<Coding, EncodeError> {
        match (&self.head, self.timescale) {
            (Some(head), _) => Coding::opus(head),
            (None, SAMPLE_RATE) => Ok(Coding::aac_of(self.entry.clone(), self.edit_start.0)),
            (None, other) => Err(EncodeError::Config {
                setting: "copying AAC",
                value: format!("of {other} Hz"),
                allowed: "of 48000 Hz",
            }),
        }
    }
}

/// Reads the body of a `moov` box; the track's id is 0 where there is none.
pub(super) fn read(moov: &[u8]) -> Track {
    let mut track = Track::default();
    let movie_scale = find(moov, &[b"mvhd"]).and_then(header_durations).unwrap_or((0, 0));
    let entry_of =
        |trak| find(trak, &[b"mdia", b"minf", b"stbl", b"stsd"]).and_then(|stsd| Boxes(stsd.get(8..)?).next());
    let tracks = || Boxes(moov).filter(|(kind, _)| kind == b"trak").map(|(_, trak)| (trak, entry_of(trak)));
    let first = |wanted: &[u8; 4]| {
        tracks()
            .find_map(|(trak, entry)| entry.filter(|(kind, _)| kind == wanted).map(|(kind, body)| (trak, kind, body)))
    };
    track.others = tracks().count() as u64;
    if let Some((trak, kind, entry)) = first(b"Opus").or_else(|| first(b"mp4a")) {
        track.others -= 1;
        track.id = find(trak, &[b"tkhd"]).and_then(track_id).unwrap_or(0);
        match &kind {
            b"Opus" => track.head = read_head(entry),
            _ => track.aac = AacHead::read(entry),
        }
        put(&kind, &mut track.entry, |out| out.extend_from_slice(entry));
        track.timescale = find(trak, &[b"mdia", b"mdhd"]).and_then(header_durations).map_or(0, |(scale, _)| scale);
        track.table = find(trak, &[b"mdia", b"minf", b"stbl"]).and_then(Table::read).unwrap_or_default();
        if let Some(edits) = find(trak, &[b"edts", b"elst"]) {
            let edit = read_edit(edits);
            track.edits = edit.is_none();
            let (duration, start) = edit.unwrap_or_default();
            track.edit = Some(duration).filter(|edit| *edit > 0).and_then(|edit| scaled(edit, movie_scale.0));
            track.edit_start = scaled(start, track.timescale).unwrap_or_default();
        }
    }
    if let Some(mvex) = find(moov, &[b"mvex"]) {
        track.fragmented = true;
        for (_, trex) in Boxes(mvex).filter(|(kind, _)| kind == b"trex") {
            read_trex(trex, &mut track);
        }
        let extended = find(mvex, &[b"mehd"]).and_then(|mehd| {
            let mut fields = Fields(mehd);
            let (version, _) = fields.full()?;
            fields.wide(version)
        });
        track.duration = extended.filter(|duration| *duration > 0).and_then(|duration| scaled(duration, movie_scale.0));
    }
    let movie =
        Some(movie_scale.1).filter(|duration| *duration > 0).and_then(|duration| scaled(duration, movie_scale.0));
    track.duration = track.duration.or(movie);
    track
}

/// An amount of ticks in samples at 48 kHz.
pub(super) fn scaled(ticks: u64, scale: u32) -> Option<SampleCount> {
    let samples = (u128::from(ticks) * u128::from(SAMPLE_RATE)).checked_div(u128::from(scale))?;
    u64::try_from(samples).ok().map(SampleCount)
}

/// Timescale and duration of an `mvhd` or `mdhd` box.
fn header_durations(body: &[u8]) -> Option<(u32, u64)> {
    let mut fields = Fields(body);
    let (version, _) = fields.full()?;
    fields.skip(if version == 1 { 16 } else { 8 })?;
    Some((fields.u32()?, fields.wide(version)?))
}

fn track_id(tkhd: &[u8]) -> Option<u32> {
    let mut fields = Fields(tkhd);
    let (version, _) = fields.full()?;
    fields.skip(if version == 1 { 16 } else { 8 })?;
    fields.u32()
}

/// The duration of the only edit and where it begins, or `None` where there are others or it does not begin inside the media.
fn read_edit(elst: &[u8]) -> Option<(u64, u64)> {
    let mut fields = Fields(elst);
    let (version, _) = fields.full()?;
    if fields.u32()? != 1 {
        return None;
    }
    let duration = fields.wide(version)?;
    let nothing = if version == 1 { u64::MAX } else { u64::from(u32::MAX) };
    let start = fields.wide(version)?;
    (start != nothing).then_some((duration, start))
}

fn read_trex(trex: &[u8], track: &mut Track) -> Option<()> {
    let mut fields = Fields(trex);
    fields.full()?;
    if fields.u32()? == track.id {
        fields.u32()?;
        track.default_duration = fields.u32()?;
        track.default_size = fields.u32()?;
    }
    Some(())
}

/// The identification header from the body of an `Opus` sample entry.
fn read_head(entry: &[u8]) -> Option<OpusHead> {
    let mut fields = Fields(find(entry.get(28..)?, &[b"dOps"])?);
    let [version, channels] = fields.array()?;
    if version != 0 {
        return None;
    }
    let mut opus = b"OpusHead\x01".to_vec();
    opus.push(channels);
    opus.extend(fields.u16()?.to_le_bytes());
    opus.extend(fields.u32()?.to_le_bytes());
    opus.extend(fields.u16()?.to_le_bytes());
    opus.extend_from_slice(fields.0);
    OpusHead::parse(&opus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Mapping;

    #[test]
    fn the_head_is_read_as_it_was_written() {
        for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
            let head = OpusHead { output_gain: -300, input_rate: 16_000, ..OpusHead::new(mapping, 312) };
            let mut bytes = Vec::new();
            let coding = Coding::opus(&head).unwrap();
            let places = write_front(&coding, &OpusTags::new(), &Movie::Fragmented, &mut bytes);
            let track = read(find(&bytes, &[b"moov"]).unwrap());
            assert_eq!((track.head, track.id, track.timescale), (Some(head), 1, 48_000));
            assert!(track.fragmented && !track.edits && track.edit.is_none());
            let extends = places.extends.unwrap() as usize;
            assert_eq!(&bytes[extends..extends + 8], b"\0\0\0\x14free");
        }
    }
}
