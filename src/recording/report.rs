//! What is told of a recording: while it goes on for whoever has to end it, and at its end for everybody.

use std::time::Duration;

use tracing::{Instrument, debug_span};

use crate::time::{ClockTime, MediaTime, SampleCount};
use crate::traces;

use super::cuts::Cuts;
use super::handle::{RecordingResult, State};
use super::manifest::{
    MANIFEST_VERSION, Manifest, OutputEntry, SidecarEntry, SidecarKind, SpeechEntry, TrackEntry, Versions,
};
use super::outcome::{Outcome, Reason, judge};
use super::pipeline::Finished;
use super::roll::Roll;
use super::session::{End, Session};
use super::sinks::entry_so_far;
use super::speech::Speech;

/// How often what is known so far is put down for whoever has to end the recording if this process dies. Who comes and goes
/// is put down at once…
const LEDGER_EVERY: Duration = Duration::from_secs(5);

/// …as long as all that is not more than so many bytes a second: a long call with much trouble has a long ledger.
const LEDGER_BYTES_A_SECOND: usize = 4 * 1024;

/// Lost audio of one track up to which a recording still counts as complete, in seconds: less than a syllable.
const LOSS_TOLERATED: f64 = 0.1;

/// What is told about the sound.
struct About {
    speech: Option<Speech>,
    sidecars: Vec<SidecarEntry>,
}

impl Session {
    /// Puts down what is known so far, for whoever has to end the recording if this process dies.
    pub(super) fn put_down(&mut self, now: ClockTime) {
        let mut known = self.pipeline.so_far();
        known.samples = known.samples.max(self.begins.since(MediaTime::ZERO));
        let at = self.pipeline.cuts().to_file(MediaTime::ZERO + known.samples);
        let entry = |origin| entry_so_far(origin, at, &self.config.encryption);
        let outputs = self.pipeline.outputs().origins(at).iter().map(entry).collect();
        let mut reasons = self.reasons.clone();
        reasons.extend(self.lack_of_consent());
        reasons.extend(self.roll.refused().iter().cloned());
        reasons.extend(losses(&self.roll, &known));
        let end = End::so_far(now);
        let about = About { speech: None, sidecars: Vec::new() };
        let manifest = Manifest { reasons, ..self.manifest(&end, &known, Outcome::Degraded, outputs, about) };
        let so_far = serde_json::to_value(manifest).expect("plain data becomes JSON");
        let cost = self.sinks.put_down(so_far);
        self.ledger_rests_until = now + Duration::from_secs(cost as u64) / LEDGER_BYTES_A_SECOND as u32;
        self.ledger_due = now + LEDGER_EVERY;
    }

    /// Finishes the files and tells what became of the recording.
    pub(super) async fn finish(mut self, end: &End) -> RecordingResult {
        let finished = self.pipeline.finish(end.at, self.life.alone_since());
        self.life.end_with(MediaTime::ZERO + finished.samples);
        let storing = self.sinks.finish(&mut self.pipeline, finished.end);
        let stored = storing.instrument(debug_span!(target: traces::TARGET, "store")).await;
        self.reasons.extend(stored.reasons);
        self.reasons.extend(self.lack_of_consent());
        let about = self.tell_of_sound(&finished).await;
        self.reasons.extend(self.roll.refused().iter().cloned());
        self.reasons.extend(losses(&self.roll, &finished));
        self.heard = self.is_heard(&finished) || self.stood_in.has_file();
        let outcome = judge(self.heard, &self.reasons);
        let mut manifest = self.manifest(end, &finished, outcome, stored.entries, about);
        if stored.all_named {
            self.draw(&mut manifest, &finished).await;
        }
        if let Err(why) = manifest.check() {
            tracing::error!(%why, "the ledger does not add up");
            self.reasons.push(Reason::Internal { message: format!("the ledger does not add up: {why}") });
        }
        let json = serde_json::to_vec_pretty(&manifest).expect("plain data becomes JSON");
        let written = self.sinks.store_manifest(json).await;
        if let Err(error) = &written {
            self.note_storage_fault(error.to_string());
        }
        let manifest = written.ok();
        let is_done = manifest.is_some() && stored.all_named && !self.stood_in.may_run;
        let refused = self.sinks.close(is_done, !self.config.keep_spool.is_zero()).await;
        self.reasons.extend(refused.filter(|refused| !self.reasons.contains(refused)));
        let outcome = judge(self.heard, &self.reasons);
        RecordingResult {
            recording_id: self.config.recording_id.clone(),
            status: if outcome == Outcome::Failed { State::Failed } else { State::Ready },
            outcome,
            reasons: self.reasons.clone(),
            stopped_by: Some(end.reason),
            outputs: stored.results.into_iter().chain(self.stood_in_results).collect(),
            manifest,
        }
    }

    fn note_storage_fault(&mut self, message: String) {
        if !self.reasons.iter().any(|known| matches!(known, Reason::Storage { .. })) {
            self.reasons.push(Reason::Storage { message });
        }
    }

