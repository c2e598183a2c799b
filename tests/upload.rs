//! The call is in the bucket while it runs, and no fault of process, machine or store loses it: on real servers.

mod kill;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use callreel::clock;
use callreel::encode::{Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags};
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::spool::{
    JOURNAL_VERSION, Memory, NewFile, Place, RecordingFiles, Reservation, SpoolFile, Started, Upload as Step,
};
use callreel::store::{S3Config, Store};
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{
    LiveKitServer, Publisher, PublisherConfig, Relay, RelayFault, SentPacket, StorageServer, Tier, TrackOptions,
    rounds, scaled, tier,
};
use callreel::time::SampleCount;
use callreel::upload::{self, LiveState, Upload, UploadConfig, UploadPlan};
use kill::until_it_keeps_up;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const CALLREEL: &str = env!("CARGO_BIN_EXE_callreel");

/// How often tails are written here.
const TAIL_EVERY: Duration = Duration::from_secs(1);

/// `callreel` with the credentials of a storage server and nothing else of this process's environment that it would
/// listen to.
fn callreel(storage: &StorageServer) -> Command {
    callreel_with(storage.s3_config("calls"))
}

fn callreel_with(s3: S3Config) -> Command {
    let mut command = Command::new(CALLREEL);
    for (name, _) in std::env::vars() {
        if ["LIVEKIT", "CALLREEL", "S3_", "AWS_", "GOOGLE_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
    command.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
    if let Some(token) = s3.session_token {
        command.env("S3_SESSION_TOKEN", token.expose());
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("RUST_LOG", "warn,callreel=debug");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A recorder process, in a room in which somebody speaks, that records into the bucket `calls`.
struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
    said: Vec<String>,
    spool: tempfile::TempDir,
    _alice: Publisher,
    voice: callreel::testkit::Voice,
}

impl Recorder {
    async fn start(server: &LiveKitServer, storage: &StorageServer, name: &str, more: &[&str]) -> Self {
        Self::start_with(server, storage.s3_config("calls"), name, more).await
    }

    async fn start_with(server: &LiveKitServer, s3: S3Config, name: &str, more: &[&str]) -> Self {
        Self::start_hearing(server, s3, name, more, generate::speech(7, Duration::from_secs(5))).await
    }

    async fn start_hearing(server: &LiveKitServer, s3: S3Config, name: &str, more: &[&str], sound: Audio) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let mut command = callreel_with(s3);
        command.args(["record", "--url", &server.url(), "--room", name, "--name", name, "--out", "s3://calls/2026"]);
        command.args(["--departure-timeout", "60s", "--tail-every", "1s"]).args(more).arg("--spool").arg(spool.path());
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        let alice = Publisher::join(PublisherConfig::on(server, name, "alice")).await.unwrap();
        let voice = alice.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
        let mut recorder = Self { process, log, said: Vec::new(), spool, _alice: alice, voice };
        recorder.says("first packet").await;
        recorder
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

    /// Waits until the recorder says something that it says from now on.
    async fn says_anew(&mut self, word: &str) {
        self.said.clear();
        self.says(word).await;
    }

    fn terminate(&self) {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// Tells it to stop, and gives its result and how long that took.
    async fn finish(self) -> (RecordingResult, Duration) {
        let (result, took, spool) = self.finish_and_keep().await;
        let left = everything(spool.path());
        assert!(left.is_empty(), "{left:?} is left in the spool: {result:?}");
        (result, took)
    }

    /// The same, whatever is left in the spool.
    async fn finish_and_keep(self) -> (RecordingResult, Duration, tempfile::TempDir) {
        self.terminate();
        self.result().await
    }

    /// Waits for its result, once it was told to stop.
    async fn result(mut self) -> (RecordingResult, Duration, tempfile::TempDir) {
        let told = clock::now();
        let stdout = self.process.stdout.take().unwrap();
        let mut lines = BufReader::new(stdout).lines();
        let mut last = String::new();
        let drained = async { while self.log.next_line().await.is_ok_and(|line| line.is_some()) {} };
        let read = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                last = line;
            }
        };
        tokio::join!(drained, read);
        let took = clock::now() - told;
        self.process.wait().await.unwrap();
        (serde_json::from_str(&last).unwrap(), took, self.spool)
    }

    async fn kill(&mut self) -> time::OffsetDateTime {
        let at = clock::wall();
        self.process.kill().await.unwrap();
        at
    }
}

async fn recover(storage: &StorageServer, spool: &Path, more: &[&str]) -> Vec<RecordingResult> {
    let mut command = callreel(storage);
    command.args(["recover", "--out", "s3://calls/2026", "--spool"]).arg(spool).args(more);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn everything(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { everything(&path) } else { vec![path] }).collect()
}

async fn keys(store: &Store) -> Vec<String> {
    store.list("").await.unwrap().into_iter().map(|object| object.key).collect()
}

/// Asks a store again and again, as it tells nothing by itself, until the answer is there.
async fn until<T>(what: &str, answer: impl AsyncFn() -> Option<T>) -> T {
    let begun = clock::now();
    loop {
        if let Some(answer) = answer().await {
            return answer;
        }
        assert!(clock::now() - begun < Duration::from_secs(40), "{what} never happens");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Checks everything that is in the bucket of one whole recording, and gives its manifest.
async fn judge(storage: &StorageServer, store: &Store, name: &str) -> Manifest {
    let manifest = judge_objects(store, name).await;
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
    manifest
}

/// The same where others are still recorded.
async fn judge_objects(store: &Store, name: &str) -> Manifest {
    let keys = keys(store).await;
    let manifest: Manifest =
        serde_json::from_slice(&store.get(&format!("2026/{name}.json"), None).await.unwrap()).unwrap();
    manifest.check().unwrap();
    let mut expected: Vec<String> = manifest.outputs.iter().map(|output| format!("2026/{}", output.file)).collect();
    expected.extend(manifest.sidecars.iter().map(|sidecar| format!("2026/{}", sidecar.file)));
    expected.push(format!("2026/{name}.json"));
    expected.sort();
    let of_it: Vec<String> = keys.into_iter().filter(|key| key.starts_with(&format!("2026/{name}"))).collect();
    assert_eq!(of_it, expected, "these objects and no others");
    for output in &manifest.outputs {
        let key = format!("2026/{}", output.file);
        let bytes = store.get(&key, None).await.unwrap();
        assert_eq!(bytes.len() as u64, output.bytes, "{key}");
        let mut inspector = OggInspector::new();
        inspector.push(&bytes);
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert!((found.duration.as_secs_f64() - output.duration_seconds).abs() < 0.02);
        let object = store.head(&key).await.unwrap().unwrap();
        assert_eq!(object.metadata.get("recording-id"), Some(&manifest.recording_id));
    }
    manifest
}

fn missing(manifest: &Manifest, until: time::OffsetDateTime) -> f64 {
    (until - manifest.started_at).as_seconds_f64() - manifest.duration_seconds
}

#[tokio::test]
async fn the_call_is_in_the_bucket_while_they_talk_and_whole_at_the_end() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let recorder = Recorder::start(&server, &storage, "live", &["--outputs", "mix,tracks"]).await;
    let state = until("a tail of both files", async || {
        let key = LiveState::key_of("2026/live");
        let state = store.get(&key, None).await.ok()?;
        LiveState::read(&key, &state).ok().filter(|state| {
            state.files.len() == 2 && state.files.iter().all(|file| file.tails.len() > 1) && state.so_far.is_some()
        })
    })
    .await;
    for file in &state.files {
        let mut inspector = OggInspector::new();
        for tail in &file.tails {
            let bytes = store.get(&state.tail_key(file.file, *tail), None).await.unwrap();
            assert_eq!(bytes.len() as u64, tail.len);
            inspector.push(&bytes);
        }
        let found = inspector.finish();
        assert_eq!(found.problems, [callreel::encode::Problem::NoEnd], "tails follow each other");
    }
    recorder.voice.sent_at_least(300).await.unwrap();
    let (result, took) = recorder.finish().await;
    println!("from the word to stop to the result: {:.0} ms", took.as_secs_f64() * 1e3);
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let locations: Vec<&str> = result.outputs.iter().map(|output| &*output.location).collect();
    assert_eq!(locations, ["s3://calls/2026/live.ogg", "s3://calls/2026/live-alice.ogg"]);
    assert_eq!(result.manifest.as_deref(), Some("s3://calls/2026/live.json"));
    let manifest = judge(&storage, &store, "live").await;
    assert_eq!((manifest.outcome, manifest.outputs.len(), manifest.sidecars.len()), (Outcome::Complete, 2, 2));
}

#[tokio::test]
async fn the_spool_keeps_what_it_is_told_to() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let recorder = Recorder::start(&server, &storage, "kept", &["--keep-spool", "1h"]).await;
    recorder.voice.sent_at_least(100).await.unwrap();
    let (result, _, spool) = recorder.finish_and_keep().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let kept = spool.path().join("kept").join(&result.recording_id);
    let stored = store.get("2026/kept.ogg", None).await.unwrap();
    assert!(std::fs::read(kept.join("kept.ogg")).unwrap() == stored, "byte for byte");
    assert_eq!(everything(spool.path()).len(), 4, "{:?}", everything(spool.path()));
    assert_eq!(recover(&storage, spool.path(), &[]).await, [], "it is no orphan");
    judge(&storage, &store, "kept").await;
}

#[tokio::test]
async fn a_name_that_is_taken_is_left_alone() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    store.put("2026/same.ogg", "another's".into(), &Default::default()).await.unwrap();
    let recorder = Recorder::start(&server, &storage, "same", &[]).await;
    recorder.voice.sent_at_least(100).await.unwrap();
    let (result, _) = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    assert_eq!(result.outputs[0].location, "s3://calls/2026/same-1.ogg");
    assert_eq!(store.get("2026/same.ogg", None).await.unwrap(), "another's");
    judge(&storage, &store, "same-1").await;
}

#[tokio::test]
async fn killed_at_any_moment_it_is_brought_into_the_bucket_once() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let lacks = rounds(scaled(10), async |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let name = format!("killed-{seed}");
        let mut recorder = Recorder::start(&server, &storage, &name, &["--outputs", "mix,tracks"]).await;
        let is_stopping = seed % 2 == 1;
        recorder.voice.sent_at_least(100 + random.usize(0..100)).await.unwrap();
        if is_stopping {
            recorder.terminate();
            recorder.says("stopping").await;
            tokio::time::sleep(Duration::from_millis(random.u64(0..150))).await;
        } else {
            until_it_keeps_up(recorder.spool.path(), Duration::from_secs(1)).await;
        }
        let killed = recorder.kill().await;
        let manifest = bring(&storage, &store, &recorder, &name).await;
        if !is_stopping {
            assert!(matches!(manifest.reasons[..], [Reason::Interrupted { .. }]), "{:?}", manifest.reasons);
        }
        (!is_stopping).then(|| missing(&manifest, killed))
    })
    .await;
    judge_lacks("while it records", lacks.into_iter().flatten().collect());
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

