//! Pauses and consent on real servers: what is spoken while a recording may not be made is nowhere, and nothing else is missing.

mod support;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use callreel::call::ParticipantKind;
use callreel::config::{Config, OutputKind};
use callreel::encode::{OpusConfig, OpusEncoder};
use callreel::recording::{
    CONTROL_TOPIC, Manifest, Outcome, PauseOrder, PausePolicy, Reason, Recorder, RecordingHandle, RecordingResult,
    State, What,
};
use callreel::room::Credentials;
use callreel::store::{ObjectInfo, Store, StoreConfig};
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{
    LiveKitServer, Publisher, PublisherConfig, StorageServer, TrackOptions, Voice, analysis, rounds, scaled,
};
use livekit_protocol::{UserPacket, data_packet};
use support::{Call, ROOM, SETTLE, words};
use tokio::process::Command;

const SECOND: Duration = Duration::from_secs(1);

/// Silence, and what is said before the pause, in it, and after it, in packets of 20 ms.
const LEAD_IN: usize = SETTLE.as_millis() as usize / 20;
const BEFORE: usize = 150;
/// The silence before the secret and after it, in whose middle orders are given: a busy machine may obey late.
const GAP: usize = 150;
const SECRET: usize = 150;
const AFTER: usize = 400;

/// When the secret begins, what follows it, and when all is said.
const SECRET_AT: usize = LEAD_IN + BEFORE + GAP;
const AFTER_AT: usize = SECRET_AT + SECRET + GAP;
const END: usize = AFTER_AT + AFTER;

/// A secret between other words.
struct Words {
    before: Audio,
    secret: Audio,
    after: Audio,
    packets: Arc<[Option<Bytes>]>,
}

impl Words {
    fn new(seed: u64) -> Self {
        let said = |n: u64, packets: usize| words(seed * 3 + n, Duration::from_millis(20) * packets as u32);
        let (before, secret, after) = (said(0, BEFORE), said(1, SECRET), said(2, AFTER));
        let gap = Audio::silence(Duration::from_millis(20) * GAP as u32);
        let all = Audio::silence(SETTLE).then(&before).then(&gap).then(&secret).then(&gap).then(&after);
        let mut encoder = OpusEncoder::new(&OpusConfig::mono()).unwrap();
        let packet = |pcm: &[f32]| Some(Bytes::copy_from_slice(encoder.encode(pcm).unwrap()));
        // Nothing follows for as long as a test may take.
        let packets = all.channel(0).chunks_exact(960).map(packet).chain(std::iter::repeat_n(None, 50_000)).collect();
        Self { before, secret, after, packets }
    }

    /// What the secret is on the wire.
    fn secret_packets(&self) -> impl Iterator<Item = &Bytes> {
        self.packets[SECRET_AT..SECRET_AT + SECRET].iter().flatten()
    }

    /// Says it all; the secret while `recording` is paused.
    async fn say(&self, by: &Publisher, recording: &RecordingHandle, order: PauseOrder) -> Voice {
        let voice = by.publish_prepared(self.packets.clone(), 0, TrackOptions::default()).await.unwrap();
        voice.sent_at_least(SECRET_AT - GAP / 2).await.unwrap();
        let by_itself = order.resume_after.is_some();
        recording.pause(order);
        until(recording, State::Paused).await;
        voice.sent_at_least(AFTER_AT - GAP / 2).await.unwrap();
        if !by_itself {
            recording.resume("the test");
        }
        until(recording, State::Active).await;
        voice.sent_at_least(END).await.unwrap();
        voice
    }

    /// Nothing of the secret's packets is in these bytes.
    fn is_not_in(&self, bytes: &[u8], what: &str) {
        // Beyond a packet's first byte, which says what kind it is; short ones are like others by chance.
        let words = self.secret_packets().filter_map(|packet| packet.get(1..17));
        let words: HashSet<&[u8]> = words.collect();
        assert!(words.len() > SECRET / 2);
        let found = bytes.windows(16).find(|window| words.contains(window));
        assert!(found.is_none(), "a packet of the secret is in {what}");
    }

