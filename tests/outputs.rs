//! Mix, dual and track files come from one capture: each voice at its moment, on its side and only there, and the manifest
//! says how it got there.

mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use callreel::call::{Codec, ParticipantKind};
use callreel::clock;
use callreel::config::{Config, OutputKind};
use callreel::mix::{Mixing, Side, Unpassable};
use callreel::recording::{Outcome, OutputEntry, Reason, StreamEntry};
use callreel::testkit::{Audio, Publisher, PublisherConfig, TrackOptions};
use support::{Call, ROOM, Recorded, SETTLE, part, words};

const SECOND: Duration = Duration::from_secs(1);
const ALL: [OutputKind; 3] = [OutputKind::Mix, OutputKind::Dual, OutputKind::Tracks];

/// Below this a channel is silent while somebody speaks on the other.
const SILENT: f64 = -70.0;

fn all(config: &mut Config) {
    config.outputs = ALL.to_vec();
}

async fn join_as(call: &Call, identity: &str, kind: ParticipantKind) -> Publisher {
    Publisher::join(PublisherConfig::on(&call.server, ROOM, identity).kind(kind)).await.unwrap()
}

/// A caller who speaks for four seconds, and an agent who answers for four from the second second on.
struct Conversation {
    recorded: Recorded,
    caller: (Audio, Instant),
    agent: (Audio, Instant),
}

impl Conversation {
    async fn hold(codec: Codec, adjust: impl FnOnce(&mut Config)) -> Self {
        let call = Call::begin_with(adjust).await;
        let agent = join_as(&call, "agent", ParticipantKind::Agent).await;
        let caller = join_as(&call, "sip_1555", ParticipantKind::Sip).await;
        let (theirs, its) = (words(1, 4 * SECOND), words(2, 4 * SECOND));
        let start = clock::now() + SETTLE;
        let later = start + Duration::from_micros(2_003_457);
        let telephone = TrackOptions::default().codec(codec).start(start);
        let caller_voice = caller.publish(theirs.clone(), telephone).await.unwrap();
        let agent_voice = agent.publish(its.clone(), TrackOptions::default().start(later)).await.unwrap();
        caller_voice.said().await.unwrap();
        agent_voice.said().await.unwrap();
        // A server may hold the last packets back for a moment: those are silence.
        agent_voice.sent_at_least(agent_voice.sent().len() + 25).await.unwrap();
        let recorded = call.stop().await;
        assert_eq!(recorded.result.outcome, Outcome::Complete, "{:?}", recorded.result.reasons);
        Self { recorded, caller: (theirs, start), agent: (its, later) }
    }

    /// How far apart from their places in the mix the voices are in two channels, in milliseconds: by what each says alone, as
    /// where the other speaks too, a mix leads a voice back that lay a millisecond off.
    fn off(&self, callers: &[f32], agents: &[f32]) -> [f64; 2] {
        let off = |channel: &[f32], (sound, said): &(Audio, Instant), from: u64, to: u64| {
            let sound = part(sound, from, to);
            let said = *said + Duration::from_millis(from);
            self.recorded.error_in(channel, &sound, said) - self.recorded.error(&sound, said)
        };
        [off(callers, &self.caller, 500, 1_900), off(agents, &self.agent, 2_200, 3_900)]
    }

    /// The caller alone is heard in one channel, the agent alone in the other.
    fn assert_apart(&self, callers: &[f32], agents: &[f32]) {
        let (start, later) = (self.caller.1, self.agent.1);
        let level = |channel, from, to| self.recorded.level_in(channel, from, to);
        // Nobody's last echo lasts for 200 ms.
        let caller_alone = (start + Duration::from_millis(300), later - Duration::from_millis(100));
        let agent_alone = (start + Duration::from_millis(4_300), later + Duration::from_millis(3_900));
        for (one, other, (from, to)) in [(callers, agents, caller_alone), (agents, callers, agent_alone)] {
            let (heard, not_heard) = (level(one, from, to), level(other, from, to));
            assert!(heard > -40.0 && not_heard < SILENT, "{heard:.1} dBFS here, {not_heard:.1} dBFS there");
        }
    }
}

fn stream(entry: &OutputEntry, side: Option<Side>) -> &StreamEntry {
    entry.streams.iter().find(|stream| stream.side == side).unwrap_or_else(|| panic!("no {side:?} in {entry:#?}"))
}

