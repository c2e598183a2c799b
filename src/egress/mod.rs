//! LiveKit Egress, asked to record: rooms with video and layouts, and calls that our own bot cannot record.
//!
//! Egress is another service: it joins the room with a browser or an SDK of its own and writes the file into the store
//! itself. Here is what it takes to use that without surprises: requests as types, our store's settings in its words,
//! states that polling and webhooks share, and a start that never makes two.
//!
//! ```no_run
//! use callreel::egress::{EgressClient, EgressRequest, FileFormat, FileOutput, Media, Source, Upload};
//! use callreel::room::Credentials;
//! use callreel::store::StoreConfig;
//!
//! # async fn record(store: &StoreConfig) -> Result<(), callreel::egress::EgressError> {
//! let key = Credentials::ApiKey { key: "devkey".into(), secret: "the key's secret".into() };
//! let client = EgressClient::new("wss://livekit.example", &key);
//! let (upload, prefix) = Upload::of(store)?;
//! let file = FileOutput { format: FileFormat::Mp4, path: format!("{prefix}calls/1234.mp4"), upload };
//! let request = EgressRequest::new(Source::room("call-1234", Some("grid"), Media::Both), file);
//! let egress = client.start_once(&request).await?;
//! client.stop(&egress.id).await?;
//! # Ok(())
//! # }
//! ```
//!
//! | file | what it is for |
//! |---|---|
//! | `client` | asking: start, list, stop; what is tried again and what is not |
//! | `request` | what to record, as what, where to |
//! | `upload` | our store's settings in the service's words |
//! | `place` | where an egress writes, by which it is known again |
//! | `state` | how an egress stands, from answers and from webhooks |
//! | `pace` | how often it is asked how it stands (pure) |
//! | `error` | what can go wrong, by what to do about it |

mod client;
mod error;
mod pace;
mod place;
mod request;
mod state;
mod upload;

pub use client::{EgressClient, Room};
pub use error::EgressError;
pub use pace::Pace;
pub use place::FilePlace;
pub use request::{AudioMixing, Destination, EgressRequest, FileFormat, FileOutput, Media, Preset, Source};
pub use state::{EgressFile, EgressState, EgressStatus, WebhookError, webhook};
pub use upload::Upload;
