//! What an earlier process of this service left: calls that go on are gone on with, the rest is ended and told of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::catalog::{Change, Row, Status, nobody, patiently};
use crate::clock;
use crate::config::Config;
use crate::egress::EgressClient;
use crate::recording::{Manifest, RecordingResult, Recovered, recover, recover_found};
use crate::service::rules::Wish;
use crate::spool::expire;
use crate::spool::recover::Orphan;
use crate::upload;

use super::livekit::OpenRoom;
use super::{Calls, Shared, follow, told};

/// How often the spool is looked into, and the bucket for what processes left that are gone.
const EVERY: Duration = Duration::from_secs(5);
const BUCKET_EVERY: Duration = Duration::from_secs(30);

/// How many recordings are brought from the spool to their store at a time, and the longest wait before it is tried again.
const AT_ONCE: usize = 4;
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long a recording in the spool is left to be gone on with.
const GRACE: Duration = Duration::from_secs(30);

/// How long after a process was to say that it lives its recordings are finished without it, where they are in a bucket.
const GONE: Duration = Duration::from_secs(120);

/// How long the LiveKit server may take to say which rooms are there, before what was left is ended.
const ANSWERS_WITHIN: Duration = Duration::from_secs(25);

/// What this process is called in the catalogue: over its restarts, as the name lies in its spool. A second process with the
/// same spool is another, with a name of its own for as long as it runs.
#[derive(Debug)]
pub(super) struct Instance {
    name: String,
    /// Locked as long as this process lives.
    _held: Option<File>,
}

impl Instance {
    pub(super) fn of(spool: &Path) -> Self {
        let path = spool.join("instance");
        Self::held(spool, &path).unwrap_or_else(|error| {
            tracing::warn!(%error, path = %path.display(), "this process has another name when it is started again");
            Self { name: new_name(), _held: None }
        })
    }

