//! Stretches of three tracks into a mix that forwards packets: `cargo fuzz run -s none forward`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::forward(bytes) {
        panic!("{what}");
    }
});
