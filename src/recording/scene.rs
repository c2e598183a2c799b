//! A recording as a scene to be drawn, from its manifest and waveforms. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::analysis::Waveform;
use crate::draw::{DrawError, Lane, Scene, Wave};
use crate::time::{MediaTime, SampleCount};

use super::cuts::Cuts;
use super::life::PauseEntry;
use super::manifest::{Manifest, Role};

/// Whether a picture tells who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// By the name shown to people, or the identity where there is none. The title is the room's name.
    Shown,
    /// Only by the part in the call and a number. There is no title.
    Withheld,
}

/// What is known of how loud it was. All waveforms begin at sample 0 of the files.
#[derive(Clone, Debug, Default)]
pub struct Sound<'a> {
    /// All of it.
    pub mix: Option<&'a Waveform>,
    /// People alone, by identity; not those of whom it is not known.
    pub people: BTreeMap<&'a str, &'a Waveform>,
}

/// One person, as far as a lane goes.
struct Person<'a> {
    identity: &'a str,
    name: &'a str,
    role: Role,
}

/// The scene of `manifest`: the mix, channel by channel, then everybody who spoke, of whom something is missing, or whose
/// waveform is known, by when they joined. There is no lane for the mix where everybody has their own wave.
///
/// Times are those of the files: a pause that was cut out is a sample long. Of a ledger with more rows than it keeps, losses
/// after the last row have no place and are not shown.
///
/// # Errors
/// [`DrawError::Waveform`] for a waveform that is not in the form callreel writes.
pub fn scene(manifest: &Manifest, sound: &Sound<'_>, names: Names) -> Result<Scene, DrawError> {
    let clock = FileClock::of(manifest);
    let mut lanes = Vec::new();
    let mut roles = BTreeMap::new();
    for person in people(manifest) {
        let count: &mut usize = roles.entry(role_name(person.role)).or_default();
        *count += 1;
        let speech = manifest.speech.iter().filter(|said| said.participant == person.identity);
        let speech: Vec<_> = speech.filter_map(|said| clock.span(said.from_sample, said.to_sample)).collect();
        let tracks = manifest.tracks.iter().filter(|track| track.identity == person.identity);
        let rows = tracks.flat_map(|track| &track.ledger.rows).filter(|row| row.reason.degrades());
        let lost: Vec<_> = rows.filter_map(|row| clock.span(row.start, row.end)).collect();
        let wave = sound.people.get(person.identity).map(|waveform| Wave::of(waveform, 0)).transpose()?;
        let label = match names {
            Names::Shown if person.name.is_empty() => person.identity.to_owned(),
            Names::Shown => person.name.to_owned(),
            Names::Withheld => format!("{} {count}", role_name(person.role)),
        };
        if wave.is_some() || !speech.is_empty() || !lost.is_empty() {
            lanes.push(Lane { label: Some(label), wave, speech, lost });
        }
    }
    if let Some(mix) = sound.mix.filter(|_| lanes.is_empty() || lanes.iter().any(|lane| lane.wave.is_none())) {
        let words: &[&str] = if mix.channels == 1 { &["all"] } else { &["left", "right"] };
        let lane = |(channel, word): (usize, &&str)| {
            Wave::of(mix, channel).map(|wave| Lane { label: Some((*word).into()), wave: Some(wave), ..Lane::default() })
        };
        let mixed = words.iter().enumerate().map(lane).collect::<Result<Vec<_>, _>>()?;
        lanes.splice(0..0, mixed);
    }
    let paused = manifest.pauses.iter().filter_map(|pause| clock.pause(pause)).collect();
    let title = (names == Names::Shown).then(|| manifest.room.name.clone());
    Ok(Scene { length: clock.length, lanes, paused, title })
}

