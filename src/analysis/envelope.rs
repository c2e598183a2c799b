//! How loud one track was, from the levels of its pieces.

use super::peaks::Waveform;
use crate::time::{MediaTime, SAMPLE_RATE, SampleCount};

/// Samples of a pixel at first: 20 ms, the pieces in which levels come.
const FINEST: u64 = 960;
/// Pixels are merged in pairs when they become more than this.
const MOST_PIXELS: usize = 32_768;

/// The highest peak of each piece of a track: a waveform that is the same above and below.
#[derive(Debug)]
pub struct Envelope {
    samples_per_pixel: u64,
    pixels: Vec<i8>,
}

impl Default for Envelope {
    fn default() -> Self {
        // No more is taken while the call goes on.
        Self { samples_per_pixel: FINEST, pixels: Vec::with_capacity(MOST_PIXELS) }
    }
}

impl Envelope {
    /// Takes the peak, full scale 1, of what was heard from `from` to `to`; what lies before sample 0 is left out.
    pub fn heard(&mut self, from: MediaTime, to: MediaTime, peak: f32) {
        let within = |at: MediaTime| u64::try_from(at.0).unwrap_or(0);
        let (from, to) = (within(from), within(to));
        if to <= from {
            return;
        }
        while (to - 1) / self.samples_per_pixel >= MOST_PIXELS as u64 {
            self.merge_pairs();
        }
        let (first, last) = (from / self.samples_per_pixel, (to - 1) / self.samples_per_pixel);
        let (first, last) = (first as usize, last as usize);
        if self.pixels.len() <= last {
            self.pixels.resize(last + 1, 0);
        }
        // The conversion saturates.
        let peak = (peak * 127.0).round() as i8;
        self.pixels[first..=last].iter_mut().for_each(|pixel| *pixel = peak.max(*pixel));
    }

    /// The waveform of a track that ends at `total`.
    pub fn finish(mut self, total: SampleCount) -> Waveform {
        while total.0.div_ceil(self.samples_per_pixel) > MOST_PIXELS as u64 {
            self.merge_pairs();
        }
        let length = total.0.div_ceil(self.samples_per_pixel);
        self.pixels.resize(length as usize, 0);
        Waveform {
            version: 2,
            channels: 1,
            sample_rate: SAMPLE_RATE,
            samples_per_pixel: u32::try_from(self.samples_per_pixel).unwrap_or(u32::MAX),
            bits: 8,
            length: length as u32,
            data: self.pixels.into_iter().flat_map(|peak| [-peak, peak]).collect(),
        }
    }

    fn merge_pairs(&mut self) {
        let merged = self.pixels.len().div_ceil(2);
        for pixel in 0..merged {
            let other = self.pixels.get(2 * pixel + 1).copied().unwrap_or(0);
            self.pixels[pixel] = self.pixels[2 * pixel].max(other);
        }
        self.pixels.truncate(merged);
        self.samples_per_pixel *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 48_000;

    #[test]
    fn each_piece_has_its_highest_peak_and_what_was_not_heard_is_silent() {
        let mut envelope = Envelope::default();
        envelope.heard(MediaTime(-960), MediaTime(960), 0.5);
        envelope.heard(MediaTime(960), MediaTime(1_920), 0.25);
        envelope.heard(MediaTime(1_000), MediaTime(1_100), 2.0);
        envelope.heard(MediaTime(3_840), MediaTime(4_000), 0.1);
        let waveform = envelope.finish(SampleCount(4_801));
        assert_eq!(waveform.data, [-64, 64, -127, 127, 0, 0, 0, 0, -13, 13, 0, 0]);
        assert_eq!((waveform.length, waveform.samples_per_pixel), (6, 960));
    }

    #[test]
    fn a_day_takes_no_more_room_than_ten_minutes() {
        let mut envelope = Envelope::default();
        let day = 24 * 3_600 * SECOND;
        for second in 0..24 * 3_600 {
            let at = MediaTime(second * SECOND);
            envelope.heard(at, at + SampleCount(960), if second == 7_200 { 0.9 } else { 0.1 });
        }
        let waveform = envelope.finish(SampleCount(day as u64));
        assert!(waveform.length as usize <= MOST_PIXELS && waveform.data.len() == 2 * waveform.length as usize);
        let loudest = waveform.data.iter().position(|value| *value == 114).unwrap() / 2;
        assert_eq!(loudest as u64, 7_200 * SECOND as u64 / u64::from(waveform.samples_per_pixel));
    }
}
