//! A look-ahead limiter on true peaks.

use std::collections::VecDeque;

/// What the limiter keeps true peaks below, in dB relative to full scale (ITU-R BS.1770, annex 2).
pub const CEILING_DBTP: f32 = -1.0;

/// Estimating a true peak from four times as many samples misses a little of it; so much is kept in reserve.
const RESERVE_DB: f32 = 0.15;
/// Points of the interpolation between samples.
const TAPS: usize = 16;
/// Between how many points it is looked for a peak, for each sample.
const PHASES: usize = 4;
/// Frames over which the gain goes down before a peak.
const ATTACK: usize = 233;
/// Frames by which the output is later than the input: 5 ms.
pub(super) const LATENCY: usize = ATTACK - 1 + TAPS / 2;
/// Share of the missing gain that comes back with each frame: a time constant of 80 ms.
const RELEASE: f64 = 1.0 / 3840.0;
/// A gain so close to 1 is 1.
const FULL: f64 = 1.0 - 1e-5;

/// Delays by [`LATENCY`], and turns the gain down before peaks that are too high.
///
/// The gain for a peak is the smallest one asked for within the attack time, averaged over the attack time: a ramp that
/// arrives at what is needed exactly when the peak does. Where no peak asks for less, samples pass bit for bit.
pub(super) struct Limiter {
    channels: usize,
    ceiling: f32,
    /// Coefficients between one sample and the next.
    kernel: [[f32; TAPS]; PHASES - 1],
    /// A frame's peak below this needs no closer look.
    harmless: f32,
    /// The last [`LATENCY`] frames, then the ones that are being processed.
    delay: Vec<f32>,
    /// Gains asked for within the attack time, by frame number, rising.
    lowest: VecDeque<(u64, f32)>,
    frame: u64,
    /// In double precision, as the last steps back to 1 are small.
    envelope: f64,
    /// The last [`ATTACK`] values of the envelope, as a ring, and their sum.
    recent: [f64; ATTACK],
    recent_at: usize,
    recent_sum: f64,
    /// How many of them are below 1.
    reduced: usize,
    least_gain: f32,
}

impl Limiter {
    pub(super) fn new(channels: usize) -> Self {
        let kernel = std::array::from_fn(|phase| interpolator((phase + 1) as f32 / PHASES as f32));
        let ceiling = 10f32.powf((CEILING_DBTP - RESERVE_DB) / 20.0);
        let most = kernel.iter().map(|taps: &[f32; TAPS]| taps.iter().map(|c| c.abs()).sum()).fold(1.0, f32::max);
        Self {
            channels,
            ceiling,
            kernel,
            harmless: ceiling / most,
            delay: vec![0.0; LATENCY * channels],
            lowest: VecDeque::with_capacity(ATTACK + 1),
            frame: 0,
            envelope: 1.0,
            recent: [1.0; ATTACK],
            recent_at: 0,
            recent_sum: ATTACK as f64,
            reduced: 0,
            least_gain: 1.0,
        }
    }

    /// The lowest gain that was applied so far; 1 where the limiter never acted.
    pub(super) fn least_gain(&self) -> f32 {
        self.least_gain
    }

    /// Forgets what went through, except for the lowest gain.
    pub(super) fn restart(&mut self) {
        self.delay.clear();
        self.delay.resize(LATENCY * self.channels, 0.0);
        self.lowest.clear();
        self.frame = 0;
        self.envelope = 1.0;
        self.recent = [1.0; ATTACK];
        self.recent_at = 0;
        self.recent_sum = ATTACK as f64;
        self.reduced = 0;
    }

    /// Takes `input` and appends as much to `out`, [`LATENCY`] frames later. With `watch` off, peaks are let through.
    pub(super) fn process(&mut self, input: &[f32], watch: bool, out: &mut Vec<f32>) {
        let frames = input.len() / self.channels;
        self.delay.extend_from_slice(input);
        let peak = if watch {
            let seen = &self.delay[(LATENCY - TAPS) * self.channels..];
            seen.iter().fold(0.0, |most: f32, sample| most.max(sample.abs()))
        } else {
            0.0
        };
        let from = out.len();
        out.extend_from_slice(&self.delay[..input.len()]);
        if peak <= self.harmless && self.is_at_rest() {
            self.frame += frames as u64;
        } else {
            for n in 0..frames {
                let asked = if peak > self.harmless { self.asked(n) } else { 1.0 };
                let gain = self.gain(asked);
                if gain < 1.0 {
                    self.least_gain = self.least_gain.min(gain);
                    let at = from + n * self.channels;
                    out[at..at + self.channels].iter_mut().for_each(|sample| *sample *= gain);
                }
            }
        }
        self.delay.drain(..input.len());
    }

    fn is_at_rest(&self) -> bool {
        self.reduced == 0 && self.envelope >= 1.0 && self.lowest.iter().all(|(_, gain)| *gain >= 1.0)
    }

    /// The gain that the newest peak that can be known asks for once frame `n` of the input is there.
    fn asked(&self, n: usize) -> f32 {
        let first = LATENCY + n + 1 - TAPS;
        let mut peak = 0f32;
        for channel in 0..self.channels {
            let sample = |k: usize| self.delay[(first + k) * self.channels + channel];
            peak = peak.max(sample(TAPS / 2 - 1).abs());
            for taps in &self.kernel {
                let between: f32 = taps.iter().enumerate().map(|(k, c)| c * sample(k)).sum();
                peak = peak.max(between.abs());
            }
        }
        if peak > self.ceiling { self.ceiling / peak } else { 1.0 }
    }

