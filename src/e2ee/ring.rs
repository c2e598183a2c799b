//! The keys of everybody, where each sender is among them, and what is done with a frame.

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::aead::LessSafeKey;
use bytes::Bytes;

use super::config::{E2eeConfig, KeyMaterial, RING_SIZE};
use super::derive;
use super::frame::SealedFrame;

/// How many keys are derived before frames are tried again: a sender that ratcheted is mostly one key ahead.
const STRIDE: usize = 2;

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// This was sealed in it, or came as it is: nothing, and silence that the server put in.
    Plain(Bytes),
    /// A key must be derived first: show the frame again after [`Keyring::learn`].
    Later {
        /// The slot of the key.
        index: u8,
    },
    /// It cannot be opened.
    Not(Problem),
}

/// Why a frame cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Problem {
    /// There is no key in the slot that the frame names.
    NoKey {
        /// The slot.
        index: u8,
    },
    /// The key in that slot does not open it, nor do those that may come after it.
    WrongKey {
        /// The slot.
        index: u8,
    },
    /// It is not encrypted, on a track that is announced as encrypted.
    NotEncrypted,
    /// The application encrypts in a way of its own.
    Custom,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoKey { index } => write!(f, "there is no key number {index}"),
            Self::WrongKey { index } => write!(f, "key number {index} is wrong"),
            Self::NotEncrypted => f.write_str("frames of an encrypted track came without encryption"),
            Self::Custom => f.write_str("the application encrypts in a way of its own"),
        }
    }
}

/// Opens the frames of a call.
#[derive(Debug)]
pub struct Keyring {
    config: E2eeConfig,
    /// Ends what the server puts in, and nothing else.
    sif_trailer: Vec<u8>,
    chains: BTreeMap<Owner, Chain>,
    /// Where each participant is in the chain of each slot.
    places: BTreeMap<(String, u8), Place>,
}

/// Whose key it is (`None`: everybody's), and its slot.
type Owner = (Option<String>, u8);

/// A key and those that follow from it, as far as they are known.
#[derive(Debug, Default)]
struct Chain {
    keys: Vec<LessSafeKey>,
    /// What the last of them was made from.
    material: Option<KeyMaterial>,
    /// How many keys somebody needs.
    wanted: usize,
    under_way: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: usize,
    failures: u32,
}

/// Keys to be derived: [`run`](Self::run) takes tens of milliseconds for each that comes from a passphrase.
#[derive(Debug)]
pub struct Derivation {
    owner: Owner,
    /// The material of the first key, or that which the first one follows.
    material: KeyMaterial,
    is_first: bool,
    count: usize,
}

/// Keys that were derived, for [`Keyring::learn`].
#[derive(Debug)]
pub struct Derived {
    owner: Owner,
    keys: Vec<LessSafeKey>,
    material: KeyMaterial,
}

impl Derivation {
    /// Does the work.
    pub fn run(self) -> Derived {
        let Self { owner, mut material, is_first, count } = self;
        let mut keys = Vec::with_capacity(count);
        for n in 0..count {
            if n > 0 || !is_first {
                material = derive::ratcheted(&material);
            }
            keys.push(derive::frame_key(&material));
        }
        Derived { owner, keys, material }
    }
}

impl Keyring {
    /// Opens with these keys.
    pub fn new(config: E2eeConfig) -> Self {
        Self { config, sif_trailer: Vec::new(), chains: BTreeMap::new(), places: BTreeMap::new() }
    }

    /// The bytes that end what this room's server puts in by itself.
    pub fn set_sif_trailer(&mut self, trailer: &[u8]) {
        self.sif_trailer = trailer.to_vec();
    }

    /// Opens a payload of a participant's encrypted track. A failed attempt changes nothing but a count.
    pub fn open(&mut self, identity: &str, payload: &[u8]) -> Opened {
        if payload.is_empty() {
            return Opened::Plain(Bytes::new());
        }
        if !self.sif_trailer.is_empty()
            && let Some(put_in) = payload.strip_suffix(self.sif_trailer.as_slice())
        {
            // The server needs no key to say that somebody is silent, and may say nothing else.
            return match is_silence(put_in) {
                true => Opened::Plain(Bytes::copy_from_slice(put_in)),
                false => Opened::Not(Problem::NotEncrypted),
            };
        }
        let Some(frame) = SealedFrame::parse(payload) else { return Opened::Not(Problem::NotEncrypted) };
        let index = frame.key_index % RING_SIZE;
        let Some((whose, _)) = self.config.key(identity, index) else {
            return Opened::Not(Problem::NoKey { index: frame.key_index });
        };
        let chain = self.chains.entry((whose.map(str::to_owned), index)).or_default();
        let place = match self.places.get_mut(&(identity.to_owned(), index)) {
            Some(place) => place,
            None => self.places.entry((identity.to_owned(), index)).or_default(),
        };
        let wrong = Opened::Not(Problem::WrongKey { index: frame.key_index });
        if self.config.failure_tolerance.is_some_and(|tolerance| place.failures > tolerance) {
            return wrong;
        }
        let end = place.at + 1 + usize::from(self.config.ratchet_window);
        // A frame from before the last ratchet may come late.
        let first = place.at.saturating_sub(1);
        let in_order = (place.at..end).chain((first < place.at).then_some(first));
        for at in in_order {
            let Some(plain) = chain.keys.get(at).and_then(|key| frame.open(key)) else { continue };
            *place = Place { at: place.at.max(at), failures: 0 };
            return Opened::Plain(plain.into());
        }
        if chain.keys.len() < end {
            // The very key is needed by every frame, those after it by few.
            chain.wanted = if chain.keys.is_empty() { 1 } else { (chain.keys.len() + STRIDE).min(end) };
            return Opened::Later { index: frame.key_index };
        }
        place.failures = place.failures.saturating_add(1);
        wrong
    }

