//! Loudness after EBU R 128, with ITU-R BS.1770 for levels and true peaks and EBU Tech 3342 for the range.

use ebur128::{EbuR128, Mode};
use serde::{Deserialize, Serialize};

use crate::time::SAMPLE_RATE;

/// Frames of the piece by which windows move: 100 ms.
const STEP: usize = SAMPLE_RATE as usize / 10;
/// Steps of a momentary window: 400 ms.
const MOMENTARY: usize = 4;
/// Steps of a short-term window: 3 s.
const SHORT_TERM: usize = 30;
/// What is below this is silence to either measure, in LUFS.
const SILENCE: f64 = -70.0;
/// Frames over which a true peak is interpolated.
const KERNEL: usize = 12;
/// No interpolation over [`KERNEL`] frames exceeds the highest of them by more than this factor: the sum of the weights of
/// a sinc between two frames is 2.4.
const OVERSHOOT: f32 = 2.5;

/// How loud a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loudness {
    /// Integrated loudness in LUFS; a mono mix counts as one loudspeaker. None where all of it is silent.
    pub integrated_lufs: Option<f64>,
    /// Loudness range in LU. None where less than 3 s in a row sounds.
    pub range_lu: Option<f64>,
    /// The highest true peak of any channel in dB relative to full scale. None where there is nothing but zeros.
    pub true_peak_dbtp: Option<f64>,
}

/// Measures the loudness of one mix.
///
/// Of each 100 ms it keeps the energy alone, and counts windows by tenths of a LU, so its memory does not grow. What
/// cannot change a figure is left out: digital silence costs nothing, and true peaks are looked for only where one could
/// be the highest.
pub struct LoudnessMeter {
    channels: usize,
    /// The last frames of the step before, then the frames of the step at hand.
    step: Vec<f32>,
    weighting: EbuR128,
    peaks: EbuR128,
    true_peak: f64,
    /// Whether the step before was silent.
    silent: bool,
    /// Energies of the last steps, as a ring.
    energies: [f64; SHORT_TERM],
    steps: usize,
    momentary: Windows,
    short_term: Windows,
}

impl std::fmt::Debug for LoudnessMeter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoudnessMeter")
            .field("steps", &self.steps)
            .field("true_peak", &self.true_peak)
            .finish_non_exhaustive()
    }
}

impl LoudnessMeter {
    /// A meter for `channels` channels, 1 or 2.
    pub fn new(channels: usize) -> Self {
        let meter = |mode| EbuR128::new(channels as u32, SAMPLE_RATE, mode).expect("one or two channels at 48 kHz");
        let mut step = Vec::with_capacity((KERNEL + STEP) * channels);
        step.resize(KERNEL * channels, 0.0);
        Self {
            channels,
            step,
            weighting: meter(Mode::M),
            peaks: meter(Mode::TRUE_PEAK),
            true_peak: 0.0,
            silent: false,
            energies: [0.0; SHORT_TERM],
            steps: 0,
            momentary: Windows::default(),
            short_term: Windows::default(),
        }
    }

    /// Takes the next PCM, interleaved.
    pub fn push(&mut self, mut pcm: &[f32]) {
        let full = (KERNEL + STEP) * self.channels;
        while !pcm.is_empty() {
            let (now, rest) = pcm.split_at((full - self.step.len()).min(pcm.len()));
            self.step.extend_from_slice(now);
            if self.step.len() == full {
                self.end_step();
            }
            pcm = rest;
        }
    }

    /// The loudness of everything pushed; `None` where that is less than one window of 400 ms.
    pub fn finish(mut self) -> Option<Loudness> {
        // What is left is no step, but may hold the highest peak; zeros bring out the interpolation's last values.
        self.step.resize(self.step.len() + KERNEL * self.channels, 0.0);
        self.measure_peak();
        let decibels = |amplitude: f64| (amplitude > 0.0).then(|| 20.0 * amplitude.log10());
        (self.steps >= MOMENTARY).then(|| Loudness {
            integrated_lufs: self.momentary.integrated(),
            range_lu: self.short_term.range(),
            true_peak_dbtp: decibels(self.true_peak),
        })
    }

    fn end_step(&mut self) {
        let pcm = &self.step[KERNEL * self.channels..];
        let silent = pcm.iter().all(|sample| *sample == 0.0);
        // What rings on in the filters is over after one step.
        let energy = if silent && self.silent { 0.0 } else { energy(&mut self.weighting, pcm) };
        self.silent = silent;
        self.measure_peak();
        let kept = self.step.len() - KERNEL * self.channels;
        self.step.copy_within(kept.., 0);
        self.step.truncate(KERNEL * self.channels);
        self.energies[self.steps % SHORT_TERM] = energy;
        self.steps += 1;
        let mean = |window: usize| {
            let last = (1..=window).map(|back| self.energies[(self.steps - back) % SHORT_TERM]);
            last.sum::<f64>() / window as f64
        };
        if self.steps >= MOMENTARY {
            self.momentary.add(mean(MOMENTARY));
        }
        if self.steps >= SHORT_TERM {
            self.short_term.add(mean(SHORT_TERM));
        }
    }

