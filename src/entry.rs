//! Entry points for voice agents that record their own call in process.
//!
//! An agent calls one of the two when it takes a call and holds the handle until the call is over. Both return at once;
//! whatever goes wrong is logged and told by the handle, and never reaches the call.
//!
//! ```no_run
//! use callreel::entry::{AgentConfig, entrypoint};
//!
//! # async fn agent() -> Result<(), callreel::config::ConfigError> {
//! let config = AgentConfig::from_env()?;
//! let recording = entrypoint("call-1234", &config); // none where recording is switched off
//! // … the agent talks with its caller …
//! if let Some(recording) = recording {
//!     recording.stop();
//!     println!("{:?}", recording.wait().await);
//! }
//! # Ok(())
//! # }
//! ```

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{
    Config, ConfigError, ConfigFile, Destination, E2ee, NameTemplate, Picture, destination, recipients,
};
use crate::e2ee::E2eeConfig;
use crate::egress::FileFormat;
use crate::encode::{Format, UnknownFormat, formats};
use crate::recording::{EndsWith, Recorder, RecordingHandle};
use crate::room::Credentials;
use crate::seal::Recipients;
use crate::store::{Secret, StoreConfig};

/// How long a telephone call may be without its caller before it is over: a caller who hung up does not come back
/// into the same session, so this only spans a leg that the bridge moves.
const CALLER_GONE: Duration = Duration::from_secs(2);

/// How long a test call may be empty before it is over: a browser may reload.
const ROOM_EMPTY: Duration = Duration::from_secs(5);

/// What an agent that records its calls is configured with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AgentConfig {
    /// Whether calls are recorded at all.
    pub enabled: bool,
    /// The LiveKit server.
    pub url: String,
    /// How to get in.
    pub credentials: Credentials,
    /// The directory for the recordings; with a store, what its spool is below.
    pub out: PathBuf,
    /// The store for the recordings. Default: none, they stay in `out`.
    pub store: Option<StoreConfig>,
    /// The recordings' names. Default `{room_name}-{time}`.
    pub name: Option<NameTemplate>,
    /// To whom recordings are encrypted. Default: nobody, they are plain.
    pub encryption: Recipients,
    /// The keys to calls that are encrypted from end to end. Default: none.
    pub e2ee: E2eeConfig,
    /// The picture, which LiveKit Egress records as MP4. Default: none, sound alone.
    pub picture: Option<Picture>,
    /// The formats of sound alone. Default: Ogg.
    pub formats: Vec<Format>,
}