    /// Work to be done, if there is any: each is handed out once.
    pub fn next_derivation(&mut self) -> Option<Derivation> {
        let needy = |chain: &Chain| !chain.under_way && chain.wanted > chain.keys.len();
        let (owner, chain) = self.chains.iter_mut().find(|(_, chain)| needy(chain))?;
        let count = chain.wanted - chain.keys.len();
        let is_first = chain.material.is_none();
        let material = match &chain.material {
            Some(material) => material.clone(),
            None => {
                let ring = match &owner.0 {
                    Some(identity) => self.config.participants.get(identity)?,
                    None => &self.config.shared,
                };
                ring.get(&owner.1)?.clone()
            }
        };
        chain.under_way = true;
        Some(Derivation { owner: owner.clone(), material, is_first, count })
    }

    /// Takes derived keys in. Frames that were to be shown again may be shown now.
    pub fn learn(&mut self, derived: Derived) {
        let Some(chain) = self.chains.get_mut(&derived.owner).filter(|chain| chain.under_way) else { return };
        chain.under_way = false;
        chain.keys.extend(derived.keys);
        chain.material = Some(derived.material);
    }
}

/// Whether it is the one frame of silence that LiveKit's servers put in.
fn is_silence(payload: &[u8]) -> bool {
    payload.strip_prefix(&[0xf8, 0xff, 0xfe]).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::super::FrameSealer;
    use super::*;
    use proptest::prelude::*;

    const FRAME: [u8; 5] = [0x78, 1, 2, 3, 4];

    fn raw(byte: u8) -> KeyMaterial {
        // HKDF is quick.
        KeyMaterial::Raw(vec![byte; 16])
    }

    /// Opens, doing all the work that is asked for; tells how many keys were derived for it.
    fn open(keys: &mut Keyring, who: &str, payload: &[u8]) -> (Opened, usize) {
        let mut derived = 0;
        loop {
            match keys.open(who, payload) {
                Opened::Later { .. } => {
                    let work = keys.next_derivation().expect("there is work to be done");
                    assert!(keys.next_derivation().is_none(), "each is handed out once");
                    derived += work.count;
                    keys.learn(work.run());
                }
                opened => return (opened, derived),
            }
        }
    }

    fn plain() -> Opened {
        Opened::Plain(Bytes::from_static(&FRAME))
    }

    #[test]
    fn frames_are_opened_with_the_key_they_name() {
        let config = E2eeConfig::new().shared_key(0, raw(1)).shared_key(5, raw(2)).participant_key("ann", 0, raw(3));
        let mut keys = Keyring::new(config);
        let (mut first, mut second, mut anns) =
            (FrameSealer::new(raw(1), 0), FrameSealer::new(raw(2), 5), FrameSealer::new(raw(3), 0));
        assert_eq!(open(&mut keys, "bob", &first.seal(&FRAME)), (plain(), 1));
        assert_eq!(open(&mut keys, "bob", &second.seal(&FRAME)), (plain(), 1));
        assert_eq!(open(&mut keys, "eve", &second.seal(&FRAME)), (plain(), 0));
        assert_eq!(open(&mut keys, "ann", &anns.seal(&FRAME)), (plain(), 1));
        assert_eq!(open(&mut keys, "ann", &second.seal(&FRAME)).0, Opened::Not(Problem::NoKey { index: 5 }));
        assert_eq!(open(&mut keys, "ann", &first.seal(&FRAME)).0, Opened::Not(Problem::WrongKey { index: 0 }));
        assert_eq!(open(&mut keys, "ann", &anns.seal(&FRAME)).0, plain());
    }

    #[test]
    fn a_sender_that_ratchets_is_followed_and_others_are_where_they_were() {
        let mut keys = Keyring::new(E2eeConfig::new().shared_key(0, raw(1)).ratchet_window(4));
        let (mut ann, mut bob) = (FrameSealer::new(raw(1), 0), FrameSealer::new(raw(1), 0));
        let before = ann.seal(&FRAME);
        assert_eq!(open(&mut keys, "ann", &before).0, plain());
        for _ in 0..3 {
            ann.ratchet();
        }
        let after = ann.seal(&FRAME);
        assert_eq!(open(&mut keys, "ann", &after).0, plain());
        assert_eq!(open(&mut keys, "ann", &before).0, Opened::Not(Problem::WrongKey { index: 0 }));
        assert_eq!(open(&mut keys, "bob", &bob.seal(&FRAME)), (plain(), 0));
        ann.ratchet();
        assert_eq!(open(&mut keys, "ann", &ann.seal(&FRAME)).0, plain());
        assert_eq!(open(&mut keys, "ann", &after), (plain(), 0), "a frame of before the last ratchet is late");
        for _ in 0..5 {
            ann.ratchet();
        }
        assert_eq!(open(&mut keys, "ann", &ann.seal(&FRAME)).0, Opened::Not(Problem::WrongKey { index: 0 }));
    }

    #[test]
    fn a_failed_attempt_changes_nothing() {
        let mut keys = Keyring::new(E2eeConfig::new().shared_key(0, raw(1)).ratchet_window(3));
        let (mut ann, mut stranger) = (FrameSealer::new(raw(1), 0), FrameSealer::new(raw(9), 0));
        for _ in 0..20 {
            let failed = open(&mut keys, "ann", &stranger.seal(&FRAME)).0;
            assert_eq!(failed, Opened::Not(Problem::WrongKey { index: 0 }));
        }
        assert_eq!(open(&mut keys, "ann", &ann.seal(&FRAME)), (plain(), 0));
        for _ in 0..3 {
            ann.ratchet();
        }
        assert_eq!(open(&mut keys, "ann", &ann.seal(&FRAME)).0, plain(), "the window begins where it began");
    }

    #[test]
    fn a_key_is_given_up_only_where_that_is_asked_for() {
        let config = E2eeConfig::new().shared_key(0, raw(1)).ratchet_window(0);
        let (mut ann, mut stranger) = (FrameSealer::new(raw(1), 0), FrameSealer::new(raw(9), 0));
        let mut after = |mut keys: Keyring, failures: usize| {
            for _ in 0..failures {
                open(&mut keys, "ann", &stranger.seal(&FRAME));
            }
            open(&mut keys, "ann", &ann.seal(&FRAME)).0
        };
        assert_eq!(after(Keyring::new(config.clone()), 100), plain());
        let strict = config.failure_tolerance(2);
        assert_eq!(after(Keyring::new(strict.clone()), 2), plain());
        assert_eq!(after(Keyring::new(strict), 3), Opened::Not(Problem::WrongKey { index: 0 }));
    }

    #[test]
    fn silence_of_the_server_and_nothing_need_no_key() {
        let mut keys = Keyring::new(E2eeConfig::new());
        let trailer = [50, 86, 10, 220, 108, 185, 57, 211];
        let mut silence = vec![0xf8, 0xff, 0xfe];
        silence.resize(80, 0);
        let put_in = [silence.as_slice(), &trailer].concat();
        assert_eq!(keys.open("ann", &put_in), Opened::Not(Problem::NotEncrypted), "whose trailer is not known");
        keys.set_sif_trailer(&trailer);
        assert_eq!(keys.open("ann", &put_in), Opened::Plain(silence.into()));
        let words = [&FRAME[..], &trailer].concat();
        assert_eq!(keys.open("ann", &words), Opened::Not(Problem::NotEncrypted));
        assert_eq!(keys.open("ann", &[]), Opened::Plain(Bytes::new()));
        let sealed = FrameSealer::new(raw(1), 18).seal(&FRAME);
        assert_eq!(keys.open("ann", &sealed), Opened::Not(Problem::NoKey { index: 18 }));
    }

    #[test]
    fn passphrases_are_ratcheted_as_well() {
        let phrase = KeyMaterial::passphrase("open sesame");
        let mut keys = Keyring::new(E2eeConfig::new().shared_key(0, phrase.clone()).ratchet_window(1));
        let mut ann = FrameSealer::new(phrase, 0);
        ann.ratchet();
        assert_eq!(open(&mut keys, "ann", &ann.seal(&FRAME)), (plain(), 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn foreign_bytes_are_never_opened(payload in proptest::collection::vec(any::<u8>(), 1..120), trailed: bool) {
            let mut keys = Keyring::new(E2eeConfig::new().shared_key(0, raw(1)).ratchet_window(1));
            let mut payload = payload;
            if trailed {
                payload.extend([12, 0]);
            }
            prop_assert!(matches!(open(&mut keys, "ann", &payload).0, Opened::Not(_)));
        }
    }
}
