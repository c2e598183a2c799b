//! The streams of one recording: every settled stretch goes to each stream it belongs to. Pure.

use std::collections::BTreeMap;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::analysis::{Analysis, Findings, Speakers};
use crate::call::TrackKey;
use crate::capture::Settled;
use crate::config::{Config, OutputKind};
use crate::encode::{EncodeError, OpusTags};
use crate::mix::{
    Begun, DualFile, Gain, LaneReport, MixError, Mixdown, MixdownConfig, Mixing, Side, TrackFile, TrackReport,
};
use crate::time::{MediaTime, SAMPLE_RATE, SampleCount};

use super::manifest::StreamEntry;

/// Four pages a second: with what a mix holds back to decide whose packets it takes, a file cut at any moment lacks less than
/// a second, for 4 % of overhead.
const PAGE: SampleCount = SampleCount(SAMPLE_RATE as u64 / 4);

/// One of a recording's streams, by the order in which they were begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputId(pub usize);

/// Who publishes a track, as far as its way into the files goes.
#[derive(Clone, Debug, PartialEq)]
pub struct Speaker {
    /// The identity: who comes back under the same one goes on in the same file.
    pub identity: String,
    /// The side of a dual file.
    pub side: Side,
    /// The factor by which they are made louder or softer.
    pub gain: Gain,
}

/// A stream that another process began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BegunOutput {
    /// What kind of stream it is.
    pub kind: OutputKind,
    /// The only one who is heard.
    pub participant: Option<String>,
    /// The stream.
    pub stream: Begun,
}

/// Every stream that the configuration asks for.
pub struct Outputs {
    wanted: Vec<OutputKind>,
    /// Whether files say who is heard in them.
    names_people: bool,
    mixing: Mixing,
    mix: MixdownConfig,
    voice: MixdownConfig,
    outputs: Vec<Output>,
    /// Everybody who published a track, in the order in which they came.
    speakers: Vec<Speaker>,
    /// Whose each track is, by the place in `speakers`.
    owners: BTreeMap<TrackKey, usize>,
    hold_from: Option<MediaTime>,
    /// Tells who speaks from their packets, where no mix decodes them.
    seen: Option<Speakers>,
}

/// One stream.
struct Output {
    stream: Stream,
    /// The place in `speakers` of the only one who is heard.
    only: Option<usize>,
    fault: Option<MixError>,
}

enum Stream {
    Mix(Box<Mixdown>),
    Dual(Box<DualFile>),
    Track(Box<TrackFile>),
}

impl Outputs {
    /// The streams that `config` asks for, of a recording that began then; the first has this serial number, and the others
    /// those that follow.
    ///
    /// # Errors
    /// [`MixError::Encode`] where the configuration is impossible.
    pub fn new(config: &Config, serial: u32, started: OffsetDateTime) -> Result<Self, MixError> {
        let mut outputs = Self::without_streams(config, serial)?;
        let started = started.format(&Rfc3339).unwrap_or_default();
        for tags in [&mut outputs.mix.tags, &mut outputs.voice.tags] {
            tags.comment("DATE", &started)?;
        }
        if outputs.wants(OutputKind::Mix) {
            let mut mixdown = Mixdown::new(&outputs.mix, outputs.mixing)?;
            if let Some(analysis) = Analysis::new(config.analysis, outputs.mix.opus.channels()) {
                mixdown.analyse(analysis);
            }
            outputs.begin(Stream::Mix(Box::new(mixdown)), None);
        } else if config.analysis.speakers {
            outputs.seen = Some(Speakers::default());
        }
        if outputs.wants(OutputKind::Dual) {
            outputs.voice.serial = outputs.next_serial();
            outputs.begin(Stream::Dual(Box::new(DualFile::new(&outputs.voice, outputs.mixing)?)), None);
        }
        Ok(outputs)
    }

