//! How a recording ended, as one type that the manifest, the result line, the exit code and the handle share.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What became of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything the room delivered is in the file.
    Complete,
    /// There is a recording, and it lacks something; the reasons say what.
    Degraded,
    /// Nobody was there to be heard.
    Empty,
    /// There is no recording, or only its beginning.
    Failed,
    /// Nothing was kept: the consent that was asked for never came.
    Blocked,
}

impl Outcome {
    /// The exit code of a process that recorded one call. Bad usage is 2, as is usual for command lines.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Failed => 1,
            Self::Degraded => 3,
            Self::Empty => 4,
            Self::Blocked => 5,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Degraded => "degraded",
            Self::Empty => "empty",
            Self::Failed => "failed",
            Self::Blocked => "blocked",
        })
    }
}

/// Something that keeps a recording from being complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Audio of a track never arrived.
    LostAudio {
        /// Whose.
        participant: String,
        /// The server's id of the track.
        track: String,
        /// How much, in seconds.
        seconds: f64,
    },
    /// The recorder was not there for a while.
    RecorderDown {
        /// How long, in seconds, summed over tracks.
        seconds: f64,
    },
    /// The server would not hand over a track.
    SubscriptionFailed {
        /// The server's id of the track.
        track: String,
        /// The server's words.
        message: String,
    },
    /// A track could not be decoded, in whole or in part.
    Undecodable {
        /// The server's id of the track.
        track: String,
        /// Packets that the decoder refused.
        packets: u64,
    },
    /// Frames of an end-to-end encrypted track could not be decrypted; there is silence in their place.
    Undecryptable {
        /// Whose.
        participant: String,
        /// The server's id of the track.
        track: String,
        /// How many.
        frames: u64,
        /// Why.
        message: String,
    },
    /// One of several outputs is not whole; the others are.
    Output {
        /// Which one: `mix`, `dual`, or `tracks` of whom.
        output: String,
        /// What went wrong.
        message: String,
    },
    /// The recorder's process died; the recording was ended afterwards.
    Interrupted {
        /// Up to where it is known how samples came about, in seconds; what follows is in the files alone.
        accounted_seconds: f64,
    },
    /// The recorder's process died while the call went on, and another one went on with the recording.
    Restarted {
        /// Up to where it was known how samples came about when it died, in seconds.
        accounted_seconds: f64,
        /// Where the files hold silence because nobody recorded, in seconds…
        from_seconds: f64,
        /// …up to here.
        to_seconds: f64,
    },
    /// LiveKit Egress recorded from some moment on, because callreel's own bot could not.
    FellBack {
        /// The server's id of the egress.
        egress_id: String,
        /// From when on, in seconds; what is before is the own bot's.
        from_seconds: f64,
        /// Why.
        because: String,
    },
    /// What LiveKit Egress recorded is there, and not all of it, or not where it belongs.
    EgressLacks {
        /// What is wrong.
        message: String,
    },
    /// LiveKit Egress was to record, and there is nothing of it.
    Egress {
        /// What went wrong.
        message: String,
    },
    /// The room could not be joined.
    Join {
        /// What went wrong.
        message: String,
    },
    /// The connection to the room was lost for good before the call ended.
    ConnectionLost {
        /// What went wrong.
        message: String,
    },
    /// Somebody removed the recorder from the room.
    Removed {
        /// The server's word for it.
        message: String,
    },
    /// The server moved the recorder to another room, and it does not follow.
    RoomMoved {
        /// Where to.
        room: String,
    },
    /// The recording could not be written.
    Storage {
        /// What went wrong.
        message: String,
    },
    /// The recording is whole, and not in its store yet: it waits in the spool for `callreel recover`.
    Upload {
        /// What went wrong.
        message: String,
    },
    /// The consent that was asked for never came.
    NoConsent {
        /// What would have been consent.
        wanted: String,
    },
    /// The recorder itself is at fault.
    Internal {
        /// What went wrong.
        message: String,
    },
}

