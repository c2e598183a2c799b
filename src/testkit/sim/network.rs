//! What a network does to packets between a sender and the recorder.

use fastrand::Rng;

/// Nanoseconds in a millisecond.
pub(super) const MS: f64 = 1e6;

/// How delay varies from packet to packet, on top of the route's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Jitter {
    /// Not at all.
    None,
    /// Evenly up to so many milliseconds: the floor is met often.
    Uniform(f64),
    /// Exponentially with this mean in milliseconds: the floor is where most packets are.
    Exponential(f64),
    /// Gamma-distributed (shape 2) with this mean in milliseconds: no floor, the best packet is rare.
    Gamma(f64),
}

impl Jitter {
    fn draw(self, random: &mut Rng) -> f64 {
        let exponential = |mean: f64, random: &mut Rng| -mean * (1.0 - random.f64()).ln();
        match self {
            Self::None => 0.0,
            Self::Uniform(most) => most * random.f64(),
            Self::Exponential(mean) => exponential(mean, random),
            Self::Gamma(mean) => exponential(mean / 2.0, random) + exponential(mean / 2.0, random),
        }
    }
}

/// How packets are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Not at all.
    None,
    /// Each with this probability.
    Bernoulli(f64),
    /// In bursts (Gilbert–Elliott): the probability that one begins at a packet, and that it ends at a packet. Within it
    /// everything is lost.
    Bursts {
        /// That one begins.
        begin: f64,
        /// That it ends.
        end: f64,
    },
}

/// The way from a sender to the recorder. Times are in seconds of the call, amounts in milliseconds.
#[derive(Clone, Debug)]
pub struct Network {
    /// The route's own delay.
    pub delay_ms: f64,
    /// Variation.
    pub jitter: Jitter,
    /// Loss on the way.
    pub loss: Loss,
    /// Retransmission: the round trip of a NACK, if lost packets are asked for.
    pub nack_rtt_ms: Option<f64>,
    /// From each time on, the route is longer (or shorter) by so much than at first.
    pub route_changes: Vec<(f64, f64)>,
    /// From each time on, everything is held back for so many seconds and comes at once.
    pub stalls: Vec<(f64, f64)>,
    /// From each time on, everything is delayed by so many milliseconds for so many seconds.
    pub spikes: Vec<(f64, f64, f64)>,
    /// Probability that a packet overtakes the one before it.
    pub reorder: f64,
    /// Probability that a packet comes twice.
    pub duplicate: f64,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            delay_ms: 40.0,
            jitter: Jitter::None,
            loss: Loss::None,
            nack_rtt_ms: None,
            route_changes: Vec::new(),
            stalls: Vec::new(),
            spikes: Vec::new(),
            reorder: 0.0,
            duplicate: 0.0,
        }
    }
}

/// A network at work.
#[derive(Debug)]
pub(super) struct Path {
    network: Network,
    random: Rng,
    in_burst: bool,
}

impl Path {
    pub fn new(network: Network, random: Rng) -> Self {
        Self { network, random, in_burst: false }
    }

    /// When a packet sent at `sent` (nanoseconds) arrives: never, once, or twice.
    pub fn carry(&mut self, sent: f64) -> Vec<f64> {
        let mut arrival = sent + self.delay(sent);
        if self.random.f64() < self.network.reorder {
            arrival += (15.0 + 30.0 * self.random.f64()) * MS;
        }
        if self.loses() {
            let Some(rtt) = self.network.nack_rtt_ms else { return Vec::new() };
            // The hole shows with the next packet; each try may be lost in its turn.
            let tries = (1..=5).find(|_| !self.loses());
            let Some(tries) = tries else { return Vec::new() };
            arrival += 20.0 * MS + f64::from(tries) * rtt * MS + self.network.jitter.draw(&mut self.random) * MS;
        }
        let mut arrivals = vec![arrival];
        if self.random.f64() < self.network.duplicate {
            arrivals.push(arrival + 60.0 * MS * self.random.f64());
        }
        arrivals
    }

    fn delay(&mut self, sent: f64) -> f64 {
        let seconds = sent / 1e9;
        let network = &self.network;
        let route = network.route_changes.iter().rev().find(|(at, _)| *at <= seconds).map_or(0.0, |(_, ms)| *ms);
        let spike: f64 = network
            .spikes
            .iter()
            .filter(|(at, long, _)| (*at..at + long).contains(&seconds))
            .map(|(_, _, ms)| ms)
            .sum();
        let jitter = network.jitter.draw(&mut self.random);
        let delay = (network.delay_ms + route + spike + jitter).max(0.0) * MS;
        let arrival = sent + delay;
        let stall = network.stalls.iter().find(|(at, long)| (at * 1e9..(at + long) * 1e9).contains(&arrival));
        stall.map_or(delay, |(at, long)| (at + long) * 1e9 - sent + 0.02 * MS * self.random.f64())
    }

    fn loses(&mut self) -> bool {
        match self.network.loss {
            Loss::None => false,
            Loss::Bernoulli(probability) => self.random.f64() < probability,
            Loss::Bursts { begin, end } => {
                let flips = self.random.f64() < if self.in_burst { end } else { begin };
                self.in_burst ^= flips;
                self.in_burst
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrivals(network: Network) -> Vec<Vec<f64>> {
        let mut path = Path::new(network, Rng::with_seed(5));
        (0..10_000).map(|i| path.carry(f64::from(i) * 20.0 * MS)).collect()
    }

    #[test]
    fn jitter_only_adds_and_has_the_asked_mean() {
        for jitter in [Jitter::Uniform(60.0), Jitter::Exponential(30.0), Jitter::Gamma(30.0)] {
            let delays: Vec<f64> = arrivals(Network { jitter, ..Network::default() })
                .iter()
                .enumerate()
                .map(|(i, arrivals)| arrivals[0] / MS - i as f64 * 20.0 - 40.0)
                .collect();
            let mean = delays.iter().sum::<f64>() / delays.len() as f64;
            assert!(delays.iter().all(|delay| *delay > -1e-6), "{jitter:?}");
            assert!((mean - 30.0).abs() < 1.5, "{jitter:?}: {mean}");
        }
    }

    #[test]
    fn retransmission_brings_almost_everything_back() {
        let network = Network { loss: Loss::Bernoulli(0.1), ..Network::default() };
        let lost = arrivals(network.clone()).iter().filter(|arrivals| arrivals.is_empty()).count();
        assert!((900..1100).contains(&lost), "{lost}");
        let lost = arrivals(Network { nack_rtt_ms: Some(80.0), ..network });
        assert!(lost.iter().filter(|arrivals| arrivals.is_empty()).count() < 3);
    }
}
