//! What the egress service refuses, in its words, and what it makes of the rest. Written against livekit/egress 1.14 and
//! livekit-server 1.13.

use livekit_protocol as proto;
use livekit_protocol::egress_info::Request;

use super::wire::TwirpError;

/// A request that the service takes.
pub(super) struct Accepted {
    pub room: String,
    /// The key of the file, if there is one.
    pub file: Option<String>,
    pub is_web: bool,
}

type Checked<T> = Result<T, TwirpError>;

fn invalid(field: &str) -> TwirpError {
    TwirpError::new("invalid_argument", format!("request has missing or invalid field: {field}"))
}

/// The room that a request names: the server looks it up before the service sees the request.
pub(super) fn room_of(request: &Request) -> &str {
    match request {
        Request::RoomComposite(request) => &request.room_name,
        Request::Participant(request) => &request.room_name,
        Request::TrackComposite(request) => &request.room_name,
        Request::Track(request) => &request.room_name,
        Request::Egress(request) => &request.room_name,
        Request::Web(_) | Request::Replay(_) => "",
    }
}

/// Checks a request as the service does, in its order.
pub(super) fn validate(request: &Request) -> Checked<Accepted> {
    let room = room_of(request).to_owned();
    let (file, is_web) = match request {
        Request::RoomComposite(it) => {
            let base = &it.custom_base_url;
            if !base.is_empty() && !is_http(base) {
                return Err(invalid("template base url"));
            }
            let media = media(it.audio_only, it.video_only)?;
            let advanced = match &it.options {
                Some(proto::room_composite_egress_request::Options::Advanced(advanced)) => Some(advanced),
                _ => None,
            };
            let others = it.stream_outputs.len() + it.segment_outputs.len() + it.image_outputs.len();
            let file = encoded(&it.file_outputs, others, media, advanced, &room)?;
            (file, !it.audio_only || !it.layout.is_empty() || !base.is_empty())
        }
        Request::Web(it) => {
            if !is_http(&it.url) {
                return Err(invalid("web url"));
            }
            let media = media(it.audio_only, it.video_only)?;
            let advanced = match &it.options {
                Some(proto::web_egress_request::Options::Advanced(advanced)) => Some(advanced),
                _ => None,
            };
            let others = it.stream_outputs.len() + it.segment_outputs.len() + it.image_outputs.len();
            (encoded(&it.file_outputs, others, media, advanced, "web")?, true)
        }
        Request::Participant(it) => {
            if it.identity.is_empty() {
                return Err(invalid("identity"));
            }
            let advanced = match &it.options {
                Some(proto::participant_egress_request::Options::Advanced(advanced)) => Some(advanced),
                _ => None,
            };
            let others = it.stream_outputs.len() + it.segment_outputs.len() + it.image_outputs.len();
            let media = Media { audio: true, video: true };
            (encoded(&it.file_outputs, others, media, advanced, &room)?, false)
        }
        Request::TrackComposite(it) => {
            let media = Media { audio: !it.audio_track_id.is_empty(), video: !it.video_track_id.is_empty() };
            if !media.audio && !media.video {
                return Err(invalid("audio_track_id or video_track_id"));
            }
            let advanced = match &it.options {
                Some(proto::track_composite_egress_request::Options::Advanced(advanced)) => Some(advanced),
                _ => None,
            };
            let others = it.stream_outputs.len() + it.segment_outputs.len() + it.image_outputs.len();
            (encoded(&it.file_outputs, others, media, advanced, &room)?, false)
        }
        Request::Track(it) => {
            if it.track_id.is_empty() {
                return Err(invalid("track_id"));
            }
            let file = match &it.output {
                Some(proto::track_egress_request::Output::File(file)) => {
                    use proto::direct_file_output::Output;
                    if let Some(Output::S3(s3)) = &file.output {
                        assumed(s3)?;
                    }
                    Some(with_ending(&file.filepath, "ogg", &room))
                }
                Some(proto::track_egress_request::Output::WebsocketUrl(url))
                    if url.starts_with("ws://") || url.starts_with("wss://") =>
                {
                    None
                }
                Some(proto::track_egress_request::Output::WebsocketUrl(url)) => {
                    return Err(TwirpError::new("invalid_argument", format!("invalid url {url}: invalid protocol")));
                }
                None => return Err(invalid("output")),
            };
            (file, false)
        }
        Request::Egress(_) | Request::Replay(_) => return Err(invalid("request")),
    };
    if room.is_empty() && !matches!(request, Request::Web(_)) {
        return Err(invalid("token or api key/secret"));
    }
    Ok(Accepted { room, file, is_web })
}

#[derive(Clone, Copy)]
struct Media {
    audio: bool,
    video: bool,
}

fn media(audio_only: bool, video_only: bool) -> Checked<Media> {
    if audio_only && video_only {
        return Err(invalid("audio_only and video_only"));
    }
    Ok(Media { audio: !video_only, video: !audio_only })
}

