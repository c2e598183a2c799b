//! Everything that reads foreign bytes, each as a function that a fuzzer can call: `cargo fuzz` with the targets in
//! `fuzz/`, and on a stable toolchain [`Mutator`], which is quick and blind, but runs with every test.

use std::io::{self, Cursor};
use std::sync::LazyLock;

use bytes::Bytes;
use fastrand::Rng;

use super::{TestkitError, checkout, sim};
use crate::analysis::{Analysis, AnalysisConfig};
use crate::call::{Codec, TrackKey};
use crate::capture::{Content, Settled, Silence, toc};
use crate::decode::TrackDecoder;
use crate::encode::{
    EncodeError, Format, Mapping, OggInspector, OggOpusWriter, OpusConfig, OpusHead, OpusTags, PageReader, mp4, packet,
    patch,
};
use crate::mix::{Gain, MixError, Mixdown, MixdownConfig, Mixing};
use crate::recording::Manifest;
use crate::render::{self, Quality, Render, Rendering};
use crate::room::{DataMessage, Receiver};
use crate::seal::{Identities, Opened, Opener, Recipients, SealInspector, Sealer, open_whole};
use crate::spool::{Entry, History};
use crate::time::{MediaTime, SampleCount};

/// Something that reads foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called, in `fuzz/` too.
    pub name: &'static str,
    /// Reads the bytes. It may not panic, whatever they are; an error is a rule that it broke.
    pub read: fn(&[u8]) -> Result<(), String>,
    /// Files in `fuzz/seeds` that it reads without complaint.
    seeds: &'static [&'static str],
}

/// Every reader of foreign bytes.
pub const TARGETS: &[Target] = &[
    Target { name: "capture", read: capture, seeds: &[] },
    Target { name: "opus_packet", read: opus_packet, seeds: &[] },
    Target { name: "rtp_payloads", read: rtp_payloads, seeds: &[] },
    Target { name: "forward", read: forward, seeds: &[] },
    Target { name: "offer", read: offer, seeds: &["offer-one-track.sdp", "offer-reused.sdp"] },
    Target { name: "data", read: data, seeds: &["data-user.bin", "data-dtmf.bin"] },
    Target { name: "manifest", read: manifest, seeds: &["manifest.json"] },
    Target { name: "journal", read: journal, seeds: &["journal.jsonl"] },
    Target { name: "ogg", read: ogg, seeds: &[] },
    Target { name: "source", read: source, seeds: &[] },
    Target { name: "sealed", read: sealed, seeds: &[] },
];

impl Target {
    /// What to begin with: bytes that it takes, and where it has no files, speech as publishers send it.
    ///
    /// # Errors
    /// [`TestkitError::Io`] without the repository's seeds, [`TestkitError::Simulation`] where nothing can be coded.
    pub fn seeds(&self) -> Result<Vec<Vec<u8>>, TestkitError> {
        let folder = checkout().join("fuzz/seeds");
        let read = |name: &&str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(TestkitError::io(format!("read {}", path.display())))
        };
        let mut seeds = self.seeds.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if self.seeds.is_empty() {
            seeds.extend(match self.name {
                "forward" => vec![talk(&packets()?)],
                "source" => containers()?,
                "sealed" => vec![sealed_file()?.concat(), (0..8).collect()],
                _ => packets()?,
            });
        }
        Ok(seeds)
    }
}

/// Packets, signalling and time in any order, into capture.
///
/// # Errors
/// A rule that was broken.
pub fn capture(bytes: &[u8]) -> Result<(), String> {
    sim::drive(bytes)
}

/// What is read from an Opus packet without decoding it.
///
/// # Errors
/// A rule that was broken.
pub fn opus_packet(bytes: &[u8]) -> Result<(), String> {
    let duration = toc::duration(Codec::Opus, bytes);
    if duration.is_some_and(|duration| !(1..=toc::LONGEST_PACKET.0).contains(&duration.0)) {
        return Err(format!("a packet of {duration:?}"));
    }
    if toc::in_band_fec(bytes).is_some_and(|restored| restored > toc::LONGEST_PACKET) {
        return Err("more restored than a packet holds".into());
    }
    let _ = toc::is_blank(Codec::Opus, true, bytes);
    let _ = (packet::mode(bytes), packet::is_stereo(bytes), packet::samples(bytes));
    let (mut out, mut first) = (Vec::new(), Vec::new());
    if packet::join_streams(bytes, bytes, &mut out).is_ok() {
        let second = packet::split_streams(&out, &mut first).map_err(|error| error.to_string())?;
        if packet::samples(&first) != packet::samples(bytes) || packet::samples(second) != packet::samples(bytes) {
            return Err("two streams joined come apart as others".into());
        }
    }
    let _ = packet::split_streams(bytes, &mut first);
    let _ = packet::write_concealed(bytes, &mut out);
    Ok(())
}

