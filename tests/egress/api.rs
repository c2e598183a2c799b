//! What is asked, what is answered, and what happens where nobody answers.

use std::time::Duration;

use callreel::egress::{
    AudioMixing, Destination, EgressClient, EgressError, EgressRequest, EgressState, EgressStatus, FileFormat,
    FileOutput, Media, Preset, Source, Upload, webhook,
};
use callreel::room::Credentials;
use callreel::store::{AssumeRole, ProxyConfig, S3Config, StoreConfig};
use callreel::testkit::LiveKitServer;
use callreel::testkit::egress::{EgressDouble, Fault, TwirpError};
use livekit_protocol as proto;
use livekit_protocol::egress_info::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::{ROOM, client, client_that_waits, key, sound};

fn file(format: FileFormat, path: &str, upload: Upload) -> FileOutput {
    FileOutput { format, path: path.into(), upload }
}

#[tokio::test]
async fn a_room_is_asked_for_with_every_field_in_its_place() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let s3 = S3Config {
        bucket: "b".into(),
        prefix: "p".into(),
        region: Some("eu".into()),
        endpoint: Some("https://s3.example".into()),
        access_key: Some("k".into()),
        secret: Some("hunter2".into()),
        session_token: Some("t".into()),
        assume_role: Some(AssumeRole { arn: "arn:r".into(), external_id: Some("x".into()), endpoint: None }),
        proxy: Some(ProxyConfig { url: "http://p:1".into(), username: Some("u".into()), password: Some("pw".into()) }),
        ..S3Config::default()
    };
    let (upload, prefix) = Upload::of(&StoreConfig::S3(s3)).unwrap();
    let file = file(FileFormat::Mp4, &format!("{prefix}a.mp4"), upload);
    let request = EgressRequest {
        preset: Preset::H264_1080P_60,
        ..EgressRequest::new(
            Source::Room {
                room: ROOM.into(),
                layout: Some("speaker-dark".into()),
                base_url: Some("https://page.example".into()),
                media: Media::Both,
                mixing: AudioMixing::Together,
            },
            file,
        )
    };
    assert!(!format!("{request:?}").contains("hunter2"), "{request:?}");
    let state = client(&double).start(&request).await.unwrap();
    assert_eq!((state.status, state.path.as_deref()), (EgressStatus::Starting, Some("p/a.mp4")));
    assert_eq!((state.room_name.as_str(), state.room_id.as_str()), (ROOM, "RM_call"));

    let asked = double.asked();
    let [(method, Request::RoomComposite(asked))] = &asked[..] else { panic!("{asked:?}") };
    let upload = proto::S3Upload {
        access_key: "k".into(),
        secret: "hunter2".into(),
        session_token: "t".into(),
        assume_role_arn: "arn:r".into(),
        assume_role_external_id: "x".into(),
        region: "eu".into(),
        endpoint: "https://s3.example".into(),
        bucket: "b".into(),
        force_path_style: true,
        proxy: Some(proto::ProxyConfig { url: "http://p:1".into(), username: "u".into(), password: "pw".into() }),
        ..Default::default()
    };
    let expected = proto::RoomCompositeEgressRequest {
        room_name: ROOM.into(),
        layout: "speaker-dark".into(),
        custom_base_url: "https://page.example".into(),
        file_outputs: vec![proto::EncodedFileOutput {
            file_type: proto::EncodedFileType::Mp4.into(),
            filepath: "p/a.mp4".into(),
            disable_manifest: true,
            output: Some(proto::encoded_file_output::Output::S3(upload)),
        }],
        options: Some(proto::room_composite_egress_request::Options::Advanced(proto::EncodingOptions {
            width: 1920,
            height: 1080,
            depth: 24,
            framerate: 60,
            audio_bitrate: 128,
            audio_frequency: 48_000,
            video_codec: proto::VideoCodec::H264Main.into(),
            video_bitrate: 6000,
            ..Default::default()
        })),
        ..Default::default()
    };
    assert_eq!((method.as_str(), asked), ("StartRoomCompositeEgress", &expected));
}

