//! Outgoing webhooks to a real receiver that refuses, is slow, leads elsewhere, dies.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use callreel::catalog::{Catalog, Change, DeliveryCounts, DeliveryState, NewRecording, Row, Status, nobody};
use callreel::clock;
use callreel::config::OutputKind;
use callreel::notify::{
    Endpoint, Event, EventKind, Figures, Format, Links, NoLinks, Notifier, NotifyConfig, SIGNATURE, verify,
};
use callreel::recording::{Outcome, OutputResult};
use callreel::testkit::{Answers, PostgresServer, Received, WebhookReceiver};
use serde_json::json;

/// How long anything here may take at most.
const SOON: Duration = Duration::from_secs(20);

/// A catalogue that outlives who delivers from it.
struct Store {
    catalog: Catalog,
    _dir: tempfile::TempDir,
}

impl Store {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&format!("sqlite://{}/catalog.db", dir.path().display())).await.unwrap();
        Self { catalog, _dir: dir }
    }
}

fn endpoint(receiver: &WebhookReceiver) -> Endpoint {
    Endpoint { secret: Some("hush".into()), ..Endpoint::new("crm", receiver.url()) }
}

/// Waits that a test can wait for.
fn hasty(endpoints: Vec<Endpoint>) -> NotifyConfig {
    NotifyConfig {
        endpoints,
        allow_private: true,
        timeout: Duration::from_secs(15),
        first_wait: Duration::from_millis(100),
        longest_wait: Duration::from_secs(1),
        look_every: Duration::from_secs(5),
        ..NotifyConfig::default()
    }
}

fn spawn(catalog: &Catalog, config: NotifyConfig) -> Notifier {
    Notifier::spawn(catalog.clone(), config, Arc::new(NoLinks)).unwrap()
}

fn about(notifier: &Notifier, kind: EventKind) -> impl Fn(&Row) -> Vec<callreel::catalog::Notice> + Send + Sync {
    notifier.about(Event::new(kind, clock::wall()))
}

/// A recording that is ready, and told of.
async fn ready(catalog: &Catalog, notifier: &Notifier, id: &str) -> Row {
    catalog.begin(NewRecording::new(id, format!("room of {id}"), clock::wall()), nobody).await.unwrap();
    let change = Change {
        outcome: Some(Outcome::Complete),
        outputs: Some(vec![OutputResult {
            kind: OutputKind::Mix,
            participant: None,
            location: format!("s3://calls/recordings/{id}.ogg"),
            duration_seconds: 35.2,
            bytes: 1_354_028,
            sha256: "ab".into(),
        }]),
        objects: Some(vec![format!("recordings/{id}.ogg")]),
        ..Change::status(Status::Ready)
    };
    catalog.update(id, &change, clock::wall(), about(notifier, EventKind::Ready)).await.unwrap()
}

/// Waits until nothing is pending any more.
async fn settled(catalog: &Catalog) -> DeliveryCounts {
    let wait = async {
        loop {
            let counts = catalog.delivery_counts().await.unwrap();
            if counts.pending == 0 {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("deliveries come to an end")
}

fn ids(received: &[Received]) -> BTreeSet<&str> {
    received.iter().map(|one| one.header("x-callreel-delivery")).collect()
}

#[tokio::test]
async fn a_receiver_is_told_at_once_and_signed() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    let look_every = Duration::from_secs(15);
    let notifier = spawn(&store.catalog, NotifyConfig { look_every, ..hasty(vec![endpoint(&receiver)]) });
    let begun = clock::now();
    ready(&store.catalog, &notifier, "R1").await;
    let received = receiver.wait_for(1, SOON).await;
    assert!(received[0].at - begun < look_every, "nobody waits for the next look");
    let one = &received[0];
    assert_eq!((one.target.as_str(), one.header("content-type")), ("/hooks/calls?of=callreel", "application/json"));
    assert_eq!((one.header("x-callreel-event"), one.header("x-callreel-attempt")), ("recording.ready", "1"));
    assert_eq!(one.json()["recording"]["recording_id"], "R1");
    assert!(verify(one.header(SIGNATURE), "hush", &one.body, clock::wall(), Duration::from_secs(60)));
    assert!(!verify(one.header(SIGNATURE), "other", &one.body, clock::wall(), Duration::from_secs(60)));
    settled(&store.catalog).await;
    let delivery = store.catalog.delivery(one.header("x-callreel-delivery")).await.unwrap().unwrap();
    assert_eq!((delivery.state, delivery.last_status), (DeliveryState::Delivered, Some(200)));
    assert_eq!(notifier.figures(), Figures { delivered: 1, failed: 0, dead: 0 });
}

/// Addresses on a domain of one's own.
struct Cdn;

#[async_trait]
impl Links for Cdn {
    async fn download_url(&self, _: &str, key: &str) -> Result<Option<String>, String> {
        Ok(Some(format!("https://cdn.example/{key}")))
    }
}

/// Addresses that are not known at first.
struct Unknown {
    times: AtomicU32,
}

#[async_trait]
impl Links for Unknown {
    async fn download_url(&self, recording_id: &str, key: &str) -> Result<Option<String>, String> {
        match self.times.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Err("the store is away".into()),
            Err(_) => Cdn.download_url(recording_id, key).await,
        }
    }
}

#[tokio::test]
async fn nobody_is_told_of_a_file_before_its_address_is_known() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    let links = Arc::new(Unknown { times: AtomicU32::new(2) });
    let notifier = Notifier::spawn(store.catalog.clone(), hasty(vec![endpoint(&receiver)]), links).unwrap();
    ready(&store.catalog, &notifier, "R1").await;
    let received = receiver.wait_for(1, SOON).await;
    assert_eq!(received[0].json()["recording"]["download_url"], "https://cdn.example/recordings/R1.ogg");
    assert_eq!((received.len(), received[0].header("x-callreel-attempt")), (1, "3"));
}

