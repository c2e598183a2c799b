//! The one UDP socket of a call, IPv4 and IPv6 alike.
//!
//! Datagrams are fetched many at a time, into memory that all calls of a thread share. While they come steadily the
//! socket can be left [unwatched](UdpLink::watch): then nothing wakes the process when one arrives, and whoever reads
//! now and then finds several, each with the kernel's stamp.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ::time::OffsetDateTime;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

#[cfg(feature = "testkit")]
use super::impairment::Filter;
use super::stamp::Stamps;

/// Asked of the kernel; it grants what its own limit allows. 4 MiB hold ten seconds of a hundred talkers, which is
/// longer than any stall of this process that a call survives.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How many datagrams are fetched at a time.
const AT_A_TIME: usize = 32;

/// Room for a datagram: more than fits into an Ethernet frame, which media and all that belongs to it stay below. What is
/// longer is no packet of a call.
const DATAGRAM: usize = 2048;

/// Routes do not depend on the port.
const ANY_PORT: u16 = 9;

/// About what a packet of a voice takes in the socket's buffer, with the kernel's overhead.
const KEPT: usize = 1024;

thread_local! {
    static BURST: Cell<Burst> = const { Cell::new(Burst { now: None, bytes: Vec::new(), fetched: Vec::new() }) };
}

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Datagram<'a> {
    /// Its bytes.
    pub(in super::super) bytes: &'a [u8],
    /// Who sent it.
    pub(in super::super) source: SocketAddr,
    /// The local address that the sender knows us by.
    pub(in super::super) destination: SocketAddr,
    /// When the kernel took it in, or where it does not tell, when it was read.
    pub(in super::super) arrival: Instant,
}

/// What was fetched at a time.
#[derive(Debug, Default)]
pub(in super::super) struct Burst {
    now: Option<Instant>,
    bytes: Vec<u8>,
    fetched: Vec<Fetched>,
}

impl Burst {
    /// The memory that calls of this thread share; to be [given back](Self::give_back).
    pub(in super::super) fn borrow() -> Self {
        let mut burst = BURST.take();
        burst.bytes.resize(AT_A_TIME * DATAGRAM, 0);
        burst.now = None;
        burst.fetched.clear();
        burst
    }

    /// Lets the next call have the memory.
    pub(in super::super) fn give_back(self) {
        BURST.set(self);
    }

    /// How many datagrams it holds.
    pub(in super::super) fn len(&self) -> usize {
        self.fetched.len()
    }
}

/// A datagram as the kernel handed it over, in the part of the burst's memory that its place in the row says.
#[derive(Clone, Copy, Debug)]
struct Fetched {
    len: usize,
    source: SocketAddr,
    stamp: Option<OffsetDateTime>,
}

/// The socket, bound to every local address, and the local address used towards each peer.
#[derive(Debug)]
pub(in super::super) struct UdpLink {
    socket: std::net::UdpSocket,
    /// The same socket, while the runtime tells when something can be read.
    watched: Option<UdpSocket>,
    /// How many datagrams of voices wait without loss while nobody reads.
    capacity: usize,
    port: u16,
    dual: bool,
    routes: Vec<(IpAddr, SocketAddr)>,
    stamps: Stamps,
    /// Nothing was left after what was fetched last.
    emptied: bool,
    #[cfg(feature = "testkit")]
    filter: Option<Filter>,
}

impl UdpLink {
    /// Binds to a free port of every local address: IPv6 that takes IPv4 too where the machine has it, else IPv4.
    pub(in super::super) fn bind() -> io::Result<Self> {
        let (socket, dual) = match open(Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()) {
            Ok(socket) => (socket, true),
            Err(_) => (open(Domain::IPV4, Ipv4Addr::UNSPECIFIED.into())?, false),
        };
        // Linux tells twice what it lets a program use: half is for its own overhead, which KEPT has in it.
        let capacity = socket.recv_buffer_size()? / KEPT;
        let socket: std::net::UdpSocket = socket.into();
        Ok(Self {
            port: socket.local_addr()?.port(),
            watched: Some(UdpSocket::from_std(socket.try_clone()?)?),
            socket,
            capacity,
            dual,
            routes: Vec::new(),
            stamps: Stamps::new(crate::clock::now(), crate::clock::wall()),
            emptied: false,
            #[cfg(feature = "testkit")]
            filter: None,
        })
    }

