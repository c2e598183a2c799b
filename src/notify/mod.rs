//! Outgoing webhooks: receivers are told what happens to recordings, at least once each, for as long as it takes.
//!
//! What is to be told is stored with the change it tells of ([`Catalog::update`] and its kin take what
//! [`Notifier::about`] gives), then sent by a task for each receiver. Attempts that fail are made again, with growing waits
//! that a restart does not forget; what is given up stays on a list and can be sent again.
//!
//! ```no_run
//! use std::sync::Arc;
//! use callreel::catalog::{Catalog, Change, Status};
//! use callreel::notify::{Endpoint, Event, EventKind, NoLinks, Notifier, NotifyConfig};
//!
//! # async fn example(catalog: Catalog) -> Result<(), Box<dyn std::error::Error>> {
//! let endpoints = vec![Endpoint::new("crm", "https://crm.example/hooks/calls")];
//! let config = NotifyConfig { endpoints, ..NotifyConfig::default() };
//! let notifier = Notifier::spawn(catalog.clone(), config, Arc::new(NoLinks))?;
//! let now = callreel::clock::wall();
//! let ready = notifier.about(Event::new(EventKind::Ready, now));
//! catalog.update("R1", &Change::status(Status::Ready), now, ready).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a receiver can rely on
//!
//! * `X-Callreel-Delivery` is the same at each attempt of one delivery, and so is `id` in the body for one event, whatever
//!   happens to this process. What is told twice can be told apart from what happened twice.
//! * `X-Callreel-Signature`, see [`sign`].
//! * The order is not that of what happened; `created_at` in the body is.
//! * An answer of 2xx ends a delivery, 410 gives it up; everything else, redirects too, is tried again.

mod config;
mod event;
mod guard;
mod sign;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::{Client, redirect};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use config::{Endpoint, NotifyConfig, NotifyError};
pub use event::{Event, EventKind, Format, Links, NoLinks};
pub use sign::{SIGNATURE, sign, verify};

use crate::catalog::{Catalog, Notice, Row, Tell};
use crate::room::ensure_crypto_provider;
use guard::Guard;
use worker::{Counters, Worker};

/// How long a connection to a receiver may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection that nobody uses is kept.
const IDLE: Duration = Duration::from_secs(30);

/// What was sent since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Deliveries that were taken.
    pub delivered: u64,
    /// Attempts that failed and will be made again.
    pub failed: u64,
    /// Deliveries that were given up.
    pub dead: u64,
}

/// Tells receivers what happens. Clones share its tasks, which end with the last of them.
#[derive(Clone)]
pub struct Notifier {
    config: Arc<NotifyConfig>,
    counters: Arc<Counters>,
    stop: Arc<watch::Sender<bool>>,
    workers: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Notifier {
    /// Begins to deliver what the catalogue holds for these receivers. Needs a runtime.
    ///
    /// # Errors
    ///
    /// [`NotifyError`], as [`NotifyConfig::validate`].
    pub fn spawn(catalog: Catalog, config: NotifyConfig, links: Arc<dyn Links>) -> Result<Self, NotifyError> {
        config.validate()?;
        ensure_crypto_provider();
        let guard = Guard { allow_private: config.allow_private };
        let client = Client::builder()
            .user_agent(concat!("callreel/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // A proxy would be told a name, and resolve it unguarded.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .dns_resolver(Arc::new(guard))
            .build()
            .map_err(|error| NotifyError::Client(error.to_string()))?;
        let (config, counters) = (Arc::new(config), Arc::new(Counters::default()));
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        for endpoint in &config.endpoints {
            let worker = Worker {
                catalog: catalog.clone(),
                config: Arc::clone(&config),
                endpoint: endpoint.clone(),
                url: endpoint.checked(guard)?,
                client: client.clone(),
                links: Arc::clone(&links),
                counters: Arc::clone(&counters),
            };
            workers.spawn(worker.run(stopped.clone()));
        }
        let workers = Arc::new(tokio::sync::Mutex::new(workers));
        Ok(Self { config, counters, stop: Arc::new(stop), workers })
    }

    /// What is to be stored with a change, for everybody who wants to be told of this event.
    pub fn about(&self, event: Event) -> impl Tell + 'static {
        let config = Arc::clone(&self.config);
        move |row: &Row| notices(&config, &event, row)
    }

    /// The same for several events at once.
    pub fn about_all(&self, events: Vec<Event>) -> impl Tell + 'static {
        let config = Arc::clone(&self.config);
        move |row: &Row| events.iter().flat_map(|event| notices(&config, event, row)).collect()
    }

    /// What was sent since the process began.
    pub fn figures(&self) -> Figures {
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            delivered: count(&self.counters.delivered),
            failed: count(&self.counters.failed),
            dead: count(&self.counters.dead),
        }
    }

    /// Begins nothing more, and waits for the attempts that are under way; none takes longer than the time limit. What is not
    /// delivered then waits in the catalogue for the next process.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let mut workers = self.workers.lock().await;
        while workers.join_next().await.is_some() {}
    }
}

fn notices(config: &NotifyConfig, event: &Event, row: &Row) -> Vec<Notice> {
    let wanting = config.endpoints.iter().filter(|endpoint| endpoint.wants(event.kind));
    let notice = |endpoint: &Endpoint| {
        let (once, body) = (event.once(&row.recording_id), event.body(row));
        Notice::new(&once, event.kind.as_str(), &row.recording_id, &endpoint.name, body, event.at)
    };
    wanting.map(notice).collect()
}
