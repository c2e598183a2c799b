//! One recording, from its beginning to its row's last change.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use crate::catalog::{CatalogError, Change, NewRecording, Row, Status, nobody, patiently};
use crate::clock;
use crate::notify::{Event, EventKind};
use crate::recording::{Manifest, RecordingHandle, RecordingResult, State, What};

use super::{Calls, Shared, recover, thumbnail, told, webhook};

/// The first and the longest wait before the catalogue is asked again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// The longest wait before the manifest is asked for again.
const MANIFEST_WITHIN: Duration = Duration::from_secs(2);

/// How long the last happening may take to come after the result.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Keeps the row of a recording as the recording stands, until that is over. `new` is what the catalogue does not have yet.
pub(super) async fn follow(shared: Arc<Shared>, mut handle: RecordingHandle, new: Option<NewRecording>) {
    let id = handle.recording_id().to_owned();
    let forwarding = tokio::spawn(forward(shared.clone(), handle.clone()));
    if let Some(new) = new {
        match catch_up(&shared, new).await {
            Ok(_) => {}
            Err(error) => {
                tracing::error!(id, %error, "a recording without a row is ended");
                handle.stop();
            }
        }
    }
    let mut known = State::Starting;
    let result = loop {
        let status = handle.status();
        if let Some(result) = status.result {
            break result;
        }
        if status.state != known {
            known = status.state;
            let mut change = Change::status(word(status.state));
            if known == State::Active {
                // LiveKit Egress does not say who was there.
                change.participants = shared.people_in(&id).await;
            }
            put_down(&shared, &id, change).await;
            if known == State::Stopping {
                tokio::spawn(webhook::reopened(Calls { shared: shared.clone() }, id.clone()));
            }
        }
        handle.changed().await;
    };
    // Its last happening comes with its result, but not that of one that broke down.
    let stop = forwarding.abort_handle();
    if tokio::time::timeout(LAST_WORDS, forwarding).await.is_err() {
        stop.abort();
    }
    finish(&shared, &result).await;
    shared.forget(&result).await;
}

/// Hands on what happens to one recording to those who listen to all.
async fn forward(shared: Arc<Shared>, handle: RecordingHandle) {
    use tokio::sync::broadcast::error::RecvError;
    let mut happenings = handle.happenings();
    if handle.status().result.is_some() {
        return;
    }
    loop {
        match happenings.recv().await {
            Ok(happening) => {
                let is_last = matches!(happening.what, What::Finished { .. });
                shared.happened(happening).await;
                if is_last {
                    return;
                }
            }
            Err(RecvError::Lagged(missed)) => tracing::warn!(missed, "happenings were missed"),
            Err(RecvError::Closed) => return,
        }
    }
}

/// The row's word for where a recording is.
pub(super) fn word(state: State) -> Status {
    match state {
        State::Starting => Status::Starting,
        State::Active => Status::Active,
        State::Paused => Status::Paused,
        // Its result says how it ended.
        State::Stopping | State::Ready | State::Failed => Status::Stopping,
    }
}

/// Puts down how a recording ended, and tells of it once it is where it belongs.
pub(super) async fn finish(shared: &Shared, result: &RecordingResult) {
    let manifest = manifest_of(shared, result).await;
    let now = clock::wall();
    let days = shared.days_of(&result.recording_id).await;
    let waits = told::is_on_its_way(result, recover::is_in_spool(shared, &result.recording_id).await);
    let mut change = told::of_result(result, manifest.as_ref(), waits, |location| shared.key_of(location), days, now);
    if waits {
        tracing::warn!(id = result.recording_id, "it waits in the spool for its store");
    }
    let own = result.manifest.as_deref().and_then(|location| shared.key_of(location));
    if let (Some(manifest), Some(own), false) = (&manifest, own, waits)
        && let Some(picture) = thumbnail::put(shared, manifest, &own).await
    {
        change.thumbnail_url = Some(shared.store.location(&picture));
        change.objects.get_or_insert_default().push(picture);
    }
    shared.count(result, manifest.as_ref());
    if let Some(manifest) = &manifest {
        begin_where_there_is_none(shared, result, manifest).await;
    }
    put_down(shared, &result.recording_id, change).await;
}

