//! Recordings that are deleted, with all that belongs to them.

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::Row;
use crate::clock;
use crate::notify::{Event, EventKind};
use crate::recording::Manifest;
use crate::spool;
use crate::upload::LiveState;

use super::Shared;

/// How often it is looked for what was not erased at once.
const AGAIN: Duration = Duration::from_secs(60);

/// What follows a recording's name in that of its manifest.
const MANIFEST: &str = ".json";

/// How long it is known what receivers took, and who looked at what.
const DELIVERIES: Duration = Duration::from_secs(30 * 24 * 3_600);
const ACCESSES: Duration = Duration::from_secs(365 * 24 * 3_600);

/// How many are taken at a time.
const AT_ONCE: u32 = 100;

/// Deletes what has had its time, and erases what is deleted.
pub(super) async fn erase(shared: &Arc<Shared>) {
    let every = shared.config.file.retention.every.0;
    let mut due = clock::now();
    loop {
        if clock::now() >= due {
            due = clock::now() + every;
            delete_expired(shared).await;
            prune(shared).await;
        }
        erase_all(shared).await;
        tokio::time::sleep(AGAIN.min(every)).await;
    }
}

/// Erases what is deleted, until nothing more can be.
async fn erase_all(shared: &Arc<Shared>) {
    // What cannot be erased now stays the oldest.
    let mut limit = AT_ONCE;
    loop {
        let rows = match shared.catalog.erasing(limit).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the catalogue does not say what is to be erased");
                return;
            }
        };
        let mut failed = 0;
        for row in &rows {
            failed += u32::from(!erase_one(shared, row).await);
        }
        if rows.len() < limit as usize {
            return;
        }
        limit = failed.saturating_add(AT_ONCE);
    }
}

/// Forgets what nobody asks for any more.
async fn prune(shared: &Arc<Shared>) {
    let now = clock::wall();
    match shared.catalog.prune(now, now - DELIVERIES, now - ACCESSES).await {
        Ok(pruned) => tracing::debug!(?pruned, "forgotten"),
        Err(error) => tracing::warn!(%error, "the catalogue does not forget"),
    }
}

async fn delete_expired(shared: &Arc<Shared>) {
    let now = clock::wall();
    loop {
        let rows = match shared.catalog.expired(now, AT_ONCE).await {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(%error, "the catalogue does not say what has had its time");
                return;
            }
        };
        let mut deleted = 0;
        for row in &rows {
            match shared.catalog.delete(&row.recording_id, "callreel", "retention", now).await {
                Ok(_) => deleted += 1,
                Err(error) => {
                    tracing::warn!(%error, id = row.recording_id, "it has had its time, and cannot be deleted");
                }
            }
        }
        if deleted == 0 {
            return;
        }
    }
}

/// Erases everything of a deleted recording, and leaves a tombstone. What fails is done again. Gives whether it is done.
pub(super) async fn erase_one(shared: &Arc<Shared>, row: &Row) -> bool {
    let id = &row.recording_id;
    if let Err(error) = erase_objects(shared, row).await {
        tracing::error!(error, id, "a deleted recording cannot be erased yet");
        return false;
    }
    let at = clock::wall();
    let tell = shared.notifier.about(Event::new(EventKind::Deleted, at));
    match shared.catalog.tombstone(id, at, tell).await {
        Ok(_) => tracing::info!(id, "a recording was erased"),
        Err(error) => {
            tracing::error!(%error, id, "an erased recording is not told of yet");
            return false;
        }
    }
    true
}

async fn erase_objects(shared: &Arc<Shared>, row: &Row) -> Result<(), String> {
    let (provider, bucket) = shared.place();
    if (provider, &bucket) != (row.storage_provider.as_str(), &row.storage_bucket) {
        let elsewhere = row.storage_bucket.as_deref().unwrap_or_default();
        return Err(format!("it is in another place than recordings are now: {} {elsewhere}", row.storage_provider));
    }
    let mut keys = row.objects.clone();
    let own = row.manifest.as_deref().and_then(|location| shared.key_of(location));
    if let Some(stem) = own.as_deref().and_then(|key| key.strip_suffix(MANIFEST)) {
        // What an upload left that was not ended by the book.
        let found = shared.store.list(&LiveState::prefix_of(stem)).await.map_err(|error| error.to_string())?;
        keys.extend(found.into_iter().map(|object| object.key));
        // Its row may have been written without what the manifest tells.
        let told = shared.store.get(&format!("{stem}{MANIFEST}"), None).await.ok();
        let manifest = told.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
        let folder = stem.rfind('/').map_or("", |at| &stem[..=at]);
        let beside = manifest.iter().flat_map(|manifest| {
            let files = manifest.outputs.iter().map(|output| &output.file);
            files.chain(manifest.sidecars.iter().map(|sidecar| &sidecar.file))
        });
        keys.extend(beside.map(|file| format!("{folder}{file}")));
    }
    keys.sort();
    keys.dedup();
    if !keys.is_empty() {
        shared.store.delete(&keys).await.map_err(|error| error.to_string())?;
    }
    let (directory, id) = (shared.spool(), row.recording_id.clone());
    let erased = tokio::task::spawn_blocking(move || spool::erase(&directory, &id)).await;
    erased.map_err(std::io::Error::other).flatten().map_err(|error| error.to_string())
}
