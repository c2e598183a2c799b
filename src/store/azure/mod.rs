//! Azure Blob Storage, spoken directly: a block list that carries metadata and a condition is what an upload in parts needs,
//! and what general libraries leave out.
//!
//! Azure knows no uploads, only blocks without a place that lie under a blob's name until some of them are committed, or for
//! a week. A block's id therefore names the upload it belongs to, its number, when it was sent and its content. Whoever
//! commits a blob, or writes it whole, discards all other blocks under its name.

mod answer;
mod sign;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use time::OffsetDateTime;
use ulid::Ulid;

use super::MIN_PART;
use super::backend::{Attributes, Backend, ObjectInfo, Page, Part, PutOptions, UploadId};
use super::config::AzureConfig;
use super::error::{Fault, FaultKind, StoreError};
use super::http::{Answer, Pool, Request};
use crate::hex;
use answer::{blobs, block_list, blocks, fault, info};
use sign::{Signed, Signer};

/// The largest block that the service takes.
const MAX_PART: u64 = 4_000 * 1_024 * 1_024;

#[derive(Debug)]
pub(super) struct AzureBackend {
    pool: Pool,
    signer: Signer,
    /// Scheme and host.
    origin: String,
    /// The path of the container, from its slash on, percent-encoded.
    container_path: String,
    container: String,
    part_size: u64,
    page_size: Option<String>,
}

impl AzureBackend {
    pub(super) fn new(config: &AzureConfig) -> Result<Self, StoreError> {
        let missing = |setting| StoreError::config(setting, "is missing");
        if config.account.is_empty() {
            return Err(missing("account"));
        }
        if config.container.is_empty() {
            return Err(missing("container"));
        }
        let part_size = config.part_size.unwrap_or(MIN_PART);
        if !(1..=MAX_PART).contains(&part_size) {
            return Err(StoreError::config("part_size", format!("{part_size} is not within 1 to {MAX_PART}")));
        }
        let key = config.key.as_ref().ok_or_else(|| missing("key"))?;
        let signer =
            Signer::new(&config.account, key.expose()).ok_or_else(|| StoreError::config("key", "is not Base64"))?;
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
            None => format!("https://{}.blob.core.windows.net", config.account),
        };
        let Some(host) = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://")) else {
            return Err(StoreError::config("endpoint", "does not begin with http:// or https://"));
        };
        let path = host.find('/').map_or("", |slash| &host[slash..]);
        Ok(Self {
            pool: Pool::shared(config.proxy.as_ref())?,
            signer,
            origin: endpoint[..endpoint.len() - path.len()].to_owned(),
            container_path: format!("{path}/{}", sign::path(&config.container)),
            container: config.container.clone(),
            part_size,
            page_size: config.page_size.map(|size| size.to_string()),
        })
    }

    /// Signs a request about a blob, or about the container for an empty key, and sends it. Any answer is one.
    async fn ask(
        &self,
        method: &'static str,
        key: &str,
        query: &[(&str, &str)],
        headers: BTreeMap<String, String>,
        body: Bytes,
    ) -> Result<Answer, Fault> {
        let mut path = self.container_path.clone();
        if !key.is_empty() {
            path = format!("{path}/{}", sign::path(key));
        }
        let query = query.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut headers = headers;
        headers.insert("x-ms-date".to_owned(), sign::http_date(crate::clock::wall()));
        headers.insert("x-ms-version".to_owned(), sign::VERSION.to_owned());
        let signed = Signed { method, path: &path, query: &query, headers: &headers, length: body.len() };
        let authorization = self.signer.authorization(&signed);
        let mut url = format!("{}{path}", self.origin);
        if !query.is_empty() {
            url = format!("{url}?{}", sign::query(&query));
        }
        headers.insert("authorization".to_owned(), authorization);
        self.pool.send(Request { method, url, headers, body }).await
    }
}

#[async_trait]
impl Backend for AzureBackend {
    fn location(&self, key: &str) -> String {
        format!("az://{}/{key}", self.container)
    }

