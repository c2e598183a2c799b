//! Encrypted recordings on real servers: nothing of the sound is ever plain, no secret key is needed to end them, and who has
//! one hears everything.

mod steady;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use age::secrecy::ExposeSecret;
use callreel::clock;
use callreel::encode::{Inspection, Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags};
use callreel::recording::{Manifest, Outcome, OutputEntry, Reason, RecordingResult};
use callreel::seal::{Identities, Opened, Opener, Recipients, Sealer};
use callreel::spool::{
    JOURNAL_VERSION, Memory, NewFile, Place, RecordingFiles, Reservation, SEALED, SpoolFile, Started,
};
use callreel::store::Store;
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, StorageServer, TrackOptions, Voice, analysis};
use callreel::time::SampleCount;
use callreel::upload::{self, LiveState, Upload, UploadConfig, UploadPlan};
use steady::grows_steadily;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const CALLREEL: &str = env!("CARGO_BIN_EXE_callreel");

/// What no file may hold: the beginning of an Ogg page, of captions, and of a waveform.
const PLAIN: [&[u8]; 3] = [b"OggS", b"WEBVTT", b"samples_per_pixel"];

/// `callreel` without anything of this process's environment that it would listen to.
fn callreel() -> Command {
    let mut command = Command::new(CALLREEL);
    for (name, _) in std::env::vars() {
        if ["LIVEKIT", "CALLREEL", "S3_", "AWS_", "GOOGLE_", "ENCRYPT"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("AWS_EC2_METADATA_DISABLED", "true").env("RUST_LOG", "warn,callreel=debug");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// As above, with the keys of a storage server.
fn callreel_with(storage: &StorageServer) -> Command {
    let s3 = storage.s3_config("calls");
    let mut command = callreel();
    command.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
    command.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
    command
}

/// Somebody who can hear a recording.
struct Listener {
    public: String,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Listener {
    fn new() -> Self {
        let key = age::x25519::Identity::generate();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.txt");
        std::fs::write(&file, format!("# a key\n{}\n", key.to_string().expose_secret())).unwrap();
        Self { public: key.to_public().to_string(), file, _dir: dir }
    }

    async fn decrypt(&self, file: &Path, out: &Path) -> Output {
        let mut command = callreel();
        command.arg("decrypt").arg(file).arg("--identity").arg(&self.file).arg("--out").arg(out);
        command.output().await.unwrap()
    }

    /// What is in a file that has to be whole.
    async fn hear(&self, file: &Path) -> Vec<u8> {
        let out = tempfile::tempdir().unwrap();
        let to = out.path().join("plain");
        let output = self.decrypt(file, &to).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(to).unwrap()
    }
}

/// A recorder process in a room in which somebody speaks.
struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
    said: Vec<String>,
    sound: Audio,
    voice: Voice,
    /// Where she was in what she says when it had heard her: the server has taken her up by then.
    heard_from: SampleCount,
    _alice: Publisher,
}

impl Recorder {
    async fn start(mut command: Command, server: &LiveKitServer, room: &str, to: &str) -> Self {
        command.args(["record", "--url", &server.url(), "--room", room, "--name", room, "--encrypt-to", to]);
        command.args(["--departure-timeout", "60s", "--tail-every", "1s"]);
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        let mut process = command.spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap()).lines();
        server.rooms().until_somebody(room).await.unwrap();
        let alice = Publisher::join(PublisherConfig::on(server, room, "alice")).await.unwrap();
        // So long that nothing of it comes twice.
        let sound = generate::speech(7, Duration::from_secs(60));
        let voice = alice.publish(sound.clone(), TrackOptions::default().looped(true)).await.unwrap();
        let heard_from = SampleCount(0);
        let mut recorder = Self { process, log, said: Vec::new(), sound, voice, heard_from, _alice: alice };
        recorder.says("first packet").await;
        recorder.heard_from = recorder.voice.sent().last().unwrap().position;
        recorder
    }

    /// Lets it hear so many packets more.
    async fn hears(&self, packets: usize) {
        self.voice.sent_at_least(self.voice.sent().len() + packets).await.unwrap();
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

    /// Tells it to stop, and gives its result.
    async fn finish(&mut self) -> RecordingResult {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut lines = BufReader::new(self.process.stdout.take().unwrap()).lines();
        let mut last = String::new();
        let drained = async { while self.log.next_line().await.is_ok_and(|line| line.is_some()) {} };
        let read = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                last = line;
            }
        };
        tokio::join!(drained, read);
        self.process.wait().await.unwrap();
        serde_json::from_str(&last).unwrap_or_else(|error| panic!("{error}: {last:?}"))
    }

    /// Kills it, and gives a moment before and one after its death.
    async fn kill(&mut self) -> [time::OffsetDateTime; 2] {
        let before = clock::wall();
        self.process.kill().await.unwrap();
        [before, clock::wall()]
    }

    /// How many milliseconds after they were said the first two seconds that it has to have heard lie in a recording.
    fn late(&self, plain: &[u8], manifest: &Manifest) -> f64 {
        let recorded = Audio::from_ogg_opus(plain).unwrap();
        let from = self.heard_from.0 as usize;
        let found = analysis::find(self.sound.slice(from..from + 96_000).channel(0), recorded.channel(0)).unwrap();
        assert!(found.score > 0.6, "{found:?}");
        let said = clock::wall() - (clock::now() - self.voice.start()) + self.heard_from.as_duration();
        found.offset as f64 / 48.0 - (said - manifest.started_at).as_seconds_f64() * 1e3
    }
}

async fn recover(mut command: Command, more: &[&str]) -> Vec<RecordingResult> {
    let output = command.arg("recover").args(more).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn everything(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in std::fs::read_dir(root).into_iter().flatten().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            found.extend(everything(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.insert(path, bytes);
        }
    }
    found
}

fn assert_nothing_is_plain<'a>(files: impl IntoIterator<Item = (String, &'a [u8])>) -> usize {
    let mut count = 0;
    for (name, bytes) in files {
        count += 1;
        for plain in PLAIN {
            assert!(!bytes.windows(plain.len()).any(|there| there == plain), "{name} holds {}", plain.escape_ascii());
        }
    }
    count
}

