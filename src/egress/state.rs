use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use livekit_api::access_token::TokenVerifier;
use livekit_protocol as proto;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::FilePlace;
use crate::room::Credentials;

/// How an egress stands, whoever told.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressState {
    /// The server's id (`EG_…`).
    pub id: String,
    /// The room's name; empty for a web page.
    pub room_name: String,
    /// The server's id of the room.
    pub room_id: String,
    /// Where it is in its life.
    pub status: EgressStatus,
    /// The path that was asked for, by which it is known again.
    pub path: Option<String>,
    /// The store that was asked for, as in [`FilePlace`].
    pub store: Option<String>,
    /// When it was started, as the service says.
    pub started_at: Option<OffsetDateTime>,
    /// When it ended, as the service says.
    pub ended_at: Option<OffsetDateTime>,
    /// When the service last had something to say.
    pub updated_at: Option<OffsetDateTime>,
    /// What went wrong, in the service's words; empty where nothing did.
    pub error: String,
    /// The service's code for that, an HTTP status; 0 where there is none.
    pub error_code: i32,
    /// What else the service says, such as why it ended.
    pub details: String,
    /// The files. Sizes and lengths are there once it has ended.
    pub files: Vec<EgressFile>,
    /// Whether files are not where they were asked for, but in the service's own backup store.
    pub in_backup_store: bool,
}

/// A file of an egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressFile {
    /// Its key.
    pub name: String,
    /// Where it is, as the service says.
    pub location: String,
    /// Its size.
    pub bytes: u64,
    /// How long it plays.
    pub duration: Duration,
    /// When its first sound or picture was.
    pub started_at: Option<OffsetDateTime>,
}

/// Where an egress is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EgressStatus {
    /// A worker has it and is on its way into the room.
    Starting,
    /// It records.
    Active,
    /// It finishes its files.
    Ending,
    /// Done; the files are where they belong.
    Complete,
    /// Done, as far as the server's limit let it go; the files are where they belong.
    LimitReached,
    /// Done before it had begun.
    Aborted,
    /// Done, and something went wrong.
    Failed,
}

impl EgressStatus {
    /// Whether nothing follows.
    pub fn is_over(self) -> bool {
        match self {
            Self::Starting | Self::Active | Self::Ending => false,
            Self::Complete | Self::LimitReached | Self::Aborted | Self::Failed => true,
        }
    }
}

impl From<proto::EgressStatus> for EgressStatus {
    fn from(status: proto::EgressStatus) -> Self {
        match status {
            proto::EgressStatus::EgressStarting => Self::Starting,
            proto::EgressStatus::EgressActive => Self::Active,
            proto::EgressStatus::EgressEnding => Self::Ending,
            proto::EgressStatus::EgressComplete => Self::Complete,
            proto::EgressStatus::EgressFailed => Self::Failed,
            proto::EgressStatus::EgressAborted => Self::Aborted,
            proto::EgressStatus::EgressLimitReached => Self::LimitReached,
        }
    }
}

impl EgressState {
    /// What the server's record of an egress says. A status from a later protocol counts as failed where it comes with the
    /// egress's end, else as active.
    pub fn of(info: &proto::EgressInfo) -> Self {
        let status = proto::EgressStatus::try_from(info.status).map(EgressStatus::from);
        let unknown = if info.ended_at > 0 { EgressStatus::Failed } else { EgressStatus::Active };
        let place = info.request.as_ref().and_then(FilePlace::asked);
        let (path, store) = place.map_or((None, None), |place| (Some(place.path), place.store));
        Self {
            id: info.egress_id.clone(),
            room_name: info.room_name.clone(),
            room_id: info.room_id.clone(),
            status: status.unwrap_or(unknown),
            path,
            store,
            started_at: at(info.started_at),
            ended_at: at(info.ended_at),
            updated_at: at(info.updated_at),
            error: info.error.clone(),
            error_code: info.error_code,
            details: info.details.clone(),
            files: info.file_results.iter().map(file).collect(),
            in_backup_store: info.backup_storage_used,
        }
    }

    /// Whether it writes the file at `place`.
    pub fn writes_to(&self, place: &FilePlace) -> bool {
        let own = self.path.clone().map(|path| FilePlace { path, store: self.store.clone() });
        own.is_some_and(|own| own.is_same(place))
    }

    /// What a webhook tells of an egress; none where it is about something else.
    pub fn told_by(event: &proto::WebhookEvent) -> Option<Self> {
        let is_it = matches!(event.event.as_str(), "egress_started" | "egress_updated" | "egress_ended");
        event.egress_info.as_ref().filter(|_| is_it).map(Self::of)
    }

    /// Takes over what somebody else has learned of the same egress, unless that is older: webhooks and answers overtake
    /// each other. Gives whether anything is new.
    pub fn learn(&mut self, other: Self) -> bool {
        let older =
            other.updated_at < self.updated_at || other.updated_at == self.updated_at && other.status < self.status;
        if other.id != self.id || self.status.is_over() && !other.status.is_over() || older || *self == other {
            return false;
        }
        *self = other;
        true
    }
}

fn file(info: &proto::FileInfo) -> EgressFile {
    EgressFile {
        name: info.filename.clone(),
        location: info.location.clone(),
        bytes: u64::try_from(info.size).unwrap_or(0),
        duration: Duration::from_nanos(u64::try_from(info.duration).unwrap_or(0)),
        started_at: at(info.started_at),
    }
}

