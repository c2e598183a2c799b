//! Amazon S3 and its relatives, through the official SDK.
//!
//! Bodies go as bytes in memory, whose digest the signature covers, and with their MD5: a streamed body is unsigned under
//! the checksum mode that other providers need, and a connection cut within one was seen stored as a whole part. MD5 is
//! the one digest that all of them check, and Object Lock asks for one.

mod credentials;
mod dialect;
mod fault;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier, ObjectLockMode,
    ServerSideEncryption, StorageClass,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest, Md5};
use time::OffsetDateTime;

use super::MIN_PART;
use super::backend::{Attributes, Backend, ObjectInfo, Page, Part, PutOptions, UploadId};
use super::config::{Checksum, Encryption, RetentionMode, S3Config};
use super::error::{Fault, FaultKind, StoreError};
use super::http::{self, Pool};
use super::metadata;
use dialect::Translator;
use fault::fault;

pub(super) use dialect::{Dialect, Outgoing};

/// The largest part that S3 takes.
const MAX_PART: u64 = 5 << 30;

/// What of a bucket's objects never changes from one to the next.
#[derive(Debug)]
pub(super) struct S3Backend {
    client: Client,
    bucket: String,
    part_size: u64,
    page_size: Option<i32>,
    encryption: Option<ServerSideEncryption>,
    kms_key: Option<String>,
    storage_class: Option<StorageClass>,
    tags: Option<String>,
    disposition: Option<String>,
    retention: Option<(ObjectLockMode, Duration)>,
    checksum: Option<ChecksumAlgorithm>,
    /// Of a provider with headers and signatures of its own.
    dialect: Option<Arc<dyn Dialect>>,
}

impl S3Backend {
    pub(super) async fn new(config: &S3Config) -> Result<Self, StoreError> {
        check(config)?;
        let http = Pool::shared(config.proxy.as_ref())?.client();
        let (region, provider) = credentials::resolve(config, &http).await?;
        Ok(Self::with(config, http, region, provider, None))
    }

    /// A backend of a provider with headers and signatures of its own. `provider` gives what the dialect signs with.
    pub(super) fn speaking(
        config: &S3Config,
        provider: SharedCredentialsProvider,
        dialect: Arc<dyn Dialect>,
    ) -> Result<Self, StoreError> {
        check(config)?;
        let http = Pool::shared(config.proxy.as_ref())?.client();
        Ok(Self::with(config, http, Region::from_static("us-east-1"), provider, Some(dialect)))
    }

    fn with(
        config: &S3Config,
        http: SharedHttpClient,
        region: Region,
        provider: SharedCredentialsProvider,
        dialect: Option<Arc<dyn Dialect>>,
    ) -> Self {
        let own_service = config.endpoint.as_ref().is_none_or(|endpoint| endpoint.contains(".amazonaws.com"));
        let checksum = match config.checksum {
            Checksum::Auto if own_service => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Crc64Nvme => Some(ChecksumAlgorithm::Crc64Nvme),
            Checksum::Auto | Checksum::Off => None,
        };
        // Where none is to be kept, the SDK must not add one by itself: several services refuse it.
        let calculation = match &checksum {
            Some(_) => RequestChecksumCalculation::WhenSupported,
            None => RequestChecksumCalculation::WhenRequired,
        };
        let mut builder = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(region)
            .credentials_provider(provider)
            .http_client(http)
            // The store retries, within one bound for all providers.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(calculation)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .force_path_style(config.path_style.unwrap_or(config.endpoint.is_some()));
        builder.set_endpoint_url(config.endpoint.clone());
        if let Some(dialect) = &dialect {
            builder = builder.interceptor(Translator(Arc::clone(dialect)));
        }
        let tags: Vec<String> =
            config.tags.iter().map(|(name, value)| format!("{}={}", query(name), query(value))).collect();
        Self {
            client: Client::from_conf(builder.build()),
            bucket: config.bucket.clone(),
            part_size: config.part_size.unwrap_or(MIN_PART),
            page_size: config.page_size.map(i32::from),
            encryption: config.sse.map(|sse| match sse {
                Encryption::S3 => ServerSideEncryption::Aes256,
                Encryption::Kms => ServerSideEncryption::AwsKms,
            }),
            kms_key: config.kms_key.clone(),
            storage_class: config.storage_class.as_deref().map(StorageClass::from),
            tags: (!tags.is_empty()).then(|| tags.join("&")),
            disposition: config.content_disposition.clone(),
            retention: config.retention.map(|retention| {
                let mode = match retention.mode {
                    RetentionMode::Governance => ObjectLockMode::Governance,
                    RetentionMode::Compliance => ObjectLockMode::Compliance,
                };
                (mode, Duration::from_secs(u64::from(retention.days) * 86_400))
            }),
            checksum,
            dialect,
        }
    }