    fn part_size(&self) -> u64 {
        self.part_size
    }

    async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<String, Fault> {
        let mut headers = attribute_headers(&options.attributes);
        insert(&mut headers, "x-ms-blob-type", "BlockBlob");
        insert(&mut headers, "content-md5", &BASE64_STANDARD.encode(Md5::digest(&body)));
        if options.create_only {
            insert(&mut headers, "if-none-match", "*");
        }
        let answer = self.ask("PUT", key, &[], headers, body).await?;
        match answer.status {
            201 => Ok(answer::etag(&answer)),
            _ => Err(fault(&answer)),
        }
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        let mut headers = BTreeMap::new();
        if let Some(range) = range {
            insert(&mut headers, "x-ms-range", &format!("bytes={}-{}", range.start, range.end - 1));
        }
        let answer = self.ask("GET", key, &[], headers, Bytes::new()).await?;
        match answer.status {
            200 | 206 => Ok(answer.body),
            // The range begins behind the end.
            416 => Ok(Bytes::new()),
            _ => Err(fault(&answer)),
        }
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let answer = self.ask("HEAD", key, &[], BTreeMap::new(), Bytes::new()).await?;
        match answer.status {
            200 => info(key, &answer).map(Some),
            _ => match fault(&answer) {
                fault if fault.kind == FaultKind::NotFound => Ok(None),
                fault => Err(fault),
            },
        }
    }

