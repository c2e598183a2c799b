//! A real livekit-server on free loopback ports, started for one test and ended with it.
//!
//! ```no_run
//! # async fn example() -> Result<(), callreel::testkit::TestkitError> {
//! use callreel::testkit::LiveKitServer;
//!
//! let server = LiveKitServer::builder().departure_timeout(1).start().await?;
//! println!("{} {} {}", server.url(), server.api_key(), server.api_secret());
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use livekit_api::services::room::{CreateRoomOptions, RoomClient, SendDataOptions, UpdateParticipantOptions};
use livekit_protocol::{ParticipantInfo, Room};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::TestkitError;
use super::guard::{Guarded, read_log, tail};
use crate::clock;
use crate::room::ensure_crypto_provider;

/// The version of livekit-server that the tests are written against.
pub const SERVER_VERSION: &str = "1.13.5";

const API_KEY: &str = "devkey";
const API_SECRET: &str = "loopback-only-secret-of-the-testkit-0001";
const START_TIMEOUT: Duration = Duration::from_secs(30);
const HEALTH_INTERVAL: Duration = Duration::from_millis(15);
const PORT_ATTEMPTS: usize = 5;

/// Where the tools that tests need are installed: `$CALLREEL_CACHE/tools`, else `$XDG_CACHE_HOME/callreel/tools`,
/// else `~/.cache/callreel/tools`.
pub fn tools_dir() -> PathBuf {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = var("CALLREEL_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("callreel")))
        .unwrap_or_else(|| var("HOME").unwrap_or_default().join(".cache/callreel"));
    cache.join("tools")
}

/// Where livekit-server is expected: `$CALLREEL_LIVEKIT_SERVER`, else in [`tools_dir`].
pub fn server_path() -> PathBuf {
    match std::env::var_os("CALLREEL_LIVEKIT_SERVER").filter(|value| !value.is_empty()) {
        Some(path) => path.into(),
        None => tools_dir().join(format!("livekit-server-v{SERVER_VERSION}/livekit-server")),
    }
}

/// How to start a [`LiveKitServer`].
#[derive(Clone, Debug)]
pub struct ServerBuilder {
    binary: PathBuf,
    empty_timeout: u32,
    departure_timeout: u32,
    auto_create: bool,
    udp: bool,
    rtc: String,
    extra: String,
    log_level: String,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        Self {
            binary: server_path(),
            empty_timeout: 300,
            departure_timeout: 20,
            auto_create: true,
            udp: true,
            rtc: String::new(),
            extra: String::new(),
            log_level: "info".to_owned(),
        }
    }
}

