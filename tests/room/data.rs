//! Messages that are sent beside sound.

use bytes::Bytes;
use callreel::room::{DataMessage, RoomEvent};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig};
use livekit_protocol::{DataPacket, RpcRequest, SipDtmf, UserPacket, data_packet::Value};

use crate::support::{Watched, config, join};

fn user(topic: &str, payload: &'static [u8]) -> Value {
    Value::User(UserPacket { topic: Some(topic.into()), payload: payload.into(), ..Default::default() })
}

async fn next(watched: &mut Watched) -> (String, DataMessage) {
    let told = |event: &RoomEvent| match event {
        RoomEvent::Data { from, message, .. } => Some((from.clone(), message.clone())),
        _ => None,
    };
    watched.until("message", told).await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_told_with_the_sender_that_the_server_vouches_for() {
    let server = LiveKitServer::start().await.unwrap();
    let topics = ["recording", "resume", "other", "long", "short", "from-server"];
    let (room, mut watched) = join(config(&server).identity("recorder").topics(topics).dtmf(true)).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;

    // In somebody else's name, too.
    let forged = DataPacket {
        participant_identity: "boss".into(),
        value: Some(user("recording", b"pause")),
        ..Default::default()
    };
    ann.send_packet(forged).await.unwrap();
    let pause = DataMessage::User { topic: "recording".into(), payload: Bytes::from_static(b"pause") };
    assert_eq!(next(&mut watched).await, ("ann".into(), pause));

    ann.send(Value::SipDtmf(SipDtmf { code: 11, digit: "#".into() })).await.unwrap();
    assert_eq!(next(&mut watched).await, ("ann".into(), DataMessage::Dtmf { code: 11, digit: "#".into() }));

    let call = RpcRequest { id: "7".into(), method: "resume".into(), payload: "{}".into(), ..Default::default() };
    let to_us = DataPacket {
        destination_identities: vec!["recorder".into()],
        value: Some(Value::RpcRequest(call)),
        ..Default::default()
    };
    ann.send_packet(to_us).await.unwrap();
    let resume = DataMessage::Rpc { method: "resume".into(), payload: "{}".into(), request_id: "7".into() };
    assert_eq!(next(&mut watched).await, ("ann".into(), resume));

    // Not for us, longer than we read, then one more: only that comes.
    let elsewhere = DataPacket {
        destination_identities: vec!["bob".into()],
        value: Some(user("other", b"psst")),
        ..Default::default()
    };
    ann.send_packet(elsewhere).await.unwrap();
    static LONG: [u8; 17 << 10] = [0; 17 << 10];
    ann.send(user("long", &LONG)).await.unwrap();
    ann.send(user("short", b"")).await.unwrap();
    assert_eq!(
        next(&mut watched).await,
        ("ann".into(), DataMessage::User { topic: "short".into(), payload: Bytes::new() })
    );

    server.rooms().send_data("room", "from-server", b"hello").await.unwrap();
    let hello = DataMessage::User { topic: "from-server".into(), payload: Bytes::from_static(b"hello") };
    assert_eq!(next(&mut watched).await, (String::new(), hello));
    room.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_nobody_wants_are_not_told() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    let (other, mut wanted) = join(config(&server).topics(["recording"])).await;
    watched.until_line("media Connected(Udp)").await;
    wanted.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;
    // Nor do they keep back those that are wanted.
    for _ in 0..1_000 {
        ann.send(user("game", b"state")).await.unwrap();
    }
    for _ in 0..5 {
        ann.send(user("recording", b"pause")).await.unwrap();
        let pause = DataMessage::User { topic: "recording".into(), payload: Bytes::from_static(b"pause") };
        assert_eq!(next(&mut wanted).await, ("ann".into(), pause));
    }
    ann.leave().await.unwrap();
    watched.until_line("left client_initiated").await;
    room.close().await;
    other.close().await;
    watched.rest().await;
    assert!(!watched.seen.iter().any(|event| matches!(event, RoomEvent::Data { .. })), "{:?}", watched.seen);
}
