//! Logs go to standard error, so that standard output holds the result alone. Traces go to a collector, if there is one.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::traces;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// For the help of commands that send traces.
#[cfg(feature = "otel")]
pub const TRACES_HELP: &str = "

OTEL_EXPORTER_OTLP_ENDPOINT sends traces there, with the other names of OpenTelemetry's environment.";
#[cfg(not(feature = "otel"))]
pub const TRACES_HELP: &str = "";

/// Starts logging. `RUST_LOG` chooses what is logged; without it `default_level` of callreel and warnings of the rest.
pub fn start(format: LogFormat, default_level: &str) {
    tracing_subscriber::registry().with(lines(format, default_level)).init();
}

/// As [`start`], with traces to where the environment says. Whoever drops what it gives waits a moment for the last of them.
///
/// # Errors
/// The exit code where the environment makes no sense; why is said.
#[cfg(feature = "otel")]
pub fn start_traced(format: LogFormat, default_level: &str) -> Result<impl Sized + use<>, ExitCode> {
    use super::otel::{Traces, is_wanted};
    use super::say::err;

    let lines = || lines(format, default_level);
    let traces = is_wanted(&|name| std::env::var(name).ok()).and_then(|is_wanted| {
        // What the SDK says of the environment is logged, too.
        let early = || tracing_subscriber::registry().with(lines());
        is_wanted.then(|| tracing::subscriber::with_default(early(), Traces::start)).transpose()
    });
    let traces = traces.map_err(|error| {
        err!("error: {error}");
        ExitCode::from(super::BAD_USAGE)
    })?;
    let mut layers = vec![lines()];
    layers.extend(traces.as_ref().map(|traces| traces.layer().boxed()));
    tracing_subscriber::registry().with(layers).init();
    Ok(traces)
}

/// As [`start`]: this build has no traces.
///
/// # Errors
/// None.
#[cfg(not(feature = "otel"))]
pub fn start_traced(format: LogFormat, default_level: &str) -> Result<impl Sized + use<>, ExitCode> {
    start(format, default_level);
    Ok(())
}

/// What writes log lines.
fn lines(format: LogFormat, default_level: &str) -> Box<dyn Layer<Registry> + Send + Sync> {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("warn,callreel={default_level}")));
    let is_no_trace = filter_fn(|metadata| metadata.target() != traces::TARGET);
    let filter = filter.and(is_no_trace.with_max_level_hint(LevelFilter::TRACE));
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // Whoever read the log may be gone: to complain of that on standard error would be a panic amid a call.
    let layer = layer.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false);
    match format {
        LogFormat::Text => layer.with_target(false).with_filter(filter).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_filter(filter).boxed(),
    }
}
