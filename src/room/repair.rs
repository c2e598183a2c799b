//! When and how to mend a broken connection: pure, told the time.

use std::time::{Duration, Instant};

/// The longest wait before the second attempt; doubled for each one after the eager time.
const FIRST_WAIT: Duration = Duration::from_millis(300);
/// How long it stays at that: a server that is started again is there within seconds, and what is said meanwhile is lost.
const EAGER: Duration = Duration::from_secs(10);
/// The longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How many attempts at resuming before the session is given up: with the waits between, about as long as the server
/// keeps it.
const RESUMES: u32 = 8;
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
    /// The trouble that there has been without [`STABLE`] rest.
    trouble: Option<Trouble>,
    /// How long media may be away, and since when it is.
    without_media: Duration,
    away: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Trouble {
    /// When things broke the first time, and the last time.
    begun: Instant,
    since: Instant,
    /// How often mending was tried, each time that they broke; and how often after the eager time.
    attempts: u32,
    late: u32,
    over: Option<Instant>,
    why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Whole,
    Waiting(Step, Instant),
    Trying(Step),
    /// Resuming, while only a rejoin would do.
    Outranked,
}

impl Repair {
    /// Nothing is broken; what breaks is worked on for `patience`, and for `without_media` at most where no media comes, as
    /// until it comes for the first time.
    pub(super) fn new(patience: Duration, without_media: Duration, now: Instant) -> Self {
        Self { patience, state: State::Whole, trouble: None, without_media, away: Some(now) }
    }

    /// Media comes no more.
    pub(super) fn media_left(&mut self, now: Instant) {
        self.away.get_or_insert(now);
    }

    /// Media comes.
    pub(super) fn media_came(&mut self) {
        self.away = None;
    }

    /// Something broke, and `step` would mend it. A rejoin outranks a resume that waits, and follows one that is under way,
    /// however that ends.
    pub(super) fn need(&mut self, step: Step, why: impl Into<String>, now: Instant) {
        let why = why.into();
        tracing::warn!(%why, ?step, "the connection needs mending");
        let trouble = self.trouble.get_or_insert(Trouble {
            begun: now,
            since: now,
            attempts: 0,
            late: 0,
            over: None,
            why: String::new(),
        });
        trouble.why = why;
        if trouble.over.take().is_some() {
            trouble.since = now;
        }
        let wait = match trouble.attempts {
            0 => Duration::ZERO,
            _ => backoff(trouble.late),
        };
        match self.state {
            State::Waiting(Step::Resume, at) if step == Step::Rejoin => self.state = State::Waiting(step, at),
            State::Trying(Step::Resume) if step == Step::Rejoin => self.state = State::Outranked,
            State::Waiting(..) | State::Trying(_) | State::Outranked => {}
            State::Whole => self.state = State::Waiting(step, now + wait),
        }
    }

    /// The attempt under way failed; `step` is what may be tried next.
    pub(super) fn failed(&mut self, step: Step, why: impl Into<String>, now: Instant) {
        let attempts = self.trouble.as_ref().map_or(0, |trouble| trouble.attempts);
        // Who answers that the session is gone is there to be joined.
        let is_answered = self.state == State::Trying(Step::Resume) && step == Step::Rejoin;
        let step = if attempts >= RESUMES || self.state == State::Outranked { Step::Rejoin } else { step };
        self.state = State::Whole;
        self.need(step, why, now);
        if is_answered {
            self.state = State::Waiting(step, now);
        }
    }

    /// The attempt under way worked.
    pub(super) fn succeeded(&mut self, now: Instant) {
        if self.state == State::Outranked {
            self.state = State::Waiting(Step::Rejoin, now);
            return;
        }
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
            trouble.late += u32::from(now.saturating_duration_since(trouble.begun) >= EAGER);
        }
        Some(step)
    }

    /// Why to give up, and after what patience, where that has run out with things still broken.
    pub(super) fn exhausted(&self, now: Instant) -> Option<(&str, Duration)> {
        let broken = self.trouble.as_ref().filter(|trouble| trouble.over.is_none());
        if let Some(trouble) = broken
            && now.saturating_duration_since(trouble.since) >= self.patience
        {
            return Some((&trouble.why, self.patience));
        }
        let away = self.away.filter(|since| now.saturating_duration_since(*since) >= self.without_media);
        away.map(|_| (self.trouble.as_ref().map_or("no media comes", |trouble| &trouble.why), self.without_media))
    }

    /// When to look again.
    pub(super) fn wake(&self) -> Option<Instant> {
        let trouble = self.trouble.as_ref();
        let limit = trouble.map(|trouble| trouble.since + self.patience);
        let (due, limit) = match self.state {
            State::Waiting(_, at) => (Some(at), limit),
            State::Trying(_) | State::Outranked => (None, limit),
            State::Whole => (trouble.and_then(|trouble| Some(trouble.over? + STABLE)), None),
        };
        let away = self.away.map(|since| since + self.without_media);
        [due, limit, away].into_iter().flatten().min()
    }

    /// Whether an attempt waits or is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.state != State::Whole
    }
}

