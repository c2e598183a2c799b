//! What every store has to do. Each check has a place of its own in the store, and fails with a panic.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use callreel::store::{Attributes, PutOptions, Store, StoreConfig, StoreError, UploadId};

/// A prefix of a store that belongs to one check.
#[derive(Clone)]
pub struct Place {
    pub config: StoreConfig,
}

impl Place {
    /// A client that knows nothing of any other.
    pub async fn open(&self) -> Store {
        Store::open(&self.config).await.unwrap()
    }
}

type Check = fn(Place) -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! checks {
    ($($name:ident),+ $(,)?) => {
        /// All checks with their names.
        pub const CHECKS: &[(&str, Check)] = &[$((stringify!($name), |place| Box::pin($name(place)))),+];
    };
}

checks![
    objects_come_back,
    keys_may_be_any_text,
    ranges_are_cut_at_the_end,
    create_only_never_overwrites,
    of_many_writers_one_creates,
    metadata_come_back,
    listings_are_complete_and_in_order,
    deleting_what_is_not_there_is_fine,
    parts_become_one_object,
    another_process_goes_on,
    a_part_can_be_sent_again,
    an_upload_never_replaces_an_object,
    an_upload_may_replace_an_object,
    completing_twice_succeeds_twice,
    a_strangers_object_is_not_taken_for_ours,
    aborting_is_final_and_repeatable,
    an_unknown_upload_is_gone,
    many_parts_are_listed,
    the_clock_goes,
    locations_name_the_object,
];

pub fn create_only() -> PutOptions {
    PutOptions { create_only: true, ..PutOptions::default() }
}

/// `length` bytes that differ from place to place.
pub fn noise(seed: u64, length: usize) -> Bytes {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    rng.fill(&mut bytes);
    bytes.into()
}

async fn keys(store: &Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().into_iter().map(|object| object.key).collect()
}

async fn objects_come_back(place: Place) {
    let store = place.open().await;
    assert_eq!(store.head("a").await.unwrap(), None);
    assert!(matches!(store.get("a", None).await, Err(StoreError::NotFound(_))));
    for content in [noise(1, 100_000), Bytes::new(), Bytes::from_static(b"shorter")] {
        let put = store.put("a", content.clone(), &PutOptions::default()).await.unwrap();
        assert_eq!((put.key.as_str(), put.size), ("a", content.len() as u64));
        assert_eq!(store.get("a", None).await.unwrap(), content);
        let head = store.head("a").await.unwrap().unwrap();
        assert_eq!((head.key.as_str(), head.size, &head.etag), ("a", content.len() as u64, &put.etag));
        assert!(!head.etag.is_empty() && !head.etag.contains('"'), "{:?}", head.etag);
        assert!(head.last_modified.is_some());
    }
}

async fn keys_may_be_any_text(place: Place) {
    let store = place.open().await;
    let mut names = [
        "two words.ogg",
        "Gespräch 7 – Zürich/ö.ogg",
        "a+b&c=d?e#f%20g%2Fh.ogg",
        "通話/録音.ogg",
        "quote'd \"and\" <angled>",
        "semi;colon:colon@at,comma!(x)*~[1]{2}|^`$",
    ];
    for name in names {
        let put = store.put(name, Bytes::copy_from_slice(name.as_bytes()), &create_only()).await;
        assert_eq!(put.unwrap().key, name);
    }
    names.sort_unstable();
    assert_eq!(keys(&store, "").await, names);
    for name in names {
        assert_eq!(store.get(name, None).await.unwrap(), name.as_bytes(), "{name}");
        assert_eq!(store.head(name).await.unwrap().unwrap().key, name);
    }
    let upload = store.begin("Gespräch 8/a+b %.ogg", &Attributes::default()).await.unwrap();
    let part = store.put_part("Gespräch 8/a+b %.ogg", &upload, 1, noise(2, 1_000)).await.unwrap();
    let parts = [part];
    assert_eq!(store.parts("Gespräch 8/a+b %.ogg", &upload).await.unwrap(), parts);
    store.complete("Gespräch 8/a+b %.ogg", &upload, &parts, true).await.unwrap();
    assert_eq!(keys(&store, "Gespräch 8/").await, ["Gespräch 8/a+b %.ogg"]);
    store.delete(&names.map(str::to_owned)).await.unwrap();
    assert_eq!(keys(&store, "").await, ["Gespräch 8/a+b %.ogg"]);
}

