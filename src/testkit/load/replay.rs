//! The server's end of many calls without a server: signalling as far as a recorder needs it, and media that is only
//! encrypted and sent. What it costs is little beside what recording does, so recorders reach their limit first.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use livekit_api::access_token::TokenVerifier;
use livekit_protocol as proto;
use prost::Message as _;
use proto::signal_request::Message as Request;
use proto::signal_response::Message as Response;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec as FormatCodec;
use str0m::media::{Direction, MediaKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpWrite;
use str0m::{Candidate, Event, Input, Output, Rtc};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request as Upgrade, Response as Upgraded};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

use super::script::Script;
use crate::clock;
use crate::testkit::TestkitError;

pub(super) const KEY: &str = "replay";
pub(super) const SECRET: &str = "loopback-only-secret-of-the-replay-0001";

/// What a packet holds.
const FRAME: Duration = Duration::from_millis(20);

/// How often media is looked after: packets leave in bunches of the calls that are due.
const STEP: Duration = Duration::from_millis(2);

/// How far the grids of two talkers lie apart, and of two calls.
const TALKERS_APART: Duration = Duration::from_millis(9);
const CALLS_APART: u64 = 7;

/// RTP ticks a packet.
const TICKS: u32 = 960;

/// Longer than any datagram that recorders send.
const DATAGRAM: usize = 2_000;

/// All calls, until it is dropped.
pub(super) struct Replay {
    url: String,
    apart: usize,
    frames: usize,
    board: Arc<Board>,
    signalling: JoinHandle<()>,
    media: Option<thread::JoinHandle<()>>,
}

/// What is known of the calls.
#[derive(Default)]
struct Board {
    over: AtomicBool,
    sent: AtomicU64,
    /// How late the latest packet left since it was asked, in nanoseconds.
    late: AtomicU64,
    /// When the first sample of each talker was spoken, by call.
    begun: Mutex<HashMap<usize, Vec<Instant>>>,
}

/// A call whose recorder has answered.
struct Opened {
    call: usize,
    from: usize,
    rtc: Rtc,
    mids: Vec<Mid>,
    pt: Pt,
}

