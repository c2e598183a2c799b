//! A mix that is decoded and encoded only where more than one talks: everywhere else it holds the talkers' own packets.
//!
//! | file | what it does |
//! |---|---|
//! | `leg.rs` | keeps a track's stretches, what is to come and a little of what was |
//! | `ear.rs` | tells how loud they are, where somebody asks |
//! | `plan.rs` | says who is to be heard next, and whether by their own packets |
//! | `obstacle.rs` | names why not, and counts for how long |

mod ear;
mod leg;
mod obstacle;
mod plan;

#[cfg(test)]
mod tests;

use bytes::Bytes;
use leg::{Hint, Kind, Leg, len, moved};
use obstacle::Counts;
use plan::Want;

use super::MixError;
use super::packets::Packets;
use super::transcoder::Transcoder;
use crate::analysis::Analysis;
use crate::call::TrackKey;
use crate::capture::{Content, Settled, Silence};
use crate::encode::OpusConfig;
use crate::encode::packet::{self, Mode};
use crate::mix::Gain;
use crate::time::{MediaTime, SLOT, SampleCount};

pub use obstacle::{ForwardReport, Obstacle};

/// A packet that begins a talker's sound lies this near to its place: 1.25 ms.
const EXACT: i64 = 60;
/// A quiet moment is used to put a talker right who is further off: 1.5 ms.
const NEAR: i64 = 72;
/// A talker's packets are never further off their place than this: 5 ms.
const FAR: i64 = 240;
/// Below this root mean square (−38 dBFS) a decoder does without what was before.
const QUIET: f32 = 0.012_6;
/// Below this (−50 dBFS) nobody hears a gap of a few milliseconds, or a packet left out.
const FAINT: f32 = 0.003_16;
/// Below this peak (−60 dBFS) nobody speaks.
const TRIMMED_BELOW: f32 = 0.001;
/// How far behind the stream the decoders listen for the analysis, so that one who begins to speak can be warmed up.
const BEHIND: i64 = 5_760;
/// What decoders hear before the encoder is warmed up: 100 ms.
const WARM_UP: i64 = 4_800;
/// Packets of fewer bytes continue what was before them.
const SELF_CONTAINED: usize = 4;
/// A pause of discontinuous transmission holds so many packets of 20 ms before it is silence; its sender lets it be heard
/// at least so often.
const PAUSE: u32 = 20;
/// So shortly before a pause of discontinuous transmission ends, the packet before it is repeated: 160 ms.
const RECALL: i64 = 7_680;

/// Makes the stream of a mix: packets that follow each other without a gap, from as many tracks as there are.
///
/// What lies at sample `s` of the timeline belongs at granule position `s + pre_skip`: a talker's packet whose stretch
/// begins there, and what the encoder makes of the sum, which it gets as much earlier as it takes to look ahead.
pub(super) struct Forwarder {
    legs: Vec<Leg>,
    gains: Vec<(TrackKey, Gain)>,
    transcoder: Transcoder,
    /// Whether the decoders follow what is forwarded, too.
    listening: bool,
    state: State,
    /// Where the stream stands, in samples of the timeline; silence that is held back included.
    held: u64,
    hold_from: Option<MediaTime>,
    /// How a pause of the talker goes on: what its packets begin with, and how many there may be.
    pause: Option<(u8, u32)>,
    settled: MediaTime,
    draining: bool,
    counts: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A talker's packets. Piece `next` goes on where the packet before it ended; where there is none such, silence
    /// leads up to the next packet's place.
    Forward { talker: Option<TrackKey>, next: Option<u64> },
    /// The sum, and who was heard before it.
    Mix { last: Option<TrackKey> },
}

impl Forwarder {
    pub(super) fn new(config: &OpusConfig) -> Result<Self, MixError> {
        Ok(Self {
            legs: Vec::new(),
            gains: Vec::new(),
            transcoder: Transcoder::new(config)?,
            listening: false,
            state: State::Forward { talker: None, next: None },
            held: 0,
            hold_from: None,
            pause: None,
            settled: MediaTime::ZERO,
            draining: false,
            counts: Counts::default(),
        })
    }

    pub(super) fn analyse(&mut self, analysis: Analysis) {
        self.listening = true;
        self.transcoder.analyse(analysis);
    }

    pub(super) fn take_analysis(&mut self) -> Option<Analysis> {
        self.transcoder.take_analysis()
    }

    pub(super) fn pre_skip(&self) -> u16 {
        self.transcoder.pre_skip()
    }

