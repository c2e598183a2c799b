//! `callreel draw`: pictures of a recording's sound.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::analysis::{Peaks, Waveform};
use crate::config::OutputKind;
use crate::draw::{
    DrawError, Lane, PictureSize, Scene, Spectrogram, SpectrogramConfig, Style, Theme, Wave, waveform_png, waveform_svg,
};
use crate::encode::{AudioReader, Format, OpusConfig};
use crate::recording::{Manifest, Names, Sound, scene};
use crate::render::file::RenderError;
use crate::render::{Listener, source};
use crate::spool::{FileError, give_name, part_of};
use crate::time::SampleCount;

use super::BAD_USAGE;
use super::inspect::manifest_of;
use super::say::err;

/// Flags of `callreel draw`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "With a manifest, of the recording or beside it, the waveform shows who spoke when, what is lost and where it was paused; with tracks, everybody's own.\n\nExit codes: 0 drawn, 1 not drawn, 2 bad usage."
)]
pub struct Args {
    /// The recording, in any of its formats, or its manifest
    file: PathBuf,
    /// Where the waveform goes: a .png or .svg file that is not there yet [default: FILE.waveform.png, if nothing else is
    /// asked for]
    #[arg(long, short, value_name = "FILE")]
    waveform: Vec<PathBuf>,
    /// Where the spectrogram goes: a .png file that is not there yet
    #[arg(long, short, value_name = "FILE")]
    spectrogram: Option<PathBuf>,
    /// Width and height in pixels [default: 1200x240, of a spectrogram 1200x320]
    #[arg(long, value_name = "WxH")]
    size: Option<PictureSize>,
    /// Light on dark
    #[arg(long)]
    dark: bool,
    /// Says who somebody is, and the room
    #[arg(long)]
    names: bool,
    /// The highest frequency of the spectrogram, in Hz
    #[arg(long, value_name = "HZ")]
    top: Option<u32>,
}

