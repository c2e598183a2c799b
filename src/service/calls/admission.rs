//! Whether one more recording may begin: by what the process measures of itself, not by a guess of what a call costs.

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock;
use crate::config::LimitsSection;
use crate::recording::{Recorder, RecordingHandle, State};

use super::Shared;

/// What may be used up before no more recordings begin. Those that run are never touched.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Recordings at once. Default: no limit of its own.
    pub recordings: Option<usize>,
    /// Share of all processors that this process may use, 0 to 1.
    pub processor: f64,
    /// How late recordings may come to their work.
    pub late: Duration,
    /// Resident memory of this process, in bytes; none where nobody knows how much it may have.
    pub memory: Option<u64>,
    /// Bytes that have to be free where the spool is.
    pub spool_free: u64,
}

impl Limits {
    /// Those of a configuration, on this machine.
    pub fn of(config: &LimitsSection) -> Self {
        Self {
            recordings: config.calls.map(|calls| calls as usize),
            processor: f64::from(config.cpu_percent) / 100.0,
            late: config.late.0,
            memory: memory_limit().map(|all| all.saturating_sub(config.memory_left)),
            spool_free: config.spool_left,
        }
    }
}

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Load {
    /// Recordings that run.
    pub recordings: usize,
    /// Share of all processors, over the last seconds, 0 to 1.
    pub processor: f64,
    /// How late recordings came to their work, at most, over the last seconds: what others use of the machine shows there.
    pub late: Duration,
    /// Resident memory in bytes; zero where the platform does not tell.
    pub memory: u64,
    /// Bytes that are free where the spool is; none where the file system does not tell.
    pub spool_free: Option<u64>,
}

/// Why no recording can begin at present.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Refusal {
    /// The process is about to end.
    Draining,
    /// So many run as may.
    Recordings {
        /// How many.
        limit: usize,
    },
    /// The processors are busy.
    Processor {
        /// With how much of them, 0 to 1.
        used: f64,
    },
    /// The processors are busy, with others' work maybe, and recordings come too late to theirs.
    Late {
        /// By so much.
        by: Duration,
    },
    /// Memory is short.
    Memory {
        /// What is resident, in bytes.
        used: u64,
    },
    /// There is too little room for the spool.
    Spool {
        /// What is free, in bytes.
        free: u64,
    },
}

impl Refusal {
    /// A word for it, for metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Recordings { .. } => "recordings",
            Self::Processor { .. } => "processor",
            Self::Late { .. } => "late",
            Self::Memory { .. } => "memory",
            Self::Spool { .. } => "spool",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Draining => f.write_str("this process is about to end"),
            Self::Recordings { limit } => write!(f, "{limit} recordings run, and no more may"),
            Self::Processor { used } => write!(f, "{:.0} % of the processors are in use", used * 100.0),
            Self::Late { by } => write!(f, "recordings get the processor {} ms late", by.as_millis()),
            Self::Memory { used } => write!(f, "{} MiB of memory are in use", used >> 20),
            Self::Spool { free } => write!(f, "{} MiB are free for the spool", free >> 20),
        }
    }
}

impl Load {
    /// Why no recording can begin within `limits`; none where one can.
    pub fn refusal(&self, limits: &Limits) -> Option<Refusal> {
        if let Some(limit) = limits.recordings.filter(|limit| self.recordings >= *limit) {
            return Some(Refusal::Recordings { limit });
        }
        if self.processor > limits.processor {
            return Some(Refusal::Processor { used: self.processor });
        }
        if self.late > limits.late {
            return Some(Refusal::Late { by: self.late });
        }
        if limits.memory.is_some_and(|limit| self.memory > limit) {
            return Some(Refusal::Memory { used: self.memory });
        }
        self.spool_free.filter(|free| *free < limits.spool_free).map(|free| Refusal::Spool { free })
    }
}

/// How far apart two looks at the processor are at least: what is shorter is the scheduler's doing.
const LOOK: Duration = Duration::from_secs(1);

/// How much of the latest look counts.
const WEIGHT: f64 = 0.4;

/// Measures this process.
#[derive(Debug)]
pub struct Gauge {
    processors: f64,
    /// When it looked last, and what processor time had been used by then.
    last: Option<(Instant, Duration)>,
    used: f64,
    lateness: Lateness,
}

impl Default for Gauge {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { processors: processors as f64, last: None, used: 0.0, lateness: Lateness::default() }
    }
}

