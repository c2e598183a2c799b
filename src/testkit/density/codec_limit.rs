//! What no recorder that mixes can save: libopus itself.

use std::sync::Arc;

use super::{Conversation, Recording, failed};
use crate::testkit::TestkitError;
use crate::time::SAMPLE_RATE;

const FRAME: usize = SAMPLE_RATE as usize / 50;

/// Decodes everybody's packets, adds, and encodes the sum: mono, 32 kbit/s, VOIP, complexity 5. No timeline, no
/// container, no clock but the packets' own.
pub struct CodecLimit {
    conversation: Arc<Conversation>,
    tick: u64,
    prepared: u64,
    decoders: Vec<opus::Decoder>,
    encoder: opus::Encoder,
    pcm: Vec<f32>,
    sum: Vec<f32>,
    packet: Vec<u8>,
}

impl CodecLimit {
    /// Begins `from` steps into the conversation.
    ///
    /// # Errors
    /// [`TestkitError::Simulation`] where libopus refuses.
    pub fn new(conversation: Arc<Conversation>, from: u64) -> Result<Self, TestkitError> {
        let decoder = || opus::Decoder::new(SAMPLE_RATE, opus::Channels::Mono);
        let encoder = || {
            let mut encoder = opus::Encoder::new(SAMPLE_RATE, opus::Channels::Mono, opus::Application::Voip)?;
            encoder.set_bitrate(opus::Bitrate::Bits(32_000))?;
            encoder.set_complexity(5)?;
            Ok(encoder)
        };
        let decoders = (0..conversation.participants()).map(|_| decoder()).collect::<Result<_, opus::Error>>();
        Ok(Self {
            conversation,
            tick: from,
            prepared: from,
            decoders: decoders.map_err(|error| failed(&error))?,
            encoder: encoder().map_err(|error: opus::Error| failed(&error))?,
            pcm: vec![0.0; FRAME],
            sum: vec![0.0; FRAME],
            packet: vec![0; 1275],
        })
    }
}

impl Recording for CodecLimit {
    fn prepare(&mut self, ticks: u64) -> Result<(), TestkitError> {
        self.prepared += ticks;
        Ok(())
    }

    fn tick(&mut self) -> Result<usize, TestkitError> {
        if self.tick == self.prepared {
            return Err(failed(&"nothing is prepared"));
        }
        self.sum.fill(0.0);
        for (participant, decoder) in self.decoders.iter_mut().enumerate() {
            let packet = self.conversation.packet(participant, self.tick);
            decoder.decode_float(packet, &mut self.pcm, false).map_err(|error| failed(&error))?;
            self.sum.iter_mut().zip(&self.pcm).for_each(|(sum, sample)| *sum += sample);
        }
        self.tick += 1;
        self.encoder.encode_float(&self.sum, &mut self.packet).map_err(|error| failed(&error))
    }

    fn strip(&mut self) {}
}
