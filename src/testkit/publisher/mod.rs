//! A participant that speaks: joins a real LiveKit server over signalling and WebRTC, publishes sound, and keeps account
//! of every packet it sends.
//!
//! ```no_run
//! # async fn example() -> Result<(), callreel::testkit::TestkitError> {
//! use std::time::Duration;
//!
//! use callreel::testkit::audio::generate;
//! use callreel::testkit::{LiveKitServer, Publisher, PublisherConfig, TrackOptions};
//!
//! let server = LiveKitServer::start().await?;
//! let alice = Publisher::join(PublisherConfig::on(&server, "room", "alice")).await?;
//! let voice = alice.publish(generate::speech(1, Duration::from_secs(3)), TrackOptions::default()).await?;
//! voice.said().await?;
//! println!("{} packets sent", voice.sent().len());
//! alice.leave().await
//! # }
//! ```
//!
//! A publisher runs on a thread of its own, so that a busy test does not disturb its pace. As with a microphone, a frame
//! is sent when its last sample has been spoken: frame `k` of a track, counted from 0, leaves at `start + (k + 1) · frame`,
//! by absolute deadlines.

mod engine;
mod source;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use livekit_api::access_token::{AccessToken, VideoGrants};
use livekit_protocol::{DataPacket, data_packet};
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use super::{Audio, LiveKitServer, TestkitError};
use crate::call::{Codec, ParticipantKind};
use crate::e2ee::FrameSealer;
use crate::room::ensure_crypto_provider;
use crate::time::{Ppm, SampleCount};
use engine::{Command, Engine};

/// Who joins which room where.
#[derive(Clone)]
pub struct PublisherConfig {
    url: String,
    api_key: String,
    api_secret: String,
    room: String,
    identity: String,
    name: String,
    kind: ParticipantKind,
    attributes: BTreeMap<String, String>,
    runtime: Option<Handle>,
}

impl PublisherConfig {
    /// A standard participant of a room on the server at `url` (`ws://` or `wss://`).
    pub fn new(url: &str, api_key: &str, api_secret: &str, room: &str, identity: &str) -> Self {
        Self {
            url: url.to_owned(),
            api_key: api_key.to_owned(),
            api_secret: api_secret.to_owned(),
            room: room.to_owned(),
            identity: identity.to_owned(),
            name: String::new(),
            kind: ParticipantKind::Standard,
            attributes: BTreeMap::new(),
            runtime: None,
        }
    }

    /// A standard participant of a room on a server that the testkit runs.
    pub fn on(server: &LiveKitServer, room: &str, identity: &str) -> Self {
        Self::new(&server.url(), server.api_key(), server.api_secret(), room, identity)
    }

    /// The name shown to people. Default none.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// What kind of participant the token claims it is. Default a standard one.
    pub fn kind(mut self, kind: ParticipantKind) -> Self {
        self.kind = kind;
        self
    }

    /// One attribute, `sip.callStatus` say. Default none.
    pub fn attribute(mut self, key: &str, value: &str) -> Self {
        self.attributes.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Runs the publisher as a task of this runtime, which many may share. Default: on a thread of its own.
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// The join token: may publish, may not subscribe, so that the server sends this participant no media.
    fn token(&self) -> Result<String, TestkitError> {
        let grants = VideoGrants {
            room_join: true,
            room: self.room.clone(),
            can_publish: Some(true),
            can_publish_data: Some(true),
            can_subscribe: Some(false),
            ..Default::default()
        };
        let kind = match self.kind {
            ParticipantKind::Standard => "standard",
            ParticipantKind::Sip => "sip",
            ParticipantKind::Agent => "agent",
            ParticipantKind::Ingress => "ingress",
            ParticipantKind::Egress => "egress",
            ParticipantKind::Connector => "connector",
        };
        AccessToken::with_api_key(&self.api_key, &self.api_secret)
            .with_identity(&self.identity)
            .with_name(&self.name)
            .with_kind(kind)
            .with_attributes(&self.attributes)
            .with_grants(grants)
            .to_jwt()
            .map_err(|error| TestkitError::Publisher(format!("no token for {}: {error}", self.identity)))
    }
}

/// What a publisher does when its sound has come to an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterEnd {
    /// It sends silence, as an open microphone does.
    #[default]
    Silence,
    /// It sends nothing more; the track stays published.
    Nothing,
}

/// What a muted track sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MutedSends {
    /// Nothing: the microphone is closed.
    #[default]
    Nothing,
    /// Silence, as clients do that mute by feeding their encoder zeros.
    Silence,
}

