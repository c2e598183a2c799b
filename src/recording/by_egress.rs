//! Recordings that LiveKit Egress makes: instead of callreel's own bot, or where that cannot get in.
//!
//! The same name is reserved, the same journal written, the same manifest and result told. What is different is that the
//! service goes on if this process dies: so each step is in the journal before it is taken, and whoever finds the journal stops
//! the egress, or goes on watching it under the same recording id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::call::Encryption;
use crate::clock;
use crate::config::{Config, NameValues, TrackFilter};
use crate::egress::{EgressError, EgressState, EgressStatus, FileFormat, FilePlace, Pace};
use crate::room::RoomInfo;
use crate::spool::recover::Orphan;
use crate::spool::{JOURNAL_VERSION, Journal, Memory, Place, Reservation, RunningEgress, Started};
use crate::store::Store;
use crate::time::{ClockTime, MediaTime, SampleCount};

use super::dtmf::DtmfPolicy;
use super::egress_part::{Done, Ended, Part, Service, ends_of, obey, pause_of, put_down_life, sample, server_of};
use super::handle::{Order, OutputResult, Owner, RecordingResult, State};
use super::happening::What;
use super::join::prepare;
use super::life::{LifeSoFar, PauseEntry, PauseOrder};
use super::manifest::{EgressEntry, MANIFEST_VERSION, Manifest, Versions};
use super::outcome::{Outcome, Reason, StopReason, judge};
use super::session::{End, Session};
use super::sinks::{Forms, Sinks};

/// Has LiveKit Egress record one call. `instead_of` is why callreel's own bot did not.
pub(super) async fn run(config: &Config, owner: &mut Owner, instead_of: Option<Reason>) -> RecordingResult {
    if let Some(reason) = &instead_of {
        tracing::warn!(%reason, "LiveKit Egress records instead");
    }
    match record(config, owner, instead_of.as_ref()).await {
        Ok(result) => result,
        Err(reason) => {
            let failed = RecordingResult::failed(&config.recording_id, reason);
            RecordingResult { reasons: instead_of.into_iter().chain(failed.reasons).collect(), ..failed }
        }
    }
}

/// Whether LiveKit Egress may record a call into which callreel's own bot did not get: nobody had a chance to consent there.
pub(super) fn may_stand_in(config: &Config) -> bool {
    config.fallback.is_some() && config.life.consent.is_empty() && hears_all(config)
}

/// Whether everybody is to be recorded, with all they say, and none of it is encrypted: LiveKit Egress leaves nothing out.
fn hears_all(config: &Config) -> bool {
    let keeps_out = config.tracks != TrackFilter::default() || config.dtmf == DtmfPolicy::Withhold;
    !keeps_out && config.e2ee.is_empty()
}

async fn record(config: &Config, owner: &mut Owner, instead_of: Option<&Reason>) -> Result<RecordingResult, Reason> {
    let store = prepare(config).await?;
    let store = store.ok_or_else(|| Reason::Egress { message: "there is no store for it".into() })?;
    let service = Service::of(config)?;
    let format = if instead_of.is_some() { FileFormat::Ogg } else { config.format };
    let left = left_running(config, &store).await?;
    let mut wanted = None;
    let (opened, room) = match left {
        Some(orphan) => Opened::again(config, orphan, &store).await?,
        None => {
            let room = match room(config, &service, owner, &mut wanted).await? {
                Awaited::Room(room) => room,
                Awaited::Over(reason) => return Ok(RecordingResult::empty(&config.recording_id, reason)),
            };
            (Opened::anew(config, &room, &store, format).await?, room)
        }
    };
    let Opened { mut sinks, stem, began, wall_zero, earlier } = opened;
    let found = match &earlier.running {
        Some(running) => adopted(&service, running, wall_zero).await?,
        None => None,
    };
    let parts = Parts {
        service: &service,
        config,
        store: &store,
        journal: sinks.files().journal().clone(),
        stem,
        format,
        began,
        wall_zero,
        because: instead_of.map(ToString::to_string),
        pauses: Vec::new(),
    };
    sinks.hold();
    let about = About { config, room, wall_zero };
    let so_far = about.manifest(Outcome::Degraded, StopReason::Fault, wall_zero, &Made::default());
    sinks.put_down(serde_json::to_value(so_far).expect("plain data becomes JSON"));
    let so_far = parts.so_far(found, wanted, earlier).await;
    let mut made = parts.record(so_far, owner).await;
    if !made.has_file() {
        // Nobody recorded, for two reasons.
        made.reasons.splice(0..0, instead_of.cloned());
    }
    owner.status.send_modify(|status| status.state = State::Stopping);
    let ended_at = clock::wall();
    about.finish(sinks, &store, made, ended_at).await
}

