//! A recording whose process died while its call goes on: this process goes on with it, under the same id.

use std::io;
use std::time::{Duration, Instant};

use crate::clock::{self, RecordingClock};
use crate::config::{Config, OutputKind};
use crate::mix::{Begun, Gain, Side};
use crate::room::RoomInfo;
use crate::spool::recover::{OpenStream, Orphan};
use crate::spool::{FileError, FileHistory, Place};
use crate::time::{ClockTime, MediaTime, SLOT, SampleCount};

use super::cuts::Cuts;
use super::life::{LifeSoFar, PauseOrder};
use super::manifest::Manifest;
use super::outcome::Reason;
use super::outputs::{BegunOutput, Speaker};
use super::sinks::Forms;

/// How long ago an earlier process may have died whose room has no id to tell it by.
const RECENT: Duration = Duration::from_secs(120);

/// What an earlier process left of the recording that goes on. As long as this is held, nobody else takes it; dropped, it is
/// an orphan as before.
#[derive(Debug)]
pub struct Earlier {
    /// The recording, locked.
    pub orphan: Orphan,
    /// Its streams, cut back to their last whole pages.
    pub streams: Vec<OpenStream>,
    /// What it knew last.
    pub manifest: Manifest,
    /// Where it was in its life.
    pub life: LifeSoFar,
    /// Its clock.
    pub clock: RecordingClock,
    /// Where this process joined, on that clock.
    pub now: MediaTime,
}

impl Earlier {
    /// Finds the recording that `config` names, if its process died in a call that is the one of `room`, which was joined at
    /// `at`. Waits for the disk.
    ///
    /// # Errors
    /// What the disk says.
    pub fn find(config: &Config, place: &Place, room: &RoomInfo, at: Instant) -> Result<Option<Self>, FileError> {
        let Some(orphan) = Orphan::of(&config.spool_dir(), &config.recording_id)? else { return Ok(None) };
        let not_this = |why: &str| {
            tracing::info!(why, "what an earlier process recorded under this id is a recording of its own");
            Ok(None)
        };
        let Some(manifest) = orphan.history().so_far.clone() else { return not_this("its journal is too short") };
        let Ok(manifest) = serde_json::from_value::<Manifest>(manifest) else {
            return not_this("its journal is of another version");
        };
        if orphan.history().running_egress().is_some() {
            return not_this("an egress may run of it, and has to be stopped first");
        }
        if !is_same_call(&manifest.room, room, orphan.rested()) {
            return not_this("it was another call");
        }
        if !is_same_place(&orphan.started().place, place) {
            return not_this("it was to end up elsewhere");
        }
        let Some(clock) = clock_of(&orphan) else { return not_this("its clock cannot be gone on with") };
        let forms = Forms::of(config);
        let has_forms = |stream: &FileHistory| {
            let of_it = orphan.history().last_files().filter(|file| file.is_rendered_from(stream.made.file));
            let renderings = of_it.filter_map(|file| Some(file.made.what.rendered?.rendering));
            renderings.eq(forms.rendered.iter().copied()) && stream.made.what.is_source_only != forms.ogg
        };
        if !orphan.history().last_files().filter(|file| file.made.what.stream().is_some()).all(has_forms) {
            return not_this("it was to have other formats");
        }
        let Some(streams) = orphan.open_files()? else { return not_this("there is nothing to go on with") };
        if streams.iter().any(|stream| stream.made.what.recipients != config.encryption) {
            return not_this("it was sealed to others");
        }
        let now = MediaTime::from(clock.at(at));
        // One that says nothing of its life was not paused.
        let unpaused = LifeSoFar { came: true, ..LifeSoFar::default() };
        let life = orphan.history().life.clone().map_or(Ok(unpaused), serde_json::from_value::<LifeSoFar>);
        let Ok(life) = life else { return not_this("its journal is of another version") };
        // Packets that are passed through may lie a slot later than their place.
        let now_in_files = Cuts::of(&life.pauses).to_file(now) + SampleCount(SLOT);
        if streams.iter().any(|stream| played(stream) > now_in_files) {
            return not_this("it is longer than the time that has passed since it began");
        }
        Ok(Some(Self { orphan, streams, manifest, life, clock, now }))
    }

