//! Packets put on a stream's grid as they came: no decoding, no second coding.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::packets::Packets;
use crate::call::Codec;
use crate::capture::{Content, Settled, Silence, toc};
use crate::decode::Level;
use crate::encode::{OpusConfig, OpusEncoder, packet};
use crate::time::{MediaTime, SampleCount};

/// Where packets may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grid {
    /// Wherever packets of silence of 2.5 ms and more lead to.
    Free,
    /// At multiples of 20 ms only, for streams that share a file.
    Slots,
}

/// Why a track's packets cannot be passed through; they have to be transcoded from there on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unpassable {
    /// It is not Opus.
    #[error("the track is not coded in Opus")]
    NotOpus,
    /// A packet that is no Opus packet.
    #[error("a packet is malformed")]
    Malformed,
    /// A packet of a duration that does not fit the grid.
    #[error("a packet of {samples} samples does not fit a grid of 20 ms")]
    Duration {
        /// The duration of the packet at 48 kHz.
        samples: u32,
    },
    /// The sender's clock has moved its packets too far from their place, and there was no silence to put that right in.
    #[error("packets are {samples} samples off their place, and no silence comes to put them right")]
    Drift {
        /// How late they would be; negative: early.
        samples: i64,
    },
    /// More than one track speaks on the stream.
    #[error("more than one track speaks on the stream")]
    Several,
    /// The track is to be made louder or softer.
    #[error("the track is made louder or softer")]
    Gain,
}

/// What passing through did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassStats {
    /// Packets passed as they were.
    pub passed: u64,
    /// How long these play.
    #[serde(rename = "passed_samples")]
    pub samples: SampleCount,
    /// Packets coded again because their in-band FEC holds what must not be recorded.
    pub recoded: u64,
    /// Packets that a player has to conceal.
    pub concealed: u64,
    /// Packets left out where it was quiet, as the sender's clock runs fast.
    pub dropped: u64,
    /// Packets of silence put in where it was quiet, as the sender's clock runs slow.
    pub inserted: u64,
}

/// A packet may begin this far from its place before silence is looked for to put it right: 10 ms.
const NEAR: i64 = 480;
/// It may never be further off than this: 20 ms.
const FAR: i64 = 960;
/// Below this a packet counts as quiet: −50 dBFS.
const QUIET: f32 = 0.003_16;
/// Packets after which a decoder that began in the middle tells levels right.
const WARM: u32 = 3;
/// Concealment beyond this is silence: 60 ms.
const CONCEALABLE: u64 = 2880;

/// Puts one track's packets on a stream's grid.
///
/// A stream begins with `pre_skip` samples that players drop, so what lies at sample `s` of the timeline belongs at
/// granule position `s + pre_skip`. Silence is made of packets, never of jumps; where sound begins after silence it goes
/// to the nearest place the grid has. While it lasts, packets follow each other as they came, and the sender's clock
/// moves them slowly off their place: each silence takes that back, and where none comes, one quiet packet is left out or
/// one of silence put in.
pub(super) struct PassThrough {
    grid: Grid,
    pre_skip: i64,
    /// The last packet passed, as the model of one to be concealed.
    model: Vec<u8>,
    scratch: Vec<u8>,
    sounding: bool,
    withheld_before: bool,
    listener: Option<Listener>,
    /// Silence goes no further than this until a sound follows.
    hold_from: Option<MediaTime>,
    stats: PassStats,
}

impl PassThrough {
    pub(super) fn new(grid: Grid, pre_skip: u16) -> Self {
        Self {
            grid,
            pre_skip: i64::from(pre_skip),
            model: Vec::with_capacity(1500),
            scratch: Vec::with_capacity(16),
            sounding: false,
            withheld_before: false,
            listener: None,
            hold_from: None,
            stats: PassStats::default(),
        }
    }

    pub(super) fn stats(&self) -> PassStats {
        self.stats
    }

    /// Puts a stretch on the stream `out`.
    ///
    /// # Errors
    /// [`Unpassable`]; nothing of the stretch is then on the stream.
    pub(super) fn push(&mut self, stretch: &Settled, out: &mut Packets) -> Result<(), Unpassable> {
        let withheld_before = std::mem::take(&mut self.withheld_before);
        match &stretch.content {
            Content::Packet { codec: Codec::Opus, payload } => self.pass(stretch, payload, withheld_before, out),
            Content::Packet { codec: Codec::Pcmu | Codec::Pcma, .. } => Err(Unpassable::NotOpus),
            Content::Recovered { .. } => {
                self.conceal(stretch, SampleCount::ZERO, out);
                Ok(())
            }
            Content::Concealed { into_run } => {
                self.conceal(stretch, *into_run, out);
                Ok(())
            }
            Content::Silence(why) => {
                // Over whatever silence, up to the next sound.
                self.withheld_before = withheld_before || *why == Silence::Withheld;
                self.silence_until(stretch.end, out);
                Ok(())
            }
        }
    }

    /// Fills up with silence to `until`, as far as whole packets of 20 ms go.
    pub(super) fn silence_until(&mut self, until: MediaTime, out: &mut Packets) {
        self.sounding = false;
        let until = self.hold_from.map_or(until, |from| from.min(until));
        while self.late(until, out) <= -FAR {
            out.push_silence(960);
        }
    }

