//! What each fault of network, server, publisher and recorder costs a recording, measured against what was sent: on a real
//! server. Prints the rows of the table in `docs/faults.md`.

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use callreel::capture::{Reason as Settled, Row};
use callreel::clock;
use callreel::recording::{Manifest, Outcome, Reason, RecordingResult, StarvedEntry, StopReason, TrackEntry, What};
use callreel::room::Impairment;
use callreel::testkit::audio::generate;
use callreel::testkit::{
    LiveKitServer, Publisher, PublisherConfig, Relay, RelayFault, SentPacket, Tier, TrackOptions, Voice, checkout,
    rounds, tier,
};
use callreel::time::SampleCount;
use support::{Call, ROOM, Recorded, words};
use tokio::process::{Child, Command};

const SECOND: Duration = Duration::from_secs(1);

/// One packet of what is sent here.
const PACKET: f64 = 0.020;

/// How far the account of what is lost may be off, in seconds: a few packets at each border.
const ACCOUNT: f64 = 0.25;

/// How late a packet may come: nothing is said of what was sent in the last moments before the end.
const UNDER_WAY: f64 = 1.0;

/// How long a fault may go on for the recording once it is over, in seconds.
const AFTER: f64 = 0.5;

/// How often each fault is tried.
fn tries() -> u64 {
    if tier() == Tier::Test { 1 } else { 20 }
}

/// What one try came to.
#[derive(Debug)]
struct Tried {
    /// What was sent and is not in the recording, in seconds.
    lost: f64,
    outcome: Outcome,
}

/// Prints a row of the table.
fn row(fault: &str, tried: &[Tried]) {
    let mut lost: Vec<f64> = tried.iter().map(|tried| tried.lost * 1_000.0).collect();
    lost.sort_by(f64::total_cmp);
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for tried in tried {
        *outcomes.entry(tried.outcome.to_string()).or_default() += 1;
    }
    let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}×")).collect();
    let (median, most) = (lost[lost.len() / 2], lost[lost.len() - 1]);
    println!("| {fault} | {} | {median:.0} | {most:.0} | {} |", lost.len(), outcomes.join(", "));
}

/// When a packet was spoken to its end, in seconds after `zero`: a publisher that is late sends several at once.
fn spoken(voice: &Voice, packet: &SentPacket, zero: Instant) -> f64 {
    let spoken = voice.start() + packet.position.as_duration();
    spoken.saturating_duration_since(zero).as_secs_f64() + PACKET
}

/// How much of a span a row covers, in seconds.
fn within(row: &Row, span: &Range<f64>) -> f64 {
    (row.end.as_secs_f64().min(span.end) - row.start.as_secs_f64().max(span.start)).max(0.0)
}

/// What of the packets that were sent while a track was recorded is missing, in seconds; and that the ledger says the same.
/// The end was `asked` for at that moment.
fn missing(manifest: &Manifest, zero: Instant, voice: &Voice, asked: Instant) -> f64 {
    let tracks: Vec<&TrackEntry> = manifest.tracks.iter().filter(|track| track.identity == "alice").collect();
    let begun = tracks.iter().flat_map(|track| &track.ledger.rows).find(|row| row.reason == Settled::Received);
    let begun = begun.expect("something was received").start.as_secs_f64();
    let span = begun..(asked - zero).as_secs_f64() - UNDER_WAY;
    let sums = |reason: fn(Settled) -> bool| {
        let rows = tracks.iter().flat_map(|track| &track.ledger.rows).filter(|row| reason(row.reason));
        rows.map(|row| within(row, &span)).sum::<f64>()
    };
    let received = sums(|reason| reason == Settled::Received);
    let lost = sums(|reason| reason.degrades() || reason == Settled::Concealed || reason == Settled::Recovered);
    let sent = voice.sent().packets();
    let sent = sent.iter().filter(|packet| span.contains(&spoken(voice, packet, zero))).count() as f64 * PACKET;
    let missing = (sent - received).max(0.0);
    assert!((missing - lost).abs() < ACCOUNT + missing * 0.02, "missing {missing:.3} s, the ledger says {lost:.3} s");
    missing
}

