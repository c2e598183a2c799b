//! One recorded call on a real server, for the tests that judge what came out.

// Each test file uses its own part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use callreel::clock;
use callreel::config::{Config, OutputKind};
use callreel::recording::{
    Manifest, OutputEntry, Recorder, RecordingHandle, RecordingResult, SidecarKind, State, TrackEntry,
};
use callreel::room::Credentials;
use callreel::testkit::analysis::{self, Found};
use callreel::testkit::audio::{Audio, generate, samples_in};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions};

/// The room of every call here.
pub const ROOM: &str = "call";

/// How long a publisher is given before it speaks, so that the recorder hears it from its first packet.
pub const SETTLE: Duration = Duration::from_secs(4);

/// A call that is being recorded.
pub struct Call {
    pub server: LiveKitServer,
    pub recording: RecordingHandle,
    out: tempfile::TempDir,
}

impl Call {
    /// Starts a server and a recorder in its room, and waits until the recorder has joined.
    pub async fn begin() -> Self {
        Self::begin_with(|_| {}).await
    }

    /// As [`begin`](Self::begin), with other settings.
    pub async fn begin_with(adjust: impl FnOnce(&mut Config)) -> Self {
        Self::begin_on(LiveKitServer::start().await.unwrap(), adjust).await
    }

    /// As [`begin_with`](Self::begin_with), on this server.
    pub async fn begin_on(server: LiveKitServer, adjust: impl FnOnce(&mut Config)) -> Self {
        let out = tempfile::tempdir().unwrap();
        let credentials =
            Credentials::ApiKey { key: server.api_key().to_owned(), secret: server.api_secret().to_owned() };
        let mut config = Config::new(server.url(), credentials, ROOM);
        config.out = out.path().to_owned();
        config.life.stop.departure_timeout = Duration::from_secs(1);
        adjust(&mut config);
        let wanted = if config.life.consent.is_empty() { State::Active } else { State::Starting };
        let mut recording = Recorder::start(config);
        if wanted == State::Starting {
            server.rooms().until_somebody(ROOM).await.unwrap();
        }
        while wanted == State::Active && recording.status().state == State::Starting {
            recording.changed().await;
        }
        assert_eq!(recording.status().state, wanted, "{:?}\n{}", recording.status(), server.log());
        Self { server, recording, out }
    }

    /// Somebody joins.
    pub async fn join(&self, identity: &str) -> Publisher {
        Publisher::join(PublisherConfig::on(&self.server, ROOM, identity)).await.unwrap()
    }

    /// Somebody joins, says `sound`, and leaves. Gives the session's SID and when the first sample was said.
    pub async fn visit(&self, identity: &str, sound: &Audio) -> (String, Instant) {
        let visitor = self.join(identity).await;
        let start = clock::now() + SETTLE;
        let voice = visitor.publish(sound.clone(), TrackOptions::default().start(start)).await.unwrap();
        voice.said().await.unwrap();
        let visit = (visitor.sid().to_owned(), voice.start());
        visitor.leave().await.unwrap();
        visit
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.out.path()
    }

    /// Stops the recording and gives what came of it.
    pub async fn stop(self) -> Recorded {
        self.recording.stop();
        self.over().await
    }

    /// Waits until the recording ends by itself and gives what came of it.
    pub async fn over(self) -> Recorded {
        let result = self.recording.wait().await;
        Recorded::read(result, self.out)
    }
}

/// A recording with everything that belongs to it.
pub struct Recorded {
    pub result: RecordingResult,
    pub manifest: Manifest,
    /// The first output: the mix, where there is one.
    pub audio: Audio,
    /// When sample 0 was.
    pub zero: Instant,
    out: tempfile::TempDir,
}

impl Recorded {
    fn read(result: RecordingResult, out: tempfile::TempDir) -> Self {
        let manifest = result.manifest.as_ref().unwrap_or_else(|| panic!("no manifest: {result:?}"));
        let manifest: Manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
        manifest.check().unwrap();
        let audio = Audio::read(Path::new(&result.outputs[0].location)).unwrap();
        assert!(
            (audio.duration().as_secs_f64() - manifest.outputs[0].duration_seconds).abs() < 0.020,
            "the file lasts {:?}, the manifest says {} s",
            audio.duration(),
            manifest.outputs[0].duration_seconds
        );
        let age = clock::wall() - manifest.started_at;
        let zero = clock::now() - Duration::try_from(age).expect("it began before it ended");
        Self { result, manifest, audio, zero, out }
    }

