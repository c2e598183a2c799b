use std::time::Duration;

use callreel::clock;
use callreel::config::{Config, NameTemplate};
use callreel::egress::{EgressClient, EgressRequest, FileFormat, FileOutput, Media, Source, Upload};
use callreel::recording::{Manifest, Recorder, RecordingHandle, RecordingResult, State};
use callreel::room::Credentials;
use callreel::store::{S3Config, Store, StoreConfig};
use callreel::testkit::StorageServer;
use callreel::testkit::egress::EgressDouble;
use livekit_protocol::EgressStatus as Status;

pub const ROOM: &str = "call";

pub fn key(double: &EgressDouble) -> Credentials {
    Credentials::ApiKey { key: double.api_key().into(), secret: double.api_secret().into() }
}

/// A client that does not look long for what was lost.
pub fn client(double: &EgressDouble) -> EgressClient {
    client_that_waits(double, Duration::from_secs(30))
}

/// As [`client`], which waits so long for the answer to a start.
pub fn client_that_waits(double: &EgressDouble, starts_within: Duration) -> EgressClient {
    EgressClient::with_timeouts(&double.url(), &key(double), starts_within, Duration::from_secs(3))
}

pub fn sound(path: &str) -> EgressRequest {
    let file = FileOutput { format: FileFormat::Ogg, path: path.into(), upload: Upload::of_the_service() };
    EgressRequest::new(Source::room(ROOM, None, Media::Audio), file)
}

/// A double with a room in which two are, and a store into which it writes.
pub struct Stage {
    pub double: EgressDouble,
    pub storage: StorageServer,
    pub root: tempfile::TempDir,
}

impl Stage {
    pub async fn set() -> Self {
        Self::with(EgressDouble::start().await.unwrap()).await
    }

    pub async fn with(double: EgressDouble) -> Self {
        let storage = StorageServer::versitygw().await.unwrap();
        storage.create_bucket("calls").await.unwrap();
        double.set_room(ROOM, 2);
        double.write_into(storage.store("calls").await.unwrap());
        Self { double, storage, root: tempfile::tempdir().unwrap() }
    }

    pub async fn until_an_egress_is_active(&self) {
        self.double.until(|all| all.iter().any(|info| info.status() == Status::EgressActive)).await;
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(self.double.url(), key(&self.double), ROOM);
        config.store = Some(StoreConfig::S3(S3Config { prefix: "2026".into(), ..self.storage.s3_config("calls") }));
        config.spool = Some(self.root.path().join("spool"));
        config.name = NameTemplate::parse("recordings/{room_name}-{room_id}").unwrap();
        config.upload.tail_every = Some(Duration::from_millis(500));
        config
    }

    pub async fn store(&self) -> Store {
        let s3 = S3Config { prefix: "2026".into(), ..self.storage.s3_config("calls") };
        Store::open(&StoreConfig::S3(s3)).await.unwrap()
    }

    /// The names of all objects below the prefix.
    pub async fn objects(&self) -> Vec<String> {
        let mut keys: Vec<_> = self.store().await.list("").await.unwrap().into_iter().map(|found| found.key).collect();
        keys.sort();
        keys
    }

    pub async fn manifest(&self, result: &RecordingResult) -> Manifest {
        let location = result.manifest.as_deref().unwrap_or_else(|| panic!("no manifest: {result:?}"));
        let key = location.strip_prefix("s3://calls/2026/").unwrap_or_else(|| panic!("{location} is elsewhere"));
        let manifest: Manifest = serde_json::from_slice(&self.store().await.get(key, None).await.unwrap()).unwrap();
        manifest.check().unwrap();
        manifest
    }
}

/// Starts a recording and waits until it is in this state.
pub async fn start(config: Config, state: State) -> RecordingHandle {
    let mut recording = Recorder::start(config);
    until(&mut recording, state).await;
    recording
}

pub async fn until(recording: &mut RecordingHandle, state: State) {
    let deadline = clock::now() + Duration::from_secs(60);
    while recording.status().state != state {
        assert!(recording.status().result.is_none(), "{:?}", recording.status().result);
        let changed = tokio::time::timeout_at(deadline.into(), recording.changed()).await;
        assert!(changed.is_ok(), "never {state:?}: {:?}", recording.status());
    }
}

/// Waits until a recording ends by itself.
pub async fn over(recording: &RecordingHandle) -> RecordingResult {
    let ended = tokio::time::timeout(Duration::from_secs(60), recording.wait()).await;
    ended.unwrap_or_else(|_| panic!("it never ends: {:?}", recording.status()))
}
