//! What can keep us out of a room, each with what was wrong and where.

use std::time::Duration;

use livekit_api::access_token::Claims;
use livekit_protocol::{DisconnectReason, leave_request};
use livekit_signaling::SignalError;

/// Why a room could not be joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RoomError {
    /// A setting is missing or contradicts another; nothing was sent.
    #[error("{field}: {problem}")]
    Config {
        /// The setting.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers there.
    #[error("cannot reach a LiveKit server at {url}: {problem}")]
    Unreachable {
        /// The server's address.
        url: String,
        /// What the network said.
        problem: String,
    },
    /// The TLS handshake failed.
    #[error("TLS with {url} failed: {problem}")]
    Tls {
        /// The server's address.
        url: String,
        /// What was refused.
        problem: String,
    },
    /// Something answers there, but not in LiveKit's way.
    #[error("{url} answers, but not as a LiveKit server (HTTP {status})")]
    NotLiveKit {
        /// The server's address.
        url: String,
        /// The status it answered with.
        status: u16,
    },
    /// The server does not accept the key, the secret or the token.
    #[error("{url} refused the credentials (HTTP {status}): {problem}")]
    BadCredentials {
        /// The server's address.
        url: String,
        /// The status it answered with.
        status: u16,
        /// The server's words.
        problem: String,
    },
    /// The token was good once.
    #[error("{url} refused the token: it expired at {expired_at} (UTC)")]
    TokenExpired {
        /// The server's address.
        url: String,
        /// When it expired.
        expired_at: String,
    },
    /// The server knows us, but does not let us in.
    #[error("{url} does not let us into room {room:?}{}: {problem}", http(*status))]
    RoomRefused {
        /// The server's address.
        url: String,
        /// The room.
        room: String,
        /// The status it answered with; 0 where it refused without one.
        status: u16,
        /// The server's words.
        problem: String,
    },
    /// The room does not exist and the server does not create rooms for those who join.
    #[error("{url} has no room {room:?}: {problem}")]
    RoomNotFound {
        /// The server's address.
        url: String,
        /// The room.
        room: String,
        /// The server's words.
        problem: String,
    },
    /// The server is there but cannot take us.
    #[error("the LiveKit server at {url} failed{}: {problem}", http(*status))]
    ServerFailed {
        /// The server's address.
        url: String,
        /// The status it answered with; 0 where it refused without one.
        status: u16,
        /// The server's words.
        problem: String,
    },
    /// The server accepted the connection and then said nothing.
    #[error("no answer from {url} within {after:?}")]
    JoinTimeout {
        /// The server's address.
        url: String,
        /// How long we waited.
        after: Duration,
    },
    /// None of several servers could be used.
    #[error("none of the servers can be used: {}", each(attempts))]
    AllServers {
        /// What was wrong with each, in the order in which they were tried.
        attempts: Vec<RoomError>,
    },
    /// No audio can arrive here, whatever the server does.
    #[error("media cannot be received: {problem}")]
    Media {
        /// What failed.
        problem: String,
    },
}

impl RoomError {
    pub(super) fn config(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Config { field, problem: problem.into() }
    }

    /// What is to be said of servers that all failed.
    pub(super) fn of_all(mut attempts: Vec<Self>) -> Self {
        match attempts.len() {
            1 => attempts.remove(0),
            _ => Self::AllServers { attempts },
        }
    }

    /// Whether this says something of one server only, so that another one may do.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::NotLiveKit { .. }
            | Self::ServerFailed { .. }
            | Self::JoinTimeout { .. } => true,
            Self::AllServers { attempts } => attempts.iter().any(Self::is_of_the_server),
            Self::Config { .. }
            | Self::BadCredentials { .. }
            | Self::TokenExpired { .. }
            | Self::RoomRefused { .. }
            | Self::RoomNotFound { .. }
            | Self::Media { .. } => false,
        }
    }

    /// Whether another server may do, after those that `failed`. What is not on one server may be on another that cannot be
    /// reached just now.
    pub(super) fn leaves_others(&self, failed: &[Self]) -> bool {
        self.is_of_the_server() || (matches!(self, Self::RoomNotFound { .. }) && !failed.is_empty())
    }

    /// Whether trying again later could help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::ServerFailed { .. } | Self::JoinTimeout { .. } => true,
            Self::AllServers { attempts } => attempts.iter().any(Self::is_passing),
            Self::Config { .. }
            | Self::Tls { .. }
            | Self::NotLiveKit { .. }
            | Self::BadCredentials { .. }
            | Self::TokenExpired { .. }
            | Self::RoomRefused { .. }
            | Self::RoomNotFound { .. }
            | Self::Media { .. } => false,
        }
    }
}

