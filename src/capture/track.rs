//! One track: takes packets in, and settles its timeline from its start to its end.

use std::collections::VecDeque;
use std::time::Duration;

use crate::call::{Codec, ParticipantKind, TrackKey};
use crate::time::{ClockTime, MediaTime, Ppm, RtpTime, SAMPLE_RATE, SampleCount, Seq};

use super::buffer::{Buffer, Entry, Kind};
use super::envelope::Envelope;
use super::ledger::{Reason, TrackLedger};
use super::settled::Settled;
use super::spans::Spans;
use super::{CaptureConfig, Packet, TrackSpec, toc};

/// A sequence number this far below the expected one belongs to a sender that began anew under its old SSRC
/// (RFC 3550 §A.1 calls the same thing a very large jump), if [`RESTART_PACKETS`] in a row say so.
const RESTART_DISTANCE: u64 = 3000;
const RESTART_PACKETS: u32 = 3;

/// Streams that may wait behind each other; a publisher that changes its SSRC faster is settled without waiting.
const MAX_STREAMS: usize = 8;

/// Ranges of given-up sequence numbers remembered, to tell late packets from duplicates.
const MAX_GIVEN_UP: usize = 64;

/// A hole filled sooner than this after a later packet was reordered on the way; later, it was retransmitted.
const REORDERED: i64 = 5_000_000;

/// Sender reports that disagree by more than this many samples (40 ms) broke with the packets.
const REPORT_BREAK: f64 = 1920.0;

/// How long a break of the sender reports is held against the packets: reports lag behind by up to eight seconds.
const REPORT_MEMORY: i64 = 12_000_000_000;

/// What a track is told when it settles.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub config: &'a CaptureConfig,
    /// The recorder's clock, running: what is silent may be settled up to a little before it.
    pub limit: MediaTime,
    /// The recorder's clock in nanoseconds without the time in which nobody looked at it: waits are measured on it, so
    /// that a starved recorder does not give up packets which wait in its own socket.
    pub attended: i64,
    /// Nothing is waited for any more.
    pub force: bool,
    /// The recording was paused.
    pub withheld: &'a Spans,
    /// The recorder was not there.
    pub recorder_down: &'a Spans,
    /// The connection was down.
    pub media_down: &'a Spans,
}

/// One stream (SSRC) of the track: a clock of its own.
#[derive(Debug)]
pub(super) struct Stream {
    pub epoch: u32,
    ssrc: u32,
    codec: Codec,
    /// RTP time (48 kHz) that the map counts from.
    pub base: i64,
    pub envelope: Envelope,
    /// When its first packet came.
    pub began: i64,
}

impl Stream {
    /// Media time of a packet for the map: that of its last 20 ms, so that frame sizes may change.
    pub fn x(&self, entry: &Entry) -> f64 {
        self.start(entry) + (entry.samples - 960) as f64
    }

    /// Media time of a packet's first sample.
    pub fn start(&self, entry: &Entry) -> f64 {
        entry.rtp.wrapping_sub(self.base) as f64
    }

    /// Arrival against media time.
    pub fn offset(&self, entry: &Entry) -> f64 {
        entry.arrival - self.x(entry)
    }
}

/// What follows the last packet settled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Next {
    pub seq: Seq,
    /// RTP time (48 kHz) one past the last packet.
    pub rtp: i64,
    /// How long that packet was.
    pub frame: i64,
}

