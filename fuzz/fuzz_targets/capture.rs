//! Packets, signalling and time in any order, into capture: `cargo fuzz run -s none capture`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::capture(bytes) {
        panic!("{what}");
    }
});
