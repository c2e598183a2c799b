//! The media connection without its sockets: str0m, told what arrives and when, asked what to send and what came.
//!
//! The caller feeds packets and time, and after every call drains [`Peer::poll`] until it returns
//! [`Output::Timeout`]. str0m calls its own panics bugs; the engine's task ends with one, and [`Room`](super::Room)
//! tells it as a lost connection, so one call's panic stays its own.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use livekit_protocol::SessionDescription;
use str0m::change::SdpOffer;
use str0m::channel::ChannelId;
use str0m::format::{Codec as FormatCodec, CodecConfig};
use str0m::net::{Protocol, Receive, TcpType, Transmit};
use str0m::rtp::{RtpPacket as RawPacket, Ssrc};
use str0m::{Candidate, Event, IceConnectionState, Input, Rtc, RtcConfig};

use super::data;
use super::event::{RtpPacket, Transport};
use super::sdp;
use crate::call::{Codec, TrackKey};
use crate::time::{RtpTime, Seq};

/// How long a stream that is no longer announced still counts: the last packets and their retransmissions come after
/// the word that the track is gone.
const AFTERLIFE: Duration = Duration::from_secs(5);

/// The longest wait between two checks of a path, and how many go unanswered before the path is lost: together about
/// eight seconds, well within the fifteen after which the server gives a participant up.
const CHECK_INTERVAL: Duration = Duration::from_millis(1500);
const CHECKS: usize = 6;

/// Seconds from the NTP epoch, 1900, to the Unix epoch (RFC 5905 §6).
const NTP_TO_UNIX: u64 = 2_208_988_800;

/// What a [`Peer`] wants or tells.
pub(super) enum Output {
    /// Send this.
    Transmit(Transmit),
    /// This happened.
    Event(PeerEvent),
    /// Nothing more, until this moment or new input.
    Timeout(Instant),
}

/// What happened on the media connection.
#[derive(Debug)]
pub(super) enum PeerEvent {
    /// ICE and DTLS are up.
    Connected,
    /// The path is back after having been lost.
    PathRestored,
    /// The path that was in use does not answer, or ICE begins anew; another may still work.
    PathInDoubt,
    /// No path works at present.
    PathLost,
    /// The server ended the connection.
    Closed,
    /// A packet of a known track.
    Rtp(RtpPacket),
    /// A sender report of a known track.
    SenderReport { track: TrackKey, ntp: u64, rtp: RtpTime, at: Instant },
    /// A packet of one of the channels that carry messages.
    Data(Vec<u8>),
}

/// Why an offer could not be answered.
#[derive(Debug, thiserror::Error)]
#[error("the server's offer cannot be answered: {0}")]
pub(super) struct OfferError(String);

/// Our side of the subscriber peer connection.
pub(super) struct Peer {
    rtc: Rtc,
    streams: HashMap<u32, Stream>,
    tracks: HashMap<String, TrackKey>,
    codecs: HashMap<u8, Codec>,
    /// The channels that carry messages.
    carriers: Vec<ChannelId>,
    connected: bool,
    transport: Transport,
    /// The addresses that relays lend us.
    relayed: Vec<SocketAddr>,
    unrouted: u64,
}

#[derive(Debug)]
struct Stream {
    track_sid: String,
    track: Option<TrackKey>,
    time: Unwrapped,
    retired: Option<Instant>,
}

impl Peer {
    /// A connection that knows nobody yet.
    pub(super) fn new(now: Instant) -> Self {
        let mut config = RtcConfig::new()
            .clear_codecs()
            .enable_opus(true, false)
            .enable_pcmu(true, false)
            .enable_pcma(true, false)
            .set_rtp_mode(true);
        config.set_max_stun_rto(CHECK_INTERVAL);
        config.set_max_stun_retransmits(CHECKS);
        // Audio has no retransmission streams; the server answers NACKs on the stream itself, if the answer asks for it.
        let mut params = config.codec_config().params().to_vec();
        for param in &mut params {
            param.set_fb_nack(true);
        }
        *config.codec_config() = CodecConfig::new_from_payload_params(params);
        Self {
            rtc: config.build(now),
            streams: HashMap::new(),
            tracks: HashMap::new(),
            codecs: HashMap::new(),
            carriers: Vec::new(),
            connected: false,
            transport: Transport::Udp,
            relayed: Vec::new(),
            unrouted: 0,
        }
    }

