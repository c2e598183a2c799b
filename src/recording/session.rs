//! The loop of one call: room events, commands and time in; status, files and a result out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::call::TrackKey;
use crate::capture::TrackSpec;
use crate::clock::{self, RecordingClock};
use crate::config::Config;
use crate::mix::Gain;
use crate::room::{CloseReason, Room, RoomConfig, RoomEvent, RoomEvents, RoomInfo};
use crate::spool::expire;
use crate::store::Store;
use crate::time::{ClockTime, MediaTime, SampleCount};

use super::bring::bring_others;
use super::handle::{RecordingResult, State, Status};
use super::manifest::{MANIFEST_VERSION, Manifest, OutputEntry, SidecarEntry, SidecarKind, TrackEntry, Versions};
use super::outcome::{Outcome, Reason, StopReason, judge};
use super::outputs::Speaker;
use super::pipeline::{Finished, Pipeline};
use super::presence::Presence;
use super::roll::{Roll, RolledTrack};
use super::sides::Sides;
use super::sinks::{Sinks, entry_so_far};
use super::speech::Speech;
use super::start::Start;

/// How often settled audio is fetched, mixed and written. A recorder is in no hurry, and fewer wake-ups cost less.
const TICK: Duration = Duration::from_millis(100);

/// How long retransmissions under way are waited for once the recording is told to stop: a few round trips.
const STOP_WAIT: Duration = Duration::from_millis(300);

/// How often what is known so far is put down for whoever has to end the recording if this process dies. Who comes and goes
/// is put down at once…
const LEDGER_EVERY: Duration = Duration::from_secs(5);

/// …as long as all that is not more than so many bytes a second: a long call with much trouble has a long ledger.
const LEDGER_BYTES_A_SECOND: usize = 4 * 1024;

/// Lost audio of one track up to which a recording still counts as complete, in seconds: less than a syllable.
const LOSS_TOLERATED: f64 = 0.1;

/// Records one call and leaves its result in `status`.
pub(super) async fn run(config: Config, mut stops: mpsc::UnboundedReceiver<StopReason>, status: watch::Sender<Status>) {
    let result = match join(&config, &mut stops).await {
        Ok(Joined::Recording(session)) => session.record(stops, &status).await,
        Ok(Joined::NotAnyMore(reason)) => stopped_early(&config, reason),
        Err(reason) => RecordingResult::failed(&config.recording_id, reason),
    };
    publish(&status, result);
}

/// Ends a recording that never got as far as a result of its own.
pub(super) fn failed(status: &watch::Sender<Status>, recording_id: &str, reason: Reason) {
    publish(status, RecordingResult::failed(recording_id, reason));
}

fn publish(status: &watch::Sender<Status>, result: RecordingResult) {
    match result.outcome {
        Outcome::Complete | Outcome::Empty => tracing::info!(outcome = %result.outcome, "recording stopped"),
        Outcome::Degraded => tracing::warn!(reasons = ?result.reasons, "recording stopped; it lacks something"),
        Outcome::Failed => tracing::error!(reasons = ?result.reasons, "recording failed"),
    }
    status.send_modify(|status| {
        status.state = result.status;
        status.reasons.clone_from(&result.reasons);
        status.result = Some(result);
    });
}

enum Joined {
    Recording(Box<Session>),
    NotAnyMore(StopReason),
}

async fn join(config: &Config, stops: &mut mpsc::UnboundedReceiver<StopReason>) -> Result<Joined, Reason> {
    config.validate().map_err(|error| Reason::Join { message: error.to_string() })?;
    // A directory that cannot be written is better known before the call than after it.
    let directory = if config.store.is_some() { config.spool_dir() } else { config.out.clone() };
    fs::create_dir_all(&directory).map_err(|error| Reason::Storage {
        message: format!("cannot create the directory {}: {error}", directory.display()),
    })?;
    let store = match &config.store {
        Some(store) => {
            let opened = Store::open(store).await;
            Some(opened.map_err(|error| Reason::Storage { message: error.to_string() })?)
        }
        None => None,
    };
    recover_others(config, store.clone());
    tracing::info!(url = %config.url, identity = %config.identity(), "joining");
    let connected = tokio::select! {
        connected = Room::connect(room_config(config)) => connected,
        Some(reason) = stops.recv() => return Ok(Joined::NotAnyMore(reason)),
    };
    let (room, events) = connected.map_err(|error| Reason::Join { message: error.to_string() })?;
    Session::begin(config.clone(), room, events, store).await.map(|session| Joined::Recording(Box::new(session)))
}

