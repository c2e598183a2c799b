//! File and object names from templates.

use std::fmt;

use time::OffsetDateTime;
use time::macros::format_description;

/// A name with `{variables}`, checked when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(Variable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    RoomName,
    RoomId,
    Time,
    /// The time as one deployed system writes it.
    Underscored,
    RecordingId,
    JobId,
    Participant,
    Track,
    Ext,
}

const VARIABLES: [(&str, Variable); 9] = [
    ("room_name", Variable::RoomName),
    ("room_id", Variable::RoomId),
    ("time", Variable::Time),
    ("YYYYMMDD_HHMMSS", Variable::Underscored),
    ("recording_id", Variable::RecordingId),
    ("job_id", Variable::JobId),
    ("participant", Variable::Participant),
    ("track", Variable::Track),
    ("ext", Variable::Ext),
];

/// What a template's variables stand for. Parts without a value become empty.
#[derive(Clone, Copy, Debug)]
pub struct NameValues<'a> {
    /// `{room_name}`
    pub room_name: &'a str,
    /// `{room_id}`: the server's id of the room.
    pub room_id: &'a str,
    /// `{time}`: the start, as `YYYYMMDD-HHMMSS` in UTC.
    pub time: OffsetDateTime,
    /// `{recording_id}`
    pub recording_id: &'a str,
    /// `{job_id}`: the agent job, or the recording id where there is none.
    pub job_id: &'a str,
    /// `{participant}`: the identity, for outputs of one participant.
    pub participant: &'a str,
    /// `{track}`: the server's id of the track, for outputs of one track.
    pub track: &'a str,
    /// `{ext}`: the format's usual ending, without a dot.
    pub ext: &'a str,
}

/// A template that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing is left of the name.
    #[error("the name template is empty")]
    Empty,
    /// A variable that does not exist.
    #[error(
        "unknown variable {{{0}}} in the name template; known are {{room_name}} {{room_id}} {{time}} {{YYYYMMDD_HHMMSS}} {{recording_id}} {{job_id}} {{participant}} {{track}} {{ext}}"
    )]
    UnknownVariable(String),
    /// A brace without its partner.
    #[error("unbalanced brace at byte {0} of the name template")]
    Unbalanced(usize),
}

impl NameTemplate {
    /// Reads a template such as `recordings/{room_name}-{time}.{ext}`; `.{ext}` is added where `{ext}` is missing.
    pub fn parse(template: &str) -> Result<Self, NameError> {
        let mut pieces = Vec::new();
        let mut rest = template;
        while let Some(open) = rest.find(['{', '}']) {
            let at = template.len() - rest.len() + open;
            if rest.as_bytes()[open] == b'}' {
                return Err(NameError::Unbalanced(at));
            }
            let Some(length) = rest[open..].find('}') else { return Err(NameError::Unbalanced(at)) };
            let name = &rest[open + 1..open + length];
            let variable = VARIABLES
                .iter()
                .find(|(known, _)| *known == name)
                .ok_or_else(|| NameError::UnknownVariable(name.to_owned()))?
                .1;
            if open > 0 {
                pieces.push(Piece::Text(rest[..open].to_owned()));
            }
            pieces.push(Piece::Variable(variable));
            rest = &rest[open + length + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        if pieces.is_empty() {
            return Err(NameError::Empty);
        }
        if !pieces.contains(&Piece::Variable(Variable::Ext)) {
            pieces.push(Piece::Text(".".to_owned()));
            pieces.push(Piece::Variable(Variable::Ext));
        }
        Ok(Self(pieces))
    }

    /// The name: relative, with `/` between its parts, safe as a path and as an object key.
    ///
    /// A value never adds a directory of its own, and no part is `.` or `..`.
    pub fn render(&self, values: &NameValues<'_>) -> String {
        let mut name = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Variable(variable) => name.push_str(&safe_value(&variable.value(values))),
            }
        }
        let parts: Vec<String> = name.split('/').map(safe_part).filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { "recording".to_owned() } else { parts.join("/") }
    }
}

