//! What every catalogue has to do. Each check has an empty one of its own, and fails with a panic.

use std::collections::BTreeSet;

use callreel::call::ParticipantKind;
use callreel::catalog::{
    Access, Answer, Catalog, CatalogError, Change, Filter, Idempotency, NewRecording, Owner, Participant, Row, Scope,
    Status, nobody,
};
use callreel::config::OutputKind;
use callreel::recording::{Outcome, OutputResult};
use serde_json::json;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

checks![
    a_recording_comes_back_as_it_was_stored,
    a_room_has_one_recorder,
    of_many_who_begin_one_does,
    a_call_that_was_made_again_has_happened_once,
    what_is_over_does_not_begin_anew,
    texts_of_others_do_nothing,
    filters_find_what_they_say,
    search_finds_text_and_no_patterns,
    pages_lead_through_everything_once,
    wrong_cursors_are_refused,
    figures_count_by_state,
    retention_ends_what_nothing_holds,
    deletion_ends_in_a_tombstone,
    recordings_of_the_dead_are_adopted_once,
    keys_open_what_they_are_for,
    an_answer_is_given_again,
    webhooks_are_first_once,
    leases_are_one_holders,
    accesses_are_logged_and_let_go,
    large_rows_come_back,
];

pub const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00.123456 UTC);

pub async fn begin(catalog: &Catalog, id: &str, room: &str, at: OffsetDateTime) -> Row {
    catalog.begin(NewRecording::new(id, room, at), nobody).await.unwrap()
}

pub async fn finish(catalog: &Catalog, id: &str, at: OffsetDateTime) -> Row {
    let change = Change { outcome: Some(Outcome::Complete), ..Change::status(Status::Ready) };
    catalog.update(id, &change, at, nobody).await.unwrap()
}

fn everything() -> (NewRecording, Change) {
    let new = NewRecording {
        room_id: "RM_1".into(),
        egress_id: Some("EG_1".into()),
        engine: "egress".into(),
        rule: Some("sip".into()),
        file_format: "mp4".into(),
        storage_provider: "r2".into(),
        storage_bucket: Some("calls".into()),
        storage_key: Some("a/b.mp4".into()),
        retention_until: Some(NOW + Duration::days(30)),
        metadata: json!({ "ticket": 7, "who": "Zoë \u{0} 🎙" }),
        config: json!({ "spool": "x" }),
        owner: Some(Owner { instance: "pod-1".into(), until: NOW + Duration::seconds(30) }),
        ..NewRecording::new("R1", "Gespräch 7", NOW)
    };
    let change = Change {
        status: Some(Status::Active),
        outcome: Some(Outcome::Degraded),
        reasons: Some(json!([{ "reason": "recorder_down", "seconds": 1.5 }])),
        started_at: Some(NOW + Duration::seconds(1)),
        ended_at: Some(NOW + Duration::seconds(61)),
        ready_at: Some(NOW + Duration::seconds(62)),
        duration_seconds: Some(60.000_020_833),
        outputs: Some(vec![OutputResult {
            kind: OutputKind::Tracks,
            participant: Some("alice".into()),
            location: "s3://calls/a/b.mp4".into(),
            duration_seconds: 60.0,
            bytes: 1 << 40,
            sha256: "ab".into(),
        }]),
        objects: Some(vec!["a/b.mp4".into(), "a/b.json".into()]),
        manifest: Some("s3://calls/a/b.json".into()),
        file_url: Some("s3://calls/a/b.mp4".into()),
        file_size_bytes: Some(1 << 40),
        is_processed: Some(true),
        thumbnail_url: Some("https://x.example/t.png".into()),
        participants: vec![
            Participant::new("bob", "", ParticipantKind::Agent),
            Participant::new("alice", "Alice", ParticipantKind::Sip),
        ],
        ..Change::default()
    };
    (new, change)
}

