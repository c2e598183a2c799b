//! One egress from its start to its end, watched: what is asked of it is written down first, orders reach it, and what
//! became of it is known.

use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use crate::clock;
use crate::config::Config;
use crate::egress::{
    EgressClient, EgressError, EgressRequest, EgressState, EgressStatus, FileFormat, FileOutput, FilePlace, Pace, Room,
    Upload,
};
use crate::room::Credentials;
use crate::spool::{EgressStep, Entry, Journal};
use crate::time::{MediaTime, SampleCount};

use super::handle::{Order, Owner, State};
use super::happening::{Happening, What};
use super::life::{LifeSoFar, PauseEntry, PauseOrder, PausePolicy};
use super::manifest::EgressEntry;
use super::outcome::{Reason, StopReason};

/// How long a service that is busy or away is asked to start one.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// How long the service may take to finish and upload its file.
const ENDS_WITHIN: Duration = Duration::from_secs(600);

/// How long a server that cannot be asked any more is asked on, once nobody wants the egress any longer.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The egress service of a LiveKit server, with the store that it writes into.
pub(super) struct Service {
    /// Whom to ask.
    pub client: EgressClient,
    server: String,
    upload: Upload,
    /// What every path in the store begins with.
    pub prefix: String,
    /// Whether it may be asked for rooms.
    lists_rooms: bool,
}

impl Service {
    /// The service and store that are configured.
    ///
    /// # Errors
    /// [`Reason::Egress`] where the store cannot be translated.
    pub fn of(config: &Config) -> Result<Self, Reason> {
        let failed = |message: String| Reason::Egress { message };
        let store = config.store.as_ref().ok_or_else(|| failed("there is no store for it".into()))?;
        let (upload, prefix) = Upload::of(store).map_err(|error| failed(error.to_string()))?;
        Ok(Self {
            client: EgressClient::new(&config.url, &config.credentials),
            server: server_of(&config.url),
            upload,
            prefix,
            lists_rooms: matches!(config.credentials, Credentials::ApiKey { .. }),
        })
    }

    /// The request for a file of this key, below the store's prefix.
    pub fn request(&self, config: &Config, key: &str, format: FileFormat) -> EgressRequest {
        let path = format!("{}{key}", self.prefix);
        config.egress_request(FileOutput { format, path, upload: self.upload.clone() }, format)
    }

    /// The room; none where there is none, or it may not be asked for.
    pub async fn room(&self, name: &str) -> Result<Option<Room>, EgressError> {
        if self.lists_rooms { self.client.room(name).await } else { Ok(None) }
    }

    /// Whether rooms that do not exist can be told from those it must not ask for.
    pub fn knows_rooms(&self) -> bool {
        self.lists_rooms
    }
}

/// A server, however its address is written.
pub(super) fn server_of(url: &str) -> String {
    let url = url.trim_end_matches('/');
    match url.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        _ => url.to_owned(),
    }
}

/// An egress to be watched.
pub(super) struct Part<'a> {
    pub service: &'a Service,
    pub config: &'a Config,
    pub journal: Arc<Journal>,
    pub request: EgressRequest,
    /// When the recording began.
    pub began: Instant,
    /// The same by wall time, UTC.
    pub wall_zero: OffsetDateTime,
    /// Why it stands in.
    pub because: Option<String>,
    /// The pauses before it.
    pub pauses: Vec<PauseEntry>,
}

/// What ended a part.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ended {
    /// The recording is over.
    Over(StopReason),
    /// It is paused; and gone on with, if somebody said so by now.
    Paused(PauseOrder, Option<String>),
}

/// What became of a part.
pub(super) struct Done {
    /// For the manifest; none where there never was one.
    pub entry: Option<EgressEntry>,
    /// What ended it.
    pub ended: Ended,
    /// What went wrong.
    pub fault: Option<Reason>,
    /// Whether nothing of it runs any more, as far as anybody knows.
    pub is_settled: bool,
}

