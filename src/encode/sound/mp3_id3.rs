//! ID3v2 tags: version 2.4 is written, 2.3 and 2.4 are read.

#[cfg(feature = "mp3")]
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::format_description};

#[cfg(feature = "mp3")]
use super::pcm_tags;
use crate::encode::OpusTags;

/// Bytes of a tag's header.
pub(super) const HEADER: usize = 10;

/// Comments with a frame of their own.
const FRAMES: [(&str, &[u8; 4]); 7] = [
    ("TITLE", b"TIT2"),
    ("ARTIST", b"TPE1"),
    ("ENCODER", b"TSSE"),
    ("ALBUM", b"TALB"),
    ("GENRE", b"TCON"),
    ("COPYRIGHT", b"TCOP"),
    ("LANGUAGE", b"TLAN"),
];
#[cfg(feature = "mp3")]
const UTF_8: u8 = 3;

/// A tag of version 2.4 with everything in UTF-8. Dates are in UTC, as the format demands.
#[cfg(feature = "mp3")]
pub(super) fn write(tags: &OpusTags) -> Vec<u8> {
    let comments = pcm_tags::fitting(tags);
    let mut body = Vec::new();
    for (name, id) in FRAMES {
        let value = match name {
            "ENCODER" => pcm_tags::encoder(&comments, tags),
            _ => pcm_tags::joined(&comments, name, "\0"),
        };
        if let Some(value) = value {
            push_frame(id, &[&[UTF_8], value.as_bytes()], &mut body);
        }
    }
    let mut described = false;
    let mut dated = false;
    for (name, value) in &comments {
        match name.as_str() {
            "DATE" if !dated && utc(value).is_some() => {
                let date = utc(value).unwrap_or_default();
                push_frame(b"TDRC", &[&[UTF_8], date.as_bytes()], &mut body);
                dated = true;
            }
            "DESCRIPTION" if !described => {
                push_frame(b"COMM", &[&[UTF_8], b"und\0", value.as_bytes()], &mut body);
                described = true;
            }
            name if FRAMES.iter().any(|(known, _)| *known == name) => (),
            name => push_frame(b"TXXX", &[&[UTF_8], name.as_bytes(), &[0], value.as_bytes()], &mut body),
        }
    }
    let mut tag = b"ID3\x04\0\0".to_vec();
    tag.extend(synchsafe(body.len() as u32));
    tag.append(&mut body);
    tag
}

#[cfg(feature = "mp3")]
fn push_frame(id: &[u8; 4], parts: &[&[u8]], body: &mut Vec<u8>) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    body.extend(id);
    body.extend(synchsafe(length as u32));
    body.extend([0, 0]);
    parts.iter().for_each(|part| body.extend_from_slice(part));
}

/// A date of RFC 3339 as the format has it: in UTC, without a zone, to the second.
#[cfg(feature = "mp3")]
fn utc(date: &str) -> Option<String> {
    let date = OffsetDateTime::parse(date, &Rfc3339).ok()?.to_offset(UtcOffset::UTC);
    date.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]")).ok()
}

/// 28 bits in four bytes of seven.
#[cfg(feature = "mp3")]
fn synchsafe(value: u32) -> [u8; 4] {
    [21, 14, 7, 0].map(|shift| (value >> shift) as u8 & 0x7f)
}

fn from_synchsafe(bytes: [u8; 4]) -> usize {
    bytes.iter().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f))
}

/// The length of the whole tag that begins with this header.
pub(super) fn length(header: &[u8]) -> Option<usize> {
    let header = header.first_chunk::<HEADER>()?;
    if !header.starts_with(b"ID3") || header[3] == 0xff {
        return None;
    }
    let footer = if header[5] & 0x10 != 0 { HEADER } else { 0 };
    Some(HEADER + from_synchsafe([header[6], header[7], header[8], header[9]]) + footer)
}

/// Reads what of a tag is there, into `tags`. What is not understood is left out.
pub(super) fn read(tag: &[u8], tags: &mut OpusTags) {
    let Some((header, body)) = tag.split_first_chunk::<HEADER>() else { return };
    let version = header[3];
    if version != 3 && version != 4 {
        return;
    }
    let plain;
    let mut rest = body;
    if header[5] & 0x80 != 0 {
        plain = without_unsynchronisation(body);
        rest = &plain;
    }
    if header[5] & 0x40 != 0 {
        let Some(size) = rest.first_chunk::<4>() else { return };
        let size = if version == 4 { from_synchsafe(*size) } else { 4 + u32::from_be_bytes(*size) as usize };
        rest = rest.get(size..).unwrap_or_default();
    }
    while let Some((header, after)) = rest.split_first_chunk::<HEADER>() {
        let size = [header[4], header[5], header[6], header[7]];
        let size = if version == 4 { from_synchsafe(size) } else { u32::from_be_bytes(size) as usize };
        let Some((content, after)) = after.split_at_checked(size) else { return };
        rest = after;
        // Compressed or encrypted frames are passed over.
        if header[9] == 0 {
            read_frame(&[header[0], header[1], header[2], header[3]], content, tags);
        }
    }
}