    /// The pause that lasted when an earlier process of the recording that `config` names died in this room, whether or not
    /// what it recorded can be gone on with. It ends by nobody's time but by word.
    pub fn lasting_pause(config: &Config, room: &RoomInfo) -> Option<PauseOrder> {
        let orphan = Orphan::of(&config.spool_dir(), &config.recording_id).ok()??;
        if orphan.started().room != room.name {
            return None;
        }
        let life: LifeSoFar = serde_json::from_value(orphan.history().life.clone()?).ok()?;
        let lasting = life.pauses.last().filter(|last| last.to_sample.is_none() && !life.lacks_consent)?;
        let (by, reason, policy) = (lasting.by.clone(), lasting.reason.clone(), Some(lasting.policy));
        Some(PauseOrder { by, reason, policy, resume_after: None })
    }

    /// Its streams, as whoever makes them needs them.
    ///
    /// # Errors
    /// For a kind of output that is not known.
    pub fn begun(&self) -> Result<Vec<BegunOutput>, FileError> {
        let begun = |OpenStream { made, head, state, .. }: &OpenStream| {
            let unknown = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
            let kind: OutputKind = made.what.kind.parse().map_err(|error| {
                FileError::new("cannot go on with", &made.path, unknown(format!("an output of kind {error}")))
            })?;
            let stream = Begun { head: *head, state: *state, now: self.cuts().to_file(self.now) };
            Ok(BegunOutput { kind, participant: made.what.participant.clone(), stream })
        };
        self.streams.iter().map(begun).collect()
    }

    /// What its files lack.
    pub fn cuts(&self) -> Cuts {
        Cuts::of(&self.life.pauses)
    }

    /// Who was heard, and on which side.
    pub fn speakers(&self) -> Vec<Speaker> {
        let on = |side: Side, who: &[String]| {
            let speaker = move |identity: &String| Speaker { identity: identity.clone(), side, gain: Gain::UNITY };
            who.iter().map(speaker).collect::<Vec<_>>()
        };
        let outputs = &self.manifest.outputs;
        outputs
            .iter()
            .flat_map(|output| [on(Side::Left, &output.left), on(Side::Right, &output.right)].concat())
            .collect()
    }

    /// Whether anybody was heard.
    pub fn heard(&self) -> bool {
        self.manifest.tracks.iter().any(|track| track.ledger.sums.received > 0)
    }

    /// What its death cost.
    pub fn reason(&self) -> Reason {
        let end = self.cuts().to_call(self.streams.iter().map(played).min().unwrap_or(MediaTime::ZERO));
        Reason::Restarted {
            accounted_seconds: (MediaTime::ZERO + self.manifest.samples).min(end).as_secs_f64(),
            from_seconds: end.as_secs_f64(),
            to_seconds: self.now.as_secs_f64(),
        }
    }
}

/// Up to where a stream plays.
fn played(stream: &OpenStream) -> MediaTime {
    MediaTime::ZERO + SampleCount(stream.state.granule.saturating_sub(u64::from(stream.head.pre_skip)))
}

fn is_same_call(one: &RoomInfo, other: &RoomInfo, rested: Duration) -> bool {
    // A server that has not settled the id yet says none.
    let unknown = one.sid.is_empty() || other.sid.is_empty();
    one.name == other.name && (one.sid == other.sid || unknown && rested < RECENT)
}

fn is_same_place(one: &Place, other: &Place) -> bool {
    match (one, other) {
        (Place::Directory(one), Place::Directory(other)) => std::path::absolute(other).is_ok_and(|other| *one == other),
        (one, other) => one == other,
    }
}

/// The clock of an earlier process: by the machine's, where it still runs, else by the time of day.
fn clock_of(orphan: &Orphan) -> Option<RecordingClock> {
    let started = orphan.started();
    let zero = started.boot_zero.as_ref().and_then(clock::at_since_boot).or_else(|| {
        let ago = clock::wall() - started.wall_zero;
        clock::now().checked_sub(ago.try_into().ok()?)
    })?;
    let clock = RecordingClock::new(zero, started.wall_zero);
    (clock.now() >= ClockTime::ZERO).then_some(clock)
}
