//! Independent programs judge WebM and MP4: `ffmpeg`, `ffprobe`, `mkvinfo`, `mkvmerge`.

use std::path::Path;
use std::process::{Command, Output};

use callreel::encode::mp4::{Mp4Reader, Mp4Writer, Progressive, faststart};
use callreel::encode::webm::{WebmReader, WebmWriter};
use callreel::encode::{
    ContainerProblem, Contents, Mapping, OggInspector, OggOpusWriter, OpusHead, OpusTags, packet, patch,
};
use callreel::time::SampleCount;

const PRE_SKIP: u16 = 312;
const TRIM: u64 = 100;
/// Samples that the encoders are given: 7.2 s, a multiple of every frame duration.
const CODED: usize = 345_600;

struct Call {
    name: &'static str,
    mapping: Mapping,
    packets: Vec<Vec<u8>>,
}

fn voice(channels: opus::Channels, frame: usize, step: f32) -> Vec<Vec<u8>> {
    let mut encoder = opus::Encoder::new(48_000, channels, opus::Application::Voip).expect("48 kHz");
    let count = channels as usize;
    let mut buffer = [0; 4000];
    (0..CODED / frame)
        .map(|n| {
            let at = |k: usize| (n * frame + k / count) as f32 * step * (1.0 + 0.3 * (k % count) as f32);
            let pcm: Vec<f32> = (0..frame * count).map(|k| 0.3 * at(k).sin()).collect();
            let length = encoder.encode_float(&pcm, &mut buffer).expect("a frame");
            buffer[..length].to_vec()
        })
        .collect()
}

fn calls() -> Vec<Call> {
    let (left, right) = (voice(opus::Channels::Mono, 960, 0.05), voice(opus::Channels::Mono, 960, 0.03));
    let joined = left.iter().zip(&right).map(|(left, right)| {
        let mut both = Vec::new();
        packet::join_streams(left, right, &mut both).expect("equally long");
        both
    });
    vec![
        Call { name: "two-mono", mapping: Mapping::TwoMono, packets: joined.collect() },
        Call { name: "mono", mapping: Mapping::Mono, packets: left },
        Call { name: "stereo", mapping: Mapping::Stereo, packets: voice(opus::Channels::Stereo, 960, 0.05) },
        Call { name: "60ms", mapping: Mapping::Mono, packets: voice(opus::Channels::Mono, 2880, 0.05) },
        Call { name: "2.5ms", mapping: Mapping::Mono, packets: voice(opus::Channels::Mono, 120, 0.05) },
    ]
}

fn total() -> SampleCount {
    SampleCount(CODED as u64 - u64::from(PRE_SKIP) - TRIM)
}

fn tags() -> OpusTags {
    let mut tags = OpusTags::new();
    for (name, value) in
        [("TITLE", "a room"), ("ARTIST", "Zoë"), ("DATE", "2026-01-02T03:04:05Z"), ("ROOM_SID", "RM_1")]
    {
        tags.comment(name, value).expect("a plain name");
    }
    tags
}

macro_rules! written {
    ($writer:expr, $call:expr) => {{
        let mut writer = $writer.expect("possible");
        for packet in &$call.packets {
            writer.write_packet(packet, packet::samples(packet).expect("a packet")).expect("fits");
        }
        let rest = writer.finish(total()).expect("ends");
        let mut bytes = Vec::new();
        writer.take_bytes(&mut bytes);
        (bytes, rest)
    }};
}

fn ogg(call: &Call) -> Vec<u8> {
    written!(OggOpusWriter::new(OpusHead::new(call.mapping, PRE_SKIP), &tags(), 7, SampleCount(48_000)), call).0
}

