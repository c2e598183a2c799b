//! Who is in the room, and what that means for the end of the recording. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::{Participant, ParticipantKind};
use crate::config::ParticipantRule;
use crate::time::ClockTime;

use super::super::outcome::StopReason;

/// Whose leaving ends the recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EndsWith {
    /// The last participant who keeps a call alive: anybody but agents and recorders.
    #[default]
    LastParticipant,
    /// The telephone leg; before one has come, nobody's leaving ends it.
    Caller,
    /// The last of those whom one of these picks; before one has come, nobody's leaving ends it.
    Picked(Vec<ParticipantRule>),
}

/// When a recording stops by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopPolicy {
    /// Whose leaving ends it. Default: the last participant's.
    pub ends_with: EndsWith,
    /// How long the room may be without them before it is over; whoever comes back in time goes on in the same file.
    /// Default 10 s: long enough for a browser that reloads.
    pub departure_timeout: Duration,
    /// How long they are waited for at first, also where the server closes the empty room meanwhile. Default 10 min; for ever
    /// where there is none.
    pub wait: Option<Duration>,
    /// How long nobody may say anything, counted from when somebody was there first. Default: for ever.
    pub silence: Option<Duration>,
    /// The longest recording, counted from sample 0. Default none.
    pub max_duration: Option<Duration>,
    /// The most bytes of all files together; what closes them comes on top. Default none.
    pub max_bytes: Option<u64>,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            ends_with: EndsWith::LastParticipant,
            departure_timeout: Duration::from_secs(10),
            wait: Some(Duration::from_secs(600)),
            silence: None,
            max_duration: None,
            max_bytes: None,
        }
    }
}

/// Peaks above this are a sound, in dBFS: over the noise of a telephone line.
const SOUND: f32 = -50.0;

/// Who is there, and since when nobody is who matters.
#[derive(Debug)]
pub struct Presence {
    policy: StopPolicy,
    /// By session; whether they matter.
    present: BTreeMap<String, bool>,
    waits_since: ClockTime,
    came_at: Option<ClockTime>,
    left_alone_at: Option<ClockTime>,
    sounded_at: Option<ClockTime>,
}

impl Presence {
    /// An empty room, entered at `at`. `came` tells whether somebody who matters was there before.
    pub fn new(policy: StopPolicy, at: ClockTime, came: bool) -> Self {
        let (came_at, left_alone_at) = (came.then_some(at), came.then_some(at));
        Self { policy, present: BTreeMap::new(), waits_since: at, came_at, left_alone_at, sounded_at: None }
    }

    /// Somebody is there, who was the `joined`th to join (from 1 on); also when something about them changes.
    pub fn present(&mut self, participant: &Participant, joined: usize, at: ClockTime) {
        let matters = match &self.policy.ends_with {
            EndsWith::LastParticipant => participant.kind.keeps_call_alive(),
            EndsWith::Caller => participant.kind == ParticipantKind::Sip,
            EndsWith::Picked(rules) => rules.iter().any(|rule| rule.picks(participant, joined)),
        };
        let mattered = self.present.insert(participant.sid.clone(), matters) == Some(true);
        if matters {
            self.came_at.get_or_insert(at);
            self.left_alone_at = None;
        } else if mattered && !self.somebody_matters() {
            self.left_alone_at = Some(at);
        }
    }

    /// The participant with this `sid` left.
    pub fn left(&mut self, sid: &str, at: ClockTime) {
        let mattered = self.present.remove(sid) == Some(true);
        if mattered && !self.somebody_matters() {
            self.left_alone_at = Some(at);
        }
    }

    /// How loud it was up to `at`, as the highest peak in dBFS.
    pub fn heard(&mut self, peak_dbfs: f32, at: ClockTime) {
        if peak_dbfs > SOUND {
            self.sounded_at = Some(at);
        }
    }

    /// Whether the server's closing the room is no end: nobody who matters has come yet, and they are still waited for.
    pub fn waits(&self) -> bool {
        self.came_at.is_none()
    }

    /// How many are in the room.
    pub fn count(&self) -> usize {
        self.present.len()
    }

    /// Since when nobody is there for whose sake the recording goes on; `None` while somebody is, or before anybody came.
    pub fn alone_since(&self) -> Option<ClockTime> {
        self.left_alone_at
    }

    /// Whether the recording, which has `bytes`, is over at `now`, and why.
    pub fn due(&self, now: ClockTime, bytes: u64) -> Option<StopReason> {
        let policy = &self.policy;
        if policy.max_duration.is_some_and(|longest| now >= ClockTime::ZERO + longest) {
            return Some(StopReason::MaxDuration);
        }
        if policy.max_bytes.is_some_and(|most| bytes >= most) {
            return Some(StopReason::MaxBytes);
        }
        let Some(came_at) = self.came_at else {
            return policy.wait.is_some_and(|wait| now >= self.waits_since + wait).then_some(StopReason::NobodyCame);
        };
        if self.left_alone_at.is_some_and(|at| now >= at + policy.departure_timeout) {
            return Some(match policy.ends_with {
                EndsWith::LastParticipant => StopReason::Departed,
                EndsWith::Caller => StopReason::CallerLeft,
                EndsWith::Picked(_) => StopReason::ParticipantLeft,
            });
        }
        let quiet_since = self.sounded_at.map_or(came_at, |at| at.max(came_at));
        if policy.silence.is_some_and(|longest| now >= quiet_since + longest) {
            return Some(StopReason::Silence);
        }
        None
    }

