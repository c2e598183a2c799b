//! The supervisor: which rooms are recorded now, and by whom.
//!
//! Webhooks, rules and people ask it for recordings; each runs as a [`Recorder`] of its own, and a task beside it keeps its row
//! in the catalogue as it stands. A catalogue that does not answer holds up no recording.

mod admission;
mod erase;
mod figures;
mod follow;
mod livekit;
mod recover;
mod rooms;
mod thumbnail;
mod told;
mod webhook;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use time::OffsetDateTime;
use tokio::sync::broadcast;

use crate::catalog::{
    Catalog, CatalogError, Change, ENDED_BY_WORD, Filter, NewRecording, Owner, Participant, Row, Status, nobody,
    patiently,
};
use crate::clock;
use crate::config::{Config, ConfigError, EngineWord, FallbackWord, ServeConfig};
use crate::notify::{Event, EventKind, Notifier};
use crate::recording::{
    Happening, Manifest, PauseOrder, Recorder, RecordingHandle, RecordingResult, State, StopReason, What,
};
use crate::store::{Store, StoreConfig};
use crate::traces;

use super::metrics::Metrics;
use super::rules::{Rules, Wish};
use admission::{Gauge, Limits, Refusal, Turn, Turns};
use figures::Growth;
use livekit::{LiveKit, OpenRoom};
use recover::Instance;
use rooms::Rooms;

pub use admission::Load;

/// So many happenings wait for somebody who does not look; the oldest are forgotten.
const HAPPENINGS: usize = 1_024;

/// For how long this process says at a time that it lives, and how often it says so.
const LIVES: (Duration, Duration) = (Duration::from_secs(90), Duration::from_secs(20));

/// How long a recording may wait for its row.
const ROW_WITHIN: Duration = Duration::from_millis(500);

/// How long an order may take to show.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);

/// The supervisor of all recordings of this process. Clones are the same.
#[derive(Clone, Debug)]
pub struct Calls {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    config: Arc<ServeConfig>,
    rules: Rules,
    catalog: Catalog,
    notifier: Notifier,
    metrics: Metrics,
    livekit: LiveKit,
    /// Where recordings go.
    store: Store,
    /// What this process is called over its restarts.
    instance: Instance,
    limits: Limits,
    gauge: Mutex<Gauge>,
    turns: Turns,
    live: Mutex<BTreeMap<String, Live>>,
    rooms: Rooms,
    draining: AtomicBool,
    /// Recordings that are about to begin.
    reserved: AtomicUsize,
    /// Since when the catalogue has answered whenever it was told that this process lives.
    answers_since: Mutex<Option<Instant>>,
    happenings: broadcast::Sender<Happening>,
}

/// A recording that is not over.
#[derive(Debug)]
struct Live {
    handle: RecordingHandle,
    room: String,
    /// The server's id of the room.
    sid: String,
    days: Option<u32>,
    /// When it was asked for; none once media came.
    asked: Option<Instant>,
    growth: Growth,
}

/// Somebody's wish that a room be recorded.
#[derive(Clone, Debug, Default)]
pub struct StartRequest {
    /// The room's name.
    pub room: String,
    /// Who wishes it, for the log.
    pub by: String,
    /// How; where nothing is said, as the rule has it that is about the room.
    pub wish: Wish,
    /// What is to be kept with it: a JSON object.
    pub metadata: Value,
}

/// Why a recording does not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// There is no such room.
    #[error("there is no room {room:?}")]
    NoRoom {
        /// Its name.
        room: String,
    },
    /// The room is being recorded.
    #[error("the room is being recorded as {recording_id}")]
    AlreadyRecorded {
        /// By this recording.
        recording_id: String,
    },
    /// What is wished cannot be had.
    #[error(transparent)]
    Wish(#[from] ConfigError),
    /// The service takes no more, for now.
    #[error("no further recording now: {why}")]
    Full {
        /// What there is too little of.
        why: String,
    },
    /// The service is ending.
    #[error("the service is ending")]
    Draining,
    /// The LiveKit server does not answer.
    #[error("the LiveKit server does not answer: {0}")]
    LiveKit(String),
    /// The catalogue does not do its part.
    #[error(transparent)]
    Catalog(CatalogError),
}

