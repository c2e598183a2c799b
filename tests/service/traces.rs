//! What a collector of OpenTelemetry gets: of a service in a process of its own, by the official types.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::post;
use callreel::catalog::{Catalog, NewRecording, Notice, Row};
use callreel::clock;
use callreel::room::ensure_crypto_provider;
use callreel::testkit::audio::generate;
use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions, WebhookReceiver};
use nix::sys::signal::Signal;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use reqwest::{Client, Method, RequestBuilder, Response};
use tokio::sync::mpsc;

use crate::cli::{Process, SERVER, run};
use crate::support::PATIENCE;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const KEY: &str = "hunter2-0123456789";

/// Somebody who collects traces.
struct Collector {
    url: String,
    sent: mpsc::UnboundedReceiver<(HeaderMap, ExportTraceServiceRequest)>,
}

impl Collector {
    async fn start() -> Self {
        let (sender, sent) = mpsc::unbounded_channel();
        let take = async move |headers: HeaderMap, body: Bytes| {
            sender.send((headers, ExportTraceServiceRequest::decode(body).unwrap())).unwrap();
        };
        let app = axum::Router::new().route("/v1/traces", post(take));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, sent }
    }

    /// What has come.
    fn got(&mut self) -> Vec<(HeaderMap, ResourceSpans)> {
        let sent = std::iter::from_fn(|| self.sent.try_recv().ok());
        sent.flat_map(|(headers, sent)| sent.resource_spans.into_iter().map(move |of| (headers.clone(), of))).collect()
    }

    /// The spans that have come.
    fn spans(&mut self) -> Vec<Span> {
        self.got().into_iter().flat_map(|(_, of)| of.scope_spans).flat_map(|of| of.spans).collect()
    }
}

fn attributes(attributes: &[KeyValue]) -> BTreeMap<&str, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    attributes.iter().map(|attribute| (attribute.key.as_str(), text(&attribute.value))).collect()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let mut found = spans.iter().filter(|span| span.name == name);
    let first = found.next().unwrap_or_else(|| panic!("no {name} in {spans:#?}"));
    assert!(found.next().is_none(), "{name} twice in {spans:#?}");
    first
}

fn is_error(span: &Span) -> bool {
    span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error)
}

fn hex(bytes: &[u8]) -> String {
    crate::support::callreel_hex(bytes)
}

/// A service that answers, and where.
async fn serve(dir: &Path, env: &[(&str, &str)]) -> (Process, String) {
    let env = [&SERVER[..], &[("CALLREEL_LISTEN", "127.0.0.1:0"), ("RUST_LOG", "warn,callreel=debug")], env].concat();
    let mut process = Process::start(dir, &["serve", "--config", "config.yaml"], &env);
    let line = process.says("listening on http://").await;
    let at = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();
    (process, at)
}

/// A request with the key, in a trace.
fn request(method: Method, at: &str, path: &str) -> RequestBuilder {
    ensure_crypto_provider();
    let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
    let request = client.request(method, format!("{at}{path}"));
    request.header("traceparent", format!("00-{TRACE}-{PARENT}-01")).header("authorization", format!("Bearer {KEY}"))
}

async fn get(at: &str, path: &str) -> Response {
    request(Method::GET, at, path).send().await.unwrap()
}

async fn end(mut process: Process) -> Process {
    process.signal(Signal::SIGTERM);
    process.says("ended").await;
    assert_eq!(process.ends().await, Some(0), "{:#?}", process.told);
    process
}

