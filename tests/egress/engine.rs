//! Recordings that LiveKit Egress makes from the start.

use std::time::Duration;

use callreel::config::{Engine, Picture};
use callreel::egress::{EgressStatus, FileFormat};
use callreel::recording::{Outcome, PauseOrder, Reason, Recorder, State, StopReason};
use callreel::store::PutOptions;
use callreel::testkit::egress::{EgressDouble, Fault, TwirpError};
use livekit_protocol::EgressStatus as Status;
use livekit_protocol::egress_info::Request;

use super::support::{ROOM, Stage, over, start, until};

#[tokio::test]
async fn a_picture_is_recorded_told_of_and_in_the_store() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.picture = Some(Picture { layout: Some("grid".into()), ..Picture::default() });
    config.format = FileFormat::Mp4;
    let recording = start(config, State::Active).await;
    let asked = stage.double.asked();
    let [(_, Request::RoomComposite(asked))] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((asked.layout.as_str(), asked.audio_only), ("grid", false));
    assert_eq!(asked.file_outputs[0].filepath, "2026/recordings/call-RM_call.mp4");
    recording.stop();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Complete, Some(StopReason::Requested)), "{result:?}");
    let [output] = &result.outputs[..] else { panic!("{result:?}") };
    assert_eq!(output.location, "s3://calls/2026/recordings/call-RM_call.mp4");
    let manifest = stage.manifest(&result).await;
    let [egress] = &manifest.egress[..] else { panic!("{:?}", manifest.egress) };
    assert_eq!(
        (egress.status, egress.layout.as_deref(), egress.because.as_deref()),
        (EgressStatus::Complete, Some("grid"), None)
    );
    assert_eq!((manifest.outputs[0].bytes, manifest.outputs[0].format.as_str()), (egress.bytes, "mp4"));
    assert_eq!(manifest.room.sid, "RM_call");
    assert_eq!(stage.objects().await, ["recordings/call-RM_call.json", "recordings/call-RM_call.mp4"]);
    assert!(!stage.root.path().join("spool").exists(), "nothing is left to recover");
    assert!(stage.double.running().is_empty());
}

#[tokio::test]
async fn it_ends_with_the_room_or_when_everybody_has_left() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.engine = Engine::Egress;
    let recording = start(config, State::Active).await;
    stage.double.close_room(ROOM);
    let result = over(&recording).await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Complete, Some(StopReason::RoomClosed)), "{result:?}");

    stage.double.set_room(ROOM, 1);
    let mut config = stage.config();
    config.engine = Engine::Egress;
    config.life.stop.departure_timeout = Duration::from_millis(100);
    let mut recording = start(config, State::Active).await;
    while recording.status().participants == 0 {
        recording.changed().await;
    }
    stage.double.set_room(ROOM, 0);
    let result = over(&recording).await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Complete, Some(StopReason::Departed)), "{result:?}");
    // The first one's name was taken.
    assert!(result.outputs[0].location.ends_with("call-RM_call-1.ogg"), "{result:?}");
}

#[tokio::test]
async fn a_room_that_does_not_exist_yet_is_waited_for() {
    let stage = Stage::set().await;
    stage.double.close_room(ROOM);
    let mut config = stage.config();
    config.engine = Engine::Egress;
    config.life.stop.wait = Some(Duration::from_millis(300));
    let result = Recorder::start(config.clone()).wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Empty, Some(StopReason::NobodyCame)), "{result:?}");
    config.life.stop.wait = None;
    config.recording_id = "R2".into();
    let mut recording = Recorder::start(config);
    stage.double.set_room(ROOM, 1);
    until(&mut recording, State::Active).await;
    recording.stop();
    assert_eq!(recording.wait().await.outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_pause_stops_the_egress_and_going_on_starts_another() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.engine = Engine::Egress;
    let mut recording = start(config, State::Active).await;
    recording.pause(PauseOrder { by: "agent".into(), reason: "card".into(), ..PauseOrder::default() });
    until(&mut recording, State::Paused).await;
    assert!(stage.double.running().is_empty(), "somebody records while it is paused");
    // Somebody's own file has the next name.
    let theirs = PutOptions::default();
    stage.store().await.put("recordings/call-RM_call-2.ogg", "theirs".into(), &theirs).await.unwrap();
    recording.resume("agent");
    until(&mut recording, State::Active).await;
    assert_eq!(stage.double.running().len(), 1);
    recording.stop();
    let result = recording.wait().await;
    assert_eq!(result.outcome, Outcome::Complete, "{result:?}");
    assert_eq!(result.outputs.len(), 2);
    assert!(result.outputs[1].location.ends_with("call-RM_call-3.ogg"), "{result:?}");
    let manifest = stage.manifest(&result).await;
    let [pause] = &manifest.pauses[..] else { panic!("{:?}", manifest.pauses) };
    assert_eq!((pause.by.as_str(), pause.reason.as_str(), pause.resumed_by.as_str()), ("agent", "card", "agent"));
    assert!(pause.to_sample.unwrap() >= pause.from_sample);
}

