//! The flags for keys to end-to-end encrypted calls.

use std::path::PathBuf;

use crate::config::{ConfigError, ConfigFile, E2ee, participant_key};
use crate::e2ee::E2eeConfig;
use crate::store::Secret;

/// Keys to end-to-end encrypted calls.
#[derive(Debug, clap::Args)]
pub(super) struct E2eeArgs {
    /// The key to an end-to-end encrypted call that all participants share: a passphrase, or hex: or base64: before bytes
    #[arg(long, env = "CALLREEL_E2EE_KEY", value_name = "KEY", hide_env_values = true)]
    e2ee_key: Option<String>,
    /// A file that holds that key
    #[arg(long, env = "CALLREEL_E2EE_KEY_FILE", value_name = "FILE")]
    e2ee_key_file: Option<PathBuf>,
    /// The keys' place in the ring, 0 to 15 [default: 0]
    #[arg(long, env = "CALLREEL_E2EE_KEY_INDEX", value_name = "N")]
    e2ee_key_index: Option<u8>,
    /// A participant's own key; may be given again, in the environment with a key a line
    #[arg(
        long,
        env = "CALLREEL_E2EE_PARTICIPANT_KEYS",
        value_name = "WHO=KEY",
        value_delimiter = '\n',
        hide_env_values = true
    )]
    e2ee_participant_key: Vec<String>,
    /// How many keys ahead are tried where a sender's last one does not fit [default: 16]
    #[arg(long, env = "CALLREEL_E2EE_RATCHET_WINDOW", value_name = "N")]
    e2ee_ratchet_window: Option<u8>,
    /// After how many failures in a row a key is not tried any more [default: never]
    #[arg(long, env = "CALLREEL_E2EE_FAILURE_TOLERANCE", value_name = "N")]
    e2ee_failure_tolerance: Option<u32>,
}

impl E2eeArgs {
    /// The keys that flags, environment and file name together.
    pub(super) fn keys(self, file: &ConfigFile) -> Result<E2eeConfig, ConfigError> {
        let participants = self.e2ee_participant_key.iter().filter(|text| !text.is_empty());
        let asked = E2ee {
            key: self.e2ee_key.map(Secret::new),
            key_file: self.e2ee_key_file,
            key_index: self.e2ee_key_index,
            participants: participants.map(|text| participant_key(text)).collect::<Result<_, _>>()?,
            ratchet_window: self.e2ee_ratchet_window,
            failure_tolerance: self.e2ee_failure_tolerance,
        };
        asked.or(file.e2ee.clone().unwrap_or_default()).keys()
    }
}
