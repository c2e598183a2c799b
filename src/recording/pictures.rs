//! Pictures of a recording, drawn at its end.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use crate::analysis::Waveform;
use crate::config::PictureKind;
use crate::draw::{DrawError, Spectrogram, SpectrogramConfig, Style, waveform_png, waveform_svg};
use crate::render::Listener;
use crate::spool::SpoolFile;
use crate::time::SampleCount;

use super::manifest::{Manifest, SidecarKind};
use super::pipeline::Finished;
use super::scene::{Names, Sound, scene};
use super::session::Session;

/// How long a recording waits for a picture; its store and its lease do not wait longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// How much of a stream is read at once.
const BLOCK: u64 = 64 * 1024;

/// A picture, and what its name has behind the recording's.
type Drawn = (SidecarKind, &'static str, Vec<u8>);

impl Session {
    /// Draws what is asked for and writes it beside the recording. A picture that fails is missing; the recording lacks nothing.
    pub(super) async fn draw(&mut self, manifest: &mut Manifest, finished: &Finished) {
        for kind in self.config.pictures.clone() {
            let drawn = match kind {
                PictureKind::Waveform => self.waveform(manifest, finished),
                PictureKind::Spectrogram => {
                    let title = self.config.names_people.then(|| manifest.room.name.clone());
                    let config = SpectrogramConfig { title, ..SpectrogramConfig::default() };
                    let drawing = spectrogram(self.sinks.first_stream().cloned(), config);
                    let drawn = tokio::time::timeout(PATIENCE, drawing).await;
                    drawn.unwrap_or_else(|_| Err("it takes too long; `callreel draw` has the time".to_owned()))
                }
            };
            let drawn = drawn.unwrap_or_else(|why| {
                tracing::warn!(picture = kind.as_str(), why, "a picture is missing");
                Vec::new()
            });
            for (kind, ext, bytes) in drawn {
                match self.sinks.store_beside(kind, ext, bytes).await {
                    Ok(entry) => manifest.sidecars.push(entry),
                    Err(why) => tracing::warn!(picture = ext, %why, "a picture is missing"),
                }
            }
        }
    }

    fn waveform(&self, manifest: &Manifest, finished: &Finished) -> Result<Vec<Drawn>, String> {
        let mut people: BTreeMap<&str, Waveform> = BTreeMap::new();
        for rolled in self.roll.tracks() {
            let spoken = finished.findings.speakers.as_ref().and_then(|speakers| speakers.get(&rolled.track.key));
            let Some(wave) = spoken.and_then(|spoken| spoken.wave.as_ref()) else { continue };
            people.entry(&rolled.identity).and_modify(|known| louder(known, wave)).or_insert_with(|| wave.clone());
        }
        let people = people.iter().map(|(identity, wave)| (*identity, wave)).collect();
        let sound = Sound { mix: finished.findings.waveform.as_ref(), people };
        let names = if self.config.names_people { Names::Shown } else { Names::Withheld };
        let draw = || -> Result<Vec<Drawn>, DrawError> {
            let scene = scene(manifest, &sound, names)?;
            let style = Style::default();
            let svg = waveform_svg(&scene, &style).into_bytes();
            Ok(vec![
                (SidecarKind::Waveform, "waveform.png", waveform_png(&scene, &style)?),
                (SidecarKind::Waveform, "waveform.svg", svg),
            ])
        };
        draw().map_err(|error| error.to_string())
    }
}

/// Makes of two waveforms of one person, who has several tracks, one.
fn louder(known: &mut Waveform, other: &Waveform) {
    if known.samples_per_pixel == other.samples_per_pixel {
        for (known, other) in known.data.iter_mut().zip(&other.data) {
            *known = if *other < 0 { *other.min(known) } else { *other.max(known) };
        }
    }
}

/// Decodes a finished stream and draws its frequencies; none where nothing is in it.
async fn spectrogram(stream: Option<SpoolFile>, config: SpectrogramConfig) -> Result<Vec<Drawn>, String> {
    let Some(stream) = stream else { return Ok(Vec::new()) };
    let end = stream.progress().borrow().written;
    let (mut listener, mut picture, mut at) = (Listener::default(), None, 0);
    while at < end {
        let block = stream.read(at..end.min(at + BLOCK)).await.map_err(|error| error.to_string())?;
        at += block.len() as u64;
        let listened = listener.push(&block, &mut |pcm, channels| {
            let picture = match &mut picture {
                Some(picture) => picture,
                none => none.insert(Spectrogram::new(config.clone(), channels).map_err(io::Error::other)?),
            };
            picture.push(pcm);
            Ok(())
        });
        listened.map_err(|error| error.to_string())?;
        // A long call takes seconds.
        tokio::task::yield_now().await;
    }
    let total = listener.finish();
    let Some(picture) = picture.filter(|_| total > SampleCount::ZERO) else { return Ok(Vec::new()) };
    let png = picture.finish(total).map_err(|error| error.to_string())?;
    Ok(vec![(SidecarKind::Spectrogram, "spectrogram.png", png)])
}
