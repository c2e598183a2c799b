//! How a recording begins: anew, or where an earlier process of the same recording left it.

use std::time::Instant;

use crate::analysis::AnalysisConfig;
use crate::clock::{self, RecordingClock};
use crate::config::{Config, NameValues};
use crate::room::RoomInfo;
use crate::spool::{JOURNAL_VERSION, Memory, Place, Reservation, Started};
use crate::store::Store;
use crate::time::MediaTime;
use crate::upload::UploadConfig;

use super::earlier::Earlier;
use super::life::{LifeSoFar, PauseOrder};
use super::manifest::Manifest;
use super::outcome::Reason;
use super::outputs::Speaker;
use super::pipeline::Pipeline;
use super::sinks::{Forms, Sinks};

/// What a recording begins with.
pub struct Start {
    /// Its clock.
    pub clock: RecordingClock,
    /// Its audio path.
    pub pipeline: Pipeline,
    /// Its files.
    pub sinks: Sinks,
    /// What was before, where it goes on.
    pub before: Option<Before>,
    /// A pause that lasted when an earlier process died, where what that recorded cannot be gone on with.
    pub pause: Option<PauseOrder>,
}

/// What an earlier process knew of a recording.
pub struct Before {
    /// All of it.
    pub manifest: Manifest,
    /// What the recording lacks, that process included.
    pub reasons: Vec<Reason>,
    /// Whether anybody was heard.
    pub heard: bool,
    /// Who, and on which side.
    pub speakers: Vec<Speaker>,
    /// Where it was in its life.
    pub life: LifeSoFar,
    /// Where this process goes on.
    pub now: MediaTime,
}

impl Start {
    /// Goes on with the recording of this id, if its process died in this call; else begins it. The room was joined at `at`.
    ///
    /// # Errors
    /// Why there can be no recording.
    pub async fn of(config: &Config, room: &RoomInfo, at: Instant, store: Option<Store>) -> Result<Self, Reason> {
        let place = match &store {
            Some(store) => Place::Store(store.to_string()),
            None => Place::Directory(config.out.clone()),
        };
        let store = store.map(|store| (store, config.upload));
        match find(config, room, at, &place).await {
            (Some((earlier, pipeline)), _) => Self::again(earlier, pipeline, store, Forms::of(config)).await,
            (None, pause) => {
                let start = Self::anew(config, room, at, place, store).await?;
                Ok(Self { pause, ..start })
            }
        }
    }

    async fn anew(
        config: &Config,
        room: &RoomInfo,
        at: Instant,
        place: Place,
        store: Option<(Store, UploadConfig)>,
    ) -> Result<Self, Reason> {
        let wall = clock::wall() - clock::now().saturating_duration_since(at);
        let clock = RecordingClock::new(at, wall);
        let name = config.name.render(&NameValues {
            room_name: &room.name,
            room_id: &room.sid,
            time: wall,
            recording_id: &config.recording_id,
            job_id: config.job_id.as_deref().unwrap_or(&config.recording_id),
            participant: "",
            track: "",
            ext: Forms::of(config).ext(),
        });
        let started = Started {
            version: JOURNAL_VERSION,
            recording_id: config.recording_id.clone(),
            room: room.name.clone(),
            pid: std::process::id(),
            wall_zero: wall,
            boot_zero: clock::since_boot(at),
            place,
            name,
        };
        let wanted = Reservation { spool: config.spool_dir(), started, memory: Memory::of_process() };
        let sinks = Sinks::reserve(wanted, store, Forms::of(config)).await?;
        let pipeline = Pipeline::new(config, fastrand::u32(..), wall)
            .map_err(|error| Reason::Internal { message: error.to_string() })?;
        Ok(Self { clock, pipeline, sinks, before: None, pause: None })
    }

    async fn again(
        earlier: Earlier,
        pipeline: Pipeline,
        store: Option<(Store, UploadConfig)>,
        forms: Forms,
    ) -> Result<Self, Reason> {
        let (heard, reason, speakers) = (earlier.heard(), earlier.reason(), earlier.speakers());
        tracing::warn!(%reason, "going on with what an earlier process recorded");
        let Earlier { orphan, streams, manifest, life, clock, now } = earlier;
        let sinks = Sinks::go_on(orphan, streams, Memory::of_process(), store, forms).await?;
        let mut reasons = manifest.reasons.clone();
        // Consent may come yet.
        reasons.retain(|reason| !matches!(reason, Reason::NoConsent { .. }));
        reasons.push(reason);
        let before = Some(Before { manifest, reasons, heard, speakers, life, now });
        Ok(Self { clock, pipeline, sinks, before, pause: None })
    }
}

/// What an earlier process left of this recording, and the audio path that goes on with it. Where that cannot be, it is told
/// why, and what it left becomes a recording of its own; a pause that lasted in it lasts on.
async fn find(
    config: &Config,
    room: &RoomInfo,
    at: Instant,
    place: &Place,
) -> (Option<(Earlier, Pipeline)>, Option<PauseOrder>) {
    let (wanted, place, room) = (config.clone(), place.clone(), room.clone());
    let found = tokio::task::spawn_blocking(move || {
        let pause = Earlier::lasting_pause(&wanted, &room);
        (Earlier::find(&wanted, &place, &room, at), pause)
    });
    match found.await {
        Ok((Ok(earlier), pause)) => (earlier.and_then(|earlier| go_on(config, earlier)), pause),
        Ok((Err(error), pause)) => {
            tracing::warn!(%error, "cannot go on with what an earlier process recorded");
            (None, pause)
        }
        Err(error) => {
            tracing::error!(%error, "looking for what an earlier process recorded failed");
            (None, None)
        }
    }
}

fn go_on(config: &Config, earlier: Earlier) -> Option<(Earlier, Pipeline)> {
    let config = Config { analysis: AnalysisConfig::OFF, ..config.clone() };
    let pipeline = earlier.begun().map_err(|error| error.to_string()).and_then(|begun| {
        Pipeline::going_on(&config, &begun, earlier.speakers(), earlier.cuts()).map_err(|error| error.to_string())
    });
    match pipeline {
        Ok(pipeline) => Some((earlier, pipeline)),
        Err(why) => {
            tracing::warn!(%why, "what an earlier process recorded is not gone on with");
            None
        }
    }
}
