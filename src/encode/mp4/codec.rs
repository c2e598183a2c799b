//! Which codec the sound of an MP4 file is in.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::encode::EncodeError;

/// The codec in MP4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mp4Codec {
    /// The recording's own packets.
    #[default]
    Opus,
    /// AAC-LC, for players that know no other: what the packets sound like, encoded anew.
    Aac,
}

impl Mp4Codec {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opus => "opus",
            Self::Aac => "aac",
        }
    }
}

impl fmt::Display for Mp4Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mp4Codec {
    type Err = EncodeError;

    fn from_str(word: &str) -> Result<Self, EncodeError> {
        let found = [Self::Opus, Self::Aac].into_iter().find(|codec| word.eq_ignore_ascii_case(codec.as_str()));
        found.ok_or_else(|| EncodeError::Config {
            setting: "MP4 codec",
            value: format!("{word:?}"),
            allowed: "opus or aac",
        })
    }
}
