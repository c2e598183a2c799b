//! From the publisher's socket through a real server to the room engine: what was sent is what arrives.

use std::collections::HashMap;
use std::time::Duration;

use callreel::call::Codec;
use callreel::clock;
use callreel::room::{Credentials, Room, RoomConfig, RoomEvent, RtpPacket};
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, SentPacket, TrackOptions};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two words with a pause of a second between them.
fn words() -> Audio {
    let word = generate::speech(5, Duration::from_millis(700));
    word.clone().then(&Audio::silence(Duration::from_secs(1))).then(&word)
}

/// What the recorder got of each track, by the server's id.
type Heard = HashMap<String, Vec<RtpPacket>>;

#[tokio::test]
async fn every_packet_arrives_once_in_order_and_as_it_was_sent() {
    let server = LiveKitServer::start().await.unwrap();
    let credentials = Credentials::ApiKey { key: server.api_key().to_owned(), secret: server.api_secret().to_owned() };
    let config = RoomConfig::new(server.url(), credentials).room("room");
    let (room, mut events) = Room::connect(config).await.unwrap();

    let mut publishers = Vec::new();
    for name in ["plain", "dtx", "long frames", "short frames", "telephone"] {
        publishers.push(Publisher::join(PublisherConfig::on(&server, "room", name)).await.unwrap());
    }
    let stereo = Audio::from_channels(vec![words().channel(0).to_vec(), vec![0.1; words().len()]]);
    // Nobody speaks before the room hears everybody.
    let start = clock::now() + Duration::from_secs(5);
    let at = TrackOptions::default().start(start);
    let cases = [
        (words(), at.clone().first(65_500, u32::MAX - 10_000), Codec::Opus),
        (words(), at.clone().dtx(true), Codec::Opus),
        (stereo, at.clone().frame(Duration::from_millis(60)).bitrate(64_000), Codec::Opus),
        (words(), at.clone().frame(Duration::from_millis(10)).fec(20), Codec::Opus),
        (words(), at.codec(Codec::Pcmu), Codec::Pcmu),
    ];
    let mut voices = Vec::new();
    for (publisher, (audio, options, codec)) in publishers.iter().zip(cases) {
        voices.push((publisher.publish(audio, options).await.unwrap(), codec));
    }

    let mut sent = Vec::new();
    for (voice, codec) in voices {
        voice.said().await.unwrap();
        sent.push((voice.sid().to_owned(), codec, voice.sent().packets()));
    }
    // Nobody leaves before: the server drops what it still has of who does, and gives the numbers to its own.
    let (mut heard, mut sids) = (Heard::new(), HashMap::new());
    let mut last: HashMap<&str, u16> = sent.iter().map(|(sid, _, sent)| (&**sid, sent[sent.len() - 1].seq)).collect();
    let hear_all = async {
        while !last.is_empty() {
            match events.recv().await.expect("the room is open") {
                RoomEvent::TrackPublished { track, .. } => drop(sids.insert(track.key, track.sid)),
                RoomEvent::Rtp(packet) => {
                    let sid = &sids[&packet.track];
                    if last.get(&**sid) == Some(&(packet.seq.0 as u16)) {
                        last.remove(&**sid);
                    }
                    heard.entry(sid.clone()).or_default().push(packet);
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, hear_all).await.unwrap_or_else(|_| panic!("still missing {last:?}"));
    room.close().await;

    for (publisher, (sid, codec, sent)) in publishers.iter().zip(sent) {
        let name = publisher.identity();
        assert!(sent.len() >= 40, "{name}: {} packets sent", sent.len());
        compare(name, codec, &sent, &heard[&sid]);
    }
}

fn compare(name: &str, codec: Codec, sent: &[SentPacket], heard: &[RtpPacket]) {
    // What the server appends after the last packet is its own.
    let last = heard.iter().position(|packet| packet.seq.0 as u16 == sent[sent.len() - 1].seq);
    let heard = &heard[..=last.unwrap_or_else(|| panic!("{name}: the last packet sent is missing"))];
    let heard_seqs: Vec<u16> = heard.iter().map(|packet| packet.seq.0 as u16).collect();
    let sent_seqs: Vec<u16> = sent.iter().map(|packet| packet.seq).collect();
    assert_eq!(heard_seqs, sent_seqs, "{name}");
    for (sent, heard) in sent.iter().zip(heard) {
        assert_eq!(heard.codec, codec, "{name}");
        assert_eq!(heard.payload.len(), sent.payload_len, "{name} {}", sent.seq);
        assert_eq!(heard.rtp.0 as u32, sent.timestamp, "{name} {}", sent.seq);
        assert!(heard.arrival >= sent.at - Duration::from_millis(1), "{name} {}: heard before it was said", sent.seq);
    }
    for pair in heard.windows(2) {
        assert_eq!(pair[1].seq.0, pair[0].seq.0 + 1, "{name}: sequence numbers come without their wrap");
        assert!(pair[1].rtp > pair[0].rtp, "{name}: timestamps come without their wrap");
    }
}
