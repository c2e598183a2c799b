//! Sound in memory: 48 kHz, 32-bit float, one or more channels of equal length.
//!
//! [`Audio::read`] takes WAV, FLAC and Ogg Opus files of any rate; [`generate`] makes sounds that tests
//! can find again.

pub mod generate;
mod read;

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rubato::audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Resampler};

use super::TestkitError;
use crate::time::{SAMPLE_RATE, SampleCount};

const RESAMPLE_CHUNK: usize = 1024;

/// A sound: 48 kHz samples, full scale ±1.0, one vector a channel, all of the same length.
#[derive(Clone, Debug, PartialEq)]
pub struct Audio {
    channels: Vec<Vec<f32>>,
}

impl Audio {
    /// A sound of one channel.
    pub fn mono(samples: Vec<f32>) -> Self {
        Self { channels: vec![samples] }
    }

    /// A sound of several channels.
    ///
    /// # Panics
    ///
    /// Where there is no channel, or their lengths differ.
    pub fn from_channels(channels: Vec<Vec<f32>>) -> Self {
        let len = channels.first().expect("a sound has at least one channel").len();
        assert!(channels.iter().all(|channel| channel.len() == len), "all channels of a sound have one length");
        Self { channels }
    }

    /// Digital silence of one channel.
    pub fn silence(duration: Duration) -> Self {
        Self::mono(vec![0.0; samples_in(duration)])
    }

    /// Reads a WAV, FLAC or Ogg Opus file, told apart by its first bytes, and resamples it to 48 kHz where needed.
    ///
    /// Ogg Opus is decoded as RFC 7845 has it: pre-skip and everything after the last granule position are cut off,
    /// the output gain is applied; channel mapping families 0 and 1.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Audio`] with the path where the file is missing, damaged, or of another kind.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, TestkitError> {
        read::file(path.as_ref())
    }

    /// Decodes a whole Ogg Opus file that is in memory, as [`read`](Self::read) does.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Audio`] where it is damaged.
    pub fn from_ogg_opus(bytes: &[u8]) -> Result<Self, TestkitError> {
        read::ogg_opus(Path::new("(in memory)"), std::io::Cursor::new(bytes))
    }

    /// Takes samples of another rate.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Audio`] where the resampler refuses the rate.
    pub fn resampled(channels: Vec<Vec<f32>>, rate: u32) -> Result<Self, TestkitError> {
        let channels = resample(channels, rate, SAMPLE_RATE)?;
        Ok(Self::from_channels(channels))
    }

    /// The first channel's samples at another rate: 8 kHz for G.711, say.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Audio`] where the resampler refuses the rate.
    pub fn at_rate(&self, rate: u32) -> Result<Vec<f32>, TestkitError> {
        let mut channels = resample(vec![self.channels[0].clone()], SAMPLE_RATE, rate)?;
        Ok(channels.swap_remove(0))
    }

    /// Writes a WAV file of 32-bit floats.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Audio`] with the path where the file cannot be written.
    pub fn write_wav(&self, path: impl AsRef<Path>) -> Result<(), TestkitError> {
        let path = path.as_ref();
        let failed = |error: hound::Error| TestkitError::audio(path, error);
        let spec = hound::WavSpec {
            channels: self.channels.len() as u16,
            sample_rate: SAMPLE_RATE,
            bits_per_sample: 32,
            sample_format: hound::SampleFormat::Float,
        };
        let mut writer = hound::WavWriter::create(path, spec).map_err(failed)?;
        for at in 0..self.len() {
            for channel in &self.channels {
                writer.write_sample(channel[at]).map_err(failed)?;
            }
        }
        writer.finalize().map_err(failed)
    }

    /// How many channels it has, at least one.
    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// The samples of one channel.
    ///
    /// # Panics
    ///
    /// Where there is no such channel.
    pub fn channel(&self, index: usize) -> &[f32] {
        &self.channels[index]
    }

    /// Samples a channel.
    pub fn len(&self) -> usize {
        self.channels[0].len()
    }

    /// Whether it has no sample.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long it is.
    pub fn duration(&self) -> Duration {
        SampleCount(self.len() as u64).as_duration()
    }

    /// The mean of all channels, as one.
    pub fn to_mono(&self) -> Self {
        let gain = 1.0 / self.channels.len() as f32;
        Self::mono((0..self.len()).map(|at| self.channels.iter().map(|c| c[at]).sum::<f32>() * gain).collect())
    }

    /// The samples `range` of all channels; what lies beyond the end is silence.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let cut = |channel: &Vec<f32>| range.clone().map(|at| channel.get(at).copied().unwrap_or(0.0)).collect();
        Self { channels: self.channels.iter().map(cut).collect() }
    }

    /// This sound, then another.
    ///
    /// # Panics
    ///
    /// Where their channels differ in number.
    pub fn then(mut self, next: &Self) -> Self {
        assert_eq!(self.channel_count(), next.channel_count(), "both sounds have the same channels");
        for (channel, more) in self.channels.iter_mut().zip(&next.channels) {
            channel.extend_from_slice(more);
        }
        self
    }

    /// Adds another sound, `at` samples after this one's start; grows where needed.
    ///
    /// # Panics
    ///
    /// Where their channels differ in number.
    pub fn add(&mut self, other: &Self, at: usize) {
        assert_eq!(self.channel_count(), other.channel_count(), "both sounds have the same channels");
        let len = self.len().max(at + other.len());
        for (channel, more) in self.channels.iter_mut().zip(&other.channels) {
            channel.resize(len, 0.0);
            for (sample, add) in channel[at..].iter_mut().zip(more) {
                *sample += add;
            }
        }
    }

    /// Multiplies every sample.
    pub fn scaled(mut self, gain: f32) -> Self {
        for sample in self.channels.iter_mut().flatten() {
            *sample *= gain;
        }
        self
    }
}