impl Tried {
    /// Of a recording whose end was `asked` for at that moment.
    fn of(recorded: &Recorded, voice: &Voice, asked: Instant) -> Self {
        let lost = missing(&recorded.manifest, recorded.zero, voice, asked);
        if recorded.result.outcome != Outcome::Complete {
            println!("  {:?}", recorded.result.reasons);
        }
        Self { lost, outcome: recorded.result.outcome }
    }
}

/// Alice speaks without end.
async fn speak(by: &Publisher, seed: u64) -> Voice {
    let voice = by.publish(words(seed, 5 * SECOND), TrackOptions::default().looped(true)).await.unwrap();
    voice.sent_at_least(150).await.unwrap();
    voice
}

/// Lets so much be said.
async fn for_a_while(voice: &Voice, time: Duration) {
    voice.sent_at_least(voice.sent().len() + (time.as_secs_f64() / PACKET) as usize).await.unwrap();
}

/// The signalling connection is cut for `time`; the media connection is not.
async fn signal_cut(time: Duration) -> Vec<Tried> {
    rounds(tries(), async |seed| {
        let server = LiveKitServer::start().await.unwrap();
        let there = server.http_url().trim_start_matches("http://").parse().unwrap();
        let relay = Relay::open(there).await.unwrap();
        let url = relay.url();
        let call = Call::begin_on(server, |config| config.url = url).await;
        let alice = call.join("alice").await;
        let voice = speak(&alice, seed).await;
        relay.set(RelayFault::Refuses);
        for_a_while(&voice, time).await;
        relay.set(RelayFault::None);
        for_a_while(&voice, 5 * SECOND).await;
        let asked = clock::now();
        Tried::of(&call.stop().await, &voice, asked)
    })
    .await
}

#[tokio::test]
async fn signalling_cut_for_a_second_costs_nothing() {
    let tried = signal_cut(SECOND).await;
    row("signal socket cut, 1 s", &tried);
    // A packet may lie across where the account ends.
    assert!(tried.iter().all(|tried| tried.lost < 1.5 * PACKET && tried.outcome == Outcome::Complete), "{tried:?}");
}

#[tokio::test]
async fn signalling_cut_for_half_a_minute_is_joined_anew() {
    let tried = signal_cut(30 * SECOND).await;
    row("signal socket cut, 30 s", &tried);
    let is_fine = |tried: &Tried| tried.lost < 25.0 && tried.outcome != Outcome::Failed;
    assert!(tried.iter().all(is_fine), "{tried:?}");
}

async fn udp_blocked(time: Duration) -> Vec<Tried> {
    rounds(tries(), async |seed| {
        let impairment = Impairment::new(seed);
        let call = Call::begin_with(|config| config.impairment = Some(impairment.clone())).await;
        let alice = call.join("alice").await;
        let voice = speak(&alice, seed).await;
        let blocking = clock::now();
        impairment.block_udp(true);
        for_a_while(&voice, time).await;
        impairment.block_udp(false);
        let blocked = (clock::now() - blocking).as_secs_f64();
        for_a_while(&voice, 5 * SECOND).await;
        let asked = clock::now();
        let tried = Tried::of(&call.stop().await, &voice, asked);
        assert!(tried.lost < blocked + AFTER, "{tried:?} of {blocked:.2} s");
        tried
    })
    .await
}

#[tokio::test]
async fn udp_blocked_for_two_seconds() {
    let tried = udp_blocked(2 * SECOND).await;
    row("UDP blocked, 2 s", &tried);
}

#[tokio::test]
async fn udp_blocked_for_ten_seconds_is_gone_round_by_tcp() {
    let tried = udp_blocked(10 * SECOND).await;
    row("UDP blocked, 10 s", &tried);
}

#[tokio::test]
async fn udp_blocked_for_a_minute_is_gone_round_by_tcp() {
    let tried = udp_blocked(60 * SECOND).await;
    row("UDP blocked, 60 s", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 25.0), "{tried:?}");
}

