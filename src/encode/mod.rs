//! Opus and the containers. Pure.
//!
//! | item | what it does |
//! |---|---|
//! | [`OpusEncoder`] | PCM frames to Opus packets |
//! | [`packet`] | what can be told from an Opus packet without decoding it; silence; self-delimited framing |
//! | [`OggOpusWriter`] | Opus packets to an Ogg Opus byte stream, of which every prefix plays |
//! | [`webm`], [`mp4`] | the same packets in WebM and in MP4, or AAC in MP4: written, and read to [`Contents`] |
//! | [`PcmDecoder`], [`WavWriter`], [`FlacWriter`], `Mp3Writer`, [`AudioReader`] | sound in formats without Opus |
//! | [`Patch`] | bytes at a file's beginning that are only known at its end |
//! | [`OggInspector`], [`PageReader`] | an Ogg Opus byte stream, whatever its state, to pages, packets and a verdict |

#[cfg(test)]
mod container_tests;
mod contents;
mod format;
pub mod mp4;
mod ogg_page;
mod ogg_reader;
mod ogg_writer;
mod opus_encoder;
pub mod packet;
pub mod patch;
mod sound;
pub mod webm;

use thiserror::Error;

pub use contents::{ContainerProblem, Contents};
pub use format::{Format, UnknownFormat, formats};
#[cfg(feature = "aac")]
pub use mp4::Mp4AacWriter;
pub use mp4::{AacHead, Mp4Codec, Mp4Reader, Mp4Writer};
pub(crate) use ogg_page::crc;
pub use ogg_page::{Mapping, OpusHead, OpusTags, end_at_last_page, head_of, state_after};
pub use ogg_reader::{Inspection, OggInspector, Page, PageReader, Problem};
pub use ogg_writer::{OggOpusWriter, OggState, closing_page};
pub use opus_encoder::{Application, FrameDuration, MAX_PACKET, MaxBandwidth, OpusConfig, OpusEncoder};
pub use patch::Patch;
pub use sound::{
    AudioFormat, AudioInfo, AudioInspection, AudioProblem, AudioReader, Depth, FlacWriter, PcmDecoder, ReadError,
    WavWriter,
};
#[cfg(feature = "mp3")]
pub use sound::{Mp3Rate, Mp3Writer};
pub use webm::{WebmReader, WebmWriter};

use crate::time::SampleCount;

/// The longest packet that there is (RFC 6716 §3.2.5).
pub const LONGEST_PACKET: SampleCount = SampleCount::from_millis(120);

/// What can go wrong while encoding or writing a container.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// A setting that the encoder cannot honour.
    #[error("{setting} {value} is not possible: {allowed}")]
    Config {
        /// Which setting.
        setting: &'static str,
        /// The value that was asked for.
        value: String,
        /// What would be possible.
        allowed: &'static str,
    },
    /// libopus refused.
    #[error("libopus: {0}")]
    Opus(#[from] opus::Error),
    /// A frame of PCM of another size than configured.
    #[error("a frame of {got} samples, where {expected} belong")]
    FrameSize {
        /// Samples (all channels) a frame has.
        expected: usize,
        /// Samples that came.
        got: usize,
    },
    /// Bytes that are no Opus packet (RFC 6716 §3.4), or one that cannot stand in this place.
    #[error("not a usable Opus packet: {0}")]
    Packet(&'static str),
    /// The end that was asked for is not inside the last page.
    #[error("the stream cannot end at granule {asked}: the last page covers ({low}, {high}]")]
    End {
        /// The final granule position asked for.
        asked: u64,
        /// The granule position of the page before.
        low: u64,
        /// The granule position after the last packet.
        high: u64,
    },
    /// The stream has already ended.
    #[error("the stream has already ended")]
    Ended,
}