/// Gives a recording its row that the catalogue could not take before its process died.
async fn begin_where_there_is_none(shared: &Shared, result: &RecordingResult, manifest: &Manifest) {
    if !matches!(patiently(|| shared.catalog.get(&result.recording_id)).await, Ok(None)) {
        return;
    }
    tracing::warn!(id = result.recording_id, "a recording gets its row late");
    let (provider, bucket) = shared.place();
    let new = NewRecording {
        room_id: manifest.room.sid.clone(),
        storage_provider: provider.to_owned(),
        storage_bucket: bucket,
        ..NewRecording::new(&result.recording_id, &manifest.room.name, manifest.started_at)
    };
    if let Err(error) = patiently(|| shared.catalog.add_late(new.clone())).await {
        tracing::error!(%error, id = result.recording_id, "it stays without a row");
    }
}

/// The manifest, from where recordings go.
async fn manifest_of(shared: &Shared, result: &RecordingResult) -> Option<Manifest> {
    let key = shared.key_of(result.manifest.as_deref()?)?;
    let mut wait = AGAIN.0;
    let read = loop {
        match shared.store.get(&key, None).await {
            Ok(read) => break read,
            Err(error) if wait > MANIFEST_WITHIN => {
                tracing::warn!(key, %error, "the manifest cannot be read");
                return None;
            }
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait *= 2;
    };
    serde_json::from_slice(&read).inspect_err(|error| tracing::warn!(key, %error, "the manifest is damaged")).ok()
}

/// Begins a row that the catalogue could not take when the recording began.
async fn catch_up(shared: &Shared, new: NewRecording) -> Result<Row, CatalogError> {
    let mut wait = AGAIN.0;
    loop {
        match shared.catalog.begin(new.clone(), nobody).await {
            Err(error) if error.is_transient() => tracing::warn!(%error, "the catalogue is asked again"),
            // What was before in this room is only not put down yet; or its process is dead, which shows in a while.
            Err(CatalogError::AlreadyRecorded { recording_id }) if !recover::is_alive(shared, &recording_id).await => {
                recover::take_from_the_dead(shared, &recording_id).await;
            }
            done => return done,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

/// Changes a row, however long the catalogue does not answer. What it refuses is logged: the recording itself is safe, and
/// its manifest says it all.
pub(super) async fn put_down(shared: &Shared, id: &str, change: Change) {
    let mut wait = AGAIN.0;
    loop {
        match try_put_down(shared, id, &change, clock::wall()).await {
            Err(error) if error.is_transient() => tracing::warn!(id, %error, "the catalogue is asked again"),
            Err(CatalogError::Finished { .. }) => return,
            Err(error) => {
                tracing::error!(id, %error, "the catalogue does not take how a recording stands");
                return;
            }
            Ok(_) => return,
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN.1);
    }
}

async fn try_put_down(shared: &Shared, id: &str, change: &Change, at: OffsetDateTime) -> Result<Row, CatalogError> {
    let before = match change.status {
        Some(_) => shared.catalog.get(id).await?.map(|row| row.status),
        None => None,
    };
    let kind = before.zip(change.status).and_then(|(before, after)| event_of(before, after));
    match kind {
        Some(kind) => shared.catalog.update(id, change, at, shared.notifier.about(Event::new(kind, at))).await,
        None => shared.catalog.update(id, change, at, nobody).await,
    }
}

/// What receivers are told where a recording that was `before` is `after`.
fn event_of(before: Status, after: Status) -> Option<EventKind> {
    match (before, after) {
        _ if before == after => None,
        (_, Status::Starting) => None,
        (Status::Paused, Status::Active) => Some(EventKind::Resumed),
        (_, Status::Active) => Some(EventKind::Started),
        (_, Status::Paused) => Some(EventKind::Paused),
        (_, Status::Stopping) => Some(EventKind::Stopping),
        (_, Status::Ready) => Some(EventKind::Ready),
        (_, Status::Failed) => Some(EventKind::Failed),
    }
}