/// `callreel inspect` and, where they are installed, opusinfo and ffprobe find nothing wrong with any file.
fn judge(recorded: &Recorded) {
    let manifest = recorded.result.manifest.as_ref().unwrap();
    let inspected = Command::new(env!("CARGO_BIN_EXE_callreel")).args(["inspect", manifest]).output().unwrap();
    let said = String::from_utf8_lossy(&inspected.stdout).into_owned();
    assert!(inspected.status.success(), "{said}");
    for entry in &recorded.manifest.outputs {
        let file = recorded.file(entry);
        assert!(said.contains(&*file.to_string_lossy()), "{} is looked at: {said}", entry.file);
        let one = Command::new(env!("CARGO_BIN_EXE_callreel")).arg("inspect").arg(&file).output().unwrap();
        assert!(one.status.success(), "{}", String::from_utf8_lossy(&one.stdout));
        assert_eq!(entry.duration_seconds, recorded.manifest.duration_seconds, "{} has the call's length", entry.file);
        if let Some(said) = ask("opusinfo", &[], &file) {
            let said = said.to_lowercase();
            assert!(!said.contains("warning") && !said.contains("error"), "{said}");
        }
        let layout = ["-v", "error", "-show_entries", "stream=channels,channel_layout", "-of", "csv=p=0"];
        if let Some(said) = ask("ffprobe", &layout, &file) {
            let expected = if entry.kind == OutputKind::Dual { "2,stereo" } else { "1,mono" };
            assert_eq!(said.trim(), expected, "{}", entry.file);
        }
    }
}

/// What `program` says of a file, or `None` where it is not installed.
fn ask(program: &str, arguments: &[&str], file: &Path) -> Option<String> {
    match Command::new(program).args(arguments).arg(file).output() {
        Ok(output) => {
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("{program}: {error}"),
    }
}

#[tokio::test]
async fn one_call_becomes_mix_dual_and_tracks_with_everybodys_own_packets() {
    let call = Conversation::hold(Codec::Opus, all).await;
    let kinds: Vec<OutputKind> = call.recorded.result.outputs.iter().map(|output| output.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == OutputKind::Tracks).count(), 2, "{kinds:?}");
    assert_eq!(kinds[..2], ALL[..2]);
    judge(&call.recorded);

    let (entry, dual) = call.recorded.output(OutputKind::Dual, None);
    assert!(entry.file.ends_with("-dual.ogg"), "{}", entry.file);
    assert_eq!((&*entry.left, &*entry.right), (&["sip_1555".to_owned()][..], &["agent".to_owned()][..]));
    let off = call.off(dual.channel(0), dual.channel(1));
    assert!(off.iter().all(|off| off.abs() <= 10.5), "{off:.2?} ms off in dual");
    call.assert_apart(dual.channel(0), dual.channel(1));

    let (callers, caller) = call.recorded.output(OutputKind::Tracks, Some("sip_1555"));
    let (agents, agent) = call.recorded.output(OutputKind::Tracks, Some("agent"));
    assert!(callers.file.ends_with("-sip_1555.ogg") && agents.file.ends_with("-agent.ogg"));
    let off_tracks = call.off(caller.channel(0), agent.channel(0));
    assert!(off_tracks.iter().all(|off| off.abs() <= 3.0), "{off_tracks:.2?} ms off in tracks");
    call.assert_apart(caller.channel(0), agent.channel(0));
    println!("off their places in the mix: dual {off:.2?} ms, tracks {off_tracks:.2?} ms");

    for stream in [stream(entry, Some(Side::Left)), stream(entry, Some(Side::Right))]
        .into_iter()
        .chain([stream(callers, None), stream(agents, None)])
    {
        assert!(stream.passed_seconds > 3.9 && stream.pass_through.passed > 195, "{stream:?}");
        assert_eq!((stream.transcoded_seconds, stream.because), (0.0, None), "{stream:?}");
    }
    let mix = stream(call.recorded.output(OutputKind::Mix, None).0, None);
    let because: f64 = mix.transcoded_because.values().sum();
    assert_eq!((mix.forwarded_seconds, mix.transcoded_seconds), (Some(mix.passed_seconds), because), "{mix:?}");
    assert!(mix.passed_seconds + because <= call.recorded.manifest.duration_seconds + 0.1, "{mix:?}");
}

