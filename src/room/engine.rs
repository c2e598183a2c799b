//! One call's loop: signalling, sockets, time and the consumer on one side, roster, peer and repair on the other.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use livekit_protocol::{
    ClientConfigSetting, DisconnectReason, JoinResponse, LeaveRequest, ReconnectReason, RoomMovedResponse,
    SessionDescription, SignalTarget, SubscriptionError, SyncState, leave_request, signal_request, signal_response,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::config::{RoomConfig, RoomMovedPolicy, TransportPolicy};
use super::data::{self, Gate};
use super::error::{self, RoomError};
use super::event::{CloseReason, MediaState, RoomEvent, RoomInfo, RtpPacket, Transport};
use super::media::{self, Media};
use super::net::relay::{Relay, RelayServer, Relayed};
use super::net::tcp::TcpLink;
use super::net::udp::{Burst, Datagram, UdpLink};
use super::peer::{self, Output, Peer, PeerEvent};
use super::queue::EventSender;
use super::renewal::Renewals;
use super::repair::{Repair, Step};
use super::roster::{self, Roster};
use super::sdp;
use super::signal::{Command, Notice, Signal};
use super::unseal::Unsealing;
use crate::call::TrackKey;
use crate::e2ee::Derived;

/// Room for what a TCP stream has at a time.
const PACKET: usize = 64 << 10;

/// How many datagrams are read before everybody else gets a turn.
const BURST: usize = 512;

/// So many shares are read at most before leaving: several times what a socket keeps.
const LAST_SHARES: usize = 64;

/// How long nothing may be told where nothing comes: a recording goes on no further than what was told.
const QUIET: Duration = Duration::from_secs(1);

/// How long the server may take to begin ICE anew by itself, after it closed the path.
const RESTART_GRACE: Duration = Duration::from_millis(500);
/// How long the server's addresses may come in after its offer.
const TRICKLE: Duration = Duration::from_millis(300);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why the loop ended, or that it goes on.
type Flow = ControlFlow<CloseReason>;
const ON: Flow = Flow::Continue(());

/// Everything one call needs while it runs.
pub(super) struct Engine {
    config: RoomConfig,
    room: RoomInfo,
    events: EventSender,
    signal: Signal,
    requests: mpsc::UnboundedReceiver<Request>,
    roster: Roster,
    renewals: Renewals,
    repair: Repair,
    data: Gate,
    unsealing: Unsealing,
    /// Keys that are being derived.
    deriving: Option<JoinHandle<Derived>>,
    media: Media,
    /// The last offer and our answer to it: a resumed session is told both.
    negotiated: Option<(SessionDescription, SessionDescription)>,
    /// For what a TCP stream has; empty until there is one.
    buffer: Vec<u8>,
}

/// What the owner of the [`Room`](super::Room) asks. Dropping the other end asks to close.
#[derive(Debug)]
pub(super) enum Request {
    /// Leave and end.
    Close,
    /// Take a subscription off and put it on again.
    Resubscribe(TrackKey),
    /// Have the server act out a disturbance.
    #[cfg(feature = "testkit")]
    Simulate(livekit_protocol::simulate_scenario::Scenario),
}

impl Engine {
    /// Sets everything up after the first JoinResponse.
    ///
    /// # Errors
    ///
    /// [`RoomError::Media`] where no socket can be had.
    pub(super) fn new(
        config: RoomConfig,
        signal: Signal,
        events: EventSender,
        requests: mpsc::UnboundedReceiver<Request>,
        join: &JoinResponse,
        at: Instant,
    ) -> Result<Self, RoomError> {
        let udp = UdpLink::bind()
            .map_err(|error| RoomError::Media { problem: format!("cannot open a UDP socket: {error}") })?;
        #[cfg(feature = "testkit")]
        let udp = match &config.impairment {
            Some(impairment) => udp.impaired(impairment.filter()),
            None => udp,
        };
        let media = Media::new(udp, config.trusted.clone(), at);
        let mut engine = Self {
            repair: Repair::new(config.timeouts.reconnect, config.timeouts.away, at),
            room: room_info(join),
            events,
            signal,
            requests,
            roster: Roster::new(config.first_track),
            renewals: Renewals::default(),
            data: Gate::new(config.wanted.clone()),
            unsealing: Unsealing::new(config.e2ee.clone()),
            deriving: None,
            config,
            media,
            negotiated: None,
            buffer: Vec::new(),
        };
        let recorder_sid = join.participant.as_ref().map(|own| own.sid.clone()).unwrap_or_default();
        engine.events.send(RoomEvent::Joined { room: engine.room.clone(), recorder_sid, at });
        engine.enter(join, at);
        Ok(engine)
    }

