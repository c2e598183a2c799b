//! Which frequencies are in a recording, as a picture.

use std::fmt;

use super::DrawError;
use super::axis;
use super::font;
use super::ink::{Ink, LEVELS, Theme};
use super::layout::{time_axis, title_in};
use super::raster::Canvas;
use super::shape::{Anchor, Class, Drawing, Rect, Shape, Text};
use super::size::PictureSize;
use super::spectrum::Spectrum;
use super::text::{self, LONGEST};
use crate::time::{SAMPLE_RATE, SampleCount};

/// How a spectrogram is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SpectrogramConfig {
    /// Width and height. Default: 1200 × 320.
    pub size: PictureSize,
    /// Of what stands around it. Default: light.
    pub theme: Theme,
    /// The highest frequency, 1000 to 24 000 Hz. Default: 8000, which is all there is of wideband speech.
    pub top_hz: u32,
    /// What is this quiet is black, in dB below a sine of full scale. Default: −100.
    pub floor_db: f32,
    /// What is this loud is white; at least 10 dB above the floor, and 0 at most. Default: −20.
    pub ceiling_db: f32,
    /// What stands above it, cut to the room there is. Default: nothing.
    pub title: Option<String>,
}

impl Default for SpectrogramConfig {
    fn default() -> Self {
        Self {
            size: PictureSize::SPECTROGRAM,
            theme: Theme::Light,
            top_hz: 8_000,
            floor_db: -100.0,
            ceiling_db: -20.0,
            title: None,
        }
    }
}

impl SpectrogramConfig {
    fn check(&self) -> Result<(), DrawError> {
        let refuse = |setting, value: &dyn fmt::Display, allowed| {
            Err(DrawError::Config { setting, value: value.to_string(), allowed })
        };
        if !(1_000..=SAMPLE_RATE / 2).contains(&self.top_hz) {
            return refuse("top_hz", &self.top_hz, "1000 to 24000");
        }
        if !(-200.0..=-10.0).contains(&self.floor_db) {
            return refuse("floor_db", &self.floor_db, "-200 to -10");
        }
        if !(self.floor_db + 10.0..=0.0).contains(&self.ceiling_db) {
            return refuse("ceiling_db", &self.ceiling_db, "10 above the floor to 0");
        }
        Ok(())
    }
}

/// Draws the spectrogram of a recording while its sound comes by: Hann windows of 43 ms, 10.7 ms apart.
///
/// It needs two values of 4 bytes for each pixel of its picture, however long the recording is. The same sound gives the same
/// bytes on the same kind of processor; on another one the Fourier transform may round otherwise.
pub struct Spectrogram {
    config: SpectrogramConfig,
    channels: usize,
    plan: Plan,
    spectrum: Spectrum,
}

impl Spectrogram {
    /// The spectrogram of the mean of so many channels.
    ///
    /// # Errors
    /// [`DrawError::Config`] for frequencies or levels that cannot be shown, or no channel.
    pub fn new(config: SpectrogramConfig, channels: usize) -> Result<Self, DrawError> {
        config.check()?;
        if channels == 0 {
            return Err(DrawError::Config { setting: "channels", value: "0".into(), allowed: "1 and more" });
        }
        let plan = Plan::of(&config);
        let (rows, columns) = (plan.field.height as usize, plan.field.width as usize);
        let spectrum = Spectrum::new(rows, config.top_hz, columns);
        Ok(Self { config, channels, plan, spectrum })
    }

    /// Takes the next PCM, interleaved, 48 kHz, in whole frames.
    pub fn push(&mut self, pcm: &[f32]) {
        if self.channels == 1 {
            return self.spectrum.push(pcm.iter().copied());
        }
        let part = 1.0 / self.channels as f32;
        self.spectrum.push(pcm.chunks_exact(self.channels).map(|frame| frame.iter().sum::<f32>() * part));
    }

    /// The picture as PNG, with `total` as the recording's length: it is silent where nothing was pushed, and what came later
    /// is not part of it.
    ///
    /// # Errors
    /// [`DrawError::Png`], which a picture of an allowed size does not meet.
    pub fn finish(self, total: SampleCount) -> Result<Vec<u8>, DrawError> {
        let Self { config, plan, spectrum, .. } = self;
        let mut canvas = Canvas::new(config.size);
        let field = plan.field;
        let range = config.ceiling_db - config.floor_db;
        for (x, column) in (field.x..).zip(spectrum.columns(total, field.width as usize)) {
            for (row, power) in (0..).zip(column) {
                // No sound at all has no logarithm.
                let db = 10.0 * power.max(1e-30).log10();
                let level = ((db - config.floor_db) / range).clamp(0.0, 1.0) * (LEVELS - 1) as f32;
                canvas.set(x, field.bottom() - 1 - row, Ink::Level(level.round() as u8));
            }
        }
        canvas.draw(&plan.drawing(&config, total));
        canvas.png(config.theme)
    }
}