/// Brings what a killed recorder left into the bucket, once.
async fn bring(storage: &StorageServer, store: &Store, recorder: &Recorder, name: &str) -> Manifest {
    let results = recover(storage, recorder.spool.path(), &[]).await;
    assert!(results.len() <= 1, "{results:?}");
    assert_eq!(recover(storage, recorder.spool.path(), &[]).await, [], "a second time there is nothing to do");
    assert!(everything(recorder.spool.path()).is_empty());
    judge_objects(store, name).await
}

fn judge_lacks(when: &str, mut lacks: Vec<f64>) {
    lacks.sort_by(f64::total_cmp);
    let (most, middle) = (lacks[lacks.len() - 1], lacks[lacks.len() / 2]);
    println!("{when}: {} kills, at most {most:.2} s missing, median {middle:.2} s", lacks.len());
    assert!(most <= 1.0, "{lacks:?}");
}

#[tokio::test]
async fn killed_while_parts_go_up_it_is_brought_into_the_bucket_once() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let lacks = rounds(scaled(1), async |seed| {
        let name = format!("parts-{seed}");
        // A part of 5 MiB fills in 85 seconds.
        let more = ["--mix-channels", "2", "--bitrate", "510000", "--complexity", "0", "--no-peaks", "--no-loudness"];
        let sound = generate::noise(seed, 0.3, Duration::from_secs(2));
        let mut recorder = Recorder::start_hearing(&server, storage.s3_config("calls"), &name, &more, sound).await;
        let key = LiveState::key_of(&format!("2026/{name}"));
        let has_part = async || {
            let state = LiveState::read(&key, &store.get(&key, None).await.ok()?).unwrap();
            (!state.files.first()?.parts.is_empty()).then_some(())
        };
        let begun = clock::now();
        while seed % 2 == 0 && has_part().await.is_none() || clock::now() - begun < Duration::from_secs(80) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(fastrand::Rng::with_seed(seed).u64(0..6_000))).await;
        until_it_keeps_up(recorder.spool.path(), Duration::from_secs(1)).await;
        let killed = recorder.kill().await;
        missing(&bring(&storage, &store, &recorder, &name).await, killed)
    })
    .await;
    judge_lacks("while parts go up", lacks);
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

