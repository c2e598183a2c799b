//! How many calls one core records, and how near that is to what the codecs alone cost.
//!
//! ```text
//! cargo bench --features testkit --bench density -- [--quick | --full] [--json] [--participants 2,5] [--recordings 1,10]
//! ```
//!
//! Stages take turns, a second of call each, so that what else the machine does falls on all of them alike; what counts
//! is processor time of this thread. `BENCHMARKS.md` tells how to read the table.

#![allow(missing_docs)]

use std::sync::Arc;

use callreel::testkit::TestkitError;
use callreel::testkit::density::{CodecLimit, Conversation, Recording, Rtp, Setup, Srtp};
use clap::Parser;
use serde::Serialize;

/// All behind `srtp` have SRTP in their way: `srtp` transcodes, `listen` forwards and analyses, `forward` only forwards,
/// `dual` passes two sides through.
const STAGES: [&str; 6] = ["codec_limit", "rtp", "srtp", "listen", "forward", "dual"];

/// Steps of 20 ms in a second of call: how long a stage works before the next has its turn.
const TURN: u64 = 50;

/// Seconds of call before anything is measured: recordings wait for what may come late, and buffers grow.
const WARM_UP: u64 = 4;

/// About how many seconds of one track are measured for each stage, in seconds of call within the bounds below.
const TRACK_SECONDS: u64 = 400;
const SECONDS: std::ops::RangeInclusive<u64> = 4..=83;

/// How many steps further into the conversation each recording begins than the one before.
const APART: u64 = 37;

/// Most tracks at a time, unless everything is asked for: a thousand take minutes.
const TRACKS: usize = 1_000;

#[derive(Parser)]
struct Arguments {
    /// Prints one JSON object a row.
    #[arg(long)]
    json: bool,
    /// Measures small cases only.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Measures cases with more than a thousand tracks, too.
    #[arg(long)]
    full: bool,
    /// How many take part in a call.
    #[arg(long, value_delimiter = ',', default_value = "2,5,20,100")]
    participants: Vec<usize>,
    /// How many calls are recorded at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100,500")]
    recordings: Vec<usize>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    fn most_tracks(&self) -> usize {
        match (self.quick, self.full) {
            (true, _) => 20,
            (_, true) => usize::MAX,
            _ => TRACKS,
        }
    }
}

#[derive(Serialize)]
struct Row {
    stage: &'static str,
    participants: usize,
    recordings: usize,
    calls_per_core: f64,
    ratio_to_limit: f64,
    bytes_per_call: u64,
}

fn main() -> Result<(), TestkitError> {
    let arguments = Arguments::parse();
    if !arguments.json {
        println!(
            "{:<12} {:>12} {:>10} {:>14} {:>14} {:>14}",
            "stage", "participants", "recordings", "calls_per_core", "ratio_to_limit", "bytes_per_call"
        );
    }
    for participants in &arguments.participants {
        let conversation = Arc::new(Conversation::among(*participants)?);
        for recordings in arguments.recordings.iter().filter(|n| **n * participants <= arguments.most_tracks()) {
            for row in measure(&conversation, *recordings)? {
                if arguments.json {
                    println!("{}", serde_json::to_string(&row).expect("plain data becomes JSON"));
                } else {
                    println!(
                        "{:<12} {:>12} {:>10} {:>14.1} {:>14.3} {:>14}",
                        row.stage,
                        row.participants,
                        row.recordings,
                        row.calls_per_core,
                        row.ratio_to_limit,
                        row.bytes_per_call
                    );
                }
            }
        }
    }
    Ok(())
}

type Stage = Vec<Box<dyn Recording>>;

fn measure(conversation: &Arc<Conversation>, recordings: usize) -> Result<Vec<Row>, TestkitError> {
    let tracks = (conversation.participants() * recordings) as u64;
    let seconds = (TRACK_SECONDS / tracks).clamp(*SECONDS.start(), *SECONDS.end());
    let mut stages = STAGES.iter().map(|stage| make(stage, conversation, recordings)).collect::<Result<Vec<_>, _>>()?;
    let mut spent = [0.0; STAGES.len()];
    for second in 0..WARM_UP + seconds {
        for turn in 0..STAGES.len() {
            // Nobody is always the first after the others.
            let stage = (turn + second as usize) % STAGES.len();
            let took = run(&mut stages[stage])?;
            if second >= WARM_UP {
                spent[stage] += took;
            }
        }
    }
    let calls = |stage: usize| (recordings as u64 * seconds) as f64 / spent[stage];
    let mut rows = Vec::new();
    for (index, stage) in stages.into_iter().enumerate() {
        rows.push(Row {
            stage: STAGES[index],
            participants: conversation.participants(),
            recordings,
            calls_per_core: calls(index),
            ratio_to_limit: calls(index) / calls(0),
            bytes_per_call: size(stage) / recordings as u64,
        });
    }
    Ok(rows)
}

fn make(stage: &str, conversation: &Arc<Conversation>, recordings: usize) -> Result<Stage, TestkitError> {
    let one = |index: u64| -> Result<Box<dyn Recording>, TestkitError> {
        let (conversation, from) = (conversation.clone(), index * APART);
        Ok(match stage {
            "codec_limit" => Box::new(CodecLimit::new(conversation, from)?),
            "rtp" => Box::new(Rtp::new(conversation, from, &Setup::transcoding())?),
            "srtp" => Box::new(Srtp::new(conversation, from, &Setup::transcoding())?),
            "listen" => Box::new(Srtp::new(conversation, from, &Setup::forwarding_and_listening())?),
            "forward" => Box::new(Srtp::new(conversation, from, &Setup::forwarding())?),
            _ => Box::new(Srtp::new(conversation, from, &Setup::passing())?),
        })
    };
    (0..recordings as u64).map(one).collect()
}

/// Records a second of every call, side by side, and gives the processor time that this took.
fn run(stage: &mut Stage) -> Result<f64, TestkitError> {
    stage.iter_mut().try_for_each(|recording| recording.prepare(TURN))?;
    let before = machine::processor_seconds();
    for _ in 0..TURN {
        for recording in stage.iter_mut() {
            std::hint::black_box(recording.tick()?);
        }
    }
    Ok(machine::processor_seconds() - before)
}

/// The memory that these recordings hold: what is free again once they are gone.
fn size(mut stage: Stage) -> u64 {
    stage.iter_mut().for_each(|recording| recording.strip());
    let before = machine::heap();
    drop(stage);
    before.saturating_sub(machine::heap())
}

/// What the C library knows and Rust does not: libopus and the cryptography take their memory from it directly.
mod machine {
    /// Bytes taken from the allocator, by Rust and by C.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    pub fn heap() -> u64 {
        // SAFETY: it only reads the allocator's counters.
        let info = unsafe { libc::mallinfo2() };
        (info.uordblks + info.hblkhd) as u64
    }

    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    pub fn heap() -> u64 {
        0
    }

    /// Seconds that this thread has spent on a processor.
    pub fn processor_seconds() -> f64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the call fills the structure it is given, which outlives it.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(failed, 0, "every Unix has this clock");
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
}