/// The server dies and is started again; Alice is there again at once.
#[tokio::test]
async fn a_killed_server_costs_its_absence_and_half_a_second() {
    let tried = rounds(tries(), async |seed| {
        let mut call = Call::begin_with(|_| {}).await;
        let mut news = call.recording.happenings();
        let alice = call.join("alice").await;
        let first = speak(&alice, seed).await;
        let killed = clock::now();
        call.server.kill();
        tokio::time::sleep(Duration::from_millis(500 * (seed % 8))).await;
        call.server.restart().await.unwrap();
        let up = clock::now();
        drop((alice, first));
        let alice = call.join("alice").await;
        let voice = alice.publish(words(seed, 5 * SECOND), TrackOptions::default().looped(true)).await.unwrap();
        while !matches!(news.recv().await.unwrap().what, What::MediaBack) {}
        let back = clock::now();
        for_a_while(&voice, 5 * SECOND).await;
        let recorded = call.stop().await;
        // What was sent after it and before the first packet that was received of the new track.
        let track = recorded.track(voice.sid());
        let heard = track.ledger.rows.iter().find(|row| row.reason == Settled::Received).expect("heard again");
        let begun = voice.sent().first().unwrap().at.saturating_duration_since(recorded.zero).as_secs_f64();
        let late = (heard.start.as_secs_f64() - begun).max(0.0);
        let again = heard.start.as_secs_f64() - (back - recorded.zero).as_secs_f64();
        assert!(again < 2.0, "heard {again:.2} s after media were back");
        println!(
            "  without server {:.2} s, media back after {:.2} s more",
            (up - killed).as_secs_f64(),
            (back - up).as_secs_f64()
        );
        Tried { lost: late, outcome: recorded.result.outcome }
    })
    .await;
    row("server killed and started again (beyond its absence)", &tried);
    // Up to 5 s pass between one attempt to join and the next, and each takes its time.
    assert!(tried.iter().all(|tried| tried.lost < 10.0), "{tried:?}");
}

#[tokio::test]
async fn who_removes_the_recorder_ends_the_recording_and_loses_nothing_before() {
    let tried = rounds(tries(), async |seed| {
        let call = Call::begin_with(|config| config.identity = Some("recorder".into())).await;
        let alice = call.join("alice").await;
        let voice = speak(&alice, seed).await;
        let asked = clock::now();
        call.server.rooms().remove(ROOM, "recorder").await.unwrap();
        let recorded = call.over().await;
        assert!(matches!(recorded.result.reasons.as_slice(), [Reason::Removed { .. }, ..]), "{:?}", recorded.result);
        Tried::of(&recorded, &voice, asked)
    })
    .await;
    row("recorder removed by an admin", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 0.1 && tried.outcome == Outcome::Failed), "{tried:?}");
}

#[tokio::test]
async fn a_deleted_room_loses_nothing_before() {
    let tried = rounds(tries(), async |seed| {
        let call = Call::begin().await;
        let alice = call.join("alice").await;
        let voice = speak(&alice, seed).await;
        let asked = clock::now();
        call.server.rooms().delete(ROOM).await.unwrap();
        let recorded = call.over().await;
        assert_eq!(recorded.result.stopped_by, Some(StopReason::RoomClosed));
        Tried::of(&recorded, &voice, asked)
    })
    .await;
    row("room deleted", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 0.1 && tried.outcome == Outcome::Complete), "{tried:?}");
}

#[tokio::test]
async fn a_publisher_that_crashes_loses_nothing_of_what_it_sent() {
    let tried = rounds(tries(), async |seed| {
        let call = Call::begin_with(|config| config.leg_silent_after = Some(2 * SECOND)).await;
        let mut news = call.recording.happenings();
        let (alice, bob) = (call.join("alice").await, call.join("bob").await);
        let _bob = bob.publish(generate::speech(seed + 9, SECOND), TrackOptions::default().looped(true)).await.unwrap();
        let voice = speak(&alice, seed).await;
        alice.crash().await;
        // It is missed before the server gives it up.
        loop {
            if let What::LegSilent { participant, .. } = news.recv().await.unwrap().what {
                assert_eq!(participant, "alice");
                break;
            }
        }
        let recorded = call.stop().await;
        let last = spoken(&voice, &voice.sent().last().unwrap(), recorded.zero);
        let rows = &recorded.track(voice.sid()).ledger.rows;
        let heard = rows.iter().rfind(|row| row.reason == Settled::Received).unwrap().end.as_secs_f64();
        Tried { lost: (last - heard).max(0.0), outcome: recorded.result.outcome }
    })
    .await;
    row("publisher crashes without leaving", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 0.1 && tried.outcome == Outcome::Complete), "{tried:?}");
}

