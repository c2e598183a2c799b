//! One suite for every container that is not Ogg.

use std::io::Cursor;

use proptest::prelude::*;

use super::mp4::{Front, Mp4Reader, Mp4Writer, Progressive, faststart};
use super::packet::{SILENCE_20_MS, samples};
use super::webm::{WebmReader, WebmWriter};
use super::{ContainerProblem as Problem, Contents, EncodeError, Mapping, OpusHead, OpusTags, Patch, patch};
use crate::time::SampleCount;

const PRE_SKIP: u64 = 312;

/// The front of no file is longer than what can be patched.
const PATCHABLE: u64 = 64 << 10;

enum Writer {
    Webm(WebmWriter),
    Mp4(Mp4Writer),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Webm,
    Mp4,
}
use Kind::{Mp4, Webm};

const KINDS: [Kind; 2] = [Webm, Mp4];

impl Writer {
    fn new(kind: Kind, head: &OpusHead, tags: &OpusTags) -> Self {
        match kind {
            Webm => Self::Webm(WebmWriter::new(head, tags, SampleCount::from_millis(250)).unwrap()),
            Mp4 => Self::Mp4(Mp4Writer::new(head, tags, SampleCount::from_millis(500)).unwrap()),
        }
    }

    fn write(&mut self, packet: &[u8]) {
        let samples = samples(packet).unwrap();
        match self {
            Self::Webm(writer) => writer.write_packet(packet, samples).unwrap(),
            Self::Mp4(writer) => writer.write_packet(packet, samples).unwrap(),
        }
    }

    fn take(&mut self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Webm(writer) => writer.take_bytes(out),
            Self::Mp4(writer) => writer.take_bytes(out),
        }
    }

    fn finish(&mut self, total: u64) -> Result<Vec<Patch>, EncodeError> {
        match self {
            Self::Webm(writer) => writer.finish(SampleCount(total)),
            Self::Mp4(writer) => writer.finish(SampleCount(total)),
        }
    }
}

type Packets = Vec<Vec<u8>>;

fn read(kind: Kind, bytes: &[u8], piece: usize) -> (Packets, Contents) {
    let mut packets = Packets::new();
    let mut keep = |packet: &[u8], samples| {
        assert_eq!(super::packet::samples(packet), Some(samples));
        packets.push(packet.to_vec());
    };
    let found = match kind {
        Webm => {
            let mut reader = WebmReader::new();
            bytes.chunks(piece).for_each(|piece| reader.push_each(piece, &mut keep));
            reader.finish()
        }
        Mp4 => {
            let mut reader = Mp4Reader::new();
            bytes.chunks(piece).for_each(|piece| reader.push_each(piece, &mut keep));
            reader.finish()
        }
    };
    (packets, found)
}

fn head(mapping: Mapping) -> OpusHead {
    OpusHead::new(mapping, PRE_SKIP as u16)
}

fn tags() -> OpusTags {
    let mut tags = OpusTags::new();
    let all = [
        ("TITLE", "a room"),
        ("ARTIST", "Zoë"),
        ("ARTIST", "Bob"),
        ("DATE", "2026-01-02T03:04:05Z"),
        ("ENCODER", "a test"),
        ("ROOM_SID", "RM_1"),
    ];
    all.iter().for_each(|(name, value)| _ = tags.comment(name, value).unwrap());
    tags
}

/// A packet of `quarters` of 10 ms, about `size` bytes long.
fn packet(quarters: u32, size: usize) -> Vec<u8> {
    let (mut packet, frames) = match quarters {
        1 => (vec![0xe0], 1),
        2 => (vec![0xe8], 1),
        4 => (vec![0xf0], 1),
        8 => (vec![0xf8], 1),
        quarters => (vec![0xfb, (quarters / 8) as u8], quarters as usize / 8),
    };
    packet.extend(std::iter::repeat_n(quarters as u8, size.div_ceil(frames) * frames));
    packet
}

fn packets(count: usize) -> Packets {
    (0..count).map(|n| packet(8, n * 7 % 400)).collect()
}

fn coded(packets: &Packets) -> u64 {
    packets.iter().map(|packet| u64::from(samples(packet).unwrap())).sum()
}