    /// The manifest's entry of an output, and the output itself. `participant` is whose track it is.
    pub fn output(&self, kind: OutputKind, participant: Option<&str>) -> (&OutputEntry, Audio) {
        let outputs = &self.manifest.outputs;
        let is_it = |output: &&OutputEntry| output.kind == kind && output.participant.as_deref() == participant;
        let entry =
            outputs.iter().find(is_it).unwrap_or_else(|| panic!("no {kind} of {participant:?} in {outputs:#?}"));
        (entry, Audio::read(self.file(entry)).unwrap())
    }

    /// Where an output is.
    pub fn file(&self, entry: &OutputEntry) -> PathBuf {
        Path::new(self.result.manifest.as_ref().unwrap()).with_file_name(&entry.file)
    }

    /// How much later (positive) or earlier a sound lies in a channel of an output than it was said, in milliseconds, as
    /// [`error`](Self::error) says it.
    pub fn error_in(&self, channel: &[f32], sound: &Audio, said: Instant) -> f64 {
        let found = analysis::find(sound.channel(0), channel).expect("the channel is not silent");
        assert!(found.score > 0.4, "not there: best at {found:?}, {}", self.account());
        self.late(&found, said)
    }

    /// The level of a channel between two instants, in dBFS.
    pub fn level_in(&self, channel: &[f32], from: Instant, to: Instant) -> f64 {
        let sample = |at: Instant| samples_in(at.saturating_duration_since(self.zero)).min(channel.len());
        analysis::level(&channel[sample(from)..sample(to)])
    }

    fn late(&self, found: &Found, said: Instant) -> f64 {
        found.offset as f64 / 48.0 - 26.5 - said.saturating_duration_since(self.zero).as_secs_f64() * 1_000.0
    }

    /// How much later (positive) or earlier a sound lies in the recording than it was said, in milliseconds.
    ///
    /// `said` is when its first sample was spoken. What every packet costs is not held against anybody: the 20 ms in
    /// which it is spoken, and the 6.5 ms that an Opus encoder holds back.
    pub fn error(&self, sound: &Audio, said: Instant) -> f64 {
        self.late(&self.find(sound), said)
    }

    /// Where a sound lies.
    ///
    /// # Panics
    ///
    /// Where it is not there.
    pub fn find(&self, sound: &Audio) -> Found {
        let found = analysis::find(sound.channel(0), self.audio.channel(0)).expect("the recording is not silent");
        assert!(found.score > 0.4, "not in the recording: best at {found:?}, {}", self.account());
        found
    }

    /// How the tracks were settled, in a few words.
    fn account(&self) -> String {
        let track = |track: &TrackEntry| {
            format!(
                "{}: {:?} {:?} {:?}",
                track.identity, track.ledger.sums, track.ledger.counters, track.ledger.alignment
            )
        };
        self.manifest.tracks.iter().map(track).collect::<Vec<_>>().join("; ")
    }

    /// The level between two instants, in dBFS.
    pub fn level(&self, from: Instant, to: Instant) -> f64 {
        self.level_in(self.audio.channel(0), from, to)
    }

    /// A file that tells about the recording.
    pub fn sidecar(&self, kind: SidecarKind) -> Option<PathBuf> {
        let entry = self.manifest.sidecars.iter().find(|entry| entry.kind == kind)?;
        Some(Path::new(self.result.manifest.as_ref()?).with_file_name(&entry.file))
    }

    /// The manifest's entry of a track.
    pub fn track(&self, sid: &str) -> &TrackEntry {
        let tracks = &self.manifest.tracks;
        tracks.iter().find(|track| track.sid == sid).unwrap_or_else(|| panic!("no {sid} among {tracks:#?}"))
    }
}

/// What one speaker says: the same for the same number, unlike everything another says.
pub fn words(speaker: u64, duration: Duration) -> Audio {
    generate::speech(1_000 + speaker, duration)
}

/// A part of a sound, in milliseconds.
pub fn part(sound: &Audio, from: u64, to: u64) -> Audio {
    sound.slice(from as usize * 48..to as usize * 48)
}