/// Payloads of every codec into a decoder: the first byte of each says what it is and how long its stretch is, the
/// second how many bytes follow.
///
/// # Errors
/// Sound that is no number, or a decoder that gives up.
pub fn rtp_payloads(mut bytes: &[u8]) -> Result<(), String> {
    let mut decoder = TrackDecoder::new(1).map_err(|error| error.to_string())?;
    let mut at = MediaTime::ZERO;
    let mut pcm = [0.0; 960];
    while let [what, length, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        bytes = rest;
        let payload = Bytes::copy_from_slice(payload);
        let codec = [Codec::Opus, Codec::Opus, Codec::Pcmu, Codec::Pcma][usize::from(what & 3)];
        let content = match what >> 2 & 7 {
            0 => Content::Recovered { next: payload },
            1 => Content::Concealed { into_run: SampleCount(u64::from(*length) * 48) },
            _ => Content::Packet { codec, payload },
        };
        let end = at + SampleCount([960, 961, 959, 480, 2880, 120, 5760, 1][usize::from(what >> 5)]);
        let stretch = Settled { track: TrackKey(0), start: at, end, content };
        decoder.push(&stretch).map_err(|error| error.to_string())?;
        at = end;
        while decoder.position().zip(decoder.ready()).is_some_and(|(from, ready)| from.0 + 960 <= ready.0) {
            let from = decoder.position().unwrap_or(at);
            decoder.read(from, &mut pcm);
            if let Some(sample) = pcm.iter().find(|sample| !sample.is_finite()) {
                return Err(format!("a sample of {sample}"));
            }
        }
    }
    Ok(())
}

/// Stretches of three tracks into a mix that forwards packets, and what else happens in a call: the first byte of each
/// says of what kind it is and how long, the second whose it is and how many bytes follow.
///
/// # Errors
/// A stream that does not end where it was asked to, or that readers complain about.
pub fn forward(mut bytes: &[u8]) -> Result<(), String> {
    let failed = |error: MixError| error.to_string();
    let (opus, tags) = (OpusConfig::mono(), OpusTags::new());
    let config = MixdownConfig { opus, tags, serial: 1, page: SampleCount::from_millis(1000) };
    let mut mixdown = Mixdown::new(&config, Mixing::Auto).map_err(failed)?;
    if bytes.first().is_some_and(|first| first & 1 == 1) {
        Analysis::new(AnalysisConfig::default(), 1).into_iter().for_each(|analysis| mixdown.analyse(analysis));
    }
    let mut ends = [MediaTime(0), MediaTime(311), MediaTime(-500)];
    let mut settled = MediaTime::ZERO;
    let mut file = Vec::new();
    while let [what, length, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(length >> 2).min(rest.len()));
        bytes = rest;
        let whose = usize::from(length & 3) % 3;
        let track = TrackKey(whose as u32);
        let payload = Bytes::copy_from_slice(payload);
        let content = match what >> 4 {
            0 => Content::Recovered { next: payload },
            1 => Content::Concealed { into_run: SampleCount(u64::from(*length) * 48) },
            2 => Content::Silence(Silence::Withheld),
            3 => Content::Silence(Silence::Dtx),
            4 => Content::Packet { codec: Codec::Pcmu, payload },
            5 => {
                mixdown.hold_silence_from((length & 4 == 0).then_some(settled));
                continue;
            }
            6 if *length == 0 => {
                mixdown.set_gain(track, Gain::factor(f32::from(*what & 15) / 8.0));
                continue;
            }
            _ => Content::Packet { codec: Codec::Opus, payload },
        };
        let long = [960, 960, 961, 959, 480, 2880, 120, 5760, 1, 1000, 20_000, 960, 960, 1920, 240, 965];
        let start = ends[whose];
        ends[whose] = start + SampleCount(long[usize::from(what & 15)]);
        mixdown.push(&Settled { track, start, end: ends[whose], content }).map_err(failed)?;
        settled = ends.into_iter().min().unwrap_or(settled).max(settled);
        mixdown.advance(settled).map_err(failed)?;
        mixdown.take_bytes(&mut file);
    }
    let end = ends.into_iter().max().unwrap_or(settled);
    let total = mixdown.finish(end).map_err(failed)?;
    mixdown.take_bytes(&mut file);
    let mut inspector = OggInspector::new();
    inspector.push(&file);
    let found = inspector.finish();
    if MediaTime::ZERO + total > end || found.duration != total || !found.is_clean() {
        return Err(format!("{total:?} of {end:?}, and the file says {:?} {:?}", found.duration, found.problems));
    }
    Ok(())
}

