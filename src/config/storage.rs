//! Where recordings go, from `--out` and the environment names that deployed systems use.

use std::path::PathBuf;

use super::{ConfigError, ConfigFile};
use crate::store::{AzureConfig, GcsConfig, OssConfig, S3Config, Secret, StoreConfig};

/// Where recordings go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The store; none for a local directory.
    pub store: Option<StoreConfig>,
    /// The local directory; with a store, what its spool is below.
    pub dir: PathBuf,
    /// The name template that the system has whose variables chose the store.
    pub name: Option<&'static str>,
}

/// A system's variable that chooses a store, and how it names objects.
struct Choice {
    bucket: &'static str,
    provider: Provider,
    name: &'static str,
}

#[derive(Clone, Copy)]
enum Provider {
    /// Variables that begin with `S3_RECORDING` and `AWS`.
    Agent,
    /// Variables that begin with `S3`.
    S3,
    /// Variables that begin with `CLOUDFLARE_R2`.
    R2,
    Azure,
    Gcs,
    Oss,
}

const CHOICES: [Choice; 6] = [
    Choice {
        bucket: "S3_RECORDING_BUCKET",
        provider: Provider::Agent,
        name: "recordings/{room_name}_{YYYYMMDD_HHMMSS}.{ext}",
    },
    Choice { bucket: "S3_BUCKET", provider: Provider::S3, name: "recordings/{room_name}-{time}" },
    Choice {
        bucket: "CLOUDFLARE_R2_STORAGE_BUCKET_NAME",
        provider: Provider::R2,
        name: "recordings/{room_id}/{time}.{ext}",
    },
    Choice { bucket: "AZURE_CONTAINER_NAME", provider: Provider::Azure, name: "recordings/{room_name}-{time}" },
    Choice { bucket: "GCP_BUCKET", provider: Provider::Gcs, name: "recordings/{room_name}-{time}" },
    Choice { bucket: "ALIOSS_BUCKET", provider: Provider::Oss, name: "recordings/{room_name}-{time}" },
];

/// What [`S3_BUCKET`](CHOICES) means where a workflow waits for the end of an egress.
const EGRESS_NAME: &str = "recordings/{job_id}.{ext}";

/// The name of recordings into a store that a file configures.
const FILE_NAME: &str = "recordings/{room_name}-{time}";

/// The directory where nothing else is said.
const DEFAULT_DIR: &str = "./recordings";

