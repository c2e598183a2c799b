//! Whether one more recording may begin: by what the process measures of itself, not by a guess of what a call costs.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::LimitsSection;

/// What may be used up before no more recordings begin. Those that run are never touched.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Limits {
    /// Recordings at once. Default: no limit of its own.
    pub recordings: Option<usize>,
    /// Share of all processors that this process may use, 0 to 1.
    pub processor: f64,
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
}

impl Default for Gauge {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { processors: processors as f64, last: None, used: 0.0 }
    }
}

impl Gauge {
    /// What the process uses at `now`, with so many recordings and its spool in `spool`.
    pub fn look(&mut self, recordings: usize, spool: &Path, now: Instant) -> Load {
        self.count(processor_time(), now);
        Load { recordings, processor: self.used, memory: resident().unwrap_or(0), spool_free: free_space(spool) }
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
        Limits { recordings: Some(3), processor: 0.5, memory: Some(1_000), spool_free: 100 }
    }

    fn idle() -> Load {
        Load { recordings: 0, processor: 0.1, memory: 500, spool_free: Some(1_000) }
    }

    #[test]
    fn each_limit_refuses_by_its_name() {
        let limits = limits();
        assert_eq!(idle().refusal(&limits), None);
        let refusal = |load: Load| load.refusal(&limits).unwrap();
        assert_eq!(refusal(Load { recordings: 3, ..idle() }), Refusal::Recordings { limit: 3 });
        assert_eq!(refusal(Load { processor: 0.51, ..idle() }), Refusal::Processor { used: 0.51 });
        assert_eq!(refusal(Load { memory: 1_001, ..idle() }), Refusal::Memory { used: 1_001 });
        assert_eq!(refusal(Load { spool_free: Some(99), ..idle() }), Refusal::Spool { free: 99 });
        assert_eq!(Load { spool_free: None, ..idle() }.refusal(&limits), None, "what is not known refuses nobody");
        assert_eq!(Refusal::Memory { used: 3 << 20 }.to_string(), "3 MiB of memory are in use");
    }

    #[test]
    fn a_busy_process_is_seen_within_seconds_and_a_moment_is_not() {
        let mut gauge = Gauge { processors: 2.0, last: None, used: 0.0 };
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
    fn this_process_is_measured() {
        let load = Gauge::default().look(2, Path::new("/nowhere/at/all"), crate::clock::now());
        assert_eq!(load.recordings, 2);
        assert!(load.memory > 1 << 20, "{load:?}");
        assert!(load.spool_free.is_some_and(|free| free > 0), "{load:?}");
        assert!(memory_limit().is_some_and(|limit| limit > load.memory));
        assert!(processor_time().is_some_and(|spent| spent > Duration::ZERO));
    }
}
