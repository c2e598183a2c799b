//! Shared Key signatures of the Blob service, and the addresses that it signs with the same key.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;
use time::OffsetDateTime;
use time::macros::format_description;

/// The version of the service whose rules are followed here.
pub(super) const VERSION: &str = "2021-12-02";

const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// An account and its key.
pub(super) struct Signer {
    pub(super) account: String,
    key: Vec<u8>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.account)
    }
}

/// What of a request is signed.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    /// Of the address, percent-encoded.
    pub(super) path: &'a str,
    pub(super) query: &'a BTreeMap<String, String>,
    pub(super) headers: &'a BTreeMap<String, String>,
    pub(super) length: usize,
}

impl Signer {
    /// `None` where the key is not Base64.
    pub(super) fn new(account: &str, key: &str) -> Option<Self> {
        let key = BASE64_STANDARD.decode(key.trim()).ok()?;
        Some(Self { account: account.to_owned(), key })
    }

    /// The `Authorization` header of a request.
    pub(super) fn authorization(&self, request: &Signed<'_>) -> String {
        format!("SharedKey {}:{}", self.account, self.sign(&self.string_to_sign(request)))
    }

    fn string_to_sign(&self, request: &Signed<'_>) -> String {
        let mut text = format!("{}\n", request.method);
        let length = if request.length == 0 { String::new() } else { request.length.to_string() };
        for name in [
            "content-encoding",
            "content-language",
            "content-length",
            "content-md5",
            "content-type",
            "date",
            "if-modified-since",
            "if-match",
            "if-none-match",
            "if-unmodified-since",
            "range",
        ] {
            let value = if name == "content-length" { &length } else { request.headers.get(name).unwrap_or(&EMPTY) };
            text.push_str(value);
            text.push('\n');
        }
        for (name, value) in request.headers.iter().filter(|(name, _)| name.starts_with("x-ms-")) {
            text.push_str(&format!("{name}:{value}\n"));
        }
        text.push_str(&format!("/{}{}", self.account, request.path));
        for (name, value) in request.query {
            text.push_str(&format!("\n{name}:{value}"));
        }
        text
    }

    /// The query of an address that lets its holder read one blob, `name` being `container/blob` as they are.
    pub(super) fn shared_read(&self, name: &str, now: OffsetDateTime, valid: Duration) -> String {
        let expiry = time_text(now + valid);
        let resource = format!("/blob/{}/{name}", self.account);
        // Permissions, start, expiry, resource, identifier, address, protocol, version, kind, snapshot, encryption scope,
        // and the five headers that the answer may be made to have.
        let text = ["r", "", &expiry, &resource, "", "", "", VERSION, "b", "", "", "", "", "", "", ""].join("\n");
        let signature = self.sign(&text);
        query(&BTreeMap::from([
            ("se".to_owned(), expiry),
            ("sig".to_owned(), signature),
            ("sp".to_owned(), "r".to_owned()),
            ("sr".to_owned(), "b".to_owned()),
            ("sv".to_owned(), VERSION.to_owned()),
        ]))
    }

    fn sign(&self, text: &str) -> String {
        // A key of any length is one.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else { return String::new() };
        mac.update(text.as_bytes());
        BASE64_STANDARD.encode(mac.finalize().into_bytes())
    }
}

static EMPTY: String = String::new();

/// The date of a request as the service wants it.
pub(super) fn http_date(now: OffsetDateTime) -> String {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    // Every part is always there.
    now.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

fn time_text(at: OffsetDateTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    // Every part is always there.
    at.to_offset(time::UtcOffset::UTC).format(format).unwrap_or_default()
}

/// A blob's name as it stands in an address.
pub(super) fn path(name: &str) -> String {
    utf8_percent_encode(name, PATH).to_string()
}

/// Parameters as they stand in an address.
pub(super) fn query(parameters: &BTreeMap<String, String>) -> String {
    let pairs = parameters.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, QUERY)));
    pairs.collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signed_text_has_what_the_service_puts_together() {
        let signer = Signer::new("calls", "a2V5").unwrap();
        let query = [("comp", "block"), ("blockid", "aWQ=")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let headers = [("x-ms-date", "D"), ("x-ms-version", "V"), ("content-md5", "M"), ("if-none-match", "*")];
        let text = signer.string_to_sign(&Signed {
            method: "PUT",
            path: "/box/a%20b",
            query: &query.into(),
            headers: &headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            length: 7,
        });
        let expected =
            "PUT\n\n\n7\nM\n\n\n\n\n*\n\n\nx-ms-date:D\nx-ms-version:V\n/calls/box/a%20b\nblockid:aWQ=\ncomp:block";
        assert_eq!(text, expected);
    }

    #[test]
    fn dates_are_in_gmt() {
        let at = time::macros::datetime!(2026-11-01 09:05:07 +1);
        assert_eq!(http_date(at), "Sun, 01 Nov 2026 08:05:07 GMT");
        assert_eq!(time_text(at), "2026-11-01T08:05:07Z");
    }

    #[test]
    fn a_key_that_is_no_base64_is_none() {
        assert!(Signer::new("calls", "not base64!").is_none());
        assert!(!format!("{:?}", Signer::new("calls", "aHVudGVyMg==")).contains("unter"));
    }
}