#[tokio::test]
async fn transcoded_files_are_exact() {
    let call = Conversation::hold(Codec::Opus, |config| {
        all(config);
        config.mixing = Mixing::Transcode;
    })
    .await;
    judge(&call.recorded);
    let (entry, dual) = call.recorded.output(OutputKind::Dual, None);
    let (callers, caller) = call.recorded.output(OutputKind::Tracks, Some("sip_1555"));
    let (agents, agent) = call.recorded.output(OutputKind::Tracks, Some("agent"));
    for (callers, agents) in [(dual.channel(0), dual.channel(1)), (caller.channel(0), agent.channel(0))] {
        let off = call.off(callers, agents);
        assert!(off.iter().all(|off| off.abs() <= 0.1), "{off:.3?} ms off");
        call.assert_apart(callers, agents);
    }
    let distance = |channel: &[f32], (sound, said): &(Audio, Instant)| {
        call.recorded.error_in(channel, &part(sound, 2_000, 3_900), *said + 2 * SECOND)
    };
    let apart = distance(dual.channel(1), &call.agent) - distance(dual.channel(0), &call.caller);
    assert!(apart.abs() <= 5.0, "{apart:.2} ms apart");
    for stream in entry.streams.iter().chain([stream(callers, None), stream(agents, None)]) {
        assert_eq!((stream.passed_seconds, stream.because), (0.0, None), "{stream:?}");
        assert!(stream.transcoded_seconds > 3.9 && stream.transcoded_from_sample.is_some(), "{stream:?}");
    }
}

#[tokio::test]
async fn a_telephone_in_g711_is_transcoded_and_its_agent_is_not() {
    let call = Conversation::hold(Codec::Pcmu, |config| config.outputs = vec![OutputKind::Mix, OutputKind::Dual]).await;
    judge(&call.recorded);
    let (entry, dual) = call.recorded.output(OutputKind::Dual, None);
    call.assert_apart(dual.channel(0), dual.channel(1));
    let (left, right) = (stream(entry, Some(Side::Left)), stream(entry, Some(Side::Right)));
    assert_eq!((left.because, left.passed_seconds), (Some(Unpassable::NotOpus), 0.0));
    assert!(left.transcoded_seconds > 3.9, "{left:?}");
    assert!(right.passed_seconds > 3.9 && right.because.is_none(), "{right:?}");
}

#[tokio::test]
async fn three_people_fold_into_two_sides_as_the_rules_say() {
    let call = Call::begin_with(|config| {
        config.outputs = vec![OutputKind::Dual];
        config.sides.right = vec!["identity=bob".parse().unwrap()];
    })
    .await;
    let people = [call.join("alice").await, call.join("bob").await, call.join("carol").await];
    let start = clock::now() + SETTLE;
    let mut voices = Vec::new();
    for (n, person) in people.iter().enumerate() {
        let sound = words(n as u64, SECOND);
        let turn = start + n as u32 * Duration::from_millis(1_500);
        let voice = person.publish(sound.clone(), TrackOptions::default().start(turn)).await.unwrap();
        voices.push((sound, turn, voice));
    }
    for (_, _, voice) in &voices {
        voice.said().await.unwrap();
    }
    let recorded = call.stop().await;

    judge(&recorded);
    let (entry, dual) = recorded.output(OutputKind::Dual, None);
    assert_eq!((&*entry.left, &*entry.right), (&["alice".to_owned(), "carol".to_owned()][..], &["bob".to_owned()][..]));
    for (n, (sound, turn, _)) in voices.iter().enumerate() {
        let (here, there) = if n == 1 { (1, 0) } else { (0, 1) };
        let error = recorded.error_in(dual.channel(here), &part(sound, 0, 900), *turn);
        assert!((-15.0..=45.0).contains(&error), "{error:.2} ms");
        let elsewhere = recorded.level_in(dual.channel(there), *turn + SECOND / 10, *turn + SECOND);
        assert!(elsewhere < SILENT, "{elsewhere:.1} dBFS on the other side");
    }
    assert_eq!(stream(entry, Some(Side::Left)).because, Some(Unpassable::Several));
    assert_eq!(stream(entry, Some(Side::Right)).because, None);
}