async fn ranges_are_cut_at_the_end(place: Place) {
    let store = place.open().await;
    let content = noise(3, 1_000);
    store.put("a", content.clone(), &PutOptions::default()).await.unwrap();
    for (range, expected) in [(0..1, 0..1), (10..20, 10..20), (900..5_000, 900..1_000), (0..1_000, 0..1_000)] {
        assert_eq!(store.get("a", Some(range.clone())).await.unwrap(), content.slice(expected), "{range:?}");
    }
    for range in [5..5, 1_000..1_001, 4_000..5_000] {
        assert_eq!(store.get("a", Some(range.clone())).await.unwrap(), Bytes::new(), "{range:?}");
    }
    assert!(matches!(store.get("b", Some(0..10)).await, Err(StoreError::NotFound(_))));
}

async fn create_only_never_overwrites(place: Place) {
    let store = place.open().await;
    store.put("a", noise(4, 10), &create_only()).await.unwrap();
    let error = store.put("a", noise(5, 10), &create_only()).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists(_)), "{error:?}");
    assert!(error.to_string().contains(&store.location("a")), "{error}");
    assert_eq!(store.get("a", None).await.unwrap(), noise(4, 10));
}

async fn of_many_writers_one_creates(place: Place) {
    let mut writers = tokio::task::JoinSet::new();
    for seed in 0..8 {
        let place = place.clone();
        writers.spawn(async move {
            let store = place.open().await;
            match store.put("lease", noise(seed, 100), &create_only()).await {
                Ok(_) => Some(seed),
                Err(StoreError::AlreadyExists(_)) => None,
                Err(error) => panic!("{error}"),
            }
        });
    }
    let created: Vec<u64> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(created.len(), 1, "created by {created:?}");
    assert_eq!(place.open().await.get("lease", None).await.unwrap(), noise(created[0], 100));
}

async fn metadata_come_back(place: Place) {
    let store = place.open().await;
    let mut attributes = Attributes::typed("audio/ogg; codecs=opus")
        .with("recording-id", "01JD8ZQ6WYNE3E0K4E3VTQ7J7W")
        .with("room", "Büro 100% – 通話 ")
        .with("empty-value", "");
    attributes.content_disposition = Some("attachment; filename=\"call.ogg\"".to_owned());
    let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
    store.put("a", noise(6, 10), &options).await.unwrap();
    let upload = store.begin("b", &attributes).await.unwrap();
    let part = store.put_part("b", &upload, 1, noise(6, 10)).await.unwrap();
    let completed = store.complete("b", &upload, &[part], false).await.unwrap();
    for found in [store.head("a").await.unwrap().unwrap(), store.head("b").await.unwrap().unwrap(), completed] {
        assert_eq!(found.metadata["recording-id"], "01JD8ZQ6WYNE3E0K4E3VTQ7J7W");
        assert_eq!(found.metadata["room"], "Büro 100% – 通話 ");
        assert!(found.metadata.get("empty-value").is_none_or(String::is_empty));
    }
    let refused = PutOptions { attributes: Attributes::default().with("Not_Portable", "x"), ..PutOptions::default() };
    assert!(store.put("c", Bytes::new(), &refused).await.is_err());
}

async fn listings_are_complete_and_in_order(place: Place) {
    let store = place.open().await;
    assert_eq!(keys(&store, "").await, [""; 0]);
    let mut names: Vec<String> = (0..25).map(|number| format!("tails/{number:03}")).collect();
    names.extend(["tails.json", "tails-of-another/1", "z"].map(str::to_owned));
    for name in &names {
        store.put(name, Bytes::copy_from_slice(name.as_bytes()), &PutOptions::default()).await.unwrap();
    }
    names.sort_unstable();
    assert_eq!(keys(&store, "").await, names);
    assert_eq!(keys(&store, "tails/").await, names[2..27]);
    assert_eq!(keys(&store, "tails/00").await, names[2..12]);
    assert_eq!(keys(&store, "nothing").await, [""; 0]);
    let found = store.list("tails/001").await.unwrap();
    assert_eq!(found[0].size, 9);
    assert!(found[0].last_modified.is_some());
    assert_eq!(found[0].etag, store.head("tails/001").await.unwrap().unwrap().etag);
}

