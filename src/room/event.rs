//! What the room engine tells: one typed stream of events and packets, in the order they happened.

use std::time::Instant;

use bytes::Bytes;

use super::data::DataMessage;
use crate::call::{Codec, Participant, Track, TrackKey};
use crate::e2ee::Problem;
use crate::time::{RtpTime, Seq};

/// Something that happened in the room. Every event carries the moment this process learned of it, but for
/// [`Media`](Self::Media) that broke.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RoomEvent {
    /// The server accepted us (JoinResponse). Always the first event; sample 0 of the recording.
    Joined {
        /// The room.
        room: RoomInfo,
        /// The recorder's own participant id.
        recorder_sid: String,
        /// When the JoinResponse arrived.
        at: Instant,
    },
    /// Somebody is in the room: sent for everyone present at the start, too.
    ParticipantJoined {
        /// Who.
        participant: Participant,
        /// When.
        at: Instant,
    },
    /// A participant's name or attributes changed (a telephone leg was answered, say).
    ParticipantUpdated {
        /// The participant as it is now; its `sid` names it.
        participant: Participant,
        /// When.
        at: Instant,
    },
    /// A participant left. Its tracks were unpublished before.
    ParticipantLeft {
        /// Who (`PA_…`).
        sid: String,
        /// The server's word for why, in lower case (`client_initiated`, `room_closed`…), empty where it gave none.
        reason: String,
        /// When.
        at: Instant,
    },
    /// An audio track was published; the engine subscribes to it by itself.
    TrackPublished {
        /// Whose it is (`PA_…`).
        participant_sid: String,
        /// The track.
        track: Track,
        /// When.
        at: Instant,
    },
    /// The publisher muted or unmuted a track.
    TrackMuted {
        /// The track.
        track: TrackKey,
        /// Whether it is muted now.
        muted: bool,
        /// When.
        at: Instant,
    },
    /// A track is gone: unpublished, or its publisher left.
    ///
    /// Its last packets may come after this word: they travel another way, and those that were lost are sent again.
    TrackUnpublished {
        /// The track.
        track: TrackKey,
        /// When.
        at: Instant,
    },
    /// The server could not or would not give us a track.
    SubscriptionFailed {
        /// The track.
        track: TrackKey,
        /// The server's reason.
        reason: String,
        /// When.
        at: Instant,
    },
    /// One RTP packet of a subscribed track.
    Rtp(RtpPacket),
    /// A sender report of a track's publisher (RFC 3550 §6.4.1), as the server passed it on.
    SenderReport {
        /// The track.
        track: TrackKey,
        /// The publisher's wall clock, 32.32 fixed point seconds since 1900. Not comparable between publishers.
        ntp: u64,
        /// The RTP time of the same moment.
        rtp: RtpTime,
        /// When the report arrived.
        at: Instant,
    },
    /// Somebody sent a message; only where [`RoomConfig::topics`](crate::room::RoomConfig::topics) asks for them.
    ///
    /// At most 16 KiB each, and about a hundred a second. What is sent while the recorder's session is
    /// [joined anew](crate::room) is missed.
    Data {
        /// The sender's identity, which the server vouches for; empty where it names none, as for messages through its
        /// API.
        from: String,
        /// What was sent.
        message: DataMessage,
        /// When it arrived.
        at: Instant,
    },
    /// Frames of an end-to-end encrypted track could not be opened. Told at once, then at most once a second a track.
    Undecryptable {
        /// The track.
        track: TrackKey,
        /// Why.
        problem: Problem,
        /// How many frames since the last such event.
        frames: u64,
        /// When.
        at: Instant,
    },
    /// Media began, broke or came back.
    Media {
        /// The state now.
        state: MediaState,
        /// When. Where it broke: with the last that came, which is noticed some seconds later.
        at: Instant,
    },
    /// The server told more about the room: its id, where it was not settled when we joined; or it moved us to another
    /// one, and we [follow](crate::room::RoomMovedPolicy). Who is not there has left by then, who is there joins after it.
    RoomUpdated {
        /// The room as it is now.
        room: RoomInfo,
        /// When.
        at: Instant,
    },
    /// Packets and sender reports were thrown away because nobody fetched events for so long that the
    /// [backlog](crate::room::RoomConfig::backlog) was full.
    Overrun {
        /// How many since the last such event.
        dropped: u64,
        /// When there was room again.
        at: Instant,
    },
    /// The engine is done; no event follows.
    Closed {
        /// Why.
        reason: CloseReason,
        /// When.
        at: Instant,
    },
}

/// Whether audio can reach us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaState {
    /// ICE and DTLS are up, over this transport.
    Connected(Transport),
    /// Media cannot arrive at present; the engine is trying to mend that.
    Interrupted,
}

/// How media reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// ICE over UDP.
    Udp,
    /// ICE over TCP (RFC 6544), frames as RFC 4571.
    Tcp,
    /// A relay (TURN, RFC 8656), itself reached over UDP, TCP or TLS.
    Relay,
}

/// Why the engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// [`close`](crate::room::Room::close) was called.
    Requested,
    /// The server closed or deleted the room.
    RoomClosed,
    /// Somebody removed the recorder, or took its identity.
    Removed(String),
    /// The server moved the recorder to this room, and it does not [follow](crate::room::RoomMovedPolicy).
    Moved(String),
    /// The connection was lost for good.
    Lost(String),
}

/// The room as the JoinResponse describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RoomInfo {
    /// The server's id (`RM_…`), empty where the server had not settled it yet.
    pub sid: String,
    /// The room's name.
    pub name: String,
    /// The server's version; empty where the engine is not told.
    pub server_version: String,
}

/// One RTP packet, its header unwrapped.
#[derive(Clone, Debug)]
pub struct RtpPacket {
    /// The track it belongs to.
    pub track: TrackKey,
    /// The stream: a publisher that restarts, or a re-used m-line, brings a new one.
    pub ssrc: u32,
    /// What this packet is coded with.
    pub codec: Codec,
    /// Sequence number without its wrap; comparable within one SSRC.
    pub seq: Seq,
    /// Timestamp without its wrap, in ticks of [`Codec::clock_rate`]; comparable within one SSRC.
    pub rtp: RtpTime,
    /// The marker bit.
    pub marker: bool,
    /// The codec's payload.
    pub payload: Bytes,
    /// The payload is end-to-end encrypted and could not be opened: what is left of it tells how long it lasts (for Opus
    /// its first byte), and nothing else.
    pub undecryptable: bool,
    /// When it arrived at our socket.
    pub arrival: Instant,
}