    /// Nor can it be heard in them.
    fn is_not_heard_in(&self, bytes: &[u8], what: &str) {
        self.is_not_in(bytes, what);
        if bytes.starts_with(b"OggS")
            && let Ok(audio) = Audio::from_ogg_opus(bytes)
        {
            for channel in 0..audio.channel_count() {
                self.is_not_heard(audio.channel(channel), what);
            }
        }
    }

    fn is_not_heard(&self, channel: &[f32], what: &str) {
        // Shorter pieces of speech are like others by chance.
        for piece in self.secret.channel(0).chunks_exact(72_000) {
            if let Some(found) = analysis::find(piece, channel) {
                assert!(found.score < 0.35, "the secret is heard in {what}: {found:?}");
            }
        }
    }
}

/// Where a sound is heard, by the piece of it that is most alike: where a mix turns from packets to sound, a voice may be led
/// back by up to a millisecond, and what lies on both sides of that is like neither.
fn heard_in(sound: &Audio, channel: &[f32]) -> analysis::Found {
    const PIECE: usize = 72_000;
    let pieces = sound.channel(0).chunks_exact(PIECE).enumerate();
    let found = pieces.filter_map(|(n, piece)| {
        let found = analysis::find(piece, channel)?;
        Some(analysis::Found { offset: found.offset - (n * PIECE) as i64, ..found })
    });
    found.max_by(|one, other| one.score.total_cmp(&other.score)).expect("sound")
}

async fn until(recording: &RecordingHandle, state: State) {
    let mut recording = recording.clone();
    while recording.status().state != state {
        assert!(recording.status().result.is_none(), "{:?}", recording.status());
        recording.changed().await;
    }
}

/// The bytes of all files below a directory, and what they are called.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            // A file may be gone by now.
            found.extend(std::fs::read(&path).map(|bytes| (path.display().to_string(), bytes)));
        }
    }
    found
}

/// The bytes of all objects of a store.
async fn objects(store: &Store) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for ObjectInfo { key, .. } in store.list("").await.unwrap() {
        // A tail object may be gone by now.
        if let Ok(bytes) = store.get(&key, None).await {
            found.push((key, bytes.to_vec()));
        }
    }
    found
}