#[tokio::test]
async fn who_comes_back_goes_on_in_their_own_file_and_all_files_are_as_long_as_the_call() {
    let call = Call::begin_with(|config| config.outputs = vec![OutputKind::Tracks]).await;
    let bob = call.join("bob").await;
    let quiet = bob.publish(words(9, SECOND), TrackOptions::default().start(clock::now() + SETTLE)).await.unwrap();
    let mut said = Vec::new();
    for visit in [1, 2] {
        let sound = words(visit, 2 * SECOND);
        let (_, at) = call.visit("alice", &sound).await;
        said.push((sound, at));
    }
    let recorded = call.stop().await;

    judge(&recorded);
    assert_eq!(recorded.manifest.outputs.len(), 2, "{:#?}", recorded.manifest.outputs);
    let (entry, alice) = recorded.output(OutputKind::Tracks, Some("alice"));
    let errors: Vec<f64> =
        said.iter().map(|(sound, at)| recorded.error_in(alice.channel(0), &part(sound, 0, 1_800), *at)).collect();
    assert!((errors[1] - errors[0]).abs() <= 20.0, "{errors:?} ms");
    assert_eq!(stream(entry, None).because, None, "one track at a time passes through");
    let (_, bob) = recorded.output(OutputKind::Tracks, Some("bob"));
    assert_eq!(alice.len(), bob.len());
    recorded.error_in(bob.channel(0), &words(9, SECOND), quiet.start());
    let while_alice_speaks = recorded.level_in(bob.channel(0), said[1].1 + SECOND / 2, said[1].1 + SECOND);
    assert!(while_alice_speaks < SILENT, "{while_alice_speaks:.1} dBFS");
}

#[tokio::test]
async fn a_gain_is_heard_in_every_file_and_ends_passing_through() {
    let call = Conversation::hold(Codec::Opus, |config| {
        all(config);
        config.gains.insert("agent".into(), -12.0);
    })
    .await;
    let plain = |sound: &Audio| callreel::testkit::analysis::level(part(sound, 2_500, 3_500).channel(0));
    let at = |channel: &[f32], said: Instant| {
        call.recorded.level_in(channel, said + Duration::from_millis(2_526), said + Duration::from_millis(3_526))
    };
    let (entry, dual) = call.recorded.output(OutputKind::Dual, None);
    let (_, agent) = call.recorded.output(OutputKind::Tracks, Some("agent"));
    let expected = plain(&call.agent.0) - 12.0;
    for (file, channel) in
        [("mix", call.recorded.audio.channel(0)), ("dual", dual.channel(1)), ("tracks", agent.channel(0))]
    {
        let level = at(channel, call.agent.1);
        assert!((level - expected).abs() <= 1.5, "{level:.1} dBFS in {file}, {expected:.1} expected");
    }
    let caller = at(dual.channel(0), call.caller.1);
    assert!((caller - plain(&call.caller.0)).abs() <= 1.5, "{caller:.1} dBFS");
    assert_eq!(stream(entry, Some(Side::Left)).because, None);
    assert_eq!(stream(entry, Some(Side::Right)).because, Some(Unpassable::Gain));
}

#[tokio::test]
async fn an_output_that_cannot_be_written_does_not_end_the_others() {
    let server = callreel::testkit::LiveKitServer::start().await.unwrap();
    let out = tempfile::tempdir().unwrap();
    // No file may grow beyond 80 KiB: a mix in stereo is transcoded and does within seconds, what is passed through does not.
    let script = r#"trap '' XFSZ; ulimit -f 160; exec "$@""#;
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_callreel"), "record", "--room", ROOM, "--name", "call"]);
    command.args(["--url", &server.url(), "--outputs", "mix,tracks", "--mix-channels", "2"]);
    command.args(["--bitrate", "256000"]);
    command.args(["--departure-timeout", "1s", "--out"]).arg(out.path());
    command.env("LIVEKIT_API_KEY", server.api_key()).env("LIVEKIT_API_SECRET", server.api_secret());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true);
    let recorder = command.spawn().unwrap();
    server.rooms().until_somebody(ROOM).await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let sound = callreel::testkit::audio::generate::noise(1, 0.3, 6 * SECOND);
    let voice = alice.publish(sound, TrackOptions::default().start(clock::now() + SETTLE)).await.unwrap();
    voice.said().await.unwrap();
    alice.leave().await.unwrap();
    let output = recorder.wait_with_output().await.unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    let result: callreel::recording::RecordingResult = serde_json::from_str(&last).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!((output.status.code(), result.outcome), (Some(3), Outcome::Degraded), "{said}");
    let [Reason::Output { output, message }] = result.reasons.as_slice() else { panic!("{:?}", result.reasons) };
    assert!(output == "mix" && message.contains("call.ogg.part"), "{output}: {message}");
    let [mix, alices] = result.outputs.as_slice() else { panic!("{:?}", result.outputs) };
    assert!(mix.bytes <= 80 * 1024 && mix.duration_seconds < alices.duration_seconds - 1.0, "{mix:?} {alices:?}");
    // It was there before she spoke.
    assert!(alices.duration_seconds > 5.9, "{alices:?}");
    let manifest = out.path().join("call.json");
    let inspected = Command::new(env!("CARGO_BIN_EXE_callreel")).arg("inspect").arg(manifest).output().unwrap();
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
}
