use std::f32::consts::TAU;

use bytes::Bytes;

use super::{EXACT, ForwardReport, Obstacle};
use crate::analysis::{Analysis, AnalysisConfig};
use crate::call::{Codec, TrackKey};
use crate::capture::{Content, Settled, Silence, toc};
use crate::decode::Level;
use crate::encode::{OggInspector, OpusConfig, OpusTags};
use crate::mix::{Gain, Mixdown, MixdownConfig, Mixing};
use crate::time::{MediaTime, SampleCount};

const ALICE: TrackKey = TrackKey(1);
const BOB: TrackKey = TrackKey(2);

/// What a sender's encoder delays its sound by.
const DELAY: i64 = 312;

/// A sound over `count` packets of 20 ms.
fn code(count: usize, application: opus::Application, sound: impl Fn(usize) -> f32) -> Vec<Bytes> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, application).unwrap();
    encoder.set_bitrate(opus::Bitrate::Bits(48_000)).unwrap();
    encoder.set_inband_fec(true).unwrap();
    encoder.set_packet_loss_perc(20).unwrap();
    let mut packet = |n: usize| {
        let pcm: Vec<f32> = (n * 960..(n + 1) * 960).map(&sound).collect();
        encoder.encode_vec_float(&pcm, 1500).unwrap().into()
    };
    (0..count).map(&mut packet).collect()
}

fn tone(n: usize, hz: f32) -> f32 {
    (TAU * hz * n as f32 / 48_000.0).sin()
}

/// A tone that goes on.
fn steady(count: usize, hz: f32, loud: f32) -> Vec<Bytes> {
    code(count, opus::Application::Audio, |n| loud * tone(n, hz))
}

/// A tone that swells from nothing and fades to nothing within `burst` packets, and half as many of silence, over and over.
fn bursts(times: usize, burst: usize, hz: f32) -> Vec<Bytes> {
    let period = burst + burst / 2;
    code(times * period, opus::Application::Voip, |n| {
        let within = (n % (period * 960)) as f32 / (burst * 960) as f32;
        if within < 1.0 { 0.3 * (within * TAU / 2.0).sin().powi(2) * tone(n, hz) } else { 0.0 }
    })
}

fn opus(payload: &Bytes) -> Content {
    Content::Packet { codec: Codec::Opus, payload: payload.clone() }
}

/// Stretches one after the other from `start` on.
fn chain(track: TrackKey, start: i64, stretches: impl IntoIterator<Item = (i64, Content)>) -> Vec<Settled> {
    let mut at = start;
    let mut stretch = |(length, content)| {
        let start = MediaTime(at);
        at += length;
        Settled { track, start, end: MediaTime(at), content }
    };
    stretches.into_iter().map(&mut stretch).collect()
}

fn packets(track: TrackKey, start: i64, packets: &[Bytes]) -> Vec<Settled> {
    chain(track, start, packets.iter().map(|packet| (960, opus(packet))))
}

/// Packets of a clock that runs so much slower than the recorder's.
fn drifting(track: TrackKey, ppm: f64, packets: &[Bytes]) -> Vec<Settled> {
    let at = |n: usize| (n as f64 * 960.0 * (1.0 + ppm * 1e-6)).round() as i64;
    chain(track, 0, packets.iter().enumerate().map(|(n, packet)| (at(n + 1) - at(n), opus(packet))))
}

fn mixdown(mixing: Mixing) -> Mixdown {
    let (opus, tags) = (OpusConfig::mono(), OpusTags::new());
    Mixdown::new(&MixdownConfig { opus, tags, serial: 1, page: SampleCount::from_millis(1000) }, mixing).unwrap()
}

struct Mixed {
    packets: Vec<Vec<u8>>,
    pcm: Vec<f32>,
    report: ForwardReport,
}

impl Mixed {
    fn transcoded(&self) -> Vec<Obstacle> {
        self.report.transcoded.keys().copied().collect()
    }

    /// Which of these packets are not on the stream.
    fn lacks(&self, packets: &[Bytes]) -> Vec<usize> {
        (0..packets.len()).filter(|n| !self.holds(&packets[*n])).collect()
    }

