//! One call from its start to its files: the only part that knows all the others.
//!
//! | file | what it is for |
//! |---|---|
//! | `handle` | starting a recording; what its owner holds |
//! | `session` | the loop of one call: room events and time in, files out |
//! | `pipeline` | capture → decode → mix → encode for one call (pure) |
//! | `roll` | who was there when (pure) |
//! | `presence` | when it is over (pure) |
//! | `outcome`, `manifest` | how it went, as types |
//! | `files` | the local disk |

mod files;
mod handle;
mod manifest;
mod outcome;
mod pipeline;
mod presence;
mod roll;
mod session;

pub use files::hash_of;
pub use handle::{OutputResult, Recorder, RecordingHandle, RecordingResult, State, Status};
pub use manifest::{MANIFEST_VERSION, Manifest, MediaEntry, OutputEntry, ParticipantEntry, Role, TrackEntry, Versions};
pub use outcome::{Outcome, Reason, StopReason};
pub use presence::{EndsWith, StopPolicy};
