//! Where everything of a waveform's picture is.

use std::ops::Range;

use super::Style;
use super::axis::{self, Tick};
use super::font;
use super::ink::Ink;
use super::plan::Plan;
use super::scene::{Lane, Scene, columns_of};
use super::shape::{Anchor, Class, Drawing, Rect, Shape, Text};
use super::text::{self, LONGEST};
use crate::time::SampleCount;

/// Waves are made higher by no more than this: 24 dB.
const MOST_GAIN: f32 = 16.0;

/// The lanes, with what stands around them.
pub(super) fn waveform(scene: &Scene, style: &Style) -> Drawing {
    let title = scene.title.as_deref().and_then(|title| text::clean(title, LONGEST));
    let plan = Plan::of(scene, style.size, title.is_some());
    let shown = &scene.lanes[..plan.lanes.len()];
    let (length, gain) = (scene.length, gain(shown, style.fill));
    let mut painter = Painter { plan: &plan, length, gain, out: Vec::new(), seen: Seen::default() };
    painter.ground();
    for (n, (lane, rect)) in shown.iter().zip(&plan.lanes).enumerate() {
        painter.lane(lane, n, *rect);
        if let Some(label) = lane.label.as_deref().and_then(|label| text::clean(label, LONGEST)) {
            painter.label(label, *rect);
        }
    }
    painter.pauses(&scene.paused);
    painter.note(scene.lanes.len() - shown.len());
    let key = painter.key();
    painter.title(title.as_deref(), key);
    let shapes = painter.out;
    let about = format!("Waveform, {}, lanes: {}", axis::length(length), scene.lanes.len());
    Drawing { size: style.size, theme: style.theme, title, about, shapes }
}

/// What the key has to explain.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    speech: bool,
    paused: bool,
    lost: bool,
}

struct Painter<'a> {
    plan: &'a Plan,
    length: SampleCount,
    /// The factor for all waves.
    gain: f32,
    out: Vec<Shape>,
    seen: Seen,
}

