//! LiveKit's egress API without the service behind it: a double that takes the official messages, refuses what the service
//! refuses, and lets egresses live as long as a test wants. Before a real LiveKit server it answers for egress alone.
//!
//! The service itself needs a browser, GStreamer with its plugins, PulseAudio and Redis; the double needs a port.

mod validate;
mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use livekit_api::access_token::{AccessToken, TokenVerifier};
use livekit_protocol as proto;
use livekit_protocol::EgressStatus as Status;
use livekit_protocol::egress_info::Request;
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::clock;
use crate::store::{PutOptions, Store};

use super::TestkitError;
use super::server::LiveKitServer;
use validate::{Accepted, room_of, validate};
use wire::{Answer, Head, read_body, read_head};

pub use wire::TwirpError;

const API_KEY: &str = "egressdouble";
const API_SECRET: &str = "loopback-only-secret-of-the-egress-double";

/// How long each step of an egress takes by itself.
const STEP: Duration = Duration::from_millis(30);

/// What goes wrong with the next request of a method.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused.
    Refuse(TwirpError),
    /// It is answered, later.
    AnswerAfter(Duration),
    /// It is done, and the connection ends without an answer.
    DropAnswer,
    /// As [`DropAnswer`](Self::DropAnswer), and what was started shows in the list only after a while.
    DropAnswerAndShowAfter(Duration),
    /// The connection ends before anything is done.
    DropRequest,
    /// Something else than the server answers.
    Text(u16, String),
    /// What it starts dies once it records.
    Die(String),
    /// What it starts never gets as far as recording.
    StayStarting,
}

/// The double. Dropping it ends it.
#[derive(Debug)]
pub struct EgressDouble {
    port: u16,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    key: String,
    secret: String,
    /// The LiveKit server that answers everything else.
    upstream: Option<u16>,
    state: Mutex<State>,
    /// Counts what happened, for those who wait.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    rooms: BTreeMap<String, u32>,
    egresses: BTreeMap<String, Egress>,
    started: u64,
    asked: Vec<(String, Request)>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    store: Option<Store>,
    /// Where webhooks go: a port of this machine, and a path.
    webhooks: Option<(u16, String)>,
}

#[derive(Debug)]
struct Egress {
    info: proto::EgressInfo,
    file: Option<String>,
    hidden_until: Option<std::time::Instant>,
    dies: Option<String>,
    stays: bool,
}

impl Drop for EgressDouble {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EgressDouble {
    /// Starts one of its own, with key and rooms of its own.
    ///
    /// # Errors
    /// [`TestkitError::Io`] where no port is free.
    pub async fn start() -> Result<Self, TestkitError> {
        Self::listen(API_KEY, API_SECRET, None).await
    }

    /// Starts one before a LiveKit server: with its keys, and everything that is not about egress goes there. A room that
    /// egresses are to find has to be told all the same.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn before(server: &LiveKitServer) -> Result<Self, TestkitError> {
        let port = server.url().rsplit(':').next().and_then(|port| port.parse().ok());
        Self::listen(server.api_key(), server.api_secret(), port).await
    }

