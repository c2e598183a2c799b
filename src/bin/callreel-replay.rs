//! Feeds a packet trace to the capture core and prints where each packet lies: one JSON object a line, one a packet in
//! the order of the trace, then the ledgers, one a track.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use callreel::call::ParticipantKind;
use callreel::capture::{CaptureConfig, TrackLedger};
use callreel::testkit::replay;
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// Feeds a packet trace to the capture core and prints where each packet lies on the recording's timeline.
#[derive(Debug, Parser)]
#[command(name = "callreel-replay", version)]
struct Arguments {
    /// A CSV file: arrival_us,track,seq,rtp_ts,marker,payload_bytes.
    trace: PathBuf,
    /// What kind of participant sent the tracks.
    #[arg(long, value_enum, default_value_t = Kind::Sip)]
    kind: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A telephone leg: late steps of 40 ms and more are time that the sender's clock stood still.
    Sip,
    /// A person in an app or a browser.
    Standard,
}

#[derive(Serialize)]
struct LedgerLine<'a> {
    track: u32,
    ledger: &'a TrackLedger,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("callreel-replay: {}: {why}", arguments.trace.display());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let trace = replay::read(&std::fs::read_to_string(&arguments.trace)?)?;
    let kind = match arguments.kind {
        Kind::Sip => ParticipantKind::Sip,
        Kind::Standard => ParticipantKind::Standard,
    };
    let replayed = replay::replay(&trace, kind, CaptureConfig::default());
    let mut out = BufWriter::new(std::io::stdout().lock());
    for packet in &replayed.packets {
        serde_json::to_writer(&mut out, packet)?;
        out.write_all(b"\n")?;
    }
    for (track, ledger) in &replayed.ledgers {
        serde_json::to_writer(&mut out, &LedgerLine { track: *track, ledger })?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
