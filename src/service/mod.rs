//! `callreel serve`: LiveKit's webhook in, recordings listed, played and deleted.
//!
//! | file | what it is for |
//! |---|---|
//! | `rules` | which rooms are recorded, and how (pure) |
//! | `calls` | the supervisor: who is recorded now |
//! | `http` | what is asked over HTTP, and what is answered |
//! | `links` | addresses at which people get recordings, and their signatures (pure) |
//! | `metrics` | what Prometheus is told |

pub mod calls;
pub mod http;
pub mod links;
pub mod metrics;
pub mod rules;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::catalog::{Catalog, CatalogError};
use crate::clock;
use crate::config::{ConfigError, ServeConfig};
use crate::notify::{Notifier, NotifyError};
use crate::store::{LocalConfig, Store, StoreConfig, StoreError};

use calls::Calls;
use http::{App, TlsError, WebhookQueue};
use links::Links;
use metrics::Metrics;
use rules::Rules;

/// Why the service does not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate.
    #[error("tls: {0}")]
    Tls(#[from] TlsError),
    /// Receivers of webhooks.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// The address.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// A part of it ended by itself, which none does.
    #[error("{part} ended by itself")]
    Broken {
        /// Which.
        part: &'static str,
    },
    /// A folder cannot be made.
    #[error("{path}: {source}")]
    Folder {
        /// The folder.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The service, ready to be run.
pub struct Service {
    config: Arc<ServeConfig>,
    rules: Rules,
    calls: Calls,
    app: App,
    queue: WebhookQueue,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Service {
    /// Opens the catalogue and the store, and listens. Nothing is answered before [`run`](Self::run).
    ///
    /// # Errors
    /// [`ServiceError`]
    pub async fn open(config: ServeConfig) -> Result<Self, ServiceError> {
        let config = Arc::new(config);
        let tls = http::acceptor(&config.file.tls)?;
        make_folder(&config)?;
        let catalog = Catalog::open(config.catalog.expose()).await?;
        let local = || StoreConfig::Local(LocalConfig { dir: config.base.out.clone() });
        let store = Store::open(&config.base.store.clone().unwrap_or_else(local)).await?;
        let rules = Rules::new(config.rules()?);
        let metrics = Metrics::new();
        let has_keys = catalog.has_keys().await?;
        let (address, note) = config.address(has_keys);
        if let Some(note) = note {
            tracing::warn!("{note}");
        } else if config.trusts_this_machine(has_keys) {
            tracing::warn!("no API key is configured: whoever is on this machine may do everything");
        }
        let downloads = Downloads {
            links: Links::new(&config),
            store: store.clone(),
            catalog: catalog.clone(),
            valid: config.file.downloads.valid.0,
        };
        let notifier = Notifier::spawn(catalog.clone(), config.notify()?, Arc::new(downloads))?;
        let calls = Calls::new(
            config.clone(),
            rules.clone(),
            catalog.clone(),
            store.clone(),
            notifier.clone(),
            metrics.clone(),
        );
        let (app, queue) = App::new(config.clone(), catalog, calls.clone(), store, notifier, metrics, has_keys);
        let failed = |source| ServiceError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { config, rules, calls, app, queue, listener, address, tls })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The rules in force, to be replaced.
    pub fn rules(&self) -> Rules {
        self.rules.clone()
    }

    /// Answers until `ending` says so, then lets recordings come to their end.
    ///
    /// # Errors
    /// [`ServiceError::Broken`] where a part of it ended by itself. Recordings came to their end all the same.
    pub async fn run(self, mut ending: watch::Receiver<bool>) -> Result<(), ServiceError> {
        let Self { config, calls, app, queue, listener, address, tls, .. } = self;
        let scheme = if tls.is_some() { "https" } else { "http" };
        tracing::info!(
            profile = config.profile.as_str(),
            rules = config.file.rules.len(),
            "listening on {scheme}://{address}"
        );
        let (close, closing) = watch::channel(false);
        let (router, limits) = (http::router(app.clone()), config.file.limits.clone());
        let mut server = tokio::spawn(async move { http::serve(listener, tls, router, &limits, closing).await });
        let mut handing = tokio::spawn(queue.run());
        let supervisor = calls.clone();
        let mut supervising = tokio::spawn(async move { supervisor.run().await });
        // A service of which a part is gone is better begun anew than left half alive.
        let broken = tokio::select! {
            // A sender that is gone says so, too.
            _ = ending.wait_for(|ends| *ends) => None,
            _ = &mut server => Some("the server"),
            _ = &mut handing => Some("who hands on webhooks"),
            _ = &mut supervising => Some("the supervisor"),
        };
        if let Some(part) = broken {
            tracing::error!(part, "a part of the service ended by itself: the service ends");
        }
        // Whoever asks meanwhile is answered: the orchestrator sees that the service ends, and webhooks still count.
        app.end();
        calls.drain(config.file.drain.wait.0, config.file.drain.upload.0).await;
        close.send_replace(true);
        if broken != Some("the server")
            && let Err(error) = server.await
        {
            tracing::error!(%error, "the server did not end as it should");
        }
        handing.abort();
        supervising.abort();
        tracing::info!("ended");
        broken.map_or(Ok(()), |part| Err(ServiceError::Broken { part }))
    }
}

/// Where receivers of webhooks fetch recordings.
struct Downloads {
    links: Links,
    store: Store,
    catalog: Catalog,
    valid: Duration,
}

#[async_trait]
impl crate::notify::Links for Downloads {
    /// On the bucket's own domain, else here, else signed by the store.
    async fn download_url(&self, recording_id: &str, key: &str) -> Result<Option<String>, String> {
        if let Some(public) = self.links.public_key(key) {
            return Ok(Some(public));
        }
        let row = self.catalog.get(recording_id).await.map_err(|error| error.to_string())?;
        let Some(row) = row else { return Ok(None) };
        let location = self.store.location(key);
        let index = row.outputs.iter().position(|output| output.location == location);
        let expires = clock::wall() + self.valid;
        let here = index.and_then(|index| self.links.signed(recording_id, index, expires, None));
        if here.is_some() {
            return Ok(here);
        }
        match self.store.presign_get(key, self.valid).await {
            Ok(url) => Ok(Some(url)),
            Err(error) if error.is_retryable() => Err(error.to_string()),
            Err(error) => {
                tracing::debug!(%error, recording_id, "its store gives no address");
                Ok(None)
            }
        }
    }
}

/// Makes the folder for recordings, where the catalogue is too unless it is said to be elsewhere.
fn make_folder(config: &ServeConfig) -> Result<(), ServiceError> {
    let dir = &config.base.out;
    std::fs::create_dir_all(dir).map_err(|source| ServiceError::Folder { path: dir.display().to_string(), source })
}
