//! Stretches of the timeline in which something held: muted, connection down, recorder down, recording paused.

use std::collections::VecDeque;

use crate::time::MediaTime;

/// Stretches kept; where more come, the two oldest become one. They are forgotten as the timeline is settled, so this
/// bounds only what a publisher that toggles without end can make us remember.
const MAX_SPANS: usize = 256;

/// Half-open stretches in order, the last one possibly still open.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    spans: VecDeque<(MediaTime, MediaTime)>,
    open: Option<MediaTime>,
}

impl Spans {
    /// Begins a stretch, or ends the one that is open.
    pub fn set(&mut self, on: bool, at: MediaTime) {
        match (on, self.open) {
            (true, None) => self.open = Some(at),
            (false, Some(from)) => {
                self.open = None;
                self.add(from, at);
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Adds a closed stretch; one that begins before the last one ended is joined with it.
    pub fn add(&mut self, from: MediaTime, to: MediaTime) {
        if to <= from {
            return;
        }
        match self.spans.back_mut() {
            Some(last) if from <= last.1 => *last = (last.0.min(from), last.1.max(to)),
            _ => self.spans.push_back((from, to)),
        }
        if self.spans.len() > MAX_SPANS {
            let oldest = self.spans.pop_front();
            if let (Some((from, _)), Some(second)) = (oldest, self.spans.front_mut()) {
                second.0 = from;
            }
        }
    }

    /// Whether a stretch is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether `at` lies in a stretch, and up to where that answer holds.
    pub fn at(&self, at: MediaTime) -> (bool, MediaTime) {
        let open = self.open.map(|from| (from, MediaTime(i64::MAX)));
        for (from, to) in self.spans.iter().copied().chain(open) {
            if at < from {
                return (false, from);
            }
            if at < to {
                return (true, to);
            }
        }
        (false, MediaTime(i64::MAX))
    }

    /// Whether any of `[start, end)` lies in a stretch.
    pub fn touch(&self, start: MediaTime, end: MediaTime) -> bool {
        let (inside, until) = self.at(start);
        inside || until < end
    }

    /// Forgets what ended before `before`.
    pub fn forget(&mut self, before: MediaTime) {
        while self.spans.front().is_some_and(|span| span.1 <= before) {
            self.spans.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_answer_for_every_point() {
        let mut spans = Spans::default();
        spans.add(MediaTime(10), MediaTime(20));
        spans.set(true, MediaTime(30));
        assert_eq!(spans.at(MediaTime(0)), (false, MediaTime(10)));
        assert_eq!(spans.at(MediaTime(10)), (true, MediaTime(20)));
        assert_eq!(spans.at(MediaTime(20)), (false, MediaTime(30)));
        assert!(spans.at(MediaTime(1000)).0);
        spans.set(false, MediaTime(40));
        assert_eq!(spans.at(MediaTime(40)), (false, MediaTime(i64::MAX)));
        assert!(spans.touch(MediaTime(0), MediaTime(11)) && !spans.touch(MediaTime(20), MediaTime(30)));
        spans.forget(MediaTime(20));
        assert_eq!(spans.at(MediaTime(15)), (false, MediaTime(30)));
    }

    #[test]
    fn endless_toggling_is_bounded() {
        let mut spans = Spans::default();
        for i in 0..10_000 {
            spans.add(MediaTime(i * 10), MediaTime(i * 10 + 5));
        }
        assert!(spans.spans.len() <= MAX_SPANS);
    }
}