/// Nanoseconds since 1970; none for zero, and for what no calendar has.
fn at(nanos: i64) -> Option<OffsetDateTime> {
    (nanos > 0).then(|| OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).ok()).flatten()
}

/// Why a webhook is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WebhookError {
    /// A ready token cannot check signatures: that takes the key.
    #[error("webhooks are checked with an API key and its secret, not with a token")]
    NoKey,
    /// Its token is not signed with our key, or out of date.
    #[error("the webhook's token is not valid: {0}")]
    Token(String),
    /// It is not what was signed.
    #[error("the webhook's body is not what was signed")]
    Body,
    /// It is signed and makes no sense.
    #[error("the webhook's body cannot be read: {0}")]
    Json(String),
}

/// Reads a webhook as LiveKit sends it: the body, and the `Authorization` header as it is.
///
/// # Errors
/// [`WebhookError`] where it is not signed with this key, or cannot be read.
pub fn webhook(body: &[u8], authorization: &str, key: &Credentials) -> Result<proto::WebhookEvent, WebhookError> {
    let Credentials::ApiKey { key, secret } = key else { return Err(WebhookError::NoKey) };
    let token = authorization.strip_prefix("Bearer ").unwrap_or(authorization);
    let claims = TokenVerifier::with_api_key(key, secret)
        .verify(token)
        .map_err(|error| WebhookError::Token(error.to_string()))?;
    let signed = BASE64_STANDARD.decode(claims.sha256).map_err(|_| WebhookError::Body)?;
    if signed[..] != Sha256::digest(body)[..] {
        return Err(WebhookError::Body);
    }
    serde_json::from_slice(body).map_err(|error| WebhookError::Json(error.to_string()))
}

#[cfg(test)]
mod tests {
    use livekit_api::access_token::AccessToken;
    use livekit_protocol::egress_info::Request;

    use super::*;

    fn info(status: proto::EgressStatus, updated_at: i64) -> proto::EgressInfo {
        let output = proto::EncodedFileOutput { filepath: "calls/1.mp4".into(), ..Default::default() };
        let request = proto::RoomCompositeEgressRequest { file_outputs: vec![output], ..Default::default() };
        proto::EgressInfo {
            egress_id: "EG_1".into(),
            room_name: "r".into(),
            status: status.into(),
            started_at: 1_700_000_000_000_000_000,
            updated_at,
            request: Some(Request::RoomComposite(request)),
            file_results: vec![proto::FileInfo {
                filename: "calls/1.mp4".into(),
                size: 7,
                duration: 1_500_000_000,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn an_answer_becomes_a_state() {
        let state = EgressState::of(&info(proto::EgressStatus::EgressComplete, 5));
        assert_eq!((state.status, state.path.as_deref()), (EgressStatus::Complete, Some("calls/1.mp4")));
        assert_eq!(state.started_at.unwrap().unix_timestamp(), 1_700_000_000);
        assert_eq!((state.files[0].bytes, state.files[0].duration), (7, Duration::from_millis(1_500)));
        let later = proto::EgressInfo { status: 99, ended_at: 1, ..info(proto::EgressStatus::EgressActive, 1) };
        assert_eq!(EgressState::of(&later).status, EgressStatus::Failed);
    }

    #[test]
    fn what_is_older_changes_nothing() {
        let mut state = EgressState::of(&info(proto::EgressStatus::EgressActive, 10));
        assert!(!state.learn(EgressState::of(&info(proto::EgressStatus::EgressStarting, 5))), "overtaken");
        assert!(!state.learn(EgressState::of(&info(proto::EgressStatus::EgressStarting, 10))), "at the same moment");
        let other = proto::EgressInfo { egress_id: "EG_2".into(), ..info(proto::EgressStatus::EgressEnding, 20) };
        assert!(!state.learn(EgressState::of(&other)), "another's");
        assert!(state.learn(EgressState::of(&info(proto::EgressStatus::EgressComplete, 20))));
        assert!(!state.learn(EgressState::of(&info(proto::EgressStatus::EgressActive, 30))), "it was over");
        assert_eq!(state.status, EgressStatus::Complete);
    }

    #[test]
    fn webhooks_are_believed_if_they_are_signed() {
        let event = proto::WebhookEvent {
            event: "egress_ended".into(),
            egress_info: Some(info(proto::EgressStatus::EgressFailed, 5)),
            ..Default::default()
        };
        let body = serde_json::to_vec(&event).unwrap();
        let sign = |secret: &str, body: &[u8]| {
            let hash = BASE64_STANDARD.encode(Sha256::digest(body));
            AccessToken::with_api_key("k", secret).with_sha256(&hash).to_jwt().unwrap()
        };
        let key = Credentials::ApiKey { key: "k".into(), secret: "a-secret-of-thirty-two-characters".into() };
        let token = sign("a-secret-of-thirty-two-characters", &body);
        let told = EgressState::told_by(&webhook(&body, &token, &key).unwrap()).unwrap();
        assert_eq!((told.id.as_str(), told.status), ("EG_1", EgressStatus::Failed));
        assert_eq!(webhook(b"{}", &token, &key), Err(WebhookError::Body));
        let strange = sign("another-secret-of-thirty-two-chars", &body);
        assert!(matches!(webhook(&body, &strange, &key), Err(WebhookError::Token(_))));
        assert_eq!(webhook(&body, &token, &Credentials::Token(String::new())), Err(WebhookError::NoKey));
        let room = proto::WebhookEvent { event: "room_started".into(), ..event };
        assert_eq!(EgressState::told_by(&room), None);
    }
}
