//! Who is to be told, and how long it is tried.

use std::fmt;
use std::time::Duration;

use reqwest::Url;

use super::event::{EventKind, Format};
use super::guard::Guard;
use crate::store::Secret;

/// What cannot be right about a configuration of webhooks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotifyError {
    /// A receiver's address or name makes no sense. Does not show the address: there may be a password in it.
    #[error("webhook {name}: {why}")]
    Endpoint {
        /// The receiver.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// What sends cannot be made.
    #[error("webhooks cannot be sent: {0}")]
    Client(String),
}

/// One receiver.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What it is called in the catalogue and in logs; what waits for a name is sent to whatever address that has.
    pub name: String,
    /// Its address, `https://…` or `http://…`; may hold secrets.
    pub url: String,
    /// What bodies to it are signed with; unsigned without.
    pub secret: Option<Secret>,
    /// How it wants to be told.
    pub format: Format,
    /// What it wants to be told; everything that its format has where this is empty.
    pub events: Vec<EventKind>,
}

impl Endpoint {
    /// A receiver of everything in callreel's own format, unsigned.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into(), secret: None, format: Format::Callreel, events: Vec::new() }
    }

    /// Whether it is to be told that.
    pub(super) fn wants(&self, kind: EventKind) -> bool {
        self.format.tells(kind) && (self.events.is_empty() || self.events.contains(&kind))
    }

    /// Its address, if webhooks may go there.
    pub(super) fn checked(&self, guard: Guard) -> Result<Url, NotifyError> {
        let wrong = |why: String| NotifyError::Endpoint { name: self.name.clone(), why };
        let url: Url = self.url.parse().map_err(|error| wrong(format!("its address cannot be right: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("its address has to begin with https:// or http://, not {}:", url.scheme())));
        }
        let host = url.host_str().ok_or_else(|| wrong("its address names no host".to_owned()))?;
        guard.check_host(host).map_err(|forbidden| wrong(forbidden.to_string()))?;
        Ok(url)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, url: _, secret, format, events } = self;
        f.debug_struct("Endpoint")
            .field("name", name)
            .field("secret", secret)
            .field("format", format)
            .field("events", events)
            .finish_non_exhaustive()
    }
}

/// Who is to be told, and how long it is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotifyConfig {
    /// The receivers, each with a name of its own.
    pub endpoints: Vec<Endpoint>,
    /// Whether receivers may be in private networks or on this machine. Default: no.
    pub allow_private: bool,
    /// How long a receiver may take to answer. Default: 10 s.
    pub timeout: Duration,
    /// How long after a first attempt that failed the second comes. Default: 5 s; each further wait is twice as long.
    pub first_wait: Duration,
    /// The longest wait. Default: 4 h.
    pub longest_wait: Duration,
    /// How often it is tried at most. Default: 30.
    pub max_attempts: u32,
    /// How long after it happened it is tried at most. Default: 3 days.
    pub max_age: Duration,
    /// How many deliveries to one receiver are under way at most. Default: 4.
    pub at_once: u32,
    /// How often it is looked for what other processes have stored. Default: 15 s.
    pub look_every: Duration,
}

impl Default for NotifyConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            allow_private: false,
            timeout: Duration::from_secs(10),
            first_wait: Duration::from_secs(5),
            longest_wait: Duration::from_secs(4 * 3_600),
            max_attempts: 30,
            max_age: Duration::from_secs(3 * 24 * 3_600),
            at_once: 4,
            look_every: Duration::from_secs(15),
        }
    }
}

impl NotifyConfig {
    /// Whether everybody can be told.
    ///
    /// # Errors
    ///
    /// [`NotifyError::Endpoint`] for an address that makes no sense or is forbidden, and for a name that two have.
    pub fn validate(&self) -> Result<(), NotifyError> {
        for (number, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.checked(Guard { allow_private: self.allow_private })?;
            let why = match &endpoint.name {
                name if name.is_empty() => "it has no name",
                name if self.endpoints[..number].iter().any(|other| other.name == *name) => "two have this name",
                _ => continue,
            };
            return Err(NotifyError::Endpoint { name: endpoint.name.clone(), why: why.to_owned() });
        }
        Ok(())
    }

    /// How long after attempt number `attempts` (from 1) the next comes. `chance` in [0, 1) moves it within its second half, so
    /// that those who failed together do not come back together.
    pub(super) fn wait(&self, attempts: u32, chance: f64) -> Duration {
        let doubled = self.first_wait.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest_wait).mul_f64(0.5 + chance / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_be_told_are_refused_at_once() {
        let validate = |url: &str, allow_private| {
            NotifyConfig { endpoints: vec![Endpoint::new("w", url)], allow_private, ..NotifyConfig::default() }
                .validate()
        };
        for url in ["", "hooks", "ftp://x.example/", "https://", "file:///etc/passwd"] {
            assert!(validate(url, true).is_err(), "{url}");
        }
        for url in
            ["http://127.0.0.1/", "http://[::1]/x", "http://2130706433/", "http://0x7f.1/", "http://169.254.169.254"]
        {
            assert!(validate(url, false).is_err(), "{url}");
            assert!(validate(url, true).is_ok(), "{url}");
        }
        let error = validate("https://user:hunter2@10.0.0.1/", false).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        let debug = format!("{:?}", Endpoint::new("w", "https://user:hunter2@hooks.example/"));
        assert!(!debug.contains("hunter2"), "{debug}");
        let twice = vec![Endpoint::new("w", "https://a.example"), Endpoint::new("w", "https://b.example")];
        assert!(NotifyConfig { endpoints: twice, ..NotifyConfig::default() }.validate().is_err());
    }

    #[test]
    fn waits_double_up_to_the_longest_and_differ() {
        let config = NotifyConfig::default();
        let waits: Vec<u64> =
            (1..=14).map(|attempts| config.wait(attempts, 0.999_999).as_secs_f64().round() as u64).collect();
        assert_eq!(waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits[12..], [14_400, 14_400]);
        assert_eq!(config.wait(1, 0.0), Duration::from_millis(2_500));
        assert_eq!(config.wait(u32::MAX, 0.0), Duration::from_secs(7_200));
    }
}
