//! One call's loop over the SDK: its room, its events and its PCM on one side, our roster and packets on the other.
//!
//! The SDK keeps its own picture of the room, and its events come after that has changed. So events are occasions to look at
//! the picture, and the roster tells what is new in it; only what the picture does not show is taken from the events.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use livekit::e2ee::EncryptionType;
use livekit::participant::{ParticipantKind, ParticipantState};
use livekit::prelude::{
    ConnectionState, ParticipantIdentity, RemoteAudioTrack, RemoteParticipant, RemoteTrack, RemoteTrackPublication,
    RoomEvent as SdkEvent, RoomOptions, TrackKind,
};
use livekit::rtc_engine::EngineError;
use livekit::webrtc::audio_frame::AudioFrame;
use livekit::webrtc::audio_stream::native::{NativeAudioStream, NativeAudioStreamOptions};
use livekit::webrtc::peer_connection_factory::IceTransportsType;
use livekit::webrtc::stats::{IceCandidateType, RtcStats};
use livekit_protocol::{self as proto, DisconnectReason, ParticipantInfo, TrackInfo, encryption, participant_info};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

use super::super::config::{Resolved, RoomConfig, TransportPolicy};
use super::super::data::{DataMessage, Gate};
use super::super::engine::Request;
use super::super::error::{self, Attempt, RoomError};
use super::super::event::{CloseReason, MediaState, RoomEvent, RoomInfo, RtpPacket, Transport};
use super::super::queue::EventSender;
use super::super::renewal::Renewals;
use super::super::roster::Roster;
use super::pcm::PcmPackets;
use crate::call::TrackKey;
use crate::time::SAMPLE_RATE;

/// How often what was heard is coded and told, and the SDK's picture of the room looked at where no event gives occasion.
const BEAT: Duration = Duration::from_millis(100);

/// How long statistics may take, from which the way of media is told.
const STATISTICS: Duration = Duration::from_secs(1);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the loop ended, or that it goes on.
type Flow = ControlFlow<CloseReason>;
const ON: Flow = Flow::Continue(());

/// Everything one call needs while it runs.
pub(in crate::room) struct Engine {
    config: RoomConfig,
    room: RoomInfo,
    sdk: livekit::Room,
    sdk_events: mpsc::UnboundedReceiver<SdkEvent>,
    events: EventSender,
    requests: mpsc::UnboundedReceiver<Request>,
    roster: Roster,
    renewals: Renewals,
    data: Gate,
    /// Tracks (`TR_…`) that are subscribed to.
    subscribed: BTreeSet<String>,
    /// Tracks (`TR_…`) that never will be.
    refused: BTreeSet<String>,
    /// Tracks (`TR_…`) whose media came before their publication was told.
    early: BTreeMap<String, RemoteAudioTrack>,
    streams: BTreeMap<u32, Stream>,
    pcm: mpsc::UnboundedReceiver<Pcm>,
    to_pcm: mpsc::UnboundedSender<Pcm>,
    next_ssrc: u32,
    interrupted: Option<Instant>,
    packets: Vec<RtpPacket>,
}

