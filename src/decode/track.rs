//! One track: settled stretches in, PCM for any run of the timeline out.

use std::collections::VecDeque;

use super::DecodeError;
use super::line::{LOOKAHEAD, Line};
use super::source::{FADE_TO, Make, Source};
use crate::capture::{Content, Settled, Silence};
use crate::time::{MediaTime, SampleCount};

/// Sound of this length must lie beyond a stretch before it can be read, so that resampling has something to look ahead
/// at: half a kernel, and what G.711's own resampler holds back.
const HOLD: SampleCount = SampleCount::from_millis(8);
/// Sound does not stop dead where silence begins, but rings on and fades for so long.
const TAIL: usize = 240;
/// Sound that begins at more than [`CLICK`] is faded in over so many frames.
const FADE_IN: usize = 120;
/// A magnitude that clicks when it comes from or goes to nothing (−54 dBFS).
const CLICK: f32 = 0.002;
/// After this much silence the codec's memory says nothing about what comes.
const FORGET: SampleCount = SampleCount::from_millis(1000);

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameInfo {
    /// Nothing but zeros.
    pub silent: bool,
}

/// What a decoder did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeStats {
    /// Packets decoded.
    pub packets: u64,
    /// Losses for which in-band FEC was asked.
    pub recovered: u64,
    /// Audio made up by concealment where capture asked for it.
    pub concealed: SampleCount,
    /// Packets that the codec refused; concealed instead.
    pub refused: u64,
    /// Packets that held more than their stretch had room for, and were cut.
    pub cut: u64,
    /// Audio that was read before it was ready, and ended there.
    pub starved: u64,
}

/// Decodes one track.
///
/// Stretches wait undecoded until they are read, so what a slow neighbour makes wait costs no PCM. Read only up to
/// [`ready`](Self::ready), or call [`finish`](Self::finish) first: reading further ends the sound there.
///
/// With one channel, stereo sources are folded down by the codec; with two, mono sources sound on both.
pub struct TrackDecoder {
    channels: usize,
    queue: VecDeque<Stretch>,
    /// End of what was pushed.
    end: Option<MediaTime>,
    finished: bool,
    /// End of what was read.
    at: Option<MediaTime>,
    source: Source,
    line: Line,
    /// Rendered PCM, and how much of it has been read.
    pcm: Vec<f32>,
    taken: usize,
    running: bool,
    tail: Vec<f32>,
    tail_at: usize,
    silent_for: SampleCount,
    stats: DecodeStats,
}

/// A stretch that waits, and how many frames it was decoded to, once it was.
struct Stretch {
    length: u64,
    content: Content,
    decoded: Option<u64>,
}

impl Stretch {
    fn make(&self) -> Option<Make<'_>> {
        match &self.content {
            Content::Packet { codec, payload } => Some(Make::Packet(*codec, payload)),
            Content::Recovered { next } => Some(Make::Recover(next)),
            Content::Concealed { into_run } => Some(Make::Conceal(*into_run)),
            Content::Silence(_) => None,
        }
    }
}

impl TrackDecoder {
    /// A decoder that gives PCM of 1 or 2 channels.
    ///
    /// # Errors
    /// [`DecodeError::Channels`], [`DecodeError::Opus`], [`DecodeError::Resampler`].
    pub fn new(channels: usize) -> Result<Self, DecodeError> {
        Ok(Self {
            channels,
            queue: VecDeque::with_capacity(16),
            end: None,
            finished: false,
            at: None,
            source: Source::new(channels)?,
            line: Line::new(channels)?,
            pcm: Vec::with_capacity(1920 * channels),
            taken: 0,
            running: false,
            tail: Vec::with_capacity(TAIL * channels),
            tail_at: 0,
            silent_for: SampleCount::ZERO,
            stats: DecodeStats::default(),
        })
    }