    /// Goes on with the streams that another process began, in their order, of a recording in which these people were
    /// heard. What was analysed is lost with that process, so nothing is.
    ///
    /// # Errors
    /// [`MixError::Encode`] where `config` asks for other streams than those.
    pub fn going_on(config: &Config, begun: &[BegunOutput], speakers: Vec<Speaker>) -> Result<Self, MixError> {
        let of_all = |kind: &OutputKind| *kind != OutputKind::Tracks;
        let had: Vec<OutputKind> = begun.iter().map(|begun| begun.kind).filter(of_all).collect();
        let asked = [OutputKind::Mix, OutputKind::Dual];
        let asked = asked.iter().filter(|kind| config.outputs.contains(kind));
        let had_tracks = had.len() < begun.len();
        if !asked.eq(had.iter()) || had_tracks && !config.outputs.contains(&OutputKind::Tracks) {
            let (value, allowed) = (format!("{:?}", config.outputs), "the outputs that were begun");
            return Err(EncodeError::Config { setting: "outputs", value, allowed }.into());
        }
        let mut outputs = Self::without_streams(config, begun.first().map_or(0, |first| first.stream.state.serial))?;
        outputs.speakers = speakers;
        for BegunOutput { kind, participant, stream } in begun {
            let (voice, mixing) = (&outputs.voice, outputs.mixing);
            let stream = match kind {
                OutputKind::Mix => Stream::Mix(Box::new(Mixdown::going_on(&outputs.mix, mixing, stream)?)),
                OutputKind::Dual => Stream::Dual(Box::new(DualFile::going_on(voice, mixing, stream)?)),
                OutputKind::Tracks => Stream::Track(Box::new(TrackFile::going_on(voice, mixing, stream)?)),
            };
            let only = participant.as_ref().map(|identity| outputs.place_of(identity, Side::Left, Gain::UNITY));
            outputs.begin(stream, only);
        }
        Ok(outputs)
    }

    fn without_streams(config: &Config, serial: u32) -> Result<Self, MixError> {
        let mut tags = OpusTags::new();
        tags.comment("TITLE", &config.room)?;
        let mix = MixdownConfig { opus: config.opus.clone(), tags, serial, page: PAGE };
        let voice = MixdownConfig { opus: config.opus.for_one_voice(), ..mix.clone() };
        Ok(Self {
            wanted: config.outputs.clone(),
            names_people: config.names_people,
            mixing: config.mixing,
            mix,
            voice,
            outputs: Vec::new(),
            speakers: Vec::new(),
            owners: BTreeMap::new(),
            hold_from: None,
            seen: None,
        })
    }

    /// A track was published by `speaker`: from now on its stretches may come.
    ///
    /// # Errors
    /// [`MixError::Encode`] where a file of their own cannot be begun.
    pub fn publish(&mut self, track: TrackKey, speaker: &Speaker) -> Result<(), MixError> {
        let place = self.place_of(&speaker.identity, speaker.side, speaker.gain);
        self.owners.insert(track, place);
        if self.wants(OutputKind::Tracks) && !self.outputs.iter().any(|output| output.only == Some(place)) {
            self.voice.serial = self.next_serial();
            let mut config = self.voice.clone();
            if self.names_people {
                config.tags.comment("ARTIST", &speaker.identity)?;
            }
            let file = TrackFile::new(&config, self.mixing)?;
            self.begin(Stream::Track(Box::new(file)), Some(place));
        }
        let gain = speaker.gain;
        self.each(|output| {
            output.set_gain(track, gain);
            Ok(())
        });
        Ok(())
    }

    /// Takes the next stretch of a track.
    pub fn push(&mut self, stretch: &Settled) {
        let Some((place, side)) = self.owner(stretch.track) else { return };
        if let Some(speakers) = &mut self.seen {
            speakers.seen(stretch);
        }
        self.each(|output| output.push(place, side, stretch));
    }

    /// Nothing more comes of a track.
    pub fn end_track(&mut self, track: TrackKey) {
        let Some((place, side)) = self.owner(track) else { return };
        self.each(|output| {
            output.end_track(place, side, track);
            Ok(())
        });
    }