impl Gauge {
    /// What the process uses at `now`, with so many recordings and its spool in `spool`.
    pub fn look(&mut self, recordings: usize, spool: &Path, now: Instant) -> Load {
        self.count(processor_time(), now);
        let memory = resident().unwrap_or(0);
        Load { recordings, processor: self.used, late: self.lateness.at(now), memory, spool_free: free_space(spool) }
    }

    fn count(&mut self, spent: Option<Duration>, now: Instant) {
        let Some(spent) = spent else { return };
        let Some((at, before)) = self.last else {
            self.last = Some((now, spent));
            return;
        };
        let passed = now.saturating_duration_since(at);
        if passed < LOOK {
            return;
        }
        let used = spent.saturating_sub(before).as_secs_f64() / passed.as_secs_f64() / self.processors;
        // After a long time without a look the old figure says nothing.
        let weight = if passed > LOOK * 10 { 1.0 } else { WEIGHT };
        self.used += (used - self.used) * weight;
        self.last = Some((now, spent));
    }
}

/// How often it is tried how late recordings come to their work.
const TRY: Duration = Duration::from_millis(200);

/// For how long a try counts.
const COUNTS: Duration = Duration::from_secs(3);

/// How late recordings came to their work.
#[derive(Debug, Default)]
struct Lateness {
    /// Tries, by when they were due, and how late each was.
    tries: VecDeque<(Instant, Duration)>,
    /// When the try that is under way is due.
    due: Option<Instant>,
}

impl Lateness {
    /// A try begins, which is due then.
    fn expect(&mut self, due: Instant) {
        self.due = Some(due);
    }

    /// The try that was under way was done at `now`.
    fn done(&mut self, now: Instant) {
        if let Some(due) = self.due.take() {
            self.tries.retain(|(due, _)| now.saturating_duration_since(*due) <= COUNTS);
            self.tries.push_back((due, now.saturating_duration_since(due)));
        }
    }

    /// The most of late; a try that is overdue counts before it is done.
    fn at(&self, now: Instant) -> Duration {
        let counts = self.tries.iter().filter(|(due, _)| now.saturating_duration_since(*due) <= COUNTS);
        let overdue = self.due.map(|due| now.saturating_duration_since(due));
        counts.map(|(_, late)| *late).chain(overdue).max().unwrap_or_default()
    }
}

/// Tries, for ever, how late recordings come to their work.
pub(super) async fn mind(shared: &Shared) {
    let lateness = |act: &mut dyn FnMut(&mut Lateness)| {
        act(&mut shared.gauge.lock().unwrap_or_else(PoisonError::into_inner).lateness);
    };
    loop {
        let due = clock::now() + TRY;
        lateness(&mut |lateness| lateness.expect(due));
        let done = Recorder::at_work(due).await;
        lateness(&mut |lateness| lateness.done(done));
    }
}

/// How many recordings join their rooms at once, for each processor. A join takes more of it than a call does for a minute:
/// what comes at the same moment waits for its turn, and is judged by the load that there is then.
const JOINS: usize = 4;

/// A join that takes longer waits for something else than the processor.
const JOINS_WITHIN: Duration = Duration::from_secs(2);

/// Whoever waits longer for a turn begins without.
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// Who may join.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

/// The turn of a recording that is about to begin.
#[derive(Debug)]
pub(super) struct Turn(
    #[expect(dead_code, reason = "held, and given back where it is dropped")] Option<OwnedSemaphorePermit>,
);

impl Default for Turns {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self(Arc::new(Semaphore::new(processors * JOINS)))
    }
}

impl Turns {
    /// Waits for a turn, but not for ever: no call is missed because those before it hang.
    pub async fn next(&self) -> Turn {
        let turn = tokio::time::timeout(TURN_WITHIN, self.0.clone().acquire_owned()).await;
        // Nobody closes it.
        Turn(turn.ok().and_then(Result::ok))
    }
}

impl Turn {
    /// Holds it until a recording is in its room.
    pub async fn hold(self, mut handle: RecordingHandle) {
        let joined = async {
            while handle.status().state == State::Starting && handle.status().result.is_none() {
                handle.changed().await;
            }
        };
        // Either way the next one may.
        let _ = tokio::time::timeout(JOINS_WITHIN, joined).await;
    }
}

/// Processor time of this process since it began, of all its threads.
fn processor_time() -> Option<Duration> {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Some(Duration::new(spent.tv_sec.try_into().ok()?, spent.tv_nsec.try_into().ok()?))
}

