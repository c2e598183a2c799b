//! What becomes of orphans, wherever their process died.

use std::collections::BTreeMap;

use super::*;
use crate::encode::{Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags, packet};
use crate::seal::{Recipients, Sealer};
use crate::spool::{FileId, NewFile, Stream};

const RECIPIENT: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

/// A stream of two seconds in pages of 200 ms, that was never ended.
fn stream() -> Vec<u8> {
    let head = OpusHead::new(Mapping::Mono, 312);
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(9_600)).unwrap();
    let mut silence = Vec::new();
    packet::write_silence(960, false, &mut silence).unwrap();
    (0..100).for_each(|_| writer.write_packet(&silence, 960).unwrap());
    let mut bytes = Vec::new();
    writer.take_bytes(&mut bytes);
    bytes
}

fn entries(root: &Path) -> Vec<Entry> {
    let what = NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() };
    vec![
        Entry::Started(Started {
            version: JOURNAL_VERSION,
            recording_id: "r1".into(),
            room: "room".into(),
            pid: 1,
            wall_zero: OffsetDateTime::UNIX_EPOCH,
            boot_zero: None,
            place: Place::Directory(root.into()),
            name: "call.ogg".into(),
        }),
        Entry::Named { stem: root.join("call") },
        Entry::Made(Made { file: FileId(0), path: root.join("call.ogg"), what }),
    ]
}

/// What a process that died leaves.
fn left_behind(root: &Path, stream: &[u8]) -> PathBuf {
    let spool = root.join(".spool");
    fs::create_dir_all(&spool).unwrap();
    let journal: Vec<u8> = entries(root).iter().flat_map(|entry| entry.line().unwrap()).collect();
    fs::write(spool.join("r1.journal"), [&journal[..], b"{\"entry\":\"synced\",\"fi"].concat()).unwrap();
    fs::write(root.join("call.ogg.part"), stream).unwrap();
    drop(Reserve::claim(&root.join("call"), "x", "r1", |_| Ok(())).unwrap());
    spool
}

fn only(spool: &Path) -> Orphan {
    let mut found = orphans(spool, &[], Duration::ZERO).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0).unwrap()
}

fn everything(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(
                everything(&entry)
                    .into_iter()
                    .map(|(path, bytes)| (Path::new(entry.file_name().unwrap()).join(path), bytes)),
            ),
            false => _ = found.insert(PathBuf::from(entry.file_name().unwrap()), fs::read(&entry).unwrap()),
        }
    }
    found
}

#[test]
fn a_stream_cut_anywhere_keeps_every_whole_page_and_ends_properly() {
    let whole = stream();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&whole[..cut]);
        let before = inspector.finish();
        let mended = mend(&path, Stream::Ogg).unwrap();
        assert_eq!(mended.is_some(), before.tags.is_some(), "cut at {cut}");
        let Some(closed) = mended else { continue };
        let bytes = fs::read(&path).unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&bytes);
        let found = inspector.finish();
        assert!(found.is_clean(), "cut at {cut}: {:?}", found.problems);
        assert_eq!((found.duration, Some(found.duration)), (before.duration, closed.cut_to), "cut at {cut}");
        assert_eq!(bytes[..before.whole as usize], whole[..before.whole as usize], "no page changes");
        assert_eq!((closed.bytes, &closed.sha256), (found.bytes, &hash_of(&path).unwrap()));
        assert_eq!(mend(&path, Stream::Ogg).unwrap(), Some(closed), "once more is the same, cut at {cut}");
    }
}

#[test]
fn a_sealed_stream_cut_anywhere_keeps_every_whole_segment_and_is_ended_without_a_secret_key() {
    let recipients = Recipients::parse(RECIPIENT).unwrap();
    let stream_of = Stream::Sealed(&recipients);
    let mut whole = Vec::new();
    Sealer::new(recipients.clone()).seal(&stream(), &mut whole).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for cut in (0..=whole.len()).step_by(11).chain([whole.len()]) {
        fs::write(&path, &whole[..cut]).unwrap();
        let mut surveyor = stream_of.surveyor();
        surveyor.push(&whole[..cut]);
        let before = surveyor.finish();
        let mended = mend(&path, stream_of).unwrap();
        assert_eq!(mended.is_some(), before.begun, "cut at {cut}");
        let Some(closed) = mended else { continue };
        let bytes = fs::read(&path).unwrap();
        let mut surveyor = stream_of.surveyor();
        surveyor.push(&bytes);
        let found = surveyor.finish();
        assert!(found.ended && found.problems.is_empty(), "cut at {cut}: {:?}", found.problems);
        assert_eq!((found.duration, Some(found.duration)), (before.duration, closed.cut_to), "cut at {cut}");
        assert_eq!((closed.bytes, &closed.sha256), (bytes.len() as u64, &hash_of(&path).unwrap()));
        assert_eq!(mend(&path, stream_of).unwrap(), Some(closed), "once more is the same, cut at {cut}");
    }
    assert!(!fs::read(&path).unwrap().windows(4).any(|bytes| bytes == b"OggS"));
}

#[test]
fn what_follows_a_damaged_page_is_cut_off() {
    let whole = stream();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    for at in (200..whole.len()).step_by(61) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        fs::write(&path, &damaged).unwrap();
        mend(&path, Stream::Ogg).unwrap().unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&fs::read(&path).unwrap());
        let found = inspector.finish();
        assert!(found.is_clean(), "{at}: {:?}", found.problems);
        assert!(found.whole <= at as u64 + 100, "nothing after {at} is kept, but the end");
    }
}

