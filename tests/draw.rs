//! Pictures, read back by others: PNG by its decoder, SVG by an XML parser.

use std::collections::BTreeMap;
use std::ops::Range;

use callreel::draw::{
    DrawError, Lane, PictureSize, Scene, Spectrogram, SpectrogramConfig, Style, Theme, Wave, waveform_png, waveform_svg,
};
use callreel::time::SampleCount;
use quick_xml::events::Event;

const SECOND: u64 = 48_000;

fn span(from: f64, to: f64) -> Range<SampleCount> {
    let at = |seconds: f64| SampleCount((seconds * SECOND as f64) as u64);
    at(from)..at(to)
}

/// 100 s: loud from 20 to 40 s, quiet else; paused from 60 to 70 s, and from 80 to 81 s something is missing.
fn scene() -> Scene {
    let range = |n| if (2000..4000).contains(&n) { (-0.5, 0.5) } else { (-0.01, 0.01) };
    let wave = Wave { step: SampleCount(480), ranges: (0..10_000).map(range).collect() };
    let lane =
        Lane { wave: Some(wave), speech: vec![span(20.0, 40.0)], lost: vec![span(80.0, 81.0)], ..Lane::default() };
    Scene { length: SampleCount(100 * SECOND), lanes: vec![lane], paused: vec![span(60.0, 70.0)], title: None }
}

struct Picture {
    width: usize,
    height: usize,
    rgb: Vec<[u8; 3]>,
}

impl Picture {
    fn of(png: &[u8]) -> Self {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut bytes).unwrap();
        assert_eq!(info.color_type, png::ColorType::Rgb);
        let rgb = bytes[..info.buffer_size()].chunks_exact(3).map(|rgb| [rgb[0], rgb[1], rgb[2]]).collect();
        Self { width: info.width as usize, height: info.height as usize, rgb }
    }

    fn column(&self, x: usize) -> impl Iterator<Item = [u8; 3]> + '_ {
        (0..self.height).map(move |y| self.rgb[y * self.width + x])
    }

    fn count(&self, x: usize, colour: [u8; 3]) -> usize {
        self.column(x).filter(|found| *found == colour).count()
    }

    /// The lightest row of a column, counted from the bottom of `rows`.
    fn lightest(&self, x: usize, rows: &Range<usize>) -> usize {
        let light = |y: usize| self.rgb[y * self.width + x].iter().map(|part| u32::from(*part)).sum::<u32>();
        let best = rows.clone().rev().max_by_key(|y| (light(*y), *y)).unwrap();
        rows.end - 1 - best
    }
}

const BLUE: [u8; 3] = [0x1d, 0x6a, 0xb0];
const RED: [u8; 3] = [0xd3, 0x1a, 0x38];
const HATCH: [u8; 3] = [0x9a, 0xa1, 0xac];

/// Where a second of `scene` is: the field of a lane without a label goes from 4 to 1192.
fn x_of(second: f64) -> usize {
    4 + (second / 100.0 * 1188.0) as usize
}

#[test]
fn loud_paused_and_lost_are_where_they_belong() {
    let png = waveform_png(&scene(), &Style::default()).unwrap();
    let picture = Picture::of(&png);
    assert_eq!((picture.width, picture.height), (1200, 240));
    let loud = picture.count(x_of(30.0), BLUE);
    let quiet = picture.count(x_of(10.0), BLUE);
    assert!(loud > 150, "filled up to its lane: {loud}");
    assert!((1..10).contains(&quiet), "{quiet}");
    assert!(picture.count(x_of(20.5), BLUE) > 150 && picture.count(x_of(19.5), BLUE) < 10);
    assert!(picture.count(x_of(65.0), HATCH) > 40);
    assert_eq!(picture.count(x_of(59.0), HATCH) + picture.count(x_of(71.0), HATCH), 0);
    assert!(picture.count(x_of(80.5), RED) >= 3);
    assert_eq!(picture.count(x_of(79.0), RED) + picture.count(x_of(82.0), RED), 0);
}

#[test]
fn waves_are_as_high_as_they_are_where_they_are_not_to_be_filled() {
    let png = waveform_png(&scene(), &Style { fill: false, ..Style::default() }).unwrap();
    let height = Picture::of(&png).count(x_of(30.0), BLUE);
    assert!((90..110).contains(&height), "half of about 200: {height}");
}

#[test]
fn dark_pictures_are_dark() {
    let png = waveform_png(&scene(), &Style { theme: Theme::Dark, ..Style::default() }).unwrap();
    assert!(Picture::of(&png).rgb[0].iter().all(|part| *part < 0x30));
}

