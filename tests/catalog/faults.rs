//! What a catalogue keeps when processes die and servers go away.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use callreel::catalog::{Catalog, Change, Filter, NewRecording, Notice, Row, Status, nobody, patiently};
use callreel::clock;
use callreel::testkit::{PostgresServer, scaled};
use serde_json::json;

/// Tells the process that [`a_writer_writes_until_it_is_killed`] runs in where to write.
const WRITES_TO: &str = "CALLREEL_TEST_WRITES_TO";

fn told(row: &Row) -> Vec<Notice> {
    let id = &row.recording_id;
    let at = clock::wall();
    vec![Notice::new(&format!("{id}/{}", row.status), "recording.changed", id, "crm", json!({}), at)]
}

/// Begins and ends recordings, each with what is to be told of it, and says so of each step that is stored.
#[tokio::test]
async fn a_writer_writes_until_it_is_killed() {
    let Ok(url) = std::env::var(WRITES_TO) else { return };
    let catalog = Catalog::open(&url).await.unwrap();
    let process = std::process::id();
    for number in 0.. {
        let id = format!("R{process}-{number}");
        catalog.begin(NewRecording::new(&*id, &*id, clock::wall()), told).await.unwrap();
        println!("stored {id} starting");
        catalog.update(&id, &Change::status(Status::Ready), clock::wall(), told).await.unwrap();
        println!("stored {id} ready");
    }
}

/// Kills a process that writes, and looks whether everything it said was stored is there, and nothing half.
async fn a_killed_writer_leaves_what_it_stored(url: &str, steps: usize) {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::a_writer_writes_until_it_is_killed", "--nocapture"])
        .env(WRITES_TO, url)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let is_step = |line: &String| line.starts_with("stored ");
    let mut said: Vec<String> = lines.by_ref().map(Result::unwrap).filter(is_step).take(steps).collect();
    writer.kill().unwrap();
    writer.wait().unwrap();
    said.extend(lines.map_while(Result::ok).filter(is_step));
    assert!(said.len() >= steps, "{said:?}");

    let catalog = Catalog::open(url).await.unwrap();
    for line in &said {
        let [_, id, status] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let row = catalog.get(id).await.unwrap().unwrap_or_else(|| panic!("{id} is lost"));
        let notices = catalog.deliveries(None, Some(id), None, 10).await.unwrap().len();
        let wanted = if row.status == Status::Ready { 2 } else { 1 };
        assert_eq!(notices, wanted, "{id} is {} and has {notices} notices", row.status);
        assert!(status == "starting" || row.status == Status::Ready, "{line}, and now {}", row.status);
    }
    let rows = catalog.list(&Filter::default(), None, 500).await.unwrap().rows;
    for row in rows {
        let notices = catalog.deliveries(None, Some(&row.recording_id), None, 10).await.unwrap().len();
        assert_eq!(notices, if row.status == Status::Ready { 2 } else { 1 }, "{}", row.recording_id);
    }
    catalog.close().await;
}

#[tokio::test]
async fn a_sqlite_file_survives_whoever_writes_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/catalog.db", dir.path().display());
    for round in 0..scaled(4) {
        a_killed_writer_leaves_what_it_stored(&url, 1 + 13 * round as usize % 40).await;
    }
}

#[tokio::test]
async fn postgresql_survives_whoever_writes_to_it() {
    let server = PostgresServer::start().await.unwrap();
    let url = server.create_database("calls").await.unwrap();
    for round in 0..scaled(2) {
        a_killed_writer_leaves_what_it_stored(&url, 1 + 13 * round as usize % 40).await;
    }
}

#[tokio::test]
async fn nothing_is_lost_while_postgresql_is_away() {
    let mut server = PostgresServer::start().await.unwrap();
    let url = server.create_database("calls").await.unwrap();
    let catalog = Catalog::open(&url).await.unwrap();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                for number in 0..25 {
                    let id = format!("R{writer}-{number}");
                    let new = NewRecording::new(&*id, &*id, clock::wall());
                    patiently(|| catalog.begin(new.clone(), told)).await.unwrap();
                    let ready = Change::status(Status::Ready);
                    patiently(|| catalog.update(&id, &ready, clock::wall(), told)).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..scaled(2) {
        tokio::time::sleep(Duration::from_millis(60)).await;
        server.kill();
        // Who serves a connection may answer once more before it sees that the server is dead.
        let away = async {
            loop {
                if let Err(error) = catalog.ping().await {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(Duration::from_secs(30), away).await.expect("the server is dead");
        assert!(error.is_transient(), "{error}");
        server.restart().await.unwrap();
    }
    for writer in writers {
        writer.await.unwrap();
    }
    catalog.ping().await.unwrap();
    let rows = catalog.list(&Filter::default(), None, 500).await.unwrap().rows;
    assert_eq!(rows.len(), 100);
    for row in rows {
        assert_eq!(row.status, Status::Ready);
        let notices = catalog.deliveries(None, Some(&row.recording_id), None, 10).await.unwrap();
        assert_eq!(notices.len(), 2, "{}", row.recording_id);
    }
}

#[tokio::test]
async fn processes_that_open_an_empty_database_at_once_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let server = PostgresServer::start().await.unwrap();
    let file = format!("sqlite://{}/catalog.db", dir.path().display());
    for url in [file, server.create_database("calls").await.unwrap()] {
        let opening: Vec<_> = (0..8)
            .map(|number| {
                let url = url.clone();
                tokio::spawn(async move {
                    let catalog = Catalog::open(&url).await.unwrap();
                    let id = format!("R{number}");
                    catalog.begin(NewRecording::new(&*id, &*id, clock::wall()), nobody).await.unwrap();
                })
            })
            .collect();
        for opened in opening {
            opened.await.unwrap();
        }
        let catalog = Catalog::open(&url).await.unwrap();
        assert_eq!(catalog.count(&Filter::default()).await.unwrap(), 8);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_may_read_the_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(&format!("sqlite://{}/a/b.db", dir.path().display())).await.unwrap();
    catalog.begin(NewRecording::new("R1", "room", clock::wall()), nobody).await.unwrap();
    for entry in std::fs::read_dir(dir.path().join("a")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.file_name());
    }
}