impl Part<'_> {
    /// Has it record, and watches until it has ended. `found` is one that runs already, `wanted` what is to end it at once.
    pub async fn record(&self, found: Option<EgressState>, mut wanted: Option<Ended>, owner: &mut Owner) -> Done {
        let mut lost = None;
        let begun = match found {
            Some(state) => Ok(Some(state)),
            None => {
                while let Ok((order, _)) = owner.orders.try_recv() {
                    self.obey(order, &mut wanted).await;
                }
                if let Some(ended) = wanted {
                    return Done { entry: None, ended, fault: None, is_settled: true };
                }
                self.begin(owner, &mut wanted, &mut lost).await
            }
        };
        if let Ok(Some(state)) = begun {
            self.note(EgressStep::Started { egress_id: state.id.clone() }).await;
            tracing::info!(egress = %state.id, path = ?state.path, "LiveKit Egress records");
            return self.follow(state, wanted, lost.is_some(), owner).await;
        }
        let is_settled = lost.is_none();
        if is_settled {
            self.note(EgressStep::Ended { told: None }).await;
        }
        let ended = wanted.unwrap_or(Ended::Over(StopReason::Fault));
        let fault = begun.err().or(lost).map(|error| Reason::Egress { message: error.to_string() });
        Done { entry: None, ended, fault, is_settled }
    }

    /// Starts one; none where nobody wants it any more before there is one. `lost` is the answer that never came: one may run
    /// of which nobody knows.
    async fn begin(
        &self,
        owner: &mut Owner,
        wanted: &mut Option<Ended>,
        lost: &mut Option<EgressError>,
    ) -> Result<Option<EgressState>, EgressError> {
        let room = self.config.room.clone();
        let FilePlace { path, store } = self.place();
        self.note(EgressStep::Intended { server: self.service.server.clone(), room, path, store }).await;
        let since = clock::wall();
        let give_up_at = clock::now() + START_PATIENCE;
        let mut pace = Pace::default();
        loop {
            // Not given up half-way: who asks has to know what became of it.
            let error = match self.service.client.start_once(&self.request).await {
                Ok(state) => return Ok(Some(state)),
                Err(error) => error,
            };
            if error.may_have_started() {
                *lost = Some(error.clone());
            }
            let is_worth_it = error.is_retryable() && !matches!(error, EgressError::Unintelligible(_));
            if is_worth_it && clock::now() < give_up_at {
                tracing::warn!(%error, "LiveKit Egress is asked again");
                tokio::select! {
                    Some((order, _)) = owner.orders.recv() => self.obey(order, wanted).await,
                    () = tokio::time::sleep(pace.next(None)) => {}
                }
                if wanted.is_none() {
                    continue;
                }
            }
            if lost.is_some()
                && let Ok(Some(late)) = self.service.client.find(Some(&self.config.room), &self.place(), since).await
            {
                return Ok(Some(late));
            }
            return if wanted.is_some() { Ok(None) } else { Err(error) };
        }
    }

    /// Its file.
    fn place(&self) -> FilePlace {
        self.request.place().unwrap_or(FilePlace { path: String::new(), store: None })
    }

    /// Takes an order. Another process has to know of a pause before anything is done about it.
    async fn obey(&self, order: Order, wanted: &mut Option<Ended>) {
        let is_paused = |wanted: &Option<Ended>| matches!(wanted, Some(Ended::Paused(_, None)));
        let was_paused = is_paused(wanted);
        obey(order, wanted);
        if is_paused(wanted) == was_paused {
            return;
        }
        let mut pauses = self.pauses.clone();
        let mut ends_at = None;
        if let Some(Ended::Paused(order, None)) = wanted {
            pauses.push(pause_of(order, self.began));
            ends_at = ends_of(order, self.began);
        }
        put_down_life(&self.journal, pauses, ends_at).await;
    }

    /// Whether no other one runs for its file any more.
    async fn is_alone(&self, id: &str) -> bool {
        let stopped = self.service.client.stop_twins(Some(&self.config.room), &self.place(), Some(id)).await;
        stopped.inspect_err(|error| tracing::warn!(%error, "whether a second egress runs cannot be seen")).is_ok()
    }

    /// Watches one that was started until it has ended. `has_twin` says whether a second may run, as an answer was lost.
    async fn follow(
        &self,
        mut state: EgressState,
        mut wanted: Option<Ended>,
        has_twin: bool,
        owner: &mut Owner,
    ) -> Done {
        let (mut pace, mut presence) = (Pace::default(), Presence::default());
        let (mut wanted_since, mut ending_since) = (None, None);
        let (mut is_in_touch, mut missed) = (true, 0);
        loop {
            self.tell(&state, &presence, wanted.as_ref(), owner);
            if state.status.is_over() {
                let is_settled = !has_twin || self.is_alone(&state.id).await;
                return self.done(state, wanted, &presence, None, is_settled).await;
            }
            let now = clock::now();
            if wanted.is_some() && state.status < EgressStatus::Ending {
                let since = *wanted_since.get_or_insert(now);
                match self.service.client.stop(&state.id).await {
                    Ok(told) => {
                        missed = 0;
                        if state.learn(told) {
                            continue;
                        }
                    }
                    Err(EgressError::NotFound(why)) if missed > 0 => {
                        return self.gone(state, wanted, &presence, &why, has_twin).await;
                    }
                    Err(EgressError::NotFound(_)) => {}
                    Err(error) if clock::now() > since + STOP_PATIENCE => {
                        let message = format!("it cannot be stopped: {error}");
                        return self.done(state, wanted, &presence, Some(Reason::Egress { message }), false).await;
                    }
                    Err(error) => tracing::warn!(egress = %state.id, %error, "it is told to stop again"),
                }
            }
            if state.status == EgressStatus::Ending && now > *ending_since.get_or_insert(now) + ENDS_WITHIN {
                let message = "it does not get done with its file".to_owned();
                let is_settled = !has_twin || self.is_alone(&state.id).await;
                return self.done(state, wanted, &presence, Some(Reason::Egress { message }), is_settled).await;
            }
            let wait = pace.next(Some(state.status));
            let polled = async {
                tokio::time::sleep(wait).await;
                tokio::join!(self.service.client.get(&state.id), self.service.room(&self.config.room))
            };
            let (told, room) = tokio::select! {
                biased;
                Some((order, _)) = owner.orders.recv() => {
                    self.obey(order, &mut wanted).await;
                    continue;
                }
                polled = polled => polled,
            };
            match told {
                Ok(told) => {
                    state.learn(told);
                    (is_in_touch, missed) = (true, 0);
                }
                // Once may be a list that was not whole.
                Err(EgressError::NotFound(_)) if missed == 0 => missed = 1,
                Err(EgressError::NotFound(_)) => match self.service.client.stop(&state.id).await {
                    Ok(told) => {
                        state.learn(told);
                        missed = 0;
                    }
                    Err(EgressError::NotFound(why)) => {
                        return self.gone(state, wanted, &presence, &why, has_twin).await;
                    }
                    Err(error) => {
                        tracing::warn!(egress = %state.id, %error, "it is in no list, and told to stop again")
                    }
                },
                Err(error) if is_in_touch => {
                    tracing::warn!(egress = %state.id, %error, "it cannot be asked how it stands");
                    is_in_touch = false;
                }
                Err(_) => {}
            }
            if has_twin && state.status < EgressStatus::Ending {
                self.is_alone(&state.id).await;
            }
            let now = clock::now();
            if let (Ok(room), true) = (room, self.service.lists_rooms) {
                presence.see(room.as_ref(), now);
            }
            if wanted.is_none() {
                wanted = self.due(&presence, now).map(Ended::Over);
            }
        }
    }

    /// Why it is over by now, if it is.
    fn due(&self, presence: &Presence, now: Instant) -> Option<StopReason> {
        let stop = &self.config.life.stop;
        let passed = |since: Instant, limit: Option<Duration>| limit.is_some_and(|limit| now >= since + limit);
        if passed(self.began, stop.max_duration) {
            return Some(StopReason::MaxDuration);
        }
        if presence.alone_since.is_some_and(|since| passed(since, Some(stop.departure_timeout))) {
            return Some(StopReason::Departed);
        }
        (!presence.came && self.service.lists_rooms && passed(self.began, stop.wait)).then_some(StopReason::NobodyCame)
    }

    fn tell(&self, state: &EgressState, presence: &Presence, wanted: Option<&Ended>, owner: &Owner) {
        let stands = match (wanted, state.status) {
            (Some(Ended::Over(_)), _) | (None, EgressStatus::Ending) => State::Stopping,
            (_, EgressStatus::Starting) => State::Starting,
            _ => State::Active,
        };
        let elapsed = clock::now().saturating_duration_since(self.began);
        let before = owner.status.borrow().state;
        if before != stands && matches!(stands, State::Active | State::Stopping) {
            let what = match (wanted, stands) {
                (Some(Ended::Over(reason)), State::Stopping) => What::Stopping { reason: *reason },
                (_, State::Stopping) => What::Stopping { reason: StopReason::RoomClosed },
                _ => What::Started,
            };
            self.happened(what, owner);
        }
        owner.status.send_if_modified(|status| {
            let news = status.state != stands
                || status.participants != presence.count
                || status.elapsed.as_secs() != elapsed.as_secs();
            (status.state, status.participants, status.elapsed) = (stands, presence.count, elapsed);
            news
        });
    }

    /// Tells what happened, to whoever listens.
    pub fn happened(&self, what: What, owner: &Owner) {
        let sample = sample(self.began, clock::now());
        let recording_id = self.config.recording_id.clone();
        // Nobody has to.
        let _ = owner.happenings.send(Happening { recording_id, sample, what });
    }

    async fn gone(
        &self,
        state: EgressState,
        wanted: Option<Ended>,
        presence: &Presence,
        why: &str,
        has_twin: bool,
    ) -> Done {
        let fault = Reason::Egress { message: format!("the server does not know it any more: {why}") };
        let is_settled = !has_twin || self.is_alone(&state.id).await;
        self.done(state, wanted, presence, Some(fault), is_settled).await
    }

    async fn done(
        &self,
        state: EgressState,
        wanted: Option<Ended>,
        presence: &Presence,
        fault: Option<Reason>,
        is_settled: bool,
    ) -> Done {
        // Who may not ask for rooms does not know whether anybody came.
        let was_wanted = wanted.is_some() || !presence.came && self.service.lists_rooms;
        let fault = fault.or_else(|| fault_of(&state, was_wanted));
        let entry = self.entry(&state);
        tracing::info!(egress = %state.id, status = ?state.status, bytes = entry.bytes, "LiveKit Egress has ended");
        if is_settled {
            let told = serde_json::to_value(&entry).expect("plain data becomes JSON");
            self.note(EgressStep::Ended { told: Some(told) }).await;
        }
        let by_itself = match state.status {
            EgressStatus::Complete => StopReason::RoomClosed,
            EgressStatus::LimitReached => StopReason::MaxDuration,
            EgressStatus::Starting
            | EgressStatus::Active
            | EgressStatus::Ending
            | EgressStatus::Aborted
            | EgressStatus::Failed => StopReason::Fault,
        };
        let ended = wanted.unwrap_or(Ended::Over(by_itself));
        Done { entry: Some(entry), ended, fault, is_settled }
    }

    /// What the manifest says of it.
    pub fn entry(&self, state: &EgressState) -> EgressEntry {
        let layout = self.config.picture.as_ref().and_then(|picture| picture.layout.clone());
        let format = match &self.request.to {
            crate::egress::Destination::File(file) => file.format,
            crate::egress::Destination::WebSocket(_) => FileFormat::Ogg,
        };
        EgressEntry {
            layout: layout.filter(|_| format.holds_video()),
            ..entry_of(state, self.wall_zero, self.because.clone())
        }
    }

    /// Writes a step down, and waits until another process would find it.
    async fn note(&self, step: EgressStep) {
        self.journal.append(&Entry::Egress(step));
        self.journal.commit().await;
    }
}

