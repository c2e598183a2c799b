//! `callreel recover`: ends recordings whose process died.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ConfigError, ConfigFile, default_spool, destination, duration};
use crate::egress::EgressClient;
use crate::recording::{LeftEgress, RecordingResult, RecoverError, Recovered, recover, recover_from_store};
use crate::room::Credentials;
use crate::store::{LocalConfig, Store, StoreConfig, StoreError};

use super::BAD_USAGE;
use super::logging::{self, LogFormat};
use super::say::{err, out};

/// How often `--watch` looks: a lock that a dead process held makes no event.
const WATCH_EVERY: Duration = Duration::from_secs(5);

/// How long `--watch` leaves a recording to a process that may go on with it, as `record` does.
const GRACE: Duration = Duration::from_secs(30);

/// Flags of `callreel recover`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints one line a recording, as `record` does at its end.\n\nExit codes: 0 nothing is left to recover, 1 a recording or the spool could not be dealt with, 2 bad usage."
)]
pub struct Args {
    /// A YAML file; flags and the environment go before it
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The directory of journals [default: .spool in the directory for recordings]
    #[arg(long, env = "CALLREEL_SPOOL", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// The directory or store for recordings, as `record` has it; the environment gives a store's credentials
    #[arg(long, env = "CALLREEL_OUT", value_name = "DIR-OR-URL")]
    out: Option<String>,
    /// The LiveKit server whose egresses may have to be stopped
    #[arg(long, env = "LIVEKIT_URL", value_name = "URL")]
    url: Option<String>,
    /// LiveKit server; used where LIVEKIT_URL is not set
    #[arg(long, env = "LIVEKIT_HOST", value_name = "URL", hide = true)]
    host: Option<String>,
    /// API key of the server
    #[arg(long, env = "LIVEKIT_API_KEY", value_name = "KEY")]
    api_key: Option<String>,
    /// API secret of the server
    #[arg(long, env = "LIVEKIT_API_SECRET", value_name = "SECRET", hide_env_values = true)]
    api_secret: Option<String>,
    /// Also finish what recorders have left in this store and no longer go on with, as their leases tell
    #[arg(long, value_name = "URL")]
    from_store: Option<String>,
    /// Go on looking for recordings whose process died, until told to stop
    #[arg(long)]
    watch: bool,
    /// How long a recording is left to a process that may go on with it [default: 30s with --watch, else 0s]
    #[arg(long, env = "CALLREEL_GRACE", value_name = "TIME", value_parser = duration)]
    grace: Option<Duration>,
    /// How log lines look
    #[arg(long, env = "CALLREEL_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

impl Args {
    fn livekit(&self, file: &ConfigFile) -> Option<(String, Credentials)> {
        let url = self.url.clone().or(self.host.clone()).or_else(|| file.livekit_host.clone())?;
        let key = self.api_key.clone().or_else(|| file.livekit_api_key.clone())?;
        let of_file = || file.livekit_api_secret.as_ref().map(|secret| secret.expose().to_owned());
        let secret = self.api_secret.clone().or_else(of_file)?;
        Some((url, Credentials::ApiKey { key, secret }))
    }
}

/// Ends what has to be ended.
pub fn run(args: &Args) -> ExitCode {
    logging::start(args.log_format, "info");
    let environment = |name: &str| std::env::var(name).ok();
    let places = || -> Result<_, ConfigError> {
        let file = args.config.as_deref().map(|path| ConfigFile::read(path, &environment)).transpose()?;
        let file = file.unwrap_or_default();
        let to = destination(args.out.as_deref().or(args.from_store.as_deref()), &file, &environment)?;
        let from = args.from_store.as_deref().map(|url| destination(Some(url), &file, &environment)).transpose()?;
        Ok((to, from, args.livekit(&file)))
    };
    let (to, from, livekit) = match places() {
        Ok(places) => places,
        Err(error) => return bad_usage(&error),
    };
    let from = from.map(|from| from.store.unwrap_or(StoreConfig::Local(LocalConfig { dir: from.dir })));
    let spool = args.spool.clone().unwrap_or_else(|| default_spool(&to.dir));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            err!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(async {
        let grace = args.grace.unwrap_or(if args.watch { GRACE } else { Duration::ZERO });
        let mut job = match Job::new(spool, grace, to.store.as_ref(), from.as_ref(), livekit).await {
            Ok(job) => job,
            Err(error) => return bad_usage(&error),
        };
        if args.watch {
            return watch(&mut job).await;
        }
        if job.pass().await { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    })
}

fn bad_usage(error: &dyn std::fmt::Display) -> ExitCode {
    err!("error: {error}");
    ExitCode::from(BAD_USAGE)
}

async fn watch(job: &mut Job) -> ExitCode {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        err!("error: signals cannot be caught here");
        return ExitCode::FAILURE;
    };
    let mut clock = tokio::time::interval(WATCH_EVERY);
    let passes = async {
        loop {
            clock.tick().await;
            // What fails is tried again.
            job.pass().await;
        }
    };
    // Whoever recovers can be stopped anywhere.
    tokio::select! {
        () = passes => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::SUCCESS,
        _ = terminate.recv() => ExitCode::SUCCESS,
    }
}

/// Where to look, and where to bring what is found.
struct Job {
    /// The LiveKit server whose egresses can be stopped.
    livekit: Option<(String, Credentials)>,
    spool: PathBuf,
    grace: Duration,
    store: Option<Store>,
    from: Option<Store>,
    /// Recordings of which it was told that they cannot go anywhere.
    told: BTreeSet<String>,
}

impl Job {
    async fn new(
        spool: PathBuf,
        grace: Duration,
        store: Option<&StoreConfig>,
        from: Option<&StoreConfig>,
        livekit: Option<(String, Credentials)>,
    ) -> Result<Self, StoreError> {
        let open = async |config: Option<&StoreConfig>| match config {
            Some(config) => Store::open(config).await.map(Some),
            None => Ok(None),
        };
        Ok(Self { spool, grace, store: open(store).await?, from: open(from).await?, told: BTreeSet::new(), livekit })
    }

