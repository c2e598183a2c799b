//! Who records: callreel's own bot, or LiveKit Egress.

use std::time::Duration;

use super::{Config, ConfigError, OutputKind, PictureKind, TrackFilter};
use crate::egress::{EgressRequest, FileFormat, FileOutput, Media, Preset, Source, Upload};
use crate::encode::Format;
use crate::recording::DtmfPolicy;
use crate::render::{Render, Rendering};
use crate::room::{RoomEngine, RoomMovedPolicy, TransportPolicy};

/// Who records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// LiveKit Egress where there is to be a picture, callreel's own bot for everything else. The default.
    #[default]
    Auto,
    /// callreel's own bot.
    Callreel,
    /// callreel's own bot, with LiveKit's official SDK to receive media; only where it was
    /// [built in](RoomEngine::Libwebrtc).
    Libwebrtc,
    /// LiveKit Egress.
    Egress,
}

/// What stands in where callreel's own bot cannot record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// How long the bot tries to join, or to come back into a call that it has lost, before LiveKit Egress records instead.
    /// 20 s as a rule.
    pub after: Duration,
}

impl Default for Fallback {
    fn default() -> Self {
        Self { after: Duration::from_secs(20) }
    }
}

/// The picture of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// The layout, as the page knows it that composes the picture. Default: the page's own.
    pub layout: Option<String>,
    /// Another page than the service's own, `http://` or `https://`.
    pub page: Option<String>,
    /// Size and rate.
    pub preset: Preset,
}

impl Config {
    /// Whether LiveKit Egress records, from the start.
    pub fn uses_egress(&self) -> bool {
        match self.engine {
            Engine::Auto => self.picture.is_some(),
            Engine::Callreel | Engine::Libwebrtc => false,
            Engine::Egress => true,
        }
    }

    /// Says in which formats a recording is to be, and with which picture. Where no format is said, it is MP4 with a picture,
    /// else Ogg.
    ///
    /// # Errors
    /// What nobody makes.
    pub fn set_form(&mut self, formats: &[Format], picture: Option<Picture>) -> Result<(), ConfigError> {
        let usual = if picture.is_some() { Format::Mp4 } else { Format::Ogg };
        let formats = if formats.is_empty() { &[usual] } else { formats };
        let by_egress = Self { picture: picture.clone(), ..self.clone() }.uses_egress();
        self.format = match formats {
            [Format::Mp4] => FileFormat::Mp4,
            [Format::Mp3] => FileFormat::Mp3,
            [Format::Ogg] => FileFormat::Ogg,
            [format] if by_egress => {
                return Err(ConfigError::NotAvailable { what: format!("the format {format} by LiveKit Egress") });
            }
            _ if by_egress => {
                return Err(ConfigError::NotAvailable { what: "more than one format by LiveKit Egress".into() });
            }
            _ => FileFormat::Ogg,
        };
        self.picture = picture;
        self.formats = formats.to_vec();
        // What the others are made of comes first.
        self.formats.sort_by_key(|format| *format != Format::Ogg);
        Ok(())
    }