fn http(status: u16) -> String {
    if status == 0 { String::new() } else { format!(" (HTTP {status})") }
}

fn each(attempts: &[RoomError]) -> String {
    attempts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What a failed attempt to join was about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt<'a> {
    pub(super) url: &'a str,
    pub(super) room: &'a str,
    pub(super) token: &'a str,
    pub(super) waited: Duration,
}

impl Attempt<'_> {
    /// Turns the signalling client's error into ours.
    pub(super) fn explain(&self, error: SignalError) -> RoomError {
        let url = self.url.to_owned();
        match error {
            SignalError::UrlParse(problem) => RoomError::config("url", format!("{url:?} is no address: {problem}")),
            SignalError::TokenFormat => RoomError::config("token", "has characters that no access token has"),
            SignalError::Client(status, text) | SignalError::Server(status, text) => {
                self.explain_status(status.as_u16(), text.trim())
            }
            SignalError::Handshake { status } => self.explain_status(status.as_u16(), ""),
            SignalError::Timeout(_) => RoomError::JoinTimeout { url, after: self.waited },
            SignalError::Connection(problem) if is_tls(&problem) => RoomError::Tls { url, problem },
            SignalError::Connection(problem) => RoomError::Unreachable { url, problem },
            SignalError::LeaveRequest { reason, action } => {
                let problem = reason.as_str_name().to_lowercase();
                if action != leave_request::Action::Disconnect || is_the_servers_trouble(reason) {
                    RoomError::ServerFailed { url, status: 0, problem }
                } else {
                    RoomError::RoomRefused { url, room: self.room.to_owned(), status: 0, problem }
                }
            }
            SignalError::Closed => RoomError::Unreachable { url, problem: "the server closed the connection".into() },
            // The rest are states of the client that a fresh connection is never in.
            other => RoomError::Unreachable { url, problem: other.to_string() },
        }
    }

    fn explain_status(&self, status: u16, text: &str) -> RoomError {
        let url = self.url.to_owned();
        let problem = if text.is_empty() { "the server gave no reason".to_owned() } else { shorten(text) };
        let room = self.room.to_owned();
        match status {
            401 => match self.expired_at() {
                Some(expired_at) => RoomError::TokenExpired { url, expired_at },
                None => RoomError::BadCredentials { url, status, problem },
            },
            403 => RoomError::RoomRefused { url, room, status, problem },
            // LiveKit's own 404 names the room; any other web server's does not.
            404 if text.contains("room") => RoomError::RoomNotFound { url, room, problem },
            400 | 409 => RoomError::RoomRefused { url, room, status, problem },
            429 | 500.. => RoomError::ServerFailed { url, status, problem },
            _ => RoomError::NotLiveKit { url, status },
        }
    }

    fn expired_at(&self) -> Option<String> {
        let expiry = i64::try_from(Claims::from_unverified(self.token).ok()?.exp).ok()?;
        let expired = time::OffsetDateTime::from_unix_timestamp(expiry).ok()?;
        let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
        (expiry > 0 && expired <= crate::clock::wall()).then(|| expired.format(&format).ok())?
    }
}

/// Whether a server that sends somebody away for this reason has nothing against them.
pub(super) fn is_the_servers_trouble(reason: DisconnectReason) -> bool {
    match reason {
        DisconnectReason::ServerShutdown
        | DisconnectReason::Migration
        | DisconnectReason::StateMismatch
        | DisconnectReason::JoinFailure
        | DisconnectReason::SignalClose
        | DisconnectReason::ConnectionTimeout
        | DisconnectReason::MediaFailure
        | DisconnectReason::UnknownReason => true,
        DisconnectReason::RoomDeleted
        | DisconnectReason::RoomClosed
        | DisconnectReason::DuplicateIdentity
        | DisconnectReason::ParticipantRemoved
        | DisconnectReason::ClientInitiated
        | DisconnectReason::UserUnavailable
        | DisconnectReason::UserRejected
        | DisconnectReason::SipTrunkFailure
        | DisconnectReason::AgentError => false,
    }
}

fn is_tls(problem: &str) -> bool {
    let problem = problem.to_lowercase();
    // A connection that is cut while it opens is no quarrel about certificates.
    let is_cut = problem.contains("websocket protocol error");
    !is_cut
        && ["tls", "certificate", "handshake", "invalidcontenttype", "corrupt message"]
            .iter()
            .any(|word| problem.contains(word))
}

