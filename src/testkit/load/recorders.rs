//! The recorders under load, in processes of their own: one for all calls, or one a call.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::process::{ask_to_end, pin};
use super::service::Service;
use crate::analysis::AnalysisConfig;
use crate::clock;
use crate::config::{Config, OutputKind};
use crate::mix::Mixing;
use crate::recording::{Recorder, RecordingHandle, RecordingResult, State};
use crate::room::Credentials;
use crate::testkit::TestkitError;

/// How often the recording that is furthest behind is looked for.
const LOOK: Duration = Duration::from_millis(500);

/// Whether calls share a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All calls in one process.
    Pooled,
    /// A `callreel record` for each call.
    Process,
    /// All calls by one `callreel serve`.
    Service,
}

/// The programs that record.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `callreel-load`, which records many calls when it is told to.
    pub load: PathBuf,
    /// `callreel`.
    pub callreel: PathBuf,
}

impl Programs {
    /// Those in the folder of the program that runs: all are built into one.
    ///
    /// # Errors
    /// [`TestkitError::Io`] where the system does not tell which program runs.
    pub fn beside_this() -> Result<Self, TestkitError> {
        let this = std::env::current_exe().map_err(TestkitError::io("the program that runs"))?;
        Ok(Self::in_folder(this.parent().unwrap_or(Path::new(""))))
    }

    /// Those in a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { load: folder.join("callreel-load"), callreel: folder.join("callreel") }
    }
}

/// How every call is recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    /// Which files are made.
    pub outputs: Vec<OutputKind>,
    /// Whether packets may pass through.
    pub mixing: Mixing,
    /// Whether speakers, waveform and loudness are found out.
    pub analysis: bool,
}

/// Where a call is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) url: String,
    pub(super) key: String,
    pub(super) secret: String,
    pub(super) room: String,
    pub(super) out: PathBuf,
}

/// What is said to the process that records many calls, a line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Start { call: usize, place: Place, outputs: Vec<OutputKind>, mixing: Mixing, analysis: bool },
    Stop { call: usize },
}

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// The longest that a recording has not looked after its call since the last word, in milliseconds.
    Behind(u64),
    Over {
        call: usize,
        result: Box<RecordingResult>,
    },
}

/// A recording that was started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) at: OffsetDateTime,
    pub(super) stopped: Option<Instant>,
    pub(super) over: Option<(Instant, RecordingResult)>,
    pid: Option<u32>,
    /// The service's name for it.
    id: Option<String>,
}

/// All recordings of a run.
pub(super) struct Recorders {
    mode: Mode,
    programs: Programs,
    recording: Recording,
    cores: Vec<usize>,
    pool: Option<Pool>,
    service: Option<Service>,
    pub(super) calls: Vec<Started>,
    /// The longest that a recording did not look after its call, where calls share a process.
    behind: Duration,
    words: mpsc::UnboundedReceiver<Word>,
    tell: mpsc::UnboundedSender<Word>,
    readers: Vec<JoinHandle<()>>,
}

struct Pool {
    child: Child,
    orders: ChildStdin,
}

impl Recorders {
    /// `cores` are the processors that recorders may use; empty for all.
    pub(super) fn new(mode: Mode, programs: &Programs, recording: &Recording, cores: Vec<usize>) -> Self {
        let (tell, words) = mpsc::unbounded_channel();
        Self {
            mode,
            programs: programs.clone(),
            recording: recording.clone(),
            cores,
            pool: None,
            service: None,
            calls: Vec::new(),
            behind: Duration::ZERO,
            words,
            tell,
            readers: Vec::new(),
        }
    }

    /// Starts what runs before there are calls: the service, for the server of `place`.
    pub(super) async fn open(&mut self, place: &Place) -> Result<(), TestkitError> {
        if self.mode == Mode::Service {
            let command = Command::new(&self.programs.callreel);
            let service = Service::start(command, place, &self.recording).await?;
            self.hold(&service.child)?;
            self.service = Some(service);
        }
        Ok(())
    }

    /// Starts recording the next call.
    pub(super) async fn start(&mut self, place: Place) -> Result<(), TestkitError> {
        let call = self.calls.len();
        let at = clock::wall();
        let (mut pid, mut id) = (None, None);
        match (self.mode, &self.service) {
            (Mode::Pooled, _) => {
                let Recording { outputs, mixing, analysis } = self.recording.clone();
                self.order(&Order::Start { call, place, outputs, mixing, analysis }).await?;
            }
            (Mode::Process, _) => pid = Some(self.spawn_one(call, &place)?),
            (Mode::Service, Some(service)) => id = Some(service.record(&place.room).await?),
            (Mode::Service, None) => return Err(TestkitError::Simulation("there is no service".into())),
        }
        self.calls.push(Started { at, stopped: None, over: None, pid, id });
        Ok(())
    }

