//! One track of a forwarding mix: what waits, what was, and what is known of its sound.

use std::collections::VecDeque;
use std::ops::Range;

use super::FAINT;
use super::ear::Ear;
use super::obstacle::Obstacle;
use crate::call::{Codec, TrackKey};
use crate::capture::{Content, Settled, Silence, toc};
use crate::decode::{DecodeError, Level, g711_level};
use crate::encode::MaxBandwidth;
use crate::encode::packet::{self, Mode};
use crate::mix::Gain;
use crate::time::{MediaTime, SampleCount};

/// Packets of no more bytes hold nothing: what encoders send in DTX.
const EMPTY_BYTES: usize = 3;
/// For so long after a loss the next one is waited for: 2 s.
const LOSSY: i64 = 96_000;

/// What a piece of a track is to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A packet of so many samples that can be forwarded.
    Packet(u32),
    /// Nothing.
    Silence,
    /// Sound that can only be mixed.
    Other(Obstacle),
}

/// What can be told of a piece's loudness without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hint {
    /// Digital silence.
    Silent,
    /// Its encoder found no voice.
    Quiet,
    /// There may be a voice.
    Open,
}

/// A settled stretch and what was found out about it.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub start: MediaTime,
    pub end: MediaTime,
    pub content: Content,
    pub kind: Kind,
    pub hint: Hint,
    pub level: Option<Level>,
    /// Where its packet was put on the timeline, if it was forwarded.
    pub forwarded: Option<MediaTime>,
}

impl Piece {
    fn is_withheld(&self) -> bool {
        matches!(self.content, Content::Silence(Silence::Withheld))
    }
}

/// A track.
pub(super) struct Leg {
    pub key: TrackKey,
    /// What is behind, as far as it may be needed to warm a decoder up, and what waits.
    pub pieces: VecDeque<Piece>,
    /// Pieces that were dropped from the front.
    pub dropped: u64,
    pub gain: Gain,
    pub ended: bool,
    end: Option<MediaTime>,
    /// Where the last loss ended.
    lost: Option<MediaTime>,
    pub ear: Ear,
    /// Whether it is part of what is planned at present.
    pub speaking: bool,
    /// How far its sound is moved against the timeline while it is mixed, as it was where it was forwarded.
    pub shift: i64,
    /// Number of the next piece that the transcoder gets, and where what it got ends.
    pub fed: u64,
    pub fed_to: Option<MediaTime>,
}

impl Leg {
    pub(super) fn new(key: TrackKey, gain: Gain) -> Result<Self, DecodeError> {
        Ok(Self {
            key,
            pieces: VecDeque::with_capacity(64),
            dropped: 0,
            gain,
            ended: false,
            end: None,
            lost: None,
            ear: Ear::new()?,
            speaking: false,
            shift: 0,
            fed: 0,
            fed_to: None,
        })
    }

    /// End of what was pushed.
    pub(super) fn end(&self) -> Option<MediaTime> {
        self.end
    }

    /// Takes the next stretch.
    ///
    /// # Errors
    /// [`DecodeError::OutOfOrder`].
    pub(super) fn push(&mut self, stretch: &Settled) -> Result<(), DecodeError> {
        let expected = self.end.unwrap_or(stretch.start);
        if stretch.start != expected {
            return Err(DecodeError::OutOfOrder { track: stretch.track, expected, got: stretch.start });
        }
        if stretch.is_empty() {
            return Ok(());
        }
        self.end = Some(stretch.end);
        let before = self.pieces.back();
        let mut silence = self.pieces.iter().rev().take_while(|piece| piece.kind == Kind::Silence);
        let after_withheld = silence.any(Piece::is_withheld);
        let level = match &stretch.content {
            Content::Packet { codec, payload } => g711_level(*codec, payload),
            _ => None,
        };
        let piece = Piece {
            start: stretch.start,
            end: stretch.end,
            content: stretch.content.clone(),
            kind: kind(stretch, after_withheld),
            hint: hint(&stretch.content, before),
            level,
            forwarded: None,
        };
        if piece.kind == Kind::Other(Obstacle::Loss) {
            self.lost = Some(piece.end);
        }
        // Silence that goes on is one piece, however often it is settled.
        match self.pieces.back_mut() {
            Some(last) if joins(last, &piece) => last.end = piece.end,
            _ => self.pieces.push_back(piece),
        }
        if let Some(level) = level {
            self.ear.note(level, stretch.start);
        }
        self.doubt();
        Ok(())
    }

