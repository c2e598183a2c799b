//! Which rooms are recorded, and how. Pure: what is known of a room goes in, a decision comes out.
//!
//! ```
//! use callreel::config::RuleSpec;
//! use callreel::service::rules::{Decision, RoomFacts, RuleBook};
//!
//! let support = RuleSpec { room: Some("support-*".into()), prefix: Some("support".into()), ..RuleSpec::default() };
//! let book = RuleBook::new(&[support], false)?;
//! let room = RoomFacts { name: "support-17", metadata: "", participants: &[] };
//! assert!(matches!(book.decide(&room), Decision::Record(choice) if choice.rule.as_deref() == Some("rule-1")));
//! assert!(matches!(book.decide(&RoomFacts { name: "sales-1", ..room }), Decision::Ignore));
//! # Ok::<(), callreel::config::ConfigError>(())
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::call::{Participant, ParticipantKind};
use crate::config::{
    AttributeSpec, Config, ConfigError, EngineWord, Fallback, FallbackWord, LONGEST_RETENTION, NameTemplate,
    OutputKind, Picture, RuleSpec,
};
use crate::encode::{Format, formats};
use crate::recording::{ConsentRule, PausePolicy};

/// What is known of a room.
#[derive(Clone, Copy, Debug)]
pub struct RoomFacts<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its metadata, as it stands.
    pub metadata: &'a str,
    /// Who is in it.
    pub participants: &'a [Participant],
}

/// Whether a room is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is.
    Record(Choice),
    /// It is not, as things stand; somebody who comes may change that.
    Ignore,
}

/// How a room is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// The rule's name; none where no rule is about the room.
    pub rule: Option<String>,
    /// What it wants.
    pub wish: Wish,
}

/// What somebody wants of a recording, beside what holds for all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wish {
    /// Which files.
    pub outputs: Option<Vec<OutputKind>>,
    /// The word for the format, or several with commas: `ogg`, `webm`, `mp4`, `wav`, `flac`, `mp3`.
    pub format: Option<String>,
    /// Whether there is a picture.
    pub video: Option<bool>,
    /// The picture's layout.
    pub layout: Option<String>,
    /// What names begin with.
    pub prefix: Option<String>,
    /// The name template behind that.
    pub name: Option<String>,
    /// Who records.
    pub engine: Option<EngineWord>,
    /// What stands in.
    pub fallback: Option<FallbackWord>,
    /// Days until it is deleted; 0 for never.
    pub retention_days: Option<u32>,
    /// What files have where it was paused.
    pub pause: Option<PausePolicy>,
    /// Signs of consent.
    pub consent: Vec<String>,
    /// The longest recording.
    pub max_duration: Option<Duration>,
}

impl Wish {
    /// What is wanted here, and where nothing is, by `other`.
    pub fn or(self, other: Self) -> Self {
        // What is said of the form belongs together: a format from one and a layout from the other would fit neither.
        let has_form = self.format.is_some() || self.video.is_some() || self.layout.is_some();
        let form =
            if has_form { (self.format, self.video, self.layout) } else { (other.format, other.video, other.layout) };
        Self {
            outputs: self.outputs.or(other.outputs),
            format: form.0,
            video: form.1,
            layout: form.2,
            prefix: self.prefix.or(other.prefix),
            name: self.name.or(other.name),
            engine: self.engine.or(other.engine),
            fallback: self.fallback.or(other.fallback),
            retention_days: self.retention_days.or(other.retention_days),
            pause: self.pause.or(other.pause),
            consent: if self.consent.is_empty() { other.consent } else { self.consent },
            max_duration: self.max_duration.or(other.max_duration),
        }
    }

    /// The configuration of the recording of `room`: `base` with what is wanted.
    ///
    /// # Errors
    /// What nobody can make, and names, signs and formats that make no sense.
    pub fn apply(&self, base: &Config, room: &str) -> Result<Config, ConfigError> {
        let mut config =
            Config { room: room.to_owned(), recording_id: crate::config::new_recording_id(), ..base.clone() };
        if let Some(outputs) = &self.outputs {
            config.outputs.clone_from(outputs);
        }
        if let Some(engine) = self.engine {
            config.engine = engine.into();
        }
        if self.format.is_some() || self.video.is_some() || self.layout.is_some() {
            let preset = base.picture.as_ref().map(|picture| picture.preset).unwrap_or_default();
            let page = base.picture.as_ref().and_then(|picture| picture.page.clone());
            let picture = Picture { layout: self.layout.clone(), page, preset };
            set_form(&mut config, self.format.as_deref(), self.video, picture)?;
        }
        match self.fallback {
            Some(FallbackWord::None) => config.fallback = None,
            Some(FallbackWord::Egress) if config.fallback.is_none() => config.fallback = Some(Fallback::default()),
            Some(FallbackWord::Egress) | None => {}
        }
        if config.uses_egress() {
            config.fallback = None;
        }
        let prefix = self.prefix.as_deref().map_or("", |prefix| prefix.trim_matches('/'));
        if self.name.is_some() || !prefix.is_empty() {
            let name = self.name.clone().unwrap_or_else(|| base.name.to_string());
            let whole = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let named = NameTemplate::parse(&whole);
            config.name = named.map_err(|e| ConfigError::Invalid { key: "file_path", why: e.to_string() })?;
        }
        if let Some(pause) = self.pause {
            config.life.pause = pause;
        }
        if !self.consent.is_empty() {
            config.life.consent =
                self.consent.iter().map(|sign| sign.parse()).collect::<Result<Vec<ConsentRule>, _>>()?;
        }
        if self.max_duration.is_some() {
            config.life.stop.max_duration = self.max_duration;
        }
        if self.retention_days.is_some_and(|days| days > LONGEST_RETENTION) {
            let why = "more than a hundred years; for ever is without it".to_owned();
            return Err(ConfigError::Invalid { key: "retention_days", why });
        }
        config.validate()?;
        Ok(config)
    }
}