/// The PCM of one track, on its way to becoming packets.
struct Stream {
    sid: String,
    packets: PcmPackets,
    reader: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// 10 ms of a stream.
struct Pcm {
    ssrc: u32,
    frame: AudioFrame<'static>,
    at: Instant,
}

impl Engine {
    /// Joins, at the first server that can be used.
    ///
    /// # Errors
    /// [`RoomError`].
    pub(in crate::room) async fn join(
        config: RoomConfig,
        resolved: Resolved,
        events: EventSender,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Result<Self, RoomError> {
        let mut attempts = Vec::new();
        for url in &config.urls {
            match connect(&config, &resolved, url).await {
                Ok((sdk, sdk_events)) => return Ok(Self::new(config, sdk, sdk_events, events, requests)),
                Err(error) if error.leaves_others(&attempts) => attempts.push(error),
                Err(error) => return Err(error),
            }
        }
        Err(RoomError::of_all(attempts))
    }

    fn new(
        config: RoomConfig,
        sdk: livekit::Room,
        sdk_events: mpsc::UnboundedReceiver<SdkEvent>,
        mut events: EventSender,
        requests: mpsc::UnboundedReceiver<Request>,
    ) -> Self {
        let at = crate::clock::now();
        let room = room_info(&sdk);
        let recorder_sid = sdk.local_participant().sid().into();
        events.send(RoomEvent::Joined { room: room.clone(), recorder_sid, at });
        let (to_pcm, pcm) = mpsc::unbounded_channel();
        Self {
            roster: Roster::new(config.first_track),
            data: Gate::new(config.wanted.clone()),
            config,
            room,
            sdk,
            sdk_events,
            events,
            requests,
            renewals: Renewals::default(),
            subscribed: BTreeSet::new(),
            refused: BTreeSet::new(),
            early: BTreeMap::new(),
            streams: BTreeMap::new(),
            pcm,
            to_pcm,
            next_ssrc: 1,
            interrupted: None,
            packets: Vec::new(),
        }
    }

    /// Runs the call to its end, and tells the end.
    pub(in crate::room) async fn run(mut self) {
        let reason = self.run_until_closed().await;
        self.take_waiting_pcm();
        let left: Vec<u32> = self.streams.keys().copied().collect();
        left.into_iter().for_each(|ssrc| self.close_stream(ssrc));
        tracing::debug!(?reason, "leaving the room");
        match tokio::time::timeout(GOODBYE, self.sdk.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the SDK's room was closed already"),
            Err(_) => tracing::warn!("the SDK takes too long to leave"),
        }
        let at = crate::clock::now();
        self.events.confess(at);
        self.events.send(RoomEvent::Closed { reason, at });
    }

    async fn run_until_closed(&mut self) -> CloseReason {
        self.look(crate::clock::now());
        self.tell_media().await;
        let mut beat = crate::clock::now();
        loop {
            let flow = tokio::select! {
                request = self.requests.recv() => self.on_request(request),
                event = self.sdk_events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => Flow::Break(CloseReason::Lost("the SDK's events ended".into())),
                },
                () = tokio::time::sleep_until(beat.into()) => {
                    beat = crate::clock::beat(crate::clock::now(), BEAT);
                    self.on_beat()
                }
            };
            if let Flow::Break(reason) = flow {
                return reason;
            }
        }
    }

    fn on_beat(&mut self) -> Flow {
        let now = crate::clock::now();
        self.take_waiting_pcm();
        self.look(now);
        for sid in self.renewals.overdue(now) {
            self.subscribed.remove(&sid);
        }
        self.events.heard(now);
        if self.events.is_abandoned() {
            return Flow::Break(CloseReason::Lost("nobody takes the room's events any more".into()));
        }
        let patience = self.config.timeouts.reconnect.min(self.config.timeouts.away);
        match self.interrupted {
            Some(since) if now.saturating_duration_since(since) >= patience => {
                Flow::Break(CloseReason::Lost(format!("the connection was lost and not mended within {patience:?}")))
            }
            _ => ON,
        }
    }

    fn on_request(&mut self, request: Option<Request>) -> Flow {
        match request {
            Some(Request::Close) | None => Flow::Break(CloseReason::Requested),
            Some(Request::Resubscribe(key)) => {
                self.resubscribe(key);
                ON
            }
            #[cfg(feature = "testkit")]
            Some(Request::Simulate(scenario)) => {
                tracing::warn!(?scenario, "the SDK has no such disturbance acted out");
                ON
            }
        }
    }

    fn resubscribe(&mut self, key: TrackKey) {
        let sid = self.roster.tracks().find(|(_, _, of)| *of == key).map(|(_, sid, _)| sid.to_owned());
        let publication =
            sid.as_ref().and_then(|sid| publications(&self.sdk).find(|track| track.sid().as_str() == sid));
        let (Some(sid), Some(publication)) = (sid, publication) else { return };
        if publication.encryption_type() == EncryptionType::None && self.renewals.begin(&sid, crate::clock::now()) {
            publication.set_subscribed(false);
        }
    }

