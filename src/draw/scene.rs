//! What there is to be drawn.

use std::ops::Range;

use super::DrawError;
use crate::analysis::Waveform;
use crate::time::{SAMPLE_RATE, SampleCount};

/// A recording as it is to be seen. All times are those of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scene {
    /// How long it is; what lies beyond is not drawn.
    pub length: SampleCount,
    /// From top to bottom. Those for which there is no room are counted in the picture.
    pub lanes: Vec<Lane>,
    /// When it was paused; a pause that was cut out is a sample long.
    pub paused: Vec<Range<SampleCount>>,
    /// What stands above it, cut to the room there is.
    pub title: Option<String>,
}

/// One speaker, one channel, or all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lane {
    /// Who or what it is; none where that is not to be told.
    pub label: Option<String>,
    /// How loud it is; none where that is not known, and only speech is drawn.
    pub wave: Option<Wave>,
    /// When they spoke, in any order.
    pub speech: Vec<Range<SampleCount>>,
    /// What is missing, in any order.
    pub lost: Vec<Range<SampleCount>>,
}

/// The lowest and highest sample of each piece of a channel, full scale ±1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wave {
    /// How long a piece is; the last may be shorter.
    pub step: SampleCount,
    /// Lowest and highest, piece by piece from sample 0 on. It is silent where there are none.
    pub ranges: Vec<(f32, f32)>,
}

impl Wave {
    /// One channel of a waveform.
    ///
    /// # Errors
    /// [`DrawError::Waveform`] where it has no such channel, another sample rate, or fewer values than it should.
    pub fn of(waveform: &Waveform, channel: usize) -> Result<Self, DrawError> {
        let channels = waveform.channels as usize;
        if channel >= channels {
            return Err(DrawError::Waveform("no such channel"));
        }
        if waveform.sample_rate != SAMPLE_RATE || waveform.samples_per_pixel == 0 || waveform.bits != 8 {
            return Err(DrawError::Waveform("not 8 bits at 48 kHz"));
        }
        let values = u128::from(waveform.length) * u128::from(waveform.channels) * 2;
        if values != waveform.data.len() as u128 {
            return Err(DrawError::Waveform("more or fewer values than pixels"));
        }
        let pixels = waveform.data.chunks_exact(2).skip(channel).step_by(channels);
        Ok(Self {
            step: SampleCount(waveform.samples_per_pixel.into()),
            ranges: pixels.map(|pixel| (f32::from(pixel[0]) / 128.0, f32::from(pixel[1]) / 128.0)).collect(),
        })
    }

    /// The lowest and highest of each of `count` columns of equal length that make up `length`.
    pub(super) fn columns(&self, length: SampleCount, count: usize) -> Vec<(f32, f32)> {
        let (step, length) = (u128::from(self.step.0.max(1)), u128::from(length.0));
        let edge = |column: usize| length * column as u128 / count as u128;
        let column = |n: usize| {
            let (from, to) = (edge(n), edge(n + 1).max(edge(n) + 1));
            // What does not fit is more than there is.
            let index = |at: u128| usize::try_from(at).unwrap_or(usize::MAX).min(self.ranges.len());
            extremes(&self.ranges[index(from / step)..index(to.div_ceil(step))])
        };
        (0..count).map(column).collect()
    }

    /// How far it goes from the middle at most.
    pub(super) fn highest(&self) -> f32 {
        let (low, high) = extremes(&self.ranges);
        high.max(-low)
    }
}

/// The lowest and highest of all; silence where there are none. What is no number does not count.
fn extremes(ranges: &[(f32, f32)]) -> (f32, f32) {
    let widen = |(low, high): (f32, f32), range: &(f32, f32)| (low.min(range.0), high.max(range.1));
    let (low, high) = ranges.iter().fold((f32::INFINITY, f32::NEG_INFINITY), widen);
    if low <= high { (low.clamp(-1.0, 1.0), high.clamp(-1.0, 1.0)) } else { (0.0, 0.0) }
}

