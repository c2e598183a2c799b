//! A service as it is deployed: `callreel serve` as a process, a LiveKit server that calls its webhook, an S3 server, and
//! somebody who receives what it tells.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use callreel::clock;
use callreel::room::ensure_crypto_provider;
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, StorageServer, TrackOptions, Voice};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::watch;

const CALLREEL: &str = env!("CARGO_BIN_EXE_callreel");

/// The key with which everything here asks the service.
pub const KEY: &str = "a-key-of-the-tests-0123456789";

/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A port that nobody has at present.
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Servers around a service.
pub struct World {
    pub livekit: LiveKitServer,
    pub storage: StorageServer,
    pub port: u16,
    pub dir: tempfile::TempDir,
    pub receiver: Receiver,
}

impl World {
    /// Servers, with LiveKit's webhook going to where the service will be.
    pub async fn start() -> Self {
        ensure_crypto_provider();
        let port = free_port();
        let livekit = livekit(port).await;
        let storage = StorageServer::versitygw().await.unwrap();
        storage.create_bucket("calls").await.unwrap();
        Self { livekit, storage, port, dir: tempfile::tempdir().unwrap(), receiver: Receiver::start().await }
    }

    /// The configuration file of a service here, with more at its end. It refuses no room because the machine is busy, unless
    /// that says what it does.
    pub fn configure(&self, more: &str) -> PathBuf {
        let s3 = self.storage.s3_config("calls");
        let limits = if more.contains("limits:") { "" } else { "limits: {late: 60s, cpu_percent: 100}" };
        let yaml = format!(
            "livekit_host: {}\n\
             livekit_api_key: {}\n\
             livekit_api_secret: {}\n\
             file_path: \"rec/{{room_name}}-{{time}}\"\n\
             file_type: OGG\n\
             storage: {{s3: {{bucket: calls, region: us-east-1, endpoint: \"{}\", access_key: {}, secret: {}}}}}\n\
             auth: {{keys: [{{name: tests, key: {KEY}, scopes: [admin]}}]}}\n\
             webhooks: {{endpoints: [{{url: \"{}\", secret: s3cr3t}}], allow_private: true}}\n\
             {limits}\n{more}\n",
            self.livekit.url(),
            self.livekit.api_key(),
            self.livekit.api_secret(),
            s3.endpoint.unwrap(),
            s3.access_key.unwrap(),
            s3.secret.unwrap().expose(),
            self.receiver.url(),
        );
        let path = self.dir.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        path
    }

    /// Whether a file with this ending is anywhere here.
    pub fn dir_has(&self, ending: &str) -> bool {
        fn has(dir: &Path, ending: &str) -> bool {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            let mut entries = entries.filter(|path| path.is_dir() || path.extension().is_some_and(|ext| ext == ending));
            entries.any(|path| !path.is_dir() || has(&path, ending))
        }
        has(self.dir.path(), ending)
    }

    /// Starts the service and waits until it is ready.
    pub async fn serve(&self, more: &str) -> Service {
        let config = self.configure(more);
        self.serve_with(&config, &[]).await
    }

    /// The same, with a configuration file and variables.
    pub async fn serve_with(&self, config: &Path, environment: &[(&str, &str)]) -> Service {
        let mut command = Command::new(CALLREEL);
        for (name, _) in std::env::vars() {
            if ["LIVEKIT", "CALLREEL", "S3_", "AWS_", "GOOGLE_", "PORT"].iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let log = self.dir.path().join("log");
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        command.arg("serve").arg("--config").arg(config).arg("--listen").arg(format!("127.0.0.1:{}", self.port));
        command.current_dir(self.dir.path()).env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("RUST_LOG", "warn,callreel=debug").envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).kill_on_drop(true);
        let process = command.spawn().unwrap();
        let service = Service { process, port: self.port, log, client: client() };
        within("the service is ready", async || service.get("/readyz").await.0 == 200).await;
        service
    }

    /// Somebody joins a room, and speaks without end.
    pub async fn speaker(&self, room: &str, identity: &str, seed: u64) -> (Publisher, Voice) {
        self.speaker_with(room, identity, seed, TrackOptions::default()).await
    }

    /// The same, with more about the track.
    pub async fn speaker_with(
        &self,
        room: &str,
        identity: &str,
        seed: u64,
        options: TrackOptions,
    ) -> (Publisher, Voice) {
        let publisher = Publisher::join(PublisherConfig::on(&self.livekit, room, identity)).await.unwrap();
        let voice = publisher.publish(speech(seed), options.looped(true)).await.unwrap();
        (publisher, voice)
    }
}

/// A LiveKit server that calls a webhook on this port.
async fn livekit(port: u16) -> LiveKitServer {
    // Its own key signs them.
    let webhook = format!("webhook: {{api_key: devkey, urls: [\"http://127.0.0.1:{port}/webhook-receiver\"]}}");
    LiveKitServer::builder().departure_timeout(2).empty_timeout(5).extra(&webhook).start().await.unwrap()
}

