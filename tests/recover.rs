//! `kill -9` at any moment costs at most the last second: `callreel recover` makes whole recordings of what is left, once.

mod kill;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use callreel::clock;
use callreel::encode::OggInspector;
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions, rounds, scaled};
use kill::until_it_keeps_up;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const CALLREEL: &str = env!("CARGO_BIN_EXE_callreel");

/// What may be missing before the kill: a second, and what the mix waits before it decides whose packets it holds.
const MAY_MISS: f64 = 1.0;

/// `callreel` without anything of this process's environment that it would listen to.
fn callreel() -> Command {
    let mut command = Command::new(CALLREEL);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LIVEKIT") || name.starts_with("CALLREEL")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A recorder process in a room of its own.
struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
    said: Vec<String>,
    out: tempfile::TempDir,
}

impl Recorder {
    fn start(server: &LiveKitServer, room: &str, more: &[&str]) -> Self {
        let out = tempfile::tempdir().unwrap();
        let mut command = callreel();
        command.args(["record", "--url", &server.url(), "--room", room, "--name", "call", "--out"]).arg(out.path());
        command.args(["--departure-timeout", "60s"]).args(more).env("RUST_LOG", "warn,callreel=debug");
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        Self { process, log, said: Vec::new(), out }
    }

    /// Waits until the recorder says something, or has said it.
    async fn says(&mut self, word: &str) {
        while !self.said.iter().any(|line| line.contains(word)) {
            match self.log.next_line().await.unwrap() {
                Some(line) => self.said.push(line),
                None => panic!("it never said {word:?}, but {:#?}", self.said),
            }
        }
    }

    /// Kills the process, and gives when it still lived and when it did no more.
    async fn kill(&mut self) -> (time::OffsetDateTime, time::OffsetDateTime) {
        let lived = clock::wall();
        self.process.kill().await.unwrap();
        (lived, clock::wall())
    }

    fn terminate(&self) {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

/// Runs `callreel recover` and gives its results.
async fn recover(out: &Path) -> Vec<RecordingResult> {
    let output = callreel().args(["recover", "--out"]).arg(out).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn everything(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let entries = std::fs::read_dir(root).into_iter().flatten();
    for entry in entries.map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(
                everything(&entry)
                    .into_iter()
                    .map(|(path, bytes)| (Path::new(entry.file_name().unwrap()).join(path), bytes)),
            ),
            false => _ = found.insert(PathBuf::from(entry.file_name().unwrap()), std::fs::read(&entry).unwrap()),
        }
    }
    found
}

/// What recovery made of a recording: the manifest, if there is a recording.
async fn judge(out: &Path) -> Option<Manifest> {
    let results = recover(out).await;
    let left = everything(out);
    let names: Vec<_> = left.keys().map(|path| path.display().to_string()).collect();
    assert!(!out.join(".spool").exists(), "{names:?}");
    assert!(names.iter().all(|name| !name.ends_with(".part")), "{names:?}");
    assert_eq!(recover(out).await, [], "a second time there is nothing to do");
    assert_eq!(everything(out), left, "and nothing changes");
    let Some(manifest) = left.get(Path::new("call.json")) else {
        assert_eq!(names, [""; 0], "no recording, nothing left");
        return None;
    };
    let manifest: Manifest = serde_json::from_slice(manifest).unwrap();
    manifest.check().unwrap();
    let files = names.iter().filter(|name| name.ends_with(".ogg")).count();
    assert_eq!(files, manifest.outputs.len(), "{names:?}");
    assert_eq!(names.len(), 1 + files + manifest.sidecars.len(), "{names:?}");
    for output in &manifest.outputs {
        let mut inspector = OggInspector::new();
        inspector.push(&left[Path::new(&output.file)]);
        let found = inspector.finish();
        assert!(found.is_clean(), "{}: {:?}", output.file, found.problems);
        assert_eq!(found.bytes, output.bytes);
        let inspected = callreel().args(["inspect"]).arg(out.join(&output.file)).output().await.unwrap();
        assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
    }
    assert!(results.len() <= 1, "{results:?}");
    for result in results {
        assert_eq!((result.outcome, result.reasons), (manifest.outcome, manifest.reasons.clone()));
        assert_eq!(result.outputs.len(), manifest.outputs.len());
    }
    Some(manifest)
}

fn is_interrupted(manifest: &Manifest) -> bool {
    manifest.reasons.iter().any(|reason| matches!(reason, Reason::Interrupted { .. }))
}

/// How much is missing before the kill, in seconds.
fn missing(manifest: &Manifest, killed: time::OffsetDateTime) -> f64 {
    (killed - manifest.started_at).as_seconds_f64() - manifest.duration_seconds
}

fn print(what: &str, mut missing: Vec<f64>) {
    missing.sort_by(f64::total_cmp);
    if let (Some(least), Some(most)) = (missing.first(), missing.last()) {
        let middle = missing[missing.len() / 2];
        println!("{what}: {} kills, missing {least:.2} to {most:.2} s, median {middle:.2} s", missing.len());
    }
}

#[tokio::test]
async fn killed_while_somebody_speaks_it_lacks_a_second_at_most() {
    let server = LiveKitServer::start().await.unwrap();
    let lacks = rounds(scaled(5), async |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let room = format!("speaks-{seed}");
        let outputs = ["mix", "mix,tracks", "dual", "mix,dual,tracks"][seed as usize % 4];
        let mut recorder = Recorder::start(&server, &room, &["--outputs", outputs]);
        recorder.says("recording started").await;
        let alice = Publisher::join(PublisherConfig::on(&server, &room, "alice")).await.unwrap();
        let sound = generate::speech(seed, Duration::from_secs(5));
        let voice = alice.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
        voice.sent_at_least(100 + random.usize(0..250)).await.unwrap();
        until_it_keeps_up(recorder.out.path(), Duration::from_secs(1)).await;
        let (lived, killed) = recorder.kill().await;
        let manifest = judge(recorder.out.path()).await.expect("a recording");
        assert!(is_interrupted(&manifest) && manifest.outcome == Outcome::Degraded, "{:?}", manifest.reasons);
        assert_eq!(manifest.participants[0].identity, "alice");
        assert!(missing(&manifest, killed) >= 0.0, "{killed}: {}", manifest.duration_seconds);
        missing(&manifest, lived)
    })
    .await;
    print("while somebody speaks", lacks.clone());
    assert!(lacks.iter().all(|seconds| *seconds <= MAY_MISS), "{lacks:?}");
}

