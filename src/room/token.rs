//! Access tokens: minting our own, and reading what a ready one allows.

use std::time::Duration;

use livekit_api::access_token::{AccessToken, Claims, VideoGrants};

use super::error::RoomError;

/// How long a minted token is good for. The server hands out fresh ones while we are in the room, so this only bounds
/// how late a join may be.
const LIFETIME: Duration = Duration::from_secs(6 * 3600);

/// What a token says about who joins what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) identity: String,
    pub(super) room: String,
    /// What the token allows or shows beyond what a recorder should; for a log line.
    pub(super) remarks: Vec<String>,
}

/// Mints the token of a hidden recorder: it may subscribe, and nothing else.
pub(super) fn mint(key: &str, secret: &str, room: &str, identity: &str, name: &str) -> Result<String, RoomError> {
    let grants = VideoGrants {
        room_join: true,
        room: room.to_owned(),
        can_subscribe: Some(true),
        can_publish: Some(false),
        can_publish_data: Some(false),
        hidden: true,
        recorder: true,
        ..Default::default()
    };
    AccessToken::with_api_key(key, secret)
        .with_identity(identity)
        .with_name(name)
        .with_kind("egress")
        .with_ttl(LIFETIME)
        .with_grants(grants)
        .to_jwt()
        .map_err(|error| RoomError::config("api_secret", format!("cannot sign a token: {error}")))
}

/// Reads a ready token without checking its signature: that is the server's part.
///
/// # Errors
///
/// [`RoomError::Config`] where the token cannot be read or cannot serve a recorder.
pub(super) fn inspect(token: &str) -> Result<Ticket, RoomError> {
    let claims = Claims::from_unverified(token)
        .map_err(|error| RoomError::config("token", format!("is no access token: {error}")))?;
    let grants = &claims.video;
    if !grants.room_join || grants.room.is_empty() {
        return Err(RoomError::config("token", "does not grant joining a room (video.roomJoin and video.room)"));
    }
    if claims.sub.is_empty() {
        return Err(RoomError::config("token", "names no identity (sub)"));
    }
    if !grants.can_subscribe() {
        return Err(RoomError::config(
            "token",
            "does not grant subscribing (video.canSubscribe), so nothing could be recorded",
        ));
    }
    let mut remarks = Vec::new();
    let mut remark = |applies: bool, text: &str| {
        if applies {
            remarks.push(text.to_owned());
        }
    };
    remark(!grants.hidden, "the token is not hidden: the recorder is seen by everybody in the room");
    remark(
        !grants.recorder && claims.kind != "egress",
        "the token is not a recorder's: the room does not show that it is recorded, and stays open for the recorder",
    );
    remark(
        grants.can_publish() || grants.can_publish_data(),
        "the token allows publishing, which a recorder never does",
    );
    Ok(Ticket { identity: claims.sub.clone(), room: grants.room.clone(), remarks })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "a-secret-of-more-than-thirty-two-characters";

    #[test]
    fn a_minted_token_is_a_hidden_recorders_and_nothing_more() {
        let token = mint("key", SECRET, "support", "callreel-1", "Recorder").unwrap();
        let claims = Claims::from_unverified(&token).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.kind.as_str(), claims.name.as_str()),
            ("callreel-1", "egress", "Recorder")
        );
        let grants = &claims.video;
        assert!(grants.room_join && grants.hidden && grants.recorder && grants.can_subscribe());
        assert!(!grants.can_publish() && !grants.can_publish_data() && !grants.can_update_own_metadata());
        assert!(!grants.room_admin && !grants.room_create && !grants.room_list && !grants.room_record);
        assert_eq!(inspect(&token).unwrap().remarks, Vec::<String>::new());
    }

    #[test]
    fn a_participants_token_serves_but_is_remarked() {
        let grants = VideoGrants { room_join: true, room: "support".into(), ..Default::default() };
        let token = AccessToken::with_api_key("key", SECRET).with_identity("ann").with_grants(grants).to_jwt().unwrap();
        let ticket = inspect(&token).unwrap();
        assert_eq!((ticket.identity.as_str(), ticket.room.as_str()), ("ann", "support"));
        assert_eq!(ticket.remarks.len(), 3);
    }

    #[test]
    fn a_token_that_cannot_record_is_refused_with_its_reason() {
        let deaf =
            VideoGrants { room_join: true, room: "support".into(), can_subscribe: Some(false), ..Default::default() };
        let deaf = AccessToken::with_api_key("key", SECRET).with_identity("ann").with_grants(deaf).to_jwt().unwrap();
        assert!(inspect(&deaf).unwrap_err().to_string().contains("canSubscribe"));
        let idle = AccessToken::with_api_key("key", SECRET).with_identity("ann").to_jwt().unwrap();
        assert!(inspect(&idle).unwrap_err().to_string().contains("roomJoin"));
        assert!(inspect("no.token.this").unwrap_err().to_string().starts_with("token: "));
    }
}