    async fn listen(key: &str, secret: &str, upstream: Option<u16>) -> Result<Self, TestkitError> {
        let failed = || TestkitError::io("a port for the egress double");
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed())?;
        let port = listener.local_addr().map_err(failed())?.port();
        let shared = Arc::new(Shared {
            key: key.to_owned(),
            secret: secret.to_owned(),
            upstream,
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let serving = shared.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = serving.clone();
                tokio::spawn(async move { shared.serve(stream).await });
            }
        });
        Ok(Self { port, shared, task: task.abort_handle() })
    }

    /// `ws://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("ws://127.0.0.1:{}", self.port)
    }

    /// The API key it knows.
    pub fn api_key(&self) -> &str {
        &self.shared.key
    }

    /// The key's secret.
    pub fn api_secret(&self) -> &str {
        &self.shared.secret
    }

    /// Has a room with so many participants.
    pub fn set_room(&self, name: &str, participants: u32) {
        self.shared.state().rooms.insert(name.to_owned(), participants);
        self.shared.changed();
    }

    /// Closes a room: its egresses end, as the service's do.
    pub fn close_room(&self, name: &str) {
        let ids: Vec<String> = {
            let mut state = self.shared.state();
            state.rooms.remove(name);
            let of_room = |egress: &&Egress| egress.info.room_name == name;
            state.egresses.values().filter(of_room).map(|egress| egress.info.egress_id.clone()).collect()
        };
        ids.iter().for_each(|id| self.shared.end(id, "Source closed"));
    }

    /// Has what egresses record appear in this store, which has no prefix.
    pub fn write_into(&self, store: Store) {
        self.shared.state().store = Some(store);
    }

    /// Sends webhooks to a path of this machine's `port`.
    pub fn send_webhooks_to(&self, port: u16, path: &str) {
        self.shared.state().webhooks = Some((port, path.to_owned()));
    }

    /// Has something go wrong with the next request of `method` (`StartRoomCompositeEgress`, `StopEgress`…).
    pub fn fault(&self, method: &str, fault: Fault) {
        self.shared.state().faults.entry(method.to_owned()).or_default().push_back(fault);
    }

    /// The requests that were started, with the methods that asked, in order.
    pub fn asked(&self) -> Vec<(String, Request)> {
        self.shared.state().asked.clone()
    }

    /// All egresses, by when they were started.
    pub fn egresses(&self) -> Vec<proto::EgressInfo> {
        self.shared.state().egresses.values().map(|egress| egress.info.clone()).collect()
    }

    /// Those that run.
    pub fn running(&self) -> Vec<proto::EgressInfo> {
        self.egresses().into_iter().filter(|info| info.status() < Status::EgressComplete).collect()
    }

    /// Ends an egress as the server's limit does.
    pub fn reach_limit(&self, id: &str) {
        self.shared.finish(id, Status::EgressLimitReached, "Session limit reached");
    }

    /// Waits until the egresses are as `wanted`, for at most half a minute.
    ///
    /// # Panics
    /// Where they never are.
    pub async fn until(&self, wanted: impl Fn(&[proto::EgressInfo]) -> bool) -> Vec<proto::EgressInfo> {
        let mut changes = self.shared.changes.subscribe();
        let deadline = clock::now() + Duration::from_secs(30);
        loop {
            changes.mark_unchanged();
            let all = self.egresses();
            if wanted(&all) {
                return all;
            }
            let changed = tokio::time::timeout_at(deadline.into(), changes.changed()).await;
            assert!(changed.is_ok(), "never so: {all:#?}");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Answers requests until the connection ends or makes no sense.
    async fn serve(self: Arc<Self>, stream: TcpStream) -> Option<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let head = read_head(&mut stream).await?;
            let Some(method) = head.path.strip_prefix("/twirp/livekit.Egress/").map(str::to_owned) else {
                if let Some(port) = self.upstream {
                    return forward(stream, &head, port).await;
                }
                let answer = self.other(&head, &mut stream).await?;
                stream.write_all(&answer.bytes()).await.ok()?;
                continue;
            };
            let body = read_body(&head, &mut stream).await?;
            let fault = self.state().faults.get_mut(&method).and_then(VecDeque::pop_front);
            let answer = match &fault {
                Some(Fault::DropRequest) => return None,
                Some(Fault::Refuse(error)) => error.answer(),
                Some(Fault::Text(status, text)) => Answer::text(*status, text),
                _ => self.answer(&head, &method, &body, fault.as_ref()),
            };
            match fault {
                Some(Fault::DropAnswer | Fault::DropAnswerAndShowAfter(_)) => return None,
                Some(Fault::AnswerAfter(late)) => tokio::time::sleep(late).await,
                _ => {}
            }
            stream.write_all(&answer.bytes()).await.ok()?;
        }
    }

    /// What the server answers to everything else, as far as anybody asks.
    async fn other(&self, head: &Head, stream: &mut BufReader<TcpStream>) -> Option<Answer> {
        if head.path != "/twirp/livekit.RoomService/ListRooms" {
            return Some(Answer::text(404, "404 page not found\n"));
        }
        let body = read_body(head, stream).await?;
        Some(match self.grants(head).map(|grants| grants.room_list) {
            Err(answer) => answer,
            Ok(false) => TwirpError::new("unauthenticated", "permissions denied").answer(),
            Ok(true) => {
                let asked = proto::ListRoomsRequest::decode(&body[..]).unwrap_or_default().names;
                let known = self.state().rooms.clone();
                let is_asked = |name: &String| asked.is_empty() || asked.contains(name);
                let room = |(name, count): (String, u32)| proto::Room {
                    sid: sid_of(&name),
                    name,
                    num_participants: count,
                    ..Default::default()
                };
                let rooms = known.into_iter().filter(|(name, _)| is_asked(name)).map(room).collect();
                Answer::message(&proto::ListRoomsResponse { rooms })
            }
        })
    }

    fn grants(&self, head: &Head) -> Result<livekit_api::access_token::VideoGrants, Answer> {
        let Some(token) = head.header("authorization").strip_prefix("Bearer ") else {
            return Err(Answer::text(401, "authorization header must start with Bearer"));
        };
        let claims = TokenVerifier::with_api_key(&self.key, &self.secret).verify(token);
        claims.map(|claims| claims.video).map_err(|_| Answer::text(401, "invalid API key: unknown"))
    }

    fn answer(self: &Arc<Self>, head: &Head, method: &str, body: &[u8], fault: Option<&Fault>) -> Answer {
        if head.method != "POST" || head.header("content-type") != "application/protobuf" {
            return TwirpError::new("bad_route", format!("unsupported {} {}", head.method, head.path)).answer();
        }
        match self.grants(head) {
            Err(answer) => return answer,
            Ok(grants) if !grants.room_record => {
                return TwirpError::new("unauthenticated", "permissions denied").answer();
            }
            Ok(_) => {}
        }
        let answered = match method {
            "StartRoomCompositeEgress" => decoded(body).map(Request::RoomComposite),
            "StartWebEgress" => decoded(body).map(Request::Web),
            "StartParticipantEgress" => decoded(body).map(Request::Participant),
            "StartTrackCompositeEgress" => decoded(body).map(Request::TrackComposite),
            "StartTrackEgress" => decoded(body).map(Request::Track),
            "StopEgress" => return or_error(decoded(body).and_then(|asked| self.stop(&asked))),
            "ListEgress" => return or_error(decoded(body).map(|asked| self.list(&asked))),
            _ => Err(TwirpError::new("bad_route", format!("no handler for path {:?}", head.path))),
        };
        or_error(answered.and_then(|request| self.begin(method, request, fault)))
    }

    fn begin(
        self: &Arc<Self>,
        method: &str,
        request: Request,
        fault: Option<&Fault>,
    ) -> Result<proto::EgressInfo, TwirpError> {
        let mut state = self.state();
        let room = room_of(&request).to_owned();
        if !room.is_empty() && !state.rooms.contains_key(&room) {
            return Err(TwirpError::new("not_found", "twirp error unknown: requested room does not exist"));
        }
        // The server's words before those of the service.
        let relayed = |error: TwirpError| TwirpError::new(error.code, format!("twirp error unknown: {}", error.msg));
        let Accepted { room, file, is_web } = validate(&request).map_err(relayed)?;
        state.asked.push((method.to_owned(), request.clone()));
        state.started += 1;
        let (id, now) = (format!("EG_double{:05}", state.started), nanos());
        let mut request = request;
        redact(&mut request);
        let source = if is_web { proto::EgressSourceType::Web } else { proto::EgressSourceType::Sdk };
        let files = file.iter().map(|file| proto::FileInfo { filename: file.clone(), ..Default::default() });
        let info = proto::EgressInfo {
            egress_id: id.clone(),
            room_id: if room.is_empty() { String::new() } else { sid_of(&room) },
            room_name: room,
            source_type: source.into(),
            status: Status::EgressStarting.into(),
            started_at: now,
            updated_at: now,
            file_results: files.collect(),
            request: Some(request),
            ..Default::default()
        };
        let hidden_until = match fault {
            Some(Fault::DropAnswerAndShowAfter(late)) => Some(clock::now() + *late),
            _ => None,
        };
        let dies = match fault {
            Some(Fault::Die(error)) => Some(error.clone()),
            _ => None,
        };
        let stays = matches!(fault, Some(Fault::StayStarting));
        state.egresses.insert(id.clone(), Egress { info: info.clone(), file, hidden_until, dies, stays });
        drop(state);
        self.changed();
        self.tell("egress_started", &info);
        let shared = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(STEP).await;
            shared.activate(&id);
        });
        Ok(info)
    }

    /// It records, unless it was stopped before.
    fn activate(self: &Arc<Self>, id: &str) {
        let dies = {
            let mut state = self.state();
            let Some(egress) = state.egresses.get_mut(id) else { return };
            if egress.stays || egress.info.status() != Status::EgressStarting {
                return;
            }
            let now = nanos();
            egress.info.set_status(Status::EgressActive);
            egress.info.updated_at = now;
            egress.info.file_results.iter_mut().for_each(|file| file.started_at = now);
            egress.dies.clone()
        };
        self.changed();
        self.tell_of("egress_updated", id);
        if let Some(error) = dies {
            self.fail(id, &error);
        }
    }

    fn stop(self: &Arc<Self>, asked: &proto::StopEgressRequest) -> Result<proto::EgressInfo, TwirpError> {
        let status = {
            let state = self.state();
            let known = state.egresses.get(&asked.egress_id);
            known
                .ok_or_else(|| TwirpError::new("not_found", "twirp error unknown: egress does not exist"))?
                .info
                .status()
        };
        if !matches!(status, Status::EgressStarting | Status::EgressActive) {
            let msg = format!("egress with status {} cannot be stopped", status.as_str_name());
            return Err(TwirpError::new("failed_precondition", msg));
        }
        self.end(&asked.egress_id, "StopEgress API");
        Ok(self.state().egresses[&asked.egress_id].info.clone())
    }

    /// Ends one that starts or records.
    fn end(self: &Arc<Self>, id: &str, reason: &str) {
        {
            let mut state = self.state();
            let Some(egress) = state.egresses.get_mut(id) else { return };
            match egress.info.status() {
                Status::EgressStarting => {
                    egress.info.set_status(Status::EgressAborted);
                    egress.info.error = "Stop called before pipeline could start".into();
                    egress.info.error_code = 412;
                    egress.info.ended_at = nanos();
                }
                Status::EgressActive => egress.info.set_status(Status::EgressEnding),
                _ => return,
            }
            egress.info.updated_at = nanos();
            egress.info.details = format!("End reason: {reason}");
        }
        self.changed();
        let ending = self.state().egresses[id].info.status() == Status::EgressEnding;
        self.tell_of(if ending { "egress_updated" } else { "egress_ended" }, id);
        if ending {
            self.finish(id, Status::EgressComplete, reason);
        }
    }

    /// Writes the file, and is done.
    fn finish(self: &Arc<Self>, id: &str, status: Status, reason: &str) {
        let (shared, id, reason) = (self.clone(), id.to_owned(), reason.to_owned());
        tokio::spawn(async move {
            tokio::time::sleep(STEP).await;
            let (store, file) = {
                let state = shared.state();
                let Some(egress) = state.egresses.get(&id) else { return };
                (state.store.clone(), egress.file.clone())
            };
            let body = Bytes::from(format!("what {id} recorded"));
            let mut location = String::new();
            if let (Some(store), Some(file)) = (&store, &file) {
                if let Err(error) = store.put(file, body.clone(), &PutOptions::default()).await {
                    return shared.fail(&id, &format!("upload failed: {error}"));
                }
                location = store.location(file);
            }
            {
                let mut state = shared.state();
                let Some(egress) = state.egresses.get_mut(&id) else { return };
                let now = nanos();
                egress.info.set_status(status);
                (egress.info.ended_at, egress.info.updated_at) = (now, now);
                egress.info.details = format!("End reason: {reason}");
                if status == Status::EgressLimitReached {
                    (egress.info.error, egress.info.error_code) = ("Session limit reached".into(), 413);
                }
                for file in &mut egress.info.file_results {
                    file.ended_at = now;
                    file.duration = now - file.started_at;
                    file.size = body.len() as i64;
                    file.location.clone_from(&location);
                }
            }
            shared.changed();
            shared.tell_of("egress_ended", &id);
        });
    }

    fn fail(self: &Arc<Self>, id: &str, error: &str) {
        if let Some(egress) = self.state().egresses.get_mut(id) {
            let now = nanos();
            egress.info.set_status(Status::EgressFailed);
            (egress.info.ended_at, egress.info.updated_at) = (now, now);
            egress.info.error = error.to_owned();
            egress.info.error_code = 500;
        }
        self.changed();
        self.tell_of("egress_ended", id);
    }

    fn list(&self, asked: &proto::ListEgressRequest) -> proto::ListEgressResponse {
        let now = clock::now();
        let state = self.state();
        let shown = |egress: &&Egress| {
            let info = &egress.info;
            egress.hidden_until.is_none_or(|until| now >= until)
                && (asked.egress_id.is_empty() || info.egress_id == asked.egress_id)
                && (asked.room_name.is_empty() || info.room_name == asked.room_name)
                && (!asked.active || info.status() < Status::EgressComplete)
        };
        let items = state.egresses.values().filter(shown).map(|egress| egress.info.clone()).collect();
        proto::ListEgressResponse { items, next_page_token: None }
    }

    fn tell_of(self: &Arc<Self>, event: &str, id: &str) {
        let info = self.state().egresses.get(id).map(|egress| egress.info.clone());
        if let Some(info) = info {
            self.tell(event, &info);
        }
    }

    /// Sends a webhook, signed as the server signs.
    fn tell(self: &Arc<Self>, event: &str, info: &proto::EgressInfo) {
        let Some((port, path)) = self.state().webhooks.clone() else { return };
        let event = proto::WebhookEvent {
            event: event.to_owned(),
            id: format!("EV_{}", nanos()),
            created_at: nanos() / 1_000_000_000,
            egress_info: Some(info.clone()),
            ..Default::default()
        };
        let (body, token) = self.signed(&event);
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
            let length = body.len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: {token}\r\n\
                 content-type: application/webhook+json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(&[head.as_bytes(), &body].concat()).await.ok()?;
            // Whoever closes first may cut off what the other still reads.
            stream.read_to_end(&mut Vec::new()).await.ok()
        });
    }

    fn signed(&self, event: &proto::WebhookEvent) -> (Vec<u8>, String) {
        let body = serde_json::to_vec(event).unwrap_or_default();
        let hash = BASE64_STANDARD.encode(Sha256::digest(&body));
        let token = AccessToken::with_api_key(&self.key, &self.secret).with_sha256(&hash).to_jwt();
        (body, token.unwrap_or_default())
    }
}

