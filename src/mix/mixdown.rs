//! The whole way from settled stretches of many tracks to one Ogg Opus stream.

use super::begun::Begun;
use super::forward::{ForwardReport, Forwarder};
use super::packets::Packets;
use super::transcoder::{TrackReport, Transcoder};
use super::{Gain, MixError, Mixing};
use crate::analysis::Analysis;
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::encode::{Mapping, OggOpusWriter, OpusConfig, OpusHead, OpusTags};
use crate::time::{MediaTime, SampleCount};

/// How to mix down.
#[derive(Clone, Debug)]
pub struct MixdownConfig {
    /// How to encode; its channels are the mix's channels.
    pub opus: OpusConfig,
    /// Comments of the stream.
    pub tags: OpusTags,
    /// Serial number of the Ogg stream.
    pub serial: u32,
    /// How much audio a page holds; about a second is usual.
    pub page: SampleCount,
}

/// Mixes all tracks of a call into one Ogg Opus stream that begins at sample 0 of the timeline.
///
/// With [`Mixing::Auto`] a mono stream holds the talkers' own packets wherever only one talks; for that it lags half a
/// second behind what is settled. What more than one says, and what cannot be forwarded, is decoded, mixed and encoded.
///
/// Push stretches as they are settled, then [`advance`](Self::advance) to where all tracks are settled, and take the
/// bytes. In the steady state nothing is allocated.
pub struct Mixdown {
    path: Path,
    packets: Packets,
    writer: OggOpusWriter,
}

enum Path {
    Transcode(Box<Transcoder>),
    Forward(Box<Forwarder>),
}

impl Path {
    fn new(config: &MixdownConfig, mixing: Mixing) -> Result<Self, MixError> {
        Ok(if config.opus.channels() == 1 && mixing == Mixing::Auto {
            Self::Forward(Box::new(Forwarder::new(&config.opus)?))
        } else {
            Self::Transcode(Box::new(Transcoder::new(&config.opus)?))
        })
    }

    fn head(&self, config: &MixdownConfig) -> OpusHead {
        let mapping = if config.opus.channels() == 1 { Mapping::Mono } else { Mapping::Stereo };
        let pre_skip = match self {
            Self::Transcode(transcoder) => transcoder.pre_skip(),
            Self::Forward(forwarder) => forwarder.pre_skip(),
        };
        OpusHead::new(mapping, pre_skip)
    }
}

impl Mixdown {
    /// A mixdown without tracks; its header pages can be taken at once.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible.
    pub fn new(config: &MixdownConfig, mixing: Mixing) -> Result<Self, MixError> {
        let path = Path::new(config, mixing)?;
        let writer = OggOpusWriter::new(path.head(config), &config.tags, config.serial, config.page)?;
        Ok(Self { path, packets: Packets::default(), writer })
    }

    /// Goes on with a stream that another process began with the same configuration: silence up to `begun.now`, and the
    /// mix from there on.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible, or the stream was begun with another.
    pub fn going_on(config: &MixdownConfig, mixing: Mixing, begun: &Begun) -> Result<Self, MixError> {
        let mut path = Path::new(config, mixing)?;
        let head = path.head(config);
        let writer = begun.writer(head, config.page)?;
        let packets = begun.packets(head);
        if let Path::Transcode(transcoder) = &mut path {
            **transcoder = Transcoder::taking_over(&config.opus, packets.written())?;
        }
        Ok(Self { path, packets, writer })
    }

