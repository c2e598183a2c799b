use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testkit::TestkitError;
use crate::testkit::guard::{Guarded, read_log, tail};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const HEALTH_INTERVAL: Duration = Duration::from_millis(15);

/// How one kind of server is started.
#[derive(Clone, Debug)]
pub(super) struct Tool {
    /// Its name, and that of its log.
    pub(super) name: &'static str,
    pub(super) binary: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// What it answers once it serves, whatever the status.
    pub(super) health: &'static str,
}

/// One life of a server process, ended when dropped.
#[derive(Debug)]
pub(super) struct Process {
    guarded: Guarded,
}

impl Process {
    /// Starts a server that is to listen on `port` and waits until it answers.
    pub(super) async fn start(tool: &Tool, dir: &Path, port: u16) -> Result<Self, TestkitError> {
        if !tool.binary.is_file() {
            return Err(TestkitError::MissingTool { tool: tool.name, path: tool.binary.clone() });
        }
        let mut process = Self::spawn(tool, dir)?;
        process.ready(tool, dir, port).await?;
        Ok(process)
    }

    fn spawn(tool: &Tool, dir: &Path) -> Result<Self, TestkitError> {
        let failed = |what| TestkitError::io(format!("{what} {}", tool.binary.display()));
        let mut command = Command::new(&tool.binary);
        command.args(&tool.arguments).current_dir(dir);
        command.envs(tool.environment.iter().map(|(name, value)| (name, value)));
        Ok(Self { guarded: Guarded::spawn(&mut command, dir).map_err(failed("starting"))? })
    }

    async fn ready(&mut self, tool: &Tool, dir: &Path, port: u16) -> Result<(), TestkitError> {
        let failed = |reason| TestkitError::ToolStart { tool: tool.name, reason, log: tail(&read_log(dir)) };
        let wait = async {
            loop {
                if let Some(why) = self.guarded.ended() {
                    return Err(failed(why));
                }
                if answers(port, tool.health).await {
                    return Ok(());
                }
                tokio::time::sleep(HEALTH_INTERVAL).await;
            }
        };
        match tokio::time::timeout(START_TIMEOUT, wait).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("no answer within {} s", START_TIMEOUT.as_secs()))),
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.guarded.id()
    }
}

/// A port of this machine that is free now.
pub(in crate::testkit) fn free_port() -> Result<u16, TestkitError> {
    let failed = || TestkitError::io("a free loopback port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(failed())?;
    Ok(listener.local_addr().map_err(failed())?.port())
}

/// Whether a server speaks HTTP and has done starting: one that has not answers 503, or nothing.
async fn answers(port: u16, path: &str) -> bool {
    let request = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(4_096).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), request).await {
        Ok(Ok(answer)) => answer.starts_with(b"HTTP/1.1 ") && !answer.starts_with(b"HTTP/1.1 503"),
        Ok(Err(_)) | Err(_) => false,
    }
}
