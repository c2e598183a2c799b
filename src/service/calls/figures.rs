//! What the supervisor's figures are: how recordings stand, and what waits for the store.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock;
use crate::recording::{Manifest, Status};

use super::{Shared, follow};

/// How often they are taken.
const EVERY: Duration = Duration::from_secs(5);

/// How many looks back are kept of each recording; what is older than all of them is as old as the oldest.
const LOOKS: usize = 120;

/// Which words a recording of this process can have.
const STATES: [&str; 4] = ["starting", "active", "paused", "stopping"];

/// How many bytes there were, and when: to know how old it is what a store does not have.
#[derive(Debug, Default)]
pub(super) struct Growth {
    looks: VecDeque<(Instant, u64)>,
}

impl Growth {
    /// Of so many bytes the store has `uploaded` at `now`. Gives the age of the oldest that it does not have.
    pub fn look(&mut self, bytes: u64, uploaded: u64, now: Instant) -> Duration {
        while self.looks.front().is_some_and(|(_, had)| *had <= uploaded) {
            self.looks.pop_front();
        }
        if bytes > uploaded && self.looks.back().is_none_or(|(_, had)| *had < bytes) {
            if self.looks.len() == LOOKS {
                // The newest goes: the oldest says how late the store is.
                self.looks.pop_back();
            }
            self.looks.push_back((now, bytes));
        }
        self.looks.front().map(|(at, _)| now.saturating_duration_since(*at)).unwrap_or_default()
    }
}

/// Takes figures, now and then.
pub(super) async fn take(shared: &Arc<Shared>) {
    loop {
        let now = clock::now();
        let mut counts: BTreeMap<&str, usize> = STATES.into_iter().map(|state| (state, 0)).collect();
        let mut oldest = Duration::ZERO;
        for live in shared.live().values_mut() {
            let Status { state, bytes, uploaded_bytes, .. } = live.handle.status();
            *counts.entry(follow::word(state).as_str()).or_default() += 1;
            if shared.config.base.store.is_some() {
                oldest = oldest.max(live.growth.look(bytes, uploaded_bytes, now));
            }
        }
        let metrics = &shared.metrics;
        counts.into_iter().for_each(|(state, count)| metrics.recordings(state, count));
        metrics.upload_lag_seconds.set(oldest.as_secs_f64());
        metrics.draining.set(i64::from(shared.is_draining()));
        let spool = shared.spool();
        if let Ok(bytes) = tokio::task::spawn_blocking(move || size_of(&spool)).await {
            metrics.spool_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The bytes of all files below a directory; what goes meanwhile is nothing.
fn size_of(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => size_of(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

impl Shared {
    /// Counts what a manifest tells of a recording that is over.
    pub(super) fn count_manifest(&self, manifest: &Manifest) {
        for track in &manifest.tracks {
            for row in &track.ledger.rows {
                let word = serde_json::to_value(row.reason).unwrap_or_default();
                let seconds = row.end.as_secs_f64() - row.start.as_secs_f64();
                self.metrics.settled(word.as_str().unwrap_or("other"), seconds);
            }
        }
        let took = clock::wall() - manifest.ended_at;
        self.metrics.ready_seconds.observe(took.as_seconds_f64().max(0.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bytes_that_a_store_lacks_have_an_age() {
        let (mut growth, start) = (Growth::default(), clock::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(growth.look(0, 0, at(0)), Duration::ZERO);
        assert_eq!(growth.look(100, 0, at(5)), Duration::ZERO, "just written");
        assert_eq!(growth.look(200, 0, at(10)), Duration::from_secs(5));
        assert_eq!(growth.look(300, 100, at(15)), Duration::from_secs(5), "the first hundred are there");
        assert_eq!(growth.look(300, 300, at(20)), Duration::ZERO);
        for look in 0..1_000 {
            growth.look(1_000 + look, 300, at(25 + look));
        }
        assert_eq!(growth.looks.len(), LOOKS);
        assert_eq!(growth.look(2_000, 300, at(1_025)), Duration::from_secs(1_000));
    }

    #[test]
    fn a_directory_has_the_size_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/b"), [0; 10]).unwrap();
        std::fs::write(dir.path().join("c"), [0; 5]).unwrap();
        assert_eq!((size_of(dir.path()), size_of(Path::new("/nowhere"))), (15, 0));
    }
}
