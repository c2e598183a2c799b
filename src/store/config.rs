use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use super::StoreError;

/// A value that no log, `Debug`, journal or manifest may show.
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides `value`.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that sends or signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SET")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("SET")
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "writeOnly": true, "description": "Never shown; best as ${VARIABLE}."})
    }
}

/// Which store, and how to get in.
///
/// What is serialised holds no secret, so that a journal can name the store; whoever reads it back brings the
/// credentials from its own configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreConfig {
    /// A local folder.
    Local(LocalConfig),
    /// Amazon S3, or what speaks its protocol.
    S3(S3Config),
    /// Azure Blob Storage.
    Azure(AzureConfig),
    /// Google Cloud Storage.
    Gcs(GcsConfig),
    /// Alibaba Cloud OSS.
    Oss(OssConfig),
}

impl StoreConfig {
    /// Whose store it is, in a word: `local`, `s3`, `r2`, `azure`, `gcs`, `oss`.
    pub fn provider(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::S3(s3) if s3.endpoint.as_deref().is_some_and(|url| url.contains(".r2.cloudflarestorage.com")) => "r2",
            Self::S3(_) => "s3",
            Self::Azure(_) => "azure",
            Self::Gcs(_) => "gcs",
            Self::Oss(_) => "oss",
        }
    }

    /// The bucket or container; none for a local folder.
    pub fn bucket(&self) -> Option<&str> {
        match self {
            Self::Local(_) => None,
            Self::S3(s3) => Some(&s3.bucket),
            Self::Azure(azure) => Some(&azure.container),
            Self::Gcs(gcs) => Some(&gcs.bucket),
            Self::Oss(oss) => Some(&oss.bucket),
        }
    }

    /// Reads `s3://bucket/prefix`, `az://container/prefix`, `gs://bucket/prefix`, `oss://bucket/prefix`, `file:///folder`
    /// or a path. Everything else, credentials too, stays at its default.
    ///
    /// # Errors
    ///
    /// [`StoreError::Config`] for an unknown scheme, an empty bucket, or user names, queries and fragments in it.
    pub fn parse_url(text: &str) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::config("url", reason);
        let Some((scheme, rest)) = text.split_once("://") else {
            if text.is_empty() {
                return Err(failed("is empty".to_owned()));
            }
            return Ok(Self::Local(LocalConfig { dir: text.into() }));
        };
        if scheme == "file" {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(failed(format!("{text:?} is no absolute path: write file:///folder, or the path alone")));
            }
            return Ok(Self::Local(LocalConfig { dir: path.into() }));
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(failed(format!("{text:?} names no bucket")));
        }
        // The text is not shown: what stands before an @ may be a password.
        if rest.contains(['@', '?', '#']) {
            return Err(failed("takes neither credentials nor parameters, only a bucket and a prefix".to_owned()));
        }
        let (bucket, prefix) = (bucket.to_owned(), prefix.trim_matches('/').to_owned());
        match scheme {
            "s3" => Ok(Self::S3(S3Config { bucket, prefix, ..S3Config::default() })),
            "az" | "azure" => Ok(Self::Azure(AzureConfig { container: bucket, prefix, ..AzureConfig::default() })),
            "gs" | "gcs" => Ok(Self::Gcs(GcsConfig { bucket, prefix, ..GcsConfig::default() })),
            "oss" => Ok(Self::Oss(OssConfig { bucket, prefix, ..OssConfig::default() })),
            _ => Err(failed(format!("unknown scheme {scheme:?} (s3, az, gs, oss, file)"))),
        }
    }
}

/// A local folder, created where it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// The folder.
    pub dir: PathBuf,
}

/// How often and how long a store is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Further attempts after the first. Default 3.
    pub max_retries: u32,
    /// The bound of the first wait; each further wait may be twice as long. A wait is drawn from all below its bound.
    /// Default 500 ms.
    pub min_retry_delay: Duration,
    /// No wait is longer. Default 5 s.
    pub max_retry_delay: Duration,
    /// How long one attempt may take, with another second for each 64 KiB sent. Default 30 s.
    pub attempt_timeout: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_retries: 3,
            min_retry_delay: Duration::from_millis(500),
            max_retry_delay: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(30),
        }
    }
}

