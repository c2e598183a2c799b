//! The clock map of one stream: where on the timeline a point of the sender's media clock lies.
//!
//! Delay only ever adds, so of all packets the least delayed one tells the truth: the map is the *lower envelope* of
//! `offset = arrival − media time`. Once a second's worth of packets becomes one observation, its minimum. Two things
//! are drawn from these minima: the slope of their lower convex hull over minutes, which is the difference between the
//! sender's crystal and ours, and the minimum of the last seconds with that slope taken out, which is the anchor.
//!
//! A lasting step of the minima that is no drift is a *route change*: the way became longer or shorter, the moment of
//! speech did not, so the step is taken out of the observations and the map stands. (A sender whose clock stood still
//! makes the same step; whoever owns the map tells the two apart and calls [`Envelope::restart`].)
//!
//! Everything here is in samples at 48 kHz.

use std::collections::VecDeque;

use crate::time::Ppm;

const SECOND: f64 = 48_000.0;

/// Media time that makes one observation.
const BUCKET: f64 = SECOND;

/// Observations kept for the slope.
const SLOPE_BUCKETS: usize = 120;

/// The furthest that crystals are apart, with a little room.
const MAX_SLOPE: f64 = 600e-6;

/// How far apart the first and the last observation must be before their slope counts half: jitter of a few
/// milliseconds over ten seconds looks like a few hundred ppm.
const SLOPE_HALF_TRUST: f64 = 10.0 * SECOND;

/// Window of the anchor: short while the slope is unknown and could tilt it, longer later.
const ANCHOR_WINDOW: (f64, f64) = (4.0 * SECOND, 20.0 * SECOND);

/// A minimum further from the map than this, plus twice the usual spread, is a step and no drift: 6 ms.
const STEP: f64 = 288.0;

/// How many minima in a row must agree on a step: fewer could be a spike of delay.
const STEP_BUCKETS: usize = 4;

/// A route that returns to within this of the first one is the first one again: 8 ms.
const SAME_ROUTE: f64 = 384.0;

/// Minima after a route change that still say how long the new route is, rather than where the map lies: the first few
/// were not the least delayed packets it has.
const ROUTE_YOUNG: usize = 16;

/// The mean lateness of packets is taken over so many of them, and none counts for more than 200 ms.
const JITTER_PACKETS: f64 = 64.0;
const JITTER_MOST: f64 = 9600.0;

/// Observations until the map counts as converged.
const CONVERGED: usize = 2;

/// The clock map.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// Minima of the past, route taken out.
    minima: VecDeque<Point>,
    /// Minima that do not fit, oldest first; judged when there are enough.
    suspects: Vec<Point>,
    current: Option<Bucket>,
    seen: usize,
    slope: f64,
    slope_prior: f64,
    anchor: Point,
    /// How much longer the present route is than the one the map was made on.
    route: f64,
    /// Minima since the route changed, while it is [young](ROUTE_YOUNG).
    young: Option<usize>,
    spread: f64,
    jitter: f64,
    route_changes: u64,
    follows_late: bool,
}

/// An observation: media time, and offset of arrival against it.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    x: f64,
    offset: f64,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    began: f64,
    best: Point,
}

impl Envelope {
    /// A map whose first observation is `offset` at media time `x`. `skew` is what is known of the sender's clock.
    ///
    /// `follows_late`: small late steps are the sender's doing, not the route's, and move the map.
    pub fn new(x: f64, offset: f64, skew: Ppm, follows_late: bool) -> Self {
        let slope = (skew.0 * 1e-6).clamp(-MAX_SLOPE, MAX_SLOPE);
        let first = Point { x, offset };
        Self {
            minima: VecDeque::new(),
            suspects: Vec::new(),
            current: Some(Bucket { began: x, best: first }),
            seen: 0,
            slope,
            slope_prior: slope,
            anchor: first,
            route: 0.0,
            young: None,
            spread: 0.0,
            jitter: 0.0,
            route_changes: 0,
            follows_late,
        }
    }

    /// Begins anew with the packet at `x`, but remembers the sender's clock.
    pub fn restart(&mut self, x: f64, offset: f64) {
        let (route_changes, jitter) = (self.route_changes, self.jitter);
        *self = Self::new(x, offset, self.skew(), self.follows_late);
        (self.route_changes, self.jitter) = (route_changes, jitter);
    }

    /// Takes in a packet whose media time is `x`.
    pub fn observe(&mut self, x: f64, offset: f64) {
        let point = Point { x, offset: offset - self.route };
        let Some(bucket) = &mut self.current else {
            self.current = Some(Bucket { began: x, best: point });
            return;
        };
        let (best, began) = (bucket.best, bucket.began);
        if x - began >= BUCKET {
            self.current = Some(Bucket { began: x, best: point });
            self.close(best);
        } else if point.offset - best.offset < self.slope * (x - best.x) {
            bucket.best = point;
        }
        // Early on there is no usual spread yet, and whatever is earlier is better.
        let residual = self.residual(point);
        self.jitter += (residual.clamp(0.0, JITTER_MOST) - self.jitter) / JITTER_PACKETS;
        if residual < 0.0 && (!self.is_converged() || residual > -self.tolerance()) {
            match self.young {
                Some(minima) => self.shorten_route(-residual, minima),
                None => self.anchor = point,
            }
        }
    }

