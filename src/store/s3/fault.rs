//! What an answer of S3 and its relatives means. They agree on neither codes nor statuses, so both are looked at.

use std::error::Error;

use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::store::error::{Fault, FaultKind};

/// Sorts the failure of a call.
pub(super) fn fault<E>(error: SdkError<E, HttpResponse>) -> Fault
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(service) => {
            let status = service.raw().status().as_u16();
            answer(service.err().code(), service.err().message(), status)
        }
        SdkError::ResponseError(response) => match response.raw().status().as_u16() {
            200..300 => Fault::unanswered(DisplayErrorContext(&error)),
            status => answer(None, None, status),
        },
        SdkError::TimeoutError(_) => Fault::unanswered("no answer in time"),
        SdkError::DispatchFailure(_) | SdkError::ConstructionFailure(_) | _ => unsent(&error),
    }
}

/// What a code alone means, as batches tell it for each object.
pub(super) fn of_code(code: Option<&str>, message: Option<&str>) -> Fault {
    let status = match code {
        Some("AccessDenied") => 403,
        Some("InternalError") | None => 500,
        Some(_) => 400,
    };
    answer(code, message, status)
}

/// What a code and status mean.
fn answer(code: Option<&str>, message: Option<&str>, status: u16) -> Fault {
    let code = code.unwrap_or_default();
    let mut reason = format!("{code} {status}").trim_start().to_owned();
    if let Some(message) = message.filter(|message| !message.is_empty()) {
        reason = format!("{reason}: {message}");
    }
    Fault::new(kind(code, status), reason)
}

fn kind(code: &str, status: u16) -> FaultKind {
    match code {
        "NoSuchKey" => return FaultKind::NotFound,
        "NoSuchBucket" | "NoSuchUpload" => return FaultKind::Gone,
        "PreconditionFailed" | "FileAlreadyExists" | "ObjectAlreadyExists" => return FaultKind::AlreadyExists,
        "ConditionalRequestConflict" | "OperationAborted" | "RequestTimeout" => return FaultKind::Unavailable,
        "BadDigest"
        | "InvalidDigest"
        | "IncompleteBody"
        | "InvalidPart"
        | "XAmzContentSHA256Mismatch"
        | "XAmzContentChecksumMismatch"
        | "MalformedTrailerError" => return FaultKind::Mismatch,
        "QuotaExceeded" | "InsufficientStorage" | "XMinioStorageFull" => return FaultKind::Full,
        "SlowDown" | "Throttling" | "ThrottlingException" | "TooManyRequests" | "RequestLimitExceeded" => {
            return FaultKind::Throttled;
        }
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId" | "SignatureDoesNotMatch" => {
            return FaultKind::Refused;
        }
        _ => {}
    }
    match status {
        401 | 403 => FaultKind::Refused,
        404 => FaultKind::NotFound,
        405 | 501 => FaultKind::Unsupported,
        408 | 409 | 425 => FaultKind::Unavailable,
        412 => FaultKind::AlreadyExists,
        429 => FaultKind::Throttled,
        507 => FaultKind::Full,
        500.. => FaultKind::Unavailable,
        _ => FaultKind::Protocol,
    }
}

/// A call that met no answer: for want of credentials, or because the connection failed or ended.
fn unsent(error: &(dyn Error + Send + Sync + 'static)) -> Fault {
    use aws_credential_types::provider::error::CredentialsError;
    let text = DisplayErrorContext(error);
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(found) = cause {
        match found.downcast_ref::<CredentialsError>() {
            Some(CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_)) => {
                return Fault::new(FaultKind::Refused, format!("no credentials: {text}"));
            }
            Some(_) | None => cause = found.source(),
        }
    }
    Fault::unanswered(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_more_than_its_status() {
        for (code, status, expected) in [
            ("NoSuchKey", 404, FaultKind::NotFound),
            ("", 404, FaultKind::NotFound),
            ("NoSuchUpload", 404, FaultKind::Gone),
            ("NoSuchBucket", 404, FaultKind::Gone),
            ("PreconditionFailed", 412, FaultKind::AlreadyExists),
            ("ConditionalRequestConflict", 409, FaultKind::Unavailable),
            ("FileAlreadyExists", 409, FaultKind::AlreadyExists),
            ("SlowDown", 503, FaultKind::Throttled),
            ("ServiceUnavailable", 503, FaultKind::Unavailable),
            ("", 502, FaultKind::Unavailable),
            ("ExpiredToken", 400, FaultKind::Refused),
            ("AccessDenied", 403, FaultKind::Refused),
            ("BadDigest", 400, FaultKind::Mismatch),
            ("RequestTimeout", 400, FaultKind::Unavailable),
            ("XMinioStorageFull", 507, FaultKind::Full),
            ("", 507, FaultKind::Full),
            ("NotImplemented", 501, FaultKind::Unsupported),
            ("EntityTooSmall", 400, FaultKind::Protocol),
        ] {
            assert_eq!(kind(code, status), expected, "{code} {status}");
        }
    }

    #[test]
    fn an_answer_is_told_with_code_status_and_text() {
        assert_eq!(answer(Some("SlowDown"), Some("Reduce."), 503).reason, "SlowDown 503: Reduce.");
        assert_eq!(answer(None, None, 403).reason, "403");
    }
}