fn backoff(late: u32) -> Duration {
    let whole = FIRST_WAIT.saturating_mul(1 << late.min(10)).min(LONGEST_WAIT);
    // Many recorders lose one server at one moment; they must not come back at one moment.
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(120);

    fn broken(step: Step) -> (Repair, Instant) {
        let now = crate::clock::now();
        let mut repair = Repair::new(PATIENCE, PATIENCE, now);
        repair.media_came();
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
        let broke = now;
        while now < broke + PATIENCE / 2 {
            let start = now;
            now = now.max(repair.wake().unwrap());
            waits.push((start - broke, now - start));
            steps.push(repair.due(now).unwrap());
            repair.failed(Step::Resume, "no", now);
        }
        let resumes = RESUMES as usize;
        assert!(steps[..resumes].iter().all(|step| *step == Step::Resume));
        assert!(steps[resumes..].iter().all(|step| *step == Step::Rejoin));
        assert!(waits[0].1.is_zero() && waits[1].1 >= FIRST_WAIT / 2);
        assert!(waits.iter().all(|(at, wait)| *wait <= if *at < EAGER { FIRST_WAIT } else { LONGEST_WAIT }));
        assert!(waits.last().unwrap().1 >= LONGEST_WAIT / 2);
    }

    #[test]
    fn who_answers_that_the_session_is_gone_is_joined_at_once() {
        let (mut repair, now) = broken(Step::Resume);
        assert_eq!(repair.due(now), Some(Step::Resume));
        repair.failed(Step::Resume, "nobody answers", now);
        assert_eq!(repair.due(now), None);
        let later = now + FIRST_WAIT;
        assert_eq!(repair.due(later), Some(Step::Resume));
        repair.failed(Step::Rejoin, "no such session", later);
        assert_eq!(repair.due(later), Some(Step::Rejoin));
        repair.failed(Step::Rejoin, "not now", later);
        assert_eq!(repair.due(later), None, "who refuses is not pressed");
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
        assert_eq!(repair.exhausted(now + PATIENCE), Some(("cut", PATIENCE)));
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
        assert_eq!(repair.exhausted(now + PATIENCE), None, "patience begins with the last break");
        assert_eq!(repair.exhausted(soon + PATIENCE), Some(("again", PATIENCE)));
        repair.due(soon + LONGEST_WAIT);
        repair.succeeded(soon);
        let later = soon + STABLE;
        assert_eq!(repair.due(later), None);
        repair.need(Step::Resume, "new", later);
        assert_eq!(repair.due(later), Some(Step::Resume), "old trouble is forgotten");
    }

    #[test]
    fn a_connection_that_breaks_again_and_again_is_mended_each_time() {
        let (mut repair, mut now) = broken(Step::Resume);
        let end = now + PATIENCE * 2;
        while now < end {
            now = now.max(repair.wake().unwrap());
            assert_eq!(repair.exhausted(now), None);
            assert!(repair.due(now).is_some());
            repair.succeeded(now);
            now += STABLE / 2;
            repair.need(Step::Resume, "again", now);
        }
    }

    #[test]
    fn a_rejoin_that_is_needed_while_resuming_follows_it() {
        let (mut repair, now) = broken(Step::Resume);
        assert_eq!(repair.due(now), Some(Step::Resume));
        repair.need(Step::Rejoin, "media is gone", now);
        repair.need(Step::Resume, "and something else", now);
        let mut failing = repair.clone();
        assert_eq!(repair.due(now), None, "one attempt at a time");
        repair.succeeded(now);
        assert!(repair.is_under_way());
        assert_eq!(repair.due(now), Some(Step::Rejoin));
        repair.succeeded(now);
        assert!(!repair.is_under_way());

        failing.failed(Step::Resume, "no", now);
        assert_eq!(failing.due(now + LONGEST_WAIT), Some(Step::Rejoin));
    }

    #[test]
    fn without_media_patience_is_another() {
        let short = Duration::from_secs(20);
        let start = crate::clock::now();
        let mut repair = Repair::new(PATIENCE, short, start);
        assert_eq!(repair.wake(), Some(start + short), "it has to come for a first time");
        repair.media_came();
        assert_eq!((repair.wake(), repair.exhausted(start + PATIENCE)), (None, None));
        repair.need(Step::Resume, "cut", start);
        repair.due(start);
        assert_eq!(repair.exhausted(start + short * 2), None, "media comes");
        let left = start + short;
        repair.media_left(left);
        repair.media_left(left + short / 2);
        assert_eq!(repair.wake(), Some(left + short));
        assert_eq!(repair.exhausted(left + short), Some(("cut", short)));
        // A session that begins is no media yet.
        repair.succeeded(left);
        assert_eq!(repair.exhausted(left + short), Some(("cut", short)));
        repair.media_came();
        assert_eq!(repair.exhausted(left + short), None);
    }
}