/// What an earlier process of this recording left, if an egress may run that it had started, or it was paused.
async fn left_running(config: &Config, store: &Store) -> Result<Option<Orphan>, Reason> {
    let (spool, id) = (config.spool_dir(), config.recording_id.clone());
    let found = tokio::task::spawn_blocking(move || Orphan::of(&spool, &id)).await;
    let orphan = found.map_err(|error| Reason::Internal { message: error.to_string() })?;
    let orphan = orphan.map_err(|error| Reason::Storage { message: error.to_string() })?;
    Ok(orphan.filter(|orphan| {
        let (history, started) = (orphan.history(), orphan.started());
        let goes_on = match history.running_egress() {
            Some(running) => running.server == server_of(&config.url),
            None => life_of(orphan).pauses.last().is_some_and(|last| last.to_sample.is_none()),
        };
        // What the bot has recorded is ended by those who know its files.
        let is_of_egress = history.files.is_empty() && started.place == Place::Store(store.to_string());
        goes_on && is_of_egress && started.room == config.room
    }))
}

fn life_of(orphan: &Orphan) -> LifeSoFar {
    let life = orphan.history().life.clone();
    life.and_then(|life| serde_json::from_value(life).ok()).unwrap_or_default()
}

/// The egress that an earlier process had asked for: by its id, or in the server's list where its answer never came.
async fn adopted(
    service: &Service,
    running: &RunningEgress,
    began_at: OffsetDateTime,
) -> Result<Option<EgressState>, Reason> {
    let place = FilePlace { path: running.path.clone(), store: running.store.clone() };
    let found = match &running.egress_id {
        Some(id) => match service.client.get(id).await {
            Err(EgressError::NotFound(_)) => service.client.find(Some(&running.room), &place, began_at).await,
            known => known.map(Some),
        },
        None => service.client.find_late(Some(&running.room), &place, began_at).await,
    };
    let found = found.map_err(|error| Reason::Egress { message: error.to_string() })?;
    match &found {
        Some(state) => {
            tracing::warn!(egress = %state.id, status = ?state.status, "going on with what an earlier process started")
        }
        None => tracing::warn!("what an earlier process was about to start was never started"),
    }
    Ok(found)
}

enum Awaited {
    Room(RoomInfo),
    Over(StopReason),
}

/// Waits for the room: the service joins none that does not exist. Where it may not be asked for, it is taken for granted.
/// A pause that was ordered meanwhile is `wanted` then.
async fn room(
    config: &Config,
    service: &Service,
    owner: &mut Owner,
    wanted: &mut Option<Ended>,
) -> Result<Awaited, Reason> {
    let named = |sid: String| RoomInfo { sid, name: config.room.clone(), server_version: String::new() };
    if !service.knows_rooms() {
        return Ok(Awaited::Room(named(String::new())));
    }
    let since = clock::now();
    let mut pace = Pace::default();
    loop {
        match service.room(&config.room).await {
            Ok(Some(room)) => return Ok(Awaited::Room(named(room.sid))),
            Ok(None) => {}
            Err(error) => return Err(Reason::Egress { message: error.to_string() }),
        }
        if config.life.stop.wait.is_some_and(|wait| clock::now() >= since + wait) {
            return Ok(Awaited::Over(StopReason::NobodyCame));
        }
        tokio::select! {
            Some((order, _)) = owner.orders.recv() => obey(order, wanted),
            () = tokio::time::sleep(pace.next(None)) => {}
        }
        match wanted {
            Some(Ended::Over(reason)) => return Ok(Awaited::Over(*reason)),
            // It is as if it had never been paused.
            Some(Ended::Paused(_, Some(_))) => *wanted = None,
            Some(Ended::Paused(_, None)) | None => {}
        }
    }
}

