//! How a mix sounds that holds the talkers' own packets, against the same mix transcoded: PESQ-WB of both against the sum
//! of what the packets hold, and no click where one goes over into the other.
//!
//! `cargo test --features testkit --test forwarding -- --nocapture` prints the table of `BENCHMARKS.md`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use bytes::Bytes;
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled, Silence};
use callreel::decode::{Level, TrackDecoder};
use callreel::encode::{OggInspector, OpusConfig, OpusTags};
use callreel::mix::{ForwardReport, Mixdown, MixdownConfig, Mixing};
use callreel::testkit::Audio;
use callreel::testkit::quality::{Heard, judge};
use callreel::testkit::sim::{self, Jitter, Loss, Network, Payload, World};
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

/// What was settled of somebody.
struct Side {
    voice: &'static str,
    /// Where the voice begins, and how much of it was put at its end.
    from: usize,
    later: usize,
    stretches: Vec<Settled>,
}

impl Side {
    /// What is heard, or was said, with this side's lines where they are in the fixtures.
    fn in_order(&self, pcm: &[f32], cut: usize) -> Audio {
        let mut heard = pcm[self.from..].to_vec();
        heard.rotate_left(self.later);
        Audio::mono(heard.split_off(cut))
    }
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
        // The sender's encoder looks ahead.
        let from = self.start as usize + 312;
        Side { voice: self.voice, from, later, stretches: self.code(track, &said) }
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

/// A mix, as it plays.
struct Mixed {
    pcm: Vec<f32>,
    packets: Vec<(usize, bool)>,
    report: Option<ForwardReport>,
}

/// The mix of these.
fn mix(sides: &[Side], mixing: Mixing) -> Mixed {
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
    let (pcm, packets) = play(&bytes, sides);
    Mixed { pcm, packets, report: mixdown.forwarded() }
}

/// What a file plays, and for each packet where it begins and whether one of `sides` sent it.
fn play(file: &[u8], sides: &[Side]) -> (Vec<f32>, Vec<(usize, bool)>) {
    let sent: HashSet<&[u8]> = sides.iter().flat_map(|side| &side.stretches).filter_map(payload).collect();
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let (mut pcm, mut packets, mut frame) = (Vec::<f32>::new(), Vec::new(), vec![0.0; 5760]);
    let mut inspector = OggInspector::new();
    inspector.push_each(file, &mut |packet| {
        packets.push((pcm.len().saturating_sub(312), sent.contains(packet)));
        let frames = decoder.decode_float(packet, &mut frame, false).unwrap();
        pcm.extend_from_slice(&frame[..frames]);
    });
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    let skip = usize::from(found.head.unwrap().pre_skip);
    (pcm[skip..skip + found.duration.0 as usize].to_vec(), packets)
}

fn payload(stretch: &Settled) -> Option<&[u8]> {
    match &stretch.content {
        Content::Packet { payload, .. } => Some(payload),
        Content::Recovered { .. } | Content::Concealed { .. } | Content::Silence(_) => None,
    }
}

/// What the packets of all hold, added up on the timeline: what a mixer is given.
fn given(sides: &[Side], len: usize) -> Vec<f32> {
    let mut sum = vec![0.0; len];
    for side in sides {
        let mut decoder = TrackDecoder::new(1).unwrap();
        side.stretches.iter().for_each(|stretch| decoder.push(stretch).unwrap());
        decoder.finish();
        let mut pcm = vec![0.0; len];
        decoder.read(MediaTime::ZERO, &mut pcm);
        sum.iter_mut().zip(&pcm).for_each(|(sum, sample)| *sum += sample);
    }
    sum
}

/// Both voices over such a network, with DTX and in-band FEC.
fn over(network: &Network, voices: &BTreeMap<&'static str, Vec<f32>>) -> Vec<Side> {
    let both = [("agent", 20.0), ("caller", -35.0)];
    let track = |(voice, ppm): (&str, f64)| {
        let payload = Payload::Codec(voices[voice].clone().into());
        (sim::Sender { ppm, fec: true, dtx: true, payload, ..sim::Sender::default() }, network.clone())
    };
    let mut settled = [Vec::new(), Vec::new()];
    let world = World::new(11, voices["agent"].len() as f64 / SECOND as f64, both.map(track).to_vec());
    sim::run_into(&world, &mut |stretch| settled[stretch.track.0 as usize].push(stretch)).unwrap();
    let side = |((voice, _), stretches): ((&'static str, f64), Vec<Settled>)| {
        let first = stretches.iter().find(|stretch| !matches!(stretch.content, Content::Silence(_))).unwrap();
        Side { voice, from: first.start.since(MediaTime::ZERO).0 as usize, later: 0, stretches }
    };
    both.into_iter().zip(settled).map(side).collect()
}

/// What is said where packets come late, or never.
fn impaired() -> Vec<(String, Network)> {
    let jitter = Network { jitter: Jitter::Uniform(20.0), ..Network::default() };
    let loss = Network { loss: Loss::Bernoulli(0.05), ..jitter.clone() };
    let all = [
        ("jitter of 20 ms", jitter),
        ("5 % lost, retransmitted", Network { nack_rtt_ms: Some(80.0), ..loss.clone() }),
        ("5 % lost for good", loss),
    ];
    all.map(|(name, network)| (name.to_owned(), network)).to_vec()
}

/// Each conversation's name and senders.
fn conversations() -> Vec<(String, Vec<Sender>)> {
    let pair = |change: &dyn Fn(&mut Sender)| {
        let mut both = vec![sender("agent"), sender("caller")];
        both.iter_mut().for_each(change);
        both
    };
    let mut all = vec![("clean".to_owned(), pair(&|_| ()))];
    for noise in [-70.0, -60.0, -50.0, -40.0] {
        all.push((format!("noise of {noise} dBFS"), pair(&|s| s.noise = Some(noise))));
    }
    all.push(("noise of -45 dBFS at one end".to_owned(), {
        let mut both = pair(&|_| ());
        both[1].noise = Some(-45.0);
        both
    }));
    for (name, later) in [("much double talk", 4.0), ("more double talk", 17.5), ("little double talk", 40.9)] {
        let later = |s: &mut Sender| s.later = if s.voice == "caller" { later } else { 0.0 };
        all.push((name.to_owned(), pair(&|s| (later(s), s.noise = Some(-70.0)).0)));
    }
    all.push(("DTX".to_owned(), pair(&|s| s.dtx = true)));
    all.push(("DTX, noise of -60 dBFS".to_owned(), pair(&|s| (s.dtx = true, s.noise = Some(-60.0)).0)));
    all.push(("grids and clocks far apart".to_owned(), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].ppm, both[1].ppm, both[1].start) = (150.0, -200.0, 9_600 + 497);
        both
    }));
    all.push(("frames of 10 and 60 ms".to_owned(), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].frame, both[1].frame) = (480, 2_880);
        both
    }));
    all.push(("one loud, one soft".to_owned(), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[0].db, both[1].db) = (6.0, -18.0);
        both
    }));
    all.push(("a telephone".to_owned(), {
        let mut both = pair(&|s| s.noise = Some(-60.0));
        (both[1].bandwidth, both[1].bitrate) = (Bandwidth::Narrowband, 16_000);
        both
    }));
    all.push((
        "CELT only".to_owned(),
        pair(&|s| {
            (s.noise, s.application, s.bitrate) = (Some(-70.0), Application::LowDelay, 64_000);
        }),
    ));
    all.push(("SILK and CELT".to_owned(), {
        let mut both = pair(&|s| s.noise = Some(-70.0));
        (both[1].application, both[1].bitrate) = (Application::Audio, 96_000);
        both
    }));
    all.push(("music on hold".to_owned(), {
        let mut both = vec![sender("agent"), sender("music")];
        (both[1].application, both[1].bitrate, both[1].db) = (Application::Audio, 64_000, -12.0);
        both
    }));
    all
}

