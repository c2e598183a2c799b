//! How much of each frequency there is, from PCM in pieces.

use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use crate::time::{SAMPLE_RATE, SampleCount};

/// Samples of a transform: 43 ms, so that frequencies are 23.4 Hz apart.
const WINDOW: usize = 2048;
/// Samples from one transform to the next: 10.7 ms.
const HOP: usize = 512;
/// Louder samples are none of a recording.
const LOUDEST: f32 = 8.0;

/// The power of the frequencies from 0 to some top over time, 1 for a sine of full scale.
///
/// There are at most twice as many columns as were asked for: when there are more, each two become their mean. So memory is
/// bounded however long a recording is, and its length need not be known before.
pub(super) struct Spectrum {
    transform: Arc<dyn RealToComplex<f32>>,
    hann: Vec<f32>,
    scale: f32,
    rows: Vec<Row>,
    most: usize,
    /// The last `WINDOW` samples; the newest `missing` are still to come.
    samples: Vec<f32>,
    missing: usize,
    pushed: u64,
    windowed: Vec<f32>,
    bins: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    powers: Vec<f32>,
    /// Finished columns, row by row from the lowest.
    columns: Vec<f32>,
    /// Transforms of a column, and the sum of those so far.
    per_column: u64,
    sum: Vec<f32>,
    summed: u64,
}

/// How a row is made of bins.
#[derive(Clone, Copy, Debug)]
enum Row {
    /// The most of several, so that a tone is not lost among many.
    Most(usize, usize),
    /// Between one and the next, so much of the next.
    Between(usize, f32),
}

impl Spectrum {
    /// No sound yet: `rows` of frequencies up to `top` Hz, `columns` at least once there is enough sound.
    pub(super) fn new(rows: usize, top: u32, columns: usize) -> Self {
        let transform = RealFftPlanner::new().plan_fft_forward(WINDOW);
        let turn = |n: usize| (std::f64::consts::TAU * n as f64 / WINDOW as f64).cos();
        let hann: Vec<f32> = (0..WINDOW).map(|n| (0.5 - 0.5 * turn(n)) as f32).collect();
        let amplitude = 2.0 / hann.iter().sum::<f32>();
        let most = 2 * columns.max(1);
        Self {
            scale: amplitude * amplitude,
            rows: (0..rows).map(|row| Row::of(row, rows, top)).collect(),
            most,
            samples: vec![0.0; WINDOW],
            // The first transform is centred on the first sample.
            missing: WINDOW / 2,
            pushed: 0,
            windowed: transform.make_input_vec(),
            bins: transform.make_output_vec(),
            scratch: transform.make_scratch_vec(),
            powers: vec![0.0; WINDOW / 2 + 1],
            columns: Vec::with_capacity(most * rows),
            per_column: 1,
            sum: vec![0.0; rows],
            summed: 0,
            transform,
            hann,
        }
    }

    /// Takes the next samples.
    pub(super) fn push(&mut self, samples: impl IntoIterator<Item = f32>) {
        for sample in samples {
            let sample = if sample.is_finite() { sample.clamp(-LOUDEST, LOUDEST) } else { 0.0 };
            self.samples[WINDOW - self.missing] = sample;
            self.missing -= 1;
            self.pushed += 1;
            if self.missing == 0 {
                self.transform();
            }
        }
    }

    /// The powers of `width` columns that make up `length`, each from the lowest row up. It is silent after what was pushed.
    pub(super) fn columns(mut self, length: SampleCount, width: usize) -> Vec<Vec<f32>> {
        let pushed = self.pushed;
        // What lies around the last sample has not been transformed yet.
        self.push(std::iter::repeat_n(0.0, WINDOW / 2));
        // Where there is no room for the last column, the others are merged first.
        while self.summed > 0 {
            self.close_column();
        }
        // Transforms behind the last sample show nothing but what was before.
        let wanted = pushed.div_ceil(HOP as u64 * self.per_column) as usize;
        let rows = self.rows.len();
        let have = (self.columns.len() / rows.max(1)).min(wanted);
        let column = |n: usize| if n < have { &self.columns[n * rows..(n + 1) * rows] } else { &[] };
        // Where an edge is, in columns.
        let per_column = (self.per_column * HOP as u64) as f64;
        let edge = |n: usize| length.0 as f64 * n as f64 / width as f64 / per_column;
        // A column's transforms are centred on its samples from the first to the last but one hop.
        let centre = 0.5 - 0.5 / self.per_column as f64;
        let between = |from: f64, to: f64| {
            let mut sum = vec![0.0f32; rows];
            let mut add = |n: usize, weight: f64| {
                sum.iter_mut().zip(column(n)).for_each(|(sum, power)| *sum += power * weight as f32);
            };
            if to - from < 1.0 {
                let at = ((from + to) / 2.0 - centre).max(0.0);
                let part = at.fract();
                add(at as usize, 1.0 - part);
                add(at as usize + 1, part);
            } else {
                for n in from as usize..(to.ceil() as usize).min(have) {
                    let overlap = to.min(n as f64 + 1.0) - from.max(n as f64);
                    add(n, overlap / (to - from));
                }
            }
            sum
        };
        (0..width).map(|n| between(edge(n), edge(n + 1))).collect()
    }

