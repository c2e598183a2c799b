//! What people do in a call — mute, go, come back, bring a camera — is right in the file and in the manifest.

mod support;

use std::time::Duration;

use callreel::call::{Codec, ParticipantKind};
use callreel::clock;
use callreel::recording::{Outcome, Role, StopReason};
use callreel::testkit::{Publisher, PublisherConfig, TrackOptions};
use support::{Call, ROOM, SETTLE, part, words};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_mute_is_silence_and_what_follows_stands_where_it_was_said() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let sound = words(1, 7 * SECOND);
    let options = TrackOptions::default().start(clock::now() + SETTLE).mute_during(2 * SECOND..4 * SECOND);
    let voice = alice.publish(sound.clone(), options).await.unwrap();
    voice.said().await.unwrap();
    let recorded = call.stop().await;

    let start = voice.start();
    let muted = recorded.level(start + Duration::from_millis(2_200), start + Duration::from_millis(3_800));
    assert!(muted < -60.0, "{muted:.1} dBFS while muted");
    let before = recorded.error(&part(&sound, 0, 1_900), start);
    let after = recorded.error(&part(&sound, 4_100, 6_900), start + Duration::from_millis(4_100));
    assert!((after - before).abs() <= 5.0, "{before:.2} ms before, {after:.2} ms after");

    let ledger = &recorded.track(voice.sid()).ledger;
    // What is not sent before the server's word of the mute has come is a pause like any other.
    let seconds = |samples: u64| samples as f64 / 48_000.0;
    let (muted, paused) = (seconds(ledger.sums.silent_muted), seconds(ledger.sums.silent_dtx));
    assert!(muted > 0.5 && (1.7..=2.3).contains(&(muted + paused)), "{muted:.2} s muted: {:?}", ledger.sums);
    assert_eq!((ledger.sums.lost, ledger.sums.recorder_down), (0, 0), "{:?}", ledger.rows);
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_track_that_is_unpublished_and_published_again_is_two_tracks_in_one_file() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let (first, second) = (words(1, 2 * SECOND), words(2, 2 * SECOND));
    let options = TrackOptions::default().start(clock::now() + SETTLE);
    let voice = alice.publish(first.clone(), options).await.unwrap();
    voice.said().await.unwrap();
    let (first_sid, first_said) = (voice.sid().to_owned(), voice.start());
    voice.unpublish().await.unwrap();
    let unpublished = clock::now();
    let again = alice.publish(second.clone(), TrackOptions::default().start(unpublished + SETTLE)).await.unwrap();
    again.said().await.unwrap();
    let recorded = call.stop().await;

    let (before, after) = (recorded.error(&first, first_said), recorded.error(&second, again.start()));
    assert!((after - before).abs() <= 20.0, "{before:.2} ms, then {after:.2} ms");
    let (one, two) = (recorded.track(&first_sid), recorded.track(again.sid()));
    assert_eq!(one.participant_sid, two.participant_sid);
    // The server says that a track is gone a moment after its publisher knows; the end is six seconds later.
    for (said, in_manifest) in [(unpublished, one.unpublished_sample), (unpublished, two.published_sample)] {
        let apart = in_manifest.as_secs_f64() - (said - recorded.zero).as_secs_f64();
        assert!((-0.1..3.0).contains(&apart), "{apart:.3} s after it happened");
    }
    assert!(one.published_sample < two.published_sample);
    assert_eq!((recorded.manifest.tracks.len(), recorded.manifest.participants.len()), (2, 1));
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn who_leaves_and_comes_back_in_time_goes_on_in_the_same_file() {
    let call = Call::begin_with(|config| config.life.stop.departure_timeout = 10 * SECOND).await;
    let mut said = Vec::new();
    for visit in [1, 2] {
        let sound = words(visit, 2 * SECOND);
        let (sid, at) = call.visit("alice", &sound).await;
        said.push((sid, sound, at));
    }
    let recorded = call.stop().await;

    let errors: Vec<f64> = said.iter().map(|(_, sound, at)| recorded.error(&part(sound, 0, 1_800), *at)).collect();
    assert!((errors[1] - errors[0]).abs() <= 20.0, "{errors:?} ms");
    let sessions: Vec<_> = recorded.manifest.participants.iter().map(|entry| entry.sid.clone()).collect();
    assert_eq!(sessions, said.iter().map(|(sid, ..)| sid.clone()).collect::<Vec<_>>());
    for entry in &recorded.manifest.participants {
        assert_eq!((entry.identity.as_str(), entry.role), ("alice", Role::Participant));
    }
    // The recorder may have been stopped before it heard of the second goodbye.
    let first = &recorded.manifest.participants[0];
    assert!(first.left_sample.is_some_and(|left| left > first.joined_sample));
    assert_eq!(first.left_reason, "client_initiated");
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn ten_people_who_speak_in_turn_are_heard_in_turn() {
    let call = Call::begin().await;
    let mut people = Vec::new();
    for number in 0..10 {
        people.push(call.join(&format!("person-{number}")).await);
    }
    let start = clock::now() + 2 * SETTLE;
    let mut voices = Vec::new();
    for (number, person) in (0..).zip(&people) {
        let sound = words(number, SECOND);
        let turn = start + Duration::from_millis(700) * number as u32;
        let voice = person.publish(sound.clone(), TrackOptions::default().start(turn)).await.unwrap();
        voices.push((sound, turn, voice));
    }
    for (_, _, voice) in &voices {
        voice.said().await.unwrap();
    }
    let recorded = call.stop().await;

    let errors: Vec<f64> = voices.iter().map(|(sound, turn, _)| recorded.error(sound, *turn)).collect();
    let (least, most) = errors.iter().fold((f64::MAX, f64::MIN), |(l, m), e| (l.min(*e), m.max(*e)));
    assert!(most - least <= 20.0, "{errors:.1?} ms");
    assert_eq!(recorded.manifest.participants.len(), 10);
    assert_eq!(recorded.manifest.tracks.len(), 10);
    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
}

#[tokio::test]
async fn a_camera_is_left_alone() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    alice.publish_video().await.unwrap();
    let sound = words(1, 2 * SECOND);
    let voice = alice.publish(sound.clone(), TrackOptions::default().start(clock::now() + SETTLE)).await.unwrap();
    voice.said().await.unwrap();
    let recorded = call.stop().await;

    recorded.find(&sound);
    let tracks: Vec<&str> = recorded.manifest.tracks.iter().map(|track| track.sid.as_str()).collect();
    assert_eq!(tracks, [voice.sid()]);
    assert_eq!(recorded.result.outcome, Outcome::Complete);
}

