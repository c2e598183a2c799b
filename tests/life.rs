//! When a recording waits, ends, what it leaves out, and what it says of legs that fall silent: on a real server.

mod support;

use std::time::Duration;

use callreel::call::ParticipantKind;
use callreel::clock;
use callreel::config::{Config, TrackFilter};
use callreel::recording::{EndsWith, Outcome, Recorder, State, StopReason, What};
use callreel::room::Credentials;
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{AfterEnd, LiveKitServer, Publisher, PublisherConfig, TrackOptions};
use support::{Call, ROOM, SETTLE, words};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn an_empty_room_that_the_server_closes_is_waited_in_again_until_somebody_comes() {
    // A server closes a room in which only recorders are, but not before somebody new in it has begun to speak.
    let server = LiveKitServer::builder().empty_timeout(6).departure_timeout(3).start().await.unwrap();
    let call = Call::begin_on(server, |config| config.life.stop.wait = Some(60 * SECOND)).await;
    // Whoever does not matter has tracks, too, and goes with the room.
    let agent = PublisherConfig::on(&call.server, ROOM, "agent").kind(ParticipantKind::Agent);
    let agent = Publisher::join(agent).await.unwrap();
    let greeting = agent.publish(words(2, 60 * SECOND), TrackOptions::default()).await.unwrap();
    greeting.sent_at_least(25).await.unwrap();
    // Closed at least twice.
    let mut rooms = std::collections::BTreeSet::new();
    while rooms.len() < 3 {
        rooms.extend(call.server.rooms().sids().await.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(call.recording.status().state, State::Active);
    let sound = words(1, 3 * SECOND);
    let (_, said) = call.visit("alice", &sound).await;
    let recorded = call.over().await;
    // The server closes the room about when the last participant's time is over.
    let stopped_by = recorded.result.stopped_by;
    assert!(matches!(stopped_by, Some(StopReason::Departed | StopReason::RoomClosed)), "{stopped_by:?}");
    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
    let error = recorded.error(&sound, said);
    assert!(error.abs() < 60.0, "{error} ms");
    let [first, second] = recorded.manifest.tracks.as_slice() else { panic!("{:?}", recorded.manifest.tracks) };
    assert_eq!((first.identity.as_str(), second.identity.as_str()), ("agent", "alice"));
    assert!(first.unpublished_sample < second.published_sample, "{first:?}");
    assert!(recorded.manifest.participants.iter().all(|entry| entry.left_sample.is_some()));
}

#[tokio::test]
async fn who_is_never_joined_by_anybody_ends_empty() {
    let call = Call::begin_with(|config| config.life.stop.wait = Some(2 * SECOND)).await;
    let agent = PublisherConfig::on(&call.server, ROOM, "agent").kind(ParticipantKind::Agent);
    let _agent = Publisher::join(agent).await.unwrap();
    let recorded = call.over().await;
    assert_eq!(recorded.result.stopped_by, Some(StopReason::NobodyCame));
    assert_eq!(recorded.result.outcome, Outcome::Empty);
    assert!(recorded.manifest.duration_seconds < 10.0);
}

#[tokio::test]
async fn silence_ends_a_call_that_nobody_hangs_up() {
    // Longer than it takes until she speaks.
    let call = Call::begin_with(|config| config.life.stop.silence = Some(10 * SECOND)).await;
    let alice = call.join("alice").await;
    let sound = words(2, 2 * SECOND).then(&generate::noise(1, 0.001, 30 * SECOND));
    let options = TrackOptions::default().start(clock::now() + SETTLE);
    let voice = alice.publish(sound.clone(), options).await.unwrap();
    let recorded = call.over().await;
    assert_eq!(recorded.result.stopped_by, Some(StopReason::Silence));
    let after = recorded.manifest.duration_seconds - (voice.start() - recorded.zero).as_secs_f64() - 2.0;
    assert!((9.5..20.0).contains(&after), "it ended {after:.2} s after the last word");
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn so_many_bytes_and_who_is_picked_end_it_though_others_stay() {
    let call = Call::begin_with(|config| config.life.stop.max_bytes = Some(15_000)).await;
    let alice = call.join("alice").await;
    let _voice = alice.publish(words(3, 60 * SECOND), TrackOptions::default()).await.unwrap();
    let recorded = call.over().await;
    assert_eq!(recorded.result.stopped_by, Some(StopReason::MaxBytes));
    let bytes: u64 = recorded.result.outputs.iter().map(|output| output.bytes).sum();
    assert!((15_000..25_000).contains(&bytes), "{bytes} bytes");

    let picked = vec!["identity=bob".parse().unwrap()];
    let call = Call::begin_with(|config| config.life.stop.ends_with = EndsWith::Picked(picked)).await;
    let alice = call.join("alice").await;
    let voice = alice.publish(words(3, 60 * SECOND), TrackOptions::default()).await.unwrap();
    voice.sent_at_least(100).await.unwrap();
    call.visit("bob", &words(4, SECOND)).await;
    let recorded = call.over().await;
    assert_eq!(recorded.result.stopped_by, Some(StopReason::ParticipantLeft));
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn what_is_filtered_out_is_nowhere() {
    let filter = TrackFilter { only: Vec::new(), except: vec!["identity=agent".parse().unwrap()] };
    let call = Call::begin_with(|config| config.tracks = filter).await;
    let (agent, alice) = (call.join("agent").await, call.join("alice").await);
    let (secret, sound) = (words(5, 3 * SECOND), words(6, 3 * SECOND));
    let start = clock::now() + SETTLE;
    let options = TrackOptions::default().start(start);
    let spoken = agent.publish(secret.clone(), options.clone()).await.unwrap();
    let voice = alice.publish(sound.clone(), options).await.unwrap();
    spoken.said().await.unwrap();
    voice.said().await.unwrap();
    let recorded = call.stop().await;
    recorded.find(&sound);
    let found = callreel::testkit::analysis::find(secret.channel(0), recorded.audio.channel(0)).unwrap();
    assert!(found.score < 0.35, "{found:?}");
    let tracks: Vec<&str> = recorded.manifest.tracks.iter().map(|track| track.identity.as_str()).collect();
    assert_eq!(tracks, ["alice"]);
    let present: Vec<&str> = recorded.manifest.participants.iter().map(|entry| entry.identity.as_str()).collect();
    assert!(present.contains(&"agent"), "who was there is told all the same: {present:?}");
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_leg_that_falls_silent_is_told_of_and_when_it_is_back() {
    let call = Call::begin_with(|config| config.leg_silent_after = Some(3 * SECOND)).await;
    let mut news = call.recording.happenings();
    let (alice, bob) = (call.join("alice").await, call.join("bob").await);
    let telephone = PublisherConfig::on(&call.server, ROOM, "phone").kind(ParticipantKind::Sip);
    let telephone = Publisher::join(telephone).await.unwrap();
    // An open microphone that sends nothing any more.
    let ends = TrackOptions::default().after_end(AfterEnd::Nothing);
    let _alice = alice.publish(words(7, 6 * SECOND), ends.clone()).await.unwrap();
    let _telephone = telephone.publish(words(8, 5 * SECOND), ends).await.unwrap();
    let _bob = bob.publish(words(9, 60 * SECOND), TrackOptions::default()).await.unwrap();
    let (mut silent, mut back) = (Vec::new(), Vec::new());
    while silent.len() < 2 {
        if let What::LegSilent { participant, .. } = news.recv().await.unwrap().what {
            silent.push(participant);
        }
    }
    assert_eq!(silent, ["phone", "alice"], "the telephone at once, others after a new subscription did not help");
    assert_eq!(call.recording.status().silent_legs.len(), 2);
    telephone.leave().await.unwrap();
    while back.is_empty() {
        if let What::LegBack { participant } = news.recv().await.unwrap().what {
            back.push(participant);
        }
    }
    assert_eq!(back, ["phone"]);
    let recorded = call.stop().await;
    let [first, second] = recorded.manifest.leg_silent.as_slice() else { panic!("{:?}", recorded.manifest.leg_silent) };
    assert!(first.to_sample.is_some() && second.to_sample.is_none());
    assert_eq!((first.participant.as_str(), second.participant.as_str()), ("phone", "alice"));
    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
}

#[tokio::test]
async fn who_is_removed_or_pushed_out_ends_with_the_reason() {
    for pushed_out in [false, true] {
        let call = Call::begin_with(|config| config.identity = Some("recorder".into())).await;
        let alice = call.join("alice").await;
        let voice = alice.publish(words(1, 60 * SECOND), TrackOptions::default()).await.unwrap();
        voice.sent_at_least(150).await.unwrap();
        let word = if pushed_out {
            let _other = call.join("recorder").await;
            "duplicate_identity"
        } else {
            call.server.rooms().remove(ROOM, "recorder").await.unwrap();
            "participant_removed"
        };
        let recorded = call.over().await;
        let said = format!("{:?}", recorded.result.reasons);
        assert!(said.contains("Removed") && said.contains(word), "{said}");
        assert_eq!(recorded.result.outcome, Outcome::Failed);
        assert!(recorded.audio.duration() > 2 * SECOND, "what there was is kept");
    }
}

#[tokio::test]
async fn orders_before_there_is_a_recording_hold_from_its_beginning() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let credentials = Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() };
    let mut config = Config::new(server.url(), credentials, ROOM);
    config.out = out.path().to_owned();
    let recording = Recorder::start(config);
    recording.pause(callreel::recording::PauseOrder { by: "early".into(), ..Default::default() });
    let mut watched = recording.clone();
    while watched.status().state != State::Paused {
        watched.changed().await;
    }
    recording.stop();
    let result = recording.wait().await;
    let manifest = std::fs::read(result.manifest.unwrap()).unwrap();
    let manifest: callreel::recording::Manifest = serde_json::from_slice(&manifest).unwrap();
    assert_eq!((manifest.pauses.len(), manifest.pauses[0].from_sample.0), (1, 0));
    let audio = Audio::read(&result.outputs[0].location).unwrap();
    assert!(audio.duration() < 5 * SECOND);
}
