//! Providers that speak S3's language with their own headers and signatures.
//!
//! The SDK puts requests together and reads answers; what it signed is thrown away just before a request goes out, and
//! the provider's own signature takes its place.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextMut,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use time::OffsetDateTime;

use crate::store::error::Fault;

/// One provider's way.
pub(in crate::store) trait Dialect: fmt::Debug + Send + Sync {
    /// Of [`location`](crate::store::Store::location): `gs`…
    fn scheme(&self) -> &'static str;

    /// What its headers begin with, where S3's begin with `x-amz-`.
    fn prefix(&self) -> &'static str;

    /// The header that keeps a write from replacing an object.
    fn create_only(&self) -> (&'static str, &'static str);

    /// Whether the condition is certain to count for an upload in parts. Otherwise the store looks first.
    fn conditional_complete(&self) -> bool;

    /// Adds what proves who asks. `headers` are those that are sent, in lower case.
    fn sign(&self, request: Outgoing<'_>, now: OffsetDateTime, headers: &mut BTreeMap<String, String>);

    /// An address that gives the object to whoever has it.
    fn presign(&self, key: &str, now: OffsetDateTime, valid: Duration) -> Result<String, Fault>;
}

/// A request about to go out.
pub(in crate::store) struct Outgoing<'a> {
    pub(in crate::store) method: &'a str,
    pub(in crate::store) host: &'a str,
    /// Percent-encoded.
    pub(in crate::store) path: &'a str,
    pub(in crate::store) query: &'a str,
    /// The session token of the credentials it was signed with.
    pub(in crate::store) token: Option<&'a str>,
}

/// Puts requests into a dialect, and answers out of it.
#[derive(Clone, Debug)]
pub(super) struct Translator(pub(super) Arc<dyn Dialect>);

impl Intercept for Translator {
    fn name(&self) -> &'static str {
        "Translator"
    }

    fn modify_before_transmit(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request_mut();
        let mut headers = BTreeMap::new();
        let mut token = None;
        let names: Vec<String> = request.headers().iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        for name in names {
            let Some(value) = request.headers_mut().remove(&name) else { continue };
            if let Some(rest) = name.strip_prefix("x-amz-meta-") {
                headers.insert(format!("{}meta-{rest}", self.0.prefix()), value);
            } else if name == "x-amz-security-token" {
                token = Some(value);
            } else if name == "if-none-match" {
                let (name, value) = self.0.create_only();
                headers.insert(name.to_owned(), value.to_owned());
            } else if name != "authorization" && !name.starts_with("x-amz-") && !name.starts_with("amz-sdk-") {
                headers.insert(name, value);
            }
        }
        // An empty body goes without its length otherwise, which these providers do not take.
        if matches!(request.method(), "POST" | "PUT") && request.body().bytes().is_some_and(<[u8]>::is_empty) {
            headers.insert("content-length".to_owned(), "0".to_owned());
        }

        let uri = without_operation(request.uri());
        let (host, path, query) = split(&uri);
        let outgoing = Outgoing { method: request.method(), host, path, query, token: token.as_deref() };
        self.0.sign(outgoing, crate::clock::wall(), &mut headers);
        request.set_uri(uri)?;
        for (name, value) in headers {
            request.headers_mut().try_insert(name, value)?;
        }
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.response_mut().headers_mut();
        let metadata = format!("{}meta-", self.0.prefix());
        let found: Vec<(String, String)> = headers
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix(&metadata)?.to_owned(), value.to_owned())))
            .collect();
        for (name, value) in found {
            headers.try_insert(format!("x-amz-meta-{name}"), value)?;
        }
        Ok(())
    }
}

/// An address without the parameter in which the SDK repeats the operation's name.
fn without_operation(uri: &str) -> String {
    let Some((address, query)) = uri.split_once('?') else { return uri.to_owned() };
    let kept: Vec<&str> = query.split('&').filter(|pair| !pair.starts_with("x-id=")).collect();
    if kept.is_empty() { address.to_owned() } else { format!("{address}?{}", kept.join("&")) }
}

/// Host with port, path and query of an address.
fn split(uri: &str) -> (&str, &str, &str) {
    let (address, query) = uri.split_once('?').unwrap_or((uri, ""));
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    match rest.find('/') {
        Some(slash) => (&rest[..slash], &rest[slash..], query),
        None => (rest, "/", query),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let uri = without_operation("http://calls.localhost:1/a%20b?uploadId=7&x-id=UploadPart&partNumber=1");
        assert_eq!(split(&uri), ("calls.localhost:1", "/a%20b", "uploadId=7&partNumber=1"));
        assert_eq!(without_operation("https://h/k?x-id=GetObject"), "https://h/k");
        assert_eq!(split("https://h"), ("h", "/", ""));
    }
}
