use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::Audio;
use crate::testkit::TestkitError;

/// Samples a channel that an Opus packet decodes to at most: 120 ms at 48 kHz (RFC 6716 §2).
const MAX_PACKET: usize = 5_760;

pub(super) fn file(path: &Path) -> Result<Audio, TestkitError> {
    let failed = |error: std::io::Error| TestkitError::audio(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let file = BufReader::new(file);
    match magic.as_slice() {
        b"RIFF" => wav(path, file),
        b"fLaC" => flac(path, file),
        b"OggS" => ogg_opus(path, file),
        _ => Err(TestkitError::audio(path, "neither WAV nor FLAC nor Ogg")),
    }
}

fn wav(path: &Path, file: BufReader<File>) -> Result<Audio, TestkitError> {
    let failed = |error: hound::Error| TestkitError::audio(path, error);
    let mut reader = hound::WavReader::new(file).map_err(failed)?;
    let spec = reader.spec();
    let samples: Vec<f32> = match spec.sample_format {
        hound::SampleFormat::Float => reader.samples::<f32>().collect::<Result<_, _>>().map_err(failed)?,
        hound::SampleFormat::Int => {
            let scale = full_scale(u32::from(spec.bits_per_sample));
            let scaled = reader.samples::<i32>().map(|sample| sample.map(|sample| sample as f32 * scale));
            scaled.collect::<Result<_, _>>().map_err(failed)?
        }
    };
    Audio::resampled(deinterleave(&samples, usize::from(spec.channels)), spec.sample_rate)
}

fn flac(path: &Path, file: BufReader<File>) -> Result<Audio, TestkitError> {
    let failed = |error: claxon::Error| TestkitError::audio(path, error);
    let mut reader = claxon::FlacReader::new(file).map_err(failed)?;
    let info = reader.streaminfo();
    let scale = full_scale(info.bits_per_sample);
    let scaled = reader.samples().map(|sample| sample.map(|sample| sample as f32 * scale));
    let samples: Vec<f32> = scaled.collect::<Result<_, _>>().map_err(failed)?;
    Audio::resampled(deinterleave(&samples, info.channels as usize), info.sample_rate)
}

pub(super) fn ogg_opus(path: &Path, file: impl Read + Seek) -> Result<Audio, TestkitError> {
    let failed = |error: String| TestkitError::audio(path, error);
    let mut reader = ogg::PacketReader::new(file);
    let mut next = || reader.read_packet().map_err(|error| failed(error.to_string()));

    let head = next()?.ok_or_else(|| failed("an empty Ogg file".to_owned()))?;
    let head = Head::parse(&head.data).ok_or_else(|| failed("an Ogg file without an OpusHead".to_owned()))?;
    if !next()?.is_some_and(|tags| tags.data.starts_with(b"OpusTags")) {
        return Err(failed("an Ogg Opus file without OpusTags".to_owned()));
    }
    let mut decoder = opus::MSDecoder::new(crate::time::SAMPLE_RATE, head.streams, head.coupled, &head.mapping)
        .map_err(|error| failed(error.to_string()))?;

    let channels = head.mapping.len();
    let mut samples = Vec::new();
    let mut buffer = vec![0.0f32; MAX_PACKET * channels];
    let mut last_granule = None;
    while let Some(packet) = next()? {
        if packet.data.starts_with(b"OpusHead") {
            return Err(failed("a chain of Ogg Opus streams".to_owned()));
        }
        if !packet.data.is_empty() {
            let decoded = decoder.decode_float(&packet.data, &mut buffer, false);
            let frames = decoded.map_err(|error| failed(error.to_string()))?;
            samples.extend_from_slice(&buffer[..frames * channels]);
        }
        if packet.last_in_page() {
            last_granule = Some(packet.absgp_page());
        }
    }

    let end = last_granule.map_or(usize::MAX, |granule| granule as usize).min(samples.len() / channels);
    let start = head.pre_skip.min(end);
    let gain = 10.0f32.powf(f32::from(head.gain) / 256.0 / 20.0);
    Ok(Audio::from_channels(deinterleave(&samples[start * channels..end * channels], channels)).scaled(gain))
}

/// The identification header (RFC 7845 §5.1).
struct Head {
    pre_skip: usize,
    gain: i16,
    streams: u8,
    coupled: u8,
    mapping: Vec<u8>,
}

impl Head {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let fields = bytes.strip_prefix(b"OpusHead")?;
        let channels = *fields.get(1)?;
        let pre_skip = usize::from(u16::from_le_bytes([*fields.get(2)?, *fields.get(3)?]));
        let gain = i16::from_le_bytes([*fields.get(8)?, *fields.get(9)?]);
        match *fields.get(10)? {
            0 if (1..=2).contains(&channels) => {
                Some(Self { pre_skip, gain, streams: 1, coupled: channels - 1, mapping: (0..channels).collect() })
            }
            1 if channels > 0 => {
                let mapping = fields.get(13..13 + usize::from(channels))?.to_vec();
                Some(Self { pre_skip, gain, streams: *fields.get(11)?, coupled: *fields.get(12)?, mapping })
            }
            _ => None,
        }
    }
}

