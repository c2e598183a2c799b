//! What to join, as whom, and how long to try.

use std::fmt;
use std::time::Duration;

use super::error::RoomError;
#[cfg(feature = "testkit")]
use super::net::impairment::Impairment;
use super::token::{self, Ticket};

/// How we prove that we may join.
#[derive(Clone)]
pub enum Credentials {
    /// The server's API key and secret: callreel mints its own token, that of a hidden recorder.
    ApiKey {
        /// The key's name.
        key: String,
        /// Its secret.
        secret: String,
    },
    /// A ready access token; room and identity are taken from it.
    Token(String),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ApiKey { key, .. } => f.debug_struct("ApiKey").field("key", key).finish_non_exhaustive(),
            Self::Token(_) => f.write_str("Token(..)"),
        }
    }
}

/// Which ways audio may take to us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportPolicy {
    /// UDP, and TCP as well where UDP does not connect within [`Timeouts::udp`]. The default.
    #[default]
    Auto,
    /// UDP only.
    Udp,
    /// TCP only.
    Tcp,
}

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From the first packet to the server until its JoinResponse. Default 10 s, the time three of the server's own
    /// attempts at opening a room take.
    pub join: Duration,
    /// How long UDP may take to connect before TCP is tried beside it. Default 3 s.
    pub udp: Duration,
    /// How long media may stay away before the connection is made anew. Default 10 s: the server gives a participant
    /// up after about 15.
    pub media: Duration,
    /// How long a lost connection is worked on before the engine gives up. Default 120 s.
    pub reconnect: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(10),
            udp: Duration::from_secs(3),
            media: Duration::from_secs(10),
            reconnect: Duration::from_secs(120),
        }
    }
}

/// What to join and how. Made by [`RoomConfig::new`] and the setters; checked by [`Room::connect`](super::Room::connect).
#[derive(Clone, Debug)]
pub struct RoomConfig {
    pub(super) url: String,
    pub(super) credentials: Credentials,
    pub(super) room: Option<String>,
    pub(super) identity: Option<String>,
    pub(super) name: String,
    pub(super) transport: TransportPolicy,
    pub(super) timeouts: Timeouts,
    pub(super) backlog: usize,
    #[cfg(feature = "testkit")]
    pub(super) impairment: Option<Impairment>,
}

impl RoomConfig {
    /// Joins at `url` (`ws`, `wss`, `http` or `https`) with `credentials`.
    pub fn new(url: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            url: url.into(),
            credentials,
            room: None,
            identity: None,
            name: String::new(),
            transport: TransportPolicy::default(),
            timeouts: Timeouts::default(),
            backlog: 60_000,
            #[cfg(feature = "testkit")]
            impairment: None,
        }
    }

    /// Joins elsewhere.
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// The room's name. Needed with an API key; a token names the room itself.
    pub fn room(mut self, room: impl Into<String>) -> Self {
        self.room = Some(room.into());
        self
    }

    /// Who we are in the room; must be unique there. Default `callreel-` and a random id. A token names it itself.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// The name shown where a server's tools list participants. Default empty.
    pub fn display_name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Which ways audio may take. Default [`TransportPolicy::Auto`].
    pub fn transport(mut self, transport: TransportPolicy) -> Self {
        self.transport = transport;
        self
    }

    /// How long each step may take.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// How many packets may wait for a consumer that does not fetch them. Default 60 000: ten minutes of two talkers,
    /// or twelve seconds of a hundred; about 300 bytes each.
    pub fn backlog(mut self, packets: usize) -> Self {
        self.backlog = packets;
        self
    }

    /// Loses packets on purpose, at our own socket.
    #[cfg(feature = "testkit")]
    pub fn impairment(mut self, impairment: Impairment) -> Self {
        self.impairment = Some(impairment);
        self
    }

    /// Checks the settings and settles who joins what.
    pub(super) fn resolve(&self) -> Result<Resolved, RoomError> {
        self.check_url()?;
        if self.backlog == 0 {
            return Err(RoomError::config("backlog", "must be at least one packet"));
        }
        match &self.credentials {
            Credentials::Token(token) => self.resolve_token(token),
            Credentials::ApiKey { key, secret } => self.resolve_key(key, secret),
        }
    }

    fn check_url(&self) -> Result<(), RoomError> {
        if self.url.trim().is_empty() {
            return Err(RoomError::config("url", "is missing"));
        }
        let rest = ["ws://", "wss://", "http://", "https://"].iter().find_map(|scheme| self.url.strip_prefix(scheme));
        match rest {
            Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(()),
            Some(_) => Err(RoomError::config("url", format!("{:?} names no host", self.url))),
            None => Err(RoomError::config(
                "url",
                format!("{:?} does not start with ws://, wss://, http:// or https://", self.url),
            )),
        }
    }

    fn resolve_token(&self, token: &str) -> Result<Resolved, RoomError> {
        if token.is_empty() {
            return Err(RoomError::config("token", "is empty"));
        }
        let ticket = token::inspect(token)?;
        if let Some(room) = self.room.as_ref().filter(|room| **room != ticket.room) {
            let problem = format!("{room:?} was asked for, but the token is for {:?}", ticket.room);
            return Err(RoomError::config("room", problem));
        }
        Ok(Resolved { ticket, token: token.to_owned() })
    }

    fn resolve_key(&self, key: &str, secret: &str) -> Result<Resolved, RoomError> {
        if key.is_empty() {
            return Err(RoomError::config("api_key", "is empty"));
        }
        if secret.is_empty() {
            return Err(RoomError::config("api_secret", "is empty"));
        }
        let room = match self.room.as_deref() {
            Some(room) if !room.is_empty() => room,
            _ => return Err(RoomError::config("room", "is missing; only a token names the room itself")),
        };
        let identity = match self.identity.as_deref() {
            Some("") => return Err(RoomError::config("identity", "is empty")),
            Some(identity) => identity.to_owned(),
            None => format!("callreel-{}", ulid::Ulid::new()),
        };
        let token = token::mint(key, secret, room, &identity, &self.name)?;
        Ok(Resolved { ticket: Ticket { identity, room: room.to_owned(), remarks: Vec::new() }, token })
    }
}

