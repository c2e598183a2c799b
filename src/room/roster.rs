//! Who is in the room with which tracks, as a pure function of what the server says: its messages in, events out.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use livekit_protocol::{
    self as proto, AudioTrackFeature, DisconnectReason, ParticipantInfo, TrackInfo, TrackSource, TrackType, encryption,
    participant_info,
};

use super::event::RoomEvent;
use crate::call::{Codec, Encryption, Participant, ParticipantKind, Track, TrackKey};

/// How many departed sessions are remembered, to tell a late word about one of them from a newcomer.
const REMEMBERED: usize = 256;

/// Everybody but ourselves, by session id (`PA_…`).
#[derive(Debug, Default)]
pub(super) struct Roster {
    own_sid: String,
    own_identity: String,
    people: BTreeMap<String, Person>,
    departed: VecDeque<String>,
    next_key: u32,
}

#[derive(Debug)]
struct Person {
    participant: Participant,
    version: u32,
    tracks: BTreeMap<String, Track>,
}

impl Roster {
    /// An empty room, whose tracks get keys from `first` on.
    pub(super) fn new(first: TrackKey) -> Self {
        Self { next_key: first.0, ..Self::default() }
    }

    /// Takes the full list that comes with a JoinResponse: the first one, or the one after everything was connected
    /// anew. Events come in the order in which people joined, in which the list is not. Sessions and publications that are
    /// still there keep their keys.
    pub(super) fn resync(
        &mut self,
        own: Option<&ParticipantInfo>,
        others: &[ParticipantInfo],
        at: Instant,
    ) -> Vec<RoomEvent> {
        if let Some(own) = own {
            self.own_sid.clone_from(&own.sid);
            self.own_identity.clone_from(&own.identity);
        }
        let mut events = Vec::new();
        let gone: Vec<String> =
            self.people.keys().filter(|sid| !others.iter().any(|info| &info.sid == *sid)).cloned().collect();
        for sid in gone {
            self.leave(&sid, String::new(), at, &mut events);
        }
        let mut in_order: Vec<&ParticipantInfo> = others.iter().collect();
        in_order.sort_by_key(|info| joined_at_ms(info));
        for info in in_order {
            // A new connection may count versions anew.
            if let Some(person) = self.people.get_mut(&info.sid) {
                person.version = 0;
            }
            self.take(info, at, &mut events);
        }
        events
    }

    /// Whoever is told of next is there, whatever was said of their going: sessions were taken away and brought back.
    #[cfg(feature = "libwebrtc")]
    pub(super) fn forget_departed(&mut self) {
        self.departed.clear();
    }

    /// Takes a ParticipantUpdate.
    pub(super) fn update(&mut self, infos: &[ParticipantInfo], at: Instant) -> Vec<RoomEvent> {
        let mut events = Vec::new();
        for info in infos {
            self.take(info, at, &mut events);
        }
        events
    }

    /// Takes away a track that the server says is gone.
    pub(super) fn unpublish(&mut self, track_sid: &str, at: Instant) -> Option<RoomEvent> {
        let track = self.people.values_mut().find_map(|person| person.tracks.remove(track_sid))?;
        Some(RoomEvent::TrackUnpublished { track: track.key, at })
    }

    /// The key of a published track.
    pub(super) fn key(&self, track_sid: &str) -> Option<TrackKey> {
        self.people.values().find_map(|person| person.tracks.get(track_sid)).map(|track| track.key)
    }

    /// Who a session (`PA_…`) is.
    pub(super) fn identity(&self, participant_sid: &str) -> Option<&str> {
        self.people.get(participant_sid).map(|person| person.participant.identity.as_str())
    }

    /// Every published audio track: its participant's id, its own, its key.
    pub(super) fn tracks(&self) -> impl Iterator<Item = (&str, &str, TrackKey)> {
        self.people.iter().flat_map(|(participant, person)| {
            person.tracks.iter().map(|(sid, track)| (participant.as_str(), sid.as_str(), track.key))
        })
    }

