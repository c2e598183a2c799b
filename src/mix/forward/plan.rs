//! Who is to be heard next, and whether by their own packets.

use super::leg::{Leg, moved};
use super::obstacle::Obstacle;
use crate::call::TrackKey;
use crate::time::{MediaTime, SampleCount};

/// A voice goes on for so long after it was last heard, so that its end is not cut off: 120 ms.
const HANG: i64 = 5_760;
/// A voice counts so long before it is heard, so that its beginning is not missed: 100 ms.
const BEFORE: i64 = 4_800;
/// Mixing ends only where there is nothing to mix for so long: 200 ms.
pub(super) const STAY: i64 = 9_600;
/// What must be known ahead to plan: the longest packet, [`STAY`] and [`BEFORE`], and some more.
pub(super) const AHEAD: SampleCount = SampleCount::from_millis(480);
/// How much of the past is kept: [`HANG`], and what decoders and the encoder need to warm up.
pub(super) const KEPT: i64 = 16_800;
/// Whoever may speak within this of a moment is decoded there while mixing: 240 ms.
const DECODED: i64 = 11_520;

/// What the stream is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// A talker's own packets, or silence.
    Forward(Option<TrackKey>),
    /// The sum.
    Mix(Obstacle),
}

/// What the stream is to hold in `[from, to)`, where `current` was heard before.
///
/// Nothing is decoded as long as packets tell that at most one may speak.
pub(super) fn want(legs: &mut [Leg], from: MediaTime, to: MediaTime, current: Option<TrackKey>) -> Want {
    let (early, late) = (moved(from, -HANG), moved(to, BEFORE));
    let mut open = 0;
    for leg in legs.iter_mut() {
        leg.speaking = leg.may_speak(early, late);
        open += usize::from(leg.speaking);
    }
    if open > 1 {
        let mut others = 0;
        for leg in legs.iter_mut().filter(|leg| leg.speaking && Some(leg.key) != current) {
            leg.speaking = leg.speaks(early, late);
            others += usize::from(leg.speaking);
        }
        if others > 0
            && let Some(leg) = legs.iter_mut().find(|leg| leg.speaking && Some(leg.key) == current)
        {
            leg.speaking = leg.speaks(early, late);
        }
    }
    let heard = |leg: &&Leg| leg.speaking || leg.sounds(from, to) && leg.is_noisy();
    let mut necessary = legs.iter().filter(heard);
    match (necessary.next(), necessary.next()) {
        (Some(leg), None) => {
            let is_missed =
                |other: &Leg, bandwidth| other.key != leg.key && other.is_missed_beside(bandwidth, from, to);
            let bandwidth = leg.bandwidth(from, to);
            match leg.obstacle(from, to) {
                None if bandwidth.is_some_and(|b| legs.iter().any(|other| is_missed(other, b))) => {
                    Want::Mix(Obstacle::Noise)
                }
                None => Want::Forward(Some(leg.key)),
                Some(obstacle) => Want::Mix(obstacle),
            }
        }
        (Some(_), Some(_)) => {
            let talkers = legs.iter().filter(|leg| leg.speaking).count();
            Want::Mix(if talkers > 1 { Obstacle::DoubleTalk } else { Obstacle::Noise })
        }
        (None, _) => {
            let fits = |leg: &&Leg| leg.sounds(from, to) && leg.obstacle(from, to).is_none();
            let same = legs.iter().filter(fits).find(|leg| Some(leg.key) == current);
            Want::Forward(same.or_else(|| legs.iter().find(fits)).map(|leg| leg.key))
        }
    }
}

/// Whether a piece `[from, to)` of a leg has to be decoded where the legs are mixed.
pub(super) fn is_heard_in_a_mix(leg: &Leg, from: MediaTime, to: MediaTime) -> bool {
    leg.is_noisy() || leg.may_speak(moved(from, -DECODED), moved(to, DECODED))
}
