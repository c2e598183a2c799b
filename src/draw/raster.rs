//! Drawings as PNG.

use super::DrawError;
use super::font;
use super::ink::{self, Ink, Theme};
use super::shape::{Anchor, Drawing, HATCH, Rect, Shape, Text};
use super::size::PictureSize;

/// Pixels, each the place of an ink in the palette.
#[derive(Debug)]
pub(super) struct Canvas {
    size: PictureSize,
    width: i32,
    height: i32,
    pixels: Vec<u8>,
}

impl Canvas {
    /// Blank paper.
    pub(super) fn new(size: PictureSize) -> Self {
        let pixels = vec![Ink::Paper.index(); size.width() as usize * size.height() as usize];
        Self { size, width: size.width() as i32, height: size.height() as i32, pixels }
    }

    /// Adds every shape of `drawing`; what lies outside is left out.
    pub(super) fn draw(&mut self, drawing: &Drawing) {
        for shape in &drawing.shapes {
            match shape {
                Shape::Rect(_, rect, ink) => self.fill(*rect, *ink),
                Shape::Hatched(_, rect) => self.hatch(*rect),
                Shape::Wave(rect, columns, ink) => self.wave(*rect, columns, *ink),
                Shape::Text(text) => self.text(text),
            }
        }
    }

    /// Sets one pixel, if it is inside.
    pub(super) fn set(&mut self, x: i32, y: i32, ink: Ink) {
        if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
            self.pixels[(y * self.width + x) as usize] = ink.index();
        }
    }

    /// The picture as a file.
    pub(super) fn png(self, theme: Theme) -> Result<Vec<u8>, DrawError> {
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, self.size.width(), self.size.height());
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(ink::palette(theme));
        // Neighbouring places in the palette are no neighbouring colours, so differences tell nothing.
        encoder.set_filter(png::Filter::NoFilter);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.pixels)?;
        writer.finish()?;
        Ok(out)
    }

    fn fill(&mut self, rect: Rect, ink: Ink) {
        for (x, y) in self.inside(rect) {
            self.set(x, y, ink);
        }
    }

    fn hatch(&mut self, rect: Rect) {
        for (x, y) in self.inside(rect).filter(|(x, y)| (x + y).rem_euclid(HATCH.0) < HATCH.1) {
            self.set(x, y, Ink::Paused);
        }
    }

    fn wave(&mut self, rect: Rect, columns: &[(f32, f32)], ink: Ink) {
        let half = rect.height as f32 / 2.0;
        for (x, (low, high)) in (rect.x..rect.right()).zip(columns) {
            let top = (half - high * half).round() as i32;
            let bottom = (half - low * half).round() as i32;
            // Silence is a line of one pixel.
            let top = top.min(rect.height - 1);
            self.fill(Rect::new(x, rect.y + top, 1, (bottom - top).max(1)), ink);
        }
    }

    fn text(&mut self, text: &Text) {
        let scale = self.size.scale();
        let width = font::width(&text.words, scale);
        let left = match text.anchor {
            Anchor::Start => text.x,
            Anchor::Middle => text.x - width / 2,
            Anchor::End => text.x - width,
        };
        for (n, c) in text.words.chars().enumerate() {
            let (x, y) = (left + n as i32 * font::ADVANCE * scale, text.y - font::CAPITAL * scale);
            for (column, row) in font::dots(c) {
                self.fill(Rect::new(x + column * scale, y + row * scale, scale, scale), text.ink);
            }
        }
    }

    fn inside(&self, rect: Rect) -> impl Iterator<Item = (i32, i32)> + use<> {
        let columns = rect.x.max(0)..rect.right().min(self.width);
        let rows = rect.y.max(0)..rect.bottom().min(self.height);
        rows.flat_map(move |y| columns.clone().map(move |x| (x, y)))
    }
}
