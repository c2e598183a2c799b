//! LiveKit's webhooks: checked, put in a queue, answered. Who takes them from the queue may be slow; who sends them never
//! waits for that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use livekit_api::access_token::{Claims, TokenVerifier};
use livekit_protocol::WebhookEvent;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clock;
use crate::config::ServeConfig;

use super::auth::Peer;
use super::problem::Problem;
use super::{App, body, twin};

/// How far the LiveKit server's clock may be ahead.
const AHEAD: time::Duration = time::Duration::minutes(2);

/// How long the catalogue may take to say whether a webhook came before, and how long it is left alone where it does not.
const ANSWERS_WITHIN: Duration = Duration::from_millis(300);
const LEFT_ALONE: Duration = Duration::from_secs(5);

/// Of how many webhooks this is asked at a time.
const AT_ONCE: usize = 32;

/// The events that LiveKit has; others are counted together.
const EVENTS: [&str; 13] = [
    "room_started",
    "room_finished",
    "participant_joined",
    "participant_left",
    "participant_connection_aborted",
    "track_published",
    "track_unpublished",
    "egress_started",
    "egress_updated",
    "egress_ended",
    "ingress_started",
    "ingress_ended",
    "agent_job_ended",
];

/// Takes webhooks.
#[derive(Debug)]
pub(super) struct Receiver {
    verifiers: Vec<TokenVerifier>,
    queue: mpsc::Sender<WebhookEvent>,
}

impl Receiver {
    pub(super) fn new(config: &ServeConfig, queue: mpsc::Sender<WebhookEvent>) -> Self {
        let verifiers =
            config.webhook_keys.iter().map(|(key, secret)| TokenVerifier::with_api_key(key, secret.expose()));
        Self { verifiers: verifiers.collect(), queue }
    }

    /// What a token that is signed with one of our keys claims.
    fn claims(&self, token: &str) -> Option<Claims> {
        self.verifiers.iter().find_map(|verifier| verifier.verify(token).ok())
    }
}

/// Webhooks that were taken, and what is to be done with them.
#[derive(Debug)]
pub struct WebhookQueue {
    app: App,
    events: mpsc::Receiver<WebhookEvent>,
    /// Until when the catalogue is not asked, because it did not answer.
    unasked_until: Arc<Mutex<Option<Instant>>>,
}

impl WebhookQueue {
    pub(super) fn new(app: App, events: mpsc::Receiver<WebhookEvent>) -> Self {
        Self { app, events, unasked_until: Arc::default() }
    }

    /// Hands each webhook to the supervisor, once; their order does not matter there. Ends with the service.
    pub async fn run(mut self) {
        let keep = time::Duration::try_from(self.app.config().file.limits.webhook_age.0).unwrap_or(time::Duration::DAY);
        let mut asking = JoinSet::new();
        while let Some(event) = self.events.recv().await {
            self.app.metrics().waiting("webhooks", self.events.len() as u64);
            while asking.try_join_next().is_some() {}
            if asking.len() >= AT_ONCE {
                asking.join_next().await;
            }
            let novelty = Novelty { app: self.app.clone(), unasked_until: self.unasked_until.clone() };
            // Twice as long as an event may be old, so that it is not forgotten before it is too old.
            asking.spawn(async move { novelty.hand_on(event, clock::wall() + keep * 2).await });
        }
    }
}

/// Who finds out whether a webhook is new.
struct Novelty {
    app: App,
    unasked_until: Arc<Mutex<Option<Instant>>>,
}

impl Novelty {
    async fn hand_on(self, event: WebhookEvent, until: time::OffsetDateTime) {
        let word = word(&event.event);
        if !event.id.is_empty() && !self.is_first(&event.id, until).await {
            self.app.metrics().webhook(word, "duplicate");
            return;
        }
        self.app.metrics().webhook(word, "taken");
        self.app.calls().webhook(event).await;
    }