    /// Takes the next stretch. The first one may begin anywhere.
    ///
    /// A stretch that is longer than its packet by more than resampling can bridge ends in silence.
    ///
    /// # Errors
    /// [`DecodeError::OutOfOrder`] where it does not begin at the end of the one before; it is then not taken.
    pub fn push(&mut self, stretch: &Settled) -> Result<(), DecodeError> {
        let expected = self.end.unwrap_or(stretch.start);
        if stretch.start != expected {
            return Err(DecodeError::OutOfOrder { track: stretch.track, expected, got: stretch.start });
        }
        if stretch.is_empty() {
            return Ok(());
        }
        self.at.get_or_insert(stretch.start);
        self.end = Some(stretch.end);
        self.finished = false;
        let holds = match &stretch.content {
            Content::Packet { codec, payload } => Source::samples(*codec, payload).unwrap_or(960),
            Content::Recovered { .. } => FADE_TO,
            Content::Concealed { into_run } => FADE_TO.saturating_sub(into_run.0),
            Content::Silence(_) => u64::MAX,
        };
        let length = stretch.len().0;
        let sound = if length > holds.saturating_add(tolerance(holds)) { holds } else { length };
        if sound > 0 {
            self.queue.push_back(Stretch { length: sound, content: stretch.content.clone(), decoded: None });
        }
        if sound < length {
            let content = Content::Silence(Silence::Lost);
            self.queue.push_back(Stretch { length: length - sound, content, decoded: None });
        }
        Ok(())
    }

    /// Forgets everything but what was counted and the sender's rate: the next stretch may begin anywhere, as the first.
    pub fn restart(&mut self) {
        self.queue.clear();
        self.end = None;
        self.finished = false;
        self.at = None;
        self.source.reset();
        self.source.end_run();
        self.pcm.clear();
        self.taken = 0;
        self.running = false;
        self.tail.clear();
        self.tail_at = 0;
        self.silent_for = SampleCount::ZERO;
    }

    /// Nothing follows for now: everything pushed may be read. A later push takes it up again.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Up to where PCM can be read, or `None` before the first stretch: where the last sounding stretch begins, or, where
    /// silence follows it or nothing more comes, its end.
    pub fn ready(&self) -> Option<MediaTime> {
        let end = self.end?;
        let mut held = SampleCount::ZERO;
        for stretch in self.queue.iter().rev() {
            if self.finished || held >= HOLD || stretch.make().is_none() {
                break;
            }
            held += SampleCount(stretch.length);
        }
        Some(end - held)
    }

    /// Up to where PCM was read, or `None` before the first stretch.
    pub fn position(&self) -> Option<MediaTime> {
        self.at
    }

    /// What it did so far.
    pub fn stats(&self) -> DecodeStats {
        self.stats
    }

    /// Fills `out` (frames of [`new`](Self::new)'s channels, interleaved) with the timeline from `from` on. What lies
    /// outside of the pushed stretches, or was read before, is silent.
    pub fn read(&mut self, from: MediaTime, out: &mut [f32]) -> FrameInfo {
        let Some(mut at) = self.at else {
            out.fill(0.0);
            return FrameInfo { silent: true };
        };
        while at < from && (self.taken < self.pcm.len() || !self.queue.is_empty()) {
            let mut unwanted = [0.0; 240];
            let frames = from.since(at).0.min(240 / self.channels as u64) as usize;
            let (made, _) = self.make(&mut unwanted[..frames * self.channels]);
            at = at + SampleCount(made as u64);
        }
        let missing = at.since(from).0.min((out.len() / self.channels) as u64) as usize;
        let (before, out) = out.split_at_mut(missing * self.channels);
        before.fill(0.0);
        let (made, mut silent) = self.make(out);
        let after = &mut out[made * self.channels..];
        after.fill(0.0);
        silent &= !self.ring_out(after);
        self.at = Some(at + SampleCount(made as u64));
        FrameInfo { silent }
    }

    /// Makes the next PCM, up to the end of `out` or of what was pushed. Returns how many frames it made, and whether
    /// they hold nothing but zeros.
    fn make(&mut self, out: &mut [f32]) -> (usize, bool) {
        let frames = out.len() / self.channels;
        let (mut made, mut silent) = (0, true);
        while made < frames {
            let room = &mut out[made * self.channels..];
            if self.taken < self.pcm.len() {
                let count = room.len().min(self.pcm.len() - self.taken);
                room[..count].copy_from_slice(&self.pcm[self.taken..self.taken + count]);
                self.taken += count;
                made += count / self.channels;
                silent = false;
                continue;
            }
            let Some(front) = self.queue.front_mut() else { break };
            if front.make().is_some() {
                self.render_front();
                continue;
            }
            let count = front.length.min((frames - made) as u64);
            front.length -= count;
            if front.length == 0 {
                self.queue.pop_front();
            }
            self.silent_for += SampleCount(count);
            let room = &mut room[..count as usize * self.channels];
            room.fill(0.0);
            silent &= !self.ring_out(room);
            made += count as usize;
        }
        (made, silent)
    }

