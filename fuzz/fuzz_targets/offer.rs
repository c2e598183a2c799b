//! A server's offer into the room engine's peer connection: `cargo fuzz run -s none offer`.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(what) = callreel::testkit::fuzz::offer(bytes) {
        panic!("{what}");
    }
});
