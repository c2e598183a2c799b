//! The manifest: everything that is known of a recording, as one JSON document beside its files.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::analysis::Loudness;
use crate::call::{Codec, Encryption, ParticipantKind};
use crate::capture::TrackLedger;
use crate::config::OutputKind;
use crate::egress::EgressStatus;
use crate::mix::{ForwardReport, LaneReport, Obstacle, PassStats, Side, Unpassable};
use crate::room::{RoomInfo, Transport};
use crate::seal::Recipients;
use crate::time::{MediaTime, SampleCount};

use super::dtmf::DtmfEntry;
use super::life::{LegSilence, PauseEntry};
use super::outcome::{Outcome, Reason, StopReason};

/// The version of the manifest's form; it changes when a reader of the old form would misread the new one.
pub const MANIFEST_VERSION: u32 = 1;

/// One recording, told whole. All `*_sample` values are samples at 48 kHz since sample 0.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// The recording's id.
    pub recording_id: String,
    /// The room.
    pub room: RoomInfo,
    /// The wall time of sample 0 (the JoinResponse), UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// The wall time of the recording's end, UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub ended_at: OffsetDateTime,
    /// The length of the timeline.
    pub samples: SampleCount,
    /// The same in seconds.
    pub duration_seconds: f64,
    /// What became of it.
    pub outcome: Outcome,
    /// What keeps it from being complete.
    pub reasons: Vec<Reason>,
    /// Why it stopped.
    pub stopped_by: StopReason,
    /// The files.
    pub outputs: Vec<OutputEntry>,
    /// The files that tell about it.
    #[serde(default)]
    pub sidecars: Vec<SidecarEntry>,
    /// How loud the mix is; none where that was not measured.
    #[serde(default)]
    pub loudness: Option<Loudness>,
    /// Who spoke when, by its start. People may speak over each other; nobody over themselves. Nothing where files are
    /// encrypted.
    #[serde(default)]
    pub speech: Vec<SpeechEntry>,
    /// When it was paused; what was spoken then is nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pauses: Vec<PauseEntry>,
    /// What LiveKit Egress recorded, or was to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<EgressEntry>,
    /// Legs of which nothing came although it should have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leg_silent: Vec<LegSilence>,
    /// Keys that were pressed on telephones; only where they are to be noted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dtmf: Vec<DtmfEntry>,
    /// When the recorder's process got no processor time for a second or more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub starved: Vec<StarvedEntry>,
    /// Everybody who was there, a session each.
    pub participants: Vec<ParticipantEntry>,
    /// Every publication of every track.
    pub tracks: Vec<TrackEntry>,
    /// When media began, broke and came back.
    pub media: Vec<MediaEntry>,
    /// What made it.
    pub versions: Versions,
}

/// One file of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputEntry {
    /// What is in it.
    pub kind: OutputKind,
    /// The identity of the only one who is heard, for `tracks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub participant: Option<String>,
    /// The identities of those on the left, for `dual`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
    /// The identities of those on the right, for `dual`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub right: Vec<String>,
    /// Its name, relative to the manifest.
    pub file: String,
    /// The container: `ogg`.
    pub format: String,
    /// How the file is encrypted; none where it is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionEntry>,
    /// How long it plays.
    pub duration_seconds: f64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal; empty for what LiveKit Egress wrote, of which only the service had the bytes.
    pub sha256: String,
    /// How its Opus streams came about: one, or the two of `dual`.
    #[serde(default)]
    pub streams: Vec<StreamEntry>,
}

/// How a file is encrypted. Its size and hash are those of the encrypted file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionEntry {
    /// The format: `age`.
    pub scheme: String,
    /// The public keys of those who can decrypt it.
    pub recipients: Recipients,
}

impl EncryptionEntry {
    /// Encrypted to these; none where there is nobody.
    pub fn of(recipients: &Recipients) -> Option<Self> {
        (!recipients.is_empty()).then(|| Self { scheme: "age".into(), recipients: recipients.clone() })
    }
}

/// How one Opus stream of a file came about. What was neither passed through nor transcoded is packets of digital silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StreamEntry {
    /// Its side, for `dual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// How much of it is the senders' own packets.
    pub passed_seconds: f64,
    /// How much of it was decoded, mixed and encoded.
    pub transcoded_seconds: f64,
    /// From where on it was transcoded, if it was.
    pub transcoded_from_sample: Option<MediaTime>,
    /// Why passing through ended; none where it did not, or was never to begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<Unpassable>,
    /// How much of a mix is the only talker's own packets; none where none are to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarded_seconds: Option<f64>,
    /// Why the rest of such a mix was decoded, mixed and encoded, and how much each time, in seconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub transcoded_because: BTreeMap<Obstacle, f64>,
    /// What passing through did.
    pub pass_through: PassStats,
}

