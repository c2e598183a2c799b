use livekit_api::services::{ServerError, ServerErrorCode, ServiceError};

/// What can go wrong with an egress, by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EgressError {
    /// A setting has no counterpart in the egress protocol.
    #[error("LiveKit Egress cannot take {setting}: {why}")]
    Untranslatable {
        /// The setting.
        setting: &'static str,
        /// Why not.
        why: String,
    },
    /// The request makes no sense, as we or the server see it.
    #[error("LiveKit Egress refuses the request: {0}")]
    Invalid(String),
    /// The server does not let this key or token record.
    #[error("the LiveKit server does not allow recording with these credentials: {0}")]
    Unauthorized(String),
    /// The room, participant, track or egress does not exist.
    #[error("LiveKit Egress does not find it: {0}")]
    NotFound(String),
    /// The account or the server has no room for another egress.
    #[error("LiveKit Egress is at its limit: {0}")]
    Quota(String),
    /// No egress service takes the request. Nothing was started.
    #[error("no LiveKit Egress service is available: {0}")]
    Unavailable(String),
    /// It is not in a state for that.
    #[error("LiveKit Egress is not in a state for that: {0}")]
    State(String),
    /// The server could not be reached. Nothing was started.
    #[error("the LiveKit server cannot be reached: {0}")]
    Unreachable(String),
    /// The request went out, and no answer tells what became of it.
    #[error("LiveKit Egress gave no answer that tells what became of the request: {0}")]
    AnswerLost(String),
    /// The request went out, and what came back is not of the egress API.
    #[error("the answer is not of the LiveKit Egress API: the API key is wrong, or this is no LiveKit server ({0})")]
    Unintelligible(String),
}

impl EgressError {
    /// Whether an egress may have been started all the same.
    pub fn may_have_started(&self) -> bool {
        match self {
            Self::AnswerLost(_) | Self::Unintelligible(_) => true,
            Self::Untranslatable { .. }
            | Self::Invalid(_)
            | Self::Unauthorized(_)
            | Self::NotFound(_)
            | Self::Quota(_)
            | Self::Unavailable(_)
            | Self::State(_)
            | Self::Unreachable(_) => false,
        }
    }

    /// Whether the same request may do better in a while.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Quota(_)
            | Self::Unavailable(_)
            | Self::Unreachable(_)
            | Self::AnswerLost(_)
            | Self::Unintelligible(_) => true,
            Self::Untranslatable { .. }
            | Self::Invalid(_)
            | Self::Unauthorized(_)
            | Self::NotFound(_)
            | Self::State(_) => false,
        }
    }
}

impl From<ServiceError> for EgressError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::Twirp(ServerError::Twirp(answer)) => Self::from_answer(answer),
            ServiceError::Twirp(ServerError::Request(error)) if error.is_connect() => Self::Unreachable(causes(&error)),
            ServiceError::Twirp(ServerError::Request(error)) if error.is_decode() => {
                Self::Unintelligible(causes(&error))
            }
            ServiceError::Twirp(ServerError::Request(error)) => Self::AnswerLost(causes(&error)),
            ServiceError::Twirp(ServerError::Prost(error)) => Self::Unintelligible(error.to_string()),
            ServiceError::Twirp(ServerError::Url(error)) => Self::Invalid(error.to_string()),
            ServiceError::AccessToken(error) => Self::Unauthorized(error.to_string()),
            ServiceError::Env(error) => Self::Unauthorized(error.to_string()),
        }
    }
}

impl EgressError {
    fn from_answer(ServerErrorCode { code, msg, .. }: ServerErrorCode) -> Self {
        // What the server puts before the words of its other parts tells nobody anything.
        let msg = msg.strip_prefix("twirp error unknown: ").unwrap_or(&msg).to_owned();
        match code.as_str() {
            ServerErrorCode::UNAUTHENTICATED | ServerErrorCode::PERMISSION_DENIED => Self::Unauthorized(msg),
            ServerErrorCode::NOT_FOUND => Self::NotFound(msg),
            ServerErrorCode::RESOURCE_EXHAUSTED => Self::Quota(msg),
            ServerErrorCode::UNAVAILABLE | ServerErrorCode::UNIMPLEMENTED | ServerErrorCode::BAD_ROUTE => {
                Self::Unavailable(msg)
            }
            // A server without Redis has no egress, and says so with the code of its own faults.
            ServerErrorCode::INTERNAL if msg.contains("not connected") => Self::Unavailable(msg),
            ServerErrorCode::FAILED_PRECONDITION | ServerErrorCode::ABORTED | ServerErrorCode::ALREADY_EXISTS => {
                Self::State(msg)
            }
            ServerErrorCode::INVALID_ARGUMENT | ServerErrorCode::MALFORMED | ServerErrorCode::OUT_OF_RANGE => {
                Self::Invalid(msg)
            }
            // Deadlines and faults on the way between server and service leave open what the service did.
            _ => Self::AnswerLost(format!("{code}: {msg}")),
        }
    }
}

/// An error with what caused it: of a request that failed, the first line alone says next to nothing.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str, msg: &str) -> EgressError {
        let answer = ServerErrorCode { code: code.into(), msg: msg.into(), meta: Default::default() };
        ServiceError::Twirp(ServerError::Twirp(answer)).into()
    }

    #[test]
    fn answers_become_what_can_be_done_about_them() {
        for (code, expected, started) in [
            ("unauthenticated", EgressError::Unauthorized("m".into()), false),
            ("not_found", EgressError::NotFound("m".into()), false),
            ("resource_exhausted", EgressError::Quota("m".into()), false),
            ("unavailable", EgressError::Unavailable("m".into()), false),
            ("failed_precondition", EgressError::State("m".into()), false),
            ("invalid_argument", EgressError::Invalid("m".into()), false),
            ("deadline_exceeded", EgressError::AnswerLost("deadline_exceeded: m".into()), true),
            ("internal", EgressError::AnswerLost("internal: m".into()), true),
            ("from_the_future", EgressError::AnswerLost("from_the_future: m".into()), true),
        ] {
            let error = answered(code, "m");
            assert_eq!(error, expected);
            assert_eq!(error.may_have_started(), started, "{code}");
        }
        let without = answered("internal", "twirp error unknown: egress not connected (redis required)");
        assert!(matches!(without, EgressError::Unavailable(_)) && !without.may_have_started());
    }
}
