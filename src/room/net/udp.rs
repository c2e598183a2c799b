//! The one UDP socket of a call, IPv4 and IPv6 alike.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use ::time::OffsetDateTime;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

#[cfg(feature = "testkit")]
use super::impairment::Filter;
use super::stamp::Stamps;

/// Asked of the kernel; it grants what its own limit allows. 4 MiB hold ten seconds of a hundred talkers, which is
/// longer than any stall of this process that a call survives.
const RECEIVE_BUFFER: usize = 4 << 20;

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Datagram {
    /// Its length in the buffer it was read into.
    pub(in super::super) len: usize,
    /// Who sent it.
    pub(in super::super) source: SocketAddr,
    /// The local address that the sender knows us by.
    pub(in super::super) destination: SocketAddr,
    /// When the kernel took it in, or where it does not tell, when it was read.
    pub(in super::super) arrival: Instant,
}

/// The socket, bound to every local address, and the local address used towards each peer.
#[derive(Debug)]
pub(in super::super) struct UdpLink {
    socket: UdpSocket,
    /// The same socket for sending, which is tried at once: the runtime would first wait to learn that it can send.
    sender: std::net::UdpSocket,
    port: u16,
    dual: bool,
    routes: Vec<(IpAddr, SocketAddr)>,
    stamps: Stamps,
    /// What the kernel tells about a datagram beside its bytes.
    control: Vec<u8>,
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
        let socket: std::net::UdpSocket = socket.into();
        let sender = socket.try_clone()?;
        let socket = UdpSocket::from_std(socket)?;
        Ok(Self {
            port: socket.local_addr()?.port(),
            socket,
            sender,
            dual,
            routes: Vec::new(),
            stamps: Stamps::new(crate::clock::now(), crate::clock::wall()),
            control: stamped::control(),
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
        if let Err(error) = self.sender.send_to(packet, to) {
            tracing::trace!(%to, %error, "datagram not sent");
        }
    }

    /// Waits until there is something to read.
    pub(in super::super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// To be called before a burst of datagrams is read; says when that is.
    pub(in super::super) fn begin_burst(&mut self) -> Instant {
        let now = crate::clock::now();
        self.stamps.compare(now, crate::clock::wall());
        now
    }

    /// Reads one datagram; `None` where none waits.
    pub(in super::super) fn try_recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        loop {
            let (len, source, stamp) = match stamped::try_recv(&self.socket, buffer, &mut self.control) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stamps.emptied();
                    return Ok(None);
                }
                // An ICMP answer to something sent earlier; the socket is fine.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let arrival = self.stamps.arrival(stamp, crate::clock::now);
            #[cfg(feature = "testkit")]
            if self.filter.as_mut().is_some_and(|filter| filter.drops(&buffer[..len])) {
                continue;
            }
            let source = SocketAddr::new(source.ip().to_canonical(), source.port());
            let known = self.routes.iter().find(|(ip, _)| *ip == source.ip()).or_else(|| self.routes.first());
            // Nobody knows our address before we have asked for a route to them.
            let Some((_, destination)) = known else { continue };
            return Ok(Some(Datagram { len, source, destination: *destination, arrival }));
        }
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

    use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
    use nix::sys::time::TimeSpec;
    use tokio::io::Interest;

    use super::*;

    pub(super) fn ask(socket: &Socket) {
        // Without stamps, the moment of the read counts.
        let _ = setsockopt(socket, sockopt::ReceiveTimestampns, &true);
    }

    pub(super) fn control() -> Vec<u8> {
        nix::cmsg_space!(TimeSpec)
    }

    pub(super) fn try_recv(
        socket: &UdpSocket,
        buffer: &mut [u8],
        control: &mut [u8],
    ) -> io::Result<(usize, SocketAddr, Option<OffsetDateTime>)> {
        socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::empty();
            let read = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
            let stamp = read.cmsgs().ok().and_then(|mut messages| messages.find_map(stamp));
            let source = read.address.as_ref().and_then(address);
            let source = source.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a datagram from nowhere"))?;
            Ok((read.bytes, source, stamp))
        })
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
}

/// Datagrams, where the kernel does not tell when it took them in.
#[cfg(not(target_os = "linux"))]
mod stamped {
    use super::*;

    pub(super) fn ask(_: &Socket) {}

    pub(super) fn control() -> Vec<u8> {
        Vec::new()
    }

    pub(super) fn try_recv(
        socket: &UdpSocket,
        buffer: &mut [u8],
        _: &mut [u8],
    ) -> io::Result<(usize, SocketAddr, Option<OffsetDateTime>)> {
        socket.try_recv_from(buffer).map(|(len, source)| (len, source, None))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What a datagram's arrival was said to be that waited so long in the socket, and when it was sent at the latest.
    #[cfg(target_os = "linux")]
    async fn after_waiting(link: &mut UdpLink, peer: &std::net::UdpSocket, wait: Duration) -> (Instant, Instant) {
        let local = link.route(peer.local_addr().unwrap()).unwrap();
        peer.send_to(b"early", local).unwrap();
        let sent = crate::clock::now();
        // The stall of a process that gets no CPU.
        std::thread::sleep(wait);
        link.readable().await.unwrap();
        link.begin_burst();
        (link.try_recv(&mut [0; 100]).unwrap().unwrap().arrival, sent)
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
        let got = link.try_recv(&mut buffer).unwrap().unwrap();
        assert_eq!((got.source, got.destination), (peer.local_addr().unwrap(), local));
        assert_eq!(&buffer[..got.len], b"back");
        assert!(link.try_recv(&mut buffer).unwrap().is_none());
    }
}
