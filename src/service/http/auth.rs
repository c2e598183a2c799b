//! Who asks, and what they may do: API keys, LiveKit's access tokens, and whoever is on this machine where no key is
//! configured.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use livekit_api::access_token::TokenVerifier;
use sha2::{Digest, Sha256};

use crate::catalog::Row;
use crate::clock;
use crate::config::{ScopeWord, ServeConfig};

use super::App;
use super::admin::word;
use super::problem::Problem;
use super::rate::Buckets;

/// Failures a second of one address that are looked at, in the long run.
const FAILURES: f64 = 5.0;

/// Failures of one address at once that are looked at.
const FAILURES_AT_ONCE: u32 = 50;

/// How many keys are remembered that were good.
const GOOD_KEYS: usize = 1_024;

/// The longest key or token that is looked at, in bytes.
const LONGEST: usize = 8 * 1_024;

/// The address of whoever is connected; the server puts it into every request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// What somebody may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes {
    read: bool,
    record: bool,
    delete: bool,
    admin: bool,
}

impl Scopes {
    const ALL: Self = Self { read: true, record: true, delete: true, admin: true };

    fn with(mut self, scope: ScopeWord) -> Self {
        match scope {
            ScopeWord::Read => self.read = true,
            ScopeWord::Record => self.record = true,
            ScopeWord::Delete => self.delete = true,
            ScopeWord::Admin => self = Self::ALL,
        }
        self
    }

    fn has(self, scope: ScopeWord) -> bool {
        match scope {
            ScopeWord::Read => self.read,
            ScopeWord::Record => self.record,
            ScopeWord::Delete => self.delete,
            ScopeWord::Admin => self.admin,
        }
    }
}

impl FromIterator<ScopeWord> for Scopes {
    fn from_iter<I: IntoIterator<Item = ScopeWord>>(words: I) -> Self {
        words.into_iter().fold(Self::default(), Self::with)
    }
}

/// Somebody who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Their name, for logs: `key:NAME`, `livekit:IDENTITY` or `local`.
    pub name: String,
    /// Where they ask from.
    pub address: Option<IpAddr>,
    scopes: Scopes,
    /// The only room they may have to do with.
    room: Option<String>,
}

impl Caller {
    /// Whoever has a signed address, which says itself what it is for.
    pub fn with_signature(address: Option<IpAddr>) -> Self {
        Self { name: "signed-url".into(), address, scopes: Scopes::default(), room: None }
    }

    /// Asks whether they may do something.
    ///
    /// # Errors
    /// [`Problem`] 403.
    pub fn may(&self, scope: ScopeWord) -> Result<(), Problem> {
        if self.scopes.has(scope) {
            return Ok(());
        }
        let word = serde_json::to_value(scope).unwrap_or_default();
        Err(Problem::forbidden(format!("that takes the scope {}", word.as_str().unwrap_or_default())))
    }

    /// Asks whether they may do something in a room.
    ///
    /// # Errors
    /// [`Problem`] 403.
    pub fn may_in(&self, scope: ScopeWord, room: &str) -> Result<(), Problem> {
        self.may(scope)?;
        match &self.room {
            Some(own) if own != room => Err(Problem::forbidden("this token is for another room")),
            Some(_) | None => Ok(()),
        }
    }

    /// Asks whether they may do something with a recording, which to others is not there.
    ///
    /// # Errors
    /// [`Problem`] 403 or 404.
    pub fn may_with(&self, scope: ScopeWord, row: &Row) -> Result<(), Problem> {
        self.may(scope)?;
        match &self.room {
            Some(own) if *own != row.room_name => Err(Problem::no_recording(&row.recording_id)),
            Some(_) | None => Ok(()),
        }
    }

    /// The only room they may have to do with; none for any.
    pub fn room(&self) -> Option<&str> {
        self.room.as_deref()
    }
}