/// The pause that begins with `order` now, in a recording that `began` then.
pub(super) fn pause_of(order: &PauseOrder, began: Instant) -> PauseEntry {
    PauseEntry {
        from_sample: sample(began, clock::now()),
        to_sample: None,
        policy: PausePolicy::Skip,
        removed: None,
        by: order.by.clone(),
        reason: order.reason.clone(),
        resumed_by: String::new(),
    }
}

/// When a pause that begins now ends by itself, in nanoseconds after the recording `began`.
pub(super) fn ends_of(order: &PauseOrder, began: Instant) -> Option<i64> {
    let passed = clock::now().saturating_duration_since(began);
    i64::try_from((passed + order.resume_after?).as_nanos()).ok()
}

/// Writes down which pauses there were, and waits until another process would know.
pub(super) async fn put_down_life(journal: &Journal, pauses: Vec<PauseEntry>, ends_at: Option<i64>) {
    let life = LifeSoFar { lacks_consent: false, came: true, pauses, ends_at, pause_then: None };
    let life = serde_json::to_value(life).expect("plain data becomes JSON");
    journal.append(&Entry::Life { life });
    journal.commit().await;
}

/// A moment on the recording's timeline.
pub(super) fn sample(began: Instant, now: Instant) -> MediaTime {
    let passed = now.saturating_duration_since(began).as_millis();
    MediaTime::ZERO + SampleCount::from_millis(u64::try_from(passed).unwrap_or(0))
}

