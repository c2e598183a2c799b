//! What a publisher's packets hold: nothing, packets coded beforehand, or what an encoder makes of a voice.

use std::fmt;
use std::sync::Arc;

use opus::{Application, Bitrate, Channels, Encoder};

use crate::time::SAMPLE_RATE;

/// Bits a second of every encoder here: what an application asks of WebRTC for speech.
pub const BITRATE: i32 = 32_000;

/// The expected loss an encoder is told of where it protects packets with in-band FEC, in percent.
const EXPECTED_LOSS: i32 = 10;

/// Packet durations that Opus has, in milliseconds.
const DURATIONS: [f64; 9] = [2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0];

/// The most bytes of one packet: six frames (RFC 6716 §3.4).
const MOST_BYTES: usize = 6 * 1275 + 7;

/// Level of the noise in canned pauses, −66 dBFS at its peaks.
const NOISE: f32 = 0.000_5;

/// What packets hold.
///
/// The first two kinds draw the same random numbers: a world of the same seed is the same call. With the third, the
/// encoder decides when a pause needs no packet.
#[derive(Clone, Debug, Default)]
pub enum Payload {
    /// An Opus header of the right duration and a size that tells speech from silence. No decoder takes it.
    #[default]
    Sizes,
    /// Packets of a voice, each talk spurt going on where the last one ended.
    Canned(Arc<Canned>),
    /// What an encoder with DTX and in-band FEC makes of this voice (48 kHz, mono), which goes round and round. The
    /// publisher hears it at its own clock's pace, muted or not; its pauses are silent.
    Codec(Arc<[f32]>),
}

/// A voice and its pauses, coded beforehand in every packet duration.
pub struct Canned {
    spans: Vec<Span>,
}

struct Span {
    duration_ms: f64,
    fec: bool,
    speech: Vec<Vec<u8>>,
    pause: Vec<Vec<u8>>,
}

impl Canned {
    /// Codes a voice (48 kHz, mono, at least 120 ms).
    ///
    /// # Errors
    /// What libopus says.
    pub fn of(voice: &[f32]) -> Result<Self, opus::Error> {
        let mut random = fastrand::Rng::with_seed(1);
        let noise: Vec<f32> = (0..SAMPLE_RATE).map(|_| NOISE * (2.0 * random.f32() - 1.0)).collect();
        let mut spans = Vec::new();
        for duration_ms in DURATIONS {
            for fec in [false, true] {
                let code = |pcm: &[f32]| -> Result<Vec<Vec<u8>>, opus::Error> {
                    let mut encoder = encoder(fec, false)?;
                    pcm.chunks_exact(samples(duration_ms)).map(|frame| encode(&mut encoder, frame)).collect()
                };
                spans.push(Span { duration_ms, fec, speech: code(voice)?, pause: code(&noise)? });
            }
        }
        Ok(Self { spans })
    }
}

impl fmt::Debug for Canned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canned").field("spans", &self.spans.len()).finish()
    }
}

/// What the next packet is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub duration_ms: f64,
    pub fec: bool,
    pub dtx: bool,
    pub talks: bool,
    /// How many samples of the publisher's clock lie before it.
    pub position: u64,
    /// How long it is where only its size counts.
    pub bytes: usize,
}

/// Makes one publisher's payloads.
#[derive(Debug)]
pub(super) enum Maker {
    Sizes,
    Canned { packets: Arc<Canned>, said: usize, paused: usize },
    Codec { voice: Arc<[f32]>, encoder: Option<Encoder> },
}

impl Maker {
    pub(super) fn new(payload: &Payload) -> Self {
        match payload {
            Payload::Sizes => Self::Sizes,
            Payload::Canned(packets) => Self::Canned { packets: packets.clone(), said: 0, paused: 0 },
            Payload::Codec(voice) => Self::Codec { voice: voice.clone(), encoder: None },
        }
    }

    /// Whether the payloads themselves decide what a pause sends.
    pub(super) fn has_dtx(&self) -> bool {
        matches!(self, Self::Codec { .. })
    }

    /// The publisher begins anew.
    pub(super) fn restart(&mut self) {
        if let Self::Codec { encoder, .. } = self {
            *encoder = None;
        }
    }

