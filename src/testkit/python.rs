//! The official Python SDK (real libwebrtc) as publisher and as subscriber, in a process of its own.
//!
//! The scripts are `tests/interop/publish.py` and `subscribe.py`; `make tools` installs what they run on.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use super::server::tools_dir;
use super::{Audio, LiveKitServer, TestkitError, checkout};
use crate::hex;

const REQUIREMENTS: &[u8] = include_bytes!("../../tools/requirements.txt");
/// How long a script may stay without a word, beside what its plan takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The Python that has the SDK: `$CALLREEL_PYTHON`, else the virtual environment in the tool folder.
pub fn python_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CALLREEL_PYTHON").filter(|value| !value.is_empty()) {
        return path.into();
    }
    let digest = hex::encode(&Sha256::digest(REQUIREMENTS)[..6]);
    tools_dir().join(format!("python-{digest}/bin/python"))
}

/// What a [`PythonPublisher`] does. Times are seconds from the common start.
#[derive(Clone, Debug, Default)]
pub struct PublishPlan {
    /// Milliseconds of audio that each source may queue; 0 hands every 10 ms to libwebrtc as it comes.
    pub queue_ms: u32,
    /// Sessions of participants; one identity may have several, one after the other.
    pub participants: Vec<PythonParticipant>,
}

/// One session of one participant.
#[derive(Clone, Debug, Serialize)]
pub struct PythonParticipant {
    /// Who it is.
    pub identity: String,
    /// The participant's attributes (`sip.callStatus`…).
    pub attributes: std::collections::BTreeMap<String, String>,
    /// When it joins; `None`: before the start.
    pub join: Option<f64>,
    /// When it leaves.
    pub leave: f64,
    /// Spans in which its microphone is published; `None`: always.
    pub publish: Option<Vec<(f64, f64)>>,
    /// Spans in which its microphone is muted.
    pub mute: Vec<(f64, f64)>,
    /// What it says, and when each sound's first sample is said.
    #[serde(skip)]
    pub sounds: Vec<(Audio, f64)>,
    /// Whether the encoder stops sending in silence.
    pub dtx: bool,
    /// Whether it sends redundant audio (RED, RFC 2198), which the SDK does by default.
    pub red: bool,
    /// Whether it publishes a camera, too.
    pub video: bool,
    /// The passphrase with which it encrypts from end to end.
    pub e2ee_key: Option<String>,
    /// That passphrase is its own, and not the room's.
    pub e2ee_own_key: bool,
    /// When it turns to the next key.
    pub ratchet: Vec<f64>,
}

impl PythonParticipant {
    /// A participant who is there before the start and silent until it leaves, with the SDK's own audio settings.
    pub fn new(identity: &str, leave: f64) -> Self {
        Self {
            identity: identity.to_owned(),
            attributes: Default::default(),
            join: None,
            leave,
            publish: None,
            mute: Vec::new(),
            sounds: Vec::new(),
            dtx: true,
            red: true,
            video: false,
            e2ee_key: None,
            e2ee_own_key: false,
            ratchet: Vec::new(),
        }
    }

    /// Says a sound (its first channel, at 16 bits) at `at`; sounds of one participant must not overlap.
    pub fn says(mut self, sound: &Audio, at: f64) -> Self {
        self.sounds.push((sound.clone(), at));
        self
    }

    /// What the script reads of it, its sounds in files.
    fn line(&self, folder: &Path) -> Result<ParticipantLine<'_>, TestkitError> {
        let file = |(index, (sound, at)): (usize, &(Audio, f64))| {
            let file = folder.join(format!("{}-{}-{index}.pcm", self.identity, self.join.unwrap_or(0.0)));
            let samples = sound.channel(0).iter().map(|sample| (sample * 32_767.0).round() as i16);
            let bytes: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
            std::fs::write(&file, bytes).map_err(TestkitError::io(format!("write {}", file.display())))?;
            Ok(SoundFile { file, at: *at })
        };
        let sounds = self.sounds.iter().enumerate().map(file).collect::<Result<_, _>>()?;
        Ok(ParticipantLine { participant: self, sounds })
    }
}

