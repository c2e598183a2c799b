//! The media connection and the ways it may take: sockets, streams, relays, and when to try which.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use livekit_protocol::{SignalTarget, TrickleRequest, signal_request};
use str0m::Candidate;
use str0m::net::{Protocol, Transmit};
use tokio::task::JoinHandle;

use super::event::{MediaState, Transport};
use super::net::relay::{Relay, RelayServer, Relayed};
use super::net::tcp::TcpLink;
use super::net::udp::UdpLink;
use super::pace::Pace;
use super::peer::Peer;
use super::sdp;

/// The media connection and what it runs over.
pub(super) struct Media {
    /// `None` from a fatal error until the next session.
    pub(super) peer: Option<Peer>,
    pub(super) udp: UdpLink,
    pub(super) pace: Pace,
    pub(super) tcp: Option<TcpLink>,
    /// ICE has begun anew since `tcp` was opened: the server will close it and wants another (RFC 6544 §7.1).
    pub(super) tcp_stale: bool,
    pub(super) opening: Option<JoinHandle<io::Result<TcpLink>>>,
    pub(super) tcp_candidates: Vec<Candidate>,
    /// When to try TCP beside UDP.
    pub(super) tcp_at: Option<Instant>,
    /// The relays that the server names, and the certificates that they may show beside those this machine trusts.
    pub(super) relays: Vec<RelayServer>,
    pub(super) trusted: Vec<Vec<u8>>,
    pub(super) relay: Option<Relay>,
    pub(super) lending: Option<JoinHandle<io::Result<Relay>>>,
    /// When to try a relay beside all else.
    pub(super) relay_at: Option<Instant>,
    /// Nothing but a relay may be tried.
    pub(super) relay_only: bool,
    /// When to ask the server to begin ICE anew, unless it does so by itself.
    pub(super) resume_at: Option<Instant>,
    /// When media must have come (back).
    pub(super) deadline: Option<Instant>,
    pub(super) told: Option<MediaState>,
    /// The latest sign of life, or what was told, whichever is later.
    pub(super) alive: Instant,
}

impl Media {
    /// Nothing but a socket; `trusted` certificates are for relays.
    pub(super) fn new(udp: UdpLink, trusted: Vec<Vec<u8>>, at: Instant) -> Self {
        Self {
            peer: None,
            pace: Pace::new(udp.capacity(), at),
            udp,
            tcp: None,
            tcp_stale: false,
            opening: None,
            tcp_candidates: Vec::new(),
            tcp_at: None,
            relays: Vec::new(),
            trusted,
            relay: None,
            lending: None,
            relay_at: None,
            relay_only: false,
            resume_at: None,
            deadline: None,
            told: None,
            alive: at,
        }
    }

    pub(super) fn transmit(&mut self, transmit: &Transmit) {
        if let Some(relay) = self.relay.as_ref().filter(|relay| relay.address() == transmit.source) {
            relay.send(&transmit.contents, transmit.destination);
            return;
        }
        // What a relay that is gone was to send is nothing to send from an address of our own.
        if self.relay_only || self.peer.as_ref().is_some_and(|peer| peer.is_lent(transmit.source)) {
            return;
        }
        if transmit.proto == Protocol::Udp {
            self.udp.send(&transmit.contents, transmit.destination);
            return;
        }
        let ours = |tcp: &&mut TcpLink| tcp.remote() == transmit.destination && tcp.local() == transmit.source;
        if let Some(tcp) = self.tcp.as_mut().filter(ours)
            && let Err(error) = tcp.send(&transmit.contents)
        {
            // The next read finds the stream broken and says so.
            tracing::debug!(%error, "not sent over TCP");
        }
    }

    pub(super) fn open_tcp(&mut self) {
        if self.opening.is_some() || (self.tcp.is_some() && !self.tcp_stale) {
            return;
        }
        let remotes: Vec<SocketAddr> = self.tcp_candidates.iter().map(Candidate::addr).collect();
        if !remotes.is_empty() {
            self.opening = Some(tokio::spawn(TcpLink::open(remotes)));
        }
    }

    pub(super) fn drop_tcp(&mut self) {
        self.tcp = None;
        if let Some(opening) = self.opening.take() {
            opening.abort();
        }
    }

    /// Asks for an address of a relay's, unless there is one.
    pub(super) fn borrow_address(&mut self) {
        if self.lending.is_none() && self.relay.is_none() && !self.relays.is_empty() {
            self.lending = Some(tokio::spawn(Relay::open(self.relays.clone(), self.trusted.clone())));
        }
    }

    pub(super) fn drop_relay(&mut self) {
        self.relay = None;
        if let Some(lending) = self.lending.take() {
            lending.abort();
        }
    }

    /// Which way media took last.
    pub(super) fn way(&self) -> Option<Transport> {
        self.peer.as_ref().filter(|peer| peer.is_connected()).map(Peer::transport)
    }
}

impl Drop for Media {
    fn drop(&mut self) {
        self.drop_tcp();
        self.drop_relay();
    }
}

/// Tells the server one of our addresses.
pub(super) fn ours_is(candidate: &str) -> signal_request::Message {
    signal_request::Message::Trickle(TrickleRequest {
        candidate_init: sdp::candidate_init(candidate),
        target: SignalTarget::Subscriber as i32,
        ..Default::default()
    })
}

pub(super) async fn relayed(relay: &mut Option<Relay>) -> Option<Relayed> {
    match relay {
        Some(relay) => relay.receive().await,
        None => pending().await,
    }
}

pub(super) async fn lent(lending: &mut Option<JoinHandle<io::Result<Relay>>>) -> io::Result<Relay> {
    let Some(task) = lending else { return pending().await };
    let lent = task.await;
    *lending = None;
    lent.map_err(io::Error::other)?
}

pub(super) async fn tcp_readable(tcp: &mut Option<TcpLink>) -> io::Result<()> {
    match tcp {
        Some(tcp) => tcp.readable().await,
        None => pending().await,
    }
}

pub(super) async fn tcp_opened(opening: &mut Option<JoinHandle<io::Result<TcpLink>>>) -> io::Result<TcpLink> {
    let Some(task) = opening else { return pending().await };
    let opened = task.await;
    *opening = None;
    opened.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn without_its_relay_nothing_is_sent_from_an_address_of_our_own() {
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_nonblocking(true).unwrap();
        let destination = server.local_addr().unwrap();
        let now = crate::clock::now();
        let mut media = Media::new(UdpLink::bind().unwrap(), Vec::new(), now);
        let (lent, ours) = ("192.0.2.7:40000".parse().unwrap(), "127.0.0.1:40001".parse().unwrap());
        let send = |media: &mut Media, source: SocketAddr, contents: &[u8]| {
            media.transmit(&Transmit { proto: Protocol::Udp, source, destination, contents: contents.to_vec().into() });
        };
        let mut peer = Peer::new(now);
        peer.add_relayed(lent, ours).unwrap();
        media.peer = Some(peer);
        send(&mut media, lent, b"of a relay's");
        media.relay_only = true;
        send(&mut media, ours, b"past the relay");
        media.relay_only = false;
        send(&mut media, ours, b"ours");
        let mut buffer = [0; 64];
        let socket = tokio::net::UdpSocket::from_std(server).unwrap();
        let (len, _) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..len], b"ours");
    }
}