    /// Runs the call to its end, and tells the end.
    pub(super) async fn run(mut self) {
        let reason = self.run_until_closed().await;
        // What came until now belongs to the call, however much waits; what goes on coming does not keep us here.
        for _ in 0..LAST_SHARES {
            if !matches!(self.fetch(crate::clock::now()), Ok((true, _))) {
                break;
            }
        }
        self.open_what_waits().await;
        tracing::debug!(?reason, "leaving the room");
        self.say_goodbye().await;
        let at = crate::clock::now();
        self.events.confess(at);
        self.events.send(RoomEvent::Closed { reason, at });
    }

    async fn run_until_closed(&mut self) -> CloseReason {
        loop {
            let now = crate::clock::now();
            let wake = match self.on_time(now) {
                Flow::Continue(()) => self.drain(now),
                Flow::Break(reason) => return reason,
            };
            let wake = if self.media.udp.is_watched() { wake.min(now + QUIET) } else { self.media.pace.next(now) };
            let flow = tokio::select! {
                ready = self.media.udp.readable() => self.on_datagrams(ready),
                notice = self.signal.notice() => match self.on_datagrams(Ok(())) {
                    // What came before the server's word is taken in before it.
                    Flow::Continue(()) => self.on_notice(notice),
                    broken => broken,
                },
                ready = media::tcp_readable(&mut self.media.tcp) => self.on_stream(ready),
                opened = media::tcp_opened(&mut self.media.opening) => self.on_opened(opened),
                lent = media::lent(&mut self.media.lending) => self.on_lent(lent),
                relayed = media::relayed(&mut self.media.relay) => self.on_relayed(relayed),
                derived = derived(&mut self.deriving) => {
                    self.on_derived(derived);
                    ON
                }
                request = self.requests.recv() => self.on_request(request),
                () = tokio::time::sleep_until(wake.into()) => self.on_datagrams(Ok(())),
            };
            if let Flow::Break(reason) = flow {
                return reason;
            }
        }
    }

    /// Takes the start of a session, the first or a later one.
    fn enter(&mut self, join: &JoinResponse, at: Instant) {
        let mut peer = Peer::new(at);
        let known = self.roster.tracks().map(|(_, sid, key)| (sid.to_owned(), key)).collect::<Vec<_>>();
        for (sid, key) in known {
            peer.bind(&sid, key);
        }
        self.negotiated = None;
        self.renewals.clear();
        self.unsealing.enter(&join.sif_trailer);
        let media = &mut self.media;
        media.peer = Some(peer);
        media.drop_tcp();
        media.tcp_candidates.clear();
        media.tcp_at = None;
        media.drop_relay();
        media.relays = RelayServer::all(&join.ice_servers);
        let forced = join.client_configuration.as_ref().map(|settings| settings.force_relay());
        media.relay_only =
            self.config.transport == TransportPolicy::Relay || forced == Some(ClientConfigSetting::Enabled);
        media.relay_at = None;
        media.resume_at = None;
        let tries = if media.relays.is_empty() { 1 } else { 2 };
        media.deadline = Some(at + self.config.timeouts.udp * tries + self.config.timeouts.media);
        let events = self.roster.resync(join.participant.as_ref(), &join.other_participants, at);
        self.publish(events);
        let subscription = roster::subscription(self.roster.tracks().map(|(participant, sid, _)| (participant, sid)));
        if !subscription.participant_tracks.is_empty() {
            self.signal.send(signal_request::Message::Subscription(subscription));
        }
    }

