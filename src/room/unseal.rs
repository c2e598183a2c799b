//! Frames of end-to-end encrypted tracks on their way to whoever records: opened, held until a key is there, or told as what
//! cannot be opened. Pure: packets and time in, packets and events out.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::event::{RoomEvent, RtpPacket};
use crate::call::{Codec, Encryption, TrackKey};
use crate::e2ee::{Derivation, Derived, E2eeConfig, Keyring, Opened, Problem};

/// How often a track's frames that cannot be opened are told.
const EVERY: Duration = Duration::from_secs(1);

/// How many packets of one track may wait for keys: twenty seconds of most voices. Deriving a key takes less than a tenth
/// of a second, and each waits for those before it.
const HELD: usize = 1024;

/// The first byte of an Opus packet of one frame of 20 ms (RFC 6716 §3.1), as nearly all senders send.
const TWENTY_MS: &[u8] = &[0x78];

/// The encrypted tracks of a call.
#[derive(Debug)]
pub(super) struct Unsealing {
    keys: Keyring,
    tracks: BTreeMap<TrackKey, Sealed>,
    held: VecDeque<RtpPacket>,
}

#[derive(Debug)]
struct Sealed {
    identity: String,
    encryption: Encryption,
    /// How many of its packets wait for keys.
    waiting: usize,
    /// What could not be opened and was not told yet.
    failed: BTreeMap<Problem, u64>,
    told: Option<Instant>,
}

impl Sealed {
    fn due(&self) -> Option<Instant> {
        (!self.failed.is_empty()).then_some(self.told? + EVERY)
    }
}

impl Unsealing {
    /// Opens with these keys.
    pub(super) fn new(keys: E2eeConfig) -> Self {
        Self { keys: Keyring::new(keys), tracks: BTreeMap::new(), held: VecDeque::new() }
    }

    /// Takes the start of a session, which brings the bytes that end what the server puts in.
    pub(super) fn enter(&mut self, sif_trailer: &[u8]) {
        self.keys.set_sif_trailer(sif_trailer);
    }

    /// A track was published.
    pub(super) fn published(&mut self, track: TrackKey, identity: &str, encryption: Encryption) {
        if encryption != Encryption::None {
            let waiting = self.held.iter().filter(|packet| packet.track == track).count();
            let (identity, failed) = (identity.to_owned(), BTreeMap::new());
            self.tracks.insert(track, Sealed { identity, encryption, waiting, failed, told: None });
        }
    }

    /// Passes a packet on, opened; nothing where it is held. What cannot be opened keeps its place and loses its sound.
    pub(super) fn open(&mut self, packet: RtpPacket) -> Option<RtpPacket> {
        let Some(sealed) = self.tracks.get_mut(&packet.track) else { return Some(packet) };
        let opened = match sealed.encryption {
            Encryption::Custom => Opened::Not(Problem::Custom),
            Encryption::None | Encryption::Gcm => self.keys.open(&sealed.identity, &packet.payload),
        };
        match opened {
            Opened::Plain(payload) => Some(RtpPacket { payload, ..packet }),
            Opened::Later { .. } if sealed.waiting < HELD => {
                sealed.waiting += 1;
                self.held.push_back(packet);
                None
            }
            Opened::Later { index } => Some(refuse(sealed, packet, Problem::WrongKey { index })),
            Opened::Not(problem) => Some(refuse(sealed, packet, problem)),
        }
    }

    /// Work to be done elsewhere, if there is any.
    pub(super) fn next_derivation(&mut self) -> Option<Derivation> {
        self.keys.next_derivation()
    }

    /// Takes in what came of it; gives the packets that can be passed on now.
    pub(super) fn learn(&mut self, derived: Derived) -> Vec<RtpPacket> {
        self.keys.learn(derived);
        self.tracks.values_mut().for_each(|sealed| sealed.waiting = 0);
        std::mem::take(&mut self.held).into_iter().filter_map(|packet| self.open(packet)).collect()
    }

    /// What is to be told now: at once where it is new, then once a second, and `all` at the end.
    pub(super) fn reports(&mut self, now: Instant, all: bool) -> Vec<RoomEvent> {
        let mut reports = Vec::new();
        for (&track, sealed) in &mut self.tracks {
            if !all && sealed.due().is_some_and(|due| now < due) {
                continue;
            }
            for (problem, frames) in std::mem::take(&mut sealed.failed) {
                sealed.told = Some(now);
                reports.push(RoomEvent::Undecryptable { track, problem, frames, at: now });
            }
        }
        reports
    }

    /// When to ask for reports.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.tracks.values().filter_map(Sealed::due).min()
    }
}

