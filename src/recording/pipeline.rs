//! The audio path of one call: packets in, Ogg pages out. Pure: time is an argument, bytes are fetched.

use std::collections::BTreeMap;

use ::time::OffsetDateTime;

use crate::analysis::Findings;
use crate::call::TrackKey;
use crate::capture::{Capture, CaptureConfig, Content, Packet, Settled, Silence, TrackLedger, TrackSpec};
use crate::config::Config;
use crate::mix::MixError;
use crate::room::{MediaState, RtpPacket};
use crate::time::{ClockTime, MediaTime, RtpTime, SLOT, SampleCount};

use super::cuts::Cuts;
use super::life::PausePolicy;
use super::outputs::{BegunOutput, OutputId, Outputs, Speaker};

/// How much later than its place a packet may lie in a file: one slot.
const SLACK: SampleCount = SampleCount(SLOT);

/// A part of the audio path that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Packets cannot be captured as configured.
    #[error(transparent)]
    Capture(#[from] crate::capture::CaptureError),
    /// A stream cannot be made as configured.
    #[error(transparent)]
    Mix(#[from] MixError),
}

/// Capture and outputs of one call.
pub struct Pipeline {
    capture: Capture,
    outputs: Outputs,
    /// What the files lack. Everything from the outputs on goes by the time of the files.
    cuts: Cuts,
    /// Up to where each track's stretches have gone to the outputs, by the time of the files.
    reached: BTreeMap<TrackKey, MediaTime>,
    settled: Vec<Settled>,
    tracks: Vec<TrackKey>,
    /// Tracks that were unpublished and may still have packets under way.
    leaving: Vec<TrackKey>,
    peak: f32,
}

/// What is left when the recording is over.
#[derive(Debug)]
pub struct Finished {
    /// The length of the timeline.
    pub samples: SampleCount,
    /// The end of every output, by the time of the files.
    pub end: MediaTime,
    /// How each track's samples were settled.
    pub ledgers: BTreeMap<TrackKey, TrackLedger>,
    /// Packets of each track that its decoder refused.
    pub refused: BTreeMap<TrackKey, u64>,
    /// Who spoke when, and what it sounds like, by the time of the files.
    pub findings: Findings,
}

impl Pipeline {
    /// The audio path that `config` asks for, with streams of serial numbers from this one on, of a recording that began then.
    pub fn new(config: &Config, serial: u32, started: OffsetDateTime) -> Result<Self, PipelineError> {
        Self::with(config, Outputs::new(config, serial, started)?, Cuts::default())
    }

    /// Goes on with the streams that another process began, as [`Outputs::going_on`] says, and which lack `cuts`.
    ///
    /// # Errors
    /// [`PipelineError::Mix`] where `config` asks for other streams than those.
    pub fn going_on(
        config: &Config,
        begun: &[BegunOutput],
        speakers: Vec<Speaker>,
        cuts: Cuts,
    ) -> Result<Self, PipelineError> {
        Self::with(config, Outputs::going_on(config, begun, speakers)?, cuts)
    }

    fn with(config: &Config, outputs: Outputs, cuts: Cuts) -> Result<Self, PipelineError> {
        let lookback = config.capture.lookback.max(config.dtmf.lookback());
        let capture = CaptureConfig { lookback, ..config.capture.clone() };
        Ok(Self {
            capture: Capture::new(capture)?,
            outputs,
            cuts,
            reached: BTreeMap::new(),
            settled: Vec::new(),
            tracks: Vec::new(),
            leaving: Vec::new(),
            peak: 0.0,
        })
    }

    /// A track was published by `speaker`; that may begin an output.
    ///
    /// # Errors
    /// [`PipelineError::Mix`] where a stream of their own cannot be begun; the track goes into all others.
    pub fn published(
        &mut self,
        track: TrackKey,
        speaker: &Speaker,
        spec: TrackSpec,
        at: ClockTime,
    ) -> Result<(), PipelineError> {
        self.tracks.push(track);
        self.capture.publish(track, spec, at);
        Ok(self.outputs.publish(track, speaker)?)
    }

    /// A packet arrived.
    pub fn packet(&mut self, packet: &RtpPacket, arrival: ClockTime) {
        let &RtpPacket { track, ssrc, codec, seq, rtp, marker, ref payload, undecryptable, .. } = packet;
        let packet = Packet { ssrc, codec, seq, rtp, marker, payload: payload.clone(), undecryptable };
        self.capture.packet(track, packet, arrival);
    }

    /// A publisher muted or unmuted.
    pub fn muted(&mut self, track: TrackKey, muted: bool, at: ClockTime) {
        self.capture.mute(track, muted, at);
    }

    /// A track is gone.
    pub fn unpublished(&mut self, track: TrackKey, at: ClockTime) {
        self.capture.unpublish(track, at);
        self.leaving.push(track);
    }

    /// Whether nothing of a track is to come any more.
    pub fn is_over(&self, track: TrackKey) -> bool {
        self.capture.is_over(track) || self.leaving.contains(&track)
    }

    /// A sender report arrived.
    pub fn sender_report(&mut self, track: TrackKey, ntp: u64, rtp: RtpTime, at: ClockTime) {
        self.capture.sender_report(track, ntp, rtp, at);
    }

    /// Media came or broke.
    pub fn media(&mut self, state: MediaState, at: ClockTime) {
        self.capture.media(matches!(state, MediaState::Connected(_)), at);
    }

    /// Nothing of what is spoken from here on gets beyond capture; the files have there what `policy` says. Gives from where
    /// on they lack something.
    pub fn withhold(&mut self, from: MediaTime, policy: PausePolicy) -> Option<MediaTime> {
        self.capture.withhold_from(from);
        let reached = self.reached.values().copied().max();
        // Packets that are passed through may lie a slot later than their stretch.
        let reached = reached.map_or(MediaTime::ZERO, |reached| self.cuts.to_call(reached) + SLACK);
        (policy == PausePolicy::Skip).then(|| self.cuts.begin(from, reached))
    }

    /// What is spoken from here on is recorded again. Gives what the files lack.
    pub fn keep(&mut self, from: MediaTime) -> Option<(MediaTime, MediaTime)> {
        self.capture.withhold_until(from);
        self.cuts.end(from)
    }

    /// Nothing of what is spoken on a track in `[from, to)` gets beyond capture, as [`Capture::withhold_of`] says.
    pub fn withhold_of(&mut self, track: TrackKey, from: MediaTime, to: MediaTime) {
        self.capture.withhold_of(track, from, to);
    }

    /// The time of the files against that of the call.
    pub fn cuts(&self) -> &Cuts {
        &self.cuts
    }

    /// Writes what is settled by `now`. `alone_since` says since when nobody is there who matters: silence from then on is
    /// held back, to be trimmed if nobody comes back.
    pub fn advance(&mut self, now: ClockTime, alone_since: Option<ClockTime>) {
        self.hold_silence_from(alone_since);
        let frontier = self.capture.advance(now, &mut self.settled);
        self.push_settled();
        for track in self.leaving.extract_if(.., |track| self.capture.is_over(*track)) {
            self.outputs.end_track(track);
        }
        self.outputs.advance(self.cuts.to_file(frontier));
        self.peak = self.peak.max(self.outputs.peak());
    }

    /// Every output.
    pub fn outputs(&self) -> &Outputs {
        &self.outputs
    }

    /// The pages closed since the last call, of each output that has any.
    pub fn take_pages(&mut self) -> Vec<(OutputId, Vec<u8>)> {
        self.outputs.take_pages()
    }

    /// The highest peak of any track that was decoded since the last call, in dBFS.
    pub fn take_peak_dbfs(&mut self) -> f32 {
        20.0 * std::mem::take(&mut self.peak).log10()
    }

    /// What is known so far of a recording that goes on, but for its sound.
    pub fn so_far(&self) -> Finished {
        let ledgers = self.ledgers();
        let end = ledgers.values().map(|ledger| ledger.end).max().unwrap_or(MediaTime::ZERO);
        let refused = self.outputs.refused();
        let (samples, end) = (end.since(MediaTime::ZERO), self.cuts.to_file(end));
        Finished { samples, end, ledgers, refused, findings: Findings::default() }
    }

    /// Whether packets are missing that a retransmission may still bring.
    pub fn is_waiting_for_retransmissions(&self) -> bool {
        self.capture.outstanding() > 0
    }

    /// Settles everything up to `end`, trims silence that was held back, and ends the streams; their last pages can then be
    /// taken.
    pub fn finish(&mut self, end: ClockTime, alone_since: Option<ClockTime>) -> Finished {
        self.hold_silence_from(alone_since);
        let reached = self.capture.finish(end, &mut self.settled);
        self.push_settled();
        let whole = self.cuts.to_file(reached);
        let end = self.outputs.finish(whole);
        // Of silence that was trimmed, the timeline has no more than the files.
        let reached = if end < whole { self.cuts.to_call(end) } else { reached };
        let refused = self.outputs.refused();
        let ledgers = self.ledgers();
        let findings = self.outputs.take_findings(end);
        Finished { samples: reached.since(MediaTime::ZERO), end, ledgers, refused, findings }
    }

    fn ledgers(&self) -> BTreeMap<TrackKey, TrackLedger> {
        self.tracks.iter().filter_map(|key| Some((*key, self.capture.ledger(*key)?))).collect()
    }

    fn hold_silence_from(&mut self, alone_since: Option<ClockTime>) {
        self.outputs.hold_silence_from(alone_since.map(|at| self.cuts.to_file(at.into())));
    }

    fn push_settled(&mut self) {
        let Self { settled, outputs, cuts, reached, .. } = self;
        for stretch in settled.drain(..) {
            if cuts.is_empty() {
                reached.insert(stretch.track, stretch.end);
                outputs.push(&stretch);
                continue;
            }
            let reached = reached.entry(stretch.track).or_insert(cuts.to_file(stretch.start));
            cuts.keep(&stretch, |kept| {
                // What lay beyond the end of a cut was dropped with it.
                if kept.start > *reached {
                    let content = Content::Silence(Silence::Withheld);
                    outputs.push(&Settled { track: kept.track, start: *reached, end: kept.start, content });
                }
                *reached = kept.end;
                outputs.push(kept);
            });
        }
    }
}
