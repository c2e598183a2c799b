//! The keys to end-to-end encrypted calls, from flags, environment and file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::e2ee::{E2eeConfig, KeyMaterial, RING_SIZE};
use crate::store::Secret;

/// `e2ee` in the configuration file, and the flags of the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct E2ee {
    /// The key that all participants share: a passphrase, or `hex:` or `base64:` before bytes.
    pub key: Option<Secret>,
    /// A file that holds it, instead.
    pub key_file: Option<PathBuf>,
    /// Its place in the ring of keys. 0 unless said.
    pub key_index: Option<u8>,
    /// Keys of single participants, by identity; the shared one is not used for them.
    pub participants: BTreeMap<String, Secret>,
    /// How many keys ahead are tried where a sender's last one does not fit.
    pub ratchet_window: Option<u8>,
    /// After how many failures in a row a key is not tried any more. Never unless said.
    pub failure_tolerance: Option<u32>,
}

impl E2ee {
    /// What is said here, and where nothing is, by `other`. Keys said here replace all of the other's.
    pub fn or(self, other: Self) -> Self {
        let keys = if self.has_keys() { &self } else { &other };
        Self {
            key: keys.key.clone(),
            key_file: keys.key_file.clone(),
            participants: keys.participants.clone(),
            key_index: self.key_index.or(other.key_index),
            ratchet_window: self.ratchet_window.or(other.ratchet_window),
            failure_tolerance: self.failure_tolerance.or(other.failure_tolerance),
        }
    }

    /// The keys, ready for use.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] for two shared keys, a key that is empty or not what it claims to be, a file that cannot be
    /// read, and a place that the ring does not have.
    pub fn keys(&self) -> Result<E2eeConfig, ConfigError> {
        let index = self.key_index.unwrap_or(0);
        if index >= RING_SIZE {
            return Err(invalid("e2ee_key_index", format!("{index} is not between 0 and {}", RING_SIZE - 1)));
        }
        let mut config = E2eeConfig::new();
        match (&self.key, &self.key_file) {
            (Some(_), Some(_)) => {
                return Err(invalid("e2ee_key", "there is a key and a file that holds one: only one is shared".into()));
            }
            (Some(key), None) => config = config.shared_key(index, read("e2ee_key", key.expose())?),
            (None, Some(path)) => config = config.shared_key(index, read_file(path)?),
            (None, None) => {}
        }
        for (who, key) in &self.participants {
            config = config.participant_key(who, index, read("e2ee_participant_key", key.expose())?);
        }
        if let Some(window) = self.ratchet_window {
            config = config.ratchet_window(window);
        }
        if let Some(tolerance) = self.failure_tolerance {
            config = config.failure_tolerance(tolerance);
        }
        Ok(config)
    }

    fn has_keys(&self) -> bool {
        self.key.is_some() || self.key_file.is_some() || !self.participants.is_empty()
    }
}

/// Reads `WHO=KEY`; the key may hold further signs.
///
/// # Errors
/// [`ConfigError::Invalid`] where nobody or nothing is named. The message does not hold the key.
pub fn participant_key(text: &str) -> Result<(String, Secret), ConfigError> {
    match text.split_once('=') {
        Some((who, key)) if !who.is_empty() && !key.is_empty() => Ok((who.to_owned(), Secret::new(key))),
        _ => Err(invalid("e2ee_participant_key", "write an identity and its key, such as ann=KEY".into())),
    }
}

fn read_file(path: &Path) -> Result<KeyMaterial, ConfigError> {
    let failed = |why: &dyn std::fmt::Display| invalid("e2ee_key_file", format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    // Editors end a file with a line's end; a passphrase has none.
    let key = text.strip_suffix('\n').unwrap_or(&text);
    key.strip_suffix('\r').unwrap_or(key).parse().map_err(|error| failed(&error))
}

fn read(field: &'static str, text: &str) -> Result<KeyMaterial, ConfigError> {
    text.parse().map_err(|error: crate::e2ee::E2eeError| invalid(field, error.to_string()))
}

fn invalid(key: &'static str, why: String) -> ConfigError {
    ConfigError::Invalid { key, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(key: &str) -> E2ee {
        E2ee { key: Some(Secret::new(key)), ..E2ee::default() }
    }

    #[test]
    fn keys_are_taken_from_where_they_are_said() {
        let phrase = KeyMaterial::passphrase("open sesame");
        assert_eq!(shared("open sesame").keys().unwrap(), E2eeConfig::new().shared_key(0, phrase.clone()));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "open sesame\r\n").unwrap();
        let from_file = E2ee { key_file: Some(path), key_index: Some(3), ..E2ee::default() };
        assert_eq!(from_file.keys().unwrap(), E2eeConfig::new().shared_key(3, phrase.clone()));
        let participants = [participant_key("ann=open sesame").unwrap()].into();
        let one = E2ee { participants, ratchet_window: Some(0), failure_tolerance: Some(9), ..E2ee::default() };
        let expected = E2eeConfig::new().participant_key("ann", 0, phrase).ratchet_window(0).failure_tolerance(9);
        assert_eq!(one.keys().unwrap(), expected);
        assert!(E2ee::default().keys().unwrap().is_empty());
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = E2ee { ratchet_window: Some(4), key_index: Some(1), ..shared("of the file") };
        assert_eq!(E2ee::default().or(file.clone()), file);
        let flag = shared("of the flag").or(E2ee { participants: [participant_key("ann=k").unwrap()].into(), ..file });
        let expected = E2ee { ratchet_window: Some(4), key_index: Some(1), ..shared("of the flag") };
        assert_eq!(flag, expected);
    }

    #[test]
    fn mistakes_are_named_and_keys_are_not() {
        let both = E2ee { key_file: Some("/nowhere".into()), ..shared("sesame") };
        let nowhere = E2ee { key_file: Some("/nowhere".into()), ..E2ee::default() };
        let cases = [
            (both, "e2ee_key"),
            (nowhere, "e2ee_key_file: /nowhere"),
            (shared(""), "e2ee_key: the key is empty"),
            (shared("hex:sesame"), "e2ee_key: the key is not in pairs"),
            (E2ee { key_index: Some(16), ..shared("sesame") }, "e2ee_key_index: 16"),
        ];
        for (settings, expected) in cases {
            let told = settings.keys().unwrap_err().to_string();
            assert!(told.starts_with(expected) && !told.contains("sesame"), "{told}");
        }
        for text in ["sesame", "=sesame", "ann="] {
            assert!(!participant_key(text).unwrap_err().to_string().contains("sesame"));
        }
        assert_eq!(participant_key("ann=a=b").unwrap(), ("ann".into(), Secret::new("a=b")));
    }
}
