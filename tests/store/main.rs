//! Every store against the same checks, each on a real server.

mod checks;
mod faults;

use callreel::store::{AzureConfig, GcsConfig, LocalConfig, OssConfig, S3Config, Store, StoreConfig, StoreError};
use callreel::testkit::{ProviderFront, StorageServer};
use checks::{CHECKS, Place};

/// Runs all checks, each at the place that `place` makes of its name, and tells which failed.
async fn conforms(place: impl Fn(&str) -> StoreConfig) {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let place = Place { config: place(name) };
        if tokio::spawn(check(place)).await.is_err() {
            failed.push(*name);
        }
    }
    assert!(failed.is_empty(), "{} of {} checks failed: {failed:?}", failed.len(), CHECKS.len());
}

/// The same below a prefix, in answers of few objects and parts at once.
fn paged(config: &S3Config, prefix: &str) -> StoreConfig {
    StoreConfig::S3(S3Config { prefix: format!("calls/{prefix}"), page_size: Some(5), ..config.clone() })
}

#[tokio::test]
async fn a_local_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    conforms(|name| StoreConfig::Local(LocalConfig { dir: dir.path().join(name) })).await;
}

#[tokio::test]
async fn versitygw_conforms_with_the_bucket_in_the_path() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let config = server.s3_config("calls");
    conforms(|name| paged(&config, name)).await;
}

#[tokio::test]
async fn versitygw_conforms_with_the_bucket_in_the_host_name() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let config = server.s3_config_virtual_host("calls");
    conforms(|name| paged(&config, name)).await;
}

#[tokio::test]
async fn minio_conforms() {
    let server = StorageServer::minio().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let config = server.s3_config("calls");
    conforms(|name| paged(&config, name)).await;
}

#[tokio::test]
async fn azurite_conforms() {
    let server = StorageServer::azurite().await.unwrap();
    server.create_container("calls").await.unwrap();
    let config = server.azure_config("calls");
    conforms(|name| {
        StoreConfig::Azure(AzureConfig { prefix: format!("calls/{name}"), page_size: Some(5), ..config.clone() })
    })
    .await;
}

#[tokio::test]
async fn oss_conforms_behind_a_front() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let front = ProviderFront::oss(&server, "calls").await.unwrap();
    let config = front.oss_config();
    conforms(|name| StoreConfig::Oss(OssConfig { prefix: name.to_owned(), page_size: Some(5), ..config.clone() }))
        .await;
    let wrong = OssConfig { secret: "wrong".into(), ..config };
    let error = Store::open(&StoreConfig::Oss(wrong)).await.unwrap().head("a").await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn gcs_conforms_behind_a_front() {
    let server = StorageServer::versitygw().await.unwrap();
    server.create_bucket("calls").await.unwrap();
    let front = ProviderFront::gcs(&server, "calls").await.unwrap();
    let config = front.gcs_config();
    conforms(|name| StoreConfig::Gcs(GcsConfig { prefix: name.to_owned(), page_size: Some(5), ..config.clone() }))
        .await;
    let other = ProviderFront::gcs(&server, "calls").await.unwrap();
    let wrong = GcsConfig { credentials: other.gcs_config().credentials, ..config };
    let error = Store::open(&StoreConfig::Gcs(wrong)).await.unwrap().head("a").await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error:?}");
}
