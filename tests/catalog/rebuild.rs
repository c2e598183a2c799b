//! A catalogue that is lost is made anew from the manifests.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use callreel::catalog::{Catalog, Change, Filter, NewRecording, Owner, Place, Rebuilt, Status, Step, nobody};
use callreel::recording::Outcome;
use callreel::store::{PutOptions, Store, StoreConfig};
use callreel::testkit::{PostgresServer, StorageServer};
use serde_json::{Value, json};
use time::Duration;

use crate::checks::{HOSTILE, NOW};

fn manifest(id: &str, room: &str, outcome: &str) -> Value {
    let participant = |identity: &str, kind: &str| {
        json!({
            "sid": format!("PA_{identity}"), "identity": identity, "name": "", "kind": kind, "role": "participant",
            "attributes": {}, "joined_sample": 0, "left_sample": null,
        })
    };
    json!({
        "version": 1,
        "recording_id": id,
        "room": { "sid": "RM_1", "name": room, "server_version": "1.13.5" },
        "started_at": "2026-11-22T10:00:00.123456Z",
        "ended_at": "2026-11-22T10:01:00.123456Z",
        "samples": 2_880_000,
        "duration_seconds": 60.0,
        "outcome": outcome,
        "reasons": [{ "reason": "recorder_down", "seconds": 1.5 }],
        "stopped_by": "room_closed",
        "outputs": [{
            "kind": "mix", "file": format!("{id}.ogg"), "format": "ogg", "duration_seconds": 59.9, "bytes": 5,
            "sha256": "ab",
        }],
        "sidecars": [{ "kind": "peaks", "file": format!("{id}.peaks.json"), "bytes": 2, "sha256": "cd" }],
        // Somebody who rejoined is there twice.
        "participants": [participant("alice", "sip"), participant("bob", "agent"), participant("alice", "sip")],
        "tracks": [],
        "media": [],
        "versions": { "callreel": "0.1.0", "libopus": "1.5", "livekit_server": "1.13.5" },
    })
}

async fn put(store: &Store, key: &str, content: impl Into<Bytes>) {
    store.put(key, content.into(), &PutOptions::default()).await.unwrap();
}

/// Puts a whole recording into the store.
async fn record(store: &Store, id: &str, room: &str, outcome: &str) {
    put(store, &format!("recordings/{id}.ogg"), "OggS!").await;
    put(store, &format!("recordings/{id}.peaks.json"), "{}").await;
    put(store, &format!("recordings/{id}.json"), manifest(id, room, outcome).to_string()).await;
}

fn place() -> Place {
    Place { provider: "s3".into(), bucket: Some("calls".into()), retain: Some(Duration::days(30)) }
}

async fn rebuild(catalog: &Catalog, store: &Store) -> Vec<Step> {
    let mut steps = Vec::new();
    catalog.rebuild(store, &place(), NOW + Duration::days(1), |step| steps.push(step)).await.unwrap();
    steps
}

fn of(id: &str) -> String {
    id.to_owned()
}

async fn a_lost_catalogue_comes_back(catalog: Catalog, store: &Store) {
    for (id, outcome) in [("R1", "degraded"), ("R2", "failed")] {
        record(store, id, HOSTILE[0], outcome).await;
    }
    let steps = rebuild(&catalog, store).await;
    let added = |id: &str| Rebuilt::Added { recording_id: of(id) };
    assert_eq!(steps.iter().map(|step| step.rebuilt.clone()).collect::<Vec<_>>(), [added("R1"), added("R2")]);
    assert!(steps.iter().all(|step| step.lacking.is_empty()), "{steps:?}");

    let row = catalog.get("R1").await.unwrap().unwrap();
    assert_eq!((row.status, row.outcome), (Status::Ready, Some(Outcome::Degraded)));
    assert_eq!((row.room_name.as_str(), row.room_id.as_str(), row.engine.as_str()), (HOSTILE[0], "RM_1", "callreel"));
    assert_eq!((row.created_at, row.started_at, row.ended_at), (NOW, Some(NOW), Some(NOW + Duration::minutes(1))));
    assert_eq!((row.duration_seconds, row.file_size_bytes, row.file_format.as_str()), (59.9, 5, "ogg"));
    assert_eq!(row.storage_key.as_deref(), Some("recordings/R1.ogg"));
    let picture = "recordings/RM_1/thumbnails/R1.png";
    assert_eq!(row.objects, ["recordings/R1.ogg", "recordings/R1.peaks.json", "recordings/R1.json", picture]);
    assert_eq!((row.storage_provider.as_str(), row.storage_bucket.as_deref()), ("s3", Some("calls")));
    assert_eq!(row.file_url, Some(store.location("recordings/R1.ogg")));
    assert_eq!(row.manifest, Some(store.location("recordings/R1.json")));
    assert_eq!(row.retention_until, Some(NOW + Duration::minutes(1) + Duration::days(30)));
    assert_eq!(row.reasons[0]["reason"], "recorder_down");
    assert_eq!(row.participants.iter().map(|one| &*one.identity).collect::<Vec<_>>(), ["alice", "bob"]);
    let by_name = Filter { participant: Some("alice".into()), ..Filter::default() };
    assert_eq!(catalog.count(&by_name).await.unwrap(), 2);
    assert_eq!(catalog.get("R2").await.unwrap().unwrap().status, Status::Failed);

    for step in rebuild(&catalog, store).await {
        assert!(matches!(step.rebuilt, Rebuilt::Same { .. }), "{step:?}");
    }
    assert_eq!(catalog.get("R1").await.unwrap(), Some(row));
}