/// Reads where recordings go: `out` (a directory or the URL of a store), else the one store whose bucket variable is set, else
/// what `file` says, else `./recordings`. Credentials, region and endpoint come from `env` in any case; a variable that is empty is not set.
///
/// # Errors
/// [`ConfigError`] for a URL that makes no sense, for several bucket variables at once, and for half of a pair of keys.
pub fn destination(
    out: Option<&str>,
    file: &ConfigFile,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Destination, ConfigError> {
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    if let Some(out) = out {
        return from_out(out, &env);
    }
    let chosen: Vec<&Choice> = CHOICES.iter().filter(|choice| env(choice.bucket).is_some()).collect();
    match chosen[..] {
        [] => {
            let store = file.storage.store()?;
            let name = store.as_ref().map(|_| FILE_NAME);
            Ok(Destination { store, dir: DEFAULT_DIR.into(), name })
        }
        [choice] => {
            let bucket = env(choice.bucket).unwrap_or_default();
            let is_egress = matches!(choice.provider, Provider::S3) && env("EGRESS_WEBHOOK_URL").is_some();
            let name = if is_egress { EGRESS_NAME } else { choice.name };
            let store = store_of(choice.provider, bucket, String::new(), &env)?;
            Ok(Destination { store: Some(store), dir: DEFAULT_DIR.into(), name: Some(name) })
        }
        _ => {
            let names: Vec<&str> = chosen.iter().map(|choice| choice.bucket).collect();
            let why = format!("Only one storage provider can be configured; {} are set", names.join(" and "));
            Err(ConfigError::Invalid { key: "storage", why })
        }
    }
}

fn from_out(out: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Destination, ConfigError> {
    let invalid = |why: String| ConfigError::Invalid { key: "out", why };
    let parsed = StoreConfig::parse_url(out).map_err(|error| invalid(error.to_string()))?;
    let (provider, bucket, prefix) = match parsed {
        StoreConfig::Local(local) => return Ok(Destination { store: None, dir: local.dir, name: None }),
        StoreConfig::S3(s3) if env("CLOUDFLARE_R2_ENDPOINT_URL").is_some() && env("S3_ENDPOINT").is_none() => {
            (Provider::R2, s3.bucket, s3.prefix)
        }
        StoreConfig::S3(s3) => (Provider::S3, s3.bucket, s3.prefix),
        StoreConfig::Azure(azure) => (Provider::Azure, azure.container, azure.prefix),
        StoreConfig::Gcs(gcs) => (Provider::Gcs, gcs.bucket, gcs.prefix),
        StoreConfig::Oss(oss) => (Provider::Oss, oss.bucket, oss.prefix),
    };
    let store = store_of(provider, bucket, prefix, env)?;
    Ok(Destination { store: Some(store), dir: DEFAULT_DIR.into(), name: None })
}

fn store_of(
    provider: Provider,
    bucket: String,
    prefix: String,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<StoreConfig, ConfigError> {
    let first = |names: &[&str]| names.iter().find_map(|name| env(name));
    let needed = |key: &'static str, hint: &'static str| env(key).ok_or(ConfigError::Missing { key, hint });
    Ok(match provider {
        Provider::Agent => {
            let region = first(&["S3_RECORDING_REGION"]).or(Some("us-east-1".into()));
            let keys = keys(env, "AWS_ACCESS_KEY_ID", &["AWS_SECRET_ACCESS_KEY"], "AWS_SESSION_TOKEN")?;
            let endpoint = first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
            StoreConfig::S3(S3Config { bucket, prefix, region, endpoint, ..keys })
        }
        Provider::S3 => {
            let own = keys(env, "S3_ACCESS_KEY", &["S3_SECRET_KEY", "S3_SECRET"], "S3_SESSION_TOKEN")?;
            let keys = match own.access_key {
                Some(_) => own,
                None => keys(env, "AWS_ACCESS_KEY_ID", &["AWS_SECRET_ACCESS_KEY"], "AWS_SESSION_TOKEN")?,
            };
            let region = first(&["S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"]);
            let endpoint = first(&["S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]).map(with_scheme);
            let region = region.or_else(|| endpoint.is_some().then(|| "auto".into()));
            StoreConfig::S3(S3Config { bucket, prefix, region, endpoint, ..keys })
        }
        Provider::R2 => {
            let (id, secret) = ("CLOUDFLARE_R2_ACCESS_KEY_ID", "CLOUDFLARE_R2_SECRET_ACCESS_KEY");
            needed(id, "R2 has no other credentials")?;
            let keys = keys(env, id, &[secret], "CLOUDFLARE_R2_SESSION_TOKEN")?;
            let endpoint = needed("CLOUDFLARE_R2_ENDPOINT_URL", "https://ACCOUNT.r2.cloudflarestorage.com")?;
            let region = first(&["CLOUDFLARE_R2_REGION_NAME"]).or(Some("auto".into()));
            let endpoint = Some(with_scheme(endpoint));
            StoreConfig::S3(S3Config { bucket, prefix, region, endpoint, path_style: Some(true), ..keys })
        }
        Provider::Azure => StoreConfig::Azure(AzureConfig {
            account: needed("AZURE_STORAGE_ACCOUNT", "the account that the container belongs to")?,
            key: Some(Secret::new(needed("AZURE_STORAGE_KEY", "the account's key")?)),
            container: bucket,
            prefix,
            endpoint: first(&["AZURE_STORAGE_ENDPOINT"]),
            ..AzureConfig::default()
        }),
        Provider::Gcs => StoreConfig::Gcs(GcsConfig {
            credentials: first(&["GOOGLE_APPLICATION_CREDENTIALS"]).map(Secret::new),
            bucket,
            prefix,
            endpoint: first(&["GCP_ENDPOINT"]),
            ..GcsConfig::default()
        }),
        Provider::Oss => StoreConfig::Oss(OssConfig {
            access_key: needed("ALIOSS_ACCESS_KEY", "the AccessKey id")?,
            secret: Secret::new(needed("ALIOSS_SECRET", "the AccessKey secret")?),
            region: needed("ALIOSS_REGION", "cn-hangzhou…")?,
            endpoint: first(&["ALIOSS_ENDPOINT"]).map(with_scheme),
            bucket,
            prefix,
            ..OssConfig::default()
        }),
    })
}

/// A pair of keys: both or neither.
fn keys(
    env: &dyn Fn(&str) -> Option<String>,
    id: &'static str,
    secrets: &[&'static str],
    token: &str,
) -> Result<S3Config, ConfigError> {
    let secret = secrets.iter().find_map(|name| env(name));
    match (env(id), secret) {
        (Some(access_key), Some(secret)) => Ok(S3Config {
            access_key: Some(access_key),
            secret: Some(Secret::new(secret)),
            session_token: env(token).map(Secret::new),
            ..S3Config::default()
        }),
        (None, None) => Ok(S3Config::default()),
        (Some(_), None) => Err(ConfigError::Missing { key: secrets[0], hint: "the key id is set without its secret" }),
        (None, Some(_)) => Err(ConfigError::Missing { key: id, hint: "the secret is set without its key id" }),
    }
}

/// Endpoints are often written without a scheme.
pub(super) fn with_scheme(endpoint: String) -> String {
    if endpoint.contains("://") { endpoint } else { format!("https://{endpoint}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(out: Option<&str>, env: &[(&str, &str)]) -> Result<Destination, ConfigError> {
        destination(out, &ConfigFile::default(), &|name| {
            env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn s3(destination: Destination) -> S3Config {
        let Some(StoreConfig::S3(s3)) = destination.store else { panic!("{destination:?} is no S3") };
        s3
    }

    #[test]
    fn without_any_name_recordings_stay_here() {
        let local = read(None, &[("GOOGLE_APPLICATION_CREDENTIALS", "/x"), ("S3_BUCKET", "")]).unwrap();
        assert_eq!(local, Destination { store: None, dir: "./recordings".into(), name: None });
        assert_eq!(read(Some("calls/x"), &[("S3_BUCKET", "b")]).unwrap().dir, PathBuf::from("calls/x"));
    }

    #[test]
    fn an_agent_that_records_itself() {
        let keys = [("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s"), ("S3_RECORDING_BUCKET", "b")];
        let found = read(None, &keys).unwrap();
        assert_eq!(found.name, Some("recordings/{room_name}_{YYYYMMDD_HHMMSS}.{ext}"));
        let s3 = s3(found);
        assert_eq!((s3.bucket.as_str(), s3.region.as_deref(), s3.endpoint), ("b", Some("us-east-1"), None));
        assert_eq!((s3.access_key.as_deref(), s3.secret.unwrap().expose()), (Some("k"), "s"));
    }

    #[test]
    fn s3_of_two_systems() {
        let both = [("S3_BUCKET", "b"), ("S3_ACCESS_KEY", "k"), ("S3_ENDPOINT", "e.example"), ("S3_REGION", "r")];
        for (secret, more, name) in [
            ("S3_SECRET", ("FILE_TYPE", "OGG"), "recordings/{room_name}-{time}"),
            ("S3_SECRET_KEY", ("EGRESS_WEBHOOK_URL", "http://x"), "recordings/{job_id}.{ext}"),
        ] {
            let found = read(None, &[&both[..], &[(secret, "s"), more]].concat()).unwrap();
            assert_eq!(found.name, Some(name));
            let s3 = s3(found);
            assert_eq!(s3.secret.unwrap().expose(), "s");
            assert_eq!((s3.endpoint.as_deref(), s3.region.as_deref()), (Some("https://e.example"), Some("r")));
        }
    }

    #[test]
    fn r2_is_addressed_by_path() {
        let names = [
            ("CLOUDFLARE_R2_STORAGE_BUCKET_NAME", "b"),
            ("CLOUDFLARE_R2_ACCESS_KEY_ID", "k"),
            ("CLOUDFLARE_R2_SECRET_ACCESS_KEY", "s"),
            ("CLOUDFLARE_R2_ENDPOINT_URL", "https://a.r2.example"),
        ];
        let found = read(None, &names).unwrap();
        assert_eq!(found.name, Some("recordings/{room_id}/{time}.{ext}"));
        let by_name = s3(found);
        assert_eq!((by_name.path_style, by_name.region.as_deref()), (Some(true), Some("auto")));
        let by_url = s3(read(Some("s3://b"), &names[1..]).unwrap());
        assert_eq!(by_url, by_name);
    }

    #[test]
    fn the_other_providers() {
        let azure = [("AZURE_CONTAINER_NAME", "c"), ("AZURE_STORAGE_ACCOUNT", "a"), ("AZURE_STORAGE_KEY", "k")];
        assert!(matches!(read(None, &azure).unwrap().store, Some(StoreConfig::Azure(a)) if a.container == "c"));
        assert!(
            matches!(read(None, &[("GCP_BUCKET", "g")]).unwrap().store, Some(StoreConfig::Gcs(g)) if g.bucket == "g")
        );
        let oss = [("ALIOSS_ACCESS_KEY", "k"), ("ALIOSS_SECRET", "s"), ("ALIOSS_REGION", "r")];
        let found = read(Some("oss://b/p"), &oss).unwrap();
        assert!(matches!(found.store, Some(StoreConfig::Oss(o)) if (&*o.bucket, &*o.prefix) == ("b", "p")));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = read(None, &[("S3_BUCKET", "b"), ("GCP_BUCKET", "g")]).unwrap_err().to_string();
        assert!(error.contains("Only one storage provider can be configured"), "{error}");
        assert!(error.contains("S3_BUCKET and GCP_BUCKET"), "{error}");
        let half = read(None, &[("S3_BUCKET", "b"), ("S3_ACCESS_KEY", "k")]).unwrap_err();
        assert!(matches!(half, ConfigError::Missing { key: "S3_SECRET_KEY", .. }), "{half}");
        let error = read(None, &[("AZURE_CONTAINER_NAME", "c")]).unwrap_err();
        assert!(matches!(error, ConfigError::Missing { key: "AZURE_STORAGE_ACCOUNT", .. }), "{error}");
        assert!(matches!(read(Some("ftp://x"), &[]), Err(ConfigError::Invalid { key: "out", .. })));
        assert!(matches!(read(Some(""), &[]), Err(ConfigError::Invalid { key: "out", .. })));
    }
}
