//! Keys that are pressed on a telephone.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::time::MediaTime;

/// What is done about keys that are pressed on a telephone, which LiveKit tells by a data message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DtmfPolicy {
    /// Nothing: keys are noted nowhere, and the leg is recorded as it is. The default.
    #[default]
    Ignore,
    /// The manifest tells which keys were pressed when.
    Note,
    /// Keys are noted nowhere, and what came of their leg from [`BEFORE`](Self::BEFORE) to [`AFTER`](Self::AFTER) each is
    /// withheld: its tones may be in its sound, too. All files are later by the former.
    Withhold,
}

impl DtmfPolicy {
    /// How long before a key is told its tone may have begun.
    pub const BEFORE: Duration = Duration::from_millis(600);

    /// How long after a key is told its tone may last.
    pub const AFTER: Duration = Duration::from_millis(400);

    /// How long packets have to be kept back for that.
    pub fn lookback(self) -> Duration {
        match self {
            // With what a look at the packets may be late.
            Self::Withhold => Self::BEFORE + Duration::from_millis(200),
            Self::Ignore | Self::Note => Duration::ZERO,
        }
    }
}

impl FromStr for DtmfPolicy {
    type Err = ConfigError;

    fn from_str(word: &str) -> Result<Self, ConfigError> {
        match word {
            "ignore" => Ok(Self::Ignore),
            "note" => Ok(Self::Note),
            "withhold" => Ok(Self::Withhold),
            _ => Err(ConfigError::Invalid { key: "dtmf", why: format!("{word:?} is none of ignore, note, withhold") }),
        }
    }
}

/// A key that was pressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DtmfEntry {
    /// Whose, by identity.
    pub participant: String,
    /// Which: `0` to `9`, `*`, `#`, `A` to `D`.
    pub digit: String,
    /// When this was told.
    pub sample: MediaTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_by_their_words() {
        assert_eq!("withhold".parse(), Ok(DtmfPolicy::Withhold));
        assert!("keep".parse::<DtmfPolicy>().unwrap_err().to_string().contains("note"));
        assert!(DtmfPolicy::Withhold.lookback() > DtmfPolicy::BEFORE);
        assert_eq!(DtmfPolicy::default().lookback(), Duration::ZERO);
    }
}
