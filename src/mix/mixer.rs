//! Many tracks' PCM to one.

use super::limiter::{LATENCY, Limiter};
use crate::decode::Level;

/// A frame whose peak is below this (−100 dBFS) adds nothing that could make a sum too loud.
const INAUDIBLE: f32 = 1e-5;

/// Sums frames of PCM and keeps the sum of two or more from clipping.
///
/// One talker alone passes bit for bit, at full scale too: the limiter looks only at frames to which two or more
/// contribute, or somebody who is made louder. It needs to look ahead; that delay is taken out again, so that the first
/// frame taken is the first frame mixed.
///
/// ```
/// let mut mixer = callreel::mix::Mixer::new(1);
/// mixer.add(&[0.5; 960], 1.0);
/// mixer.mix(960);
/// mixer.finish();
/// let mut frame = [0.0; 960];
/// assert!(mixer.take(&mut frame));
/// assert_eq!(frame, [0.5; 960]);
/// ```
pub struct Mixer {
    channels: usize,
    sum: Vec<f32>,
    inputs: u32,
    audible: u32,
    /// Whether an input of the frame at hand is made louder than it came.
    louder: bool,
    limiter: Limiter,
    out: Vec<f32>,
    /// Samples of the limiter's delay still to be dropped.
    skip: usize,
}

impl Mixer {
    /// A mixer for `channels` interleaved channels, 1 or 2.
    pub fn new(channels: usize) -> Self {
        Self {
            channels,
            sum: Vec::with_capacity(960 * channels),
            inputs: 0,
            audible: 0,
            louder: false,
            limiter: Limiter::new(channels),
            out: Vec::with_capacity(4 * 960 * channels),
            skip: LATENCY * channels,
        }
    }

    /// Adds one input to the frame at hand. All inputs of a frame have the same length; what is longer than the
    /// first is cut. An input that is silent throughout need not be added at all.
    pub fn add(&mut self, pcm: &[f32], gain: f32) {
        self.watch(pcm, gain);
        if self.inputs == 0 && gain == 1.0 {
            self.sum.extend_from_slice(pcm);
        } else if self.inputs == 0 {
            self.sum.extend(pcm.iter().map(|sample| sample * gain));
        } else {
            self.sum.iter_mut().zip(pcm).for_each(|(sum, sample)| *sum += gain * sample);
        }
        self.inputs += 1;
    }

    /// As [`add`](Self::add), with a gain that moves evenly over the frame.
    pub fn add_ramp(&mut self, pcm: &[f32], from: f32, to: f32) {
        if from == to {
            return self.add(pcm, to);
        }
        self.watch(pcm, from.abs().max(to.abs()));
        if self.inputs == 0 {
            self.sum.resize(pcm.len(), 0.0);
        }
        let step = (to - from) / (pcm.len() / self.channels).max(1) as f32;
        for (n, (sum, sample)) in self.sum.iter_mut().zip(pcm).enumerate() {
            *sum += (from + step * (n / self.channels) as f32) * sample;
        }
        self.inputs += 1;
    }

    /// Ends the frame at hand, which has `frames` frames; what no input filled is silent.
    pub fn mix(&mut self, frames: usize) {
        self.sum.resize(frames * self.channels, 0.0);
        self.pass(self.audible >= 2 || self.louder);
        self.inputs = 0;
        self.audible = 0;
        self.louder = false;
    }

    /// Puts `frames` frames of silence before the frame at hand.
    pub fn insert_silence(&mut self, frames: usize) {
        let at_hand = std::mem::take(&mut self.sum);
        self.sum.resize(frames * self.channels, 0.0);
        self.pass(false);
        self.sum = at_hand;
    }

    /// Forgets the inputs of the frame at hand.
    pub fn discard(&mut self) {
        self.sum.clear();
        self.inputs = 0;
        self.audible = 0;
        self.louder = false;
    }

    /// Forgets what was mixed, except for the lowest gain: the next frame is as the first.
    pub(super) fn restart(&mut self) {
        self.discard();
        self.limiter.restart();
        self.out.clear();
        self.skip = LATENCY * self.channels;
    }

    /// No frame follows: what the limiter still holds can be taken.
    pub fn finish(&mut self) {
        self.sum.resize(LATENCY * self.channels, 0.0);
        self.pass(false);
    }

    /// Fills `out` with the next mixed frames, or leaves it alone and returns `false` where there are not so many.
    pub fn take(&mut self, out: &mut [f32]) -> bool {
        if self.out.len() < out.len() {
            return false;
        }
        out.copy_from_slice(&self.out[..out.len()]);
        self.out.drain(..out.len());
        true
    }

