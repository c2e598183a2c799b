//! Getting into the room, with everything that is better known before the call than after it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::call::TrackKey;
use crate::clock;
use crate::config::Config;
use crate::room::{Room, RoomConfig, RoomEvents, Timeouts};
use crate::spool::expire;
use crate::store::Store;

use super::bring::bring_others;
use super::dtmf::DtmfPolicy;
use super::outcome::Reason;

/// The pause between attempts at joining.
const AGAIN: Duration = Duration::from_secs(1);

/// Checks what can be checked, and opens the store, if there is one.
///
/// # Errors
/// Why there can be no recording.
pub async fn prepare(config: &Config) -> Result<Option<Store>, Reason> {
    config.validate().map_err(|error| Reason::Join { message: error.to_string() })?;
    // A directory that cannot be written is better known before the call than after it.
    let directory = if config.store.is_some() { config.spool_dir() } else { config.out.clone() };
    fs::create_dir_all(&directory).map_err(|error| Reason::Storage {
        message: format!("cannot create the directory {}: {error}", directory.display()),
    })?;
    let store = match &config.store {
        Some(store) => {
            let opened = Store::open(store).await;
            Some(opened.map_err(|error| Reason::Storage { message: error.to_string() })?)
        }
        None => None,
    };
    if config.recovers_others {
        recover_others(config, store.clone());
    }
    Ok(store)
}

/// Joins the room, whose tracks have keys from `first_track` on. Where something stands in that can record instead, joining is tried again until its time has come.
///
/// # Errors
/// [`Reason::Join`] says why not.
pub async fn join(config: &Config, first_track: TrackKey) -> Result<(Room, RoomEvents), Reason> {
    let Some(fallback) = config.fallback else { return join_once(config, first_track).await };
    let until = clock::now() + fallback.after;
    loop {
        let joined = tokio::time::timeout_at(until.into(), join_once(config, first_track)).await;
        let late = || Reason::Join { message: format!("not within {} s", fallback.after.as_secs_f64()) };
        match joined {
            Ok(Err(reason)) if clock::now() + AGAIN < until => tracing::warn!(%reason, "joining again"),
            Ok(joined) => return joined,
            Err(_) => return Err(late()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn join_once(config: &Config, first_track: TrackKey) -> Result<(Room, RoomEvents), Reason> {
    tracing::info!(url = %config.url, identity = %config.identity(), "joining");
    Room::connect(room_config(config).first_track(first_track))
        .await
        .map_err(|error| Reason::Join { message: error.to_string() })
}

/// Ends, beside this recording, those in its spool whose process died; a process looks once into each spool.
fn recover_others(config: &Config, store: Option<Store>) {
    static LOOKED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let spool = config.spool_dir();
    // Nothing panics while it is held.
    if !LOOKED.lock().unwrap_or_else(PoisonError::into_inner).insert(spool.clone()) {
        return;
    }
    let (keep, expiring) = (config.keep_spool, spool.clone());
    // Who keeps nothing leaves alone what others keep.
    if !keep.is_zero() {
        tokio::task::spawn_blocking(move || match expire(&expiring, keep) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "removed from the spool what was kept there for its time"),
            Err(error) => tracing::warn!(%error, "cannot remove what was kept in the spool"),
        });
    }
    tokio::spawn(bring_others(config.clone(), store));
}

fn room_config(config: &Config) -> RoomConfig {
    let mut room = RoomConfig::new(&config.url, config.credentials.clone())
        .urls([&config.url].into_iter().chain(&config.fallback_urls))
        .room_moved(config.room_moved)
        .e2ee(config.e2ee.clone())
        .identity(config.identity())
        .display_name("callreel")
        .topics(config.life.topics())
        .dtmf(config.dtmf != DtmfPolicy::Ignore)
        .engine(config.room_engine())
        .transport(config.transport);
    if !config.room.is_empty() {
        room = room.room(&config.room);
    }
    if let Some(fallback) = config.fallback {
        // Without signalling the bot records as long as media comes; without media nobody does.
        room = room.timeouts(Timeouts { away: fallback.after, ..Timeouts::default() });
    }
    #[cfg(feature = "testkit")]
    if let Some(impairment) = &config.impairment {
        room = room.impairment(impairment.clone());
    }
    room
}
