//! A manifest, read back and checked: `cargo fuzz run -s none manifest`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::manifest(bytes) {
        panic!("{what}");
    }
});
