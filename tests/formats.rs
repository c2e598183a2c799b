//! Recordings in every format: of one call, after a death, gone on with, and in a store; converted and drawn.

mod steady;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use callreel::clock;
use callreel::encode::{Mapping, OggInspector, OggOpusWriter, OpusConfig, OpusEncoder, OpusHead, OpusTags};
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::testkit::analysis;
use callreel::testkit::audio::generate;
use callreel::testkit::{
    LiveKitServer, Publisher, PublisherConfig, StorageServer, Tier, TrackOptions, Voice, checkout, tier,
};
use callreel::time::SampleCount;
use callreel::upload::{FileState, LiveState};
use steady::grows_steadily;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};

const ALL: &str = "ogg,webm,mp4,wav,flac,mp3";

/// What makes an MP4 one of AAC, in builds that can.
const AAC: Option<(&str, &[&str])> = if cfg!(feature = "aac") { Some(("mp4", &["--mp4-codec", "aac"])) } else { None };

/// How far a decoded file may be from the Ogg: a millisecond.
const TOLERANCE: i64 = 48;

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

/// Runs a command that has to succeed.
async fn run(args: &[&str], paths: &[&Path]) -> Output {
    let output = callreel().args(args).args(paths).output().await.unwrap();
    assert!(output.status.success(), "{args:?} {paths:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

struct Recorder {
    process: Child,
    log: Lines<BufReader<ChildStderr>>,
}

fn with_store(command: &mut Command, storage: &StorageServer) {
    let s3 = storage.s3_config("calls");
    command.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
    command.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
}

impl Recorder {
    /// Starts a recorder, and waits until it records.
    async fn start(server: &LiveKitServer, storage: Option<&StorageServer>, root: &Path, more: &[&str]) -> Self {
        let mut command = callreel();
        command.args(["record", "--url", &server.url(), "--room", "call"]);
        if !more.contains(&"--name") {
            command.args(["--name", "call", "--recording-id", "R1"]);
        }
        command.args(["--departure-timeout", "60s", "--tail-every", "1s", "--spool"]).arg(root.join("spool"));
        command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret()).arg("--out");
        match storage {
            None => command.arg(root.join("out")),
            Some(storage) => {
                with_store(&mut command, storage);
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

    /// Kills it, and gives the moment before.
    async fn kill(mut self) -> time::OffsetDateTime {
        let at = clock::wall();
        self.process.kill().await.unwrap();
        at
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

/// Somebody who speaks in a loop of ten seconds.
async fn speaker(server: &LiveKitServer, identity: &str, seed: u64) -> (Publisher, Voice) {
    let publisher = Publisher::join(PublisherConfig::on(server, "call", identity)).await.unwrap();
    let sound = generate::speech(seed, Duration::from_secs(10));
    let voice = publisher.publish(sound, TrackOptions::default().looped(true)).await.unwrap();
    (publisher, voice)
}

fn manifest_in(folder: &Path) -> Manifest {
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(folder.join("call.json")).unwrap()).unwrap();
    manifest.check().unwrap();
    manifest
}

/// What ffmpeg hears in a file, channel by channel. It may not complain.
async fn heard(file: &Path) -> Vec<Vec<f32>> {
    let probe = Command::new("ffprobe")
        .args(["-v", "warning", "-of", "csv=p=0", "-show_entries", "stream=codec_name,channels"])
        .arg(file)
        .output()
        .await
        .unwrap();
    assert!(probe.stderr.is_empty(), "{}: {}", file.display(), String::from_utf8_lossy(&probe.stderr));
    let probed = String::from_utf8(probe.stdout).unwrap();
    let (codec, channels) = probed.trim().split_once(',').unwrap();
    let channels: usize = channels.parse().unwrap();
    // ffmpeg's own decoder is a sample or two behind libopus, and less alike than a threshold bears.
    let decoder: &[&str] = if codec == "opus" { &["-c:a", "libopus"] } else { &[] };
    let decoded = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "warning"])
        .args(decoder)
        .arg("-i")
        .arg(file)
        .args(["-f", "f32le", "-ar", "48000", "-"])
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&decoded.stderr).into_owned();
    // Of plain PCM it always says that.
    let told = said.lines().filter(|line| !line.is_empty() && !line.starts_with("Guessed Channel Layout"));
    assert_eq!(told.count(), 0, "{}: {said}", file.display());
    let samples: Vec<f32> =
        decoded.stdout.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    (0..channels).map(|channel| samples.iter().skip(channel).step_by(channels).copied().collect()).collect()
}

/// How long ffprobe says that a file is, in seconds.
async fn duration_of(file: &Path) -> f64 {
    let args = ["-v", "error", "-of", "csv=p=0", "-show_entries", "format=duration"];
    let output = Command::new("ffprobe").args(args).arg(file).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().parse().unwrap_or_else(|_| panic!("{}: {text:?}", file.display()))
}

/// Compares what is heard in a file with what is heard in the reference, at its beginning and at its end.
fn compare(name: &str, found: &[Vec<f32>], reference: &[Vec<f32>]) {
    // What was encoded anew is less alike.
    let is_aac = name.ends_with("AAC");
    let alike = if name.contains(" to ") || name.ends_with("mp3") || is_aac { 0.9 } else { 0.97 };
    assert_eq!(found.len(), reference.len(), "{name}: channels");
    for (found, reference) in found.iter().zip(reference) {
        let longer = found.len() as i64 - reference.len() as i64;
        // ffmpeg plays the packet whole in which an MP4 ends.
        let may_be_longer = match name {
            _ if is_aac => 0..=1_023,
            _ if name.ends_with("mp4") => 0..=960,
            _ => 0..=0,
        };
        assert!(may_be_longer.contains(&longer), "{name}: {longer} samples longer");
        let end = reference.len().min(found.len());
        for from in [0, end - 96_000] {
            let piece = &reference[from..from + 96_000];
            if analysis::peak(piece) < -40.0 {
                continue;
            }
            let around = from.saturating_sub(4_800)..(from + 100_800).min(found.len());
            let place = analysis::find(piece, &found[around.clone()]).expect("sound");
            let off = around.start as i64 + place.offset as i64 - from as i64;
            println!("{name} at {:.1} s: {off} samples off, likeness {:.4}", from as f64 / 48e3, place.score);
            assert!(off.abs() <= TOLERANCE && place.score > alike, "{name} at {from}: {off} off, {place:?}");
        }
    }
}

/// Checks every file that the manifest names: by `callreel inspect`, by ffmpeg, and against the first.
async fn check_all(folder: &Path, manifest: &Manifest) {
    let inspected = callreel().arg("inspect").arg(folder.join("call.json")).output().await.unwrap();
    let text = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.status.success(), "{text}{}", String::from_utf8_lossy(&inspected.stderr));
    let mut references: Vec<(String, Vec<Vec<f32>>)> = Vec::new();
    for output in &manifest.outputs {
        let file = folder.join(&output.file);
        assert!(output.file.ends_with(&format!(".{}", output.format)), "{output:?}");
        let (sound, seconds) = (heard(&file).await, duration_of(&file).await);
        // ffprobe counts what a player leaves out of an MP3's first and last frames, and the packet before the sound of AAC.
        let is_aac = std::fs::read(&file).unwrap().windows(4).take(4_096).any(|kind| kind == b"mp4a");
        let tolerance = match output.format.as_str() {
            "mp3" => 0.072,
            "mp4" if is_aac => 0.022,
            _ => 0.02,
        };
        let off = seconds - output.duration_seconds;
        assert!(off.abs() <= tolerance, "{}: {seconds} s, not {}", output.file, output.duration_seconds);
        let key = format!("{} {:?}", output.kind, output.participant);
        match references.iter().find(|(known, _)| *known == key) {
            Some((_, reference)) => {
                compare(&format!("{}{}", output.file, if is_aac { ", AAC" } else { "" }), &sound, reference)
            }
            None => references.push((key, sound)),
        }
    }
}

/// Plays the mix of every format in Chromium: its length, a seek to the middle, and sound there.
async fn played_by_a_browser(folder: &Path, manifest: &Manifest) {
    let script = checkout().join("tests/playback/playback.py");
    let mixes: Vec<_> = manifest.outputs.iter().filter(|output| output.kind.as_str() == "mix").collect();
    let files = mixes.iter().map(|output| folder.join(&output.file));
    let said = Command::new("python3").arg(script).args(files).output().await.unwrap();
    let said_text = String::from_utf8_lossy(&said.stdout).into_owned();
    let lines: Vec<serde_json::Value> = said_text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), mixes.len(), "{said_text}{}", String::from_utf8_lossy(&said.stderr));
    for (line, output) in lines.iter().zip(mixes) {
        println!("{line}");
        assert_eq!(line["ok"], true, "{line}");
        let off = line["duration"].as_f64().unwrap() - output.duration_seconds;
        assert!(off.abs() < if output.format == "mp3" { 0.072 } else { 0.03 }, "{line}: {off} s");
        assert!(line["playing"] == true && line["energy"][0].as_f64().unwrap() > 0.001, "{line}");
    }
}

