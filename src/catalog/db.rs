//! The database itself: pools, the form of its tables, what differs between SQLite and PostgreSQL.

use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::any::{Any, AnyArguments, AnyConnectOptions, AnyPoolOptions, AnyRow};
use sqlx::query::Query;
use sqlx::{AnyPool, AssertSqlSafe, ColumnIndex, ConnectOptions, Decode, Row as _, Transaction, Type};
use time::OffsetDateTime;

use super::CatalogError;

/// How long a connection is waited for before the database counts as away.
const ACQUIRE: Duration = Duration::from_secs(5);

/// How long any call may take: a network that swallows packets gives no answer at all.
const WITHIN: Duration = Duration::from_secs(15);

/// The changes of the tables' form, in order; the number of the last is the form's.
const MIGRATIONS: [&str; 1] = [include_str!("migrations/0001.sql")];

/// What holds the form's number.
const FORM: &str = "CREATE TABLE IF NOT EXISTS callreel_form (form BIGINT NOT NULL)";

/// The lock that processes share which open one PostgreSQL database at once. Any number that nobody else uses.
const FORM_LOCK: i64 = 0x0063_616c_6c72_6565;

/// What a path has to be freed of in SQLite's addresses.
const IN_PATH: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'%').add(b'<').add(b'>').add(b'?').add(b'`');

/// A statement with its values.
pub(super) type Statement = Query<'static, Any, AnyArguments>;

/// A transaction. Dropped, it is rolled back.
pub(super) type Tx = Transaction<'static, Any>;

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    Sqlite,
    Postgres,
}

/// An open database.
#[derive(Clone, Debug)]
pub(super) struct Db {
    pool: AnyPool,
    backend: Backend,
}

impl Db {
    /// Opens the database at `url` and brings its tables into form.
    pub(super) async fn open(url: &str) -> Result<Self, CatalogError> {
        sqlx::any::install_default_drivers();
        let (backend, address, connections) = match url.split_once(':') {
            Some(("sqlite", ":memory:")) => (Backend::Sqlite, "sqlite::memory:".to_owned(), 1),
            Some(("sqlite", path)) => (Backend::Sqlite, sqlite_address(path)?, 3),
            Some(("postgres" | "postgresql", _)) => (Backend::Postgres, url.to_owned(), 5),
            _ => return Err(CatalogError::Url("write sqlite:///file, or postgres://user@host/database".to_owned())),
        };
        let options: AnyConnectOptions =
            address.parse().map_err(|_| CatalogError::Url("it is no address of a database".to_owned()))?;
        // A database that is slow shows in the figures; its statements are no news.
        let options = options.disable_statement_logging();
        let settings = backend.settings();
        let mut pool = AnyPoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE).after_connect(
            move |connection, _| Box::pin(async move { sqlx::raw_sql(settings).execute(connection).await.map(drop) }),
        );
        if backend == Backend::Sqlite {
            // What is in memory alone goes with its last connection.
            pool = pool.min_connections(1).idle_timeout(None).max_lifetime(None);
        }
        let pool = pool.connect_with(options).await.map_err(opening)?;
        let db = Self { pool, backend };
        db.migrate().await?;
        Ok(db)
    }

    /// The connections, for what needs no transaction.
    pub(super) fn pool(&self) -> &AnyPool {
        &self.pool
    }

    /// Begins a transaction that writes: on SQLite at once, so that no two of them meet half way.
    pub(super) async fn begin(&self) -> Result<Tx, sqlx::Error> {
        match self.backend {
            Backend::Sqlite => self.pool.begin_with("BEGIN IMMEDIATE").await,
            Backend::Postgres => self.pool.begin().await,
        }
    }

    /// What is put behind a `SELECT` of rows that the transaction will change.
    pub(super) fn for_update(&self) -> &'static str {
        match self.backend {
            Backend::Sqlite => "",
            Backend::Postgres => " FOR UPDATE",
        }
    }

    /// As [`for_update`](Self::for_update), where rows that another transaction holds can be left to it.
    pub(super) fn for_update_skip_locked(&self) -> &'static str {
        match self.backend {
            Backend::Sqlite => "",
            Backend::Postgres => " FOR UPDATE SKIP LOCKED",
        }
    }

    /// Closes all connections.
    pub(super) async fn close(&self) {
        self.pool.close().await;
    }

    async fn migrate(&self) -> Result<(), CatalogError> {
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        let mut tx = self.begin().await.map_err(opening)?;
        if self.backend == Backend::Postgres {
            query("SELECT 1 FROM pg_advisory_xact_lock($1)")
                .bind(FORM_LOCK)
                .execute(&mut *tx)
                .await
                .map_err(opening)?;
        }
        sqlx::raw_sql(FORM).execute(&mut *tx).await.map_err(opening)?;
        let found = query("SELECT form FROM callreel_form").fetch_optional(&mut *tx).await.map_err(opening)?;
        let found: Option<i64> = found.map(|row| row.try_get("form")).transpose().map_err(opening)?;
        if found.is_some_and(|found| found > known) {
            return Err(CatalogError::Newer { found: found.unwrap_or_default(), known });
        }
        let done = usize::try_from(found.unwrap_or(0)).unwrap_or(0);
        for sql in &MIGRATIONS[done..] {
            let sql = sql.replace("{key}", self.backend.key());
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.map_err(opening)?;
        }
        let note = match found {
            Some(_) => "UPDATE callreel_form SET form = $1",
            None => "INSERT INTO callreel_form (form) VALUES ($1)",
        };
        query(note).bind(known).execute(&mut *tx).await.map_err(opening)?;
        tx.commit().await.map_err(opening)
    }
}

