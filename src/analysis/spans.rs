//! Stretches of speech: joined over pauses, bounded in number.

use crate::time::{MediaTime, SampleCount};

/// Spans are joined over longer and longer pauses rather than become more than this.
pub const MAX_SPANS: usize = 4096;

/// A half-open stretch `[from, to)` of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First sample.
    pub from: MediaTime,
    /// One past the last sample.
    pub to: MediaTime,
}

impl Span {
    /// How long it is.
    pub fn len(&self) -> SampleCount {
        self.to.since(self.from)
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.to <= self.from
    }

    /// The part of it before `end`, if there is any.
    pub fn before(self, end: MediaTime) -> Option<Self> {
        Some(Self { to: self.to.min(end), ..self }).filter(|span| !span.is_empty())
    }
}

/// Spans that come in order, at most [`MAX_SPANS`] of them.
#[derive(Clone, Debug)]
pub struct Spans {
    spans: Vec<Span>,
    /// Pauses up to this are part of speech.
    breath: SampleCount,
    /// Pauses shorter than this part nothing.
    pause: SampleCount,
    /// Longer pauses than a breath within spans.
    surplus: SampleCount,
}

impl Spans {
    /// No span yet; pauses shorter than `breath` do not part two.
    pub fn new(breath: SampleCount) -> Self {
        Self { spans: Vec::new(), breath, pause: breath, surplus: SampleCount::ZERO }
    }

    /// Takes the next span, which begins no earlier than the last one.
    pub fn push(&mut self, span: Span) {
        if span.is_empty() {
            return;
        }
        if let Some(last) = self.spans.last_mut() {
            let gap = span.from.since(last.to);
            if gap < self.pause {
                last.to = last.to.max(span.to);
                if gap >= self.breath {
                    self.surplus += gap;
                }
                return;
            }
        }
        if self.spans.len() == MAX_SPANS {
            let before = total(&self.spans);
            // Half of the room is left, so that this stays rare.
            self.pause = coarsen(&mut self.spans, MAX_SPANS / 2, self.pause);
            self.surplus += SampleCount(total(&self.spans).0 - before.0);
        }
        self.spans.push(span);
    }

    /// The spans, in order.
    pub fn get(&self) -> &[Span] {
        &self.spans
    }

    /// How much of the spans are pauses longer than a breath, over which they had to be joined.
    pub fn surplus(&self) -> SampleCount {
        self.surplus
    }
}

/// The length of all spans together.
pub fn total(spans: &[Span]) -> SampleCount {
    SampleCount(spans.iter().map(|span| span.len().0).sum())
}

/// The union of spans in any order: in order, each apart from the next.
pub fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    join(&mut spans, SampleCount(1));
    spans
}

/// Joins spans that are in order over longer and longer pauses until there are at most `most`, which is at least 1.
/// Gives the pause that parts nothing any more.
pub fn coarsen(spans: &mut Vec<Span>, most: usize, pause: SampleCount) -> SampleCount {
    let mut pause = pause.max(SampleCount::from_millis(100));
    while spans.len() > most.max(1) {
        pause = SampleCount(pause.0.saturating_mul(2));
        join(spans, pause);
    }
    pause
}

fn join(spans: &mut Vec<Span>, pause: SampleCount) {
    spans.dedup_by(|next, last| {
        let joins = next.from.since(last.to) < pause;
        if joins {
            last.to = last.to.max(next.to);
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 48_000;

    fn span(from: i64, to: i64) -> Span {
        Span { from: MediaTime(from), to: MediaTime(to) }
    }

    #[test]
    fn a_breath_parts_nothing_and_a_pause_does() {
        let mut spans = Spans::new(SampleCount(100));
        for (from, to) in [(0, 10), (109, 120), (220, 230), (230, 230), (225, 240)] {
            spans.push(span(from, to));
        }
        assert_eq!(spans.get(), [span(0, 120), span(220, 240)]);
        assert_eq!(spans.surplus(), SampleCount::ZERO);
    }

    #[test]
    fn a_day_of_short_words_stays_bounded_and_its_speech_is_still_known() {
        let mut spans = Spans::new(SampleCount::from_millis(500));
        // A second of speech every three.
        let words = 24 * 3600 / 3;
        (0..words).for_each(|n| spans.push(span(3 * n * SECOND, (3 * n + 1) * SECOND)));
        assert!(spans.get().len() <= MAX_SPANS, "{}", spans.get().len());
        assert_eq!(total(spans.get()).0 - spans.surplus().0, words as u64 * SECOND as u64);
        assert_eq!(spans.get().last().unwrap().to, MediaTime((3 * (words - 1) + 1) * SECOND));
        assert!(spans.get().windows(2).all(|pair| pair[0].to < pair[1].from));
    }

    #[test]
    fn a_union_counts_nothing_twice() {
        let spans = union(vec![span(50, 60), span(0, 10), span(5, 20), span(6, 7), span(20, 30)]);
        assert_eq!(spans, [span(0, 30), span(50, 60)]);
        assert_eq!(total(&spans), SampleCount(40));
        let mut one = spans;
        coarsen(&mut one, 1, SampleCount(1));
        assert_eq!(one, [span(0, 60)]);
    }
}
