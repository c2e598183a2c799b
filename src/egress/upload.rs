//! Our store's settings in the words of the egress protocol. What has no word there is an error that names it, unless it
//! only says how we ourselves would have written (sizes of parts, retries, checks on the way): the service has its own.

use std::collections::BTreeMap;
use std::fmt;

use livekit_protocol as proto;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::EgressError;
use crate::store::{AzureConfig, Checksum, GcsConfig, OssConfig, ProxyConfig, S3Config, Secret, StoreConfig};

/// Where the service writes to, with what it takes to get in. Shows no secret.
#[derive(Clone, PartialEq)]
pub struct Upload(pub(super) Target);

#[derive(Clone, PartialEq)]
pub(super) enum Target {
    S3(Box<proto::S3Upload>),
    Azure(proto::AzureBlobUpload),
    Gcs(proto::GcpUpload),
    Oss(proto::AliOssUpload),
    /// Wherever the service's own configuration says.
    Default,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::S3(s3) => write!(f, "Upload(s3://{})", s3.bucket),
            Target::Azure(azure) => write!(f, "Upload(az://{})", azure.container_name),
            Target::Gcs(gcs) => write!(f, "Upload(gs://{})", gcs.bucket),
            Target::Oss(oss) => write!(f, "Upload(oss://{})", oss.bucket),
            Target::Default => f.write_str("Upload(default)"),
        }
    }
}

impl Upload {
    /// Translates a store's settings. Gives what every path in it begins with, too: empty, or with a slash at its end.
    ///
    /// # Errors
    /// [`EgressError::Untranslatable`] for what the protocol has no word for.
    pub fn of(store: &StoreConfig) -> Result<(Self, String), EgressError> {
        let (target, prefix) = match store {
            StoreConfig::Local(local) => {
                let why = format!("the service cannot write into this machine's folder {}", local.dir.display());
                return Err(EgressError::Untranslatable { setting: "a local folder", why });
            }
            StoreConfig::S3(s3) => (Target::S3(Box::new(of_s3(s3)?)), &s3.prefix),
            StoreConfig::Azure(azure) => (Target::Azure(of_azure(azure)?), &azure.prefix),
            StoreConfig::Gcs(gcs) => (Target::Gcs(of_gcs(gcs)?), &gcs.prefix),
            StoreConfig::Oss(oss) => (Target::Oss(of_oss(oss)?), &oss.prefix),
        };
        let prefix = prefix.trim_matches('/');
        Ok((Self(target), if prefix.is_empty() { String::new() } else { format!("{prefix}/") }))
    }

    /// Leaves it to the service's own configuration where files go.
    pub fn of_the_service() -> Self {
        Self(Target::Default)
    }
}

fn of_s3(s3: &S3Config) -> Result<proto::S3Upload, EgressError> {
    let S3Config { assume_role, sse, kms_key, storage_class, retention, checksum, proxy, .. } = s3;
    lacks("storage.s3.sse", sse.is_some(), "it leaves encryption to what the bucket says")?;
    lacks("storage.s3.kms_key", kms_key.is_some(), "it leaves encryption to what the bucket says")?;
    lacks("storage.s3.storage_class", storage_class.is_some(), "it writes in the bucket's own class")?;
    lacks("storage.s3.retention", retention.is_some(), "it sets no Object Lock; the bucket's default can")?;
    lacks("storage.s3.checksum", *checksum != Checksum::default(), "it chooses checksums itself")?;
    let role = assume_role.as_ref();
    lacks(
        "storage.s3.assume_role.endpoint",
        role.is_some_and(|role| role.endpoint.is_some()),
        "it asks the token service of the region",
    )?;
    Ok(proto::S3Upload {
        access_key: s3.access_key.clone().unwrap_or_default(),
        secret: exposed(s3.secret.as_ref()),
        session_token: exposed(s3.session_token.as_ref()),
        assume_role_arn: exposed(role.map(|role| &role.arn)),
        assume_role_external_id: exposed(role.and_then(|role| role.external_id.as_ref())),
        region: s3.region.clone().unwrap_or_default(),
        endpoint: s3.endpoint.clone().unwrap_or_default(),
        bucket: s3.bucket.clone(),
        // As our own backend does it.
        force_path_style: s3.path_style.unwrap_or(s3.endpoint.is_some()),
        metadata: Default::default(),
        tagging: tagging(&s3.tags),
        content_disposition: s3.content_disposition.clone().unwrap_or_default(),
        proxy: proxy.as_ref().map(of_proxy),
    })
}

