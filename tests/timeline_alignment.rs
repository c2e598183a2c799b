//! How far from the truth voices lie: each impairment alone, and all together.
//!
//! The truth is when something was said plus the least delay of its track's first route. The table is printed with
//! `cargo test --features testkit --test timeline_alignment -- --nocapture`.

use callreel::call::ParticipantKind;
use callreel::testkit::sim::{self, Jitter, Loss, Network, Report, Sender, World};

/// Worlds a row, and the length of each.
const SEEDS: u64 = 12;
const SECONDS: f64 = 90.0;

struct Row {
    name: &'static str,
    make: fn() -> (Sender, Network),
}

/// What the rows share: speech with pauses, 40 ms away.
fn plain() -> (Sender, Network) {
    (Sender { pauses: Some((3.0, 1.0)), fec: true, ..Sender::default() }, Network::default())
}

fn sender(change: impl FnOnce(&mut Sender)) -> (Sender, Network) {
    let (mut sender, network) = plain();
    change(&mut sender);
    (sender, network)
}

fn network(change: impl FnOnce(&mut Network)) -> (Sender, Network) {
    let (sender, mut network) = plain();
    change(&mut network);
    (sender, network)
}

const ROWS: &[Row] = &[
    Row { name: "nothing", make: plain },
    Row { name: "clock +300 ppm", make: || sender(|s| s.ppm = 300.0) },
    Row { name: "clock -300 ppm", make: || sender(|s| s.ppm = -300.0) },
    Row { name: "clock +500 ppm", make: || sender(|s| s.ppm = 500.0) },
    Row { name: "clock wanders 50 ppm in 5 min", make: || sender(|s| s.wander = (50.0, 300.0)) },
    Row { name: "jitter 60 ms, even", make: || network(|n| n.jitter = Jitter::Uniform(60.0)) },
    Row { name: "jitter 20 ms mean, exponential", make: || network(|n| n.jitter = Jitter::Exponential(20.0)) },
    Row { name: "jitter 20 ms mean, no floor", make: || network(|n| n.jitter = Jitter::Gamma(20.0)) },
    Row {
        name: "loss 2 %, retransmitted",
        make: || network(|n| (n.loss, n.nack_rtt_ms) = (Loss::Bernoulli(0.02), Some(80.0))),
    },
    Row { name: "loss 5 %, not retransmitted", make: || network(|n| n.loss = Loss::Bernoulli(0.05)) },
    Row { name: "loss bursts up to 3 s", make: || network(|n| n.loss = Loss::Bursts { begin: 0.002, end: 0.02 }) },
    Row { name: "reordering 5 %, duplicates 5 %", make: || network(|n| (n.reorder, n.duplicate) = (0.05, 0.05)) },
    Row {
        name: "spikes of 200 ms for 3 s",
        make: || network(|n| n.spikes = vec![(20.0, 3.0, 200.0), (50.0, 3.0, 200.0)]),
    },
    Row { name: "stalls of 3 s that catch up", make: || network(|n| n.stalls = vec![(20.0, 3.0), (60.0, 3.0)]) },
    Row { name: "route +150 ms, then back", make: || network(|n| n.route_changes = vec![(30.0, 150.0), (60.0, 0.0)]) },
    Row {
        name: "route -150 ms, then back",
        make: || network(|n| (n.delay_ms, n.route_changes) = (200.0, vec![(30.0, -150.0), (60.0, 0.0)])),
    },
    Row { name: "pauses without packets (DTX)", make: || sender(|s| s.dtx = true) },
    Row {
        name: "muted, timestamps set off after",
        make: || sender(|s| (s.mutes, s.mute_offset_ms) = (vec![(20.0, 5.0), (50.0, 10.0)], 200.0)),
    },
    Row { name: "new SSRC in mid-call", make: || sender(|s| s.restarts = vec![30.0, 60.0]) },
    Row { name: "packets of 10 to 120 ms", make: || sender(|s| s.frames_ms = vec![20.0, 10.0, 40.0, 60.0, 120.0]) },
    Row { name: "telephone: holds, pauses, loss", make: telephone },
    Row { name: "2 % loss, 60 ms jitter, +300 ppm", make: || target(300.0, Jitter::Uniform(60.0)) },
    Row { name: "2 % loss, 60 ms jitter, -300 ppm", make: || target(-300.0, Jitter::Uniform(60.0)) },
    Row { name: "the same, exponential jitter", make: || target(300.0, Jitter::Exponential(20.0)) },
    Row { name: "all together", make: all },
];

fn telephone() -> (Sender, Network) {
    sender(|s| {
        s.kind = ParticipantKind::Sip;
        s.ppm = 100.0;
        s.holds = vec![(15.0, 5.0), (35.0, 2.0), (50.0, 0.2), (60.0, 3.0)];
    })
}

fn target(ppm: f64, jitter: Jitter) -> (Sender, Network) {
    let (mut sender, mut network) = plain();
    sender.ppm = ppm;
    network.jitter = jitter;
    network.loss = Loss::Bernoulli(0.02);
    network.nack_rtt_ms = Some(80.0);
    (sender, network)
}

fn all() -> (Sender, Network) {
    let (mut sender, mut network) = target(300.0, Jitter::Uniform(60.0));
    sender.wander = (20.0, 300.0);
    sender.dtx = true;
    sender.frames_ms = vec![20.0, 10.0, 60.0];
    sender.mutes = vec![(25.0, 4.0)];
    network.reorder = 0.02;
    network.duplicate = 0.02;
    network.spikes = vec![(40.0, 2.0, 200.0)];
    network.stalls = vec![(50.0, 2.0)];
    network.route_changes = vec![(60.0, 150.0)];
    (sender, network)
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)).copied().unwrap_or(f64::NAN)
}

/// The furthest that a stretch was longer or shorter than its packet, in samples a 20 ms, from `after` seconds on.
fn worst_slew(reports: &[Report], after: f64) -> f64 {
    let tracks = reports.iter().flat_map(|report| &report.tracks);
    let placed =
        tracks.flat_map(|track| track.placed.iter().filter(move |p| p.spoken > track.placed[0].spoken + after));
    placed.map(|p| p.slewed.unsigned_abs() as f64 / (p.samples as f64 / 960.0).max(1.0)).fold(0.0, f64::max)
}

#[test]
fn voices_lie_where_they_were_spoken() {
    println!("{:34} {:>8} {:>8} {:>8} {:>8} {:>10}", "after 2 s, in ms", "median", "p99", "max", "slew", "from start");
    let mut too_far = Vec::new();
    for row in ROWS {
        let worlds = (0..SEEDS).map(|seed| World::new(seed * 7 + 1, SECONDS, vec![(row.make)()]));
        let reports: Vec<Report> = worlds.map(|world| sim::run(&world).unwrap()).collect();
        let collect = |after: f64| {
            let mut errors: Vec<f64> = reports.iter().flat_map(|report| report.tracks[0].errors_ms(after)).collect();
            errors.sort_by(f64::total_cmp);
            errors
        };
        let (errors, from_start) = (collect(2.0), *collect(0.0).last().unwrap());
        let (median, p99, max) = (percentile(&errors, 0.5), percentile(&errors, 0.99), *errors.last().unwrap());
        let slew = worst_slew(&reports, 10.0);
        println!("{:34} {median:8.2} {p99:8.2} {max:8.2} {slew:8.2} {from_start:10.2}", row.name);
        if p99 > 5.0 || max > 10.0 || from_start > 30.0 {
            too_far.push(row.name);
        }
    }
    assert!(too_far.is_empty(), "{too_far:?}");
}
