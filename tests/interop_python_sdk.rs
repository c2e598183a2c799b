//! The official Python SDK (real libwebrtc) publishes, callreel listens.

use std::path::Path;
use std::time::Duration;

use callreel::call::{Codec, Encryption};
use callreel::clock;
use callreel::config::Config;
use callreel::e2ee::{E2eeConfig, KeyMaterial};
use callreel::recording::{Manifest, Outcome, Reason, Recorder, RecordingHandle, State};
use callreel::room::{Credentials, Room, RoomConfig, RoomEvent};
use callreel::testkit::analysis;
use callreel::testkit::audio::generate;
use callreel::testkit::python::{self, PythonEvent};
use callreel::testkit::{Audio, LiveKitServer, PublishPlan, PythonParticipant, PythonPublisher, checkout};

/// An Opus decoder takes any payload of RED (RFC 2198) for one packet, but its frames then have absurd lengths.
const OPUS_20_MS: usize = 960;
/// How far one voice may lie from its place against another, where the publisher is never late.
const TOLERANCE_MS: f64 = 20.0;

#[tokio::test]
async fn audio_of_the_sdk_arrives_as_plain_opus_and_its_video_is_left_alone() {
    let server = LiveKitServer::start().await.unwrap();
    let tone = generate::tone(440.0, 0.5, Duration::from_secs(20));
    let mut alice = PythonParticipant::new("alice", 20.0).says(&tone, 0.0);
    alice.video = true;
    alice.red = true;
    let plan = PublishPlan { queue_ms: 0, participants: vec![alice] };
    let mut publisher = PythonPublisher::spawn(&server, "interop", &plan).await.unwrap();
    publisher.start().await.unwrap();

    let baseline = python::subscribe(&server, "interop", "sdk").await.unwrap();
    let connecting = clock::now();
    let config = RoomConfig::new(server.url(), key(&server));
    let (room, mut events) = Room::connect(config.room("interop")).await.unwrap();
    let mut tracks = Vec::new();
    let mut first_packet = None;
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let mut pcm = vec![0.0; 5_760];
    let mut packets = 0;
    while packets < 100 {
        match events.recv().await.expect("the room stays open") {
            RoomEvent::TrackPublished { track, .. } => tracks.push(track),
            RoomEvent::Rtp(packet) => {
                first_packet.get_or_insert(packet.arrival);
                assert_eq!(packet.codec, Codec::Opus);
                assert_eq!(decoder.decode_float(&packet.payload, &mut pcm, false).unwrap(), OPUS_20_MS);
                packets += 1;
            }
            _ => {}
        }
    }
    room.close().await;

    let [track] = &tracks[..] else { panic!("one audio track, not {tracks:?}") };
    assert_eq!(track.source, "microphone");
    let heard = pcm[..OPUS_20_MS].iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
    assert!(heard > 0.3, "the tone has a peak of 0.5, heard {heard}");
    println!(
        "from connecting to the first packet: callreel {:.0} ms, the SDK {:.0} ms",
        first_packet.unwrap().duration_since(connecting).as_secs_f64() * 1e3,
        millis(&baseline, "connecting", "first_packet"),
    );
}

#[tokio::test]
async fn two_publishers_of_the_sdk_are_recorded_where_they_spoke() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let (agent, caller) = (fixture("agent.flac"), fixture("caller.flac"));
    // Each says two lines of its side of the conversation; the second ones overlap for 0.7 s.
    let said = [
        ("agent", said(&agent, 0.50, 5.65), 1.0),
        ("caller", said(&caller, 6.05, 9.17), 6.3),
        ("agent", said(&agent, 9.47, 12.79), 9.8),
        ("caller", said(&caller, 11.90, 14.09), 12.4),
    ];
    let speaker = |identity: &str| {
        let mine = said.iter().filter(|(who, ..)| *who == identity);
        mine.fold(PythonParticipant::new(identity, 15.5), |speaker, (_, sound, at)| speaker.says(sound, *at))
    };
    let mut caller = speaker("caller");
    caller.dtx = false;
    caller.red = false;
    caller.video = true;
    let plan = PublishPlan { queue_ms: 0, participants: vec![speaker("agent"), caller] };

    let recording = record(&server, "aligned", out.path()).await;
    let mut publisher = PythonPublisher::spawn(&server, "aligned", &plan).await.unwrap();
    publisher.start().await.unwrap();
    let events = publisher.finish().await.unwrap();
    let (manifest, heard) = finished(&recording).await;

    assert_eq!(manifest.outcome, Outcome::Complete, "{:?}", manifest.reasons);
    assert_eq!(manifest.tracks.len(), 2, "one microphone each, and no camera");
    let places: Vec<(f64, f64)> = said.iter().map(|(_, sound, at)| (*at, place(sound, &heard))).collect();
    let never_said = analysis::find(fixture("words.flac").slice(0..96_000).channel(0), heard.channel(0)).unwrap();
    assert!(never_said.score < 0.3, "likeness tells nothing: {never_said:?}");
    println!("likeness of what was not said: {:.2}", never_said.score);
    let (first_at, first_found) = places[0];
    for ((at, found), (who, ..)) in places.iter().zip(&said) {
        let error = ((found - first_found) - (at - first_at)) * 1e3;
        println!("{who} at {at:.1} s: {error:+.2} ms against the first line");
        assert!(error.abs() <= tolerance(&events), "{who} at {at} s is off by {error:.1} ms; {events:?}");
    }
}

