//! Starting a recording, and what its owner holds while it runs.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::sync::{broadcast, mpsc, watch};
use tracing::Instrument;

use crate::clock;
use crate::config::{Config, OutputKind};
use crate::time::MediaTime;
use crate::traces;

use super::happening::{Happening, What};
use super::life::PauseOrder;
use super::manifest::OutputEntry;
use super::outcome::{Outcome, Reason, StopReason};
use super::session;

/// Starts recordings.
#[derive(Debug)]
pub struct Recorder;

impl Recorder {
    /// Starts a recording and returns at once; whatever goes wrong is told by the handle.
    ///
    /// The recording runs on callreel's own threads, never on the caller's runtime, so a busy agent does not starve it
    /// and it does not slow the agent down. Works inside and outside of an async runtime.
    pub fn start(config: Config) -> RecordingHandle {
        let (orders, inbox) = mpsc::unbounded_channel();
        let (status, watched) = watch::channel(Status::starting());
        let (happenings, _) = broadcast::channel(HAPPENINGS);
        let recording_id = config.recording_id.clone();
        let handle = RecordingHandle {
            recording_id: recording_id.as_str().into(),
            orders,
            status: watched,
            happenings: happenings.clone(),
        };
        let owner = Owner { orders: inbox, status: status.clone(), happenings: happenings.clone() };
        let span = tracing::info_span!("recording", id = %config.recording_id, room = %config.room);
        let trace = traces::recording(&config.recording_id, &config.room);
        match runtime() {
            Ok(runtime) => {
                let recording = runtime.spawn(session::run(config, owner, trace).instrument(span));
                // A panic in one recording must end that one visibly and no other.
                runtime.spawn(async move {
                    if let Err(error) = recording.await {
                        session::failed(&status, &recording_id, Reason::Internal { message: panic_message(error) });
                        let what = What::Finished { outcome: Outcome::Failed };
                        // Nobody has to listen.
                        let _ = happenings.send(Happening { recording_id, sample: MediaTime::ZERO, what });
                    }
                });
            }
            Err(error) => {
                let reason = Reason::Internal { message: format!("no runtime: {error}") };
                session::failed(&status, &recording_id, reason);
            }
        }
        handle
    }

    /// Waits until `due` on the threads that recordings have, and gives when it was done there: later, where they are busy or
    /// get no processor time.
    pub async fn at_work(due: Instant) -> Instant {
        let Ok(runtime) = runtime() else { return due };
        let work = runtime.spawn(async move {
            tokio::time::sleep_until(due.into()).await;
            clock::now()
        });
        work.await.unwrap_or(due)
    }

    /// Sets how many threads all recordings of this process share. Default: one for each processor; one does for a
    /// single call, and hands nothing to and fro. Does nothing once a recording was started, or when called again.
    pub fn threads(count: NonZeroUsize) {
        // Whoever came first decides.
        let _ = THREADS.set(count);
    }
}

/// So many happenings wait for an owner who does not look; the oldest are forgotten.
const HAPPENINGS: usize = 256;

/// What a recording's owner wants of it.
#[derive(Debug)]
pub(super) enum Order {
    /// Finish, and leave to recovery what a store has not taken within that time.
    Stop(StopReason, Option<Duration>),
    /// Keep nothing for now.
    Pause(PauseOrder),
    /// Go on; by whose word.
    Resume(String),
}

/// The recording's end of what its owner holds.
pub(super) struct Owner {
    /// What is wanted, and since when.
    pub orders: mpsc::UnboundedReceiver<(Order, Instant)>,
    /// How it stands.
    pub status: watch::Sender<Status>,
    /// What happens.
    pub happenings: broadcast::Sender<Happening>,
}

/// How many threads the recordings of this process share; set before the first starts.
static THREADS: OnceLock<NonZeroUsize> = OnceLock::new();

/// A recording that was started. Dropping the handle leaves the recording running to its natural end.
#[derive(Clone, Debug)]
pub struct RecordingHandle {
    recording_id: Arc<str>,
    orders: mpsc::UnboundedSender<(Order, Instant)>,
    status: watch::Receiver<Status>,
    happenings: broadcast::Sender<Happening>,
}

impl RecordingHandle {
    /// The recording's id.
    pub fn recording_id(&self) -> &str {
        &self.recording_id
    }

    /// How it stands now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Asks it to finish; [`wait`](Self::wait) tells when it has. Asking twice, or after the end, does nothing.
    pub fn stop(&self) {
        self.stop_because(StopReason::Requested);
    }

    /// As [`stop`](Self::stop), with a reason for the manifest.
    pub fn stop_because(&self, reason: StopReason) {
        self.order(Order::Stop(reason, None));
    }

    /// As [`stop_because`](Self::stop_because), with a bound on the wait for a store: what is not there after `within` stays
    /// in the spool for recovery.
    pub fn stop_within(&self, reason: StopReason, within: Duration) {
        self.order(Order::Stop(reason, Some(within)));
    }

    /// Pauses: what is spoken from now on is kept nowhere, until [`resume`](Self::resume). The status is
    /// [`State::Paused`] once a restarted recorder would know of it, too.
    pub fn pause(&self, order: PauseOrder) {
        self.order(Order::Pause(order));
    }

    /// Goes on after a pause; `by` is for the manifest.
    pub fn resume(&self, by: &str) {
        self.order(Order::Resume(by.to_owned()));
    }

    /// What happens from now on; the last is [`What::Finished`](super::What::Finished). Who does not look for long misses the
    /// oldest.
    pub fn happenings(&self) -> broadcast::Receiver<Happening> {
        self.happenings.subscribe()
    }

