//! What every catalogue has to do with what is to be told.

use std::collections::BTreeSet;

use callreel::catalog::{
    Attempt, Catalog, CatalogError, Change, Delivery, DeliveryCounts, DeliveryState, Notice, Row, Status,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use crate::checks::{HOSTILE, NOW, begin, finish};

checks![
    what_is_told_is_stored_with_the_change,
    a_change_that_fails_tells_nothing,
    what_is_due_is_given_once,
    what_failed_is_due_later,
    who_is_too_late_ends_nothing,
    of_what_happens_once_one_notice_is_kept,
    what_was_given_up_can_go_again,
    lists_lead_through_deliveries,
    a_tombstone_takes_what_was_to_be_told,
    what_was_delivered_long_ago_is_let_go,
];

const LEASE: Duration = Duration::seconds(30);

fn notice(once: &str, endpoint: &str) -> Notice {
    Notice::new(once, "recording.ready", "R1", endpoint, json!({ "event": once }), NOW)
}

async fn due(catalog: &Catalog, endpoint: &str, now: OffsetDateTime) -> Vec<Delivery> {
    catalog.due(&[endpoint], now, now + LEASE, 10).await.unwrap()
}

async fn one(catalog: &Catalog, endpoint: &str, now: OffsetDateTime) -> Delivery {
    let mut found = due(catalog, endpoint, now).await;
    assert_eq!(found.len(), 1);
    found.remove(0)
}

fn attempt(error: Option<&str>, at: OffsetDateTime) -> Attempt {
    Attempt { status: error.is_none().then_some(200), error: error.map(str::to_owned), at }
}

async fn what_is_told_is_stored_with_the_change(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    let tell = |row: &Row| {
        let body = json!({ "status": row.status, "who": HOSTILE });
        vec![Notice::new("R1/active", "recording.started", &row.recording_id, "crm", body, NOW)]
    };
    catalog.update("R1", &Change::status(Status::Active), NOW, tell).await.unwrap();
    let delivery = one(&catalog, "crm", NOW).await;
    assert_eq!(delivery.body, json!({ "status": "active", "who": HOSTILE }));
    assert_eq!((delivery.event.as_str(), delivery.recording_id.as_str()), ("recording.started", "R1"));
    assert_eq!((delivery.state, delivery.attempts, delivery.created_at), (DeliveryState::Pending, 1, NOW));
    assert!(catalog.delivered(&delivery, &attempt(None, NOW)).await.unwrap());
    let told = catalog.delivery(&delivery.id).await.unwrap().unwrap();
    assert_eq!((told.state, told.last_status, told.ended_at), (DeliveryState::Delivered, Some(200), Some(NOW)));
    assert_eq!(due(&catalog, "crm", NOW + Duration::days(1)).await, []);
}

async fn a_change_that_fails_tells_nothing(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    finish(&catalog, "R1", NOW).await;
    let tell = |_: &Row| vec![notice("x", "crm")];
    assert!(catalog.update("R1", &Change::status(Status::Active), NOW, tell).await.is_err());
    assert_eq!(catalog.delivery_counts().await.unwrap(), DeliveryCounts::default());
}

async fn what_is_due_is_given_once(catalog: Catalog) {
    let notices: Vec<Notice> = (0..40).map(|number| notice(&format!("{number}"), "crm")).collect();
    catalog.enqueue(&notices).await.unwrap();
    catalog.enqueue(&[notice("x", "other")]).await.unwrap();
    assert_eq!(due(&catalog, "crm", NOW - Duration::seconds(1)).await, [], "nothing is due before it happened");
    assert_eq!(catalog.due(&[], NOW, NOW + LEASE, 10).await.unwrap(), []);
    let workers: Vec<_> = (0..8)
        .map(|_| {
            let catalog = catalog.clone();
            tokio::spawn(async move {
                let mut mine = Vec::new();
                // More often than there is anything to take.
                for _ in 0..20 {
                    let found = catalog.due(&["crm"], NOW, NOW + LEASE, 3).await.unwrap();
                    mine.extend(found.into_iter().map(|delivery| delivery.id));
                }
                mine
            })
        })
        .collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    assert_eq!((all.len(), all.iter().collect::<BTreeSet<_>>().len()), (40, 40));
    assert_eq!(catalog.next_due(&["crm"]).await.unwrap(), Some(NOW + LEASE));
    assert_eq!(catalog.next_due(&["other"]).await.unwrap(), Some(NOW));
    assert_eq!(catalog.next_due(&["nobody"]).await.unwrap(), None);
    // Whoever took them died.
    assert_eq!(due(&catalog, "crm", NOW + LEASE).await.len(), 10);
}

async fn what_failed_is_due_later(catalog: Catalog) {
    catalog.enqueue(&[notice("x", "crm")]).await.unwrap();
    let first = one(&catalog, "crm", NOW).await;
    let next_at = NOW + Duration::seconds(5);
    assert!(catalog.failed(&first, &attempt(Some("503"), NOW), next_at).await.unwrap());
    assert_eq!(catalog.next_due(&["crm"]).await.unwrap(), Some(next_at));
    assert_eq!(due(&catalog, "crm", next_at - Duration::microseconds(1)).await, []);
    let second = one(&catalog, "crm", next_at).await;
    assert_eq!((second.attempts, second.last_error.as_deref(), &second.id), (2, Some("503"), &first.id));
}

async fn who_is_too_late_ends_nothing(catalog: Catalog) {
    catalog.enqueue(&[notice("x", "crm")]).await.unwrap();
    let first = one(&catalog, "crm", NOW).await;
    let second = one(&catalog, "crm", NOW + LEASE).await;
    let late = attempt(Some("too late"), NOW + LEASE);
    assert!(!catalog.failed(&first, &late, NOW).await.unwrap());
    assert!(!catalog.dead(&first, &late).await.unwrap());
    assert!(catalog.delivered(&second, &attempt(None, NOW + LEASE)).await.unwrap());
    assert!(!catalog.failed(&second, &late, NOW).await.unwrap(), "once is enough");
    let told = catalog.delivery(&first.id).await.unwrap().unwrap();
    assert_eq!((told.state, told.last_error), (DeliveryState::Delivered, None));
}

async fn of_what_happens_once_one_notice_is_kept(catalog: Catalog) {
    let first = notice("R1/ready", "crm");
    catalog.enqueue(&[first.clone(), notice("R1/ready", "crm"), notice("R1/ready", "other")]).await.unwrap();
    catalog.enqueue(&[notice("R1/ready", "crm")]).await.unwrap();
    let found = catalog.deliveries(None, Some("R1"), None, 10).await.unwrap();
    let to: BTreeSet<&str> = found.iter().map(|delivery| delivery.endpoint.as_str()).collect();
    assert_eq!((found.len(), to), (2, BTreeSet::from(["crm", "other"])));
    assert!(found.iter().any(|delivery| delivery.id == first.id));
}

async fn what_was_given_up_can_go_again(catalog: Catalog) {
    catalog.enqueue(&[notice("x", "crm")]).await.unwrap();
    let delivery = one(&catalog, "crm", NOW).await;
    assert!(catalog.dead(&delivery, &attempt(Some("410"), NOW)).await.unwrap());
    assert_eq!(due(&catalog, "crm", NOW + Duration::days(9)).await, []);
    assert_eq!(catalog.delivery_counts().await.unwrap(), DeliveryCounts { pending: 0, dead: 1 });
    let later = NOW + Duration::days(9);
    let again = catalog.redeliver(&delivery.id, later).await.unwrap();
    assert_eq!((again.state, again.attempts, again.tried_since), (DeliveryState::Pending, 0, later));
    assert_eq!((again.created_at, again.ended_at), (NOW, None));
    let taken = one(&catalog, "crm", later).await;
    assert_eq!((&taken.id, taken.attempts), (&delivery.id, 1));
    assert!(catalog.delivered(&taken, &attempt(None, later)).await.unwrap());
    catalog.redeliver(&delivery.id, later).await.unwrap();
    assert_eq!(one(&catalog, "crm", later).await.id, delivery.id, "what was taken can go again, too");
    assert!(matches!(catalog.redeliver("WD_x", NOW).await, Err(CatalogError::NoEntry { .. })));
}

async fn lists_lead_through_deliveries(catalog: Catalog) {
    let notices: Vec<Notice> = (0..5)
        .map(|number| Notice { at: NOW + Duration::seconds(number), ..notice(&format!("{number}"), "crm") })
        .map(|notice| Notice::new(&notice.once, &notice.event, "R1", "crm", notice.body, notice.at))
        .collect();
    catalog.enqueue(&notices).await.unwrap();
    let ids: Vec<&str> = notices.iter().rev().map(|notice| notice.id.as_str()).collect();
    let list = async |state, of: Option<&str>, before: Option<&str>| -> Vec<String> {
        let found = catalog.deliveries(state, of, before, 2).await.unwrap();
        found.into_iter().map(|delivery| delivery.id).collect()
    };
    assert_eq!(list(None, None, None).await, ids[..2]);
    assert_eq!(list(Some(DeliveryState::Pending), Some("R1"), Some(ids[1])).await, ids[2..4]);
    assert_eq!(list(Some(DeliveryState::Dead), None, None).await, [""; 0]);
    assert_eq!(list(None, Some("R2"), None).await, [""; 0]);
    for hostile in HOSTILE {
        assert_eq!(list(None, Some(hostile), None).await, [""; 0]);
    }
    assert_eq!(catalog.delivery("WD_x").await.unwrap(), None);
}

async fn a_tombstone_takes_what_was_to_be_told(catalog: Catalog) {
    begin(&catalog, "R1", "room", NOW).await;
    finish(&catalog, "R1", NOW).await;
    let other = Notice { recording_id: "R2".into(), ..notice("R2/ready", "crm") };
    catalog.enqueue(&[notice("R1/ready", "crm"), other]).await.unwrap();
    let under_way = due(&catalog, "crm", NOW).await;
    catalog.delete("R1", "alice", "asked", NOW).await.unwrap();
    let tell = |row: &Row| {
        assert!(row.deleted.is_some());
        vec![Notice::new("R1/deleted", "recording.deleted", "R1", "crm", json!({}), NOW)]
    };
    catalog.tombstone("R1", NOW, tell).await.unwrap();
    let left = catalog.deliveries(None, None, None, 10).await.unwrap();
    let events: Vec<(&str, &str)> = left.iter().map(|it| (it.recording_id.as_str(), it.event.as_str())).collect();
    assert_eq!(events.len(), 2, "{events:?}");
    assert!(events.contains(&("R1", "recording.deleted")) && events.contains(&("R2", "recording.ready")));
    let gone = under_way.iter().find(|delivery| delivery.recording_id == "R1").unwrap();
    assert!(!catalog.failed(gone, &attempt(Some("503"), NOW), NOW).await.unwrap());
}

async fn what_was_delivered_long_ago_is_let_go(catalog: Catalog) {
    catalog.enqueue(&[notice("a", "crm"), notice("b", "crm"), notice("c", "crm")]).await.unwrap();
    let found = due(&catalog, "crm", NOW).await;
    catalog.delivered(&found[0], &attempt(None, NOW)).await.unwrap();
    catalog.dead(&found[1], &attempt(Some("410"), NOW)).await.unwrap();
    assert_eq!(catalog.prune(NOW, NOW, NOW).await.unwrap().deliveries, 0);
    let later = NOW + Duration::seconds(1);
    assert_eq!(catalog.prune(later, later, later).await.unwrap().deliveries, 1);
    assert_eq!(catalog.deliveries(None, None, None, 10).await.unwrap().len(), 2);
}
