//! Real storage servers on free loopback ports, each started for one test and ended with it.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use callreel::store::{Store, StoreConfig};
//! use callreel::testkit::StorageServer;
//!
//! let server = StorageServer::versitygw().await?;
//! server.create_bucket("calls").await?;
//! let store = Store::open(&StoreConfig::S3(server.s3_config("calls"))).await?;
//! # Ok(())
//! # }
//! ```

mod front;
mod process;

use std::path::{Path, PathBuf};

use crate::store::{AzureConfig, S3Config, Secret, Store, StoreConfig};

use super::TestkitError;
use super::guard::read_log;
use super::server::tools_dir;
pub(super) use process::free_port;
use process::{Process, Tool};

pub use front::ProviderFront;

/// The version of versitygw that the tests are written against.
pub const VERSITYGW_VERSION: &str = "v1.8.0";

/// The version of MinIO that the tests are written against.
pub const MINIO_VERSION: &str = "v0.0.0-20260212201848-7aac2a2c5b7c";

/// The version of Azurite that the tests are written against.
pub const AZURITE_VERSION: &str = "3.35.0";

const ACCESS_KEY: &str = "loopback";
/// The same in Base64, as Azure's keys are.
const AZURE_KEY: &str = "bG9vcGJhY2stb25seS1zZWNyZXQtb2YtdGhlLXRlc3RraXQtMDAwMg==";
const SECRET: &str = "loopback-only-secret-of-the-testkit-0002";
const PORT_ATTEMPTS: usize = 5;

/// Which program serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Versitygw,
    Minio,
    Azurite,
}

/// A running storage server. Dropping it ends the process and deletes what it stored.
#[derive(Debug)]
pub struct StorageServer {
    kind: Kind,
    port: u16,
    process: Option<Process>,
    dir: tempfile::TempDir,
}

impl StorageServer {
    /// Starts versitygw, which keeps objects as files.
    ///
    /// # Errors
    ///
    /// [`TestkitError::MissingTool`] if it is not installed; [`TestkitError::ToolStart`] with the end of its log if it
    /// ended, or did not answer within a minute.
    pub async fn versitygw() -> Result<Self, TestkitError> {
        Self::start(Kind::Versitygw).await
    }

    /// Starts MinIO, which hands out the keys of roles too.
    ///
    /// # Errors
    ///
    /// As [`versitygw`](Self::versitygw).
    pub async fn minio() -> Result<Self, TestkitError> {
        Self::start(Kind::Minio).await
    }

    /// Starts Azurite, which speaks for Azure Blob Storage. Of its settings only [`azure_config`](Self::azure_config) fits.
    ///
    /// # Errors
    ///
    /// As [`versitygw`](Self::versitygw).
    pub async fn azurite() -> Result<Self, TestkitError> {
        Self::start(Kind::Azurite).await
    }

