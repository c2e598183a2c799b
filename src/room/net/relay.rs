//! Relays (TURN, RFC 8656), over UDP, TCP or TLS: the last way to a server that neither UDP nor TCP reaches.
//!
//! A relay lends us an address; what the server sends there comes to us, and what we send leaves from there. A task keeps the
//! connection to the relay, the lease and the permissions, for as long as somebody holds the [`Relay`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use livekit_protocol::IceServer;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use turn_client_proto::api::{SendError, Transmit, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet};
use turn_client_proto::client::TurnClient;
use turn_client_proto::prelude::TurnClientApi;
use turn_client_proto::stun::Instant as TurnInstant;
use turn_client_proto::tcp::TurnClientTcp;
use turn_client_proto::types::{AddressFamily, TransportType, TurnCredentials};
use turn_client_proto::udp::TurnClientUdp;

/// How long one relay may take to lend an address.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection may take nothing before it counts as dead.
const STALLED: Duration = Duration::from_secs(10);

/// How long giving the address back may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Packets that may wait for the engine; it fetches them as they come.
const WAITING: usize = 4096;

/// Packets that may wait for the permission to send to somebody: checks, which are sent again anyway.
const UNPERMITTED: usize = 8;

/// What channel data is filled up to on a stream.
const WORD: usize = 4;

/// Longer than any packet with what a relay puts around it.
const BUFFER: usize = 16 << 10;

const TURN_PORT: u16 = 3478;
const TURNS_PORT: u16 = 5349;

/// How a relay is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Udp,
    Tcp,
    Tls,
}

/// A relay that the server names.
#[derive(Clone, PartialEq, Eq)]
pub(in super::super) struct RelayServer {
    way: Way,
    host: String,
    port: u16,
    username: String,
    credential: String,
}

impl fmt::Debug for RelayServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}:{}", self.way, self.host, self.port)
    }
}

impl RelayServer {
    /// The relays among what the server offers, those over UDP first, those over TLS last.
    pub(in super::super) fn all(servers: &[IceServer]) -> Vec<Self> {
        let each = |server: &IceServer| {
            let read = |url: &String| Self::read(url, &server.username, &server.credential);
            server.urls.iter().filter_map(read).collect::<Vec<_>>()
        };
        let mut all: Vec<Self> = servers.iter().flat_map(each).collect();
        all.sort_by_key(|server| server.way);
        all
    }

    /// Reads `turn:HOST[:PORT][?transport=udp|tcp]` or `turns:…` (RFC 7065 §3.1); `None` for what is no relay, or one over DTLS.
    fn read(url: &str, username: &str, credential: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once(':')?;
        let (authority, query) = rest.split_once('?').unwrap_or((rest, ""));
        let transport = query.split('&').find_map(|pair| pair.strip_prefix("transport="));
        let (way, usual) = match (scheme, transport) {
            ("turn", None | Some("udp")) => (Way::Udp, TURN_PORT),
            ("turn", Some("tcp")) => (Way::Tcp, TURN_PORT),
            ("turns", None | Some("tcp")) => (Way::Tls, TURNS_PORT),
            _ => return None,
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, rest) = v6.split_once(']')?;
                (host, rest.strip_prefix(':'))
            }
            None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(usual), |port| port.parse().ok())?;
        if host.is_empty() {
            return None;
        }
        let (host, username, credential) = (host.to_owned(), username.to_owned(), credential.to_owned());
        Some(Self { way, host, port, username, credential })
    }
}

/// A packet that came over a relay.
#[derive(Debug)]
pub(in super::super) struct Relayed {
    pub(in super::super) bytes: Vec<u8>,
    pub(in super::super) source: SocketAddr,
    pub(in super::super) arrival: Instant,
}

/// An address that a relay lends us. Dropping it gives it back.
#[derive(Debug)]
pub(in super::super) struct Relay {
    address: SocketAddr,
    local: SocketAddr,
    outgoing: mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>,
    incoming: mpsc::Receiver<Relayed>,
}

