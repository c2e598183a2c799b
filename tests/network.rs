//! What the network does to a call between the server and the recorder, and what the recording has of it.

use std::path::Path;
use std::time::Duration;

use callreel::config::Config;
use callreel::recording::{Manifest, Outcome, Recorder, RecordingResult, State};
use callreel::room::{Credentials, Impairment, Transport};
use callreel::testkit::audio::{Audio, generate};
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions, analysis};

const ROOM: &str = "call";

/// Records ten seconds of speech through `impairment`.
async fn record(impairment: Impairment, out: &Path) -> (RecordingResult, Manifest, Audio, Audio) {
    let server = LiveKitServer::start().await.unwrap();
    let secret = server.api_secret().to_owned();
    let credentials = Credentials::ApiKey { key: server.api_key().to_owned(), secret };
    let mut config = Config::new(server.url(), credentials, ROOM);
    config.out = out.to_owned();
    config.stop.departure_timeout = Duration::from_secs(1);
    config.impairment = Some(impairment);
    let mut recording = Recorder::start(config);
    while recording.status().state == State::Starting {
        recording.changed().await;
    }
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let sound = generate::speech(1, Duration::from_secs(10));
    // Time enough to take the way over TCP.
    let options = TrackOptions::default().lead_in(Duration::from_secs(6));
    alice.publish(sound.clone(), options).await.unwrap().said().await.unwrap();
    alice.leave().await.unwrap();
    let result = recording.wait().await;
    let manifest = result.manifest.as_ref().unwrap_or_else(|| panic!("{result:?}"));
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    manifest.check().unwrap();
    let heard = Audio::read(&result.outputs[0].location).unwrap();
    (result, manifest, sound, heard)
}

#[tokio::test]
async fn packets_lost_on_the_way_come_back() {
    let out = tempfile::tempdir().unwrap();
    let impairment = Impairment::new(7);
    impairment.lose_rtp(0.05);
    let (result, manifest, sound, heard) = record(impairment.clone(), out.path()).await;
    let [track] = manifest.tracks.as_slice() else { panic!("one track: {:?}", manifest.tracks) };
    let (sums, counters) = (&track.ledger.sums, &track.ledger.counters);
    assert!(impairment.dropped() > 20, "{} packets were thrown away", impairment.dropped());
    assert_eq!(sums.lost + sums.concealed + sums.recovered, 0, "{sums:?}");
    assert!(counters.packets_retransmitted > 20, "{counters:?}");
    assert_eq!(result.outcome, Outcome::Complete);
    let found = analysis::find(sound.channel(0), heard.channel(0)).unwrap();
    assert!(found.score > 0.8, "{found:?}");
}

#[tokio::test]
async fn without_udp_the_call_comes_over_tcp() {
    let out = tempfile::tempdir().unwrap();
    let impairment = Impairment::new(7);
    impairment.block_udp(true);
    let (result, manifest, sound, heard) = record(impairment, out.path()).await;
    let first = manifest.media.iter().find_map(|media| media.transport);
    assert_eq!(first, Some(Transport::Tcp), "{:?}", manifest.media);
    assert_eq!(result.outcome, Outcome::Complete, "{result:?}");
    let found = analysis::find(sound.channel(0), heard.channel(0)).unwrap();
    assert!(found.score > 0.8, "{found:?}");
}