/// A track from its publication to its end.
#[derive(Debug)]
pub(super) struct Track {
    pub key: TrackKey,
    pub kind: ParticipantKind,
    pub ledger: TrackLedger,
    /// Up to here the track is settled; what lies between the ledger's end and here is provisional.
    pub settled: MediaTime,
    pub buffer: Buffer,
    pub streams: VecDeque<Stream>,
    pub next: Option<Next>,
    pub muted: Spans,
    /// Of this track alone.
    pub withheld: Spans,
    /// Muted, or the server put blank packets in, since the last packet: the server may have set the clock.
    pub after_mute: bool,
    /// The last thing that came was a blank packet.
    pub blank: bool,
    /// The map broke: what the next packet's distance to the one before it stands for.
    pub broken: Option<Reason>,
    pub missing_packets: u64,
    pub missing_samples: i64,
    pub slew_budget: f64,
    pub converging: bool,
    report: Option<f64>,
    /// By how much the sender reports broke with the packets, and when.
    pub report_break: Option<(f64, i64)>,
    given_up: VecDeque<(Seq, Seq)>,
    restart: (Seq, u32),
    epochs: u32,
    skew: Ppm,
    /// A packet has been placed.
    pub started: bool,
    last_heard: i64,
    ended: Option<(MediaTime, i64)>,
    closed: bool,
}

impl Track {
    pub fn new(key: TrackKey, spec: &TrackSpec, start: MediaTime, attended: i64) -> Self {
        let mut muted = Spans::default();
        muted.set(spec.muted, start);
        Self {
            key,
            kind: spec.kind,
            ledger: TrackLedger::new(start),
            settled: start,
            buffer: Buffer::default(),
            streams: VecDeque::new(),
            next: None,
            muted,
            withheld: Spans::default(),
            after_mute: false,
            blank: false,
            broken: None,
            missing_packets: 0,
            missing_samples: 0,
            slew_budget: 0.0,
            converging: true,
            report: None,
            report_break: None,
            given_up: VecDeque::new(),
            restart: (Seq(0), 0),
            epochs: 0,
            skew: Ppm(0.0),
            started: false,
            last_heard: attended,
            ended: None,
            closed: false,
        }
    }

    /// Takes a packet in. `attended` is its arrival on [`Context::attended`]'s clock.
    pub fn packet(&mut self, packet: Packet, arrival: ClockTime, attended: i64, config: &CaptureConfig) {
        let kind = match toc::duration(packet.codec, &packet.payload) {
            _ if toc::is_blank(packet.codec, packet.marker, &packet.payload) => Kind::Blank,
            Some(_) => Kind::Audio,
            None => Kind::Broken,
        };
        let counters = &mut self.ledger.counters;
        match kind {
            Kind::Blank => counters.packets_blank += 1,
            Kind::Broken => counters.packets_malformed += 1,
            Kind::Audio => {}
        }
        if self.closed {
            counters.packets_late += u64::from(kind == Kind::Audio);
            return;
        }
        if self.buffer.len() >= config.max_packets || self.buffer.bytes() >= config.max_bytes {
            counters.overflows += 1;
            return;
        }
        self.last_heard = self.last_heard.max(attended);
        let samples = toc::duration(packet.codec, &packet.payload).map_or(0, |samples| samples.0 as i64);
        let entry = Entry {
            epoch: 0,
            seq: packet.seq,
            kind,
            codec: packet.codec,
            rtp: in_samples(packet.rtp, packet.codec),
            samples,
            payload: packet.payload,
            undecryptable: packet.undecryptable,
            arrival: arrival.0 as f64 * (f64::from(SAMPLE_RATE) / 1e9),
            attended,
        };
        self.sort_in(entry, packet.ssrc);
    }

    /// Finds the stream of a packet, tells the map of it, and buffers it.
    fn sort_in(&mut self, mut entry: Entry, ssrc: u32) {
        let known = self.streams.iter().rposition(|stream| stream.ssrc == ssrc && stream.codec == entry.codec);
        let index = match known {
            Some(0) if self.begins_anew(&entry) => self.open(&entry, ssrc),
            Some(index) => index,
            None => self.open(&entry, ssrc),
        };
        let stream = &mut self.streams[index];
        entry.epoch = stream.epoch;
        if index == 0 && self.next.is_some_and(|next| entry.seq < next.seq) {
            let late = self.given_up.iter().any(|(from, to)| (*from..*to).contains(&entry.seq));
            let counters = &mut self.ledger.counters;
            match entry.kind {
                Kind::Audio if late => counters.packets_late += 1,
                Kind::Audio => counters.packets_duplicate += 1,
                Kind::Blank | Kind::Broken => {}
            }
            return;
        }
        let filled_after = self.buffer.after(entry.epoch, entry.seq).map(|after| entry.attended - after.attended);
        let observation =
            (entry.kind == Kind::Audio).then(|| (stream.x(&entry), stream.offset(&entry), entry.payload.len()));
        if self.buffer.insert(entry).is_err() {
            self.ledger.counters.packets_duplicate += u64::from(observation.is_some());
            return;
        }
        let Some((x, offset, bytes)) = observation else { return };
        stream.envelope.observe(x, offset);
        let counters = &mut self.ledger.counters;
        counters.packets_received += 1;
        counters.bytes_received += bytes as u64;
        counters.packets_retransmitted += u64::from(filled_after.is_some_and(|after| after >= REORDERED));
    }