/// Ends, beside this recording, those in its spool whose process died; a process looks once into each spool.
fn recover_others(config: &Config, store: Option<Store>) {
    static LOOKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let (spool, own) = (config.spool_dir(), config.recording_id.clone());
    // Nothing panics while it is held.
    if !LOOKED.lock().unwrap_or_else(PoisonError::into_inner).insert(spool.clone()) {
        return;
    }
    let (keep, expiring) = (config.keep_spool, spool.clone());
    // Who keeps nothing leaves alone what others keep.
    if !keep.is_zero() {
        tokio::task::spawn_blocking(move || match expire(&expiring, keep) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed from the spool what was kept there for its time"),
            Err(error) => tracing::warn!(%error, "cannot remove what was kept in the spool"),
        });
    }
    tokio::spawn(bring_others(spool, own, config.grace, store));
}

fn room_config(config: &Config) -> RoomConfig {
    let mut room = RoomConfig::new(&config.url, config.credentials.clone())
        .identity(config.identity())
        .display_name("callreel")
        .transport(config.transport);
    if !config.room.is_empty() {
        room = room.room(&config.room);
    }
    #[cfg(feature = "testkit")]
    if let Some(impairment) = &config.impairment {
        room = room.impairment(impairment.clone());
    }
    room
}

fn stopped_early(config: &Config, reason: StopReason) -> RecordingResult {
    RecordingResult {
        recording_id: config.recording_id.clone(),
        status: State::Ready,
        outcome: Outcome::Empty,
        reasons: Vec::new(),
        stopped_by: Some(reason),
        outputs: Vec::new(),
        manifest: None,
    }
}

struct Session {
    config: Config,
    room: Option<Room>,
    events: RoomEvents,
    room_info: RoomInfo,
    clock: RecordingClock,
    presence: Presence,
    roll: Roll,
    pipeline: Pipeline,
    sides: Sides,
    sinks: Sinks,
    reasons: Vec<Reason>,
    heard: bool,
    /// Where this process began to record: sample 0, or where it went on with what another had begun…
    begins: MediaTime,
    /// …with these tracks.
    tracks_before: Vec<TrackEntry>,
    /// When what is known is put down next, and when at the earliest.
    ledger_due: ClockTime,
    ledger_rests_until: ClockTime,
}

/// What the loop ended with.
struct End {
    reason: StopReason,
    at: ClockTime,
    room_is_gone: bool,
}

/// What is told about the sound.
struct About {
    speech: Option<Speech>,
    sidecars: Vec<SidecarEntry>,
}

impl Session {
    async fn begin(config: Config, room: Room, mut events: RoomEvents, store: Option<Store>) -> Result<Self, Reason> {
        let Some(RoomEvent::Joined { room: room_info, at, .. }) = events.recv().await else {
            return Err(Reason::Join { message: "the room engine ended before it had joined".into() });
        };
        let Start { clock, pipeline, sinks, before } = Start::of(&config, &room_info, at, store).await?;
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
        let mut session = Self {
            presence: Presence::new(config.stop),
            sides,
            config,
            room: Some(room),
            events,
            room_info,
            clock,
            roll,
            pipeline,
            sinks,
            reasons,
            heard,
            begins,
            tracks_before: before.map(|before| before.manifest.tracks).unwrap_or_default(),
            ledger_due: ClockTime::ZERO,
            ledger_rests_until: ClockTime::ZERO,
        };
        // The first file is made when it is known what for.
        session.put_down(session.clock.at(at));
        session.sinks.open(session.pipeline.outputs());
        Ok(session)
    }

    async fn record(
        mut self,
        mut stops: mpsc::UnboundedReceiver<StopReason>,
        status: &watch::Sender<Status>,
    ) -> RecordingResult {
        status.send_modify(|status| status.state = State::Active);
        let end = self.run_until_over(&mut stops, status).await;
        status.send_modify(|status| status.state = State::Stopping);
        tracing::info!(reason = ?end.reason, "stopping");
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
        self.finish(&end).await
    }

