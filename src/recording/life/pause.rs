//! When a recording is paused, by whom, and what that makes of its files. Pure: time is an argument.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::time::{ClockTime, MediaTime};

/// What the files have where a recording was paused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PausePolicy {
    /// Digital silence as long as the pause: what follows keeps its time. The default.
    #[default]
    Silence,
    /// Nothing: what follows moves up, and the manifest says by how much.
    Skip,
}

impl FromStr for PausePolicy {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "silence" => Ok(Self::Silence),
            "skip" => Ok(Self::Skip),
            _ => {
                Err(ConfigError::Invalid { key: "pause_policy", why: format!("{word:?} is neither silence nor skip") })
            }
        }
    }
}

/// An order to pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseOrder {
    /// Who gives it, for the manifest.
    pub by: String,
    /// Why, for the manifest.
    pub reason: String,
    /// What the files are to have there. Default: as configured.
    pub policy: Option<PausePolicy>,
    /// After how long the recording goes on by itself. Default: not before it is told to.
    pub resume_after: Option<Duration>,
}

/// One pause: the stretch `[from, to)` of the timeline of which nothing was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseEntry {
    /// First sample.
    pub from_sample: MediaTime,
    /// One past the last; none while it lasts, and where it lasted to the end.
    pub to_sample: Option<MediaTime>,
    /// What the files have there.
    pub policy: PausePolicy,
    /// What is not in the files at all, for [`PausePolicy::Skip`]: first sample and one past the last, none while it lasts, by
    /// the call's time. Whole slots of 20 ms, so a few of them are left as silence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<(MediaTime, Option<MediaTime>)>,
    /// Who paused it.
    pub by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Who let it go on; empty where nobody did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resumed_by: String,
}

/// So many pauses are told apart; beyond them a pause lasts to the end.
const MOST: usize = 1_000;

/// So many characters of what somebody says are kept.
const WORDS: usize = 200;

/// Who ends a pause that ends by itself.
const BY_ITSELF: &str = "the time set for it";

/// All pauses of a recording.
#[derive(Clone, Debug, Default)]
pub struct Pauses {
    entries: Vec<PauseEntry>,
    ends_at: Option<ClockTime>,
}

impl Pauses {
    /// Goes on with those that an earlier process knew. A pause that lasted lasts on; when it was to end by itself is told by
    /// `ends_at`.
    pub fn going_on(entries: Vec<PauseEntry>, ends_at: Option<ClockTime>) -> Self {
        Self { entries, ends_at }
    }

    /// Every pause so far.
    pub fn entries(&self) -> &[PauseEntry] {
        &self.entries
    }

    /// The pause that lasts, if one does.
    pub fn lasting(&self) -> Option<&PauseEntry> {
        self.entries.last().filter(|last| last.to_sample.is_none())
    }

    /// When the pause that lasts ends by itself.
    pub fn ends_at(&self) -> Option<ClockTime> {
        self.ends_at
    }

    /// Begins a pause at `at`; tells whether it did. Where one lasts already, the later end counts.
    pub fn begin(&mut self, order: &PauseOrder, policy: PausePolicy, at: ClockTime) -> bool {
        let ends_at = order.resume_after.map(|after| at + after);
        if self.lasting().is_some() {
            self.ends_at = self.ends_at.zip(ends_at).map(|(one, other)| one.max(other));
            return false;
        }
        // Before the last one ended there is nothing to pause.
        let from = self.entries.last().and_then(|last| last.to_sample).map_or(at.into(), |to| to.max(at.into()));
        self.ends_at = ends_at;
        self.entries.push(PauseEntry {
            from_sample: from,
            to_sample: None,
            policy: order.policy.unwrap_or(policy),
            removed: None,
            by: words(&order.by),
            reason: words(&order.reason),
            resumed_by: String::new(),
        });
        true
    }

    /// Ends the pause that lasts; tells whether there was one that may end.
    pub fn end(&mut self, by: &str, at: ClockTime) -> bool {
        if self.entries.len() > MOST {
            return false;
        }
        let Some(last) = self.entries.last_mut().filter(|last| last.to_sample.is_none()) else { return false };
        let to = MediaTime::from(at).max(last.from_sample);
        last.to_sample = Some(to);
        last.resumed_by = words(by);
        self.ends_at = None;
        true
    }

    /// What the files lack of a pause, by its number.
    pub fn removed(&mut self, number: usize, removed: Option<(MediaTime, Option<MediaTime>)>) {
        if let Some(entry) = self.entries.get_mut(number) {
            entry.removed = removed;
        }
    }

    /// Nothing is beyond `end`.
    pub fn end_with(&mut self, end: MediaTime) {
        for entry in &mut self.entries {
            let removed = entry.removed.map(|(from, to)| (from, to.map_or(end, |to| to.min(end))));
            entry.removed = removed.filter(|(from, to)| from < to).map(|(from, to)| (from, Some(to)));
        }
    }

    /// Ends the pause that lasts, if its time is over at `now`.
    pub fn end_in_time(&mut self, now: ClockTime) -> Option<ClockTime> {
        let at = self.ends_at.filter(|at| *at <= now)?;
        self.end(BY_ITSELF, at).then_some(at)
    }
}

fn words(said: &str) -> String {
    said.chars().take(WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> ClockTime {
        ClockTime::from_millis(millis)
    }

    fn order(by: &str, resume_after: Option<u64>) -> PauseOrder {
        PauseOrder { by: by.into(), resume_after: resume_after.map(Duration::from_millis), ..PauseOrder::default() }
    }

    #[test]
    fn a_pause_lasts_until_it_is_ended_and_tells_by_whom() {
        let mut pauses = Pauses::default();
        assert!(pauses.begin(&order("agent", None), PausePolicy::Silence, at(1_000)));
        assert!(!pauses.begin(&order("other", None), PausePolicy::Silence, at(1_500)), "it lasts already");
        assert_eq!(pauses.end_in_time(at(100_000)), None);
        assert!(pauses.end("agent", at(3_000)));
        assert!(!pauses.end("agent", at(3_100)));
        let [entry] = pauses.entries() else { panic!("one pause") };
        assert_eq!((entry.from_sample, entry.to_sample), (MediaTime(48_000), Some(MediaTime(144_000))));
        assert_eq!((entry.by.as_str(), entry.resumed_by.as_str(), entry.removed), ("agent", "agent", None));
    }

    #[test]
    fn of_two_orders_the_longer_pause_counts() {
        for (first, second, end) in [
            (Some(500), Some(900), Some(1_000)),
            (Some(500), None, None),
            (None, Some(5), None),
            (Some(900), Some(1), Some(900)),
        ] {
            let mut pauses = Pauses::default();
            pauses.begin(&order("a", first), PausePolicy::Silence, at(0));
            pauses.begin(&order("b", second), PausePolicy::Silence, at(100));
            assert_eq!(pauses.end_in_time(at(10_000)), end.map(at), "{first:?} {second:?}");
        }
    }

    #[test]
    fn pauses_without_number_end_in_one_that_lasts() {
        let mut pauses = Pauses::default();
        for i in 0..5_000 {
            pauses.begin(&order("a", None), PausePolicy::Silence, at(2 * i));
            pauses.end("a", at(2 * i + 1));
        }
        assert_eq!(pauses.entries().len(), MOST + 1);
        assert!(pauses.lasting().is_some());
    }

    #[test]
    fn long_words_are_cut() {
        let mut pauses = Pauses::default();
        pauses.begin(&order(&"ü".repeat(10_000), None), PausePolicy::Silence, at(0));
        assert_eq!(pauses.entries()[0].by.chars().count(), WORDS);
    }
}