    /// Takes what is left, fewer frames than `out` holds, and fills up with silence. Returns how many samples were left.
    pub fn take_rest(&mut self, out: &mut [f32]) -> usize {
        let left = self.out.len().min(out.len());
        out[..left].copy_from_slice(&self.out[..left]);
        out[left..].fill(0.0);
        self.out.drain(..left);
        left
    }

    /// The lowest gain the limiter has applied so far, 1 where it never acted.
    pub fn least_gain(&self) -> f32 {
        self.limiter.least_gain()
    }

    fn watch(&mut self, pcm: &[f32], gain: f32) {
        self.audible += u32::from(Level::of(pcm).peak * gain.abs() > INAUDIBLE);
        self.louder |= gain.abs() > 1.0;
    }

    fn pass(&mut self, watch: bool) {
        self.limiter.process(&self.sum, watch, &mut self.out);
        self.sum.clear();
        let skip = self.skip.min(self.out.len());
        self.out.drain(..skip);
        self.skip -= skip;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, amplitude: f32) -> impl FnMut() -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(seed);
        move || (0..960).map(|_| amplitude * (2.0 * random.f32() - 1.0)).collect()
    }

    fn take_all(mixer: &mut Mixer) -> Vec<f32> {
        let mut all = Vec::new();
        let mut frame = [0.0; 480];
        while mixer.take(&mut frame) {
            all.extend(frame);
        }
        let left = mixer.take_rest(&mut frame);
        all.extend(&frame[..left]);
        all
    }

    #[test]
    fn one_talker_at_full_scale_passes_bit_for_bit() {
        let mut mixer = Mixer::new(1);
        let mut voice = noise(1, 1.2);
        let mut said = Vec::new();
        for n in 0..50 {
            let frame = voice();
            // A second one who sends nothing but silence does not count.
            if n % 2 == 0 {
                mixer.add(&[0.0; 960], 1.0);
            }
            mixer.add(&frame, 1.0);
            mixer.mix(960);
            said.extend(frame);
        }
        mixer.finish();
        assert!(take_all(&mut mixer) == said);
    }

    #[test]
    fn sums_come_out_as_long_as_they_went_in_and_at_their_place() {
        let mut mixer = Mixer::new(1);
        let (mut a, mut b) = (noise(1, 0.3), noise(2, 0.3));
        let mut expected = Vec::new();
        for _ in 0..20 {
            let (a, b) = (a(), b());
            expected.extend(a.iter().zip(&b).map(|(a, b)| a + 0.5 * b));
            mixer.add(&a, 1.0);
            mixer.add(&b, 0.5);
            mixer.mix(960);
        }
        mixer.finish();
        assert!(take_all(&mut mixer) == expected);
    }

    #[test]
    fn a_gain_that_moves_does_so_evenly_in_every_channel() {
        let mut mixer = Mixer::new(2);
        for (from, to) in [(0.5, 0.75), (0.75, 1.0)] {
            mixer.add_ramp(&[0.4; 1920], from, to);
            mixer.add(&[0.05; 1920], 1.0);
            mixer.mix(960);
        }
        mixer.finish();
        let out = take_all(&mut mixer);
        for (n, frame) in out.chunks_exact(2).take(1920).enumerate() {
            let expected = 0.05 + 0.4 * (0.5 + 0.5 * n as f32 / 1920.0);
            assert!(frame.iter().all(|sample| (sample - expected).abs() < 1e-4), "{n}: {frame:?}, not {expected}");
        }
    }

    #[test]
    fn two_loud_talkers_do_not_clip() {
        let mut mixer = Mixer::new(1);
        let (mut a, mut b) = (noise(1, 0.9), noise(2, 0.9));
        for _ in 0..50 {
            mixer.add(&a(), 1.0);
            mixer.add(&b(), 1.0);
            mixer.mix(960);
        }
        mixer.finish();
        let out = take_all(&mut mixer);
        assert_eq!(out.len(), 50 * 960);
        assert!(Level::of(&out).peak_dbfs() <= crate::mix::CEILING_DBTP);
        assert!(mixer.least_gain() < 1.0);
    }

    #[test]
    fn one_talker_who_is_made_louder_does_not_clip() {
        let mut mixer = Mixer::new(1);
        let mut voice = noise(1, 0.5);
        for _ in 0..50 {
            mixer.add(&voice(), 4.0);
            mixer.mix(960);
        }
        mixer.finish();
        assert!(Level::of(&take_all(&mut mixer)).peak_dbfs() <= crate::mix::CEILING_DBTP);
    }

    #[test]
    fn a_frame_without_inputs_is_silent() {
        let mut mixer = Mixer::new(2);
        mixer.mix(960);
        mixer.finish();
        assert_eq!(take_all(&mut mixer), vec![0.0; 1920]);
    }
}
