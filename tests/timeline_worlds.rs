//! Whatever networks and publishers do, every sample and every packet is in the account.

use std::thread;

use callreel::testkit::scaled;
use callreel::testkit::sim::{self, random_world};

/// Worlds of the smallest run.
const WORLDS: u64 = 10_000;

/// Seeds that once broke a rule.
const KEPT: &str = include_str!("timeline_worlds.seeds");

#[test]
fn the_account_is_kept_in_thousands_of_random_worlds() {
    let half = |from: u64| thread::spawn(move || sim::failures((from..scaled(WORLDS)).step_by(2)));
    let (even, odd) = (half(0), half(1));
    let failures: Vec<_> = even.join().unwrap().into_iter().chain(odd.join().unwrap()).collect();
    assert!(
        failures.is_empty(),
        "{} worlds; add the seeds to the list: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}

#[test]
fn worlds_that_once_broke_a_rule_keep_it_now() {
    for seed in KEPT.lines().filter_map(|line| line.split('#').next()?.trim().parse().ok()) {
        sim::run(&random_world(seed)).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
}
