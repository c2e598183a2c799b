//! What the steps from settled stretches to an Ogg Opus file cost: each alone, and all of them for a minute of a call.
//!
//! Elements a second are samples at 48 kHz: divided by 48 000 they tell how many times faster than the call it runs.

#![allow(missing_docs)]

use std::hint::black_box;

use bytes::Bytes;
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled, Silence};
use callreel::decode::{Level, TrackDecoder};
use callreel::encode::{OggInspector, OggOpusWriter, OpusConfig, OpusEncoder, OpusHead, OpusTags, packet};
use callreel::mix::{Mixdown, MixdownConfig, Mixer, Mixing};
use callreel::testkit::{Audio, checkout};
use callreel::time::{MediaTime, SampleCount};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

const FRAME: usize = 960;
const SECONDS: usize = 10;

/// One side of the conversation among the fixtures.
fn voice(name: &str) -> Vec<f32> {
    let path = checkout().join(format!("fixtures/{name}.flac"));
    Audio::read(path).expect("the fixture is part of the repository").to_mono().channel(0).to_vec()
}

fn packets(pcm: &[f32]) -> Vec<Bytes> {
    let mut encoder = OpusEncoder::new(&OpusConfig::mono()).expect("the default is possible");
    let encode = |frame: &[f32]| Bytes::copy_from_slice(encoder.encode(frame).expect("a whole frame"));
    pcm.chunks_exact(FRAME).map(encode).collect()
}

/// `packets` as they are settled when the timeline runs `ppm` faster than their sender.
fn stretches(track: TrackKey, packets: &[Bytes], ppm: f64) -> Vec<Settled> {
    let at = |n: usize| MediaTime((n as f64 * FRAME as f64 * (1.0 + ppm * 1e-6)).round() as i64);
    let stretch = |(n, payload): (usize, &Bytes)| {
        let content = Content::Packet { codec: Codec::Opus, payload: payload.clone() };
        Settled { track, start: at(n), end: at(n + 1), content }
    };
    packets.iter().enumerate().map(stretch).collect()
}

fn decode(stretches: &[Settled], decoder: &mut TrackDecoder) {
    let mut pcm = [0.0; FRAME];
    for stretch in stretches {
        decoder.push(stretch).expect("stretches in order");
        while decoder.position().zip(decoder.ready()).is_some_and(|(at, ready)| at.0 + FRAME as i64 <= ready.0) {
            black_box(decoder.read(decoder.position().expect("just seen"), &mut pcm));
        }
    }
}

fn decoding(c: &mut Criterion) {
    let packets = packets(&voice("agent")[..48_000 * SECONDS]);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements((48_000 * SECONDS) as u64));
    let fresh = || TrackDecoder::new(1).expect("mono is possible");
    for (name, ppm) in [("as it is", 0.0), ("at 20 ppm", 20.0), ("at 500 ppm", 500.0)] {
        let stretches = stretches(TrackKey(1), &packets, ppm);
        group.bench_function(name, |b| b.iter_batched_ref(fresh, |d| decode(&stretches, d), BatchSize::LargeInput));
    }
    let silence = [Settled {
        track: TrackKey(1),
        start: MediaTime(0),
        end: MediaTime((48_000 * SECONDS) as i64),
        content: Content::Silence(Silence::Muted),
    }];
    group.bench_function("silence", |b| b.iter_batched_ref(fresh, |d| decode(&silence, d), BatchSize::LargeInput));
    group.finish();
}

fn mixing(c: &mut Criterion) {
    let (agent, caller) = (voice("agent"), voice("caller"));
    let (agent, caller) = (&agent[48_000 * 10..][..48_000 * SECONDS], &caller[48_000 * 10..][..48_000 * SECONDS]);
    let mut group = c.benchmark_group("mix");
    group.throughput(Throughput::Elements((48_000 * SECONDS) as u64));
    let run = |mixer: &mut Mixer, gain: f32, both: bool| {
        let mut out = [0.0; FRAME];
        for (agent, caller) in agent.chunks_exact(FRAME).zip(caller.chunks_exact(FRAME)) {
            mixer.add(agent, gain);
            if both {
                mixer.add(caller, gain);
            }
            mixer.mix(FRAME);
            black_box(mixer.take(&mut out));
        }
    };
    let fresh = || Mixer::new(1);
    for (name, gain, both) in [("one", 1.0, false), ("two", 1.0, true), ("two, limited", 4.0, true)] {
        group.bench_function(name, |b| b.iter_batched_ref(fresh, |m| run(m, gain, both), BatchSize::LargeInput));
    }
    group.bench_function("level", |b| b.iter(|| agent.chunks_exact(FRAME).map(Level::of).map(|l| l.rms).sum::<f32>()));
    group.finish();
}