    /// Adds what rings on of an earlier sound, and tells whether there was any.
    fn ring_out(&mut self, pcm: &mut [f32]) -> bool {
        let tail = &self.tail[self.tail_at..];
        let count = tail.len().min(pcm.len());
        pcm.iter_mut().zip(tail).for_each(|(sample, ringing)| *sample += ringing);
        self.tail_at += count;
        count > 0
    }

    /// Renders the sounding stretch at the front of the queue into `pcm`.
    fn render_front(&mut self) {
        self.pcm.clear();
        self.taken = 0;
        let begins = !self.running;
        if begins {
            self.line.begin();
            if self.silent_for >= FORGET {
                self.source.reset();
            }
            self.running = true;
        }
        self.silent_for = SampleCount::ZERO;
        let decoded = self.decode(0);
        let needed = decoded as i64 + LOOKAHEAD;
        let mut next = 1;
        while self.line.waiting() < needed && self.sounds(next) {
            self.decode(next);
            next += 1;
        }
        if self.line.waiting() < needed {
            let frames = (TAIL as u64 + LOOKAHEAD as u64).next_multiple_of(TAIL as u64) + self.source.lag();
            self.source.ring_on(frames, self.line.input());
        }
        if begins {
            self.fade_in();
        }
        let Some(front) = self.queue.pop_front() else { return };
        self.line.render(front.length, decoded, &mut self.pcm);
        if begins {
            let mut pcm = std::mem::take(&mut self.pcm);
            self.ring_out(&mut pcm);
            self.pcm = pcm;
        }
        if !self.sounds(0) {
            if self.queue.is_empty() && !self.finished {
                self.stats.starved += 1;
            }
            self.end_run();
        }
    }

    fn sounds(&self, index: usize) -> bool {
        self.queue.get(index).is_some_and(|stretch| stretch.make().is_some())
    }

    /// Decodes a sounding stretch of the queue, unless that was done before, and returns the frames it holds.
    fn decode(&mut self, index: usize) -> u64 {
        let Some(stretch) = self.queue.get_mut(index) else { return 0 };
        if let Some(decoded) = stretch.decoded {
            return decoded;
        }
        let Some(make) = stretch.make() else { return 0 };
        let length = stretch.length;
        let mut decoded = self.source.decode(make, length, self.line.input(), &mut self.stats);
        let fits = length + tolerance(length);
        if decoded > fits {
            if let Content::Packet { .. } = stretch.content {
                self.stats.cut += 1;
            }
            let surplus = (decoded - length).min(self.line.waiting().max(0) as u64) as usize;
            let input = self.line.input();
            input.truncate(input.len() - surplus * self.channels);
            decoded = length;
        }
        stretch.decoded = Some(decoded);
        decoded
    }

    fn fade_in(&mut self) {
        let channels = self.channels;
        let pcm = self.line.rest();
        if pcm.iter().take(8 * channels).all(|sample| sample.abs() < CLICK) {
            return;
        }
        for (n, frame) in pcm.chunks_exact_mut(channels).take(FADE_IN).enumerate() {
            let gain = (n as f32 + 0.5) / FADE_IN as f32;
            frame.iter_mut().for_each(|sample| *sample *= gain);
        }
    }

    /// Keeps what rings on after the last frame rendered, if its end would click.
    fn end_run(&mut self) {
        self.running = false;
        self.source.end_run();
        self.tail.clear();
        self.tail_at = 0;
        let channels = self.channels;
        let rest = self.line.rest();
        if rest.iter().take(32 * channels).all(|sample| sample.abs() < CLICK) {
            return;
        }
        for (n, frame) in rest.chunks_exact(channels).take(TAIL).enumerate() {
            let gain = 1.0 - (n as f32 + 0.5) / TAIL as f32;
            self.tail.extend(frame.iter().map(|sample| sample * gain));
        }
    }
}

