//! A running service, and somebody who asks it.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use callreel::catalog::{Catalog, Change, NewRecording, Participant, Row, Status, nobody};
use callreel::clock;
use callreel::config::{OutputKind, ServeConfig, ServeFlags};
use callreel::recording::{Outcome, OutputResult};
use callreel::service::{Service, ServiceError};
use livekit_api::access_token::{AccessToken, VideoGrants};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The LiveKit server's key, for services that need no LiveKit server.
pub const LIVEKIT_KEY: &str = "devkey";
/// Its secret.
pub const LIVEKIT_SECRET: &str = "a secret of the LiveKit server, long enough";
/// A key that may do everything.
pub const ADMIN: &str = "admin-0123456789abcdef";
/// A key that may look and listen.
pub const READER: &str = "reader-0123456789abcdef";
/// A key that may record, and neither look nor listen.
pub const RECORDER: &str = "recorder-0123456789abcdef";

const KEYS: &str = "auth:\n  keys:\n  - {name: admin, key: admin-0123456789abcdef, scopes: [admin]}\n  \
    - {name: reader, key: reader-0123456789abcdef, scopes: [read]}\n  \
    - {name: recorder, key: recorder-0123456789abcdef, scopes: [record]}\n";

/// How long anything may take here.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A service that runs.
pub struct Running {
    pub address: SocketAddr,
    pub catalog: Catalog,
    pub dir: TempDir,
    client: Client,
    end: watch::Sender<bool>,
    task: Option<JoinHandle<Result<(), ServiceError>>>,
}

impl Running {
    /// A service with the keys above.
    pub async fn start() -> Self {
        Self::start_with("", &[]).await
    }

    /// As [`start`](Self::start), with more in its file and its environment. It refuses nothing because the machine is busy,
    /// unless that says what it does.
    pub async fn start_with(yaml: &str, env: &[(&str, &str)]) -> Self {
        let limits = if yaml.contains("limits:") { "" } else { "limits: {late: 60s, cpu_percent: 100}\n" };
        Self::start_as(&format!("{KEYS}{limits}{yaml}"), env).await
    }

    /// A service with this file and environment alone.
    pub async fn start_as(yaml: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (dir.path().join("config.yaml"), dir.path().join("calls"));
        std::fs::write(&path, yaml).unwrap();
        let lookup = |name: &str| {
            let given = env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
            given.or_else(|| match name {
                "CONFIG_FILE" => Some(path.display().to_string()),
                "LIVEKIT_URL" => Some("ws://127.0.0.1:1".into()),
                "LIVEKIT_API_KEY" => Some(LIVEKIT_KEY.into()),
                "LIVEKIT_API_SECRET" => Some(LIVEKIT_SECRET.into()),
                "CALLREEL_LISTEN" => Some("127.0.0.1:0".into()),
                "CALLREEL_OUT" => Some(out.display().to_string()),
                _ => None,
            })
        };
        let config = ServeConfig::load(&ServeFlags::default(), &lookup).unwrap();
        let catalog_url = config.catalog.expose().to_owned();
        let service = Service::open(config).await.unwrap();
        let address = service.address();
        let catalog = Catalog::open(&catalog_url).await.unwrap();
        let (end, ending) = watch::channel(false);
        let task = Some(tokio::spawn(service.run(ending)));
        let client = Client::builder().timeout(PATIENCE).redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Self { address, catalog, dir, client, end, task }
    }

    /// Tells it to end and waits until it has.
    pub async fn stop(&mut self) {
        self.end.send_replace(true);
        if let Some(task) = self.task.take() {
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
        }
    }