async fn deleting_what_is_not_there_is_fine(place: Place) {
    let store = place.open().await;
    store.put("a", noise(7, 10), &PutOptions::default()).await.unwrap();
    store.put("a & <b>", noise(7, 10), &PutOptions::default()).await.unwrap();
    let all = ["a", "never/was", "a & <b>"].map(str::to_owned);
    store.delete(&all).await.unwrap();
    store.delete(&all).await.unwrap();
    store.delete(&[]).await.unwrap();
    assert_eq!(keys(&store, "").await, [""; 0]);
}

async fn parts_become_one_object(place: Place) {
    let store = place.open().await;
    let size = usize::try_from(store.part_size()).unwrap();
    let content = noise(8, 2 * size + 1_234);
    let upload = store.begin("call.ogg", &Attributes::typed("audio/ogg")).await.unwrap();
    let mut parts = Vec::new();
    for (number, bytes) in (1..).zip([content.slice(..size), content.slice(size..2 * size), content.slice(2 * size..)])
    {
        let part = store.put_part("call.ogg", &upload, number, bytes.clone()).await.unwrap();
        assert_eq!((part.number, part.size), (number, bytes.len() as u64));
        parts.push(part);
        assert_eq!(store.head("call.ogg").await.unwrap(), None, "half an object can be seen");
        assert_eq!(keys(&store, "").await, [""; 0]);
    }
    let object = store.complete("call.ogg", &upload, &parts, true).await.unwrap();
    assert_eq!((object.key.as_str(), object.size), ("call.ogg", content.len() as u64));
    assert_eq!(store.get("call.ogg", None).await.unwrap(), content);
    assert_eq!(keys(&store, "").await, ["call.ogg"]);
}

async fn another_process_goes_on(place: Place) {
    let store = place.open().await;
    let size = usize::try_from(store.part_size()).unwrap();
    let content = noise(9, size + 1_000);
    let attributes = Attributes::default().with("recording-id", "R9");
    let upload = store.begin("call.ogg", &attributes).await.unwrap();
    let first = store.put_part("call.ogg", &upload, 1, content.slice(..size)).await.unwrap();
    let journal = serde_json::to_string(&upload).unwrap();
    drop(store);

    let store = place.open().await;
    let upload: UploadId = serde_json::from_str(&journal).unwrap();
    assert_eq!(store.parts("call.ogg", &upload).await.unwrap(), [first]);
    store.put_part("call.ogg", &upload, 2, content.slice(size..)).await.unwrap();
    let parts = store.parts("call.ogg", &upload).await.unwrap();
    let object = store.complete("call.ogg", &upload, &parts, true).await.unwrap();
    assert_eq!(object.metadata["recording-id"], "R9");
    assert_eq!(store.get("call.ogg", None).await.unwrap(), content);
}

async fn a_part_can_be_sent_again(place: Place) {
    let store = place.open().await;
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let old = store.put_part("a", &upload, 1, noise(10, 2_000)).await.unwrap();
    let new = store.put_part("a", &upload, 1, noise(11, 1_000)).await.unwrap();
    assert_ne!(old.tag, new.tag);
    let parts = [new];
    assert_eq!(store.parts("a", &upload).await.unwrap(), parts);
    store.complete("a", &upload, &parts, true).await.unwrap();
    assert_eq!(store.get("a", None).await.unwrap(), noise(11, 1_000));
}

async fn an_upload_never_replaces_an_object(place: Place) {
    let store = place.open().await;
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let part = store.put_part("a", &upload, 1, noise(12, 1_000)).await.unwrap();
    store.put("a", Bytes::from_static(b"first"), &PutOptions::default()).await.unwrap();
    let error = store.complete("a", &upload, &[part], true).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists(_)), "{error:?}");
    assert_eq!(store.get("a", None).await.unwrap(), Bytes::from_static(b"first"));
    store.abort("a", &upload).await.unwrap();
}