    pub(super) fn report(&self) -> ForwardReport {
        self.counts.report()
    }

    pub(super) fn least_gain(&self) -> f32 {
        self.transcoder.least_gain()
    }

    /// What decodes, mixes and encodes.
    pub(super) fn transcoder(&self) -> &Transcoder {
        &self.transcoder
    }

    /// Where the stream stands.
    pub(super) fn position(&self, out: &Packets) -> MediaTime {
        MediaTime((out.written() + self.held) as i64 - i64::from(self.pre_skip()))
    }

    pub(super) fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        let n = match self.legs.iter().position(|leg| leg.key == stretch.track) {
            Some(n) => n,
            None => {
                let gain =
                    self.gains.iter().find(|(key, _)| *key == stretch.track).map_or(Gain::UNITY, |(_, gain)| *gain);
                self.legs.push(Leg::new(stretch.track, gain)?);
                self.legs.len() - 1
            }
        };
        Ok(self.legs[n].push(stretch)?)
    }

    pub(super) fn end_track(&mut self, track: TrackKey) {
        if let Some(leg) = self.leg(track) {
            leg.ended = true;
        }
    }

    pub(super) fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        match self.gains.iter_mut().find(|(key, _)| *key == track) {
            Some(known) => known.1 = gain,
            None => self.gains.push((track, gain)),
        }
        if let Some(leg) = self.leg(track) {
            leg.gain = gain;
        }
        self.transcoder.set_gain(track, gain);
    }

    pub(super) fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.hold_from = from;
    }

    /// Writes up to `settled`, as far as enough is known of what comes.
    pub(super) fn advance(&mut self, settled: MediaTime, out: &mut Packets) -> Result<(), MixError> {
        let known = self.legs.iter().filter(|leg| !leg.ended).filter_map(Leg::end).min();
        self.settled = known.map_or(settled, |known| known.min(settled)).max(self.settled);
        while self.position(out) + plan::AHEAD <= self.settled {
            self.step(out)?;
        }
        Ok(())
    }

    /// Writes up to `end`, after which nothing comes. Gives where the stream can end: there, or where the silence begins
    /// that is held back.
    pub(super) fn drain(&mut self, end: MediaTime, out: &mut Packets) -> Result<MediaTime, MixError> {
        self.draining = true;
        while self.position(out) < end {
            self.step(out)?;
        }
        Ok(if self.held > 0 { (self.position(out) - SampleCount(self.held)).min(end) } else { end })
    }

    /// After [`drain`](Self::drain): goes on in silence until the stream holds at least `samples` samples.
    pub(super) fn end(&mut self, samples: u64, out: &mut Packets) -> Result<(), MixError> {
        self.held = 0;
        while out.written() < samples {
            out.push_silence(960);
        }
        if self.listening {
            self.listen_to(MediaTime(samples as i64 - i64::from(self.pre_skip())))?;
        }
        Ok(())
    }

    /// Puts the next packet on the stream, or a piece of silence.
    fn step(&mut self, out: &mut Packets) -> Result<(), MixError> {
        let at = self.position(out);
        match self.state {
            State::Forward { talker, next } => {
                let span = self.next_packet(talker, at, next).map_or(SLOT, |(_, samples)| SLOT.max(samples.into()));
                match plan::want(&mut self.legs, at, at + SampleCount(span), talker) {
                    Want::Forward(same) if same == talker => {
                        if let Err(obstacle) = self.forward(talker, next, at, out) {
                            self.begin_mix(obstacle, out)?;
                        }
                    }
                    Want::Forward(other) if self.can_go_over(other, at) => {
                        self.counts.joints += u64::from(talker.is_some() && other.is_some());
                        self.go_over(other, at, out);
                    }
                    Want::Forward(_) => self.begin_mix(Obstacle::Joint, out)?,
                    Want::Mix(obstacle) => self.begin_mix(obstacle, out)?,
                }
            }
            State::Mix { last } => match plan::want(&mut self.legs, at, moved(at, plan::STAY), last) {
                // Every joint costs more than a while of mixing.
                Want::Forward(Some(next)) if self.leg(next).is_some_and(|leg| leg.loses(at)) => {
                    self.mix(Obstacle::Loss, out)?;
                }
                Want::Forward(next) if self.can_go_over(next, at) => self.go_over(next, at, out),
                Want::Forward(_) => self.mix(Obstacle::Joint, out)?,
                Want::Mix(obstacle) => self.mix(obstacle, out)?,
            },
        }
        self.follow(out)
    }

    /// Goes over to a talker's packets, or to silence.
    fn go_over(&mut self, talker: Option<TrackKey>, at: MediaTime, out: &mut Packets) {
        self.legs.iter_mut().for_each(|leg| leg.shift = 0);
        self.pause = None;
        self.approach(talker, at, out);
    }

    /// Goes on with a talker's packets.
    ///
    /// # Errors
    /// Why that cannot be; nothing is then on the stream.
    fn forward(
        &mut self,
        talker: Option<TrackKey>,
        next: Option<u64>,
        at: MediaTime,
        out: &mut Packets,
    ) -> Result<(), Obstacle> {
        let packet = next.and_then(|_| self.next_packet(talker, at, next));
        if let Some((n, samples)) = packet
            && let Some(leg) = talker.and_then(|key| self.leg(key))
        {
            let late = at.0 - leg.pieces[n].start.0;
            let is_near = late.abs() <= NEAR || !leg.is_quiet_around(n, FAINT);
            if is_near && late.abs() > FAR {
                return Err(Obstacle::Drift);
            }
            if is_near && self.pass(talker, n, samples, at, out) {
                return Ok(());
            }
        }
        self.approach(talker, at, out);
        Ok(())
    }

    /// Puts silence up to the place of a talker's next packet on the stream, or that packet.
    fn approach(&mut self, talker: Option<TrackKey>, at: MediaTime, out: &mut Packets) {
        self.state = State::Forward { talker, next: None };
        let packet = self.next_packet(talker, at, None);
        let Some((n, samples, early)) = packet.and_then(|(n, samples)| {
            let leg = self.legs.iter().find(|leg| Some(leg.key) == talker)?;
            Some((n, samples, leg.pieces[n].start.0 - at.0))
        }) else {
            return self.silence(960, at, out);
        };
        if early > EXACT {
            // Silence would make the decoder forget again: what is left of whole packets comes first.
            let rest = (early + EXACT) % 960 - EXACT;
            let recalled = if early <= RECALL { self.recalled(talker, n) } else { None };
            let gap = match recalled {
                Some(_) if rest > EXACT => rest,
                Some(payload) if early + EXACT >= 960 => {
                    release(&mut self.held, out);
                    out.push(&payload, 960);
                    self.pause = Some((payload[0], PAUSE));
                    return;
                }
                Some(_) | None => early,
            };
            let fits = |unit: &u32| i64::from(*unit) <= gap + EXACT;
            let unit = [960, 480, 240, 120].into_iter().find(fits).unwrap_or(120);
            if unit < 960 || !self.pause(talker, at, out) {
                self.silence(unit, at, out);
            }
        } else if !self.pass(talker, n, samples, at, out) {
            self.silence(960, at, out);
        }
    }

    /// The packet before a pause of discontinuous transmission that piece `n` ends, if nobody hears it again: what the talker's
    /// encoder counts on where it speaks up, and the stream was elsewhere.
    fn recalled(&mut self, talker: Option<TrackKey>, n: usize) -> Option<Bytes> {
        let at_rest = self.pause.is_none() && self.held == 0 && self.hold_from.is_none();
        let leg = self.leg(talker.filter(|_| at_rest)?)?;
        let before = n.checked_sub(2)?;
        let is_pause = matches!(leg.pieces[n - 1].content, Content::Silence(Silence::Dtx));
        let Content::Packet { payload, .. } = &leg.pieces[before].content else { return None };
        let payload = payload.clone();
        (is_pause && leg.pieces[before].kind == Kind::Packet(960) && can_pause(&payload))
            .then(|| leg.level(before))
            .flatten()
            .is_some_and(|level| level.rms < FAINT)
            .then_some(payload)
    }

    /// Lets the player's decoder go on as a receiver's does while the talker sends nothing for a while: the talker's encoder
    /// counts on that. Silence would make it forget what the next packet builds on.
    fn pause(&mut self, talker: Option<TrackKey>, at: MediaTime, out: &mut Packets) -> bool {
        let Some((toc, left @ 1..)) = self.pause.filter(|_| !self.holds(at)) else { return false };
        let leg = self.legs.iter().find(|leg| Some(leg.key) == talker);
        let piece = leg.and_then(|leg| leg.pieces.range(leg.range(at, moved(at, 1))).next());
        if !piece.is_some_and(|piece| matches!(piece.content, Content::Silence(Silence::Dtx))) {
            return false;
        }
        out.push(&[toc], 960);
        self.pause = Some((toc, left - 1));
        true
    }

    /// Forwards a packet, unless it is silence that is held back.
    fn pass(&mut self, talker: Option<TrackKey>, n: usize, samples: u32, at: MediaTime, out: &mut Packets) -> bool {
        let holding = self.holds(at);
        let Some(leg) = self.legs.iter_mut().find(|leg| Some(leg.key) == talker) else { return false };
        if holding && leg.level(n).is_some_and(|level| level.peak < TRIMMED_BELOW) {
            return false;
        }
        let next = leg.dropped + n as u64 + 1;
        let piece = &mut leg.pieces[n];
        let Content::Packet { payload, .. } = &piece.content else { return false };
        release(&mut self.held, out);
        out.push(payload, samples);
        piece.forwarded = Some(at);
        // A stretch longer than its packet leaves a hole behind, where the next packet finds its place anew.
        let continues = piece.end.since(piece.start).0 <= u64::from(samples) + u64::from(samples) / 24;
        let pauses = piece.hint == Hint::Quiet && samples == 960 && can_pause(payload);
        self.pause = pauses.then(|| (payload[0], PAUSE));
        self.counts.packets += 1;
        self.counts.forwarded += SampleCount(samples.into());
        self.state = State::Forward { talker, next: continues.then_some(next) };
        true
    }

    /// The piece that is to be forwarded next, and how long its packet lasts: piece `next`, else the first one whose
    /// place is not behind.
    fn next_packet(&self, talker: Option<TrackKey>, at: MediaTime, next: Option<u64>) -> Option<(usize, u32)> {
        let leg = self.legs.iter().find(|leg| Some(leg.key) == talker)?;
        if let Some(next) = next {
            let n = next.checked_sub(leg.dropped)? as usize;
            return match leg.pieces.get(n)?.kind {
                Kind::Packet(samples) => Some((n, samples)),
                Kind::Silence | Kind::Other(_) => None,
            };
        }
        let from = leg.from(moved(at, -EXACT))?;
        leg.pieces.range(from..).zip(from..).find_map(|(piece, n)| match (piece.kind, &piece.content) {
            (Kind::Packet(samples), Content::Packet { payload, .. })
                if piece.forwarded.is_none() && payload.len() >= SELF_CONTAINED =>
            {
                Some((n, samples))
            }
            _ => None,
        })
    }

    /// Whether the stream can go over to this talker's packets now: only where nobody hears that a decoder knew nothing
    /// of what was before.
    fn can_go_over(&mut self, talker: Option<TrackKey>, at: MediaTime) -> bool {
        let Some((n, _)) = self.next_packet(talker, at, None) else { return true };
        let Some(leg) = talker.and_then(|key| self.leg(key)) else { return true };
        let gap = leg.pieces[n].start.0 - at.0;
        leg.is_quiet_around(n, if gap > FAR { FAINT } else { QUIET })
    }

    fn begin_mix(&mut self, because: Obstacle, out: &mut Packets) -> Result<(), MixError> {
        let at = self.position(out);
        if let State::Forward { talker, next } = self.state {
            let running = next.and_then(|_| self.next_packet(talker, at, next));
            if let Some((n, _)) = running
                && let Some(leg) = talker.and_then(|key| self.leg(key))
            {
                leg.shift = at.0 - leg.pieces[n].start.0;
            }
            self.state = State::Mix { last: talker };
        }
        self.pause = None;
        self.counts.joints += 1;
        release(&mut self.held, out);
        let granule = MediaTime(out.written() as i64);
        let start = granule - self.transcoder.warm_up();
        if self.listening {
            self.listen_to(start)?;
        } else {
            self.transcoder.restart(start, |key| self.legs.iter().any(|leg| leg.key == key));
            let from = moved(start, -WARM_UP);
            for leg in &mut self.legs {
                leg.fed_to = None;
                leg.fed = leg.dropped + leg.pieces.partition_point(|piece| placed(leg.shift, piece).1 <= from) as u64;
            }
        }
        let warming = self.transcoder.begin_encoding(granule)?;
        self.listen_to(warming)?;
        self.mix(because, out)
    }

    /// Mixes and encodes the next packet.
    fn mix(&mut self, because: Obstacle, out: &mut Packets) -> Result<(), MixError> {
        let before = out.written();
        while out.written() == before {
            self.feed()?;
            self.transcoder.work(out)?;
        }
        self.counts.transcoded(because, SampleCount(out.written() - before));
        Ok(())
    }

    fn silence(&mut self, samples: u32, at: MediaTime, out: &mut Packets) {
        if self.holds(at) {
            self.held += u64::from(samples);
        } else {
            self.pause = None;
            release(&mut self.held, out);
            out.push_silence(samples);
        }
    }

    fn holds(&self, at: MediaTime) -> bool {
        self.hold_from.is_some_and(|from| at >= from)
    }

    /// Lets go of what is behind, and lets the analysis hear it.
    fn follow(&mut self, out: &Packets) -> Result<(), MixError> {
        let at = self.position(out);
        if let (true, State::Forward { .. }) = (self.listening, self.state) {
            self.listen_to(moved(MediaTime(out.written() as i64) - self.transcoder.warm_up(), -BEHIND))?;
        }
        for leg in &mut self.legs {
            leg.forget_before(moved(at, -plan::KEPT));
        }
        self.legs.retain(|leg| !leg.ended || leg.end().is_some_and(|end| moved(end, plan::KEPT) >= at));
        Ok(())
    }

    /// Decodes and mixes up to `until`, for the analysis alone.
    fn listen_to(&mut self, until: MediaTime) -> Result<(), MixError> {
        while self.transcoder.taken() < until {
            self.feed()?;
            self.transcoder.listen(until);
        }
        Ok(())
    }

    /// Gives the transcoder what it needs for the next slot.
    fn feed(&mut self) -> Result<(), MixError> {
        let until = self.transcoder.position() + SampleCount(SLOT);
        let mixing = matches!(self.state, State::Mix { .. });
        for leg in &mut self.legs {
            while self.transcoder.ready(leg.key).is_none_or(|ready| ready < until) {
                let Some(n) = leg.fed.max(leg.dropped).checked_sub(leg.dropped) else { break };
                let Some(piece) = leg.pieces.get(n as usize) else {
                    if self.draining || leg.ended {
                        self.transcoder.finish_track(leg.key, leg.ended);
                    }
                    break;
                };
                leg.fed = leg.dropped + n + 1;
                let (start, mut end) = placed(leg.shift, piece);
                if mixing && piece.forwarded.is_none() {
                    leg.shift = nearer(leg.shift, piece);
                    end = moved(piece.end, leg.shift);
                }
                let from = leg.fed_to.unwrap_or(start);
                let heard = match piece.forwarded {
                    Some(_) => true,
                    None => mixing && plan::is_heard_in_a_mix(leg, piece.start, piece.end),
                };
                let content = if heard { piece.content.clone() } else { Content::Silence(Silence::Dtx) };
                let track = leg.key;
                if len(from, start) > SampleCount::ZERO {
                    let content = Content::Silence(Silence::Dtx);
                    self.transcoder.push(&Settled { track, start: from, end: start, content })?;
                }
                let from = from.max(start);
                if end > from {
                    self.transcoder.push(&Settled { track, start: from, end, content })?;
                }
                leg.fed_to = Some(from.max(end));
            }
        }
        Ok(())
    }

    fn leg(&mut self, key: TrackKey) -> Option<&mut Leg> {
        self.legs.iter_mut().find(|leg| leg.key == key)
    }
}

