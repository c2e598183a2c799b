//! `callreel catalog`: a catalogue made anew from its store, and its API keys.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use time::Duration;
use time::format_description::well_known::Rfc3339;

use super::BAD_USAGE;
use super::logging::{self, LogFormat};
use super::say::{err, out};
use crate::catalog::{ApiKey, Catalog, CatalogError, Place, RebuildError, Rebuilt, Scope, Step};
use crate::clock;
use crate::config::{ConfigError, ConfigFile, destination};
use crate::store::{LocalConfig, Store, StoreConfig, StoreError};

/// Flags of `callreel catalog`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take every recording into the catalogue whose manifest is in a store.
    Rebuild(RebuildArgs),
    /// Make an API key, and show it this once.
    AddKey(AddKeyArgs),
    /// List API keys, without the keys themselves.
    Keys(KeysArgs),
    /// Take an API key back.
    RevokeKey(RevokeKeyArgs),
}

/// Which catalogue is meant.
#[derive(Debug, clap::Args)]
struct Which {
    /// The catalogue: sqlite:///file or postgres://user@host/database
    #[arg(long, env = "CALLREEL_CATALOG", value_name = "URL", hide_env_values = true)]
    catalog: String,
    /// How log lines look
    #[arg(long, env = "CALLREEL_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Prints a line for every manifest that changed the catalogue or was left alone, then how many there were.\n\nExit codes: 0 everything is in the catalogue, 1 store or catalogue could not be read or written, 2 bad usage, 3 files that manifests name are missing."
)]
struct RebuildArgs {
    #[command(flatten)]
    which: Which,
    /// The directory or store that the recordings are in [default: what the file or the environment says]; the environment
    /// gives a store's credentials
    #[arg(long, env = "CALLREEL_OUT", value_name = "DIR-OR-URL")]
    from: Option<String>,
    /// A YAML file; flags and the environment go before it
    #[arg(long, env = "CONFIG_FILE", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep recordings that the catalogue does not know so many days after their end [default: for ever]
    #[arg(long, value_name = "DAYS")]
    retention_days: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct AddKeyArgs {
    #[command(flatten)]
    which: Which,
    /// Whose it is, or what for
    #[arg(long)]
    name: String,
    /// What it allows; may be given again, or with commas between
    #[arg(long, value_name = "SCOPE", required = true, value_delimiter = ',')]
    scope: Vec<Scope>,
    /// After how many days it ends [default: never]
    #[arg(long, value_name = "DAYS")]
    expire_days: Option<u32>,
}

#[derive(Debug, clap::Args)]
struct KeysArgs {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct RevokeKeyArgs {
    #[command(flatten)]
    which: Which,
    /// The key's id (AK_…)
    id: String,
}

/// What ends a command.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
}

impl CommandError {
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Config(_) | Self::Store(StoreError::Config { .. }) => ExitCode::from(BAD_USAGE),
            Self::Catalog(CatalogError::Url(_) | CatalogError::NoEntry { .. }) => ExitCode::from(BAD_USAGE),
            Self::Store(_) | Self::Catalog(_) | Self::Rebuild(_) => ExitCode::FAILURE,
        }
    }
}

/// Exit code where manifests name files that are not there.
const LACKING: u8 = 3;

/// Does what is asked of a catalogue.
pub fn run(args: Args) -> ExitCode {
    let which = match &args.command {
        Command::Rebuild(args) => &args.which,
        Command::AddKey(args) => &args.which,
        Command::Keys(args) => &args.which,
        Command::RevokeKey(args) => &args.which,
    };
    logging::start(which.log_format, "info");
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            err!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        let catalog = Catalog::open(&which.catalog).await?;
        let done = match &args.command {
            Command::Rebuild(args) => rebuild(&catalog, args).await,
            Command::AddKey(args) => add_key(&catalog, args).await,
            Command::Keys(_) => keys(&catalog).await,
            Command::RevokeKey(args) => revoke_key(&catalog, &args.id).await,
        };
        catalog.close().await;
        done
    });
    done.unwrap_or_else(|error| {
        err!("error: {error}");
        error.exit_code()
    })
}

