//! A publisher: its clock, its packets, its habits.

use bytes::Bytes;
use fastrand::Rng;

use crate::call::{Codec, ParticipantKind};
use crate::capture::Packet;
use crate::time::{RtpTime, Seq};

use super::payload::{Maker, Payload, Wanted};

/// How a publisher behaves. Times are in seconds of the call.
#[derive(Clone, Debug)]
pub struct Sender {
    /// What kind of participant it is.
    pub kind: ParticipantKind,
    /// When the track is published; it speaks from then on.
    pub from: f64,
    /// When it is unpublished.
    pub to: f64,
    /// How much faster than true its crystal runs, in parts per million.
    pub ppm: f64,
    /// The crystal wanders by so many ppm, over so many seconds.
    pub wander: (f64, f64),
    /// Packet durations in milliseconds; it changes among them now and then.
    pub frames_ms: Vec<f64>,
    /// Whether pauses in speech send a packet every 400 ms only.
    pub dtx: bool,
    /// Mean of talk spurts and pauses, in seconds; no pauses where it does not pause.
    pub pauses: Option<(f64, f64)>,
    /// When it mutes, and for how long. The server puts blank packets in for a second.
    pub mutes: Vec<(f64, f64)>,
    /// By how many milliseconds at most the server sets timestamps off after a mute.
    pub mute_offset_ms: f64,
    /// When its clock stands still, and for how long: it sends nothing, and goes on as if no time had passed.
    pub holds: Vec<(f64, f64)>,
    /// When it begins anew with another SSRC.
    pub restarts: Vec<f64>,
    /// Whether packets carry in-band FEC.
    pub fec: bool,
    /// What its packets hold.
    pub payload: Payload,
}

impl Default for Sender {
    fn default() -> Self {
        Self {
            kind: ParticipantKind::Standard,
            from: 0.2,
            to: f64::INFINITY,
            ppm: 0.0,
            wander: (0.0, 1.0),
            frames_ms: vec![20.0],
            dtx: false,
            pauses: None,
            mutes: Vec::new(),
            mute_offset_ms: 0.0,
            holds: Vec::new(),
            restarts: Vec::new(),
            fec: false,
            payload: Payload::Sizes,
        }
    }
}

/// A packet as it leaves.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub packet: Packet,
    /// When its first sample was spoken and when it left, in true nanoseconds. Blank packets were never spoken.
    pub spoken: Option<f64>,
    pub left: f64,
}

/// A sender report.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub left: f64,
    pub ntp: u64,
    pub rtp: RtpTime,
}

/// A publisher at work.
#[derive(Debug)]
pub(super) struct Source {
    sender: Sender,
    random: Rng,
    ssrc: u32,
    seq: u64,
    /// Timestamp of the next packet.
    rtp: i64,
    /// True time of its first sample.
    now: f64,
    frame: usize,
    /// When this talk spurt or pause ends.
    spurt_ends: f64,
    talks: bool,
    maker: Maker,
    /// Samples of its own clock since it was published.
    position: u64,
    last_report: f64,
}

impl Source {
    pub fn new(sender: Sender, mut random: Rng) -> Self {
        let now = sender.from * 1e9 + random.f64() * 20e6;
        let spurt_ends = now;
        let mut source = Self {
            ssrc: random.u32(..),
            seq: 0,
            rtp: 0,
            now,
            frame: 0,
            spurt_ends,
            talks: false,
            maker: Maker::new(&sender.payload),
            position: 0,
            last_report: now,
            sender,
            random,
        };
        source.rebase();
        source
    }

    /// New random bases, often just before their wrap.
    fn rebase(&mut self) {
        self.seq = if self.random.bool() { 65_500 } else { u64::from(self.random.u16(..)) };
        self.rtp = if self.random.bool() { (1 << 32) - 48_000 } else { i64::from(self.random.u32(..)) };
    }

    /// When the next packet leaves, in true nanoseconds.
    pub fn next_at(&self) -> f64 {
        if self.now >= self.sender.to * 1e9 { f64::INFINITY } else { self.now + self.frame_ns() }
    }

    /// The next packets, none while it is silent.
    pub fn step(&mut self) -> Vec<Sent> {
        self.change_habits();
        if let Some((_, long)) = self.event(&self.sender.holds) {
            self.now += long * 1e9;
            self.position += (long * 48_000.0) as u64;
        }
        if let Some((_, long)) = self.event(&self.sender.mutes) {
            return self.mute(long);
        }
        let samples = (self.sender.frames_ms[self.frame] * 48.0) as i64;
        let comfort = self.sender.dtx && !self.talks && !self.maker.has_dtx();
        let spoken = self.now;
        let frame = self.frame_ns();
        let packet = self.payload().map(|payload| self.packet(payload, false));
        let sent = packet.map(|packet| Sent { packet, spoken: Some(spoken), left: spoken + frame });
        let steps = if comfort { (400.0 / self.sender.frames_ms[self.frame]).max(1.0) as i64 } else { 1 };
        self.rtp += samples * steps;
        self.position += (samples * steps) as u64;
        self.now += frame * steps as f64;
        sent.into_iter().collect()
    }

