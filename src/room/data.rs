//! Data messages: what participants and the server send beside sound. Pure: bytes and time in, messages out.
//!
//! They come over SCTP, in channels that the server opens on our connection, as `DataPacket`s. The server itself writes the
//! sender's identity into each, so that nobody can speak in another's name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use livekit_protocol::{DataPacket, data_packet};
use prost::Message;

/// The longest packet that is read. LiveKit's own limit for a reliable message is a little below.
const LONGEST: usize = 16 << 10;

/// How many messages of one sender are told a second in the long run, and at once: commands and keys pressed are a few.
const RATE: f64 = 20.0;
const BURST: f64 = 100.0;

/// How many senders are counted at a time, each by itself.
const SENDERS: usize = 1024;

/// How often messages that were left out are spoken of in the log.
const REMARK: Duration = Duration::from_secs(10);

/// The channels that carry `DataPacket`s; others have formats of their own.
const CHANNELS: [&str; 2] = ["_reliable", "_lossy"];

/// What somebody sent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataMessage {
    /// Bytes of an application's own.
    User {
        /// What they are about; empty where the sender named nothing.
        topic: String,
        /// The bytes.
        payload: Bytes,
    },
    /// A key pressed on a telephone (RFC 4733 §3.2).
    Dtmf {
        /// The event code.
        code: u32,
        /// The key: `0` to `9`, `*`, `#`, `A` to `D`.
        digit: String,
    },
    /// A remote procedure call that was addressed to us. It cannot be answered: a recorder may not send data, so the
    /// caller sees a time-out, whatever comes of it here.
    Rpc {
        /// The procedure.
        method: String,
        /// Its argument.
        payload: String,
        /// The call's id.
        request_id: String,
    },
}

/// Whether a channel of this label carries what [`decode`] reads.
pub(super) fn is_carrier(label: &str) -> bool {
    CHANNELS.contains(&label)
}

/// Reads a message and who it is from: an identity, empty where the server names none (a message through its API, a
/// hidden sender). `None` for what is no message of the kinds that we tell, or longer than 16 KiB.
pub(crate) fn decode(packet: &[u8]) -> Option<(String, DataMessage)> {
    if packet.len() > LONGEST {
        return None;
    }
    let packet = DataPacket::decode(packet).ok()?;
    let message = match packet.value? {
        data_packet::Value::User(user) => {
            DataMessage::User { topic: user.topic.unwrap_or_default(), payload: user.payload.into() }
        }
        data_packet::Value::SipDtmf(key) => DataMessage::Dtmf { code: key.code, digit: key.digit },
        data_packet::Value::RpcRequest(call) => {
            DataMessage::Rpc { method: call.method, payload: call.payload, request_id: call.id }
        }
        // Transcripts, chat, streams and what else SDKs build on data packets.
        _ => return None,
    };
    Some((packet.participant_identity, message))
}

/// Which messages are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Topics, and procedures of these names.
    pub(super) topics: BTreeSet<String>,
    /// Keys pressed on telephones.
    pub(super) dtmf: bool,
}

impl Wanted {
    /// Whether no message can be.
    pub(super) fn is_nothing(&self) -> bool {
        self.topics.is_empty() && !self.dtmf
    }

    fn has(&self, message: &DataMessage) -> bool {
        match message {
            DataMessage::User { topic, .. } => self.topics.contains(topic),
            DataMessage::Rpc { method, .. } => self.topics.contains(method),
            DataMessage::Dtmf { .. } => self.dtmf,
        }
    }
}

/// Lets wanted messages through as long as their sender does not flood us: what waits for the recorder is kept in memory.
/// What an application sends for itself counts for nothing, and nobody counts for another.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    wanted: Wanted,
    senders: BTreeMap<String, Allowance>,
    left_out: u64,
    remarked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Allowance {
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        Self { left: (self.left + passed * RATE).min(BURST), at: now }
    }
}

impl Gate {
    /// Nothing came yet.
    pub(super) fn new(wanted: Wanted) -> Self {
        Self { wanted, senders: BTreeMap::new(), left_out: 0, remarked: None }
    }

    /// Whether any message can pass.
    pub(super) fn is_shut(&self) -> bool {
        self.wanted.is_nothing()
    }

    /// Whether a message that comes now may pass.
    pub(super) fn admits(&mut self, from: &str, message: &DataMessage, now: Instant) -> bool {
        if !self.wanted.has(message) {
            return false;
        }
        if !self.senders.contains_key(from) {
            self.make_room(now);
        }
        let sender = self.senders.entry(from.to_owned()).or_insert(Allowance { left: BURST, at: now });
        *sender = sender.at(now);
        if sender.left >= 1.0 {
            sender.left -= 1.0;
            return true;
        }
        self.left_out += 1;
        if self.remarked.is_none_or(|at| now.saturating_duration_since(at) >= REMARK) {
            self.remarked = Some(now);
            tracing::warn!(sender = from, left_out = self.left_out, "more data messages than a recorder reads");
        }
        false
    }