/// How a track is published.
#[derive(Clone, Debug)]
pub struct TrackOptions {
    name: String,
    screen_share: bool,
    codec: Codec,
    bitrate: u32,
    dtx: bool,
    fec: Option<u8>,
    frame: Duration,
    looped: bool,
    lead_in: Duration,
    start: Option<Instant>,
    mutes: Vec<Range<Duration>>,
    muted_sends: MutedSends,
    after_end: AfterEnd,
    skew: Ppm,
    first_seq: Option<u16>,
    first_timestamp: Option<u32>,
    sealer: Option<FrameSealer>,
}

impl Default for TrackOptions {
    fn default() -> Self {
        Self {
            name: "microphone".to_owned(),
            screen_share: false,
            codec: Codec::Opus,
            bitrate: 32_000,
            dtx: false,
            fec: None,
            frame: Duration::from_millis(20),
            looped: false,
            lead_in: Duration::ZERO,
            start: None,
            mutes: Vec::new(),
            muted_sends: MutedSends::default(),
            after_end: AfterEnd::default(),
            skew: Ppm(0.0),
            first_seq: None,
            first_timestamp: None,
            sealer: None,
        }
    }
}

impl TrackOptions {
    /// The track's name. Default `microphone`.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Announces the track as the sound of a shared screen instead of a microphone.
    pub fn screen_share(mut self) -> Self {
        self.screen_share = true;
        self
    }

    /// The codec. Default Opus; the G.711 codecs send the first channel at 8 kHz.
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// Opus bits a second. Default 32 000.
    pub fn bitrate(mut self, bits_per_second: u32) -> Self {
        self.bitrate = bits_per_second;
        self
    }

    /// Opus discontinuous transmission: silence is not sent but for a packet every 400 ms. Default off.
    pub fn dtx(mut self, on: bool) -> Self {
        self.dtx = on;
        self
    }

    /// Opus in-band FEC (RFC 6716 §2.1.7), made for this expected loss in percent. Default none.
    pub fn fec(mut self, expected_loss_percent: u8) -> Self {
        self.fec = Some(expected_loss_percent);
        self
    }

    /// How much sound a packet holds: 10, 20, 40 or 60 ms. Default 20 ms.
    pub fn frame(mut self, duration: Duration) -> Self {
        self.frame = duration;
        self
    }

    /// Begins again when the sound is at its end. Default no.
    pub fn looped(mut self, on: bool) -> Self {
        self.looped = on;
        self
    }

    /// Silence that is sent before the sound, once. Default none.
    pub fn lead_in(mut self, duration: Duration) -> Self {
        self.lead_in = duration;
        self
    }

    /// When the track's first sample is spoken. Default as soon as the track is negotiated.
    pub fn start(mut self, at: Instant) -> Self {
        self.start = Some(at);
        self
    }

    /// Mutes the track during this span, counted from its first sample; may be called again for more spans. What the
    /// sound holds there is not said.
    pub fn mute_during(mut self, span: Range<Duration>) -> Self {
        self.mutes.push(span);
        self
    }

    /// What is sent while muted. Default nothing.
    pub fn muted_sends(mut self, what: MutedSends) -> Self {
        self.muted_sends = what;
        self
    }

    /// What is sent after the end of the sound. Default silence.
    pub fn after_end(mut self, what: AfterEnd) -> Self {
        self.after_end = what;
        self
    }

    /// How much faster this publisher's sound clock runs than the machine's. Default not at all.
    pub fn skew(mut self, skew: Ppm) -> Self {
        self.skew = skew;
        self
    }

    /// Encrypts every frame from end to end, and announces that. Default not.
    pub fn sealed(mut self, sealer: FrameSealer) -> Self {
        self.sealer = Some(sealer);
        self
    }

    /// The first RTP sequence number and timestamp. Default random.
    pub fn first(mut self, seq: u16, timestamp: u32) -> Self {
        self.first_seq = Some(seq);
        self.first_timestamp = Some(timestamp);
        self
    }
}

/// One packet as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentPacket {
    /// The RTP sequence number.
    pub seq: u16,
    /// The RTP timestamp.
    pub timestamp: u32,
    /// Bytes of payload.
    pub payload_len: usize,
    /// Where in the track the packet's first sample lies, at 48 kHz, counted from the track's first sample.
    pub position: SampleCount,
    /// The moment before it was handed to the socket.
    pub at: Instant,
}

/// The packets of one track, in the order they were sent. Clones share one log.
#[derive(Clone, Debug, Default)]
pub struct SentLog(Arc<Mutex<Vec<SentPacket>>>);

