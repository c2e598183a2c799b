//! The loop of one call: room events, orders and time in; status, files and a result out.

use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tracing::{Instrument, Span, debug_span};

use crate::call::TrackKey;
use crate::clock::{self, RecordingClock};
use crate::config::Config;
use crate::room::{DataMessage, Room, RoomEvent, RoomEvents, RoomInfo};
use crate::store::Store;
use crate::time::{ClockTime, MediaTime};
use crate::traces;

use super::bring::stop_left_egress;
use super::by_egress::{self, Made};
use super::dtmf::DtmfEntry;
use super::handle::{Order, OutputResult, Owner, RecordingResult, State, Status};
use super::happening::{Happening, What};
use super::join::{join, prepare};
use super::life::{LegSilence, Life, Step, Watch};
use super::manifest::{Manifest, StarvedEntry, TrackEntry};
use super::outcome::{Outcome, Reason, StopReason};
use super::pipeline::Pipeline;
use super::roll::Roll;
use super::sides::Sides;
use super::sinks::Sinks;
use super::start::Start;

/// How often settled audio is fetched, mixed and written. A recorder is in no hurry, and fewer wake-ups cost less.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// How long retransmissions under way are waited for once the recording is told to stop: a few round trips.
const STOP_WAIT: Duration = Duration::from_millis(300);

/// How long the first and the longest wait are before a room that the server closed is joined again.
const REJOIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Records one call, and leaves its result with its owner.
pub(super) async fn run(config: Config, mut owner: Owner, trace: Span) {
    let result = async {
        if config.uses_egress() {
            by_egress::run(&config, &mut owner, None).await
        } else {
            by_bot(&config, &mut owner).await
        }
    };
    let result = result.instrument(trace.clone()).await;
    // Before anybody who waits for the result can end the process.
    traces::ended(trace, result.outcome);
    let (recording_id, outcome) = (result.recording_id.clone(), result.outcome);
    publish(&owner.status, result);
    let sample = MediaTime::ZERO;
    // Nobody has to listen.
    let _ = owner.happenings.send(Happening { recording_id, sample, what: What::Finished { outcome } });
}

async fn by_bot(config: &Config, owner: &mut Owner) -> RecordingResult {
    match enter(config, owner).instrument(debug_span!(target: traces::TARGET, "join")).await {
        Ok(Entered::Recording(session)) => session.record(owner).await,
        Ok(Entered::NotAnyMore(reason)) => RecordingResult::empty(&config.recording_id, reason),
        // What is paused is not for others to record.
        Ok(Entered::Refused(reason @ Reason::Join { .. }, false)) if by_egress::may_stand_in(config) => {
            by_egress::run(config, owner, Some(reason)).await
        }
        Ok(Entered::Refused(reason, _)) | Err(reason) => RecordingResult::failed(&config.recording_id, reason),
    }
}

/// Ends a recording that never got as far as a result of its own.
pub(super) fn failed(status: &watch::Sender<Status>, recording_id: &str, reason: Reason) {
    publish(status, RecordingResult::failed(recording_id, reason));
}

fn publish(status: &watch::Sender<Status>, result: RecordingResult) {
    match result.outcome {
        Outcome::Complete | Outcome::Empty => tracing::info!(outcome = %result.outcome, "recording stopped"),
        Outcome::Degraded | Outcome::Blocked => {
            tracing::warn!(reasons = ?result.reasons, "recording stopped; it lacks something");
        }
        Outcome::Failed => tracing::error!(reasons = ?result.reasons, "recording failed"),
    }
    status.send_modify(|status| {
        status.state = result.status;
        status.reasons.clone_from(&result.reasons);
        status.result = Some(result);
    });
}

enum Entered {
    Recording(Box<Session>),
    NotAnyMore(StopReason),
    /// There can be no recording; and whether it would have begun with a pause.
    Refused(Reason, bool),
}

