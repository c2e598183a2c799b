use std::path::PathBuf;

/// What can go wrong in the testkit. Every message says what was tried, so that a failing test explains itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestkitError {
    /// A tool that the testkit starts is not installed.
    #[error("{tool} not found at {}: run `make tools`", path.display())]
    MissingTool {
        /// What is missing.
        tool: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// livekit-server ended before it was ready, or never became ready.
    #[error("livekit-server did not start: {reason}; the end of its log:\n{log}")]
    ServerStart {
        /// What was seen.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// Another server ended before it was ready, or never became ready.
    #[error("{tool} did not start: {reason}; the end of its log:\n{log}")]
    ToolStart {
        /// Which.
        tool: &'static str,
        /// What was seen.
        reason: String,
        /// The last lines of its log.
        log: String,
    },
    /// A storage server refused what a test needs; the text says what and why.
    #[error("storage server, {0}")]
    Storage(String),
    /// A script of the official SDK failed.
    #[error("{name}: {reason}; it said:\n{said}")]
    Script {
        /// The script.
        name: &'static str,
        /// What was seen.
        reason: String,
        /// What it wrote on standard error.
        said: String,
    },
    /// A file, port or process refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A sound could not be read, written or converted.
    #[error("{what}: {reason}")]
    Audio {
        /// The file, or the conversion.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A publisher could not join, publish or go on; the text says which and why.
    #[error("{0}")]
    Publisher(String),
    /// A call that is acted out in memory could not go on.
    #[error("simulation: {0}")]
    Simulation(String),
    /// The server's room service refused a call.
    #[error("room service, {what}: {source}")]
    Service {
        /// What was asked.
        what: String,
        /// The service's answer.
        source: livekit_api::services::ServiceError,
    },
}

impl TestkitError {
    /// Wraps an IO error with what was tried.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// A failure with a sound, named by its file or by what was done to it.
    pub(crate) fn audio(what: impl AsRef<std::path::Path>, reason: impl std::fmt::Display) -> Self {
        Self::Audio { what: what.as_ref().display().to_string(), reason: reason.to_string() }
    }

    /// Wraps a room service error with what was asked.
    pub(crate) fn service(what: impl Into<String>) -> impl FnOnce(livekit_api::services::ServiceError) -> Self {
        let what = what.into();
        move |source| Self::Service { what, source }
    }
}
