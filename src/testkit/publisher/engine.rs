//! The publisher's signalling and peer connection, driven by one task.

use std::net::{SocketAddr, UdpSocket as StdUdpSocket};
use std::time::{Duration, Instant};

use livekit_protocol as proto;
use livekit_signaling::{CLIENT_PROTOCOL_DEFAULT, SignalClient, SignalEvent, SignalEvents, SignalOptions};
use proto::request_response::{Reason, Request as Asked};
use proto::signal_request::Message as Request;
use proto::signal_response::Message as Response;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::channel::ChannelId;
use str0m::media::{Direction, MediaKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpWrite;
use str0m::{Candidate, Event, Input, Output, Rtc};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};

use super::source::{Source, muted_at};
use super::{PublisherConfig, SentLog, SentPacket, TrackOptions};
use crate::call::Codec;
use crate::clock;
use crate::e2ee::FrameSealer;
use crate::testkit::TestkitError;
use crate::time::SampleCount;

const JOIN_TIMEOUT: Duration = Duration::from_secs(15);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);
const VIDEO_INTERVAL: Duration = Duration::from_millis(100);
const VIDEO_TICKS: u32 = 9_000;
const MAX_DATAGRAM: usize = 2_000;

type Reply<T> = oneshot::Sender<Result<T, TestkitError>>;

/// The server's id of a track, and when its first sample is spoken.
pub(super) type Published = (String, Instant);

/// What the handles ask of the engine.
pub(super) enum Command {
    Publish {
        options: Box<TrackOptions>,
        source: Box<Source>,
        log: SentLog,
        said: watch::Sender<bool>,
        reply: Reply<Published>,
    },
    PublishVideo {
        reply: Reply<Published>,
    },
    Mute {
        sid: String,
        muted: bool,
        reply: Reply<()>,
    },
    Ratchet {
        sid: String,
        reply: Reply<()>,
    },
    Unpublish {
        sid: String,
        reply: Reply<()>,
    },
    Send {
        packet: Vec<u8>,
        reply: Reply<()>,
    },
    Watch {
        sid: String,
        count: usize,
        reply: oneshot::Sender<()>,
    },
    Cut {
        cut: bool,
        reply: Reply<()>,
    },
    Leave {
        reply: Reply<()>,
    },
    Crash,
}

pub(super) struct Engine {
    sid: String,
    signal: SignalClient,
    events: SignalEvents,
    commands: mpsc::UnboundedReceiver<Command>,
    rtc: Rtc,
    socket: UdpSocket,
    /// Nothing that is sent over it arrives, in either direction.
    is_cut: bool,
    local: SocketAddr,
    connected: bool,
    tracks: Vec<Track>,
    next_cid: u32,
    changes: Vec<Change>,
    pending: Option<Pending>,
    next_offer: u32,
    /// The channel for messages, once it is open, and what waits for it.
    channel: Option<ChannelId>,
    outbox: Vec<(Vec<u8>, Reply<()>)>,
}

/// A change of the media sections that waits for its turn to be offered.
enum Change {
    Add { cid: String },
    Remove { mid: Mid, reply: Reply<()> },
}

/// The offer that the server has not answered yet.
struct Pending {
    offer: SdpPendingOffer,
    id: u32,
    added: Vec<(String, Mid)>,
    removed: Vec<Reply<()>>,
}

struct Track {
    /// Our name for it, by which the server matches announcement and media section.
    cid: String,
    /// The server's id, empty until it has answered the announcement.
    sid: String,
    content: Content,
    reply: Option<Reply<Published>>,
    live: Option<Live>,
    seq: u64,
    first_timestamp: u32,
}

struct Live {
    mid: Mid,
    start: Instant,
    /// When the next frame is due.
    due: Instant,
}

enum Content {
    Voice(Box<Voice>),
    Video { frames: u32 },
}

