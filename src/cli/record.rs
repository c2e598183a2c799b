//! `callreel record`: one call, one process, one result line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use tokio::signal::unix::{SignalKind, signal};

use crate::analysis::AnalysisConfig;
use crate::config::{
    Config, ConfigError, ConfigFile, NameTemplate, OutputKind, ParticipantRule, SideRules, destination, duration,
    recipients,
};
use crate::encode::{EncodeError, FrameDuration, OpusConfig};
use crate::mix::Mixing;
use crate::recording::{PauseOrder, Recorder, RecordingHandle, RecordingResult, StopReason};
use crate::room::{Credentials, RoomMovedPolicy, TransportPolicy};

use super::BAD_USAGE;
use super::e2ee::E2eeArgs;
use super::engine::EngineArgs;
use super::life::LifeArgs;
use super::logging::{self, LogFormat, TRACES_HELP};
use super::progress;
use super::say::{err, out};

/// Exit codes, for the help.
const AFTER_HELP: &str = "\
The last line on standard output is the result as one JSON object.

Exit codes:
  0  complete   everything the room delivered is in the file
  1  failed     there is no recording, or only its beginning
  2             bad usage: the command line or a setting makes no sense
  3  degraded   there is a recording, and it lacks something; the reasons say what
  4  empty      nobody was there to be heard
  5  blocked    nothing was kept: the consent that --consent asks for never came

SIGINT and SIGTERM finish the recording; a second one gives up the wait for it.
SIGUSR1 pauses it, SIGUSR2 lets it go on.";

