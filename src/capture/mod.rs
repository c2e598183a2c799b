//! From packets to settled stretches of the timeline: every voice at its true moment, and an account of every sample.
//!
//! The recorder is not a player: it waits. Packets wait in a reorder buffer until those before them have come or are
//! given up; then each is settled once, as a stretch of the recording's timeline with integer borders, and the
//! [ledger](TrackLedger) says how. Decoding, resampling and pass-through come after it.
//!
//! ```text
//!  packet ─▶ buffer ─▶ hole? ─▶ does the map hold? ─▶ place ─▶ Settled, ledger
//!               └────▶ envelope (arrival against media time) ──▲
//! ```
//!
//! # Where a packet lies
//!
//! `place = media time + offset`, where the offset is the [lower envelope](Envelope) of arrival against media time: the
//! least delayed packets tell the truth. A packet's *last 20 ms* lie where it would have arrived without jitter, so that
//! packets of 20 ms begin there, and talkers with longer packets are not late.
//! Packets that follow each other without a gap are laid end to end and stretched by at most one sample in 20 ms (five
//! while a new map converges); after silence they lie exactly where the map says.
//!
//! # When the map breaks
//!
//! A new SSRC, a jump of the timestamps, a return from mute, or a sender whose clock stood still re-anchor the track at
//! the arrival times. A step in the delays that the network made moves nothing.
//!
//! # Time
//!
//! Nothing here reads a clock. Call [`Capture::advance`] at least every 100 ms, after taking in the packets that have
//! arrived; longer pauses are taken for starvation of the recorder and not held against the senders.
//!
//! ```
//! use callreel::call::{Codec, ParticipantKind, TrackKey};
//! use callreel::capture::{Capture, CaptureConfig, Packet, TrackSpec};
//! use callreel::time::{ClockTime, RtpTime, Seq};
//!
//! let mut capture = Capture::new(CaptureConfig::default())?;
//! let spec = TrackSpec { kind: ParticipantKind::Standard, codec: Codec::Opus, muted: false };
//! capture.publish(TrackKey(1), spec, ClockTime::ZERO);
//! let mut settled = Vec::new();
//! for i in 0..200 {
//!     let packet = Packet {
//!         ssrc: 7,
//!         codec: Codec::Opus,
//!         seq: Seq(100 + i),
//!         rtp: RtpTime(960 * i as i64),
//!         marker: false,
//!         payload: bytes::Bytes::from_static(&[0x78, 1, 2, 3]),
//!         undecryptable: false,
//!     };
//!     let now = ClockTime::from_millis(500 + 20 * i as i64);
//!     capture.packet(TrackKey(1), packet, now);
//!     capture.advance(now, &mut settled);
//! }
//! capture.finish(ClockTime::from_millis(4600), &mut settled);
//! let ledger = capture.ledger(TrackKey(1)).expect("it was published");
//! assert_eq!(ledger.sums.received, 200 * 960);
//! assert_eq!(ledger.rows[0].end.0, 24_000, "not started for half a second");
//! ledger.check_identity().expect("every sample is accounted for");
//! # Ok::<(), callreel::capture::CaptureError>(())
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::call::{Codec, ParticipantKind, TrackKey};
use crate::time::{ClockTime, MediaTime, RtpTime, SLOT, Seq};

mod buffer;
mod config;
mod envelope;
mod judge;
mod ledger;
mod settle;
mod settled;
mod spans;
#[cfg(test)]
mod tests;
pub mod toc;
mod track;

pub use config::{CaptureConfig, CaptureError};
pub use envelope::Envelope;
pub use ledger::{Alignment, Counters, LedgerError, Reason, Row, Sums, TrackLedger};
pub use settled::{Content, Settled, Silence};

use spans::Spans;
use track::{Context, Track};

/// A pause between two calls of [`Capture::advance`] beyond this is the recorder's own fault: 250 ms.
const ATTENTIVE: i64 = 250_000_000;

/// What capture has to know of a track beforehand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackSpec {
    /// What kind of participant sends it: telephone legs have clocks that stand still.
    pub kind: ParticipantKind,
    /// The codec it is announced with; a packet's own payload type decides.
    pub codec: Codec,
    /// Whether it is muted now.
    pub muted: bool,
}

