//! From passphrases and bytes to keys, and from one key to the next.
//!
//! A passphrase is stretched with PBKDF2-HMAC-SHA256 (RFC 8018 §5.2), bytes are expanded with HKDF-SHA256 (RFC 5869), both
//! with one salt that all of LiveKit's clients know. Ratcheting derives the next material from the present one in
//! the same way, twice as long.

use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_128_GCM, LessSafeKey, UnboundKey};
use aws_lc_rs::{hkdf, pbkdf2};

use super::config::KeyMaterial;

const SALT: &[u8] = b"LKFrameEncryptionKey";
const ITERATIONS: NonZeroU32 = NonZeroU32::new(100_000).expect("it is not zero");
const INFO: [u8; 128] = [0; 128];

/// The key to frames that are sealed with `material`.
pub(super) fn frame_key(material: &KeyMaterial) -> LessSafeKey {
    let key = UnboundKey::new(&AES_128_GCM, &derive::<16>(material)).expect("it is as long as such keys are");
    LessSafeKey::new(key)
}

/// What comes after `material`.
pub(super) fn ratcheted(material: &KeyMaterial) -> KeyMaterial {
    let next = derive::<32>(material).to_vec();
    match material {
        KeyMaterial::Passphrase(_) => KeyMaterial::Passphrase(next),
        KeyMaterial::Raw(_) => KeyMaterial::Raw(next),
    }
}

fn derive<const N: usize>(material: &KeyMaterial) -> [u8; N] {
    let mut out = [0; N];
    match material {
        KeyMaterial::Passphrase(text) => {
            pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, SALT, text, &mut out);
        }
        KeyMaterial::Raw(bytes) => {
            let known = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(bytes);
            let filled = known.expand(&[&INFO], Length(N)).and_then(|expanded| expanded.fill(&mut out));
            filled.expect("a key is far shorter than what HKDF can make");
        }
    }
    out
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_that_other_clients_derive() {
        let stretched: [u8; 16] = derive(&KeyMaterial::passphrase("12345"));
        assert_eq!(crate::hex::encode(stretched), "0f5ec6425dd3742e3761e879bde9e016");
        let bytes = KeyMaterial::Raw(vec![34, 21, 187, 202, 134, 204, 168, 62, 5, 105, 40, 244, 88]);
        let expanded: [u8; 16] = derive(&bytes);
        assert_eq!(crate::hex::encode(expanded), "81e05d3e11cb638865239580bd98fb4c");
    }

    #[test]
    fn the_next_material_is_of_the_same_kind_and_another() {
        let raw = KeyMaterial::Raw(vec![1; 16]);
        let next = ratcheted(&raw);
        assert!(matches!(&next, KeyMaterial::Raw(bytes) if bytes.len() == 32));
        assert_ne!(ratcheted(&next), next);
        assert!(matches!(ratcheted(&KeyMaterial::passphrase("x")), KeyMaterial::Passphrase(_)));
    }
}
