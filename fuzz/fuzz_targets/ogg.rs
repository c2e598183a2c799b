//! An Ogg file into `callreel inspect`: `cargo fuzz run -s none ogg`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::ogg(bytes) {
        panic!("{what}");
    }
});
