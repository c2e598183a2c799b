//! The service as it is deployed: a real LiveKit server calls its webhook, real people talk, and what was said is in a real
//! S3 server, listed, played and told of without anybody touching anything; also where processes die and servers are away.

mod restart;
mod support;

use std::time::Duration;

use callreel::clock;
use callreel::encode::WebmReader;
use callreel::notify::verify;
use callreel::testkit::analysis;
use callreel::testkit::audio::Audio;
use callreel::testkit::{Publisher, PublisherConfig, Tier, TrackOptions, tier};
use reqwest::Method;
use serde_json::{Value, json};
use support::{Service, World, client, speech, within, within_or};

const SECOND: Duration = Duration::from_secs(1);

fn id(recording: &Value) -> &str {
    recording["recording_id"].as_str().unwrap()
}

/// Fetches from an address as a browser does: without a key.
async fn fetch(url: &str, range: Option<&str>) -> (u16, Vec<u8>) {
    let mut request = client().get(url);
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.bytes().await.unwrap().to_vec())
}

/// What a finished recording sounds like, by its signed address.
async fn played(service: &Service, recording: &Value) -> (Audio, Vec<u8>) {
    let bytes = fetched(service, recording).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("played.ogg");
    std::fs::write(&path, &bytes).unwrap();
    (Audio::read(&path).unwrap(), bytes)
}