#[tokio::test]
async fn without_the_machine_the_bucket_is_enough() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let mut recorder = Recorder::start(&server, &storage, "lost", &["--outputs", "dual,mix"]).await;
    recorder.voice.sent_at_least(300).await.unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let from = ["--from-store", "s3://calls"];
    assert_eq!(recover(&storage, elsewhere.path(), &from).await, [], "its recorder lives");
    // As long as what the store may lack.
    until_it_keeps_up(recorder.spool.path(), 3 * TAIL_EVERY).await;
    let killed = recorder.kill().await;
    let results = until("the lease ends, and somebody finishes it", async || {
        let results = recover(&storage, elsewhere.path(), &from).await;
        (!results.is_empty()).then_some(results)
    })
    .await;
    assert_eq!((results.len(), results[0].outcome), (1, Outcome::Degraded));
    let manifest = judge(&storage, &store, "lost").await;
    let lacks = missing(&manifest, killed);
    println!("missing before the machine was lost: {lacks:.2} s");
    assert!(lacks <= TAIL_EVERY.as_secs_f64() + 1.0 + 1.0, "{lacks}");
    assert_eq!(recover(&storage, elsewhere.path(), &from).await, []);
    // The machine comes back with its spool: everything is there already.
    assert_eq!(recover(&storage, recorder.spool.path(), &[]).await, results);
    assert_eq!(judge(&storage, &store, "lost").await.outputs, manifest.outputs);
    assert!(everything(recorder.spool.path()).is_empty());
}