    async fn run_until_over(
        &mut self,
        stops: &mut mpsc::UnboundedReceiver<StopReason>,
        status: &watch::Sender<Status>,
    ) -> End {
        let mut beat = clock::beat(clock::now(), TICK);
        loop {
            tokio::select! {
                Some(reason) = stops.recv() => {
                    return End { reason, at: self.clock.now(), room_is_gone: false };
                }
                () = self.sinks.news() => {
                    status.send_modify(|status| status.disk_fault = self.sinks.in_memory().map(Into::into));
                    if self.sinks.all_broken(self.pipeline.outputs()) {
                        return End { reason: StopReason::Fault, at: self.clock.now(), room_is_gone: false };
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
                    self.advance(now, heard, status);
                    if self.sinks.all_broken(self.pipeline.outputs()) {
                        return End { reason: StopReason::Fault, at: now, room_is_gone: false };
                    }
                    if let Some(reason) = self.presence.due(now) {
                        return End { reason, at: now, room_is_gone: false };
                    }
                }
            }
        }
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
        None
    }

    /// Takes one event; gives the end if that was it.
    fn take(&mut self, event: RoomEvent) -> Option<End> {
        if let RoomEvent::Rtp(packet) = event {
            if !self.heard {
                self.heard = true;
                tracing::info!(after = ?self.clock.at(packet.arrival).since(ClockTime::ZERO), "first packet");
            }
            self.pipeline.packet(&packet, self.clock.at(packet.arrival));
            return None;
        }
        let at = self.clock.at(event.at()).max(ClockTime::ZERO);
        self.roll.note(&event, at);
        if event.is_news_of_who_is_there() {
            self.ledger_due = at;
        }
        match &event {
            RoomEvent::ParticipantJoined { participant, .. } => {
                tracing::info!(sid = %participant.sid, kind = ?participant.kind, "participant joined");
                self.presence.joined(participant);
            }
            RoomEvent::ParticipantLeft { sid, reason, .. } => {
                tracing::info!(%sid, %reason, "participant left");
                self.presence.left(sid, at);
            }
            RoomEvent::TrackPublished { track, .. } => {
                tracing::info!(track = %track.sid, source = %track.source, "track published");
                self.published(track.key, at);
            }
            RoomEvent::TrackMuted { track, muted, .. } => self.pipeline.muted(*track, *muted, at),
            RoomEvent::TrackUnpublished { track, .. } => self.pipeline.unpublished(*track, at),
            RoomEvent::SenderReport { track, ntp, rtp, .. } => self.pipeline.sender_report(*track, *ntp, *rtp, at),
            RoomEvent::Media { state, .. } => {
                tracing::info!(?state, "media");
                self.pipeline.media(*state, at);
            }
            RoomEvent::RoomUpdated { room, .. } => self.room_info = room.clone(),
            RoomEvent::Overrun { dropped, .. } => {
                tracing::error!(dropped, "the recorder was too slow and threw packets away");
            }
            RoomEvent::SubscriptionFailed { reason, .. } => tracing::warn!(%reason, "subscription failed"),
            RoomEvent::Closed { reason, .. } => return Some(self.closed(reason, at)),
            RoomEvent::Joined { .. } | RoomEvent::ParticipantUpdated { .. } | RoomEvent::Rtp(_) => {}
        }
        None
    }

    fn closed(&mut self, reason: &CloseReason, at: ClockTime) -> End {
        let reason = match reason {
            CloseReason::Requested => StopReason::Requested,
            CloseReason::RoomClosed => StopReason::RoomClosed,
            CloseReason::Removed(message) => {
                self.reasons.push(Reason::Removed { message: message.clone() });
                StopReason::Fault
            }
            CloseReason::Lost(message) => {
                self.reasons.push(Reason::ConnectionLost { message: message.clone() });
                StopReason::Fault
            }
        };
        End { reason, at, room_is_gone: true }
    }

    fn published(&mut self, track: TrackKey, at: ClockTime) {
        // The roll has both: it noted this very event, and its participant's before.
        let Some(RolledTrack { track, participant_sid, kind, .. }) = self.roll.track(track) else { return };
        let Some((participant, place)) = self.roll.participant(participant_sid) else { return };
        let spec = TrackSpec { kind: *kind, codec: track.codec, muted: track.muted };
        let decibels = self.config.gains.get(&participant.identity).copied().unwrap_or(0.0);
        let speaker = Speaker {
            side: self.sides.place(&participant, place),
            gain: Gain { factor: 10_f32.powf(decibels / 20.0), target_lufs: self.config.target_lufs },
            identity: participant.identity,
        };
        if let Err(error) = self.pipeline.published(track.key, &speaker, spec, at) {
            self.reasons
                .push(Reason::Output { output: format!("tracks of {}", speaker.identity), message: error.to_string() });
        }
        self.sinks.open(self.pipeline.outputs());
    }

    /// Settles what can be. Nothing is missed beyond what was `heard`: an engine that is late still has it.
    fn advance(&mut self, now: ClockTime, heard: ClockTime, status: &watch::Sender<Status>) {
        self.pipeline.advance(now.min(heard), self.presence.alone_since());
        self.sinks.write(&mut self.pipeline);
        if now >= self.ledger_due.max(self.ledger_rests_until) {
            self.put_down(now);
        }
        let peak_dbfs = self.pipeline.take_peak_dbfs();
        status.send_if_modified(|status| {
            let (elapsed, participants) = (now.since(ClockTime::ZERO), self.presence.count());
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

    /// Puts down what is known so far, for whoever has to end the recording if this process dies.
    fn put_down(&mut self, now: ClockTime) {
        let mut known = self.pipeline.so_far();
        known.samples = known.samples.max(self.begins.since(MediaTime::ZERO));
        let at = MediaTime::ZERO + known.samples;
        let entry = |origin| entry_so_far(origin, at, &self.config.encryption);
        let outputs = self.pipeline.outputs().origins(at).iter().map(entry).collect();
        let mut reasons = self.reasons.clone();
        reasons.extend(self.roll.refused().iter().cloned());
        reasons.extend(losses(&self.roll, &known));
        let end = End { reason: StopReason::Fault, at: now, room_is_gone: false };
        let about = About { speech: None, sidecars: Vec::new() };
        let manifest = Manifest { reasons, ..self.manifest(&end, &known, Outcome::Degraded, outputs, about) };
        let so_far = serde_json::to_value(manifest).expect("plain data becomes JSON");
        let cost = self.sinks.put_down(so_far);
        self.ledger_rests_until = now + Duration::from_secs(cost as u64) / LEDGER_BYTES_A_SECOND as u32;
        self.ledger_due = now + LEDGER_EVERY;
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

    async fn finish(mut self, end: &End) -> RecordingResult {
        let finished = self.pipeline.finish(end.at, self.presence.alone_since());
        let stored = self.sinks.finish(&mut self.pipeline, MediaTime::ZERO + finished.samples).await;
        self.reasons.extend(stored.reasons);
        let about = self.tell(&finished).await;
        self.reasons.extend(self.roll.refused().iter().cloned());
        self.reasons.extend(losses(&self.roll, &finished));
        let outcome = judge(self.heard, &self.reasons);
        let manifest = self.manifest(end, &finished, outcome, stored.entries, about);
        if let Err(why) = manifest.check() {
            tracing::error!(%why, "the ledger does not add up");
            self.reasons.push(Reason::Internal { message: format!("the ledger does not add up: {why}") });
        }
        let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
        let written = self.sinks.store_manifest(json).await;
        if let Err(error) = &written {
            self.note_storage_fault(error.to_string());
        }
        let manifest = written.ok();
        let refused = self.sinks.close(manifest.is_some() && stored.all_named, !self.config.keep_spool.is_zero()).await;
        self.reasons.extend(refused.filter(|refused| !self.reasons.contains(refused)));
        let outcome = judge(self.heard, &self.reasons);
        RecordingResult {
            recording_id: self.config.recording_id.clone(),
            status: if outcome == Outcome::Failed { State::Failed } else { State::Ready },
            outcome,
            reasons: self.reasons.clone(),
            stopped_by: Some(end.reason),
            outputs: stored.results,
            manifest,
        }
    }

    fn note_storage_fault(&mut self, message: String) {
        if !self.reasons.iter().any(|known| matches!(known, Reason::Storage { .. })) {
            self.reasons.push(Reason::Storage { message });
        }
    }

    /// Writes the files that tell about the recording, unless the disk refused the recording itself.
    async fn tell(&mut self, finished: &Finished) -> About {
        let speakers = finished.findings.speakers.as_ref();
        let speech = speakers.map(|speakers| Speech::of(&self.roll, speakers));
        let captions =
            speech.as_ref().map(|speech| (SidecarKind::Speakers, "vtt", speech.captions.clone().into_bytes()));
        let peaks = finished.findings.waveform.as_ref().map(|waveform| {
            (SidecarKind::Peaks, "peaks.json", serde_json::to_vec(waveform).expect("plain data becomes JSON"))
        });
        let mut sidecars = Vec::new();
        if self.reasons.iter().any(|known| matches!(known, Reason::Storage { .. })) {
            return About { speech: speech.filter(|_| self.config.encryption.is_empty()), sidecars };
        }
        for (kind, ext, bytes) in captions.into_iter().chain(peaks) {
            match self.sinks.store_beside(kind, ext, bytes).await {
                Ok(entry) => sidecars.push(entry),
                Err(reason) => self.reasons.push(reason),
            }
        }
        // What is said in plain is not who spoke when: that is in a file that is sealed.
        About { speech: speech.filter(|_| self.config.encryption.is_empty()), sidecars }
    }

    fn manifest(
        &self,
        end: &End,
        finished: &Finished,
        outcome: Outcome,
        outputs: Vec<OutputEntry>,
        about: About,
    ) -> Manifest {
        let mut participants = self.roll.participants().to_vec();
        let mut said = Vec::new();
        if let Some(Speech { entries, seconds, .. }) = about.speech {
            said = entries;
            for session in &mut participants {
                session.speaking_seconds = Some(seconds.get(&session.sid).copied().unwrap_or(0.0));
            }
        }
        let of_this_process = self.roll.tracks().iter().filter_map(|rolled| {
            let ledger = finished.ledgers.get(&rolled.track.key)?.clone();
            Some(TrackEntry {
                sid: rolled.track.sid.clone(),
                participant_sid: rolled.participant_sid.clone(),
                identity: rolled.identity.clone(),
                name: rolled.track.name.clone(),
                source: rolled.track.source.clone(),
                codec: rolled.track.codec,
                published_sample: ledger.start,
                unpublished_sample: ledger.end,
                ledger,
            })
        });
        let tracks = self.tracks_before.iter().cloned().chain(of_this_process).collect();
        Manifest {
            version: MANIFEST_VERSION,
            recording_id: self.config.recording_id.clone(),
            room: self.room_info.clone(),
            started_at: self.clock.wall_zero(),
            ended_at: self.clock.wall_zero() + finished.samples.as_duration(),
            samples: finished.samples,
            duration_seconds: finished.samples.as_secs_f64(),
            outcome,
            reasons: self.reasons.clone(),
            stopped_by: end.reason,
            outputs,
            sidecars: about.sidecars,
            loudness: finished.findings.loudness,
            speech: said,
            participants,
            tracks,
            media: self.roll.media().to_vec(),
            versions: Versions {
                callreel: env!("CARGO_PKG_VERSION").into(),
                libopus: opus::version().into(),
                livekit_server: self.room_info.server_version.clone(),
            },
        }
    }
}

/// What the ledgers and decoders found missing.
fn losses(roll: &Roll, finished: &Finished) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut down = 0.0;
    for rolled in roll.tracks() {
        let key = rolled.track.key;
        let Some(ledger) = finished.ledgers.get(&key) else { continue };
        let lost = SampleCount(ledger.sums.lost).as_secs_f64();
        if lost > LOSS_TOLERATED {
            let (participant, track) = (rolled.identity.clone(), rolled.track.sid.clone());
            reasons.push(Reason::LostAudio { participant, track, seconds: lost });
        }
        down += SampleCount(ledger.sums.recorder_down).as_secs_f64();
        let refused = finished.refused.get(&key).copied().unwrap_or(0);
        if refused > 0 {
            reasons.push(Reason::Undecodable { track: rolled.track.sid.clone(), packets: refused });
        }
    }
    if down > 0.0 {
        reasons.push(Reason::RecorderDown { seconds: down });
    }
    reasons
}

impl RoomEvent {
    /// Whether a manifest would tell of it.
    fn is_news_of_who_is_there(&self) -> bool {
        match self {
            Self::ParticipantJoined { .. }
            | Self::ParticipantLeft { .. }
            | Self::TrackPublished { .. }
            | Self::TrackUnpublished { .. }
            | Self::SubscriptionFailed { .. }
            | Self::Media { .. } => true,
            Self::Joined { .. }
            | Self::ParticipantUpdated { .. }
            | Self::TrackMuted { .. }
            | Self::SenderReport { .. }
            | Self::RoomUpdated { .. }
            | Self::Overrun { .. }
            | Self::Closed { .. }
            | Self::Rtp(_) => false,
        }
    }

    /// When this process learned of it; for a packet, when it arrived.
    fn at(&self) -> std::time::Instant {
        match self {
            Self::Joined { at, .. }
            | Self::ParticipantJoined { at, .. }
            | Self::ParticipantUpdated { at, .. }
            | Self::ParticipantLeft { at, .. }
            | Self::TrackPublished { at, .. }
            | Self::TrackMuted { at, .. }
            | Self::TrackUnpublished { at, .. }
            | Self::SubscriptionFailed { at, .. }
            | Self::SenderReport { at, .. }
            | Self::RoomUpdated { at, .. }
            | Self::Overrun { at, .. }
            | Self::Media { at, .. }
            | Self::Closed { at, .. } => *at,
            Self::Rtp(packet) => packet.arrival,
        }
    }
}
