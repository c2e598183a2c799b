//! Traces to a collector of OpenTelemetry, by OTLP over HTTP, where the environment names one.
//!
//! What the SDK reads of the environment by itself (headers, time limit, sampler, batches, service name) is left to it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::Uri;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, KeyValue};
use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use reqwest::Url;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::{Layer, Registry};

use crate::room::ensure_crypto_provider;
use crate::{clock, traces};

/// Names of the environment for where traces go; the first that is set decides.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The same for how.
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];

/// How long the last traces may take when the process ends.
const LAST: Duration = Duration::from_secs(2);

/// How often it is said that a collector does not take traces.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Why there are no traces although the environment asks for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TracesError {
    /// Nobody can be reached there. The value is not shown: it may hold a password.
    #[error("{name} is no address of a collector, such as http://localhost:4318")]
    Endpoint {
        /// Who says so.
        name: &'static str,
    },
    /// Another protocol.
    #[error("{name}: traces go by http/protobuf, and not by {value:?}")]
    Protocol {
        /// Who says so.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// The SDK.
    #[error("traces: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// Whether the environment names a collector.
///
/// # Errors
/// [`TracesError`] where it names one that cannot be.
pub fn is_wanted(environment: &dyn Fn(&str) -> Option<String>) -> Result<bool, TracesError> {
    let get = |name: &str| environment(name).filter(|value| !value.is_empty());
    let first = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, get(name)?)));
    let is = |name, word| get(name).is_some_and(|value| value.eq_ignore_ascii_case(word));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(false);
    }
    let Some((name, endpoint)) = first(ENDPOINTS) else { return Ok(false) };
    let url = Url::parse(&endpoint).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    if url.is_none() || endpoint.parse::<Uri>().is_err() {
        return Err(TracesError::Endpoint { name });
    }
    match first(PROTOCOLS) {
        Some((name, value)) if value != "http/protobuf" => Err(TracesError::Protocol { name, value }),
        Some(_) | None => Ok(true),
    }
}

/// Traces on their way. Whoever drops this waits a moment for the last of them.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the thread that sends them.
    ///
    /// # Errors
    /// [`TracesError`] where the SDK cannot.
    pub fn start() -> Result<Self, TracesError> {
        ensure_crypto_provider();
        let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build()?;
        let exporter = Exporter { exporter, unsaid: Mutex::default() };
        let provider = SdkTracerProvider::builder().with_resource(resource()).with_batch_exporter(exporter);
        Ok(Self(provider.build()))
    }

    /// What takes spans of [`traces`], and nothing else: no log line becomes part of a trace.
    pub fn layer(&self) -> impl Layer<Registry> + use<> {
        let is_ours = |metadata: &tracing::Metadata<'_>| metadata.is_span() && metadata.target() == traces::TARGET;
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("callreel"))
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_filter(filter_fn(is_ours).with_max_level_hint(LevelFilter::DEBUG))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // What does not get there in time is lost, and the SDK says so.
        let _ = self.0.shutdown_with_timeout(LAST);
    }
}

fn resource() -> Resource {
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    // What the environment says of it goes before.
    let resource = || {
        let ours = Resource::builder().with_attribute(version.clone());
        ours.with_detector(Box::new(EnvResourceDetector::new()))
    };
    let known = resource().build();
    match known.get(&Key::new("service.name")) {
        Some(name) if !name.as_str().starts_with("unknown_service") => known,
        Some(_) | None => resource().with_service_name("callreel").build(),
    }
}

/// Sends spans, and says now and then that it cannot: the SDK would say it of every batch.
#[derive(Debug)]
struct Exporter {
    exporter: opentelemetry_otlp::SpanExporter,
    unsaid: Mutex<Unsaid>,
}

/// What was lost since it was last said.
#[derive(Debug, Default)]
struct Unsaid {
    spans: usize,
    said: Option<Instant>,
}

impl Exporter {
    fn lost(&self, spans: usize, error: &dyn std::fmt::Display) {
        let now = clock::now();
        // Nothing panics while it is held.
        let mut unsaid = self.unsaid.lock().unwrap_or_else(PoisonError::into_inner);
        unsaid.spans += spans;
        if unsaid.said.is_none_or(|said| now.saturating_duration_since(said) >= SAID_EVERY) {
            tracing::warn!(%error, spans = unsaid.spans, "the collector does not take traces");
            *unsaid = Unsaid { spans: 0, said: Some(now) };
        }
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        if let Err(error) = self.exporter.export(batch).await {
            self.lost(spans, &error);
        }
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<bool, String> {
        let get = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        is_wanted(&get).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_is_sent_unless_the_environment_names_a_collector() {
        let [of_traces, of_all] = ENDPOINTS;
        assert_eq!(wanted(&[]), Ok(false));
        assert_eq!(wanted(&[(of_all, "")]), Ok(false));
        assert_eq!(wanted(&[(of_all, "http://localhost:4318")]), Ok(true));
        assert_eq!(wanted(&[(of_traces, "https://collector.example/v1/traces")]), Ok(true));
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(wanted(&[(of_all, "no address"), off]), Ok(false));
        }
    }

    #[test]
    fn a_collector_that_cannot_be_is_an_error_with_the_variables_name() {
        let [of_traces, of_all] = ENDPOINTS;
        for value in
            ["localhost:4318", "localhost", "/v1/traces", "ftp://localhost", "http://", "http://a b/", " http://a"]
        {
            let why = wanted(&[(of_all, value)]).unwrap_err();
            assert!(why.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT is no address"), "{value}: {why}");
        }
        let why = wanted(&[(of_traces, "user:hunter2@host"), (of_all, "http://localhost:4318")]).unwrap_err();
        assert!(why.starts_with("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") && !why.contains("hunter2"), "{why}");
        let grpc = [(of_all, "http://localhost:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert!(wanted(&grpc).unwrap_err().contains("OTEL_EXPORTER_OTLP_PROTOCOL"));
    }
}
