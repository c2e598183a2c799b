//! What the supervisor asks the LiveKit server.

use std::time::Duration;

use livekit_api::services::room::RoomClient;
use livekit_protocol::ParticipantInfo;

use crate::call::{Participant, ParticipantKind};
use crate::config::ServeConfig;
use crate::room::{ensure_crypto_provider, participant};

/// How long an answer may take.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A room that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenRoom {
    /// Its name.
    pub name: String,
    /// The server's id (`RM_…`).
    pub sid: String,
    /// What its owner wrote on it.
    pub metadata: String,
}

/// The server's room service.
#[derive(Debug)]
pub(super) struct LiveKit {
    rooms: RoomClient,
}

impl LiveKit {
    /// Asks the server of this configuration.
    pub fn new(config: &ServeConfig) -> Self {
        ensure_crypto_provider();
        let (key, secret) = &config.livekit_key;
        let rooms = RoomClient::with_api_key(&config.base.url, key, secret.expose());
        Self { rooms: rooms.with_request_timeout(ANSWERS_WITHIN) }
    }

    /// All rooms that exist.
    pub async fn all(&self) -> Result<Vec<OpenRoom>, String> {
        self.listed(Vec::new()).await
    }

    /// The room of this name; none where there is none.
    pub async fn room(&self, name: &str) -> Result<Option<OpenRoom>, String> {
        let found = self.listed(vec![name.to_owned()]).await?;
        Ok(found.into_iter().find(|room| room.name == name))
    }

    async fn listed(&self, names: Vec<String>) -> Result<Vec<OpenRoom>, String> {
        let rooms = self.rooms.list_rooms(names).await.map_err(|error| error.to_string())?;
        let open = |room: livekit_protocol::Room| OpenRoom { name: room.name, sid: room.sid, metadata: room.metadata };
        Ok(rooms.into_iter().map(open).collect())
    }

    /// Who is in a room, recorders not counted.
    pub async fn people(&self, room: &str) -> Result<Vec<Participant>, String> {
        let found = self.rooms.list_participants(room).await.map_err(|error| error.to_string())?;
        Ok(found.iter().filter(|info| is_somebody(info)).map(participant).collect())
    }

    /// Writes on a room which recording is being made.
    pub async fn write_metadata(&self, room: &str, recording_id: &str) -> Result<(), String> {
        let metadata = serde_json::json!({ "egress_id": recording_id }).to_string();
        self.rooms.update_room_metadata(room, &metadata).await.map(drop).map_err(|error| error.to_string())
    }
}

/// Whether somebody is in a room for more than to record it: what recorders cause is nothing to record.
pub(super) fn is_somebody(info: &ParticipantInfo) -> bool {
    // Servers told of recorders by a flag of their permission before these were a kind.
    #[allow(deprecated)]
    let keeps_quiet = info.permission.as_ref().is_some_and(|permission| permission.hidden || permission.recorder);
    !keeps_quiet && participant(info).kind != ParticipantKind::Egress
}

#[cfg(test)]
mod tests {
    use livekit_protocol::{ParticipantPermission, participant_info};

    use super::*;

    #[test]
    fn recorders_are_nobody() {
        let person = ParticipantInfo { identity: "alice".into(), ..ParticipantInfo::default() };
        assert!(is_somebody(&person));
        let agent = ParticipantInfo { kind: participant_info::Kind::Agent.into(), ..person.clone() };
        assert!(is_somebody(&agent), "what an agent says first is not to be missed");
        let hidden = ParticipantPermission { hidden: true, ..ParticipantPermission::default() };
        assert!(!is_somebody(&ParticipantInfo { permission: Some(hidden), ..person.clone() }));
        let egress = ParticipantInfo { kind: participant_info::Kind::Egress.into(), ..person };
        assert!(!is_somebody(&egress));
    }
}