    /// Until when an object that is written now is locked.
    fn retained_until(&self) -> Option<DateTime> {
        let (_, length) = self.retention.as_ref()?;
        Some(DateTime::from_secs((crate::clock::wall() + *length).unix_timestamp()))
    }

    fn lock_mode(&self) -> Option<ObjectLockMode> {
        self.retention.as_ref().map(|(mode, _)| mode.clone())
    }

    async fn delete_one(&self, key: &str) -> Result<(), Fault> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await.map_err(fault) {
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            result => result.map(drop),
        }
    }
}

fn check(config: &S3Config) -> Result<(), StoreError> {
    let part_size = config.part_size.unwrap_or(MIN_PART);
    if config.bucket.is_empty() {
        return Err(StoreError::config("bucket", "is missing"));
    }
    if !(MIN_PART..=MAX_PART).contains(&part_size) {
        return Err(StoreError::config("part_size", format!("{part_size} is not within 5 MiB to 5 GiB")));
    }
    if let Some(endpoint) = &config.endpoint
        && !endpoint.starts_with("http://")
        && !endpoint.starts_with("https://")
    {
        return Err(StoreError::config("endpoint", "does not begin with http:// or https://"));
    }
    if config.kms_key.is_some() && config.sse != Some(Encryption::Kms) {
        return Err(StoreError::config("kms_key", "needs sse aws:kms"));
    }
    Ok(())
}

#[async_trait]
impl Backend for S3Backend {
    fn location(&self, key: &str) -> String {
        let scheme = self.dialect.as_ref().map_or("s3", |dialect| dialect.scheme());
        format!("{scheme}://{}/{key}", self.bucket)
    }

    fn part_size(&self) -> u64 {
        self.part_size
    }