    /// A request without any key.
    pub fn ask(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    /// A request with a key.
    pub fn as_key(&self, key: &str, method: Method, path: &str) -> RequestBuilder {
        self.ask(method, path).header("authorization", format!("Bearer {key}"))
    }

    /// What a request with a key is answered.
    pub async fn answer(&self, key: &str, method: Method, path: &str, body: Option<Value>) -> Answer {
        let request = self.as_key(key, method, path);
        let request = match body {
            Some(body) => request.header("content-type", "application/json").body(body.to_string()),
            None => request,
        };
        Answer::of(request).await
    }

    /// What a path is answered whoever may do everything.
    pub async fn get(&self, path: &str) -> Answer {
        self.answer(ADMIN, Method::GET, path, None).await
    }

    /// A figure of `/metrics`; 0 where it is not told.
    pub async fn figure(&self, name: &str) -> f64 {
        let text = Answer::of(self.ask(Method::GET, "/metrics")).await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Sends bytes as they are and gives what comes back until the other end is done.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // It may be refused before it was sent whole.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A recording that is being made.
    pub async fn active(&self, id: &str, room: &str) -> Row {
        let new = NewRecording::new(id, room, clock::wall());
        self.catalog.begin(new, nobody).await.unwrap();
        self.catalog.update(id, &Change::status(Status::Active), clock::wall(), nobody).await.unwrap()
    }

    /// A recording that is ready, with a file of these bytes, a manifest, a waveform and who spoke when.
    pub async fn ready(&self, id: &str, room: &str, sound: &[u8]) -> Row {
        let folder = self.dir.path().join("calls/made");
        std::fs::create_dir_all(&folder).unwrap();
        let file = |ending: &str| folder.join(format!("{id}{ending}"));
        std::fs::write(file(".ogg"), sound).unwrap();
        std::fs::write(file(".peaks.json"), r#"{"version":2,"channels":1,"data":[0,1]}"#).unwrap();
        std::fs::write(file(".vtt"), "WEBVTT\n\n00:00.000 --> 00:01.500\n<v ann>\n").unwrap();
        let sidecar =
            |kind: &str, ending: &str| json!({"kind": kind, "file": format!("{id}{ending}"), "bytes": 1, "sha256": ""});
        let manifest = json!({
            "recording_id": id,
            "sidecars": [sidecar("peaks", ".peaks.json"), sidecar("speakers", ".vtt")],
            "speech": [{"participant": "ann", "from_sample": 0, "to_sample": 72_000}],
        });
        std::fs::write(file(".json"), manifest.to_string()).unwrap();
        self.active(id, room).await;
        let place = |ending: &str| file(ending).display().to_string();
        let output = OutputResult {
            kind: OutputKind::Mix,
            participant: None,
            location: place(".ogg"),
            duration_seconds: 1_800.4,
            bytes: sound.len() as u64,
            sha256: callreel_hex(&Sha256::digest(sound)),
        };
        let change = Change {
            outcome: Some(Outcome::Complete),
            ended_at: Some(clock::wall()),
            ready_at: Some(clock::wall()),
            duration_seconds: Some(1_800.4),
            outputs: Some(vec![output]),
            manifest: Some(place(".json")),
            file_url: Some(place(".ogg")),
            file_size_bytes: Some(sound.len() as u64),
            storage_key: Some(format!("made/{id}.ogg")),
            is_processed: Some(true),
            participants: vec![Participant { identity: "ann".into(), name: "Ann".into(), kind: "standard".into() }],
            ..Change::status(Status::Ready)
        };
        self.catalog.update(id, &change, clock::wall(), nobody).await.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
    pub bytes: Vec<u8>,
}

impl Answer {
    /// Sends a request and takes the answer whole.
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap().to_vec();
        Self { status, headers, text: String::from_utf8_lossy(&bytes).into_owned(), bytes }
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The last word of a problem's type; checks that it is one.
    pub fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16());
        assert!(!problem["detail"].as_str().unwrap().is_empty() && !problem["title"].as_str().unwrap().is_empty());
        problem["type"].as_str().unwrap().strip_prefix("urn:callreel:problem:").unwrap().to_owned()
    }

    /// A header; empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A webhook's token, as LiveKit makes it.
pub fn webhook_token(key: &str, secret: &str, body: &[u8]) -> String {
    let token = AccessToken::with_api_key(key, secret).with_ttl(Duration::from_secs(300));
    token.with_sha256(&BASE64_STANDARD.encode(Sha256::digest(body))).to_jwt().unwrap()
}

/// An event of the LiveKit server.
pub fn event(id: &str, event: &str, room: &str) -> String {
    let created = clock::wall().unix_timestamp();
    json!({
        "event": event, "id": id, "createdAt": created.to_string(), "a_field_of_a_newer_server": {"x": 1},
        "room": {"sid": "RM_1", "name": room, "emptyTimeout": 300, "creationTime": created.to_string()},
    })
    .to_string()
}

/// An access token of the LiveKit server.
pub fn access_token(grants: VideoGrants) -> String {
    AccessToken::with_api_key(LIVEKIT_KEY, LIVEKIT_SECRET).with_identity("ann").with_grants(grants).to_jwt().unwrap()
}

pub fn callreel_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What PEM makes of bytes.
pub fn pem(label: &str, bytes: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(bytes);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