    /// The next payload; `None` where nothing is to be sent.
    pub(super) fn make(&mut self, wanted: &Wanted) -> Option<Vec<u8>> {
        match self {
            Self::Sizes => Some(sized(wanted)),
            Self::Canned { packets, said, paused } => {
                let fits = |span: &&Span| span.duration_ms == wanted.duration_ms && span.fec == wanted.fec;
                let span = packets.spans.iter().find(fits).expect("every duration of Opus was coded");
                let (sequence, at) = if wanted.talks { (&span.speech, said) } else { (&span.pause, paused) };
                *at += 1;
                Some(sequence[(*at - 1) % sequence.len()].clone())
            }
            Self::Codec { voice, encoder: ready } => {
                let encoder = ready.get_or_insert_with(|| {
                    encoder(wanted.fec, wanted.dtx).expect("libopus knows 48 kHz, one channel and these settings")
                });
                let at = wanted.position as usize;
                let sample = |n: usize| if wanted.talks { voice[(at + n) % voice.len()] } else { 0.0 };
                let frame: Vec<f32> = (0..samples(wanted.duration_ms)).map(sample).collect();
                let packet = encode(encoder, &frame).expect("a frame of a duration that Opus has");
                // A packet without audio in it says that nothing needs to be sent (libopus, `OPUS_SET_DTX`).
                (!wanted.dtx || packet.len() > 2).then_some(packet)
            }
        }
    }
}

/// A header, and as many bytes as asked.
fn sized(wanted: &Wanted) -> Vec<u8> {
    let lbrr = if wanted.fec { 0x40 } else { 0 };
    let mut payload = match (wanted.duration_ms * 10.0) as u32 {
        25 => vec![0xe0, 0],
        50 => vec![0xe8, 0],
        100 => vec![0x40, lbrr],
        200 => vec![0x48, lbrr],
        400 => vec![0x50, lbrr / 2],
        600 => vec![0x58, lbrr / 4],
        longer => vec![0x4b, (longer / 200) as u8],
    };
    payload.resize(wanted.bytes, 0);
    payload
}

fn samples(duration_ms: f64) -> usize {
    (duration_ms * 48.0) as usize
}

fn encoder(fec: bool, dtx: bool) -> Result<Encoder, opus::Error> {
    let mut encoder = Encoder::new(SAMPLE_RATE, Channels::Mono, Application::Voip)?;
    encoder.set_bitrate(Bitrate::Bits(BITRATE))?;
    encoder.set_inband_fec(fec)?;
    encoder.set_packet_loss_perc(if fec { EXPECTED_LOSS } else { 0 })?;
    encoder.set_dtx(dtx)?;
    Ok(encoder)
}

fn encode(encoder: &mut Encoder, frame: &[f32]) -> Result<Vec<u8>, opus::Error> {
    let mut packet = vec![0; MOST_BYTES];
    let length = encoder.encode_float(frame, &mut packet)?;
    packet.truncate(length);
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Codec;
    use crate::capture::toc;

    fn wanted(duration_ms: f64, fec: bool) -> Wanted {
        Wanted { duration_ms, fec, dtx: false, talks: true, position: 0, bytes: 100 }
    }

    fn voice() -> Vec<f32> {
        crate::testkit::audio::generate::speech(7, std::time::Duration::from_secs(2)).channel(0).to_vec()
    }

    #[test]
    fn every_kind_makes_packets_of_the_duration_asked_for() {
        let voice = voice();
        let kinds =
            [Payload::Sizes, Payload::Canned(Arc::new(Canned::of(&voice).unwrap())), Payload::Codec(voice.into())];
        for kind in &kinds {
            let mut maker = Maker::new(kind);
            for duration in DURATIONS {
                let packet = maker.make(&wanted(duration, true)).unwrap();
                assert_eq!(toc::duration(Codec::Opus, &packet).unwrap().0 as usize, samples(duration), "{kind:?}");
            }
        }
    }

    #[test]
    fn sized_packets_tell_whether_they_carry_fec() {
        for duration in DURATIONS {
            for fec in [false, true] {
                let packet = sized(&wanted(duration, fec));
                assert_eq!(toc::in_band_fec(&packet).is_some(), fec && (10.0..=60.0).contains(&duration), "{duration}");
            }
        }
    }

    #[test]
    fn an_encoder_sends_little_in_a_pause_and_protects_speech() {
        let mut maker = Maker::new(&Payload::Codec(voice().into()));
        let mut sent = |talks: bool, from: u64| {
            let packet = |n: u64| maker.make(&Wanted { dtx: true, talks, position: n * 960, ..wanted(20.0, true) });
            (from..from + 90).filter_map(packet).collect::<Vec<_>>()
        };
        let speech = sent(true, 0);
        let pause = sent(false, 90);
        assert!(speech.iter().filter(|packet| toc::in_band_fec(packet).is_some()).count() > 30);
        assert!(speech.len() > 60 && pause.len() < 40, "{} {}", speech.len(), pause.len());
    }
}
