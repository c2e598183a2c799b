use livekit_api::services::egress as api;
use livekit_protocol as proto;

use super::upload::{Target, Upload};
use super::{EgressError, FilePlace};

/// What to record, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct EgressRequest {
    /// What is recorded.
    pub source: Source,
    /// Where it goes.
    pub to: Destination,
    /// The picture's size and rate. Default: [`Preset::H264_720P_30`]. Without meaning for single tracks, which are not encoded
    /// anew.
    pub preset: Preset,
}

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Everybody in a room, composed by a page in a browser, or mixed where it is sound alone without a layout.
    Room {
        /// The room.
        room: String,
        /// A layout of the service's own page (`grid`, `speaker`, `single-speaker`, each with `-light` or `-dark`), or one that
        /// the page at `base_url` knows. Default: the page's.
        layout: Option<String>,
        /// Another page than the service's own, `http://` or `https://`.
        base_url: Option<String>,
        /// Sound, picture, or both.
        media: Media,
        /// Which channels the voices are in, for sound alone.
        mixing: AudioMixing,
    },
    /// One participant's camera or screen, and voice.
    Participant {
        /// The room.
        room: String,
        /// Who.
        identity: String,
        /// The screen instead of the camera.
        screen_share: bool,
    },
    /// Two tracks in one file.
    Tracks {
        /// The room.
        room: String,
        /// The server's id of the audio track.
        audio: Option<String>,
        /// The server's id of the video track.
        video: Option<String>,
    },
    /// One track as it was sent.
    Track {
        /// The room.
        room: String,
        /// The server's id.
        track: String,
    },
    /// A web page.
    Web {
        /// `http://` or `https://`.
        url: String,
        /// Sound, picture, or both.
        media: Media,
        /// Whether the page says when it is ready.
        await_start_signal: bool,
    },
}

/// What of a source is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Media {
    /// Sound and picture.
    #[default]
    Both,
    /// Sound alone.
    Audio,
    /// The picture alone.
    Video,
}

/// Which channels voices are in, where a room's sound alone is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AudioMixing {
    /// Everybody in both.
    #[default]
    Together,
    /// Agents left, everybody else right.
    AgentLeft,
    /// Each new voice on the other side.
    Alternate,
}

/// Where a recording goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Destination {
    /// A file in a store.
    File(FileOutput),
    /// A WebSocket that takes raw audio as it comes; for a single audio track alone.
    WebSocket(String),
}

/// A file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileOutput {
    /// The container; a single track chooses its own by its codec.
    pub format: FileFormat,
    /// The key of the object, prefix included.
    pub path: String,
    /// The store.
    pub upload: Upload,
}

/// A container that the service writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// MP4: H.264, AAC.
    Mp4,
    /// Ogg: Opus, sound alone.
    Ogg,
    /// MP3, sound alone.
    Mp3,
}

impl FileFormat {
    /// The usual ending, without a dot.
    pub const fn ext(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::Ogg => "ogg",
            Self::Mp3 => "mp3",
        }
    }

    /// Whether it can hold a picture.
    pub const fn holds_video(self) -> bool {
        match self {
            Self::Mp4 => true,
            Self::Ogg | Self::Mp3 => false,
        }
    }
}

/// A picture's size and rate: all H.264.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "as the protocol has them")]
pub enum Preset {
    /// 1280 × 720, 30 a second, 3 Mbit/s.
    #[default]
    H264_720P_30,
    /// 1280 × 720, 60 a second, 4.5 Mbit/s.
    H264_720P_60,
    /// 1920 × 1080, 30 a second, 4.5 Mbit/s.
    H264_1080P_30,
    /// 1920 × 1080, 60 a second, 6 Mbit/s.
    H264_1080P_60,
    /// 720 × 1280, 30 a second, 3 Mbit/s.
    Portrait720P_30,
    /// 1080 × 1920, 30 a second, 4.5 Mbit/s.
    Portrait1080P_30,
}

impl Source {
    /// A room, as the service composes it by itself.
    pub fn room(room: impl Into<String>, layout: Option<&str>, media: Media) -> Self {
        Self::Room {
            room: room.into(),
            layout: layout.map(str::to_owned),
            base_url: None,
            media,
            mixing: AudioMixing::default(),
        }
    }

