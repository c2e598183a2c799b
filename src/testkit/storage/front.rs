//! A front before a real S3 server that speaks another provider's language: it checks that provider's signatures and maps its
//! headers. It proves what we send, not how the provider behaves.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::encoding::Pkcs8V1Der;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest, Sha256};
use time::macros::format_description;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::{ACCESS_KEY, SECRET, StorageServer};
use crate::hex;
use crate::store::testing::{Answer, OssSigned, OssSigner, Pool, Request};
use crate::store::{GcsConfig, OssConfig, Secret};
use crate::testkit::TestkitError;

const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const BODY_LIMIT: usize = 64 * 1_024 * 1_024;
const REGION: &str = "cn-hangzhou";
const ACCOUNT: &str = "recorder@loopback.iam.gserviceaccount.com";

/// Whose language is spoken.
enum Provider {
    Oss { signer: OssSigner, bucket: String },
    Gcs { public_key: Vec<u8> },
}

/// A running front. Dropping it ends it.
pub struct ProviderFront {
    port: u16,
    task: AbortHandle,
    bucket: String,
    credentials: String,
}

impl std::fmt::Debug for ProviderFront {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ProviderFront({})", self.port)
    }
}

impl Drop for ProviderFront {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ProviderFront {
    /// Speaks Alibaba's OSS before a bucket of `server`.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`] where no port is free.
    pub async fn oss(server: &StorageServer, bucket: &str) -> Result<Self, TestkitError> {
        let signer =
            OssSigner { access_key: ACCESS_KEY.to_owned(), secret: Secret::new(SECRET), region: REGION.to_owned() };
        let provider = Provider::Oss { signer, bucket: bucket.to_owned() };
        Self::start(server, bucket, provider, String::new()).await
    }

    /// Speaks Google Cloud Storage before a bucket of `server`, with a service account that is made for it.
    ///
    /// # Errors
    ///
    /// As [`oss`](Self::oss); [`TestkitError::Storage`] where no key can be made.
    pub async fn gcs(server: &StorageServer, bucket: &str) -> Result<Self, TestkitError> {
        let failed = |_| TestkitError::Storage("a service account's key cannot be made".to_owned());
        let key = KeyPair::generate(KeySize::Rsa2048).map_err(failed)?;
        let der: Pkcs8V1Der<'static> = key.as_der().map_err(failed)?;
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64_STANDARD.encode(der.as_ref())
        );
        let file = serde_json::json!({
            "type": "service_account", "client_email": ACCOUNT, "private_key_id": "1", "private_key": pem,
        });
        let provider = Provider::Gcs { public_key: key.public_key().as_ref().to_vec() };
        Self::start(server, bucket, provider, file.to_string()).await
    }

    async fn start(
        server: &StorageServer,
        bucket: &str,
        provider: Provider,
        credentials: String,
    ) -> Result<Self, TestkitError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(TestkitError::io("a front's port"))?;
        let port = listener.local_addr().map_err(TestkitError::io("a front's port"))?.port();
        let front = Arc::new(Front { provider, upstream: server.port, pool: Pool::shared(None).map_err(storage)? });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let front = Arc::clone(&front);
                tokio::spawn(async move { front.serve(stream).await });
            }
        });
        Ok(Self { port, task: task.abort_handle(), bucket: bucket.to_owned(), credentials })
    }

    /// Settings that reach the bucket.
    pub fn oss_config(&self) -> OssConfig {
        OssConfig {
            access_key: ACCESS_KEY.to_owned(),
            secret: Secret::new(SECRET),
            region: REGION.to_owned(),
            endpoint: Some(format!("http://localhost:{}", self.port)),
            bucket: self.bucket.clone(),
            ..OssConfig::default()
        }
    }

    /// Settings that reach the bucket.
    pub fn gcs_config(&self) -> GcsConfig {
        GcsConfig {
            credentials: Some(Secret::new(self.credentials.clone())),
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            bucket: self.bucket.clone(),
            ..GcsConfig::default()
        }
    }
}

