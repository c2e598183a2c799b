//! Who spoke when.

use std::collections::BTreeMap;

use super::envelope::Envelope;
use super::peaks::Waveform;
use super::spans::{Span, Spans, total};
use super::voice::{Activity, Voice};
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::decode::Level;
use crate::time::{MediaTime, SampleCount};

/// Shorter pauses are part of speech.
const BREATH: SampleCount = SampleCount::from_millis(500);
/// A sound that is interrupted for no longer than this is one sound.
const TOGETHER: SampleCount = SampleCount::from_millis(60);
/// A sound is speech once so much of it was loud; what is shorter is a click.
const LOUD_ENOUGH: SampleCount = SampleCount::from_millis(60);

/// Finds stretches of speech on any number of tracks, from their levels or from their packets.
///
/// The background of each track is its quietest moment of the last seconds; speech stands out from it by 9 dB. Pauses
/// shorter than half a second are part of speech. Starts and ends are exact to the piece that was judged: 20 ms of decoded
/// sound, or a packet.
#[derive(Debug, Default)]
pub struct Speakers {
    tracks: BTreeMap<TrackKey, Track>,
}

/// What one track said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// When, in order.
    pub spans: Vec<Span>,
    /// How much of the spans are longer pauses, where they became too many for a day's call and had to be joined.
    pub surplus: SampleCount,
    /// How loud, where its sound was decoded.
    pub wave: Option<Waveform>,
}

impl Spoken {
    /// How long it spoke.
    pub fn speaking(&self) -> SampleCount {
        SampleCount(total(&self.spans).0.saturating_sub(self.surplus.0))
    }
}

impl Speakers {
    /// Takes the level of `len` of a track from `at` on. Silence may be left out.
    pub fn heard(&mut self, track: TrackKey, at: MediaTime, len: SampleCount, level: Level) {
        let track = self.tracks.entry(track).or_default();
        track.envelope.get_or_insert_default().heard(at, at + len, level.peak);
        let activity = track.voice.hear(level, len);
        track.take(Span { from: at, to: at + len }, activity);
    }

    /// Takes a stretch as it was settled. Voices need no decoding; other Opus packets are decoded at a low rate.
    pub fn seen(&mut self, stretch: &Settled) {
        let track = self.tracks.entry(stretch.track).or_default();
        if let Some(activity) = track.voice.see(&stretch.content, stretch.len()) {
            track.take(Span { from: stretch.start, to: stretch.end }, activity);
        }
    }

    /// What was said on each track before `end`.
    pub fn finish(mut self, end: MediaTime) -> BTreeMap<TrackKey, Spoken> {
        let tracks: Vec<TrackKey> = self.tracks.keys().copied().collect();
        let spoken = |track: TrackKey| {
            let envelope = self.tracks.get_mut(&track).and_then(|track| track.envelope.take());
            let wave = envelope.map(|envelope| envelope.finish(end.since(MediaTime::ZERO)));
            (track, Spoken { wave, ..self.spoken(track, end) })
        };
        tracks.into_iter().map(spoken).collect()
    }

    /// What was said on a track before `end`.
    pub fn spoken(&self, track: TrackKey, end: MediaTime) -> Spoken {
        let Some(track) = self.tracks.get(&track) else { return Spoken::default() };
        let mut spans = track.spans.clone();
        track.sound.and_then(Sound::speech).into_iter().for_each(|span| spans.push(span));
        Spoken {
            spans: spans.get().iter().filter_map(|span| span.before(end)).collect(),
            surplus: spans.surplus(),
            wave: None,
        }
    }
}

#[derive(Debug)]
struct Track {
    voice: Voice,
    sound: Option<Sound>,
    spans: Spans,
    envelope: Option<Envelope>,
}

/// A sound that goes on.
#[derive(Clone, Copy, Debug)]
struct Sound {
    span: Span,
    loud: SampleCount,
}

impl Sound {
    fn speech(self) -> Option<Span> {
        (self.loud >= LOUD_ENOUGH).then_some(self.span)
    }
}

impl Default for Track {
    fn default() -> Self {
        Self { voice: Voice::default(), sound: None, spans: Spans::new(BREATH), envelope: None }
    }
}

