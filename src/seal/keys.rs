//! Who can hear a recording: public keys in the recorder's hands, secret ones only where it is opened.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SealError;

/// How many public keys a recording can be sealed to: each adds about a hundred bytes to every segment.
pub const MAX_RECIPIENTS: usize = 32;

/// What secret keys begin with.
const SECRET: &str = "AGE-SECRET-KEY-";

/// One who can hear a recording: an age public key (X25519), `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(age::x25519::Recipient);

/// Those who can hear a recording, each by themselves. Nobody: it is not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recipients(Vec<Recipient>);

/// Secret keys (X25519), of which any opens what was sealed to it.
#[derive(Clone)]
pub struct Identities(Vec<age::x25519::Identity>);

impl FromStr for Recipient {
    type Err = SealError;

    fn from_str(key: &str) -> Result<Self, SealError> {
        if key.get(..SECRET.len()).is_some_and(|start| start.eq_ignore_ascii_case(SECRET)) {
            return Err(SealError::SecretRecipient);
        }
        key.parse().map(Self).map_err(|why| SealError::Recipient { key: key.to_owned(), why })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Recipients {
    /// These, each once.
    ///
    /// # Errors
    /// [`SealError::TooManyRecipients`] for more than [`MAX_RECIPIENTS`].
    pub fn new(keys: impl IntoIterator<Item = Recipient>) -> Result<Self, SealError> {
        let mut all: Vec<Recipient> = Vec::new();
        for key in keys {
            if !all.contains(&key) {
                all.push(key);
            }
        }
        if all.len() > MAX_RECIPIENTS {
            return Err(SealError::TooManyRecipients(all.len()));
        }
        Ok(Self(all))
    }

    /// Reads public keys with commas, blanks or ends of lines between; what follows a `#` in a line is not read. That is
    /// the form of age's own files of recipients, too.
    ///
    /// # Errors
    /// What is no public key, by its text.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let code = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let words = code.flat_map(|line| line.split(|c: char| c == ',' || c.is_whitespace()));
        let keys = words.filter(|word| !word.is_empty()).map(str::parse).collect::<Result<Vec<_>, _>>()?;
        Self::new(keys)
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Recipient> {
        self.0.iter()
    }

    /// As the age library takes them.
    pub(super) fn as_age(&self) -> impl Iterator<Item = &dyn age::Recipient> {
        self.0.iter().map(|key| &key.0 as &dyn age::Recipient)
    }
}

impl Serialize for Recipients {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(ToString::to_string))
    }
}

impl<'de> Deserialize<'de> for Recipients {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let keys = Vec::<String>::deserialize(deserializer)?;
        let keys = keys.iter().map(|key| key.parse()).collect::<Result<Vec<Recipient>, _>>();
        keys.and_then(Self::new).map_err(serde::de::Error::custom)
    }
}

impl Identities {
    /// Reads a key file as `age-keygen` writes it: a secret key a line, blank lines and comments (`#`) between.
    ///
    /// # Errors
    /// [`SealError::Identity`] for a line that is none of these, such as one of a file that is itself encrypted;
    /// [`SealError::NoIdentity`] where there is no key.
    pub fn parse(text: &str) -> Result<Self, SealError> {
        let mut keys = Vec::new();
        for (number, line) in text.lines().map(str::trim).enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = line.parse().map_err(|why| SealError::Identity { line: number + 1, why })?;
            keys.push(key);
        }
        if keys.is_empty() { Err(SealError::NoIdentity) } else { Ok(Self(keys)) }
    }

    /// As the age library takes them.
    pub(super) fn as_age(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|key| key as &dyn age::Identity)
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({} secret keys)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use age::secrecy::ExposeSecret;

    use super::*;

    fn pair() -> (String, String) {
        let key = age::x25519::Identity::generate();
        (key.to_string().expose_secret().to_owned(), key.to_public().to_string())
    }

    #[test]
    fn public_keys_are_read_from_lists_and_files() {
        let ((_, one), (_, two)) = (pair(), pair());
        let listed = Recipients::parse(&format!("{one},{two}, {one}")).unwrap();
        let in_file = Recipients::parse(&format!("# ours\n{one}\n\n{two} # theirs\n")).unwrap();
        assert_eq!(listed, in_file);
        assert_eq!(listed.iter().map(ToString::to_string).collect::<Vec<_>>(), [one, two]);
        assert!(Recipients::parse(" \n# nobody\n").unwrap().is_empty());
        let json = serde_json::to_string(&listed).unwrap();
        assert_eq!(serde_json::from_str::<Recipients>(&json).unwrap(), listed);
    }

    #[test]
    fn what_is_no_public_key_is_named_and_a_secret_one_is_not_repeated() {
        let (secret, public) = pair();
        for bad in ["age1xyz", "ssh-ed25519", &public[..61], &public.replace("age1", "age2")] {
            let error = Recipients::parse(&format!("{public},{bad}")).unwrap_err();
            assert!(matches!(&error, SealError::Recipient { key, .. } if key == bad), "{error}");
        }
        for secret in [secret.clone(), secret.to_lowercase(), format!("{secret}x")] {
            let error = Recipients::parse(&secret).unwrap_err();
            assert!(matches!(error, SealError::SecretRecipient), "{error}");
            assert!(!error.to_string().to_uppercase().contains(&secret.to_uppercase()[15..]));
        }
        let many = (0..=MAX_RECIPIENTS).map(|_| pair().1.parse().unwrap());
        assert!(matches!(Recipients::new(many), Err(SealError::TooManyRecipients(33))));
    }

    #[test]
    fn key_files_are_read_and_what_is_none_is_told_by_its_line() {
        let (secret, public) = pair();
        let text = format!("# created: today\n# public key: {public}\n\n{secret}\n");
        let identities = Identities::parse(&text).unwrap();
        assert_eq!(format!("{identities:?}"), "Identities(1 secret keys)");
        let error = Identities::parse(&format!("{secret}\n{public}\n")).unwrap_err();
        assert!(matches!(error, SealError::Identity { line: 2, .. }) && !error.to_string().contains(&secret));
        assert!(matches!(Identities::parse("# nothing\n"), Err(SealError::NoIdentity)));
    }
}
