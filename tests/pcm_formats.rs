//! WAVE, FLAC and MP3 as other programs see them: ffmpeg, sox, flac, lame, mp3val.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use callreel::encode::AudioReader;
use callreel::encode::FlacWriter;
use callreel::encode::WavWriter;
use callreel::encode::patch::Patch;
use callreel::encode::{Application, Mapping, OggOpusWriter, OpusConfig, OpusEncoder, OpusHead, OpusTags};
use callreel::encode::{Depth, PcmDecoder};
#[cfg(feature = "mp3")]
use callreel::encode::{Mp3Rate, Mp3Writer};
use callreel::time::SampleCount;
use tempfile::TempDir;

/// Not a whole number of frames of any format.
const TOTAL: usize = 5 * 48_000 + 1234;

fn tags() -> OpusTags {
    let mut tags = OpusTags::new();
    for (name, value) in [
        ("TITLE", "Küche"),
        ("ARTIST", "Anna"),
        ("DATE", "2026-11-22T12:00:00Z"),
        ("ENCODER", "callreel test"),
        ("DESCRIPTION", "a call"),
        ("ROOM_SID", "RM_1"),
    ] {
        tags.comment(name, value).unwrap();
    }
    tags
}

/// Words of a wandering pitch with pauses between them, different in each channel.
fn speech(channels: usize, samples: usize) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(5);
    let mut phases = vec![0.0f32; channels];
    let mut pcm = Vec::with_capacity(channels * samples);
    for n in 0..samples {
        for (channel, phase) in phases.iter_mut().enumerate() {
            let t = n as f32 / 48_000.0;
            let pitch = 140.0 + 90.0 * channel as f32 + 40.0 * (t * 2.3 + channel as f32).sin();
            *phase += pitch / 48_000.0;
            let loud = (t * 7.0 + 2.0 * channel as f32).sin().max(0.0);
            let voice: f32 = (1..8).map(|k| (std::f32::consts::TAU * *phase * k as f32).sin() / k as f32).sum();
            pcm.push(0.2 * loud * voice + 0.004 * (random.f32() - 0.5));
        }
    }
    pcm
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Wav(Depth),
    Flac(Depth),
    #[cfg(feature = "mp3")]
    Mp3(Mp3Rate),
}

impl Format {
    fn extension(self) -> &'static str {
        match self {
            Self::Wav(_) => "wav",
            Self::Flac(_) => "flac",
            #[cfg(feature = "mp3")]
            Self::Mp3(_) => "mp3",
        }
    }
}

/// The bytes as they leave the writer, and what would be put in at the end.
fn written(format: Format, mapping: Mapping, pcm: &[f32]) -> (Vec<u8>, Vec<Patch>) {
    let head = OpusHead::new(mapping, 312);
    let total = SampleCount(pcm.len() as u64 / u64::from(mapping.channels()));
    let mut bytes = Vec::new();
    macro_rules! write {
        ($writer:expr) => {{
            let mut writer = $writer.unwrap();
            writer.take_bytes(&mut bytes);
            for piece in pcm.chunks(5001) {
                writer.write(piece).unwrap();
                writer.take_bytes(&mut bytes);
            }
            let patches = writer.finish(total).unwrap();
            writer.take_bytes(&mut bytes);
            patches
        }};
    }
    let patches = match format {
        Format::Wav(depth) => write!(WavWriter::new(&head, &tags(), depth)),
        Format::Flac(depth) => write!(FlacWriter::new(&head, &tags(), depth)),
        #[cfg(feature = "mp3")]
        Format::Mp3(rate) => write!(Mp3Writer::new(&head, &tags(), rate)),
    };
    (bytes, patches)
}

fn patched(bytes: &[u8], patches: &[Patch]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for patch in patches {
        let at = patch.offset as usize;
        assert!(at + patch.bytes.len() <= 64 * 1024);
        bytes[at..at + patch.bytes.len()].copy_from_slice(&patch.bytes);
    }
    bytes
}