/// Counts what cannot be opened, and leaves of it what says how long it lasts.
fn refuse(sealed: &mut Sealed, packet: RtpPacket, problem: Problem) -> RtpPacket {
    *sealed.failed.entry(problem).or_default() += 1;
    let payload = match (problem, packet.codec) {
        // Nothing is known of what it looks like.
        (Problem::Custom, _) => Bytes::from_static(TWENTY_MS),
        (_, Codec::Opus) => packet.payload.slice(..packet.payload.len().min(1)),
        (_, Codec::Pcmu | Codec::Pcma) => Bytes::new(),
    };
    RtpPacket { payload, undecryptable: true, ..packet }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2ee::{FrameSealer, KeyMaterial};
    use crate::time::{RtpTime, Seq};

    const ANN: TrackKey = TrackKey(3);

    fn raw(byte: u8) -> KeyMaterial {
        KeyMaterial::Raw(vec![byte; 16])
    }

    fn packet(seq: u64, payload: &[u8]) -> RtpPacket {
        RtpPacket {
            track: ANN,
            ssrc: 7,
            codec: Codec::Opus,
            seq: Seq(seq),
            rtp: RtpTime(960 * seq as i64),
            marker: false,
            payload: Bytes::copy_from_slice(payload),
            undecryptable: false,
            arrival: crate::clock::now(),
        }
    }

    fn keyed(encryption: Encryption) -> Unsealing {
        let mut unsealing = Unsealing::new(E2eeConfig::new().shared_key(0, raw(1)).ratchet_window(0));
        unsealing.published(ANN, "ann", encryption);
        unsealing
    }

    fn told(unsealing: &mut Unsealing, now: Instant) -> Vec<(Problem, u64)> {
        let report = |event| match event {
            RoomEvent::Undecryptable { track: ANN, problem, frames, .. } => (problem, frames),
            other => panic!("{other:?}"),
        };
        unsealing.reports(now, false).into_iter().map(report).collect()
    }

    #[test]
    fn frames_wait_for_their_key_and_come_in_order() {
        let mut unsealing = keyed(Encryption::Gcm);
        let mut sealer = FrameSealer::new(raw(1), 0);
        for seq in 0..3 {
            assert!(unsealing.open(packet(seq, &sealer.seal(&[0x78, seq as u8]))).is_none());
        }
        let work = unsealing.next_derivation().unwrap();
        let passed = unsealing.learn(work.run());
        let expected: Vec<_> = (0..3).map(|seq| (seq, vec![0x78, seq as u8])).collect();
        assert_eq!(passed.iter().map(|packet| (packet.seq.0, packet.payload.to_vec())).collect::<Vec<_>>(), expected);
        assert!(passed.iter().all(|packet| !packet.undecryptable));
        assert_eq!(told(&mut unsealing, crate::clock::now()), []);
    }

    #[test]
    fn what_cannot_be_opened_keeps_its_length_and_loses_its_sound() {
        let mut unsealing = keyed(Encryption::Gcm);
        let sealed = FrameSealer::new(raw(2), 4).seal(&[0x78, 1, 2, 3]);
        let passed = unsealing.open(packet(1, &sealed)).unwrap();
        assert!(passed.undecryptable);
        assert_eq!(passed.payload, Bytes::from_static(&[0x78]));
        let now = crate::clock::now();
        assert_eq!(told(&mut unsealing, now), [(Problem::NoKey { index: 4 }, 1)]);
    }

    #[test]
    fn a_track_that_waits_for_too_much_costs_no_other_its_frames() {
        const BOB: TrackKey = TrackKey(4);
        let keys = E2eeConfig::new().shared_key(5, raw(1)).ratchet_window(0);
        let mut unsealing = Unsealing::new(keys);
        unsealing.published(ANN, "ann", Encryption::Gcm);
        unsealing.published(BOB, "bob", Encryption::Gcm);
        let mut sealer = FrameSealer::new(raw(1), 5);
        let sealed = sealer.seal(&[0x78, 1]);
        let refused = (0..HELD as u64 + 2).filter_map(|seq| unsealing.open(packet(seq, &sealed))).count();
        assert_eq!(refused, 2);
        assert_eq!(told(&mut unsealing, crate::clock::now()), [(Problem::WrongKey { index: 5 }, 2)]);
        let bobs = RtpPacket { track: BOB, ..packet(1, &sealed) };
        assert!(unsealing.open(bobs).is_none(), "it waits");
        let work = unsealing.next_derivation().unwrap();
        assert_eq!(unsealing.learn(work.run()).iter().filter(|packet| !packet.undecryptable).count(), HELD + 1);
        assert!(unsealing.tracks.values().all(|sealed| sealed.waiting == 0));
    }

    #[test]
    fn reports_come_at_once_and_then_once_a_second() {
        let mut unsealing = keyed(Encryption::Gcm);
        let now = crate::clock::now();
        unsealing.open(packet(1, &[0x78; 40]));
        assert_eq!(told(&mut unsealing, now), [(Problem::NotEncrypted, 1)]);
        for seq in 2..10 {
            unsealing.open(packet(seq, &[0x78; 40]));
            assert_eq!(told(&mut unsealing, now), []);
        }
        assert_eq!(unsealing.wake(), Some(now + EVERY));
        assert_eq!(told(&mut unsealing, now + EVERY), [(Problem::NotEncrypted, 8)]);
        assert_eq!(unsealing.wake(), None);
        unsealing.open(packet(11, &[0x78; 40]));
        assert_eq!(unsealing.reports(now + EVERY, true).len(), 1, "the end tells all");
    }

    #[test]
    fn tracks_that_are_not_encrypted_are_left_alone_and_custom_ones_refused() {
        let mut plain = keyed(Encryption::None);
        let passed = plain.open(packet(1, &[0x78, 9])).unwrap();
        assert_eq!((passed.payload.to_vec(), passed.undecryptable), (vec![0x78, 9], false));
        let mut custom = keyed(Encryption::Custom);
        let passed = custom.open(packet(1, &[9, 9, 9])).unwrap();
        assert_eq!((&passed.payload[..], passed.undecryptable), (TWENTY_MS, true));
        assert_eq!(told(&mut custom, crate::clock::now()), [(Problem::Custom, 1)]);
    }
}
