//! `callreel inspect`: what is in a recording, and whether it is sound.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::analysis::Loudness;
use crate::config::OutputKind;
use crate::encode::{
    AudioInspection, AudioReader, Contents, Format, Inspection, Mp4Reader, OggInspector, OpusHead, OpusTags, ReadError,
    WebmReader,
};
use crate::mix::Side;
use crate::recording::{EncryptionEntry, Manifest, OutputEntry, SidecarEntry};
use crate::render::source;
use crate::seal::{self, Identities, SealInspection, SealInspector};
use crate::spool::hash_of;

use super::BAD_USAGE;
use super::decrypt::{self, DecryptError, read_identities};
use super::say::{err, out};

/// Flags of `callreel inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Given a manifest, every file it names is looked at. Of an encrypted file, only what stands in plain is looked at without a key.\n\nExit codes: 0 sound, 1 something is wrong with it, 2 it cannot be read."
)]
pub struct Args {
    /// The recording, or its manifest
    file: PathBuf,
    /// A file with an age secret key, to look into encrypted files; may be given again
    #[arg(long, short, value_name = "KEYFILE")]
    identity: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is in a file, by its format.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Inside {
    Ogg(Inspection),
    Container(Contents),
    Sound {
        /// Bytes looked at.
        bytes: u64,
        #[serde(flatten)]
        found: AudioInspection,
    },
}

impl Inside {
    fn bytes(&self) -> u64 {
        match self {
            Self::Ogg(found) => found.bytes,
            Self::Container(found) => found.bytes,
            Self::Sound { bytes, .. } => *bytes,
        }
    }

    fn seconds(&self) -> f64 {
        match self {
            Self::Ogg(found) => found.duration.as_secs_f64(),
            Self::Container(found) => found.total.as_secs_f64(),
            Self::Sound { found, .. } => found.seconds(),
        }
    }

    fn head(&self) -> Option<OpusHead> {
        match self {
            Self::Ogg(found) => found.head,
            Self::Container(found) => found.head,
            Self::Sound { .. } => None,
        }
    }

    fn channels(&self) -> u8 {
        match self {
            Self::Sound { found, .. } => found.info.channels,
            Self::Container(Contents { aac: Some(aac), .. }) => aac.channels,
            Self::Ogg(_) | Self::Container(_) => self.head().map_or(0, |head| head.mapping.channels()),
        }
    }

    fn tags(&self) -> Option<&OpusTags> {
        match self {
            Self::Ogg(found) => found.tags.as_ref(),
            Self::Container(found) => found.tags.as_ref(),
            Self::Sound { found, .. } => Some(&found.info.tags),
        }
    }

