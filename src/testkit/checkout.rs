use std::path::PathBuf;

/// The folder of this repository, where fixtures, seeds and scripts lie.
///
/// Cargo says at run time where it is. What is known at compile time is asked second: checkouts that share a target directory
/// run what another one of them compiled.
pub fn checkout() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_fixtures_are_there() {
        assert!(super::checkout().join("fixtures/agent.flac").is_file());
    }
}