    /// Lets `analysis` hear the mix as it is encoded, from now on. Without one, nothing is spent on it; with one, what is
    /// forwarded is decoded, too.
    pub fn analyse(&mut self, analysis: Analysis) {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.analyse(analysis),
            Path::Forward(forwarder) => forwarder.analyse(analysis),
        }
    }

    /// The analysis of the mix, whole once the stream has ended.
    pub fn take_analysis(&mut self) -> Option<Analysis> {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.take_analysis(),
            Path::Forward(forwarder) => forwarder.take_analysis(),
        }
    }

    /// Takes the next stretch of a track. A track that is new joins at the stretch's start.
    ///
    /// # Errors
    /// [`MixError::Decode`] where the stretch does not follow the one before it, or a codec cannot be set up.
    pub fn push(&mut self, stretch: &Settled) -> Result<(), MixError> {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.push(stretch),
            Path::Forward(forwarder) => forwarder.push(stretch),
        }
    }

    /// Nothing more comes of a track.
    pub fn end_track(&mut self, track: TrackKey) {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.end_track(track),
            Path::Forward(forwarder) => forwarder.end_track(track),
        }
    }

    /// Sets how loud a track is made, from the next frame on. It may be set before the track's first stretch comes.
    pub fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.set_gain(track, gain),
            Path::Forward(forwarder) => forwarder.set_gain(track, gain),
        }
    }

    /// Makes the stream up to `settled`, the point up to which every track has been settled and no new one can begin, as
    /// far as is known what follows: whole 20 ms slots, and half a second less where packets are forwarded. A track whose
    /// last stretch sounds holds the mix back to that stretch's start until the next one, unless it has ended.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn advance(&mut self, settled: MediaTime) -> Result<(), MixError> {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.advance(settled, &mut self.packets)?,
            Path::Forward(forwarder) => forwarder.advance(settled, &mut self.packets)?,
        }
        self.write()
    }

    /// Holds silence after `from` back: it is written once a sound follows or `from` is `None` again, and trimmed where
    /// neither comes.
    pub fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.hold_silence_from(from),
            Path::Forward(forwarder) => forwarder.hold_silence_from(from),
        }
    }

    /// Makes the stream up to `end` exactly and ends it there, or where the silence begins that is held back. Gives the
    /// stream's length. `end` must not lie before what was mixed.
    ///
    /// # Errors
    /// [`MixError::Encode`]: with [`EncodeError::End`](crate::encode::EncodeError::End) where `end` lies too far back,
    /// with [`EncodeError::Ended`](crate::encode::EncodeError::Ended) the second time.
    pub fn finish(&mut self, end: MediaTime) -> Result<SampleCount, MixError> {
        let total = self.drain(end)?;
        self.end_at(total)?;
        Ok(total.since(MediaTime::ZERO))
    }

    /// Makes the stream up to `end` exactly, after which nothing comes. Gives where the stream can end: there, or where
    /// the silence begins that is held back. `end` must not lie before what was mixed.
    ///
    /// # Errors
    /// [`MixError::Encode`].
    pub fn drain(&mut self, end: MediaTime) -> Result<MediaTime, MixError> {
        let total = match &mut self.path {
            Path::Transcode(transcoder) => transcoder.drain(end, &mut self.packets)?,
            Path::Forward(forwarder) => forwarder.drain(end, &mut self.packets)?,
        };
        self.write()?;
        Ok(total)
    }

    /// Ends a stream that was [drained](Self::drain) at `total`, at the earliest where that said.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub fn end_at(&mut self, total: MediaTime) -> Result<(), MixError> {
        let total = total.since(MediaTime::ZERO);
        let samples = total.0 + u64::from(self.writer.head().pre_skip);
        match &mut self.path {
            Path::Transcode(transcoder) => transcoder.end(samples, &mut self.packets)?,
            Path::Forward(forwarder) => forwarder.end(samples, &mut self.packets)?,
        }
        self.write()?;
        Ok(self.writer.finish(total)?)
    }

    /// Appends the finished pages to `out` and returns how many bytes these were.
    pub fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        self.writer.take_bytes(out)
    }

    /// End of what was mixed or forwarded.
    pub fn position(&self) -> MediaTime {
        match &self.path {
            Path::Transcode(transcoder) => transcoder.position(),
            Path::Forward(forwarder) => forwarder.position(&self.packets),
        }
    }

    /// The writer: where the stream stands, its header.
    pub fn writer(&self) -> &OggOpusWriter {
        &self.writer
    }

    /// The lowest gain the limiter has applied so far, 1 where it never acted.
    pub fn least_gain(&self) -> f32 {
        match &self.path {
            Path::Transcode(transcoder) => transcoder.least_gain(),
            Path::Forward(forwarder) => forwarder.least_gain(),
        }
    }

    /// What is known of each track that was ever decoded, those that have ended included.
    pub fn tracks(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        let transcoder = match &self.path {
            Path::Transcode(transcoder) => transcoder,
            Path::Forward(forwarder) => forwarder.transcoder(),
        };
        transcoder.tracks()
    }

    /// What was forwarded and why the rest was not; `None` where everything is transcoded.
    pub fn forwarded(&self) -> Option<ForwardReport> {
        match &self.path {
            Path::Transcode(_) => None,
            Path::Forward(forwarder) => Some(forwarder.report()),
        }
    }

    fn write(&mut self) -> Result<(), MixError> {
        while let Some((packet, samples)) = self.packets.first() {
            self.writer.write_packet(packet, samples)?;
            self.packets.drop_first();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::Codec;
    use crate::capture::{Content, Silence};
    use crate::decode::Level;
    use crate::encode::{OggInspector, OpusEncoder};

    const ALICE: TrackKey = TrackKey(1);
    const BOB: TrackKey = TrackKey(2);

    fn mixdown() -> Mixdown {
        let config = MixdownConfig {
            opus: OpusConfig::mono(),
            tags: OpusTags::new(),
            serial: 1,
            page: SampleCount::from_millis(1000),
        };
        Mixdown::new(&config, Mixing::Transcode).unwrap()
    }

    fn settled(track: TrackKey, start: i64, end: i64, content: Content) -> Settled {
        Settled { track, start: MediaTime(start), end: MediaTime(end), content }
    }

    /// Packets of a tone that fades in and out over `count` packets, on the timeline from `start` on.
    fn burst(track: TrackKey, start: i64, count: i64, step: f32) -> Vec<Settled> {
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        let len = count * 960;
        (0..count)
            .map(|n| {
                let pcm: Vec<f32> = (n * 960..(n + 1) * 960)
                    .map(|n| {
                        let shape = (n as f32 / len as f32 * std::f32::consts::PI).sin();
                        0.4 * shape * (n as f32 * step).sin()
                    })
                    .collect();
                let payload = Bytes::copy_from_slice(encoder.encode(&pcm).unwrap());
                let at = start + n * 960;
                settled(track, at, at + 960, Content::Packet { codec: Codec::Opus, payload })
            })
            .collect()
    }

    fn play(bytes: &[u8]) -> Vec<f32> {
        let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
        let (mut pcm, mut frame) = (Vec::new(), vec![0.0; 5760]);
        let mut inspector = OggInspector::new();
        inspector.push_each(bytes, &mut |packet| {
            let frames = decoder.decode_float(packet, &mut frame, false).unwrap();
            pcm.extend_from_slice(&frame[..frames]);
        });
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        let skip = usize::from(found.head.unwrap().pre_skip);
        pcm[skip..skip + found.duration.0 as usize].to_vec()
    }

    /// Centre of the sound's energy, in samples.
    fn centre(pcm: &[f32]) -> f64 {
        let energy = |s: &f32| f64::from(s * s);
        let total: f64 = pcm.iter().map(energy).sum();
        pcm.iter().enumerate().map(|(n, s)| n as f64 * energy(s)).sum::<f64>() / total
    }

    #[test]
    fn sounds_lie_where_they_were_said_and_the_end_is_exact() {
        let mut mixdown = mixdown();
        let mut bytes = Vec::new();
        let start = 40_007;
        mixdown.push(&settled(ALICE, 0, start, Content::Silence(Silence::NotStarted))).unwrap();
        for stretch in burst(ALICE, start, 20, 0.05) {
            mixdown.push(&stretch).unwrap();
            mixdown.advance(stretch.end).unwrap();
            mixdown.take_bytes(&mut bytes);
        }
        let end = start + 20 * 960;
        mixdown.push(&settled(ALICE, end, 100_001, Content::Silence(Silence::Muted))).unwrap();
        mixdown.finish(MediaTime(100_001)).unwrap();
        mixdown.take_bytes(&mut bytes);
        let pcm = play(&bytes);
        assert_eq!(pcm.len(), 100_001);
        // The burst is symmetric; its sender's encoder delayed it by its look-ahead of 312 samples.
        let expected = f64::from(start as i32) + 9600.0 + 312.0;
        assert!((centre(&pcm) - expected).abs() < 24.0, "{} instead of {expected}", centre(&pcm));
    }

    #[test]
    fn gains_are_heard() {
        let said = burst(ALICE, 0, 1_000, 0.05);
        let level = |gain: Option<Gain>| {
            let mut mixdown = mixdown();
            if let Some(gain) = gain {
                mixdown.set_gain(ALICE, gain);
            }
            said.iter().for_each(|stretch| mixdown.push(stretch).unwrap());
            mixdown.finish(MediaTime(960_000)).unwrap();
            let mut bytes = Vec::new();
            mixdown.take_bytes(&mut bytes);
            20.0 * Level::of(&play(&bytes)[480_000..576_000]).rms.log10()
        };
        let plain = level(None);
        let softer = level(Some(Gain::factor(0.25))) - plain;
        assert!((softer + 12.0).abs() < 0.5, "{softer} dB");
        let levelled = level(Some(Gain { target_lufs: Some(-30.0), ..Gain::UNITY })) - plain;
        assert!((-12.5..-8.0).contains(&levelled), "{levelled} dB");
    }

    #[test]
    fn silence_that_is_held_back_is_trimmed_unless_a_sound_follows() {
        for (returns, seconds) in [(false, 1), (true, 4)] {
            let mut mixdown = mixdown();
            burst(ALICE, 0, 50, 0.05).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
            mixdown.end_track(ALICE);
            mixdown.hold_silence_from(Some(MediaTime(48_000)));
            mixdown.advance(MediaTime(3 * 48_000)).unwrap();
            if returns {
                burst(BOB, 3 * 48_000, 50, 0.05).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
                mixdown.hold_silence_from(None);
            }
            let end = MediaTime(if returns { 4 } else { 3 } * 48_000);
            let total = mixdown.finish(end).unwrap();
            // What rings on of the last sound is no silence.
            assert!((seconds * 48_000..=seconds * 48_000 + 960).contains(&total.0), "{total:?}");
            let mut bytes = Vec::new();
            mixdown.take_bytes(&mut bytes);
            let pcm = play(&bytes);
            assert_eq!(pcm.len() as u64, total.0);
            if returns {
                let found = centre(&pcm[2 * 48_000..]);
                // The second coding does not keep the shape of the burst exactly.
                assert!((found - 72_000.0 - 312.0).abs() < 96.0, "{found}");
            }
        }
    }

    #[test]
    fn a_track_holds_the_mix_back_until_it_is_settled_and_lets_go_when_it_ends() {
        let mut mixdown = mixdown();
        burst(ALICE, 0, 10, 0.05).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
        burst(BOB, 0, 5, 0.04).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
        mixdown.advance(MediaTime(9600)).unwrap();
        assert_eq!(mixdown.position(), MediaTime(4 * 960));
        mixdown.end_track(BOB);
        mixdown.advance(MediaTime(9600)).unwrap();
        assert_eq!(mixdown.position(), MediaTime(9 * 960));
        assert_eq!(
            mixdown.tracks().map(|(key, report)| (key, report.stats.packets)).collect::<Vec<_>>(),
            [(ALICE, 10), (BOB, 5)]
        );
        mixdown.finish(MediaTime(9600)).unwrap();
        assert!(mixdown.finish(MediaTime(9600)).is_err());
    }

    #[test]
    fn a_call_without_a_sound_is_silence_of_its_length() {
        let mut mixdown = mixdown();
        mixdown.advance(MediaTime(48_000 * 60)).unwrap();
        mixdown.finish(MediaTime(48_000 * 60 + 1)).unwrap();
        let mut bytes = Vec::new();
        mixdown.take_bytes(&mut bytes);
        let pcm = play(&bytes);
        assert_eq!(pcm.len(), 48_000 * 60 + 1);
        assert!(Level::of(&pcm).peak < 1e-6);
        assert!(bytes.len() < 20_000, "{} bytes", bytes.len());
    }

    #[test]
    fn every_frame_duration_ends_exactly() {
        for millis in [10, 20, 40, 60] {
            for end in [0, 1, 647, 648, 649, 47_688, 48_000, 48_001] {
                let mut opus = OpusConfig::mono();
                opus.frame(millis.try_into().unwrap());
                let tags = OpusTags::new();
                let page = SampleCount::from_millis(1000);
                let mut mixdown =
                    Mixdown::new(&MixdownConfig { opus, tags, serial: 1, page }, Mixing::Transcode).unwrap();
                mixdown.advance(MediaTime(end)).unwrap();
                mixdown.finish(MediaTime(end)).unwrap();
                let mut bytes = Vec::new();
                mixdown.take_bytes(&mut bytes);
                assert_eq!(play(&bytes).len() as i64, end, "{millis} ms, {end} samples");
            }
        }
    }
}
