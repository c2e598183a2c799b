//! Feeds a recorded packet trace to the capture core.
//!
//! A trace is a CSV file with the columns `arrival_us,track,seq,rtp_ts,marker,payload_bytes`: packets without sound.
//! Payloads are made up: Opus packets of the traced size and of the duration that the timestamps tell.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde::Serialize;

use crate::call::{Codec, ParticipantKind, TrackKey};
use crate::capture::{Capture, CaptureConfig, Content, Packet, Settled, TrackLedger, TrackSpec, toc};
use crate::time::{ClockTime, RtpTime, Seq};

/// How often capture is called between packets.
const TICK_US: i64 = 20_000;

/// One row of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TracedPacket {
    /// When it arrived, in microseconds since the trace's origin: the recording's sample 0.
    pub arrival_us: i64,
    /// The track.
    pub track: u32,
    /// RTP sequence number, as on the wire.
    pub seq: u16,
    /// RTP timestamp (48 kHz), as on the wire.
    pub rtp_ts: u32,
    /// The marker bit.
    pub marker: bool,
    /// Size of the payload.
    pub payload_bytes: usize,
}

/// Where one packet of a trace ended up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// The track.
    pub track: u32,
    /// RTP sequence number, as on the wire.
    pub seq: u16,
    /// `received`, or why it has no place: `blank` (put in by the server), `duplicate`, `late` or `dropped` (its time was
    /// covered, or its timestamp was nonsense).
    pub settled: &'static str,
    /// Its first sample on the recording's timeline.
    pub recording_sample: Option<i64>,
}

/// What became of a trace.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// One entry a row of the trace, in the same order.
    pub packets: Vec<Placed>,
    /// One ledger a track.
    pub ledgers: BTreeMap<u32, TrackLedger>,
}

/// A line of a trace that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not `arrival_us,track,seq,rtp_ts,marker,payload_bytes`: {text}")]
pub struct TraceError {
    /// Counted from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
}

/// Reads a trace. A heading and empty lines are skipped.
pub fn read(text: &str) -> Result<Vec<TracedPacket>, TraceError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .filter(|(index, line)| *index > 0 || !line.starts_with("arrival_us"))
        .map(|(index, line)| row(line).ok_or_else(|| TraceError { line: index + 1, text: line.to_owned() }))
        .collect()
}

fn row(line: &str) -> Option<TracedPacket> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [arrival_us, track, seq, rtp_ts, marker, payload_bytes] = fields[..] else { return None };
    Some(TracedPacket {
        arrival_us: arrival_us.parse().ok()?,
        track: track.parse().ok()?,
        seq: seq.parse().ok()?,
        rtp_ts: rtp_ts.parse().ok()?,
        marker: matches!(marker, "1" | "true" | "True"),
        payload_bytes: payload_bytes.parse().ok()?,
    })
}

/// Replays `trace`, all of whose tracks belong to participants of `kind`, published at sample 0.
///
/// A track that ends with blank packets of the server was left when they began.
pub fn replay(trace: &[TracedPacket], kind: ParticipantKind, config: CaptureConfig) -> Replayed {
    let mut trace: Vec<(usize, TracedPacket)> = trace.iter().copied().enumerate().collect();
    trace.sort_by_key(|(_, packet)| packet.arrival_us);
    let rows: Vec<TracedPacket> = trace.iter().map(|(_, packet)| *packet).collect();
    let mut capture = Capture::new(config).expect("the caller's configuration is valid");
    let mut tracks: BTreeMap<u32, Sender> = BTreeMap::new();
    for packet in &rows {
        tracks.entry(packet.track).or_insert_with(|| {
            let spec = TrackSpec { kind, codec: Codec::Opus, muted: false };
            capture.publish(TrackKey(packet.track), spec, ClockTime::ZERO);
            Sender::new(packet.track, &rows)
        });
    }
    let mut out = Vec::new();
    let mut packets = vec![None; rows.len()];
    let mut fed = HashMap::new();
    let mut now = 0;
    for (index, packet) in &trace {
        while now + TICK_US < packet.arrival_us {
            now += TICK_US;
            capture.advance(ClockTime::from_micros(now), &mut out);
        }
        now = now.max(packet.arrival_us);
        let at = ClockTime::from_micros(packet.arrival_us);
        let key = TrackKey(packet.track);
        let Some(sender) = tracks.get_mut(&packet.track) else { continue };
        if sender.left_us == Some(packet.arrival_us) {
            capture.unpublish(key, at);
        }
        let rtp = sender.packet(packet);
        let blank = toc::is_blank(rtp.codec, rtp.marker, &rtp.payload);
        fed.insert(rtp.payload.as_ptr(), (*index, rtp.payload.clone()));
        let counted = |capture: &Capture| {
            capture.ledger(key).map_or((0, 0), |l| (l.counters.packets_late, l.counters.packets_duplicate))
        };
        let before = counted(&capture);
        capture.packet(key, rtp, at);
        let after = counted(&capture);
        let settled = match (blank, after.0 > before.0, after.1 > before.1) {
            (true, _, _) => "blank",
            (_, true, _) => "late",
            (_, _, true) => "duplicate",
            _ => "dropped",
        };
        packets[*index] = Some(Placed { track: packet.track, seq: packet.seq, settled, recording_sample: None });
        capture.advance(at, &mut out);
    }
    capture.finish(ClockTime::from_micros(now), &mut out);
    let mut packets: Vec<Placed> = packets.into_iter().flatten().collect();
    for Settled { start, content, .. } in out {
        if let Content::Packet { payload, .. } = content
            && let Some((index, _)) = fed.get(&payload.as_ptr())
        {
            packets[*index].settled = "received";
            packets[*index].recording_sample = Some(start.0);
        }
    }
    let ledgers = tracks.keys().filter_map(|track| Some((*track, capture.ledger(TrackKey(*track))?))).collect();
    Replayed { packets, ledgers }
}

