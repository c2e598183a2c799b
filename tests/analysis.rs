//! Who speaks when, the waveform and the loudness, against scripts, samples and other people's programs.

mod support;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use callreel::analysis::{
    Analysis, AnalysisConfig, Findings, Loudness, LoudnessMeter, Speakers, Spoken, Waveform, webvtt,
};
use callreel::call::{Codec, TrackKey};
use callreel::capture::{Content, Settled};
use callreel::clock;
use callreel::config::OutputKind;
use callreel::encode::{OpusConfig, OpusTags};
use callreel::mix::{Mixdown, MixdownConfig, Mixing};
use callreel::recording::{Manifest, Outcome, SidecarKind};
use callreel::testkit::{Audio, TrackOptions, checkout};
use callreel::time::{MediaTime, SampleCount};
use support::{Call, SETTLE, part};

const AGENT: TrackKey = TrackKey(1);
const CALLER: TrackKey = TrackKey(2);

fn fixture(name: &str) -> Audio {
    Audio::read(checkout().join("fixtures").join(name)).unwrap()
}

/// When somebody speaks in the fixtures' conversation, in seconds; lines less than half a second apart are one.
fn script(speaker: &str) -> Vec<Range<f64>> {
    let csv = std::fs::read_to_string(checkout().join("fixtures/conversation.csv")).unwrap();
    let mut lines: Vec<Range<f64>> = Vec::new();
    for line in csv.lines() {
        let mut fields = line.split(',');
        if fields.next() == Some(speaker) {
            let mut second = || fields.next().unwrap().parse::<f64>().unwrap();
            let (from, to) = (second(), second());
            match lines.last_mut() {
                Some(last) if from - last.end < 0.5 => last.end = to,
                _ => lines.push(from..to),
            }
        }
    }
    assert!(!lines.is_empty());
    lines
}

/// A voice as packets of 20 ms.
fn packets(track: TrackKey, sound: &Audio, application: opus::Application, bitrate: i32) -> Vec<Settled> {
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, application).unwrap();
    encoder.set_bitrate(opus::Bitrate::Bits(bitrate)).unwrap();
    let encode = |(n, pcm): (i64, &[f32])| {
        let payload = Bytes::from(encoder.encode_vec_float(pcm, 1500).unwrap());
        let (start, end) = (MediaTime(n * 960), MediaTime((n + 1) * 960));
        Settled { track, start, end, content: Content::Packet { codec: Codec::Opus, payload } }
    };
    (0..).zip(sound.channel(0).chunks_exact(960)).map(encode).collect()
}

/// Mixes the fixtures' conversation down; gives the file and what was found.
fn conversation(opus: OpusConfig) -> (Vec<u8>, Findings) {
    let channels = opus.channels();
    let config = MixdownConfig { opus, tags: OpusTags::new(), serial: 1, page: SampleCount::from_millis(1000) };
    let mut mixdown = Mixdown::new(&config, Mixing::Transcode).unwrap();
    mixdown.analyse(Analysis::new(AnalysisConfig::default(), channels).unwrap());
    let side = |track, name| packets(track, &fixture(name), opus::Application::Voip, 32_000);
    let (agent, caller) = (side(AGENT, "agent.flac"), side(CALLER, "caller.flac"));
    for (agent, caller) in agent.iter().zip(&caller) {
        mixdown.push(agent).unwrap();
        mixdown.push(caller).unwrap();
        mixdown.advance(agent.end).unwrap();
    }
    // Not a whole frame.
    let total = mixdown.finish(agent.last().unwrap().end - SampleCount(333)).unwrap();
    let mut file = Vec::new();
    mixdown.take_bytes(&mut file);
    (file, mixdown.take_analysis().unwrap().finish(total))
}

