//! Recordings that only the holders of a key can hear, encrypted before they reach a disk. Pure.
//!
//! A sealed file is a row of segments. Each is a header in plain (see [`SegmentHeader`]), which says where the Ogg stream
//! stands before and after it, and then a whole file in the [age format](https://age-encryption.org/v1) with the stream's
//! pages. A segment holds a second of sound at most and depends on no other. So whoever has public keys only can cut a
//! file back to its last whole segment and end its stream, and a damaged segment costs itself alone.
//!
//! | item | what it does |
//! |---|---|
//! | [`Recipients`], [`Identities`] | public keys, and the secret ones |
//! | [`Sealer`] | Ogg pages to segments |
//! | [`SegmentReader`], [`SealInspector`] | segments of a byte stream, whatever its state, without a key |
//! | [`Opener`] | segments to Ogg pages, with a key |
//! | [`seal_whole`], [`open_whole`] | one small file that tells about a recording, as one age file |
//!
//! Encryption to public keys keeps secrets and proves no origin: anybody can seal. What a file is to be, its hash in the
//! manifest says.

mod inspector;
mod keys;
mod opener;
mod reader;
mod sealer;
mod segment;
#[cfg(test)]
mod tests;

pub use inspector::{SealInspection, SealInspector, SealProblem};
pub use keys::{Identities, MAX_RECIPIENTS, Recipient, Recipients};
pub use opener::{Loss, Opened, Opener, Why, open_whole};
pub use reader::{Segment, SegmentReader};
pub use sealer::{Sealer, end_at_last_segment, seal_whole, state_after};
pub use segment::{HEADER_BYTES, MAX_SEGMENT, SegmentHeader};

/// The ending that a sealed file has behind its own.
pub const EXT: &str = "age";

/// What can go wrong with keys, or while sealing and opening.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// What is no public key.
    #[error("{key:?} is no age public key: {why}; one looks like age1… and has 62 characters")]
    Recipient {
        /// What was given.
        key: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A secret key where a public one belongs. It is not repeated here.
    #[error(
        "that is a secret key (AGE-SECRET-KEY-…), which a recorder must not have; age-keygen -y gives its public key"
    )]
    SecretRecipient,
    /// More keys than a segment has room for.
    #[error("{0} public keys, where {MAX_RECIPIENTS} are possible")]
    TooManyRecipients(usize),
    /// What is no secret key. It is not repeated here.
    #[error("line {line} of the key file is no age secret key (AGE-SECRET-KEY-1…): {why}")]
    Identity {
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A key file without a key.
    #[error("there is no age secret key (AGE-SECRET-KEY-1…) in the key file")]
    NoIdentity,
    /// What is to be sealed is no row of whole pages of one stream.
    #[error("not whole pages of one Ogg Opus stream: {0}")]
    NotPages(&'static str),
    /// The age library refused to encrypt.
    #[error("cannot encrypt: {0}")]
    Encrypt(String),
    /// None of the keys is one of those to which it was sealed.
    #[error("none of these keys opens it")]
    WrongKey,
    /// What is to be opened is not as it was sealed.
    #[error("damaged: {0}")]
    Damaged(String),
}
