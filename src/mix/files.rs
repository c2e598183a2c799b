//! Files whose streams may hold the senders' own packets.

use serde::{Deserialize, Serialize};

use super::lane::{Lane, LaneReport, Mixing};
use super::pass_through::Grid;
use super::{Begun, Gain, MixError, MixdownConfig, TrackReport};
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::encode::{EncodeError, Mapping, OggOpusWriter, OpusConfig, OpusHead, packet};
use crate::time::{MediaTime, SampleCount};

/// One participant's sound as an Ogg Opus stream that begins at sample 0 of the timeline.
///
/// As long as one Opus track sounds at a time, its packets are passed through; they lie at most 1.25 ms off their place
/// where sound begins, and at most 20 ms as the sender's clock drifts. From the first stretch on that does not allow it,
/// the stream is transcoded, and exact.
pub struct TrackFile {
    lane: Lane,
    writer: OggOpusWriter,
}

impl TrackFile {
    /// A file without sound yet; its header pages can be taken at once. `config` says how to encode what is not passed
    /// through.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible.
    pub fn new(config: &MixdownConfig, mixing: Mixing) -> Result<Self, MixError> {
        let lane = Lane::new(&config.opus, mixing, Grid::Free)?;
        let head = Self::head(config, &lane);
        Ok(Self { writer: OggOpusWriter::new(head, &config.tags, config.serial, config.page)?, lane })
    }

    /// Goes on with a stream that another process began with the same configuration, with silence up to `begun.now`.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible, or the stream was begun with another.
    pub fn going_on(config: &MixdownConfig, mixing: Mixing, begun: &Begun) -> Result<Self, MixError> {
        let mut lane = Lane::new(&config.opus, mixing, Grid::Free)?;
        let head = Self::head(config, &lane);
        lane.go_on(begun.packets(head));
        Ok(Self { writer: begun.writer(head, config.page)?, lane })
    }

    fn head(config: &MixdownConfig, lane: &Lane) -> OpusHead {
        let mapping = if config.opus.channels() == 1 { Mapping::Mono } else { Mapping::Stereo };
        OpusHead::new(mapping, lane.pre_skip())
    }

    /// Takes the next stretch of one of the participant's tracks.
    ///
    /// # Errors
    /// [`MixError`] where the stretch does not follow the one before it, or a codec cannot be set up.
    pub fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        self.lane.push(stretch)
    }

    /// Sets how loud a track is made, before its first stretch comes. Where it is not to stay as it came, the stream is
    /// transcoded from there on.
    pub fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        self.lane.set_gain(track, gain);
    }

    /// Nothing more comes of a track.
    pub fn end_track(&mut self, track: TrackKey) {
        self.lane.end_track(track);
    }

    /// Writes up to `settled`, the point up to which everything is settled and no new track can begin.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn advance(&mut self, settled: MediaTime) -> Result<(), MixError> {
        self.lane.advance(settled)?;
        self.write()
    }

    /// Holds silence after `from` back: it is written once a sound follows or `from` is `None` again. What is held back
    /// when the stream is finished need not be part of it.
    pub fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.lane.hold_silence_from(from);
    }

    /// Ends the stream at `end`.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn finish(&mut self, end: MediaTime) -> Result<(), MixError> {
        self.drain(end)?;
        let total = end.since(MediaTime::ZERO);
        self.lane.end(total.0 + u64::from(self.lane.pre_skip()))?;
        self.write()?;
        finish(&mut self.writer, total)
    }

    /// Writes up to `end` exactly, after which nothing comes. Gives where the stream can end: there, or where the silence
    /// begins that is held back.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn drain(&mut self, end: MediaTime) -> Result<MediaTime, MixError> {
        let total = self.lane.drain(end)?;
        self.write()?;
        Ok(total.max(closed(&self.writer)))
    }

    /// Appends the finished pages to `out` and returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        self.writer.take_bytes(out)
    }

    /// The writer: where the stream stands, its header.
    pub fn writer(&self) -> &OggOpusWriter {
        &self.writer
    }

    /// What is known of the tracks that are transcoded, those that have ended included.
    pub fn tracks(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        self.lane.tracks()
    }

    /// How the stream came about.
    pub fn report(&self) -> LaneReport {
        self.lane.report()
    }

    fn write(&mut self) -> Result<(), MixError> {
        while let Some((packet, samples)) = self.lane.packets.first() {
            self.writer.write_packet(packet, samples)?;
            self.lane.packets.drop_first();
        }
        Ok(())
    }
}

