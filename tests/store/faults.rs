//! What a store says, and does, on a bad day.

use std::net::TcpListener;
use std::time::Duration;

use bytes::Bytes;
use callreel::store::{
    AssumeRole, Attributes, ProxyConfig, PutOptions, Retention, RetentionMode, RetryConfig, S3Config, Secret, Store,
    StoreConfig, StoreError,
};
use callreel::testkit::{Relay, StorageServer};

use crate::checks::{create_only, noise};

const QUICK: RetryConfig = RetryConfig {
    max_retries: 2,
    min_retry_delay: Duration::from_millis(20),
    max_retry_delay: Duration::from_millis(50),
    attempt_timeout: Duration::from_secs(5),
};

async fn open(config: S3Config) -> Store {
    Store::open(&StoreConfig::S3(S3Config { retry: QUICK, ..config })).await.unwrap()
}

#[tokio::test]
async fn wrong_keys_are_refused_by_every_call() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let wrong_secret = S3Config { secret: Some("wrong".into()), ..server.s3_config("calls") };
    let unknown_key = S3Config { access_key: Some("nobody".to_owned()), ..server.s3_config("calls") };
    for config in [wrong_secret, unknown_key] {
        let store = open(config).await;
        let refused = |error: StoreError| {
            assert!(matches!(error, StoreError::Refused(_)) && !error.is_retryable(), "{error:?}");
            assert!(error.to_string().contains("s3://calls/a"), "{error}");
        };
        refused(store.put("a", Bytes::new(), &create_only()).await.unwrap_err());
        refused(store.get("a", None).await.unwrap_err());
        refused(store.head("a").await.unwrap_err());
        refused(store.list("a").await.unwrap_err());
        refused(store.delete(&["a".to_owned()]).await.unwrap_err());
        refused(store.begin("a", &Attributes::default()).await.unwrap_err());
        assert!(store.now().await.is_ok(), "the clock is told to strangers too");
    }
}

#[tokio::test]
async fn a_missing_bucket_is_told_as_one() {
    let server = StorageServer::versitygw().await.unwrap();
    let store = open(server.s3_config("nowhere")).await;
    for error in [
        store.put("a", Bytes::new(), &PutOptions::default()).await.unwrap_err(),
        store.begin("a", &Attributes::default()).await.unwrap_err(),
        store.list("").await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Gone(_)), "{error:?}");
        assert!(error.to_string().contains("s3://nowhere") && error.to_string().contains("NoSuchBucket"), "{error}");
    }
}

