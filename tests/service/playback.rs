//! Recordings themselves: whole, by ranges, and by signed addresses.

use reqwest::Method;
use serde_json::json;

use crate::support::{ADMIN, Answer, READER, Running, callreel_hex};

fn sound() -> Vec<u8> {
    (0..700_000_u32).map(|number| (number % 251) as u8).collect()
}

#[tokio::test]
async fn a_recording_is_given_whole_and_by_ranges() {
    let service = Running::start().await;
    let sound = sound();
    service.ready("R1", "room", &sound).await;
    let path = "/api/v1/recordings/R1/audio";
    let whole = service.answer(READER, Method::GET, path, None).await;
    assert_eq!((whole.status.as_u16(), whole.header("content-type")), (200, "audio/ogg"));
    assert_eq!((whole.header("accept-ranges"), whole.header("content-length")), ("bytes", "700000"));
    assert!(whole.header("content-disposition").starts_with("inline; filename=\"R1.ogg\""));
    assert!(whole.bytes == sound);
    let etag = whole.header("etag").to_owned();
    let part = async |range: &str| Answer::of(service.as_key(READER, Method::GET, path).header("range", range)).await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299999", 100, 300_000),
        ("bytes=699999-", 699_999, 700_000),
        ("bytes=-5", 699_995, 700_000),
    ] {
        let answer = part(range).await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/700000", to - 1));
        assert!(answer.bytes == sound[from..to], "{range}");
    }
    let beyond = part("bytes=700000-").await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, "bytes */700000"));
    assert_eq!(beyond.problem(), "range");
    assert_eq!(part("bytes=0-1,5-6").await.status, 200);
    let head = Answer::of(service.as_key(READER, Method::HEAD, path)).await;
    assert_eq!((head.status.as_u16(), head.header("content-length"), head.bytes.len()), (200, "700000", 0));
    let same = Answer::of(service.as_key(READER, Method::GET, path).header("if-none-match", &etag)).await;
    assert_eq!((same.status.as_u16(), same.bytes.len()), (304, 0));
    let other = service.as_key(READER, Method::GET, path).header("range", "bytes=0-1").header("if-range", "\"other\"");
    assert_eq!(Answer::of(other).await.status, 200);
    let none = service.answer(READER, Method::GET, &format!("{path}?kind=dual"), None).await;
    assert_eq!(none.status, 404);
    assert_eq!(service.answer(READER, Method::GET, &format!("{path}?output=0&kind=mix"), None).await.status, 200);
}

#[tokio::test]
async fn what_belongs_to_a_recording_is_given_too() {
    let service = Running::start().await;
    service.ready("R1", "room", b"sound").await;
    let get =
        async |what: &str| service.answer(READER, Method::GET, &format!("/api/v1/recordings/R1/{what}"), None).await;
    assert_eq!(get("manifest").await.json()["recording_id"], "R1");
    assert_eq!(get("waveform").await.json()["data"], json!([0, 1]));
    let speech = json!([{"participant": "ann", "from_seconds": 0.0, "to_seconds": 1.5}]);
    assert_eq!(get("speakers").await.json()["speech"], speech);
    let vtt = get("speakers?format=vtt").await;
    assert!(vtt.text.starts_with("WEBVTT") && vtt.header("content-type").starts_with("text/vtt"));
    assert_eq!(get("speakers?format=srt").await.status, 400);
    service.active("R2", "live").await;
    for what in ["audio", "manifest", "waveform", "speakers"] {
        let answer = service.get(&format!("/api/v1/recordings/R2/{what}")).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (409, "not-ready"), "{what}");
    }
    std::fs::remove_file(service.dir.path().join("calls/made/R1.ogg")).unwrap();
    assert_eq!(get("audio").await.status, 404);
}

