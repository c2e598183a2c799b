//! How each side of a call sounds in its recording: PESQ-WB against what was said.
//!
//! The call is simulated with real encoders (in-band FEC, DTX); each side's file is written as the recorder writes it.
//! `cargo test --features testkit --test quality -- --nocapture` prints the table of `BENCHMARKS.md`.

use std::collections::BTreeMap;
use std::path::Path;

use callreel::call::TrackKey;
use callreel::capture::{Content, Settled, Silence};
use callreel::encode::{OggInspector, OpusConfig, OpusTags};
use callreel::mix::{MixdownConfig, Mixing, TrackFile};
use callreel::testkit::Audio;
use callreel::testkit::quality::{Heard, judge};
use callreel::testkit::sim::{self, BITRATE, Jitter, Loss, Network, Payload, Sender, World};
use callreel::time::{MediaTime, SampleCount};

const SIDES: [&str; 2] = ["agent", "caller"];

/// A call of the fixtures' two sides over such a network: what was settled of each, and when its first sound begins.
fn call(loss: Loss, nack: bool, seconds: f64) -> [Vec<Settled>; 2] {
    let side = |(name, ppm): (&str, f64)| {
        let sender = Sender {
            ppm,
            fec: true,
            dtx: true,
            payload: Payload::Codec(voice(name).channel(0).into()),
            ..Sender::default()
        };
        let network =
            Network { jitter: Jitter::Uniform(20.0), loss, nack_rtt_ms: nack.then_some(80.0), ..Network::default() };
        (sender, network)
    };
    let tracks = [(SIDES[0], 20.0), (SIDES[1], -35.0)].map(side).to_vec();
    let mut settled = [Vec::new(), Vec::new()];
    sim::run_into(&World::new(11, seconds, tracks), &mut |stretch| settled[stretch.track.0 as usize].push(stretch))
        .unwrap();
    settled
}

fn voice(name: &str) -> Audio {
    Audio::read(Path::new("fixtures").join(name).with_extension("flac")).unwrap().to_mono()
}

/// The file of one side, as it plays.
fn record(stretches: &[Settled], mixing: Mixing) -> Vec<f32> {
    let config = MixdownConfig {
        opus: OpusConfig::mono(),
        tags: OpusTags::new(),
        serial: 1,
        page: SampleCount::from_millis(1000),
    };
    let mut file = TrackFile::new(&config, mixing).unwrap();
    for stretch in stretches {
        file.push(stretch).unwrap();
        file.advance(stretch.start).unwrap();
    }
    let end = stretches.last().unwrap().end;
    file.end_track(stretches[0].track);
    file.finish(end).unwrap();
    let mut bytes = Vec::new();
    file.take_bytes(&mut bytes);
    play(&bytes)
}

fn play(file: &[u8]) -> Vec<f32> {
    let mut inspector = OggInspector::new();
    inspector.push(file);
    let found = inspector.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    let audio = Audio::from_ogg_opus(file).unwrap();
    assert_eq!(audio.len() as u64, found.duration.0);
    audio.channel(0).to_vec()
}

/// What is left of a stretch where a recorder does nothing about losses.
fn silenced(stretch: &Settled) -> Settled {
    let content = match &stretch.content {
        Content::Recovered { .. } | Content::Concealed { .. } => Content::Silence(Silence::Lost),
        content => content.clone(),
    };
    Settled { content, ..stretch.clone() }
}

/// What the same encoder's packets sound like without a network or a recorder.
fn plain(name: &str) -> Vec<f32> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).unwrap();
    encoder.set_bitrate(opus::Bitrate::Bits(BITRATE)).unwrap();
    encoder.set_inband_fec(true).unwrap();
    encoder.set_packet_loss_perc(10).unwrap();
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let skip = encoder.get_lookahead().unwrap() as usize;
    let mut pcm = Vec::new();
    for frame in voice(name).channel(0).chunks_exact(960) {
        let packet = encoder.encode_vec_float(frame, 1275).unwrap();
        let mut out = [0.0; 960];
        decoder.decode_float(&packet, &mut out, false).unwrap();
        pcm.extend_from_slice(&out);
    }
    pcm.split_off(skip)
}

/// From the first sound of a side on.
fn from_first_sound(pcm: &[f32], stretches: &[Settled]) -> Audio {
    let first = stretches.iter().find(|stretch| !matches!(stretch.content, Content::Silence(_))).unwrap();
    Audio::mono(pcm[first.start.since(MediaTime::ZERO).0 as usize..].to_vec())
}

#[test]
fn recordings_sound_like_what_was_said() {
    let originals = SIDES.map(voice);
    let seconds = originals[0].duration().as_secs_f64().min(originals[1].duration().as_secs_f64());
    let mut heard = Vec::new();
    let mut add = |row: &str, side: usize, audio: Audio| {
        let name = format!("{row}/{}", SIDES[side]);
        heard.push(Heard { name, speaker: SIDES[side], original: &originals[side], heard: audio });
    };
    let calls = [
        ("no loss", call(Loss::None, true, seconds)),
        ("5 % loss, retransmitted", call(Loss::Bernoulli(0.05), true, seconds)),
        ("5 % loss for good", call(Loss::Bernoulli(0.05), false, seconds)),
    ];
    for (side, name) in SIDES.iter().enumerate() {
        add("plain", side, Audio::mono(plain(name)));
        for (row, settled) in &calls {
            let stretches = &settled[side];
            assert!(stretches.iter().all(|stretch| stretch.track == TrackKey(side as u32)));
            for (how, mixing) in [("passed through", Mixing::Auto), ("transcoded", Mixing::Transcode)] {
                let audio = from_first_sound(&record(stretches, mixing), stretches);
                add(&format!("{row}, {how}"), side, audio);
            }
        }
        let stretches: Vec<Settled> = calls[2].1[side].iter().map(silenced).collect();
        add("5 % loss for good, silence", side, from_first_sound(&record(&stretches, Mixing::Transcode), &stretches));
    }

    let mut rows: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let scores = judge(&heard).unwrap();
    for (name, lines) in &scores {
        rows.entry(name.split_once('/').unwrap().0).or_default().extend(lines);
    }
    let mean = |row: &str| rows[row].iter().sum::<f64>() / rows[row].len() as f64;
    for (row, lines) in &rows {
        println!("{row:40} {:5.2} {:5.2}", mean(row), lines.iter().copied().fold(f64::MAX, f64::min));
    }
    assert_eq!(rows["plain"].len(), 14, "every line is judged");
    let (plain, lossless) = (mean("plain"), mean("no loss, passed through"));
    assert!(lossless > plain - 0.1, "{lossless} against {plain}");
    for how in ["passed through", "transcoded"] {
        let (without, with) = (mean(&format!("no loss, {how}")), mean(&format!("5 % loss, retransmitted, {how}")));
        assert!(with > without - 0.1, "{how}: {with} with loss, {without} without");
        let (kept, silent) = (mean(&format!("5 % loss for good, {how}")), mean("5 % loss for good, silence"));
        assert!(kept > silent, "{how}: {kept}, and silence {silent}");
    }
}
