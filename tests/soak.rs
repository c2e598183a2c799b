//! Recordings that begin and end at random for minutes, in one process into one store: nothing of them is left behind.

use std::path::Path;
use std::time::{Duration, Instant};

use callreel::clock;
use callreel::config::Config;
use callreel::recording::{Outcome, PauseOrder, Recorder, alive_tasks};
use callreel::room::Credentials;
use callreel::store::StoreConfig;
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, StorageServer, Tier, TrackOptions, tier};

const SECOND: Duration = Duration::from_secs(1);

/// What this process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    sockets: usize,
    files: usize,
    tasks: usize,
    /// Resident memory in kB.
    memory: usize,
}

impl Held {
    fn now() -> Self {
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open: Vec<_> = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect();
        let is_socket = |path: &&std::path::PathBuf| path.to_string_lossy().starts_with("socket:");
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        Self {
            sockets: open.iter().filter(is_socket).count(),
            files: open.iter().filter(|path| path.is_file()).count(),
            tasks: alive_tasks(),
            memory: memory.trim().trim_end_matches("kB").trim().parse().unwrap(),
        }
    }
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_recordings_that_come_and_go() {
    let (at_once, time) = if tier() == Tier::Soak { (100, 600 * SECOND) } else { (8, 20 * SECOND) };
    const ROOMS: usize = 5;
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    storage.create_bucket("calls").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let (out, spool) = (root.path().join("out"), root.path().join("spool"));
    let mut people = Vec::new();
    for room in 0..ROOMS {
        let alice = Publisher::join(PublisherConfig::on(&server, &format!("room-{room}"), "alice")).await.unwrap();
        let sound = generate::speech(room as u64, 5 * SECOND);
        let voice = alice.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
        people.push((alice, voice));
    }
    let config = |room: u64| {
        let credentials = Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() };
        let mut config = Config::new(server.url(), credentials, format!("room-{room}"));
        (config.out, config.spool) = (out.clone(), Some(spool.clone()));
        config.store = Some(StoreConfig::S3(storage.s3_config("calls")));
        config.upload.tail_every = Some(2 * SECOND);
        config
    };
    // What stays once for the whole process is there after the first.
    let first = Recorder::start(config(0));
    first.clone().changed().await;
    first.stop();
    first.wait().await;
    let before = settled(None).await;
    let until: Instant = clock::now() + time;
    let one = async |seed: u64| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut recorded = Vec::new();
        while clock::now() < until {
            let recording = Recorder::start(config(random.u64(0..ROOMS as u64)));
            tokio::time::sleep(Duration::from_millis(random.u64(0..8_000))).await;
            if random.bool() {
                recording.pause(PauseOrder { resume_after: Some(SECOND), ..PauseOrder::default() });
            }
            tokio::time::sleep(Duration::from_millis(random.u64(0..4_000))).await;
            recording.stop();
            recorded.push(recording.wait().await);
        }
        recorded
    };
    let halfway = async {
        tokio::time::sleep(time / 2).await;
        Held::now()
    };
    let (half, recorded) = tokio::join!(halfway, futures_util::future::join_all((0..at_once).map(one)));
    let recorded: Vec<_> = recorded.into_iter().flatten().collect();
    let after = settled(Some(before)).await;
    println!("{} recordings, {at_once} at once: before {before:?}, half way {half:?}, after {after:?}", recorded.len());
    for result in &recorded {
        assert!(matches!(result.outcome, Outcome::Complete | Outcome::Empty), "{result:?}");
    }
    assert!(recorded.len() > at_once as usize);
    let is_left = after.sockets > before.sockets || after.files > before.files || after.tasks > before.tasks;
    assert!(!is_left, "before {before:?}, after {after:?}");
    assert!(after.memory < half.memory * 5 / 4, "memory grew from {} to {} kB", half.memory, after.memory);
    assert_eq!(entries(&spool), 0, "the spool is empty");
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
    for room in 0..ROOMS {
        let there = server.rooms().participants(&format!("room-{room}")).await.unwrap();
        assert_eq!(there.len(), 1, "{there:?}");
    }
}

/// What is held once connections that idle have been let go, or nothing changes that is more than before.
async fn settled(before: Option<Held>) -> Held {
    let deadline = clock::now() + 120 * SECOND;
    loop {
        tokio::time::sleep(SECOND).await;
        let held = Held::now();
        tokio::time::sleep(SECOND).await;
        let again = Held::now();
        let same = (held.sockets, held.files, held.tasks) == (again.sockets, again.files, again.tasks);
        let is_down = before.is_none_or(|before| {
            again.sockets <= before.sockets && again.files <= before.files && again.tasks <= before.tasks
        });
        if same && is_down || clock::now() > deadline {
            return again;
        }
    }
}
