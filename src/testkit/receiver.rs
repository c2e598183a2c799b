//! A receiver of webhooks on loopback, which answers as it is told: well, badly, late, or not at all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::TestkitError;
use crate::clock;

/// The largest body that is taken.
const BODY_LIMIT: usize = 16 * 1_024 * 1_024;

/// How the receiver answers at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answers {
    /// With this status.
    Status(u16),
    /// With this status, and how many seconds to wait.
    RetryAfter(u16, u64),
    /// That what is looked for is there.
    Redirect(String),
    /// It reads the request and says nothing more.
    Silent,
    /// It reads the request and hangs up.
    HangsUp,
    /// It answers a byte at a time, and never comes to an end.
    Trickles,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Received {
    /// When it had come whole.
    pub at: Instant,
    /// The path and query.
    pub target: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Received {
    /// The body as JSON; null where it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// A header; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// A running receiver. Dropping it ends it.
#[derive(Debug)]
pub struct WebhookReceiver {
    here: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    answers: watch::Sender<Answers>,
    received: watch::Sender<Vec<Received>>,
}

impl WebhookReceiver {
    /// Begins to listen, and answers 200.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`] where no port is free.
    pub async fn start() -> Result<Self, TestkitError> {
        let shared = Shared { answers: watch::Sender::new(Answers::Status(200)), received: watch::Sender::default() };
        let here = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut receiver = Self { here, shared: Arc::new(shared), serving: JoinSet::new() };
        receiver.restart().await?;
        Ok(receiver)
    }

    /// Its address, with a path.
    pub fn url(&self) -> String {
        format!("http://{}/hooks/calls?of=callreel", self.here)
    }

    /// From now on it answers so.
    pub fn answers(&self, answers: Answers) {
        self.shared.answers.send_replace(answers);
    }

    /// What came so far.
    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Waits until so many requests came, and gives all that did.
    ///
    /// # Panics
    ///
    /// Where they do not come within that time.
    pub async fn wait_for(&self, count: usize, within: Duration) -> Vec<Received> {
        let mut received = self.shared.received.subscribe();
        let waited = tokio::time::timeout(within, received.wait_for(|received| received.len() >= count)).await;
        match waited {
            Ok(Ok(received)) => received.clone(),
            Ok(Err(_)) | Err(_) => panic!("{} of {count} webhooks within {within:?}", self.received().len()),
        }
    }

    /// Hangs up and listens no more.
    pub async fn kill(&mut self) {
        self.serving.shutdown().await;
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`] where somebody else took it.
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.kill().await;
        let failed = || TestkitError::io("the port of a receiver");
        let listener = TcpListener::bind(self.here).await.map_err(failed())?;
        self.here = listener.local_addr().map_err(failed())?;
        let shared = Arc::clone(&self.shared);
        self.serving.spawn(async move {
            // Connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                connections.spawn(async move { shared.serve(stream).await });
            }
        });
        Ok(())
    }
}

impl Shared {
    /// Takes requests until the connection ends or makes no sense.
    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let received = read(&mut stream).await?;
            self.received.send_modify(|all| all.push(received));
            let answers = self.answers.borrow().clone();
            let head = match answers {
                Answers::Status(status) => format!("HTTP/1.1 {status} -\r\n"),
                Answers::RetryAfter(status, seconds) => format!("HTTP/1.1 {status} -\r\nretry-after: {seconds}\r\n"),
                Answers::Redirect(to) => format!("HTTP/1.1 307 -\r\nlocation: {to}\r\n"),
                Answers::Silent => std::future::pending().await,
                Answers::HangsUp => return None,
                Answers::Trickles => loop {
                    stream.write_all(b"H").await.ok()?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                },
            };
            stream.write_all(format!("{head}content-length: 2\r\n\r\nok").as_bytes()).await.ok()?;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Received> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let target = line.strip_prefix("POST ")?.split_once(' ')?.0.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length")?.parse().ok().filter(|&length: &usize| length <= BODY_LIMIT)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).ok()?;
    Some(Received { at: clock::now(), target, headers, body })
}
