//! Tokens for Google: signed by a service account's key, or from the machine that the recorder runs on.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use crate::store::config::Secret;
use crate::store::error::{Fault, FaultKind, StoreError};
use crate::store::http::{Pool, Request};

/// How long a token that we sign is good for; Google takes no longer.
const LIFETIME: Duration = Duration::from_secs(3_600);

/// What a token allows: objects, and nothing of the buckets themselves.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

const METADATA_HOST: &str = "metadata.google.internal";

/// A service account's key.
pub(super) struct ServiceAccount {
    email: String,
    key_id: String,
    key: KeyPair,
}

impl std::fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServiceAccount({})", self.email)
    }
}

#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    client_email: String,
    #[serde(default)]
    private_key: String,
    #[serde(default)]
    private_key_id: String,
}

impl ServiceAccount {
    /// Reads a key from the JSON itself, or from the file of that path.
    pub(super) fn load(credentials: &Secret) -> Result<Self, StoreError> {
        let failed = |reason: String| StoreError::config("credentials", reason);
        let given = credentials.expose().trim();
        let json = if given.starts_with('{') {
            given.to_owned()
        } else {
            std::fs::read_to_string(given).map_err(|error| failed(format!("{given}: {error}")))?
        };
        // What could not be read is not shown: it may be part of the key.
        let file: KeyFile = serde_json::from_str(&json)
            .map_err(|error| failed(format!("no service account's key (line {})", error.line())))?;
        if file.kind != "service_account" {
            return Err(failed(format!("of the type {:?}, where \"service_account\" is needed", file.kind)));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes())
            .map_err(|_| failed("private_key is no PKCS #8 key in PEM".to_owned()))?;
        let key =
            KeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| failed("private_key is no RSA key".to_owned()))?;
        Ok(Self { email: file.client_email, key_id: file.private_key_id, key })
    }

    pub(super) fn email(&self) -> &str {
        &self.email
    }

    /// Signs with RSA and SHA-256.
    pub(super) fn sign(&self, text: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut signature = vec![0; self.key.public_modulus_len()];
        let signed = self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text, &mut signature);
        signed.map_err(|_| Fault::new(FaultKind::Refused, "the service account's key does not sign"))?;
        Ok(signature)
    }

    /// A token that Google takes without being asked for one before.
    fn token(&self, issued: i64) -> Result<String, Fault> {
        let header = serde_json::json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = serde_json::json!({
            "iss": self.email, "sub": self.email, "scope": SCOPE, "iat": issued, "exp": issued + LIFETIME.as_secs() as i64,
        });
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let text = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = self.sign(text.as_bytes())?;
        Ok(format!("{text}.{}", encode(&signature)))
    }
}

/// Where tokens come from. The SDK keeps each until it is about to expire.
#[derive(Debug)]
pub(super) enum Tokens {
    Account(Arc<ServiceAccount>),
    /// The metadata service of the machine or the cluster: workload identity.
    Machine(Pool),
}

impl Tokens {
    async fn token(&self) -> Result<Credentials, CredentialsError> {
        let now = crate::clock::wall();
        match self {
            Self::Account(account) => {
                let token = account.token(now.unix_timestamp());
                let token = token.map_err(|fault| CredentialsError::invalid_configuration(fault.reason))?;
                Ok(bearer(token, SystemTime::from(now) + LIFETIME))
            }
            Self::Machine(pool) => from_machine(pool, SystemTime::from(now)).await,
        }
    }
}

#[derive(Deserialize)]
struct MachineToken {
    access_token: String,
    expires_in: u64,
}

async fn from_machine(pool: &Pool, now: SystemTime) -> Result<Credentials, CredentialsError> {
    let host = std::env::var("GCE_METADATA_HOST").unwrap_or_else(|_| METADATA_HOST.to_owned());
    let request = Request {
        method: "GET",
        url: format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token"),
        headers: [("metadata-flavor".to_owned(), "Google".to_owned())].into(),
        body: bytes::Bytes::new(),
    };
    let failed = |reason: String| CredentialsError::provider_error(format!("no token from this machine: {reason}"));
    let answer = pool.send(request).await.map_err(|fault| failed(fault.reason))?;
    if answer.status != 200 {
        return Err(failed(format!("status {}", answer.status)));
    }
    let token: MachineToken = serde_json::from_slice(&answer.body).map_err(|error| failed(error.to_string()))?;
    Ok(bearer(token.access_token, now + Duration::from_secs(token.expires_in)))
}

/// A token as the SDK carries it: only the dialect looks at it.
fn bearer(token: String, expiry: SystemTime) -> Credentials {
    Credentials::new("bearer", "bearer", Some(token), Some(expiry), "callreel-gcs")
}

impl ProvideCredentials for Tokens {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.token())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_service_account_is_told_without_its_key() {
        for (json, reason) in [
            (r#"{"type":"external_account"}"#, "external_account"),
            (r#"{"type":"service_account","private_key":"hunter2"}"#, "PKCS #8"),
            (r#"{"type":"service_account","private_key":"hunter2"#, "line 1"),
            ("/nowhere/key.json", "/nowhere/key.json"),
        ] {
            let error = ServiceAccount::load(&Secret::new(json)).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("hunter2"), "{error}");
        }
    }
}
