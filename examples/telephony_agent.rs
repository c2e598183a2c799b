//! A voice agent that records the telephone calls it takes.
//!
//! ```text
//! ENABLE_AUDIO_RECORDING=true LIVEKIT_URL=ws://127.0.0.1:7880 LIVEKIT_API_KEY=… LIVEKIT_API_SECRET=… \
//!     cargo run --example telephony_agent -- call-1234
//! ```

use callreel::entry::{AgentConfig, entrypoint};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let room = std::env::args().nth(1).ok_or("usage: telephony_agent ROOM")?;
    let Some(recording) = entrypoint(&room, &AgentConfig::from_env()?) else {
        println!("recording is switched off: set ENABLE_AUDIO_RECORDING=true");
        return Ok(());
    };
    // Here the agent would talk with its caller. The recording ends by itself once the caller has hung up.
    let result = recording.wait().await;
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