/// Resident memory of this process in bytes (`proc(5)`, `statm`).
fn resident() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// What this process may have at most: its control group's limit, else the machine's memory.
fn memory_limit() -> Option<u64> {
    let of_group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = of_group.iter().find_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    });
    group.into_iter().chain(machine).min()
}

/// What is free for us on the file system of `directory`, or of the nearest directory above that exists.
fn free_space(directory: &Path) -> Option<u64> {
    let stat = directory.ancestors().find_map(|directory| {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        rustix::fs::statvfs(directory).ok()
    })?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        let late = Duration::from_millis(250);
        Limits { recordings: Some(3), processor: 0.5, late, memory: Some(1_000), spool_free: 100 }
    }

    fn idle() -> Load {
        Load { recordings: 0, processor: 0.1, late: Duration::ZERO, memory: 500, spool_free: Some(1_000) }
    }

    #[test]
    fn each_limit_refuses_by_its_name() {
        let limits = limits();
        assert_eq!(idle().refusal(&limits), None);
        let refusal = |load: Load| load.refusal(&limits).unwrap();
        assert_eq!(refusal(Load { recordings: 3, ..idle() }), Refusal::Recordings { limit: 3 });
        assert_eq!(refusal(Load { processor: 0.51, ..idle() }), Refusal::Processor { used: 0.51 });
        let by = Duration::from_millis(251);
        assert_eq!(refusal(Load { late: by, ..idle() }), Refusal::Late { by });
        assert_eq!(refusal(Load { memory: 1_001, ..idle() }), Refusal::Memory { used: 1_001 });
        assert_eq!(refusal(Load { spool_free: Some(99), ..idle() }), Refusal::Spool { free: 99 });
        assert_eq!(Load { spool_free: None, ..idle() }.refusal(&limits), None, "what is not known refuses nobody");
        assert_eq!(Refusal::Memory { used: 3 << 20 }.to_string(), "3 MiB of memory are in use");
    }

    #[test]
    fn a_busy_process_is_seen_within_seconds_and_a_moment_is_not() {
        let mut gauge = Gauge { processors: 2.0, ..Gauge::default() };
        let mut now = crate::clock::now();
        let mut spent = Duration::from_secs(100);
        gauge.count(Some(spent), now);
        assert_eq!(gauge.used, 0.0, "what was spent before says nothing");
        now += Duration::from_millis(100);
        spent += Duration::from_millis(200);
        gauge.count(Some(spent), now);
        assert_eq!(gauge.used, 0.0, "the time is too short");
        for _ in 0..8 {
            now += LOOK;
            spent += LOOK * 2;
            gauge.count(Some(spent), now);
        }
        assert!(gauge.used > 0.95, "{}", gauge.used);
        now += LOOK * 60;
        gauge.count(Some(spent), now);
        assert_eq!(gauge.used, 0.0, "after a minute's rest");
    }

    #[test]
    fn who_comes_late_is_seen_before_it_comes_and_for_seconds_after() {
        let mut lateness = Lateness::default();
        let start = clock::now();
        assert_eq!(lateness.at(start), Duration::ZERO);
        lateness.expect(start + TRY);
        assert_eq!(lateness.at(start), Duration::ZERO, "it is not due");
        assert_eq!(lateness.at(start + TRY * 3), TRY * 2, "it is overdue");
        lateness.done(start + TRY * 4);
        for n in 4..18 {
            lateness.expect(start + TRY * (n + 1));
            lateness.done(start + TRY * (n + 1));
            let expected = if TRY * n <= COUNTS { TRY * 3 } else { Duration::ZERO };
            assert_eq!(lateness.at(start + TRY * (n + 1)), expected, "{n}");
        }
        assert!(lateness.tries.len() <= 17, "{}", lateness.tries.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn so_many_join_at_once_and_one_that_has_joined_makes_room() {
        let turns = Turns(Arc::new(Semaphore::new(1)));
        let first = turns.next().await;
        assert_eq!(turns.0.available_permits(), 0);
        drop(first);
        let _second = turns.next().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), turns.next()).await.is_err(), "there is none left");
    }

    #[test]
    fn this_process_is_measured() {
        let load = Gauge::default().look(2, Path::new("/nowhere/at/all"), crate::clock::now());
        assert_eq!(load.recordings, 2);
        assert!(load.memory > 1 << 20, "{load:?}");
        assert!(load.spool_free.is_some_and(|free| free > 0), "{load:?}");
        assert!(memory_limit().is_some_and(|limit| limit > load.memory));
        assert!(processor_time().is_some_and(|spent| spent > Duration::ZERO));
    }
}