/// Everybody, once, by when they joined.
fn people(manifest: &Manifest) -> Vec<Person<'_>> {
    let mut places = BTreeMap::new();
    let mut people: Vec<Person<'_>> = Vec::new();
    for entry in &manifest.participants {
        let (identity, name, role) = (entry.identity.as_str(), entry.name.as_str(), entry.role);
        match places.get(identity) {
            // Who came back may have a name by now.
            Some(&place) => {
                let known: &mut Person<'_> = &mut people[place];
                known.name = if name.is_empty() { known.name } else { name };
            }
            None => {
                places.insert(identity, people.len());
                people.push(Person { identity, name, role });
            }
        }
    }
    people
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Caller => "caller",
        Role::Agent => "agent",
        Role::Participant => "speaker",
    }
}

/// The time of the files.
struct FileClock {
    cuts: Cuts,
    /// The end of the call, by its own time.
    end: MediaTime,
    length: SampleCount,
}

impl FileClock {
    fn of(manifest: &Manifest) -> Self {
        let end = MediaTime(i64::try_from(manifest.samples.0).unwrap_or(i64::MAX));
        let within = |at: MediaTime| MediaTime(at.0.clamp(0, end.0));
        let clamped = |pause: &PauseEntry| {
            let removed = pause.removed.map(|(from, to)| (within(from), to.map(|to| within(to).max(within(from)))));
            PauseEntry { removed, ..pause.clone() }
        };
        let cuts = Cuts::of(&manifest.pauses.iter().map(clamped).collect::<Vec<_>>());
        let length = cuts.to_file(end).since(MediaTime::ZERO);
        Self { cuts, end, length }
    }

    fn at(&self, call: MediaTime) -> SampleCount {
        let within = MediaTime(call.0.clamp(0, self.end.0));
        self.cuts.to_file(within).since(MediaTime::ZERO)
    }

    fn span(&self, from: MediaTime, to: MediaTime) -> Option<Range<SampleCount>> {
        let span = self.at(from)..self.at(to);
        (!span.is_empty()).then_some(span)
    }