/// An HTTP proxy between callreel and the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyConfig {
    /// `http://host:port`.
    pub url: String,
    /// User, where the proxy asks for one.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password.
    #[serde(default)]
    pub password: Option<Secret>,
}

/// Amazon S3, or what speaks its protocol: Cloudflare R2, Backblaze B2, MinIO, Garage…
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without slashes around it.
    pub prefix: String,
    /// Default `us-east-1`, or what the default chain finds where no keys are given. `auto` for R2.
    pub region: Option<String>,
    /// `https://host[:port]`; default Amazon's own.
    pub endpoint: Option<String>,
    /// With `secret`: static keys. Without: the default chain (environment, profile, web identity, container, instance).
    pub access_key: Option<String>,
    /// The access key's secret.
    pub secret: Option<Secret>,
    /// The token of temporary keys.
    pub session_token: Option<Secret>,
    /// Whether the bucket stands in the path instead of the host name. Default: where there is an endpoint.
    pub path_style: Option<bool>,
    /// A role to assume with the credentials above.
    pub assume_role: Option<AssumeRole>,
    /// How the store is to encrypt what it keeps. Default: as the bucket says.
    pub sse: Option<Encryption>,
    /// The key of [`Encryption::Kms`]. Default: the account's own for S3.
    pub kms_key: Option<String>,
    /// `STANDARD_IA`, `GLACIER_IR`…; default as the bucket says.
    pub storage_class: Option<String>,
    /// Tags of every finished object.
    pub tags: BTreeMap<String, String>,
    /// Default content disposition of every finished object.
    pub content_disposition: Option<String>,
    /// Object Lock of every finished object.
    pub retention: Option<Retention>,
    /// Which checksum the store is to keep beside what it always checks.
    pub checksum: Checksum,
    /// The size of a part in bytes, 5 MiB to 5 GiB. Default 5 MiB.
    pub part_size: Option<u64>,
    /// As many objects or parts as one answer of a listing may have. Default: the store's own, mostly 1000.
    pub page_size: Option<u16>,
    /// Retries.
    pub retry: RetryConfig,
    /// Proxy; none unless given here.
    pub proxy: Option<ProxyConfig>,
}

/// A role that the recorder takes on before it writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssumeRole {
    /// The role.
    pub arn: Secret,
    /// What the role's owner asks for to tell its customers apart.
    #[serde(default)]
    pub external_id: Option<Secret>,
    /// `https://host[:port]` of the token service; default Amazon's own in the region.
    #[serde(default)]
    pub endpoint: Option<String>,
}

/// Encryption by the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Encryption {
    /// SSE-S3.
    #[serde(rename = "AES256")]
    S3,
    /// SSE-KMS.
    #[serde(rename = "aws:kms")]
    Kms,
}

/// Object Lock: how long nobody can delete a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// Who may still lift it.
    pub mode: RetentionMode,
    /// Days from the moment of upload.
    pub days: u32,
}

/// Who may lift a retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RetentionMode {
    /// Whoever has the permission to.
    Governance,
    /// Nobody.
    Compliance,
}

/// A checksum that the store keeps with the object. Each body goes with its MD5 in any case, which every store checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// CRC64-NVME on Amazon's own service, none elsewhere: several other services answer any of them with an error.
    #[default]
    Auto,
    /// None.
    Off,
    /// CRC64-NVME of the whole object.
    Crc64Nvme,
}

/// Azure Blob Storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AzureConfig {
    /// The storage account.
    pub account: String,
    /// The account's key, Base64 as the portal shows it.
    pub key: Option<Secret>,
    /// The container.
    pub container: String,
    /// What every key begins with, without slashes around it.
    pub prefix: String,
    /// Default `https://{account}.blob.core.windows.net`. Whatever path it has goes before the container.
    pub endpoint: Option<String>,
    /// The size of a part in bytes. Default 5 MiB.
    pub part_size: Option<u64>,
    /// As many objects as one answer of a listing may have. Default: the store's own, 5000.
    pub page_size: Option<u16>,
    /// Retries.
    pub retry: RetryConfig,
    /// Proxy; none unless given here.
    pub proxy: Option<ProxyConfig>,
}

