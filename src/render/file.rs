//! A whole Ogg file to a whole file of another format.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Render;
use crate::encode::{EncodeError, Patch};

/// How much is read at once.
const BLOCK: usize = 256 * 1024;

/// A file that cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The stream.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl From<RenderError> for io::Error {
    fn from(error: RenderError) -> Self {
        match error {
            RenderError::Io(error) => error,
            RenderError::Encode(error) => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Renders what is in the Ogg file `from` into `to`, which is empty. A stream without an end is rendered as far as it goes, and
/// can be gone on with, unless it `ends` there. Gives how many bytes `to` has.
///
/// # Errors
/// What the disk says; a stream that the format does not hold.
pub fn render(from: &Path, to: &File, render: &mut Render, ends: bool) -> Result<u64, RenderError> {
    let mut source = File::open(from)?;
    let mut block = vec![0; BLOCK];
    let mut written = 0;
    loop {
        let read = source.read(&mut block)?;
        if read == 0 {
            break;
        }
        written += render_block(&block[..read], to, render)?;
    }
    Ok(written + if ends { end(to, render)? } else { 0 })
}

/// Renders the next bytes of a stream to the end of `to`. Gives how many bytes that made.
///
/// # Errors
/// As [`render`].
pub fn render_block(block: &[u8], to: &File, render: &mut Render) -> Result<u64, RenderError> {
    let patches = render.push(block)?;
    write(&patches, to, render)
}

/// Ends what was rendered so far, unless its stream has ended it. Gives how many bytes that made.
///
/// # Errors
/// As [`render`].
pub fn end(to: &File, render: &mut Render) -> Result<u64, RenderError> {
    let patches = render.finish()?;
    write(&patches, to, render)
}

fn write(patches: &[Patch], mut to: &File, render: &mut Render) -> Result<u64, RenderError> {
    let mut bytes = Vec::new();
    render.take_bytes(&mut bytes);
    to.write_all(&bytes)?;
    patches.iter().try_for_each(|patch| to.write_all_at(&patch.bytes, patch.offset))?;
    Ok(bytes.len() as u64)
}
