//! The audio path of one call: packets in, Ogg pages out. Pure: time is an argument, bytes are fetched.

use std::collections::BTreeMap;

use crate::call::TrackKey;
use crate::capture::{Capture, Packet, Settled, TrackLedger, TrackSpec};
use crate::config::Config;
use crate::encode::OpusTags;
use crate::mix::{Mixdown, MixdownConfig};
use crate::room::{MediaState, RtpPacket};
use crate::time::{ClockTime, MediaTime, RtpTime, SAMPLE_RATE, SampleCount};

/// One page a second: a file cut at any moment lacks at most that, for 2 % of overhead.
const PAGE: SampleCount = SampleCount(SAMPLE_RATE as u64);

/// A part of the audio path that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Packets cannot be captured as configured.
    #[error(transparent)]
    Capture(#[from] crate::capture::CaptureError),
    /// A track cannot be mixed down.
    #[error(transparent)]
    Mix(#[from] crate::mix::MixError),
    /// The stream's header cannot be written.
    #[error(transparent)]
    Encode(#[from] crate::encode::EncodeError),
}

/// Capture and mixdown of one call.
pub struct Pipeline {
    capture: Capture,
    mixdown: Mixdown,
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
    /// The last pages.
    pub bytes: Vec<u8>,
    /// How each track's samples were settled.
    pub ledgers: BTreeMap<TrackKey, TrackLedger>,
    /// Packets of each track that its decoder refused.
    pub refused: BTreeMap<TrackKey, u64>,
    /// What broke the audio path at its end, if anything did.
    pub fault: Option<PipelineError>,
}

impl Pipeline {
    /// The audio path that `config` asks for, with a stream of this serial number.
    pub fn new(config: &Config, serial: u32) -> Result<Self, PipelineError> {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", &config.room)?;
        let mixdown = MixdownConfig { opus: config.opus.clone(), tags, serial, page: PAGE };
        Ok(Self {
            capture: Capture::new(config.capture.clone())?,
            mixdown: Mixdown::new(&mixdown)?,
            settled: Vec::new(),
            tracks: Vec::new(),
            leaving: Vec::new(),
            peak: 0.0,
        })
    }

    /// A track was published.
    pub fn published(&mut self, track: TrackKey, spec: TrackSpec, at: ClockTime) {
        self.tracks.push(track);
        self.capture.publish(track, spec, at);
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

    /// Mixes and encodes what is settled by `now`. `alone_since` says since when nobody is there who matters: silence
    /// from then on is held back, to be trimmed if nobody comes back.
    pub fn advance(&mut self, now: ClockTime, alone_since: Option<ClockTime>) -> Result<(), PipelineError> {
        let frontier = self.capture.advance(now, &mut self.settled);
        self.push_settled()?;
        for track in self.leaving.extract_if(.., |track| self.capture.is_over(*track)) {
            self.mixdown.end_track(track);
        }
        self.mixdown.hold_silence_from(alone_since.map(MediaTime::from));
        self.mixdown.advance(frontier)?;
        for (_, track) in self.mixdown.tracks() {
            self.peak = self.peak.max(track.level.peak);
        }
        Ok(())
    }

    /// The pages closed since the last call.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.mixdown.take_bytes(&mut bytes);
        bytes
    }

    /// The highest peak of any track since the last call, in dBFS.
    pub fn take_peak_dbfs(&mut self) -> f32 {
        20.0 * std::mem::take(&mut self.peak).log10()
    }

    /// Whether packets are missing that a retransmission may still bring.
    pub fn is_waiting_for_retransmissions(&self) -> bool {
        self.capture.outstanding() > 0
    }

    /// Settles everything up to `end`, trims silence that was held back, and ends the stream.
    pub fn finish(&mut self, end: ClockTime, alone_since: Option<ClockTime>) -> Finished {
        let end = self.capture.finish(end, &mut self.settled);
        let pushed = self.push_settled();
        self.mixdown.hold_silence_from(alone_since.map(MediaTime::from));
        let ended = pushed.and_then(|()| Ok(self.mixdown.finish(end)?));
        let bytes = self.take_bytes();
        let refused = self.mixdown.tracks().map(|(key, track)| (key, track.stats.refused)).collect();
        let ledgers = self.tracks.iter().filter_map(|key| Some((*key, self.capture.ledger(*key)?))).collect();
        let (samples, fault) = match ended {
            Ok(samples) => (samples, None),
            Err(fault) => (self.mixdown.writer().samples(), Some(fault)),
        };
        Finished { samples, bytes, ledgers, refused, fault }
    }

    fn push_settled(&mut self) -> Result<(), PipelineError> {
        for stretch in self.settled.drain(..) {
            self.mixdown.push(&stretch)?;
        }
        Ok(())
    }
}
