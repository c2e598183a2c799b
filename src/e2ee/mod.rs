//! End-to-end encrypted calls: LiveKit's encryption of audio frames, opened with the keys that the participants share.
//!
//! A sender encrypts the payload of each packet with AES-128-GCM; the server passes on what it cannot read. What a
//! sealed payload looks like is told in [`frame`]. Keys come from passphrases or bytes, by a derivation that all of LiveKit's
//! SDKs share, and sit in a ring of sixteen slots, whose number each frame names. A sender may *ratchet*: derive its next key
//! from its present one without telling anybody; a receiver that fails to open a frame tries the next few keys.
//!
//! Pure: no clock, no IO. Deriving a key from a passphrase costs tens of milliseconds, so [`Keyring`] never does it by itself: it
//! asks for the frame to be shown again later ([`Opened::Later`]) and hands out the [work](Derivation), to be done wherever
//! there is time for it.
//!
//! ```
//! use callreel::e2ee::{E2eeConfig, KeyMaterial, Keyring, Opened, Problem};
//!
//! let config = E2eeConfig::new().shared_key(0, KeyMaterial::passphrase("open sesame"));
//! let mut keys = Keyring::new(config);
//! let sealed = [0x78; 60];
//! // Its last byte but one should say how long the nonce before it is.
//! assert_eq!(keys.open("ann", &sealed), Opened::Not(Problem::NotEncrypted));
//! ```

mod config;
mod derive;
pub mod frame;
mod ring;

pub use config::{E2eeConfig, E2eeError, KeyMaterial, RING_SIZE};
#[cfg(any(test, feature = "testkit"))]
pub use frame::FrameSealer;
pub use ring::{Derivation, Derived, Keyring, Opened, Problem};