/// A server's offer, as the room engine takes it.
///
/// # Errors
/// None: a broken offer is refused, not a broken rule.
pub fn offer(bytes: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let addresses = ("127.0.0.1:9".parse(), "127.0.0.1:10".parse());
    let (Ok(here), Ok(there)) = addresses else { return Err("these are addresses".into()) };
    let now = crate::clock::now();
    // What is no offer is refused.
    let _ = Receiver::answering(now, &text, [("TR_voice", TrackKey(0))], (here, there))
        .map(|(mut receiver, _)| receiver.advance(now, &mut Vec::new()));
    Ok(())
}

/// A packet of a data channel, as the room engine takes it.
///
/// # Errors
/// A message that is longer than what it was read from.
pub fn data(bytes: &[u8]) -> Result<(), String> {
    match crate::room::data::decode(bytes) {
        Some((_, DataMessage::User { payload, .. })) if payload.len() > bytes.len() => {
            Err(format!("{} bytes of {}", payload.len(), bytes.len()))
        }
        _ => Ok(()),
    }
}

/// A manifest, as every reader of one takes it.
///
/// # Errors
/// A manifest that does not survive being written.
pub fn manifest(bytes: &[u8]) -> Result<(), String> {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return Ok(()) };
    let _ = manifest.check();
    let written = serde_json::to_vec(&manifest).map_err(|error| error.to_string())?;
    serde_json::from_slice::<Manifest>(&written).map(|_| ()).map_err(|error| error.to_string())
}

/// The journal of a recording, as recovery reads it.
///
/// # Errors
/// A journal that says something else once it is written again.
pub fn journal(bytes: &[u8]) -> Result<(), String> {
    let known = |bytes: &[u8]| History { unread: 0, so_far: None, ..History::read(bytes) };
    let mut again = Vec::new();
    let (whole, _torn) = bytes.split_at(bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0));
    for entry in whole.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Entry>(line).ok()) {
        again.extend(entry.line().map_err(|error| error.to_string())?);
    }
    if known(bytes) == known(&again) { Ok(()) } else { Err("a journal that changes".into()) }
}

/// An Ogg file, as `callreel inspect` reads it.
///
/// # Errors
/// None: a broken file is described, not a broken rule.
pub fn ogg(bytes: &[u8]) -> Result<(), String> {
    let mut inspector = OggInspector::new();
    for piece in bytes.chunks(97) {
        inspector.push_each(piece, &mut |payload| {
            let _ = packet::samples(payload);
        });
    }
    let _ = inspector.finish();
    Ok(())
}

/// A file in any format, as `callreel convert` reads it.
///
/// # Errors
/// A stream made of it that readers complain about.
pub fn source(bytes: &[u8]) -> Result<(), String> {
    let Some(format) = render::source::format_of(bytes) else { return Ok(()) };
    let mut inspector = OggInspector::new();
    let mut take = |pages: &[u8], _| {
        inspector.push(pages);
        Ok(())
    };
    let read = render::source::read(Cursor::new(bytes), format, &OpusConfig::mono(), &mut take);
    let found = inspector.finish();
    if read.is_ok() && format != Format::Ogg && !found.is_clean() {
        return Err(format!("what was {format} became a stream with {:?}", found.problems));
    }
    if format == Format::Mp4 {
        // What is none is refused.
        let _ = mp4::faststart(&mut Cursor::new(bytes), &mut io::sink());
    }
    Ok(())
}

/// A sealed file, as `callreel inspect`, `recover` and `decrypt` read it. The bytes are one; and they are the order in which
/// the segments of a whole one come.
///
/// # Errors
/// What was opened and never sealed, or a file that is sound for one reader and not for another.
pub fn sealed(bytes: &[u8]) -> Result<(), String> {
    static SEGMENTS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| sealed_file().unwrap_or_default());
    open(bytes)?;
    let _ = open_whole(&known_key()?, bytes);
    let _ = (Identities::parse(&String::from_utf8_lossy(bytes)), Recipients::parse(&String::from_utf8_lossy(bytes)));
    let order = bytes.iter().take(32).filter_map(|byte| SEGMENTS.get(usize::from(*byte) % SEGMENTS.len().max(1)));
    open(&order.flatten().copied().collect::<Vec<u8>>())
}