    fn measure_peak(&mut self) {
        let highest = self.step.iter().fold(0f32, |peak, sample| peak.max(sample.abs()));
        if f64::from(highest * OVERSHOOT) <= self.true_peak {
            return;
        }
        let (before, pcm) = self.step.split_at(KERNEL * self.channels);
        self.peaks.seed_frames_f32(before).expect(WHOLE_FRAMES);
        self.peaks.add_frames_f32(pcm).expect(WHOLE_FRAMES);
        for channel in 0..self.channels as u32 {
            let peak = self.peaks.prev_true_peak(channel).expect("it measures true peaks of these channels");
            self.true_peak = self.true_peak.max(peak);
        }
    }
}

const WHOLE_FRAMES: &str = "the buffer holds whole frames";

/// The K-weighted energy of one step.
fn energy(weighting: &mut EbuR128, pcm: &[f32]) -> f64 {
    weighting.add_frames_f32(pcm).expect(WHOLE_FRAMES);
    energy_of(weighting.loudness_window(100).expect("its window is 400 ms long"))
}

fn energy_of(lufs: f64) -> f64 {
    10f64.powf((lufs + 0.691) / 10.0)
}

fn lufs_of(energy: f64) -> f64 {
    10.0 * energy.log10() - 0.691
}

/// Windows by their loudness, a tenth of a LU each, from [`SILENCE`] on.
struct Windows {
    counts: [u32; Self::BINS],
    energies: [f64; Self::BINS],
}

impl Default for Windows {
    fn default() -> Self {
        Self { counts: [0; Self::BINS], energies: [0.0; Self::BINS] }
    }
}

impl Windows {
    /// As far as +10 LUFS.
    const BINS: usize = 800;

    fn add(&mut self, energy: f64) {
        let lufs = lufs_of(energy);
        if lufs > SILENCE {
            let bin = (((lufs - SILENCE) * 10.0) as usize).min(Self::BINS - 1);
            self.counts[bin] = self.counts[bin].saturating_add(1);
            self.energies[bin] += energy;
        }
    }

    /// The mean loudness of the windows from `bin` on.
    fn mean(&self, bin: usize) -> Option<f64> {
        let count: u64 = self.counts[bin..].iter().map(|count| u64::from(*count)).sum();
        let energy: f64 = self.energies[bin..].iter().sum();
        (count > 0).then(|| lufs_of(energy / count as f64))
    }

    /// The first bin that is less than `below` LU under the mean.
    fn gate(&self, below: f64) -> Option<usize> {
        let threshold = self.mean(0)? - below;
        Some((((threshold - SILENCE) * 10.0).round().max(0.0)) as usize)
    }

    /// The mean of what is not 10 LU below the mean.
    fn integrated(&self) -> Option<f64> {
        self.mean(self.gate(10.0)?)
    }