    fn holds(&self, packet: &Bytes) -> bool {
        self.packets.iter().any(|written| written[..] == packet[..])
    }

    /// Centre of the energy in `range`.
    fn centre(&self, range: std::ops::Range<usize>) -> f64 {
        let energy = |n: usize| f64::from(self.pcm[n]).powi(2);
        let total: f64 = range.clone().map(energy).sum();
        range.map(|n| n as f64 * energy(n)).sum::<f64>() / total
    }
}

/// Pushes everything in the order in which it is settled, and ends after the last of it.
fn run(mut mixdown: Mixdown, legs: &[Vec<Settled>]) -> Mixed {
    let mut all: Vec<&Settled> = legs.iter().flatten().collect();
    all.sort_by_key(|stretch| stretch.end);
    let end = all.last().unwrap().end;
    let mut bytes = Vec::new();
    for stretch in &all {
        mixdown.push(stretch).unwrap();
        mixdown.advance(stretch.end).unwrap();
        mixdown.take_bytes(&mut bytes);
    }
    let total = mixdown.finish(end).unwrap();
    assert_eq!(MediaTime::ZERO + total, end);
    mixdown.take_bytes(&mut bytes);
    let (packets, pcm) = play(&bytes);
    assert_eq!(pcm.len() as u64, total.0);
    Mixed { packets, pcm, report: mixdown.forwarded().unwrap_or_default() }
}

fn mix(legs: &[Vec<Settled>]) -> Mixed {
    run(mixdown(Mixing::Auto), legs)
}

fn play(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<f32>) {
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let (mut packets, mut pcm, mut frame) = (Vec::new(), Vec::new(), vec![0.0; 5760]);
    let mut inspector = OggInspector::new();
    inspector.push_each(bytes, &mut |packet| {
        packets.push(packet.to_vec());
        let frames = decoder.decode_float(packet, &mut frame, false).unwrap();
        pcm.extend_from_slice(&frame[..frames]);
    });
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    let skip = usize::from(found.head.unwrap().pre_skip);
    (packets, pcm[skip..skip + found.duration.0 as usize].to_vec())
}

#[test]
fn one_talker_is_forwarded_byte_for_byte() {
    let said = bursts(3, 40, 300.0);
    let others = chain(BOB, 0, [(180 * 960, Content::Silence(Silence::Muted))]);
    let mixed = mix(&[packets(ALICE, 30_001, &said), others]);
    let written: Vec<_> = mixed.packets.iter().filter(|packet| packet.len() > 3).collect();
    assert_eq!(written, said.iter().filter(|packet| packet.len() > 3).collect::<Vec<_>>());
    assert_eq!((mixed.report.packets, mixed.transcoded()), (180, vec![]));
    assert_eq!(mixed.report.forwarded, SampleCount(180 * 960));
}

#[test]
fn talkers_on_other_grids_take_turns_within_their_place() {
    // Each is silent for 0.4 s while the other speaks; bob's grid lies between alice's slots.
    let alice = packets(ALICE, 0, &bursts(4, 40, 300.0));
    let lead = chain(BOB, 0, [(40 * 960 + 9_600 + 517, Content::Silence(Silence::NotStarted))]);
    let start = lead[0].end.0;
    let said = bursts(4, 6, 400.0);
    let mut bob = lead;
    let mut at = start;
    for burst in said.chunks(9) {
        bob.extend(packets(BOB, at, &burst[..6]));
        at += 60 * 960;
        bob.extend(chain(BOB, at - 54 * 960, [(54 * 960, Content::Silence(Silence::Dtx))]));
    }
    let mixed = mix(&[alice, bob]);
    for n in 0..3 {
        let alices = n * 60 * 960;
        let found = mixed.centre(alices..alices + 41 * 960);
        let place = (alices + 20 * 960) as f64 + DELAY as f64;
        assert!((found - place).abs() <= EXACT as f64 + 24.0, "alice is {} samples off", found - place);
        let bobs = start as usize + n * 60 * 960;
        let found = mixed.centre(bobs..bobs + 7 * 960);
        let place = (bobs + 3 * 960) as f64 + DELAY as f64;
        assert!((found - place).abs() <= EXACT as f64 + 24.0, "bob is {} samples off", found - place);
    }
}