#[tokio::test]
async fn every_kind_of_source_is_taken_by_the_service() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let client = client(&double);
    let to = |format, path| Destination::File(file(format, path, Upload::of_the_service()));
    let room = || ROOM.to_owned();
    let track = || Source::Track { room: room(), track: "TR_a".into() };
    let mixed = Source::Room {
        room: room(),
        layout: None,
        base_url: None,
        media: Media::Audio,
        mixing: AudioMixing::AgentLeft,
    };
    for (source, to, method) in [
        (mixed, to(FileFormat::Mp3, "a.mp3"), "StartRoomCompositeEgress"),
        (
            Source::Participant { room: room(), identity: "alice".into(), screen_share: true },
            to(FileFormat::Mp4, "b.mp4"),
            "StartParticipantEgress",
        ),
        (
            Source::Tracks { room: room(), audio: Some("TR_a".into()), video: None },
            to(FileFormat::Ogg, "c.ogg"),
            "StartTrackCompositeEgress",
        ),
        (track(), to(FileFormat::Ogg, "d.ogg"), "StartTrackEgress"),
        (track(), Destination::WebSocket("wss://sink.example".into()), "StartTrackEgress"),
        (
            Source::Web { url: "https://page.example".into(), media: Media::Both, await_start_signal: true },
            to(FileFormat::Mp4, "e.mp4"),
            "StartWebEgress",
        ),
    ] {
        let state = client.start(&EgressRequest { source, to: to.clone(), preset: Preset::default() }).await.unwrap();
        let (asked, request) = double.asked().pop().unwrap();
        assert_eq!(asked, method);
        if let Destination::File(file) = to {
            assert_eq!(state.path.as_deref(), Some(file.path.as_str()), "{request:?}");
        }
        match request {
            Request::RoomComposite(it) => {
                assert!(it.audio_only && it.audio_mixing() == proto::AudioMixing::DualChannelAgent);
            }
            Request::Participant(it) => assert!(it.identity == "alice" && it.screen_share),
            Request::TrackComposite(it) => assert!(it.audio_track_id == "TR_a" && it.video_track_id.is_empty()),
            Request::Web(it) => assert!(it.url == "https://page.example" && it.await_start_signal),
            Request::Track(it) => assert_eq!(it.track_id, "TR_a"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(client.list(None).await.unwrap().len(), 6);
    assert_eq!(client.list(Some(ROOM)).await.unwrap().len(), 5);
}

#[tokio::test]
async fn errors_say_what_can_be_done_about_them() {
    let double = EgressDouble::start().await.unwrap();
    let client = client(&double);
    assert!(matches!(client.start(&sound("a.ogg")).await, Err(EgressError::NotFound(_))), "there is no such room");
    double.set_room(ROOM, 1);
    for (code, is_it) in [
        ("unavailable", (|e| matches!(e, EgressError::Unavailable(_))) as fn(&EgressError) -> bool),
        ("resource_exhausted", |e| matches!(e, EgressError::Quota(_))),
        ("permission_denied", |e| matches!(e, EgressError::Unauthorized(_))),
        ("invalid_argument", |e| matches!(e, EgressError::Invalid(_))),
    ] {
        double.fault("StartRoomCompositeEgress", Fault::Refuse(TwirpError::new(code, "why")));
        let error = client.start_once(&sound("a.ogg")).await.unwrap_err();
        assert!(is_it(&error) && !error.may_have_started(), "{code}: {error:?}");
    }
    let strange = Credentials::ApiKey { key: "other".into(), secret: "a-secret-of-thirty-two-characters".into() };
    let stranger = EgressClient::with_timeouts(&double.url(), &strange, Duration::from_secs(2), Duration::ZERO);
    let error = stranger.start(&sound("a.ogg")).await.unwrap_err();
    assert!(
        matches!(error, EgressError::Unintelligible(_)) && error.to_string().contains("API key is wrong"),
        "{error}"
    );
    let nobody = EgressClient::new("ws://127.0.0.1:1", &key(&double));
    let error = nobody.start(&sound("a.ogg")).await.unwrap_err();
    assert!(matches!(error, EgressError::Unreachable(_)) && !error.may_have_started(), "{error:?}");
    let token = Credentials::Token("a.b.c".into());
    let error = EgressClient::new(&double.url(), &token).start(&sound("a.ogg")).await.unwrap_err();
    assert!(matches!(error, EgressError::Unintelligible(_)), "{error:?}");
    assert!(double.egresses().is_empty());
}

#[tokio::test]
async fn a_lost_answer_never_makes_two() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let client = client_that_waits(&double, Duration::from_secs(2));
    let start = "StartRoomCompositeEgress";
    for (n, fault) in [
        Fault::DropAnswer,
        Fault::AnswerAfter(Duration::from_secs(4)),
        Fault::DropAnswerAndShowAfter(Duration::from_millis(1_200)),
    ]
    .into_iter()
    .enumerate()
    {
        double.fault(start, fault.clone());
        let state = client.start_once(&sound(&format!("{n}.ogg"))).await.unwrap();
        assert_eq!(state.path, Some(format!("{n}.ogg")), "{fault:?}");
        assert_eq!(double.egresses().len(), n + 1, "{fault:?}");
    }
    let again = client.start_once(&sound("0.ogg")).await.unwrap();
    assert_eq!((again.path.as_deref(), double.egresses().len()), (Some("0.ogg"), 3), "it runs already");
    double.fault(start, Fault::DropRequest);
    let error = client.start_once(&sound("never.ogg")).await.unwrap_err();
    assert!(error.may_have_started(), "{error:?}");
    assert_eq!(double.egresses().len(), 3);
}

#[tokio::test]
async fn of_two_that_record_the_same_the_second_is_stopped() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let client = client(&double);
    let first = client.start(&sound("a.ogg")).await.unwrap();
    let second = client.start(&sound("a.ogg")).await.unwrap();
    let other = client.start(&sound("b.ogg")).await.unwrap();
    assert_eq!(
        client.find(Some(ROOM), &sound("a.ogg").place().unwrap(), callreel::clock::wall()).await.unwrap().unwrap().id,
        first.id
    );
    double.until(|all| all.iter().any(|info| info.egress_id == second.id && info.ended_at > 0)).await;
    let mut running: Vec<_> = double.running().into_iter().map(|info| info.egress_id).collect();
    running.sort();
    assert_eq!(running, [first.id, other.id]);
}