    /// A pause is seen even where it was cut out of the files, at its very end, too.
    fn pause(&self, pause: &PauseEntry) -> Option<Range<SampleCount>> {
        let (from, to) = (self.at(pause.from_sample), self.at(pause.to_sample.unwrap_or(self.end)));
        let from = from.min(SampleCount(self.length.0.checked_sub(1)?));
        Some(from..to.max(from + SampleCount(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Peaks;
    use serde_json::{Value, json};

    const SECOND: i64 = 48_000;

    fn seed() -> Value {
        serde_json::from_str(include_str!("../../fuzz/seeds/manifest.json")).unwrap()
    }

    /// `base` with other values for some of its fields.
    fn with(base: &Value, fields: Value) -> Value {
        let mut changed = base.clone();
        changed.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        changed
    }

    /// 20 s: an agent who speaks in the first and of whom the third is lost, a caller who speaks from 10 to 12 s, and somebody
    /// who says nothing.
    fn manifest() -> Manifest {
        let seed = seed();
        let person = |identity: &str, name: &str, role: &str| {
            with(&seed["participants"][0], json!({"identity": identity, "name": name, "role": role}))
        };
        let said = |who: &str, from: i64, to: i64| json!({"participant": who, "from_sample": from * SECOND, "to_sample": to * SECOND});
        let row =
            |from: i64, to: i64, reason: &str| json!({"start": from * SECOND, "end": to * SECOND, "reason": reason});
        let rows = [row(0, 2, "received"), row(2, 3, "lost"), row(3, 20, "silent_dtx")];
        let ledger = with(&seed["tracks"][0]["ledger"], json!({"rows": rows}));
        let track = with(&seed["tracks"][0], json!({"identity": "a", "ledger": ledger}));
        let people = [
            person("+4930", "", "caller"),
            person("a", "", "agent"),
            person("+4930", "Ada", "caller"),
            person("mute", "Nobody", "participant"),
        ];
        let speech = [said("a", 0, 1), said("+4930", 10, 12)];
        let fields = json!({"samples": 20 * SECOND, "participants": people, "speech": speech, "tracks": [track]});
        serde_json::from_value(with(&seed, fields)).unwrap()
    }

    fn pause(from: i64, to: Option<i64>, is_removed: bool) -> PauseEntry {
        let (policy, removed) = if is_removed { ("skip", json!([from, to])) } else { ("silence", Value::Null) };
        let entry = json!({"from_sample": from, "to_sample": to, "policy": policy, "removed": removed, "by": "test"});
        serde_json::from_value(entry).unwrap()
    }

    fn seconds(spans: &[Range<SampleCount>]) -> Vec<(u64, u64)> {
        spans.iter().map(|span| (span.start.0 / SECOND as u64, span.end.0 / SECOND as u64)).collect()
    }

    fn waveform(channels: usize) -> Waveform {
        let mut peaks = Peaks::new(channels);
        peaks.push(&vec![0.5; 48_000 * channels]);
        peaks.finish(SampleCount(960_000))
    }

    #[test]
    fn everybody_of_whom_there_is_something_has_a_lane() {
        let mix = waveform(2);
        let scene = scene(&manifest(), &Sound { mix: Some(&mix), ..Sound::default() }, Names::Shown).unwrap();
        let labels: Vec<_> = scene.lanes.iter().map(|lane| lane.label.as_deref().unwrap()).collect();
        assert_eq!(labels, ["left", "right", "Ada", "a"]);
        assert_eq!(scene.title.as_deref(), Some("call"));
        assert_eq!(seconds(&scene.lanes[2].speech), [(10, 12)]);
        assert_eq!((seconds(&scene.lanes[3].speech), seconds(&scene.lanes[3].lost)), (vec![(0, 1)], vec![(2, 3)]));
    }

    #[test]
    fn names_can_be_withheld() {
        let scene = scene(&manifest(), &Sound::default(), Names::Withheld).unwrap();
        let labels: Vec<_> = scene.lanes.iter().map(|lane| lane.label.as_deref().unwrap()).collect();
        assert_eq!((labels, scene.title), (vec!["caller 1", "agent 1"], None));
    }

    #[test]
    fn where_everybody_has_a_wave_there_is_none_of_the_mix() {
        let (mix, one) = (waveform(1), waveform(1));
        let people = BTreeMap::from([("+4930", &one), ("a", &one)]);
        let scene = scene(&manifest(), &Sound { mix: Some(&mix), people }, Names::Shown).unwrap();
        assert_eq!(scene.lanes.len(), 2);
        assert!(scene.lanes.iter().all(|lane| lane.wave.is_some()));
    }

    #[test]
    fn what_was_cut_out_moves_what_follows() {
        let skipped = pause(5 * SECOND, Some(9 * SECOND), true);
        let silent = pause(15 * SECOND, None, false);
        let manifest = Manifest { pauses: vec![skipped, silent], ..manifest() };
        let scene = scene(&manifest, &Sound::default(), Names::Shown).unwrap();
        assert_eq!(scene.length, SampleCount(16 * SECOND as u64));
        assert_eq!(seconds(&scene.lanes[0].speech), [(6, 8)]);
        assert_eq!(seconds(&scene.paused), [(5, 5), (11, 16)]);
        assert_eq!(scene.paused[0].end.0 - scene.paused[0].start.0, 1);
    }

    #[test]
    fn a_manifest_may_claim_anything() {
        let wild = [(i64::MIN, i64::MAX), (9, 3), (i64::MAX, i64::MIN)];
        let pauses: Vec<_> = wild.into_iter().map(|(from, to)| pause(from, Some(to), true)).collect();
        for samples in [0, 1, 960_000, u64::MAX] {
            let manifest = Manifest { pauses: pauses.clone(), samples: SampleCount(samples), ..manifest() };
            let scene = scene(&manifest, &Sound::default(), Names::Shown).unwrap();
            crate::draw::waveform_svg(&scene, &crate::draw::Style::default());
        }
        let seed: Manifest = serde_json::from_value(seed()).unwrap();
        assert_eq!(super::scene(&seed, &Sound::default(), Names::Shown).unwrap().lanes, []);
    }
}
