//! Foreign bytes do no harm: seconds of blind fuzzing with every run, minutes in the larger tiers.
//!
//! A coverage-guided fuzzer finds more: `cargo fuzz run -s none TARGET`, with the same functions.

use std::panic::catch_unwind;

use callreel::testkit::fuzz::{Mutator, TARGETS, Target};
use callreel::testkit::{checkout, scaled};

/// Rounds of each target.
const ROUNDS: u64 = 4_000;

fn read(target: &Target, bytes: &[u8], round: u64) {
    let outcome = catch_unwind(|| (target.read)(bytes));
    let what = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(what)) => what,
        Err(_) => "it panicked, see above".to_owned(),
    };
    panic!("{} in round {round}: {what}; the bytes: {}", target.name, bytes.escape_ascii());
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = target.seeds().unwrap();
    for seed in &seeds {
        read(target, seed, 0);
    }
    let mut mutator = Mutator::new(0xca11, seeds);
    for round in 1..=scaled(ROUNDS) {
        read(target, &mutator.next_bytes(), round);
    }
}

#[test]
fn capture_takes_anything() {
    fuzz("capture");
}

#[test]
fn opus_packets_are_read_without_harm() {
    fuzz("opus_packet");
}

#[test]
fn payloads_are_decoded_without_harm() {
    fuzz("rtp_payloads");
}

#[test]
fn a_mix_of_forwarded_packets_ends_where_it_should() {
    fuzz("forward");
}

#[test]
fn offers_are_answered_or_refused() {
    fuzz("offer");
}

#[test]
fn messages_are_read_or_left() {
    fuzz("data");
}

#[test]
fn manifests_are_read_or_refused() {
    fuzz("manifest");
}

#[test]
fn journals_are_read_whatever_they_hold() {
    fuzz("journal");
}

#[test]
fn files_are_inspected_whatever_they_hold() {
    fuzz("ogg");
}

#[test]
fn sealed_files_are_opened_as_far_as_they_are_whole() {
    fuzz("sealed");
}

#[test]
fn files_in_any_format_are_converted_without_harm() {
    fuzz("source");
}

#[test]
fn every_target_is_there_for_the_fuzzer_too() {
    for target in TARGETS {
        let file = checkout().join(format!("fuzz/fuzz_targets/{}.rs", target.name));
        assert!(std::fs::read_to_string(&file).is_ok_and(|text| text.contains("fuzz::")), "{}", file.display());
    }
}

#[test]
fn the_seeds_of_manifests_are_manifests() {
    let target = TARGETS.iter().find(|target| target.name == "manifest").unwrap();
    for seed in target.seeds().unwrap() {
        serde_json::from_slice::<callreel::recording::Manifest>(&seed).unwrap().check().unwrap();
    }
}
