//! A picture before it is SVG or PNG.

use super::ink::{Ink, Theme};
use super::size::PictureSize;

/// A picture: its shapes, the later ones over the earlier ones.
#[derive(Clone, Debug)]
pub(super) struct Drawing {
    pub size: PictureSize,
    pub theme: Theme,
    /// What it shows, in words.
    pub title: Option<String>,
    pub about: String,
    pub shapes: Vec<Shape>,
}

/// Pixels `[x, x + width)` × `[y, y + height)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rect {
    pub x: i32,
    pub y: i32,
    pub width: i32,
    pub height: i32,
}

/// What a shape tells, for those who read the SVG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Ground,
    Grid,
    Speech,
    Lost,
    Paused,
    Wave,
    Key,
}

impl Class {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Ground => "ground",
            Self::Grid => "grid",
            Self::Speech => "speech",
            Self::Lost => "lost",
            Self::Paused => "paused",
            Self::Wave => "wave",
            Self::Key => "key",
        }
    }
}

/// Which end of a text its place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Words on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub x: i32,
    /// The base line.
    pub y: i32,
    pub anchor: Anchor,
    pub ink: Ink,
    pub words: String,
    /// All of a foreign text that was cut, to be seen by those who ask, and the room that it must not leave.
    pub foreign: Option<(String, Rect)>,
}

/// One part of a picture.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shape {
    /// Filled.
    Rect(Class, Rect, Ink),
    /// With oblique lines over what is there.
    Hatched(Class, Rect),
    /// The lowest and highest of each column, full scale ±1.
    Wave(Rect, Vec<(f32, f32)>, Ink),
    /// Words.
    Text(Text),
}

impl Rect {
    pub(super) const fn new(x: i32, y: i32, width: i32, height: i32) -> Self {
        Self { x, y, width, height }
    }

    /// One past the last column.
    pub(super) fn right(self) -> i32 {
        self.x + self.width
    }

    /// One past the last row.
    pub(super) fn bottom(self) -> i32 {
        self.y + self.height
    }

    /// The row in the middle.
    pub(super) fn middle(self) -> i32 {
        self.y + self.height / 2
    }
}

/// The lines of a pause are so far apart, and so thick.
pub(super) const HATCH: (i32, i32) = (6, 2);