#[tokio::test]
async fn each_receiver_gets_what_it_wants_as_it_wants_it() {
    let store = Store::new().await;
    let (own, workflow) = (WebhookReceiver::start().await.unwrap(), WebhookReceiver::start().await.unwrap());
    let some = Endpoint { events: vec![EventKind::Deleted], ..Endpoint::new("own", own.url()) };
    let egress = Endpoint { format: Format::EgressEnded, ..Endpoint::new("workflow", workflow.url()) };
    let config = hasty(vec![some, egress]);
    let notifier = Notifier::spawn(store.catalog.clone(), config, Arc::new(Cdn)).unwrap();
    ready(&store.catalog, &notifier, "AJ_xxx").await;
    let change = Change { metadata: Some(json!({ "a": 1 })), ..Change::default() };
    let paused = about(&notifier, EventKind::Paused);
    store.catalog.update("AJ_xxx", &change, clock::wall(), paused).await.unwrap();
    store.catalog.delete("AJ_xxx", "alice", "asked", clock::wall()).await.unwrap();
    workflow.wait_for(1, SOON).await;
    settled(&store.catalog).await;
    store.catalog.tombstone("AJ_xxx", clock::wall(), about(&notifier, EventKind::Deleted)).await.unwrap();
    let deleted = own.wait_for(1, SOON).await;
    assert_eq!(deleted[0].json()["recording"]["deleted"]["by"], "alice");
    assert_eq!(deleted[0].header(SIGNATURE), "", "without a secret there is no signature");
    let told = workflow.received();
    assert_eq!(told.len(), 1);
    assert_eq!(
        told[0].json(),
        json!({
            "event": "egress_ended", "egress_id": "AJ_xxx", "room_name": "room of AJ_xxx", "status": "complete",
            "file_results": [{
                "filename": "recordings/AJ_xxx.ogg", "size": 1_354_028, "duration": 35.2,
                "download_url": "https://cdn.example/recordings/AJ_xxx.ogg",
            }],
        })
    );
}

#[tokio::test]
async fn whatever_a_receiver_answers_it_is_told_again_until_it_takes_it() {
    let elsewhere = WebhookReceiver::start().await.unwrap();
    for answers in [
        Answers::Status(500),
        Answers::Status(404),
        Answers::Status(401),
        Answers::Redirect(elsewhere.url()),
        Answers::Silent,
        Answers::HangsUp,
        Answers::Trickles,
    ] {
        let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
        receiver.answers(answers.clone());
        let impatient = NotifyConfig { timeout: Duration::from_millis(500), ..hasty(vec![endpoint(&receiver)]) };
        let notifier = spawn(&store.catalog, impatient);
        ready(&store.catalog, &notifier, "R1").await;
        receiver.wait_for(2, SOON).await;
        let pending = store.catalog.deliveries(None, None, None, 1).await.unwrap().remove(0);
        assert_eq!(pending.state, DeliveryState::Pending, "{answers:?}");
        assert!(pending.last_error.is_some(), "{answers:?}");
        receiver.answers(Answers::Status(204));
        assert_eq!(settled(&store.catalog).await, DeliveryCounts::default(), "{answers:?}");
        let received = receiver.received();
        assert_eq!(ids(&received).len(), 1, "{answers:?}: it is one delivery");
        let attempts: Vec<&str> = received.iter().map(|one| one.header("x-callreel-attempt")).collect();
        assert!(attempts.starts_with(&["1", "2"]), "{answers:?}: {attempts:?}");
    }
    assert_eq!(elsewhere.received().len(), 0, "nobody follows");
}

