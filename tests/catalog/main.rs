//! The catalogue on each database that it runs on: the same checks, a real server.

/// Lists the checks of a file with their names.
macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        pub const CHECKS: &[(&str, crate::Check)] = &[$((stringify!($name), |catalog| Box::pin($name(catalog)))),+];
    };
}

mod checks;
mod faults;
mod outbox;
mod rebuild;

use std::pin::Pin;

use callreel::catalog::Catalog;
use callreel::testkit::PostgresServer;

type Check = fn(Catalog) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Runs all checks, each on an empty catalogue at the address that `place` makes of its name, and tells which failed.
async fn conforms(place: impl AsyncFn(&str) -> String) {
    let mut failed = Vec::new();
    let all: Vec<&(&str, Check)> = checks::CHECKS.iter().chain(outbox::CHECKS).collect();
    for (name, check) in &all {
        let catalog = Catalog::open(&place(name).await).await.unwrap();
        if tokio::spawn(check(catalog.clone())).await.is_err() {
            failed.push(*name);
        }
        catalog.close().await;
    }
    assert!(failed.is_empty(), "{} of {} checks failed: {failed:?}", failed.len(), all.len());
}

#[tokio::test]
async fn a_sqlite_file_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(async |name| format!("sqlite://{}/{name}.db", dir.path().display())).await;
}

#[tokio::test]
async fn memory_alone_conforms() {
    conforms(async |_| "sqlite::memory:".to_owned()).await;
}

#[tokio::test]
async fn postgresql_conforms() {
    let server = PostgresServer::start().await.unwrap();
    conforms(async |name| server.create_database(name).await.unwrap()).await;
}
