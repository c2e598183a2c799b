//! Whose recording it is: the state object names its owner.

use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;

use super::UploadError;
use super::state::LiveState;
use super::transfer::RECORDING_ID;
use crate::store::{PutOptions, Store, StoreError};

/// Who has not renewed a lease so many times has lost it.
pub(super) const MISSED: u64 = 6;

/// The first free name for a recording: its own, `NAME-1`, `NAME-2`… It is taken by writing the state object, which nobody
/// else can then.
pub(super) async fn reserve(store: &Store, state: &mut LiveState, ext: &str) -> Result<(), UploadError> {
    let wanted = state.stem.clone();
    for number in 0u32.. {
        state.stem = if number == 0 { wanted.clone() } else { format!("{wanted}-{number}") };
        match store.put(&state.key(), state.write(), &options(true)).await {
            Ok(_) => {}
            Err(StoreError::AlreadyExists(_)) => match read(store, &state.key()).await {
                // Written before, and nobody waited for the answer.
                Ok(Some(there)) if there.owner == state.owner => {}
                Ok(_) | Err(UploadError::State(..)) => continue,
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error.into()),
        }
        let taken = store.head(&format!("{}.{ext}", state.stem)).await?.is_some()
            || store.head(&format!("{}.json", state.stem)).await?.is_some();
        if !taken {
            return Ok(());
        }
        let _ = store.delete(&[state.key()]).await;
    }
    unreachable!("some suffix of four thousand million is free")
}

/// Writes the state anew, which renews the lease. What of it is new is what was done since.
///
/// # Errors
/// [`UploadError::Lost`] where another process has it.
pub(super) async fn renew(store: &Store, state: &LiveState) -> Result<(), UploadError> {
    check(store, state).await?;
    store.put(&state.key(), state.write(), &options(false)).await?;
    Ok(())
}

/// Does `work`, and renews the lease meanwhile, with the `state` that was before it.
///
/// # Errors
/// [`UploadError::Lost`] as soon as another process has it; else what `work` says.
pub(super) async fn keep<T>(
    store: &Store,
    state: &LiveState,
    work: impl Future<Output = Result<T, UploadError>>,
) -> Result<T, UploadError> {
    tokio::pin!(work);
    loop {
        let pause = tokio::time::sleep(Duration::from_secs(state.every_seconds.max(1)));
        tokio::select! {
            done = &mut work => return done,
            () = pause => {}
        }
        let renewal = renew(store, state);
        tokio::pin!(renewal);
        let renewed = tokio::select! {
            done = &mut work => {
                // Whoever writes a newer state must not be overtaken by this one.
                let _ = renewal.await;
                return done;
            }
            renewed = &mut renewal => renewed,
        };
        match renewed {
            Err(error @ UploadError::Lost(_)) => return Err(error),
            // It is tried again; whether the store is there shows in the work.
            Err(error) => tracing::debug!(%error, "the lease could not be renewed"),
            Ok(()) => {}
        }
    }
}

/// Looks whether the recording is still its owner's.
///
/// # Errors
/// [`UploadError::Lost`] where another process has it.
pub(super) async fn check(store: &Store, state: &LiveState) -> Result<(), UploadError> {
    match read(store, &state.key()).await? {
        Some(there) if there.owner != state.owner => return Err(UploadError::Lost(there.owner)),
        Some(_) => {}
        // Somebody has finished the recording and tidied up, or emptied the bucket.
        None => {
            for file in &state.files {
                let found = store.head(&file.key).await?;
                if found.is_some_and(|found| found.metadata.get(RECORDING_ID) == Some(&state.recording_id)) {
                    return Err(UploadError::Lost("finished already".into()));
                }
            }
        }
    }
    Ok(())
}

/// Takes a recording whose owner has not renewed its lease, by the store's clock, for `owner`. None where its owner lives, or
/// somebody else was faster.
pub(super) async fn take(store: &Store, key: &str, owner: &str) -> Result<Option<LiveState>, UploadError> {
    let Some(mut state) = read(store, key).await? else { return Ok(None) };
    if state.done || !is_over(store, key, &state).await? {
        return Ok(None);
    }
    owner.clone_into(&mut state.owner);
    store.put(key, state.write(), &options(false)).await?;
    // Whoever writes at the same moment, the owner or another heir, is done with it before this.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let there = read(store, key).await?;
    Ok(there.filter(|there| there.owner == owner))
}

async fn is_over(store: &Store, key: &str, state: &LiveState) -> Result<bool, UploadError> {
    let Some(object) = store.head(key).await? else { return Ok(false) };
    let Some(written) = object.last_modified else { return Ok(false) };
    let now: OffsetDateTime = store.now().await?;
    let term = time::Duration::seconds(i64::try_from(state.every_seconds.max(1) * MISSED).unwrap_or(i64::MAX));
    Ok(now - written > term)
}

/// The state object under `key`; none where there is none.
pub(super) async fn read(store: &Store, key: &str) -> Result<Option<LiveState>, UploadError> {
    let json: Bytes = match store.get(key, None).await {
        Ok(json) => json,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    LiveState::read(key, &json).map(Some).map_err(|why| UploadError::State(store.location(key), why))
}

/// How objects are written that go again.
pub(super) fn options(create_only: bool) -> PutOptions {
    PutOptions { create_only, ..PutOptions::default() }
}
