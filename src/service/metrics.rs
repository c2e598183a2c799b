//! What Prometheus is told. Labels have few values each: no room, no recording, nobody's name.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// One label of a metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label<const N: usize>([(&'static str, String); N]);

impl<const N: usize> EncodeLabelSet for Label<N> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_slice().encode(encoder)
    }
}

/// A gauge of fractions.
pub type Fraction = Gauge<f64, AtomicU64>;

/// All metrics of a service. Clones count for the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    requests: Family<Label<3>, Histogram, fn() -> Histogram>,
    recordings: Family<Label<1>, Gauge>,
    outcomes: Family<Label<1>, Counter>,
    webhooks: Family<Label<2>, Counter>,
    deliveries: Family<Label<1>, Gauge>,
    waiting: Family<Label<1>, Gauge>,
    samples: Family<Label<1>, Counter<f64, AtomicU64>>,
    refused: Family<Label<1>, Counter>,
    /// How far the recording that is furthest behind is from having its bytes in the store.
    pub upload_lag_seconds: Fraction,
    /// Bytes that wait in the spool.
    pub spool_bytes: Gauge,
    /// The largest difference between a track's clock and the recorder's, in parts per million.
    pub skew_ppm: Fraction,
    /// The furthest that a track lies off its place.
    pub alignment_seconds: Fraction,
    /// Whether the service is ending.
    pub draining: Gauge,
    /// From a recording's being asked for to media that comes.
    pub start_seconds: Histogram,
    /// From a recording's end to its being readable.
    pub ready_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics that have counted nothing.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("callreel");
        let requests: Family<Label<3>, Histogram, fn() -> Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.5, 12)));
        let metrics = Self {
            registry: Arc::default(),
            requests,
            recordings: Family::default(),
            outcomes: Family::default(),
            webhooks: Family::default(),
            deliveries: Family::default(),
            waiting: Family::default(),
            samples: Family::default(),
            refused: Family::default(),
            upload_lag_seconds: Gauge::default(),
            spool_bytes: Gauge::default(),
            skew_ppm: Gauge::default(),
            alignment_seconds: Gauge::default(),
            draining: Gauge::default(),
            start_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 12)),
            ready_seconds: Histogram::new(exponential_buckets(0.05, 2.0, 14)),
        };
        let it = &metrics;
        let seconds = Unit::Seconds;
        registry.register_with_unit("http_request", "How long requests took", seconds.clone(), it.requests.clone());
        registry.register("recordings", "Recordings of this process by state", it.recordings.clone());
        registry.register("recordings_finished", "Recordings that ended, by outcome", it.outcomes.clone());
        registry.register("webhooks", "LiveKit's webhooks, by event and what became of them", it.webhooks.clone());
        registry.register("deliveries", "Attempts to tell receivers, by result", it.deliveries.clone());
        registry.register("queue_depth", "What waits, by queue", it.waiting.clone());
        registry.register_with_unit(
            "settled",
            "Audio of all tracks, by how it was settled",
            seconds.clone(),
            it.samples.clone(),
        );
        registry.register("recordings_refused", "Recordings that were refused, by reason", it.refused.clone());
        registry.register_with_unit(
            "upload_lag",
            "Age of the oldest bytes that no store has",
            seconds.clone(),
            it.upload_lag_seconds.clone(),
        );
        registry.register_with_unit("spool", "What waits in the spool", Unit::Bytes, it.spool_bytes.clone());
        registry.register("skew_ppm", "Largest difference of a track's clock, in ppm", it.skew_ppm.clone());
        registry.register_with_unit(
            "alignment",
            "Furthest that a track lies off its place",
            seconds.clone(),
            it.alignment_seconds.clone(),
        );
        registry.register("draining", "1 while the service is ending", it.draining.clone());
        registry.register_with_unit(
            "start",
            "From a recording's being asked for to media that comes",
            seconds.clone(),
            it.start_seconds.clone(),
        );
        registry.register_with_unit("ready", "From an end to a readable recording", seconds, it.ready_seconds.clone());
        Self { registry: Arc::new(registry), ..metrics }
    }

    /// A request was answered. `route` is its pattern, not its path.
    pub fn request(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let labels = Label([("method", method.into()), ("route", route.into()), ("status", status.to_string())]);
        self.requests.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A webhook of the LiveKit server came; `result` is `taken`, `duplicate`, `refused` or `overflow`.
    pub fn webhook(&self, event: &'static str, result: &'static str) {
        self.webhooks.get_or_create(&Label([("event", event.into()), ("result", result.into())])).inc();
    }

    /// So many recordings of this process are in `state`.
    pub fn recordings(&self, state: &'static str, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.recordings.get_or_create(&Label([("state", state.into())])).set(count);
    }

    /// A recording ended.
    pub fn finished(&self, outcome: &str) {
        self.outcomes.get_or_create(&Label([("outcome", outcome.into())])).inc();
    }

    /// A recording was refused: `full`, `draining`…
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Label([("reason", reason.into())])).inc();
    }

    /// So many attempts to tell receivers ended so, since the process began: `delivered`, `failed`, `dead`.
    pub fn deliveries(&self, result: &'static str, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.deliveries.get_or_create(&Label([("result", result.into())])).set(count);
    }

    /// So much waits in a queue: `webhooks`, `deliveries`.
    pub fn waiting(&self, queue: &'static str, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.waiting.get_or_create(&Label([("queue", queue.into())])).set(count);
    }

    /// So many seconds of audio were settled in a way of the ledger: `received`, `lost`…
    pub fn settled(&self, class: &str, seconds: f64) {
        if seconds > 0.0 {
            self.samples.get_or_create(&Label([("class", class.into())])).inc_by(seconds);
        }
    }

    /// Everything, in the text form of OpenMetrics.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::new();
        let same = metrics.clone();
        same.request("GET", "/api/v1/recordings/{id}", 200, Duration::from_millis(3));
        same.webhook("room_started", "taken");
        same.recordings("active", 2);
        same.finished("complete");
        same.settled("received", 1.5);
        same.waiting("webhooks", 4);
        same.spool_bytes.set(7);
        let text = metrics.text();
        for line in [
            "callreel_http_request_seconds_count{method=\"GET\",route=\"/api/v1/recordings/{id}\",status=\"200\"} 1",
            "callreel_webhooks_total{event=\"room_started\",result=\"taken\"} 1",
            "callreel_recordings{state=\"active\"} 2",
            "callreel_recordings_finished_total{outcome=\"complete\"} 1",
            "callreel_settled_seconds_total{class=\"received\"} 1.5",
            "callreel_queue_depth{queue=\"webhooks\"} 4",
            "callreel_spool_bytes 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