    /// Holds silence after `from` back, until a sound follows or `from` is `None` again.
    pub fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        self.hold_from = from;
        self.outputs.iter_mut().for_each(|output| output.hold_silence_from(from));
    }

    /// Writes up to `settled`, the point up to which everything is settled and no new track can begin.
    pub fn advance(&mut self, settled: MediaTime) {
        self.each(|output| output.advance(settled));
    }

    /// Ends every stream at the same moment: at `end`, or after the last sound before it where silence is held back.
    /// Gives that moment.
    pub fn finish(&mut self, end: MediaTime) -> MediaTime {
        let mut last = self.hold_from.map_or(end, |from| from.min(end));
        self.each(|output| {
            last = last.max(output.drain(end)?);
            Ok(())
        });
        self.each(|output| output.end_at(last));
        last
    }

    /// What is known of the recording's sound, which ended at `end`. It can be taken once.
    pub fn take_findings(&mut self, end: MediaTime) -> Findings {
        let analysis = self.outputs.iter_mut().find_map(|output| match &mut output.stream {
            Stream::Mix(mixdown) => mixdown.take_analysis(),
            Stream::Dual(_) | Stream::Track(_) => None,
        });
        match analysis {
            Some(analysis) => analysis.finish(end.since(MediaTime::ZERO)),
            None => Findings { speakers: self.seen.take().map(|seen| seen.finish(end)), ..Findings::default() },
        }
    }

    /// What is in each stream, in the order in which they were begun.
    pub fn contents(&self) -> impl Iterator<Item = Contents> {
        self.outputs.iter().map(|output| self.describe(output))
    }

    /// Whether something broke this stream.
    pub fn is_broken(&self, OutputId(n): OutputId) -> bool {
        self.outputs.get(n).is_some_and(|output| output.fault.is_some())
    }

    /// How each stream came about, where the recording ends at `end`.
    pub fn origins(&self, end: MediaTime) -> Vec<Origin> {
        let origin = |output: &Output| Origin {
            contents: self.describe(output),
            streams: output.streams(end),
            fault: output.fault.as_ref().map(ToString::to_string),
        };
        self.outputs.iter().map(origin).collect()
    }

    /// The pages closed since the last call, of each stream that has any.
    pub fn take_pages(&mut self) -> Vec<(OutputId, Vec<u8>)> {
        let mut pages = Vec::new();
        for (n, output) in self.outputs.iter_mut().enumerate() {
            let mut bytes = Vec::new();
            if output.take_bytes(&mut bytes) > 0 {
                pages.push((OutputId(n), bytes));
            }
        }
        pages
    }

    /// What is in a stream.
    fn describe(&self, output: &Output) -> Contents {
        let on = |side: Side| {
            let there = self.speakers.iter().filter(move |speaker| speaker.side == side);
            there.map(|speaker| speaker.identity.clone()).collect()
        };
        let mut contents = Contents { kind: output.kind(), participant: None, left: Vec::new(), right: Vec::new() };
        match (&output.stream, output.only) {
            (_, Some(place)) => contents.participant = Some(self.speakers[place].identity.clone()),
            (Stream::Dual(_), None) => (contents.left, contents.right) = (on(Side::Left), on(Side::Right)),
            _ => {}
        }
        contents
    }

    /// The highest peak of what was decoded last, 0 where nothing is decoded.
    pub fn peak(&self) -> f32 {
        self.reports().map(|(_, track)| track.level.peak).fold(0.0, f32::max)
    }

    /// Packets of each track that decoders refused.
    pub fn refused(&self) -> BTreeMap<TrackKey, u64> {
        let mut refused = BTreeMap::new();
        for (track, report) in self.reports() {
            let most: &mut u64 = refused.entry(track).or_default();
            *most = report.stats.refused.max(*most);
        }
        refused
    }

    fn reports(&self) -> impl Iterator<Item = (TrackKey, TrackReport)> {
        self.outputs.iter().flat_map(Output::reports)
    }

    /// The place of somebody in `speakers`; who is new gets one.
    fn place_of(&mut self, identity: &str, side: Side, gain: Gain) -> usize {
        if let Some(place) = self.speakers.iter().position(|known| known.identity == identity) {
            return place;
        }
        self.speakers.push(Speaker { identity: identity.to_owned(), side, gain });
        self.speakers.len() - 1
    }

    fn wants(&self, kind: OutputKind) -> bool {
        self.wanted.contains(&kind)
    }

    fn next_serial(&self) -> u32 {
        self.mix.serial.wrapping_add(self.outputs.len() as u32)
    }

    fn begin(&mut self, stream: Stream, only: Option<usize>) {
        let mut output = Output { stream, only, fault: None };
        output.hold_silence_from(self.hold_from);
        self.outputs.push(output);
    }

    fn owner(&self, track: TrackKey) -> Option<(usize, Side)> {
        let place = *self.owners.get(&track)?;
        Some((place, self.speakers[place].side))
    }

    /// Does something to every stream; one that fails is left alone from then on, and the others go on.
    fn each(&mut self, mut act: impl FnMut(&mut Output) -> Result<(), MixError>) {
        for output in &mut self.outputs {
            if output.fault.is_none()
                && let Err(fault) = act(output)
            {
                tracing::error!(output = %output.kind(), %fault, "an output cannot go on");
                output.fault = Some(fault);
            }
        }
    }
}

