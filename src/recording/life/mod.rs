//! One recording's life: what happens to it goes in, what has to be done comes out. Pure: time is an argument.
//!
//! ```text
//!  starting ─▶ active ⇄ paused ─▶ stopping ─▶ ready | failed
//! ```
//!
//! A recording that needs consent is `starting` until that is given; nothing of the time before is kept. What a restarted
//! process has to know of all this is a [`LifeSoFar`], put down at every step.

mod consent;
mod pause;
mod presence;
mod watch;

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::Participant;
use crate::config::ParticipantRule;
use crate::time::{ClockTime, MediaTime};

use super::handle::State;
use super::outcome::StopReason;

pub use consent::ConsentRule;
pub use pause::{PauseEntry, PauseOrder, PausePolicy};
pub use presence::{EndsWith, StopPolicy};
pub use watch::{LegSilence, Remedy, Watch};

use pause::Pauses;
use presence::Presence;

/// The topic of data messages that control a recording.
pub const CONTROL_TOPIC: &str = "callreel";

/// Who withholds what comes before consent.
const CONSENT: &str = "consent";

/// How a recording lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifePolicy {
    /// When it stops by itself.
    pub stop: StopPolicy,
    /// Signs of consent, any of which lets it begin. Default: none is needed.
    pub consent: Vec<ConsentRule>,
    /// What the files have where it was paused, unless the order says.
    pub pause: PausePolicy,
    /// Who may pause it by data message. Default: nobody.
    pub controllers: Vec<ParticipantRule>,
}

impl LifePolicy {
    /// The topics on which data messages can mean anything.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        let control = (!self.controllers.is_empty()).then_some(CONTROL_TOPIC);
        control.into_iter().chain(self.consent.iter().filter_map(ConsentRule::topic))
    }
}

/// Something that has to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Keep nothing of what is spoken from here on.
    Withhold {
        /// The number of the pause.
        pause: usize,
        /// From when.
        from: MediaTime,
        /// What the files are to have there.
        policy: PausePolicy,
    },
    /// Keep what is spoken from here on.
    Keep {
        /// The number of the pause that is over.
        pause: usize,
        /// From when.
        from: MediaTime,
    },
    /// Finish.
    Stop {
        /// Why.
        reason: StopReason,
        /// When it was found to be over.
        at: ClockTime,
    },
}

/// What another process has to know to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LifeSoFar {
    /// Whether consent was needed and is not there.
    pub lacks_consent: bool,
    /// Whether anybody for whose sake it is recorded was there.
    pub came: bool,
    /// Every pause.
    pub pauses: Vec<PauseEntry>,
    /// When the pause that lasts ends by itself, in nanoseconds on the recording's clock.
    pub ends_at: Option<i64>,
    /// A pause that is to begin with consent.
    #[serde(default)]
    pub pause_then: Option<PauseOrder>,
}

/// A data message that controls a recording.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
enum Control {
    Pause {
        #[serde(default)]
        reason: String,
        policy: Option<PausePolicy>,
        resume_after_seconds: Option<f64>,
    },
    Resume {},
}

/// One recording's life; see the [module](self).
#[derive(Debug)]
pub struct Life {
    policy: LifePolicy,
    presence: Presence,
    pauses: Pauses,
    lacks_consent: bool,
    /// An order to pause that came before consent.
    pause_then: Option<PauseOrder>,
    stopping: bool,
    steps: VecDeque<Step>,
}

impl Life {
    /// Begins at `at`; `so_far` is what an earlier process knew.
    pub fn new(policy: LifePolicy, at: ClockTime, so_far: Option<LifeSoFar>) -> Self {
        let first = so_far.is_none();
        let so_far = so_far.unwrap_or(LifeSoFar { lacks_consent: !policy.consent.is_empty(), ..LifeSoFar::default() });
        let mut life = Self {
            presence: Presence::new(policy.stop.clone(), at, so_far.came),
            pauses: Pauses::going_on(so_far.pauses, so_far.ends_at.map(ClockTime)),
            lacks_consent: so_far.lacks_consent,
            pause_then: so_far.pause_then,
            stopping: false,
            steps: VecDeque::new(),
            policy,
        };
        if first && life.lacks_consent {
            let order = PauseOrder { by: CONSENT.into(), policy: Some(PausePolicy::Skip), ..PauseOrder::default() };
            life.begin_pause(&order, at);
        } else {
            life.withhold();
        }
        life
    }