/// A server's words are for a log line, whatever it sends.
fn shorten(text: &str) -> String {
    const MOST: usize = 300;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(token: &str) -> Attempt<'_> {
        Attempt { url: "wss://calls.example", room: "support", token, waited: Duration::from_secs(5) }
    }

    fn client(status: u16, text: &str) -> SignalError {
        SignalError::Client(status.try_into().unwrap(), text.into())
    }

    #[test]
    fn a_401_is_bad_credentials_unless_the_token_has_run_out() {
        let fresh = token_that_ends(crate::clock::wall().unix_timestamp() + 60);
        let stale = token_that_ends(1_600_000_000);
        assert!(matches!(
            attempt(&fresh).explain(client(401, "invalid token")),
            RoomError::BadCredentials { status: 401, problem, .. } if problem == "invalid token"
        ));
        let expired = attempt(&stale).explain(client(401, "invalid token"));
        assert_eq!(
            expired.to_string(),
            "wss://calls.example refused the token: it expired at 2020-09-13 12:26:40 (UTC)"
        );
    }

    #[test]
    fn a_404_tells_a_missing_room_from_another_server() {
        let missing = attempt("x").explain(client(404, "requested room does not exist"));
        assert!(matches!(missing, RoomError::RoomNotFound { ref room, .. } if room == "support"));
        assert!(matches!(attempt("x").explain(client(404, "<html>")), RoomError::NotLiveKit { status: 404, .. }));
    }

    #[test]
    fn connection_trouble_is_told_apart_from_tls() {
        let refused = SignalError::Connection("IO error: Connection refused (os error 111)".into());
        assert!(matches!(attempt("x").explain(refused), RoomError::Unreachable { .. }));
        let untrusted = SignalError::Connection("IO error: invalid peer certificate: UnknownIssuer".into());
        assert!(matches!(attempt("x").explain(untrusted), RoomError::Tls { .. }));
        let cut = SignalError::Connection("WebSocket protocol error: Handshake not finished".into());
        assert!(matches!(attempt("x").explain(cut), RoomError::Unreachable { .. }));
        assert!(matches!(attempt("x").explain(SignalError::Timeout("late".into())), RoomError::JoinTimeout { .. }));
    }

    #[test]
    fn only_what_can_pass_is_called_passing() {
        assert!(attempt("x").explain(client(503, "node is full")).is_passing());
        assert!(!attempt("x").explain(client(401, "no")).is_passing());
        assert!(attempt("x").explain(client(429, "later")).is_passing());
        assert!(!RoomError::config("room", "is missing").is_passing());
    }

    #[test]
    fn being_sent_away_at_the_door_passes_where_it_is_the_servers_trouble() {
        let sent_away = |reason| {
            attempt("x").explain(SignalError::LeaveRequest { reason, action: leave_request::Action::Disconnect })
        };
        for reason in [DisconnectReason::ServerShutdown, DisconnectReason::JoinFailure, DisconnectReason::Migration] {
            let error = sent_away(reason);
            assert!(error.is_passing() && error.is_of_the_server(), "{error}");
        }
        let removed = sent_away(DisconnectReason::ParticipantRemoved);
        assert!(!removed.is_passing(), "{removed}");
        assert!(!removed.to_string().contains("HTTP"), "{removed}");
    }

    #[test]
    fn a_missing_room_is_no_news_where_another_server_failed() {
        let missing = || attempt("x").explain(client(404, "requested room does not exist"));
        let down = attempt("x").explain(SignalError::Connection("refused".into()));
        assert!(!missing().leaves_others(&[]));
        assert!(missing().leaves_others(std::slice::from_ref(&down)));
        assert!(!attempt("x").explain(client(401, "no")).leaves_others(std::slice::from_ref(&down)));
        let all = RoomError::of_all(vec![down, missing()]);
        assert!(all.is_passing() && all.is_of_the_server(), "{all}");
    }

    #[test]
    fn a_servers_words_stay_on_one_line() {
        let RoomError::ServerFailed { problem, .. } = attempt("x").explain(client(500, &"a\nb".repeat(400))) else {
            panic!("a 500 is the server's failure");
        };
        assert!(problem.len() <= 300 && !problem.contains('\n'));
    }

    fn token_that_ends(expiry: i64) -> String {
        // Header and signature are never looked at.
        let claims = format!(r#"{{"exp":{expiry},"iss":"key","nbf":0,"video":{{"room":"support"}}}}"#);
        format!("eyJhbGciOiJIUzI1NiJ9.{}.c2ln", base64_url(claims.as_bytes()))
    }

    fn base64_url(bytes: &[u8]) -> String {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut out = String::new();
        for chunk in bytes.chunks(3) {
            let word = chunk.iter().enumerate().fold(0u32, |word, (i, b)| word | u32::from(*b) << (16 - 8 * i));
            for i in 0..=chunk.len() {
                out.push(char::from(LETTERS[(word >> (18 - 6 * i)) as usize & 63]));
            }
        }
        out
    }
}