    /// Tells events, and readies the media connection for the tracks that they bring.
    fn publish(&mut self, events: Vec<RoomEvent>) {
        for event in events {
            if let RoomEvent::TrackPublished { participant_sid, track, .. } = &event {
                let identity = self.roster.identity(participant_sid).unwrap_or_default();
                self.unsealing.published(track.key, identity, track.encryption);
                if let Some(peer) = &mut self.media.peer {
                    peer.bind(&track.sid, track.key);
                }
            }
            self.events.send(event);
        }
    }

    /// Passes a packet on, opened if it is encrypted.
    fn on_packet(&mut self, packet: RtpPacket) {
        if let Some(packet) = self.unsealing.open(packet) {
            self.events.send(RoomEvent::Rtp(packet));
        }
    }

    fn on_derived(&mut self, derived: Derived) {
        for packet in self.unsealing.learn(derived) {
            self.events.send(RoomEvent::Rtp(packet));
        }
    }

    /// Derives keys for as long as frames wait for any, and tells what cannot be opened.
    async fn open_what_waits(&mut self) {
        loop {
            self.derive_next();
            if self.deriving.is_none() {
                break;
            }
            let derived = derived(&mut self.deriving).await;
            self.on_derived(derived);
        }
        for report in self.unsealing.reports(crate::clock::now(), true) {
            self.events.send(report);
        }
    }

    /// Begins to derive the next keys that frames wait for, elsewhere: it takes longer than packets should wait in a socket.
    fn derive_next(&mut self) {
        if self.deriving.is_none()
            && let Some(work) = self.unsealing.next_derivation()
        {
            self.deriving = Some(tokio::task::spawn_blocking(|| work.run()));
        }
    }

    fn on_request(&mut self, request: Option<Request>) -> Flow {
        match request {
            Some(Request::Close) | None => Flow::Break(CloseReason::Requested),
            Some(Request::Resubscribe(track)) => {
                let now = crate::clock::now();
                let sid = self.roster.tracks().find(|(.., key)| *key == track).map(|(_, sid, _)| sid.to_owned());
                if let Some(sid) = sid.filter(|sid| self.renewals.begin(sid, now)) {
                    tracing::info!(%track, "subscribing anew");
                    self.subscribe(&[sid], false);
                }
                ON
            }
            #[cfg(feature = "testkit")]
            Some(Request::Simulate(scenario)) => {
                let scenario = livekit_protocol::SimulateScenario { scenario: Some(scenario) };
                self.signal.send(signal_request::Message::Simulate(scenario));
                ON
            }
        }
    }

    fn on_time(&mut self, now: Instant) -> Flow {
        if self.events.is_abandoned() {
            return Flow::Break(CloseReason::Lost("nobody takes the room's events any more".into()));
        }
        if let Some((why, patience)) = self.repair.exhausted(now) {
            return Flow::Break(CloseReason::Lost(format!("{why}; not mended within {patience:?}")));
        }
        if self.media.tcp_at.is_some_and(|at| at <= now) {
            self.media.tcp_at = None;
            tracing::info!("media does not connect over UDP; trying TCP");
            self.media.open_tcp();
        }
        if self.media.relay_at.is_some_and(|at| at <= now) {
            self.media.relay_at = None;
            if !self.media.relays.is_empty() {
                tracing::info!("media does not connect; trying a relay");
                self.media.borrow_address();
            }
        }
        if self.media.resume_at.is_some_and(|at| at <= now) {
            self.media.resume_at = None;
            self.repair.need(Step::Resume, "no path for media works any more", now);
        }
        if self.media.deadline.is_some_and(|at| at <= now) {
            self.media.deadline = None;
            self.repair.need(Step::Rejoin, "media does not connect", now);
        }
        self.derive_next();
        for report in self.unsealing.reports(now, false) {
            self.events.send(report);
        }
        let overdue = self.renewals.overdue(now);
        self.subscribe(&overdue, true);
        match self.repair.due(now) {
            Some(Step::Resume) => {
                let media_lost = self.media.told == Some(MediaState::Interrupted);
                let reason = if media_lost {
                    ReconnectReason::RrSubscriberFailed
                } else {
                    ReconnectReason::RrSignalDisconnected
                };
                self.signal.ask(Command::Resume(reason));
            }
            Some(Step::Rejoin) => self.signal.ask(Command::Rejoin),
            None => {}
        }
        ON
    }