/// Something a script reports.
#[derive(Clone, Debug, Deserialize)]
pub struct PythonEvent {
    /// What happened: see the head of each script.
    pub event: String,
    /// When, on the monotonic clock, in nanoseconds.
    pub monotonic_ns: u64,
    /// When, on the wall clock, in seconds since 1970.
    pub wall: f64,
    /// To whom.
    pub identity: Option<String>,
    /// With "done": how late the latest 10 ms tick was. Large values mean that the machine was too busy to judge by.
    pub latest_tick_ms: Option<f64>,
}

/// Participants in one process and on one clock. Dropping it ends the process.
#[derive(Debug)]
pub struct PythonPublisher {
    script: Script,
    /// Holds the sounds while the script reads them.
    _folder: TempDir,
}

impl PythonPublisher {
    /// Starts the process and waits until everybody who is there before the start has joined and published.
    ///
    /// # Errors
    ///
    /// [`TestkitError::MissingTool`] if the SDK is not installed; [`TestkitError::Script`] with the script's own words
    /// if it failed.
    pub async fn spawn(server: &LiveKitServer, room: &str, plan: &PublishPlan) -> Result<Self, TestkitError> {
        let folder = tempfile::tempdir().map_err(TestkitError::io("a folder for sounds"))?;
        let participants = plan.participants.iter().map(|participant| participant.line(folder.path()));
        let line = PublishLine { queue_ms: plan.queue_ms, participants: participants.collect::<Result<_, _>>()? };
        let mut script = Script::spawn("publish.py").await?;
        script.send(&connection(server, room, &line)).await?;
        script.until("ready", None).await?;
        let length = plan.participants.iter().map(|participant| participant.leave).fold(0.0, f64::max);
        script.patience += Duration::from_secs_f64(length);
        Ok(Self { script, _folder: folder })
    }

    /// The common start: returns what the script reports of it.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Script`] if the script failed, as with all calls here.
    pub async fn start(&mut self) -> Result<PythonEvent, TestkitError> {
        self.script.send_line("go").await?;
        self.script.until("started", None).await
    }

    /// Waits for an event of a participant that has not been waited for before. Earlier events are passed over.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start); also if the script ends without it.
    pub async fn until(&mut self, event: &str, identity: &str) -> Result<PythonEvent, TestkitError> {
        self.script.until(event, Some(identity)).await
    }

    /// Waits until everybody has left; returns everything that was reported, from the beginning.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn finish(mut self) -> Result<Vec<PythonEvent>, TestkitError> {
        self.script.until("done", None).await?;
        self.script.end().await
    }
}

/// Joins as a subscriber and leaves after the first sound; returns everything that was reported.
///
/// # Errors
///
/// As [`PythonPublisher::spawn`].
pub async fn subscribe(server: &LiveKitServer, room: &str, identity: &str) -> Result<Vec<PythonEvent>, TestkitError> {
    #[derive(Serialize)]
    struct SubscribePlan<'a> {
        identity: &'a str,
    }
    let mut script = Script::spawn("subscribe.py").await?;
    script.send(&connection(server, room, &SubscribePlan { identity })).await?;
    script.until("first_sound", None).await?;
    script.end().await
}

#[derive(Serialize)]
struct PublishLine<'a> {
    queue_ms: u32,
    participants: Vec<ParticipantLine<'a>>,
}

#[derive(Serialize)]
struct ParticipantLine<'a> {
    #[serde(flatten)]
    participant: &'a PythonParticipant,
    sounds: Vec<SoundFile>,
}

#[derive(Serialize)]
struct SoundFile {
    file: PathBuf,
    at: f64,
}

#[derive(Serialize)]
struct Connection<'a, P> {
    url: String,
    api_key: &'a str,
    api_secret: &'a str,
    room: &'a str,
    #[serde(flatten)]
    plan: &'a P,
}

fn connection<'a, P: Serialize>(server: &'a LiveKitServer, room: &'a str, plan: &'a P) -> Connection<'a, P> {
    Connection { url: server.url(), api_key: server.api_key(), api_secret: server.api_secret(), room, plan }
}

/// A running script that reads lines and reports events.
#[derive(Debug)]
struct Script {
    name: &'static str,
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
    patience: Duration,
    seen: Vec<PythonEvent>,
}

