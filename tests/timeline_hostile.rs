//! Publishers that are broken, or want to do harm: memory and the timeline stay within bounds.

use bytes::Bytes;

use callreel::call::{Codec, ParticipantKind, TrackKey};
use callreel::capture::{Capture, CaptureConfig, Packet, Settled, TrackSpec};
use callreel::testkit::{scaled, sim};
use callreel::time::{ClockTime, RtpTime, Seq};

#[test]
fn no_sequence_of_events_breaks_a_rule() {
    let mut random = fastrand::Rng::with_seed(0x00ca_11ee);
    for round in 0..scaled(3_000) {
        let bytes: Vec<u8> = (0..random.usize(0..3000)).map(|_| random.u8(..)).collect();
        // All three tracks are published first, so that what follows meets them.
        let bytes = [&[0x3f, 0, 0x7f, 1, 0xbf, 0][..], &bytes].concat();
        sim::drive(&bytes).unwrap_or_else(|what| panic!("round {round}: {what}"));
    }
}

/// Feeds `seconds` of what `make` says, `rate` packets a second, and gives the most that waited and all that came out.
fn flood(seconds: u64, rate: u64, make: impl Fn(u64, &mut fastrand::Rng) -> Packet) -> (usize, usize, Vec<Settled>) {
    let mut capture = Capture::new(CaptureConfig::default()).unwrap();
    let spec = TrackSpec { kind: ParticipantKind::Standard, codec: Codec::Opus, muted: false };
    capture.publish(TrackKey(1), spec, ClockTime::ZERO);
    let mut random = fastrand::Rng::with_seed(1);
    let (mut packets, mut bytes, mut out) = (0, 0, Vec::new());
    for i in 0..seconds * rate {
        let at = ClockTime::from_micros((i * 1_000_000 / rate) as i64);
        capture.packet(TrackKey(1), make(i, &mut random), at);
        if i % (rate / 50).max(1) == 0 {
            capture.advance(at, &mut out);
        }
        packets = packets.max(capture.buffered().0);
        bytes = bytes.max(capture.buffered().1);
    }
    capture.finish(ClockTime::from_millis(seconds as i64 * 1000), &mut out);
    let ledger = capture.ledger(TrackKey(1)).unwrap();
    ledger.check_identity().unwrap();
    assert!(ledger.end.as_secs_f64() < seconds as f64 + 2.0, "the track ends at {}", ledger.end);
    (packets, bytes, out)
}

fn packet(seq: u64, rtp: i64, size: usize) -> Packet {
    let mut payload = vec![0; size];
    payload[0] = 0x48;
    Packet {
        ssrc: 1,
        codec: Codec::Opus,
        seq: Seq(seq),
        rtp: RtpTime(rtp),
        marker: false,
        payload: Bytes::from(payload),
        undecryptable: false,
    }
}

#[test]
fn a_flood_does_not_grow_memory_or_the_recording() {
    let config = CaptureConfig::default();
    let bounded = |(packets, bytes, out): (usize, usize, Vec<Settled>), seconds: usize| {
        assert!(packets <= config.max_packets && bytes <= config.max_bytes + 1500, "{packets} packets, {bytes} bytes");
        assert!(out.len() < seconds * 500 + config.max_packets, "{} stretches", out.len());
    };
    bounded(flood(10, 5000, |i, _| packet(i, i as i64 * 960, 1200)), 10);
    bounded(flood(10, 5000, |i, random| packet(random.u64(..), i as i64 * 960, 100)), 10);
    bounded(flood(10, 5000, |i, random| packet(i, random.i64(..), 100)), 10);
    bounded(flood(10, 5000, |_, random| packet(random.u64(..), random.i64(..), 100)), 10);
    bounded(flood(10, 5000, |i, random| Packet { ssrc: random.u32(..), ..packet(i, i as i64, 100) }), 10);
    bounded(flood(10, 5000, |i, _| packet(i * 2, i as i64 * 2 * 960, 60)), 10);
}

#[test]
fn a_timestamp_far_ahead_makes_no_hours_of_silence() {
    let (_, _, out) = flood(10, 50, |i, _| packet(i, if i < 250 { 0 } else { 1 << 40 } + i as i64 * 960, 100));
    let silent: u64 = out.iter().filter(|s| s.len().0 > 1000).map(|s| s.len().0).sum();
    assert!(silent < 48_000, "{silent} samples of silence");
}