fn assert_no_file_is_plain(root: &Path) -> usize {
    let files = everything(root);
    assert_nothing_is_plain(files.iter().map(|(path, bytes)| (path.display().to_string(), &bytes[..])))
}

async fn assert_no_object_is_plain(store: &Store) -> Vec<String> {
    let keys: Vec<String> = store.list("").await.unwrap().into_iter().map(|object| object.key).collect();
    for key in &keys {
        // A tail may go meanwhile.
        if let Ok(bytes) = store.get(key, None).await {
            assert_nothing_is_plain([(key.clone(), &bytes[..])]);
        }
    }
    keys
}

fn inspect(plain: &[u8]) -> Inspection {
    let mut inspector = OggInspector::new();
    inspector.push(plain);
    inspector.finish()
}

/// Checks what came out of one output.
fn assert_is_whole(plain: &[u8], output: &OutputEntry) {
    let found = inspect(plain);
    assert!(found.is_clean(), "{}: {:?}", output.file, found.problems);
    let plays = found.duration.as_secs_f64();
    assert!((plays - output.duration_seconds).abs() < 0.001, "{plays} s, not {}", output.duration_seconds);
}

fn assert_is_sealed_to(manifest: &Manifest, keys: &[&str]) {
    for output in &manifest.outputs {
        let encryption = output.encryption.as_ref().expect("it is encrypted");
        assert_eq!(encryption.scheme, "age");
        assert_eq!(encryption.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(), keys);
        assert!(output.file.ends_with(".ogg.age"), "{}", output.file);
    }
    assert!(manifest.speech.is_empty(), "who spoke when is not told in plain");
    assert!(manifest.participants.iter().all(|participant| participant.speaking_seconds.is_none()));
}

fn missing(manifest: &Manifest, until: time::OffsetDateTime) -> f64 {
    (until - manifest.started_at).as_seconds_f64() - manifest.duration_seconds
}

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

