//! Recorders that are killed while an egress runs that they had started: never an orphan, and never two.

use std::process::{Output, Stdio};
use std::time::Duration;

use callreel::recording::{Manifest, Outcome, Reason, RecordingResult, StopReason};
use callreel::spool::Entry;
use callreel::testkit::egress::Fault;
use livekit_protocol::EgressStatus as Status;
use tokio::process::{Child, Command};

use super::support::{ROOM, Stage};

fn callreel(stage: &Stage, command: &str) -> Command {
    let mut callreel = Command::new(env!("CARGO_BIN_EXE_callreel"));
    for (name, _) in std::env::vars() {
        if ["LIVEKIT", "CALLREEL", "S3_", "AWS_"].iter().any(|prefix| name.starts_with(prefix)) {
            callreel.env_remove(name);
        }
    }
    let s3 = stage.storage.s3_config("calls");
    callreel.env("S3_ENDPOINT", s3.endpoint.unwrap()).env("S3_REGION", "us-east-1");
    callreel.env("S3_ACCESS_KEY", s3.access_key.unwrap()).env("S3_SECRET", s3.secret.unwrap().expose());
    callreel.env("AWS_EC2_METADATA_DISABLED", "true").env("LIVEKIT_URL", stage.double.url());
    callreel.env("LIVEKIT_API_KEY", stage.double.api_key()).env("LIVEKIT_API_SECRET", stage.double.api_secret());
    callreel.args([command, "--out", "s3://calls/2026", "--spool"]).arg(stage.root.path().join("spool"));
    callreel.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    callreel
}

fn record(stage: &Stage) -> Child {
    let mut command = callreel(stage, "record");
    command.args([
        "--engine",
        "egress",
        "--room",
        ROOM,
        "--recording-id",
        "R1",
        "--name",
        "call",
        "--tail-every",
        "1s",
    ]);
    command.spawn().unwrap()
}

fn last(output: &Output) -> RecordingResult {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let line = stdout.lines().last().unwrap_or_else(|| panic!("no result; it said {stderr}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

async fn terminated(recorder: Child) -> Output {
    let pid = recorder.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    recorder.wait_with_output().await.unwrap()
}

#[tokio::test]
async fn a_process_told_to_end_ends_the_egress_and_prints_what_became_of_it() {
    let stage = Stage::set().await;
    let recorder = record(&stage);
    stage.until_an_egress_is_active().await;
    let output = terminated(recorder).await;
    let result = last(&output);
    assert_eq!(
        (output.status.code(), result.outcome, result.stopped_by),
        (Some(0), Outcome::Complete, Some(StopReason::Signal))
    );
    assert!(stage.double.running().is_empty());
}

#[tokio::test]
async fn recovery_stops_what_a_killed_recorder_left_running() {
    let stage = Stage::set().await;
    let mut recorder = record(&stage);
    stage.until_an_egress_is_active().await;
    recorder.kill().await.unwrap();
    assert_eq!(stage.double.running().len(), 1, "it goes on without its recorder");

    let mut without = callreel(&stage, "recover");
    let output = without.env_remove("LIVEKIT_URL").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("R1") && said.contains("--url"), "{said}");
    assert_eq!(stage.double.running().len(), 1);

    let output = callreel(&stage, "recover").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result = last(&output);
    assert_eq!((result.recording_id.as_str(), result.outcome), ("R1", Outcome::Degraded), "{result:?}");
    assert!(matches!(result.reasons[..], [Reason::Interrupted { .. }]), "{result:?}");
    assert!(stage.double.running().is_empty());
    assert_eq!(stage.objects().await, ["call.json", "call.ogg"]);
    let json = stage.store().await.get("call.json", None).await.unwrap();
    let manifest: Manifest = serde_json::from_slice(&json).unwrap();
    assert_eq!((manifest.egress.len(), manifest.outputs.len()), (1, 1));
    assert!(manifest.outputs[0].bytes > 0);
    assert!(!stage.root.path().join("spool").exists());
}

#[tokio::test]
async fn one_whose_answer_never_came_is_found_and_stopped() {
    let stage = Stage::set().await;
    stage.double.fault("StartRoomCompositeEgress", Fault::AnswerAfter(Duration::from_secs(30)));
    let mut recorder = record(&stage);
    stage.until_an_egress_is_active().await;
    recorder.kill().await.unwrap();
    let output = callreel(&stage, "recover").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stage.double.running().is_empty());
    assert_eq!(last(&output).recording_id, "R1");
    assert_eq!(stage.double.egresses().len(), 1);
}

#[tokio::test]
async fn a_recorder_that_is_started_again_adopts_what_runs() {
    let stage = Stage::set().await;
    for fault in [None, Some(Fault::AnswerAfter(Duration::from_secs(30)))] {
        let before = stage.double.egresses().len();
        fault.into_iter().for_each(|fault| stage.double.fault("StartRoomCompositeEgress", fault));
        let mut recorder = record(&stage);
        stage.double.until(|all| all.len() > before && all[before].status() == Status::EgressActive).await;
        recorder.kill().await.unwrap();
        let mut recorder = record(&stage);
        // Its log says when it watches.
        let stderr = recorder.stderr.take().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("LiveKit Egress records") {
                break;
            }
        }
        let drained = tokio::spawn(async move { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} });
        let output = terminated(recorder).await;
        drained.await.unwrap();
        let result = last(&output);
        assert_eq!((result.outcome, result.outputs.len()), (Outcome::Complete, 1), "{result:?}");
        assert_eq!(stage.double.egresses().len(), before + 1, "there were two");
        assert!(stage.double.running().is_empty());
    }
}