#[tokio::test]
async fn what_has_ended_can_be_stopped_again() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let client = client(&double);
    let id = client.start(&sound("a.ogg")).await.unwrap().id;
    double.until(|all| all[0].status() == proto::EgressStatus::EgressActive).await;
    assert_eq!(client.stop(&id).await.unwrap().status, EgressStatus::Ending);
    double.until(|all| all[0].status() == proto::EgressStatus::EgressComplete).await;
    let again = client.stop(&id).await.unwrap();
    assert_eq!((again.status, again.files[0].bytes > 0), (EgressStatus::Complete, true));
    assert!(matches!(client.stop("EG_nobody").await, Err(EgressError::NotFound(_))));
    // The answer to a stop that got there is lost, too.
    let id = client.start(&sound("b.ogg")).await.unwrap().id;
    double.until(|all| all[1].status() == proto::EgressStatus::EgressActive).await;
    double.fault("StopEgress", Fault::DropAnswer);
    assert!(client.stop(&id).await.unwrap().status >= EgressStatus::Ending);
}

#[tokio::test]
async fn webhooks_tell_what_polling_tells() {
    let double = EgressDouble::start().await.unwrap();
    double.set_room(ROOM, 1);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    double.send_webhooks_to(listener.local_addr().unwrap().port(), "/webhook-receiver");
    let id = client(&double).start(&sound("a.ogg")).await.unwrap().id;
    let mut told: Option<EgressState> = None;
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = Vec::new();
        let (head, body) = loop {
            let mut block = [0; 4_096];
            let read = stream.read(&mut block).await.unwrap();
            bytes.extend_from_slice(&block[..read]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, _)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            if bytes.len() == head.len() + 4 + length.parse::<usize>().unwrap() {
                break (head.to_owned(), bytes.split_off(head.len() + 4));
            }
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        let token = head.split("authorization: ").nth(1).unwrap().split("\r\n").next().unwrap();
        let state = EgressState::told_by(&webhook(&body, token, &key(&double)).unwrap()).unwrap();
        match &mut told {
            Some(told) => {
                told.learn(state);
            }
            None => told = Some(state),
        }
        let told = told.as_ref().unwrap();
        if told.status == EgressStatus::Active {
            double.close_room(ROOM);
        }
        if told.status.is_over() {
            break;
        }
    }
    assert_eq!(told.unwrap(), client(&double).get(&id).await.unwrap());
}

#[tokio::test]
async fn a_real_server_without_egress_says_so_and_a_wrong_key_is_told_apart() {
    let server = LiveKitServer::start().await.unwrap();
    server.rooms().create(ROOM, 60, 60).await.unwrap();
    let key = Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() };
    let client = EgressClient::new(&server.url(), &key);
    let error = client.start_once(&sound("a.ogg")).await.unwrap_err();
    assert!(matches!(error, EgressError::Unavailable(_)) && !error.may_have_started(), "{error:?}");
    assert_eq!(client.room(ROOM).await.unwrap().map(|room| room.participants), Some(0));
    assert_eq!(client.room("nowhere").await.unwrap(), None);
    let wrong = Credentials::ApiKey { key: "other".into(), secret: "a-secret-of-thirty-two-characters".into() };
    // What it says to a start itself, after it has looked for workers for a while.
    let error = client.start(&sound("a.ogg")).await.unwrap_err();
    assert!(matches!(error, EgressError::Unavailable(_)) && !error.may_have_started(), "{error:?}");
    let error = EgressClient::new(&server.url(), &wrong).start(&sound("a.ogg")).await.unwrap_err();
    assert!(matches!(error, EgressError::Unintelligible(_)), "{error:?}");
}
