//! A recorder that is started again while its call goes on continues the stream where the one before it was killed.

mod kill;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use age::secrecy::ExposeSecret;
use callreel::clock;
use callreel::encode::OggInspector;
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::testkit::analysis;
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, StorageServer, TrackOptions};
use kill::until_it_keeps_up;
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

/// What may be missing before the kill.
const MAY_MISS: f64 = 1.0;

/// What is spoken again and again, a second of it per second.
const LOOP: Duration = Duration::from_secs(5);

fn callreel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callreel"));
    for (name, _) in std::env::vars() {
        if ["LIVEKIT", "CALLREEL", "S3_", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("RUST_LOG", "warn,callreel=debug");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
}

impl Recorder {
    /// Starts a recorder, and waits until it records.
    async fn start(server: &LiveKitServer, storage: Option<&StorageServer>, root: &Path, more: &[&str]) -> Self {
        let mut command = callreel();
        command.args(["record", "--url", &server.url(), "--room", "call", "--name", "call", "--recording-id", "R1"]);
        command
            .args(["--departure-timeout", "60s", "--tail-every", "1s", "--spool"])
            .arg(root.join("spool"))
            .arg("--out");
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        match storage.map(|storage| storage.s3_config("calls")) {
            None => command.arg(root.join("out")),
            Some(s3) => {
                command.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
                command.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
                command.arg("s3://calls/2026")
            }
        };
        let mut process = command.args(more).spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut recorder = Self { process, log };
        recorder.says("recording started").await;
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

    /// Kills it, and gives when it still lived and when it did no more.
    async fn kill(mut self) -> Moment {
        let lived = clock::wall();
        self.process.kill().await.unwrap();
        (lived, clock::wall())
    }

    /// Tells it to stop, and gives its result.
    async fn finish(mut self) -> RecordingResult {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let drained = async { while self.log.next_line().await.is_ok_and(|line| line.is_some()) {} };
        let stdout = self.process.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
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

/// Somebody who speaks in a loop.
struct Speaker {
    identity: &'static str,
    _publisher: Publisher,
    voice: callreel::testkit::Voice,
    sound: Audio,
}

impl Speaker {
    async fn join(server: &LiveKitServer, identity: &'static str, seed: u64) -> Self {
        let publisher = Publisher::join(PublisherConfig::on(server, "call", identity)).await.unwrap();
        let sound = generate::speech(seed, LOOP);
        let voice = publisher.publish(sound.clone(), TrackOptions::default().looped(true)).await.unwrap();
        Self { identity, _publisher: publisher, voice, sound }
    }

    /// Waits until it has spoken for so many packets more.
    async fn goes_on(&self, packets: usize) {
        self.voice.sent_at_least(self.voice.sent().len() + packets).await.unwrap();
    }

    /// How far into its loop the speech is `at` seconds into the recording, in samples.
    fn phase(&self, heard: &[f32], at: f64) -> f64 {
        let from = (at * 48_000.0) as usize;
        let twice = self.sound.clone().then(&self.sound);
        let found = analysis::find(&heard[from..from + 72_000], twice.channel(0)).expect("speech");
        assert!(found.score > 0.5, "{at} s: {found:?}");
        found.offset as f64
    }
}

/// A stretch of seconds.
type Span = (f64, f64);

/// Something happened after the one and before the other.
type Moment = (OffsetDateTime, OffsetDateTime);

/// Checks a file: it is one whole stream, nothing is in the holes, and what speakers say is at its place before and after.
fn check(bytes: &[u8], speakers: &[&Speaker], call: &Interrupted, manifest: &Manifest) {
    let holes = &call.holes;
    let mut inspector = OggInspector::new();
    inspector.push(bytes);
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    assert!((found.duration.as_secs_f64() - manifest.duration_seconds).abs() < 0.03);
    let heard = Audio::from_ogg_opus(bytes).unwrap();
    let at = |moment: OffsetDateTime| (moment - manifest.started_at).as_seconds_f64();
    for (from, to) in holes {
        // A hole begins with the file that has least; another has more, up to the kill.
        let from = from.max(at(call.killed.1));
        for channel in 0..heard.channel_count() {
            let silent = &heard.channel(channel)[((from + 0.05) * 48_000.0) as usize..(to * 48_000.0) as usize];
            assert!(analysis::peak(silent) < -60.0, "a peak of {} dBFS from {from} to {to}", analysis::peak(silent));
        }
    }
    for (channel, speaker) in speakers.iter().enumerate() {
        let (before, after) = (holes[0].0 - 2.0, at(call.connected) + 1.5);
        let passed = (after - before) * 48_000.0;
        let around = LOOP.as_secs_f64() * 48_000.0;
        let heard = heard.channel(channel);
        let off = speaker.phase(heard, after) - speaker.phase(heard, before) - passed;
        let off = (off + around / 2.0).rem_euclid(around) - around / 2.0;
        println!("{}: {:.1} ms off after the hole", speaker.identity, off / 48.0);
        assert!(off.abs() < 960.0, "{off} samples off");
    }
}

/// What came of a call that three processes recorded one after the other, under one id.
struct Interrupted {
    result: RecordingResult,
    holes: Vec<Span>,
    /// When the first process was killed.
    killed: Moment,
    /// When the last began.
    began: Moment,
    /// When the last could hear somebody.
    connected: OffsetDateTime,
    alice: Speaker,
    bob: Speaker,
}

async fn record(server: &LiveKitServer, storage: Option<&StorageServer>, root: &Path, more: &[&str]) -> Interrupted {
    let more = &[&["--outputs", "mix,dual,tracks"], more].concat();
    let first = Recorder::start(server, storage, root, more).await;
    let alice = Speaker::join(server, "alice", 1).await;
    let bob = Speaker::join(server, "bob", 2).await;
    // Both, as he came after her.
    bob.goes_on(250).await;
    until_it_keeps_up(root, Duration::from_secs(1)).await;
    let killed = first.kill().await;
    // Whoever ends what others leave, leaves this to the process that goes on.
    let mut watcher = callreel().args(["recover", "--watch", "--spool"]).arg(root.join("spool")).spawn().unwrap();
    alice.goes_on(75).await;
    let second = Recorder::start(server, storage, root, more).await;
    let journal = root.join("spool/R1.journal");
    while !std::fs::read_to_string(&journal).is_ok_and(|journal| journal.contains("restarted")) {
        tokio::task::yield_now().await;
    }
    second.kill().await;
    let begins = clock::wall();
    let mut last = Recorder::start(server, storage, root, more).await;
    let began = (begins, clock::wall());
    last.says("Connected").await;
    let connected = clock::wall();
    alice.goes_on(250).await;
    let result = last.finish().await;
    watcher.kill().await.unwrap();
    let hole = |reason: &Reason| match reason {
        Reason::Restarted { from_seconds, to_seconds, .. } => Some((*from_seconds, *to_seconds)),
        _ => None,
    };
    let holes: Vec<Span> = result.reasons.iter().filter_map(hole).collect();
    assert_eq!((holes.len(), result.reasons.len()), (2, 2), "{:?}", result.reasons);
    assert_eq!(result.outcome, Outcome::Degraded);
    Interrupted { result, holes, killed, began, connected, alice, bob }
}

fn check_all(call: &Interrupted, manifest: &Manifest, read: impl Fn(&str) -> Vec<u8>) {
    let Interrupted { holes, killed, began, alice, bob, .. } = call;
    manifest.check().unwrap();
    let at = |moment: OffsetDateTime| (moment - manifest.started_at).as_seconds_f64();
    let missing = at(killed.0) - holes[0].0;
    println!("{missing:.2} s are missing before the kill; holes {holes:?}, {:.2} s in all", manifest.duration_seconds);
    assert!(missing <= MAY_MISS && at(killed.1) >= holes[0].0, "killed at {}: {holes:?}", at(killed.1));
    assert!((at(began.0)..=at(began.1)).contains(&holes[1].1), "{holes:?} of {}", at(began.1));
    let names: Vec<&str> = manifest.outputs.iter().map(|output| output.file.trim_end_matches(".age")).collect();
    assert_eq!(names, ["call.ogg", "call-dual.ogg", "call-alice.ogg", "call-bob.ogg"]);
    assert_eq!((&*manifest.outputs[1].left, &*manifest.outputs[1].right), (&["alice".into()][..], &["bob".into()][..]));
    for (name, speakers) in names.iter().zip([&[][..], &[alice, bob], &[alice], &[bob]]) {
        println!("{name}");
        check(&read(name), speakers, call, manifest);
    }
    let sessions: Vec<(&str, bool)> =
        manifest.participants.iter().map(|there| (&*there.identity, there.left_sample.is_none())).collect();
    assert_eq!(sessions, [("alice", true), ("bob", true)], "they never left");
    assert!(manifest.tracks.len() >= 4, "two tracks, before and after");
}

fn everything(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { everything(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_recorder_that_is_started_again_goes_on_with_the_same_files() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let call = record(&server, None, root.path(), &[]).await;
    let out = root.path().join("out");
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(out.join("call.json")).unwrap()).unwrap();
    check_all(&call, &manifest, |name| std::fs::read(out.join(name)).unwrap());
    assert_eq!(everything(root.path()).len(), 5, "{:?}", everything(root.path()));
}

#[tokio::test]
async fn it_goes_on_with_what_is_sealed_without_a_key_that_opens_it() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let identity = age::x25519::Identity::generate();
    let key = root.path().join("key.txt");
    std::fs::write(&key, identity.to_string().expose_secret()).unwrap();
    let recipient = identity.to_public().to_string();
    let call = record(&server, None, root.path(), &["--encrypt-to", &recipient]).await;
    let out = root.path().join("out");
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(out.join("call.json")).unwrap()).unwrap();
    check_all(&call, &manifest, |name| {
        let mut decrypt = std::process::Command::new(env!("CARGO_BIN_EXE_callreel"));
        decrypt.arg("decrypt").arg(out.join(format!("{name}.age"))).args(["--out", "-", "--identity"]).arg(&key);
        let output = decrypt.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    });
}

#[tokio::test]
async fn what_cannot_be_gone_on_with_becomes_a_recording_of_its_own() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let first = Recorder::start(&server, Some(&storage), root.path(), &["--outputs", "mix"]).await;
    let alice = Speaker::join(&server, "alice", 1).await;
    alice.goes_on(150).await;
    first.kill().await;
    let second = Recorder::start(&server, Some(&storage), root.path(), &["--outputs", "dual"]).await;
    alice.goes_on(150).await;
    let result = second.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    assert_eq!(result.outputs[0].location, "s3://calls/2026/call-1-dual.ogg");
    let mut recover = callreel();
    let s3 = storage.s3_config("calls");
    recover.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
    recover.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
    recover.args(["recover", "--out", "s3://calls/2026", "--spool"]).arg(root.path().join("spool"));
    let output = recover.output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let recovered: RecordingResult = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(recovered.outputs[0].location, "s3://calls/2026/call.ogg");
    let keys: Vec<String> = store.list("").await.unwrap().into_iter().map(|object| object.key).collect();
    assert!(keys.iter().all(|key| !key.contains(".live/")), "{keys:?}");
    assert!(everything(root.path()).is_empty(), "{:?}", everything(root.path()));
}

#[tokio::test]
async fn it_goes_on_with_the_same_objects_of_a_store() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let call = record(&server, Some(&storage), root.path(), &[]).await;
    assert!(call.result.outputs[0].location == "s3://calls/2026/call.ogg", "{:?}", call.result.outputs);
    let mut objects = std::collections::BTreeMap::new();
    for object in store.list("").await.unwrap() {
        objects.insert(object.key.clone(), store.get(&object.key, None).await.unwrap().to_vec());
    }
    assert_eq!(objects.len(), 5, "{:?}", objects.keys());
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
    let manifest: Manifest = serde_json::from_slice(&objects["2026/call.json"]).unwrap();
    check_all(&call, &manifest, |name| objects[&format!("2026/{name}")].clone());
    assert!(everything(root.path()).is_empty(), "{:?}", everything(root.path()));
}