#[tokio::test]
async fn a_bucket_that_is_deleted_under_an_upload_is_gone() {
    let server = StorageServer::versitygw().await.unwrap();
    let store = server.store("calls").await.unwrap();
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let part = store.put_part("a", &upload, 1, noise(1, 1_000)).await.unwrap();
    server.delete_bucket("calls").await.unwrap();
    for error in [
        store.put_part("a", &upload, 2, noise(1, 1_000)).await.unwrap_err(),
        store.complete("a", &upload, &[part], true).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Gone(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_down_is_unavailable_within_bounds() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = S3Config {
        bucket: "calls".to_owned(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        access_key: Some("key".to_owned()),
        secret: Some("hunter2".into()),
        ..S3Config::default()
    };
    let store = open(config).await;
    let started = tokio::time::Instant::now();
    let error = store.put("a", noise(1, 100), &create_only()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)) && error.is_retryable(), "{error:?}");
    assert!(!error.to_string().contains("hunter2"));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = S3Config {
        bucket: "calls".to_owned(),
        endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
        access_key: Some("key".to_owned()),
        secret: Some("secret".into()),
        retry: RetryConfig { attempt_timeout: Duration::from_millis(200), max_retries: 1, ..QUICK },
        ..S3Config::default()
    };
    let store = Store::open(&StoreConfig::S3(config)).await.unwrap();
    // Connections are taken by the kernel, and nobody reads them.
    let error = store.get("a", Some(0..10)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
    assert!(error.to_string().contains("no answer within 0.2 s"), "{error}");
}

#[tokio::test]
async fn an_upload_survives_the_death_of_its_server() {
    let mut server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let patient = RetryConfig { max_retries: 5_000, ..QUICK };
    let config = S3Config { retry: patient, ..server.s3_config("calls") };
    let store = Store::open(&StoreConfig::S3(config)).await.unwrap();
    let size = usize::try_from(store.part_size()).unwrap();
    let content = noise(2, size + 7);
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let first = store.put_part("a", &upload, 1, content.slice(..size)).await.unwrap();
    server.kill();

    // Asked while the server is down, answered once it is back.
    let (second, ()) = tokio::join!(store.put_part("a", &upload, 2, content.slice(size..)), async {
        server.restart().await.unwrap();
    });
    let second = second.unwrap();
    assert_eq!(store.parts("a", &upload).await.unwrap(), [first.clone(), second.clone()]);
    store.complete("a", &upload, &[first, second], true).await.unwrap();
    assert_eq!(store.get("a", None).await.unwrap(), content);
    assert_eq!(server.open_uploads("calls").await.unwrap(), 0);
}

#[tokio::test]
async fn an_address_gives_the_object_to_whoever_has_it() {
    let server = StorageServer::versitygw().await.unwrap();
    let store = server.store("calls").await.unwrap();
    store.put("two words.ogg", Bytes::from_static(b"sound"), &create_only()).await.unwrap();
    let url = store.presign_get("two words.ogg", Duration::from_secs(60)).await.unwrap();
    assert_eq!(fetch(&url).await, b"sound");
    assert_ne!(fetch(&url.replace("two%20words", "other")).await, b"sound");
}

/// What a plain HTTP request is answered with.
async fn fetch(url: &str) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    answer.split_off(body)
}

#[tokio::test]
async fn settings_of_finished_objects_reach_the_store() {
    let server = StorageServer::versitygw().await.unwrap();
    let client = server.client();
    client.create_bucket().bucket("locked").object_lock_enabled_for_bucket(true).send().await.unwrap();
    let config = S3Config {
        tags: [("team".to_owned(), "support + sales/b=2".to_owned())].into(),
        content_disposition: Some("attachment".to_owned()),
        retention: Some(Retention { mode: RetentionMode::Governance, days: 3 }),
        ..server.s3_config("locked")
    };
    let store = open(config).await;
    let upload = store.begin("finished", &Attributes::typed("audio/ogg")).await.unwrap();
    let part = store.put_part("finished", &upload, 1, noise(3, 100)).await.unwrap();
    store.complete("finished", &upload, &[part], true).await.unwrap();
    store.put("passing", noise(3, 100), &create_only()).await.unwrap();
    let lasting = PutOptions { lasting: true, ..create_only() };
    store.put("lasting", noise(3, 100), &lasting).await.unwrap();

    for (key, kept) in [("finished", true), ("passing", false), ("lasting", true)] {
        let head = client.head_object().bucket("locked").key(key).send().await.unwrap();
        assert_eq!(head.object_lock_retain_until_date().is_some(), kept, "{key}");
        let tags = client.get_object_tagging().bucket("locked").key(key).send().await;
        let tagged = tags.is_ok_and(|tags| tags.tag_set().iter().any(|tag| tag.value() == "support + sales/b=2"));
        assert_eq!(tagged, kept, "{key}");
    }
    let finished = client.head_object().bucket("locked").key("finished").send().await.unwrap();
    assert_eq!(finished.content_type(), Some("audio/ogg"));
    assert_eq!(finished.content_disposition(), Some("attachment"));
}

#[tokio::test]
async fn a_checksum_of_the_whole_object_is_kept_where_it_is_asked_for() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let config = S3Config { checksum: callreel::store::Checksum::Crc64Nvme, ..server.s3_config("calls") };
    let store = open(config).await;
    let size = usize::try_from(store.part_size()).unwrap();
    let upload = store.begin("a", &Attributes::default()).await.unwrap();
    let parts = [
        store.put_part("a", &upload, 1, noise(4, size)).await.unwrap(),
        store.put_part("a", &upload, 2, noise(5, 100)).await.unwrap(),
    ];
    assert_eq!(store.parts("a", &upload).await.unwrap(), parts);
    store.complete("a", &upload, &parts, true).await.unwrap();
    let attributes = server.client().head_object().bucket("calls").key("a");
    let head = attributes.checksum_mode(aws_sdk_s3::types::ChecksumMode::Enabled).send().await.unwrap();
    assert!(head.checksum_crc64_nvme().is_some(), "{head:?}");
}

#[tokio::test]
async fn a_role_is_assumed_and_a_refusal_does_not_show_it() {
    let server = StorageServer::minio().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    // MinIO gives its root user no role; it knows no external ids, and lets them pass.
    let role = AssumeRole {
        arn: Secret::new("arn:aws:iam::123456789012:role/hunter2"),
        external_id: Some(Secret::new("hunter2-too")),
        endpoint: Some(server.endpoint()),
    };
    let config = S3Config { assume_role: Some(role), ..server.s3_config("calls") };
    let store = open(config.clone()).await;
    store.put("a", noise(6, 100), &create_only()).await.unwrap();
    assert_eq!(store.get("a", None).await.unwrap(), noise(6, 100));
    let url = store.presign_get("a", Duration::from_secs(60)).await.unwrap();
    assert!(url.contains("X-Amz-Security-Token="), "signed with the long-lived keys: {url}");

    let refused = open(S3Config { secret: Some("wrong".into()), ..config }).await;
    let error = refused.put("b", noise(6, 100), &create_only()).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_known_for_ours() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let relay = Relay::open(([127, 0, 0, 1], server.port()).into()).await.unwrap();
    let config = S3Config { endpoint: Some(relay.url()), ..server.s3_config("calls") };
    let store = open(config).await;
    store.list("").await.unwrap();

    relay.lose_next_answer();
    let put = store.put("a", noise(7, 100), &create_only()).await.unwrap();
    assert_eq!((put.size, relay.done_once()), (100, 1));
    assert!(matches!(store.put("a", noise(8, 100), &create_only()).await, Err(StoreError::AlreadyExists(_))));

    let upload = store.begin("b", &Attributes::default()).await.unwrap();
    let part = store.put_part("b", &upload, 1, noise(9, 1_000)).await.unwrap();
    relay.lose_next_answer();
    let completed = store.complete("b", &upload, &[part], true).await.unwrap();
    assert_eq!((completed.size, relay.done_once()), (1_000, 2));
    assert_eq!(store.get("b", None).await.unwrap(), noise(9, 1_000));
    assert_eq!(server.open_uploads("calls").await.unwrap(), 0);
}