/// Says in `config` which container and which picture, from a word for the container and whether there is to be a picture.
/// `picture` is the one that there would be.
///
/// # Errors
/// A container that nobody makes.
pub fn set_form(
    config: &mut Config,
    format: Option<&str>,
    video: Option<bool>,
    picture: Picture,
) -> Result<(), ConfigError> {
    let asked = format.map(formats).transpose();
    let asked = asked.map_err(|error| ConfigError::Invalid { key: "format", why: error.to_string() })?;
    let is_implied = match &asked {
        Some(asked) => *asked == [Format::Mp4],
        None => picture.layout.is_some(),
    };
    let has_picture = video.unwrap_or(is_implied);
    config.set_form(&asked.unwrap_or_default(), has_picture.then_some(picture))
}

/// Rules in their order.
#[derive(Debug)]
pub struct RuleBook {
    rules: Vec<Rule>,
    records_others: bool,
}

#[derive(Debug)]
struct Rule {
    room: Option<Regex>,
    metadata: BTreeMap<String, Value>,
    sip_only: bool,
    attribute: Option<AttributeSpec>,
    records: bool,
    choice: Choice,
}

impl RuleBook {
    /// Reads rules. `records_others` says whether rooms are recorded that none is about.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] with the rule's place and what is wrong with it.
    pub fn new(specs: &[RuleSpec], records_others: bool) -> Result<Self, ConfigError> {
        let rules =
            specs.iter().enumerate().map(|(index, spec)| Rule::new(index, spec)).collect::<Result<Vec<_>, _>>()?;
        for (index, rule) in rules.iter().enumerate() {
            if rules[..index].iter().any(|earlier| earlier.choice.rule == rule.choice.rule) {
                return Err(invalid(index, "name", "an earlier rule has the same name"));
            }
        }
        Ok(Self { rules, records_others })
    }