/// Tells who asks.
#[derive(Debug)]
pub struct Auth {
    keys: Vec<Key>,
    livekit_key: String,
    verifier: TokenVerifier,
    trusts_this_machine: bool,
    origins: Vec<String>,
    failures: Mutex<Buckets<IpAddr>>,
    callers: Mutex<Buckets<String>>,
    /// Hashes of the catalogue's keys that were good of late.
    good: Mutex<VecDeque<[u8; 32]>>,
}

#[derive(Debug)]
struct Key {
    name: String,
    hash: [u8; 32],
    scopes: Scopes,
}

impl Auth {
    /// As the service is configured. `has_keys` says whether the catalogue has API keys.
    pub fn new(config: &ServeConfig, has_keys: bool) -> Self {
        let keys = config.file.auth.keys.iter().map(|key| Key {
            name: key.name.clone(),
            hash: Sha256::digest(key.key.expose()).into(),
            scopes: key.scopes.iter().copied().collect(),
        });
        let (key, secret) = &config.livekit_key;
        let limits = &config.file.limits;
        Self {
            keys: keys.collect(),
            livekit_key: key.clone(),
            verifier: TokenVerifier::with_api_key(key, secret.expose()),
            trusts_this_machine: config.trusts_this_machine(has_keys),
            origins: config.file.cors.origins.clone(),
            failures: Mutex::new(Buckets::new(FAILURES, FAILURES_AT_ONCE)),
            callers: Mutex::new(Buckets::new(limits.rate, limits.burst)),
            good: Mutex::default(),
        }
    }

    /// The answer to somebody who failed: `problem`, or, where their address has failed too often of late, to come back later.
    /// Whoever does not fail is never held up by others who do from the same address.
    pub fn refuse(&self, address: Option<IpAddr>, problem: Problem) -> Problem {
        let Some(address) = address else { return problem };
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.take(address, clock::now()) {
            Ok(()) => problem,
            Err(wait) => too_many(wait),
        }
    }

    /// Asks whether an address may still make the catalogue look for keys that others do not know.
    fn may_guess(&self, address: Option<IpAddr>) -> Result<(), Problem> {
        let Some(address) = address else { return Ok(()) };
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.have(&address, clock::now()).map_err(too_many)
    }

    fn was_good(&self, hash: &[u8; 32]) -> bool {
        self.good.lock().unwrap_or_else(PoisonError::into_inner).contains(hash)
    }

    fn note_good(&self, hash: [u8; 32]) {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        if good.contains(&hash) {
            return;
        }
        if good.len() == GOOD_KEYS {
            good.pop_front();
        }
        good.push_back(hash);
    }

    async fn caller(&self, app: &App, parts: &Parts) -> Result<Caller, Problem> {
        let address = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        let caller = match token(&parts.headers) {
            // Whoever shows no key has guessed none.
            None => self.local(parts, address),
            Some(Err(problem)) => Err(self.refuse(address, problem)),
            Some(Ok(token)) => self.known(app, token, address).await.map_err(|problem| match problem.status {
                status if status == StatusCode::UNAUTHORIZED.as_u16() => self.refuse(address, problem),
                _ => problem,
            }),
        };
        let caller = caller?;
        let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
        callers.take(caller.name.clone(), clock::now()).map_err(too_many)?;
        Ok(caller)
    }