#[tokio::test]
async fn bytes_that_change_on_the_way_are_sent_again() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let relay = Relay::open(([127, 0, 0, 1], server.port()).into()).await.unwrap();
    let config = S3Config { endpoint: Some(relay.url()), ..server.s3_config("calls") };
    let store = open(config.clone()).await;
    relay.garble_next_body();
    store.put("a", noise(10, 1_000_000), &create_only()).await.unwrap();
    let upload = store.begin("b", &Attributes::default()).await.unwrap();
    relay.garble_next_body();
    let part = store.put_part("b", &upload, 1, noise(11, 1_000_000)).await.unwrap();
    store.complete("b", &upload, &[part], true).await.unwrap();
    assert_eq!(relay.done_once(), 2);
    assert_eq!(store.get("a", None).await.unwrap(), noise(10, 1_000_000));
    assert_eq!(store.get("b", None).await.unwrap(), noise(11, 1_000_000));

    let once = S3Config { retry: RetryConfig { max_retries: 0, ..QUICK }, ..config };
    let once = Store::open(&StoreConfig::S3(once)).await.unwrap();
    relay.garble_next_body();
    let error = once.put("c", noise(12, 1_000_000), &create_only()).await.unwrap_err();
    assert!(matches!(error, StoreError::Mismatch(_)), "{error:?}");
    assert_eq!(store.head("c").await.unwrap(), None);
}

#[tokio::test]
async fn a_proxy_is_asked_with_its_password() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = ProxyConfig {
        url: format!("http://{}", listener.local_addr().unwrap()),
        username: Some("user".to_owned()),
        password: Some(Secret::new("hunter2")),
    };
    let config = S3Config {
        bucket: "calls".to_owned(),
        endpoint: Some("http://store.invalid:9000".to_owned()),
        access_key: Some("key".to_owned()),
        secret: Some("secret".into()),
        proxy: Some(proxy),
        ..S3Config::default()
    };
    let store = open(config).await;
    let asked = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 8_192];
        let read = stream.read(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        String::from_utf8_lossy(&request[..read]).to_lowercase()
    };
    let (found, request) = tokio::join!(store.head("a"), asked);
    assert_eq!(found.unwrap(), None);
    assert!(request.starts_with("head http://store.invalid:9000/calls/a http/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nproxy-authorization: basic dxnlcjpodw50zxiy\r\n"), "{request}");
}

#[tokio::test]
async fn keys_that_may_only_put_get_and_list_write_whole_objects() {
    let server = StorageServer::minio().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let allowed = ["s3:PutObject", "s3:GetObject", "s3:ListBucket"];
    let store = open(server.s3_config_allowing("calls", &allowed).await.unwrap()).await;
    store.put("a", noise(13, 100), &create_only()).await.unwrap();
    let upload = store.begin("b", &Attributes::default()).await.unwrap();
    let part = store.put_part("b", &upload, 1, noise(14, 1_000)).await.unwrap();
    let object = store.complete("b", &upload, &[part], true).await.unwrap();
    assert_eq!(object.size, 1_000);
    assert_eq!(store.list("").await.unwrap().len(), 2);

    let given_up = store.begin("c", &Attributes::default()).await.unwrap();
    for error in [
        store.delete(&["a".to_owned()]).await.unwrap_err(),
        store.delete(&["a".to_owned(), "b".to_owned()]).await.unwrap_err(),
        store.abort("c", &given_up).await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
    }
    assert_eq!(store.get("a", None).await.unwrap(), noise(13, 100));
}

#[tokio::test]
async fn keys_that_may_only_put_complete_an_upload() {
    let server = StorageServer::minio().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let store = open(server.s3_config_allowing("calls", &["s3:PutObject"]).await.unwrap()).await;
    let attributes = Attributes::default().with("recording-id", "R1");
    let upload = store.begin("a", &attributes).await.unwrap();
    let part = store.put_part("a", &upload, 1, noise(15, 1_000)).await.unwrap();
    let object = store.complete("a", &upload, &[part], true).await.unwrap();
    assert_eq!((object.size, object.metadata["recording-id"].as_str()), (1_000, "R1"));
    assert!(matches!(store.put("a", noise(16, 10), &create_only()).await, Err(StoreError::AlreadyExists(_))));
    assert!(matches!(store.head("a").await, Err(StoreError::Refused(_))));
}
