//! Real telephone calls: after a hold, a long pause or a loss on the telephone's side, the caller's clock has stood
//! still, and only the arrival of the packets tells when the caller spoke.

use std::fs;

use callreel::call::ParticipantKind;
use callreel::capture::{CaptureConfig, Reason};
use callreel::testkit::checkout;
use callreel::testkit::replay::{self, Replayed, TracedPacket};

fn run(name: &str, kind: ParticipantKind) -> (Vec<TracedPacket>, Replayed) {
    let path = checkout().join(format!("fixtures/traces/{name}.csv"));
    let trace = replay::read(&fs::read_to_string(path).unwrap()).unwrap();
    let replayed = replay::replay(&trace, kind, CaptureConfig::default());
    for ledger in replayed.ledgers.values() {
        ledger.check_identity().unwrap();
    }
    (trace, replayed)
}

/// How far from its arrival each packet of `track` was placed, in milliseconds, with its arrival in seconds.
fn offsets(trace: &[TracedPacket], replayed: &Replayed, track: u32) -> Vec<(f64, f64)> {
    let placed = trace.iter().zip(&replayed.packets).filter(|(row, _)| row.track == track);
    placed
        .filter_map(|(row, placed)| {
            let arrival = row.arrival_us as f64 / 1e3;
            Some((arrival / 1e3, placed.recording_sample? as f64 / 48.0 - arrival))
        })
        .collect()
}

#[test]
fn what_a_caller_says_lies_where_it_arrived() {
    for (name, tracks) in [("sip-two-callers", [1, 2]), ("sip-hold", [1, 2]), ("sip-gaps", [1, 2])] {
        let (trace, replayed) = run(name, ParticipantKind::Sip);
        for track in tracks {
            // Single packets come late by up to 30 ms; of five in a row, the least delayed one tells.
            for five in offsets(&trace, &replayed, track).windows(5) {
                let arrival = five[0].0;
                let offset = five.iter().map(|(_, offset)| offset.abs()).fold(f64::INFINITY, f64::min);
                // The burst with which the bridge fills a short pause comes when the pause is over.
                let burst = name == "sip-gaps" && track == 2 && (7.8..7.82).contains(&arrival);
                assert!(burst || offset < 5.0, "{name} track {track}: {offset:.1} ms off at {arrival:.3} s");
            }
        }
    }
}

#[test]
fn nothing_of_the_calls_is_lost_and_blank_packets_lengthen_nothing() {
    for name in ["sip-two-callers", "sip-hold", "sip-gaps"] {
        let (trace, replayed) = run(name, ParticipantKind::Sip);
        for (track, ledger) in &replayed.ledgers {
            let rows = trace.iter().filter(|row| row.track == *track);
            let (blank, audio): (Vec<TracedPacket>, Vec<TracedPacket>) = rows.copied().partition(|row| row.marker);
            assert_eq!(blank.len(), 11, "{name} track {track}");
            assert_eq!(ledger.counters.packets_blank, 11);
            assert_eq!(ledger.counters.packets_received, audio.len() as u64);
            assert_eq!(ledger.sums.lost + ledger.sums.concealed + ledger.sums.recovered, 0);
            let last = audio.last().unwrap().arrival_us as f64 / 1e6;
            assert!((ledger.end.as_secs_f64() - last).abs() < 0.05, "{name} track {track} ends at {}", ledger.end);
        }
    }
}

#[test]
fn holds_and_long_pauses_are_told_apart_from_a_pause_that_is_filled() {
    let stopped = |name| {
        let (_, replayed) = run(name, ParticipantKind::Sip);
        let ledger = &replayed.ledgers[&2];
        let rows = ledger.rows.iter().filter(|row| row.reason == Reason::SilentSenderStopped);
        rows.map(|row| (row.end.0 - row.start.0) as f64 / 48_000.0).filter(|secs| *secs > 0.05).collect::<Vec<_>>()
    };
    let near = |found: Vec<f64>, expected: &[f64]| {
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.02), "{found:?}");
    };
    near(stopped("sip-hold"), &[4.98]);
    near(stopped("sip-gaps"), &[2.0, 0.2, 2.98]);
}

#[test]
fn the_same_steps_of_a_standard_participant_move_it_only_from_half_a_second_on() {
    let (trace, replayed) = run("sip-gaps", ParticipantKind::Standard);
    let offsets = offsets(&trace, &replayed, 2);
    let at = |seconds: f64| offsets.iter().find(|(arrival, _)| *arrival >= seconds).unwrap().1;
    assert!(at(20.0).abs() < 20.0, "2 s are time that stood still");
    assert!((at(25.0) + 200.0).abs() < 20.0, "200 ms are a longer route: {}", at(25.0));
    assert!(at(31.0).abs() < 20.0, "3 s are time that stood still");
}