    async fn on_event(&mut self, event: SdkEvent) -> Flow {
        let at = crate::clock::now();
        match event {
            SdkEvent::TrackSubscribed { track: RemoteTrack::Audio(track), publication, .. } => {
                self.look(at);
                self.on_media(publication.sid().into(), track);
            }
            SdkEvent::TrackUnsubscribed { publication, .. } => {
                let sid: String = publication.sid().into();
                self.take_waiting_pcm();
                self.early.remove(&sid);
                self.close_streams_of(&sid);
            }
            SdkEvent::TrackSubscriptionFailed { error, track_sid, .. } => {
                if let Some(track) = self.roster.key(track_sid.as_str()) {
                    self.events.send(RoomEvent::SubscriptionFailed { track, reason: error.to_string(), at });
                }
            }
            SdkEvent::ParticipantDisconnected(participant) => self.on_left(&participant, at),
            SdkEvent::DataReceived { payload, topic, participant, .. } => {
                let topic = topic.unwrap_or_default();
                let message = DataMessage::User { topic, payload: payload.to_vec().into() };
                self.on_data(participant.map(|who| who.identity()), message, at);
            }
            SdkEvent::SipDTMFReceived { code, digit, participant } => {
                let message = DataMessage::Dtmf { code, digit: digit.unwrap_or_default() };
                self.on_data(participant.map(|who| who.identity()), message, at);
            }
            SdkEvent::Reconnecting => {
                self.interrupted.get_or_insert(at);
                self.events.send(RoomEvent::Media { state: MediaState::Interrupted, at });
            }
            SdkEvent::Reconnected => {
                self.interrupted = None;
                // The SDK may have taken everybody away and brought them back.
                self.roster.forget_departed();
                self.subscribed.clear();
                self.look(at);
                self.tell_media().await;
            }
            SdkEvent::Moved { room } => return Flow::Break(CloseReason::Moved(room.name)),
            SdkEvent::Disconnected { reason } => return Flow::Break(close_reason(reason)),
            SdkEvent::ParticipantConnected(_)
            | SdkEvent::TrackPublished { .. }
            | SdkEvent::TrackMuted { .. }
            | SdkEvent::TrackUnmuted { .. }
            | SdkEvent::ParticipantNameChanged { .. }
            | SdkEvent::ParticipantAttributesChanged { .. } => self.look(at),
            // What else has changed in the picture is seen at the next beat.
            _ => {}
        }
        ON
    }

    /// Compares the SDK's picture of the room with ours, where it is one: while the SDK connects anew, nobody is in it.
    fn look(&mut self, at: Instant) {
        if self.sdk.connection_state() != ConnectionState::Connected {
            return;
        }
        let now = room_info(&self.sdk);
        if now.name != self.room.name {
            // Moved, which is told in a moment: those who are in it now are in another call.
            return;
        }
        if now != self.room {
            self.room = now;
            self.events.send(RoomEvent::RoomUpdated { room: self.room.clone(), at });
        }
        let own = self.sdk.local_participant();
        let own =
            ParticipantInfo { sid: own.sid().into(), identity: own.identity().into(), ..ParticipantInfo::default() };
        let others: Vec<ParticipantInfo> = self.sdk.remote_participants().values().map(participant_info).collect();
        for event in self.roster.resync(Some(&own), &others, at) {
            self.events.send(event);
        }
        for publication in publications(&self.sdk) {
            self.subscribe(&publication, at);
        }
        let known: Vec<String> = self.early.keys().filter(|sid| self.roster.key(sid).is_some()).cloned().collect();
        for sid in known {
            if let Some(track) = self.early.remove(&sid) {
                self.on_media(sid, track);
            }
        }
    }

    fn subscribe(&mut self, publication: &RemoteTrackPublication, at: Instant) {
        let sid: String = publication.sid().into();
        let Some(key) = self.roster.key(&sid) else { return };
        if publication.encryption_type() == EncryptionType::None {
            if self.subscribed.insert(sid) {
                publication.set_subscribed(true);
            }
        } else if self.refused.insert(sid) {
            // Decoded without its key it would be noise.
            let reason = "it is encrypted from end to end, which engine libwebrtc does not open".to_owned();
            self.events.send(RoomEvent::SubscriptionFailed { track: key, reason, at });
        }
    }

    fn on_left(&mut self, participant: &RemoteParticipant, at: Instant) {
        // Else the SDK took it away by itself, and may bring it back.
        if participant.state() == ParticipantState::Disconnected {
            let info = ParticipantInfo {
                state: participant_info::State::Disconnected as i32,
                disconnect_reason: DisconnectReason::from(participant.disconnect_reason()) as i32,
                ..participant_info(participant)
            };
            for event in self.roster.update(&[info], at) {
                self.events.send(event);
            }
        }
    }

    fn on_data(&mut self, from: Option<ParticipantIdentity>, message: DataMessage, at: Instant) {
        let from = from.map(String::from).unwrap_or_default();
        if self.data.admits(&from, &message, at) {
            self.events.send(RoomEvent::Data { from, message, at });
        }
    }