impl Reason {
    /// Whether this ended the recording before the call did.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Join { .. }
            | Self::Egress { .. }
            | Self::ConnectionLost { .. }
            | Self::Removed { .. }
            | Self::RoomMoved { .. }
            | Self::Storage { .. }
            | Self::Internal { .. } => true,
            Self::LostAudio { .. }
            | Self::FellBack { .. }
            | Self::EgressLacks { .. }
            | Self::RecorderDown { .. }
            | Self::SubscriptionFailed { .. }
            | Self::Output { .. }
            | Self::Interrupted { .. }
            | Self::Restarted { .. }
            | Self::Upload { .. }
            | Self::NoConsent { .. }
            | Self::Undecryptable { .. }
            | Self::Undecodable { .. } => false,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LostAudio { participant, track, seconds } => {
                write!(f, "{seconds:.3} s of {participant} ({track}) never arrived")
            }
            Self::RecorderDown { seconds } => write!(f, "the recorder was not there for {seconds:.3} s"),
            Self::SubscriptionFailed { track, message } => write!(f, "no subscription to {track}: {message}"),
            Self::Undecodable { track, packets } => write!(f, "{packets} packets of {track} could not be decoded"),
            Self::Undecryptable { participant, track, frames, message } => {
                write!(f, "{frames} frames of {participant} ({track}) could not be decrypted: {message}")
            }
            Self::Output { output, message } => write!(f, "the output {output} is not whole: {message}"),
            Self::Interrupted { accounted_seconds } => {
                write!(f, "the recorder's process died; {accounted_seconds:.3} s are accounted for")
            }
            Self::Restarted { from_seconds, to_seconds, .. } => {
                let missing = to_seconds - from_seconds;
                write!(f, "the recorder's process died; {missing:.3} s from {from_seconds:.3} s on are missing")
            }
            Self::FellBack { egress_id, from_seconds, because } => {
                write!(f, "LiveKit Egress ({egress_id}) recorded from {from_seconds:.3} s on: {because}")
            }
            Self::EgressLacks { message } => write!(f, "what LiveKit Egress recorded is not whole: {message}"),
            Self::Egress { message } => write!(f, "LiveKit Egress recorded nothing: {message}"),
            Self::Join { message } => write!(f, "cannot join: {message}"),
            Self::ConnectionLost { message } => write!(f, "connection lost: {message}"),
            Self::Removed { message } => write!(f, "removed from the room: {message}"),
            Self::RoomMoved { room } => write!(f, "the server moved the recorder to room {room:?}"),
            Self::Storage { message } => write!(f, "cannot write the recording: {message}"),
            Self::Upload { message } => write!(f, "not in its store yet, safe in the spool: {message}"),
            Self::NoConsent { wanted } => write!(f, "nobody consented by {wanted}"),
            Self::Internal { message } => write!(f, "internal fault: {message}"),
        }
    }
}

/// Why the recorder stopped, whatever the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// It was told to.
    Requested,
    /// The process was told to end.
    Signal,
    /// The server closed or deleted the room.
    RoomClosed,
    /// The last participant who keeps a call alive had left.
    Departed,
    /// The caller had left.
    CallerLeft,
    /// All those had left whose leaving was to end it.
    ParticipantLeft,
    /// Nobody for whose sake it would have been recorded came in time.
    NobodyCame,
    /// Nobody said anything for the time that was set.
    Silence,
    /// The longest allowed duration was reached.
    MaxDuration,
    /// The most allowed bytes were reached.
    MaxBytes,
    /// A fault ended it; the reasons say which.
    Fault,
}

/// The outcome that these findings add up to. `heard` says whether any packet of anybody was recorded. A call of which nothing
/// could be decrypted has failed: somebody spoke, and there is no recording of it.
pub fn judge(heard: bool, reasons: &[Reason]) -> Outcome {
    let undecryptable = reasons.iter().any(|reason| matches!(reason, Reason::Undecryptable { .. }));
    if reasons.iter().any(Reason::is_fatal) || (!heard && undecryptable) {
        return Outcome::Failed;
    }
    if reasons.iter().any(|reason| matches!(reason, Reason::NoConsent { .. })) {
        return Outcome::Blocked;
    }
    if !heard {
        return Outcome::Empty;
    }
    if reasons.is_empty() { Outcome::Complete } else { Outcome::Degraded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_degrade_and_faults_fail() {
        let lost = Reason::LostAudio { participant: "a".into(), track: "TR_a".into(), seconds: 0.5 };
        let full = Reason::Storage { message: "disk full".into() };
        assert_eq!(judge(true, &[]), Outcome::Complete);
        assert_eq!(judge(false, &[]), Outcome::Empty);
        assert_eq!(judge(true, std::slice::from_ref(&lost)), Outcome::Degraded);
        assert_eq!(judge(true, &[lost, full.clone()]), Outcome::Failed);
        let silent = Reason::NoConsent { wanted: "attribute=consent".into() };
        assert_eq!(judge(true, std::slice::from_ref(&silent)), Outcome::Blocked);
        assert_eq!(judge(true, &[silent, full]), Outcome::Failed);
        let (participant, track, message) = ("a".into(), "TR_a".into(), "key number 0 is wrong".into());
        let sealed = [Reason::Undecryptable { participant, track, frames: 7, message }];
        assert_eq!((judge(true, &sealed), judge(false, &sealed)), (Outcome::Degraded, Outcome::Failed));
    }

    #[test]
    fn each_outcome_has_its_own_exit_code_and_none_is_bad_usage() {
        let all = [Outcome::Complete, Outcome::Degraded, Outcome::Empty, Outcome::Failed, Outcome::Blocked];
        let mut codes: Vec<u8> = all.iter().map(|o| o.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all.len());
        assert!(!codes.contains(&2));
    }

    #[test]
    fn a_reason_reads_as_json_with_its_name() {
        let json = serde_json::to_value(Reason::RecorderDown { seconds: 1.5 }).unwrap();
        assert_eq!(json, serde_json::json!({"reason": "recorder_down", "seconds": 1.5}));
    }
}
