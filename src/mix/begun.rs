//! Streams that a process began which died, and another goes on with.

use super::packets::Packets;
use crate::encode::{EncodeError, OggOpusWriter, OggState, OpusHead};
use crate::time::{MediaTime, SampleCount};

/// A stream that another process began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// How it begins.
    pub head: OpusHead,
    /// Where its last page left it.
    pub state: OggState,
    /// Up to where nobody recorded.
    pub now: MediaTime,
}

impl Begun {
    /// A writer that goes on with it, if its streams begin with `head`.
    pub(super) fn writer(&self, head: OpusHead, page: SampleCount) -> Result<OggOpusWriter, EncodeError> {
        if self.head != head {
            let (value, allowed) = (format!("{:?}", self.head), "the header that the same configuration makes");
            return Err(EncodeError::Config { setting: "stream that was begun", value, allowed });
        }
        OggOpusWriter::resume(head, self.state, page)
    }

    /// Its packets from its last page on: silence, for now.
    pub(super) fn packets(&self, head: OpusHead) -> Packets {
        let now = u64::try_from(self.now.0).unwrap_or(0) + u64::from(head.pre_skip);
        Packets::going_on(self.state.granule, now)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::{Codec, TrackKey};
    use crate::capture::{Content, Settled};
    use crate::encode::{OggInspector, OpusConfig, OpusEncoder, OpusTags};
    use crate::mix::{DualFile, Mixdown, MixdownConfig, Mixing, Side, TrackFile};

    const ALICE: TrackKey = TrackKey(1);

    fn config() -> MixdownConfig {
        let page = SampleCount::from_millis(250);
        MixdownConfig { opus: OpusConfig::mono(), tags: OpusTags::new(), serial: 1, page }
    }

    /// A burst of a second, from `start` on.
    fn burst(start: i64) -> Vec<Settled> {
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        let packet = |n: i64| {
            let sample = |n: i64| 0.4 * (n as f32 / 48_000.0 * std::f32::consts::PI).sin() * (n as f32 * 0.06).sin();
            let pcm: Vec<f32> = (n * 960..(n + 1) * 960).map(sample).collect();
            let payload = Bytes::copy_from_slice(encoder.encode(&pcm).unwrap());
            let (track, at) = (ALICE, MediaTime(start + n * 960));
            let content = Content::Packet { codec: Codec::Opus, payload };
            Settled { track, start: at, end: at + SampleCount(960), content }
        };
        (0..50).map(packet).collect()
    }

    /// The loudness of each tenth of a second.
    fn play(bytes: &[u8]) -> (Vec<f32>, SampleCount) {
        let mut inspector = OggInspector::new();
        let (mut pcm, mut frame) = (Vec::new(), vec![0.0; 5760 * 2]);
        let mut packets = Vec::new();
        inspector.push_each(bytes, &mut |packet| packets.push(packet.to_vec()));
        let found = inspector.finish();
        assert!(found.is_clean(), "{:?}", found.problems);
        let head = found.head.unwrap();
        let mapping: &[u8] = if head.mapping == crate::encode::Mapping::TwoMono { &[0, 1] } else { &[0] };
        let streams = mapping.len() as u8;
        let mut decoder = opus::MSDecoder::new(48_000, streams, 0, mapping).unwrap();
        for packet in packets {
            let frames = decoder.decode_float(&packet, &mut frame, false).unwrap();
            pcm.extend(frame[..frames * mapping.len()].iter().step_by(mapping.len()));
        }
        let played = &pcm[usize::from(head.pre_skip)..];
        let rms = |tenth: &[f32]| (tenth.iter().map(|s| s * s).sum::<f32>() / tenth.len() as f32).sqrt();
        (played.chunks(4800).map(rms).collect(), found.duration)
    }

    /// The stream of two processes, the first of which died: `begin` makes what it wrote, `go_on` the rest.
    fn check(begin: impl Fn() -> (Vec<u8>, OggState), go_on: impl Fn(&Begun) -> Vec<u8>) {
        let (mut bytes, state) = begin();
        let mut inspector = OggInspector::new();
        inspector.push(&bytes);
        let head = inspector.finish().head.unwrap();
        bytes.extend(go_on(&Begun { head, state, now: MediaTime(144_100) }));
        let (levels, duration) = play(&bytes);
        assert_eq!(duration, SampleCount(240_000));
        for (tenth, level) in levels.iter().enumerate().take(50) {
            let is_loud = (2..8).contains(&tenth) || (37..43).contains(&tenth);
            let is_silent = (14..33).contains(&tenth) || tenth > 47;
            assert!(!is_loud || *level > 0.1, "{tenth}: {level}");
            assert!(!is_silent || *level < 0.001, "{tenth}: {level}");
        }
    }

    #[test]
    fn a_mix_goes_on_where_another_process_left_it() {
        for mixing in [Mixing::Transcode, Mixing::Auto] {
            let begin = || {
                let mut mixdown = Mixdown::new(&config(), mixing).unwrap();
                burst(0).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
                mixdown.end_track(ALICE);
                mixdown.advance(MediaTime(96_000)).unwrap();
                let mut bytes = Vec::new();
                mixdown.take_bytes(&mut bytes);
                (bytes, mixdown.writer().state())
            };
            check(begin, |begun| {
                let mut mixdown = Mixdown::going_on(&config(), mixing, begun).unwrap();
                mixdown.advance(MediaTime(144_100)).unwrap();
                burst(168_000).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
                mixdown.end_track(ALICE);
                mixdown.advance(MediaTime(230_000)).unwrap();
                mixdown.finish(MediaTime(240_000)).unwrap();
                let mut bytes = Vec::new();
                mixdown.take_bytes(&mut bytes);
                bytes
            });
        }
    }

    #[test]
    fn files_of_packets_as_they_came_go_on_where_another_process_left_them() {
        for mixing in [Mixing::Transcode, Mixing::Auto] {
            let write = |mut file: TrackFile, from: i64, end: Option<i64>| {
                burst(from).iter().for_each(|stretch| file.push(stretch).unwrap());
                file.end_track(ALICE);
                file.advance(MediaTime(from + 60_000)).unwrap();
                end.map_or(Ok(()), |end| file.finish(MediaTime(end))).unwrap();
                let mut bytes = Vec::new();
                file.take_bytes(&mut bytes);
                (bytes, file.writer().state())
            };
            let begin = || write(TrackFile::new(&config(), mixing).unwrap(), 0, None);
            check(begin, |begun| {
                write(TrackFile::going_on(&config(), mixing, begun).unwrap(), 168_000, Some(240_000)).0
            });
            let write = |mut file: DualFile, from: i64, end: Option<i64>| {
                burst(from).iter().for_each(|stretch| file.push(Side::Left, stretch).unwrap());
                file.end_track(Side::Left, ALICE);
                file.advance(MediaTime(from + 60_000)).unwrap();
                end.map_or(Ok(()), |end| file.finish(MediaTime(end))).unwrap();
                let mut bytes = Vec::new();
                file.take_bytes(&mut bytes);
                (bytes, file.writer().state())
            };
            let begin = || write(DualFile::new(&config(), mixing).unwrap(), 0, None);
            check(begin, |begun| {
                write(DualFile::going_on(&config(), mixing, begun).unwrap(), 168_000, Some(240_000)).0
            });
        }
    }

    #[test]
    fn a_stream_of_another_configuration_is_not_gone_on_with() {
        let head = OpusHead::new(crate::encode::Mapping::Stereo, 312);
        let begun = Begun { head, state: OggState { serial: 1, sequence: 2, granule: 0 }, now: MediaTime(0) };
        let error = Mixdown::going_on(&config(), Mixing::Auto, &begun).err().unwrap();
        assert!(error.to_string().contains("stream that was begun"), "{error}");
    }
}