    /// What has to be done next, if anything.
    pub fn next_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Where it is.
    pub fn state(&self) -> State {
        if self.stopping {
            State::Stopping
        } else if self.lacks_consent {
            State::Starting
        } else if self.pauses.lasting().is_some() {
            State::Paused
        } else {
            State::Active
        }
    }

    /// Whether it needs consent that was never given.
    pub fn lacks_consent(&self) -> bool {
        self.lacks_consent
    }

    /// Every pause so far.
    pub fn pauses(&self) -> &[PauseEntry] {
        self.pauses.entries()
    }

    /// What another process would have to know.
    pub fn so_far(&self) -> LifeSoFar {
        LifeSoFar {
            lacks_consent: self.lacks_consent,
            came: !self.presence.waits(),
            pauses: self.pauses.entries().to_vec(),
            ends_at: self.pauses.ends_at().map(|at| at.0),
            pause_then: self.pause_then.clone(),
        }
    }

    /// Somebody is there, who was the `joined`th to join (from 1 on); also when something about them changes.
    pub fn present(&mut self, participant: &Participant, joined: usize, at: ClockTime) {
        self.presence.present(participant, joined, at);
        if self.policy.consent.iter().any(|rule| rule.is_given_by(participant)) {
            self.consented(&participant.identity, at);
        }
    }

    /// The participant with this `sid` left.
    pub fn left(&mut self, sid: &str, at: ClockTime) {
        self.presence.left(sid, at);
    }

    /// A data message came. `from` is who sent it and as how many-th they joined; none where the server does not say.
    pub fn message(&mut self, from: Option<(&Participant, usize)>, topic: &str, payload: &[u8], at: ClockTime) {
        let identity = from.map_or("", |(participant, _)| participant.identity.as_str());
        if self.policy.consent.iter().any(|rule| rule.is_message(topic)) {
            self.consented(identity, at);
        }
        if topic != CONTROL_TOPIC {
            return;
        }
        let may = |(participant, joined)| self.policy.controllers.iter().any(|rule| rule.picks(participant, joined));
        if !from.is_some_and(may) {
            tracing::warn!(identity, "a data message to control the recording, from somebody who may not");
            return;
        }
        match serde_json::from_slice(payload) {
            Ok(Control::Pause { reason, policy, resume_after_seconds }) => {
                let resume_after = resume_after_seconds.map(Duration::try_from_secs_f64).and_then(Result::ok);
                self.pause(PauseOrder { by: identity.to_owned(), reason, policy, resume_after }, at);
            }
            Ok(Control::Resume {}) => self.resume(identity, at),
            Err(error) => tracing::warn!(identity, %error, "a data message to control the recording that says nothing"),
        }
    }

    /// Pauses.
    pub fn pause(&mut self, order: PauseOrder, at: ClockTime) {
        if self.stopping {
            return;
        }
        if self.lacks_consent {
            // Of two orders the longer pause counts.
            let known = self.pause_then.take();
            let after = |one: &PauseOrder| one.resume_after.zip(order.resume_after).map(|(one, other)| one.max(other));
            self.pause_then = Some(match known {
                Some(known) => PauseOrder { resume_after: after(&known), ..known },
                None => order,
            });
        } else {
            self.begin_pause(&order, at);
        }
    }

    /// Goes on.
    pub fn resume(&mut self, by: &str, at: ClockTime) {
        if self.lacks_consent {
            self.pause_then = None;
        } else if self.pauses.end(by, at) {
            self.keep_on();
        }
    }

    /// Finishes.
    pub fn stop(&mut self, reason: StopReason, at: ClockTime) {
        if !self.stopping {
            self.stopping = true;
            self.steps.push_back(Step::Stop { reason, at });
        }
    }

    /// Ends a pause whose time is over at `now`. Before anything is settled that was spoken after it.
    pub fn end_pause_in_time(&mut self, now: ClockTime) {
        if !self.lacks_consent && self.pauses.end_in_time(now).is_some() {
            self.keep_on();
        }
    }

    /// What the files lack of a pause, by its number.
    pub fn removed(&mut self, pause: usize, removed: Option<(MediaTime, Option<MediaTime>)>) {
        self.pauses.removed(pause, removed);
    }

    /// The timeline ends at `end`.
    pub fn end_with(&mut self, end: MediaTime) {
        self.pauses.end_with(end);
    }

