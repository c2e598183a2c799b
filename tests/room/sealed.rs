//! End-to-end encrypted tracks.

use std::time::Duration;

use callreel::call::{Encryption, TrackKey};
use callreel::e2ee::{E2eeConfig, FrameSealer, KeyMaterial, Problem};
use callreel::room::{RoomEvent, RtpPacket};
use callreel::testkit::audio::generate;
use callreel::testkit::{Audio, LiveKitServer, Publisher, PublisherConfig, TrackOptions, Voice};

use crate::support::{Watched, config, join, missing};

const ANN: TrackKey = TrackKey(0);

fn speech() -> Audio {
    generate::speech(1, Duration::from_secs(60))
}

fn phrase() -> KeyMaterial {
    KeyMaterial::passphrase("open sesame")
}

fn sealed(index: u8) -> TrackOptions {
    TrackOptions::default().sealed(FrameSealer::new(phrase(), index))
}

async fn publish(server: &LiveKitServer, options: TrackOptions) -> (Publisher, Voice) {
    let ann = Publisher::join(PublisherConfig::on(server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(), options).await.unwrap();
    (ann, voice)
}

/// What was told of frames that cannot be opened: problem, frames, when.
fn told(watched: &Watched) -> Vec<(Problem, u64, std::time::Instant)> {
    let report = |event: &RoomEvent| match event {
        RoomEvent::Undecryptable { track: ANN, problem, frames, at } => Some((*problem, *frames, *at)),
        _ => None,
    };
    watched.seen.iter().filter_map(report).collect()
}

/// Whether a decoder takes these for frames of 20 ms.
fn assert_sound(packets: &[RtpPacket]) {
    let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
    let mut pcm = vec![0.0; 5_760];
    for packet in packets {
        assert!(!packet.undecryptable);
        assert_eq!(decoder.decode_float(&packet.payload, &mut pcm, false).unwrap(), 960);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_are_opened_from_the_first_on_and_through_ratchets() {
    let server = LiveKitServer::start().await.unwrap();
    let keys = E2eeConfig::new().shared_key(2, phrase()).ratchet_window(4);
    let (room, mut watched) = join(config(&server).e2ee(keys)).await;
    watched.until_line("media Connected(Udp)").await;
    let (_ann, voice) = publish(&server, sealed(2)).await;
    for _ in 0..50 {
        watched.until_packet(ANN).await;
    }
    for _ in 0..2 {
        voice.ratchet().await.unwrap();
        for _ in 0..50 {
            watched.until_packet(ANN).await;
        }
    }
    room.close().await;
    watched.rest().await;
    assert_eq!(told(&watched), []);
    let packets = watched.packets(ANN);
    assert_sound(&packets);
    assert_eq!(missing(&voice.sent().packets(), &packets), Vec::<u16>::new());
    let announced = |event: &RoomEvent| match event {
        RoomEvent::TrackPublished { track, .. } => Some(track.encryption),
        _ => None,
    };
    assert_eq!(watched.seen.iter().find_map(announced), Some(Encryption::Gcm));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_opened_is_counted_and_never_passed_on() {
    let server = LiveKitServer::start().await.unwrap();
    let wrong = E2eeConfig::new().shared_key(0, KeyMaterial::passphrase("open barley")).ratchet_window(2);
    let (room, mut watched) = join(config(&server).e2ee(wrong)).await;
    let (keyless, mut keyless_watched) = join(config(&server)).await;
    let (_ann, voice) = publish(&server, sealed(0)).await;
    for _ in 0..120 {
        watched.until_packet(ANN).await;
        keyless_watched.until_packet(ANN).await;
    }
    room.close().await;
    keyless.close().await;
    for (watched, problem) in
        [(&mut watched, Problem::WrongKey { index: 0 }), (&mut keyless_watched, Problem::NoKey { index: 0 })]
    {
        watched.rest().await;
        let packets = watched.packets(ANN);
        assert!(packets.iter().all(|packet| packet.undecryptable && packet.payload.len() == 1));
        assert_eq!(missing(&voice.sent().packets(), &packets), Vec::<u16>::new());
        let told = told(watched);
        assert!(told.iter().all(|(told, ..)| *told == problem), "{told:?}");
        assert_eq!(told.iter().map(|(_, frames, _)| *frames).sum::<u64>(), packets.len() as u64);
        // The last report comes with the end.
        let in_between = told[..told.len() - 1].windows(2);
        assert!(in_between.map(|two| two[1].2 - two[0].2).all(|pause| pause >= Duration::from_secs(1)), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_track_without_encryption_is_taken_as_it_is_among_keys() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server).e2ee(E2eeConfig::new().shared_key(0, phrase()))).await;
    let (_ann, voice) = publish(&server, TrackOptions::default()).await;
    for _ in 0..50 {
        watched.until_packet(ANN).await;
    }
    room.close().await;
    watched.rest().await;
    assert_sound(&watched.packets(ANN));
    assert_eq!((told(&watched), missing(&voice.sent().packets(), &watched.packets(ANN))), (Vec::new(), Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_that_the_server_puts_in_is_silence() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server).e2ee(E2eeConfig::new().shared_key(0, phrase()))).await;
    let (_ann, voice) = publish(&server, sealed(0)).await;
    for _ in 0..20 {
        watched.until_packet(ANN).await;
    }
    voice.mute(true).await.unwrap();
    let silence = watched
        .until("packet of the server's", |event| match event {
            RoomEvent::Rtp(packet) if packet.marker && packet.payload.starts_with(&[0xf8, 0xff, 0xfe]) => {
                Some(packet.clone())
            }
            _ => None,
        })
        .await;
    assert_eq!((silence.payload.len(), silence.undecryptable), (80, false));
    room.close().await;
    watched.rest().await;
    assert_eq!(told(&watched), []);
}