/// A recording with its name and journal.
struct Opened {
    sinks: Sinks,
    /// What its objects' keys begin with, below the store's prefix.
    stem: String,
    began: Instant,
    wall_zero: OffsetDateTime,
    earlier: Earlier,
}

/// What an earlier process of the recording left.
#[derive(Default)]
struct Earlier {
    /// The egress that it had asked for.
    running: Option<RunningEgress>,
    /// What it told of those that had ended.
    ended: Vec<EgressEntry>,
    /// The pauses.
    life: LifeSoFar,
}

impl Opened {
    async fn anew(config: &Config, room: &RoomInfo, store: &Store, format: FileFormat) -> Result<Self, Reason> {
        let (began, wall_zero) = (clock::now(), clock::wall());
        let name = config.name.render(&NameValues {
            room_name: &room.name,
            room_id: &room.sid,
            time: wall_zero,
            recording_id: &config.recording_id,
            job_id: config.job_id.as_deref().unwrap_or(&config.recording_id),
            participant: "",
            track: "",
            ext: format.ext(),
        });
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: config.recording_id.clone(),
            room: room.name.clone(),
            pid: std::process::id(),
            wall_zero,
            boot_zero: clock::since_boot(began),
            place: Place::Store(store.to_string()),
            name,
        };
        let wanted = Reservation { spool: config.spool_dir(), started, memory: Memory::of_process() };
        let mut sinks = Sinks::reserve(wanted, Some((store.clone(), config.upload)), Forms::default()).await?;
        let stem = named(config, &mut sinks).await?;
        Ok(Self { sinks, stem, began, wall_zero, earlier: Earlier::default() })
    }

    async fn again(config: &Config, orphan: Orphan, store: &Store) -> Result<(Self, RoomInfo), Reason> {
        let (running, wall_zero) = (orphan.history().running_egress(), orphan.started().wall_zero);
        let ended = orphan.history().ended_egresses().cloned();
        let ended = ended.filter_map(|told| serde_json::from_value(told).ok()).collect();
        let earlier = Earlier { running, ended, life: life_of(&orphan) };
        let known = orphan.history().so_far.clone().and_then(|known| serde_json::from_value::<Manifest>(known).ok());
        let room = known.map(|known| known.room).unwrap_or_default();
        let ago = Duration::try_from(clock::wall() - wall_zero).unwrap_or_default();
        let began = clock::now().checked_sub(ago).unwrap_or_else(clock::now);
        let upload = Some((store.clone(), config.upload));
        let mut sinks = Sinks::go_on(orphan, Vec::new(), Memory::of_process(), upload, Forms::default()).await?;
        let stem = named(config, &mut sinks).await?;
        Ok((Self { sinks, stem, began, wall_zero, earlier }, room))
    }
}

/// The name that the store has given, as long as a store that is down may take.
async fn named(config: &Config, sinks: &mut Sinks) -> Result<String, Reason> {
    let give_up_at = clock::now() + config.upload.patience;
    let mut pace = Pace::default();
    loop {
        match sinks.stem_in_store().await {
            Ok(stem) => return Ok(stem),
            Err(reason) if clock::now() >= give_up_at => return Err(reason),
            Err(reason) => tracing::warn!(%reason, "the store is asked for a name again"),
        }
        tokio::time::sleep(pace.next(None)).await;
    }
}

