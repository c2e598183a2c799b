//! The service's configuration: defaults, then the file, then the environment, then flags, each value with its source.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;

use super::serve_env::{Kind, Layers, Source, Sources, leaves};
use super::serve_file::{DatabaseUrl, FallbackWord, Profile, WebhookFormat};
use super::{Config, ConfigError, ConfigFile, Destination, Fallback, NameTemplate, Picture, destination, recipients};
use crate::notify::{Endpoint, EventKind, Format, NotifyConfig};
use crate::render::Quality;
use crate::room::Credentials;
use crate::service::rules::{RuleBook, set_form};
use crate::store::{Secret, StoreConfig};

/// What flags of `callreel serve` say.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ServeFlags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--listen`
    pub listen: Option<String>,
    /// `--out`
    pub out: Option<String>,
    /// `--catalog`
    pub catalog: Option<String>,
    /// `--spool`
    pub spool: Option<String>,
    /// `--public-url`
    pub public_url: Option<String>,
}

/// Everything the service needs to know.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServeConfig {
    /// The configuration file, for when it is read again.
    pub path: Option<PathBuf>,
    /// Which system's defaults hold.
    pub profile: Profile,
    /// What file, environment and flags say together.
    pub file: ConfigFile,
    /// Who said what of it.
    pub sources: Sources,
    /// What every recording has in common; its room is empty.
    pub base: Config,
    /// Where the service listens, if it is let.
    pub listen: SocketAddr,
    /// The catalogue.
    pub catalog: DatabaseUrl,
    /// The LiveKit server's API key and its secret.
    pub livekit_key: (String, Secret),
    /// Keys that webhooks may be signed with, each with its secret.
    pub webhook_keys: Vec<(String, Secret)>,
    /// Whether rooms are recorded that no rule is about.
    pub records_others: bool,
    /// Where the store comes from.
    pub store_source: Source,
}

/// One value of the effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its place in a configuration file.
    pub key: String,
    /// The value; `SET` for a secret.
    pub value: Value,
    /// Where it comes from.
    pub source: Source,
}

/// A section of `storage`, the variable that chooses it, and which variables fill which of its fields.
type StoreNames = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// What of the environment fills a store that the file has begun to configure.
const STORES: &[StoreNames] = &[
    (
        "s3",
        "S3_BUCKET",
        &[
            ("S3_BUCKET", "bucket"),
            ("S3_ACCESS_KEY", "access_key"),
            ("S3_SECRET_KEY", "secret"),
            ("S3_SECRET", "secret"),
            ("S3_SESSION_TOKEN", "session_token"),
            ("S3_REGION", "region"),
            ("S3_ENDPOINT", "endpoint"),
        ],
    ),
    (
        "azure",
        "AZURE_CONTAINER_NAME",
        &[
            ("AZURE_STORAGE_ACCOUNT", "account_name"),
            ("AZURE_STORAGE_KEY", "account_key"),
            ("AZURE_CONTAINER_NAME", "container_name"),
        ],
    ),
    ("gcp", "GCP_BUCKET", &[("GOOGLE_APPLICATION_CREDENTIALS", "credentials_json"), ("GCP_BUCKET", "bucket")]),
    (
        "alioss",
        "ALIOSS_BUCKET",
        &[
            ("ALIOSS_ACCESS_KEY", "access_key"),
            ("ALIOSS_SECRET", "secret"),
            ("ALIOSS_REGION", "region"),
            ("ALIOSS_ENDPOINT", "endpoint"),
            ("ALIOSS_BUCKET", "bucket"),
        ],
    ),
];

/// Variables that choose a store beside those.
const OTHER_BUCKETS: &[&str] = &["S3_RECORDING_BUCKET", "CLOUDFLARE_R2_STORAGE_BUCKET_NAME"];

/// The port where nobody says anything.
const DEFAULT_PORT: u16 = 8080;