    fn take(&mut self, info: &ParticipantInfo, at: Instant, events: &mut Vec<RoomEvent>) {
        let hidden = info.permission.as_ref().is_some_and(|permission| permission.hidden);
        if info.sid.is_empty() || info.sid == self.own_sid || info.identity == self.own_identity || hidden {
            return;
        }
        if info.state() == participant_info::State::Disconnected {
            let reason = match info.disconnect_reason() {
                DisconnectReason::UnknownReason => String::new(),
                reason => reason.as_str_name().to_lowercase(),
            };
            self.leave(&info.sid, reason, at, events);
            return;
        }
        if self.departed.contains(&info.sid) {
            return;
        }
        if !self.people.contains_key(&info.sid) {
            self.join(info, at, events);
        }
        let Some(person) = self.people.get_mut(&info.sid).filter(|person| person.version <= info.version) else {
            return;
        };
        person.version = info.version;
        let now = participant(info);
        if now != person.participant {
            person.participant = now.clone();
            events.push(RoomEvent::ParticipantUpdated { participant: now, at });
        }
        diff_tracks(person, info, &mut self.next_key, at, events);
    }

    fn join(&mut self, info: &ParticipantInfo, at: Instant, events: &mut Vec<RoomEvent>) {
        // An identity is in a room once: a new session ends the one before, even if the word about that comes later.
        let before = self.people.values().find(|person| person.participant.identity == info.identity);
        if let Some(sid) = before.map(|person| person.participant.sid.clone()) {
            self.leave(&sid, String::new(), at, events);
        }
        let participant = participant(info);
        events.push(RoomEvent::ParticipantJoined { participant: participant.clone(), at });
        self.people.insert(info.sid.clone(), Person { participant, version: info.version, tracks: BTreeMap::new() });
    }

    fn leave(&mut self, sid: &str, reason: String, at: Instant, events: &mut Vec<RoomEvent>) {
        let Some(person) = self.people.remove(sid) else { return };
        for track in person.tracks.values() {
            events.push(RoomEvent::TrackUnpublished { track: track.key, at });
        }
        events.push(RoomEvent::ParticipantLeft { sid: sid.to_owned(), reason, at });
        if self.departed.len() == REMEMBERED {
            self.departed.pop_front();
        }
        self.departed.push_back(sid.to_owned());
    }
}

fn diff_tracks(person: &mut Person, info: &ParticipantInfo, next: &mut u32, at: Instant, events: &mut Vec<RoomEvent>) {
    let audio = |track: &&TrackInfo| track.r#type() == TrackType::Audio && !track.sid.is_empty();
    person.tracks.retain(|sid, track| {
        let stays = info.tracks.iter().filter(audio).any(|now| &now.sid == sid);
        if !stays {
            events.push(RoomEvent::TrackUnpublished { track: track.key, at });
        }
        stays
    });
    for now in info.tracks.iter().filter(audio) {
        match person.tracks.get_mut(&now.sid) {
            Some(track) if track.muted != now.muted => {
                track.muted = now.muted;
                events.push(RoomEvent::TrackMuted { track: track.key, muted: now.muted, at });
            }
            Some(_) => {}
            None => {
                let track = track(now, TrackKey(*next));
                *next += 1;
                person.tracks.insert(now.sid.clone(), track.clone());
                events.push(RoomEvent::TrackPublished { participant_sid: info.sid.clone(), track, at });
            }
        }
    }
}

/// When somebody joined, by the server's clock. Servers that tell whole seconds only leave `joined_at_ms` 0.
fn joined_at_ms(info: &ParticipantInfo) -> i64 {
    if info.joined_at_ms != 0 { info.joined_at_ms } else { info.joined_at.saturating_mul(1_000) }
}