    /// The processes that record.
    pub(super) fn pids(&self) -> Vec<u32> {
        match (&self.pool, &self.service) {
            (Some(Pool { child, .. }), _) | (None, Some(Service { child, .. })) => child.id().into_iter().collect(),
            (None, None) => self.calls.iter().filter(|call| call.over.is_none()).filter_map(|call| call.pid).collect(),
        }
    }

    /// The longest that a recording did not look after its call since this was asked last.
    pub(super) fn take_behind(&mut self) -> Duration {
        while let Ok(word) = self.words.try_recv() {
            self.note(word);
        }
        std::mem::take(&mut self.behind)
    }

    /// Stops all recordings and waits for their results.
    pub(super) async fn finish(&mut self) -> Result<(), TestkitError> {
        if let Some(service) = self.service.take() {
            return self.finish_service(service).await;
        }
        for call in 0..self.calls.len() {
            self.calls[call].stopped = Some(clock::now());
            match self.calls[call].pid {
                // A recorder that has ended by itself has said why.
                Some(pid) if self.calls[call].over.is_none() => drop(ask_to_end(pid)),
                Some(_) => {}
                None => self.order(&Order::Stop { call }).await?,
            }
        }
        while self.calls.iter().any(|call| call.over.is_none()) {
            match self.words.recv().await {
                Some(word) => self.note(word),
                None => break,
            }
            if self.readers.iter().all(JoinHandle::is_finished) && self.words.is_empty() {
                break;
            }
        }
        if let Some(mut pool) = self.pool.take() {
            drop(pool.orders);
            pool.child.wait().await.map_err(TestkitError::io("waiting for the recorder"))?;
        }
        Ok(())
    }

    async fn finish_service(&mut self, mut service: Service) -> Result<(), TestkitError> {
        for call in &mut self.calls {
            call.stopped = Some(clock::now());
            if let Some(id) = &call.id {
                service.stop(id).await?;
            }
        }
        for call in &mut self.calls {
            if let Some(id) = &call.id {
                call.over = Some(service.result(id).await?);
            }
        }
        if let Some(pid) = service.child.id() {
            ask_to_end(pid).map_err(TestkitError::io("ending the service"))?;
        }
        service.child.wait().await.map(drop).map_err(TestkitError::io("waiting for the service"))
    }

    fn note(&mut self, word: Word) {
        match word {
            Word::Behind(millis) => self.behind = self.behind.max(Duration::from_millis(millis)),
            Word::Over { call, result } => {
                if let Some(call) = self.calls.get_mut(call) {
                    call.over = Some((clock::now(), *result));
                }
            }
        }
    }

    async fn order(&mut self, order: &Order) -> Result<(), TestkitError> {
        if self.pool.is_none() {
            self.pool = Some(self.spawn_pool()?);
        }
        let Some(pool) = &mut self.pool else { return Ok(()) };
        let mut line = serde_json::to_vec(order).map_err(|error| TestkitError::Simulation(error.to_string()))?;
        line.push(b'\n');
        pool.orders.write_all(&line).await.map_err(TestkitError::io("telling the recorder"))
    }

    fn spawn_pool(&mut self) -> Result<Pool, TestkitError> {
        let mut command = Command::new(&self.programs.load);
        command.arg("--recorder").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = self.spawn(command)?;
        let gone = || TestkitError::Simulation("the recorder has no pipes".into());
        let (orders, words) = (child.stdin.take().ok_or_else(gone)?, child.stdout.take().ok_or_else(gone)?);
        let tell = self.tell.clone();
        self.readers.push(tokio::spawn(async move {
            let mut lines = BufReader::new(words).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(word) = serde_json::from_str(&line) {
                    let _ = tell.send(word);
                }
            }
        }));
        Ok(Pool { child, orders })
    }

    fn spawn_one(&mut self, call: usize, place: &Place) -> Result<u32, TestkitError> {
        let outputs: Vec<&str> = self.recording.outputs.iter().map(|kind| kind.as_str()).collect();
        let mut command = Command::new(&self.programs.callreel);
        command
            .args(["record", "--log-format", "json", "--outputs", &outputs.join(",")])
            .args(["--mixing", if self.recording.mixing == Mixing::Auto { "auto" } else { "transcode" }])
            .arg("--out")
            .arg(&place.out)
            .args(["--url", &place.url, "--api-key", &place.key, "--room", &place.room])
            .env("LIVEKIT_API_SECRET", &place.secret)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if !self.recording.analysis {
            command.args(["--no-speakers", "--no-peaks", "--no-loudness"]);
        }
        let mut child = self.spawn(command)?;
        let gone = || TestkitError::Simulation("a recorder ended at once".into());
        let (pid, mut words) = (child.id().ok_or_else(gone)?, child.stdout.take().ok_or_else(gone)?);
        let tell = self.tell.clone();
        self.readers.push(tokio::spawn(async move {
            let mut said = String::new();
            let read = words.read_to_string(&mut said).await;
            let _ = child.wait().await;
            let result = said.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
            if let (Ok(_), Some(result)) = (read, result) {
                let _ = tell.send(Word::Over { call, result: Box::new(result) });
            }
        }));
        Ok(pid)
    }

    fn spawn(&self, mut command: Command) -> Result<Child, TestkitError> {
        let child = command.spawn().map_err(TestkitError::io("starting a recorder"))?;
        self.hold(&child)?;
        Ok(child)
    }

    /// Keeps a recorder on the processors that it may use.
    fn hold(&self, child: &Child) -> Result<(), TestkitError> {
        if let (Some(pid), false) = (child.id(), self.cores.is_empty()) {
            pin(pid, self.cores.iter().copied()).map_err(TestkitError::io("a processor for the recorder"))?;
        }
        Ok(())
    }
}