    /// Writes the files that tell about the recording, unless the disk refused the recording itself.
    async fn tell_of_sound(&mut self, finished: &Finished) -> About {
        let speakers = finished.findings.speakers.as_ref();
        let speech = speakers.map(|speakers| Speech::of(&self.roll, speakers));
        let cuts = self.pipeline.cuts();
        let speech = speech.map(|speech| Speech { entries: in_call(speech.entries, cuts), ..speech });
        let captions =
            speech.as_ref().map(|speech| (SidecarKind::Speakers, "vtt", speech.captions.clone().into_bytes()));
        let peaks = finished.findings.waveform.as_ref().map(|waveform| {
            (SidecarKind::Peaks, "peaks.json", serde_json::to_vec(waveform).expect("plain data becomes JSON"))
        });
        let mut sidecars = Vec::new();
        if self.reasons.iter().any(|known| matches!(known, Reason::Storage { .. })) {
            return About { speech: speech.filter(|_| self.config.encryption.is_empty()), sidecars };
        }
        for (kind, ext, bytes) in captions.into_iter().chain(peaks) {
            match self.sinks.store_beside(kind, ext, bytes).await {
                Ok(entry) => sidecars.push(entry),
                Err(reason) => self.reasons.push(reason),
            }
        }
        // What is said in plain is not who spoke when: that is in a file that is sealed.
        About { speech: speech.filter(|_| self.config.encryption.is_empty()), sidecars }
    }

    fn manifest(
        &self,
        end: &End,
        finished: &Finished,
        outcome: Outcome,
        outputs: Vec<OutputEntry>,
        about: About,
    ) -> Manifest {
        let mut participants = self.roll.participants().to_vec();
        let mut said = Vec::new();
        if let Some(Speech { entries, seconds, .. }) = about.speech {
            said = entries;
            for session in &mut participants {
                session.speaking_seconds = Some(seconds.get(&session.sid).copied().unwrap_or(0.0));
            }
        }
        let of_this_process = self.roll.tracks().iter().filter_map(|rolled| {
            let ledger = finished.ledgers.get(&rolled.track.key)?.clone();
            Some(TrackEntry {
                sid: rolled.track.sid.clone(),
                participant_sid: rolled.participant_sid.clone(),
                identity: rolled.identity.clone(),
                name: rolled.track.name.clone(),
                source: rolled.track.source.clone(),
                codec: rolled.track.codec,
                encryption: rolled.track.encryption,
                published_sample: ledger.start,
                unpublished_sample: ledger.end,
                ledger,
            })
        });
        let tracks = self.tracks_before.iter().cloned().chain(of_this_process).collect();
        Manifest {
            version: MANIFEST_VERSION,
            recording_id: self.config.recording_id.clone(),
            room: self.room_info.clone(),
            started_at: self.clock.wall_zero(),
            ended_at: self.clock.wall_zero() + finished.samples.as_duration(),
            samples: finished.samples,
            duration_seconds: finished.samples.as_secs_f64(),
            outcome,
            reasons: self.reasons.clone(),
            stopped_by: end.reason,
            outputs: outputs
                .into_iter()
                .chain(self.stood_in.parts.iter().filter_map(|(_, entry)| entry.output()))
                .collect(),
            sidecars: about.sidecars,
            loudness: finished.findings.loudness,
            speech: said,
            pauses: self.life.pauses().iter().chain(&self.stood_in.pauses).cloned().collect(),
            egress: self.stood_in.parts.iter().map(|(_, entry)| entry.clone()).collect(),
            leg_silent: self.leg_silent.clone(),
            starved: self.starved.clone(),
            dtmf: self.dtmf.clone(),
            participants,
            tracks,
            media: self.roll.media().to_vec(),
            versions: Versions {
                callreel: env!("CARGO_PKG_VERSION").into(),
                libopus: opus::version().into(),
                livekit_server: self.room_info.server_version.clone(),
            },
        }
    }
    /// Whether anything that anybody sent is in the recording.
    fn is_heard(&self, finished: &Finished) -> bool {
        let mut ledgers = self.tracks_before.iter().map(|track| &track.ledger).chain(finished.ledgers.values());
        ledgers.any(|ledger| ledger.sums.received > 0)
    }

    fn lack_of_consent(&self) -> Option<Reason> {
        let wanted = || self.config.life.consent.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        self.life.lacks_consent().then(|| Reason::NoConsent { wanted: wanted() })
    }
}

/// What was said, by the call's time.
fn in_call(entries: Vec<SpeechEntry>, cuts: &Cuts) -> Vec<SpeechEntry> {
    if cuts.is_empty() {
        return entries;
    }
    let whole = |SpeechEntry { participant, from_sample, to_sample }| {
        let stretches = cuts.in_call(from_sample, to_sample).into_iter();
        stretches.map(move |(from_sample, to_sample)| SpeechEntry {
            participant: String::clone(&participant),
            from_sample,
            to_sample,
        })
    };
    entries.into_iter().flat_map(whole).collect()
}

/// What the ledgers and decoders found missing.
fn losses(roll: &Roll, finished: &Finished) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut down = 0.0;
    for rolled in roll.tracks() {
        let key = rolled.track.key;
        let Some(ledger) = finished.ledgers.get(&key) else { continue };
        let lost = SampleCount(ledger.sums.lost).as_secs_f64();
        if lost > LOSS_TOLERATED {
            let (participant, track) = (rolled.identity.clone(), rolled.track.sid.clone());
            reasons.push(Reason::LostAudio { participant, track, seconds: lost });
        }
        down += SampleCount(ledger.sums.recorder_down).as_secs_f64();
        let frames = ledger.counters.packets_undecryptable;
        if frames > 0 {
            let (participant, track) = (rolled.identity.clone(), rolled.track.sid.clone());
            let message = rolled.problem.map_or_else(String::new, |problem| problem.to_string());
            reasons.push(Reason::Undecryptable { participant, track, frames, message });
        }
        let refused = finished.refused.get(&key).copied().unwrap_or(0);
        if refused > 0 {
            reasons.push(Reason::Undecodable { track: rolled.track.sid.clone(), packets: refused });
        }
    }
    if down > 0.0 {
        reasons.push(Reason::RecorderDown { seconds: down });
    }
    reasons
}