/// The parts of a recording that LiveKit Egress makes: one, and another after each pause.
pub(super) struct Parts<'a> {
    pub service: &'a Service,
    pub config: &'a Config,
    pub store: &'a Store,
    pub journal: Arc<Journal>,
    /// What the keys begin with, below the store's prefix.
    pub stem: String,
    pub format: FileFormat,
    /// When the recording began…
    pub began: Instant,
    /// …and that by wall time, UTC.
    pub wall_zero: OffsetDateTime,
    /// Why LiveKit Egress stands in.
    pub because: Option<String>,
    /// The pauses of the recording in which it stands in.
    pub pauses: Vec<PauseEntry>,
}

/// Where a recording is that LiveKit Egress makes.
#[derive(Default)]
pub(super) struct SoFar {
    /// The part that runs already.
    found: Option<EgressState>,
    /// What is to end it, or to be done before there is one.
    wanted: Option<Ended>,
    /// The parts before it.
    made: Made,
    /// The key with which it goes on, below the store's prefix.
    key: Option<String>,
    /// Since when it is paused.
    paused_since: Option<MediaTime>,
}

/// What LiveKit Egress made.
#[derive(Default)]
pub(super) struct Made {
    /// With the keys of their files.
    pub parts: Vec<(String, EgressEntry)>,
    pub pauses: Vec<PauseEntry>,
    pub reasons: Vec<Reason>,
    /// Why it is over.
    pub stopped_by: Option<StopReason>,
    /// Whether something may run that recovery has to look after.
    pub may_run: bool,
}

