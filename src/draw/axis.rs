//! Where the ticks of an axis are, and what stands at them.

use crate::time::{SAMPLE_RATE, SampleCount};

/// A tick `at` so many pixels from the axis's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tick {
    pub at: i32,
    pub label: String,
}

/// Steps between ticks, in hundredths of a second. Whatever is longer than a day is doubled days.
const STEPS: [u64; 22] = [
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 1_500, 3_000, 6_000, 12_000, 30_000, 60_000, 90_000, 180_000, 360_000,
    720_000, 1_800_000, 4_320_000,
];
const DAY: u64 = 8_640_000;
const HUNDREDTH: u64 = SAMPLE_RATE as u64 / 100;

/// Ticks of a recording of `length` on `width` pixels, each with room for its label and `gap` pixels more, where a letter
/// is `letter` pixels wide. There is always one at 0.
pub(super) fn time_ticks(length: SampleCount, width: i32, letter: i32, gap: i32) -> Vec<Tick> {
    let hundredths = length.0 / HUNDREDTH;
    let pixels = |at: u64| (u128::from(at) * u128::from(HUNDREDTH) * width as u128) / u128::from(length.0.max(1));
    let fits = |step: &u64| {
        let room = time(hundredths, *step).len() as i32 * letter + gap;
        pixels(*step) >= room as u128
    };
    let days = std::iter::successors(Some(DAY), |days| days.checked_mul(2));
    let step = STEPS.into_iter().chain(days).find(fits).unwrap_or(u64::MAX);
    let at = (0..=hundredths / step).map(|n| n * step);
    at.map(|at| Tick { at: pixels(at) as i32, label: time(at, step) }).collect()
}

/// A length for people: h:mm:ss or m:ss.
pub(super) fn length(length: SampleCount) -> String {
    time(length.0 / HUNDREDTH, 100)
}

/// `at` as h:mm:ss or m:ss, with as many decimals as `step` needs; both in hundredths of a second.
fn time(at: u64, step: u64) -> String {
    let (seconds, hundredths) = (at / 100, at % 100);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let decimals = match () {
        () if step.is_multiple_of(100) => String::new(),
        () if step.is_multiple_of(10) => format!(".{}", hundredths / 10),
        () => format!(".{hundredths:02}"),
    };
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}{decimals}")
    } else {
        format!("{minutes}:{seconds:02}{decimals}")
    }
}

/// Ticks of the frequencies from 0 to `top` Hz on `height` pixels, at least `gap` apart, from the bottom up.
pub(super) fn frequency_ticks(top: u32, height: i32, gap: i32) -> Vec<Tick> {
    let (top, height) = (u64::from(top.max(1)), height as u64);
    let steps = [100, 200, 500, 1_000, 2_000, 5_000, 10_000];
    let Some(step) = steps.into_iter().find(|step| step * height / top >= gap as u64) else { return Vec::new() };
    let label = |hertz: u64| match hertz {
        0 => "0".to_owned(),
        _ if hertz.is_multiple_of(1_000) => format!("{}k", hertz / 1_000),
        _ if hertz > 1_000 => format!("{}.{}k", hertz / 1_000, hertz % 1_000 / 100),
        _ => hertz.to_string(),
    };
    (0..=top / step).map(|n| n * step).map(|at| Tick { at: (at * height / top) as i32, label: label(at) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = SAMPLE_RATE as u64;

    fn labels(samples: u64, width: i32) -> Vec<String> {
        time_ticks(SampleCount(samples), width, 6, 24).into_iter().map(|tick| tick.label).collect()
    }

    #[test]
    fn ticks_are_round_times() {
        assert_eq!(labels(30 * SECOND, 600), ["0:00", "0:05", "0:10", "0:15", "0:20", "0:25", "0:30"]);
        assert_eq!(labels(SECOND / 2, 400), ["0:00.0", "0:00.1", "0:00.2", "0:00.3", "0:00.4", "0:00.5"]);
        let five_hours = labels(5 * 3600 * SECOND, 1000);
        assert_eq!((five_hours[1].as_str(), five_hours.last().unwrap().as_str()), ("30:00", "5:00:00"));
        assert_eq!(labels(SECOND / 20, 400), ["0:00.00", "0:00.01", "0:00.02", "0:00.03", "0:00.04", "0:00.05"]);
    }

    #[test]
    fn every_length_has_ticks_that_do_not_touch() {
        for length in [0, 1, 479, 480, SECOND, 61 * SECOND, 3600 * SECOND, 86_400 * SECOND * 400, u64::MAX] {
            for width in [1, 40, 640, 4096] {
                let ticks = time_ticks(SampleCount(length), width, 6, 10);
                assert_eq!(ticks[0].at, 0, "{length} on {width}");
                for pair in ticks.windows(2) {
                    assert!(pair[1].at - pair[0].at >= 6 * pair[1].label.len() as i32, "{length} on {width}: {pair:?}");
                }
                assert!(ticks.iter().all(|tick| (0..=width).contains(&tick.at)), "{length} on {width}");
            }
        }
    }

    #[test]
    fn frequencies_have_round_ticks() {
        let ticks = |top, height| -> Vec<_> {
            frequency_ticks(top, height, 20).into_iter().map(|tick| (tick.at, tick.label)).collect()
        };
        assert_eq!(
            ticks(4_000, 100),
            [(0, "0".into()), (25, "1k".into()), (50, "2k".into()), (75, "3k".into()), (100, "4k".into())]
        );
        assert_eq!(ticks(1_000, 100)[1], (20, "200".into()));
        assert_eq!(ticks(4_000, 200)[3], (75, "1.5k".into()));
        assert_eq!(ticks(24_000, 10), []);
    }
}
