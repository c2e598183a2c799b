//! Streams sealed, damaged, cut and opened.

use age::secrecy::ExposeSecret;
use proptest::prelude::*;

use super::*;
use crate::encode::{Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags, closing_page, end_at_last_page, packet};
use crate::time::SampleCount;

/// Secret and public keys of two people.
fn pair() -> (Identities, Recipient) {
    let key = age::x25519::Identity::generate();
    let identities = Identities::parse(key.to_string().expose_secret()).unwrap();
    (identities, key.to_public().to_string().parse().unwrap())
}

/// A stream of `millis` in pages of 200 ms, in the pieces in which a recording appends them; the first has the headers.
fn pieces(mapping: Mapping, millis: u32) -> Vec<Vec<u8>> {
    let head = OpusHead::new(mapping, 312);
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(9_600)).unwrap();
    let mut silence = Vec::new();
    match mapping {
        Mapping::TwoMono => {
            packet::join_streams(&packet::SILENCE_20_MS, &packet::SILENCE_20_MS, &mut silence).unwrap();
        }
        _ => packet::write_silence(960, mapping == Mapping::Stereo, &mut silence).unwrap(),
    }
    let mut pieces = vec![Vec::new()];
    writer.take_bytes(&mut pieces[0]);
    for _ in 0..millis / 20 {
        writer.write_packet(&silence, 960).unwrap();
        let mut piece = Vec::new();
        if writer.take_bytes(&mut piece) > 0 {
            pieces.push(piece);
        }
    }
    writer.finish(SampleCount(u64::from(millis) * 48 - 400)).unwrap();
    pieces.push(Vec::new());
    writer.take_bytes(pieces.last_mut().unwrap());
    pieces
}

/// What of a stream is sealed how: the file, and where each segment ends in it and in the stream.
struct Sealed {
    file: Vec<u8>,
    plain: Vec<u8>,
    ends: Vec<(usize, usize)>,
}

fn sealed(recipients: &Recipients, pieces: &[Vec<u8>]) -> Sealed {
    let mut sealer = Sealer::new(recipients.clone());
    let (mut file, mut plain, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        sealer.seal(piece, &mut file).unwrap();
        plain.extend_from_slice(piece);
        ends.push((file.len(), plain.len()));
    }
    Sealed { file, plain, ends }
}

fn only(recipient: &Recipient) -> Recipients {
    Recipients::new([recipient.clone()]).unwrap()
}

/// What comes out, and what is told to be missing.
fn opened(identities: &Identities, file: &[u8], step: usize) -> (Vec<u8>, Vec<Loss>) {
    let mut opener = Opener::new(identities.clone());
    let (mut plain, mut lost) = (Vec::new(), Vec::new());
    let take = |opener: &mut Opener, plain: &mut Vec<u8>, lost: &mut Vec<Loss>| {
        while let Some(next) = opener.next_opened() {
            match next {
                Opened::Pages(pages) => plain.extend(pages),
                Opened::Lost(loss) => lost.push(loss),
            }
        }
    };
    for piece in file.chunks(step) {
        opener.push(piece);
        take(&mut opener, &mut plain, &mut lost);
    }
    opener.end();
    take(&mut opener, &mut plain, &mut lost);
    lost.extend(opener.lost_at_end(file.len() as u64));
    (plain, lost)
}

fn inspect(file: &[u8]) -> SealInspection {
    let mut inspector = SealInspector::new();
    file.chunks(1000).for_each(|piece| inspector.push(piece));
    inspector.finish()
}

#[test]
fn what_was_sealed_is_opened_byte_for_byte_by_each_of_those_it_is_for() {
    let ((one, to_one), (two, to_two), (other, _)) = (pair(), pair(), pair());
    for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
        let pieces = pieces(mapping, 3_000);
        let sealed = sealed(&Recipients::new([to_one.clone(), to_two.clone()]).unwrap(), &pieces);
        assert!(!sealed.file.windows(4).any(|bytes| bytes == b"OggS"), "nothing of it is plain");
        for (identities, step) in [(&one, 1), (&two, 4096), (&one, usize::MAX)] {
            assert_eq!(opened(identities, &sealed.file, step), (sealed.plain.clone(), Vec::new()));
        }
        let (plain, lost) = opened(&other, &sealed.file, usize::MAX);
        assert!(plain.is_empty() && lost.iter().all(|loss| loss.why == Why::WrongKey) && lost.len() == pieces.len());
        let found = inspect(&sealed.file);
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!((found.duration, found.ended), (SampleCount(144_000 - 400), true));
        assert_eq!((found.head, found.segments), (Some(OpusHead::new(mapping, 312)), pieces.len() as u64));
        assert_eq!(found.plain_bytes, sealed.plain.len() as u64);
    }
}