    /// The ending of what the recording is called after.
    pub(crate) fn main_ext(&self) -> &'static str {
        match self.formats.first() {
            Some(first) if !self.uses_egress() => first.as_str(),
            _ => self.format.ext(),
        }
    }

    /// Checks what callreel's own bot is to write.
    fn validate_formats(&self) -> Result<(), ConfigError> {
        let invalid = |why: String| Err(ConfigError::Invalid { key: "format", why });
        if self.formats.is_empty() {
            return Err(ConfigError::Missing { key: "format", hint: "at least one of ogg, webm, mp4, wav, flac, mp3" });
        }
        if self.pictures.contains(&PictureKind::Spectrogram) && !self.encryption.is_empty() {
            let why = "a spectrogram is drawn of sound that nobody here can read; a waveform is".into();
            return Err(ConfigError::Invalid { key: "pictures", why });
        }
        for (n, format) in self.formats.iter().enumerate() {
            if self.formats[..n].contains(format) {
                return invalid(format!("{format} is there twice"));
            }
            if *format == Format::Ogg {
                continue;
            }
            if !self.encryption.is_empty() {
                return invalid(format!("recordings are encrypted as ogg alone, not as {format}"));
            }
            let rendering = Rendering { format: *format, quality: self.quality };
            if let Err(error) = Render::new(rendering) {
                return invalid(error.to_string());
            }
        }
        Ok(())
    }

    /// Who receives media where callreel's own bot records.
    pub(crate) fn room_engine(&self) -> RoomEngine {
        match self.engine {
            Engine::Libwebrtc => RoomEngine::Libwebrtc,
            Engine::Auto | Engine::Callreel | Engine::Egress => RoomEngine::Callreel,
        }
    }

    /// Checks what of the configuration says who records.
    pub(super) fn validate_engine(&self) -> Result<(), ConfigError> {
        let invalid = |key, why: String| Err(ConfigError::Invalid { key, why });
        if self.uses_egress() {
            self.validate_for_egress("engine")?;
            if self.picture.is_some() && !self.format.holds_video() {
                return invalid("format", format!("{} holds no picture; mp4 does", self.format.ext()));
            }
            let upload = Upload::of_the_service();
            let file = FileOutput { format: self.format, path: "name".into(), upload };
            let request = self.egress_request(file, self.format);
            return request.validate().map_err(|e| ConfigError::Invalid { key: "engine", why: e.to_string() });
        }
        if self.picture.is_some() {
            return invalid("engine", "callreel's own bot records no picture; LiveKit Egress does".into());
        }
        self.validate_formats()?;
        if self.engine == Engine::Libwebrtc {
            self.validate_for_libwebrtc()?;
        }
        if self.fallback.is_some() {
            self.validate_for_egress("fallback")?;
        }
        Ok(())
    }

    fn validate_for_libwebrtc(&self) -> Result<(), ConfigError> {
        if !RoomEngine::Libwebrtc.is_available() {
            let why = "libwebrtc is not available in this build; it takes one with the cargo feature libwebrtc".into();
            return Err(ConfigError::Invalid { key: "engine", why });
        }
        self.libwebrtc_does()
    }

    /// Checks that nothing is asked for that only callreel's own receiver does.
    fn libwebrtc_does(&self) -> Result<(), ConfigError> {
        let invalid = |key, why: &str| Err(ConfigError::Invalid { key, why: format!("engine libwebrtc {why}") });
        if !self.e2ee.is_empty() {
            return invalid("e2ee", "opens no end-to-end encrypted calls");
        }
        if self.dtmf == DtmfPolicy::Withhold {
            return invalid(
                "dtmf",
                "hands out sound later than keys, by no known time, so that no tone is kept out for certain",
            );
        }
        if matches!(self.transport, TransportPolicy::Udp | TransportPolicy::Tcp) {
            return invalid("transport", "chooses between UDP and TCP by itself");
        }
        if self.room_moved == RoomMovedPolicy::Follow {
            return invalid("room_moved", "follows into no other room");
        }
        Ok(())
    }

    fn validate_for_egress(&self, key: &'static str) -> Result<(), ConfigError> {
        let invalid = |why: String| Err(ConfigError::Invalid { key, why });
        let Some(store) = &self.store else {
            let dir = self.out.display();
            return invalid(format!("LiveKit Egress cannot write into this machine's folder {dir}; it needs a store"));
        };
        if let Err(error) = Upload::of(store) {
            return invalid(error.to_string());
        }
        if !self.encryption.is_empty() {
            return invalid("LiveKit Egress writes plain files, and these are to be encrypted".into());
        }
        if key == "engine" {
            if self.outputs != [OutputKind::Mix] {
                return invalid(
                    "LiveKit Egress makes one file with everybody in it; dual and tracks are callreel's".into(),
                );
            }
            if self.tracks != TrackFilter::default() || self.dtmf == DtmfPolicy::Withhold {
                return invalid("LiveKit Egress records everybody, with all they say".into());
            }
            if !self.e2ee.is_empty() {
                return invalid("LiveKit Egress has no keys to calls that are encrypted from end to end".into());
            }
            if !self.life.consent.is_empty() {
                return invalid("LiveKit Egress does not look for consent".into());
            }
        }
        Ok(())
    }

    /// What LiveKit Egress is asked for: everybody, with the picture that is configured.
    pub(crate) fn egress_request(&self, file: FileOutput, format: FileFormat) -> EgressRequest {
        let picture = self.picture.clone().filter(|_| format.holds_video());
        let media = if picture.is_some() { Media::Both } else { Media::Audio };
        let Picture { layout, page, preset } = picture.unwrap_or_default();
        let mut source = Source::room(&self.room, layout.as_deref(), media);
        if let Source::Room { base_url, .. } = &mut source {
            *base_url = page;
        }
        EgressRequest { preset, ..EgressRequest::new(source, file) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::e2ee::{E2eeConfig, KeyMaterial};
    use crate::room::Credentials;
    use crate::store::{S3Config, StoreConfig};

    fn config() -> Config {
        let key = Credentials::ApiKey { key: "k".into(), secret: "s".into() };
        let mut config = Config::new("ws://x", key, "room");
        config.store = Some(StoreConfig::S3(S3Config { bucket: "b".into(), ..S3Config::default() }));
        config
    }

    fn refused(adjust: impl FnOnce(&mut Config)) -> String {
        let mut config = config();
        adjust(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_picture_is_made_by_egress_and_sound_by_the_bot() {
        let mut config = config();
        config.validate().unwrap();
        assert!(!config.uses_egress());
        config.picture = Some(Picture::default());
        config.format = FileFormat::Mp4;
        config.validate().unwrap();
        assert!(config.uses_egress());
        config = Config { picture: None, engine: Engine::Egress, format: FileFormat::Mp3, ..config };
        config.validate().unwrap();
        assert!(config.uses_egress());
    }

    #[test]
    fn a_receiver_that_is_not_in_this_build_is_refused() {
        let mut config = config();
        config.engine = Engine::Libwebrtc;
        assert!(!config.uses_egress());
        assert_eq!(config.room_engine(), RoomEngine::Libwebrtc);
        let verdict = config.validate().map_err(|error| error.to_string());
        if cfg!(feature = "libwebrtc") {
            verdict.unwrap();
        } else {
            assert!(verdict.unwrap_err().starts_with("engine: libwebrtc is not available in this build"));
        }
        config.engine = Engine::Auto;
        assert_eq!(config.room_engine(), RoomEngine::Callreel);
    }

    #[test]
    fn what_libwebrtc_does_not_do_is_refused_by_name() {
        config().libwebrtc_does().unwrap();
        for (key, adjust) in [
            ("dtmf", Box::new(|config: &mut Config| config.dtmf = DtmfPolicy::Withhold) as Box<dyn Fn(&mut Config)>),
            (
                "e2ee",
                Box::new(|config| {
                    config.e2ee = E2eeConfig::new().shared_key(0, KeyMaterial::passphrase("sesame"));
                }),
            ),
            ("transport", Box::new(|config| config.transport = TransportPolicy::Udp)),
            ("transport", Box::new(|config| config.transport = TransportPolicy::Tcp)),
            ("room_moved", Box::new(|config| config.room_moved = RoomMovedPolicy::Follow)),
        ] {
            let mut config = config();
            adjust(&mut config);
            let error = config.libwebrtc_does().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        }
    }

    #[test]
    fn what_nobody_can_make_is_refused_by_name() {
        let video = |config: &mut Config| config.picture = Some(Picture::default());
        assert!(
            refused(|config| config.formats = vec![Format::Ogg, Format::Wav, Format::Wav])
                .contains("wav is there twice")
        );
        assert!(refused(|config| config.formats.clear()).contains("format is missing"));
        assert!(refused(video).contains("ogg holds no picture"));
        for (key, adjust) in [
            ("engine", Box::new(|config: &mut Config| config.engine = Engine::Egress) as Box<dyn Fn(&mut Config)>),
            ("fallback", Box::new(|config: &mut Config| config.fallback = Some(Fallback::default()))),
        ] {
            let error = refused(|config| {
                adjust(config);
                config.store = None;
                config.out = "calls".into();
            });
            assert!(error.starts_with(key) && error.contains("calls"), "{error}");
            let error = refused(|config| {
                adjust(config);
                let s3 = S3Config { kms_key: Some("k".into()), ..S3Config::default() };
                config.store = Some(StoreConfig::S3(s3));
            });
            assert!(error.starts_with(key) && error.contains("storage.s3.kms_key"), "{error}");
        }
        assert!(
            refused(|config| {
                config.engine = Engine::Egress;
                config.outputs = vec![OutputKind::Dual];
            })
            .contains("dual")
        );
        for (word, adjust) in [
            (
                "everybody",
                Box::new(|config: &mut Config| config.dtmf = DtmfPolicy::Withhold) as Box<dyn Fn(&mut Config)>,
            ),
            ("everybody", Box::new(|config| config.tracks.except = vec!["kind=agent".parse().unwrap()])),
            ("consent", Box::new(|config| config.life.consent = vec!["attribute=a".parse().unwrap()])),
        ] {
            let error = refused(|config| {
                config.engine = Engine::Egress;
                adjust(config);
            });
            assert!(error.contains(word), "{error}");
        }
        assert!(
            refused(|config| {
                video(config);
                config.format = FileFormat::Mp4;
                config.engine = Engine::Callreel;
            })
            .contains("no picture")
        );
    }
}