/// The elements of a document in order: name, attributes, and the text directly inside.
fn elements(svg: &str) -> Vec<(String, BTreeMap<String, String>, String)> {
    let mut reader = quick_xml::Reader::from_str(svg);
    let (mut found, mut open) = (Vec::new(), Vec::new());
    loop {
        match reader.read_event().unwrap_or_else(|error| panic!("{error} in {svg}")) {
            event @ (Event::Start(_) | Event::Empty(_)) => {
                let closes = matches!(event, Event::Empty(_));
                let (Event::Start(start) | Event::Empty(start)) = event else { unreachable!() };
                let attributes = start.attributes().map(|attribute| {
                    let attribute = attribute.unwrap();
                    let key = attribute.key.as_ref().to_owned();
                    (key, attribute.value.to_string())
                });
                let name = start.name().as_ref().to_owned();
                found.push((name, attributes.collect(), String::new()));
                if !closes {
                    open.push(found.len() - 1);
                }
            }
            Event::End(_) => drop(open.pop().expect("something is open")),
            Event::Text(text) => {
                if let Some(at) = open.last() {
                    found[*at].2.push_str(&text);
                }
            }
            Event::GeneralRef(entity) => {
                let entity = entity.to_string();
                let text = match entity.as_str() {
                    "amp" => "&",
                    "lt" => "<",
                    "gt" => ">",
                    "quot" => "\"",
                    "#39" => "'",
                    other => panic!("no entity of XML: {other}"),
                };
                found[*open.last().expect("inside of something")].2.push_str(text);
            }
            Event::Eof => break,
            other => panic!("no part of such a picture: {other:?}"),
        }
    }
    assert!(open.is_empty(), "everything is closed");
    found
}

fn rects(svg: &str, class: &str) -> Vec<(i32, i32)> {
    let of_class = |attributes: &BTreeMap<String, String>| attributes.get("class").is_some_and(|found| found == class);
    let number = |attributes: &BTreeMap<String, String>, key: &str| attributes[key].parse::<i32>().unwrap();
    let rects = elements(svg).into_iter().filter(|(name, attributes, _)| name == "rect" && of_class(attributes));
    rects.map(|(_, attributes, _)| (number(&attributes, "x"), number(&attributes, "width"))).collect()
}

#[test]
fn shapes_of_an_svg_are_where_they_belong() {
    let svg = waveform_svg(&scene(), &Style::default());
    assert_eq!(rects(&svg, "speech"), [(4 + 237, 239)]);
    assert_eq!(rects(&svg, "paused"), [(4 + 712, 120)]);
    assert_eq!(rects(&svg, "lost"), [(4 + 950, 13), (4 + 950, 13)]);
    let all = elements(&svg);
    let wave = all.iter().find(|(name, attributes, _)| name == "path" && attributes.contains_key("class")).unwrap();
    let path = &wave.1["d"];
    assert!(path.starts_with("M4 ") && path.ends_with('z') && path.len() < 200, "four steps each way: {path}");
    let words: Vec<_> = all.iter().filter(|(name, ..)| name == "text").map(|(.., text)| text.as_str()).collect();
    for expected in ["0:00", "0:10", "1:40", "speech", "paused", "lost"] {
        assert!(words.contains(&expected), "{expected} in {words:?}");
    }
}

#[test]
fn svg_and_png_agree_on_the_wave() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut scene = scene();
    scene.lanes[0].wave.as_mut().unwrap().ranges = (0..10_000).map(|_| (-random.f32(), random.f32())).collect();
    let svg = waveform_svg(&scene, &Style::default());
    let d = elements(&svg)
        .into_iter()
        .find_map(|(name, attributes, _)| {
            attributes.get("d").filter(|_| name == "path" && attributes.contains_key("class")).cloned()
        })
        .unwrap();
    let (columns, end) = outline(&d);
    assert_eq!(end.0, 4.0, "it comes back to where it began");
    let picture = Picture::of(&waveform_png(&scene, &Style::default()).unwrap());
    for x in (4..700).chain(850..900) {
        let high = columns[&x].0.round() as usize;
        let drawn = picture.column(x).position(|rgb| rgb == BLUE).unwrap();
        assert!(drawn.abs_diff(high) <= 1, "column {x}: {drawn} and {high}");
    }
}

/// The highest and lowest edge of each column of a path of `h` and `v`, and where it ends.
fn outline(d: &str) -> (BTreeMap<usize, (f64, f64)>, (f64, f64)) {
    let mut columns = BTreeMap::new();
    let mut at = (0.0, 0.0);
    let commands = d.trim_end_matches('z').split_inclusive(|c: char| c.is_ascii_digit()).collect::<String>();
    let mut tokens: Vec<(char, String)> = Vec::new();
    for c in commands.chars() {
        if c.is_ascii_alphabetic() { tokens.push((c, String::new())) } else { tokens.last_mut().unwrap().1.push(c) }
    }
    for (command, value) in tokens {
        match command {
            'M' => {
                let (x, y) = value.split_once(' ').unwrap();
                at = (x.parse().unwrap(), y.parse().unwrap());
            }
            'v' => at.1 += value.parse::<f64>().unwrap(),
            'h' => {
                let to = at.0 + value.parse::<f64>().unwrap();
                let forward = to > at.0;
                for x in (at.0.min(to) as usize)..(at.0.max(to) as usize) {
                    let column: &mut (f64, f64) = columns.entry(x).or_default();
                    if forward { column.0 = at.1 } else { column.1 = at.1 }
                }
                at.0 = to;
            }
            other => panic!("{other} in a wave"),
        }
    }
    (columns, at)
}

