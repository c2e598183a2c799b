//! Who spoke when as a WebVTT file, which browsers show along with the sound.

use std::fmt::Write;

use super::Span;
use crate::time::{MediaTime, SAMPLE_RATE};

/// A WebVTT file with one cue for each `(name, span)`, in the order of their starts: the name is the cue's voice, and,
/// as no words are known, its text. People who speak over each other have cues that overlap.
///
/// Times are rounded to milliseconds, the format's precision.
pub fn write<'a>(cues: impl IntoIterator<Item = (&'a str, Span)>) -> String {
    let mut cues: Vec<_> = cues.into_iter().collect();
    cues.sort_by_key(|(_, span)| (span.from, span.to));
    let mut out = String::from("WEBVTT\n");
    for (name, span) in cues {
        let (from, to) = (millis(span.from), millis(span.to));
        if to > from {
            let name = escaped(name);
            out.push('\n');
            timestamp(from, &mut out);
            out.push_str(" --> ");
            timestamp(to, &mut out);
            out.push_str("\n<v ");
            out.push_str(&name);
            out.push('>');
            out.push_str(&name);
            out.push_str("</v>\n");
        }
    }
    out
}

fn millis(at: MediaTime) -> u64 {
    let samples = u64::try_from(at.0).unwrap_or(0);
    let per_milli = u64::from(SAMPLE_RATE) / 1000;
    (samples + per_milli / 2) / per_milli
}

fn timestamp(millis: u64, out: &mut String) {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    write!(out, "{hours:02}:{minutes:02}:{seconds:02}.{millis:03}").expect("a string takes everything");
}

/// `name` as text of a cue and as the annotation of a voice: on one line, without markup. A name without anything to be
/// seen is "unknown", as a voice needs one.
fn escaped(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for word in name.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word.chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                _ => out.push(c),
            }
        }
    }
    if out.is_empty() { "unknown".into() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: i64, to: i64) -> Span {
        Span { from: MediaTime(from), to: MediaTime(to) }
    }

    #[test]
    fn cues_come_in_order_with_exact_times_and_overlap() {
        let hour = 3600 * 48_000;
        let cues =
            [("Bob", span(hour * 100 - 23, hour * 100 + 48_024)), ("Alice", span(0, 71_975)), ("Bob", span(47, 95))];
        assert_eq!(
            write(cues),
            "WEBVTT\n\n\
             00:00:00.000 --> 00:00:01.499\n<v Alice>Alice</v>\n\n\
             00:00:00.001 --> 00:00:00.002\n<v Bob>Bob</v>\n\n\
             100:00:00.000 --> 100:00:01.001\n<v Bob>Bob</v>\n"
        );
        assert_eq!(write([("Bob", span(10, 11))]), "WEBVTT\n", "a cue has a length");
    }

    #[test]
    fn a_name_cannot_break_out_of_its_cue() {
        let text = write([("a --> <b>\r\n\n&c\u{0}", span(0, 48_000)), (" \n", span(0, 48_001 + 48))]);
        assert!(text.contains("<v a --&gt; &lt;b&gt; &amp;c>a --&gt; &lt;b&gt; &amp;c</v>\n"), "{text}");
        assert!(text.contains("<v unknown>unknown</v>\n"), "{text}");
    }
}
