//! Worlds made at random: every habit and every impairment, in any combination.

use fastrand::Rng;

use crate::call::ParticipantKind;

use super::{Jitter, Loss, Network, Sender, World};

/// The world of a seed: some twenty seconds with one to three tracks.
pub fn random_world(seed: u64) -> World {
    let mut random = Rng::with_seed(seed ^ 0x005e_ed0f_ca11);
    let seconds = random.f64() * 20.0 + 10.0;
    let tracks =
        (0..random.usize(1..4)).map(|_| (sender(&mut random, seconds), network(&mut random, seconds))).collect();
    let mut world = World::new(seed, seconds, tracks);
    if random.u8(..) < 40 {
        world.hiccups.push((random.f64() * seconds, random.f64() * 3.0));
        world.stamped_on_read = random.bool();
    }
    world
}

fn sender(random: &mut Rng, seconds: f64) -> Sender {
    let telephone = random.u8(..) < 80;
    let from = if random.bool() { 0.2 } else { random.f64() * seconds };
    let ends = random.u8(..) < 80;
    let mut sender = Sender {
        kind: if telephone { ParticipantKind::Sip } else { ParticipantKind::Standard },
        from,
        to: if ends { from + random.f64() * (seconds - from) } else { f64::INFINITY },
        ppm: (random.f64() - 0.5) * 1000.0,
        wander: (random.f64() * 50.0, 300.0 + random.f64() * 600.0),
        dtx: !telephone && random.bool(),
        pauses: random.bool().then(|| (random.f64() * 4.0 + 0.1, random.f64() * 3.0 + 0.1)),
        mute_offset_ms: random.f64() * 200.0,
        fec: random.bool(),
        ..Sender::default()
    };
    if random.u8(..) < 60 {
        let sizes = [2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0];
        sender.frames_ms = (0..random.usize(1..4)).map(|_| sizes[random.usize(..sizes.len())]).collect();
    }
    if random.u8(..) < 60 {
        sender.mutes = times(random, seconds, 6.0);
    }
    if random.u8(..) < 80 {
        sender.holds = times(random, seconds, 8.0);
    }
    if random.u8(..) < 40 {
        sender.restarts = times(random, seconds, 1.0).into_iter().map(|(at, _)| at).collect();
    }
    sender
}

fn network(random: &mut Rng, seconds: f64) -> Network {
    let loss = match random.u8(..5) {
        0 | 1 => Loss::None,
        2 => Loss::Bernoulli(random.f64() * 0.3),
        3 => Loss::Bursts { begin: 0.002, end: 0.02 },
        _ => Loss::Bursts { begin: 0.001, end: 1.0 / 150.0 },
    };
    let jitter = match random.u8(..5) {
        0 => Jitter::None,
        1 => Jitter::Uniform(random.f64() * 120.0),
        2 => Jitter::Exponential(random.f64() * 40.0),
        3 => Jitter::Gamma(random.f64() * 40.0),
        _ => Jitter::Uniform(2.0),
    };
    let often = |random: &mut Rng| random.u8(..) < 60;
    Network {
        delay_ms: random.f64() * 200.0,
        jitter,
        loss,
        nack_rtt_ms: random.bool().then(|| random.f64() * 300.0),
        route_changes: if often(random) {
            times(random, seconds, 600.0).into_iter().map(|(at, ms)| (at, ms - 300.0)).collect()
        } else {
            Vec::new()
        },
        stalls: if often(random) { times(random, seconds, 6.0) } else { Vec::new() },
        spikes: if often(random) {
            times(random, seconds, 3.0).into_iter().map(|(at, long)| (at, long, long * 200.0)).collect()
        } else {
            Vec::new()
        },
        reorder: if often(random) { random.f64() * 0.1 } else { 0.0 },
        duplicate: if often(random) { random.f64() * 0.1 } else { 0.0 },
    }
}

/// Up to three points in time, in order, each with an amount up to `most`.
fn times(random: &mut Rng, seconds: f64, most: f64) -> Vec<(f64, f64)> {
    let mut times: Vec<(f64, f64)> =
        (0..random.usize(1..4)).map(|_| (random.f64() * seconds, random.f64() * most)).collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times
}