    /// Does all that the media connection wants, and tells when it wants to be woken.
    fn drain(&mut self, now: Instant) -> Instant {
        let mut wake = now + Duration::from_secs(3600);
        let media = &self.media;
        let timers = [media.tcp_at, media.relay_at, media.resume_at, media.deadline];
        let others = [self.repair.wake(), self.renewals.wake(), self.unsealing.wake()];
        for at in timers.into_iter().chain(others).flatten() {
            wake = wake.min(at);
        }
        let Some(peer) = &mut self.media.peer else { return wake };
        if let Err(error) = peer.advance(now) {
            self.on_peer_failed(&error, now);
            return wake;
        }
        match self.drain_outputs(now) {
            Some(at) => wake.min(at),
            None => wake,
        }
    }

    /// Empties the media connection's outputs; `None` where it broke.
    fn drain_outputs(&mut self, now: Instant) -> Option<Instant> {
        loop {
            match self.media.peer.as_mut()?.poll() {
                Ok(Output::Timeout(at)) => {
                    self.note_transport(now);
                    return Some(at);
                }
                Ok(Output::Transmit(transmit)) => self.media.transmit(&transmit),
                Ok(Output::Event(event)) => self.on_peer_event(event, now),
                Err(error) => {
                    self.on_peer_failed(&error, now);
                    return None;
                }
            }
        }
    }

    fn on_peer_event(&mut self, event: PeerEvent, now: Instant) {
        match event {
            PeerEvent::Rtp(packet) => self.on_packet(packet),
            PeerEvent::SenderReport { track, ntp, rtp, at } => {
                self.events.send(RoomEvent::SenderReport { track, ntp, rtp, at });
            }
            PeerEvent::Data(packet) => {
                if !self.data.is_shut()
                    && let Some((from, message)) = data::decode(&packet)
                    && self.data.admits(&from, &message, now)
                {
                    self.events.send(RoomEvent::Data { from, message, at: now });
                }
            }
            PeerEvent::Connected | PeerEvent::PathRestored => {
                self.media.deadline = None;
                self.media.resume_at = None;
                self.media.tcp_at = None;
                self.media.relay_at = None;
                let transport = self.media.peer.as_ref().map_or(Transport::Udp, Peer::transport);
                self.tell_media(MediaState::Connected(transport), now);
            }
            PeerEvent::PathInDoubt => {
                let patience = self.config.timeouts.media;
                self.media.deadline.get_or_insert(now + patience);
            }
            PeerEvent::PathLost => self.on_path_lost(now),
            PeerEvent::Closed => {
                self.tell_media(MediaState::Interrupted, now);
                // The server says more by signalling where it means us to go; else this is a failure to mend.
                self.media.deadline = Some(now + Duration::from_secs(1));
            }
        }
    }

    fn on_path_lost(&mut self, resume_at: Instant) {
        let now = crate::clock::now();
        self.tell_media(MediaState::Interrupted, now);
        self.media.resume_at = Some(resume_at);
        self.media.deadline = Some(now + self.config.timeouts.media);
    }

    fn on_peer_failed(&mut self, error: &dyn std::fmt::Display, now: Instant) {
        self.media.peer = None;
        self.media.deadline = None;
        self.tell_media(MediaState::Interrupted, now);
        self.repair.need(Step::Rejoin, format!("the media connection failed: {error}"), now);
    }

    fn tell_media(&mut self, state: MediaState, at: Instant) {
        if self.media.told != Some(state) && (self.media.told.is_some() || state != MediaState::Interrupted) {
            self.media.told = Some(state);
            // It broke with the last that came, however long it took to be noticed.
            let at = match state {
                MediaState::Connected(_) => at,
                MediaState::Interrupted => self.media.alive.min(at),
            };
            self.media.alive = at;
            match state {
                MediaState::Connected(_) => self.repair.media_came(),
                MediaState::Interrupted => self.repair.media_left(at),
            }
            self.events.send(RoomEvent::Media { state, at });
        }
    }

