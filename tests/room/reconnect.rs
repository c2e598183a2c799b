//! What happens when the connection breaks.

use std::sync::Arc;
use std::time::Duration;

use callreel::call::TrackKey;
use callreel::room::{Impairment, RoomEvent, Timeouts, TransportPolicy};
use callreel::testkit::audio::generate;
use callreel::testkit::{Audio, LiveKitServer, Publisher, PublisherConfig, TrackOptions};
use livekit_protocol::simulate_scenario::Scenario;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{config, join, missing};

fn speech() -> Audio {
    generate::speech(1, Duration::from_secs(60))
}

/// Carries TCP to the server until it is cut; what connects after that gets through again.
pub struct Cable {
    port: u16,
    cut: Arc<watch::Sender<()>>,
}

impl Cable {
    pub async fn lay(server: &LiveKitServer) -> Self {
        let far = server.url().trim_start_matches("ws://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(watch::Sender::new(()));
        let scissors = Arc::clone(&cut);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (far, mut cut) = (far.clone(), scissors.subscribe());
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(far).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { port, cut }
    }

    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    pub fn cut(&self) {
        self.cut.send_replace(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_signalling_connection_is_resumed_and_no_packet_is_missed() {
    let server = LiveKitServer::start().await.unwrap();
    let cable = Cable::lay(&server).await;
    let (room, mut watched) = join(config(&server).url(cable.url())).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(0)).await;
    cable.cut();
    // What happens while nobody tells us is told afterwards.
    let bob = Publisher::join(PublisherConfig::on(&server, "room", "bob")).await.unwrap();
    watched.until_line("+bob").await;
    let second = bob.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(1)).await;
    for _ in 0..50 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
    assert_eq!(missing(&second.sent().packets(), &watched.packets(TrackKey(1))), Vec::<u16>::new());
    let streams: std::collections::HashSet<u32> =
        watched.packets(TrackKey(0)).iter().map(|packet| packet.ssrc).collect();
    assert_eq!(streams.len(), 1, "the session went on");
    assert!(!watched.lines().iter().any(|line| line.starts_with("left")), "{:?}", watched.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_gone_is_joined_anew_under_the_same_keys() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let _voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    let before = watched.until_packet(TrackKey(0)).await;
    // The server forgets us without a word, as a failed node would.
    room.simulate(Scenario::NodeFailure(true));
    watched.until_line("media Interrupted").await;
    watched.until_line("media Connected(Udp)").await;
    let after = watched
        .until("packet of the new stream", |event| match event {
            RoomEvent::Rtp(packet) if packet.ssrc != before.ssrc => Some(packet.clone()),
            _ => None,
        })
        .await;
    assert_eq!(after.track, TrackKey(0));
    room.close().await;
    watched.rest().await;
    let joins = watched.lines().iter().filter(|line| *line == "+ann" || *line == "joined room").count();
    assert_eq!(joins, 2, "{:?}", watched.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn media_that_stops_is_told_and_mended() {
    let server = LiveKitServer::start().await.unwrap();
    let impairment = Impairment::new(1);
    let (room, mut watched) = join(config(&server).impairment(impairment.clone())).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let _voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(0)).await;
    impairment.block_udp(true);
    watched.until_line("media Interrupted").await;
    // UDP stays blocked, so what mends it is TCP.
    watched.until_line("media Connected(Tcp)").await;
    for _ in 0..100 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    let log = server.log();
    let resumed = log.lines().filter(|line| line.contains("resuming RTC session")).count();
    assert_eq!(resumed, 1, "one resume mends it:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_goes_on_over_tcp_and_no_packet_is_missed() {
    let server = LiveKitServer::start().await.unwrap();
    let cable = Cable::lay(&server).await;
    let (room, mut watched) = join(config(&server).url(cable.url()).transport(TransportPolicy::Tcp)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(0)).await;
    cable.cut();
    // Longer than a path without answers lasts.
    let enough = callreel::clock::now() + Duration::from_secs(12);
    watched
        .until("packet after twelve seconds", |event| {
            matches!(event, RoomEvent::Rtp(packet) if packet.arrival >= enough).then_some(())
        })
        .await;
    room.close().await;
    watched.rest().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
    let media = watched.lines().into_iter().rfind(|line| line.starts_with("media"));
    assert_eq!(media.as_deref(), Some("media Connected(Tcp)"));
    assert_eq!(server.log().lines().filter(|line| line.contains("resuming RTC session")).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_server_is_joined_again() {
    let mut server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    watched.until_line("+ann").await;
    server.restart().await.unwrap();
    drop(ann);
    watched.until_line("media Connected(Udp)").await;
    let bob = Publisher::join(PublisherConfig::on(&server, "room", "bob")).await.unwrap();
    let _voice = bob.publish(speech(), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(0)).await;
    room.close().await;
    watched.rest().await;
    assert!(
        watched.lines().iter().any(|line| line.starts_with("left")),
        "ann's session is over: {:?}",
        watched.lines()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_comes_back_is_given_up() {
    let mut server = LiveKitServer::start().await.unwrap();
    let timeouts = Timeouts { reconnect: Duration::from_secs(2), ..Timeouts::default() };
    let (_room, mut watched) = join(config(&server).timeouts(timeouts)).await;
    watched.until_line("media Connected(Udp)").await;
    server.kill();
    watched.rest().await;
    let last = watched.lines().pop().unwrap();
    assert!(last.starts_with("closed Lost(") && last.contains("not mended within 2s"), "{last}");
}
