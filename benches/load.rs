//! What it costs to record calls on a real server: a small case in one process, and in a process a call.
//!
//! ```text
//! cargo bench --features testkit --bench load -- [--json] [--calls 10] [--seconds 15]
//! ```
//!
//! `callreel-load` has more to choose from. livekit-server has to be there: `make tools`.

#![allow(missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use callreel::config::OutputKind;
use callreel::mix::Mixing;
use callreel::testkit::TestkitError;
use callreel::testkit::load::{self, Mode, Plan, Programs, Recording, Sound, Source};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// Prints one JSON object a row.
    #[arg(long)]
    json: bool,
    /// How many calls.
    #[arg(long, default_value_t = 10)]
    calls: usize,
    /// How many seconds are measured.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), TestkitError> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|source| TestkitError::Io { what: "a runtime".into(), source })?;
    for (mode, outputs) in [
        (Mode::Pooled, OutputKind::Mix),
        (Mode::Pooled, OutputKind::Dual),
        (Mode::Process, OutputKind::Mix),
        (Mode::Process, OutputKind::Dual),
    ] {
        let plan = Plan {
            programs: Programs {
                load: PathBuf::from(env!("CARGO_BIN_EXE_callreel-load")),
                callreel: PathBuf::from(env!("CARGO_BIN_EXE_callreel")),
            },
            source: Source::Server,
            mode,
            recording: Recording { outputs: vec![outputs], mixing: Mixing::Auto, analysis: false },
            talkers: 2,
            sound: Sound::default(),
            recorder_cores: Vec::new(),
        };
        let report = runtime.block_on(load::run(plan, arguments.calls, Duration::from_secs(arguments.seconds)))?;
        if arguments.json {
            println!("{}", serde_json::to_string(&report).expect("plain data becomes JSON"));
        } else {
            println!("{outputs}: {report}\n");
        }
    }
    Ok(())
}
