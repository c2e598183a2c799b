//! A bad line between a store and its server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// Passes bytes on in both directions, as faithfully as it is told to.
pub struct Relay {
    pub address: SocketAddr,
    faults: Arc<Faults>,
}

#[derive(Default)]
struct Faults {
    lose_answer: AtomicBool,
    corrupt_body: AtomicBool,
    done: AtomicUsize,
}

impl Relay {
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Faults::default());
        let shared = Arc::clone(&faults);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(requests(from_client, to_server, Arc::clone(&shared)));
                tokio::spawn(answers(from_server, to_client, Arc::clone(&shared)));
            }
        });
        Self { address, faults }
    }

    /// The next answer is thrown away, and its connection closed.
    pub fn lose_next_answer(&self) {
        self.faults.lose_answer.store(true, Ordering::SeqCst);
    }

    /// One bit of the next body is turned.
    pub fn corrupt_next_body(&self) {
        self.faults.corrupt_body.store(true, Ordering::SeqCst);
    }

    /// How many faults there were so far.
    pub fn faults(&self) -> usize {
        self.faults.done.load(Ordering::SeqCst)
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: Arc<Faults>) {
    let mut buffer = vec![0; 64 * 1_024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        // Heads are shorter.
        if read > 8_192 && faults.corrupt_body.swap(false, Ordering::SeqCst) {
            buffer[read - 1] ^= 1;
            faults.done.fetch_add(1, Ordering::SeqCst);
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, faults: Arc<Faults>) {
    let mut buffer = vec![0; 64 * 1_024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if faults.lose_answer.swap(false, Ordering::SeqCst) {
            faults.done.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
