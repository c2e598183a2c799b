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
    (frames / 24).max(2)
}
