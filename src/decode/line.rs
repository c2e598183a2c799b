//! Decoded PCM laid on the timeline: as it is where both clocks agree, resampled where they do not.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Adjustable, Async, FixedAsync, PolynomialDegree, Resampler, ResamplerConstructionError, Resizable};

/// Frames that must lie ready beyond the end of what is rendered: half the interpolation kernel, and the sample by which
/// the smoothed position may run ahead.
pub(super) const LOOKAHEAD: i64 = 8;

/// Frames kept before the reading position, for the kernel's other half.
const HISTORY: usize = 8;
/// Frames rendered in one call of the resampler.
const BLOCK: usize = 960;
/// Resampling ratios reach from 1/LIMIT to LIMIT.
const LIMIT: f64 = 1.1;
/// How much of a deviation is taken out with each stretch.
const POSITION_GAIN: f64 = 0.08;
/// How much of a deviation goes into the estimate of the rate.
const RATE_GAIN: f64 = 0.003;
/// The rate is never believed to differ by more than this.
const MOST_RATE: f64 = 0.02;
/// Below this (−84 dBFS, two steps of a 16-bit sample) nobody hears a frame more or less: what decoders give for digital
/// silence.
const QUIET: f32 = 2.0 / 32_768.0;
/// Deviations below this, in samples, count as none.
const SETTLED: f64 = 1.0 / 512.0;

/// One uninterrupted run of decoded PCM and the reading position in it.
///
/// Each stretch says how many decoded frames belong to how many frames of the timeline. These are integers, so a clock
/// that is 20 ppm off shows as one frame more or less a second. The reading position follows them as a smooth curve that
/// never leaves them by more than a frame: neither a step nor a warble can be heard. When the integers stand still and
/// the position has settled on them, frames are copied.
pub(super) struct Line {
    channels: usize,
    input: Vec<f32>,
    /// Index in the run of the first frame in `input`.
    base: i64,
    /// Index in the run where the stretches so far end.
    planned: i64,
    /// How far the position is ahead of `planned`, in frames.
    ahead: f64,
    /// Decoded frames a frame of the timeline, less one.
    rate: f64,
    resampler: Async<f32>,
    /// Index of the next frame to give to the resampler, while it is in use.
    fed: Option<i64>,
}

impl Line {
    pub(super) fn new(channels: usize) -> Result<Self, ResamplerConstructionError> {
        // Six points: exact where the position falls on a sample, so entering and leaving is seamless.
        let resampler = Async::new_poly(1.0, LIMIT, PolynomialDegree::Quintic, BLOCK, channels, FixedAsync::Output)?;
        let mut line = Self {
            channels,
            input: Vec::with_capacity(3 * BLOCK * channels),
            base: 0,
            planned: 0,
            ahead: 0.0,
            rate: 0.0,
            resampler,
            fed: None,
        };
        line.begin();
        Ok(line)
    }

    /// Starts a new run: what comes next has nothing to do with what came before, but comes from the same clock.
    pub(super) fn begin(&mut self) {
        self.input.clear();
        self.input.resize(HISTORY * self.channels, 0.0);
        self.base = -(HISTORY as i64);
        self.planned = 0;
        self.ahead = 0.0;
        self.fed = None;
    }

    /// Where decoded PCM is appended, interleaved.
    pub(super) fn input(&mut self) -> &mut Vec<f32> {
        &mut self.input
    }

    /// Decoded frames beyond the end of the stretches rendered so far.
    pub(super) fn waiting(&self) -> i64 {
        self.base + (self.input.len() / self.channels) as i64 - self.planned
    }

    /// The decoded PCM that has not been rendered.
    pub(super) fn rest(&mut self) -> &mut [f32] {
        let from = (self.planned - self.base) as usize * self.channels;
        self.input.get_mut(from..).unwrap_or_default()
    }

    /// Whether PCM is being resampled at present.
    #[cfg(test)]
    fn resampling(&self) -> bool {
        self.fed.is_some()
    }

