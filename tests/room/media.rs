//! What arrives of what was sent.

use std::time::Duration;

use callreel::call::{Codec, TrackKey};
use callreel::encode::packet;
use callreel::room::{Impairment, RoomEvent, RtpPacket, Timeouts, TransportPolicy};
use callreel::testkit::audio::generate;
use callreel::testkit::{Audio, LiveKitServer, Publisher, PublisherConfig, TrackOptions};

use crate::support::{config, join, missing};

fn speech(seconds: u64) -> Audio {
    generate::speech(1, Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_packet_comes_from_the_first_to_the_last() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    // The sound begins when the recorder has long been there: nothing of it may be missing.
    let start = callreel::clock::now() + Duration::from_secs(8);
    let options = TrackOptions::default().start(start).first(u16::MAX - 20, u32::MAX - 9600);
    let voice = ann.publish(speech(3), options).await.unwrap();
    watched.until_line("+#0").await;
    voice.said().await.unwrap();
    let sent = voice.sent().packets();
    // Whoever leaves at once takes packets along: the server drops what it still had, and gives their numbers to its own.
    let last = sent.last().unwrap().seq;
    if !watched.packets(TrackKey(0)).iter().any(|packet| packet.seq.0 as u16 == last) {
        watched
            .until("last packet", |event| matches!(event, RoomEvent::Rtp(p) if p.seq.0 as u16 == last).then_some(()))
            .await;
    }
    ann.leave().await.unwrap();
    watched.until_line("-#0").await;
    room.close().await;

    let received = watched.packets(TrackKey(0));
    assert_eq!(received[0].seq.0 as u16, sent[0].seq, "the first packet sent is the first received");
    assert_eq!(missing(&sent, &received), Vec::<u16>::new());
    assert!(received.iter().all(|packet| packet.codec == Codec::Opus && packet.ssrc == received[0].ssrc));
    // Sequence numbers and timestamps both wrap on the way, and are told without.
    for (packet, sent) in received.iter().zip(&sent) {
        let (first, first_sent) = (&received[0], &sent);
        assert_eq!(packet.seq.0 as u16, first_sent.seq);
        assert_eq!(packet.rtp.0 - first.rtp.0, sent.position.0 as i64);
    }
    assert!(received.windows(2).all(|pair| pair[0].arrival <= pair[1].arrival));
}

#[tokio::test(flavor = "multi_thread")]
async fn five_percent_loss_is_recovered_to_the_last_packet() {
    let server = LiveKitServer::start().await.unwrap();
    let impairment = Impairment::new(11);
    impairment.lose_rtp(0.05);
    let (room, mut watched) = join(config(&server).impairment(impairment.clone())).await;
    watched.until_line("media Connected(Udp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(12), TrackOptions::default()).await.unwrap();
    watched.until_line("+#0").await;
    voice.said().await.unwrap();
    let sent = voice.sent().packets();
    let last = sent.last().unwrap().seq;
    // Silence follows the sound, so that the last packets' loss shows, too.
    watched.until("packet after the sound", |event| {
        matches!(event, RoomEvent::Rtp(packet) if (packet.seq.0 as u16).wrapping_sub(last) > 100 && packet.seq.0 as u16 > last).then_some(())
    }).await;
    room.close().await;
    watched.rest().await;

    let received = watched.packets(TrackKey(0));
    let late = received.windows(2).filter(|pair| pair[1].seq < pair[0].seq).count();
    eprintln!(
        "{} sent, {} lost at the socket, {} received, {} late, {} missing",
        sent.len(),
        impairment.dropped(),
        received.len(),
        late,
        missing(&sent, &received).len()
    );
    assert!(impairment.dropped() > 10, "the impairment lost {}", impairment.dropped());
    assert_eq!(missing(&sent, &received), Vec::<u16>::new());
    let mut seqs: Vec<_> = received.iter().map(|packet| packet.seq).collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), received.len(), "no packet comes twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_udp_is_blocked_media_takes_tcp() {
    let server = LiveKitServer::start().await.unwrap();
    let impairment = Impairment::new(1);
    impairment.block_udp(true);
    let timeouts = Timeouts { udp: Duration::from_secs(1), ..Timeouts::default() };
    let (room, mut watched) = join(config(&server).impairment(impairment).timeouts(timeouts)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(60), TrackOptions::default()).await.unwrap();
    watched.until_line("media Connected(Tcp)").await;
    for _ in 0..100 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
    assert!(!watched.lines().iter().any(|line| line.contains("Udp")), "{:?}", watched.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_alone_serves_a_whole_call() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server).transport(TransportPolicy::Tcp)).await;
    watched.until_line("media Connected(Tcp)").await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(2), TrackOptions::default()).await.unwrap();
    watched.until_line("+#0").await;
    voice.said().await.unwrap();
    let last = voice.sent().last().unwrap().seq;
    watched
        .until("last packet", |event| matches!(event, RoomEvent::Rtp(p) if p.seq.0 as u16 == last).then_some(()))
        .await;
    room.close().await;
    assert_eq!(missing(&voice.sent().packets(), &watched.packets(TrackKey(0))), Vec::<u16>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn g711_comes_with_its_own_codec_and_clock() {
    let server = LiveKitServer::start().await.unwrap();
    let (_room, mut watched) = join(config(&server)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let _voice = ann.publish(speech(60), TrackOptions::default().codec(Codec::Pcmu)).await.unwrap();
    let first = watched.until_packet(TrackKey(0)).await;
    let second = watched.until_packet(TrackKey(0)).await;
    assert_eq!((first.codec, first.payload.len()), (Codec::Pcmu, 160));
    assert_eq!((second.seq.0 - first.seq.0, second.rtp.0 - first.rtp.0), (1, 160));
}

#[tokio::test(flavor = "multi_thread")]
async fn sender_reports_are_passed_on_in_the_packets_own_time() {
    let server = LiveKitServer::start().await.unwrap();
    let (_room, mut watched) = join(config(&server)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let _voice = ann.publish(speech(60), TrackOptions::default()).await.unwrap();
    let report = || {
        |event: &RoomEvent| match event {
            RoomEvent::SenderReport { track, ntp, rtp, at } => Some((*track, *ntp, *rtp, *at)),
            _ => None,
        }
    };
    let (track, ntp, rtp, _) = watched.until("sender report", report()).await;
    let (_, later_ntp, later_rtp, _) = watched.until("second sender report", report()).await;
    assert_eq!(track, TrackKey(0));
    let wall = (later_ntp - ntp) as f64 / 2f64.powi(32);
    let media = (later_rtp.0 - rtp.0) as f64 / 48_000.0;
    assert!((wall - media).abs() < 0.05, "{wall} s of wall clock, {media} s of media");
    let near = watched.packets(track).iter().any(|packet| (packet.rtp.0 - rtp.0).abs() < 48_000);
    assert!(near, "reports and packets tell one time");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_talkers_are_told_apart() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    let mut voices = Vec::new();
    let mut people = Vec::new();
    for who in 0..10 {
        let talker = Publisher::join(PublisherConfig::on(&server, "room", &format!("talker{who}"))).await.unwrap();
        // Payloads of different sizes tell whose they are.
        voices.push(talker.publish(speech(60), TrackOptions::default().bitrate(16_000 + 8_000 * who)).await.unwrap());
        people.push(talker);
    }
    let mut heard = std::collections::HashMap::<TrackKey, usize>::new();
    watched
        .until("fifty packets of each", |event| {
            if let RoomEvent::Rtp(packet) = event {
                *heard.entry(packet.track).or_default() += 1;
            }
            (heard.len() == 10 && heard.values().all(|count| *count >= 50)).then_some(())
        })
        .await;
    room.close().await;
    watched.rest().await;
    let keys: std::collections::HashMap<String, TrackKey> = watched
        .seen
        .iter()
        .filter_map(|event| match event {
            RoomEvent::TrackPublished { track, .. } => Some((track.sid.clone(), track.key)),
            _ => None,
        })
        .collect();
    for voice in &voices {
        let received = watched.packets(keys[voice.sid()]);
        let sent = voice.sent().packets();
        assert_eq!(missing(&sent, &received), Vec::<u16>::new());
        let sizes: std::collections::HashMap<u16, usize> =
            sent.iter().map(|packet| (packet.seq, packet.payload_len)).collect();
        let is_other = |packet: &&RtpPacket| sizes.get(&(packet.seq.0 as u16)) != Some(&packet.payload.len());
        // The server lets go of a track with silence of its own, under numbers that its sender gives to others.
        let of_server = |packet: &&RtpPacket| packet.marker && packet.payload.starts_with(&packet::SILENCE_20_MS);
        let strange: Vec<_> = received.iter().filter(is_other).filter(|packet| !of_server(packet)).collect();
        assert!(strange.is_empty(), "{} has packets of somebody else: {strange:?}", voice.sid());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_track_that_is_subscribed_to_anew_goes_on_under_its_key() {
    let server = LiveKitServer::start().await.unwrap();
    let (room, mut watched) = join(config(&server)).await;
    let ann = Publisher::join(PublisherConfig::on(&server, "room", "ann")).await.unwrap();
    let voice = ann.publish(speech(60), TrackOptions::default()).await.unwrap();
    let bob = Publisher::join(PublisherConfig::on(&server, "room", "bob")).await.unwrap();
    let other = bob.publish(speech(60), TrackOptions::default()).await.unwrap();
    let before = watched.until_packet(TrackKey(0)).await;
    watched.until_packet(TrackKey(1)).await;

    room.resubscribe(TrackKey(0));
    // Once more while it is under way, and a track that nobody has: neither does anything.
    room.resubscribe(TrackKey(0));
    room.resubscribe(TrackKey(9));
    let after = watched
        .until("packet of the new stream", |event| match event {
            RoomEvent::Rtp(packet) if packet.track == TrackKey(0) && packet.ssrc != before.ssrc => Some(packet.clone()),
            _ => None,
        })
        .await;
    for _ in 0..50 {
        watched.until_packet(TrackKey(0)).await;
    }
    room.close().await;
    watched.rest().await;

    let missed = missing(&voice.sent().packets(), &watched.packets(TrackKey(0)));
    let first = watched.packets(TrackKey(0)).iter().position(|packet| packet.ssrc == after.ssrc).unwrap();
    println!("{} packets were missed", missed.len());
    assert!(missed.len() < 500, "{missed:?}");
    let streams = watched.packets(TrackKey(0))[first..].iter().filter(|packet| packet.ssrc != after.ssrc).count();
    assert_eq!(streams, 0, "it was taken off once");
    assert_eq!(missing(&other.sent().packets(), &watched.packets(TrackKey(1))), Vec::<u16>::new());
    let lines = watched.lines();
    assert!(!lines.iter().any(|line| line == "-#0" || line == "+#2" || line.contains("refused")), "{lines:?}");
}