#[test]
fn names_are_words_whatever_is_in_them() {
    let evil = [
        "<script>alert(1)</script>",
        "]]>",
        "<![CDATA[",
        "\" onload=\"alert(1)",
        "&lt;&#0;&bogus;",
        "a\u{0}\u{1}\u{8}\u{b}\u{1b}\u{7f}\u{85}\u{ffff}\u{fffe}b",
        "\u{202e}abc",
        "--><!--",
        "</svg>",
        "李\u{1f600}e\u{301}",
    ];
    for name in evil {
        let mut scene = scene();
        scene.title = Some(name.into());
        scene.lanes[0].label = Some(name.into());
        let svg = waveform_svg(&scene, &Style::default());
        let legal = |c: char| matches!(c, '\n' | ' '..='\u{7e}' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
        assert!(svg.chars().all(legal), "{name:?}");
        let known = ["svg", "title", "desc", "defs", "pattern", "path", "rect", "text"];
        for (element, attributes, _) in elements(&svg) {
            assert!(known.contains(&element.as_str()), "{element} of {name:?}");
            assert!(attributes.keys().all(|key| !key.starts_with("on") && !key.contains("href")), "{attributes:?}");
        }
        waveform_png(&scene, &Style::default()).unwrap();
    }
    let mut scene = scene();
    scene.lanes[0].label = Some(evil[0].into());
    let texts: Vec<_> = elements(&waveform_svg(&scene, &Style::default())).into_iter().map(|(.., text)| text).collect();
    assert!(texts.iter().any(|text| text == evil[0]), "{texts:?}");
}

#[test]
fn what_is_too_much_is_counted() {
    let mut scene = scene();
    let lane = Lane { label: Some("someone".into()), ..scene.lanes[0].clone() };
    scene.title = Some("very long ".repeat(100_000));
    scene.lanes = vec![Lane { wave: None, ..lane }; 10_000];
    for lane in &mut scene.lanes[..3] {
        lane.label = Some("x".repeat(1 << 20));
        lane.lost = (0..100_000).map(|n| SampleCount(48 * n)..SampleCount(48 * n + 24)).collect();
    }
    for size in [PictureSize::WAVEFORM, PictureSize::THUMBNAIL, PictureSize::new(4096, 2160).unwrap()] {
        let svg = waveform_svg(&scene, &Style { size, ..Style::default() });
        assert!(svg.len() < 200_000, "{}", svg.len());
        let texts: Vec<_> = elements(&svg).into_iter().map(|(.., text)| text).collect();
        let more = texts.iter().find_map(|text| text.strip_prefix("and ")?.strip_suffix(" more")).unwrap();
        let shown = 10_000 - more.parse::<usize>().unwrap();
        assert!((5..=64).contains(&shown), "{shown}");
        assert!(waveform_png(&scene, &Style { size, ..Style::default() }).unwrap().len() < 200_000);
    }
}

#[test]
fn every_length_and_size_can_be_drawn() {
    for length in [0, 1, 479, 48_000, 5 * 3600 * SECOND, u64::MAX] {
        for (width, height) in [(64, 32), (240, 60), (640, 160), (1200, 240), (1920, 1080)] {
            let size = PictureSize::new(width, height).unwrap();
            for lanes in [0, 1, 7] {
                let scene =
                    Scene { length: SampleCount(length), lanes: vec![scene().lanes[0].clone(); lanes], ..scene() };
                let style = Style { size, ..Style::default() };
                let picture = Picture::of(&waveform_png(&scene, &style).unwrap());
                assert_eq!((picture.width as u32, picture.height as u32), (width, height));
                elements(&waveform_svg(&scene, &style));
            }
        }
    }
}

#[test]
fn silence_is_a_flat_line() {
    let wave = Wave { step: SampleCount(480), ranges: vec![(0.0, 0.0); 100] };
    let scene = Scene {
        length: SampleCount(48_000),
        lanes: vec![Lane { wave: Some(wave), ..Lane::default() }],
        ..Scene::default()
    };
    let picture = Picture::of(&waveform_png(&scene, &Style::default()).unwrap());
    assert!((4..1192).all(|x| picture.count(x, BLUE) == 1));
}

#[test]
fn the_same_scene_gives_the_same_bytes() {
    let draw = || (waveform_svg(&scene(), &Style::default()), waveform_png(&scene(), &Style::default()).unwrap());
    assert!(draw() == draw());
    let sound: Vec<f32> = sweep(3, 100.0, 7_000.0).collect();
    let spectrogram = |piece: usize| {
        let mut spectrogram = Spectrogram::new(SpectrogramConfig::default(), 1).unwrap();
        sound.chunks(piece).for_each(|pcm| spectrogram.push(pcm));
        spectrogram.finish(SampleCount(sound.len() as u64)).unwrap()
    };
    assert!(spectrogram(960) == spectrogram(7) && spectrogram(960) == spectrogram(sound.len()));
}

/// A sine whose frequency goes evenly from one to the other.
fn sweep(seconds: u64, from: f64, to: f64) -> impl Iterator<Item = f32> {
    let total = seconds * SECOND;
    let mut phase = 0.0f64;
    (0..total).map(move |n| {
        phase = (phase + (from + (to - from) * n as f64 / total as f64) / 48_000.0).fract();
        (0.5 * (std::f64::consts::TAU * phase).sin()) as f32
    })
}

/// Rows and columns of the field in a picture of 1200 × 320 without a title.
const ROWS: Range<usize> = 6..303;
const COLUMNS: Range<usize> = 36..1136;

fn spectrogram(pcm: &[f32], channels: usize, config: SpectrogramConfig) -> Picture {
    let mut spectrogram = Spectrogram::new(config, channels).unwrap();
    spectrogram.push(pcm);
    Picture::of(&spectrogram.finish(SampleCount((pcm.len() / channels) as u64)).unwrap())
}

#[test]
fn a_tone_is_a_line_at_its_frequency() {
    for top_hz in [4_000, 8_000, 24_000] {
        let pcm: Vec<f32> = sweep(2, 1_000.0, 1_000.0).flat_map(|sample| [sample * 0.1, sample * 0.1]).collect();
        let picture = spectrogram(&pcm, 2, SpectrogramConfig { top_hz, ..SpectrogramConfig::default() });
        let row = 1_000 * ROWS.len() / top_hz as usize;
        for x in COLUMNS {
            assert!(
                picture.lightest(x, &ROWS).abs_diff(row) <= 1,
                "{} of {row} below {top_hz} Hz",
                picture.lightest(x, &ROWS)
            );
        }
    }
}

#[test]
fn a_sweep_only_rises() {
    let pcm: Vec<f32> = sweep(10, 200.0, 7_800.0).map(|sample| sample * 0.1).collect();
    let picture = spectrogram(&pcm, 1, SpectrogramConfig::default());
    let rows: Vec<_> = COLUMNS.map(|x| picture.lightest(x, &ROWS)).collect();
    assert!(rows.windows(2).all(|pair| pair[1] + 1 >= pair[0]), "{rows:?}");
    assert!(rows[10] < 15 && rows[rows.len() - 10] > 280, "{rows:?}");
    let at = |part: f64| rows[(rows.len() as f64 * part) as usize] as f64 / ROWS.len() as f64 * 8_000.0;
    assert!((at(0.5) - 4_000.0).abs() < 60.0, "{}", at(0.5));
}

#[test]
fn spectrograms_of_next_to_nothing_and_of_too_much_are_drawn() {
    for (pushed, total) in [(0, 0), (1, 1), (0, 48_000), (48_000, 1), (48_000, u64::MAX), (511, 513)] {
        for (width, height) in [(64, 32), (640, 160), (1200, 320)] {
            let size = PictureSize::new(width, height).unwrap();
            let title = Some("<b>\u{0} & ".repeat(100_000));
            let mut spectrogram = Spectrogram::new(SpectrogramConfig { size, title, ..Default::default() }, 1).unwrap();
            spectrogram.push(&vec![f32::NAN; pushed / 2]);
            spectrogram.push(&vec![0.3; pushed - pushed / 2]);
            let picture = Picture::of(&spectrogram.finish(SampleCount(total)).unwrap());
            assert_eq!((picture.width as u32, picture.height as u32), (width, height));
        }
    }
}

#[test]
fn impossible_settings_are_refused() {
    let default = SpectrogramConfig::default;
    for config in [
        SpectrogramConfig { top_hz: 999, ..default() },
        SpectrogramConfig { top_hz: 24_001, ..default() },
        SpectrogramConfig { floor_db: f32::NAN, ..default() },
        SpectrogramConfig { ceiling_db: -95.0, ..default() },
        SpectrogramConfig { ceiling_db: f32::INFINITY, ..default() },
    ] {
        assert!(matches!(Spectrogram::new(config, 1), Err(DrawError::Config { .. })));
    }
    assert!(Spectrogram::new(default(), 0).is_err());
}
