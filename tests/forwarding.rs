//! How a mix sounds that holds the talkers' own packets, against the same mix transcoded: PESQ-WB of both against what
//! was said, and no click where one goes over into the other.
//!
//! `cargo test --features testkit --test forwarding -- --nocapture` prints the table of `BENCHMARKS.md`.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled, Silence};
use callreel::encode::{OggInspector, OpusConfig, OpusTags};
use callreel::mix::{ForwardReport, Mixdown, MixdownConfig, Mixing};
use callreel::testkit::Audio;
use callreel::testkit::quality::{Heard, judge};
use callreel::time::{MediaTime, SampleCount};
use opus::{Application, Bandwidth, Bitrate};

const SECOND: usize = 48_000;

/// How somebody sends.
#[derive(Clone)]
struct Sender {
    voice: &'static str,
    /// How many dB louder or softer than in the fixtures.
    db: f32,
    /// Noise of the room, in dBFS.
    noise: Option<f32>,
    /// Seconds by which the lines are said later; they go round.
    later: f64,
    /// Where the first packet begins.
    start: i64,
    ppm: f64,
    frame: usize,
    bitrate: i32,
    application: Application,
    bandwidth: Bandwidth,
    dtx: bool,
    fec: bool,
}

fn sender(voice: &'static str) -> Sender {
    Sender {
        voice,
        db: 0.0,
        noise: None,
        later: 0.0,
        start: if voice == "agent" { 9_600 } else { 9_973 },
        ppm: if voice == "agent" { 20.0 } else { -35.0 },
        frame: 960,
        bitrate: 32_000,
        application: Application::Voip,
        bandwidth: Bandwidth::Fullband,
        dtx: false,
        fec: true,
    }
}

/// What somebody said, and what was settled of it.
struct Side {
    said: Vec<f32>,
    stretches: Vec<Settled>,
}

impl Sender {
    fn speak(&self, track: TrackKey, voices: &BTreeMap<&'static str, Vec<f32>>) -> Side {
        let mut said = voices[self.voice].clone();
        let later = (self.later * SECOND as f64) as usize % said.len();
        said.rotate_right(later);
        let gain = 10f32.powf(self.db / 20.0);
        let mut random = fastrand::Rng::with_seed(u64::from(track.0) + 1);
        // Evenly spread noise has a root mean square of its amplitude over √3.
        let amplitude = self.noise.map_or(0.0, |dbfs| 10f32.powf(dbfs / 20.0) * 3f32.sqrt());
        said.iter_mut().for_each(|sample| *sample = gain * *sample + amplitude * (2.0 * random.f32() - 1.0));
        let stretches = self.code(track, &said);
        Side { said, stretches }
    }

    fn code(&self, track: TrackKey, said: &[f32]) -> Vec<Settled> {
        let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, self.application).unwrap();
        encoder.set_bitrate(Bitrate::Bits(self.bitrate)).unwrap();
        encoder.set_max_bandwidth(self.bandwidth).unwrap();
        encoder.set_inband_fec(self.fec).unwrap();
        encoder.set_packet_loss_perc(if self.fec { 10 } else { 0 }).unwrap();
        encoder.set_dtx(self.dtx).unwrap();
        let at = |n: usize| self.start + (n as f64 * self.frame as f64 * (1.0 + self.ppm * 1e-6)).round() as i64;
        let mut packet = [0; 1500];
        let stretch = |(n, frame): (usize, &[f32])| {
            let length = encoder.encode_float(frame, &mut packet).unwrap();
            let content = if self.dtx && length <= 2 {
                Content::Silence(Silence::Dtx)
            } else {
                Content::Packet { codec: Codec::Opus, payload: Bytes::copy_from_slice(&packet[..length]) }
            };
            Settled { track, start: MediaTime(at(n)), end: MediaTime(at(n + 1)), content }
        };
        said.chunks_exact(self.frame).enumerate().map(stretch).collect()
    }
}