async fn what_the_catalogue_knows_better_stays(catalog: Catalog, store: &Store) {
    for id in ["deleted", "lives", "died", "known"] {
        record(store, id, id, "complete").await;
        let owner = Some(Owner { instance: "pod-1".into(), until: NOW + Duration::days(9) });
        let mut new = NewRecording { owner: owner.filter(|_| id == "lives"), ..NewRecording::new(id, id, NOW) };
        (new.metadata, new.rule) = (json!({ "ticket": 7 }), Some("sip".into()));
        catalog.begin(new, nobody).await.unwrap();
    }
    for id in ["deleted", "known"] {
        let change =
            Change { outcome: Some(Outcome::Degraded), reasons: Some(json!([])), ..Change::status(Status::Ready) };
        catalog.update(id, &change, NOW, nobody).await.unwrap();
    }
    catalog.hold("known", true, NOW).await.unwrap();
    catalog.delete("deleted", "alice", "asked", NOW).await.unwrap();
    let tomb = catalog.tombstone("deleted", NOW, nobody).await.unwrap();

    let steps = rebuild(&catalog, store).await;
    let recording_id = of;
    assert_eq!(
        steps.into_iter().map(|step| step.rebuilt).collect::<Vec<_>>(),
        [
            Rebuilt::Deleted { recording_id: recording_id("deleted") },
            Rebuilt::Mended { recording_id: recording_id("died") },
            Rebuilt::Mended { recording_id: recording_id("known") },
            Rebuilt::Running { recording_id: recording_id("lives") },
        ]
    );
    assert_eq!(catalog.get("deleted").await.unwrap(), Some(tomb));
    let died = catalog.get("died").await.unwrap().unwrap();
    assert_eq!((died.status, died.outcome, &died.owner), (Status::Ready, Some(Outcome::Complete), &None));
    assert_eq!((&died.metadata["ticket"], died.rule.as_deref(), died.retention_until), (&json!(7), Some("sip"), None));
    let known = catalog.get("known").await.unwrap().unwrap();
    assert_eq!((known.outcome, known.legal_hold), (Some(Outcome::Degraded), true));
    assert_eq!((&known.reasons, known.objects.len(), known.participants.len()), (&json!([]), 4, 2));
    assert_eq!(catalog.get("lives").await.unwrap().unwrap().status, Status::Starting);
    for step in rebuild(&catalog, store).await {
        assert!(!matches!(step.rebuilt, Rebuilt::Mended { .. } | Rebuilt::Added { .. }), "{step:?}");
    }
}

async fn what_is_not_ours_is_told_and_left(catalog: Catalog, store: &Store) {
    record(store, "R1", "room", "complete").await;
    put(store, "recordings/R1.ogg", "cut").await;
    store.delete(&["recordings/R1.peaks.json".to_owned()]).await.unwrap();
    let mut newer = manifest("R9", "room", "complete");
    newer["version"] = json!(2);
    for (key, content) in [
        ("EG_1.json", json!({ "egress_id": "EG_1", "version": 1 }).to_string()),
        ("array.json", "[1]".to_owned()),
        ("cut.json", "{\"version\":1,".to_owned()),
        ("new.json", newer.to_string()),
        ("sealed.json.age", "age-encryption.org/v1".to_owned()),
        ("x.live/state.json", "{}".to_owned()),
    ] {
        put(store, key, content).await;
    }
    let steps = rebuild(&catalog, store).await;
    let left: Vec<&str> = steps
        .iter()
        .filter(|step| matches!(step.rebuilt, Rebuilt::Left { .. }))
        .map(|step| step.key.as_str())
        .collect();
    assert_eq!(left, ["EG_1.json", "array.json", "cut.json", "new.json", "sealed.json.age"]);
    let lacking: Vec<&str> = steps.iter().flat_map(|step| &step.lacking).map(String::as_str).collect();
    assert_eq!(lacking, ["recordings/R1.ogg", "recordings/R1.peaks.json"]);
    assert_eq!(catalog.count(&Filter::default()).await.unwrap(), 1);
}