#[test]
fn double_talk_is_mixed_and_what_is_around_it_is_not() {
    let alice = steady(300, 440.0, 0.2);
    let mut bob = chain(BOB, 0, [(100 * 960 + 333, Content::Silence(Silence::NotStarted))]);
    let said = steady(50, 700.0, 0.2);
    bob.extend(packets(BOB, 100 * 960 + 333, &said));
    bob.extend(chain(BOB, 150 * 960 + 333, [(150 * 960, Content::Silence(Silence::Muted))]));
    let mixed = mix(&[packets(ALICE, 0, &alice), bob]);
    assert_eq!(mixed.lacks(&alice[..90]), [0; 0], "{:?}", mixed.report);
    assert!(!said.iter().any(|packet| mixed.holds(packet)));
    assert_eq!(mixed.transcoded(), [Obstacle::DoubleTalk, Obstacle::Joint]);
    let (one, two) = (Level::of(&mixed.pcm[48_000..90_000]).rms, Level::of(&mixed.pcm[102_000..140_000]).rms);
    assert!((1.35..1.48).contains(&(two / one)), "{one} and {two}");
    let before = Level::of(&mixed.pcm[90_000..96_000]).rms;
    assert!((before / one - 1.0).abs() < 0.06, "{before} before the joint, {one} long before");
}

#[test]
fn nothing_moves_where_forwarding_goes_over_into_mixing() {
    let hz = 440.0;
    let alice = steady(200, hz, 0.2);
    let mut bob = chain(BOB, 0, [(100 * 960, Content::Silence(Silence::NotStarted))]);
    bob.extend(packets(BOB, 100 * 960, &steady(100, 1_950.0, 0.05)));
    // She is a little off her place when bob comes in, and must not jump back.
    for start in [0, 20, 47] {
        let mixed = mix(&[packets(ALICE, start, &alice), bob.clone()]);
        let phase = |from: usize| {
            let sum = |shift: f32| -> f32 {
                (from..from + 960).map(|n| mixed.pcm[n] * (TAU * hz * (n - from) as f32 / 48_000.0 + shift).sin()).sum()
            };
            // The phase at the start of the timeline, of the tone that is in these 20 ms.
            (sum(TAU / 4.0).atan2(sum(0.0)) - TAU * hz * from as f32 / 48_000.0).rem_euclid(TAU)
        };
        let phases: Vec<f32> = (80 * 960..110 * 960).step_by(240).map(phase).collect();
        let apart = |a: f32, b: f32| ((a - b + TAU / 2.0).rem_euclid(TAU) - TAU / 2.0).abs();
        // A sample is 0.058 of a radian; the encoder's look-ahead would be 5.4 of a whole turn.
        let steps: Vec<f32> = phases.windows(4).map(|pair| apart(pair[0], pair[3])).collect();
        let worst = steps.iter().copied().fold(0.0, f32::max);
        assert!(worst < 0.35, "{worst} radians at once, of {phases:.2?}");
    }
}

#[test]
fn a_clock_that_drifts_leaves_its_place_for_the_mix_and_is_put_right_in_a_silence() {
    let loud = steady(300, 440.0, 0.2);
    let mut said = loud.clone();
    said.extend(code(20, opus::Application::Voip, |_| 0.0));
    said.extend_from_slice(&loud[..100]);
    for ppm in [-2_000.0, 2_000.0] {
        let mixed = mix(&[drifting(ALICE, ppm, &said)]);
        // At 2000 ppm, 5 ms come after two seconds or so.
        assert_eq!(mixed.lacks(&loud[..85]), [0; 0], "{ppm} ppm: {:?}", mixed.report);
        assert!(!mixed.holds(&loud[200]), "{ppm} ppm");
        assert!(mixed.transcoded().contains(&Obstacle::Drift), "{:?}", mixed.report);
        let again = mixed.packets.iter().filter(|packet| packet[..] == loud[50][..]).count();
        assert_eq!(again, 2, "{ppm} ppm: forwarded again after the silence");
    }
}