/// Puts entries at the end of the journal of R1.
fn add_to_journal(stage: &Stage, entries: &[Entry]) {
    let path = stage.root.path().join("spool/R1.journal");
    let mut journal = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    entries.iter().for_each(|entry| std::io::Write::write_all(&mut journal, &entry.line().unwrap()).unwrap());
}

#[tokio::test]
async fn a_recorder_that_died_in_a_pause_is_paused_when_it_is_started_again() {
    let stage = Stage::set().await;
    let mut recorder = record(&stage);
    stage.until_an_egress_is_active().await;
    recorder.kill().await.unwrap();
    // It died between the order and the request to stop.
    let pause = serde_json::json!({"from_sample": 48_000, "to_sample": null, "policy": "skip", "by": "agent"});
    let life = serde_json::json!({"lacks_consent": false, "came": true, "pauses": [pause], "ends_at": null});
    add_to_journal(&stage, &[Entry::Life { life }]);
    for kills in [true, false] {
        let mut recorder = record(&stage);
        let stderr = recorder.stderr.take().unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stderr));
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("paused") {
                break;
            }
        }
        assert!(stage.double.running().is_empty(), "it records while it is paused");
        if kills {
            recorder.kill().await.unwrap();
            continue;
        }
        let drained = tokio::spawn(async move { while lines.next_line().await.is_ok_and(|line| line.is_some()) {} });
        let result = last(&terminated(recorder).await);
        drained.await.unwrap();
        // What the one before had told is told of.
        assert_eq!((result.outcome, result.outputs.len()), (Outcome::Complete, 1), "{result:?}");
    }
    assert_eq!(stage.double.egresses().len(), 1);
}

#[tokio::test]
async fn one_that_appears_after_everybody_stopped_looking_is_left_to_recovery() {
    let stage = Stage::set().await;
    let shown_after = Duration::from_secs(20);
    stage.double.fault("StartRoomCompositeEgress", Fault::DropAnswerAndShowAfter(shown_after));
    let recorder = record(&stage);
    stage.double.until(|all| !all.is_empty()).await;
    let since = callreel::clock::now();
    let output = terminated(recorder).await;
    assert_eq!(stage.double.running().len(), 1, "it was found, and nothing is shown by this");
    let result = last(&output);
    assert!(matches!(result.reasons[..], [Reason::Egress { .. }]), "{result:?}");
    tokio::time::sleep_until((since + shown_after + Duration::from_secs(1)).into()).await;
    assert_eq!(stage.double.running().len(), 1);
    let output = callreel(&stage, "recover").output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stage.double.running().is_empty());
}

#[tokio::test]
async fn the_next_recorder_of_a_spool_stops_what_another_left_running() {
    let stage = Stage::set().await;
    let mut recorder = record(&stage);
    stage.until_an_egress_is_active().await;
    recorder.kill().await.unwrap();
    stage.double.set_room("other", 1);
    let mut next = callreel(&stage, "record");
    next.args(["--engine", "egress", "--room", "other", "--recording-id", "R2", "--name", "other", "--grace", "0s"]);
    let next = next.spawn().unwrap();
    stage
        .double
        .until(|all| {
            let ended = |room: &str| all.iter().any(|info| info.room_name == room && info.ended_at > 0);
            ended(ROOM) && all.iter().any(|info| info.room_name == "other" && info.status() == Status::EgressActive)
        })
        .await;
    let result = last(&terminated(next).await);
    assert_eq!((result.recording_id.as_str(), result.outcome), ("R2", Outcome::Complete));
    assert!(stage.double.running().is_empty());
}