impl Track {
    fn take(&mut self, span: Span, activity: Activity) {
        let loud = match activity {
            Activity::Quiet => return,
            Activity::Sounding => SampleCount::ZERO,
            Activity::Loud => span.len(),
        };
        match &mut self.sound {
            Some(sound) if span.from.since(sound.span.to) <= TOGETHER => {
                sound.span.to = span.to;
                sound.loud += loud;
            }
            _ => {
                let before = self.sound.replace(Sound { span, loud });
                before.and_then(Sound::speech).into_iter().for_each(|span| self.spans.push(span));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::Codec;
    use crate::capture::{Content, Silence};
    use crate::encode::packet;

    const ALICE: TrackKey = TrackKey(1);
    const END: MediaTime = MediaTime(i64::MAX);

    fn span(from_millis: i64, to_millis: i64) -> Span {
        Span { from: MediaTime(from_millis * 48), to: MediaTime(to_millis * 48) }
    }

    /// Takes sounds of `rms` by their milliseconds, digital silence between.
    fn hear(sounds: &[(i64, i64, f32)]) -> Spoken {
        let mut speakers = Speakers::default();
        for &(from, to, rms) in sounds {
            for at in (from..to).step_by(20) {
                speakers.heard(ALICE, MediaTime(at * 48), SampleCount(960), Level { peak: rms, rms });
            }
        }
        speakers.spoken(ALICE, END)
    }

    #[test]
    fn a_breath_goes_on_and_a_pause_does_not() {
        let spoken = hear(&[(100, 400, 0.1), (880, 1000, 0.1), (1500, 2000, 0.1)]);
        assert_eq!(spoken.spans, [span(100, 1000), span(1500, 2000)]);
        assert_eq!(spoken.speaking(), SampleCount::from_millis(1400));
    }

    #[test]
    fn a_click_is_no_speech() {
        assert_eq!(hear(&[(0, 40, 0.5), (2000, 2040, 0.5), (2200, 2240, 0.5)]).spans, []);
        assert_eq!(hear(&[(0, 60, 0.5)]).spans, [span(0, 60)]);
    }

    #[test]
    fn speech_begins_loud_and_may_fade() {
        let fading =
            [(0, 2000, 0.0005), (2000, 2100, 0.0025), (2100, 2500, 0.1), (2500, 2700, 0.0025), (2700, 5000, 0.0005)];
        assert_eq!(hear(&fading).spans, [span(2000, 2700)]);
        assert_eq!(hear(&[(0, 2000, 0.0005), (2000, 3000, 0.0025)]).spans, []);
    }

    #[test]
    fn nothing_is_said_after_the_end() {
        let mut speakers = Speakers::default();
        for at in [0, 48_000, 96_000] {
            (0..25).for_each(|n| {
                speakers.heard(ALICE, MediaTime(at + n * 960), SampleCount(960), Level { peak: 0.1, rms: 0.1 })
            });
        }
        assert_eq!(
            speakers.spoken(ALICE, MediaTime(48_010)).spans,
            [span(0, 500), Span { from: MediaTime(48_000), to: MediaTime(48_010) }]
        );
        assert_eq!(speakers.spoken(TrackKey(2), END), Spoken::default());
    }

    /// Stretches of 20 ms from 0 on.
    fn see(contents: impl IntoIterator<Item = Content>) -> Spoken {
        let mut speakers = Speakers::default();
        for (n, content) in (0..).zip(contents) {
            let (start, end) = (MediaTime(n * 960), MediaTime((n + 1) * 960));
            speakers.seen(&Settled { track: ALICE, start, end, content });
        }
        speakers.spoken(ALICE, END)
    }

    fn opus_packets(application: opus::Application, bitrate: i32, dtx: bool, pcm: &[f32]) -> Vec<Content> {
        let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, application).unwrap();
        encoder.set_bitrate(opus::Bitrate::Bits(bitrate)).unwrap();
        encoder.set_dtx(dtx).unwrap();
        let encode = |pcm: &[f32]| {
            let payload = Bytes::from(encoder.encode_vec_float(pcm, 1500).unwrap());
            Content::Packet { codec: Codec::Opus, payload }
        };
        pcm.chunks_exact(960).map(encode).collect()
    }

    /// A room's noise all the time, and from 2 to 4 s and from 6 to 7 s a voice.
    fn voice_in_a_room(noise: f32) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut phase = 0.0f32;
        (0..48_000 * 9)
            .map(|n| {
                let speaks = (96_000..192_000).contains(&n) || (288_000..336_000).contains(&n);
                phase += (140.0 + 30.0 * (n as f32 / 9_600.0).sin()) / 48_000.0;
                let syllable = (n as f32 / 7_000.0).sin().abs();
                let voice = if speaks { 0.4 * syllable * (phase.fract() - 0.5) } else { 0.0 };
                voice + noise * (random.f32() - 0.5)
            })
            .collect()
    }

    fn assert_close(spoken: &Spoken, tolerance_millis: i64) {
        let expected = [span(2000, 4000), span(6000, 7000)];
        assert_eq!(spoken.spans.len(), 2, "{:?}", spoken.spans);
        for (found, expected) in spoken.spans.iter().zip(expected) {
            let off = (found.from.0 - expected.from.0).abs().max((found.to.0 - expected.to.0).abs());
            assert!(off <= tolerance_millis * 48, "{found:?} instead of {expected:?}");
        }
    }

    #[test]
    fn the_encoders_own_judgement_is_read_from_its_packets() {
        for dtx in [false, true] {
            assert_close(&see(opus_packets(opus::Application::Voip, 20_000, dtx, &voice_in_a_room(0.001))), 150);
        }
    }

    #[test]
    fn packets_without_that_judgement_show_their_level() {
        assert_close(&see(opus_packets(opus::Application::LowDelay, 64_000, false, &voice_in_a_room(0.01))), 150);
    }

    #[test]
    fn g711_shows_its_level() {
        // 0xff is zero in µ-law, 0x90 loud.
        let packet = |byte| Content::Packet { codec: Codec::Pcmu, payload: Bytes::from(vec![byte; 160]) };
        let packets = (0..100).map(|n| packet(if (20..50).contains(&n) { 0x90 } else { 0xff }));
        assert_eq!(see(packets).spans, [span(400, 1000)]);
    }

    #[test]
    fn a_loss_neither_speaks_nor_is_silent() {
        let voice = opus_packets(opus::Application::Voip, 20_000, false, &voice_in_a_room(0.001));
        let lossy = voice.into_iter().enumerate().map(|(n, content)| match n {
            150..155 => Content::Concealed { into_run: SampleCount(960 * (n as u64 - 150)) },
            _ => content,
        });
        assert_close(&see(lossy), 150);
        assert_eq!(see(vec![Content::Concealed { into_run: SampleCount::ZERO }; 50]).spans, []);
        let silence = [
            Content::Silence(Silence::Dtx),
            Content::Packet { codec: Codec::Opus, payload: Bytes::from_static(&packet::SILENCE_20_MS) },
        ];
        assert_eq!(see(silence.into_iter().cycle().take(50)).spans, []);
    }
}
