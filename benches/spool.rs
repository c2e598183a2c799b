//! Many recordings on one volume, in one process: syncs a second, how long bytes wait for the disk, memory, processor time.
//!
//! `cargo bench --bench spool [-- SECONDS]`; the disk is that of `CALLREEL_BENCH_DIR`, else of the temporary directory.

use std::time::Duration;

use callreel::clock;
use callreel::spool::{JOURNAL_VERSION, Memory, NewFile, Place, RecordingFiles, Reservation, Started};
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
}

fn main() {
    let seconds = std::env::args().filter_map(|word| word.parse().ok()).next().unwrap_or(10);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for recordings in [1, 200, 500] {
        runtime.block_on(run(recordings, seconds));
    }
}

async fn run(recordings: usize, seconds: u32) {
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
            place: Place::Directory(dir.path().to_owned()),
            name: format!("call-{number}.ogg"),
        };
        let reservation = Reservation { spool: dir.path().join(".spool"), started, memory: memory.clone() };
        let offset = Duration::from_secs(1) / PAGES_A_SECOND * number as u32 / recordings as u32;
        tasks.push(tokio::spawn(record(reservation, offset, seconds * PAGES_A_SECOND)));
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
        }
    };
    let before = processor_time();
    tokio::select! { () = all => {}, () = watch => {} }
    let took = begin.elapsed().as_secs_f64();
    seen.waits.sort_by(f64::total_cmp);
    let at = |share: f64| seen.waits[((seen.waits.len() - 1) as f64 * share) as usize];
    println!(
        "{recordings} recordings, {took:.1} s: {:.0} file syncs/s; a page waits {:.0} ms (median), {:.0} ms (99 %), {:.0} ms (most); \
         {:.2} MB in memory at most; {:.1} % of a processor",
        seen.syncs as f64 / took,
        at(0.5),
        at(0.99),
        at(1.0),
        most_memory as f64 / 1e6,
        100.0 * (processor_time() - before) / took,
    );
}

async fn record(reservation: Reservation, offset: Duration, pages: u32) -> Seen {
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
    let mut clock = interval_at(Instant::now() + offset, Duration::from_secs(1) / PAGES_A_SECOND);
    for _ in 0..pages {
        clock.tick().await;
        files.append(file.id(), vec![7; PAGE]);
    }
    files.finish(file.id(), true).await.expect("a disk that works");
    files.done().await;
    follow.await.expect("no panic")
}

/// Processor time of this process, in seconds.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
