//! Recordings themselves: their sound, by ranges, from whichever store; and what belongs to them.

use std::ops::Range;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalog::Row;
use crate::clock;
use crate::config::{OutputKind, ScopeWord};
use crate::store::{Store, StoreError};

use super::auth::{Caller, Peer};
use super::body::{Params, Payload, RecordingId, is_id};
use super::problem::Problem;
use super::range::{Wanted, wanted};
use super::recordings::allowed;
use super::views::{SignedUrl, moment};
use super::{App, AskedAt};

/// The bytes that are asked of a store at first, so that a player begins soon.
const FIRST_CHUNK: u64 = 128 * 1_024;

/// The most bytes that are asked of a store at once, and thus held for one listener.
const MOST_CHUNK: u64 = 2 * 1_024 * 1_024;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(audio))
        .routes(routes!(manifest))
        .routes(routes!(waveform))
        .routes(routes!(speakers))
        .routes(routes!(sign))
        .routes(routes!(play))
}

/// Which of a recording's files.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AudioParams {
    /// Its place among the files, from 0. Default: the first, or the one that the rest says.
    output: Option<usize>,
    /// What is in it: `mix`, `dual` or `tracks`.
    kind: Option<OutputKind>,
    /// Whose voice, for `tracks`.
    participant: Option<String>,
}

/// Gives a recording's sound
///
/// By ranges, too; the file as it is in its store.
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/audio", tag = "playback",
    params(("recording_id" = String, Path, description = "Its id"), AudioParams,
           ("Range" = Option<String>, Header, description = "Such as `bytes=0-65535`")),
    responses(
        (status = 200, description = "The file", content_type = "audio/ogg"),
        (status = 206, description = "A part of it", content_type = "audio/ogg"),
        (status = 304, description = "It is as it was"),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn audio(
    State(app): State<App>,
    method: Method,
    caller: Caller,
    RecordingId(id): RecordingId,
    Params(params): Params<AudioParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let is_meant = |(index, output): &(usize, &crate::recording::OutputResult)| {
        params.output.is_none_or(|wanted| wanted == *index)
            && params.kind.is_none_or(|wanted| wanted == output.kind)
            && params.participant.as_ref().is_none_or(|wanted| output.participant.as_ref() == Some(wanted))
    };
    let found = row.outputs.iter().enumerate().find(is_meant).map(|(index, _)| index);
    if let (Some(index), true) = (found, begins(&headers)) {
        app.note(&caller, &id, &format!("play {index}"), StatusCode::OK).await;
    }
    file(&app, &method, &row, found, &headers).await
}

/// A signed address's signature.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SignedParams {
    /// Until when it holds, in seconds since 1970.
    expires: i64,
    /// The signature.
    signature: String,
}

/// Gives a recording's file to whoever has its signed address
#[utoipa::path(
    get, path = "/api/v1/play/{recording_id}/{output}", tag = "playback", security(),
    params(("recording_id" = String, Path, description = "Its id"),
           ("output" = u32, Path, description = "The place among its files, from 0"), SignedParams,
           ("Range" = Option<String>, Header, description = "Such as `bytes=0-65535`")),
    responses(
        (status = 200, description = "The file", content_type = "audio/ogg"),
        (status = 206, description = "A part of it", content_type = "audio/ogg"),
        (status = 304, description = "It is as it was"),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn play(
    State(app): State<App>,
    method: Method,
    peer: Option<Extension<Peer>>,
    Path((id, output)): Path<(String, String)>,
    Params(signed): Params<SignedParams>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let address = peer.map(|Extension(peer)| peer.0.ip());
    let output = output.parse::<usize>().ok().filter(|_| is_id(&id));
    let output = output.ok_or_else(|| Problem::not_found("there is no such recording"))?;
    if !app.links().check(&id, output, signed.expires, &signed.signature, clock::wall()) {
        let problem = Problem::forbidden("the address's signature is wrong, or its time is over");
        return Err(app.auth().refuse(address, problem));
    }
    let row = app.catalog().get(&id).await?.ok_or_else(|| Problem::no_recording(&id))?;
    let found = Some(output).filter(|output| *output < row.outputs.len());
    if begins(&headers) {
        app.note(&Caller::with_signature(address), &id, &format!("play {output}"), StatusCode::OK).await;
    }
    file(&app, &method, &row, found, &headers).await
}

/// Gives what is known of a recording, sample by sample
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/manifest", tag = "playback",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The manifest", body = Object),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn manifest(State(app): State<App>, caller: Caller, RecordingId(id): RecordingId) -> Result<Response, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let (_, bytes) = manifest_of(&app, &row).await?;
    app.note(&caller, &id, "manifest", StatusCode::OK).await;
    Ok(([(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}

/// Gives a recording's waveform, as `audiowaveform` has it
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/waveform", tag = "playback",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The waveform", body = Object),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn waveform(State(app): State<App>, caller: Caller, RecordingId(id): RecordingId) -> Result<Response, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let (key, bytes) = manifest_of(&app, &row).await?;
    sidecar(&app, &key, &bytes, "peaks", "application/json").await
}

/// In which form.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SpeakersParams {
    /// `json` or `vtt`. Default `json`.
    format: Option<String>,
}

