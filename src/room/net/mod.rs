//! The sockets that media arrives on.

pub(super) mod framing;
#[cfg(feature = "testkit")]
pub(super) mod impairment;
pub(super) mod relay;
mod stamp;
pub(super) mod tcp;
pub(super) mod udp;
