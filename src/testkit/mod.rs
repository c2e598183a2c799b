//! For tests, benches and the demo: servers, publishers, impairment, simulation.

pub mod analysis;
pub mod audio;
mod checkout;
pub mod density;
pub mod egress;
mod error;
pub mod fuzz;
pub mod g711;
mod guard;
#[cfg(target_os = "linux")]
pub mod load;
#[cfg(unix)]
pub mod postgres;
pub mod publisher;
pub mod python;
pub mod quality;
mod receiver;
mod relay;
pub mod replay;
pub mod server;
pub mod sim;
pub mod storage;
mod tap;
mod tier;

pub use audio::Audio;
pub use checkout::checkout;
pub use error::TestkitError;
#[cfg(unix)]
pub use postgres::PostgresServer;
pub use publisher::{AfterEnd, MutedSends, Publisher, PublisherConfig, SentLog, SentPacket, TrackOptions, Voice};
pub use python::{PublishPlan, PythonParticipant, PythonPublisher};
pub use receiver::{Answers, Received, WebhookReceiver};
pub use relay::{Relay, RelayFault};
pub use server::{LiveKitServer, ServerBuilder};
pub use storage::{ProviderFront, StorageServer};
pub use tap::SignalTap;
pub use tier::{Tier, rounds, scaled, tier};
