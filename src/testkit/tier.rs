//! How much a run of the tests is to try.

/// How thorough the tests are: `CALLREEL_TIER`, set by `make faults` and `make soak`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Small counts: what must never break. The default.
    Test,
    /// Large counts of everything that goes wrong.
    Faults,
    /// Minutes of everything.
    Soak,
}

impl Tier {
    /// How often this tier does what [`Tier::Test`] does once.
    pub fn factor(self) -> u64 {
        match self {
            Self::Test => 1,
            Self::Faults => 10,
            Self::Soak => 50,
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "" | "test" => Some(Self::Test),
            "faults" => Some(Self::Faults),
            "soak" => Some(Self::Soak),
            _ => None,
        }
    }
}

/// The tier of this run.
///
/// # Panics
/// Where `CALLREEL_TIER` names none: a run that tries less than was asked for proves nothing.
pub fn tier() -> Tier {
    let name = std::env::var("CALLREEL_TIER").unwrap_or_default();
    Tier::named(&name).unwrap_or_else(|| panic!("CALLREEL_TIER is {name:?}, not test, faults or soak"))
}

/// How many rounds this run makes of something that [`Tier::Test`] does `count` times.
pub fn scaled(count: u64) -> u64 {
    count * tier().factor()
}

/// Rounds that go on at once.
const AT_ONCE: u64 = 5;

/// Rounds of a test, some at once, each with a seed of its own.
pub async fn rounds<T>(count: u64, round: impl AsyncFn(u64) -> T) -> Vec<T> {
    let mut all = Vec::new();
    for first in (0..count).step_by(AT_ONCE as usize) {
        let batch = (first..count.min(first + AT_ONCE)).map(|seed| round(seed));
        all.extend(futures_util::future::join_all(batch).await);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_have_names_and_grow() {
        assert_eq!(["", "test", "faults", "soak"].map(Tier::named).map(Option::unwrap), {
            [Tier::Test, Tier::Test, Tier::Faults, Tier::Soak]
        });
        assert_eq!(Tier::named("sok"), None);
        assert!(Tier::Test.factor() < Tier::Faults.factor() && Tier::Faults.factor() < Tier::Soak.factor());
    }
}
