//! Which rooms are being looked at, and which are not to be recorded again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How many rooms are remembered whose recording somebody ended.
const REMEMBERED: usize = 4_096;

/// The first and the longest time for which a room is left alone whose recording failed.
const AGAIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

#[derive(Debug, Default)]
struct Known {
    /// By name; whether to look once more, and then whether for news.
    looking: BTreeMap<String, Option<bool>>,
    /// Rooms (`RM_…`) whose recording was ended by word.
    ended: VecDeque<String>,
    /// Rooms that could not be recorded.
    refused: VecDeque<String>,
    /// Rooms that were recorded before.
    recorded: VecDeque<String>,
    /// Rooms whose recordings failed: how often, and until when they are left alone.
    failed: BTreeMap<String, (u32, Instant)>,
}

/// Rooms as the supervisor remembers them.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    known: Mutex<Known>,
}

impl Rooms {
    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to look at a room. False where that is going on; then it goes on once more, for news if anybody has some.
    pub fn begin(&self, name: &str, is_news: bool) -> bool {
        let mut known = self.known();
        match known.looking.get_mut(name) {
            Some(again) => {
                *again = Some(is_news || *again == Some(true));
                false
            }
            None => known.looking.insert(name.to_owned(), None).is_none(),
        }
    }

    /// Whether to look once more, and whether for news; else the look is over.
    pub fn again(&self, name: &str) -> Option<bool> {
        let mut known = self.known();
        let again = known.looking.get_mut(name).and_then(Option::take);
        if again.is_none() {
            known.looking.remove(name);
        }
        again
    }

    /// Somebody ended the recording of the room with this id: rules do not begin another.
    pub fn end_by_word(&self, sid: &str) {
        if sid.is_empty() {
            return;
        }
        remember(&mut self.known().ended, sid);
    }

    /// A room cannot be recorded. Gives whether that is new.
    pub fn refuse(&self, sid: &str) -> bool {
        let refused = &mut self.known().refused;
        if refused.iter().any(|known| known == sid) {
            return false;
        }
        remember(refused, sid);
        true
    }

    /// That a room cannot be recorded is known to nobody else yet.
    pub fn forget_refusal(&self, sid: &str) {
        self.known().refused.retain(|known| known != sid);
    }

    /// Whether somebody did.
    pub fn was_ended_by_word(&self, sid: &str) -> bool {
        self.known().ended.iter().any(|ended| ended == sid)
    }

    /// A room was recorded.
    pub fn recorded(&self, sid: &str) {
        if !self.was_recorded(sid) {
            remember(&mut self.known().recorded, sid);
        }
    }

    /// Whether it was.
    pub fn was_recorded(&self, sid: &str) -> bool {
        self.known().recorded.iter().any(|recorded| recorded == sid)
    }

    /// The recording of a room failed: it is left alone for a while, longer each time.
    pub fn failed(&self, sid: &str, now: Instant) {
        let failed = &mut self.known().failed;
        if failed.len() >= REMEMBERED {
            failed.retain(|_, (_, until)| *until > now);
        }
        let (times, until) = failed.entry(sid.to_owned()).or_insert((0, now));
        *times += 1;
        *until = now + AGAIN.0.saturating_mul(1 << (*times - 1).min(10)).min(AGAIN.1);
    }

    /// Whether it is left alone.
    pub fn is_left_alone(&self, sid: &str, now: Instant) -> bool {
        self.known().failed.get(sid).is_some_and(|(_, until)| *until > now)
    }

    /// The room is gone for good.
    pub fn forget(&self, sid: &str) {
        let mut known = self.known();
        known.ended.retain(|ended| ended != sid);
        known.refused.retain(|refused| refused != sid);
        known.recorded.retain(|recorded| recorded != sid);
        known.failed.remove(sid);
    }
}

fn remember(rooms: &mut VecDeque<String>, sid: &str) {
    if rooms.len() == REMEMBERED {
        rooms.pop_front();
    }
    rooms.push_back(sid.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_look_at_a_time_and_one_more_for_all_who_came_meanwhile() {
        let rooms = Rooms::default();
        assert!(
            rooms.begin("a", false) && !rooms.begin("a", true) && !rooms.begin("a", false) && rooms.begin("b", true)
        );
        assert_eq!((rooms.again("a"), rooms.again("a")), (Some(true), None), "news stay news");
        assert!(rooms.begin("a", true) && !rooms.begin("a", false), "the look was over");
        assert_eq!(rooms.again("a"), Some(false));
    }

    #[test]
    fn a_room_whose_recording_fails_is_left_alone_for_longer_each_time() {
        let (rooms, now) = (Rooms::default(), crate::clock::now());
        rooms.failed("RM_1", now);
        assert!(rooms.is_left_alone("RM_1", now) && !rooms.is_left_alone("RM_1", now + AGAIN.0));
        assert!(!rooms.is_left_alone("RM_2", now));
        (0..40).for_each(|_| rooms.failed("RM_1", now));
        assert!(rooms.is_left_alone("RM_1", now + AGAIN.1 - AGAIN.0) && !rooms.is_left_alone("RM_1", now + AGAIN.1));
        rooms.forget("RM_1");
        assert!(!rooms.is_left_alone("RM_1", now));
        rooms.recorded("RM_1");
        assert!(rooms.was_recorded("RM_1") && !rooms.was_recorded("RM_2"));
    }

    #[test]
    fn what_was_ended_by_word_stays_ended_until_the_room_is_gone() {
        let rooms = Rooms::default();
        rooms.end_by_word("");
        rooms.end_by_word("RM_1");
        assert!(rooms.was_ended_by_word("RM_1") && !rooms.was_ended_by_word(""));
        rooms.forget("RM_1");
        assert!(!rooms.was_ended_by_word("RM_1"));
        assert!(rooms.refuse("RM_2") && !rooms.refuse("RM_2"));
        rooms.forget("RM_2");
        assert!(rooms.refuse("RM_2"));
        for n in 0..=REMEMBERED {
            rooms.end_by_word(&n.to_string());
        }
        assert!(!rooms.was_ended_by_word("0") && rooms.was_ended_by_word("1"));
    }
}