/// Records the calls that standard input names, a line each, until it ends; tells of them on standard output.
///
/// # Errors
/// [`TestkitError::Io`] where standard output breaks; [`TestkitError::Simulation`] where an order makes no sense.
pub async fn serve() -> Result<(), TestkitError> {
    let (tell, mut words) = mpsc::unbounded_channel();
    let mut calls: Vec<Watched> = Vec::new();
    let (order, mut orders) = mpsc::unbounded_channel();
    // A read of standard input cannot be given up, so it is no business of the runtime's.
    std::thread::spawn(move || {
        let lines = std::io::stdin().lines().map_while(Result::ok);
        lines.map(|line| order.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    let mut look = tokio::time::interval(LOOK);
    let mut listening = true;
    let mut over = 0;
    while listening || over < calls.len() {
        tokio::select! {
            line = orders.recv(), if listening => match line {
                Some(line) => obey(&line, &mut calls, &tell)?,
                None => {
                    listening = false;
                    calls.iter().for_each(|call| call.handle.stop());
                }
            },
            Some(word) = words.recv() => {
                over += usize::from(matches!(word, Word::Over { .. }));
                say(&word)?;
            }
            _ = look.tick() => {
                let behind = calls.iter_mut().map(Watched::behind).max().unwrap_or(Duration::ZERO);
                say(&Word::Behind(behind.as_millis() as u64))?;
            }
        }
    }
    Ok(())
}

/// A recording, and when it was last seen to have looked after its call.
struct Watched {
    handle: RecordingHandle,
    elapsed: Duration,
    at: Option<Instant>,
}

impl Watched {
    /// For how long the recording has not looked after its call.
    fn behind(&mut self) -> Duration {
        let status = self.handle.status();
        let now = clock::now();
        if status.state != State::Active {
            self.at = None;
        } else if status.elapsed != self.elapsed {
            (self.elapsed, self.at) = (status.elapsed, Some(now));
        }
        self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }
}

fn obey(line: &str, calls: &mut Vec<Watched>, tell: &mpsc::UnboundedSender<Word>) -> Result<(), TestkitError> {
    let order = serde_json::from_str(line).map_err(|error| TestkitError::Simulation(format!("{line}: {error}")))?;
    match order {
        Order::Start { call, place, outputs, mixing, analysis } => {
            let handle = Recorder::start(config(place, outputs, mixing, analysis));
            calls.push(Watched { handle: handle.clone(), elapsed: Duration::ZERO, at: None });
            let tell = tell.clone();
            tokio::spawn(async move {
                let result = Box::new(handle.wait().await);
                let _ = tell.send(Word::Over { call, result });
            });
        }
        Order::Stop { call } => {
            if let Some(call) = calls.get(call) {
                call.handle.stop();
            }
        }
    }
    Ok(())
}

fn config(place: Place, outputs: Vec<OutputKind>, mixing: Mixing, analysis: bool) -> Config {
    let Place { url, key, secret, room, out } = place;
    let mut config = Config::new(url, Credentials::ApiKey { key, secret }, room);
    config.out = out;
    config.outputs = outputs;
    config.mixing = mixing;
    if !analysis {
        config.analysis = AnalysisConfig::OFF;
    }
    config
}

fn say(word: &Word) -> Result<(), TestkitError> {
    let mut line = serde_json::to_vec(word).map_err(|error| TestkitError::Simulation(error.to_string()))?;
    line.push(b'\n');
    std::io::stdout().lock().write_all(&line).map_err(TestkitError::io("telling of recordings"))
}