    fn transform(&mut self) {
        for (to, (sample, weight)) in self.windowed.iter_mut().zip(self.samples.iter().zip(&self.hann)) {
            *to = sample * weight;
        }
        self.transform
            .process_with_scratch(&mut self.windowed, &mut self.bins, &mut self.scratch)
            .expect("the transform made these buffers itself");
        self.powers.iter_mut().zip(&self.bins).for_each(|(power, bin)| *power = bin.norm_sqr() * self.scale);
        for (sum, row) in self.sum.iter_mut().zip(&self.rows) {
            *sum += row.power(&self.powers);
        }
        self.samples.copy_within(HOP.., 0);
        self.missing = HOP;
        self.summed += 1;
        if self.summed >= self.per_column {
            self.close_column();
        }
    }

    fn close_column(&mut self) {
        let rows = self.rows.len();
        if self.columns.len() == self.most * rows {
            self.merge_pairs();
            self.per_column *= 2;
            if self.summed < self.per_column {
                return;
            }
        }
        let part = 1.0 / self.summed as f32;
        self.columns.extend(self.sum.iter_mut().map(|sum| std::mem::take(sum) * part));
        self.summed = 0;
    }

    fn merge_pairs(&mut self) {
        let rows = self.rows.len();
        for to in 0..self.columns.len() / 2 {
            let from = 2 * (to / rows) * rows + to % rows;
            self.columns[to] = (self.columns[from] + self.columns[from + rows]) / 2.0;
        }
        self.columns.truncate(self.columns.len() / 2);
    }
}

impl Row {
    /// Row `row` of `rows` that reach up to `top` Hz.
    fn of(row: usize, rows: usize, top: u32) -> Self {
        let bins = f64::from(top) * WINDOW as f64 / f64::from(SAMPLE_RATE);
        let edge = |row: usize| bins * row as f64 / rows as f64;
        let (from, to) = (edge(row).ceil() as usize, edge(row + 1).ceil() as usize);
        if bins >= rows as f64 {
            return Self::Most(from, to);
        }
        let middle = (edge(row) + edge(row + 1)) / 2.0;
        Self::Between(middle as usize, middle.fract() as f32)
    }

    fn power(self, bins: &[f32]) -> f32 {
        match self {
            Self::Most(from, to) => bins[from..to].iter().copied().fold(0.0, f32::max),
            Self::Between(bin, part) => bins[bin] * (1.0 - part) + bins[bin + 1] * part,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sine(hertz: f64, samples: usize) -> impl Iterator<Item = f32> {
        (0..samples).map(move |n| (std::f64::consts::TAU * hertz * n as f64 / 48_000.0).sin() as f32)
    }

    fn loudest(column: &[f32]) -> usize {
        (0..column.len()).max_by(|a, b| column[*a].total_cmp(&column[*b])).unwrap()
    }

    #[test]
    fn a_sine_of_full_scale_has_power_1_in_its_row() {
        for (rows, top) in [(200, 8_000), (400, 4_000), (100, 24_000)] {
            let mut spectrum = Spectrum::new(rows, top, 100);
            spectrum.push(sine(1_500.0, 96_000));
            let columns = spectrum.columns(SampleCount(96_000), 100);
            for column in &columns[4..96] {
                let row = 1_500 * rows / top as usize;
                assert!(loudest(column).abs_diff(row) <= 1, "{} of {rows}", loudest(column));
                let power = column[loudest(column)];
                assert!((0.8..1.1).contains(&power), "{power}");
            }
        }
    }

    #[test]
    fn however_long_it_is_it_stays_small_and_says_when() {
        let seconds = 60;
        let mut spectrum = Spectrum::new(50, 8_000, 20);
        for second in 0..seconds {
            let loud = if second == 30 { 1.0 } else { 0.0 };
            spectrum.push(sine(2_000.0, 48_000).map(|sample| sample * loud));
        }
        assert!(spectrum.columns.capacity() <= 40 * 50);
        let columns = spectrum.columns(SampleCount(48_000 * seconds), 20);
        let powers: Vec<f32> = columns.iter().map(|column| column[12]).collect();
        // Second 30 begins with column 10, of 3 s.
        assert!((0.25..0.4).contains(&powers[10]), "{powers:?}");
        assert!(powers.iter().enumerate().all(|(n, power)| n == 10 || *power < 0.02), "{powers:?}");
    }

    #[test]
    fn pieces_make_no_difference() {
        let all: Vec<f32> = sine(440.0, 100_000).collect();
        let columns = |piece: usize| {
            let mut spectrum = Spectrum::new(64, 8_000, 30);
            all.chunks(piece).for_each(|piece| spectrum.push(piece.iter().copied()));
            spectrum.columns(SampleCount(100_000), 30)
        };
        assert!(columns(1) == columns(100_000) && columns(961) == columns(100_000));
    }

    #[test]
    fn what_is_no_sound_is_silent() {
        let mut spectrum = Spectrum::new(10, 8_000, 10);
        spectrum.push([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40]);
        let columns = spectrum.columns(SampleCount(u64::MAX), 10);
        assert!(columns.iter().flatten().all(|power| power.is_finite() && *power < 1e-6));
        assert_eq!(Spectrum::new(2, 8_000, 3).columns(SampleCount(0), 3), vec![vec![0.0; 2]; 3]);
    }
}