    /// Whether the sender counts anew under its old SSRC.
    fn begins_anew(&mut self, entry: &Entry) -> bool {
        if self.next.is_none_or(|next| entry.seq.0.saturating_add(RESTART_DISTANCE) >= next.seq.0) {
            return false;
        }
        let (expected, count) = self.restart;
        let count = if expected == entry.seq { count + 1 } else { 1 };
        self.restart = (Seq(entry.seq.0.saturating_add(1)), count);
        count >= RESTART_PACKETS
    }

    fn open(&mut self, entry: &Entry, ssrc: u32) -> usize {
        if let Some(last) = self.streams.back()
            && last.envelope.is_converged()
        {
            self.skew = last.envelope.skew();
        }
        self.restart = (Seq(0), 0);
        let x = (entry.samples - 960) as f64;
        self.streams.push_back(Stream {
            epoch: self.epochs,
            ssrc,
            codec: entry.codec,
            base: entry.rtp,
            envelope: Envelope::new(x, entry.arrival - x, self.skew, self.kind == ParticipantKind::Sip),
            began: entry.attended,
        });
        self.epochs += 1;
        self.streams.len() - 1
    }

    pub fn sender_report(&mut self, ntp: u64, rtp: RtpTime, attended: i64) {
        let Some(stream) = self.streams.back() else { return };
        let sent = (ntp >> 32) as f64 * f64::from(SAMPLE_RATE)
            + (ntp & 0xffff_ffff) as f64 / 4_294_967_296.0 * f64::from(SAMPLE_RATE);
        let relation = sent - in_samples(rtp, stream.codec).wrapping_sub(stream.base) as f64;
        if let Some(before) = self.report.replace(relation)
            && (relation - before).abs() >= REPORT_BREAK
        {
            self.report_break = Some((relation - before, attended));
        }
    }

    pub fn mute(&mut self, muted: bool, at: MediaTime) {
        self.muted.set(muted, at);
        self.after_mute |= muted;
    }

    pub fn withhold(&mut self, from: MediaTime, to: MediaTime) {
        self.withheld.add(from, to);
    }

    pub fn unpublish(&mut self, at: MediaTime, attended: i64) {
        self.ended.get_or_insert((at, attended));
    }

    /// Settles as much as can be settled now.
    pub fn settle(&mut self, context: &Context<'_>, out: &mut Vec<Settled>) {
        if self.closed {
            return;
        }
        let config = context.config;
        let crowded = |buffer: &Buffer| buffer.len() > config.max_packets / 2 || buffer.bytes() > config.max_bytes / 2;
        let lingered = self.ended.is_some_and(|(_, at)| context.attended >= at + nanos(config.linger));
        if self.report_break.is_some_and(|(_, at)| context.attended - at > REPORT_MEMORY) {
            self.report_break = None;
        }
        loop {
            let force = context.force || lingered || crowded(&self.buffer) || self.streams.len() > MAX_STREAMS;
            if !self.step(context, force, out) {
                break;
            }
        }
        if lingered {
            self.close(MediaTime(i64::MIN), context, out);
        } else if self.buffer.is_empty() {
            self.rest(context, out);
        }
        self.muted.forget(self.ledger.end);
        self.withheld.forget(self.ledger.end);
    }