impl Replay {
    /// Waits for recorders.
    pub(super) async fn start(script: Arc<Script>, talkers: usize, apart: usize) -> Result<Self, TestkitError> {
        let failed = || TestkitError::io("a loopback port");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed())?;
        let url = format!("ws://{}", listener.local_addr().map_err(failed())?);
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
        socket.set_nonblocking(true).map_err(failed())?;
        let address = socket.local_addr().map_err(failed())?;
        let board = Arc::new(Board::default());
        let (open, opened) = mpsc::channel();
        let media =
            Media { script: Arc::clone(&script), socket, address, board: Arc::clone(&board), calls: Vec::new() };
        let thread = thread::Builder::new().name("replay".to_owned()).spawn(move || media.run(&opened));
        let frames = script.frames();
        let desk = Desk { talkers, apart, frames, address, open };
        Ok(Self {
            url,
            apart,
            frames,
            board,
            signalling: tokio::spawn(desk.run(listener)),
            media: Some(thread.map_err(TestkitError::io("a thread for media"))?),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// How many packets were sent.
    pub(super) fn sent(&self) -> u64 {
        self.board.sent.load(Ordering::Relaxed)
    }

    /// How late the latest packet left since this was asked last.
    pub(super) fn take_late(&self) -> Duration {
        Duration::from_nanos(self.board.late.swap(0, Ordering::Relaxed))
    }

    /// The packet of the script with which a call begins.
    pub(super) fn from(&self, call: usize) -> usize {
        call * self.apart % self.frames
    }

    /// When each talker of a call began; nothing for a call that did not.
    pub(super) fn begun(&self, call: usize) -> Vec<Instant> {
        self.board.begun().get(&call).cloned().unwrap_or_default()
    }
}

impl Board {
    fn begun(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Instant>>> {
        // Whoever panicked has left it whole.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.signalling.abort();
        self.board.over.store(true, Ordering::Relaxed);
        if let Some(media) = self.media.take() {
            let _ = media.join();
        }
    }
}

/// Signalling.
#[derive(Clone)]
struct Desk {
    talkers: usize,
    apart: usize,
    frames: usize,
    address: SocketAddr,
    open: mpsc::Sender<Opened>,
}

impl Desk {
    async fn run(self, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let desk = self.clone();
            tokio::spawn(async move {
                // A recorder that does not get on says so itself.
                let _ = desk.serve(stream).await;
            });
        }
    }

    async fn serve(self, stream: TcpStream) -> Result<(), TestkitError> {
        let mut token = None;
        #[expect(clippy::result_large_err, reason = "the library's own type")]
        let upgrade = |request: &Upgrade, response: Upgraded| -> Result<Upgraded, ErrorResponse> {
            let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
            token = header.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned).or_else(|| {
                let query = request.uri().query().unwrap_or_default();
                query.split('&').find_map(|pair| pair.strip_prefix("access_token=")).map(str::to_owned)
            });
            Ok(response)
        };
        let mut ws = accept_hdr_async(stream, upgrade).await.map_err(|error| failed(&error))?;
        let claims = TokenVerifier::with_api_key(KEY, SECRET)
            .verify(token.as_deref().unwrap_or_default())
            .map_err(|error| failed(&error))?;
        let room = claims.video.room;
        let call = room.rsplit('-').next().and_then(|call| call.parse().ok()).ok_or_else(|| failed(&room))?;
        self.join(&mut ws, &room, &claims.sub).await?;
        let mut offered = None;
        while let Some(Ok(message)) = ws.next().await {
            let Message::Binary(bytes) = message else { continue };
            let request = proto::SignalRequest::decode(bytes).map_err(|error| failed(&error))?;
            match request.message {
                Some(Request::Subscription(_)) if offered.is_none() => offered = Some(self.offer(&mut ws).await?),
                Some(Request::Answer(answer)) => {
                    if let Some((rtc, mids, pending)) = offered.take() {
                        self.accept(call, rtc, mids, pending, &answer.sdp)?;
                    }
                }
                Some(Request::PingReq(ping)) => {
                    let pong = proto::Pong { last_ping_timestamp: ping.timestamp, ..Default::default() };
                    say(&mut ws, Response::PongResp(pong)).await?;
                }
                Some(Request::Leave(_)) => break,
                _ => {}
            }
        }
        // A recorder that has gone needs no goodbye.
        let _ = ws.close(None).await;
        Ok(())
    }

    async fn join(&self, ws: &mut Socket, room: &str, identity: &str) -> Result<(), TestkitError> {
        let permission = proto::ParticipantPermission { can_subscribe: true, hidden: true, ..Default::default() };
        let talker = |index: usize| proto::ParticipantInfo {
            sid: format!("PA_{room}_{index}"),
            identity: format!("talker-{index}"),
            state: proto::participant_info::State::Active as i32,
            tracks: vec![proto::TrackInfo {
                sid: track(index),
                r#type: proto::TrackType::Audio as i32,
                source: proto::TrackSource::Microphone as i32,
                mime_type: "audio/opus".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let join = proto::JoinResponse {
            room: Some(proto::Room { sid: format!("RM_{room}"), name: room.to_owned(), ..Default::default() }),
            participant: Some(proto::ParticipantInfo {
                sid: format!("PA_{room}_recorder"),
                identity: identity.to_owned(),
                permission: Some(permission),
                ..Default::default()
            }),
            other_participants: (0..self.talkers).map(talker).collect(),
            server_info: Some(proto::ServerInfo { version: "replay".to_owned(), ..Default::default() }),
            subscriber_primary: true,
            ping_interval: 10,
            ping_timeout: 60,
            ..Default::default()
        };
        say(ws, Response::Join(join)).await
    }

    async fn offer(&self, ws: &mut Socket) -> Result<(Rtc, Vec<Mid>, SdpPendingOffer), TestkitError> {
        let mut rtc = Rtc::builder()
            .clear_codecs()
            .enable_opus(true, false)
            .set_rtp_mode(true)
            .set_ice_lite(true)
            .build(clock::now());
        rtc.add_local_candidate(Candidate::host(self.address, Protocol::Udp).map_err(|error| failed(&error))?);
        let mut api = rtc.sdp_api();
        let section = |index: usize| {
            let (stream, track) = (Some(format!("PA_{index}")), Some(track(index)));
            api.add_media(MediaKind::Audio, Direction::SendOnly, stream, track, None)
        };
        let mids = (0..self.talkers).map(section).collect();
        let (offer, pending) = api.apply().ok_or_else(|| failed(&"nothing to offer"))?;
        let (r#type, sdp) = ("offer".to_owned(), offer.to_sdp_string());
        let offer = proto::SessionDescription { r#type, sdp, id: 1, ..Default::default() };
        say(ws, Response::Offer(offer)).await?;
        Ok((rtc, mids, pending))
    }

    fn accept(
        &self,
        call: usize,
        mut rtc: Rtc,
        mids: Vec<Mid>,
        pending: SdpPendingOffer,
        answer: &str,
    ) -> Result<(), TestkitError> {
        let answer = SdpAnswer::from_sdp_string(answer).map_err(|error| failed(&error))?;
        rtc.sdp_api().accept_answer(pending, answer).map_err(|error| failed(&error))?;
        let opus = rtc.codec_config().params().iter().find(|param| param.spec().codec == FormatCodec::Opus);
        let pt = opus.map(|param| param.pt()).ok_or_else(|| failed(&"no Opus to send"))?;
        let from = call * self.apart % self.frames;
        self.open.send(Opened { call, from, rtc, mids, pt }).map_err(|error| failed(&error))
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn say(ws: &mut Socket, message: Response) -> Result<(), TestkitError> {
    let bytes = proto::SignalResponse { message: Some(message) }.encode_to_vec();
    ws.send(Message::binary(bytes)).await.map_err(|error| failed(&error))
}

fn track(index: usize) -> String {
    format!("TR_{index}")
}

fn failed(error: &dyn std::fmt::Display) -> TestkitError {
    TestkitError::Simulation(format!("replay: {error}"))
}

/// The media of all calls.
struct Media {
    script: Arc<Script>,
    socket: UdpSocket,
    address: SocketAddr,
    board: Arc<Board>,
    calls: Vec<Call>,
}

struct Talker {
    /// When the first sample is spoken.
    start: Instant,
    /// Frames that were spoken.
    frames: u32,
    /// The next sequence number: a frame that is left out takes none.
    seq: u64,
}

struct Call {
    opened: Opened,
    connected: bool,
    talkers: Vec<Talker>,
}

impl Media {
    fn run(mut self, opened: &mpsc::Receiver<Opened>) {
        let mut sources = HashMap::new();
        while !self.board.over.load(Ordering::Relaxed) {
            while let Ok(opened) = opened.try_recv() {
                self.calls.push(Call { opened, connected: false, talkers: Vec::new() });
            }
            self.receive(&mut sources);
            let now = clock::now();
            for call in &mut self.calls {
                // A call whose recorder is gone ends here.
                if call.opened.rtc.is_alive() && call.advance(&self.script, &self.socket, &self.board, now).is_err() {
                    call.opened.rtc.disconnect();
                }
            }
            thread::sleep(clock::beat(clock::now(), STEP).saturating_duration_since(clock::now()));
        }
    }

    fn receive(&mut self, sources: &mut HashMap<SocketAddr, usize>) {
        let mut buffer = [0; DATAGRAM];
        while let Ok((length, source)) = self.socket.recv_from(&mut buffer) {
            let now = clock::now();
            let Ok(received) = Receive::new(Protocol::Udp, source, self.address, &buffer[..length]) else { continue };
            let input = Input::Receive(now, received);
            let known = sources.get(&source).copied();
            let index = known.or_else(|| self.calls.iter().position(|call| call.opened.rtc.accepts(&input)));
            let Some(index) = index else { continue };
            let call = &mut self.calls[index];
            sources.insert(source, index);
            if call.opened.rtc.handle_input(input).is_err() || call.drain(&self.socket).is_err() {
                call.opened.rtc.disconnect();
            }
        }
    }
}

impl Call {
    /// Sends what is due.
    fn advance(
        &mut self,
        script: &Script,
        socket: &UdpSocket,
        board: &Board,
        now: Instant,
    ) -> Result<(), TestkitError> {
        if self.talkers.is_empty() {
            self.opened.rtc.handle_input(Input::Timeout(now)).map_err(|error| failed(&error))?;
            self.drain(socket)?;
            if !self.connected {
                return Ok(());
            }
            let phase = Duration::from_millis(self.opened.call as u64 * CALLS_APART % 20);
            let start = clock::beat(now, FRAME) + phase;
            let talker = |index: u32| Talker { start: start + TALKERS_APART * index, frames: 0, seq: 0 };
            self.talkers = (0..self.opened.mids.len() as u32).map(talker).collect();
            let begun = self.talkers.iter().map(|talker| talker.start).collect();
            board.begun().insert(self.opened.call, begun);
        }
        for index in 0..self.talkers.len() {
            let mid = self.opened.mids[index];
            let talker = &mut self.talkers[index];
            let due = talker.start + FRAME * (talker.frames + 1);
            if due > now {
                continue;
            }
            let (frame, seq) = (talker.frames, talker.seq);
            talker.frames += 1;
            board.late.fetch_max(now.duration_since(due).as_nanos() as u64, Ordering::Relaxed);
            let place = (self.opened.from + frame as usize) % script.frames();
            let Some(payload) = script.packet(index, place) else { continue };
            talker.seq += 1;
            let mut api = self.opened.rtc.direct_api();
            let stream = api.stream_tx_by_mid(mid, None).ok_or_else(|| failed(&"no stream"))?;
            let time = frame.wrapping_mul(TICKS);
            stream.write_rtp(RtpWrite::new(self.opened.pt, seq.into(), time, now, payload.to_vec()));
            self.opened.rtc.handle_input(Input::Timeout(now)).map_err(|error| failed(&error))?;
            self.drain(socket)?;
            board.sent.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn drain(&mut self, socket: &UdpSocket) -> Result<(), TestkitError> {
        loop {
            match self.opened.rtc.poll_output().map_err(|error| failed(&error))? {
                Output::Timeout(_) => return Ok(()),
                // A datagram that the socket refuses is lost, as any may be.
                Output::Transmit(transmit) => drop(socket.send_to(&transmit.contents, transmit.destination)),
                Output::Event(Event::Connected) => self.connected = true,
                Output::Event(_) => {}
            }
        }
    }
}