/// Who spoke when.
#[derive(Debug, Serialize, ToSchema)]
struct Speakers {
    /// The recording's id.
    recording_id: String,
    /// How long it plays.
    duration_seconds: f64,
    /// Who spoke when, by its start.
    speech: Vec<Speech>,
}

/// A stretch in which somebody spoke.
#[derive(Debug, Serialize, ToSchema)]
struct Speech {
    /// Who.
    participant: String,
    /// From when.
    from_seconds: f64,
    /// Until when.
    to_seconds: f64,
}

/// Says who spoke when in a recording
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/speakers", tag = "playback",
    params(("recording_id" = String, Path, description = "Its id"), SpeakersParams),
    responses(
        (status = 200, description = "Who spoke when", content((Speakers = "application/json"), (String = "text/vtt"))),
        (status = "default", description = "Not known", body = Problem, content_type = "application/problem+json")
    )
)]
async fn speakers(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
    Params(params): Params<SpeakersParams>,
) -> Result<Response, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let (key, bytes) = manifest_of(&app, &row).await?;
    match params.format.as_deref() {
        Some("vtt") => return sidecar(&app, &key, &bytes, "speakers", "text/vtt; charset=utf-8").await,
        None | Some("json") => {}
        Some(other) => return Err(Problem::bad_request(format!("{other:?} is neither json nor vtt"))),
    }
    let manifest = parsed(&bytes)?;
    let seconds = |value: &Value| value.as_f64().unwrap_or_default() / 48_000.0;
    let entries = manifest["speech"].as_array().map_or(&[][..], Vec::as_slice);
    let speech = entries.iter().map(|entry| Speech {
        participant: entry["participant"].as_str().unwrap_or_default().to_owned(),
        from_seconds: seconds(&entry["from_sample"]),
        to_seconds: seconds(&entry["to_sample"]),
    });
    let speech = speech.collect();
    Ok(Json(Speakers { recording_id: id, duration_seconds: row.duration_seconds, speech }).into_response())
}

/// What an address is to give, and for how long.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct SignBody {
    /// The place among the recording's files, from 0.
    output: usize,
    /// For how long. Default: as configured.
    #[schema(minimum = 1, maximum = 31_622_400)]
    valid_seconds: Option<u32>,
}

/// Makes an address that gives a recording to whoever has it, for a while
#[utoipa::path(
    post, path = "/api/v1/recordings/{recording_id}/url", tag = "playback",
    params(("recording_id" = String, Path, description = "Its id")), request_body = Option<SignBody>,
    responses(
        (status = 200, description = "The address", body = SignedUrl),
        (status = "default", description = "None", body = Problem, content_type = "application/problem+json")
    )
)]
async fn sign(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
    AskedAt(asked_at): AskedAt,
    Payload { value: body, .. }: Payload<Option<SignBody>>,
) -> Result<Json<SignedUrl>, Problem> {
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let body = body.unwrap_or_default();
    there(&row)?;
    if body.output >= row.outputs.len() {
        return Err(Problem::not_found(format!("the recording has {} files", row.outputs.len())).about(id));
    }
    let file = &app.config().file;
    let longest = file.auth.playback_longest.0.as_secs();
    let valid = body.valid_seconds.map_or(file.downloads.valid.0.as_secs().min(longest), u64::from);
    if valid == 0 || valid > longest {
        return Err(Problem::bad_request(format!("valid_seconds is not between 1 and {longest}")));
    }
    let expires = clock::wall() + std::time::Duration::from_secs(valid);
    let url = app.links().signed(&id, body.output, expires, asked_at.as_deref());
    let url =
        url.ok_or_else(|| Problem::bad_request("the service does not know how it is reached: downloads.public_url"))?;
    app.note(&caller, &id, "sign", StatusCode::OK).await;
    Ok(Json(SignedUrl { url, expires_at: moment(Some(expires)).unwrap_or_default() }))
}

