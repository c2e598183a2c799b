use std::fmt;

/// What a store can refuse. Each names the store, the operation and the key; none holds a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no such object.
    #[error("{0}: not found")]
    NotFound(Failure),
    /// An object lies under that key already, and was left as it is.
    #[error("{0}: an object of that name exists already")]
    AlreadyExists(Failure),
    /// The store does not accept these credentials, or does not let them do this.
    #[error("{0}: refused")]
    Refused(Failure),
    /// The bucket, container, folder or upload does not exist, or not any more.
    #[error("{0}: gone")]
    Gone(Failure),
    /// The store asks for fewer requests. Retried already.
    #[error("{0}: throttled")]
    Throttled(Failure),
    /// No answer, a broken connection, or a failure inside the store. Retried already.
    #[error("{0}: unavailable")]
    Unavailable(Failure),
    /// What the store has, or got, is not what was sent. Retried already, where sending again can help.
    #[error("{0}: what arrived differs from what was sent")]
    Mismatch(Failure),
    /// The store has no space left.
    #[error("{0}: full")]
    Full(Failure),
    /// This store cannot do that.
    #[error("{0}: not supported")]
    Unsupported(Failure),
    /// The store took the request for wrong, or answered in a way that makes no sense.
    #[error("{0}: failed")]
    Protocol(Failure),
    /// A setting is missing or makes no sense.
    #[error("store setting {setting}: {reason}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl StoreError {
    pub(crate) fn config(setting: &'static str, reason: impl fmt::Display) -> Self {
        Self::Config { setting, reason: reason.to_string() }
    }

    pub(super) fn new(fault: Fault, operation: &'static str, location: String) -> Self {
        let failure = Failure { operation, location, reason: fault.reason };
        match fault.kind {
            FaultKind::NotFound => Self::NotFound(failure),
            FaultKind::AlreadyExists => Self::AlreadyExists(failure),
            FaultKind::Refused => Self::Refused(failure),
            FaultKind::Gone => Self::Gone(failure),
            FaultKind::Throttled => Self::Throttled(failure),
            FaultKind::Unavailable => Self::Unavailable(failure),
            FaultKind::Mismatch => Self::Mismatch(failure),
            FaultKind::Full => Self::Full(failure),
            FaultKind::Unsupported => Self::Unsupported(failure),
            FaultKind::Protocol => Self::Protocol(failure),
        }
    }

    /// Whether the same call may succeed later without anybody changing a setting. The store retried already, for
    /// seconds; this is for callers who can wait for minutes. A full store counts: space returns.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Throttled(_) | Self::Unavailable(_) | Self::Mismatch(_) | Self::Full(_) => true,
            Self::NotFound(_)
            | Self::AlreadyExists(_)
            | Self::Refused(_)
            | Self::Gone(_)
            | Self::Unsupported(_)
            | Self::Protocol(_)
            | Self::Config { .. } => false,
        }
    }
}

/// Where something failed, and what the store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was asked: `put`, `complete`…
    pub operation: &'static str,
    /// Of which object, or below which prefix.
    pub location: String,
    /// The store's code, status and text, as far as there are any.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.operation, self.location, self.reason)
    }
}

/// A failure as a backend tells it; the [`Store`](super::Store) knows the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(super) kind: FaultKind,
    pub(super) reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    NotFound,
    AlreadyExists,
    Refused,
    Gone,
    Throttled,
    Unavailable,
    Mismatch,
    Full,
    Unsupported,
    Protocol,
}

impl Fault {
    pub(super) fn new(kind: FaultKind, reason: impl fmt::Display) -> Self {
        Self { kind, reason: reason.to_string() }
    }

    /// No answer: a refused or broken connection, or a time limit. The request may have been carried out all the same.
    pub(super) fn unanswered(reason: impl fmt::Display) -> Self {
        Self::new(FaultKind::Unavailable, reason)
    }

    /// Whether sending the same again within seconds may help.
    pub(super) fn retry_soon(&self) -> bool {
        match self.kind {
            FaultKind::Throttled | FaultKind::Unavailable | FaultKind::Mismatch => true,
            FaultKind::NotFound
            | FaultKind::AlreadyExists
            | FaultKind::Refused
            | FaultKind::Gone
            | FaultKind::Full
            | FaultKind::Unsupported
            | FaultKind::Protocol => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_why() {
        let fault = Fault::new(FaultKind::Refused, "AccessDenied, 403");
        let error = StoreError::new(fault, "put", "s3://bucket/key".to_owned());
        assert_eq!(error.to_string(), "put s3://bucket/key (AccessDenied, 403): refused");
        assert!(!error.is_retryable());
    }

    #[test]
    fn what_passes_by_itself_is_retryable() {
        for (kind, soon, later) in [
            (FaultKind::Throttled, true, true),
            (FaultKind::Unavailable, true, true),
            (FaultKind::Mismatch, true, true),
            (FaultKind::Full, false, true),
            (FaultKind::Gone, false, false),
            (FaultKind::AlreadyExists, false, false),
        ] {
            let fault = Fault::new(kind, "");
            assert_eq!(fault.retry_soon(), soon, "{kind:?}");
            assert_eq!(StoreError::new(fault, "put", String::new()).is_retryable(), later, "{kind:?}");
        }
    }
}