/// Flags of `callreel record`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{AFTER_HELP}{TRACES_HELP}"))]
pub struct Args {
    /// A YAML file; flags and the environment go before it
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    config: Option<PathBuf>,
    /// LiveKit server, as ws://, wss://, http:// or https://; further ones, with commas or flags, are tried where it cannot
    /// be used
    #[arg(long, env = "LIVEKIT_URL", value_name = "URL", value_delimiter = ',')]
    url: Vec<String>,
    /// LiveKit server; used where LIVEKIT_URL is not set
    #[arg(long, env = "LIVEKIT_HOST", value_name = "URL", value_delimiter = ',', hide = true)]
    host: Vec<String>,
    /// API key of the server
    #[arg(long, env = "LIVEKIT_API_KEY", value_name = "KEY")]
    api_key: Option<String>,
    /// API secret of the server
    #[arg(long, env = "LIVEKIT_API_SECRET", value_name = "SECRET", hide_env_values = true)]
    api_secret: Option<String>,
    /// A ready access token, instead of key and secret
    #[arg(long, env = "LIVEKIT_TOKEN", value_name = "JWT", hide_env_values = true, conflicts_with = "room")]
    token: Option<String>,
    /// The room to record; a room that does not exist yet is waited in
    #[arg(long, env = "CALLREEL_ROOM", value_name = "NAME")]
    room: Option<String>,
    /// The recorder's identity in the room [default: callreel-RECORDING_ID]
    #[arg(long, env = "CALLREEL_IDENTITY", value_name = "IDENTITY")]
    identity: Option<String>,
    /// Where the recording goes: a directory, or s3://BUCKET/PREFIX, az://, gs://, oss:// [default: the store whose bucket
    /// variable is set, else ./recordings]
    #[arg(long, env = "CALLREEL_OUT", value_name = "DIR-OR-URL")]
    out: Option<String>,
    /// How often what is in no full part yet goes into the store: 5s, 500ms; 0 for never
    #[arg(long, env = "CALLREEL_TAIL_EVERY", value_name = "TIME", value_parser = duration, default_value = "5s")]
    tail_every: Duration,
    /// How long the end of a recording waits for a store that is down, until `callreel recover` has to bring it there
    #[arg(long, env = "CALLREEL_UPLOAD_PATIENCE", value_name = "TIME", value_parser = duration, default_value = "60s")]
    upload_patience: Duration,
    /// An age public key, age1…, to which the sound is encrypted before it reaches a disk; several with commas or flags
    #[arg(long, env = "ENCRYPT_TO", value_name = "KEY", value_delimiter = ',')]
    encrypt_to: Vec<String>,
    /// A file of such keys, one a line
    #[arg(long, env = "ENCRYPT_TO_FILE", value_name = "FILE")]
    encrypt_to_file: Option<PathBuf>,
    #[command(flatten)]
    e2ee: E2eeArgs,
    /// The directory for journals, from which a recording is ended if this process dies, and for files on their way into
    /// a store [default: .spool in the directory for the recording, or in ./recordings]
    #[arg(long, env = "CALLREEL_SPOOL", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// How long the spool keeps a recording's files after the store has them
    #[arg(long, env = "CALLREEL_KEEP_SPOOL", value_name = "TIME", value_parser = duration, default_value = "0s")]
    keep_spool: Duration,
    /// How long recordings whose process died are left to a process of the same --recording-id, before this one ends them
    #[arg(long, env = "CALLREEL_GRACE", value_name = "TIME", value_parser = duration, default_value = "30s")]
    grace: Duration,
    /// The recording's name below the directory. Variables: {room_name} {room_id} {time} {recording_id} {job_id}
    /// {participant} {track} {ext} [default: {room_name}-{time}, or as the system whose variables choose the store has it]
    #[arg(long, env = "CALLREEL_NAME", value_name = "TEMPLATE")]
    name: Option<String>,
    /// The same, as deployed systems call it
    #[arg(long, env = "FILE_PATH", value_name = "TEMPLATE", hide = true)]
    file_path: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Which files to make, with commas between: mix (everybody in one), dual (two sides, a channel each), tracks (one a
    /// participant)
    #[arg(long, env = "CALLREEL_OUTPUTS", value_name = "KINDS", value_delimiter = ',', default_value = "mix")]
    outputs: Vec<String>,
    /// Whether files hold the senders' own packets where possible (in the mix: while only one talks), or are always
    /// decoded and encoded anew
    #[arg(long, env = "CALLREEL_MIXING", value_enum, default_value = "auto")]
    mixing: MixingArg,
    /// Channels of the mix: 1 or 2
    #[arg(long, env = "CALLREEL_MIX_CHANNELS", value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=2))]
    mix_channels: u8,
    /// Who is left in dual: identity=WHO, kind=KIND, attribute=KEY=VALUE or join=N; may be given again
    #[arg(long, env = "CALLREEL_LEFT", value_name = "RULE", value_delimiter = ',')]
    left: Vec<String>,
    /// Who is right in dual, as --left [default: telephone legs are left, agents right]
    #[arg(long, env = "CALLREEL_RIGHT", value_name = "RULE", value_delimiter = ',')]
    right: Vec<String>,
    /// Makes somebody louder or softer, such as alice=-6; may be given again
    #[arg(long, env = "CALLREEL_GAIN", value_name = "IDENTITY=DB", value_delimiter = ',')]
    gain: Vec<String>,
    /// Brings each voice to this loudness, slowly, by 12 dB at most [default: voices stay as they came]
    #[arg(long, env = "CALLREEL_TARGET_LUFS", value_name = "LUFS", allow_negative_numbers = true)]
    target_lufs: Option<f32>,
    /// The recording's id [default: a new one]
    #[arg(long, env = "CALLREEL_RECORDING_ID", value_name = "ID")]
    recording_id: Option<String>,
    #[command(flatten)]
    life: LifeArgs,
    /// Bits a second of the mix [default: 32000 a channel]; dual and tracks take as much for each voice they encode
    #[arg(long, env = "CALLREEL_BITRATE", value_name = "BITS")]
    bitrate: Option<u32>,
    /// How hard the encoder tries, 0 to 10
    #[arg(long, env = "CALLREEL_COMPLEXITY", value_name = "N", default_value_t = DEFAULT.complexity)]
    complexity: u8,
    /// Milliseconds a packet of the mix: 10, 20, 40 or 60
    #[arg(long, env = "CALLREEL_FRAME_MS", value_name = "MS", default_value_t = DEFAULT.frame_ms)]
    frame_ms: u32,
    /// Do not find out who speaks when
    #[arg(long, env = "CALLREEL_NO_SPEAKERS", value_parser = FalseyValueParser::new())]
    no_speakers: bool,
    /// Do not make a waveform of the mix
    #[arg(long, env = "CALLREEL_NO_PEAKS", value_parser = FalseyValueParser::new())]
    no_peaks: bool,
    /// Do not measure the mix's loudness
    #[arg(long, env = "CALLREEL_NO_LOUDNESS", value_parser = FalseyValueParser::new())]
    no_loudness: bool,
    /// What to do when the server moves the recorder to another room
    #[arg(long, env = "CALLREEL_ROOM_MOVED", value_enum, default_value = "stop")]
    room_moved: RoomMovedArg,
    /// How audio may reach the recorder
    #[arg(long, env = "CALLREEL_TRANSPORT", value_enum, default_value = "auto")]
    transport: TransportArg,
    /// How log lines look
    #[arg(long, env = "CALLREEL_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MixingArg {
    /// The senders' own packets where possible: up to 5 ms off their place in the mix, up to 20 ms in dual
    Auto,
    /// Everything decoded and encoded anew, exact to the sample
    Transcode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoomMovedArg {
    /// Another room is another call
    Stop,
    /// Go on with whoever is there
    Follow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TransportArg {
    /// UDP, TCP where that fails, and a relay that the server names where both fail
    Auto,
    Udp,
    Tcp,
    /// A relay only
    Relay,
}

/// Records one call as `args` say.
pub fn run(args: Args) -> ExitCode {
    let quiet = progress::wanted() && args.log_format == LogFormat::Text;
    let _traces = match logging::start_traced(args.log_format, if quiet { "warn" } else { "info" }) {
        Ok(traces) => traces,
        Err(code) => return code,
    };
    let drain = args.life.drain;
    let config = match args.into_config().and_then(|config| config.validate().map(|()| config)) {
        Ok(config) => config,
        Err(error) => {
            err!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(record(config, drain, quiet)),
        Err(error) => {
            err!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    for reason in &result.reasons {
        err!("{}: {reason}", result.outcome);
    }
    out!("{}", serde_json::to_string(&result).expect("plain data becomes JSON"));
    ExitCode::from(result.outcome.exit_code())
}

async fn record(config: Config, drain: Option<Duration>, quiet: bool) -> RecordingResult {
    Recorder::threads(NonZeroUsize::MIN);
    let handle = Recorder::start(config);
    let signals = tokio::spawn(obey_signals(handle.clone(), drain));
    let progress = quiet.then(|| tokio::spawn(progress::show(handle.clone())));
    let result = handle.wait().await;
    signals.abort();
    if let Some(progress) = progress {
        // It ends by itself once there is a result; waiting keeps the cleared line before what is printed next.
        let _ = progress.await;
    }
    result
}

/// Who pauses by a signal, for the manifest.
const BY_SIGNAL: &str = "signal";

async fn obey_signals(handle: RecordingHandle, drain: Option<Duration>) {
    let [interrupt, terminate, pause, resume] =
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::user_defined1(), SignalKind::user_defined2()]
            .map(signal);
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut pause), Ok(mut resume)) = (interrupt, terminate, pause, resume)
    else {
        tracing::warn!("signals cannot be caught here; they end the process at once");
        return;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = pause.recv() => {
                handle.pause(PauseOrder { by: BY_SIGNAL.into(), ..PauseOrder::default() });
                continue;
            }
            _ = resume.recv() => {
                handle.resume(BY_SIGNAL);
                continue;
            }
        }
        if asked {
            err!("gave up waiting; what was written stays in the .part file");
            std::process::exit(i32::from(crate::recording::Outcome::Failed.exit_code()));
        }
        asked = true;
        match drain {
            Some(within) => handle.stop_within(StopReason::Signal, within),
            None => handle.stop_because(StopReason::Signal),
        }
    }
}

impl Args {
    fn into_config(self) -> Result<Config, ConfigError> {
        let environment = |name: &str| std::env::var(name).ok();
        let file = self.config.as_deref().map(|path| ConfigFile::read(path, &environment)).transpose()?;
        let file = file.unwrap_or_default();
        let in_file = file.livekit_host.iter().flat_map(|hosts| hosts.split(','));
        let urls = [self.url, self.host, in_file.map(|host| host.trim().to_owned()).collect()];
        let mut urls = urls.into_iter().find(|urls| !urls.is_empty()).unwrap_or_default().into_iter();
        let url = urls.next().ok_or(ConfigError::Missing { key: "url", hint: "--url or LIVEKIT_URL" })?;
        let (api_key, api_secret) = match (self.api_key, self.api_secret) {
            (None, None) => {
                let secret = file.livekit_api_secret.as_ref().map(|secret| secret.expose().to_owned());
                (file.livekit_api_key.clone(), secret)
            }
            given => given,
        };
        let credentials = match (self.token, api_key, api_secret) {
            (Some(token), _, _) => Credentials::Token(token),
            (None, Some(key), Some(secret)) => Credentials::ApiKey { key, secret },
            (None, Some(_), None) => {
                return Err(ConfigError::Missing {
                    key: "api_secret",
                    hint: "--api-secret or LIVEKIT_API_SECRET belongs to the key",
                });
            }
            (None, None, _) => {
                return Err(ConfigError::Missing {
                    key: "api_key",
                    hint: "--api-key and --api-secret (LIVEKIT_API_KEY, LIVEKIT_API_SECRET), or --token",
                });
            }
        };
        let mut config = Config::new(url, credentials, self.room.unwrap_or_default());
        config.fallback_urls = urls.collect();
        config.room_moved = match self.room_moved {
            RoomMovedArg::Stop => RoomMovedPolicy::Stop,
            RoomMovedArg::Follow => RoomMovedPolicy::Follow,
        };
        config.identity = self.identity;
        self.engine.apply(&mut config, &file)?;
        let to = destination(self.out.as_deref(), &file, &environment)?;
        config.out = to.dir;
        config.store = to.store;
        config.upload.tail_every = Some(self.tail_every).filter(|every| !every.is_zero());
        config.upload.patience = self.upload_patience;
        config.encryption = recipients(&self.encrypt_to, self.encrypt_to_file.as_deref(), &file)?;
        config.e2ee = self.e2ee.keys(&file)?;
        config.spool = self.spool;
        config.grace = self.grace;
        config.keep_spool = self.keep_spool;
        let named = self.name.as_deref().or(self.file_path.as_deref()).or(file.file_path.as_deref());
        if let Some(name) = named.or(to.name) {
            config.name =
                NameTemplate::parse(name).map_err(|e| ConfigError::Invalid { key: "name", why: e.to_string() })?;
        }
        config.outputs = self.outputs.iter().map(|word| word.parse()).collect::<Result<Vec<OutputKind>, _>>()?;
        config.mixing = match self.mixing {
            MixingArg::Auto => Mixing::Auto,
            MixingArg::Transcode => Mixing::Transcode,
        };
        let rules =
            |rules: &[String]| rules.iter().map(|rule| rule.parse()).collect::<Result<Vec<ParticipantRule>, _>>();
        config.sides = SideRules { left: rules(&self.left)?, right: rules(&self.right)? };
        config.gains = self.gain.iter().map(|gain| gain_of(gain)).collect::<Result<_, _>>()?;
        config.target_lufs = self.target_lufs;
        config.analysis =
            AnalysisConfig { speakers: !self.no_speakers, peaks: !self.no_peaks, loudness: !self.no_loudness };
        if let Some(id) = self.recording_id {
            config.recording_id = id;
        }
        self.life.apply(&mut config)?;
        config.transport = match self.transport {
            TransportArg::Auto => TransportPolicy::Auto,
            TransportArg::Udp => TransportPolicy::Udp,
            TransportArg::Tcp => TransportPolicy::Tcp,
            TransportArg::Relay => TransportPolicy::Relay,
        };
        let opus = |error: EncodeError| ConfigError::Invalid { key: "opus", why: error.to_string() };
        let frame = FrameDuration::try_from(self.frame_ms).map_err(opus)?;
        if self.mix_channels == 2 {
            config.opus = OpusConfig::stereo();
        }
        let bitrate = self.bitrate.unwrap_or(config.opus.bits_a_second());
        config.opus.bitrate(bitrate).and_then(|it| it.complexity(self.complexity)).map_err(opus)?.frame(frame);
        Ok(config)
    }
}

struct OpusDefaults {
    complexity: u8,
    frame_ms: u32,
}

const DEFAULT: OpusDefaults = OpusDefaults { complexity: 5, frame_ms: 20 };

/// Reads `alice=-6` or `alice=+3.5dB`.
fn gain_of(text: &str) -> Result<(String, f32), ConfigError> {
    let invalid = || ConfigError::Invalid {
        key: "gain",
        why: format!("{text:?} is no gain; write an identity and decibels, such as alice=-6"),
    };
    let (who, decibels) = text.rsplit_once('=').ok_or_else(invalid)?;
    let number = decibels.trim().trim_end_matches("dB").trim_end();
    let decibels = number.parse().ok().filter(|_| !who.is_empty()).ok_or_else(invalid)?;
    Ok((who.to_owned(), decibels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gains_are_read_with_the_identity_before_the_last_sign() {
        assert_eq!(gain_of("alice=-6").unwrap(), ("alice".to_owned(), -6.0));
        assert_eq!(gain_of("a=b=+3.5 dB").unwrap(), ("a=b".to_owned(), 3.5));
        for text in ["alice", "=3", "alice=", "alice=loud"] {
            assert!(gain_of(text).unwrap_err().to_string().contains("alice=-6"), "{text}");
        }
    }
}
