//! What one process leaves and another finds.

use std::path::{Path, PathBuf};

use callreel::store::PutOptions;
use callreel::testkit::{PostgresServer, StorageServer};
use reqwest::Method;
use serde_json::{Value, json};

use super::support::{World, within};
use super::{SECOND, id, played};

#[tokio::test]
async fn what_was_ended_by_word_stays_so_when_the_service_is_killed() {
    let world = World::start().await;
    let service = world.serve("").await;
    let (alice, _) = world.speaker("call", "alice", 20).await;
    let recording = service.recording("call", "active").await;
    let (status, answer) = service.post(&format!("/api/v1/recordings/{}/stop", id(&recording)), json!({})).await;
    assert_eq!(status, 200, "{answer}");
    service.recording("call", "ready").await;
    service.kill().await;
    let service = world.serve("").await;
    // Another room shows that the rules are at work.
    let (bob, voice) = world.speaker("call", "bob", 21).await;
    let (carol, _) = world.speaker("other", "carol", 22).await;
    service.recording("other", "active").await;
    voice.sent_at_least(100).await.unwrap();
    assert_eq!(service.recordings("call").await.len(), 1, "it is not begun again");
    for person in [alice, bob, carol] {
        person.leave().await.unwrap();
    }
    service.terminate().await;
}

#[tokio::test]
async fn a_room_that_was_opened_anew_meanwhile_is_recorded_anew() {
    let world = World::start().await;
    let service = world.serve("").await;
    let (alice, voice) = world.speaker("call", "alice", 23).await;
    let old = service.recording("call", "active").await;
    voice.sent_at_least(voice.sent().len() + 250).await.unwrap();
    service.kill().await;
    alice.leave().await.unwrap();
    within("the room is gone", async || world.livekit.rooms().list().await.unwrap().is_empty()).await;
    let (bob, voice) = world.speaker("call", "bob", 24).await;
    let service = world.serve("").await;
    let new = service.the("call", "active", |found| id(found) != id(&old)).await;
    voice.sent_at_least(voice.sent().len() + 150).await.unwrap();
    bob.leave().await.unwrap();
    let new = service.the("call", "ready", |found| id(found) == id(&new)).await;
    assert_eq!((&new["outcome"], &new["participants"][0]["identity"]), (&json!("complete"), &json!("bob")), "{new:#}");
    let old = service.the("call", "ready", |found| id(found) == id(&old)).await;
    assert_eq!(
        (&old["outcome"], &old["participants"][0]["identity"]),
        (&json!("degraded"), &json!("alice")),
        "{old:#}"
    );
    service.terminate().await;
}

/// A configuration whose catalogue and spool are said.
fn places(database: &str, spool: &Path) -> String {
    format!("catalog: {{url: \"{database}\"}}\nrecording: {{spool: \"{}\"}}", spool.display())
}

fn spool(world: &World, name: &str) -> PathBuf {
    world.dir.path().join(name)
}

#[tokio::test]
async fn a_process_that_is_gone_with_its_disk_leaves_its_room_and_what_is_in_the_bucket() {
    let world = World::start().await;
    let postgres = PostgresServer::start().await.unwrap();
    let database = postgres.create_database("calls").await.unwrap();
    let service = world.serve(&places(&database, &spool(&world, "one"))).await;
    let (alice, voice) = world.speaker("call", "alice", 25).await;
    let old = service.recording("call", "active").await;
    let store = world.storage.store("calls").await.unwrap();
    within("some of it is in the bucket", async || !store.list("rec/").await.unwrap().is_empty()).await;
    voice.sent_at_least(voice.sent().len() + 500).await.unwrap();
    service.kill().await;
    std::fs::remove_dir_all(spool(&world, "one")).unwrap();
    // It has not said for long that it lives.
    let pool = sqlx::PgPool::connect(&database).await.unwrap();
    let before = "UPDATE recordings SET owner_until = owner_until - 600000000 WHERE owner IS NOT NULL";
    assert_eq!(sqlx::query(before).execute(&pool).await.unwrap().rows_affected(), 1);

    let service = world.serve(&places(&database, &spool(&world, "two"))).await;
    let finished = service.the("call", "ready", |found| id(found) == id(&old)).await;
    assert_eq!(finished["outcome"], "degraded", "{finished:#}");
    world.receiver.hears(id(&old), "recording.ready").await;
    let (audio, _) = played(&service, &finished).await;
    assert!(audio.duration() > 4 * SECOND, "{:?}", audio.duration());
    let new = service.the("call", "active", |found| id(found) != id(&old)).await;
    voice.sent_at_least(voice.sent().len() + 150).await.unwrap();
    alice.leave().await.unwrap();
    let new = service.the("call", "ready", |found| id(found) == id(&new)).await;
    assert_eq!(new["outcome"], "complete", "{new:#}");
    service.terminate().await;
}

