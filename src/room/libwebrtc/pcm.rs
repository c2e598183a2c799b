//! One track's PCM as packets: what there is no RTP time for is told by when it came.
//!
//! libwebrtc asks its jitter buffer for 10 ms of PCM a hundred times a second, and makes good afterwards for what it was late.
//! So the number of samples is a clock, the process's own, and runs beside arrival times by a constant. Where PCM is late and
//! then catches up, the process had been held up, and nothing is amiss; where it stays late, there was no PCM for a while, and
//! time goes on by as much without packets, as it does for a sender with discontinuous transmission.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::event::RtpPacket;
use crate::call::{Codec, TrackKey};
use crate::encode::{EncodeError, OpusConfig, OpusEncoder};
use crate::time::{RtpTime, SAMPLE_RATE, Seq};

/// PCM that is later than this has either stopped or been held up: 40 ms, twice what a busy machine's timers are off.
const LATE: i64 = 40_000_000;

/// A frame's worth of time by which lateness must fall to count as catching up: 10 ms.
const CAUGHT_UP: i64 = 10_000_000;

/// PCM that has not caught up for so long does not: 60 ms.
const JUDGEMENT: Duration = Duration::from_millis(60);

/// Bits a second of each channel: twice what a mix has, so that coding the voice once more than other engines do is not heard.
const BITRATE: u32 = 64_000;

/// A track's PCM, which becomes Opus packets of 20 ms.
pub(in crate::room) struct PcmPackets {
    track: TrackKey,
    ssrc: u32,
    encoder: OpusEncoder,
    pace: Pace,
    /// PCM that may have been held up, and when it came.
    held: VecDeque<(Vec<f32>, Instant)>,
    /// PCM short of a packet, and when its end came.
    rest: Vec<f32>,
    came: Option<Instant>,
    seq: Seq,
    /// Where `rest` begins.
    rtp: RtpTime,
    /// Whether the last packet's time was silent to its end, so that nothing is left to be heard.
    quiet: bool,
    /// Whether time went on without packets since the last one.
    resumes: bool,
}

impl PcmPackets {
    /// For a stream of `channels` channels (1 or 2) at 48 kHz, of which nothing came yet.
    ///
    /// # Errors
    /// [`EncodeError`] for another number of channels, or where libopus cannot allocate.
    pub(in crate::room) fn new(track: TrackKey, ssrc: u32, channels: u8) -> Result<Self, EncodeError> {
        let mut config = if channels == 2 { OpusConfig::stereo() } else { OpusConfig::mono() };
        config.bitrate(BITRATE * u32::from(channels))?;
        Ok(Self {
            track,
            ssrc,
            encoder: OpusEncoder::new(&config)?,
            pace: Pace::default(),
            held: VecDeque::new(),
            rest: Vec::new(),
            came: None,
            seq: Seq(0),
            rtp: RtpTime(0),
            quiet: true,
            resumes: true,
        })
    }

    /// Takes interleaved PCM whose last sample came `at`, and appends the packets that are certain by now to `out`.
    ///
    /// # Errors
    /// [`EncodeError`] where libopus fails; the PCM of one packet is lost then.
    pub(in crate::room) fn take(
        &mut self,
        pcm: &[i16],
        at: Instant,
        out: &mut Vec<RtpPacket>,
    ) -> Result<(), EncodeError> {
        let pcm: Vec<f32> = pcm.iter().map(|sample| f32::from(*sample) / 32_768.0).collect();
        let frames = pcm.len() / self.encoder.config().channels();
        self.held.push_back((pcm, at));
        match self.pace.judge(frames as u64, at) {
            Judgement::Wait => Ok(()),
            Judgement::GoesOn => self.release(out),
            Judgement::Stopped(samples) => {
                let stopped_at = self.rtp.0 + self.rest_frames();
                self.end_sound(out)?;
                // Longer than what it takes to end a sound.
                self.rtp = RtpTime(stopped_at + samples);
                self.resumes = true;
                self.release(out)
            }
        }
    }

