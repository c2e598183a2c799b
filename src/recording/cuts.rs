//! The time of the files, which lacks what was skipped, against the time of the call. Pure.

use crate::capture::{Content, Settled};
use crate::time::{MediaTime, SLOT};

use super::life::PauseEntry;

/// What is not in the files, in order. Whole slots, so that both times have the same ones.
#[derive(Clone, Debug, Default)]
pub struct Cuts {
    done: Vec<(MediaTime, MediaTime)>,
    /// Where the one begins that lasts.
    open: Option<MediaTime>,
}

impl Cuts {
    /// The cuts of these pauses.
    pub fn of(pauses: &[PauseEntry]) -> Self {
        let mut cuts = Self::default();
        for (from, to) in pauses.iter().filter_map(|pause| pause.removed) {
            match to {
                Some(to) => cuts.done.push((from, to)),
                None => cuts.open = Some(from),
            }
        }
        cuts
    }

    /// Whether both times are the same.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.open.is_none()
    }

    /// A cut begins, unless one lasts; gives where. The files have everything up to `reached` already.
    pub fn begin(&mut self, from: MediaTime, reached: MediaTime) -> MediaTime {
        *self.open.get_or_insert_with(|| slots_up(from.max(reached)))
    }

    /// The cut that lasts ends; gives what it is, where it is anything.
    pub fn end(&mut self, to: MediaTime) -> Option<(MediaTime, MediaTime)> {
        let from = self.open.take()?;
        let to = slots_down(to);
        if from >= to {
            return None;
        }
        self.done.push((from, to));
        Some((from, to))
    }

    /// Where a moment of the call is in the files; where it is in a cut, that is the cut's place.
    pub fn to_file(&self, at: MediaTime) -> MediaTime {
        let gone = self.all().take_while(|(from, _)| *from < at).map(|(from, to)| to.min(at).0 - from.0).sum::<i64>();
        MediaTime(at.0 - gone)
    }

    /// When in the call a place of the files was; of a cut's place, when the cut began.
    pub fn to_call(&self, at: MediaTime) -> MediaTime {
        let mut call = at.0;
        for (from, to) in &self.done {
            if call <= from.0 {
                break;
            }
            call += to.0 - from.0;
        }
        MediaTime(call)
    }

    /// The stretches of the call that `[from, to)` of the files is made of.
    pub fn in_call(&self, from: MediaTime, to: MediaTime) -> Vec<(MediaTime, MediaTime)> {
        let (mut start, mut left) = (from, to.0 - from.0);
        for (cut, end) in &self.done {
            if start >= *cut {
                start = MediaTime(start.0 + end.0 - cut.0);
            }
        }
        let mut stretches = Vec::new();
        for (cut, end) in &self.done {
            if *cut <= start {
                continue;
            }
            let length = cut.0 - start.0;
            if length >= left {
                break;
            }
            stretches.push((start, *cut));
            (start, left) = (*end, left - length);
        }
        stretches.push((start, MediaTime(start.0 + left)));
        stretches
    }

    /// What of a stretch goes into the files, by their time.
    pub fn keep(&self, stretch: &Settled, mut push: impl FnMut(&Settled)) {
        let (start, end) = (self.to_file(stretch.start), self.to_file(stretch.end));
        let whole = end.0 - start.0 == stretch.end.0 - stretch.start.0;
        // Nothing but silence touches a cut.
        if whole || matches!(stretch.content, Content::Silence(_)) && end > start {
            push(&Settled { start, end, ..stretch.clone() });
        }
    }

    fn all(&self) -> impl Iterator<Item = (MediaTime, MediaTime)> {
        let open = self.open.map(|from| (from, MediaTime(i64::MAX)));
        self.done.iter().copied().chain(open)
    }
}

fn slots_down(at: MediaTime) -> MediaTime {
    let slot = SLOT as i64;
    MediaTime(at.0.div_euclid(slot) * slot)
}

/// The first boundary of slots at or after `at`.
fn slots_up(at: MediaTime) -> MediaTime {
    slots_down(MediaTime(at.0.saturating_add(SLOT as i64 - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::TrackKey;
    use crate::capture::Silence;

    fn cuts() -> Cuts {
        let mut cuts = Cuts::default();
        assert_eq!(cuts.begin(MediaTime(950), MediaTime(900)), MediaTime(960));
        assert_eq!(cuts.end(MediaTime(2_881)), Some((MediaTime(960), MediaTime(2_880))));
        assert_eq!(cuts.begin(MediaTime(9_000), MediaTime(9_500)), MediaTime(9_600));
        assert_eq!(cuts.end(MediaTime(19_200)), Some((MediaTime(9_600), MediaTime(19_200))));
        cuts
    }

    #[test]
    fn both_times_meet_outside_of_the_cuts() {
        let cuts = cuts();
        for (call, file) in [
            (0, 0),
            (960, 960),
            (1_000, 960),
            (2_880, 960),
            (2_881, 961),
            (9_600, 7_680),
            (15_000, 7_680),
            (20_000, 8_480),
        ] {
            assert_eq!(cuts.to_file(MediaTime(call)), MediaTime(file), "{call}");
        }
        for (file, call) in [(0, 0), (960, 960), (961, 2_881), (7_680, 9_600), (8_480, 20_000)] {
            assert_eq!(cuts.to_call(MediaTime(file)), MediaTime(call), "{file}");
        }
    }

    #[test]
    fn a_cut_that_lasts_lets_nothing_pass() {
        let mut cuts = Cuts::default();
        cuts.begin(MediaTime(961), MediaTime(0));
        assert_eq!(cuts.to_file(MediaTime(1_000_000)), MediaTime(1_920));
        assert_eq!(cuts.end(MediaTime(1_000)), None);
        assert!(cuts.is_empty(), "it was less than a slot");
    }

    #[test]
    fn a_stretch_over_a_cut_was_two_in_the_call() {
        let cuts = cuts();
        let stretches = |from, to| cuts.in_call(MediaTime(from), MediaTime(to));
        assert_eq!(stretches(0, 500), [(MediaTime(0), MediaTime(500))]);
        assert_eq!(stretches(500, 1_000), [(MediaTime(500), MediaTime(960)), (MediaTime(2_880), MediaTime(2_920))]);
        assert_eq!(stretches(960, 1_000), [(MediaTime(2_880), MediaTime(2_920))]);
        assert_eq!(stretches(7_000, 8_000).len(), 2);
        assert_eq!(stretches(8_000, 8_480), [(MediaTime(19_520), MediaTime(20_000))]);
    }

    #[test]
    fn what_touches_a_cut_is_shortened_and_all_that_is_kept_meets() {
        let (cuts, mut kept) = (cuts(), Vec::new());
        for (start, end) in [(0, 800), (800, 1_500), (1_500, 2_000), (2_000, 3_000), (3_000, 25_000)] {
            let content = Content::Silence(Silence::Dtx);
            let stretch = Settled { track: TrackKey(1), start: MediaTime(start), end: MediaTime(end), content };
            cuts.keep(&stretch, |kept_one| kept.push((kept_one.start.0, kept_one.end.0)));
        }
        assert_eq!(kept, [(0, 800), (800, 960), (960, 1_080), (1_080, 13_480)]);
    }
}
