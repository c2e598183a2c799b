//! What the configuration file says about the service. Every section has its defaults, so that the effective configuration
//! can be printed whole.

use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use super::file::Time;
use super::{Engine, OutputKind, PictureKind};
use crate::egress::Preset;
use crate::encode::{Depth, Mp4Codec};
use crate::recording::PausePolicy;
use crate::store::Secret;

/// A deployed system, whose defaults hold where it says nothing itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// callreel's own: every room is recorded, as Ogg.
    #[default]
    Callreel,
    /// The auto-recorder: every room is recorded, as MP4, and there must be a store.
    AutoRecorder,
    /// The room-recording service: what its clients start is recorded.
    Rooms,
    /// Egress with a workflow's webhook: what is started is recorded, and the room's metadata tells the egress id.
    Workflow,
}

impl Profile {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Callreel => "callreel",
            Self::AutoRecorder => "auto-recorder",
            Self::Rooms => "rooms",
            Self::Workflow => "workflow",
        }
    }

    /// Whether rooms are recorded that nobody asks for and no rule is about.
    pub const fn records_all(self) -> bool {
        matches!(self, Self::Callreel | Self::AutoRecorder)
    }
}

/// The catalogue of recordings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CatalogSection {
    /// `sqlite:///file` or `postgres://user:password@host/database`. Default: `catalog.sqlite` beside the recordings.
    pub url: Option<DatabaseUrl>,
}

/// The address of a database, which is shown without its password.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// Takes the whole address.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The whole address.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The address without its password and parameters.
    pub fn shown(&self) -> String {
        let bare = self.0.split(['?', '#']).next().unwrap_or_default();
        let Some((scheme, rest)) = bare.split_once("://") else { return "SET".into() };
        match rest.rsplit_once('@') {
            Some((who, place)) => {
                let who = who.split(':').next().unwrap_or_default();
                format!("{scheme}://{who}:SET@{place}")
            }
            None => format!("{scheme}://{rest}"),
        }
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.shown())
    }
}

impl JsonSchema for DatabaseUrl {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DatabaseUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^(sqlite|postgres|postgresql):"})
    }
}

/// Who may do what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSection {
    /// API keys, beside those in the catalogue.
    pub keys: Vec<ApiKeySpec>,
    /// Signs playback addresses. Default: derived from `livekit_api_secret`.
    pub playback_secret: Option<Secret>,
    /// How long a playback address is valid at most. Default 24h.
    pub playback_longest: Time,
}

impl Default for AuthSection {
    fn default() -> Self {
        Self { keys: Vec::new(), playback_secret: None, playback_longest: Time(Duration::from_secs(24 * 3_600)) }
    }
}

/// An API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKeySpec {
    /// Whose it is, for the access log.
    pub name: String,
    /// The key itself: 16 characters or more.
    pub key: Secret,
    /// What it may do.
    #[serde(default = "every_scope")]
    pub scopes: Vec<ScopeWord>,
}

fn every_scope() -> Vec<ScopeWord> {
    vec![ScopeWord::Read, ScopeWord::Record, ScopeWord::Delete]
}

/// Something a key may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum ScopeWord {
    /// List, look at and listen to recordings.
    Read,
    /// Start, stop, pause and resume them.
    Record,
    /// Delete them.
    Delete,
    /// Everything, and who else may do what.
    Admin,
}

/// Who is told what happens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WebhooksSection {
    /// To whom.
    pub endpoints: Vec<WebhookEndpoint>,
    /// Whether they may have private addresses. Default: with `egress_webhook_url`, whose workflows are next to the service.
    pub allow_private: Option<bool>,
    /// Whether a room's metadata becomes `{"egress_id": …}`. Default: with the profile `workflow`.
    pub write_room_metadata: Option<bool>,
}

/// Somebody who is told what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookEndpoint {
    /// What it is called in lists of deliveries. Default: `webhook-1`, `webhook-2`…
    #[serde(default)]
    pub name: Option<String>,
    /// `https://…` or `http://…`
    pub url: String,
    /// Signs what is sent. Default: it is not signed.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// In whose words.
    #[serde(default)]
    pub format: WebhookFormat,
    /// Which events, such as `recording.ready`. Default: all.
    #[serde(default)]
    pub events: Vec<String>,
}

/// In whose words somebody is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WebhookFormat {
    /// callreel's own events.
    #[default]
    Callreel,
    /// `egress_ended` as workflows have it.
    EgressEnded,
}

