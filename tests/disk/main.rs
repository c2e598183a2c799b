//! Disks that are full, broken or slow while a call is recorded into a store: nothing of the call is missing.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use std::time::Duration;

use callreel::encode::OggInspector;
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::store::Store;
use callreel::testkit::audio::generate;
use callreel::testkit::{
    LiveKitServer, Publisher, PublisherConfig, StorageServer, Tier, TrackOptions, Voice, checkout, tier,
};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

/// EIO and EROFS.
const BROKEN: &str = "5";
const READ_ONLY: &str = "30";

/// A recorder process whose spool is on a small disk of its own that can be made to fail.
struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
    root: tempfile::TempDir,
    _alice: Publisher,
    voice: Voice,
}

/// Compiles what makes a disk fail.
fn faulty(dir: &Path) -> PathBuf {
    let library = dir.join("faulty.so");
    let source = checkout().join("tests/disk/faulty.c");
    let compiled =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1"]).arg(source).arg("-o").arg(&library).status();
    assert!(compiled.expect("a C compiler").success());
    library
}

impl Recorder {
    /// Starts one in the room `name`. It records into the bucket `calls` of `storage`, or into a directory on the small disk.
    async fn start(server: &LiveKitServer, storage: Option<&StorageServer>, name: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let disk = root.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c"]);
        command.args([r#"mount -t tmpfs -o size=512k tmpfs "$DISK" && LD_PRELOAD="$FAULTY" exec "$@""#, "sh"]);
        command.args([
            env!("CARGO_BIN_EXE_callreel"),
            "record",
            "--url",
            &server.url(),
            "--room",
            name,
            "--name",
            name,
        ]);
        command
            .args(["--departure-timeout", "60s", "--tail-every", "1s", "--spool"])
            .arg(disk.join("spool"))
            .arg("--out");
        for (name, _) in std::env::vars() {
            if ["LIVEKIT", "CALLREEL", "S3_", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        command
            .env("DISK", &disk)
            .env("FAULTY", faulty(root.path()))
            .env("CALLREEL_DISK_FAULT", root.path().join("fault"));
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("RUST_LOG", "warn,callreel=debug");
        match storage.map(|storage| storage.s3_config("calls")) {
            None => command.arg(disk.join("out")),
            Some(s3) => {
                command.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
                command.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
                command.arg("s3://calls/2026")
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let alice = Publisher::join(PublisherConfig::on(server, name, "alice")).await.unwrap();
        let sound = generate::speech(7, Duration::from_secs(5));
        let voice = alice.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
        let mut recorder = Self { process, log, root, _alice: alice, voice };
        recorder.says("first packet").await;
        recorder
    }

    async fn says(&mut self, word: &str) {
        let mut said = Vec::new();
        while let Some(line) = self.log.next_line().await.unwrap() {
            if line.contains(word) {
                return;
            }
            said.push(line);
        }
        panic!("it never said {word:?}, but {said:#?}");
    }

    /// What the disk does from now on.
    fn disk(&self, fault: &str) {
        let (path, fresh) = (self.root.path().join("fault"), self.root.path().join("fault.new"));
        std::fs::write(&fresh, fault).unwrap();
        std::fs::rename(fresh, path).unwrap();
    }

    /// Runs a command where the small disk is seen.
    fn there(&self, script: &str) -> String {
        let pid = self.process.id().unwrap().to_string();
        let output = std::process::Command::new("nsenter")
            .args(["--target", &pid, "--user", "--preserve-credentials", "--mount", "sh", "-c", script])
            .env("DISK", self.root.path().join("disk"))
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Waits until so much more was spoken.
    async fn hears(&self, packets: usize) {
        self.voice.sent_at_least(self.voice.sent().len() + packets).await.unwrap();
    }

    /// Tells it to stop, and gives its result.
    async fn finish(mut self) -> RecordingResult {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let drained = async { while self.log.next_line().await.is_ok_and(|line| line.is_some()) {} };
        let mut lines = BufReader::new(self.process.stdout.take().unwrap()).lines();
        let mut last = String::new();
        let read = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                last = line;
            }
        };
        tokio::join!(drained, read);
        self.process.wait().await.unwrap();
        serde_json::from_str(&last).expect(&last)
    }
}

/// Checks that a recording is whole in the store, and that nothing else is left there.
async fn judge(storage: &StorageServer, store: &Store, name: &str, result: &RecordingResult) {
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let bytes = store.get(&format!("2026/{name}.ogg"), None).await.unwrap();
    let mut inspector = OggInspector::new();
    inspector.push(&bytes);
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    let manifest: Manifest =
        serde_json::from_slice(&store.get(&format!("2026/{name}.json"), None).await.unwrap()).unwrap();
    manifest.check().unwrap();
    assert!((found.duration.as_secs_f64() - manifest.duration_seconds).abs() < 0.03);
    assert_eq!(manifest.sidecars.len(), 2, "{:?}", manifest.sidecars);
    let sums = manifest.tracks[0].ledger.sums;
    assert_eq!((sums.lost, sums.recorder_down), (0, 0), "capture misses nothing");
    let objects = store.list(&format!("2026/{name}.")).await.unwrap();
    assert_eq!(objects.len(), 4, "{objects:?}");
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

#[tokio::test]
async fn a_disk_that_is_full_or_fails_for_a_while_costs_nothing() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    for name in ["full", "broken", "readonly"] {
        let mut recorder = Recorder::start(&server, Some(&storage), name).await;
        match name {
            "full" => _ = recorder.there(r#"head -c 1M /dev/zero >"$DISK/ballast""#),
            "broken" => recorder.disk(BROKEN),
            _ => recorder.disk(READ_ONLY),
        }
        recorder.says("goes on in memory").await;
        recorder.hears(50).await;
        match name {
            "full" => _ = recorder.there(r#"rm "$DISK/ballast""#),
            _ => recorder.disk(""),
        }
        recorder.says("has everything again").await;
        recorder.hears(50).await;
        let result = recorder.finish().await;
        judge(&storage, &store, name, &result).await;
    }
}

#[tokio::test]
async fn a_disk_that_stays_full_or_broken_costs_nothing_while_there_is_a_store() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    for name in ["full", "broken"] {
        let mut recorder = Recorder::start(&server, Some(&storage), name).await;
        match name {
            "full" => _ = recorder.there(r#"head -c 1M /dev/zero >"$DISK/ballast""#),
            _ => recorder.disk(BROKEN),
        }
        recorder.says("goes on in memory").await;
        recorder.hears(100).await;
        let result = recorder.finish().await;
        judge(&storage, &store, name, &result).await;
    }
}

#[tokio::test]
async fn a_slow_disk_costs_nothing() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let takes: &[u32] = if tier() == Tier::Test { &[1_500] } else { &[1_500, 20_000] };
    for millis in takes {
        let name = format!("slow-{millis}");
        let recorder = Recorder::start(&server, Some(&storage), &name).await;
        recorder.disk(&format!("slow {millis}"));
        recorder.hears(400).await;
        recorder.disk("");
        let result = recorder.finish().await;
        judge(&storage, &store, &name, &result).await;
    }
}

#[tokio::test]
async fn a_disk_that_breaks_without_a_store_ends_the_recording_with_what_there_is() {
    let server = LiveKitServer::start().await.unwrap();
    let recorder = Recorder::start(&server, None, "alone").await;
    recorder.hears(100).await;
    recorder.disk(BROKEN);
    let mut lines = recorder.log;
    while let Some(line) = lines.next_line().await.unwrap() {
        if line.contains("a file cannot go on") {
            break;
        }
    }
    let mut process = recorder.process;
    let mut said = BufReader::new(process.stdout.take().unwrap()).lines();
    let drained = async { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} };
    let (last, ()) = tokio::join!(said.next_line(), drained);
    let result: RecordingResult = serde_json::from_str(&last.unwrap().unwrap()).unwrap();
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(result.reasons.iter().any(|reason| matches!(reason, Reason::Storage { .. })), "{:?}", result.reasons);
    assert_eq!(process.wait().await.unwrap().code(), Some(1));
}
