//! Tells speech from what else a track carries: by level, or by what its packets show undecoded.

use crate::capture::{Content, toc};
use crate::decode::{Level, g711_level};
use crate::encode::packet;
use crate::time::SampleCount;

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
#[derive(Clone, Debug, Default)]
pub(super) struct Voice {
    level: Floor,
    size: Floor,
}

/// When a value stands out from the lowest ones of late.
struct Scale {
    /// Taken as the lowest value as long as it is not known.
    assumed: f32,
    /// The lowest value is never believed to be higher: what is louder than that throughout is no background.
    highest: f32,
    /// How far above it something is loud, and never below the second figure.
    loud: (f32, f32),
    /// The same for sounding.
    sounding: (f32, f32),
}

/// Root mean squares: background up to −40 dBFS; 9 dB above it and −50 dBFS is loud, 6 dB and −55 dBFS sounding.
const LEVEL: Scale = Scale { assumed: 0.001, highest: 0.01, loud: (2.8, 0.003_16), sounding: (2.0, 0.001_78) };
/// Bytes a millisecond of packets without a voice flag. A coder spends about twice as much on speech as on noise, though not
/// on every syllable.
const SIZE: Scale = Scale { assumed: f32::INFINITY, highest: f32::INFINITY, loud: (1.5, 0.7), sounding: (1.3, 0.7) };

impl Voice {
    /// Judges `len` of decoded sound.
    pub(super) fn hear(&mut self, level: Level, len: SampleCount) -> Activity {
        if level.rms <= f32::EPSILON {
            return Activity::Quiet;
        }
        self.level.judge(level.rms, len, &LEVEL)
    }

    /// Judges `len` of undecoded sound; `None` where nothing can be told.
    ///
    /// G.711 shows its level. Opus packets with a SILK layer carry the encoder's own judgement (RFC 6716 §4.2.3); of
    /// others only the size is known: that tells roughly, and nothing at all where a sender keeps it constant.
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
        let millis = toc::duration(*codec, payload)?.0 as f32 / 48.0;
        Some(self.size.judge(payload.len() as f32 / millis, len, &SIZE))
    }
}

/// The lowest value of the last seconds, which is the background: nobody speaks for so long without a moment's pause.
#[derive(Clone, Debug)]
struct Floor {
    /// The lowest value of each of the last seconds with sound, the one at hand among them.
    lowest: [f32; Self::SECONDS],
    at: usize,
    filled: SampleCount,
    known: bool,
}

impl Default for Floor {
    fn default() -> Self {
        Self { lowest: [f32::INFINITY; Self::SECONDS], at: 0, filled: SampleCount::ZERO, known: false }
    }
}

impl Floor {
    const SECONDS: usize = 5;

    fn judge(&mut self, value: f32, len: SampleCount, scale: &Scale) -> Activity {
        self.lowest[self.at] = self.lowest[self.at].min(value);
        self.filled += len;
        let lowest = self.lowest.into_iter().fold(f32::INFINITY, f32::min);
        let floor = if self.known { lowest } else { lowest.min(scale.assumed) }.min(scale.highest);
        if self.filled >= SampleCount::from_millis(1000) {
            self.known = true;
            self.filled = SampleCount::ZERO;
            self.at = (self.at + 1) % Self::SECONDS;
            self.lowest[self.at] = f32::INFINITY;
        }
        let above = |(factor, least): (f32, f32)| value >= (floor * factor).max(least);
        if above(scale.loud) {
            Activity::Loud
        } else if above(scale.sounding) {
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