    /// From now on, packets of `track_sid` belong to `key`.
    pub(super) fn bind(&mut self, track_sid: &str, key: TrackKey) {
        self.tracks.insert(track_sid.to_owned(), key);
        for stream in self.streams.values_mut().filter(|stream| stream.track_sid == track_sid) {
            stream.track = Some(key);
        }
    }

    /// Takes the server's offer and makes the answer to it.
    ///
    /// # Errors
    ///
    /// An offer that str0m does not accept; the connection is then of no more use.
    pub(super) fn accept_offer(
        &mut self,
        now: Instant,
        offer: &SessionDescription,
        parsed: &sdp::Offer,
    ) -> Result<SessionDescription, OfferError> {
        let munged = SdpOffer::from_sdp_string(&parsed.munged).map_err(|error| OfferError(error.to_string()))?;
        let answer = self.rtc.sdp_api().accept_offer(munged).map_err(|error| OfferError(error.to_string()))?;
        self.learn_codecs();
        self.learn_streams(now, parsed.streams(&offer.mid_to_track_id));
        Ok(SessionDescription {
            r#type: "answer".into(),
            sdp: answer.to_sdp_string(),
            id: offer.id,
            ..Default::default()
        })
    }

    /// Adds a local address. Returns the candidate to tell the server, if it is new.
    pub(super) fn add_local(&mut self, address: SocketAddr, transport: Transport) -> Option<String> {
        let candidate = match transport {
            Transport::Udp | Transport::Relay => Candidate::builder().udp().host(address).build(),
            Transport::Tcp => Candidate::builder().tcp().host(address).tcptype(TcpType::Active).build(),
        };
        self.rtc.add_local_candidate(candidate.ok()?).map(Candidate::to_sdp_string)
    }

    /// Adds an address that a relay lends us, which is reached from `local`. Returns the candidate to tell the server, if it
    /// is new.
    pub(super) fn add_relayed(&mut self, address: SocketAddr, local: SocketAddr) -> Option<String> {
        if !self.relayed.contains(&address) {
            self.relayed.push(address);
        }
        let candidate = Candidate::builder().udp().relayed(address, local).build();
        self.rtc.add_local_candidate(candidate.ok()?).map(Candidate::to_sdp_string)
    }

    /// Whether a relay has lent us this address.
    pub(super) fn is_lent(&self, address: SocketAddr) -> bool {
        self.relayed.contains(&address)
    }

    /// Adds an address of the server's.
    pub(super) fn add_remote(&mut self, candidate: Candidate) {
        self.rtc.add_remote_candidate(candidate);
    }

    /// Takes a packet off the network. What is no packet of this connection is ignored.
    ///
    /// # Errors
    ///
    /// The connection is then of no more use.
    pub(super) fn receive(
        &mut self,
        transport: Transport,
        source: SocketAddr,
        destination: SocketAddr,
        packet: &[u8],
        arrival: Instant,
    ) -> Result<(), str0m::RtcError> {
        let proto = match transport {
            Transport::Udp | Transport::Relay => Protocol::Udp,
            Transport::Tcp => Protocol::Tcp,
        };
        let Ok(received) = Receive::new(proto, source, destination, packet) else { return Ok(()) };
        let input = Input::Receive(arrival, received);
        if self.rtc.accepts(&input) { self.rtc.handle_input(input) } else { Ok(()) }
    }

    /// Lets time pass.
    ///
    /// # Errors
    ///
    /// The connection is then of no more use.
    pub(super) fn advance(&mut self, now: Instant) -> Result<(), str0m::RtcError> {
        self.bury(now);
        self.rtc.handle_input(Input::Timeout(now))
    }