    /// The stream has ended: appends what is left of it to `out`.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(in crate::room) fn finish(&mut self, out: &mut Vec<RtpPacket>) -> Result<(), EncodeError> {
        self.release(out)?;
        self.end_sound(out)
    }

    fn release(&mut self, out: &mut Vec<RtpPacket>) -> Result<(), EncodeError> {
        while let Some((pcm, at)) = self.held.pop_front() {
            self.came = Some(at);
            self.rest.extend(pcm);
            while self.rest.len() >= self.encoder.frame_len() {
                self.packet(at, out)?;
            }
        }
        Ok(())
    }

    /// Lets silence follow until the encoder has nothing left to tell.
    fn end_sound(&mut self, out: &mut Vec<RtpPacket>) -> Result<(), EncodeError> {
        let Some(at) = self.came else { return Ok(()) };
        while !self.rest.is_empty() || !self.quiet {
            self.rest.resize(self.encoder.frame_len(), 0.0);
            self.packet(at, out)?;
        }
        Ok(())
    }

    fn rest_frames(&self) -> i64 {
        (self.rest.len() / self.encoder.config().channels()) as i64
    }

    /// Codes the first frame of what is there. Digital silence makes no packets once the encoder's look-ahead is empty.
    fn packet(&mut self, at: Instant, out: &mut Vec<RtpPacket>) -> Result<(), EncodeError> {
        let len = self.encoder.frame_len();
        let rtp = self.rtp;
        self.rtp = RtpTime(rtp.0 + (len / self.encoder.config().channels()) as i64);
        let silent = self.rest[..len].iter().all(|sample| *sample == 0.0);
        let payload = self.encoder.encode(&self.rest[..len]).map(Bytes::copy_from_slice);
        self.rest.drain(..len);
        let was_quiet = std::mem::replace(&mut self.quiet, silent);
        if silent && was_quiet {
            self.resumes = true;
            return Ok(());
        }
        let payload = payload?;
        out.push(RtpPacket {
            track: self.track,
            ssrc: self.ssrc,
            codec: Codec::Opus,
            seq: self.seq,
            rtp,
            marker: std::mem::replace(&mut self.resumes, false),
            payload,
            undecryptable: false,
            arrival: at,
        });
        self.seq = Seq(self.seq.0 + 1);
        Ok(())
    }
}

/// What the moment at which PCM came says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    /// It may catch up yet.
    Wait,
    /// It follows what came before, and so does all that waited.
    GoesOn,
    /// There was none for so many samples before what waited.
    Stopped(i64),
}

/// How arrival times run beside the number of samples. In nanoseconds since the first arrival.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    first: Option<Instant>,
    /// Samples of a channel so far, and those in whose time there were none.
    samples: i64,
    /// The least by which an arrival was after its samples' time.
    floor: Option<i64>,
    /// While it is late: the least lateness since, and when that was.
    late: Option<(i64, Instant)>,
}

impl Pace {
    /// Counts `frames` samples, the last of which came `at`.
    fn judge(&mut self, frames: u64, at: Instant) -> Judgement {
        let first = *self.first.get_or_insert(at);
        self.samples += frames as i64;
        let since = i64::try_from(at.saturating_duration_since(first).as_nanos()).unwrap_or(i64::MAX);
        let after = since - nanos(self.samples);
        let floor = self.floor.map_or(after, |floor| floor.min(after));
        self.floor = Some(floor);
        let lateness = after - floor;
        if lateness < LATE {
            self.late = None;
            return Judgement::GoesOn;
        }
        match self.late {
            Some((least, since)) if lateness > least - CAUGHT_UP => {
                if at.saturating_duration_since(since) < JUDGEMENT {
                    return Judgement::Wait;
                }
                let missing = (i128::from(least.min(lateness)) * i128::from(SAMPLE_RATE) / 1_000_000_000) as i64;
                self.samples += missing;
                self.late = None;
                Judgement::Stopped(missing)
            }
            _ => {
                self.late = Some((lateness, at));
                Judgement::Wait
            }
        }
    }
}