    /// The room; none for a web page.
    pub fn room_name(&self) -> Option<&str> {
        match self {
            Self::Room { room, .. }
            | Self::Participant { room, .. }
            | Self::Tracks { room, .. }
            | Self::Track { room, .. } => Some(room),
            Self::Web { .. } => None,
        }
    }

    fn has_picture(&self) -> bool {
        match self {
            Self::Room { media, .. } | Self::Web { media, .. } => *media != Media::Audio,
            Self::Participant { .. } => true,
            Self::Tracks { video, .. } => video.is_some(),
            Self::Track { .. } => false,
        }
    }
}

impl EgressRequest {
    /// A request for a file, with the picture as by default.
    pub fn new(source: Source, file: FileOutput) -> Self {
        Self { source, to: Destination::File(file), preset: Preset::default() }
    }

    /// Where its file goes; none where there is none.
    pub fn place(&self) -> Option<FilePlace> {
        match &self.to {
            Destination::File(file) => Some(FilePlace { path: file.path.clone(), store: Some(file.upload.0.store()) }),
            Destination::WebSocket(_) => None,
        }
    }

    /// The path that was asked for, by which an egress is known again; none for a WebSocket.
    pub fn path(&self) -> Option<&str> {
        match &self.to {
            Destination::File(file) => Some(&file.path),
            Destination::WebSocket(_) => None,
        }
    }

    /// Checks what the service would refuse.
    ///
    /// # Errors
    /// [`EgressError::Invalid`] with what is wrong.
    pub fn validate(&self) -> Result<(), EgressError> {
        let invalid = |why: &str| Err(EgressError::Invalid(why.to_owned()));
        if self.source.room_name() == Some("") {
            return invalid("it names no room");
        }
        match &self.source {
            Source::Room { base_url: Some(url), .. } if !is_http(url) => {
                return invalid("the page of a layout is no http:// or https:// address");
            }
            Source::Room { mixing, media, .. } if *mixing != AudioMixing::Together && *media != Media::Audio => {
                return invalid("voices have channels of their own in recordings of sound alone only");
            }
            Source::Participant { identity, .. } if identity.is_empty() => return invalid("it names no participant"),
            Source::Tracks { audio: None, video: None, .. } => return invalid("it names no track"),
            Source::Track { track, .. } if track.is_empty() => return invalid("it names no track"),
            Source::Web { url, .. } if !is_http(url) => return invalid("the page is no http:// or https:// address"),
            _ => {}
        }
        match (&self.to, &self.source) {
            (Destination::WebSocket(url), Source::Track { .. })
                if url.starts_with("ws://") || url.starts_with("wss://") =>
            {
                Ok(())
            }
            (Destination::WebSocket(_), Source::Track { .. }) => invalid("it is no ws:// or wss:// address"),
            (Destination::WebSocket(_), _) => invalid("only a single track goes to a WebSocket"),
            (Destination::File(file), _) if file.path.is_empty() || file.path.ends_with('/') => {
                invalid("the file has no name")
            }
            // Braces would stand for the service's own values, and the file would not be found by its path.
            (Destination::File(file), _) if file.path.contains(['{', '}']) => invalid("the file's name has braces"),
            (Destination::File(file), source) if source.has_picture() && !file.format.holds_video() => {
                Err(EgressError::Invalid(format!("{} holds no picture", file.format.ext())))
            }
            (Destination::File(_), _) => Ok(()),
        }
    }

    pub(super) fn encoding(&self) -> api::encoding::EncodingOptions {
        use api::encoding;
        let preset = match self.preset {
            Preset::H264_720P_30 => encoding::H264_720P_30,
            Preset::H264_720P_60 => encoding::H264_720P_60,
            Preset::H264_1080P_30 => encoding::H264_1080P_30,
            Preset::H264_1080P_60 => encoding::H264_1080P_60,
            Preset::Portrait720P_30 => encoding::PORTRAIT_H264_720P_30,
            Preset::Portrait1080P_30 => encoding::PORTRAIT_H264_1080P_30,
        };
        // The container decides: an MP3 that asks for Opus is refused.
        let audio_codec = proto::AudioCodec::DefaultAc;
        let video_codec = if self.source.has_picture() { preset.video_codec } else { proto::VideoCodec::DefaultVc };
        encoding::EncodingOptions { audio_codec, video_codec, audio_frequency: 48_000, ..preset }
    }
}