/// What of a pause there may be as sound in the file: nothing.
async fn paused_words_are_nowhere(policy: PausePolicy, by_itself: bool, seed: u64) {
    let server = LiveKitServer::start().await.unwrap();
    let storage = StorageServer::versitygw().await.unwrap();
    storage.create_bucket("calls").await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let credentials = Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() };
    let mut config = Config::new(server.url(), credentials, ROOM);
    config.out = root.path().join("out");
    config.spool = Some(root.path().join("spool"));
    config.keep_spool = Duration::from_secs(3_600);
    config.store = Some(StoreConfig::S3(storage.s3_config("calls")));
    config.upload.tail_every = Some(SECOND);
    config.outputs = vec![OutputKind::Mix, OutputKind::Dual, OutputKind::Tracks];
    config.life.pause = policy;
    let recording = Recorder::start(config);
    let store = Store::open(&StoreConfig::S3(storage.s3_config("calls"))).await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let bob = Publisher::join(PublisherConfig::on(&server, ROOM, "bob")).await.unwrap();
    let secret = Words::new(seed);
    until(&recording, State::Active).await;
    let hum = generate::tone(200.0, 0.003, SECOND);
    bob.publish(hum, TrackOptions::default().looped(true)).await.unwrap();

    let mut news = recording.happenings();
    let looking = async {
        loop {
            match news.recv().await.unwrap().what {
                What::Stopping { .. } => break,
                _ => {
                    for (what, bytes) in files(root.path()).iter().chain(&objects(&store).await) {
                        secret.is_not_in(bytes, what);
                    }
                }
            }
        }
    };
    // From the middle of one gap to that of the other.
    let resume_after = by_itself.then_some(Duration::from_millis(20 * (SECRET + GAP) as u64));
    let order = PauseOrder { by: "agent".into(), reason: "card number".into(), policy: None, resume_after };
    let talking = async {
        let voice = secret.say(&alice, &recording, order).await;
        recording.stop();
        voice
    };
    let (_, voice) = tokio::join!(looking, talking);
    let result = recording.wait().await;
    assert_eq!(result.outcome, Outcome::Complete, "{result:?}");

    let (kept, stored) = (files(root.path()), objects(&store).await);
    assert!(kept.iter().any(|(_, bytes)| bytes.starts_with(b"OggS")), "the spool keeps its files: {}", kept.len());
    for (what, bytes) in kept.iter().chain(&stored) {
        secret.is_not_heard_in(bytes, what);
    }
    let object = |ending: &str| &stored.iter().find(|(key, _)| key.ends_with(ending)).unwrap().1;
    let manifest: Manifest = serde_json::from_slice(object(".json")).unwrap();
    manifest.check().unwrap();
    let [pause] = manifest.pauses.as_slice() else { panic!("one pause: {:?}", manifest.pauses) };
    assert_eq!((pause.by.as_str(), pause.reason.as_str(), pause.policy), ("agent", "card number", policy));
    assert_eq!(pause.resumed_by == "the test", !by_itself, "{pause:?}");
    let withheld: u64 = manifest.tracks.iter().map(|track| track.ledger.counters.packets_withheld).sum();
    assert!(withheld >= SECRET as u64, "{withheld} packets were withheld");

    // Before and after, everything is where it was said.
    let zero = callreel::clock::now() - Duration::try_from(callreel::clock::wall() - manifest.started_at).unwrap();
    let said = (voice.start() + SETTLE).saturating_duration_since(zero).as_secs_f64();
    let removed = pause.removed.map_or(0.0, |(from, to)| to.unwrap().as_secs_f64() - from.as_secs_f64());
    assert_eq!(removed > 2.5, policy == PausePolicy::Skip, "{removed} s were removed");
    for output in &manifest.outputs {
        let what = format!("{} of {:?}", output.kind, output.participant);
        assert!((manifest.duration_seconds - output.duration_seconds - removed).abs() < 0.021, "{what}: {output:?}");
        if output.participant.as_deref() == Some("bob") {
            continue;
        }
        let key = stored.iter().find(|(key, _)| key.ends_with(&output.file)).unwrap();
        let audio = Audio::from_ogg_opus(&key.1).unwrap();
        let channels: Vec<&[f32]> = (0..audio.channel_count()).map(|channel| audio.channel(channel)).collect();
        let heard = |sound: &Audio| {
            let found = channels.iter().map(|channel| heard_in(sound, channel));
            found.max_by(|one, other| one.score.total_cmp(&other.score)).unwrap()
        };
        let before = heard(&secret.before);
        // What was said last may be under way when it stops.
        let after = heard(&secret.after.slice(0..(AFTER - 25) * 960));
        assert!(before.score > 0.6 && after.score > 0.6, "{what}: {before:?}, {after:?}");
        let place = |found: i64, packets: usize| found as f64 / 48_000.0 - packets as f64 * 0.02;
        let early = place(before.offset, 0) - said;
        let late = place(after.offset, AFTER_AT - LEAD_IN) + removed - said;
        assert!((early - late).abs() < 0.02, "{what}: before it {early:.4} s off, after it {late:.4} s");
        println!(
            "{policy:?}, {what}: likeness {:.2} and {:.2}, {:.1} ms apart",
            before.score,
            after.score,
            (late - early) * 1e3
        );
    }
}

#[tokio::test]
async fn what_is_said_in_a_pause_is_nowhere() {
    rounds(scaled(3), async |n| {
        let policy = if n % 3 == 0 { PausePolicy::Silence } else { PausePolicy::Skip };
        paused_words_are_nowhere(policy, n % 3 == 2, 10 + n).await;
    })
    .await;
}

