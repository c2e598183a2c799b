//! The audio path of one call: packets in, Ogg pages out. Pure: time is an argument, bytes are fetched.

use std::collections::BTreeMap;

use crate::analysis::Findings;
use crate::call::TrackKey;
use crate::capture::{Capture, Packet, Settled, TrackLedger, TrackSpec};
use crate::config::Config;
use crate::mix::MixError;
use crate::room::{MediaState, RtpPacket};
use crate::time::{ClockTime, MediaTime, RtpTime, SampleCount};

use super::outputs::{BegunOutput, OutputId, Outputs, Speaker};

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
    settled: Vec<Settled>,
    tracks: Vec<TrackKey>,
    /// Tracks that were unpublished and may still have packets under way.
    leaving: Vec<TrackKey>,
    peak: f32,
}

/// What is left when the recording is over.
#[derive(Debug)]
pub struct Finished {
    /// The length of the timeline, and of every output.
    pub samples: SampleCount,
    /// How each track's samples were settled.
    pub ledgers: BTreeMap<TrackKey, TrackLedger>,
    /// Packets of each track that its decoder refused.
    pub refused: BTreeMap<TrackKey, u64>,
    /// Who spoke when, and what it sounds like.
    pub findings: Findings,
}

impl Pipeline {
    /// The audio path that `config` asks for, with streams of serial numbers from this one on.
    pub fn new(config: &Config, serial: u32) -> Result<Self, PipelineError> {
        Self::with(config, Outputs::new(config, serial)?)
    }

    /// Goes on with the streams that another process began, as [`Outputs::going_on`] says.
    ///
    /// # Errors
    /// [`PipelineError::Mix`] where `config` asks for other streams than those.
    pub fn going_on(config: &Config, begun: &[BegunOutput], speakers: Vec<Speaker>) -> Result<Self, PipelineError> {
        Self::with(config, Outputs::going_on(config, begun, speakers)?)
    }

    fn with(config: &Config, outputs: Outputs) -> Result<Self, PipelineError> {
        Ok(Self {
            capture: Capture::new(config.capture.clone())?,
            outputs,
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
        let &RtpPacket { track, ssrc, codec, seq, rtp, marker, ref payload, .. } = packet;
        let packet = Packet { ssrc, codec, seq, rtp, marker, payload: payload.clone() };
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

    /// A sender report arrived.
    pub fn sender_report(&mut self, track: TrackKey, ntp: u64, rtp: RtpTime, at: ClockTime) {
        self.capture.sender_report(track, ntp, rtp, at);
    }

    /// Media came or broke.
    pub fn media(&mut self, state: MediaState, at: ClockTime) {
        self.capture.media(matches!(state, MediaState::Connected(_)), at);
    }

    /// Writes what is settled by `now`. `alone_since` says since when nobody is there who matters: silence from then on is
    /// held back, to be trimmed if nobody comes back.
    pub fn advance(&mut self, now: ClockTime, alone_since: Option<ClockTime>) {
        self.outputs.hold_silence_from(alone_since.map(MediaTime::from));
        let frontier = self.capture.advance(now, &mut self.settled);
        self.push_settled();
        for track in self.leaving.extract_if(.., |track| self.capture.is_over(*track)) {
            self.outputs.end_track(track);
        }
        self.outputs.advance(frontier);
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
        Finished { samples: end.since(MediaTime::ZERO), ledgers, refused, findings: Findings::default() }
    }

    /// Whether packets are missing that a retransmission may still bring.
    pub fn is_waiting_for_retransmissions(&self) -> bool {
        self.capture.outstanding() > 0
    }

    /// Settles everything up to `end`, trims silence that was held back, and ends the streams; their last pages can then be
    /// taken.
    pub fn finish(&mut self, end: ClockTime, alone_since: Option<ClockTime>) -> Finished {
        self.outputs.hold_silence_from(alone_since.map(MediaTime::from));
        let end = self.capture.finish(end, &mut self.settled);
        self.push_settled();
        let end = self.outputs.finish(end);
        let refused = self.outputs.refused();
        let ledgers = self.ledgers();
        let findings = self.outputs.take_findings(end);
        Finished { samples: end.since(MediaTime::ZERO), ledgers, refused, findings }
    }

    fn ledgers(&self) -> BTreeMap<TrackKey, TrackLedger> {
        self.tracks.iter().filter_map(|key| Some((*key, self.capture.ledger(*key)?))).collect()
    }

    fn push_settled(&mut self) {
        for stretch in self.settled.drain(..) {
            self.outputs.push(&stretch);
        }
    }
}
