//! Who says what, as it goes over the wire.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::failed;
use crate::testkit::{Audio, TestkitError, checkout};
use crate::time::{ClockTime, SAMPLE_RATE};

/// What each packet holds.
pub const TICK: Duration = Duration::from_millis(20);

const FRAME: usize = SAMPLE_RATE as usize / 50;

/// The longest packet that is made.
const MOST_BYTES: usize = 1275;

/// Jitter of the network, evenly spread, in nanoseconds.
const JITTER: i64 = 10_000_000;

/// The conversation among the fixtures, spoken by any number of people and coded as publishers do: 20 ms packets of
/// Opus at 32 kbit/s with in-band FEC, and without DTX, so that everybody sends all the time. It goes round and round.
#[derive(Debug)]
pub struct Conversation {
    voices: Vec<Vec<Bytes>>,
}

impl Conversation {
    /// A conversation of `participants`: the two of the fixtures, or as many as take turns with their lines.
    ///
    /// # Errors
    /// [`TestkitError::Io`], [`TestkitError::Audio`] without the repository's fixtures; [`TestkitError::Simulation`]
    /// without participants.
    pub fn among(participants: usize) -> Result<Self, TestkitError> {
        let folder = checkout().join("fixtures");
        let [agent, caller] = ["agent.flac", "caller.flac"].map(|name| Audio::read(folder.join(name)));
        let (agent, caller) = (agent?, caller?);
        let frames = agent.len().min(caller.len()) / FRAME;
        if participants == 0 {
            return Err(failed(&"nobody takes part"));
        }
        if participants == 2 {
            let voices = [&agent, &caller].map(|voice| packets(&voice.channel(0)[..frames * FRAME]));
            return Ok(Self { voices: voices.into_iter().collect::<Result<_, _>>()? });
        }
        let mut voices = vec![vec![0.0; frames * FRAME]; participants];
        for (index, (speaker, from, to)) in lines(&folder.join("conversation.csv"))?.into_iter().enumerate() {
            let said = if speaker == "agent" { agent.channel(0) } else { caller.channel(0) };
            let span = from..to.min(frames * FRAME);
            voices[index % participants][span.clone()].copy_from_slice(&said[span]);
        }
        Ok(Self { voices: voices.iter().map(|pcm| packets(pcm)).collect::<Result<_, _>>()? })
    }

    /// How many take part.
    pub fn participants(&self) -> usize {
        self.voices.len()
    }

    /// After how many steps it begins anew.
    pub fn ticks(&self) -> u64 {
        self.voices[0].len() as u64
    }

    /// The packet that a participant sends in a step.
    pub fn packet(&self, participant: usize, tick: u64) -> &Bytes {
        &self.voices[participant][(tick % self.ticks()) as usize]
    }

    /// When it arrives: each participant's clock is up to 50 ppm off, and the network has up to 10 ms of jitter.
    pub fn arrival(&self, participant: usize, tick: u64) -> ClockTime {
        let ppm = (participant * 37 + 25) % 101;
        let ppm = ppm as f64 - 50.0;
        let sent = tick as f64 * TICK.as_nanos() as f64 / (1.0 + ppm * 1e-6);
        let draw = fastrand::Rng::with_seed((participant as u64) << 40 ^ tick).i64(0..JITTER);
        ClockTime(sent as i64 + (participant as i64 % 10) * 500_000 + draw)
    }
}

/// Who speaks from which sample to which.
fn lines(path: &Path) -> Result<Vec<(String, usize, usize)>, TestkitError> {
    let text = std::fs::read_to_string(path).map_err(TestkitError::io(format!("read {}", path.display())))?;
    let sample = |seconds: &str| seconds.parse().ok().map(|seconds: f64| (seconds * f64::from(SAMPLE_RATE)) as usize);
    let line = |line: &str| {
        let mut fields = line.split(',');
        Some((fields.next()?.to_owned(), sample(fields.next()?)?, sample(fields.next()?)?))
    };
    Ok(text.lines().filter_map(line).collect())
}

fn packets(pcm: &[f32]) -> Result<Vec<Bytes>, TestkitError> {
    let encoder = || {
        let mut encoder = opus::Encoder::new(SAMPLE_RATE, opus::Channels::Mono, opus::Application::Voip)?;
        encoder.set_bitrate(opus::Bitrate::Bits(32_000))?;
        encoder.set_inband_fec(true)?;
        encoder.set_packet_loss_perc(5)?;
        Ok(encoder)
    };
    let mut encoder: opus::Encoder = encoder().map_err(|error: opus::Error| failed(&error))?;
    let mut packet = [0; MOST_BYTES];
    let encode = |frame: &[f32]| {
        let length = encoder.encode_float(frame, &mut packet).map_err(|error| failed(&error))?;
        Ok(Bytes::copy_from_slice(&packet[..length]))
    };
    pcm.chunks_exact(FRAME).map(encode).collect()
}
