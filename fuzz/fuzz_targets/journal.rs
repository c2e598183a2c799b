//! The journal of a recording, as recovery reads it: `cargo fuzz run -s none journal`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::journal(bytes) {
        panic!("{what}");
    }
});