/// Hands a connection on to the LiveKit server.
async fn forward(mut stream: BufReader<TcpStream>, head: &Head, port: u16) -> Option<()> {
    let mut server = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    server.write_all(&head.raw).await.ok()?;
    copy_bidirectional(&mut stream, &mut server).await.ok()?;
    Some(())
}

fn decoded<M: Message + Default>(body: &[u8]) -> Result<M, TwirpError> {
    M::decode(body).map_err(|_| TwirpError::new("malformed", "the protobuf request could not be decoded"))
}

fn or_error(answered: Result<impl Message, TwirpError>) -> Answer {
    match answered {
        Ok(message) => Answer::message(&message),
        Err(error) => error.answer(),
    }
}

/// Takes secrets out of what the server shows of a request.
fn redact(request: &mut Request) {
    let files = match request {
        Request::RoomComposite(request) => &mut request.file_outputs,
        Request::Web(request) => &mut request.file_outputs,
        Request::Participant(request) => &mut request.file_outputs,
        Request::TrackComposite(request) => &mut request.file_outputs,
        Request::Track(_) | Request::Egress(_) | Request::Replay(_) => return,
    };
    for file in files {
        if let Some(proto::encoded_file_output::Output::S3(s3)) = &mut file.output {
            (s3.access_key, s3.secret) = ("{access_key}".into(), "{secret}".into());
        }
    }
}

fn sid_of(room: &str) -> String {
    format!("RM_{room}")
}

fn nanos() -> i64 {
    i64::try_from(clock::wall().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}
