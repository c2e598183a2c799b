//! PCM to AAC-LC, by Fraunhofer's library.

use fdk_aac::enc::{AudioObjectType, BitRate, ChannelMode, Encoder, EncoderParams, Transport};

use super::pcm::Depth;
use crate::encode::EncodeError;
use crate::time::SAMPLE_RATE;

/// Samples a channel in a packet.
pub(in crate::encode) const AAC_FRAME: usize = 1024;

/// Bits a second of one channel.
const BITRATE: u32 = 64_000;

/// Encodes frames of PCM at 48 kHz, each to one packet.
#[derive(Debug)]
pub(in crate::encode) struct AacEncoder {
    encoder: Encoder,
    channels: u8,
    delay: u64,
    pcm: Vec<i16>,
    packet: Vec<u8>,
}

impl AacEncoder {
    /// An encoder for one or two channels.
    ///
    /// # Errors
    /// [`EncodeError::Packet`] where the library refuses.
    pub(in crate::encode) fn new(channels: u8) -> Result<Self, EncodeError> {
        let params = EncoderParams {
            bit_rate: BitRate::Cbr(BITRATE * u32::from(channels)),
            sample_rate: SAMPLE_RATE,
            transport: Transport::Raw,
            channels: if channels == 1 { ChannelMode::Mono } else { ChannelMode::Stereo },
            audio_object_type: AudioObjectType::Mpeg4LowComplexity,
        };
        let refused = |_| EncodeError::Packet("fdk-aac refused its settings");
        let encoder = Encoder::new(params).map_err(refused)?;
        let info = encoder.info().map_err(refused)?;
        if info.frameLength as usize != AAC_FRAME {
            return Err(EncodeError::Packet("fdk-aac has frames of another length"));
        }
        Ok(Self {
            encoder,
            channels,
            delay: u64::from(info.nDelay),
            pcm: Vec::with_capacity(AAC_FRAME * usize::from(channels)),
            packet: vec![0; info.maxOutBufBytes as usize],
        })
    }

    /// Bits a second.
    pub(in crate::encode) fn bitrate(&self) -> u32 {
        BITRATE * u32::from(self.channels)
    }

    /// How many samples of nothing come out before the first sample that went in.
    pub(in crate::encode) fn delay(&self) -> u64 {
        self.delay
    }

    /// Interleaved samples of a frame.
    pub(in crate::encode) fn frame_len(&self) -> usize {
        AAC_FRAME * usize::from(self.channels)
    }

    /// Encodes a frame, full scale ±1. What is louder is limited to full scale, what is no number becomes 0.
    ///
    /// # Errors
    /// [`EncodeError::FrameSize`] for another number of samples, [`EncodeError::Packet`] where the library fails.
    pub(in crate::encode) fn encode(&mut self, frame: &[f32]) -> Result<&[u8], EncodeError> {
        if frame.len() != self.frame_len() {
            return Err(EncodeError::FrameSize { got: frame.len(), expected: self.frame_len() });
        }
        self.pcm.clear();
        self.pcm.extend(frame.iter().map(|sample| Depth::Bits16.quantise(*sample) as i16));
        match self.encoder.encode(&self.pcm, &mut self.packet) {
            Ok(done) if done.input_consumed == frame.len() && done.output_size > 0 => {
                Ok(&self.packet[..done.output_size])
            }
            Ok(_) | Err(_) => Err(EncodeError::Packet("fdk-aac failed")),
        }
    }
}
