//! The formats a recording can have.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A format of a recording's files.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    schemars::JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// Opus in Ogg (RFC 7845).
    #[default]
    Ogg,
    /// Opus in WebM (RFC 9559).
    Webm,
    /// Opus, or AAC where that is asked for, in fragmented MP4 (ISO/IEC 14496-12).
    Mp4,
    /// PCM in WAVE, RF64 beyond 4 GiB (EBU Tech 3306).
    Wav,
    /// FLAC (RFC 9639).
    Flac,
    /// MP3 (ISO/IEC 11172-3).
    Mp3,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Ogg, Self::Webm, Self::Mp4, Self::Wav, Self::Flac, Self::Mp3];

    /// The word for it, which is its files' ending, too.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ogg => "ogg",
            Self::Webm => "webm",
            Self::Mp4 => "mp4",
            Self::Wav => "wav",
            Self::Flac => "flac",
            Self::Mp3 => "mp3",
        }
    }

    /// The media type of its files.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Ogg => "audio/ogg",
            Self::Webm => "audio/webm",
            Self::Mp4 => "audio/mp4",
            Self::Wav => "audio/wav",
            Self::Flac => "audio/flac",
            Self::Mp3 => "audio/mpeg",
        }
    }

    /// Whether it holds the recording's own Opus packets; an MP4 does unless it is one of AAC.
    pub const fn holds_opus(self) -> bool {
        matches!(self, Self::Ogg | Self::Webm | Self::Mp4)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is none of ogg, webm, mp4, wav, flac, mp3")]
pub struct UnknownFormat(String);

/// Reads the words for one or several formats, with commas between.
///
/// # Errors
/// For a word that is no format.
pub fn formats(words: &str) -> Result<Vec<Format>, UnknownFormat> {
    words.split(',').map(|word| word.trim().parse()).collect()
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(word: &str) -> Result<Self, UnknownFormat> {
        let found = Self::ALL.into_iter().find(|format| word.eq_ignore_ascii_case(format.as_str()));
        found.ok_or_else(|| UnknownFormat(word.to_owned()))
    }
}
