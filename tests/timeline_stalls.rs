//! Stalls, of the network and of the recorder, that catch up: nothing is lost and nothing moves.

use callreel::call::ParticipantKind;
use callreel::testkit::sim::{self, Jitter, Network, Sender, TrackReport, World};

fn call(kind: ParticipantKind, change: impl FnOnce(&mut World)) -> TrackReport {
    let sender = Sender { kind, ppm: 150.0, ..Sender::default() };
    let network = Network { jitter: Jitter::Uniform(20.0), ..Network::default() };
    let mut world = World::new(5, 60.0, vec![(sender, network)]);
    change(&mut world);
    sim::run(&world).unwrap().tracks.remove(0)
}

fn assert_whole(track: &TrackReport, what: &str) {
    assert_eq!(track.placed.len() as u64, track.delivered, "{what}");
    let sums = track.ledger.sums;
    let other = sums.total().0 - sums.received - sums.not_started;
    // What the end of the call cuts off is silence of a packet or two, or of its delay.
    assert!(other < 48 * 100, "{what}: {sums:?}");
    assert_eq!(track.ledger.counters.re_anchors, 0, "{what}");
    let worst = *track.errors_ms(0.0).last().unwrap();
    assert!(worst < 5.0, "{what}: {worst} ms off");
}

const KINDS: [ParticipantKind; 2] = [ParticipantKind::Standard, ParticipantKind::Sip];

#[test]
fn a_network_that_stalls_for_three_seconds() {
    for kind in KINDS {
        let track = call(kind, |world| world.tracks[0].1.stalls = vec![(20.0, 3.0), (40.0, 1.0)]);
        assert_whole(&track, &format!("{kind:?}"));
    }
}

#[test]
fn a_recorder_that_is_away_for_two_seconds() {
    for kind in KINDS {
        for stamped_on_read in [false, true] {
            let track = call(kind, |world| {
                world.hiccups = vec![(15.0, 2.0), (30.0, 0.4), (45.0, 3.5)];
                world.stamped_on_read = stamped_on_read;
            });
            assert_whole(&track, &format!("{kind:?}, stamped on read: {stamped_on_read}"));
        }
    }
}

#[test]
fn a_stall_beyond_patience_is_accounted_as_lost_and_moves_nothing() {
    let track = call(ParticipantKind::Standard, |world| world.tracks[0].1.stalls = vec![(20.0, 8.0)]);
    let counters = track.ledger.counters;
    assert_eq!(track.placed.len() as u64 + counters.packets_late, track.delivered);
    assert!((6.0..8.0).contains(&(track.ledger.sums.lost as f64 / 48_000.0)), "{:?}", track.ledger.sums);
    assert!(*track.errors_ms(0.0).last().unwrap() < 12.0, "at most half a packet where it goes on");
}
