//! What is in a recording: where a known sound lies, how loud which part is, who is silent when.
//!
//! Everything works on one channel of 48 kHz samples; offsets and spans are in samples, levels in dBFS, where 0 dBFS is
//! the level of a full-scale square wave (a full-scale sine has −3 dBFS).

use std::ops::Range;

use realfft::RealFftPlanner;

/// Silence, in dBFS: what digital zero is said to have.
pub const SILENCE: f64 = -120.0;

/// Where a sound was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Sample of the recording at which the sound's first sample lies; negative where the sound began earlier.
    pub offset: i64,
    /// How alike the two are there: the normalised correlation, from 0 to 1, where 1 is the same shape at any level.
    /// Speech that went through Opus scores above 0.8, unrelated speech below 0.3.
    pub score: f64,
}

/// Finds `sound` in `recording` by cross-correlation, at any level. At least half of the sound's energy has to lie
/// within the recording.
///
/// Cut long sounds into pieces of a few seconds: over minutes, clock drift smears the peak.
///
/// Returns `None` where either is empty or silent.
pub fn find(sound: &[f32], recording: &[f32]) -> Option<Found> {
    let (sound_energy, recording_energy) = (Energy::of(sound), Energy::of(recording));
    let whole = sound_energy.total();
    if whole <= 0.0 || recording_energy.total() <= 0.0 {
        return None;
    }
    let correlation = correlate(sound, recording)?;
    // Stretches far below the sound's level are no match, however alike their noise.
    let floor = whole * 1e-4;
    let score = |(index, value): (usize, &f64)| {
        let offset = index as i64 - (sound.len() as i64 - 1);
        let in_sound = overlap(-offset, recording.len(), sound.len());
        let in_recording = overlap(offset, sound.len(), recording.len());
        let of_sound = sound_energy.within(in_sound);
        if of_sound < whole / 2.0 {
            return Found { offset, score: 0.0 };
        }
        let of_recording = recording_energy.within(in_recording).max(floor);
        Found { offset, score: value / (of_sound * of_recording).sqrt() }
    };
    correlation.iter().enumerate().map(score).max_by(|a, b| a.score.total_cmp(&b.score))
}

/// The level of all samples together.
pub fn level(samples: &[f32]) -> f64 {
    let energy: f64 = samples.iter().map(|sample| f64::from(*sample).powi(2)).sum();
    dbfs(energy / samples.len().max(1) as f64)
}

/// The level of each `window` samples; the last window may be shorter.
///
/// # Panics
///
/// Where `window` is zero.
pub fn levels(samples: &[f32], window: usize) -> Vec<f64> {
    samples.chunks(window).map(level).collect()
}

/// The largest absolute sample, in dBFS.
pub fn peak(samples: &[f32]) -> f64 {
    let peak = samples.iter().fold(0.0f64, |peak, sample| peak.max(f64::from(sample.abs())));
    dbfs(peak * peak)
}

/// The spans whose level is at least `threshold` dBFS, judged over windows of 10 ms; pauses shorter than `bridge`
/// samples do not end a span.
pub fn active_spans(samples: &[f32], threshold: f64, bridge: usize) -> Vec<Range<usize>> {
    const WINDOW: usize = 480;
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (index, _) in levels(samples, WINDOW).iter().enumerate().filter(|(_, level)| **level >= threshold) {
        let start = index * WINDOW;
        let end = (start + WINDOW).min(samples.len());
        match spans.last_mut() {
            Some(last) if start - last.end < bridge.max(1) => last.end = end,
            _ => spans.push(start..end),
        }
    }
    spans
}

/// What lies between the active spans, the beginning and the end: the pauses of at least `bridge` samples.
pub fn silent_spans(samples: &[f32], threshold: f64, bridge: usize) -> Vec<Range<usize>> {
    let mut spans = Vec::new();
    let mut from = 0;
    for active in active_spans(samples, threshold, bridge) {
        if active.start > from {
            spans.push(from..active.start);
        }
        from = active.end;
    }
    if from < samples.len() {
        spans.push(from..samples.len());
    }
    spans
}

/// How far what differs between `signal` and `reference` lies below the reference, in dB; `signal` may have any level.
/// Compares as many samples as both have.
///
/// Returns infinity where nothing differs, and 0 where `signal` has nothing of the reference.
pub fn snr(reference: &[f32], signal: &[f32]) -> f64 {
    let pairs = || reference.iter().zip(signal).map(|(r, s)| (f64::from(*r), f64::from(*s)));
    let own: f64 = pairs().map(|(_, s)| s * s).sum();
    let shared: f64 = pairs().map(|(r, s)| r * s).sum();
    let gain = if own > 0.0 { shared / own } else { 0.0 };
    let wanted: f64 = pairs().map(|(r, _)| r * r).sum();
    let error: f64 = pairs().map(|(r, s)| (r - gain * s).powi(2)).sum();
    10.0 * (wanted / error).log10()
}

fn dbfs(power: f64) -> f64 {
    (10.0 * power.log10()).max(SILENCE)
}

/// Sums of squares over any range, in constant time.
struct Energy(Vec<f64>);

impl Energy {
    fn of(samples: &[f32]) -> Self {
        let mut sum = 0.0;
        let sums = samples.iter().map(|sample| {
            sum += f64::from(*sample).powi(2);
            sum
        });
        Self(std::iter::once(0.0).chain(sums).collect())
    }

    fn within(&self, range: Range<usize>) -> f64 {
        self.0[range.end] - self.0[range.start]
    }

    fn total(&self) -> f64 {
        self.within(0..self.0.len() - 1)
    }
}

