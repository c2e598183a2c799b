//! One writer for each volume of the machine: all recordings of the process that write to it share the thread, and what they
//! wrote within a second is synced together.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::clock;

use super::growing::Growing;

/// How long written bytes may stay unsynced, and how often a disk that fails is tried again.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The writer of one volume. Its thread ends when nobody holds it any more and everything is written.
#[derive(Debug)]
pub(super) struct Volume {
    commands: Sender<Command>,
}

enum Command {
    /// A file has bytes to write.
    Wake(Arc<Growing>),
    /// Something to do between writes.
    Run(Box<dyn FnOnce() + Send>),
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
        let (commands, inbox) = channel();
        std::thread::Builder::new().name("callreel-spool".into()).spawn(move || run(&inbox))?;
        let volume = Arc::new(Self { commands });
        volumes.insert(device, Arc::downgrade(&volume));
        Ok(volume)
    }

    /// Tells that `file` has bytes to write.
    pub fn wake(&self, file: Arc<Growing>) {
        // A thread that is gone has panicked; whoever waits for it sees that nothing comes back.
        let _ = self.commands.send(Command::Wake(file));
    }

    /// Runs `job` on the writer's thread, after what was asked for before.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // As above.
        let _ = self.commands.send(Command::Run(Box::new(job)));
    }
}

fn run(inbox: &Receiver<Command>) {
    let mut dirty: Vec<Arc<Growing>> = Vec::new();
    let mut due: Option<Instant> = None;
    loop {
        let command = match due {
            Some(due) => inbox.recv_timeout(due.saturating_duration_since(clock::now())),
            None => inbox.recv().map_err(RecvTimeoutError::from),
        };
        match command {
            Ok(Command::Wake(file)) => {
                if file.write() {
                    dirty.push(file);
                    due.get_or_insert_with(|| clock::now() + SYNC_EVERY);
                }
            }
            Ok(Command::Run(job)) => job(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if due.is_some_and(|due| due <= clock::now()) {
            dirty.retain(|file| file.sync());
            due = (!dirty.is_empty()).then(|| clock::now() + SYNC_EVERY);
        }
    }
    for file in dirty {
        file.sync();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_has_one_writer_for_all() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = Volume::of(one.path()).unwrap();
        let second = Volume::of(two.path()).unwrap();
        assert!(Arc::ptr_eq(&first, &second), "both directories are on one volume");
    }
}
