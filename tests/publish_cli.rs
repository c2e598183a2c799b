//! `callreel-publish` as scripts use it: flags and environment in, packets on the wire, one JSON line out.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use callreel::room::{Credentials, Room, RoomConfig, RoomEvent};
use callreel::testkit::LiveKitServer;
use callreel::testkit::audio::generate;

fn speech(dir: &Path, millis: u64) -> std::path::PathBuf {
    let path = dir.join("speech.wav");
    generate::speech(1, Duration::from_millis(millis)).write_wav(&path).unwrap();
    path
}

fn command(server: &LiveKitServer, file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callreel-publish"));
    command
        .env("LIVEKIT_URL", server.url())
        .env("LIVEKIT_API_KEY", server.api_key())
        .env("LIVEKIT_API_SECRET", server.api_secret())
        .args(["--room", "room", "--identity", "alice", "--file"])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

#[tokio::test]
async fn says_a_file_and_tells_how_many_packets_it_took() {
    let server = LiveKitServer::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = speech(dir.path(), 3_000);
    let before = callreel::clock::wall();
    let mut command = command(&server, &file);
    command.args(["--start", "0.4", "--mute", "0.2-1.0", "--mute", "2.0-2.8", "--kind", "sip", "--name", "Alice"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let after = callreel::clock::wall();

    let said = json(&output);
    let packets = said["packets"].as_u64().unwrap();
    assert_eq!(said["identity"], "alice");
    assert!(said["track"].as_str().unwrap().starts_with("TR_"), "{said}");
    let first = said["first_packet_at"].as_str().unwrap();
    let first = time::OffsetDateTime::parse(first, &time::format_description::well_known::Rfc3339).unwrap();
    assert!(first > before && first - before < time::Duration::seconds(60), "{said}");
    // Silence follows until it has left; the first packet may have been late itself.
    let most = ((after - first).as_seconds_f64() / 0.020) as u64 - 80 + 20;
    assert!((90..=most).contains(&packets), "{said}: 3.4 s at 20 ms, less two spans of 0.8 s, {most} at most");
    until_empty(&server).await;
}

/// Waits until nobody is in the room, which a server tells a moment late. One that finds out by itself takes 15 s.
async fn until_empty(server: &LiveKitServer) {
    let begun = callreel::clock::now();
    while !server.rooms().participants("room").await.unwrap().is_empty() {
        assert!(callreel::clock::now() - begun < Duration::from_secs(10), "it says no goodbye");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a packet of somebody in the room has arrived.
async fn heard_somebody(server: &LiveKitServer) {
    let credentials = Credentials::ApiKey { key: server.api_key().to_owned(), secret: server.api_secret().to_owned() };
    let (listener, mut events) = Room::connect(RoomConfig::new(server.url(), credentials).room("room")).await.unwrap();
    while !matches!(events.recv().await.expect("the room stays open"), RoomEvent::Rtp(_)) {}
    listener.close().await;
}

#[tokio::test]
async fn a_signal_ends_a_loop_in_good_order() {
    let server = LiveKitServer::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = speech(dir.path(), 200);
    let child = command(&server, &file).args(["--loop", "--dtx", "--frame-ms", "60"]).spawn().unwrap();
    heard_somebody(&server).await;
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    assert!(json(&output)["packets"].as_u64().unwrap() > 0);
    until_empty(&server).await;
}

#[tokio::test]
async fn what_is_wrong_is_one_clear_line() {
    let server = LiveKitServer::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = speech(dir.path(), 200);
    let refused = |arguments: &[&str], file: &Path, words: &str| {
        let output = command(&server, file).args(arguments).output().unwrap();
        assert!(!output.status.success());
        assert!(output.stdout.is_empty());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(words), "{stderr}");
        (output.status.code(), stderr.lines().count())
    };
    assert_eq!(refused(&[], &dir.path().join("absent.wav"), "absent.wav"), (Some(1), 1));
    assert_eq!(refused(&["--url", "ws://127.0.0.1:9"], &file, "alice joining room"), (Some(1), 1));
    assert_eq!(refused(&["--api-secret", "of somebody else, long enough...."], &file, "401"), (Some(1), 1));
    assert_eq!(refused(&["--mute", "3-1"], &file, "the end does not lie after the beginning").0, Some(2));
}
