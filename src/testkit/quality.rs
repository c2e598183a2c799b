//! How speech sounds, judged by PESQ-WB (ITU-T P.862.2) in a process of its own.
//!
//! The script is `tools/quality/judge.py`; `make tools` installs what it runs on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::server::tools_dir;
use super::{Audio, TestkitError, checkout};
use crate::hex;

const REQUIREMENTS: &[u8] = include_bytes!("../../tools/quality/requirements.txt");

/// The Python that has PESQ: `$CALLREEL_QUALITY_PYTHON`, else the virtual environment in the tool folder.
pub fn python_path() -> PathBuf {
    if let Some(path) = std::env::var_os("CALLREEL_QUALITY_PYTHON").filter(|value| !value.is_empty()) {
        return path.into();
    }
    let digest = hex::encode(&Sha256::digest(REQUIREMENTS)[..6]);
    tools_dir().join(format!("python-quality-{digest}/bin/python"))
}

/// Something heard, to be judged against what was said in the conversation among the fixtures.
#[derive(Clone, Debug)]
pub struct Heard<'a> {
    /// What it is called in the answer.
    pub name: String,
    /// `agent` or `caller`: whose lines are judged.
    pub speaker: &'a str,
    /// What was said.
    pub original: &'a Audio,
    /// What was heard; it begins at the same moment, give or take a tenth of a second.
    pub heard: Audio,
}

#[derive(Serialize)]
struct Job<'a> {
    name: &'a str,
    speaker: &'a str,
    original: PathBuf,
    heard: PathBuf,
}

/// Judges each, line by line: from 1 (bad) to 4.64 (nothing lost).
///
/// # Errors
/// [`TestkitError::MissingTool`] without the tool, [`TestkitError::Script`] where it fails, [`TestkitError::Io`] and
/// [`TestkitError::Audio`] where files cannot be written.
pub fn judge(all: &[Heard<'_>]) -> Result<BTreeMap<String, Vec<f64>>, TestkitError> {
    let python = python_path();
    if !python.exists() {
        return Err(TestkitError::MissingTool { tool: "PESQ", path: python });
    }
    let folder = tempfile::tempdir().map_err(TestkitError::io("make a folder for sounds"))?;
    let write = |(index, heard): (usize, &'_ Heard<'_>)| -> Result<(PathBuf, PathBuf), TestkitError> {
        let [original, said] = ["original", "heard"].map(|kind| folder.path().join(format!("{index}-{kind}.wav")));
        heard.original.write_wav(&original)?;
        heard.heard.write_wav(&said)?;
        Ok((original, said))
    };
    let files = all.iter().enumerate().map(write).collect::<Result<Vec<_>, _>>()?;
    let jobs: Vec<Job<'_>> = all
        .iter()
        .zip(files)
        .map(|(of, (original, heard))| Job { name: &of.name, speaker: of.speaker, original, heard })
        .collect();
    run(&python, &serde_json::to_vec(&jobs).expect("plain data becomes JSON"))
}

fn run(python: &Path, jobs: &[u8]) -> Result<BTreeMap<String, Vec<f64>>, TestkitError> {
    let root = checkout();
    let failed = |reason: String, said: &[u8]| TestkitError::Script {
        name: "judge.py",
        reason,
        said: String::from_utf8_lossy(said).into_owned(),
    };
    let mut child = Command::new(python)
        .arg(root.join("tools/quality/judge.py"))
        .arg(root.join("fixtures/conversation.csv"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(TestkitError::io(format!("start {}", python.display())))?;
    // The script reads all of it before it writes anything.
    let mut stdin = child.stdin.take().expect("it was asked for");
    stdin.write_all(jobs).map_err(TestkitError::io("tell judge.py what to judge"))?;
    drop(stdin);
    let output = child.wait_with_output().map_err(TestkitError::io("wait for judge.py"))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string(), &output.stderr));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string(), &output.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_looked_for_where_it_is_installed() {
        let script = Command::new("bash")
            .args(["-euc", "source tools/lib.sh; quality_dir"])
            .current_dir(checkout())
            .output()
            .unwrap();
        let dir = String::from_utf8(script.stdout).unwrap();
        assert_eq!(python_path(), Path::new(dir.trim()).join("bin/python"));
    }
}