async fn a_recording_comes_back_as_it_was_stored(catalog: Catalog) {
    let (new, change) = everything();
    let begun = catalog.begin(new.clone(), nobody).await.unwrap();
    assert_eq!((begun.status, begun.started_at), (Status::Starting, Some(NOW)));
    assert_eq!(catalog.get("R1").await.unwrap().as_ref(), Some(&begun));
    let changed = catalog.update("R1", &change, NOW + Duration::seconds(2), nobody).await.unwrap();
    assert_eq!(catalog.get("R1").await.unwrap().as_ref(), Some(&changed));
    assert_eq!((&changed.metadata, &changed.config, &changed.rule), (&new.metadata, &new.config, &new.rule));
    assert_eq!((&changed.owner, changed.created_at), (&new.owner, NOW));
    assert_eq!(changed.updated_at, NOW + Duration::seconds(2));
    assert_eq!(changed.duration_seconds, 60.000_020_833);
    assert_eq!(changed.outputs, change.outputs.clone().unwrap());
    assert_eq!((changed.file_size_bytes, changed.is_processed), (1 << 40, true));
    let who: Vec<&str> = changed.participants.iter().map(|who| who.identity.as_str()).collect();
    assert_eq!(who, ["alice", "bob"]);

    let later =
        Change { participants: vec![Participant::new("alice", "Alice A.", ParticipantKind::Sip)], ..Change::default() };
    let again = catalog.update("R1", &later, NOW + Duration::seconds(3), nobody).await.unwrap();
    assert_eq!((again.participants.len(), again.participants[0].name.as_str()), (2, "Alice A."));
    assert_eq!((again.outcome, again.outputs), (changed.outcome, changed.outputs), "the rest stays");
    assert_eq!(catalog.by_egress("EG_1").await.unwrap().unwrap().recording_id, "R1");
    assert_eq!(catalog.recorded("Gespräch 7").await.unwrap().unwrap().recording_id, "R1");
    assert_eq!(catalog.get("R2").await.unwrap(), None);
    let error = catalog.update("R2", &change, NOW, nobody).await.unwrap_err();
    assert!(matches!(error, CatalogError::NotFound { recording_id } if recording_id == "R2"));
}

async fn a_room_has_one_recorder(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    begin(&catalog, "R2", "other", NOW).await;
    for status in [Status::Starting, Status::Active, Status::Paused] {
        catalog.update("R1", &Change::status(status), NOW, nobody).await.unwrap();
        let error = catalog.begin(NewRecording::new("R3", "room", NOW), nobody).await.unwrap_err();
        assert!(matches!(error, CatalogError::AlreadyRecorded { recording_id } if recording_id == "R1"), "{status}");
    }
    // The next call does not wait for the last one's files.
    catalog.update("R1", &Change::status(Status::Stopping), NOW, nobody).await.unwrap();
    begin(&catalog, "R3", "room", NOW).await;
    let back = catalog.update("R1", &Change::status(Status::Active), NOW, nobody).await.unwrap_err();
    assert!(matches!(back, CatalogError::AlreadyRecorded { recording_id } if recording_id == "R3"));
    let ids: Vec<String> = catalog.unfinished().await.unwrap().into_iter().map(|row| row.recording_id).collect();
    assert_eq!(ids, ["R1", "R2", "R3"]);
}

