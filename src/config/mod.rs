//! What to record and how: one typed [`Config`], checked before anything starts.

mod e2ee;
mod encryption;
mod engine;
mod file;
mod name;
mod rule;
mod serve;
mod serve_env;
mod serve_file;
mod serve_rule;
mod storage;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::analysis::AnalysisConfig;
use crate::capture::CaptureConfig;
use crate::e2ee::E2eeConfig;
use crate::egress::FileFormat;
use crate::encode::Format;
use crate::encode::OpusConfig;
use crate::mix::Mixing;
use crate::recording::{DtmfPolicy, LifePolicy};
use crate::render::Quality;
use crate::room::{Credentials, RoomMovedPolicy, TransportPolicy};
use crate::seal::Recipients;
use crate::store::StoreConfig;
use crate::upload::UploadConfig;

pub use e2ee::{E2ee, participant_key};
pub use encryption::recipients;
pub use engine::{Engine, Fallback, Picture};
pub use file::{AliOss, Azure, ConfigFile, Gcp, Keys, S3, Storage, Text, Time};
pub use name::{NameError, NameTemplate, NameValues};
pub use rule::{ParticipantRule, SideRules, TrackFilter, TrackRule};
pub use serve::{LONGEST_RETENTION, ServeConfig, ServeFlags, Setting};
pub use serve_env::{Source, Sources};
pub use serve_file::{
    ApiKeySpec, AuthSection, CatalogSection, CorsSection, DownloadsSection, DrainSection, EngineSection, EngineWord,
    FallbackWord, LimitsSection, PictureWord, Profile, RecordingSection, RetentionSection, ScopeWord, TlsSection,
    WebhookEndpoint, WebhookFormat, WebhooksSection,
};
pub use serve_rule::{AttributeSpec, RuleSpec};
pub use storage::{Destination, destination};

pub(crate) use name::safe_in_name;

/// Everything one recording needs to know.
///
/// ```
/// use callreel::config::Config;
/// use callreel::room::Credentials;
///
/// let key = Credentials::ApiKey { key: "devkey".into(), secret: "a secret of the LiveKit server".into() };
/// let mut config = Config::new("ws://127.0.0.1:7880", key, "my-room");
/// config.out = "calls".into();
/// config.validate()?;
/// # Ok::<(), callreel::config::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The LiveKit server: `ws://`, `wss://`, `http://` or `https://`.
    pub url: String,
    /// Servers that lead to the same rooms, tried in this order where that one cannot be used. Default: none.
    pub fallback_urls: Vec<String>,
    /// How to get in.
    pub credentials: Credentials,
    /// The room to record.
    pub room: String,
    /// The recorder's identity in the room. Default: the recording id, so that two recorders never evict each other.
    pub identity: Option<String>,
    /// The recording's id. Default: a new ULID.
    pub recording_id: String,
    /// The agent job this recording belongs to, for `{job_id}`. Default: the recording id.
    pub job_id: Option<String>,
    /// The directory for the files. Default `./recordings`.
    pub out: PathBuf,
    /// The store into which the files go while they grow. Default: none, they stay in `out`.
    pub store: Option<StoreConfig>,
    /// How they go there.
    pub upload: UploadConfig,
    /// To whom the sound, and what is found out about it, is encrypted before it reaches a disk. Default: nobody, it is plain.
    pub encryption: Recipients,
    /// The keys to a call that is encrypted from end to end. Default: none, such a call cannot be recorded.
    pub e2ee: E2eeConfig,
    /// The directory for journals, and for files on their way into a store. Default: `.spool` in the directory for the
    /// files.
    pub spool: Option<PathBuf>,
    /// How long the spool keeps the files of a recording after its store has them. Not at all by default.
    pub keep_spool: Duration,
    /// Whether this process ends recordings in the spool whose process died, beside this one. It does by default; a service that
    /// does so for all its recordings does not want each of them to.
    pub recovers_others: bool,
    /// How long recordings in the spool whose process died are left to a process of the same id that goes on with them, before
    /// this one ends them. 30 s by default.
    pub grace: Duration,
    /// The files' name. Default `{room_name}-{time}`.
    pub name: NameTemplate,
    /// Which files to make. Default: the mix.
    pub outputs: Vec<OutputKind>,
    /// How the mix is encoded; its channels are the mix's. Dual and track files are encoded like it, each voice in one
    /// channel and packets of 20 ms.
    pub opus: OpusConfig,
    /// Whether dual and track files may hold the senders' own packets. Default: where that is possible.
    pub mixing: Mixing,
    /// Who is heard on which side of a dual file. Default: telephone legs left, agents right.
    pub sides: SideRules,
    /// By how many dB participants are made louder or softer, by identity. Default: nobody.
    pub gains: BTreeMap<String, f32>,
    /// The loudness to which each voice is brought, in LUFS (EBU R 128). Default: as it came.
    pub target_lufs: Option<f32>,
    /// What is found out about the sound. Default: who spoke when, the waveform, the loudness.
    pub analysis: AnalysisConfig,
    /// How packets are waited for.
    pub capture: CaptureConfig,
    /// Which tracks are recorded. Default: all.
    pub tracks: TrackFilter,
    /// When it stops by itself, what it needs to begin, who may pause it.
    pub life: LifePolicy,
    /// What is done about keys that are pressed on a telephone. Default: nothing.
    pub dtmf: DtmfPolicy,
    /// After how long a leg is missed from which nothing comes. Default 10 s; never where there is none.
    pub leg_silent_after: Option<Duration>,
    /// What to do when the server moves the recorder to another room. Default: end.
    pub room_moved: RoomMovedPolicy,
    /// Who records. Default: LiveKit Egress where there is to be a picture, else callreel's own bot.
    pub engine: Engine,
    /// What stands in where callreel's own bot cannot join, or has lost the call for good. Default: nothing.
    pub fallback: Option<Fallback>,
    /// The picture. Default: none, sound alone.
    pub picture: Option<Picture>,
    /// The format of what LiveKit Egress records. [`set_form`](Self::set_form) says it with the others.
    pub format: FileFormat,
    /// The formats of what callreel's own bot records; the recording is called after the first, which is Ogg where that is among
    /// them. Default: Ogg.
    pub formats: Vec<Format>,
    /// How formats are encoded that do not hold Opus.
    pub quality: Quality,
    /// Which pictures are drawn at the end. Default: none.
    pub pictures: Vec<PictureKind>,
    /// Whether tags of a participant's own file, and pictures, say who somebody is. Default: they do not.
    pub names_people: bool,
    /// How media may reach the recorder. Default: UDP, and TCP where that fails.
    pub transport: TransportPolicy,
    /// What goes wrong at the recorder's own socket.
    #[cfg(feature = "testkit")]
    pub impairment: Option<crate::room::Impairment>,
}

