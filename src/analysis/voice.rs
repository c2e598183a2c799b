//! Tells speech from what else a track carries: by level, or by what its packets show.

use crate::capture::{Content, toc};
use crate::decode::{Level, g711_level};
use crate::encode::packet;
use crate::time::{SAMPLE_RATE, SampleCount};

/// What a piece of a track is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Silence, or what the room sounds like.
    Quiet,
    /// Enough to go on speaking, not enough to begin.
    Sounding,
    /// Clearly more than the background.
    Loud,
}

/// Judges pieces of one track.
#[derive(Debug, Default)]
pub(super) struct Voice {
    background: Background,
    /// Tells the level of Opus packets that carry no voice flag.
    decoder: Option<opus::Decoder>,
}

/// The rate at which packets are decoded that are not kept: what is above 4 kHz says little about speech.
const RATE: u32 = 8_000;
/// The background is taken for −60 dBFS until a second of it is known.
const ASSUMED: f32 = 0.001;
/// What is louder than −40 dBFS throughout is no background.
const HIGHEST: f32 = 0.01;
/// Loud is 9 dB above the background, and −50 dBFS at least.
const LOUD: (f32, f32) = (2.8, 0.003_16);
/// Sounding is 6 dB above the background, and −55 dBFS at least.
const SOUNDING: (f32, f32) = (2.0, 0.001_78);

impl Voice {
    /// Judges `len` of decoded sound.
    pub(super) fn hear(&mut self, level: Level, len: SampleCount) -> Activity {
        if level.rms <= f32::EPSILON {
            return Activity::Quiet;
        }
        self.background.judge(level.rms, len)
    }

    /// Judges `len` of undecoded sound; `None` where nothing can be told.
    ///
    /// G.711 shows its level. Opus packets with a SILK layer carry the encoder's own judgement (RFC 6716 §4.2.3); others
    /// are decoded at a low rate, as their size tells next to nothing.
    pub(super) fn see(&mut self, content: &Content, len: SampleCount) -> Option<Activity> {
        let Content::Packet { codec, payload } = content else {
            return matches!(content, Content::Silence(_)).then_some(Activity::Quiet);
        };
        if let Some(level) = g711_level(*codec, payload) {
            return Some(self.hear(level, len));
        }
        // Three bytes and less is what encoders send when there is nothing to say; servers fill such a packet up.
        if payload.len() <= 3 || payload.starts_with(&packet::SILENCE_20_MS) {
            return Some(Activity::Quiet);
        }
        if let Some(voice) = toc::voice(payload) {
            return Some(if voice { Activity::Loud } else { Activity::Quiet });
        }
        let level = self.decode(payload)?;
        Some(self.hear(level, len))
    }

    fn decode(&mut self, payload: &[u8]) -> Option<Level> {
        if self.decoder.is_none() {
            self.decoder = opus::Decoder::new(RATE, opus::Channels::Mono).ok();
        }
        let mut pcm = [0.0; toc::LONGEST_PACKET.0 as usize * RATE as usize / SAMPLE_RATE as usize];
        let frames = self.decoder.as_mut()?.decode_float(payload, &mut pcm, false).ok()?;
        Some(Level::of(&pcm[..frames]))
    }
}

/// The lowest root mean square of the last seconds, which is the background: nobody speaks for so long without a moment's pause.
#[derive(Clone, Debug)]
struct Background {
    /// The lowest value of each of the last seconds with sound, the one at hand among them.
    lowest: [f32; Self::SECONDS],
    at: usize,
    filled: SampleCount,
    known: bool,
}

impl Default for Background {
    fn default() -> Self {
        Self { lowest: [f32::INFINITY; Self::SECONDS], at: 0, filled: SampleCount::ZERO, known: false }
    }
}

impl Background {
    const SECONDS: usize = 5;

    fn judge(&mut self, rms: f32, len: SampleCount) -> Activity {
        self.lowest[self.at] = self.lowest[self.at].min(rms);
        self.filled += len;
        let lowest = self.lowest.into_iter().fold(f32::INFINITY, f32::min);
        let floor = if self.known { lowest } else { lowest.min(ASSUMED) }.min(HIGHEST);
        if self.filled >= SampleCount::from_millis(1000) {
            self.known = true;
            self.filled = SampleCount::ZERO;
            self.at = (self.at + 1) % Self::SECONDS;
            self.lowest[self.at] = f32::INFINITY;
        }
        let above = |(factor, least): (f32, f32)| rms >= (floor * factor).max(least);
        if above(LOUD) {
            Activity::Loud
        } else if above(SOUNDING) {
            Activity::Sounding
        } else {
            Activity::Quiet
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: SampleCount = SampleCount(960);

    fn rms(dbfs: f32) -> Level {
        let rms = 10f32.powf(dbfs / 20.0);
        Level { peak: rms, rms }
    }

    fn hear(voice: &mut Voice, dbfs: f32, slots: usize) -> Activity {
        (0..slots).map(|_| voice.hear(rms(dbfs), SLOT)).last().unwrap()
    }

    #[test]
    fn speech_stands_out_from_a_quiet_and_from_a_loud_room() {
        for room in [-80.0, -60.0, -45.0, -40.0] {
            let mut voice = Voice::default();
            assert_eq!(hear(&mut voice, room, 100), Activity::Quiet, "a room of {room} dBFS");
            assert_eq!(hear(&mut voice, -30.0, 1), Activity::Loud, "a room of {room} dBFS");
            assert_eq!(hear(&mut voice, room, 1), Activity::Quiet, "a room of {room} dBFS");
        }
    }

    #[test]
    fn somebody_who_speaks_at_once_is_heard_at_once() {
        assert_eq!(Voice::default().hear(rms(-30.0), SLOT), Activity::Loud);
    }

    #[test]
    fn a_room_that_gets_louder_is_background_again_in_seconds() {
        let mut voice = Voice::default();
        hear(&mut voice, -65.0, 500);
        assert_eq!(hear(&mut voice, -45.0, 1), Activity::Loud);
        assert_eq!(hear(&mut voice, -45.0, 300), Activity::Quiet);
    }

    #[test]
    fn what_is_loud_all_the_time_is_no_background() {
        let mut voice = Voice::default();
        assert_eq!(hear(&mut voice, -20.0, 1000), Activity::Loud);
    }

    #[test]
    fn digital_silence_tells_nothing_about_the_room() {
        let mut voice = Voice::default();
        hear(&mut voice, -45.0, 100);
        for _ in 0..1000 {
            assert_eq!(voice.hear(Level::default(), SLOT), Activity::Quiet);
        }
        assert_eq!(hear(&mut voice, -45.0, 1), Activity::Quiet);
    }
}