#[tokio::test]
async fn only_a_controller_pauses_by_message_and_a_pause_ends_by_itself() {
    let call = Call::begin_with(|config| config.life.controllers = vec!["kind=agent".parse().unwrap()]).await;
    let mut news = call.recording.happenings();
    let agent = PublisherConfig::on(&call.server, ROOM, "agent").kind(ParticipantKind::Agent);
    let (agent, alice) = (Publisher::join(agent).await.unwrap(), call.join("alice").await);
    let pause = |seconds: f64| {
        let payload = format!(r#"{{"command":"pause","reason":"card","resume_after_seconds":{seconds}}}"#).into_bytes();
        let topic = Some(CONTROL_TOPIC.to_owned());
        data_packet::Value::User(UserPacket { payload, topic, ..UserPacket::default() })
    };
    let voice = alice.publish(words(1, 60 * SECOND), TrackOptions::default()).await.unwrap();
    voice.sent_at_least(50).await.unwrap();
    alice.send(pause(5.0)).await.unwrap();
    call.server.rooms().send_data(ROOM, CONTROL_TOPIC, br#"{"command":"pause"}"#).await.unwrap();
    agent.send(pause(1.0)).await.unwrap();
    let mut seen = Vec::new();
    while !matches!(seen.last(), Some(What::Resumed { .. })) {
        seen.push(news.recv().await.unwrap().what);
    }
    let recorded = call.stop().await;
    let [pause] = recorded.manifest.pauses.as_slice() else { panic!("{:?}", recorded.manifest.pauses) };
    assert_eq!((pause.by.as_str(), pause.reason.as_str()), ("agent", "card"));
    let seconds = pause.to_sample.unwrap().as_secs_f64() - pause.from_sample.as_secs_f64();
    assert!((seconds - 1.0).abs() < 0.001, "{seconds} s");
}

#[tokio::test]
async fn nothing_is_kept_before_consent_and_everything_after_it() {
    let call = Call::begin_with(|config| {
        config.life.consent = vec!["attribute=consent=yes".parse().unwrap()];
    });
    // It does not begin before that.
    let call = call.await;
    let alice = call.join("alice").await;
    let mut news = call.recording.happenings();
    let secret = Words::new(50);
    let voice =
        alice.publish_prepared(secret.packets.clone(), LEAD_IN + BEFORE, TrackOptions::default()).await.unwrap();
    voice.sent_at_least(AFTER_AT - GAP / 2 - LEAD_IN - BEFORE).await.unwrap();
    assert_eq!(call.recording.status().state, State::Starting);
    call.server.rooms().set_attributes(ROOM, "alice", &[("consent", "yes")]).await.unwrap();
    while !matches!(news.recv().await.unwrap().what, What::Started) {}
    voice.sent_at_least(END - LEAD_IN - BEFORE).await.unwrap();
    let spool = files(call.directory());
    let recorded = call.stop().await;

    assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result);
    secret.is_not_heard(recorded.audio.channel(0), "the recording");
    spool.iter().for_each(|(what, bytes)| secret.is_not_in(bytes, what));
    let late = secret.after.slice(AFTER / 2 * 960..(AFTER - 25) * 960);
    let found = heard_in(&late, recorded.audio.channel(0));
    assert!(found.score > 0.6, "{found:?}");
    let [consent] = recorded.manifest.pauses.as_slice() else { panic!("{:?}", recorded.manifest.pauses) };
    assert_eq!((consent.by.as_str(), consent.resumed_by.as_str()), ("consent", "alice"));
    let (from, to) = consent.removed.unwrap();
    assert_eq!(from.0, 0);
    let played = recorded.manifest.outputs[0].duration_seconds;
    assert!((recorded.manifest.duration_seconds - played - to.unwrap().as_secs_f64()).abs() < 0.021, "{played} s");
}

#[tokio::test]
async fn without_consent_nothing_is_kept_at_all() {
    let call = Call::begin_with(|config| config.life.consent = vec!["message=consent".parse().unwrap()]).await;
    let alice = call.join("alice").await;
    let voice = alice.publish(words(3, 60 * SECOND), TrackOptions::default()).await.unwrap();
    voice.sent_at_least(100).await.unwrap();
    let recorded = call.stop().await;
    assert_eq!(recorded.result.outcome, Outcome::Blocked);
    assert_eq!(recorded.result.reasons, [Reason::NoConsent { wanted: "message=consent".into() }]);
    assert_eq!((recorded.result.outcome.exit_code(), recorded.manifest.outcome), (5, Outcome::Blocked));
    assert!(recorded.audio.duration() < Duration::from_millis(40), "{:?}", recorded.audio.duration());
}

/// `callreel record` in a room, and where its files are.
fn record(server: &LiveKitServer, root: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callreel"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LIVEKIT") || name.starts_with("CALLREEL")) {
        command.env_remove(name);
    }
    command.args([
        "record",
        "--url",
        &server.url(),
        "--room",
        ROOM,
        "--name",
        "call",
        "--recording-id",
        "R1",
        "--spool",
    ]);
    command.arg(root.join("spool")).arg("--out").arg(root.join("out")).args(more);
    command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn send(signal: &str, pid: u32) {
    let sent = std::process::Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Reads the log of a recorder until it says `word`.
async fn says(log: &mut (impl tokio::io::AsyncBufRead + Unpin), word: &str) {
    use tokio::io::AsyncBufReadExt;
    let mut said = String::new();
    while log.read_line(&mut said).await.unwrap() > 0 {
        if said.lines().last().is_some_and(|line| line.contains(word)) {
            return;
        }
    }
    panic!("it never said {word:?}, but {said}");
}

#[tokio::test]
async fn a_recorder_that_was_paused_when_it_was_killed_is_paused_when_it_is_started_again() {
    let server = LiveKitServer::start().await.unwrap();
    let root = tempfile::tempdir().unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let secret = Words::new(70);
    let more = ["--departure-timeout", "60s", "--pause-policy", "skip", "--outputs", "mix,tracks"];

    let mut first = record(&server, root.path(), &more).spawn().unwrap();
    let mut log = tokio::io::BufReader::new(first.stderr.take().unwrap());
    says(&mut log, "recording started").await;
    let voice = alice.publish_prepared(secret.packets.clone(), 0, TrackOptions::default()).await.unwrap();
    voice.sent_at_least(SECRET_AT - GAP / 2).await.unwrap();
    let ordered = callreel::clock::now();
    send("-USR1", first.id().unwrap());
    says(&mut log, "paused").await;
    voice.sent_at_least(SECRET_AT + 40).await.unwrap();
    first.kill().await.unwrap();

    let mut second = record(&server, root.path(), &more).spawn().unwrap();
    let mut log = tokio::io::BufReader::new(second.stderr.take().unwrap());
    says(&mut log, "recording started").await;
    voice.sent_at_least(AFTER_AT - GAP / 2).await.unwrap();
    send("-USR2", second.id().unwrap());
    says(&mut log, "going on").await;
    let longest = (callreel::clock::now() - ordered).as_secs_f64();
    voice.sent_at_least(END).await.unwrap();
    send("-TERM", second.id().unwrap());
    let drained = tokio::spawn(async move { says(&mut log, "recording stopped").await });
    let output = second.wait_with_output().await.unwrap();
    drained.await.unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let result: RecordingResult = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();

    files(root.path()).iter().for_each(|(what, bytes)| secret.is_not_heard_in(bytes, what));
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(result.manifest.unwrap()).unwrap()).unwrap();
    manifest.check().unwrap();
    let [pause] = manifest.pauses.as_slice() else { panic!("one pause over both: {:?}", manifest.pauses) };
    assert_eq!((pause.by.as_str(), pause.resumed_by.as_str()), ("signal", "signal"));
    let (from, to) = pause.removed.unwrap();
    let removed = to.unwrap().as_secs_f64() - from.as_secs_f64();
    assert!((SECRET as f64 * 0.02..longest + 0.1).contains(&removed), "{removed} s of {longest} s");
    for output in &manifest.outputs {
        let file: PathBuf = root.path().join("out").join(&output.file);
        let audio = Audio::read(&file).unwrap();
        assert!((audio.duration().as_secs_f64() - output.duration_seconds).abs() < 0.02);
        assert!((manifest.duration_seconds - removed - output.duration_seconds).abs() < 0.021, "{output:?}");
        for said in [&secret.before, &secret.after.slice(AFTER / 2 * 960..(AFTER - 25) * 960)] {
            let found = heard_in(said, audio.channel(0));
            assert!(found.score > 0.6, "{}: {found:?}", output.file);
        }
    }
}