/// The largest prediction error within 5 ms of `at`, and the most energy of any 5 ms within 20 ms: a click is where either
/// stands out. The predictor is that of `model` around there.
fn roughness(pcm: &[f32], model: &[f32], at: usize) -> (f32, f32) {
    const ORDER: usize = 16;
    let window = at - 1_440..at + 1_440;
    let correlation =
        |lag: usize| -> f64 { window.clone().skip(lag).map(|n| f64::from(model[n]) * f64::from(model[n - lag])).sum() };
    let r: Vec<f64> = (0..=ORDER).map(correlation).collect();
    let mut error = r[0] * 1.0001 + 1e-6;
    let mut a = [0.0f64; ORDER + 1];
    for order in 1..=ORDER {
        let reflection = (r[order] - (1..order).map(|k| a[k] * r[order - k]).sum::<f64>()) / error;
        let before = a;
        a[order] = reflection;
        (1..order).for_each(|k| a[k] = before[k] - reflection * before[order - k]);
        error *= 1.0 - reflection * reflection;
    }
    let residual = |n: usize| f64::from(pcm[n]) - (1..=ORDER).map(|k| a[k] * f64::from(pcm[n - k])).sum::<f64>();
    let sharpest = (at - 240..at + 240).map(|n| residual(n).abs()).fold(0.0, f64::max);
    let loudest = (at - 960..at + 960).step_by(240).map(|n| Level::of(&pcm[n..n + 240]).rms).fold(0.0, f32::max);
    (sharpest as f32, loudest)
}