#[tokio::test]
async fn nothing_is_plain_and_each_listener_hears_everything() {
    let server = LiveKitServer::start().await.unwrap();
    let (one, two, stranger) = (Listener::new(), Listener::new(), Listener::new());
    let out = tempfile::tempdir().unwrap();
    let mut command = callreel();
    command.env("CALLREEL_OUT", out.path()).env("CALLREEL_OUTPUTS", "mix,dual,tracks");
    let to = format!("{},{}", one.public, two.public);
    let mut recorder = Recorder::start(command, &server, "call", &to).await;
    recorder.hears(150).await;
    until("three files, a journal and the place for the manifest", async || {
        (assert_no_file_is_plain(out.path()) >= 5).then_some(())
    })
    .await;
    let result = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    assert_no_file_is_plain(out.path());
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(result.manifest.unwrap()).unwrap()).unwrap();
    assert_is_sealed_to(&manifest, &[&one.public, &two.public]);
    let names: Vec<&str> = manifest.outputs.iter().map(|output| &*output.file).collect();
    assert_eq!(names, ["call.ogg.age", "call-dual.ogg.age", "call-alice.ogg.age"]);
    for output in &manifest.outputs {
        let file = out.path().join(&output.file);
        let plain = one.hear(&file).await;
        assert!(plain == two.hear(&file).await);
        assert_is_whole(&plain, output);
        let late = recorder.late(&plain, &manifest);
        assert!((-10.0..=60.0).contains(&late), "{}: {late:.1} ms after it was said", output.file);
        println!("{}: {} bytes, {} of them plain; {late:.1} ms", output.file, output.bytes, plain.len());
    }
    let sidecars: Vec<&str> = manifest.sidecars.iter().map(|sidecar| &*sidecar.file).collect();
    assert_eq!(sidecars, ["call.vtt.age", "call.peaks.json.age"]);
    assert!(manifest.sidecars.iter().all(|sidecar| sidecar.encryption.is_some()));
    let captions = String::from_utf8(two.hear(&out.path().join("call.vtt.age")).await).unwrap();
    assert!(captions.starts_with("WEBVTT") && captions.contains("alice"), "{captions}");

    // Whoever has no key, or wants it where something is.
    let (file, to) = (out.path().join("call.ogg.age"), out.path().join("heard.ogg"));
    let refused = stranger.decrypt(&file, &to).await;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("segment 1 at offset 0 is not sealed to any of these keys"), "{said}");
    assert!(!to.exists() && !to.with_extension("ogg.part").exists());
    let refused = stranger.decrypt(&out.path().join("call.vtt.age"), &to).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("none of these keys opens it"));
    std::fs::write(&to, "mine").unwrap();
    assert_eq!(one.decrypt(&file, &to).await.status.code(), Some(1));
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");

    for keys in [None, Some(&one)] {
        let mut inspect = callreel();
        inspect.arg("inspect").arg(&file);
        if let Some(Listener { file, .. }) = keys {
            inspect.arg("--identity").arg(file);
        }
        let output = inspect.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains(&format!("encrypted with age to {}", two.public)), "{said}");
        assert_eq!(said.contains(" packets on "), keys.is_some(), "{said}");
    }

    // Damage in the middle costs what it hits; a cut, what is behind it.
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = out.path().join("damaged.ogg.age");
    std::fs::write(&damaged, &bytes).unwrap();
    let output = one.decrypt(&damaged, &out.path().join("damaged.ogg")).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.lines().count() == 1 && said.contains(" is damaged") && said.contains("s of sound are lost"),
        "{said}"
    );
    let left = inspect(&std::fs::read(out.path().join("damaged.ogg")).unwrap());
    assert!(left.ended && left.duration.as_secs_f64() > manifest.duration_seconds - 0.01);
    std::fs::write(&damaged, &std::fs::read(&file).unwrap()[..middle]).unwrap();
    let output = one.decrypt(&damaged, &out.path().join("cut.ogg")).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("before its stream's end"), "{said}");
    let left = inspect(&std::fs::read(out.path().join("cut.ogg")).unwrap());
    assert_eq!(left.problems, [callreel::encode::Problem::NoEnd]);
}

