//! What has to be there before anything is kept. Pure.

use std::fmt;
use std::str::FromStr;

use crate::call::Participant;
use crate::config::ConfigError;

/// A sign that the call may be recorded: `attribute=KEY`, `attribute=KEY=VALUE` or `message=TOPIC`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConsentRule {
    /// A participant has this attribute.
    Attribute {
        /// Its name.
        key: String,
        /// Its value; any that is not empty where there is none.
        value: Option<String>,
    },
    /// A participant sends a data message on this topic.
    Message {
        /// The topic.
        topic: String,
    },
}

impl ConsentRule {
    /// Whether a participant's attributes are the sign.
    pub fn is_given_by(&self, participant: &Participant) -> bool {
        match self {
            Self::Attribute { key, value } => participant.attributes.get(key).is_some_and(|has| match value {
                Some(value) => has == value,
                None => !has.is_empty(),
            }),
            Self::Message { .. } => false,
        }
    }

    /// The topic of data messages that are the sign.
    pub fn topic(&self) -> Option<&str> {
        match self {
            Self::Message { topic } => Some(topic),
            Self::Attribute { .. } => None,
        }
    }

    /// Whether a data message on `topic` is the sign.
    pub fn is_message(&self, topic: &str) -> bool {
        matches!(self, Self::Message { topic: wanted } if wanted == topic)
    }
}

impl FromStr for ConsentRule {
    type Err = ConfigError;

    fn from_str(rule: &str) -> Result<Self, ConfigError> {
        let unknown = || ConfigError::Invalid {
            key: "consent",
            why: format!("{rule:?} is no sign of consent; known are attribute=KEY, attribute=KEY=VALUE, message=TOPIC"),
        };
        match rule.split_once('=') {
            Some(("message", topic)) if !topic.is_empty() => Ok(Self::Message { topic: topic.to_owned() }),
            Some(("attribute", attribute)) => {
                let (key, value) = match attribute.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (attribute, None),
                };
                if key.is_empty() { Err(unknown()) } else { Ok(Self::Attribute { key: key.to_owned(), value }) }
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for ConsentRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attribute { key, value: Some(value) } => write!(f, "attribute={key}={value}"),
            Self::Attribute { key, value: None } => write!(f, "attribute={key}"),
            Self::Message { topic } => write!(f, "message={topic}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_counts_by_its_value_or_by_being_there() {
        let with = |value: &str| Participant {
            attributes: [("consent".to_owned(), value.to_owned())].into(),
            ..Participant::default()
        };
        let rule = |rule: &str| rule.parse::<ConsentRule>().unwrap();
        assert!(rule("attribute=consent=yes").is_given_by(&with("yes")));
        assert!(!rule("attribute=consent=yes").is_given_by(&with("no")));
        assert!(rule("attribute=consent").is_given_by(&with("no")));
        assert!(!rule("attribute=consent").is_given_by(&with("")));
        assert!(!rule("attribute=other").is_given_by(&with("yes")));
        assert!(!rule("message=consent").is_given_by(&with("yes")));
        assert!(rule("message=a=b").is_message("a=b") && !rule("message=a").is_message("b"));
    }

    #[test]
    fn rules_read_as_they_print_and_others_are_refused() {
        for text in ["attribute=k", "attribute=k=v", "attribute=k=", "message=t"] {
            assert_eq!(text.parse::<ConsentRule>().unwrap().to_string(), text);
        }
        for text in ["", "k=v", "attribute=", "attribute==v", "message="] {
            assert!(text.parse::<ConsentRule>().unwrap_err().to_string().contains("message=TOPIC"), "{text}");
        }
    }
}