    async fn list(&self, prefix: &str, from: Option<&str>) -> Result<Page<ObjectInfo>, Fault> {
        let mut query = vec![("restype", "container"), ("comp", "list"), ("prefix", prefix)];
        query.extend(from.map(|from| ("marker", from)));
        query.extend(self.page_size.as_deref().map(|size| ("maxresults", size)));
        let answer = self.ask("GET", "", &query, BTreeMap::new(), Bytes::new()).await?;
        match answer.status {
            200 => blobs(&answer.body),
            _ => Err(fault(&answer)),
        }
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Fault> {
        for key in keys {
            let answer = self.ask("DELETE", key, &[], BTreeMap::new(), Bytes::new()).await?;
            if answer.status != 202 {
                let fault = fault(&answer);
                if fault.kind != FaultKind::NotFound {
                    return Err(fault);
                }
            }
        }
        Ok(())
    }

    async fn begin(&self, _key: &str, token: &str, _attributes: &Attributes) -> Result<String, Fault> {
        // Nothing to send; but a container that is missing is better known now than when the first part is full.
        let query = [("restype", "container")];
        let answer = self.ask("HEAD", "", &query, BTreeMap::new(), Bytes::new()).await?;
        match fault(&answer) {
            _ if answer.status == 200 => Ok(token.to_owned()),
            // Rights to write blobs need not be rights to see the container.
            found if found.kind == FaultKind::Refused => Ok(token.to_owned()),
            found if found.kind == FaultKind::NotFound => Err(Fault { kind: FaultKind::Gone, ..found }),
            found => Err(found),
        }
    }

    async fn put_part(&self, key: &str, upload: &UploadId, number: u32, body: Bytes) -> Result<Part, Fault> {
        let size = body.len() as u64;
        let digest = Md5::digest(&body);
        let block = Block::new(upload, number, crate::clock::wall(), digest.into())?;
        let mut headers = BTreeMap::new();
        insert(&mut headers, "content-md5", &BASE64_STANDARD.encode(digest));
        let answer = self.ask("PUT", key, &[("comp", "block"), ("blockid", &block.id())], headers, body).await?;
        match answer.status {
            201 => Ok(Part { number, size, tag: block.tag() }),
            _ => Err(fault(&answer)),
        }
    }

    async fn parts(&self, key: &str, upload: &UploadId, _from: Option<&str>) -> Result<Page<Part>, Fault> {
        let query = [("comp", "blocklist"), ("blocklisttype", "uncommitted")];
        let answer = self.ask("GET", key, &query, BTreeMap::new(), Bytes::new()).await?;
        let found = match answer.status {
            200 => blocks(&answer.body)?,
            _ => match fault(&answer) {
                // No block was ever sent.
                fault if fault.kind == FaultKind::NotFound => Vec::new(),
                fault => return Err(fault),
            },
        };
        let token = token(upload)?;
        let mut newest: BTreeMap<u16, (Block, u64)> = BTreeMap::new();
        for (id, size) in found {
            // What others left under this name.
            let Some(block) = Block::parse(&id).filter(|block| block.token == token) else { continue };
            let known = newest.get(&block.number);
            if known.is_none_or(|(known, _)| known.millis <= block.millis) {
                newest.insert(block.number, (block, size));
            }
        }
        let part =
            |(number, (block, size)): (u16, (Block, u64))| Part { number: u32::from(number), size, tag: block.tag() };
        Ok(Page { items: newest.into_iter().map(part).collect(), next: None })
    }

    async fn complete(&self, key: &str, upload: &UploadId, parts: &[Part], create_only: bool) -> Result<(), Fault> {
        let ids = parts.iter().map(|part| Ok(Block::of_part(upload, part)?.id())).collect::<Result<Vec<_>, Fault>>()?;
        let body = block_list(&ids);
        let mut headers = attribute_headers(&upload.attributes);
        insert(&mut headers, "content-md5", &BASE64_STANDARD.encode(Md5::digest(&body)));
        if create_only {
            insert(&mut headers, "if-none-match", "*");
        }
        let answer = self.ask("PUT", key, &[("comp", "blocklist")], headers, body.into()).await?;
        match answer.status {
            201 => Ok(()),
            _ => Err(fault(&answer)),
        }
    }

    async fn abort(&self, _key: &str, _upload: &UploadId) -> Result<(), Fault> {
        // There is no request for it: the service discards blocks after a week, or with the next commit of their blob.
        Ok(())
    }

    async fn now(&self) -> Result<OffsetDateTime, Fault> {
        let answer = self.ask("HEAD", ".callreel-clock", &[], BTreeMap::new(), Bytes::new()).await?;
        answer.date().ok_or_else(|| Fault::new(FaultKind::Protocol, "the answer has no date"))
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> Result<String, Fault> {
        let name = format!("{}/{key}", self.container);
        let query = self.signer.shared_read(&name, crate::clock::wall(), valid);
        Ok(format!("{}{}/{}?{query}", self.origin, self.container_path, sign::path(key)))
    }
}

/// A block of one of our uploads.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Block {
    token: u128,
    number: u16,
    millis: u64,
    md5: [u8; 16],
}

impl Block {
    /// Bytes of an id before Base64: all blocks of a blob must have as many, and 64 at most.
    const LENGTH: usize = 16 + 2 + 8 + 16;

    fn new(upload: &UploadId, number: u32, now: OffsetDateTime, md5: [u8; 16]) -> Result<Self, Fault> {
        let number = u16::try_from(number).map_err(|error| Fault::new(FaultKind::Protocol, error))?;
        let millis = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
        Ok(Self { token: token(upload)?, number, millis, md5 })
    }

    fn id(&self) -> String {
        let mut bytes = Vec::with_capacity(Self::LENGTH);
        bytes.extend(self.token.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.millis.to_be_bytes());
        bytes.extend(self.md5);
        BASE64_STANDARD.encode(bytes)
    }

    fn parse(id: &str) -> Option<Self> {
        let bytes = BASE64_STANDARD.decode(id).ok()?;
        let (token, rest) = bytes.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (millis, md5) = rest.split_first_chunk()?;
        Some(Self {
            token: u128::from_be_bytes(*token),
            number: u16::from_be_bytes(*number),
            millis: u64::from_be_bytes(*millis),
            md5: md5.try_into().ok()?,
        })
    }

    fn tag(&self) -> String {
        let md5 = hex::encode(self.md5);
        format!("{:x}-{md5}", self.millis)
    }

