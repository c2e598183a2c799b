//! `callreel inspect`: what is in a recording, and whether it is sound.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::analysis::Loudness;
use crate::config::OutputKind;
use crate::encode::{Inspection, OggInspector};
use crate::mix::Side;
use crate::recording::{Manifest, OutputEntry, SidecarEntry};
use crate::spool::hash_of;

use super::BAD_USAGE;

/// Flags of `callreel inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Given a manifest, every file it names is looked at.\n\nExit codes: 0 sound, 1 something is wrong with it, 2 it cannot be read."
)]
pub struct Args {
    /// The recording, or its manifest
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Everything found out about a file.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    stream: Inspection,
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
    let reports = match look(&args.file) {
        Ok(reports) => reports,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    for report in &reports {
        if args.json {
            println!("{}", serde_json::to_string(report).expect("plain data becomes JSON"));
        } else {
            print(report);
        }
    }
    if reports.iter().all(|report| report.problems.is_empty()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A file that cannot be looked at.
#[derive(Debug, thiserror::Error)]
enum InspectError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a manifest of callreel: {source}")]
    Manifest { path: PathBuf, source: serde_json::Error },
}

fn look(file: &Path) -> Result<Vec<Report>, InspectError> {
    if file.extension().is_some_and(|ext| ext == "json") {
        let manifest = read_manifest(file)?;
        let folder = file.parent().unwrap_or(Path::new(""));
        return manifest
            .outputs
            .iter()
            .map(|output| report(&folder.join(&output.file), Some((file.to_owned(), manifest.clone()))))
            .collect();
    }
    let beside = manifest_beside(file);
    let manifest = match &beside {
        Some(path) => Some((path.clone(), read_manifest(path)?)),
        None => None,
    };
    Ok(vec![report(file, manifest)?])
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

fn report(file: &Path, manifest: Option<(PathBuf, Manifest)>) -> Result<Report, InspectError> {
    let stream = inspect(file).map_err(|source| InspectError::Read { path: file.to_owned(), source })?;
    let mut problems: Vec<String> = stream.problems.iter().map(ToString::to_string).collect();
    match &manifest {
        Some((_, manifest)) => problems.extend(against(file, &stream, manifest)?),
        None => problems.push("there is no manifest beside it".to_owned()),
    }
    let manifest = manifest.map(|(path, manifest)| ManifestReport { path, manifest });
    Ok(Report { file: file.to_owned(), stream, manifest, problems })
}

fn inspect(file: &Path) -> io::Result<Inspection> {
    let mut file = File::open(file)?;
    let mut inspector = OggInspector::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(inspector.finish());
        }
        inspector.push(&buffer[..read]);
    }
}

/// What the manifest says that the file does not bear out.
fn against(file: &Path, stream: &Inspection, manifest: &Manifest) -> Result<Vec<String>, InspectError> {
    let mut problems = Vec::new();
    if let Err(why) = manifest.check() {
        problems.push(format!("the manifest's ledger does not add up: {why}"));
    }
    let Some(output) = output_of(file, manifest) else {
        problems.push(format!("the manifest knows no file {:?}", file.file_name().unwrap_or_default()));
        return Ok(problems);
    };
    if output.bytes != stream.bytes {
        problems.push(format!("{} bytes, where the manifest says {}", stream.bytes, output.bytes));
    }
    if (stream.duration.as_secs_f64() - output.duration_seconds).abs() > 0.001 {
        let says = output.duration_seconds;
        problems.push(format!("plays {:.3} s, where the manifest says {says:.3} s", stream.duration.as_secs_f64()));
    }
    let channels = stream.head.map_or(0, |head| head.mapping.channels());
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
    Ok(hash == output.sha256)
}

fn print(report: &Report) {
    let stream = &report.stream;
    println!("{}", report.file.display());
    println!(
        "  plays      {:.3} s ({} packets on {} pages)",
        stream.duration.as_secs_f64(),
        stream.packets,
        stream.pages
    );
    println!("  size       {} bytes", stream.bytes);
    if let Some(head) = &stream.head {
        println!("  channels   {} ({:?}, pre-skip {})", head.mapping.channels(), head.mapping, head.pre_skip);
    }
    if let Some(tags) = &stream.tags {
        println!("  made by    {}", tags.vendor);
    }
    if let Some(ManifestReport { manifest, .. }) = &report.manifest {
        if let Some(output) = output_of(&report.file, manifest) {
            print_output(output);
        }
        print_manifest(manifest);
    }
    match report.problems.as_slice() {
        [] => println!("  sound      yes: container, granules, duration, ledger and hash agree"),
        problems => problems.iter().for_each(|problem| println!("  PROBLEM    {problem}")),
    }
}

fn print_output(output: &OutputEntry) {
    match &output.participant {
        Some(identity) => println!("  output     {} of {identity}", output.kind),
        None => println!("  output     {}", output.kind),
    }
    for stream in &output.streams {
        let who = match stream.side {
            None => "sound".to_owned(),
            Some(Side::Left) => format!("left: {}", output.left.join(", ")),
            Some(Side::Right) => format!("right: {}", output.right.join(", ")),
        };
        let because = stream.because.map(|because| format!(", because {because}")).unwrap_or_default();
        let (passed, transcoded) = (stream.passed_seconds, stream.transcoded_seconds);
        println!("             {who}; passed through {passed:.3} s, transcoded {transcoded:.3} s{because}");
        for (because, seconds) in &stream.transcoded_because {
            println!("             transcoded {seconds:.3} s because {because}");
        }
    }
}

fn print_manifest(manifest: &Manifest) {
    println!("  recording  {} of room {:?}, from {}", manifest.recording_id, manifest.room.name, manifest.started_at);
    println!("  outcome    {} (stopped by: {})", manifest.outcome, word(&manifest.stopped_by));
    for reason in &manifest.reasons {
        println!("             {reason}");
    }
    for person in &manifest.participants {
        let left = person.left_sample.map_or_else(|| "the end".to_owned(), |at| at.to_string());
        let spoke = person.speaking_seconds.map(|seconds| format!(", spoke {seconds:.1} s")).unwrap_or_default();
        println!("  {:<10} {} from {} to {left}{spoke}", word(&person.role), person.identity, person.joined_sample);
    }
    if let Some(loudness) = &manifest.loudness {
        println!("  loudness   {}", described(loudness));
    }
    for sidecar in &manifest.sidecars {
        println!("  {:<10} {}", word(&sidecar.kind), sidecar.file);
    }
    for track in &manifest.tracks {
        let sums = crate::capture::Reason::ALL.iter().filter_map(|&reason| {
            let sum = track.ledger.sums.get(reason);
            (sum.0 > 0).then(|| format!("{} {:.3} s", word(&reason), sum.as_secs_f64()))
        });
        println!("  track      {} of {}: {}", track.sid, track.identity, sums.collect::<Vec<_>>().join(", "));
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
        for output in ["a.b.ogg", "a.b-dual.ogg", "a.b-sip_+1-2.3.ogg"] {
            assert_eq!(manifest_beside(&dir.path().join(output)), Some(manifest.clone()), "{output}");
        }
        assert_eq!(manifest_beside(&dir.path().join("c.ogg")), None);
    }

    #[test]
    fn what_is_no_recording_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.ogg");
        std::fs::write(&file, "no ogg at all").unwrap();
        let reports = look(&file).unwrap();
        assert!(reports[0].problems.len() >= 2, "{:?}", reports[0].problems);
        assert!(look(&dir.path().join("missing.ogg")).is_err());
    }
}
