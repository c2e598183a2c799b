//! Speaks a sound file into a LiveKit room, as one participant.

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use callreel::call::ParticipantKind;
use callreel::clock;
use callreel::testkit::{Audio, Publisher, PublisherConfig, TestkitError, TrackOptions, Voice};
use clap::Parser;
use serde_json::json;
use time::format_description::well_known::Rfc3339;
use tokio::signal::unix::{SignalKind, signal};

/// Joins a LiveKit room and speaks a WAV, FLAC or Ogg Opus file into it.
///
/// The microphone is open from the moment the track is published; it leaves when the file is said, after --secs, or on
/// SIGINT or SIGTERM. The last line on stdout is one JSON object that says what was sent.
#[derive(Debug, Parser)]
#[command(name = "callreel-publish", version)]
struct Arguments {
    /// The LiveKit server, ws://… or wss://…
    #[arg(long, env = "LIVEKIT_URL")]
    url: String,
    /// The API key that signs the join token
    #[arg(long, env = "LIVEKIT_API_KEY")]
    api_key: String,
    /// The API secret that signs the join token
    #[arg(long, env = "LIVEKIT_API_SECRET", hide_env_values = true)]
    api_secret: String,
    /// The room to join; created if the server allows it
    #[arg(long)]
    room: String,
    /// Who joins
    #[arg(long, default_value = "publisher")]
    identity: String,
    /// The name shown to people
    #[arg(long, default_value = "")]
    name: String,
    /// What the participant claims to be
    #[arg(long, value_enum, default_value_t = Kind::Standard)]
    kind: Kind,
    /// What to say
    #[arg(long)]
    file: PathBuf,
    /// Seconds of silence before the file begins
    #[arg(long, default_value = "0", value_parser = seconds)]
    start: Duration,
    /// Seconds after which to leave, counted from the first packet [default: when the file is said]
    #[arg(long, value_parser = seconds)]
    secs: Option<Duration>,
    /// Begins the file again when it is at its end
    #[arg(long = "loop")]
    looped: bool,
    /// Sends no packets in silence (Opus DTX)
    #[arg(long)]
    dtx: bool,
    /// Mutes from A to B, in seconds from the first packet; may be given several times
    #[arg(long, value_name = "A-B", value_parser = span)]
    mute: Vec<Range<Duration>>,
    /// Opus bits a second
    #[arg(long, default_value_t = 32_000, value_parser = clap::value_parser!(u32).range(6_000..=510_000))]
    bitrate: u32,
    /// Milliseconds of sound in a packet
    #[arg(long, default_value = "20", value_parser = frame)]
    frame_ms: Duration,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Kind {
    Standard,
    Sip,
    Agent,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("no runtime: {error}")),
    };
    match runtime.block_on(publish(arguments)) {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error.to_string()),
    }
}

fn complain(error: &str) -> ExitCode {
    eprintln!("callreel-publish: {error}");
    ExitCode::FAILURE
}

async fn publish(arguments: Arguments) -> Result<serde_json::Value, TestkitError> {
    let audio = Audio::read(&arguments.file)?;
    let Arguments { url, api_key, api_secret, room, identity, .. } = &arguments;
    let kind = match arguments.kind {
        Kind::Standard => ParticipantKind::Standard,
        Kind::Sip => ParticipantKind::Sip,
        Kind::Agent => ParticipantKind::Agent,
    };
    let config = PublisherConfig::new(url, api_key, api_secret, room, identity).name(&arguments.name).kind(kind);
    let mut options = TrackOptions::default()
        .bitrate(arguments.bitrate)
        .frame(arguments.frame_ms)
        .dtx(arguments.dtx)
        .looped(arguments.looped)
        .lead_in(arguments.start);
    for span in &arguments.mute {
        options = options.mute_during(span.clone());
    }

    let mut publisher = Publisher::join(config).await?;
    let voice = publisher.publish(audio, options).await?;
    let lost = tokio::select! {
        done = until_done(&voice, arguments.secs) => { done?; None }
        () = told_to_stop() => None,
        reason = publisher.ended() => Some(reason),
    };
    let sid = publisher.sid().to_owned();
    match lost {
        None => publisher.leave().await.map(|()| summary(identity, &sid, &voice)),
        Some(reason) => {
            let summary = summary(identity, &sid, &voice);
            Err(TestkitError::Publisher(format!("{identity} was cut off: {reason}; sent so far: {summary}")))
        }
    }
}

async fn until_done(voice: &Voice, after: Option<Duration>) -> Result<(), TestkitError> {
    match after {
        Some(after) => {
            voice.sent_at_least(1).await?;
            let first = voice.sent().first().map_or_else(clock::now, |packet| packet.at);
            tokio::time::sleep_until((first + after).into()).await;
            Ok(())
        }
        None => voice.said().await,
    }
}

async fn told_to_stop() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Where signals cannot be caught they end the process the usual way.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn summary(identity: &str, sid: &str, voice: &Voice) -> serde_json::Value {
    let first = voice.sent().first().map(|packet| clock::wall() - (clock::now() - packet.at));
    json!({
        "identity": identity,
        "participant": sid,
        "track": voice.sid(),
        "packets": voice.sent().len(),
        "first_packet_at": first.and_then(|first| first.format(&Rfc3339).ok()),
    })
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

fn span(text: &str) -> Result<Range<Duration>, String> {
    let (from, to) = text.split_once('-').ok_or("not of the form A-B")?;
    let (from, to) = (seconds(from)?, seconds(to)?);
    if from < to { Ok(from..to) } else { Err("the end does not lie after the beginning".to_owned()) }
}

fn frame(text: &str) -> Result<Duration, String> {
    match text {
        "10" | "20" | "40" | "60" => seconds(text).map(|millis| millis / 1_000),
        _ => Err("packets hold 10, 20, 40 or 60 ms".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_make_sense() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn spans_and_frames_are_checked() {
        assert_eq!(span("1.5-2"), Ok(Duration::from_millis(1_500)..Duration::from_secs(2)));
        assert!(span("2-1").is_err());
        assert!(span("2").is_err());
        assert!(seconds("-1").is_err());
        assert_eq!(frame("60"), Ok(Duration::from_millis(60)));
        assert!(frame("30").is_err());
    }
}
