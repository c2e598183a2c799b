//! The configuration file: YAML with the keys that deployed recorders use. `${NAME}` stands for an environment variable.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::serve_file::{
    AuthSection, CatalogSection, CorsSection, DownloadsSection, DrainSection, EngineSection, LimitsSection, Profile,
    RecordingSection, RetentionSection, TlsSection, WebhooksSection,
};
use super::serve_rule::RuleSpec;
use super::{ConfigError, E2ee};
use crate::store::{
    AssumeRole, AzureConfig, Checksum, Encryption, GcsConfig, OssConfig, ProxyConfig, Retention, RetryConfig, S3Config,
    Secret, StoreConfig,
};

/// What a configuration file says. Flags and the environment say it louder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConfigFile {
    /// The LiveKit server.
    pub livekit_host: Option<String>,
    /// Its API key.
    pub livekit_api_key: Option<String>,
    /// The key's secret.
    pub livekit_api_secret: Option<Secret>,
    /// The key that LiveKit signs its webhooks with; for the service.
    pub webhook_api_key: Option<String>,
    /// The service's port.
    pub listen_port: Option<Text>,
    /// The layout of video.
    pub layout: Option<String>,
    /// `MP4`, `WEBM` or `OGG`.
    pub file_type: Option<String>,
    /// The name template.
    pub file_path: Option<String>,
    /// The age public keys to which recordings are encrypted.
    pub encrypt_to: Option<Keys>,
    /// A file of such keys.
    pub encrypt_to_file: Option<PathBuf>,
    /// The keys to end-to-end encrypted calls.
    pub e2ee: Option<E2ee>,
    /// Where recordings go.
    pub storage: Storage,
    /// The secret of `webhook_api_key`; that of `livekit_api_key` unless said.
    pub webhook_api_secret: Option<Secret>,
    /// Whether there is no picture. Said by nobody, the format decides.
    pub audio_only: Option<bool>,
    /// Where a workflow waits to hear of the end of a recording.
    pub egress_webhook_url: Option<String>,
    /// Which deployed system's defaults hold.
    pub profile: Option<Profile>,
    /// The service's address, `HOST:PORT`; goes before `listen_port`.
    pub listen: Option<String>,
    /// Whether rooms are recorded that no rule is about.
    pub auto_record: Option<bool>,
    /// The directory or store for recordings, as `--out` has it; goes before `storage`.
    pub out: Option<String>,
    /// The catalogue of recordings.
    pub catalog: CatalogSection,
    /// Who may do what.
    pub auth: AuthSection,
    /// Which rooms are recorded, and how: the first rule that fits.
    pub rules: Vec<RuleSpec>,
    /// Who is told what happens.
    pub webhooks: WebhooksSection,
    /// Where people get recordings from.
    pub downloads: DownloadsSection,
    /// How long recordings are kept.
    pub retention: RetentionSection,
    /// Who records.
    pub engine: EngineSection,
    /// How recordings are made, unless a rule says otherwise.
    pub recording: RecordingSection,
    /// Which web pages of other hosts may call the service.
    pub cors: CorsSection,
    /// The service's certificate.
    pub tls: TlsSection,
    /// What the service takes on.
    pub limits: LimitsSection,
    /// How the service ends.
    pub drain: DrainSection,
}

/// Keys that people write as a list or as one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(pub Vec<String>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            List(Vec<String>),
            Text(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::List(keys) => keys,
            Either::Text(text) => vec![text],
        }))
    }
}

impl Serialize for Keys {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for Keys {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Keys".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]})
    }
}

/// A value that people write with or without quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Number(number) => number.to_string(),
            Either::Text(text) => text,
        }))
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl JsonSchema for Text {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Text".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["string", "integer"]})
    }
}

/// Where recordings go: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Storage {
    /// S3 and its relatives.
    pub s3: Option<S3>,
    /// Azure Blob Storage.
    pub azure: Option<Azure>,
    /// Google Cloud Storage.
    pub gcp: Option<Gcp>,
    /// Alibaba Cloud OSS.
    pub alioss: Option<AliOss>,
}

