//! Opus in MP4 (ISO/IEC 14496-12; "Encapsulation of Opus in ISO Base Media File Format"), or AAC (ISO/IEC 14496-14).
//!
//! While it grows a file is fragmented: `moov` without samples, then a `moof` and its `mdat` each half second or so, and
//! `mfra`, the index, at the end. [`Progressive`] puts the same packets behind a `moov` that has the whole index, which is
//! what a file is served with once it is complete.
//!
//! There is no `sidx`: in front it would need room for an unknown number of fragments, and at the end nobody looks for it.

mod aac;
#[cfg(feature = "aac")]
mod aac_writer;
mod boxes;
mod codec;
mod coding;
mod fragments;
mod movie;
mod progressive;
mod reader;
mod samples;
mod tags;
mod writer;

pub use aac::AacHead;
#[cfg(feature = "aac")]
pub use aac_writer::Mp4AacWriter;
pub use codec::Mp4Codec;
pub use progressive::{Front, Progressive, faststart};
pub use reader::Mp4Reader;
pub use writer::Mp4Writer;
