//! How large a picture is.

use super::DrawError;

/// Width and height of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureSize {
    width: u32,
    height: u32,
}

const WIDTHS: std::ops::RangeInclusive<u32> = 64..=4096;
const HEIGHTS: std::ops::RangeInclusive<u32> = 32..=2160;

impl PictureSize {
    /// A waveform's usual size.
    pub const WAVEFORM: Self = Self { width: 1200, height: 240 };
    /// The size of a thumbnail.
    pub const THUMBNAIL: Self = Self { width: 640, height: 160 };
    /// A spectrogram's usual size.
    pub const SPECTROGRAM: Self = Self { width: 1200, height: 320 };

    /// `width` × `height`.
    ///
    /// # Errors
    /// [`DrawError::Config`] unless the width is 64 to 4096 and the height 32 to 2160: a picture is made in memory.
    pub fn new(width: u32, height: u32) -> Result<Self, DrawError> {
        if WIDTHS.contains(&width) && HEIGHTS.contains(&height) {
            return Ok(Self { width, height });
        }
        let allowed = "64 to 4096 wide, 32 to 2160 high";
        Err(DrawError::Config { setting: "size", value: format!("{width}x{height}"), allowed })
    }

    /// The width.
    pub fn width(self) -> u32 {
        self.width
    }

    /// The height.
    pub fn height(self) -> u32 {
        self.height
    }

    /// How many pixels a dot of the letters has: 2 where there is room for large ones.
    pub(super) fn scale(self) -> i32 {
        if self.width >= 960 && self.height >= 480 { 2 } else { 1 }
    }
}

impl std::str::FromStr for PictureSize {
    type Err = DrawError;

    /// From `WIDTHxHEIGHT`.
    fn from_str(word: &str) -> Result<Self, DrawError> {
        let sides = word.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        let (width, height) = sides.ok_or_else(|| DrawError::Config {
            setting: "size",
            value: word.to_owned(),
            allowed: "WIDTHxHEIGHT, such as 1200x240",
        })?;
        Self::new(width, height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_neither_empty_nor_huge() {
        for (width, height, fits) in [
            (1200, 240, true),
            (64, 32, true),
            (4096, 2160, true),
            (63, 240, false),
            (1200, 0, false),
            (4097, 99, false),
        ] {
            assert_eq!(PictureSize::new(width, height).is_ok(), fits, "{width}x{height}");
        }
    }
}