/// Google Cloud Storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GcsConfig {
    /// A service account's key: the JSON itself, or the path of a file that holds it. Without: the workload's own
    /// identity, from the metadata service of the machine or the cluster.
    pub credentials: Option<Secret>,
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without slashes around it.
    pub prefix: String,
    /// Default `https://storage.googleapis.com`.
    pub endpoint: Option<String>,
    /// The size of a part in bytes, at least 5 MiB. Default 5 MiB.
    pub part_size: Option<u64>,
    /// As many objects or parts as one answer of a listing may have. Default: the store's own, mostly 1000.
    pub page_size: Option<u16>,
    /// Retries.
    pub retry: RetryConfig,
    /// Proxy; none unless given here.
    pub proxy: Option<ProxyConfig>,
}

/// Alibaba Cloud OSS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OssConfig {
    /// The AccessKey id.
    pub access_key: String,
    /// The AccessKey secret.
    pub secret: Secret,
    /// The token of temporary keys.
    pub session_token: Option<Secret>,
    /// `cn-hangzhou`…, with or without `oss-` before it.
    pub region: String,
    /// Default `https://oss-{region}.aliyuncs.com`.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// What every key begins with, without slashes around it.
    pub prefix: String,
    /// The size of a part in bytes. Default 5 MiB.
    pub part_size: Option<u64>,
    /// As many objects or parts as one answer of a listing may have. Default: the store's own, mostly 1000.
    pub page_size: Option<u16>,
    /// Retries.
    pub retry: RetryConfig,
    /// Proxy; none unless given here.
    pub proxy: Option<ProxyConfig>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_choose_the_store() {
        let StoreConfig::S3(s3) = StoreConfig::parse_url("s3://calls/a/b/").unwrap() else { panic!("not S3") };
        assert_eq!((s3.bucket.as_str(), s3.prefix.as_str()), ("calls", "a/b"));
        let StoreConfig::Azure(azure) = StoreConfig::parse_url("az://calls").unwrap() else { panic!("not Azure") };
        assert_eq!((azure.container.as_str(), azure.prefix.as_str()), ("calls", ""));
        assert!(matches!(StoreConfig::parse_url("gs://calls/x"), Ok(StoreConfig::Gcs(_))));
        assert!(matches!(StoreConfig::parse_url("oss://calls/x"), Ok(StoreConfig::Oss(_))));
        for (text, dir) in [("recordings", "recordings"), ("/var/calls", "/var/calls"), ("file:///a b", "/a b")] {
            let local = StoreConfig::Local(LocalConfig { dir: dir.into() });
            assert_eq!(StoreConfig::parse_url(text).unwrap(), local);
        }
    }

    #[test]
    fn a_store_says_whose_it_is() {
        let r2 = StoreConfig::S3(S3Config {
            bucket: "calls".into(),
            endpoint: Some("https://account.r2.cloudflarestorage.com".into()),
            ..S3Config::default()
        });
        assert_eq!((r2.provider(), r2.bucket()), ("r2", Some("calls")));
        for (url, provider, bucket) in [
            ("s3://b/p", "s3", Some("b")),
            ("az://b", "azure", Some("b")),
            ("gs://b", "gcs", Some("b")),
            ("oss://b", "oss", Some("b")),
            ("/b", "local", None),
        ] {
            let store = StoreConfig::parse_url(url).unwrap();
            assert_eq!((store.provider(), store.bucket()), (provider, bucket), "{url}");
        }
    }

    #[test]
    fn wrong_urls_are_refused_without_showing_a_password() {
        for text in ["", "s3://", "s3:///key", "ftp://host/x", "file://relative", "s3://bucket/x?y=z"] {
            assert!(StoreConfig::parse_url(text).is_err(), "{text}");
        }
        let error = StoreConfig::parse_url("s3://key:hunter2@bucket/x").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let config = StoreConfig::S3(S3Config {
            secret: Some("hunter2".into()),
            assume_role: Some(AssumeRole { arn: "arn:hunter2".into(), external_id: None, endpoint: None }),
            ..S3Config::default()
        });
        let json = serde_json::to_string(&config).unwrap();
        for text in [format!("{config:?}"), json] {
            assert!(!text.contains("hunter2") && text.contains("SET"), "{text}");
        }
    }
}
