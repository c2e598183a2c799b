use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::testkit::TestkitError;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const HEALTH_INTERVAL: Duration = Duration::from_millis(15);
const LOG_TAIL: usize = 4_000;

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
    child: Child,
    guard: Child,
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
        let opened = File::options().create(true).append(true).open(dir.join("server.log"));
        let log = opened.map_err(failed("a log for"))?;
        let log_too = log.try_clone().map_err(failed("a log for"))?;
        let mut child = Command::new(&tool.binary)
            .args(&tool.arguments)
            .envs(tool.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .spawn()
            .map_err(failed("starting"))?;

        // A test process that is killed drops nothing. Its end of this pipe closes all the same, and the guard then
        // ends the one server it was told of.
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null", "sh"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match guard {
            Ok(guard) => Ok(Self { child, guard }),
            Err(error) => {
                end(&mut child);
                Err(failed("guarding")(error))
            }
        }
    }

    async fn ready(&mut self, tool: &Tool, dir: &Path, port: u16) -> Result<(), TestkitError> {
        let failed = |reason| TestkitError::ToolStart { tool: tool.name, reason, log: tail(&read_log(dir)) };
        let wait = async {
            loop {
                match self.child.try_wait() {
                    Ok(None) => {}
                    Ok(Some(status)) => return Err(failed(format!("it ended with {status}"))),
                    Err(error) => return Err(failed(format!("its state is unknown: {error}"))),
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
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard first: once the server is reaped its id may belong to another process.
        end(&mut self.guard);
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only where the process has ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// A port of this machine that is free now.
pub(super) fn free_port() -> Result<u16, TestkitError> {
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

pub(super) fn read_log(dir: &Path) -> String {
    match std::fs::read(dir.join("server.log")) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(no log: {error})"),
    }
}

fn tail(log: &str) -> String {
    let start = log.floor_char_boundary(log.len().saturating_sub(LOG_TAIL));
    log[start..].to_owned()
}
