//! How loud a piece of PCM is.

/// Loudness of a piece of PCM, full scale ±1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Level {
    /// The largest magnitude.
    pub peak: f32,
    /// The root of the mean square.
    pub rms: f32,
}

impl Level {
    /// The level of `pcm`, channels together; nothing where it is empty.
    pub fn of(pcm: &[f32]) -> Self {
        if pcm.is_empty() {
            return Self::default();
        }
        let (mut peak, mut sum) = ([0f32; 4], [0f32; 4]);
        let mut chunks = pcm.chunks_exact(4);
        for chunk in &mut chunks {
            for lane in 0..4 {
                peak[lane] = peak[lane].max(chunk[lane].abs());
                sum[lane] += chunk[lane] * chunk[lane];
            }
        }
        for sample in chunks.remainder() {
            peak[0] = peak[0].max(sample.abs());
            sum[0] += sample * sample;
        }
        Self {
            peak: peak.into_iter().fold(0.0, f32::max),
            rms: (sum.into_iter().sum::<f32>() / pcm.len() as f32).sqrt(),
        }
    }

    /// The peak in dB below full scale; minus infinity for silence.
    pub fn peak_dbfs(self) -> f32 {
        20.0 * self.peak.log10()
    }

    /// The root mean square in dB below full scale (a full-scale square wave has 0, a sine −3); minus infinity for
    /// silence.
    pub fn rms_dbfs(self) -> f32 {
        20.0 * self.rms.log10()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sine_has_the_level_it_has() {
        let pcm: Vec<f32> = (0..4800).map(|n| 0.5 * (n as f32 * std::f32::consts::TAU / 48.0).sin()).collect();
        let level = Level::of(&pcm);
        assert!((level.peak_dbfs() + 6.02).abs() < 0.02, "{level:?}");
        assert!((level.rms_dbfs() + 9.03).abs() < 0.02, "{level:?}");
    }

    #[test]
    fn the_loudest_sample_counts_wherever_it_is() {
        for at in 0..7 {
            let mut pcm = [0.0; 7];
            pcm[at] = -0.25;
            assert_eq!(Level::of(&pcm).peak, 0.25);
        }
        assert_eq!(Level::of(&[]).peak_dbfs(), f32::NEG_INFINITY);
    }
}