/// What the manifest says of an egress.
pub(super) fn entry_of(state: &EgressState, wall_zero: OffsetDateTime, because: Option<String>) -> EgressEntry {
    let file = state.files.first();
    let name = file.map(|file| file.name.as_str()).or(state.path.as_deref()).unwrap_or_default();
    let started_at = file.and_then(|file| file.started_at).or(state.started_at);
    EgressEntry {
        egress_id: state.id.clone(),
        status: state.status,
        from_seconds: started_at.map_or(0.0, |at| (at - wall_zero).as_seconds_f64().max(0.0)),
        started_at,
        ended_at: state.ended_at,
        because,
        layout: None,
        file: name.rsplit('/').next().unwrap_or(name).to_owned(),
        format: name.rsplit_once('.').map_or("", |(_, ext)| ext).to_owned(),
        duration_seconds: file.map_or(0.0, |file| file.duration.as_secs_f64()),
        bytes: file.map_or(0, |file| file.bytes),
        error: state.error.clone(),
        details: state.details.clone(),
    }
}

/// What is wrong with an egress that has ended. One that was not wanted any more, or had nobody to record, may end before it
/// had begun.
fn fault_of(state: &EgressState, was_wanted: bool) -> Option<Reason> {
    let said = || if state.error.is_empty() { state.details.clone() } else { state.error.clone() };
    let file = state.files.first().filter(|file| file.bytes > 0);
    match (state.status, file) {
        (EgressStatus::Failed, _) => Some(Reason::Egress { message: said() }),
        (EgressStatus::Aborted, _) if was_wanted => None,
        (EgressStatus::Aborted, _) => Some(Reason::Egress { message: said() }),
        (_, None) => Some(Reason::Egress { message: format!("it tells of no file: {}", said()) }),
        (_, Some(file)) if state.in_backup_store => {
            let message = format!("its file is in the service's backup store: {}", file.location);
            Some(Reason::EgressLacks { message })
        }
        (EgressStatus::LimitReached, Some(_)) => Some(Reason::EgressLacks { message: said() }),
        (_, Some(_)) => None,
    }
}