fn nanos(samples: i64) -> i64 {
    (i128::from(samples) * 1_000_000_000 / i128::from(SAMPLE_RATE)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 48;

    struct Feed {
        packets: PcmPackets,
        start: Instant,
        told: u64,
        out: Vec<RtpPacket>,
    }

    impl Feed {
        fn new(channels: u8) -> Self {
            let packets = PcmPackets::new(TrackKey(3), 7, channels).unwrap();
            Self { packets, start: crate::clock::now(), told: 0, out: Vec::new() }
        }

        /// 10 ms of a tone, or of nothing, that came so many milliseconds after the start.
        fn frame(&mut self, tone: bool, at_ms: u64) {
            let channels = self.packets.encoder.config().channels();
            let sample = |n: u64| if tone { ((n as f64 * 0.05).sin() * 8_000.0) as i16 } else { 0 };
            let pcm: Vec<i16> =
                (0..480).flat_map(|n| std::iter::repeat_n(sample(480 * self.told + n), channels)).collect();
            self.told += 1;
            let at = self.start + Duration::from_millis(at_ms);
            self.packets.take(&pcm, at, &mut self.out).unwrap();
        }

        /// One frame each 10 ms, from `from_ms` until before `to_ms`.
        fn steady(&mut self, tone: bool, from_ms: u64, to_ms: u64) {
            (from_ms..to_ms).step_by(10).for_each(|at| self.frame(tone, at));
        }

        /// The time of each packet in milliseconds.
        fn times(&self) -> Vec<i64> {
            self.out.iter().map(|packet| packet.rtp.0 / MS).collect()
        }

        fn follow_each_other(&self) -> bool {
            self.out
                .windows(2)
                .all(|pair| pair[1].seq.0 == pair[0].seq.0 + 1 && pair[1].rtp.0 == pair[0].rtp.0 + 20 * MS)
        }
    }

    #[test]
    fn pcm_becomes_packets_of_20_ms_that_came_when_their_end_did() {
        for channels in [1, 2] {
            let mut feed = Feed::new(channels);
            feed.steady(true, 10, 1_010);
            assert_eq!(feed.out.len(), 50);
            assert!(feed.follow_each_other() && feed.out[0].marker && !feed.out[1].marker);
            for (n, packet) in feed.out.iter().enumerate() {
                assert_eq!((packet.track, packet.ssrc, packet.codec), (TrackKey(3), 7, Codec::Opus));
                assert_eq!(packet.arrival, feed.start + Duration::from_millis(20 * (n as u64 + 1)));
            }
            let layout = if channels == 2 { opus::Channels::Stereo } else { opus::Channels::Mono };
            let mut decoder = opus::Decoder::new(SAMPLE_RATE, layout).unwrap();
            let mut pcm = vec![0.0; 960 * usize::from(channels)];
            for packet in &feed.out {
                assert_eq!(decoder.decode_float(&packet.payload, &mut pcm, false).unwrap(), 960);
            }
            let power = pcm.iter().map(|sample| sample * sample).sum::<f32>() / pcm.len() as f32;
            let told = (8_000.0f32 / 32_768.0).powi(2) / 2.0;
            assert!((power / told - 1.0).abs() < 0.1, "{power} of {told}");
        }
    }

    #[test]
    fn what_was_held_up_and_catches_up_follows_what_came_before() {
        for away in [50, 500, 5_000] {
            let mut feed = Feed::new(1);
            feed.steady(true, 10, 500);
            // All of it at once, as fast as it can be made, and what is due meanwhile.
            (0..away / 10).for_each(|n| feed.frame(true, 490 + away + n / 50));
            feed.steady(true, 500 + away, 2_000 + away);
            assert!(feed.follow_each_other(), "{away}: {:?}", feed.times());
            assert_eq!(feed.out.len() as u64, (1_990 + away) / 20);
        }
    }

    #[test]
    fn what_stays_late_had_stopped() {
        for away in [50, 130, 3_000] {
            let mut feed = Feed::new(1);
            // The packet that had begun is filled up.
            feed.steady(true, 10, 500);
            feed.steady(true, 500 + away, 1_500 + away);
            let hole = feed.out.windows(2).find(|pair| pair[1].rtp.0 != pair[0].rtp.0 + 20 * MS).unwrap();
            assert_eq!(hole[1].rtp.0, (490 + away as i64) * MS);
            assert_eq!(hole[1].seq.0, hole[0].seq.0 + 1);
            assert!(hole[1].marker);
            assert_eq!(hole[1].arrival, feed.start + Duration::from_millis(510 + away));
            let last = feed.out.last().unwrap();
            let came = last.arrival.duration_since(feed.start).as_millis() as i64;
            assert_eq!(last.rtp.0 / MS + 20, came, "time and arrival run together again");
        }
    }

    #[test]
    fn frames_that_are_missing_now_and_then_add_up_to_a_stop() {
        let mut feed = Feed::new(1);
        // Every twentieth frame is left out.
        (1..=400).filter(|n| n % 20 != 0).for_each(|n| feed.frame(true, 10 * n));
        let last = feed.out.last().unwrap();
        let behind = last.arrival.duration_since(feed.start).as_millis() as i64 - (last.rtp.0 / MS + 20);
        assert!((0..50).contains(&behind), "{behind} ms after 200 ms were left out");
        assert!(feed.out.iter().enumerate().all(|(n, packet)| packet.seq.0 == n as u64));
    }

    #[test]
    fn first_frames_that_were_late_make_nothing_after_them_early_or_late() {
        let mut feed = Feed::new(1);
        (1..=3).for_each(|_| feed.frame(true, 35));
        (4..=100).for_each(|n| feed.frame(true, 10 * n + n % 3));
        assert!(feed.follow_each_other());
        assert_eq!(feed.out.len(), 50);
        // Nor is what stops later measured by them.
        feed.steady(true, 1_060, 2_060);
        let last = feed.out.last().unwrap();
        assert_eq!(last.rtp.0 / MS + 20, 2_050);
        assert_eq!(last.arrival, feed.start + Duration::from_millis(2_050));
    }

    #[test]
    fn digital_silence_is_time_without_packets() {
        let mut feed = Feed::new(1);
        feed.steady(false, 10, 310);
        assert!(feed.out.is_empty());
        feed.steady(true, 310, 610);
        feed.steady(false, 610, 910);
        feed.steady(true, 910, 1_010);
        // One packet of silence takes what the encoder still held.
        let sound = (300..620).step_by(20).chain((900..1_000).step_by(20));
        assert_eq!(feed.times(), sound.collect::<Vec<_>>());
        let marked: Vec<i64> = feed.out.iter().filter(|packet| packet.marker).map(|packet| packet.rtp.0 / MS).collect();
        assert_eq!(marked, [300, 900]);
        assert!(feed.out.iter().enumerate().all(|(n, packet)| packet.seq.0 == n as u64));
    }

    #[test]
    fn the_end_is_told_whole() {
        let mut feed = Feed::new(1);
        feed.steady(true, 10, 50);
        feed.frame(true, 400);
        assert_eq!(feed.times(), [0, 20]);
        let mut out = std::mem::take(&mut feed.out);
        feed.packets.finish(&mut out).unwrap();
        let times: Vec<i64> = out.iter().map(|packet| packet.rtp.0 / MS).collect();
        // What waited, and a packet for what the encoder still held.
        assert_eq!(times, [0, 20, 40, 60]);
    }
}