#[test]
fn slow_drift_is_put_right_in_every_pause_and_needs_no_mix() {
    let said = bursts(20, 50, 300.0);
    for ppm in [-900.0, 900.0] {
        let mixed = mix(&[drifting(ALICE, ppm, &said)]);
        assert_eq!(mixed.transcoded(), [], "{ppm} ppm");
        for n in 0..20 {
            let from = (n as f64 * 75.0 * 960.0 * (1.0 + ppm * 1e-6)) as usize;
            let found = mixed.centre(from..(from + 51 * 960).min(mixed.pcm.len()));
            let off = found - (from as f64 + 25.0 * 960.0 * (1.0 + ppm * 1e-6) + DELAY as f64);
            assert!(off.abs() < 240.0, "{ppm} ppm: {off} samples off in burst {n}");
        }
    }
}

#[test]
fn what_cannot_be_forwarded_is_mixed_and_named() {
    let said = steady(150, 440.0, 0.2);
    let with = |n: usize, content: Content| {
        let mut stretches = packets(ALICE, 0, &said);
        stretches[n].content = content;
        mix(&[stretches]).transcoded()
    };
    assert_eq!(with(70, Content::Recovered { next: said[71].clone() }), [Obstacle::Loss]);
    assert_eq!(with(70, Content::Concealed { into_run: SampleCount(0) }), [Obstacle::Loss]);
    let broken = Bytes::from_static(&[0xfb, 0x83, 9, 9, 9, 9, 9]);
    assert_eq!(with(70, opus(&broken)), [Obstacle::Joint, Obstacle::Malformed]);

    let mut stereo = opus::Encoder::new(48_000, opus::Channels::Stereo, opus::Application::Audio).unwrap();
    let both: Vec<f32> = (0..1920).map(|n| 0.2 * tone(n / 2, 440.0 + 300.0 * (n % 2) as f32)).collect();
    let wide = Bytes::from(stereo.encode_vec_float(&both, 1500).unwrap());
    assert_eq!(with(70, opus(&wide)), [Obstacle::Joint, Obstacle::Stereo]);

    let telephone = (0..100u8).map(|n| {
        let payload = (0..160u8).map(|k| if (n ^ k) % 16 < 8 { 0x90 } else { 0x10 }).collect();
        (960, Content::Packet { codec: Codec::Pcmu, payload })
    });
    assert_eq!(mix(&[chain(ALICE, 0, telephone)]).transcoded(), [Obstacle::NotOpus]);

    let mut louder = mixdown(Mixing::Auto);
    louder.set_gain(ALICE, Gain::factor(2.0));
    let mixed = run(louder, &[packets(ALICE, 0, &said)]);
    assert_eq!((mixed.report.packets, mixed.transcoded()), (0, vec![Obstacle::Gain]));
    let plain = mix(&[packets(ALICE, 0, &said)]);
    let ratio = Level::of(&mixed.pcm[48_000..96_000]).rms / Level::of(&plain.pcm[48_000..96_000]).rms;
    assert!((ratio - 2.0).abs() < 0.05, "{ratio}");
}

#[test]
fn what_came_before_a_pause_comes_again_before_it_ends() {
    let mut random = fastrand::Rng::with_seed(2);
    let noise: Vec<f32> = (0..100 * 960).map(|_| random.f32() - 0.5).collect();
    for (rest, times) in [(0.002, 2), (0.2, 1)] {
        let said = code(100, opus::Application::Voip, |n| if n < 40 * 960 { rest } else { 0.3 } * noise[n]);
        let mut stretches = packets(ALICE, 0, &said[..40]);
        let pause = (40 * 960, Content::Silence(Silence::Dtx));
        stretches.extend(chain(ALICE, 40 * 960, [pause]));
        stretches.extend(packets(ALICE, 80 * 960, &said[40..]));
        let mixed = mix(&[stretches]);
        let found = mixed.packets.iter().filter(|packet| packet[..] == said[39][..]).count();
        assert_eq!(found, times, "noise of {rest}");
    }
}

