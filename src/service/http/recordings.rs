//! callreel's own calls: start, list, look at, stop, pause, resume, delete.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalog::{Answer, Filter, Idempotency, MAX_PAGE, Row};
use crate::clock;
use crate::config::{EngineWord, FallbackWord, LONGEST_RETENTION, OutputKind, ScopeWord};
use crate::hex;
use crate::recording::{Outcome, PauseOrder, PausePolicy};
use crate::service::calls::StartRequest;
use crate::service::rules::Wish;

use super::auth::Caller;
use super::body::{LONGEST_ROOM, Params, Payload, RecordingId, plain};
use super::problem::Problem;
use super::views::{Recording, Recordings};
use super::{App, AskedAt};

/// Recordings on a page, unless said otherwise.
const PAGE: u32 = 50;

/// The longest text that is searched for, in bytes.
const LONGEST_SEARCH: usize = 256;

/// The most of somebody's own that is kept with a recording, in bytes of JSON.
const MOST_METADATA: usize = 16 * 1_024;

/// The longest reason that is kept, in bytes.
const LONGEST_REASON: usize = 1_024;

/// How long an idempotency key is known.
const KEY_AGE: time::Duration = time::Duration::DAY;

/// How long a request with an idempotency key may take before it can be made again.
const CLAIM: time::Duration = time::Duration::minutes(2);

/// The longest time that can be said in seconds: a year.
const LONGEST_TIME: f64 = 366.0 * 86_400.0;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list, start))
        .routes(routes!(get, delete))
        .routes(routes!(stop))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(hold))
}

/// A recording that somebody asks for. What is not said is as the rule has it that is about the room.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct StartBody {
    /// The room's name.
    #[schema(min_length = 1, max_length = 512, example = "call-1234")]
    room: String,
    /// Which files.
    #[serde(default)]
    #[schema(min_items = 1)]
    outputs: Option<Vec<OutputKind>>,
    /// `ogg`, `webm`, `mp4`, `wav`, `flac` or `mp3`; several with commas.
    #[serde(default)]
    #[schema(example = "ogg")]
    format: Option<String>,
    /// Whether the picture is recorded, too.
    #[serde(default)]
    video: Option<bool>,
    /// The picture's layout.
    #[serde(default)]
    layout: Option<String>,
    /// What names begin with.
    #[serde(default)]
    prefix: Option<String>,
    /// The name template behind that.
    #[serde(default)]
    name: Option<String>,
    /// Who records.
    #[serde(default)]
    engine: Option<EngineWord>,
    /// What stands in.
    #[serde(default)]
    fallback: Option<FallbackWord>,
    /// Days until it is deleted; 0 for never.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 36_500)]
    retention_days: Option<u32>,
    /// What files have where it was paused.
    #[serde(default)]
    pause_policy: Option<PausePolicy>,
    /// Signs of consent, any of which lets it begin: `attribute=KEY`, `attribute=KEY=VALUE` or `message=TOPIC`.
    #[serde(default)]
    consent: Vec<String>,
    /// The longest recording.
    #[serde(default)]
    #[schema(exclusive_minimum = 0, maximum = 31_622_400)]
    max_duration_seconds: Option<f64>,
    /// What is to be kept with it.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    metadata: Value,
}

/// The longest that a recording is kept by days, about a hundred years.
const MOST_DAYS: u32 = LONGEST_RETENTION;

impl StartBody {
    fn check(self, by: &str) -> Result<StartRequest, Problem> {
        plain("room", &self.room, LONGEST_ROOM)?;
        for (what, text) in
            [("format", &self.format), ("layout", &self.layout), ("prefix", &self.prefix), ("name", &self.name)]
        {
            if let Some(text) = text {
                plain(what, text, LONGEST_ROOM)?;
            }
        }
        for sign in &self.consent {
            plain("consent", sign, LONGEST_ROOM)?;
        }
        if self.consent.len() > 32 {
            return Err(Problem::bad_request("consent has more than 32 signs"));
        }
        if self.retention_days.is_some_and(|days| days > MOST_DAYS) {
            return Err(Problem::bad_request(format!("retention_days is more than {MOST_DAYS}")));
        }
        let max_duration =
            self.max_duration_seconds.map(|seconds| time_of("max_duration_seconds", seconds)).transpose()?;
        let metadata = match self.metadata {
            Value::Null => Value::Object(serde_json::Map::new()),
            object @ Value::Object(_) => object,
            _ => return Err(Problem::bad_request("metadata is no object")),
        };
        let bytes = metadata.to_string();
        if bytes.len() > MOST_METADATA {
            return Err(Problem::bad_request(format!("metadata has more than {MOST_METADATA} bytes")));
        }
        if bytes.contains("\\u0000") {
            return Err(Problem::bad_request("metadata has a text with U+0000, which no database keeps"));
        }
        Ok(StartRequest {
            room: self.room,
            by: by.to_owned(),
            wish: Wish {
                outputs: self.outputs,
                format: self.format,
                video: self.video,
                layout: self.layout,
                prefix: self.prefix,
                name: self.name,
                engine: self.engine,
                fallback: self.fallback,
                retention_days: self.retention_days,
                pause: self.pause_policy,
                consent: self.consent,
                max_duration,
            },
            metadata,
        })
    }
}