/// Where people get recordings from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DownloadsSection {
    /// How the service is reached from outside, such as `https://rec.example`. Default: by the address it is asked at.
    pub public_url: Option<String>,
    /// The public domain of the bucket, such as `files.example`. Default: none, addresses are signed.
    pub custom_domain: Option<String>,
    /// How long signed addresses are valid. Default 1h.
    pub valid: Time,
}

impl Default for DownloadsSection {
    fn default() -> Self {
        Self { public_url: None, custom_domain: None, valid: Time(Duration::from_secs(3_600)) }
    }
}

/// How long recordings are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionSection {
    /// Days from a recording's end, unless its rule says. Default: for ever.
    pub days: Option<u32>,
    /// How often it is looked for what has had its time. Default 1h.
    pub every: Time,
}

impl Default for RetentionSection {
    fn default() -> Self {
        Self { days: None, every: Time(Duration::from_secs(3_600)) }
    }
}

/// Who records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// Default `auto`.
    pub engine: EngineWord,
    /// What stands in where callreel's own bot cannot record, or the service is full. Default `none`.
    pub fallback: FallbackWord,
    /// How long the bot tries before that. Default 20s.
    pub fallback_after: Time,
    /// The picture's size and rate. Default `720p30`.
    pub picture: PictureWord,
    /// The page that composes the picture. Default: the service's own.
    pub layout_page: Option<String>,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self {
            engine: EngineWord::default(),
            fallback: FallbackWord::default(),
            fallback_after: Time(Duration::from_secs(20)),
            picture: PictureWord::default(),
            layout_page: None,
        }
    }
}

/// Who records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineWord {
    /// LiveKit Egress where there is to be a picture, callreel's own bot for the rest.
    #[default]
    Auto,
    /// callreel's own bot.
    Callreel,
    /// LiveKit Egress.
    Egress,
}

impl From<EngineWord> for Engine {
    fn from(word: EngineWord) -> Self {
        match word {
            EngineWord::Auto => Self::Auto,
            EngineWord::Callreel => Self::Callreel,
            EngineWord::Egress => Self::Egress,
        }
    }
}

/// What stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum FallbackWord {
    /// Nothing.
    #[default]
    None,
    /// LiveKit Egress records the sound.
    Egress,
}

/// The picture's size and rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "each says it all")]
pub enum PictureWord {
    #[default]
    #[serde(rename = "720p30")]
    P720R30,
    #[serde(rename = "720p60")]
    P720R60,
    #[serde(rename = "1080p30")]
    P1080R30,
    #[serde(rename = "1080p60")]
    P1080R60,
    #[serde(rename = "portrait-720p30")]
    Portrait720,
    #[serde(rename = "portrait-1080p30")]
    Portrait1080,
}

impl From<PictureWord> for Preset {
    fn from(word: PictureWord) -> Self {
        match word {
            PictureWord::P720R30 => Self::H264_720P_30,
            PictureWord::P720R60 => Self::H264_720P_60,
            PictureWord::P1080R30 => Self::H264_1080P_30,
            PictureWord::P1080R60 => Self::H264_1080P_60,
            PictureWord::Portrait720 => Self::Portrait720P_30,
            PictureWord::Portrait1080 => Self::Portrait1080P_30,
        }
    }
}

/// How recordings are made, unless a rule says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RecordingSection {
    /// Which files. Default `[mix]`.
    pub outputs: Vec<OutputKind>,
    /// Pictures to draw at the end. Default `[waveform]`, of which `thumbnail_url` shows a small one.
    pub pictures: Vec<PictureKind>,
    /// Whether pictures, and tags of a participant's own file, say who somebody is. Default no.
    pub name_people: bool,
    /// Bits a sample of WAV and FLAC: 16 or 24. Default 16.
    pub pcm_bits: Depth,
    /// Bits a second of MP3. Default: a rate that varies with the sound.
    pub mp3_bitrate: Option<u32>,
    /// The codec in MP4: `opus`, or `aac` in builds that have it. Default `opus`.
    pub mp4_codec: Mp4Codec,
    /// The directory for journals and files on their way into a store. Default: `.spool` in the directory for recordings.
    pub spool: Option<PathBuf>,
    /// How long the spool keeps files that the store has. Default 0s.
    pub keep_spool: Time,
    /// How often what is in no full part yet goes into the store; 0s for never. Default 5s.
    pub tail_every: Time,
    /// How long the end of a recording waits for a store that is down. Default 60s.
    pub upload_patience: Time,
    /// What files have where it was paused. Default `silence`.
    pub pause: PausePolicy,
    /// The longest recording. Default: none.
    pub max_duration: Option<Time>,
    /// How long a room may be without participants before its recording ends. Default 10s.
    pub departure_timeout: Time,
}