    /// Listens now and then to what is said to be quiet: senders' encoders miss tones and music.
    fn doubt(&mut self) {
        let newest = self.pieces.len() - 1;
        let piece = &self.pieces[newest];
        let Content::Packet { payload, .. } = &piece.content else { return };
        let rate = payload.len() as f32 / len(piece.start, piece.end).0 as f32;
        if piece.hint != Hint::Quiet || !self.ear.wants_to_listen(piece.start, rate) {
            return;
        }
        if let Some(level) = self.level(newest) {
            if level.rms >= self.ear.voice_from(1.0) {
                self.pieces[newest].hint = Hint::Open;
            } else {
                self.ear.note_rate(rate);
            }
        }
    }

    /// Drops what ended before `time`, except the newest piece, and what a pause at `time` came after.
    pub(super) fn forget_before(&mut self, time: MediaTime) {
        let pauses = |piece: &Piece| matches!(piece.content, Content::Silence(Silence::Dtx)) && piece.end >= time;
        while self.pieces.len() > 1 && self.pieces[0].end < time && !pauses(&self.pieces[1]) {
            self.pieces.pop_front();
            self.dropped += 1;
        }
    }

    /// The pieces that overlap `[from, to)`.
    pub(super) fn range(&self, from: MediaTime, to: MediaTime) -> Range<usize> {
        let first = self.pieces.partition_point(|piece| piece.end <= from);
        let last = self.pieces.partition_point(|piece| piece.start < to);
        first..last.max(first)
    }

    /// Whether there may be a voice in `[from, to)`, as far as can be told without decoding.
    pub(super) fn may_speak(&self, from: MediaTime, to: MediaTime) -> bool {
        self.gain.factor != 0.0 && self.pieces.range(self.range(from, to)).any(|piece| piece.hint == Hint::Open)
    }

    /// Whether there is a voice in `[from, to)`; decodes what is in doubt.
    pub(super) fn speaks(&mut self, from: MediaTime, to: MediaTime) -> bool {
        self.gain.factor != 0.0
            && self.range(from, to).any(|n| {
                self.pieces[n].hint == Hint::Open
                    && self
                        .level(n)
                        .is_none_or(|level| level.rms * self.gain.factor.abs() >= self.ear.voice_from(self.gain.factor))
            })
    }

    /// Whether there is any sound in `[from, to)`.
    pub(super) fn sounds(&self, from: MediaTime, to: MediaTime) -> bool {
        self.gain.factor != 0.0 && self.pieces.range(self.range(from, to)).any(|piece| piece.hint != Hint::Silent)
    }

    /// Whether its background is too loud to be left out, or not known.
    pub(super) fn is_noisy(&self) -> bool {
        self.ear.is_noisy(self.gain.factor)
    }

    /// Whether its background would be missed beside a talker whose packets hold no more than `bandwidth`: nobody hears what a
    /// voice masks, but a voice from a telephone masks nothing above it.
    pub(super) fn is_missed_beside(&self, bandwidth: MaxBandwidth, from: MediaTime, to: MediaTime) -> bool {
        bandwidth < MaxBandwidth::Wideband
            && self.sounds(from, to)
            && self.bandwidth(from, to).is_some_and(|widest| widest > bandwidth)
            && self.ear.is_noisy_bare(self.gain.factor)
    }

    /// The bandwidth of the widest packet in `[from, to)`.
    pub(super) fn bandwidth(&self, from: MediaTime, to: MediaTime) -> Option<MaxBandwidth> {
        let pieces = self.pieces.range(self.range(from, to));
        let widths = pieces.filter_map(|piece| match (&piece.content, piece.kind) {
            (Content::Packet { payload, .. }, Kind::Packet(_)) => payload.first().map(|toc| packet::bandwidth(*toc)),
            _ => None,
        });
        widths.max()
    }

    /// Whether a packet was lost around `at`: more may be.
    pub(super) fn loses(&self, at: MediaTime) -> bool {
        self.lost.is_some_and(|lost| at < moved(lost, LOSSY))
    }