/// A side of a [`DualFile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The left channel.
    Left,
    /// The right channel.
    Right,
}

impl Side {
    /// The side across.
    pub const fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// Two sides of a call as the left and right channel of one Ogg Opus stream, coded apart (mapping family 1, two streams,
/// none coupled), so that neither is heard in the other's quality.
///
/// While only one Opus track of 20 ms packets sounds on a side, its packets are passed through. Both sides share a grid of
/// 20 ms: passed packets lie up to 10 ms off their place, and up to 20 ms as clocks drift. A side that does not allow it is
/// transcoded from there on, and exact.
pub struct DualFile {
    left: Lane,
    right: Lane,
    joined: Vec<u8>,
    writer: OggOpusWriter,
}

impl DualFile {
    /// A file without sound yet; its header pages can be taken at once. `config` says how to encode each side that is not
    /// passed through.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is not mono in frames of 20 ms.
    pub fn new(config: &MixdownConfig, mixing: Mixing) -> Result<Self, MixError> {
        let (left, right) = Self::lanes(config, mixing)?;
        let head = OpusHead::new(Mapping::TwoMono, left.pre_skip());
        let writer = OggOpusWriter::new(head, &config.tags, config.serial, config.page)?;
        Ok(Self { left, right, joined: Vec::with_capacity(512), writer })
    }

    /// Goes on with a stream that another process began with the same configuration, with silence up to `begun.now`.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible, or the stream was begun with another.
    pub fn going_on(config: &MixdownConfig, mixing: Mixing, begun: &Begun) -> Result<Self, MixError> {
        let (mut left, mut right) = Self::lanes(config, mixing)?;
        let head = OpusHead::new(Mapping::TwoMono, left.pre_skip());
        left.go_on(begun.packets(head));
        right.go_on(begun.packets(head));
        Ok(Self { writer: begun.writer(head, config.page)?, left, right, joined: Vec::with_capacity(512) })
    }

    fn lanes(config: &MixdownConfig, mixing: Mixing) -> Result<(Lane, Lane), MixError> {
        let opus: &OpusConfig = &config.opus;
        if opus.channels() != 1 || opus.frame_duration().millis() != 20 {
            let value = format!("{} channels, {} ms", opus.channels(), opus.frame_duration().millis());
            let allowed = "each side is mono in frames of 20 ms";
            return Err(EncodeError::Config { setting: "encoder of a dual file", value, allowed }.into());
        }
        Ok((Lane::new(opus, mixing, Grid::Slots)?, Lane::new(opus, mixing, Grid::Slots)?))
    }

    /// Takes the next stretch of a track on one side.
    ///
    /// # Errors
    /// [`MixError`] where the stretch does not follow the one before it, or a codec cannot be set up.
    pub fn push(&mut self, side: Side, stretch: &Settled) -> Result<(), MixError> {
        self.lane(side).push(stretch)
    }

    /// Sets how loud a track is made, before its first stretch comes. Where it is not to stay as it came, the stream is
    /// transcoded from there on.
    pub fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        self.left.set_gain(track, gain);
        self.right.set_gain(track, gain);
    }

    /// Nothing more comes of a track.
    pub fn end_track(&mut self, side: Side, track: TrackKey) {
        self.lane(side).end_track(track);
    }