    /// Media may change between UDP and TCP without a break.
    fn note_transport(&mut self, now: Instant) {
        if let (Some(MediaState::Connected(_)), Some(peer)) = (self.media.told, &self.media.peer)
            && peer.is_connected()
        {
            self.tell_media(MediaState::Connected(peer.transport()), now);
        }
    }

    /// Takes in what waits in the UDP socket.
    fn on_datagrams(&mut self, ready: io::Result<()>) -> Flow {
        let now = crate::clock::now();
        let count = match ready.and_then(|()| self.fetch(now)) {
            Ok((_, count)) => count,
            Err(error) => return Flow::Break(CloseReason::Lost(format!("the UDP socket failed: {error}"))),
        };
        let steady = matches!(self.media.told, Some(MediaState::Connected(Transport::Udp)));
        let rests = self.media.pace.rests(count, steady, now);
        if let Err(error) = self.media.udp.watch(!rests) {
            // Read now and then it is as well.
            tracing::debug!(%error, "the UDP socket cannot be watched");
        }
        ON
    }

    /// Reads a share of what waits; tells whether there is more, and how much it was.
    fn fetch(&mut self, now: Instant) -> io::Result<(bool, usize)> {
        let mut burst = Burst::borrow();
        let (mut more, mut count) = (Ok(true), 0);
        while let (Ok(true), true) = (&more, count < BURST) {
            more = self.media.udp.fetch(&mut burst);
            count += burst.len();
            for index in 0..burst.len() {
                if let Some(datagram) = self.media.udp.datagram(&burst, index) {
                    let Datagram { bytes, source, destination, arrival } = datagram;
                    self.receive(Transport::Udp, source, destination, bytes, arrival, now);
                }
            }
        }
        burst.give_back();
        let more = more?;
        if !more {
            self.events.heard(now);
        }
        Ok((more, count))
    }

    fn on_stream(&mut self, ready: io::Result<()>) -> Flow {
        let now = crate::clock::now();
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(PACKET, 0);
        let mut read = ready.map(|()| true);
        while let (Ok(true), Some(tcp)) = (&read, &mut self.media.tcp) {
            read = tcp.fill(&mut buffer);
            let (remote, local) = (tcp.remote(), tcp.local());
            while let Some(len) = self.media.tcp.as_mut().and_then(|tcp| tcp.next_packet(&mut buffer)) {
                let arrival = crate::clock::now();
                self.receive(Transport::Tcp, remote, local, &buffer[..len], arrival, arrival);
            }
        }
        self.buffer = buffer;
        if let Err(error) = read {
            tracing::info!(%error, "the TCP path is gone");
            self.media.tcp = None;
            let expected = self.media.tcp_stale || self.media.opening.is_some();
            if !expected && self.media.told == Some(MediaState::Connected(Transport::Tcp)) {
                // The server closes it just before it tells us that ICE begins anew.
                self.on_path_lost(now + RESTART_GRACE);
            }
        }
        ON
    }

    fn on_opened(&mut self, opened: io::Result<TcpLink>) -> Flow {
        let tcp = match opened {
            Ok(tcp) => tcp,
            Err(error) => {
                tracing::info!(%error, "no TCP path opens");
                return ON;
            }
        };
        if let Some(peer) = &mut self.media.peer {
            peer.add_local(tcp.local(), Transport::Tcp);
            for candidate in self.media.tcp_candidates.iter().filter(|candidate| candidate.addr() == tcp.remote()) {
                peer.add_remote(candidate.clone());
            }
        }
        self.media.tcp = Some(tcp);
        self.media.tcp_stale = false;
        ON
    }

    fn on_lent(&mut self, lent: io::Result<Relay>) -> Flow {
        match lent {
            Ok(relay) => {
                self.media.relay = Some(relay);
                self.offer_relayed();
            }
            Err(error) => tracing::info!(%error, "no relay lends us an address"),
        }
        ON
    }