    fn gain(&mut self, asked: f32) -> f32 {
        while self.lowest.back().is_some_and(|(_, gain)| *gain >= asked) {
            self.lowest.pop_back();
        }
        self.lowest.push_back((self.frame, asked));
        while self.lowest.front().is_some_and(|(frame, _)| frame + (ATTACK as u64) <= self.frame) {
            self.lowest.pop_front();
        }
        self.frame += 1;
        let lowest = self.lowest.front().map_or(1.0, |(_, gain)| f64::from(*gain));
        let released = self.envelope + (1.0 - self.envelope) * RELEASE;
        self.envelope = lowest.min(if released > FULL { 1.0 } else { released });
        let oldest = std::mem::replace(&mut self.recent[self.recent_at], self.envelope);
        self.recent_at = (self.recent_at + 1) % ATTACK;
        self.recent_sum += self.envelope - oldest;
        self.reduced = self.reduced + usize::from(self.envelope < 1.0) - usize::from(oldest < 1.0);
        if self.reduced == 0 {
            self.recent_sum = ATTACK as f64;
            return 1.0;
        }
        (self.recent_sum / ATTACK as f64) as f32
    }
}

/// Coefficients that give the value `fraction` of the way between the two middle ones of [`TAPS`] samples: a sinc in a
/// Hann window, normalised.
fn interpolator(fraction: f32) -> [f32; TAPS] {
    let raw: [f32; TAPS] = std::array::from_fn(|k| {
        let distance = k as f32 - (TAPS / 2 - 1) as f32 - fraction;
        let angle = std::f32::consts::PI * distance;
        let window = (angle / TAPS as f32).cos().powi(2);
        window * angle.sin() / angle
    });
    let sum: f32 = raw.iter().sum();
    raw.map(|c| c / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(channels: usize, input: &[f32], watch: bool) -> Vec<f32> {
        let mut limiter = Limiter::new(channels);
        let mut out = Vec::new();
        for chunk in input.chunks(960 * channels) {
            limiter.process(chunk, watch, &mut out);
        }
        out
    }

    fn true_peak_db(channels: usize, pcm: &[f32]) -> f64 {
        let mut meter = ebur128::EbuR128::new(channels as u32, 48_000, ebur128::Mode::TRUE_PEAK).unwrap();
        meter.add_frames_f32(pcm).unwrap();
        (0..channels as u32).map(|c| 20.0 * meter.true_peak(c).unwrap().log10()).fold(f64::MIN, f64::max)
    }

    fn noise(seed: u64, frames: usize, amplitude: f32) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..frames).map(|_| amplitude * (2.0 * random.f32() - 1.0)).collect()
    }

    #[test]
    fn what_is_below_the_ceiling_passes_bit_for_bit() {
        let input = noise(1, 48_000, 0.3);
        assert!(limit(1, &input, true)[LATENCY..] == input[..48_000 - LATENCY]);
    }

    #[test]
    fn unwatched_peaks_pass_bit_for_bit() {
        let input = noise(2, 48_000, 1.0);
        assert!(limit(1, &input, false)[LATENCY..] == input[..48_000 - LATENCY]);
    }

    #[test]
    fn true_peaks_stay_below_the_ceiling() {
        let frames = 96_000;
        let tone = |frequency: f32, phase: f32, amplitude: f32| -> Vec<f32> {
            let step = std::f32::consts::TAU * frequency / 48_000.0;
            (0..frames).map(|n| amplitude * (n as f32 * step + phase).sin()).collect()
        };
        let mut bursts = noise(3, frames, 0.1);
        for n in (5_000..frames - 4_000).step_by(9_000) {
            bursts[n..n + 40].iter_mut().for_each(|s| *s *= 30.0);
            bursts[n + 2_000] = 2.5;
        }
        let quarter = tone(12_000.0, std::f32::consts::FRAC_PI_4, 1.4);
        for (name, input) in [
            ("a tone that peaks between samples", quarter),
            ("a loud tone", tone(440.0, 0.0, 2.0)),
            ("a high tone", tone(17_000.0, 0.3, 1.5)),
            ("bursts", bursts),
        ] {
            let peak = true_peak_db(1, &limit(1, &input, true));
            assert!(peak <= f64::from(CEILING_DBTP), "{name}: {peak} dBTP");
            assert!(peak > -3.5, "{name}: {peak} dBTP, far more than needed");
        }
    }

    #[test]
    fn both_channels_get_the_same_gain() {
        let left = noise(4, 9600, 1.8);
        let input: Vec<f32> = left.iter().flat_map(|s| [*s, 0.25 * s]).collect();
        let out = limit(2, &input, true);
        assert!(out.chunks(2).all(|frame| (frame[1] - 0.25 * frame[0]).abs() < 1e-6));
        assert!(true_peak_db(2, &out) <= f64::from(CEILING_DBTP));
    }

    #[test]
    fn after_a_peak_the_gain_comes_back_to_exactly_one() {
        let mut input = noise(5, 96_000, 0.3);
        input[5_000] = 3.0;
        let out = limit(1, &input, true);
        assert_ne!(out[5_100 + LATENCY], input[5_100]);
        assert!(out[60_000 + LATENCY..] == input[60_000..96_000 - LATENCY]);
    }

    #[test]
    fn the_gain_goes_down_as_a_ramp() {
        let mut input = vec![0.1; 9_600];
        input[5_000] = 2.0;
        let out = limit(1, &input, true);
        let quiet = out[LATENCY..5_000 + LATENCY - 1].windows(2).map(|w| (w[0] - w[1]).abs()).fold(0.0, f32::max);
        assert!(quiet < 0.1 * 1.5 / ATTACK as f32, "{quiet}");
    }
}
