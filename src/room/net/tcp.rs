//! ICE over TCP (RFC 6544): we open the connection to the server's passive candidate.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::framing::{self, Decoder};

/// How much may wait for a stream that takes nothing. What we send is small (checks, reports, requests for lost
/// packets); when this much waits, the connection is dead and new packets are let go.
const WAITING: usize = 64 << 10;

/// How long a connection may take to open.
const PATIENCE: Duration = Duration::from_secs(5);

/// One open connection.
#[derive(Debug)]
pub(in super::super) struct TcpLink {
    stream: TcpStream,
    local: SocketAddr,
    remote: SocketAddr,
    decoder: Decoder,
    waiting: Vec<u8>,
}

impl TcpLink {
    /// Opens a connection to the first of `remotes` that answers.
    pub(in super::super) async fn open(remotes: Vec<SocketAddr>) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the server offers no TCP address");
        for remote in remotes {
            match tokio::time::timeout(PATIENCE, TcpStream::connect(remote)).await {
                Ok(Ok(stream)) => return Self::new(stream),
                Ok(Err(error)) => last = error,
                Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{remote} does not answer")),
            }
        }
        Err(last)
    }

    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let (local, remote) = (stream.local_addr()?, stream.peer_addr()?);
        Ok(Self { stream, local, remote, decoder: Decoder::default(), waiting: Vec::new() })
    }

    /// Our end.
    pub(in super::super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// The server's end.
    pub(in super::super) fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Sends a packet, after what still waits.
    pub(in super::super) fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        if self.waiting.len() < WAITING {
            framing::encode(packet, &mut self.waiting);
        }
        self.flush()
    }

    /// Waits until there is something to read, sending meanwhile what still waits.
    pub(in super::super) async fn readable(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let ready = self.stream.ready(tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE).await?;
            if ready.is_writable() {
                self.flush()?;
            }
            if ready.is_readable() {
                return Ok(());
            }
        }
        self.stream.readable().await
    }

    /// Reads what has come. `Ok(false)` where nothing waits.
    pub(in super::super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        match self.stream.try_read(buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.decoder.push(&buffer[..read]);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies the next whole packet of what was read to the start of `buffer`, which must have room for any packet,
    /// and tells its length.
    pub(in super::super) fn next_packet(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let packet = self.decoder.next_packet()?;
        buffer.get_mut(..packet.len())?.copy_from_slice(packet);
        Some(packet.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match self.stream.try_write(&self.waiting) {
                Ok(written) => drop(self.waiting.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn packets_go_both_ways_in_frames() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut link = TcpLink::open(vec![dead, listener.local_addr().unwrap()]).await.unwrap();
        let (mut server, from) = listener.accept().await.unwrap();
        assert_eq!((from, link.remote()), (link.local(), listener.local_addr().unwrap()));

        link.send(b"check").unwrap();
        let mut frame = [0; 7];
        server.read_exact(&mut frame).await.unwrap();
        assert_eq!(&frame, b"\0\x05check");

        server.write_all(b"\0\x02ok\0\x03yes").await.unwrap();
        let mut got = Vec::new();
        while got.len() < 2 {
            link.readable().await.unwrap();
            let mut buffer = [0; 64];
            link.fill(&mut buffer).unwrap();
            while let Some(len) = link.next_packet(&mut buffer) {
                got.push(buffer[..len].to_vec());
            }
        }
        assert_eq!(got, [b"ok".to_vec(), b"yes".to_vec()]);

        drop(server);
        link.readable().await.unwrap();
        assert_eq!(link.fill(&mut [0; 64]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn no_address_is_an_error_not_a_wait() {
        assert_eq!(TcpLink::open(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