fn read_frame(id: &[u8; 4], content: &[u8], tags: &mut OpusTags) {
    let Some((encoding, content)) = content.split_first() else { return };
    let mut add = |name: &str, value: &str| {
        if !value.is_empty() {
            // A name that no comment can have is no loss.
            let _ = tags.comment(name, value);
        }
    };
    match id {
        b"TXXX" => {
            let texts = texts(*encoding, content);
            if let [name, values @ ..] = &texts[..] {
                values.iter().for_each(|value| add(&name.to_ascii_uppercase(), value));
            }
        }
        b"COMM" => {
            let texts = texts(*encoding, content.get(3..).unwrap_or_default());
            if let [description, value, ..] = &texts[..]
                && description.is_empty()
            {
                add("DESCRIPTION", value);
            }
        }
        b"TDRC" => {
            for value in texts(*encoding, content) {
                let zone = if value.len() == "2026-01-31T12:00:00".len() { "Z" } else { "" };
                add("DATE", &(value + zone));
            }
        }
        b"TYER" => texts(*encoding, content).iter().for_each(|value| add("DATE", value)),
        id => {
            if let Some((name, _)) = FRAMES.iter().find(|(_, known)| *known == id) {
                texts(*encoding, content).iter().for_each(|value| add(name, value));
            }
        }
    }
}

/// The texts in `content`, between which there are zeros.
fn texts(encoding: u8, content: &[u8]) -> Vec<String> {
    let text = match encoding {
        0 => content.iter().map(|byte| char::from(*byte)).collect(),
        1 | 2 => {
            // Each text may begin with a mark of its byte order.
            let mut little = false;
            let units = content.chunks_exact(2).filter_map(|pair| {
                let unit = if little {
                    u16::from_le_bytes([pair[0], pair[1]])
                } else {
                    u16::from_be_bytes([pair[0], pair[1]])
                };
                match unit {
                    0xfeff => None,
                    0xfffe => {
                        little = !little;
                        None
                    }
                    unit => Some(unit),
                }
            });
            char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        }
        _ => String::from_utf8_lossy(content).into_owned(),
    };
    let text: &str = text.strip_suffix('\0').unwrap_or(&text);
    text.split('\0').map(str::to_owned).collect()
}

/// Takes out the zeros that keep a tag from looking like sound.
fn without_unsynchronisation(bytes: &[u8]) -> Vec<u8> {
    let mut before = 0;
    let mut plain = Vec::with_capacity(bytes.len());
    for byte in bytes {
        if !(before == 0xff && *byte == 0) {
            plain.push(*byte);
        }
        before = *byte;
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "mp3")]
    #[test]
    fn tags_come_back_as_they_were_written() {
        let mut tags = OpusTags::default();
        for (name, value) in [
            ("TITLE", "Röm"),
            ("ARTIST", "Anna"),
            ("ARTIST", "Bert"),
            ("ENCODER", "callreel"),
            ("DATE", "2026-11-22T12:00:05Z"),
            ("DESCRIPTION", "two\nlines"),
            ("ROOM_SID", "RM_1"),
        ] {
            tags.comment(name, value).unwrap();
        }
        let bytes = write(&tags);
        assert_eq!(length(&bytes), Some(bytes.len()));
        let mut back = OpusTags::default();
        read(&bytes, &mut back);
        assert_eq!(back, tags);
        for cut in 0..bytes.len() {
            read(&bytes[..cut], &mut OpusTags::default());
        }
    }

    #[cfg(feature = "mp3")]
    #[test]
    fn dates_are_told_in_utc() {
        assert_eq!(utc("2026-11-22T01:30:00.75+02:00").as_deref(), Some("2026-11-21T23:30:00"));
        assert_eq!(utc("yesterday"), None);
    }

    #[test]
    fn other_encodings_and_unsynchronisation_are_read() {
        assert_eq!(texts(0, b"\xe4\0b\0"), ["ä", "b"]);
        assert_eq!(texts(1, b"\xff\xfea\0\0\0\xfe\xffb\0"), ["a", "\u{6200}"]);
        assert_eq!(texts(2, b"\0a\0b"), ["ab"]);
        let mut tags = OpusTags::default();
        read(b"ID3\x03\0\x80\0\0\0\0TIT2\0\0\0\x03\0\0\0\xff\0b", &mut tags);
        assert_eq!(tags.get("TITLE"), Some("ÿb"));
    }
}
