//! `callreel convert`: a recording in another format.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::clock;
use crate::encode::{
    AudioReader, Depth, EncodeError, FlacWriter, Format, Mapping, Mp4Codec, OpusConfig, OpusHead, Patch, UnknownFormat,
    WavWriter, mp4,
};
use crate::render::file::RenderError;
use crate::render::{Quality, Render, Rendering, source};
use crate::spool::{FileError, give_name, part_of};
use crate::time::SampleCount;

use super::BAD_USAGE;
use super::say::err;

/// Exit code where something is wrong with the input, which was converted as far as it goes.
const LACKS: u8 = 3;

/// How often progress is drawn.
const EVERY: Duration = Duration::from_millis(100);

/// Flags of `callreel convert`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Formats: ogg, webm, mp4, wav, flac, mp3. Between ogg, webm and mp4 packets stay as they are; between wav and flac every sample does. Of an mp4 with aac only --progressive makes another, a copy.\n\nExit codes: 0 converted, 1 nothing could be converted, 2 bad usage, 3 converted as far as the input goes, which is cut or damaged."
)]
pub struct Args {
    /// The recording
    input: PathBuf,
    /// Where to: a file that is not there yet
    out: PathBuf,
    /// The format [default: by the ending of OUT]
    #[arg(long, short, value_name = "FORMAT")]
    to: Option<Format>,
    /// Puts the index of mp4 in front of the sound
    #[arg(long)]
    progressive: bool,
    /// Bits a sample of wav and flac: 16 or 24
    #[arg(long, value_name = "BITS", default_value = "16")]
    pcm_bits: Depth,
    /// Bits a second of mp3 [default: a rate that varies with the sound]
    #[arg(long, value_name = "BITS")]
    mp3_bitrate: Option<u32>,
    /// The codec in mp4: opus, or aac for players that know no other
    #[arg(long, value_name = "CODEC", default_value = "opus")]
    mp4_codec: Mp4Codec,
    /// Bits a second of Opus, where the input holds none [default: 32000 a channel]
    #[arg(long, value_name = "BITS")]
    bitrate: Option<u32>,
}

/// Why nothing was converted.
#[derive(Debug, thiserror::Error)]
enum ConvertError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Render { path: PathBuf, source: RenderError },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{0} is in none of the formats ogg, webm, mp4, wav, flac, mp3")]
    Unknown(PathBuf),
}

/// What to do.
struct Plan {
    from: Format,
    to: Rendering,
    progressive: bool,
    opus: OpusConfig,
}