#[tokio::test]
async fn requests_are_spans_of_their_callers_trace_and_tell_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let keys = format!("auth: {{keys: [{{name: app, key: {KEY}, scopes: [read]}}]}}\n");
    std::fs::write(dir.path().join("config.yaml"), keys).unwrap();
    let mut collector = Collector::start().await;
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a-collectors-key"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
    ];
    let (process, at) = serve(dir.path(), &env).await;
    assert_eq!(get(&at, "/healthz").await.status(), 200);
    assert_eq!(get(&at, "/api/v1/recordings/of-somebody?token=hunter2").await.status(), 404);
    assert_eq!(get(&at, "/no/such/thing/hunter2").await.status(), 404);
    let process = end(process).await;

    let got = collector.got();
    let resource = attributes(&got[0].1.resource.as_ref().unwrap().attributes);
    assert_eq!(
        (resource["service.name"].as_str(), got[0].0["authorization"].to_str().unwrap()),
        ("callreel", "Bearer a-collectors-key")
    );
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(resource["deployment.environment.name"], "test");
    let told = format!("{:?}", got.iter().map(|(_, sent)| sent).collect::<Vec<_>>());
    for secret in ["hunter2", "of-somebody", "127.0.0.1", "a-collectors-key"] {
        assert!(!told.contains(secret), "{secret} in {told}");
    }
    let spans: Vec<Span> = got.into_iter().flat_map(|(_, of)| of.scope_spans).flat_map(|of| of.spans).collect();
    for (name, route, status) in [
        ("GET /healthz", Some("/healthz"), "200"),
        ("GET /api/v1/recordings/{recording_id}", Some("/api/v1/recordings/{recording_id}"), "404"),
        ("GET", None, "404"),
    ] {
        let span = named(&spans, name);
        assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), PARENT.into()), "{span:?}");
        assert_eq!((span.kind(), is_error(span)), (SpanKind::Server, false), "{span:?}");
        let told = attributes(&span.attributes);
        assert_eq!(told["http.request.method"], "GET", "{told:?}");
        assert_eq!(told.get("http.route").map(String::as_str), route, "{told:?}");
        assert_eq!(told["http.response.status_code"], status, "{told:?}");
        assert!(span.events.is_empty(), "log lines stay in the log: {span:?}");
    }
    let line = process.told.iter().find(|line| line.contains("/healthz")).unwrap();
    assert!(line.contains("DEBUG request method=\"GET\" route=\"/healthz\" status=200 took="), "{line}");
}

#[tokio::test]
async fn each_attempt_at_a_webhook_is_a_span_without_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = WebhookReceiver::start().await.unwrap();
    let database = format!("sqlite://{}/catalog.db", dir.path().display());
    let catalog = Catalog::open(&database).await.unwrap();
    let tell = |row: &Row| {
        let body = serde_json::json!({"event": "recording.ready"});
        vec![Notice::new("once", "recording.ready", &row.recording_id, "crm", body, clock::wall())]
    };
    catalog.begin(NewRecording::new("R1", "a room", clock::wall()), tell).await.unwrap();
    let hook = format!("webhooks: {{endpoints: [{{name: crm, url: \"{}\"}}], allow_private: true}}\n", receiver.url());
    std::fs::write(dir.path().join("config.yaml"), hook).unwrap();
    let mut collector = Collector::start().await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("CALLREEL_CATALOG", &database)];
    let (mut process, _) = serve(dir.path(), &env).await;
    if !process.told.iter().any(|line| line.contains("delivered")) {
        process.says("delivered").await;
    }
    end(process).await;

    let spans = collector.spans();
    let told = attributes(&named(&spans, "webhook").attributes);
    assert_eq!(told["callreel.recording.id"], "R1", "{told:?}");
    assert_eq!((told["callreel.endpoint"].as_str(), told["callreel.attempt"].as_str()), ("crm", "1"), "{told:?}");
    assert_eq!(
        (told["callreel.event"].as_str(), told["http.response.status_code"].as_str()),
        ("recording.ready", "200")
    );
    assert!(!format!("{spans:?}").contains("/hooks/calls"), "{spans:?}");
}

#[tokio::test]
async fn a_recording_is_a_span_with_its_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let mut collector = Collector::start().await;
    let env = [&SERVER[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str()), ("OTEL_SERVICE_NAME", "bots")]];
    let mut process =
        Process::start(dir.path(), &["record", "--room", "a room", "--recording-id", "R1"], &env.concat());
    process.says("failed: ").await;
    assert_eq!(process.ends().await, Some(1));

    let got = collector.got();
    assert_eq!(attributes(&got[0].1.resource.as_ref().unwrap().attributes)["service.name"], "bots");
    let spans: Vec<Span> = got.into_iter().flat_map(|(_, of)| of.scope_spans).flat_map(|of| of.spans).collect();
    let (recording, join) = (named(&spans, "recording"), named(&spans, "join"));
    assert_eq!((hex(&join.trace_id), &join.parent_span_id), (hex(&recording.trace_id), &recording.span_id));
    assert!(recording.parent_span_id.is_empty() && is_error(recording), "{recording:?}");
    let told = attributes(&recording.attributes);
    let expected = [
        ("callreel.outcome", "failed".to_owned()),
        ("callreel.recording.id", "R1".into()),
        ("callreel.room", "a room".into()),
    ];
    assert_eq!(told, BTreeMap::from(expected));
    assert!(!format!("{spans:?}").contains("hunter2"), "{spans:?}");
}