impl Backend {
    /// What every connection is told first.
    const fn settings(self) -> &'static str {
        match self {
            // Readers beside one writer; what was told is on the disk, whatever dies.
            Self::Sqlite => {
                "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                 PRAGMA foreign_keys = ON; PRAGMA cache_size = -512; PRAGMA journal_size_limit = 4194304"
            }
            // Nothing waits for a process that died in the middle.
            Self::Postgres => {
                "SET statement_timeout = '12s'; SET lock_timeout = '10s'; \
                 SET idle_in_transaction_session_timeout = '30s'; SET synchronous_commit = on"
            }
        }
    }

    /// The type of a row number that is given once.
    const fn key(self) -> &'static str {
        match self {
            Self::Sqlite => "INTEGER PRIMARY KEY AUTOINCREMENT",
            Self::Postgres => "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
        }
    }
}

/// A call that ends, whatever the network does.
pub(super) async fn within<T>(call: impl Future<Output = Result<T, CatalogError>>) -> Result<T, CatalogError> {
    match tokio::time::timeout(WITHIN, call).await {
        Ok(done) => done,
        Err(_) => Err(CatalogError::Unavailable(format!("no answer within {} s", WITHIN.as_secs()))),
    }
}

fn opening(error: sqlx::Error) -> CatalogError {
    match CatalogError::from(error) {
        passing @ CatalogError::Unavailable(_) => passing,
        other => CatalogError::Open(other.to_string()),
    }
}

/// SQLite's address of the file that `path` (what follows `sqlite:`) says, its folder made where it is missing.
fn sqlite_address(path: &str) -> Result<String, CatalogError> {
    let path = path.strip_prefix("//").unwrap_or(path);
    let wrong = |why: &str| CatalogError::Url(why.to_owned());
    if path.contains(['?', '#']) {
        return Err(wrong("a SQLite file takes no parameters"));
    }
    let path = percent_decode_str(path).decode_utf8().map_err(|_| wrong("the file's name is no UTF-8"))?;
    if path.is_empty() || path.ends_with('/') {
        return Err(wrong("it names no file: write sqlite:///var/lib/callreel/catalog.db"));
    }
    let cannot = |why: std::io::Error| CatalogError::Open(format!("{path}: {why}"));
    let file: PathBuf = std::path::absolute(&*path).map_err(cannot)?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(cannot)?;
    }
    private(&file).map_err(cannot)?;
    let file = file.to_str().ok_or_else(|| wrong("the file's name is no UTF-8"))?;
    Ok(format!("sqlite://{}?mode=rwc", utf8_percent_encode(file, IN_PATH)))
}

