//! The calls that clients of the room-recording service make, in its words. Each with a trailing slash and without.

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalog::{Filter, MAX_PAGE, Row, Status};
use crate::clock;
use crate::config::ScopeWord;
use crate::service::calls::StartRequest;
use crate::service::rules::Wish;

use super::auth::Caller;
use super::body::{Payload, RoomName, plain};
use super::problem::Problem;
use super::views::{formatted, whole_second};
use super::{App, AskedAt, twin};

/// The most recordings of one room that are listed.
const MOST_LISTED: usize = 5_000;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(start)).routes(routes!(stop)).routes(routes!(list))
}

/// The same without trailing slashes.
pub(super) fn twins() -> Router<App> {
    twin("/api/v1/rooms/{room_id}/start-recording", post(start))
        .merge(twin("/api/v1/rooms/{room_id}/stop-recording", post(stop)))
        .merge(twin("/api/v1/rooms/{room_id}/recordings", get(list)))
}

/// What clients of the room-recording service ask for.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
struct StartBody {
    /// `speaker`, `grid` or `single-speaker`.
    #[schema(example = "grid")]
    layout: Option<String>,
    /// `mp4`; for sound alone any of `ogg`, `webm`, `mp4`, `wav`, `flac`, `mp3`. `webm` with a picture is made by nobody.
    #[schema(example = "mp4")]
    file_format: Option<String>,
    /// Whether there is no picture.
    audio_only: bool,
}

/// What became of an order.
#[derive(Debug, Serialize, ToSchema)]
struct Ordered {
    /// The recording's id.
    #[schema(example = "EG_xxxxx")]
    recording_id: String,
    /// Where it stands.
    #[schema(example = "starting")]
    status: &'static str,
    /// The same for people.
    #[schema(example = "Recording started successfully.")]
    message: &'static str,
    /// The recording.
    recording: Brief,
}

/// A recording that has just been started or stopped.
#[derive(Debug, Serialize, ToSchema)]
struct Brief {
    /// Its number.
    id: i64,
    /// Its id.
    recording_id: String,
    /// Where it stands.
    status: &'static str,
    /// When it was started.
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// The container.
    file_format: String,
}

/// A recording in a list.
#[derive(Debug, Serialize, ToSchema)]
struct Listed {
    /// Its number.
    id: i64,
    /// Its id.
    recording_id: String,
    /// `starting`, `active`, `stopping`, `stopped`, `ready` or `failed`.
    status: &'static str,
    /// When it began.
    #[schema(format = DateTime)]
    started_at: Option<String>,
    /// When it ended.
    #[schema(format = DateTime)]
    ended_at: Option<String>,
    /// How long it plays, in whole seconds.
    duration_seconds: u64,
    /// The same for people.
    duration_formatted: String,
    /// Its size.
    file_size_bytes: u64,
    /// The container.
    file_format: String,
    /// Where it can be fetched; none before it is ready.
    download_url: Option<String>,
}

