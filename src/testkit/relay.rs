//! A relay between a recorder and a real storage server, which does what a network or a server does on a bad day.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::TestkitError;

/// What goes wrong at present. Connections that are open when it changes are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayFault {
    /// Nothing.
    None,
    /// Connections end as soon as they are made.
    Refuses,
    /// Requests are taken, and never answered.
    Silent,
    /// Connections are cut once so many bytes of requests have gone through.
    CutsAfter(u64),
    /// Requests go through at so many bytes a second.
    Slow(u64),
    /// A bit of every body is turned on its way.
    Garbles,
    /// Every request gets this HTTP status and never reaches the server.
    Answers(u16),
}

/// A relay on loopback.
#[derive(Debug)]
pub struct Relay {
    here: SocketAddr,
    fault: watch::Sender<RelayFault>,
    once: Arc<Once>,
    task: JoinHandle<()>,
}

/// What goes wrong once.
#[derive(Debug, Default)]
struct Once {
    lose_answer: AtomicBool,
    garble_body: AtomicBool,
    done: AtomicUsize,
}

impl Once {
    fn takes(&self, fault: &AtomicBool) -> bool {
        let takes = fault.swap(false, Ordering::SeqCst);
        self.done.fetch_add(usize::from(takes), Ordering::SeqCst);
        takes
    }
}

impl Relay {
    /// Opens a relay to `there`.
    ///
    /// # Errors
    /// [`TestkitError::Io`] where no port is free.
    pub async fn open(there: SocketAddr) -> Result<Self, TestkitError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(TestkitError::io("a relay"))?;
        let here = listener.local_addr().map_err(TestkitError::io("a relay"))?;
        let (fault, faults) = watch::channel(RelayFault::None);
        let once = Arc::new(Once::default());
        let shared = once.clone();
        let task = tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                tokio::spawn(relay(from, there, faults.clone(), shared.clone()));
            }
        });
        Ok(Self { here, fault, once, task })
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.here)
    }

    /// What goes wrong from now on.
    pub fn set(&self, fault: RelayFault) {
        self.fault.send_replace(fault);
    }

    /// The next answer is thrown away, and its connection closed.
    pub fn lose_next_answer(&self) {
        self.once.lose_answer.store(true, Ordering::SeqCst);
    }

    /// A bit of the next body is turned.
    pub fn garble_next_body(&self) {
        self.once.garble_body.store(true, Ordering::SeqCst);
    }

    /// How many answers were lost and bodies garbled, each because it was the next.
    pub fn done_once(&self) -> usize {
        self.once.done.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(from: TcpStream, there: SocketAddr, mut faults: watch::Receiver<RelayFault>, once: Arc<Once>) {
    let fault = *faults.borrow_and_update();
    let passed = async {
        match fault {
            RelayFault::Refuses => Ok(()),
            RelayFault::Answers(status) => answer(from, status).await,
            RelayFault::Silent => swallow(from).await,
            RelayFault::None | RelayFault::CutsAfter(_) | RelayFault::Slow(_) | RelayFault::Garbles => {
                pass(from, there, fault, &once).await
            }
        }
    };
    tokio::select! {
        // Whatever broke, the other side sees a connection that ends.
        _ = passed => {}
        _ = faults.changed() => {}
    }
}

async fn pass(mut from: TcpStream, there: SocketAddr, fault: RelayFault, once: &Once) -> std::io::Result<()> {
    let mut to = TcpStream::connect(there).await?;
    let (mut requests, mut back) = from.split();
    let (mut answers, mut forth) = to.split();
    let sent = async {
        let (mut block, mut left) = ([0; 4096], u64::MAX);
        if let RelayFault::CutsAfter(bytes) = fault {
            left = bytes;
        }
        loop {
            let read = requests.read(&mut block).await?;
            if read == 0 || left < read as u64 {
                return Ok::<_, std::io::Error>(());
            }
            left -= read as u64;
            if let RelayFault::Slow(bytes_a_second) = fault {
                tokio::time::sleep(Duration::from_secs(read as u64) / bytes_a_second.max(1) as u32).await;
            }
            if has_body(&block[..read]) && (fault == RelayFault::Garbles || once.takes(&once.garble_body)) {
                block[read - 1] ^= 1;
            }
            forth.write_all(&block[..read]).await?;
        }
    };
    let answered = async {
        let mut block = [0; 4096];
        loop {
            let read = answers.read(&mut block).await?;
            if read == 0 || once.takes(&once.lose_answer) {
                return Ok(());
            }
            back.write_all(&block[..read]).await?;
        }
    };
    tokio::select! {
        sent = sent => sent,
        answered = answered => answered,
    }
}

/// Whether what was read of requests ends in a body: after a head, or without one.
fn has_body(block: &[u8]) -> bool {
    block.windows(4).rposition(|window| window == b"\r\n\r\n").is_none_or(|end| end + 4 < block.len())
}

async fn swallow(mut from: TcpStream) -> std::io::Result<()> {
    let mut block = [0; 4096];
    while from.read(&mut block).await? > 0 {}
    Ok(())
}

async fn answer(mut from: TcpStream, status: u16) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte).await? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let code = if status == 403 { "ExpiredToken" } else { "SlowDown" };
    let body = format!("<Error><Code>{code}</Code><Message>by the relay</Message></Error>");
    let answer = format!(
        "HTTP/1.1 {status} Relay\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    from.write_all(answer.as_bytes()).await?;
    from.shutdown().await?;
    swallow(from).await
}