    async fn known(&self, app: &App, token: &str, address: Option<IpAddr>) -> Result<Caller, Problem> {
        let hash: [u8; 32] = Sha256::digest(token).into();
        let same = |key: &&Key| aws_lc_rs::constant_time::verify_slices_are_equal(&key.hash, &hash).is_ok();
        // All are looked at, so that the time tells nothing.
        let known: Vec<&Key> = self.keys.iter().filter(same).collect();
        if let Some(key) = known.first() {
            return Ok(Caller { name: format!("key:{}", key.name), address, scopes: key.scopes, room: None });
        }
        if token.bytes().filter(|byte| *byte == b'.').count() == 2 {
            return self.livekit(token, address);
        }
        // Others behind the same address may guess as they like: a key that was good just now is looked up in any case.
        if !self.was_good(&hash) {
            self.may_guess(address)?;
        }
        match app.catalog().key_of(token, clock::wall()).await? {
            Some(key) => {
                self.note_good(hash);
                let scopes = key.scopes.iter().map(|scope| word(*scope)).collect();
                Ok(Caller { name: format!("key:{}", key.name), address, scopes, room: None })
            }
            None => Err(Problem::unauthorized("the key is unknown, revoked or over")),
        }
    }

    fn livekit(&self, token: &str, address: Option<IpAddr>) -> Result<Caller, Problem> {
        let refused = |_| Problem::unauthorized("the token is none of the LiveKit server's, or over");
        let claims = self.verifier.verify(token).map_err(refused)?;
        let grants = &claims.video;
        let room = Some(grants.room.clone()).filter(|room| !room.is_empty());
        let mut scopes = Scopes::default();
        if grants.room_record {
            scopes = scopes.with(ScopeWord::Read).with(ScopeWord::Record);
        }
        if grants.room_admin && room.is_some() {
            scopes = scopes.with(ScopeWord::Read).with(ScopeWord::Record).with(ScopeWord::Delete);
        }
        if scopes == Scopes::default() {
            return Err(Problem::forbidden("the token has neither roomRecord nor roomAdmin of a room"));
        }
        let who = if claims.sub.is_empty() { &self.livekit_key } else { &claims.sub };
        Ok(Caller { name: format!("livekit:{who}"), address, scopes, room })
    }

    /// Whoever is on this machine, where no key is configured. A page of another host in a browser on this machine is not.
    fn local(&self, parts: &Parts, address: Option<IpAddr>) -> Result<Caller, Problem> {
        if !self.trusts_this_machine || !address.is_some_and(|address| address.is_loopback()) {
            return Err(Problem::unauthorized("that takes an API key or a LiveKit token: Authorization: Bearer …"));
        }
        let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let host = header(HOST).unwrap_or_default();
        let is_here = |host: &str| {
            let name = host
                .rsplit_once(':')
                .map_or(host, |(name, port)| if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host });
            name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        };
        let is_foreign = header(ORIGIN).is_some_and(|origin| {
            let of = origin.split_once("://").map_or(origin, |(_, host)| host);
            of != host && !self.origins.iter().any(|known| known == origin)
        });
        // A proxy on this machine asks for others.
        let is_handed_on =
            ["x-forwarded-for", "x-real-ip", "forwarded", "via"].iter().any(|name| parts.headers.contains_key(*name));
        if !is_here(host) || is_foreign || is_handed_on {
            return Err(Problem::forbidden("without a key only this machine itself is let in"));
        }
        Ok(Caller { name: "local".into(), address, scopes: Scopes::ALL, room: None })
    }
}

/// The key or token of a request: `Authorization: Bearer …` or `X-API-Key`.
fn token(headers: &HeaderMap) -> Option<Result<&str, Problem>> {
    let wrong = || Problem::unauthorized("Authorization is not: Bearer, and a key or token");
    if let Some(value) = headers.get(AUTHORIZATION) {
        let bearer = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        return Some(bearer.filter(|token| !token.is_empty() && token.len() <= LONGEST).ok_or_else(wrong));
    }
    let value = headers.get("x-api-key")?;
    Some(value.to_str().ok().filter(|key| !key.is_empty() && key.len() <= LONGEST).ok_or_else(wrong))
}

fn too_many(wait: Duration) -> Problem {
    let seconds = wait.as_secs_f64().ceil().clamp(1.0, 3_600.0) as u64;
    let detail = format!("again in {seconds} s");
    Problem { retry_after: Some(seconds), ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", detail) }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        app.auth().caller(app, parts).await
    }
}
