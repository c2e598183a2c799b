//! callreel's own calls: lists, one recording, orders; and texts that are meant to do harm.

use callreel::catalog::{Change, Status, nobody};
use callreel::clock;
use callreel::testkit::LiveKitServer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ADMIN, Answer, PATIENCE, Running};

const NASTY: [&str; 9] = [
    "'; DROP TABLE recordings; --",
    "\" OR 1=1 --",
    "%' OR '1'='1",
    "../../etc/passwd",
    "..%2f..%2fetc",
    "<script>alert(1)</script>",
    "${LIVEKIT_API_SECRET}",
    "{{7*7}}\u{202e}",
    "a\\b",
];

fn ids(answer: &Answer) -> Vec<String> {
    let listed = answer.json();
    listed["recordings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["recording_id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let service = Running::start().await;
    for number in 0..5 {
        service.ready(&format!("R{number}"), &format!("room-{}", number % 2), b"sound").await;
    }
    service.active("R5", "live").await;
    assert_eq!(ids(&service.get("/api/v1/recordings").await), ["R5", "R4", "R3", "R2", "R1", "R0"]);
    let listed = async |query: &str| ids(&service.get(&format!("/api/v1/recordings?{query}")).await);
    assert_eq!(listed("room=room-1").await, ["R3", "R1"]);
    assert_eq!(listed("status=active,starting").await, ["R5"]);
    assert_eq!(listed("outcome=complete&room=live").await, Vec::<String>::new());
    assert_eq!(listed("participant=ann&limit=2").await, ["R4", "R3"]);
    assert_eq!(listed("q=oom-0").await, ["R4", "R2", "R0"]);
    assert_eq!(listed("from=2999-01-01T00:00:00Z").await, Vec::<String>::new());
    assert_eq!(listed("to=2999-01-01T00:00:00%2B02:00&status=active").await, ["R5"]);
    let mut all = Vec::new();
    let mut path = "/api/v1/recordings?limit=4".to_owned();
    loop {
        let answer = service.get(&path).await;
        all.extend(ids(&answer));
        let Some(next) = answer.json()["next"].as_str().map(str::to_owned) else { break };
        path = format!("/api/v1/recordings?limit=4&cursor={next}");
    }
    assert_eq!(all, ["R5", "R4", "R3", "R2", "R1", "R0"]);
    for query in [
        "limit=0",
        "limit=501",
        "limit=x",
        "status=stopped",
        "outcome=fine",
        "from=yesterday",
        "cursor=x",
        "rooms=x",
        "deleted=maybe",
        "room=",
        "room=a%00b",
        "q=%0a",
    ] {
        let answer = service.get(&format!("/api/v1/recordings?{query}")).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad-request"), "{query}");
    }
}

#[tokio::test]
async fn one_recording_tells_everything_but_secrets() {
    let service = Running::start().await;
    service.ready("R1", "room", b"sound").await;
    let answer = service.get("/api/v1/recordings/R1").await;
    let one = answer.json();
    for name in [
        "recording_id",
        "egress_id",
        "status",
        "started_at",
        "ended_at",
        "duration_seconds",
        "duration_formatted",
        "file_url",
        "download_url",
        "file_size_bytes",
        "file_format",
        "storage_provider",
        "storage_bucket",
        "storage_key",
        "is_processed",
        "thumbnail_url",
        "metadata",
        "outcome",
        "reasons",
        "participants",
        "retention_until",
        "legal_hold",
    ] {
        assert!(one.get(name).is_some(), "{name} is missing in {one}");
    }
    assert!(one.get("config").is_none() && one.get("owner").is_none());
    assert_eq!((&one["participants"][0]["identity"], &one["outputs"][0]["kind"]), (&json!("ann"), &json!("mix")));
    for id in ["R2", "R1'", "R1%00", "R1%2f..%2fR1", &"x".repeat(65)] {
        let answer = service.get(&format!("/api/v1/recordings/{id}")).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (404, "not-found"), "{id}");
    }
}

#[tokio::test]
async fn texts_that_are_meant_to_do_harm_are_only_texts() {
    let service = Running::start().await;
    for (number, text) in NASTY.into_iter().enumerate() {
        let id = format!("R{number}");
        service.ready(&id, text, b"sound").await;
        let who = callreel::catalog::Participant { identity: text.into(), name: text.into(), kind: "sip".into() };
        let change = Change { participants: vec![who], ..Change::default() };
        service.catalog.update(&id, &change, clock::wall(), nobody).await.unwrap();
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for query in [format!("room={encoded}"), format!("participant={encoded}"), format!("q={encoded}")] {
            let answer = service.get(&format!("/api/v1/recordings?{query}")).await;
            assert_eq!(ids(&answer), std::slice::from_ref(&id), "{text}");
            assert_eq!(answer.json()["recordings"][0]["room_name"], text);
        }
        let answer = service.get(&format!("/api/v1/rooms/{encoded}/recordings/")).await;
        assert_eq!(answer.json()[0]["recording_id"], id);
        let audio = service.get(&format!("/api/v1/recordings/{id}/audio")).await;
        assert_eq!((audio.status.as_u16(), audio.text.as_str()), (200, "sound"));
    }
    assert_eq!(service.catalog.list(&Default::default(), None, 50).await.unwrap().rows.len(), NASTY.len());
    for path in ["/api/v1/rooms/a%0d%0aSet-Cookie:%20x/recordings/", "/api/v1/rooms/a%00/start-recording/"] {
        let method = if path.ends_with("start-recording/") { Method::POST } else { Method::GET };
        let answer = service.answer(ADMIN, method, path, None).await;
        assert_eq!((answer.status.as_u16(), answer.header("set-cookie")), (400, ""), "{path}");
    }
}