/// The participant of which the server tells.
pub(crate) fn participant(info: &ParticipantInfo) -> Participant {
    use participant_info::Kind;
    let kind = match info.kind() {
        Kind::Standard => ParticipantKind::Standard,
        Kind::Ingress => ParticipantKind::Ingress,
        Kind::Egress => ParticipantKind::Egress,
        Kind::Sip => ParticipantKind::Sip,
        Kind::Agent => ParticipantKind::Agent,
        Kind::Connector | Kind::Bridge => ParticipantKind::Connector,
    };
    Participant {
        sid: info.sid.clone(),
        identity: info.identity.clone(),
        name: info.name.clone(),
        kind,
        attributes: info.attributes.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

fn track(info: &TrackInfo, key: TrackKey) -> Track {
    let source = match info.source() {
        TrackSource::Microphone => "microphone",
        TrackSource::ScreenShareAudio => "screen_share_audio",
        TrackSource::Camera | TrackSource::ScreenShare | TrackSource::Unknown => "unknown",
    };
    let mime = match info.mime_type.as_str() {
        "" => info.codecs.first().map_or("", |codec| codec.mime_type.as_str()),
        mime => mime,
    };
    let codec = match mime.to_lowercase().as_str() {
        "audio/pcmu" => Codec::Pcmu,
        "audio/pcma" => Codec::Pcma,
        _ => Codec::Opus,
    };
    // Servers before the feature list set the old flag alone.
    #[allow(deprecated)]
    let stereo = info.stereo || info.audio_features().any(|feature| feature == AudioTrackFeature::TfStereo);
    Track {
        key,
        sid: info.sid.clone(),
        name: info.name.clone(),
        source: source.to_owned(),
        codec,
        stereo,
        encryption: match info.encryption() {
            encryption::Type::None => Encryption::None,
            encryption::Type::Gcm => Encryption::Gcm,
            encryption::Type::Custom => Encryption::Custom,
        },
        muted: info.muted,
    }
}

/// The subscription to `tracks`, each with its participant.
pub(super) fn subscription<'a>(tracks: impl Iterator<Item = (&'a str, &'a str)>) -> proto::UpdateSubscription {
    let mut by_participant: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (participant, track) in tracks {
        by_participant.entry(participant).or_default().push(track.to_owned());
    }
    let participant_tracks = by_participant
        .into_iter()
        .map(|(sid, track_sids)| proto::ParticipantTracks { participant_sid: sid.to_owned(), track_sids });
    proto::UpdateSubscription {
        subscribe: true,
        participant_tracks: participant_tracks.collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(sid: &str, version: u32, tracks: &[TrackInfo]) -> ParticipantInfo {
        ParticipantInfo {
            sid: sid.into(),
            identity: sid.trim_end_matches(char::is_numeric).into(),
            version,
            state: participant_info::State::Active as i32,
            tracks: tracks.to_vec(),
            ..Default::default()
        }
    }

    fn gone(sid: &str, reason: DisconnectReason) -> ParticipantInfo {
        ParticipantInfo {
            state: participant_info::State::Disconnected as i32,
            disconnect_reason: reason as i32,
            ..info(sid, 99, &[])
        }
    }

    fn voice(sid: &str, muted: bool) -> TrackInfo {
        TrackInfo { sid: sid.into(), muted, mime_type: "audio/opus".into(), ..Default::default() }
    }

    fn camera(sid: &str) -> TrackInfo {
        TrackInfo { sid: sid.into(), r#type: TrackType::Video as i32, ..Default::default() }
    }

    /// The events in short: `+P` joined, `~P` updated, `-P reason` left, `+#k`, `-#k`, `m#k`, `u#k` for tracks.
    fn short(events: &[RoomEvent]) -> Vec<String> {
        let line = |event: &RoomEvent| match event {
            RoomEvent::ParticipantJoined { participant, .. } => format!("+{}", participant.sid),
            RoomEvent::ParticipantUpdated { participant, .. } => format!("~{}", participant.sid),
            RoomEvent::ParticipantLeft { sid, reason, .. } => format!("-{sid} {reason}").trim_end().to_owned(),
            RoomEvent::TrackPublished { track, .. } => format!("+{}", track.key),
            RoomEvent::TrackUnpublished { track, .. } => format!("-{track}"),
            RoomEvent::TrackMuted { track, muted, .. } => format!("{}{track}", if *muted { "m" } else { "u" }),
            other => panic!("a roster makes no {other:?}"),
        };
        events.iter().map(line).collect()
    }

    fn joined(others: &[ParticipantInfo]) -> (Roster, Vec<RoomEvent>) {
        let mut roster = Roster::default();
        let own = ParticipantInfo { identity: "recorder".into(), ..info("PA_me", 0, &[]) };
        let events = roster.resync(Some(&own), others, crate::clock::now());
        (roster, events)
    }

    fn say(roster: &mut Roster, infos: &[ParticipantInfo]) -> Vec<String> {
        short(&roster.update(infos, crate::clock::now()))
    }

    #[test]
    fn those_present_at_the_start_are_told_in_the_order_in_which_they_joined() {
        let at = |sid, joined_at, joined_at_ms| ParticipantInfo { joined_at, joined_at_ms, ..info(sid, 1, &[]) };
        let (_, events) = joined(&[at("PA_c", 9, 0), at("PA_b", 5, 5_200), at("PA_a", 5, 5_100)]);
        assert_eq!(short(&events), ["+PA_a", "+PA_b", "+PA_c"]);
    }

    #[test]
    fn those_present_at_the_start_are_told_with_their_audio_only() {
        let (roster, events) =
            joined(&[info("PA_ann", 3, &[voice("TR_a", false), camera("TR_v")]), info("PA_bob", 1, &[])]);
        assert_eq!(short(&events), ["+PA_ann", "+#0", "+PA_bob"]);
        assert_eq!(roster.tracks().collect::<Vec<_>>(), [("PA_ann", "TR_a", TrackKey(0))]);
        assert_eq!(roster.key("TR_v"), None);
    }

    #[test]
    fn we_ourselves_and_hidden_ones_are_not_told() {
        let (mut roster, _) = joined(&[]);
        let hidden = proto::ParticipantPermission { hidden: true, ..Default::default() };
        let own = ParticipantInfo { identity: "recorder".into(), ..info("PA_other", 1, &[]) };
        let other = ParticipantInfo { permission: Some(hidden), ..info("PA_ghost", 1, &[voice("TR_g", false)]) };
        assert_eq!(say(&mut roster, &[info("PA_me", 4, &[]), own, other]), Vec::<String>::new());
    }

    #[test]
    fn mute_unpublish_and_republish_follow_each_other() {
        let (mut roster, _) = joined(&[info("PA_ann", 1, &[voice("TR_a", false)])]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 2, &[voice("TR_a", true)])]), ["m#0"]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 3, &[voice("TR_a", false)])]), ["u#0"]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 4, &[])]), ["-#0"]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 5, &[voice("TR_b", false)])]), ["+#1"]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 6, &[voice("TR_c", false)])]), ["-#1", "+#2"]);
    }

    #[test]
    fn words_out_of_order_are_dropped() {
        let (mut roster, _) = joined(&[info("PA_ann", 5, &[voice("TR_a", false)])]);
        assert_eq!(say(&mut roster, &[info("PA_ann", 4, &[])]), Vec::<String>::new());
        assert_eq!(
            say(&mut roster, &[gone("PA_ann", DisconnectReason::ClientInitiated)]),
            ["-#0", "-PA_ann client_initiated"]
        );
        assert_eq!(say(&mut roster, &[info("PA_ann", 6, &[voice("TR_a", false)])]), Vec::<String>::new());
        assert_eq!(say(&mut roster, &[gone("PA_ann", DisconnectReason::ClientInitiated)]), Vec::<String>::new());
    }

    #[test]
    fn the_same_identity_again_ends_the_session_before() {
        let (mut roster, _) = joined(&[info("PA_ann1", 5, &[voice("TR_a", false)])]);
        assert_eq!(
            say(&mut roster, &[info("PA_ann2", 1, &[voice("TR_b", false)])]),
            ["-#0", "-PA_ann1", "+PA_ann2", "+#1"]
        );
        assert_eq!(say(&mut roster, &[gone("PA_ann1", DisconnectReason::DuplicateIdentity)]), Vec::<String>::new());
        assert_eq!(roster.key("TR_b"), Some(TrackKey(1)));
    }

    #[test]
    fn attributes_and_names_are_told_when_they_change() {
        let (mut roster, _) = joined(&[info("PA_sip", 1, &[])]);
        let mut ringing = info("PA_sip", 2, &[]);
        ringing.kind = participant_info::Kind::Sip as i32;
        ringing.attributes.insert("sip.callStatus".into(), "ringing".into());
        assert_eq!(say(&mut roster, std::slice::from_ref(&ringing)), ["~PA_sip"]);
        assert_eq!(say(&mut roster, &[ParticipantInfo { version: 3, ..ringing }]), Vec::<String>::new());
    }

    #[test]
    fn a_new_connection_keeps_the_keys_of_what_is_still_there() {
        let (mut roster, _) = joined(&[
            info("PA_ann", 7, &[voice("TR_a", false), voice("TR_b", false)]),
            info("PA_bob", 1, &[voice("TR_c", false)]),
        ]);
        let now = [info("PA_ann", 2, &[voice("TR_b", true)]), info("PA_cid", 1, &[voice("TR_d", false)])];
        let events = roster.resync(Some(&info("PA_me2", 0, &[])), &now, crate::clock::now());
        assert_eq!(short(&events), ["-#2", "-PA_bob", "-#0", "m#1", "+PA_cid", "+#3"]);
        assert_eq!(roster.key("TR_b"), Some(TrackKey(1)));
    }

    #[test]
    fn tracks_carry_what_capture_must_know() {
        let info = TrackInfo {
            sid: "TR_a".into(),
            source: TrackSource::ScreenShareAudio as i32,
            mime_type: "audio/PCMA".into(),
            audio_features: vec![AudioTrackFeature::TfStereo as i32],
            encryption: encryption::Type::Gcm as i32,
            ..Default::default()
        };
        let track = track(&info, TrackKey(4));
        assert_eq!(
            (track.source.as_str(), track.codec, track.stereo, track.encryption),
            ("screen_share_audio", Codec::Pcma, true, Encryption::Gcm)
        );
    }

    #[test]
    fn one_subscription_names_each_participant_once() {
        let request = subscription([("PA_a", "TR_1"), ("PA_b", "TR_2"), ("PA_a", "TR_3")].into_iter());
        assert!(request.subscribe && request.track_sids.is_empty());
        let named: Vec<_> =
            request.participant_tracks.iter().map(|p| (p.participant_sid.as_str(), p.track_sids.len())).collect();
        assert_eq!(named, [("PA_a", 2), ("PA_b", 1)]);
    }

    proptest! {
        /// Whatever the server says in whatever order, what is told opens and closes properly.
        #[test]
        fn events_nest(words in proptest::collection::vec((0u8..4, 0u32..6, 0u8..8, any::<bool>()), 0..60)) {
            let (mut roster, _) = joined(&[]);
            let mut present = std::collections::BTreeSet::new();
            let mut live = std::collections::BTreeMap::new();
            for (who, version, tracks, leaves) in words {
                let sid = format!("PA_{}{}", ["a", "b"][usize::from(who % 2)], who / 2);
                let tracks: Vec<_> = (0..3).filter(|bit| tracks & (1 << bit) != 0).map(|bit| voice(&format!("TR_{sid}_{bit}"), version % 2 == 0)).collect();
                let word = if leaves { gone(&sid, DisconnectReason::UnknownReason) } else { info(&sid, version, &tracks) };
                for event in roster.update(&[word], crate::clock::now()) {
                    match event {
                        RoomEvent::ParticipantJoined { participant, .. } => prop_assert!(present.insert(participant.sid)),
                        RoomEvent::ParticipantLeft { sid, .. } => {
                            prop_assert!(!live.values().any(|owner| *owner == sid));
                            prop_assert!(present.remove(&sid));
                        }
                        RoomEvent::TrackPublished { participant_sid, track, .. } => {
                            prop_assert!(present.contains(&participant_sid));
                            prop_assert!(live.insert(track.key, participant_sid).is_none());
                        }
                        RoomEvent::TrackUnpublished { track, .. } => prop_assert!(live.remove(&track).is_some()),
                        RoomEvent::TrackMuted { track, .. } => prop_assert!(live.contains_key(&track)),
                        RoomEvent::ParticipantUpdated { participant, .. } => prop_assert!(present.contains(&participant.sid)),
                        other => prop_assert!(false, "a roster makes no {other:?}"),
                    }
                }
            }
        }
    }
}