/// What is in a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// What kind of stream it is.
    pub kind: OutputKind,
    /// The only one who is heard.
    pub participant: Option<String>,
    /// Who is on the left.
    pub left: Vec<String>,
    /// Who is on the right.
    pub right: Vec<String>,
}

/// How a stream came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// What is in it.
    pub contents: Contents,
    /// Its Opus streams.
    pub streams: Vec<StreamEntry>,
    /// What broke it, if anything did.
    pub fault: Option<String>,
}

impl Output {
    fn kind(&self) -> OutputKind {
        match self.stream {
            Stream::Mix(_) => OutputKind::Mix,
            Stream::Dual(_) => OutputKind::Dual,
            Stream::Track(_) => OutputKind::Tracks,
        }
    }

    fn streams(&self, end: MediaTime) -> Vec<StreamEntry> {
        match &self.stream {
            Stream::Mix(mixdown) => match mixdown.forwarded() {
                Some(report) => vec![StreamEntry::forwarded(&report)],
                None => {
                    let all = LaneReport { transcoded_from: Some(MediaTime::ZERO), ..LaneReport::default() };
                    vec![StreamEntry::new(None, &all, end)]
                }
            },
            Stream::Dual(file) => {
                [Side::Left, Side::Right].map(|side| StreamEntry::new(Some(side), &file.report(side), end)).to_vec()
            }
            Stream::Track(file) => vec![StreamEntry::new(None, &file.report(), end)],
        }
    }

    fn reports(&self) -> Vec<(TrackKey, TrackReport)> {
        match &self.stream {
            Stream::Mix(mixdown) => mixdown.tracks().collect(),
            Stream::Dual(file) => file.tracks().collect(),
            Stream::Track(file) => file.tracks().collect(),
        }
    }

    fn hears(&self, place: usize) -> bool {
        self.only.is_none_or(|only| only == place)
    }