    /// From the 10th to the 95th percentile of what is not 20 LU below the mean.
    fn range(&self) -> Option<f64> {
        let from = self.gate(20.0)?;
        let count: u64 = self.counts[from..].iter().map(|count| u64::from(*count)).sum();
        let percentile = |share: f64| {
            let mut left = ((count.saturating_sub(1)) as f64 * share).round() as u64;
            (from..Self::BINS).find(|bin| match left.checked_sub(u64::from(self.counts[*bin])) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            })
        };
        Some((percentile(0.95)? - percentile(0.10)?) as f64 / 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sine of `dbfs` (its peak) for `seconds`.
    fn sine(hertz: f64, dbfs: f64, seconds: f64) -> Vec<f32> {
        let amplitude = 10f64.powf(dbfs / 20.0);
        let sample = |n: usize| amplitude * (n as f64 * hertz / 48_000.0 * std::f64::consts::TAU).sin();
        (0..(seconds * 48_000.0) as usize).map(|n| sample(n) as f32).collect()
    }

    fn stereo(mono: &[f32]) -> Vec<f32> {
        mono.iter().flat_map(|sample| [*sample; 2]).collect()
    }

    fn measure(channels: usize, pcm: &[f32]) -> Loudness {
        let mut meter = LoudnessMeter::new(channels);
        pcm.chunks(961 * channels).for_each(|pcm| meter.push(pcm));
        meter.finish().unwrap()
    }

    fn integrated(channels: usize, pcm: &[f32]) -> f64 {
        measure(channels, pcm).integrated_lufs.unwrap()
    }

    fn range(pcm: &[f32]) -> f64 {
        measure(2, pcm).range_lu.unwrap()
    }

    /// Pieces of a 1 kHz sine in stereo: what EBU Tech 3341 and 3342 test meters with.
    fn pieces(pieces: &[(f64, f64)]) -> Vec<f32> {
        pieces.iter().flat_map(|(dbfs, seconds)| stereo(&sine(1_000.0, *dbfs, *seconds))).collect()
    }

    #[test]
    fn the_ebus_minimum_requirements_for_loudness_are_met() {
        for (expected, pcm) in [
            (-23.0, pieces(&[(-23.0, 20.0)])),
            (-33.0, pieces(&[(-33.0, 20.0)])),
            (-23.0, pieces(&[(-36.0, 10.0), (-23.0, 60.0), (-36.0, 10.0)])),
            (-23.0, pieces(&[(-72.0, 10.0), (-36.0, 10.0), (-23.0, 60.0), (-36.0, 10.0), (-72.0, 10.0)])),
            (-23.0, pieces(&[(-26.0, 20.0), (-20.0, 20.1), (-26.0, 20.0)])),
        ] {
            let found = integrated(2, &pcm);
            assert!((found - expected).abs() <= 0.1, "{found} instead of {expected}");
        }
    }

    #[test]
    fn the_ebus_minimum_requirements_for_the_range_are_met() {
        for (expected, pcm) in [
            (10.0, pieces(&[(-20.0, 20.0), (-30.0, 20.0)])),
            (5.0, pieces(&[(-20.0, 20.0), (-15.0, 20.0)])),
            (20.0, pieces(&[(-40.0, 20.0), (-20.0, 20.0)])),
            (15.0, pieces(&[(-50.0, 20.0), (-35.0, 20.0), (-20.0, 20.0), (-35.0, 20.0), (-50.0, 20.0)])),
        ] {
            let found = range(&pcm);
            assert!((found - expected).abs() <= 1.0, "{found} instead of {expected}");
        }
    }

    #[test]
    fn one_channel_is_one_loudspeaker() {
        let found = integrated(1, &sine(1_000.0, -20.0, 5.0));
        assert!((found + 23.0).abs() <= 0.1, "{found}");
    }

    #[test]
    fn true_peaks_between_samples_are_found() {
        // A quarter of the sample rate, 45° off: every sample is 3 dB below the peak.
        let sample = |n: usize| 0.5 * (std::f64::consts::TAU * (n as f64 / 4.0 + 0.125)).sin() as f32;
        let tone: Vec<f32> = (0..48_000).map(sample).collect();
        for (channels, pcm) in [(1, tone.clone()), (2, tone.iter().flat_map(|s| [0.1 * s, *s]).collect())] {
            let found = measure(channels, &pcm).true_peak_dbtp.unwrap();
            assert!((-0.4..=0.2).contains(&(found + 6.02)), "{found} dBTP in {channels} channels");
        }
    }

    #[test]
    fn leaving_out_what_cannot_be_the_highest_changes_no_peak() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut loudness = 0.0;
        let pcm: Vec<f32> = (0..48_000 * 20 + 777)
            .map(|n| {
                loudness = if n % 3_001 == 0 { random.f32() } else { loudness };
                loudness * (2.0 * random.f32() - 1.0)
            })
            .collect();
        for from in (0..40).map(|n| n * 20_011) {
            for channels in [1, 2] {
                let pcm = &pcm[from..from + 48_000 + 2 * (from % 7_919)];
                let mut all = EbuR128::new(channels, 48_000, Mode::TRUE_PEAK).unwrap();
                all.add_frames_f32(pcm).unwrap();
                all.add_frames_f32(&[0.0; 24]).unwrap();
                let expected = (0..channels).map(|c| all.true_peak(c).unwrap()).fold(0.0, f64::max);
                let found = measure(channels as usize, pcm).true_peak_dbtp.unwrap();
                assert!((found - 20.0 * expected.log10()).abs() < 1e-6, "{found}");
            }
        }
    }

    #[test]
    fn a_call_with_pauses_measures_as_the_whole_of_it_does() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut pcm = Vec::new();
        for _ in 0..60 {
            let level = 0.02 + 0.3 * random.f32();
            pcm.extend((0..random.usize(10_000..200_000)).map(|_| level * (2.0 * random.f32() - 1.0)));
            pcm.resize(pcm.len() + random.usize(0..300_000), 0.0);
        }
        let mut whole = EbuR128::new(1, 48_000, Mode::I | Mode::LRA).unwrap();
        whole.add_frames_f32(&pcm).unwrap();
        let found = measure(1, &pcm);
        let (loudness, range) = (whole.loudness_global().unwrap(), whole.loudness_range().unwrap());
        assert!((found.integrated_lufs.unwrap() - loudness).abs() < 0.05, "{found:?}, {loudness}");
        assert!((found.range_lu.unwrap() - range).abs() < 0.5, "{found:?}, {range}");
    }

    #[test]
    fn silence_has_no_loudness_and_a_moment_none_that_is_known() {
        let silent = measure(1, &[0.0; 48_000]);
        assert_eq!(silent, Loudness { integrated_lufs: None, range_lu: None, true_peak_dbtp: None });
        let mut meter = LoudnessMeter::new(1);
        meter.push(&[0.5; 19_199]);
        assert_eq!(meter.finish(), None);
        let second = measure(1, &sine(1_000.0, -20.0, 1.0));
        assert!(second.range_lu.is_none() && second.integrated_lufs.is_some(), "{second:?}");
    }
}
