//! One writer for each volume of the machine: all recordings of the process that write to it share its threads, and what they
//! wrote within a second is synced together.
//!
//! One thread writes and never waits for the disk: what it wrote outlasts the process. A few others do what does wait:
//! sync, make, finish. A file system commits what is synced at once together.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::clock;

use super::growing::{Growing, Written};

/// How long written bytes may stay unsynced, and how often a disk that fails is tried again.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// How soon the writer comes back to a file that is busy, and looks whether what is being synced is done.
const SOON: Duration = Duration::from_millis(20);

/// Threads of a volume that wait for it.
const WAITING: usize = 8;

/// Files that one thread syncs before it looks for other work.
const AT_ONCE: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

/// The writer of one volume. Its threads end when nobody holds it any more and everything is written.
#[derive(Debug)]
pub(super) struct Volume {
    woken: Sender<Arc<Growing>>,
    jobs: Sender<Job>,
}

impl Volume {
    /// The writer of the volume on which `path` is, which must exist.
    pub fn of(path: &Path) -> io::Result<Arc<Self>> {
        static VOLUMES: Mutex<BTreeMap<u64, Weak<Volume>>> = Mutex::new(BTreeMap::new());
        let device = fs::metadata(path)?.dev();
        // Nothing panics while it is held.
        let mut volumes = VOLUMES.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.retain(|_, volume| volume.strong_count() > 0);
        if let Some(volume) = volumes.get(&device).and_then(Weak::upgrade) {
            return Ok(volume);
        }
        let (jobs, waiting) = channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..WAITING {
            let waiting = waiting.clone();
            std::thread::Builder::new().name("callreel-sync".into()).spawn(move || work(&waiting))?;
        }
        let (woken, inbox) = channel();
        let writer = Writer { jobs: jobs.clone(), dirty: Vec::new(), busy: Vec::new(), pass: None };
        std::thread::Builder::new().name("callreel-spool".into()).spawn(move || writer.run(&inbox))?;
        let volume = Arc::new(Self { woken, jobs });
        volumes.insert(device, Arc::downgrade(&volume));
        Ok(volume)
    }

    /// Tells that `file` has bytes to write.
    pub fn wake(&self, file: Arc<Growing>) {
        // A thread that is gone has panicked; whoever waits for it sees that nothing comes back.
        let _ = self.woken.send(file);
    }

    /// Runs `job`, which may wait for the disk.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // As above.
        let _ = self.jobs.send(Box::new(job));
    }
}

/// Jobs that take turns: each waits for those asked for before it, as files of one recording take their names in order.
pub(super) struct Turns {
    volume: Arc<Volume>,
    /// The first is being done, and none where it has begun.
    jobs: Mutex<VecDeque<Option<Job>>>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").finish_non_exhaustive()
    }
}

impl Turns {
    /// Turns on the threads of `volume`.
    pub fn on(volume: Arc<Volume>) -> Arc<Self> {
        Arc::new(Self { volume, jobs: Mutex::default() })
    }

    /// Runs `job`, which may wait for the disk, after all that were asked for before.
    pub fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut jobs = self.jobs();
        jobs.push_back(Some(Box::new(job)));
        if jobs.len() == 1 {
            self.next();
        }
    }

    fn next(self: &Arc<Self>) {
        let turns = self.clone();
        self.volume.run(move || {
            let job = turns.jobs().front_mut().and_then(Option::take);
            if let Some(job) = job {
                job();
            }
            let mut jobs = turns.jobs();
            jobs.pop_front();
            if !jobs.is_empty() {
                turns.next();
            }
        });
    }

    fn jobs(&self) -> MutexGuard<'_, VecDeque<Option<Job>>> {
        // Nothing panics while it is held.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(jobs: &Mutex<Receiver<Job>>) {
    loop {
        // Whoever waits holds it, which keeps nobody from working.
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

struct Writer {
    jobs: Sender<Job>,
    /// To be synced.
    dirty: Vec<Arc<Growing>>,
    /// To be written as soon as whoever works on them is done.
    busy: Vec<Arc<Growing>>,
    /// What is being synced.
    pass: Option<Arc<Pass>>,
}

/// Files that are being synced.
#[derive(Debug, Default)]
struct Pass {
    /// Jobs that are not done.
    open: AtomicUsize,
    /// Files that the disk refused.
    again: Mutex<Vec<Arc<Growing>>>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Arc<Growing>>) {
        let mut due = clock::now() + SYNC_EVERY;
        let mut busy_due = clock::now();
        loop {
            let now = clock::now();
            let is_idle = self.dirty.is_empty() && self.busy.is_empty() && self.pass.is_none();
            let woken = match is_idle {
                true => inbox.recv().map_err(RecvTimeoutError::from),
                false => {
                    let soon = if self.busy.is_empty() && due > now { due - now } else { SOON };
                    inbox.recv_timeout(soon)
                }
            };
            match woken {
                Ok(file) => {
                    if is_idle {
                        due = clock::now() + SYNC_EVERY;
                    }
                    self.write(file);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = clock::now();
            if !self.busy.is_empty() && busy_due <= now {
                std::mem::take(&mut self.busy).into_iter().for_each(|file| self.write(file));
                busy_due = now + SOON;
            }
            if due <= now && self.is_pass_over() {
                self.begin_pass();
                due = now + SYNC_EVERY;
            }
        }
    }

    fn write(&mut self, file: Arc<Growing>) {
        match file.write() {
            Written::Unsynced => self.dirty.push(file),
            Written::Busy => self.busy.push(file),
            Written::Nothing => {}
        }
    }

    fn begin_pass(&mut self) {
        if self.dirty.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let pass = Arc::new(Pass::default());
        pass.open.store(dirty.len().div_ceil(AT_ONCE), Ordering::Release);
        for files in dirty.chunks(AT_ONCE) {
            let (pass, files) = (pass.clone(), files.to_vec());
            // The threads live as long as this one.
            let _ = self.jobs.send(Box::new(move || {
                let refused = files.into_iter().filter(|file| file.sync());
                // Nothing panics while it is held.
                pass.again.lock().unwrap_or_else(PoisonError::into_inner).extend(refused.collect::<Vec<_>>());
                pass.open.fetch_sub(1, Ordering::AcqRel);
            }));
        }
        self.pass = Some(pass);
    }

    fn is_pass_over(&mut self) -> bool {
        let Some(pass) = self.pass.take_if(|pass| pass.open.load(Ordering::Acquire) == 0) else {
            return self.pass.is_none();
        };
        self.dirty.append(&mut pass.again.lock().unwrap_or_else(PoisonError::into_inner));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_taken_in_order_and_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let turns = Turns::on(Volume::of(dir.path()).unwrap());
        let (done, all) = channel();
        let busy = Arc::new(Mutex::new(()));
        for n in 0..500 {
            let (done, busy) = (done.clone(), busy.clone());
            turns.run(move || {
                let _alone = busy.try_lock().expect("one at a time");
                std::thread::yield_now();
                done.send(n).unwrap();
            });
        }
        drop(done);
        assert_eq!(all.iter().collect::<Vec<_>>(), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn a_volume_has_one_writer_for_all() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Volume::of(one.path()).unwrap();
        let second = Volume::of(two.path()).unwrap();
        assert!(Arc::ptr_eq(&first, &second), "both directories are on one volume");
    }
}
