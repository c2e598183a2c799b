//! Comments as iTunes-style metadata: `udta/meta/ilst`.

use super::boxes::{Boxes, Fields, find, put, put_full, put_u32};
use crate::encode::OpusTags;
use crate::time::SampleCount;

/// Comments that have a box of their own; all others go into a free one.
const KNOWN: [(&str, &[u8; 4]); 9] = [
    ("TITLE", b"\xa9nam"),
    ("ARTIST", b"\xa9ART"),
    ("DATE", b"\xa9day"),
    ("ENCODER", b"\xa9too"),
    ("DESCRIPTION", b"desc"),
    ("COMMENT", b"\xa9cmt"),
    ("ALBUM", b"\xa9alb"),
    ("GENRE", b"\xa9gen"),
    ("COPYRIGHT", b"cprt"),
];

/// Whose free names players look for.
const MEAN: &str = "com.apple.iTunes";

/// The free box that keeps the vendor where the comments name another encoder.
const VENDOR: &str = "VENDOR";

/// The free box that tells what is not played at both ends.
const GAPLESS: &str = "iTunSMPB";

const UTF_8: u32 = 1;

/// What is not played at the start and at the end, and what is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gapless {
    pub skip: u64,
    pub rest: u64,
    pub total: SampleCount,
}

/// A box as long as that of [`put_gapless`] that says nothing.
fn put_no_gapless(out: &mut Vec<u8>) {
    let start = out.len();
    put_gapless(Gapless { skip: 0, rest: 0, total: SampleCount::ZERO }, out);
    out[start + 4..start + 8].copy_from_slice(b"free");
}

/// Appends the box of the tags that tells what is not played.
pub(super) fn put_gapless(Gapless { skip, rest, total }: Gapless, out: &mut Vec<u8>) {
    let value = format!(" 00000000 {skip:08X} {rest:08X} {:016X}{}", total.0, " 00000000".repeat(8));
    put_item(GAPLESS, [value.as_str()].into_iter(), out);
}

/// Appends the `udta` box. Comments of the same name share a box, as further values of it. In front of them is room for what
/// [`put_gapless`] writes, if `is_gapless`; gives where.
pub(super) fn write(tags: &OpusTags, is_gapless: bool, out: &mut Vec<u8>) -> Option<u64> {
    let mut place = None;
    let mut done: Vec<&str> = Vec::new();
    put(b"udta", out, |out| {
        put_full(b"meta", 0, 0, out, |out| {
            put_full(b"hdlr", 0, 0, out, |out| {
                out.extend_from_slice(b"\0\0\0\0mdirappl\0\0\0\0\0\0\0\0\0");
            });
            put(b"ilst", out, |out| {
                if is_gapless {
                    place = Some(out.len() as u64);
                    put_no_gapless(out);
                }
                for (name, _) in &tags.comments {
                    if done.iter().any(|done| done.eq_ignore_ascii_case(name)) {
                        continue;
                    }
                    done.push(name);
                    let values = tags.comments.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
                    put_item(name, values.map(|(_, value)| value.as_str()), out);
                }
                let vendor = if tags.get("ENCODER").is_some() { VENDOR } else { "ENCODER" };
                put_item(vendor, [tags.vendor.as_str()].into_iter(), out);
            });
        });
    });
    place
}

fn put_item<'a>(name: &str, values: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    let known = KNOWN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    put(known.map_or(b"----", |(_, kind)| kind), out, |out| {
        if known.is_none() {
            put_full(b"mean", 0, 0, out, |out| out.extend_from_slice(MEAN.as_bytes()));
            put_full(b"name", 0, 0, out, |out| out.extend_from_slice(name.as_bytes()));
        }
        for value in values {
            put(b"data", out, |out| {
                put_u32(UTF_8, out);
                put_u32(0, out);
                out.extend_from_slice(value.as_bytes());
            });
        }
    });
}

/// Reads the tags in the body of a `moov` box.
pub(super) fn read(moov: &[u8]) -> OpusTags {
    let mut tags = OpusTags::default();
    let Some(mut meta) = find(moov, &[b"udta", b"meta"]) else { return tags };
    // QuickTime's has no version and flags.
    if meta.get(4..8) != Some(b"hdlr") {
        meta = meta.get(4..).unwrap_or_default();
    }
    let Some(items) = find(meta, &[b"ilst"]) else { return tags };
    let mut encoder = Vec::new();
    let mut vendor = None;
    for (kind, item) in Boxes(items) {
        let free = find(item, &[b"name"]).and_then(|name| name.get(4..)).map(text);
        let known = KNOWN.iter().find(|(_, known)| **known == kind).map(|(name, _)| (*name).to_owned());
        let Some(name) = (if kind == *b"----" { free } else { known }) else { continue };
        for value in Boxes(item).filter(|(kind, _)| kind == b"data").filter_map(|(_, data)| data_text(data)) {
            match name.as_str() {
                "ENCODER" => encoder.push((tags.comments.len(), value)),
                VENDOR => vendor = Some(value),
                GAPLESS => {}
                // A name that a comment cannot have is left out.
                name => _ = tags.comment(name, &value),
            }
        }
    }
    match vendor {
        Some(vendor) => {
            tags.vendor = vendor;
            for (place, value) in encoder.into_iter().rev() {
                tags.comments.insert(place, ("ENCODER".to_owned(), value));
            }
        }
        None => tags.vendor = encoder.into_iter().next().map(|(_, value)| value).unwrap_or_default(),
    }
    tags
}

/// The value of a `data` box, if it is text.
fn data_text(data: &[u8]) -> Option<String> {
    let mut fields = Fields(data);
    (fields.u32()? == UTF_8).then_some(())?;
    fields.skip(4)?;
    Some(text(fields.0))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(tags: &OpusTags) -> OpusTags {
        let mut bytes = Vec::new();
        write(tags, false, &mut bytes);
        let mut gapless = Vec::new();
        let place = write(tags, true, &mut gapless).unwrap() as usize;
        assert_eq!(read(&gapless), read(&bytes));
        let mut told = Vec::new();
        put_gapless(Gapless { skip: 1024, rest: 448, total: SampleCount(48_000) }, &mut told);
        gapless[place..place + told.len()].copy_from_slice(&told);
        assert!(told.windows(36).any(|part| part == b" 00000000 00000400 000001C0 00000000"));
        assert_eq!(read(&gapless), read(&bytes));
        read(&bytes)
    }

    #[test]
    fn tags_are_read_as_they_were_written() {
        let mut tags = OpusTags { vendor: "who".into(), comments: Vec::new() };
        assert_eq!(round(&tags), tags);
        let all =
            [("TITLE", "räum"), ("ARTIST", "a"), ("ARTIST", "b"), ("ROOM_SID", "RM_1"), ("DATE", ""), ("ROOM", "x")];
        for (name, value) in all {
            tags.comment(name, value).unwrap();
        }
        assert_eq!(round(&tags), tags);
        tags.comments.insert(3, ("ENCODER".into(), "another".into()));
        assert_eq!(round(&tags), tags);
    }
}
