//! Sounds made by rule, the same for the same arguments.

use std::f32::consts::TAU;
use std::time::Duration;

use super::{Audio, samples_in};
use crate::time::SAMPLE_RATE;

/// Bursts as speech has them: syllables of 80–250 ms, voiced or hissing, of gliding pitch, with pauses between words.
///
/// Every stretch of half a second is unlike every other, so that a correlation finds it in one place only. Peaks stay
/// below 0.7; the mean level is about −20 dBFS.
pub fn speech(seed: u64, duration: Duration) -> Audio {
    let mut random = fastrand::Rng::with_seed(seed);
    let len = samples_in(duration);
    let mut samples = Vec::with_capacity(len);
    while samples.len() < len {
        if random.f32() < 0.15 {
            let pause = millis(random.u32(60..220));
            samples.resize(samples.len() + pause, 0.0);
        }
        if random.f32() < 0.25 {
            hiss(&mut samples, &mut random);
        } else {
            vowel(&mut samples, &mut random);
        }
    }
    samples.truncate(len);
    Audio::mono(samples)
}

/// A sine.
pub fn tone(hertz: f32, amplitude: f32, duration: Duration) -> Audio {
    let step = f64::from(hertz) / f64::from(SAMPLE_RATE);
    let sample = |at: usize| ((at as f64 * step).fract() as f32 * TAU).sin() * amplitude;
    Audio::mono((0..samples_in(duration)).map(sample).collect())
}

/// A sine that rises, or falls, at an even pace in hertz a second.
pub fn chirp(from_hertz: f32, to_hertz: f32, amplitude: f32, duration: Duration) -> Audio {
    let len = samples_in(duration);
    let mut phase = 0.0f64;
    let sample = |at: usize| {
        let value = (phase.fract() as f32 * TAU).sin() * amplitude;
        let hertz = from_hertz + (to_hertz - from_hertz) * at as f32 / len as f32;
        phase += f64::from(hertz) / f64::from(SAMPLE_RATE);
        value
    };
    Audio::mono((0..len).map(sample).collect())
}

/// White noise, evenly spread within ±`amplitude`.
pub fn noise(seed: u64, amplitude: f32, duration: Duration) -> Audio {
    let mut random = fastrand::Rng::with_seed(seed);
    Audio::mono((0..samples_in(duration)).map(|_| (random.f32() * 2.0 - 1.0) * amplitude).collect())
}

fn vowel(samples: &mut Vec<f32>, random: &mut fastrand::Rng) {
    let len = millis(random.u32(80..250));
    let (from, to) = (90.0 + random.f32() * 140.0, 90.0 + random.f32() * 140.0);
    let formants = [300.0 + random.f32() * 500.0, 900.0 + random.f32() * 1_400.0, 2_300.0 + random.f32() * 900.0];
    let level = 0.5 + random.f32() * 0.5;
    let mut phase = 0.0f32;
    for at in 0..len {
        let pitch = from + (to - from) * at as f32 / len as f32;
        phase = (phase + pitch / SAMPLE_RATE as f32).fract();
        let mut value = 0.0;
        for harmonic in 1..=(3_600.0 / pitch) as u32 {
            let hertz = pitch * harmonic as f32;
            let near = |formant: f32| 1.0 / (1.0 + ((hertz - formant) / 120.0).powi(2));
            let gain = near(formants[0]) + 0.6 * near(formants[1]) + 0.3 * near(formants[2]);
            value += gain * (phase * harmonic as f32 * TAU).sin();
        }
        samples.push((value * level * envelope(at, len) * 0.25).clamp(-0.7, 0.7));
    }
}

fn hiss(samples: &mut Vec<f32>, random: &mut fastrand::Rng) {
    let len = millis(random.u32(60..160));
    let level = 0.1 + random.f32() * 0.15;
    let mut last = 0.0;
    for at in 0..len {
        let white = random.f32() * 2.0 - 1.0;
        samples.push((white - last) * 0.5 * level * envelope(at, len));
        last = white;
    }
}

/// Rises and falls over 10 ms, so that nothing clicks.
fn envelope(at: usize, len: usize) -> f32 {
    let edge = at.min(len - 1 - at) as f32 / millis(10) as f32;
    edge.min(1.0)
}

fn millis(millis: u32) -> usize {
    (millis * SAMPLE_RATE / 1_000) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_is_the_same_for_the_same_seed_and_has_a_speaking_level() {
        let audio = speech(7, Duration::from_secs(5));
        assert_eq!(audio, speech(7, Duration::from_secs(5)));
        assert_ne!(audio, speech(8, Duration::from_secs(5)));
        assert_eq!(audio.len(), 240_000);
        let samples = audio.channel(0);
        let rms = (samples.iter().map(|s| f64::from(s * s)).sum::<f64>() / samples.len() as f64).sqrt();
        let level = 20.0 * rms.log10();
        assert!((-26.0..-14.0).contains(&level), "{level} dBFS");
        assert!(samples.iter().all(|s| s.abs() <= 0.7));
    }

    #[test]
    fn a_chirp_passes_its_frequencies() {
        let audio = chirp(100.0, 1_000.0, 0.5, Duration::from_secs(1));
        let crossings = |part: &[f32]| part.windows(2).filter(|w| w[0] < 0.0 && w[1] >= 0.0).count();
        let samples = audio.channel(0);
        assert!(crossings(&samples[..4_800]).abs_diff(14) <= 1);
        assert!(crossings(&samples[43_200..]).abs_diff(95) <= 1);
    }

    #[test]
    fn tone_and_noise_keep_their_amplitude() {
        let peak = |audio: Audio| audio.channel(0).iter().fold(0.0f32, |peak, s| peak.max(s.abs()));
        assert!((peak(tone(1_000.0, 0.3, Duration::from_millis(100))) - 0.3).abs() < 0.001);
        let peak = peak(noise(1, 0.2, Duration::from_millis(500)));
        assert!(peak > 0.19 && peak <= 0.2);
    }
}
