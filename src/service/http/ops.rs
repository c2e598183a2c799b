//! How the service fares: for orchestrators and Prometheus. No key is needed; nothing here names a room or a person.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;

/// How long the catalogue may take to answer a probe.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// How the service fares.
#[derive(Debug, Serialize, ToSchema)]
struct Health {
    /// `ok`, `draining` or `catalogue`: what is missing.
    status: &'static str,
    /// Recordings of this process that are not over.
    recordings: usize,
    /// Why no further recording is taken now; none where one is.
    refusal: Option<String>,
}

/// Says that the process is alive
#[utoipa::path(
    get, path = "/healthz", tag = "operation", security(),
    responses((status = 200, description = "It is", body = Health))
)]
async fn healthz(State(app): State<App>) -> Json<Health> {
    Json(health(&app, "ok"))
}

/// Says whether the service can be asked
///
/// A service that takes no further recording at the moment can be.
#[utoipa::path(
    get, path = "/readyz", tag = "operation", security(),
    responses((status = 200, description = "It can", body = Health), (status = 503, description = "It cannot", body = Health))
)]
async fn readyz(State(app): State<App>) -> (StatusCode, Json<Health>) {
    if app.calls().status().is_draining || *app.ending().borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(health(&app, "draining")));
    }
    match tokio::time::timeout(PATIENCE, app.catalog().ping()).await {
        Ok(Ok(())) => (StatusCode::OK, Json(health(&app, "ok"))),
        Ok(Err(_)) | Err(_) => (StatusCode::SERVICE_UNAVAILABLE, Json(health(&app, "catalogue"))),
    }
}

fn health(app: &App, status: &'static str) -> Health {
    let calls = app.calls().status();
    Health { status, recordings: calls.recordings, refusal: calls.refusal }
}

/// Gives figures for Prometheus
#[utoipa::path(
    get, path = "/metrics", tag = "operation", security(),
    responses((status = 200, description = "The figures", body = String, content_type = "application/openmetrics-text"))
)]
async fn metrics(State(app): State<App>) -> Response {
    let calls = app.calls().status();
    app.metrics().draining.set(i64::from(calls.is_draining));
    let told = app.notifier().figures();
    for (result, count) in [("delivered", told.delivered), ("failed", told.failed), ("dead", told.dead)] {
        app.metrics().deliveries(result, count);
    }
    if let Ok(Ok(counts)) = tokio::time::timeout(PATIENCE, app.catalog().delivery_counts()).await {
        app.metrics().waiting("deliveries", counts.pending);
        app.metrics().waiting("dead_deliveries", counts.dead);
    }
    let form = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, form)], app.metrics().text()).into_response()
}