impl AgentConfig {
    /// Recording switched on, into `./recordings`.
    pub fn new(url: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            enabled: true,
            url: url.into(),
            credentials,
            out: PathBuf::from("recordings"),
            store: None,
            name: None,
            encryption: Recipients::default(),
            e2ee: E2eeConfig::default(),
            picture: None,
            formats: vec![Format::Ogg],
        }
    }

    /// From the environment: `ENABLE_AUDIO_RECORDING` (default false), `LIVEKIT_URL` or `LIVEKIT_HOST`,
    /// `LIVEKIT_API_KEY`, `LIVEKIT_API_SECRET`, `RECORDING_FILE_FORMAT` (default ogg; several with commas), `RECORDING_AUDIO_ONLY`
    /// (default true; `false` goes with `mp4`), and a store as [`destination`] reads it: `S3_RECORDING_BUCKET`, `S3_RECORDING_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`… `ENCRYPT_TO`, `ENCRYPT_TO_FILE`, `CALLREEL_E2EE_KEY` and
    /// `CALLREEL_E2EE_KEY_FILE` are as for `callreel record`.
    ///
    /// # Errors
    /// A value that is missing or makes no sense, by its name. While recording is switched off nothing is checked.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let enabled = flag("ENABLE_AUDIO_RECORDING", get("ENABLE_AUDIO_RECORDING"), false)?;
        let mut missing = None;
        let mut needed = |key: &'static str, hint: &'static str, value: Option<String>| {
            value.unwrap_or_else(|| {
                missing.get_or_insert(ConfigError::Missing { key, hint });
                String::new()
            })
        };
        let url = needed("LIVEKIT_URL", "the LiveKit server", get("LIVEKIT_URL").or_else(|| get("LIVEKIT_HOST")));
        let key = needed("LIVEKIT_API_KEY", "the server's API key", get("LIVEKIT_API_KEY"));
        let secret = needed("LIVEKIT_API_SECRET", "the API key's secret", get("LIVEKIT_API_SECRET"));
        if enabled {
            missing.map_or(Ok(()), Err)?;
        }
        let (formats, picture) = if enabled { form(&get)? } else { (vec![Format::Ogg], None) };
        let config = Self { enabled, formats, picture, ..Self::new(url, Credentials::ApiKey { key, secret }) };
        if !enabled {
            return Ok(config);
        }
        let Destination { store, dir, name } = destination(None, &ConfigFile::default(), &get)?;
        let name = name.map(NameTemplate::parse).transpose();
        let name = name.map_err(|error| ConfigError::Invalid { key: "name", why: error.to_string() })?;
        // One that is set and empty was meant to say something.
        let keys: Vec<String> = lookup("ENCRYPT_TO").into_iter().collect();
        let path = lookup("ENCRYPT_TO_FILE").map(PathBuf::from);
        let encryption = recipients(&keys, path.as_deref(), &ConfigFile::default())?;
        let keys = E2ee {
            key: get("CALLREEL_E2EE_KEY").map(Secret::new),
            key_file: get("CALLREEL_E2EE_KEY_FILE").map(PathBuf::from),
            ..E2ee::default()
        };
        Ok(Self { out: dir, store, name, encryption, e2ee: keys.keys()?, ..config })
    }

    fn for_room(&self, room: &str) -> Config {
        let mut config = Config::new(&self.url, self.credentials.clone(), room);
        config.out.clone_from(&self.out);
        config.store.clone_from(&self.store);
        config.encryption.clone_from(&self.encryption);
        config.e2ee.clone_from(&self.e2ee);
        if let Some(name) = &self.name {
            config.name.clone_from(name);
        }
        config.formats.clone_from(&self.formats);
        if self.picture.is_some() {
            (config.picture, config.format) = (self.picture.clone(), FileFormat::Mp4);
        }
        config
    }
}

/// Records a telephone call: waits for the telephone leg (ringing is no fault) and ends when the caller has gone.
///
/// The manifest names caller and agent, with the numbers from the leg's `sip.*` attributes. Gives none where recording
/// is switched off.
pub fn entrypoint(room: &str, config: &AgentConfig) -> Option<RecordingHandle> {
    let mut call = config.for_room(room);
    call.life.stop.ends_with = EndsWith::Caller;
    call.life.stop.departure_timeout = CALLER_GONE;
    start(config, call)
}

/// Records a test call from a browser: whoever comes, until the room is empty again. Gives none where recording is
/// switched off.
pub fn entrypoint_webtest(room: &str, config: &AgentConfig) -> Option<RecordingHandle> {
    let mut call = config.for_room(room);
    call.life.stop.departure_timeout = ROOM_EMPTY;
    start(config, call)
}

fn start(config: &AgentConfig, call: Config) -> Option<RecordingHandle> {
    if !config.enabled {
        tracing::info!(room = %call.room, "recording is switched off");
        return None;
    }
    tracing::info!(room = %call.room, out = %call.out.display(), "recording service initialised");
    Some(Recorder::start(call))
}

/// Which formats are asked for, and whether a picture is.
fn form(get: &impl Fn(&str) -> Option<String>) -> Result<(Vec<Format>, Option<Picture>), ConfigError> {
    let audio_only = flag("RECORDING_AUDIO_ONLY", get("RECORDING_AUDIO_ONLY"), true)?;
    let asked = get("RECORDING_FILE_FORMAT").map_or(Ok(vec![Format::Ogg]), |words| formats(&words));
    let invalid = |error: UnknownFormat| ConfigError::Invalid { key: "RECORDING_FILE_FORMAT", why: error.to_string() };
    match (asked.map_err(invalid)?, audio_only) {
        (formats, true) => Ok((formats, None)),
        (formats, false) if formats == [Format::Mp4] => Ok((formats, Some(Picture::default()))),
        (_, false) => {
            let what = "RECORDING_AUDIO_ONLY=false without RECORDING_FILE_FORMAT=mp4".into();
            Err(ConfigError::NotAvailable { what })
        }
    }
}

