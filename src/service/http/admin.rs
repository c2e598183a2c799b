//! Who else may do what, and what receivers were told: for those who may do everything.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalog::{ApiKey, Delivery, DeliveryState, MAX_PAGE, Scope};
use crate::clock;
use crate::config::{LONGEST_RETENTION, ScopeWord};

use super::App;
use super::auth::Caller;
use super::body::{Params, Payload, RecordingId, is_id, plain};
use super::problem::Problem;
use super::recordings::allowed;
use super::views::moment;

/// Entries in a list.
const PAGE: u32 = 100;

/// The longest that a key is valid, in days.
const MOST_DAYS: u32 = LONGEST_RETENTION;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(keys, make_key))
        .routes(routes!(revoke_key))
        .routes(routes!(deliveries))
        .routes(routes!(redeliver))
        .routes(routes!(accesses))
}

/// What is known of an API key.
#[derive(Debug, Serialize, ToSchema)]
struct Key {
    /// Its id.
    id: String,
    /// Whose it is.
    name: String,
    /// What it may do.
    scopes: Vec<ScopeWord>,
    /// When it was made.
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When it ends; none for never.
    #[schema(format = DateTime)]
    expires_at: Option<String>,
    /// When it was taken back.
    #[schema(format = DateTime)]
    revoked_at: Option<String>,
    /// When it was last used, to the minute.
    #[schema(format = DateTime)]
    last_used_at: Option<String>,
    /// The key itself: shown once, when it is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl From<ApiKey> for Key {
    fn from(key: ApiKey) -> Self {
        Self {
            id: key.id,
            name: key.name,
            scopes: key.scopes.into_iter().map(word).collect(),
            created_at: moment(Some(key.created_at)),
            expires_at: moment(key.expires_at),
            revoked_at: moment(key.revoked_at),
            last_used_at: moment(key.last_used_at),
            key: None,
        }
    }
}

/// The word for what a key of the catalogue may do.
pub(super) fn word(scope: Scope) -> ScopeWord {
    match scope {
        Scope::Read => ScopeWord::Read,
        Scope::Record => ScopeWord::Record,
        Scope::Delete => ScopeWord::Delete,
        Scope::Admin => ScopeWord::Admin,
    }
}

fn scope(word: ScopeWord) -> Scope {
    match word {
        ScopeWord::Read => Scope::Read,
        ScopeWord::Record => Scope::Record,
        ScopeWord::Delete => Scope::Delete,
        ScopeWord::Admin => Scope::Admin,
    }
}

/// Lists the API keys of the catalogue
#[utoipa::path(
    get, path = "/api/v1/keys", tag = "administration",
    responses(
        (status = 200, description = "The keys, without themselves", body = Vec<Key>),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn keys(State(app): State<App>, caller: Caller) -> Result<Json<Vec<Key>>, Problem> {
    caller.may(ScopeWord::Admin)?;
    Ok(Json(app.catalog().keys().await?.into_iter().map(Key::from).collect()))
}

/// An API key to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    /// Whose it is to be.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// What it may do.
    #[schema(min_items = 1)]
    scopes: Vec<ScopeWord>,
    /// For how many days. Default: for ever.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 36_500)]
    valid_days: Option<u32>,
}

/// Makes an API key
#[utoipa::path(
    post, path = "/api/v1/keys", tag = "administration", request_body = KeyBody,
    responses(
        (status = 201, description = "The key, this once", body = Key),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn make_key(
    State(app): State<App>,
    caller: Caller,
    Payload { value: body, .. }: Payload<KeyBody>,
) -> Result<(StatusCode, Json<Key>), Problem> {
    caller.may(ScopeWord::Admin)?;
    plain("name", &body.name, 128)?;
    let scopes: BTreeSet<Scope> = body.scopes.into_iter().map(scope).collect();
    if scopes.is_empty() {
        return Err(Problem::bad_request("a key that may do nothing is none"));
    }
    if body.valid_days.is_some_and(|days| days == 0 || days > MOST_DAYS) {
        return Err(Problem::bad_request(format!("valid_days is not between 1 and {MOST_DAYS}")));
    }
    let now = clock::wall();
    let expires = body.valid_days.map(|days| now + time::Duration::days(i64::from(days)));
    let scopes: Vec<Scope> = scopes.into_iter().collect();
    let (known, secret) = app.catalog().create_key(&body.name, &scopes, expires, now).await?;
    tracing::info!(key = known.id, name = known.name, by = caller.name, "an API key is made");
    Ok((StatusCode::CREATED, Json(Key { key: Some(secret.expose().to_owned()), ..known.into() })))
}

/// Takes an API key back
#[utoipa::path(
    delete, path = "/api/v1/keys/{key_id}", tag = "administration",
    params(("key_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It opens nothing any more", body = Key),
        (status = "default", description = "It does", body = Problem, content_type = "application/problem+json")
    )
)]
async fn revoke_key(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Key>, Problem> {
    caller.may(ScopeWord::Admin)?;
    if !is_id(&id) {
        return Err(Problem::not_found("there is no such key"));
    }
    let key = app.catalog().revoke_key(&id, clock::wall()).await?;
    tracing::info!(key = id, by = caller.name, "an API key is taken back");
    Ok(Json(key.into()))
}

/// Which deliveries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeliveryParams {
    /// `pending`, `delivered` or `dead`.
    state: Option<String>,
    /// Of which recording.
    recording_id: Option<String>,
    /// Before the delivery of this id.
    before: Option<String>,
    /// How many: 1 to 500. 100 unless said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
}