impl ServeConfig {
    /// Puts together what `flags`, `env` and the file say.
    ///
    /// # Errors
    /// [`ConfigError`] for what is missing, unknown, contradictory or makes no sense, with its place and where it comes from.
    pub fn load(flags: &ServeFlags, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name: &str| env(name).filter(|value| !value.is_empty());
        let mut layers = Layers::default();
        let path = flags.config.clone().or_else(|| get("CONFIG_FILE").map(PathBuf::from));
        if let Some(path) = &path {
            layers.file(path.clone(), ConfigFile::document(path, env)?);
        }
        layers.environment(env)?;
        let hidden = overlay_store(&mut layers, &get)?;
        let of_flags = [
            ("listen", "--listen", &flags.listen),
            ("out", "--out", &flags.out),
            ("catalog.url", "--catalog", &flags.catalog),
            ("recording.spool", "--spool", &flags.spool),
            ("downloads.public_url", "--public-url", &flags.public_url),
        ];
        for (place, name, value) in of_flags {
            if let Some(text) = value {
                layers.set(place, text, Kind::Text, Source::Flag(name))?;
            }
        }
        let Layers { mut document, mut sources } = layers;
        if document.is_null() {
            document = Value::Object(serde_json::Map::new());
        }
        let mut file: ConfigFile = serde_path_to_error::deserialize(document).map_err(|error| {
            let place = error.path().to_string();
            sources.invalid(&place, error.inner())
        })?;
        refuse_unbuilt(&get)?;
        let profile = profile(&mut file, &mut sources, &get)?;
        let find = |name: &str| get(name).filter(|_| hidden != Some(name));
        let to = store(&file, &sources, profile, &find)?;
        let store_source = match &to.store {
            None => sources.of("out"),
            Some(_) if file.out.is_some() => sources.of("out"),
            Some(_) => chosen_by(&find).map_or_else(|| sources.of("storage"), Source::Env),
        };
        let livekit_key = livekit_key(&file)?;
        let listen = listen(&file, &sources, profile)?;
        let base = base(&file, &sources, &to, &livekit_key)?;
        let records_others = match file.auto_record {
            Some(records) => records,
            None => {
                file.auto_record = Some(profile.records_all());
                sources.note("auto_record", Source::Profile(profile));
                profile.records_all()
            }
        };
        let catalog = file
            .catalog
            .url
            .clone()
            .unwrap_or_else(|| DatabaseUrl::new(format!("sqlite://{}", to.dir.join("catalog.sqlite").display())));
        file.catalog.url = Some(catalog.clone());
        let webhook_keys = webhook_keys(&file, &livekit_key);
        let config = Self {
            path,
            profile,
            file,
            sources,
            base,
            listen,
            catalog,
            livekit_key,
            webhook_keys,
            records_others,
            store_source,
        };
        config.rules()?;
        config.check()?;
        Ok(config)
    }

    /// The rules, ready for use.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] for a rule that makes no sense, or wants what nobody can make.
    pub fn rules(&self) -> Result<RuleBook, ConfigError> {
        let book = RuleBook::new(&self.file.rules, self.records_others)?;
        book.check(&self.base)?;
        Ok(book)
    }