impl Parts<'_> {
    /// Goes on where an earlier process was, if there was one. `wanted` is what was ordered since.
    async fn so_far(&self, found: Option<EgressState>, wanted: Option<Ended>, earlier: Earlier) -> SoFar {
        let Earlier { running, ended, life } = earlier;
        let mut so_far = SoFar { found, wanted, ..SoFar::default() };
        for entry in ended {
            let key = match self.stem.rsplit_once('/') {
                Some((directory, _)) => format!("{directory}/{}", entry.file),
                None => entry.file.clone(),
            };
            let (ended, fault) = (Ended::Over(StopReason::Fault), fault_in(&entry));
            self.take(Done { entry: Some(entry), ended, fault, is_settled: true }, key, &mut so_far.made).await;
        }
        so_far.key = running.and_then(|running| running.path.strip_prefix(&self.service.prefix).map(str::to_owned));
        so_far.made.pauses = life.pauses;
        if let Some(lasting) = so_far.made.pauses.pop_if(|last| last.to_sample.is_none()) {
            let now = i64::try_from(clock::now().saturating_duration_since(self.began).as_nanos()).unwrap_or(i64::MAX);
            let left = |ends_at: i64| Duration::from_nanos(u64::try_from(ends_at.saturating_sub(now)).unwrap_or(0));
            let PauseEntry { from_sample, by, reason, .. } = lasting;
            // One that runs recorded until now.
            so_far.paused_since = so_far.found.is_none().then_some(from_sample);
            let order = PauseOrder { by, reason, policy: None, resume_after: life.ends_at.map(left) };
            so_far.wanted.get_or_insert(Ended::Paused(order, None));
        }
        so_far
    }

    /// The key of the part of this number, from 1 on.
    fn key(&self, number: u32) -> String {
        match number {
            1 => format!("{}.{}", self.stem, self.format.ext()),
            number => format!("{}-{number}.{}", self.stem, self.format.ext()),
        }
    }

    /// Records until it is over.
    pub async fn record(&self, so_far: SoFar, owner: &mut Owner) -> Made {
        let SoFar { mut found, mut wanted, mut made, key, mut paused_since } = so_far;
        let mut number = key.and_then(|key| number_in(&key, &self.stem, self.format.ext())).unwrap_or(1);
        loop {
            let key = self.key(number);
            // The service overwrites what is there.
            if found.is_none() && matches!(self.store.head(&key).await, Ok(Some(_))) {
                tracing::warn!(key, "is there already, and stays");
                number = number.saturating_add(1);
                continue;
            }
            let part = Part {
                service: self.service,
                config: self.config,
                journal: self.journal.clone(),
                request: self.service.request(self.config, &key, self.format),
                began: self.began,
                wall_zero: self.wall_zero,
                because: self.because.clone(),
                pauses: self.all_pauses(&made),
            };
            let done = part.record(found.take(), wanted.take(), owner).await;
            let ended = done.ended.clone();
            if done.entry.is_some() {
                number = number.saturating_add(1);
            }
            self.take(done, key, &mut made).await;
            let over = match ended {
                Ended::Over(reason) => Some(reason),
                // Something may record all the same.
                Ended::Paused(..) if made.may_run => Some(StopReason::Fault),
                Ended::Paused(order, resumed) => {
                    part.happened(What::Paused { by: order.by.clone(), reason: order.reason.clone() }, owner);
                    let over = self.pause(order, resumed, paused_since.take(), &mut made, owner).await;
                    if let (None, Some(pause)) = (over, made.pauses.last()) {
                        part.happened(What::Resumed { by: pause.resumed_by.clone() }, owner);
                    }
                    over
                }
            };
            made.stopped_by = over;
            if over.is_some() || made.may_run {
                break;
            }
        }
        made
    }

    /// Those of the whole recording.
    fn all_pauses(&self, made: &Made) -> Vec<PauseEntry> {
        self.pauses.iter().chain(&made.pauses).cloned().collect()
    }

    /// Takes over what became of a part, and looks whether its file is where it belongs.
    async fn take(&self, done: Done, key: String, made: &mut Made) {
        made.may_run |= !done.is_settled;
        let Some(entry) = done.entry else {
            made.reasons.extend(done.fault);
            return;
        };
        if let Some(because) = self.because.as_ref().filter(|_| entry.output().is_some()) {
            let (egress_id, from_seconds) = (entry.egress_id.clone(), entry.from_seconds);
            made.reasons.push(Reason::FellBack { egress_id, from_seconds, because: because.clone() });
        }
        if done.fault.is_none() && entry.output().is_some() {
            made.reasons.extend(lack_in(self.store, &key, entry.bytes).await);
        }
        made.reasons.extend(done.fault);
        made.parts.push((key, entry));
    }

    /// Records nothing until somebody says so; gives why it is over, if it is.
    async fn pause(
        &self,
        order: PauseOrder,
        resumed: Option<String>,
        since: Option<MediaTime>,
        made: &mut Made,
        owner: &mut Owner,
    ) -> Option<StopReason> {
        let mut entry = pause_of(&order, self.began);
        entry.from_sample = since.unwrap_or(entry.from_sample);
        if resumed.is_none() {
            let lasting = self.all_pauses(made).into_iter().chain([entry.clone()]).collect();
            put_down_life(&self.journal, lasting, ends_of(&order, self.began)).await;
        }
        owner.status.send_modify(|status| status.state = State::Paused);
        tracing::info!(by = entry.by, reason = entry.reason, "paused");
        let passes = async {
            match order.resume_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(passes);
        let mut by = resumed;
        while by.is_none() {
            tokio::select! {
                Some((order, _)) = owner.orders.recv() => match order {
                    Order::Stop(reason, _) => {
                        // Whoever comes after this does not go on with it.
                        let ended = PauseEntry { to_sample: Some(sample(self.began, clock::now())), ..entry.clone() };
                        let all = self.all_pauses(made).into_iter().chain([ended]).collect();
                        put_down_life(&self.journal, all, None).await;
                        made.pauses.push(entry);
                        return Some(reason);
                    }
                    Order::Resume(who) => by = Some(who),
                    Order::Pause(_) => {}
                },
                () = &mut passes => by = Some("the time set for it".into()),
            }
        }
        entry.to_sample = Some(sample(self.began, clock::now()));
        entry.resumed_by = by.unwrap_or_default();
        tracing::info!(by = entry.resumed_by, "going on");
        made.pauses.push(entry);
        put_down_life(&self.journal, self.all_pauses(made), None).await;
        None
    }
}