#[tokio::test]
async fn a_publisher_whose_network_was_cut_is_heard_again_at_its_true_moment() {
    let cut = 5 * SECOND;
    let tried = rounds(tries(), async |seed| {
        let call = Call::begin().await;
        let alice = call.join("alice").await;
        let voice = speak(&alice, seed).await;
        let before = voice.sent().len();
        alice.cut(true).await.unwrap();
        for_a_while(&voice, cut).await;
        alice.cut(false).await.unwrap();
        let meanwhile = (voice.sent().len() - before) as f64 * PACKET;
        let mended = voice.sent().last().unwrap().at;
        for_a_while(&voice, 5 * SECOND).await;
        let asked = clock::now();
        let recorded = call.stop().await;
        // Of what was sent after it.
        let second = |at: Instant| at.saturating_duration_since(recorded.zero).as_secs_f64();
        let after = second(mended)..second(asked) - UNDER_WAY;
        let rows = recorded.track(voice.sid()).ledger.rows.iter().filter(|row| row.reason == Settled::Received);
        let heard: f64 = rows.map(|row| within(row, &after)).sum();
        let whole = missing(&recorded.manifest, recorded.zero, &voice, asked);
        assert!(whole < meanwhile + 1.0, "{whole:.2} s missing of {meanwhile:.2} s");
        Tried { lost: (after.end - after.start - heard).max(0.0), outcome: recorded.result.outcome }
    })
    .await;
    row("publisher's network cut for 5 s (beyond that)", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 0.5 && tried.outcome == Outcome::Degraded), "{tried:?}");
}

/// `callreel record` in a room, as a process that can be stopped and deceived.
struct Process {
    process: Child,
    out: tempfile::TempDir,
}

impl Process {
    async fn start(server: &LiveKitServer, environment: &[(&str, String)]) -> Self {
        let out = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_callreel"));
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("LIVEKIT") || name.starts_with("CALLREEL"))
        {
            command.env_remove(name);
        }
        command.args(["record", "--url", &server.url(), "--room", ROOM, "--departure-timeout", "60s", "--out"]);
        command.arg(out.path()).env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
        command.envs(environment.iter().map(|(name, value)| (*name, value))).kill_on_drop(true);
        let log = std::fs::File::create(out.path().join("log")).unwrap();
        let process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let started = Self { process, out };
        while !started.log().contains("recording started") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        started
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.out.path().join("log")).unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Finishes; gives the result, the manifest, and the log.
    async fn finish(self) -> (RecordingResult, Manifest, String) {
        self.signal("-TERM");
        let Self { process, out } = self;
        let output = process.wait_with_output().await.unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let result: RecordingResult = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        let manifest: Manifest =
            serde_json::from_slice(&std::fs::read(result.manifest.as_ref().unwrap()).unwrap()).unwrap();
        manifest.check().unwrap();
        (result, manifest, std::fs::read_to_string(out.path().join("log")).unwrap())
    }
}

#[tokio::test]
async fn a_recorder_that_is_stopped_for_five_seconds_hears_what_its_socket_kept() {
    let tried = rounds(tries(), async |seed| {
        let server = LiveKitServer::start().await.unwrap();
        let process = Process::start(&server, &[]).await;
        let zero = clock::now();
        let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
        let voice = speak(&alice, seed).await;
        let stopping = clock::now();
        process.signal("-STOP");
        for_a_while(&voice, 5 * SECOND).await;
        process.signal("-CONT");
        let stopped = (clock::now() - stopping).as_secs_f64();
        for_a_while(&voice, 5 * SECOND).await;
        let asked = clock::now();
        let (result, manifest, log) = process.finish().await;
        assert!(log.contains("no processor time"), "it says so itself: {log}");
        // A busy machine may starve it once more, but not for so long.
        let long = |entry: &&StarvedEntry| entry.to_sample.since(entry.from_sample) >= SampleCount::from_millis(4_000);
        assert_eq!(manifest.starved.iter().filter(long).count(), 1, "{:?}", manifest.starved);
        let age = clock::wall() - manifest.started_at;
        let zero = zero.min(clock::now() - Duration::try_from(age).unwrap());
        let tried = Tried { lost: missing(&manifest, zero, &voice, asked), outcome: result.outcome };
        assert!(tried.lost < stopped + AFTER, "{tried:?} of {stopped:.2} s");
        tried
    })
    .await;
    row("recorder stopped (SIGSTOP), 5 s", &tried);
}

