use std::fmt;
use std::time::Duration;

use livekit_api::services::egress as api;
use livekit_api::services::room::RoomClient;
use livekit_protocol as proto;
use time::OffsetDateTime;

use super::request::{Destination, EgressRequest, Media, Source};
use super::state::EgressState;
use super::{EgressError, FilePlace, Pace};
use crate::clock;
use crate::room::{Credentials, ensure_crypto_provider};

/// How long the answer to a start is waited for: a server that finds no worker says so after 20 to 30 seconds.
const STARTS_WITHIN: Duration = Duration::from_secs(45);

/// How long every other answer is waited for.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// How long an egress whose answer was lost may take to appear in the server's list.
const APPEARS_WITHIN: Duration = Duration::from_secs(15);

/// By how much the service's clock may be behind ours, where one that has ended is told from its namesakes.
const SKEW: Duration = Duration::from_secs(60);

/// How often what can be asked again without harm is asked, at most.
const ATTEMPTS: u32 = 4;

/// Asks a LiveKit server for egresses. Shows no secret.
pub struct EgressClient {
    /// For starts alone, which take a server longer.
    starting: api::EgressClient,
    egress: api::EgressClient,
    rooms: RoomClient,
    appears_within: Duration,
}

impl fmt::Debug for EgressClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressClient").finish_non_exhaustive()
    }
}

/// A room, as the server lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The server's id.
    pub sid: String,
    /// How many participants are in it; agents, recorders and hidden ones do not count.
    pub participants: usize,
}

impl EgressClient {
    /// Asks the server at `url` (`ws`, `wss`, `http` or `https`). A token has to allow `roomRecord`.
    pub fn new(url: &str, credentials: &Credentials) -> Self {
        Self::with_timeouts(url, credentials, STARTS_WITHIN, APPEARS_WITHIN)
    }

    /// As [`new`](Self::new); the answer to a start is waited for so long (45 s by default: a server that finds no worker
    /// says so after 20 to 30), and an egress whose answer was lost is looked for so long (15 s by default).
    pub fn with_timeouts(
        url: &str,
        credentials: &Credentials,
        starts_within: Duration,
        appears_within: Duration,
    ) -> Self {
        ensure_crypto_provider();
        let egress = || match credentials {
            Credentials::ApiKey { key, secret } => api::EgressClient::with_api_key(url, key, secret),
            Credentials::Token(token) => api::EgressClient::with_token(url, token),
        };
        let rooms = match credentials {
            Credentials::ApiKey { key, secret } => RoomClient::with_api_key(url, key, secret),
            Credentials::Token(token) => RoomClient::with_token(url, token),
        };
        Self {
            // A request that is sent to another region because the first did not answer may start two.
            starting: egress().with_failover(false).with_request_timeout(starts_within),
            egress: egress().with_request_timeout(ANSWERS_WITHIN),
            rooms: rooms.with_request_timeout(ANSWERS_WITHIN),
            appears_within,
        }
    }

    /// Starts an egress with one request. Where the answer is lost there may be one all the same:
    /// [`start_once`](Self::start_once) looks.
    ///
    /// # Errors
    /// [`EgressError`], whose [`may_have_started`](EgressError::may_have_started) says whether there may be one.
    pub async fn start(&self, request: &EgressRequest) -> Result<EgressState, EgressError> {
        request.validate()?;
        let info = match (&request.source, &request.to) {
            (Source::Room { room, layout, base_url, media, mixing }, Destination::File(file)) => {
                let options = api::RoomCompositeOptions {
                    layout: layout.clone().unwrap_or_default(),
                    encoding: request.encoding(),
                    audio_only: *media == Media::Audio,
                    video_only: *media == Media::Video,
                    custom_base_url: base_url.clone().unwrap_or_default(),
                    audio_mixing: mixing.api(),
                };
                self.starting
                    .start_room_composite_egress(room, vec![api::EgressOutput::File(file.encoded())], options)
                    .await
            }
            (Source::Participant { room, identity, screen_share }, Destination::File(file)) => {
                let options =
                    api::ParticipantEgressOptions { screenshare: *screen_share, encoding: request.encoding() };
                let outputs = vec![api::EgressOutput::File(file.encoded())];
                self.starting.start_participant_egress(room, identity, outputs, options).await
            }
            (Source::Tracks { room, audio, video }, Destination::File(file)) => {
                let options = api::TrackCompositeOptions {
                    encoding: request.encoding(),
                    audio_track_id: audio.clone().unwrap_or_default(),
                    video_track_id: video.clone().unwrap_or_default(),
                };
                let outputs = vec![api::EgressOutput::File(file.encoded())];
                self.starting.start_track_composite_egress(room, outputs, options).await
            }
            (Source::Track { room, track }, to) => {
                let output = match to {
                    Destination::File(file) => api::TrackEgressOutput::File(Box::new(file.direct())),
                    Destination::WebSocket(url) => api::TrackEgressOutput::WebSocket(url.clone()),
                };
                self.starting.start_track_egress(room, output, track).await
            }
            (Source::Web { url, media, await_start_signal }, Destination::File(file)) => {
                let options = api::WebOptions {
                    encoding: request.encoding(),
                    audio_only: *media == Media::Audio,
                    video_only: *media == Media::Video,
                    await_start_signal: *await_start_signal,
                };
                self.starting.start_web_egress(url, vec![api::EgressOutput::File(file.encoded())], options).await
            }
            (_, Destination::WebSocket(_)) => {
                return Err(EgressError::Invalid("only a single track goes to a WebSocket".into()));
            }
        };
        Ok(EgressState::of(&info?))
    }