fn encoded(
    files: &[proto::EncodedFileOutput],
    others: usize,
    media: Media,
    advanced: Option<&proto::EncodingOptions>,
    identifier: &str,
) -> Checked<Option<String>> {
    if let Some(advanced) = advanced {
        size("width", advanced.width)?;
        size("height", advanced.height)?;
        if ![0, 8, 16, 24].contains(&advanced.depth) {
            return Err(invalid("depth"));
        }
    }
    let file = match files {
        [] if others == 0 => return Err(invalid("output")),
        [] => return Ok(None),
        [file] => file,
        _ => return Err(invalid("multiple file outputs")),
    };
    use proto::encoded_file_output::Output;
    if let Some(Output::S3(s3)) = &file.output {
        assumed(s3)?;
    }
    let ending = match (file.file_type(), media) {
        (proto::EncodedFileType::Mp4, _) => "mp4",
        (proto::EncodedFileType::Ogg, _) => "ogg",
        (proto::EncodedFileType::Mp3, _) => "mp3",
        (proto::EncodedFileType::DefaultFiletype, Media { video: false, .. }) => "ogg",
        (proto::EncodedFileType::DefaultFiletype, _) => "mp4",
    };
    codecs(ending, media, advanced)?;
    Ok(Some(with_ending(&file.filepath, ending, identifier)))
}

fn size(field: &str, value: i32) -> Checked<()> {
    if value > 0 && (value < 16 || value % 2 == 1) { Err(invalid(field)) } else { Ok(()) }
}

/// Whether the container can hold the codecs that are asked for, or any.
fn codecs(ending: &str, media: Media, advanced: Option<&proto::EncodingOptions>) -> Checked<()> {
    let (container, audio, video): (_, &[proto::AudioCodec], bool) = match ending {
        "mp4" => ("video/mp4", &[proto::AudioCodec::Aac, proto::AudioCodec::Opus], true),
        "ogg" => ("audio/ogg", &[proto::AudioCodec::Opus], false),
        _ => ("audio/mpeg", &[proto::AudioCodec::AcMp3, proto::AudioCodec::Opus, proto::AudioCodec::Aac], false),
    };
    let asked = advanced.map_or(proto::AudioCodec::DefaultAc, |advanced| advanced.audio_codec());
    let none = || TwirpError::new("invalid_argument", "no supported codec is compatible with all outputs");
    let refused = |codec: &str| {
        TwirpError::new("invalid_argument", format!("format {container} incompatible with codec {codec}"))
    };
    if media.audio && asked != proto::AudioCodec::DefaultAc && !audio.contains(&asked) {
        return Err(refused(match asked {
            proto::AudioCodec::Aac => "audio/aac",
            proto::AudioCodec::AcMp3 => "audio/mpeg",
            proto::AudioCodec::Opus | proto::AudioCodec::DefaultAc => "audio/opus",
        }));
    }
    if media.video && !video {
        return Err(if asked == proto::AudioCodec::DefaultAc { none() } else { refused("video/h264") });
    }
    Ok(())
}

fn assumed(s3: &proto::S3Upload) -> Checked<()> {
    if !s3.assume_role_arn.is_empty() && s3.access_key.is_empty() {
        let msg = "S3 upload using AssumeRole is disabled for this account";
        return Err(TwirpError::new("permission_denied", msg));
    }
    Ok(())
}

/// The key that a file gets.
fn with_ending(path: &str, ending: &str, identifier: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let mut path = if path.is_empty() || path.ends_with('/') {
        parts.push(identifier);
        parts.join("/")
    } else {
        parts.join("/")
    };
    if !path.ends_with(&format!(".{ending}")) {
        let known = [".ogg", ".mp3", ".mp4", ".webm", ".ts"];
        if let Some(known) = known.iter().find(|known| path.ends_with(**known)) {
            path.truncate(path.len() - known.len());
        }
        path = format!("{path}.{ending}");
    }
    path
}

fn is_http(url: &str) -> bool {
    url.starts_with("http://") || url.starts_with("https://")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn composite() -> proto::RoomCompositeEgressRequest {
        let file = proto::EncodedFileOutput {
            file_type: proto::EncodedFileType::Mp4.into(),
            filepath: "a/b.ogg".into(),
            ..Default::default()
        };
        proto::RoomCompositeEgressRequest { room_name: "r".into(), file_outputs: vec![file], ..Default::default() }
    }

    fn refused(request: proto::RoomCompositeEgressRequest) -> String {
        validate(&Request::RoomComposite(request)).err().expect("it is not refused").msg
    }

    #[test]
    fn requests_are_refused_as_the_service_does() {
        let accepted = validate(&Request::RoomComposite(composite())).ok().unwrap();
        assert_eq!((accepted.file.as_deref(), accepted.room.as_str()), (Some("a/b.mp4"), "r"));
        let file = composite().file_outputs.remove(0);
        assert!(refused(proto::RoomCompositeEgressRequest { file_outputs: vec![], ..composite() }).ends_with("output"));
        let two = vec![file.clone(), file.clone()];
        assert!(refused(proto::RoomCompositeEgressRequest { file_outputs: two, ..composite() }).contains("multiple"));
        assert!(
            refused(proto::RoomCompositeEgressRequest { room_name: String::new(), ..composite() }).contains("token")
        );
        let neither = proto::RoomCompositeEgressRequest { audio_only: true, video_only: true, ..composite() };
        assert!(refused(neither).contains("audio_only and video_only"));
        let ogg = proto::EncodedFileOutput { file_type: proto::EncodedFileType::Ogg.into(), ..file };
        let picture = proto::RoomCompositeEgressRequest { file_outputs: vec![ogg], ..composite() };
        assert!(refused(picture.clone()).contains("no supported codec"));
        let aac = proto::EncodingOptions { audio_codec: proto::AudioCodec::Aac.into(), ..Default::default() };
        let options = proto::room_composite_egress_request::Options::Advanced(aac);
        let sound = proto::RoomCompositeEgressRequest { audio_only: true, options: Some(options), ..picture };
        assert_eq!(refused(sound), "format audio/ogg incompatible with codec audio/aac");
    }
}
