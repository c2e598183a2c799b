//! Rules that pick participants and tracks.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;
use crate::call::{Participant, ParticipantKind, Track};

/// Picks participants: `identity=alice`, `kind=sip`, `attribute=KEY=VALUE` or `join=2`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParticipantRule {
    /// The participant of this identity.
    Identity(String),
    /// Every participant of this kind.
    Kind(ParticipantKind),
    /// Every participant whose attribute of this name has this value when they publish their first track.
    Attribute {
        /// The attribute's name.
        key: String,
        /// The value it must have.
        value: String,
    },
    /// The participant who joined at this place in the order of joining, from 1 on. Who comes back keeps their place.
    Join(usize),
}

impl ParticipantRule {
    /// Whether it picks `participant`, who was the `joined`th to join (from 1 on).
    pub fn picks(&self, participant: &Participant, joined: usize) -> bool {
        match self {
            Self::Identity(identity) => participant.identity == *identity,
            Self::Kind(kind) => participant.kind == *kind,
            Self::Attribute { key, value } => participant.attributes.get(key).is_some_and(|has| has == value),
            Self::Join(place) => joined == *place,
        }
    }
}

const KINDS: [(&str, ParticipantKind); 5] = [
    ("standard", ParticipantKind::Standard),
    ("sip", ParticipantKind::Sip),
    ("agent", ParticipantKind::Agent),
    ("ingress", ParticipantKind::Ingress),
    ("connector", ParticipantKind::Connector),
];

impl FromStr for ParticipantRule {
    type Err = ConfigError;

    fn from_str(rule: &str) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { key: "rule", why };
        let (what, value) = rule.split_once('=').unwrap_or((rule, ""));
        if value.is_empty() {
            let known = "identity=WHO, kind=KIND, attribute=KEY=VALUE, join=N";
            return Err(invalid(format!("{rule:?} is no rule; known are {known}")));
        }
        match what {
            "identity" => Ok(Self::Identity(value.to_owned())),
            "kind" => {
                KINDS.iter().find(|(word, _)| *word == value).map(|(_, kind)| Self::Kind(*kind)).ok_or_else(|| {
                    let known = KINDS.map(|(word, _)| word).join(", ");
                    invalid(format!("{value:?} is no kind of participant; known are {known}"))
                })
            }
            "attribute" => match value.split_once('=') {
                Some((key, value)) if !key.is_empty() => {
                    Ok(Self::Attribute { key: key.to_owned(), value: value.to_owned() })
                }
                _ => Err(invalid(format!("{rule:?} lacks a value; write attribute=KEY=VALUE"))),
            },
            "join" => match value.parse() {
                Ok(place) if place > 0 => Ok(Self::Join(place)),
                _ => Err(invalid(format!("{value:?} is no place in the order of joining; the first is 1"))),
            },
            _ => Err(invalid(format!("{what:?} is nothing to choose by; known are identity, kind, attribute, join"))),
        }
    }
}

impl fmt::Display for ParticipantRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => write!(f, "identity={identity}"),
            Self::Kind(kind) => {
                let word = KINDS.iter().find(|(_, known)| known == kind).map_or("egress", |(word, _)| word);
                write!(f, "kind={word}")
            }
            Self::Attribute { key, value } => write!(f, "attribute={key}={value}"),
            Self::Join(place) => write!(f, "join={place}"),
        }
    }
}

/// Picks tracks: by whose they are, as [`ParticipantRule`] does, or `source=microphone` or `track=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrackRule {
    /// Every track of whoever this picks.
    Of(ParticipantRule),
    /// Every track of this source: `microphone`, `screen_share_audio` or `unknown`.
    Source(String),
    /// Every track that its publisher gave this name.
    Name(String),
}

/// The sources a track can have, as LiveKit names them.
const SOURCES: [&str; 3] = ["microphone", "screen_share_audio", "unknown"];

impl TrackRule {
    /// Whether it picks `track` of `participant`, who was the `joined`th to join (from 1 on).
    pub fn picks(&self, track: &Track, participant: &Participant, joined: usize) -> bool {
        match self {
            Self::Of(rule) => rule.picks(participant, joined),
            Self::Source(source) => track.source == *source,
            Self::Name(name) => track.name == *name,
        }
    }
}

impl FromStr for TrackRule {
    type Err = ConfigError;