#[tokio::test]
async fn a_call_that_is_asked_for_is_part_of_the_trace_it_is_asked_in() {
    ensure_crypto_provider();
    let dir = tempfile::tempdir().unwrap();
    let livekit = LiveKitServer::start().await.unwrap();
    let keys = format!("auth: {{keys: [{{name: app, key: {KEY}, scopes: [admin]}}]}}\nrules: [{{record: false}}]\n");
    std::fs::write(dir.path().join("config.yaml"), keys).unwrap();
    let mut collector = Collector::start().await;
    let (url, endpoint) = (livekit.url(), format!("{}/v1/traces", collector.url));
    let env = [
        ("LIVEKIT_URL", url.as_str()),
        ("LIVEKIT_API_KEY", livekit.api_key()),
        ("LIVEKIT_API_SECRET", livekit.api_secret()),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &endpoint),
    ];
    let (mut process, at) = serve(dir.path(), &env).await;
    let alice = Publisher::join(PublisherConfig::on(&livekit, "call", "alice")).await.unwrap();
    let speech = generate::speech(1, Duration::from_secs(5));
    let voice = alice.publish(speech, TrackOptions::default().looped(true)).await.unwrap();
    let asked = request(Method::POST, &at, "/api/v1/recordings").header("content-type", "application/json");
    assert_eq!(asked.body(r#"{"room": "call"}"#).send().await.unwrap().status(), 201);
    process.says("recording started").await;
    voice.sent_at_least(100).await.unwrap();
    let process = end(process).await;

    let spans = collector.spans();
    let is_in = |child: &Span, parent: &Span| {
        hex(&child.trace_id) == TRACE && child.trace_id == parent.trace_id && child.parent_span_id == parent.span_id
    };
    let recording = named(&spans, "recording");
    assert!(is_in(recording, named(&spans, "POST /api/v1/recordings")), "{spans:#?}");
    assert!(is_in(named(&spans, "join"), recording), "{spans:#?}");
    let finish = named(&spans, "finish");
    assert!(is_in(finish, recording) && is_in(named(&spans, "store"), finish), "{spans:#?}");
    assert_eq!(attributes(&recording.attributes)["callreel.outcome"], "complete");
    assert!(!is_error(recording) && recording.end_time_unix_nano >= finish.end_time_unix_nano, "{spans:#?}");
    let started = process.told.iter().find(|line| line.contains("recording started")).unwrap();
    assert!(started.contains("recording{id=") && !started.contains("join"), "{started}");
}

#[tokio::test]
async fn a_collector_that_is_away_is_said_once_and_holds_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), "").unwrap();
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    let (mut process, at) = serve(dir.path(), &env).await;
    get(&at, "/healthz").await;
    process.says("the collector does not take traces").await;
    get(&at, "/healthz").await;
    let process = end(process).await;
    let complaints = process.told.iter().filter(|line| line.contains("WARN") || line.contains("ERROR"));
    let complaints: Vec<_> = complaints.filter(|line| line.contains("collector") || line.contains("Span")).collect();
    assert_eq!(complaints.len(), 1, "{complaints:#?}");

    // One that never answers.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let (process, at) = serve(dir.path(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
    assert_eq!(get(&at, "/healthz").await.status(), 200);
    let begun = clock::now();
    end(process).await;
    let took = clock::now() - begun;
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_collector_that_cannot_be_ends_the_start() {
    for command in [&["serve"][..], &["record", "--room", "a"]] {
        let env = [&SERVER[..], &[("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318")]].concat();
        let output = run(command, &env);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.lines().count() == 1 && told.starts_with("error: OTEL_EXPORTER_OTLP_ENDPOINT is no"), "{told}");
    }
}
