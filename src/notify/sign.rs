//! The signature that tells a receiver who wrote a body, and when.

use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::hex;

/// The header that holds the signature.
pub const SIGNATURE: &str = "x-callreel-signature";

/// `t=SECONDS,v1=HEX`: when it was signed, and the HMAC-SHA256 of `SECONDS.BODY` under the receiver's secret.
pub fn sign(secret: &str, body: &str, at: OffsetDateTime) -> String {
    let seconds = at.unix_timestamp();
    let digest = mac(secret, seconds, body).finalize().into_bytes();
    format!("t={seconds},v1={}", hex::encode(digest))
}

/// Whether a header is the signature of this body under this secret, made within `tolerance` of `now`. For receivers; takes as
/// long for a wrong digest as for the right one. Of several `v1` one has to be right.
pub fn verify(header: &str, secret: &str, body: &str, now: OffsetDateTime, tolerance: Duration) -> bool {
    let fields = || header.split(',').filter_map(|field| field.trim().split_once('='));
    let Some(seconds) = fields().find(|(name, _)| *name == "t").and_then(|(_, value)| value.parse::<i64>().ok()) else {
        return false;
    };
    if now.unix_timestamp().abs_diff(seconds) > tolerance.as_secs() {
        return false;
    }
    let digests = fields().filter(|(name, _)| *name == "v1").filter_map(|(_, value)| hex::decode(value));
    digests.into_iter().any(|digest| mac(secret, seconds, body).verify_slice(&digest).is_ok())
}

fn mac(secret: &str, seconds: i64, body: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of every length");
    mac.update(seconds.to_string().as_bytes());
    mac.update(b".");
    mac.update(body.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const AT: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    #[test]
    fn a_signature_is_as_openssl_makes_it() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
        let at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        assert_eq!(
            sign("key", r#"{"a":1}"#, at),
            "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
        );
    }

    #[test]
    fn only_the_right_secret_body_and_time_are_taken() {
        let tolerance = Duration::from_secs(300);
        let header = sign("key", "body", AT);
        let later = AT + time::Duration::seconds(300);
        assert!(verify(&header, "key", "body", later, tolerance));
        assert!(verify(&format!("{header},v1=00"), "key", "body", AT, tolerance), "a second secret's digest beside it");
        for (header, secret, body, now) in [
            (&*header, "other", "body", AT),
            (&*header, "key", "body ", AT),
            (&*header, "key", "body", later + time::Duration::seconds(1)),
            (&*header, "key", "body", AT - time::Duration::seconds(301)),
            (&*header.replace("t=", "t=1"), "key", "body", AT),
            ("", "key", "body", AT),
            ("t=1,v1=", "key", "body", AT),
            ("v1=00,t=x", "key", "body", AT),
        ] {
            assert!(!verify(header, secret, body, now, tolerance), "{header}");
        }
    }
}
