//! Payloads of every codec into a decoder: `cargo fuzz run -s none rtp_payloads`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::rtp_payloads(bytes) {
        panic!("{what}");
    }
});
