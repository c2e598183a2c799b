//! The waveform's peaks, in the form that `audiowaveform` writes and waveform players read.

use serde::{Deserialize, Serialize};

use crate::time::{SAMPLE_RATE, SampleCount};

/// Samples of a pixel at first: 10 ms.
const FINEST: u64 = 480;
/// Pixels are merged in pairs when they become more than this.
const MOST_PIXELS: usize = 65_536;

/// Finds the lowest and highest sample of each piece of a mix.
///
/// A pixel is 10 ms at first; whenever there are 65 536 of them, each two become one. So a call of ten minutes has a
/// hundred pixels a second, one of ten hours one every 640 ms, and neither takes more than 128 KiB a channel.
#[derive(Debug)]
pub struct Peaks {
    channels: usize,
    samples_per_pixel: u64,
    /// Lowest and highest sample of each finished pixel, channel by channel.
    pixels: Vec<[i8; 2]>,
    /// The same of the one at hand, full scale ±1.
    at_hand: Vec<[f32; 2]>,
    /// Frames in it.
    filled: u64,
}

/// A waveform as JSON: version 2 of `audiowaveform`'s format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waveform {
    /// Of the format: 2.
    pub version: u32,
    /// Channels, interleaved in `data`.
    pub channels: u32,
    /// Samples a second.
    pub sample_rate: u32,
    /// Samples a pixel; the last pixel may have fewer.
    pub samples_per_pixel: u32,
    /// Bits a value: 8, full scale is 128.
    pub bits: u32,
    /// Pixels a channel.
    pub length: u32,
    /// For each pixel and channel the lowest and the highest sample.
    pub data: Vec<i8>,
}

const NOTHING: [f32; 2] = [f32::INFINITY, f32::NEG_INFINITY];

impl Peaks {
    /// No pixel yet, of `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            samples_per_pixel: FINEST,
            pixels: Vec::with_capacity(MOST_PIXELS * channels),
            at_hand: vec![NOTHING; channels],
            filled: 0,
        }
    }

    /// Takes the next PCM, interleaved.
    pub fn push(&mut self, mut pcm: &[f32]) {
        while !pcm.is_empty() {
            let room = (self.samples_per_pixel - self.filled) as usize * self.channels;
            let (now, rest) = pcm.split_at(room.min(pcm.len()));
            if self.channels == 1 {
                let found = range_of(now);
                widen(&mut self.at_hand[0], found);
            } else {
                for frame in now.chunks_exact(self.channels) {
                    self.at_hand.iter_mut().zip(frame).for_each(|(range, sample)| widen(range, [*sample; 2]));
                }
            }
            self.filled += (now.len() / self.channels) as u64;
            if self.filled == self.samples_per_pixel {
                self.close_pixel();
            }
            pcm = rest;
        }
    }

    /// Ends the waveform at `total`: it is silent where nothing was pushed, and pixels that begin later are dropped.
    pub fn finish(mut self, total: SampleCount) -> Waveform {
        let pushed = (self.pixels.len() / self.channels) as u64 * self.samples_per_pixel + self.filled;
        let silence = [0.0; 2 * FINEST as usize];
        let mut missing = total.0.saturating_sub(pushed);
        while missing > 0 {
            let frames = missing.min(FINEST);
            self.push(&silence[..frames as usize * self.channels]);
            missing -= frames;
        }
        // Where pixels double at the very end, it takes a second time.
        while self.filled > 0 {
            self.close_pixel();
        }
        let length = total.0.div_ceil(self.samples_per_pixel).min((self.pixels.len() / self.channels) as u64);
        self.pixels.truncate(length as usize * self.channels);
        Waveform {
            version: 2,
            channels: self.channels as u32,
            sample_rate: SAMPLE_RATE,
            samples_per_pixel: u32::try_from(self.samples_per_pixel).unwrap_or(u32::MAX),
            bits: 8,
            length: length as u32,
            data: self.pixels.into_iter().flatten().collect(),
        }
    }

    fn close_pixel(&mut self) {
        // Doubling late, when the next pixel comes, keeps a call of exactly so many pixels whole.
        if self.pixels.len() == MOST_PIXELS * self.channels {
            self.merge_pairs();
            self.samples_per_pixel *= 2;
            if self.filled < self.samples_per_pixel {
                return;
            }
        }
        for range in &mut self.at_hand {
            self.pixels.push(std::mem::replace(range, NOTHING).map(to_8_bits));
        }
        self.filled = 0;
    }

    fn merge_pairs(&mut self) {
        let channels = self.channels;
        for to in 0..self.pixels.len() / 2 {
            let (pixel, channel) = (to / channels, to % channels);
            let from = 2 * pixel * channels + channel;
            let (one, other) = (self.pixels[from], self.pixels[from + channels]);
            self.pixels[to] = [one[0].min(other[0]), one[1].max(other[1])];
        }
        self.pixels.truncate(self.pixels.len() / 2);
    }
}