    fn of_part(upload: &UploadId, part: &Part) -> Result<Self, Fault> {
        let read = || {
            let (millis, md5) = part.tag.split_once('-')?;
            let md5 = u128::from_str_radix(md5, 16).ok()?;
            Some((u64::from_str_radix(millis, 16).ok()?, md5.to_be_bytes()))
        };
        let (millis, md5) = read().ok_or_else(|| Fault::new(FaultKind::Mismatch, "no part of this store"))?;
        let number = u16::try_from(part.number).map_err(|error| Fault::new(FaultKind::Protocol, error))?;
        Ok(Self { token: token(upload)?, number, millis, md5 })
    }
}

fn token(upload: &UploadId) -> Result<u128, Fault> {
    let token = Ulid::from_string(&upload.token);
    token.map(u128::from).map_err(|_| Fault::new(FaultKind::Gone, "no upload of this store"))
}

fn attribute_headers(attributes: &Attributes) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    if let Some(content_type) = &attributes.content_type {
        insert(&mut headers, "x-ms-blob-content-type", content_type);
    }
    if let Some(disposition) = &attributes.content_disposition {
        insert(&mut headers, "x-ms-blob-content-disposition", disposition);
    }
    for (name, value) in &attributes.metadata {
        insert(&mut headers, &answer::metadata_header(name), &super::metadata::encode(value));
    }
    headers
}

fn insert(headers: &mut BTreeMap<String, String>, name: &str, value: &str) {
    headers.insert(name.to_owned(), value.to_owned());
}

/// Creates a container, for tests.
#[cfg(feature = "testkit")]
pub(crate) async fn create_container(config: &AzureConfig) -> Result<(), StoreError> {
    let backend = AzureBackend::new(config)?;
    let answer = backend.ask("PUT", "", &[("restype", "container")], BTreeMap::new(), Bytes::new()).await;
    match answer {
        Ok(answer) if matches!(answer.status, 201 | 409) => Ok(()),
        Ok(answer) => Err(StoreError::new(fault(&answer), "create", backend.location(""))),
        Err(fault) => Err(StoreError::new(fault, "create", backend.location(""))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload() -> UploadId {
        let token = "01JD8ZQ6WYNE3E0K4E3VTQ7J7W".to_owned();
        UploadId { id: token.clone(), token, attributes: Attributes::default() }
    }

    #[test]
    fn a_block_is_known_by_its_id_and_by_its_part() {
        let now = time::macros::datetime!(2026-11-21 12:00 UTC);
        let block = Block::new(&upload(), 10_000, now, [7; 16]).unwrap();
        assert_eq!(Block::parse(&block.id()), Some(block.clone()));
        let part = Part { number: 10_000, size: 1, tag: block.tag() };
        assert_eq!(Block::of_part(&upload(), &part).unwrap(), block);
        assert_eq!(BASE64_STANDARD.decode(block.id()).unwrap().len(), Block::LENGTH);
    }

    #[test]
    fn foreign_blocks_and_tags_are_none_of_ours() {
        for id in ["", "AAAA", "not base64", &BASE64_STANDARD.encode([0; 43])] {
            assert_eq!(Block::parse(id), None, "{id}");
        }
        for tag in ["", "-", "1-", "0x1f", "1-zz"] {
            let part = Part { number: 1, size: 1, tag: tag.to_owned() };
            assert!(Block::of_part(&upload(), &part).is_err(), "{tag}");
        }
    }

    #[test]
    fn an_endpoint_may_have_a_path() {
        let config = AzureConfig {
            account: "calls".to_owned(),
            key: Some("a2V5".into()),
            container: "box".to_owned(),
            ..AzureConfig::default()
        };
        let plain = AzureBackend::new(&config).unwrap();
        assert_eq!(
            (plain.origin.as_str(), plain.container_path.as_str()),
            ("https://calls.blob.core.windows.net", "/box")
        );
        let local = AzureConfig { endpoint: Some("http://127.0.0.1:1/calls/".to_owned()), ..config };
        let local = AzureBackend::new(&local).unwrap();
        assert_eq!((local.origin.as_str(), local.container_path.as_str()), ("http://127.0.0.1:1", "/calls/box"));
    }
}
