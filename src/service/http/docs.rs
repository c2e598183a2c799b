//! What there is to ask: the OpenAPI document, and a page on which it can be tried. Nothing comes from foreign hosts.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, SecurityRequirement};
use utoipa::{Modify, OpenApi};
use utoipa_swagger_ui::Config;

use super::App;
use super::problem::Problem;

/// Where the page is.
const PAGE: &str = "/api/docs/";

/// Where the document is.
const DOCUMENT: &str = "/api/v1/openapi.json";

/// The page loads nothing from elsewhere, and nobody frames it.
const POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// Recordings of LiveKit calls: started, listed, played, deleted.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "callreel",
        description = "Recordings of LiveKit calls: started, listed, played, deleted. Errors are RFC 9457 problems; their `type` does not change."
    ),
    tags(
        (name = "recordings", description = "Recordings, and what is done with them"),
        (name = "playback", description = "Their sound, and what belongs to it"),
        (name = "rooms", description = "The calls of the room-recording service"),
        (name = "administration", description = "Keys, deliveries, accesses: with the scope `admin`"),
        (name = "livekit", description = "What the LiveKit server calls"),
        (name = "operation", description = "How the service fares")
    ),
    modifiers(&Security)
)]
struct Api;

struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut Document) {
        let bearer = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("An API key, or a LiveKit access token with roomRecord, or roomAdmin of a room"))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        document.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
}

/// The document before any call is described.
pub(super) fn document() -> Document {
    Api::openapi()
}

/// The document and the page.
pub(super) fn routes(document: &Document) -> Router<App> {
    // It does not change while the service runs.
    let text = Bytes::from(document.to_json().unwrap_or_default());
    let config = Arc::new(Config::from(DOCUMENT).validator_url("none"));
    let page = move |path: String| {
        let config = config.clone();
        async move { page(&path, config) }
    };
    let first = page.clone();
    Router::new()
        .route(DOCUMENT, get(|| async move { ([(header::CONTENT_TYPE, "application/json")], text).into_response() }))
        .route("/api/docs", get(|| async { Redirect::permanent(PAGE) }))
        .route(PAGE, get(move || first(String::new())))
        .route("/api/docs/{*path}", get(move |Path(path): Path<String>| page(path)))
}

fn page(path: &str, config: Arc<Config<'static>>) -> Result<Response, Problem> {
    let file = utoipa_swagger_ui::serve(path, config).map_err(|error| {
        tracing::error!(%error, "the page cannot be shown");
        Problem::internal()
    })?;
    let file = file.ok_or_else(|| Problem::not_found("the page has no such part"))?;
    let mut response = file.bytes.into_owned().into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&file.content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(HeaderName::from_static("x-frame-options"), HeaderValue::from_static("DENY"));
    Ok(response)
}
