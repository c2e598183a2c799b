//! One receiver's deliveries: what is due is sent, and what came of it noted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};

use super::config::{Endpoint, NotifyConfig};
use super::event::Links;
use super::sign::{SIGNATURE, sign};
use crate::catalog::{Attempt, Catalog, CatalogError, Delivery};
use crate::clock;
use crate::traces;

/// How long a catalogue that does not answer is left alone, at first and at most.
const CATALOG_WAIT: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// How much longer than its time limit an attempt may take, note in the catalogue included.
const LEASE_MARGIN: Duration = Duration::from_secs(20);

/// What was done since the process began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) delivered: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) dead: AtomicU64,
}

/// What delivers to one receiver.
pub(super) struct Worker {
    pub(super) catalog: Catalog,
    pub(super) config: Arc<NotifyConfig>,
    pub(super) endpoint: Endpoint,
    pub(super) url: Url,
    pub(super) client: Client,
    pub(super) links: Arc<dyn Links>,
    pub(super) counters: Arc<Counters>,
}

/// What came of one attempt.
enum Sent {
    Taken(StatusCode),
    /// Try again, not before so long where the receiver said.
    Again {
        status: Option<StatusCode>,
        why: String,
        not_before: Option<Duration>,
    },
    /// The receiver never wants to hear it again.
    Gone(StatusCode),
}

/// What a delivery becomes by an attempt.
#[derive(Clone, Copy)]
enum Becomes {
    Delivered,
    Due(OffsetDateTime),
    Dead,
}

impl Worker {
    /// Delivers until `stop` is set; attempts that are under way then are ended.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let worker = Arc::new(self);
        let mut told = worker.catalog.told();
        let mut under_way = JoinSet::new();
        let mut wait = CATALOG_WAIT.0;
        while !*stop.borrow() {
            // What is stored from here on is seen by the next look.
            told.mark_unchanged();
            let pause = match worker.begin(&mut under_way).await {
                Ok(pause) => {
                    wait = CATALOG_WAIT.0;
                    pause
                }
                Err(error) => {
                    tracing::warn!(%error, endpoint = worker.endpoint.name, "deliveries wait for the catalogue");
                    let pause = wait;
                    wait = (wait * 2).min(CATALOG_WAIT.1);
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Some(ended) = under_way.join_next() => worker.ended(ended),
                // The catalogue holds the other end as long as the worker does.
                _ = told.changed() => {}
                _ = stop.changed() => {}
            }
        }
        while let Some(ended) = under_way.join_next().await {
            worker.ended(ended);
        }
    }

    /// Begins what is due, as far as there is room, and gives how long there is nothing else to begin.
    async fn begin(self: &Arc<Self>, under_way: &mut JoinSet<()>) -> Result<Duration, CatalogError> {
        let room = (self.config.at_once.max(1) as usize).saturating_sub(under_way.len());
        if room > 0 {
            let now = clock::wall();
            let until = now + self.config.timeout + LEASE_MARGIN;
            let limit = u32::try_from(room).unwrap_or(u32::MAX);
            let due = self.catalog.due(&[&self.endpoint.name], now, until, limit).await?;
            let is_full = due.len() == room;
            for delivery in due {
                let worker = Arc::clone(self);
                under_way.spawn(async move { worker.deliver(&delivery).await });
            }
            if !is_full {
                return self.idle_for().await;
            }
        }
        // The next begins when one of these ends.
        Ok(self.config.look_every)
    }

    fn ended(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended {
            tracing::error!(%error, endpoint = self.endpoint.name, "a delivery ended by itself");
        }
    }

    async fn idle_for(&self) -> Result<Duration, CatalogError> {
        let next = self.catalog.next_due(&[&self.endpoint.name]).await?;
        let until = next
            .map_or(self.config.look_every, |next| Duration::try_from(next - clock::wall()).unwrap_or(Duration::ZERO));
        // Never in a circle: somebody else may hold what is due.
        Ok(until.clamp(Duration::from_millis(20), self.config.look_every))
    }