fn flag(key: &'static str, value: Option<String>, default: bool) -> Result<bool, ConfigError> {
    match value.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None => Ok(default),
        Some("true" | "1" | "yes" | "on") => Ok(true),
        Some("false" | "0" | "no" | "off") => Ok(false),
        Some(other) => Err(ConfigError::Invalid { key, why: format!("{other:?} is neither true nor false") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Result<AgentConfig, ConfigError> {
        AgentConfig::from_lookup(|name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const SERVER: [(&str, &str); 4] = [
        ("ENABLE_AUDIO_RECORDING", "true"),
        ("LIVEKIT_URL", "ws://127.0.0.1:7880"),
        ("LIVEKIT_API_KEY", "k"),
        ("LIVEKIT_API_SECRET", "s"),
    ];

    #[test]
    fn recording_is_off_unless_switched_on() {
        assert!(!env(&[]).unwrap().enabled);
        assert!(entrypoint("room", &env(&[]).unwrap()).is_none());
        assert!(env(&SERVER).unwrap().enabled);
    }

    #[test]
    fn what_is_missing_is_named_once_it_is_needed() {
        let error = env(&SERVER[..3]).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { key: "LIVEKIT_API_SECRET", .. }), "{error}");
    }

    #[test]
    fn calls_go_into_the_bucket_under_the_names_that_are_known() {
        let bucket = [("S3_RECORDING_BUCKET", "b"), ("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let config = env(&[&SERVER[..], &bucket].concat()).unwrap();
        let call = config.for_room("room-abc123");
        assert!(matches!(&call.store, Some(StoreConfig::S3(s3)) if s3.bucket == "b"), "{:?}", call.store);
        assert_eq!(call.name, NameTemplate::parse("recordings/{room_name}_{YYYYMMDD_HHMMSS}.{ext}").unwrap());
        let half = env(&[&SERVER[..], &bucket[..2]].concat()).unwrap_err();
        assert!(matches!(half, ConfigError::Missing { key: "AWS_SECRET_ACCESS_KEY", .. }), "{half}");
        assert!(env(&bucket[..2]).unwrap().store.is_none(), "nothing is asked of who does not record");
    }

    #[test]
    fn calls_are_encrypted_to_whom_the_environment_names() {
        let key = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
        let call = env(&[&SERVER[..], &[("ENCRYPT_TO", key)]].concat()).unwrap().for_room("room");
        assert_eq!(call.encryption.iter().map(ToString::to_string).collect::<Vec<_>>(), [key]);
        let wrong = env(&[&SERVER[..], &[("ENCRYPT_TO", "age1nobody")]].concat()).unwrap_err();
        assert!(wrong.to_string().contains("age1nobody"), "{wrong}");
        assert!(env(&[&SERVER[..], &[("ENCRYPT_TO", "")]].concat()).is_err(), "asked for, and to nobody");
    }

    #[test]
    fn what_is_not_built_yet_says_so_by_its_name() {
        let error = env(&[&SERVER[..], &[("RECORDING_AUDIO_ONLY", "false")]].concat()).unwrap_err();
        assert!(
            matches!(&error, ConfigError::NotAvailable { what } if what.contains("RECORDING_AUDIO_ONLY")),
            "{error}"
        );
        let sound = env(&[&SERVER[..], &[("RECORDING_FILE_FORMAT", "mp4,webm")]].concat()).unwrap().for_room("room");
        assert!(!sound.uses_egress() && sound.formats == [Format::Mp4, Format::Webm]);
        let unknown = env(&[&SERVER[..], &[("RECORDING_FILE_FORMAT", "avi")]].concat()).unwrap_err();
        assert!(unknown.to_string().contains("avi"), "{unknown}");
        let both = [("RECORDING_FILE_FORMAT", "mp4"), ("RECORDING_AUDIO_ONLY", "false")];
        let call = env(&[&SERVER[..], &both].concat()).unwrap().for_room("room");
        assert!(call.uses_egress() && call.format == FileFormat::Mp4);
    }
}
