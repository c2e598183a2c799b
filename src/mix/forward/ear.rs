//! How loud pieces of a track are, found out only where somebody asks.

use std::collections::VecDeque;

use super::leg::{Hint, Piece};
use crate::call::Codec;
use crate::capture::{Content, toc};
use crate::decode::{DecodeError, Level};
use crate::time::{MediaTime, SAMPLE_RATE, SampleCount};

/// The rate at which packets are decoded that are only listened to: what wideband speech has.
const RATE: u32 = 16_000;
/// So many packets are decoded before one whose level is asked for, where the decoder was elsewhere.
const WARM: u64 = 2;
/// A background is listened to at first for so many pieces, and then once in this time.
const FIRST: u32 = 5;
const EVERY: SampleCount = SampleCount::from_millis(1000);
/// Packets that are so much larger than quiet ones are not taken for quiet unheard.
const LARGER: f32 = 1.5;
/// Forwarding leaves out no background that is louder than −58 dBFS.
const NOISE_LIMIT: f32 = 0.001_26;
/// Nor one louder than −76 dBFS where the talker's packets have nothing to mask it.
const BARE_NOISE_LIMIT: f32 = 0.000_16;
/// A voice is 8 dB above the background, and −54 dBFS at least.
const VOICE_ABOVE: f32 = 2.5;
const VOICE_LEAST: f32 = 0.002;
/// What is louder than −38 dBFS throughout is no background.
const HIGHEST: f32 = 0.012_6;
/// Seconds in which the quietest moment is the background.
const SECONDS: usize = 5;

/// Listens to one track.
pub(super) struct Ear {
    decoder: opus::Decoder,
    pcm: Vec<f32>,
    /// Number of the piece that the decoder expects.
    next: u64,
    /// How many packets it has decoded in a row.
    heard: u64,
    /// Bytes a sample of what is quiet, smoothed.
    quiet_rate: Option<f32>,
    background: Background,
}

impl Ear {
    pub(super) fn new() -> Result<Self, DecodeError> {
        let longest = toc::LONGEST_PACKET.0 as usize * RATE as usize / SAMPLE_RATE as usize;
        Ok(Self {
            decoder: opus::Decoder::new(RATE, opus::Channels::Mono)?,
            pcm: vec![0.0; longest],
            next: 0,
            heard: 0,
            quiet_rate: None,
            background: Background::default(),
        })
    }

    /// Whether to listen to what is said to be quiet: once in a while, and where it takes clearly more bytes a sample than
    /// what was.
    pub(super) fn wants_to_listen(&self, at: MediaTime, rate: f32) -> bool {
        let last = self.background.last;
        let is_time = self.background.pieces < FIRST || last.is_none_or(|last| at.since(last) >= EVERY);
        is_time || self.quiet_rate.is_none_or(|quiet| rate > LARGER * quiet)
    }

    /// Takes how many bytes a sample of what is really quiet takes.
    pub(super) fn note_rate(&mut self, rate: f32) {
        self.quiet_rate = Some(self.quiet_rate.map_or(rate, |quiet| quiet + 0.25 * (rate - quiet)));
    }

    /// Takes a level that is known without decoding.
    pub(super) fn note(&mut self, level: Level, at: MediaTime) {
        self.background.note(level.rms, at);
    }

    /// From which level on there is a voice.
    pub(super) fn voice_from(&self, gain: f32) -> f32 {
        (self.background.floor() * gain.abs() * VOICE_ABOVE).max(VOICE_LEAST)
    }

    /// Whether the background is too loud to be left out, or not known.
    pub(super) fn is_noisy(&self, gain: f32) -> bool {
        self.is_louder_than(NOISE_LIMIT, gain)
    }

    /// Whether it is too loud where nothing masks it, or not known.
    pub(super) fn is_noisy_bare(&self, gain: f32) -> bool {
        self.is_louder_than(BARE_NOISE_LIMIT, gain)
    }

    fn is_louder_than(&self, limit: f32, gain: f32) -> bool {
        self.background.noise.is_none_or(|noise| noise.sqrt() * gain.abs() > limit)
    }

    /// The level of piece `n`; `dropped` pieces were before the first.
    pub(super) fn level(&mut self, pieces: &mut VecDeque<Piece>, dropped: u64, n: usize) -> Option<Level> {
        if pieces[n].level.is_some() {
            return pieces[n].level;
        }
        let asked = dropped + n as u64;
        let mut at = self.next.max(dropped);
        if asked < self.next || asked > at + WARM {
            // Resetting has no way to fail but a bad pointer; were it to, the old state would merely ring on.
            let _ = self.decoder.reset_state();
            self.heard = 0;
            at = asked.saturating_sub(WARM).max(dropped);
        }
        while at <= asked {
            let piece = &mut pieces[(at - dropped) as usize];
            self.listen(piece, at == asked);
            at += 1;
        }
        self.next = at;
        pieces[n].level
    }

    fn listen(&mut self, piece: &mut Piece, asked: bool) {
        let level = match &piece.content {
            Content::Silence(_) => {
                self.heard = WARM;
                Some(Level::default())
            }
            Content::Packet { codec: Codec::Opus, payload } if !payload.is_empty() => {
                let decoded = self.decoder.decode_float(payload, &mut self.pcm, false);
                self.heard += 1;
                decoded.ok().map(|frames| Level::of(&self.pcm[..frames]))
            }
            Content::Packet { .. } | Content::Recovered { .. } | Content::Concealed { .. } => None,
        };
        let Some(level) = level.filter(|_| piece.level.is_none() && (asked || self.heard > WARM)) else { return };
        piece.level = Some(level);
        if piece.hint != Hint::Silent {
            self.background.note(level.rms, piece.start);
        }
    }
}

/// What a track sounds like when nobody speaks.
#[derive(Clone, Debug)]
struct Background {
    /// The lowest root mean square of each of the last seconds in which something was heard.
    lowest: [f32; SECONDS],
    bucket: usize,
    bucket_from: Option<MediaTime>,
    /// Mean square of what is no voice, smoothed.
    noise: Option<f32>,
    pieces: u32,
    last: Option<MediaTime>,
}

impl Default for Background {
    fn default() -> Self {
        let lowest = [f32::INFINITY; SECONDS];
        Self { lowest, bucket: 0, bucket_from: None, noise: None, pieces: 0, last: None }
    }
}

impl Background {
    fn floor(&self) -> f32 {
        let lowest = self.lowest.into_iter().fold(f32::INFINITY, f32::min);
        if lowest.is_finite() { lowest.min(HIGHEST) } else { 0.0 }
    }

    fn note(&mut self, rms: f32, at: MediaTime) {
        let from = *self.bucket_from.get_or_insert(at);
        if at.since(from) >= EVERY {
            self.bucket = (self.bucket + 1) % SECONDS;
            self.lowest[self.bucket] = f32::INFINITY;
            self.bucket_from = Some(at);
        }
        let lowest = &mut self.lowest[self.bucket];
        *lowest = lowest.min(rms);
        self.pieces = self.pieces.saturating_add(1);
        self.last = self.last.max(Some(at));
        if rms < (self.floor() * VOICE_ABOVE).max(VOICE_LEAST) {
            let square = rms * rms;
            self.noise = Some(self.noise.map_or(square, |noise| noise + 0.25 * (square - noise)));
        }
    }
}
