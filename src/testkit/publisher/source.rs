//! From sound to RTP payloads, frame by frame, as a WebRTC client would send them. Knows no clock and no socket.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::call::Codec;
use crate::testkit::audio::{Audio, samples_in};
use crate::testkit::{TestkitError, g711};
use crate::time::SAMPLE_RATE;

use super::{AfterEnd, MutedSends, TrackOptions};

/// More than any Opus packet needs (RFC 6716 §3.4).
const MAX_PAYLOAD: usize = 1_500;

/// What to do with one frame's worth of time.
#[derive(Debug, PartialEq)]
pub(super) struct Frame {
    /// What to send, or nothing: muted, discontinuous transmission, at the end.
    pub(super) payload: Option<Vec<u8>>,
    /// The RTP timestamp, counted from the first frame's.
    pub(super) ticks: u64,
    /// 48 kHz samples since the track's first frame.
    pub(super) position: u64,
    /// The first packet, and the first after a pause (RFC 3551 §4.1).
    pub(super) marker: bool,
}

/// The frames of one track.
pub(super) struct Source {
    channels: Vec<Vec<f32>>,
    coder: Coder,
    /// Samples a frame, at `rate`.
    frame: usize,
    rate: u32,
    /// Samples of silence before the sound, at `rate`.
    lead_in: usize,
    looped: bool,
    after_end: AfterEnd,
    muted_sends: MutedSends,
    index: u64,
    paused: bool,
}

enum Coder {
    Opus {
        encoder: opus::Encoder,
        in_dtx: bool,
        dtx: bool,
    },
    G711(fn(f32) -> u8),
    /// Packets that were encoded before, and where to begin in them.
    Prepared {
        packets: Arc<[Option<Bytes>]>,
        from: usize,
    },
}

impl Source {
    pub(super) fn new(audio: &Arc<Audio>, options: &TrackOptions) -> Result<Self, TestkitError> {
        let failed = |error: opus::Error| TestkitError::audio("an Opus encoder", error);
        let rate = options.codec.clock_rate();
        let frame = samples_in(options.frame) * rate as usize / SAMPLE_RATE as usize;
        let stereo = audio.channel_count() > 1;
        let (coder, channels) = match options.codec {
            Codec::Opus => {
                let channels = if stereo { opus::Channels::Stereo } else { opus::Channels::Mono };
                let mut encoder = opus::Encoder::new(rate, channels, opus::Application::Voip).map_err(failed)?;
                encoder.set_bitrate(opus::Bitrate::Bits(options.bitrate as i32)).map_err(failed)?;
                encoder.set_dtx(options.dtx).map_err(failed)?;
                encoder.set_inband_fec(options.fec.is_some()).map_err(failed)?;
                encoder.set_packet_loss_perc(i32::from(options.fec.unwrap_or(0))).map_err(failed)?;
                let wanted = if stereo { 2 } else { 1 };
                let channels = (0..wanted).map(|channel| audio.channel(channel).to_vec()).collect();
                (Coder::Opus { encoder, in_dtx: false, dtx: options.dtx }, channels)
            }
            Codec::Pcmu => (Coder::G711(g711::to_ulaw), vec![audio.to_mono().at_rate(rate)?]),
            Codec::Pcma => (Coder::G711(g711::to_alaw), vec![audio.to_mono().at_rate(rate)?]),
        };
        Ok(Self {
            channels,
            coder,
            frame,
            rate,
            lead_in: samples_in(options.lead_in) * rate as usize / SAMPLE_RATE as usize,
            looped: options.looped,
            after_end: options.after_end,
            muted_sends: options.muted_sends,
            index: 0,
            paused: true,
        })
    }

    /// Frames of 20 ms that were encoded before; they go round, beginning with number `from`.
    pub(super) fn prepared(packets: Arc<[Option<Bytes>]>, from: usize, options: &TrackOptions) -> Self {
        Self {
            channels: vec![Vec::new()],
            coder: Coder::Prepared { packets, from },
            frame: SAMPLE_RATE as usize / 50,
            rate: SAMPLE_RATE,
            lead_in: 0,
            looped: true,
            after_end: options.after_end,
            muted_sends: options.muted_sends,
            index: 0,
            paused: true,
        }
    }

