//! A deterministic world: publishers with clocks of their own, networks between them and the recorder, and the truth.
//!
//! The same [`World`] and seed give the same packets, arrivals and events, on every machine. [`run`] drives a
//! [`Capture`] through it in ticks of 20 ms and compares what came out with what was said.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap, HashMap};

use fastrand::Rng;

use crate::call::{Codec, TrackKey};
use crate::capture::{Capture, CaptureConfig, Content, Packet, Settled, TrackLedger, TrackSpec};
use crate::time::{ClockTime, MediaTime, RtpTime};

mod hostile;
mod network;
mod payload;
mod random;
mod sender;

pub use hostile::drive;
pub use network::{Jitter, Loss, Network};
pub use payload::{BITRATE, Canned, Payload};
pub use random::random_world;
pub use sender::Sender;

use network::Path;
use sender::Source;

/// Nanoseconds between two looks at the clock.
const TICK: i64 = 20_000_000;

/// How long signalling takes.
const SIGNALLING: f64 = 30e6;

/// A packet's last 20 ms lie where they arrive.
const REFERENCE: f64 = 20e6;

/// A call to be simulated.
#[derive(Clone, Debug)]
pub struct World {
    /// What chance draws on.
    pub seed: u64,
    /// How long the call is.
    pub seconds: f64,
    /// Who takes part, and over which network.
    pub tracks: Vec<(Sender, Network)>,
    /// When the recorder itself stalls, and for how long: it reads nothing, and then everything at once.
    pub hiccups: Vec<(f64, f64)>,
    /// Whether arrivals are stamped when they are read rather than when they come.
    pub stamped_on_read: bool,
}

impl World {
    /// A call of these tracks in which the recorder is well.
    pub fn new(seed: u64, seconds: f64, tracks: Vec<(Sender, Network)>) -> Self {
        Self { seed, seconds, tracks, hiccups: Vec::new(), stamped_on_read: false }
    }
}

/// Where one packet was placed against the truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    /// When it was spoken, in seconds of the call.
    pub spoken: f64,
    /// How far from the truth its first sample lies, in milliseconds; positive is late.
    pub error_ms: f64,
    /// How much longer (or shorter) than itself its stretch is, in samples.
    pub slewed: i64,
    /// How long it lasts, in samples.
    pub samples: i64,
}

/// What became of one track.
#[derive(Clone, Debug)]
pub struct TrackReport {
    /// Every packet that was placed, in order.
    pub placed: Vec<Placed>,
    /// Audio packets that reached the recorder, each counted once.
    pub delivered: u64,
    /// Audio packets that the sender sent.
    pub sent: u64,
    /// The ledger.
    pub ledger: TrackLedger,
}

impl TrackReport {
    /// The errors of what was spoken `after` seconds into the track, in milliseconds, unsigned, ascending.
    pub fn errors_ms(&self, after: f64) -> Vec<f64> {
        let Some(first) = self.placed.first() else { return Vec::new() };
        let later = self.placed.iter().filter(|placed| placed.spoken >= first.spoken + after);
        let mut errors: Vec<f64> = later.map(|placed| placed.error_ms.abs()).collect();
        errors.sort_by(f64::total_cmp);
        errors
    }
}

/// What became of a call.
#[derive(Clone, Debug)]
pub struct Report {
    /// The tracks, in the world's order.
    pub tracks: Vec<TrackReport>,
    /// Most packets that waited at one time, over all tracks.
    pub most_buffered: usize,
    /// Where the recording ended.
    pub end: MediaTime,
}

/// What a world breaks that must hold in every world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("track {track}: {what}")]
pub struct Violation {
    /// Which track, in the world's order.
    pub track: usize,
    /// What.
    pub what: String,
}

/// Simulates a call.
///
/// # Errors
/// What capture got wrong: a ledger that does not add up, stretches that do not follow each other, a frontier that is
/// not kept, a packet that is in no account.
pub fn run(world: &World) -> Result<Report, Violation> {
    run_into(world, &mut |_| {})
}

/// As [`run`], and hands on every stretch as it is settled.
///
/// # Errors
/// As [`run`].
pub fn run_into(world: &World, sink: &mut dyn FnMut(Settled)) -> Result<Report, Violation> {
    Run::new(world, sink).drive()
}

#[derive(Debug)]
enum Event {
    Packet { track: usize, packet: Packet, first: bool },
    Report { track: usize, ntp: u64, rtp: RtpTime },
    Mute { track: usize, muted: bool },
    Publish { track: usize },
    Unpublish { track: usize },
}

#[derive(Debug)]
struct Timed {
    at: i64,
    order: u64,
    event: Event,
}

impl PartialEq for Timed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Timed {}

impl PartialOrd for Timed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timed {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

struct TrackRun {
    source: Source,
    path: Path,
    spec: TrackSpec,
    delay: f64,
    /// When each packet under way was spoken, by where its payload lies in memory: its bytes are nobody's to change.
    spoken: HashMap<usize, Option<f64>>,
    placed: Vec<Placed>,
    delivered: u64,
    sent: u64,
    settled: Option<MediaTime>,
}

struct Run<'a> {
    world: &'a World,
    sink: &'a mut dyn FnMut(Settled),
    capture: Capture,
    tracks: Vec<TrackRun>,
    events: BinaryHeap<Timed>,
    order: u64,
}