#[tokio::test]
async fn killed_in_the_middle_it_is_ended_without_a_secret_key() {
    let server = LiveKitServer::start().await.unwrap();
    let listener = Listener::new();
    for (seed, outputs) in ["mix", "mix,dual,tracks"].into_iter().enumerate() {
        let out = tempfile::tempdir().unwrap();
        let mut command = callreel();
        command.env("CALLREEL_OUT", out.path()).env("CALLREEL_OUTPUTS", outputs);
        let mut recorder = Recorder::start(command, &server, &format!("killed-{seed}"), &listener.public).await;
        recorder.hears(170 + 37 * seed).await;
        let mix = out.path().join(format!("killed-{seed}.ogg.age.part"));
        grows_steadily(Duration::from_millis(400), async || std::fs::metadata(&mix).unwrap().len()).await;
        let [before, after] = recorder.kill().await;
        let results = recover(callreel(), &["--out", out.path().to_str().unwrap()]).await;
        assert_eq!((results.len(), results[0].outcome), (1, Outcome::Degraded), "{results:?}");
        assert!(!out.path().join(".spool").exists());
        assert_no_file_is_plain(out.path());
        let manifest = results[0].manifest.as_ref().unwrap();
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        assert!(matches!(manifest.reasons[..], [Reason::Interrupted { .. }]), "{:?}", manifest.reasons);
        assert_is_sealed_to(&manifest, &[&listener.public]);
        for output in &manifest.outputs {
            let plain = listener.hear(&out.path().join(&output.file)).await;
            assert_is_whole(&plain, output);
            recorder.late(&plain, &manifest);
            let inspected = callreel().arg("inspect").arg(out.path().join(&output.file)).output().await.unwrap();
            assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
        }
        let lacks = missing(&manifest, before);
        println!("{outputs}: missing before the kill: {lacks:.2} s");
        // A packet's 20 ms begin when it comes.
        assert!(lacks <= 1.0 && missing(&manifest, after) >= -0.05, "{lacks}");
    }
}

#[tokio::test]
async fn the_bucket_alone_is_enough_and_never_holds_a_sound() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let listener = Listener::new();
    let spool = tempfile::tempdir().unwrap();
    let mut command = callreel_with(&storage);
    command.env("CALLREEL_OUT", "s3://calls/2026").env("CALLREEL_SPOOL", spool.path());
    let mut recorder = Recorder::start(command, &server, "lost", &listener.public).await;
    recorder.hears(200).await;
    let key = LiveState::key_of("2026/lost");
    let read_state = async || Some(LiveState::read(&key, &store.get(&key, None).await.ok()?).unwrap());
    until("two tails", async || {
        let state = read_state().await?;
        (state.files.first()?.tails.len() > 1 && state.so_far.is_some()).then_some(())
    })
    .await;
    assert_no_file_is_plain(spool.path());
    assert!(assert_no_object_is_plain(&store).await.len() > 2, "state and tails");
    let safe = async || read_state().await.unwrap().files[0].safe();
    grows_steadily(Duration::from_millis(1_600), safe).await;
    let [killed, _] = recorder.kill().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let from =
        ["--out", "s3://calls/2026", "--from-store", "s3://calls", "--spool", elsewhere.path().to_str().unwrap()];
    let results = until("the lease ends, and somebody finishes it", async || {
        let results = recover(callreel_with(&storage), &from).await;
        (!results.is_empty()).then_some(results)
    })
    .await;
    assert_eq!((results.len(), results[0].outcome), (1, Outcome::Degraded), "{results:?}");
    assert_eq!(assert_no_object_is_plain(&store).await, ["2026/lost.json", "2026/lost.ogg.age"]);
    let manifest: Manifest = serde_json::from_slice(&store.get("2026/lost.json", None).await.unwrap()).unwrap();
    assert_is_sealed_to(&manifest, &[&listener.public]);
    let heard = tempfile::tempdir().unwrap();
    let file = heard.path().join("lost.ogg.age");
    std::fs::write(&file, store.get("2026/lost.ogg.age", None).await.unwrap()).unwrap();
    let plain = listener.hear(&file).await;
    assert_is_whole(&plain, &manifest.outputs[0]);
    recorder.late(&plain, &manifest);
    let lacks = missing(&manifest, killed);
    println!("missing before the machine was lost: {lacks:.2} s");
    assert!(lacks <= 3.0, "{lacks}");
    // The machine comes back with its spool: everything is there already.
    let spool = spool.path().to_str().unwrap();
    assert_eq!(recover(callreel_with(&storage), &["--out", "s3://calls/2026", "--spool", spool]).await, results);
    assert_eq!(assert_no_object_is_plain(&store).await, ["2026/lost.json", "2026/lost.ogg.age"]);
}