struct Voice {
    options: TrackOptions,
    source: Source,
    log: SentLog,
    said: watch::Sender<bool>,
    /// Muted by command, ours or a moderator's.
    muted: bool,
    /// What the server was last told.
    told_muted: bool,
    watchers: Vec<(usize, oneshot::Sender<()>)>,
}

impl Engine {
    pub(super) async fn join(
        config: &PublisherConfig,
        token: &str,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self, TestkitError> {
        let who = format!("{} joining {}", config.identity, config.room);
        let joined = tokio::time::timeout(JOIN_TIMEOUT, Self::connect(config, token, commands)).await;
        joined.map_err(|_| failed(&who, format!("no media connection within {} s", JOIN_TIMEOUT.as_secs())))?
    }

    pub(super) fn sid(&self) -> &str {
        &self.sid
    }

    async fn connect(
        config: &PublisherConfig,
        token: &str,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self, TestkitError> {
        let who = format!("{} joining {}", config.identity, config.room);
        let mut options = SignalOptions::default();
        options.auto_subscribe = false;
        options.protocol_version = 16;
        options.client_capabilities = Vec::new();
        options.client_protocol = CLIENT_PROTOCOL_DEFAULT;
        options.region_failover = false;
        let (signal, join, events) = SignalClient::connect(&config.url, token, options, None)
            .await
            .map_err(|error| failed(&who, error.to_string()))?;

        let local_ip = local_ip(&config.url).map_err(TestkitError::io(format!("{who}: the way to {}", config.url)))?;
        let socket = UdpSocket::bind((local_ip, 0)).await.map_err(TestkitError::io(format!("{who}: a UDP socket")))?;
        let local = socket.local_addr().map_err(TestkitError::io(format!("{who}: a UDP socket")))?;
        let mut rtc = Rtc::builder()
            .clear_codecs()
            .enable_opus(true, false)
            .enable_pcmu(true, false)
            .enable_pcma(true, false)
            .enable_vp8(true)
            .set_rtp_mode(true)
            .build(clock::now());
        let candidate = Candidate::host(local, Protocol::Udp).map_err(|error| failed(&who, error.to_string()))?;
        rtc.add_local_candidate(candidate);

        let mut engine = Self {
            sid: join.participant.map(|participant| participant.sid).unwrap_or_default(),
            signal,
            events,
            commands,
            rtc,
            socket,
            is_cut: false,
            local,
            connected: false,
            tracks: Vec::new(),
            next_cid: 0,
            changes: Vec::new(),
            pending: None,
            next_offer: 1,
            channel: None,
            outbox: Vec::new(),
        };
        // A data channel is reason enough for a connection, so that others see this participant before it publishes.
        let mut api = engine.rtc.sdp_api();
        api.add_channel("_reliable".to_owned());
        let (offer, pending) = api.apply().ok_or_else(|| failed(&who, "nothing to offer".to_owned()))?;
        engine.offer(offer.to_sdp_string(), pending, Vec::new(), Vec::new()).await;
        while !engine.connected {
            if let Some(end) = engine.step().await? {
                return Err(failed(&who, end));
            }
        }
        Ok(engine)
    }

    /// Runs until the end, and returns what it was.
    pub(super) async fn run(mut self) -> String {
        loop {
            match self.step().await {
                Ok(None) => {}
                Ok(Some(reason)) => return reason,
                Err(error) => return error.to_string(),
            }
        }
    }

    /// Does what is due, then waits for the next thing to happen and handles it. Returns the reason once all is over.
    async fn step(&mut self) -> Result<Option<String>, TestkitError> {
        self.send_due_frames().await?;
        self.negotiate().await?;
        self.send_messages();
        let timeout = self.drain()?;
        if !self.rtc.is_alive() {
            return Ok(Some(self.why_lost().await));
        }
        let due = self.tracks.iter().filter_map(|track| track.live.as_ref()).map(|live| live.due).min();
        let wake = due.map_or(timeout, |due| due.min(timeout));

        let mut buffer = [0; MAX_DATAGRAM];
        tokio::select! {
            biased;
            received = self.socket.recv_from(&mut buffer) => {
                // An error is an ICMP answer to something sent before; ICE finds out by itself.
                if let Ok((len, source)) = received
                    && !self.is_cut
                {
                    self.receive(source, &buffer[..len])?;
                }
                Ok(None)
            }
            event = self.events.recv() => match event {
                Some(SignalEvent::Message(message)) => self.on_signal(*message).await,
                Some(SignalEvent::Close(reason)) => Ok(Some(format!("signalling closed: {reason}"))),
                None => Ok(Some("signalling closed".to_owned())),
            },
            command = self.commands.recv() => match command {
                Some(command) => self.on_command(command).await,
                None => Ok(Some("dropped".to_owned())),
            },
            () = tokio::time::sleep_until(wake.into()) => {
                self.rtc.handle_input(Input::Timeout(clock::now())).map_err(broken)?;
                Ok(None)
            }
        }
    }

    /// Why the peer connection ended: the server closes it before it says goodbye.
    async fn why_lost(&mut self) -> String {
        let goodbye = async {
            loop {
                match self.events.recv().await {
                    Some(SignalEvent::Message(message)) => {
                        if let Response::Leave(leave) = *message {
                            return told_to_leave(&leave);
                        }
                    }
                    Some(SignalEvent::Close(_)) | None => return "the server is gone".to_owned(),
                }
            }
        };
        let lost = |_| "the peer connection was lost".to_owned();
        tokio::time::timeout(GOODBYE_TIMEOUT, goodbye).await.unwrap_or_else(lost)
    }

    fn receive(&mut self, source: SocketAddr, datagram: &[u8]) -> Result<(), TestkitError> {
        let Ok(receive) = Receive::new(Protocol::Udp, source, self.local, datagram) else {
            return Ok(());
        };
        self.rtc.handle_input(Input::Receive(clock::now(), receive)).map_err(broken)
    }

    /// Hands out everything the peer connection has to say, and returns when it wants to be asked again.
    fn drain(&mut self) -> Result<Instant, TestkitError> {
        loop {
            match self.rtc.poll_output().map_err(broken)? {
                Output::Timeout(at) => return Ok(at),
                // A datagram that the socket refuses is lost, as any datagram may be.
                Output::Transmit(_) if self.is_cut => {}
                Output::Transmit(transmit) => {
                    let _ = self.socket.try_send_to(&transmit.contents, transmit.destination);
                }
                Output::Event(Event::Connected) => self.connected = true,
                Output::Event(Event::ChannelOpen(id, _)) => self.channel = Some(id),
                Output::Event(_) => {}
            }
        }
    }

    async fn on_signal(&mut self, message: Response) -> Result<Option<String>, TestkitError> {
        match message {
            Response::Answer(answer) => self.on_answer(&answer)?,
            Response::Trickle(trickle) if trickle.target == proto::SignalTarget::Publisher as i32 => {
                let init: serde_json::Value = serde_json::from_str(&trickle.candidate_init).unwrap_or_default();
                let candidate = init["candidate"].as_str().map(Candidate::from_sdp_string);
                if let Some(Ok(candidate)) = candidate {
                    self.rtc.add_remote_candidate(candidate);
                }
            }
            Response::TrackPublished(published) => {
                if let Some(track) = self.tracks.iter_mut().find(|track| track.cid == published.cid) {
                    track.sid = published.track.map(|info| info.sid).unwrap_or_default();
                    self.changes.push(Change::Add { cid: published.cid });
                }
            }
            Response::Mute(mute) => self.mute(&mute.sid, mute.muted).await,
            Response::RequestResponse(response) => {
                if let (reason, Some(Asked::AddTrack(track))) = (response.reason(), &response.request)
                    && !matches!(reason, Reason::Ok | Reason::Queued)
                {
                    self.refuse(&track.cid, failed("publishing", format!("{reason:?} {}", response.message)));
                }
            }
            Response::Leave(leave) => return Ok(Some(told_to_leave(&leave))),
            // Everything else concerns subscribers or the room's state.
            _ => {}
        }
        Ok(None)
    }

    async fn on_command(&mut self, command: Command) -> Result<Option<String>, TestkitError> {
        match command {
            Command::Publish { options, source, log, said, reply } => {
                let request = announcement(&options, source.channel_count());
                let (first_seq, first_timestamp) = (options.first_seq, options.first_timestamp);
                let voice = Voice {
                    options: *options,
                    source: *source,
                    log,
                    said,
                    muted: false,
                    told_muted: false,
                    watchers: Vec::new(),
                };
                let content = Content::Voice(Box::new(voice));
                self.announce(content, request, first_seq, first_timestamp, reply).await;
            }
            Command::PublishVideo { reply } => {
                let request = proto::AddTrackRequest {
                    name: "camera".to_owned(),
                    r#type: proto::TrackType::Video as i32,
                    source: proto::TrackSource::Camera as i32,
                    width: 64,
                    height: 64,
                    ..Default::default()
                };
                self.announce(Content::Video { frames: 0 }, request, None, None, reply).await;
            }
            Command::Mute { sid, muted, reply } => {
                let known = self.tracks.iter().any(|track| track.sid == sid);
                self.mute(&sid, muted).await;
                let _ = reply.send(known.then_some(()).ok_or_else(|| failed("mute", format!("no track {sid}"))));
            }
            Command::Ratchet { sid, reply } => {
                let mut known = self.tracks.iter_mut().filter(|track| track.sid == sid);
                let sealer = known.find_map(|track| match &mut track.content {
                    Content::Voice(voice) => voice.options.sealer.as_mut(),
                    Content::Video { .. } => None,
                });
                let ratcheted =
                    sealer.map(FrameSealer::ratchet).ok_or_else(|| failed("ratchet", format!("no key of {sid}")));
                let _ = reply.send(ratcheted);
            }
            Command::Unpublish { sid, reply } => {
                let at = self.tracks.iter().position(|track| track.sid == sid && track.live.is_some());
                match at.map(|at| self.tracks.remove(at)).and_then(|track| track.live) {
                    Some(live) => self.changes.push(Change::Remove { mid: live.mid, reply }),
                    None => drop(reply.send(Err(failed("unpublish", format!("no track {sid}"))))),
                }
            }
            Command::Send { packet, reply } => self.outbox.push((packet, reply)),
            Command::Watch { sid, count, reply } => {
                let track = self.tracks.iter_mut().find(|track| track.sid == sid);
                if let Some(Track { content: Content::Voice(voice), .. }) = track {
                    voice.watchers.push((count, reply));
                    voice.notify();
                }
            }
            Command::Leave { reply } => {
                let leave = proto::LeaveRequest {
                    reason: proto::DisconnectReason::ClientInitiated as i32,
                    action: proto::leave_request::Action::Disconnect as i32,
                    ..Default::default()
                };
                let goodbye = async {
                    self.signal.send(Request::Leave(leave)).await;
                    self.signal.close().await;
                };
                // A server that does not take the goodbye in time is told nothing more.
                let _ = tokio::time::timeout(LEAVE_TIMEOUT, goodbye).await;
                let _ = reply.send(Ok(()));
                return Ok(Some("left".to_owned()));
            }
            Command::Cut { cut, reply } => {
                self.is_cut = cut;
                let _ = reply.send(Ok(()));
            }
            Command::Crash => return Ok(Some("crashed".to_owned())),
        }
        Ok(None)
    }

    /// Sends what waits for the channel.
    fn send_messages(&mut self) {
        let Some(mut channel) = self.channel.and_then(|id| self.rtc.channel(id)) else { return };
        for (packet, reply) in self.outbox.drain(..) {
            let sent = match channel.write(true, &packet) {
                Ok(true) => Ok(()),
                Ok(false) => Err(failed("a message", "the channel is full".to_owned())),
                Err(error) => Err(broken(error)),
            };
            let _ = reply.send(sent);
        }
    }

    async fn announce(
        &mut self,
        content: Content,
        mut request: proto::AddTrackRequest,
        first_seq: Option<u16>,
        first_timestamp: Option<u32>,
        reply: Reply<Published>,
    ) {
        self.next_cid += 1;
        let cid = format!("callreel-{}-{}", self.next_cid, self.sid);
        request.cid = cid.clone();
        for codec in &mut request.simulcast_codecs {
            codec.cid = cid.clone();
        }
        self.tracks.push(Track {
            cid,
            sid: String::new(),
            content,
            reply: Some(reply),
            live: None,
            seq: u64::from(first_seq.unwrap_or_else(|| fastrand::u16(..1 << 15))),
            first_timestamp: first_timestamp.unwrap_or_else(|| fastrand::u32(..)),
        });
        self.signal.send(Request::AddTrack(request)).await;
    }

    /// Gives up a track that the server does not want.
    fn refuse(&mut self, cid: &str, error: TestkitError) {
        let at = self.tracks.iter().position(|track| track.cid == cid);
        if let Some(reply) = at.and_then(|at| self.tracks.remove(at).reply) {
            let _ = reply.send(Err(error));
        }
    }

    /// Offers what has changed, one offer at a time.
    async fn negotiate(&mut self) -> Result<(), TestkitError> {
        if self.pending.is_some() || self.changes.is_empty() {
            return Ok(());
        }
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        let mut api = self.rtc.sdp_api();
        for change in self.changes.drain(..) {
            match change {
                Change::Add { cid } => {
                    let Some(track) = self.tracks.iter().find(|track| track.cid == cid) else { continue };
                    let kind = match track.content {
                        Content::Voice(_) => MediaKind::Audio,
                        Content::Video { .. } => MediaKind::Video,
                    };
                    let mid = api.add_media(kind, Direction::SendOnly, None, Some(cid.clone()), None);
                    added.push((cid, mid));
                }
                Change::Remove { mid, reply } => {
                    api.set_direction(mid, Direction::Inactive);
                    removed.push(reply);
                }
            }
        }
        match api.apply() {
            Some((offer, pending)) => self.offer(offer.to_sdp_string(), pending, added, removed).await,
            None => removed.into_iter().for_each(|reply| drop(reply.send(Ok(())))),
        }
        Ok(())
    }

    async fn offer(&mut self, sdp: String, offer: SdpPendingOffer, added: Vec<(String, Mid)>, removed: Vec<Reply<()>>) {
        let id = self.next_offer;
        self.next_offer += 1;
        self.pending = Some(Pending { offer, id, added, removed });
        let description = proto::SessionDescription { r#type: "offer".to_owned(), sdp, id, ..Default::default() };
        self.signal.send(Request::Offer(description)).await;
    }

    fn on_answer(&mut self, answer: &proto::SessionDescription) -> Result<(), TestkitError> {
        let Some(pending) = self.pending.take_if(|pending| answer.id == 0 || answer.id == pending.id) else {
            return Ok(());
        };
        let bad = |error: String| failed("the server's answer", error);
        let answer = SdpAnswer::from_sdp_string(&answer.sdp).map_err(|error| bad(error.to_string()))?;
        self.rtc.sdp_api().accept_answer(pending.offer, answer).map_err(|error| bad(error.to_string()))?;
        for (cid, mid) in pending.added {
            self.go_live(&cid, mid);
        }
        for reply in pending.removed {
            let _ = reply.send(Ok(()));
        }
        Ok(())
    }

    fn go_live(&mut self, cid: &str, mid: Mid) {
        let Some(track) = self.tracks.iter_mut().find(|track| track.cid == cid) else { return };
        if !self.rtc.media(mid).is_some_and(|media| media.remote_pts().contains(&track.content.pt())) {
            return self.refuse(cid, failed("publishing", "the server does not take this codec".to_owned()));
        }
        let start = match &track.content {
            Content::Voice(voice) => voice.options.start.unwrap_or_else(clock::now),
            Content::Video { .. } => clock::now(),
        };
        let due = match &track.content {
            Content::Voice(voice) => voice.spoken(start),
            Content::Video { .. } => start,
        };
        track.live = Some(Live { mid, start, due });
        if let Some(reply) = track.reply.take() {
            let _ = reply.send(Ok((track.sid.clone(), start)));
        }
    }

    /// Mutes or unmutes a voice, and tells the server what it does not know yet.
    async fn mute(&mut self, sid: &str, muted: bool) {
        for track in self.tracks.iter_mut().filter(|track| track.sid == sid) {
            if let Content::Voice(voice) = &mut track.content {
                voice.muted = muted;
                voice.told_muted = muted;
            }
        }
        let request = proto::MuteTrackRequest { sid: sid.to_owned(), muted };
        self.signal.send(Request::Mute(request)).await;
    }

    async fn send_due_frames(&mut self) -> Result<(), TestkitError> {
        for at in 0..self.tracks.len() {
            while let Some((mid, start)) = self.tracks[at].due(clock::now()) {
                let track = &mut self.tracks[at];
                let pt = track.content.pt();
                let frame = match &mut track.content {
                    Content::Voice(voice) => voice.next(start, track.live.as_mut())?,
                    Content::Video { frames } => video_frame(frames, track.live.as_mut()),
                };
                if let Some(muted) = frame.tell_muted {
                    let request = proto::MuteTrackRequest { sid: track.sid.clone(), muted };
                    self.signal.send(Request::Mute(request)).await;
                }
                if let Some(payload) = frame.payload {
                    self.send(at, mid, pt, payload, &frame.place)?;
                }
                if let Content::Voice(voice) = &mut self.tracks[at].content {
                    voice.notify();
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, at: usize, mid: Mid, pt: Pt, payload: Vec<u8>, place: &Place) -> Result<(), TestkitError> {
        let track = &mut self.tracks[at];
        let seq = track.seq;
        track.seq += 1;
        let timestamp = track.first_timestamp.wrapping_add(place.ticks);
        let payload_len = payload.len();
        let now = clock::now();
        let mut api = self.rtc.direct_api();
        let stream = api
            .stream_tx_by_mid(mid, None)
            .ok_or_else(|| failed("sending", format!("no stream for media section {mid}")))?;
        stream.write_rtp(RtpWrite::new(pt, seq.into(), timestamp, now, payload).marker(place.marker));
        self.rtc.handle_input(Input::Timeout(now)).map_err(broken)?;
        self.drain()?;
        if let Content::Voice(voice) = &mut self.tracks[at].content {
            let position = SampleCount(place.position);
            voice.log.push(SentPacket { seq: seq as u16, timestamp, payload_len, position, at: now });
        }
        Ok(())
    }
}

/// A frame that is due: what to send, and where it belongs.
struct DueFrame {
    payload: Option<Vec<u8>>,
    place: Place,
    tell_muted: Option<bool>,
}

struct Place {
    /// RTP ticks after the first timestamp.
    ticks: u32,
    position: u64,
    marker: bool,
}

impl Track {
    fn due(&self, now: Instant) -> Option<(Mid, Instant)> {
        self.live.as_ref().filter(|live| live.due <= now).map(|live| (live.mid, live.start))
    }
}

impl Content {
    fn pt(&self) -> Pt {
        // The payload types that our own offer gives these codecs.
        let pt = match self {
            Self::Voice(voice) => match voice.options.codec {
                Codec::Opus => 111,
                Codec::Pcmu => 0,
                Codec::Pcma => 8,
            },
            Self::Video { .. } => 96,
        };
        Pt::new_with_value(pt)
    }
}

impl Voice {
    fn next(&mut self, start: Instant, live: Option<&mut Live>) -> Result<DueFrame, TestkitError> {
        let scheduled = muted_at(&self.options.mutes, self.source.position());
        let muted = self.muted || scheduled;
        let tell_muted = (muted != self.told_muted).then_some(muted);
        self.told_muted = muted;
        let mut frame = self.source.next(muted)?;
        if let (Some(sealer), Some(payload)) = (&mut self.options.sealer, &mut frame.payload) {
            *payload = sealer.seal(payload);
        }
        if let Some(live) = live {
            live.due = self.spoken(start);
        }
        // RTP timestamps wrap by definition (RFC 3550 §5.1).
        let place = Place { ticks: frame.ticks as u32, position: frame.position, marker: frame.marker };
        Ok(DueFrame { payload: frame.payload, place, tell_muted })
    }

    /// When the next frame will have been spoken to its end, by this publisher's own clock.
    fn spoken(&self, start: Instant) -> Instant {
        let end = SampleCount(self.source.position()).as_duration() + self.options.frame;
        start + end.div_f64(self.options.skew.factor())
    }

    fn notify(&mut self) {
        if self.source.at_end() {
            self.said.send_if_modified(|said| !std::mem::replace(said, true));
        }
        let sent = self.log.len();
        for (_, reply) in self.watchers.extract_if(.., |(count, _)| *count <= sent) {
            let _ = reply.send(());
        }
    }
}

/// A VP8 key frame's first bytes (RFC 7741 §4.2, RFC 6386 §9.1) and padding: complete enough to be forwarded.
fn video_frame(frames: &mut u32, live: Option<&mut Live>) -> DueFrame {
    let ticks = *frames * VIDEO_TICKS;
    *frames += 1;
    if let Some(live) = live {
        live.due += VIDEO_INTERVAL;
    }
    let mut payload = vec![0x10, 0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 64, 0, 64, 0];
    payload.resize(60, 0);
    DueFrame { payload: Some(payload), place: Place { ticks, position: 0, marker: true }, tell_muted: None }
}

fn announcement(options: &TrackOptions, channels: usize) -> proto::AddTrackRequest {
    let mut features = Vec::new();
    if channels > 1 {
        features.push(proto::AudioTrackFeature::TfStereo as i32);
    }
    if !options.dtx {
        features.push(proto::AudioTrackFeature::TfNoDtx as i32);
    }
    let source =
        if options.screen_share { proto::TrackSource::ScreenShareAudio } else { proto::TrackSource::Microphone };
    // Opus is what servers expect unasked; another codec has to be announced.
    let codecs = match options.codec {
        Codec::Opus => None,
        Codec::Pcmu => Some("pcmu"),
        Codec::Pcma => Some("pcma"),
    };
    let codecs = codecs.map(|codec| proto::SimulcastCodec { codec: codec.to_owned(), ..Default::default() });
    proto::AddTrackRequest {
        simulcast_codecs: codecs.into_iter().collect(),
        name: options.name.clone(),
        r#type: proto::TrackType::Audio as i32,
        source: source as i32,
        disable_red: true,
        encryption: match options.sealer {
            Some(_) => proto::encryption::Type::Gcm as i32,
            None => proto::encryption::Type::None as i32,
        },
        audio_features: features,
        ..Default::default()
    }
}

/// The address from which this machine reaches the server.
fn local_ip(url: &str) -> std::io::Result<std::net::IpAddr> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        _ => authority,
    };
    // Connecting a UDP socket sends nothing; it asks the routing table. Any port will do.
    let target = std::net::ToSocketAddrs::to_socket_addrs(&(host.trim_matches(['[', ']']), 9))?
        .next()
        .ok_or_else(|| std::io::Error::other(format!("{host} has no address")))?;
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = StdUdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

fn told_to_leave(leave: &proto::LeaveRequest) -> String {
    format!("told to leave: {:?}", leave.reason())
}

fn failed(what: &str, reason: String) -> TestkitError {
    TestkitError::Publisher(format!("{what}: {reason}"))
}

fn broken(error: str0m::RtcError) -> TestkitError {
    failed("the peer connection broke", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback() {
        assert!(local_ip("ws://127.0.0.1:7880").unwrap().is_loopback());
        assert!(local_ip("ws://127.0.0.1/path").unwrap().is_loopback());
    }
}