#[test]
fn each_payload_is_a_whole_file_of_the_age_format() {
    let key = age::x25519::Identity::generate();
    let recipients = Recipients::parse(&key.to_public().to_string()).unwrap();
    let pieces = pieces(Mapping::Mono, 1_000);
    let sealed = sealed(&recipients, &pieces);
    let mut reader = SegmentReader::new();
    reader.push(&sealed.file);
    let mut plain = Vec::new();
    while let Some(segment) = reader.next_segment() {
        plain.extend(age::decrypt(&key, segment.payload).unwrap());
    }
    assert_eq!(plain, sealed.plain);
}

#[test]
fn cut_anywhere_it_opens_to_the_last_whole_segment_and_says_where_it_ends() {
    let (identities, to) = pair();
    let sealed = sealed(&only(&to), &pieces(Mapping::Mono, 1_000));
    for cut in 0..sealed.file.len() {
        let file = &sealed.file[..cut];
        let (whole, plain) = sealed.ends.iter().copied().filter(|(end, _)| *end <= cut).max().unwrap_or_default();
        let count = sealed.ends.iter().filter(|(end, _)| *end <= cut).count();
        let (got, lost) = opened(&identities, file, usize::MAX);
        assert!(got == sealed.plain[..plain], "cut at {cut}");
        let [loss] = &lost[..] else { panic!("cut at {cut}: {lost:?}") };
        assert_eq!((&loss.why, loss.offset, loss.bytes), (&Why::Cut, whole as u64, (cut - whole) as u64));
        assert_eq!(loss.segment, count as u64 + 1);
        let found = inspect(file);
        assert_eq!((found.whole, found.ended, found.segments), (whole as u64, false, count as u64), "cut at {cut}");
    }
}

#[test]
fn an_end_is_added_without_a_secret_key() {
    let (identities, to) = pair();
    let recipients = only(&to);
    let pieces = pieces(Mapping::TwoMono, 2_000);
    let sealed = sealed(&recipients, &pieces);
    for (cut, plain) in sealed.ends[1..sealed.ends.len() - 1].iter().copied() {
        let found = inspect(&sealed.file[..cut]);
        let (head, state) = (found.head.unwrap(), found.state.unwrap());
        assert_eq!(state_after(&sealed.file[..cut]), Some(state));
        let page = closing_page(head, state).unwrap();
        let mut file = sealed.file[..cut].to_vec();
        Sealer::resume(recipients.clone(), head, state).seal(&page, &mut file).unwrap();
        assert!(inspect(&file).is_clean());
        let expected = [&sealed.plain[..plain], &page].concat();
        assert_eq!(opened(&identities, &file, usize::MAX), (expected, Vec::new()));
        // Where there is no room for it, a mark does.
        let mut file = sealed.file[..cut].to_vec();
        assert!(end_at_last_segment(&mut file) && file.len() == cut);
        assert!(inspect(&file).is_clean());
        let mut expected = sealed.plain[..plain].to_vec();
        end_at_last_page(&mut expected);
        assert_eq!(opened(&identities, &file, usize::MAX), (expected, Vec::new()));
    }
}

