//! Metadata as HTTP headers take them: ASCII, without spaces that a proxy or a signature could squeeze.

use std::collections::{BTreeMap, HashMap};

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b'"');

/// A value as it goes into a header.
pub(super) fn encode(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

/// A value from a header; what others wrote there may be no such text, and stays as it is.
pub(super) fn decode(value: &str) -> String {
    match percent_decode_str(value).decode_utf8() {
        Ok(text) => text.into_owned(),
        Err(_) => value.to_owned(),
    }
}

pub(super) fn to_headers(metadata: &BTreeMap<String, String>) -> HashMap<String, String> {
    metadata.iter().map(|(name, value)| (name.clone(), encode(value))).collect()
}

pub(super) fn from_headers(metadata: Option<&HashMap<String, String>>) -> BTreeMap<String, String> {
    metadata.into_iter().flatten().map(|(name, value)| (name.to_ascii_lowercase(), decode(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back() {
        for text in ["plain-1.0", "two  words ", "100%", "%41", "Zürich 通話", "\"quoted\""] {
            let header = encode(text);
            assert!(header.bytes().all(|byte| byte.is_ascii_graphic()), "{header:?}");
            assert_eq!(decode(&header), text);
        }
        assert_eq!(decode("%ff"), "%ff", "what others wrote");
    }
}
