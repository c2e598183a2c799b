//! Layers of configuration: a document that the file, the environment and flags write into, and who wrote what.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::ConfigError;
use super::serve_file::Profile;

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// The defaults of a deployed system.
    Profile(Profile),
    /// The configuration file.
    File(PathBuf),
    /// A variable of the environment.
    Env(&'static str),
    /// A flag.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Profile(profile) => write!(f, "default of {}", profile.as_str()),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// Who said what: places of the configuration, with dots, and where their values come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources(BTreeMap<String, Source>);

impl Sources {
    /// Where the value at `place`, or the section it is in, comes from.
    pub fn of(&self, place: &str) -> Source {
        let mut place = place;
        loop {
            if let Some(source) = self.0.get(place) {
                return source.clone();
            }
            match place.rfind(['.', '[']) {
                Some(at) => place = &place[..at],
                None => return Source::Default,
            }
        }
    }

    /// Notes that everything at `place` comes from `source`.
    pub(super) fn note(&mut self, place: &str, source: Source) {
        let (section, list) = (format!("{place}."), format!("{place}["));
        self.0.retain(|known, _| !known.starts_with(&section) && !known.starts_with(&list));
        self.0.insert(place.to_owned(), source);
    }

    /// An error about the value at `place`; of a section, whoever said anything in it is named.
    pub(super) fn invalid(&self, place: &str, why: impl fmt::Display) -> ConfigError {
        let section = format!("{place}.");
        let source = match self.of(place) {
            Source::Default => {
                self.0.iter().find(|(known, _)| known.starts_with(&section)).map(|(_, source)| source.clone())
            }
            known => Some(known),
        };
        let source_name = source.unwrap_or(Source::Default).to_string();
        ConfigError::Setting { key: place.to_owned(), source_name, why: why.to_string() }
    }
}

/// What a variable's or a flag's text becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Bool,
    Number,
    /// With commas between.
    List,
}