impl<'a> Run<'a> {
    fn new(world: &'a World, sink: &'a mut dyn FnMut(Settled)) -> Self {
        let mut random = Rng::with_seed(world.seed);
        let mut run = Self {
            world,
            sink,
            capture: Capture::new(CaptureConfig::default()).expect("the defaults are valid"),
            tracks: Vec::new(),
            events: BinaryHeap::new(),
            order: 0,
        };
        for (index, (sender, network)) in world.tracks.iter().enumerate() {
            run.schedule(sender.from * 1e9, Event::Publish { track: index });
            if sender.to < world.seconds {
                run.schedule(sender.to * 1e9 + SIGNALLING, Event::Unpublish { track: index });
            }
            for (at, long) in &sender.mutes {
                run.schedule(at * 1e9 + SIGNALLING, Event::Mute { track: index, muted: true });
                run.schedule((at + long) * 1e9 + SIGNALLING, Event::Mute { track: index, muted: false });
            }
            run.tracks.push(TrackRun {
                spec: TrackSpec { kind: sender.kind, codec: Codec::Opus, muted: false },
                delay: network.delay_ms * 1e6,
                source: Source::new(sender.clone(), random.fork()),
                path: Path::new(network.clone(), random.fork()),
                spoken: HashMap::new(),
                placed: Vec::new(),
                delivered: 0,
                sent: 0,
                settled: None,
            });
        }
        run
    }

    fn schedule(&mut self, at: f64, event: Event) {
        self.order += 1;
        self.events.push(Timed { at: at as i64, order: self.order, event });
    }

    fn drive(mut self) -> Result<Report, Violation> {
        let end = (self.world.seconds * 1e9) as i64;
        let mut now = 0;
        let mut out = Vec::new();
        let mut most_buffered = 0;
        while now < end {
            now = self.wake(now + TICK).min(end);
            self.speak(now as f64);
            self.deliver(now);
            let frontier = self.capture.advance(ClockTime(now), &mut out);
            self.take(&mut out)?;
            self.check_frontier(frontier)?;
            most_buffered = most_buffered.max(self.capture.buffered().0);
        }
        let end = self.capture.finish(ClockTime(end), &mut out);
        self.take(&mut out)?;
        let tracks = std::mem::take(&mut self.tracks);
        let reports = tracks.into_iter().enumerate().map(|(index, track)| self.account(index, track));
        Ok(Report { tracks: reports.collect::<Result<_, _>>()?, most_buffered, end })
    }

    /// When the recorder looks at the clock next.
    fn wake(&self, at: i64) -> i64 {
        let seconds = at as f64 / 1e9;
        let stalled = self.world.hiccups.iter().find(|(from, long)| (*from..from + long).contains(&seconds));
        stalled.map_or(at, |(from, long)| ((from + long) * 1e9) as i64)
    }

    /// Lets everybody speak what leaves before `until`.
    fn speak(&mut self, until: f64) {
        for index in 0..self.tracks.len() {
            while self.tracks[index].source.next_at() <= until {
                let track = &mut self.tracks[index];
                let mut events = Vec::new();
                for sent in track.source.step() {
                    track.spoken.insert(sent.packet.payload.as_ptr() as usize, sent.spoken);
                    track.sent += u64::from(sent.spoken.is_some());
                    for (copy, at) in track.path.carry(sent.left).into_iter().enumerate() {
                        let first = copy == 0 && sent.spoken.is_some();
                        events.push((at, Event::Packet { track: index, packet: sent.packet.clone(), first }));
                    }
                }
                if let Some(report) = track.source.report() {
                    let at = report.left + track.delay;
                    events.push((at, Event::Report { track: index, ntp: report.ntp, rtp: report.rtp }));
                }
                for (at, event) in events {
                    self.schedule(at, event);
                }
            }
        }
    }

    fn deliver(&mut self, now: i64) {
        while self.events.peek().is_some_and(|next| next.at <= now) {
            let Some(Timed { at, event, .. }) = self.events.pop() else { break };
            let at = ClockTime(if self.world.stamped_on_read && now - at > TICK { now } else { at });
            let key = |track: usize| TrackKey(track as u32);
            match event {
                Event::Packet { track, packet, first } => {
                    self.tracks[track].delivered += u64::from(first);
                    self.capture.packet(key(track), packet, at);
                }
                Event::Report { track, ntp, rtp } => self.capture.sender_report(key(track), ntp, rtp, at),
                Event::Mute { track, muted } => self.capture.mute(key(track), muted, at),
                Event::Publish { track } => self.capture.publish(key(track), self.tracks[track].spec, at),
                Event::Unpublish { track } => self.capture.unpublish(key(track), at),
            }
        }
    }

