//! The signalling connection, in a task of its own: joining and resuming take seconds in which media must go on.

use std::time::Instant;

use livekit_protocol::{
    DisconnectReason, IceServer, JoinResponse, LeaveRequest, ReconnectReason, leave_request, signal_request,
    signal_response,
};
use livekit_signaling::{CLIENT_PROTOCOL_DEFAULT, SignalClient, SignalError, SignalEvent, SignalEvents, SignalOptions};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::config::{Credentials, Resolved, RoomConfig};
use super::error::{Attempt, RoomError};
use super::token;

/// The signalling protocol that this engine speaks: two peer connections, the server offers on ours.
const PROTOCOL: u32 = 16;

/// What the engine asks of the connection.
#[derive(Debug)]
pub(super) enum Command {
    /// Send a message.
    Send(Box<signal_request::Message>),
    /// Open the connection anew and go on with the same session.
    Resume(ReconnectReason),
    /// The resumed session is in order: send what was held back.
    Settled,
    /// Join anew, with a new session.
    Rejoin,
    /// The server has moved us: from now on this is the room to join, with this token.
    Moved { room: String, token: String },
    /// Leave the room and end.
    Leave,
}

/// What the connection tells.
#[derive(Debug)]
pub(super) enum Notice {
    /// The server said something.
    Message(Box<signal_response::Message>),
    /// The connection broke.
    Lost(String),
    /// The session goes on, with these servers to help ICE.
    Resumed(Vec<IceServer>),
    /// It does not, this time; `session_gone` where it never will.
    NotResumed { session_gone: bool, problem: String },
    /// A new session.
    Joined(Box<JoinResponse>, Instant),
    /// No new session, this time.
    NotJoined(RoomError),
}

/// The engine's end of the connection.
#[derive(Debug)]
pub(super) struct Signal {
    commands: mpsc::UnboundedSender<Command>,
    notices: mpsc::UnboundedReceiver<Notice>,
    task: JoinHandle<()>,
}

impl Signal {
    /// Joins for the first time.
    pub(super) async fn join(
        config: RoomConfig,
        resolved: Resolved,
    ) -> Result<(Self, JoinResponse, Instant), RoomError> {
        let token = resolved.token.clone();
        let mut door = Door { config, resolved, at: 0, moved: None };
        let (client, events, join, at) = door.enter(&token).await?;
        let may_subscribe =
            join.participant.as_ref().and_then(|own| own.permission.as_ref()).is_none_or(|own| own.can_subscribe);
        if !may_subscribe {
            return Err(RoomError::RoomRefused {
                url: door.url().to_owned(),
                room: door.resolved.ticket.room,
                status: 0,
                problem: "the server does not let us subscribe to anything".into(),
            });
        }
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (notice_queue, notices) = mpsc::unbounded_channel();
        let line = Line { door, client, events, notices: notice_queue };
        let task = tokio::spawn(line.run(command_queue));
        Ok((Self { commands, notices, task }, join, at))
    }

    /// Asks; what comes of it is told by [`Signal::notice`].
    pub(super) fn ask(&self, command: Command) {
        // Only after a panic over there is nobody listening; `notice` tells that.
        let _ = self.commands.send(command);
    }

    /// Sends a message to the server.
    pub(super) fn send(&self, message: signal_request::Message) {
        self.ask(Command::Send(Box::new(message)));
    }

    /// What the connection tells next.
    pub(super) async fn notice(&mut self) -> Notice {
        match self.notices.recv().await {
            Some(notice) => notice,
            None => Notice::NotJoined(RoomError::Media { problem: "the signalling client ended by itself".into() }),
        }
    }

