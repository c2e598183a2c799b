//! A rule of the configuration file: which rooms, and how they are recorded. `service::rules` reads it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::OutputKind;
use super::file::Time;
use super::serve_file::{EngineWord, FallbackWord};
use crate::recording::PausePolicy;

/// Which rooms, and how they are recorded. All conditions have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleSpec {
    /// What it is called in the catalogue. Default: `rule-1`, `rule-2`…
    pub name: Option<String>,
    /// The room's name, with `*` for any characters and `?` for one. Default: any.
    pub room: Option<String>,
    /// A regular expression that the room's name has to match as a whole, instead.
    pub room_regex: Option<String>,
    /// What the room's metadata has to say, as JSON: a path with dots, and its value.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// Whether there has to be a telephone leg.
    pub sip_only: bool,
    /// What a participant's attributes have to say; any participant's.
    pub participant_attribute: Option<AttributeSpec>,
    /// Whether such rooms are recorded. Default true.
    pub record: Option<bool>,
    /// Which files.
    pub outputs: Option<Vec<OutputKind>>,
    /// `ogg`, `webm`, `mp4`, `wav`, `flac` or `mp3`; several with commas.
    pub format: Option<String>,
    /// Whether the picture is recorded, too; LiveKit Egress does that.
    pub video: Option<bool>,
    /// The picture's layout.
    pub layout: Option<String>,
    /// What names begin with, such as `calls/support`.
    pub prefix: Option<String>,
    /// The name template behind that.
    pub file_path: Option<String>,
    /// Who records.
    pub engine: Option<EngineWord>,
    /// What stands in.
    pub fallback: Option<FallbackWord>,
    /// Days from the recording's end; 0 for ever.
    pub retention_days: Option<u32>,
    /// What files have where it was paused.
    pub pause: Option<PausePolicy>,
    /// Signs of consent, any of which lets it begin: `attribute=KEY`, `attribute=KEY=VALUE` or `message=TOPIC`.
    pub consent: Vec<String>,
    /// The longest recording.
    pub max_duration: Option<Time>,
}

/// An attribute of a participant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AttributeSpec {
    /// Its name.
    pub key: String,
    /// The value it must have. Default: any but none.
    #[serde(default)]
    pub value: Option<String>,
}
