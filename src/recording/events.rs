//! What the room tells, taken into a recording: packets, people, tracks, messages, and legs that fall silent.

use std::time::Duration;

use tokio::sync::watch;

use crate::call::TrackKey;
use crate::capture::TrackSpec;
use crate::mix::Gain;
use crate::room::{CloseReason, DataMessage, MediaState, RoomEvent};
use crate::time::ClockTime;

use super::dtmf::{DtmfEntry, DtmfPolicy};
use super::handle::{State, Status};
use super::happening::What;
use super::life::{LegSilence, Remedy};
use super::manifest::StarvedEntry;
use super::outcome::{Reason, StopReason};
use super::outputs::Speaker;
use super::roll::RolledTrack;
use super::session::{End, Session, TICK};

/// A look that comes this much too late means that the process gets no processor time.
const STARVED: Duration = Duration::from_secs(1);

/// So many entries of a kind that bad luck makes without number.
const MOST_ENTRIES: usize = 1_000;

/// So many messages of people nobody has told of yet are kept, the newest.
const MOST_UNKNOWN: usize = 16;

impl Session {
    /// Takes one event; gives the end if that was it.
    pub(super) fn take(&mut self, event: RoomEvent) -> Option<End> {
        if let RoomEvent::Rtp(packet) = event {
            let at = self.clock.at(packet.arrival);
            if !self.heard {
                self.heard = true;
                tracing::info!(after = ?at.since(ClockTime::ZERO), "first packet");
            }
            if self.watch.packet(packet.track, at) {
                self.leg_is_back(packet.track, at);
            }
            self.pipeline.packet(&packet, at);
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
                self.present(&participant.sid, at);
            }
            RoomEvent::ParticipantUpdated { participant, .. } => self.present(&participant.sid, at),
            RoomEvent::ParticipantLeft { sid, reason, .. } => {
                tracing::info!(%sid, %reason, "participant left");
                self.life.left(sid, at);
            }
            RoomEvent::TrackPublished { track, .. } => {
                tracing::info!(track = %track.sid, source = %track.source, "track published");
                self.published(track.key, at);
            }
            RoomEvent::TrackMuted { track, muted, .. } => {
                if self.watch.muted(*track, *muted, at) {
                    self.leg_is_back(*track, at);
                }
                self.pipeline.muted(*track, *muted, at);
            }
            RoomEvent::TrackUnpublished { track, .. } => {
                if self.watch.unpublished(*track) {
                    self.leg_is_back(*track, at);
                }
                self.pipeline.unpublished(*track, at);
            }
            RoomEvent::SenderReport { track, ntp, rtp, .. } => self.pipeline.sender_report(*track, *ntp, *rtp, at),
            RoomEvent::Media { state, .. } => {
                tracing::info!(?state, "media");
                let up = matches!(state, MediaState::Connected(_));
                self.watch.media(up, at);
                self.tell(at, if up { What::MediaBack } else { What::MediaLost });
                self.pipeline.media(*state, at);
            }
            RoomEvent::RoomUpdated { room, .. } => self.room_info = room.clone(),
            RoomEvent::Undecryptable { track, problem, frames, .. } => {
                tracing::warn!(%track, frames, "frames cannot be decrypted: {problem}");
            }
            RoomEvent::Overrun { dropped, .. } => {
                tracing::error!(dropped, "the recorder was too slow and threw packets away");
            }
            RoomEvent::SubscriptionFailed { reason, .. } => tracing::warn!(%reason, "subscription failed"),
            RoomEvent::Closed { reason, .. } => return Some(self.closed(reason, at)),
            RoomEvent::Data { from, message, .. } => self.message(from, message, at),
            RoomEvent::Joined { .. } | RoomEvent::Rtp(_) => {}
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
            CloseReason::Moved(room) => {
                self.reasons.push(Reason::RoomMoved { room: room.clone() });
                StopReason::Fault
            }
            CloseReason::Lost(message) => {
                self.reasons.push(Reason::ConnectionLost { message: message.clone() });
                StopReason::Fault
            }
        };
        End { reason, at, room_is_gone: true }
    }

    /// Somebody sent a message.
    fn message(&mut self, from: &str, message: &DataMessage, at: ClockTime) {
        let sender = self.roll.somebody(from);
        if sender.is_none() && !from.is_empty() {
            // Messages and signalling go different ways: that somebody is there may be told after what they say.
            self.unknown.truncate(MOST_UNKNOWN - 1);
            self.unknown.insert(0, (from.to_owned(), message.clone(), at));
            return;
        }
        let sender = sender.as_ref().map(|(participant, place)| (participant, *place));
        match message {
            DataMessage::User { topic, payload } => self.life.message(sender, topic, payload, at),
            DataMessage::Rpc { method, payload, .. } => self.life.message(sender, method, payload.as_bytes(), at),
            DataMessage::Dtmf { digit, .. } => self.key_pressed(from, digit, at),
        }
    }

    /// Somebody pressed a key on a telephone.
    fn key_pressed(&mut self, participant: &str, digit: &str, at: ClockTime) {
        match self.config.dtmf {
            DtmfPolicy::Ignore => {}
            DtmfPolicy::Note if self.life.state() == State::Active && self.dtmf.len() < MOST_ENTRIES => {
                let (participant, digit) = (participant.to_owned(), digit.to_owned());
                self.dtmf.push(DtmfEntry { participant, digit, sample: at.into() });
            }
            DtmfPolicy::Note => {}
            DtmfPolicy::Withhold => {
                let before = i64::try_from(DtmfPolicy::BEFORE.as_nanos()).unwrap_or(i64::MAX);
                let (from, to) = (ClockTime(at.0.saturating_sub(before)).into(), (at + DtmfPolicy::AFTER).into());
                for track in self.roll.tracks().iter().filter(|track| track.identity == participant) {
                    self.pipeline.withhold_of(track.track.key, from, to);
                }
            }
        }
    }

    /// The room is gone, with everybody who was in it.
    pub(super) fn all_left(&mut self, at: ClockTime) {
        for sid in self.roll.all_left(at) {
            self.life.left(&sid, at);
        }
        let tracks = self.roll.tracks().iter().map(|rolled| rolled.track.key);
        let open: Vec<TrackKey> = tracks.filter(|track| !self.pipeline.is_over(*track)).collect();
        for track in open {
            if self.watch.unpublished(track) {
                self.leg_is_back(track, at);
            }
            self.pipeline.unpublished(track, at);
        }
    }

    /// Somebody is there, or something about them changed.
    fn present(&mut self, sid: &str, at: ClockTime) {
        // The roll noted this very event.
        let Some((participant, place)) = self.roll.participant(sid) else { return };
        self.life.present(&participant, place, at);
        let theirs: Vec<_> = self.unknown.extract_if(.., |(from, ..)| *from == participant.identity).collect();
        for (from, message, at) in theirs.into_iter().rev() {
            self.message(&from, &message, at);
        }
    }

    fn published(&mut self, track: TrackKey, at: ClockTime) {
        // The roll has both: it noted this very event, and its participant's before.
        let Some(RolledTrack { track, participant_sid, kind, .. }) = self.roll.track(track) else { return };
        let Some((participant, place)) = self.roll.participant(participant_sid) else { return };
        if !self.config.tracks.records(track, &participant, place) {
            tracing::info!(track = %track.sid, "a track that is not to be recorded");
            return;
        }
        let spec = TrackSpec { kind: *kind, codec: track.codec, muted: track.muted };
        self.watch.published(track.key, *kind, track.muted, at);
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

    /// Notes where this process was not let look.
    pub(super) fn note_starvation(&mut self, now: ClockTime) {
        let late = now.since(self.looked).saturating_sub(TICK);
        if late >= STARVED {
            let seconds = late.as_secs_f64();
            tracing::warn!(seconds, "the recorder got no processor time");
            self.tell(now, What::Starved { seconds });
            if self.starved.len() < MOST_ENTRIES {
                self.starved.push(StarvedEntry { from_sample: self.looked.into(), to_sample: now.into() });
            }
        }
        self.looked = now;
    }

    /// Looks after legs that fell silent.
    pub(super) fn mind_legs(&mut self, now: ClockTime, status: &watch::Sender<Status>) {
        let mut alarms = Vec::new();
        for remedy in self.watch.due(now) {
            match remedy {
                Remedy::Resubscribe(track) => {
                    tracing::warn!(%track, "nothing comes of a track; subscribing to it again");
                    if let Some(room) = &self.room {
                        room.resubscribe(track);
                    }
                }
                Remedy::Alarm(track, since) => {
                    let Some(RolledTrack { track, identity, .. }) = self.roll.track(track) else { continue };
                    tracing::warn!(participant = identity, track = track.sid, "a leg is silent");
                    let (participant, from_sample) = (identity.clone(), since.into());
                    if self.leg_silent.len() < MOST_ENTRIES {
                        let (participant, track) = (participant.clone(), track.sid.clone());
                        self.leg_silent.push(LegSilence { participant, track, from_sample, to_sample: None });
                    }
                    alarms.push(What::LegSilent { participant, from_sample });
                    self.ledger_due = now;
                }
            }
        }
        let lasting = self.leg_silent.iter().filter(|silence| silence.to_sample.is_none());
        let silent: Vec<&str> = lasting.map(|silence| silence.participant.as_str()).collect();
        status.send_if_modified(|status| {
            let news = status.silent_legs != silent;
            if news {
                status.silent_legs = silent.into_iter().map(Into::into).collect();
            }
            news
        });
        alarms.into_iter().for_each(|alarm| self.tell(now, alarm));
    }

    fn leg_is_back(&mut self, track: TrackKey, at: ClockTime) {
        let Some(RolledTrack { track, identity, .. }) = self.roll.track(track) else { return };
        tracing::info!(participant = identity, "a leg is heard again, or gone");
        let participant = identity.clone();
        if let Some(silence) = self.leg_silent.iter_mut().rfind(|silence| silence.track == track.sid) {
            silence.to_sample = Some(at.into());
        }
        self.tell(at, What::LegBack { participant });
    }
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
            | Self::Data { .. }
            | Self::Undecryptable { .. }
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
            | Self::Data { at, .. }
            | Self::Undecryptable { at, .. }
            | Self::RoomUpdated { at, .. }
            | Self::Overrun { at, .. }
            | Self::Media { at, .. }
            | Self::Closed { at, .. } => *at,
            Self::Rtp(packet) => packet.arrival,
        }
    }
}
