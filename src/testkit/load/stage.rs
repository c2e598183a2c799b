//! Where calls happen: in rooms of a real server, or at the replay.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::crowd::{APART, Crowd, room};
use super::recorders::Place;
use super::replay::{self, Replay};
use super::script::Script;
use crate::testkit::{LiveKitServer, TestkitError, Voice};

/// Where packets come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Publishers, through a real livekit-server.
    #[default]
    Server,
    /// This process, encrypted and sent straight to the recorder's sockets: for the limit of the recorder alone.
    Replay,
}

pub(super) enum Stage {
    Server { server: Box<LiveKitServer>, crowd: Crowd },
    Replay(Replay),
}

/// Who began when.
pub(super) struct Said {
    /// The packet of the script with which the call began.
    pub(super) from: usize,
    /// When each talker's first sample was spoken.
    pub(super) starts: Vec<Instant>,
}

impl Stage {
    pub(super) async fn set(source: Source, script: &Arc<Script>, talkers: usize) -> Result<Self, TestkitError> {
        let script = Arc::clone(script);
        Ok(match source {
            Source::Server => Self::Server {
                server: Box::new(LiveKitServer::builder().log_level("warn").start().await?),
                crowd: Crowd::new(script, talkers)?,
            },
            Source::Replay => Self::Replay(Replay::start(script, talkers, APART).await?),
        })
    }

    /// Has everybody talk, where they do not wait for a recorder.
    pub(super) async fn grow(&mut self, calls: usize) -> Result<(), TestkitError> {
        match self {
            Self::Server { server, crowd } => crowd.grow(server, calls).await,
            Self::Replay(_) => Ok(()),
        }
    }

    /// Where a recorder finds a call.
    pub(super) fn place(&self, call: usize, out: PathBuf) -> Place {
        let (url, key, secret) = match self {
            Self::Server { server, .. } => (server.url(), server.api_key(), server.api_secret()),
            Self::Replay(replay) => (replay.url().to_owned(), replay::KEY, replay::SECRET),
        };
        Place { url, key: key.to_owned(), secret: secret.to_owned(), room: room(call), out }
    }

    /// How late the latest packet left since `from`, which is when this was asked last.
    pub(super) fn take_late(&self, from: Instant) -> Duration {
        match self {
            Self::Server { crowd, .. } => crowd.latest(from),
            Self::Replay(replay) => replay.take_late(),
        }
    }

    /// How many packets were sent.
    pub(super) fn sent(&self) -> u64 {
        match self {
            Self::Server { crowd, .. } => crowd.sent(),
            Self::Replay(replay) => replay.sent(),
        }
    }

    pub(super) fn said(&self, call: usize) -> Said {
        match self {
            Self::Server { crowd, .. } => crowd.talks.get(call).map_or(Said { from: 0, starts: Vec::new() }, |talk| {
                Said { from: talk.from, starts: talk.voices.iter().map(Voice::start).collect() }
            }),
            Self::Replay(replay) => Said { from: replay.from(call), starts: replay.begun(call) },
        }
    }

    pub(super) fn server_pids(&self) -> Vec<u32> {
        match self {
            Self::Server { server, .. } => server.pid().into_iter().collect(),
            Self::Replay(_) => Vec::new(),
        }
    }

    pub(super) async fn clear(&mut self) {
        match self {
            Self::Server { crowd, .. } => crowd.leave().await,
            Self::Replay(_) => {}
        }
    }
}
