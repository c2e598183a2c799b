//! `callreel record` and `callreel inspect` as people and scripts call them: results, exit codes, and clear errors for
//! everything that can be wrong before and during a call.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use callreel::clock;
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult};
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions};
use tokio::process::Command;

const CALLREEL: &str = env!("CARGO_BIN_EXE_callreel");
const ROOM: &str = "call";

/// `callreel` without anything of this process's environment that it would listen to.
fn callreel() -> Command {
    let mut command = Command::new(CALLREEL);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LIVEKIT") || name.starts_with("CALLREEL")) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn record(server: &LiveKitServer, out: &Path) -> Command {
    let mut command = callreel();
    command.args(["record", "--url", &server.url(), "--room", ROOM, "--departure-timeout", "1s", "--out"]).arg(out);
    command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
    command
}

fn result(output: &Output) -> RecordingResult {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let last = stdout.lines().last().unwrap_or_else(|| panic!("no result; it said {}", errors(output)));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"))
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a recording that has to fail to join, and gives its reason.
async fn refused(command: &mut Command) -> String {
    let output = command.output().await.unwrap();
    let result = result(&output);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert_eq!(result.outcome, Outcome::Failed);
    let [Reason::Join { message }] = result.reasons.as_slice() else { panic!("{:?}", result.reasons) };
    assert!(errors(&output).contains(message.as_str()), "the error is told to people, too: {}", errors(&output));
    message.clone()
}

/// Somebody comes once the recorder is there, speaks for so long when it has had time to listen, and leaves.
async fn somebody_speaks(server: &LiveKitServer, seconds: u64) {
    server.rooms().until_somebody(ROOM).await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(server, ROOM, "alice")).await.unwrap();
    let sound = generate::speech(1, Duration::from_secs(seconds));
    let options = TrackOptions::default().start(clock::now() + Duration::from_secs(2));
    alice.publish(sound, options).await.unwrap().said().await.unwrap();
    alice.leave().await.unwrap();
}

#[tokio::test]
async fn a_call_is_recorded_and_inspected() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let recorder = record(&server, out.path()).args(["--name", "calls/{room_name}", "--log-format", "json"]).spawn();
    let recorder = recorder.unwrap();
    somebody_speaks(&server, 3).await;
    let output = recorder.wait_with_output().await.unwrap();

    let result = result(&output);
    assert_eq!((output.status.code(), result.outcome), (Some(0), Outcome::Complete), "{}", errors(&output));
    assert_eq!(result.outputs[0].location, out.path().join("calls/call.ogg").display().to_string());
    for line in errors(&output).lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let left: Vec<_> = std::fs::read_dir(out.path().join("calls")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "the recording, its manifest, captions, waveform and nothing else: {left:?}");

    let file = &result.outputs[0].location;
    let inspected = callreel().args(["inspect", file]).output().await.unwrap();
    let said = String::from_utf8_lossy(&inspected.stdout);
    assert_eq!(inspected.status.code(), Some(0), "{said}");
    for word in [" LUFS, range ", " dBTP", "alice from ", ", spoke ", "call.vtt", "call.peaks.json"] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
    let captions = out.path().join("calls/call.vtt");
    let text = std::fs::read(&captions).unwrap();
    std::fs::write(&captions, [&text[..], b"\n"].concat()).unwrap();
    let inspected = callreel().args(["inspect", file]).output().await.unwrap();
    assert_eq!(inspected.status.code(), Some(1), "captions that are not the recording's");
    std::fs::write(&captions, text).unwrap();
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
    let inspected = callreel().args(["inspect", "--json", file]).output().await.unwrap();
    assert_eq!(inspected.status.code(), Some(1));
    let report = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(report.contains("SHA-256"), "{report}");
}

#[tokio::test]
async fn what_is_switched_off_is_neither_made_nor_missed() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut recorder = record(&server, out.path());
    let recorder = recorder.args(["--name", "call", "--no-speakers", "--no-peaks"]).env("CALLREEL_NO_LOUDNESS", "1");
    let recorder = recorder.spawn().unwrap();
    somebody_speaks(&server, 2).await;
    let output = recorder.wait_with_output().await.unwrap();

    let result = result(&output);
    assert_eq!((output.status.code(), result.outcome), (Some(0), Outcome::Complete), "{}", errors(&output));
    let mut left: Vec<_> = std::fs::read_dir(out.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["call.json", "call.ogg"]);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(result.manifest.unwrap()).unwrap()).unwrap();
    assert_eq!((manifest.loudness, manifest.speech.len(), manifest.sidecars.len()), (None, 0, 0));
    assert_eq!(manifest.participants[0].speaking_seconds, None);
}

#[tokio::test]
async fn a_signal_finishes_the_recording() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut recorder = record(&server, out.path()).spawn().unwrap();
    server.rooms().until_somebody(ROOM).await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let sound = generate::speech(1, Duration::from_secs(3));
    let options = TrackOptions::default().looped(true);
    let voice = alice.publish(sound, options).await.unwrap();
    voice.sent_at_least(150).await.unwrap();
    terminate(recorder.id().unwrap());
    let status = recorder.wait().await.unwrap();
    let output = recorder.wait_with_output().await.unwrap();
    let result = result(&output);
    assert_eq!((status.code(), result.outcome), (Some(0), Outcome::Complete), "{}", errors(&output));
    assert!(result.outputs[0].duration_seconds > 2.0, "{result:?}");
}

