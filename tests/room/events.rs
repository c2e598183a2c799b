//! What is told of people and tracks.

use std::time::Duration;

use callreel::call::{Codec, ParticipantKind, TrackKey};
use callreel::clock;
use callreel::room::RoomEvent;
use callreel::testkit::audio::generate;
use callreel::testkit::{Audio, LiveKitServer, Publisher, PublisherConfig, TrackOptions};

use crate::support::{config, join};

fn speech() -> Audio {
    generate::speech(1, Duration::from_secs(60))
}

#[tokio::test(flavor = "multi_thread")]
async fn comings_goings_and_mutes_are_told_in_order() {
    let server = LiveKitServer::start().await.unwrap();
    let early = Publisher::join(PublisherConfig::on(&server, "room", "early")).await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("+early").await;

    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;
    let voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_line("+#0").await;
    watched.until_packet(TrackKey(0)).await;
    voice.mute(true).await.unwrap();
    watched.until_line("#0 muted").await;
    voice.mute(false).await.unwrap();
    watched.until_line("#0 unmuted").await;
    voice.unpublish().await.unwrap();
    watched.until_line("-#0").await;

    // Published again: a new key, and its packets come.
    let again = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_line("+#1").await;
    watched.until_packet(TrackKey(1)).await;
    drop(again);

    // The same identity again, while the first session still stands: a new session, and its tracks.
    let second = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;
    let voice = second.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_line("+#2").await;
    watched.until_packet(TrackKey(2)).await;
    drop(voice);

    second.leave().await.unwrap();
    watched.until_line("left client_initiated").await;
    early.leave().await.unwrap();
    watched.until_line("left client_initiated").await;
    room.close().await;
    watched.rest().await;

    let lines: Vec<_> = watched.lines().into_iter().filter(|line| !line.starts_with('~')).collect();
    let first_session_left = lines.iter().position(|line| line == "-#1").unwrap();
    assert!(lines[first_session_left + 1].starts_with("left"), "{lines:?}");
    assert_eq!(lines.first().map(String::as_str), Some("joined room"));
    assert_eq!(lines.last().map(String::as_str), Some("closed Requested"));
    let track_lines: Vec<_> = lines.iter().filter(|line| line.contains('#')).map(String::as_str).collect();
    assert_eq!(track_lines, ["+#0", "#0 muted", "#0 unmuted", "-#0", "+#1", "-#1", "+#2", "-#2"], "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_telephone_leg_is_told_with_its_attributes_and_their_changes() {
    let server = LiveKitServer::start().await.unwrap();
    let (_room, mut watched) = join(config(&server)).await;
    let caller = PublisherConfig::on(&server, "room", "+1555")
        .name("A caller")
        .kind(ParticipantKind::Sip)
        .attribute("sip.callStatus", "ringing");
    let _caller = Publisher::join(caller).await.unwrap();
    let joined = watched
        .until("caller", |event| match event {
            RoomEvent::ParticipantJoined { participant, .. } => Some(participant.clone()),
            _ => None,
        })
        .await;
    assert_eq!(
        (joined.identity.as_str(), joined.name.as_str(), joined.kind),
        ("+1555", "A caller", ParticipantKind::Sip)
    );
    assert_eq!(joined.attributes["sip.callStatus"], "ringing");

    server.rooms().set_attributes("room", "+1555", &[("sip.callStatus", "active")]).await.unwrap();
    watched
        .until("answered call", |event| match event {
            RoomEvent::ParticipantUpdated { participant, .. } => {
                (participant.attributes["sip.callStatus"] == "active").then_some(())
            }
            _ => None,
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn video_is_neither_told_nor_taken() {
    let server = LiveKitServer::builder().log_level("debug").start().await.unwrap();
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let camera = ann.publish_video().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("+ann").await;
    let voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    let second_camera = ann.publish_video().await.unwrap();
    let first = watched.until_packet(TrackKey(0)).await;
    assert_eq!(first.codec, Codec::Opus);
    for _ in 0..50 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;
    let published = watched.seen.iter().filter_map(|event| match event {
        RoomEvent::TrackPublished { track, .. } => Some(track.sid.as_str()),
        _ => None,
    });
    assert_eq!(published.collect::<Vec<_>>(), [voice.sid()]);
    // The server notes every subscription that somebody asks for.
    let log = server.log();
    let subscribed = |sid: &str| log.lines().any(|line| line.contains("subscribing to track") && line.contains(sid));
    assert!(subscribed(voice.sid()), "the log names subscriptions");
    assert!(!subscribed(&camera) && !subscribed(&second_camera), "a camera was subscribed to");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_recorder_is_hidden_and_the_room_shows_that_it_is_recorded() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server).identity("callreel-1")).await;
    assert_eq!((room.identity(), room.name()), ("callreel-1", "room"));
    assert!(room.remarks().is_empty());
    let (_other, mut other) = join(config(&server).identity("callreel-2")).await;
    let _ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;
    other.until_line("+ann").await;
    assert!(!other.lines().iter().any(|line| line.contains("callreel")), "{:?}", other.lines());
    let seen = server.rooms().participants("room").await.unwrap();
    let recorder = seen.iter().find(|participant| participant.identity == "callreel-1").unwrap();
    let permission = recorder.permission.as_ref().unwrap();
    assert!(permission.hidden && permission.can_subscribe && !permission.can_publish && !permission.can_publish_data);
    assert_eq!(recorder.kind(), livekit_protocol::participant_info::Kind::Egress);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_room_is_told_with_its_reason() {
    let server = LiveKitServer::start().await.unwrap();
    let (_room, mut deleted) = join(config(&server)).await;
    deleted.until_line("media Connected(Udp)").await;
    server.rooms().delete("room").await.unwrap();
    deleted.rest().await;
    assert_eq!(deleted.lines().last().map(String::as_str), Some("closed RoomClosed"));

    let (_room, mut removed) = join(config(&server).identity("callreel-3")).await;
    removed.until_line("media Connected(Udp)").await;
    server.rooms().remove("room", "callreel-3").await.unwrap();
    removed.rest().await;
    assert_eq!(removed.lines().last().map(String::as_str), Some("closed Removed(\"participant_removed\")"));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_and_dropping_both_leave_the_room_at_once() {
    let server = LiveKitServer::start().await.unwrap();
    let _ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let (closed, mut first) = join(config(&server)).await;
    let (dropped, mut second) = join(config(&server)).await;
    first.until_line("media Connected(Udp)").await;
    second.until_line("media Connected(Udp)").await;
    closed.close().await;
    drop(dropped);
    first.rest().await;
    second.rest().await;
    for watched in [&first, &second] {
        assert_eq!(watched.lines().last().map(String::as_str), Some("closed Requested"));
    }
    // The server lists them a moment longer; one that it had to give up on it would list for 15 seconds and more.
    let left = clock::now();
    loop {
        let seen = server.rooms().participants("room").await.unwrap();
        let identities: Vec<_> = seen.iter().map(|participant| participant.identity.as_str()).collect();
        if identities == ["ann"] {
            break;
        }
        assert!(clock::now() - left < Duration::from_secs(10), "{identities:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