fn assert_as_scripted(spoken: &Spoken, speaker: &str) {
    let found: Vec<_> = spoken.spans.iter().map(|span| span.from.as_secs_f64()..span.to.as_secs_f64()).collect();
    let expected = script(speaker);
    assert_eq!(found.len(), expected.len(), "{speaker}: {found:.3?} instead of {expected:.3?}");
    for (found, expected) in found.iter().zip(&expected) {
        let off = (found.start - expected.start).abs().max((found.end - expected.end).abs());
        assert!(off <= 0.15, "{speaker}: {found:.3?} instead of {expected:.3?}");
    }
}

/// What `ffmpeg` measures of a file.
fn ffmpegs(file: &Path) -> Loudness {
    let output = Command::new("ffmpeg")
        .args(["-hide_banner", "-nostats", "-i"])
        .arg(file)
        .args(["-filter_complex", "ebur128=peak=true", "-f", "null", "-"])
        .output()
        .expect("ffmpeg is installed");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let summary = said.rsplit("Summary:").next().unwrap_or_default();
    let figure = |key: &str| {
        let line = summary.lines().find_map(|line| line.trim().strip_prefix(key));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
    };
    let found = Loudness { integrated_lufs: figure("I:"), range_lu: figure("LRA:"), true_peak_dbtp: figure("Peak:") };
    assert!(found.integrated_lufs.is_some(), "{said}");
    found
}

fn assert_alike(ours: Loudness, theirs: Loudness, [integrated, range, peak]: [f64; 3]) {
    let near = |a: Option<f64>, b: Option<f64>, tolerance: f64| (a.unwrap() - b.unwrap()).abs() <= tolerance;
    assert!(
        near(ours.integrated_lufs, theirs.integrated_lufs, integrated)
            && near(ours.range_lu, theirs.range_lu, range)
            && near(ours.true_peak_dbtp, theirs.true_peak_dbtp, peak),
        "{ours:?}, ffmpeg {theirs:?}"
    );
}

#[test]
fn loudness_is_what_ffmpeg_measures() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("sound.wav");
    let tone = |dbfs: f64| {
        let amplitude = 10f64.powf(dbfs / 20.0);
        let sample = |n: usize| (amplitude * (n as f64 * 997.0 / 48_000.0 * std::f64::consts::TAU).sin()) as f32;
        Audio::mono((0..48_000 * 20).map(sample).collect())
    };
    let mut call = fixture("agent.flac");
    call.add(&fixture("caller.flac"), 0);
    for (sound, expected) in [(tone(-20.0), Some(-23.0)), (tone(-30.0), Some(-33.0)), (call, None)] {
        sound.write_wav(&file).unwrap();
        let mut meter = LoudnessMeter::new(1);
        sound.channel(0).chunks(960).for_each(|pcm| meter.push(pcm));
        let ours = meter.finish().unwrap();
        assert_alike(ours, ffmpegs(&file), [0.1, 0.2, 0.2]);
        if let Some(expected) = expected {
            assert!((ours.integrated_lufs.unwrap() - expected).abs() <= 0.1, "{ours:?}");
        }
    }
}

#[test]
fn a_conversation_is_told_as_it_was_scripted() {
    let (_, found) = conversation(OpusConfig::mono());
    let speakers = found.speakers.unwrap();
    assert_as_scripted(&speakers[&AGENT], "agent");
    assert_as_scripted(&speakers[&CALLER], "caller");
}

#[test]
fn packets_tell_the_same_without_a_mix() {
    for (application, bitrate) in [(opus::Application::Voip, 24_000), (opus::Application::LowDelay, 64_000)] {
        let mut speakers = Speakers::default();
        for (track, name) in [(AGENT, "agent"), (CALLER, "caller")] {
            let sound = fixture(&format!("{name}.flac"));
            packets(track, &sound, application, bitrate).iter().for_each(|stretch| speakers.seen(stretch));
            assert_as_scripted(&speakers.spoken(track, MediaTime(i64::MAX)), name);
        }
    }
}

