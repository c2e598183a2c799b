//! What a recording costs, taken apart: the codecs alone, the way from RTP to Ogg, and the same behind SRTP.
//!
//! Every stage works on the same [`Conversation`] in the same steps of 20 ms, so that stages which take turns can be
//! compared with each other whatever else the machine does. What is not the recorder's work happens in
//! [`Recording::prepare`].

use crate::analysis::AnalysisConfig;
use crate::config::OutputKind;
use crate::mix::Mixing;
use crate::testkit::TestkitError;

mod codec_limit;
mod conversation;
mod rtp;
mod srtp;

pub use codec_limit::CodecLimit;
pub use conversation::{Conversation, TICK};
pub use rtp::Rtp;
pub use srtp::Srtp;

/// What a recording is to make; everything else is as `callreel record` has it by default.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which files.
    pub outputs: Vec<OutputKind>,
    /// Whether packets may be passed through or forwarded.
    pub mixing: Mixing,
    /// What is to be found out about the sound.
    pub analysis: AnalysisConfig,
}

impl Setup {
    /// A mix in which everything is decoded and encoded, with every analysis.
    pub fn transcoding() -> Self {
        Self { outputs: vec![OutputKind::Mix], mixing: Mixing::Transcode, analysis: AnalysisConfig::default() }
    }

    /// A mix of forwarded packets, and nothing beside it.
    pub fn forwarding() -> Self {
        Self { mixing: Mixing::Auto, analysis: AnalysisConfig::OFF, ..Self::transcoding() }
    }

    /// A mix of forwarded packets, with every analysis.
    pub fn forwarding_and_listening() -> Self {
        Self { mixing: Mixing::Auto, ..Self::transcoding() }
    }

    /// The two sides of a call in one file, passed through, and nothing beside it.
    pub fn passing() -> Self {
        Self { outputs: vec![OutputKind::Dual], ..Self::forwarding() }
    }
}

/// One of the recordings that a stage runs.
pub trait Recording {
    /// Makes what arrives in the next `ticks` steps; not the recorder's work.
    ///
    /// # Errors
    /// [`TestkitError::Simulation`] where the sending side fails.
    fn prepare(&mut self, ticks: u64) -> Result<(), TestkitError>;

    /// Does the work of one step and gives the bytes that came of it.
    ///
    /// # Errors
    /// [`TestkitError::Simulation`] where the recorder fails, or where nothing was prepared.
    fn tick(&mut self) -> Result<usize, TestkitError>;

    /// Drops all that is not the recorder's, so that its memory can be told: nothing can be prepared any more.
    fn strip(&mut self);
}

fn failed(error: &dyn std::fmt::Display) -> TestkitError {
    TestkitError::Simulation(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::encode::OggInspector;

    #[test]
    fn every_stage_writes_what_was_said() {
        let conversation = Arc::new(Conversation::among(3).unwrap());
        let transcoding = Setup::transcoding();
        let stages: [Box<dyn Recording>; 4] = [
            Box::new(CodecLimit::new(conversation.clone(), 100).unwrap()),
            Box::new(Rtp::new(conversation.clone(), 100, &transcoding).unwrap()),
            Box::new(Srtp::new(conversation.clone(), 100, &transcoding).unwrap()),
            Box::new(Srtp::new(conversation, 100, &Setup::forwarding()).unwrap()),
        ];
        let written = stages.map(|mut stage| {
            let seconds = 12;
            let mut bytes = 0;
            for _ in 0..seconds {
                stage.prepare(50).unwrap();
                bytes += (0..50).map(|_| stage.tick().unwrap()).sum::<usize>();
            }
            assert!(stage.tick().is_err() || stage.prepare(0).is_ok());
            bytes
        });
        // Speech at 32 kbit/s; a recorder that waits lags behind, and Ogg costs a little.
        let [limit, rtp, srtp, forward] = written.map(|bytes| bytes as f64);
        assert!(limit > 20_000.0, "{written:?}");
        assert!((0.6..1.2).contains(&(rtp / limit)) && (0.98..1.02).contains(&(srtp / rtp)), "{written:?}");
        // Senders spend more bits on the same sound, as they protect it against loss.
        assert!((0.6..2.0).contains(&(forward / limit)), "{written:?}");
    }

    #[test]
    fn the_packets_of_a_conversation_are_a_stream_that_ogg_takes() {
        for setup in [Setup::transcoding(), Setup::forwarding_and_listening(), Setup::forwarding(), Setup::passing()] {
            let mut rtp = Rtp::new(Arc::new(Conversation::among(2).unwrap()), 0, &setup).unwrap();
            let mut file = Vec::new();
            for _ in 0..500 {
                rtp.step(&mut file).unwrap();
            }
            let mut inspector = OggInspector::new();
            inspector.push_each(&file, &mut |_| {});
            let found = inspector.finish();
            assert!(found.duration.as_secs_f64() > 7.0, "{found:?} of {setup:?}");
        }
    }
}
