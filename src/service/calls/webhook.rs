//! What the LiveKit server's webhooks, and looks at its rooms where those were missed, make the supervisor do.

use std::sync::Arc;
use std::time::Duration;

use livekit_protocol::WebhookEvent;

use crate::clock;
use crate::recording::StopReason;
use crate::service::rules::{Decision, RoomFacts};

use super::livekit::is_somebody;
use super::{Calls, Cause, Shared, StartError, StartRequest};

/// How often rooms are looked at, for webhooks that were missed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// How long a recording may take to see for itself that its room is finished.
const SEES_WITHIN: Duration = Duration::from_secs(10);

/// How often a room that begins is asked for: its webhook may be faster than its being listed.
const LOOKS: u32 = 4;

/// The wait between these.
const BETWEEN: Duration = Duration::from_millis(250);

/// Acts on an event. Events may come twice and in any order: what is done depends on what the server then says of the room.
pub(super) async fn act(calls: &Calls, event: WebhookEvent) {
    let room = event.room.as_ref().map(|room| (room.name.clone(), room.sid.clone()));
    let Some((name, sid)) = room.filter(|(name, _)| !name.is_empty()) else { return };
    match event.event.as_str() {
        "room_started" => consider(calls, &name, true).await,
        // What a recorder causes is nothing to act upon.
        "participant_joined" | "track_published" if event.participant.as_ref().is_none_or(is_somebody) => {
            consider(calls, &name, true).await;
        }
        "room_finished" => finished(&calls.shared, &name, &sid).await,
        _ => {}
    }
}

/// Looks at all rooms, now and then.
pub(super) async fn look_around(calls: Calls) {
    loop {
        match calls.shared.livekit.all().await {
            Ok(rooms) => {
                for room in rooms {
                    consider(&calls, &room.name, false).await;
                }
            }
            Err(error) => tracing::warn!(error, "the LiveKit server does not tell its rooms"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Records a room if the rules say so: one that exists, with somebody in it. `is_news` says that something happened there,
/// of which no other process was told; then a catalogue that does not answer holds nothing up.
pub(super) async fn consider(calls: &Calls, name: &str, is_news: bool) {
    let shared = &calls.shared;
    // One look at a time; who comes meanwhile makes it look once more.
    if !shared.rooms.begin(name, is_news) {
        return;
    }
    let mut again = Some(is_news);
    while let Some(is_news) = again {
        if let Err(why) = look_at(calls, name, is_news).await {
            tracing::warn!(room = name, why, "a room is not recorded");
        }
        again = shared.rooms.again(name);
    }
}

/// Looks at the room of a recording that is about to end: it may have been opened anew, of which a webhook told while the
/// recorder was still leaving.
pub(super) async fn reopened(calls: Calls, recording_id: String) {
    let live = calls.shared.live().get(&recording_id).map(|live| (live.room.clone(), live.sid.clone()));
    let Some((name, sid)) = live else { return };
    if let Ok(Some(room)) = calls.shared.livekit.room(&name).await
        && room.sid != sid
    {
        consider(&calls, &name, true).await;
    }
}

async fn look_at(calls: &Calls, name: &str, is_news: bool) -> Result<(), String> {
    let shared = &calls.shared;
    if shared.live_in(name).is_some() || shared.is_draining() {
        return Ok(());
    }
    let mut found = shared.livekit.room(name).await?;
    for _ in 1..LOOKS {
        if found.is_some() {
            break;
        }
        tokio::time::sleep(BETWEEN).await;
        found = shared.livekit.room(name).await?;
    }
    // Nobody joins a room that does not exist: joining would make it.
    let Some(room) = found else { return Ok(()) };
    if shared.rooms.is_left_alone(&room.sid, clock::now()) || shared.was_ended_by_word(&room.sid).await {
        return Ok(());
    }
    let people = shared.livekit.people(name).await?;
    // An agent that waits for its caller is heard from its first word; one that is left behind is nothing to record again.
    let is_call = people.iter().any(|person| person.kind.keeps_call_alive());
    if people.is_empty() || (!is_call && shared.rooms.was_recorded(&room.sid)) {
        return Ok(());
    }
    let facts = RoomFacts { name, metadata: &room.metadata, participants: &people };
    let Decision::Record(choice) = shared.rules.current().decide(&facts) else { return Ok(()) };
    let request =
        StartRequest { room: name.to_owned(), by: "rule".into(), wish: choice.wish, ..StartRequest::default() };
    match calls.begin(request, &room, choice.rule, if is_news { Cause::News } else { Cause::Look }).await {
        Ok(_) | Err(StartError::AlreadyRecorded { .. } | StartError::Draining) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Ends a recording whose room is finished and that does not see it, because it is cut off.
async fn finished(shared: &Arc<Shared>, name: &str, sid: &str) {
    shared.rooms.forget(sid);
    let Some((handle, known)) = shared.live_in(name) else { return };
    if known != sid {
        return;
    }
    tokio::spawn(async move {
        let over = tokio::time::timeout(SEES_WITHIN, handle.wait()).await;
        if over.is_err() {
            handle.stop_because(StopReason::RoomClosed);
        }
    });
}