    /// How many channels are sent.
    pub(super) fn channel_count(&self) -> usize {
        self.channels.len()
    }

    /// Where the next frame begins, in 48 kHz samples since the first.
    pub(super) fn position(&self) -> u64 {
        self.start() as u64 * u64::from(SAMPLE_RATE / self.rate)
    }

    /// Whether the sound has been said to its end. A looped one has none.
    pub(super) fn at_end(&self) -> bool {
        !self.looped && self.start() >= self.lead_in + self.channels[0].len()
    }

    /// The next frame; `muted` is whether the track is muted at this moment.
    pub(super) fn next(&mut self, muted: bool) -> Result<Frame, TestkitError> {
        let start = self.start();
        let silent = self.at_end() || muted;
        let sends = match (muted, self.at_end()) {
            (true, _) => self.muted_sends == MutedSends::Silence,
            (false, true) => self.after_end == AfterEnd::Silence,
            (false, false) => true,
        };
        let payload = if let Coder::Prepared { packets, from } = &self.coder {
            let packet = packets.get((from + self.index as usize) % packets.len().max(1));
            packet.and_then(Option::as_ref).filter(|_| !muted).map(|packet| packet.to_vec())
        } else {
            let samples = if silent { vec![0.0; self.frame * self.channels.len()] } else { self.interleaved(start) };
            if sends { self.coder.encode(&samples)? } else { None }
        };

        let marker = self.paused && payload.is_some();
        self.paused = payload.is_none();
        let (ticks, position) = (self.start() as u64, self.position());
        self.index += 1;
        Ok(Frame { payload, ticks, position, marker })
    }

    fn start(&self) -> usize {
        self.index as usize * self.frame
    }

    fn interleaved(&self, start: usize) -> Vec<f32> {
        let len = self.channels[0].len();
        let mut samples = Vec::with_capacity(self.frame * self.channels.len());
        for at in start..start + self.frame {
            let at = at.checked_sub(self.lead_in).map(|at| if self.looped && len > 0 { at % len } else { at });
            let sample = |channel: &Vec<f32>| at.and_then(|at| channel.get(at)).copied().unwrap_or(0.0);
            samples.extend(self.channels.iter().map(sample));
        }
        samples
    }
}

impl Coder {
    fn encode(&mut self, samples: &[f32]) -> Result<Option<Vec<u8>>, TestkitError> {
        match self {
            Self::Opus { encoder, in_dtx, dtx } => {
                let payload = encoder
                    .encode_vec_float(samples, MAX_PAYLOAD)
                    .map_err(|error| TestkitError::audio("Opus encoding", error))?;
                // A packet of a TOC alone says nothing. WebRTC clients send the first, so that the other side learns
                // of the pause, and then none until there is something to send.
                let empty = *dtx && payload.len() <= 2;
                let withheld = empty && *in_dtx;
                *in_dtx = empty;
                Ok((!withheld).then_some(payload))
            }
            Self::G711(encode) => Ok(Some(samples.iter().map(|sample| encode(*sample)).collect())),
            Self::Prepared { .. } => Ok(None),
        }
    }
}