/// Prediction errors below −46 dBFS, or below four times those of the same moment transcoded, are no click.
const SHARP: (f32, f32) = (0.005, 4.0);
/// Neither are sounds below −40 dBFS, or less than twice as loud.
const LOUD: (f32, f32) = (0.01, 2.0);

/// What became of one conversation.
struct Outcome {
    name: String,
    sides: Vec<Side>,
    given: Vec<f32>,
    /// Forwarded, and transcoded.
    mixes: [Vec<f32>; 2],
    report: ForwardReport,
    sharpest: f32,
    loudest: f32,
    clicks: Vec<String>,
}

/// PESQ now and then takes speech for something else and is a whole point off, but not from a hundredth of a second later
/// on. So each line is judged from several moments on, and the best counts.
const CUTS: [usize; 2] = [0, 2_400];

impl Outcome {
    fn of(name: String, sides: Vec<Side>) -> Self {
        let [forwarded, transcoded] = [Mixing::Auto, Mixing::Transcode].map(|mixing| mix(&sides, mixing));
        let len = forwarded.pcm.len();
        let joints = forwarded.packets.windows(2).filter(|pair| pair[0].1 != pair[1].1).map(|pair| pair[1].0);
        let (mut sharpest, mut loudest, mut clicks) = (0.0f32, 0.0f32, Vec::new());
        for at in joints.filter(|at| (2_400..len - 2_400).contains(at)) {
            let (sharp, loud) = roughness(&forwarded.pcm, &transcoded.pcm, at);
            let (as_sharp, as_loud) = roughness(&transcoded.pcm, &transcoded.pcm, at);
            let (sharp, loud) = (sharp / as_sharp.max(SHARP.0 / SHARP.1), loud / as_loud.max(LOUD.0 / LOUD.1));
            (sharpest, loudest) = (sharpest.max(sharp), loudest.max(loud));
            if sharp > SHARP.1 || loud > LOUD.1 {
                clicks.push(format!("{name}: {sharp:.1} times as sharp, {loud:.1} times as loud at {at}"));
            }
        }
        let given = given(&sides, len);
        let report = forwarded.report.unwrap();
        Self { name, sides, given, mixes: [forwarded.pcm, transcoded.pcm], report, sharpest, loudest, clicks }
    }

    /// Sides whose lines are known.
    fn speakers(&self) -> impl Iterator<Item = &Side> {
        self.sides.iter().filter(|side| ["agent", "caller"].contains(&side.voice))
    }

    fn share(&self, samples: SampleCount) -> f64 {
        100.0 * samples.0 as f64 / self.given.len() as f64
    }
}