#[tokio::test]
async fn muting_republishing_leaving_and_rejoining_in_the_sdk_are_in_file_and_manifest() {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let words = fixture("words.flac");
    let line = said(&fixture("caller.flac"), 6.05, 7.60);
    // "one" to "four", muted during "two" and "three".
    let mut muted = PythonParticipant::new("muted", 12.8).says(&said(&words, 0.0, 3.0), 1.0);
    muted.mute = vec![(1.74, 3.20)];
    let first = PythonParticipant::new("again", 6.2).says(&line, 4.5);
    let mut second = PythonParticipant::new("again", 12.8).says(&line, 8.5).says(&line, 11.1);
    second.join = Some(7.0);
    second.publish = Some(vec![(7.8, 10.2), (10.5, 12.8)]);
    let plan = PublishPlan { queue_ms: 0, participants: vec![muted, first, second] };

    let recording = record(&server, "lives", out.path()).await;
    let mut publisher = PythonPublisher::spawn(&server, "lives", &plan).await.unwrap();
    publisher.start().await.unwrap();
    let events = publisher.finish().await.unwrap();
    let (manifest, heard) = finished(&recording).await;

    assert_eq!(manifest.outcome, Outcome::Complete, "{:?}", manifest.reasons);
    let count = |identity: &str| manifest.tracks.iter().filter(|track| track.identity == identity).count();
    assert_eq!(count("muted"), 1);
    assert_eq!(count("again"), 3, "one of the first session, two of the second");
    let sessions = manifest.participants.iter().filter(|participant| participant.identity == "again").count();
    assert_eq!(sessions, 2);

    let zero = place(&said(&words, 0.0, 0.67), &heard) - 1.0;
    // The whole line is looked for, so that neither its first word nor its last may lack: `again` leaves right after it.
    for (what, sound, at) in [
        ("four", &said(&words, 2.25, 2.92), 3.25),
        ("the line before leaving", &line, 4.5),
        ("the line after rejoining", &line, 8.5),
        ("the line after publishing again", &line, 11.1),
    ] {
        let from = zero + at - 0.5;
        let around = said(&heard, from, from + 1.0 + sound.duration().as_secs_f64());
        let error = (from + place(sound, &around) - zero - at) * 1e3;
        println!("{what}: {error:+.2} ms against the first word");
        assert!(error.abs() <= tolerance(&events), "{what} is off by {error:.1} ms");
    }
    let in_between = said(&heard, zero + 1.85, zero + 3.15);
    assert!(analysis::level(in_between.channel(0)) < -60.0, "nothing is heard of the muted words");
}

/// Starts a recording and waits until it is in the room.
async fn record(server: &LiveKitServer, room: &str, out: &Path) -> RecordingHandle {
    let mut config = Config::new(server.url(), key(server), room);
    config.out = out.to_owned();
    config.life.stop.departure_timeout = Duration::from_secs(1);
    let mut recording = Recorder::start(config);
    while recording.status().state == State::Starting {
        recording.changed().await;
    }
    recording
}

/// Waits for the recording's end; its manifest, and what is to be heard in it.
async fn finished(recording: &RecordingHandle) -> (Manifest, Audio) {
    let result = recording.wait().await;
    let manifest = std::fs::read(result.manifest.expect("there is a manifest")).unwrap();
    let manifest: Manifest = serde_json::from_slice(&manifest).unwrap();
    manifest.check().unwrap();
    (manifest, Audio::read(&result.outputs[0].location).unwrap())
}

fn key(server: &LiveKitServer) -> Credentials {
    Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() }
}

fn fixture(name: &str) -> Audio {
    Audio::read(checkout().join("fixtures").join(name)).unwrap()
}

/// What is said from `from` to `to` seconds.
fn said(sound: &Audio, from: f64, to: f64) -> Audio {
    sound.slice((from * 48e3) as usize..(to * 48e3) as usize)
}

/// Where `sound` lies in `recording`, in seconds.
fn place(sound: &Audio, recording: &Audio) -> f64 {
    let found = analysis::find(sound.channel(0), recording.channel(0)).expect("neither is silent");
    // Under another voice of the same loudness, and partly moved by a millisecond, a line is as like itself as 0.55.
    println!("likeness {:.2}", found.score);
    assert!(found.score > 0.35, "it is not in the recording: {found:?}");
    found.offset as f64 / 48e3
}

