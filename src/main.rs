//! The `callreel` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    callreel::cli::main()
}