#[test]
fn a_sound_that_never_pauses_stays_in_the_mix() {
    // It is as soft as the moments in which a voice is gone over to.
    let said = steady(300, 440.0, 0.012);
    let mut stretches = packets(ALICE, 0, &said);
    stretches[70].content = opus(&Bytes::from_static(&[0xfb, 0x83, 9, 9, 9, 9, 9]));
    let mixed = mix(&[stretches]);
    assert_eq!(mixed.transcoded(), [Obstacle::Joint, Obstacle::Malformed]);
    assert_eq!(mixed.lacks(&said[100..]).len(), 200);
}

#[test]
fn after_a_loss_mixing_goes_on_for_a_while() {
    let said = bursts(5, 40, 300.0);
    let mut stretches = packets(ALICE, 0, &said);
    stretches[20].content = Content::Concealed { into_run: SampleCount(0) };
    let mixed = mix(&[stretches]);
    assert_eq!(mixed.lacks(&said[65..95]).len(), 30, "{:?}", mixed.report);
    assert_eq!(mixed.lacks(&said[185..215]), [0; 0], "{:?}", mixed.report);
}

#[test]
fn a_background_is_not_left_out_beside_a_telephone_that_does_not_mask_it() {
    let mut random = fastrand::Rng::with_seed(5);
    let noise: Vec<f32> = (0..300 * 960).map(|_| random.f32() - 0.5).collect();
    let room = code(300, opus::Application::Voip, |n| 0.001_7 * noise[n]);
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
    encoder.set_max_bandwidth(opus::Bandwidth::Narrowband).unwrap();
    let mut narrow = |n: usize| -> Bytes {
        let pcm: Vec<f32> = (n * 960..(n + 1) * 960).map(|n| 0.2 * tone(n, 300.0)).collect();
        encoder.encode_vec_float(&pcm, 1500).unwrap().into()
    };
    let telephone: Vec<Bytes> = (0..300).map(&mut narrow).collect();
    for (talker, mixes) in [(telephone, true), (steady(300, 300.0, 0.2), false)] {
        let report = mix(&[packets(ALICE, 0, &talker), packets(BOB, 100, &room)]).report;
        let noisy = report.transcoded.get(&Obstacle::Noise).copied().unwrap_or_default();
        assert_eq!(noisy > SampleCount(200 * 960), mixes, "{report:?}");
    }
}

#[test]
fn a_spare_copy_of_what_was_withheld_is_not_forwarded() {
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<f32> = (0..40 * 960).map(|_| random.f32() - 0.5).collect();
    let voice = |n: usize| (0..20).map(|k| noise[n.saturating_sub(k)]).sum::<f32>() * 0.1;
    let said = code(40, opus::Application::Voip, voice);
    let spared = (25..40).find(|n| toc::in_band_fec(&said[*n]).is_some()).expect("protected against loss");
    let mut stretches = packets(ALICE, 0, &said[..spared - 5]);
    let at = stretches.last().unwrap().end.0;
    stretches.extend(chain(ALICE, at, [(5 * 960, Content::Silence(Silence::Withheld))]));
    stretches.extend(packets(ALICE, at + 5 * 960, &said[spared..]));
    let mixed = mix(&[stretches]);
    assert!(!mixed.holds(&said[spared]));
    assert!(mixed.transcoded().contains(&Obstacle::Withheld), "{:?}", mixed.report);
}

#[test]
fn a_room_that_is_not_quiet_is_not_left_out() {
    let alice = packets(ALICE, 0, &bursts(4, 50, 300.0));
    for (dbfs, mixes) in [(-66.0f32, false), (-48.0, true)] {
        let mut random = fastrand::Rng::with_seed(5);
        let noise: Vec<f32> = (0..300 * 960).map(|_| random.f32() - 0.5).collect();
        let loud = 10f32.powf(dbfs / 20.0) * 12f32.sqrt();
        let room = code(300, opus::Application::Voip, |n| loud * noise[n]);
        let report = mix(&[alice.clone(), packets(BOB, 100, &room)]).report;
        let noisy = report.transcoded.get(&Obstacle::Noise).copied().unwrap_or_default();
        assert_eq!(noisy > SampleCount(100 * 960), mixes, "{dbfs} dBFS: {report:?}");
    }
}

