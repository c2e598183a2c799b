//! The media connection alone, without signalling and sockets: for benches that measure it and tests that starve it.

use std::net::SocketAddr;
use std::time::Instant;

use livekit_protocol::SessionDescription;
use str0m::Candidate;
use str0m::net::Protocol;

use super::event::{RtpPacket, Transport};
use super::peer::{Output, Peer, PeerEvent};
use super::sdp;
use crate::call::TrackKey;

/// Why a [`Receiver`] is of no more use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ReceiverError(String);

/// Our end of a connection with one path, which takes datagrams as the engine does: a wake-up for each.
pub(crate) struct Receiver {
    peer: Peer,
    here: SocketAddr,
    there: SocketAddr,
    connected: bool,
}

impl Receiver {
    /// Takes an offer and gives the answer to it. Each of `tracks` is a track's name in the offer and its key.
    pub(crate) fn answering<'a>(
        now: Instant,
        offer: &str,
        tracks: impl IntoIterator<Item = (&'a str, TrackKey)>,
        (here, there): (SocketAddr, SocketAddr),
    ) -> Result<(Self, String), ReceiverError> {
        let mut peer = Peer::new(now);
        for (sid, key) in tracks {
            peer.bind(sid, key);
        }
        let described = SessionDescription { r#type: "offer".into(), sdp: offer.into(), ..Default::default() };
        let answer = peer.accept_offer(now, &described, &sdp::parse_offer(offer)).map_err(|error| failed(&error))?;
        peer.add_local(here, Transport::Udp);
        peer.add_remote(Candidate::host(there, Protocol::Udp).map_err(|error| failed(&error))?);
        Ok((Self { peer, here, there, connected: false }, answer.sdp))
    }

    /// Whether media can come.
    pub(crate) fn is_connected(&self) -> bool {
        self.connected
    }

    /// Packets that came for no track.
    pub(crate) fn unrouted(&self) -> u64 {
        self.peer.unrouted()
    }

    /// Lets time pass. What is to be sent goes to `sent`.
    pub(crate) fn advance(&mut self, now: Instant, sent: &mut Vec<Vec<u8>>) -> Result<(), ReceiverError> {
        self.peer.advance(now).map_err(|error| failed(&error))?;
        self.drain(&mut |_| {}, sent)
    }

    /// Takes a datagram off the wire. RTP packets go to `packets`, what is to be sent to `sent`.
    pub(crate) fn receive(
        &mut self,
        datagram: &[u8],
        at: Instant,
        packets: &mut impl FnMut(RtpPacket),
        sent: &mut Vec<Vec<u8>>,
    ) -> Result<(), ReceiverError> {
        self.peer.advance(at).map_err(|error| failed(&error))?;
        self.drain(packets, sent)?;
        self.peer.receive(Transport::Udp, self.there, self.here, datagram, at).map_err(|error| failed(&error))?;
        self.drain(packets, sent)
    }

    fn drain(&mut self, packets: &mut impl FnMut(RtpPacket), sent: &mut Vec<Vec<u8>>) -> Result<(), ReceiverError> {
        loop {
            match self.peer.poll().map_err(|error| failed(&error))? {
                Output::Timeout(_) => return Ok(()),
                Output::Transmit(transmit) => sent.push(transmit.contents.to_vec()),
                Output::Event(PeerEvent::Connected) => self.connected = true,
                Output::Event(PeerEvent::Rtp(packet)) => packets(packet),
                Output::Event(
                    PeerEvent::PathRestored
                    | PeerEvent::PathInDoubt
                    | PeerEvent::PathLost
                    | PeerEvent::Closed
                    | PeerEvent::SenderReport { .. }
                    | PeerEvent::Data(_),
                ) => {}
            }
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> ReceiverError {
    ReceiverError(error.to_string())
}