    /// Takes the address that a relay lends us for one of ours, and tells the server.
    fn offer_relayed(&mut self) {
        let (Some(relay), Some(peer)) = (&self.media.relay, &mut self.media.peer) else { return };
        if let Some(ours) = peer.add_relayed(relay.address(), relay.local()) {
            self.signal.send(media::ours_is(&ours));
        }
    }

    fn on_relayed(&mut self, relayed: Option<Relayed>) -> Flow {
        let now = crate::clock::now();
        let Some(relay) = &self.media.relay else { return ON };
        let address = relay.address();
        match relayed {
            Some(Relayed { bytes, source, arrival }) => {
                self.receive(Transport::Relay, source, address, &bytes, arrival, now);
            }
            None => {
                self.media.relay = None;
                if self.media.told == Some(MediaState::Connected(Transport::Relay)) {
                    self.on_path_lost(now);
                }
            }
        }
        ON
    }

    fn receive(
        &mut self,
        way: Transport,
        source: SocketAddr,
        destination: SocketAddr,
        packet: &[u8],
        arrival: Instant,
        now: Instant,
    ) {
        let Some(peer) = &mut self.media.peer else { return };
        self.media.alive = self.media.alive.max(arrival);
        match peer.receive(way, source, destination, packet, arrival) {
            Ok(()) => drop(self.drain_outputs(now)),
            Err(error) => self.on_peer_failed(&error, now),
        }
    }

    fn on_notice(&mut self, notice: Notice) -> Flow {
        let now = crate::clock::now();
        match notice {
            Notice::Message(message) => return self.on_message(*message, now),
            Notice::Lost(why) => {
                if !self.repair.is_under_way() {
                    self.repair.need(Step::Resume, format!("signalling was lost: {why}"), now);
                }
            }
            Notice::Resumed(ice_servers) => {
                self.repair.succeeded(now);
                if !ice_servers.is_empty() {
                    self.media.relays = RelayServer::all(&ice_servers);
                }
                let state = self.sync_state();
                self.signal.send(signal_request::Message::SyncState(state));
                self.signal.ask(Command::Settled);
            }
            Notice::NotResumed { session_gone, problem } => {
                let step = if session_gone { Step::Rejoin } else { Step::Resume };
                self.repair.failed(step, format!("resuming failed: {problem}"), now);
            }
            Notice::Joined(join, at) => {
                self.repair.succeeded(at);
                self.tell_media(MediaState::Interrupted, at);
                self.enter(&join, at);
            }
            Notice::NotJoined(RoomError::RoomNotFound { .. }) => return Flow::Break(CloseReason::RoomClosed),
            // Of a server that was there before, what answers in its stead is trouble on the way.
            Notice::NotJoined(error) if error.is_passing() || error.is_of_the_server() => {
                self.repair.failed(Step::Rejoin, error.to_string(), now);
            }
            Notice::NotJoined(error) => return Flow::Break(CloseReason::Lost(error.to_string())),
        }
        ON
    }

    fn on_message(&mut self, message: signal_response::Message, now: Instant) -> Flow {
        use signal_response::Message;
        match message {
            Message::Update(update) => {
                let events = self.roster.update(&update.participants, now);
                let new = roster::subscription(events.iter().filter_map(|event| match event {
                    RoomEvent::TrackPublished { participant_sid, track, .. } => {
                        Some((participant_sid.as_str(), track.sid.as_str()))
                    }
                    _ => None,
                }));
                self.publish(events);
                if !new.participant_tracks.is_empty() {
                    self.signal.send(signal_request::Message::Subscription(new));
                }
            }
            Message::Offer(offer) => self.on_offer(offer, now),
            Message::Trickle(trickle) if trickle.target() == SignalTarget::Subscriber => {
                if let Some(candidate) = sdp::trickled_candidate(&trickle.candidate_init) {
                    self.on_candidate(&candidate);
                }
            }
            Message::RoomUpdate(update) => {
                if let Some(room) = update.room.filter(|room| !room.sid.is_empty() && room.sid != self.room.sid) {
                    self.room.sid = room.sid;
                    self.events.send(RoomEvent::RoomUpdated { room: self.room.clone(), at: now });
                }
            }
            Message::SubscriptionResponse(response) => {
                let reason = match response.err() {
                    SubscriptionError::SeCodecUnsupported => "the server cannot send its codec",
                    SubscriptionError::SeTrackNotfound => "the server does not find it",
                    SubscriptionError::SeUnknown => "the server gave no reason",
                };
                self.tell_refused(&response.track_sid, reason, now);
            }
            Message::SubscriptionPermissionUpdate(update) if !update.allowed => {
                self.tell_refused(&update.track_sid, "its publisher does not allow it", now);
            }
            Message::TrackUnpublished(gone) => {
                if let Some(event) = self.roster.unpublish(&gone.track_sid, now) {
                    self.events.send(event);
                }
            }
            Message::Leave(leave) => return self.on_leave(&leave, now),
            Message::RoomMoved(moved) => return self.on_moved(moved, now),
            _ => {}
        }
        ON
    }