    async fn start(kind: Kind) -> Result<Self, TestkitError> {
        crate::room::ensure_crypto_provider();
        let dir = tempfile::Builder::new()
            .prefix("callreel-storage-")
            .tempdir()
            .map_err(TestkitError::io("a folder for a storage server"))?;
        for folder in ["objects", "iam"] {
            std::fs::create_dir(dir.path().join(folder)).map_err(TestkitError::io("a folder for a storage server"))?;
        }
        // A port is free when it is picked, but another process may be faster: then the server ends, and another is picked.
        let mut attempt = 1;
        loop {
            let port = free_port()?;
            match Process::start(&tool(kind, dir.path(), port), dir.path(), port).await {
                Ok(process) => return Ok(Self { kind, port, process: Some(process), dir }),
                Err(TestkitError::ToolStart { log, .. })
                    if attempt < PORT_ATTEMPTS
                        && (log.contains("address already in use") || log.contains("EADDRINUSE")) =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Where it keeps what it stores.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().join("objects")
    }

    /// Everything it logged so far, all its lives since the start.
    pub fn log(&self) -> String {
        read_log(self.dir.path())
    }

    /// Settings that reach a bucket of this server with all rights, the bucket's name in the path.
    pub fn s3_config(&self, bucket: &str) -> S3Config {
        S3Config {
            bucket: bucket.to_owned(),
            region: Some("us-east-1".to_owned()),
            endpoint: Some(self.endpoint()),
            access_key: Some(ACCESS_KEY.to_owned()),
            secret: Some(Secret::new(SECRET)),
            ..S3Config::default()
        }
    }

    /// The same, the bucket's name before the host's.
    pub fn s3_config_virtual_host(&self, bucket: &str) -> S3Config {
        let endpoint = Some(format!("http://localhost:{}", self.port));
        S3Config { endpoint, path_style: Some(false), ..self.s3_config(bucket) }
    }

    /// Settings with temporary keys of MinIO that allow nothing but these actions (`s3:PutObject`…) in a bucket.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn s3_config_allowing(&self, bucket: &str, actions: &[&str]) -> Result<S3Config, TestkitError> {
        use aws_sdk_sts::config::{BehaviorVersion, Builder, Credentials, Region};
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET, None, None, "testkit"))
            .endpoint_url(self.endpoint())
            .http_client(crate::store::testing::shared_http_client());
        let policy = serde_json::json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Action": actions,
                "Resource": [format!("arn:aws:s3:::{bucket}"), format!("arn:aws:s3:::{bucket}/*")],
            }],
        });
        let request = aws_sdk_sts::Client::from_conf(config.build())
            .assume_role()
            .role_arn("arn:aws:iam::123456789012:role/recorder")
            .role_session_name("testkit")
            .policy(policy.to_string());
        let answer = request.send().await;
        let answer = answer.map_err(|error| TestkitError::Storage(format!("assume a role: {}", chain(&error))))?;
        let Some(keys) = answer.credentials else {
            return Err(TestkitError::Storage("assume a role: no credentials".to_owned()));
        };
        Ok(S3Config {
            access_key: Some(keys.access_key_id),
            secret: Some(Secret::new(keys.secret_access_key)),
            session_token: Some(Secret::new(keys.session_token)),
            ..self.s3_config(bucket)
        })
    }

    /// Settings that reach a container of Azurite.
    pub fn azure_config(&self, container: &str) -> AzureConfig {
        AzureConfig {
            account: ACCESS_KEY.to_owned(),
            key: Some(Secret::new(AZURE_KEY)),
            container: container.to_owned(),
            endpoint: Some(format!("{}/{ACCESS_KEY}", self.endpoint())),
            ..AzureConfig::default()
        }
    }

    /// Creates a container of Azurite; one that is there already is fine.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn create_container(&self, container: &str) -> Result<(), TestkitError> {
        let created = crate::store::testing::create_container(&self.azure_config(container)).await;
        created.map_err(|error| TestkitError::Storage(error.to_string()))
    }

    /// A store in a bucket of this server that is created where it is missing.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn store(&self, bucket: &str) -> Result<Store, TestkitError> {
        self.create_bucket(bucket).await?;
        let opened = Store::open(&StoreConfig::S3(self.s3_config(bucket))).await;
        opened.map_err(|error| TestkitError::Storage(error.to_string()))
    }

    /// Creates a bucket; one that is there already is fine.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), TestkitError> {
        let answer = self.client().create_bucket().bucket(bucket).send().await;
        match answer {
            Err(error)
                if !error.as_service_error().is_some_and(|refusal| {
                    refusal.is_bucket_already_owned_by_you() || refusal.is_bucket_already_exists()
                }) =>
            {
                Err(TestkitError::Storage(format!("create {bucket}: {}", chain(&error))))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Deletes a bucket with everything in it, as its owner may while a call is recorded.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn delete_bucket(&self, bucket: &str) -> Result<(), TestkitError> {
        let failed =
            |error: &dyn std::error::Error| TestkitError::Storage(format!("delete {bucket}: {}", chain(error)));
        let client = self.client();
        let objects = client.list_objects_v2().bucket(bucket).send().await.map_err(|error| failed(&error))?;
        for object in objects.contents() {
            let request = client.delete_object().bucket(bucket).key(object.key().unwrap_or_default());
            request.send().await.map_err(|error| failed(&error))?;
        }
        let uploads = client.list_multipart_uploads().bucket(bucket).send().await.map_err(|error| failed(&error))?;
        for upload in uploads.uploads() {
            let request = client
                .abort_multipart_upload()
                .bucket(bucket)
                .key(upload.key().unwrap_or_default())
                .upload_id(upload.upload_id().unwrap_or_default());
            request.send().await.map_err(|error| failed(&error))?;
        }
        client.delete_bucket().bucket(bucket).send().await.map(drop).map_err(|error| failed(&error))
    }

    /// How many uploads of a bucket are neither completed nor aborted. Ask versitygw, not MinIO, whose answer leaves some
    /// out.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Storage`] where the server refuses.
    pub async fn open_uploads(&self, bucket: &str) -> Result<usize, TestkitError> {
        let answer = self.client().list_multipart_uploads().bucket(bucket).send().await;
        let answer =
            answer.map_err(|error| TestkitError::Storage(format!("uploads of {bucket}: {}", chain(&error))))?;
        Ok(answer.uploads().len())
    }

    /// A client with all rights, for what a [`Store`] does not do.
    pub fn client(&self) -> aws_sdk_s3::Client {
        use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation};
        let http = crate::store::testing::shared_http_client();
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("us-east-1"))
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET, None, None, "testkit"))
            .endpoint_url(self.endpoint())
            .force_path_style(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .http_client(http);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// Ends the process at once, as a crash would. Does nothing where it is dead already.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts the server again on the same port over the same objects; kills it before, where it still runs.
    ///
    /// # Errors
    ///
    /// As [`versitygw`](Self::versitygw); also where somebody took the port meanwhile.
    pub async fn restart(&mut self) -> Result<(), TestkitError> {
        self.kill();
        let dir = self.dir.path();
        self.process = Some(Process::start(&tool(self.kind, dir, self.port), dir, self.port).await?);
        Ok(())
    }
}

