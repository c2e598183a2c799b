//! `callreel check`: tries what a recording needs, and says what works.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::config::{ConfigFile, Destination, destination};
use crate::room::{Credentials, Room, RoomConfig, RoomEvent};
use crate::store::{Attributes, LocalConfig, PutOptions, Store, StoreConfig, StoreError};

use super::BAD_USAGE;
use super::say::{err, out};

/// How long one thing may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Flags of `callreel check`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Nothing is left behind: the object that is written is deleted, and the room is empty again.\n\nExit codes: 0 everything works, 1 something does not, 2 bad usage."
)]
pub struct Args {
    /// A YAML file; flags and the environment go before it
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    config: Option<PathBuf>,
    /// LiveKit server, as ws://, wss://, http:// or https://; without, joining is not tried
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
    /// The directory or store for recordings, as `record` has it
    #[arg(long, env = "CALLREEL_OUT", value_name = "DIR-OR-URL")]
    out: Option<String>,
}

/// Tries everything, and prints a line for each thing.
pub fn run(args: Args) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let file = args.config.as_deref().map_or(Ok(ConfigFile::default()), |path| ConfigFile::read(path, &environment));
    let to = file.and_then(|file| Ok((destination(args.out.as_deref(), &file, &environment)?, file)));
    let (to, file) = match to {
        Ok(to) => to,
        Err(error) => {
            err!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            err!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut report = Report { all_well: true };
    runtime.block_on(async {
        check_store(&to, &mut report).await;
        check_room(args, file, &mut report).await;
    });
    if report.all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Report {
    all_well: bool,
}

impl Report {
    /// Tries one thing, prints how it went, and gives what came of it.
    async fn of<T, E: std::fmt::Display>(
        &mut self,
        what: &str,
        trial: impl Future<Output = Result<T, E>>,
    ) -> Option<T> {
        let begun = clock::now();
        let (result, why) = match tokio::time::timeout(PATIENCE, trial).await {
            Ok(Ok(value)) => (Some(value), String::new()),
            Ok(Err(error)) => (None, error.to_string()),
            Err(_) => (None, format!("no answer within {} s", PATIENCE.as_secs())),
        };
        let took = (clock::now() - begun).as_millis();
        match &result {
            Some(_) => out!("ok      {what:<34} {took:>6} ms"),
            None => {
                self.all_well = false;
                out!("FAILED  {what:<34} {took:>6} ms  {why}");
            }
        }
        result
    }
}

async fn check_store(to: &Destination, report: &mut Report) {
    let local = |dir: &PathBuf| StoreConfig::Local(LocalConfig { dir: dir.clone() });
    let config = to.store.clone().unwrap_or_else(|| local(&to.dir));
    let Some(store) = report.of("storage settings", Store::open(&config)).await else { return };
    out!("        recordings go to {store}");
    let key = format!("callreel-check-{}", ulid::Ulid::new());
    let body = Bytes::from_static(b"callreel check");
    let options =
        PutOptions { create_only: true, attributes: Attributes::typed("text/plain"), ..PutOptions::default() };
    if report.of("write an object", store.put(&key, body.clone(), &options)).await.is_none() {
        return;
    }
    let again = async {
        match store.put(&key, body.clone(), &options).await {
            Err(StoreError::AlreadyExists(_)) => Ok(()),
            Ok(_) => Err("the store replaced an object although it was told not to".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    report.of("leave an existing object alone", again).await;
    let read = async {
        let found = store.get(&key, None).await.map_err(|error| error.to_string())?;
        if found == body { Ok(()) } else { Err("what was read is not what was written".to_owned()) }
    };
    report.of("read it back", read).await;
    report.of("list", store.list(&key)).await;
    let parts = async {
        let whole = format!("{key}-parts");
        let upload = store.begin(&whole, &Attributes::default()).await?;
        store.put_part(&whole, &upload, 1, body.clone()).await?;
        store.abort(&whole, &upload).await
    };
    report.of("begin an upload, and give it up", parts).await;
    report.of("the store's clock", store.now()).await;
    if report.of("delete it", store.delete(std::slice::from_ref(&key))).await.is_none() {
        out!("        recordings are complete all the same; the object {} stays", store.location(&key));
    }
}

async fn check_room(args: Args, file: ConfigFile, report: &mut Report) {
    let Some(url) = args.url.or(args.host).or(file.livekit_host) else {
        out!("-       LiveKit is not tried: neither --url nor LIVEKIT_URL is given");
        return;
    };
    let key = args.api_key.or(file.livekit_api_key);
    let secret = args.api_secret.or(file.livekit_api_secret.map(|secret| secret.expose().to_owned()));
    let (Some(key), Some(secret)) = (key, secret) else {
        out!("-       LiveKit is not tried: it takes LIVEKIT_API_KEY and LIVEKIT_API_SECRET");
        return;
    };
    let name = format!("callreel-check-{}", ulid::Ulid::new());
    let config = RoomConfig::new(&url, Credentials::ApiKey { key, secret }).room(&name).identity("callreel-check");
    let join = async {
        let (room, mut events) = Room::connect(config).await.map_err(|error| error.to_string())?;
        let joined = matches!(events.recv().await, Some(RoomEvent::Joined { .. }));
        room.close().await;
        if joined { Ok(()) } else { Err("the room engine ended before it had joined".to_owned()) }
    };
    report.of("join LiveKit", join).await;
}