/// The pixels `[from, to)` of `width` that `spans` of a recording of `length` touch: in order, each apart from the next and
/// at least `least` wide.
pub(super) fn columns_of(spans: &[Range<SampleCount>], length: SampleCount, width: i32, least: i32) -> Vec<Range<i32>> {
    let (total, pixels) = (u128::from(length.0), width as u128);
    let touched = spans.iter().filter_map(|span| {
        let (from, to) = (span.start.0.min(length.0), span.end.0.min(length.0));
        let low = (u128::from(from) * pixels).checked_div(total)? as i32;
        let high = (u128::from(to) * pixels).div_ceil(total) as i32;
        // One at the very end grows to the left.
        let high = high.max(low + least).min(width);
        (from < to).then(|| low.min(high - least).max(0)..high)
    });
    let mut columns: Vec<Range<i32>> = touched.collect();
    columns.sort_unstable_by_key(|column| (column.start, column.end));
    columns.dedup_by(|next, last| {
        let joins = next.start <= last.end;
        if joins {
            last.end = last.end.max(next.end);
        }
        joins
    });
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Peaks;
    use proptest::prelude::*;

    fn span(from: u64, to: u64) -> Range<SampleCount> {
        SampleCount(from)..SampleCount(to)
    }

    #[test]
    fn a_channel_of_a_waveform_is_a_wave() {
        let mut peaks = Peaks::new(2);
        peaks.push(&[[0.5, -0.25]; 960].concat());
        let waveform = peaks.finish(SampleCount(960));
        let wave = Wave::of(&waveform, 1).unwrap();
        assert_eq!((wave.step, wave.ranges), (SampleCount(480), vec![(-0.25, -0.25); 2]));
        assert!(Wave::of(&waveform, 2).is_err());
        for broken in [
            Waveform { length: 3, ..waveform.clone() },
            Waveform { samples_per_pixel: 0, ..waveform.clone() },
            Waveform { sample_rate: 8_000, ..waveform.clone() },
            Waveform { channels: u32::MAX, length: u32::MAX, ..waveform },
        ] {
            assert!(Wave::of(&broken, 0).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_column_has_the_extremes_of_all_it_touches() {
        let wave = Wave { step: SampleCount(10), ranges: vec![(-0.1, 0.2), (-0.3, 0.1), (f32::NAN, 9.0), (0.1, 0.1)] };
        assert_eq!(wave.columns(SampleCount(40), 4)[..2], [(-0.1, 0.2), (-0.3, 0.1)]);
        assert_eq!(wave.columns(SampleCount(40), 2), [(-0.3, 0.2), (0.1, 1.0)]);
        assert_eq!(wave.columns(SampleCount(80), 2)[1], (0.0, 0.0), "silent beyond its end");
        assert_eq!(wave.columns(SampleCount(0), 3), [(-0.1, 0.2); 3]);
        assert_eq!(Wave::default().columns(SampleCount(u64::MAX), 2), [(0.0, 0.0); 2]);
    }

    #[test]
    fn a_short_span_is_seen_and_one_beyond_the_end_is_not() {
        let columns = |from, to, length, least| {
            let columns = columns_of(&[span(from, to)], SampleCount(length), 100, least);
            columns.first().map(|column| (column.start, column.end))
        };
        assert_eq!(columns(500_000, 500_001, 1_000_000, 2), Some((50, 52)));
        assert_eq!(columns(999_999, u64::MAX, 1_000_000, 3), Some((97, 100)));
        assert_eq!(columns(1_000_000, 2_000_000, 1_000_000, 1), None);
        assert_eq!(columns(7, 7, 1_000_000, 1), None);
        assert_eq!(columns(0, 1, 0, 1), None);
    }

    proptest! {
        #[test]
        fn columns_are_in_order_apart_and_inside(
            spans in prop::collection::vec((any::<u64>(), any::<u64>()), 0..50),
            length in any::<u64>(), width in 1..4096, least in 1..4,
        ) {
            let spans: Vec<_> = spans.into_iter().map(|(a, b)| span(a.min(b), a.max(b))).collect();
            let columns = columns_of(&spans, SampleCount(length), width, least);
            prop_assert!(columns.iter().all(|column| 0 <= column.start && column.start < column.end && column.end <= width));
            prop_assert!(columns.windows(2).all(|pair| pair[0].end < pair[1].start));
        }
    }
}
