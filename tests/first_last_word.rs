//! Nothing is clipped where somebody begins, and nothing is missing where somebody ends.

mod support;

use std::time::Duration;

use callreel::capture::Reason;
use callreel::clock;
use callreel::recording::{Outcome, StopReason};
use callreel::testkit::{TrackOptions, analysis};
use support::{Call, part, words};

#[tokio::test]
async fn the_first_word_half_a_second_after_joining_is_whole() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let sound = words(1, Duration::from_secs(2));
    // Her microphone is open from the start; she speaks half a second after it was.
    let silence = Duration::from_millis(500);
    let voice = alice.publish(sound.clone(), TrackOptions::default().lead_in(silence)).await.unwrap();
    voice.said().await.unwrap();
    let recorded = call.stop().await;

    // Her first words alone: while her clock is being learnt, the corrections over seconds cost likeness, not sound.
    let found = recorded.find(&part(&sound, 0, 600));
    assert!(found.offset >= 0 && found.score > 0.6, "{found:?}");
    for (from, to) in [(0, 60), (60, 120), (120, 240)] {
        let at = found.offset as usize;
        let heard = recorded.audio.slice(at + from * 48..at + to * 48);
        let said = part(&sound, from as u64, to as u64);
        let difference = analysis::level(heard.channel(0)) - analysis::level(said.channel(0));
        assert!(difference.abs() < 6.0, "{from}–{to} ms of the first word: {difference:.1} dB louder than said");
    }
    let error = recorded.error(&part(&sound, 0, 600), voice.start() + silence);
    assert!((-5.0..=30.0).contains(&error), "{error:.2} ms after it was said");
}

#[tokio::test]
async fn speech_up_to_the_moment_of_leaving_is_there() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let sound = words(1, Duration::from_secs(3));
    let options = TrackOptions::default().start(clock::now() + support::SETTLE);
    let voice = alice.publish(sound.clone(), options).await.unwrap();
    voice.said().await.unwrap();
    let leaving = clock::now();
    alice.leave().await.unwrap();
    let sent = voice.sent().packets();
    let recorded = call.over().await;
    let over = clock::now() - recorded.zero;

    assert_eq!(recorded.result.stopped_by, Some(StopReason::Departed));
    assert_eq!(recorded.result.outcome, Outcome::Complete);
    // The server lets go of what reaches it together with the goodbye: a packet or two, more where it is late itself.
    let received = recorded.track(voice.sid()).ledger.counters.packets_received as usize;
    let long_ago = sent.iter().filter(|packet| packet.at + Duration::from_secs(1) < leaving).count();
    assert!((long_ago..=sent.len()).contains(&received), "{received} of {} packets", sent.len());
    let heard = received as u64 * 20;
    let last_words = part(&sound, heard - 600, heard);
    let found = recorded.find(&last_words);
    assert!(found.score > 0.8, "{found:?}");
    let end = found.offset + last_words.len() as i64;
    assert!(end <= recorded.audio.len() as i64 + 48 * 7, "the last word ends at {end} of {}", recorded.audio.len());

    // She has left when the server says so: a departure timeout before it is over, or earlier.
    let left = recorded.manifest.participants[0].left_sample.expect("she has left").as_secs_f64();
    assert!(left + 1.0 <= over.as_secs_f64(), "{left} s, but it is over after {over:?}");
    let after = recorded.audio.duration().as_secs_f64() - left;
    assert!(after < 0.7, "{after:.3} s of departure timeout were left at the end");
}

#[tokio::test]
async fn words_said_just_before_the_recorder_is_stopped_are_there() {
    let call = Call::begin().await;
    let alice = call.join("alice").await;
    let sound = words(1, Duration::from_secs(60));
    let options = TrackOptions::default().start(clock::now() + support::SETTLE);
    let voice = alice.publish(sound.clone(), options).await.unwrap();
    voice.sent_at_least(150).await.unwrap();
    let stopped = clock::now();
    let recorded = call.stop().await;

    // Up to the last packet that had arrived: what the server or she herself is late with is still under way.
    let rows = &recorded.track(voice.sid()).ledger.rows;
    let received = rows.iter().rfind(|row| row.reason == Reason::Received).expect("she was heard").end;
    let last = recorded.zero + Duration::from_secs_f64(received.as_secs_f64());
    assert!(last + Duration::from_secs(1) > stopped, "the last packet came {:?} before the stop", stopped - last);
    let end = (last - voice.start()).as_millis() as u64 - 60;
    let found = recorded.find(&part(&sound, end - 800, end));
    assert!(found.score > 0.8, "what was said until 60 ms before the last packet: {found:?}");
    let overhang = recorded.audio.duration().as_secs_f64() - (last.max(stopped) - recorded.zero).as_secs_f64();
    assert!(overhang.abs() < 0.25, "the file ends {overhang:.3} s after the stop");
}