#[tokio::test]
async fn killed_while_it_begins_there_is_a_whole_recording_or_none() {
    let server = LiveKitServer::start().await.unwrap();
    let begun = rounds(scaled(5), async |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut recorder = Recorder::start(&server, &format!("begins-{seed}"), &["--outputs", "mix,dual"]);
        if seed % 3 > 0 {
            recorder.says(["", "joining", "recording started"][seed as usize % 3]).await;
        }
        tokio::time::sleep(Duration::from_micros(random.u64(0..300_000))).await;
        recorder.kill().await;
        judge(recorder.out.path()).await.is_some()
    })
    .await;
    println!("while it begins: {} kills, {} recordings", begun.len(), begun.iter().filter(|begun| **begun).count());
}

#[tokio::test]
async fn killed_while_it_stops_there_is_one_recording() {
    let server = LiveKitServer::start().await.unwrap();
    let how = rounds(scaled(5), async |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let room = format!("stops-{seed}");
        let mut recorder = Recorder::start(&server, &room, &["--outputs", "mix,tracks"]);
        recorder.says("recording started").await;
        let alice = Publisher::join(PublisherConfig::on(&server, &room, "alice")).await.unwrap();
        let sound = generate::speech(seed, Duration::from_secs(5));
        let voice = alice.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
        voice.sent_at_least(150).await.unwrap();
        until_it_keeps_up(recorder.out.path(), Duration::from_secs(1)).await;
        let stopped = clock::wall();
        recorder.terminate();
        recorder.says("stopping").await;
        tokio::time::sleep(Duration::from_micros(random.u64(0..80_000))).await;
        recorder.kill().await;
        let manifest = judge(recorder.out.path()).await.expect("a recording");
        let lacks = missing(&manifest, stopped);
        assert!(lacks <= MAY_MISS, "{lacks}");
        is_interrupted(&manifest)
    })
    .await;
    println!("while it stops: {} kills, {} interrupted", how.len(), how.iter().filter(|it| **it).count());
}

#[tokio::test]
async fn the_next_recorder_ends_what_is_left_and_leaves_alone_what_goes_on() {
    let server = LiveKitServer::start().await.unwrap();
    let mut first = Recorder::start(&server, "first", &[]);
    let spool = first.out.path().join(".spool");
    first.says("recording started").await;
    let journal = everything(&spool).into_keys().next().expect("the first's journal");
    let shared = ["--spool", spool.to_str().unwrap()];
    let mut second = Recorder::start(&server, "second", &shared);
    second.says("recording started").await;
    second.says("looked for interrupted recordings").await;
    assert_eq!(everything(&spool).len(), 2);
    first.kill().await;
    let mut third = Recorder::start(&server, "third", &[shared[0], shared[1], "--grace", "0s"]);
    third.says("recovered").await;
    // The journal goes last.
    while spool.join(&journal).exists() {
        tokio::task::yield_now().await;
    }
    let names: Vec<_> = everything(first.out.path()).into_keys().map(|path| path.display().to_string()).collect();
    assert!(names.iter().all(|name| !name.ends_with(".part")), "{names:?}");
    assert!(second.out.path().join("call.ogg.part").exists(), "the second goes on");
    for recorder in [&mut second, &mut third] {
        recorder.terminate();
        assert_eq!(recorder.process.wait().await.unwrap().code(), Some(4));
    }
    assert!(!spool.exists());
}

#[tokio::test]
async fn a_watcher_ends_recordings_as_they_die() {
    let server = LiveKitServer::start().await.unwrap();
    let mut recorder = Recorder::start(&server, "watched", &[]);
    recorder.says("recording started").await;
    let mut watcher =
        callreel().args(["recover", "--watch", "--grace", "0s", "--out"]).arg(recorder.out.path()).spawn().unwrap();
    let mut results = BufReader::new(watcher.stdout.take().unwrap()).lines();
    recorder.kill().await;
    let line = results.next_line().await.unwrap().expect("a result");
    let result: RecordingResult = serde_json::from_str(&line).unwrap();
    assert!(matches!(result.reasons[..], [Reason::Interrupted { .. }]), "{result:?}");
    let pid = watcher.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(watcher.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn recordings_are_ended_also_where_nobody_reads_of_it() {
    let server = LiveKitServer::start().await.unwrap();
    let mut recorder = Recorder::start(&server, "unheard", &[]);
    recorder.says("recording started").await;
    recorder.kill().await;
    let nobody = || Stdio::from(std::io::pipe().unwrap().1);
    let mut command = callreel();
    command.args(["recover", "--out"]).arg(recorder.out.path()).stdout(nobody()).stderr(nobody());
    assert_eq!(command.status().await.unwrap().code(), Some(0));
    assert!(recover(recorder.out.path()).await.is_empty(), "nothing is left to do");
}