    fn order(&self, order: Order) {
        // A recording that has ended no longer listens, and needs not.
        let _ = self.orders.send((order, clock::now()));
    }

    /// Waits until it is over and gives what became of it.
    pub async fn wait(&self) -> RecordingResult {
        let mut status = self.status.clone();
        loop {
            if let Some(result) = status.borrow_and_update().result.clone() {
                return result;
            }
            if status.changed().await.is_err() {
                return self.status().result.unwrap_or_else(|| self.vanished());
            }
        }
    }

    /// As [`wait`](Self::wait), for callers without an async runtime. Must not be called inside one.
    pub fn wait_blocking(&self) -> RecordingResult {
        match tokio::runtime::Builder::new_current_thread().build() {
            Ok(runtime) => runtime.block_on(self.wait()),
            Err(_) => self.vanished(),
        }
    }

    /// Waits until the status says something new; of figures that never rest, once a second.
    pub async fn changed(&mut self) -> Status {
        // Closed means that the last status stands.
        let _ = self.status.changed().await;
        self.status.borrow_and_update().clone()
    }

    fn vanished(&self) -> RecordingResult {
        let message = "the recording ended without a result".to_owned();
        RecordingResult::failed(&self.recording_id, Reason::Internal { message })
    }
}

/// Where a recording is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Joining the room, or waiting for consent.
    Starting,
    /// Recording.
    Active,
    /// In the room, and keeping nothing.
    Paused,
    /// Finishing the files.
    Stopping,
    /// Done; the result tells how it went.
    Ready,
    /// Done, and there is no usable recording.
    Failed,
}

/// How a recording stands.
#[derive(Clone, Debug)]
pub struct Status {
    /// Where it is in its life.
    pub state: State,
    /// The length of the timeline so far.
    pub elapsed: Duration,
    /// Participants in the room now.
    pub participants: usize,
    /// The loudest sample since the last status, in dBFS; of what is passed through undecoded, nothing is known.
    pub peak_dbfs: f32,
    /// Bytes written, all files together.
    pub bytes: u64,
    /// What the local disk refuses at the moment, while the recording goes on in memory.
    pub disk_fault: Option<String>,
    /// Bytes that the store has, all files together.
    pub uploaded_bytes: u64,
    /// What keeps the store from getting more at the moment; the spool keeps it meanwhile.
    pub upload_fault: Option<String>,
    /// Identities of those from whom nothing comes although it should.
    pub silent_legs: Vec<String>,
    /// What happened so far that will keep it from being complete.
    pub reasons: Vec<Reason>,
    /// The end, once there is one.
    pub result: Option<RecordingResult>,
}

impl Status {
    pub(super) fn starting() -> Self {
        Self {
            state: State::Starting,
            elapsed: Duration::ZERO,
            participants: 0,
            peak_dbfs: f32::NEG_INFINITY,
            bytes: 0,
            disk_fault: None,
            uploaded_bytes: 0,
            upload_fault: None,
            silent_legs: Vec::new(),
            reasons: Vec::new(),
            result: None,
        }
    }
}

/// What became of a recording; the last line of `callreel record` is this as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordingResult {
    /// The recording's id.
    pub recording_id: String,
    /// `ready` or `failed`.
    pub status: State,
    /// What became of it.
    pub outcome: Outcome,
    /// What keeps it from being complete.
    pub reasons: Vec<Reason>,
    /// Why it stopped; none if it never began.
    pub stopped_by: Option<StopReason>,
    /// The files.
    pub outputs: Vec<OutputResult>,
    /// Where the manifest is; none if there is none.
    pub manifest: Option<String>,
}

impl RecordingResult {
    /// Of a recording that ended before there was anything.
    pub(super) fn empty(recording_id: &str, stopped_by: StopReason) -> Self {
        Self {
            recording_id: recording_id.to_owned(),
            status: State::Ready,
            outcome: Outcome::Empty,
            reasons: Vec::new(),
            stopped_by: Some(stopped_by),
            outputs: Vec::new(),
            manifest: None,
        }
    }

    pub(super) fn failed(recording_id: &str, reason: Reason) -> Self {
        Self {
            recording_id: recording_id.to_owned(),
            status: State::Failed,
            outcome: Outcome::Failed,
            reasons: vec![reason],
            stopped_by: None,
            outputs: Vec::new(),
            manifest: None,
        }
    }
}

/// One file of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputResult {
    /// What is in it.
    pub kind: OutputKind,
    /// The identity of the only one who is heard, for `tracks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// Where it is.
    pub location: String,
    /// How long it plays.
    pub duration_seconds: f64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal; empty for what LiveKit Egress wrote.
    pub sha256: String,
}

impl OutputResult {
    pub(super) fn new(entry: &OutputEntry, location: String) -> Self {
        Self {
            kind: entry.kind,
            participant: entry.participant.clone(),
            location,
            duration_seconds: entry.duration_seconds,
            bytes: entry.bytes,
            sha256: entry.sha256.clone(),
        }
    }
}

/// The runtime all recordings of this process share.
fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            if let Some(threads) = THREADS.get() {
                builder.worker_threads(threads.get());
            }
            builder.thread_name("callreel").enable_all().build().map_err(|error| error.to_string())
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// How many tasks of recordings are alive in this process.
#[cfg(feature = "testkit")]
pub fn alive_tasks() -> usize {
    runtime().map_or(0, |runtime| runtime.metrics().num_alive_tasks())
}

fn panic_message(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panicked".to_owned()),
        Err(error) => error.to_string(),
    }
}
