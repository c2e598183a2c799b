//! Everybody who talks, in rooms of a real server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use super::script::Script;
use crate::clock;
use crate::testkit::{LiveKitServer, Publisher, PublisherConfig, TestkitError, TrackOptions, Voice};

/// How many calls are set up at a time.
const AT_A_TIME: usize = 8;

/// How long after everybody has been told, a call begins.
const LEAD: Duration = Duration::from_millis(400);

/// How many packets further into the script each call begins than the one before.
pub(super) const APART: usize = 37;

/// How long a packet is spoken before it is sent.
const FRAME: Duration = Duration::from_millis(20);

/// One call's talkers.
pub(super) struct Talk {
    /// The packet of the script with which the call begins.
    pub(super) from: usize,
    /// A track each.
    pub(super) voices: Vec<Voice>,
    publishers: Vec<Publisher>,
}

/// All calls' talkers, on threads of their own.
pub(super) struct Crowd {
    script: Arc<Script>,
    talkers: usize,
    runtime: Option<Runtime>,
    pub(super) talks: Vec<Talk>,
}

/// The name of a call's room.
pub(super) fn room(call: usize) -> String {
    format!("load-{call}")
}

impl Crowd {
    pub(super) fn new(script: Arc<Script>, talkers: usize) -> Result<Self, TestkitError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("publishers")
            .enable_all()
            .build()
            .map_err(TestkitError::io("a runtime for publishers"))?;
        Ok(Self { script, talkers, runtime: Some(runtime), talks: Vec::new() })
    }

    /// Opens calls until there are so many.
    pub(super) async fn grow(&mut self, server: &LiveKitServer, calls: usize) -> Result<(), TestkitError> {
        let mut opening = JoinSet::new();
        let mut opened = Vec::new();
        for call in self.talks.len()..calls {
            if opening.len() == AT_A_TIME
                && let Some(talk) = opening.join_next().await
            {
                opened.push(flatten(talk)?);
            }
            let configs = (0..self.talkers).map(|talker| self.config(server, call, talker)).collect();
            opening.spawn(open(Arc::clone(&self.script), call, configs));
        }
        while let Some(talk) = opening.join_next().await {
            opened.push(flatten(talk)?);
        }
        opened.sort_by_key(|(call, _)| *call);
        self.talks.extend(opened.into_iter().map(|(_, talk)| talk));
        Ok(())
    }

    /// How late the latest packet left that was to be sent since `from`.
    pub(super) fn latest(&self, from: Instant) -> Duration {
        let late = |voice: &Voice| {
            let packets = voice.sent().packets();
            let since = packets.partition_point(|packet| packet.at < from);
            let start = voice.start();
            let late = packets[since..]
                .iter()
                .map(|packet| packet.at.saturating_duration_since(start + packet.position.as_duration() + FRAME));
            late.max().unwrap_or(Duration::ZERO)
        };
        self.talks.iter().flat_map(|talk| &talk.voices).map(late).max().unwrap_or(Duration::ZERO)
    }

    /// How many packets were sent.
    pub(super) fn sent(&self) -> u64 {
        self.talks.iter().flat_map(|talk| &talk.voices).map(|voice| voice.sent().len() as u64).sum()
    }

    /// Everybody leaves.
    pub(super) async fn leave(&mut self) {
        let mut leaving = JoinSet::new();
        for publisher in self.talks.drain(..).flat_map(|talk| talk.publishers) {
            leaving.spawn(publisher.crash());
        }
        leaving.join_all().await;
    }

    fn config(&self, server: &LiveKitServer, call: usize, talker: usize) -> PublisherConfig {
        let config = PublisherConfig::on(server, &room(call), &format!("talker-{talker}"));
        match &self.runtime {
            Some(runtime) => config.runtime(runtime.handle().clone()),
            None => config,
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn flatten<T>(done: Result<Result<T, TestkitError>, tokio::task::JoinError>) -> Result<T, TestkitError> {
    done.map_err(|error| TestkitError::Publisher(error.to_string()))?
}

async fn open(script: Arc<Script>, call: usize, configs: Vec<PublisherConfig>) -> Result<(usize, Talk), TestkitError> {
    let from = call * APART % script.frames();
    let mut publishers = Vec::new();
    for config in configs {
        publishers.push(Publisher::join(config).await?);
    }
    let begin = clock::now() + LEAD;
    let mut voices = Vec::new();
    for (talker, publisher) in publishers.iter().enumerate() {
        // Nobody's packets begin together with anybody else's.
        let start = begin + Duration::from_millis((call * 7 + talker * 9) as u64 % 20);
        let options = TrackOptions::default().start(start);
        voices.push(publisher.publish_prepared(script.packets(talker), from, options).await?);
    }
    Ok((call, Talk { from, voices, publishers }))
}