#[tokio::test]
async fn a_recording_that_never_had_a_row_gets_one() {
    let world = World::start().await;
    let mut postgres = PostgresServer::start().await.unwrap();
    let database = postgres.create_database("calls").await.unwrap();
    let config = format!("catalog: {{url: \"{database}\"}}");
    let service = world.serve(&config).await;
    postgres.kill();
    let (alice, voice) = world.speaker("call", "alice", 26).await;
    within("it is recorded", async || world.dir_has("journal")).await;
    voice.sent_at_least(voice.sent().len() + 250).await.unwrap();
    service.kill().await;
    postgres.restart().await.unwrap();
    alice.leave().await.unwrap();
    within("the room is gone", async || world.livekit.rooms().list().await.unwrap().is_empty()).await;
    let service = world.serve(&config).await;
    let ready = service.recording("call", "ready").await;
    assert_eq!((&ready["outcome"], &ready["participants"][0]["identity"]), (&json!("degraded"), &json!("alice")));
    world.receiver.hears(id(&ready), "recording.ready").await;
    let (audio, _) = played(&service, &ready).await;
    assert!(audio.duration() > 3 * SECOND, "{:?}", audio.duration());
    service.terminate().await;
}

#[tokio::test]
async fn what_lies_in_another_store_is_erased_there_or_not_at_all() {
    let world = World::start().await;
    let config = world.configure("");
    let service = world.serve_with(&config, &[]).await;
    let (alice, voice) = world.speaker("call", "alice", 27).await;
    service.recording("call", "active").await;
    voice.sent_at_least(voice.sent().len() + 100).await.unwrap();
    alice.leave().await.unwrap();
    let ready = service.recording("call", "ready").await;
    service.terminate().await;

    // The same name in another store.
    let (store, elsewhere) = (world.storage.store("calls").await.unwrap(), "elsewhere");
    let kept: Vec<String> = keys(&world.storage, "calls").await;
    world.storage.create_bucket(elsewhere).await.unwrap();
    let other = world.storage.store(elsewhere).await.unwrap();
    for key in &kept {
        other.put(key, store.get(key, None).await.unwrap(), &PutOptions::default()).await.unwrap();
    }
    let text = std::fs::read_to_string(&config).unwrap().replace("bucket: calls", "bucket: elsewhere");
    std::fs::write(&config, text).unwrap();
    let service = world.serve_with(&config, &[]).await;
    let path = format!("/api/v1/recordings/{}", id(&ready));
    let (status, answer) = service.ask(Method::DELETE, &path, None).await;
    assert!((200..300).contains(&status), "{answer}");
    within("it says why not", async || service.log().contains("it is in another place")).await;
    assert_eq!(keys(&world.storage, elsewhere).await, kept);
    service.terminate().await;

    let service = world.serve("").await;
    within("it is erased", async || store.list("").await.unwrap().is_empty()).await;
    world.receiver.hears(id(&ready), "recording.deleted").await;
    let (_, tombstone): (u16, Value) = service.get(&path).await;
    assert!(tombstone.to_string().len() > 2, "{tombstone}");
    service.terminate().await;
}

/// All keys in a bucket.
async fn keys(storage: &StorageServer, bucket: &str) -> Vec<String> {
    let store = storage.store(bucket).await.unwrap();
    store.list("").await.unwrap().into_iter().map(|object| object.key).collect()
}
