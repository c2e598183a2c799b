//! Many recordings on one volume, in one process, without and with a store: syncs a second, how long bytes wait for the disk
//! and for the store, memory, processor time.
//!
//! `cargo bench --features testkit --bench spool [-- SECONDS]`; the disk is that of `CALLREEL_BENCH_DIR`, else of the temporary
//! directory, the store an S3 server on this machine, whose processor time is not counted.

use std::time::Duration;

use callreel::clock;
use callreel::spool::{Entry, JOURNAL_VERSION, Memory, NewFile, Place, RecordingFiles, Reservation, Started};
use callreel::store::Store;
use callreel::testkit::StorageServer;
use callreel::upload::{Upload, UploadConfig, UploadPlan};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};

/// A page of a quarter second at 32 kbit/s.
const PAGE: usize = 1_040;
const PAGES_A_SECOND: u32 = 4;

/// What was seen of one recording.
#[derive(Default)]
struct Seen {
    syncs: usize,
    /// How long each page waited until it was synced, in milliseconds.
    waits: Vec<f64>,
    /// How old the oldest page was that the store did not have, each half second, in milliseconds.
    behind: Vec<f64>,
}

fn main() {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(10);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for recordings in [1, 200, 500] {
        let alone = runtime.block_on(run(recordings, seconds, None));
        let stored = runtime.block_on(async {
            let server = StorageServer::versitygw().await.expect("versitygw: make tools");
            let store = server.store("calls").await.expect("a bucket");
            run(recordings, seconds, Some(store)).await
        });
        println!("uploading takes {:.4} % of a processor a recording", (stored - alone) / recordings as f64);
    }
}

/// Gives the processor time, in per cent of one.
async fn run(recordings: usize, seconds: u32, store: Option<Store>) -> f64 {
    let dir = match std::env::var_os("CALLREEL_BENCH_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let dir = dir.expect("a directory");
    let memory = Memory::new(64 << 20);
    let mut tasks = Vec::new();
    let begin = Instant::now();
    for number in 0..recordings {
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: format!("r{number}"),
            room: "room".into(),
            pid: std::process::id(),
            wall_zero: clock::wall(),
            boot_zero: None,
            place: match &store {
                Some(store) => Place::Store(store.to_string()),
                None => Place::Directory(dir.path().to_owned()),
            },
            name: format!("call-{number}.ogg"),
        };
        let reservation = Reservation { spool: dir.path().join(".spool"), started, memory: memory.clone() };
        let offset = Duration::from_secs(1) / PAGES_A_SECOND * number as u32 / recordings as u32;
        tasks.push(tokio::spawn(record(reservation, store.clone(), offset, seconds * PAGES_A_SECOND)));
    }
    let mut most_memory = 0;
    let mut seen = Seen::default();
    let watch = async {
        let mut clock = tokio::time::interval(Duration::from_millis(20));
        loop {
            clock.tick().await;
            most_memory = most_memory.max(memory.used());
        }
    };
    let all = async {
        for task in tasks {
            let one = task.await.expect("no panic");
            seen.syncs += one.syncs;
            seen.waits.extend(one.waits);
            seen.behind.extend(one.behind);
        }
    };
    let before = processor_time();
    tokio::select! { () = all => {}, () = watch => {} }
    let took = begin.elapsed().as_secs_f64();
    let processor = 100.0 * (processor_time() - before) / took;
    println!(
        "{recordings} recordings{}, {took:.1} s: {:.0} file syncs/s; a page waits {}; {:.2} MB wait in memory at most, {} MB resident; \
         {processor:.1} % of a processor",
        if store.is_some() { " into a store" } else { "" },
        seen.syncs as f64 / took,
        spread(&mut seen.waits),
        most_memory as f64 / 1e6,
        resident() / 1_000_000,
    );
    if store.is_some() {
        println!("    the store is behind by {}", spread(&mut seen.behind));
    }
    processor
}

fn spread(all: &mut [f64]) -> String {
    all.sort_by(f64::total_cmp);
    let at = |share: f64| all.get((all.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    format!("{:.0} ms (median), {:.0} ms (99 %), {:.0} ms (most)", at(0.5), at(0.99), at(1.0))
}

async fn record(reservation: Reservation, store: Option<Store>, offset: Duration, pages: u32) -> Seen {
    let Started { recording_id, name: key, .. } = reservation.started.clone();
    let (events, _inbox) = mpsc::unbounded_channel();
    let reserved = tokio::task::spawn_blocking(move || RecordingFiles::reserve(&reservation, events)).await;
    let mut files = reserved.expect("no panic").expect("a disk that works");
    let file = files.create(NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() });
    let mut progress = file.progress();
    let follow = tokio::spawn(async move {
        let (mut seen, mut synced, mut appended) = (Seen::default(), 0, Vec::new());
        while progress.changed().await.is_ok() {
            let now = progress.borrow_and_update().clone();
            while (appended.len() * PAGE) < now.written as usize {
                appended.push(Instant::now());
            }
            if now.synced > synced {
                let pages = synced as usize / PAGE..now.synced as usize / PAGE;
                seen.waits.extend(appended[pages].iter().map(|at: &Instant| at.elapsed().as_secs_f64() * 1e3));
                (seen.syncs, synced) = (seen.syncs + 1, now.synced);
            }
            if now.finished.is_some() {
                break;
            }
        }
        seen
    });
    let upload = store.map(|store| {
        files.keep_in_memory(true);
        let journal = files.journal().clone();
        let plan = UploadPlan { recording_id, key, config: UploadConfig::default(), steps: Vec::new() };
        let upload = Upload::start(store, plan, move |step| _ = journal.append(&Entry::Upload(step)));
        upload.add(file.clone());
        upload
    });
    let (mut appended, mut behind) = (Vec::new(), Vec::new());
    let mut clock = interval_at(Instant::now() + offset, Duration::from_secs(1) / PAGES_A_SECOND);
    for page in 0..pages {
        clock.tick().await;
        appended.push(Instant::now());
        files.append(file.id(), vec![7; PAGE]);
        if let (Some(upload), true) = (&upload, page % 2 == 1) {
            let stored = upload.status().bytes as usize / PAGE;
            behind.extend(appended.get(stored).map(|at| at.elapsed().as_secs_f64() * 1e3));
        }
    }
    files.finish(file.id(), true).await.expect("a disk that works");
    if let Some(upload) = upload {
        upload.complete(vec![file.id()]).await.expect("a store that works");
        upload.close().await;
    }
    files.done(false).await;
    Seen { behind, ..follow.await.expect("no panic") }
}

/// What this process has in memory, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Processor time of this process, in seconds.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
