//! What the network does to a call between the server and the recorder, and what the recording has of it.

use std::path::Path;
use std::time::Duration;

use callreel::config::Config;
use callreel::recording::{Manifest, Outcome, Recorder, RecordingResult, State};
use callreel::room::{Credentials, Impairment, Transport};
use callreel::testkit::{Audio, LiveKitServer, Publisher, PublisherConfig, TrackOptions, analysis, checkout};

const ROOM: &str = "call";

/// Records ten seconds of speech through `impairment`.
async fn record(impairment: Impairment, out: &Path) -> (RecordingResult, Manifest, Audio, Audio) {
    let server = LiveKitServer::start().await.unwrap();
    let secret = server.api_secret().to_owned();
    let credentials = Credentials::ApiKey { key: server.api_key().to_owned(), secret };
    let mut config = Config::new(server.url(), credentials, ROOM);
    config.out = out.to_owned();
    config.life.stop.departure_timeout = Duration::from_secs(1);
    config.impairment = Some(impairment);
    let mut recording = Recorder::start(config);
    while recording.status().state == State::Starting {
        recording.changed().await;
    }
    let alice = Publisher::join(PublisherConfig::on(&server, ROOM, "alice")).await.unwrap();
    let sound = Audio::read(checkout().join("fixtures/agent.flac")).unwrap();
    let sound = sound.slice(0..10 * 48_000);
    // Time enough to take the way over TCP.
    let options = TrackOptions::default().lead_in(Duration::from_secs(6));
    alice.publish(sound.clone(), options).await.unwrap().said().await.unwrap();
    // Stopped while she is still there: after she left, the server sends nothing again.
    recording.stop();
    let result = recording.wait().await;
    let manifest = result.manifest.as_ref().unwrap_or_else(|| panic!("{result:?}"));
    let manifest: Manifest = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    manifest.check().unwrap();
    let heard = Audio::read(&result.outputs[0].location).unwrap();
    (result, manifest, sound, heard)
}

/// Looks for each loud half second of what was said by itself: it is there, as loud as it was said, within 10 ms of
/// its place among the others. (Over more time the correction of clocks moves sound by a millisecond, which no
/// correlation survives; and how alike a hiss is to itself after coding says little.)
fn every_word_is_there(sound: &Audio, heard: &Audio) {
    const PIECE: usize = 24_000;
    const AROUND: usize = 960;
    let place = analysis::find(sound.channel(0), heard.channel(0)).unwrap().offset as usize;
    let mut pieces = 0;
    for at in (0..sound.len() - PIECE).step_by(PIECE) {
        let said = sound.slice(at..at + PIECE);
        if analysis::level(said.channel(0)) < -30.0 {
            continue;
        }
        let there = heard.slice(place + at - AROUND..place + at + PIECE + AROUND);
        let found = analysis::find(said.channel(0), there.channel(0)).unwrap();
        let seconds = at as f64 / 48_000.0;
        assert!((found.offset - AROUND as i64).abs() < 10 * 48, "at {seconds} s: {found:?}");
        let heard = there.slice(AROUND..AROUND + PIECE);
        let louder = analysis::level(heard.channel(0)) - analysis::level(said.channel(0));
        assert!(louder.abs() < 6.0, "at {seconds} s: {louder:.1} dB louder than said");
        pieces += 1;
    }
    assert!(pieces > 8, "{pieces} pieces were loud enough to be looked for");
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
    assert_eq!(sums.lost + sums.concealed + sums.recovered, 0, "{:#?}", track.ledger);
    assert!(counters.packets_retransmitted > 20, "{counters:?}");
    assert_eq!(result.outcome, Outcome::Complete);
    every_word_is_there(&sound, &heard);
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
    every_word_is_there(&sound, &heard);
}