    fn from_str(rule: &str) -> Result<Self, ConfigError> {
        match rule.split_once('=') {
            Some(("source", source)) if SOURCES.contains(&source) => Ok(Self::Source(source.to_owned())),
            Some(("source", source)) => {
                let known = SOURCES.join(", ");
                let why = format!("{source:?} is no source of a track; known are {known}");
                Err(ConfigError::Invalid { key: "rule", why })
            }
            Some(("track", name)) if !name.is_empty() => Ok(Self::Name(name.to_owned())),
            _ => rule.parse().map(Self::Of),
        }
    }
}

impl fmt::Display for TrackRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(rule) => rule.fmt(f),
            Self::Source(source) => write!(f, "source={source}"),
            Self::Name(name) => write!(f, "track={name}"),
        }
    }
}

/// Which tracks are recorded. Default: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackFilter {
    /// Those that one of these picks; all where there is no rule.
    pub only: Vec<TrackRule>,
    /// But for those that one of these picks.
    pub except: Vec<TrackRule>,
}

impl TrackFilter {
    /// Whether `track` of `participant`, who was the `joined`th to join, is recorded.
    pub fn records(&self, track: &Track, participant: &Participant, joined: usize) -> bool {
        let picks = |rule: &TrackRule| rule.picks(track, participant, joined);
        (self.only.is_empty() || self.only.iter().any(picks)) && !self.except.iter().any(picks)
    }
}

/// Who is heard on which side of a dual file. Default: no rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideRules {
    /// Whoever one of these picks is on the left.
    pub left: Vec<ParticipantRule>,
    /// Whoever one of these picks is on the right, unless the left has them.
    pub right: Vec<ParticipantRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_print() {
        for rule in ["identity=a=b", "kind=sip", "kind=agent", "attribute=sip.trunkID=ST_1", "attribute=k=", "join=2"] {
            assert_eq!(rule.parse::<ParticipantRule>().unwrap().to_string(), rule);
        }
        assert_eq!("identity=a=b".parse(), Ok(ParticipantRule::Identity("a=b".into())));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be() {
        for (rule, word) in [
            ("", "known are"),
            ("alice", "identity=WHO"),
            ("identity=", "known are"),
            ("kind=robot", "standard, sip"),
            ("attribute=x", "attribute=KEY=VALUE"),
            ("attribute==x", "attribute=KEY=VALUE"),
            ("join=0", "the first is 1"),
            ("join=first", "the first is 1"),
            ("name=alice", "identity, kind"),
        ] {
            let error = rule.parse::<ParticipantRule>().unwrap_err().to_string();
            assert!(error.contains(word), "{rule}: {error}");
        }
    }

    #[test]
    fn each_rule_picks_by_its_own_measure() {
        let caller = Participant {
            identity: "sip_1".into(),
            kind: ParticipantKind::Sip,
            attributes: [("sip.trunkID".to_owned(), "ST_1".to_owned())].into(),
            ..Participant::default()
        };
        let picks = |rule: &str| rule.parse::<ParticipantRule>().unwrap().picks(&caller, 2);
        assert!(["identity=sip_1", "kind=sip", "attribute=sip.trunkID=ST_1", "join=2"].into_iter().all(picks));
        assert!(
            !["identity=sip", "kind=agent", "attribute=sip.trunkID=ST", "attribute=x=y", "join=1"]
                .into_iter()
                .any(picks)
        );
    }

    #[test]
    fn a_filter_takes_what_is_wanted_but_for_what_is_not() {
        let agent = Participant { identity: "bot".into(), kind: ParticipantKind::Agent, ..Participant::default() };
        let track = Track {
            key: crate::call::TrackKey(1),
            sid: "TR_1".into(),
            name: "music".into(),
            source: "screen_share_audio".into(),
            codec: crate::call::Codec::Opus,
            stereo: false,
            encryption: Default::default(),
            muted: false,
        };
        let rules = |rules: &[&str]| rules.iter().map(|rule| rule.parse().unwrap()).collect::<Vec<TrackRule>>();
        let records = |only: &[&str], except: &[&str]| {
            TrackFilter { only: rules(only), except: rules(except) }.records(&track, &agent, 1)
        };
        assert!(records(&[], &[]) && records(&["kind=sip", "track=music"], &[]) && records(&["kind=agent"], &[]));
        assert!(!records(&["source=microphone"], &[]) && !records(&["kind=sip"], &[]));
        assert!(!records(&[], &["source=screen_share_audio"]) && !records(&["track=music"], &["identity=bot"]));
        for rule in ["source=microphone", "track=a=b", "kind=agent"] {
            assert_eq!(rule.parse::<TrackRule>().unwrap().to_string(), rule);
        }
        let error = "source=camera".parse::<TrackRule>().unwrap_err().to_string();
        assert!(error.contains("microphone"), "{error}");
    }
}