fn time_of(what: &str, seconds: f64) -> Result<Duration, Problem> {
    if seconds > 0.0 && seconds <= LONGEST_TIME {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(Problem::bad_request(format!("{what} is not between 0 and {LONGEST_TIME}")))
    }
}

/// Starts a recording
///
/// With an `Idempotency-Key`, the same request made again gets the same answer and starts nothing.
#[utoipa::path(
    post, path = "/api/v1/recordings", tag = "recordings",
    params(("Idempotency-Key" = Option<String>, Header, description = "Any text of your own, up to 255 characters",
            min_length = 1, max_length = 255)),
    request_body = StartBody,
    responses(
        (status = 201, description = "It begins", body = Recording,
         headers(("Location" = String, description = "Where it can be looked at"))),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn start(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    AskedAt(asked_at): AskedAt,
    Payload { value: body, bytes }: Payload<StartBody>,
) -> Result<Response, Problem> {
    caller.may_in(ScopeWord::Record, &body.room)?;
    let request = body.check(&caller.name)?;
    // What nobody can make is refused before anybody is asked whether the room is there.
    request.wish.apply(&app.config().base, &request.room)?;
    let Some(key) = headers.get("idempotency-key") else {
        let row = app.calls().start(request).await?;
        app.note(&caller, &row.recording_id, "start", StatusCode::CREATED).await;
        return created(&app, row, asked_at.as_deref());
    };
    let key = key.to_str().map_err(|_| Problem::bad_request("the idempotency key is no plain text"))?.to_owned();
    plain("the idempotency key", &key, 255)?;
    // Carried out whole, so that whoever asks again after hanging up gets the answer.
    let whole =
        tokio::spawn(async move { start_once(&app, &caller, &key, &bytes, request, asked_at.as_deref()).await });
    whole.await.map_err(|_| Problem::internal())?
}

/// Starts a recording, unless a request with this idempotency key did.
async fn start_once(
    app: &App,
    caller: &Caller,
    key: &str,
    bytes: &[u8],
    request: StartRequest,
    asked_at: Option<&str>,
) -> Result<Response, Problem> {
    let (now, hash) = (clock::wall(), hex::encode(Sha256::digest(bytes)));
    let known = app.catalog().idempotency(&caller.name, key, &hash, now, now + CLAIM, now + KEY_AGE).await?;
    match known {
        Idempotency::New => {}
        Idempotency::Done(answer) => {
            let recording_id = answer.body;
            let row = find(app, &recording_id).await?;
            return created(app, row, asked_at);
        }
        Idempotency::InProgress => {
            return Err(Problem::conflict("in-progress", "a request with this idempotency key is being carried out"));
        }
        Idempotency::Other => {
            let detail = "this idempotency key was used with another body";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-mismatch", detail));
        }
    }
    let started = app.calls().start(request).await;
    let kept = match &started {
        Ok(row) => {
            let answer = Answer { status: StatusCode::CREATED.as_u16(), body: row.recording_id.clone() };
            app.catalog().remember(&caller.name, key, &answer).await
        }
        Err(_) => app.catalog().forget(&caller.name, key).await,
    };
    if let Err(error) = kept {
        tracing::warn!(%error, "an idempotency key is not kept");
    }
    let row = started?;
    app.note(caller, &row.recording_id, "start", StatusCode::CREATED).await;
    created(app, row, asked_at)
}

fn created(app: &App, row: Row, asked_at: Option<&str>) -> Result<Response, Problem> {
    let location = format!("/api/v1/recordings/{}", row.recording_id);
    let location = HeaderValue::from_str(&location).map_err(|_| Problem::internal())?;
    let body = Json(view(app, row, asked_at));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], body).into_response())
}