    /// Where the service listens. Without any key it is this machine alone, and the text says so.
    ///
    /// `has_keys` says whether the catalogue has API keys. A deployed system's own configuration counts as a key: its
    /// webhooks are signed, and everything else takes a token.
    pub fn address(&self, has_keys: bool) -> (SocketAddr, Option<String>) {
        let is_open = has_keys || !self.file.auth.keys.is_empty() || self.profile != Profile::Callreel;
        if is_open || self.listen.ip().is_loopback() {
            return (self.listen, None);
        }
        let here = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), self.listen.port());
        let note = format!(
            "no API key is configured: listening on {here} alone instead of {}; auth.keys makes that safe",
            self.listen
        );
        (here, Some(note))
    }

    /// Whether whoever is on this machine may do everything without a key.
    pub fn trusts_this_machine(&self, has_keys: bool) -> bool {
        !has_keys && self.file.auth.keys.is_empty() && self.profile == Profile::Callreel
    }

    /// Every value with its source, by its place; secrets are `SET`.
    pub fn settings(&self) -> Vec<Setting> {
        let mut document = serde_json::to_value(&self.file).unwrap_or_default();
        let mut found = Vec::new();
        if let Value::Object(fields) = &mut document {
            fields.remove("storage");
            fields.remove("listen_port");
            fields.insert("profile".into(), self.profile.as_str().into());
            fields.insert("listen".into(), self.listen.to_string().into());
            fields.insert("file_path".into(), self.base.name.to_string().into());
            let formats: Vec<&str> = self.base.formats.iter().map(|format| format.as_str()).collect();
            fields.insert("file_type".into(), formats.join(",").into());
            let out = self.file.out.clone().unwrap_or_else(|| self.base.out.display().to_string());
            fields.insert("out".into(), out.into());
        }
        leaves("", &document, &mut found);
        let mut settings: Vec<Setting> = found
            .into_iter()
            .map(|(key, value)| {
                let source = match key.as_str() {
                    "listen" if self.sources.of("listen") == Source::Default => self.sources.of("listen_port"),
                    _ => self.sources.of(&key),
                };
                Setting { key, value, source }
            })
            .collect();
        let mut stored = Vec::new();
        leaves("storage", &serde_json::to_value(&self.base.store).unwrap_or_default(), &mut stored);
        settings.extend(stored.into_iter().map(|(key, value)| {
            let source = match self.sources.of(&key) {
                Source::Default => self.store_source.clone(),
                known => known,
            };
            Setting { key, value, source }
        }));
        for setting in &mut settings {
            if let Value::String(text) = &mut setting.value {
                *text = without_secrets(text);
            }
        }
        settings.sort_by(|a, b| a.key.cmp(&b.key));
        settings
    }

    /// Who is told what happens.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] for events that there are not, and addresses that make no sense or are forbidden.
    pub fn notify(&self) -> Result<NotifyConfig, ConfigError> {
        let mut endpoints = Vec::new();
        for (index, told) in self.file.webhooks.endpoints.iter().enumerate() {
            let name = told.name.clone().unwrap_or_else(|| format!("webhook-{}", index + 1));
            let place = format!("webhooks.endpoints[{index}].events");
            let events = told.events.iter().map(|word| word.parse::<EventKind>());
            let events = events.collect::<Result<Vec<_>, _>>().map_err(|why| self.sources.invalid(&place, why))?;
            let format = match told.format {
                WebhookFormat::Callreel => Format::Callreel,
                WebhookFormat::EgressEnded => Format::EgressEnded,
            };
            endpoints.push(Endpoint { secret: told.secret.clone(), format, events, ..Endpoint::new(name, &told.url) });
        }
        if let Some(url) = &self.file.egress_webhook_url {
            endpoints.push(Endpoint { format: Format::EgressEnded, ..Endpoint::new("egress-webhook", url) });
        }
        let allow_private = self.file.webhooks.allow_private.unwrap_or(self.file.egress_webhook_url.is_some());
        let config = NotifyConfig { endpoints, allow_private, ..NotifyConfig::default() };
        config.validate().map_err(|error| self.sources.invalid("webhooks", error))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |place: &str, why: &str| Err(self.sources.invalid(place, why));
        let file = &self.file;
        if file.tls.cert.is_some() != file.tls.key.is_some() {
            return invalid("tls", "a certificate and its key belong together");
        }
        let mut names = std::collections::BTreeSet::new();
        for (index, key) in file.auth.keys.iter().enumerate() {
            if key.key.expose().len() < 16 {
                return invalid(&format!("auth.keys[{index}].key"), "a key has 16 characters or more");
            }
            if key.scopes.is_empty() {
                return invalid(&format!("auth.keys[{index}].scopes"), "a key that may do nothing is none");
            }
            if key.name.is_empty() || !names.insert(&key.name) {
                return invalid(&format!("auth.keys[{index}].name"), "each key has a name of its own");
            }
        }
        if file.auth.playback_secret.as_ref().is_some_and(|secret| secret.expose().len() < 16) {
            return invalid("auth.playback_secret", "a secret has 16 characters or more");
        }
        let urls = file
            .webhooks
            .endpoints
            .iter()
            .enumerate()
            .map(|(index, endpoint)| (format!("webhooks.endpoints[{index}].url"), Some(endpoint.url.as_str())));
        let urls = urls.chain([
            ("egress_webhook_url".to_owned(), file.egress_webhook_url.as_deref()),
            ("downloads.public_url".to_owned(), file.downloads.public_url.as_deref()),
        ]);
        for (place, url) in urls {
            if url.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
                return invalid(&place, "an address begins with https:// or http://");
            }
        }
        self.notify()?;
        let limits = &file.limits;
        for (place, value) in [
            ("limits.connections", limits.connections),
            ("limits.body", limits.body),
            ("limits.webhook_body", limits.webhook_body),
            ("limits.burst", limits.burst),
            ("limits.webhook_queue", limits.webhook_queue),
        ] {
            if value == 0 {
                return invalid(place, "nothing would ever be let in");
            }
        }
        if !(limits.rate.is_finite() && limits.rate > 0.0) {
            return invalid("limits.rate", "nothing would ever be let in");
        }
        if limits.cpu_percent == 0 || limits.cpu_percent > 100 {
            return invalid("limits.cpu_percent", "a share is between 1 and 100");
        }
        if file.retention.days.is_some_and(|days| days > LONGEST_RETENTION) {
            return invalid("retention.days", "more than a hundred years; for ever is without it");
        }
        for (place, time) in [("limits.request_time", limits.request_time), ("retention.every", file.retention.every)] {
            if time.0.is_zero() {
                return invalid(place, "takes longer than no time");
            }
        }
        Ok(())
    }
}

/// The most days for which recordings are kept, unless it is for ever.
pub const LONGEST_RETENTION: u32 = 36_500;

/// An address without what may be a secret in it: a password, and parameters. Other texts stay as they are.
fn without_secrets(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?SET"));
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match host.rsplit_once('@') {
        Some((who, host)) => {
            let who = who.split(':').next().unwrap_or_default();
            format!("{scheme}://{who}:SET@{host}{path}{query}")
        }
        None => format!("{scheme}://{host}{path}{query}"),
    }
}

/// Lets the environment fill the store that the file has begun to configure, and gives the variable that is used up by that.
fn overlay_store(
    layers: &mut Layers,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<&'static str>, ConfigError> {
    let begun: Vec<_> = STORES.iter().filter(|(section, ..)| layers.document["storage"][section].is_object()).collect();
    let [(section, bucket, names)] = begun[..] else { return Ok(None) };
    let others = STORES.iter().map(|(_, bucket, _)| *bucket).chain(OTHER_BUCKETS.iter().copied());
    if let Some(other) = others.filter(|name| name != bucket).find(|name| get(name).is_some()) {
        let why = format!("Only one storage provider can be configured; {other} is set beside storage.{section}");
        return Err(ConfigError::Invalid { key: "storage", why });
    }
    for (name, field) in *names {
        if let Some(value) = get(name) {
            layers.set(&format!("storage.{section}.{field}"), &value, Kind::Text, Source::Env(name))?;
        }
    }
    Ok(Some(bucket))
}