/// Asks whether a recording is over and not deleted.
fn there(row: &Row) -> Result<(), Problem> {
    if row.deleted.is_some() {
        let detail = "the recording is deleted";
        return Err(Problem::new(StatusCode::GONE, "deleted", detail).about(&row.recording_id));
    }
    if !row.status.is_finished() {
        let detail = format!("the recording is {}", row.status);
        return Err(Problem::conflict("not-ready", detail).about(&row.recording_id));
    }
    Ok(())
}

/// Whether somebody begins to listen, rather than going on.
fn begins(headers: &HeaderMap) -> bool {
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    range.is_none_or(|range| range.replace(' ', "").starts_with("bytes=0-"))
}

/// One of a recording's files, or what of it is asked for.
async fn file(
    app: &App,
    method: &Method,
    row: &Row,
    index: Option<usize>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    there(row)?;
    let output = index.and_then(|index| row.outputs.get(index));
    let output = output.ok_or_else(|| Problem::not_found("the recording has no such file").about(&row.recording_id))?;
    let key = key_of(app.store(), row, &output.location);
    let key = key.ok_or_else(|| Problem::not_found("the file is in no store that is configured"))?;
    let size = match output.bytes {
        0 => app.store().head(&key).await?.ok_or_else(|| Problem::not_found("the file is not in its store"))?.size,
        bytes => bytes,
    };
    let tag = if output.sha256.is_empty() { format!("{}-{size}", row.recording_id) } else { output.sha256.clone() };
    let etag = format!("\"{tag}\"");
    let told = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let is_same = |list: &str| list == "*" || list.split(',').any(|one| one.trim().trim_start_matches("W/") == etag);
    let name = key.rsplit('/').next().unwrap_or_default();
    let mut answer = HeaderMap::new();
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    for (header, value) in [(header::ETAG, etag.clone()), (header::CONTENT_DISPOSITION, disposition(name))] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            answer.insert(header, value);
        }
    }
    if told(header::IF_NONE_MATCH).is_some_and(is_same) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    // A range of another version would be nonsense.
    let range = told(header::RANGE).filter(|_| told(header::IF_RANGE).is_none_or(|tag| tag == etag));
    let (status, range) = match wanted(range, size) {
        Wanted::Whole => (StatusCode::OK, 0..size),
        Wanted::Part(range) => {
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            answer.insert(header::CONTENT_RANGE, HeaderValue::from_str(&told).map_err(|_| Problem::internal())?);
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Wanted::Nothing => {
            let problem =
                Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, "range", format!("the file has {size} bytes"));
            let told = HeaderValue::from_str(&format!("bytes */{size}")).map_err(|_| Problem::internal())?;
            return Ok(([(header::CONTENT_RANGE, told)], problem).into_response());
        }
    };
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if *method == Method::HEAD {
        return Ok((status, answer).into_response());
    }
    // The first bytes before the answer begins, so that what is not there is told as such.
    let first = Reading { store: app.store().clone(), key, range, chunk: FIRST_CHUNK };
    let (bytes, rest) = match first.next().await? {
        Some(read) => read,
        None => return Ok((status, answer).into_response()),
    };
    let rest = stream::try_unfold(rest, |reading| async move { reading.next().await.map_err(std::io::Error::other) });
    let whole = stream::StreamExt::chain(stream::iter([Ok(bytes)]), rest);
    Ok((status, answer, Body::from_stream(whole)).into_response())
}

/// A file that is read from its store, as fast as somebody listens.
struct Reading {
    store: Store,
    key: String,
    range: Range<u64>,
    chunk: u64,
}