fn everything(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> =
        entries.flat_map(|path| if path.is_dir() { everything(&path) } else { vec![path] }).collect();
    all.sort();
    all
}

fn names(folder: &Path) -> Vec<String> {
    everything(folder).iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn formats(manifest: &Manifest) -> Vec<&str> {
    manifest.outputs.iter().map(|output| output.format.as_str()).collect()
}

#[tokio::test]
async fn one_call_in_every_format() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let more = ["--format", ALL, "--outputs", "mix,dual", "--pictures", "waveform,spectrogram", "--name-people"];
    let recorder = Recorder::start(&server, None, root.path(), &more).await;
    let (_alice, voice) = speaker(&server, "alice", 1).await;
    let (_bob, his) = speaker(&server, "bob", 2).await;
    voice.sent_at_least(300).await.unwrap();
    his.sent_at_least(300).await.unwrap();
    let result = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let manifest = manifest_in(&out);
    assert_eq!(formats(&manifest), ALL.split(',').chain(ALL.split(',')).collect::<Vec<_>>());
    check_all(&out, &manifest).await;
    // Packets of containers are those of the Ogg: the same bytes decoded.
    let ogg = heard(&out.join("call.ogg")).await;
    for same in ["webm", "mp4"] {
        let found = heard(&out.join(format!("call.{same}"))).await;
        let common = ogg[0].len().min(found[0].len());
        assert_eq!(found[0][..common], ogg[0][..common], "{same}");
    }
    for (picture, magic) in
        [("waveform.png", &b"\x89PNG"[..]), ("waveform.svg", b"<svg"), ("spectrogram.png", b"\x89PNG")]
    {
        let bytes = std::fs::read(out.join(format!("call.{picture}"))).unwrap();
        let begins = bytes.windows(magic.len()).take(200).any(|window| window == magic);
        assert!(begins && bytes.len() > 1_000, "{picture}: {} bytes", bytes.len());
    }
    let svg = std::fs::read_to_string(out.join("call.waveform.svg")).unwrap();
    assert!(svg.contains("alice") && svg.contains("bob"), "{svg}");
    assert!(!names(root.path()).iter().any(|name| name.ends_with(".part")), "{:?}", names(root.path()));

    played_by_a_browser(&out, &manifest).await;

    // From each to each other, by the command.
    let (again, converted) = (root.path().join("again"), root.path().join("converted"));
    std::fs::create_dir_all(&again).unwrap();
    std::fs::create_dir_all(&converted).unwrap();
    for from in ALL.split(',') {
        for to in ALL.split(',').filter(|to| *to != from) {
            let target = converted.join(format!("{from}.{to}"));
            run(&["convert"], &[&out.join(format!("call.{from}")), &target]).await;
            compare(&format!("{from} to {to}"), &heard(&target).await, &ogg);
        }
    }
    let progressive = converted.join("front.mp4");
    run(&["convert", "--progressive"], &[&out.join("call.mp4"), &progressive]).await;
    let bytes = std::fs::read(&progressive).unwrap();
    let at = |name: &[u8]| bytes.windows(4).position(|window| window == name).unwrap();
    assert!(at(b"moov") < at(b"mdat") && !bytes.windows(4).any(|window| window == b"moof"));
    compare("progressive mp4", &heard(&progressive).await, &ogg);
    // Without a change of the codec nothing is encoded anew.
    for container in ["webm", "mp4"] {
        run(&["convert"], &[&converted.join(format!("ogg.{container}")), &again.join(format!("{container}.ogg"))])
            .await;
        let packets = |file: PathBuf| {
            let mut packets = Vec::new();
            OggInspector::new().push_each(&std::fs::read(file).unwrap(), &mut |packet| packets.push(packet.to_vec()));
            packets
        };
        let (original, back) = (packets(out.join("call.ogg")), packets(again.join(format!("{container}.ogg"))));
        assert_eq!(back[..], original[..back.len()], "{container}");
        assert!(original.len() - back.len() <= 1, "{container} lacks more than the packet that only carries an end");
    }
    let samples = async |file: &Path| heard(file).await;
    assert_eq!(samples(&converted.join("wav.flac")).await, samples(&out.join("call.wav")).await);
    // Drawn once more from the files, each with its own sound as the manifest says nothing of it.
    run(&["draw", "--names"], &[&out.join("call.json"), Path::new("--waveform"), &again.join("a.svg")]).await;
    let drawn = std::fs::read_to_string(again.join("a.svg")).unwrap();
    assert!(drawn.contains("alice"), "{drawn}");
    let mut twice = callreel();
    twice.arg("draw").arg(out.join("call.json")).arg("--waveform").arg(again.join("a.svg"));
    let refused = twice.output().await.unwrap();
    assert!(!refused.status.success(), "it overwrites");
}