    /// Looks once. Gives whether nothing is left to do.
    async fn pass(&mut self) -> bool {
        let mut all_well = self.look_into_spool().await;
        if let Some(from) = &self.from {
            match recover_from_store(from, "").await {
                Ok(results) => results.into_iter().for_each(|result| match result {
                    Ok(result) => print(&result),
                    Err(error) => {
                        err!("error: {error}");
                        all_well = false;
                    }
                }),
                Err(error) => {
                    err!("error: {error}");
                    all_well = false;
                }
            }
        }
        all_well
    }

    /// Stops what may run of a recording, where that is at the server that is given.
    async fn stop_egress(&self, left: LeftEgress) -> Result<Recovered, RecoverError> {
        match &self.livekit {
            Some((url, credentials)) if left.is_at(url) => left.stop(&EgressClient::new(url, credentials)).await,
            _ => Ok(Recovered::EgressPending(Box::new(left))),
        }
    }

    /// Says once why a recording cannot go anywhere.
    fn tell(&mut self, id: String, why: &str) {
        if !self.told.contains(&id) {
            err!("error: {id} {why}");
        }
        self.told.insert(id);
    }

    async fn look_into_spool(&mut self) -> bool {
        let recovered = match recover(&self.spool, &[], self.grace) {
            Ok(recovered) => recovered,
            Err(error) => {
                err!("error: cannot read {}: {error}", self.spool.display());
                return false;
            }
        };
        let mut all_well = true;
        for recording in recovered {
            let recording = match recording {
                Ok(Recovered::EgressPending(left)) => self.stop_egress(*left).await,
                recording => recording.map_err(RecoverError::from),
            };
            let done = match recording {
                Ok(Recovered::Done(result)) => Ok(result),
                Ok(Recovered::UploadPending(pending)) => match &self.store {
                    Some(store) if pending.is_for(store) => pending.upload(store).await,
                    _ => {
                        all_well = false;
                        let (id, store) = (pending.recording_id().to_owned(), pending.store.clone());
                        self.tell(id, &format!("belongs to {store}; give that as --out, with its credentials"));
                        continue;
                    }
                },
                Ok(Recovered::EgressPending(left)) => {
                    all_well = false;
                    let (id, server) = (left.recording_id().to_owned(), left.server().to_owned());
                    self.tell(id, &format!("may have an egress at {server}; give that as --url, with its key"));
                    continue;
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(result) => print(&result),
                Err(error) => {
                    err!("error: {error}");
                    all_well = false;
                }
            }
        }
        all_well
    }
}

fn print(result: &RecordingResult) {
    for reason in &result.reasons {
        err!("{}: {}: {reason}", result.recording_id, result.outcome);
    }
    out!("{}", serde_json::to_string(result).expect("plain data becomes JSON"));
}