#[tokio::test]
async fn a_whole_call_goes_into_the_bucket_sealed() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let listener = Listener::new();
    let spool = tempfile::tempdir().unwrap();
    let mut command = callreel_with(&storage);
    command.env("CALLREEL_OUT", "s3://calls").env("CALLREEL_SPOOL", spool.path());
    let mut recorder = Recorder::start(command, &server, "whole", &listener.public).await;
    recorder.hears(150).await;
    let result = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    assert_eq!(result.outputs[0].location, "s3://calls/whole.ogg.age");
    let keys = assert_no_object_is_plain(&store).await;
    assert_eq!(keys, ["whole.json", "whole.ogg.age", "whole.peaks.json.age", "whole.vtt.age"]);
    assert!(everything(spool.path()).is_empty());
    let heard = tempfile::tempdir().unwrap();
    let file = heard.path().join("whole.ogg.age");
    std::fs::write(&file, store.get("whole.ogg.age", None).await.unwrap()).unwrap();
    let manifest: Manifest = serde_json::from_slice(&store.get("whole.json", None).await.unwrap()).unwrap();
    assert_is_whole(&listener.hear(&file).await, &manifest.outputs[0]);
}

/// A recording of which somebody else writes the pages: large ones, so that parts fill at once.
struct Pages {
    files: RecordingFiles,
    file: SpoolFile,
    writer: OggOpusWriter,
    sealer: Sealer,
}

impl Pages {
    fn begin(root: &Path, recipients: Recipients) -> Self {
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: "pages".into(),
            room: "room".into(),
            pid: 1,
            wall_zero: time::OffsetDateTime::UNIX_EPOCH,
            boot_zero: None,
            place: Place::Store("s3://calls".into()),
            name: "call.ogg.age".into(),
        };
        let (events, _) = tokio::sync::mpsc::unbounded_channel();
        let reservation = Reservation { spool: root.join("spool"), started, memory: Memory::new(64 << 20) };
        let mut files = RecordingFiles::reserve(&reservation, events).unwrap();
        let sealer = Sealer::new(recipients.clone());
        let file = files.create(NewFile { kind: "mix".into(), ext: SEALED.into(), recipients, ..NewFile::default() });
        let head = OpusHead::new(Mapping::Mono, 312);
        let writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(48_000)).unwrap();
        Self { files, file, writer, sealer }
    }

    /// Writes so many packets of 1 kB.
    async fn write(&mut self, packets: usize) {
        let mut packet = vec![0xf8; 1_000];
        for n in 0..packets {
            packet[1..9].copy_from_slice(&(n as u64).to_le_bytes());
            self.writer.write_packet(&packet, 960).unwrap();
        }
        self.writer.close_page();
        let (mut pages, mut segments) = (Vec::new(), Vec::new());
        self.writer.take_bytes(&mut pages);
        self.sealer.seal(&pages, &mut segments).unwrap();
        self.files.append(self.file.id(), segments);
        let mut progress = self.file.progress();
        progress.wait_for(|progress| progress.written > 0 && progress.synced == progress.written).await.unwrap();
    }
}