    /// Where media time `x` lies on the timeline.
    pub fn place(&self, x: f64) -> f64 {
        x + self.line(x)
    }

    /// How late a packet arrived against the map, with the present route taken out; negative where it came early.
    pub fn lateness(&self, x: f64, offset: f64) -> f64 {
        self.residual(Point { x, offset: offset - self.route })
    }

    /// The same, against the route the map was made on.
    pub fn lateness_on_first_route(&self, x: f64, offset: f64) -> f64 {
        self.residual(Point { x, offset })
    }

    /// How much slower (positive) the sender's clock runs than ours.
    pub fn skew(&self) -> Ppm {
        Ppm(self.slope * 1e6)
    }

    /// Whether enough was heard to call the map settled.
    pub fn is_converged(&self) -> bool {
        self.seen >= CONVERGED
    }

    /// Route changes so far.
    pub fn route_changes(&self) -> u64 {
        self.route_changes
    }

    /// How late packets are on average.
    pub fn jitter(&self) -> f64 {
        self.jitter
    }

    /// The new route is shorter than its first packets said.
    fn shorten_route(&mut self, by: f64, minima: usize) {
        self.route -= by;
        self.minima.iter_mut().rev().take(minima).for_each(|point| point.offset += by);
        if let Some(bucket) = &mut self.current {
            bucket.best.offset += by;
        }
    }

    fn line(&self, x: f64) -> f64 {
        self.anchor.offset + self.slope * (x - self.anchor.x)
    }

    fn residual(&self, point: Point) -> f64 {
        point.offset - self.line(point.x)
    }

    /// How far off the map a minimum may be and still be drift or jitter.
    pub fn tolerance(&self) -> f64 {
        STEP + 2.0 * self.spread
    }

    fn close(&mut self, best: Point) {
        let residual = self.residual(best);
        if self.is_converged() && residual.abs() > self.tolerance() {
            self.suspects.push(best);
            self.judge();
            return;
        }
        self.suspects.clear();
        self.accept(best);
        self.fit(best.x);
    }

    fn accept(&mut self, point: Point) {
        self.seen += 1;
        self.spread += (self.residual(point).abs().min(STEP) - self.spread) / 8.0;
        if self.minima.len() == SLOPE_BUCKETS {
            self.minima.pop_front();
        }
        self.minima.push_back(point);
        self.young = self.young.map(|minima| minima + 1).filter(|minima| *minima < ROUTE_YOUNG);
    }

    /// Enough suspects that agree are a step; many that do not agree are one, too, as good as it can be known.
    fn judge(&mut self) {
        if self.suspects.len() < STEP_BUCKETS {
            return;
        }
        let recent = &self.suspects[self.suspects.len() - STEP_BUCKETS..];
        let residuals = recent.iter().map(|point| self.residual(*point));
        let (low, high) =
            residuals.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), r| (low.min(r), high.max(r)));
        if high - low > self.tolerance() && self.suspects.len() < 5 * STEP_BUCKETS {
            return;
        }
        let recent: Vec<Point> = recent.to_vec();
        let x = recent[STEP_BUCKETS - 1].x;
        self.suspects.clear();
        if low > 0.0 && self.follows_late {
            self.minima.clear();
            recent.iter().for_each(|point| self.accept(*point));
            self.fit(x);
            return;
        }
        let mut step = low;
        if (self.route + step).abs() < SAME_ROUTE {
            step = -self.route;
        }
        self.route += step;
        self.route_changes += 1;
        self.young = Some(0);
        if let Some(bucket) = &mut self.current {
            bucket.best.offset -= step;
        }
        for point in recent {
            self.accept(Point { offset: point.offset - step, ..point });
        }
        self.fit(x);
    }

    /// Draws slope and anchor from the minima; `x` is the present.
    fn fit(&mut self, x: f64) {
        let (Some(first), Some(last)) = (self.minima.front(), self.minima.back()) else { return };
        let observed = last.x - first.x;
        if let Some(slope) = hull_slope(self.minima.make_contiguous()) {
            let trust = observed * observed / (observed * observed + SLOPE_HALF_TRUST * SLOPE_HALF_TRUST);
            self.slope = (self.slope_prior + trust * (slope - self.slope_prior)).clamp(-MAX_SLOPE, MAX_SLOPE);
        }
        let window = (observed / 2.0).clamp(ANCHOR_WINDOW.0, ANCHOR_WINDOW.1);
        let lowest = self
            .minima
            .iter()
            .rev()
            .take_while(|point| x - point.x <= window)
            .map(|point| point.offset + self.slope * (x - point.x))
            .fold(f64::INFINITY, f64::min);
        if lowest.is_finite() {
            self.anchor = Point { x, offset: lowest };
        }
    }
}