impl ServerBuilder {
    /// Starts another binary than [`server_path`] names.
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = path.into();
        self
    }

    /// Seconds until a room that nobody joined is closed. Default 300, the server's own.
    pub fn empty_timeout(mut self, seconds: u32) -> Self {
        self.empty_timeout = seconds;
        self
    }

    /// Seconds until a room is closed after the last participant that counts has left. Default 20, the server's own.
    pub fn departure_timeout(mut self, seconds: u32) -> Self {
        self.departure_timeout = seconds;
        self
    }

    /// Whether who joins a room that does not exist creates it. Default true.
    pub fn auto_create(mut self, on: bool) -> Self {
        self.auto_create = on;
        self
    }

    /// Whether the server takes media over UDP. Without, only ICE-TCP is left. Default true.
    pub fn udp(mut self, on: bool) -> Self {
        self.udp = on;
        self
    }

    /// Further lines of the config's `rtc:` section, each as `key: value` without indentation.
    pub fn rtc(mut self, lines: &str) -> Self {
        self.rtc = lines.to_owned();
        self
    }

    /// Further top-level YAML (`webhook:`, `audio:`…). Sections that the testkit writes itself cannot be repeated:
    /// `port`, `bind_addresses`, `keys`, `rtc`, `room` and `logging`.
    pub fn extra(mut self, yaml: &str) -> Self {
        self.extra = yaml.to_owned();
        self
    }

    /// The server's log level: `debug`, `info`, `warn` or `error`. Default `info`.
    pub fn log_level(mut self, level: &str) -> Self {
        self.log_level = level.to_owned();
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`TestkitError::MissingTool`] if the binary is not there; [`TestkitError::ServerStart`] with the end of the log
    /// if the server ended, or did not answer within 30 s.
    pub async fn start(self) -> Result<LiveKitServer, TestkitError> {
        ensure_crypto_provider();
        if !self.binary.is_file() {
            return Err(TestkitError::MissingTool { tool: "livekit-server", path: self.binary });
        }
        let dir = tempfile::Builder::new()
            .prefix("callreel-livekit-")
            .tempdir()
            .map_err(TestkitError::io("a folder for livekit-server"))?;

        // Ports are free when they are picked, but another process may be faster: then the server says so and ends,
        // and others are picked.
        let mut attempt = 1;
        loop {
            let ports = Ports::pick()?;
            let config = self.config(&ports);
            std::fs::write(dir.path().join("config.yaml"), config)
                .map_err(TestkitError::io("the config of livekit-server"))?;
            let mut process = Process::spawn(&self.binary, dir.path())?;
            match process.ready(&ports, dir.path()).await {
                Ok(()) => return Ok(LiveKitServer { binary: self.binary, ports, process: Some(process), dir }),
                Err(TestkitError::ServerStart { log, .. })
                    if attempt < PORT_ATTEMPTS && log.contains("address already in use") =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn config(&self, ports: &Ports) -> String {
        let Ports { http, tcp, udp } = ports;
        let force_tcp = if self.udp { "" } else { "  force_tcp: true\n" };
        let rtc: String = self.rtc.lines().map(|line| format!("  {line}\n")).collect();
        format!(
            "port: {http}\n\
             bind_addresses: [\"127.0.0.1\"]\n\
             keys: {{ {API_KEY}: {API_SECRET} }}\n\
             rtc:\n\
             \x20 tcp_port: {tcp}\n\
             \x20 udp_port: {udp}\n\
             \x20 use_external_ip: false\n\
             \x20 enable_loopback_candidate: true\n\
             \x20 use_ice_lite: true\n\
             \x20 stun_servers: [\"127.0.0.1:{udp}\"]\n\
             \x20 ips: {{ includes: [\"127.0.0.1/32\"] }}\n\
             {force_tcp}{rtc}\
             room: {{ auto_create: {}, empty_timeout: {}, departure_timeout: {} }}\n\
             logging: {{ level: {} }}\n\
             {}\n",
            self.auto_create, self.empty_timeout, self.departure_timeout, self.log_level, self.extra
        )
    }
}

/// A running livekit-server. Dropping it ends the process.
#[derive(Debug)]
pub struct LiveKitServer {
    binary: PathBuf,
    ports: Ports,
    process: Option<Process>,
    dir: tempfile::TempDir,
}

impl LiveKitServer {
    /// Starts a server with the default settings; see [`ServerBuilder::start`].
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::start`].
    pub async fn start() -> Result<Self, TestkitError> {
        ServerBuilder::default().start().await
    }

    /// Settings for a server that is yet to be started.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// The signalling address, `ws://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.ports.http)
    }

    /// The address of the server's HTTP APIs, `http://127.0.0.1:PORT`.
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    /// The API key.
    pub fn api_key(&self) -> &str {
        API_KEY
    }

    /// The API secret.
    pub fn api_secret(&self) -> &str {
        API_SECRET
    }

    /// The port of media over UDP.
    pub fn udp_port(&self) -> u16 {
        self.ports.udp
    }

    /// The port of media over TCP.
    pub fn tcp_port(&self) -> u16 {
        self.ports.tcp
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.guarded.id())
    }

    /// Everything the server logged so far, all its lives since the start.
    pub fn log(&self) -> String {
        read_log(self.dir.path())
    }

    /// Calls to the server's room service.
    pub fn rooms(&self) -> Rooms {
        Rooms { client: RoomClient::with_api_key(&self.http_url(), API_KEY, API_SECRET) }
    }

    /// Ends the process at once, as a crash would. Does nothing where it is dead already.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the server again on the same ports, with the same config; kills it before, where it still runs.
    ///
    /// # Errors
    ///
    /// As [`ServerBuilder::start`]; also where somebody took a port meanwhile.
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.kill();
        let mut process = Process::spawn(&self.binary, self.dir.path())?;
        process.ready(&self.ports, self.dir.path()).await?;
        self.process = Some(process);
        Ok(())
    }
}

