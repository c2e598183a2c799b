//! How much may be kept in memory while disks are slow or fail: one bound for all recordings of a process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What all recordings of a process may keep in memory together, unless told otherwise: at 32 kbit/s four hours and a half
/// of one call, or 33 s of 500.
const LIMIT: usize = 64 * 1024 * 1024;

/// A bound on bytes in memory.
#[derive(Debug)]
pub struct Memory {
    limit: usize,
    used: AtomicUsize,
}

impl Memory {
    /// A bound of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, used: AtomicUsize::new(0) })
    }

    /// The one of this process: 64 MiB.
    pub fn of_process() -> Arc<Self> {
        static MEMORY: OnceLock<Arc<Memory>> = OnceLock::new();
        MEMORY.get_or_init(|| Self::new(LIMIT)).clone()
    }

    /// The bound, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes room for `bytes`, if there is any.
    pub(super) fn take(&self, bytes: usize) -> bool {
        self.take_within(bytes, self.limit)
    }

    /// The same for what can be made again, which leaves half of the room to what cannot.
    pub(super) fn take_of_half(&self, bytes: usize) -> bool {
        self.take_within(bytes, self.limit / 2)
    }

    fn take_within(&self, bytes: usize, limit: usize) -> bool {
        let more = |used: usize| used.checked_add(bytes).filter(|used| *used <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Takes room for a few `bytes` that must not be refused.
    pub(super) fn take_anyway(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is() {
        let memory = Memory::new(10);
        assert!(memory.take(6) && !memory.take(5) && memory.take(4));
        memory.give_back(5);
        assert!(!memory.take(6) && memory.take(5));
        assert_eq!(memory.used(), 10);
        memory.give_back(8);
        assert!(memory.take_of_half(3) && !memory.take_of_half(1) && memory.take(5));
    }
}