#[test]
fn the_file_sounds_as_loud_and_looks_as_was_found() {
    let dir = tempfile::tempdir().unwrap();
    for opus in [OpusConfig::mono(), OpusConfig::stereo()] {
        let channels = opus.channels();
        let (bytes, found) = conversation(opus);
        let file = dir.path().join(format!("{channels}.ogg"));
        std::fs::write(&file, bytes).unwrap();
        // The file was coded once more; that moves peaks more than loudness.
        assert_alike(found.loudness.unwrap(), ffmpegs(&file), [0.3, 0.5, 2.0]);
        let waveform = found.waveform.unwrap();
        let played = Audio::read(&file).unwrap();
        assert_eq!(u64::from(waveform.length), (played.len() as u64).div_ceil(480));
        assert_eq!(waveform.data.len(), waveform.length as usize * 2 * channels);
        for channel in 0..channels {
            assert_looks_like(&waveform, channel, played.channel(channel));
        }
    }
}

/// The waveform lies where the sound lies: moved by a few pixels it fits worse.
fn assert_looks_like(waveform: &Waveform, channel: usize, played: &[f32]) {
    let high = |pixel: usize| {
        let value = waveform.data[(pixel * waveform.channels as usize + channel) * 2 + 1];
        f64::from(value) / 128.0
    };
    let seen: Vec<f64> = (0..waveform.length as usize).map(high).collect();
    let heard: Vec<f64> =
        played.chunks(480).map(|pixel| f64::from(pixel.iter().fold(0f32, |most, sample| most.max(*sample)))).collect();
    let apart = |shift: usize| {
        let pairs = seen.iter().skip(shift).zip(&heard);
        pairs.map(|(seen, heard)| (seen - heard).abs()).sum::<f64>() / heard.len() as f64
    };
    let loudest = heard.iter().copied().fold(0.0, f64::max);
    assert!(apart(0) < 0.05 * loudest, "{} of {loudest}", apart(0));
    assert!(apart(5) > 2.0 * apart(0), "{} and {}", apart(0), apart(5));
}