    fn somebody_matters(&self) -> bool {
        self.present.values().any(|matters| *matters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn somebody(sid: &str, kind: ParticipantKind) -> Participant {
        Participant { sid: sid.into(), identity: sid.into(), kind, ..Participant::default() }
    }

    fn secs(s: i64) -> ClockTime {
        ClockTime::from_millis(s * 1000)
    }

    fn presence(policy: StopPolicy) -> Presence {
        Presence::new(policy, ClockTime::ZERO, false)
    }

    fn due(presence: &Presence, at: i64) -> Option<StopReason> {
        presence.due(secs(at), 0)
    }

    #[test]
    fn an_empty_room_is_waited_in_for_its_time() {
        let patient = presence(StopPolicy { wait: None, ..StopPolicy::default() });
        assert_eq!(due(&patient, 36_000), None);
        let mut presence = presence(StopPolicy { wait: Some(Duration::from_secs(30)), ..StopPolicy::default() });
        presence.present(&somebody("PA_agent", ParticipantKind::Agent), 1, secs(1));
        assert!(presence.waits());
        assert_eq!(due(&presence, 29), None);
        assert_eq!(due(&presence, 30), Some(StopReason::NobodyCame), "an agent alone is nobody");
        presence.present(&somebody("PA_a", ParticipantKind::Standard), 2, secs(29));
        assert!(!presence.waits());
        assert_eq!(due(&presence, 36_000), None);
    }

    #[test]
    fn the_last_person_leaving_ends_it_after_the_timeout_though_the_agent_stays() {
        let mut presence = presence(StopPolicy::default());
        presence.present(&somebody("PA_agent", ParticipantKind::Agent), 1, secs(0));
        presence.present(&somebody("PA_a", ParticipantKind::Standard), 2, secs(0));
        presence.left("PA_a", secs(30));
        assert_eq!(presence.alone_since(), Some(secs(30)));
        assert_eq!(due(&presence, 39), None);
        assert_eq!(due(&presence, 40), Some(StopReason::Departed));
    }

    #[test]
    fn coming_back_in_time_goes_on() {
        let mut presence = presence(StopPolicy::default());
        presence.present(&somebody("PA_1", ParticipantKind::Standard), 1, secs(0));
        presence.left("PA_1", secs(30));
        presence.present(&somebody("PA_2", ParticipantKind::Standard), 1, secs(31));
        assert_eq!(due(&presence, 100), None);
        assert_eq!(presence.alone_since(), None);
    }

    #[test]
    fn who_went_while_no_recorder_was_there_is_waited_for_like_one_who_left() {
        let presence = Presence::new(StopPolicy::default(), secs(60), true);
        assert!(!presence.waits());
        assert_eq!((due(&presence, 69), due(&presence, 70)), (None, Some(StopReason::Departed)));
    }

    #[test]
    fn the_caller_leaving_ends_a_telephone_call_though_others_stay() {
        let mut presence = presence(StopPolicy {
            ends_with: EndsWith::Caller,
            departure_timeout: Duration::from_secs(2),
            ..StopPolicy::default()
        });
        presence.present(&somebody("PA_person", ParticipantKind::Standard), 1, secs(0));
        presence.left("PA_person", secs(1));
        assert_eq!(due(&presence, 60), None, "no caller has come yet");
        presence.present(&somebody("PA_sip", ParticipantKind::Sip), 2, secs(61));
        presence.present(&somebody("PA_person", ParticipantKind::Standard), 1, secs(62));
        presence.left("PA_sip", secs(70));
        assert_eq!(due(&presence, 72), Some(StopReason::CallerLeft));
    }

    #[test]
    fn whoever_is_picked_ends_it_by_leaving_or_by_no_longer_being_picked() {
        let rules = vec!["attribute=role=customer".parse().unwrap()];
        let policy = StopPolicy { ends_with: EndsWith::Picked(rules), ..StopPolicy::default() };
        let mut presence = presence(policy);
        let mut customer = somebody("PA_1", ParticipantKind::Standard);
        presence.present(&customer, 1, secs(0));
        assert!(presence.waits(), "the attribute comes later");
        customer.attributes.insert("role".into(), "customer".into());
        presence.present(&customer, 1, secs(5));
        presence.present(&somebody("PA_2", ParticipantKind::Standard), 2, secs(6));
        assert_eq!(due(&presence, 500), None);
        customer.attributes.clear();
        presence.present(&customer, 1, secs(500));
        assert_eq!((due(&presence, 509), due(&presence, 510)), (None, Some(StopReason::ParticipantLeft)));
    }

    #[test]
    fn silence_ends_it_once_somebody_has_come() {
        let mut presence = presence(StopPolicy { silence: Some(Duration::from_secs(20)), ..StopPolicy::default() });
        assert_eq!(due(&presence, 100), None, "that is waiting");
        presence.present(&somebody("PA_1", ParticipantKind::Standard), 1, secs(100));
        assert_eq!(due(&presence, 119), None);
        presence.heard(-30.0, secs(110));
        presence.heard(-60.0, secs(125));
        assert_eq!((due(&presence, 129), due(&presence, 130)), (None, Some(StopReason::Silence)));
    }

    #[test]
    fn the_longest_duration_and_the_most_bytes_end_it_whoever_is_there() {
        let policy =
            StopPolicy { max_duration: Some(Duration::from_secs(5)), max_bytes: Some(1_000), ..StopPolicy::default() };
        let mut presence = presence(policy);
        presence.present(&somebody("PA_1", ParticipantKind::Standard), 1, secs(0));
        assert_eq!(presence.due(secs(4), 999), None);
        assert_eq!(presence.due(secs(5), 999), Some(StopReason::MaxDuration));
        assert_eq!(presence.due(secs(4), 1_000), Some(StopReason::MaxBytes));
    }
}