impl SentLog {
    /// All packets so far.
    pub fn packets(&self) -> Vec<SentPacket> {
        self.lock().clone()
    }

    /// The first packet, once it is sent.
    pub fn first(&self) -> Option<SentPacket> {
        self.lock().first().copied()
    }

    /// The last packet so far.
    pub fn last(&self) -> Option<SentPacket> {
        self.lock().last().copied()
    }

    /// How many packets were sent.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no packet was sent yet.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn push(&self, packet: SentPacket) {
        self.lock().push(packet);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<SentPacket>> {
        // A reader that panicked has left the log whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A participant in the room. Dropping it is a [`crash`](Self::crash).
#[derive(Debug)]
pub struct Publisher {
    identity: String,
    sid: String,
    commands: mpsc::UnboundedSender<Command>,
    ended: watch::Receiver<Option<String>>,
}

impl Publisher {
    /// Joins, and returns once media could flow: ICE and DTLS are up, and others see this participant.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] with the server's answer where it refuses, or after 15 s without one.
    pub async fn join(config: PublisherConfig) -> Result<Self, TestkitError> {
        ensure_crypto_provider();
        let token = config.token()?;
        let identity = config.identity.clone();
        let (commands, receiver) = mpsc::unbounded_channel();
        let (ended_sender, ended) = watch::channel(None);
        let (joined_sender, joined) = oneshot::channel();
        let shared = config.runtime.clone();
        let run = async move {
            match Engine::join(&config, &token, receiver).await {
                Ok(engine) => {
                    let sid = engine.sid().to_owned();
                    // Nobody waits where the join was given up; the closed command channel then ends the run.
                    let _ = joined_sender.send(Ok(sid));
                    engine.run().await
                }
                Err(error) => {
                    let reason = error.to_string();
                    let _ = joined_sender.send(Err(error));
                    reason
                }
            }
        };
        match shared {
            Some(runtime) => {
                runtime.spawn(async move {
                    let reason = run.await;
                    let _ = ended_sender.send(Some(reason));
                });
            }
            None => {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .map_err(TestkitError::io("a publisher's runtime"))?;
                std::thread::Builder::new()
                    .name(format!("publisher {identity}"))
                    .spawn(move || {
                        let reason = runtime.block_on(run);
                        // Sockets first: once this says that the publisher has ended, nothing of it is left.
                        runtime.shutdown_background();
                        let _ = ended_sender.send(Some(reason));
                    })
                    .map_err(TestkitError::io("a publisher's thread"))?;
            }
        }
        let sid =
            joined.await.map_err(|_| TestkitError::Publisher(format!("{identity}'s thread ended while joining")))??;
        Ok(Self { identity, sid, commands, ended })
    }

    /// Publishes a sound, and returns once the track is negotiated.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the server refuses the track or the participant is gone;
    /// [`TestkitError::Audio`] where the options fit no encoder.
    pub async fn publish(&self, audio: impl Into<Arc<Audio>>, options: TrackOptions) -> Result<Voice, TestkitError> {
        let source = source::Source::new(&audio.into(), &options)?;
        self.publish_source(source, options).await
    }

    /// Publishes packets of 20 ms that were encoded before, `None` where nothing is sent. They go round, beginning with
    /// number `from`. What the options say about encoding does not matter.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_prepared(
        &self,
        packets: Arc<[Option<Bytes>]>,
        from: usize,
        options: TrackOptions,
    ) -> Result<Voice, TestkitError> {
        let source = source::Source::prepared(packets, from, &options);
        self.publish_source(source, options).await
    }

    async fn publish_source(&self, source: source::Source, options: TrackOptions) -> Result<Voice, TestkitError> {
        let log = SentLog::default();
        let (said_sender, said) = watch::channel(false);
        let (sid, start) = self
            .ask(|reply| Command::Publish {
                options: Box::new(options),
                source: Box::new(source),
                log: log.clone(),
                said: said_sender,
                reply,
            })
            .await?;
        Ok(Voice { sid, start, log, said, commands: self.commands.clone() })
    }

    /// Publishes a camera track that carries a few bytes ten times a second: enough for a server to forward, nothing a
    /// decoder could show. Returns its id (`TR_…`).
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish).
    pub async fn publish_video(&self) -> Result<String, TestkitError> {
        self.ask(|reply| Command::PublishVideo { reply }).await.map(|(sid, _)| sid)
    }