#[tokio::test]
async fn a_signed_address_opens_one_file_for_a_while() {
    let service = Running::start().await;
    service.ready("R1", "room", b"sound of one").await;
    service.ready("R2", "room", b"sound of two").await;
    let sign = async |body: serde_json::Value| {
        service.answer(READER, Method::POST, "/api/v1/recordings/R1/url", Some(body)).await
    };
    let signed = sign(json!({"valid_seconds": 60})).await.json();
    let url = signed["url"].as_str().unwrap().strip_prefix(&format!("http://{}", service.address)).unwrap().to_owned();
    let open = async |url: &str| Answer::of(service.ask(Method::GET, url)).await;
    assert_eq!(open(&url).await.text, "sound of one");
    let part = Answer::of(service.ask(Method::GET, &url).header("range", "bytes=0-4")).await;
    assert_eq!((part.status.as_u16(), part.text.as_str()), (206, "sound"));
    let (path, query) = url.split_once('?').unwrap();
    let (expires, signature) = query.split_once('&').unwrap();
    let until: i64 = expires.strip_prefix("expires=").unwrap().parse().unwrap();
    let mut flipped = signature.to_owned();
    let last = if flipped.ends_with('0') { "1" } else { "0" };
    flipped.replace_range(flipped.len() - 1.., last);
    for tampered in [
        format!("{}?{query}", path.replace("R1", "R2")),
        format!("{}1?{query}", path.trim_end_matches('0')),
        format!("{path}?expires={}&{signature}", until + 1),
        format!("{path}?{expires}&{flipped}"),
        format!("{path}?{expires}&signature="),
        format!("{path}?{expires}&{}", &signature[..signature.len() - 2]),
        format!("{path}?expires=1&{signature}"),
        format!("{path}?expires=-1&{signature}"),
    ] {
        let answer = open(&tampered).await;
        assert_eq!((answer.status.as_u16(), answer.problem().as_str()), (403, "forbidden"), "{tampered}");
        assert!(!answer.text.contains("sound"));
    }
    for (wrong, status) in [(path.to_owned(), 400), (format!("{url}&x=1"), 400), (format!("{path}x?{query}"), 404)] {
        assert_eq!(open(&wrong).await.status, status, "{wrong}");
    }
    let short = sign(json!({"valid_seconds": 1})).await.json()["url"].as_str().unwrap().to_owned();
    let short = short.strip_prefix(&format!("http://{}", service.address)).unwrap().to_owned();
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    assert_eq!(open(&short).await.status, 403, "its time is over");
    for (body, status) in [
        (json!({"valid_seconds": 0}), 400),
        (json!({"valid_seconds": 99_999_999}), 400),
        (json!({"output": 1}), 404),
        (json!({"output": -1}), 400),
    ] {
        assert_eq!(sign(body.clone()).await.status, status, "{body}");
    }
    let accesses = service.answer(ADMIN, Method::GET, "/api/v1/recordings/R1/accesses", None).await.json();
    let who: Vec<_> = accesses.as_array().unwrap().iter().map(|access| access["who"].as_str().unwrap()).collect();
    assert_eq!(who.iter().filter(|who| **who == "signed-url").count(), 2, "{accesses}");
}

#[tokio::test]
async fn where_it_is_reached_from_outside_is_in_its_addresses() {
    let yaml = "downloads: {public_url: 'https://rec.example/'}\n";
    let service = Running::start_with(yaml, &[]).await;
    service.ready("R1", "room", b"sound").await;
    let body = Some(json!({}));
    let signed = service.answer(READER, Method::POST, "/api/v1/recordings/R1/url", body).await.json();
    assert!(signed["url"].as_str().unwrap().starts_with("https://rec.example/api/v1/play/R1/0?expires="), "{signed}");
    let forged = service.as_key(READER, Method::GET, "/api/v1/recordings/R1").header("host", "evil.example");
    assert!(!Answer::of(forged).await.text.contains("evil.example"));
    assert_eq!(callreel_hex(b"\x0f"), "0f");
}

#[tokio::test]
async fn another_process_with_the_same_secret_takes_its_addresses() {
    let (one, other) = (Running::start().await, Running::start().await);
    one.ready("R1", "room", b"sound").await;
    other.ready("R1", "room", b"sound").await;
    let signed = one.answer(READER, Method::POST, "/api/v1/recordings/R1/url", None).await.json();
    let url = signed["url"].as_str().unwrap().strip_prefix(&format!("http://{}", one.address)).unwrap();
    assert_eq!(Answer::of(other.ask(Method::GET, url)).await.text, "sound");
    let env = [("CALLREEL_PLAYBACK_SECRET", "another secret of 16")];
    let stranger = Running::start_with("", &env).await;
    stranger.ready("R1", "room", b"sound").await;
    assert_eq!(Answer::of(stranger.ask(Method::GET, url)).await.status, 403);
}
