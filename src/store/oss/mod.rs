//! Alibaba Cloud OSS: S3's requests and answers under OSS's own headers and signature, which leaves no doubt about what its
//! compatible interface supports.

mod sign;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use percent_encoding::percent_decode_str;
use time::OffsetDateTime;

use super::config::{Checksum, OssConfig, S3Config};
use super::error::{Fault, StoreError};
use super::s3::{Dialect, Outgoing, S3Backend};
use sign::PAYLOAD;

pub(crate) use sign::{Signed, Signer};

/// A backend that speaks OSS.
pub(super) fn backend(config: &OssConfig) -> Result<S3Backend, StoreError> {
    for (setting, value) in [("access_key", &config.access_key), ("region", &config.region)] {
        if value.is_empty() {
            return Err(StoreError::config(setting, "is missing"));
        }
    }
    let region = config.region.strip_prefix("oss-").unwrap_or(&config.region).to_owned();
    let endpoint = config.endpoint.clone().unwrap_or_else(|| format!("https://oss-{region}.aliyuncs.com"));
    // Endpoints are mostly given as host names alone.
    let endpoint = if endpoint.contains("://") { endpoint } else { format!("https://{endpoint}") };
    let dialect = Oss {
        signer: Signer { access_key: config.access_key.clone(), secret: config.secret.clone(), region: region.clone() },
        bucket: config.bucket.clone(),
        endpoint: endpoint.trim_end_matches('/').to_owned(),
        token: config.session_token.as_ref().map(|token| token.expose().to_owned()),
    };
    let s3 = S3Config {
        bucket: config.bucket.clone(),
        endpoint: Some(endpoint),
        path_style: Some(false),
        checksum: Checksum::Off,
        part_size: config.part_size,
        page_size: config.page_size,
        retry: config.retry,
        proxy: config.proxy.clone(),
        ..S3Config::default()
    };
    let token = config.session_token.as_ref().map(|token| token.expose().to_owned());
    let keys = Credentials::new(&config.access_key, config.secret.expose(), token, None, "callreel");
    S3Backend::speaking(&s3, SharedCredentialsProvider::new(keys), Arc::new(dialect))
}

struct Oss {
    signer: Signer,
    bucket: String,
    endpoint: String,
    token: Option<String>,
}

impl std::fmt::Debug for Oss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Oss({})", self.bucket)
    }
}

impl Dialect for Oss {
    fn scheme(&self) -> &'static str {
        "oss"
    }

    fn prefix(&self) -> &'static str {
        "x-oss-"
    }

    fn create_only(&self) -> (&'static str, &'static str) {
        ("x-oss-forbid-overwrite", "true")
    }

    fn conditional_complete(&self) -> bool {
        true
    }

    fn sign(&self, request: Outgoing<'_>, now: OffsetDateTime, headers: &mut BTreeMap<String, String>) {
        let date = sign::date(now);
        headers.insert("x-oss-date".to_owned(), date.clone());
        headers.insert("x-oss-content-sha256".to_owned(), PAYLOAD.to_owned());
        if let Some(token) = request.token {
            headers.insert("x-oss-security-token".to_owned(), token.to_owned());
        }
        let path = percent_decode_str(request.path).decode_utf8_lossy();
        // The bucket stands before the host's name, or before the key where the host is an address.
        let named = request.host.starts_with(&format!("{}.", self.bucket));
        let resource = if named { format!("/{}{path}", self.bucket) } else { path.into_owned() };
        let signed = Signed { method: request.method, resource: &resource, query: request.query, headers };
        let authorization = self.signer.authorization(&signed, &date);
        headers.insert("authorization".to_owned(), authorization);
    }

    fn presign(&self, key: &str, now: OffsetDateTime, valid: Duration) -> Result<String, Fault> {
        let query = self.signer.presigned(&format!("/{}/{key}", self.bucket), self.token.as_deref(), now, valid);
        let (scheme, host) = self.endpoint.split_once("://").unwrap_or(("https", &self.endpoint));
        Ok(format!("{scheme}://{}.{host}/{}?{query}", self.bucket, sign::path(key)))
    }
}