async fn an_upload_may_replace_an_object(place: Place) {
    let store = place.open().await;
    store.put("a", Bytes::from_static(b"first"), &PutOptions::default()).await.unwrap();
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let part = store.put_part("a", &upload, 1, noise(13, 1_000)).await.unwrap();
    assert_eq!(store.get("a", None).await.unwrap(), Bytes::from_static(b"first"));
    store.complete("a", &upload, &[part], false).await.unwrap();
    assert_eq!(store.get("a", None).await.unwrap(), noise(13, 1_000));
}

async fn completing_twice_succeeds_twice(place: Place) {
    let store = place.open().await;
    for create_only in [true, false] {
        let key = format!("a-{create_only}");
        let upload = store.begin(&key, &Attributes::default()).await.unwrap();
        let parts = [store.put_part(&key, &upload, 1, noise(14, 1_000)).await.unwrap()];
        let first = store.complete(&key, &upload, &parts, create_only).await.unwrap();
        let again = place.open().await.complete(&key, &upload, &parts, create_only).await.unwrap();
        assert_eq!((first.size, first.etag), (again.size, again.etag));
        assert_eq!(store.get(&key, None).await.unwrap(), noise(14, 1_000));
    }
}

async fn a_strangers_object_is_not_taken_for_ours(place: Place) {
    let store = place.open().await;
    let ours = store.begin("a", &Attributes::default()).await.unwrap();
    let theirs = store.begin("a", &Attributes::default()).await.unwrap();
    let our_part = store.put_part("a", &ours, 1, noise(15, 1_000)).await.unwrap();
    let their_part = store.put_part("a", &theirs, 1, noise(16, 1_000)).await.unwrap();
    store.complete("a", &theirs, &[their_part], true).await.unwrap();
    let error = store.complete("a", &ours, &[our_part], true).await.unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists(_) | StoreError::Gone(_)), "{error:?}");
    assert_eq!(store.get("a", None).await.unwrap(), noise(16, 1_000));
}

async fn aborting_is_final_and_repeatable(place: Place) {
    let store = place.open().await;
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    store.put_part("a", &upload, 1, noise(17, 1_000)).await.unwrap();
    store.abort("a", &upload).await.unwrap();
    store.abort("a", &upload).await.unwrap();
    assert_eq!(store.head("a").await.unwrap(), None);
}

async fn an_unknown_upload_is_gone(place: Place) {
    let store = place.open().await;
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let part = store.put_part("a", &upload, 1, noise(18, 1_000)).await.unwrap();
    store.abort("a", &upload).await.unwrap();
    match store.complete("a", &upload, &[part], true).await {
        Err(StoreError::Gone(_)) => assert_eq!(store.head("a").await.unwrap(), None),
        // A store without uploads of their own has no way to abort one.
        Ok(_) if matches!(place.config, StoreConfig::Azure(_)) => {}
        other => panic!("{other:?}"),
    }
}

async fn many_parts_are_listed(place: Place) {
    let store = place.open().await;
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let mut sent = Vec::new();
    // Not in order, as retries may come.
    for number in [2, 12, 1, 3, 10, 4, 11, 5, 9, 6, 8, 7] {
        sent.push(store.put_part("a", &upload, number, noise(u64::from(number), 100)).await.unwrap());
    }
    sent.sort_by_key(|part| part.number);
    assert_eq!(store.parts("a", &upload).await.unwrap(), sent);
    store.abort("a", &upload).await.unwrap();
}

async fn the_clock_goes(place: Place) {
    let store = place.open().await;
    let (first, second) = (store.now().await.unwrap(), store.now().await.unwrap());
    assert!(first <= second, "{first} then {second}");
    let off = (first - callreel::clock::wall()).unsigned_abs();
    assert!(off < Duration::from_secs(60), "a server on this machine is {off:?} off");
}

async fn locations_name_the_object(place: Place) {
    let store = place.open().await;
    let (whole, object) = (store.to_string(), store.location("x y/z.ogg"));
    assert_eq!(object, format!("{whole}/x y/z.ogg"));
}
