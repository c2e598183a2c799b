//! What comes in requests: bodies within a size and a time, parameters that are what they should be.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::App;
use super::problem::Problem;

/// Reads a body.
///
/// # Errors
/// [`Problem`] 413 for one that is too large, 408 for one that does not come in time, 400 for one that breaks off.
pub async fn read(body: Body, most: usize, within: Duration) -> Result<Bytes, Problem> {
    let whole = tokio::time::timeout(within, Limited::new(body, most).collect()).await;
    match whole {
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the body did not come in time")),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let detail = format!("the body has more than {most} bytes");
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail))
        }
        Ok(Err(_)) => Err(Problem::bad_request("the body broke off")),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
    }
}

/// A body of JSON, which may be missing where every field may. Holds the bytes, too.
#[derive(Debug)]
pub struct Payload<T> {
    /// What it says.
    pub value: T,
    /// As it came.
    pub bytes: Bytes,
}

impl<T: DeserializeOwned> FromRequest<App> for Payload<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let limits = &app.config().file.limits;
        let most = usize::try_from(limits.body).unwrap_or(usize::MAX);
        let told = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if told.is_some_and(|told| told > u64::from(limits.body)) {
            let detail = format!("the body has more than {most} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail));
        }
        let bytes = read(request.into_body(), most, limits.request_time.0).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // A list would do for the fields in their order.
        if !matches!(text.trim_ascii_start().first(), Some(b'{' | b'n')) {
            return Err(Problem::bad_request("the body is no JSON object"));
        }
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value = serde_path_to_error::deserialize(&mut reader);
        let value = value.map_err(|error| Problem::bad_request(format!("the body: {error}")))?;
        reader.end().map_err(|error| Problem::bad_request(format!("the body: {error}")))?;
        Ok(Self { value, bytes })
    }
}

/// Parameters in the query.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, app).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(error) => Err(Problem::bad_request(format!("the query: {}", error.body_text()))),
        }
    }
}

/// A recording's id in the path. What cannot be one names no recording.
#[derive(Debug)]
pub struct RecordingId(pub String);

impl FromRequestParts<App> for RecordingId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
        let id = path.ok().and_then(|Path(mut found)| found.remove("recording_id")).unwrap_or_default();
        if is_id(&id) { Ok(Self(id)) } else { Err(Problem::not_found("there is no such recording")) }
    }
}

/// Whether a text can be a recording's id.
pub fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=64).contains(&text.len()) && text.bytes().all(plain)
}

/// A room's name in the path.
#[derive(Debug)]
pub struct RoomName(pub String);

impl FromRequestParts<App> for RoomName {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let path = Path::<std::collections::HashMap<String, String>>::from_request_parts(parts, app).await;
        let name = path.ok().and_then(|Path(mut found)| found.remove("room_id")).unwrap_or_default();
        plain("the room's name", &name, LONGEST_ROOM)?;
        Ok(Self(name))
    }
}

/// The longest name of a room, in bytes; LiveKit has a shorter bound.
pub const LONGEST_ROOM: usize = 512;

/// Asks whether a text is one that databases, logs and headers can hold.
///
/// # Errors
/// [`Problem`] 400 for one that is empty, too long or has control characters.
pub fn plain(what: &str, text: &str, longest: usize) -> Result<(), Problem> {
    if text.is_empty() {
        return Err(Problem::bad_request(format!("{what} is empty")));
    }
    if text.len() > longest {
        return Err(Problem::bad_request(format!("{what} has more than {longest} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(Problem::bad_request(format!("{what} has control characters")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_has_a_size_and_a_time() {
        let second = Duration::from_secs(1);
        assert_eq!(read(Body::from("12345"), 5, second).await.unwrap(), "12345");
        assert_eq!(read(Body::from("123456"), 5, second).await.unwrap_err().status, 413);
        let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
        let slow = read(Body::from_stream(never), 5, Duration::from_millis(1)).await;
        assert_eq!(slow.unwrap_err().status, 408);
        let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"1")), Err(std::io::Error::other("cut"))]);
        assert_eq!(read(Body::from_stream(broken), 5, second).await.unwrap_err().status, 400);
    }

    #[test]
    fn texts_that_something_would_choke_on_are_refused() {
        assert!(plain("x", "Zürich'; DROP TABLE recordings; --", 64).is_ok());
        for text in ["", "a\0b", "a\r\nX-Header: b", "\u{85}", &"x".repeat(65)] {
            assert_eq!(plain("x", text, 64).unwrap_err().status, 400, "{text:?}");
        }
        assert!(is_id("01JABC-_x"));
        for text in ["", "a/b", "a.b", "é", &"x".repeat(65)] {
            assert!(!is_id(text), "{text:?}");
        }
    }
}