async fn rebuild(catalog: &Catalog, args: &RebuildArgs) -> Result<ExitCode, CommandError> {
    let environment = |name: &str| std::env::var(name).ok();
    let file = args.config.as_deref().map(|path| ConfigFile::read(path, &environment)).transpose()?;
    let from = destination(args.from.as_deref(), &file.unwrap_or_default(), &environment)?;
    let config = from.store.unwrap_or(StoreConfig::Local(LocalConfig { dir: from.dir }));
    let store = Store::open(&config).await?;
    let place = Place {
        provider: config.provider().to_owned(),
        bucket: config.bucket().map(str::to_owned),
        retain: args.retention_days.map(in_days),
    };
    let mut counts = Counts::default();
    let done = catalog.rebuild(&store, &place, clock::wall(), |step| counts.take(&step)).await;
    out!("{counts}");
    done?;
    Ok(if counts.lacking > 0 { ExitCode::from(LACKING) } else { ExitCode::SUCCESS })
}

/// How many manifests came to what.
#[derive(Debug, Default)]
struct Counts {
    added: u64,
    mended: u64,
    same: u64,
    deleted: u64,
    running: u64,
    left: u64,
    lacking: u64,
}

impl Counts {
    /// Counts a step, and prints it unless it changed nothing.
    fn take(&mut self, step: &Step) {
        // Names in a bucket are others' words, and this may be a terminal.
        let key = step.key.escape_debug();
        let count = match &step.rebuilt {
            Rebuilt::Added { recording_id } => {
                out!("added    {recording_id}  {key}");
                &mut self.added
            }
            Rebuilt::Mended { recording_id } => {
                out!("mended   {recording_id}  {key}");
                &mut self.mended
            }
            Rebuilt::Same { .. } => &mut self.same,
            Rebuilt::Deleted { recording_id } => {
                out!("deleted  {recording_id}  {key}");
                &mut self.deleted
            }
            Rebuilt::Running { recording_id } => {
                out!("running  {recording_id}  {key}");
                &mut self.running
            }
            Rebuilt::Left { why } => {
                out!("left     {key}: {}", why.escape_debug());
                &mut self.left
            }
        };
        *count += 1;
        for file in &step.lacking {
            out!("missing  {}", file.escape_debug());
        }
        self.lacking += step.lacking.len() as u64;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, mended, same, deleted, running, left, lacking } = self;
        write!(
            f,
            "{added} added, {mended} mended, {same} as they were, {deleted} deleted, {running} running, {left} left alone, \
             {lacking} files missing"
        )
    }
}

async fn add_key(catalog: &Catalog, args: &AddKeyArgs) -> Result<ExitCode, CommandError> {
    let now = clock::wall();
    let (key, secret) =
        catalog.create_key(&args.name, &args.scope, args.expire_days.map(|days| now + in_days(days)), now).await?;
    err!("{} for {}: keep what follows, it is shown this once", key.id, key.name);
    out!("{}", secret.expose());
    Ok(ExitCode::SUCCESS)
}

fn in_days(days: u32) -> Duration {
    // Nobody means more, and no moment is beyond what can be told.
    Duration::days(i64::from(days.min(36_500)))
}

async fn keys(catalog: &Catalog) -> Result<ExitCode, CommandError> {
    for key in catalog.keys().await? {
        out!("{}", line(&key));
    }
    Ok(ExitCode::SUCCESS)
}

async fn revoke_key(catalog: &Catalog, id: &str) -> Result<ExitCode, CommandError> {
    out!("{}", line(&catalog.revoke_key(id, clock::wall()).await?));
    Ok(ExitCode::SUCCESS)
}

fn line(key: &ApiKey) -> String {
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let at = |moment: Option<time::OffsetDateTime>| {
        moment
            .and_then(|moment| moment.replace_nanosecond(0).ok()?.format(&Rfc3339).ok())
            .unwrap_or_else(|| "-".to_owned())
    };
    format!(
        "{}  {}  created {}  expires {}  revoked {}  used {}  {}",
        key.id,
        scopes.join(","),
        at(Some(key.created_at)),
        at(key.expires_at),
        at(key.revoked_at),
        at(key.last_used_at),
        key.name
    )
}
