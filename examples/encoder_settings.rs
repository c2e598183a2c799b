//! Encodes a recording with many encoder settings and decodes it again, for `tools/quality/encoder-settings` to judge.
//!
//! Usage: `encoder_settings INPUT.wav OUTPUT_DIRECTORY`. Each line of output is a JSON object with the settings, the bits a
//! second that came out, how many times faster than the recording the encoder ran (processor time, Linux), and the decoded WAV
//! file.

use std::error::Error;
use std::path::Path;

use callreel::encode::{Application, FrameDuration, OpusConfig, OpusEncoder};
use callreel::testkit::audio::Audio;
use serde_json::json;

/// Each setting is timed this often; the fastest run counts, as it was disturbed least.
const RUNS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [input, output] = &arguments[..] else {
        return Err("usage: encoder_settings INPUT.wav OUTPUT_DIRECTORY".into());
    };
    let audio = Audio::read(input)?.to_mono();
    for config in settings()? {
        let (packets, speed) = encode(&config, audio.channel(0))?;
        let bytes: usize = packets.iter().map(Vec::len).sum();
        let name = format!(
            "{}-{}-{}-{}.wav",
            serde_json::to_value(&config)?["application"].as_str().unwrap_or_default(),
            config.bits_a_second() / 1000,
            serde_json::to_value(&config)?["complexity"],
            config.frame_duration().millis()
        );
        let path = Path::new(output).join(name);
        Audio::mono(decode(&config, &packets, audio.len())?).write_wav(&path)?;
        let rate = bytes as f64 * 8.0 / audio.duration().as_secs_f64();
        println!("{}", json!({ "settings": config, "bits_a_second": rate, "speed": speed, "file": path }));
    }
    Ok(())
}

fn settings() -> Result<Vec<OpusConfig>, Box<dyn Error>> {
    let mut all = Vec::new();
    let mut add = |application, bitrate: u32, complexity, frame: u32| -> Result<(), Box<dyn Error>> {
        let mut config = OpusConfig::mono();
        config.bitrate(bitrate)?.complexity(complexity)?;
        config.application(application).frame(FrameDuration::try_from(frame)?);
        all.push(config);
        Ok(())
    };
    for application in [Application::Voip, Application::Audio] {
        for bitrate in [24_000, 32_000, 40_000, 48_000] {
            for complexity in [0, 3, 5, 8, 10] {
                add(application, bitrate, complexity, 20)?;
            }
        }
    }
    for frame in [40, 60] {
        for bitrate in [24_000, 32_000] {
            add(Application::Voip, bitrate, 5, frame)?;
        }
    }
    Ok(all)
}

type Packets = Vec<Vec<u8>>;

/// The packets, and how many times faster than the recording they were made.
fn encode(config: &OpusConfig, pcm: &[f32]) -> Result<(Packets, f64), Box<dyn Error>> {
    let mut best = f64::MAX;
    let mut packets = Vec::new();
    for _ in 0..RUNS {
        packets.clear();
        let mut encoder = OpusEncoder::new(config)?;
        let mut last = vec![0.0; encoder.frame_len()];
        let started = cpu_seconds()?;
        let frames = pcm.chunks_exact(encoder.frame_len());
        let rest = frames.remainder();
        for frame in frames {
            packets.push(encoder.encode(frame)?.to_vec());
        }
        // The end of the recording, and a frame more for what the encoder looked ahead.
        last[..rest.len()].copy_from_slice(rest);
        packets.push(encoder.encode(&last)?.to_vec());
        last.fill(0.0);
        packets.push(encoder.encode(&last)?.to_vec());
        best = best.min(cpu_seconds()? - started);
    }
    Ok((packets, pcm.len() as f64 / 48_000.0 / best))
}

/// Seconds that this thread has spent on a processor: what other programs do meanwhile does not count.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = status.split_whitespace().next().ok_or("the kernel tells no times")?.parse()?;
    Ok(nanoseconds * 1e-9)
}

fn decode(config: &OpusConfig, packets: &[Vec<u8>], length: usize) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono)?;
    let mut pcm = vec![0.0; 5760];
    let mut all = Vec::new();
    for packet in packets {
        let frames = decoder.decode_float(packet, &mut pcm, false)?;
        all.extend_from_slice(&pcm[..frames]);
    }
    let skip = usize::from(OpusEncoder::new(config)?.pre_skip());
    Ok(all.get(skip..skip + length).ok_or("the packets hold less than the recording")?.to_vec())
}
