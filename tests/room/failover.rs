//! Servers that cannot be used, rooms that are left for others, tokens that run out.

use std::time::Duration;

use callreel::call::TrackKey;
use callreel::room::{Credentials, Room, RoomConfig, RoomError, RoomEvent, RoomMovedPolicy, Timeouts};
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, SignalTap, TrackOptions};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livekit_api::access_token::{AccessToken, Claims, VideoGrants};
use livekit_protocol::simulate_scenario::Scenario;
use livekit_protocol::{Room as RoomOfServer, RoomMovedResponse, signal_response::Message};
use tokio::net::TcpListener;

use crate::support::{config, join};

/// A token of a time that ends, or has ended.
fn token_until(server: &LiveKitServer, identity: &str, expiry: usize) -> String {
    let grants = VideoGrants { room_join: true, room: "room".into(), hidden: true, ..Default::default() };
    let fresh = AccessToken::with_api_key(server.api_key(), server.api_secret());
    let fresh = fresh.with_identity(identity).with_grants(grants).to_jwt().unwrap();
    let mut claims = Claims::from_unverified(&fresh).unwrap();
    (claims.nbf, claims.exp) = (expiry - 600, expiry);
    // The builder makes no token that has run out.
    let key = EncodingKey::from_secret(server.api_secret().as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &key).unwrap()
}

/// An address where nobody listens.
async fn closed() -> String {
    format!("ws://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_server_that_can_be_used_is_joined() {
    let server = LiveKitServer::start().await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let urls = [closed().await, format!("ws://{}", silent.local_addr().unwrap()), server.url()];
    // For all three alike: the last has to be in time.
    let timeouts = Timeouts { join: Duration::from_secs(5), ..Timeouts::default() };
    let (room, mut watched) = join(config(&server).urls(urls).timeouts(timeouts)).await;
    watched.until_line("media Connected(Udp)").await;
    room.close().await;
}

#[tokio::test]
async fn where_no_server_can_be_used_all_attempts_are_told() {
    let server = LiveKitServer::start().await.unwrap();
    let (first, second) = (closed().await, closed().await);
    let error = Room::connect(config(&server).urls([&first, &second])).await.unwrap_err();
    let RoomError::AllServers { attempts } = &error else { panic!("{error:?}") };
    assert_eq!(attempts.len(), 2);
    let told = error.to_string();
    assert!(told.contains(&first) && told.contains(&second) && error.is_passing(), "{told}");
}

#[tokio::test]
async fn a_server_that_says_no_is_taken_at_its_word() {
    let server = LiveKitServer::start().await.unwrap();
    let refused = Credentials::ApiKey { key: "nobody".into(), secret: server.api_secret().into() };
    let config = RoomConfig::new("", refused).room("room").urls([server.url(), closed().await]);
    let error = Room::connect(config).await.unwrap_err();
    assert!(matches!(error, RoomError::BadCredentials { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_followed_by_the_next() {
    let mut server = LiveKitServer::start().await.unwrap();
    let other = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server).urls([server.url(), other.url()])).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&other, "room", "ann")).await.unwrap();
    let _voice = ann.publish(generate::speech(1, Duration::from_secs(60)), TrackOptions::default()).await.unwrap();
    server.kill();
    watched.until_packet(TrackKey(0)).await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_that_the_server_gave_last_serves_where_the_first_has_run_out() {
    let server = LiveKitServer::start().await.unwrap();
    // Servers forgive a minute.
    let expiry = callreel::clock::wall().unix_timestamp() as usize - 55;
    let joining = |identity| RoomConfig::new(server.url(), Credentials::Token(token_until(&server, identity, expiry)));
    let (room, mut watched) = join(joining("recorder")).await;
    watched.until_line("media Connected(Udp)").await;
    // Until such a token serves nobody any more.
    let expired = loop {
        match Room::connect(joining("probe")).await {
            Ok((probe, _)) => probe.close().await,
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    assert!(matches!(expired, RoomError::TokenExpired { .. }), "{expired:?}");
    room.simulate(Scenario::NodeFailure(true));
    watched.until_line("media Interrupted").await;
    watched.until_line("media Connected(Udp)").await;
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_under_the_same_identity_ends_it_with_that_reason() {
    let server = LiveKitServer::start().await.unwrap();
    let (_first, mut watched) = join(config(&server).identity("recorder")).await;
    watched.until_line("media Connected(Udp)").await;
    let (second, mut of_second) = join(config(&server).identity("recorder")).await;
    watched.rest().await;
    assert_eq!(watched.lines().last().map(String::as_str), Some("closed Removed(\"duplicate_identity\")"));
    of_second.until_line("media Connected(Udp)").await;
    second.close().await;
}

/// What a server says that moves `recorder` to a room in which only bob is. The open-source server moves nobody by itself.
async fn moved_to_bob(server: &LiveKitServer) -> Message {
    let people = server.rooms().participants("room").await.unwrap();
    let (own, others): (Vec<_>, Vec<_>) = people.into_iter().partition(|person| person.identity == "recorder");
    Message::RoomMoved(RoomMovedResponse {
        room: Some(RoomOfServer { sid: "RM_elsewhere".into(), name: "elsewhere".into(), ..Default::default() }),
        token: String::new(),
        participant: own.into_iter().next(),
        other_participants: others.into_iter().filter(|person| person.identity == "bob").collect(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_to_another_room_ends_the_call_with_that_reason() {
    let server = LiveKitServer::start().await.unwrap();
    let tap = SignalTap::lay(&server).await.unwrap();
    let (_room, mut watched) = join(config(&server).identity("recorder").url(tap.url())).await;
    watched.until_line("media Connected(Udp)").await;
    tap.say(moved_to_bob(&server).await);
    watched.rest().await;
    assert_eq!(watched.lines().last().map(String::as_str), Some("closed Moved(\"elsewhere\")"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_that_follows_goes_on_with_who_is_there() {
    let server = LiveKitServer::start().await.unwrap();
    let tap = SignalTap::lay(&server).await.unwrap();
    let following = config(&server).identity("recorder").url(tap.url()).room_moved(RoomMovedPolicy::Follow);
    let (room, mut watched) = join(following).await;
    let mut people = Vec::new();
    for who in ["ann", "bob"] {
        let person = Publisher::join(PublisherConfig::on(&server, "room", who)).await.unwrap();
        let sound = generate::speech(1, Duration::from_secs(60));
        let voice = person.publish(sound, TrackOptions::default()).await.unwrap();
        people.push((person, voice));
        watched.until_packet(TrackKey(people.len() as u32 - 1)).await;
    }
    tap.say(moved_to_bob(&server).await);
    let told = |event: &RoomEvent| match event {
        RoomEvent::RoomUpdated { room, .. } if room.name == "elsewhere" => Some(room.sid.clone()),
        _ => None,
    };
    assert_eq!(watched.until("the new room", told).await, "RM_elsewhere");
    let lines = watched.lines();
    assert!(lines.ends_with(&["-#0".to_owned(), "left ".to_owned()]), "only ann has gone: {lines:?}");
    watched.until_packet(TrackKey(1)).await;

    // A session that is lost is joined anew where we were moved to.
    room.simulate(Scenario::NodeFailure(true));
    watched.until_line("media Interrupted").await;
    watched.until_line("media Connected(Udp)").await;
    let there = server.rooms().participants("elsewhere").await.unwrap();
    assert!(there.iter().any(|person| person.identity == "recorder"), "{there:?}");
    room.close().await;
}
