//! Errors as RFC 9457 has them: a stable `type` for programs, a `detail` for people.

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::catalog::CatalogError;
use crate::config::ConfigError;
use crate::service::calls::{OrderError, StartError};
use crate::store::StoreError;

/// What every problem's `type` begins with.
const TYPES: &str = "urn:callreel:problem:";

/// What went wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `urn:callreel:problem:` and a word that does not change.
    #[serde(rename = "type")]
    #[schema(example = "urn:callreel:problem:already-recorded")]
    pub kind: String,
    /// What it is about, for people.
    pub title: String,
    /// The status code.
    #[schema(example = 409)]
    pub status: u16,
    /// What went wrong here, for people.
    pub detail: String,
    /// The recording that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording_id: Option<String>,
    /// After how many seconds it may work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// A problem of a kind, with what went wrong here.
    pub fn new(status: StatusCode, word: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("{TYPES}{word}"),
            title: title(word).to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            recording_id: None,
            retry_after: None,
        }
    }

    /// The request makes no sense.
    pub fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// Nobody is known to ask.
    pub fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// Whoever asks may not.
    pub fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// There is no such thing.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// There is no such recording.
    pub fn no_recording(recording_id: &str) -> Self {
        Self::not_found(format!("there is no recording {recording_id:?}"))
    }

    /// It does not go with how things stand.
    pub fn conflict(word: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, word, detail)
    }

    /// What is needed does not answer.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(5), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail) }
    }

    /// Something is at fault here. What it is stands in the log.
    pub fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the service failed; its log says how")
    }

    /// The same, about a recording.
    pub fn about(self, recording_id: impl Into<String>) -> Self {
        Self { recording_id: Some(recording_id.into()), ..self }
    }
}

fn title(word: &str) -> &'static str {
    match word {
        "bad-request" => "The request makes no sense",
        "unauthorized" => "No valid key, token or signature",
        "forbidden" => "Not allowed",
        "not-found" => "Not found",
        "method-not-allowed" => "Method not allowed",
        "already-recorded" => "The room is being recorded",
        "wrong-state" => "The recording is elsewhere in its life",
        "not-ready" => "The recording is not ready",
        "deleted" => "The recording is deleted",
        "legal-hold" => "The recording is under legal hold",
        "idempotency-mismatch" => "The idempotency key belongs to another request",
        "in-progress" => "The same request is being carried out",
        "not-available" => "That cannot be had",
        "too-large" => "The request is too large",
        "too-slow" => "The request took too long",
        "too-many-requests" => "Too many requests",
        "range" => "There is nothing in that range",
        "full" => "No further recording now",
        "unavailable" => "Something that is needed does not answer",
        _ => "The service failed",
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<CatalogError> for Problem {
    fn from(error: CatalogError) -> Self {
        let detail = error.to_string();
        match error {
            CatalogError::NotFound { .. } | CatalogError::NoEntry { .. } => Self::not_found(detail),
            CatalogError::AlreadyRecorded { recording_id } => {
                Self::conflict("already-recorded", detail).about(recording_id)
            }
            CatalogError::Exists { recording_id } => Self::conflict("wrong-state", detail).about(recording_id),
            CatalogError::Finished { recording_id, .. } | CatalogError::Unfinished { recording_id, .. } => {
                Self::conflict("wrong-state", detail).about(recording_id)
            }
            CatalogError::Deleted { recording_id } => {
                Self::new(StatusCode::GONE, "deleted", detail).about(recording_id)
            }
            CatalogError::Held { recording_id } => Self::conflict("legal-hold", detail).about(recording_id),
            CatalogError::Cursor => Self::bad_request(detail),
            CatalogError::Unavailable(_) => {
                tracing::warn!(error = detail, "the catalogue does not answer");
                Self::unavailable("the catalogue does not answer")
            }
            other => {
                tracing::error!(error = %other, "the catalogue failed");
                Self::internal()
            }
        }
    }
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        let detail = error.to_string();
        match error {
            StartError::NoRoom { .. } => Self::not_found(detail),
            StartError::AlreadyRecorded { recording_id } => {
                Self::conflict("already-recorded", detail).about(recording_id)
            }
            StartError::Wish(error) => error.into(),
            StartError::Full { .. } | StartError::Draining => {
                Self { retry_after: Some(10), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "full", detail) }
            }
            StartError::LiveKit(_) => Self::unavailable(detail),
            StartError::Catalog(error) => error.into(),
        }
    }
}

impl From<OrderError> for Problem {
    fn from(error: OrderError) -> Self {
        let detail = error.to_string();
        match error {
            OrderError::NotFound { recording_id } => Self::no_recording(&recording_id),
            OrderError::WrongState { recording_id, .. } => Self::conflict("wrong-state", detail).about(recording_id),
            OrderError::Elsewhere { recording_id, .. } => Self::unavailable(detail).about(recording_id),
            OrderError::Unsupported(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not-available", detail),
            OrderError::Catalog(error) => error.into(),
        }
    }
}

impl From<ConfigError> for Problem {
    fn from(error: ConfigError) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not-available", error.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound(_) => Self::not_found("the recording's file is not in its store"),
            StoreError::Unsupported(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not-available", "the store cannot do that")
            }
            error => {
                tracing::warn!(%error, "the store does not do its part");
                Self::unavailable("the store does not answer as it should")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_does_not_leave_the_service() {
        for problem in [
            Problem::from(CatalogError::Unavailable("postgres://u:hunter2@db".into())),
            Problem::from(CatalogError::Damaged("column hunter2".into())),
            Problem::from(StoreError::config("secret", "hunter2")),
        ] {
            assert!(!serde_json::to_string(&problem).unwrap().contains("hunter2"), "{problem:?}");
            assert!(problem.status >= 500);
        }
    }

    #[test]
    fn a_problem_has_its_own_type_and_headers() {
        let response = Problem::unauthorized("no key").into_response();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Bearer");
        let full = Problem::from(StartError::Full { why: "the spool is full".into() });
        assert!(full.detail.contains("spool"));
        assert_eq!(full.into_response().headers()[RETRY_AFTER], "10");
    }
}
