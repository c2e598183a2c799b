//! How loud each track is in the mix.

use ebur128::{EbuR128, Mode};

use crate::time::SAMPLE_RATE;

/// What is done to a track's loudness. Nothing, by default.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gain {
    /// The factor by which its samples are multiplied.
    pub factor: f32,
    /// The loudness to which its voice is brought before that, in LUFS (EBU R 128). None: as it came.
    pub target_lufs: Option<f32>,
}

impl Gain {
    /// As it came.
    pub const UNITY: Self = Self { factor: 1.0, target_lufs: None };

    /// A constant factor.
    pub const fn factor(factor: f32) -> Self {
        Self { factor, target_lufs: None }
    }
}

impl Default for Gain {
    fn default() -> Self {
        Self::UNITY
    }
}

/// A voice is made so much louder or softer at most, in dB.
const MOST: f32 = 12.0;
/// How fast the gain moves, in dB a second: nobody hears it move.
const SPEED: f32 = 3.0;
/// What is below this is no voice, in LUFS: noise is not made loud.
const NO_VOICE: f64 = -50.0;
/// Of a voice, what lies this far below its mean is a pause (ITU-R BS.1770), in LU.
const PAUSE: f64 = 10.0;
/// Frames between two looks at the last 400 ms: 100 ms.
const STEP: usize = SAMPLE_RATE as usize / 10;
/// Looks that fill the first window: before that, no loudness is known.
const WINDOW: u32 = 4;
/// Looks that make up the mean, about: half a minute of voice.
const MEMORY: f64 = 300.0;

/// Applies a [`Gain`] to one track, piece by piece.
pub(super) struct GainControl {
    gain: Gain,
    leveller: Option<Box<Leveller>>,
}

impl GainControl {
    /// For a track of `channels` channels, 1 or 2.
    pub(super) fn new(gain: Gain, channels: usize) -> Self {
        Self { gain, leveller: gain.target_lufs.map(|target| Box::new(Leveller::new(target, channels))) }
    }

    /// Listens to the next piece as it came, and gives the factors with which it begins and ends.
    pub(super) fn next(&mut self, pcm: &[f32]) -> (f32, f32) {
        let (from, to) = self.leveller.as_mut().map_or((1.0, 1.0), |leveller| leveller.next(pcm));
        (from * self.gain.factor, to * self.gain.factor)
    }

    /// The factor at which the last piece ended.
    pub(super) fn current(&self) -> f32 {
        self.gain.factor * self.leveller.as_ref().map_or(1.0, |leveller| factor(leveller.decibels))
    }
}

/// Brings a voice to a loudness: a gain that follows the mean loudness of what was said so far.
struct Leveller {
    target: f64,
    channels: usize,
    meter: EbuR128,
    /// Frames since the last look.
    frames: usize,
    looks: u32,
    /// Mean energy of the voice and how many looks are in it.
    energy: f64,
    voiced: f64,
    decibels: f32,
    wanted: f32,
}

impl Leveller {
    fn new(target: f32, channels: usize) -> Self {
        let meter = EbuR128::new(channels as u32, SAMPLE_RATE, Mode::M).expect("one or two channels at 48 kHz");
        Self {
            target: f64::from(target),
            channels,
            meter,
            frames: 0,
            looks: 0,
            energy: 0.0,
            voiced: 0.0,
            decibels: 0.0,
            wanted: 0.0,
        }
    }

    fn next(&mut self, pcm: &[f32]) -> (f32, f32) {
        let frames = pcm.len() / self.channels;
        self.meter.add_frames_f32(pcm).expect("slots are whole frames");
        self.frames += frames;
        if self.frames >= STEP {
            self.frames -= STEP;
            self.look();
        }
        let before = self.decibels;
        let step = SPEED * frames as f32 / SAMPLE_RATE as f32;
        self.decibels += (self.wanted - self.decibels).clamp(-step, step);
        (factor(before), factor(self.decibels))
    }