#[tokio::test]
async fn a_store_that_dies_and_comes_back_costs_nothing() {
    let server = LiveKitServer::start().await.unwrap();
    let mut storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let mut recorder = Recorder::start(&server, &storage, "down", &[]).await;
    recorder.says("will be uploaded").await;
    storage.kill();
    recorder.says("the upload does not get on").await;
    storage.restart().await.unwrap();
    recorder.says("the upload goes on").await;
    let (result, _) = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    judge(&storage, &store, "down").await;
}

#[tokio::test]
async fn a_store_that_stays_away_leaves_the_recording_in_the_spool() {
    let server = LiveKitServer::start().await.unwrap();
    let mut storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let mut recorder = Recorder::start(&server, &storage, "away", &["--upload-patience", "1s"]).await;
    recorder.says("will be uploaded").await;
    storage.kill();
    recorder.voice.sent_at_least(150).await.unwrap();
    recorder.terminate();
    recorder.says("stays in the spool").await;
    let mut lines = BufReader::new(recorder.process.stdout.take().unwrap()).lines();
    let result: RecordingResult = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!(result.outcome, Outcome::Degraded);
    assert!(matches!(result.reasons[..], [Reason::Upload { .. }]), "{:?}", result.reasons);
    assert!(Path::new(&result.outputs[0].location).exists(), "{:?}", result.outputs);
    recorder.process.wait().await.unwrap();
    storage.restart().await.unwrap();
    let recovered = recover(&storage, recorder.spool.path(), &[]).await;
    assert_eq!((recovered.len(), recovered[0].outcome), (1, Outcome::Complete), "{recovered:?}");
    judge(&storage, &store, "away").await;
}