    /// Media of a track begins.
    fn on_media(&mut self, sid: String, track: RemoteAudioTrack) {
        let Some(key) = self.roster.key(&sid) else {
            self.early.insert(sid, track);
            return;
        };
        self.close_streams_of(&sid);
        let stereo = publications(&self.sdk)
            .find(|publication| publication.sid().as_str() == sid)
            .is_some_and(|publication| is_stereo(&publication));
        let channels = if stereo { 2 } else { 1 };
        let ssrc = self.next_ssrc;
        let packets = match PcmPackets::new(key, ssrc, channels) {
            Ok(packets) => packets,
            Err(error) => {
                let reason = format!("its sound cannot be coded: {error}");
                self.events.send(RoomEvent::SubscriptionFailed { track: key, reason, at: crate::clock::now() });
                return;
            }
        };
        self.next_ssrc += 1;
        // Frames that wait for us are never thrown away: their number is the stream's clock.
        let options = NativeAudioStreamOptions { queue_size_frames: Some(0) };
        let pcm = NativeAudioStream::with_options(track.rtc_track(), SAMPLE_RATE as i32, i32::from(channels), options);
        let reader = tokio::spawn(read(pcm, ssrc, self.to_pcm.clone()));
        self.streams.insert(ssrc, Stream { sid, packets, reader });
    }

    fn close_streams_of(&mut self, sid: &str) {
        let ssrcs: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| stream.sid == sid).map(|(ssrc, _)| *ssrc).collect();
        ssrcs.into_iter().for_each(|ssrc| self.close_stream(ssrc));
    }

    fn close_stream(&mut self, ssrc: u32) {
        let Some(mut stream) = self.streams.remove(&ssrc) else { return };
        if let Err(error) = stream.packets.finish(&mut self.packets) {
            tracing::warn!(%error, sid = stream.sid, "the end of a track cannot be coded");
        }
        self.tell_packets();
    }

    fn take_waiting_pcm(&mut self) {
        while let Ok(pcm) = self.pcm.try_recv() {
            self.on_pcm(&pcm);
        }
    }

    fn on_pcm(&mut self, pcm: &Pcm) {
        // A stream that was closed may have had more on the way.
        let Some(stream) = self.streams.get_mut(&pcm.ssrc) else { return };
        if let Err(error) = stream.packets.take(&pcm.frame.data, pcm.at, &mut self.packets) {
            tracing::warn!(%error, sid = stream.sid, "20 ms of a track cannot be coded");
        }
        self.tell_packets();
    }

    fn tell_packets(&mut self) {
        for packet in self.packets.drain(..) {
            self.events.send(RoomEvent::Rtp(packet));
        }
    }

    async fn tell_media(&mut self) {
        let transport = transport(&self.sdk).await;
        self.events.send(RoomEvent::Media { state: MediaState::Connected(transport), at: crate::clock::now() });
    }
}

/// Joins at one server.
async fn connect(
    config: &RoomConfig,
    resolved: &Resolved,
    url: &str,
) -> Result<(livekit::Room, mpsc::UnboundedReceiver<SdkEvent>), RoomError> {
    let waited = config.timeouts.join;
    let attempt = Attempt { url, room: &resolved.ticket.room, token: &resolved.token, waited };
    let mut options = RoomOptions::default();
    options.auto_subscribe = false;
    options.single_peer_connection = false;
    options.connect_timeout = waited;
    if config.transport == TransportPolicy::Relay {
        options.rtc_config.ice_transport_type = IceTransportsType::Relay;
    }
    let (at, token) = (url.to_owned(), resolved.token.clone());
    // In a task of its own, because the SDK takes some of what a server says for granted, and panics without it.
    let mut connecting = JoinSet::new();
    connecting.spawn(async move { livekit::Room::connect(&at, &token, options).await });
    let unreachable = |problem: String| RoomError::Unreachable { url: url.to_owned(), problem };
    match tokio::time::timeout(waited, connecting.join_next()).await {
        Ok(Some(Ok(Ok((sdk, events))))) => {
            if sdk.local_participant().permission().is_none_or(|own| own.can_subscribe) {
                return Ok((sdk, events));
            }
            let problem = "the server does not let us subscribe to anything".into();
            Err(RoomError::RoomRefused { url: url.to_owned(), room: resolved.ticket.room.clone(), status: 0, problem })
        }
        Ok(Some(Ok(Err(livekit::RoomError::Engine(EngineError::Signal(error)))))) => Err(attempt.explain(error)),
        Ok(Some(Ok(Err(error)))) => Err(unreachable(error.to_string())),
        Ok(Some(Err(error))) => Err(unreachable(format!("the SDK failed: {error}"))),
        Ok(None) | Err(_) => Err(RoomError::JoinTimeout { url: url.to_owned(), after: waited }),
    }
}