    /// Takes what was settled, and checks that it follows what was settled before.
    fn take(&mut self, out: &mut Vec<Settled>) -> Result<(), Violation> {
        for stretch in out.drain(..) {
            let index = stretch.track.0 as usize;
            let violation = |what: String| Violation { track: index, what };
            let track = &mut self.tracks[index];
            if track.settled.is_some_and(|settled| settled != stretch.start) || stretch.end <= stretch.start {
                return Err(violation(format!("{stretch:?} does not follow {:?}", track.settled)));
            }
            track.settled = Some(stretch.end);
            let (start, length) = (stretch.start, stretch.len().0 as i64);
            let Content::Packet { payload, codec } = &stretch.content else {
                (self.sink)(stretch);
                continue;
            };
            let spoken = track.spoken.get(&(payload.as_ptr() as usize)).copied().flatten();
            let Some(spoken) = spoken else { return Err(violation(format!("{stretch:?} was never spoken"))) };
            let samples = crate::capture::toc::duration(*codec, payload).map_or(0, |samples| samples.0 as i64);
            let truth = (spoken + track.delay + REFERENCE) * 48e-6;
            track.placed.push(Placed {
                spoken: spoken / 1e9,
                error_ms: (start.0 as f64 - truth) / 48.0,
                slewed: length - samples,
                samples,
            });
            (self.sink)(stretch);
        }
        Ok(())
    }

    fn check_frontier(&self, frontier: MediaTime) -> Result<(), Violation> {
        let behind = |(index, track): (usize, &TrackRun)| {
            let settled = track.settled?;
            let ended = self.world.tracks[index].0.to < self.world.seconds;
            (!ended && settled < frontier)
                .then(|| Violation { track: index, what: format!("settled to {settled:?}, frontier {frontier:?}") })
        };
        self.tracks.iter().enumerate().find_map(behind).map_or(Ok(()), Err)
    }

    /// Checks that every packet is in the account, and the account in order.
    fn account(&self, index: usize, track: TrackRun) -> Result<TrackReport, Violation> {
        let violation = |what: String| Violation { track: index, what };
        let ledger = self.capture.ledger(TrackKey(index as u32)).ok_or_else(|| violation("no ledger".into()))?;
        ledger.check_identity().map_err(|why| violation(why.to_string()))?;
        if track.settled.is_some_and(|settled| settled != ledger.end) {
            return Err(violation(format!("settled to {:?}, ledger to {:?}", track.settled, ledger.end)));
        }
        let counters = ledger.counters;
        let unplaced = counters.packets_late
            + counters.packets_overlap
            + counters.packets_stray
            + counters.packets_withheld
            + counters.overflows;
        let placed = track.placed.len() as u64;
        if placed + unplaced < track.delivered {
            let missing = track.delivered - placed - unplaced;
            return Err(violation(format!("{missing} of {} packets are in no account: {counters:?}", track.delivered)));
        }
        Ok(TrackReport { placed: track.placed, delivered: track.delivered, sent: track.sent, ledger })
    }
}

/// The reports of many worlds by their seed, those that fail with their violation.
pub fn failures(seeds: impl Iterator<Item = u64>) -> BTreeMap<u64, Violation> {
    seeds.filter_map(|seed| run(&random_world(seed)).err().map(|violation| (seed, violation))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_world() {
        let placed = |seed| run(&random_world(seed)).unwrap().tracks.into_iter().map(|t| t.placed).collect::<Vec<_>>();
        assert_eq!(placed(3), placed(3));
        assert_ne!(placed(3), placed(4));
    }

    #[test]
    fn what_packets_hold_changes_nothing_about_a_world() {
        let voice = crate::testkit::audio::generate::speech(1, std::time::Duration::from_secs(3));
        let canned = Payload::Canned(Canned::of(voice.channel(0)).unwrap().into());
        for seed in 0..20 {
            let placed = |payload: &Payload| {
                let mut world = random_world(seed);
                for (sender, _) in &mut world.tracks {
                    sender.payload = payload.clone();
                    // Coded packets protect only what is worth it, so losses are settled otherwise.
                    sender.fec = false;
                }
                let mut sounds = 0;
                let report = run_into(&world, &mut |stretch| {
                    sounds += u32::from(matches!(stretch.content, Content::Packet { .. }));
                });
                let placed: Vec<_> = report.unwrap().tracks.into_iter().map(|track| track.placed).collect();
                assert_eq!(placed.iter().map(Vec::len).sum::<usize>(), sounds as usize);
                placed
            };
            assert_eq!(placed(&Payload::Sizes), placed(&canned), "seed {seed}");
        }
    }

    #[test]
    fn an_undisturbed_call_is_placed_to_the_sample() {
        let report = run(&World::new(1, 20.0, vec![Default::default()])).unwrap();
        let worst = report.tracks[0].errors_ms(0.0).pop().unwrap();
        assert!(worst < 0.03, "{worst}");
        assert_eq!(report.tracks[0].placed.len() as u64, report.tracks[0].delivered);
    }
}
