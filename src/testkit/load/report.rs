//! What a run found.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Mode, Source};

/// What one part of the machinery used up while it was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Processors, on average.
    pub cores: f64,
    /// Percent of a processor for each call.
    pub percent_per_call: f64,
    /// How often a thread slept and was woken, a second and call.
    pub sleeps_per_call: f64,
    /// Threads.
    pub threads: usize,
    /// MiB in memory.
    pub rss_mib: f64,
    /// MiB in memory, with what is shared between processes divided among them.
    pub pss_mib: f64,
}

/// What was seen while so many calls went on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Level {
    /// Where packets came from.
    pub source: Source,
    /// How recordings shared processes.
    pub mode: Mode,
    /// Calls.
    pub calls: usize,
    /// Talkers a call.
    pub talkers: usize,
    /// How long was measured, in seconds.
    pub seconds: f64,
    /// Those who record.
    pub recorder: Part,
    /// Those who talk.
    pub publishers: Part,
    /// The server.
    pub server: Part,
    /// Calls that one processor would record at this rate.
    pub calls_per_core: f64,
    /// Datagrams that the recorder's sockets could not take.
    pub dropped: u64,
    /// The most bytes that waited in a socket of the recorder's, as the kernel counts.
    pub waiting_bytes: u64,
    /// The longest that a recording did not look after its call, in milliseconds; only where calls share a process.
    pub behind_ms: u64,
    /// How late the latest packet was sent, in milliseconds.
    pub late_ms: f64,
    /// What did not keep up, if anything.
    pub missed: Option<Missed>,
}

/// What did not keep up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missed {
    /// `recorder`, `publishers` or `server`.
    pub who: String,
    /// What was seen.
    pub why: String,
}

/// Values in the order of their size, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// 95 of a hundred are below.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of any values.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (values.len() as f64 * share).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
        };
        Self { p50: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// What became of packets, summed over all calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// Sent by those who talk, also before anybody recorded.
    pub sent: u64,
    /// Taken in by recordings.
    pub received: u64,
    /// Of those, sent anew after they had been lost.
    pub retransmitted: u64,
    /// Packets' worth of sound that never arrived, as the ledgers say.
    pub missing: u64,
    /// Of those, datagrams that reached the recorder's sockets and did not fit.
    pub dropped_by_recorder: u64,
    /// Packets' worth of sound while the recorder was not there, as the ledgers say.
    pub recorder_down: u64,
}

/// Where known sounds lay in recordings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Alignment {
    /// How many were looked for.
    pub looked_for: usize,
    /// How many were not found where they had to be.
    pub missing: usize,
    /// How many were not looked for, because a ledger says that something is lost there.
    pub admitted: usize,
    /// How far from its place the worst lay, in milliseconds.
    pub worst_ms: f64,
}

/// What became of a whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was measured last.
    pub level: Level,
    /// Recordings by outcome; `none` without a result.
    pub outcomes: BTreeMap<String, usize>,
    /// Recordings that are not sound: broken files, ledgers that do not add up.
    pub broken: Vec<String>,
    /// What recordings lack, each reason once.
    pub reasons: Vec<String>,
    /// Packets.
    pub packets: Packets,
    /// Spot checks.
    pub alignment: Alignment,
    /// From the start of a recorder to the server's JoinResponse, in milliseconds.
    pub join_ms: Percentiles,
    /// From the JoinResponse to the first packet, in milliseconds.
    pub first_packet_ms: Percentiles,
    /// From the word to stop to the result, in milliseconds.
    pub completion_ms: Percentiles,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Pooled => "pooled",
            Mode::Process => "process",
            Mode::Service => "service",
        };
        let source = match self.source {
            Source::Server => "server",
            Source::Replay => "replay",
        };
        writeln!(f, "{} calls of {}, {source}, {mode}, {:.0} s measured", self.calls, self.talkers, self.seconds)?;
        writeln!(f, "              cores   % a call   sleeps/s a call   threads   RSS MiB   PSS MiB")?;
        for (name, part) in [("recorder", &self.recorder), ("publishers", &self.publishers), ("server", &self.server)] {
            writeln!(
                f,
                "  {name:10} {:7.3} {:10.3} {:17.1} {:9} {:9.1} {:9.1}",
                part.cores, part.percent_per_call, part.sleeps_per_call, part.threads, part.rss_mib, part.pss_mib
            )?;
        }
        write!(
            f,
            "  {:.0} calls a core; dropped {}, at most {} KiB waiting, recorder behind {} ms, packets sent {:.0} ms late",
            self.calls_per_core,
            self.dropped,
            self.waiting_bytes / 1024,
            self.behind_ms,
            self.late_ms
        )?;
        match &self.missed {
            Some(Missed { who, why }) => write!(f, "\n  {who} did not keep up: {why}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.level)?;
        let outcomes: Vec<String> = self.outcomes.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
        writeln!(f, "  recordings: {}; {} broken", outcomes.join(", "), self.broken.len())?;
        for line in self.broken.iter().chain(&self.reasons) {
            writeln!(f, "    {line}")?;
        }
        let Packets { sent, received, retransmitted, missing, dropped_by_recorder, recorder_down } = self.packets;
        writeln!(
            f,
            "  packets: {sent} sent, {received} received ({retransmitted} anew), {missing} missing of which \
             {dropped_by_recorder} dropped at the recorder, {recorder_down} while it was not there"
        )?;
        let Alignment { looked_for, missing, admitted, worst_ms } = self.alignment;
        writeln!(
            f,
            "  alignment: {looked_for} words looked for, {missing} not there, worst {worst_ms:.1} ms off; {admitted} more are \
             lost by the ledgers' own account"
        )?;
        let row = |name, p: &Percentiles| format!("{name} {:.0} / {:.0} / {:.0}", p.p50, p.p95, p.max);
        write!(
            f,
            "  ms (p50 / p95 / max): {}, {}, {}",
            row("start to join", &self.join_ms),
            row("join to first packet", &self.first_packet_ms),
            row("stop to result", &self.completion_ms)
        )
    }
}

/// Milliseconds with their fraction.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let of = Percentiles::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(of, Percentiles { p50: 50.0, p95: 95.0, max: 100.0 });
        assert_eq!(Percentiles::of(vec![7.0]), Percentiles { p50: 7.0, p95: 7.0, max: 7.0 });
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