    /// What is to be done or told next.
    ///
    /// # Errors
    ///
    /// The connection is then of no more use.
    pub(super) fn poll(&mut self) -> Result<Output, str0m::RtcError> {
        loop {
            let event = match self.rtc.poll_output()? {
                str0m::Output::Timeout(at) => return Ok(Output::Timeout(at)),
                str0m::Output::Transmit(transmit) => {
                    self.note_transport(&transmit);
                    return Ok(Output::Transmit(transmit));
                }
                str0m::Output::Event(event) => self.translate(event),
            };
            if let Some(event) = event {
                return Ok(Output::Event(event));
            }
        }
    }

    /// Whether ICE and DTLS are up.
    pub(super) fn is_connected(&self) -> bool {
        self.connected && self.rtc.is_alive()
    }

    /// The way that media takes at present.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// Packets that came for no track we know.
    pub(super) fn unrouted(&self) -> u64 {
        self.unrouted
    }

    /// Says goodbye: what [`Peer::poll`] still wants sent tells the server.
    pub(super) fn close(&mut self) {
        // An error means that there is nobody to tell.
        let _ = self.rtc.close();
    }

    fn translate(&mut self, event: Event) -> Option<PeerEvent> {
        match event {
            Event::Connected => {
                self.connected = true;
                Some(PeerEvent::Connected)
            }
            Event::IceConnectionStateChange(IceConnectionState::Disconnected) => {
                self.connected.then_some(PeerEvent::PathLost)
            }
            Event::IceConnectionStateChange(IceConnectionState::Checking) => {
                self.connected.then_some(PeerEvent::PathInDoubt)
            }
            Event::IceConnectionStateChange(state) if state.is_connected() && self.connected => {
                Some(PeerEvent::PathRestored)
            }
            Event::Closed => Some(PeerEvent::Closed),
            Event::RtpPacket(packet) => self.translate_packet(packet).map(PeerEvent::Rtp),
            Event::ChannelOpen(id, label) => {
                if data::is_carrier(&label) {
                    self.carriers.push(id);
                }
                None
            }
            Event::ChannelData(message) => self.carriers.contains(&message.id).then_some(PeerEvent::Data(message.data)),
            Event::ChannelClose(id) => {
                self.carriers.retain(|carrier| *carrier != id);
                None
            }
            Event::SenderFeedback(report) => {
                let info = report.sender_info;
                let stream = self.streams.get_mut(&*info.ssrc)?;
                Some(PeerEvent::SenderReport {
                    track: stream.track?,
                    ntp: ntp(info.ntp_time)?,
                    rtp: stream.time.peek(info.rtp_time.numer() as u32),
                    at: report.received_at,
                })
            }
            _ => None,
        }
    }

    fn translate_packet(&mut self, packet: RawPacket) -> Option<RtpPacket> {
        let ssrc = *packet.header.ssrc;
        let codec = self.codecs.get(&*packet.header.payload_type).copied();
        let stream = self.streams.get_mut(&ssrc);
        let (Some(stream), Some(codec)) = (stream, codec) else {
            self.unrouted += 1;
            return None;
        };
        let rtp = stream.time.take(packet.header.timestamp);
        let Some(track) = stream.track else {
            self.unrouted += 1;
            return None;
        };
        Some(RtpPacket {
            track,
            ssrc,
            codec,
            seq: Seq(*packet.seq_no),
            rtp,
            marker: packet.header.marker,
            payload: Bytes::copy_from_slice(&packet.payload),
            undecryptable: false,
            arrival: packet.timestamp,
        })
    }

    fn learn_codecs(&mut self) {
        for param in self.rtc.codec_config().params() {
            let codec = match param.spec().codec {
                FormatCodec::Opus => Codec::Opus,
                FormatCodec::PCMU => Codec::Pcmu,
                FormatCodec::PCMA => Codec::Pcma,
                _ => continue,
            };
            self.codecs.insert(*param.pt(), codec);
        }
    }