fn put(dir: &TempDir, name: &str, format: Format, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name).with_extension(format.extension());
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Runs a program that has to succeed.
fn run(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What ffmpeg makes of it, in 32-bit floats, and what it complains about.
fn by_ffmpeg(path: &Path) -> (Vec<f32>, String) {
    // Its own Opus decoder is late by other amounts than libopus.
    let decoder: &[&str] = if path.extension().unwrap() == "ogg" { &["-c:a", "libopus"] } else { &[] };
    let rest = ["-i", path.to_str().unwrap(), "-f", "f32le", "-"];
    let output = run("ffmpeg", &[&["-v", "warning"][..], decoder, &rest].concat());
    let pcm = output.stdout.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect();
    // Told of every raw mono stream; nothing is wrong with it.
    let complaints = text(&output.stderr).lines().filter(|line| !line.starts_with("Guessed")).collect();
    (pcm, complaints)
}

/// Checks duration and tags by ffprobe.
fn probe(path: &Path, samples: usize) {
    let arguments = ["-v", "warning", "-show_entries", "format=duration:format_tags", "-of", "default=nw=1"];
    let output = run("ffprobe", &[&arguments[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(text(&output.stderr), "", "{}", path.display());
    let found = text(&output.stdout).to_lowercase();
    let value = |key: &str| {
        let line = found.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_else(|| panic!("{key} is missing in {found}")).to_owned()
    };
    // Of MP3 it tells what is coded, although it plays without the padding.
    let padding = if path.extension().unwrap() == "mp3" { 3.0 * 1152.0 / 48_000.0 } else { 0.0 };
    let more = value("duration").parse::<f64>().unwrap() - samples as f64 / 48_000.0;
    assert!((-1e-4..=padding + 1e-4).contains(&more), "{found}");
    assert_eq!([value("tag:title"), value("tag:artist")], ["küche", "anna"], "{found}");
    assert!(value("tag:date").starts_with("2026-11-22t12:00:00"), "{found}");
    assert!(value("tag:encoder").starts_with("callreel"), "{found}");
    assert!(found.contains("a call"), "{found}");
    if path.extension().unwrap() != "wav" {
        assert_eq!(value("tag:room_sid"), "rm_1");
    }
}

/// How many samples later than `sent` the same sound is in `got`, and how alike they are there (1 for the same).
fn offset(sent: &[f32], got: &[f32]) -> (isize, f32) {
    const REACH: usize = 2500;
    let (from, length) = (48_000, 24_000);
    let piece = &sent[from..from + length];
    let energy = |pcm: &[f32]| pcm.iter().map(|s| s * s).sum::<f32>();
    let likeness = |at: usize| {
        let other = &got[at..at + length];
        let product: f32 = piece.iter().zip(other).map(|(a, b)| a * b).sum();
        product / (energy(piece) * energy(other)).sqrt().max(1e-12)
    };
    let best = (from - REACH..from + REACH).max_by(|a, b| likeness(*a).total_cmp(&likeness(*b))).unwrap();
    (best as isize - from as isize, likeness(best))
}

fn channel(pcm: &[f32], channel: usize, channels: usize) -> Vec<f32> {
    pcm.iter().skip(channel).step_by(channels).copied().collect()
}

const LOSSLESS: [Format; 4] =
    [Format::Wav(Depth::Bits16), Format::Wav(Depth::Bits24), Format::Flac(Depth::Bits16), Format::Flac(Depth::Bits24)];

#[test]
fn wave_and_flac_are_exact_and_clean_to_all_judges() {
    let dir = TempDir::new().unwrap();
    for format in LOSSLESS {
        for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
            let channels = usize::from(mapping.channels());
            let pcm = speech(channels, TOTAL);
            let (bytes, patches) = written(format, mapping, &pcm);
            let depth = match format {
                Format::Wav(depth) | Format::Flac(depth) => depth,
                #[cfg(feature = "mp3")]
                Format::Mp3(_) => unreachable!(),
            };
            let scale = 0.5f32.powi(i32::from(depth.bits()) - 1);
            let expected: Vec<f32> = pcm.iter().map(|s| depth.quantise(*s) as f32 * scale).collect();

            let path = put(&dir, "whole", format, &patched(&bytes, &patches));
            probe(&path, TOTAL);
            let (got, complaints) = by_ffmpeg(&path);
            assert_eq!(complaints, "");
            assert!(got == expected, "{format:?} {mapping:?}");
            let name = path.to_str().unwrap();
            let sox = run("soxi", &["-s", name]);
            assert_eq!((text(&sox.stdout).trim(), text(&sox.stderr).trim()), (&*TOTAL.to_string(), ""));
            if let Format::Flac(_) = format {
                let verdict = run("flac", &["-t", "-w", name]);
                assert!(!text(&verdict.stderr).contains("WARNING"), "{}", text(&verdict.stderr));
            }

            let path = put(&dir, "unfinished", format, &bytes);
            let (got, _) = by_ffmpeg(&path);
            // Where the length is not told, ffmpeg takes the byte that makes the number even for a part of a sample.
            assert!(got == expected, "unfinished {format:?} {mapping:?}");
            let raw = run("sox", &[path.to_str().unwrap(), "-t", "raw", "-e", "signed", "-b", "32", "-"]);
            assert_eq!(raw.stdout.len(), TOTAL * channels * 4);
        }
    }
}

#[cfg(feature = "mp3")]
const RATES: [Mp3Rate; 4] = [Mp3Rate::Constant(48), Mp3Rate::Constant(128), Mp3Rate::Variable(2), Mp3Rate::Variable(6)];

#[cfg(feature = "mp3")]
#[test]
fn mp3_is_gapless_and_clean_to_all_judges() {
    let dir = TempDir::new().unwrap();
    for rate in RATES {
        for mapping in [Mapping::Mono, Mapping::Stereo, Mapping::TwoMono] {
            let format = Format::Mp3(rate);
            let channels = usize::from(mapping.channels());
            let pcm = speech(channels, TOTAL);
            let (bytes, patches) = written(format, mapping, &pcm);
            let whole = patched(&bytes, &patches);
            let path = put(&dir, "whole", format, &whole);
            probe(&path, TOTAL);
            let name = path.to_str().unwrap();
            let verdict = run("mp3val", &[name]);
            assert!(!text(&verdict.stdout).contains("WARNING"), "{}", text(&verdict.stdout));

            let decoded = dir.path().join("lame.wav");
            run("lame", &["--quiet", "--decode", name, decoded.to_str().unwrap()]);
            let mut ours = Vec::new();
            let mut reader = AudioReader::new(&whole[..]).unwrap();
            while reader.read(&mut ours).unwrap() > 0 {}
            assert_eq!(reader.problems(), []);
            let (by_ffmpeg, complaints) = by_ffmpeg(&path);
            assert_eq!(complaints, "");
            for (who, got) in [("ffmpeg", &by_ffmpeg), ("lame", &self::by_ffmpeg(&decoded).0), ("us", &ours)] {
                assert_eq!(got.len(), TOTAL * channels, "{who} {rate:?} {mapping:?}");
                for n in 0..channels {
                    let (offset, likeness) = offset(&channel(&pcm, n, channels), &channel(got, n, channels));
                    assert!(offset == 0 && likeness > 0.99, "{who} {rate:?} {mapping:?}: {offset} {likeness}");
                }
            }
            // Ours is no other decoder's sound.
            let worst = ours.iter().zip(&by_ffmpeg).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(worst < 1e-3, "{worst}");
        }
    }
}

#[cfg(feature = "mp3")]
#[test]
fn an_unfinished_mp3_begins_at_the_right_sample_or_a_frame_late() {
    let dir = TempDir::new().unwrap();
    for rate in RATES {
        let pcm = speech(1, TOTAL);
        let (bytes, _) = written(Format::Mp3(rate), Mapping::Mono, &pcm);
        let path = put(&dir, "unfinished", Format::Mp3(rate), &bytes);
        let verdict = run("mp3val", &[path.to_str().unwrap()]);
        assert!(!text(&verdict.stdout).contains("WARNING"), "{}", text(&verdict.stdout));
        let decoded = dir.path().join("lame.wav");
        run("lame", &["--quiet", "--decode", path.to_str().unwrap(), decoded.to_str().unwrap()]);
        // Where the first frame tells no number of frames, others play it, too: at most a frame of silence.
        for (who, got) in [("ffmpeg", by_ffmpeg(&path).0), ("lame", by_ffmpeg(&decoded).0)] {
            let (offset, likeness) = offset(&pcm, &got);
            assert!((0..=1152).contains(&offset) && likeness > 0.99, "{who} {rate:?}: {offset} {likeness}");
            assert!((TOTAL..TOTAL + 4096).contains(&got.len()), "{who} {rate:?}: {}", got.len());
        }
    }
}

#[test]
fn a_cut_file_plays_in_ffmpeg_to_about_the_cut() {
    let dir = TempDir::new().unwrap();
    let mut random = fastrand::Rng::with_seed(2);
    let formats = [
        Format::Wav(Depth::Bits16),
        Format::Flac(Depth::Bits16),
        #[cfg(feature = "mp3")]
        Format::Mp3(Mp3Rate::Constant(64)),
        #[cfg(feature = "mp3")]
        Format::Mp3(Mp3Rate::Variable(4)),
    ];
    for format in formats {
        let pcm = speech(2, TOTAL);
        let (bytes, _) = written(format, Mapping::Stereo, &pcm);
        for _ in 0..20 {
            let cut = random.usize(bytes.len() / 10..bytes.len());
            let path = put(&dir, "cut", format, &bytes[..cut]);
            let (got, _) = by_ffmpeg(&path);
            let ours = AudioReader::new(&bytes[..cut]).unwrap().inspect().unwrap();
            let difference = (got.len() / 2).abs_diff(ours.samples as usize);
            // ffmpeg plays into a torn frame, or drops the one before it.
            assert!(difference <= 4096, "{format:?} cut at {cut}: {} and {}", got.len() / 2, ours.samples);
        }
    }
}

#[test]
fn silence_stays_silence_and_too_loud_becomes_full_scale() {
    let dir = TempDir::new().unwrap();
    let square: Vec<f32> = (0..TOTAL).map(|n| if n / 120 % 2 == 0 { 3.0 } else { -3.0 }).collect();
    for format in LOSSLESS {
        let (bytes, patches) = written(format, Mapping::Mono, &vec![0.0; TOTAL]);
        let (got, _) = by_ffmpeg(&put(&dir, "silence", format, &patched(&bytes, &patches)));
        assert!(got.len() == TOTAL && got.iter().all(|s| *s == 0.0));
        let (bytes, patches) = written(format, Mapping::Mono, &square);
        let (got, _) = by_ffmpeg(&put(&dir, "square", format, &patched(&bytes, &patches)));
        assert!(got.iter().zip(&square).all(|(got, sent)| (got - sent.signum()).abs() < 1e-4));
    }
    #[cfg(feature = "mp3")]
    for rate in RATES {
        let format = Format::Mp3(rate);
        let (bytes, patches) = written(format, Mapping::Mono, &vec![0.0; TOTAL]);
        let (got, _) = by_ffmpeg(&put(&dir, "silence", format, &patched(&bytes, &patches)));
        assert!(got.len() == TOTAL && got.iter().all(|s| s.abs() < 1e-6));
        let (bytes, patches) = written(format, Mapping::Mono, &square);
        let (got, _) = by_ffmpeg(&put(&dir, "square", format, &patched(&bytes, &patches)));
        let right = got.iter().zip(&square).filter(|(got, sent)| got.signum() == sent.signum()).count();
        assert!(got.len() == TOTAL && right * 100 > TOTAL * 97, "{rate:?}: {right}");
    }
}

#[test]
fn opus_becomes_pcm_of_the_length_the_stream_tells() {
    let dir = TempDir::new().unwrap();
    for (mapping, mut config) in [(Mapping::Mono, OpusConfig::mono()), (Mapping::Stereo, OpusConfig::stereo())] {
        let channels = usize::from(mapping.channels());
        // For speech, the encoder keeps the spectrum rather than the waveform.
        config.application(Application::Audio).bitrate(96_000 * channels as u32).unwrap();
        let mut encoder = OpusEncoder::new(&config).unwrap();
        let head = OpusHead::new(mapping, encoder.pre_skip());
        let mut ogg = OggOpusWriter::new(head, &tags(), 1, SampleCount(12_000)).unwrap();
        let mut decoder = PcmDecoder::new(&head, SampleCount(12_960)).unwrap();
        let mut pcm = Vec::new();
        let sent = speech(channels, 250 * 960);
        for frame in sent.chunks(960 * channels) {
            let packet = encoder.encode(frame).unwrap();
            ogg.write_packet(packet, 960).unwrap();
            decoder.write_packet(packet, 960).unwrap();
            decoder.take(&mut pcm);
        }
        let total = SampleCount(249 * 960 + 77 - 312);
        ogg.finish(total).unwrap();
        decoder.finish(total).unwrap();
        decoder.take(&mut pcm);
        let mut bytes = Vec::new();
        ogg.take_bytes(&mut bytes);
        let path = dir.path().join("call.ogg");
        std::fs::write(&path, bytes).unwrap();
        let (theirs, complaints) = by_ffmpeg(&path);
        assert_eq!(complaints, "");
        assert_eq!((theirs.len(), pcm.len() as u64), (pcm.len(), total.0 * channels as u64));
        for n in 0..channels {
            let ours = channel(&pcm, n, channels);
            let (from_theirs, likeness) = offset(&channel(&theirs, n, channels), &ours);
            assert!(from_theirs == 0 && likeness > 0.9999, "{mapping:?}: {from_theirs} {likeness}");
            assert_eq!(offset(&channel(&sent, n, channels), &ours).0, 0, "{mapping:?}");
        }
    }
}
