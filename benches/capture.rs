//! What capture costs: packets of whole calls, from arrival to settled stretches. A call is sixty seconds of two tracks.

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use callreel::call::{Codec, ParticipantKind, TrackKey};
use callreel::capture::{Capture, CaptureConfig, Packet, Settled, TrackSpec};
use callreel::time::{ClockTime, RtpTime, Seq};

const TRACKS: u32 = 2;
const TICKS: u64 = 60 * 50;

/// A packet and when it arrives, in the order of arrival.
type Arrival = (ClockTime, TrackKey, Packet);

/// The call's packets: `jitter_us` late at random, of which `lost` in a hundred come 100 ms later.
fn call(jitter_us: i64, lost: u8) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(1);
    let payload = Bytes::from_static(&[0x48; 80]);
    let mut arrivals: Vec<Arrival> = (0..TICKS)
        .flat_map(|i| (0..TRACKS).map(move |track| (i, track)))
        .map(|(i, track)| {
            let late = random.i64(0..=jitter_us) + if random.u8(..100) < lost { 100_000 } else { 0 };
            let at = ClockTime::from_micros(i as i64 * 20_000 + late);
            let packet = Packet {
                ssrc: track,
                codec: Codec::Opus,
                seq: Seq(i),
                rtp: RtpTime(i as i64 * 960),
                marker: false,
                payload: payload.clone(),
                undecryptable: false,
            };
            (at, TrackKey(track), packet)
        })
        .collect();
    arrivals.sort_by_key(|(at, _, _)| *at);
    arrivals
}

fn settle(arrivals: &[Arrival], out: &mut Vec<Settled>) {
    let mut capture = Capture::new(CaptureConfig::default()).expect("the defaults are valid");
    for track in 0..TRACKS {
        let spec = TrackSpec { kind: ParticipantKind::Standard, codec: Codec::Opus, muted: false };
        capture.publish(TrackKey(track), spec, ClockTime::ZERO);
    }
    let mut tick = 0;
    for (at, track, packet) in arrivals {
        while tick < at.0 {
            tick += 20_000_000;
            out.clear();
            capture.advance(ClockTime(tick), out);
        }
        capture.packet(*track, packet.clone(), *at);
    }
    capture.finish(ClockTime(tick), out);
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("capture");
    group.throughput(Throughput::Elements(TICKS * u64::from(TRACKS)));
    for (name, arrivals) in [("in_order", call(0, 0)), ("jitter_60ms_retransmitted_2", call(60_000, 2))] {
        let mut out = Vec::new();
        group.bench_function(name, |bencher| bencher.iter(|| settle(&arrivals, &mut out)));
    }
    group.finish();
}

criterion_group!(capture, benches);
criterion_main!(capture);