impl Script {
    async fn spawn(name: &'static str) -> Result<Self, TestkitError> {
        let python = python_path();
        if !python.is_file() {
            return Err(TestkitError::MissingTool { tool: "the LiveKit SDK for Python", path: python });
        }
        let folder = checkout().join("tests/interop");
        let mut child = Command::new(python)
            .arg("-B")
            .arg(folder.join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(TestkitError::io(format!("start {name}")))?;
        let (Some(stdin), Some(stdout), Some(mut stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            unreachable!("all three were asked for as pipes");
        };
        let stderr = tokio::spawn(async move {
            let mut said = Vec::new();
            // What could be read before an error is all there is to tell.
            let _ = stderr.read_to_end(&mut said).await;
            String::from_utf8_lossy(&said).into_owned()
        });
        Ok(Self {
            name,
            child,
            stdin,
            stdout: BufReader::new(stdout).lines(),
            stderr: Some(stderr),
            patience: PATIENCE,
            seen: Vec::new(),
        })
    }

    async fn send(&mut self, message: &impl Serialize) -> Result<(), TestkitError> {
        let line = serde_json::to_string(message).map_err(|error| self.failed(error.to_string(), String::new()))?;
        self.send_line(&line).await
    }

    async fn send_line(&mut self, line: &str) -> Result<(), TestkitError> {
        let written = self.stdin.write_all(format!("{line}\n").as_bytes()).await;
        match written {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error.to_string()).await),
        }
    }

    async fn until(&mut self, event: &str, identity: Option<&str>) -> Result<PythonEvent, TestkitError> {
        while let Some(seen) = self.next().await? {
            if seen.event == event && (identity.is_none() || seen.identity.as_deref() == identity) {
                return Ok(seen);
            }
        }
        Err(self.explain(format!("it ended without '{event}'")).await)
    }

    async fn next(&mut self) -> Result<Option<PythonEvent>, TestkitError> {
        let line = match tokio::time::timeout(self.patience, self.stdout.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return Err(self.explain(error.to_string()).await),
            Err(_) => return Err(self.explain(format!("silent for {} s", self.patience.as_secs())).await),
        };
        match serde_json::from_str::<PythonEvent>(&line) {
            Ok(event) => {
                self.seen.push(event.clone());
                Ok(Some(event))
            }
            Err(error) => Err(self.explain(format!("{error} in '{line}'")).await),
        }
    }

    /// Reads the rest, and checks that the script ended well.
    async fn end(mut self) -> Result<Vec<PythonEvent>, TestkitError> {
        while self.next().await?.is_some() {}
        let status = self.child.wait().await.map_err(TestkitError::io(format!("wait for {}", self.name)))?;
        if !status.success() {
            return Err(self.explain(status.to_string()).await);
        }
        Ok(self.seen)
    }

    /// The error, with what the script wrote on standard error; ends it first, so that this is complete.
    async fn explain(&mut self, reason: String) -> TestkitError {
        // It may have ended by itself.
        let _ = self.child.start_kill();
        let said = match self.stderr.take() {
            Some(stderr) => stderr.await.unwrap_or_default(),
            None => String::new(),
        };
        self.failed(reason, said)
    }

    fn failed(&self, reason: String, said: String) -> TestkitError {
        TestkitError::Script { name: self.name, reason, said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_lies_where_the_installer_puts_it() {
        let output = std::process::Command::new("bash")
            .args(["-euc", "source tools/lib.sh; venv_dir requirements"])
            .current_dir(checkout())
            .env_remove("CALLREEL_PYTHON")
            .output()
            .expect("bash runs the installer's own library");

        let dir = String::from_utf8(output.stdout).expect("a path in UTF-8");

        assert_eq!(python_path(), Path::new(dir.trim()).join("bin/python"));
    }

    #[tokio::test]
    async fn a_failing_script_says_why() {
        let mut script = Script::spawn("publish.py").await.expect("`make tools` installed the SDK");
        script.send_line("not a plan").await.expect("the script reads a line");

        let error = script.until("ready", None).await.expect_err("this is no plan");

        let TestkitError::Script { name, said, .. } = error else { panic!("{error}") };
        assert_eq!(name, "publish.py");
        assert!(said.contains("JSONDecodeError"), "{said}");
    }
}
