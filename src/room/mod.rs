//! The LiveKit participant: signalling, SDP, peer connection, subscriptions.

pub mod event;

pub use event::{CloseReason, MediaState, RoomEvent, RoomInfo, RtpPacket, Transport};