impl Default for RecordingSection {
    fn default() -> Self {
        Self {
            outputs: vec![OutputKind::Mix],
            pictures: vec![PictureKind::Waveform],
            name_people: false,
            pcm_bits: Depth::default(),
            mp3_bitrate: None,
            mp4_codec: Mp4Codec::default(),
            spool: None,
            keep_spool: Time(Duration::ZERO),
            tail_every: Time(Duration::from_secs(5)),
            upload_patience: Time(Duration::from_secs(60)),
            pause: PausePolicy::default(),
            max_duration: None,
            departure_timeout: Time(Duration::from_secs(10)),
        }
    }
}

/// Which web pages of other hosts may call the service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CorsSection {
    /// Their origins, such as `https://app.example`; `*` for any. Default: none.
    pub origins: Vec<String>,
}

/// The service's certificate. Default: none, the service speaks HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSection {
    /// A PEM file with the certificate and those that vouch for it.
    pub cert: Option<PathBuf>,
    /// A PEM file with its key.
    pub key: Option<PathBuf>,
}

/// What the service takes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Recordings at a time. Default: as many as the machine's load allows.
    pub calls: Option<u32>,
    /// The share of the processors that may be busy before recordings are refused, in percent. Default 85.
    pub cpu_percent: u8,
    /// How late recordings may come to their work, as others use the machine, before further ones are refused. Default 250ms.
    pub late: Time,
    /// The bytes of memory that must be left before recordings are refused. Default 256 MiB.
    pub memory_left: u64,
    /// The bytes that the spool's volume must have left before recordings are refused. Default 512 MiB.
    pub spool_left: u64,
    /// Connections at a time. Default 1024.
    pub connections: u32,
    /// Bytes of a request's body. Default 64 KiB.
    pub body: u32,
    /// Bytes of a webhook's body. Default 1 MiB.
    pub webhook_body: u32,
    /// How long the head of a request may take, and a body. Default 10s.
    pub request_time: Time,
    /// Requests a second of one caller, in the long run. Default 50.
    pub rate: f64,
    /// Requests of one caller at once. Default 200.
    pub burst: u32,
    /// How old a webhook may be. Default 15m.
    pub webhook_age: Time,
    /// Webhooks that wait for the recorder. Default 4096.
    pub webhook_queue: u32,
}

impl Eq for LimitsSection {}

impl Default for LimitsSection {
    fn default() -> Self {
        const MIB: u64 = 1_024 * 1_024;
        Self {
            calls: None,
            cpu_percent: 85,
            late: Time(Duration::from_millis(250)),
            memory_left: 256 * MIB,
            spool_left: 512 * MIB,
            connections: 1_024,
            body: 64 * 1_024,
            webhook_body: 1_024 * 1_024,
            request_time: Time(Duration::from_secs(10)),
            rate: 50.0,
            burst: 200,
            webhook_age: Time(Duration::from_secs(900)),
            webhook_queue: 4_096,
        }
    }
}

/// How the service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DrainSection {
    /// How long calls may go on after SIGTERM, before their recordings are ended. Default 0s: at once.
    pub wait: Time,
    /// How long ended recordings may take to reach their store. Default 60s.
    pub upload: Time,
}

impl Default for DrainSection {
    fn default() -> Self {
        Self { wait: Time(Duration::ZERO), upload: Time(Duration::from_secs(60)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_shown_without_its_password() {
        for (url, shown) in [
            ("postgres://rec:hunter2@db:5432/calls?password=hunter2", "postgres://rec:SET@db:5432/calls"),
            ("postgres://rec:hun@ter2@db/calls", "postgres://rec:SET@db/calls"),
            ("sqlite:///var/lib/calls.sqlite", "sqlite:///var/lib/calls.sqlite"),
            ("hunter2", "SET"),
        ] {
            let url = DatabaseUrl::new(url);
            assert_eq!((url.shown(), serde_json::to_value(&url).unwrap()), (shown.into(), shown.into()));
            assert!(!format!("{url:?}").contains("hunter2"));
        }
    }
}