    /// Starts an egress, and never two: one that runs already with this path is taken for it, and where the answer is lost the
    /// server's list is watched for one, as long as it may take to appear there. Should several run, all but the first are
    /// stopped.
    ///
    /// # Errors
    /// As [`start`](Self::start), but an error that may have started one now means that none has appeared, or that the list
    /// could not be read either.
    pub async fn start_once(&self, request: &EgressRequest) -> Result<EgressState, EgressError> {
        request.validate()?;
        let Some(place) = &request.place() else { return self.start(request).await };
        let (room, asked_at) = (request.source.room_name(), clock::wall());
        // A server without any egress says so to this at once.
        if let Some(runs) = self.find(room, place, asked_at).await?.filter(|state| !state.status.is_over()) {
            tracing::warn!(egress = %runs.id, "one for this file runs already");
            return Ok(runs);
        }
        let lost = match self.start(request).await {
            Err(error) if error.may_have_started() => error,
            known => return known,
        };
        tracing::warn!(error = %lost, "looking whether an egress was started all the same");
        match self.find_late(room, place, asked_at).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(lost),
            Err(error) => {
                tracing::warn!(%error, "the server's list of egresses cannot be read");
                Err(lost)
            }
        }
    }

    /// As [`find`](Self::find), for one that was asked for just now, and whose answer never came: it is looked for as long as
    /// it may take to appear.
    ///
    /// # Errors
    /// Where the list cannot be read at the end of that time.
    pub async fn find_late(
        &self,
        room: Option<&str>,
        place: &FilePlace,
        since: OffsetDateTime,
    ) -> Result<Option<EgressState>, EgressError> {
        let until = clock::now() + self.appears_within;
        let mut pace = Pace::default();
        loop {
            let found = self.find(room, place, since).await;
            if let Ok(Some(found)) = found {
                return Ok(Some(found));
            }
            let wait = pace.next(None);
            if clock::now() + wait >= until {
                return found;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// The egress that was asked for with this file, in this room or for a page: one that runs, or one that was started after
    /// `since`, or a minute before as clocks differ, and has ended. Where several run, all but the first are stopped.
    ///
    /// # Errors
    /// Where the list cannot be read.
    pub async fn find(
        &self,
        room: Option<&str>,
        place: &FilePlace,
        since: OffsetDateTime,
    ) -> Result<Option<EgressState>, EgressError> {
        let mut found = self.list(room).await?;
        let is_recent = |state: &EgressState| state.started_at.is_some_and(|at| at >= since - SKEW);
        found.retain(|state| state.writes_to(place) && (!state.status.is_over() || is_recent(state)));
        found.sort_by_key(|state| (state.status.is_over(), state.started_at, state.id.clone()));
        let mut found = found.into_iter();
        let first = found.next();
        for twin in found.filter(|state| !state.status.is_over()) {
            tracing::warn!(egress = %twin.id, "a second egress of the same recording is stopped");
            self.stop(&twin.id).await?;
        }
        Ok(first)
    }

    /// Stops every egress that runs and writes the file at `place`, but that of id `except`.
    ///
    /// # Errors
    /// Where the list cannot be read, or one cannot be stopped.
    pub async fn stop_twins(
        &self,
        room: Option<&str>,
        place: &FilePlace,
        except: Option<&str>,
    ) -> Result<(), EgressError> {
        let is_twin = |state: &EgressState| {
            state.writes_to(place) && !state.status.is_over() && except != Some(state.id.as_str())
        };
        for twin in self.list(room).await?.into_iter().filter(is_twin) {
            tracing::warn!(egress = %twin.id, "a second egress of the same recording is stopped");
            self.stop(&twin.id).await?;
        }
        Ok(())
    }

    /// All egresses of a room that the server remembers, or of everywhere.
    ///
    /// # Errors
    /// Where the list cannot be read, tried again where that may help.
    pub async fn list(&self, room: Option<&str>) -> Result<Vec<EgressState>, EgressError> {
        let filter = room.map_or(api::EgressListFilter::All, |room| api::EgressListFilter::Room(room.to_owned()));
        self.listed(filter).await
    }

    /// How an egress stands.
    ///
    /// # Errors
    /// [`EgressError::NotFound`] where the server does not know it (any more); others where it cannot be asked.
    pub async fn get(&self, id: &str) -> Result<EgressState, EgressError> {
        let found = self.listed(api::EgressListFilter::Egress(id.to_owned())).await?;
        found.into_iter().find(|state| state.id == id).ok_or_else(|| EgressError::NotFound(format!("egress {id}")))
    }

    /// Stops an egress; one that ends or has ended already is as good as stopped. Gives how it stands then.
    ///
    /// # Errors
    /// [`EgressError::NotFound`] where the server does not know it (any more); others where it goes on, as far as anybody
    /// knows.
    pub async fn stop(&self, id: &str) -> Result<EgressState, EgressError> {
        let egress = &self.egress;
        match again(move || async move { egress.stop_egress(id).await.map_err(EgressError::from) }).await {
            Ok(info) => Ok(EgressState::of(&info)),
            Err(error @ EgressError::State(_)) => match self.get(id).await {
                Ok(state) if state.status >= super::EgressStatus::Ending => Ok(state),
                Ok(_) => Err(error),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Gives the picture of a room another layout, while it is recorded.
    ///
    /// # Errors
    /// What the server says.
    pub async fn set_layout(&self, id: &str, layout: &str) -> Result<EgressState, EgressError> {
        let egress = &self.egress;
        let changed =
            again(move || async move { egress.update_layout(id, layout).await.map_err(EgressError::from) }).await;
        changed.map(|info| EgressState::of(&info))
    }

    /// The room of this name; none where there is none.
    ///
    /// # Errors
    /// What the server says; with a token, which mostly does not allow listing, [`EgressError::Unauthorized`].
    pub async fn room(&self, name: &str) -> Result<Option<Room>, EgressError> {
        let rooms = &self.rooms;
        let found =
            again(move || async move { rooms.list_rooms(vec![name.to_owned()]).await.map_err(EgressError::from) })
                .await?;
        let room = found.into_iter().find(|room| room.name == name);
        Ok(room.map(|proto::Room { sid, num_participants, .. }| Room { sid, participants: num_participants as usize }))
    }

    async fn listed(&self, filter: api::EgressListFilter) -> Result<Vec<EgressState>, EgressError> {
        let (egress, filter) = (&self.egress, &filter);
        let all = again(move || async move {
            let options = api::EgressListOptions { filter: filter.clone(), ..Default::default() };
            egress.list_egress(options).await.map_err(EgressError::from)
        });
        Ok(all.await?.iter().map(EgressState::of).collect())
    }
}

/// Asks again, after a while, what can be asked twice without harm.
async fn again<T, A: Future<Output = Result<T, EgressError>> + Send>(
    ask: impl Fn() -> A + Send,
) -> Result<T, EgressError> {
    let mut pace = Pace::default();
    for _ in 1..ATTEMPTS {
        match ask().await {
            Err(error) if error.is_retryable() => tracing::debug!(%error, "asked again in a while"),
            answer => return answer,
        }
        tokio::time::sleep(pace.next(None)).await;
    }
    ask().await
}
