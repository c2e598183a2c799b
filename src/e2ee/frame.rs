//! What a sealed frame looks like.
//!
//! ```text
//! | 1 byte in clear | ciphertext | 16 bytes of tag | nonce, 12 bytes | 12 | key index |
//! ```
//!
//! The byte in clear is the first of the payload, for Opus its TOC (RFC 6716 §3.1), and is authenticated with the rest. The
//! nonce is whatever the sender chose: the server rewrites what senders derive it from.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce};

/// Bytes in clear before the ciphertext.
const CLEAR: usize = 1;
const TAG: usize = 16;
/// The nonce's length and the key index.
const TRAILER: usize = 2;

/// The parts of a sealed frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedFrame<'a> {
    /// The slot of the ring that its key is in, as the sender counts.
    pub key_index: u8,
    clear: &'a [u8],
    ciphertext: &'a [u8],
    tag: &'a [u8],
    nonce: [u8; NONCE_LEN],
}

impl<'a> SealedFrame<'a> {
    /// Takes a payload apart; `None` for what is no sealed frame.
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (body, trailer) = payload.split_at_checked(payload.len().checked_sub(TRAILER)?)?;
        let [nonce_length, key_index] = *trailer else { return None };
        if usize::from(nonce_length) != AES_128_GCM.nonce_len() {
            return None;
        }
        let (body, nonce) = body.split_at_checked(body.len().checked_sub(NONCE_LEN)?)?;
        let (body, tag) = body.split_at_checked(body.len().checked_sub(TAG)?)?;
        let (clear, ciphertext) = body.split_at_checked(CLEAR)?;
        Some(Self { key_index, clear, ciphertext, tag, nonce: nonce.try_into().ok()? })
    }

    /// What was sealed; `None` where it was not sealed with this key, or changed on the way.
    pub(super) fn open(&self, key: &LessSafeKey) -> Option<Vec<u8>> {
        let mut plain = vec![0; CLEAR + self.ciphertext.len()];
        let (clear, rest) = plain.split_at_mut(CLEAR);
        clear.copy_from_slice(self.clear);
        let nonce = Nonce::assume_unique_for_key(self.nonce);
        key.open_separate_gather(nonce, Aad::from(self.clear), self.ciphertext, self.tag, rest).ok()?;
        Some(plain)
    }
}

/// The sender's side, for tests.
#[cfg(any(test, feature = "testkit"))]
#[derive(Clone, Debug)]
pub struct FrameSealer {
    material: super::KeyMaterial,
    key: std::sync::Arc<LessSafeKey>,
    index: u8,
    sealed: u64,
}

#[cfg(any(test, feature = "testkit"))]
impl FrameSealer {
    /// Seals with the key of this material, in this slot.
    pub fn new(material: super::KeyMaterial, index: u8) -> Self {
        let key = std::sync::Arc::new(super::derive::frame_key(&material));
        Self { material, key, index, sealed: 0 }
    }

    /// Turns to the next key.
    pub fn ratchet(&mut self) {
        *self = Self { sealed: self.sealed, ..Self::new(super::derive::ratcheted(&self.material), self.index) };
    }

    /// Seals a frame; an empty one stays empty.
    pub fn seal(&mut self, frame: &[u8]) -> Vec<u8> {
        let Some((clear, rest)) = frame.split_at_checked(CLEAR) else { return Vec::new() };
        // One nonce a frame, and no other sealer with this one's random start.
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&self.sealed.to_be_bytes());
        nonce[8..].copy_from_slice(&fastrand::u32(..).to_be_bytes());
        self.sealed += 1;
        let mut sealed = rest.to_vec();
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(clear), &mut sealed)
            .expect("a frame is far shorter than what GCM can seal");
        [clear, &sealed, &nonce, &[NONCE_LEN as u8, self.index]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::super::KeyMaterial;
    use super::super::derive::frame_key;
    use super::*;

    /// A frame as LiveKit's server SDK seals it with the passphrase `12345`, and what it holds.
    const SEALED: &str = "7891189f4c41823090f91170864efa81abc210ad49c4059845e11cd2c4f1e28be7ac33268bb3f5b6aa087a7562907b5f\
        49597727cd14bf37793befc055e0e48f0a71c3df762a022016114de36da0f5cabd3fa2a405f118972d2aa583abf38d3523838d34fdbc0c00";
    const OPEN: &str = "780b6d527184bd9cdcad1e6d5736ad631a7ea6257fea6ed3e698b5ebc5138ce6b32383841dc061f76c35b7d64db5adce\
        af07e4915d9b9b8e0e1b6f4060c4e5bd8e3b95a963e1d855bab6";

    fn bytes(digits: &str) -> Vec<u8> {
        crate::hex::decode(digits).unwrap()
    }

    #[test]
    fn a_frame_of_another_client_is_opened() {
        let key = frame_key(&KeyMaterial::passphrase("12345"));
        let sealed = bytes(SEALED);
        let frame = SealedFrame::parse(&sealed).unwrap();
        assert_eq!(frame.key_index, 0);
        assert_eq!(frame.open(&key), Some(bytes(OPEN)));
    }

    #[test]
    fn what_was_changed_on_the_way_is_not_opened() {
        let key = frame_key(&KeyMaterial::passphrase("12345"));
        // The trailer says how to open it and is not sealed; all before it is.
        for at in 0..bytes(SEALED).len() - TRAILER {
            let mut sealed = bytes(SEALED);
            sealed[at] ^= 0x10;
            assert_eq!(SealedFrame::parse(&sealed).unwrap().open(&key), None, "byte {at}");
        }
    }

    #[test]
    fn what_is_sealed_can_be_opened_and_what_is_short_is_no_frame() {
        let mut sealer = FrameSealer::new(KeyMaterial::Raw(vec![7; 16]), 3);
        let sealed = sealer.seal(&[0x78, 1, 2]);
        let frame = SealedFrame::parse(&sealed).unwrap();
        assert_eq!(frame.key_index, 3);
        assert_eq!(frame.open(&frame_key(&KeyMaterial::Raw(vec![7; 16]))), Some(vec![0x78, 1, 2]));
        assert_ne!(sealer.seal(&[0x78, 1, 2]), sealed);
        for length in 0..CLEAR + TAG + NONCE_LEN + TRAILER {
            let mut short = vec![0; length];
            if let Some(at) = length.checked_sub(2) {
                short[at] = 12;
            }
            assert_eq!(SealedFrame::parse(&short), None, "{length} bytes");
        }
        assert_eq!(SealedFrame::parse(&[0; 100]), None);
        assert_eq!(sealer.seal(&[]), Vec::<u8>::new());
    }
}