    /// Sends a message to everybody in the room, over the reliable channel.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the channel does not take it or the participant is gone.
    pub async fn send(&self, message: data_packet::Value) -> Result<(), TestkitError> {
        self.send_packet(DataPacket { value: Some(message), ..Default::default() }).await
    }

    /// Sends a data packet as it is.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub async fn send_packet(&self, packet: DataPacket) -> Result<(), TestkitError> {
        self.ask(|reply| Command::Send { packet: packet.encode_to_vec(), reply }).await
    }

    /// Leaves as a client does that hangs up: the server is told.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the participant was gone already.
    pub async fn leave(mut self) -> Result<(), TestkitError> {
        self.ask(|reply| Command::Leave { reply }).await?;
        self.end().await;
        Ok(())
    }

    /// Cuts its network for media, or mends it; it goes on speaking meanwhile. Its signalling stays.
    ///
    /// # Errors
    /// [`TestkitError::Publisher`] where the participant was gone already.
    pub async fn cut(&self, cut: bool) -> Result<(), TestkitError> {
        self.ask(|reply| Command::Cut { cut, reply }).await
    }

    /// Vanishes: sockets close, nobody is told.
    pub async fn crash(mut self) {
        // Fails only where the participant is gone already.
        let _ = self.commands.send(Command::Crash);
        self.end().await;
    }

    /// Waits until the publisher has ended for any reason, which it tells: thrown out, room deleted, server gone…
    pub async fn ended(&mut self) -> String {
        self.end().await
    }

    /// Who it is.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// The server's id of this session (`PA_…`).
    pub fn sid(&self) -> &str {
        &self.sid
    }

    async fn end(&mut self) -> String {
        match self.ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its thread ended".to_owned(),
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, TestkitError>>) -> Command,
    ) -> Result<T, TestkitError> {
        ask(&self.commands, command).await
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Crash);
    }
}

/// A published track that speaks. Dropping it changes nothing.
#[derive(Debug)]
pub struct Voice {
    sid: String,
    start: Instant,
    log: SentLog,
    said: watch::Receiver<bool>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Voice {
    /// The server's id of the track (`TR_…`).
    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// When the track's first sample is spoken. Its packet is sent when the whole frame has been.
    pub fn start(&self) -> Instant {
        self.start
    }

    /// What was sent so far.
    pub fn sent(&self) -> &SentLog {
        &self.log
    }

    /// Waits until the sound has been said to its end.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the track or its participant was gone before.
    pub async fn said(&self) -> Result<(), TestkitError> {
        let mut said = self.said.clone();
        let gone = |_| TestkitError::Publisher(format!("track {} ended before its sound", self.sid));
        said.wait_for(|said| *said).await.map(drop).map_err(gone)
    }

    /// Waits until `count` packets have been sent.
    ///
    /// # Errors
    ///
    /// As [`said`](Self::said).
    pub async fn sent_at_least(&self, count: usize) -> Result<(), TestkitError> {
        let (sender, receiver) = oneshot::channel();
        let watch = Command::Watch { sid: self.sid.clone(), count, reply: sender };
        let gone = || TestkitError::Publisher(format!("track {} ended before {count} packets", self.sid));
        self.commands.send(watch).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }

    /// Mutes or unmutes; the server is told, and what the sound holds meanwhile is not said.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the track or its participant is gone.
    pub async fn mute(&self, muted: bool) -> Result<(), TestkitError> {
        ask(&self.commands, |reply| Command::Mute { sid: self.sid.clone(), muted, reply }).await
    }

    /// Turns to the next key, where the track is [sealed](TrackOptions::sealed).
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the track or its participant is gone.
    pub async fn ratchet(&self) -> Result<(), TestkitError> {
        ask(&self.commands, |reply| Command::Ratchet { sid: self.sid.clone(), reply }).await
    }

    /// Takes the track away, and returns once the server agrees. Publish again for another one.
    ///
    /// # Errors
    ///
    /// [`TestkitError::Publisher`] where the track or its participant is gone.
    pub async fn unpublish(self) -> Result<(), TestkitError> {
        ask(&self.commands, |reply| Command::Unpublish { sid: self.sid.clone(), reply }).await
    }
}

async fn ask<T>(
    commands: &mpsc::UnboundedSender<Command>,
    command: impl FnOnce(oneshot::Sender<Result<T, TestkitError>>) -> Command,
) -> Result<T, TestkitError> {
    let gone = || TestkitError::Publisher("the publisher has ended".to_owned());
    let (sender, receiver) = oneshot::channel();
    commands.send(command(sender)).map_err(|_| gone())?;
    receiver.await.map_err(|_| gone())?
}
