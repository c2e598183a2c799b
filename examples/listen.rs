//! Joins a room, says what happens there, and how long joining took.
//!
//! ```text
//! LIVEKIT_URL=ws://127.0.0.1:7880 LIVEKIT_API_KEY=devkey LIVEKIT_API_SECRET=… cargo run --example listen -- ROOM
//! ```

use std::time::Instant;

use callreel::room::{Credentials, Room, RoomConfig, RoomEvent};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = callreel::clock::now();
    let since = |at: Instant| at.saturating_duration_since(start).as_secs_f64() * 1e3;
    let name = std::env::args().nth(1).ok_or("which room?")?;
    let credentials =
        Credentials::ApiKey { key: std::env::var("LIVEKIT_API_KEY")?, secret: std::env::var("LIVEKIT_API_SECRET")? };
    let config = RoomConfig::new(std::env::var("LIVEKIT_URL")?, credentials).room(name);
    let (room, mut events) = Room::connect(config).await?;

    let mut packets = 0u64;
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = tokio::signal::ctrl_c() => break,
        };
        match event {
            Some(RoomEvent::Joined { room, at, .. }) => {
                println!("{:8.1} ms  joined {} (server {})", since(at), room.name, room.server_version);
            }
            Some(RoomEvent::Media { state, at }) => println!("{:8.1} ms  media {state:?}", since(at)),
            Some(RoomEvent::Rtp(packet)) => {
                if packets == 0 {
                    println!("{:8.1} ms  first packet, of track {}", since(packet.arrival), packet.track);
                }
                packets += 1;
            }
            Some(RoomEvent::SenderReport { .. }) => {}
            Some(other) => println!("{:8.1} ms  {other:?}", since(callreel::clock::now())),
            None => break,
        }
    }
    println!("{packets} packets");
    room.close().await;
    Ok(())
}