/// A kind of file.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OutputKind {
    /// Everybody in one file, mixed.
    Mix,
    /// Two sides in one file, a channel each.
    Dual,
    /// A file for each participant.
    Tracks,
}

impl OutputKind {
    /// The word for it in flags and manifests.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mix => "mix",
            Self::Dual => "dual",
            Self::Tracks => "tracks",
        }
    }
}

impl fmt::Display for OutputKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for OutputKind {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "mix" => Ok(Self::Mix),
            "dual" => Ok(Self::Dual),
            "tracks" => Ok(Self::Tracks),
            _ => Err(ConfigError::Invalid { key: "outputs", why: format!("{word:?} is none of mix, dual, tracks") }),
        }
    }
}

/// A picture of a recording's sound.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum PictureKind {
    /// Who spoke when and how loud, PNG and SVG.
    Waveform,
    /// The frequencies, PNG.
    Spectrogram,
}

impl PictureKind {
    /// The word for it in flags.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waveform => "waveform",
            Self::Spectrogram => "spectrogram",
        }
    }
}

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value that is needed is not there.
    #[error("{key} is missing: {hint}")]
    Missing {
        /// The value's name.
        key: &'static str,
        /// Where it could come from.
        hint: &'static str,
    },
    /// A value makes no sense.
    #[error("{key}: {why}")]
    Invalid {
        /// The value's name.
        key: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A value of a file, a variable or a flag makes no sense.
    #[error("{key}: {why} (from {source_name})")]
    Setting {
        /// The value's place in the configuration.
        key: String,
        /// Where it comes from.
        source_name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A value that has a meaning, which this version does not implement.
    #[error("{what} is not available yet")]
    NotAvailable {
        /// What was asked for.
        what: String,
    },
}

impl Config {
    /// A configuration with every default.
    pub fn new(url: impl Into<String>, credentials: Credentials, room: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            fallback_urls: Vec::new(),
            credentials,
            room: room.into(),
            identity: None,
            recording_id: new_recording_id(),
            job_id: None,
            out: PathBuf::from("recordings"),
            store: None,
            upload: UploadConfig::default(),
            encryption: Recipients::default(),
            e2ee: E2eeConfig::default(),
            spool: None,
            keep_spool: Duration::ZERO,
            recovers_others: true,
            grace: Duration::from_secs(30),
            name: default_name(),
            outputs: vec![OutputKind::Mix],
            opus: OpusConfig::default(),
            mixing: Mixing::default(),
            sides: SideRules::default(),
            gains: BTreeMap::new(),
            target_lufs: None,
            analysis: AnalysisConfig::default(),
            capture: CaptureConfig::default(),
            tracks: TrackFilter::default(),
            life: LifePolicy::default(),
            dtmf: DtmfPolicy::default(),
            leg_silent_after: Some(Duration::from_secs(10)),
            room_moved: RoomMovedPolicy::default(),
            engine: Engine::default(),
            fallback: None,
            picture: None,
            format: FileFormat::Ogg,
            formats: vec![Format::Ogg],
            quality: Quality::default(),
            pictures: Vec::new(),
            names_people: false,
            transport: TransportPolicy::default(),
            #[cfg(feature = "testkit")]
            impairment: None,
        }
    }

    /// Checks what can be checked without asking anybody.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for url in [&self.url].into_iter().chain(&self.fallback_urls) {
            let scheme = url.split("://").next().unwrap_or_default();
            if !["ws", "wss", "http", "https"].contains(&scheme) || !url.contains("://") {
                return Err(ConfigError::Invalid {
                    key: "url",
                    why: format!("{url:?} is no LiveKit address; it starts with ws://, wss://, http:// or https://"),
                });
            }
        }
        if self.room.is_empty() && matches!(self.credentials, Credentials::ApiKey { .. }) {
            return Err(ConfigError::Missing { key: "room", hint: "--room or a token that names one" });
        }
        if self.outputs.is_empty() {
            return Err(ConfigError::Missing { key: "outputs", hint: "at least one of mix, dual, tracks" });
        }
        if let Some((who, gain)) = self.gains.iter().find(|(_, gain)| !GAINS.contains(*gain)) {
            return Err(ConfigError::Invalid {
                key: "gain",
                why: format!("{gain} dB for {who:?} is not between {} and {} dB", GAINS.start(), GAINS.end()),
            });
        }
        if let Some(target) = self.target_lufs.filter(|target| !TARGETS.contains(target)) {
            return Err(ConfigError::Invalid {
                key: "target_lufs",
                why: format!("{target} is not between {} and {} LUFS", TARGETS.start(), TARGETS.end()),
            });
        }
        let hears =
            self.outputs.contains(&OutputKind::Mix) && (self.analysis.speakers || self.mixing == Mixing::Transcode);
        if self.life.stop.silence.is_some() && !hears {
            return Err(ConfigError::Invalid {
                key: "stop_after_silence",
                why: "only a mix whose speakers are found out about, or that is transcoded, is listened to".into(),
            });
        }
        if !is_safe_id(&self.recording_id) {
            return Err(ConfigError::Invalid {
                key: "recording_id",
                why: format!("{:?} may have letters, digits, '-' and '_' only, 1 to 64 of them", self.recording_id),
            });
        }
        self.validate_engine()?;
        self.capture.validate().map_err(|e| ConfigError::Invalid { key: "capture", why: e.to_string() })
    }

    /// The directory for journals.
    pub fn spool_dir(&self) -> PathBuf {
        self.spool.clone().unwrap_or_else(|| default_spool(&self.out))
    }

    /// The identity under which the recorder joins.
    pub fn identity(&self) -> String {
        self.identity.clone().unwrap_or_else(|| format!("callreel-{}", self.recording_id))
    }
}