#[tokio::test]
async fn a_pause_ordered_before_there_is_a_room_holds() {
    let stage = Stage::set().await;
    stage.double.close_room(ROOM);
    let mut config = stage.config();
    config.engine = Engine::Egress;
    let mut recording = Recorder::start(config);
    recording.pause(PauseOrder { by: "agent".into(), ..PauseOrder::default() });
    stage.double.set_room(ROOM, 1);
    until(&mut recording, State::Paused).await;
    assert!(stage.double.egresses().is_empty(), "one was started while it is paused");
    recording.resume("agent");
    until(&mut recording, State::Active).await;
    recording.stop();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.outputs.len()), (Outcome::Complete, 1), "{result:?}");
    assert!(result.outputs[0].location.ends_with("call-RM_call.ogg"), "{result:?}");
}

#[tokio::test]
async fn what_goes_wrong_is_the_outcome() {
    let stage = Stage::set().await;
    let method = "StartRoomCompositeEgress";
    let record = async |fault: Option<Fault>| {
        if let Some(fault) = fault {
            stage.double.fault(method, fault);
        }
        let mut config = stage.config();
        config.engine = Engine::Egress;
        Recorder::start(config)
    };
    let result = record(Some(Fault::Die("disk full".into()))).await.wait().await;
    assert_eq!(result.outcome, Outcome::Failed);
    assert_eq!(result.reasons, [Reason::Egress { message: "disk full".into() }]);
    let refused = TwirpError::new("invalid_argument", "request has missing or invalid field: output");
    let result = record(Some(Fault::Refuse(refused))).await.wait().await;
    assert!(matches!(&result.reasons[..], [Reason::Egress { message }] if message.contains("output")), "{result:?}");

    let mut recording = record(None).await;
    until(&mut recording, State::Active).await;
    stage.double.reach_limit(&stage.double.running()[0].egress_id);
    let result = recording.wait().await;
    assert_eq!(result.outcome, Outcome::Degraded, "{result:?}");
    assert_eq!(result.reasons, [Reason::EgressLacks { message: "Session limit reached".into() }]);

    // Stopped before it had begun: there is nothing, and nothing is wrong.
    let recording = record(Some(Fault::StayStarting)).await;
    stage.double.until(|all| all.iter().any(|info| info.status() == Status::EgressStarting)).await;
    recording.stop();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.reasons), (Outcome::Empty, vec![]));
    assert!(stage.double.running().is_empty());
    assert!(!stage.root.path().join("spool").exists(), "nothing is left to recover");
}

#[tokio::test]
async fn a_file_that_is_not_in_the_store_is_missed() {
    let stage = Stage::set().await;
    // The service says that it wrote a file, and did not.
    let silent = EgressDouble::start().await.unwrap();
    silent.set_room(ROOM, 1);
    let mut config = stage.config();
    (config.url, config.credentials) = (silent.url(), super::support::key(&silent));
    config.engine = Engine::Egress;
    let recording = start(config, State::Active).await;
    recording.stop();
    let result = recording.wait().await;
    assert_eq!(result.outcome, Outcome::Degraded, "{result:?}");
    let [Reason::EgressLacks { message }] = &result.reasons[..] else { panic!("{result:?}") };
    assert!(message.contains("call-RM_call.ogg is not there"), "{message}");
}
