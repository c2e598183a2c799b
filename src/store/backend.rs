use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::error::{Fault, FaultKind};

/// What an object carries beside its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `audio/ogg; codecs=opus`…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// `attachment; filename="call.ogg"`…
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_disposition: Option<String>,
    /// Further pairs. A name begins with a lower-case letter and goes on with those, digits and hyphens, the only names
    /// that every store gives back as they are; a value is any text without control characters. Together up to 2 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Attributes {
    /// Attributes with a content type.
    pub fn typed(content_type: impl Into<String>) -> Self {
        Self { content_type: Some(content_type.into()), ..Self::default() }
    }

    /// Adds one pair of metadata.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    pub(super) fn check(&self) -> Result<(), Fault> {
        let failed = |reason: String| Err(Fault::new(FaultKind::Protocol, reason));
        for (name, value) in &self.metadata {
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !name.starts_with(|first: char| first.is_ascii_lowercase()) || !name.bytes().all(plain) {
                return failed(format!("metadata name {name:?} is not made of a-z, 0-9 and -"));
            }
            if value.chars().any(char::is_control) {
                return failed(format!("metadata {name} has control characters in its value"));
            }
        }
        Ok(())
    }
}

/// How to write an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Whether an object of the same key is left alone, and the call fails with
    /// [`StoreError::AlreadyExists`](super::StoreError::AlreadyExists). Without, it is replaced.
    pub create_only: bool,
    /// Whether the object stays: it gets the tags, storage class and retention that the settings give to finished
    /// objects, as every upload in parts does. Without, it can be deleted at any time.
    pub lasting: bool,
    /// What the object carries.
    pub attributes: Attributes,
}

/// An object as the store tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its key, without the store's prefix.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// The store's mark of this content, without quotes; empty where the store has none.
    pub etag: String,
    /// When it was written, by the store's clock, to the second or better.
    pub last_modified: Option<OffsetDateTime>,
    /// Its metadata; empty in what [`list`](super::Store::list) answers.
    pub metadata: BTreeMap<String, String>,
}

/// A multipart upload that was begun: everything another process needs to go on with it. Serialise it as it is; what is
/// inside belongs to the store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadId {
    /// The store's name of the upload.
    pub(super) id: String,
    /// Ours, which ends up in the finished object's metadata.
    pub(super) token: String,
    pub(super) attributes: Attributes,
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadId({})", self.token)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.token)
    }
}

/// A part that the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// From 1.
    pub number: u32,
    /// Bytes.
    pub size: u64,
    /// The store's mark of its content: the same from [`put_part`](super::Store::put_part) and
    /// [`parts`](super::Store::parts).
    pub tag: String,
}

/// One answer of several to a listing.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Where the next answer begins; the last answer has none.
    pub(super) next: Option<String>,
}

/// One provider. Keys are whole, with the prefix; every call is one attempt, without retries.
///
/// A backend never buffers more than the bytes of one call, and shares its connections with all others of the process.
#[async_trait]
pub(super) trait Backend: fmt::Debug + Send + Sync {
    /// How people and their other tools call the object of that key; the whole store for an empty key.
    fn location(&self, key: &str) -> String;

    /// The size of every part but the last, in bytes.
    fn part_size(&self) -> u64;

    /// Writes an object in one go and tells its etag.
    async fn put(&self, key: &str, body: Bytes, options: &PutOptions) -> Result<String, Fault>;

    /// Reads an object, or a range of it; a range that begins behind its end is empty.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, Fault>;

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Fault>;

    /// One page of the objects whose keys begin with `prefix`, in the order of their bytes.
    async fn list(&self, prefix: &str, from: Option<&str>) -> Result<Page<ObjectInfo>, Fault>;

    /// Deletes up to [`DELETE_BATCH`] objects; those that are not there count as deleted.
    async fn delete(&self, keys: &[String]) -> Result<(), Fault>;

    /// Begins an upload and tells the store's name of it. `token` is unique.
    async fn begin(&self, key: &str, token: &str, attributes: &Attributes) -> Result<String, Fault>;

    async fn put_part(&self, key: &str, upload: &UploadId, number: u32, body: Bytes) -> Result<Part, Fault>;

    /// One page of the parts that the store has, by number.
    async fn parts(&self, key: &str, upload: &UploadId, from: Option<&str>) -> Result<Page<Part>, Fault>;

    /// Makes the object of these parts appear, all at once.
    async fn complete(&self, key: &str, upload: &UploadId, parts: &[Part], create_only: bool) -> Result<(), Fault>;

    /// Forgets an upload and its parts; one that is not there counts as forgotten.
    async fn abort(&self, key: &str, upload: &UploadId) -> Result<(), Fault>;

    /// The store's clock, to the second or better.
    async fn now(&self) -> Result<OffsetDateTime, Fault>;

    /// An address that gives the object to whoever has it.
    async fn presign_get(&self, key: &str, valid: Duration) -> Result<String, Fault>;
}

/// As many objects as every store deletes with one request.
pub(super) const DELETE_BATCH: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_some_store_would_change_is_refused() {
        assert_eq!(Attributes::default().with("recording-id", "Zürich 1").check(), Ok(()));
        for name in ["", "Recording", "a_b", "1a", "-a", "ä"] {
            assert!(Attributes::default().with(name, "x").check().is_err(), "{name:?}");
        }
        assert!(Attributes::default().with("a", "line\nbreak").check().is_err());
    }

    #[test]
    fn an_upload_survives_its_journal() {
        let attributes = Attributes::typed("audio/ogg").with("recording-id", "R1");
        let upload = UploadId { id: "2~x".to_owned(), token: "T".to_owned(), attributes };
        let json = serde_json::to_string(&upload).unwrap();
        assert_eq!(serde_json::from_str::<UploadId>(&json).unwrap(), upload);
    }
}