/// The gains that make sense, in dB: beyond them a voice is gone, or nothing but noise.
const GAINS: RangeInclusive<f32> = -60.0..=40.0;

/// The loudness of voices that makes sense, in LUFS: from too soft to hear to as loud as speech gets without distortion.
const TARGETS: RangeInclusive<f32> = -40.0..=-10.0;

/// Where the journals of recordings into the directory `out` are, unless told otherwise.
pub fn default_spool(out: &Path) -> PathBuf {
    out.join(".spool")
}

/// A new recording id: a ULID, so that ids sort by time.
pub fn new_recording_id() -> String {
    ulid::Ulid::new().to_string()
}

/// Reads `90`, `90s`, `45m`, `4h` or `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time; write 90s, 45m or 4h"))?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(format!("{unit:?} is no unit of time; known are ms, s, m and h")),
    };
    millis.map(Duration::from_millis).ok_or_else(|| format!("{text:?} is too long"))
}

fn default_name() -> NameTemplate {
    NameTemplate::parse("{room_name}-{time}").expect("a template of known variables")
}

fn is_safe_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config::new(url, Credentials::ApiKey { key: "k".into(), secret: "s".into() }, "room")
    }

    #[test]
    fn an_address_without_a_known_scheme_is_refused_by_name() {
        for url in ["", "localhost:7880", "ftp://x", "ws"] {
            let error = config(url).validate().unwrap_err();
            assert!(matches!(error, ConfigError::Invalid { key: "url", .. }), "{url}: {error}");
        }
        config("wss://x").validate().unwrap();
    }

    #[test]
    fn a_recording_id_that_is_no_safe_name_is_refused() {
        let mut config = config("ws://x");
        config.recording_id = "../x".into();
        assert!(matches!(config.validate(), Err(ConfigError::Invalid { key: "recording_id", .. })));
    }

    #[test]
    fn loudness_that_makes_no_sense_is_refused() {
        for (target, allowed) in [(-20.0, true), (5.0, false), (-70.0, false), (f32::NAN, false)] {
            let config = Config { target_lufs: Some(target), ..config("ws://x") };
            let refused = matches!(config.validate(), Err(ConfigError::Invalid { key: "target_lufs", .. }));
            assert_ne!(refused, allowed, "{target}");
        }
    }

    #[test]
    fn secrets_do_not_show_in_debug() {
        let mut config = config("ws://x");
        config.credentials = Credentials::ApiKey { key: "k".into(), secret: "hunter2".into() };
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("4h"), Ok(Duration::from_secs(4 * 3600)));
        assert!(duration("4d").unwrap_err().contains("no unit"));
        assert!(duration("soon").unwrap_err().contains("no time"));
        assert!(duration("99999999999999999999h").is_err());
    }
}