/// One RTP packet of a track, its header unwrapped.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The stream.
    pub ssrc: u32,
    /// What it is coded with.
    pub codec: Codec,
    /// Sequence number, comparable within one SSRC.
    pub seq: Seq,
    /// Timestamp in ticks of [`Codec::clock_rate`], comparable within one SSRC.
    pub rtp: RtpTime,
    /// The marker bit.
    pub marker: bool,
    /// The codec's payload.
    pub payload: Bytes,
    /// The payload could not be decrypted: it tells how long it lasts, and nothing else.
    pub undecryptable: bool,
}

/// All tracks of one recording; see the [module](self).
#[derive(Debug)]
pub struct Capture {
    tracks: BTreeMap<TrackKey, Track>,
    frontier: MediaTime,
    advanced: Option<ClockTime>,
    /// Nanoseconds in which nobody looked at the clock.
    starved: i64,
    around: Around,
}

/// What holds for all tracks.
#[derive(Debug)]
struct Around {
    config: CaptureConfig,
    withheld: Spans,
    recorder_down: Spans,
    media_down: Spans,
}

impl Capture {
    /// A capture without tracks whose timeline begins at sample 0.
    pub fn new(config: CaptureConfig) -> Result<Self, CaptureError> {
        config.validate()?;
        let around = Around {
            config,
            withheld: Spans::default(),
            recorder_down: Spans::default(),
            media_down: Spans::default(),
        };
        Ok(Self { tracks: BTreeMap::new(), frontier: MediaTime::ZERO, advanced: None, starved: 0, around })
    }

    /// A track was published. Its timeline begins at `at`, or where all else is settled already.
    pub fn publish(&mut self, track: TrackKey, spec: TrackSpec, at: ClockTime) {
        let start = MediaTime::from(at).max(self.frontier);
        let attended = self.attended(at);
        self.tracks.entry(track).or_insert_with(|| Track::new(track, &spec, start, attended));
    }

    /// A packet arrived. Packets of tracks that were never published are ignored.
    pub fn packet(&mut self, track: TrackKey, packet: Packet, arrival: ClockTime) {
        let attended = self.attended(arrival);
        if let Some(track) = self.tracks.get_mut(&track) {
            track.packet(packet, arrival, attended, &self.around.config);
        }
    }

    /// A sender report of a track arrived (RFC 3550 §6.4.1): `ntp` in 32.32 fixed point, `rtp` of the same moment.
    ///
    /// Reports are never used to align: only whether they break with the packets counts.
    pub fn sender_report(&mut self, track: TrackKey, ntp: u64, rtp: RtpTime, at: ClockTime) {
        let attended = self.attended(at);
        if let Some(track) = self.tracks.get_mut(&track) {
            track.sender_report(ntp, rtp, attended);
        }
    }

    /// The publisher muted or unmuted.
    pub fn mute(&mut self, track: TrackKey, muted: bool, at: ClockTime) {
        if let Some(track) = self.tracks.get_mut(&track) {
            track.mute(muted, at.into());
        }
    }

    /// The track is gone. Its timeline ends at `at`, or with its last packet.
    pub fn unpublish(&mut self, track: TrackKey, at: ClockTime) {
        let attended = self.attended(at);
        if let Some(track) = self.tracks.get_mut(&track) {
            track.unpublish(at.into(), attended);
        }
    }

    /// The media connection broke or came back: silence that begins or ends in between may be loss.
    pub fn media(&mut self, up: bool, at: ClockTime) {
        self.around.media_down.set(!up, at.into());
    }

    /// The recorder was not there in `[from, to)`: what is missing of it is its own fault.
    pub fn recorder_down(&mut self, from: ClockTime, to: ClockTime) {
        self.around.recorder_down.add(from.into(), to.into());
    }

    /// The recording was paused in `[from, to)`: what lies in it leaves capture as silence, whenever it arrives.
    ///
    /// A packet that reaches into the span is withheld whole. What is settled already stays settled.
    pub fn withhold(&mut self, from: MediaTime, to: MediaTime) {
        self.around.withheld.add(from, to);
    }

    /// As [`withhold`](Self::withhold), from here on until [`withhold_until`](Self::withhold_until) tells the end.
    pub fn withhold_from(&mut self, from: MediaTime) {
        self.around.withheld.set(true, from);
    }

