//! The roll of a call: who was there when, with which tracks, and how media came. It becomes the manifest's lists.

use std::collections::BTreeMap;

use crate::call::{Participant, ParticipantKind, Track, TrackKey};
use crate::e2ee::Problem;
use crate::room::{MediaState, RoomEvent};
use crate::time::{ClockTime, MediaTime};

use super::manifest::{MediaEntry, ParticipantEntry, Role};
use super::outcome::Reason;

/// The attribute in which LiveKit's SIP bridge tells the other end's number.
const SIP_NUMBER: &str = "sip.phoneNumber";

/// Who was there, in the order in which they came.
#[derive(Debug, Default)]
pub struct Roll {
    participants: Vec<ParticipantEntry>,
    tracks: Vec<RolledTrack>,
    by_key: BTreeMap<TrackKey, usize>,
    media: Vec<MediaEntry>,
    refused: Vec<Reason>,
}

/// A track as it was published, and whose it is.
#[derive(Debug)]
pub struct RolledTrack {
    /// The track as it was announced.
    pub track: Track,
    /// The publisher's session.
    pub participant_sid: String,
    /// Who publishes it.
    pub identity: String,
    /// What kind of participant that is.
    pub kind: ParticipantKind,
    /// Why its frames could not be decrypted, where any could not.
    pub problem: Option<Problem>,
}

impl Roll {
    /// Goes on with what another process knew, which looked last at some moment before `now`. Who was there then and is not
    /// any more has left by `now`.
    pub fn going_on(mut participants: Vec<ParticipantEntry>, mut media: Vec<MediaEntry>, now: MediaTime) -> Self {
        for known in participants.iter_mut().filter(|known| known.left_sample.is_none()) {
            known.left_sample = Some(now);
        }
        if media.last().is_some_and(|last| last.transport.is_some()) {
            media.push(MediaEntry { sample: now, transport: None });
        }
        Self { participants, media, ..Self::default() }
    }

    /// Takes note of an event that happened at `at`.
    pub fn note(&mut self, event: &RoomEvent, at: ClockTime) {
        let at = MediaTime::from(at).max(MediaTime::ZERO);
        match event {
            RoomEvent::ParticipantJoined { participant, .. } => {
                match self.participants.iter_mut().rfind(|known| known.sid == participant.sid) {
                    // The session goes on, and another process knew of it.
                    Some(known) => *known = entry(participant, known.joined_sample),
                    None => self.participants.push(entry(participant, at)),
                }
            }
            RoomEvent::ParticipantUpdated { participant, .. } => {
                if let Some(known) = self.participants.iter_mut().rfind(|known| known.sid == participant.sid) {
                    let joined = known.joined_sample;
                    *known = entry(participant, joined);
                }
            }
            RoomEvent::ParticipantLeft { sid, reason, .. } => {
                if let Some(known) = self.participants.iter_mut().rfind(|known| known.sid == *sid) {
                    known.left_sample = Some(at);
                    known.left_reason.clone_from(reason);
                }
            }
            RoomEvent::TrackPublished { participant_sid, track, .. } => self.published(participant_sid, track),
            RoomEvent::SubscriptionFailed { track, reason, .. } => {
                if let Some(&index) = self.by_key.get(track) {
                    let track = self.tracks[index].track.sid.clone();
                    self.refused.push(Reason::SubscriptionFailed { track, message: reason.clone() });
                }
            }
            RoomEvent::Undecryptable { track, problem, .. } => {
                if let Some(&index) = self.by_key.get(track) {
                    self.tracks[index].problem = Some(*problem);
                }
            }
            RoomEvent::Media { state, .. } => {
                let transport = match state {
                    MediaState::Connected(transport) => Some(*transport),
                    MediaState::Interrupted => None,
                };
                self.media.push(MediaEntry { sample: at, transport });
            }
            RoomEvent::Joined { .. }
            | RoomEvent::TrackMuted { .. }
            | RoomEvent::TrackUnpublished { .. }
            | RoomEvent::Rtp(_)
            | RoomEvent::SenderReport { .. }
            | RoomEvent::Data { .. }
            | RoomEvent::RoomUpdated { .. }
            | RoomEvent::Overrun { .. }
            | RoomEvent::Closed { .. } => {}
        }
    }

    /// The track with this key.
    pub fn track(&self, key: TrackKey) -> Option<&RolledTrack> {
        self.by_key.get(&key).map(|&index| &self.tracks[index])
    }

    /// The newest session of whoever has this identity, and their place, as [`participant`](Self::participant) gives it; nobody
    /// where it is empty.
    pub fn somebody(&self, identity: &str) -> Option<(Participant, usize)> {
        let entry = self.participants.iter().rfind(|known| known.identity == identity && !identity.is_empty())?;
        self.participant(&entry.sid)
    }