    /// Whether a webhook is new. Where the catalogue does not say so at once, it is: twice is harmless, and never is not.
    async fn is_first(&self, id: &str, until: time::OffsetDateTime) -> bool {
        if self.unasked().is_some_and(|at| clock::now() < at) {
            return true;
        }
        let asked = self.app.catalog().first_of_webhook(id, until);
        match tokio::time::timeout(ANSWERS_WITHIN, asked).await {
            Ok(Ok(is_first)) => is_first,
            Ok(Err(error)) => self.leave_alone(&error),
            Err(late) => self.leave_alone(&late),
        }
    }

    fn leave_alone(&self, why: &dyn std::fmt::Display) -> bool {
        tracing::warn!(%why, "whether a webhook came twice cannot be told");
        *self.unasked() = Some(clock::now() + LEFT_ALONE);
        true
    }

    fn unasked(&self) -> MutexGuard<'_, Option<Instant>> {
        // Nothing panics while it is held.
        self.unasked_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(receive))
}

/// The same under the paths that deployed LiveKit servers call.
pub(super) fn twins() -> Router<App> {
    ["/webhook-receiver/", "/livekit/webhook", "/livekit/webhook/", "/api/webhooks/livekit", "/api/webhooks/livekit/"]
        .into_iter()
        .fold(Router::new(), |router, path| router.merge(twin(path, post(receive))))
}

/// Takes an event of the LiveKit server
///
/// Signed with a key of the LiveKit server, its body's SHA-256 in the token. Also at `/livekit/webhook` and
/// `/api/webhooks/livekit/`.
#[utoipa::path(
    post, path = "/webhook-receiver", tag = "livekit", security(),
    request_body(content = String, content_type = "application/webhook+json", description = "LiveKit's event"),
    responses(
        (status = 200, description = "Taken"),
        (status = "default", description = "Not taken", body = Problem, content_type = "application/problem+json")
    )
)]
async fn receive(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let address = peer.map(|Extension(peer)| peer.0.ip());
    match take(&app, &headers, body).await {
        Ok(()) => Ok(StatusCode::OK),
        Err(problem) => {
            let result =
                if problem.status == StatusCode::SERVICE_UNAVAILABLE.as_u16() { "overflow" } else { "refused" };
            app.metrics().webhook("unknown", result);
            tracing::warn!(status = problem.status, why = problem.detail, "a webhook is refused");
            let is_forged = problem.status == StatusCode::UNAUTHORIZED.as_u16();
            Err(if is_forged { app.auth().refuse(address, problem) } else { problem })
        }
    }
}

async fn take(app: &App, headers: &HeaderMap, body: Body) -> Result<(), Problem> {
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.ok_or_else(|| Problem::unauthorized("a webhook is signed: Authorization has a token"))?;
    let token = token.strip_prefix("Bearer ").unwrap_or(token).trim();
    // Before anything of the body is read: who has no key gets no memory.
    let claims = app.receiver().claims(token);
    let claims = claims.ok_or_else(|| Problem::unauthorized("the signature is of no known key, or over"))?;
    let limits = &app.config().file.limits;
    let most = usize::try_from(limits.webhook_body).unwrap_or(usize::MAX);
    let bytes = body::read(body, most, limits.request_time.0).await?;
    let told = BASE64_STANDARD.decode(&claims.sha256).unwrap_or_default();
    let is_same = aws_lc_rs::constant_time::verify_slices_are_equal(&told, &Sha256::digest(&bytes));
    is_same.map_err(|_| Problem::unauthorized("the body is not the one that was signed"))?;
    let event: WebhookEvent = serde_json::from_slice(&bytes)
        .map_err(|error| Problem::bad_request(format!("the body is no event: {error}")))?;
    let oldest = time::Duration::try_from(limits.webhook_age.0).unwrap_or(time::Duration::DAY);
    let now = clock::wall();
    let created = OffsetDateTime::from_unix_timestamp(event.created_at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    if now - created > oldest || created - now > AHEAD {
        return Err(Problem::unauthorized("the event is too old, or of a time that has not come"));
    }
    app.receiver().queue.try_send(event).map_err(|_| Problem::unavailable("too many webhooks wait"))
}

fn word(event: &str) -> &'static str {
    EVENTS.into_iter().find(|known| *known == event).unwrap_or("other")
}