/// `storage.s3`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "as in S3Config")]
pub struct S3 {
    pub bucket: String,
    pub prefix: String,
    pub region: Option<String>,
    pub endpoint: Option<String>,
    pub access_key: Option<String>,
    pub secret: Option<Secret>,
    pub session_token: Option<Secret>,
    pub path_style: Option<bool>,
    pub assume_role: Option<AssumeRole>,
    pub sse: Option<Encryption>,
    pub kms_key: Option<String>,
    pub storage_class: Option<String>,
    pub tags: BTreeMap<String, String>,
    pub content_disposition: Option<String>,
    pub retention: Option<Retention>,
    pub checksum: Checksum,
    pub part_size: Option<u64>,
    pub max_retries: Option<u32>,
    pub min_retry_delay: Option<Time>,
    pub max_retry_delay: Option<Time>,
    /// Known, and without meaning here: `RUST_LOG` says what is logged.
    pub aws_log_level: Option<String>,
    pub proxy_config: Option<ProxyConfig>,
}

/// `storage.azure`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "as in AzureConfig")]
pub struct Azure {
    pub account_name: String,
    pub account_key: Option<Secret>,
    pub container_name: String,
    pub prefix: String,
    pub endpoint: Option<String>,
    pub proxy_config: Option<ProxyConfig>,
}

/// `storage.gcp`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "as in GcsConfig")]
pub struct Gcp {
    pub credentials_json: Option<Secret>,
    pub bucket: String,
    pub prefix: String,
    pub proxy_config: Option<ProxyConfig>,
}

/// `storage.alioss`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "as in OssConfig")]
pub struct AliOss {
    pub access_key: String,
    pub secret: Secret,
    pub region: String,
    pub endpoint: Option<String>,
    pub bucket: String,
    pub prefix: String,
    pub proxy_config: Option<ProxyConfig>,
}

/// `500ms`, `5s`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let millis = self.0.as_millis();
        let text = if millis.is_multiple_of(1_000) { format!("{}s", millis / 1_000) } else { format!("{millis}ms") };
        serializer.serialize_str(&text)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h)?$", "description": "Such as 500ms, 90s, 45m or 4h."})
    }
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with the file's path and what is wrong where: it cannot be read, a variable is not set, a key
    /// is unknown, a value has no sense.
    pub fn read(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { key: "config", why: format!("{}: {why}", path.display()) };
        let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
        Self::parse(&text, env).map_err(invalid)
    }

    /// Reads a file as its keys and values, once it is known to be one.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn document(
        path: &Path,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<serde_json::Value, ConfigError> {
        let invalid = |why: String| ConfigError::Invalid { key: "config", why: format!("{}: {why}", path.display()) };
        let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
        Self::parse(&text, env).map_err(invalid)?;
        parse_as::<Option<serde_json::Value>>(&text, env).map_err(invalid).map(Option::unwrap_or_default)
    }

    pub(crate) fn parse(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        parse_as::<Option<Self>>(text, env).map(Option::unwrap_or_default)
    }
}

fn parse_as<T: Default + serde::de::DeserializeOwned>(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<T, String> {
    let expanded = expand(text, env)?;
    if expanded.text.trim().is_empty() {
        return Ok(T::default());
    }
    // An excerpt would show the values of variables, which are secrets, and the secrets beside what is wrong.
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&expanded.text, options).map_err(|error| explain(&error, text, &expanded))
}

impl Storage {
    /// The store that is configured; none where there is none.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] where there is more than one.
    pub fn store(&self) -> Result<Option<StoreConfig>, ConfigError> {
        let Self { s3, azure, gcp, alioss } = self.clone();
        let mut all: Vec<StoreConfig> = Vec::new();
        all.extend(s3.map(S3::into));
        all.extend(azure.map(Azure::into));
        all.extend(gcp.map(Gcp::into));
        all.extend(alioss.map(AliOss::into));
        if all.len() > 1 {
            let why = "Only one storage provider can be configured".into();
            return Err(ConfigError::Invalid { key: "storage", why });
        }
        Ok(all.pop())
    }
}

impl From<S3> for StoreConfig {
    fn from(s3: S3) -> Self {
        let known = RetryConfig::default();
        let retry = RetryConfig {
            max_retries: s3.max_retries.unwrap_or(known.max_retries),
            min_retry_delay: s3.min_retry_delay.map_or(known.min_retry_delay, |time| time.0),
            max_retry_delay: s3.max_retry_delay.map_or(known.max_retry_delay, |time| time.0),
            ..known
        };
        Self::S3(S3Config {
            bucket: s3.bucket,
            prefix: s3.prefix,
            region: s3.region,
            endpoint: s3.endpoint.map(super::storage::with_scheme),
            access_key: s3.access_key,
            secret: s3.secret,
            session_token: s3.session_token,
            path_style: s3.path_style,
            assume_role: s3.assume_role,
            sse: s3.sse,
            kms_key: s3.kms_key,
            storage_class: s3.storage_class,
            tags: s3.tags,
            content_disposition: s3.content_disposition,
            retention: s3.retention,
            checksum: s3.checksum,
            part_size: s3.part_size,
            retry,
            proxy: s3.proxy_config,
            ..S3Config::default()
        })
    }
}

