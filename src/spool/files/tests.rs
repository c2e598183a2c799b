//! What becomes of files, on good disks and bad ones.

use time::OffsetDateTime;

use super::*;
use crate::encode::Mapping;
use crate::encode::{OggInspector, OggOpusWriter, OpusHead, OpusTags, packet};
use crate::seal::{Recipients, Sealer};
use crate::spool::{JOURNAL_VERSION, SEALED, What, hash_of};
use crate::time::SampleCount;

const OGG: &str = "ogg";

fn wanted(root: &Path, name: &str, id: &str, memory: usize) -> Reservation {
    let started = Started {
        version: JOURNAL_VERSION,
        recording_id: id.into(),
        room: "room".into(),
        pid: 1,
        wall_zero: OffsetDateTime::UNIX_EPOCH,
        boot_zero: None,
        place: Place::Directory(root.into()),
        name: name.into(),
    };
    Reservation { spool: root.join(".spool"), started, memory: Memory::new(memory) }
}

fn files(root: &Path, name: &str, id: &str) -> (RecordingFiles, mpsc::UnboundedReceiver<FileEvent>) {
    let (events, inbox) = mpsc::unbounded_channel();
    (RecordingFiles::reserve(&wanted(root, name, id, 1 << 20), events).expect("a writable directory"), inbox)
}

fn ogg(suffix: &str) -> NewFile {
    NewFile { kind: "mix".into(), suffix: suffix.into(), ext: OGG.into(), ..NewFile::default() }
}

fn left(root: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A stream of a second a page, in pieces of a page each; the first has the headers, the last ends it.
fn pages(seconds: usize) -> Vec<Vec<u8>> {
    let head = OpusHead::new(Mapping::Mono, 312);
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(48_000)).unwrap();
    let mut pieces = vec![Vec::new()];
    writer.take_bytes(&mut pieces[0]);
    let mut silence = Vec::new();
    packet::write_silence(960, false, &mut silence).unwrap();
    for n in 0..seconds * 50 {
        writer.write_packet(&silence, 960).unwrap();
        if n % 50 == 49 {
            writer.close_page();
            pieces.push(Vec::new());
            writer.take_bytes(pieces.last_mut().unwrap());
        }
    }
    writer.finish(SampleCount(seconds as u64 * 48_000 - 312)).unwrap();
    pieces.push(Vec::new());
    writer.take_bytes(pieces.last_mut().unwrap());
    pieces
}

#[tokio::test]
async fn a_file_is_part_until_it_is_whole_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "a/b.ogg", "r1");
    let path = dir.path().join("a/b.ogg");
    let id = files.create(ogg("")).id();
    files.append(id, b"hello ".to_vec());
    files.append(id, b"world".to_vec());
    let done = files.finish(id, true).await.unwrap();
    assert_eq!((&done.path, done.cut_to, done.in_memory), (&path, None, false));
    assert_eq!(fs::read(&path).unwrap(), b"hello world");
    assert_eq!(done.sha256, hash_of(&path).unwrap());
    files.write_manifest(b"{}".to_vec()).await.unwrap();
    assert_eq!(left(&dir.path().join(".spool")), ["r1.journal"]);
    files.done(false).await;
    assert_eq!(left(dir.path()), ["a"]);
    assert_eq!(left(&dir.path().join("a")), ["b.json", "b.ogg"]);
}

#[tokio::test]
async fn a_taken_name_gets_a_suffix_and_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("call.ogg"), b"mine").unwrap();
    let (first, _events) = files(dir.path(), "call.ogg", "r1");
    let (second, _more) = files(dir.path(), "call.ogg", "r2");
    assert_eq!(first.stem, dir.path().join("call-1"));
    assert_eq!(second.stem, dir.path().join("call-2"));
    assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), b"mine");
}