fn widen(range: &mut [f32; 2], found: [f32; 2]) {
    *range = [range[0].min(found[0]), range[1].max(found[1])];
}

/// The lowest and highest of `pcm`.
fn range_of(pcm: &[f32]) -> [f32; 2] {
    const LANES: usize = 8;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut chunks = pcm.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            low[lane] = low[lane].min(chunk[lane]);
            high[lane] = high[lane].max(chunk[lane]);
        }
    }
    let mut range = [low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max)];
    chunks.remainder().iter().for_each(|sample| widen(&mut range, [*sample; 2]));
    range
}

fn to_8_bits(sample: f32) -> i8 {
    // The conversion saturates.
    (sample * 128.0).round() as i8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, samples: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        (0..samples).map(|n| (2.0 * random.f32() - 1.0) * (n as f32 / samples as f32)).collect()
    }

    fn expected(pcm: &[f32], channels: usize, samples_per_pixel: usize) -> Vec<i8> {
        let mut data = Vec::new();
        for pixel in pcm.chunks(samples_per_pixel * channels) {
            for channel in 0..channels {
                let samples = || pixel.iter().skip(channel).step_by(channels).copied();
                data.push((samples().fold(f32::MAX, f32::min) * 128.0).round() as i8);
                data.push((samples().fold(f32::MIN, f32::max) * 128.0).round() as i8);
            }
        }
        data
    }

    #[test]
    fn each_pixel_has_its_samples_extremes() {
        for channels in [1, 2] {
            let pcm = noise(1, 10_007 * channels);
            let mut peaks = Peaks::new(channels);
            pcm.chunks(961 * channels).for_each(|pcm| peaks.push(pcm));
            let waveform = peaks.finish(SampleCount(10_007));
            assert_eq!(waveform.data, expected(&pcm, channels, 480));
            assert_eq!((waveform.length, waveform.channels, waveform.samples_per_pixel), (21, channels as u32, 480));
        }
    }

    #[test]
    fn the_end_is_where_the_recording_ends() {
        for (total, pixels) in [(0, 0), (1, 1), (480, 1), (481, 2), (4_799, 10), (4_800, 10), (4_801, 11), (9_999, 21)]
        {
            let mut peaks = Peaks::new(1);
            peaks.push(&[0.5; 4_800]);
            let waveform = peaks.finish(SampleCount(total));
            assert_eq!((waveform.length as usize, waveform.data.len()), (pixels, 2 * pixels), "{total}");
        }
    }

    #[test]
    fn a_long_call_gets_coarser_and_no_bigger() {
        let pcm = noise(2, 480 * MOST_PIXELS * 5 / 2 + 77);
        for channels in [1, 2] {
            let mut peaks = Peaks::new(channels);
            let frames = pcm.len() / channels;
            pcm[..frames * channels].chunks(960 * channels).for_each(|pcm| peaks.push(pcm));
            assert!(peaks.pixels.capacity() <= MOST_PIXELS * channels);
            let waveform = peaks.finish(SampleCount(frames as u64));
            let coarser = if channels == 1 { 1920 } else { 960 };
            assert_eq!(waveform.samples_per_pixel, coarser);
            assert_eq!(waveform.data, expected(&pcm[..frames * channels], channels, coarser as usize));
        }
    }

    #[test]
    fn the_json_is_what_players_read() {
        let mut peaks = Peaks::new(1);
        peaks.push(&[[0.5; 480], [-2.0; 480]].concat());
        let json = serde_json::to_string(&peaks.finish(SampleCount(960))).unwrap();
        assert_eq!(
            json,
            r#"{"version":2,"channels":1,"sample_rate":48000,"samples_per_pixel":480,"bits":8,"length":2,"data":[64,64,-128,-128]}"#
        );
    }
}
