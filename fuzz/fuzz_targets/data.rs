//! A packet of a data channel, as the room engine reads it: `cargo fuzz run -s none data`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::data(bytes) {
        panic!("{what}");
    }
});
