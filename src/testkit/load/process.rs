//! What the kernel says about a process: processor time, memory, wake-ups, datagrams that wait or were thrown away.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The length of a tick in `/proc/PID/stat`: the same on every Linux machine, whatever its timer's pace.
const TICK: Duration = Duration::from_millis(10);

/// What a process has used up, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time of all threads, living and ended, to a hundredth of a second.
    pub cpu: Duration,
    /// How often its threads went to sleep and were woken, of those that live.
    pub sleeps: u64,
    /// How many threads live.
    pub threads: usize,
    /// Bytes in memory, shared ones included.
    pub rss: u64,
    /// Bytes in memory, shared ones divided among those who share them.
    pub pss: u64,
}

impl Usage {
    /// Of a process that lives.
    ///
    /// # Errors
    /// What the kernel answers where there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(folder.join("stat"))?;
        // The name in parentheses may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0u32);
        let mut usage = Self { cpu: TICK * (ticks(11) + ticks(12)), ..Self::default() };
        for task in fs::read_dir(folder.join("task"))?.flatten() {
            // A thread may end meanwhile.
            let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
            usage.threads += 1;
            usage.sleeps += value(&status, "voluntary_ctxt_switches:").unwrap_or(0);
        }
        usage.rss = kibibytes(&fs::read_to_string(folder.join("status"))?, "VmRSS:");
        usage.pss = fs::read_to_string(folder.join("smaps_rollup")).map_or(0, |rollup| kibibytes(&rollup, "Pss:"));
        Ok(usage)
    }

    /// The sum of several, those that are gone left out.
    pub fn of_all(pids: &[u32]) -> Self {
        pids.iter().filter_map(|pid| Self::of(*pid).ok()).fold(Self::default(), |sum, one| Self {
            cpu: sum.cpu + one.cpu,
            sleeps: sum.sleeps + one.sleeps,
            threads: sum.threads + one.threads,
            rss: sum.rss + one.rss,
            pss: sum.pss + one.pss,
        })
    }
}

/// The UDP sockets of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// Datagrams that the kernel threw away because nobody fetched those before.
    pub dropped: u64,
    /// The most bytes that wait in one of them, as the kernel counts: with its own overhead.
    pub waiting: u64,
}

impl Sockets {
    /// Of processes; those that are gone left out.
    pub fn of_all(pids: &[u32]) -> Self {
        let mut found = Self::default();
        for pid in pids {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            let inodes = inodes(&folder.join("fd"));
            for table in ["net/udp", "net/udp6"] {
                let table = fs::read_to_string(folder.join(table)).unwrap_or_default();
                for socket in table.lines().skip(1).filter_map(Socket::read) {
                    if inodes.contains(&socket.inode) {
                        found.dropped += socket.dropped;
                        found.waiting = found.waiting.max(socket.waiting);
                    }
                }
            }
        }
        found
    }
}

struct Socket {
    inode: u64,
    dropped: u64,
    waiting: u64,
}

impl Socket {
    /// A line of `/proc/net/udp`.
    fn read(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (_, waiting) = fields.get(4)?.split_once(':')?;
        Some(Self {
            inode: fields.get(9)?.parse().ok()?,
            dropped: fields.get(12)?.parse().ok()?,
            waiting: u64::from_str_radix(waiting, 16).ok()?,
        })
    }
}

fn inodes(folder: &Path) -> HashSet<u64> {
    let Ok(entries) = fs::read_dir(folder) else { return HashSet::new() };
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    entries.flatten().filter_map(inode).collect()
}

fn value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

fn kibibytes(text: &str, key: &str) -> u64 {
    value(text, key).unwrap_or(0) * 1024
}

/// Asks a process that we started to finish.
pub(super) fn ask_to_end(pid: u32) -> io::Result<()> {
    signal(pid, Signal::SIGTERM)
}

/// Takes the processor away from a process that we started, or gives it back.
///
/// # Errors
/// What the kernel answers where there is no such process.
pub fn freeze(pid: u32, frozen: bool) -> io::Result<()> {
    signal(pid, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT })
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    // Every process id of Linux fits.
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

/// Lets a process, and what it starts from now on, run on these processors only. 0 is this process.
///
/// # Errors
/// What the kernel answers where there is no such process or no such processor.
pub(super) fn pin(pid: u32, processors: impl IntoIterator<Item = usize>) -> io::Result<()> {
    let mut set = CpuSet::new();
    for processor in processors {
        set.set(processor)?;
    }
    Ok(sched_setaffinity(Pid::from_raw(pid.cast_signed()), &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_of_this_process_show() {
        let before = Usage::of(std::process::id()).unwrap();
        let block = vec![1u8; 32 << 20];
        let until = crate::clock::now() + Duration::from_millis(120);
        let mut sum = 0u64;
        while crate::clock::now() < until {
            sum += block.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
        let after = Usage::of(std::process::id()).unwrap();
        assert!(sum > 0 && after.cpu > before.cpu, "{before:?} {after:?}");
        // Other tests give memory back meanwhile: only what is held here is sure to be there.
        assert!(after.rss >= block.len() as u64 && after.threads >= 1, "{before:?} {after:?}");
        assert!(Usage::of(u32::MAX >> 1).is_err());
    }

    #[test]
    fn datagrams_that_wait_and_that_did_not_fit_are_told_apart() {
        let ours = [std::process::id()];
        let before = Sockets::of_all(&ours);
        let receiver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..5_000 {
            sender.send_to(&[0; 400], receiver.local_addr().unwrap()).unwrap();
        }
        let after = Sockets::of_all(&ours);
        assert!(after.waiting > 100 * 400 && after.dropped > before.dropped, "{before:?} {after:?}");
    }
}
