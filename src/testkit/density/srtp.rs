//! From datagrams to Ogg pages: SRTP and the peer connection in the way.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use str0m::change::SdpAnswer;
use str0m::format::Codec as FormatCodec;
use str0m::media::{Direction, MediaKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::rtp::RtpWrite;
use str0m::{Candidate, Event, Input, Output, Rtc};

use super::rtp::{advance, is_due, pipeline};
use super::{Conversation, Recording, Setup, failed};
use crate::call::TrackKey;
use crate::clock::RecordingClock;
use crate::recording::Pipeline;
use crate::room::Receiver;
use crate::testkit::TestkitError;
use crate::time::{ClockTime, SAMPLE_RATE};

const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7882);
const RECORDER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 40_000);

/// How much time, on the clock of the two ends, connecting may take, and in which steps.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const CONNECT_STEP: Duration = Duration::from_millis(5);

/// A datagram and when it arrives.
type Arriving = (Instant, Vec<u8>);

/// [`Rtp`](super::Rtp) behind a peer connection: ICE, DTLS and SRTP against a server's end in memory. The server's work
/// is done beforehand; the recorder wakes up for every datagram, as it does when packets come one by one. Sockets and
/// the room's event queue are not in it.
pub struct Srtp {
    server: Option<Server>,
    receiver: Receiver,
    pipeline: Pipeline,
    clock: RecordingClock,
    tick: u64,
    /// What arrives in each step that is prepared.
    arriving: VecDeque<Vec<Arriving>>,
    /// What the recorder sends: reports and answers.
    sent: Vec<Vec<u8>>,
}

impl Srtp {
    /// Connects, and begins `from` steps into the conversation.
    ///
    /// # Errors
    /// [`TestkitError::Simulation`] where the two ends do not connect.
    pub fn new(conversation: Arc<Conversation>, from: u64, setup: &Setup) -> Result<Self, TestkitError> {
        let pipeline = pipeline(conversation.participants(), setup)?;
        let (server, receiver, zero) = connect(conversation, from)?;
        let clock = RecordingClock::new(zero, crate::clock::wall());
        Ok(Self {
            server: Some(server),
            receiver,
            pipeline,
            clock,
            tick: 0,
            arriving: VecDeque::new(),
            sent: Vec::new(),
        })
    }
}

impl Recording for Srtp {
    fn prepare(&mut self, ticks: u64) -> Result<(), TestkitError> {
        let server = self.server.as_mut().ok_or_else(|| failed(&"the server is gone"))?;
        for datagram in self.sent.drain(..) {
            server.receive(&datagram)?;
        }
        for _ in 0..ticks {
            self.arriving.push_back(server.send()?);
        }
        Ok(())
    }

    fn tick(&mut self) -> Result<usize, TestkitError> {
        let arriving = self.arriving.pop_front().ok_or_else(|| failed(&"nothing is prepared"))?;
        let Self { receiver, pipeline, clock, sent, .. } = self;
        let mut packets = 0;
        for (at, datagram) in &arriving {
            let mut take = |packet: crate::room::RtpPacket| {
                packets += 1;
                pipeline.packet(&packet, clock.at(packet.arrival));
            };
            receiver.receive(datagram, *at, &mut take, sent).map_err(|error| failed(&error))?;
        }
        self.tick += 1;
        if packets == 0 {
            return Err(failed(&format!("no packet came, and {} for no track", self.receiver.unrouted())));
        }
        if is_due(self.tick) { Ok(advance(&mut self.pipeline, self.tick)?.len()) } else { Ok(0) }
    }

    fn strip(&mut self) {
        self.server = None;
        self.arriving = VecDeque::new();
        self.sent = Vec::new();
    }
}

/// The server's end: sends everybody's packets on.
struct Server {
    conversation: Arc<Conversation>,
    rtc: Rtc,
    mids: Vec<Mid>,
    pt: Pt,
    from: u64,
    tick: u64,
    zero: Instant,
    now: Instant,
    connected: bool,
}