#[tokio::test]
async fn a_receiver_that_says_when_is_left_alone_so_long() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    receiver.answers(Answers::RetryAfter(503, 1));
    let notifier = spawn(&store.catalog, hasty(vec![endpoint(&receiver)]));
    ready(&store.catalog, &notifier, "R1").await;
    let received = receiver.wait_for(2, SOON).await;
    assert!(received[1].at - received[0].at >= Duration::from_millis(950));
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_given_up_and_can_be_told_later() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    receiver.answers(Answers::Status(410));
    let notifier = spawn(&store.catalog, hasty(vec![endpoint(&receiver)]));
    ready(&store.catalog, &notifier, "R1").await;
    assert_eq!(settled(&store.catalog).await.dead, 1);
    assert_eq!((receiver.received().len(), notifier.figures().dead), (1, 1));
    let dead = store.catalog.deliveries(Some(DeliveryState::Dead), None, None, 10).await.unwrap();
    receiver.answers(Answers::Status(200));
    store.catalog.redeliver(&dead[0].id, clock::wall()).await.unwrap();
    assert_eq!(settled(&store.catalog).await, DeliveryCounts::default());
    assert_eq!(ids(&receiver.wait_for(2, SOON).await).len(), 1);
}

#[tokio::test]
async fn what_nobody_takes_is_given_up_in_the_end() {
    let store = Store::new().await;
    let mut receiver = WebhookReceiver::start().await.unwrap();
    receiver.kill().await;
    let few = NotifyConfig { max_attempts: 3, ..hasty(vec![endpoint(&receiver)]) };
    let notifier = spawn(&store.catalog, few);
    ready(&store.catalog, &notifier, "R1").await;
    assert_eq!(settled(&store.catalog).await.dead, 1);
    let dead = store.catalog.deliveries(Some(DeliveryState::Dead), None, None, 10).await.unwrap();
    assert_eq!((dead[0].attempts, dead[0].last_status), (3, None));
    notifier.stop().await;

    let brief = NotifyConfig { max_age: Duration::from_millis(300), ..hasty(vec![endpoint(&receiver)]) };
    let notifier = spawn(&store.catalog, brief);
    ready(&store.catalog, &notifier, "R2").await;
    assert_eq!(settled(&store.catalog).await.dead, 2);
}

#[tokio::test]
async fn a_receiver_that_was_away_gets_everything() {
    let store = Store::new().await;
    let mut receiver = WebhookReceiver::start().await.unwrap();
    receiver.kill().await;
    let notifier = spawn(&store.catalog, hasty(vec![endpoint(&receiver)]));
    for number in 0..30 {
        ready(&store.catalog, &notifier, &format!("R{number}")).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    receiver.restart().await.unwrap();
    assert_eq!(settled(&store.catalog).await, DeliveryCounts::default());
    let received = receiver.received();
    assert_eq!((received.len(), ids(&received).len()), (30, 30), "each once");
}

#[tokio::test]
async fn another_process_goes_on_where_one_ended() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    receiver.answers(Answers::Status(503));
    let wait = Duration::from_secs(2);
    let slow = NotifyConfig { first_wait: wait, longest_wait: wait, ..hasty(vec![endpoint(&receiver)]) };
    let first = spawn(&store.catalog, slow.clone());
    ready(&store.catalog, &first, "R1").await;
    receiver.wait_for(1, SOON).await;
    first.stop().await;
    let waiting = store.catalog.deliveries(None, None, None, 1).await.unwrap().remove(0);
    assert_eq!((waiting.state, waiting.attempts), (DeliveryState::Pending, 1));
    receiver.answers(Answers::Status(200));
    let _second = spawn(&store.catalog, slow);
    settled(&store.catalog).await;
    let received = receiver.received();
    assert_eq!((received.len(), ids(&received).len()), (2, 1));
    assert_eq!(received[1].header("x-callreel-attempt"), "2");
    let waited = received[1].at - received[0].at;
    assert!(waited >= Duration::from_millis(950), "the wait is not forgotten: {waited:?}");
}

