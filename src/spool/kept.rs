//! What stays in the spool for a while after its store has it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::files::tidy;
use super::journal::{own_directory, path_of};
use super::recover::rests_for;

/// The directory in a spool that holds a directory for each such recording.
const KEPT: &str = "kept";

/// Keeps a recording's own directory.
pub(super) fn keep(spool: &Path, own: &Path) -> io::Result<()> {
    let kept = spool.join(KEPT);
    fs::create_dir_all(&kept)?;
    fs::rename(own, kept.join(own.file_name().unwrap_or_default()))
}

/// Removes what has been kept in `spool` for this long or longer, and gives how many recordings that were. Waits for the disk.
///
/// # Errors
/// What the disk says; what could not be removed is tried again the next time.
pub fn expire(spool: &Path, after: Duration) -> io::Result<usize> {
    let kept = spool.join(KEPT);
    let entries = match fs::read_dir(&kept) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry?.path();
        if rests_for(&path) >= after {
            fs::remove_dir_all(&path)?;
            removed += 1;
        }
    }
    tidy(spool, Some(&kept));
    Ok(removed)
}

/// Removes what has been kept in `spool` of one recording. Of one that is not over nothing is kept. Waits for the disk.
///
/// # Errors
/// What the disk says.
pub fn erase(spool: &Path, recording_id: &str) -> io::Result<()> {
    let kept = spool.join(KEPT);
    let own = own_directory(&path_of(spool, recording_id));
    let own = kept.join(own.file_name().unwrap_or_default());
    match fs::remove_dir_all(&own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => tidy(spool, Some(&kept)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_goes_when_its_time_is_over() {
        let spool = tempfile::tempdir().unwrap();
        let spool = spool.path().join("spool");
        assert_eq!(expire(&spool, Duration::ZERO).unwrap(), 0);
        let own = spool.join("R1");
        fs::create_dir_all(&own).unwrap();
        fs::write(own.join("call.ogg"), b"x").unwrap();
        keep(&spool, &own).unwrap();
        assert!(!own.exists() && expire(&spool, Duration::from_secs(60)).unwrap() == 0);
        assert_eq!(fs::read(spool.join("kept/R1/call.ogg")).unwrap(), b"x");
        erase(&spool, "R2").unwrap();
        assert!(spool.join("kept/R1").exists());
        erase(&spool, "R1").unwrap();
        erase(&spool, "R1").unwrap();
        assert!(!spool.exists(), "nothing is left");
        fs::create_dir_all(&own).unwrap();
        keep(&spool, &own).unwrap();
        assert_eq!(expire(&spool, Duration::ZERO).unwrap(), 1);
        assert!(!spool.exists(), "nothing is left");
    }
}