/// Whether `position`, in 48 kHz samples since the track's start, lies in one of the spans.
pub(super) fn muted_at(mutes: &[Range<Duration>], position: u64) -> bool {
    mutes.iter().any(|span| (samples_in(span.start) as u64..samples_in(span.end) as u64).contains(&position))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::audio::generate;

    fn frames(audio: Audio, options: &TrackOptions, count: usize) -> Vec<Frame> {
        let mut source = Source::new(&Arc::new(audio), options).unwrap();
        (0..count).map(|_| source.next(false).unwrap()).collect()
    }

    #[test]
    fn frames_of_every_length_follow_each_other() {
        for millis in [10, 20, 40, 60] {
            let options = TrackOptions::default().frame(Duration::from_millis(millis));
            let frames = frames(generate::speech(1, Duration::from_secs(1)), &options, 5);
            let ticks: Vec<u64> = frames.iter().map(|frame| frame.ticks).collect();
            assert_eq!(ticks, (0..5).map(|i| i * millis * 48).collect::<Vec<_>>());
            for frame in &frames {
                let payload = frame.payload.as_ref().unwrap();
                assert_eq!(opus::packet::get_nb_samples(payload, 48_000).unwrap() as u64, millis * 48);
            }
            assert_eq!(frames.iter().map(|frame| frame.marker).collect::<Vec<_>>(), [true, false, false, false, false]);
        }
    }

    #[test]
    fn discontinuous_transmission_leaves_silence_out_and_timestamps_running() {
        let audio = generate::speech(1, Duration::from_millis(400)).then(&Audio::silence(Duration::from_secs(3)));
        let sent = |dtx| {
            let options = TrackOptions::default().dtx(dtx);
            let frames = frames(audio.clone(), &options, 170);
            assert_eq!(frames[169].ticks, 169 * 960);
            frames.iter().filter(|frame| frame.payload.is_some()).count()
        };
        assert_eq!(sent(false), 170);
        assert!((20..60).contains(&sent(true)), "{}", sent(true));
    }

    #[test]
    fn the_end_is_silence_or_nothing_or_the_beginning() {
        let audio = generate::speech(1, Duration::from_millis(40));
        let sent = |options: &TrackOptions| {
            let frames = frames(audio.clone(), options, 4);
            frames.iter().map(|frame| frame.payload.is_some()).collect::<Vec<_>>()
        };
        assert_eq!(sent(&TrackOptions::default()), [true; 4]);
        assert_eq!(sent(&TrackOptions::default().after_end(AfterEnd::Nothing)), [true, true, false, false]);
        let looped = TrackOptions::default().looped(true).after_end(AfterEnd::Nothing);
        assert_eq!(sent(&looped), [true; 4]);

        let pcmu = TrackOptions::default().codec(Codec::Pcmu);
        let twice = frames(audio.clone(), &pcmu.clone().looped(true), 4);
        assert_eq!(twice[0].payload, twice[2].payload);
        assert_eq!((twice[3].ticks, twice[3].position), (480, 2_880));
        assert_eq!(frames(audio, &pcmu, 4)[3].payload, Some(vec![0xff; 160]));
    }

    #[test]
    fn silence_leads_in_once() {
        let audio = generate::tone(1_000.0, 0.5, Duration::from_millis(20));
        let options = TrackOptions::default().codec(Codec::Pcmu).lead_in(Duration::from_millis(30)).looped(true);
        let frames = frames(audio, &options, 4);
        let silent = |frame: &Frame| frame.payload.as_ref().unwrap().iter().take_while(|byte| **byte == 0xff).count();
        assert_eq!(silent(&frames[0]), 160);
        assert!((75..=82).contains(&silent(&frames[1])), "{}", silent(&frames[1]));
        assert_eq!(frames[2].payload, frames[3].payload);
    }

    #[test]
    fn prepared_packets_go_round_from_where_they_are_told_to_begin() {
        let packets: Arc<[Option<Bytes>]> = [Some(&b"a"[..]), None, Some(b"c")].map(|p| p.map(Bytes::from)).into();
        let mut source = Source::prepared(packets, 2, &TrackOptions::default());
        let frames: Vec<Frame> = (0..4).map(|_| source.next(false).unwrap()).collect();
        let payloads: Vec<_> = frames.iter().map(|frame| frame.payload.as_deref()).collect();
        assert_eq!(payloads, [Some(&b"c"[..]), Some(b"a"), None, Some(b"c")]);
        assert_eq!((frames[3].ticks, frames[3].marker), (2_880, true));
    }

    #[test]
    fn muted_frames_are_left_out_and_a_marker_follows() {
        let audio = Arc::new(generate::speech(1, Duration::from_secs(1)));
        let mut source = Source::new(&audio, &TrackOptions::default()).unwrap();
        let frames: Vec<Frame> = [false, true, true, false].map(|muted| source.next(muted).unwrap()).into();
        let shape: Vec<_> = frames.iter().map(|frame| (frame.payload.is_some(), frame.marker)).collect();
        assert_eq!(shape, [(true, true), (false, false), (false, false), (true, true)]);
        assert_eq!(frames[3].ticks, 2_880);
    }

    #[test]
    fn mute_spans_are_half_open() {
        let spans = [Duration::from_secs(1)..Duration::from_secs(2)];
        assert_eq!([47_999, 48_000, 95_999, 96_000].map(|at| muted_at(&spans, at)), [false, true, true, false]);
    }
}
