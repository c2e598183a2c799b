//! A file in any format into `callreel convert`: `cargo fuzz run -s none source`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::source(bytes) {
        panic!("{what}");
    }
});
