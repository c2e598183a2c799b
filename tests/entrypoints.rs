//! The entry points for voice agents, on a real server.

use std::time::Duration;

use callreel::call::ParticipantKind;
use callreel::entry::{AgentConfig, entrypoint, entrypoint_webtest};
use callreel::recording::{Manifest, Outcome, Reason, RecordingHandle, Role, State, StopReason};
use callreel::room::Credentials;
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions};

const ROOM: &str = "call-1234";

fn config(server: &LiveKitServer, out: &tempfile::TempDir) -> AgentConfig {
    let secret = server.api_secret().to_owned();
    let credentials = Credentials::ApiKey { key: server.api_key().to_owned(), secret };
    let mut config = AgentConfig::new(server.url(), credentials);
    config.out = out.path().to_owned();
    config
}

async fn active(recording: &RecordingHandle) {
    let mut watched = recording.clone();
    while watched.status().state == State::Starting {
        watched.changed().await;
    }
    assert_eq!(watched.status().state, State::Active);
}

fn manifest(path: &Option<String>) -> Manifest {
    let bytes = std::fs::read(path.as_ref().expect("a manifest was written")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_telephone_call_rings_is_answered_and_ends_with_its_caller() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let recording = entrypoint(ROOM, &config(&server, &out)).unwrap();
    active(&recording).await;

    let agent = PublisherConfig::on(&server, ROOM, "agent").kind(ParticipantKind::Agent);
    let agent = Publisher::join(agent).await.unwrap();
    let greeting = agent.publish(generate::speech(1, Duration::from_secs(3)), TrackOptions::default()).await.unwrap();
    let caller = PublisherConfig::on(&server, ROOM, "sip_1")
        .kind(ParticipantKind::Sip)
        .attribute("sip.phoneNumber", "+493012345")
        .attribute("sip.callStatus", "ringing");
    let caller = Publisher::join(caller).await.unwrap();
    greeting.said().await.unwrap();
    server.rooms().set_attributes(ROOM, "sip_1", &[("sip.callStatus", "active")]).await.unwrap();
    let voice = caller.publish(generate::speech(2, Duration::from_secs(2)), TrackOptions::default()).await.unwrap();
    voice.said().await.unwrap();
    caller.leave().await.unwrap();

    // The agent is still there; the call is over without its caller.
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Complete, Some(StopReason::CallerLeft)), "{result:?}");
    let manifest = manifest(&result.manifest);
    let who = |role| manifest.participants.iter().find(|person| person.role == role).expect("somebody has that role");
    assert_eq!(who(Role::Agent).identity, "agent");
    assert_eq!((who(Role::Caller).identity.as_str(), who(Role::Caller).name.as_str()), ("sip_1", "+493012345"));
    assert_eq!(who(Role::Caller).attributes["sip.callStatus"], "active");
    assert_eq!(manifest.tracks.len(), 2);
    manifest.check().unwrap();
}

#[tokio::test]
async fn a_web_test_takes_whoever_comes_and_ends_when_the_room_empties() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let recording = entrypoint_webtest(ROOM, &config(&server, &out)).unwrap();
    active(&recording).await;
    let speaks = async |name| {
        let visitor = Publisher::join(PublisherConfig::on(&server, ROOM, name)).await.unwrap();
        let voice =
            visitor.publish(generate::speech(3, Duration::from_secs(2)), TrackOptions::default()).await.unwrap();
        voice.said().await.unwrap();
        visitor
    };
    // An empty room is waited in for a few seconds only: somebody else comes before.
    let browser = speaks("browser").await;
    let again = speaks("again").await;
    browser.leave().await.unwrap();
    again.leave().await.unwrap();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Complete, Some(StopReason::Departed)), "{result:?}");
    assert_eq!(manifest(&result.manifest).participants.len(), 2);
}

#[tokio::test]
async fn a_recording_that_fails_leaves_the_call_alone_and_says_why() {
    let out = tempfile::tempdir().unwrap();
    let credentials = Credentials::ApiKey { key: "k".into(), secret: "s".into() };
    let mut config = AgentConfig::new("ws://127.0.0.1:9", credentials);
    config.out = out.path().to_owned();
    let recording = entrypoint(ROOM, &config).unwrap();
    let result = recording.wait().await;
    assert_eq!(result.outcome, Outcome::Failed);
    assert!(matches!(result.reasons.as_slice(), [Reason::Join { .. }]), "{result:?}");
    assert_eq!(recording.status().state, State::Failed);
}
