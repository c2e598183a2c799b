//! A tap in a recorder's signalling connection: passes everything on, and what the server never says besides.

use std::future::pending;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use livekit_protocol::{SignalResponse, signal_response};
use prost::Message as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_hdr_async, client_async};

use super::{LiveKitServer, TestkitError};

type Edit = Arc<dyn Fn(&mut SignalResponse) -> bool + Send + Sync>;

/// Lies between recorders and a server, until it is dropped.
#[derive(Debug)]
pub struct SignalTap {
    url: String,
    said: watch::Sender<Option<signal_response::Message>>,
    task: JoinHandle<()>,
}

impl SignalTap {
    /// Lays a tap in front of `server`.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Io`] where no port is free.
    pub async fn lay(server: &LiveKitServer) -> Result<Self, TestkitError> {
        Self::lay_editing(server, |_| true).await
    }

    /// The same, with everything that the server says going through `edit` first, and what it denies not going on.
    ///
    /// # Errors
    ///
    /// As [`lay`](Self::lay).
    pub async fn lay_editing(
        server: &LiveKitServer,
        edit: impl Fn(&mut SignalResponse) -> bool + Send + Sync + 'static,
    ) -> Result<Self, TestkitError> {
        let edit: Edit = Arc::new(edit);
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(TestkitError::io("a port for a tap"))?;
        let url = format!("ws://{}", listener.local_addr().map_err(TestkitError::io("a port for a tap"))?);
        let (said, hearing) = watch::channel(None);
        let server = server.url();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (server, hearing, edit) = (server.clone(), hearing.clone(), Arc::clone(&edit));
                // A connection that fails is for its ends to notice.
                tokio::spawn(async move { drop(carry(near, &server, hearing, edit).await) });
            }
        });
        Ok(Self { url, said, task })
    }

    /// The address to join at.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Says something in the server's name, to everybody who is connected.
    pub fn say(&self, message: signal_response::Message) {
        self.said.send_replace(Some(message));
    }
}

impl Drop for SignalTap {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What goes on of a message of the server's.
fn edited(message: Message, edit: &Edit) -> Option<Message> {
    let Message::Binary(bytes) = &message else { return Some(message) };
    let Ok(mut response) = SignalResponse::decode(bytes.clone()) else { return Some(message) };
    edit(&mut response).then(|| Message::Binary(response.encode_to_vec().into()))
}

async fn carry(
    near: TcpStream,
    server: &str,
    mut hearing: watch::Receiver<Option<signal_response::Message>>,
    edit: Edit,
) -> Result<(), Error> {
    let mut asked = None;
    #[allow(clippy::result_large_err, reason = "the library asks for it")]
    let look = |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
        asked = Some((request.uri().clone(), request.headers().get("authorization").cloned()));
        Ok(response)
    };
    let mut near = accept_hdr_async(near, look).await?;
    let Some((uri, authorization)) = asked else { return Ok(()) };
    let mut request = format!("{server}{uri}").into_client_request()?;
    if let Some(authorization) = authorization {
        request.headers_mut().insert("authorization", authorization);
    }
    let far = TcpStream::connect(server.trim_start_matches("ws://")).await?;
    let (mut far, _) = client_async(request, far).await?;
    // What was said before concerns others.
    hearing.mark_unchanged();
    loop {
        let said = async {
            if hearing.changed().await.is_err() {
                pending::<()>().await;
            }
        };
        tokio::select! {
            message = near.next() => match message {
                Some(message) => far.send(message?).await?,
                None => return far.close(None).await,
            },
            message = far.next() => match message {
                Some(message) => {
                    if let Some(message) = edited(message?, &edit) {
                        near.send(message).await?;
                    }
                }
                None => return near.close(None).await,
            },
            () = said => {
                let message = hearing.borrow_and_update().clone();
                let response = SignalResponse { message };
                near.send(Message::Binary(response.encode_to_vec().into())).await?;
            }
        }
    }
}
