//! Whether recordings hold what was said, where it was said.

use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use super::report::{Alignment, Packets};
use super::script::{Probe, Script};
use super::stage::Said;
use crate::capture::Reason;
use crate::clock;
use crate::encode::OggInspector;
use crate::recording::{Manifest, RecordingResult};
use crate::testkit::analysis::{self, Found};
use crate::testkit::{Audio, TestkitError};
use crate::time::{SAMPLE_RATE, SampleCount};

/// What every packet costs: it is spoken in 20 ms, and an Opus encoder holds 6.5 ms back.
const HELD_BACK_MS: f64 = 26.5;

/// How far around its place a sound is looked for, in samples.
const AROUND: usize = SAMPLE_RATE as usize / 2;

/// How alike a sound and its recording have to be, as another voice may speak over it. What was never said is as alike as 0.2.
const ALIKE: f64 = 0.3;

/// The same for half of a sound. The other half may lie a millisecond beside it, where a mix turned from packets to sound:
/// then the whole is like neither.
const HALF_ALIKE: f64 = 0.6;

/// The first and the last of a recording are not looked at: there a track settles, or ends.
const EDGE: usize = SAMPLE_RATE as usize;

/// A recording with its manifest.
pub(super) struct Recorded {
    pub(super) manifest: Manifest,
    file: Option<std::path::PathBuf>,
}

impl Recorded {
    /// Reads the manifest of a recording and checks it and all its files; the error says what is wrong.
    pub(super) fn check(result: &RecordingResult) -> Result<Self, String> {
        let path = result.manifest.as_deref().ok_or_else(|| format!("no manifest: {:?}", result.reasons))?;
        let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|error| format!("{path}: {error}"))?;
        manifest.check().map_err(|why| format!("{path}: {why}"))?;
        for output in &manifest.outputs {
            let file = Path::new(path).with_file_name(&output.file);
            let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            let mut inspector = OggInspector::new();
            inspector.push(&bytes);
            let found = inspector.finish();
            let lasts = found.duration.as_secs_f64();
            if let Some(problem) = found.problems.first() {
                return Err(format!("{}: {problem}", file.display()));
            }
            if (lasts - output.duration_seconds).abs() > 0.020 || !found.ended {
                return Err(format!("{}: {lasts} s instead of {}", file.display(), output.duration_seconds));
            }
        }
        let file = manifest.outputs.first().map(|output| Path::new(path).with_file_name(&output.file));
        Ok(Self { manifest, file })
    }

    /// Adds what became of packets to `packets`.
    pub(super) fn count(&self, packets: &mut Packets) {
        let worth = |samples: SampleCount| samples.0.div_ceil(u64::from(SAMPLE_RATE) / 50);
        for track in &self.manifest.tracks {
            packets.received += track.ledger.counters.packets_received;
            packets.retransmitted += track.ledger.counters.packets_retransmitted;
            packets.missing += worth(track.ledger.sums.get(Reason::Lost))
                + worth(track.ledger.sums.get(Reason::Concealed))
                + worth(track.ledger.sums.get(Reason::Recovered));
            packets.recorder_down += worth(track.ledger.sums.get(Reason::RecorderDown));
        }
    }

    /// When the first packet was there, counted from the JoinResponse.
    pub(super) fn first_packet(&self) -> Option<Duration> {
        let first = |track: &crate::recording::TrackEntry| {
            let row = track.ledger.rows.iter().find(|row| row.reason == Reason::Received)?;
            u64::try_from(row.start.0).ok()
        };
        self.manifest.tracks.iter().filter_map(first).min().map(|sample| SampleCount(sample).as_duration())
    }

    /// Looks for every probe that was said to its end.
    pub(super) fn find(&self, talks: &Said, script: &Script, alignment: &mut Alignment) -> Result<(), TestkitError> {
        let Some(file) = &self.file else { return Ok(()) };
        let audio = Audio::read(file)?;
        let age = clock::wall() - self.manifest.started_at;
        let zero = clock::now().checked_sub(Duration::try_from(age).unwrap_or_default());
        let Some(zero) = zero else { return Ok(()) };
        for probe in script.probes() {
            let Some(began) = talks.starts.get(probe.talker).copied() else { continue };
            // A recording may begin before anybody speaks, or after.
            let start = began.saturating_duration_since(zero).as_secs_f64()
                - zero.saturating_duration_since(began).as_secs_f64();
            let period = script.frames() * SAMPLE_RATE as usize / 50;
            let first = (probe.at + period - talks.from * SAMPLE_RATE as usize / 50) % period;
            for round in 0.. {
                let said = start * f64::from(SAMPLE_RATE) + (first + round * period) as f64;
                if said + (probe.sound.len() + EDGE) as f64 > audio.len() as f64 {
                    break;
                }
                if said >= EDGE as f64 && self.admits_loss(said, probe.sound.len()) {
                    alignment.admitted += 1;
                } else if said >= EDGE as f64 {
                    look(&audio, probe, said, alignment);
                }
            }
        }
        Ok(())
    }

    /// Whether a ledger says that something is lost of the `samples` from `said` on.
    fn admits_loss(&self, said: f64, samples: usize) -> bool {
        let (from, to) = (said as i64, said as i64 + samples as i64);
        let mut rows = self.manifest.tracks.iter().flat_map(|track| &track.ledger.rows);
        rows.any(|row| {
            matches!(row.reason, Reason::Lost | Reason::RecorderDown) && row.start.0 < to && row.end.0 > from
        })
    }

    /// When sample 0 was.
    pub(super) fn zero(&self) -> OffsetDateTime {
        self.manifest.started_at
    }
}

fn look(audio: &Audio, probe: &Probe, said: f64, alignment: &mut Alignment) {
    let from = (said as usize).saturating_sub(AROUND);
    let to = (said as usize + probe.sound.len() + AROUND).min(audio.len());
    let middle = probe.sound.len() / 2;
    let best = |piece: &[f32], at: usize, alike: f64| {
        let found = (0..audio.channel_count())
            .filter_map(|channel| analysis::find(piece, &audio.channel(channel)[from..to]))
            .max_by(|a, b| a.score.total_cmp(&b.score))?;
        let found = Found { offset: found.offset - at as i64, ..found };
        // A sound that would begin before what is looked at is none that was found.
        (found.score > alike && found.offset >= 0).then_some(found)
    };
    let (first, second) = probe.sound.split_at(middle);
    let found = best(&probe.sound, 0, ALIKE)
        .or_else(|| best(first, 0, HALF_ALIKE))
        .or_else(|| best(second, middle, HALF_ALIKE));
    alignment.looked_for += 1;
    match found {
        Some(found) => {
            let off = (from as f64 + found.offset as f64 - said) / f64::from(SAMPLE_RATE) * 1_000.0 - HELD_BACK_MS;
            if off.abs() > alignment.worst_ms.abs() {
                alignment.worst_ms = off;
            }
        }
        None => alignment.missing += 1,
    }
}
