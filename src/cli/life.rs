//! Flags that say when a recording begins, pauses and ends.

use std::time::Duration;

use crate::config::{Config, ConfigError, ParticipantRule, TrackFilter, TrackRule, duration};
use crate::recording::{ConsentRule, EndsWith};

/// Flags about a recording's life.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "When it records, and what")]
pub struct LifeArgs {
    /// The longest recording, such as 90s, 45m or 4h [default: none]
    #[arg(long, env = "CALLREEL_MAX_DURATION", value_name = "TIME", value_parser = duration)]
    max_duration: Option<Duration>,
    /// The most bytes, all files together [default: any number]
    #[arg(long, env = "CALLREEL_MAX_BYTES", value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Whose leaving ends it: last (anybody but agents and recorders), caller, or those whom a rule picks, which are as for
    /// --left; may be given again
    #[arg(long, env = "CALLREEL_ENDS_WITH", value_name = "WHO", value_delimiter = ',', default_value = "last")]
    ends_with: Vec<String>,
    /// How long the room may be without them before the recording ends
    #[arg(long, env = "CALLREEL_DEPARTURE_TIMEOUT", value_name = "TIME", value_parser = duration, default_value = "10s")]
    departure_timeout: Duration,
    /// How long they are waited for at first, in a room that the server may close meanwhile; 0s for ever
    #[arg(long, env = "CALLREEL_WAIT", value_name = "TIME", value_parser = duration, default_value = "10m")]
    wait: Duration,
    /// Ends it when nobody has said anything for so long [default: never]
    #[arg(long, env = "CALLREEL_STOP_AFTER_SILENCE", value_name = "TIME", value_parser = duration)]
    stop_after_silence: Option<Duration>,
    /// Records only these: a rule as for --left, source=microphone, or track=NAME; may be given again [default: all]
    #[arg(long, env = "CALLREEL_ONLY", value_name = "RULE", value_delimiter = ',')]
    only: Vec<String>,
    /// Does not record these, by rules as for --only
    #[arg(long, env = "CALLREEL_EXCEPT", value_name = "RULE", value_delimiter = ',')]
    except: Vec<String>,
    /// Keeps nothing before this is there: attribute=KEY, attribute=KEY=VALUE or message=TOPIC; of several, any
    #[arg(long, env = "CALLREEL_CONSENT", value_name = "SIGN", value_delimiter = ',')]
    consent: Vec<String>,
    /// What files have where it was paused: silence, or nothing (skip)
    #[arg(long, env = "CALLREEL_PAUSE_POLICY", value_name = "POLICY", default_value = "silence")]
    pause_policy: String,
    /// Who may pause it by data message, by rules as for --left [default: nobody]
    #[arg(long, env = "CALLREEL_CONTROLLERS", value_name = "RULE", value_delimiter = ',')]
    controllers: Vec<String>,
    /// Keys pressed on a telephone: ignore, note (in the manifest), or withhold (neither them nor their tones are kept)
    #[arg(long, env = "CALLREEL_DTMF", value_name = "POLICY", default_value = "ignore")]
    dtmf: String,
    /// After how long a leg is missed from which nothing comes; 0s never
    #[arg(long, env = "CALLREEL_LEG_SILENT_AFTER", value_name = "TIME", value_parser = duration, default_value = "10s")]
    leg_silent_after: Duration,
    /// How long SIGINT and SIGTERM leave for what a store has to take yet [default: as --upload-patience]
    #[arg(long, env = "CALLREEL_DRAIN", value_name = "TIME", value_parser = duration)]
    pub drain: Option<Duration>,
}

impl LifeArgs {
    /// Puts them into the configuration.
    pub fn apply(&self, config: &mut Config) -> Result<(), ConfigError> {
        let some = |time: Duration| Some(time).filter(|time| !time.is_zero());
        let stop = &mut config.life.stop;
        stop.max_duration = self.max_duration;
        stop.max_bytes = self.max_bytes;
        stop.ends_with = ends_with(&self.ends_with)?;
        stop.departure_timeout = self.departure_timeout;
        stop.wait = some(self.wait);
        stop.silence = self.stop_after_silence;
        let rules = |rules: &[String]| rules.iter().map(|rule| rule.parse()).collect::<Result<Vec<TrackRule>, _>>();
        config.tracks = TrackFilter { only: rules(&self.only)?, except: rules(&self.except)? };
        config.life.consent = self.consent.iter().map(|sign| sign.parse()).collect::<Result<Vec<ConsentRule>, _>>()?;
        config.life.pause = self.pause_policy.parse()?;
        config.life.controllers = participants(&self.controllers)?;
        config.dtmf = self.dtmf.parse()?;
        config.leg_silent_after = some(self.leg_silent_after);
        Ok(())
    }
}

fn ends_with(words: &[String]) -> Result<EndsWith, ConfigError> {
    match words {
        [word] if word == "last" => Ok(EndsWith::LastParticipant),
        [word] if word == "caller" => Ok(EndsWith::Caller),
        rules => participants(rules).map(EndsWith::Picked),
    }
}

fn participants(rules: &[String]) -> Result<Vec<ParticipantRule>, ConfigError> {
    rules.iter().map(|rule| rule.parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_leaving_ends_it_is_a_word_or_rules() {
        let read = |words: &[&str]| ends_with(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(&["last"]), Ok(EndsWith::LastParticipant));
        assert_eq!(read(&["caller"]), Ok(EndsWith::Caller));
        let rules = vec![ParticipantRule::Identity("a".into()), ParticipantRule::Identity("b".into())];
        assert_eq!(read(&["identity=a", "identity=b"]), Ok(EndsWith::Picked(rules)));
        assert!(read(&["first"]).is_err() && read(&["last", "caller"]).is_err());
    }
}