/// Starts recording a room
///
/// As clients of the room-recording service do. Pictures are made by LiveKit Egress; sound alone is Ogg unless another
/// format is asked for and can be had.
#[utoipa::path(
    post, path = "/api/v1/rooms/{room_id}/start-recording/", tag = "rooms",
    params(("room_id" = String, Path, description = "The room's name")), request_body = Option<StartBody>,
    responses(
        (status = 201, description = "It begins", body = Ordered),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn start(
    State(app): State<App>,
    caller: Caller,
    RoomName(room): RoomName,
    Payload { value: body, .. }: Payload<Option<StartBody>>,
) -> Result<(StatusCode, Json<Ordered>), Problem> {
    caller.may_in(ScopeWord::Record, &room)?;
    let wish = wish(&app, body.unwrap_or_default(), &room)?;
    let metadata = serde_json::json!({});
    let row = app.calls().start(StartRequest { room, by: caller.name.clone(), wish, metadata }).await?;
    app.note(&caller, &row.recording_id, "start", StatusCode::CREATED).await;
    Ok((StatusCode::CREATED, Json(ordered(row, "starting", "Recording started successfully."))))
}

fn wish(app: &App, body: StartBody, room: &str) -> Result<Wish, Problem> {
    for (what, text) in [("layout", &body.layout), ("file_format", &body.file_format)] {
        if let Some(text) = text {
            plain(what, text, 64)?;
        }
    }
    let format = body.file_format.map(|format| format.to_ascii_lowercase());
    let can_be_had = |wish: Wish| wish.apply(&app.config().base, room).map(|_| wish);
    if !body.audio_only {
        let is_sound = format.as_deref().is_some_and(|format| !["mp4", "webm"].contains(&format));
        let (format, layout) = (format.unwrap_or_else(|| "mp4".into()), body.layout.filter(|_| !is_sound));
        let wish = Wish { format: Some(format), video: Some(!is_sound), layout, ..Wish::default() };
        return can_be_had(wish).map_err(Problem::from);
    }
    let sound = |format| Wish { format, video: Some(false), ..Wish::default() };
    can_be_had(sound(format)).or_else(|_| can_be_had(sound(Some("ogg".into())))).map_err(Problem::from)
}

/// Stops recording a room
#[utoipa::path(
    post, path = "/api/v1/rooms/{room_id}/stop-recording/", tag = "rooms",
    params(("room_id" = String, Path, description = "The room's name")),
    responses(
        (status = 200, description = "It ends", body = Ordered),
        (status = "default", description = "It does not", body = Problem, content_type = "application/problem+json")
    )
)]
async fn stop(State(app): State<App>, caller: Caller, RoomName(room): RoomName) -> Result<Json<Ordered>, Problem> {
    caller.may_in(ScopeWord::Record, &room)?;
    let filter = Filter { room_or_id: Some(room.clone()), ..Filter::default() };
    let running: Vec<Status> = Status::ALL.into_iter().filter(|status| status.is_in_room()).collect();
    let page = app.catalog().list(&Filter { status: running, ..filter.clone() }, None, 1).await?;
    let Some(row) = page.rows.into_iter().find(|row| caller.may_in(ScopeWord::Record, &row.room_name).is_ok()) else {
        return match app.catalog().list(&filter, None, 1).await?.rows.first() {
            Some(last) => {
                let detail = format!("nothing is recorded in {room:?}; the last recording is {}", last.status);
                Err(Problem::conflict("wrong-state", detail).about(&last.recording_id))
            }
            None => Err(Problem::not_found(format!("nothing is recorded in {room:?}"))),
        };
    };
    let row = app.calls().stop(&row.recording_id, &caller.name).await?;
    app.note(&caller, &row.recording_id, "stop", StatusCode::OK).await;
    Ok(Json(ordered(row, "stopping", "Recording stopped successfully.")))
}

/// Lists a room's recordings, the newest first
#[utoipa::path(
    get, path = "/api/v1/rooms/{room_id}/recordings/", tag = "rooms",
    params(("room_id" = String, Path, description = "The room's name")),
    responses(
        (status = 200, description = "The recordings", body = Vec<Listed>),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    AskedAt(asked_at): AskedAt,
    RoomName(room): RoomName,
) -> Result<Json<Vec<Listed>>, Problem> {
    caller.may_in(ScopeWord::Read, &room)?;
    let filter = Filter { room_or_id: Some(room), ..Filter::default() };
    let expires = clock::wall() + app.config().file.downloads.valid.0;
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let page = app.catalog().list(&filter, cursor.as_deref(), MAX_PAGE).await?;
        let own = page.rows.into_iter().filter(|row| caller.may_in(ScopeWord::Read, &row.room_name).is_ok());
        listed.extend(own.map(|row| {
            let download_url = app.links().download(&row, expires, asked_at.as_deref());
            Listed {
                id: row.id,
                recording_id: row.recording_id.clone(),
                status: row.status.as_deployed(),
                started_at: whole_second(row.started_at),
                ended_at: whole_second(row.ended_at),
                // What is negative or no number is nothing.
                duration_seconds: row.duration_seconds.round() as u64,
                duration_formatted: formatted(row.duration_seconds),
                file_size_bytes: row.file_size_bytes,
                file_format: row.file_format,
                download_url,
            }
        }));
        cursor = page.next;
        if cursor.is_none() || listed.len() >= MOST_LISTED {
            return Ok(Json(listed));
        }
    }
}

fn ordered(row: Row, status: &'static str, message: &'static str) -> Ordered {
    let recording_id = row.recording_id.clone();
    Ordered {
        recording_id: recording_id.clone(),
        status,
        message,
        recording: Brief {
            id: row.id,
            recording_id,
            status,
            started_at: whole_second(row.started_at),
            file_format: row.file_format,
        },
    }
}