    /// Appends `length` frames to `out`, made of the next `decoded` frames. [`LOOKAHEAD`] more should be waiting; what is
    /// not there is silent.
    pub(super) fn render(&mut self, length: u64, decoded: u64, out: &mut Vec<f32>) {
        let target = self.planned + decoded as i64;
        self.fill_up_to(target + LOOKAHEAD);
        if self.fed.is_none() && decoded == length {
            let from = (self.planned - self.base) as usize * self.channels;
            out.extend_from_slice(&self.input[from..from + length as usize * self.channels]);
            self.planned = target;
            self.forget();
            return;
        }
        if self.is_quiet(target) {
            self.copy_quiet(length, decoded, out);
            return;
        }
        let frames = length as f64;
        let mut fed = match self.fed {
            Some(fed) => fed,
            None => self.engage(out),
        };
        let exact = decoded as f64 - self.ahead;
        let deviation = exact - frames * (1.0 + self.rate);
        let wished = frames * (1.0 + self.rate) + POSITION_GAIN * deviation;
        self.rate = (self.rate + RATE_GAIN * deviation / frames).clamp(-MOST_RATE, MOST_RATE);
        let mut ahead = (wished - exact).clamp(-1.0, 1.0);
        let settled = decoded == length && ahead.abs() < SETTLED && (self.rate * frames).abs() < SETTLED;
        if settled {
            ahead = 0.0;
            self.rate = 0.0;
        }
        let step = ((exact + ahead) / frames).clamp(1.0 / LIMIT, LIMIT);
        let mut left = length as usize;
        while left > 0 {
            let block = left.min(BLOCK);
            self.run(block, 1.0 / step, &mut fed, out);
            left -= block;
        }
        self.planned = target;
        self.ahead = ahead;
        self.fed = (!settled).then_some(fed);
        self.forget();
    }

    /// Puts silence where decoded frames are missing up to index `until` of the run: a codec that changes in the middle of
    /// it holds some back, and stretches may be too short for what they hold.
    fn fill_up_to(&mut self, until: i64) {
        let samples = (until - self.base).max(0) as usize * self.channels;
        if self.input.len() < samples {
            self.input.resize(samples, 0.0);
        }
    }

    /// Whether nothing that rendering up to `target` could touch is louder than [`QUIET`].
    fn is_quiet(&self, target: i64) -> bool {
        let from = (self.planned - self.base - HISTORY as i64).max(0) as usize * self.channels;
        let to = (target + LOOKAHEAD - self.base) as usize * self.channels;
        self.input[from..to.min(self.input.len())].iter().all(|sample| sample.abs() <= QUIET)
    }

    /// Takes a deviation out at once, by a frame more or less at the end: what is so quiet needs no resampling. The
    /// sender's rate stays what it was.
    fn copy_quiet(&mut self, length: u64, decoded: u64, out: &mut Vec<f32>) {
        let from = (self.planned - self.base) as usize * self.channels;
        let decoded_samples = decoded as usize * self.channels;
        let samples = length as usize * self.channels;
        out.extend_from_slice(&self.input[from..from + samples.min(decoded_samples)]);
        out.resize(out.len() + samples.saturating_sub(decoded_samples), 0.0);
        self.planned += decoded as i64;
        self.ahead = 0.0;
        self.fed = None;
        self.forget();
    }

    /// Sets the resampler up so that its next frame, at ratio 1, is the frame at `planned`.
    fn engage(&mut self, out: &mut Vec<f32>) -> i64 {
        self.resampler.reset();
        self.ahead = 0.0;
        // The first frame that comes out lies two before the first one that goes in.
        let mut fed = self.planned + 2 - HISTORY as i64;
        let start = out.len();
        self.run(HISTORY, 1.0, &mut fed, out);
        out.truncate(start);
        fed
    }

