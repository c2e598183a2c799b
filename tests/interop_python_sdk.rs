//! The official Python SDK (real libwebrtc) publishes, callreel listens.

use std::time::Duration;

use callreel::call::Codec;
use callreel::clock;
use callreel::room::{Credentials, Room, RoomConfig, RoomEvent};
use callreel::testkit::audio::generate;
use callreel::testkit::python::{self, PythonEvent};
use callreel::testkit::{LiveKitServer, PublishPlan, PythonParticipant, PythonPublisher};

/// An Opus decoder takes any payload of RED (RFC 2198) for one packet, but its frames then have absurd lengths.
const OPUS_20_MS: usize = 960;

#[tokio::test]
async fn audio_of_the_sdk_arrives_as_plain_opus_and_its_video_is_left_alone() {
    let server = LiveKitServer::start().await.unwrap();
    let tone = generate::tone(440.0, 0.5, Duration::from_secs(20));
    let mut alice = PythonParticipant::new("alice", 20.0).says(&tone, 0.0);
    alice.video = true;
    alice.red = true;
    let plan = PublishPlan { queue_ms: 0, participants: vec![alice] };
    let mut publisher = PythonPublisher::spawn(&server, "interop", &plan).await.unwrap();
    publisher.start().await.unwrap();

    let baseline = python::subscribe(&server, "interop", "sdk").await.unwrap();
    let connecting = clock::now();
    let key = Credentials::ApiKey { key: server.api_key().into(), secret: server.api_secret().into() };
    let (room, mut events) = Room::connect(RoomConfig::new(server.url(), key).room("interop")).await.unwrap();
    let mut tracks = Vec::new();
    let mut first_packet = None;
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let mut pcm = vec![0.0; 5_760];
    let mut packets = 0;
    while packets < 100 {
        match events.recv().await.expect("the room stays open") {
            RoomEvent::TrackPublished { track, .. } => tracks.push(track),
            RoomEvent::Rtp(packet) => {
                first_packet.get_or_insert(packet.arrival);
                assert_eq!(packet.codec, Codec::Opus);
                assert_eq!(decoder.decode_float(&packet.payload, &mut pcm, false).unwrap(), OPUS_20_MS);
                packets += 1;
            }
            _ => {}
        }
    }
    room.close().await;

    let [track] = &tracks[..] else { panic!("one audio track, not {tracks:?}") };
    assert_eq!(track.source, "microphone");
    let heard = pcm[..OPUS_20_MS].iter().fold(0.0f32, |peak, sample| peak.max(sample.abs()));
    assert!(heard > 0.3, "the tone has a peak of 0.5, heard {heard}");
    println!(
        "from connecting to the first packet: callreel {:.0} ms, the SDK {:.0} ms",
        first_packet.unwrap().duration_since(connecting).as_secs_f64() * 1e3,
        millis(&baseline, "connecting", "first_packet"),
    );
}

fn millis(events: &[PythonEvent], from: &str, to: &str) -> f64 {
    let at = |name: &str| events.iter().find(|event| event.event == name).expect(name).monotonic_ns as f64;
    (at(to) - at(from)) / 1e6
}