async fn enter(config: &Config, owner: &mut Owner) -> Result<Entered, Reason> {
    let store = prepare(config).await?;
    let joined = async { tokio::join!(stop_left_egress(config), join(config, TrackKey(0))).1 };
    tokio::pin!(joined);
    // What is wanted before there is a recording is wanted from its beginning.
    let mut early = Vec::new();
    let (room, events) = loop {
        tokio::select! {
            joined = &mut joined => match joined {
                Ok(joined) => break joined,
                Err(reason) => {
                    let is_paused = early.iter().fold(false, |_, (order, _)| matches!(order, Order::Pause(_)));
                    return Ok(Entered::Refused(reason, is_paused));
                }
            },
            Some((order, at)) = owner.orders.recv() => match order {
                Order::Stop(reason, _) => return Ok(Entered::NotAnyMore(reason)),
                order => early.push((order, at)),
            },
        }
    };
    let mut session = Session::begin(config.clone(), room, events, store, owner.happenings.clone()).await?;
    for (order, at) in early {
        session.obey(order, session.clock.at(at));
    }
    Ok(Entered::Recording(Box::new(session)))
}

/// A recording that goes on.
pub(super) struct Session {
    pub(super) config: Config,
    pub(super) room: Option<Room>,
    events: RoomEvents,
    pub(super) room_info: RoomInfo,
    pub(super) clock: RecordingClock,
    pub(super) life: Life,
    pub(super) watch: Watch,
    pub(super) roll: Roll,
    pub(super) pipeline: Pipeline,
    pub(super) sides: Sides,
    pub(super) sinks: Sinks,
    pub(super) reasons: Vec<Reason>,
    pub(super) heard: bool,
    /// Where this process began to record: sample 0, or where it went on with what another had begun…
    pub(super) begins: MediaTime,
    /// …with these tracks.
    pub(super) tracks_before: Vec<TrackEntry>,
    pub(super) leg_silent: Vec<LegSilence>,
    pub(super) starved: Vec<StarvedEntry>,
    pub(super) dtmf: Vec<DtmfEntry>,
    /// What LiveKit Egress recorded when the bot had lost the call.
    pub(super) stood_in: Made,
    pub(super) stood_in_results: Vec<OutputResult>,
    /// When what is known is put down next, and when at the earliest.
    pub(super) ledger_due: ClockTime,
    pub(super) ledger_rests_until: ClockTime,
    happenings: broadcast::Sender<Happening>,
    /// Whether anything was kept yet.
    started: bool,
    /// Whether somebody had come when the life was put down last.
    came: bool,
    /// Ends once another process would know where the recording is in its life.
    settling: Option<Settling>,
    /// Messages of people nobody has told of yet, the newest first.
    pub(super) unknown: Vec<(String, DataMessage, ClockTime)>,
    pub(super) looked: ClockTime,
}

type Settling = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the loop ended with.
pub(super) struct End {
    pub(super) reason: StopReason,
    pub(super) at: ClockTime,
    pub(super) room_is_gone: bool,
}

impl End {
    /// An end that nobody has decided on yet.
    pub(super) fn so_far(at: ClockTime) -> Self {
        Self { reason: StopReason::Fault, at, room_is_gone: false }
    }
}

impl Session {
    async fn begin(
        config: Config,
        room: Room,
        mut events: RoomEvents,
        store: Option<Store>,
        happenings: broadcast::Sender<Happening>,
    ) -> Result<Self, Reason> {
        let Some(RoomEvent::Joined { room: room_info, at, .. }) = events.recv().await else {
            return Err(Reason::Join { message: "the room engine ended before it had joined".into() });
        };
        let Start { clock, pipeline, sinks, before, pause } = Start::of(&config, &room_info, at, store).await?;
        tracing::info!(room_sid = %room_info.sid, manifest = %sinks.files().manifest_path().display(), "recording started");
        let mut sides = Sides::new(config.sides.clone());
        let (roll, reasons, begins, heard) = match &before {
            Some(before) => {
                before.speakers.iter().for_each(|speaker| sides.keep(&speaker.identity, speaker.side));
                let Manifest { participants, media, .. } = before.manifest.clone();
                (Roll::going_on(participants, media, before.now), before.reasons.clone(), before.now, before.heard)
            }
            None => (Roll::default(), Vec::new(), MediaTime::ZERO, false),
        };
        let at = clock.at(at).max(ClockTime::ZERO);
        let so_far = before.as_ref().map(|before| before.life.clone());
        let (tracks_before, leg_silent, starved, dtmf) = match before.map(|before| before.manifest) {
            Some(before) => (before.tracks, before.leg_silent, before.starved, before.dtmf),
            None => Default::default(),
        };
        let mut session = Self {
            life: Life::new(config.life.clone(), at, so_far),
            watch: Watch::new(config.leg_silent_after),
            sides,
            config,
            room: Some(room),
            events,
            room_info,
            looked: at,
            clock,
            roll,
            pipeline,
            sinks,
            reasons,
            heard,
            begins,
            tracks_before,
            leg_silent,
            starved,
            dtmf,
            stood_in: Made::default(),
            stood_in_results: Vec::new(),
            ledger_due: ClockTime::ZERO,
            ledger_rests_until: ClockTime::ZERO,
            happenings,
            started: false,
            came: false,
            settling: None,
            unknown: Vec::new(),
        };
        if let Some(order) = pause {
            session.life.pause(order, at);
        }
        // The first file is made when it is known what for, and nothing is kept before it is known that it may be.
        session.take_steps();
        session.put_down_life();
        session.put_down(at);
        session.sinks.open(session.pipeline.outputs());
        Ok(session)
    }