/// The part of `0..len` that something of length `other`, laid `offset` samples after its start, covers.
fn overlap(offset: i64, other: usize, len: usize) -> Range<usize> {
    let start = offset.clamp(0, len as i64);
    let end = (offset + other as i64).clamp(start, len as i64);
    start as usize..end as usize
}

/// The correlation at every offset at which both overlap, the first at `1 − sound.len()`.
fn correlate(sound: &[f32], recording: &[f32]) -> Option<Vec<f64>> {
    let len = sound.len() + recording.len() - 1;
    let size = len.next_power_of_two();
    let mut planner = RealFftPlanner::<f64>::new();
    let (forward, inverse) = (planner.plan_fft_forward(size), planner.plan_fft_inverse(size));
    let transform = |samples: &mut dyn Iterator<Item = f32>| {
        let mut padded: Vec<f64> = samples.map(f64::from).collect();
        padded.resize(size, 0.0);
        let mut spectrum = forward.make_output_vec();
        forward.process(&mut padded, &mut spectrum).ok().map(|()| spectrum)
    };
    let reversed = transform(&mut sound.iter().rev().copied())?;
    let mut product = transform(&mut recording.iter().copied())?;
    for (value, factor) in product.iter_mut().zip(&reversed) {
        *value *= factor;
    }
    let mut correlation = inverse.make_output_vec();
    inverse.process(&mut product, &mut correlation).ok()?;
    correlation.truncate(len);
    let scale = 1.0 / size as f64;
    correlation.iter_mut().for_each(|value| *value *= scale);
    Some(correlation)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testkit::audio::{Audio, generate};

    fn speech(seed: u64, millis: u64) -> Vec<f32> {
        generate::speech(seed, Duration::from_millis(millis)).channel(0).to_vec()
    }

    #[test]
    fn a_sound_is_found_to_the_sample_among_others_and_at_any_level() {
        let sound = Audio::mono(speech(1, 1_500));
        let mut recording = Audio::mono(speech(2, 6_000));
        recording.add(&sound.clone().scaled(0.5), 123_457);
        recording.add(&generate::noise(3, 0.01, Duration::from_secs(6)), 0);
        let found = find(sound.channel(0), recording.channel(0)).unwrap();
        assert_eq!(found.offset, 123_457);
        assert!((0.3..0.9).contains(&found.score), "{found:?}: at half the level of what is said over it");
        assert!(find(sound.channel(0), sound.clone().scaled(0.1).channel(0)).unwrap().score > 0.999);
    }

    #[test]
    fn a_sound_cut_at_either_end_is_found_where_it_would_begin() {
        let sound = speech(1, 1_000);
        let cut_before = find(&sound, &sound[10_000..]).unwrap();
        assert_eq!(cut_before.offset, -10_000);
        assert!(cut_before.score > 0.999);
        let mut recording = vec![0.0; 5_000];
        recording.extend_from_slice(&sound[..40_000]);
        assert_eq!(find(&sound, &recording).unwrap().offset, 5_000);
    }

    #[test]
    fn what_is_not_there_scores_low() {
        let found = find(&speech(1, 1_500), &speech(2, 10_000)).unwrap();
        assert!(found.score < 0.3, "{found:?}");
        assert_eq!(find(&speech(1, 100), &[0.0; 1_000]), None);
        assert_eq!(find(&[], &[1.0]), None);
    }

    #[test]
    fn levels_are_in_dbfs() {
        let sine = generate::tone(1_000.0, 1.0, Duration::from_secs(1));
        assert!((level(sine.channel(0)) + 3.01).abs() < 0.01);
        assert!(peak(sine.channel(0)).abs() < 0.01);
        assert_eq!(level(&[0.0; 10]), SILENCE);
        assert_eq!(levels(&[1.0, 1.0, 0.1], 2)[0], 0.0);
        assert!((levels(&[1.0, 1.0, 0.1], 2)[1] + 20.0).abs() < 0.01);
    }

    #[test]
    fn spans_cover_the_sound_and_the_pauses() {
        let tone = generate::tone(1_000.0, 0.5, Duration::from_millis(100));
        let mut audio = Audio::silence(Duration::from_secs(1));
        audio.add(&tone, 9_600);
        audio.add(&tone, 16_800);
        audio.add(&tone, 38_400);
        let samples = audio.channel(0);
        assert_eq!(active_spans(samples, -40.0, 4_800), [9_600..21_600, 38_400..43_200]);
        assert_eq!(active_spans(samples, -40.0, 0), [9_600..14_400, 16_800..21_600, 38_400..43_200]);
        assert_eq!(silent_spans(samples, -40.0, 4_800), [0..9_600, 21_600..38_400, 43_200..48_000]);
        assert_eq!(silent_spans(&[0.0; 480], -40.0, 1), vec![Range { start: 0, end: 480 }]);
    }

    #[test]
    fn snr_ignores_the_level_and_sees_the_noise() {
        let clean = generate::tone(1_000.0, 0.5, Duration::from_secs(1));
        let mut noisy = clean.clone().scaled(0.3);
        noisy.add(&generate::noise(1, 0.3 * 0.5 * (3.0f32 / 2.0).sqrt() * 0.1, Duration::from_secs(1)), 0);
        let snr_of_noisy = snr(clean.channel(0), noisy.channel(0));
        assert!((snr_of_noisy - 20.0).abs() < 0.2, "{snr_of_noisy}");
        assert_eq!(snr(clean.channel(0), clean.channel(0)), f64::INFINITY);
        assert_eq!(snr(&[1.0, 0.0], &[0.0, 1.0]), 0.0);
    }
}
