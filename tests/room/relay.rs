//! Media over the relay that is built into the server.

use std::net::{TcpListener, UdpSocket};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use callreel::call::TrackKey;
use callreel::room::{Impairment, RoomConfig, Timeouts, TransportPolicy};
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, ServerBuilder, SignalTap, TrackOptions};
use livekit_protocol::SignalResponse;
use livekit_protocol::signal_response::Message;

use crate::reconnect::Cable;
use crate::support::{config, join, missing};

/// A server with a relay, whose settings these are.
fn with_relay(settings: &str) -> ServerBuilder {
    // Relays send to no address of this machine unless that is allowed.
    let lines = format!(
        "turn:\n  enabled: true\n  bind_addresses: [\"127.0.0.1\"]\n  allow_restricted_peer_cidrs: [\"127.0.0.0/8\"]\n{settings}"
    );
    LiveKitServer::builder().rtc("node_ip: 127.0.0.1").extra(&lines)
}

fn free_udp_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn free_tcp_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The server says that its relay over TLS is at port 443, wherever it is: this says where.
async fn naming_relay(server: &LiveKitServer, url: String) -> SignalTap {
    let edit = move |response: &mut SignalResponse| {
        if let Some(Message::Join(join)) = &mut response.message {
            for relay in join.ice_servers.iter_mut().filter(|server| !server.credential.is_empty()) {
                relay.urls = vec![url.clone()];
            }
        }
        true
    };
    SignalTap::lay_editing(server, edit).await.unwrap()
}

/// Every packet of a voice comes that way.
async fn assert_relayed(server: &LiveKitServer, config: RoomConfig) {
    let (room, mut watched) = join(config).await;
    watched.until_line("media Connected(Relay)").await;
    let ann = Publisher::join(PublisherConfig::on(server, "room", "ann")).await.unwrap();
    let voice = ann.publish(generate::speech(1, Duration::from_secs(60)), TrackOptions::default()).await.unwrap();
    for _ in 0..100 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
    let ways: Vec<_> = watched.lines().into_iter().filter(|line| line.starts_with("media")).collect();
    assert_eq!(ways, ["media Connected(Relay)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_over_udp_serves_a_call() {
    let server = with_relay(&format!("  udp_port: {}\n", free_udp_port())).start().await.unwrap();
    assert_relayed(&server, config(&server).transport(TransportPolicy::Relay)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_over_tcp_serves_a_call() {
    let port = free_tcp_port();
    // TLS that somebody else would end: what arrives here is plain.
    let settings = format!("  domain: relay.example.com\n  tls_port: {port}\n  external_tls: true\n");
    let server = with_relay(&settings).start().await.unwrap();
    let tap = naming_relay(&server, format!("turn:127.0.0.1:{port}?transport=tcp")).await;
    assert_relayed(&server, config(&server).url(tap.url()).transport(TransportPolicy::Relay)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_over_tls_serves_a_call_and_one_that_nobody_vouches_for_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, pem("CERTIFICATE", issued.cert.der())).unwrap();
    std::fs::write(&key, pem("PRIVATE KEY", &issued.signing_key.serialize_der())).unwrap();
    let port = free_tcp_port();
    let settings = format!(
        "  domain: relay.example.com\n  tls_port: {port}\n  cert_file: {}\n  key_file: {}\n",
        cert.display(),
        key.display()
    );
    let server = with_relay(&settings).start().await.unwrap();
    let tap = naming_relay(&server, format!("turns:localhost:{port}?transport=tcp")).await;
    let relayed = config(&server).url(tap.url()).transport(TransportPolicy::Relay);
    assert_relayed(&server, relayed.clone().trust(issued.cert.der().to_vec())).await;

    let brief = Timeouts {
        udp: Duration::from_millis(200),
        media: Duration::from_millis(500),
        away: Duration::from_secs(2),
        ..Timeouts::default()
    };
    let (_room, mut unknown) = join(relayed.timeouts(brief)).await;
    unknown.rest().await;
    let lines = unknown.lines();
    assert!(!lines.iter().any(|line| line.contains("Connected")), "{lines:?}");
    assert!(lines.last().is_some_and(|line| line.contains("media does not connect")), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_neither_udp_nor_tcp_gets_through_a_relay_is_taken() {
    let server = with_relay(&format!("  udp_port: {}\n", free_udp_port())).start().await.unwrap();
    let deaf_to_tcp = |response: &mut SignalResponse| match &mut response.message {
        Some(Message::Trickle(trickle)) => !trickle.candidate_init.contains(" tcp "),
        Some(Message::Offer(offer)) => {
            let kept = offer.sdp.split_inclusive('\n').filter(|line| !line.contains(" tcp "));
            offer.sdp = kept.collect();
            true
        }
        _ => true,
    };
    let tap = SignalTap::lay_editing(&server, deaf_to_tcp).await.unwrap();
    let impairment = Impairment::new(1);
    impairment.block_udp(true);
    let timeouts = Timeouts { udp: Duration::from_millis(500), ..Timeouts::default() };
    assert_relayed(&server, config(&server).url(tap.url()).impairment(impairment).timeouts(timeouts)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_goes_on_over_its_relay_and_no_packet_is_missed() {
    let server = with_relay(&format!("  udp_port: {}\n", free_udp_port())).start().await.unwrap();
    let cable = Cable::lay(&server).await;
    let (room, mut watched) = join(config(&server).url(cable.url()).transport(TransportPolicy::Relay)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(generate::speech(1, Duration::from_secs(60)), TrackOptions::default()).await.unwrap();
    watched.until_packet(TrackKey(0)).await;
    // Resuming begins ICE anew.
    cable.cut();
    // Longer than a path without answers lasts.
    for _ in 0..600 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_is_left_alone_where_there_is_a_direct_way() {
    let server = with_relay(&format!("  udp_port: {}\n", free_udp_port())).start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("media Connected(Udp)").await;
    room.close().await;
}

fn pem(what: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", lines.join("\n"))
}