/// How far one voice may lie from its place against another: a publisher whose machine is busy pauses in a line or
/// before it, and what follows comes later by as much as its latest tick.
fn tolerance(events: &[PythonEvent]) -> f64 {
    TOLERANCE_MS + events.iter().find_map(|event| event.latest_tick_ms).expect("it tells how late it was")
}

fn millis(events: &[PythonEvent], from: &str, to: &str) -> f64 {
    let at = |name: &str| events.iter().find(|event| event.event == name).expect(name).monotonic_ns as f64;
    (at(to) - at(from)) / 1e6
}

/// A line of the agent's, from 1 s on.
fn encrypted_line() -> Audio {
    said(&fixture("agent.flac"), 0.50, 5.65)
}

/// Half a second of the line after the other is heard, before and after each change of keys. Not the line as one: a publisher
/// whose machine is busy pauses in it, and what follows comes later by as much. A pause spoils the piece in which it falls.
fn assert_heard(heard: &Audio) {
    let line = encrypted_line();
    let pieces = line.channel(0).chunks_exact(24_000);
    let scores: Vec<f64> = pieces.map(|piece| analysis::find(piece, heard.channel(0)).unwrap().score).collect();
    println!("likeness {scores:.2?}");
    for third in scores.chunks(scores.len().div_ceil(3)) {
        let alike = third.iter().filter(|score| **score > 0.9).count();
        assert!(2 * alike > third.len(), "{scores:.2?}");
    }
}

async fn recorded_encrypted(room: &str, speaker: PythonParticipant, keys: E2eeConfig) -> (Manifest, Audio) {
    let server = LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    let mut config = Config::new(server.url(), key(&server), room);
    config.out = out.path().to_owned();
    config.life.stop.departure_timeout = Duration::from_secs(1);
    config.e2ee = keys;
    let mut recording = Recorder::start(config);
    while recording.status().state == State::Starting {
        recording.changed().await;
    }
    let plan = PublishPlan { queue_ms: 0, participants: vec![speaker] };
    let mut publisher = PythonPublisher::spawn(&server, room, &plan).await.unwrap();
    publisher.start().await.unwrap();
    publisher.finish().await.unwrap();
    finished(&recording).await
}

fn sealing(identity: &str, passphrase: &str) -> PythonParticipant {
    let mut speaker = PythonParticipant::new(identity, 7.5).says(&encrypted_line(), 1.0);
    speaker.e2ee_key = Some(passphrase.to_owned());
    speaker
}

fn shared(passphrase: &str) -> E2eeConfig {
    E2eeConfig::new().shared_key(0, KeyMaterial::passphrase(passphrase))
}

#[tokio::test]
async fn the_sdks_encrypted_speech_is_recorded_with_the_right_key() {
    let (manifest, heard) = recorded_encrypted("sealed", sealing("ann", "open sesame"), shared("open sesame")).await;
    assert_eq!(manifest.outcome, Outcome::Complete, "{:?}", manifest.reasons);
    assert_eq!(manifest.tracks[0].encryption, Encryption::Gcm);
    assert_eq!(manifest.tracks[0].ledger.sums.undecryptable, 0);
    assert_heard(&heard);
}

#[tokio::test]
async fn a_wrong_key_is_told_and_leaves_silence() {
    let (manifest, heard) = recorded_encrypted("wrong", sealing("ann", "open sesame"), shared("open barley")).await;
    assert_eq!(manifest.outcome, Outcome::Failed);
    let [Reason::Undecryptable { participant, frames, message, .. }] = &manifest.reasons[..] else {
        panic!("{:?}", manifest.reasons)
    };
    assert_eq!((participant.as_str(), message.as_str()), ("ann", "key number 0 is wrong"));
    let ledger = &manifest.tracks[0].ledger;
    assert_eq!((ledger.counters.packets_undecryptable, ledger.sums.received), (*frames, 0));
    assert!(ledger.sums.undecryptable > 5 * 48_000, "{:?}", ledger.sums);
    let peak = heard.channel(0).iter().fold(0.0_f32, |peak, sample| peak.max(sample.abs()));
    assert!(peak < 1e-9, "a decoder's silence, not {peak}");
}

#[tokio::test]
async fn the_sdks_ratcheted_keys_are_followed() {
    let mut speaker = sealing("ann", "open sesame");
    speaker.ratchet = vec![2.5, 4.0];
    let (manifest, heard) = recorded_encrypted("ratchet", speaker, shared("open sesame")).await;
    assert_eq!(manifest.outcome, Outcome::Complete, "{:?}", manifest.reasons);
    assert_heard(&heard);
}

#[tokio::test]
async fn a_participants_own_key_of_the_sdk_is_used() {
    let mut speaker = sealing("ann", "ann's own");
    speaker.e2ee_own_key = true;
    speaker.ratchet = vec![3.0];
    let keys = shared("not this").participant_key("ann", 0, KeyMaterial::passphrase("ann's own"));
    let (manifest, heard) = recorded_encrypted("own", speaker, keys).await;
    assert_eq!(manifest.outcome, Outcome::Complete, "{:?}", manifest.reasons);
    assert_heard(&heard);
}
