//! Addresses at which people get recordings, and the signatures that let them. Pure: time is an argument.

use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::catalog::Row;
use crate::config::ServeConfig;
use crate::hex;
use crate::store::{Secret, StoreConfig};

/// What stays as it is in a path.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Makes and checks addresses of recordings.
#[derive(Clone)]
pub struct Links {
    key: Secret,
    public_url: Option<String>,
    custom_domain: Option<String>,
    prefix: String,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

impl Links {
    /// Links of a service that is configured so. All processes with the same configuration take each other's.
    pub fn new(config: &ServeConfig) -> Self {
        let key = match &config.file.auth.playback_secret {
            Some(secret) => secret.clone(),
            // The LiveKit secret itself signs nothing but what LiveKit is to trust.
            None => Secret::new(hex::encode(tag(config.livekit_key.1.expose(), &["callreel playback"]))),
        };
        let prefix = match &config.base.store {
            Some(StoreConfig::S3(s3)) => s3.prefix.as_str(),
            Some(StoreConfig::Azure(azure)) => &azure.prefix,
            Some(StoreConfig::Gcs(gcs)) => &gcs.prefix,
            Some(StoreConfig::Oss(oss)) => &oss.prefix,
            Some(StoreConfig::Local(_)) | None => "",
        };
        let trimmed = |text: &String| text.trim_end_matches('/').to_owned();
        let bare = |domain: &String| {
            let bare = domain.trim_start_matches("https://").trim_end_matches('/');
            if bare.contains("://") { bare.to_owned() } else { format!("https://{bare}") }
        };
        Self {
            key,
            public_url: config.file.downloads.public_url.as_ref().map(trimmed),
            custom_domain: config.file.downloads.custom_domain.as_ref().map(bare),
            prefix: prefix.trim_matches('/').to_owned(),
        }
    }

    /// The address of a recording's file on the bucket's public domain; none without such a domain, or before the
    /// recording is there.
    pub fn public(&self, row: &Row) -> Option<String> {
        self.public_key(row.storage_key.as_ref().filter(|_| is_there(row))?)
    }

    /// The address of an object on the bucket's public domain; none without such a domain.
    pub fn public_key(&self, key: &str) -> Option<String> {
        let domain = self.custom_domain.as_ref()?;
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let path = format!("{}{slash}{key}", self.prefix);
        Some(format!("{domain}/{}", utf8_percent_encode(&path, PATH)))
    }

    /// The address at which this service gives a recording's file until `expires`. `asked_at` is where it is reached, for
    /// when the configuration does not say; none where neither does.
    pub fn signed(
        &self,
        recording_id: &str,
        output: usize,
        expires: OffsetDateTime,
        asked_at: Option<&str>,
    ) -> Option<String> {
        let base = self.public_url.as_deref().or(asked_at)?;
        let until = expires.unix_timestamp();
        let signature = self.signature(recording_id, output, until);
        Some(format!("{base}/api/v1/play/{recording_id}/{output}?expires={until}&signature={signature}"))
    }

    /// Where people get a recording's first file: on the bucket's domain, else here for a while. None before it is there.
    pub fn download(&self, row: &Row, expires: OffsetDateTime, asked_at: Option<&str>) -> Option<String> {
        if !is_there(row) {
            return None;
        }
        self.public(row).or_else(|| self.signed(&row.recording_id, 0, expires, asked_at))
    }

    /// Whether a signature is ours and holds at `now`; compares in constant time.
    pub fn check(&self, recording_id: &str, output: usize, until: i64, signature: &str, now: OffsetDateTime) -> bool {
        let Some(told) = hex::decode(signature) else { return false };
        let mut mac = mac(self.key.expose());
        feed(&mut mac, &["play", recording_id, &output.to_string(), &until.to_string()]);
        mac.verify_slice(&told).is_ok() && now.unix_timestamp() < until
    }

    fn signature(&self, recording_id: &str, output: usize, until: i64) -> String {
        hex::encode(tag(self.key.expose(), &["play", recording_id, &output.to_string(), &until.to_string()]))
    }
}

fn is_there(row: &Row) -> bool {
    row.status == crate::catalog::Status::Ready && row.deleted.is_none() && !row.outputs.is_empty()
}

fn mac(key: &str) -> Hmac<Sha256> {
    Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes keys of any length")
}

fn feed(mac: &mut Hmac<Sha256>, parts: &[&str]) {
    for part in parts {
        // With its length, so that no two lists of parts read the same.
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
}

fn tag(key: &str, parts: &[&str]) -> Vec<u8> {
    let mut mac = mac(key);
    feed(&mut mac, parts);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{NewRecording, Status};
    use time::macros::datetime;

    fn links() -> Links {
        Links {
            key: Secret::new("0123456789abcdef"),
            public_url: None,
            custom_domain: Some("https://files.example".into()),
            prefix: "calls".into(),
        }
    }

    #[test]
    fn a_signature_holds_for_one_file_and_a_while() {
        let (links, now) = (links(), datetime!(2026-01-01 0:00 UTC));
        let url = links.signed("R1", 2, now + time::Duration::HOUR, Some("http://h:1")).unwrap();
        let (path, query) = url.split_once('?').unwrap();
        assert_eq!(path, "http://h:1/api/v1/play/R1/2");
        let (until, signature) = query.strip_prefix("expires=").unwrap().split_once("&signature=").unwrap();
        let until: i64 = until.parse().unwrap();
        assert!(links.check("R1", 2, until, signature, now));
        assert!(!links.check("R1", 2, until, signature, now + time::Duration::HOUR), "it is over then");
        for (id, output, until) in [("R2", 2, until), ("R1", 0, until), ("R1", 2, until + 1), ("R12", 2, until)] {
            assert!(!links.check(id, output, until, signature, now));
        }
        for wrong in ["", "00", "zz", &signature[1..], &signature.replacen(&signature[..1], "g", 1)] {
            assert!(!links.check("R1", 2, until, wrong, now));
        }
        let other = Links { key: Secret::new("another key of some"), ..links };
        assert!(!other.check("R1", 2, until, signature, now));
    }

    #[tokio::test]
    async fn a_public_domain_needs_no_signature_but_a_recording() {
        let mut row = row().await;
        assert_eq!(links().download(&row, row.created_at, Some("http://h")), None);
        row.status = Status::Ready;
        row.outputs = serde_json::from_value(serde_json::json!([
            {"kind": "mix", "location": "s3://b/x", "duration_seconds": 1.0, "bytes": 1, "sha256": ""}
        ]))
        .unwrap();
        row.storage_key = Some("a b/\u{e9}?.ogg".into());
        assert_eq!(links().public(&row).unwrap(), "https://files.example/calls/a%20b/%C3%A9%3F.ogg");
        let private = Links { custom_domain: None, ..links() };
        assert!(
            private.download(&row, row.created_at, Some("http://h")).unwrap().starts_with("http://h/api/v1/play/R1/0?")
        );
        assert_eq!(private.download(&row, row.created_at, None), None);
    }

    async fn row() -> Row {
        let catalog = crate::catalog::Catalog::open("sqlite::memory:").await.unwrap();
        catalog
            .begin(NewRecording::new("R1", "room", datetime!(2026-01-01 0:00 UTC)), crate::catalog::nobody)
            .await
            .unwrap()
    }
}