    /// Holds silence after `from` back, until a sound follows or `from` is `None` again.
    pub(super) fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.hold_from = from;
    }

    /// Fills up with silence until the stream holds at least `samples` samples.
    pub(super) fn fill(&mut self, samples: u64, out: &mut Packets) {
        while out.written() < samples {
            out.push_silence(960);
        }
    }

    /// How much later than its place something from `start` would begin if it came now.
    fn late(&self, start: MediaTime, out: &Packets) -> i64 {
        out.written() as i64 - (start.0 + self.pre_skip)
    }

    fn pass(
        &mut self,
        stretch: &Settled,
        payload: &[u8],
        withheld_before: bool,
        out: &mut Packets,
    ) -> Result<(), Unpassable> {
        let samples = packet::samples(payload).ok_or(Unpassable::Malformed)?;
        if self.grid == Grid::Slots && samples != 960 {
            return Err(Unpassable::Duration { samples });
        }
        if !self.sounding {
            self.approach(stretch.start, out);
        }
        let late = self.late(stretch.start, out);
        if late.abs() > FAR {
            return Err(Unpassable::Drift { samples: late });
        }
        if late.abs() <= NEAR {
            self.listener = None;
        } else if self.is_quiet(payload) {
            if late > 0 {
                self.stats.dropped += 1;
                return Ok(());
            }
            self.stats.inserted += 1;
            out.push_silence(960);
        }
        // What was withheld must not come back as the spare copy in the packet after it.
        if withheld_before && toc::in_band_fec(payload).is_some() {
            self.recode(payload, samples, out);
        } else {
            out.push(payload, samples);
            self.stats.passed += 1;
            self.stats.samples += SampleCount(u64::from(samples));
        }
        self.model.clear();
        self.model.extend_from_slice(payload);
        // A stretch longer than its packet leaves a hole behind, where the next packet finds its place anew.
        self.sounding = stretch.len().0.abs_diff(u64::from(samples)) <= u64::from(samples) / 24;
        Ok(())
    }

    /// Fills up with silence to the place nearest to where a sound from `start` belongs.
    fn approach(&mut self, start: MediaTime, out: &mut Packets) {
        let units: &[u32] = match self.grid {
            Grid::Free => &[960, 480, 240, 120],
            Grid::Slots => &[960],
        };
        let finest = units.last().copied().unwrap_or(960);
        for unit in units {
            let spare = if *unit == finest { i64::from(finest) / 2 } else { 0 };
            while self.late(start, out) <= spare - i64::from(*unit) {
                out.push_silence(*unit);
            }
        }
    }

    fn conceal(&mut self, stretch: &Settled, into_run: SampleCount, out: &mut Packets) {
        let samples = packet::samples(&self.model).filter(|_| self.sounding && into_run.0 < CONCEALABLE);
        let Some(samples) = samples else {
            return self.silence_until(stretch.end, out);
        };
        let count = (stretch.len().0 + u64::from(samples) / 2) / u64::from(samples);
        if packet::write_concealed(&self.model, &mut self.scratch).is_ok() {
            for _ in 0..count {
                out.push(&self.scratch, samples);
                self.stats.concealed += 1;
            }
        }
    }

    fn is_quiet(&mut self, payload: &[u8]) -> bool {
        if self.listener.is_none() {
            self.listener = Listener::new();
        }
        self.listener.as_mut().is_some_and(|listener| listener.is_quiet(payload))
    }

    /// Codes a packet again, without what it says of the one before. Where that cannot be done it becomes silence.
    fn recode(&mut self, payload: &[u8], samples: u32, out: &mut Packets) {
        self.stats.recoded += 1;
        match recoded(payload, samples) {
            Some(packet) => out.push(&packet, samples),
            None => {
                let mut left = samples;
                while left > 0 {
                    let unit = [960, 480, 240, 120].into_iter().find(|unit| *unit <= left).unwrap_or(left);
                    out.push_silence(unit);
                    left -= unit;
                }
            }
        }
    }
}

fn recoded(payload: &[u8], samples: u32) -> Option<Vec<u8>> {
    let mut config = OpusConfig::mono();
    config.frame((samples / 48).try_into().ok()?);
    let mut pcm = vec![0.0; samples as usize];
    opus::Decoder::new(48_000, opus::Channels::Mono).ok()?.decode_float(payload, &mut pcm, false).ok()?;
    Some(OpusEncoder::new(&config).ok()?.encode(&pcm).ok()?.to_vec())
}

/// Tells how loud packets are. Only at work while a quiet one is looked for.
struct Listener {
    decoder: opus::Decoder,
    pcm: Vec<f32>,
    heard: u32,
}

impl Listener {
    fn new() -> Option<Self> {
        let decoder = opus::Decoder::new(48_000, opus::Channels::Mono).ok()?;
        Some(Self { decoder, pcm: vec![0.0; packet::MAX_SAMPLES as usize], heard: 0 })
    }

    fn is_quiet(&mut self, payload: &[u8]) -> bool {
        self.heard += 1;
        match self.decoder.decode_float(payload, &mut self.pcm, false) {
            Ok(frames) => self.heard > WARM && Level::of(&self.pcm[..frames]).rms < QUIET,
            Err(_) => false,
        }
    }
}
