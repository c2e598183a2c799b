//! What happens to a recording, while it does: server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::catalog::{Row, Status};
use crate::config::ScopeWord;
use crate::recording::Happening;

use super::App;
use super::auth::Caller;
use super::body::RecordingId;
use super::problem::Problem;
use super::recordings::allowed;
use super::views::moment;

/// How often the catalogue is asked: another process may have the recording.
const LOOK_EVERY: Duration = Duration::from_secs(2);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Tells what happens to a recording, until it is over
///
/// Server-sent events: `state` at first and whenever that changes, and between what happens while this process records.
#[utoipa::path(
    get, path = "/api/v1/recordings/{recording_id}/events", tag = "recordings",
    params(("recording_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "What happens", content_type = "text/event-stream", body = String),
        (status = "default", description = "Nothing", body = Problem, content_type = "application/problem+json")
    )
)]
async fn events(
    State(app): State<App>,
    caller: Caller,
    RecordingId(id): RecordingId,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    // Before the recording is looked at, so that nothing falls between the two.
    let happenings = app.calls().happenings();
    let ending = app.ending();
    let row = allowed(&app, &caller, ScopeWord::Read, &id).await?;
    let teller = Teller { app, happenings, ending, row, told: None, happenings_are_over: false };
    let told = stream::unfold(teller, |mut teller| async move {
        let event = teller.next().await?;
        Some((Ok(event), teller))
    });
    Ok(Sse::new(told).keep_alive(KeepAlive::default()))
}

struct Teller {
    app: App,
    happenings: broadcast::Receiver<Happening>,
    ending: watch::Receiver<bool>,
    row: Row,
    /// The state that was told last.
    told: Option<Status>,
    happenings_are_over: bool,
}

impl Teller {
    /// The next that is to be told; none where there is nothing more.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.told != Some(self.row.status) {
                self.told = Some(self.row.status);
                return Some(event("state", &state(&self.row)));
            }
            if self.row.status.is_finished() || *self.ending.borrow() {
                return None;
            }
            tokio::select! {
                happening = self.happenings.recv(), if !self.happenings_are_over => match happening {
                    Ok(happening) if happening.recording_id == self.row.recording_id => {
                        let told = serde_json::to_value(&happening).unwrap_or_default();
                        let name = told["event"].as_str().unwrap_or("happening").to_owned();
                        self.look().await;
                        return Some(event(&name, &told));
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => self.happenings_are_over = true,
                },
                _ = self.ending.changed() => {}
                () = tokio::time::sleep(LOOK_EVERY) => self.look().await,
            }
        }
    }

    /// Looks at how the recording stands. A catalogue that does not answer is asked again later.
    async fn look(&mut self) {
        if let Ok(Some(row)) = self.app.catalog().get(&self.row.recording_id).await {
            self.row = row;
        }
    }
}

fn event(name: &str, data: &Value) -> Event {
    Event::default().event(name).data(data.to_string())
}

fn state(row: &Row) -> Value {
    json!({
        "recording_id": row.recording_id,
        "status": row.status,
        "outcome": row.outcome,
        "reasons": row.reasons,
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "duration_seconds": row.duration_seconds,
    })
}
