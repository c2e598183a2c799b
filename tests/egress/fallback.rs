//! LiveKit Egress stands in where callreel's own bot cannot record.

use std::time::Duration;

use callreel::config::Fallback;
use callreel::egress::EgressStatus;
use callreel::recording::{Outcome, Reason, Recorder, State, StopReason};
use callreel::testkit::audio::generate;
use callreel::testkit::egress::{EgressDouble, Fault, TwirpError};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions};

use super::support::{ROOM, Stage, start, until};

#[tokio::test]
async fn it_records_where_the_bot_cannot_join() {
    // The double has no signalling, so nobody can join there.
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.fallback = Some(Fallback { after: Duration::from_millis(200) });
    let recording = start(config, State::Active).await;
    recording.stop();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Degraded, Some(StopReason::Requested)), "{result:?}");
    let [Reason::FellBack { egress_id, from_seconds, because }] = &result.reasons[..] else { panic!("{result:?}") };
    assert_eq!(egress_id, &stage.double.egresses()[0].egress_id);
    assert!(because.contains("cannot join"), "{because}");
    assert!(result.outputs[0].location.ends_with("recordings/call-RM_call.ogg"));
    let manifest = stage.manifest(&result).await;
    assert_eq!(manifest.egress[0].because.as_ref(), Some(because));
    let file = &stage.double.egresses()[0].file_results[0];
    let began = file.started_at as f64 / 1e9 - manifest.started_at.unix_timestamp_nanos() as f64 / 1e9;
    assert!((from_seconds - began).abs() < 0.01, "{from_seconds} s, but it began at {began} s");
    assert_eq!((manifest.outcome, &manifest.reasons), (Outcome::Degraded, &result.reasons));
}

#[tokio::test]
async fn where_both_fail_both_are_told() {
    let stage = Stage::set().await;
    let mut config = stage.config();
    config.fallback = Some(Fallback { after: Duration::from_millis(200) });
    let refused = TwirpError::new("permission_denied", "recording is not included");
    stage.double.fault("StartRoomCompositeEgress", Fault::Refuse(refused));
    let result = Recorder::start(config.clone()).wait().await;
    assert_eq!(result.outcome, Outcome::Failed, "{result:?}");
    let [Reason::Join { .. }, Reason::Egress { message }] = &result.reasons[..] else { panic!("{result:?}") };
    assert!(message.contains("recording is not included"), "{message}");
    // Without leave to stand in it does not.
    config.fallback = None;
    config.recording_id = "R2".into();
    let result = Recorder::start(config).wait().await;
    assert!(matches!(&result.reasons[..], [Reason::Join { .. }]), "{result:?}");
    assert!(stage.double.egresses().is_empty());
}

#[tokio::test]
async fn it_records_the_rest_of_a_call_that_the_bot_has_lost() {
    let mut server = LiveKitServer::start().await.unwrap();
    let stage = Stage::with(EgressDouble::before(&server).await.unwrap()).await;
    let mut config = stage.config();
    // So long that a busy machine lets the bot begin.
    config.fallback = Some(Fallback { after: Duration::from_secs(10) });
    let mut recording = start(config, State::Active).await;
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let sound = generate::speech(1, Duration::from_secs(2));
    alice.publish(sound, TrackOptions::default()).await.unwrap().said().await.unwrap();
    assert!(stage.double.egresses().is_empty(), "the bot records");
    server.kill();
    stage.until_an_egress_is_active().await;
    until(&mut recording, State::Active).await;
    recording.stop();
    let result = recording.wait().await;
    assert_eq!((result.outcome, result.stopped_by), (Outcome::Degraded, Some(StopReason::Requested)), "{result:?}");
    let fell_back = result.reasons.iter().find_map(|reason| match reason {
        Reason::FellBack { from_seconds, because, .. } => Some((*from_seconds, because.clone())),
        _ => None,
    });
    let (from, because) = fell_back.unwrap_or_else(|| panic!("{result:?}"));
    assert!(from > 2.0 && because.contains("connection lost"), "{from} s: {because}");
    let [own, rest] = &result.outputs[..] else { panic!("{result:?}") };
    assert!(own.location.ends_with(".ogg") && rest.location.ends_with("-egress.ogg"), "{result:?}");
    let manifest = stage.manifest(&result).await;
    assert_eq!((manifest.outputs.len(), manifest.egress[0].status), (2, EgressStatus::Complete));
    assert!(manifest.duration_seconds > 2.0, "{} s", manifest.duration_seconds);
    // What was read from JSON may be off in its last bit.
    let of_egress = manifest.egress[0].from_seconds;
    assert!((of_egress - from).abs() < 1e-9, "{of_egress} s, {from} s");
    let objects = stage.objects().await;
    assert!(objects.iter().all(|key| !key.contains(".live/")), "{objects:?}");
    assert!(stage.double.running().is_empty());
}