/// Every kind of file there is of a call, under its name.
fn files(call: &Call) -> Vec<(String, Vec<u8>)> {
    let head = OpusHead::new(call.mapping, PRE_SKIP);
    let (mut webm, webm_patches) = written!(WebmWriter::new(&head, &tags(), SampleCount::from_millis(250)), call);
    let (mut mp4, mp4_patches) = written!(Mp4Writer::new(&head, &tags(), SampleCount::from_millis(500)), call);
    let name = |kind: &str| format!("{}-{kind}", call.name);
    let mut files = vec![(name("live.webm"), webm.clone()), (name("live.mp4"), mp4.clone())];
    assert!(patch::apply(&webm_patches, &mut webm) && patch::apply(&mp4_patches, &mut mp4));
    let mut index = Progressive::new(&head, &tags()).expect("possible");
    for packet in &call.packets {
        index.add(packet, packet::samples(packet).expect("a packet")).expect("right");
    }
    let mut progressive = index.finish(total()).expect("ends").bytes;
    call.packets.iter().for_each(|packet| progressive.extend_from_slice(packet));
    files.extend([(name("done.webm"), webm), (name("done.mp4"), mp4), (name("front.mp4"), progressive)]);
    files
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The samples that ffmpeg decodes, without a complaint.
fn decoded(file: &Path, channels: u8) -> Vec<i16> {
    let name = file.to_str().expect("plain");
    let output = run("ffmpeg", &["-nostdin", "-v", "warning", "-i", name, "-f", "s16le", "-"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{name}: {}", text(&output.stderr));
    let samples: Vec<i16> = output.stdout.chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
    assert_eq!(samples.len() % usize::from(channels), 0);
    samples
}

fn probe(file: &Path) -> serde_json::Value {
    let name = file.to_str().expect("plain");
    let output = run("ffprobe", &["-v", "warning", "-show_format", "-show_streams", "-of", "json", name]);
    assert!(output.stderr.is_empty(), "{name}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn number(value: &serde_json::Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

#[test]
fn ffmpeg_decodes_the_same_samples_as_from_ogg() {
    let folder = tempfile::tempdir().expect("a folder");
    for call in calls() {
        let channels = call.mapping.channels();
        let reference = folder.path().join("reference.ogg");
        std::fs::write(&reference, ogg(&call)).expect("room");
        let expected = decoded(&reference, channels);
        assert_eq!(expected.len() as u64, total().0 * u64::from(channels));
        for (name, bytes) in files(&call) {
            let file = folder.path().join(&name);
            std::fs::write(&file, bytes).expect("room");
            let got = decoded(&file, channels);
            assert!(got.len() >= expected.len() && got[..expected.len()] == expected, "{name}: other samples");
            // ffmpeg 5.1 does not drop the end of the last packet of MP4, whoever wrote it.
            let more = if name.ends_with("mp4") { TRIM } else { 0 };
            assert_eq!(got.len() as u64, (total().0 + more) * u64::from(channels), "{name}");
        }
    }
}

#[test]
fn ffprobe_tells_duration_start_and_tags() {
    let folder = tempfile::tempdir().expect("a folder");
    for call in calls() {
        for (name, bytes) in files(&call) {
            let file = folder.path().join(&name);
            std::fs::write(&file, bytes).expect("room");
            let found = probe(&file);
            let (duration, start) = (number(&found["format"]["duration"]), number(&found["format"]["start_time"]));
            println!("{name}: duration {duration}, start {start}");
            if !name.ends_with("live.webm") {
                assert!((duration - total().as_secs_f64()).abs() < 0.02, "{name}: {duration} s");
            }
            // ffmpeg lets the pre-skip lie before 0 in WebM, whoever wrote it, and in fragments with an edit list.
            let expected = if name.ends_with("front.mp4") { 0.0 } else { -0.0065 };
            assert!((start - expected).abs() < 0.001, "{name}: starts at {start} s");
            let tag = |name: &str| {
                let tags = found["format"]["tags"].as_object().expect("tags");
                tags.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
            };
            assert_eq!(tag("title"), Some("a room".into()), "{name}");
            assert_eq!(tag("artist"), Some("Zoë".into()), "{name}");
            assert_eq!(tag("date"), Some("2026-01-02T03:04:05Z".into()), "{name}");
            assert_eq!(tag("room_sid"), Some("RM_1".into()), "{name}");
            assert_eq!(found["streams"][0]["channels"], call.mapping.channels(), "{name}");
        }
    }
}

/// AAC in MP4 of interleaved sound, as it grows, at its end, and with its index in front.
#[cfg(feature = "aac")]
fn aac_files(mapping: Mapping, pcm: &[f32]) -> Vec<(&'static str, Vec<u8>)> {
    let head = OpusHead::new(mapping, PRE_SKIP);
    let fragment = SampleCount::from_millis(500);
    let mut writer = callreel::encode::Mp4AacWriter::new(&head, &tags(), fragment).expect("possible");
    writer.write(pcm).expect("fits");
    let patches = writer.finish(SampleCount(pcm.len() as u64 / u64::from(mapping.channels()))).expect("ends");
    let mut live = Vec::new();
    writer.take_bytes(&mut live);
    let (mut done, mut front) = (live.clone(), Vec::new());
    assert!(patch::apply(&patches, &mut done));
    faststart(&mut std::io::Cursor::new(&done), &mut front).expect("copies");
    vec![("live.mp4", live), ("done.mp4", done), ("front.mp4", front)]
}

/// Other noise on each side, which is only like itself at one place.
#[cfg(feature = "aac")]
fn aac_sound(channels: usize, samples: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(4);
    let mut smooth = vec![0.0; channels];
    (0..samples * channels)
        .map(|n| {
            let side = &mut smooth[n % channels];
            *side += 0.2 * (random.f32() - 0.5 - *side);
            *side
        })
        .collect()
}

/// How far `found` is behind `expected` at `at`, by the likeness of 100 ms, and how alike they are.
#[cfg(feature = "aac")]
fn place(expected: &[f32], found: &[f32], at: usize) -> (i64, f32) {
    let piece = &expected[at..at + 4_800];
    let likeness = |from: usize| {
        let other = found.get(from..from + 4_800)?;
        let sum = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        Some(sum(piece, other) / (sum(piece, piece) * sum(other, other)).sqrt())
    };
    let places = (at.saturating_sub(1_200)..at + 1_200).filter_map(|from| Some((from, likeness(from)?)));
    let (from, likeness) = places.max_by(|a, b| a.1.total_cmp(&b.1)).expect("long enough");
    (from as i64 - at as i64, likeness)
}

#[cfg(feature = "aac")]
#[test]
fn aac_plays_from_its_first_sample_to_its_last() {
    let folder = tempfile::tempdir().expect("a folder");
    for (mapping, samples) in [(Mapping::Mono, 48_000), (Mapping::Stereo, 480_001), (Mapping::TwoMono, 100_000)] {
        let channels = usize::from(mapping.channels());
        let pcm = aac_sound(channels, samples);
        for (name, bytes) in aac_files(mapping, &pcm) {
            let file = folder.path().join(name);
            std::fs::write(&file, bytes).expect("room");
            let heard = decoded(&file, mapping.channels());
            // ffmpeg plays the last packet whole, and of an unfinished file the one before the sound.
            let before = if name == "live.mp4" { 1_024 } else { 0 };
            let longer = heard.len() / channels - samples;
            assert!((before..before + 1_024).contains(&longer), "{mapping:?} {name}: {longer} longer");
            for side in 0..channels {
                let expected: Vec<f32> = pcm.iter().skip(side).step_by(channels).copied().collect();
                let found: Vec<f32> = heard.iter().skip(side).step_by(channels).map(|n| f32::from(*n)).collect();
                for at in [0, samples / 2, samples - 4_800] {
                    let (off, likeness) = place(&expected, &found, at);
                    println!("{mapping:?} {name} at {at}: {off} samples off, likeness {likeness:.3}");
                    assert!(off == before as i64 && likeness > 0.9, "{mapping:?} {name} at {at}: {off}, {likeness}");
                }
            }
            let found = probe(&file);
            let duration = number(&found["format"]["duration"]) - samples as f64 / 48e3;
            // It counts the packet before the sound where that is in a fragment.
            let expected = if name == "front.mp4" { 0.0 } else { 1024.0 / 48e3 };
            assert!((duration - expected).abs() < 0.001, "{mapping:?} {name}: {duration} s more");
            assert_eq!(found["format"]["tags"]["title"], "a room", "{name}");
            let stream = &found["streams"][0];
            assert_eq!((&stream["codec_name"], &stream["profile"]), (&"aac".into(), &"LC".into()), "{name}");
            assert_eq!(stream["channels"], channels, "{name}");
        }
    }
}

#[cfg(feature = "aac")]
#[test]
fn a_prefix_of_aac_plays_to_its_last_whole_fragment() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cut.mp4");
    let path = file.to_str().expect("plain");
    let mut random = fastrand::Rng::with_seed(6);
    let files = aac_files(Mapping::Mono, &aac_sound(1, 480_000));
    for (name, bytes) in files.iter().filter(|(name, _)| *name != "front.mp4") {
        for _ in 0..20 {
            let cut = random.usize(8_000..bytes.len());
            let (_, found) = read(name, &bytes[..cut], 4096);
            std::fs::write(&file, &bytes[..found.whole as usize]).expect("room");
            let output = run("ffmpeg", &["-nostdin", "-v", "error", "-i", path, "-f", "s16le", "-"]);
            assert!(output.status.success() && output.stderr.is_empty(), "{cut}: {}", text(&output.stderr));
            let longer = output.stdout.len() as i64 / 2 - found.total.0 as i64;
            assert!((0..=2_048).contains(&longer), "{name} cut at {cut}: {longer} longer than {:?}", found.total);
        }
    }
}

#[test]
fn aac_of_others_is_understood() {
    let folder = tempfile::tempdir().expect("a folder");
    for (options, rate, channels, samples) in [
        ("-ac 1", 48_000, 1, 96_000),
        ("-ac 2 -ar 44100", 44_100, 2, 96_000),
        ("-ac 2 -movflags +faststart", 48_000, 2, 96_000),
        ("-ac 1 -movflags +empty_moov+frag_keyframe+default_base_moof -frag_duration 500000", 48_000, 1, 96_000),
    ] {
        let file = folder.path().join("call.mp4");
        let mut arguments =
            vec!["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "sine=duration=2:sample_rate=48000"];
        arguments.extend(["-c:a", "aac", "-metadata", "title=a room"].into_iter().chain(options.split_whitespace()));
        arguments.push(file.to_str().expect("plain"));
        let output = run("ffmpeg", &arguments);
        assert!(output.status.success(), "{options}: {}", text(&output.stderr));
        let bytes = std::fs::read(&file).expect("written");
        let (packets, found) = read("call.mp4", &bytes, 1 << 14);
        println!("{options}: {} packets, {:?}, {:?}", packets.len(), found.total, found.problems);
        let aac = found.aac.expect("a track of AAC");
        assert_eq!((aac.object_type, aac.rate, aac.channels), (2, rate, channels), "{options}");
        assert!(found.total.0.abs_diff(samples) <= 1_024, "{options}: {:?}", found.total);
        assert_eq!(found.tags.as_ref().and_then(|tags| tags.get("TITLE")), Some("a room"), "{options}");
        assert_eq!(found.packets, packets.len() as u64);
        let copied = faststart(&mut std::io::Cursor::new(&bytes), &mut Vec::new());
        assert_eq!(copied.is_ok(), rate == 48_000, "{options}: {copied:?}");
    }
}

#[test]
fn mkvtoolnix_has_no_warnings() {
    let folder = tempfile::tempdir().expect("a folder");
    for call in calls() {
        for (name, bytes) in files(&call).into_iter().filter(|(name, _)| name.ends_with("webm")) {
            let file = folder.path().join(&name);
            std::fs::write(&file, bytes).expect("room");
            let (file, copy) = (file.to_str().expect("plain"), folder.path().join("copy.mkv"));
            let copy = copy.to_str().expect("plain");
            for (program, arguments) in
                [("mkvinfo", vec!["-v", file]), ("mkvmerge", vec!["-i", file]), ("mkvmerge", vec!["-o", copy, file])]
            {
                let output = run(program, &arguments);
                let said = text(&output.stdout) + &text(&output.stderr);
                assert!(output.status.success(), "{name} {program}: {said}");
                let lower = said.to_lowercase();
                assert!(!lower.contains("warning") && !lower.contains("error"), "{said}");
            }
        }
    }
}

#[test]
fn a_prefix_plays_to_its_last_whole_unit() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut random = fastrand::Rng::with_seed(9);
    let call = &calls()[1];
    let mut refused = 0;
    for (name, bytes) in files(call).into_iter().filter(|(name, _)| !name.contains("front")) {
        for _ in 0..20 {
            let cut = random.usize(6000..bytes.len());
            let file = folder.path().join(&name);
            std::fs::write(&file, &bytes[..cut]).expect("room");
            let path = file.to_str().expect("plain");
            let output = run("ffmpeg", &["-nostdin", "-v", "error", "-i", path, "-f", "s16le", "-"]);
            let said = text(&output.stderr);
            let samples = output.stdout.len() as u64 / 2;
            let (_, found) = read(&name, &bytes[..cut], 4096);
            let whole = found.coded.0 - u64::from(PRE_SKIP);
            // ffmpeg plays whole packets of the torn unit too. It refuses any MP4 file that is cut inside a `moof` box.
            if said.contains("error reading header") {
                let torn = &bytes[found.whole as usize..];
                let moof = u32::from_be_bytes([torn[0], torn[1], torn[2], torn[3]]) as usize;
                assert!(&torn[4..8] == b"moof" && cut - (found.whole as usize) < moof, "{name} cut at {cut}: {said}");
                refused += 1;
            } else {
                assert!(output.status.success(), "{name} cut at {cut}: {said}");
                assert!(
                    said.lines().all(|line| line.is_empty()
                        || line.contains("partial file")
                        || line.contains("ended prematurely")),
                    "{name}: {said}"
                );
                assert!((whole..whole + 25_000).contains(&samples), "{name} cut at {cut}: {samples} of {whole}");
            }
            // Cut to what its reader calls whole, it plays exactly that.
            std::fs::write(&file, &bytes[..found.whole as usize]).expect("room");
            let output = run("ffmpeg", &["-nostdin", "-v", "error", "-i", path, "-f", "s16le", "-"]);
            assert_eq!(output.stdout.len() as u64 / 2, whole, "{name} whole {}", found.whole);
            let said = text(&output.stderr);
            // The patched segment's size is that of the whole file.
            let known = name.ends_with("done.webm") && said.contains("ended prematurely");
            assert!(output.status.success() && (said.is_empty() || known), "{name} whole {}: {said}", found.whole);
        }
    }
    assert!(refused < 10, "{refused} of 40");
}

fn read(name: &str, bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Contents) {
    let mut packets = Vec::new();
    let mut keep = |packet: &[u8], _| packets.push(packet.to_vec());
    if name.ends_with("webm") || name.ends_with("mkv") {
        let mut reader = WebmReader::new();
        bytes.chunks(piece).for_each(|piece| reader.push_each(piece, &mut keep));
        return (packets, reader.finish());
    }
    let mut reader = Mp4Reader::new();
    bytes.chunks(piece).for_each(|piece| reader.push_each(piece, &mut keep));
    if let Some(mut second) = reader.second_reading() {
        bytes.chunks(piece).for_each(|piece| second.push_each(piece, &mut keep));
        reader = second;
    }
    (packets, reader.finish())
}

#[test]
fn lacing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, laced) = (folder.path().join("call.ogg"), folder.path().join("laced.mkv"));
    std::fs::write(&source, ogg(&calls()[1])).expect("room");
    run("mkvmerge", &["-q", "-o", laced.to_str().expect("plain"), source.to_str().expect("plain")]);
    let (_, found) = read("laced.mkv", &std::fs::read(&laced).expect("written"), 4096);
    let named = |problem: &&ContainerProblem| matches!(problem, ContainerProblem::Unsupported { feature: "lacing" });
    assert_eq!(found.problems.iter().filter(named).count(), 1, "{:?}", found.problems);
}

#[test]
fn files_of_ffmpeg_and_mkvmerge_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    for call in calls() {
        let reference = folder.path().join("reference.ogg");
        let bytes = ogg(&call);
        std::fs::write(&reference, &bytes).expect("room");
        let mut expected = Vec::new();
        OggInspector::new().push_each(&bytes, &mut |packet| expected.push(packet.to_vec()));
        let reference = reference.to_str().expect("plain");
        for (name, options) in [
            ("plain.webm", ""),
            ("live.webm", "-live 1"),
            ("plain.mkv", ""),
            ("plain.mp4", ""),
            ("faststart.mp4", "-movflags +faststart"),
            ("fragments.mp4", "-movflags +empty_moov+frag_keyframe+default_base_moof -frag_duration 500000"),
            ("old-fragments.mp4", "-movflags +empty_moov+frag_keyframe -frag_duration 500000"),
            ("hybrid.mp4", "-movflags +frag_keyframe -frag_duration 500000"),
            ("merged.mkv", "mkvmerge"),
        ] {
            let file = folder.path().join(name);
            let path = file.to_str().expect("plain");
            let output = if options == "mkvmerge" {
                run("mkvmerge", &["-q", "-o", path, "--disable-lacing", reference])
            } else {
                let mut arguments =
                    vec!["-nostdin", "-v", "error", "-y", "-i", reference, "-c", "copy", "-map_metadata", "0:s:0"];
                arguments.extend(options.split_whitespace().chain([path]));
                run("ffmpeg", &arguments)
            };
            assert!(output.status.success(), "{name}: {}", text(&output.stderr));
            let bytes = std::fs::read(&file).expect("written");
            let (packets, found) = read(name, &bytes, 1 << 14);
            println!(
                "{} {name}: {:?} total {:?} duration {:?}",
                call.name, found.problems, found.total, found.duration
            );
            assert!(packets == expected, "{} {name}: {} packets, {:?}", call.name, packets.len(), found.problems);
            assert_eq!(found.head.map(|head| (head.mapping, head.pre_skip)), Some((call.mapping, PRE_SKIP)), "{name}");
            // mkvmerge makes the title of an Ogg file the track's name.
            if name != "merged.mkv" {
                assert_eq!(found.tags.as_ref().and_then(|tags| tags.get("TITLE")), Some("a room"), "{name}");
            }
            if name.ends_with("mp4") {
                let mut copy = Vec::new();
                let again = faststart(&mut std::io::Cursor::new(&bytes), &mut copy).expect("copies");
                assert_eq!(again.packets, found.packets);
                let (copied, _) = read("copy.mp4", &copy, 1 << 14);
                // ffmpeg rounds the edit down to a millisecond, which may be where the last packet begins.
                assert!(expected.starts_with(&copied) && copied.len() + 1 >= expected.len(), "{name}");
            }
        }
    }
}