/// Names of the environment and the places they fill. Of several for one place the last that is set holds.
pub(super) const ENVIRONMENT: &[(&str, &str, Kind)] = &[
    ("CALLREEL_PROFILE", "profile", Kind::Text),
    ("LIVEKIT_HOST", "livekit_host", Kind::Text),
    ("LIVEKIT_URL", "livekit_host", Kind::Text),
    ("LIVEKIT_API_KEY", "livekit_api_key", Kind::Text),
    ("LIVEKIT_API_SECRET", "livekit_api_secret", Kind::Text),
    ("WEBHOOK_API_KEY", "webhook_api_key", Kind::Text),
    ("WEBHOOK_API_SECRET", "webhook_api_secret", Kind::Text),
    ("PORT", "listen_port", Kind::Text),
    ("CALLREEL_LISTEN", "listen", Kind::Text),
    ("LAYOUT", "layout", Kind::Text),
    ("RECORDING_FILE_FORMAT", "file_type", Kind::Text),
    ("FILE_TYPE", "file_type", Kind::Text),
    ("CALLREEL_FORMAT", "file_type", Kind::Text),
    ("RECORDING_AUDIO_ONLY", "audio_only", Kind::Bool),
    ("FILE_PATH", "file_path", Kind::Text),
    ("CALLREEL_NAME", "file_path", Kind::Text),
    ("EGRESS_WEBHOOK_URL", "egress_webhook_url", Kind::Text),
    ("ENCRYPT_TO", "encrypt_to", Kind::List),
    ("ENCRYPT_TO_FILE", "encrypt_to_file", Kind::Text),
    ("CALLREEL_E2EE_KEY", "e2ee.key", Kind::Text),
    ("CALLREEL_E2EE_KEY_FILE", "e2ee.key_file", Kind::Text),
    ("CALLREEL_AUTO_RECORD", "auto_record", Kind::Bool),
    ("CALLREEL_CATALOG", "catalog.url", Kind::Text),
    ("CALLREEL_OUT", "out", Kind::Text),
    ("CALLREEL_PLAYBACK_SECRET", "auth.playback_secret", Kind::Text),
    ("CLOUDFLARE_R2_CUSTOM_DOMAIN", "downloads.custom_domain", Kind::Text),
    ("CALLREEL_PUBLIC_URL", "downloads.public_url", Kind::Text),
    ("CALLREEL_RETENTION_DAYS", "retention.days", Kind::Number),
    ("CALLREEL_ENGINE", "engine.engine", Kind::Text),
    ("CALLREEL_FALLBACK", "engine.fallback", Kind::Text),
    ("CALLREEL_FALLBACK_AFTER", "engine.fallback_after", Kind::Text),
    ("CALLREEL_PICTURE", "engine.picture", Kind::Text),
    ("CALLREEL_LAYOUT", "layout", Kind::Text),
    ("CALLREEL_LAYOUT_PAGE", "engine.layout_page", Kind::Text),
    ("CALLREEL_OUTPUTS", "recording.outputs", Kind::List),
    ("CALLREEL_PICTURES", "recording.pictures", Kind::List),
    ("CALLREEL_NAME_PEOPLE", "recording.name_people", Kind::Bool),
    ("CALLREEL_PCM_BITS", "recording.pcm_bits", Kind::Number),
    ("CALLREEL_MP3_BITRATE", "recording.mp3_bitrate", Kind::Number),
    ("CALLREEL_MP4_CODEC", "recording.mp4_codec", Kind::Text),
    ("CALLREEL_SPOOL", "recording.spool", Kind::Text),
    ("CALLREEL_KEEP_SPOOL", "recording.keep_spool", Kind::Text),
    ("CALLREEL_TAIL_EVERY", "recording.tail_every", Kind::Text),
    ("CALLREEL_UPLOAD_PATIENCE", "recording.upload_patience", Kind::Text),
    ("CALLREEL_PAUSE_POLICY", "recording.pause", Kind::Text),
    ("CALLREEL_MAX_DURATION", "recording.max_duration", Kind::Text),
    ("CALLREEL_DEPARTURE_TIMEOUT", "recording.departure_timeout", Kind::Text),
    ("CALLREEL_WEBHOOK_ALLOW_PRIVATE", "webhooks.allow_private", Kind::Bool),
    ("CALLREEL_CORS_ORIGINS", "cors.origins", Kind::List),
    ("CALLREEL_TLS_CERT", "tls.cert", Kind::Text),
    ("CALLREEL_TLS_KEY", "tls.key", Kind::Text),
    ("CALLREEL_MAX_CALLS", "limits.calls", Kind::Number),
    ("CALLREEL_DRAIN_WAIT", "drain.wait", Kind::Text),
    ("CALLREEL_DRAIN", "drain.upload", Kind::Text),
];

/// Pairs of names that two systems have for one thing, whose values must not differ.
const TWINS: &[(&str, &str)] = &[("RECORDING_FILE_FORMAT", "FILE_TYPE")];

/// The document, while layers are put on each other.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub document: Value,
    pub sources: Sources,
}

impl Layers {
    /// Puts what a file says below everything that is put on later.
    pub fn file(&mut self, path: PathBuf, document: Value) {
        let source = Source::File(path);
        note_leaves(&mut self.sources, "", &document, &source);
        self.document = document;
    }

    /// Puts on what the environment says. A variable that is empty is not set.
    ///
    /// # Errors
    /// A value that is none of its kind, and two names of one thing that differ.
    pub fn environment(&mut self, env: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        for (one, other) in TWINS {
            if let (Some(a), Some(b)) = (get(one), get(other))
                && !a.eq_ignore_ascii_case(&b)
            {
                let why = format!("{one} says {a:?} and {other} says {b:?}");
                return Err(ConfigError::Setting { key: "file_type".into(), source_name: "environment".into(), why });
            }
        }
        for (name, place, kind) in ENVIRONMENT {
            if let Some(text) = get(name) {
                self.set(place, &text, *kind, Source::Env(name))?;
            }
        }
        Ok(())
    }