#[tokio::test]
async fn from_a_local_folder_into_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = async |name: &str| {
        Store::open(&StoreConfig::parse_url(dir.path().join(name).to_str().unwrap()).unwrap()).await.unwrap()
    };
    let catalog = async || Catalog::open("sqlite::memory:").await.unwrap();
    a_lost_catalogue_comes_back(catalog().await, &store("a").await).await;
    what_the_catalogue_knows_better_stays(catalog().await, &store("b").await).await;
    what_is_not_ours_is_told_and_left(catalog().await, &store("c").await).await;
}

#[tokio::test]
async fn from_a_bucket_into_postgresql() {
    let (server, gateway) = (PostgresServer::start().await.unwrap(), StorageServer::versitygw().await.unwrap());
    let store = async |name: &str| {
        gateway.create_bucket(name).await.unwrap();
        Store::open(&StoreConfig::S3(gateway.s3_config(name))).await.unwrap()
    };
    let catalog = async |name: &str| Catalog::open(&server.create_database(name).await.unwrap()).await.unwrap();
    a_lost_catalogue_comes_back(catalog("aaa").await, &store("aaa").await).await;
    what_the_catalogue_knows_better_stays(catalog("bbb").await, &store("bbb").await).await;
    what_is_not_ours_is_told_and_left(catalog("ccc").await, &store("ccc").await).await;
}

fn callreel(dir: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callreel"));
    command.current_dir(dir).env_clear().args(["catalog"]).args(arguments);
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn the_command_takes_everything_in_and_tells_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(&StoreConfig::parse_url(dir.path().join("calls").to_str().unwrap()).unwrap()).await.unwrap();
    record(&store, "R1", "room", "complete").await;
    put(&store, "stranger.json", "{}").await;
    let catalog = ["--catalog", "sqlite://catalog.db"];
    let rebuild = [&["rebuild", "--from", "calls"][..], &catalog].concat();
    let (code, out, err) = callreel(dir.path(), &rebuild);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("added    R1  recordings/R1.json\n"), "{out}");
    assert!(out.contains("left     stranger.json: it is no manifest of callreel\n"), "{out}");
    assert!(
        out.ends_with("1 added, 0 mended, 0 as they were, 0 deleted, 0 running, 1 left alone, 0 files missing\n"),
        "{out}"
    );
    std::fs::remove_file(dir.path().join("calls/recordings/R1.ogg")).unwrap();
    let (code, out, _) = callreel(dir.path(), &rebuild);
    assert_eq!(code, Some(3), "{out}");
    assert!(out.contains("missing  recordings/R1.ogg\n") && out.contains("1 as they were"), "{out}");

    let nowhere = callreel(dir.path(), &["rebuild", "--from", "calls", "--catalog", "mysql://u:hunter2@h/d"]);
    assert_eq!(nowhere.0, Some(2));
    assert!(!nowhere.2.contains("hunter2"), "{}", nowhere.2);
}

#[tokio::test]
async fn keys_are_made_listed_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let with = |arguments: &[&str]| callreel(dir.path(), &[arguments, &["--catalog", "sqlite://catalog.db"]].concat());
    let (code, secret, err) = with(&["add-key", "--name", "crm", "--scope", "read,record", "--expire-days", "30"]);
    assert_eq!(code, Some(0), "{err}");
    let catalog = Catalog::open(&format!("sqlite://{}/catalog.db", dir.path().display())).await.unwrap();
    let key = catalog.key_of(secret.trim(), callreel::clock::wall()).await.unwrap().unwrap();
    assert_eq!(key.name, "crm");
    let (_, listed, _) = with(&["keys"]);
    assert!(listed.contains(&key.id) && listed.contains("read,record") && !listed.contains(secret.trim()), "{listed}");
    assert_eq!(with(&["revoke-key", &key.id]).0, Some(0));
    assert_eq!(catalog.key_of(secret.trim(), callreel::clock::wall()).await.unwrap(), None);
    assert_eq!(with(&["revoke-key", "AK_x"]).0, Some(2));
    assert_eq!(with(&["add-key", "--name", "crm", "--scope", "everything"]).0, Some(2));
}
