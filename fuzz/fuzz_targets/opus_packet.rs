//! What is read from an Opus packet without decoding it: `cargo fuzz run -s none opus_packet`.

#![no_main]

use callreel::call::Codec;
use callreel::capture::toc;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let duration = toc::duration(Codec::Opus, bytes);
    assert!(duration.is_none_or(|duration| (1..=toc::LONGEST_PACKET.0).contains(&duration.0)));
    let _ = toc::is_blank(Codec::Opus, true, bytes);
    assert!(toc::in_band_fec(bytes).is_none_or(|restored| restored <= toc::LONGEST_PACKET));
});
