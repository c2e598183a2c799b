//! The stream in a file whose process died: cut back to what is whole, and ended or gone on with.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::encode::{EncodeError, OggState, OpusHead};
use crate::render::{self, Render, Rendering};
use crate::spool::FileError;
use crate::spool::history::{Closed, Made};
use crate::spool::names::{hash_of, part_of, read_blocks, survey};
use crate::spool::stream::Stream;

/// A stream of an orphan, to be gone on with.
#[derive(Debug)]
pub struct OpenStream {
    /// What it is.
    pub made: Made,
    /// How its stream begins.
    pub head: OpusHead,
    /// Where its last page left it.
    pub state: OggState,
    pub(in crate::spool) open: OpenFile,
    /// What is rendered from it: made again up to there, and who goes on with that.
    pub(in crate::spool) rendered: Vec<(Made, OpenFile, Render)>,
}

impl OpenStream {
    /// Its size, which is the end of its last page, or of the segment that holds it; with what is rendered from it.
    pub fn bytes(&self) -> u64 {
        self.open.bytes + self.rendered.iter().map(|(_, open, _)| open.bytes).sum::<u64>()
    }
}

/// A file that is cut back, to be gone on with.
#[derive(Debug)]
pub(in crate::spool) struct OpenFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub last_unit: u64,
    pub file: File,
    pub hash: Sha256,
}

/// Cuts a stream back to its last whole page or segment and ends it there. None where not even its headers are whole.
pub(super) fn mend(path: &Path, stream: Stream<'_>) -> Result<Option<Closed>, FileError> {
    let failed = |e| FileError::new("cannot mend", path, e);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let whole = whole_prefix(&file, stream).map_err(failed)?;
    file.set_len(whole).map_err(failed)?;
    let found = survey(path, stream).map_err(failed)?;
    let (Some(head), Some(state), true) = (found.head, found.state, found.begun) else { return Ok(None) };
    if !found.problems.is_empty() {
        tracing::warn!(path = %path.display(), problems = ?found.problems, "a stream that is not as it was written");
    }
    if !found.ended {
        let page = stream.closing(head, state).map_err(|e| failed(io::Error::other(e)))?;
        if let Err(error) = file.write_all_at(&page, whole) {
            tracing::warn!(path = %path.display(), %error, "there is no room for an end; the last page becomes it");
            file.set_len(whole).map_err(failed)?;
            end_in_place(&file, whole, stream).map_err(failed)?;
        }
    }
    file.sync_all().map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let sha256 = hash_of(path).map_err(failed)?;
    Ok(Some(Closed { bytes, sha256, cut_to: Some(survey(path, stream).map_err(failed)?.duration) }))
}

/// What a file turns out to be.
pub(super) enum Opened {
    /// A stream that has no end yet.
    ToGoOn(Box<OpenStream>),
    /// A stream with its end.
    Ended,
    /// Not even the headers of one.
    Empty,
}

/// Cuts a stream back to its last whole page or segment.
pub(super) fn open(made: &Made, part: &Path, stream: Stream<'_>) -> Result<Opened, FileError> {
    let failed = |e| FileError::new("cannot go on with", part, e);
    let file = OpenOptions::new().read(true).write(true).open(part).map_err(failed)?;
    let bytes = whole_prefix(&file, stream).map_err(failed)?;
    file.set_len(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    let found = survey(part, stream).map_err(failed)?;
    let (Some(head), Some(state), true) = (found.head, found.state, found.begun) else { return Ok(Opened::Empty) };
    if found.ended {
        return Ok(Opened::Ended);
    }
    let last_unit = last_unit(&file, bytes, stream).map_err(failed)?.start;
    let open = OpenFile { path: made.path.clone(), bytes, last_unit, file, hash: hashed(part).map_err(failed)? };
    Ok(Opened::ToGoOn(Box::new(OpenStream { made: made.clone(), head, state, open, rendered: Vec::new() })))
}

/// Makes `made` again, which is rendered from the stream in `source`, as far as that goes; `ends` where nothing more comes.
pub(super) fn render_again(
    made: &Made,
    rendering: Rendering,
    source: &Path,
    ends: bool,
) -> Result<(OpenFile, Render), FileError> {
    let part = part_of(&made.path);
    let failed = |e| FileError::new("cannot render again", &part, e);
    let encode = |e: EncodeError| failed(io::Error::other(e));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&part).map_err(failed)?;
    let mut render = Render::new(rendering).map_err(encode)?;
    let rendered = render::file::render(source, &file, &mut render, ends);
    let bytes = rendered.map_err(|error| failed(error.into()))?;
    file.sync_all().map_err(failed)?;
    let (path, hash) = (made.path.clone(), hashed(&part).map_err(failed)?);
    Ok((OpenFile { path, bytes, last_unit: bytes, file, hash }, render))
}

fn hashed(path: &Path) -> io::Result<Sha256> {
    let mut hash = Sha256::new();
    read_blocks(path, |block| hash.update(block))?;
    Ok(hash)
}

/// How far a file is pages or segments of one stream, one after the other.
fn whole_prefix(file: &File, stream: Stream<'_>) -> io::Result<u64> {
    let mut reader = stream.units();
    let mut block = vec![0; 64 * 1024];
    let (mut at, mut whole, mut next) = (0, 0, None);
    loop {
        let read = file.read_at(&mut block, at)?;
        if read == 0 {
            return Ok(whole);
        }
        at += read as u64;
        reader.push(&block[..read]);
        while let Some(unit) = reader.next_unit() {
            let follows = next.is_none_or(|next| next == unit.begins_with);
            if unit.offset != whole || !follows {
                return Ok(whole);
            }
            whole = unit.end;
            next = Some(unit.followed_by);
            if unit.last {
                return Ok(whole);
            }
        }
        if reader.passed_over() > 0 {
            return Ok(whole);
        }
    }
}

/// Where the last page or segment of a file of `length` bytes is.
fn last_unit(file: &File, length: u64, stream: Stream<'_>) -> io::Result<Range<u64>> {
    let mut reader = stream.units();
    let mut block = vec![0; 64 * 1024];
    let (mut at, mut last) = (0, 0..0);
    while at < length {
        let read = file.read_at(&mut block, at)?;
        if read == 0 {
            break;
        }
        at += read as u64;
        reader.push(&block[..read]);
        while let Some(unit) = reader.next_unit() {
            last = unit.offset..unit.end;
        }
    }
    Ok(last)
}

/// Makes the last page or segment of a file of `length` bytes its stream's last.
fn end_in_place(file: &File, length: u64, stream: Stream<'_>) -> io::Result<()> {
    let last = last_unit(file, length, stream)?;
    let mut page = vec![0; (last.end - last.start) as usize];
    file.read_exact_at(&mut page, last.start)?;
    if stream.end_in_place(&mut page) {
        file.write_all_at(&page, last.start)?;
    }
    Ok(())
}