#[tokio::test]
async fn what_a_dead_recorder_left_is_whole_in_every_format() {
    let server = LiveKitServer::start().await.unwrap();
    let (_alice, voice) = speaker(&server, "alice", 3).await;
    let mut random = fastrand::Rng::with_seed(9);
    let mut missing = Vec::new();
    for _ in 0..if tier() == Tier::Test { 1 } else { 20 } {
        missing.push(killed_and_recovered(&server, &voice, random.usize(200..400)).await);
    }
    missing.sort_by(f64::total_cmp);
    println!("missing {:.2} s at the median, {:.2} s at most", missing[missing.len() / 2], missing[missing.len() - 1]);
    assert!(missing[missing.len() - 1] < 1.0, "{missing:?}");
}

/// Kills a recorder after so many packets, and checks what recovery makes of that. Gives how many seconds are missing.
async fn killed_and_recovered(server: &LiveKitServer, voice: &Voice, packets: usize) -> f64 {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let recorder = Recorder::start(server, None, root.path(), &["--format", "webm,mp4,wav,flac,mp3"]).await;
    voice.sent_at_least(voice.sent().len() + packets).await.unwrap();
    let ogg = out.join("call.ogg.part");
    grows_steadily(Duration::from_millis(400), async || std::fs::metadata(&ogg).unwrap().len()).await;
    let killed = recorder.kill().await;
    // What is there at that moment plays, without anything done about it.
    let mut plays = Vec::new();
    for name in names(&out).iter().filter(|name| name.ends_with(".part") && !name.contains("json")) {
        let seconds = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "fatal", "-i"])
            .arg(out.join(name))
            .args(["-f", "f32le", "-ac", "1", "-ar", "48000", "-"])
            .output()
            .await
            .unwrap();
        let seconds = seconds.stdout.len() as f64 / 4.0 / 48e3;
        println!("{name}: {seconds:.2} s play as they are");
        plays.push(seconds);
    }
    let output = callreel().args(["recover", "--spool"]).arg(root.path().join("spool")).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: RecordingResult = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result.outcome, Outcome::Degraded);
    let manifest = manifest_in(&out);
    assert_eq!(formats(&manifest), ["webm", "mp4", "wav", "flac", "mp3"]);
    check_all(&out, &manifest).await;
    let lasted = (killed - manifest.started_at).as_seconds_f64();
    assert!(plays.iter().all(|seconds| *seconds > lasted - 1.5), "{plays:?} of {lasted} s");
    let left = names(root.path());
    assert_eq!(
        left,
        ["call.flac", "call.json", "call.mp3", "call.mp4", "call.wav", "call.webm"],
        "nothing else is left"
    );
    lasted - manifest.duration_seconds
}

