//! Pictures of a recording's sound. Pure: data in, bytes out; the same data give the same bytes.
//!
//! | item | what it draws |
//! |---|---|
//! | [`waveform_svg`], [`waveform_png`] | a [`Scene`]: who spoke when and how loud, where it was paused, what is lost |
//! | [`Spectrogram`] | which frequencies are in it, from PCM in pieces |
//!
//! Names and titles come from strangers: they are cleaned, cut and escaped, and however many lanes and spans a scene has,
//! a picture has no more of them than it has room for.

mod axis;
mod font;
mod ink;
mod layout;
mod plan;
mod raster;
mod scene;
mod shape;
mod size;
mod spectrogram;
mod spectrum;
mod svg;
mod text;

use thiserror::Error;

pub use ink::Theme;
pub use scene::{Lane, Scene, Wave};
pub use size::PictureSize;
pub use spectrogram::{Spectrogram, SpectrogramConfig};

/// What can go wrong while drawing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DrawError {
    /// A setting that no picture can have.
    #[error("{setting} {value} is not possible: {allowed}")]
    Config {
        /// Which setting.
        setting: &'static str,
        /// The value that was asked for.
        value: String,
        /// What would be possible.
        allowed: &'static str,
    },
    /// A waveform that is not in the form callreel writes.
    #[error("not a usable waveform: {0}")]
    Waveform(&'static str),
    /// The PNG encoder refused.
    #[error("PNG: {0}")]
    Png(#[from] png::EncodingError),
}

/// How a waveform is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Width and height. Default: 1200 × 240.
    pub size: PictureSize,
    /// Dark on light or light on dark. Default: light.
    pub theme: Theme,
    /// Whether all waves are made higher alike, so that the highest fills its lane; by 24 dB at most, so that a silent
    /// room stays silent. Default: yes, as speech leaves most of full scale empty.
    pub fill: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self { size: PictureSize::WAVEFORM, theme: Theme::Light, fill: true }
    }
}

/// Draws `scene` as SVG 1.1: without scripts, styles, foreign fonts or anything from elsewhere.
///
/// Stretches are `rect`s of the classes `speech`, `lost` and `paused`, waves are `path`s of the class `wave`.
pub fn waveform_svg(scene: &Scene, style: &Style) -> String {
    svg::write(&layout::waveform(scene, style))
}

/// Draws `scene` as PNG, 8 bits a pixel with a palette.
///
/// # Errors
/// [`DrawError::Png`], which a picture of an allowed size does not meet.
pub fn waveform_png(scene: &Scene, style: &Style) -> Result<Vec<u8>, DrawError> {
    let drawing = layout::waveform(scene, style);
    let mut canvas = raster::Canvas::new(drawing.size);
    canvas.draw(&drawing);
    canvas.png(drawing.theme)
}