    async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<String, Fault> {
        let Attributes { content_type, content_disposition, metadata } = &options.attributes;
        let mut request = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .content_md5(md5(&body))
            .set_content_type(content_type.clone())
            .set_metadata(Some(metadata::to_headers(metadata)))
            .set_content_disposition(content_disposition.clone())
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_checksum_algorithm(self.checksum.clone())
            .set_if_none_match(options.create_only.then(|| "*".to_owned()));
        if options.lasting {
            request = request
                .set_storage_class(self.storage_class.clone())
                .set_tagging(self.tags.clone())
                .set_object_lock_mode(self.lock_mode())
                .set_object_lock_retain_until_date(self.retained_until());
        }
        let output = request.body(ByteStream::from(body)).send().await.map_err(fault)?;
        Ok(etag(output.e_tag))
    }

    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault> {
        let range = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        let sent = self.client.get_object().bucket(&self.bucket).key(key).set_range(range).send().await;
        let output = match sent {
            Ok(output) => output,
            // The range begins behind the end.
            Err(error) if error.raw_response().is_some_and(|answer| answer.status().as_u16() == 416) => {
                return Ok(Bytes::new());
            }
            Err(error) => return Err(fault(error)),
        };
        let expected = output.content_length;
        let bytes = output.body.collect().await.map_err(Fault::unanswered)?.into_bytes();
        if expected.is_some_and(|expected| u64::try_from(expected) != Ok(bytes.len() as u64)) {
            return Err(Fault::unanswered("the answer is shorter than it said"));
        }
        Ok(bytes)
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault> {
        let output = match self.client.head_object().bucket(&self.bucket).key(key).send().await.map_err(fault) {
            Ok(output) => output,
            Err(fault) if fault.kind == FaultKind::NotFound => return Ok(None),
            Err(fault) => return Err(fault),
        };
        Ok(Some(ObjectInfo {
            key: key.to_owned(),
            size: size(output.content_length)?,
            etag: etag(output.e_tag),
            last_modified: output.last_modified.and_then(moment),
            metadata: metadata::from_headers(output.metadata.as_ref()),
        }))
    }

    async fn list(&self, prefix: &str, from: Option<&str>) -> Result<Page<ObjectInfo>, Fault> {
        let output = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(prefix)
            .set_max_keys(self.page_size)
            .set_continuation_token(from.map(str::to_owned))
            .send()
            .await
            .map_err(fault)?;
        let items = output.contents.unwrap_or_default().into_iter().map(|object| {
            Ok(ObjectInfo {
                key: object.key.unwrap_or_default(),
                size: size(object.size)?,
                etag: etag(object.e_tag),
                last_modified: object.last_modified.and_then(moment),
                metadata: Default::default(),
            })
        });
        let next = output.next_continuation_token.filter(|_| output.is_truncated == Some(true));
        Ok(Page { items: items.collect::<Result<_, Fault>>()?, next })
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Fault> {
        // Dialects agree about one object, less about batches.
        if keys.len() == 1 || self.dialect.is_some() {
            for key in keys {
                self.delete_one(key).await?;
            }
            return Ok(());
        }
        let failed = |error| Fault::new(FaultKind::Protocol, error);
        let mut delete = Delete::builder().quiet(true);
        for key in keys {
            delete = delete.objects(ObjectIdentifier::builder().key(key).build().map_err(failed)?);
        }
        let request = self.client.delete_objects().bucket(&self.bucket).delete(delete.build().map_err(failed)?);
        let with_md5 = request.customize().mutate_request(|request| {
            // The SDK sends a checksum that Amazon takes; others insist on the older header.
            if let Some(digest) = request.body().bytes().map(md5) {
                request.headers_mut().insert("content-md5", digest);
            }
        });
        let output = with_md5.send().await.map_err(fault)?;
        for error in output.errors.unwrap_or_default() {
            let found = fault::of_code(error.code.as_deref(), error.message.as_deref());
            if found.kind != FaultKind::NotFound {
                return Err(found);
            }
        }
        Ok(())
    }

    async fn begin(&self, key: &str, _token: &str, attributes: &Attributes) -> Result<String, Fault> {
        let Attributes { content_type, content_disposition, metadata } = attributes;
        let output = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .set_content_type(content_type.clone())
            .set_content_disposition(content_disposition.clone().or_else(|| self.disposition.clone()))
            .set_metadata(Some(metadata::to_headers(metadata)))
            .set_server_side_encryption(self.encryption.clone())
            .set_ssekms_key_id(self.kms_key.clone())
            .set_storage_class(self.storage_class.clone())
            .set_tagging(self.tags.clone())
            .set_object_lock_mode(self.lock_mode())
            .set_object_lock_retain_until_date(self.retained_until())
            .set_checksum_algorithm(self.checksum.clone())
            .set_checksum_type(self.checksum.as_ref().map(|_| ChecksumType::FullObject))
            .send()
            .await
            .map_err(fault)?;
        match output.upload_id {
            Some(id) if !id.is_empty() => Ok(id),
            Some(_) | None => Err(Fault::new(FaultKind::Protocol, "the answer has no upload id")),
        }
    }

    async fn put_part(&self, key: &str, upload: &UploadId, number: u32, body: Bytes) -> Result<Part, Fault> {
        let size = body.len() as u64;
        let output = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(&upload.id)
            .part_number(part_number(number)?)
            .content_md5(md5(&body))
            .set_checksum_algorithm(self.checksum.clone())
            .body(ByteStream::from(body))
            .send()
            .await
            .map_err(upload_fault)?;
        Ok(Part { number, size, tag: part_tag(output.e_tag, output.checksum_crc64_nvme) })
    }

    async fn parts(&self, key: &str, upload: &UploadId, from: Option<&str>) -> Result<Page<Part>, Fault> {
        let output = self
            .client
            .list_parts()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(&upload.id)
            .set_max_parts(self.page_size)
            .set_part_number_marker(from.map(str::to_owned))
            .send()
            .await
            .map_err(upload_fault)?;
        let items = output.parts.unwrap_or_default().into_iter().map(|part| {
            let number = part.part_number.and_then(|number| u32::try_from(number).ok());
            let number = number.ok_or_else(|| Fault::new(FaultKind::Protocol, "a part has no number"))?;
            Ok(Part { number, size: size(part.size)?, tag: part_tag(part.e_tag, part.checksum_crc64_nvme) })
        });
        let next = output.next_part_number_marker.filter(|_| output.is_truncated == Some(true));
        Ok(Page { items: items.collect::<Result<_, Fault>>()?, next })
    }

    async fn complete(&self, key: &str, upload: &UploadId, parts: &[Part], create_only: bool) -> Result<(), Fault> {
        let completed = parts.iter().map(|part| {
            let (tag, checksum) = part.tag.split_once(' ').map_or((part.tag.as_str(), None), |(a, b)| (a, Some(b)));
            let completed = CompletedPart::builder().part_number(part_number(part.number)?).e_tag(tag);
            Ok(completed.set_checksum_crc64_nvme(checksum.map(str::to_owned)).build())
        });
        let completed = completed.collect::<Result<Vec<_>, Fault>>()?;
        let uncertain = self.dialect.as_ref().is_some_and(|dialect| !dialect.conditional_complete());
        if create_only && uncertain && self.head(key).await?.is_some() {
            return Err(Fault::new(FaultKind::AlreadyExists, "the object is there"));
        }
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(&upload.id)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(completed)).build())
            .set_checksum_type(self.checksum.as_ref().map(|_| ChecksumType::FullObject))
            .set_if_none_match(create_only.then(|| "*".to_owned()));
        request.send().await.map(drop).map_err(upload_fault)
    }

