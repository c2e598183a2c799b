//! Which bytes of a file somebody wants (RFC 9110, section 14). Pure.

use std::ops::Range;

/// What a request asks for of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// Some of it: never empty, never beyond its end.
    Part(Range<u64>),
    /// What it does not have.
    Nothing,
}

/// Reads a `Range` header for a file of `size` bytes. What is not understood, and several ranges, ask for all of it, as the
/// RFC allows.
pub fn wanted(header: Option<&str>, size: u64) -> Wanted {
    let Some((unit, spec)) = header.and_then(|header| header.split_once('=')) else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return Wanted::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // One that is too large for us is beyond every end.
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first.is_empty(), number(first), last.is_empty(), number(last)) {
        (false, Some(first), true, _) if first < size => Wanted::Part(first..size),
        (false, Some(_), true, _) => Wanted::Nothing,
        (false, Some(first), false, Some(last)) if first > last => Wanted::Whole,
        (false, Some(first), false, Some(last)) if first < size => {
            Wanted::Part(first..last.saturating_add(1).min(size))
        }
        (false, Some(_), false, Some(_)) => Wanted::Nothing,
        (true, _, false, Some(0)) => Wanted::Nothing,
        (true, _, false, Some(_)) if size == 0 => Wanted::Nothing,
        (true, _, false, Some(count)) => Wanted::Part(size.saturating_sub(count)..size),
        _ => Wanted::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_them() {
        for (header, wanted_of_ten) in [
            ("bytes=0-", Wanted::Part(0..10)),
            ("bytes=0-0", Wanted::Part(0..1)),
            ("Bytes = 3-5", Wanted::Part(3..6)),
            ("bytes=3-99", Wanted::Part(3..10)),
            ("bytes=-3", Wanted::Part(7..10)),
            ("bytes=-99", Wanted::Part(0..10)),
            ("bytes=9-99999999999999999999999", Wanted::Part(9..10)),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=10-20", Wanted::Nothing),
            ("bytes=99999999999999999999999-", Wanted::Nothing),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=5-3", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=a-", Wanted::Whole),
            ("bytes=+1-", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("pages=1-2", Wanted::Whole),
        ] {
            assert_eq!(wanted(Some(header), 10), wanted_of_ten, "{header}");
        }
        assert_eq!(wanted(None, 10), Wanted::Whole);
        assert_eq!(wanted(Some("bytes=-1"), 0), Wanted::Nothing);
    }

    proptest! {
        #[test]
        fn a_part_is_never_empty_and_never_beyond_the_end(header in "(bytes=)?[-0-9, ]{0,24}", size in any::<u64>()) {
            if let Wanted::Part(range) = wanted(Some(&header), size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }
    }
}
