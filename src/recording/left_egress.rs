//! Egresses whose recorder died: they are stopped, and what they made is told of.

use std::time::Duration;

use serde_json::Value;

use crate::clock;
use crate::egress::{EgressClient, EgressError, EgressState, FilePlace, Pace};
use crate::spool::recover::Orphan;
use crate::spool::{EgressStep, Entry, FileError, RunningEgress};

use super::bring::RecoverError;
use super::egress_part::{entry_of, server_of};
use super::manifest::{EgressEntry, Manifest};
use super::outcome::{Outcome, Reason};
use super::recover::{Recovered, recover_one};

/// How long a stopped egress may take to finish its file before the rest is left to it.
const ENDS_WITHIN: Duration = Duration::from_secs(120);

/// A recording whose process died while an egress may run that it had started. Dropped, it waits for the next one.
#[derive(Debug)]
pub struct LeftEgress {
    orphan: Orphan,
    running: RunningEgress,
}

impl LeftEgress {
    /// What `orphan` left; `running` is what its journal says.
    pub(super) fn new(orphan: Orphan, running: RunningEgress) -> Self {
        Self { orphan, running }
    }

    /// The recording's id.
    pub fn recording_id(&self) -> &str {
        &self.orphan.started().recording_id
    }

    /// The LiveKit server that has to be asked.
    pub fn server(&self) -> &str {
        &self.running.server
    }

    /// Whether that is the one at `url`, however it is written.
    pub fn is_at(&self, url: &str) -> bool {
        self.running.server == server_of(url)
    }

    /// Tells the egress to stop, and waits for nothing more: whoever looks again finds what became of it.
    ///
    /// # Errors
    /// What the server says; it can be tried again.
    pub async fn halt(self, client: &EgressClient) -> Result<(), EgressError> {
        let RunningEgress { room, path, store, egress_id, .. } = self.running;
        // Nothing is written to the journal, so others may have it.
        drop(self.orphan);
        if let Some(id) = egress_id {
            match client.stop(&id).await {
                Ok(_) | Err(EgressError::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        client.stop_twins(Some(&room), &FilePlace { path, store }, None).await
    }

    /// Stops the egress, wherever it is in its life, and ends the recording as far as that can be done here. One whose answer
    /// never came is looked for in the server's list.
    ///
    /// # Errors
    /// What the server or the disk says; it can be tried again.
    pub async fn stop(self, client: &EgressClient) -> Result<Recovered, RecoverError> {
        let Self { mut orphan, running } = self;
        let (room, began_at) = (Some(running.room.as_str()), orphan.started().wall_zero);
        let place = FilePlace { path: running.path.clone(), store: running.store.clone() };
        let found = match &running.egress_id {
            Some(id) => match client.get(id).await {
                // Once may be a list that was not whole.
                Err(EgressError::NotFound(_)) => client.find(room, &place, began_at).await?,
                known => Some(known?),
            },
            None => client.find_late(room, &place, began_at).await?,
        };
        let state = match found {
            Some(state) => ended(client, state).await?,
            None => None,
        };
        client.stop_twins(room, &place, None).await?;
        let zero = orphan.started().wall_zero;
        let told = state.map(|state| entry_of(&state, zero, None));
        match &told {
            Some(entry) => {
                tracing::warn!(egress = entry.egress_id, status = ?entry.status, "stopped what a recorder left that died")
            }
            None => {
                tracing::warn!(id = orphan.started().recording_id, "no egress runs that a recorder left which died")
            }
        }
        let told = told.map(|entry| serde_json::to_value(entry).expect("plain data becomes JSON"));
        let rest = tokio::task::spawn_blocking(move || {
            orphan.append(Entry::Egress(EgressStep::Ended { told }))?;
            recover_one(orphan)
        });
        let rest = rest.await.map_err(|error| {
            FileError::new("cannot end", std::path::Path::new("the recording"), std::io::Error::other(error))
        })?;
        Ok(rest?)
    }
}

/// Stops an egress, and waits until its file is done, or as long as that may take; none where the server does not know it.
async fn ended(client: &EgressClient, mut state: EgressState) -> Result<Option<EgressState>, EgressError> {
    let give_up_at = clock::now() + ENDS_WITHIN;
    let mut pace = Pace::default();
    if !state.status.is_over() {
        match client.stop(&state.id).await {
            Ok(told) => {
                state.learn(told);
            }
            Err(EgressError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    while !state.status.is_over() && clock::now() < give_up_at {
        tokio::time::sleep(pace.next(Some(state.status))).await;
        match client.get(&state.id).await {
            Ok(told) => {
                state.learn(told);
            }
            Err(EgressError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(Some(state))
}

/// Adds to the manifest what egresses recorded that the journal tells of; one that was told of while it ran is told of anew.
/// Where there was nothing else, it is what there is.
pub(super) fn add_egresses<'a>(manifest: &mut Manifest, told: impl Iterator<Item = &'a Value>) {
    for mut entry in told.filter_map(|told| serde_json::from_value::<EgressEntry>(told.clone()).ok()) {
        let known = manifest.egress.iter().position(|known| known.egress_id == entry.egress_id);
        if let Some(known) = known {
            if manifest.egress[known].status.is_over() {
                continue;
            }
            let EgressEntry { because, layout, .. } = manifest.egress.remove(known);
            entry = EgressEntry { because, layout, ..entry };
        }
        let output = entry.output();
        if output.is_some() && manifest.outcome == Outcome::Empty {
            manifest.outcome = Outcome::Degraded;
        }
        manifest.outputs.extend(output);
        manifest.egress.push(entry);
    }
}

/// The manifest of a recording that only LiveKit Egress made; none where there was no egress.
pub(super) fn of_egress_alone<'a>(so_far: Option<Value>, told: impl Iterator<Item = &'a Value>) -> Option<Manifest> {
    let mut manifest: Manifest = serde_json::from_value(so_far?).ok()?;
    manifest.outcome = Outcome::Empty;
    add_egresses(&mut manifest, told);
    if manifest.egress.is_empty() {
        return None;
    }
    let seconds = manifest.outputs.iter().map(|output| output.duration_seconds).sum();
    manifest.reasons.push(Reason::Interrupted { accounted_seconds: seconds });
    Some(manifest)
}