/// By how many frames a packet and its stretch may differ: what a sender's clock and the timeline can disagree by.
fn tolerance(frames: u64) -> u64 {
    frames / 24
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::call::{Codec, TrackKey};
    use crate::decode::Level;

    /// Packets of `pcm`, each `frame` samples long, encoded as a telephone or a browser would.
    fn packets(pcm: &[f32], frame: usize, fec: bool) -> Vec<Bytes> {
        let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
        encoder.set_bitrate(opus::Bitrate::Bits(64_000)).unwrap();
        encoder.set_inband_fec(fec).unwrap();
        encoder.set_packet_loss_perc(if fec { 20 } else { 0 }).unwrap();
        let mut packet = [0; 1500];
        let encode = |pcm: &[f32]| {
            let len = encoder.encode_float(pcm, &mut packet).unwrap();
            Bytes::copy_from_slice(&packet[..len])
        };
        pcm.chunks_exact(frame).map(encode).collect()
    }

    fn packet(payload: &Bytes) -> Content {
        Content::Packet { codec: Codec::Opus, payload: payload.clone() }
    }

    /// Pushes stretches of these lengths one after the other.
    fn push(decoder: &mut TrackDecoder, stretches: impl IntoIterator<Item = (u64, Content)>) {
        for (length, content) in stretches {
            let start = decoder.end.unwrap_or(MediaTime(1000));
            let end = start + SampleCount(length);
            decoder.push(&Settled { track: TrackKey(1), start, end, content }).unwrap();
        }
    }

    fn read_all(decoder: &mut TrackDecoder) -> Vec<f32> {
        decoder.finish();
        let end = decoder.ready().unwrap();
        let mut pcm = vec![0.0; end.since(decoder.position().unwrap()).0 as usize * decoder.channels];
        decoder.read(decoder.position().unwrap(), &mut pcm);
        pcm
    }

    fn decoded(packets: &[Bytes], channels: opus::Channels) -> Vec<f32> {
        let mut decoder = opus::Decoder::new(48_000, channels).unwrap();
        let (mut all, mut pcm) = (Vec::new(), vec![0.0; 5760 * 2]);
        for packet in packets {
            let frames = decoder.decode_float(packet, &mut pcm, false).unwrap();
            all.extend_from_slice(&pcm[..frames * channels as usize]);
        }
        all
    }

    fn voice(frames: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(7);
        let mut smooth = 0.0;
        (0..frames)
            .map(|n| {
                smooth = 0.9 * smooth + 0.1 * (2.0 * random.f32() - 1.0);
                let loud = (n as f32 * 0.0004).sin().powi(2);
                loud * (0.2 * (n as f32 * 0.02).sin() + smooth)
            })
            .collect()
    }

    fn tone(frames: usize) -> Vec<f32> {
        (0..frames).map(|n| 0.4 * (n as f32 * std::f32::consts::TAU * 440.0 / 48_000.0).sin()).collect()
    }

    fn steepest(pcm: &[f32]) -> f32 {
        pcm.windows(2).map(|w| (w[1] - w[0]).abs()).fold(0.0, f32::max)
    }

    /// The lag at which `heard` resembles `said` most, and how much.
    fn lag(said: &[f32], heard: &[f32], most: i64) -> i64 {
        let likeness = |lag: &i64| {
            let pairs = (most..said.len() as i64 - most).map(|n| said[n as usize] * heard[(n + lag) as usize]);
            pairs.map(f64::from).sum::<f64>()
        };
        (-most..=most).max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap()
    }

    #[test]
    fn without_drift_pcm_is_what_the_codec_decoded() {
        let packets = packets(&voice(48_000), 960, false);
        let mut decoder = TrackDecoder::new(1).unwrap();
        push(&mut decoder, packets.iter().map(|p| (960, packet(p))));
        assert_eq!(decoder.position(), Some(MediaTime(1000)));
        assert!(read_all(&mut decoder) == decoded(&packets, opus::Channels::Mono));
    }

    #[test]
    fn two_channels_are_what_the_codec_decoded() {
        let packets = packets(&voice(9_600), 480, false);
        let mut decoder = TrackDecoder::new(2).unwrap();
        push(&mut decoder, packets.iter().map(|p| (480, packet(p))));
        assert!(read_all(&mut decoder) == decoded(&packets, opus::Channels::Stereo));
    }

    #[test]
    fn stretches_of_any_length_and_codec_are_read_to_the_end() {
        let packets = packets(&voice(48_000), 960, true);
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut decoder = TrackDecoder::new(1).unwrap();
            for n in 0..400 {
                let payload = packets[n % packets.len()].clone();
                let content = match random.u8(..6) {
                    0 => Content::Recovered { next: payload },
                    1 => Content::Concealed { into_run: SampleCount::ZERO },
                    2 => Content::Packet {
                        codec: Codec::Pcmu,
                        payload: payload.slice(..random.usize(..9).min(payload.len())),
                    },
                    _ => packet(&payload),
                };
                let length = if random.bool() { random.u64(1..200) } else { random.u64(920..1000) };
                push(&mut decoder, [(length, content)]);
            }
            assert!(read_all(&mut decoder).iter().all(|sample| sample.is_finite()));
            assert!(decoder.line.waiting() < 20_000, "{}", decoder.line.waiting());
        }
    }

    #[test]
    fn reading_bit_by_bit_as_stretches_come_makes_no_difference() {
        let packets = packets(&voice(48_000), 960, false);
        let stretches: Vec<_> = packets.iter().enumerate().map(|(n, p)| (960 + (n as u64 % 2), packet(p))).collect();
        let mut whole = TrackDecoder::new(1).unwrap();
        push(&mut whole, stretches.clone());
        let mut piecewise = TrackDecoder::new(1).unwrap();
        let mut pcm = Vec::new();
        for stretch in stretches {
            push(&mut piecewise, [stretch]);
            let (at, ready) = (piecewise.position().unwrap(), piecewise.ready().unwrap());
            let mut piece = vec![0.0; ready.since(at).0 as usize];
            piecewise.read(at, &mut piece);
            pcm.extend(piece);
        }
        pcm.extend(read_all(&mut piecewise));
        assert!(pcm == read_all(&mut whole));
        assert_eq!(piecewise.stats().starved, 0);
    }

    #[test]
    fn a_drifting_voice_lies_where_it_was_said() {
        let said = voice(48_000 * 8);
        let packets = packets(&said, 960, false);
        let end = |n: usize| (n as f64 * 960.0 * 1.0005).round() as u64;
        let mut decoder = TrackDecoder::new(1).unwrap();
        push(&mut decoder, packets.iter().enumerate().map(|(n, p)| (end(n + 1) - end(n), packet(p))));
        let heard = read_all(&mut decoder);
        for second in [1, 4, 7] {
            let from = second * 48_000;
            // 500 ppm are 24 samples a second; the sender's encoder adds its look-ahead.
            let drift = second * 24;
            let heard = &heard[from + drift..][..4800 + 400];
            let off = lag(&said[from..from + 4800], heard, 400);
            assert!((off - 312).abs() <= 3, "second {second}: {off}");
        }
    }

    #[test]
    fn telephone_audio_lies_where_it_was_said() {
        for (codec, frame) in [(Codec::Pcmu, 160), (Codec::Pcma, 80), (Codec::Pcmu, 40), (Codec::Pcma, 240)] {
            // A-law and µ-law codes of a slow ramp up and down: exact values do not matter, only where they are.
            let codes: Vec<u8> =
                (0..8_000).map(|n: i32| if (n / 37 + n / 101) % 2 == 0 { 0x90 } else { 0x10 }).collect();
            let said: Vec<f32> = codes.iter().flat_map(|c| [if *c == 0x90 { 0.3 } else { -0.3 }; 6]).collect();
            let mut decoder = TrackDecoder::new(1).unwrap();
            let content = |payload: &[u8]| Content::Packet { codec, payload: Bytes::copy_from_slice(payload) };
            push(&mut decoder, codes.chunks_exact(frame).map(|c| (6 * c.len() as u64, content(c))));
            let heard = read_all(&mut decoder);
            let off = lag(&said[9_600..19_200], &heard[9_600..19_200 + 100], 50);
            // A held sample of six reaches half its length further than the band-limited one.
            assert!((-4..=0).contains(&off), "{codec:?} {frame}: {off}");
            assert_eq!(decoder.stats().starved, 0);
        }
    }

    #[test]
    fn sound_cut_by_silence_rings_out_instead_of_clicking() {
        let packets = packets(&tone(48_000), 960, false);
        let mut decoder = TrackDecoder::new(1).unwrap();
        push(&mut decoder, packets[..20].iter().map(|p| (960, packet(p))));
        push(&mut decoder, [(4_800, Content::Silence(Silence::Muted))]);
        push(&mut decoder, packets[25..40].iter().map(|p| (960, packet(p))));
        push(&mut decoder, [(4_800, Content::Silence(Silence::Lost))]);
        let pcm = read_all(&mut decoder);
        let slope = steepest(&pcm[9_600..14_400]);
        assert!(steepest(&pcm[14_400..]) < 1.3 * slope, "{} against {slope}", steepest(&pcm[14_400..]));
        let silence = 20 * 960 + TAIL..24 * 960;
        assert!(pcm[silence].iter().all(|s| *s == 0.0));
    }

    #[test]
    fn concealment_fades_and_what_follows_comes_back_smoothly() {
        let packets = packets(&tone(96_000), 960, false);
        let mut decoder = TrackDecoder::new(1).unwrap();
        push(&mut decoder, packets[..50].iter().map(|p| (960, packet(p))));
        let run = (0..10).map(|n| (960, Content::Concealed { into_run: SampleCount(n * 960) }));
        push(&mut decoder, run);
        push(&mut decoder, packets[60..90].iter().map(|p| (960, packet(p))));
        let pcm = read_all(&mut decoder);
        assert_eq!(pcm.len(), 90 * 960);
        let level = |slot: usize| Level::of(&pcm[slot * 960..(slot + 1) * 960]).rms;
        assert!(level(50) > 0.5 * level(49));
        assert_eq!(level(57), 0.0);
        assert!(level(62) > 0.8 * level(49));
        assert!(steepest(&pcm[40 * 960..]) < 1.5 * steepest(&pcm[20 * 960..40 * 960]));
    }

    #[test]
    fn where_a_faded_concealment_ends_there_is_no_step() {
        let packets = packets(&tone(96_000), 960, false);
        for lost in 3..6 {
            let mut decoder = TrackDecoder::new(1).unwrap();
            push(&mut decoder, packets[..50].iter().map(|p| (960, packet(p))));
            push(&mut decoder, (0..lost).map(|n| (960, Content::Concealed { into_run: SampleCount(n * 960) })));
            push(&mut decoder, packets[50 + lost as usize..90].iter().map(|p| (960, packet(p))));
            let pcm = read_all(&mut decoder);
            let seam = (50 + lost as usize) * 960;
            let slope = steepest(&pcm[20 * 960..40 * 960]);
            assert!(steepest(&pcm[seam - 2..seam + 2]) < 1.2 * slope, "{lost}: {}", steepest(&pcm[seam - 2..seam + 2]));
        }
    }

    #[test]
    fn in_band_fec_is_closer_to_what_was_lost_than_concealment() {
        let said = voice(96_000);
        let packets = packets(&said, 960, true);
        let whole = decoded(&packets, opus::Channels::Mono);
        let error = |make: &dyn Fn(usize) -> Content| {
            let mut decoder = TrackDecoder::new(1).unwrap();
            push(
                &mut decoder,
                packets.iter().enumerate().map(|(n, p)| match n % 5 {
                    4 if n + 1 < packets.len() => (960, make(n)),
                    _ => (960, packet(p)),
                }),
            );
            let heard = read_all(&mut decoder);
            heard.iter().zip(&whole).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        let recovered = error(&|n| Content::Recovered { next: packets[n + 1].clone() });
        let concealed = error(&|_| Content::Concealed { into_run: SampleCount::ZERO });
        assert!(recovered < 0.7 * concealed, "{recovered} against {concealed}");
    }

    #[test]
    fn a_packet_that_is_none_is_concealed_and_counted() {
        let packets = packets(&voice(48_000), 960, false);
        let mut decoder = TrackDecoder::new(1).unwrap();
        let broken: [&[u8]; 4] = [&[], &[0xff], &[0xfb, 0x3f, 0, 0], &[0x0b]];
        for (n, good) in packets.iter().enumerate().take(40) {
            let payload = if n % 10 == 5 { Bytes::from_static(broken[n / 10]) } else { good.clone() };
            push(&mut decoder, [(960, packet(&payload))]);
        }
        assert_eq!(read_all(&mut decoder).len(), 40 * 960);
        assert_eq!((decoder.stats().refused, decoder.stats().packets), (4, 36));
    }

    #[test]
    fn a_stretch_out_of_order_is_refused_and_nothing_changes() {
        let mut decoder = TrackDecoder::new(1).unwrap();
        let silence = |start: i64, end: i64| Settled {
            track: TrackKey(1),
            start: MediaTime(start),
            end: MediaTime(end),
            content: Content::Silence(Silence::Dtx),
        };
        decoder.push(&silence(0, 100)).unwrap();
        assert!(matches!(decoder.push(&silence(101, 200)), Err(DecodeError::OutOfOrder { .. })));
        decoder.push(&silence(100, 200)).unwrap();
        assert_eq!(decoder.ready(), Some(MediaTime(200)));
    }

    #[test]
    fn outside_of_its_stretches_a_track_is_silent_and_a_late_reader_misses_the_start() {
        let packets = packets(&voice(9_600), 960, false);
        let mut decoder = TrackDecoder::new(1).unwrap();
        let mut pcm = [1.0; 2_000];
        assert!(decoder.read(MediaTime(0), &mut pcm).silent);
        push(&mut decoder, packets.iter().map(|p| (960, packet(p))));
        decoder.finish();
        let whole = decoded(&packets, opus::Channels::Mono);
        decoder.read(MediaTime(500), &mut pcm);
        assert!(pcm[..500].iter().all(|s| *s == 0.0) && pcm[500..] == whole[..1_500]);
        decoder.read(MediaTime(4_000), &mut pcm);
        assert!(pcm[..] == whole[3_000..5_000]);
        decoder.read(MediaTime(10_000), &mut pcm);
        assert!(pcm[..600] == whole[9_000..] && pcm[600 + TAIL..].iter().all(|s| *s == 0.0));
        assert!(decoder.read(MediaTime(12_000), &mut pcm).silent);
    }

    #[test]
    fn every_packet_duration_fills_its_stretch() {
        let said = voice(48_000);
        let mut decoder = TrackDecoder::new(1).unwrap();
        let mut length = 0;
        for frame in [120, 240, 480, 960, 1920, 2880] {
            for payload in packets(&said[..frame * 6], frame, false) {
                push(&mut decoder, [(frame as u64, packet(&payload))]);
                length += frame;
            }
        }
        let pcm = read_all(&mut decoder);
        assert_eq!(pcm.len(), length);
        assert_eq!(decoder.stats().cut, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn pcm_is_as_long_as_the_timeline_whatever_comes(
            stretches in prop::collection::vec((0u8..10, -40i64..40, 1u64..9_000), 1..60),
            reads in prop::collection::vec(1usize..3_000, 1..40),
        ) {
            let good = packets(&voice(9_600), 960, true);
            let short = packets(&voice(2_400), 240, false);
            let mut decoder = TrackDecoder::new(1).unwrap();
            let mut pushed = 0;
            let mut pcm = Vec::new();
            let mut reads = reads.iter().cycle();
            for (n, (kind, drift, length)) in stretches.into_iter().enumerate() {
                let payload = &good[n % good.len()];
                let near = |samples: i64| (samples + drift).max(1) as u64;
                let stretch = match kind {
                    0..=3 => (near(960), packet(payload)),
                    4 => (near(240), packet(&short[n % short.len()])),
                    5 => (length, packet(payload)),
                    6 => (length, Content::Recovered { next: payload.clone() }),
                    7 => (length, Content::Concealed { into_run: SampleCount(length / 3) }),
                    8 => (near(960), Content::Packet { codec: Codec::Pcma, payload: vec![n as u8; 160].into() }),
                    _ => (length, Content::Silence(Silence::Dtx)),
                };
                pushed += stretch.0;
                push(&mut decoder, [stretch]);
                let (at, ready) = (decoder.position().unwrap(), decoder.ready().unwrap());
                prop_assert!(ready >= at);
                let mut piece = vec![f32::NAN; (ready.since(at).0 as usize).min(*reads.next().unwrap())];
                decoder.read(at, &mut piece);
                pcm.extend(piece);
            }
            pcm.extend(read_all(&mut decoder));
            prop_assert_eq!(pcm.len() as u64, pushed);
            prop_assert!(pcm.iter().all(|s| s.abs() < 3.0));
            prop_assert_eq!(decoder.stats().starved, 0);
        }
    }
}