    fn problems(&self) -> Vec<String> {
        match self {
            Self::Ogg(found) => found.problems.iter().map(ToString::to_string).collect(),
            Self::Container(found) => found.problems.iter().map(ToString::to_string).collect(),
            Self::Sound { found, .. } => found.problems.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Everything found out about a file.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    /// What is in the stream; none where it is encrypted and there is no key.
    stream: Option<Inside>,
    /// What of an encrypted file stands in plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    sealed: Option<SealInspection>,
    manifest: Option<ManifestReport>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ManifestReport {
    path: PathBuf,
    manifest: Manifest,
}

/// Prints what is in the file and checks it.
pub fn run(args: &Args) -> ExitCode {
    let keys = if args.identity.is_empty() { Ok(None) } else { read_identities(&args.identity).map(Some) };
    let looked = keys.map_err(InspectError::from).and_then(|keys| look(&args.file, keys.as_ref()));
    let reports = match looked {
        Ok(reports) => reports,
        Err(error) => {
            err!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    for report in &reports {
        if args.json {
            out!("{}", serde_json::to_string(report).expect("plain data becomes JSON"));
        } else {
            print(report);
        }
    }
    if reports.iter().all(|report| report.problems.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A file that cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub(super) enum InspectError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a manifest of callreel: {source}")]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Decrypt(#[from] DecryptError),
}

fn look(file: &Path, keys: Option<&Identities>) -> Result<Vec<Report>, InspectError> {
    if file.extension().is_some_and(|ext| ext == "json") {
        let manifest = read_manifest(file)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        return manifest
            .outputs
            .iter()
            .map(|output| report(&folder.join(&output.file), Some((file.to_owned(), manifest.clone())), keys))
            .collect();
    }
    let beside = manifest_beside(file);
    let manifest = match &beside {
        Some(path) => Some((path.clone(), read_manifest(path)?)),
        None => None,
    };
    Ok(vec![report(file, manifest, keys)?])
}

/// The manifest that a file is, or that lies beside it, and where it is; none where there is none.
///
/// # Errors
/// Where it cannot be read.
pub(super) fn manifest_of(file: &Path) -> Result<Option<(PathBuf, Manifest)>, InspectError> {
    let path =
        if file.extension().is_some_and(|ext| ext == "json") { Some(file.to_owned()) } else { manifest_beside(file) };
    path.map(|path| read_manifest(&path).map(|manifest| (path, manifest))).transpose()
}

/// The manifest of `a/call.ogg` is `a/call.json`; further outputs have more before their ending, after a `-` or a `.`.
/// The longest name whose manifest knows the file wins, else the longest there is.
fn manifest_beside(file: &Path) -> Option<PathBuf> {
    let name = file.file_name()?.to_str()?;
    let ends = name.char_indices().rev().filter(|(_, c)| matches!(c, '-' | '.')).map(|(at, _)| at);
    let mut found = ends.map(|at| file.with_file_name(format!("{}.json", &name[..at]))).filter(|path| path.is_file());
    let first = found.next()?;
    let knows = |path: &PathBuf| {
        read_manifest(path).is_ok_and(|manifest| manifest.outputs.iter().any(|output| output.file == name))
    };
    if knows(&first) {
        return Some(first);
    }
    Some(found.find(knows).unwrap_or(first))
}

fn read_manifest(path: &Path) -> Result<Manifest, InspectError> {
    let bytes = std::fs::read(path).map_err(|source| InspectError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| InspectError::Manifest { path: path.to_owned(), source })
}

fn report(
    file: &Path,
    manifest: Option<(PathBuf, Manifest)>,
    keys: Option<&Identities>,
) -> Result<Report, InspectError> {
    let (stream, sealed) = if file.extension().is_some_and(|ext| ext == seal::EXT) {
        let stream = keys.map(|keys| inspect_opened(file, keys)).transpose()?.map(Inside::Ogg);
        let mut inspector = SealInspector::new();
        read(file, |bytes| inspector.push(bytes))?;
        (stream, Some(inspector.finish()))
    } else {
        (Some(inside(file)?), None)
    };
    let mut problems = Vec::new();
    problems.extend(sealed.iter().flat_map(|sealed| sealed.problems.iter().map(ToString::to_string)));
    problems.extend(stream.iter().flat_map(Inside::problems));
    match &manifest {
        Some((_, manifest)) => problems.extend(against(file, stream.as_ref(), sealed.as_ref(), manifest)?),
        None => problems.push("there is no manifest beside it".to_owned()),
    }
    let manifest = manifest.map(|(path, manifest)| ManifestReport { path, manifest });
    Ok(Report { file: file.to_owned(), stream, sealed, manifest, problems })
}

/// Looks into a plain file. What is in no format is taken for Ogg, and is none.
fn inside(file: &Path) -> Result<Inside, InspectError> {
    let failed = |source| InspectError::Read { path: file.to_owned(), source };
    let mut first = Vec::new();
    File::open(file).and_then(|file| file.take(16).read_to_end(&mut first)).map_err(failed)?;
    Ok(match source::format_of(&first) {
        Some(Format::Webm) => {
            let mut reader = WebmReader::new();
            read(file, |bytes| reader.push(bytes))?;
            Inside::Container(reader.finish())
        }
        Some(Format::Mp4) => {
            let mut reader = Mp4Reader::new();
            read(file, |bytes| reader.push(bytes))?;
            if let Some(second) = reader.second_reading() {
                reader = second;
                read(file, |bytes| reader.push(bytes))?;
            }
            Inside::Container(reader.finish())
        }
        Some(Format::Wav | Format::Flac | Format::Mp3) => {
            let unreadable = |error: ReadError| failed(io::Error::new(io::ErrorKind::InvalidData, error));
            let opened = File::open(file).map_err(failed)?;
            let bytes = opened.metadata().map_err(failed)?.len();
            let found = AudioReader::new(opened).and_then(AudioReader::inspect).map_err(unreadable)?;
            Inside::Sound { bytes, found }
        }
        Some(Format::Ogg) | None => {
            let mut inspector = OggInspector::new();
            read(file, |bytes| inspector.push(bytes))?;
            Inside::Ogg(inspector.finish())
        }
    })
}

/// Looks into an encrypted file.
fn inspect_opened(file: &Path, keys: &Identities) -> Result<Inspection, InspectError> {
    struct Into(OggInspector);
    impl Write for Into {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut into = Into(OggInspector::new());
    // What is missing shows in the stream.
    decrypt::decrypt(file, keys, &mut into, file)?;
    Ok(into.0.finish())
}

fn read(file: &Path, mut take: impl FnMut(&[u8])) -> Result<(), InspectError> {
    let failed = |source| InspectError::Read { path: file.to_owned(), source };
    let mut source = File::open(file).map_err(failed)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = source.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok(());
        }
        take(&buffer[..read]);
    }
}

/// What the manifest says that the file does not bear out.
fn against(
    file: &Path,
    stream: Option<&Inside>,
    sealed: Option<&SealInspection>,
    manifest: &Manifest,
) -> Result<Vec<String>, InspectError> {
    let mut problems = Vec::new();
    if let Err(why) = manifest.check() {
        problems.push(format!("the manifest's ledger does not add up: {why}"));
    }
    let Some(output) = output_of(file, manifest) else {
        problems.push(format!("the manifest knows no file {:?}", file.file_name().unwrap_or_default()));
        return Ok(problems);
    };
    let bytes = sealed.map(|sealed| sealed.bytes).or(stream.map(Inside::bytes)).unwrap_or_default();
    if output.bytes != bytes {
        problems.push(format!("{bytes} bytes, where the manifest says {}", output.bytes));
    }
    let durations = [stream.map(Inside::seconds), sealed.map(|sealed| sealed.duration.as_secs_f64())];
    let says = output.duration_seconds;
    let differs = |plays: &f64| (plays - says).abs() > 0.001;
    if let Some(plays) = durations.into_iter().flatten().find(differs) {
        problems.push(format!("plays {plays:.3} s, where the manifest says {says:.3} s"));
    }
    if sealed.is_some() != output.encryption.is_some() {
        problems.push("encrypted or not, the manifest says otherwise".to_owned());
    }
    let of_sealed = || sealed.and_then(|sealed| sealed.head).map_or(0, |head| head.mapping.channels());
    let channels = stream.map_or_else(of_sealed, Inside::channels);
    if output.kind == OutputKind::Dual && channels != 2 {
        problems.push(format!("{channels} channels, where a dual file has 2"));
    }
    if !hash_matches(file, output)? {
        problems.push("its SHA-256 is not the manifest's".to_owned());
    }
    problems.extend(beside(file, manifest));
    Ok(problems)
}

/// What is wrong with the files that tell about the recording.
fn beside(file: &Path, manifest: &Manifest) -> Vec<String> {
    let wrong = |sidecar: &SidecarEntry| match hash_of(&file.with_file_name(&sidecar.file)) {
        Ok(hash) if hash == sidecar.sha256 => None,
        Ok(_) => Some(format!("the SHA-256 of {} is not the manifest's", sidecar.file)),
        Err(error) => Some(format!("{}: {error}", sidecar.file)),
    };
    manifest.sidecars.iter().filter_map(wrong).collect()
}

fn output_of<'a>(file: &Path, manifest: &'a Manifest) -> Option<&'a OutputEntry> {
    let name = file.file_name()?.to_string_lossy();
    manifest.outputs.iter().find(|output| output.file == name)
}

fn hash_matches(file: &Path, output: &OutputEntry) -> Result<bool, InspectError> {
    let hash = hash_of(file).map_err(|source| InspectError::Read { path: file.to_owned(), source })?;
    // Nobody but the service had the bytes of what LiveKit Egress wrote.
    Ok(output.sha256.is_empty() || hash == output.sha256)
}

fn print(report: &Report) {
    out!("{}", report.file.display());
    if let Some(sealed) = &report.sealed {
        let SealInspection { duration, segments, bytes, plain_bytes, .. } = sealed;
        out!("  encrypted  {segments} segments of {:.3} s", duration.as_secs_f64());
        out!("  size       {bytes} bytes, {plain_bytes} when decrypted");
    }
    if let Some(stream) = &report.stream {
        let of_what = match stream {
            Inside::Ogg(found) => format!("{} packets on {} pages", found.packets, found.pages),
            Inside::Container(found) => {
                let codec = found.aac.map_or_else(String::new, |aac| format!(" of {aac}"));
                format!("{} packets{codec} in {} clusters or fragments", found.packets, found.units)
            }
            Inside::Sound { found, .. } => {
                let bits = found.info.bits.map_or_else(String::new, |bits| format!(" of {bits} bits"));
                format!("{}, {} samples{bits} at {} Hz", word(&found.info.format), found.samples, found.info.rate)
            }
        };
        out!("  plays      {:.3} s ({of_what})", stream.seconds());
        if report.sealed.is_none() {
            out!("  size       {} bytes", stream.bytes());
        }
    }
    let of_sealed = || report.sealed.as_ref().and_then(|sealed| sealed.head);
    match (&report.stream, report.stream.as_ref().map_or_else(of_sealed, Inside::head)) {
        (_, Some(head)) => {
            out!("  channels   {} ({:?}, pre-skip {})", head.mapping.channels(), head.mapping, head.pre_skip);
        }
        (Some(stream), None) => out!("  channels   {}", stream.channels()),
        (None, None) => {}
    }
    if let Some(tags) = report.stream.as_ref().and_then(Inside::tags).filter(|tags| !tags.vendor.is_empty()) {
        out!("  made by    {}", tags.vendor);
    }
    if let Some(ManifestReport { manifest, .. }) = &report.manifest {
        if let Some(output) = output_of(&report.file, manifest) {
            print_output(output);
        }
        print_manifest(manifest);
    }
    match report.problems.as_slice() {
        [] => out!("  sound      yes: container, granules, duration, ledger and hash agree"),
        problems => problems.iter().for_each(|problem| out!("  PROBLEM    {problem}")),
    }
}

fn print_output(output: &OutputEntry) {
    match &output.participant {
        Some(identity) => out!("  output     {} of {identity}", output.kind),
        None => out!("  output     {}", output.kind),
    }
    for stream in &output.streams {
        let who = match stream.side {
            None => "sound".to_owned(),
            Some(Side::Left) => format!("left: {}", output.left.join(", ")),
            Some(Side::Right) => format!("right: {}", output.right.join(", ")),
        };
        let because = stream.because.map(|because| format!(", because {because}")).unwrap_or_default();
        let (passed, transcoded) = (stream.passed_seconds, stream.transcoded_seconds);
        out!("             {who}; passed through {passed:.3} s, transcoded {transcoded:.3} s{because}");
        for (because, seconds) in &stream.transcoded_because {
            out!("             transcoded {seconds:.3} s because {because}");
        }
    }
    if let Some(EncryptionEntry { scheme, recipients }) = &output.encryption {
        for recipient in recipients.iter() {
            out!("             encrypted with {scheme} to {recipient}");
        }
    }
}

fn print_manifest(manifest: &Manifest) {
    out!("  recording  {} of room {:?}, from {}", manifest.recording_id, manifest.room.name, manifest.started_at);
    out!("  outcome    {} (stopped by: {})", manifest.outcome, word(&manifest.stopped_by));
    for reason in &manifest.reasons {
        out!("             {reason}");
    }
    for person in &manifest.participants {
        let left = person.left_sample.map_or_else(|| "the end".to_owned(), |at| at.to_string());
        let spoke = person.speaking_seconds.map(|seconds| format!(", spoke {seconds:.1} s")).unwrap_or_default();
        out!("  {:<10} {} from {} to {left}{spoke}", word(&person.role), person.identity, person.joined_sample);
    }
    if let Some(loudness) = &manifest.loudness {
        out!("  loudness   {}", described(loudness));
    }
    for sidecar in &manifest.sidecars {
        out!("  {:<10} {}", word(&sidecar.kind), sidecar.file);
    }
    for track in &manifest.tracks {
        let sums = crate::capture::Reason::ALL.iter().filter_map(|&reason| {
            let sum = track.ledger.sums.get(reason);
            (sum.0 > 0).then(|| format!("{} {:.3} s", word(&reason), sum.as_secs_f64()))
        });
        out!("  track      {} of {}: {}", track.sid, track.identity, sums.collect::<Vec<_>>().join(", "));
    }
}

fn described(loudness: &Loudness) -> String {
    let Loudness { integrated_lufs, range_lu, true_peak_dbtp } = loudness;
    let figure = |value: &Option<f64>, unit| value.map_or_else(|| format!("no {unit}"), |it| format!("{it:.1} {unit}"));
    format!(
        "{}, range {}, true peak {}",
        figure(integrated_lufs, "LUFS"),
        figure(range_lu, "LU"),
        figure(true_peak_dbtp, "dBTP")
    )
}

/// A type's word in the manifest, for people.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word.replace('_', " "),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_is_found_beside_every_output() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("a.b.json");
        std::fs::write(&manifest, "{}").unwrap();
        for output in ["a.b.ogg", "a.b-dual.ogg", "a.b-sip_+1-2.3.ogg", "a.b.ogg.age", "a.b-dual.ogg.age"] {
            assert_eq!(manifest_beside(&dir.path().join(output)), Some(manifest.clone()), "{output}");
        }
        assert_eq!(manifest_beside(&dir.path().join("c.ogg")), None);
    }

    #[test]
    fn what_is_no_recording_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.ogg");
        std::fs::write(&file, "no ogg at all").unwrap();
        let reports = look(&file, None).unwrap();
        assert!(reports[0].problems.len() >= 2, "{:?}", reports[0].problems);
        assert!(look(&dir.path().join("missing.ogg"), None).is_err());
    }
}