#[tokio::test]
async fn a_name_taken_meanwhile_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
    let path = dir.path().join("call.ogg");
    let file = files.create(ogg(""));
    files.append(file.id(), b"x".to_vec());
    file.progress().wait_for(|progress| progress.synced == 1).await.unwrap();
    fs::write(&path, b"stranger").unwrap();
    let error = files.finish(file.id(), true).await.unwrap_err();
    assert!(error.to_string().contains("does not overwrite"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"stranger");
    assert_eq!(fs::read(part_of(&path)).unwrap(), b"x");
}

#[tokio::test]
async fn files_of_one_name_are_numbered() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
    fs::write(dir.path().join("call-a.ogg"), b"stranger").unwrap();
    let mut names = Vec::new();
    for file in [files.create(ogg("-a")), files.create(ogg("-a")), files.create(ogg(""))] {
        names.push(files.finish(file.id(), true).await.unwrap().path);
    }
    assert_eq!(names, ["call-a-1.ogg", "call-a-2.ogg", "call.ogg"].map(|name| dir.path().join(name)));
}

#[tokio::test]
async fn a_file_that_cannot_be_made_leaves_the_others_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, mut events) = files(dir.path(), "call.ogg", "r1");
    let (bad, good) = (files.create(ogg("/nowhere/x")).id(), files.create(ogg("")).id());
    files.append(bad, b"x".to_vec());
    files.append(good, b"x".to_vec());
    assert!(files.finish(bad, true).await.unwrap_err().to_string().contains("was never created"));
    assert_eq!(files.finish(good, true).await.unwrap().bytes, 1);
    let event = events.recv().await.unwrap();
    assert!(event.file == bad && matches!(event.what, What::Broken(_)), "{event:?}");
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn the_manifest_takes_the_reserved_place_once() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _events) = files(dir.path(), "call.ogg", "r1");
    assert_eq!(fs::metadata(dir.path().join("call.json.part")).unwrap().len(), 64 * 1024);
    files.write_manifest(b"{}".to_vec()).await.unwrap();
    assert_eq!(fs::read(dir.path().join("call.json")).unwrap(), b"{}");
    assert!(files.write_manifest(b"{}".to_vec()).await.is_err());
    assert!(!dir.path().join("call.json.part").exists());
}

#[tokio::test]
async fn a_recording_that_never_had_a_file_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (files, _events) = files(dir.path(), "call.ogg", "r1");
    assert_eq!(left(dir.path()), [".spool", "call.json.part"]);
    drop(files);
    while !left(dir.path()).is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_recording_that_something_else_makes_leaves_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (mut held, _events) = files(dir.path(), "call.ogg", "r1");
    held.hold();
    held.journal().commit().await;
    drop(held);
    // What is done after it on the same disk shows that nothing is on its way any more.
    let (other, _events) = files(dir.path(), "other.ogg", "r2");
    other.done(false).await;
    assert_eq!(left(&dir.path().join(".spool")), ["r1.journal"]);
}

#[tokio::test]
async fn two_recordings_of_one_id_never_go_on_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_first, _events) = files(dir.path(), "call.ogg", "r1");
    let (events, _inbox) = mpsc::unbounded_channel();
    let error = RecordingFiles::reserve(&wanted(dir.path(), "call.ogg", "r1", 1 << 20), events).unwrap_err();
    assert!(error.to_string().contains("goes on"), "{error}");
    assert_eq!(left(dir.path()), [".spool", "call.json.part"]);
    assert_eq!(left(&dir.path().join(".spool")), ["r1.journal"]);
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"").unwrap();
    let (events, _inbox) = mpsc::unbounded_channel();
    let error = RecordingFiles::reserve(&wanted(dir.path(), "file/call.ogg", "r1", 1 << 20), events).unwrap_err();
    assert!(error.to_string().contains("cannot create the directory"), "{error}");
}