    async fn record(mut self, owner: &mut Owner) -> RecordingResult {
        self.tell_state(&owner.status);
        let mut pause = REJOIN.0;
        let end = loop {
            let entered = self.clock.now();
            let end = self.run_until_over(owner).await;
            if !(end.reason == StopReason::RoomClosed && self.life.waits()) {
                break end;
            }
            if entered + REJOIN.1 < end.at {
                pause = REJOIN.0;
            }
            tracing::info!(?pause, "the server closed the empty room; nobody has come yet, so it is joined again");
            if let Some(end) = self.enter_again(owner, pause).await {
                break end;
            }
            pause = (2 * pause).min(REJOIN.1);
        };
        let end = self.stand_in(end, owner).await;
        owner.status.send_modify(|status| status.state = State::Stopping);
        tracing::info!(reason = ?end.reason, "stopping");
        self.tell(end.at, What::Stopping { reason: end.reason });
        if !end.room_is_gone {
            self.await_retransmissions(end.at).await;
            if let Some(room) = self.room.take() {
                room.close().await;
            }
            // What had come by then and was not fetched yet.
            while let Some(event) = self.events.try_recv() {
                self.take_late(event);
            }
        }
        let spur = self.sinks.spur();
        let finishing = self.finish(&end).instrument(debug_span!(target: traces::TARGET, "finish"));
        tokio::pin!(finishing);
        loop {
            tokio::select! {
                result = &mut finishing => return result,
                Some((order, _)) = owner.orders.recv() => {
                    if let (Order::Stop(_, Some(within)), Some(spur)) = (order, &spur) {
                        spur.hurry(within);
                    }
                }
            }
        }
    }

    async fn run_until_over(&mut self, owner: &mut Owner) -> End {
        let mut beat = clock::beat(clock::now(), TICK);
        loop {
            tokio::select! {
                // An order counts from when it was given: nothing may be settled before it is known.
                biased;
                Some((order, at)) = owner.orders.recv() => {
                    self.obey(order, self.clock.at(at));
                    if let Some(end) = self.take_steps() {
                        return end;
                    }
                }
                () = settled(&mut self.settling) => {
                    self.settling = None;
                    self.tell_state(&owner.status);
                }
                () = self.sinks.news() => {
                    owner.status.send_modify(|status| status.disk_fault = self.sinks.in_memory().map(Into::into));
                    if self.sinks.all_broken(self.pipeline.outputs()) {
                        return End::so_far(self.clock.now());
                    }
                }
                () = self.events.word() => {
                    if let Some(end) = self.take_all() {
                        return end;
                    }
                }
                () = tokio::time::sleep_until(beat.into()) => {
                    beat = clock::beat(clock::now(), TICK);
                    let heard = self.clock.at(self.events.heard());
                    if let Some(end) = self.take_all() {
                        return end;
                    }
                    let now = self.clock.now();
                    self.note_starvation(now);
                    self.life.end_pause_in_time(now.min(heard));
                    if let Some(end) = self.take_steps() {
                        return end;
                    }
                    self.advance(now, heard, &owner.status);
                    self.mind_legs(now, &owner.status);
                    if self.sinks.all_broken(self.pipeline.outputs()) {
                        return End::so_far(now);
                    }
                    if let Some(end) = self.take_steps() {
                        return end;
                    }
                }
            }
        }
    }

