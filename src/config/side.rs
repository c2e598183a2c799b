//! Rules that say who is heard on which side of a dual file.

use std::fmt;
use std::str::FromStr;

use super::ConfigError;
use crate::call::{Participant, ParticipantKind};

/// Picks participants: `identity=alice`, `kind=sip`, `attribute=KEY=VALUE` or `join=2`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SideRule {
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

impl SideRule {
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

impl FromStr for SideRule {
    type Err = ConfigError;

    fn from_str(rule: &str) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { key: "left/right", why };
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

impl fmt::Display for SideRule {
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

/// Who is heard on which side of a dual file. Default: no rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideRules {
    /// Whoever one of these picks is on the left.
    pub left: Vec<SideRule>,
    /// Whoever one of these picks is on the right, unless the left has them.
    pub right: Vec<SideRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_read_as_they_print() {
        for rule in ["identity=a=b", "kind=sip", "kind=agent", "attribute=sip.trunkID=ST_1", "attribute=k=", "join=2"] {
            assert_eq!(rule.parse::<SideRule>().unwrap().to_string(), rule);
        }
        assert_eq!("identity=a=b".parse(), Ok(SideRule::Identity("a=b".into())));
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
            let error = rule.parse::<SideRule>().unwrap_err().to_string();
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
        let picks = |rule: &str| rule.parse::<SideRule>().unwrap().picks(&caller, 2);
        assert!(["identity=sip_1", "kind=sip", "attribute=sip.trunkID=ST_1", "join=2"].into_iter().all(picks));
        assert!(
            !["identity=sip", "kind=agent", "attribute=sip.trunkID=ST", "attribute=x=y", "join=1"]
                .into_iter()
                .any(picks)
        );
    }
}
