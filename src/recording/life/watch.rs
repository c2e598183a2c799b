//! Legs that should be heard and are not. Pure: time is an argument.
//!
//! A telephone leg sends all the time once the call is answered, and holds make no event: of its silence only an alarm can be
//! made. Others may have been lost on the way between server and recorder, which a new subscription mends; once that was
//! tried, it is an alarm, too. While everybody is silent at once it is the connection that is at fault, and the engine's task.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::{ParticipantKind, TrackKey};
use crate::time::{ClockTime, MediaTime};

/// Somebody else counts as heard who was within this.
const JUST_NOW: Duration = Duration::from_secs(2);

/// A leg that was not heard although it should have been.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LegSilence {
    /// Whose, by identity.
    pub participant: String,
    /// The server's id of the track.
    pub track: String,
    /// Since when nothing came.
    pub from_sample: MediaTime,
    /// Until when; none where that lasted.
    pub to_sample: Option<MediaTime>,
}

/// What a silent leg asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Subscribe to the track again.
    Resubscribe(TrackKey),
    /// Tell that nothing has come since then.
    Alarm(TrackKey, ClockTime),
}

#[derive(Debug)]
struct Leg {
    kind: ParticipantKind,
    muted: bool,
    /// When it was heard last, or could have been heard first.
    last: ClockTime,
    heard: bool,
    /// The longest silence that ended by itself: that is its way.
    usual: Duration,
    resubscribed: Option<ClockTime>,
    alarmed: bool,
}

/// Watches all legs.
#[derive(Debug)]
pub struct Watch {
    after: Option<Duration>,
    legs: BTreeMap<TrackKey, Leg>,
    media_up: bool,
}

impl Watch {
    /// A watch that becomes suspicious `after` this; never where there is none.
    pub fn new(after: Option<Duration>) -> Self {
        Self { after, legs: BTreeMap::new(), media_up: false }
    }

    /// A track was published.
    pub fn published(&mut self, track: TrackKey, kind: ParticipantKind, muted: bool, at: ClockTime) {
        let leg =
            Leg { kind, muted, last: at, heard: false, usual: Duration::ZERO, resubscribed: None, alarmed: false };
        self.legs.insert(track, leg);
    }

    /// A track is gone; tells whether an alarm ends with it.
    pub fn unpublished(&mut self, track: TrackKey) -> bool {
        self.legs.remove(&track).is_some_and(|leg| leg.alarmed)
    }

    /// A publisher muted or unmuted; tells whether that ends an alarm.
    pub fn muted(&mut self, track: TrackKey, muted: bool, at: ClockTime) -> bool {
        let Some(leg) = self.legs.get_mut(&track) else { return false };
        (leg.muted, leg.last) = (muted, at);
        std::mem::take(&mut leg.alarmed)
    }

    /// Media came or broke: nobody can be heard in between.
    pub fn media(&mut self, up: bool, at: ClockTime) {
        self.media_up = up;
        self.legs.values_mut().for_each(|leg| leg.last = leg.last.max(at));
    }

    /// A packet arrived; tells whether that ends an alarm.
    pub fn packet(&mut self, track: TrackKey, at: ClockTime) -> bool {
        let Some(leg) = self.legs.get_mut(&track) else { return false };
        if at <= leg.last {
            return false;
        }
        if leg.heard && leg.resubscribed.is_none() && !leg.alarmed {
            leg.usual = leg.usual.max(at.since(leg.last));
        }
        (leg.last, leg.heard, leg.resubscribed) = (at, true, None);
        std::mem::take(&mut leg.alarmed)
    }

