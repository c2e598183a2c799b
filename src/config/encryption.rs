//! To whom recordings are encrypted, from flags, environment and file.

use std::path::Path;

use super::{ConfigError, ConfigFile};
use crate::seal::{Recipients, SealError};

/// Reads to whom recordings are encrypted: `keys`, as lists of public keys, and those in the file at `path`. Where neither is
/// given, what the configuration file says. Nobody at all: recordings are plain.
///
/// # Errors
/// [`ConfigError::Invalid`] for what is no public key, by its text, a file that cannot be read, and for a place that is given
/// and names nobody: whoever asks for encryption never gets a recording in plain.
pub fn recipients(keys: &[String], path: Option<&Path>, file: &ConfigFile) -> Result<Recipients, ConfigError> {
    if keys.is_empty() && path.is_none() {
        let keys: &[String] = file.encrypt_to.as_ref().map_or(&[], |keys| &keys.0);
        return read(keys, file.encrypt_to.is_some(), file.encrypt_to_file.as_deref());
    }
    read(keys, !keys.is_empty(), path)
}

fn read(keys: &[String], is_asked: bool, path: Option<&Path>) -> Result<Recipients, ConfigError> {
    let invalid = |key: &'static str, why: String| ConfigError::Invalid { key, why };
    let parse = |key: &'static str, text: &str| {
        let found = Recipients::parse(text).map_err(|error: SealError| invalid(key, error.to_string()))?;
        if found.is_empty() { Err(invalid(key, "it names no public key".into())) } else { Ok(found) }
    };
    let mut all = Vec::new();
    if is_asked {
        all.extend(parse("encrypt_to", &keys.join(","))?.iter().cloned());
    }
    if let Some(path) = path {
        let failed = |why: &dyn std::fmt::Display| invalid("encrypt_to_file", format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let found = parse("encrypt_to_file", &text).map_err(|error| match error {
            ConfigError::Invalid { why, .. } => failed(&why),
            other => other,
        })?;
        all.extend(found.iter().cloned());
    }
    Recipients::new(all).map_err(|error| invalid("encrypt_to", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keys;

    const ONE: &str = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";

    fn another() -> String {
        age::x25519::Identity::generate().to_public().to_string()
    }

    fn named(found: &Recipients) -> Vec<String> {
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn flags_go_before_the_file_and_both_kinds_of_flags_count() {
        let dir = tempfile::tempdir().unwrap();
        let (path, two) = (dir.path().join("keys"), another());
        std::fs::write(&path, format!("# archive\n{two}\n")).unwrap();
        let file = ConfigFile { encrypt_to: Some(Keys(vec![two.clone()])), ..ConfigFile::default() };
        assert_eq!(named(&recipients(&[], None, &file).unwrap()), [&*two]);
        assert_eq!(named(&recipients(&[ONE.into()], None, &file).unwrap()), [ONE]);
        assert_eq!(named(&recipients(&[ONE.into(), ONE.into()], Some(&path), &file).unwrap()), [ONE, &two]);
        let file = ConfigFile { encrypt_to_file: Some(path), ..ConfigFile::default() };
        assert_eq!(named(&recipients(&[], None, &file).unwrap()), [&*two]);
        assert!(recipients(&[], None, &ConfigFile::default()).unwrap().is_empty());
    }

    #[test]
    fn who_asks_for_encryption_never_gets_none() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("keys");
        std::fs::write(&empty, "# nobody yet\n").unwrap();
        let nobody = ConfigFile { encrypt_to: Some(Keys(vec![String::new()])), ..ConfigFile::default() };
        for (keys, path, file) in [
            (&[String::new()][..], None, ConfigFile::default()),
            (&[], Some(empty.as_path()), ConfigFile::default()),
            (&[], Some(Path::new("/nowhere/keys")), ConfigFile::default()),
            (&[ONE.to_owned(), "age1wrong".to_owned()], None, ConfigFile::default()),
            (&[], None, nobody),
            (&[], None, ConfigFile { encrypt_to: Some(Keys(Vec::new())), ..ConfigFile::default() }),
        ] {
            let error = recipients(keys, path, &file).unwrap_err();
            assert!(matches!(&error, ConfigError::Invalid { key, .. } if key.starts_with("encrypt_to")), "{error}");
        }
        let error = recipients(&["age1wrong".into()], None, &ConfigFile::default()).unwrap_err().to_string();
        assert!(error.contains("age1wrong"), "{error}");
    }
}