/// Opens a file with the key that everybody knows.
fn open(file: &[u8]) -> Result<(), String> {
    let mut inspector = SealInspector::new();
    let mut opener = Opener::new(known_key()?);
    let (mut lost, mut pages) = (0, PageReader::new());
    for piece in file.chunks(997).map(Some).chain([None]) {
        match piece {
            Some(piece) => {
                inspector.push(piece);
                opener.push(piece);
            }
            None => opener.end(),
        }
        while let Some(opened) = opener.next_opened() {
            match opened {
                Opened::Pages(opened) => pages.push(&opened),
                Opened::Lost(_) => lost += 1,
            }
            while pages.next_page().is_some() {}
        }
    }
    lost += usize::from(opener.lost_at_end(file.len() as u64).is_some());
    if pages.passed_over() + pages.pending() > 0 {
        return Err("what was opened is not all pages".into());
    }
    let found = inspector.finish();
    if found.is_clean() != (lost == 0) {
        return Err(format!("{lost} losses, and {:?}", found.problems));
    }
    Ok(())
}

/// A key from the tests of the age library: what is sealed to it is no secret.
fn known_key() -> Result<Identities, String> {
    let key = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
    Identities::parse(key).map_err(|error| error.to_string())
}

/// The segments of a whole sealed file.
fn sealed_file() -> Result<Vec<Vec<u8>>, TestkitError> {
    let failed = |error: &dyn std::fmt::Display| TestkitError::Simulation(error.to_string());
    let key = "age1t7rxyev2z3rw82stdlrrepyc39nvn86l5078zqkf5uasdy86jp6svpy7pa";
    let mut sealer = Sealer::new(Recipients::parse(key).map_err(|error| failed(&error))?);
    let head = OpusHead::new(Mapping::Mono, 312);
    let writer = OggOpusWriter::new(head, &OpusTags::new(), 7, SampleCount::from_millis(200));
    let mut writer = writer.map_err(|error| failed(&error))?;
    let mut segments = Vec::new();
    for n in 0..8 {
        for _ in 0..10 * usize::from(n > 0) {
            writer.write_packet(&packet::SILENCE_20_MS, 960).map_err(|error| failed(&error))?;
        }
        match n {
            7 => writer.finish(writer.samples()).map_err(|error| failed(&error))?,
            _ => writer.close_page(),
        }
        let (mut pages, mut segment) = (Vec::new(), Vec::new());
        writer.take_bytes(&mut pages);
        sealer.seal(&pages, &mut segment).map_err(|error| failed(&error))?;
        segments.push(segment);
    }
    Ok(segments)
}

/// A fifth of a second of speech in every format, as it is while it grows and once it is whole, and as the MP4 that is served.
fn containers() -> Result<Vec<Vec<u8>>, TestkitError> {
    let failed = |error: EncodeError| TestkitError::Simulation(error.to_string());
    let mut tags = OpusTags::new();
    tags.comment("TITLE", "support, line 7").map_err(failed)?;
    let head = OpusHead::new(Mapping::Mono, 312);
    let mut writer = OggOpusWriter::new(head, &tags, 7, SampleCount::from_millis(100)).map_err(failed)?;
    for packet in packets()?.iter().filter(|packet| packet::samples(packet) == Some(960)).take(11) {
        writer.write_packet(packet, 960).map_err(failed)?;
    }
    let (mut growing, mut files) = (Vec::new(), Vec::new());
    writer.take_bytes(&mut growing);
    writer.finish(SampleCount(10_000)).map_err(failed)?;
    let mut ogg = growing.clone();
    writer.take_bytes(&mut ogg);
    for format in Format::ALL.into_iter().filter(|format| *format != Format::Ogg) {
        let rendering = Rendering { format, quality: Quality::default() };
        // A build may lack one.
        let Ok(mut render) = Render::new(rendering) else { continue };
        let mut bytes = Vec::new();
        render.push(&growing).map_err(failed)?;
        render.take_bytes(&mut bytes);
        files.push(bytes.clone());
        let patches = render.push(&ogg[growing.len()..]).map_err(failed)?;
        render.take_bytes(&mut bytes);
        patch::apply(&patches, &mut bytes);
        if format == Format::Mp4 {
            let mut served = Vec::new();
            mp4::faststart(&mut Cursor::new(&bytes), &mut served).map_err(TestkitError::io("put an index in front"))?;
            files.push(served);
        }
        files.push(bytes);
    }
    files.push(ogg);
    Ok(files)
}