impl From<Azure> for StoreConfig {
    fn from(azure: Azure) -> Self {
        let Azure { account_name: account, account_key: key, container_name: container, prefix, endpoint, .. } = azure;
        let proxy = azure.proxy_config;
        Self::Azure(AzureConfig { account, key, container, prefix, endpoint, proxy, ..AzureConfig::default() })
    }
}

impl From<Gcp> for StoreConfig {
    fn from(gcp: Gcp) -> Self {
        let Gcp { credentials_json: credentials, bucket, prefix, proxy_config: proxy } = gcp;
        Self::Gcs(GcsConfig { credentials, bucket, prefix, proxy, ..GcsConfig::default() })
    }
}

impl From<AliOss> for StoreConfig {
    fn from(oss: AliOss) -> Self {
        let AliOss { access_key, secret, region, endpoint, bucket, prefix, proxy_config: proxy } = oss;
        let endpoint = endpoint.map(super::storage::with_scheme);
        Self::Oss(OssConfig { access_key, secret, region, endpoint, bucket, prefix, proxy, ..OssConfig::default() })
    }
}

/// A file whose variables have become their values.
#[derive(Default)]
struct Expanded {
    text: String,
    values: Vec<String>,
}

/// What is wrong where, without the value of any variable: what it was taken for is of the variable's own words.
fn explain(error: &serde_saphyr::Error, written: &str, expanded: &Expanded) -> String {
    let message = error.to_string();
    let place = error.location().and_then(|place| Some((place, written.lines().nth(place.line() as usize - 1)?)));
    let is_written = |line: &str| match error.without_snippet() {
        serde_saphyr::Error::SerdeUnknownField { field, .. } => line.contains(field.as_str()),
        _ => !line.contains("${"),
    };
    let is_telling = expanded.values.iter().any(|value| !value.is_empty() && message.contains(value.as_str()));
    match place {
        _ if expanded.values.is_empty() => message,
        Some((_, line)) if is_written(line) && !is_telling => message,
        Some((place, _)) => format!("line {}: the value of a variable does not fit there", place.line()),
        None => "the value of a variable does not fit where it stands".into(),
    }
}