    fn look(&mut self) {
        self.looks = self.looks.saturating_add(1);
        let Ok(lufs) = self.meter.loudness_momentary() else { return };
        let mean = 10.0 * self.energy.log10();
        if self.looks < WINDOW || lufs < NO_VOICE || (self.voiced > 0.0 && lufs < mean - PAUSE) {
            return;
        }
        self.voiced = (self.voiced + 1.0).min(MEMORY);
        self.energy += (10f64.powf(lufs / 10.0) - self.energy) / self.voiced;
        self.wanted = ((self.target - 10.0 * self.energy.log10()) as f32).clamp(-MOST, MOST);
    }
}

fn factor(decibels: f32) -> f32 {
    10f32.powf(decibels / 20.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::LoudnessMeter;

    const SLOT: usize = 960;

    /// Loudness of what follows the first `after` slots, and the furthest the gain moved in a slot, in dB.
    fn levelled(gain: Gain, after: usize, slots: &[Vec<f32>]) -> (f64, f32) {
        let mut control = GainControl::new(gain, 1);
        let mut meter = LoudnessMeter::new(1);
        let mut fastest = 0f32;
        let mut last = control.current();
        for (n, slot) in slots.iter().enumerate() {
            let (from, to) = control.next(slot);
            assert_eq!((from, to), (last, control.current()), "the gain does not jump");
            fastest = fastest.max((20.0 * (to / from).log10()).abs());
            last = to;
            let out: Vec<f32> = slot.iter().map(|sample| sample * to).collect();
            if n >= after {
                meter.push(&out);
            }
        }
        (meter.finish().unwrap().integrated_lufs.unwrap(), fastest)
    }

    /// Speech-like: bursts of noise of such an amplitude, then pauses of faint noise.
    fn voice(amplitude: f32, seconds: usize) -> Vec<Vec<f32>> {
        let mut random = fastrand::Rng::with_seed(4);
        (0..seconds * 50)
            .map(|n| {
                let level = if n % 100 < 60 { amplitude } else { amplitude * 0.02 };
                (0..SLOT).map(|_| level * (2.0 * random.f32() - 1.0)).collect()
            })
            .collect()
    }

    #[test]
    fn soft_and_loud_voices_come_to_the_same_loudness() {
        for amplitude in [0.04, 0.1, 0.4] {
            let gain = Gain { target_lufs: Some(-20.0), ..Gain::UNITY };
            let (lufs, fastest) = levelled(gain, 400, &voice(amplitude, 30));
            assert!((lufs + 20.0).abs() < 0.5, "{amplitude}: {lufs} LUFS");
            assert!(fastest <= SPEED / 50.0 + 1e-3, "{amplitude}: {fastest} dB in 20 ms");
        }
    }

    #[test]
    fn the_factor_comes_on_top() {
        let gain = Gain { target_lufs: Some(-20.0), factor: 0.5 };
        let (lufs, _) = levelled(gain, 400, &voice(0.1, 30));
        assert!((lufs + 26.0).abs() < 0.5, "{lufs} LUFS");
    }

    #[test]
    fn noise_is_not_made_loud_and_a_whisper_not_endlessly() {
        let mut control = GainControl::new(Gain { target_lufs: Some(-20.0), ..Gain::UNITY }, 1);
        for slot in voice(0.002, 30) {
            control.next(&slot);
        }
        assert_eq!(control.current(), 1.0);
        for slot in voice(0.012, 30) {
            control.next(&slot);
        }
        assert!((20.0 * control.current().log10() - MOST).abs() < 1e-3, "{}", control.current());
    }

    #[test]
    fn without_a_target_the_factor_is_all() {
        let mut control = GainControl::new(Gain::factor(0.5), 2);
        assert_eq!(control.next(&[0.9; 1920]), (0.5, 0.5));
    }
}