fn encoding(c: &mut Criterion) {
    let agent = voice("agent");
    let agent = &agent[..48_000 * SECONDS];
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements((48_000 * SECONDS) as u64));
    let run = |encoder: &mut OpusEncoder, pcm: &[f32]| {
        for frame in pcm.chunks_exact(FRAME) {
            black_box(encoder.encode(frame).expect("a whole frame"));
        }
    };
    for complexity in [0, 5, 10] {
        let fresh = || {
            let mut config = OpusConfig::mono();
            config.complexity(complexity).expect("0 to 10");
            OpusEncoder::new(&config).expect("possible")
        };
        let name = format!("speech, complexity {complexity}");
        group.bench_function(name, |b| b.iter_batched_ref(fresh, |e| run(e, agent), BatchSize::LargeInput));
    }
    let fresh = || OpusEncoder::new(&OpusConfig::mono()).expect("possible");
    let zeros = vec![0.0; 48_000 * SECONDS];
    group.bench_function("silence", |b| b.iter_batched_ref(fresh, |e| run(e, &zeros), BatchSize::LargeInput));
    let packets = packets(agent);
    let file = || {
        let head = OpusHead::new(callreel::encode::Mapping::Mono, 312);
        let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 1, SampleCount(48_000)).expect("mono");
        for packet in &packets {
            writer.write_packet(packet, FRAME as u32).expect("a packet of 20 ms");
        }
        let mut file = Vec::new();
        writer.take_bytes(&mut file);
        file
    };
    group.bench_function("Ogg pages", |b| b.iter(file));
    let bytes = file();
    group.bench_function("inspect", |b| {
        b.iter(|| {
            let mut inspector = OggInspector::new();
            inspector.push_each(&bytes, &mut |payload| {
                black_box(packet::samples(payload));
            });
            inspector.finish()
        });
    });
    group.finish();
}

/// A minute of the conversation, from settled stretches to bytes.
fn call(c: &mut Criterion) {
    const MINUTE: usize = 60 * 48_000;
    let side = |name: &str| {
        let once = voice(name);
        packets(&once.iter().copied().cycle().take(MINUTE).collect::<Vec<_>>())
    };
    let (agent, caller) = (side("agent"), side("caller"));
    let mut group = c.benchmark_group("a minute of two people");
    group.throughput(Throughput::Elements(MINUTE as u64));
    group.sample_size(10);
    for (name, agent_ppm, caller_ppm) in [("same clock", 0.0, 0.0), ("own clocks", 25.0, -40.0)] {
        let agent = stretches(TrackKey(1), &agent, agent_ppm);
        let caller = stretches(TrackKey(2), &caller, caller_ppm);
        group.bench_function(name, |b| {
            b.iter(|| {
                let config = MixdownConfig {
                    opus: OpusConfig::mono(),
                    tags: OpusTags::new(),
                    serial: 1,
                    page: SampleCount(48_000),
                };
                let mut mixdown = Mixdown::new(&config, Mixing::Transcode).expect("possible");
                let mut file = Vec::new();
                for (agent, caller) in agent.iter().zip(&caller) {
                    mixdown.push(agent).expect("in order");
                    mixdown.push(caller).expect("in order");
                    mixdown.advance(agent.end.min(caller.end)).expect("encodes");
                    mixdown.take_bytes(&mut file);
                }
                mixdown.finish(MediaTime(MINUTE as i64)).expect("ends");
                mixdown.take_bytes(&mut file);
                file
            });
        });
    }
    group.finish();
}

criterion_group!(pipeline, decoding, mixing, encoding, call);
criterion_main!(pipeline);
