//! The command line: one file a command.

mod catalog;
mod check;
mod config;
mod convert;
mod decrypt;
mod draw;
mod e2ee;
mod engine;
mod inspect;
mod life;
mod logging;
#[cfg(feature = "otel")]
mod otel;
mod progress;
mod record;
mod recover;
mod say;
mod serve;

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
    /// Record every room that a LiveKit server tells of; list, play and delete recordings.
    Serve(Box<serve::Args>),
    /// Print what is configured for `serve`, and who says so.
    Config(Box<config::Args>),
    /// End recordings whose process died.
    Recover(recover::Args),
    /// Try what a recording needs, and say what works.
    Check(check::Args),
    /// Print what is in a recording and check it.
    Inspect(inspect::Args),
    /// Make a recording in another format.
    Convert(convert::Args),
    /// Draw a recording's waveform and spectrogram.
    Draw(draw::Args),
    /// Decrypt a recording that was encrypted to a key of yours.
    Decrypt(decrypt::Args),
    /// Look after a catalogue of recordings.
    Catalog(catalog::Args),
}

/// Runs the command line of this process and gives its exit code.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Record(args) => record::run(*args),
        Command::Serve(args) => serve::run(*args),
        Command::Config(args) => config::run(*args),
        Command::Recover(args) => recover::run(&args),
        Command::Check(args) => check::run(args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Draw(args) => draw::run(&args),
        Command::Decrypt(args) => decrypt::run(&args),
        Command::Catalog(args) => catalog::run(args),
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
