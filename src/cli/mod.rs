//! The command line: one file a command.

mod check;
mod decrypt;
mod inspect;
mod logging;
mod progress;
mod record;
mod recover;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Exit code of a command line that makes no sense.
const BAD_USAGE: u8 = 2;

/// Records LiveKit calls: every voice at its true moment, nothing of the call missing.
#[derive(Debug, Parser)]
#[command(name = "callreel", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record one room until its call is over.
    Record(Box<record::Args>),
    /// End recordings whose process died.
    Recover(recover::Args),
    /// Try what a recording needs, and say what works.
    Check(check::Args),
    /// Print what is in a recording and check it.
    Inspect(inspect::Args),
    /// Decrypt a recording that was encrypted to a key of yours.
    Decrypt(decrypt::Args),
}

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Record(args) => record::run(*args),
        Command::Recover(args) => recover::run(&args),
        Command::Check(args) => check::run(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Decrypt(args) => decrypt::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