impl Painter<'_> {
    fn ground(&mut self) {
        let Plan { field, scale, .. } = *self.plan;
        self.out.extend(self.plan.lanes.iter().map(|rect| Shape::Rect(Class::Ground, *rect, Ink::Field)));
        if self.plan.axis == 0 {
            return;
        }
        let ticks = axis::time_ticks(self.length, field.width, font::ADVANCE * scale, 24 * scale);
        for tick in &ticks {
            let rect = Rect { x: field.x + tick.at.min(field.width - 1), width: 1, ..field };
            self.out.push(Shape::Rect(Class::Grid, rect, Ink::Grid));
        }
        time_axis(&ticks, field, scale, &mut self.out);
    }

    fn lane(&mut self, lane: &Lane, hue: usize, rect: Rect) {
        let place = |columns: &Range<i32>, within: Rect| Rect {
            x: rect.x + columns.start,
            width: columns.end - columns.start,
            ..within
        };
        let bar = Rect { y: rect.y + rect.height / 4, height: rect.height - rect.height / 2, ..rect };
        let (speech, ink) = if lane.wave.is_some() { (rect, Ink::LaneTint(hue)) } else { (bar, Ink::Lane(hue)) };
        if lane.wave.is_none() {
            self.out.push(Shape::Rect(Class::Grid, Rect { y: rect.middle(), height: 1, ..rect }, Ink::Grid));
        }
        let spoken = columns_of(&lane.speech, self.length, rect.width, 1);
        let missing = columns_of(&lane.lost, self.length, rect.width, 2);
        self.seen.speech |= !spoken.is_empty();
        self.seen.lost |= !missing.is_empty();
        self.out.extend(spoken.iter().map(|at| Shape::Rect(Class::Speech, place(at, speech), ink)));
        self.out.extend(missing.iter().map(|at| Shape::Rect(Class::Lost, place(at, rect), Ink::LostTint)));
        if let Some(wave) = &lane.wave {
            let louder = |(low, high): (f32, f32)| ((low * self.gain).max(-1.0), (high * self.gain).min(1.0));
            let columns = wave.columns(self.length, rect.width.max(1) as usize).into_iter().map(louder).collect();
            self.out.push(Shape::Wave(rect, columns, Ink::Lane(hue)));
        }
        let foot = |at| Shape::Rect(Class::Lost, foot(place(at, rect), self.plan.scale), Ink::Lost);
        self.out.extend(missing.iter().map(foot));
    }

    fn label(&mut self, label: String, lane: Rect) {
        let Plan { scale, gutter, .. } = *self.plan;
        let (x, y) = (4 * scale, lane.middle() + 3 * scale);
        let words = text::fit(&label, font::letters(gutter, scale));
        if !words.is_empty() {
            let room = Rect::new(x, y - 9 * scale, gutter, 12 * scale);
            let foreign = Some((label, room));
            self.out.push(Shape::Text(Text { x, y, anchor: Anchor::Start, ink: Ink::Text, words, foreign }));
        }
    }

    fn pauses(&mut self, paused: &[Range<SampleCount>]) {
        let field = self.plan.field;
        let bottom = self.plan.lanes.last().map_or(field.bottom(), |last| last.bottom());
        for at in columns_of(paused, self.length, field.width, 3) {
            let rect = Rect::new(field.x + at.start, field.y, at.end - at.start, bottom - field.y);
            self.out.push(Shape::Hatched(Class::Paused, rect));
            self.seen.paused = true;
        }
    }

    /// Says how many lanes are not shown.
    fn note(&mut self, hidden: usize) {
        if hidden > 0 {
            let words = format!("and {hidden} more");
            let (x, y) = (self.plan.field.x, self.plan.note);
            self.out.push(Shape::Text(Text { x, y, anchor: Anchor::Start, ink: Ink::Muted, words, foreign: None }));
        }
    }

    /// Explains the kinds of stretches there are, at the top right; gives where that begins.
    fn key(&mut self) -> i32 {
        let Plan { scale, field, .. } = *self.plan;
        let mut right = field.right();
        if !self.plan.has_head {
            return right;
        }
        let y = 12 * scale;
        let Seen { speech, paused, lost } = self.seen;
        let kinds = [(Class::Lost, lost), (Class::Paused, paused), (Class::Speech, speech)];
        for (kind, _) in kinds.into_iter().filter(|(_, seen)| *seen) {
            let words = kind.as_str().to_owned();
            let x = right - font::width(&words, scale);
            let swatch = Rect::new(x - 16 * scale, y - 8 * scale, 12 * scale, 9 * scale);
            if swatch.x < field.x {
                break;
            }
            let (ground, over) = match kind {
                Class::Lost => (Ink::LostTint, Some(Shape::Rect(Class::Key, foot(swatch, scale), Ink::Lost))),
                Class::Paused => (Ink::Field, Some(Shape::Hatched(Class::Key, swatch))),
                _ if self.plan.has_waves => (Ink::LaneTint(0), None),
                _ => (Ink::Lane(0), None),
            };
            self.out.push(Shape::Rect(Class::Key, swatch, ground));
            self.out.extend(over);
            self.out.push(Shape::Text(Text { x, y, anchor: Anchor::Start, ink: Ink::Muted, words, foreign: None }));
            right = swatch.x - 10 * scale;
        }
        right
    }

    fn title(&mut self, title: Option<&str>, right: i32) {
        let Plan { scale, field, .. } = *self.plan;
        if let Some(title) = title.filter(|_| self.plan.has_head) {
            let room = Rect::new(field.x, 0, right - field.x, field.y);
            self.out.extend(title_in(room, title, scale));
        }
    }
}

/// A title, cut to the room there is; none where that is too little.
pub(super) fn title_in(room: Rect, title: &str, scale: i32) -> Option<Shape> {
    let words = text::fit(title, font::letters(room.width, scale));
    let foreign = Some((title.to_owned(), room));
    let (x, y) = (room.x, 12 * scale);
    (!words.is_empty()).then_some(Shape::Text(Text { x, y, anchor: Anchor::Start, ink: Ink::Text, words, foreign }))
}

/// The factor for all waves.
fn gain(lanes: &[Lane], fill: bool) -> f32 {
    let highest = lanes.iter().filter_map(|lane| lane.wave.as_ref()).map(super::Wave::highest).fold(0.0, f32::max);
    if fill && highest > 0.0 { (1.0 / highest).clamp(1.0, MOST_GAIN) } else { 1.0 }
}

/// The foot of a loss, which no wave hides.
fn foot(rect: Rect, scale: i32) -> Rect {
    let height = 3 * scale;
    Rect { y: rect.bottom() - height, height, ..rect }
}

/// Ticks below `field`, with their times.
pub(super) fn time_axis(ticks: &[Tick], field: Rect, scale: i32, out: &mut Vec<Shape>) {
    for tick in ticks {
        let x = field.x + tick.at.min(field.width - 1);
        out.push(Shape::Rect(Class::Grid, Rect::new(x, field.bottom(), 1, 4 * scale), Ink::Muted));
        let half = font::width(&tick.label, scale) / 2;
        // The outer ones must not leave the picture.
        let x = x.clamp(half + 1, (field.right() + 7 * scale - half).max(half + 1));
        let (y, words) = (field.bottom() + 14 * scale, tick.label.clone());
        out.push(Shape::Text(Text { x, y, anchor: Anchor::Middle, ink: Ink::Muted, words, foreign: None }));
    }
}