/// Takes an order. The first that ends it counts.
pub(super) fn obey(order: Order, wanted: &mut Option<Ended>) {
    match (order, &mut *wanted) {
        (Order::Stop(reason, _), None | Some(Ended::Paused(..))) => *wanted = Some(Ended::Over(reason)),
        (Order::Pause(order), None) => *wanted = Some(Ended::Paused(order, None)),
        (Order::Resume(by), Some(Ended::Paused(_, resumed))) => *resumed = Some(by),
        (Order::Pause(_), Some(Ended::Paused(_, resumed))) => *resumed = None,
        (Order::Stop(..) | Order::Pause(_) | Order::Resume(_), _) => {}
    }
}

/// Who is in the room, as far as the server counts them.
#[derive(Debug, Default)]
struct Presence {
    count: usize,
    came: bool,
    alone_since: Option<Instant>,
}

impl Presence {
    fn see(&mut self, room: Option<&Room>, now: Instant) {
        self.count = room.map_or(0, |room| room.participants);
        if self.count > 0 {
            (self.came, self.alone_since) = (true, None);
        } else if self.came {
            self.alone_since.get_or_insert(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(status: EgressStatus, bytes: u64) -> EgressState {
        let file = crate::egress::EgressFile {
            name: "a/b.mp4".into(),
            location: "https://backup/b.mp4".into(),
            bytes,
            duration: Duration::from_secs(2),
            started_at: None,
        };
        EgressState {
            id: "EG_1".into(),
            room_name: "r".into(),
            room_id: "RM_1".into(),
            status,
            path: Some("a/b.mp4".into()),
            store: None,
            started_at: OffsetDateTime::from_unix_timestamp(105).ok(),
            ended_at: None,
            updated_at: None,
            error: "why".into(),
            error_code: 0,
            details: String::new(),
            files: vec![file],
            in_backup_store: false,
        }
    }

    #[test]
    fn each_end_says_what_is_missing() {
        let lacks = Reason::EgressLacks { message: "why".into() };
        let nothing = Reason::Egress { message: "why".into() };
        assert_eq!(fault_of(&state(EgressStatus::Complete, 1), false), None);
        assert!(matches!(fault_of(&state(EgressStatus::Complete, 0), true), Some(Reason::Egress { .. })));
        assert_eq!(fault_of(&state(EgressStatus::LimitReached, 1), false), Some(lacks));
        assert_eq!(fault_of(&state(EgressStatus::Failed, 1), true), Some(nothing.clone()));
        assert_eq!(fault_of(&state(EgressStatus::Aborted, 0), false), Some(nothing));
        assert_eq!(fault_of(&state(EgressStatus::Aborted, 0), true), None);
        let elsewhere = EgressState { in_backup_store: true, ..state(EgressStatus::Complete, 1) };
        let Some(Reason::EgressLacks { message }) = fault_of(&elsewhere, true) else { panic!("it is elsewhere") };
        assert!(message.contains("https://backup/b.mp4"));
    }

    #[test]
    fn an_egress_is_told_of_on_the_recordings_timeline() {
        let zero = OffsetDateTime::from_unix_timestamp(100).unwrap();
        let entry = entry_of(&state(EgressStatus::Complete, 7), zero, None);
        assert_eq!((entry.from_seconds, entry.file.as_str(), entry.format.as_str()), (5.0, "b.mp4", "mp4"));
        let output = entry.output().unwrap();
        assert_eq!((output.bytes, output.duration_seconds, output.sha256.as_str()), (7, 2.0, ""));
        assert!(EgressEntry { status: EgressStatus::Failed, ..entry }.output().is_none());
    }

    #[test]
    fn the_first_order_that_ends_it_counts() {
        let mut wanted = None;
        obey(Order::Pause(PauseOrder::default()), &mut wanted);
        obey(Order::Resume("a".into()), &mut wanted);
        assert_eq!(wanted, Some(Ended::Paused(PauseOrder::default(), Some("a".into()))));
        obey(Order::Pause(PauseOrder::default()), &mut wanted);
        assert_eq!(wanted, Some(Ended::Paused(PauseOrder::default(), None)));
        obey(Order::Stop(StopReason::Signal, None), &mut wanted);
        obey(Order::Stop(StopReason::Requested, None), &mut wanted);
        assert_eq!(wanted, Some(Ended::Over(StopReason::Signal)));
    }

    #[test]
    fn servers_are_the_same_however_they_are_written() {
        assert_eq!(server_of("wss://a.example/"), server_of("https://a.example"));
        assert_ne!(server_of("ws://a.example"), server_of("https://a.example"));
    }
}