#[tokio::test]
async fn the_longest_duration_ends_it_and_an_empty_room_is_empty() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = record(&server, out.path()).args(["--max-duration", "1500ms"]).output().await.unwrap();
    let result = result(&output);
    assert_eq!((output.status.code(), result.outcome), (Some(4), Outcome::Empty), "{}", errors(&output));
    assert!((1.5..5.0).contains(&result.outputs[0].duration_seconds), "{result:?}");
}

#[tokio::test]
async fn who_cannot_join_is_told_why() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let wrong_secret =
        refused(record(&server, out.path()).env("LIVEKIT_API_SECRET", "not the secret of this server at all")).await;
    assert!(wrong_secret.contains("401") && wrong_secret.contains(&server.url()), "{wrong_secret}");

    let mut elsewhere = callreel();
    elsewhere.args(["record", "--url", "ws://127.0.0.1:9", "--room", ROOM, "--out"]).arg(out.path());
    elsewhere.env("LIVEKIT_API_KEY", "k").env("LIVEKIT_API_SECRET", "s");
    let unreachable = refused(&mut elsewhere).await;
    assert!(unreachable.contains("ws://127.0.0.1:9"), "{unreachable}");
    assert_eq!(std::fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_room_that_may_not_be_made_is_refused() {
    let server = LiveKitServer::builder().auto_create(false).start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let message = refused(&mut record(&server, out.path())).await;
    assert!(message.contains(ROOM), "{message}");
}

#[tokio::test]
async fn what_makes_no_sense_is_bad_usage() {
    for (args, word) in [
        (&["--url", "localhost:7880", "--api-key", "k", "--api-secret", "s", "--room", "r"][..], "url"),
        (&["--url", "ws://x", "--room", "r"], "api_key"),
        (&["--url", "ws://x", "--api-key", "k", "--room", "r"], "api_secret"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s"], "room"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--name", "{rom}"], "rom"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--out", "ftp://b"], "ftp"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--format", "avi"], "avi"),
        (
            &["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--format", "webm", "--video"],
            "not available",
        ),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--bitrate", "1"], "bitrate"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--outputs", "mix,trio"], "trio"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--left", "kind=robot"], "robot"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--gain", "alice"], "alice=-6"),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--gain", "a=99"], "60"),
        (
            &["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--mix-channels", "3"],
            "mix-channels",
        ),
        (&["--url", "ws://x", "--api-key", "k", "--api-secret", "s", "--room", "r", "--max-duration", "4d"], "unit"),
    ] {
        let output = callreel().arg("record").args(args).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", errors(&output));
        assert!(errors(&output).contains(word), "{args:?}: {}", errors(&output));
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named_before_the_call() {
    let server = LiveKitServer::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = record(&server, &file.join("below")).output().await.unwrap();
    let result = result(&output);
    assert_eq!(output.status.code(), Some(1));
    let [Reason::Storage { message }] = result.reasons.as_slice() else { panic!("{:?}", result.reasons) };
    assert!(message.contains("below"), "{message}");
    assert!(server.rooms().list().await.unwrap().is_empty(), "nobody joined");
}

#[tokio::test]
async fn a_disk_that_fills_up_keeps_what_was_recorded_and_playable() {
    let server = LiveKitServer::start().await.unwrap();
    let disk = tempfile::tempdir().unwrap();
    // A small disk of its own, in a mount namespace that ends with the process; what is left on it is copied out.
    let kept = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=128k tmpfs "$1" && shift_out="$1" && kept="$2" && shift 2 && "$@"; code=$?
        cp -r "$shift_out/." "$kept/"; exit $code"#;
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(disk.path()).arg(kept.path());
    command.args([CALLREEL, "record", "--url", &server.url(), "--room", ROOM, "--name", "full", "--out"]);
    command.arg(disk.path()).args(["--bitrate", "128000"]);
    command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let recorder = command.spawn().unwrap();
    server.rooms().until_somebody(ROOM).await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let options = TrackOptions::default().looped(true).bitrate(64_000);
    let _voice = alice.publish(generate::noise(1, 0.3, Duration::from_secs(3)), options).await.unwrap();
    let output = recorder.wait_with_output().await.unwrap();

    let result = result(&output);
    assert_eq!((output.status.code(), result.outcome), (Some(1), Outcome::Failed), "{}", errors(&output));
    let [Reason::Storage { message }] = result.reasons.as_slice() else { panic!("{:?}", result.reasons) };
    assert!(message.contains("full.ogg.part") && message.contains("No space left"), "{message}");
    let file = kept.path().join("full.ogg");
    let inspected = callreel().args(["inspect", "--json"]).arg(&file).output().await.unwrap();
    let report: serde_json::Value = serde_json::from_slice(&inspected.stdout).unwrap();
    assert_eq!(report["stream"]["problems"], serde_json::json!([]), "what is there is a whole stream");
    assert!(report["stream"]["duration"].as_u64().unwrap() > 2 * 48_000, "{}", report["stream"]);
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(kept.path().join("full.json")).unwrap()).unwrap();
    assert_eq!(manifest.outcome, Outcome::Failed);
}

/// Asks a process to end.
fn terminate(pid: u32) {
    let status = std::process::Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