/// The number of the part with this key.
fn number_in(key: &str, stem: &str, ext: &str) -> Option<u32> {
    let rest = key.strip_prefix(stem)?.strip_suffix(ext)?.strip_suffix('.')?;
    if rest.is_empty() { Some(1) } else { rest.strip_prefix('-')?.parse().ok() }
}

/// What was wrong with an egress that an earlier process saw end.
fn fault_in(entry: &EgressEntry) -> Option<Reason> {
    let message = if entry.error.is_empty() { entry.details.clone() } else { entry.error.clone() };
    match entry.status {
        EgressStatus::Failed => Some(Reason::Egress { message }),
        EgressStatus::LimitReached => Some(Reason::EgressLacks { message }),
        EgressStatus::Complete if entry.bytes == 0 => Some(Reason::Egress { message: "it tells of no file".into() }),
        EgressStatus::Complete
        | EgressStatus::Aborted
        | EgressStatus::Starting
        | EgressStatus::Active
        | EgressStatus::Ending => None,
    }
}

/// What is told of a recording that LiveKit Egress alone makes.
struct About<'a> {
    config: &'a Config,
    room: RoomInfo,
    wall_zero: OffsetDateTime,
}

impl About<'_> {
    fn manifest(&self, outcome: Outcome, stopped_by: StopReason, ended_at: OffsetDateTime, made: &Made) -> Manifest {
        let length = Duration::try_from(ended_at - self.wall_zero).unwrap_or_default();
        let samples = SampleCount::from_millis(u64::try_from(length.as_millis()).unwrap_or(0));
        Manifest {
            version: MANIFEST_VERSION,
            recording_id: self.config.recording_id.clone(),
            room: self.room.clone(),
            started_at: self.wall_zero,
            ended_at: self.wall_zero + samples.as_duration(),
            samples,
            duration_seconds: samples.as_secs_f64(),
            outcome,
            reasons: made.reasons.clone(),
            stopped_by,
            outputs: made.parts.iter().filter_map(|(_, entry)| entry.output()).collect(),
            sidecars: Vec::new(),
            loudness: None,
            speech: Vec::new(),
            pauses: made.pauses.clone(),
            egress: made.parts.iter().map(|(_, entry)| entry.clone()).collect(),
            leg_silent: Vec::new(),
            starved: Vec::new(),
            dtmf: Vec::new(),
            participants: Vec::new(),
            tracks: Vec::new(),
            media: Vec::new(),
            versions: Versions {
                callreel: env!("CARGO_PKG_VERSION").into(),
                libopus: opus::version().into(),
                livekit_server: self.room.server_version.clone(),
            },
        }
    }

    /// Writes the manifest, and tells what became of it all. What may run stays for recovery.
    async fn finish(
        self,
        mut sinks: Sinks,
        store: &Store,
        mut made: Made,
        ended_at: OffsetDateTime,
    ) -> Result<RecordingResult, Reason> {
        let was_heard = made.has_file();
        let stopped_by = made.stopped_by.unwrap_or(StopReason::Fault);
        let mut location = None;
        if !made.may_run {
            let manifest = self.manifest(judge(was_heard, &made.reasons), stopped_by, ended_at, &made);
            let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
            match sinks.store_manifest(json).await {
                Ok(written) => location = Some(written),
                Err(error) => made.reasons.push(Reason::Storage { message: error.to_string() }),
            }
        }
        made.reasons.extend(sinks.close(location.is_some(), false).await);
        let outcome = judge(was_heard, &made.reasons);
        Ok(RecordingResult {
            recording_id: self.config.recording_id.clone(),
            status: if outcome == Outcome::Failed { State::Failed } else { State::Ready },
            outcome,
            outputs: made.results(store),
            reasons: made.reasons,
            stopped_by: Some(stopped_by),
            manifest: location,
        })
    }
}

impl Made {
    /// Whether there is anything to hear.
    pub fn has_file(&self) -> bool {
        self.parts.iter().any(|(_, entry)| entry.output().is_some())
    }