/// How many 48 kHz samples last `duration`, rounded down.
pub fn samples_in(duration: Duration) -> usize {
    (duration.as_nanos() * u128::from(SAMPLE_RATE) / 1_000_000_000) as usize
}

fn resample(channels: Vec<Vec<f32>>, from: u32, to: u32) -> Result<Vec<Vec<f32>>, TestkitError> {
    if from == to {
        return Ok(channels);
    }
    let len = channels[0].len();
    if len == 0 {
        return Ok(channels);
    }
    let failed = |error: String| TestkitError::audio(format!("resampling from {from} Hz to {to} Hz"), error);
    let mut resampler = Fft::<f32>::new(from as usize, to as usize, RESAMPLE_CHUNK, channels.len(), FixedSync::Both)
        .map_err(|error| failed(error.to_string()))?;
    let input =
        SequentialSliceOfVecs::new(&channels, channels.len(), len).map_err(|error| failed(error.to_string()))?;
    let output = resampler.process_all(&input, len, None).map_err(|error| failed(error.to_string()))?;
    let interleaved = output.take_data();
    let count = channels.len();
    Ok((0..count).map(|channel| interleaved.iter().skip(channel).step_by(count).copied().collect()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rms(samples: &[f32]) -> f32 {
        (samples.iter().map(|s| s * s).sum::<f32>() / samples.len() as f32).sqrt()
    }

    #[test]
    fn wav_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("two.wav");
        let audio = Audio::from_channels(vec![vec![0.0, 0.5, -1.0], vec![0.25, -0.25, 1.0]]);
        audio.write_wav(&path).unwrap();
        assert_eq!(Audio::read(&path).unwrap(), audio);
    }

    #[test]
    fn another_rate_keeps_length_place_and_level() {
        let tone: Vec<f32> =
            (0..8_000).map(|i| (i as f32 / 8_000.0 * 440.0 * std::f32::consts::TAU).sin() * 0.5).collect();
        let audio = Audio::resampled(vec![tone], 8_000).unwrap();
        assert_eq!(audio.len(), 48_000);
        let expected = generate::tone(440.0, 0.5, Duration::from_secs(1));
        let error: Vec<f32> =
            audio.channel(0).iter().zip(expected.channel(0)).map(|(a, b)| a - b).skip(2_400).take(43_200).collect();
        assert!(rms(&error) < 0.005, "{}", rms(&error));
        assert_eq!(audio.at_rate(8_000).unwrap().len(), 8_000);
    }

    #[test]
    fn cut_joined_and_added_sounds_lie_where_they_should() {
        let audio = Audio::mono(vec![1.0, 2.0, 3.0]);
        assert_eq!(audio.slice(1..5), Audio::mono(vec![2.0, 3.0, 0.0, 0.0]));
        assert_eq!(audio.clone().then(&Audio::mono(vec![4.0])), Audio::mono(vec![1.0, 2.0, 3.0, 4.0]));
        let mut sum = audio.clone();
        sum.add(&audio, 2);
        assert_eq!(sum, Audio::mono(vec![1.0, 2.0, 4.0, 2.0, 3.0]));
        assert_eq!(Audio::from_channels(vec![vec![1.0], vec![0.0]]).to_mono(), Audio::mono(vec![0.5]));
    }

    #[test]
    fn durations_become_samples() {
        assert_eq!(samples_in(Duration::from_millis(20)), 960);
        assert_eq!(Audio::silence(Duration::from_secs(1)).duration(), Duration::from_secs(1));
    }
}