impl Variable {
    fn value(self, values: &NameValues<'_>) -> String {
        match self {
            Self::RoomName => values.room_name.to_owned(),
            Self::RoomId => values.room_id.to_owned(),
            Self::Underscored => values
                .time
                .to_offset(time::UtcOffset::UTC)
                .format(format_description!("[year][month][day]_[hour][minute][second]"))
                .unwrap_or_default(),
            Self::Time => values
                .time
                .to_offset(time::UtcOffset::UTC)
                .format(format_description!("[year][month][day]-[hour][minute][second]"))
                .unwrap_or_default(),
            Self::RecordingId => values.recording_id.to_owned(),
            Self::JobId => values.job_id.to_owned(),
            Self::Participant => values.participant.to_owned(),
            Self::Track => values.track.to_owned(),
            Self::Ext => values.ext.to_owned(),
        }
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(text)?,
                Piece::Variable(variable) => {
                    let name = VARIABLES.iter().find(|(_, known)| known == variable).map_or("", |(name, _)| name);
                    write!(f, "{{{name}}}")?;
                }
            }
        }
        Ok(())
    }
}

/// The longest part of a path that common file systems take is 255 bytes; room is left for `.part`, a number and what a
/// file's name says beside the recording's own.
const LONGEST_PART: usize = 160;

/// The most bytes that a value takes in a file's name beside the recording's own.
const LONGEST_VALUE: usize = 70;

/// `value` as a piece of a file's name: without separators and other characters that file systems refuse, cut to a length
/// that leaves room for the rest.
pub fn safe_in_name(value: &str) -> String {
    let mut safe = safe_part(&safe_value(value));
    let cut = (0..=LONGEST_VALUE.min(safe.len())).rev().find(|at| safe.is_char_boundary(*at));
    safe.truncate(cut.unwrap_or(0));
    safe
}

fn safe_value(value: &str) -> String {
    value.chars().map(|c| if c == '/' || c == '\\' { '_' } else { c }).collect()
}

fn safe_part(part: &str) -> String {
    let cleaned: String = part
        .chars()
        .map(|c| match c {
            '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' => '_',
            c if c.is_control() => '_',
            c => c,
        })
        .collect();
    let trimmed = cleaned.trim();
    if !trimmed.is_empty() && trimmed.chars().all(|c| c == '.') {
        return "_".repeat(trimmed.len());
    }
    shorten(trimmed)
}

fn shorten(part: &str) -> String {
    if part.len() <= LONGEST_PART {
        return part.to_owned();
    }
    let (stem, ext) = match part.rfind('.') {
        Some(dot) if part.len() - dot <= 10 => part.split_at(dot),
        _ => (part, ""),
    };
    let mut end = (LONGEST_PART - ext.len()).min(stem.len());
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{ext}", &stem[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn values<'a>(room_name: &'a str) -> NameValues<'a> {
        NameValues {
            room_name,
            room_id: "RM_1",
            time: datetime!(2024-03-15 14:30:22 UTC),
            recording_id: "rec",
            job_id: "AJ_1",
            participant: "",
            track: "",
            ext: "ogg",
        }
    }

    fn render(template: &str, room: &str) -> String {
        NameTemplate::parse(template).unwrap().render(&values(room))
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(render("recordings/{room_name}-{time}", "my-room"), "recordings/my-room-20240315-143022.ogg");
        assert_eq!(render("a/{job_id}.{ext}", "r"), "a/AJ_1.ogg");
    }

    #[test]
    fn no_name_leaves_its_directory() {
        assert_eq!(render("{room_name}", "../../etc/passwd"), ".._.._etc_passwd.ogg");
        assert_eq!(render("/../{room_name}", ".."), "__/...ogg");
        assert_eq!(render("{room_name}/x", ".."), "__/x.ogg");
        assert_eq!(render("{room_name}/x", "a\0b\nc"), "a_b_c/x.ogg");
    }

    #[test]
    fn a_long_name_is_cut_and_keeps_its_ending() {
        let name = render("{room_name}", &"é".repeat(400));
        assert!(name.len() <= LONGEST_PART && name.ends_with("é.ogg"), "{name}");
    }

    #[test]
    fn a_bad_template_is_refused_with_its_fault() {
        assert_eq!(NameTemplate::parse("{rom}"), Err(NameError::UnknownVariable("rom".into())));
        assert_eq!(NameTemplate::parse("a{time"), Err(NameError::Unbalanced(1)));
        assert_eq!(NameTemplate::parse("a}b"), Err(NameError::Unbalanced(1)));
        assert_eq!(NameTemplate::parse(""), Err(NameError::Empty));
    }

    #[test]
    fn it_prints_as_it_was_written() {
        assert_eq!(NameTemplate::parse("x/{room_id}.{ext}").unwrap().to_string(), "x/{room_id}.{ext}");
    }
}
