//! `callreel serve`: the service.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::config::{ServeConfig, ServeFlags};
use crate::service::Service;
use crate::service::rules::Rules;

use super::BAD_USAGE;
use super::logging::{self, LogFormat, TRACES_HELP};
use super::say::err;

const AFTER_HELP: &str = "\
Everything else is in the configuration file or the environment; `callreel config` prints what holds, and who says so.

LiveKit's webhooks come to /webhook-receiver, /livekit/webhook or /api/webhooks/livekit/, and are signed with a key of the
LiveKit server. The API is described at /api/v1/openapi.json and can be tried at /api/docs/.

SIGHUP reads the rules anew. SIGINT and SIGTERM end the recordings and the service; a second one ends it at once.

Exit codes: 0 ended as told, 1 it could not begin, 2 bad usage.";

/// Flags of `callreel serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("{AFTER_HELP}{TRACES_HELP}"))]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// How log lines look
    #[arg(long, env = "CALLREEL_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// Flags that the configuration is put together with.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// A YAML file; the environment and flags go before it [env: CONFIG_FILE]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to listen: 127.0.0.1:8080, [::1]:8080 or :8080 [env: CALLREEL_LISTEN, or the port alone: PORT]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where recordings go: a directory, or s3://BUCKET/PREFIX, az://, gs://, oss:// [env: CALLREEL_OUT]
    #[arg(long, value_name = "DIR-OR-URL")]
    out: Option<String>,
    /// The catalogue: sqlite:///FILE or postgres://… [env: CALLREEL_CATALOG] [default: catalog.sqlite beside the recordings]
    #[arg(long, value_name = "URL")]
    catalog: Option<String>,
    /// The directory for journals and files on their way into a store [env: CALLREEL_SPOOL]
    #[arg(long, value_name = "DIR")]
    spool: Option<String>,
    /// How the service is reached from outside, for addresses that it gives [env: CALLREEL_PUBLIC_URL]
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
}

impl From<Flags> for ServeFlags {
    fn from(flags: Flags) -> Self {
        Self {
            config: flags.config,
            listen: flags.listen,
            out: flags.out,
            catalog: flags.catalog,
            spool: flags.spool,
            public_url: flags.public_url,
        }
    }
}

/// Runs the service.
pub fn run(args: Args) -> ExitCode {
    // Dropped last, when everything that is traced has ended.
    let _traces = match logging::start_traced(args.log_format, "info") {
        Ok(traces) => traces,
        Err(code) => return code,
    };
    let flags = ServeFlags::from(args.flags);
    let config = match load(&flags) {
        Ok(config) => config,
        Err(error) => {
            err!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    // Recordings have threads of their own: what is asked over HTTP never waits for them, nor they for it.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("serve").enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            err!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        // From the first moment on: a signal before that would end the process where it stands.
        let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        let service = match Service::open(config).await {
            Ok(service) => service,
            Err(error) => {
                err!("error: {error}");
                return ExitCode::FAILURE;
            }
        };
        let (end, ending) = watch::channel(false);
        let signals = tokio::spawn(obey_signals(signals, flags, service.rules(), end));
        let ran = service.run(ending).await;
        signals.abort();
        if let Err(error) = ran {
            err!("error: {error}");
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    })
}

fn load(flags: &ServeFlags) -> Result<ServeConfig, crate::config::ConfigError> {
    ServeConfig::load(flags, &|name| std::env::var(name).ok())
}

async fn obey_signals(signals: [io::Result<Signal>; 3], flags: ServeFlags, rules: Rules, end: watch::Sender<bool>) {
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
        tracing::warn!("signals cannot be caught here; they end the process at once");
        return std::future::pending().await;
    };
    let mut asked = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {
                match load(&flags).and_then(|config| config.rules()) {
                    Ok(book) => {
                        tracing::info!(rules = book.len(), "rules are read anew");
                        rules.replace(book);
                    }
                    Err(error) => tracing::error!(%error, "the rules stay as they are"),
                }
                continue;
            }
        }
        if asked {
            err!("gave up waiting; what is not in its store yet stays in the spool");
            std::process::exit(1);
        }
        asked = true;
        end.send_replace(true);
    }
}
