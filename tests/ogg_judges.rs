//! Independent programs judge what is written: `opusinfo` and `ffmpeg`. Where one is not installed, its part is left out.

use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled, Silence};
use callreel::encode::{FrameDuration, OggInspector, OpusConfig, OpusTags, PageReader};
use callreel::mix::{DualFile, Mixdown, MixdownConfig, Mixing, Side, TrackFile};
use callreel::time::{MediaTime, SampleCount};

const ALICE: TrackKey = TrackKey(1);
const BOB: TrackKey = TrackKey(2);
/// Not a multiple of anything.
const END: i64 = 48_000 * 7 + 1_234;

fn config(opus: OpusConfig) -> MixdownConfig {
    let mut tags = OpusTags::new();
    tags.comment("TITLE", "a call").expect("a plain name");
    MixdownConfig { opus, tags, serial: 0x1234_5678, page: SampleCount::from_millis(1000) }
}

/// Three seconds of sound, a second of silence, three seconds of sound and what is missing to the end.
fn talker(track: TrackKey, step: f32) -> Vec<Settled> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).expect("48 kHz mono");
    let mut packet = [0; 1500];
    let mut at = 0;
    let mut stretch = |length: i64, content| {
        let start = MediaTime(at);
        at += length;
        Settled { track, start, end: MediaTime(at), content }
    };
    let mut all = Vec::new();
    for n in 0..300 {
        let pcm: Vec<f32> = (0..960).map(|k| 0.3 * ((n * 960 + k) as f32 * step).sin()).collect();
        let len = encoder.encode_float(&pcm, &mut packet).expect("a frame of 20 ms");
        if n == 150 {
            all.push(stretch(48_000, Content::Silence(Silence::Dtx)));
        }
        let payload = Bytes::copy_from_slice(&packet[..len]);
        all.push(stretch(960, Content::Packet { codec: Codec::Opus, payload }));
    }
    all.push(stretch(END - 48_000 - 300 * 960, Content::Silence(Silence::Muted)));
    all
}

fn mixdown(opus: OpusConfig, mixing: Mixing) -> Vec<u8> {
    let mut mixdown = Mixdown::new(&config(opus), mixing).expect("possible");
    let mut bytes = Vec::new();
    for (n, (alice, bob)) in talker(ALICE, 0.05).iter().zip(&talker(BOB, 0.03)).enumerate() {
        mixdown.push(alice).expect("in order");
        // After two seconds, she is alone.
        if n < 100 {
            mixdown.push(bob).expect("in order");
        } else {
            mixdown.end_track(BOB);
        }
        mixdown.advance(alice.end).expect("encodes");
    }
    mixdown.finish(MediaTime(END)).expect("ends");
    mixdown.take_bytes(&mut bytes);
    bytes
}

fn track(mixing: Mixing) -> Vec<u8> {
    let mut file = TrackFile::new(&config(OpusConfig::mono()), mixing).expect("possible");
    let mut bytes = Vec::new();
    for stretch in talker(ALICE, 0.05) {
        file.push(&stretch).expect("in order");
        file.advance(stretch.end).expect("writes");
    }
    file.finish(MediaTime(END)).expect("ends");
    file.take_bytes(&mut bytes);
    bytes
}

fn dual(mixing: Mixing) -> Vec<u8> {
    let mut file = DualFile::new(&config(OpusConfig::mono()), mixing).expect("possible");
    let mut bytes = Vec::new();
    for (alice, bob) in talker(ALICE, 0.05).iter().zip(&talker(BOB, 0.03)) {
        file.push(Side::Left, alice).expect("in order");
        file.push(Side::Right, bob).expect("in order");
        file.advance(alice.end).expect("writes");
    }
    file.finish(MediaTime(END)).expect("ends");
    file.take_bytes(&mut bytes);
    bytes
}

/// What `program` says, or `None` where it is not installed.
fn ask(program: &str, arguments: &[&str], file: &Path) -> Option<Output> {
    match Command::new(program).args(arguments).arg(file).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{program}: {error}"),
    }
}

fn judge(name: &str, bytes: &[u8]) {
    let mut inspector = OggInspector::new();
    inspector.push(bytes);
    let found = inspector.finish();
    assert!(found.is_clean(), "{name}: {:?}", found.problems);
    assert_eq!(found.duration, SampleCount(END as u64), "{name}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("call.ogg");
    std::fs::write(&file, bytes).expect("room for a small file");
    if let Some(output) = ask("opusinfo", &[], &file) {
        let said = String::from_utf8_lossy(&output.stdout).to_lowercase() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {said}");
        assert!(!said.contains("warning") && !said.contains("error"), "{name}: {said}");
    }
    let entries = ["-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"];
    if let Some(output) = ask("ffprobe", &entries, &file) {
        assert!(output.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        let duration: f64 = said.trim().parse().unwrap_or_else(|_| panic!("{name}: duration {said:?}"));
        // ffprobe counts the pre-skip in.
        let off = duration - END as f64 / 48_000.0;
        assert!((-0.0001..0.0066).contains(&off), "{name}: {duration} s");
    }
    play(name, &file);
}

/// ffmpeg decodes the whole file without a complaint.
fn play(name: &str, file: &Path) {
    let arguments = ["-nostdin", "-v", "warning", "-f", "null", "/dev/null", "-i"];
    if let Some(output) = ask("ffmpeg", &arguments, file) {
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{name}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn mixes_of_every_frame_duration_are_clean() {
    for millis in [10, 20, 40, 60] {
        let mut mono = OpusConfig::mono();
        mono.frame(FrameDuration::try_from(millis).expect("one of the four"));
        judge(&format!("mono, {millis} ms"), &mixdown(mono.clone(), Mixing::Transcode));
        judge(&format!("forwarded, {millis} ms"), &mixdown(mono, Mixing::Auto));
    }
    judge("stereo", &mixdown(OpusConfig::stereo(), Mixing::Transcode));
}

#[test]
fn one_participants_file_is_clean() {
    judge("passed through", &track(Mixing::Auto));
    judge("transcoded", &track(Mixing::Transcode));
}

#[test]
fn two_uncoupled_sides_are_clean() {
    judge("both passed through", &dual(Mixing::Auto));
    judge("both transcoded", &dual(Mixing::Transcode));
}

#[test]
fn a_file_cut_after_any_page_plays() {
    let bytes = mixdown(OpusConfig::mono(), Mixing::Transcode);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut reader = PageReader::new();
    reader.push(&bytes);
    let mut pages = 0;
    while let Some(page) = reader.next_page() {
        pages += 1;
        // Without a page of sound there is nothing to play.
        if pages > 2 {
            let file = folder.path().join(format!("{pages}.ogg"));
            std::fs::write(&file, &bytes[..page.end as usize]).expect("room for a small file");
            play(&format!("{pages} pages"), &file);
        }
    }
    assert_eq!(pages, 10);
}