    fn learn_streams(&mut self, now: Instant, announced: Vec<(u32, String)>) {
        for (ssrc, stream) in &mut self.streams {
            if !announced.iter().any(|(other, _)| other == ssrc) {
                stream.retired.get_or_insert(now);
            }
        }
        for (ssrc, track_sid) in announced {
            if let Some(stream) = self.rtc.direct_api().stream_rx(&Ssrc::from(ssrc)) {
                // str0m holds NACKs back where a stream has no retransmission stream beside it, as audio never has.
                stream.suppress_nack(false);
            }
            let track = self.tracks.get(&track_sid).copied();
            let stream = self.streams.entry(ssrc).or_insert_with(|| Stream {
                track_sid: track_sid.clone(),
                track,
                time: Unwrapped::default(),
                retired: None,
            });
            stream.retired = None;
            if stream.track_sid != track_sid {
                *stream = Stream { track_sid, track, time: Unwrapped::default(), retired: None };
            }
        }
    }

    fn bury(&mut self, now: Instant) {
        let dead = |stream: &Stream| stream.retired.is_some_and(|at| now.saturating_duration_since(at) > AFTERLIFE);
        if !self.streams.values().any(dead) {
            return;
        }
        let gone: Vec<u32> = self.streams.iter().filter(|(_, stream)| dead(stream)).map(|(ssrc, _)| *ssrc).collect();
        for ssrc in gone {
            self.rtc.direct_api().remove_stream_rx(Ssrc::from(ssrc));
            self.streams.remove(&ssrc);
        }
    }

    /// DTLS and media go over the path that ICE chose; checks go over all of them (RFC 7983 §7 tells which is which).
    fn note_transport(&mut self, transmit: &Transmit) {
        if transmit.contents.first().is_some_and(|first| *first >= 20) {
            self.transport = match transmit.proto {
                Protocol::Tcp => Transport::Tcp,
                _ if self.relayed.contains(&transmit.source) => Transport::Relay,
                _ => Transport::Udp,
            };
        }
    }
}

/// Takes the 32-bit wrap out of one stream's timestamps (RFC 3550 §5.1).
#[derive(Clone, Copy, Debug, Default)]
struct Unwrapped {
    last: Option<i64>,
}

impl Unwrapped {
    /// The time of a stamp, which later stamps are read against.
    fn take(&mut self, stamp: u32) -> RtpTime {
        let time = self.peek(stamp);
        self.last = Some(time.0);
        time
    }

    /// The time of a stamp: the one nearest to the last.
    fn peek(&self, stamp: u32) -> RtpTime {
        let Some(last) = self.last else { return RtpTime(i64::from(stamp)) };
        let step = stamp.wrapping_sub(last as u32).cast_signed();
        RtpTime(last.saturating_add(i64::from(step)))
    }
}

/// A wall clock time as the report carried it: 32.32 fixed point seconds since 1900.
fn ntp(time: SystemTime) -> Option<u64> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let fraction = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    Some((since.as_secs().checked_add(NTP_TO_UNIX)? << 32) | fraction)
}

/// Reads a candidate; `None` for what str0m does not know (other components, names in place of addresses).
pub(super) fn read_candidate(candidate: &str) -> Option<Candidate> {
    Candidate::from_sdp_string(candidate).ok()
}

/// Whether a candidate is one that we may connect to over TCP (RFC 6544 §4.5).
pub(super) fn is_tcp_passive(candidate: &Candidate) -> bool {
    candidate.proto() == Protocol::Tcp && candidate.tcptype() == Some(TcpType::Passive)
}