    /// Checks that what the rules want can be had.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] with the rule's place and what is wrong with it.
    pub fn check(&self, base: &Config) -> Result<(), ConfigError> {
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.records) {
            rule.choice.wish.apply(base, "room").map_err(|error| match error {
                ConfigError::Invalid { key, why } => invalid(index, key, why),
                other => invalid(index, "", other),
            })?;
        }
        Ok(())
    }

    /// The first rule that fits decides.
    pub fn decide(&self, room: &RoomFacts<'_>) -> Decision {
        match self.rules.iter().find(|rule| rule.fits(room)) {
            Some(rule) if rule.records => Decision::Record(rule.choice.clone()),
            Some(_) => Decision::Ignore,
            None if self.records_others => Decision::Record(Choice::default()),
            None => Decision::Ignore,
        }
    }

    /// What the rule of this name wants; nothing where there is none.
    pub fn wish(&self, rule: &str) -> Option<&Wish> {
        self.rules.iter().map(|rule| &rule.choice).find(|choice| choice.rule.as_deref() == Some(rule)).map(|c| &c.wish)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl Rule {
    fn new(index: usize, spec: &RuleSpec) -> Result<Self, ConfigError> {
        let pattern = match (&spec.room, &spec.room_regex) {
            (Some(_), Some(_)) => return Err(invalid(index, "room", "there is a pattern and a regular expression")),
            (Some(glob), None) => Some(("room", glob_as_regex(glob))),
            (None, Some(regex)) => Some(("room_regex", format!("^(?:{regex})$"))),
            (None, None) => None,
        };
        let room = pattern.map(|(key, pattern)| {
            let built = regex::RegexBuilder::new(&pattern).size_limit(1 << 20).dot_matches_new_line(true).build();
            built.map_err(|error| invalid(index, key, error))
        });
        let record = spec.record.unwrap_or(true);
        Ok(Self {
            room: room.transpose()?,
            metadata: spec.metadata.clone(),
            sip_only: spec.sip_only,
            attribute: spec.participant_attribute.clone(),
            records: record,
            choice: Choice {
                rule: Some(spec.name.clone().unwrap_or_else(|| format!("rule-{}", index + 1))),
                wish: Wish::from(spec),
            },
        })
    }

    fn fits(&self, room: &RoomFacts<'_>) -> bool {
        if self.room.as_ref().is_some_and(|pattern| !pattern.is_match(room.name)) {
            return false;
        }
        if self.sip_only && !room.participants.iter().any(|participant| participant.kind == ParticipantKind::Sip) {
            return false;
        }
        if let Some(AttributeSpec { key, value }) = &self.attribute {
            let has = |participant: &Participant| match (participant.attributes.get(key), value) {
                (Some(has), Some(value)) => has == value,
                (Some(has), None) => !has.is_empty(),
                (None, _) => false,
            };
            if !room.participants.iter().any(has) {
                return false;
            }
        }
        if self.metadata.is_empty() {
            return true;
        }
        let Ok(metadata) = serde_json::from_str::<Value>(room.metadata) else { return false };
        self.metadata.iter().all(|(path, wanted)| {
            let found = path.split('.').try_fold(&metadata, |at, name| at.get(name));
            found == Some(wanted)
        })
    }
}

impl From<&RuleSpec> for Wish {
    fn from(spec: &RuleSpec) -> Self {
        Self {
            outputs: spec.outputs.clone(),
            format: spec.format.clone(),
            video: spec.video,
            layout: spec.layout.clone(),
            prefix: spec.prefix.clone(),
            name: spec.file_path.clone(),
            engine: spec.engine,
            fallback: spec.fallback,
            retention_days: spec.retention_days,
            pause: spec.pause,
            consent: spec.consent.clone(),
            max_duration: spec.max_duration.map(|time| time.0),
        }
    }
}

fn glob_as_regex(glob: &str) -> String {
    let mut regex = String::from("^");
    for c in glob.chars() {
        match c {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            c => regex.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    regex.push('$');
    regex
}

fn invalid(index: usize, key: &str, why: impl std::fmt::Display) -> ConfigError {
    let dot = if key.is_empty() { "" } else { "." };
    ConfigError::Setting {
        key: format!("rules[{index}]{dot}{key}"),
        source_name: "the configuration file".into(),
        why: why.to_string(),
    }
}

/// The rules in force, which can be replaced while the service runs. Clones share them.
#[derive(Clone, Debug)]
pub struct Rules(Arc<RwLock<Arc<RuleBook>>>);

impl Rules {
    /// Puts rules in force.
    pub fn new(book: RuleBook) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(book))))
    }

    /// Those in force now.
    pub fn current(&self) -> Arc<RuleBook> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in force; what is being recorded goes on as it began.
    pub fn replace(&self, book: RuleBook) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::FileFormat;
    use crate::room::Credentials;
    use crate::store::{S3Config, StoreConfig};

    fn book(yaml: &str, records_others: bool) -> Result<RuleBook, ConfigError> {
        let file = crate::config::ConfigFile::parse(yaml, &|_| None).unwrap();
        RuleBook::new(&file.rules, records_others)
    }

    fn rule_of(book: &RuleBook, room: RoomFacts<'_>) -> Option<String> {
        match book.decide(&room) {
            Decision::Record(choice) => Some(choice.rule.unwrap_or_default()),
            Decision::Ignore => None,
        }
    }

    fn named(name: &str) -> RoomFacts<'_> {
        RoomFacts { name, metadata: "", participants: &[] }
    }

    fn base() -> Config {
        let key = Credentials::ApiKey { key: "k".into(), secret: "s".into() };
        let mut config = Config::new("ws://x", key, "");
        config.store = Some(StoreConfig::S3(S3Config { bucket: "b".into(), ..S3Config::default() }));
        config
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let yaml = "rules:\n- {room: 'test-*', record: false}\n- {room: '*-??', name: short}\n- {room_regex: 'a|b'}\n";
        let book = book(yaml, false).unwrap();
        for (name, rule) in [
            ("test-99", None),
            ("x-42", Some("short")),
            ("x-421", None),
            ("a", Some("rule-3")),
            ("ab", None),
            ("x\n-42", Some("short")),
        ] {
            assert_eq!(rule_of(&book, named(name)).as_deref(), rule, "{name}");
        }
    }

    #[test]
    fn a_pattern_takes_every_other_character_for_itself() {
        let book = book("rules: [{room: 'a.b(c)+*'}]", false).unwrap();
        assert!(rule_of(&book, named("a.b(c)+1")).is_some());
        assert!(rule_of(&book, named("axb(c)+1")).is_none());
    }

    #[test]
    fn rooms_without_a_rule_are_recorded_or_not() {
        assert_eq!(rule_of(&book("", true).unwrap(), named("x")).as_deref(), Some(""));
        assert_eq!(rule_of(&book("", false).unwrap(), named("x")), None);
    }

    #[test]
    fn participants_and_metadata_count() {
        let yaml = "rules:\n- {sip_only: true, name: sip}\n- {participant_attribute: {key: vip}, name: vip}\n\
                    - {participant_attribute: {key: tier, value: gold}, name: gold}\n\
                    - {metadata: {plan.recording: true, plan.n: 3}, name: metadata}\n";
        let book = book(yaml, false).unwrap();
        let with = |kind, key: &str, value: &str| Participant {
            kind,
            attributes: [(key.to_owned(), value.to_owned())].into(),
            ..Participant::default()
        };
        let decide =
            |participant: Participant| rule_of(&book, RoomFacts { participants: &[participant], ..named("r") });
        assert_eq!(decide(with(ParticipantKind::Sip, "", "")).as_deref(), Some("sip"));
        assert_eq!(decide(with(ParticipantKind::Standard, "vip", "x")).as_deref(), Some("vip"));
        assert_eq!(decide(with(ParticipantKind::Standard, "vip", "")), None);
        assert_eq!(decide(with(ParticipantKind::Standard, "tier", "gold")).as_deref(), Some("gold"));
        assert_eq!(decide(with(ParticipantKind::Standard, "tier", "silver")), None);
        let metadata = |metadata| rule_of(&book, RoomFacts { metadata, ..named("r") });
        assert_eq!(metadata(r#"{"plan": {"recording": true, "n": 3}}"#).as_deref(), Some("metadata"));
        for other in ["", "{", r#"{"plan": {"recording": "true", "n": 3}}"#, r#"{"plan": {"recording": true}}"#, "[]"] {
            assert_eq!(metadata(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_named_with_its_place() {
        for (yaml, place) in [
            ("rules: [{room: a}, {room_regex: '('}]", "rules[1].room_regex"),
            ("rules: [{room: a, room_regex: b}]", "rules[0].room"),
            ("rules: [{name: a}, {name: a}]", "rules[1].name"),
        ] {
            let error = book(yaml, false).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
        for (yaml, place) in [
            ("rules: [{format: webm, video: true}]", "rules[0]: the format webm by LiveKit Egress is not available"),
            ("rules: [{}, {format: avi}]", "rules[1].format"),
            ("rules: [{file_path: '{rom}'}]", "rules[0].file_path"),
            ("rules: [{video: true, outputs: [dual]}]", "rules[0].engine"),
        ] {
            let error = book(yaml, false).unwrap().check(&base()).unwrap_err().to_string();
            assert!(error.starts_with(place), "{error}");
        }
        book("rules: [{record: false, format: avi}]", false).unwrap().check(&base()).unwrap();
    }

    #[test]
    fn wishes_become_a_configuration() {
        let wish = Wish {
            outputs: Some(vec![OutputKind::Dual]),
            prefix: Some("/calls/".into()),
            pause: Some(PausePolicy::Skip),
            consent: vec!["attribute=consent".into()],
            fallback: Some(FallbackWord::Egress),
            max_duration: Some(Duration::from_secs(9)),
            ..Wish::default()
        };
        let config = wish.apply(&base(), "room").unwrap();
        assert_eq!((config.outputs, config.life.pause), (vec![OutputKind::Dual], PausePolicy::Skip));
        assert_eq!(config.name.to_string(), "calls/{room_name}-{time}.{ext}");
        assert_eq!((config.fallback, config.life.consent.len()), (Some(Fallback::default()), 1));
        assert_eq!(config.life.stop.max_duration, Some(Duration::from_secs(9)));
        assert_ne!(wish.apply(&base(), "room").unwrap().recording_id, config.recording_id);
        let picture = Wish { video: Some(true), layout: Some("grid".into()), ..Wish::default() };
        let config =
            picture.or(Wish { fallback: Some(FallbackWord::Egress), ..Wish::default() }).apply(&base(), "room");
        let config = config.unwrap();
        assert!(config.uses_egress() && config.fallback.is_none() && config.format == FileFormat::Mp4);
        let mp3 = Wish { format: Some("MP3".into()), ..Wish::default() }.apply(&base(), "room").unwrap();
        assert!(!mp3.uses_egress() && mp3.picture.is_none() && mp3.formats == [Format::Mp3]);
    }

    #[test]
    fn rules_are_replaced_for_all_who_hold_them() {
        let rules = Rules::new(book("", false).unwrap());
        let held = rules.clone();
        rules.replace(book("rules: [{name: new}]", false).unwrap());
        assert_eq!(rule_of(&held.current(), named("x")).as_deref(), Some("new"));
    }
}