/// What somebody says.
pub fn speech(seed: u64) -> Audio {
    generate::speech(seed, Duration::from_secs(5))
}

/// A client that asks this machine and nobody else.
pub fn client() -> Client {
    Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(Duration::from_secs(30)).build().unwrap()
}

/// Waits until something holds.
pub async fn within(what: &str, holds: impl AsyncFnMut() -> bool) {
    within_or(what, holds, String::new).await;
}

/// The same; where it does not hold, `why` is told.
pub async fn within_or(what: &str, mut holds: impl AsyncFnMut() -> bool, why: impl Fn() -> String) {
    let until = clock::now() + PATIENCE;
    while !holds().await {
        assert!(clock::now() < until, "not within {PATIENCE:?}: {what}\n{}", why());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// `callreel serve`, running.
pub struct Service {
    process: Child,
    port: u16,
    log: PathBuf,
    client: Client,
}

impl Service {
    /// Its log, of earlier processes too.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// What its log says of a recording.
    pub fn log_of(&self, recording: &Value) -> String {
        let id = recording["recording_id"].as_str().unwrap();
        self.log().lines().filter(|line| line.contains(id)).collect::<Vec<_>>().join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.process.id().unwrap()
    }

    /// Asks it something as an administrator. Gives the status and the answer: JSON, or a text.
    pub async fn ask(&self, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.client.request(method, format!("http://127.0.0.1:{}{path}", self.port));
        request = request.header("Authorization", format!("Bearer {KEY}"));
        if let Some(body) = body {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        match request.send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                let text = answer.text().await.unwrap_or_default();
                (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
            }
            Err(error) => (0, json!(format!("{error:?}"))),
        }
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        self.ask(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask(Method::POST, path, Some(body)).await
    }

    /// The recordings of a room, newest first; all where it is empty.
    pub async fn recordings(&self, room: &str) -> Vec<Value> {
        let of_room = if room.is_empty() { String::new() } else { format!("&room={room}") };
        let (status, answer) = self.get(&format!("/api/v1/recordings?limit=200{of_room}")).await;
        assert_eq!(status, 200, "{answer}");
        let found = answer.get("recordings").or(answer.get("items")).unwrap_or(&answer);
        found.as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    }

    /// The only recording of a room once it is in this status.
    pub async fn recording(&self, room: &str, status: &str) -> Value {
        self.the(room, status, |_| true).await
    }

    /// The recording of a room that is meant, once it is in this status.
    pub async fn the(&self, room: &str, status: &str, is_meant: impl Fn(&Value) -> bool) -> Value {
        let until = clock::now() + PATIENCE;
        loop {
            let found = self.recordings(room).await;
            let mut of_those = found.iter().filter(|one| is_meant(one));
            if let Some(only) = of_those.next()
                && of_those.next().is_none()
                && only["status"] == status
            {
                return only.clone();
            }
            assert!(clock::now() < until, "{room} is not {status}: {found:#?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as an orchestrator does, and waits.
    pub async fn terminate(mut self) {
        let pid = self.pid().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    /// `kill -9`.
    pub async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }

    /// Resident memory, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1_024
    }
}

/// What a receiver of webhooks was told.
#[derive(Clone, Debug)]
pub struct Told {
    pub signature: String,
    pub text: String,
    pub body: Value,
}

/// Somebody who receives webhooks, and can be told to refuse them.
pub struct Receiver {
    port: u16,
    told: Arc<Mutex<Vec<Told>>>,
    refuses: watch::Sender<bool>,
    _server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn start() -> Self {
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let (refuses, refused) = watch::channel(false);
        let keeping = told.clone();
        let take = async move |headers: HeaderMap, body: Bytes| {
            if *refused.borrow() {
                return StatusCode::SERVICE_UNAVAILABLE;
            }
            let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let text = String::from_utf8(body.to_vec()).unwrap();
            keeping.lock().unwrap().push(Told {
                signature: header("x-callreel-signature").unwrap_or_default(),
                body: serde_json::from_str(&text).unwrap(),
                text,
            });
            StatusCode::NO_CONTENT
        };
        let app = axum::Router::new().route("/hook", post(take));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { port, told, refuses, _server: server }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    pub fn refuse(&self, refuses: bool) {
        self.refuses.send_replace(refuses);
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap().clone()
    }

    /// What was told of an event of a recording.
    pub fn of(&self, recording_id: &str, event: &str) -> Vec<Told> {
        let is_it = |told: &Told| told.body["event"] == event && told.body["recording"]["recording_id"] == recording_id;
        self.told().into_iter().filter(is_it).collect()
    }

    /// Waits until it was told.
    pub async fn hears(&self, recording_id: &str, event: &str) -> Told {
        let until = clock::now() + PATIENCE;
        loop {
            if let Some(told) = self.of(recording_id, event).first() {
                return told.clone();
            }
            assert!(clock::now() < until, "nobody said {event} of {recording_id}: {:#?}", self.told());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
