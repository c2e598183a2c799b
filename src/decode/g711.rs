//! G.711 (PCMU and PCMA, RFC 3551 §4.5.14): expansion, and concealment by repeating the last pitch period.

use super::Level;
use crate::call::Codec;

/// Which of the two companding laws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Law {
    Mu,
    A,
}

const MU_LAW: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let inverted = !(code as u8);
        let exponent = (inverted >> 4) & 7;
        let mantissa = (inverted & 15) as i32;
        let magnitude = (((mantissa << 3) + 0x84) << exponent) - 0x84;
        table[code] = (if inverted & 0x80 != 0 { -magnitude } else { magnitude }) as f32 / 32768.0;
        code += 1;
    }
    table
};

const A_LAW: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let even_bits = (code as u8) ^ 0x55;
        let exponent = (even_bits >> 4) & 7;
        let mantissa = ((even_bits & 15) as i32) << 4;
        let magnitude = if exponent == 0 { mantissa + 8 } else { (mantissa + 0x108) << (exponent - 1) };
        table[code] = (if even_bits & 0x80 != 0 { magnitude } else { -magnitude }) as f32 / 32768.0;
        code += 1;
    }
    table
};

/// Longest pitch period looked for: 15 ms, 67 Hz.
const LONGEST: usize = 120;
/// Shortest pitch period looked for: 2.5 ms, 400 Hz.
const SHORTEST: usize = 20;
/// Samples compared to find the period.
const COMPARED: usize = 80;
/// Samples remembered.
const HISTORY: usize = LONGEST + COMPARED;
/// Samples over which a repetition gives way to what comes after it: 2.5 ms.
const BLEND: usize = 20;

/// The level of a G.711 packet, told from its bytes; `None` for other codecs.
pub fn level(codec: Codec, payload: &[u8]) -> Option<Level> {
    let table = match codec {
        Codec::Pcmu => &MU_LAW,
        Codec::Pcma => &A_LAW,
        Codec::Opus => return None,
    };
    let (mut peak, mut sum) = (0f32, 0f32);
    for code in payload {
        let sample = table[usize::from(*code)];
        peak = peak.max(sample.abs());
        sum += sample * sample;
    }
    Some(Level { peak, rms: (sum / payload.len().max(1) as f32).sqrt() })
}

/// A G.711 decoder at 8 kHz with concealment.
#[derive(Debug)]
pub(super) struct G711 {
    history: [f32; HISTORY],
    /// The period being repeated, and how far into it we are.
    repeating: Option<(usize, usize)>,
}

impl G711 {
    pub(super) fn new() -> Self {
        Self { history: [0.0; HISTORY], repeating: None }
    }

    /// Forgets what was played.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// Appends the samples of `payload` to `out`.
    pub(super) fn decode(&mut self, law: Law, payload: &[u8], out: &mut Vec<f32>) {
        let table = match law {
            Law::Mu => &MU_LAW,
            Law::A => &A_LAW,
        };
        let start = out.len();
        out.extend(payload.iter().map(|code| table[usize::from(*code)]));
        if self.repeating.is_some() {
            let blended = payload.len().min(BLEND);
            for n in 0..blended {
                let weight = (n as f32 + 0.5) / blended as f32;
                let repeated = self.repeat();
                out[start + n] = weight * out[start + n] + (1.0 - weight) * repeated;
            }
            self.repeating = None;
        }
        self.remember(&out[start..]);
    }

    /// Appends `count` samples that continue what was played.
    pub(super) fn conceal(&mut self, count: usize, out: &mut Vec<f32>) {
        if self.repeating.is_none() {
            self.repeating = Some((self.pitch(), 0));
        }
        for _ in 0..count {
            let sample = self.repeat();
            out.push(sample);
        }
    }

    fn remember(&mut self, samples: &[f32]) {
        let kept = samples.len().min(HISTORY);
        self.history.copy_within(kept.., 0);
        self.history[HISTORY - kept..].copy_from_slice(&samples[samples.len() - kept..]);
    }

    fn repeat(&mut self) -> f32 {
        let Some((period, at)) = &mut self.repeating else { return 0.0 };
        let sample = self.history[HISTORY - *period + *at];
        *at = (*at + 1) % *period;
        sample
    }

    /// The lag at which the last 10 ms resemble what came before most.
    fn pitch(&self) -> usize {
        let recent = &self.history[HISTORY - COMPARED..];
        let likeness = |lag: usize| {
            let earlier = &self.history[HISTORY - COMPARED - lag..HISTORY - lag];
            let product: f32 = recent.iter().zip(earlier).map(|(a, b)| a * b).sum();
            let energy: f32 = earlier.iter().map(|b| b * b).sum();
            product / (energy + 1e-9).sqrt()
        };
        let mut best = (LONGEST, f32::MIN);
        for lag in SHORTEST..=LONGEST {
            let value = likeness(lag);
            if value > best.1 {
                best = (lag, value);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packets_level_is_that_of_its_samples() {
        let payload: Vec<u8> = (0..=255).collect();
        for (codec, law) in [(Codec::Pcmu, Law::Mu), (Codec::Pcma, Law::A)] {
            let mut pcm = Vec::new();
            G711::new().decode(law, &payload, &mut pcm);
            let (found, expected) = (level(codec, &payload).unwrap(), Level::of(&pcm));
            assert_eq!(found.peak, expected.peak);
            assert!((found.rms - expected.rms).abs() < 1e-4, "{found:?} {expected:?}");
        }
        assert_eq!(level(Codec::Opus, &payload), None);
    }

    #[test]
    fn both_laws_give_the_values_of_the_standard() {
        // ITU-T G.711 tables 2a and 1a, scaled to 16 bits: the extremes and the steps around zero.
        let mu = |code: usize| (MU_LAW[code] * 32768.0) as i32;
        assert_eq!([mu(0x00), mu(0x80), mu(0xff), mu(0x7f), mu(0xfe), mu(0x7e)], [-32124, 32124, 0, 0, 8, -8]);
        let a = |code: usize| (A_LAW[code] * 32768.0) as i32;
        assert_eq!([a(0x2a), a(0xaa), a(0xd5), a(0x55), a(0xd4), a(0x54)], [-32256, 32256, 8, -8, 24, -24]);
    }

    #[test]
    fn both_laws_rise_without_a_break() {
        for n in 0..127usize {
            assert!(MU_LAW[0xff - n] < MU_LAW[0xff - n - 1]);
            assert!(A_LAW[(0x80 + n) ^ 0x55] < A_LAW[(0x81 + n) ^ 0x55]);
        }
    }

    #[test]
    fn a_hole_in_a_tone_is_filled_with_the_tone() {
        let sine = |n: usize| 0.5 * (n as f32 * std::f32::consts::TAU / 40.0).sin();
        let encode = |value: f32| {
            (0..=255u8).min_by(|a, b| {
                let off = |code: &u8| (MU_LAW[usize::from(*code)] - value).abs();
                off(a).total_cmp(&off(b))
            })
        };
        let payload: Vec<u8> = (0..480).map(|n| encode(sine(n)).unwrap()).collect();
        let mut decoder = G711::new();
        let mut out = Vec::new();
        decoder.decode(Law::Mu, &payload[..320], &mut out);
        decoder.conceal(80, &mut out);
        decoder.decode(Law::Mu, &payload[400..], &mut out);
        for (n, sample) in out.iter().enumerate() {
            assert!((sample - sine(n)).abs() < 0.03, "sample {n}: {sample} for {}", sine(n));
        }
    }
}