/// A finished recording, by its signed address.
async fn fetched(service: &Service, recording: &Value) -> Vec<u8> {
    let (status, answer) = service.post(&format!("/api/v1/recordings/{}/url", id(recording)), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    let (status, bytes) = fetch(answer["url"].as_str().unwrap(), None).await;
    assert_eq!(status, 200);
    bytes
}

#[tokio::test]
async fn a_room_is_recorded_listed_played_and_told_of_without_anybody_touching_anything() {
    let world = World::start().await;
    let service = world.serve("").await;
    let idle = service.resident();
    // They take a breath before they speak.
    let options = TrackOptions::default().start(clock::now() + 6 * SECOND);
    let (alice, voice) = world.speaker_with("call-1", "alice", 1, options.clone()).await;
    let (bob, _) = world.speaker_with("call-1", "bob", 2, options).await;
    let active = service.recording("call-1", "active").await;
    world.receiver.hears(id(&active), "recording.started").await;
    voice.sent_at_least(voice.sent().len() + 400).await.unwrap();
    let first = voice.sent().first().unwrap();
    let left = clock::now();
    alice.leave().await.unwrap();
    bob.leave().await.unwrap();
    let ready = service.recording("call-1", "ready").await;
    let took = clock::now() - left;
    assert_eq!((&ready["outcome"], &ready["engine"]), (&json!("complete"), &json!("callreel")), "{ready:#}");
    let people: Vec<&str> =
        ready["participants"].as_array().unwrap().iter().map(|p| p["identity"].as_str().unwrap()).collect();
    assert_eq!(people, ["alice", "bob"]);

    // Told once what it is, with an address from which it can be fetched at once.
    let told = world.receiver.hears(id(&ready), "recording.ready").await;
    assert!(verify(&told.signature, "s3cr3t", &told.text, clock::wall(), 60 * SECOND), "{}", told.signature);
    let (status, bytes) = fetch(told.body["recording"]["download_url"].as_str().unwrap(), None).await;
    assert_eq!((status, bytes.len() as u64), (200, ready["file_size_bytes"].as_u64().unwrap()));

    let (audio, again) = played(&service, &ready).await;
    assert_eq!(bytes, again);
    let seconds = ready["duration_seconds"].as_f64().unwrap();
    assert!((audio.duration().as_secs_f64() - seconds).abs() < 0.02 && seconds > 7.0, "{seconds} s");
    let found = analysis::find(speech(1).channel(0), audio.channel(0)).expect("something is heard");
    assert!(found.score > 0.5, "{found:?}");
    let (status, part) = fetch(told.body["recording"]["download_url"].as_str().unwrap(), Some("bytes=100-199")).await;
    assert_eq!((status, part.as_slice()), (206, &bytes[100..200]));

    let started = ready["started_at"].as_str().unwrap();
    let started = time::OffsetDateTime::parse(started, &time::format_description::well_known::Rfc3339).unwrap();
    let before = clock::wall() - (clock::now() - first.at);
    let (_, figures) = service.get("/metrics").await;
    let figures = figures.as_str().unwrap();
    let begun =
        figures.lines().find_map(|line| line.strip_prefix("callreel_start_seconds_sum ")).expect("it is counted");
    println!("from the decision to record to media: {begun} s");
    println!(
        "idle {:.1} MB; sample 0 is {:.0} ms before the first packet that was sent; ready {:.2} s after the last one left",
        idle as f64 / 1e6,
        (before - started).as_seconds_f64() * 1e3,
        took.as_secs_f64()
    );
    assert!(started < before, "from its first packet on");
    service.terminate().await;
}

#[tokio::test]
async fn a_room_is_recorded_in_the_formats_that_are_asked_for_and_has_a_picture() {
    let world = World::start().await;
    let service = world.serve("rules: [{format: \"webm,mp3\"}]").await;
    let (alice, voice) = world.speaker("call", "alice", 12).await;
    service.recording("call", "active").await;
    voice.sent_at_least(voice.sent().len() + 250).await.unwrap();
    alice.leave().await.unwrap();
    let ready = service.recording("call", "ready").await;
    assert_eq!((&ready["outcome"], &ready["file_format"]), (&json!("complete"), &json!("webm")), "{ready:#}");
    let locations: Vec<&str> =
        ready["outputs"].as_array().unwrap().iter().map(|output| output["location"].as_str().unwrap()).collect();
    assert!(locations[0].ends_with(".webm") && locations[1].ends_with(".mp3"), "{locations:?}");
    let mut webm = WebmReader::new();
    webm.push(&fetched(&service, &ready).await);
    let found = webm.finish();
    assert!(found.is_clean(), "{:?}", found.problems);
    assert!((found.total.as_secs_f64() - ready["duration_seconds"].as_f64().unwrap()).abs() < 0.001);
    let store = world.storage.store("calls").await.unwrap();
    let thumbnail = ready["thumbnail_url"].as_str().unwrap();
    let key = format!("recordings/{}/thumbnails/{}.png", ready["room_id"].as_str().unwrap(), id(&ready));
    assert!(thumbnail.ends_with(&key), "{thumbnail}");
    let listed = store.list("").await.unwrap();
    let picture = listed.iter().find(|object| object.key.ends_with(&key)).expect("there is a picture");
    assert!(store.get(&picture.key, None).await.unwrap().starts_with(b"\x89PNG"));
    assert!(!listed.iter().any(|object| object.key.ends_with(".ogg")), "nobody asked for that: {listed:?}");
    let path = format!("/api/v1/recordings/{}", id(&ready));
    let (status, deleted) = service.ask(Method::DELETE, &path, None).await;
    assert!((200..300).contains(&status), "{deleted}");
    within("it is erased, picture and all", async || store.list("").await.unwrap().is_empty()).await;
    service.terminate().await;
}

#[tokio::test]
async fn only_rooms_with_people_that_rules_are_about_are_recorded_and_none_twice() {
    let world = World::start().await;
    let rules =
        "rules: [{room: \"secret-*\", record: false}, {name: support, room: \"support-*\", retention_days: 30}]";
    let service = world.serve(rules).await;
    world.livekit.rooms().create("support-empty", 60, 60).await.unwrap();
    let (_eve, heard) = world.speaker("secret-1", "eve", 3).await;
    let (alice, _) = world.speaker("support-1", "alice", 4).await;
    let recording = service.recording("support-1", "active").await;
    assert_eq!(recording["rule"], "support");
    // Whoever asks for a second is told of the first.
    let (status, problem) = service.post("/api/v1/recordings", json!({ "room": "support-1" })).await;
    assert_eq!(status, 409, "{problem}");
    let (status, problem) = service.post("/api/v1/recordings", json!({ "room": "nowhere" })).await;
    assert_eq!(status, 404, "{problem}");
    let (status, stopping) = service.post(&format!("/api/v1/recordings/{}/stop", id(&recording)), json!({})).await;
    assert_eq!((status, &stopping["status"]), (200, &json!("stopping")), "{stopping}");
    let ready = service.recording("support-1", "ready").await;
    assert!(ready["retention_until"].is_string(), "{ready:#}");
    // What was ended by word is not begun again by who comes next.
    let (bob, voice) = world.speaker("support-1", "bob", 5).await;
    voice.sent_at_least(100).await.unwrap();
    heard.sent_at_least(200).await.unwrap();
    assert_eq!(service.recordings("").await.len(), 1, "the empty room and the secret one are not recorded");
    // Nobody but people is in a room that nobody records.
    let hidden = world.livekit.rooms().participants("support-1").await.unwrap();
    assert_eq!(hidden.len(), 2, "{hidden:?}");
    alice.leave().await.unwrap();
    bob.leave().await.unwrap();
    service.terminate().await;
}

#[tokio::test]
async fn pausing_resuming_holding_and_deleting_do_what_they_say() {
    let world = World::start().await;
    let service = world.serve("").await;
    let (alice, voice) = world.speaker("call", "alice", 6).await;
    let recording = service.recording("call", "active").await;
    let path = format!("/api/v1/recordings/{}", id(&recording));
    voice.sent_at_least(voice.sent().len() + 100).await.unwrap();
    let (status, paused) = service.post(&format!("{path}/pause"), json!({ "reason": "card number" })).await;
    assert_eq!((status, &paused["status"]), (200, &json!("paused")), "{paused}");
    world.receiver.hears(id(&recording), "recording.paused").await;
    voice.sent_at_least(voice.sent().len() + 50).await.unwrap();
    let (status, resumed) = service.post(&format!("{path}/resume"), json!({})).await;
    assert_eq!((status, &resumed["status"]), (200, &json!("active")), "{resumed}");
    world.receiver.hears(id(&recording), "recording.resumed").await;
    let (status, problem) = service.ask(Method::DELETE, &path, None).await;
    assert_eq!(status, 409, "it runs: {problem}");
    alice.leave().await.unwrap();
    let ready = service.recording("call", "ready").await;
    let (status, manifest) = service.get(&format!("{path}/manifest")).await;
    assert_eq!((status, &manifest["pauses"][0]["reason"]), (200, &json!("card number")), "{manifest:#}");

    let (status, _) = service.ask(Method::PUT, &format!("{path}/hold"), Some(json!({ "held": true }))).await;
    assert_eq!(status, 200);
    let (status, problem) = service.ask(Method::DELETE, &path, None).await;
    assert!(status == 409 || status == 423, "{status} {problem}");
    service.ask(Method::PUT, &format!("{path}/hold"), Some(json!({ "held": false }))).await;
    let store = world.storage.store("calls").await.unwrap();
    assert!(store.list("rec/").await.unwrap().len() >= 3);
    let (status, deleted) = service.ask(Method::DELETE, &format!("{path}?reason=asked"), None).await;
    assert!((200..300).contains(&status), "{deleted}");
    within("it is erased", async || store.list("rec/").await.unwrap().is_empty()).await;
    world.receiver.hears(id(&ready), "recording.deleted").await;
    assert_eq!(service.recordings("call").await.len(), 0);
    let (status, tombstone) = service.get(&path).await;
    assert!(status == 410 || tombstone["deleted"]["by"].is_string(), "{status} {tombstone:#}");
    assert_eq!(world.storage.open_uploads("calls").await.unwrap(), 0);
    service.terminate().await;
}

/// Many calls, a room opening every 90 ms.
async fn talk(world: &World, calls: usize) -> Vec<(Publisher, callreel::testkit::Voice)> {
    let join = async |n: usize| {
        tokio::time::sleep(n as u32 * Duration::from_millis(90)).await;
        let publisher =
            Publisher::join(PublisherConfig::on(&world.livekit, &format!("room-{n}"), "alice")).await.unwrap();
        let voice = publisher.publish(speech(n as u64), TrackOptions::default().looped(true)).await.unwrap();
        (publisher, voice)
    };
    futures_util::future::join_all((0..calls).map(join)).await
}

#[tokio::test]
async fn a_service_that_is_killed_goes_on_with_every_call() {
    let calls = if tier() == Tier::Test { 5 } else { 20 };
    let world = World::start().await;
    let service = world.serve("").await;
    let people = talk(&world, calls).await;
    for n in 0..calls {
        service.recording(&format!("room-{n}"), "active").await;
    }
    let (_, voice) = &people[0];
    voice.sent_at_least(voice.sent().len() + 250).await.unwrap();
    service.kill().await;
    let service = world.serve("").await;
    within("all go on", async || {
        let found = service.recordings("").await;
        found.iter().all(|recording| recording["status"] == "active")
            && service.log().matches("going on with what").count() == calls
    })
    .await;
    voice.sent_at_least(voice.sent().len() + 250).await.unwrap();
    for (person, _) in people {
        person.leave().await.unwrap();
    }
    let mut missing = Vec::new();
    for n in 0..calls {
        let ready = service.recording(&format!("room-{n}"), "ready").await;
        let reasons = ready["reasons"].as_array().unwrap();
        assert_eq!(ready["outcome"], "degraded", "{ready:#}");
        let restarted = reasons.iter().find(|reason| reason["to_seconds"].is_number()).expect("it was restarted");
        missing.push(restarted["to_seconds"].as_f64().unwrap() - restarted["from_seconds"].as_f64().unwrap());
        for event in ["recording.started", "recording.ready"] {
            world.receiver.hears(id(&ready), event).await;
        }
        let (audio, _) = played(&service, &ready).await;
        assert!(audio.duration() > 9 * SECOND, "{:?}", audio.duration());
    }
    // Each event once, whichever process told it.
    for told in world.receiver.told() {
        let (id, event) =
            (told.body["recording"]["recording_id"].as_str().unwrap(), told.body["event"].as_str().unwrap());
        assert_eq!(world.receiver.of(id, event).len(), 1, "{event} of {id}");
    }
    missing.sort_by(f64::total_cmp);
    println!("{calls} calls, missing {:.2} s at the median, {:.2} s at most", missing[calls / 2], missing[calls - 1]);
    service.terminate().await;
}

#[tokio::test]
async fn calls_that_end_while_the_service_is_dead_are_finished_and_told_of() {
    let world = World::start().await;
    let service = world.serve("").await;
    let people = talk(&world, 2).await;
    for n in 0..2 {
        service.recording(&format!("room-{n}"), "active").await;
    }
    let (_, voice) = &people[0];
    voice.sent_at_least(voice.sent().len() + 300).await.unwrap();
    service.kill().await;
    for (person, _) in people {
        person.leave().await.unwrap();
    }
    within("the rooms are gone", async || world.livekit.rooms().list().await.unwrap().is_empty()).await;
    let service = world.serve("").await;
    for n in 0..2 {
        let ready = service.recording(&format!("room-{n}"), "ready").await;
        assert_eq!(ready["outcome"], "degraded", "{ready:#}");
        world.receiver.hears(id(&ready), "recording.ready").await;
        let (audio, _) = played(&service, &ready).await;
        assert!(audio.duration() > 4 * SECOND, "{:?}", audio.duration());
    }
    service.terminate().await;
}

#[tokio::test]
async fn many_rooms_at_once_are_all_recorded_or_refused_with_a_reason() {
    let rooms = if tier() == Tier::Test { 20 } else { 100 };
    let world = World::start().await;
    // Fewer than come, so that some are refused whatever the machine.
    let service = world.serve(&format!("limits: {{calls: {}}}", rooms - 5)).await;
    let people = talk(&world, rooms).await;
    let lacking = std::cell::RefCell::new(Vec::new());
    let has_all = async || {
        let found = service.recordings("").await;
        let is_there = |room: &String| found.iter().any(|one| one["room_name"] == room.as_str());
        let lacks: Vec<String> = (0..rooms).map(|n| format!("room-{n}")).filter(|room| !is_there(room)).collect();
        lacks.clone_into(&mut lacking.borrow_mut());
        lacks.is_empty()
    };
    within_or("each room has its recording", has_all, || format!("{}\nnot {:?}", service.log(), lacking.borrow()))
        .await;
    let talk_on = people.iter().map(|(_, voice)| voice.sent_at_least(voice.sent().len() + 250));
    for talked in futures_util::future::join_all(talk_on).await {
        talked.unwrap();
    }
    for (person, _) in people {
        person.leave().await.unwrap();
    }
    let over =
        async || service.recordings("").await.iter().all(|one| one["status"] == "ready" || one["status"] == "failed");
    within_or("all are over", over, || service.log()).await;
    let found = service.recordings("").await;
    let (mut recorded, mut refused) = (0, 0);
    for recording in &found {
        if recording["status"] == "ready" {
            assert_eq!(recording["outcome"], "complete", "{recording:#}\n{}", service.log_of(recording));
            assert!(recording["duration_seconds"].as_f64().unwrap() > 2.0, "{recording:#}");
            recorded += 1;
        } else {
            let reason = &recording["reasons"][0]["reason"];
            assert_eq!(reason, "refused", "{recording:#}\n{}", service.log_of(recording));
            refused += 1;
        }
    }
    println!("{recorded} recorded, {refused} refused");
    assert!(refused >= 5 && recorded > 0);
    service.terminate().await;
}

#[tokio::test]
async fn a_receiver_and_a_store_that_are_away_are_told_later() {
    let away = if tier() == Tier::Test { 8 * SECOND } else { 60 * SECOND };
    let mut world = World::start().await;
    let service = world.serve("").await;
    let (alice, voice) = world.speaker("call", "alice", 8).await;
    service.recording("call", "active").await;
    world.receiver.refuse(true);
    world.storage.kill();
    voice.sent_at_least(voice.sent().len() + (away.as_secs_f64() * 50.0) as usize).await.unwrap();
    alice.leave().await.unwrap();
    service.recording("call", "stopping").await;
    world.storage.restart().await.unwrap();
    let ready = service.recording("call", "ready").await;
    assert_eq!(ready["outcome"], "complete", "{ready:#}");
    assert!(world.receiver.of(id(&ready), "recording.ready").is_empty());
    world.receiver.refuse(false);
    world.receiver.hears(id(&ready), "recording.ready").await;
    let (audio, _) = played(&service, &ready).await;
    assert!(audio.duration() > away, "{:?}", audio.duration());
    service.terminate().await;
}

#[tokio::test]
async fn told_to_end_it_finishes_what_runs() {
    let world = World::start().await;
    let service = world.serve("").await;
    let (_alice, voice) = world.speaker("call", "alice", 9).await;
    service.recording("call", "active").await;
    voice.sent_at_least(voice.sent().len() + 150).await.unwrap();
    service.terminate().await;
    let store = world.storage.store("calls").await.unwrap();
    let keys: Vec<String> = store.list("rec/").await.unwrap().into_iter().map(|object| object.key).collect();
    assert!(keys.iter().any(|key| key.ends_with(".ogg")) && keys.iter().any(|key| key.ends_with(".json")), "{keys:?}");
    let service = world.serve("rules: [{room: \"*\", record: false}]").await;
    let ready = service.recording("call", "ready").await;
    assert_eq!(ready["outcome"], "complete", "{ready:#}");
    service.terminate().await;
}

#[tokio::test]
async fn a_database_that_is_away_costs_no_call() {
    let away = if tier() == Tier::Test { 8 } else { 60 };
    let world = World::start().await;
    let mut postgres = callreel::testkit::PostgresServer::start().await.unwrap();
    let database = postgres.create_database("calls").await.unwrap();
    let service = world.serve(&format!("catalog: {{url: \"{database}\"}}")).await;
    let (alice, voice) = world.speaker("before", "alice", 10).await;
    service.recording("before", "active").await;
    postgres.kill();
    let (bob, later) = world.speaker("meanwhile", "bob", 11).await;
    later.sent_at_least(away * 50).await.unwrap();
    alice.leave().await.unwrap();
    postgres.restart().await.unwrap();
    service.recording("meanwhile", "active").await;
    let ready = service.recording("before", "ready").await;
    assert_eq!(ready["outcome"], "complete", "{ready:#}");
    later.sent_at_least(later.sent().len() + 50).await.unwrap();
    bob.leave().await.unwrap();
    let ready = service.recording("meanwhile", "ready").await;
    assert_eq!(ready["outcome"], "complete", "{ready:#}");
    assert!(ready["duration_seconds"].as_f64().unwrap() > away as f64, "from its first word: {ready:#}");
    assert!(voice.sent().len() > 100);
    for room in ["before", "meanwhile"] {
        let ready = service.recording(room, "ready").await;
        world.receiver.hears(id(&ready), "recording.ready").await;
    }
    service.terminate().await;
}
