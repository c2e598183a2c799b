//! Calls by the dozen on a real server: what recording them costs, and how many go at once.
//!
//! Publishers talk in this process, livekit-server and the recorders run in processes of their own, so that the
//! processor time of each can be told from `/proc`. What publishers send was encoded before, once for all rooms. Where
//! the limit of the recorder alone is looked for, this process sends the packets to its sockets without a server between.

mod crowd;
mod process;
mod recorders;
mod replay;
mod report;
mod script;
mod service;
mod stage;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use process::{Sockets, Usage, freeze};
pub use recorders::{Mode, Programs, Recording, serve};
pub use report::{Alignment, Level, Missed, Packets, Part, Percentiles, Report};
pub use script::{Probe, Script, Sound};
pub use stage::Source;

use recorders::Recorders;
use report::millis;
use stage::Stage;
use verdict::Recorded;

use crate::clock;
use crate::testkit::TestkitError;

/// How long the last recordings are given to settle before anything is measured.
const WARM_UP: Duration = Duration::from_secs(4);

/// A recorder that does not look after a call for so long has missed its deadline: it looks every tenth of a second.
const BEHIND: Duration = Duration::from_secs(1);

/// So much may wait in a socket: half a second of two talkers with the kernel's overhead is a tenth of it.
const WAITING: u64 = 1 << 20;

/// A packet that is sent so late is the publishers' fault, whatever happens to it.
const LATE: Duration = Duration::from_millis(200);

/// In how many calls spot checks are made.
const CHECKED: usize = 6;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The programs that record.
    pub programs: Programs,
    /// Where packets come from.
    pub source: Source,
    /// Whether calls share a process.
    pub mode: Mode,
    /// How they are recorded.
    pub recording: Recording,
    /// How many talk in a call.
    pub talkers: usize,
    /// How the voices sound and are sent.
    pub sound: Sound,
    /// The processors that recorders may use; everybody else then uses the others. Empty: everybody uses all.
    pub recorder_cores: Vec<usize>,
}

/// A run under way.
pub struct Load {
    plan: Plan,
    script: Arc<Script>,
    stage: Stage,
    calls: usize,
    recorders: Recorders,
    out: tempfile::TempDir,
}

impl Load {
    /// Starts the server.
    ///
    /// # Errors
    /// [`TestkitError`] where server, fixtures or processors are not there.
    pub async fn begin(plan: Plan) -> Result<Self, TestkitError> {
        if !plan.recorder_cores.is_empty() {
            let all = std::thread::available_parallelism().map_or(1, usize::from);
            let others = (0..all).filter(|core| !plan.recorder_cores.contains(core));
            process::pin(0, others).map_err(TestkitError::io("the processors that are left"))?;
        }
        let script = Arc::new(Script::new(plan.talkers, plan.sound)?);
        let stage = Stage::set(plan.source, &script, plan.talkers).await?;
        let mut recorders = Recorders::new(plan.mode, &plan.programs, &plan.recording, plan.recorder_cores.clone());
        let out = tempfile::Builder::new()
            .prefix("callreel-load-")
            .tempdir()
            .map_err(TestkitError::io("a folder for recordings"))?;
        recorders.open(&stage.place(0, out.path().to_owned())).await?;
        Ok(Self { plan, script, stage, calls: 0, recorders, out })
    }

    /// Opens calls and records them until there are so many.
    ///
    /// # Errors
    /// [`TestkitError`] where a publisher cannot join or a recorder cannot start.
    pub async fn grow(&mut self, calls: usize) -> Result<(), TestkitError> {
        self.stage.grow(calls).await?;
        for call in self.calls..calls {
            let place = self.stage.place(call, self.out.path().join(call.to_string()));
            self.recorders.start(place).await?;
        }
        self.calls = self.calls.max(calls);
        tokio::time::sleep(WARM_UP).await;
        Ok(())
    }

    /// The processes that record.
    pub fn recorder_pids(&self) -> Vec<u32> {
        self.recorders.pids()
    }

    /// Lets calls go on for so long and tells what they cost.
    pub async fn measure(&mut self, window: Duration) -> Level {
        self.recorders.take_behind();
        let before = self.look();
        self.stage.take_late(before.at);
        tokio::time::sleep(window).await;
        let after = self.look();
        let behind = self.recorders.take_behind();
        let late = self.stage.take_late(before.at);
        let elapsed = after.at.duration_since(before.at).as_secs_f64();
        let calls = self.calls;
        let part = |before: &Usage, after: &Usage| {
            let cores = after.cpu.saturating_sub(before.cpu).as_secs_f64() / elapsed;
            let sleeps = after.sleeps.saturating_sub(before.sleeps) as f64;
            Part {
                cores,
                percent_per_call: cores * 100.0 / calls.max(1) as f64,
                sleeps_per_call: sleeps / elapsed / calls.max(1) as f64,
                threads: after.threads,
                rss_mib: after.rss as f64 / f64::from(1 << 20),
                pss_mib: after.pss as f64 / f64::from(1 << 20),
            }
        };
        let recorder = part(&before.recorder, &after.recorder);
        let mut level = Level {
            source: self.plan.source,
            mode: self.plan.mode,
            calls,
            talkers: self.plan.talkers,
            seconds: elapsed,
            recorder,
            publishers: part(&before.publishers, &after.publishers),
            server: part(&before.server, &after.server),
            calls_per_core: if recorder.cores > 0.0 { calls as f64 / recorder.cores } else { 0.0 },
            dropped: after.sockets.dropped.saturating_sub(before.sockets.dropped),
            waiting_bytes: after.sockets.waiting,
            behind_ms: behind.as_millis() as u64,
            late_ms: millis(late),
            missed: None,
        };
        level.missed = missed(&level, behind, late);
        level
    }