fn storage(error: crate::store::StoreError) -> TestkitError {
    TestkitError::Storage(error.to_string())
}

struct Front {
    provider: Provider,
    upstream: u16,
    pool: Pool,
}

/// A request as it came.
struct Incoming {
    method: &'static str,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Bytes,
}

impl Front {
    /// Answers requests until the connection ends or makes no sense.
    async fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let incoming = read(&mut stream).await?;
            let head = incoming.method == "HEAD";
            let answer = match self.refusal(&incoming) {
                Some(reason) => refusal(reason),
                None => self.forward(incoming).await?,
            };
            stream.write_all(&written(&answer, head)).await.ok()?;
        }
    }

    /// Why the provider would not take this request.
    fn refusal(&self, incoming: &Incoming) -> Option<&'static str> {
        if incoming.headers.keys().any(|name| name.starts_with("x-amz-")) || incoming.query.contains("x-id=") {
            return Some("another provider's headers");
        }
        if matches!(incoming.method, "POST" | "PUT") && !incoming.headers.contains_key("content-length") {
            return Some("no length");
        }
        let authorization = incoming.headers.get("authorization").map_or("", String::as_str);
        match &self.provider {
            Provider::Oss { signer, bucket } => {
                let date = incoming.headers.get("x-oss-date").map_or("", String::as_str);
                let resource = format!("/{bucket}{}", percent_decode_str(&incoming.path).decode_utf8_lossy());
                let signed = OssSigned {
                    method: incoming.method,
                    resource: &resource,
                    query: &incoming.query,
                    headers: &incoming.headers,
                };
                (signer.authorization(&signed, date) != authorization).then_some("the signature is wrong")
            }
            Provider::Gcs { public_key } => {
                let token = authorization.strip_prefix("Bearer ")?;
                (!valid_token(token, public_key)).then_some("the token is wrong")
            }
        }
        .or(authorization.is_empty().then_some("nobody signed"))
    }

    /// Asks the server behind in its own language.
    async fn forward(&self, incoming: Incoming) -> Option<Answer> {
        let (prefix, condition) = match &self.provider {
            Provider::Oss { .. } => ("x-oss-", "x-oss-forbid-overwrite"),
            Provider::Gcs { .. } => ("x-goog-", "x-goog-if-generation-match"),
        };
        let path = match &self.provider {
            Provider::Oss { bucket, .. } => format!("/{bucket}{}", incoming.path),
            Provider::Gcs { .. } => incoming.path,
        };
        let mut headers = BTreeMap::new();
        for (name, value) in incoming.headers {
            if let Some(rest) = name.strip_prefix(prefix).filter(|rest| rest.starts_with("meta-")) {
                headers.insert(format!("x-amz-{rest}"), value);
            } else if name == condition {
                headers.insert("if-none-match".to_owned(), "*".to_owned());
            } else if matches!(name.as_str(), "content-type" | "content-disposition" | "content-md5" | "range") {
                headers.insert(name, value);
            }
        }
        let query = canonical_query(&incoming.query);
        let host = format!("127.0.0.1:{}", self.upstream);
        sign_v4(incoming.method, &host, &path, &query, &mut headers, &incoming.body);
        let url =
            if query.is_empty() { format!("http://{host}{path}") } else { format!("http://{host}{path}?{query}") };
        let request = Request { method: incoming.method, url, headers, body: incoming.body };
        let mut answer = self.pool.send(request).await.ok()?;
        let metadata: Vec<(String, String)> = answer
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("x-amz-meta-")?.to_owned(), value.clone())))
            .collect();
        answer.headers.retain(|name, _| !name.starts_with("x-amz-"));
        answer.headers.extend(metadata.into_iter().map(|(name, value)| (format!("{prefix}meta-{name}"), value)));
        Some(answer)
    }
}

