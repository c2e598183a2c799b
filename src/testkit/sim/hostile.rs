//! Capture at the mercy of bytes: what a fuzzer, or a broken publisher, makes of it.

use bytes::Bytes;

use crate::call::{Codec, ParticipantKind, TrackKey};
use crate::capture::{Capture, CaptureConfig, Content, Packet, Settled, TrackSpec};
use crate::time::{ClockTime, MediaTime, RtpTime, Seq};

const TRACKS: u32 = 3;

/// How far before the clock a track may be settled: a packet's own length, and half a second that a route may be
/// shorter than at first, and a second of packets that overlap.
const MOST_AHEAD: i64 = 2 * 48_000;

/// Lets `bytes` drive a capture: each says what happens next, and what follows it says how.
///
/// # Errors
/// What capture got wrong. It may not panic either, whatever the bytes.
pub fn drive(bytes: &[u8]) -> Result<(), String> {
    let config = CaptureConfig { max_packets: 256, max_bytes: 128 * 1024, ..CaptureConfig::default() };
    let (most_packets, most_bytes) = (config.max_packets, config.max_bytes + 1500);
    let mut hostile = Hostile {
        capture: Capture::new(config).map_err(|why| why.to_string())?,
        bytes: bytes.iter(),
        now: 0,
        seq: [1 << 20; TRACKS as usize],
        rtp: [1 << 30; TRACKS as usize],
        settled: [None; TRACKS as usize],
        out: Vec::new(),
    };
    while let Some(what) = hostile.bytes.next().copied() {
        hostile.happen(what);
        let (packets, bytes) = hostile.capture.buffered();
        if packets > most_packets * TRACKS as usize || bytes > most_bytes * TRACKS as usize {
            return Err(format!("{packets} packets and {bytes} bytes wait"));
        }
        hostile.check()?;
    }
    let end = hostile.capture.finish(ClockTime(hostile.now), &mut hostile.out);
    hostile.check()?;
    for track in 0..TRACKS {
        let Some(ledger) = hostile.capture.ledger(TrackKey(track)) else { continue };
        ledger.check_identity().map_err(|why| format!("track {track}: {why}"))?;
        if hostile.settled[track as usize].is_some_and(|settled| settled != ledger.end || settled > end) {
            return Err(format!("track {track} is settled to another end than its ledger's"));
        }
    }
    Ok(())
}

struct Hostile<'a> {
    capture: Capture,
    bytes: std::slice::Iter<'a, u8>,
    now: i64,
    seq: [u64; TRACKS as usize],
    rtp: [i64; TRACKS as usize],
    settled: [Option<MediaTime>; TRACKS as usize],
    out: Vec<Settled>,
}

impl Hostile<'_> {
    fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    fn number(&mut self) -> i64 {
        i64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn happen(&mut self, what: u8) {
        let index = usize::from(what >> 6) % TRACKS as usize;
        let track = TrackKey(index as u32);
        let at = ClockTime(self.now);
        match what & 0x3f {
            0..=31 => {
                self.seq[index] = self.seq[index].wrapping_add(1);
                self.rtp[index] = self.rtp[index].wrapping_add(960);
                self.packet(index, 0);
            }
            32..=35 => {
                let jump = self.byte() as i8;
                self.seq[index] = self.seq[index].saturating_add_signed(i64::from(jump));
                self.rtp[index] = self.rtp[index].saturating_add(i64::from(jump) * 960);
                self.packet(index, 0);
            }
            36 => {
                self.rtp[index] = self.rtp[index].saturating_add(i64::from(self.byte() as i8) * 9600);
                self.packet(index, 0);
            }
            37 => {
                self.seq[index] = self.number() as u64;
                self.packet(index, 0);
            }
            38 => {
                self.rtp[index] = self.number();
                self.packet(index, 0);
            }
            39 => {
                let ssrc = self.byte();
                self.packet(index, u32::from(ssrc));
            }
            40..=49 => self.advance(20),
            50..=53 => {
                let millis = i64::from(self.byte()) * 4;
                self.advance(millis);
            }
            54 => {
                let millis = i64::from(self.byte()) * 100;
                self.advance(millis);
            }
            55 => self.capture.mute(track, true, at),
            56 => self.capture.mute(track, false, at),
            57 => self.capture.unpublish(track, at),
            58 => self.capture.media(what & 0x40 != 0, at),
            59 => {
                let back = i64::from(self.byte()) * 10_000_000;
                self.capture.recorder_down(ClockTime(self.now - back), at);
            }
            60 => {
                let long = i64::from(self.byte()) * 960;
                self.capture.withhold(at.into(), MediaTime(MediaTime::from(at).0 + long));
            }
            61 => {
                let (ntp, rtp) = (self.number() as u64, self.number());
                self.capture.sender_report(track, ntp, RtpTime(rtp), at);
            }
            _ => {
                let kind = if self.byte() & 1 == 0 { ParticipantKind::Sip } else { ParticipantKind::Standard };
                self.capture.publish(track, TrackSpec { kind, codec: Codec::Opus, muted: false }, at);
            }
        }
    }

    fn packet(&mut self, index: usize, ssrc: u32) {
        let shape = self.byte();
        let mut payload = vec![shape, 3, 0x40, 9];
        payload.resize(usize::from(self.byte()) * 5, 7);
        let codec = match shape & 0xf {
            0 => Codec::Pcmu,
            1 => Codec::Pcma,
            _ => Codec::Opus,
        };
        let packet = Packet {
            ssrc,
            codec,
            seq: Seq(self.seq[index]),
            rtp: RtpTime(self.rtp[index]),
            marker: false,
            payload: Bytes::from(payload),
            undecryptable: shape & 0x70 == 0x70,
        };
        self.capture.packet(TrackKey(index as u32), packet, ClockTime(self.now));
    }

    fn advance(&mut self, millis: i64) {
        self.now += millis * 1_000_000;
        self.capture.advance(ClockTime(self.now), &mut self.out);
    }

    fn check(&mut self) -> Result<(), String> {
        let most = MediaTime(MediaTime::from(ClockTime(self.now)).0 + MOST_AHEAD);
        for stretch in self.out.drain(..) {
            let settled = &mut self.settled[stretch.track.0 as usize];
            if settled.is_some_and(|settled| settled != stretch.start) || stretch.end <= stretch.start {
                return Err(format!("{stretch:?} does not follow {settled:?}"));
            }
            if stretch.end > most {
                return Err(format!("{stretch:?} lies in the future of {most:?}"));
            }
            let length = stretch.len().0;
            if !matches!(stretch.content, Content::Silence(_)) && length > 6000 {
                return Err(format!("{length} samples of sound in one stretch"));
            }
            *settled = Some(stretch.end);
        }
        Ok(())
    }
}