#[tokio::test]
async fn parts_that_end_within_a_segment_are_finished_by_another_machine() {
    let storage = StorageServer::versitygw().await.unwrap();
    let store = storage.store("calls").await.unwrap();
    let listener = Listener::new();
    let dir = tempfile::tempdir().unwrap();
    let mut pages = Pages::begin(dir.path(), Recipients::parse(&listener.public).unwrap());
    let config = UploadConfig { tail_every: Some(Duration::from_secs(1)), patience: Duration::from_secs(20) };
    let plan = UploadPlan { recording_id: "pages".into(), key: "call.ogg.age".into(), config, steps: Vec::new() };
    let upload = Upload::start(store.clone(), plan, |_| {});
    upload.add(pages.file.clone());
    let key = LiveState::key_of("call");
    let read_state = async || LiveState::read(&key, &store.get(&key, None).await.ok()?).ok();
    pages.write(3_000).await;
    until("a tail", async || read_state().await.filter(|state| !state.files[0].tails.is_empty())).await;
    pages.write(8_000).await;
    let written = pages.file.progress().borrow().written;
    until("two parts and what is behind them", async || {
        read_state().await.filter(|state| state.files[0].parts.len() == 2 && state.files[0].safe() == written)
    })
    .await;
    drop((upload, pages));
    let adopted = until("the lease ends", async || upload::adopt(&store, &key).await.unwrap()).await;
    let [file] = adopted.files() else { panic!("{:?}", adopted.files()) };
    assert!(file.bytes > written && file.bytes < written + 700, "all segments and an end: {file:?}");
    assert_eq!(file.duration, Some(SampleCount(11_000 * 960 - 312)));
    adopted.close().await.unwrap();
    let sealed = dir.path().join("call.ogg.age");
    std::fs::write(&sealed, store.get("call.ogg.age", None).await.unwrap()).unwrap();
    let found = inspect(&listener.hear(&sealed).await);
    assert!(found.is_clean(), "{:?}", found.problems);
    assert_eq!(found.packets, 11_001, "all of them, and a silent one that ends the stream");
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

#[test]
fn what_it_costs_is_bounded() {
    // A minute in pages of a quarter of a second, at 32 kbit/s.
    const SEGMENTS: usize = 240;
    let head = OpusHead::new(Mapping::Mono, 312);
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount(12_000)).unwrap();
    let mut pieces = Vec::new();
    for n in 0..SEGMENTS {
        for _ in 0..if n % 2 == 0 { 12 } else { 13 } {
            writer.write_packet(&[&[0xf8][..], &[7; 79]].concat(), 960).unwrap();
        }
        writer.close_page();
        let mut pages = Vec::new();
        writer.take_bytes(&mut pages);
        pieces.push(pages);
    }
    for count in [1, 3] {
        let listeners: Vec<Listener> = (0..count).map(|_| Listener::new()).collect();
        let keys: Vec<&str> = listeners.iter().map(|listener| &*listener.public).collect();
        let mut sealer = Sealer::new(Recipients::parse(&keys.join(",")).unwrap());
        let mut file = Vec::new();
        let begun = clock::now();
        pieces.iter().for_each(|pages| sealer.seal(pages, &mut file).unwrap());
        let sealing = clock::now() - begun;
        let mut opener = Opener::new(Identities::parse(&std::fs::read_to_string(&listeners[0].file).unwrap()).unwrap());
        opener.push(&file);
        let begun = clock::now();
        while let Some(opened) = opener.next_opened() {
            assert!(matches!(opened, Opened::Pages(_)));
        }
        let opening = clock::now() - begun;
        let plain: usize = pieces.iter().map(Vec::len).sum();
        let more = (file.len() - plain) as f64 / SEGMENTS as f64;
        let micros = |took: Duration| took.as_secs_f64() * 1e6 / SEGMENTS as f64;
        println!(
            "{count} keys: {more:.0} bytes a segment more, {:.1} kbit/s; {:.0} µs to seal one, {:.0} µs to open",
            more * 8.0 * 4.0 / 1e3,
            micros(sealing),
            micros(opening)
        );
        assert!(more < 400.0 + 110.0 * (count - 1) as f64, "{more}");
    }
}

#[tokio::test]
async fn keys_that_are_none_are_told_before_anything_is_recorded() {
    let listener = Listener::new();
    let secret = std::fs::read_to_string(&listener.file).unwrap().lines().nth(1).unwrap().to_owned();
    let run = async |arguments: &[&str], variable: Option<&str>| {
        let mut command = callreel();
        command.args(["record", "--url", "ws://127.0.0.1:1", "--room", "r", "--api-key", "k", "--api-secret", "s"]);
        command.args(arguments).envs(variable.map(|value| ("ENCRYPT_TO", value)));
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&["--encrypt-to", "age1wrong"], None).await;
    assert!(code == Some(2) && said.contains("\"age1wrong\" is no age public key"), "{said}");
    let (code, said) = run(&["--encrypt-to", &secret], None).await;
    assert!(code == Some(2) && said.contains("is a secret key") && !said.contains(&secret), "{said}");
    let (code, said) = run(&["--encrypt-to-file", "/nowhere"], None).await;
    assert!(code == Some(2) && said.contains("/nowhere"), "{said}");
    let (code, said) = run(&[], Some("")).await;
    assert!(code == Some(2) && said.contains("encrypt_to: it names no public key"), "{said}");
    let (code, said) = run(&["--encrypt-to-file", listener.file.to_str().unwrap()], None).await;
    assert!(code == Some(2) && said.contains("is a secret key") && !said.contains(&secret), "{said}");
}