/// Two tracks that take turns, as [`forward`] reads it: packets of 20 ms that are short enough.
fn talk(packets: &[Vec<u8>]) -> Vec<u8> {
    let fits = |packet: &&Vec<u8>| packet.len() < 64 && packet::samples(packet) == Some(960);
    let spoken: Vec<_> = packets.iter().filter(fits).collect();
    let mut bytes = Vec::new();
    for n in 0..120 {
        for whose in 0..2u8 {
            let speaks = usize::from(whose) == n / 30 % 2 || n % 50 > 45;
            match spoken.get(n % spoken.len().max(1)).filter(|_| speaks) {
                Some(packet) => {
                    bytes.extend([0x70, (packet.len() as u8) << 2 | whose]);
                    bytes.extend_from_slice(packet);
                }
                None => bytes.extend([0x30, whose]),
            }
        }
        // Somebody else is silent.
        bytes.extend([0x30, 2]);
    }
    bytes
}

/// Speech, tones and silence as publishers send them.
fn packets() -> Result<Vec<Vec<u8>>, TestkitError> {
    let voice = super::audio::generate::speech(5, std::time::Duration::from_secs(1));
    let failed = |error: opus::Error| TestkitError::Simulation(error.to_string());
    let mut encoder = opus::Encoder::new(48_000, opus::Channels::Mono, opus::Application::Voip).map_err(failed)?;
    encoder.set_inband_fec(true).and_then(|()| encoder.set_packet_loss_perc(20)).map_err(failed)?;
    let mut packets = vec![vec![0xf8, 0xff, 0xfe]];
    for samples in [120, 480, 960, 1920, 2880] {
        for frame in voice.channel(0).chunks_exact(samples).take(20) {
            packets.push(encoder.encode_vec_float(frame, 1275).map_err(failed)?);
        }
    }
    Ok(packets)
}

/// Changes bytes that are known to be taken, a little and at random: the same seed, the same bytes.
#[derive(Debug)]
pub struct Mutator {
    random: Rng,
    seeds: Vec<Vec<u8>>,
}

impl Mutator {
    /// Begins with `seeds`, of which there must be some.
    pub fn new(seed: u64, seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "there is nothing to change");
        Self { random: Rng::with_seed(seed), seeds }
    }

    /// The next bytes: now and then anything, mostly a seed with one to eight changes.
    pub fn next_bytes(&mut self) -> Vec<u8> {
        if self.random.u8(..) < 16 {
            return (0..self.random.usize(..600)).map(|_| self.random.u8(..)).collect();
        }
        let mut bytes = self.seed();
        for _ in 0..self.random.usize(1..=8) {
            self.change(&mut bytes);
        }
        bytes
    }

    fn seed(&mut self) -> Vec<u8> {
        let index = self.random.usize(..self.seeds.len());
        self.seeds[index].clone()
    }

    /// A part of `0..length`, mostly a short one.
    fn span(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.random.usize(..=length);
        let longest = if self.random.bool() { 8 } else { length };
        from..from + self.random.usize(..=longest.min(length - from))
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let span = self.span(bytes.len());
        match self.random.u8(..8) {
            0 => {
                bytes.drain(span);
            }
            1 => bytes.truncate(span.start),
            2 => {
                let copy = bytes[span.clone()].to_vec();
                bytes.splice(span.start..span.start, copy);
            }
            3 => {
                let other = self.seed();
                let part = self.span(other.len());
                bytes.splice(span, other[part].to_vec());
            }
            4 => {
                let extreme =
                    ["0", "-1", "9223372036854775807", "18446744073709551615", "-9223372036854775808", "1e400"];
                let number = extreme[self.random.usize(..extreme.len())];
                let digits = bytes[span.start..].iter().position(u8::is_ascii_digit).map(|at| span.start + at);
                let from = digits.unwrap_or(span.start);
                let length = bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(from..from + length, number.bytes());
            }
            5 => {
                let line = |bytes: &[u8], at: usize| bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
                let (from, to) = (line(bytes, span.start), line(bytes, span.end));
                let lines = bytes[from..to].to_vec();
                bytes.extend(lines);
            }
            6 => bytes[span].iter_mut().for_each(|byte| *byte = self.random.u8(..)),
            _ => {
                if let Some(byte) = bytes.get_mut(span.start) {
                    *byte ^= 1 << self.random.u8(..8);
                }
            }
        }
    }
}