/// Why an order has no effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// There is no such recording.
    #[error("there is no recording {recording_id}")]
    NotFound {
        /// Its id.
        recording_id: String,
    },
    /// The recording is somewhere in its life where that makes no sense.
    #[error("recording {recording_id} is {status}")]
    WrongState {
        /// Its id.
        recording_id: String,
        /// Where it is.
        status: Status,
    },
    /// Another process has it, and does not answer.
    #[error("recording {recording_id} is run by {instance}, which does not answer")]
    Elsewhere {
        /// Its id.
        recording_id: String,
        /// The other process.
        instance: String,
    },
    /// The engine that records cannot do that.
    #[error("{0}")]
    Unsupported(String),
    /// The catalogue does not do its part.
    #[error(transparent)]
    Catalog(CatalogError),
}

/// How the supervisor stands.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallsStatus {
    /// Recordings of this process that are not over.
    pub recordings: usize,
    /// Why no further one is taken now.
    pub refusal: Option<String>,
    /// Whether the service is ending.
    pub is_draining: bool,
}

/// Why a recording is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// Somebody asked for it.
    Asked,
    /// Something happened in a room, of which this process alone was told.
    News,
    /// A look at the rooms, at which others look, too.
    Look,
}

/// The place of a recording that is about to begin.
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn reserve(shared: &'a Shared) -> Self {
        shared.reserved.fetch_add(1, Ordering::Relaxed);
        Self(&shared.reserved)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Live {
    /// Whether the recorder is in the room, or about to be.
    fn is_in_room(&self) -> bool {
        follow::word(self.handle.status().state).is_in_room()
    }
}

impl Calls {
    /// A supervisor without any recording. [`run`](Self::run) makes it act by itself.
    ///
    /// `store` is where recordings go.
    pub fn new(
        config: Arc<ServeConfig>,
        rules: Rules,
        catalog: Catalog,
        store: Store,
        notifier: Notifier,
        metrics: Metrics,
    ) -> Self {
        let (happenings, _) = broadcast::channel(HAPPENINGS);
        let instance = Instance::of(&config.base.spool_dir());
        let shared = Shared {
            livekit: LiveKit::new(&config),
            limits: Limits::of(&config.file.limits),
            instance,
            store,
            rules,
            catalog,
            notifier,
            metrics,
            gauge: Mutex::default(),
            turns: Turns::default(),
            live: Mutex::default(),
            rooms: Rooms::default(),
            draining: AtomicBool::new(false),
            reserved: AtomicUsize::new(0),
            answers_since: Mutex::default(),
            happenings,
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Goes on with what an earlier process left, records rooms as the rules say, ends what others left in the spool, and
    /// deletes what has had its time. Ends only where it is dropped.
    pub async fn run(&self) {
        // What was left is gone on with before anybody else ends it, or begins anew in its room.
        let looks = async {
            recover::adopt(self).await;
            tokio::join!(webhook::look_around(self.clone()), recover::recover_others(&self.shared));
        };
        let lives = async {
            loop {
                self.shared.live_on().await;
                tokio::time::sleep(LIVES.1).await;
            }
        };
        let figures = figures::take(&self.shared);
        tokio::join!(looks, lives, erase::erase(&self.shared), figures, admission::mind(&self.shared));
    }

    /// Begins a recording.
    ///
    /// # Errors
    /// [`StartError`]; then nothing has begun.
    pub async fn start(&self, request: StartRequest) -> Result<Row, StartError> {
        // Carried out whole, whether or not whoever asked waits for it.
        let calls = self.clone();
        let started = tokio::spawn(traces::carried(async move { calls.start_whole(request).await })).await;
        started.unwrap_or_else(|error| Err(StartError::LiveKit(error.to_string())))
    }

    async fn start_whole(&self, request: StartRequest) -> Result<Row, StartError> {
        let room = self.shared.livekit.room(&request.room).await.map_err(StartError::LiveKit)?;
        let room = room.ok_or_else(|| StartError::NoRoom { room: request.room.clone() })?;
        // What is wished goes before what the rule about the room has.
        let (mut request, mut rule) = (request, None);
        let people = self.shared.livekit.people(&room.name).await.map_err(StartError::LiveKit)?;
        let facts = super::rules::RoomFacts { name: &room.name, metadata: &room.metadata, participants: &people };
        if let super::rules::Decision::Record(choice) = self.shared.rules.current().decide(&facts) {
            request.wish = request.wish.or(choice.wish);
            rule = choice.rule;
        }
        self.begin(request, &room, rule, Cause::Asked).await
    }

    /// Begins the recording of a room that exists.
    async fn begin(
        &self,
        request: StartRequest,
        room: &OpenRoom,
        rule: Option<String>,
        cause: Cause,
    ) -> Result<Row, StartError> {
        let shared = &self.shared;
        let by_rule = cause != Cause::Asked;
        let turn = shared.turns.next().await;
        if shared.is_draining() {
            return Err(StartError::Draining);
        }
        if let Some((handle, _)) = shared.live_in(&room.name) {
            return Err(StartError::AlreadyRecorded { recording_id: handle.recording_id().to_owned() });
        }
        let mut wish = request.wish;
        // Many that begin at the same moment are counted before they run.
        let slot = Slot::reserve(shared);
        let refusal = shared.load().refusal(&shared.limits);
        let may_fall_back = match wish.fallback {
            Some(word) => word == FallbackWord::Egress,
            None => shared.config.base.fallback.is_some(),
        };
        if refusal.is_some() && may_fall_back {
            // The recording costs nothing here then.
            tracing::warn!(room = room.name, "LiveKit Egress records, as this process is full");
            wish.engine = Some(EngineWord::Egress);
        }
        let made = match wish.apply(&shared.config.base, &room.name) {
            // What LiveKit Egress cannot record is refused for want of room here.
            Err(_) if refusal.is_some() => {
                Wish { engine: None, ..wish.clone() }.apply(&shared.config.base, &room.name)?
            }
            made => made?,
        };
        let refusal = refusal.filter(|_| !made.uses_egress());
        let config = Config { recovers_others: false, ..made };
        let new = shared.new_row(&config, &wish, room, rule, told::metadata(request.metadata));
        if let Some(refusal) = refusal {
            return Err(shared.refuse(new, refusal, by_rule).await);
        }
        tracing::info!(room = room.name, id = config.recording_id, by = request.by, "recording");
        let days = wish.retention_days;
        let mut begun = if by_rule {
            // The call does not wait for the catalogue. Begun twice, a row is begun once.
            let begun = tokio::time::timeout(ROW_WITHIN, shared.catalog.begin(new.clone(), nobody)).await;
            begun.unwrap_or_else(|_| Err(CatalogError::Unavailable("no answer at once".into())))
        } else {
            shared.catalog.begin(new.clone(), nobody).await
        };
        if let Err(CatalogError::AlreadyRecorded { recording_id }) = &begun
            && recover::take_from_the_dead(shared, recording_id).await
        {
            begun = shared.catalog.begin(new.clone(), nobody).await;
        }
        let (row, new) = match begun {
            Ok(row) => (Some(row), None),
            // Others may record what nobody was told of but this process.
            Err(error) if error.is_transient() && cause == Cause::News => {
                tracing::warn!(%error, "recording without a row for now");
                (None, Some(new))
            }
            Err(CatalogError::AlreadyRecorded { recording_id }) => {
                return Err(StartError::AlreadyRecorded { recording_id });
            }
            Err(error) => {
                if error.is_transient() {
                    // It may have a row all the same, which would keep others from the room.
                    let (shared, id) = (shared.clone(), config.recording_id.clone());
                    tokio::spawn(async move { shared.take_back(&id).await });
                }
                return Err(StartError::Catalog(error));
            }
        };
        let id = config.recording_id.clone();
        if !self.record(config, &room.sid, days, new, Some(turn)) {
            let over = told::of_nothing("the service was about to end", clock::wall());
            follow::put_down(shared, &id, over).await;
            return Err(StartError::Draining);
        }
        drop(slot);
        if shared.config.file.webhooks.write_room_metadata == Some(true)
            && let Err(error) = shared.livekit.write_metadata(&room.name, &id).await
        {
            tracing::warn!(error, room = room.name, "the room's metadata cannot be written");
        }
        match row {
            Some(row) => Ok(row),
            // Nobody waits for it.
            None => Err(StartError::AlreadyRecorded { recording_id: id }),
        }
    }

    /// Starts the recorder, and follows it; not where the service ends. Whoever waits for a `turn` has it once this one is in
    /// its room.
    fn record(
        &self,
        config: Config,
        sid: &str,
        days: Option<u32>,
        new: Option<NewRecording>,
        turn: Option<Turn>,
    ) -> bool {
        // Whoever ends the service sees all that is here before it says so.
        let mut running = self.shared.live();
        if self.shared.is_draining() {
            return false;
        }
        let (room, id) = (config.room.clone(), config.recording_id.clone());
        let handle = Recorder::start(config);
        let (asked, growth) = (Some(clock::now()), Growth::default());
        let live = Live { handle: handle.clone(), room, sid: sid.to_owned(), days, asked, growth };
        running.insert(id, live);
        drop(running);
        if let Some(turn) = turn {
            tokio::spawn(turn.hold(handle.clone()));
        }
        tokio::spawn(follow::follow(self.shared.clone(), handle, new));
        true
    }

    /// Ends a recording, and gives it as it stands then.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn stop(&self, recording_id: &str, by: &str) -> Result<Row, OrderError> {
        let (mut row, handle) = self.running(recording_id, &[State::Starting, State::Active, State::Paused]).await?;
        tracing::info!(recording_id, by, "stopping");
        self.shared.rooms.end_by_word(&self.shared.sid_of(recording_id));
        handle.stop();
        // Noted whether or not whoever asked waits for it.
        let (shared, id) = (self.shared.clone(), recording_id.to_owned());
        let noting = tokio::spawn(async move { shared.note_ended_by_word(&id).await });
        if let Err(error) = noting.await {
            tracing::error!(%error, recording_id, "a note broke off");
        }
        row.status = Status::Stopping;
        Ok(row)
    }

    /// Pauses a recording.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn pause(&self, recording_id: &str, order: PauseOrder) -> Result<Row, OrderError> {
        let (row, handle) = self.running(recording_id, &[State::Starting, State::Active]).await?;
        tracing::info!(recording_id, by = order.by, "pausing");
        handle.pause(order);
        shows(row, handle, State::Paused).await
    }

    /// Lets a recording go on.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn resume(&self, recording_id: &str, by: &str) -> Result<Row, OrderError> {
        let (row, handle) = self.running(recording_id, &[State::Paused]).await?;
        tracing::info!(recording_id, by, "going on");
        handle.resume(by);
        shows(row, handle, State::Active).await
    }

    /// A recording of this process in one of these states, and its row.
    async fn running(&self, recording_id: &str, states: &[State]) -> Result<(Row, RecordingHandle), OrderError> {
        let row = self.shared.catalog.get(recording_id).await.map_err(OrderError::Catalog)?;
        let id = recording_id.to_owned();
        let row = row.ok_or_else(|| OrderError::NotFound { recording_id: id.clone() })?;
        let wrong = |status| OrderError::WrongState { recording_id: id.clone(), status };
        if !row.status.is_in_room() || row.deleted.is_some() {
            return Err(wrong(row.status));
        }
        let handle = self.shared.live().get(recording_id).map(|live| live.handle.clone());
        let Some(handle) = handle else {
            let instance = row.owner.map_or_else(|| "another process".to_owned(), |owner| owner.instance);
            return Err(OrderError::Elsewhere { recording_id: id, instance });
        };
        let state = handle.status().state;
        if states.contains(&state) { Ok((row, handle)) } else { Err(wrong(follow::word(state))) }
    }

    /// Deletes a recording that is over, with all that belongs to it.
    ///
    /// # Errors
    /// [`OrderError`]
    pub async fn delete(&self, recording_id: &str, by: &str, why: &str) -> Result<Row, OrderError> {
        let deleted = self.shared.catalog.delete(recording_id, by, why, clock::wall()).await;
        let row = deleted.map_err(|error| order_error(recording_id, error))?;
        tracing::info!(recording_id, by, why, "deleting");
        let shared = self.shared.clone();
        let erased = row.clone();
        // What fails is done later.
        tokio::spawn(async move { erase::erase_one(&shared, &erased).await });
        Ok(row)
    }

    /// Takes an event of the LiveKit server whose signature was checked. Returns at once.
    pub async fn webhook(&self, event: livekit_protocol::WebhookEvent) {
        let calls = self.clone();
        tokio::spawn(async move { webhook::act(&calls, event).await });
    }

    /// Takes no further recording, lets calls go on for `wait`, then ends their recordings and gives them `upload` to reach
    /// their store. Returns when nothing is left, or the time is over: what is left stays in the spool for the next process.
    pub async fn drain(&self, wait: Duration, upload: Duration) {
        let recordings = {
            let live = self.shared.live();
            self.shared.draining.store(true, Ordering::Relaxed);
            live.len()
        };
        tracing::info!(recordings, "ending");
        if tokio::time::timeout(wait, self.idle()).await.is_ok() {
            return;
        }
        let left: Vec<RecordingHandle> = self.shared.live().values().map(|live| live.handle.clone()).collect();
        for handle in left {
            handle.stop_within(StopReason::Signal, upload);
        }
        if tokio::time::timeout(upload + SHOWS_WITHIN, self.idle()).await.is_err() {
            tracing::error!("recordings are left in the spool");
        }
    }

    /// Waits until no recording is left.
    async fn idle(&self) {
        loop {
            let handle = self.shared.live().values().next().map(|live| live.handle.clone());
            let Some(mut handle) = handle else { return };
            if handle.status().result.is_none() {
                handle.changed().await;
            } else {
                // Its row is about to be written.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// How it stands.
    pub fn status(&self) -> CallsStatus {
        let refusal = self.shared.refusal();
        CallsStatus {
            recordings: self.shared.live().len(),
            refusal: refusal.map(|refusal| refusal.to_string()),
            is_draining: self.shared.is_draining(),
        }
    }

    /// What the process uses now.
    pub fn load(&self) -> Load {
        self.shared.load()
    }

    /// What happens to recordings of this process from now on.
    pub fn happenings(&self) -> broadcast::Receiver<Happening> {
        self.shared.happenings.subscribe()
    }
}

/// The row once the recording is in that state, or as it is where that takes too long.
async fn shows(mut row: Row, mut handle: RecordingHandle, state: State) -> Result<Row, OrderError> {
    let shown = async {
        while handle.status().state != state && handle.status().result.is_none() {
            handle.changed().await;
        }
    };
    // An order that shows late is carried out all the same.
    let _ = tokio::time::timeout(SHOWS_WITHIN, shown).await;
    row.status = follow::word(handle.status().state);
    Ok(row)
}

fn order_error(recording_id: &str, error: CatalogError) -> OrderError {
    match error {
        CatalogError::NotFound { recording_id } => OrderError::NotFound { recording_id },
        CatalogError::Unfinished { recording_id, status } | CatalogError::Finished { recording_id, status } => {
            OrderError::WrongState { recording_id, status }
        }
        other => {
            tracing::debug!(recording_id, error = %other, "the catalogue refuses");
            OrderError::Catalog(other)
        }
    }
}

impl Shared {
    fn live(&self) -> MutexGuard<'_, BTreeMap<String, Live>> {
        // Nothing panics while it is held.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The recording of a room by this process, and the room's id. One that is being finished is in no room any more.
    fn live_in(&self, room: &str) -> Option<(RecordingHandle, String)> {
        let live = self.live();
        let found = live.values().find(|live| live.room == room && live.is_in_room());
        found.map(|live| (live.handle.clone(), live.sid.clone()))
    }

    fn sid_of(&self, recording_id: &str) -> String {
        self.live().get(recording_id).map(|live| live.sid.clone()).unwrap_or_default()
    }

    /// A recording is over.
    async fn forget(&self, result: &RecordingResult) {
        let (id, sid) = (&result.recording_id, self.sid_of(&result.recording_id));
        if result.status == State::Failed {
            self.rooms.failed(&sid, clock::now());
        } else {
            self.rooms.recorded(&sid);
        }
        // Others come back into a room that was left; what came to its limit is not begun again.
        let limits = [StopReason::MaxDuration, StopReason::MaxBytes, StopReason::Silence];
        if result.stopped_by.is_some_and(|why| limits.contains(&why)) {
            self.rooms.end_by_word(&sid);
            self.note_ended_by_word(id).await;
        }
        self.live().remove(id);
    }

    /// Has rules not begin the recording of a room again, after a restart and in other processes too.
    async fn note_ended_by_word(&self, recording_id: &str) {
        let Ok(Some(row)) = self.catalog.get(recording_id).await else { return };
        let mut config = row.config;
        config[ENDED_BY_WORD] = true.into();
        let change = Change { config: Some(config), ..Change::default() };
        if let Err(error) = self.catalog.update(recording_id, &change, clock::wall(), nobody).await {
            tracing::warn!(%error, recording_id, "that it was ended by word is known to this process alone");
        }
    }

    /// Puts down that a recording never began, if the catalogue took it for begun.
    async fn take_back(&self, recording_id: &str) {
        let over = told::of_nothing("the catalogue did not answer when it was to begin", clock::wall());
        let taken = patiently(|| self.catalog.update(recording_id, &over, clock::wall(), nobody)).await;
        match taken {
            Ok(_) | Err(CatalogError::NotFound { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, recording_id, "a recording that never began is still in the catalogue")
            }
        }
    }

    /// Whether the recording of the room with this id was ended by word, so that rules do not begin another.
    async fn was_ended_by_word(&self, sid: &str) -> bool {
        if self.rooms.was_ended_by_word(sid) {
            return true;
        }
        let latest = async |deleted| {
            let of_room = Filter { room_id: Some(sid.to_owned()), deleted, ..Filter::default() };
            let asked = tokio::time::timeout(ROW_WITHIN, self.catalog.list(&of_room, None, 1)).await;
            asked.ok().and_then(Result::ok).and_then(|page| page.rows.into_iter().next())
        };
        let says_so = |row: Option<Row>| row.is_some_and(|row| row.config[ENDED_BY_WORD] == true);
        says_so(latest(false).await) || says_so(latest(true).await)
    }

    /// Who is in the room of a recording now.
    async fn people_in(&self, recording_id: &str) -> Vec<Participant> {
        let room = self.live().get(recording_id).map(|live| live.room.clone());
        let Some(room) = room else { return Vec::new() };
        let people = self.livekit.people(&room).await.unwrap_or_default();
        people.iter().map(|person| Participant::new(&person.identity, &person.name, person.kind)).collect()
    }

    /// Whether the catalogue has answered for as long as another process needs at most to say that it lives.
    fn has_answered_for_long(&self) -> bool {
        let since = *self.answers_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| clock::now().saturating_duration_since(since) > LIVES.0)
    }

    /// The words for where recordings go: provider and bucket.
    fn place(&self) -> (&'static str, Option<String>) {
        place(self.config.base.store.as_ref())
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    fn load(&self) -> Load {
        let running = self.live().values().filter(|live| live.is_in_room()).count();
        let recordings = running + self.reserved.load(Ordering::Relaxed).saturating_sub(1);
        let mut gauge = self.gauge.lock().unwrap_or_else(PoisonError::into_inner);
        gauge.look(recordings, &self.spool(), clock::now())
    }

    /// Why no recording can begin now.
    fn refusal(&self) -> Option<Refusal> {
        if self.is_draining() { Some(Refusal::Draining) } else { self.load().refusal(&self.limits) }
    }

    fn spool(&self) -> PathBuf {
        self.config.base.spool_dir()
    }

    /// The key of an object, by what its location is to people; none of what lies elsewhere.
    fn key_of(&self, location: &str) -> Option<String> {
        let beginning = self.store.location("x");
        location.strip_prefix(beginning.strip_suffix('x')?).map(str::to_owned)
    }

    fn owner(&self, now: OffsetDateTime) -> Owner {
        Owner { instance: self.instance.name().to_owned(), until: now + LIVES.0 }
    }

    async fn live_on(&self) {
        let told = self.catalog.keep_owned(&self.owner(clock::wall())).await;
        let mut since = self.answers_since.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Ok(_) => *since = Some(since.unwrap_or_else(clock::now)),
            Err(error) => {
                tracing::warn!(%error, "the catalogue does not take that this process lives");
                *since = None;
            }
        }
    }

    fn new_row(
        &self,
        config: &Config,
        wish: &Wish,
        room: &OpenRoom,
        rule: Option<String>,
        metadata: Value,
    ) -> NewRecording {
        let now = clock::wall();
        let (provider, bucket) = self.place();
        NewRecording {
            room_id: room.sid.clone(),
            engine: if config.uses_egress() { "egress" } else { "callreel" }.to_owned(),
            rule,
            file_format: config.main_ext().to_owned(),
            storage_provider: provider.to_owned(),
            storage_bucket: bucket,
            metadata,
            config: recover::config_of(wish),
            owner: Some(self.owner(now)),
            ..NewRecording::new(&config.recording_id, &room.name, now)
        }
    }

    /// Puts down that a room is not recorded, where a rule wanted it.
    async fn refuse(self: &Arc<Self>, new: NewRecording, refusal: Refusal, by_rule: bool) -> StartError {
        let (id, room) = (new.recording_id.clone(), new.room_name.clone());
        tracing::error!(room, %refusal, "a room is not recorded");
        self.metrics.refused(refusal.word());
        // It may be tried again before the room is gone.
        let sid = new.room_id.clone();
        if by_rule && self.rooms.refuse(&sid) {
            let change = told::of_refusal(&refusal.to_string(), clock::wall());
            match self.catalog.begin(new, nobody).await {
                Ok(_) => follow::put_down(self, &id, change).await,
                Err(error) if error.is_transient() => {
                    let shared = self.clone();
                    tokio::spawn(async move {
                        // It may be there all the same.
                        match patiently(|| shared.catalog.get(&id)).await {
                            Ok(Some(_)) => follow::put_down(&shared, &id, change).await,
                            Ok(None) | Err(_) => shared.rooms.forget_refusal(&sid),
                        }
                    });
                }
                Err(error) => tracing::debug!(%error, room, "nobody is told that it is not recorded"),
            }
        }
        match refusal {
            Refusal::Draining => StartError::Draining,
            other => StartError::Full { why: other.to_string() },
        }
    }

    /// How many days a recording is kept.
    async fn days_of(&self, recording_id: &str) -> Option<u32> {
        let of_all = self.config.file.retention.days;
        if let Some(live) = self.live().get(recording_id) {
            return live.days.or(of_all);
        }
        let row = patiently(|| self.catalog.get(recording_id)).await.ok().flatten();
        row.and_then(|row| recover::wish_of(&row)).and_then(|wish| wish.retention_days).or(of_all)
    }

    /// Something happened to a recording.
    async fn happened(&self, happening: Happening) {
        if matches!(happening.what, What::MediaBack)
            && let Some(asked) = self.live().get_mut(&happening.recording_id).and_then(|live| live.asked.take())
        {
            self.metrics.start_seconds.observe(clock::now().saturating_duration_since(asked).as_secs_f64());
        }
        if let What::LegSilent { participant, from_sample } = &happening.what {
            let at = clock::wall();
            let event = Event::new(EventKind::LegSilent, at)
                .with("participant", participant.as_str())
                .with("from_seconds", from_sample.as_secs_f64());
            let (id, nothing) = (&happening.recording_id, Change::default());
            let told = self.catalog.update(id, &nothing, at, self.notifier.about(event)).await;
            if let Err(error) = told {
                tracing::warn!(%error, id = happening.recording_id, "nobody is told of a silent leg");
            }
        }
        // Nobody has to listen.
        let _ = self.happenings.send(happening);
    }

    /// Counts a recording that is over.
    fn count(&self, result: &RecordingResult, manifest: Option<&Manifest>) {
        self.metrics.finished(&result.outcome.to_string());
        if let Some(manifest) = manifest {
            self.count_manifest(manifest);
        }
    }
}

/// The words for a store: its provider, and its bucket.
fn place(store: Option<&StoreConfig>) -> (&'static str, Option<String>) {
    match store {
        None | Some(StoreConfig::Local(_)) => ("local", None),
        Some(StoreConfig::S3(s3)) => {
            let is_r2 = s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.contains(".r2.cloudflarestorage.com"));
            (if is_r2 { "r2" } else { "s3" }, Some(s3.bucket.clone()))
        }
        Some(StoreConfig::Azure(azure)) => ("azure", Some(azure.container.clone())),
        Some(StoreConfig::Gcs(gcs)) => ("gcs", Some(gcs.bucket.clone())),
        Some(StoreConfig::Oss(oss)) => ("oss", Some(oss.bucket.clone())),
    }
}
