//! Colours: a palette of 256 that both kinds of picture share.

/// The ground and what stands on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Theme {
    /// Dark on white.
    #[default]
    Light,
    /// Light on a dark grey.
    Dark,
}

/// Lanes have so many colours before they begin again.
const HUES: usize = 8;

/// Levels of a spectrogram, from its floor to its ceiling.
pub(super) const LEVELS: usize = 256 - FIRST_LEVEL as usize;
const FIRST_LEVEL: u8 = 8 + 2 * HUES as u8;

/// What something is drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ink {
    /// The ground.
    Paper,
    /// The ground of a lane.
    Field,
    /// Lines at ticks, and where silence is.
    Grid,
    /// Words.
    Text,
    /// Words of less weight.
    Muted,
    /// The hatching of a pause.
    Paused,
    /// What is missing.
    Lost,
    /// The ground of what is missing.
    LostTint,
    /// The sound of this lane.
    Lane(usize),
    /// The ground of this lane's speech.
    LaneTint(usize),
    /// A level of a spectrogram, below [`LEVELS`].
    Level(u8),
}

type Rgb = [u8; 3];

/// Dark enough to be told from white, and from each other by those who do not see red or green.
const ON_LIGHT: [Rgb; HUES] = [
    [0x1d, 0x6a, 0xb0],
    [0xb8, 0x5c, 0x0e],
    [0x2b, 0x85, 0x62],
    [0x7d, 0x4c, 0xb4],
    [0x0d, 0x84, 0x96],
    [0x8f, 0x6f, 0x12],
    [0xa8, 0x4a, 0x86],
    [0x56, 0x62, 0x72],
];
const ON_DARK: [Rgb; HUES] = [
    [0x6c, 0xb2, 0xf0],
    [0xf0, 0xa2, 0x5a],
    [0x6c, 0xcc, 0xa2],
    [0xbc, 0x98, 0xee],
    [0x5c, 0xc8, 0xd8],
    [0xd8, 0xbc, 0x5c],
    [0xe4, 0x94, 0xc4],
    [0xa8, 0xb4, 0xc4],
];

/// From the floor to the ceiling of a spectrogram: its lightness in OKLCH rises evenly from 0.13 to 0.97, its hue turns from
/// blue over red to yellow.
const HEAT: [Rgb; 17] = [
    [2, 5, 29],
    [14, 8, 54],
    [34, 9, 77],
    [58, 10, 96],
    [85, 10, 109],
    [113, 12, 115],
    [142, 17, 116],
    [170, 28, 111],
    [195, 45, 103],
    [217, 66, 92],
    [233, 92, 82],
    [244, 119, 78],
    [249, 147, 85],
    [251, 175, 105],
    [249, 201, 137],
    [248, 225, 176],
    [251, 246, 219],
];

impl Ink {
    /// Its place in the palette.
    pub(super) fn index(self) -> u8 {
        match self {
            Self::Paper => 0,
            Self::Field => 1,
            Self::Grid => 2,
            Self::Text => 3,
            Self::Muted => 4,
            Self::Paused => 5,
            Self::Lost => 6,
            Self::LostTint => 7,
            Self::Lane(lane) => 8 + (lane % HUES) as u8,
            Self::LaneTint(lane) => 8 + (HUES + lane % HUES) as u8,
            Self::Level(level) => level.saturating_add(FIRST_LEVEL),
        }
    }

    /// Red, green and blue.
    pub(super) fn rgb(self, theme: Theme) -> Rgb {
        let light = theme == Theme::Light;
        let either = |on_light: Rgb, on_dark: Rgb| if light { on_light } else { on_dark };
        let field = || Self::Field.rgb(theme);
        match self {
            Self::Paper => either([0xff; 3], [0x16, 0x18, 0x1d]),
            Self::Field => either([0xf4, 0xf5, 0xf7], [0x1f, 0x22, 0x29]),
            Self::Grid => either([0xdc, 0xdf, 0xe4], [0x38, 0x3d, 0x47]),
            Self::Text => either([0x1e, 0x22, 0x2a], [0xe6, 0xe9, 0xee]),
            Self::Muted => either([0x5a, 0x62, 0x70], [0xa0, 0xa8, 0xb4]),
            Self::Paused => either([0x9a, 0xa1, 0xac], [0x6c, 0x74, 0x82]),
            Self::Lost => either([0xd3, 0x1a, 0x38], [0xff, 0x5c, 0x6e]),
            Self::LostTint => between(field(), Self::Lost.rgb(theme), 22, 100),
            Self::Lane(lane) => either(ON_LIGHT[lane % HUES], ON_DARK[lane % HUES]),
            Self::LaneTint(lane) => between(field(), Self::Lane(lane).rgb(theme), 18, 100),
            Self::Level(level) => {
                let (steps, last) = ((HEAT.len() - 1) as i32, LEVELS as i32 - 1);
                let at = i32::from(level).min(last) * steps;
                let anchor = (at / last).min(steps - 1);
                between(HEAT[anchor as usize], HEAT[anchor as usize + 1], at - anchor * last, last)
            }
        }
    }
}

/// Every ink's colour, in the order of their places.
pub(super) fn palette(theme: Theme) -> Vec<u8> {
    let fixed =
        [Ink::Paper, Ink::Field, Ink::Grid, Ink::Text, Ink::Muted, Ink::Paused, Ink::Lost, Ink::LostTint].into_iter();
    let lanes = (0..HUES).map(Ink::Lane).chain((0..HUES).map(Ink::LaneTint));
    let levels = (0..LEVELS).map(|level| Ink::Level(level as u8));
    fixed.chain(lanes).chain(levels).flat_map(|ink| ink.rgb(theme)).collect()
}

/// `part` of `whole` of the way from `from` to `to`.
fn between(from: Rgb, to: Rgb, part: i32, whole: i32) -> Rgb {
    std::array::from_fn(|n| {
        let (from, to) = (i32::from(from[n]), i32::from(to[n]));
        (from + (to - from) * part / whole) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ink_is_where_the_palette_has_it() {
        for theme in [Theme::Light, Theme::Dark] {
            let palette = palette(theme);
            assert_eq!(palette.len(), 3 * 256);
            for ink in
                [Ink::Field, Ink::Lost, Ink::Lane(0), Ink::Lane(9), Ink::LaneTint(7), Ink::Level(0), Ink::Level(231)]
            {
                let at = 3 * usize::from(ink.index());
                assert_eq!(palette[at..at + 3], ink.rgb(theme), "{ink:?}");
            }
        }
    }

    #[test]
    fn louder_is_lighter() {
        let luma = |level| {
            let [r, g, b] = Ink::Level(level).rgb(Theme::Light).map(u32::from);
            2126 * r + 7152 * g + 722 * b
        };
        assert!((1..LEVELS as u8).all(|level| luma(level) > luma(level - 1)));
        assert!(luma(LEVELS as u8 - 1) > 20 * luma(0));
    }
}
