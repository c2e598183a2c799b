//! A real PostgreSQL server on loopback.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::TestkitError;
use super::guard::{Guarded, read_log, tail};
use super::storage::free_port;

/// Where Debian keeps the server's programs, in a folder for each version.
const DEBIAN: &str = "/usr/lib/postgresql";

const USER: &str = "callreel";
const PASSWORD: &str = "a password with @ / and ?";
const PASSWORD_IN_URL: &str = "a%20password%20with%20%40%20%2F%20and%20%3F";

const START_TIMEOUT: Duration = Duration::from_secs(60);
const HEALTH_INTERVAL: Duration = Duration::from_millis(50);

/// The user that owns nothing: the server does not run as root.
const NOBODY: u32 = 65_534;

/// Who made a folder as root.
const ROOT: u32 = 0;

/// A running PostgreSQL server. Dropping it ends the process.
#[derive(Debug)]
pub struct PostgresServer {
    programs: PathBuf,
    port: u16,
    process: Option<Guarded>,
    dir: tempfile::TempDir,
}

impl PostgresServer {
    /// Starts a server without databases of its own, and waits until it answers.
    ///
    /// # Errors
    ///
    /// [`TestkitError::MissingTool`] where it is not installed; [`TestkitError::ToolStart`] where it ended or does not answer.
    pub async fn start() -> Result<Self, TestkitError> {
        let programs = programs()?;
        let dir = tempfile::Builder::new()
            .prefix("callreel-postgres-")
            .tempdir()
            .map_err(TestkitError::io("a folder for PostgreSQL"))?;
        if owner(dir.path()) == Some(ROOT) {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).map_err(TestkitError::io("the folder of PostgreSQL"))?;
        }
        let password = dir.path().join("password");
        fs::write(&password, PASSWORD).map_err(TestkitError::io("the password of PostgreSQL"))?;
        let mut initdb = command(&programs.join("initdb"), dir.path());
        initdb.args(["--pgdata=data", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--no-sync"]);
        initdb.args([format!("--username={USER}"), format!("--pwfile={}", password.display())]);
        let made = initdb.output().map_err(TestkitError::io("initdb"))?;
        if !made.status.success() {
            let log = tail(&String::from_utf8_lossy(&made.stderr));
            return Err(TestkitError::ToolStart { tool: "initdb", reason: made.status.to_string(), log });
        }
        let mut server = Self { programs, port: free_port()?, process: None, dir };
        server.restart().await?;
        Ok(server)
    }

    /// Makes an empty database and gives its address.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] with the server's words.
    pub async fn create_database(&self, name: &str) -> Result<String, TestkitError> {
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\"")).await?;
        Ok(self.url(name))
    }

    /// Carries out statements of the test's own in a database.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] with the server's words.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), TestkitError> {
        let failed = |error: sqlx::Error| TestkitError::Storage(format!("PostgreSQL: {error}"));
        let mut connection = PgConnection::connect(&self.url(database)).await.map_err(failed)?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.map_err(failed)?;
        connection.close().await.map_err(failed)
    }

    /// The address of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD_IN_URL}@127.0.0.1:{}/{database}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends the server at once, as a crash would. Does nothing where it is dead already.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the server again with the same data on the same port; kills it before, where it still runs.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.kill();
        let started = tokio::time::timeout(START_TIMEOUT, async {
            loop {
                let mut process = self.spawn()?;
                if self.ready(&mut process).await? {
                    return Ok(process);
                }
                // Those who served connections of a server that was killed notice a little later, and keep its place so long.
                tokio::time::sleep(HEALTH_INTERVAL).await;
            }
        });
        let reason = format!("no answer within {} s", START_TIMEOUT.as_secs());
        self.process = Some(started.await.unwrap_or_else(|_| Err(self.failed(reason)))?);
        Ok(())
    }

    fn spawn(&self) -> Result<Guarded, TestkitError> {
        let binary = self.programs.join("postgres");
        let mut server = command(&binary, self.dir.path());
        server.args(["-D", "data", "-p", &self.port.to_string()]);
        // What a process has written survives its death without being synced, and no test turns the machine off.
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "fsync=off",
            "shared_buffers=16MB",
            "max_connections=60",
        ] {
            server.args(["-c", setting]);
        }
        // Its log tells which of its lives said what.
        let _ = fs::remove_file(self.dir.path().join("server.log"));
        Guarded::spawn(&mut server, self.dir.path()).map_err(TestkitError::io("starting PostgreSQL"))
    }

    /// Waits until it answers; not where its place is still taken.
    async fn ready(&self, process: &mut Guarded) -> Result<bool, TestkitError> {
        loop {
            if let Some(why) = process.ended() {
                let log = read_log(self.dir.path());
                let is_taken = log.contains("still in use") || log.contains("Is another postmaster");
                return if is_taken { Ok(false) } else { Err(self.failed(why)) };
            }
            if let Ok(connection) = PgConnection::connect(&self.url("postgres")).await {
                let _ = connection.close().await;
                return Ok(true);
            }
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }

    fn failed(&self, reason: String) -> TestkitError {
        TestkitError::ToolStart { tool: "PostgreSQL", reason, log: tail(&read_log(self.dir.path())) }
    }
}

/// A command that is not run as root, in `dir`.
fn command(binary: &Path, dir: &Path) -> Command {
    let mut command = Command::new(binary);
    command.current_dir(dir).env("LC_ALL", "C");
    if owner(dir) == Some(NOBODY) {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn owner(dir: &Path) -> Option<u32> {
    fs::metadata(dir).ok().map(|found| found.uid())
}

/// The folder of the newest server that is installed.
fn programs() -> Result<PathBuf, TestkitError> {
    let versions = fs::read_dir(DEBIAN).into_iter().flatten().flatten();
    let numbered = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    let debian = numbered.max().map(|(_, path)| path.join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = debian.into_iter().chain(std::env::split_paths(&path));
    places
        .find(|place| place.join("initdb").is_file() && place.join("postgres").is_file())
        .ok_or_else(|| TestkitError::MissingTool { tool: "PostgreSQL", path: DEBIAN.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn starts_serves_dies_and_comes_back_with_its_data() {
        let mut server = PostgresServer::start().await.unwrap();
        let url = server.create_database("calls").await.unwrap();
        server.execute("calls", "CREATE TABLE kept (x BIGINT); INSERT INTO kept VALUES (7)").await.unwrap();
        server.kill();
        assert!(server.execute("calls", "SELECT 1").await.is_err());
        server.restart().await.unwrap();
        assert_eq!(server.url("calls"), url);
        server.execute("calls", "DELETE FROM kept WHERE x <> 7; ALTER TABLE kept ADD CHECK (x = 7)").await.unwrap();
        assert!(server.execute("calls", "UPDATE kept SET x = 8").await.is_err(), "the row is there");
    }
}
