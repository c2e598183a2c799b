//! For tests, benches and the demo: servers, publishers, impairment, simulation.

pub mod analysis;
pub mod audio;
pub mod density;
mod error;
pub mod fuzz;
pub mod g711;
mod guard;
#[cfg(target_os = "linux")]
pub mod load;
pub mod publisher;
pub mod python;
pub mod quality;
mod relay;
pub mod replay;
pub mod server;
pub mod sim;
pub mod storage;
mod tier;

pub use audio::Audio;
pub use error::TestkitError;
pub use publisher::{AfterEnd, MutedSends, Publisher, PublisherConfig, SentLog, SentPacket, TrackOptions, Voice};
pub use python::{PublishPlan, PythonParticipant, PythonPublisher};
pub use relay::{Relay, RelayFault};
pub use server::{LiveKitServer, ServerBuilder};
pub use storage::{ProviderFront, StorageServer};
pub use tier::{Tier, rounds, scaled, tier};
