//! What is traced, for whoever collects traces: a request, a recording, an attempt at telling a receiver. Never a packet.
//!
//! Spans have a target of their own, which the log leaves out: its lines are the same with and without them. Where nobody
//! collects them they are disabled. Attributes name routes, ids and rooms, as the log does, and nothing that opens a door: no
//! path or query as it was asked for, no header, no address of a receiver or a store.

use axum::http::HeaderMap;
use tracing::Span;
use tracing::field::Empty;

use crate::catalog::Delivery;
use crate::recording::Outcome;

/// The target of every span here.
pub const TARGET: &str = "callreel::traces";

/// An answer to a request. It belongs to the trace that the `traceparent` among its headers names.
pub(crate) fn request(method: &'static str, route: Option<&str>, headers: &HeaderMap) -> Span {
    let method = if method == "other" { "_OTHER" } else { method };
    let span = tracing::debug_span!(
        target: TARGET, "request", otel.name = Empty, otel.kind = "server", otel.status_code = Empty,
        http.request.method = method, http.route = route, http.response.status_code = Empty,
    );
    if !span.is_disabled() {
        span.record("otel.name", route.map_or_else(|| method.to_owned(), |route| format!("{method} {route}")));
        #[cfg(feature = "otel")]
        remote::go_on(&span, headers);
    }
    #[cfg(not(feature = "otel"))]
    let _ = headers;
    span
}

/// Notes what a request was answered.
pub(crate) fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.record("otel.status_code", "ERROR");
    }
}

/// A recording, from its order to its result. It belongs to the trace of the request that asked for it, if one did.
pub(crate) fn recording(id: &str, room: &str) -> Span {
    tracing::debug_span!(
        target: TARGET, "recording", otel.status_code = Empty,
        callreel.recording.id = id, callreel.room = room, callreel.outcome = Empty,
    )
}

/// Ends a recording's span with what became of it.
pub(crate) fn ended(span: Span, outcome: Outcome) {
    span.record("callreel.outcome", tracing::field::display(outcome));
    if outcome == Outcome::Failed {
        span.record("otel.status_code", "ERROR");
    }
}

/// One attempt at telling a receiver.
pub(crate) fn delivery(delivery: &Delivery, endpoint: &str) -> Span {
    tracing::debug_span!(
        target: TARGET, "webhook", otel.kind = "client", otel.status_code = Empty,
        callreel.delivery.id = delivery.id, callreel.event = delivery.event, callreel.endpoint = endpoint,
        callreel.recording.id = delivery.recording_id, callreel.attempt = i64::from(delivery.attempts),
        http.request.method = "POST", http.response.status_code = Empty,
    )
}

/// Ends an attempt's span with what the receiver answered, if it did.
pub(crate) fn delivered(span: Span, status: Option<u16>, is_delivered: bool) {
    span.record("http.response.status_code", status.map(i64::from));
    if !is_delivered {
        span.record("otel.status_code", "ERROR");
    }
}

/// Has recordings that a request begins belong to its trace. The span is not entered: a recording outlives its request, and
/// would keep it from being told.
pub(crate) async fn within<F: Future>(span: &Span, future: F) -> F::Output {
    #[cfg(feature = "otel")]
    if !span.is_disabled() {
        return remote::within(span, future).await;
    }
    #[cfg(not(feature = "otel"))]
    let _ = span;
    future.await
}

/// The same, for a task that carries out what a request asked for.
pub(crate) fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    #[cfg(feature = "otel")]
    let future = opentelemetry::context::FutureExt::with_current_context(future);
    future
}

#[cfg(feature = "otel")]
mod remote {
    //! Traces that others began.

    use axum::http::HeaderMap;
    use opentelemetry::Context;
    use opentelemetry::context::FutureExt;
    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry_http::HeaderExtractor;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    pub fn go_on(span: &Span, headers: &HeaderMap) {
        let of = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        // Where somebody else's subscriber takes the spans, traces are theirs to connect.
        let _ = span.set_parent(of);
    }

    pub async fn within<F: Future>(span: &Span, future: F) -> F::Output {
        future.with_context(span.context()).await
    }
}

#[cfg(all(test, feature = "otel"))]
mod tests {
    use super::*;
    use opentelemetry::trace::{TraceContextExt, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn trace_of(span: &Span) -> String {
        span.context().span().span_context().trace_id().to_string()
    }

    #[tokio::test]
    async fn a_recording_belongs_to_the_trace_of_who_asked_for_it_and_to_no_other() {
        let tracer = SdkTracerProvider::default().tracer("test");
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_context_activation(false);
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01").parse().unwrap());
        let request = request("POST", Some("/api/v1/recordings"), &headers);
        let asked =
            within(&request, async { tokio::spawn(carried(async { recording("R1", "a room") })).await.unwrap() });
        let asked = asked.await;
        assert_eq!((trace_of(&request), trace_of(&asked)), (TRACE.to_owned(), TRACE.to_owned()));
        assert_ne!(trace_of(&recording("R2", "a room")), TRACE);
    }
}