    fn push(&mut self, place: usize, side: Side, stretch: &Settled) -> Result<(), MixError> {
        if !self.hears(place) {
            return Ok(());
        }
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.push(stretch),
            Stream::Dual(file) => file.push(side, stretch),
            Stream::Track(file) => file.push(stretch),
        }
    }

    fn end_track(&mut self, place: usize, side: Side, track: TrackKey) {
        if !self.hears(place) {
            return;
        }
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.end_track(track),
            Stream::Dual(file) => file.end_track(side, track),
            Stream::Track(file) => file.end_track(track),
        }
    }

    fn set_gain(&mut self, track: TrackKey, gain: Gain) {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.set_gain(track, gain),
            Stream::Dual(file) => file.set_gain(track, gain),
            Stream::Track(file) => file.set_gain(track, gain),
        }
    }

    fn hold_silence_from(&mut self, from: Option<MediaTime>) {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.hold_silence_from(from),
            Stream::Dual(file) => file.hold_silence_from(from),
            Stream::Track(file) => file.hold_silence_from(from),
        }
    }

    fn advance(&mut self, settled: MediaTime) -> Result<(), MixError> {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.advance(settled),
            Stream::Dual(file) => file.advance(settled),
            Stream::Track(file) => file.advance(settled),
        }
    }

    fn drain(&mut self, end: MediaTime) -> Result<MediaTime, MixError> {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.drain(end),
            Stream::Dual(file) => file.drain(end),
            Stream::Track(file) => file.drain(end),
        }
    }

    fn end_at(&mut self, end: MediaTime) -> Result<(), MixError> {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.end_at(end),
            Stream::Dual(file) => file.finish(end),
            Stream::Track(file) => file.finish(end),
        }
    }

    fn take_bytes(&mut self, out: &mut Vec<u8>) -> usize {
        match &mut self.stream {
            Stream::Mix(mixdown) => mixdown.take_bytes(out),
            Stream::Dual(file) => file.take_bytes(out),
            Stream::Track(file) => file.take_bytes(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::call::Codec;
    use crate::capture::{Content, Silence};
    use crate::encode::{OggInspector, OpusEncoder};
    use crate::room::Credentials;

    const ALICE: TrackKey = TrackKey(1);
    const BOB: TrackKey = TrackKey(2);

    fn outputs(kinds: &[OutputKind]) -> Outputs {
        let mut config = Config::new("ws://x", Credentials::Token("t".into()), "room");
        config.outputs = kinds.to_vec();
        Outputs::new(&config, u32::MAX, OffsetDateTime::UNIX_EPOCH).unwrap()
    }

    fn speaker(identity: &str, side: Side) -> Speaker {
        Speaker { identity: identity.into(), side, gain: Gain::UNITY }
    }

    /// Half a second of noise from `start` on, and silence up to `end`.
    fn noise(track: TrackKey, start: i64, end: i64) -> Vec<Settled> {
        let mut encoder = OpusEncoder::new(&crate::encode::OpusConfig::mono()).unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        let mut at = start;
        let mut stretch = |length: i64, content| {
            let start = MediaTime(at);
            at += length;
            Settled { track, start, end: MediaTime(at), content }
        };
        let mut all = Vec::new();
        for _ in 0..25 {
            let pcm: Vec<f32> = (0..960).map(|_| 0.3 * (random.f32() - 0.5)).collect();
            let payload = Bytes::copy_from_slice(encoder.encode(&pcm).unwrap());
            all.push(stretch(960, Content::Packet { codec: Codec::Opus, payload }));
        }
        all.push(stretch(end - start - 24_000, Content::Silence(Silence::Muted)));
        all
    }

    fn durations(outputs: &mut Outputs) -> Vec<(u64, bool)> {
        let inspect = |(_, bytes): (OutputId, Vec<u8>)| {
            let mut inspector = OggInspector::new();
            inspector.push(&bytes);
            let found = inspector.finish();
            (found.duration.0, found.is_clean())
        };
        outputs.take_pages().into_iter().map(inspect).collect()
    }

    #[test]
    fn all_streams_end_together_and_trim_what_is_silent_in_all_of_them() {
        for (hold_from, expected) in [(None, 240_001), (Some(48_000), 144_000)] {
            let mut outputs = outputs(&[OutputKind::Tracks, OutputKind::Dual, OutputKind::Mix]);
            outputs.publish(ALICE, &speaker("alice", Side::Left)).unwrap();
            outputs.publish(BOB, &speaker("bob", Side::Right)).unwrap();
            outputs.hold_silence_from(hold_from.map(MediaTime));
            for stretch in noise(ALICE, 0, 240_001).iter().chain(&noise(BOB, 120_000, 240_001)) {
                outputs.push(stretch);
            }
            let last = outputs.finish(MediaTime(240_001));
            assert!((expected..expected + 1_920).contains(&last.0), "{last:?} for {hold_from:?}");
            assert_eq!(durations(&mut outputs), vec![(last.0 as u64, true); 4]);
        }
    }

    #[test]
    fn who_comes_late_or_back_has_one_file_from_sample_0_on() {
        let mut outputs = outputs(&[OutputKind::Tracks]);
        outputs.advance(MediaTime(480_000));
        assert!(outputs.take_pages().is_empty());
        outputs.publish(ALICE, &speaker("alice", Side::Left)).unwrap();
        noise(ALICE, 480_000, 528_000).iter().for_each(|stretch| outputs.push(stretch));
        outputs.end_track(ALICE);
        outputs.publish(BOB, &speaker("alice", Side::Left)).unwrap();
        noise(BOB, 528_000, 576_000).iter().for_each(|stretch| outputs.push(stretch));
        outputs.finish(MediaTime(576_000));
        assert_eq!(durations(&mut outputs), [(576_000, true)]);
        let [origin] = &*outputs.origins(MediaTime(576_000)) else { panic!("one file") };
        assert_eq!((origin.contents.participant.as_deref(), origin.streams[0].passed_seconds), (Some("alice"), 1.0));
    }

    #[test]
    fn a_stream_that_breaks_leaves_the_others_alone() {
        let mut outputs = outputs(&[OutputKind::Mix, OutputKind::Tracks]);
        outputs.publish(ALICE, &speaker("alice", Side::Left)).unwrap();
        outputs.publish(BOB, &speaker("bob", Side::Right)).unwrap();
        noise(BOB, 0, 48_000).iter().for_each(|stretch| outputs.push(stretch));
        // A stretch that does not follow the one before it breaks what hears alice: the mix, and her own file.
        let alices = noise(ALICE, 0, 48_000);
        outputs.push(&alices[0]);
        outputs.push(&alices[2]);
        outputs.finish(MediaTime(48_000));
        let broken: Vec<bool> = (0..3).map(|n| outputs.is_broken(OutputId(n))).collect();
        assert_eq!(broken, [true, true, false]);
        assert_eq!(durations(&mut outputs).last(), Some(&(48_000, true)));
    }
}