/// Why nothing was drawn.
#[derive(Debug, thiserror::Error)]
enum NotDrawn {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: RenderError },
    #[error("{path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{0} is in none of the formats ogg, webm, mp4, wav, flac, mp3")]
    Unknown(PathBuf),
    #[error("{0}: a picture is a .png or an .svg file")]
    Ending(PathBuf),
    #[error("{0} names no file with everybody in it")]
    NoMix(PathBuf),
    #[error("{0}")]
    Manifest(String),
    #[error(transparent)]
    Draw(#[from] DrawError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What was heard in a file.
struct Heard {
    waveform: Waveform,
    spectrogram: Option<Vec<u8>>,
    length: SampleCount,
}

/// Draws what is asked for.
pub fn run(args: &Args) -> ExitCode {
    let ending = |path: &Path| path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
    let is_picture = |path: &&PathBuf| matches!(ending(path).as_deref(), Some("png" | "svg"));
    let bad = args.waveform.iter().find(|path| !is_picture(path));
    let bad = bad.or(args.spectrogram.as_ref().filter(|path| ending(path).as_deref() != Some("png")));
    if let Some(path) = bad {
        err!("error: {}", NotDrawn::Ending(path.clone()));
        return ExitCode::from(BAD_USAGE);
    }
    match draw(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            err!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn draw(args: &Args) -> Result<(), NotDrawn> {
    let manifest = manifest_of(&args.file).map_err(|error| NotDrawn::Manifest(error.to_string()))?;
    let (file, people) = match &manifest {
        Some((path, manifest)) if *path == args.file => {
            let folder = path.parent().unwrap_or(Path::new(""));
            let mixed = manifest.outputs.iter().find(|output| output.participant.is_none());
            let mixed = mixed.ok_or_else(|| NotDrawn::NoMix(path.clone()))?;
            (folder.join(&mixed.file), people(manifest, folder)?)
        }
        _ => (args.file.clone(), BTreeMap::new()),
    };
    let theme = if args.dark { Theme::Dark } else { Theme::Light };
    let title = match &manifest {
        Some((_, manifest)) if args.names => Some(manifest.room.name.clone()),
        _ => None,
    };
    let spectrogram = args.spectrogram.as_ref().map(|_| {
        let usual = SpectrogramConfig::default();
        let size = args.size.unwrap_or(usual.size);
        SpectrogramConfig { size, theme, title, top_hz: args.top.unwrap_or(usual.top_hz), ..usual }
    });
    let heard = hear(&file, spectrogram)?;
    if let (Some(path), Some(png)) = (&args.spectrogram, &heard.spectrogram) {
        write(path, png)?;
    }
    let usual = args.file.with_extension("waveform.png");
    let waveforms = match (&args.waveform[..], &args.spectrogram) {
        ([], None) => std::slice::from_ref(&usual),
        (asked, _) => asked,
    };
    let scene = match &manifest {
        Some((_, manifest)) => {
            let names = if args.names { Names::Shown } else { Names::Withheld };
            let people = people.iter().map(|(who, wave)| (who.as_str(), wave)).collect();
            scene(manifest, &Sound { mix: Some(&heard.waveform), people }, names)?
        }
        None => plain(&heard)?,
    };
    let style = Style { size: args.size.unwrap_or(Style::default().size), theme, ..Style::default() };
    for path in waveforms {
        let is_svg = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("svg"));
        let picture = if is_svg { waveform_svg(&scene, &style).into_bytes() } else { waveform_png(&scene, &style)? };
        write(path, &picture)?;
    }
    Ok(())
}

/// A scene of a file of which nothing else is known.
fn plain(heard: &Heard) -> Result<Scene, DrawError> {
    let labels: &[Option<&str>] = if heard.waveform.channels == 1 { &[None] } else { &[Some("left"), Some("right")] };
    let lane = |(channel, label): (usize, &Option<&str>)| {
        let wave = Some(Wave::of(&heard.waveform, channel)?);
        Ok(Lane { label: label.map(Into::into), wave, ..Lane::default() })
    };
    let lanes = labels.iter().enumerate().map(lane).collect::<Result<Vec<_>, DrawError>>()?;
    Ok(Scene { length: heard.length, lanes, ..Scene::default() })
}

/// Everybody's own waveform, where everybody has a file.
fn people(manifest: &Manifest, folder: &Path) -> Result<BTreeMap<String, Waveform>, NotDrawn> {
    let mut people = BTreeMap::new();
    for output in manifest.outputs.iter().filter(|output| output.kind == OutputKind::Tracks) {
        let Some(who) = output.participant.clone().filter(|who| !people.contains_key(who)) else { continue };
        people.insert(who, hear(&folder.join(&output.file), None)?.waveform);
    }
    Ok(people)
}

/// Listens to a file.
fn hear(path: &Path, spectrogram: Option<SpectrogramConfig>) -> Result<Heard, NotDrawn> {
    let read = |source: RenderError| NotDrawn::Read { path: path.to_owned(), source };
    let mut first = Vec::new();
    File::open(path).and_then(|file| file.take(16).read_to_end(&mut first)).map_err(|e| read(e.into()))?;
    let format = source::format_of(&first).ok_or_else(|| NotDrawn::Unknown(path.to_owned()))?;
    let file = File::open(path).map_err(|e| read(e.into()))?;
    let mut ear = Ear { spectrogram, ..Ear::default() };
    let length = if format.holds_opus() { opus(file, format, &mut ear) } else { samples(file, &mut ear) };
    let length = length.map_err(read)?;
    ear.finish(length)
}

/// Listens to packets. Gives how long they play.
fn opus(file: File, format: Format, ear: &mut Ear) -> Result<SampleCount, RenderError> {
    let mut listener = Listener::default();
    source::read(file, format, &OpusConfig::mono(), &mut |pages, _| {
        listener.push(pages, &mut |pcm, channels| ear.hear(pcm, channels))
    })?;
    Ok(listener.finish())
}

/// Listens to samples. Gives how many there are.
fn samples(file: File, ear: &mut Ear) -> Result<SampleCount, RenderError> {
    let invalid = |error: crate::encode::ReadError| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut reader = AudioReader::new(file).map_err(invalid)?;
    reader.check_rate().map_err(invalid)?;
    let (channels, mut pcm, mut total) = (usize::from(reader.info().channels), Vec::new(), 0);
    loop {
        pcm.clear();
        let count = reader.read(&mut pcm).map_err(invalid)?;
        if count == 0 {
            return Ok(SampleCount(total));
        }
        total += count as u64;
        ear.hear(&pcm, channels)?;
    }
}

/// What listens.
#[derive(Default)]
struct Ear {
    spectrogram: Option<SpectrogramConfig>,
    peaks: Option<Peaks>,
    frequencies: Option<Spectrogram>,
}

impl Ear {
    fn hear(&mut self, pcm: &[f32], channels: usize) -> Result<(), RenderError> {
        let peaks = self.peaks.get_or_insert_with(|| Peaks::new(channels));
        peaks.push(pcm);
        if let Some(config) = self.spectrogram.take() {
            let made = Spectrogram::new(config, channels);
            self.frequencies = Some(made.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?);
        }
        if let Some(frequencies) = &mut self.frequencies {
            frequencies.push(pcm);
        }
        Ok(())
    }

    fn finish(self, length: SampleCount) -> Result<Heard, NotDrawn> {
        let waveform = self.peaks.unwrap_or_else(|| Peaks::new(1)).finish(length);
        let spectrogram = self.frequencies.map(|frequencies| frequencies.finish(length)).transpose()?;
        Ok(Heard { waveform, spectrogram, length })
    }
}

/// Writes a file, which appears whole and never in another's place.
fn write(path: &Path, bytes: &[u8]) -> Result<(), NotDrawn> {
    let failed = |source| NotDrawn::Write { path: path.to_owned(), source };
    if path.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let part = part_of(path);
    std::fs::write(&part, bytes).map_err(failed)?;
    Ok(give_name(&part, path)?)
}
