//! Formats that hold sound itself, not Opus: WAV, FLAC, MP3. Pure, but for readers, which read.
//!
//! | item | what it does |
//! |---|---|
//! | [`PcmDecoder`] | Opus packets to PCM, exact at both ends |
//! | [`WavWriter`], [`FlacWriter`], `Mp3Writer` | PCM to a byte stream, of which every prefix plays |
//! | `AacEncoder` | PCM to packets of AAC, which [`mp4`](super::mp4) holds |
//! | [`AudioReader`] | any of them to PCM, tags and a verdict |

#[cfg(feature = "aac")]
mod aac;
mod audio_reader;
mod flac;
mod flac_frame;
mod flac_reader;
#[cfg(feature = "mp3")]
mod mp3;
mod mp3_frame;
mod mp3_id3;
mod mp3_reader;
mod pcm;
mod pcm_tags;
mod wav;
mod wav_reader;

#[cfg(feature = "aac")]
pub(super) use aac::{AAC_FRAME, AacEncoder};
pub use audio_reader::{AudioFormat, AudioInfo, AudioInspection, AudioProblem, AudioReader, ReadError};
pub use flac::FlacWriter;
#[cfg(feature = "mp3")]
pub use mp3::{Mp3Rate, Mp3Writer};
pub use pcm::{Depth, PcmDecoder};
#[cfg(feature = "aac")]
pub(super) use pcm::{channels_of, check_total};
pub use wav::WavWriter;