#[tokio::test]
async fn what_a_killed_process_had_taken_is_delivered_by_the_next() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    let quiet = spawn(&store.catalog, NotifyConfig { endpoints: vec![], ..hasty(vec![]) });
    let of_dead = spawn(&store.catalog, hasty(vec![endpoint(&receiver)]));
    of_dead.stop().await;
    ready(&store.catalog, &of_dead, "R1").await;
    // It took the delivery for itself, and died.
    let now = clock::wall();
    let taken = store.catalog.due(&["crm"], now, now + Duration::from_millis(1_500), 10).await.unwrap();
    assert_eq!(taken.len(), 1);
    let _next = spawn(&store.catalog, hasty(vec![endpoint(&receiver)]));
    settled(&store.catalog).await;
    let received = receiver.received();
    assert_eq!((received.len(), received[0].header("x-callreel-attempt")), (1, "2"));
    quiet.stop().await;
}

#[tokio::test]
async fn a_slow_receiver_keeps_no_other_waiting() {
    let store = Store::new().await;
    let (slow, quick) = (WebhookReceiver::start().await.unwrap(), WebhookReceiver::start().await.unwrap());
    slow.answers(Answers::Silent);
    let both = vec![Endpoint::new("slow", slow.url()), Endpoint::new("quick", quick.url())];
    let notifier = spawn(&store.catalog, hasty(both));
    for number in 0..10 {
        ready(&store.catalog, &notifier, &format!("R{number}")).await;
    }
    quick.wait_for(10, Duration::from_secs(10)).await;
    slow.wait_for(4, Duration::from_secs(10)).await;
    assert_eq!(slow.received().len() as u32, NotifyConfig::default().at_once);
}

#[tokio::test]
async fn private_receivers_are_told_only_where_that_is_allowed() {
    let (store, receiver) = (Store::new().await, WebhookReceiver::start().await.unwrap());
    let strict = |url: &str| NotifyConfig { allow_private: false, ..hasty(vec![Endpoint::new("crm", url)]) };
    let refused = Notifier::spawn(store.catalog.clone(), strict(&receiver.url()), Arc::new(NoLinks)).unwrap_err();
    assert!(refused.to_string().contains("private"), "{refused}");
    // A name tells nothing before it is resolved, which is done anew for each connection.
    let name = receiver.url().replace("127.0.0.1", "hooks.localhost");
    let notifier = spawn(&store.catalog, strict(&name));
    ready(&store.catalog, &notifier, "R1").await;
    let failed = async {
        loop {
            let delivery = store.catalog.deliveries(None, None, None, 1).await.unwrap().remove(0);
            match delivery.last_error {
                Some(why) => return why,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let why = tokio::time::timeout(SOON, failed).await.unwrap();
    assert!(why.contains("private"), "{why}");
    assert_eq!(receiver.received().len(), 0);
    notifier.stop().await;
    let _lenient = spawn(&store.catalog, hasty(vec![Endpoint::new("crm", name)]));
    receiver.wait_for(1, SOON).await;
}

#[tokio::test]
async fn two_processes_on_one_database_tell_once() {
    let receiver = WebhookReceiver::start().await.unwrap();
    let mut server = PostgresServer::start().await.unwrap();
    let url = server.create_database("calls").await.unwrap();
    let (one, other) = (Catalog::open(&url).await.unwrap(), Catalog::open(&url).await.unwrap());
    let config = NotifyConfig { look_every: Duration::from_millis(100), ..hasty(vec![endpoint(&receiver)]) };
    let (first, second) = (spawn(&one, config.clone()), spawn(&other, config));
    for number in 0..20 {
        let (catalog, notifier) = if number % 2 == 0 { (&one, &first) } else { (&other, &second) };
        ready(catalog, notifier, &format!("R{number}")).await;
    }
    settled(&one).await;
    let received = receiver.received();
    assert_eq!((received.len(), ids(&received).len()), (20, 20));

    // What was stored before the database went away is delivered after it is back.
    receiver.answers(Answers::Status(503));
    ready(&one, &first, "late").await;
    receiver.wait_for(21, SOON).await;
    server.kill();
    receiver.answers(Answers::Status(200));
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.restart().await.unwrap();
    let all = async {
        while !matches!(one.delivery_counts().await, Ok(DeliveryCounts { pending: 0, .. })) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), all).await.expect("it is delivered");
    assert_eq!(ids(&receiver.received()).len(), 21);
}
