//! The testkit's publisher against a real server: what the server says about it is what it was told to do.

use std::time::{Duration, Instant};

use callreel::call::{Codec, ParticipantKind};
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::server::Rooms;
use callreel::testkit::{AfterEnd, LiveKitServer, Publisher, PublisherConfig, TestkitError, TrackOptions};
use livekit_protocol::{ParticipantInfo, TrackInfo, TrackType, participant_info};

const PATIENCE: Duration = Duration::from_secs(10);

/// The room's participants, once they are as wanted; a server tells its room service a moment after it tells clients.
async fn eventually(rooms: &Rooms, room: &str, wanted: impl Fn(&[ParticipantInfo]) -> bool) -> Vec<ParticipantInfo> {
    let deadline = callreel::clock::now() + PATIENCE;
    loop {
        let participants = rooms.participants(room).await.unwrap();
        if wanted(&participants) {
            return participants;
        }
        assert!(callreel::clock::now() < deadline, "still {participants:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tracks(participants: &[ParticipantInfo]) -> Vec<&TrackInfo> {
    participants.iter().flat_map(|participant| &participant.tracks).collect()
}

fn speech(seconds: u64) -> Audio {
    generate::speech(1, Duration::from_secs(seconds))
}

#[tokio::test]
async fn joins_publishes_mutes_unpublishes_republishes_and_leaves() {
    let server = LiveKitServer::start().await.unwrap();
    let rooms = server.rooms();
    let config = PublisherConfig::on(&server, "room", "+1555")
        .name("A caller")
        .kind(ParticipantKind::Sip)
        .attribute("sip.callStatus", "ringing");
    let caller = Publisher::join(config).await.unwrap();

    // It is active once its transport stands, which a join does not wait for.
    let active = |one: &ParticipantInfo| one.state() == participant_info::State::Active;
    let seen = eventually(&rooms, "room", |seen| seen.iter().any(active)).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].sid.as_str(), seen[0].identity.as_str()), (caller.sid(), "+1555"));
    assert_eq!((seen[0].name.as_str(), seen[0].kind()), ("A caller", participant_info::Kind::Sip));
    assert_eq!(seen[0].attributes["sip.callStatus"], "ringing");
    rooms.set_attributes("room", "+1555", &[("sip.callStatus", "active")]).await.unwrap();
    eventually(&rooms, "room", |seen| seen[0].attributes["sip.callStatus"] == "active").await;

    let voice = caller.publish(speech(60), TrackOptions::default()).await.unwrap();
    let seen = eventually(&rooms, "room", |seen| tracks(seen).len() == 1).await;
    let track = tracks(&seen)[0];
    assert_eq!((track.sid.as_str(), track.r#type(), track.muted), (voice.sid(), TrackType::Audio, false));
    assert_eq!((track.name.as_str(), track.mime_type.as_str()), ("microphone", "audio/opus"));

    voice.mute(true).await.unwrap();
    eventually(&rooms, "room", |seen| tracks(seen)[0].muted).await;
    voice.mute(false).await.unwrap();
    eventually(&rooms, "room", |seen| !tracks(seen)[0].muted).await;

    let first = voice.sid().to_owned();
    voice.unpublish().await.unwrap();
    eventually(&rooms, "room", |seen| tracks(seen).is_empty()).await;
    let again = caller.publish(speech(60), TrackOptions::default()).await.unwrap();
    assert_ne!(again.sid(), first);
    let seen = eventually(&rooms, "room", |seen| tracks(seen).len() == 1).await;
    assert_eq!(tracks(&seen)[0].sid, again.sid());
    again.sent_at_least(5).await.unwrap();

    caller.leave().await.unwrap();
    eventually(&rooms, "room", <[_]>::is_empty).await;
    assert!(again.mute(true).await.is_err());
    assert!(again.said().await.is_err());
}

#[tokio::test]
async fn packets_leave_on_an_absolute_schedule() {
    let server = LiveKitServer::start().await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await.unwrap();
    let start = callreel::clock::now() + Duration::from_secs(5);
    let options = TrackOptions::default().start(start).first(65_530, u32::MAX - 960).after_end(AfterEnd::Nothing);
    let voice = alice.publish(speech(2), options).await.unwrap();
    voice.said().await.unwrap();

    let packets = voice.sent().packets();
    assert_eq!(packets.len(), 100);
    for (index, packet) in packets.iter().enumerate() {
        let due: Instant = start + Duration::from_millis(20) * (index as u32 + 1);
        assert!(packet.at >= due, "packet {index} left {:?} early", due - packet.at);
        assert_eq!(packet.position.0, index as u64 * 960);
        assert_eq!(packet.seq, 65_530u16.wrapping_add(index as u16));
        assert_eq!(packet.timestamp, (u32::MAX - 960).wrapping_add(index as u32 * 960));
    }
    // A busy machine makes packets late; that does not add up.
    let late: Vec<Duration> =
        (1..).zip(&packets).map(|(count, packet)| packet.at - (start + Duration::from_millis(20) * count)).collect();
    let least = late[75..].iter().min().unwrap();
    assert!(*least < Duration::from_millis(5), "the last packets left {least:?} late or more: {late:?}");
}

#[tokio::test]
async fn g711_and_video_tracks_are_taken_by_the_server() {
    let server = LiveKitServer::start().await.unwrap();
    let phone = Publisher::join(PublisherConfig::on(&server, "room", "phone")).await.unwrap();
    for (codec, mime) in [(Codec::Pcmu, "audio/pcmu"), (Codec::Pcma, "audio/pcma")] {
        let voice = phone.publish(speech(60), TrackOptions::default().codec(codec)).await.unwrap();
        voice.sent_at_least(3).await.unwrap();
        assert!(voice.sent().packets().iter().all(|packet| packet.payload_len == 160));
        eventually(&server.rooms(), "room", |seen| {
            tracks(seen).iter().any(|track| track.sid == voice.sid() && track.mime_type.eq_ignore_ascii_case(mime))
        })
        .await;
    }
    let video = phone.publish_video().await.unwrap();
    let seen = eventually(&server.rooms(), "room", |seen| tracks(seen).len() == 3).await;
    let track = tracks(&seen).into_iter().find(|track| track.sid == video).unwrap();
    assert_eq!((track.r#type(), track.mime_type.to_lowercase().as_str()), (TrackType::Video, "video/vp8"));
}

#[tokio::test]
async fn a_muted_span_is_told_and_not_sent() {
    let server = LiveKitServer::start().await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await.unwrap();
    // Long enough to be seen by asking.
    let span = Duration::from_millis(400)..Duration::from_secs(5);
    let voice = alice.publish(speech(6), TrackOptions::default().mute_during(span)).await.unwrap();
    voice.sent_at_least(20).await.unwrap();
    let muted = |seen: &[ParticipantInfo]| tracks(seen).first().map(|track| track.muted);
    eventually(&server.rooms(), "room", |seen| muted(seen) == Some(true)).await;
    voice.said().await.unwrap();
    eventually(&server.rooms(), "room", |seen| muted(seen) == Some(false)).await;
    let packets = voice.sent().packets();
    assert_eq!(packets.iter().filter(|packet| (19_200..240_000).contains(&packet.position.0)).count(), 0);
    assert_eq!(packets.iter().filter(|packet| packet.position.0 < 288_000).count(), 70);
    let seqs: Vec<u16> = packets.iter().map(|packet| packet.seq).collect();
    assert!(seqs.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)), "silence uses up no sequence numbers");
}

#[tokio::test]
async fn whoever_is_thrown_out_ends_and_says_why() {
    let server = LiveKitServer::start().await.unwrap();
    let mut alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await.unwrap();
    server.rooms().remove("room", "alice").await.unwrap();
    let reason = alice.ended().await;
    assert!(reason.contains("ParticipantRemoved"), "{reason}");
    assert!(alice.publish(speech(1), TrackOptions::default()).await.is_err());
}

#[tokio::test]
async fn a_moderator_can_mute() {
    let server = LiveKitServer::start().await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await.unwrap();
    let voice = alice.publish(speech(60), TrackOptions::default()).await.unwrap();
    voice.sent_at_least(5).await.unwrap();
    server.rooms().mute("room", "alice", voice.sid(), true).await.unwrap();
    eventually(&server.rooms(), "room", |seen| tracks(seen)[0].muted).await;
    // Silence is seen by waiting only: nothing is sent for 25 frames.
    let mut before = 0;
    while voice.sent().len() != before {
        before = voice.sent().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    voice.mute(false).await.unwrap();
    eventually(&server.rooms(), "room", |seen| !tracks(seen)[0].muted).await;
    voice.sent_at_least(voice.sent().len() + 2).await.unwrap();
    let packets = voice.sent().packets();
    let pauses = packets.windows(2).filter(|pair| pair[1].position.0 - pair[0].position.0 > 960).count();
    assert_eq!(pauses, 1, "a publisher that is muted from outside falls silent");
}

#[tokio::test]
async fn a_crash_is_not_a_goodbye() {
    let server = LiveKitServer::start().await.unwrap();
    let alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await.unwrap();
    // Whoever goes before the transport stands is let go with the signal connection.
    eventually(&server.rooms(), "room", |seen| seen.iter().any(|one| one.state() == participant_info::State::Active))
        .await;
    alice.crash().await;
    let seen = server.rooms().participants("room").await.unwrap();
    assert_eq!(seen.len(), 1, "the server learns of a crash only by silence");
}

#[tokio::test]
async fn a_refused_join_says_what_the_server_said() {
    let server = LiveKitServer::start().await.unwrap();
    let config =
        PublisherConfig::new(&server.url(), server.api_key(), "another secret of enough length.....", "r", "x");
    let error = Publisher::join(config).await.unwrap_err();
    assert!(matches!(error, TestkitError::Publisher(_)));
    assert!(error.to_string().contains("401"), "{error}");

    let config = PublisherConfig::new("ws://127.0.0.1:9", "key", "secret", "room", "x");
    let error = Publisher::join(config).await.unwrap_err().to_string();
    assert!(error.starts_with("x joining room: "), "{error}");
}