    fn on_moved(&mut self, moved: RoomMovedResponse, now: Instant) -> Flow {
        let (sid, name) = moved.room.map(|room| (room.sid, room.name)).unwrap_or_default();
        tracing::warn!(room = %name, "the server moved us to another room");
        match self.config.room_moved {
            RoomMovedPolicy::Stop => return Flow::Break(CloseReason::Moved(name)),
            RoomMovedPolicy::Follow => {}
        }
        self.signal.ask(Command::Moved { room: name.clone(), token: moved.token });
        self.room = RoomInfo { sid, name, server_version: std::mem::take(&mut self.room.server_version) };
        self.renewals.clear();
        let (left, come): (Vec<_>, Vec<_>) =
            self.roster.resync(moved.participant.as_ref(), &moved.other_participants, now).into_iter().partition(
                |event| matches!(event, RoomEvent::TrackUnpublished { .. } | RoomEvent::ParticipantLeft { .. }),
            );
        self.publish(left);
        self.events.send(RoomEvent::RoomUpdated { room: self.room.clone(), at: now });
        self.publish(come);
        let all = self.roster.tracks().map(|(_, sid, _)| sid.to_owned()).collect::<Vec<_>>();
        self.subscribe(&all, true);
        ON
    }

    fn tell_refused(&mut self, track_sid: &str, reason: &str, at: Instant) {
        if let Some(track) = self.roster.key(track_sid) {
            self.events.send(RoomEvent::SubscriptionFailed { track, reason: reason.to_owned(), at });
        }
    }

    fn on_offer(&mut self, offer: SessionDescription, now: Instant) {
        let parsed = sdp::parse_offer(&offer.sdp);
        let restarted =
            self.negotiated.as_ref().is_some_and(|(before, _)| sdp::parse_offer(&before.sdp).ufrag != parsed.ufrag);
        let Some(peer) = &mut self.media.peer else { return };
        let answer = match peer.accept_offer(now, &offer, &parsed) {
            Ok(answer) => answer,
            Err(error) => {
                self.on_peer_failed(&error, now);
                return;
            }
        };
        self.signal.send(signal_request::Message::Answer(answer.clone()));
        let first = self.negotiated.is_none();
        self.negotiated = Some((offer, answer));
        if restarted {
            self.media.tcp_candidates.clear();
            self.media.tcp_stale = true;
            self.media.resume_at = None;
            self.media.udp.reroute();
        }
        if (first || restarted) && self.config.transport == TransportPolicy::Auto {
            // Where no path worked any more, the old one is not waited for once more.
            let is_lost = restarted && self.media.told == Some(MediaState::Interrupted);
            self.media.tcp_at = Some(now + if is_lost { TRICKLE } else { self.config.timeouts.udp });
            self.media.relay_at = Some(now + self.config.timeouts.udp * 2);
        }
        if restarted {
            self.offer_relayed();
        }
        if (first || restarted) && (self.media.relay_only || self.media.way() == Some(Transport::Relay)) {
            self.media.borrow_address();
        }
        for candidate in &parsed.candidates {
            self.on_candidate(candidate);
        }
        let held =
            self.negotiated.as_ref().map(|(offer, _)| parsed.streams(&offer.mid_to_track_id)).unwrap_or_default();
        let taken_off = self.renewals.offered(held.iter().map(|(_, track)| track.as_str()));
        self.subscribe(&taken_off, true);
    }