    /// One attempt, and its note in the catalogue. Where that fails for good the attempt is made again once its lease is over:
    /// a receiver may be told twice, and never not at all.
    async fn deliver(&self, delivery: &Delivery) {
        let trace = traces::delivery(delivery, &self.endpoint.name);
        let (attempt, becomes) = self.attempt(delivery).await;
        traces::delivered(trace, attempt.status, matches!(becomes, Becomes::Delivered));
        let counter = match becomes {
            Becomes::Delivered => &self.counters.delivered,
            Becomes::Due(_) => &self.counters.failed,
            Becomes::Dead => &self.counters.dead,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let note = async {
            let mut wait = CATALOG_WAIT.0;
            loop {
                let noted = match becomes {
                    Becomes::Delivered => self.catalog.delivered(delivery, &attempt).await,
                    Becomes::Due(at) => self.catalog.failed(delivery, &attempt, at).await,
                    Becomes::Dead => self.catalog.dead(delivery, &attempt).await,
                };
                match noted {
                    Err(error) if error.is_transient() => {
                        tracing::debug!(%error, delivery = delivery.id, "not noted yet")
                    }
                    noted => return noted,
                }
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
        };
        match tokio::time::timeout(LEASE_MARGIN, note).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => tracing::info!(delivery = delivery.id, "somebody else has taken the delivery over"),
            Ok(Err(error)) => tracing::warn!(%error, delivery = delivery.id, "what came of a delivery is not noted"),
            Err(_) => tracing::warn!(delivery = delivery.id, "what came of a delivery is not noted: no catalogue"),
        }
    }

    /// Tries once, and says what the delivery becomes.
    async fn attempt(&self, delivery: &Delivery) -> (Attempt, Becomes) {
        let Delivery { id, event, recording_id, attempts, .. } = delivery;
        let sent = self.send(delivery).await;
        let now = clock::wall();
        let endpoint = self.endpoint.name.as_str();
        match sent {
            Sent::Taken(status) => {
                tracing::debug!(delivery = id, event, recording_id, endpoint, %status, "delivered");
                (Attempt { status: Some(status.as_u16()), error: None, at: now }, Becomes::Delivered)
            }
            Sent::Gone(status) => {
                tracing::warn!(delivery = id, event, recording_id, endpoint, %status, "given up");
                let error = Some("the receiver wants no more of it".to_owned());
                (Attempt { status: Some(status.as_u16()), error, at: now }, Becomes::Dead)
            }
            Sent::Again { status, why, not_before } => {
                let wait = self.config.wait(*attempts, fastrand::f64());
                let wait = not_before.map_or(wait, |least| wait.max(least)).min(self.config.longest_wait);
                let is_old = now + wait - delivery.tried_since > self.config.max_age;
                let becomes = if *attempts >= self.config.max_attempts || is_old {
                    tracing::warn!(delivery = id, event, recording_id, endpoint, attempts, "given up: {why}");
                    Becomes::Dead
                } else {
                    tracing::info!(
                        delivery = id,
                        event,
                        recording_id,
                        endpoint,
                        attempts,
                        ?wait,
                        "not delivered: {why}"
                    );
                    Becomes::Due(now + wait)
                };
                let status = status.map(|status| status.as_u16());
                (Attempt { status, error: Some(why), at: now }, becomes)
            }
        }
    }

    async fn send(&self, delivery: &Delivery) -> Sent {
        let within = tokio::time::timeout(self.config.timeout, async {
            let body = self.endpoint.format.render(&delivery.body, &*self.links).await;
            let body = body.map_err(|error| format!("where its files are is not known: {error}"))?;
            let request = self.client.post(self.url.clone()).headers(self.headers(delivery, &body)).body(body);
            request.send().await.map_err(|error| causes(&error.without_url()))
        });
        let late = || Err(format!("no answer within {} s", self.config.timeout.as_secs_f64()));
        match within.await.unwrap_or_else(|_| late()) {
            // What it says beside is nobody's business here: it is not read.
            Ok(response) => judge(&response),
            Err(why) => Sent::Again { status: None, why, not_before: None },
        }
    }

    fn headers(&self, delivery: &Delivery, body: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let signature = self.endpoint.secret.as_ref().map(|secret| sign(secret.expose(), body, clock::wall()));
        let texts = [
            ("x-callreel-delivery", Some(delivery.id.clone())),
            ("x-callreel-event", Some(delivery.event.clone())),
            ("x-callreel-attempt", Some(delivery.attempts.to_string())),
            (SIGNATURE, signature),
        ];
        for (name, value) in texts {
            // Ids, words and digits: what a header cannot hold is not among them.
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                headers.insert(name, value);
            }
        }
        headers
    }
}

fn judge(response: &Response) -> Sent {
    let status = response.status();
    if status.is_success() {
        return Sent::Taken(status);
    }
    if status == StatusCode::GONE {
        return Sent::Gone(status);
    }
    let why = match status.is_redirection() {
        true => format!("{status}: it leads elsewhere, where nobody follows"),
        false => status.to_string(),
    };
    let asked = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Sent::Again { status: Some(status), why, not_before: asked.map(Duration::from_secs) }
}

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
