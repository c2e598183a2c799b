//! Letters for pictures of dots: ASCII in cells of 6 × 9, with the base line below the seventh row.

/// The glyphs of U+0020 to U+007F, 16 in a row of 9 lines. The last one is the box that stands for all others.
static ART: &[u8] = include_bytes!("font.txt");

const PER_ROW: usize = 16;
const ROWS: usize = 9;
/// A line of `ART` with its end.
const LINE: usize = PER_ROW * 6;
const BOX: u8 = 0x7f;

/// From one letter to the next.
pub(super) const ADVANCE: i32 = 6;
/// From the base line to the top of a capital.
pub(super) const CAPITAL: i32 = 7;

/// U+00C0 to U+00FF without what is above and below them.
const LATIN_1: &[u8; 64] = b"AAAAAAACEEEEIIIIDNOOOOOxOUUUUYPsaaaaaaaceeeeiiiidnooooo/ouuuuypy";

/// The dots of `c`: column and row from the top left of its cell; the seventh row stands on the base line.
pub(super) fn dots(c: char) -> impl Iterator<Item = (i32, i32)> {
    let index = usize::from(code(c) - b' ');
    let corner = index / PER_ROW * ROWS * LINE + index % PER_ROW * 6;
    let cells = (0..ROWS).flat_map(|row| (0..5).map(move |column| (column, row)));
    let ellipsis = [(0, 6), (2, 6), (4, 6)];
    let lit = move |(column, row): &(usize, usize)| match c {
        '…' => ellipsis.contains(&(*column, *row)),
        _ => ART[corner + row * LINE + column] == b'#',
    };
    cells.filter(lit).map(|(column, row)| (column as i32, row as i32))
}

/// How wide `words` are.
pub(super) fn width(words: &str, scale: i32) -> i32 {
    i32::try_from(words.chars().count()).unwrap_or(i32::MAX).saturating_mul(ADVANCE * scale)
}

/// How many letters have room in `width` pixels.
pub(super) fn letters(width: i32, scale: i32) -> usize {
    (width / (ADVANCE * scale)).max(0) as usize
}

fn code(c: char) -> u8 {
    match c {
        ' '..='~' => c as u8,
        '\u{c0}'..='\u{ff}' => LATIN_1[c as usize - 0xc0],
        '‘' | '’' => b'\'',
        '“' | '”' => b'"',
        '‐'..='―' | '−' => b'-',
        _ => BOX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(c: char) -> Vec<(i32, i32)> {
        dots(c).collect()
    }

    #[test]
    fn the_art_has_a_glyph_for_every_letter() {
        assert_eq!(ART.len(), 6 * ROWS * LINE);
        assert!(
            ART.chunks(LINE).all(|line| line[LINE - 1] == b'\n' && line[..LINE - 1].iter().all(|b| b"#.".contains(b)))
        );
        let glyphs: std::collections::BTreeSet<_> = (' '..='~').map(drawn).collect();
        assert_eq!(glyphs.len(), 95, "no two look the same");
    }

    #[test]
    fn letters_stand_on_their_base_line() {
        assert!(drawn('L').contains(&(4, 6)) && !drawn('L').iter().any(|(_, row)| *row > 6));
        assert!(drawn('g').iter().any(|(_, row)| *row == 8));
        assert_eq!(drawn('T').iter().filter(|(_, row)| *row == 0).count(), 5);
    }

    #[test]
    fn what_has_no_glyph_is_a_box_or_its_nearest() {
        assert_eq!(drawn('é'), drawn('e'));
        assert_eq!(drawn('ß'), drawn('s'));
        assert_eq!(drawn('李'), drawn('\u{7f}'));
        assert_eq!(drawn('\u{0}'), drawn('\u{7f}'));
        assert_eq!(drawn('…').len(), 3);
    }
}
