//! How a track's packets become stretches of the timeline: holes, places, lengths, silence.

use bytes::Bytes;

use crate::time::{MediaTime, SampleCount, Seq};

use super::buffer::{Entry, Kind};
use super::judge::Verdict;
use super::ledger::Reason;
use super::settled::{Content, Settled, Silence};
use super::toc;
use super::track::{Context, Next, Track, nanos};

/// Longest run of concealment: 120 ms.
const CONCEALED: i64 = 5760;

/// How far a packet may lie ahead of its place, pushed there by packets that overlapped: one second.
const MAX_LEAD: f64 = 48_000.0;

/// Timestamps that leave a gap smaller than this (2.5 ms) leave none: it is stretched away.
const SMALLEST_GAP: i64 = 120;

/// Samples a 20 ms frame may be stretched or shrunk: one in the steady state (0.1 %), five (0.5 %, eight cents) while a
/// new map converges.
const SLEW: f64 = 1.0 / 960.0;
const SLEW_CONVERGING: f64 = 5.0 / 960.0;

/// So long after a connection came back a track may be unheard that was spoken on all the time, until the server sends it
/// anew: two seconds.
const RESUBSCRIBED: i64 = 96_000;

impl Track {
    /// Settles one packet or gives up one hole. `false` where something has to be waited for.
    pub(super) fn step(&mut self, context: &Context<'_>, force: bool, out: &mut Vec<Settled>) -> bool {
        let config = context.config;
        let Some(head) = self.buffer.front() else { return false };
        let (epoch, seq, attended, kind) = (head.epoch, head.seq, head.attended, head.kind);
        self.turn_to(epoch);
        let Some(stream) = self.streams.front() else {
            // A packet's stream is kept until a later stream's packet has its turn.
            self.buffer.pop();
            return true;
        };
        let waited = |since: i64, wait| force || context.attended >= since.saturating_add(nanos(wait));
        match self.next {
            None if !waited(stream.began, config.start_hold) => return false,
            Some(next) if seq > next.seq => {
                if !waited(attended, config.hole_patience) {
                    return false;
                }
                let missing = seq.0 - next.seq.0;
                self.missing_packets = self.missing_packets.saturating_add(missing);
                let missing = i64::try_from(missing).unwrap_or(i64::MAX);
                self.missing_samples = self.missing_samples.saturating_add(missing.saturating_mul(next.frame));
                self.give_up(next.seq, seq);
                self.next = Some(Next { seq, ..next });
                return true;
            }
            _ => {}
        }
        match kind {
            Kind::Audio if !waited(attended, config.lookback) => return false,
            Kind::Audio => match self.judge(context, force) {
                Verdict::Wait => return false,
                Verdict::Stands => self.place(context, out),
                Verdict::Broke { collapsed } => {
                    self.re_anchor(collapsed);
                    self.place(context, out);
                }
                Verdict::Stray => {
                    self.ledger.counters.packets_stray += 1;
                    self.skip(seq, true);
                }
            },
            Kind::Blank => {
                self.skip(seq, false);
                self.blank = true;
                self.after_mute = true;
            }
            Kind::Broken => self.skip(seq, true),
        }
        true
    }

    /// Whether any of `[start, end)` is withheld, of all tracks or of this one.
    fn is_withheld(&self, start: MediaTime, end: MediaTime, context: &Context<'_>) -> bool {
        context.withheld.touch(start, end) || self.withheld.touch(start, end)
    }

    /// Takes a packet out that has no place on the timeline.
    fn skip(&mut self, seq: Seq, missing: bool) {
        self.buffer.pop();
        let Some(next) = &mut self.next else { return };
        next.seq = Seq(seq.0.saturating_add(1));
        if missing {
            self.missing_packets = self.missing_packets.saturating_add(1);
            self.missing_samples = self.missing_samples.saturating_add(next.frame);
        }
    }

