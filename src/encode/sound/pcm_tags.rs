//! Which of a recording's tags go into the header of a PCM format.

use crate::encode::OpusTags;

/// The most bytes of names and values in a header, so that what is patched behind them lies within the first 64 KiB.
const MOST: usize = 24 * 1024;

/// The comments in order, names in capitals, without those that would make the header too long.
pub(super) fn fitting(tags: &OpusTags) -> Vec<(String, &str)> {
    let mut left = MOST.saturating_sub(tags.vendor.len());
    let mut kept = Vec::new();
    for (name, value) in &tags.comments {
        // The framing of one comment takes at most 32 bytes in any of the formats.
        let Some(rest) = left.checked_sub(name.len() + value.len() + 32) else { continue };
        left = rest;
        kept.push((name.to_ascii_uppercase(), value.as_str()));
    }
    kept
}

/// All values of a name, one after another, between them `separator`.
pub(super) fn joined(comments: &[(String, &str)], name: &str, separator: &str) -> Option<String> {
    let values: Vec<&str> = comments.iter().filter(|(key, _)| key == name).map(|(_, value)| *value).collect();
    (!values.is_empty()).then(|| values.join(separator))
}

/// What wrote the file: the comment ENCODER, or else the vendor.
pub(super) fn encoder(comments: &[(String, &str)], tags: &OpusTags) -> Option<String> {
    joined(comments, "ENCODER", "; ").or_else(|| (!tags.vendor.is_empty()).then(|| tags.vendor.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_the_rest_kept() {
        let mut tags = OpusTags::default();
        tags.comment("a", "1").unwrap().comment("LONG", &"x".repeat(MOST)).unwrap().comment("a", "2").unwrap();
        let kept = fitting(&tags);
        assert_eq!(kept, [("A".to_owned(), "1"), ("A".to_owned(), "2")]);
        assert_eq!(joined(&kept, "A", "; ").as_deref(), Some("1; 2"));
        assert_eq!(encoder(&kept, &tags), None);
    }
}