fn file(kind: Kind, mapping: Mapping, packets: &Packets, total: u64) -> (Vec<u8>, Vec<Patch>) {
    let mut writer = Writer::new(kind, &head(mapping), &tags());
    packets.iter().for_each(|packet| writer.write(packet));
    let patches = writer.finish(total).unwrap();
    let mut bytes = Vec::new();
    writer.take(&mut bytes);
    (bytes, patches)
}

fn patched(kind: Kind, packets: &Packets, total: u64) -> Vec<u8> {
    let (mut bytes, patches) = file(kind, Mapping::Mono, packets, total);
    assert!(patch::apply(&patches, &mut bytes));
    bytes
}

#[test]
fn what_was_written_is_read_with_and_without_patches() {
    let mixed: Packets = [1, 2, 4, 8, 16, 24, 32, 48].iter().cycle().take(300).map(|n| packet(*n, 60)).collect();
    let sixty: Packets = (0..101).map(|n| packet(24, n)).collect();
    for (kind, mapping, packets) in KINDS.into_iter().flat_map(|kind| {
        [
            (kind, Mapping::Mono, packets(175)),
            (kind, Mapping::Stereo, sixty.clone()),
            (kind, Mapping::TwoMono, packets(175)),
            (kind, Mapping::Mono, mixed.clone()),
        ]
    }) {
        for cut in [0, 1, 119] {
            let total = coded(&packets) - PRE_SKIP - cut;
            let (mut bytes, patches) = file(kind, mapping, &packets, total);
            for is_patched in [false, true] {
                let (read, found) = read(kind, &bytes, 1000);
                assert!(read == packets, "{kind:?} {mapping:?}");
                assert!(found.is_clean() && found.ended, "{kind:?} {:?}", found.problems);
                assert_eq!((found.head, found.tags), (Some(head(mapping)), Some(tags())));
                assert_eq!((found.total, found.whole), (SampleCount(total), bytes.len() as u64), "{kind:?}");
                assert_eq!(found.duration, is_patched.then_some(SampleCount(total)));
                assert!(patch::apply(&patches, &mut bytes));
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_when_they_are_taken() {
    for kind in KINDS {
        let packets = packets(400);
        let total = coded(&packets) - PRE_SKIP - 7;
        let (at_once, patches) = file(kind, Mapping::Mono, &packets, total);
        let mut writer = Writer::new(kind, &head(Mapping::Mono), &tags());
        let mut bytes = Vec::new();
        for (n, packet) in packets.iter().enumerate() {
            if n % 3 == 0 {
                writer.take(&mut bytes);
            }
            writer.write(packet);
        }
        assert_eq!(writer.finish(total).unwrap(), patches);
        writer.take(&mut bytes);
        assert!(bytes == at_once);
    }
}

#[test]
fn wherever_it_is_cut_the_whole_units_remain() {
    for kind in KINDS {
        let packets = packets(500);
        let mut writer = Writer::new(kind, &head(Mapping::Mono), &tags());
        let mut bytes = Vec::new();
        writer.take(&mut bytes);
        let mut units = vec![(bytes.len(), 0)];
        for (n, packet) in packets.iter().enumerate() {
            writer.write(packet);
            if writer.take(&mut bytes) > 0 {
                units.push((bytes.len(), n));
            }
        }
        let patches = writer.finish(coded(&packets) - PRE_SKIP - 100).unwrap();
        writer.take(&mut bytes);
        let index: &[u8] = if let Webm = kind { &[0x1c, 0x53, 0xbb, 0x6b] } else { b"mfra" };
        let index = bytes.windows(4).rposition(|four| four == index).unwrap();
        units.push((if let Webm = kind { index } else { index - 4 }, packets.len()));
        assert!(units.len() > 20);

        let mut random = fastrand::Rng::with_seed(7);
        for _is_patched in [false, true] {
            for _ in 0..1000 {
                let cut = random.usize(..bytes.len());
                let (end, count) = units.iter().rfind(|(end, _)| *end <= cut).copied().unwrap_or((0, 0));
                let (read, found) = read(kind, &bytes[..cut], random.usize(1..5000));
                assert!(read == packets[..count], "{kind:?} cut at {cut}: {} of {count}", read.len());
                assert!((end..=cut).contains(&(found.whole as usize)), "{kind:?} cut at {cut}");
                assert!(!found.is_clean(), "{kind:?} cut at {cut} of {}", bytes.len());
            }
            patch::apply(&patches, &mut bytes);
        }
    }
}

#[test]
fn five_hours_are_one_file() {
    const COUNT: u64 = 5 * 3600 * 50;
    for kind in KINDS {
        let mut writer = Writer::new(kind, &head(Mapping::Mono), &tags());
        let mut bytes = Vec::new();
        for _ in 0..COUNT {
            writer.write(&SILENCE_20_MS);
            writer.take(&mut bytes);
        }
        let total = COUNT * 960 - PRE_SKIP - 100;
        let patches = writer.finish(total).unwrap();
        writer.take(&mut bytes);
        assert!(patch::apply(&patches, &mut bytes));
        let (packets, found) = read(kind, &bytes, 1 << 16);
        assert!(found.is_clean(), "{kind:?} {:?}", found.problems);
        assert_eq!((packets.len() as u64, found.total), (COUNT, SampleCount(total)));
        assert_eq!(found.duration, Some(SampleCount(total)));
    }
}

#[test]
fn patches_lie_in_front_however_long_the_tags() {
    let mut tags = tags();
    tags.comment("DESCRIPTION", &"la ".repeat(60_000)).unwrap();
    tags.comments[0].1 = "ti".repeat(60_000);
    for kind in KINDS {
        let mut writer = Writer::new(kind, &head(Mapping::Mono), &tags);
        writer.write(&SILENCE_20_MS);
        let patches = writer.finish(1).unwrap();
        assert!(patches.iter().all(|patch| patch.end() <= PATCHABLE), "{kind:?}");
        let mut bytes = Vec::new();
        writer.take(&mut bytes);
        let (_, found) = read(kind, &bytes, 4096);
        assert_eq!((found.tags.as_ref(), found.total), (Some(&tags), SampleCount(1)));
    }
}

#[test]
fn packets_behind_the_end_are_left_out() {
    for kind in KINDS {
        let packets = packets(60);
        let total = coded(&packets) - PRE_SKIP - 960 * 2;
        let bytes = patched(kind, &packets, total);
        let (read, found) = read(kind, &bytes, 100);
        assert!(found.is_clean(), "{:?}", found.problems);
        assert!(read == packets[..58]);
        assert_eq!(found.total, SampleCount(total));
        let mut writer = Writer::new(kind, &head(Mapping::Mono), &tags());
        packets.iter().for_each(|packet| writer.write(packet));
        assert!(matches!(writer.finish(total + 960 * 2 + 1), Err(EncodeError::End { .. })));
        assert!(matches!(writer.finish(48_000 / 2), Err(EncodeError::End { .. })));
        writer.finish(total).unwrap();
        assert!(matches!(writer.finish(total), Err(EncodeError::Ended)));
    }
}

#[test]
fn a_unit_that_is_missing_is_a_gap() {
    for kind in KINDS {
        let bytes = patched(kind, &packets(300), 300 * 960 - PRE_SKIP);
        let marker: &[u8] = if let Webm = kind { &[0x1f, 0x43, 0xb6, 0x75] } else { b"moof" };
        let starts: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, four)| *four == marker).map(|(n, _)| n).collect();
        let (first, second) = (starts[3], starts[4]);
        let without = if let Webm = kind {
            [&bytes[..first], &bytes[second..]]
        } else {
            [&bytes[..first - 4], &bytes[second - 4..]]
        };
        let (_, found) = read(kind, &without.concat(), 999);
        assert!(
            found.problems.iter().any(|problem| matches!(problem, Problem::Gap { samples, .. } if *samples > 10_000))
        );
    }
}

#[test]
fn after_damage_webm_goes_on_at_the_next_cluster() {
    let mut bytes = patched(Webm, &packets(300), 300 * 960 - PRE_SKIP);
    let marker = [0x1f, 0x43, 0xb6, 0x75];
    let starts: Vec<usize> = bytes.windows(4).enumerate().filter(|(_, four)| *four == marker).map(|(n, _)| n).collect();
    bytes[starts[2]] = 0;
    let (read, found) = read(Webm, &bytes, 100);
    assert_eq!(read.len(), 300 - 13);
    let size = (starts[3] - starts[2]) as u64;
    assert_eq!(found.problems[0], Problem::Garbage { bytes: size, offset: starts[2] as u64 });
}

#[test]
fn other_files_are_refused() {
    for (kind, other) in [(Webm, patched(Mp4, &packets(9), 1)), (Mp4, patched(Webm, &packets(9), 1))] {
        let (_, found) = read(kind, &other, 10);
        assert!(matches!(found.problems[..], [Problem::NotThis { .. }]));
        assert!(matches!(read(kind, b"OggS", 1).1.problems[..], [Problem::NotThis { .. }]));
        assert!(matches!(read(kind, b"", 1).1.problems[..], [Problem::NotThis { .. }]));
    }
}

fn progressive(packets: &Packets, total: u64) -> Vec<u8> {
    let mut index = Progressive::new(&head(Mapping::Mono), &tags()).unwrap();
    packets.iter().for_each(|packet| index.add(packet, samples(packet).unwrap()).unwrap());
    let Front { bytes: mut file, packets: count, data } = index.finish(SampleCount(total)).unwrap();
    let front = file.len();
    packets[..count as usize].iter().for_each(|packet| file.extend_from_slice(packet));
    assert_eq!((file.len() - front) as u64, data);
    file
}

#[test]
fn an_index_in_front_gives_the_same_packets() {
    for packets in [packets(175), (0..30).map(|n| packet(24, n * 10)).collect()] {
        let total = coded(&packets) - PRE_SKIP - 100;
        let file = progressive(&packets, total);
        let (read, found) = read(Mp4, &file, 333);
        assert!(found.is_clean() && found.ended, "{:?}", found.problems);
        assert!(read == packets);
        assert_eq!((found.total, found.duration), (SampleCount(total), Some(SampleCount(total))));
        assert_eq!((found.head, found.tags), (Some(head(Mapping::Mono)), Some(tags())));

        let mut copy = Vec::new();
        let fragmented = patched(Mp4, &packets, total);
        assert!(faststart(&mut Cursor::new(&fragmented), &mut copy).unwrap().is_clean());
        assert!(copy == file);
        assert!(faststart(&mut Cursor::new(&file), &mut Vec::new()).unwrap().is_clean());
    }
    assert!(faststart(&mut Cursor::new(b"OggS"), &mut Vec::new()).is_err());
}

#[test]
fn a_cut_file_with_its_index_in_front_gives_what_is_there() {
    let packets = packets(175);
    let file = progressive(&packets, coded(&packets) - PRE_SKIP);
    let front = file.len() - packets.iter().map(Vec::len).sum::<usize>();
    let mut random = fastrand::Rng::with_seed(8);
    for _ in 0..200 {
        let cut = random.usize(front..file.len());
        let (read, found) = read(Mp4, &file[..cut], 200);
        let mut end = front;
        let count = packets
            .iter()
            .take_while(|packet| {
                end += packet.len();
                end <= cut
            })
            .count();
        assert!(read == packets[..count]);
        assert!(!found.ended);
    }
}

proptest! {
    #[test]
    fn foreign_bytes_do_no_harm(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        fixes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        front in any::<bool>(),
        in_front in any::<bool>(),
        pieces in 1usize..3000,
        place in any::<prop::sample::Index>(),
    ) {
        for kind in KINDS {
            read(kind, &bytes, pieces);
            let packets = packets(60);
            let mut damaged = match kind {
                Mp4 if in_front => progressive(&packets, 100),
                kind => patched(kind, &packets, 59 * 960),
            };
            for (at, value) in &fixes {
                let at = at.index(if front { damaged.len().min(900) } else { damaged.len() });
                damaged[at] = *value;
            }
            let at = place.index(damaged.len());
            if !front {
                damaged.splice(at..at, bytes.iter().copied());
            }
            let (one, found) = read(kind, &damaged, pieces);
            let (other, same) = read(kind, &damaged, damaged.len());
            prop_assert!(one == other);
            prop_assert_eq!(found, same);
        }
    }
}