/// One track of a trace: unwraps its counters and makes its payloads up.
struct Sender {
    seq: u64,
    rtp: i64,
    head: [u8; 2],
    left_us: Option<i64>,
}

impl Sender {
    fn new(track: u32, rows: &[TracedPacket]) -> Self {
        let mine = || rows.iter().filter(|packet| packet.track == track);
        let first = mine().next();
        let steps = mine().zip(mine().skip(1)).filter(|(a, b)| b.seq == a.seq.wrapping_add(1) && !b.marker);
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for (a, b) in steps {
            *counts.entry(b.rtp_ts.wrapping_sub(a.rtp_ts)).or_default() += 1;
        }
        let usual = counts.into_iter().filter(|(step, _)| head(*step).is_some()).max_by_key(|(_, count)| *count);
        let blank = |packet: &&TracedPacket| packet.marker && packet.payload_bytes == 80;
        let trailing = mine().rev().take_while(blank).last();
        Self {
            seq: 1 << 32 | u64::from(first.map_or(0, |packet| packet.seq)),
            rtp: 1 << 40 | i64::from(first.map_or(0, |packet| packet.rtp_ts)),
            head: usual.and_then(|(step, _)| head(step)).unwrap_or([0x48, 0]),
            left_us: trailing.map(|packet| packet.arrival_us),
        }
    }

    fn packet(&mut self, packet: &TracedPacket) -> Packet {
        let ahead = packet.seq.wrapping_sub(self.seq as u16) as i16;
        self.seq = self.seq.wrapping_add_signed(i64::from(ahead));
        self.rtp += i64::from(packet.rtp_ts.wrapping_sub(self.rtp as u32) as i32);
        let mut payload = vec![0; packet.payload_bytes.max(2)];
        let blank = packet.marker && packet.payload_bytes == 80;
        let head: &[u8] = if blank { &[0xf8, 0xff, 0xfe] } else { &self.head };
        payload[..head.len()].copy_from_slice(head);
        Packet {
            ssrc: packet.track,
            codec: Codec::Opus,
            seq: Seq(self.seq),
            rtp: RtpTime(self.rtp),
            marker: packet.marker,
            payload: Bytes::from(payload),
            undecryptable: false,
        }
    }
}

/// The first bytes of an Opus packet of `samples` without in-band FEC (RFC 6716 §3.1), if there are such packets.
fn head(samples: u32) -> Option<[u8; 2]> {
    match samples {
        120 => Some([0xe0, 0]),
        240 => Some([0xe8, 0]),
        480 => Some([0x40, 0]),
        960 => Some([0x48, 0]),
        1920 => Some([0x50, 0]),
        2880 => Some([0x58, 0]),
        3840 | 4800 | 5760 => Some([0x4b, (samples / 960) as u8]),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_line_by_line() {
        let trace = read("arrival_us,track,seq,rtp_ts,marker,payload_bytes\n702,1,65535,4294967295,0,80\n\n").unwrap();
        let expected =
            TracedPacket { arrival_us: 702, track: 1, seq: 65535, rtp_ts: u32::MAX, marker: false, payload_bytes: 80 };
        assert_eq!(trace, [expected]);
        assert_eq!(read("1,2,3").unwrap_err().line, 1);
    }

    #[test]
    fn counters_unwrap_and_ten_millisecond_packets_are_recognised() {
        let rows: Vec<TracedPacket> = (0..300_u32)
            .map(|i| TracedPacket {
                arrival_us: i64::from(i) * 10_000,
                track: 4,
                seq: 65_500_u32.wrapping_add(i) as u16,
                rtp_ts: (u32::MAX - 9_600).wrapping_add(i * 480),
                marker: false,
                payload_bytes: 60,
            })
            .collect();
        let replayed = replay(&rows, ParticipantKind::Standard, CaptureConfig::default());
        assert!(replayed.packets.iter().all(|packet| packet.settled == "received"));
        let sums = replayed.ledgers[&4].sums;
        assert_eq!(sums.received, 300 * 480);
        replayed.ledgers[&4].check_identity().unwrap();
    }
}