#[test]
fn silence_that_is_held_back_is_trimmed_unless_a_sound_follows() {
    let said = packets(ALICE, 0, &bursts(1, 50, 300.0)[..50]);
    for returns in [false, true] {
        let mut mixdown = mixdown(Mixing::Auto);
        said.iter().for_each(|stretch| mixdown.push(stretch).unwrap());
        mixdown.end_track(ALICE);
        mixdown.hold_silence_from(Some(MediaTime(48_000)));
        mixdown.advance(MediaTime(3 * 48_000)).unwrap();
        if returns {
            packets(BOB, 3 * 48_000, &bursts(1, 50, 300.0)[..50]).iter().for_each(|s| mixdown.push(s).unwrap());
        }
        let end = if returns { 4 * 48_000 } else { 3 * 48_000 };
        let total = mixdown.finish(MediaTime(end)).unwrap().0 as i64;
        assert!(if returns { total == end } else { (48_000..48_960).contains(&total) }, "{total}");
        let mut bytes = Vec::new();
        mixdown.take_bytes(&mut bytes);
        let (_, pcm) = play(&bytes);
        let mixed = Mixed { packets: Vec::new(), pcm, report: ForwardReport::default() };
        if returns {
            let found = mixed.centre(3 * 48_000..4 * 48_000);
            assert!((found - 3.5 * 48_000.0 - DELAY as f64).abs() < 90.0, "{found}");
        }
    }
}

#[test]
fn an_analysis_hears_every_sample_of_what_is_forwarded() {
    let alice = packets(ALICE, 0, &bursts(3, 50, 300.0));
    let mut bob = chain(BOB, 0, [(100 * 960 + 333, Content::Silence(Silence::NotStarted))]);
    bob.extend(packets(BOB, 100 * 960 + 333, &bursts(1, 60, 700.0)));
    let [forwarded, transcoded] = [Mixing::Auto, Mixing::Transcode].map(|mixing| {
        let mut mixdown = mixdown(mixing);
        mixdown.analyse(Analysis::new(AnalysisConfig::default(), 1).unwrap());
        let mut all: Vec<&Settled> = alice.iter().chain(&bob).collect();
        all.sort_by_key(|stretch| stretch.end);
        for stretch in &all {
            mixdown.push(stretch).unwrap();
            mixdown.advance(stretch.end).unwrap();
        }
        let total = mixdown.finish(all.last().unwrap().end).unwrap();
        assert_eq!(mixdown.forwarded().is_some_and(|report| report.packets > 100), mixing == Mixing::Auto);
        mixdown.take_analysis().unwrap().finish(total)
    });
    let (one, other) = (forwarded.waveform.unwrap(), transcoded.waveform.unwrap());
    assert_eq!(one.data.len(), other.data.len());
    let apart: i32 =
        one.data.iter().zip(&other.data).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).max().unwrap();
    assert!(apart <= 4, "{apart}");
    let (one, other) = (forwarded.loudness.unwrap(), transcoded.loudness.unwrap());
    assert!((one.integrated_lufs.unwrap() - other.integrated_lufs.unwrap()).abs() < 0.2, "{one:?} {other:?}");
    let spans = |speakers: &std::collections::BTreeMap<TrackKey, crate::analysis::Spoken>| {
        speakers.iter().map(|(track, spoken)| (*track, spoken.spans.len())).collect::<Vec<_>>()
    };
    assert_eq!(spans(&forwarded.speakers.unwrap()), spans(&transcoded.speakers.unwrap()));
}

#[test]
fn every_length_is_exact() {
    let said = bursts(1, 40, 300.0);
    for end in [1, 311, 959, 30_000, 38_399, 38_400, 38_401, 40_000] {
        let mut mixdown = mixdown(Mixing::Auto);
        packets(ALICE, 0, &said[..40]).iter().for_each(|stretch| mixdown.push(stretch).unwrap());
        let total = mixdown.finish(MediaTime(end)).unwrap();
        let mut bytes = Vec::new();
        mixdown.take_bytes(&mut bytes);
        assert_eq!((total.0 as i64, play(&bytes).1.len() as i64), (end, end));
        assert!(mixdown.finish(MediaTime(end)).is_err());
    }
}
