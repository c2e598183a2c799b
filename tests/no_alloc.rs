//! In the steady state, decoding, mixing, encoding and listening take no memory from the system.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use callreel::analysis::{Analysis, AnalysisConfig};
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled, Silence};
use callreel::encode::{OpusConfig, OpusTags};
use callreel::mix::{Mixdown, MixdownConfig, Mixing};
use callreel::time::{MediaTime, SampleCount};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Counts what each thread takes.
struct Counting;

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

/// What two people send in a minute: speech with losses, drift and pauses, over each other now and then.
fn minute(track: TrackKey, codec: Codec, ppm: f64, seed: u64) -> Vec<Settled> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
    encoder.set_inband_fec(true).unwrap();
    encoder.set_packet_loss_perc(10).unwrap();
    let mut random = fastrand::Rng::with_seed(seed);
    let at = |n: i64| (n as f64 * 960.0 * (1.0 + ppm * 1e-6)).round() as i64;
    let packets: Vec<Bytes> = (0..3_000)
        .map(|n| match codec {
            Codec::Opus => {
                let pcm: Vec<f32> =
                    (0..960).map(|k| 0.7 * ((n * 960 + k) as f32 * 0.03).sin() * random.f32()).collect();
                let mut packet = [0; 1500];
                let len = encoder.encode_float(&pcm, &mut packet).unwrap();
                Bytes::copy_from_slice(&packet[..len])
            }
            Codec::Pcmu | Codec::Pcma => (0..160).map(|_| random.u8(..)).collect(),
        })
        .collect();
    (0..3_000)
        .map(|n| {
            let content = match n % 100 {
                20 if codec == Codec::Opus => Content::Recovered { next: packets[n as usize + 1].clone() },
                40 => Content::Concealed { into_run: SampleCount::ZERO },
                70..80 => Content::Silence(Silence::Dtx),
                _ => Content::Packet { codec, payload: packets[n as usize].clone() },
            };
            Settled { track, start: MediaTime(at(n)), end: MediaTime(at(n + 1)), content }
        })
        .collect()
}

fn run(opus: OpusConfig, codec: Codec) {
    let config = MixdownConfig { opus, tags: OpusTags::new(), serial: 1, page: SampleCount::from_millis(1000) };
    let mut mixdown = Mixdown::new(&config, Mixing::Transcode).unwrap();
    mixdown.analyse(Analysis::new(AnalysisConfig::default(), config.opus.channels()).unwrap());
    let (one, other) = (minute(TrackKey(1), codec, 120.0, 1), minute(TrackKey(2), Codec::Opus, -40.0, 2));
    let mut file = Vec::with_capacity(1 << 20);
    let mut before = 0;
    for (n, (one, other)) in one.iter().zip(&other).enumerate() {
        // Ten seconds to grow every buffer to its size.
        if n == 500 {
            before = allocations();
        }
        mixdown.push(one).unwrap();
        mixdown.push(other).unwrap();
        mixdown.advance(one.end.min(other.end)).unwrap();
        mixdown.take_bytes(&mut file);
    }
    assert_eq!(allocations() - before, 0, "{codec:?}");
    assert!(mixdown.position() > MediaTime(48_000 * 59), "{}", mixdown.position());
    assert!(mixdown.least_gain() < 1.0, "the limiter had nothing to do");
}

#[test]
fn a_call_in_full_swing_takes_no_memory() {
    run(OpusConfig::mono(), Codec::Opus);
}

/// Two who take turns, with some double talk, so that the mix is forwarded, mixed and forwarded again.
fn turns(analysed: bool) {
    let opus = OpusConfig::mono();
    let config = MixdownConfig { opus, tags: OpusTags::new(), serial: 1, page: SampleCount::from_millis(1000) };
    let mut mixdown = Mixdown::new(&config, Mixing::Auto).unwrap();
    if analysed {
        // Who spoke when is a list, which grows.
        let config = AnalysisConfig { speakers: false, ..AnalysisConfig::default() };
        mixdown.analyse(Analysis::new(config, 1).unwrap());
    }
    let speaks = |n: usize, whose: usize| n / 60 % 3 == 2 || n / 60 % 3 == whose;
    let turn = |whose: usize, ppm| {
        let mut said = minute(TrackKey(whose as u32), Codec::Opus, ppm, 1 + whose as u64);
        for (_, stretch) in said.iter_mut().enumerate().filter(|(n, _)| !speaks(*n, whose)) {
            stretch.content = Content::Silence(Silence::Dtx);
        }
        said
    };
    let (one, other) = (turn(0, 120.0), turn(1, -40.0));
    let mut file = Vec::with_capacity(1 << 20);
    let mut before = 0;
    for (n, (one, other)) in one.iter().zip(&other).enumerate() {
        if n == 900 {
            before = allocations();
        }
        mixdown.push(one).unwrap();
        mixdown.push(other).unwrap();
        mixdown.advance(one.end.min(other.end)).unwrap();
        mixdown.take_bytes(&mut file);
    }
    assert_eq!(allocations() - before, 0, "analysed: {analysed}");
    let report = mixdown.forwarded().unwrap();
    assert!(report.packets > 200 && report.joints > 6, "{report:?}");
}

#[test]
fn a_call_that_is_forwarded_takes_no_memory() {
    turns(false);
    turns(true);
}

#[test]
fn a_telephone_call_takes_no_memory() {
    run(OpusConfig::mono(), Codec::Pcmu);
}

#[test]
fn a_stereo_mix_takes_no_memory() {
    run(OpusConfig::stereo(), Codec::Opus);
}

#[test]
fn the_counter_counts() {
    let before = allocations();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(allocations() > before);
}