    async fn abort(&self, key: &str, upload: &UploadId) -> Result<(), Fault> {
        let request = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(&upload.id);
        match request.send().await.map_err(upload_fault) {
            Err(fault) if fault.kind == FaultKind::Gone => Ok(()),
            result => result.map(drop),
        }
    }

    async fn now(&self) -> Result<OffsetDateTime, Fault> {
        // Every answer has a date, also one that refuses or knows no such object.
        let seen = ServerDate::default();
        let request = self.client.head_object().bucket(&self.bucket).key(".callreel-clock");
        let answer = request.customize().interceptor(seen.clone()).send().await;
        match (seen.take(), answer) {
            (Some(date), _) => Ok(date),
            (None, Err(error)) if error.raw_response().is_none() => Err(fault(error)),
            (None, Ok(_) | Err(_)) => Err(Fault::new(FaultKind::Protocol, "the answer has no date")),
        }
    }

    async fn presign_get(&self, key: &str, valid: Duration) -> Result<String, Fault> {
        if let Some(dialect) = &self.dialect {
            return dialect.presign(key, crate::clock::wall(), valid);
        }
        let config = PresigningConfig::expires_in(valid).map_err(|error| Fault::new(FaultKind::Protocol, error))?;
        let request = self.client.get_object().bucket(&self.bucket).key(key).presigned(config).await.map_err(fault)?;
        Ok(request.uri().to_owned())
    }
}

/// Sorts the failure of a call about an upload, where whatever is not found is the upload.
fn upload_fault<E>(error: aws_sdk_s3::error::SdkError<E>) -> Fault
where
    E: aws_sdk_s3::error::ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let mut found = fault(error);
    if found.kind == FaultKind::NotFound {
        found.kind = FaultKind::Gone;
    }
    found
}

/// The date in an answer's headers.
#[derive(Clone, Debug, Default)]
struct ServerDate(Arc<Mutex<Option<OffsetDateTime>>>);

impl ServerDate {
    fn take(&self) -> Option<OffsetDateTime> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Intercept for ServerDate {
    fn name(&self) -> &'static str {
        "ServerDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(http::date);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}

fn md5(bytes: impl AsRef<[u8]>) -> String {
    BASE64_STANDARD.encode(Md5::digest(bytes))
}

fn etag(found: Option<String>) -> String {
    found.unwrap_or_default().trim_matches('"').to_owned()
}

/// A part's ETag, with its checksum where the store keeps one: some want to hear it again at the end.
fn part_tag(found: Option<String>, checksum: Option<String>) -> String {
    match checksum {
        Some(checksum) => format!("{} {checksum}", etag(found)),
        None => etag(found),
    }
}

fn size(found: Option<i64>) -> Result<u64, Fault> {
    found
        .and_then(|size| u64::try_from(size).ok())
        .ok_or_else(|| Fault::new(FaultKind::Protocol, "the answer has no size"))
}

fn part_number(number: u32) -> Result<i32, Fault> {
    i32::try_from(number).map_err(|error| Fault::new(FaultKind::Protocol, error))
}

fn moment(found: DateTime) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(found.as_nanos()).ok()
}

fn query(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, StoreConfig};

    fn config() -> S3Config {
        S3Config {
            bucket: "calls".to_owned(),
            access_key: Some("key".to_owned()),
            secret: Some("hunter2".into()),
            ..S3Config::default()
        }
    }

    #[tokio::test]
    async fn contradictions_are_named() {
        for (config, setting) in [
            (S3Config { bucket: String::new(), ..config() }, "bucket"),
            (S3Config { secret: None, ..config() }, "secret"),
            (S3Config { access_key: None, ..config() }, "access_key"),
            (S3Config { endpoint: Some("host:9000".to_owned()), ..config() }, "endpoint"),
            (S3Config { part_size: Some(MIN_PART - 1), ..config() }, "part_size"),
            (S3Config { kms_key: Some("key".to_owned()), ..config() }, "kms_key"),
            (S3Config { prefix: "a/../b".to_owned(), ..config() }, "prefix"),
        ] {
            let error = Store::open(&StoreConfig::S3(config)).await.unwrap_err();
            assert!(matches!(&error, StoreError::Config { setting: found, .. } if *found == setting), "{error}");
        }
    }

    #[tokio::test]
    async fn a_store_shows_its_place_and_no_secret() {
        let config = S3Config { prefix: "/a/b/".to_owned(), ..config() };
        let store = Store::open(&StoreConfig::S3(config)).await.unwrap();
        assert_eq!(store.to_string(), "s3://calls/a/b");
        assert_eq!(store.location("c d.ogg"), "s3://calls/a/b/c d.ogg");
        assert!(!format!("{store:?}").contains("hunter2"));
    }
}
