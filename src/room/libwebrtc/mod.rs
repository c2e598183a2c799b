//! The other engine: LiveKit's official SDK, which is libwebrtc, behind the interface of a [`Room`](super::Room).
//!
//! The SDK hands out PCM that has been through its own jitter buffer, without the RTP time of the packets it came in. What
//! the rest of callreel takes are packets; so each track's PCM is coded as Opus again, and its time is the moment at which it
//! came. `docs/libwebrtc.md` says what that costs.
//!
//! | part | what it does |
//! |---|---|
//! | `pcm` | PCM and moments in, packets out; pure |
//! | `engine` | the SDK's room and its events, as those of a [`Room`](super::Room) |

#[cfg(feature = "libwebrtc")]
mod engine;
mod pcm;

#[cfg(feature = "libwebrtc")]
pub(super) use engine::Engine;
