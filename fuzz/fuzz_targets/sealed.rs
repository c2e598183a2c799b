//! An encrypted file into `callreel decrypt`: `cargo fuzz run -s none sealed`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::sealed(bytes) {
        panic!("{what}");
    }
});