    /// Forgets who has sent little, and then who has sent nothing for the longest.
    fn make_room(&mut self, now: Instant) {
        if self.senders.len() < SENDERS {
            return;
        }
        self.senders.retain(|_, sender| sender.at(now).left < BURST);
        while self.senders.len() >= SENDERS
            && let Some(oldest) = self.senders.iter().min_by_key(|(_, sender)| sender.at).map(|(who, _)| who.clone())
        {
            self.senders.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use livekit_protocol::{RpcRequest, SipDtmf, Transcription, UserPacket};

    fn packet(from: &str, value: data_packet::Value) -> Vec<u8> {
        DataPacket { participant_identity: from.into(), value: Some(value), ..Default::default() }.encode_to_vec()
    }

    fn user(topic: Option<&str>, payload: &[u8]) -> data_packet::Value {
        data_packet::Value::User(UserPacket {
            topic: topic.map(str::to_owned),
            payload: payload.to_vec(),
            ..Default::default()
        })
    }

    #[test]
    fn messages_are_told_with_their_sender() {
        let said = decode(&packet("ann", user(Some("recording"), b"pause")));
        let expected = DataMessage::User { topic: "recording".into(), payload: Bytes::from_static(b"pause") };
        assert_eq!(said, Some(("ann".into(), expected)));
        let bare = decode(&packet("", user(None, b"")));
        assert_eq!(bare, Some((String::new(), DataMessage::User { topic: String::new(), payload: Bytes::new() })));
        let key = data_packet::Value::SipDtmf(SipDtmf { code: 10, digit: "*".into() });
        assert_eq!(
            decode(&packet("+1555", key)),
            Some(("+1555".into(), DataMessage::Dtmf { code: 10, digit: "*".into() }))
        );
        let call = RpcRequest { id: "1".into(), method: "pause".into(), payload: "{}".into(), ..Default::default() };
        let expected = DataMessage::Rpc { method: "pause".into(), payload: "{}".into(), request_id: "1".into() };
        assert_eq!(decode(&packet("ann", data_packet::Value::RpcRequest(call))), Some(("ann".into(), expected)));
    }

    #[test]
    fn what_is_of_no_use_is_left() {
        let transcript = data_packet::Value::Transcription(Transcription::default());
        assert_eq!(decode(&packet("agent", transcript)), None);
        assert_eq!(decode(&packet("ann", user(None, &[0; LONGEST]))), None);
        assert!(decode(&packet("ann", user(None, &[0; LONGEST - 32]))).is_some());
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&[0xff; 40]), None);
        assert!(is_carrier("_reliable") && is_carrier("_lossy") && !is_carrier("_data_track"));
    }

    fn on(topic: &str) -> DataMessage {
        DataMessage::User { topic: topic.into(), payload: Bytes::new() }
    }

    fn gate() -> Gate {
        Gate::new(Wanted { topics: BTreeSet::from(["recording".to_owned()]), dtmf: false })
    }

    #[test]
    fn a_flood_is_thinned_and_then_forgotten() {
        let start = crate::clock::now();
        let mut gate = gate();
        let passed = |gate: &mut Gate, at| (0..1_000).filter(|_| gate.admits("ann", &on("recording"), at)).count();
        assert_eq!(passed(&mut gate, start), BURST as usize);
        assert_eq!(passed(&mut gate, start + Duration::from_secs(1)), RATE as usize);
        assert_eq!(passed(&mut gate, start + Duration::from_secs(60)), BURST as usize);
    }

    #[test]
    fn nobody_floods_for_another_and_what_is_not_wanted_counts_for_nothing() {
        let now = crate::clock::now();
        let mut gate = gate();
        let passed =
            |gate: &mut Gate, who: &str, topic| (0..1_000).filter(|_| gate.admits(who, &on(topic), now)).count();
        assert_eq!(passed(&mut gate, "operator", "game"), 0);
        assert_eq!(passed(&mut gate, "eve", "recording"), BURST as usize);
        assert!(gate.admits("operator", &on("recording"), now));
        let rpc = |method: &str| DataMessage::Rpc {
            method: method.into(),
            payload: String::new(),
            request_id: String::new(),
        };
        assert!(gate.admits("operator", &rpc("recording"), now) && !gate.admits("operator", &rpc("game"), now));
        let key = DataMessage::Dtmf { code: 1, digit: "1".into() };
        assert!(!gate.admits("operator", &key, now));
        assert!(Gate::new(Wanted { dtmf: true, ..Wanted::default() }).admits("operator", &key, now));
        assert!(Wanted::default().is_nothing() && !gate.is_shut());
    }

    #[test]
    fn senders_are_counted_up_to_a_number() {
        let now = crate::clock::now();
        let mut gate = gate();
        for n in 0..SENDERS * 2 {
            assert!(gate.admits(&format!("sender {n}"), &on("recording"), now));
            assert!(gate.senders.len() <= SENDERS);
        }
        assert!(gate.admits("late", &on("recording"), now + Duration::from_secs(1)));
        assert_eq!(gate.senders.len(), 1, "who has its whole allowance again is like new");
    }
}
