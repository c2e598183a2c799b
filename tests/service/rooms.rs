//! The calls that clients of the room-recording service make, byte for byte, and their answers.

use callreel::testkit::LiveKitServer;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{ADMIN, Answer, READER, Running};

const ROOM: &str = "6f1e7a52-40f8-4b27-9c55-0d2f7e6a4c11";

/// A service in front of a real LiveKit server with one room.
async fn with_room() -> (Running, LiveKitServer) {
    let server = LiveKitServer::start().await.unwrap();
    server.rooms().create(ROOM, 300, 20).await.unwrap();
    let (url, key, secret) = (server.http_url(), server.api_key().to_owned(), server.api_secret().to_owned());
    let env = [("LIVEKIT_URL", &*url), ("LIVEKIT_API_KEY", &*key), ("LIVEKIT_API_SECRET", &*secret)];
    (Running::start_with("", &env).await, server)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The names in a body in the order in which they stand there.
fn order(text: &str, names: &[&str]) -> bool {
    let places: Vec<_> = names.iter().map(|name| text.find(&format!("\"{name}\":"))).collect();
    places.iter().all(Option::is_some) && places.is_sorted()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployed_client_starts_and_stops() {
    let (mut service, _server) = with_room().await;
    // As the client sends it.
    let body = r#"{"layout":"speaker","file_format":"webm","audio_only":true}"#;
    let request = format!(
        "POST /api/v1/rooms/{ROOM}/start-recording/ HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {ADMIN}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        service.address,
        body.len()
    );
    let answer = service.raw(request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    assert!(head.to_ascii_lowercase().contains("content-type: application/json"), "{head}");
    assert!(order(body, &["recording_id", "status", "message", "recording"]), "{body}");
    let started: Value = serde_json::from_str(body).unwrap();
    assert_eq!(keys(&started).len(), 4);
    assert_eq!(
        (&started["status"], &started["message"]),
        (&json!("starting"), &json!("Recording started successfully."))
    );
    let recording = &started["recording"];
    assert_eq!(recording["recording_id"], started["recording_id"]);
    assert_eq!((&recording["status"], &recording["file_format"]), (&json!("starting"), &json!("webm")));
    assert!(recording["id"].is_i64() && keys(recording).len() == 5, "{recording}");
    let at = recording["started_at"].as_str().unwrap();
    assert!(at.len() == 20 && at.ends_with('Z'), "{at}: whole seconds, UTC");

    let start = format!("/api/v1/rooms/{ROOM}/start-recording");
    let again = service.answer(ADMIN, Method::POST, &start, Some(json!({"audio_only": true}))).await;
    assert_eq!((again.status.as_u16(), again.problem().as_str()), (409, "already-recorded"));
    assert_eq!(again.json()["recording_id"], started["recording_id"]);
    let listed = service.get(&format!("/api/v1/rooms/{ROOM}/recordings/")).await.json();
    assert_eq!(listed.as_array().unwrap().len(), 1, "one bot, and no second");

    let stop = format!("/api/v1/rooms/{ROOM}/stop-recording/");
    let stopped = Answer::of(service.as_key(ADMIN, Method::POST, &stop)).await;
    assert_eq!(stopped.status, 200, "{}", stopped.text);
    assert!(order(&stopped.text, &["recording_id", "status", "message", "recording"]), "{}", stopped.text);
    let stopped = stopped.json();
    assert_eq!(
        (&stopped["status"], &stopped["message"]),
        (&json!("stopping"), &json!("Recording stopped successfully."))
    );
    assert_eq!(stopped["recording_id"], started["recording_id"]);
    assert_eq!(stopped["recording"]["id"], recording["id"]);
    service.stop().await;
}

#[tokio::test]
async fn a_deployed_client_lists() {
    let service = Running::start().await;
    let row = service.ready("R1", ROOM, b"sound").await;
    service.active("R2", ROOM).await;
    service.ready("R3", "another room", b"sound").await;
    for path in [format!("/api/v1/rooms/{ROOM}/recordings/"), format!("/api/v1/rooms/{ROOM}/recordings")] {
        let answer = service.answer(READER, Method::GET, &path, None).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/json"));
        let listed = answer.json();
        let listed = listed.as_array().unwrap();
        assert_eq!(listed.len(), 2);
        assert_eq!((&listed[0]["status"], &listed[0]["download_url"]), (&json!("active"), &Value::Null));
        let names = [
            "id",
            "recording_id",
            "status",
            "started_at",
            "ended_at",
            "duration_seconds",
            "duration_formatted",
            "file_size_bytes",
            "file_format",
            "download_url",
        ];
        let ready = &listed[1];
        assert_eq!(keys(ready).len(), names.len());
        assert!(order(&answer.text, &names), "{}", answer.text);
        let wanted = json!({
            "id": row.id, "recording_id": "R1", "status": "ready", "duration_seconds": 1800, "duration_formatted": "30:00",
            "file_size_bytes": 5, "file_format": "ogg",
        });
        for (name, value) in wanted.as_object().unwrap() {
            assert_eq!(&ready[name], value, "{name}");
        }
        let url = ready["download_url"].as_str().unwrap().strip_prefix(&format!("http://{}", service.address)).unwrap();
        assert_eq!(Answer::of(service.ask(Method::GET, url)).await.text, "sound");
    }
    let empty = service.get("/api/v1/rooms/unknown/recordings/").await;
    assert_eq!((empty.status.as_u16(), empty.text.as_str()), (200, "[]"));
}

#[tokio::test]
async fn a_bucket_with_a_domain_of_its_own_is_linked_to() {
    let service = Running::start_with("", &[("CLOUDFLARE_R2_CUSTOM_DOMAIN", "files.example")]).await;
    service.ready("R1", ROOM, b"sound").await;
    let listed = service.get(&format!("/api/v1/rooms/{ROOM}/recordings/")).await.json();
    assert_eq!(listed[0]["download_url"], "https://files.example/made/R1.ogg");
}

#[tokio::test]
async fn what_cannot_be_done_is_said_and_not_done() {
    let service = Running::start().await;
    let order = async |path: &str, body: Option<Value>| service.answer(ADMIN, Method::POST, path, body).await;
    let none = order("/api/v1/rooms/nowhere/stop-recording/", None).await;
    assert_eq!((none.status.as_u16(), none.problem().as_str()), (404, "not-found"));
    service.ready("R1", ROOM, b"sound").await;
    let over = order(&format!("/api/v1/rooms/{ROOM}/stop-recording"), None).await;
    assert_eq!((over.status.as_u16(), over.problem().as_str()), (409, "wrong-state"));
    assert!(over.json()["detail"].as_str().unwrap().contains("ready"));
    let start = format!("/api/v1/rooms/{ROOM}/start-recording/");
    // There is no store into which LiveKit Egress could write, and nobody makes the rest.
    for body in
        [json!({}), json!({"file_format": "mp4"}), json!({"file_format": "webm"}), json!({"file_format": "avi"})]
    {
        let answer = order(&start, Some(body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (422, "not-available"), "{body}");
    }
    for body in
        [json!([]), json!({"audio_only": "yes"}), json!({"layout": 7}), json!({"layout": "a\u{0}b"}), json!("x")]
    {
        let answer = order(&start, Some(body.clone())).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad-request"), "{body}");
    }
    let cut = service.as_key(ADMIN, Method::POST, &start).body(r#"{"audio_only":true"#);
    assert_eq!(Answer::of(cut).await.status, 400);
    assert_eq!(service.catalog.list(&Default::default(), None, 10).await.unwrap().rows.len(), 1);
}