    /// What has to be done at `now`.
    pub fn due(&mut self, now: ClockTime) -> Vec<Remedy> {
        let Some(after) = self.after.filter(|_| self.media_up) else { return Vec::new() };
        let heard_now = |leg: &Leg| leg.heard && now < leg.last + JUST_NOW;
        let (others, heard) = (self.legs.len(), self.legs.values().filter(|leg| heard_now(leg)).count());
        let mut remedies = Vec::new();
        for (track, leg) in &mut self.legs {
            // A telephone that rings sends nothing.
            let rings = leg.kind == ParticipantKind::Sip && !leg.heard;
            let patience = after.max(leg.usual * 2);
            if leg.muted || leg.alarmed || rings || now < leg.last + patience {
                continue;
            }
            let is_telephone = leg.kind == ParticipantKind::Sip;
            let everybody_is_silent = others > 1 && heard == 0;
            match leg.resubscribed {
                None if !is_telephone && everybody_is_silent => {}
                None if !is_telephone => {
                    leg.resubscribed = Some(now);
                    remedies.push(Remedy::Resubscribe(*track));
                }
                Some(at) if now < at + after => {}
                None | Some(_) => {
                    leg.alarmed = true;
                    remedies.push(Remedy::Alarm(*track, leg.last));
                }
            }
        }
        remedies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: TrackKey = TrackKey(1);
    const BOB: TrackKey = TrackKey(2);

    fn at(millis: i64) -> ClockTime {
        ClockTime::from_millis(millis)
    }

    fn watch(kinds: &[(TrackKey, ParticipantKind)]) -> Watch {
        let mut watch = Watch::new(Some(Duration::from_secs(5)));
        watch.media(true, at(0));
        kinds.iter().for_each(|(track, kind)| watch.published(*track, *kind, false, at(0)));
        watch
    }

    /// Packets every 20 ms.
    fn talk(watch: &mut Watch, track: TrackKey, from: i64, to: i64) {
        (from..to).step_by(20).for_each(|millis| assert!(!watch.packet(track, at(millis))));
    }

    #[test]
    fn who_falls_silent_while_others_talk_is_subscribed_to_once_more_and_then_an_alarm() {
        let mut watch = watch(&[(ALICE, ParticipantKind::Standard), (BOB, ParticipantKind::Agent)]);
        talk(&mut watch, ALICE, 20, 1_000);
        talk(&mut watch, BOB, 20, 5_900);
        assert_eq!(watch.due(at(5_900)), []);
        talk(&mut watch, BOB, 5_900, 6_000);
        assert_eq!(watch.due(at(6_000)), [Remedy::Resubscribe(ALICE)]);
        talk(&mut watch, BOB, 6_000, 20_000);
        assert_eq!(watch.due(at(10_900)), []);
        assert_eq!(watch.due(at(11_000)), [Remedy::Alarm(ALICE, at(980))]);
        assert_eq!(watch.due(at(15_000)), []);
        assert!(watch.packet(ALICE, at(16_000)), "the alarm ends");
        assert!(!watch.packet(ALICE, at(16_020)));
    }

    #[test]
    fn a_telephone_is_only_an_alarm_and_none_while_it_rings() {
        let mut watch = watch(&[(ALICE, ParticipantKind::Sip)]);
        assert_eq!(watch.due(at(60_000)), []);
        talk(&mut watch, ALICE, 60_000, 61_000);
        assert_eq!(watch.due(at(66_000)), [Remedy::Alarm(ALICE, at(60_980))]);
    }

    #[test]
    fn nobody_is_blamed_while_everybody_is_silent_or_media_is_down_or_who_is_muted() {
        let both = [(ALICE, ParticipantKind::Standard), (BOB, ParticipantKind::Standard)];
        let mut silent = watch(&both);
        talk(&mut silent, ALICE, 20, 1_000);
        talk(&mut silent, BOB, 20, 1_000);
        assert_eq!(silent.due(at(20_000)), []);
        let mut down = watch(&both[..1]);
        talk(&mut down, ALICE, 20, 1_000);
        down.media(false, at(1_000));
        assert_eq!(down.due(at(20_000)), []);
        down.media(true, at(20_000));
        assert_eq!(down.due(at(24_900)), []);
        assert_eq!(down.due(at(25_000)), [Remedy::Resubscribe(ALICE)]);
        let mut muted = watch(&both[..1]);
        muted.muted(ALICE, true, at(10));
        assert_eq!(muted.due(at(20_000)), []);
        muted.muted(ALICE, false, at(20_000));
        assert_eq!(muted.due(at(25_000)), [Remedy::Resubscribe(ALICE)]);
    }

    #[test]
    fn whose_way_is_to_be_silent_for_long_is_given_longer() {
        let mut watch = watch(&[(ALICE, ParticipantKind::Standard), (BOB, ParticipantKind::Standard)]);
        watch.packet(ALICE, at(20));
        watch.packet(ALICE, at(4_020));
        talk(&mut watch, BOB, 20, 30_000);
        assert_eq!(watch.due(at(12_000)), []);
        assert_eq!(watch.due(at(12_020)), [Remedy::Resubscribe(ALICE)]);
    }

    #[test]
    fn no_watch_never_barks() {
        let mut watch = Watch::new(None);
        watch.media(true, at(0));
        watch.published(ALICE, ParticipantKind::Standard, false, at(0));
        assert_eq!(watch.due(at(1_000_000)), []);
    }
}