#[test]
fn an_orphan_is_ended_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let spool = left_behind(dir.path(), &stream());
    let mut orphan = only(&spool);
    let files = orphan.finish_files().unwrap();
    assert_eq!(files.len(), 1);
    assert_eq!(files[0].duration, Some(SampleCount(90 * 960 - 312)));
    assert_eq!(orphan.manifest().unwrap(), None, "a kept place is no manifest");
    assert_eq!(orphan.write_manifest(b"{}").unwrap(), dir.path().join("call.json"));
    orphan.done().unwrap();
    let left: Vec<_> = everything(dir.path()).into_keys().collect();
    assert_eq!(left, [PathBuf::from("call.json"), "call.ogg".into()]);
    assert!(!spool.exists() && orphans(&spool, &[], Duration::ZERO).unwrap().is_empty());
}

#[test]
fn who_dies_while_recovering_leaves_what_the_next_one_finishes_in_the_same_way() {
    let json = br#"{"version": 1, "recording_id": "r1"}"#;
    let expected = {
        let dir = tempfile::tempdir().unwrap();
        let mut orphan = only(&left_behind(dir.path(), &stream()));
        orphan.finish_files().unwrap();
        orphan.write_manifest(json).unwrap();
        orphan.done().unwrap();
        everything(dir.path())
    };
    for died_after in 0..7 {
        let dir = tempfile::tempdir().unwrap();
        let spool = left_behind(dir.path(), &stream());
        let (part, path) = (dir.path().join("call.ogg.part"), dir.path().join("call.ogg"));
        let mut orphan = only(&spool);
        match died_after {
            0 => {}
            // In the middle of the last page.
            1 => {
                mend(&part, Stream::Ogg).unwrap();
                let length = fs::metadata(&part).unwrap().len();
                OpenOptions::new().write(true).open(&part).unwrap().set_len(length - 5).unwrap();
            }
            2 => _ = mend(&part, Stream::Ogg).unwrap(),
            // Between the file's two names.
            3 => {
                orphan.finish_files().unwrap();
                fs::hard_link(&path, &part).unwrap();
            }
            4 => _ = orphan.finish_files().unwrap(),
            5 => {
                orphan.finish_files().unwrap();
                orphan.write_manifest(json).unwrap();
                fs::hard_link(dir.path().join("call.json"), dir.path().join("call.json.part")).unwrap();
            }
            _ => {
                orphan.finish_files().unwrap();
                orphan.write_manifest(json).unwrap();
            }
        }
        drop(orphan);
        let mut orphan = only(&spool);
        orphan.finish_files().unwrap();
        if orphan.manifest().unwrap().is_none() {
            orphan.write_manifest(json).unwrap();
        }
        orphan.done().unwrap();
        assert_eq!(everything(dir.path()), expected, "died after step {died_after}");
    }
}

#[test]
fn a_recording_that_goes_on_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spool = left_behind(dir.path(), &stream());
    let before = everything(dir.path());
    let orphan = only(&spool);
    assert!(orphans(&spool, &[], Duration::ZERO).unwrap().is_empty(), "another has it");
    drop(orphan);
    assert!(orphans(&spool, &["r1".to_owned()], Duration::ZERO).unwrap().is_empty(), "it is not wanted");
    assert!(Orphan::of(&spool, "r1").unwrap().is_some());
    // A torn line was cut off, and nothing else was touched.
    let after = everything(dir.path());
    assert_eq!(after.len(), before.len());
    assert!(before[Path::new(".spool/r1.journal")].starts_with(&after[Path::new(".spool/r1.journal")]));
}

#[test]
fn a_name_that_a_stranger_took_meanwhile_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let spool = left_behind(dir.path(), &stream());
    fs::write(dir.path().join("call.ogg"), b"stranger").unwrap();
    fs::write(dir.path().join("call.json"), b"{}").unwrap();
    for round in 0..2 {
        let mut orphan = only(&spool);
        let files = orphan.finish_files().unwrap();
        assert_eq!(files[0].file.path, dir.path().join("call-1.ogg"), "round {round}");
    }
    let orphan = only(&spool);
    assert_eq!(orphan.write_manifest(b"{\"version\":1}").unwrap(), dir.path().join("call-1.json"));
    orphan.done().unwrap();
    assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), b"stranger");
    assert_eq!(everything(dir.path()).len(), 4);
}

#[test]
fn a_journal_that_this_version_does_not_understand_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let spool = left_behind(dir.path(), &stream());
    let Some(Entry::Started(started)) = entries(dir.path()).into_iter().next() else { panic!("it begins so") };
    let newer = Entry::Started(Started { version: JOURNAL_VERSION + 1, ..started });
    for text in [newer.line().unwrap(), b"not a journal".to_vec(), Vec::new()] {
        fs::write(spool.join("r1.journal"), &text).unwrap();
        let found = orphans(&spool, &[], Duration::ZERO).unwrap();
        assert!(matches!(&found[..], [Err(_)]));
        drop(found);
        assert_eq!(fs::read(spool.join("r1.journal")).unwrap(), text);
    }
}

#[test]
fn a_journal_that_was_never_begun_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("r1.journal.part");
    fs::write(&begun, b"{").unwrap();
    let held = lock(&begun).unwrap();
    assert!(orphans(dir.path(), &[], Duration::ZERO).unwrap().is_empty() && begun.exists());
    drop(held);
    assert!(
        orphans(dir.path(), &[], Duration::ZERO).unwrap().is_empty() && !dir.path().exists(),
        "nor is its directory left"
    );
}
