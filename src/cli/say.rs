//! Lines for people and programs. Whoever read them may be gone, as after `| head`: that is no reason to stop the work.

use std::fmt::Arguments;
use std::io::Write;

/// Prints a line to standard output, as `println!` does, but for the panic where nobody reads it.
macro_rules! out {
    ($($what:tt)*) => { $crate::cli::say::line(&mut std::io::stdout().lock(), format_args!($($what)*)) };
}

/// Prints a line to standard error, as `eprintln!` does, but for the panic where nobody reads it.
macro_rules! err {
    ($($what:tt)*) => { $crate::cli::say::line(&mut std::io::stderr().lock(), format_args!($($what)*)) };
}

pub(super) use {err, out};

/// Writes a line; that nobody reads it is nothing anybody could be told.
pub(super) fn line(to: &mut dyn Write, what: Arguments<'_>) {
    let _ = writeln!(to, "{what}");
}