fn full_scale(bits: u32) -> f32 {
    1.0 / (1u64 << (bits - 1)) as f32
}

fn deinterleave(samples: &[f32], channels: usize) -> Vec<Vec<f32>> {
    let channels = channels.max(1);
    let frames = samples.len() / channels;
    (0..channels).map(|c| (0..frames).map(|frame| samples[frame * channels + c]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::testkit::audio::generate;

    fn convert(from: &Path, to: &Path, arguments: &[&str]) {
        let status = Command::new("ffmpeg")
            .args(["-nostdin", "-loglevel", "error", "-i"])
            .arg(from)
            .args(arguments)
            .arg(to)
            .status()
            .expect("ffmpeg is one of the tools that the tests need");
        assert!(status.success());
    }

    fn error_level(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let energy = |samples: &mut dyn Iterator<Item = f32>| samples.map(|s| s * s).sum::<f32>();
        energy(&mut a.iter().zip(b).map(|(a, b)| a - b)) / energy(&mut b.iter().copied())
    }

    #[test]
    fn integer_wav_and_flac_of_other_rates_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let second = Duration::from_secs(1);
        let (left, right) = (generate::tone(440.0, 0.5, second), generate::tone(660.0, 0.3, second));
        let source = Audio::from_channels(vec![left.channel(0).to_vec(), right.channel(0).to_vec()]);
        let wav = dir.path().join("source.wav");
        source.write_wav(&wav).unwrap();
        for name in ["a.wav", "b.flac"] {
            let path = dir.path().join(name);
            convert(&wav, &path, &["-ar", "16000", "-sample_fmt", "s16"]);
            let audio = Audio::read(&path).unwrap();
            assert_eq!(audio.channel_count(), 2);
            assert_eq!(audio.len(), 48_000);
            let middle = |audio: &Audio| audio.slice(4_800..43_200);
            for channel in 0..2 {
                let error = error_level(middle(&audio).channel(channel), middle(&source).channel(channel));
                assert!(error < 0.001, "{name}: {error}");
            }
        }
    }

    #[test]
    fn ogg_opus_has_the_length_and_place_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let source = generate::speech(3, Duration::from_millis(2_345));
        let (wav, ogg) = (dir.path().join("source.wav"), dir.path().join("coded.ogg"));
        source.write_wav(&wav).unwrap();
        convert(&wav, &ogg, &["-af", "pan=mono|c0=c0", "-c:a", "libopus", "-b:a", "64k"]);
        let audio = Audio::read(&ogg).unwrap();
        assert_eq!(audio.len(), source.len());
        let error = error_level(audio.channel(0), source.channel(0));
        assert!(error < 0.2, "{error}: decoded at the wrong place or level");
    }

    #[test]
    fn what_is_no_sound_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.wav");
        std::fs::write(&path, "no sound").unwrap();
        let error = Audio::read(&path).unwrap_err().to_string();
        assert!(error.contains("text.wav") && error.contains("neither WAV nor FLAC nor Ogg"), "{error}");
        let error = Audio::read(dir.path().join("absent")).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        assert!(Head::parse(b"OpusHead\x01\x02").is_none());
    }
}
