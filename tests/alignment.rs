//! Two people who speak at known moments stand in the recording at those moments, relative to each other.

mod support;

use std::time::{Duration, Instant};

use callreel::clock;
use callreel::testkit::{Audio, TrackOptions};
use callreel::time::Ppm;
use support::{Call, Recorded, SETTLE, part, words};

/// How far apart two sounds are in the recording, less how far apart they were said, in milliseconds.
fn relative_error(recorded: &Recorded, one: (&Audio, Instant), other: (&Audio, Instant)) -> f64 {
    recorded.error(other.0, other.1) - recorded.error(one.0, one.1)
}

#[tokio::test]
async fn two_voices_keep_their_distance_within_five_milliseconds() {
    let call = Call::begin().await;
    let (alice, bob) = (call.join("alice").await, call.join("bob").await);
    let (hers, his) = (words(1, Duration::from_secs(6)), words(2, Duration::from_secs(6)));
    let start = clock::now() + SETTLE;
    let later = start + Duration::from_micros(1_234_567);
    let her_voice = alice.publish(hers.clone(), TrackOptions::default().start(start)).await.unwrap();
    let his_voice = bob.publish(his.clone(), TrackOptions::default().start(later)).await.unwrap();
    her_voice.said().await.unwrap();
    his_voice.said().await.unwrap();
    let recorded = call.stop().await;

    // A map needs packets to settle on: it may be 30 ms off at the first frame, and 5 ms after two seconds.
    for (from, to, allowed) in [(0, 1_000, 30.0), (2_000, 3_500, 5.0), (3_500, 5_000, 5.0)] {
        let said = Duration::from_millis(from);
        let (her_part, his_part) = (part(&hers, from, to), part(&his, from, to));
        let error = relative_error(&recorded, (&her_part, start + said), (&his_part, later + said));
        assert!(error.abs() <= allowed, "{error:.2} ms apart from {from} ms on");
        let absolute = recorded.error(&her_part, start + said);
        assert!((-5.0..=40.0).contains(&absolute), "{absolute:.2} ms after it was said, from {from} ms on");
    }
}

#[tokio::test]
async fn frame_length_and_discontinuous_transmission_move_nobody() {
    let call = Call::begin().await;
    let (alice, bob) = (call.join("alice").await, call.join("bob").await);
    // A pause in the middle: with DTX, packets stop there.
    let pause = Audio::silence(Duration::from_millis(1_500));
    let hers = words(1, Duration::from_secs(2)).then(&pause).then(&words(3, Duration::from_secs(2)));
    let his = words(2, Duration::from_secs(5));
    let start = clock::now() + SETTLE;
    let short = TrackOptions::default().start(start).frame(Duration::from_millis(10)).dtx(true);
    let long = TrackOptions::default().start(start).frame(Duration::from_millis(60));
    let her_voice = alice.publish(hers.clone(), short).await.unwrap();
    let his_voice = bob.publish(his.clone(), long).await.unwrap();
    her_voice.said().await.unwrap();
    his_voice.said().await.unwrap();
    let recorded = call.stop().await;

    let after_pause = start + Duration::from_millis(3_500);
    let before = relative_error(&recorded, (&part(&his, 0, 2_000), start), (&part(&hers, 0, 2_000), start));
    let after = relative_error(&recorded, (&part(&his, 0, 2_000), start), (&part(&hers, 3_500, 5_500), after_pause));
    assert!(before.abs() <= 5.0 && after.abs() <= 5.0, "{before:.2} ms before the pause, {after:.2} ms after");
}

#[tokio::test]
async fn a_publisher_with_a_wrong_clock_does_not_drift_away() {
    let call = Call::begin().await;
    let (alice, bob) = (call.join("alice").await, call.join("bob").await);
    let silence = Audio::silence(Duration::from_secs(3));
    // Each is looked for where the other is silent, and in short: what is led back by half a millisecond meanwhile is hard to
    // find, and under another voice more so.
    let hers = words(1, Duration::from_secs(17)).then(&silence);
    let his = words(2, Duration::from_secs(14)).then(&silence).then(&words(4, Duration::from_secs(3)));
    let start = clock::now() + SETTLE;
    let skew = Ppm(500.0);
    let her_voice = alice.publish(hers.clone(), TrackOptions::default().start(start)).await.unwrap();
    let his_voice = bob.publish(his.clone(), TrackOptions::default().start(start).skew(skew)).await.unwrap();
    her_voice.said().await.unwrap();
    his_voice.said().await.unwrap();
    let recorded = call.stop().await;

    // What he says from 17 s on by his own clock comes early by everybody else's.
    let (hers_said, his_said) = (Duration::from_millis(14_500), Duration::from_secs(17));
    let error = relative_error(
        &recorded,
        (&part(&hers, 14_500, 15_000), start + hers_said),
        (&part(&his, 17_000, 17_500), start + his_said.div_f64(skew.factor())),
    );
    assert!(error.abs() <= 5.0, "{error:.2} ms apart after 17 s");
}