#[test]
fn a_damaged_segment_costs_itself_and_is_named() {
    let (identities, to) = pair();
    let sealed = sealed(&only(&to), &pieces(Mapping::Mono, 2_000));
    let count = sealed.ends.len();
    for n in 1..count - 1 {
        let (from, from_plain) = sealed.ends[n - 1];
        let (to, to_plain) = sealed.ends[n];
        // In the header, in the age file, and all of it gone.
        for place in [from + 20, (from + to) / 2, usize::MAX] {
            let mut file = sealed.file.clone();
            match file.get_mut(place) {
                Some(byte) => *byte ^= 0x10,
                None => drop(file.drain(from..to)),
            }
            let (plain, lost) = opened(&identities, &file, 777);
            let expected = [&sealed.plain[..from_plain], &sealed.plain[to_plain..]].concat();
            assert!(plain == expected, "segment {n}");
            let [loss] = &lost[..] else { panic!("segment {n}: {lost:?}") };
            let gone = if place == usize::MAX { 0 } else { to - from };
            assert_eq!((loss.segment, loss.offset, loss.bytes), (n as u64 + 1, from as u64, gone as u64));
            assert_eq!((&loss.why, loss.samples), (&Why::Damaged, Some(SampleCount(9_600))));
            assert!(loss.to_string().starts_with(&format!("segment {} at offset {from} is damaged", n + 1)), "{loss}");
            assert!(!inspect(&file).is_clean());
        }
    }
    // Numbers stay those of the file as it was.
    let mut file = sealed.file.clone();
    file[sealed.ends[1].0 + 20] ^= 1;
    file[sealed.ends[4].0 + 20] ^= 1;
    let numbers: Vec<u64> = opened(&identities, &file, 777).1.iter().map(|loss| loss.segment).collect();
    assert_eq!(numbers, [3, 6]);
    // Bytes that a clumsy tool put in between cost nothing but themselves.
    let at = sealed.ends[3].0;
    let file = [&sealed.file[..at], b"\x89CRSEAL\nOggS", &sealed.file[at..]].concat();
    let (plain, lost) = opened(&identities, &file, 1);
    assert!(plain == sealed.plain);
    assert!(matches!(&lost[..], [Loss { bytes: 12, samples: None, .. }]), "{lost:?}");
}

#[test]
fn without_its_first_segment_the_rest_still_plays() {
    let (identities, to) = pair();
    let sealed = sealed(&only(&to), &pieces(Mapping::Stereo, 2_000));
    let mut file = sealed.file.clone();
    file[200] ^= 1;
    let (plain, lost) = opened(&identities, &file, usize::MAX);
    assert!(matches!(&lost[..], [Loss { segment: 1, offset: 0, samples: Some(SampleCount(0)), .. }]), "{lost:?}");
    let mut inspector = OggInspector::new();
    inspector.push(&plain);
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    assert_eq!((found.duration, found.head.unwrap().mapping), (SampleCount(96_000 - 400), Mapping::Stereo));
}

#[test]
fn segments_in_another_order_or_of_another_stream_are_told() {
    let (identities, to) = pair();
    let recipients = only(&to);
    let sealed_one = sealed(&recipients, &pieces(Mapping::Mono, 2_000));
    let cut = |n: usize| &sealed_one.file[sealed_one.ends[n - 1].0..sealed_one.ends[n].0];
    let first = &sealed_one.file[..sealed_one.ends[0].0];
    let swapped = [first, cut(2), cut(1)].concat();
    assert!(!opened(&identities, &swapped, usize::MAX).1.is_empty());
    assert!(inspect(&swapped).problems.iter().any(|problem| matches!(problem, SealProblem::Missing { pages: 1, .. })));
    // A header that promises what is not sealed behind it.
    let mut reader = SegmentReader::new();
    reader.push(cut(2));
    let header = reader.next_segment().unwrap().header;
    let mut after = header.after;
    after.granule += 1;
    let forged = SegmentHeader { after, ..header }.write().unwrap();
    let file = [&sealed_one.file[..sealed_one.ends[1].0], &forged, &cut(2)[HEADER_BYTES..]].concat();
    let (_, lost) = opened(&identities, &file, usize::MAX);
    assert!(matches!(&lost[0].why, Why::Forged(_)), "{lost:?}");
}

#[test]
fn much_at_once_becomes_a_segment_a_second() {
    let (identities, to) = pair();
    let all: Vec<u8> = pieces(Mapping::Mono, 10_000).concat();
    let mut file = Vec::new();
    Sealer::new(only(&to)).seal(&all, &mut file).unwrap();
    let found = inspect(&file);
    assert!(found.is_clean() && (10..=11).contains(&found.segments), "{found:?}");
    let mut reader = SegmentReader::new();
    reader.push(&file);
    while let Some(segment) = reader.next_segment() {
        assert!(segment.header.samples() <= SampleCount(48_000));
    }
    assert_eq!(opened(&identities, &file, usize::MAX), (all, Vec::new()));
}