#[tokio::test]
async fn a_bucket_that_is_deleted_in_mid_call_leaves_the_recording_in_the_spool() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let mut recorder = Recorder::start(&server, &storage, "deleted", &["--upload-patience", "1s"]).await;
    recorder.says("will be uploaded").await;
    storage.delete_bucket("calls").await.unwrap();
    recorder.says("the upload does not get on").await;
    recorder.voice.sent_at_least(200).await.unwrap();
    recorder.terminate();
    recorder.says("stays in the spool").await;
    let mut lines = BufReader::new(recorder.process.stdout.take().unwrap()).lines();
    let result: RecordingResult = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let [Reason::Upload { message }] = &result.reasons[..] else { panic!("{:?}", result.reasons) };
    assert!(message.contains("calls"), "it names the bucket: {message}");
    recorder.process.wait().await.unwrap();
    storage.create_bucket("calls").await.unwrap();
    let recovered = recover(&storage, recorder.spool.path(), &[]).await;
    assert_eq!((recovered.len(), recovered[0].outcome), (1, Outcome::Complete), "{recovered:?}");
    judge(&storage, &store, "deleted").await;
}

#[tokio::test]
async fn what_is_said_is_in_the_bucket_within_the_tail_interval_and_two_seconds() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let recorder = Recorder::start(&server, &storage, "fresh", &[]).await;
    let key = LiveState::key_of("2026/fresh");
    // Until the store has something else, what it has grows older.
    let (mut oldest, mut known) = (Vec::new(), None);
    let (mut looked, mut slowest) = (clock::now(), Duration::ZERO);
    while oldest.len() < scaled(12) as usize {
        let seen = clock::wall();
        slowest = slowest.max(clock::now() - std::mem::replace(&mut looked, clock::now()));
        let Ok(state) = store.get(&key, None).await else { continue };
        let state = LiveState::read(&key, &state).unwrap();
        let Some(tail) = state.files.first().and_then(|file| file.tails.last()) else { continue };
        if known.is_some_and(|(last, _)| last == *tail) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        }
        // The tail may have gone into a part since.
        let Ok(bytes) = store.get(&state.tail_key(state.files[0].file, *tail), None).await else { continue };
        let granule = callreel::encode::state_after(&bytes).unwrap().granule;
        let manifest: Manifest = serde_json::from_value(state.so_far.unwrap()).unwrap();
        let up_to = manifest.started_at + SampleCount(granule).as_duration();
        if let Some((_, before)) = known.replace((*tail, up_to)) {
            oldest.push((seen - before).as_seconds_f64());
        }
    }
    // What keeps the voice and these looks waiting keeps the recorder waiting, too. Its tails need as many requests.
    let (start, sent) = (recorder.voice.start(), recorder.voice.sent().packets());
    let late = |packet: &SentPacket| packet.at - (start + packet.position.as_duration() + Duration::from_millis(20));
    let stalled = (sent.iter().map(late).max().unwrap() + slowest).as_secs_f64();
    recorder.finish().await;
    oldest.sort_by(f64::total_cmp);
    let (most, middle) = (oldest[oldest.len() - 1], oldest[oldest.len() / 2]);
    println!("the bucket is at most {most:.2} s behind, median {middle:.2} s; stalled for {stalled:.2} s at most");
    let bound = TAIL_EVERY.as_secs_f64() + 2.0;
    assert!(middle <= bound && most <= bound + stalled, "{oldest:?}, {stalled:.2}");
}

#[tokio::test]
async fn the_object_of_a_long_call_is_there_soon_after_its_end() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let recorder = Recorder::start(&server, &storage, "long", &["--outputs", "mix,dual"]).await;
    let seconds = if tier() == Tier::Soak { 600 } else { 10 };
    recorder.voice.sent_at_least(seconds * 50).await.unwrap();
    recorder.terminate();
    let told = clock::now();
    until("the object", async || store.head("2026/long.ogg").await.unwrap()).await;
    let took = clock::now() - told;
    recorder.result().await;
    let manifest = judge(&storage, &store, "long").await;
    println!("{:.0} s of call, {:.2} s to the object", manifest.duration_seconds, took.as_secs_f64());
    assert_eq!(manifest.outcome, Outcome::Complete);
}

/// A recording of which somebody else writes the pages: large ones, so that parts fill at once.
struct Pages {
    files: RecordingFiles,
    file: SpoolFile,
    writer: OggOpusWriter,
}