async fn of_many_who_begin_one_does(catalog: Catalog) {
    let tries = (0..20).map(|number| {
        let catalog = catalog.clone();
        tokio::spawn(async move { catalog.begin(NewRecording::new(format!("R{number}"), "room", NOW), nobody).await })
    });
    let mut begun = BTreeSet::new();
    let mut told = BTreeSet::new();
    for tried in tries.collect::<Vec<_>>() {
        match tried.await.unwrap() {
            Ok(row) => assert!(begun.insert(row.recording_id)),
            Err(CatalogError::AlreadyRecorded { recording_id }) => _ = told.insert(recording_id),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((begun.len(), &told), (1, &begun));
}

async fn a_call_that_was_made_again_has_happened_once(catalog: Catalog) {
    let (new, change) = everything();
    let first = catalog.begin(new.clone(), nobody).await.unwrap();
    assert_eq!(catalog.begin(new.clone(), nobody).await.unwrap(), first);
    let changed = catalog.update("R1", &change, NOW, nobody).await.unwrap();
    assert_eq!(catalog.update("R1", &change, NOW, nobody).await.unwrap(), changed);
    assert_eq!(catalog.begin(new, nobody).await.unwrap(), changed);
    let stranger = NewRecording::new("R1", "another room", NOW);
    assert!(matches!(catalog.begin(stranger, nobody).await, Err(CatalogError::Exists { .. })));
}

async fn what_is_over_does_not_begin_anew(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    let failed = Change { outcome: Some(Outcome::Failed), ..Change::status(Status::Failed) };
    catalog.update("R1", &failed, NOW, nobody).await.unwrap();
    for late in [Status::Starting, Status::Active, Status::Stopping] {
        let error = catalog.update("R1", &Change::status(late), NOW, nobody).await.unwrap_err();
        assert!(matches!(error, CatalogError::Finished { status: Status::Failed, .. }), "{late}: {error}");
    }
    let recovered = finish(&catalog, "R1", NOW).await;
    assert_eq!(recovered.status, Status::Ready);
    let error = catalog.update("R1", &failed, NOW, nobody).await.unwrap_err();
    assert!(matches!(error, CatalogError::Finished { status: Status::Ready, .. }), "{error}");
    // What says nothing of where it stands is taken.
    let noted = Change { metadata: Some(json!({ "transcript": "…" })), ..Change::default() };
    assert_eq!(catalog.update("R1", &noted, NOW, nobody).await.unwrap().metadata["transcript"], "…");
}

/// Texts that would do something if they were ever more than values, or that only one database takes.
pub const HOSTILE: [&str; 10] = [
    "'; DROP TABLE recordings; --",
    "\" OR \"\"=\"",
    "' OR '1'='1",
    "$1 ?1 :name @x %s {key}",
    "\\'; SELECT pg_sleep(60); --",
    "a\0b",
    "100%_!",
    "../../etc/passwd\r\nX-Evil: 1",
    "\u{202e}desrever 🎙\u{fe0f} ﷽ \u{10ffff}",
    "\u{1b}[2J",
];

async fn texts_of_others_do_nothing(catalog: Catalog) {
    begin(&catalog, "untouched", "untouched", NOW).await;
    for (number, hostile) in HOSTILE.into_iter().enumerate() {
        let id = format!("R{number} {hostile}");
        let mut new = NewRecording::new(&*id, hostile, NOW);
        (new.rule, new.storage_key, new.metadata) =
            (Some(hostile.into()), Some(hostile.into()), json!({ hostile: hostile }));
        let row = catalog.begin(new, nobody).await.unwrap();
        assert_eq!(row.metadata, json!({ hostile: hostile }));
        let named = vec![Participant { identity: hostile.into(), name: hostile.into(), kind: hostile.into() }];
        let change = Change { participants: named, ..Change::default() };
        let row = catalog.update(&id, &change, NOW, nobody).await.unwrap();
        assert_eq!(catalog.get(&id).await.unwrap().as_ref(), Some(&row));
        let hostile = || Some(hostile.to_owned());
        let filters = [
            Filter { room: hostile(), ..Filter::default() },
            Filter { participant: hostile(), ..Filter::default() },
            Filter { rule: hostile(), ..Filter::default() },
            Filter { room_or_id: hostile(), ..Filter::default() },
        ];
        for filter in filters {
            let found = catalog.list(&filter, None, 10).await.unwrap().rows;
            assert_eq!(found, std::slice::from_ref(&row), "{filter:?}");
        }
        let found = catalog.list(&Filter { search: hostile(), ..Filter::default() }, None, 10).await.unwrap().rows;
        assert_eq!(found, std::slice::from_ref(&row), "{:?}", hostile());
        assert_eq!(catalog.recorded(&hostile().unwrap()).await.unwrap(), Some(row));
        assert!(catalog.first_of_webhook(&id, NOW).await.unwrap());
        assert!(!catalog.first_of_webhook(&id, NOW).await.unwrap());
        assert_eq!(catalog.key_of(&format!("crk_{id}"), NOW).await.unwrap(), None);
        assert!(matches!(catalog.list(&Filter::default(), hostile().as_deref(), 1).await, Err(CatalogError::Cursor)));
    }
    assert_eq!(catalog.count(&Filter::default()).await.unwrap(), 1 + HOSTILE.len() as u64);
    assert_eq!(catalog.get("untouched").await.unwrap().unwrap().status, Status::Starting);
}

async fn filters_find_what_they_say(catalog: Catalog) {
    let (new, change) = everything();
    catalog.begin(new, nobody).await.unwrap();
    catalog.update("R1", &change, NOW, nobody).await.unwrap();
    finish(&catalog, "R1", NOW).await;
    begin(&catalog, "R2", "RM_1", NOW + Duration::hours(1)).await;
    begin(&catalog, "R3", "third", NOW + Duration::hours(2)).await;
    let text = |text: &str| Some(text.to_owned());
    let none = Filter::default();
    for (filter, wanted) in [
        (none.clone(), vec!["R3", "R2", "R1"]),
        (Filter { room: text("Gespräch 7"), ..none.clone() }, vec!["R1"]),
        (Filter { room: text("gespräch 7"), ..none.clone() }, vec![]),
        (Filter { room_id: text("RM_1"), ..none.clone() }, vec!["R1"]),
        (Filter { room_or_id: text("RM_1"), ..none.clone() }, vec!["R2", "R1"]),
        (Filter { status: vec![Status::Starting], ..none.clone() }, vec!["R3", "R2"]),
        (Filter { status: vec![Status::Starting, Status::Ready], ..none.clone() }, vec!["R3", "R2", "R1"]),
        (Filter { outcome: Some(Outcome::Complete), ..none.clone() }, vec!["R1"]),
        (Filter { participant: text("alice"), ..none.clone() }, vec!["R1"]),
        (Filter { participant: text("alic"), ..none.clone() }, vec![]),
        (Filter { rule: text("sip"), ..none.clone() }, vec!["R1"]),
        (Filter { from: Some(NOW + Duration::hours(1)), ..none.clone() }, vec!["R3", "R2"]),
        (Filter { to: Some(NOW + Duration::hours(1)), ..none.clone() }, vec!["R1"]),
        (
            Filter { from: Some(NOW + Duration::minutes(1)), to: Some(NOW + Duration::hours(2)), ..none.clone() },
            vec!["R2"],
        ),
        (Filter { participant: text("alice"), status: vec![Status::Starting], ..none.clone() }, vec![]),
        (Filter { deleted: true, ..none.clone() }, vec![]),
    ] {
        let found = catalog.list(&filter, None, 10).await.unwrap().rows;
        let ids: Vec<&str> = found.iter().map(|row| row.recording_id.as_str()).collect();
        assert_eq!(ids, wanted, "{filter:?}");
        assert_eq!(catalog.count(&filter).await.unwrap(), wanted.len() as u64, "{filter:?}");
    }
}

async fn search_finds_text_and_no_patterns(catalog: Catalog) {
    let (new, change) = everything();
    catalog.begin(new, nobody).await.unwrap();
    catalog.update("R1", &change, NOW, nobody).await.unwrap();
    begin(&catalog, "R2", "call_100%", NOW).await;
    for (search, wanted) in [
        ("GESPR", vec!["R1"]),
        ("rm_1", vec!["R1"]),
        ("eg_1", vec!["R1"]),
        ("ALICE", vec!["R1"]),
        ("bo", vec!["R1"]),
        ("0%", vec!["R2"]),
        ("l_1", vec!["R2"]),
        ("%", vec!["R2"]),
        ("call!", vec![]),
        ("r", vec!["R2", "R1"]),
        ("", vec!["R2", "R1"]),
    ] {
        let filter = Filter { search: Some(search.into()), ..Filter::default() };
        let found = catalog.list(&filter, None, 10).await.unwrap().rows;
        assert_eq!(found.iter().map(|row| row.recording_id.as_str()).collect::<Vec<_>>(), wanted, "{search}");
    }
}

async fn pages_lead_through_everything_once(catalog: Catalog) {
    for number in 0..25 {
        // Several began at the same moment.
        begin(&catalog, &format!("R{number:02}"), &format!("room {number}"), NOW + Duration::seconds(number / 4)).await;
    }
    let (mut cursor, mut seen, mut pages) = (None::<String>, Vec::new(), 0);
    loop {
        let page = catalog.list(&Filter::default(), cursor.as_deref(), 7).await.unwrap();
        seen.extend(page.rows.into_iter().map(|row| row.recording_id));
        pages += 1;
        if pages == 2 {
            begin(&catalog, "newer", "newer", NOW + Duration::hours(1)).await;
        }
        let Some(next) = page.next else { break };
        cursor = Some(next);
    }
    let wanted: Vec<String> = (0..25).rev().map(|number| format!("R{number:02}")).collect();
    assert_eq!((pages, seen), (4, wanted));
    assert_eq!(catalog.list(&Filter::default(), None, 0).await.unwrap().rows.len(), 1);
    assert_eq!(catalog.list(&Filter::default(), None, u32::MAX).await.unwrap().rows.len(), 26);
}

async fn wrong_cursors_are_refused(catalog: Catalog) {
    for cursor in ["", "x", "MQ", "MS4yLjM"] {
        let error = catalog.list(&Filter::default(), Some(cursor), 1).await.unwrap_err();
        assert!(matches!(error, CatalogError::Cursor), "{cursor}: {error}");
    }
}

async fn figures_count_by_state(catalog: Catalog) {
    for id in ["R1", "R2", "R3"] {
        begin(&catalog, id, id, NOW).await;
    }
    finish(&catalog, "R1", NOW).await;
    finish(&catalog, "R2", NOW).await;
    let counts = catalog.counts().await.unwrap();
    let found: Vec<_> = counts.iter().map(|count| (count.status, count.outcome.as_deref(), count.recordings)).collect();
    assert_eq!(found, [(Status::Ready, Some("complete"), 2), (Status::Starting, None, 1)]);
    catalog.ping().await.unwrap();
}

async fn retention_ends_what_nothing_holds(catalog: Catalog) {
    for (number, id) in ["due", "later", "held", "running", "forever"].into_iter().enumerate() {
        let until = if id == "later" { NOW + Duration::days(2) } else { NOW + Duration::days(1) };
        let retention_until = (id != "forever").then_some(until);
        let new = NewRecording { retention_until, ..NewRecording::new(id, format!("{number}"), NOW) };
        catalog.begin(new, nobody).await.unwrap();
        if id != "running" {
            finish(&catalog, id, NOW).await;
        }
    }
    assert!(catalog.hold("held", true, NOW).await.unwrap().legal_hold);
    assert_eq!(catalog.expired(NOW + Duration::hours(23), 10).await.unwrap(), []);
    let ids = async |at| -> Vec<String> {
        catalog.expired(at, 10).await.unwrap().into_iter().map(|row| row.recording_id).collect()
    };
    assert_eq!(ids(NOW + Duration::days(1)).await, ["due"]);
    assert_eq!(ids(NOW + Duration::days(2)).await, ["due", "later"]);
    assert_eq!(catalog.expired(NOW + Duration::days(2), 1).await.unwrap().len(), 1);
    let error = catalog.delete("held", "retention", "", NOW).await.unwrap_err();
    assert!(matches!(error, CatalogError::Held { .. }));
    catalog.hold("held", false, NOW).await.unwrap();
    assert_eq!(ids(NOW + Duration::days(1)).await, ["due", "held"]);
    let kept = Change { retention_until: Some(None), ..Change::default() };
    catalog.update("due", &kept, NOW, nobody).await.unwrap();
    assert_eq!(ids(NOW + Duration::days(1)).await, ["held"]);
}

async fn deletion_ends_in_a_tombstone(catalog: Catalog) {
    let (new, change) = everything();
    catalog.begin(new, nobody).await.unwrap();
    catalog.update("R1", &change, NOW, nobody).await.unwrap();
    let error = catalog.delete("R1", "alice", "asked", NOW).await.unwrap_err();
    assert!(matches!(error, CatalogError::Unfinished { status: Status::Active, .. }), "{error}");
    finish(&catalog, "R1", NOW).await;
    let error = catalog.tombstone("R1", NOW, nobody).await.unwrap_err();
    assert!(matches!(error, CatalogError::Unfinished { .. }), "{error}");

    let row = catalog.delete("R1", "alice", "asked", NOW).await.unwrap();
    assert_eq!(row.objects.len(), 2, "what is to be erased is known");
    assert_eq!(catalog.delete("R1", "bob", "again", NOW + Duration::hours(1)).await.unwrap(), row);
    assert_eq!(catalog.count(&Filter::default()).await.unwrap(), 0);
    assert_eq!(catalog.erasing(10).await.unwrap(), [row]);
    let error = catalog.update("R1", &change, NOW, nobody).await.unwrap_err();
    assert!(matches!(error, CatalogError::Deleted { .. }), "{error}");
    assert!(matches!(catalog.hold("R1", true, NOW).await, Err(CatalogError::Deleted { .. })));

    let later = NOW + Duration::minutes(5);
    let tomb = catalog.tombstone("R1", later, nobody).await.unwrap();
    assert_eq!(catalog.get("R1").await.unwrap().as_ref(), Some(&tomb));
    assert_eq!(catalog.tombstone("R1", later + Duration::hours(1), nobody).await.unwrap(), tomb);
    let deleted = tomb.deleted.clone().unwrap();
    assert_eq!((deleted.at, deleted.by.as_str(), deleted.why.as_str()), (NOW, "alice", "asked"));
    assert_eq!(deleted.erased_at, Some(later));
    let text = serde_json::to_string(&tomb).unwrap().replace("\"by\":\"alice\"", "");
    for forgotten in ["alice", "Alice", "bob", "ticket", "s3://", "a/b", "recorder_down"] {
        assert!(!text.contains(forgotten), "{forgotten} is in {text}");
    }
    assert_eq!(catalog.erasing(10).await.unwrap(), []);
    let tombs = catalog.list(&Filter { deleted: true, ..Filter::default() }, None, 10).await.unwrap().rows;
    assert_eq!(tombs, [tomb]);
    let by_name = Filter { participant: Some("alice".into()), deleted: true, ..Filter::default() };
    assert_eq!(catalog.count(&by_name).await.unwrap(), 0);
    // The room is free, and its next recording another.
    begin(&catalog, "R2", "Gespräch 7", NOW).await;
}

async fn recordings_of_the_dead_are_adopted_once(catalog: Catalog) {
    let owner =
        |instance: &str, seconds: i64| Owner { instance: instance.into(), until: NOW + Duration::seconds(seconds) };
    for id in ["R1", "R2", "R3"] {
        let new = NewRecording { owner: Some(owner("a", 30)), ..NewRecording::new(id, id, NOW) };
        catalog.begin(new, nobody).await.unwrap();
    }
    finish(&catalog, "R3", NOW).await;
    let b = owner("b", 60);
    assert_eq!(catalog.adopt("R1", &b, NOW + Duration::seconds(29)).await.unwrap(), None, "its owner lives");
    assert_eq!(catalog.keep_owned(&owner("a", 40)).await.unwrap(), 2);
    assert_eq!(catalog.adopt("R1", &b, NOW + Duration::seconds(31)).await.unwrap(), None, "it said so");
    let adopted = catalog.adopt("R1", &b, NOW + Duration::seconds(41)).await.unwrap().unwrap();
    assert_eq!(adopted.owner, Some(b.clone()));
    assert_eq!(catalog.adopt("R1", &owner("c", 90), NOW + Duration::seconds(42)).await.unwrap(), None);
    let own = catalog.adopt("R2", &owner("a", 90), NOW + Duration::seconds(20)).await.unwrap();
    assert!(own.is_some(), "a process that comes back under its name finds its own");
    assert_eq!(catalog.adopt("R3", &b, NOW + Duration::days(1)).await.unwrap(), None, "it is finished");
    assert_eq!(catalog.get("R3").await.unwrap().unwrap().owner, None);
    assert!(matches!(catalog.adopt("R4", &b, NOW).await, Err(CatalogError::NotFound { .. })));
}

async fn keys_open_what_they_are_for(catalog: Catalog) {
    assert!(!catalog.has_keys().await.unwrap());
    let end = NOW + Duration::days(1);
    let (key, secret) = catalog.create_key("crm", &[Scope::Read, Scope::Record], Some(end), NOW).await.unwrap();
    assert!(catalog.has_keys().await.unwrap());
    assert!(secret.expose().starts_with("crk_") && secret.expose().len() == 47);
    let found = catalog.key_of(secret.expose(), NOW).await.unwrap().unwrap();
    assert_eq!((&found.id, &found.scopes, found.expires_at), (&key.id, &key.scopes, Some(end)));
    assert!(found.allows(Scope::Read) && found.allows(Scope::Record) && !found.allows(Scope::Delete));
    assert_eq!(catalog.key_of(secret.expose(), end).await.unwrap(), None, "it has ended");
    let shown = secret.expose();
    for wrong in ["", "crk_", &shown[..46], &shown.to_lowercase(), &format!("{shown}x"), &key.id] {
        assert_eq!(catalog.key_of(wrong, NOW).await.unwrap(), None, "{wrong}");
    }
    let (admin, all) = catalog.create_key("root", &[Scope::Admin], None, NOW + Duration::seconds(1)).await.unwrap();
    assert!(Scope::ALL.into_iter().all(|scope| admin.allows(scope)));
    assert_ne!(all.expose(), shown);
    let keys = catalog.keys().await.unwrap();
    assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["crm", "root"]);
    assert_eq!(keys[0].last_used_at, Some(NOW));
    assert!(!serde_json::to_string(&keys).unwrap().contains(&shown[4..]));

    let revoked = catalog.revoke_key(&key.id, NOW + Duration::seconds(5)).await.unwrap();
    assert_eq!(catalog.key_of(shown, NOW).await.unwrap(), None);
    let again = catalog.revoke_key(&key.id, NOW + Duration::seconds(9)).await.unwrap();
    assert_eq!(again.revoked_at, revoked.revoked_at);
    assert!(matches!(catalog.revoke_key("AK_x", NOW).await, Err(CatalogError::NoEntry { .. })));
}

async fn an_answer_is_given_again(catalog: Catalog) {
    let (claim, end) = (NOW + Duration::seconds(30), NOW + Duration::hours(24));
    let ask =
        async |caller: &str, hash: &str, now| catalog.idempotency(caller, "k", hash, now, claim, end).await.unwrap();
    assert_eq!(ask("a", "h", NOW).await, Idempotency::New);
    assert_eq!(ask("a", "h", NOW).await, Idempotency::InProgress);
    assert_eq!(ask("a", "other", NOW).await, Idempotency::Other);
    assert_eq!(ask("b", "h", NOW).await, Idempotency::New, "keys of callers are their own");
    assert_eq!(ask("a", "h", claim).await, Idempotency::New, "whoever had it is gone");
    let answer = Answer { status: 201, body: "{}".into() };
    catalog.remember("a", "k", &answer).await.unwrap();
    assert_eq!(ask("a", "h", claim).await, Idempotency::Done(answer.clone()));
    assert_eq!(ask("a", "other", claim).await, Idempotency::Other);
    catalog.forget("a", "k").await.unwrap();
    assert_eq!(ask("a", "h", claim).await, Idempotency::Done(answer), "what was answered is not forgotten");
    catalog.forget("b", "k").await.unwrap();
    assert_eq!(ask("b", "h", NOW).await, Idempotency::New);
    assert_eq!(ask("a", "other", end).await, Idempotency::New, "answers are kept for a while");

    let all: Vec<_> = (0..20)
        .map(|_| {
            let catalog = catalog.clone();
            tokio::spawn(async move { catalog.idempotency("c", "k", "h", NOW, claim, end).await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for one in all {
        new += usize::from(one.await.unwrap() == Idempotency::New);
    }
    assert_eq!(new, 1);
}

async fn webhooks_are_first_once(catalog: Catalog) {
    let end = NOW + Duration::hours(1);
    assert!(catalog.first_of_webhook("EV_1", end).await.unwrap());
    assert!(!catalog.first_of_webhook("EV_1", end).await.unwrap());
    catalog.forget_webhook("EV_1").await.unwrap();
    assert!(catalog.first_of_webhook("EV_1", end).await.unwrap());
    assert_eq!(catalog.prune(NOW, NOW, NOW).await.unwrap().expired, 0);
    assert_eq!(catalog.prune(end, NOW, NOW).await.unwrap().expired, 1);
    assert!(catalog.first_of_webhook("EV_1", end).await.unwrap());
}

async fn leases_are_one_holders(catalog: Catalog) {
    let until = NOW + Duration::seconds(30);
    assert!(catalog.lease("retention", "a", NOW, until).await.unwrap());
    assert!(!catalog.lease("retention", "b", NOW, until).await.unwrap());
    assert!(catalog.lease("retention", "a", NOW, until).await.unwrap(), "it can be kept");
    assert!(catalog.lease("other", "b", NOW, until).await.unwrap());
    assert!(catalog.lease("retention", "b", until, until + Duration::seconds(30)).await.unwrap(), "a was too late");
    catalog.release("retention", "a").await.unwrap();
    assert!(!catalog.lease("retention", "a", until, until).await.unwrap(), "only its holder gives it back");
    catalog.release("retention", "b").await.unwrap();
    assert!(catalog.lease("retention", "a", until, until).await.unwrap());
}

async fn accesses_are_logged_and_let_go(catalog: Catalog) {
    for (number, status) in [200, 206, 403].into_iter().enumerate() {
        let access = Access {
            id: 0,
            at: NOW + Duration::seconds(number as i64),
            recording_id: "R1".into(),
            who: HOSTILE[0].into(),
            action: "play".into(),
            remote: Some("192.0.2.1".into()),
            status,
        };
        catalog.log_access(&access).await.unwrap();
    }
    let all = catalog.accesses("R1", None, 10).await.unwrap();
    assert_eq!(all.iter().map(|access| access.status).collect::<Vec<_>>(), [403, 206, 200]);
    assert_eq!((all[0].who.as_str(), all[0].remote.as_deref()), (HOSTILE[0], Some("192.0.2.1")));
    assert_eq!(catalog.accesses("R1", Some(all[1].id), 10).await.unwrap(), [all[2].clone()]);
    assert_eq!(catalog.accesses("R2", None, 10).await.unwrap(), []);
    assert_eq!(catalog.prune(NOW, NOW, NOW + Duration::seconds(1)).await.unwrap().accesses, 1);
    assert_eq!(catalog.accesses("R1", None, 10).await.unwrap().len(), 2);
}

async fn large_rows_come_back(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    let metadata = json!({ "transcript": "word ".repeat(400_000) });
    let many: Vec<_> = (0..600).map(|n| Participant::new(format!("p{n:03}"), "", ParticipantKind::Standard)).collect();
    let change = Change { metadata: Some(metadata), participants: many, ..Change::default() };
    let row = catalog.update("R1", &change, NOW, nobody).await.unwrap();
    assert_eq!((row.participants.len(), catalog.get("R1").await.unwrap()), (600, Some(row)));
}