/// Converts one file.
pub fn run(args: &Args) -> ExitCode {
    let plan = match plan(args) {
        Ok(plan) => plan,
        Err(why) => {
            err!("error: {why}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    match convert_to_file(&args.input, &args.out, &plan) {
        Ok(problems) if problems.is_empty() => ExitCode::SUCCESS,
        Ok(problems) => {
            for problem in problems {
                err!("{}: {problem}", args.input.display());
            }
            ExitCode::from(LACKS)
        }
        Err(error) => {
            err!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn plan(args: &Args) -> Result<Plan, String> {
    let by_ending = || {
        let ending = args.out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ending
            .parse()
            .map_err(|error: UnknownFormat| format!("give --to: the ending of {} {error}", args.out.display()))
    };
    let format = args.to.map_or_else(by_ending, Ok)?;
    if args.progressive && format != Format::Mp4 {
        return Err(format!("--progressive is about mp4, not {format}"));
    }
    let quality = Quality { depth: args.pcm_bits, mp3_bitrate: args.mp3_bitrate, mp4_codec: args.mp4_codec };
    let to = Rendering { format, quality };
    if format != Format::Ogg {
        Render::new(to).map_err(|error| error.to_string())?;
    }
    let mut opus = OpusConfig::mono();
    if let Some(bitrate) = args.bitrate {
        opus.bitrate(bitrate).map_err(|error| error.to_string())?;
    }
    let mut first = Vec::new();
    let read = File::open(&args.input).and_then(|file| file.take(16).read_to_end(&mut first));
    read.map_err(|error| format!("{}: {error}", args.input.display()))?;
    let from = source::format_of(&first).ok_or_else(|| ConvertError::Unknown(args.input.clone()).to_string())?;
    Ok(Plan { from, to, progressive: args.progressive, opus })
}

/// Converts into a file, which appears when all of it is there, and never in another's place.
fn convert_to_file(input: &Path, out: &Path, plan: &Plan) -> Result<Vec<String>, ConvertError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ConvertError::Io { path, source }
    };
    if out.exists() {
        return Err(failed(out)(io::ErrorKind::AlreadyExists.into()));
    }
    let part = part_of(out);
    let target = OpenOptions::new().read(true).write(true).create_new(true).open(&part).map_err(failed(&part))?;
    let done = converted(input, &target, &part, plan)
        .map_err(|source| ConvertError::Render { path: input.to_owned(), source })
        .and_then(|problems| target.sync_all().map(|()| problems).map_err(failed(&part)))
        .and_then(|problems| give_name(&part, out).map(|()| problems).map_err(ConvertError::from));
    if done.is_err() {
        // Nothing is better than a part of it.
        let _ = fs::remove_file(&part);
    }
    done
}

/// Converts into `target`, which is the file at `part`.
fn converted(input: &Path, mut target: &File, part: &Path, plan: &Plan) -> Result<Vec<String>, RenderError> {
    if !plan.progressive {
        return convert(input, target, plan);
    }
    if plan.from == Format::Mp4 && source::is_aac(File::open(input)?)? {
        let contents = mp4::faststart(&mut File::open(input)?, &mut target)?;
        return Ok(contents.problems.iter().map(ToString::to_string).collect());
    }
    let problems = convert(input, target, plan)?;
    put_index_in_front(part).map(|()| problems)
}

fn convert(input: &Path, mut target: &File, plan: &Plan) -> Result<Vec<String>, RenderError> {
    let source = File::open(input)?;
    let mut progress = Progress::new(source.metadata()?.len());
    let is_sound = |format: Format| !format.holds_opus();
    if is_sound(plan.from) && matches!(plan.to.format, Format::Wav | Format::Flac) {
        return copy_samples(source, target, plan.to, &mut progress);
    }
    let mut bytes = Vec::new();
    if plan.to.format == Format::Ogg {
        return source::read(source, plan.from, &plan.opus, &mut |pages, at| {
            progress.at(at);
            Ok(target.write_all(pages)?)
        });
    }
    let mut render = Render::new(plan.to)?;
    let mut put = |render: &mut Render, patches: Vec<Patch>| -> Result<(), RenderError> {
        bytes.clear();
        render.take_bytes(&mut bytes);
        target.write_all(&bytes)?;
        Ok(patches.iter().try_for_each(|patch| target.write_all_at(&patch.bytes, patch.offset))?)
    };
    let problems = source::read(source, plan.from, &plan.opus, &mut |pages, at| {
        progress.at(at);
        let patches = render.push(pages)?;
        put(&mut render, patches)
    })?;
    let patches = render.finish()?;
    put(&mut render, patches)?;
    Ok(problems)
}

/// Samples as they are, from one format that holds them to another.
fn copy_samples(
    source: File,
    mut target: &File,
    to: Rendering,
    progress: &mut Progress,
) -> Result<Vec<String>, RenderError> {
    let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut reader = AudioReader::new(source).map_err(|error| invalid(error.to_string()))?;
    reader.check_rate().map_err(|error| invalid(error.to_string()))?;
    let (channels, tags) = (reader.info().channels, reader.info().tags.clone());
    let mapping = match channels {
        1 => Mapping::Mono,
        2 => Mapping::Stereo,
        more => return Err(invalid(format!("{more} channels; 1 or 2 can be converted")).into()),
    };
    let head = OpusHead::new(mapping, 0);
    let mut writer = match to.format {
        Format::Flac => Samples::Flac(Box::new(FlacWriter::new(&head, &tags, to.quality.depth)?)),
        _ => Samples::Wav(WavWriter::new(&head, &tags, to.quality.depth)?),
    };
    let (mut pcm, mut bytes, mut total) = (Vec::new(), Vec::new(), 0);
    loop {
        pcm.clear();
        let count = reader.read(&mut pcm).map_err(|error| invalid(error.to_string()))?;
        total += count as u64;
        let patches = if count == 0 { writer.finish(SampleCount(total))? } else { writer.write(&pcm)? };
        bytes.clear();
        writer.take_bytes(&mut bytes);
        target.write_all(&bytes)?;
        patches.iter().try_for_each(|patch| target.write_all_at(&patch.bytes, patch.offset))?;
        if count == 0 {
            return Ok(reader.problems().iter().map(ToString::to_string).collect());
        }
        progress.at(total * u64::from(channels) * 2);
    }
}

enum Samples {
    Wav(WavWriter),
    Flac(Box<FlacWriter>),
}

impl Samples {
    fn write(&mut self, pcm: &[f32]) -> Result<Vec<Patch>, EncodeError> {
        match self {
            Self::Wav(writer) => writer.write(pcm),
            Self::Flac(writer) => writer.write(pcm),
        }
        .map(|()| Vec::new())
    }

    fn finish(&mut self, total: SampleCount) -> Result<Vec<Patch>, EncodeError> {
        match self {
            Self::Wav(writer) => writer.finish(total),
            Self::Flac(writer) => writer.finish(total),
        }
    }

    fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        match self {
            Self::Wav(writer) => writer.take_bytes(out),
            Self::Flac(writer) => writer.take_bytes(out),
        }
    }
}

/// Makes a fragmented file one with its index in front, in its place.
fn put_index_in_front(path: &Path) -> Result<(), RenderError> {
    let again = part_of(path);
    let mut from = File::open(path)?;
    let mut to = OpenOptions::new().write(true).create_new(true).open(&again)?;
    from.seek(SeekFrom::Start(0))?;
    let done = mp4::faststart(&mut from, &mut to).and_then(|_| to.sync_all()).and_then(|()| fs::rename(&again, path));
    if done.is_err() {
        let _ = fs::remove_file(&again);
    }
    Ok(done?)
}

/// A line on a terminal that shows how far it is.
struct Progress {
    all: u64,
    drawn: Option<Instant>,
}

impl Progress {
    fn new(all: u64) -> Self {
        Self { all, drawn: None }
    }

    fn at(&mut self, bytes: u64) {
        let now = clock::now();
        let is_due = self.drawn.is_none_or(|drawn| now.saturating_duration_since(drawn) >= EVERY);
        if !is_due || !io::stderr().is_terminal() {
            return;
        }
        self.drawn = Some(now);
        let percent = (bytes * 100).checked_div(self.all).unwrap_or(100).min(100);
        let filled = percent as usize / 5;
        // A terminal that is gone is no reason to stop.
        let _ = write!(io::stderr(), "\r\x1b[2K[{}{}] {percent} %", "█".repeat(filled), "░".repeat(20 - filled));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }
}
