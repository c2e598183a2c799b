//! Foreign words made fit to be shown.

/// Characters of a foreign text that are kept at all.
pub(super) const LONGEST: usize = 200;

/// At most `most` characters of `words`, on one line: white space and control characters become single spaces; what has no
/// look of its own or turns the direction of its neighbours is left out. None where nothing is left. An ellipsis stands for
/// what was cut.
pub(super) fn clean(words: &str, most: usize) -> Option<String> {
    let mut out = String::new();
    let (mut kept, mut gap) = (0, false);
    for c in words.chars() {
        if c.is_whitespace() || c.is_control() {
            gap = kept > 0;
            continue;
        }
        if is_unseen(c) {
            continue;
        }
        let needed = 1 + usize::from(gap);
        if kept + needed > most {
            return fit(&(out + "……"), most).into();
        }
        if std::mem::take(&mut gap) {
            out.push(' ');
        }
        out.push(c);
        kept += needed;
    }
    (!out.is_empty()).then_some(out)
}

/// At most `most` characters of `words`, the last of them an ellipsis where some were cut.
pub(super) fn fit(words: &str, most: usize) -> String {
    if words.chars().nth(most).is_none() {
        return words.to_owned();
    }
    let Some(kept) = most.checked_sub(1) else { return String::new() };
    let mut out: String = words.chars().take(kept).collect();
    out.truncate(out.trim_end_matches([' ', '…']).len());
    out.push('…');
    out
}

/// Whether `c` is a direction mark, a joiner, a variation selector, a tag, or no character at all. XML has no U+FFFE or U+FFFF.
fn is_unseen(c: char) -> bool {
    let code = u32::from(c);
    let no_character = code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code);
    let unseen = matches!(code,
        0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfe00..=0xfe0f | 0xfeff
        | 0xfff9..=0xfffb | 0xe0000..=0xe0fff);
    no_character || unseen
}

/// Adds `words` as text or attribute of XML.
pub(super) fn escape(words: &str, out: &mut String) {
    for c in words.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_one_line_without_what_is_not_seen() {
        assert_eq!(clean(" a\r\n\t b\0c\u{202e}d\u{feff}\u{ffff} ", 80).unwrap(), "a b cd");
        assert_eq!(clean("\u{200b} \n", 80), None);
        assert_eq!(clean("Zoë 李", 6).unwrap(), "Zoë 李", "six characters and no more");
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(clean("abcdef", 6).unwrap(), "abcdef");
        assert_eq!(clean("abcdefg", 6).unwrap(), "abcde…");
        assert_eq!(clean("abcde fg", 6).unwrap(), "abcde…");
        assert_eq!(clean("ab cd ef", 4).unwrap(), "ab…");
        assert_eq!(clean(&"x".repeat(1 << 20), 200).unwrap().chars().count(), 200);
        assert_eq!((fit("abc", 3), fit("abc", 2), fit("abc", 0)), ("abc".into(), "a…".into(), String::new()));
    }

    #[test]
    fn markup_becomes_text() {
        let mut out = String::new();
        escape("<a href='x'>\"&]]>", &mut out);
        assert_eq!(out, "&lt;a href=&#39;x&#39;&gt;&quot;&amp;]]&gt;");
    }
}