    /// Writes up to `settled`, the point up to which everything is settled and no new track can begin.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn advance(&mut self, settled: MediaTime) -> Result<(), MixError> {
        self.left.advance(settled)?;
        self.right.advance(settled)?;
        self.write()
    }

    /// Holds silence after `from` back: it is written once a sound follows or `from` is `None` again. What is held back
    /// when the stream is finished need not be part of it.
    pub fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.left.hold_silence_from(from);
        self.right.hold_silence_from(from);
    }

    /// Ends the stream at `end`.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn finish(&mut self, end: MediaTime) -> Result<(), MixError> {
        self.drain(end)?;
        let total = end.since(MediaTime::ZERO);
        let samples = total.0 + u64::from(self.left.pre_skip());
        self.left.end(samples)?;
        self.right.end(samples)?;
        self.write()?;
        finish(&mut self.writer, total)
    }

    /// Writes up to `end` exactly, after which nothing comes. Gives where the stream can end: there, or where the silence
    /// begins that is held back on both sides.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn drain(&mut self, end: MediaTime) -> Result<MediaTime, MixError> {
        let total = self.left.drain(end)?.max(self.right.drain(end)?);
        self.write()?;
        Ok(total.max(closed(&self.writer)))
    }

    /// Appends the finished pages to `out` and returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        self.writer.take_bytes(out)
    }

    /// The writer: where the stream stands, its header.
    pub fn writer(&self) -> &OggOpusWriter {
        &self.writer
    }

    /// What is known of the tracks that are transcoded, those that have ended included.
    pub fn tracks(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        self.left.tracks().chain(self.right.tracks())
    }

    /// How a side came about.
    pub fn report(&self, side: Side) -> LaneReport {
        match side {
            Side::Left => self.left.report(),
            Side::Right => self.right.report(),
        }
    }

    fn lane(&mut self, side: Side) -> &mut Lane {
        match side {
            Side::Left => &mut self.left,
            Side::Right => &mut self.right,
        }
    }

    fn write(&mut self) -> Result<(), MixError> {
        while let (Some((left, samples)), Some((right, _))) = (self.left.packets.first(), self.right.packets.first()) {
            self.joined.clear();
            if packet::join_streams(left, right, &mut self.joined).is_err() {
                // One of the two senders does not keep to the format; its packet is worth nothing to anybody.
                let sound =
                    |packet: &[u8]| packet::join_streams(packet, &packet::SILENCE_20_MS, &mut Vec::new()).is_ok();
                let left = if sound(left) { left } else { &packet::SILENCE_20_MS };
                let right = if sound(right) { right } else { &packet::SILENCE_20_MS };
                self.joined.clear();
                packet::join_streams(left, right, &mut self.joined)?;
            }
            self.writer.write_packet(&self.joined, samples)?;
            self.left.packets.drop_first();
            self.right.packets.drop_first();
        }
        Ok(())
    }
}

/// Ends a stream at `total`, or at the start of its last page where that lies a few packets later.
fn finish(writer: &mut OggOpusWriter, total: SampleCount) -> Result<(), MixError> {
    let closed = closed(writer).since(MediaTime::ZERO);
    Ok(writer.finish(total.max(closed))?)
}