    /// Lets time pass. `peak_dbfs` is how loud it was since the last time, and the files have `bytes`.
    pub fn pass(&mut self, now: ClockTime, peak_dbfs: f32, bytes: u64) {
        // A pause is nobody's silence.
        self.presence.heard(if self.pauses.lasting().is_some() { 0.0 } else { peak_dbfs }, now);
        if let Some(reason) = self.presence.due(now, bytes) {
            self.stop(reason, now);
        }
    }

    /// Whether the server's closing the room is no end, because nobody has come yet.
    pub fn waits(&self) -> bool {
        self.presence.waits()
    }

    /// How many are in the room.
    pub fn participants(&self) -> usize {
        self.presence.count()
    }

    /// Since when nobody is there for whose sake it goes on; `None` while somebody is, or before anybody came.
    pub fn alone_since(&self) -> Option<ClockTime> {
        self.presence.alone_since()
    }

    fn consented(&mut self, by: &str, at: ClockTime) {
        if !std::mem::take(&mut self.lacks_consent) {
            return;
        }
        if self.pauses.end(by, at) {
            self.keep_on();
        }
        if let Some(order) = self.pause_then.take() {
            self.begin_pause(&order, at);
        }
    }

    fn begin_pause(&mut self, order: &PauseOrder, at: ClockTime) {
        if self.pauses.begin(order, self.policy.pause, at) {
            self.withhold();
        }
    }

    fn withhold(&mut self) {
        let pause = self.pauses.entries().len().saturating_sub(1);
        if let Some(lasting) = self.pauses.lasting() {
            self.steps.push_back(Step::Withhold { pause, from: lasting.from_sample, policy: lasting.policy });
        }
    }

