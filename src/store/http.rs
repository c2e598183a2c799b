use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use aws_smithy_http_client::{Connector, proxy, tls};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::config::ProxyConfig;
use super::error::{Fault, FaultKind, StoreError};

/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections that stores share.
#[derive(Clone, Debug)]
pub(crate) struct Pool(SharedHttpConnector);

impl Pool {
    /// The connections of all stores of the process with this proxy.
    pub(crate) fn shared(proxy: Option<&ProxyConfig>) -> Result<Self, StoreError> {
        static POOLS: OnceLock<Mutex<HashMap<Option<ProxyConfig>, Pool>>> = OnceLock::new();
        // A panic between the two uses of the map leaves it whole.
        let mut pools = POOLS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&proxy.cloned()) {
            return Ok(pool.clone());
        }
        let pool = build(proxy)?;
        pools.insert(proxy.cloned(), pool.clone());
        Ok(pool)
    }

    /// These connections as the SDK takes them.
    pub(crate) fn client(&self) -> SharedHttpClient {
        let connector = self.0.clone();
        http_client_fn(move |_settings, _components| connector.clone())
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    ///
    /// A fault without an answer; whatever the status, an answer is none.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer, Fault> {
        let Request { method, url, headers, body } = request;
        let failed = |error: &dyn std::fmt::Display| Fault::new(FaultKind::Protocol, error);
        // Hyper tells no length of an empty body, which servers insist on.
        let length = (method != "GET" && method != "HEAD").then(|| body.len().to_string());
        let mut sent = HttpRequest::new(SdkBody::from(body));
        sent.set_method(method).map_err(|error| failed(&error))?;
        sent.set_uri(url).map_err(|error| failed(&error))?;
        for (name, value) in headers {
            sent.headers_mut().try_insert(name, value).map_err(|error| failed(&error))?;
        }
        if let Some(length) = length {
            sent.headers_mut().insert("content-length", length);
        }
        let unanswered = |error: &(dyn std::error::Error + 'static)| {
            let causes = std::iter::successors(Some(error), |error| error.source());
            Fault::unanswered(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
        };
        let mut answer = self.0.call(sent).await.map_err(|error| unanswered(&error))?;
        let headers = answer.headers().iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        let body = ByteStream::new(body).collect().await.map_err(|error| unanswered(&error))?;
        Ok(Answer { status: answer.status().as_u16(), headers, body: body.into_bytes() })
    }
}

/// One HTTP request.
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) url: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// By their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// When the server sent it.
    pub(super) fn date(&self) -> Option<OffsetDateTime> {
        self.header("date").and_then(date)
    }
}

/// An HTTP date.
pub(super) fn date(header: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(header, &Rfc2822).ok()
}

fn build(proxy: Option<&ProxyConfig>) -> Result<Pool, StoreError> {
    let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT).build();
    let mut builder = Connector::builder()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .connector_settings(settings);
    builder.set_sleep_impl(aws_smithy_async::rt::sleep::default_async_sleep());
    if let Some(config) = proxy {
        let mut all =
            proxy::ProxyConfig::all(config.url.as_str()).map_err(|error| StoreError::config("proxy.url", error))?;
        if let Some(username) = &config.username {
            all = all.with_basic_auth(username.as_str(), config.password.as_ref().map_or("", |secret| secret.expose()));
        }
        builder = builder.proxy_config(all);
    }
    Ok(Pool(SharedHttpConnector::new(builder.build_with_resolver(Resolver))))
}

/// The system's resolver, with `*.localhost` on this machine as RFC 6761 §6.3 wants it: the system's own often knows none
/// of those names, and a bucket before the host name of a local server is one.
#[derive(Clone, Copy, Debug)]
struct Resolver;

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            if name.ends_with(".localhost") {
                return Ok(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)]);
            }
            let found = tokio::net::lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Secret;

    #[tokio::test]
    async fn local_names_lead_here() {
        assert_eq!(Resolver.resolve_dns("calls.localhost").await.unwrap(), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
        assert!(Resolver.resolve_dns("127.0.0.1").await.unwrap().contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(time::macros::datetime!(1994-11-06 08:49:37 UTC)));
        assert_eq!(date("yesterday"), None);
    }

    #[test]
    fn a_wrong_proxy_is_told_without_its_password() {
        let proxy = |url: &str| ProxyConfig {
            url: url.to_owned(),
            username: Some("user".to_owned()),
            password: Some(Secret::new("hunter2")),
        };
        assert!(Pool::shared(Some(&proxy("http://127.0.0.1:8080"))).is_ok());
        let error = Pool::shared(Some(&proxy("not a url"))).err().unwrap().to_string();
        assert!(error.starts_with("store setting proxy.url") && !error.contains("hunter2"), "{error}");
    }
}