#[tokio::test]
async fn bytes_are_offered_once_they_are_synced_and_can_be_read_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
    let file = files.create(ogg(""));
    let mut progress = file.progress();
    let hanging = file.growing.hang();
    files.append(file.id(), b"01234".to_vec());
    files.append(file.id(), b"56789".to_vec());
    let so_far = progress.borrow_and_update().clone();
    assert_eq!((so_far.synced, so_far.written), (0, 10));
    assert_eq!(file.read(3..8).await.unwrap(), "34567");
    assert!(file.read(3..11).await.is_err());
    drop(hanging);
    progress.wait_for(|progress| progress.synced == 10).await.unwrap();
    files.append(file.id(), b"abc".to_vec());
    for (range, expected) in [(3..8, "34567"), (8..12, "89ab"), (10..13, "abc"), (5..5, "")] {
        assert_eq!(file.read(range).await.unwrap(), expected);
    }
    let done = files.finish(file.id(), true).await.unwrap();
    assert_eq!(progress.wait_for(|progress| progress.finished.is_some()).await.unwrap().finished, Some(done));
    assert_eq!(file.read(0..13).await.unwrap(), "0123456789abc");
}

#[tokio::test]
async fn a_sealed_file_that_cannot_go_on_ends_after_a_whole_segment() {
    let recipients = Recipients::parse("age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa").unwrap();
    let mut sealer = Sealer::new(recipients.clone());
    let seal = |page: &Vec<u8>| {
        let mut segment = Vec::new();
        sealer.seal(page, &mut segment).unwrap();
        segment
    };
    let pieces: Vec<Vec<u8>> = pages(4).iter().map(seal).collect();
    let fits = pieces[..3].iter().map(Vec::len).sum::<usize>();
    for kept in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (events, mut inbox) = mpsc::unbounded_channel();
        let reservation = wanted(dir.path(), "call.ogg.age", "r1", fits + 4096);
        let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
        assert_eq!(files.manifest_path(), dir.path().join("call.json"));
        files.keep_in_memory(kept);
        reservation.memory.take_anyway(4096);
        let what =
            NewFile { kind: "mix".into(), ext: SEALED.into(), recipients: recipients.clone(), ..NewFile::default() };
        let file = files.create(what.clone());
        let hanging = file.growing.hang();
        pieces.iter().for_each(|piece| files.append(file.id(), piece.clone()));
        assert!(matches!(inbox.recv().await.unwrap().what, What::Broken(_)));
        drop(hanging);
        let done = files.finish(file.id(), true).await.unwrap();
        assert_eq!(done.path, dir.path().join("call.ogg.age"));
        let mut surveyor = what.stream().unwrap().surveyor();
        surveyor.push(&fs::read(&done.path).unwrap());
        let found = surveyor.finish();
        assert!(found.ended && found.problems.is_empty(), "{:?}", found.problems);
        assert_eq!((found.duration, done.cut_to), (SampleCount(96_000 - 312), Some(SampleCount(96_000 - 312))));
    }
}

#[tokio::test]
async fn too_much_for_memory_ends_the_file_after_a_whole_page() {
    for kept in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let pieces = pages(4);
        let room = pieces[..3].iter().map(Vec::len).sum::<usize>() + 4096;
        let (events, mut inbox) = mpsc::unbounded_channel();
        let reservation = wanted(dir.path(), "call.ogg", "r1", room);
        let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
        files.keep_in_memory(kept);
        reservation.memory.take_anyway(room - pieces[..3].iter().map(Vec::len).sum::<usize>());
        let file = files.create(ogg(""));
        let hanging = file.growing.hang();
        pieces.iter().for_each(|piece| files.append(file.id(), piece.clone()));
        assert!(matches!(inbox.recv().await.unwrap().what, What::Broken(_)));
        drop(hanging);
        let done = files.finish(file.id(), true).await.unwrap();
        let mut inspector = OggInspector::new();
        inspector.push(&fs::read(&done.path).unwrap());
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!((found.duration, done.cut_to), (SampleCount(96_000 - 312), Some(SampleCount(96_000 - 312))));
        assert_eq!((done.bytes, done.sha256), (found.bytes, hash_of(&done.path).unwrap()));
    }
}