impl StreamEntry {
    /// How a stream that ends at `end` came about.
    pub fn new(side: Option<Side>, report: &LaneReport, end: MediaTime) -> Self {
        let transcoded = report.transcoded_from.map_or(0.0, |from| (end.as_secs_f64() - from.as_secs_f64()).max(0.0));
        Self {
            side,
            passed_seconds: report.pass.samples.as_secs_f64(),
            transcoded_seconds: transcoded,
            transcoded_from_sample: report.transcoded_from,
            because: report.because,
            forwarded_seconds: None,
            transcoded_because: BTreeMap::new(),
            pass_through: report.pass,
        }
    }

    /// How a mix came about that holds the talkers' own packets where only one talks.
    pub fn forwarded(report: &ForwardReport) -> Self {
        let because: BTreeMap<Obstacle, f64> =
            report.transcoded.iter().map(|(obstacle, samples)| (*obstacle, samples.as_secs_f64())).collect();
        let forwarded = report.forwarded.as_secs_f64();
        Self {
            side: None,
            passed_seconds: forwarded,
            transcoded_seconds: because.values().sum(),
            transcoded_from_sample: None,
            because: None,
            forwarded_seconds: Some(forwarded),
            transcoded_because: because,
            pass_through: PassStats { passed: report.packets, samples: report.forwarded, ..PassStats::default() },
        }
    }
}

/// What a file tells about a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SidecarKind {
    /// Who spoke when, as WebVTT.
    Speakers,
    /// The waveform, as JSON of `audiowaveform`.
    Peaks,
    /// A picture of who spoke when and how loud, PNG or SVG.
    Waveform,
    /// A picture of the frequencies, PNG.
    Spectrogram,
}

impl SidecarKind {
    /// The word for it in manifests and journals.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Speakers => "speakers",
            Self::Peaks => "peaks",
            Self::Waveform => "waveform",
            Self::Spectrogram => "spectrogram",
        }
    }
}

impl fmt::Display for SidecarKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SidecarKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "speakers" => Ok(Self::Speakers),
            "peaks" => Ok(Self::Peaks),
            "waveform" => Ok(Self::Waveform),
            "spectrogram" => Ok(Self::Spectrogram),
            _ => Err(format!("{word:?} is none of speakers, peaks, waveform, spectrogram")),
        }
    }
}

/// A file beside the recording that tells about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarEntry {
    /// What it tells.
    pub kind: SidecarKind,
    /// Its name, relative to the manifest.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// How the file is encrypted; none where it is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<EncryptionEntry>,
}

/// A stretch `[from, to)` in which somebody spoke.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpeechEntry {
    /// The identity.
    pub participant: String,
    /// First sample.
    pub from_sample: MediaTime,
    /// One past the last sample.
    pub to_sample: MediaTime,
}

/// What part somebody has in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The telephone leg.
    Caller,
    /// The voice agent.
    Agent,
    /// Anybody else.
    Participant,
}

impl From<ParticipantKind> for Role {
    fn from(kind: ParticipantKind) -> Self {
        match kind {
            ParticipantKind::Sip => Self::Caller,
            ParticipantKind::Agent => Self::Agent,
            ParticipantKind::Standard
            | ParticipantKind::Ingress
            | ParticipantKind::Egress
            | ParticipantKind::Connector => Self::Participant,
        }
    }
}

/// One participant's session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParticipantEntry {
    /// The server's id of the session.
    pub sid: String,
    /// Who.
    pub identity: String,
    /// The name shown to people; for a telephone leg without one, its number.
    pub name: String,
    /// LiveKit's kind.
    pub kind: ParticipantKind,
    /// The part in the call.
    pub role: Role,
    /// Attributes, as they were last.
    pub attributes: BTreeMap<String, String>,
    /// When the session began, or sample 0 for those already there.
    pub joined_sample: MediaTime,
    /// When it ended; none for those who were still there.
    pub left_sample: Option<MediaTime>,
    /// The server's word for why it ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub left_reason: String,
    /// How long they spoke; none where that was not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaking_seconds: Option<f64>,
}