/// Whether a decoder that had this packet goes on by itself when it gets one that is empty.
fn can_pause(payload: &[u8]) -> bool {
    payload[0] & 3 == 0 && packet::mode(payload) != Some(Mode::Celt)
}

/// Writes the silence that was held back.
fn release(held: &mut u64, out: &mut Packets) {
    for unit in [960, 480, 240, 120] {
        while *held >= u64::from(unit) {
            out.push_silence(unit);
            *held -= u64::from(unit);
        }
    }
}

/// By how much a track is still moved after a piece, so that it comes back to its place unheard: silence takes all of it
/// back, sound is played slower or faster by half a percent. Two voices a millisecond off their places sum up to another sound.
fn nearer(shift: i64, piece: &leg::Piece) -> i64 {
    let most = match piece.kind {
        Kind::Silence => return 0,
        Kind::Packet(_) | Kind::Other(_) => (len(piece.start, piece.end).0 / 192) as i64,
    };
    shift - shift.clamp(-most, most)
}

/// Where a piece lies on the stream: where its packet was put, else on the timeline, moved by as much as its track is.
fn placed(shift: i64, piece: &leg::Piece) -> (MediaTime, MediaTime) {
    match (piece.forwarded, piece.kind) {
        (Some(at), Kind::Packet(samples)) => (at, at + SampleCount(samples.into())),
        _ => (moved(piece.start, shift), moved(piece.end, shift)),
    }
}