#[tokio::test]
async fn every_format_is_gone_on_with() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let more = ["--format", "webm,mp4,wav,flac,mp3", "--outputs", "mix,tracks"];
    let first = Recorder::start(&server, None, root.path(), &more).await;
    let (_alice, voice) = speaker(&server, "alice", 4).await;
    voice.sent_at_least(250).await.unwrap();
    first.kill().await;
    let last = Recorder::start(&server, None, root.path(), &more).await;
    voice.sent_at_least(voice.sent().len() + 300).await.unwrap();
    let result = last.finish().await;
    assert!(matches!(&result.reasons[..], [Reason::Restarted { .. }]), "{:?}", result.reasons);
    let manifest = manifest_in(&out);
    assert_eq!(manifest.outputs.len(), 10);
    assert!(manifest.duration_seconds > 9.0, "{}", manifest.duration_seconds);
    check_all(&out, &manifest).await;
    assert_eq!(names(root.path()).len(), 11, "ten files and their manifest: {:?}", names(root.path()));
}

#[cfg(feature = "aac")]
#[tokio::test]
async fn a_call_in_aac_is_recovered_played_and_copied() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let more = ["--format", "ogg,mp4", "--outputs", "mix,dual", "--mp4-codec", "aac"];
    let recorder = Recorder::start(&server, None, root.path(), &more).await;
    let (_alice, voice) = speaker(&server, "alice", 6).await;
    voice.sent_at_least(300).await.unwrap();
    recorder.kill().await;
    run(&["recover", "--spool"], &[&root.path().join("spool")]).await;
    let manifest = manifest_in(&out);
    assert_eq!(formats(&manifest), ["ogg", "mp4", "ogg", "mp4"]);
    check_all(&out, &manifest).await;
    played_by_a_browser(&out, &manifest).await;

    let (aac, front) = (out.join("call.mp4"), root.path().join("front.mp4"));
    let inspected = callreel().arg("inspect").arg(&aac).output().await.unwrap();
    let said = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(said.contains("AAC-LC at 48000 Hz") && said.contains("channels   1"), "{said}");
    run(&["convert", "--progressive"], &[&aac, &front]).await;
    compare("front.mp4, AAC", &heard(&front).await, &heard(&aac).await);
    // After a kill other outputs may be longer.
    let off = duration_of(&front).await - manifest.outputs[1].duration_seconds;
    assert!(off.abs() < 0.001, "{off} s");
    let refused = callreel().arg("convert").arg(&aac).arg(root.path().join("call.wav")).output().await.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(why.contains("its sound is AAC"), "{why}");
}

