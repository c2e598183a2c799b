//! Drawings as SVG 1.1: rectangles, paths and text, and nothing that runs or is fetched.

use std::fmt::Write;

use super::ink::{Ink, Theme};
use super::shape::{Anchor, Class, Drawing, HATCH, Rect, Shape, Text};
use super::text::escape;

/// The size of letters that are 7 pixels high as capitals.
const LETTERS: i32 = 10;

/// The drawing as a document.
pub(super) fn write(drawing: &Drawing) -> String {
    let mut out = String::new();
    begin(drawing, &mut out);
    for shape in &drawing.shapes {
        match shape {
            Shape::Rect(class, rect, ink) => area(*class, *rect, &fill(*ink, drawing.theme), &mut out),
            Shape::Hatched(class, rect) => area(*class, *rect, "url(#callreel-paused)", &mut out),
            Shape::Wave(rect, columns, ink) => wave(*rect, columns, &fill(*ink, drawing.theme), &mut out),
            Shape::Text(words) => text(words, drawing.theme, &mut out),
        }
    }
    out.push_str("</svg>\n");
    out
}

/// Adds formatted text.
macro_rules! put {
    ($out:expr, $($what:tt)*) => { write!($out, $($what)*).expect("a string takes everything") };
}

fn begin(drawing: &Drawing, out: &mut String) {
    let (width, height) = (drawing.size.width(), drawing.size.height());
    let letters = LETTERS * drawing.size.scale();
    put!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" "#
    );
    put!(out, "role=\"img\" font-family=\"sans-serif\" font-size=\"{letters}\" shape-rendering=\"crispEdges\">\n");
    for (tag, words) in [("title", drawing.title.as_deref()), ("desc", Some(drawing.about.as_str()))] {
        if let Some(words) = words {
            put!(out, "<{tag}>");
            escape(words, out);
            put!(out, "</{tag}>\n");
        }
    }
    if drawing.shapes.iter().any(|shape| matches!(shape, Shape::Hatched(..))) {
        let (period, thick) = HATCH;
        put!(out, "<defs><pattern id=\"callreel-paused\" width=\"{period}\" height=\"{period}\" ");
        put!(out, "patternUnits=\"userSpaceOnUse\"><path stroke=\"{}\" ", fill(Ink::Paused, drawing.theme));
        // The line from corner to corner, and those of the neighbours that reach into its two other corners.
        put!(out, "stroke-width=\"{}.4\" shape-rendering=\"auto\" ", thick - 1);
        put!(out, "d=\"M-1 1L1 -1M0 {period}L{period} 0M{} {}L{} {}\"", period - 1, period + 1, period + 1, period - 1);
        put!(out, "/></pattern></defs>\n");
    }
    area(Class::Ground, Rect::new(0, 0, width as i32, height as i32), &fill(Ink::Paper, drawing.theme), out);
}

fn area(class: Class, rect: Rect, fill: &str, out: &mut String) {
    let Rect { x, y, width, height } = rect;
    put!(out, r#"<rect class="{}" x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>"#, class.as_str());
    out.push('\n');
}

/// A closed outline in tenths of a pixel: along the highest to the right, along the lowest back.
fn wave(rect: Rect, columns: &[(f32, f32)], fill: &str, out: &mut String) {
    let half = rect.height as f32 * 5.0;
    let (top, bottom) = (10 * rect.y, 10 * rect.bottom());
    let row = |value: f32| (top + (half - value * half).round() as i32).clamp(top, bottom);
    let edges = |(low, high): &(f32, f32)| {
        let (high, low) = (row(*high), row(*low));
        // Silence is a line of one pixel.
        if low - high >= 10 { (high, low) } else { ((low + high) / 2 - 5, (low + high) / 2 + 5) }
    };
    let Some(mut at) = columns.first().map(|first| edges(first).0) else { return };
    put!(out, r#"<path class="{}" fill="{fill}" d="M{} {}"#, Class::Wave.as_str(), rect.x, tenths(at));
    let there = columns.iter().map(|column| (edges(column).0, 1));
    let back = columns.iter().rev().map(|column| (edges(column).1, -1));
    let mut run = 0;
    for (y, step) in there.chain(back) {
        if y != at || run * step < 0 {
            stretch(std::mem::take(&mut run), out);
            put!(out, "v{}", tenths(y - at));
            at = y;
        }
        run += step;
    }
    stretch(run, out);
    out.push_str("z\"/>\n");
}

fn stretch(run: i32, out: &mut String) {
    if run != 0 {
        put!(out, "h{run}");
    }
}

fn tenths(value: i32) -> String {
    let sign = if value < 0 { "-" } else { "" };
    match (value.abs() / 10, value.abs() % 10) {
        (whole, 0) => format!("{sign}{whole}"),
        (whole, part) => format!("{sign}{whole}.{part}"),
    }
}

fn text(text: &Text, theme: Theme, out: &mut String) {
    let (mut x, mut y) = (text.x, text.y);
    if let Some((_, room)) = &text.foreign {
        // A viewport of its own cuts what is wider than other letters are.
        let Rect { x: left, y: top, width, height } = *room;
        put!(out, r#"<svg x="{left}" y="{top}" width="{width}" height="{height}" overflow="hidden">"#);
        (x, y) = (x - left, y - top);
    }
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    put!(out, r#"<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{}">"#, fill(text.ink, theme));
    escape(&text.words, out);
    match &text.foreign {
        Some((full, _)) if *full != text.words => {
            put!(out, "<title>");
            escape(full, out);
            put!(out, "</title></text></svg>\n");
        }
        Some(_) => put!(out, "</text></svg>\n"),
        None => put!(out, "</text>\n"),
    }
}

fn fill(ink: Ink, theme: Theme) -> String {
    let [red, green, blue] = ink.rgb(theme);
    format!("#{red:02x}{green:02x}{blue:02x}")
}