/// What a receiver was told, or is to be.
#[derive(Debug, Serialize, ToSchema)]
struct Told {
    /// Its id, the same at every attempt.
    id: String,
    /// What happened.
    event: String,
    /// To which recording.
    recording_id: String,
    /// Who is told, by name.
    endpoint: String,
    /// `pending`, `delivered` or `dead`.
    state: String,
    /// How often it was tried.
    attempts: u32,
    /// When it happened.
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When it is tried next.
    #[schema(format = DateTime)]
    next_at: Option<String>,
    /// When it was taken or given up.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// The receiver's last status code.
    last_status: Option<u16>,
    /// What went wrong last.
    last_error: Option<String>,
}

impl From<Delivery> for Told {
    fn from(delivery: Delivery) -> Self {
        let next_at = Some(delivery.next_at).filter(|_| delivery.state == DeliveryState::Pending);
        Self {
            id: delivery.id,
            event: delivery.event,
            recording_id: delivery.recording_id,
            endpoint: delivery.endpoint,
            state: delivery.state.as_str().to_owned(),
            attempts: delivery.attempts,
            created_at: moment(Some(delivery.created_at)),
            next_at: moment(next_at),
            ended_at: moment(delivery.ended_at),
            last_status: delivery.last_status,
            last_error: delivery.last_error,
        }
    }
}

/// Lists what receivers were told, the newest first
#[utoipa::path(
    get, path = "/api/v1/deliveries", tag = "administration", params(DeliveryParams),
    responses(
        (status = 200, description = "The deliveries", body = Vec<Told>),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn deliveries(
    State(app): State<App>,
    caller: Caller,
    Params(params): Params<DeliveryParams>,
) -> Result<Json<Vec<Told>>, Problem> {
    caller.may(ScopeWord::Admin)?;
    for (what, text) in [("recording_id", &params.recording_id), ("before", &params.before)] {
        if let Some(text) = text {
            plain(what, text, 128)?;
        }
    }
    let state = params.state.map(|word| word.parse::<DeliveryState>()).transpose().map_err(Problem::bad_request)?;
    let limit = params.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Problem::bad_request(format!("limit is not between 1 and {MAX_PAGE}")));
    }
    let (of, before) = (params.recording_id.as_deref(), params.before.as_deref());
    let found = app.catalog().deliveries(state, of, before, limit).await?;
    Ok(Json(found.into_iter().map(Told::from).collect()))
}

/// Tells a receiver again
#[utoipa::path(
    post, path = "/api/v1/deliveries/{delivery_id}/redeliver", tag = "administration",
    params(("delivery_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is told again soon", body = Told),
        (status = "default", description = "It is not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn redeliver(State(app): State<App>, caller: Caller, Path(id): Path<String>) -> Result<Json<Told>, Problem> {
    caller.may(ScopeWord::Admin)?;
    if !is_id(&id) {
        return Err(Problem::not_found("there is no such delivery"));
    }
    Ok(Json(app.catalog().redeliver(&id, clock::wall()).await?.into()))
}

/// Somebody who did something with a recording.
#[derive(Debug, Serialize, ToSchema)]
struct Accessed {
    /// When.
    #[schema(format = DateTime)]
    at: Option<String>,
    /// Who: `key:NAME`, `livekit:IDENTITY`, `signed-url` or `local`.
    who: String,
    /// What: `get`, `play 0`, `delete`…
    action: String,
    /// From which address.
    remote: Option<String>,
    /// The status code of the answer.
    status: u16,
}

/// Says who did what with a recording, the last first
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/accesses", tag = "administration",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "Up to 500", body = Vec<Accessed>),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn accesses(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
) -> Result<Json<Vec<Accessed>>, Problem> {
    allowed(&app, &caller, ScopeWord::Admin, &id).await?;
    let found = app.catalog().accesses(&id, None, MAX_PAGE).await?;
    let told = found.into_iter().map(|access| Accessed {
        at: moment(Some(access.at)),
        who: access.who,
        action: access.action,
        remote: access.remote,
        status: access.status,
    });
    Ok(Json(told.collect()))
}