    /// Does what its owner wants.
    fn obey(&mut self, order: Order, at: ClockTime) {
        // Before this process recorded there is nothing to pause.
        let at = at.max(self.begins.into());
        match order {
            Order::Stop(reason, within) => {
                if let (Some(within), Some(spur)) = (within, self.sinks.spur()) {
                    spur.hurry(within);
                }
                self.life.stop(reason, at);
            }
            Order::Pause(order) => self.life.pause(order, at),
            Order::Resume(by) => self.life.resume(&by, at),
        }
    }

    /// Does what the recording's life asks for; gives the end if that was among it.
    fn take_steps(&mut self) -> Option<End> {
        let mut changed = false;
        while let Some(step) = self.life.next_step() {
            match step {
                Step::Withhold { pause, from, policy } => {
                    let removed = self.pipeline.withhold(from, policy);
                    self.life.removed(pause, removed.map(|from| (from, None)));
                    changed = true;
                    if let Some(pause) = self.life.pauses().get(pause).filter(|_| !self.life.lacks_consent()).cloned() {
                        tracing::info!(by = pause.by, reason = pause.reason, "paused");
                        self.tell(from.into(), What::Paused { by: pause.by, reason: pause.reason });
                    }
                }
                Step::Keep { pause, from } => {
                    let removed = self.pipeline.keep(from);
                    self.life.removed(pause, removed.map(|(from, to)| (from, Some(to))));
                    changed = true;
                    let by = self.life.pauses().get(pause);
                    let by = by.map(|pause| pause.resumed_by.clone()).unwrap_or_default();
                    if self.started {
                        tracing::info!(by, "going on");
                        self.tell(from.into(), What::Resumed { by });
                    } else {
                        tracing::info!(by, "consent was given");
                    }
                }
                Step::Stop { reason, at } => return Some(End { reason, at, room_is_gone: false }),
            }
        }
        if changed {
            self.put_down_life();
        }
        None
    }

    /// Puts down where the recording is in its life; the status says so when that is done.
    fn put_down_life(&mut self) {
        self.came = !self.life.waits();
        let life = serde_json::to_value(self.life.so_far()).expect("plain data becomes JSON");
        self.settling = Some(Box::pin(self.sinks.put_down_life(life)));
        // Whoever has the manifest so far and not the journal has to know it, too.
        (self.ledger_due, self.ledger_rests_until) = (ClockTime::ZERO, ClockTime::ZERO);
    }

    /// Tells the state that another process would find, too.
    fn tell_state(&mut self, status: &watch::Sender<Status>) {
        let state = self.life.state();
        if !self.started && !self.life.lacks_consent() {
            self.started = true;
            let from = self.life.pauses().first().and_then(|first| first.to_sample).unwrap_or(self.begins);
            self.tell(from.into(), What::Started);
        }
        status.send_if_modified(|status| std::mem::replace(&mut status.state, state) != state);
    }

    pub(super) fn tell(&self, at: ClockTime, what: What) {
        let happening = Happening { recording_id: self.config.recording_id.clone(), sample: at.into(), what };
        // Nobody has to listen.
        let _ = self.happenings.send(happening);
    }

    /// Takes the events that wait; gives the end if that was among them.
    fn take_all(&mut self) -> Option<End> {
        while let Some(event) = self.events.try_recv() {
            if let Some(end) = self.take(event) {
                return Some(end);
            }
        }
        if self.events.is_over() {
            self.reasons.push(Reason::Internal { message: "the room engine ended without a word".into() });
            return Some(End { reason: StopReason::Fault, at: self.clock.now(), room_is_gone: true });
        }
        if self.came == self.life.waits() {
            self.put_down_life();
        }
        self.take_steps()
    }