/// The room service of one server, with the calls that tests make.
#[derive(Debug)]
pub struct Rooms {
    client: RoomClient,
}

impl Rooms {
    /// Creates a room with its own timeouts, in seconds; a room that exists stays as it is.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Service`] where the server refuses, as with all calls here.
    pub async fn create(&self, room: &str, empty_timeout: u32, departure_timeout: u32) -> Result<Room, TestkitError> {
        let options = CreateRoomOptions { empty_timeout, departure_timeout, ..Default::default() };
        self.client.create_room(room, options).await.map_err(TestkitError::service(format!("create {room}")))
    }

    /// Deletes a room, which disconnects everybody in it.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn delete(&self, room: &str) -> Result<(), TestkitError> {
        self.client.delete_room(room).await.map_err(TestkitError::service(format!("delete {room}")))
    }

    /// The names of the rooms that exist.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn list(&self) -> Result<Vec<String>, TestkitError> {
        let rooms = self.client.list_rooms(Vec::new()).await.map_err(TestkitError::service("list rooms"))?;
        Ok(rooms.into_iter().map(|room| room.name).collect())
    }

    /// The ids of the rooms that exist: a room that is made anew has another.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn sids(&self) -> Result<Vec<String>, TestkitError> {
        let rooms = self.client.list_rooms(Vec::new()).await.map_err(TestkitError::service("list rooms"))?;
        Ok(rooms.into_iter().map(|room| room.sid).collect())
    }

    /// Who is in a room, with their tracks; hidden participants too.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn participants(&self, room: &str) -> Result<Vec<ParticipantInfo>, TestkitError> {
        let what = format!("list participants of {room}");
        self.client.list_participants(room).await.map_err(TestkitError::service(what))
    }

    /// Waits until somebody is in a room, hidden or not.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where nobody has come within two minutes.
    pub async fn until_somebody(&self, room: &str) -> Result<(), TestkitError> {
        let until = clock::now() + Duration::from_secs(120);
        // A room that nobody has joined yet may not be there.
        while self.participants(room).await.map_or(true, |there| there.is_empty()) {
            if clock::now() > until {
                return Err(TestkitError::Publisher(format!("nobody came into {room}")));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Throws a participant out.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn remove(&self, room: &str, identity: &str) -> Result<(), TestkitError> {
        let what = format!("remove {identity} from {room}");
        self.client.remove_participant(room, identity).await.map_err(TestkitError::service(what))
    }

    /// Sends a message to everybody in a room, in nobody's name.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn send_data(&self, room: &str, topic: &str, payload: &[u8]) -> Result<(), TestkitError> {
        let options = SendDataOptions { topic: Some(topic.to_owned()), ..Default::default() };
        let answer = self.client.send_data(room, payload.to_vec(), options).await;
        answer.map_err(TestkitError::service(format!("send data to {room}")))
    }

    /// Mutes or unmutes a published track (`TR_…`) from outside, as a moderator would.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create); servers refuse to unmute from outside unless configured to allow it.
    pub async fn mute(&self, room: &str, identity: &str, track_sid: &str, muted: bool) -> Result<(), TestkitError> {
        let what = format!("mute {track_sid} of {identity} in {room}");
        let answer = self.client.mute_published_track(room, identity, track_sid, muted).await;
        answer.map(drop).map_err(TestkitError::service(what))
    }

    /// Sets attributes of a participant (`sip.callStatus`, say); others of its attributes stay.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create).
    pub async fn set_attributes(
        &self,
        room: &str,
        identity: &str,
        attributes: &[(&str, &str)],
    ) -> Result<(), TestkitError> {
        let what = format!("set attributes of {identity} in {room}");
        let attributes: HashMap<String, String> =
            attributes.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let options = UpdateParticipantOptions { attributes, ..Default::default() };
        let answer = self.client.update_participant(room, identity, options).await;
        answer.map(drop).map_err(TestkitError::service(what))
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    http: u16,
    tcp: u16,
    udp: u16,
}

impl Ports {
    fn pick() -> Result<Self, TestkitError> {
        let loopback = (Ipv4Addr::LOCALHOST, 0);
        let failed = || TestkitError::io("a free loopback port");
        // All three are held until all three are known, so that they differ.
        let http = TcpListener::bind(loopback).map_err(failed())?;
        let tcp = TcpListener::bind(loopback).map_err(failed())?;
        let udp = UdpSocket::bind(loopback).map_err(failed())?;
        Ok(Self {
            http: http.local_addr().map_err(failed())?.port(),
            tcp: tcp.local_addr().map_err(failed())?.port(),
            udp: udp.local_addr().map_err(failed())?.port(),
        })
    }
}

/// One life of the server process, ended when dropped.
#[derive(Debug)]
struct Process {
    guarded: Guarded,
}

impl Process {
    fn spawn(binary: &Path, dir: &Path) -> Result<Self, TestkitError> {
        let failed = |what| TestkitError::io(format!("{what} {}", binary.display()));
        let mut command = Command::new(binary);
        command.arg("--config").arg(dir.join("config.yaml"));
        Ok(Self { guarded: Guarded::spawn(&mut command, dir).map_err(failed("starting"))? })
    }

    async fn ready(&mut self, ports: &Ports, dir: &Path) -> Result<(), TestkitError> {
        let failed = |reason| TestkitError::ServerStart { reason, log: tail(&read_log(dir)) };
        let wait = async {
            loop {
                if let Some(why) = self.guarded.ended() {
                    return Err(failed(why));
                }
                if healthy(ports.http).await {
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
}

/// Whether the server answers `200` at its root, which it does once it takes participants.
async fn healthy(port: u16) -> bool {
    let request = async {
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        stream.take(4_096).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), request).await {
        Ok(Ok(answer)) => answer.starts_with(b"HTTP/1.1 200"),
        Ok(Err(_)) | Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_differ() {
        let ports = Ports::pick().unwrap();
        assert_ne!(ports.http, ports.tcp);
        assert!(ports.http != 0 && ports.tcp != 0 && ports.udp != 0);
    }

    #[test]
    fn config_carries_the_settings() {
        let builder = ServerBuilder::default()
            .departure_timeout(3)
            .empty_timeout(4)
            .udp(false)
            .rtc("packet_buffer_size_audio: 50")
            .extra("audio:\n  active_level: 40");
        let config = builder.config(&Ports { http: 1, tcp: 2, udp: 3 });
        assert!(config.contains("room: { auto_create: true, empty_timeout: 4, departure_timeout: 3 }\n"), "{config}");
        assert!(config.contains("\n  force_tcp: true\n  packet_buffer_size_audio: 50\nroom:"), "{config}");
        assert!(config.ends_with("audio:\n  active_level: 40\n"), "{config}");
    }

    #[tokio::test]
    async fn a_missing_binary_says_how_to_get_it() {
        let error = LiveKitServer::builder().binary("/nowhere/livekit-server").start().await.unwrap_err();
        assert_eq!(error.to_string(), "livekit-server not found at /nowhere/livekit-server: run `make tools`");
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_shows_its_log() {
        let error = LiveKitServer::builder().extra("no_such_key: 1").start().await.unwrap_err();
        assert!(matches!(&error, TestkitError::ServerStart { log, .. } if log.contains("no_such_key")), "{error}");
    }

    #[tokio::test]
    async fn starts_serves_dies_and_comes_back_on_the_same_ports() {
        let mut server = LiveKitServer::start().await.unwrap();
        let url = server.url();
        let rooms = server.rooms();
        rooms.create("one", 10, 10).await.unwrap();
        assert_eq!(rooms.list().await.unwrap(), ["one"]);
        assert_eq!(rooms.participants("one").await.unwrap(), []);

        server.kill();
        assert_eq!(server.pid(), None);
        assert!(rooms.list().await.is_err());

        server.restart().await.unwrap();
        assert_eq!(server.url(), url);
        assert_eq!(rooms.list().await.unwrap(), [""; 0], "a server without a store forgets its rooms");
        rooms.create("two", 10, 10).await.unwrap();
        rooms.delete("two").await.unwrap();
        assert_eq!(rooms.list().await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn dropping_ends_the_process() {
        let server = LiveKitServer::start().await.unwrap();
        let port = server.ports.http;
        assert!(healthy(port).await);
        drop(server);
        assert!(!healthy(port).await);
    }
}