    /// Puts on one value.
    ///
    /// # Errors
    /// A text that is none of its kind.
    pub fn set(&mut self, place: &str, text: &str, kind: Kind, source: Source) -> Result<(), ConfigError> {
        let failed =
            |why: String| Err(ConfigError::Setting { key: place.to_owned(), source_name: source.to_string(), why });
        let value = match kind {
            Kind::Text => Value::from(text),
            Kind::Bool => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Value::from(true),
                "false" | "0" | "no" | "off" => Value::from(false),
                _ => return failed(format!("{text:?} is neither true nor false")),
            },
            Kind::Number => match text.parse::<u64>() {
                Ok(number) => Value::from(number),
                Err(_) => return failed(format!("{text:?} is no number")),
            },
            Kind::List => text.split(',').map(|item| Value::from(item.trim())).collect(),
        };
        put(&mut self.document, place, value);
        self.sources.note(place, source);
        Ok(())
    }
}

fn note_leaves(sources: &mut Sources, place: &str, value: &Value, source: &Source) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                note_leaves(sources, &place, value, source);
            }
        }
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => sources.note(place, source.clone()),
    }
}

fn put(document: &mut Value, place: &str, value: Value) {
    let mut at = document;
    for name in place.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[name];
    }
    *at = value;
}

/// Every value of a document with its place; lists of plain values are one value.
pub(super) fn leaves(place: &str, value: &Value, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                leaves(&place, value, found);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (number, value) in items.iter().enumerate() {
                leaves(&format!("{place}[{number}]"), value, found);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            found.push((place.to_owned(), value.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_layers_hide_earlier_ones_and_say_so() {
        let mut layers = Layers::default();
        let document = serde_json::json!({"livekit_host": "ws://a", "limits": {"calls": 3, "rate": 1.5}, "tls": null});
        layers.file("f.yaml".into(), document);
        let env = |name: &str| (name == "LIVEKIT_URL").then(|| "ws://b".to_owned());
        layers.environment(&env).unwrap();
        layers.set("limits.calls", "7", Kind::Number, Source::Flag("--calls")).unwrap();
        assert_eq!(layers.document["livekit_host"], "ws://b");
        assert_eq!(layers.document["limits"], serde_json::json!({"calls": 7, "rate": 1.5}));
        let told = |place| layers.sources.of(place).to_string();
        assert_eq!(told("livekit_host"), "environment LIVEKIT_URL");
        assert_eq!((told("limits.calls"), told("limits.rate")), ("flag --calls".into(), "file f.yaml".into()));
        assert_eq!((told("limits.burst"), told("tls.cert")), ("default".into(), "default".into()));
    }

    #[test]
    fn a_list_has_the_source_of_the_whole() {
        let mut layers = Layers::default();
        layers.file("f".into(), serde_json::json!({"rules": [{"room": "a"}]}));
        assert_eq!(layers.sources.of("rules[0].room"), Source::File("f".into()));
        let mut found = Vec::new();
        leaves("", &layers.document, &mut found);
        assert_eq!(found, [("rules[0].room".to_owned(), Value::from("a"))]);
    }

    #[test]
    fn texts_that_are_none_of_their_kind_are_named() {
        let mut layers = Layers::default();
        for (kind, text) in [(Kind::Bool, "perhaps"), (Kind::Number, "-1")] {
            let error = layers.set("limits.calls", text, kind, Source::Env("X")).unwrap_err().to_string();
            assert!(
                error.contains("limits.calls") && error.contains(text) && error.contains("environment X"),
                "{error}"
            );
        }
        let env = |name: &str| match name {
            "FILE_TYPE" => Some("MP4".to_owned()),
            "RECORDING_FILE_FORMAT" => Some("ogg".to_owned()),
            _ => None,
        };
        let error = layers.environment(&env).unwrap_err().to_string();
        assert!(error.contains("FILE_TYPE") && error.contains("RECORDING_FILE_FORMAT"), "{error}");
    }
}