/// Whether a token is signed by the account, for the storage service, and not out of date.
fn valid_token(token: &str, public_key: &[u8]) -> bool {
    let check = || {
        let (text, signature) = token.rsplit_once('.')?;
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        let key = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key);
        key.verify(text.as_bytes(), &signature).ok()?;
        let claims = BASE64_URL_SAFE_NO_PAD.decode(text.split_once('.')?.1).ok()?;
        let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
        let now = crate::clock::wall().unix_timestamp();
        let scope = claims["scope"].as_str()?.starts_with("https://www.googleapis.com/auth/devstorage.");
        let current = claims["iat"].as_i64()? <= now && now < claims["exp"].as_i64()?;
        let lifetime = claims["exp"].as_i64()? - claims["iat"].as_i64()?;
        Some(scope && current && lifetime <= 3_600 && claims["iss"] == ACCOUNT && claims["sub"] == ACCOUNT)
    };
    check().unwrap_or(false)
}

fn refusal(reason: &str) -> Answer {
    let body = format!("<Error><Code>SignatureDoesNotMatch</Code><Message>{reason}</Message></Error>");
    Answer { status: 403, headers: BTreeMap::new(), body: body.into() }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Incoming> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_ascii_whitespace();
    let method =
        ["GET", "HEAD", "PUT", "POST", "DELETE"].into_iter().find(|method| words.clone().next() == Some(method))?;
    let target = words.nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(Some(0), |length| length.parse().ok())?;
    let mut body = vec![0; Some(length).filter(|&length| length <= BODY_LIMIT)?];
    stream.read_exact(&mut body).await.ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    Some(Incoming { method, path: path.to_owned(), query: query.to_owned(), headers, body: body.into() })
}

fn written(answer: &Answer, head: bool) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} -\r\n", answer.status);
    for (name, value) in &answer.headers {
        if !matches!(name.as_str(), "content-length" | "transfer-encoding" | "connection") {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    let length = answer.headers.get("content-length").filter(|_| head).cloned();
    let length = length.unwrap_or_else(|| answer.body.len().to_string());
    text.push_str(&format!("content-length: {length}\r\n\r\n"));
    let mut bytes = text.into_bytes();
    bytes.extend(&answer.body);
    bytes
}

fn canonical_query(query: &str) -> String {
    let encode = |text: &str| {
        let plain = percent_decode_str(text).decode_utf8_lossy();
        utf8_percent_encode(&plain, QUERY).to_string()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let mut pairs: Vec<String> = pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            format!("{}={}", encode(name), encode(value))
        })
        .collect();
    pairs.sort_unstable();
    pairs.join("&")
}

/// Signs for the server behind (AWS Signature Version 4).
fn sign_v4(method: &str, host: &str, path: &str, query: &str, headers: &mut BTreeMap<String, String>, body: &[u8]) {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let date = crate::clock::wall().format(format).unwrap_or_default();
    let digest = hex::encode(Sha256::digest(body));
    headers.insert("host".to_owned(), host.to_owned());
    headers.insert("x-amz-date".to_owned(), date.clone());
    headers.insert("x-amz-content-sha256".to_owned(), digest.clone());
    let signed: Vec<&str> = headers.keys().map(String::as_str).collect();
    let signed = signed.join(";");
    let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{signed}\n{digest}");
    let day = date.get(..8).unwrap_or_default();
    let scope = format!("{day}/us-east-1/s3/aws4_request");
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mut key = format!("AWS4{SECRET}").into_bytes();
    for step in [day, "us-east-1", "s3", "aws4_request", &text] {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else { return };
        mac.update(step.as_bytes());
        key = mac.finalize().into_bytes().to_vec();
    }
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope}, SignedHeaders={signed}, Signature={}",
        hex::encode(&key)
    );
    headers.insert("authorization".to_owned(), authorization);
}
