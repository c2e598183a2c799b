//! What is read from an Opus packet without decoding it: `cargo fuzz run -s none opus_packet`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::opus_packet(bytes) {
        panic!("{what}");
    }
});