impl Pages {
    fn begin(root: &Path) -> Self {
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: "pages".into(),
            room: "room".into(),
            pid: 1,
            wall_zero: time::OffsetDateTime::UNIX_EPOCH,
            boot_zero: None,
            place: Place::Store("s3://calls".into()),
            name: "call.ogg".into(),
        };
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let reservation = Reservation { spool: root.join("spool"), started, memory: Memory::new(64 << 20) };
        let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
        let file = files.create(NewFile { kind: "mix".into(), ext: "ogg".into(), ..NewFile::default() });
        let head = OpusHead::new(Mapping::Mono, 312);
        let writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(48_000)).unwrap();
        Self { files, file, writer }
    }

    /// Writes so many packets of 1 kB.
    async fn write(&mut self, packets: usize) {
        let mut packet = vec![0xf8; 1_000];
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..packets {
            packet[1..].fill_with(|| random.u8(..));
            self.writer.write_packet(&packet, 960).unwrap();
        }
        self.writer.close_page();
        self.flush().await;
    }

    async fn flush(&mut self) {
        let mut bytes = Vec::new();
        self.writer.take_bytes(&mut bytes);
        self.files.append(self.file.id(), bytes);
        let mut progress = self.file.progress();
        progress.wait_for(|progress| progress.written > 0 && progress.synced == progress.written).await.unwrap();
    }
}

fn start(store: &Store, pages: &Pages) -> Upload {
    let config = UploadConfig { tail_every: Some(TAIL_EVERY), patience: Duration::from_secs(20) };
    let plan = UploadPlan { recording_id: "pages".into(), key: "call.ogg".into(), config, steps: Vec::new() };
    let upload = Upload::start(store.clone(), plan, |_| {});
    upload.add(pages.file.clone());
    upload
}

