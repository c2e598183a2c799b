//! Who may do what.

use livekit_api::access_token::VideoGrants;
use reqwest::Method;
use serde_json::json;

use crate::support::{ADMIN, Answer, READER, RECORDER, Running, access_token, pem};

#[tokio::test]
async fn a_key_does_what_its_scopes_say_and_nothing_else() {
    let service = Running::start().await;
    service.ready("R1", "room", b"sound").await;
    service.active("R2", "other").await;
    let all = [
        (Method::GET, "/api/v1/recordings", "read"),
        (Method::GET, "/api/v1/recordings/R1", "read"),
        (Method::GET, "/api/v1/recordings/R1/audio", "read"),
        (Method::GET, "/api/v1/recordings/R1/manifest", "read"),
        (Method::GET, "/api/v1/recordings/R1/waveform", "read"),
        (Method::GET, "/api/v1/recordings/R1/speakers", "read"),
        (Method::POST, "/api/v1/recordings/R1/url", "read"),
        (Method::GET, "/api/v1/rooms/room/recordings/", "read"),
        (Method::GET, "/api/v1/recordings/R1/events", "read"),
        (Method::POST, "/api/v1/recordings/R2/stop", "record"),
        (Method::POST, "/api/v1/recordings/R2/pause", "record"),
        (Method::POST, "/api/v1/recordings/R2/resume", "record"),
        (Method::POST, "/api/v1/rooms/other/stop-recording/", "record"),
        (Method::POST, "/api/v1/rooms/other/start-recording/", "record"),
        (Method::DELETE, "/api/v1/recordings/R1", "delete"),
        (Method::GET, "/api/v1/keys", "admin"),
        (Method::DELETE, "/api/v1/keys/AK_1", "admin"),
        (Method::GET, "/api/v1/deliveries", "admin"),
        (Method::POST, "/api/v1/deliveries/WD_1/redeliver", "admin"),
        (Method::GET, "/api/v1/recordings/R1/accesses", "admin"),
    ];
    let before = service.catalog.list(&Default::default(), None, 10).await.unwrap();
    for (method, path, scope) in &all {
        for (key, may) in [(READER, *scope == "read"), (RECORDER, *scope == "record")] {
            if may {
                continue;
            }
            let answer = service.answer(key, method.clone(), path, None).await;
            assert_eq!(
                (answer.status.as_u16(), answer.problem().as_str()),
                (403, "forbidden"),
                "{method} {path} {key}"
            );
            assert!(answer.json()["detail"].as_str().unwrap().contains(scope), "{}", answer.text);
        }
        let answer = Answer::of(service.ask(method.clone(), path)).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (401, "unauthorized"), "{method} {path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    let hold = service.answer(READER, Method::PUT, "/api/v1/recordings/R1/hold", Some(json!({"held": true}))).await;
    assert_eq!(hold.status, 403);
    let after = service.catalog.list(&Default::default(), None, 10).await.unwrap();
    assert_eq!(before, after, "whoever may not changes nothing");
    for (_, path, _) in all.iter().filter(|(method, _, scope)| *method == Method::GET && *scope == "read") {
        assert_eq!(service.answer(READER, Method::GET, path, None).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn keys_are_presented_in_two_ways_and_wrong_ones_in_none() {
    let service = Running::start().await;
    let own = Answer::of(service.ask(Method::GET, "/api/v1/recordings").header("x-api-key", READER)).await;
    assert_eq!(own.status, 200);
    for value in [
        "Bearer".to_owned(),
        "Bearer ".to_owned(),
        "Bearer reader-0123456789abcde".to_owned(),
        format!("Bearer {READER}x"),
        format!("Basic {READER}"),
        READER.to_owned(),
        "Bearer crk_0000000000000000000000000000000000000000000".to_owned(),
        "Bearer ' OR '1'='1".to_owned(),
        format!("Bearer {}", "x".repeat(9_000)),
    ] {
        let answer = Answer::of(service.ask(Method::GET, "/api/v1/recordings").header("authorization", &value)).await;
        assert_eq!(answer.status, 401, "{value}");
    }
}

#[tokio::test]
async fn keys_of_the_catalogue_are_made_used_and_taken_back() {
    let service = Running::start().await;
    let body = json!({"name": "app", "scopes": ["read"], "valid_days": 30});
    let made = service.answer(ADMIN, Method::POST, "/api/v1/keys", Some(body)).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let made = made.json();
    let key = made["key"].as_str().unwrap();
    assert_eq!(service.answer(key, Method::GET, "/api/v1/recordings", None).await.status, 200);
    assert_eq!(service.answer(key, Method::GET, "/api/v1/keys", None).await.status, 403);
    let listed = service.get("/api/v1/keys").await;
    assert!(!listed.text.contains(key), "a key is shown once");
    assert_eq!(listed.json()[0]["name"], "app");
    let path = format!("/api/v1/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(service.answer(ADMIN, Method::DELETE, &path, None).await.status, 200);
    assert_eq!(service.answer(key, Method::GET, "/api/v1/recordings", None).await.status, 401);
    assert_eq!(service.answer(ADMIN, Method::DELETE, "/api/v1/keys/AK_none", None).await.status, 404);
    for wrong in [json!({"name": "", "scopes": ["read"]}), json!({"name": "x", "scopes": []}), json!({"name": "x"})] {
        assert_eq!(service.answer(ADMIN, Method::POST, "/api/v1/keys", Some(wrong)).await.status, 400);
    }
}

#[tokio::test]
async fn livekit_tokens_open_what_they_are_for() {
    let service = Running::start().await;
    service.ready("R1", "mine", b"sound").await;
    service.ready("R2", "other", b"sound").await;
    let get = async |token: &str, path: &str| service.answer(token, Method::GET, path, None).await;
    let recorder = access_token(VideoGrants { room_record: true, ..VideoGrants::default() });
    assert_eq!(get(&recorder, "/api/v1/recordings").await.json()["recordings"].as_array().unwrap().len(), 2);
    assert_eq!(service.answer(&recorder, Method::DELETE, "/api/v1/recordings/R1", None).await.status, 403);
    let admin = access_token(VideoGrants { room_admin: true, room: "mine".into(), ..VideoGrants::default() });
    let listed = get(&admin, "/api/v1/recordings").await.json();
    assert_eq!(
        (listed["recordings"].as_array().unwrap().len(), &listed["recordings"][0]["recording_id"]),
        (1, &json!("R1"))
    );
    assert_eq!(get(&admin, "/api/v1/recordings/R1").await.status, 200);
    let other = get(&admin, "/api/v1/recordings/R2").await;
    let none = get(&admin, "/api/v1/recordings/R3").await;
    assert_eq!(
        (other.status.as_u16(), other.text.replace("R2", "R3")),
        (404, none.text),
        "of others it learns nothing"
    );
    assert_eq!(get(&admin, "/api/v1/recordings?room=other").await.status, 403);
    assert_eq!(get(&admin, "/api/v1/rooms/other/recordings/").await.status, 403);
    assert_eq!(get(&admin, "/api/v1/keys").await.status, 403);
    assert_eq!(service.answer(&admin, Method::DELETE, "/api/v1/recordings/R2", None).await.status, 404);
    let guest = access_token(VideoGrants { room_join: true, room: "mine".into(), ..VideoGrants::default() });
    assert_eq!(get(&guest, "/api/v1/recordings").await.status, 403);
    let everywhere = access_token(VideoGrants { room_admin: true, ..VideoGrants::default() });
    assert_eq!(get(&everywhere, "/api/v1/recordings").await.status, 403, "roomAdmin is of a room");
    let (head, signature) = recorder.rsplit_once('.').unwrap();
    assert_eq!(
        get(&format!("{head}.{}", signature.replacen(&signature[..1], "_", 1)), "/api/v1/recordings").await.status,
        401
    );
}

#[tokio::test]
async fn without_keys_this_machine_is_trusted_and_pages_in_its_browsers_are_not() {
    let service = Running::start_as("", &[]).await;
    let list = || service.ask(Method::GET, "/api/v1/recordings");
    assert_eq!(Answer::of(list()).await.status, 200);
    assert_eq!(Answer::of(list().header("origin", format!("http://{}", service.address))).await.status, 200);
    for (name, value) in [("origin", "https://evil.example"), ("origin", "null"), ("host", "evil.example")] {
        let answer = Answer::of(list().header(name, value)).await;
        assert_eq!(answer.status, 403, "{name}: {value}");
    }
    let wrong = Answer::of(list().header("authorization", "Bearer wrong")).await;
    assert_eq!(wrong.status, 401, "a wrong key is worse than none");
}

#[tokio::test]
async fn nobody_asks_without_end() {
    let service = Running::start_with("limits: {rate: 0.001, burst: 3}\n", &[]).await;
    for _ in 0..3 {
        assert_eq!(service.answer(READER, Method::GET, "/api/v1/recordings", None).await.status, 200);
    }
    let answer = service.answer(READER, Method::GET, "/api/v1/recordings", None).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (429, "too-many-requests"));
    assert!(answer.header("retry-after").parse::<u64>().unwrap() > 1);
    assert_eq!(service.get("/api/v1/recordings").await.status, 200, "others are not held up");
}

#[tokio::test]
async fn pages_of_other_hosts_are_let_in_by_name() {
    let service = Running::start_with("cors: {origins: ['https://app.example']}\n", &[]).await;
    let preflight = |origin: &'static str| {
        let request = service.ask(Method::OPTIONS, "/api/v1/recordings").header("origin", origin);
        request
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "idempotency-key")
    };
    let answer = Answer::of(preflight("https://app.example")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    assert!(answer.header("access-control-allow-headers").contains("idempotency-key"));
    assert_eq!(Answer::of(preflight("https://evil.example")).await.header("access-control-allow-origin"), "");
    let service = Running::start().await;
    let answer = Answer::of(service.ask(Method::GET, "/healthz").header("origin", "https://app.example")).await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn with_a_certificate_it_speaks_tls_and_nothing_else() {
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, pem("CERTIFICATE", made.cert.der())).unwrap();
    std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    let yaml = format!("tls: {{cert: '{}', key: '{}'}}\n", cert.display(), key.display());
    let service = Running::start_with(&yaml, &[]).await;
    service.ready("R1", "room", b"sound").await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(service.address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    let request = format!(
        "POST /api/v1/recordings/R1/url HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {READER}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // Whether the other end says goodbye is its own affair.
    let _ = stream.read_to_string(&mut answer).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"https://localhost/api/v1/play/R1/0?"),
        "{answer}"
    );
    let plain = service.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(!plain.contains("200 OK"), "{plain}");
}
