//! The people and tracks of a call, as every part of callreel names them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One publication of one track within one recording. A track that is published again gets a new key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrackKey(pub u32);

impl fmt::Display for TrackKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// What kind of participant LiveKit says somebody is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ParticipantKind {
    /// A person in an app or a browser.
    #[default]
    Standard,
    /// A telephone leg through LiveKit's SIP bridge.
    Sip,
    /// A voice agent.
    Agent,
    /// A stream brought in through LiveKit Ingress.
    Ingress,
    /// Another recorder.
    Egress,
    /// A connector (WhatsApp, Twilio) or a bridge to another system.
    Connector,
}

impl ParticipantKind {
    /// Whether the call goes on for this participant's sake: agents and recorders alone do not keep a call alive.
    pub fn keeps_call_alive(self) -> bool {
        match self {
            Self::Standard | Self::Sip | Self::Ingress | Self::Connector => true,
            Self::Agent | Self::Egress => false,
        }
    }
}

/// A participant as LiveKit describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Participant {
    /// The server's id of this session (`PA_…`); a participant who rejoins gets a new one.
    pub sid: String,
    /// Who it is: stable over sessions.
    pub identity: String,
    /// The name shown to people, often empty.
    pub name: String,
    /// What kind of participant it is.
    pub kind: ParticipantKind,
    /// Attributes; telephone legs carry `sip.*` ones.
    pub attributes: BTreeMap<String, String>,
}

/// How a track's audio is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Opus (RFC 6716), RTP clock 48 kHz whatever the audio bandwidth (RFC 7587 §4.1).
    Opus,
    /// G.711 µ-law, 8 kHz (RFC 3551 §4.5.14).
    Pcmu,
    /// G.711 A-law, 8 kHz (RFC 3551 §4.5.14).
    Pcma,
}

impl Codec {
    /// Ticks a second of the RTP timestamp.
    pub const fn clock_rate(self) -> u32 {
        match self {
            Self::Opus => 48_000,
            Self::Pcmu | Self::Pcma => 8_000,
        }
    }
}

/// How a track's frames are encrypted from its publisher to those who listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Not at all: the server could listen, too.
    #[default]
    None,
    /// As [`e2ee`](crate::e2ee) says.
    Gcm,
    /// In a way of the application's own.
    Custom,
}

/// An audio track as LiveKit describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// The key of this publication.
    pub key: TrackKey,
    /// The server's id (`TR_…`).
    pub sid: String,
    /// The publisher's name for it.
    pub name: String,
    /// `microphone`, `screen_share_audio` or `unknown`.
    pub source: String,
    /// The codec it is announced with; a packet's own payload type decides.
    pub codec: Codec,
    /// Whether the publisher says that it sends two channels.
    pub stereo: bool,
    /// How frames are encrypted from end to end.
    pub encryption: Encryption,
    /// Whether the publisher has muted it.
    pub muted: bool,
}