#[tokio::test]
async fn parts_go_up_as_they_fill_and_another_machine_can_end_them() {
    let storage = StorageServer::versitygw().await.unwrap();
    for is_lost in [false, true] {
        let bucket = if is_lost { "lost" } else { "kept" };
        let store = storage.store(bucket).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut pages = Pages::begin(dir.path());
        let upload = start(&store, &pages);
        let read_state = async || {
            let key = LiveState::key_of("call");
            let state = store.get(&key, None).await.ok()?;
            Some(LiveState::read(&key, &state).unwrap())
        };
        pages.write(3_000).await;
        until("a tail", async || read_state().await.filter(|state| !state.files[0].tails.is_empty())).await;
        pages.write(8_000).await;
        let state = until("two parts and what is behind them", async || {
            let written = pages.file.progress().borrow().written;
            read_state().await.filter(|state| state.files[0].parts.len() == 2 && state.files[0].safe() == written)
        })
        .await;
        let [tail, ..] = state.files[0].tails[..] else { panic!("{state:?}") };
        assert!(tail.offset <= state.files[0].confirmed(), "{state:?}");
        let written = pages.file.progress().borrow().written;
        if is_lost {
            drop((upload, pages));
            let key = LiveState::key_of("call");
            let adopted = until("the lease ends", async || upload::adopt(&store, &key).await.unwrap()).await;
            let [file] = adopted.files() else { panic!("{:?}", adopted.files()) };
            assert!(file.bytes > written && file.bytes < written + 100, "all pages and an end: {file:?}");
            assert_eq!(adopted.put_beside("json", "{}".into()).await.unwrap(), "s3://lost/call.json");
            adopted.close().await.unwrap();
            assert_eq!(keys(&store).await, ["call.json", "call.ogg"]);
        } else {
            pages.writer.finish(pages.writer.samples()).unwrap();
            pages.flush().await;
            let id = pages.file.id();
            let finished = pages.files.finish(id, true).await.unwrap();
            let [uploaded] = &upload.complete(vec![id]).await.unwrap()[..] else { panic!("one file") };
            assert_eq!(uploaded.location, "s3://kept/call.ogg");
            upload.close().await;
            assert_eq!(keys(&store).await, ["call.ogg"]);
            let whole = std::fs::read(&finished.path).unwrap();
            assert!(store.get("call.ogg", None).await.unwrap() == whole, "byte for byte");
        }
        let mut inspector = OggInspector::new();
        inspector.push(&store.get("call.ogg", None).await.unwrap());
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        assert_eq!(found.packets, 11_001, "all of them, and a silent one that ends the stream");
        assert_eq!(storage.open_uploads(bucket).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn who_has_lost_a_recording_stops_writing() {
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut pages = Pages::begin(dir.path());
    let upload = start(&store, &pages);
    pages.write(100).await;
    let key = LiveState::key_of("call");
    let mut state = until("the lease", async || {
        let state = store.get(&key, None).await.ok()?;
        Some(LiveState::read(&key, &state).unwrap()).filter(|state| !state.files.is_empty())
    })
    .await;
    state.owner = "another".into();
    store.put(&key, state.write(), &Default::default()).await.unwrap();
    until("it notices", async || upload.status().fault.filter(|fault| fault.contains("another"))).await;
    let error = upload.complete(vec![pages.file.id()]).await.unwrap_err();
    assert!(matches!(&error, upload::UploadError::Lost(owner) if owner == "another"), "{error}");
    assert!(!keys(&store).await.contains(&"call.ogg".to_owned()));
}

/// What a spool has of [`Pages`] that were uploaded with these steps.
fn left(finished: &callreel::spool::FinishedFile, pages: &Pages, steps: Vec<Step>) -> upload::Left {
    let (file, what, path) = (pages.file.id(), pages.file.what().clone(), finished.path.clone());
    let files = vec![upload::LeftFile { file, what, path, duration: Some(pages.writer.samples()) }];
    let may_lack = SampleCount::ZERO;
    upload::Left { recording_id: "pages".into(), key: "call.ogg".into(), files, may_lack, steps }
}

#[tokio::test]
async fn what_is_recorded_after_another_machine_has_finished_it_is_not_lost() {
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut pages = Pages::begin(dir.path());
    let (steps, taken) = std::sync::mpsc::channel();
    let config = UploadConfig { tail_every: Some(TAIL_EVERY), patience: Duration::from_secs(20) };
    let plan = UploadPlan { recording_id: "pages".into(), key: "call.ogg".into(), config, steps: Vec::new() };
    let upload = Upload::start(store.clone(), plan, move |step| steps.send(step).unwrap());
    upload.add(pages.file.clone());
    pages.write(200).await;
    let key = LiveState::key_of("call");
    let state = until("a tail", async || {
        let state = LiveState::read(&key, &store.get(&key, None).await.ok()?).unwrap();
        state.files.first().is_some_and(|file| !file.tails.is_empty()).then_some(state)
    })
    .await;
    drop(upload);
    // As a recorder does that was started again, and was lost before it could say so.
    let file = &state.files[0];
    let tail = state.tail_key(file.file, file.tails[file.tails.len() - 1]);
    let longer = [&store.get(&tail, None).await.unwrap()[..], b"OggS and more"].concat();
    store.put(&tail, longer.into(), &Default::default()).await.unwrap();
    let adopted = until("the lease ends", async || upload::adopt(&store, &key).await.unwrap()).await;
    assert_eq!(adopted.files().len(), 1);
    adopted.put_beside("json", "{}".into()).await.unwrap();
    adopted.close().await.unwrap();
    let short = store.get("call.ogg", None).await.unwrap();

    pages.write(1_000).await;
    pages.writer.finish(pages.writer.samples()).unwrap();
    pages.flush().await;
    let finished = pages.files.finish(pages.file.id(), true).await.unwrap();
    let mut steps: Vec<Step> = taken.try_iter().collect();
    for _ in 0..2 {
        let (more, taken) = std::sync::mpsc::channel();
        let brought =
            upload::finish(&store, left(&finished, &pages, steps.clone()), move |step| more.send(step).unwrap());
        let adopted = brought.await.unwrap();
        assert_eq!(adopted.files()[0].location, "s3://calls/call-1.ogg");
        adopted.put_beside("json", "{}".into()).await.unwrap();
        adopted.close().await.unwrap();
        steps.extend(taken.try_iter());
        assert_eq!(keys(&store).await, ["call-1.json", "call-1.ogg", "call.json", "call.ogg"]);
        assert!(store.get("call-1.ogg", None).await.unwrap() == std::fs::read(&finished.path).unwrap(), "all of it");
        assert!(store.get("call.ogg", None).await.unwrap() == short, "the other's is left alone");
    }
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

#[tokio::test]
async fn a_machine_that_is_lost_when_all_is_in_its_place_is_not_finished_again() {
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut pages = Pages::begin(dir.path());
    let upload = start(&store, &pages);
    pages.write(200).await;
    let key = LiveState::key_of("call");
    until("a tail", async || {
        let state = LiveState::read(&key, &store.get(&key, None).await.ok()?).unwrap();
        state.files.first().is_some_and(|file| !file.tails.is_empty()).then_some(())
    })
    .await;
    let before = store.get(&key, None).await.unwrap();
    pages.writer.finish(pages.writer.samples()).unwrap();
    pages.flush().await;
    pages.files.finish(pages.file.id(), true).await.unwrap();
    upload.complete(vec![pages.file.id()]).await.unwrap();
    upload.put_beside("", "json", "whole".into()).await.unwrap();
    drop(upload);
    // The machine may be lost before it could write that the object is whole.
    store.put(&key, before, &Default::default()).await.unwrap();
    let whole = store.get("call.ogg", None).await.unwrap();
    let adopted = until("the lease ends", async || upload::adopt(&store, &key).await.unwrap()).await;
    assert_eq!(adopted.told("json").await.unwrap().unwrap(), "whole");
    assert_eq!(adopted.files()[0].bytes, whole.len() as u64);
    adopted.close().await.unwrap();
    assert_eq!(keys(&store).await, ["call.json", "call.ogg"]);
    assert!(store.get("call.ogg", None).await.unwrap() == whole);
}

#[tokio::test]
async fn check_says_what_works_and_leaves_nothing_behind() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let check = async |out: &str, secret: &str| {
        let mut command = callreel(&storage);
        command.args(["check", "--url", &server.url(), "--out", out]);
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", secret);
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check("s3://calls/2026", server.api_secret()).await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok")).count(), 9, "{said}");
    assert_eq!(keys(&store).await, [""; 0]);
    let (code, said) = check("s3://nowhere", "wrong").await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("FAILED  write an object") && said.contains("FAILED  join LiveKit"), "{said}");
}

#[tokio::test]
async fn whatever_the_way_to_the_store_does_the_call_is_whole_at_the_end() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let relay = Relay::open(([127, 0, 0, 1], storage.port()).into()).await.unwrap();
    let s3 = S3Config { endpoint: Some(relay.url()), ..storage.s3_config("calls") };
    let more = ["--outputs", "mix,dual", "--upload-patience", "600s"];
    let mut recorder = Recorder::start_with(&server, s3, "faults", &more).await;
    recorder.says("will be uploaded").await;
    let mut faults = vec![
        RelayFault::Refuses,
        RelayFault::CutsAfter(300),
        RelayFault::Answers(500),
        RelayFault::Answers(503),
        RelayFault::Answers(403),
        RelayFault::Garbles,
    ];
    if tier() != Tier::Test {
        faults.extend([RelayFault::Silent, RelayFault::Slow(200)]);
    }
    for fault in faults {
        relay.set(fault);
        recorder.says_anew("the upload does not get on").await;
        relay.set(RelayFault::None);
        recorder.says_anew("the upload goes on").await;
    }
    relay.set(RelayFault::Slow(20_000));
    let (result, took) = recorder.finish().await;
    println!("at 20 kB/s the end takes {:.1} s", took.as_secs_f64());
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let manifest = judge(&storage, &store, "faults").await;
    assert_eq!(manifest.tracks.len(), 1);
    assert_eq!(manifest.tracks[0].ledger.sums.get(callreel::capture::Reason::Lost).0, 0, "capture misses nothing");
}

#[tokio::test]
async fn keys_that_may_not_delete_make_whole_recordings() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::minio().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let allowed = ["s3:PutObject", "s3:GetObject", "s3:ListBucket"];
    let s3 = storage.s3_config_allowing("calls", &allowed).await.unwrap();
    let mut recorder = Recorder::start_with(&server, s3, "putonly", &[]).await;
    recorder.says("may not delete").await;
    recorder.voice.sent_at_least(200).await.unwrap();
    let (result, _) = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let whole = store.get("2026/putonly.ogg", None).await.unwrap();
    assert_eq!(whole.len() as u64, result.outputs[0].bytes);
    let left: Vec<String> = keys(&store).await.into_iter().filter(|key| key.contains(".live/")).collect();
    assert_eq!(left, ["2026/putonly.live/probe", "2026/putonly.live/state.json"], "what it costs");
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(recover(&storage, elsewhere.path(), &["--from-store", "s3://calls"]).await, [], "it is done");
}