/// What a process leaves that dies after the first `pages` of a call's, and half of the next.
async fn left_behind(dir: &Path, all: &[Vec<u8>], pages: usize) -> SpoolFile {
    let (mut files, _events) = files(dir, "call.ogg", "r1");
    let file = files.create(ogg(""));
    all[..pages].iter().for_each(|page| files.append(file.id(), page.clone()));
    let length = all[..pages].iter().map(Vec::len).sum::<usize>() as u64;
    file.progress().wait_for(|progress| progress.synced == length).await.unwrap();
    let part = part_of(&dir.join("call.ogg"));
    let mut torn = fs::OpenOptions::new().append(true).open(part).unwrap();
    io::Write::write_all(&mut torn, &all[pages][..all[pages].len() / 2]).unwrap();
    file
}

/// The recording, as soon as the volume's thread has let go of it.
async fn orphan(dir: &Path) -> Orphan {
    loop {
        match Orphan::of(&dir.join(".spool"), "r1").unwrap() {
            Some(orphan) => return orphan,
            None => tokio::task::yield_now().await,
        }
    }
}

#[tokio::test]
async fn another_process_goes_on_where_one_died() {
    for keep in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let all = pages(5);
        drop(left_behind(dir.path(), &all, 3).await);
        let orphan = orphan(dir.path()).await;
        let streams = orphan.open_files().unwrap().expect("a stream");
        assert_eq!((streams[0].state.granule, streams[0].state.sequence), (96_000, 4));
        let (events, _inbox) = mpsc::unbounded_channel();
        let (files, _) = RecordingFiles::go_on(orphan, streams, &Memory::new(1 << 20), events).unwrap();
        assert!(Orphan::of(&dir.path().join(".spool"), "r1").unwrap().is_none(), "it goes on");
        files.keep_in_memory(keep);
        let file = files.files()[0].clone();
        let before = all[..3].concat();
        assert_eq!(file.read(0..before.len() as u64).await.unwrap(), before);
        all[3..].iter().for_each(|page| files.append(file.id(), page.clone()));
        let done = files.finish(file.id(), true).await.unwrap();
        assert_eq!(fs::read(dir.path().join("call.ogg")).unwrap(), all.concat());
        assert_eq!((done.bytes, done.sha256), (all.concat().len() as u64, hash_of(&done.path).unwrap()));
        files.write_manifest(b"{}".to_vec()).await.unwrap();
        files.done(false).await;
        assert_eq!(left(dir.path()), ["call.json", "call.ogg"]);
    }
}

#[tokio::test]
async fn a_file_that_was_gone_on_with_and_broke_at_once_ends_where_the_first_process_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let all = pages(5);
    drop(left_behind(dir.path(), &all, 3).await);
    let orphan = orphan(dir.path()).await;
    let streams = orphan.open_files().unwrap().expect("a stream");
    let (events, _inbox) = mpsc::unbounded_channel();
    let (files, _) = RecordingFiles::go_on(orphan, streams, &Memory::new(10), events).unwrap();
    let file = files.files()[0].id();
    files.append(file, all[3].clone());
    let done = files.finish(file, true).await.unwrap();
    let mut inspector = OggInspector::new();
    inspector.push(&fs::read(&done.path).unwrap());
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    assert_eq!(done.cut_to, Some(SampleCount(96_000 - 312)));
}

#[tokio::test]
async fn a_sync_that_is_under_way_finishes_no_file_of_which_something_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
    files.keep_in_memory(true);
    let file = files.create(ogg(""));
    let pages = pages(2);
    files.append(file.id(), pages[0].clone());
    file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
    pages[1..].iter().for_each(|page| file.growing.append_later(page.clone().into()));
    file.growing.finish_beside().unwrap();
    let done = files.finish(file.id(), true).await.unwrap();
    assert_eq!((done.bytes, &done.sha256), (pages.concat().len() as u64, &hash_of(&done.path).unwrap()));
    assert_eq!(fs::read(&done.path).unwrap(), pages.concat());
}

#[tokio::test]
async fn what_is_about_to_be_finished_is_not_gone_on_with() {
    let dir = tempfile::tempdir().unwrap();
    let (mut files, _events) = files(dir.path(), "call.ogg", "r1");
    let file = files.create(ogg(""));
    pages(1).into_iter().for_each(|page| files.append(file.id(), page));
    files.finish(file.id(), true).await.unwrap();
    drop((file, files));
    let orphan = orphan(dir.path()).await;
    assert!(orphan.open_files().unwrap().is_none());
}

