//! What is said when we cannot join.

use std::time::Duration;

use callreel::room::{Credentials, Room, RoomConfig, RoomError, Timeouts};
use callreel::testkit::LiveKitServer;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_api::access_token::{AccessToken, Claims, VideoGrants};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{config, credentials};

async fn refused(config: RoomConfig) -> RoomError {
    match Room::connect(config).await {
        Err(error) => error,
        Ok((room, _)) => panic!("joined {room:?}"),
    }
}

fn token(server: &LiveKitServer, change: impl FnOnce(AccessToken) -> AccessToken) -> Credentials {
    let grants = VideoGrants { room_join: true, room: "room".into(), ..Default::default() };
    let token =
        AccessToken::with_api_key(server.api_key(), server.api_secret()).with_identity("ann").with_grants(grants);
    Credentials::Token(change(token).to_jwt().unwrap())
}

#[tokio::test]
async fn wrong_credentials_are_named_as_such() {
    let server = LiveKitServer::start().await.unwrap();
    let wrong = "another-secret-that-is-long-enough-for-this".to_owned();
    let wrong_secret = Credentials::ApiKey { key: server.api_key().into(), secret: wrong.clone() };
    let wrong_key = Credentials::ApiKey { key: "nobody".into(), secret: server.api_secret().into() };
    for credentials in [wrong_secret, wrong_key] {
        let error = refused(RoomConfig::new(server.url(), credentials).room("room")).await;
        assert!(matches!(error, RoomError::BadCredentials { status: 401, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&server.url()) && text.contains("401") && !text.contains(&wrong), "{text}");
    }
}

#[tokio::test]
async fn an_expired_token_is_named_with_its_hour() {
    let server = LiveKitServer::start().await.unwrap();
    let Credentials::Token(fresh) = token(&server, |token| token) else { unreachable!("a token was made") };
    let mut claims = Claims::from_unverified(&fresh).unwrap();
    (claims.nbf, claims.exp) = (1_599_990_000, 1_600_000_000);
    // The builder makes no token that has run out.
    let key = EncodingKey::from_secret(server.api_secret().as_bytes());
    let expired = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap();
    let error = refused(RoomConfig::new(server.url(), Credentials::Token(expired))).await;
    assert!(matches!(error, RoomError::TokenExpired { .. }), "{error:?}");
    assert!(error.to_string().contains("2020-09-13 12:26:40"), "{error}");
}

#[tokio::test]
async fn a_token_that_may_not_subscribe_is_refused_before_anything_is_sent() {
    let grants = VideoGrants { room_join: true, room: "room".into(), can_subscribe: Some(false), ..Default::default() };
    let deaf = AccessToken::with_api_key("key", "secret").with_identity("ann").with_grants(grants).to_jwt().unwrap();
    // Nobody listens there: an attempt would be told as unreachable.
    let error = refused(RoomConfig::new("ws://127.0.0.1:9", Credentials::Token(deaf))).await;
    assert!(matches!(error, RoomError::Config { field: "token", .. }), "{error:?}");
}

#[tokio::test]
async fn an_ordinary_token_serves_with_remarks() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, _events) = Room::connect(RoomConfig::new(server.url(), token(&server, |token| token))).await.unwrap();
    assert_eq!((room.identity(), room.name(), room.remarks().len()), ("ann", "room", 3));
    room.close().await;
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let credentials = Credentials::ApiKey { key: "key".into(), secret: "secret".into() };
    let error = refused(RoomConfig::new(format!("ws://{closed}"), credentials).room("room")).await;
    assert!(matches!(error, RoomError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&closed.to_string()) && error.is_passing(), "{error}");
}

#[tokio::test]
async fn another_web_server_is_not_taken_for_livekit() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream
                .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found")
                .await;
        }
    });
    let credentials = Credentials::ApiKey { key: "key".into(), secret: "secret".into() };
    let error = refused(RoomConfig::new(url, credentials).room("room")).await;
    assert!(matches!(error, RoomError::NotLiveKit { status: 404, .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_without_tls_is_told_apart_from_one_that_is_down() {
    let server = LiveKitServer::start().await.unwrap();
    let error =
        refused(RoomConfig::new(server.url().replace("ws://", "wss://"), credentials(&server)).room("room")).await;
    assert!(matches!(error, RoomError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_longer_than_told() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let credentials = Credentials::ApiKey { key: "key".into(), secret: "secret".into() };
    let timeouts = Timeouts { join: Duration::from_millis(300), ..Timeouts::default() };
    let silent = RoomConfig::new(format!("ws://{}", listener.local_addr().unwrap()), credentials).room("room");
    let error = refused(silent.timeouts(timeouts)).await;
    assert!(matches!(error, RoomError::JoinTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_room_that_nobody_created_is_named_where_joining_creates_none() {
    let server = LiveKitServer::builder().auto_create(false).start().await.unwrap();
    let error = refused(config(&server)).await;
    assert!(matches!(error, RoomError::RoomNotFound { ref room, .. } if room == "room"), "{error:?}");
}
