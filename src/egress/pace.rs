use std::time::Duration;

use super::state::EgressStatus;

/// How often an egress is asked how it stands: soon after something changed, and ever more seldom while nothing does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    seen: Option<EgressStatus>,
    wait: Duration,
}

/// The first wait after a change.
const SOON: Duration = Duration::from_millis(250);

/// No wait is longer: a call that ends is noticed within this, webhook or not.
const SELDOM: Duration = Duration::from_secs(2);

impl Default for Pace {
    fn default() -> Self {
        Self { seen: None, wait: SOON }
    }
}

impl Pace {
    /// How long to wait, where it was seen as `status` or did not answer.
    pub fn next(&mut self, status: Option<EgressStatus>) -> Duration {
        self.wait = if status.is_some() && status != self.seen { SOON } else { (self.wait * 3 / 2).min(SELDOM) };
        self.seen = status.or(self.seen);
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_until_something_changes() {
        let mut pace = Pace::default();
        assert_eq!(pace.next(Some(EgressStatus::Starting)), SOON);
        let waits: Vec<_> = (0..10).map(|_| pace.next(Some(EgressStatus::Starting))).collect();
        assert!(waits.is_sorted() && waits[0] > SOON, "{waits:?}");
        assert_eq!(waits.last(), Some(&SELDOM));
        assert_eq!(pace.next(None), SELDOM, "who does not answer is not asked more often");
        assert_eq!(pace.next(Some(EgressStatus::Active)), SOON);
    }
}