    /// Wishes for tracks that are still there, or no longer.
    fn subscribe(&self, track_sids: &[String], on: bool) {
        let there = |sid: &str| track_sids.iter().any(|wanted| wanted == sid);
        let tracks = self.roster.tracks().filter(|(_, sid, _)| there(sid)).map(|(who, sid, _)| (who, sid));
        let mut subscription = roster::subscription(tracks);
        subscription.subscribe = on;
        if !subscription.participant_tracks.is_empty() {
            self.signal.send(signal_request::Message::Subscription(subscription));
        }
    }

    /// Makes ready for an address of the server's, and tells it ours.
    fn on_candidate(&mut self, candidate: &str) {
        let Some(candidate) = peer::read_candidate(candidate) else { return };
        let Some(peer) = &mut self.media.peer else { return };
        if peer::is_udp(&candidate) && self.config.transport != TransportPolicy::Tcp {
            match self.media.udp.route(candidate.addr()) {
                _ if self.media.relay_only => {}
                Ok(local) => {
                    if let Some(ours) = peer.add_local(local, Transport::Udp) {
                        self.signal.send(media::ours_is(&ours));
                    }
                }
                Err(error) => tracing::debug!(%error, "no way to one of the server's addresses"),
            }
            // Where we have no way to, a relay may have one.
            peer.add_remote(candidate);
        } else if peer::is_tcp_passive(&candidate)
            && self.config.transport != TransportPolicy::Udp
            && !self.media.relay_only
        {
            if !self.media.tcp_candidates.contains(&candidate) {
                self.media.tcp_candidates.push(candidate);
            }
            let tcp_is_all = self.config.transport == TransportPolicy::Tcp;
            if tcp_is_all || self.media.way() == Some(Transport::Tcp) {
                self.media.open_tcp();
            }
        }
    }

    fn on_leave(&mut self, leave: &LeaveRequest, now: Instant) -> Flow {
        let reason = leave.reason();
        let why = format!("the server asked us to leave ({})", reason.as_str_name().to_lowercase());
        match leave.action() {
            leave_request::Action::Resume => self.repair.need(Step::Resume, why, now),
            leave_request::Action::Reconnect => self.repair.need(Step::Rejoin, why, now),
            leave_request::Action::Disconnect => match reason {
                DisconnectReason::RoomDeleted | DisconnectReason::RoomClosed => {
                    return Flow::Break(CloseReason::RoomClosed);
                }
                _ if !error::is_the_servers_trouble(reason) => {
                    return Flow::Break(CloseReason::Removed(reason.as_str_name().to_lowercase()));
                }
                _ => self.repair.need(Step::Rejoin, why, now),
            },
        }
        ON
    }

    fn sync_state(&self) -> SyncState {
        let (offer, answer) = self.negotiated.clone().unzip();
        let subscription = roster::subscription(self.roster.tracks().map(|(participant, sid, _)| (participant, sid)));
        SyncState { answer, offer, subscription: Some(subscription), ..Default::default() }
    }

    async fn say_goodbye(&mut self) {
        self.signal.ask(Command::Leave);
        if let Some(peer) = &mut self.media.peer {
            tracing::debug!(packets = peer.unrouted(), "came for no track");
            peer.close();
        }
        self.drain_outputs(crate::clock::now());
        if tokio::time::timeout(GOODBYE, self.signal.ended()).await.is_err() {
            tracing::debug!("the server did not take our goodbye");
        }
    }
}

async fn derived(deriving: &mut Option<JoinHandle<Derived>>) -> Derived {
    let Some(task) = deriving else { return pending().await };
    let derived = task.await.expect("deriving a key does not panic, and nobody aborts it");
    *deriving = None;
    derived
}

fn room_info(join: &JoinResponse) -> RoomInfo {
    let (sid, name) = join.room.as_ref().map(|room| (room.sid.clone(), room.name.clone())).unwrap_or_default();
    let server_version = join.server_info.as_ref().map(|info| info.version.clone()).unwrap_or_default();
    RoomInfo { sid, name, server_version }
}