    /// Ends the track: at its unpublication, at `end`, or with its last packet, whichever is latest.
    pub fn close(&mut self, end: MediaTime, context: &Context<'_>, out: &mut Vec<Settled>) {
        if self.closed {
            return;
        }
        let end = self.ended.map_or(end, |(at, _)| at).max(self.settled);
        let reason = self.guess();
        self.silence(end, reason, true, context, out);
        self.closed = true;
        self.ledger = self.ledger(context);
        self.buffer = Buffer::default();
        self.streams.clear();
    }

    /// Settles silence behind the clock where nobody is waited for.
    fn rest(&mut self, context: &Context<'_>, out: &mut Vec<Settled>) {
        let config = context.config;
        let lag = if self.started { config.quiet_lag } else { config.start_lag }.max(config.lookback);
        let waited = !self.started
            || (self.blank && self.muted.is_open())
            || context.attended - self.last_heard >= nanos(config.patience);
        if !waited {
            return;
        }
        let mut to = context.limit - samples(lag);
        if let Some((end, _)) = self.ended {
            to = to.min(end);
        }
        if to <= self.settled {
            return;
        }
        if !self.started {
            self.silence(to, Reason::NotStarted, false, context, out);
        } else {
            let reason = self.guess();
            self.emit_silence(to, reason, true, context, out);
        }
    }

    /// What silence at the end most likely is, while no packet has told.
    fn guess(&self) -> Reason {
        match (self.started, self.kind) {
            (false, _) => Reason::NotStarted,
            (true, ParticipantKind::Sip) => Reason::SilentSenderStopped,
            (true, _) => Reason::SilentDtx,
        }
    }

    /// Notes that sequence numbers were given up.
    pub fn give_up(&mut self, from: Seq, to: Seq) {
        if self.given_up.len() == MAX_GIVEN_UP {
            self.given_up.pop_front();
        }
        self.given_up.push_back((from, to));
    }

    /// Turns to the stream that the next packet belongs to.
    pub fn turn_to(&mut self, epoch: u32) {
        while self.streams.front().is_some_and(|stream| stream.epoch < epoch) {
            self.streams.pop_front();
            self.next = None;
            self.given_up.clear();
            self.report = None;
            self.report_break = None;
            (self.missing_packets, self.missing_samples) = (0, 0);
        }
    }

    /// Packets that are missing and may still come.
    pub fn outstanding(&self) -> u64 {
        match (self.streams.front(), self.next) {
            (Some(stream), Some(next)) if !self.closed => self.buffer.holes(stream.epoch, next.seq),
            _ => 0,
        }
    }

    /// Whether the track has ended and all of it is settled.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Payload bytes and packets that wait.
    pub fn buffered(&self) -> (usize, usize) {
        (self.buffer.len(), self.buffer.bytes())
    }

    /// The ledger as it would be if nothing came any more.
    pub fn ledger(&self, context: &Context<'_>) -> TrackLedger {
        let mut ledger = self.ledger.clone();
        self.attribute(self.ledger.end, self.settled, self.guess(), true, context, |end, reason| {
            ledger.extend(end, reason);
        });
        if let Some(stream) = self.streams.back() {
            ledger.counters.route_changes += stream.envelope.route_changes();
            ledger.alignment.skew_ppm = stream.envelope.skew().0;
        }
        ledger
    }
}

/// RTP time in samples at 48 kHz.
fn in_samples(rtp: RtpTime, codec: Codec) -> i64 {
    rtp.0.wrapping_mul(i64::from(SAMPLE_RATE / codec.clock_rate()))
}

/// A wait in nanoseconds.
pub(super) fn nanos(wait: Duration) -> i64 {
    i64::try_from(wait.as_nanos()).unwrap_or(i64::MAX)
}

/// A wait in samples.
pub(super) fn samples(wait: Duration) -> SampleCount {
    SampleCount(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX) / 1_000_000 * u64::from(SAMPLE_RATE / 1000))
}
