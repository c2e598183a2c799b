//! LiveKit's webhooks: taken from whoever has the key, once, and from nobody else.

use std::time::Duration;

use callreel::clock;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_api::access_token::Claims;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Answer, LIVEKIT_KEY, LIVEKIT_SECRET, PATIENCE, Running, event, webhook_token};

const TAKEN: &str = "callreel_webhooks_total{event=\"room_started\",result=\"taken\"}";

async fn send(service: &Running, path: &str, token: Option<&str>, body: &str) -> Answer {
    let request = service.ask(Method::POST, path).header("content-type", "application/webhook+json");
    let request = match token {
        Some(token) => request.header("authorization", token),
        None => request,
    };
    Answer::of(request.body(body.to_owned())).await
}

/// Waits until a figure is as expected: the queue is emptied after the answer.
async fn comes_to(service: &Running, name: &str, wanted: f64) {
    let until = clock::now() + PATIENCE;
    while service.figure(name).await != wanted {
        assert!(clock::now() < until, "{name} is {}", service.figure(name).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_signed_event_is_taken_at_every_path_that_servers_call() {
    let service = Running::start().await;
    let paths = ["/webhook-receiver", "/livekit/webhook", "/api/webhooks/livekit/", "/api/webhooks/livekit"];
    for (number, path) in paths.into_iter().enumerate() {
        let body = event(&format!("EV_{number}"), "room_started", "room");
        let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
        let answer = send(&service, path, Some(&token), &body).await;
        assert_eq!((answer.status.as_u16(), answer.text.as_str()), (200, ""), "{path}");
    }
    comes_to(&service, TAKEN, 4.0).await;
}

#[tokio::test]
async fn an_event_that_comes_twice_is_handed_on_once() {
    let service = Running::start().await;
    let body = event("EV_twice", "room_started", "room");
    for _ in 0..3 {
        let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
        assert_eq!(send(&service, "/webhook-receiver", Some(&token), &body).await.status, 200);
    }
    comes_to(&service, "callreel_webhooks_total{event=\"room_started\",result=\"duplicate\"}", 2.0).await;
    assert_eq!(service.figure(TAKEN).await, 1.0);
}

#[tokio::test]
async fn the_key_that_is_named_for_webhooks_signs_them() {
    let service = Running::start_with("profile: callreel\n", &[("WEBHOOK_API_KEY", "hooks")]).await;
    let body = event("EV_1", "room_started", "room");
    let own = webhook_token("hooks", LIVEKIT_SECRET, body.as_bytes());
    assert_eq!(send(&service, "/webhook-receiver", Some(&own), &body).await.status, 200);
    let other = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
    assert_eq!(send(&service, "/webhook-receiver", Some(&other), &body).await.status, 401);
}

#[tokio::test]
async fn what_is_not_from_the_server_changes_nothing() {
    let service = Running::start().await;
    let body = event("EV_forged", "room_started", "room");
    let good = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
    let (head, rest) = good.split_once('.').unwrap();
    let claims = Claims { exp: 1_600_000_000, iss: LIVEKIT_KEY.into(), ..Claims::default() };
    let key = EncodingKey::from_secret(LIVEKIT_SECRET.as_bytes());
    let expired = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", rest.split_once('.').unwrap().0);
    let of_no_body = livekit_api::access_token::AccessToken::with_api_key(LIVEKIT_KEY, LIVEKIT_SECRET);
    let of_no_body = of_no_body.to_jwt().unwrap();
    for (what, token, body) in [
        ("no token", None, body.as_str()),
        ("not a token", Some("x"), &body),
        (
            "another secret",
            Some(&*webhook_token(LIVEKIT_KEY, "another secret, long enough too", body.as_bytes())),
            &body,
        ),
        ("another key", Some(&*webhook_token("other", LIVEKIT_SECRET, body.as_bytes())), &body),
        ("another body", Some(&good), &*body.replace("\"room\"", "\"mine\"")),
        ("a body cut short", Some(&good), &body[..body.len() - 1]),
        ("no body", Some(&good), ""),
        ("an expired token", Some(&expired), &body),
        ("an unsigned token", Some(&unsigned), &body),
        ("a token for no body", Some(&of_no_body), &body),
        ("another head", Some(&format!("{head}x.{rest}")), &body),
    ] {
        let answer = send(&service, "/webhook-receiver", token, body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (401, "unauthorized"), "{what}");
    }
    for (what, body) in [("not JSON", "room_started"), ("not an event", "[]"), ("a wrong type", r#"{"event": {}}"#)] {
        let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
        let answer = send(&service, "/webhook-receiver", Some(&token), body).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (400, "bad-request"), "{what}");
    }
    assert_eq!(service.figure(TAKEN).await, 0.0);
    assert_eq!(service.figure("callreel_webhooks_total{event=\"unknown\",result=\"refused\"}").await, 14.0);
    assert!(service.catalog.list(&Default::default(), None, 10).await.unwrap().rows.is_empty());
}

#[tokio::test]
async fn an_old_event_under_a_new_token_is_not_taken() {
    let service = Running::start().await;
    let now = clock::wall().unix_timestamp();
    for (created, status) in [(now - 3_600, 401), (now + 3_600, 401), (0, 401), (i64::MAX, 401), (now - 60, 200)] {
        let body = json!({"event": "room_started", "id": format!("EV_{created}"), "createdAt": created}).to_string();
        let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
        assert_eq!(send(&service, "/webhook-receiver", Some(&token), &body).await.status, status, "{created}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read() {
    let service = Running::start_with("limits: {webhook_body: 4096}\n", &[]).await;
    let body = event("EV_large", "room_started", &"x".repeat(5_000));
    let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
    let answer = send(&service, "/webhook-receiver", Some(&token), &body).await;
    assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (413, "too-large"));
    // Without a length, it is found out on the way.
    let chunk = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = format!(
        "POST /webhook-receiver HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}"
    );
    assert!(service.raw(head.as_bytes()).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn who_sends_slowly_or_not_at_all_is_not_waited_for() {
    let service = Running::start_with("limits: {request_time: 300ms}\n", &[]).await;
    let body = event("EV_slow", "room_started", "room");
    let token = webhook_token(LIVEKIT_KEY, LIVEKIT_SECRET, body.as_bytes());
    let begun = clock::now();
    // A head that never ends.
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(b"POST /webhook-receiver HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // A body of which a part is missing.
    let head = format!(
        "POST /webhook-receiver HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = service.raw(format!("{head}{}", &body[..20]).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // A connection that is cut within the body.
    let mut stream = TcpStream::connect(service.address).await.unwrap();
    stream.write_all(format!("{head}{}", &body[..20]).as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(clock::now() - begun < PATIENCE);
    assert_eq!(service.figure(TAKEN).await, 0.0);
    assert_eq!(Answer::of(service.ask(Method::GET, "/healthz")).await.status, 200);
}

#[tokio::test]
async fn who_guesses_signatures_is_soon_not_listened_to() {
    let service = Running::start().await;
    let body = event("EV_guess", "room_started", "room");
    let begun = clock::now();
    let mut refused = 0.0;
    for _ in 0..80 {
        let answer = send(&service, "/webhook-receiver", Some("a.b.c"), &body).await;
        if answer.status == 429 {
            assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            refused += 1.0;
        }
    }
    // 50 at once and 5 a second are let through.
    let more = 5.0 * (clock::now() - begun).as_secs_f64();
    assert!(refused <= 30.0 && refused >= 29.0 - more, "{refused}, in the time of {more}");
}
