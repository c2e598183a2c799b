//! When and how to mend a broken connection: pure, told the time.

use std::time::{Duration, Instant};

/// The wait before the second attempt; doubled for each one after.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How many attempts at resuming before the session is given up: with the waits between, about as long as the server
/// keeps it.
const RESUMES: u32 = 4;
/// How long a connection must hold before old trouble is forgotten.
const STABLE: Duration = Duration::from_secs(10);

/// A way to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Go on with the session.
    Resume,
    /// Start a new one.
    Rejoin,
}

/// The state of mending.
#[derive(Clone, Debug)]
pub(super) struct Repair {
    patience: Duration,
    state: State,
    /// Since when there has been trouble without [`STABLE`] rest, and over how many attempts.
    trouble: Option<Trouble>,
}

#[derive(Clone, Debug)]
struct Trouble {
    since: Instant,
    attempts: u32,
    over: Option<Instant>,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Waiting(Step, Instant),
    Trying(Step),
}

impl Repair {
    /// Nothing is broken; what breaks is worked on for `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, state: State::Whole, trouble: None }
    }

    /// Something broke, and `step` would mend it. A rejoin outranks a resume that waits; nothing outranks an attempt
    /// under way but its own end.
    pub(super) fn need(&mut self, step: Step, why: impl Into<String>, now: Instant) {
        let why = why.into();
        tracing::warn!(%why, ?step, "the connection needs mending");
        let trouble = self.trouble.get_or_insert(Trouble { since: now, attempts: 0, over: None, why: String::new() });
        trouble.why = why;
        trouble.over = None;
        let wait = match trouble.attempts {
            0 => Duration::ZERO,
            attempts => backoff(attempts),
        };
        match self.state {
            State::Trying(_) | State::Waiting(Step::Rejoin, _) => {}
            State::Waiting(Step::Resume, at) if step == Step::Rejoin => self.state = State::Waiting(step, at),
            State::Waiting(Step::Resume, _) => {}
            State::Whole => self.state = State::Waiting(step, now + wait),
        }
    }

    /// The attempt under way failed; `step` is what may be tried next.
    pub(super) fn failed(&mut self, step: Step, why: impl Into<String>, now: Instant) {
        let attempts = self.trouble.as_ref().map_or(0, |trouble| trouble.attempts);
        self.state = State::Whole;
        let step = if attempts >= RESUMES { Step::Rejoin } else { step };
        self.need(step, why, now);
    }

    /// The attempt under way worked.
    pub(super) fn succeeded(&mut self, now: Instant) {
        self.state = State::Whole;
        if let Some(trouble) = &mut self.trouble {
            trouble.over = Some(now);
        }
    }

    /// The step to begin now, if its time has come.
    pub(super) fn due(&mut self, now: Instant) -> Option<Step> {
        if self.state == State::Whole
            && let Some(over) = self.trouble.as_ref().and_then(|trouble| trouble.over)
            && now.saturating_duration_since(over) >= STABLE
        {
            self.trouble = None;
        }
        let State::Waiting(step, at) = self.state else { return None };
        if at > now {
            return None;
        }
        self.state = State::Trying(step);
        if let Some(trouble) = &mut self.trouble {
            trouble.attempts += 1;
        }
        Some(step)
    }

    /// Why to give up, where the patience has run out with things still broken.
    pub(super) fn exhausted(&self, now: Instant) -> Option<&str> {
        let trouble = self.trouble.as_ref()?;
        let worn_out = trouble.over.is_none() && now.saturating_duration_since(trouble.since) >= self.patience;
        worn_out.then_some(trouble.why.as_str())
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Option<Instant> {
        let trouble = self.trouble.as_ref()?;
        let limit = trouble.since + self.patience;
        match self.state {
            State::Waiting(_, at) => Some(at.min(limit)),
            State::Trying(_) => Some(limit),
            State::Whole => Some(trouble.over? + STABLE),
        }
    }

    /// Whether an attempt waits or is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.state != State::Whole
    }
}

fn backoff(attempts: u32) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << (attempts - 1).min(10)).min(LONGEST_WAIT);
    // Many recorders lose one server at one moment; they must not come back at one moment.
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn broken(step: Step) -> (Repair, Instant) {
        let now = crate::clock::now();
        let mut repair = Repair::new(PATIENCE);
        repair.need(step, "cut", now);
        (repair, now)
    }

    #[test]
    fn the_first_attempt_is_at_once_and_only_one() {
        let (mut repair, now) = broken(Step::Resume);
        assert_eq!(repair.due(now), Some(Step::Resume));
        assert_eq!(repair.due(now), None);
        repair.need(Step::Resume, "cut again", now);
        assert_eq!(repair.due(now + PATIENCE), None, "an attempt is under way");
    }

    #[test]
    fn waits_grow_and_resuming_becomes_rejoining() {
        let (mut repair, mut now) = broken(Step::Resume);
        let mut steps = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let start = now;
            now = now.max(repair.wake().unwrap());
            waits.push(now - start);
            steps.push(repair.due(now).unwrap());
            repair.failed(Step::Resume, "no", now);
        }
        assert_eq!(steps[..4], [Step::Resume; 4]);
        assert_eq!(steps[4..], [Step::Rejoin; 4]);
        assert!(waits[0].is_zero() && waits[1] >= FIRST_WAIT / 2 && waits[7] >= LONGEST_WAIT / 2);
        assert!(waits.iter().all(|wait| *wait <= LONGEST_WAIT));
    }

    #[test]
    fn a_rejoin_outranks_a_resume_that_waits() {
        let (mut repair, now) = broken(Step::Resume);
        repair.need(Step::Rejoin, "the session is gone", now);
        assert_eq!(repair.due(now), Some(Step::Rejoin));
    }

    #[test]
    fn patience_ends_unless_things_mend() {
        let (mut repair, now) = broken(Step::Resume);
        assert_eq!(repair.due(now), Some(Step::Resume));
        assert_eq!(repair.exhausted(now + PATIENCE / 2), None);
        assert_eq!(repair.exhausted(now + PATIENCE), Some("cut"));
        repair.succeeded(now);
        assert_eq!(repair.exhausted(now + PATIENCE), None);
    }

    #[test]
    fn trouble_that_comes_back_soon_is_the_same_trouble() {
        let (mut repair, now) = broken(Step::Rejoin);
        repair.due(now);
        repair.succeeded(now);
        let soon = now + STABLE / 2;
        assert_eq!(repair.due(soon), None);
        repair.need(Step::Rejoin, "again", soon);
        assert_eq!(repair.due(soon), None, "the second attempt waits");
        assert_eq!(repair.exhausted(now + PATIENCE), Some("again"));
        repair.due(soon + LONGEST_WAIT);
        repair.succeeded(soon);
        let later = soon + STABLE;
        assert_eq!(repair.due(later), None);
        repair.need(Step::Resume, "new", later);
        assert_eq!(repair.due(later), Some(Step::Resume), "old trouble is forgotten");
    }
}
