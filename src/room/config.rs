//! What to join, as whom, and how long to try.

use std::fmt;
use std::time::Duration;

use super::data::Wanted;
use super::error::RoomError;
#[cfg(feature = "testkit")]
use super::net::impairment::Impairment;
use super::token::{self, Ticket};
use crate::call::TrackKey;
use crate::e2ee::E2eeConfig;

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
    /// UDP, and TCP as well where UDP does not connect within [`Timeouts::udp`], and a relay that the server names where
    /// TCP does not within as long again. The default.
    #[default]
    Auto,
    /// UDP only.
    Udp,
    /// TCP only.
    Tcp,
    /// A relay (TURN) only, of those that the server names.
    Relay,
}

/// Who receives media.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoomEngine {
    /// callreel's own engine, which sees every packet. The default.
    #[default]
    Callreel,
    /// LiveKit's official SDK, which is libwebrtc; only where callreel was built with the feature `libwebrtc`. It hands out
    /// PCM that has been through its jitter buffer, so that tracks are aligned by when that came, and losses are counted by
    /// nobody. It opens no end-to-end encrypted tracks, goes over UDP and TCP as it likes, follows into no other room, and tells
    /// of no remote procedure calls.
    Libwebrtc,
}

impl RoomEngine {
    /// Whether it is in this build.
    pub const fn is_available(self) -> bool {
        match self {
            Self::Callreel => true,
            Self::Libwebrtc => cfg!(feature = "libwebrtc"),
        }
    }
}

/// What to do when the server moves the recorder to another room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoomMovedPolicy {
    /// End: another room is another call. The default.
    #[default]
    Stop,
    /// Go on with whoever is there, in the same recording.
    Follow,
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
    /// How long a lost connection is worked on before the engine gives up, from when it was lost. Default 120 s.
    pub reconnect: Duration,
    /// How long media may be away in one go, whatever becomes of the connection meanwhile, before the engine gives up:
    /// nobody records for that long. Default 120 s.
    pub away: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            join: Duration::from_secs(10),
            udp: Duration::from_secs(3),
            media: Duration::from_secs(10),
            reconnect: Duration::from_secs(120),
            away: Duration::from_secs(120),
        }
    }
}

/// What to join and how. Made by [`RoomConfig::new`] and the setters; checked by [`Room::connect`](super::Room::connect).
#[derive(Clone, Debug)]
pub struct RoomConfig {
    pub(super) urls: Vec<String>,
    pub(super) credentials: Credentials,
    pub(super) room: Option<String>,
    pub(super) identity: Option<String>,
    pub(super) name: String,
    pub(super) engine: RoomEngine,
    pub(super) transport: TransportPolicy,
    pub(super) timeouts: Timeouts,
    pub(super) backlog: usize,
    pub(super) first_track: TrackKey,
    pub(super) wanted: Wanted,
    pub(super) room_moved: RoomMovedPolicy,
    pub(super) e2ee: E2eeConfig,
    /// Certificates that relays may show beside those that this machine trusts (DER).
    pub(super) trusted: Vec<Vec<u8>>,
    #[cfg(feature = "testkit")]
    pub(super) impairment: Option<Impairment>,
}