impl Reading {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, StoreError> {
        if self.range.is_empty() {
            return Ok(None);
        }
        let end = self.range.end.min(self.range.start + self.chunk);
        let bytes = self.store.get(&self.key, Some(self.range.start..end)).await?;
        // A file that is shorter than it was ends the answer early, which its length gives away.
        self.range.start = if bytes.is_empty() { self.range.end } else { self.range.start + bytes.len() as u64 };
        self.chunk = (self.chunk * 2).min(MOST_CHUNK);
        Ok((!bytes.is_empty()).then_some((bytes, self)))
    }
}

/// The key under which the store has what is at `location`.
fn key_of(store: &Store, row: &Row, location: &str) -> Option<String> {
    let known = row.objects.iter().chain(&row.storage_key);
    if let Some(key) = known.into_iter().find(|key| store.location(key) == location) {
        return Some(key.clone());
    }
    let below = location.strip_prefix(store.location("").trim_end_matches('/'))?.strip_prefix('/')?;
    let is_safe = !below.is_empty() && below.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    is_safe.then(|| below.to_owned())
}

async fn manifest_of(app: &App, row: &Row) -> Result<(String, Bytes), Problem> {
    there(row)?;
    let location = row.manifest.as_ref();
    let location =
        location.ok_or_else(|| Problem::not_found("the recording has no manifest").about(&row.recording_id))?;
    let key = key_of(app.store(), row, location);
    let key = key.ok_or_else(|| Problem::not_found("the manifest is in no store that is configured"))?;
    let bytes = app.store().get(&key, None).await?;
    Ok((key, bytes))
}

fn parsed(manifest: &[u8]) -> Result<Value, Problem> {
    serde_json::from_slice(manifest).map_err(|error| {
        tracing::error!(%error, "a manifest makes no sense");
        Problem::internal()
    })
}

/// A file beside a manifest that tells about the recording.
async fn sidecar(app: &App, key: &str, manifest: &[u8], kind: &str, plain: &'static str) -> Result<Response, Problem> {
    let manifest = parsed(manifest)?;
    let entries = manifest["sidecars"].as_array().map_or(&[][..], Vec::as_slice);
    let entry = entries.iter().find(|entry| entry["kind"] == kind);
    let missing = || Problem::not_found(format!("the recording has no {kind}"));
    let entry = entry.ok_or_else(missing)?;
    let file = entry["file"].as_str().filter(|file| !file.contains('/') && *file != "..").ok_or_else(missing)?;
    let folder = key.rsplit_once('/').map(|(folder, _)| format!("{folder}/")).unwrap_or_default();
    let bytes = app.store().get(&format!("{folder}{file}"), None).await?;
    let content_type = if entry["encryption"].is_null() { plain } else { "application/octet-stream" };
    Ok(([(header::CONTENT_TYPE, content_type)], bytes).into_response())
}

fn content_type(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or_default() {
        "ogg" | "opus" => "audio/ogg",
        "mp3" => "audio/mpeg",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        _ => "application/octet-stream",
    }
}

/// How browsers are to treat a file: play it, and save it under its name.
fn disposition(name: &str) -> String {
    let plain: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_. ".contains(c) { c } else { '_' }).collect();
    format!("inline; filename=\"{plain}\"; filename*=UTF-8''{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{LocalConfig, StoreConfig};

    #[test]
    fn names_cannot_make_headers() {
        let told = disposition("a\"; x=\"\r\nSet-Cookie: é.ogg");
        assert!(HeaderValue::from_str(&told).is_ok());
        assert!(
            told.starts_with("inline; filename=\"a__ x____Set-Cookie_ _.ogg\"; filename*=UTF-8''a%22%3B"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn keys_are_found_and_never_outside_of_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreConfig::Local(LocalConfig { dir: dir.path().into() })).await.unwrap();
        let catalog = crate::catalog::Catalog::open("sqlite::memory:").await.unwrap();
        let new = crate::catalog::NewRecording::new("R1", "room", clock::wall());
        let mut row = catalog.begin(new, crate::catalog::nobody).await.unwrap();
        let location = store.location("a/b.ogg");
        assert_eq!(key_of(&store, &row, &location).as_deref(), Some("a/b.ogg"));
        row.objects = vec!["a/b.ogg".into()];
        assert_eq!(key_of(&store, &row, &location).as_deref(), Some("a/b.ogg"));
        for outside in ["/etc/passwd", &format!("{}/../x", store.location("a")), "s3://b/a/b.ogg", ""] {
            assert_eq!(key_of(&store, &row, outside), None, "{outside}");
        }
    }
}
