//! `callreel config`: what holds for the service, and who says so.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::{ConfigFile, ServeConfig, ServeFlags, Setting};

use super::BAD_USAGE;
use super::say::err;
use super::serve::Flags;

/// Flags of `callreel config`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Secrets are shown as SET. Exit codes: 0 the configuration makes sense, 2 it does not.")]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// One JSON object instead of lines
    #[arg(long)]
    json: bool,
    /// The JSON schema of the configuration file, for editors
    #[arg(long, conflicts_with_all = ["json", "config", "listen", "out", "catalog", "spool", "public_url"])]
    schema: bool,
}

/// Prints the configuration.
pub fn run(args: Args) -> ExitCode {
    if args.schema {
        return print(&pretty(&schema()));
    }
    let flags = ServeFlags::from(args.flags);
    match ServeConfig::load(&flags, &|name| std::env::var(name).ok()) {
        Ok(config) if args.json => print(&pretty(&document(&config.settings()))),
        Ok(config) => print(&lines(&config.settings())),
        Err(error) => {
            err!("error: {error}");
            ExitCode::from(BAD_USAGE)
        }
    }
}

fn schema() -> Value {
    let mut schema = serde_json::to_value(schemars::schema_for!(ConfigFile)).unwrap_or_default();
    schema["title"] = "The configuration file of callreel".into();
    schema
}

fn lines(settings: &[Setting]) -> String {
    let width = settings.iter().map(|setting| setting.key.len()).max().unwrap_or(0);
    let line = |setting: &Setting| format!("{:width$}  {}  # {}\n", setting.key, setting.value, setting.source);
    settings.iter().map(line).collect()
}

fn document(settings: &[Setting]) -> Value {
    let entry = |setting: &Setting| {
        let told = json!({"value": setting.value, "source": setting.source.to_string()});
        (setting.key.clone(), told)
    };
    Value::Object(settings.iter().map(entry).collect())
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

fn print(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads may have read enough.
        Err(_) => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;

    #[test]
    fn settings_are_printed_with_their_sources() {
        let setting = |key: &str, value: Value, source| Setting { key: key.into(), value, source };
        let settings = [
            setting("listen", "127.0.0.1:8080".into(), Source::Default),
            setting("livekit_api_secret", "SET".into(), Source::Env("LIVEKIT_API_SECRET")),
        ];
        let text = lines(&settings);
        assert!(text.contains("listen              \"127.0.0.1:8080\"  # default\n"), "{text}");
        assert!(text.contains("livekit_api_secret  \"SET\"  # environment LIVEKIT_API_SECRET\n"), "{text}");
        assert_eq!(document(&settings)["listen"], json!({"value": "127.0.0.1:8080", "source": "default"}));
        assert_eq!(schema()["properties"]["rules"]["type"], "array");
    }
}