    /// Lays the map anew, from the packets that wait.
    fn re_anchor(&mut self, collapsed: bool) {
        let Some(stream) = self.streams.front_mut() else { return };
        let epoch = stream.epoch;
        let mut waiting = self.buffer.of(epoch).filter(|entry| entry.kind == Kind::Audio);
        let Some(first) = waiting.next() else { return };
        stream.base = first.rtp;
        let (x, offset) = (stream.x(first), stream.offset(first));
        stream.envelope.restart(x, offset);
        for entry in waiting {
            let (x, offset) = (stream.x(entry), stream.offset(entry));
            stream.envelope.observe(x, offset);
        }
        self.broken = Some(Reason::SilentSenderStopped);
        self.report_break = None;
        self.after_mute = false;
        self.ledger.counters.re_anchors += 1;
        self.ledger.counters.collapses += u64::from(collapsed);
    }

    /// Puts the first packet that waits on the timeline.
    fn place(&mut self, context: &Context<'_>, out: &mut Vec<Settled>) {
        let Some(entry) = self.buffer.pop() else { return };
        let Some(stream) = self.streams.front() else { return };
        let x = stream.start(&entry);
        // Nothing is spoken long after it arrived, whatever a map of absurd timestamps says.
        let target = stream.envelope.place(x).min(entry.arrival + MAX_LEAD / 2.0);
        let lateness = stream.envelope.lateness(stream.x(&entry), stream.offset(&entry));
        let on_map = lateness.abs() < stream.envelope.tolerance();
        let lead = self.settled.0 as f64 - target;
        let provisional = self.settled > self.ledger.end;
        let after = Next {
            seq: Seq(entry.seq.0.saturating_add(1)),
            rtp: entry.rtp.wrapping_add(entry.samples),
            frame: entry.samples,
        };
        let mut jump = true;
        if lead > MAX_LEAD && !provisional {
            self.ledger.counters.packets_overlap += 1;
            self.next = Some(after);
            return;
        }
        if let (Some(next), None) = (self.next, self.broken) {
            let gap = entry.rtp.wrapping_sub(next.rtp);
            let half = entry.samples / 2;
            if gap <= -half {
                self.ledger.counters.packets_overlap += 1;
                self.next = Some(Next { rtp: next.rtp.max(after.rtp), ..after });
                return;
            }
            if provisional && lead > half as f64 {
                self.ledger.counters.packets_late += 1;
                self.missing_samples = self.missing_samples.saturating_add(entry.samples + gap.max(0));
                self.next = Some(after);
                return;
            }
            jump = gap > SMALLEST_GAP || self.missing_packets > 0 || provisional;
        } else if self.started && self.broken.is_none() {
            self.ledger.counters.re_anchors += 1;
            self.broken = Some(Reason::SilentSenderStopped);
        }
        if jump {
            let start = MediaTime(target.round() as i64).max(self.settled);
            self.fill(start, &entry, context, out);
            self.converging |= self.next.is_none() || self.broken.is_some();
        }
        self.started = true;
        let end = self.end_of(&entry, x);
        if self.is_withheld(self.settled, end, context) {
            self.ledger.counters.packets_withheld += 1;
            self.emit(end, Content::Silence(Silence::Withheld), Reason::Withheld, out);
        } else if entry.undecryptable {
            self.ledger.counters.packets_undecryptable += 1;
            self.emit(end, Content::Silence(Silence::Undecryptable), Reason::Undecryptable, out);
        } else {
            let content = Content::Packet { codec: entry.codec, payload: entry.payload };
            self.emit(end, content, Reason::Received, out);
        }
        self.next = Some(after);
        (self.missing_packets, self.missing_samples) = (0, 0);
        self.broken = None;
        self.blank = false;
        self.after_mute &= self.muted.is_open() || !on_map;
    }

