//! Records many calls at once and tells what that costs.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    return load::main();
    #[cfg(not(target_os = "linux"))]
    {
        eprintln!("callreel-load reads /proc, which only Linux has");
        ExitCode::FAILURE
    }
}

#[cfg(target_os = "linux")]
mod load {
    use std::path::PathBuf;
    use std::process::ExitCode;
    use std::time::Duration;

    use callreel::config::OutputKind;
    use callreel::mix::Mixing;
    use callreel::testkit::TestkitError;
    use callreel::testkit::load::{Level, Mode, Plan, Programs, Recording, Sound, Source, ramp, run, serve};
    use clap::{Parser, ValueEnum};

    /// Opens calls on a livekit-server of its own, has them recorded, and tells what that costs.
    ///
    /// Publishers talk in this process; server and recorders have processes of their own, whose processor time and memory
    /// are read from /proc. What is said is the conversation among the fixtures, encoded once for all rooms.
    #[derive(Debug, Parser)]
    #[command(name = "callreel-load", version, max_term_width = 120)]
    struct Arguments {
        /// How many calls
        #[arg(long, default_value_t = 10, value_parser = at_least_one)]
        calls: usize,
        /// How many talk in a call
        #[arg(long, default_value_t = 2, value_parser = at_least_one)]
        talkers: usize,
        /// Sends packets straight to the recorder's sockets, without a server: for the limit of the recorder alone
        #[arg(long)]
        replay: bool,
        /// One process for all calls, a `callreel record` for each, or one `callreel serve`
        #[arg(long, value_enum, default_value_t = ModeArg::Pooled)]
        mode: ModeArg,
        /// How many seconds are measured
        #[arg(long, default_value_t = 20.0, value_parser = seconds)]
        seconds: f64,
        /// Which files are made of each call, with commas between: mix, dual, tracks
        #[arg(long, value_delimiter = ',', default_value = "mix")]
        outputs: Vec<OutputKind>,
        /// Decode and encode anew what could be passed through
        #[arg(long)]
        transcode: bool,
        /// Do not find out speakers, waveform and loudness
        #[arg(long)]
        no_analysis: bool,
        /// Publishers leave silence out (Opus DTX)
        #[arg(long)]
        dtx: bool,
        /// The level of the noise behind every voice, in dBFS [default: none]
        #[arg(long, value_name = "DBFS", allow_negative_numbers = true)]
        noise: Option<f64>,
        /// The processors that recorders may use, with commas between; everybody else uses the others
        #[arg(long, value_name = "CORES", value_delimiter = ',')]
        recorder_cores: Vec<usize>,
        /// Adds so many calls again and again until something does not keep up
        #[arg(long, value_name = "CALLS")]
        ramp: Option<usize>,
        /// The most calls of a ramp
        #[arg(long, value_name = "CALLS", default_value_t = 1_000)]
        most: usize,
        /// The folder of the programs that record, to compare builds with each other [default: that of this program]
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
        /// Prints one JSON object a row
        #[arg(long)]
        json: bool,
        /// Records what standard input tells it to
        #[arg(long, hide = true)]
        recorder: bool,
    }

    #[derive(Clone, Copy, Debug, ValueEnum)]
    enum ModeArg {
        Pooled,
        Process,
        Service,
    }

    pub(super) fn main() -> ExitCode {
        let arguments = Arguments::parse();
        let done = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| error.to_string())
            .and_then(|runtime| {
                if arguments.recorder {
                    runtime.block_on(serve()).map_err(|error| error.to_string())
                } else {
                    runtime.block_on(load(&arguments)).map_err(|error| error.to_string())
                }
            });
        match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("callreel-load: {error}");
                ExitCode::FAILURE
            }
        }
    }

    async fn load(arguments: &Arguments) -> Result<(), TestkitError> {
        let plan = Plan {
            programs: match &arguments.programs {
                Some(folder) => Programs::in_folder(folder),
                None => Programs::beside_this()?,
            },
            source: if arguments.replay { Source::Replay } else { Source::Server },
            mode: match arguments.mode {
                ModeArg::Pooled => Mode::Pooled,
                ModeArg::Process => Mode::Process,
                ModeArg::Service => Mode::Service,
            },
            recording: Recording {
                outputs: arguments.outputs.clone(),
                mixing: if arguments.transcode { Mixing::Transcode } else { Mixing::Auto },
                analysis: !arguments.no_analysis,
            },
            talkers: arguments.talkers,
            sound: Sound { dtx: arguments.dtx, noise: arguments.noise },
            recorder_cores: arguments.recorder_cores.clone(),
        };
        let window = Duration::from_secs_f64(arguments.seconds);
        let report = match arguments.ramp {
            None => run(plan, arguments.calls, window).await?,
            Some(step) => {
                let levels = (arguments.calls, step, arguments.most);
                ramp(plan, levels, window, |level| arguments.tell(level)).await?
            }
        };
        if arguments.json {
            println!("{}", serde_json::to_string(&report).expect("plain data becomes JSON"));
        } else {
            println!("{report}");
        }
        Ok(())
    }

    impl Arguments {
        fn tell(&self, level: &Level) {
            if self.json {
                println!("{}", serde_json::to_string(level).expect("plain data becomes JSON"));
            } else {
                println!("{level}");
            }
        }
    }

    fn at_least_one(text: &str) -> Result<usize, String> {
        text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "not a number above 0".to_owned())
    }

    fn seconds(text: &str) -> Result<f64, String> {
        let number = text.parse().ok().filter(|number| (0.5..=86_400.0).contains(number));
        number.ok_or_else(|| "not a number of seconds from 0.5 to 86400".to_owned())
    }

    #[cfg(test)]
    mod tests {
        use clap::CommandFactory;

        use super::*;

        #[test]
        fn the_flags_make_sense() {
            Arguments::command().debug_assert();
        }
    }
}