impl fmt::Debug for Spectrogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spectrogram")
            .field("config", &self.config)
            .field("channels", &self.channels)
            .finish_non_exhaustive()
    }
}

/// Which part of the picture is whose.
struct Plan {
    scale: i32,
    field: Rect,
    /// What explains the colours.
    scale_bar: Option<Rect>,
    has_title: bool,
    has_axes: bool,
}

impl Plan {
    fn of(config: &SpectrogramConfig) -> Self {
        let (width, height) = (config.size.width() as i32, config.size.height() as i32);
        let scale = config.size.scale();
        let has_axes = width >= 240 * scale && height >= 80 * scale;
        let has_title = has_axes && config.title.is_some();
        let has_bar = has_axes && width >= 480 * scale && height >= 120 * scale;
        let left = if has_axes { 36 * scale } else { 0 };
        let right = match (has_axes, has_bar) {
            (false, _) => 0,
            (true, false) => 8 * scale,
            (true, true) => 64 * scale,
        };
        let (top, bottom) = match (has_axes, has_title) {
            (false, _) => (0, 0),
            (true, false) => (6 * scale, 17 * scale),
            (true, true) => (18 * scale, 17 * scale),
        };
        let field = Rect::new(left, top, width - left - right, height - top - bottom);
        let bar = Rect { x: field.right() + 10 * scale, width: 10 * scale, ..field };
        Self { scale, field, scale_bar: has_bar.then_some(bar), has_title, has_axes }
    }

    /// What stands around the field.
    fn drawing(&self, config: &SpectrogramConfig, total: SampleCount) -> Drawing {
        let title = config.title.as_deref().and_then(|title| text::clean(title, LONGEST));
        let mut shapes = Vec::new();
        let Self { scale, field, .. } = *self;
        if self.has_axes {
            time_axis(
                &axis::time_ticks(total, field.width, font::ADVANCE * scale, 24 * scale),
                field,
                scale,
                &mut shapes,
            );
            for tick in axis::frequency_ticks(config.top_hz, field.height, 18 * scale) {
                label(field.x - 6 * scale, field.bottom() - tick.at, Anchor::End, tick.label, scale, &mut shapes);
                let y = (field.bottom() - tick.at).min(field.bottom() - 1);
                shapes.push(Shape::Rect(Class::Grid, Rect::new(field.x - 4 * scale, y, 4 * scale, 1), Ink::Muted));
            }
        }
        if let Some(title) = title.as_deref().filter(|_| self.has_title) {
            shapes.extend(title_in(Rect::new(field.x, 0, field.width, field.y), title, scale));
        }
        if let Some(bar) = self.scale_bar {
            self.colours(config, bar, &mut shapes);
        }
        Drawing { size: config.size, theme: config.theme, title, about: String::new(), shapes }
    }

    fn colours(&self, config: &SpectrogramConfig, bar: Rect, shapes: &mut Vec<Shape>) {
        let rows = bar.height - 1;
        for row in 0..=rows {
            let level = Ink::Level((row * (LEVELS as i32 - 1) / rows) as u8);
            shapes.push(Shape::Rect(Class::Key, Rect { y: bar.bottom() - 1 - row, height: 1, ..bar }, level));
        }
        let mut db = (config.floor_db / 20.0).ceil() as i32 * 20;
        while db as f32 <= config.ceiling_db {
            let part = (db as f32 - config.floor_db) / (config.ceiling_db - config.floor_db);
            let y = bar.bottom() - (part * rows as f32).round() as i32;
            let words = if db as f32 + 20.0 > config.ceiling_db { format!("{db} dB") } else { db.to_string() };
            label(bar.right() + 3 * self.scale, y, Anchor::Start, words, self.scale, shapes);
            db += 20;
        }
    }
}

/// Words whose middle is at `y`.
fn label(x: i32, y: i32, anchor: Anchor, words: String, scale: i32, shapes: &mut Vec<Shape>) {
    shapes.push(Shape::Text(Text { x, y: y + 3 * scale, anchor, ink: Ink::Muted, words, foreign: None }));
}