#[test]
fn the_longest_pages_to_the_most_people_are_no_longer_than_a_segment_may_be() {
    let (identities, to) = pair();
    let others = (1..MAX_RECIPIENTS).map(|_| pair().1);
    let recipients = Recipients::new(std::iter::once(to).chain(others)).unwrap();
    let mut writer =
        OggOpusWriter::new(OpusHead::new(Mapping::Mono, 0), &OpusTags::new(), 1, SampleCount(9_600_000)).unwrap();
    let packet: Vec<u8> = std::iter::once(0xf8).chain(std::iter::repeat_n(1, 1_273)).collect();
    (0..200).for_each(|_| writer.write_packet(&packet, 960).unwrap());
    let (mut pages, mut file) = (Vec::new(), Vec::new());
    writer.finish(writer.samples()).unwrap();
    writer.take_bytes(&mut pages);
    Sealer::new(recipients).seal(&pages, &mut file).unwrap();
    let mut reader = SegmentReader::new();
    reader.push(&file);
    let mut longest = 0;
    while let Some(segment) = reader.next_segment() {
        longest = longest.max(segment.end - segment.offset);
    }
    assert!((60_000..=MAX_SEGMENT as u64).contains(&longest), "{longest}");
    assert_eq!(opened(&identities, &file, usize::MAX), (pages, Vec::new()));
}

#[test]
fn only_pages_that_follow_are_sealed() {
    let (_, to) = pair();
    let pieces = pieces(Mapping::Mono, 1_000);
    let mut sealer = Sealer::new(only(&to));
    let mut file = Vec::new();
    for bad in [&b"hello"[..], &pieces[1], &pieces[0][..pieces[0].len() - 1]] {
        assert!(matches!(sealer.seal(bad, &mut file), Err(SealError::NotPages(_))));
    }
    sealer.seal(&pieces[0], &mut file).unwrap();
    assert!(matches!(sealer.seal(&pieces[2], &mut file), Err(SealError::NotPages(_))));
    let length = file.len();
    let torn = [&pieces[1][..], &pieces[3]].concat();
    assert!(matches!(sealer.seal(&torn, &mut file), Err(SealError::NotPages(_))));
    assert_eq!(file.len(), length, "nothing of what is refused is there");
    sealer.seal(&pieces[1], &mut file).unwrap();
    sealer.seal(&[], &mut file).unwrap();
}

#[test]
fn small_files_are_sealed_as_one() {
    let ((identities, to), (other, _)) = (pair(), pair());
    let file = seal_whole(&only(&to), b"WEBVTT").unwrap();
    assert!(file.starts_with(b"age-encryption.org/v1\n"));
    assert_eq!(open_whole(&identities, &file).unwrap(), b"WEBVTT");
    assert!(matches!(open_whole(&other, &file), Err(SealError::WrongKey)));
    assert!(matches!(open_whole(&identities, &file[..file.len() - 1]), Err(SealError::Damaged(_))));
    assert!(matches!(open_whole(&identities, b"WEBVTT"), Err(SealError::Damaged(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_becomes_of_a_file_what_comes_out_was_in_it(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..6),
        step in 1usize..3000,
    ) {
        let (identities, to) = pair();
        let sealed = sealed(&only(&to), &pieces(Mapping::Mono, 1_000));
        let mut file = sealed.file.clone();
        for (at, how, value) in changes {
            let at = at.index(file.len());
            match how {
                0 => file[at] ^= value | 1,
                1 => file.truncate(at + 1),
                2 => drop(file.drain(at..(at + usize::from(value)).min(file.len()))),
                _ => file.insert(at, value),
            }
            prop_assume!(!file.is_empty());
        }
        let (plain, lost) = opened(&identities, &file, step);
        prop_assert!(file == sealed.file || !lost.is_empty());
        // Pages are those that were sealed, but for headers made anew.
        let mut reader = crate::encode::PageReader::new();
        reader.push(&plain);
        while let Some(page) = reader.next_page() {
            let bytes = &plain[page.offset as usize..page.end as usize];
            let is_ours = page.sequence < 2 || sealed.plain.windows(bytes.len()).any(|window| window == bytes);
            prop_assert!(is_ours);
        }
        prop_assert_eq!(reader.passed_over(), 0);
        inspect(&file);
    }
}