    /// The participant with this session, and as how many-th identity they came (from 1 on).
    pub fn participant(&self, sid: &str) -> Option<(Participant, usize)> {
        let entry = self.participants.iter().rfind(|known| known.sid == sid)?;
        let mut identities: Vec<&str> = Vec::new();
        for known in &self.participants {
            if !identities.contains(&&*known.identity) {
                identities.push(&known.identity);
            }
        }
        let place = identities.iter().position(|known| *known == entry.identity)? + 1;
        let participant = Participant {
            sid: entry.sid.clone(),
            identity: entry.identity.clone(),
            name: entry.name.clone(),
            kind: entry.kind,
            attributes: entry.attributes.clone(),
        };
        Some((participant, place))
    }

    /// A key that no track has had.
    pub fn next_key(&self) -> TrackKey {
        TrackKey(self.by_key.keys().next_back().map_or(0, |last| last.0 + 1))
    }

    /// Everybody has left at `at`, with their room; gives the sessions of those who had not before.
    pub fn all_left(&mut self, at: ClockTime) -> Vec<String> {
        let there = self.participants.iter_mut().filter(|known| known.left_sample.is_none());
        let left = there.map(|known| {
            known.left_sample = Some(MediaTime::from(at));
            "room_closed".clone_into(&mut known.left_reason);
            known.sid.clone()
        });
        left.collect()
    }

    /// Every track there was, in the order of publishing.
    pub fn tracks(&self) -> &[RolledTrack] {
        &self.tracks
    }

    /// Everybody who was there.
    pub fn participants(&self) -> &[ParticipantEntry] {
        &self.participants
    }

    /// How media came and went.
    pub fn media(&self) -> &[MediaEntry] {
        &self.media
    }

    /// Tracks that the server refused.
    pub fn refused(&self) -> &[Reason] {
        &self.refused
    }

    fn published(&mut self, participant_sid: &str, track: &Track) {
        let owner = self.participants.iter().rfind(|known| known.sid == participant_sid);
        let (identity, kind) = owner.map_or_else(Default::default, |owner| (owner.identity.clone(), owner.kind));
        self.by_key.insert(track.key, self.tracks.len());
        self.tracks.push(RolledTrack {
            track: track.clone(),
            participant_sid: participant_sid.to_owned(),
            identity,
            kind,
            problem: None,
        });
    }
}

fn entry(participant: &Participant, joined: MediaTime) -> ParticipantEntry {
    let number = participant.attributes.get(SIP_NUMBER).filter(|_| participant.kind == ParticipantKind::Sip);
    let name = match number {
        Some(number) if participant.name.is_empty() => number.clone(),
        _ => participant.name.clone(),
    };
    ParticipantEntry {
        sid: participant.sid.clone(),
        identity: participant.identity.clone(),
        name,
        kind: participant.kind,
        role: Role::from(participant.kind),
        attributes: participant.attributes.clone(),
        joined_sample: joined,
        left_sample: None,
        left_reason: String::new(),
        speaking_seconds: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Codec;
    use std::time::Instant;

    fn now() -> Instant {
        crate::clock::now()
    }

    fn caller(status: &str) -> Participant {
        Participant {
            sid: "PA_1".into(),
            identity: "sip_1".into(),
            kind: ParticipantKind::Sip,
            attributes: [
                (SIP_NUMBER.to_owned(), "+4930123".to_owned()),
                ("sip.callStatus".to_owned(), status.to_owned()),
            ]
            .into(),
            ..Participant::default()
        }
    }

    #[test]
    fn a_telephone_leg_is_the_caller_and_is_named_by_its_number() {
        let mut roll = Roll::default();
        let joined = RoomEvent::ParticipantJoined { participant: caller("ringing"), at: now() };
        roll.note(&joined, ClockTime::from_millis(1000));
        let updated = RoomEvent::ParticipantUpdated { participant: caller("active"), at: now() };
        roll.note(&updated, ClockTime::from_millis(3000));
        let left = RoomEvent::ParticipantLeft { sid: "PA_1".into(), reason: "client_initiated".into(), at: now() };
        roll.note(&left, ClockTime::from_millis(9000));
        let [entry] = roll.participants() else { panic!("one participant") };
        assert_eq!((entry.role, entry.name.as_str()), (Role::Caller, "+4930123"));
        assert_eq!(entry.attributes["sip.callStatus"], "active");
        assert_eq!((entry.joined_sample, entry.left_sample), (MediaTime(48_000), Some(MediaTime(432_000))));
    }

    #[test]
    fn a_track_belongs_to_the_session_that_published_it() {
        let mut roll = Roll::default();
        roll.note(&RoomEvent::ParticipantJoined { participant: caller("active"), at: now() }, ClockTime::ZERO);
        let track = Track {
            key: TrackKey(7),
            sid: "TR_7".into(),
            name: String::new(),
            source: "microphone".into(),
            codec: Codec::Opus,
            stereo: false,
            encryption: Default::default(),
            muted: false,
        };
        let published = RoomEvent::TrackPublished { participant_sid: "PA_1".into(), track, at: now() };
        roll.note(&published, ClockTime::from_millis(20));
        let rolled = roll.track(TrackKey(7)).unwrap();
        assert_eq!((rolled.identity.as_str(), rolled.kind), ("sip_1", ParticipantKind::Sip));
    }
}