    /// Ends all recordings and says what became of them.
    ///
    /// # Errors
    /// [`TestkitError`] where the recorder is gone, or a recording cannot be read.
    pub async fn finish(mut self, level: Level) -> Result<Report, TestkitError> {
        let dropped = Sockets::of_all(&self.recorders.pids()).dropped;
        self.recorders.finish().await?;
        let mut packets = Packets { sent: self.stage.sent(), dropped_by_recorder: dropped, ..Packets::default() };
        let mut alignment = Alignment::default();
        let (mut outcomes, mut broken, mut reasons) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        let (mut joins, mut firsts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        let every = (self.recorders.calls.len() / CHECKED).max(1);
        for (call, started) in self.recorders.calls.iter().enumerate() {
            let Some((over, result)) = &started.over else {
                *outcomes.entry("none".to_owned()).or_insert(0) += 1;
                broken.push(format!("call {call} has no result"));
                continue;
            };
            *outcomes.entry(result.outcome.to_string()).or_insert(0) += 1;
            reasons.extend(result.reasons.iter().map(kind));
            ends.extend(started.stopped.map(|stopped| millis(over.saturating_duration_since(stopped))));
            let recorded = match Recorded::check(result) {
                Ok(recorded) => recorded,
                Err(why) => {
                    broken.push(why);
                    continue;
                }
            };
            recorded.count(&mut packets);
            joins.push((recorded.zero() - started.at).as_seconds_f64() * 1_000.0);
            firsts.extend(recorded.first_packet().map(millis));
            if call % every == 0 {
                recorded.find(&self.stage.said(call), &self.script, &mut alignment)?;
            }
        }
        self.stage.clear().await;
        Ok(Report {
            level,
            outcomes,
            broken,
            reasons: reasons.into_iter().collect(),
            packets,
            alignment,
            join_ms: Percentiles::of(joins),
            first_packet_ms: Percentiles::of(firsts),
            completion_ms: Percentiles::of(ends),
        })
    }

    fn look(&self) -> Look {
        let pids = self.recorders.pids();
        Look {
            at: clock::now(),
            recorder: Usage::of_all(&pids),
            publishers: Usage::of_all(&[std::process::id()]),
            server: Usage::of_all(&self.stage.server_pids()),
            sockets: Sockets::of_all(&pids),
        }
    }
}

/// Everything at one moment.
struct Look {
    at: Instant,
    recorder: Usage,
    publishers: Usage,
    server: Usage,
    sockets: Sockets,
}

/// Opens `calls` calls at once, measures for so long, and tells what became of them.
///
/// # Errors
/// As [`Load::begin`], [`Load::grow`] and [`Load::finish`].
pub async fn run(plan: Plan, calls: usize, window: Duration) -> Result<Report, TestkitError> {
    let mut load = Load::begin(plan).await?;
    load.grow(calls).await?;
    let level = load.measure(window).await;
    load.finish(level).await
}

/// Begins with `calls` and adds `step` again and again until something does not keep up or there are `most`. Each level
/// goes to `told`.
///
/// # Errors
/// As [`run`].
pub async fn ramp(
    plan: Plan,
    (calls, step, most): (usize, usize, usize),
    window: Duration,
    mut told: impl FnMut(&Level),
) -> Result<Report, TestkitError> {
    let mut load = Load::begin(plan).await?;
    let mut calls = calls;
    loop {
        load.grow(calls).await?;
        let level = load.measure(window).await;
        told(&level);
        if level.missed.is_some() || calls >= most {
            return load.finish(level).await;
        }
        calls = (calls + step.max(1)).min(most);
    }
}

fn missed(level: &Level, behind: Duration, late: Duration) -> Option<Missed> {
    let share = format!(
        "the recorder had {:.2} processors, the publishers {:.2}, the server {:.2}",
        level.recorder.cores, level.publishers.cores, level.server.cores
    );
    let found = if level.dropped > 0 {
        ("recorder", format!("its sockets could not take {} datagrams", level.dropped))
    } else if behind > BEHIND {
        ("recorder", format!("a recording was not looked after for {behind:?}"))
    } else if level.waiting_bytes > WAITING {
        ("recorder", format!("{} bytes waited in a socket", level.waiting_bytes))
    } else if late > LATE {
        ("publishers", format!("a packet was sent {late:?} late"))
    } else {
        return None;
    };
    Some(Missed { who: found.0.to_owned(), why: format!("{}; {share}", found.1) })
}

/// What kind of reason it is, without names and figures.
fn kind(reason: &crate::recording::Reason) -> String {
    match serde_json::to_value(reason) {
        Ok(value) => value["reason"].as_str().unwrap_or("unknown").to_owned(),
        Err(error) => error.to_string(),
    }
}