/// Takes a track's PCM as it comes, and notes when.
async fn read(mut stream: NativeAudioStream, ssrc: u32, to: mpsc::UnboundedSender<Pcm>) {
    while let Some(frame) = stream.next().await {
        if to.send(Pcm { ssrc, frame, at: crate::clock::now() }).is_err() {
            return;
        }
    }
}

/// Which way media takes, as far as the SDK's statistics tell.
async fn transport(sdk: &livekit::Room) -> Transport {
    let Ok(Ok(stats)) = tokio::time::timeout(STATISTICS, sdk.get_stats()).await else {
        tracing::warn!("the SDK does not tell which way media takes; taken for UDP");
        return Transport::Udp;
    };
    let used = stats.subscriber_stats.iter().find_map(|stat| match stat {
        RtcStats::CandidatePair(pair) if pair.candidate_pair.nominated => Some(&pair.candidate_pair.local_candidate_id),
        _ => None,
    });
    let local = stats.subscriber_stats.iter().find_map(|stat| match stat {
        RtcStats::LocalCandidate(local) if Some(&local.rtc.id) == used => Some(&local.local_candidate),
        _ => None,
    });
    match local {
        Some(local) if local.candidate_type == Some(IceCandidateType::Relay) => Transport::Relay,
        Some(local) if local.protocol.eq_ignore_ascii_case("tcp") => Transport::Tcp,
        _ => Transport::Udp,
    }
}

fn close_reason(reason: DisconnectReason) -> CloseReason {
    let word = reason.as_str_name().to_lowercase();
    match reason {
        DisconnectReason::RoomDeleted | DisconnectReason::RoomClosed => CloseReason::RoomClosed,
        _ if error::is_the_servers_trouble(reason) => CloseReason::Lost(word),
        _ => CloseReason::Removed(word),
    }
}

/// The room as the SDK tells of it, which is without the server's version.
fn room_info(sdk: &livekit::Room) -> RoomInfo {
    let sid = sdk.maybe_sid().map(String::from).unwrap_or_default();
    RoomInfo { sid, name: sdk.name(), server_version: String::new() }
}

fn publications(sdk: &livekit::Room) -> impl Iterator<Item = RemoteTrackPublication> + use<> {
    let participants = sdk.remote_participants().into_values();
    participants
        .flat_map(|participant| participant.track_publications().into_values())
        .filter(|publication| publication.kind() == TrackKind::Audio)
}

fn is_stereo(publication: &RemoteTrackPublication) -> bool {
    publication.audio_features().contains(&proto::AudioTrackFeature::TfStereo)
}

/// A participant as the server tells of it.
fn participant_info(participant: &RemoteParticipant) -> ParticipantInfo {
    use participant_info::Kind;
    let kind = match participant.kind() {
        ParticipantKind::Standard => Kind::Standard,
        ParticipantKind::Ingress => Kind::Ingress,
        ParticipantKind::Egress => Kind::Egress,
        ParticipantKind::Sip => Kind::Sip,
        ParticipantKind::Agent => Kind::Agent,
        ParticipantKind::Connector => Kind::Connector,
        ParticipantKind::Bridge => Kind::Bridge,
    };
    ParticipantInfo {
        sid: participant.sid().into(),
        identity: participant.identity().into(),
        name: participant.name(),
        kind: kind as i32,
        attributes: participant.attributes().into_iter().collect(),
        joined_at_ms: participant.joined_at(),
        permission: participant.permission(),
        state: participant_info::State::Active as i32,
        tracks: participant.track_publications().values().map(track_info).collect(),
        ..ParticipantInfo::default()
    }
}

fn track_info(publication: &RemoteTrackPublication) -> TrackInfo {
    TrackInfo {
        sid: publication.sid().into(),
        name: publication.name(),
        r#type: proto::TrackType::from(publication.kind()) as i32,
        source: proto::TrackSource::from(publication.source()) as i32,
        muted: publication.is_muted(),
        mime_type: publication.mime_type(),
        audio_features: publication.audio_features().into_iter().map(|feature| feature as i32).collect(),
        encryption: encryption::Type::from(publication.encryption_type()) as i32,
        ..TrackInfo::default()
    }
}