    /// Its files, for the result.
    pub fn results(&self, store: &Store) -> Vec<OutputResult> {
        let result =
            |(key, entry): &(String, EgressEntry)| Some(OutputResult::new(&entry.output()?, store.location(key)));
        self.parts.iter().filter_map(result).collect()
    }
}

impl Session {
    /// Has LiveKit Egress record the rest of a call that callreel's own bot has lost for good, where that is configured: not
    /// while it is paused, not before there is consent, not where something is to be left out, and not in an encrypted call.
    /// Gives the end of both.
    pub(super) async fn stand_in(&mut self, mut end: End, owner: &mut Owner) -> End {
        let is_lost = |reason: &Reason| matches!(reason, Reason::ConnectionLost { .. });
        let Some(lost) = self.reasons.iter().find(|reason| is_lost(reason)).cloned() else { return end };
        if self.config.fallback.is_none() {
            return end;
        }
        let is_encrypted = self.roll.tracks().iter().any(|rolled| rolled.track.encryption != Encryption::None);
        let may_not = self.life.lacks_consent() || self.life.state() == State::Paused;
        if may_not || is_encrypted || !hears_all(&self.config) {
            tracing::warn!("LiveKit Egress does not stand in where something may not be kept, or is encrypted");
            return end;
        }
        tracing::warn!(reason = %lost, "LiveKit Egress records the rest");
        let made = match self.have_rest_recorded(&lost, owner).await {
            Ok(made) => made,
            Err(reason) => {
                self.reasons.push(reason);
                return end;
            }
        };
        if made.has_file() {
            self.reasons.retain(|reason| !is_lost(reason));
        }
        end.reason = made.stopped_by.unwrap_or(end.reason);
        self.reasons.extend(made.reasons.iter().cloned());
        self.stood_in = made;
        end
    }

    async fn have_rest_recorded(&mut self, lost: &Reason, owner: &mut Owner) -> Result<Made, Reason> {
        let service = Service::of(&self.config)?;
        let configured = self.config.store.as_ref();
        let configured = configured.ok_or_else(|| Reason::Egress { message: "there is no store for it".into() })?;
        let opened = Store::open(configured).await;
        let store = opened.map_err(|error| Reason::Storage { message: error.to_string() })?;
        let stem = format!("{}-egress", named(&self.config, &mut self.sinks).await?);
        let so_far = self.clock.now().since(ClockTime::ZERO);
        let parts = Parts {
            service: &service,
            config: &self.config,
            store: &store,
            journal: self.sinks.files().journal().clone(),
            stem,
            format: FileFormat::Ogg,
            began: clock::now().checked_sub(so_far).unwrap_or_else(clock::now),
            wall_zero: self.clock.wall_zero(),
            because: Some(lost.to_string()),
            pauses: self.life.pauses().to_vec(),
        };
        let made = parts.record(SoFar::default(), owner).await;
        self.stood_in_results = made.results(&store);
        Ok(made)
    }
}

/// What a file lacks that is said to be in the store.
pub(super) async fn lack_in(store: &Store, key: &str, bytes: u64) -> Option<Reason> {
    let lacks = |message: String| Some(Reason::EgressLacks { message });
    match store.head(key).await {
        Ok(Some(found)) if found.size == bytes => None,
        Ok(Some(found)) => lacks(format!("{} has {} bytes, and was to have {bytes}", store.location(key), found.size)),
        Ok(None) => lacks(format!("{} is not there", store.location(key))),
        Err(error) => {
            tracing::warn!(%error, "whether the file is in the store cannot be seen");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_its_key() {
        assert_eq!(number_in("a/call.ogg", "a/call", "ogg"), Some(1));
        assert_eq!(number_in("a/call-3.ogg", "a/call", "ogg"), Some(3));
        assert_eq!(number_in("a/call-1-2.ogg", "a/call-1", "ogg"), Some(2));
        for other in ["a/call.mp4", "a/callogg", "a/call-x.ogg", "b/call.ogg"] {
            assert_eq!(number_in(other, "a/call", "ogg"), None, "{other}");
        }
    }
}