impl Relay {
    /// Gets an address from the first of `servers` that lends one. `trusted` certificates count beside the machine's own.
    pub(in super::super) async fn open(servers: Vec<RelayServer>, trusted: Vec<Vec<u8>>) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the server names no relay");
        for server in servers {
            match tokio::time::timeout(PATIENCE, Self::open_at(&server, &trusted)).await {
                Ok(Ok(relay)) => {
                    tracing::debug!(?server, "a relay lends us an address");
                    return Ok(relay);
                }
                Ok(Err(error)) => {
                    tracing::info!(?server, %error, "this relay cannot be used");
                    last = error;
                }
                Err(_) => {
                    tracing::info!(?server, "this relay does not answer");
                    last = io::Error::new(io::ErrorKind::TimedOut, format!("{server:?} does not answer"));
                }
            }
        }
        Err(last)
    }

    async fn open_at(server: &RelayServer, trusted: &[Vec<u8>]) -> io::Result<Self> {
        let link = Link::open(server, trusted).await?;
        let (local, remote) = (link.local()?, link.remote()?);
        let mut config = TurnConfig::new(TurnCredentials::new(&server.username, &server.credential));
        if remote.is_ipv6() {
            config.add_address_family(AddressFamily::IPV6);
        }
        let client = match server.way {
            Way::Udp => TurnClientUdp::allocate(local, remote, config).into(),
            Way::Tcp | Way::Tls => TurnClientTcp::allocate(local, remote, config).into(),
        };
        let (outgoing, asked) = mpsc::unbounded_channel();
        let (told, incoming) = mpsc::channel(WAITING);
        let began = crate::clock::now();
        let (stream, unpermitted) = (Messages::default(), BTreeMap::new());
        let mut line = Line { link, client, began, local, remote, told, stream, unpermitted };
        let address = line.allocate().await?;
        tokio::spawn(line.run(asked));
        Ok(Self { address, local, outgoing, incoming })
    }

    /// The address that the relay lends us.
    pub(in super::super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Our end of the connection to the relay.
    pub(in super::super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends from the lent address.
    pub(in super::super) fn send(&self, packet: &[u8], to: SocketAddr) {
        // A relay that is gone is told by what it receives.
        let _ = self.outgoing.send((to, packet.to_vec()));
    }

    /// What comes next; `None` once the relay is gone.
    pub(in super::super) async fn receive(&mut self) -> Option<Relayed> {
        self.incoming.recv().await
    }
}

/// A connection to a relay.
enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Link {
    async fn open(server: &RelayServer, trusted: &[Vec<u8>]) -> io::Result<Self> {
        let remotes: Vec<SocketAddr> = tokio::net::lookup_host((server.host.as_str(), server.port)).await?.collect();
        if server.way == Way::Udp {
            let remote = remotes.first().ok_or_else(|| io::Error::other("it has no address"))?;
            let any: IpAddr =
                if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(remote).await?;
            return Ok(Self::Udp(socket));
        }
        let stream = TcpStream::connect(remotes.as_slice()).await?;
        stream.set_nodelay(true)?;
        if server.way == Way::Tcp {
            return Ok(Self::Tcp(stream));
        }
        let name = ServerName::try_from(server.host.clone()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::new(tls_config(trusted.to_vec()).await?));
        Ok(Self::Tls(Box::new(connector.connect(name, stream).await?)))
    }

    fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.local_addr(),
            Self::Tcp(stream) => stream.local_addr(),
            Self::Tls(stream) => stream.get_ref().0.local_addr(),
        }
    }

    fn remote(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Udp(socket) => socket.peer_addr(),
            Self::Tcp(stream) => stream.peer_addr(),
            Self::Tls(stream) => stream.get_ref().0.peer_addr(),
        }
    }

    /// Reads some; may be dropped and called again without losing anything.
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self {
            Self::Udp(socket) => return socket.recv(buffer).await,
            Self::Tcp(stream) => stream.read(buffer).await?,
            Self::Tls(stream) => stream.read(buffer).await?,
        };
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let writing = async {
            match self {
                Self::Udp(socket) => socket.send(bytes).await.map(drop),
                Self::Tcp(stream) => stream.write_all(bytes).await,
                Self::Tls(stream) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
            }
        };
        tokio::time::timeout(STALLED, writing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn tls_config(trusted: Vec<Vec<u8>>) -> io::Result<ClientConfig> {
    // The machine's certificates are read from its disk.
    let read = tokio::task::spawn_blocking(move || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots.add_parsable_certificates(trusted.into_iter().map(Into::into));
        roots
    });
    let roots = read.await.map_err(io::Error::other)?;
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// The task behind a [`Relay`].
struct Line {
    link: Link,
    client: TurnClient,
    /// What the client's clock counts from.
    began: Instant,
    local: SocketAddr,
    remote: SocketAddr,
    told: mpsc::Sender<Relayed>,
    /// What came over TCP or TLS and is not whole.
    stream: Messages,
    /// What waits until we may send to somebody.
    unpermitted: BTreeMap<SocketAddr, Vec<Vec<u8>>>,
}

impl Line {
    /// Waits for the address.
    async fn allocate(&mut self) -> io::Result<SocketAddr> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let wake = self.advance().await?;
            if let Some((_, address)) = self.client.relayed_addresses().next() {
                return Ok(address);
            }
            tokio::select! {
                read = self.link.read(&mut buffer) => self.take(&buffer[..read?])?,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>) {
        if let Err(error) = self.serve(&mut asked).await {
            tracing::info!(%error, "the relay is gone");
            return;
        }
        let goodbye = async {
            self.client.delete(self.now()).map_err(io::Error::other)?;
            self.advance().await
        };
        // An address that is not given back runs out by itself.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }

    /// Carries packets until nobody wants any more.
    async fn serve(&mut self, asked: &mut mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let wake = self.advance().await?;
            tokio::select! {
                read = self.link.read(&mut buffer) => self.take(&buffer[..read?])?,
                packet = asked.recv() => match packet {
                    Some((to, packet)) => self.send(to, packet).await?,
                    None => return Ok(()),
                },
                () = tokio::time::sleep_until(wake.into()) => {}
            }
        }
    }

    /// Does all that the client wants, and tells when it wants to be asked again.
    async fn advance(&mut self) -> io::Result<Instant> {
        let wake = match self.client.poll(self.now()) {
            TurnPollRet::WaitUntil(at) => self.began + Duration::from_nanos(at.as_nanos().max(0).unsigned_abs()),
            TurnPollRet::Closed => return Err(io::Error::other("it ended the lease")),
            // Only for relayed TCP, which we never ask for.
            TurnPollRet::AllocateTcpSocket { .. } | TurnPollRet::TcpClose { .. } => crate::clock::now(),
        };
        while let Some(transmit) = self.client.poll_transmit(self.now()) {
            self.link.write(&transmit.data).await?;
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                TurnEvent::PermissionCreated(_, ip) => self.permitted(ip).await?,
                TurnEvent::AllocationCreateFailed(family) if self.client.relayed_addresses().next().is_none() => {
                    return Err(io::Error::other(format!("it lends no {family:?} address")));
                }
                other => tracing::trace!(?other, "relay"),
            }
        }
        Ok(wake)
    }

    /// We may send to `ip` now: what waited goes, and what follows goes the short way.
    async fn permitted(&mut self, ip: IpAddr) -> io::Result<()> {
        for (to, packets) in self.unpermitted.extract_if(.., |to, _| to.ip() == ip).collect::<Vec<_>>() {
            if let Err(error) = self.client.bind_channel(TransportType::Udp, to, self.now()) {
                // The long way serves as well.
                tracing::debug!(%error, "no channel");
            }
            for packet in packets {
                self.send(to, packet).await?;
            }
        }
        Ok(())
    }

    async fn send(&mut self, to: SocketAddr, packet: Vec<u8>) -> io::Result<()> {
        let now = self.now();
        match self.client.send_to(TransportType::Udp, to, packet.as_slice(), now) {
            Ok(Some(transmit)) => {
                let mut bytes = transmit.build().data;
                if self.client.transport() != TransportType::Udp {
                    bytes.resize(bytes.len().next_multiple_of(WORD), 0);
                }
                return self.link.write(&bytes).await;
            }
            Ok(None) => {}
            Err(SendError::NoPermission) => {
                let waiting = self.unpermitted.entry(to).or_default();
                if waiting.len() < UNPERMITTED {
                    waiting.push(packet);
                }
                // It exists where another port of the same address asked first.
                let _ = self.client.create_permission(TransportType::Udp, to.ip(), now);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    /// Takes in what was read.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.client.transport() == TransportType::Udp {
            self.take_message(bytes);
            return Ok(());
        }
        self.stream.push(bytes);
        while let Some(message) = self.stream.next_message()? {
            self.take_message(&message);
        }
        Ok(())
    }

    fn take_message(&mut self, message: &[u8]) {
        let transmit = Transmit::new(message, self.client.transport(), self.remote, self.local);
        if let TurnRecvRet::PeerData(data) = self.client.recv(transmit, self.now()) {
            let (bytes, source, arrival) = (data.data().to_vec(), data.peer, crate::clock::now());
            // An engine so late loses packets, as it would from a socket.
            let _ = self.told.try_send(Relayed { bytes, source, arrival });
        }
    }

    fn now(&self) -> TurnInstant {
        let since = crate::clock::now().saturating_duration_since(self.began).as_nanos();
        // Centuries fit.
        TurnInstant::from_nanos(i64::try_from(since).unwrap_or(i64::MAX))
    }
}

/// Messages out of a stream: STUN messages (RFC 8489 §5), and channel data, filled up to whole words there (RFC 8656 §12.5).
#[derive(Debug, Default)]
struct Messages {
    bytes: Vec<u8>,
}

impl Messages {
    const STUN_HEADER: usize = 20;
    const CHANNEL_HEADER: usize = 4;

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next one that is whole, without what fills it up.
    fn next_message(&mut self) -> io::Result<Option<Vec<u8>>> {
        let [first, _, high, low, ..] = self.bytes[..] else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let length = match first >> 6 {
            0 => Self::STUN_HEADER + length,
            1 => Self::CHANNEL_HEADER + length,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak TURN")),
        };
        let filled = length.next_multiple_of(WORD);
        if self.bytes.len() < filled {
            return Ok(None);
        }
        let mut message: Vec<u8> = self.bytes.drain(..filled).collect();
        message.truncate(length);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(urls: &[&str]) -> IceServer {
        IceServer {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            username: "user".into(),
            credential: "secret".into(),
        }
    }

    #[test]
    fn relays_are_read_and_udp_comes_first() {
        let servers = [
            server(&["stun:stun.example:3478", "turns:relay.example:443?transport=tcp"]),
            server(&["turn:[2001:db8::1]?transport=tcp", "turn:192.0.2.1:3479", "turns:relay.example?transport=udp"]),
        ];
        let all = RelayServer::all(&servers);
        let short: Vec<_> = all.iter().map(|relay| (relay.way, relay.host.as_str(), relay.port)).collect();
        let expected =
            [(Way::Udp, "192.0.2.1", 3479), (Way::Tcp, "2001:db8::1", 3478), (Way::Tls, "relay.example", 443)];
        assert_eq!(short, expected);
        assert!(!format!("{all:?}").contains("secret"));
    }

    #[test]
    fn messages_are_found_in_a_stream_however_it_is_cut() {
        let stun = [&[0x01, 0x13, 0, 4], &[7; 20][..]].concat();
        let channel = vec![0x40, 0, 0, 5, 1, 2, 3, 4, 5];
        let stream = [&stun[..], &channel, &[0, 0, 0], &channel, &[9, 9, 9], &stun].concat();
        for cut in 1..stream.len() {
            let mut messages = Messages::default();
            let mut found = Vec::new();
            for piece in stream.chunks(cut) {
                messages.push(piece);
                while let Some(message) = messages.next_message().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [&stun[..], &channel, &channel, &stun], "cut every {cut} bytes");
        }
        let mut other = Messages::default();
        other.push(b"\xffTTP/1.1");
        assert!(other.next_message().is_err());
    }

    #[test]
    fn what_is_no_relay_is_left() {
        for url in ["", "turn", "turn:", "turn::1", "turn:host:port", "turn:[::1", "http:relay.example"] {
            assert_eq!(RelayServer::all(&[server(&[url])]), [], "{url}");
        }
    }
}