#[tokio::test]
async fn a_recording_is_deleted_once_and_held_ones_are_not() {
    let service = Running::start().await;
    service.ready("R1", "room", b"sound").await;
    service.active("R2", "live").await;
    let delete = async |path: &str| service.answer(ADMIN, Method::DELETE, path, None).await;
    let hold = async |held: bool| {
        let body = Some(json!({"held": held}));
        service.answer(ADMIN, Method::PUT, "/api/v1/recordings/R1/hold", body).await
    };
    assert_eq!(hold(true).await.json()["legal_hold"], true);
    let held = delete("/api/v1/recordings/R1").await;
    assert_eq!((held.status.as_u16(), held.problem().as_str()), (409, "legal-hold"));
    let live = delete("/api/v1/recordings/R2").await;
    assert_eq!((live.status.as_u16(), live.problem().as_str()), (409, "wrong-state"));
    assert_eq!(hold(false).await.json()["legal_hold"], false);
    let deleted = delete("/api/v1/recordings/R1?reason=asked%20for").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text);
    let tombstone = &deleted.json()["deleted"];
    assert_eq!((&tombstone["by"], &tombstone["why"]), (&json!("key:admin"), &json!("asked for")));
    assert_eq!(ids(&service.get("/api/v1/recordings").await), ["R2"]);
    assert_eq!(ids(&service.get("/api/v1/recordings?deleted=true").await), ["R1"]);
    let audio = service.get("/api/v1/recordings/R1/audio").await;
    assert_eq!((audio.status.as_u16(), audio.problem().as_str()), (410, "deleted"));
    assert_eq!(delete("/api/v1/recordings/R9").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_made_again_starts_nothing() {
    let server = LiveKitServer::start().await.unwrap();
    for room in ["call-1", "call-2"] {
        server.rooms().create(room, 300, 20).await.unwrap();
    }
    let (url, key, secret) = (server.http_url(), server.api_key().to_owned(), server.api_secret().to_owned());
    let env = [("LIVEKIT_URL", &*url), ("LIVEKIT_API_KEY", &*key), ("LIVEKIT_API_SECRET", &*secret)];
    let mut service = Running::start_with("", &env).await;
    let start = async |key: &str, body: &Value| {
        let request = service.as_key(ADMIN, Method::POST, "/api/v1/recordings").header("idempotency-key", key);
        Answer::of(request.body(body.to_string())).await
    };
    let body = json!({"room": "call-1", "metadata": {"order": 7}});
    let first = start("a", &body).await;
    assert_eq!(first.status, 201, "{}", first.text);
    let id = first.json()["recording_id"].as_str().unwrap().to_owned();
    assert_eq!(first.header("location"), format!("/api/v1/recordings/{id}"));
    assert_eq!(first.json()["metadata"], json!({"order": 7}));
    let again = start("a", &body).await;
    assert_eq!((again.status.as_u16(), &again.json()["recording_id"]), (201, &json!(id)));
    let other = start("a", &json!({"room": "call-2"})).await;
    assert_eq!((other.status.as_u16(), other.problem().as_str()), (422, "idempotency-mismatch"));
    let second = start("b", &body).await;
    assert_eq!((second.status.as_u16(), second.problem().as_str()), (409, "already-recorded"));
    // What came to nothing can be asked again with the same key.
    assert_eq!(start("b", &body).await.status, 409);
    for key in ["", "a\tb", &"x".repeat(256)] {
        assert_eq!(start(key, &body).await.status, 400, "{key:?}");
    }
    assert_eq!(service.catalog.list(&Default::default(), None, 10).await.unwrap().rows.len(), 1);
    let stopped = service.answer(ADMIN, Method::POST, &format!("/api/v1/recordings/{id}/stop"), None).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text);
    service.stop().await;
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_refused_with_what_is_wrong() {
    let service = Running::start().await;
    for (body, word) in [
        (json!({}), "room"),
        (json!({"room": ""}), "room is empty"),
        (json!({"room": "a\u{0}"}), "control characters"),
        (json!({"room": "x".repeat(600)}), "512 bytes"),
        (json!(["x"]), "no JSON object"),
        (json!({"room": "x", "outputs": ["video"]}), "outputs"),
        (json!({"room": "x", "colour": "red"}), "colour"),
        (json!({"room": "x", "metadata": [1]}), "metadata is no object"),
        (json!({"room": "x", "metadata": {"a": "x".repeat(17_000)}}), "16384 bytes"),
        (json!({"room": "x", "metadata": {"a": "\u{0}"}}), "U+0000"),
        (json!({"room": "x", "max_duration_seconds": -1}), "max_duration_seconds"),
        (json!({"room": "x", "max_duration_seconds": 1e300}), "max_duration_seconds"),
        (json!({"room": "x", "retention_days": 40_000}), "retention_days"),
    ] {
        let answer = service.answer(ADMIN, Method::POST, "/api/v1/recordings", Some(body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad-request"), "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(word), "{word}: {}", answer.text);
    }
    for (body, word) in [
        (json!({"room": "x", "format": "webm", "video": true}), "webm"),
        (json!({"room": "x", "format": "avi"}), "avi"),
        (json!({"room": "x", "name": "{rom}"}), "rom"),
        (json!({"room": "x", "outputs": []}), "outputs"),
        (json!({"room": "x", "consent": ["smile"]}), "smile"),
        (json!({"room": "x", "video": true}), "store"),
    ] {
        let answer = service.answer(ADMIN, Method::POST, "/api/v1/recordings", Some(body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (422, "not-available"), "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(word), "{word}: {}", answer.text);
    }
    let long = service.as_key(ADMIN, Method::POST, "/api/v1/recordings").body("x".repeat(70_000));
    assert_eq!(Answer::of(long).await.problem(), "too-large");
    let two = service.as_key(ADMIN, Method::POST, "/api/v1/recordings").body(r#"{"room":"x"} {"room":"y"}"#);
    assert_eq!(Answer::of(two).await.problem(), "bad-request");
}

#[tokio::test]
async fn nothing_is_where_nothing_is() {
    let service = Running::start().await;
    for (method, path, status) in [
        (Method::GET, "/", 404),
        (Method::GET, "/api/v2/recordings", 404),
        (Method::GET, "/api/v1/../../etc/passwd", 404),
        (Method::DELETE, "/api/v1/recordings", 405),
        (Method::GET, "/webhook-receiver", 405),
    ] {
        let answer = service.answer(ADMIN, method, path, None).await;
        assert_eq!(answer.status, status, "{path}");
        answer.problem();
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
}

#[tokio::test]
async fn what_happens_is_told_while_it_does() {
    let service = Running::start().await;
    service.active("R1", "room").await;
    let request = service.as_key(ADMIN, Method::GET, "/api/v1/recordings/R1/events");
    let mut response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut told = String::new();
    let mut read = async |until: &str| {
        let reading = async {
            while !told.contains(until) {
                match response.chunk().await.unwrap() {
                    Some(chunk) => told.push_str(std::str::from_utf8(&chunk).unwrap()),
                    None => break,
                }
            }
            told.clone()
        };
        tokio::time::timeout(PATIENCE, reading).await.unwrap()
    };
    assert!(read("\n\n").await.starts_with("event: state\ndata: {"));
    assert!(read("\"active\"").await.contains("\"recording_id\":\"R1\""));
    let done = Change::status(Status::Ready);
    service.catalog.update("R1", &done, clock::wall(), nobody).await.unwrap();
    assert!(read("\"ready\"").await.contains("\"ready\""));
    let end = tokio::time::timeout(PATIENCE, read("never")).await;
    assert!(end.is_ok(), "it ends with the recording");
}

#[tokio::test]
async fn the_end_of_the_service_ends_what_lasts() {
    let mut service = Running::start().await;
    service.active("R1", "room").await;
    let mut response = service.as_key(ADMIN, Method::GET, "/api/v1/recordings/R1/events").send().await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    let begun = clock::now();
    service.stop().await;
    assert!(clock::now() - begun < PATIENCE, "{:?}", clock::now() - begun);
}

#[tokio::test]
async fn probes_and_figures_need_no_key_and_name_nobody() {
    let service = Running::start().await;
    service.ready("R1", "a-room-of-somebody", b"sound").await;
    service.get("/api/v1/recordings/R1").await;
    for path in ["/healthz", "/readyz"] {
        let answer = Answer::of(service.ask(Method::GET, path)).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!("ok")));
    }
    let answer = Answer::of(service.ask(Method::GET, "/metrics")).await;
    let route = "callreel_http_request_seconds_count{method=\"GET\",route=\"/api/v1/recordings/{recording_id}\",status=\"200\"} 1";
    assert!(answer.text.contains(route), "{}", answer.text);
    assert!(!answer.text.contains("a-room-of-somebody") && !answer.text.contains("R1"));
    let accesses = service.get("/api/v1/recordings/R1/accesses").await.json();
    assert_eq!((&accesses[0]["who"], &accesses[0]["action"]), (&json!("key:admin"), &json!("get")));
    assert_eq!(accesses[0]["remote"], "127.0.0.1");
}
