//! Where the keys come from: settings, the default chain, or a role that either of them may assume.

use std::time::Duration;

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::{BehaviorVersion, Region, SharedHttpClient};
use aws_sdk_s3::error::{DisplayErrorContext, SdkError};
use aws_smithy_types::retry::RetryConfig;
use ulid::Ulid;

use crate::store::config::{AssumeRole, S3Config};
use crate::store::error::StoreError;

/// How long a role is assumed for; well before its end it is assumed again.
const ROLE_SECONDS: i32 = 3_600;

/// The region of a config, and a provider of its credentials that all clones share.
pub(super) async fn resolve(
    config: &S3Config,
    http: &SharedHttpClient,
) -> Result<(Region, SharedCredentialsProvider), StoreError> {
    let (region, own) = match (&config.access_key, &config.secret) {
        (Some(key), Some(secret)) => {
            let token = config.session_token.as_ref().map(|token| token.expose().to_owned());
            let keys = Credentials::new(key, secret.expose(), token, None, "callreel");
            // Whoever gives keys has said all that is needed: nobody else is asked for the region.
            (config.region.clone().map(Region::new), SharedCredentialsProvider::new(keys))
        }
        (None, None) => {
            let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
            if let Some(region) = &config.region {
                loader = loader.region(Region::new(region.clone()));
            }
            let found = loader.load().await;
            let chain = found.credentials_provider();
            let chain = chain.ok_or_else(|| StoreError::config("access_key", "is missing, and there is no default"))?;
            (found.region().cloned(), chain)
        }
        (Some(_), None) => return Err(StoreError::config("secret", "is missing beside access_key")),
        (None, Some(_)) => return Err(StoreError::config("access_key", "is missing beside secret")),
    };
    let region = region.unwrap_or(Region::from_static("us-east-1"));
    let provider = match &config.assume_role {
        Some(role) => SharedCredentialsProvider::new(RoleProvider::new(role, &region, own, http.clone())),
        None => own,
    };
    Ok((region, provider))
}

/// Assumes a role.
#[derive(Debug)]
struct RoleProvider {
    client: aws_sdk_sts::Client,
    role: AssumeRole,
    session: String,
}

impl RoleProvider {
    fn new(role: &AssumeRole, region: &Region, own: SharedCredentialsProvider, http: SharedHttpClient) -> Self {
        // R2's word for any region; the token service is Amazon's.
        let region = if region.as_ref() == "auto" { Region::from_static("us-east-1") } else { region.clone() };
        let mut config = aws_sdk_sts::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(region)
            .credentials_provider(own)
            .http_client(http)
            .retry_config(RetryConfig::disabled());
        config.set_endpoint_url(role.endpoint.clone());
        let session = format!("callreel-{}", Ulid::new());
        Self { client: aws_sdk_sts::Client::from_conf(config.build()), role: role.clone(), session }
    }

    async fn assume(&self) -> Result<Credentials, CredentialsError> {
        let answer = self
            .client
            .assume_role()
            .role_arn(self.role.arn.expose())
            .role_session_name(&self.session)
            .set_external_id(self.role.external_id.as_ref().map(|id| id.expose().to_owned()))
            .duration_seconds(ROLE_SECONDS)
            .send()
            .await;
        let output = match answer {
            Ok(output) => output,
            Err(error) => {
                // The service repeats the role, which logs are not to show.
                let text = DisplayErrorContext(&error).to_string().replace(self.role.arn.expose(), "SET");
                let text = format!("assuming the role: {text}");
                return Err(match &error {
                    SdkError::ServiceError(service) if service.raw().status().is_client_error() => {
                        CredentialsError::invalid_configuration(text)
                    }
                    _ => CredentialsError::provider_error(text),
                });
            }
        };
        let Some(credentials) = output.credentials else {
            return Err(CredentialsError::provider_error("assuming the role: the answer has no credentials"));
        };
        let expiry = std::time::SystemTime::UNIX_EPOCH
            + Duration::from_secs(u64::try_from(credentials.expiration.secs()).unwrap_or_default());
        Ok(Credentials::new(
            credentials.access_key_id,
            credentials.secret_access_key,
            Some(credentials.session_token),
            Some(expiry),
            "callreel-role",
        ))
    }
}

impl ProvideCredentials for RoleProvider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.assume())
    }
}