/// Compiles what sets the clock.
fn stepped(dir: &Path) -> PathBuf {
    let library = dir.join("stepped.so");
    let source = checkout().join("tests/faults/stepped.c");
    let compiled =
        std::process::Command::new("cc").args(["-shared", "-fPIC", "-O1"]).arg(source).arg("-o").arg(&library).status();
    assert!(compiled.expect("a C compiler").success());
    library
}

#[tokio::test]
async fn a_clock_that_is_set_moves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let library = stepped(dir.path());
    let tried = rounds(tries(), async |seed| {
        let server = LiveKitServer::start().await.unwrap();
        let when = dir.path().join(format!("step-{seed}"));
        let seconds = if seed % 2 == 0 { "3600" } else { "-3600" };
        let environment = [
            ("LD_PRELOAD", library.display().to_string()),
            ("STEP_WHEN", when.display().to_string()),
            ("STEP_SECONDS", seconds.to_owned()),
        ];
        let starting = clock::now();
        let process = Process::start(&server, &environment).await;
        let started = clock::now();
        let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
        let voice = speak(&alice, seed).await;
        std::fs::write(&when, b"").unwrap();
        for_a_while(&voice, 5 * SECOND).await;
        let asked = clock::now();
        let (result, manifest, _) = process.finish().await;
        let lasted = (asked - started).as_secs_f64() - ACCOUNT..=(clock::now() - starting).as_secs_f64();
        assert!(lasted.contains(&manifest.duration_seconds), "{} s of {lasted:?} s", manifest.duration_seconds);
        let gap = manifest.ended_at - manifest.started_at;
        assert!((gap.as_seconds_f64() - manifest.duration_seconds).abs() < 0.01);
        let age = clock::wall() - manifest.started_at;
        let zero = clock::now() - Duration::try_from(age).unwrap();
        Tried { lost: missing(&manifest, zero, &voice, asked), outcome: result.outcome }
    })
    .await;
    row("clock set by an hour", &tried);
    assert!(tried.iter().all(|tried| tried.lost < 0.1 && tried.outcome == Outcome::Complete), "{tried:?}");
}

/// People who come and go as they like, each of them saying something.
#[tokio::test]
async fn many_who_come_and_go_are_all_told_of() {
    let (people, visits) = if tier() == Tier::Test { (10, 2) } else { (50, 25) };
    let call = Call::begin_with(|config| config.life.stop.departure_timeout = 600 * SECOND).await;
    let visit = async |person: u64| {
        let mut random = fastrand::Rng::with_seed(person);
        let mut said = Vec::new();
        for _ in 0..visits {
            let visitor = call.join(&format!("person-{person}")).await;
            let length = Duration::from_millis(random.u64(500..4_000));
            let voice = visitor.publish(words(person, length), TrackOptions::default()).await.unwrap();
            // Who has said it stays until the server has had the time to hand it on: 5 s in all.
            voice.sent_at_least(250).await.unwrap();
            said.push((visitor.sid().to_owned(), voice.sid().to_owned()));
            if random.bool() {
                visitor.leave().await.unwrap();
            } else {
                visitor.crash().await;
            }
            tokio::time::sleep(Duration::from_millis(random.u64(0..3_000))).await;
        }
        said
    };
    let all = futures_util::future::join_all((0..people).map(visit)).await;
    let recorded = call.stop().await;
    let (mut told, mut lost) = (0, 0.0);
    for (sid, track) in all.iter().flatten() {
        assert!(recorded.manifest.participants.iter().any(|entry| entry.sid == *sid), "{sid} was there");
        let ledger = &recorded.track(track).ledger;
        lost += callreel::time::SampleCount(ledger.sums.lost).as_secs_f64();
        told += usize::from(ledger.sums.received > 0);
    }
    println!("  {told} of {} sessions were heard, {lost:.2} s lost in all", people as usize * visits);
    row(&format!("{people} people come and go"), &[Tried { lost, outcome: recorded.result.outcome }]);
    assert_eq!(told, people as usize * visits);
    assert!(lost < 0.1, "{lost} s");
}
