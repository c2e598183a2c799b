//! Who is in the room, and what that means for the end of the recording. Pure: time is an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::{Participant, ParticipantKind};
use crate::time::ClockTime;

use super::outcome::StopReason;

/// Whose leaving ends the recording.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndsWith {
    /// The last participant who keeps a call alive: anybody but agents and recorders.
    #[default]
    LastParticipant,
    /// The telephone leg; before one has come, nobody's leaving ends it.
    Caller,
}

/// When a recording stops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopPolicy {
    /// Whose leaving ends it. Default: the last participant's.
    pub ends_with: EndsWith,
    /// How long the room may be without them before it is over; whoever comes back in time goes on in the same file.
    /// Default 10 s: long enough for a browser that reloads.
    pub departure_timeout: Duration,
    /// The longest recording, counted from sample 0. Default none.
    pub max_duration: Option<Duration>,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self { ends_with: EndsWith::LastParticipant, departure_timeout: Duration::from_secs(10), max_duration: None }
    }
}

/// Who is there, and since when nobody is who matters.
#[derive(Debug)]
pub struct Presence {
    policy: StopPolicy,
    present: BTreeMap<String, ParticipantKind>,
    anybody_came: bool,
    left_alone_at: Option<ClockTime>,
}

impl Presence {
    /// An empty room.
    pub fn new(policy: StopPolicy) -> Self {
        Self { policy, present: BTreeMap::new(), anybody_came: false, left_alone_at: None }
    }

    /// Somebody came.
    pub fn joined(&mut self, participant: &Participant) {
        self.present.insert(participant.sid.clone(), participant.kind);
        if self.matters(participant.kind) {
            self.anybody_came = true;
            self.left_alone_at = None;
        }
    }

    /// The participant with this `sid` left.
    pub fn left(&mut self, sid: &str, at: ClockTime) {
        let Some(kind) = self.present.remove(sid) else { return };
        if self.matters(kind) && !self.somebody_matters() {
            self.left_alone_at = Some(at);
        }
    }

    /// How many are in the room.
    pub fn count(&self) -> usize {
        self.present.len()
    }

    /// Since when nobody is there for whose sake the recording goes on; `None` while somebody is, or before anybody came.
    pub fn alone_since(&self) -> Option<ClockTime> {
        self.left_alone_at
    }

    /// Whether the recording is over at `now`, and why.
    pub fn due(&self, now: ClockTime) -> Option<StopReason> {
        if self.policy.max_duration.is_some_and(|longest| now >= ClockTime::ZERO + longest) {
            return Some(StopReason::MaxDuration);
        }
        if self.left_alone_at.is_some_and(|at| now >= at + self.policy.departure_timeout) {
            return Some(match self.policy.ends_with {
                EndsWith::LastParticipant => StopReason::Departed,
                EndsWith::Caller => StopReason::CallerLeft,
            });
        }
        None
    }

    fn matters(&self, kind: ParticipantKind) -> bool {
        match self.policy.ends_with {
            EndsWith::LastParticipant => kind.keeps_call_alive(),
            EndsWith::Caller => kind == ParticipantKind::Sip,
        }
    }

    fn somebody_matters(&self) -> bool {
        self.present.values().any(|&kind| self.matters(kind))
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

    #[test]
    fn an_empty_room_is_waited_in() {
        let presence = Presence::new(StopPolicy::default());
        assert_eq!(presence.due(secs(3600)), None);
    }

    #[test]
    fn the_last_person_leaving_ends_it_after_the_timeout_though_the_agent_stays() {
        let mut presence = Presence::new(StopPolicy::default());
        presence.joined(&somebody("PA_agent", ParticipantKind::Agent));
        presence.joined(&somebody("PA_a", ParticipantKind::Standard));
        presence.left("PA_a", secs(30));
        assert_eq!(presence.alone_since(), Some(secs(30)));
        assert_eq!(presence.due(secs(39)), None);
        assert_eq!(presence.due(secs(40)), Some(StopReason::Departed));
    }

    #[test]
    fn coming_back_in_time_goes_on() {
        let mut presence = Presence::new(StopPolicy::default());
        presence.joined(&somebody("PA_1", ParticipantKind::Standard));
        presence.left("PA_1", secs(30));
        presence.joined(&somebody("PA_2", ParticipantKind::Standard));
        assert_eq!(presence.due(secs(100)), None);
        assert_eq!(presence.alone_since(), None);
    }

    #[test]
    fn the_caller_leaving_ends_a_telephone_call_though_others_stay() {
        let mut presence = Presence::new(StopPolicy {
            ends_with: EndsWith::Caller,
            departure_timeout: Duration::from_secs(2),
            max_duration: None,
        });
        presence.joined(&somebody("PA_person", ParticipantKind::Standard));
        presence.left("PA_person", secs(1));
        assert_eq!(presence.due(secs(60)), None, "no caller has come yet");
        presence.joined(&somebody("PA_sip", ParticipantKind::Sip));
        presence.joined(&somebody("PA_person", ParticipantKind::Standard));
        presence.left("PA_sip", secs(70));
        assert_eq!(presence.due(secs(72)), Some(StopReason::CallerLeft));
    }

    #[test]
    fn the_longest_duration_ends_it_whoever_is_there() {
        let mut presence =
            Presence::new(StopPolicy { max_duration: Some(Duration::from_secs(5)), ..StopPolicy::default() });
        presence.joined(&somebody("PA_1", ParticipantKind::Standard));
        assert_eq!(presence.due(secs(4)), None);
        assert_eq!(presence.due(secs(5)), Some(StopReason::MaxDuration));
    }
}
