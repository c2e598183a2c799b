//! What is said in every call: the conversation among the fixtures, encoded once and shared by all rooms.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::testkit::audio::generate;
use crate::testkit::{Audio, TestkitError, checkout};
use crate::time::SAMPLE_RATE;

/// Samples a packet.
const FRAME: usize = SAMPLE_RATE as usize / 50;

/// The longest packet that is made (RFC 6716 §3.2.1).
const MOST_BYTES: usize = 1275;

/// How long the piece of a line is by which its place in a recording is checked.
const PROBE: usize = SAMPLE_RATE as usize * 3 / 2;

/// How the voices sound and are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sound {
    /// Whether silence is left out (Opus DTX).
    pub dtx: bool,
    /// The level of the noise behind every voice, in dBFS; none without.
    pub noise: Option<f64>,
}

/// A piece of a line that nobody interrupts.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Who says it.
    pub talker: usize,
    /// The sample of the script at which it begins.
    pub at: usize,
    /// What is said.
    pub sound: Vec<f32>,
}

/// The packets of a conversation with turns, overlaps and pauses, which goes round and round.
#[derive(Debug)]
pub struct Script {
    packets: Vec<Arc<[Option<Bytes>]>>,
    frames: usize,
    probes: Vec<Probe>,
}

impl Script {
    /// The conversation of the fixtures among `talkers`, who take turns with its lines.
    ///
    /// # Errors
    /// [`TestkitError::Io`] or [`TestkitError::Audio`] without the repository's fixtures; [`TestkitError::Simulation`]
    /// without talkers.
    pub fn new(talkers: usize, sound: Sound) -> Result<Self, TestkitError> {
        if talkers == 0 {
            return Err(TestkitError::Simulation("nobody talks".into()));
        }
        let folder = checkout().join("fixtures");
        let (agent, caller) = (Audio::read(folder.join("agent.flac"))?, Audio::read(folder.join("caller.flac"))?);
        let frames = agent.len().min(caller.len()) / FRAME;
        let lines = lines(&folder.join("conversation.csv"))?;
        let mut voices = vec![vec![0.0; frames * FRAME]; talkers];
        let mut probes = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let said = if line.by_agent { agent.channel(0) } else { caller.channel(0) };
            let talker = if talkers == 2 { usize::from(!line.by_agent) } else { index % talkers };
            let span = line.from..line.to.min(frames * FRAME);
            voices[talker][span.clone()].copy_from_slice(&said[span]);
            let free_from = lines[..index].iter().map(|before| before.to).max().unwrap_or(0).max(line.from);
            let free_to =
                lines[index + 1..].iter().map(|after| after.from).min().unwrap_or(frames * FRAME).min(line.to);
            if free_from + PROBE <= free_to {
                let at = (free_from + free_to - PROBE) / 2;
                probes.push(Probe { talker, at, sound: said[at..at + PROBE].to_vec() });
            }
        }
        if let Some(dbfs) = sound.noise {
            for (seed, voice) in voices.iter_mut().enumerate() {
                // Evenly spread noise has its level 4.8 dB below its peak.
                let amplitude = 10_f64.powf(dbfs / 20.0) * 3_f64.sqrt();
                let noise = generate::noise(seed as u64, amplitude as f32, seconds_of(voice.len()));
                voice.iter_mut().zip(noise.channel(0)).for_each(|(sample, noise)| *sample += noise);
            }
        }
        let packets = voices.iter().map(|voice| encode(voice, sound.dtx)).collect::<Result<_, _>>()?;
        Ok(Self { packets, frames, probes })
    }

    /// A talker's packets, 20 ms each; `None` where nothing is sent.
    pub fn packets(&self, talker: usize) -> Arc<[Option<Bytes>]> {
        Arc::clone(&self.packets[talker])
    }

    /// One packet of a talker's.
    pub fn packet(&self, talker: usize, index: usize) -> Option<&Bytes> {
        self.packets[talker].get(index)?.as_ref()
    }

    /// After how many packets it begins anew.
    pub fn frames(&self) -> usize {
        self.frames
    }

    /// What can be looked for in a recording.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }
}

struct Line {
    by_agent: bool,
    from: usize,
    to: usize,
}

fn lines(path: &Path) -> Result<Vec<Line>, TestkitError> {
    let text = std::fs::read_to_string(path).map_err(TestkitError::io(format!("read {}", path.display())))?;
    let sample = |seconds: &str| seconds.parse().ok().map(|seconds: f64| (seconds * f64::from(SAMPLE_RATE)) as usize);
    let line = |line: &str| {
        let mut fields = line.split(',');
        Some(Line { by_agent: fields.next()? == "agent", from: sample(fields.next()?)?, to: sample(fields.next()?)? })
    };
    // The first line holds names, which are no numbers.
    Ok(text.lines().filter_map(line).collect())
}

fn seconds_of(samples: usize) -> Duration {
    Duration::from_secs_f64(samples as f64 / f64::from(SAMPLE_RATE))
}

/// As WebRTC clients encode: 32 kbit/s with in-band FEC. With DTX, of the packets that say nothing only the first of a
/// row is sent.
fn encode(voice: &[f32], dtx: bool) -> Result<Arc<[Option<Bytes>]>, TestkitError> {
    let failed = |error: opus::Error| TestkitError::audio("an Opus encoder", error);
    let mut encoder = opus::Encoder::new(SAMPLE_RATE, opus::Channels::Mono, opus::Application::Voip).map_err(failed)?;
    encoder.set_bitrate(opus::Bitrate::Bits(32_000)).map_err(failed)?;
    encoder.set_inband_fec(true).map_err(failed)?;
    encoder.set_packet_loss_perc(5).map_err(failed)?;
    encoder.set_dtx(dtx).map_err(failed)?;
    let mut packet = [0; MOST_BYTES];
    let mut silent = false;
    let mut packets = Vec::with_capacity(voice.len() / FRAME);
    for frame in voice.chunks_exact(FRAME) {
        let length = encoder.encode_float(frame, &mut packet).map_err(failed)?;
        let empty = dtx && length <= 2;
        packets.push((!(empty && silent)).then(|| Bytes::copy_from_slice(&packet[..length])));
        silent = empty;
    }
    Ok(packets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_people_talk_in_turns_and_each_can_be_found_again() {
        let script = Script::new(2, Sound::default()).unwrap();
        assert!((1_900..2_300).contains(&script.frames()), "{}", script.frames());
        assert!((0..2).all(|talker| script.packets(talker).iter().all(Option::is_some)));
        let of = |talker| script.probes().iter().filter(|probe| probe.talker == talker).count();
        assert!(of(0) >= 2 && of(1) >= 2, "{} and {}", of(0), of(1));
    }

    #[test]
    fn dtx_leaves_silence_out_and_noise_keeps_it_in() {
        let sent = |sound| Script::new(3, sound).unwrap().packets(2).iter().flatten().count();
        let all = sent(Sound::default());
        let dtx = sent(Sound { dtx: true, noise: None });
        let noisy = sent(Sound { dtx: false, noise: Some(-50.0) });
        assert!(dtx * 2 < all && noisy == all, "{all} {dtx} {noisy}");
    }
}
