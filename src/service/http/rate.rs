//! How often somebody may ask: a bucket of tokens each, which fills up again with time. Pure: time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// So many callers are told apart; beyond that, those who have not asked for longest are forgotten.
const CALLERS: usize = 8_192;

/// Buckets of tokens, by caller.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    buckets: HashMap<K, Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// Buckets that take `burst` tokens and get `rate` a second.
    pub fn new(rate: f64, burst: u32) -> Self {
        Self { rate, burst: f64::from(burst), buckets: HashMap::new() }
    }

    /// Takes a token of `caller`'s.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn take(&mut self, caller: K, now: Instant) -> Result<(), Duration> {
        self.have(&caller, now)?;
        let bucket = self.bucket(caller, now);
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Whether `caller` has a token, without taking it.
    ///
    /// # Errors
    /// How long it takes until there is one.
    pub fn have(&self, caller: &K, now: Instant) -> Result<(), Duration> {
        let tokens = self.buckets.get(caller).map_or(self.burst, |bucket| self.filled(*bucket, now));
        if tokens >= 1.0 { Ok(()) } else { Err(Duration::from_secs_f64((1.0 - tokens) / self.rate)) }
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + passed * self.rate).min(self.burst)
    }

    fn bucket(&mut self, caller: K, now: Instant) -> &mut Bucket {
        if self.buckets.len() >= CALLERS && !self.buckets.contains_key(&caller) {
            self.forget(now);
        }
        let filled = self.buckets.get(&caller).map_or(self.burst, |bucket| self.filled(*bucket, now));
        let bucket = self.buckets.entry(caller).or_insert(Bucket { tokens: filled, at: now });
        *bucket = Bucket { tokens: filled, at: now };
        bucket
    }

    /// Forgets full buckets, which are like new ones, and half of the others where that is not enough.
    fn forget(&mut self, now: Instant) {
        let (rate, burst) = (self.rate, self.burst);
        let is_full =
            |bucket: &Bucket| bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * rate >= burst;
        self.buckets.retain(|_, bucket| !is_full(bucket));
        if self.buckets.len() >= CALLERS {
            let mut times: Vec<Instant> = self.buckets.values().map(|bucket| bucket.at).collect();
            let middle = times.len() / 2;
            let (_, middle, _) = times.select_nth_unstable(middle);
            let middle = *middle;
            self.buckets.retain(|_, bucket| bucket.at > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let (mut buckets, start) = (Buckets::new(2.0, 3), clock::now());
        for _ in 0..3 {
            assert_eq!(buckets.take("a", start), Ok(()));
        }
        assert_eq!(buckets.take("a", start), Err(Duration::from_millis(500)));
        assert_eq!(buckets.take("b", start), Ok(()), "everybody has their own");
        let later = start + Duration::from_millis(600);
        assert_eq!(buckets.take("a", later), Ok(()));
        assert!(buckets.have(&"a", later).is_err());
        assert_eq!(buckets.have(&"a", later + Duration::from_secs(3_600)), Ok(()));
    }

    #[test]
    fn it_never_knows_more_than_so_many() {
        let (mut buckets, start) = (Buckets::new(0.001, 2), clock::now());
        for number in 0..CALLERS * 3 {
            let _ = buckets.take(number, start + Duration::from_nanos(number as u64));
        }
        assert!(buckets.buckets.len() <= CALLERS);
        let last = CALLERS * 3 - 1;
        assert!(buckets.buckets.contains_key(&last));
    }
}