impl RoomConfig {
    /// Joins at `url` (`ws`, `wss`, `http` or `https`) with `credentials`.
    pub fn new(url: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            urls: vec![url.into()],
            credentials,
            room: None,
            identity: None,
            name: String::new(),
            engine: RoomEngine::default(),
            transport: TransportPolicy::default(),
            timeouts: Timeouts::default(),
            backlog: 60_000,
            first_track: TrackKey(0),
            wanted: Wanted::default(),
            room_moved: RoomMovedPolicy::default(),
            e2ee: E2eeConfig::default(),
            trusted: Vec::new(),
            #[cfg(feature = "testkit")]
            impairment: None,
        }
    }

    /// Joins elsewhere.
    pub fn url(self, url: impl Into<String>) -> Self {
        self.urls([url])
    }

    /// Joins at the first of these servers that can be used; the rest are for when one cannot be reached or fails, at the
    /// start or later. Each may take [`Timeouts::join`]. They must lead to the same rooms.
    pub fn urls<U: Into<String>>(mut self, urls: impl IntoIterator<Item = U>) -> Self {
        self.urls = urls.into_iter().map(Into::into).collect();
        self
    }

    /// What to do when the server moves us to another room. Default [`RoomMovedPolicy::Stop`].
    pub fn room_moved(mut self, policy: RoomMovedPolicy) -> Self {
        self.room_moved = policy;
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

    /// Who receives media. Default [`RoomEngine::Callreel`].
    pub fn engine(mut self, engine: RoomEngine) -> Self {
        self.engine = engine;
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

    /// The topics of data messages, and the names of remote procedures, that are told
    /// ([`RoomEvent::Data`](super::RoomEvent::Data)), as far as one sender does not send more than twenty a second. Default
    /// none: the server sends them all the same, and the rest is thrown away uncounted.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.wanted.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Whether keys pressed on telephones are told, as data messages are. Default no.
    pub fn dtmf(mut self, wanted: bool) -> Self {
        self.wanted.dtmf = wanted;
        self
    }

    /// The keys to end-to-end encrypted tracks. Default none: their frames cannot be opened, and
    /// [that is told](super::RoomEvent::Undecryptable). Tracks that are not encrypted are taken as they are.
    pub fn e2ee(mut self, keys: E2eeConfig) -> Self {
        self.e2ee = keys;
        self
    }

    /// Trusts a certificate (DER) where a relay over TLS shows it, beside those that this machine trusts.
    #[cfg(feature = "testkit")]
    pub fn trust(mut self, certificate: Vec<u8>) -> Self {
        self.trusted.push(certificate);
        self
    }

    /// The key of the first track; others follow. For who joins again, and knows tracks by their keys already. Default 0.
    pub fn first_track(mut self, first: TrackKey) -> Self {
        self.first_track = first;
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
        if self.urls.is_empty() {
            return Err(RoomError::config("url", "is missing"));
        }
        self.urls.iter().try_for_each(|url| check_url(url))?;
        if self.backlog == 0 {
            return Err(RoomError::config("backlog", "must be at least one packet"));
        }
        self.check_engine()?;
        match &self.credentials {
            Credentials::Token(token) => self.resolve_token(token),
            Credentials::ApiKey { key, secret } => self.resolve_key(key, secret),
        }
    }

    /// Whether the engine can do what is asked for.
    fn check_engine(&self) -> Result<(), RoomError> {
        if self.engine == RoomEngine::Callreel {
            return Ok(());
        }
        if !self.engine.is_available() {
            return Err(RoomError::config("engine", "libwebrtc is not available in this build"));
        }
        let lacks = |field, what| Err(RoomError::config(field, format!("engine libwebrtc {what}")));
        if !self.e2ee.is_empty() {
            return lacks("e2ee", "opens no end-to-end encrypted tracks");
        }
        if matches!(self.transport, TransportPolicy::Udp | TransportPolicy::Tcp) {
            return lacks("transport", "chooses between UDP and TCP by itself");
        }
        if self.room_moved == RoomMovedPolicy::Follow {
            return lacks("room_moved", "follows into no other room");
        }
        #[cfg(feature = "testkit")]
        if self.impairment.is_some() {
            return lacks("impairment", "has sockets that nobody else sees");
        }
        Ok(())
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

fn check_url(url: &str) -> Result<(), RoomError> {
    if url.trim().is_empty() {
        return Err(RoomError::config("url", "is missing"));
    }
    let rest = ["ws://", "wss://", "http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    match rest {
        Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(()),
        Some(_) => Err(RoomError::config("url", format!("{url:?} names no host"))),
        None => {
            Err(RoomError::config("url", format!("{url:?} does not start with ws://, wss://, http:// or https://")))
        }
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
            (with_key().url(""), "url"),
            (with_key().url("127.0.0.1:7880"), "url"),
            (with_key().url("ws:///rtc"), "url"),
            (with_key().urls([""; 0]), "url"),
            (with_key().urls(["ws://127.0.0.1:7880", "calls.example"]), "url"),
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
    fn an_engine_that_is_not_in_this_build_is_refused() {
        let refused = |config: RoomConfig| match config.engine(RoomEngine::Libwebrtc).resolve().map(|_| ()) {
            Err(RoomError::Config { field, .. }) => Some(field),
            Ok(()) => None,
            Err(other) => panic!("{other}"),
        };
        let is_here = RoomEngine::Libwebrtc.is_available();
        assert!(RoomEngine::Callreel.is_available());
        assert_eq!(is_here, cfg!(feature = "libwebrtc"));
        for (config, field) in [
            (with_key(), None),
            (with_key().transport(TransportPolicy::Relay), None),
            (with_key().transport(TransportPolicy::Tcp), Some("transport")),
            (with_key().room_moved(RoomMovedPolicy::Follow), Some("room_moved")),
        ] {
            assert_eq!(refused(config), if is_here { field } else { Some("engine") });
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