fn of_azure(azure: &AzureConfig) -> Result<proto::AzureBlobUpload, EgressError> {
    let AzureConfig { account, key, container, endpoint, proxy, .. } = azure;
    lacks("storage.azure.endpoint", endpoint.is_some(), "it knows Azure's own address only")?;
    lacks("storage.azure.proxy_config", proxy.is_some(), "it uses a proxy for S3 and Google only")?;
    Ok(proto::AzureBlobUpload {
        account_name: account.clone(),
        account_key: exposed(key.as_ref()),
        container_name: container.clone(),
    })
}

fn of_gcs(gcs: &GcsConfig) -> Result<proto::GcpUpload, EgressError> {
    let GcsConfig { credentials, bucket, endpoint, proxy, .. } = gcs;
    lacks("storage.gcp.endpoint", endpoint.is_some(), "it knows Google's own address only")?;
    let credentials = match credentials.as_ref().map(Secret::expose) {
        None => String::new(),
        Some(json) if json.trim_start().starts_with('{') => json.to_owned(),
        Some(path) => std::fs::read_to_string(path).map_err(|error| EgressError::Untranslatable {
            setting: "storage.gcp.credentials_json",
            why: format!("{path} cannot be read: {error}"),
        })?,
    };
    Ok(proto::GcpUpload { credentials, bucket: bucket.clone(), proxy: proxy.as_ref().map(of_proxy) })
}

fn of_oss(oss: &OssConfig) -> Result<proto::AliOssUpload, EgressError> {
    let OssConfig { access_key, secret, session_token, region, endpoint, bucket, proxy, .. } = oss;
    lacks("storage.alioss.session_token", session_token.is_some(), "it takes lasting keys only")?;
    lacks("storage.alioss.proxy_config", proxy.is_some(), "it uses a proxy for S3 and Google only")?;
    let region = region.strip_prefix("oss-").unwrap_or(region);
    Ok(proto::AliOssUpload {
        access_key: access_key.clone(),
        secret: secret.expose().to_owned(),
        region: region.to_owned(),
        // The service takes its address from here alone.
        endpoint: endpoint.clone().unwrap_or_else(|| format!("https://oss-{region}.aliyuncs.com")),
        bucket: bucket.clone(),
    })
}

fn of_proxy(proxy: &ProxyConfig) -> proto::ProxyConfig {
    proto::ProxyConfig {
        url: proxy.url.clone(),
        username: proxy.username.clone().unwrap_or_default(),
        password: exposed(proxy.password.as_ref()),
    }
}

fn lacks(setting: &'static str, is_set: bool, why: &str) -> Result<(), EgressError> {
    if is_set { Err(EgressError::Untranslatable { setting, why: why.to_owned() }) } else { Ok(()) }
}

fn exposed(secret: Option<&Secret>) -> String {
    secret.map_or_else(String::new, |secret| secret.expose().to_owned())
}