    /// Appends `block` frames to `out`, `ratio` of them for each decoded frame.
    fn run(&mut self, block: usize, ratio: f64, fed: &mut i64, out: &mut Vec<f32>) {
        let start = out.len();
        out.resize(start + block * self.channels, 0.0);
        let outcome = self
            .resampler
            .set_chunk_size(block)
            .and_then(|()| self.resampler.set_resample_ratio(ratio, false))
            .and_then(|()| {
                let needed = self.resampler.input_frames_next();
                self.fill_up_to(*fed + needed as i64);
                let from = (*fed - self.base) as usize * self.channels;
                let input = &self.input[from..from + needed * self.channels];
                *fed += needed as i64;
                let expect = "the slices were cut to these sizes";
                let input = InterleavedSlice::new(input, self.channels, needed).expect(expect);
                let output = &mut out[start..];
                let mut output = InterleavedSlice::new_mut(output, self.channels, block).expect(expect);
                self.resampler.process_into_buffer(&input, &mut output, None)
            });
        // Sizes and ratios were clamped to what the resampler was made for, so this cannot fail; were it to, the block
        // would stay silent.
        debug_assert!(outcome.is_ok(), "{outcome:?}");
    }

    /// Drops decoded frames that nothing needs any more.
    fn forget(&mut self) {
        let needed = self.fed.unwrap_or(self.planned).min(self.planned) - HISTORY as i64;
        let old = (needed - self.base).max(0) as usize;
        self.input.drain(..old * self.channels);
        self.base += old as i64;
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use super::*;

    const TONE: f64 = TAU * 997.0 / 48_000.0;

    /// Renders a tone over stretches `(length, decoded)` and returns what came out.
    fn render(line: &mut Line, stretches: impl IntoIterator<Item = (u64, u64)>) -> Vec<f32> {
        let mut out = Vec::new();
        let mut at = 0;
        for (length, decoded) in stretches {
            while line.waiting() < decoded as i64 + LOOKAHEAD {
                line.input().push((0.5 * (TONE * at as f64).sin()) as f32);
                at += 1;
            }
            line.render(length, decoded, &mut out);
        }
        out
    }

    /// Stretches of 960 decoded frames on a timeline that runs `ppm` faster than the sender.
    fn drifting(ppm: f64, count: u64) -> Vec<(u64, u64)> {
        let end = |n: u64| (n as f64 * 960.0 * (1.0 + ppm * 1e-6)).round() as u64;
        (0..count).map(|n| (end(n + 1) - end(n), 960)).collect()
    }

    /// The largest distance of `out` from the tone read at `position` of each sample.
    fn error(out: &[f32], from: usize, position: impl Fn(f64) -> f64) -> f64 {
        let off = |(n, sample): (usize, &f32)| (f64::from(*sample) - 0.5 * (TONE * position(n as f64)).sin()).abs();
        out.iter().enumerate().skip(from).map(off).fold(0.0, f64::max)
    }

    #[test]
    fn without_drift_every_bit_passes() {
        let mut line = Line::new(1).unwrap();
        let out = render(&mut line, vec![(960, 960); 50]);
        assert!(out.iter().enumerate().all(|(n, s)| *s == (0.5 * (TONE * n as f64).sin()) as f32));
    }

    #[test]
    fn a_drifting_tone_stays_within_a_sample_of_its_place() {
        for ppm in [-500.0, -37.0, 20.0, 300.0, 500.0] {
            let mut line = Line::new(1).unwrap();
            let stretches = drifting(ppm, 1500);
            let length: u64 = stretches.iter().map(|s| s.0).sum();
            let out = render(&mut line, stretches);
            assert_eq!(out.len() as u64, length);
            let off = error(&out, 0, |n| n / (1.0 + ppm * 1e-6));
            // A tone of 0.5 moves at most 0.5 · TONE a sample; half a sample more comes from rounding the stretches.
            assert!(off < 1.5 * 0.5 * TONE, "{ppm} ppm: {off}");
        }
    }

    #[test]
    fn after_convergence_a_drifting_tone_is_clean() {
        for ppm in [-500.0, 120.0, 500.0] {
            let mut line = Line::new(1).unwrap();
            let out = render(&mut line, drifting(ppm, 1500));
            let from = 1000 * 960;
            // Whatever constant part of a sample the position is off, there is nothing but the tone.
            let shift = (-100..=100)
                .map(|k| error(&out[..from + 4800], from, |n| n / (1.0 + ppm * 1e-6) + f64::from(k) * 0.01))
                .fold(f64::MAX, f64::min);
            assert!(shift < 0.5 * 0.01, "{ppm} ppm: {shift}");
        }
    }

    #[test]
    fn nothing_moves_faster_than_the_tone() {
        for stretches in [drifting(500.0, 400), drifting(-10_000.0, 100), vec![(960, 960), (961, 960), (958, 960)]] {
            let mut line = Line::new(1).unwrap();
            let out = render(&mut line, stretches.into_iter().chain(vec![(960, 960); 300]));
            let step = out.windows(2).map(|w| f64::from((w[1] - w[0]).abs())).fold(0.0, f64::max);
            assert!(step < 0.5 * TONE * 1.02, "{step}");
        }
    }

    #[test]
    fn one_percent_is_followed_within_a_sample() {
        let mut line = Line::new(1).unwrap();
        let out = render(&mut line, drifting(-10_000.0, 100));
        let off = error(&out, 0, |n| n / 0.99);
        assert!(off < 1.5 * 0.5 * TONE, "{off}");
    }

    #[test]
    fn a_single_step_is_smoothed_out_and_copying_resumes() {
        let mut line = Line::new(1).unwrap();
        let mut stretches = vec![(960, 960); 5];
        stretches.push((961, 960));
        stretches.extend(vec![(960, 960); 400]);
        let out = render(&mut line, stretches);
        assert!(!line.resampling());
        let exact = |(n, s): (usize, &f32)| *s == (0.5 * (TONE * (n as f64 - 1.0)).sin()) as f32;
        assert!(out.iter().enumerate().skip(300 * 960).all(exact));
    }

    #[test]
    fn silence_is_not_resampled_and_what_follows_lies_in_its_place() {
        let mut line = Line::new(1).unwrap();
        let loud = |n: usize| !(48_000..144_000).contains(&n);
        // A tone whose period divides a second, so that it stops and begins at nothing; between, what decoders leave.
        let said = |n: f64| 0.5 * (TAU * 1000.0 * n / 48_000.0).sin();
        let mut out = Vec::new();
        let mut at = 0;
        for (index, (length, decoded)) in drifting(300.0, 300).into_iter().enumerate() {
            while line.waiting() < decoded as i64 + LOOKAHEAD {
                let sample = if loud(at) { said(at as f64) as f32 } else { 1.0 / 32_768.0 };
                line.input().push(sample);
                at += 1;
            }
            line.render(length, decoded, &mut out);
            assert!(!(51..149).contains(&index) || !line.resampling(), "{index}");
        }
        assert!(line.resampling());
        let wrong = |(n, sample): (usize, &f32)| {
            let n = n as f64 / 1.0003;
            (f64::from(*sample) - if loud(n as usize) { said(n) } else { 0.0 }).abs()
        };
        let worst = out.iter().enumerate().map(wrong).fold(0.0, f64::max);
        assert!(worst < 1.5 * 0.5 * TAU * 1000.0 / 48_000.0, "{worst}");
    }

    #[test]
    fn two_channels_are_resampled_alike() {
        let mut line = Line::new(2).unwrap();
        let mut out = Vec::new();
        line.input().extend((0..4000).flat_map(|n| {
            let sample = (TONE * f64::from(n)).sin() as f32;
            [sample, -sample]
        }));
        [(961, 960), (959, 960), (960, 960)].into_iter().for_each(|(l, d)| line.render(l, d, &mut out));
        assert_eq!(out.len(), 2 * 2880);
        assert!(out.chunks(2).all(|frame| frame[0] == -frame[1]));
    }
}