    /// Loses packets on purpose.
    #[cfg(feature = "testkit")]
    pub(in super::super) fn impaired(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// The local address from which packets to `remote` leave, remembered for what comes back.
    pub(in super::super) fn route(&mut self, remote: SocketAddr) -> io::Result<SocketAddr> {
        if let Some((_, local)) = self.routes.iter().find(|(ip, _)| *ip == remote.ip()) {
            return Ok(*local);
        }
        if remote.is_ipv6() && !self.dual {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no IPv6"));
        }
        let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // Connecting a datagram socket sends nothing: it asks the kernel for the route.
        let probe = std::net::UdpSocket::bind((any, 0))?;
        probe.connect(remote)?;
        let local = SocketAddr::new(probe.local_addr()?.ip(), self.port);
        self.routes.push((remote.ip(), local));
        Ok(local)
    }

    /// Asks for all ways anew: this machine may have got other addresses. A way that is no longer there stays as it was.
    pub(in super::super) fn reroute(&mut self) {
        for (remote, before) in std::mem::take(&mut self.routes) {
            if self.route(SocketAddr::new(remote, ANY_PORT)).is_err() {
                self.routes.push((remote, before));
            }
        }
    }

    /// Sends, or lets the packet go where the socket cannot take it: what matters is sent again.
    pub(in super::super) fn send(&self, packet: &[u8], to: SocketAddr) {
        #[cfg(feature = "testkit")]
        if self.filter.as_ref().is_some_and(Filter::is_blocked) {
            return;
        }
        let to = match to {
            SocketAddr::V4(v4) if self.dual => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            other => other,
        };
        if let Err(error) = self.socket.send_to(packet, to) {
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }

    /// Waits until there is something to read; forever, where the socket is not watched.
    pub(in super::super) async fn readable(&self) -> io::Result<()> {
        match &self.watched {
            Some(watched) => watched.readable().await,
            None => std::future::pending().await,
        }
    }

    /// Has the runtime watch the socket, or not any more.
    pub(in super::super) fn watch(&mut self, watch: bool) -> io::Result<()> {
        if !watch {
            self.watched = None;
        } else if self.watched.is_none() {
            self.watched = Some(UdpSocket::from_std(self.socket.try_clone()?)?);
        }
        Ok(())
    }

    /// Whether the runtime watches the socket.
    pub(in super::super) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    /// How many datagrams of voices the socket holds while nobody reads.
    pub(in super::super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Fetches what waits, as much as fits. False where nothing is left then, as far as it is known.
    pub(in super::super) fn fetch(&mut self, burst: &mut Burst) -> io::Result<bool> {
        burst.fetched.clear();
        if std::mem::take(&mut self.emptied) {
            self.stamps.emptied();
        }
        if burst.now.is_none() {
            let now = crate::clock::now();
            self.stamps.compare(now, crate::clock::wall());
            burst.now = Some(now);
        }
        let mut asked = false;
        let mut fetch = || {
            asked = true;
            stamped::fetch(&self.socket, &mut burst.bytes, &mut burst.fetched)
        };
        let fetched = match &self.watched {
            // The runtime has to learn when nothing is left: it tells only of what comes then.
            Some(watched) => watched.try_io(Interest::READABLE, fetch),
            None => fetch(),
        };
        match fetched {
            Ok(()) => {
                let more = burst.fetched.len() == AT_A_TIME;
                // Known now, to be noted when all that was fetched has got its arrival.
                self.emptied = !more;
                Ok(more || self.watched.is_some())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if asked {
                    self.stamps.emptied();
                }
                Ok(false)
            }
            // An ICMP answer to something sent earlier; the socket is fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// One of those that were fetched, to be asked in their order; `None` for one that is no packet of a call.
    pub(in super::super) fn datagram<'a>(&mut self, burst: &'a Burst, index: usize) -> Option<Datagram<'a>> {
        let fetched = burst.fetched.get(index)?;
        let arrival = self.stamps.arrival(fetched.stamp, crate::clock::now);
        // What is longer than its room came cut.
        let bytes = burst.bytes.chunks_exact(DATAGRAM).nth(index)?.get(..fetched.len)?;
        #[cfg(feature = "testkit")]
        if self.filter.as_mut().is_some_and(|filter| filter.drops(bytes)) {
            return None;
        }
        let source = SocketAddr::new(fetched.source.ip().to_canonical(), fetched.source.port());
        // Nobody knows our address before we have asked for a route to them.
        let (_, destination) = self.routes.iter().find(|(ip, _)| *ip == source.ip()).or_else(|| self.routes.first())?;
        Some(Datagram { bytes, source, destination: *destination, arrival })
    }
}

fn open(domain: Domain, ip: IpAddr) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if domain == Domain::IPV6 {
        socket.set_only_v6(false)?;
    }
    // A smaller buffer is no reason not to record.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    stamped::ask(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    Ok(socket)
}

/// Datagrams with the moment at which the kernel took them in.
#[cfg(target_os = "linux")]
mod stamped {
    use std::io::IoSliceMut;
    use std::net::SocketAddrV4;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use nix::sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt,
    };
    use nix::sys::time::TimeSpec;

    use super::*;

    pub(super) fn ask(socket: &Socket) {
        // Without stamps, the moment of the read counts.
        let _ = setsockopt(socket, sockopt::ReceiveTimestampns, &true);
    }

    pub(super) fn fetch(socket: &std::net::UdpSocket, bytes: &mut [u8], fetched: &mut Vec<Fetched>) -> io::Result<()> {
        fetched.clear();
        let mut parts: Vec<[IoSliceMut<'_>; 1]> =
            bytes.chunks_exact_mut(DATAGRAM).map(|part| [IoSliceMut::new(part)]).collect();
        // Made anew each time: the kernel leaves in them how much of each it used.
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(parts.len(), Some(nix::cmsg_space!(TimeSpec)));
        let flags = MsgFlags::MSG_TRUNC;
        let read = recvmmsg(socket.as_raw_fd(), &mut headers, parts.iter_mut(), flags, None)?;
        fetched.extend(read.map(|read| Fetched {
            len: read.bytes,
            source: read.address.as_ref().and_then(address).unwrap_or(NOBODY),
            stamp: read.cmsgs().ok().and_then(|mut messages| messages.find_map(stamp)),
        }));
        Ok(())
    }

    fn stamp(message: ControlMessageOwned) -> Option<OffsetDateTime> {
        match message {
            ControlMessageOwned::ScmTimestampns(at) => {
                Some(OffsetDateTime::UNIX_EPOCH + ::time::Duration::try_from(Duration::from(at)).ok()?)
            }
            _ => None,
        }
    }

    fn address(of: &SockaddrStorage) -> Option<SocketAddr> {
        if let Some(v6) = of.as_sockaddr_in6() {
            return Some(SocketAddr::new(v6.ip().into(), v6.port()));
        }
        of.as_sockaddr_in().map(|v4| SocketAddrV4::new(v4.ip(), v4.port()).into())
    }

    /// Where a datagram comes from that says nothing about it.
    const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
}

/// Datagrams, where the kernel does not tell when it took them in.
#[cfg(not(target_os = "linux"))]
mod stamped {
    use super::*;

    pub(super) fn ask(_: &Socket) {}

    pub(super) fn fetch(socket: &std::net::UdpSocket, bytes: &mut [u8], fetched: &mut Vec<Fetched>) -> io::Result<()> {
        fetched.clear();
        for part in bytes.chunks_exact_mut(DATAGRAM) {
            match socket.recv_from(part) {
                Ok((len, source)) => fetched.push(Fetched { len, source, stamp: None }),
                // What was fetched before comes first; an error that stays is met again.
                Err(_) if !fetched.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_address_that_the_machine_no_longer_has_is_not_told_again() {
        let mut link = UdpLink::bind().unwrap();
        let server: SocketAddr = "127.0.0.1:7882".parse().unwrap();
        let now = link.route(server).unwrap();
        link.routes = vec![(server.ip(), "192.0.2.77:9".parse().unwrap())];
        link.reroute();
        assert_eq!(link.route(server).unwrap(), now);
    }

    /// What a datagram's arrival was said to be that waited so long in the socket, and when it was sent at the latest.
    #[cfg(target_os = "linux")]
    async fn after_waiting(link: &mut UdpLink, peer: &std::net::UdpSocket, wait: Duration) -> (Instant, Instant) {
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        peer.send_to(b"early", local).unwrap();
        let sent = crate::clock::now();
        // The stall of a process that gets no CPU.
        std::thread::sleep(wait);
        link.readable().await.unwrap();
        (all(link)[0].1, sent)
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_datagram_that_waited_keeps_the_moment_of_its_arrival() {
        let mut link = UdpLink::bind().unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        // Linux begins to stamp packets a moment after the first socket of the machine asks for it, from a work queue.
        // Until then it gives the moment of the read.
        let since = crate::clock::now();
        let wait = Duration::from_millis(50);
        loop {
            let (arrival, sent) = after_waiting(&mut link, &peer, wait).await;
            if arrival < sent + wait {
                break;
            }
            assert!(since.elapsed() < Duration::from_secs(10), "the kernel does not stamp");
        }
        let before = crate::clock::now();
        let (arrival, sent) = after_waiting(&mut link, &peer, Duration::from_millis(300)).await;
        let slack = Duration::from_millis(100);
        assert!(arrival + slack > before && arrival < sent + slack, "{:?}", arrival - before);
    }

    #[tokio::test]
    async fn packets_go_both_ways_under_the_routed_address() {
        let mut link = UdpLink::bind().unwrap();
        let peer = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        assert_eq!(local.ip(), IpAddr::from(Ipv4Addr::LOCALHOST));

        link.send(b"there", peer.local_addr().unwrap());
        let mut buffer = [0; 100];
        let (len, from) = peer.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"there"[..], local));

        peer.send_to(b"back", local).await.unwrap();
        link.readable().await.unwrap();
        let mut burst = Burst::borrow();
        assert!(link.fetch(&mut burst).unwrap());
        let got = link.datagram(&burst, 0).unwrap();
        assert_eq!((got.source, got.destination), (peer.local_addr().unwrap(), local));
        assert_eq!((got.bytes, burst.len()), (&b"back"[..], 1));
        assert!(!link.fetch(&mut burst).unwrap());
        assert_eq!(burst.len(), 0);
    }

    #[tokio::test]
    async fn everything_that_waits_is_read_at_once_in_its_order_watched_or_not() {
        let mut link = UdpLink::bind().unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        for watched in [true, false, true] {
            link.watch(watched).unwrap();
            let sent: Vec<Vec<u8>> = (0..3 * AT_A_TIME as u32 + 5).map(|n| n.to_be_bytes().to_vec()).collect();
            for packet in &sent {
                peer.send_to(packet, local).unwrap();
            }
            if watched {
                link.readable().await.unwrap();
            }
            let got = all(&mut link);
            assert!(got.is_sorted_by_key(|(_, arrival)| *arrival), "{got:?}");
            assert_eq!(got.into_iter().map(|(bytes, _)| bytes).collect::<Vec<_>>(), sent);
            assert!(all(&mut link).is_empty());
        }
    }

    #[tokio::test]
    async fn a_socket_that_is_watched_again_tells_of_what_waited() {
        let mut link = UdpLink::bind().unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        link.watch(false).unwrap();
        peer.send_to(b"waited", local).unwrap();
        let unwatched = tokio::time::timeout(Duration::from_millis(50), link.readable()).await;
        assert!(unwatched.is_err() && !link.is_watched());
        link.watch(true).unwrap();
        link.readable().await.unwrap();
        assert_eq!(all(&mut link)[0].0, b"waited");
    }

    #[tokio::test]
    async fn a_datagram_that_is_too_long_for_a_packet_is_left_out() {
        let mut link = UdpLink::bind().unwrap();
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        for len in [DATAGRAM, DATAGRAM + 1, 10] {
            peer.send_to(&vec![7; len], local).unwrap();
        }
        link.readable().await.unwrap();
        let lengths: Vec<usize> = all(&mut link).iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(lengths, [DATAGRAM, 10]);
    }

    fn all(link: &mut UdpLink) -> Vec<(Vec<u8>, Instant)> {
        let (mut got, mut burst, mut more) = (Vec::new(), Burst::borrow(), true);
        while more {
            more = link.fetch(&mut burst).unwrap();
            let datagrams = (0..burst.len()).filter_map(|index| link.datagram(&burst, index));
            got.extend(datagrams.map(|datagram| (datagram.bytes.to_vec(), datagram.arrival)));
        }
        burst.give_back();
        got
    }
}
