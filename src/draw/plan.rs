//! Which part of a waveform's picture belongs to what.

use super::font;
use super::scene::{Lane, Scene};
use super::shape::Rect;
use super::size::PictureSize;
use super::text::LONGEST;

/// Lanes of a picture, however high it is.
const MOST_LANES: usize = 64;

/// Which part of the picture is whose.
pub(super) struct Plan {
    /// Pixels of a dot of the letters.
    pub scale: i32,
    /// Whether there are rows for the title and the key.
    pub has_head: bool,
    /// Columns of the labels.
    pub gutter: i32,
    /// Rows of the time axis.
    pub axis: i32,
    /// What time runs over: all lanes.
    pub field: Rect,
    /// Those that have room.
    pub lanes: Vec<Rect>,
    /// Whether any of them has a wave, and speech is its ground.
    pub has_waves: bool,
    /// The base line of the note about all others.
    pub note: i32,
}

impl Plan {
    /// The plan of a picture of this size.
    pub(super) fn of(scene: &Scene, size: PictureSize, has_title: bool) -> Self {
        let (width, height, scale) = (size.width() as i32, size.height() as i32, size.scale());
        let spans = |lane: &Lane| !lane.speech.is_empty() || !lane.lost.is_empty();
        let has_key = !scene.paused.is_empty() || scene.lanes.iter().take(MOST_LANES).any(spans);
        let has_head = height >= 100 * scale && (has_title || has_key);
        let head = if has_head { 18 * scale } else { 3 * scale };
        let axis = if height >= 60 * scale { 16 * scale } else { 0 };
        let longest = |lane: &Lane| lane.label.as_ref().map_or(0, |label| label.chars().take(LONGEST).count());
        let letters = scene.lanes.iter().take(MOST_LANES).map(longest).max().unwrap_or(0) as i32;
        let gutter = if width >= 240 * scale { (letters * font::ADVANCE * scale).min(width / 6) } else { 0 };
        let left = 4 * scale + if gutter > 0 { gutter + 6 * scale } else { 0 };
        let field = Rect::new(left, head, width - left - 8 * scale, height - head - axis - 3 * scale);

        let least = 12 * scale;
        let room = |rows: i32| ((rows / least).max(1) as usize).min(MOST_LANES);
        let mut rows = field.height;
        if scene.lanes.len() > room(rows) {
            rows -= 12 * scale;
        }
        let shown = &scene.lanes[..scene.lanes.len().min(room(rows))];
        let has_waves = shown.iter().any(|lane| lane.wave.is_some());
        let lanes = heights(shown, rows, least, scale).into_iter().scan(field.y, |y, height| {
            let rect = Rect { y: *y, height: height - scale, ..field };
            *y += height;
            Some(rect)
        });
        Self {
            scale,
            has_head,
            gutter,
            axis,
            field,
            lanes: lanes.collect(),
            has_waves,
            note: field.bottom() - 2 * scale,
        }
    }
}

/// How many of `rows` each lane gets: what they need at least, and the rest those with waves.
fn heights(lanes: &[Lane], rows: i32, least: i32, scale: i32) -> Vec<i32> {
    let count = lanes.len() as i32;
    let spare = (rows - count * least).max(0);
    let waves = lanes.iter().filter(|lane| lane.wave.is_some()).count() as i32;
    let mut before = 0;
    let more = lanes.iter().map(|lane| match (waves, &lane.wave) {
        // Bars gain nothing from being higher than this.
        (0, _) => (spare / count).min(20 * scale),
        (_, None) => 0,
        (_, Some(_)) => {
            before += 1;
            spare * before / waves - spare * (before - 1) / waves
        }
    });
    more.map(|more| least.min(rows) + more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::Wave;

    fn plan(lanes: &[bool], width: u32, height: u32) -> Plan {
        let lane = |has_wave: &bool| Lane { wave: has_wave.then(Wave::default), ..Lane::default() };
        let scene = Scene { lanes: lanes.iter().map(lane).collect(), ..Scene::default() };
        Plan::of(&scene, PictureSize::new(width, height).unwrap(), false)
    }

    #[test]
    fn lanes_share_the_field_and_waves_get_the_most_of_it() {
        let plan = plan(&[true, false, true], 1200, 240);
        let heights: Vec<_> = plan.lanes.iter().map(|lane| lane.height).collect();
        assert_eq!(heights[1], 11);
        assert!(heights[0].abs_diff(heights[2]) <= 1 && heights[0] > 90, "{heights:?}");
        assert!(plan.lanes.windows(2).all(|pair| pair[0].bottom() < pair[1].y));
        assert!(plan.lanes[2].bottom() <= plan.field.bottom());
    }

    #[test]
    fn every_size_has_room_for_a_lane() {
        for (width, height) in [(64, 32), (64, 2160), (4096, 32), (959, 60), (960, 480), (4096, 2160)] {
            for count in [0, 1, 2, 10_000] {
                let plan = plan(&vec![true; count], width, height);
                assert!(plan.lanes.len() >= count.min(1) && plan.lanes.len() <= count.min(MOST_LANES));
                for lane in &plan.lanes {
                    assert!(lane.height > 8 && lane.width > 40, "{lane:?} of {count} in {width}x{height}");
                    assert!(lane.bottom() <= height as i32 && lane.right() <= width as i32);
                }
            }
        }
    }
}