fn voices() -> BTreeMap<&'static str, Vec<f32>> {
    let read = |name| {
        let audio = Audio::read(Path::new("fixtures").join(name).with_extension("flac")).unwrap().to_mono();
        (name, audio.channel(0).to_vec())
    };
    ["agent", "caller"].map(read).into_iter().chain([("music", music())]).collect()
}

/// A tune of plucked chords, over and over, without a pause.
fn music() -> Vec<f32> {
    let chords = [[220.0, 277.2, 329.6], [196.0, 246.9, 293.7], [174.6, 220.0, 261.6], [196.0, 261.6, 329.6]];
    let tone = |n: usize| {
        let (beat, within) = (n / 24_000, (n % 24_000) as f32 / 48_000.0);
        let chord = &chords[beat / 2 % chords.len()];
        let partial = |hz: f32| {
            (1..6).map(|k| (std::f32::consts::TAU * hz * k as f32 * n as f32 / 48_000.0).sin() / k as f32).sum::<f32>()
        };
        0.05 * (0.3 + (-3.0 * within).exp()) * chord.iter().map(|hz| partial(*hz)).sum::<f32>()
    };
    (0..41 * SECOND).map(tone).collect()
}

/// The mix of these, as it plays.
fn mix(sides: &[Side], mixing: Mixing) -> (Vec<f32>, Option<ForwardReport>) {
    let opus = OpusConfig::mono();
    let config = MixdownConfig { opus, tags: OpusTags::new(), serial: 1, page: SampleCount::from_millis(1000) };
    let mut mixdown = Mixdown::new(&config, mixing).unwrap();
    let mut all: Vec<&Settled> = sides.iter().flat_map(|side| &side.stretches).collect();
    all.sort_by_key(|stretch| stretch.end);
    let end = all.iter().map(|stretch| stretch.end).max().unwrap();
    let mut bytes = Vec::new();
    for stretch in all {
        mixdown.push(stretch).unwrap();
        mixdown.advance(stretch.end).unwrap();
        mixdown.take_bytes(&mut bytes);
    }
    let total = mixdown.finish(end).unwrap();
    assert_eq!(MediaTime::ZERO + total, end);
    mixdown.take_bytes(&mut bytes);
    (play(&bytes), mixdown.forwarded())
}

fn play(file: &[u8]) -> Vec<f32> {
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let (mut pcm, mut frame) = (Vec::new(), vec![0.0; 5760]);
    let mut inspector = OggInspector::new();
    inspector.push_each(file, &mut |packet| {
        let frames = decoder.decode_float(packet, &mut frame, false).unwrap();
        pcm.extend_from_slice(&frame[..frames]);
    });
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    let skip = usize::from(found.head.unwrap().pre_skip);
    pcm[skip..skip + found.duration.0 as usize].to_vec()
}

/// What was said by all, as it lies on the timeline; encoders delay it by 312 samples.
fn said(sides: &[Side], len: usize) -> Vec<f32> {
    let mut sum = vec![0.0; len];
    for side in sides {
        let from = side.stretches[0].start.0 as usize + 312;
        sum.iter_mut().skip(from).zip(&side.said).for_each(|(sum, sample)| *sum += sample);
    }
    sum
}

fn from_agent(pcm: &[f32]) -> Audio {
    Audio::mono(pcm[9_600 + 312..].to_vec())
}