/// The slope of the lower convex hull's edge below the middle of the points: of all lines below every point it is the
/// one closest to them. Points come in order of `x`.
fn hull_slope(points: &[Point]) -> Option<f64> {
    let middle = points.iter().map(|point| point.x).sum::<f64>() / points.len() as f64;
    let mut hull = [Point::default(); SLOPE_BUCKETS];
    let mut length = 0;
    for point in points {
        while length >= 2 && !turns_left(hull[length - 2], hull[length - 1], *point) {
            length -= 1;
        }
        hull[length] = *point;
        length += 1;
    }
    let edge = hull[..length].windows(2).find(|edge| edge[1].x >= middle)?;
    let run = edge[1].x - edge[0].x;
    (run > 0.0).then(|| (edge[1].offset - edge[0].offset) / run)
}

fn turns_left(a: Point, b: Point, c: Point) -> bool {
    (b.x - a.x) * (c.offset - a.offset) - (b.offset - a.offset) * (c.x - a.x) > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: f64 = 960.0;

    /// Feeds `seconds` of packets; `delay` gives each one's delay in samples, `ppm` the sender's clock error.
    struct Feed {
        envelope: Option<Envelope>,
        frame: u64,
        /// Frames from one packet to the next: more than one where the sender says little.
        stride: u64,
        random: fastrand::Rng,
    }

    impl Feed {
        fn new() -> Self {
            Self { envelope: None, frame: 0, stride: 1, random: fastrand::Rng::with_seed(11) }
        }

        fn run(&mut self, seconds: u64, ppm: f64, floor: f64, jitter: f64, follows_late: bool) -> &Envelope {
            for _ in 0..seconds * 50 / self.stride {
                let x = self.frame as f64 * FRAME;
                let offset = x * ppm * 1e-6 + floor + jitter * self.random.f64();
                match &mut self.envelope {
                    Some(envelope) => envelope.observe(x, offset),
                    None => self.envelope = Some(Envelope::new(x, offset, Ppm(0.0), follows_late)),
                }
                self.frame += self.stride;
            }
            self.envelope.as_ref().unwrap()
        }

        fn error(&self, ppm: f64, floor: f64) -> f64 {
            let x = self.frame as f64 * FRAME;
            self.envelope.as_ref().unwrap().place(x) - x - x * ppm * 1e-6 - floor
        }
    }

    #[test]
    fn the_least_delayed_packets_draw_the_map() {
        for ppm in [-500.0, -20.0, 0.0, 300.0, 500.0] {
            let mut feed = Feed::new();
            feed.run(120, ppm, 4800.0, 2880.0, false);
            assert!(feed.error(ppm, 4800.0).abs() < 72.0, "{ppm}: off by {}", feed.error(ppm, 4800.0));
            let skew = feed.envelope.as_ref().unwrap().skew().0;
            assert!((skew - ppm).abs() < 30.0, "{ppm} estimated as {skew}");
        }
    }

    #[test]
    fn a_route_change_is_no_drift_and_moves_nothing() {
        for step in [7200.0, -7200.0, 1440.0] {
            let mut feed = Feed::new();
            feed.run(60, 100.0, 9600.0, 480.0, false);
            feed.run(60, 100.0, 9600.0 + step, 480.0, false);
            assert!(feed.error(100.0, 9600.0).abs() < 96.0, "{step}: {}", feed.error(100.0, 9600.0));
            assert_eq!(feed.envelope.as_ref().unwrap().route_changes(), 1);
            feed.run(60, 100.0, 9600.0, 480.0, false);
            assert!(feed.error(100.0, 9600.0).abs() < 96.0, "{step} and back: {}", feed.error(100.0, 9600.0));
        }
    }

    #[test]
    fn a_telephone_leg_takes_small_late_steps_along() {
        let mut feed = Feed::new();
        feed.run(30, 0.0, 960.0, 96.0, true);
        feed.run(30, 0.0, 960.0 + 960.0, 96.0, true);
        assert!(feed.error(0.0, 1920.0).abs() < 48.0, "{}", feed.error(0.0, 1920.0));
    }

    #[test]
    fn a_spike_of_three_seconds_leaves_no_trace() {
        let mut feed = Feed::new();
        feed.run(40, -50.0, 960.0, 96.0, false);
        feed.run(3, -50.0, 960.0 + 9600.0, 96.0, false);
        feed.run(10, -50.0, 960.0, 96.0, false);
        assert!(feed.error(-50.0, 960.0).abs() < 48.0, "{}", feed.error(-50.0, 960.0));
        assert_eq!(feed.envelope.as_ref().unwrap().route_changes(), 0);
    }

    #[test]
    fn a_new_route_on_which_little_is_sent_moves_nothing() {
        let moved = |seed| {
            let mut feed = Feed { random: fastrand::Rng::with_seed(seed), ..Feed::new() };
            feed.run(60, 0.0, 9600.0, 2880.0, false);
            let before = feed.error(0.0, 9600.0);
            feed.stride = 15;
            feed.run(40, 0.0, 16_800.0, 2880.0, false);
            feed.error(0.0, 9600.0) - before
        };
        let mean = (0..40).map(moved).sum::<f64>() / 40.0;
        assert!(mean.abs() < 48.0, "moved by {mean} on average");
    }
}
