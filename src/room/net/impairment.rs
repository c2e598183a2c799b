//! A bad network, made at our own UDP socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Loses packets on purpose. Clones share their settings, so a test changes them while the call runs.
#[derive(Clone, Debug)]
pub struct Impairment {
    seed: u64,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    loss_per_million: AtomicU32,
    blocked: AtomicBool,
    dropped: AtomicU64,
    passed: AtomicU64,
}

impl Impairment {
    /// Loses nothing yet; the same seed loses the same packets of the same sequence.
    pub fn new(seed: u64) -> Self {
        Self { seed, shared: Arc::default() }
    }

    /// From now on loses this share (0 to 1) of the RTP packets that arrive, retransmissions like any other.
    pub fn lose_rtp(&self, share: f64) -> &Self {
        self.shared.loss_per_million.store((share.clamp(0.0, 1.0) * 1e6) as u32, Ordering::Relaxed);
        self
    }

    /// From now on lets no datagram in or out, or lets them through again.
    pub fn block_udp(&self, blocked: bool) -> &Self {
        self.shared.blocked.store(blocked, Ordering::Relaxed);
        self
    }

    /// RTP packets lost so far.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// RTP packets let through so far.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::Relaxed)
    }

    pub(in super::super) fn filter(&self) -> Filter {
        Filter { random: fastrand::Rng::with_seed(self.seed), shared: Arc::clone(&self.shared) }
    }
}

/// One socket's share of an [`Impairment`].
#[derive(Debug)]
pub(in super::super) struct Filter {
    random: fastrand::Rng,
    shared: Arc<Shared>,
}

impl Filter {
    pub(in super::super) fn is_blocked(&self) -> bool {
        self.shared.blocked.load(Ordering::Relaxed)
    }

    /// Whether an incoming datagram is lost.
    pub(in super::super) fn drops(&mut self, datagram: &[u8]) -> bool {
        if self.is_blocked() {
            return true;
        }
        if !is_rtp(datagram) {
            return false;
        }
        let lost = self.random.u32(..1_000_000) < self.shared.loss_per_million.load(Ordering::Relaxed);
        let count = if lost { &self.shared.dropped } else { &self.shared.passed };
        count.fetch_add(1, Ordering::Relaxed);
        lost
    }
}

/// RTP as told from STUN, DTLS and RTCP on one port (RFC 7983 §7, RFC 5761 §4).
fn is_rtp(datagram: &[u8]) -> bool {
    matches!(datagram, [128..=191, second, ..] if !(64..96).contains(&(second & 0x7f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTP: &[u8] = &[0x80, 111, 0, 1];

    #[test]
    fn only_rtp_is_lost_and_the_same_seed_loses_the_same() {
        let lost = |seed| {
            let impairment = Impairment::new(seed);
            let mut filter = impairment.lose_rtp(0.3).filter();
            assert!(![&[0u8, 1][..], &[22, 254], &[0x80, 200, 0, 6], &[]].iter().any(|other| filter.drops(other)));
            (0..1000).map(|_| filter.drops(RTP)).collect::<Vec<_>>()
        };
        assert_eq!(lost(7), lost(7));
        let count = lost(7).into_iter().filter(|lost| *lost).count();
        assert!((200..400).contains(&count), "{count} of 1000 at 30 %");
    }

    #[test]
    fn blocking_is_total_and_can_be_undone() {
        let impairment = Impairment::new(1);
        let mut filter = impairment.filter();
        impairment.block_udp(true);
        assert!(filter.is_blocked() && filter.drops(&[0, 1]) && filter.drops(RTP));
        impairment.block_udp(false);
        assert!(!filter.drops(RTP));
        assert_eq!((impairment.dropped(), impairment.passed()), (0, 1));
    }
}