/// Makes a file that nobody else may read, where there is none: who called whom is in it. One that is there is not even
/// opened, since closing it would end the locks that SQLite holds on it in this process.
fn private(file: &std::path::Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A statement made of this program's own words; what others say comes in as its values.
pub(super) fn query(sql: impl Into<String>) -> Statement {
    sqlx::query(AssertSqlSafe(sql.into()))
}

/// A text as both databases take it: PostgreSQL has no zero byte in texts.
pub(super) fn text(value: &str) -> String {
    value.replace('\0', "\u{fffd}")
}

/// A text that may be missing, as [`text`].
pub(super) fn maybe(value: Option<&str>) -> Option<String> {
    value.map(text)
}

/// A moment as it is kept: microseconds since 1970.
pub(super) fn micros(at: OffsetDateTime) -> i64 {
    // Years up to 9999 fit.
    i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000)).unwrap_or(i64::MAX)
}

/// A moment as both databases and this program give it back: whole microseconds.
pub(super) fn rounded(at: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros(at)) * 1_000).unwrap_or(at)
}

/// Plain data as JSON.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain data becomes JSON")
}

/// A row as the database gave it.
pub(super) struct Found<'a>(pub(super) &'a AnyRow);

impl<'a> Found<'a> {
    pub(super) fn get<T>(&self, column: &'static str) -> Result<T, CatalogError>
    where
        T: Decode<'a, Any> + Type<Any>,
        &'static str: ColumnIndex<AnyRow>,
    {
        self.0.try_get(column).map_err(|error| CatalogError::Damaged(format!("{column}: {error}")))
    }

    pub(super) fn flag(&self, column: &'static str) -> Result<bool, CatalogError> {
        Ok(self.get::<i64>(column)? != 0)
    }

    pub(super) fn at(&self, column: &'static str) -> Result<OffsetDateTime, CatalogError> {
        moment(self.get(column)?, column)
    }

    pub(super) fn maybe_at(&self, column: &'static str) -> Result<Option<OffsetDateTime>, CatalogError> {
        self.get::<Option<i64>>(column)?.map(|micros| moment(micros, column)).transpose()
    }

    pub(super) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, CatalogError> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|error| CatalogError::Damaged(format!("{column}: {error}")))
    }

    /// A word that says one of several things.
    pub(super) fn word<T: std::str::FromStr<Err = String>>(&self, column: &'static str) -> Result<T, CatalogError> {
        let word: String = self.get(column)?;
        word.parse().map_err(|why| CatalogError::Damaged(format!("{column}: {why}")))
    }
}

fn moment(micros: i64, column: &str) -> Result<OffsetDateTime, CatalogError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .map_err(|error| CatalogError::Damaged(format!("{column}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_keep_their_microseconds() {
        for at in [
            time::macros::datetime!(2026-11-22 04:30:00.123456789 UTC),
            time::macros::datetime!(1969-12-31 23:59:59.999999999 UTC),
        ] {
            let kept = moment(micros(at), "at").unwrap();
            assert!(at >= kept && at - kept < time::Duration::microseconds(1), "{at} became {kept}");
            assert_eq!((rounded(at), micros(kept)), (kept, micros(at)));
        }
    }

    #[tokio::test]
    async fn addresses_that_cannot_be_right_are_refused_without_showing_a_password() {
        for url in ["", "mysql://root:hunter2@host/x", "sqlite://", "sqlite:///tmp/", "sqlite:///tmp/x?mode=ro"] {
            let error = Db::open(url).await.unwrap_err();
            assert!(matches!(error, CatalogError::Url(_)), "{url}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = Db::open("postgres://user:hunter2@127.0.0.1:1/x?sslmode=disable").await.unwrap_err();
        assert!(error.is_transient() && !error.to_string().contains("hunter2"), "{error}");
    }

    #[tokio::test]
    async fn a_file_of_a_newer_callreel_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/some folder/with %3F.db", dir.path().display());
        let db = Db::open(&url).await.unwrap();
        assert!(dir.path().join("some folder/with ?.db").is_file());
        query("UPDATE callreel_form SET form = 99").execute(db.pool()).await.unwrap();
        db.close().await;
        assert!(matches!(Db::open(&url).await.unwrap_err(), CatalogError::Newer { found: 99, .. }));
    }
}