/// Whether a candidate is reached by UDP.
pub(super) fn is_udp(candidate: &Candidate) -> bool {
    candidate.proto() == Protocol::Udp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::sdp::tests::OFFER;
    use proptest::prelude::*;

    fn offer(sdp: &str) -> SessionDescription {
        SessionDescription { r#type: "offer".into(), sdp: sdp.into(), id: 41, ..Default::default() }
    }

    fn answer(peer: &mut Peer, sdp: &str) -> Result<SessionDescription, OfferError> {
        peer.accept_offer(crate::clock::now(), &offer(sdp), &sdp::parse_offer(sdp))
    }

    #[test]
    fn the_answer_receives_opus_with_nack_and_sends_nothing() {
        let mut peer = Peer::new(crate::clock::now());
        let answer = answer(&mut peer, OFFER).unwrap();
        assert_eq!((answer.r#type.as_str(), answer.id), ("answer", 41));
        let audio = &answer.sdp[answer.sdp.find("m=audio").unwrap()..];
        assert!(audio.contains("a=recvonly") && !audio.contains("a=ssrc"), "{audio}");
        assert!(audio.contains("a=rtcp-fb:111 nack") && !audio.contains("red/48000"), "{audio}");
    }

    #[test]
    fn a_stream_belongs_to_its_track_however_the_words_come() {
        let mut peer = Peer::new(crate::clock::now());
        peer.bind("TR_voice", TrackKey(3));
        answer(&mut peer, OFFER).unwrap();
        assert_eq!(peer.streams[&2_485_877_649].track, Some(TrackKey(3)));

        let mut late = Peer::new(crate::clock::now());
        answer(&mut late, OFFER).unwrap();
        late.bind("TR_voice", TrackKey(5));
        assert_eq!(late.streams[&2_485_877_649].track, Some(TrackKey(5)));
    }

    #[test]
    fn a_reused_section_brings_its_new_stream_and_the_old_one_dies_later() {
        let start = crate::clock::now();
        let mut peer = Peer::new(start);
        peer.bind("TR_voice", TrackKey(0));
        peer.bind("TR_next", TrackKey(1));
        answer(&mut peer, OFFER).unwrap();
        let reused = OFFER.replace("2485877649", "77").replace("TR_voice", "TR_next");
        answer(&mut peer, &reused).unwrap();
        assert_eq!(
            (peer.streams[&2_485_877_649].track, peer.streams[&77].track),
            (Some(TrackKey(0)), Some(TrackKey(1)))
        );
        peer.advance(crate::clock::now() + AFTERLIFE * 2).unwrap();
        assert_eq!(peer.streams.keys().collect::<Vec<_>>(), [&77]);
    }

    #[test]
    fn timestamps_are_unwrapped_both_ways() {
        let mut time = Unwrapped::default();
        assert_eq!(time.take(u32::MAX - 959), RtpTime(i64::from(u32::MAX) - 959));
        assert_eq!(time.take(0), RtpTime(1 << 32));
        // A retransmission from before the wrap.
        assert_eq!(time.take(u32::MAX - 959), RtpTime(i64::from(u32::MAX) - 959));
        assert_eq!(time.peek(960), RtpTime((1 << 32) + 960));
    }

    #[test]
    fn wall_clocks_are_told_as_they_were_sent() {
        let half_past = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
        assert_eq!(ntp(half_past), Some(((NTP_TO_UNIX + 1) << 32) | (1 << 31)));
    }

    #[test]
    fn candidates_are_told_apart() {
        let tcp = read_candidate("candidate:2 1 tcp 1671430143 127.0.0.1 7881 typ host tcptype passive").unwrap();
        let udp = read_candidate("candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host").unwrap();
        assert!(is_tcp_passive(&tcp) && !is_udp(&tcp) && is_udp(&udp) && !is_tcp_passive(&udp));
        assert!(read_candidate("candidate:1 1 udp 1 somebody.local 9 typ host").is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A broken offer is an error, never a panic.
        #[test]
        fn broken_offers_are_refused_quietly(cut in 0usize..OFFER.len(), len in 0usize..40, text in "[ -~\\r\\n]{0,20}") {
            let end = (cut + len).min(OFFER.len());
            let broken = format!("{}{text}{}", &OFFER[..cut], &OFFER[end..]);
            let mut peer = Peer::new(crate::clock::now());
            let _ = answer(&mut peer, &broken);
            let _ = answer(&mut peer, OFFER);
        }

        /// Foreign bytes on our port do nothing.
        #[test]
        fn foreign_packets_are_ignored(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut peer = Peer::new(crate::clock::now());
            let _ = answer(&mut peer, OFFER);
            let (here, there) = ("127.0.0.1:9".parse().unwrap(), "127.0.0.1:10".parse().unwrap());
            peer.add_local(here, Transport::Udp);
            peer.receive(Transport::Udp, there, here, &packet, crate::clock::now()).unwrap();
            while !matches!(peer.poll().unwrap(), Output::Timeout(_)) {}
        }
    }
}