    /// A sender report about every three seconds. After a hold it goes on telling the old relation for eight seconds.
    pub fn report(&mut self) -> Option<Report> {
        if self.now - self.last_report < 3e9 {
            return None;
        }
        self.last_report = self.now;
        let seconds = self.now / 1e9;
        let fresh = |hold: &&(f64, f64)| (hold.0 + hold.1..hold.0 + hold.1 + 8.0).contains(&seconds);
        let stale: f64 = self.sender.holds.iter().filter(fresh).map(|(_, long)| long * 48_000.0).sum();
        let ntp = ((3_900_000_000.0 + self.now / 1e9) * 4_294_967_296.0) as u64;
        Some(Report { left: self.now, ntp, rtp: RtpTime(self.rtp + stale as i64) })
    }

    /// The event whose time lies within the next frame.
    fn event(&self, events: &[(f64, f64)]) -> Option<(f64, f64)> {
        let seconds = self.now / 1e9;
        let frame = self.frame_ns() / 1e9;
        events.iter().copied().find(|(at, _)| *at <= seconds && seconds < at + frame)
    }

    fn mute(&mut self, long: f64) -> Vec<Sent> {
        let began = self.now;
        let samples = (self.sender.frames_ms[self.frame] * 48.0) as i64;
        let rtp = self.rtp;
        let mut blanks = Vec::new();
        for i in 0..50 {
            if f64::from(i) * 0.02 >= long {
                break;
            }
            self.rtp = rtp - samples + i64::from(i) * 961;
            let left = began + f64::from(i) * 20e6;
            let mut payload = vec![0; 80];
            payload[..3].copy_from_slice(&[0xf8, 0xff, 0xfe]);
            blanks.push(Sent { packet: self.packet(payload, true), spoken: None, left });
        }
        let offset = (2.0 * self.random.f64() - 1.0) * self.sender.mute_offset_ms * 48.0;
        self.rtp = rtp + (long * 48_000.0 * self.rate()) as i64 + offset as i64;
        self.now += long * 1e9;
        self.position += (long * 48_000.0 * self.rate()) as u64;
        blanks
    }

    fn change_habits(&mut self) {
        if self.now >= self.spurt_ends {
            self.talks = !self.talks;
            let mean = match self.sender.pauses {
                Some((talk, _)) if self.talks => talk,
                Some((_, pause)) => pause,
                None => {
                    self.talks = true;
                    60.0
                }
            };
            self.spurt_ends = self.now - mean * 1e9 * (1.0 - self.random.f64()).ln();
        }
        if self.sender.frames_ms.len() > 1 && self.random.f64() < 0.005 {
            self.frame = self.random.usize(..self.sender.frames_ms.len());
        }
        let restarts = self.sender.restarts.iter().filter(|at| **at * 1e9 <= self.now).count();
        if restarts > 0 {
            self.sender.restarts.drain(..restarts);
            self.ssrc = self.random.u32(..);
            self.maker.restart();
            self.rebase();
        }
    }

    fn packet(&mut self, payload: Vec<u8>, blank: bool) -> Packet {
        let seq = Seq((1 << 32) + self.seq);
        self.seq += 1;
        Packet {
            ssrc: self.ssrc,
            codec: Codec::Opus,
            seq,
            rtp: RtpTime((1 << 40) + self.rtp),
            marker: blank,
            payload: Bytes::from(payload),
            undecryptable: false,
        }
    }

    /// What the next packet holds, if there is to be one. The same random numbers are drawn whatever packets hold.
    fn payload(&mut self) -> Option<Vec<u8>> {
        let bytes = if self.talks { self.random.usize(85..150) } else { self.random.usize(60..70) };
        self.maker.make(&Wanted {
            duration_ms: self.sender.frames_ms[self.frame],
            fec: self.sender.fec,
            dtx: self.sender.dtx,
            talks: self.talks,
            position: self.position,
            bytes,
        })
    }

    fn rate(&self) -> f64 {
        let (ppm, period) = self.sender.wander;
        let wander = ppm * (self.now / 1e9 / period * std::f64::consts::TAU).sin();
        1.0 + (self.sender.ppm + wander) * 1e-6
    }

    fn frame_ns(&self) -> f64 {
        self.sender.frames_ms[self.frame] * 1e6 / self.rate()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_crystal_sends_more_in_the_same_time() {
        let mut source = Source::new(Sender { ppm: 500.0, ..Sender::default() }, Rng::with_seed(1));
        let first = source.step()[0].spoken.unwrap();
        for _ in 0..49_999 {
            source.step();
        }
        let elapsed = source.step()[0].spoken.unwrap() - first;
        assert!((elapsed - 1e12 / 1.0005).abs() < 1e6, "{elapsed}");
    }
}