    /// Where a packet that begins at the settled end ends: where the map says, within what may be slewed.
    fn end_of(&mut self, entry: &Entry, x: f64) -> MediaTime {
        let Some(stream) = self.streams.front() else { return self.settled };
        let target = stream.envelope.place(x + entry.samples as f64);
        let rate = if self.converging { SLEW_CONVERGING } else { SLEW };
        let gained = entry.samples as f64 * rate;
        self.slew_budget = (self.slew_budget + gained).min(gained.max(1.0));
        let wanted = target.round() - (self.settled.0 + entry.samples) as f64;
        let allowed = self.slew_budget.floor();
        let slewed = wanted.clamp(-allowed, allowed);
        self.slew_budget -= slewed.abs();
        let end = MediaTime(self.settled.0 + entry.samples + slewed as i64);
        let off = (end.0 as f64 - target).abs();
        let alignment = &mut self.ledger.alignment;
        if self.converging {
            alignment.worst_offset_converging_samples = alignment.worst_offset_converging_samples.max(off);
            self.converging = !(stream.envelope.is_converged() && off < 1.5);
        } else {
            alignment.worst_offset_samples = alignment.worst_offset_samples.max(off);
        }
        end
    }

    /// Fills the timeline up to `start`, where `entry` begins: first what is missing, then what was silent.
    fn fill(&mut self, start: MediaTime, entry: &Entry, context: &Context<'_>, out: &mut Vec<Settled>) {
        let frame = self.next.map_or(960, |next| next.frame);
        let from = self.ledger.end;
        let provisional = self.settled > from;
        let mut lost_end = MediaTime(from.0.saturating_add(self.missing_samples)).min(start);
        if lost_end > from && start.0 - lost_end.0 < frame / 2 {
            lost_end = start;
        }
        if lost_end > from {
            if !provisional {
                let fec = if lost_end == start { self.fec_of(entry, start, context) } else { None };
                self.mend(lost_end, fec, frame, context, out);
            }
            self.silence(lost_end, Reason::Lost, false, context, out);
        }
        let (reason, unknown) = match (self.started, self.broken) {
            (false, _) => (Reason::NotStarted, false),
            (true, Some(reason)) => (reason, self.next.is_none()),
            (true, None) => (Reason::SilentDtx, false),
        };
        self.silence(start, reason, unknown, context, out);
    }

    /// The packet whose in-band FEC restores the time before it, if it is exactly one packet that is missing.
    fn fec_of(&self, entry: &Entry, start: MediaTime, context: &Context<'_>) -> Option<(i64, Bytes)> {
        if self.missing_packets != 1
            || entry.undecryptable
            || self.is_withheld(start, MediaTime(start.0 + entry.samples), context)
        {
            return None;
        }
        let restored = toc::in_band_fec(&entry.payload)?;
        Some((restored.0 as i64, entry.payload.clone()))
    }

    /// Recovers and conceals what it may of the stretch up to `end`.
    fn mend(
        &mut self,
        end: MediaTime,
        fec: Option<(i64, Bytes)>,
        frame: i64,
        context: &Context<'_>,
        out: &mut Vec<Settled>,
    ) {
        let length = end.0 - self.settled.0;
        if self.is_withheld(self.settled, end, context) {
            return;
        }
        // A stretch may be a sample or two off its nominal length.
        let recovered = fec.filter(|(restored, _)| *restored <= length + 2 && *restored >= 120);
        let recover_from = recovered.as_ref().map_or(end.0, |(restored, _)| {
            let before = length - restored;
            if before < 120 { self.settled.0 } else { end.0 - restored }
        });
        let conceal_end = recover_from.min(self.settled.0 + CONCEALED);
        let mut into_run = 0;
        while self.settled.0 < conceal_end {
            let left = conceal_end - self.settled.0;
            let piece = if left < frame + frame / 2 { left.min(CONCEALED) } else { frame.max(120) };
            let content = Content::Concealed { into_run: SampleCount(into_run as u64) };
            self.emit(MediaTime(self.settled.0 + piece), content, Reason::Concealed, out);
            into_run += piece;
        }
        let Some((_, next)) = recovered else { return };
        if self.settled.0 < recover_from {
            self.silence(MediaTime(recover_from), Reason::Lost, false, context, out);
        }
        self.emit(end, Content::Recovered { next }, Reason::Recovered, out);
    }