fn chosen_by(get: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    let buckets = STORES.iter().map(|(_, bucket, _)| *bucket);
    buckets.chain(OTHER_BUCKETS.iter().copied()).find(|name| get(name).is_some())
}

fn refuse_unbuilt(get: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let asked =
        get("TAVUS_ENABLE_RECORDING").is_some_and(|word| !["false", "0", "no", "off"].contains(&&*word.to_lowercase()));
    if asked {
        return Err(ConfigError::NotAvailable { what: "TAVUS_ENABLE_RECORDING: recording at Tavus".into() });
    }
    Ok(())
}

/// Which system's defaults hold: as said, or by what only it has.
fn profile(
    file: &mut ConfigFile,
    sources: &mut Sources,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Profile, ConfigError> {
    if let Some(profile) = file.profile {
        fill_in(file, sources, profile);
        return Ok(profile);
    }
    let of_variable = |name: &'static str, is_there: bool, profile| is_there.then_some((name, profile));
    let told: Vec<(&str, Profile)> = [
        of_variable("webhook_api_key", file.webhook_api_key.is_some(), Profile::AutoRecorder),
        of_variable(
            "CLOUDFLARE_R2_STORAGE_BUCKET_NAME",
            get("CLOUDFLARE_R2_STORAGE_BUCKET_NAME").is_some(),
            Profile::Rooms,
        ),
        of_variable("egress_webhook_url", file.egress_webhook_url.is_some(), Profile::Workflow),
    ]
    .into_iter()
    .flatten()
    .collect();
    let profile = match told[..] {
        [] => Profile::Callreel,
        [(_, profile)] => profile,
        [(one, _), (other, _), ..] => {
            let why = format!(
                "{one} and {other} belong to systems with different defaults; say profile: callreel, auto-recorder, rooms or workflow"
            );
            return Err(ConfigError::Invalid { key: "profile", why });
        }
    };
    if let [(name, _)] = told[..] {
        let source = if name.starts_with("CLOUDFLARE") {
            Source::Env("CLOUDFLARE_R2_STORAGE_BUCKET_NAME")
        } else {
            sources.of(name)
        };
        sources.note("profile", source);
    }
    fill_in(file, sources, profile);
    Ok(profile)
}

/// The defaults that a system has of its own.
fn fill_in(file: &mut ConfigFile, sources: &mut Sources, profile: Profile) {
    if profile == Profile::AutoRecorder {
        for (place, value, default) in
            [("layout", &mut file.layout, "grid-16"), ("file_type", &mut file.file_type, "MP4")]
        {
            if value.is_none() {
                *value = Some(default.to_owned());
                sources.note(place, Source::Profile(profile));
            }
        }
    }
    if file.webhooks.write_room_metadata.is_none() {
        file.webhooks.write_room_metadata = Some(profile == Profile::Workflow);
        sources.note("webhooks.write_room_metadata", Source::Profile(profile));
    }
}

fn store(
    file: &ConfigFile,
    sources: &Sources,
    profile: Profile,
    get: &dyn Fn(&str) -> Option<String>,
) -> Result<Destination, ConfigError> {
    let to = destination(file.out.as_deref(), file, get).map_err(|error| match error {
        ConfigError::Invalid { key: key @ "out", why } => sources.invalid(key, why),
        other => other,
    })?;
    if to.store.is_none() && file.out.is_none() && profile == Profile::AutoRecorder {
        return Err(ConfigError::Invalid { key: "storage", why: "No storage provider configured".into() });
    }
    let bucket = match &to.store {
        Some(StoreConfig::S3(s3)) => Some(&s3.bucket),
        Some(StoreConfig::Azure(azure)) => Some(&azure.container),
        Some(StoreConfig::Gcs(gcs)) => Some(&gcs.bucket),
        Some(StoreConfig::Oss(oss)) => Some(&oss.bucket),
        Some(StoreConfig::Local(_)) | None => None,
    };
    if bucket.is_some_and(String::is_empty) {
        return Err(ConfigError::Invalid { key: "storage", why: "the bucket has no name".into() });
    }
    Ok(to)
}

fn livekit_key(file: &ConfigFile) -> Result<(String, Secret), ConfigError> {
    let missing = |key, hint| ConfigError::Missing { key, hint };
    let key = file.livekit_api_key.clone();
    let key = key.ok_or_else(|| missing("livekit_api_key", "LIVEKIT_API_KEY, or the configuration file"))?;
    let secret = file.livekit_api_secret.clone();
    let secret =
        secret.ok_or_else(|| missing("livekit_api_secret", "LIVEKIT_API_SECRET, or the configuration file"))?;
    Ok((key, secret))
}

/// The keys that webhooks may be signed with: the one that is named for them, else the LiveKit server's own.
fn webhook_keys(file: &ConfigFile, livekit: &(String, Secret)) -> Vec<(String, Secret)> {
    match &file.webhook_api_key {
        Some(key) => {
            let secret = file.webhook_api_secret.clone().unwrap_or_else(|| livekit.1.clone());
            vec![(key.clone(), secret)]
        }
        None => vec![livekit.clone()],
    }
}

fn listen(file: &ConfigFile, sources: &Sources, profile: Profile) -> Result<SocketAddr, ConfigError> {
    let rank = |source: &Source| match source {
        Source::Default => 0,
        Source::Profile(_) => 1,
        Source::File(_) => 2,
        Source::Env(_) => 3,
        Source::Flag(_) => 4,
    };
    let port = file.listen_port.as_ref().map(|text| {
        text.0.parse::<u16>().map_err(|_| sources.invalid("listen_port", format!("{:?} is no port", text.0)))
    });
    let port = port.transpose()?;
    let address = file.listen.as_deref().map(|text| address(text).map_err(|why| sources.invalid("listen", why)));
    let address = address.transpose()?;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    match (address, port) {
        (None, Some(port)) => Ok(SocketAddr::new(any, port)),
        (Some(address), None) => Ok(address),
        (Some(address), Some(port)) => {
            let (of_address, of_port) = (sources.of("listen"), sources.of("listen_port"));
            match rank(&of_address).cmp(&rank(&of_port)) {
                std::cmp::Ordering::Less => Ok(SocketAddr::new(any, port)),
                std::cmp::Ordering::Equal if address.port() != port => {
                    Err(sources.invalid("listen", format!("says port {}, and listen_port {port}", address.port())))
                }
                std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Ok(address),
            }
        }
        (None, None) => {
            let is_open = !file.auth.keys.is_empty() || profile != Profile::Callreel;
            let host = if is_open { any } else { IpAddr::V4(Ipv4Addr::LOCALHOST) };
            Ok(SocketAddr::new(host, DEFAULT_PORT))
        }
    }
}

/// Reads `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`, `:8080` or `8080`.
fn address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = match host {
        "" => Some(any),
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => None,
    };
    match (host, port.parse()) {
        (Some(host), Ok(port)) => Ok(SocketAddr::new(host, port)),
        _ => Err(format!("{text:?} is no address; write 127.0.0.1:8080, [::1]:8080 or :8080")),
    }
}