/// Each conversation's name, class of noise, and senders.
fn conversations() -> Vec<(String, Option<f32>, Vec<Sender>)> {
    let pair = |change: &dyn Fn(&mut Sender)| {
        let mut both = vec![sender("agent"), sender("caller")];
        both.iter_mut().for_each(change);
        both
    };
    let mut all = vec![("clean".to_owned(), None, pair(&|_| ()))];
    for noise in [-70.0, -60.0, -50.0, -40.0] {
        all.push((format!("noise of {noise} dBFS"), Some(noise), pair(&|s| s.noise = Some(noise))));
    }
    for (name, later) in [("much double talk", 4.0), ("more double talk", 17.5), ("little double talk", 40.9)] {
        let later = |s: &mut Sender| s.later = if s.voice == "caller" { later } else { 0.0 };
        all.push((name.to_owned(), Some(-70.0), pair(&|s| (later(s), s.noise = Some(-70.0)).0)));
    }
    all.push(("DTX".to_owned(), None, pair(&|s| s.dtx = true)));
    all.push(("DTX, noise of -60 dBFS".to_owned(), Some(-60.0), pair(&|s| (s.dtx = true, s.noise = Some(-60.0)).0)));
    all.push(("grids and clocks far apart".to_owned(), Some(-70.0), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].ppm, both[1].ppm, both[1].start) = (150.0, -200.0, 9_600 + 497);
        both
    }));
    all.push(("frames of 10 and 60 ms".to_owned(), Some(-70.0), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].frame, both[1].frame) = (480, 2_880);
        both
    }));
    all.push(("one loud, one soft".to_owned(), Some(-70.0), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].db, both[1].db) = (6.0, -18.0);
        both
    }));
    all.push(("a telephone".to_owned(), Some(-60.0), {
        let mut both = pair(&|s| s.noise = Some(-60.0));
        (both[1].bandwidth, both[1].bitrate) = (Bandwidth::Narrowband, 16_000);
        both
    }));
    all.push((
        "CELT only".to_owned(),
        Some(-70.0),
        pair(&|s| {
            (s.noise, s.application, s.bitrate) = (Some(-70.0), Application::LowDelay, 64_000);
        }),
    ));
    all.push(("SILK and CELT".to_owned(), Some(-70.0), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[1].application, both[1].bitrate) = (Application::Audio, 96_000);
        both
    }));
    all.push(("music on hold".to_owned(), None, {
        let mut both = vec![sender("agent"), sender("music")];
        (both[1].application, both[1].bitrate, both[1].db) = (Application::Audio, 64_000, -12.0);
        both
    }));
    all
}

#[test]
fn a_forwarded_mix_sounds_as_good_as_a_transcoded_one() {
    let voices = voices();
    let only = std::env::var("ONLY").ok();
    let mut heard = Vec::new();
    let mut reports = Vec::new();
    for (name, _, senders) in conversations() {
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let speak = |(n, sender): (usize, &Sender)| sender.speak(TrackKey(n as u32), &voices);
        let sides: Vec<Side> = senders.iter().enumerate().map(speak).collect();
        for mixing in [Mixing::Auto, Mixing::Transcode] {
            let begun = std::time::Instant::now();
            let (pcm, report) = mix(&sides, mixing);
            let took = begun.elapsed();
            let original = said(&sides, pcm.len());
            heard.push((format!("{name}/{mixing:?}"), from_agent(&original), from_agent(&pcm)));
            println!("{name} {mixing:?} {took:?}");
            if only.is_some() {
                heard.last().unwrap().2.write_wav(format!("/tmp/dbg-{mixing:?}.wav")).unwrap();
                heard.last().unwrap().1.write_wav("/tmp/dbg-said.wav").unwrap();
            }
            if let Some(report) = report {
                reports.push((name.clone(), report, pcm.len()));
            }
        }
    }
    let jobs: Vec<Heard> = heard
        .iter()
        .map(|(name, original, pcm)| Heard { name: name.clone(), speaker: "agent", original, heard: pcm.clone() })
        .collect();
    let scores = judge(&jobs).unwrap();
    let mean = |name: &str| scores[name].iter().sum::<f64>() / scores[name].len() as f64;
    for (name, report, len) in &reports {
        let (forwarded, transcoded) = (mean(&format!("{name}/Auto")), mean(&format!("{name}/Transcode")));
        let share = report.forwarded.0 as f64 / *len as f64;
        let because: Vec<String> =
            report.transcoded.iter().map(|(o, s)| format!("{o:?} {:.2}", s.0 as f64 / *len as f64)).collect();
        println!(
            "{name:32} {forwarded:5.2} {transcoded:5.2} {:+5.2}  forwarded {share:.2} joints {} {}",
            forwarded - transcoded,
            report.joints,
            because.join(", ")
        );
        if only.is_some() {
            println!("{:.2?}\n{:.2?}", scores[&format!("{name}/Auto")], scores[&format!("{name}/Transcode")]);
        }
    }
}