    /// Waits until the connection has ended, after [`Command::Leave`].
    pub(super) async fn ended(&mut self) {
        // A panic over there is an end, too.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How to get into the room.
struct Door {
    config: RoomConfig,
    resolved: Resolved,
    /// Which server was joined at last.
    at: usize,
    /// The token to the room that the server moved us to, until it gives a newer one.
    moved: Option<String>,
}

/// What comes of joining.
type Entered = (SignalClient, SignalEvents, JoinResponse, Instant);

impl Door {
    /// Joins at the server of last time, or at the next one that can be used.
    async fn enter(&mut self, token: &str) -> Result<Entered, RoomError> {
        let count = self.config.urls.len();
        let mut attempts = Vec::new();
        for at in (self.at..count).chain(0..self.at) {
            match self.enter_at(&self.config.urls[at], token).await {
                Ok(entered) => {
                    self.at = at;
                    if !attempts.is_empty() {
                        tracing::warn!(url = self.url(), "joined at another server");
                    }
                    return Ok(entered);
                }
                Err(error) if error.leaves_others(&attempts) => {
                    if count > 1 {
                        tracing::warn!(%error, "this server cannot be used");
                    }
                    attempts.push(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(RoomError::of_all(attempts))
    }

    fn url(&self) -> &str {
        &self.config.urls[self.at]
    }

    async fn enter_at(&self, url: &str, token: &str) -> Result<Entered, RoomError> {
        let waited = self.config.timeouts.join;
        let attempt = Attempt { url, room: &self.resolved.ticket.room, token, waited };
        let connecting = SignalClient::connect(url, token, self.options(), None);
        match tokio::time::timeout(waited, connecting).await {
            Ok(Ok((client, join, events))) => Ok((client, events, join, crate::clock::now())),
            Ok(Err(error)) => Err(attempt.explain(error)),
            Err(_) => Err(RoomError::JoinTimeout { url: url.to_owned(), after: waited }),
        }
    }

    fn options(&self) -> SignalOptions {
        let mut options = SignalOptions::default();
        options.auto_subscribe = false;
        options.adaptive_stream = false;
        options.single_peer_connection = false;
        options.connect_timeout = self.config.timeouts.join;
        options.protocol_version = PROTOCOL;
        options.client_capabilities = Vec::new();
        options.client_protocol = CLIENT_PROTOCOL_DEFAULT;
        options.sdk_options.sdk_version = Some(env!("CARGO_PKG_VERSION").to_owned());
        options
    }

    /// A token for joining again: a new one where we can make it, else the newest that the server gave us.
    fn fresh_token(&self, newest: String) -> Result<String, RoomError> {
        let ticket = &self.resolved.ticket;
        match &self.config.credentials {
            Credentials::ApiKey { key, secret } => {
                token::mint(key, secret, &ticket.room, &ticket.identity, &self.config.name)
            }
            Credentials::Token(_) => Ok(self.moved.clone().unwrap_or(newest)),
        }
    }
}

struct Line {
    door: Door,
    client: SignalClient,
    events: SignalEvents,
    notices: mpsc::UnboundedSender<Notice>,
}

impl Line {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Leave) | None => break,
                    Some(command) => self.obey(command).await,
                },
                event = self.events.recv() => {
                    let notice = self.notice_of(event);
                    self.tell(notice);
                }
            }
        }
        let leave = LeaveRequest {
            reason: DisconnectReason::ClientInitiated as i32,
            action: leave_request::Action::Disconnect as i32,
            ..Default::default()
        };
        self.client.send(signal_request::Message::Leave(leave)).await;
        self.client.close().await;
    }

    fn notice_of(&mut self, event: Option<SignalEvent>) -> Notice {
        match event {
            Some(SignalEvent::Message(message)) => {
                if matches!(*message, signal_response::Message::RefreshToken(_)) {
                    self.door.moved = None;
                }
                Notice::Message(message)
            }
            Some(SignalEvent::Close(why)) => Notice::Lost(why.into_owned()),
            // The client holds the other end for as long as it lives, and it lives as long as we do.
            None => Notice::Lost("the signalling client ended".into()),
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Send(message) => self.client.send(*message).await,
            Command::Settled => self.client.set_reconnected().await,
            Command::Resume(reason) => {
                self.hang_up().await;
                let notice = match self.client.restart(reason).await {
                    Ok(response) => Notice::Resumed(response.ice_servers),
                    Err(error) => {
                        Notice::NotResumed { session_gone: is_session_gone(&error), problem: error.to_string() }
                    }
                };
                self.tell(notice);
            }
            Command::Moved { room, token } => {
                self.door.resolved.ticket.room = room;
                self.door.moved = Some(token).filter(|token| !token.is_empty());
            }
            Command::Rejoin => {
                let notice = match self.rejoin().await {
                    Ok((join, at)) => Notice::Joined(Box::new(join), at),
                    Err(error) => Notice::NotJoined(error),
                };
                self.tell(notice);
            }
            // Handled where the loop ends.
            Command::Leave => {}
        }
    }

    /// Closes the connection and takes out of the queue that it closed: said after the next one is open, it would be
    /// taken for the end of that one.
    async fn hang_up(&mut self) {
        self.client.close().await;
        while let Ok(event) = self.events.try_recv() {
            if let SignalEvent::Message(message) = event {
                self.tell(Notice::Message(message));
            }
        }
    }

    async fn rejoin(&mut self) -> Result<(JoinResponse, Instant), RoomError> {
        let token = self.door.fresh_token(self.client.token())?;
        self.hang_up().await;
        let (client, events, join, at) = self.door.enter(&token).await?;
        self.client = client;
        self.events = events;
        Ok((join, at))
    }

    fn tell(&self, notice: Notice) {
        // Without an engine nobody needs to know; it asks us to leave, or aborts us.
        let _ = self.notices.send(notice);
    }
}

/// The server has answered that there is nothing to resume; anything else may be the network's fault.
fn is_session_gone(error: &SignalError) -> bool {
    match error {
        SignalError::LeaveRequest { action, .. } => *action != leave_request::Action::Resume,
        SignalError::Client(..) => true,
        SignalError::Handshake { status } => status.is_client_error(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_word_ends_a_session() {
        let leave = |action| SignalError::LeaveRequest { reason: DisconnectReason::StateMismatch, action };
        assert!(is_session_gone(&leave(leave_request::Action::Reconnect)));
        assert!(is_session_gone(&leave(leave_request::Action::Disconnect)));
        assert!(!is_session_gone(&leave(leave_request::Action::Resume)));
        assert!(!is_session_gone(&SignalError::Connection("refused".into())));
        assert!(!is_session_gone(&SignalError::Timeout("late".into())));
    }
}
