//! One call from its start to its files: the only part that knows all the others.
//!
//! | file | what it is for |
//! |---|---|
//! | `handle` | starting a recording; what its owner holds |
//! | `start` | beginning anew, or where an earlier process left it |
//! | `earlier` | what such a process left |
//! | `session` | the loop of one call: room events and time in, files out |
//! | `pipeline` | capture → outputs for one call (pure) |
//! | `outputs` | which stretch goes to which of the mix, dual and track streams (pure) |
//! | `sides` | who is heard on which side of a dual file (pure) |
//! | `sinks` | which output goes to which file |
//! | `roll` | who was there when (pure) |
//! | `speech` | whose speech is whose (pure) |
//! | `presence` | when it is over (pure) |
//! | `outcome`, `manifest` | how it went, as types |
//! | `bring` | what others left, brought into its store |
//! | `recover` | recordings whose process died |

mod bring;
mod earlier;
mod handle;
mod manifest;
mod outcome;
mod outputs;
mod pipeline;
mod presence;
mod recover;
mod roll;
mod session;
mod sides;
mod sinks;
mod speech;
mod start;

pub use bring::{RecoverError, recover_from_store};
pub use handle::{OutputResult, Recorder, RecordingHandle, RecordingResult, State, Status};
pub use manifest::{
    EncryptionEntry, MANIFEST_VERSION, Manifest, MediaEntry, OutputEntry, ParticipantEntry, Role, SidecarEntry,
    SidecarKind, SpeechEntry, StreamEntry, TrackEntry, Versions,
};
pub use outcome::{Outcome, Reason, StopReason};
#[cfg(feature = "testkit")]
pub(crate) use outputs::Speaker;
#[cfg(feature = "testkit")]
pub(crate) use pipeline::Pipeline;
pub use presence::{EndsWith, StopPolicy};
pub use recover::{Pending, Recovered, recover, recover_one};