impl Server {
    /// Sends the packets of one step, in the order in which they arrive.
    fn send(&mut self) -> Result<Vec<Arriving>, TestkitError> {
        let seq = self.from + self.tick;
        let mut order: Vec<(ClockTime, usize)> =
            (0..self.mids.len()).map(|index| (self.conversation.arrival(index, self.tick), index)).collect();
        order.sort_unstable();
        let mut datagrams = Vec::new();
        for (arrival, participant) in order {
            let at = self.zero + arrival.since(ClockTime::ZERO);
            self.now = self.now.max(at);
            let payload = self.conversation.packet(participant, seq).to_vec();
            let timestamp = (seq * u64::from(SAMPLE_RATE) / 50) as u32;
            let mut api = self.rtc.direct_api();
            let stream = api
                .stream_tx_by_mid(self.mids[participant], None)
                .ok_or_else(|| failed(&"no stream for a media section"))?;
            stream.write_rtp(RtpWrite::new(self.pt, seq.into(), timestamp, self.now, payload));
            let sent = self.advance(self.now)?;
            datagrams.extend(sent.into_iter().map(|datagram| (self.now, datagram)));
        }
        self.tick += 1;
        Ok(datagrams)
    }

    fn receive(&mut self, datagram: &[u8]) -> Result<Vec<Vec<u8>>, TestkitError> {
        let received = Receive::new(Protocol::Udp, RECORDER, SERVER, datagram).map_err(|error| failed(&error))?;
        self.rtc.handle_input(Input::Receive(self.now, received)).map_err(|error| failed(&error))?;
        self.drain()
    }

    fn advance(&mut self, now: Instant) -> Result<Vec<Vec<u8>>, TestkitError> {
        self.now = now;
        self.rtc.handle_input(Input::Timeout(now)).map_err(|error| failed(&error))?;
        self.drain()
    }

    fn drain(&mut self) -> Result<Vec<Vec<u8>>, TestkitError> {
        let mut sent = Vec::new();
        loop {
            match self.rtc.poll_output().map_err(|error| failed(&error))? {
                Output::Timeout(_) => return Ok(sent),
                Output::Transmit(transmit) => sent.push(transmit.contents.to_vec()),
                Output::Event(Event::Connected) => self.connected = true,
                Output::Event(_) => {}
            }
        }
    }
}

/// Both ends, connected, and the moment when they were.
fn connect(conversation: Arc<Conversation>, from: u64) -> Result<(Server, Receiver, Instant), TestkitError> {
    let start = crate::clock::now();
    let mut rtc = Rtc::builder().clear_codecs().enable_opus(true, false).set_rtp_mode(true).build(start);
    rtc.add_local_candidate(Candidate::host(SERVER, Protocol::Udp).map_err(|error| failed(&error))?);
    let tracks: Vec<String> = (0..conversation.participants()).map(|index| format!("TR_{index}")).collect();
    let mut api = rtc.sdp_api();
    let mids = tracks
        .iter()
        .map(|track| {
            let (stream, track) = (Some("PA_server".to_owned()), Some(track.clone()));
            api.add_media(MediaKind::Audio, Direction::SendOnly, stream, track, None)
        })
        .collect();
    let (offer, pending) = api.apply().ok_or_else(|| failed(&"nothing to offer"))?;
    let keys = tracks.iter().enumerate().map(|(index, track)| (track.as_str(), TrackKey(index as u32)));
    let (mut receiver, answer) =
        Receiver::answering(start, &offer.to_sdp_string(), keys, (RECORDER, SERVER)).map_err(|error| failed(&error))?;
    let answer = SdpAnswer::from_sdp_string(&answer).map_err(|error| failed(&error))?;
    rtc.sdp_api().accept_answer(pending, answer).map_err(|error| failed(&error))?;
    rtc.add_remote_candidate(Candidate::host(RECORDER, Protocol::Udp).map_err(|error| failed(&error))?);
    let opus = rtc.codec_config().params().iter().find(|param| param.spec().codec == FormatCodec::Opus);
    let pt = opus.map(|param| param.pt()).ok_or_else(|| failed(&"no Opus to send"))?;
    let mut server = Server { conversation, rtc, mids, pt, from, tick: 0, zero: start, now: start, connected: false };

    let mut now = start;
    while !(server.connected && receiver.is_connected()) {
        now += CONNECT_STEP;
        if now > start + CONNECT_WITHIN {
            return Err(failed(&"the two ends do not connect"));
        }
        let mut to_server = Vec::new();
        receiver.advance(now, &mut to_server).map_err(|error| failed(&error))?;
        let mut to_recorder = server.advance(now)?;
        while !(to_server.is_empty() && to_recorder.is_empty()) {
            for datagram in std::mem::take(&mut to_recorder) {
                receiver.receive(&datagram, now, &mut |_| {}, &mut to_server).map_err(|error| failed(&error))?;
            }
            for datagram in std::mem::take(&mut to_server) {
                to_recorder.extend(server.receive(&datagram)?);
            }
        }
    }
    server.zero = now;
    Ok((server, receiver, now))
}
