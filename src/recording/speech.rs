//! Who spoke when, by person: a person's sessions may have several tracks, at once or one after the other. Pure.

use std::collections::BTreeMap;

use crate::analysis::{Span, Spoken, coarsen, total, union, webvtt};
use crate::call::TrackKey;
use crate::time::SampleCount;

use super::manifest::SpeechEntry;
use super::roll::Roll;

/// Stretches that one manifest may list; where there are more, pauses are joined over.
const MOST_ENTRIES: usize = 16_384;

/// A screen's sound is nobody's speech.
const SCREEN: &str = "screen_share_audio";

/// What everybody said.
#[derive(Clone, Debug, Default)]
pub struct Speech {
    /// Each stretch, by its start.
    pub entries: Vec<SpeechEntry>,
    /// How long each session spoke, by its sid.
    pub seconds: BTreeMap<String, f64>,
    /// The same as WebVTT, with the names people are shown.
    pub captions: String,
}

impl Speech {
    /// What was said, by the tracks it was said on.
    pub fn of(roll: &Roll, speakers: &BTreeMap<TrackKey, Spoken>) -> Self {
        let mut sessions: BTreeMap<&str, (Vec<Span>, SampleCount)> = BTreeMap::new();
        for rolled in roll.tracks().iter().filter(|rolled| rolled.track.source != SCREEN) {
            let Some(spoken) = speakers.get(&rolled.track.key) else { continue };
            let (spans, surplus) = sessions.entry(&rolled.participant_sid).or_default();
            spans.extend(&spoken.spans);
            *surplus += spoken.surplus;
        }
        let mut speech = Self::default();
        let mut by_identity: BTreeMap<&str, (&str, Vec<Span>)> = BTreeMap::new();
        for session in roll.participants() {
            let Some((spans, surplus)) = sessions.remove(session.sid.as_str()) else { continue };
            let spans = union(spans);
            let spoke = SampleCount(total(&spans).0.saturating_sub(surplus.0));
            speech.seconds.insert(session.sid.clone(), spoke.as_secs_f64());
            let name = if session.name.is_empty() { &session.identity } else { &session.name };
            let person = by_identity.entry(&session.identity).or_default();
            person.0 = name;
            person.1.extend(spans);
        }
        let mut people: Vec<_> =
            by_identity.into_iter().map(|(who, (name, spans))| (who, name, union(spans))).collect();
        bound(people.iter_mut().map(|(_, _, spans)| spans), MOST_ENTRIES);
        speech.captions =
            webvtt::write(people.iter().flat_map(|(_, name, spans)| spans.iter().map(|span| (*name, *span))));
        for (who, _, spans) in &people {
            let entry = |span: &Span| SpeechEntry {
                participant: (*who).to_owned(),
                from_sample: span.from,
                to_sample: span.to,
            };
            speech.entries.extend(spans.iter().map(entry));
        }
        speech.entries.sort_by_key(|entry| (entry.from_sample, entry.to_sample));
        speech
    }
}

/// Joins over pauses until all together are at most `most`, or one for each person.
fn bound<'a>(people: impl Iterator<Item = &'a mut Vec<Span>>, most: usize) {
    let mut people: Vec<_> = people.collect();
    while people.iter().map(|spans| spans.len()).sum::<usize>() > most.max(people.len()) {
        let longest = people.iter().map(|spans| spans.len()).max().unwrap_or(0);
        for spans in people.iter_mut().filter(|spans| spans.len() * 2 > longest) {
            coarsen(spans, longest / 2, SampleCount::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Speakers;
    use crate::call::{Codec, Participant, Track};
    use crate::clock;
    use crate::decode::Level;
    use crate::room::RoomEvent;
    use crate::time::{ClockTime, MediaTime};

    const SECOND: i64 = 48_000;

    fn join(roll: &mut Roll, sid: &str, identity: &str, name: &str) {
        let participant =
            Participant { sid: sid.into(), identity: identity.into(), name: name.into(), ..Participant::default() };
        roll.note(&RoomEvent::ParticipantJoined { participant, at: clock::now() }, ClockTime::ZERO);
    }

    fn publish(roll: &mut Roll, sid: &str, key: u32, source: &str) {
        let track = Track {
            key: TrackKey(key),
            sid: format!("TR_{key}"),
            name: String::new(),
            source: source.into(),
            codec: Codec::Opus,
            stereo: false,
            encryption: Default::default(),
            muted: false,
        };
        let published = RoomEvent::TrackPublished { participant_sid: sid.into(), track, at: clock::now() };
        roll.note(&published, ClockTime::ZERO);
    }

    fn say(speakers: &mut Speakers, key: u32, from: i64, to: i64) {
        for at in (from * SECOND..to * SECOND).step_by(960) {
            let level = Level { peak: 0.2, rms: 0.1 };
            speakers.heard(TrackKey(key), MediaTime(at), SampleCount(960), level);
        }
    }

    #[test]
    fn a_person_is_one_however_many_tracks_and_sessions_they_have() {
        let (mut roll, mut speakers) = (Roll::default(), Speakers::default());
        join(&mut roll, "PA_1", "alice", "Alice");
        join(&mut roll, "PA_2", "bob", "");
        join(&mut roll, "PA_3", "alice", "Alice");
        join(&mut roll, "PA_4", "nobody", "");
        for (sid, key, source) in [
            ("PA_1", 1, "microphone"),
            ("PA_1", 2, "microphone"),
            ("PA_2", 3, "microphone"),
            ("PA_3", 4, "microphone"),
            ("PA_2", 5, SCREEN),
        ] {
            publish(&mut roll, sid, key, source);
        }
        for (key, from, to) in [(1, 0, 2), (2, 1, 3), (3, 2, 4), (4, 10, 12), (5, 20, 30)] {
            say(&mut speakers, key, from, to);
        }
        let speech = Speech::of(&roll, &speakers.finish(MediaTime(11 * SECOND)));
        let found: Vec<_> = speech
            .entries
            .iter()
            .map(|entry| (entry.participant.as_str(), entry.from_sample.0 / SECOND, entry.to_sample.0 / SECOND))
            .collect();
        assert_eq!(found, [("alice", 0, 3), ("bob", 2, 4), ("alice", 10, 11)]);
        let seconds = |sid: &str| speech.seconds.get(sid).copied();
        assert_eq!(["PA_1", "PA_2", "PA_3", "PA_4"].map(seconds), [Some(3.0), Some(2.0), Some(1.0), None]);
        assert!(speech.captions.contains("00:00:02.000 --> 00:00:04.000\n<v bob>bob</v>"), "{}", speech.captions);
        assert!(speech.captions.contains("00:00:10.000 --> 00:00:11.000\n<v Alice>Alice</v>"), "{}", speech.captions);
    }

    #[test]
    fn a_long_list_is_made_short_where_it_is_longest() {
        let spans = |count: i64| -> Vec<Span> {
            (0..count).map(|n| Span { from: MediaTime(2 * n * SECOND), to: MediaTime((2 * n + 1) * SECOND) }).collect()
        };
        let mut people = [spans(4000), spans(10), spans(3000)];
        bound(people.iter_mut(), 1000);
        assert!(people.iter().map(Vec::len).sum::<usize>() <= 1000);
        assert_eq!(people[1].len(), 10);
        let mut many = vec![spans(3); 20];
        bound(many.iter_mut(), 5);
        assert!(many.iter().all(|spans| spans.len() == 1));
    }
}
