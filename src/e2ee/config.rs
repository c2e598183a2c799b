//! Which keys there are, and how they are used.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// How many keys a participant may have at a time; a frame's key index counts modulo this.
pub const RING_SIZE: u8 = 16;

/// What a key is made from. Never shown by `Debug`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum KeyMaterial {
    /// A passphrase, stretched with PBKDF2.
    Passphrase(Vec<u8>),
    /// Bytes that are as random as a key, expanded with HKDF.
    Raw(Vec<u8>),
}

impl KeyMaterial {
    /// A passphrase.
    pub fn passphrase(text: impl Into<String>) -> Self {
        Self::Passphrase(text.into().into_bytes())
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passphrase(_) => "Passphrase(..)",
            Self::Raw(_) => "Raw(..)",
        })
    }
}

/// Reads a key as people write it: a passphrase, or `hex:` or `base64:` before bytes.
impl FromStr for KeyMaterial {
    type Err = E2eeError;

    fn from_str(text: &str) -> Result<Self, E2eeError> {
        let raw = if let Some(digits) = text.strip_prefix("hex:") {
            let digits = Some(digits.trim()).filter(|digits| digits.len() % 2 == 0);
            digits.and_then(crate::hex::decode).ok_or(E2eeError::Unreadable("pairs of hexadecimal digits"))?
        } else if let Some(text) = text.strip_prefix("base64:") {
            BASE64_STANDARD.decode(text.trim()).map_err(|_| E2eeError::Unreadable("base64"))?
        } else if text.is_empty() {
            return Err(E2eeError::Empty);
        } else {
            return Ok(Self::passphrase(text));
        };
        if raw.is_empty() { Err(E2eeError::Empty) } else { Ok(Self::Raw(raw)) }
    }
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum E2eeError {
    /// There is nothing.
    #[error("the key is empty")]
    Empty,
    /// Bytes that are not written as they should be.
    #[error("the key is not in {0}")]
    Unreadable(&'static str),
}

/// The keys of a call, and how to use them. Made by [`new`](Self::new) and the setters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct E2eeConfig {
    pub(super) shared: BTreeMap<u8, KeyMaterial>,
    pub(super) participants: BTreeMap<String, BTreeMap<u8, KeyMaterial>>,
    pub(super) ratchet_window: u8,
    pub(super) failure_tolerance: Option<u32>,
}

impl Default for E2eeConfig {
    fn default() -> Self {
        Self { shared: BTreeMap::new(), participants: BTreeMap::new(), ratchet_window: 16, failure_tolerance: None }
    }
}

impl E2eeConfig {
    /// No key at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key that everybody uses who has none of their own, in slot `index` of the ring (modulo [`RING_SIZE`]; senders
    /// use 0 unless told otherwise).
    pub fn shared_key(mut self, index: u8, key: KeyMaterial) -> Self {
        self.shared.insert(index % RING_SIZE, key);
        self
    }

    /// A key of one participant's own, in slot `index` of its ring. The shared ones do not count for this participant then.
    pub fn participant_key(mut self, identity: impl Into<String>, index: u8, key: KeyMaterial) -> Self {
        self.participants.entry(identity.into()).or_default().insert(index % RING_SIZE, key);
        self
    }

    /// How many keys ahead of a sender's last one are tried where that does not fit. Default 16, as LiveKit's native
    /// SDKs do; 0 where nobody ratchets.
    pub fn ratchet_window(mut self, keys: u8) -> Self {
        self.ratchet_window = keys;
        self
    }

    /// After how many frames in a row that a key did not open it is not tried any more. Default never: trying is cheap, and
    /// a sender may turn to the right key at any time.
    pub fn failure_tolerance(mut self, frames: u32) -> Self {
        self.failure_tolerance = Some(frames);
        self
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.participants.is_empty()
    }

    /// The key of a slot, and whose it is: `None` for a shared one.
    pub(super) fn key(&self, identity: &str, index: u8) -> Option<(Option<&str>, &KeyMaterial)> {
        match self.participants.get_key_value(identity) {
            Some((identity, ring)) => ring.get(&index).map(|key| (Some(identity.as_str()), key)),
            None => self.shared.get(&index).map(|key| (None, key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_people_write_them() {
        assert_eq!("open sesame".parse(), Ok(KeyMaterial::passphrase("open sesame")));
        assert_eq!("hex:00ff".parse(), Ok(KeyMaterial::Raw(vec![0, 255])));
        assert_eq!("base64:AP8=".parse(), Ok(KeyMaterial::Raw(vec![0, 255])));
        assert_eq!("".parse::<KeyMaterial>(), Err(E2eeError::Empty));
        assert_eq!("hex:".parse::<KeyMaterial>(), Err(E2eeError::Empty));
        assert!(matches!("hex:0g".parse::<KeyMaterial>(), Err(E2eeError::Unreadable(_))));
        assert!(matches!("base64:?".parse::<KeyMaterial>(), Err(E2eeError::Unreadable(_))));
    }

    #[test]
    fn keys_stay_out_of_debug_output() {
        let config = E2eeConfig::new().shared_key(0, KeyMaterial::passphrase("sesame"));
        let shown = format!("{:?}", config.participant_key("ann", 1, KeyMaterial::Raw(vec![77; 16])));
        assert!(shown.contains("ann") && !shown.contains("sesame") && !shown.contains("77"), "{shown}");
    }

    #[test]
    fn a_participant_with_keys_of_its_own_uses_no_other() {
        let config = E2eeConfig::new().shared_key(17, KeyMaterial::passphrase("all")).participant_key(
            "ann",
            0,
            KeyMaterial::passphrase("ann's"),
        );
        assert_eq!(config.key("bob", 1), Some((None, &KeyMaterial::passphrase("all"))));
        assert_eq!(config.key("bob", 0), None);
        assert_eq!(config.key("ann", 0), Some((Some("ann"), &KeyMaterial::passphrase("ann's"))));
        assert_eq!(config.key("ann", 1), None);
    }
}