    /// Why what sounds in `[from, to)` cannot be forwarded, if it cannot.
    pub(super) fn obstacle(&self, from: MediaTime, to: MediaTime) -> Option<Obstacle> {
        if self.gain != Gain::UNITY {
            return Some(Obstacle::Gain);
        }
        self.pieces.range(self.range(from, to)).find_map(|piece| match piece.kind {
            Kind::Other(obstacle) => Some(obstacle),
            Kind::Packet(_) | Kind::Silence => None,
        })
    }

    /// The level of a piece; `None` where it cannot be told.
    pub(super) fn level(&mut self, n: usize) -> Option<Level> {
        self.ear.level(&mut self.pieces, self.dropped, n)
    }

    /// The first piece that begins at `time` or later.
    pub(super) fn from(&self, time: MediaTime) -> Option<usize> {
        let n = self.pieces.partition_point(|piece| piece.start < time);
        (n < self.pieces.len()).then_some(n)
    }

    /// Whether a piece and the one before it are below `rms`, or nothing was before it. Music is never quiet above [`FAINT`]:
    /// it is coded without linear prediction, or louder in its quietest moments than a background that can be left out.
    pub(super) fn is_quiet_around(&mut self, n: usize, rms: f32) -> bool {
        let never_pauses = self.is_noisy();
        let quiet = |leg: &mut Self, n: usize| {
            let piece = &leg.pieces[n];
            let is_celt = match &piece.content {
                Content::Packet { codec: Codec::Opus, payload } => packet::mode(payload) == Some(Mode::Celt),
                _ => false,
            };
            let limit = if is_celt || never_pauses { rms.min(FAINT) } else { rms };
            piece.kind == Kind::Silence || leg.level(n).is_some_and(|level| level.rms < limit)
        };
        let Some(before) = n.checked_sub(1) else { return self.dropped == 0 || quiet(self, n) };
        self.pieces[before].kind == Kind::Silence || quiet(self, before) && quiet(self, n)
    }
}

fn joins(last: &Piece, next: &Piece) -> bool {
    match (&last.content, &next.content) {
        (Content::Silence(one), Content::Silence(other)) => one == other,
        _ => false,
    }
}

fn kind(stretch: &Settled, after_withheld: bool) -> Kind {
    let payload = match &stretch.content {
        Content::Silence(_) => return Kind::Silence,
        Content::Recovered { .. } | Content::Concealed { .. } => return Kind::Other(Obstacle::Loss),
        Content::Packet { codec: Codec::Pcmu | Codec::Pcma, .. } => return Kind::Other(Obstacle::NotOpus),
        Content::Packet { codec: Codec::Opus, payload } => payload,
    };
    let Ok(samples) = packet::check(payload) else { return Kind::Other(Obstacle::Malformed) };
    if packet::is_stereo(payload) == Some(true) {
        return Kind::Other(Obstacle::Stereo);
    }
    if u64::from(samples) > stretch.len().0 + u64::from(samples) / 24 {
        return Kind::Other(Obstacle::Duration);
    }
    // What was withheld must not come back as the spare copy in the next packet that is heard.
    if after_withheld && toc::in_band_fec(payload).is_some() {
        return Kind::Other(Obstacle::Withheld);
    }
    Kind::Packet(samples)
}

fn hint(content: &Content, before: Option<&Piece>) -> Hint {
    let payload = match content {
        Content::Silence(_) => return Hint::Silent,
        Content::Concealed { .. } => return before.map_or(Hint::Silent, |before| before.hint),
        Content::Recovered { next } => next,
        Content::Packet { codec: Codec::Opus, payload } => payload,
        Content::Packet { codec: Codec::Pcmu | Codec::Pcma, .. } => return Hint::Open,
    };
    if payload.starts_with(&packet::SILENCE_20_MS) {
        return Hint::Silent;
    }
    if payload.len() <= EMPTY_BYTES {
        return Hint::Quiet;
    }
    match toc::voice(payload) {
        Some(false) => Hint::Quiet,
        Some(true) | None => Hint::Open,
    }
}

/// The time `samples` before or after another.
pub(super) fn moved(time: MediaTime, samples: i64) -> MediaTime {
    MediaTime(time.0.saturating_add(samples))
}

/// The time from one moment to another.
pub(super) fn len(from: MediaTime, to: MediaTime) -> SampleCount {
    to.since(from)
}
