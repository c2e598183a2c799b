//! A whole Ogg file to a whole file of another format.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Render;
use crate::encode::EncodeError;

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

/// Renders what is in the Ogg file `from` into `to`, which is empty, and tells after each block how many bytes were read.
/// A stream without an end is rendered as far as it goes, and can be gone on with. Gives how many bytes `to` has.
///
/// # Errors
/// What the disk says; a stream that the format does not hold.
pub fn render(from: &Path, mut to: &File, render: &mut Render, mut told: impl FnMut(u64)) -> Result<u64, RenderError> {
    let mut source = File::open(from)?;
    let (mut block, mut bytes) = (vec![0; BLOCK], Vec::new());
    let (mut read_so_far, mut written) = (0, 0);
    loop {
        let read = source.read(&mut block)?;
        if read == 0 {
            return Ok(written);
        }
        let patches = render.push(&block[..read])?;
        bytes.clear();
        written += render.take_bytes(&mut bytes) as u64;
        to.write_all(&bytes)?;
        for patch in patches {
            to.write_all_at(&patch.bytes, patch.offset)?;
        }
        read_so_far += read as u64;
        told(read_so_far);
    }
}