/// The cues that `ffprobe` finds: start and length in seconds, and text.
fn cues(file: &Path) -> Vec<(f64, f64, String)> {
    let probe = |args: &[&str]| {
        let output = Command::new("ffprobe").args(["-v", "error"]).args(args).arg(file).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(probe(&["-show_entries", "stream=codec_name", "-of", "csv=p=0"]).trim(), "webvtt");
    let json = probe(&["-show_packets", "-show_data", "-of", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |packet: &serde_json::Value, key: &str| packet[key].as_str().unwrap().parse::<f64>().unwrap();
    let packets = json["packets"].as_array().unwrap();
    packets.iter().map(|it| (number(it, "pts_time"), number(it, "duration_time"), text(&it["data"]))).collect()
}

/// The text in a hexadecimal dump: eight groups of four digits a line, after the offset.
fn text(dump: &serde_json::Value) -> String {
    let line = |line: &str| -> Vec<u8> {
        let digits: String = line.get(10..49).unwrap_or(line).split_whitespace().collect();
        (0..digits.len() / 2).filter_map(|n| u8::from_str_radix(&digits[2 * n..2 * n + 2], 16).ok()).collect()
    };
    let lines = dump.as_str().unwrap().lines().filter(|line| !line.is_empty());
    String::from_utf8(lines.flat_map(line).collect()).unwrap()
}

#[test]
fn another_program_reads_the_captions() {
    let (_, found) = conversation(OpusConfig::mono());
    let speakers = found.speakers.unwrap();
    let people = [(AGENT, "The Agent & <Co>"), (CALLER, "Caller")];
    let mut expected = Vec::new();
    for (track, name) in people {
        expected.extend(speakers[&track].spans.iter().map(|span| (name, *span)));
    }
    expected.sort_by_key(|(_, span)| span.from);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("call.vtt");
    std::fs::write(&file, webvtt::write(expected.iter().copied())).unwrap();
    let found = cues(&file);
    assert_eq!(found.len(), expected.len());
    for ((from, length, text), (name, span)) in found.into_iter().zip(expected) {
        let name = name.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        assert_eq!(text, format!("<v {name}>{name}</v>"));
        assert!((from - span.from.as_secs_f64()).abs() <= 0.0011, "{from} instead of {span:?}");
        assert!((length - span.len().as_secs_f64()).abs() <= 0.0011, "{length} instead of {span:?}");
    }
}

/// Who spoke when, in seconds.
fn speech(manifest: &Manifest, who: &str) -> Vec<Range<f64>> {
    let said = manifest.speech.iter().filter(|said| said.participant == who);
    said.map(|said| said.from_sample.as_secs_f64()..said.to_sample.as_secs_f64()).collect()
}

#[tokio::test]
async fn a_recorded_call_tells_who_spoke_when_and_how_loud_it_was() {
    for outputs in [vec![OutputKind::Mix], vec![OutputKind::Tracks]] {
        let mixed = outputs.contains(&OutputKind::Mix);
        let call = Call::begin_with(|config| config.outputs = outputs).await;
        let (alice, bob) = (call.join("alice").await, call.join("bob").await);
        // One line of each side, from its first sound on.
        let (hers, his) = (part(&fixture("agent.flac"), 500, 6_000), part(&fixture("caller.flac"), 6_053, 9_300));
        let start = clock::now() + 2 * SETTLE;
        let hers_at = TrackOptions::default().start(start);
        let his_at = TrackOptions::default().start(start + Duration::from_secs(3));
        let hers = alice.publish(hers, hers_at).await.unwrap();
        let his = bob.publish(his, his_at).await.unwrap();
        hers.said().await.unwrap();
        his.said().await.unwrap();
        // So that nothing of it is under way at the stop.
        his.sent_at_least(his.sent().len() + 50).await.unwrap();
        let recorded = call.stop().await;

        let manifest = &recorded.manifest;
        assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
        let captions = cues(&recorded.sidecar(SidecarKind::Speakers).unwrap());
        assert_eq!(captions.len(), 2, "{captions:?}");
        for (who, at, seconds) in [("alice", hers.start(), 5.153), ("bob", his.start(), 3.122)] {
            let [found] = speech(manifest, who).try_into().unwrap_or_else(|all| panic!("{who}: {all:?}"));
            let from = (at - recorded.zero).as_secs_f64();
            let off = (found.start - from).abs().max((found.end - from - seconds).abs());
            assert!(off <= 0.15, "{who}: {found:.3?} instead of {from:.3} for {seconds} s; mixed: {mixed}");
            let spoke = manifest.participants.iter().find(|entry| entry.identity == who).unwrap().speaking_seconds;
            assert!((spoke.unwrap() - (found.end - found.start)).abs() < 1e-6, "{spoke:?}");
            let cue = captions.iter().find(|(.., text)| *text == format!("<v {who}>{who}</v>")).unwrap();
            assert!((cue.0 - found.start).abs() <= 0.001, "{cue:?} {found:?}");
        }
        if !mixed {
            assert_eq!((manifest.loudness, recorded.sidecar(SidecarKind::Peaks)), (None, None));
            continue;
        }
        let file = Path::new(&recorded.result.outputs[0].location);
        assert_alike(manifest.loudness.unwrap(), ffmpegs(file), [0.3, 1.0, 2.0]);
        let waveform = std::fs::read(recorded.sidecar(SidecarKind::Peaks).unwrap()).unwrap();
        let waveform: Waveform = serde_json::from_slice(&waveform).unwrap();
        assert_eq!((waveform.version, waveform.bits, waveform.sample_rate), (2, 8, 48_000));
        assert_eq!(u64::from(waveform.length), manifest.samples.0.div_ceil(u64::from(waveform.samples_per_pixel)));
        let played = recorded.audio.slice(0..manifest.samples.0 as usize);
        assert_looks_like(&waveform, 0, played.channel(0));
    }
}