/// Up to where the pages that are closed play.
fn closed(writer: &OggOpusWriter) -> MediaTime {
    MediaTime(writer.state().granule.saturating_sub(u64::from(writer.head().pre_skip)) as i64)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::Codec;
    use crate::capture::{Content, Silence, toc};
    use crate::decode::Level;
    use crate::encode::{OggInspector, OpusEncoder, OpusTags};
    use crate::mix::Unpassable;

    const ALICE: TrackKey = TrackKey(1);
    const BOB: TrackKey = TrackKey(2);

    fn config() -> MixdownConfig {
        MixdownConfig {
            opus: OpusConfig::mono(),
            tags: OpusTags::new(),
            serial: 1,
            page: SampleCount::from_millis(1000),
        }
    }

    /// Packets of a tone that swells and fades every 200 ms, `frame` samples each.
    fn tone(count: usize, frame: usize, step: f32) -> Vec<Bytes> {
        let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Audio).unwrap();
        let mut packet = [0; 1500];
        (0..count)
            .map(|n| {
                let pcm: Vec<f32> = (n * frame..(n + 1) * frame)
                    .map(|n| (0.3 + 0.1 * (n as f32 / 9600.0).sin()) * (n as f32 * step).sin())
                    .collect();
                let len = encoder.encode_float(&pcm, &mut packet).unwrap();
                Bytes::copy_from_slice(&packet[..len])
            })
            .collect()
    }

    /// Packets of a noise like speech, with in-band FEC.
    fn speech(count: usize) -> Vec<Bytes> {
        let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
        encoder.set_bitrate(opus::Bitrate::Bits(24_000)).unwrap();
        encoder.set_inband_fec(true).unwrap();
        encoder.set_packet_loss_perc(30).unwrap();
        let mut random = fastrand::Rng::with_seed(1);
        let mut smooth = 0.0;
        let mut sample = || {
            smooth = 0.95 * smooth + 0.3 * (random.f32() - 0.5);
            smooth
        };
        let mut packet = || encoder.encode_vec_float(&[(); 960].map(|()| sample()), 1500).unwrap().into();
        (0..count).map(|_| packet()).collect()
    }

    fn opus(payload: &Bytes) -> Content {
        Content::Packet { codec: Codec::Opus, payload: payload.clone() }
    }

    /// Stretches one after the other from `start` on.
    fn chain(track: TrackKey, start: i64, stretches: impl IntoIterator<Item = (i64, Content)>) -> Vec<Settled> {
        let mut at = start;
        let mut stretch = |(length, content)| {
            let start = MediaTime(at);
            at += length;
            Settled { track, start, end: MediaTime(at), content }
        };
        stretches.into_iter().map(&mut stretch).collect()
    }

    fn packets_in(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let mut inspector = OggInspector::new();
        inspector.push_each(bytes, &mut |packet| packets.push(packet.to_vec()));
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        packets
    }

    fn play(bytes: &[u8], channel: usize) -> Vec<f32> {
        let mut inspector = OggInspector::new();
        let mut pcm = Vec::new();
        let mut decoders = [(); 2].map(|()| opus::Decoder::new(48_000, opus::Channels::Mono).unwrap());
        let mut frame = vec![0.0; 5760];
        let mut first = Vec::new();
        let dual = bytes[28 + 18] == 1;
        inspector.push_each(bytes, &mut |packet| {
            let side = if dual {
                let second = packet::split_streams(packet, &mut first).unwrap();
                if channel == 0 { &first[..] } else { second }
            } else {
                packet
            };
            let frames = decoders[channel].decode_float(side, &mut frame, false).unwrap();
            pcm.extend_from_slice(&frame[..frames]);
        });
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        pcm[312..312 + found.duration.0 as usize].to_vec()
    }

    fn write(stretches: &[Settled], mixing: Mixing, end: i64) -> (Vec<u8>, LaneReport) {
        let mut file = TrackFile::new(&config(), mixing).unwrap();
        let mut bytes = Vec::new();
        let first = stretches.first().unwrap();
        file.advance(first.start).unwrap();
        for stretch in stretches {
            file.push(stretch).unwrap();
            file.advance(stretch.end).unwrap();
            file.take_bytes(&mut bytes);
        }
        file.finish(MediaTime(end)).unwrap();
        file.take_bytes(&mut bytes);
        (bytes, file.report())
    }

    #[test]
    fn packets_pass_untouched_and_gaps_become_silence() {
        let sent = tone(50, 960, 0.05);
        let slice = |range: std::ops::Range<usize>| sent[range].iter().map(|p| (960, opus(p))).collect::<Vec<_>>();
        let mut stretches = slice(0..20);
        stretches.push((10_000, Content::Silence(Silence::Dtx)));
        stretches.extend(slice(20..50));
        let end = 30_001 + 50 * 960 + 10_000;
        let (bytes, report) = write(&chain(ALICE, 30_001, stretches), Mixing::Auto, end);
        let written = packets_in(&bytes);
        let passed: Vec<_> = written.iter().filter(|packet| packet.len() > 3).cloned().collect();
        assert_eq!(passed, sent);
        assert_eq!((report.pass.passed, report.transcoded_from), (50, None));
        let pcm = play(&bytes, 0);
        assert_eq!(pcm.len() as i64, end);
        assert!(Level::of(&pcm[..29_000]).peak < 1e-6);
        assert!(Level::of(&pcm[30_001 + 960..][..960 * 18]).rms > 0.15);
    }

    #[test]
    fn passed_and_transcoded_sound_lies_at_the_same_place() {
        let sent = speech(50);
        let stretches = chain(ALICE, 30_001, sent.iter().map(|p| (960, opus(p))));
        let [passed, transcoded] = [Mixing::Auto, Mixing::Transcode].map(|mixing| {
            let (bytes, _) = write(&stretches, mixing, 80_000);
            play(&bytes, 0)
        });
        let likeness =
            |lag: i64| -> f32 { (40_000..70_000).map(|n| passed[n] * transcoded[(n as i64 + lag) as usize]).sum() };
        let best = (-200..=200).max_by(|a, b| likeness(*a).total_cmp(&likeness(*b))).unwrap();
        assert!(best.abs() <= 60, "{best} samples apart");
    }

    #[test]
    fn losses_are_left_to_the_player_to_conceal_and_long_ones_are_silent() {
        let sent = tone(50, 960, 0.05);
        let mut stretches: Vec<_> = sent[..20].iter().map(|p| (960, opus(p))).collect();
        stretches.push((961, Content::Recovered { next: sent[21].clone() }));
        stretches.push((960, opus(&sent[21])));
        stretches.extend((0..6).map(|n| (960, Content::Concealed { into_run: SampleCount(n * 960) })));
        stretches.push((48_000, Content::Silence(Silence::Lost)));
        stretches.push((960, opus(&sent[40])));
        let end: i64 = stretches.iter().map(|s| s.0).sum();
        let (bytes, report) = write(&chain(ALICE, 0, stretches), Mixing::Auto, end);
        assert_eq!((report.pass.passed, report.pass.concealed), (22, 4));
        assert_eq!(play(&bytes, 0).len() as i64, end);
    }

    #[test]
    fn drift_is_taken_back_where_it_is_quiet_and_only_there() {
        for ppm in [-2_000.0, 2_000.0] {
            let loud = tone(400, 960, 0.05);
            let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
            let mut random = fastrand::Rng::with_seed(1);
            let mut murmur = || -> Bytes {
                let pcm: Vec<f32> = (0..960).map(|_| 0.001 * (random.f32() - 0.5)).collect();
                Bytes::copy_from_slice(encoder.encode(&pcm).unwrap())
            };
            let packets: Vec<Bytes> =
                (0..1_200).map(|n| if n % 400 < 300 { loud[n % 400].clone() } else { murmur() }).collect();
            let at = |n: usize| (n as f64 * 960.0 * (1.0 + ppm * 1e-6)).round() as i64;
            let stretches = packets.iter().enumerate().map(|(n, p)| (at(n + 1) - at(n), opus(p)));
            let (bytes, report) = write(&chain(ALICE, 0, stretches), Mixing::Auto, at(1_200));
            assert_eq!(report.because, None);
            let corrected = report.pass.dropped + report.pass.inserted;
            assert!((2..=4).contains(&corrected), "{ppm} ppm: {:?}", report.pass);
            assert_eq!(report.pass.dropped > 0, ppm < 0.0);
            let written = packets_in(&bytes);
            let loud_sent = (0..1_200).filter(|n| n % 400 < 300).count();
            let loud_written = written.iter().filter(|packet| loud.iter().any(|l| l[..] == packet[..])).count();
            assert_eq!(loud_written, loud_sent, "{ppm} ppm");
        }
    }

    #[test]
    fn drift_without_a_silence_ends_in_transcoding() {
        let packets = tone(1_000, 960, 0.05);
        let stretches = packets.iter().enumerate().map(|(n, p)| (960 + (n as i64 % 4 == 0) as i64 * 8, opus(p)));
        let (bytes, report) = write(&chain(ALICE, 0, stretches), Mixing::Auto, 962_000);
        assert!(matches!(report.because, Some(Unpassable::Drift { .. })), "{report:?}");
        let from = report.transcoded_from.unwrap().0 as usize;
        let pcm = play(&bytes, 0);
        let levels: Vec<f32> = pcm[from - 9_600..from + 9_600].chunks(480).map(|c| Level::of(c).rms).collect();
        assert!(levels.iter().all(|level| *level > 0.1 && *level < 0.4), "{levels:?}");
    }

    #[test]
    fn what_is_not_opus_is_transcoded() {
        let telephone = (0..100).map(|n| {
            let payload = (0..160).map(|k| if (n * 160 + k) % 16 < 8 { 0x90 } else { 0x10 }).collect();
            (960, Content::Packet { codec: Codec::Pcmu, payload })
        });
        let (bytes, report) = write(&chain(ALICE, 4_800, telephone), Mixing::Auto, 100_800);
        assert_eq!((report.because, report.pass.passed), (Some(Unpassable::NotOpus), 0));
        let pcm = play(&bytes, 0);
        assert_eq!(pcm.len(), 100_800);
        assert!(Level::of(&pcm[10_000..90_000]).rms > 0.05);
    }

    #[test]
    fn a_spare_copy_of_what_was_withheld_is_not_passed() {
        let sent = speech(40);
        assert!(toc::in_band_fec(&sent[30]).is_some());
        let mut stretches: Vec<_> = sent[..20].iter().map(|p| (960, opus(p))).collect();
        stretches.push((9_600, Content::Silence(Silence::Withheld)));
        stretches.extend(sent[30..].iter().map(|p| (960, opus(p))));
        let (bytes, report) = write(&chain(ALICE, 0, stretches), Mixing::Auto, 38_400);
        assert_eq!((report.pass.passed, report.pass.recoded), (29, 1));
        let written = packets_in(&bytes);
        assert!(written.iter().all(|packet| packet[..] != sent[30][..]));
        assert!(written[31..].iter().any(|packet| packet[..] == sent[31][..]));
    }

    #[test]
    fn silence_that_is_held_back_can_be_trimmed_and_comes_back_before_a_sound() {
        for mixing in [Mixing::Auto, Mixing::Transcode] {
            for returns in [false, true] {
                let mut file = TrackFile::new(&config(), mixing).unwrap();
                let sent = tone(50, 960, 0.05);
                let sound = |track, start| chain(track, start, sent.iter().map(|p| (960, opus(p))));
                sound(ALICE, 0).iter().for_each(|stretch| file.push(stretch).unwrap());
                file.end_track(ALICE);
                file.hold_silence_from(Some(MediaTime(48_000)));
                file.advance(MediaTime(5 * 48_000)).unwrap();
                if returns {
                    sound(BOB, 5 * 48_000).iter().for_each(|stretch| file.push(stretch).unwrap());
                }
                let end = if returns { 6 * 48_000 } else { 48_000 };
                file.finish(MediaTime(end)).unwrap();
                let mut bytes = Vec::new();
                file.take_bytes(&mut bytes);
                let pcm = play(&bytes, 0);
                assert_eq!(pcm.len() as i64, end, "{mixing:?}");
                assert!(!returns || Level::of(&pcm[5 * 48_000 + 960..6 * 48_000 - 960]).rms > 0.15, "{mixing:?}");
            }
        }
    }

    #[test]
    fn both_sides_of_a_call_stay_on_their_side() {
        for mixing in [Mixing::Auto, Mixing::Transcode] {
            let mut file = DualFile::new(&config(), mixing).unwrap();
            let mut bytes = Vec::new();
            let alice = chain(ALICE, 0, tone(50, 960, 0.05).iter().map(|p| (960, opus(p))));
            let bob = chain(BOB, 500, tone(100, 960, 0.03).iter().map(|p| (960, opus(p))));
            for (n, theirs) in bob.iter().enumerate() {
                if let Some(stretch) = alice.get(n) {
                    file.push(Side::Left, stretch).unwrap();
                }
                if n == 50 {
                    file.end_track(Side::Left, ALICE);
                }
                file.push(Side::Right, theirs).unwrap();
                file.advance(theirs.start.min(MediaTime((n as i64 + 1) * 960))).unwrap();
                file.take_bytes(&mut bytes);
            }
            file.finish(MediaTime(96_500)).unwrap();
            file.take_bytes(&mut bytes);
            let (left, right) = (play(&bytes, 0), play(&bytes, 1));
            assert_eq!((left.len(), right.len()), (96_500, 96_500));
            assert!(Level::of(&left[2_000..47_000]).rms > 0.15);
            assert!(Level::of(&left[51_000..]).rms < 0.001, "{mixing:?} {:?}", Level::of(&left[51_000..]));
            assert!(Level::of(&right[2_000..95_000]).rms > 0.15);
            assert_eq!(file.report(Side::Left).pass.passed, if mixing == Mixing::Auto { 50 } else { 0 });
        }
    }

    #[test]
    fn a_second_track_on_a_side_makes_it_a_mix() {
        let alice = chain(ALICE, 0, tone(60, 960, 0.05).iter().map(|p| (960, opus(p))));
        let bob = chain(BOB, 28_800, tone(30, 960, 0.03).iter().map(|p| (960, opus(p))));
        let mut file = TrackFile::new(&config(), Mixing::Auto).unwrap();
        let mut bytes = Vec::new();
        for (n, stretch) in alice.iter().enumerate() {
            file.push(stretch).unwrap();
            if n >= 30 {
                file.push(&bob[n - 30]).unwrap();
            }
            file.advance(stretch.end).unwrap();
        }
        file.finish(MediaTime(57_600)).unwrap();
        file.take_bytes(&mut bytes);
        assert_eq!(file.report().because, Some(Unpassable::Several));
        let pcm = play(&bytes, 0);
        let (one, two) = (Level::of(&pcm[10_000..28_000]).rms, Level::of(&pcm[32_000..56_000]).rms);
        assert!(two > 1.25 * one, "{one} {two}");
        let around: Vec<f32> = pcm[28_800 - 4_800..28_800].chunks(480).map(|c| Level::of(c).rms).collect();
        assert!(around.iter().all(|level| *level > 0.1), "{around:?}");
    }
}
