//! From RTP packets to Ogg pages.

use std::sync::Arc;

use super::{Conversation, Recording, Setup, TICK, failed};
use crate::call::{Codec, ParticipantKind, TrackKey};
use crate::capture::TrackSpec;
use crate::clock;
use crate::config::Config;
use crate::mix::{Gain, Side};
use crate::recording::{Pipeline, Speaker};
use crate::room::{Credentials, RtpPacket};
use crate::testkit::TestkitError;
use crate::time::{ClockTime, RtpTime, SAMPLE_RATE, Seq};

/// Steps between two looks at what is settled, as in a real recording.
const ADVANCE_EVERY: u64 = 5;

/// The audio path of a recording, fed with RTP packets.
pub struct Rtp {
    conversation: Arc<Conversation>,
    from: u64,
    tick: u64,
    prepared: u64,
    pipeline: Pipeline,
    /// What carries an arrival time as packets off a socket do; only differences between these count.
    zero: std::time::Instant,
}

impl Rtp {
    /// Begins `from` steps into the conversation.
    ///
    /// # Errors
    /// [`TestkitError::Simulation`] where the pipeline cannot be made.
    pub fn new(conversation: Arc<Conversation>, from: u64, setup: &Setup) -> Result<Self, TestkitError> {
        let pipeline = pipeline(conversation.participants(), setup)?;
        Ok(Self { conversation, from, tick: 0, prepared: 0, pipeline, zero: crate::clock::now() })
    }

    /// As [`Recording::tick`], with the pages appended to `file`.
    pub(super) fn step(&mut self, file: &mut Vec<u8>) -> Result<(), TestkitError> {
        let seq = self.from + self.tick;
        for participant in 0..self.conversation.participants() {
            let packet = RtpPacket {
                track: TrackKey(participant as u32),
                ssrc: participant as u32,
                codec: Codec::Opus,
                seq: Seq(seq),
                rtp: RtpTime((seq * u64::from(SAMPLE_RATE) / 50) as i64),
                marker: false,
                payload: self.conversation.packet(participant, seq).clone(),
                undecryptable: false,
                arrival: self.zero,
            };
            self.pipeline.packet(&packet, self.conversation.arrival(participant, self.tick));
        }
        self.tick += 1;
        if is_due(self.tick) {
            file.extend(advance(&mut self.pipeline, self.tick)?);
        }
        Ok(())
    }
}

impl Recording for Rtp {
    fn prepare(&mut self, ticks: u64) -> Result<(), TestkitError> {
        self.prepared += ticks;
        Ok(())
    }

    fn tick(&mut self) -> Result<usize, TestkitError> {
        if self.tick == self.prepared {
            return Err(failed(&"nothing is prepared"));
        }
        let mut pages = Vec::new();
        self.step(&mut pages)?;
        Ok(pages.len())
    }

    fn strip(&mut self) {}
}

/// A pipeline to which `participants` tracks have been published.
pub(super) fn pipeline(participants: usize, setup: &Setup) -> Result<Pipeline, TestkitError> {
    let nobody = Credentials::ApiKey { key: String::new(), secret: String::new() };
    let mut config = Config::new("ws://127.0.0.1", nobody, "density");
    config.outputs.clone_from(&setup.outputs);
    config.mixing = setup.mixing;
    config.analysis = setup.analysis;
    let mut pipeline = Pipeline::new(&config, 1, clock::wall()).map_err(|error| failed(&error))?;
    for participant in 0..participants {
        let spec = TrackSpec { kind: ParticipantKind::Standard, codec: Codec::Opus, muted: false };
        let side = if participant % 2 == 0 { Side::Left } else { Side::Right };
        let speaker = Speaker { identity: format!("speaker {participant}"), side, gain: Gain::UNITY };
        pipeline
            .published(TrackKey(participant as u32), &speaker, spec, ClockTime::ZERO)
            .map_err(|error| failed(&error))?;
    }
    Ok(pipeline)
}

/// Mixes and encodes what is settled once all packets of the first `ticks` steps have come.
pub(super) fn advance(pipeline: &mut Pipeline, ticks: u64) -> Result<Vec<u8>, TestkitError> {
    let now = ClockTime::ZERO + TICK * ticks as u32;
    pipeline.advance(now, None);
    Ok(pipeline.take_pages().into_iter().flat_map(|(_, pages)| pages).collect())
}

/// Whether a recording looks at what is settled after so many steps.
pub(super) fn is_due(ticks: u64) -> bool {
    ticks.is_multiple_of(ADVANCE_EVERY)
}
