//! What `callreel serve` costs: idle, and with calls on a real server; beside it the same calls recorded without a service.
//!
//! ```text
//! cargo bench --features testkit --bench serve -- [--calls 1,11,31] [--seconds 15] [--programs DIR]
//! ```
//!
//! Both record at the same time and on the same processors, so that what else the machine does falls on both alike.
//! livekit-server has to be there: `make tools`.

#![allow(missing_docs)]

use std::path::PathBuf;
use std::time::Duration;

use callreel::config::OutputKind;
use callreel::mix::Mixing;
use callreel::testkit::TestkitError;
use callreel::testkit::load::{Load, Mode, Part, Plan, Programs, Recording, Sound, Source};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// How many calls of two, in steps.
    #[arg(long, value_delimiter = ',', default_value = "1,11,31")]
    calls: Vec<usize>,
    /// How many seconds are measured at each step.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Where the programs are that record [default: those that were built for this].
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn plan(&self, mode: Mode) -> Plan {
        let built = Programs {
            load: PathBuf::from(env!("CARGO_BIN_EXE_callreel-load")),
            callreel: PathBuf::from(env!("CARGO_BIN_EXE_callreel")),
        };
        Plan {
            programs: self.programs.as_deref().map_or(built, Programs::in_folder),
            source: Source::Server,
            mode,
            recording: Recording { outputs: vec![OutputKind::Mix], mixing: Mixing::Auto, analysis: true },
            talkers: 2,
            sound: Sound::default(),
            recorder_cores: Vec::new(),
        }
    }
}

fn main() -> Result<(), TestkitError> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|source| TestkitError::Io { what: "a runtime".into(), source })?;
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<(), TestkitError> {
    let window = Duration::from_secs(arguments.seconds);
    let mut service = Load::begin(arguments.plan(Mode::Service)).await?;
    let mut alone = Load::begin(arguments.plan(Mode::Pooled)).await?;
    let idle = service.measure(window).await.recorder;
    println!("idle: {:.1} MiB resident, {:.2} % of a processor", idle.rss_mib, idle.cores * 100.0);
    println!("calls | service: % of a processor a call, MiB | without: the same | ratio of processor time");
    let mut first: Option<(usize, Part, Part)> = None;
    let mut last = None;
    for calls in &arguments.calls {
        service.grow(*calls).await?;
        alone.grow(*calls).await?;
        let (with, without) = tokio::join!(service.measure(window), alone.measure(window));
        let (a, b) = (with.recorder, without.recorder);
        println!(
            "{calls} | {:.2}, {:.1} | {:.2}, {:.1} | {:.2}",
            a.percent_per_call,
            a.rss_mib,
            b.percent_per_call,
            b.rss_mib,
            a.cores / b.cores
        );
        let (from, before, beside) = *first.get_or_insert((*calls, a, b));
        if *calls > from {
            let further = (*calls - from) as f64;
            println!(
                "  each further call: {:.2} MiB with the service, {:.2} without",
                (a.rss_mib - before.rss_mib) / further,
                (b.rss_mib - beside.rss_mib) / further
            );
        }
        last = Some((with, without));
    }
    if let Some((with, without)) = last {
        println!("{}\n{}", service.finish(with).await?, alone.finish(without).await?);
    }
    Ok(())
}
