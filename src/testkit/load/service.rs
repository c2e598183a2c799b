//! `callreel serve` under load: a process that is asked over HTTP.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::recorders::{Place, Recording};
use crate::clock;
use crate::mix::Mixing;
use crate::recording::RecordingResult;
use crate::testkit::TestkitError;
use crate::testkit::storage::free_port;

/// How long the service may take to answer at first, and a recording to be over.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is asked again meanwhile.
const AGAIN: Duration = Duration::from_millis(100);

/// A service that records what it is asked to, and nothing else.
pub(super) struct Service {
    pub(super) child: Child,
    url: String,
    client: Client,
}

impl Service {
    /// Starts the service for the server of `place`, whose recordings all go there.
    pub(super) async fn start(
        mut command: Command,
        place: &Place,
        recording: &Recording,
    ) -> Result<Self, TestkitError> {
        let port = free_port()?;
        if recording.mixing != Mixing::Auto || !recording.analysis {
            let why = "the service records with every analysis, and passes through what it can";
            return Err(TestkitError::Simulation(why.into()));
        }
        // JSON is YAML.
        let config = json!({
            "livekit_host": place.url, "livekit_api_key": place.key, "livekit_api_secret": place.secret,
            "rules": [{ "room": "*", "record": false }],
            // What comes late on a busy machine is measured, not refused.
            "limits": { "calls": 10_000, "late": "60s" },
            "recording": { "outputs": recording.outputs },
        });
        let file = config_file(&place.out, &config).map_err(TestkitError::io("the service's configuration"))?;
        command.arg("serve").arg("--config").arg(file).arg("--out").arg(&place.out);
        command.arg("--listen").arg(format!("127.0.0.1:{port}")).env("RUST_LOG", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().map_err(TestkitError::io("starting the service"))?;
        let client = Client::builder().no_proxy().build().map_err(failed)?;
        let service = Self { child, url: format!("http://127.0.0.1:{port}"), client };
        let until = clock::now() + PATIENCE;
        while service.ask(Method::GET, "/readyz", Value::Null).await.is_err() {
            if clock::now() > until {
                return Err(TestkitError::Simulation("the service is not ready".into()));
            }
            tokio::time::sleep(AGAIN).await;
        }
        Ok(service)
    }

    /// Has a room recorded, and gives the recording's id.
    pub(super) async fn record(&self, room: &str) -> Result<String, TestkitError> {
        let row = self.ask(Method::POST, "/api/v1/recordings", json!({ "room": room })).await?;
        let id = row["recording_id"].as_str().map(str::to_owned);
        id.ok_or_else(|| TestkitError::Simulation(format!("no recording: {row}")))
    }

    pub(super) async fn stop(&self, id: &str) -> Result<(), TestkitError> {
        self.ask(Method::POST, &format!("/api/v1/recordings/{id}/stop"), json!({})).await.map(drop)
    }

    /// What became of a recording, and when.
    pub(super) async fn result(&self, id: &str) -> Result<(Instant, RecordingResult), TestkitError> {
        let until = clock::now() + PATIENCE;
        loop {
            let row = self.ask(Method::GET, &format!("/api/v1/recordings/{id}"), Value::Null).await?;
            if row["status"] == "ready" || row["status"] == "failed" {
                let result = json!({
                    "recording_id": id, "status": row["status"], "outcome": row["outcome"], "reasons": row["reasons"],
                    "stopped_by": null, "outputs": [], "manifest": row["manifest"],
                });
                return Ok((clock::now(), serde_json::from_value(result).map_err(failed)?));
            }
            if clock::now() > until {
                return Err(TestkitError::Simulation(format!("{id} is not over: {row}")));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn ask(&self, method: Method, path: &str, body: Value) -> Result<Value, TestkitError> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if !body.is_null() {
            request = request.header("Content-Type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(failed)?;
        let (is_fine, text) = (answer.status().is_success(), answer.text().await.map_err(failed)?);
        if !is_fine {
            return Err(TestkitError::Simulation(text));
        }
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

fn config_file(folder: &Path, config: &Value) -> std::io::Result<std::path::PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("serve.yaml");
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

fn failed(error: impl std::fmt::Display) -> TestkitError {
    TestkitError::Simulation(error.to_string())
}