    fn keep_on(&mut self) {
        let pause = self.pauses.entries().len().saturating_sub(1);
        if let Some(from) = self.pauses.entries().last().and_then(|last| last.to_sample) {
            self.steps.push_back(Step::Keep { pause, from });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::ParticipantKind;

    fn secs(s: i64) -> ClockTime {
        ClockTime::from_millis(s * 1_000)
    }

    fn media(s: i64) -> MediaTime {
        secs(s).into()
    }

    fn steps(life: &mut Life) -> Vec<Step> {
        std::iter::from_fn(|| life.next_step()).collect()
    }

    fn agent() -> Participant {
        Participant {
            sid: "PA_1".into(),
            identity: "agent-1".into(),
            kind: ParticipantKind::Agent,
            ..Participant::default()
        }
    }

    fn order(by: &str) -> PauseOrder {
        PauseOrder { by: by.into(), ..PauseOrder::default() }
    }

    fn needing_consent() -> Life {
        let consent = vec!["attribute=consent=yes".parse().unwrap(), "message=consent".parse().unwrap()];
        Life::new(LifePolicy { consent, ..LifePolicy::default() }, ClockTime::ZERO, None)
    }

    #[test]
    fn nothing_is_kept_before_consent() {
        let withheld = Step::Withhold { pause: 0, from: MediaTime::ZERO, policy: PausePolicy::Skip };
        let mut life = needing_consent();
        assert_eq!((life.state(), steps(&mut life)), (State::Starting, vec![withheld]));
        let mut caller = agent();
        life.present(&caller, 1, secs(1));
        life.message(None, "other", b"", secs(2));
        life.resume("somebody", secs(2));
        assert_eq!((life.lacks_consent(), steps(&mut life)), (true, vec![]));
        caller.attributes.insert("consent".into(), "yes".into());
        life.present(&caller, 1, secs(5));
        assert_eq!((life.state(), steps(&mut life)), (State::Active, vec![Step::Keep { pause: 0, from: media(5) }]));

        let mut life = needing_consent();
        life.message(Some((&agent(), 1)), "consent", b"", secs(3));
        assert_eq!(steps(&mut life), [withheld, Step::Keep { pause: 0, from: media(3) }]);
    }

    #[test]
    fn an_order_to_pause_outlasts_the_wait_for_consent() {
        let mut life = needing_consent();
        life.pause(PauseOrder { resume_after: Some(Duration::from_secs(5)), ..order("agent-1") }, secs(1));
        life.pause(order("agent-2"), secs(2));
        let mut life = Life::new(needing_consent().policy, secs(2), Some(life.so_far()));
        life.message(Some((&agent(), 1)), "consent", b"", secs(3));
        assert_eq!(life.state(), State::Paused);
        let withheld = Step::Withhold { pause: 1, from: media(3), policy: PausePolicy::Silence };
        assert_eq!(steps(&mut life)[1..], [Step::Keep { pause: 0, from: media(3) }, withheld]);
        life.end_pause_in_time(secs(1_000));
        assert_eq!(life.state(), State::Paused, "the longer pause counts");
    }

    #[test]
    fn only_controllers_control_and_only_with_what_says_something() {
        let controllers = vec!["kind=agent".parse().unwrap()];
        let mut life = Life::new(LifePolicy { controllers, ..LifePolicy::default() }, ClockTime::ZERO, None);
        let pause = br#"{"command":"pause","reason":"card number","policy":"skip","resume_after_seconds":30.5}"#;
        let stranger = Participant { kind: ParticipantKind::Standard, ..agent() };
        for (from, topic, payload) in [
            (None, CONTROL_TOPIC, &pause[..]),
            (Some((&stranger, 2)), CONTROL_TOPIC, &pause[..]),
            (Some((&agent(), 1)), "chat", &pause[..]),
            (Some((&agent(), 1)), CONTROL_TOPIC, &b"\xff{"[..]),
            (Some((&agent(), 1)), CONTROL_TOPIC, &br#"{"command":"stop"}"#[..]),
        ] {
            life.message(from, topic, payload, secs(1));
            assert_eq!((life.state(), steps(&mut life)), (State::Active, vec![]), "{topic}");
        }
        life.message(Some((&agent(), 1)), CONTROL_TOPIC, pause, secs(2));
        assert_eq!(steps(&mut life), [Step::Withhold { pause: 0, from: media(2), policy: PausePolicy::Skip }]);
        let [entry] = life.pauses() else { panic!("one pause") };
        assert_eq!((entry.by.as_str(), entry.reason.as_str()), ("agent-1", "card number"));
        life.end_pause_in_time(secs(32));
        assert_eq!(life.state(), State::Paused);
        life.end_pause_in_time(secs(33));
        let on = ClockTime::from_millis(32_500).into();
        assert_eq!(steps(&mut life), [Step::Keep { pause: 0, from: on }]);
        life.message(Some((&agent(), 1)), CONTROL_TOPIC, br#"{"command":"pause"}"#, secs(40));
        life.message(Some((&agent(), 1)), CONTROL_TOPIC, br#"{"command":"resume"}"#, secs(41));
        assert_eq!((steps(&mut life).len(), life.state()), (2, State::Active));
    }

    #[test]
    fn who_goes_on_with_a_paused_recording_keeps_it_paused() {
        let mut life = Life::new(LifePolicy::default(), ClockTime::ZERO, None);
        let resume_after = Some(Duration::from_secs(60));
        life.pause(PauseOrder { resume_after, ..order("agent") }, secs(10));
        let so_far: LifeSoFar = serde_json::from_value(serde_json::to_value(life.so_far()).unwrap()).unwrap();
        let mut next = Life::new(LifePolicy::default(), secs(20), Some(so_far));
        assert_eq!(next.state(), State::Paused);
        assert_eq!(steps(&mut next), [Step::Withhold { pause: 0, from: media(10), policy: PausePolicy::Silence }]);
        next.end_pause_in_time(secs(75));
        assert_eq!(steps(&mut next), [Step::Keep { pause: 0, from: media(70) }]);

        let mut blocked = Life::new(needing_consent().policy, secs(20), Some(needing_consent().so_far()));
        assert_eq!((blocked.state(), steps(&mut blocked).len()), (State::Starting, 1));
    }

    #[test]
    fn it_stops_once() {
        let stop = StopPolicy { max_duration: Some(Duration::from_secs(5)), ..StopPolicy::default() };
        let mut life = Life::new(LifePolicy { stop, ..LifePolicy::default() }, ClockTime::ZERO, None);
        life.pass(secs(4), f32::NEG_INFINITY, 0);
        assert_eq!(steps(&mut life), []);
        life.stop(StopReason::Requested, secs(4));
        life.pass(secs(6), f32::NEG_INFINITY, 0);
        life.pause(order("late"), secs(6));
        assert_eq!(steps(&mut life), [Step::Stop { reason: StopReason::Requested, at: secs(4) }]);
        assert_eq!(life.state(), State::Stopping);
    }
}
