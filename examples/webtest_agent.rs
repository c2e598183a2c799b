//! A voice agent that records the test calls that people make from a browser.
//!
//! ```text
//! ENABLE_AUDIO_RECORDING=true LIVEKIT_URL=ws://127.0.0.1:7880 LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=… \
//!     cargo run --example webtest_agent -- test-room
//! ```

use callreel::entry::{AgentConfig, entrypoint_webtest};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let room = std::env::args().nth(1).ok_or("usage: webtest_agent ROOM")?;
    let Some(recording) = entrypoint_webtest(&room, &AgentConfig::from_env()?) else {
        println!("recording is switched off: set ENABLE_AUDIO_RECORDING=true");
        return Ok(());
    };
    // The agent runs its session here; a recording that fails tells it in its status and leaves the session alone.
    let mut watched = recording.clone();
    let watcher = tokio::spawn(async move {
        while watched.status().result.is_none() {
            let status = watched.changed().await;
            println!("{:?} {:?}, {} in the room", status.state, status.elapsed, status.participants);
        }
    });
    let result = recording.wait().await;
    watcher.await?;
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
