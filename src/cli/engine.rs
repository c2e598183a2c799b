//! Flags that say who records, and what with.

use std::time::Duration;

use clap::ValueEnum;
use clap::builder::FalseyValueParser;

use crate::config::{Config, ConfigError, ConfigFile, Engine, Fallback, Picture, PictureKind, duration};
use crate::egress::Preset;
use crate::encode::{Depth, Format, Mp4Codec, formats};
use crate::render::Quality;

/// Who records, and what with.
#[derive(Debug, clap::Args)]
pub(super) struct EngineArgs {
    /// Who records: LiveKit Egress where there is to be a picture and callreel's own bot for the rest, or one of them
    #[arg(long, env = "CALLREEL_ENGINE", value_enum, default_value = "auto")]
    engine: EngineArg,
    /// What stands in where callreel's own bot cannot join, or has lost the call for good
    #[arg(long, env = "CALLREEL_FALLBACK", value_enum, default_value = "none")]
    fallback: FallbackArg,
    /// How long the bot tries to join, or to come back, before that
    #[arg(long, env = "CALLREEL_FALLBACK_AFTER", value_name = "TIME", value_parser = duration, default_value = "20s")]
    fallback_after: Duration,
    /// Records the picture, too; LiveKit Egress does that
    #[arg(long, env = "CALLREEL_VIDEO", value_parser = FalseyValueParser::new())]
    video: bool,
    /// The picture's layout, such as grid, speaker or single-speaker; implies --video
    #[arg(long, env = "CALLREEL_LAYOUT", value_name = "NAME")]
    layout: Option<String>,
    /// The same, as deployed systems call it; without meaning for files of sound alone
    #[arg(long = "layout-of-system", env = "LAYOUT", hide = true)]
    system_layout: Option<String>,
    /// The page that composes the picture, instead of the service's own; implies --video
    #[arg(long, env = "CALLREEL_LAYOUT_PAGE", value_name = "URL")]
    layout_page: Option<String>,
    /// The picture's size and rate
    #[arg(long, env = "CALLREEL_PICTURE", value_enum, default_value = "720p30")]
    picture: PresetArg,
    /// The format, or several with commas: ogg, webm, mp4, wav, flac, mp3; the recording is called after ogg, or else the
    /// first [default: ogg, or mp4 with a picture]
    #[arg(long, env = "CALLREEL_FORMAT", value_name = "FORMATS", value_delimiter = ',')]
    format: Vec<Format>,
    /// The same, as deployed systems call it
    #[arg(long, env = "RECORDING_FILE_FORMAT", value_delimiter = ',', hide = true)]
    recording_file_format: Vec<Format>,
    /// The same, as deployed systems call it
    #[arg(long, env = "FILE_TYPE", value_delimiter = ',', hide = true)]
    file_type: Vec<Format>,
    /// Bits a sample of wav and flac: 16 or 24
    #[arg(long, env = "CALLREEL_PCM_BITS", value_name = "BITS", default_value = "16")]
    pcm_bits: Depth,
    /// Bits a second of mp3 [default: a rate that varies with the sound]
    #[arg(long, env = "CALLREEL_MP3_BITRATE", value_name = "BITS")]
    mp3_bitrate: Option<u32>,
    /// The codec in mp4: opus, or aac for players that know no other
    #[arg(long, env = "CALLREEL_MP4_CODEC", value_name = "CODEC", default_value = "opus")]
    mp4_codec: Mp4Codec,
    /// Pictures to draw at the end: waveform (who spoke when, how loud), spectrogram
    #[arg(long, env = "CALLREEL_PICTURES", value_enum, value_name = "KINDS", value_delimiter = ',')]
    pictures: Vec<PictureKind>,
    /// Writes who somebody is into the tags of their own file and into pictures
    #[arg(long, env = "CALLREEL_NAME_PEOPLE", value_parser = FalseyValueParser::new())]
    name_people: bool,
    /// Whether there is no picture, as a deployed system says it
    #[arg(long, env = "RECORDING_AUDIO_ONLY", value_name = "BOOL", hide = true)]
    recording_audio_only: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EngineArg {
    /// LiveKit Egress for pictures, callreel's own bot for the rest
    Auto,
    /// callreel's own bot
    Callreel,
    /// callreel's own bot, hearing through LiveKit's SDK (docs/libwebrtc.md): aligned by arrival alone, without an account of
    /// losses; only in builds with the cargo feature libwebrtc
    Libwebrtc,
    /// LiveKit Egress
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FallbackArg {
    None,
    /// LiveKit Egress records the sound
    Egress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PresetArg {
    #[value(name = "720p30")]
    P720R30,
    #[value(name = "720p60")]
    P720R60,
    #[value(name = "1080p30")]
    P1080R30,
    #[value(name = "1080p60")]
    P1080R60,
    #[value(name = "portrait-720p30")]
    Portrait720,
    #[value(name = "portrait-1080p30")]
    Portrait1080,
}

impl EngineArgs {
    /// Says in `config` who records, and what with.
    ///
    /// # Errors
    /// A format that nobody makes.
    pub(super) fn apply(self, config: &mut Config, file: &ConfigFile) -> Result<(), ConfigError> {
        config.engine = match self.engine {
            EngineArg::Auto => Engine::Auto,
            EngineArg::Callreel => Engine::Callreel,
            EngineArg::Libwebrtc => Engine::Libwebrtc,
            EngineArg::Egress => Engine::Egress,
        };
        config.fallback = match self.fallback {
            FallbackArg::None => None,
            FallbackArg::Egress => Some(Fallback { after: self.fallback_after }),
        };
        let of_file = file.file_type.as_deref().map(formats).transpose();
        let of_file = of_file.map_err(|error| ConfigError::Invalid { key: "file_type", why: error.to_string() })?;
        let said = [self.format, self.recording_file_format, self.file_type, of_file.unwrap_or_default()];
        let asked = said.into_iter().find(|formats| !formats.is_empty()).unwrap_or_default();
        let is_said = self.video
            || self.layout.is_some()
            || self.layout_page.is_some()
            || self.recording_audio_only == Some(false);
        let of_system = self.system_layout.or_else(|| file.layout.clone());
        let is_implied = of_system.is_some() && (asked.is_empty() || asked == [Format::Mp4]);
        config.names_people = self.name_people;
        config.pictures = self.pictures;
        config.quality = Quality { depth: self.pcm_bits, mp3_bitrate: self.mp3_bitrate, mp4_codec: self.mp4_codec };
        let picture = (is_said || is_implied).then(|| Picture {
            layout: self.layout.or(of_system),
            page: self.layout_page,
            preset: self.picture.into(),
        });
        config.set_form(&asked, picture)
    }
}

impl From<PresetArg> for Preset {
    fn from(preset: PresetArg) -> Self {
        match preset {
            PresetArg::P720R30 => Self::H264_720P_30,
            PresetArg::P720R60 => Self::H264_720P_60,
            PresetArg::P1080R30 => Self::H264_1080P_30,
            PresetArg::P1080R60 => Self::H264_1080P_60,
            PresetArg::Portrait720 => Self::Portrait720P_30,
            PresetArg::Portrait1080 => Self::Portrait1080P_30,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::egress::FileFormat;
    use crate::room::Credentials;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn applied(args: &[&str], file: &ConfigFile) -> Result<Config, ConfigError> {
        let key = Credentials::ApiKey { key: "k".into(), secret: "s".into() };
        let mut config = Config::new("ws://x", key, "room");
        let only = Only::try_parse_from([&["x"], args].concat()).unwrap();
        only.engine.apply(&mut config, file).map(|()| config)
    }

    #[test]
    fn a_picture_is_asked_for_in_the_words_of_several_systems() {
        let none = ConfigFile::default();
        for args in [&["--video"][..], &["--layout", "grid"], &["--recording-audio-only", "false"]] {
            let config = applied(args, &none).unwrap();
            assert!(config.uses_egress() && config.format == FileFormat::Mp4, "{args:?}");
        }
        let file =
            ConfigFile { layout: Some("grid-16".into()), file_type: Some("MP4".into()), ..ConfigFile::default() };
        let config = applied(&[], &file).unwrap();
        assert_eq!(config.picture.unwrap().layout.as_deref(), Some("grid-16"));
        // The sound alone is the bot's, whatever layout a system has by default.
        let sound = ConfigFile { file_type: Some("OGG".into()), ..file };
        let config = applied(&[], &sound).unwrap();
        assert!(!config.uses_egress() && config.format == FileFormat::Ogg);
        assert!(!applied(&["--recording-file-format", "ogg"], &none).unwrap().uses_egress());
    }

    #[test]
    fn the_engine_is_chosen_by_name() {
        let none = ConfigFile::default();
        for (word, engine) in [
            ("auto", Engine::Auto),
            ("callreel", Engine::Callreel),
            ("libwebrtc", Engine::Libwebrtc),
            ("egress", Engine::Egress),
        ] {
            assert_eq!(applied(&["--engine", word], &none).unwrap().engine, engine);
        }
    }

    #[test]
    fn what_nobody_makes_is_named() {
        let none = ConfigFile::default();
        assert!(applied(&["--format", "webm", "--video"], &none).unwrap_err().to_string().contains("webm"));
        let sound = applied(&["--format", "webm,ogg", "--pcm-bits", "24"], &none).unwrap();
        assert_eq!((sound.formats, sound.quality.depth), (vec![Format::Ogg, Format::Webm], Depth::Bits24));
        let file = ConfigFile { file_type: Some("avi".into()), ..ConfigFile::default() };
        assert!(applied(&[], &file).unwrap_err().to_string().starts_with("file_type"));
        let config = applied(&["--fallback", "egress", "--fallback-after", "7s"], &none).unwrap();
        assert_eq!(config.fallback, Some(Fallback { after: Duration::from_secs(7) }));
    }
}
