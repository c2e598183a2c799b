//! `callreel recover`: ends recordings whose process died.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{default_spool, local_directory};
use crate::recording::{Recovered, recover};

use super::BAD_USAGE;
use super::logging::{self, LogFormat};

/// How often `--watch` looks: a lock that a dead process held makes no event.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// Flags of `callreel recover`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints one line a recording, as `record` does at its end.\n\nExit codes: 0 nothing is left to recover, 1 a recording or the spool could not be dealt with, 2 bad usage."
)]
pub struct Args {
    /// The directory of journals [default: .spool in the directory for recordings]
    #[arg(long, env = "CALLREEL_SPOOL", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// The directory for recordings, as `record` has it
    #[arg(long, env = "CALLREEL_OUT", value_name = "DIR", default_value = "./recordings")]
    out: String,
    /// Go on looking for recordings whose process died, until told to stop
    #[arg(long)]
    watch: bool,
    /// How log lines look
    #[arg(long, env = "CALLREEL_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// Ends what has to be ended.
pub fn run(args: &Args) -> ExitCode {
    logging::start(args.log_format, "info");
    let spool = match &args.spool {
        Some(spool) => spool.clone(),
        None => match local_directory(&args.out) {
            Ok(out) => default_spool(&out),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(BAD_USAGE);
            }
        },
    };
    let mut pending = BTreeSet::new();
    if args.watch {
        return watch(&spool, &mut pending);
    }
    if pass(&spool, &mut pending) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn watch(spool: &Path, pending: &mut BTreeSet<String>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            eprintln!("error: signals cannot be caught here");
            return ExitCode::FAILURE;
        };
        let mut clock = tokio::time::interval(WATCH_EVERY);
        loop {
            tokio::select! {
                _ = clock.tick() => {
                    // What fails is tried again.
                    pass(spool, pending);
                }
                _ = interrupt.recv() => return ExitCode::SUCCESS,
                _ = terminate.recv() => return ExitCode::SUCCESS,
            }
        }
    })
}

/// Looks once. Gives whether all went well.
fn pass(spool: &Path, pending: &mut BTreeSet<String>) -> bool {
    let recovered = match recover(spool, None) {
        Ok(recovered) => recovered,
        Err(error) => {
            eprintln!("error: cannot read {}: {error}", spool.display());
            return false;
        }
    };
    let mut all_well = true;
    for recording in recovered {
        match recording {
            Ok(Recovered::Done(result)) => {
                for reason in &result.reasons {
                    eprintln!("{}: {}: {reason}", result.recording_id, result.outcome);
                }
                println!("{}", serde_json::to_string(&result).expect("plain data becomes JSON"));
            }
            Ok(Recovered::UploadPending(waiting)) => {
                let id = &waiting.orphan.started().recording_id;
                if pending.insert(id.clone()) {
                    eprintln!("{id}: upload to {} pending", waiting.store);
                }
            }
            Err(error) => {
                eprintln!("error: {error}");
                all_well = false;
            }
        }
    }
    all_well
}
