//! The whole surface by its description: requests that it allows, and requests that it does not, by the hundred. The page on
//! which people try it.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use callreel::testkit::{LiveKitServer, server::tools_dir};
use reqwest::Method;
use sha2::{Digest, Sha256};

use crate::support::{ADMIN, Answer, Running, callreel_hex};

const REQUIREMENTS: &[u8] = include_bytes!("../../tools/requirements-http.txt");

/// How long the whole of it may take.
const PATIENCE: Duration = Duration::from_secs(400);

/// The Python that has schemathesis: `$CALLREEL_HTTP_PYTHON`, else the virtual environment in the tool folder.
fn python() -> PathBuf {
    if let Some(path) = std::env::var_os("CALLREEL_HTTP_PYTHON").filter(|value| !value.is_empty()) {
        return path.into();
    }
    let digest = callreel_hex(&Sha256::digest(REQUIREMENTS)[..6]);
    tools_dir().join(format!("python-http-{digest}/bin/python"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_keeps_to_its_description() {
    let server = LiveKitServer::start().await.unwrap();
    let (url, key, secret) = (server.http_url(), server.api_key().to_owned(), server.api_secret().to_owned());
    let env = [("LIVEKIT_URL", &*url), ("LIVEKIT_API_KEY", &*key), ("LIVEKIT_API_SECRET", &*secret)];
    let service =
        Running::start_with("limits: {rate: 100000, burst: 100000, late: 60s, cpu_percent: 100}\n", &env).await;
    service.ready("R1", "room", b"sound").await;
    let address = format!("http://{}/api/v1/openapi.json", service.address);
    // Which call gives what another takes is told by names; guesses from headers of answers make links that are none.
    let settings = service.dir.path().join("schemathesis.toml");
    std::fs::write(&settings, "[phases.stateful.inference]\nalgorithms = [\"dependency-analysis\"]\n").unwrap();
    let mut command = tokio::process::Command::new(python());
    command
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(&settings)
        .args(["run", &address, "--no-color", "--generation-database", "none", "--seed", "1"])
        .args(["--header", &format!("Authorization: Bearer {ADMIN}")])
        .args(["--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "25", "--request-timeout", "10"])
        // Control characters, cursors of others and layouts that nobody makes are allowed by the description and refused.
        .args(["--exclude-checks", "positive_data_acceptance"])
        // What lasts as long as a recording is another test's.
        .args(["--exclude-path", "/api/v1/recordings/{recording_id}/events"])
        .env("HYPOTHESIS_STORAGE_DIRECTORY", service.dir.path())
        .current_dir(service.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", told.lines().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));
    assert_eq!(Answer::of(service.ask(Method::GET, "/readyz")).await.status, 200);
}

#[tokio::test]
async fn the_page_needs_nobody_else() {
    let service = Running::start().await;
    let get = async |path: &str| Answer::of(service.ask(Method::GET, path)).await;
    let page = get("/api/docs/").await;
    assert_eq!((page.status.as_u16(), page.header("content-type")), (200, "text/html"));
    assert!(page.header("content-security-policy").starts_with("default-src 'self'"));
    for name in ["swagger-ui-bundle.js", "swagger-ui.css", "swagger-initializer.js", "swagger-ui-standalone-preset.js"]
    {
        assert!(page.text.contains(name), "{}", page.text);
        assert_eq!(get(&format!("/api/docs/{name}")).await.status, 200, "{name}");
    }
    for text in [&page.text, &get("/api/docs/swagger-initializer.js").await.text] {
        assert!(!text.contains("https://") && !text.contains("http://"), "{text}");
    }
    assert!(get("/api/docs/swagger-initializer.js").await.text.contains("/api/v1/openapi.json"));
    assert_eq!(get("/api/docs").await.status, 308);
    assert_eq!(get("/api/docs/../../etc/passwd").await.status, 404);
}

#[tokio::test]
async fn the_description_names_every_call_and_how_errors_look() {
    let service = Running::start().await;
    let document = Answer::of(service.ask(Method::GET, "/api/v1/openapi.json")).await.json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    for path in [
        "/api/v1/recordings",
        "/api/v1/recordings/{recording_id}",
        "/api/v1/recordings/{recording_id}/stop",
        "/api/v1/recordings/{recording_id}/audio",
        "/api/v1/play/{recording_id}/{output}",
        "/api/v1/rooms/{room_id}/start-recording/",
        "/webhook-receiver",
        "/metrics",
    ] {
        assert!(paths.contains_key(path), "{path}");
    }
    for (path, methods) in paths {
        for (method, call) in methods.as_object().unwrap() {
            assert!(!call["summary"].as_str().unwrap_or_default().is_empty(), "{method} {path}");
            let problem = &call["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
            let is_operation = call["tags"][0] == "operation";
            assert!(is_operation || problem == "#/components/schemas/Problem", "{method} {path}: {call}");
        }
    }
}