/// Fetches what is in the store.
async fn fetch(storage: &StorageServer, folder: &Path) -> Vec<String> {
    std::fs::create_dir_all(folder).unwrap();
    let store = storage.store("calls").await.unwrap();
    let mut keys = Vec::new();
    for object in store.list("").await.unwrap() {
        let name = object.key.strip_prefix("2026/").unwrap().to_owned();
        if !name.contains('/') {
            std::fs::write(folder.join(&name), store.get(&object.key, None).await.unwrap()).unwrap();
        }
        keys.push(name);
    }
    keys
}

#[tokio::test]
async fn every_format_goes_up_while_they_talk_and_is_finished_by_another_machine() {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    storage.store("calls").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    // Two channels of 24 bits fill a part of 5 MiB in 18 s.
    let more = ["--format", "wav,webm,mp4", "--outputs", "dual", "--pcm-bits", "24"];
    let recorder = Recorder::start(&server, Some(&storage), root.path(), &more).await;
    let (_alice, voice) = speaker(&server, "alice", 5).await;
    voice.sent_at_least(1_200).await.unwrap();
    let begun = clock::now();
    while storage.open_uploads("calls").await.unwrap() != 1 {
        assert!(clock::now() - begun < Duration::from_secs(60), "the first part of the wav never comes");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let result = recorder.finish().await;
    assert_eq!(result.outcome, Outcome::Complete, "{:?}", result.reasons);
    let whole = root.path().join("whole");
    let mut keys = fetch(&storage, &whole).await;
    keys.retain(|key| !key.ends_with(".vtt"));
    assert_eq!(keys, ["call-dual.mp4", "call-dual.wav", "call-dual.webm", "call.json"]);
    check_all(&whole, &manifest_in(&whole)).await;
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
    assert!(everything(&root.path().join("spool")).is_empty());

    // The machine is gone with its disk.
    let lost = root.path().join("lost");
    let more = [&more[..], &["--name", "lost", "--recording-id", "R2"]].concat();
    let recorder = Recorder::start(&server, Some(&storage), &lost, &more[..]).await;
    voice.sent_at_least(voice.sent().len() + 300).await.unwrap();
    let (store, key) = (storage.store("calls").await.unwrap(), LiveState::key_of("2026/lost"));
    // The first is the Ogg stream, of which all others are made.
    let safe = async || match store.get(&key, None).await {
        Ok(state) => LiveState::read(&key, &state).unwrap().files.first().map_or(0, FileState::safe),
        Err(_) => 0,
    };
    grows_steadily(Duration::from_millis(1_600), safe).await;
    recorder.kill().await;
    std::fs::remove_dir_all(&lost).unwrap();
    let mut recover = callreel();
    with_store(&mut recover, &storage);
    recover.args(["recover", "--from-store", "s3://calls/2026"]);
    let recovered = loop {
        let output = recover.output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Its lease has to run out.
        if let Ok(result) = serde_json::from_slice::<RecordingResult>(&output.stdout) {
            break result;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let locations: Vec<&str> = recovered.outputs.iter().map(|output| output.location.as_str()).collect();
    let expected = ["lost-dual.wav", "lost-dual.webm", "lost-dual.mp4"].map(|name| format!("s3://calls/2026/{name}"));
    assert_eq!(locations, expected);
    assert!(recovered.outputs.iter().all(|output| output.duration_seconds > 3.0), "{:?}", recovered.outputs);
    let again = root.path().join("again");
    let keys = fetch(&storage, &again).await;
    assert!(!keys.iter().any(|key| key.contains(".live/") || key.ends_with(".ogg")), "{keys:?}");
    std::fs::rename(again.join("lost.json"), again.join("call.json")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(again.join("call.json")).unwrap()).unwrap();
    let sounds = futures_util::future::join_all(
        manifest.outputs.iter().map(async |output| (output.format.clone(), heard(&again.join(&output.file)).await)),
    )
    .await;
    for (format, sound) in &sounds[1..] {
        compare(format, sound, &sounds[0].1);
    }
    assert_eq!(storage.open_uploads("calls").await.unwrap(), 0);
}

/// What ffmpeg hears of a long file: its first and last three seconds, and how many samples there are.
async fn ends_of(file: &Path) -> (Vec<f32>, Vec<f32>, usize) {
    use tokio::io::AsyncReadExt;
    const THREE_SECONDS: usize = 3 * 48_000;
    let mut ffmpeg = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-i"])
        .arg(file)
        .args(["-f", "f32le", "-ar", "48000", "-ac", "1", "-"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = BufReader::with_capacity(1 << 20, ffmpeg.stdout.take().unwrap());
    let (mut first, mut last, mut total) = (Vec::new(), std::collections::VecDeque::new(), 0);
    let mut sample = [0; 4];
    while stdout.read_exact(&mut sample).await.is_ok() {
        let sample = f32::from_le_bytes(sample);
        total += 1;
        if first.len() < THREE_SECONDS {
            first.push(sample);
        }
        if last.len() == THREE_SECONDS {
            last.pop_front();
        }
        last.push_back(sample);
    }
    assert!(ffmpeg.wait().await.unwrap().success());
    (first, last.into(), total)
}

/// A call of that many seconds, of which the first and the last two are spoken, of a short one two fifths each: its Ogg stream,
/// and both.
fn long_call(seconds: u64, file: &Path) -> (Vec<f32>, Vec<f32>) {
    use std::io::Write;
    let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
    let head = OpusHead::new(Mapping::Mono, encoder.pre_skip());
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 1, SampleCount::from_millis(250)).unwrap();
    let spoken = Duration::from_secs_f64(2.0_f64.min(seconds as f64 * 0.4));
    let said = [11, 12].map(|seed| generate::speech(seed, spoken).channel(0).to_vec());
    let total = seconds * 48_000;
    let ends_at = total - said[1].len() as u64;
    let mut file = std::fs::File::create(file).unwrap();
    let mut bytes = Vec::new();
    for at in (0..total + 960).step_by(960) {
        let sample = |at: u64| match at {
            _ if at >= total => 0.0,
            _ if at >= ends_at => said[1][(at - ends_at) as usize],
            _ => said[0].get(at as usize).copied().unwrap_or(0.0),
        };
        let pcm: Vec<f32> = (at..at + 960).map(sample).collect();
        writer.write_packet(encoder.encode(&pcm).unwrap(), 960).unwrap();
        bytes.clear();
        writer.take_bytes(&mut bytes);
        file.write_all(&bytes).unwrap();
    }
    writer.finish(SampleCount(total)).unwrap();
    bytes.clear();
    writer.take_bytes(&mut bytes);
    file.write_all(&bytes).unwrap();
    let [first, last] = said;
    (first, last)
}

#[tokio::test]
async fn short_and_long_calls_have_their_length_and_both_their_ends() {
    let lengths: &[u64] = if tier() == Tier::Test { &[1, 600] } else { &[1, 600, 5 * 3_600] };
    let root = tempfile::tempdir().unwrap();
    for seconds in lengths {
        let ogg = root.path().join("call.ogg");
        let (first, last) = long_call(*seconds, &ogg);
        for (format, flags) in ALL.split(',').map(|format| (format, &[][..])).chain(AAC) {
            let file = root.path().join(format!("call.{format}"));
            if format != "ogg" {
                run(&[&["convert"][..], flags].concat(), &[&ogg, &file]).await;
            }
            let off = duration_of(&file).await - *seconds as f64;
            let is_aac = !flags.is_empty();
            // What ffprobe counts and nobody plays.
            let tolerance = match format {
                "mp3" => 0.072,
                _ if is_aac => 0.022,
                _ => 0.02,
            };
            assert!(off.abs() <= tolerance, "{format} of {seconds} s: {off} s");
            let (begins, ends, total) = ends_of(&file).await;
            let longer = total as i64 - (*seconds * 48_000) as i64;
            // ffmpeg plays the packet whole in which an MP4 ends.
            let packet = if is_aac { 1_024 } else { 960 };
            assert!(
                (0..=packet).contains(&longer) && (longer == 0 || format == "mp4"),
                "{format}: {longer} samples longer"
            );
            let last_at = ends.len() as i64 - longer - last.len() as i64;
            for (what, said, heard, at) in [("first", &first, &begins, 0), ("last", &last, &ends, last_at)] {
                let place = analysis::find(&said[4_800..said.len() - 4_800], heard).expect("speech");
                let off = place.offset as i64 - 4_800 - at;
                println!("{format}, {seconds} s: {what} {off} samples off, likeness {:.3}", place.score);
                assert!(off.abs() <= TOLERANCE && place.score > 0.8, "{format}: {what} is {off} off, {place:?}");
            }
            if format != "ogg" {
                std::fs::remove_file(&file).unwrap();
            }
        }
    }
}