    /// Joins the room again that the server closed, after a `pause`; gives the end where it is over meanwhile.
    async fn enter_again(&mut self, owner: &mut Owner, pause: Duration) -> Option<End> {
        self.all_left(self.clock.now());
        let (config, first_track) = (self.config.clone(), self.roll.next_key());
        // Until somebody has come there is nothing to lose, and it ends when they have been waited for long enough.
        let again = async move {
            let mut pause = pause;
            loop {
                tokio::time::sleep(pause).await;
                match join(&config, first_track).await {
                    Ok(joined) => return joined,
                    Err(reason) => tracing::warn!(%reason, "the room cannot be joined again yet"),
                }
                pause = (2 * pause).min(REJOIN.1);
            }
        };
        tokio::pin!(again);
        let mut beat = clock::beat(clock::now(), TICK);
        loop {
            let over = tokio::select! {
                biased;
                Some((order, at)) = owner.orders.recv() => {
                    self.obey(order, self.clock.at(at));
                    self.take_steps()
                }
                (room, mut events) = &mut again => {
                    if let Some(RoomEvent::Joined { room: info, .. }) = events.recv().await {
                        self.room_info = info;
                    }
                    (self.room, self.events) = (Some(room), events);
                    return None;
                }
                () = settled(&mut self.settling) => {
                    self.settling = None;
                    self.tell_state(&owner.status);
                    None
                }
                () = self.sinks.news() => {
                    owner.status.send_modify(|status| status.disk_fault = self.sinks.in_memory().map(Into::into));
                    let all_broken = self.sinks.all_broken(self.pipeline.outputs());
                    all_broken.then(|| End::so_far(self.clock.now()))
                }
                () = tokio::time::sleep_until(beat.into()) => {
                    beat = clock::beat(clock::now(), TICK);
                    let now = self.clock.now();
                    self.life.end_pause_in_time(now);
                    self.take_steps().or_else(|| {
                        self.advance(now, now, &owner.status);
                        self.take_steps()
                    })
                }
            };
            if let Some(end) = over {
                return Some(End { room_is_gone: true, ..end });
            }
        }
    }

    /// Settles what can be. Nothing is missed beyond what was `heard`: an engine that is late still has it.
    fn advance(&mut self, now: ClockTime, heard: ClockTime, status: &watch::Sender<Status>) {
        self.pipeline.advance(now.min(heard), self.life.alone_since());
        self.sinks.write(&mut self.pipeline);
        let peak_dbfs = self.pipeline.take_peak_dbfs();
        self.life.pass(now, peak_dbfs, self.sinks.bytes());
        if now >= self.ledger_due.max(self.ledger_rests_until) {
            self.put_down(now);
        }
        status.send_if_modified(|status| {
            let (elapsed, participants) = (now.since(ClockTime::ZERO), self.life.participants());
            // Who waits for news is not woken for every look.
            let news = elapsed.as_secs() != status.elapsed.as_secs() || participants != status.participants;
            status.elapsed = elapsed;
            status.participants = participants;
            status.peak_dbfs = peak_dbfs;
            status.bytes = self.sinks.bytes();
            if let Some(upload) = self.sinks.upload() {
                (status.uploaded_bytes, status.upload_fault) = (upload.bytes, upload.fault);
            }
            news
        });
    }

    /// Lets retransmissions that are under way come in; what arrived after the end is not part of the recording.
    async fn await_retransmissions(&mut self, end: ClockTime) {
        let deadline = tokio::time::sleep(STOP_WAIT);
        tokio::pin!(deadline);
        while self.pipeline.is_waiting_for_retransmissions() {
            tokio::select! {
                () = &mut deadline => break,
                event = self.events.recv() => match event {
                    Some(RoomEvent::Closed { .. }) | None => break,
                    Some(event) => self.take_late(event),
                },
            }
        }
        tracing::debug!(waited = ?self.clock.now().since(end), "drained");
    }

    /// After the end only packets count.
    fn take_late(&mut self, event: RoomEvent) {
        if let RoomEvent::Rtp(packet) = event {
            self.pipeline.packet(&packet, self.clock.at(packet.arrival));
        }
    }
}

async fn settled(settling: &mut Option<Settling>) {
    match settling {
        Some(settling) => settling.await,
        None => std::future::pending().await,
    }
}
