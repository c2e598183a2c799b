//! `callreel decrypt`: an encrypted recording as it would be without encryption.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::seal::{self, Identities, Loss, Opened, Opener, SealError, Why, open_whole};
use crate::spool::{FileError, give_name, part_of};

use super::BAD_USAGE;
use super::say::err;

/// Exit code where something is missing from what was decrypted.
const LACKS: u8 = 3;

/// What files of the age format begin with.
const AGE: &[u8] = b"age-encryption.org/v1\n";

/// A file that tells about a recording is no longer than this.
const LONGEST_WHOLE: u64 = 256 * 1024 * 1024;

/// How much is read at once.
const BLOCK: usize = 64 * 1024;

/// Flags of `callreel decrypt`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A file that is cut or damaged is decrypted as far as it goes, and behind what is damaged; each loss is told.\n\nExit codes: 0 decrypted whole, 1 nothing could be decrypted, 2 bad usage, 3 decrypted, and something is missing."
)]
pub struct Args {
    /// The encrypted recording, or an encrypted file beside it
    file: PathBuf,
    /// A file with the age secret key, as age-keygen writes it; may be given again
    #[arg(long, short, value_name = "KEYFILE", required = true)]
    identity: Vec<PathBuf>,
    /// Where to: a file that is not there yet, or - for standard output [default: FILE without .age]
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Why nothing was decrypted.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecryptError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {source}")]
    Seal { path: PathBuf, source: SealError },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("give --out: the name of {0} does not end with .age")]
    NoName(PathBuf),
    #[error("{0} is no encrypted recording")]
    NotSealed(PathBuf),
    #[error("{path}: nothing of it could be decrypted: {loss}")]
    Nothing { path: PathBuf, loss: Loss },
}

impl DecryptError {
    fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }

    fn seal(path: &Path) -> impl Fn(SealError) -> Self + '_ {
        |source| Self::Seal { path: path.to_owned(), source }
    }
}

/// Decrypts one file.
pub fn run(args: &Args) -> ExitCode {
    let identities = match read_identities(&args.identity) {
        Ok(identities) => identities,
        Err(error) => {
            err!("error: {error}");
            return ExitCode::from(BAD_USAGE);
        }
    };
    let out = match &args.out {
        Some(out) => out.clone(),
        None if args.file.extension().is_some_and(|ext| ext == seal::EXT) => args.file.with_extension(""),
        None => {
            err!("error: {}", DecryptError::NoName(args.file.clone()));
            return ExitCode::from(BAD_USAGE);
        }
    };
    let done = if out.as_os_str() == "-" {
        decrypt(&args.file, &identities, &mut io::stdout().lock(), Path::new("standard output"))
    } else {
        decrypt_to_file(&args.file, &identities, &out)
    };
    match done {
        Ok(lost) if lost.is_empty() => ExitCode::SUCCESS,
        Ok(lost) => {
            for loss in lost {
                err!("{}: {loss}", args.file.display());
            }
            ExitCode::from(LACKS)
        }
        Err(error) => {
            err!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The secret keys in these files.
pub(super) fn read_identities(paths: &[PathBuf]) -> Result<Identities, DecryptError> {
    let mut all = String::new();
    for path in paths {
        let text = fs::read_to_string(path).map_err(DecryptError::io(path))?;
        // Each file by itself, so that the line that is told is one of its own.
        Identities::parse(&text).map_err(DecryptError::seal(path))?;
        all.push_str(&text);
        all.push('\n');
    }
    Identities::parse(&all).map_err(DecryptError::seal(Path::new("")))
}

/// Decrypts into a file, which appears when all of it is there, and never in another's place.
fn decrypt_to_file(file: &Path, identities: &Identities, out: &Path) -> Result<Vec<Loss>, DecryptError> {
    if out.exists() {
        return Err(DecryptError::io(out)(io::ErrorKind::AlreadyExists.into()));
    }
    let part = part_of(out);
    let mut target = OpenOptions::new().write(true).create_new(true).open(&part).map_err(DecryptError::io(&part))?;
    let done = decrypt(file, identities, &mut target, &part)
        .and_then(|lost| target.sync_all().map(|()| lost).map_err(DecryptError::io(&part)))
        .and_then(|lost| give_name(&part, out).map(|()| lost).map_err(DecryptError::from));
    if done.is_err() {
        // What is decrypted in part is not left lying about.
        let _ = fs::remove_file(&part);
    }
    done
}

/// Decrypts into `out`. Gives what is missing.
pub(super) fn decrypt(
    file: &Path,
    identities: &Identities,
    out: &mut dyn Write,
    out_name: &Path,
) -> Result<Vec<Loss>, DecryptError> {
    let mut source = File::open(file).map_err(DecryptError::io(file))?;
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    let mut opener = Opener::new(identities.clone());
    let (mut lost, mut anything) = (Vec::new(), false);
    loop {
        let read = source.read(&mut block).map_err(DecryptError::io(file))?;
        if bytes == 0 && block[..read].starts_with(AGE) {
            return decrypt_whole(file, identities, out, out_name);
        }
        bytes += read as u64;
        if read == 0 {
            opener.end();
        } else {
            opener.push(&block[..read]);
        }
        while let Some(opened) = opener.next_opened() {
            match opened {
                Opened::Pages(pages) => {
                    out.write_all(&pages).map_err(DecryptError::io(out_name))?;
                    anything = true;
                }
                Opened::Lost(loss) => lost.push(loss),
            }
        }
        if read == 0 {
            break;
        }
    }
    lost.extend(opener.lost_at_end(bytes));
    if anything {
        out.flush().map_err(DecryptError::io(out_name))?;
        return Ok(lost);
    }
    if opener.segments() == 0 {
        return Err(DecryptError::NotSealed(file.to_owned()));
    }
    let by_key = lost.iter().position(|loss| loss.why == Why::WrongKey);
    match lost.into_iter().nth(by_key.unwrap_or(0)) {
        Some(loss) => Err(DecryptError::Nothing { path: file.to_owned(), loss }),
        None => Err(DecryptError::NotSealed(file.to_owned())),
    }
}

/// Decrypts what is one age file.
fn decrypt_whole(
    file: &Path,
    identities: &Identities,
    out: &mut dyn Write,
    out_name: &Path,
) -> Result<Vec<Loss>, DecryptError> {
    let length = fs::metadata(file).map_err(DecryptError::io(file))?.len();
    if length > LONGEST_WHOLE {
        return Err(DecryptError::NotSealed(file.to_owned()));
    }
    let sealed = fs::read(file).map_err(DecryptError::io(file))?;
    let plain = open_whole(identities, &sealed).map_err(DecryptError::seal(file))?;
    out.write_all(&plain).and_then(|()| out.flush()).map_err(DecryptError::io(out_name))?;
    Ok(Vec::new())
}