/// Which recordings.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListParams {
    /// The room's name.
    room: Option<String>,
    /// LiveKit's id of the room.
    room_id: Option<String>,
    /// Where they stand; several with commas.
    status: Option<String>,
    /// What became of them: `complete`, `degraded`, `empty`, `failed` or `blocked`.
    outcome: Option<String>,
    /// The identity of somebody who was there.
    participant: Option<String>,
    /// The rule that wanted them.
    rule: Option<String>,
    /// That began then or later.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<String>,
    /// That began before then.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<String>,
    /// A text in their rooms' names, ids, or participants' identities and names.
    q: Option<String>,
    /// Deleted ones, instead of those that are there.
    deleted: Option<bool>,
    /// How many: 1 to 500. 50 unless said.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl ListParams {
    fn filter(self) -> Result<(Filter, Option<String>, u32), Problem> {
        for (what, text) in [
            ("room", &self.room),
            ("room_id", &self.room_id),
            ("participant", &self.participant),
            ("rule", &self.rule),
            ("cursor", &self.cursor),
        ] {
            if let Some(text) = text {
                plain(what, text, LONGEST_ROOM)?;
            }
        }
        if let Some(text) = &self.q {
            plain("q", text, LONGEST_SEARCH)?;
        }
        let status = self.status.iter().flat_map(|words| words.split(',')).map(|word| word.trim().parse());
        let status = status.collect::<Result<Vec<_>, String>>().map_err(Problem::bad_request)?;
        let outcome = self.outcome.map(|word| {
            serde_json::from_value::<Outcome>(word.into())
                .map_err(|error| Problem::bad_request(format!("outcome: {error}")))
        });
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Problem::bad_request(format!("limit is not between 1 and {MAX_PAGE}")));
        }
        let filter = Filter {
            room: self.room,
            room_id: self.room_id,
            room_or_id: None,
            status,
            outcome: outcome.transpose()?,
            participant: self.participant,
            rule: self.rule,
            from: self.from.map(|text| instant("from", &text)).transpose()?,
            to: self.to.map(|text| instant("to", &text)).transpose()?,
            search: self.q,
            deleted: self.deleted.unwrap_or(false),
        };
        Ok((filter, self.cursor, limit))
    }
}

fn instant(what: &str, text: &str) -> Result<OffsetDateTime, Problem> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| Problem::bad_request(format!("{what} is no moment as RFC 3339 has it: 2026-01-31T12:00:00Z")))
}

/// Lists recordings, the newest first
#[utoipa::path(
    get, path = "/api/v1/recordings", tag = "recordings", params(ListParams),
    responses(
        (status = 200, description = "One page", body = Recordings),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    AskedAt(asked_at): AskedAt,
    Params(params): Params<ListParams>,
) -> Result<Json<Recordings>, Problem> {
    caller.may(ScopeWord::Read)?;
    let (mut filter, cursor, limit) = params.filter()?;
    if let Some(own) = caller.room() {
        if filter.room.as_deref().is_some_and(|room| room != own) {
            return Err(Problem::forbidden("this token is for another room"));
        }
        filter.room = Some(own.to_owned());
    }
    let page = app.catalog().list(&filter, cursor.as_deref(), limit).await?;
    let recordings = page.rows.into_iter().map(|row| view(&app, row, asked_at.as_deref())).collect();
    Ok(Json(Recordings { recordings, next: page.next }))
}

/// Gives one recording
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The recording, also a deleted one", body = Recording),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn get(
    State(app): State<App>,
    caller: Caller,
    AskedAt(asked_at): AskedAt,
    RecordingId(id): RecordingId,
) -> Result<Json<Recording>, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    app.note(&caller, &id, "get", StatusCode::OK).await;
    Ok(Json(view(&app, row, asked_at.as_deref())))
}

/// Why somebody does something.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WhyParams {
    /// Why, for the tombstone.
    #[param(max_length = 1024)]
    reason: Option<String>,
}

