//! Whether the clock map still holds for the packet whose turn it is.
//!
//! RTP time can lie, arrival time cannot. A packet that is far off the map is judged by those after it: if one of them
//! lies on the map, the network was late and the map stands; if all of them keep the distance at their normal cadence,
//! the sender's clock stood still, or was set.

use crate::call::ParticipantKind;

use super::buffer::Kind;
use super::track::{Context, Track, nanos};

/// 40 ms: what a telephone bridge swallows at least. One packet of 20 ms is within the jitter of its timer.
const STEP_SIP: f64 = 1920.0;

/// 500 ms: no change of route is longer.
const STEP: f64 = 24_000.0;

/// How far a step may be from what the sender reports say: 30 ms.
const REPORT_AGREES: f64 = 1440.0;

/// How many times the mean lateness all packets of a judgement have to be late together.
const CERTAIN: f64 = 10.0;

/// Early packets in a row that prove a jump of the timestamps; fewer are strays.
const EARLY_EVIDENCE: usize = 3;

/// What becomes of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More has to be heard.
    Wait,
    /// It holds.
    Stands,
    /// It broke at this packet. `collapsed`: the sender's clock had stood still.
    Broke { collapsed: bool },
    /// It holds, and this packet's timestamp is nonsense.
    Stray,
}

impl Track {
    /// Judges the first packet that waits, which is audio and next in sequence.
    pub(super) fn judge(&self, context: &Context<'_>, force: bool) -> Verdict {
        let (Some(stream), Some(head), Some(next)) = (self.streams.front(), self.buffer.front(), self.next) else {
            return Verdict::Stands;
        };
        let envelope = &stream.envelope;
        let late = |entry| envelope.lateness(stream.x(entry), stream.offset(entry));
        let late_on_first_route = |entry| envelope.lateness_on_first_route(stream.x(entry), stream.offset(entry));
        let backwards = head.rtp.wrapping_sub(next.rtp) < -2 * head.samples;
        let telephone = self.kind == ParticipantKind::Sip;
        let reported = self.report_break.filter(|(step, _)| *step > 0.0 && !telephone);
        // After a mute the server sets timestamps anew, up to 200 ms off: any step that is no jitter tells.
        let rebased = self.after_mute || backwards;
        let suspicious = if rebased {
            late(head).abs() > envelope.tolerance()
        } else if telephone {
            late(head) > STEP_SIP
        } else {
            late_on_first_route(head) > if reported.is_some() { STEP_SIP } else { STEP }
        };
        let early = late_on_first_route(head) <= -STEP;
        if !suspicious && !early {
            return Verdict::Stands;
        }
        let threshold = match (rebased, telephone) {
            (true, _) => envelope.tolerance(),
            (false, true) => STEP_SIP,
            (false, false) if reported.is_some() => STEP_SIP,
            (false, false) => STEP,
        };
        let absolute = early || (!rebased && !telephone);
        let lateness = |entry| if absolute { late_on_first_route(entry) } else { late(entry) };
        let mut heard = Heard::default();
        for entry in self.buffer.of(stream.epoch).filter(|entry| entry.kind == Kind::Audio) {
            heard.add(lateness(entry), entry.attended);
            if suspicious && lateness(head) > 0.0 && lateness(entry).abs() < threshold {
                return Verdict::Stands;
            }
        }
        let waited = context.attended - head.attended;
        let judgement = nanos(context.config.judgement);
        // Were lateness exponential, all packets would be that late by chance once in 20000 times.
        let certain = heard.lateness.len() as f64 * heard.lowest().abs() >= CERTAIN * envelope.jitter();
        let enough = force || waited >= 3 * judgement || (heard.span() >= judgement && certain);
        if !enough {
            return Verdict::Wait;
        }
        if lateness(head) < 0.0 {
            let proving = heard.lateness.iter().filter(|lateness| **lateness < -threshold).count();
            let proven = proving >= EARLY_EVIDENCE.min(heard.lateness.len());
            return if proven { Verdict::Broke { collapsed: false } } else { Verdict::Stray };
        }
        if rebased && !certain {
            return Verdict::Stands;
        }
        if heard.catches_up() {
            let patient = force || waited >= nanos(context.config.patience);
            return if patient { Verdict::Stands } else { Verdict::Wait };
        }
        if let Some((step, _)) = reported
            && heard.lowest() < STEP
            && (heard.lowest() - step).abs() > REPORT_AGREES
        {
            return Verdict::Stands;
        }
        Verdict::Broke { collapsed: !rebased }
    }
}

/// The packets from the judged one on.
#[derive(Debug, Default)]
struct Heard {
    lateness: Vec<f64>,
    arrived: Option<(i64, i64)>,
}

impl Heard {
    fn add(&mut self, lateness: f64, attended: i64) {
        self.lateness.push(lateness);
        let (first, last) = self.arrived.unwrap_or((attended, attended));
        self.arrived = Some((first, last.max(attended)));
    }

    /// How long they took to arrive.
    fn span(&self) -> i64 {
        self.arrived.map_or(0, |(first, last)| last - first)
    }

    fn lowest(&self) -> f64 {
        lowest(&self.lateness)
    }

    /// Whether they come faster than they were sent: the later half is earlier by a packet or more.
    fn catches_up(&self) -> bool {
        let (first, second) = self.lateness.split_at(self.lateness.len() / 2);
        !first.is_empty() && lowest(first) - lowest(second) > 960.0
    }
}

fn lowest(lateness: &[f64]) -> f64 {
    lateness.iter().copied().fold(f64::INFINITY, f64::min)
}