fn tool(kind: Kind, dir: &Path, port: u16) -> Tool {
    let address = format!("127.0.0.1:{port}");
    let objects = dir.join("objects").display().to_string();
    let owned = |arguments: &[&str]| arguments.iter().map(|&argument| argument.to_owned()).collect();
    match kind {
        Kind::Versitygw => Tool {
            name: "versitygw",
            binary: tools_dir().join(format!("versitygw-{VERSITYGW_VERSION}/versitygw")),
            arguments: owned(&[
                "--port",
                &address,
                "--virtual-domain",
                &format!("localhost:{port}"),
                "--health",
                "/health",
                "--iam-dir",
                &dir.join("iam").display().to_string(),
                "--quiet",
                "posix",
                &objects,
            ]),
            environment: vec![("ROOT_ACCESS_KEY", ACCESS_KEY.to_owned()), ("ROOT_SECRET_KEY", SECRET.to_owned())],
            health: "/health",
        },
        Kind::Minio => Tool {
            name: "minio",
            binary: tools_dir().join(format!("minio-{MINIO_VERSION}/minio")),
            arguments: owned(&["server", "--address", &address, "--quiet", &objects]),
            environment: vec![
                ("MINIO_ROOT_USER", ACCESS_KEY.to_owned()),
                ("MINIO_ROOT_PASSWORD", SECRET.to_owned()),
                ("MINIO_BROWSER", "off".to_owned()),
                ("MINIO_UPDATE", "off".to_owned()),
                ("MINIO_CI_CD", "on".to_owned()),
                ("HOME", dir.display().to_string()),
            ],
            health: "/minio/health/ready",
        },
        Kind::Azurite => Tool {
            name: "azurite",
            binary: tools_dir().join(format!("azurite-{AZURITE_VERSION}/node_modules/.bin/azurite-blob")),
            arguments: owned(&[
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
                &port.to_string(),
                "--location",
                &objects,
                "--silent",
                "--skipApiVersionCheck",
                "--disableTelemetry",
            ]),
            environment: vec![("AZURITE_ACCOUNTS", format!("{ACCESS_KEY}:{AZURE_KEY}"))],
            health: "/",
        },
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
