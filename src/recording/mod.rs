//! One call from its start to its files: the only part that knows all the others.
//!
//! | file | what it is for |
//! |---|---|
//! | `handle` | starting a recording; what its owner holds |
//! | `start` | beginning anew, or where an earlier process left it |
//! | `earlier` | what such a process left |
//! | `join` | getting into the room |
//! | `session` | the loop of one call: room events, orders and time in, files out |
//! | `events` | what the room tells, taken into the session |
//! | `report` | what is told of it, while it goes on and at its end |
//! | `pipeline` | capture → outputs for one call (pure) |
//! | `outputs` | which stretch goes to which of the mix, dual and track streams (pure) |
//! | `sides` | who is heard on which side of a dual file (pure) |
//! | `sinks` | which output goes to which file |
//! | `roll` | who was there when (pure) |
//! | `speech` | whose speech is whose (pure) |
//! | `life` | where it is in its life: pauses, consent, when it is over, legs that fall silent (pure) |
//! | `cuts` | the time of files that lack something against that of the call (pure) |
//! | `dtmf` | keys that are pressed on a telephone |
//! | `happening` | what its owner is told while it goes on |
//! | `by_egress` | recordings that LiveKit Egress makes |
//! | `egress_part` | one egress from its start to its end |
//! | `left_egress` | egresses whose recorder died |
//! | `outcome`, `manifest` | how it went, as types |
//! | `bring` | what others left, brought into its store |
//! | `recover` | recordings whose process died |

mod bring;
mod by_egress;
mod cuts;
mod dtmf;
mod earlier;
mod egress_part;
mod events;
mod handle;
mod happening;
mod join;
mod left_egress;
mod life;
mod manifest;
mod outcome;
mod outputs;
mod pictures;
mod pipeline;
mod recover;
mod report;
mod roll;
mod scene;
mod session;
mod sides;
mod sinks;
mod speech;
mod start;

pub use bring::{RecoverError, recover_found, recover_from_store};
pub use dtmf::{DtmfEntry, DtmfPolicy};
#[cfg(feature = "testkit")]
pub use handle::alive_tasks;
pub use handle::{OutputResult, Recorder, RecordingHandle, RecordingResult, State, Status};
pub use happening::{Happening, What};
pub use left_egress::LeftEgress;
pub use life::{
    CONTROL_TOPIC, ConsentRule, EndsWith, LegSilence, LifePolicy, PauseEntry, PauseOrder, PausePolicy, StopPolicy,
};
pub use manifest::{
    EgressEntry, EncryptionEntry, MANIFEST_VERSION, Manifest, MediaEntry, OutputEntry, ParticipantEntry, Role,
    SidecarEntry, SidecarKind, SpeechEntry, StarvedEntry, StreamEntry, TrackEntry, Versions,
};
pub use outcome::{Outcome, Reason, StopReason};
#[cfg(feature = "testkit")]
pub(crate) use outputs::Speaker;
#[cfg(feature = "testkit")]
pub(crate) use pipeline::Pipeline;
pub use recover::{Pending, Recovered, recover, recover_one};
pub use scene::{Names, Sound, scene};