    /// Ends what [`withhold_from`](Self::withhold_from) began.
    pub fn withhold_until(&mut self, to: MediaTime) {
        self.around.withheld.set(false, to);
    }

    /// As [`withhold`](Self::withhold), of one track. What is spoken is still to be withheld for as long as
    /// [`lookback`](CaptureConfig::lookback).
    pub fn withhold_of(&mut self, track: TrackKey, from: MediaTime, to: MediaTime) {
        if let Some(track) = self.tracks.get_mut(&track) {
            track.withhold(from, to);
        }
    }

    /// Settles what can be settled at `now` and appends it to `out`; the stretches of one track are in order.
    ///
    /// Returns the frontier, a multiple of [`SLOT`] that never goes back: every track is settled up to it, and tracks
    /// published later begin at or after it.
    pub fn advance(&mut self, now: ClockTime, out: &mut Vec<Settled>) -> MediaTime {
        let before = self.advanced.unwrap_or(now);
        let now = now.max(before);
        self.starved += (now.0 - before.0 - ATTENTIVE).max(0);
        self.advanced = Some(now);
        let limit = ClockTime(now.0.min(before.0 + ATTENTIVE)).into();
        let context = self.around.context(limit, now.0 - self.starved, false);
        for track in self.tracks.values_mut() {
            track.settle(&context, out);
        }
        let open = self.tracks.values().filter(|track| !track.is_closed()).map(|track| track.settled).min();
        let reached = open.unwrap_or(limit - track::samples(self.around.config.start_lag));
        let slot = SLOT as i64;
        self.frontier = self.frontier.max(MediaTime(reached.0.div_euclid(slot) * slot));
        let account = self.tracks.values().filter(|track| !track.is_closed()).map(|track| track.ledger.end).min();
        let Around { withheld, recorder_down, media_down, .. } = &mut self.around;
        for spans in [withheld, recorder_down, media_down] {
            spans.forget(account.unwrap_or(self.frontier).min(self.frontier));
        }
        self.frontier
    }

    /// Settles all that is left, at once, and ends every track at `end` or with the last packet of all, whichever is
    /// later; returns that point. A short wait for [outstanding](Self::outstanding) packets is the caller's.
    pub fn finish(&mut self, end: ClockTime, out: &mut Vec<Settled>) -> MediaTime {
        let context = self.around.context(end.into(), end.0 - self.starved, true);
        for track in self.tracks.values_mut() {
            track.settle(&context, out);
        }
        let settled = self.tracks.values().map(|track| track.settled).max().unwrap_or(MediaTime::ZERO);
        let end = MediaTime::from(end).max(self.frontier).max(settled);
        for track in self.tracks.values_mut() {
            track.close(end, &context, out);
        }
        self.frontier = end;
        end
    }

    /// Whether the track has ended and all of it is settled.
    pub fn is_over(&self, track: TrackKey) -> bool {
        self.tracks.get(&track).is_none_or(Track::is_closed)
    }

    /// Packets that are missing and may still be retransmitted, over all tracks.
    pub fn outstanding(&self) -> u64 {
        self.tracks.values().map(Track::outstanding).sum()
    }

    /// Packets and payload bytes that wait, over all tracks.
    pub fn buffered(&self) -> (usize, usize) {
        let each = self.tracks.values().map(Track::buffered);
        each.fold((0, 0), |(packets, bytes), (more_packets, more_bytes)| (packets + more_packets, bytes + more_bytes))
    }

    /// The ledger of a track as it stands. Silence at its end is provisional until the next packet tells what it was.
    pub fn ledger(&self, track: TrackKey) -> Option<TrackLedger> {
        self.tracks.get(&track).map(|track| track.ledger(&self.around.context(self.frontier, 0, false)))
    }

    /// `at` on the clock that waits are measured on.
    fn attended(&self, at: ClockTime) -> i64 {
        at.0.saturating_sub(self.starved)
    }
}

impl Around {
    fn context(&self, limit: MediaTime, attended: i64, force: bool) -> Context<'_> {
        Context {
            config: &self.config,
            limit,
            attended,
            force,
            withheld: &self.withheld,
            recorder_down: &self.recorder_down,
            media_down: &self.media_down,
        }
    }
}
