//! What the service is asked over HTTP, and what it answers.
//!
//! | file | what it is for |
//! |---|---|
//! | `server` | connections: TLS, time limits, the end |
//! | `auth`, `rate` | who asks, and how often |
//! | `body`, `problem` | what comes in requests; what is wrong with them |
//! | `webhook` | LiveKit's webhooks |
//! | `rooms` | the calls that clients of the room-recording service make |
//! | `recordings`, `views` | callreel's own calls |
//! | `play`, `range` | recordings themselves, and what belongs to them |
//! | `events` | what happens to a recording, while it does |
//! | `admin` | keys and deliveries |
//! | `docs`, `ops` | what there is, and how the service fares |

mod admin;
mod auth;
mod body;
mod docs;
mod events;
mod ops;
mod play;
mod problem;
mod range;
mod rate;
mod recordings;
mod rooms;
mod server;
mod views;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Router, routing};
use tokio::sync::{mpsc, watch};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;

use crate::catalog::{Access, Catalog};
use crate::clock;
use crate::config::ServeConfig;
use crate::notify::Notifier;
use crate::store::Store;
use crate::traces;

use super::calls::Calls;
use super::links::Links;
use super::metrics::Metrics;

pub use auth::Peer;
pub use problem::Problem;
pub use server::{TlsError, acceptor, serve};
pub use webhook::WebhookQueue;

use auth::{Auth, Caller};

/// Everything that answering takes. Clones share it.
#[derive(Clone, Debug)]
pub struct App(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<ServeConfig>,
    catalog: Catalog,
    calls: Calls,
    store: Store,
    notifier: Notifier,
    metrics: Metrics,
    auth: Auth,
    links: Links,
    receiver: webhook::Receiver,
    ending: watch::Sender<bool>,
}

impl App {
    /// Puts everything together. The queue has the webhooks that were taken; whoever has it hands them on.
    ///
    /// `has_keys` says whether the catalogue has API keys.
    pub fn new(
        config: Arc<ServeConfig>,
        catalog: Catalog,
        calls: Calls,
        store: Store,
        notifier: Notifier,
        metrics: Metrics,
        has_keys: bool,
    ) -> (Self, WebhookQueue) {
        let places = usize::try_from(config.file.limits.webhook_queue).unwrap_or(usize::MAX);
        let (sender, events) = mpsc::channel(places.min(1 << 20));
        let inner = Inner {
            auth: Auth::new(&config, has_keys),
            links: Links::new(&config),
            receiver: webhook::Receiver::new(&config, sender),
            ending: watch::Sender::new(false),
            config,
            catalog,
            calls,
            store,
            notifier,
            metrics,
        };
        let app = Self(Arc::new(inner));
        let queue = WebhookQueue::new(app.clone(), events);
        (app, queue)
    }

    /// Lets what lasts for long come to its end: streams of events.
    pub fn end(&self) {
        self.0.ending.send_replace(true);
    }

    fn config(&self) -> &ServeConfig {
        &self.0.config
    }

    fn catalog(&self) -> &Catalog {
        &self.0.catalog
    }

    fn calls(&self) -> &Calls {
        &self.0.calls
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    fn notifier(&self) -> &Notifier {
        &self.0.notifier
    }

    fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    fn auth(&self) -> &Auth {
        &self.0.auth
    }

    fn links(&self) -> &Links {
        &self.0.links
    }

    fn receiver(&self) -> &webhook::Receiver {
        &self.0.receiver
    }

    fn ending(&self) -> watch::Receiver<bool> {
        self.0.ending.subscribe()
    }

    /// Notes who did what with a recording. That it cannot be noted keeps nobody from it: it is in the log, then.
    async fn note(&self, caller: &Caller, recording_id: &str, action: &str, status: StatusCode) {
        let remote = caller.address.map(|address| address.to_string());
        let access = Access {
            id: 0,
            at: clock::wall(),
            recording_id: recording_id.to_owned(),
            who: caller.name.clone(),
            action: action.to_owned(),
            remote,
            status: status.as_u16(),
        };
        if let Err(error) = self.catalog().log_access(&access).await {
            tracing::warn!(%error, recording_id, who = access.who, action, "an access is not in the catalogue");
        }
    }
}

/// The routes of callreel's own calls and of deployed clients, with their description.
fn api() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(docs::document())
        .merge(recordings::routes())
        .merge(play::routes())
        .merge(events::routes())
        .merge(rooms::routes())
        .merge(admin::routes())
        .merge(webhook::routes())
        .merge(ops::routes())
}

/// The description of every call, as OpenAPI has it.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().split_for_parts().1
}

/// Everything that can be asked.
pub fn router(app: App) -> Router {
    let (routes, document) = api().split_for_parts();
    let cors = cors(&app.config().file.cors.origins);
    let mut router = routes
        .merge(rooms::twins())
        .merge(webhook::twins())
        .merge(docs::routes(&document))
        .fallback(|| async { Problem::not_found("there is nothing here") })
        .method_not_allowed_fallback(|| async {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "that cannot be done here")
        })
        .layer(middleware::from_fn_with_state(app.clone(), measure));
    if let Some(cors) = cors {
        router = router.layer(cors);
    }
    // A panic in one answer is none of the others'.
    router.layer(CatchPanicLayer::custom(|_| Problem::internal().into_response())).with_state(app)
}

/// How long web pages may remember what they are allowed.
const CORS_AGE: Duration = Duration::from_secs(3_600);

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let own = [HeaderName::from_static("idempotency-key"), HeaderName::from_static("x-api-key")];
    let standard = [AUTHORIZATION, CONTENT_TYPE, header::RANGE, header::IF_NONE_MATCH, header::IF_RANGE];
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(standard.into_iter().chain(own).collect::<Vec<_>>())
        .expose_headers([header::CONTENT_RANGE, header::ACCEPT_RANGES, header::ETAG, header::LOCATION])
        .max_age(CORS_AGE);
    Some(layer)
}

/// Counts requests and how long they took, and says what goes for every answer.
async fn measure(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = clock::now();
    let method = match request.method().as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    };
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map(MatchedPath::as_str);
    let trace = traces::request(method, route, request.headers());
    let route = route.unwrap_or("none");
    let mut response = traces::within(&trace, next.run(request)).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    let took = clock::now() - begun;
    app.metrics().request(method, route, response.status().as_u16(), took);
    traces::answered(&trace, response.status().as_u16());
    tracing::debug!(method, route, status = response.status().as_u16(), ?took, "request");
    response
}

/// Where the service was asked, such as `http://127.0.0.1:8080`; none where the request does not say anything sensible.
struct AskedAt(Option<String>);

impl FromRequestParts<App> for AskedAt {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let is_plain = |host: &&str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte);
            !host.is_empty() && host.len() <= 255 && host.bytes().all(plain)
        };
        let scheme = if app.config().file.tls.cert.is_some() { "https" } else { "http" };
        Ok(Self(host.filter(is_plain).map(|host| format!("{scheme}://{host}"))))
    }
}

/// A handler under a second path, which the description leaves out.
fn twin(path: &str, methods: routing::MethodRouter<App>) -> Router<App> {
    Router::new().route(path, methods)
}
