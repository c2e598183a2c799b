//! Google Cloud Storage through its XML interface: S3's requests and answers under Google's own headers and tokens. It is the
//! one of Google's interfaces whose uploads other processes can go on with, part by part.

mod credentials;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::provider::SharedCredentialsProvider;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::config::{Checksum, GcsConfig, S3Config};
use super::error::{Fault, FaultKind, StoreError};
use super::http::Pool;
use super::s3::{Dialect, Outgoing, S3Backend};
use crate::hex;
use credentials::{ServiceAccount, Tokens};

const ENDPOINT: &str = "https://storage.googleapis.com";
const PATH: &AsciiSet = &QUERY.remove(b'/');
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A backend that speaks to Google.
pub(super) fn backend(config: &GcsConfig) -> Result<S3Backend, StoreError> {
    let endpoint = config.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
    let account = config.credentials.as_ref().map(ServiceAccount::load).transpose()?.map(Arc::new);
    let tokens = match &account {
        Some(account) => Tokens::Account(Arc::clone(account)),
        None => Tokens::Machine(Pool::shared(None)?),
    };
    let dialect = Gcs { account, bucket: config.bucket.clone(), endpoint: endpoint.clone() };
    let s3 = S3Config {
        bucket: config.bucket.clone(),
        endpoint: Some(endpoint),
        path_style: Some(true),
        checksum: Checksum::Off,
        part_size: config.part_size,
        page_size: config.page_size,
        retry: config.retry,
        proxy: config.proxy.clone(),
        ..S3Config::default()
    };
    S3Backend::speaking(&s3, SharedCredentialsProvider::new(tokens), Arc::new(dialect))
}

#[derive(Debug)]
struct Gcs {
    account: Option<Arc<ServiceAccount>>,
    bucket: String,
    endpoint: String,
}

impl Dialect for Gcs {
    fn scheme(&self) -> &'static str {
        "gs"
    }

    fn prefix(&self) -> &'static str {
        "x-goog-"
    }

    fn create_only(&self) -> (&'static str, &'static str) {
        ("x-goog-if-generation-match", "0")
    }

    fn conditional_complete(&self) -> bool {
        // The reference lists the condition for whole objects, not for the end of an upload.
        false
    }

    fn sign(&self, request: Outgoing<'_>, _now: OffsetDateTime, headers: &mut BTreeMap<String, String>) {
        if let Some(token) = request.token {
            headers.insert("authorization".to_owned(), format!("Bearer {token}"));
        }
    }

    /// Signs with version 4 of Google's scheme (`GOOG4-RSA-SHA256`).
    fn presign(&self, key: &str, now: OffsetDateTime, valid: Duration) -> Result<String, Fault> {
        let Some(account) = &self.account else {
            return Err(Fault::new(FaultKind::Unsupported, "only a service account's key can sign addresses"));
        };
        let format = format_description!("[year][month][day]T[hour][minute][second]Z");
        // Every part is always there.
        let date = now.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default();
        let scope = format!("{}/auto/storage/goog4_request", date.get(..8).unwrap_or_default());
        let parameters = [
            ("X-Goog-Algorithm", "GOOG4-RSA-SHA256"),
            ("X-Goog-Credential", &format!("{}/{scope}", account.email())),
            ("X-Goog-Date", &date),
            ("X-Goog-Expires", &valid.as_secs().to_string()),
            ("X-Goog-SignedHeaders", "host"),
        ];
        let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, QUERY)));
        let query = pairs.collect::<Vec<_>>().join("&");
        let path = format!("/{}/{}", self.bucket, utf8_percent_encode(key, PATH));
        let host = self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, host)| host);
        let canonical = format!("GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
        let digest = hex::encode(Sha256::digest(canonical));
        let signature = hex::encode(account.sign(format!("GOOG4-RSA-SHA256\n{date}\n{scope}\n{digest}").as_bytes())?);
        Ok(format!("{}{path}?{query}&X-Goog-Signature={signature}", self.endpoint))
    }
}