#[tokio::test]
async fn a_telephone_leg_in_g711_is_a_caller_beside_an_agent() {
    let call = Call::begin().await;
    let config = PublisherConfig::on(&call.server, ROOM, "sip_1555")
        .kind(ParticipantKind::Sip)
        .attribute("sip.phoneNumber", "+1555")
        .attribute("sip.callStatus", "active");
    let caller = Publisher::join(config).await.unwrap();
    let agent = PublisherConfig::on(&call.server, ROOM, "agent").kind(ParticipantKind::Agent);
    let agent = Publisher::join(agent).await.unwrap();
    let (theirs, its) = (words(1, 2 * SECOND), words(2, 2 * SECOND));
    let start = clock::now() + SETTLE;
    let telephone = TrackOptions::default().codec(Codec::Pcmu).start(start);
    let caller_voice = caller.publish(theirs.clone(), telephone).await.unwrap();
    let agent_voice = agent.publish(its.clone(), TrackOptions::default().start(start + SECOND)).await.unwrap();
    caller_voice.said().await.unwrap();
    agent_voice.said().await.unwrap();
    caller.leave().await.unwrap();
    let recorded = call.over().await;

    assert_eq!(recorded.result.stopped_by, Some(StopReason::Departed), "an agent alone keeps no call alive");
    recorded.find(&part(&theirs, 0, 1_800));
    recorded.find(&part(&its, 0, 1_800));
    assert_eq!(recorded.track(caller_voice.sid()).codec, Codec::Pcmu);
    let role = |identity: &str| {
        let entry = recorded.manifest.participants.iter().find(|entry| entry.identity == identity);
        entry.map(|entry| (entry.role, entry.kind))
    };
    assert_eq!(role("sip_1555"), Some((Role::Caller, ParticipantKind::Sip)));
    assert_eq!(role("agent"), Some((Role::Agent, ParticipantKind::Agent)));
    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
}

#[tokio::test]
async fn a_room_that_is_closed_ends_the_recording_with_everything_said() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let sound = words(1, 60 * SECOND);
    let voice = alice.publish(sound.clone(), TrackOptions::default().start(clock::now() + SETTLE)).await.unwrap();
    voice.sent_at_least(200).await.unwrap();
    call.server.rooms().delete(ROOM).await.unwrap();
    let deleted = clock::now();
    let recorded = call.over().await;

    assert_eq!(recorded.result.stopped_by, Some(StopReason::RoomClosed));
    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
    recorded.find(&part(&sound, 2_000, 2_900));
    assert!(recorded.audio.duration() <= deleted - recorded.zero + 10 * SECOND, "she would have spoken for a minute");
}

#[tokio::test]
async fn a_room_in_which_nobody_speaks_is_empty() {
    let mut call = Call::begin().await;
    let alice = call.join("alice").await;
    // Of somebody who is gone before her transport stands, nobody is told.
    while call.recording.status().participants == 0 {
        call.recording.changed().await;
    }
    alice.leave().await.unwrap();
    let recorded = call.over().await;
    assert_eq!(recorded.result.outcome, Outcome::Empty);
    assert_eq!(recorded.manifest.tracks.len(), 0);
}