/// Deletes a recording and everything that belongs to it
///
/// A tombstone stays: its id, room and times, and who deleted it when and why.
#[utoipa::path(
    delete, path = "/api/v1/recordings/{recording_id}", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id"), WhyParams),
    responses(
        (status = 200, description = "It is deleted, or on its way there", body = Recording),
        (status = "default", description = "It is not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn delete(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
    Params(why): Params<WhyParams>,
) -> Result<Json<Recording>, Problem> {
    allowed(&app, &caller, ScopeWord::Delete, &id).await?;
    let why = why.reason.unwrap_or_default();
    if !why.is_empty() {
        plain("reason", &why, LONGEST_REASON)?;
    }
    let row = app.calls().delete(&id, &caller.name, &why).await?;
    app.note(&caller, &id, "delete", StatusCode::OK).await;
    Ok(Json(view(&app, row, None)))
}

/// Ends a recording
#[utoipa::path(
    post, path = "/api/v1/recordings/{recording_id}/stop", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It ends", body = Recording),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn stop(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
) -> Result<Json<Recording>, Problem> {
    allowed(&app, &caller, ScopeWord::Record, &id).await?;
    let row = app.calls().stop(&id, &caller.name).await?;
    app.note(&caller, &id, "stop", StatusCode::OK).await;
    Ok(Json(view(&app, row, None)))
}

/// A pause.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct PauseBody {
    /// Why, for the manifest.
    #[schema(max_length = 1024)]
    reason: String,
    /// What files have there, unless as configured.
    policy: Option<PausePolicy>,
    /// After how long it goes on by itself.
    #[schema(exclusive_minimum = 0, maximum = 31_622_400)]
    resume_after_seconds: Option<f64>,
}

/// Pauses a recording
///
/// What is spoken until it goes on is kept nowhere.
#[utoipa::path(
    post, path = "/api/v1/recordings/{recording_id}/pause", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")), request_body = Option<PauseBody>,
    responses(
        (status = 200, description = "It pauses", body = Recording),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn pause(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
    Payload { value: body, .. }: Payload<Option<PauseBody>>,
) -> Result<Json<Recording>, Problem> {
    allowed(&app, &caller, ScopeWord::Record, &id).await?;
    let body = body.unwrap_or_default();
    if !body.reason.is_empty() {
        plain("reason", &body.reason, LONGEST_REASON)?;
    }
    let resume_after = body.resume_after_seconds.map(|seconds| time_of("resume_after_seconds", seconds)).transpose()?;
    let order = PauseOrder { by: caller.name.clone(), reason: body.reason, policy: body.policy, resume_after };
    let row = app.calls().pause(&id, order).await?;
    app.note(&caller, &id, "pause", StatusCode::OK).await;
    Ok(Json(view(&app, row, None)))
}

/// Lets a recording go on
#[utoipa::path(
    post, path = "/api/v1/recordings/{recording_id}/resume", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It goes on", body = Recording),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn resume(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
) -> Result<Json<Recording>, Problem> {
    allowed(&app, &caller, ScopeWord::Record, &id).await?;
    let row = app.calls().resume(&id, &caller.name).await?;
    app.note(&caller, &id, "resume", StatusCode::OK).await;
    Ok(Json(view(&app, row, None)))
}

/// Whether a recording must not be deleted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct HoldBody {
    /// Whether it must not.
    held: bool,
}

/// Puts a recording under legal hold, or lets it go
#[utoipa::path(
    put, path = "/api/v1/recordings/{recording_id}/hold", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")), request_body = HoldBody,
    responses(
        (status = 200, description = "It is as was said", body = Recording),
        (status = "default", description = "It is not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn hold(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
    Payload { value: body, .. }: Payload<HoldBody>,
) -> Result<Json<Recording>, Problem> {
    allowed(&app, &caller, ScopeWord::Admin, &id).await?;
    let row = app.catalog().hold(&id, body.held, clock::wall()).await?;
    app.note(&caller, &id, if body.held { "hold" } else { "release" }, StatusCode::OK).await;
    Ok(Json(view(&app, row, None)))
}

/// The recording of this id, with which the caller may do that.
pub(super) async fn allowed(app: &App, caller: &Caller, scope: ScopeWord, id: &str) -> Result<Row, Problem> {
    // First, so that who may do nothing learns nothing.
    caller.may(scope)?;
    let row = find(app, id).await?;
    caller.may_with(scope, &row)?;
    Ok(row)
}

async fn find(app: &App, id: &str) -> Result<Row, Problem> {
    app.catalog().get(id).await?.ok_or_else(|| Problem::no_recording(id))
}

fn view(app: &App, row: Row, asked_at: Option<&str>) -> Recording {
    let expires = clock::wall() + app.config().file.downloads.valid.0;
    let download = app.links().download(&row, expires, asked_at);
    Recording::new(row, download)
}
