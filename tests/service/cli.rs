//! The commands: what they print, what they refuse, how the service begins and ends.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr};

use crate::support::PATIENCE;

/// The auto-recorder's own file.
const AUTO_RECORDER: &str = r#"
livekit_host: "http://127.0.0.1:1"
livekit_api_key: "devkey"
livekit_api_secret: "${THE_SECRET}"
webhook_api_key: "devkey"
listen_port: "0"
layout: "grid-16"            # speaker-light, speaker-dark, custom
file_type: "OGG"             # WEBM, OGG
file_path: "recordings/{room_name}-{time}"     # e.g. recordings/my-room-20240315-143022
storage:
  s3: {bucket: b, region: us-east-1, access_key: k, secret: "${THE_SECRET}", endpoint: "http://127.0.0.1:1",
       max_retries: 3, max_retry_delay: "5s", min_retry_delay: "500ms", aws_log_level: "LogOff",
       proxy_config: {url: "http://127.0.0.1:1", username: u, password: p}}
"#;

fn command(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_callreel"));
    command.args(args).env_clear().current_dir(dir).envs(env.iter().copied());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    command(dir.path(), args, env).output().unwrap()
}

pub const SERVER: [(&str, &str); 3] =
    [("LIVEKIT_URL", "ws://127.0.0.1:1"), ("LIVEKIT_API_KEY", "k"), ("LIVEKIT_API_SECRET", "hunter2")];

#[test]
fn the_configuration_is_printed_with_sources_and_without_secrets() {
    let env = [&SERVER[..], &[("CALLREEL_CATALOG", "postgres://u:hunter2@db/c"), ("CALLREEL_MAX_CALLS", "7")]].concat();
    let output = run(&["config", "--listen", "127.0.0.1:9"], &env);
    let told = text(&output.stdout);
    assert!(output.status.success() && !told.contains("hunter2"), "{told}");
    let has = |key: &str, rest: &str| {
        told.lines().any(|line| line.split_whitespace().next() == Some(key) && line.ends_with(rest))
    };
    assert!(has("listen", "\"127.0.0.1:9\"  # flag --listen"), "{told}");
    assert!(has("livekit_api_secret", "\"SET\"  # environment LIVEKIT_API_SECRET"), "{told}");
    assert!(has("catalog.url", "\"postgres://u:SET@db/c\"  # environment CALLREEL_CATALOG"), "{told}");
    assert!(has("limits.calls", "7  # environment CALLREEL_MAX_CALLS"), "{told}");
    assert!(has("retention.every", "\"3600s\"  # default"), "{told}");
    let json = run(&["config", "--json"], &env);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["livekit_host"]["source"], "environment LIVEKIT_URL");
    let schema = run(&["config", "--schema"], &[]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema["properties"]["limits"]["$ref"], "#/$defs/LimitsSection");
}

#[test]
fn what_makes_no_sense_ends_it_with_code_2() {
    for (env, word) in [
        (&[][..], "livekit_"),
        (&[&SERVER[..], &[("CALLREEL_ENGINE", "gstreamer")]].concat(), "environment CALLREEL_ENGINE"),
        (&[&SERVER[..], &[("WEBHOOK_API_KEY", "w")]].concat(), "No storage provider configured"),
        (
            &[&SERVER[..], &[("WEBHOOK_API_KEY", "w"), ("S3_BUCKET", "b"), ("GCP_BUCKET", "g")]].concat(),
            "Only one storage provider can be configured",
        ),
        (&[&SERVER[..], &[("TAVUS_ENABLE_RECORDING", "true")]].concat(), "not available yet"),
    ] {
        for name in ["serve", "config"] {
            let output = run(&[name], env);
            let told = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{name}: {told}");
            assert!(told.contains(word) && !told.contains("hunter2"), "{name}: {told}");
        }
    }
}

/// A service in a process of its own.
pub struct Process {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub told: Vec<String>,
}

impl Process {
    pub fn start(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = tokio::process::Command::from(command(dir, args, env));
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, log, told: Vec::new() }
    }

    /// Waits until the log says something, and gives the line.
    pub async fn says(&mut self, words: &str) -> String {
        let reading = async {
            while let Some(line) = self.log.next_line().await.unwrap() {
                self.told.push(line.clone());
                if line.contains(words) {
                    return Some(line);
                }
            }
            None
        };
        let said = tokio::time::timeout(PATIENCE, reading).await;
        said.ok().flatten().unwrap_or_else(|| panic!("nothing of {words:?} in {:#?}", self.told))
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id().unwrap()).unwrap()), signal).unwrap();
    }

    pub async fn ends(&mut self) -> Option<i32> {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().code()
    }

    /// Kilobytes of its own that it has in memory: without pages of the program's file, which an unoptimised build has many of.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

#[tokio::test]
async fn the_auto_recorders_file_starts_the_service() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.yaml"), AUTO_RECORDER).unwrap();
    let env = [("CONFIG_FILE", "config.yaml"), ("THE_SECRET", "hunter2")];
    let mut process = Process::start(dir.path(), &["serve"], &env);
    let line = process.says("listening on http://0.0.0.0:").await;
    assert!(line.contains("auto-recorder"), "{line}");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ends().await, Some(0));
    assert!(process.told.iter().all(|line| !line.contains("hunter2")), "{:#?}", process.told);
}

#[tokio::test]
async fn without_a_key_it_listens_here_alone_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let env = [&SERVER[..], &[("CALLREEL_LISTEN", "0.0.0.0:0")]].concat();
    let mut process = Process::start(dir.path(), &["serve"], &env);
    process.says("no API key is configured").await;
    process.says("listening on http://127.0.0.1:").await;
    process.signal(Signal::SIGINT);
    assert_eq!(process.ends().await, Some(0));
}

#[tokio::test]
async fn rules_are_read_anew_while_it_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.yaml");
    std::fs::write(&path, "rules: [{room: a}]\n").unwrap();
    let env = [&SERVER[..], &[("CALLREEL_LISTEN", "127.0.0.1:0")]].concat();
    let mut process = Process::start(dir.path(), &["serve", "--config", "config.yaml"], &env);
    process.says("listening on").await;
    std::fs::write(&path, "rules: [{room: a}, {room: b}]\n").unwrap();
    process.signal(Signal::SIGHUP);
    assert!(process.says("rules are read anew").await.contains("rules=2"));
    std::fs::write(&path, "rules: [{room_regex: '('}]\n").unwrap();
    process.signal(Signal::SIGHUP);
    assert!(process.says("the rules stay as they are").await.contains("rules[0].room_regex"));
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ends().await, Some(0));
}

#[tokio::test]
async fn a_service_with_nothing_to_do_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let env = [&SERVER[..], &[("CALLREEL_LISTEN", "127.0.0.1:0")]].concat();
    let mut process = Process::start(dir.path(), &["serve"], &env);
    process.says("listening on").await;
    let resident = process.resident();
    println!("an idle service has {resident} kB of its own in memory");
    assert!(resident < 12 * 1_024, "{resident} kB");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ends().await, Some(0));
}