    fn held(spool: &Path, path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(spool)?;
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock()?;
        let mut known = Vec::new();
        (&file).take(64).read_to_end(&mut known)?;
        let known = String::from_utf8(known).ok().map(|name| name.trim().to_owned());
        if let Some(name) = known.filter(|name| name.starts_with("CR_") && name.len() < 64) {
            return Ok(Self { name, _held: Some(file) });
        }
        let name = new_name();
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(name.as_bytes())?;
        file.sync_all()?;
        Ok(Self { name, _held: Some(file) })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

fn new_name() -> String {
    format!("CR_{}", crate::config::new_recording_id())
}

/// What is kept of a recording's configuration: what was wished. The rest is the service's.
pub(super) fn config_of(wish: &Wish) -> Value {
    json!({ "wish": wish })
}

/// What was wished of a recording.
pub(super) fn wish_of(row: &Row) -> Option<Wish> {
    serde_json::from_value(row.config.get("wish")?.clone()).ok()
}

/// Goes on with the recordings of this process whose calls go on.
pub(super) async fn adopt(calls: &Calls) {
    let shared = &calls.shared;
    let rows = loop {
        match shared.catalog.unfinished().await {
            Ok(rows) => break rows,
            Err(error) => tracing::warn!(%error, "the catalogue does not say what was left"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let ours: Vec<Row> = rows.into_iter().filter(|row| is_ours(shared, row) && row.status.is_in_room()).collect();
    if ours.is_empty() {
        return;
    }
    let rooms = rooms_that_are_there(shared).await;
    for row in ours {
        let now = clock::wall();
        let owner = shared.owner(now);
        match patiently(|| shared.catalog.adopt(&row.recording_id, &owner, now)).await {
            Ok(Some(row)) if row.status.is_in_room() => {
                if !go_on(calls, &row, &rooms) {
                    // The room is free for others; what there is of it is ended with the rest of the spool.
                    follow::put_down(shared, &row.recording_id, Change::status(Status::Stopping)).await;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, id = row.recording_id, "a recording cannot be taken over"),
        }
    }
}

/// The rooms that the LiveKit server has; none where it does not answer for long.
async fn rooms_that_are_there(shared: &Shared) -> Vec<OpenRoom> {
    let until = clock::now() + ANSWERS_WITHIN;
    loop {
        match shared.livekit.all().await {
            Ok(rooms) => return rooms,
            Err(error) if clock::now() >= until => {
                tracing::error!(error, "calls are not gone on with, as the LiveKit server does not tell its rooms");
                return Vec::new();
            }
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Goes on with one recording, if its room is still there. Gives whether it does.
fn go_on(calls: &Calls, row: &Row, rooms: &[OpenRoom]) -> bool {
    let shared = &calls.shared;
    let is_it = |room: &&OpenRoom| room.name == row.room_name && (row.room_id.is_empty() || room.sid == row.room_id);
    let Some(room) = rooms.iter().find(is_it) else {
        tracing::info!(id = row.recording_id, room = row.room_name, "its room is gone");
        return false;
    };
    if shared.live_in(&room.name).is_some() {
        return false;
    }
    let Some(wish) = wish_of(row) else {
        tracing::error!(id = row.recording_id, "what was wished of it cannot be read");
        return false;
    };
    match wish.apply(&shared.config.base, &room.name) {
        Ok(config) => {
            tracing::warn!(id = row.recording_id, room = room.name, "going on with a recording");
            let id = row.recording_id.clone();
            let config = Config { recording_id: id, recovers_others: false, ..config };
            calls.record(config, &room.sid, wish.retention_days, None, None)
        }
        Err(error) => {
            tracing::error!(%error, id = row.recording_id, "it cannot be gone on with");
            false
        }
    }
}

/// Ends the recordings in the spool that nobody goes on with, brings to the store what waits for it, and puts down what became
/// of each.
pub(super) async fn recover_others(shared: &Arc<Shared>) {
    let (mut bucket_at, mut spool) = (clock::now(), SpoolLook::default());
    loop {
        tokio::time::sleep(EVERY).await;
        look_into_spool(shared, &mut spool).await;
        if clock::now() < bucket_at {
            continue;
        }
        let Ok(rows) = shared.catalog.unfinished().await else { continue };
        bucket_at = clock::now() + BUCKET_EVERY;
        finish_for_the_dead(shared, &rows).await;
        reconcile(shared, rows).await;
    }
}

/// What is remembered from one look into the spool to the next.
#[derive(Debug, Default)]
struct SpoolLook {
    /// Recordings that could not be brought to where they belong, when they are tried again, and how long they waited for that.
    waiting: BTreeMap<String, (Instant, Duration)>,
    /// What was said of journals that cannot be ended.
    said: BTreeSet<String>,
}

impl SpoolLook {
    fn failed(&mut self, recording_id: String, now: Instant) {
        let wait = self.waiting.get(&recording_id).map_or(EVERY, |(_, wait)| (*wait * 2).min(LONGEST_WAIT));
        self.waiting.insert(recording_id, (now + wait, wait));
    }

    /// One is where it belongs: what kept the others may be over, too.
    fn succeeded(&mut self) {
        self.waiting.clear();
    }

    fn not_yet(&self, now: Instant) -> impl Iterator<Item = String> {
        self.waiting.iter().filter(move |(_, (due, _))| *due > now).map(|(id, _)| id.clone())
    }
}

async fn look_into_spool(shared: &Arc<Shared>, look: &mut SpoolLook) {
    let (spool, keep) = (shared.spool(), shared.config.base.keep_spool);
    // Those that run may not have come to their journal yet.
    let mut except: Vec<String> = shared.live().keys().cloned().collect();
    except.extend(look.not_yet(clock::now()));
    let looked = tokio::task::spawn_blocking(move || {
        if !keep.is_zero()
            && let Err(error) = expire(&spool, keep)
        {
            tracing::warn!(%error, "what was kept in the spool for its time cannot be removed");
        }
        recover(&spool, &except, GRACE)
    })
    .await;
    let all = match looked.map_err(std::io::Error::other).flatten() {
        Ok(all) => all,
        Err(error) => {
            tracing::error!(%error, "the spool cannot be looked into");
            return;
        }
    };
    let (found, damaged): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    let damaged: BTreeSet<String> = damaged.into_iter().filter_map(Result::err).map(|e| e.to_string()).collect();
    for error in damaged.difference(&look.said) {
        tracing::error!(error, "a recording cannot be ended");
    }
    look.said = damaged;
    let ends = found.into_iter().flatten().map(|one| end(shared, one));
    let mut ends = stream::iter(ends).buffer_unordered(AT_ONCE);
    while let Some((recording_id, is_ended)) = ends.next().await {
        if is_ended { look.succeeded() } else { look.failed(recording_id, clock::now()) }
    }
}

/// Ends one recording, and gives which that was, and whether it is where it belongs.
async fn end(shared: &Arc<Shared>, one: Recovered) -> (String, bool) {
    let id = one.recording_id().to_owned();
    let base = &shared.config.base;
    let one = match one {
        Recovered::EgressPending(left) if left.is_at(&base.url) => {
            left.stop(&EgressClient::new(&base.url, &base.credentials)).await
        }
        other => Ok(other),
    };
    let result = match one {
        Ok(Recovered::Done(result)) => Ok(result),
        Ok(Recovered::UploadPending(pending)) if is_deleted(shared, &id).await => {
            let Ok(is_deleted) = tokio::task::spawn_blocking(move || pending.orphan.done()).await else {
                return (id, false);
            };
            tracing::warn!(id, "it was deleted before it was stored");
            return (id, is_deleted.is_ok());
        }
        Ok(Recovered::UploadPending(pending)) if pending.is_for(&shared.store) => pending.upload(&shared.store).await,
        // It belongs to another store or server than this service's.
        Ok(Recovered::UploadPending(_) | Recovered::EgressPending(_)) => return (id, false),
        Err(error) => Err(error),
    };
    match result {
        Ok(result) => {
            tracing::warn!(id = result.recording_id, outcome = %result.outcome, "a recording was recovered");
            follow::finish(shared, &result).await;
            (id, true)
        }
        Err(error) => {
            tracing::warn!(%error, id, "a recording waits on");
            (id, false)
        }
    }
}

/// Whether somebody deleted a recording.
async fn is_deleted(shared: &Shared, recording_id: &str) -> bool {
    let row = shared.catalog.get(recording_id).await;
    row.is_ok_and(|row| row.is_some_and(|row| row.deleted.is_some()))
}

/// Takes the room from a process that has not said for long that it lives: what it recorded is ended by it when it is back,
/// or from the bucket. Gives whether the room is free.
pub(super) async fn take_from_the_dead(shared: &Shared, recording_id: &str) -> bool {
    let Ok(Some(row)) = shared.catalog.get(recording_id).await else { return false };
    let now = clock::wall();
    if !row.status.is_in_room() {
        return true;
    }
    let is_dead = shared.has_answered_for_long()
        && row.owner.is_some_and(|owner| owner.instance != shared.instance.name() && owner.until < now);
    if is_dead {
        tracing::warn!(id = recording_id, "the process that recorded is gone");
        let change = Change::status(Status::Stopping);
        return shared.catalog.update(recording_id, &change, now, nobody).await.is_ok();
    }
    false
}

/// Whether another process that lives records this.
pub(super) async fn is_alive(shared: &Shared, recording_id: &str) -> bool {
    let Ok(Some(row)) = shared.catalog.get(recording_id).await else { return false };
    let now = clock::wall();
    row.owner.is_some_and(|owner| owner.instance != shared.instance.name() && owner.until >= now)
}

/// Finishes from the bucket alone what processes left that are gone with their spools.
async fn finish_for_the_dead(shared: &Arc<Shared>, rows: &[Row]) {
    let now = clock::wall();
    let mut dead = BTreeSet::new();
    for row in rows {
        // One of this process has a journal, unless somebody took it away.
        let is_dead = match is_ours(shared, row) {
            true => is_settled(shared, row, now) && !is_in_spool(shared, &row.recording_id).await,
            false => row.owner.as_ref().is_some_and(|owner| owner.until + GONE < now),
        };
        if is_dead {
            dead.insert(row.recording_id.as_str());
        }
    }
    if dead.is_empty() || shared.config.base.store.is_none() {
        return;
    }
    let left = match upload::find(&shared.store, "").await {
        Ok(left) => left,
        Err(error) => {
            tracing::warn!(%error, "the bucket does not say what was left there");
            return;
        }
    };
    // A lease that is over says only that its process cannot reach the bucket: it is the catalogue that knows who is dead.
    for found in left.iter().filter(|found| dead.contains(found.recording_id.as_str())) {
        match recover_found(&shared.store, found).await {
            Ok(Some(result)) => {
                tracing::warn!(id = result.recording_id, "finished from the bucket alone");
                follow::finish(shared, &result).await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, id = found.recording_id, "a recording in the bucket waits on"),
        }
    }
}

/// Puts down what became of recordings that were ended without their rows: the process died between the two.
async fn reconcile(shared: &Arc<Shared>, rows: Vec<Row>) {
    let now = clock::wall();
    for row in rows {
        // What nobody finishes for so long is everybody's.
        let is_ours = is_ours(shared, &row) || row.owner.as_ref().is_some_and(|owner| owner.until + GONE * 3 < now);
        // What has ended meanwhile is no business of this look.
        let row = match shared.catalog.get(&row.recording_id).await {
            Ok(Some(row)) if !row.status.is_finished() && row.deleted.is_none() => row,
            _ => continue,
        };
        if !is_ours || !is_settled(shared, &row, now) || is_in_spool(shared, &row.recording_id).await {
            continue;
        }
        match left_in_store(shared, &row).await {
            Ok(Some(Left::Whole(result))) => follow::finish(shared, &result).await,
            Ok(Some(Left::Unfinished)) => tracing::info!(id = row.recording_id, "its store has it unfinished"),
            Ok(None) => {
                let change = told::of_nothing("its process died, and left nothing of it", now);
                follow::put_down(shared, &row.recording_id, change).await;
            }
            Err(error) => tracing::warn!(error, id = row.recording_id, "what became of it is not known"),
        }
    }
}

/// Whether a recording is this process's, or nobody's.
fn is_ours(shared: &Shared, row: &Row) -> bool {
    row.owner.as_ref().is_none_or(|owner| owner.instance == shared.instance.name())
}

/// Whether nobody here has been at a recording for long.
fn is_settled(shared: &Shared, row: &Row, now: OffsetDateTime) -> bool {
    now - row.updated_at > GRACE * 2 && !shared.live().contains_key(&row.recording_id)
}

/// Whether the spool has a journal of a recording.
pub(super) async fn is_in_spool(shared: &Shared, recording_id: &str) -> bool {
    let (spool, id) = (shared.spool(), recording_id.to_owned());
    // Where nobody can look, it may be.
    tokio::task::spawn_blocking(move || Orphan::is_there(&spool, &id)).await.unwrap_or(true)
}

/// What a store can hold of a recording.
enum Left {
    Whole(RecordingResult),
    /// Its upload has not come to its end: who looks into the bucket ends it.
    Unfinished,
}

/// What the store holds of a recording.
async fn left_in_store(shared: &Shared, row: &Row) -> Result<Option<Left>, String> {
    let wish = wish_of(row).unwrap_or_default();
    let config = wish.apply(&shared.config.base, &row.room_name).map_err(|error| error.to_string())?;
    let template = config.name.to_string();
    // What all names begin with, whatever the call.
    let prefix = template.split('{').next().unwrap_or_default();
    let unfinished = upload::find(&shared.store, prefix).await.map_err(|error| error.to_string())?;
    if unfinished.iter().any(|found| found.recording_id == row.recording_id) {
        return Ok(Some(Left::Unfinished));
    }
    let objects = shared.store.list(prefix).await.map_err(|error| error.to_string())?;
    let since = row.created_at - Duration::from_secs(60);
    let manifests = objects
        .into_iter()
        .filter(|object| object.key.ends_with(".json") && object.last_modified.is_none_or(|written| written >= since));
    for object in manifests {
        let read = shared.store.get(&object.key, None).await.map_err(|error| error.to_string())?;
        let manifest = serde_json::from_slice::<Manifest>(&read).ok();
        if let Some(manifest) = manifest.filter(|manifest| manifest.recording_id == row.recording_id) {
            let result = told::of_manifest(&manifest, &object.key, |key| shared.store.location(key));
            return Ok(Some(Left::Whole(result)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_name_with_its_spool() {
        let spool = tempfile::tempdir().unwrap();
        let spool = spool.path().join("spool");
        let first = Instance::of(&spool);
        let name = first.name().to_owned();
        let second = Instance::of(&spool);
        assert_ne!(second.name(), name, "two processes are two");
        drop(first);
        assert_eq!(Instance::of(&spool).name(), name);
        std::fs::write(spool.join("instance"), "garbage").unwrap();
        let new = Instance::of(&spool).name().to_owned();
        assert_ne!(new, name);
        assert_eq!(Instance::of(&spool).name(), new);
    }

    #[test]
    fn what_cannot_be_stored_waits_longer_each_time_until_something_can() {
        let (start, mut look) = (clock::now(), SpoolLook::default());
        let waits = |look: &SpoolLook, after| look.not_yet(start + Duration::from_secs(after)).count();
        look.failed("R1".into(), start);
        assert_eq!((waits(&look, 4), waits(&look, 5)), (1, 0));
        look.failed("R1".into(), start + Duration::from_secs(5));
        assert_eq!((waits(&look, 14), waits(&look, 15)), (1, 0));
        (0..10).for_each(|_| look.failed("R1".into(), start));
        assert_eq!((waits(&look, 59), waits(&look, 60)), (1, 0));
        look.succeeded();
        assert_eq!(waits(&look, 0), 0);
    }

    #[test]
    fn what_was_wished_is_read_as_it_was_written() {
        let wish = Wish { retention_days: Some(3), prefix: Some("a/b".into()), ..Wish::default() };
        let row: Value = config_of(&wish);
        assert_eq!(serde_json::from_value::<Wish>(row["wish"].clone()).unwrap(), wish);
    }
}