fn base(
    file: &ConfigFile,
    sources: &Sources,
    to: &Destination,
    livekit: &(String, Secret),
) -> Result<Config, ConfigError> {
    let hosts = file.livekit_host.as_deref().unwrap_or_default();
    let mut urls = hosts.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned);
    let hint = "LIVEKIT_URL or LIVEKIT_HOST, or the configuration file";
    let url = urls.next().ok_or(ConfigError::Missing { key: "livekit_host", hint })?;
    let credentials = Credentials::ApiKey { key: livekit.0.clone(), secret: livekit.1.expose().to_owned() };
    let mut config = Config::new(url, credentials, "");
    config.fallback_urls = urls.collect();
    // What a journal says of it has to be found again, from wherever the process is started.
    config.out = std::path::absolute(&to.dir).unwrap_or_else(|_| to.dir.clone());
    config.store.clone_from(&to.store);
    let made = &file.recording;
    config.spool.clone_from(&made.spool);
    config.keep_spool = made.keep_spool.0;
    config.upload.tail_every = Some(made.tail_every.0).filter(|every| !every.is_zero());
    config.upload.patience = made.upload_patience.0;
    config.outputs.clone_from(&made.outputs);
    config.pictures.clone_from(&made.pictures);
    config.names_people = made.name_people;
    config.quality = Quality { depth: made.pcm_bits, mp3_bitrate: made.mp3_bitrate, mp4_codec: made.mp4_codec };
    config.life.pause = made.pause;
    config.life.stop.max_duration = made.max_duration.map(|time| time.0);
    config.life.stop.departure_timeout = made.departure_timeout.0;
    config.encryption = recipients(&[], None, file)?;
    config.e2ee = file.e2ee.clone().unwrap_or_default().keys()?;
    if let Some(name) = file.file_path.as_deref().or(to.name) {
        config.name = NameTemplate::parse(name).map_err(|error| sources.invalid("file_path", error))?;
    }
    config.engine = file.engine.engine.into();
    let picture = Picture {
        layout: file.layout.clone(),
        page: file.engine.layout_page.clone(),
        preset: file.engine.picture.into(),
    };
    let format = file.file_type.as_deref();
    let video = file.audio_only.map(|audio_only| !audio_only);
    set_form(&mut config, format, video, picture).map_err(|error| match error {
        ConfigError::Invalid { why, .. } => sources.invalid("file_type", why),
        other => other,
    })?;
    if file.engine.fallback == FallbackWord::Egress && !config.uses_egress() {
        config.fallback = Some(Fallback { after: file.engine.fallback_after.0 });
    }
    let trial = Config { room: "room".into(), ..config.clone() };
    trial.validate().map_err(|error| match error {
        ConfigError::Invalid { key: "url", why } => sources.invalid("livekit_host", why),
        ConfigError::Invalid { key: key @ "engine", why } => sources.invalid(key, why),
        other => other,
    })?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::egress::FileFormat;

    const SERVER: &[(&str, &str)] =
        &[("LIVEKIT_URL", "ws://127.0.0.1:7880"), ("LIVEKIT_API_KEY", "k"), ("LIVEKIT_API_SECRET", "hunter2")];

    fn load(yaml: &str, env: &[(&str, &str)], flags: ServeFlags) -> Result<ServeConfig, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        std::fs::write(&path, yaml).unwrap();
        let path = path.to_str().unwrap();
        let lookup = |name: &str| match name {
            "CONFIG_FILE" => Some(path.to_owned()),
            _ => env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
        };
        ServeConfig::load(&flags, &lookup)
    }

    fn with(env: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
        [SERVER, env].concat()
    }

    fn source(config: &ServeConfig, key: &str) -> String {
        let settings = config.settings();
        let Some(setting) = settings.iter().find(|setting| setting.key == key) else { return "none".into() };
        format!("{} ({})", setting.value, setting.source)
    }

    const AUTO_RECORDER: &str = r#"