/// One publication of a track.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrackEntry {
    /// The server's id.
    pub sid: String,
    /// Whose session.
    pub participant_sid: String,
    /// Who.
    pub identity: String,
    /// The publisher's name for it.
    pub name: String,
    /// Where the sound came from.
    pub source: String,
    /// The codec.
    pub codec: Codec,
    /// How its frames came encrypted from end to end.
    #[serde(default, skip_serializing_if = "is_plain")]
    pub encryption: Encryption,
    /// When it was published, or sample 0.
    pub published_sample: MediaTime,
    /// When it was unpublished, or the end.
    pub unpublished_sample: MediaTime,
    /// How each sample of that span was settled.
    pub ledger: TrackLedger,
}

fn is_plain(encryption: &Encryption) -> bool {
    *encryption == Encryption::None
}

/// A stretch in which the recorder's process got no processor time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StarvedEntry {
    /// First sample.
    pub from_sample: MediaTime,
    /// One past the last sample.
    pub to_sample: MediaTime,
}

/// An egress that recorded all of a call, or a part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EgressEntry {
    /// The server's id.
    pub egress_id: String,
    /// How it ended, or how it stood last.
    pub status: EgressStatus,
    /// When its file begins, in seconds on the recording's timeline; by the service's clock, which may be another's.
    pub from_seconds: f64,
    /// The wall time of that, UTC.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub started_at: Option<OffsetDateTime>,
    /// The wall time of its end, UTC.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<OffsetDateTime>,
    /// Why it stood in for callreel's own bot; none where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// The layout of the picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// The name of its file, relative to the manifest.
    pub file: String,
    /// The container.
    pub format: String,
    /// How long the file plays.
    pub duration_seconds: f64,
    /// The file's size.
    pub bytes: u64,
    /// What went wrong, in the service's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// What else the service said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

impl EgressEntry {
    /// Its file as an output of the recording; none where there is no file. Nobody but the service had the bytes, so there is
    /// no hash.
    pub fn output(&self) -> Option<OutputEntry> {
        let has_file = matches!(self.status, EgressStatus::Complete | EgressStatus::LimitReached) && self.bytes > 0;
        has_file.then(|| OutputEntry {
            kind: OutputKind::Mix,
            participant: None,
            left: Vec::new(),
            right: Vec::new(),
            file: self.file.clone(),
            format: self.format.clone(),
            encryption: None,
            duration_seconds: self.duration_seconds,
            bytes: self.bytes,
            sha256: String::new(),
            streams: Vec::new(),
        })
    }
}

/// A change of the media connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MediaEntry {
    /// When.
    pub sample: MediaTime,
    /// How media arrives from then on; none while it does not.
    pub transport: Option<Transport>,
}

/// What made the recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// callreel.
    pub callreel: String,
    /// libopus.
    pub libopus: String,
    /// The LiveKit server.
    pub livekit_server: String,
}

impl Manifest {
    /// Whether every ledger covers its track's span exactly, and all speech lies within the recording; the message names
    /// what does not.
    pub fn check(&self) -> Result<(), String> {
        for track in &self.tracks {
            let span = track.unpublished_sample.since(track.published_sample);
            track.ledger.check(track.published_sample, span).map_err(|why| format!("track {}: {why}", track.sid))?;
        }
        let end = MediaTime::ZERO + self.samples;
        for said in &self.speech {
            if said.from_sample < MediaTime::ZERO || said.to_sample <= said.from_sample || said.to_sample > end {
                let SpeechEntry { participant, from_sample, to_sample } = said;
                return Err(format!("{participant} speaks from {from_sample} to {to_sample} of a recording of {end}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speech_outside_of_the_recording_is_found() {
        let manifest: Manifest = serde_json::from_str(include_str!("../../fuzz/seeds/manifest.json")).unwrap();
        manifest.check().unwrap();
        let end = manifest.samples.0 as i64;
        for (from, to, fits) in [(0, end, true), (0, end + 1, false), (-1, end, false), (9, 9, false)] {
            let (from_sample, to_sample) = (MediaTime(from), MediaTime(to));
            let said = SpeechEntry { participant: "alice".into(), from_sample, to_sample };
            let manifest = Manifest { speech: vec![said], ..manifest.clone() };
            assert_eq!(manifest.check().is_ok(), fits, "{from} to {to} of {end}");
        }
    }
}