impl FileOutput {
    pub(super) fn encoded(&self) -> proto::EncodedFileOutput {
        use proto::encoded_file_output::Output;
        let file_type = match self.format {
            FileFormat::Mp4 => proto::EncodedFileType::Mp4,
            FileFormat::Ogg => proto::EncodedFileType::Ogg,
            FileFormat::Mp3 => proto::EncodedFileType::Mp3,
        };
        proto::EncodedFileOutput {
            file_type: file_type.into(),
            filepath: self.path.clone(),
            // Ours says more, and lies where the service's would.
            disable_manifest: true,
            output: match self.upload.0.clone() {
                Target::S3(s3) => Some(Output::S3(*s3)),
                Target::Azure(azure) => Some(Output::Azure(azure)),
                Target::Gcs(gcs) => Some(Output::Gcp(gcs)),
                Target::Oss(oss) => Some(Output::AliOss(oss)),
                Target::Default => None,
            },
        }
    }

    pub(super) fn direct(&self) -> proto::DirectFileOutput {
        use proto::direct_file_output::Output;
        proto::DirectFileOutput {
            filepath: self.path.clone(),
            disable_manifest: true,
            output: match self.upload.0.clone() {
                Target::S3(s3) => Some(Output::S3(*s3)),
                Target::Azure(azure) => Some(Output::Azure(azure)),
                Target::Gcs(gcs) => Some(Output::Gcp(gcs)),
                Target::Oss(oss) => Some(Output::AliOss(oss)),
                Target::Default => None,
            },
        }
    }
}

impl AudioMixing {
    pub(super) fn api(self) -> api::AudioMixing {
        match self {
            Self::Together => api::AudioMixing::DefaultMixing,
            Self::AgentLeft => api::AudioMixing::DualChannelAgent,
            Self::Alternate => api::AudioMixing::DualChannelAlternate,
        }
    }
}

fn is_http(url: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(format: FileFormat, path: &str) -> FileOutput {
        FileOutput { format, path: path.into(), upload: Upload::of_the_service() }
    }

    fn refused(source: Source, to: Destination) -> String {
        EgressRequest { source, to, preset: Preset::default() }.validate().unwrap_err().to_string()
    }

    #[test]
    fn what_the_service_would_refuse_is_not_sent() {
        let mp4 = || Destination::File(file(FileFormat::Mp4, "a.mp4"));
        let room = || Source::room("r", None, Media::Both);
        let alternate = Source::Room {
            room: "r".into(),
            layout: None,
            base_url: None,
            media: Media::Both,
            mixing: AudioMixing::Alternate,
        };
        let track = || Source::Track { room: "r".into(), track: "TR_a".into() };
        for (source, to, word) in [
            (Source::room("", None, Media::Both), mp4(), "no room"),
            (alternate, mp4(), "channels"),
            (Source::Participant { room: "r".into(), identity: "".into(), screen_share: false }, mp4(), "participant"),
            (Source::Tracks { room: "r".into(), audio: None, video: None }, mp4(), "no track"),
            (
                Source::Web { url: "file:///etc/passwd".into(), media: Media::Both, await_start_signal: false },
                mp4(),
                "http://",
            ),
            (room(), Destination::WebSocket("ws://x".into()), "single track"),
            (track(), Destination::WebSocket("http://x".into()), "ws://"),
            (room(), Destination::File(file(FileFormat::Ogg, "a.ogg")), "no picture"),
            (room(), Destination::File(file(FileFormat::Mp4, "a/")), "no name"),
            (room(), Destination::File(file(FileFormat::Mp4, "{time}.mp4")), "braces"),
        ] {
            let error = refused(source.clone(), to);
            assert!(error.contains(word), "{source:?}: {error}");
        }
        let sound = EgressRequest::new(Source::room("r", None, Media::Audio), file(FileFormat::Mp3, "a.mp3"));
        sound.validate().unwrap();
        assert_eq!(sound.encoding().audio_codec, proto::AudioCodec::DefaultAc);
        let socket = Destination::WebSocket("wss://x".into());
        EgressRequest { source: track(), to: socket, preset: Preset::default() }.validate().unwrap();
    }
}