/// A disk of its own that is small: `CALLREEL_TEST_DISK` of a process in a mount namespace, else none.
fn small_disk() -> Option<PathBuf> {
    std::env::var_os("CALLREEL_TEST_DISK").map(PathBuf::from)
}

/// Runs one test of this process's binary again, where a small disk is mounted.
fn again_on_a_small_disk(test: &str) {
    let disk = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=256k tmpfs "$CALLREEL_TEST_DISK" && exec "$@""#;
    let output = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("spool::files::tests::{test}"), "--nocapture"])
        .env("CALLREEL_TEST_DISK", disk.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn a_full_disk_is_stood_in_for_by_memory_and_gets_everything_when_there_is_space() {
    let Some(disk) = small_disk() else {
        return again_on_a_small_disk("a_full_disk_is_stood_in_for_by_memory_and_gets_everything_when_there_is_space");
    };
    let (mut files, mut events) = files(&disk, "call.ogg", "r1");
    files.keep_in_memory(true);
    let file = files.create(ogg(""));
    let pieces = pages(6);
    files.append(file.id(), pieces[0].clone());
    file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
    fill(&disk);
    let big = vec![7; 100_000];
    files.append(file.id(), big.clone());
    assert!(matches!(events.recv().await.unwrap().what, What::InMemory(_)));
    let mut all = [&pieces[0][..], &big].concat();
    for piece in &pieces[1..] {
        files.append(file.id(), piece.clone());
        all.extend(piece);
    }
    let length = all.len() as u64;
    file.progress().wait_for(|progress| progress.synced == length).await.unwrap();
    assert_eq!(file.read(0..length).await.unwrap(), all);
    let finished = files.finish(file.id(), true).await.unwrap();
    assert!(finished.in_memory && finished.bytes == length);
    fs::remove_file(disk.join("ballast")).unwrap();
    assert!(matches!(events.recv().await.unwrap().what, What::BackOnDisk));
    let on_disk =
        file.progress().wait_for(|p| p.finished.as_ref().is_some_and(|f| !f.in_memory)).await.unwrap().clone();
    let on_disk = on_disk.finished.unwrap();
    assert_eq!((on_disk.bytes, &on_disk.sha256), (length, &finished.sha256));
    assert_eq!(fs::read(&on_disk.path).unwrap(), all);
    assert_eq!(hash_of(&on_disk.path).unwrap(), on_disk.sha256);
}

#[tokio::test]
async fn a_full_disk_ends_a_file_that_nobody_takes_elsewhere() {
    let Some(disk) = small_disk() else {
        return again_on_a_small_disk("a_full_disk_ends_a_file_that_nobody_takes_elsewhere");
    };
    let (mut files, mut events) = files(&disk, "call.ogg", "r1");
    let file = files.create(ogg(""));
    let pieces = pages(3);
    pieces[..3].iter().for_each(|piece| files.append(file.id(), piece.clone()));
    file.progress().wait_for(|progress| progress.synced > 0).await.unwrap();
    fill(&disk);
    files.append(file.id(), vec![7; 100_000]);
    assert!(matches!(events.recv().await.unwrap().what, What::Broken(_)));
    files.append(file.id(), pieces[3].clone());
    let done = files.finish(file.id(), true).await.unwrap();
    let mut inspector = OggInspector::new();
    inspector.push(&fs::read(&done.path).unwrap());
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    assert_eq!(done.cut_to, Some(SampleCount(96_000 - 312)));
    files.write_manifest(b"{}".to_vec()).await.unwrap();
    assert_eq!(fs::read(disk.join("call.json")).unwrap(), b"{}");
}

/// Takes all space there is.
fn fill(disk: &Path) {
    use std::io::Write;
    let mut ballast = fs::File::create(disk.join("ballast")).unwrap();
    while ballast.write_all(&[0; 4096]).is_ok() {}
}