/// Settings that passed their checks.
#[derive(Clone)]
pub(super) struct Resolved {
    pub(super) ticket: Ticket,
    pub(super) token: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_key() -> RoomConfig {
        let credentials =
            Credentials::ApiKey { key: "devkey".into(), secret: "very-secret-words-of-thirty-two-c".into() };
        RoomConfig::new("ws://127.0.0.1:7880", credentials).room("support")
    }

    #[test]
    fn each_mistake_is_named_by_its_setting() {
        let cases = [
            (RoomConfig { url: String::new(), ..with_key() }, "url"),
            (RoomConfig { url: "127.0.0.1:7880".into(), ..with_key() }, "url"),
            (RoomConfig { url: "ws:///rtc".into(), ..with_key() }, "url"),
            (RoomConfig { room: None, ..with_key() }, "room"),
            (with_key().room(""), "room"),
            (with_key().identity(""), "identity"),
            (with_key().backlog(0), "backlog"),
            (RoomConfig::new("ws://x", Credentials::ApiKey { key: String::new(), secret: "s".into() }), "api_key"),
            (RoomConfig::new("ws://x", Credentials::ApiKey { key: "k".into(), secret: String::new() }), "api_secret"),
            (RoomConfig::new("ws://x", Credentials::Token(String::new())), "token"),
        ];
        for (config, name) in cases {
            match config.resolve().map(|resolved| resolved.ticket) {
                Err(RoomError::Config { field, .. }) => assert_eq!(field, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_token_that_contradicts_the_room_is_refused() {
        let token = with_key().resolve().unwrap().token;
        let config = RoomConfig::new("ws://127.0.0.1:7880", Credentials::Token(token));
        assert_eq!(config.resolve().unwrap().ticket.room, "support");
        assert!(matches!(config.room("sales").resolve(), Err(RoomError::Config { field: "room", .. })));
    }

    #[test]
    fn identities_are_unique_unless_given() {
        let identity = |config: &RoomConfig| config.resolve().unwrap().ticket.identity;
        assert_ne!(identity(&with_key()), identity(&with_key()));
        assert_eq!(identity(&with_key().identity("bot")), "bot");
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let token = with_key().resolve().unwrap().token;
        let shown = format!("{:?} {:?}", with_key(), Credentials::Token(token.clone()));
        assert!(shown.contains("devkey") && !shown.contains("very-secret") && !shown.contains(&token));
    }
}