/// Puts values of variables in the place of `${NAME}`; `$${` is a dollar sign and a brace.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Expanded, String> {
    let Expanded { text: mut expanded, mut values } = Expanded::default();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let number = number + 1;
        let mut rest = line;
        // What stands in a comment is not looked up.
        let code = line.find(" #").map_or(line.len(), |at| at);
        if line.trim_start().starts_with('#') {
            expanded.push_str(line);
            continue;
        }
        while let Some(at) = rest.find("${") {
            if line.len() - rest.len() + at > code {
                break;
            }
            if rest[..at].ends_with('$') {
                expanded.push_str(&rest[..at + 2]);
                expanded.remove(expanded.len() - 3);
                rest = &rest[at + 2..];
                continue;
            }
            let end = rest[at..].find('}').ok_or_else(|| format!("line {number}: a ${{ without its }}"))?;
            let name = &rest[at + 2..at + end];
            let value = env(name).ok_or_else(|| format!("line {number}: the variable {name} is not set"))?;
            if value.contains(['\n', '\r']) {
                return Err(format!("line {number}: the variable {name} has several lines"));
            }
            expanded.push_str(&rest[..at]);
            expanded.push_str(&value);
            values.push(value);
            rest = &rest[at + end + 1..];
        }
        expanded.push_str(rest);
    }
    Ok(Expanded { text: expanded, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(text, &|name| (name == "SECRET").then(|| "s3cr3t".to_owned()))
    }

    #[test]
    fn a_file_as_deployed_recorders_have_it() {
        let file = parse(
            r#"
livekit_host: "http://livekit-server.svc.cluster.local:7880"
livekit_api_key: "k"
livekit_api_secret: "${SECRET}"
listen_port: "8080"
layout: "grid-16"            # speaker-light, ${NOT} looked up
file_type: "MP4"
file_path: "recordings/{room_name}-{time}"
storage:
  s3:
    {bucket: b, region: us-east-1, access_key: k, secret: "${SECRET}", endpoint: e.example, max_retries: 7,
     max_retry_delay: "5s", min_retry_delay: "500ms", aws_log_level: "LogOff",
     proxy_config: {url: "http://proxy:8080", username: u, password: p}}
"#,
        )
        .unwrap();
        assert_eq!(file.livekit_api_secret.as_ref().map(Secret::expose), Some("s3cr3t"));
        assert_eq!(file.listen_port, Some(Text("8080".into())));
        let Some(StoreConfig::S3(s3)) = file.storage.store().unwrap() else { panic!("{file:?}") };
        assert_eq!((&*s3.bucket, s3.endpoint.as_deref()), ("b", Some("https://e.example")));
        assert_eq!((s3.retry.max_retries, s3.retry.min_retry_delay), (7, Duration::from_millis(500)));
        assert_eq!(s3.proxy.unwrap().username.as_deref(), Some("u"));
    }

    #[test]
    fn keys_are_written_as_a_list_or_as_one() {
        assert_eq!(
            parse("encrypt_to: [age1a, age1b]\n").unwrap().encrypt_to,
            Some(Keys(vec!["age1a".into(), "age1b".into()]))
        );
        assert_eq!(parse("encrypt_to: age1a\n").unwrap().encrypt_to, Some(Keys(vec!["age1a".into()])));
        assert_eq!(parse("encrypt_to_file: k.txt\n").unwrap().encrypt_to_file, Some("k.txt".into()));
    }

    #[test]
    fn nothing_is_a_file_too() {
        assert_eq!(parse("").unwrap(), ConfigFile::default());
        assert_eq!(parse("listen_port: 8080\n").unwrap().listen_port, Some(Text("8080".into())));
        assert_eq!(ConfigFile::default().storage.store(), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        assert!(parse("livekit_hots: x\n").unwrap_err().contains("livekit_hots"));
        let error = parse("a: 1\nlivekit_host: ${NOWHERE}\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("NOWHERE"), "{error}");
        assert!(parse("livekit_host: ${SECRET\n").unwrap_err().contains("line 1"));
        let both = parse("storage: {s3: {bucket: a}, gcp: {bucket: b}}\n").unwrap();
        assert!(both.storage.store().unwrap_err().to_string().contains("Only one storage provider can be configured"));
        assert!(parse("storage: {s3: {bucket: a, max_retry_delay: soon}}\n").is_err());
    }

    #[test]
    fn no_secret_is_in_what_is_said_of_a_mistake() {
        let values = [
            "s3cr3t",
            "12345",
            "[s3cr3t",
            "s3cr3t: x",
            "*s3cr3t",
            "!s3cr3t",
            "\"s3cr3t",
            "x, s3cr3t: y",
            "{s3cr3t: 1}",
        ];
        for value in values {
            for text in [
                "livekit_hots: x\nlivekit_api_secret: ${V}\n",
                "livekit_api_secret: \"${V}\"\nlivekit_hots: x\n",
                "livekit_hots: ${V}\n",
                "livekit_api_secret: [${V}]\n",
                "livekit_api_secret: {a: ${V}}\n",
                "storage: {s3: {secret: ${V}, max_retries: ${V}, bucket: b, checksum: ${V}}}\n",
                "storage:\n  s3:\n    secret: ${V}\n    max_retries: ${V}\n",
                "storage:\n  s3: {checksum:\n    ${V}}\n",
                "storage:\n  s3: {path_style: ${V}, max_retry_delay: ${V}}\n",
                "storage:\n  s3:\n    max_retry_delay: ${V}\n",
                "e2ee: {key_index: ${V}}\n",
                "e2ee: ${V}\n",
                "listen_port: [${V}]\n",
            ] {
                let parsed = ConfigFile::parse(text, &|_| Some(value.to_owned()));
                let Err(error) = parsed else { continue };
                assert!(!error.contains("s3cr3t") && !error.contains("12345"), "{text} {error}");
            }
        }
        // Written into the file itself, too.
        for text in ["livekit_api_secret: 12345\nlivekit_hots: x\n", "livekit_api_secret: [12345]\n", "e2ee: 12345\n"] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("12345"), "{error}");
        }
        let mistyped = parse("livekit_host: x\nlivekit_api_secrt: ${SECRET}\n").unwrap_err();
        assert!(mistyped.contains("livekit_api_secrt") && mistyped.contains("line 2"), "{mistyped}");
        let unfit = parse("\nstorage: {s3: {max_retries: \"${SECRET}\"}}\n").unwrap_err();
        assert!(unfit.contains("line 2"), "{unfit}");
    }

    #[test]
    fn a_dollar_sign_can_be_written() {
        assert_eq!(parse("file_path: \"a$${b}\"\n").unwrap().file_path.as_deref(), Some("a${b}"));
    }
}