livekit_host: "http://livekit-server.svc.cluster.local:7880"
livekit_api_key: "k"
livekit_api_secret: "${SECRET}"
webhook_api_key: "w"
listen_port: "8081"
layout: "grid-16"            # speaker-light, speaker-dark, custom
file_type: "MP4"             # WEBM, OGG
file_path: "recordings/{room_name}-{time}"     # e.g. recordings/my-room-20240315-143022
storage:
  s3: {bucket: b, region: us-east-1, access_key: k, secret: "${SECRET}", session_token: t, endpoint: e,
       max_retries: 3, max_retry_delay: "5s", min_retry_delay: "500ms", aws_log_level: "LogOff"}
"#;

    #[test]
    fn the_auto_recorders_file_starts_the_service() {
        let config = load(AUTO_RECORDER, &[("SECRET", "hunter2")], ServeFlags::default()).unwrap();
        assert_eq!((config.profile, config.records_others), (Profile::AutoRecorder, true));
        assert_eq!(config.address(false), ("0.0.0.0:8081".parse().unwrap(), None));
        assert_eq!(config.webhook_keys, [("w".to_owned(), Secret::new("hunter2"))]);
        assert!(config.base.uses_egress() && config.base.format == FileFormat::Mp4);
        assert_eq!(config.base.picture.as_ref().unwrap().layout.as_deref(), Some("grid-16"));
        assert!(source(&config, "livekit_api_secret").starts_with("\"SET\" (file "));
        assert!(source(&config, "storage.s3.bucket").starts_with("\"b\" (file "));
        let printed = format!("{:?}", config.settings());
        assert!(!printed.contains("hunter2") && !format!("{config:?}").contains("hunter2"), "{printed}");
    }

    #[test]
    fn the_auto_recorders_environment_starts_the_service() {
        let names = [
            ("LIVEKIT_HOST", "http://x:7880"),
            ("LIVEKIT_API_KEY", "k"),
            ("LIVEKIT_API_SECRET", "s"),
            ("WEBHOOK_API_KEY", "w"),
            ("AZURE_STORAGE_ACCOUNT", "a"),
            ("AZURE_STORAGE_KEY", "k"),
            ("AZURE_CONTAINER_NAME", "c"),
        ];
        let config = load("", &names, ServeFlags::default()).unwrap();
        assert_eq!(config.listen, "0.0.0.0:8080".parse().unwrap());
        assert_eq!(config.base.name.to_string(), "recordings/{room_name}-{time}.{ext}");
        assert_eq!(source(&config, "layout"), "\"grid-16\" (default of auto-recorder)");
        assert_eq!(source(&config, "file_type"), "\"mp4\" (default of auto-recorder)");
        assert_eq!(source(&config, "storage.azure.container"), "\"c\" (environment AZURE_CONTAINER_NAME)");
        let ogg = load("", &[&names[..], &[("FILE_TYPE", "OGG"), ("PORT", "9000")]].concat(), ServeFlags::default());
        let ogg = ogg.unwrap();
        assert!(!ogg.base.uses_egress() && ogg.base.format == FileFormat::Ogg);
        assert_eq!((source(&ogg, "listen"), ogg.listen.port()), ("\"0.0.0.0:9000\" (environment PORT)".into(), 9000));
        let error = load("", &names[..4], ServeFlags::default()).unwrap_err().to_string();
        assert!(error.contains("No storage provider configured"), "{error}");
        let two = [&names[..], &[("GCP_BUCKET", "g")]].concat();
        let error = load("", &two, ServeFlags::default()).unwrap_err().to_string();
        assert!(error.contains("Only one storage provider can be configured"), "{error}");
    }

    #[test]
    fn the_environment_fills_in_what_the_file_has_begun() {
        let env = [("SECRET", "x"), ("S3_SECRET", "of the environment"), ("S3_BUCKET", "other")];
        let config = load(AUTO_RECORDER, &env, ServeFlags::default()).unwrap();
        let Some(StoreConfig::S3(s3)) = &config.base.store else { panic!("{:?}", config.base.store) };
        assert_eq!((s3.bucket.as_str(), s3.secret.as_ref().unwrap().expose()), ("other", "of the environment"));
        assert_eq!((s3.access_key.as_deref(), s3.retry.max_retries), (Some("k"), 3));
        assert_eq!(source(&config, "storage.s3.bucket"), "\"other\" (environment S3_BUCKET)");
        let error = load(AUTO_RECORDER, &[("SECRET", "x"), ("GCP_BUCKET", "g")], ServeFlags::default()).unwrap_err();
        assert!(error.to_string().contains("Only one storage provider can be configured"), "{error}");
    }

    #[test]
    fn other_systems_have_their_own_defaults() {
        let r2 = with(&[
            ("CLOUDFLARE_R2_ACCESS_KEY_ID", "k"),
            ("CLOUDFLARE_R2_SECRET_ACCESS_KEY", "s"),
            ("CLOUDFLARE_R2_STORAGE_BUCKET_NAME", "b"),
            ("CLOUDFLARE_R2_ENDPOINT_URL", "https://e"),
            ("CLOUDFLARE_R2_CUSTOM_DOMAIN", "files.example"),
        ]);
        let rooms = load("", &r2, ServeFlags::default()).unwrap();
        assert_eq!((rooms.profile, rooms.records_others, rooms.base.uses_egress()), (Profile::Rooms, false, false));
        assert_eq!(rooms.file.downloads.custom_domain.as_deref(), Some("files.example"));
        let workflow = with(&[("S3_BUCKET", "b"), ("EGRESS_WEBHOOK_URL", "http://n8n:5678/hook")]);
        let workflow = load("", &workflow, ServeFlags::default()).unwrap();
        assert_eq!((workflow.profile, workflow.records_others), (Profile::Workflow, false));
        assert_eq!(workflow.base.name.to_string(), "recordings/{job_id}.{ext}");
        assert_eq!(workflow.file.webhooks.write_room_metadata, Some(true));
        let told = workflow.notify().unwrap();
        assert!(told.allow_private && told.endpoints[0].format == Format::EgressEnded);
        let error = load("", &[&r2[..], &[("EGRESS_WEBHOOK_URL", "http://x")]].concat(), ServeFlags::default());
        assert!(error.unwrap_err().to_string().contains("say profile"));
    }

    #[test]
    fn flags_go_before_the_environment_and_that_before_the_file() {
        let flags = ServeFlags { listen: Some(":1".into()), out: Some("calls".into()), ..ServeFlags::default() };
        let yaml = "listen: 127.0.0.1:3\nlivekit_host: ws://file\ncatalog: {url: 'postgres://u:hunter2@db/c'}\n";
        let env = with(&[("CALLREEL_LISTEN", "127.0.0.1:2"), ("CALLREEL_OUTPUTS", "mix, tracks")]);
        let config = load(yaml, &env, flags).unwrap();
        assert_eq!(source(&config, "listen"), "\"0.0.0.0:1\" (flag --listen)");
        assert_eq!(source(&config, "livekit_host"), "\"ws://127.0.0.1:7880\" (environment LIVEKIT_URL)");
        assert_eq!(config.base.outputs.len(), 2);
        assert!(source(&config, "catalog.url").starts_with("\"postgres://u:SET@db/c\" (file "));
        assert_eq!(source(&config, "limits.burst"), "200 (default)");
        assert_eq!(
            load("", SERVER, ServeFlags::default()).unwrap().catalog.expose(),
            "sqlite://./recordings/catalog.sqlite"
        );
    }

    #[test]
    fn without_keys_it_listens_here_alone() {
        let config = load("", &with(&[("CALLREEL_LISTEN", "0.0.0.0:9")]), ServeFlags::default()).unwrap();
        let (here, note) = config.address(false);
        assert_eq!(here, "127.0.0.1:9".parse().unwrap());
        assert!(note.unwrap().contains("no API key"));
        assert_eq!(config.address(true), ("0.0.0.0:9".parse().unwrap(), None));
        assert!(config.trusts_this_machine(false) && !config.trusts_this_machine(true));
        assert_eq!(load("", SERVER, ServeFlags::default()).unwrap().listen, "127.0.0.1:8080".parse().unwrap());
        let yaml = "auth: {keys: [{name: app, key: 0123456789abcdef}]}";
        let config = load(yaml, SERVER, ServeFlags::default()).unwrap();
        assert_eq!(config.address(false), ("0.0.0.0:8080".parse().unwrap(), None));
        assert!(!config.trusts_this_machine(false));
    }

    #[test]
    fn what_makes_no_sense_is_named_with_its_source() {
        let error = |yaml: &str, env: &[(&'static str, &'static str)]| {
            load(yaml, &with(env), ServeFlags::default()).unwrap_err().to_string()
        };
        for (yaml, env, words) in [
            ("lisen: x", &[][..], &["config", "lisen"][..]),
            ("limits: {calls: many}", &[], &["config.yaml", "line 1"]),
            ("", &[("CALLREEL_ENGINE", "gstreamer")], &["engine.engine", "gstreamer", "environment CALLREEL_ENGINE"]),
            ("", &[("CALLREEL_MAX_CALLS", "many")], &["limits.calls", "environment CALLREEL_MAX_CALLS"]),
            ("", &[("CALLREEL_DRAIN", "soon")], &["drain.upload", "environment CALLREEL_DRAIN"]),
            ("", &[("PORT", "99999")], &["listen_port", "environment PORT"]),
            ("", &[("CALLREEL_LISTEN", "here")], &["listen", "environment CALLREEL_LISTEN"]),
            ("listen: ':1'\nlisten_port: 2", &[], &["listen", "port 1", "config.yaml"]),
            ("", &[("FILE_TYPE", "avi")], &["file_type", "avi", "environment FILE_TYPE"]),
            ("", &[("FILE_TYPE", "webm"), ("RECORDING_AUDIO_ONLY", "false")], &["webm", "not available"]),
            ("tls: {cert: a.pem}", &[], &["tls", "config.yaml"]),
            ("auth: {keys: [{name: a, key: hunter2}]}", &[], &["auth.keys[0].key", "16 characters"]),
            ("webhooks: {endpoints: [{url: 'ftp://x'}]}", &[], &["webhooks.endpoints[0].url", "config.yaml"]),
            ("webhooks: {endpoints: [{url: 'http://127.0.0.1'}]}", &[], &["webhooks", "webhook-1", "config.yaml"]),
            ("webhooks: {endpoints: [{url: 'http://x', events: [nothing]}]}", &[], &["webhooks.endpoints[0].events"]),
            ("limits: {rate: 0}", &[], &["limits.rate", "config.yaml"]),
            ("rules: [{room_regex: '('}]", &[], &["rules[0].room_regex"]),
            ("storage: {s3: {region: r}}", &[], &["storage", "bucket"]),
            ("", &[("TAVUS_ENABLE_RECORDING", "true")], &["Tavus", "not available yet"]),
        ] {
            let told = error(yaml, env);
            assert!(words.iter().all(|word| told.contains(word)), "{yaml} {env:?}: {told}");
            assert!(!told.contains("hunter2"), "{told}");
        }
        assert!(load("", &SERVER[1..], ServeFlags::default()).unwrap_err().to_string().contains("livekit_host"));
        assert!(load("", &SERVER[..2], ServeFlags::default()).unwrap_err().to_string().contains("LIVEKIT_API_SECRET"));
        let url = load("", &[&[("LIVEKIT_HOST", "ftp://x")], &SERVER[1..]].concat(), ServeFlags::default());
        let told = url.unwrap_err().to_string();
        assert!(told.contains("livekit_host") && told.contains("environment LIVEKIT_HOST"), "{told}");
        assert!(load("", &with(&[("TAVUS_ENABLE_RECORDING", "false")]), ServeFlags::default()).is_ok());
    }

    #[test]
    fn engines_and_fallbacks() {
        let env = with(&[("S3_BUCKET", "b"), ("CALLREEL_FALLBACK", "egress"), ("CALLREEL_FALLBACK_AFTER", "7s")]);
        let config = load("", &env, ServeFlags::default()).unwrap();
        assert_eq!(config.base.fallback.map(|fallback| fallback.after.as_secs()), Some(7));
        assert_eq!(config.base.engine, Engine::Auto);
        let local = load("", &with(&[("CALLREEL_ENGINE", "egress")]), ServeFlags::default()).unwrap_err().to_string();
        assert!(local.contains("engine") && local.contains("environment CALLREEL_ENGINE"), "{local}");
    }

    #[test]
    fn addresses_are_shown_without_what_may_be_secret() {
        for (text, shown) in [
            ("https://u:hunter2@n8n/hook/1?token=hunter2", "https://u:SET@n8n/hook/1?SET"),
            ("http://n8n:5678/hook", "http://n8n:5678/hook"),
            ("postgres://u:SET@db/c", "postgres://u:SET@db/c"),
            ("recordings/{room_name}?", "recordings/{room_name}?"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
        let env = with(&[("S3_BUCKET", "b"), ("EGRESS_WEBHOOK_URL", "http://u:hunter2@n8n?t=hunter2")]);
        let config = load("", &env, ServeFlags::default()).unwrap();
        assert_eq!(source(&config, "egress_webhook_url"), "\"http://u:SET@n8n?SET\" (environment EGRESS_WEBHOOK_URL)");
        let to_store = load("", SERVER, ServeFlags { out: Some("s3://b/p".into()), ..ServeFlags::default() }).unwrap();
        assert_eq!(source(&to_store, "out"), "\"s3://b/p\" (flag --out)");
        assert_eq!(source(&to_store, "storage.s3.bucket"), "\"b\" (flag --out)");
    }

    #[test]
    fn the_schema_names_every_key() {
        let schema = serde_json::to_value(schemars::schema_for!(ConfigFile)).unwrap();
        let known = serde_json::to_value(ConfigFile::default()).unwrap();
        for key in known.as_object().unwrap().keys() {
            assert!(schema["properties"][key].is_object(), "{key}");
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