/// Tags as S3 takes them in a header: a query.
fn tagging(tags: &BTreeMap<String, String>) -> String {
    let encoded = |text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> = tags.iter().map(|(key, value)| format!("{}={}", encoded(key), encoded(value))).collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AssumeRole, Encryption, LocalConfig};

    fn s3(config: S3Config) -> Box<proto::S3Upload> {
        let (Upload(Target::S3(s3)), _) = Upload::of(&StoreConfig::S3(config)).unwrap() else { panic!("not S3") };
        s3
    }

    #[test]
    fn all_that_s3_can_say_is_said() {
        let role = AssumeRole { arn: "arn:aws:iam::1:role/r".into(), external_id: Some("x".into()), endpoint: None };
        let proxy =
            ProxyConfig { url: "http://p:1".into(), username: Some("u".into()), password: Some("hunter2".into()) };
        let config = S3Config {
            bucket: "b".into(),
            prefix: "/a/b/".into(),
            region: Some("auto".into()),
            endpoint: Some("https://e".into()),
            access_key: Some("k".into()),
            secret: Some("hunter2".into()),
            session_token: Some("t".into()),
            assume_role: Some(role),
            tags: BTreeMap::from([("a b".into(), "c&d".into()), ("e".into(), "f".into())]),
            content_disposition: Some("attachment".into()),
            proxy: Some(proxy),
            ..S3Config::default()
        };
        let (upload, prefix) = Upload::of(&StoreConfig::S3(config.clone())).unwrap();
        assert_eq!((prefix.as_str(), format!("{upload:?}").as_str()), ("a/b/", "Upload(s3://b)"));
        let expected = proto::S3Upload {
            access_key: "k".into(),
            secret: "hunter2".into(),
            session_token: "t".into(),
            assume_role_arn: "arn:aws:iam::1:role/r".into(),
            assume_role_external_id: "x".into(),
            region: "auto".into(),
            endpoint: "https://e".into(),
            bucket: "b".into(),
            force_path_style: true,
            tagging: "a%20b=c%26d&e=f".into(),
            content_disposition: "attachment".into(),
            proxy: Some(proto::ProxyConfig {
                url: "http://p:1".into(),
                username: "u".into(),
                password: "hunter2".into(),
            }),
            ..proto::S3Upload::default()
        };
        assert_eq!(*s3(config.clone()), expected);
        let amazon = s3(S3Config { endpoint: None, ..config.clone() });
        assert!(!amazon.force_path_style && amazon.endpoint.is_empty());
        assert!(!s3(S3Config { path_style: Some(false), ..config }).force_path_style);
    }

    #[test]
    fn the_other_stores() {
        let azure =
            AzureConfig { account: "a".into(), key: Some("k".into()), container: "c".into(), ..AzureConfig::default() };
        let (Upload(Target::Azure(azure)), prefix) = Upload::of(&StoreConfig::Azure(azure)).unwrap() else { panic!() };
        assert_eq!((&*azure.account_name, &*azure.account_key, &*azure.container_name, &*prefix), ("a", "k", "c", ""));
        let gcs = GcsConfig { credentials: Some("{\"a\": 1}".into()), bucket: "g".into(), ..GcsConfig::default() };
        let (Upload(Target::Gcs(gcs)), _) = Upload::of(&StoreConfig::Gcs(gcs)).unwrap() else { panic!() };
        assert_eq!((&*gcs.credentials, &*gcs.bucket), ("{\"a\": 1}", "g"));
        let oss = OssConfig {
            access_key: "k".into(),
            secret: "s".into(),
            region: "oss-cn-x".into(),
            bucket: "o".into(),
            ..OssConfig::default()
        };
        let (Upload(Target::Oss(oss)), _) = Upload::of(&StoreConfig::Oss(oss)).unwrap() else { panic!() };
        assert_eq!((&*oss.region, &*oss.endpoint), ("cn-x", "https://oss-cn-x.aliyuncs.com"));
    }

    #[test]
    fn a_key_in_a_file_is_read_from_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{}").unwrap();
        let of = |path: String| {
            Upload::of(&StoreConfig::Gcs(GcsConfig { credentials: Some(Secret::new(path)), ..GcsConfig::default() }))
        };
        let (Upload(Target::Gcs(gcs)), _) = of(file.path().display().to_string()).unwrap() else { panic!() };
        assert_eq!(gcs.credentials, "{}");
        let error = of("/nowhere/key.json".into()).unwrap_err().to_string();
        assert!(error.contains("credentials_json") && error.contains("/nowhere/key.json"), "{error}");
    }

    #[test]
    fn what_cannot_be_said_is_named() {
        let proxy = || Some(ProxyConfig { url: "http://p".into(), username: None, password: None });
        let s3 = |config| StoreConfig::S3(config);
        let cases = [
            (StoreConfig::Local(LocalConfig { dir: "calls".into() }), "a local folder"),
            (s3(S3Config { sse: Some(Encryption::S3), ..S3Config::default() }), "storage.s3.sse"),
            (s3(S3Config { kms_key: Some("k".into()), ..S3Config::default() }), "storage.s3.kms_key"),
            (s3(S3Config { storage_class: Some("X".into()), ..S3Config::default() }), "storage.s3.storage_class"),
            (
                StoreConfig::Azure(AzureConfig { endpoint: Some("http://x".into()), ..AzureConfig::default() }),
                "storage.azure.endpoint",
            ),
            (
                StoreConfig::Azure(AzureConfig { proxy: proxy(), ..AzureConfig::default() }),
                "storage.azure.proxy_config",
            ),
            (
                StoreConfig::Gcs(GcsConfig { endpoint: Some("http://x".into()), ..GcsConfig::default() }),
                "storage.gcp.endpoint",
            ),
            (StoreConfig::Oss(OssConfig { proxy: proxy(), ..OssConfig::default() }), "storage.alioss.proxy_config"),
            (
                StoreConfig::Oss(OssConfig { session_token: Some("t".into()), ..OssConfig::default() }),
                "storage.alioss.session_token",
            ),
        ];
        for (store, named) in cases {
            let Err(EgressError::Untranslatable { setting, .. }) = Upload::of(&store) else { panic!("{named}") };
            assert_eq!(setting, named);
        }
    }
}