/// The score of each line of each speaker, forwarded and transcoded.
fn scores(outcomes: &[Outcome]) -> Vec<BTreeMap<&'static str, [Vec<f64>; 2]>> {
    let (mut names, mut originals, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    for (n, outcome) in outcomes.iter().enumerate() {
        for (side, cut) in outcome.speakers().flat_map(|side| CUTS.map(|cut| (side, cut))) {
            originals.push(side.in_order(&outcome.given, cut));
            for (how, pcm) in outcome.mixes.iter().enumerate() {
                names.push((n, side.voice, how));
                heard.push((originals.len() - 1, side.in_order(pcm, cut)));
            }
        }
    }
    let mut jobs = Vec::new();
    for ((_, speaker, _), (original, heard)) in names.iter().zip(heard) {
        jobs.push(Heard { name: jobs.len().to_string(), speaker, original: &originals[original], heard });
    }
    let judged = judge(&jobs).unwrap();
    let mut scores = vec![BTreeMap::<&str, [Vec<f64>; 2]>::new(); outcomes.len()];
    for (job, (n, speaker, how)) in names.iter().enumerate() {
        let best = &mut scores[*n].entry(speaker).or_default()[*how];
        let lines = &judged[&job.to_string()];
        best.resize(lines.len(), 0.0);
        best.iter_mut().zip(lines).for_each(|(best, line)| *best = best.max(*line));
    }
    scores
}

#[test]
fn a_forwarded_mix_sounds_as_good_as_a_transcoded_one() {
    let voices = voices();
    let speak = |(n, sender): (usize, &Sender)| sender.speak(TrackKey(n as u32), &voices);
    let spoken = |(name, senders): (String, Vec<Sender>)| (name, senders.iter().enumerate().map(speak).collect());
    let mut all: Vec<(String, Vec<Side>)> = conversations().into_iter().map(spoken).collect();
    all.extend(impaired().into_iter().map(|(name, network)| (name, over(&network, &voices))));

    let mean = |lines: &[f64]| lines.iter().sum::<f64>() / lines.len() as f64;
    let (mut worse, mut clicks, mut transcoded) = (Vec::new(), Vec::new(), Vec::new());
    println!("{:35} {:40}  share joints sharp loud", "conversation", "forwarded (transcoded)");
    while !all.is_empty() {
        let some: Vec<_> = all.drain(..all.len().min(4)).collect();
        let outcomes: Vec<Outcome> = std::thread::scope(|threads| {
            let mixing = some.into_iter().map(|(name, sides)| threads.spawn(|| Outcome::of(name, sides)));
            mixing.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (outcome, scores) in outcomes.iter().zip(scores(&outcomes)) {
            let Outcome { name, report, sharpest, loudest, .. } = outcome;
            let mut row = String::new();
            let all =
                |how: usize| mean(&scores.values().flat_map(|lines| lines[how].iter().copied()).collect::<Vec<_>>());
            if all(0) < all(1) - 0.05 {
                worse.push(format!("{name}: {scores:.2?}"));
            }
            for (speaker, lines) in &scores {
                let [forwarded, transcoded] = [mean(&lines[0]), mean(&lines[1])];
                row += &format!("{speaker} {forwarded:.2} ({transcoded:.2}) ");
            }
            let because = report.transcoded.iter().map(|(why, n)| format!("{why:?} {:.0} %", outcome.share(*n)));
            let because = because.collect::<Vec<_>>().join(", ");
            let (share, joints) = (outcome.share(report.forwarded), report.joints);
            println!("{name:35} {row:40} {share:4.0} % {joints:4} {sharpest:6.1} {loudest:4.1} {because}");
            clicks.extend_from_slice(&outcome.clicks);
            if share < 75.0 {
                transcoded.push(name.clone());
            }
        }
    }
    assert!(worse.is_empty(), "forwarded, and transcoded: {worse:#?}");
    assert!(clicks.is_empty(), "{clicks:#?}");
    let mostly = ["clean", "noise of -70 dBFS", "noise of -60 dBFS", "DTX", "CELT only", "jitter of 20 ms"];
    assert!(!transcoded.iter().any(|name| mostly.contains(&name.as_str())), "{transcoded:?}");
}