    /// Settles silence up to `end`, and books it together with what was provisional.
    pub(super) fn silence(
        &mut self,
        end: MediaTime,
        reason: Reason,
        unknown: bool,
        context: &Context<'_>,
        out: &mut Vec<Settled>,
    ) {
        self.emit_silence(end, reason, unknown, context, out);
        let mut rows = Vec::new();
        self.attribute(self.ledger.end, end, reason, unknown, context, |end, reason| rows.push((end, reason)));
        for (end, reason) in rows {
            self.ledger.extend(end, reason);
        }
    }

    /// Settles silence up to `end` without booking it: the reason is a guess.
    pub(super) fn emit_silence(
        &mut self,
        end: MediaTime,
        reason: Reason,
        unknown: bool,
        context: &Context<'_>,
        out: &mut Vec<Settled>,
    ) {
        let mut start = self.settled;
        self.attribute(start, end, reason, unknown, context, |end, reason| {
            out.push(Settled { track: self.key, start, end, content: Content::Silence(silence(reason)) });
            start = end;
        });
        self.settled = self.settled.max(end);
    }

    /// Settles and books the stretch from the settled end to `end`.
    fn emit(&mut self, end: MediaTime, content: Content, reason: Reason, out: &mut Vec<Settled>) {
        if end <= self.settled {
            return;
        }
        out.push(Settled { track: self.key, start: self.settled, end, content });
        self.settled = end;
        self.ledger.extend(end, reason);
    }

    /// Cuts a silent stretch where its reason changes. `unknown`: nothing proves that the sender was silent.
    pub(super) fn attribute(
        &self,
        start: MediaTime,
        end: MediaTime,
        reason: Reason,
        unknown: bool,
        context: &Context<'_>,
        mut each: impl FnMut(MediaTime, Reason),
    ) {
        let (mut at, mut deaf_until) = (start, start);
        while at < end {
            let (withheld, until_withheld) = context.withheld.at(at);
            let (withheld_here, until_here) = self.withheld.at(at);
            let (recorder_down, until_recorder) = context.recorder_down.at(at);
            let (media_down, until_media) = context.media_down.at(at);
            let (muted, until_muted) = self.muted.at(at);
            let spoken = matches!(reason, Reason::SilentDtx | Reason::SilentSenderStopped);
            // A new stream after it, or a telephone, which sends all the time.
            if media_down && reason == Reason::SilentSenderStopped {
                deaf_until = MediaTime(until_media.0.saturating_add(RESUBSCRIBED));
            }
            let here = if withheld || withheld_here {
                Reason::Withheld
            } else if recorder_down && (reason == Reason::Lost || unknown) {
                Reason::RecorderDown
            } else if spoken && muted {
                Reason::SilentMuted
            } else if spoken && unknown && (media_down || at < deaf_until) {
                Reason::Lost
            } else {
                reason
            };
            let until = until_withheld.min(until_here).min(until_recorder).min(until_media).min(until_muted).min(end);
            let until = if at < deaf_until { until.min(deaf_until) } else { until };
            each(until, here);
            at = until;
        }
    }
}

/// The reason as the output is told.
fn silence(reason: Reason) -> Silence {
    match reason {
        Reason::NotStarted => Silence::NotStarted,
        Reason::SilentDtx => Silence::Dtx,
        Reason::SilentMuted => Silence::Muted,
        Reason::SilentSenderStopped => Silence::SenderStopped,
        Reason::RecorderDown => Silence::RecorderDown,
        Reason::Withheld => Silence::Withheld,
        Reason::Undecryptable => Silence::Undecryptable,
        Reason::Received | Reason::Recovered | Reason::Concealed | Reason::Lost => Silence::Lost,
    }
}
