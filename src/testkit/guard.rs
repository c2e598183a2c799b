//! Servers that end with the process that started them.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// How much of a log an error tells.
const LOG_TAIL: usize = 4_000;

/// A server's process, ended when this is dropped, or when this process is killed.
#[derive(Debug)]
pub(super) struct Guarded {
    child: Child,
    guard: Child,
}

impl Guarded {
    /// Starts a server whose output goes to `server.log` in `dir`.
    pub(super) fn spawn(command: &mut Command, dir: &Path) -> io::Result<Self> {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("server.log"))?;
        let mut child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        // A test process that is killed drops nothing. Its end of this pipe closes all the same, and the guard then
        // ends the one server it was told of.
        let guard = Command::new("sh")
            .args(["-c", "read -r _; kill -9 \"$1\" 2>/dev/null", "sh"])
            .arg(child.id().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match guard {
            Ok(guard) => Ok(Self { child, guard }),
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    /// The server's process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Why it does not run any more; none while it does.
    pub(super) fn ended(&mut self) -> Option<String> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("it ended with {status}")),
            Err(error) => Some(format!("its state is unknown: {error}")),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // The guard first: once the server is reaped its id may belong to another process.
        end(&mut self.guard);
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // Both fail only where the process has ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

/// What a server has said.
pub(super) fn read_log(dir: &Path) -> String {
    match std::fs::read(dir.join("server.log")) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("(no log: {error})"),
    }
}

/// The end of what it has said.
pub(super) fn tail(log: &str) -> String {
    let start = log.floor_char_boundary(log.len().saturating_sub(LOG_TAIL));
    log[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_cut_between_characters() {
        let log = "ä".repeat(LOG_TAIL);
        assert!(tail(&log).len() <= LOG_TAIL);
        assert_eq!(tail("short"), "short");
    }
}
