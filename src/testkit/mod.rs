//! For tests, benches and the demo: servers, publishers, impairment, simulation.

pub mod analysis;
pub mod audio;
mod error;
pub mod g711;
pub mod publisher;
pub mod python;
pub mod replay;
pub mod server;

pub use audio::Audio;
pub use error::TestkitError;
pub use publisher::{AfterEnd, MutedSends, Publisher, PublisherConfig, SentLog, SentPacket, TrackOptions, Voice};
pub use python::{PublishPlan, PythonParticipant, PythonPublisher};
pub use server::{LiveKitServer, ServerBuilder};

/// Makes sure that the process has a TLS provider; the first one installed stays.
pub(crate) fn install_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Losing the race against another thread leaves a provider installed, which is all that is wanted.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
}
