//! What a file in another container than Ogg holds, as its reader found it.

use serde::Serialize;
use thiserror::Error;

use super::mp4::AacHead;
use super::ogg_page::{OpusHead, OpusTags};
use crate::time::SampleCount;

/// No more problems of one file than this are kept; the rest is counted.
const KEPT_PROBLEMS: usize = 100;

/// What is wrong with a WebM or MP4 file, seen as a recording in Opus.
#[derive(Clone, Debug, Error, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ContainerProblem {
    /// It does not begin like one.
    #[error("it does not begin like {container}")]
    NotThis {
        /// What was looked for.
        container: &'static str,
    },
    /// No track of Opus, nor one of AAC in MP4.
    #[error("there is no track of Opus in it, nor one of AAC in MP4")]
    NoTrack,
    /// Tracks beside the one that is read.
    #[error("{count} tracks beside the one that is read")]
    OtherTracks {
        /// How many.
        count: u64,
    },
    /// The track's header is missing or malformed.
    #[error("the track's header is missing or malformed")]
    BadHead,
    /// Bytes that make no sense where they are.
    #[error("{bytes} bytes that make no sense at offset {offset}")]
    Garbage {
        /// How many.
        bytes: u64,
        /// Where they begin.
        offset: u64,
    },
    /// A part that is malformed and was passed over.
    #[error("a malformed {part} at offset {offset}")]
    Malformed {
        /// Which.
        part: &'static str,
        /// Where it begins.
        offset: u64,
    },
    /// A part bigger than this reader keeps in memory; it was passed over.
    #[error("{bytes} bytes in one part at offset {offset} are too many to be read")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// Where it begins.
        offset: u64,
    },
    /// Bytes after the last whole unit.
    #[error("{bytes} bytes of an unfinished part after offset {offset}")]
    Truncated {
        /// How many.
        bytes: u64,
        /// Where the last whole unit ends.
        offset: u64,
    },
    /// Something that the format allows and this reader does not read.
    #[error("{feature} is not read")]
    Unsupported {
        /// What.
        feature: &'static str,
    },
    /// A packet that is no Opus packet; it was passed over.
    #[error("packet {index} is not an Opus packet")]
    BadPacket {
        /// The number of the packet, from 0.
        index: u64,
    },
    /// The container's time is ahead of what the packets hold.
    #[error("{samples} samples are missing before sample {at}")]
    Gap {
        /// How many.
        samples: u64,
        /// Where, in samples that the packets before sum to.
        at: u64,
    },
    /// The container's time is behind what the packets hold.
    #[error("{samples} samples too many before sample {at}")]
    Overlap {
        /// How many.
        samples: u64,
        /// Where, in samples that the packets before sum to.
        at: u64,
    },
    /// Audio is to be dropped before the end.
    #[error("audio is to be dropped before the end, at packet {index}")]
    TrimInside {
        /// The number of the packet, from 0.
        index: u64,
    },
    /// The index comes after the data: the file has to be read a second time.
    #[error("the index comes after the data: it takes a second reading")]
    IndexAfterData,
    /// Its end is missing.
    #[error("it has no end: it is still being written, or was stopped")]
    NoEnd,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Bytes looked at.
    pub bytes: u64,
    /// Whole clusters or fragments with packets of the track.
    pub units: u64,
    /// Audio packets.
    pub packets: u64,
    /// The identification header of Opus.
    pub head: Option<OpusHead>,
    /// How it is encoded where it is AAC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aac: Option<AacHead>,
    /// The tags, with the program that wrote the container as the vendor.
    pub tags: Option<OpusTags>,
    /// How long the container says it is, if it does.
    pub duration: Option<SampleCount>,
    /// What a player plays: pre-skip and what the end trims not counted.
    pub total: SampleCount,
    /// What the packets hold, pre-skip and what the end trims included.
    pub coded: SampleCount,
    /// Whether its end is there.
    pub ended: bool,
    /// Where the last whole unit ends, in bytes.
    pub whole: u64,
    /// What is wrong with it, in order; at most 100.
    pub problems: Vec<ContainerProblem>,
    /// Problems beyond those.
    pub more_problems: u64,
}

impl Contents {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    pub(super) fn problem(&mut self, problem: ContainerProblem) {
        if self.problems.len() < KEPT_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more_problems += 1;
        }
    }

    /// Counts a packet and hands it on with its samples at 48 kHz. One without, which is no packet, is only counted.
    pub(super) fn packet(&mut self, packet: &[u8], samples: Option<u32>, each: &mut dyn FnMut(&[u8], u32)) {
        let index = self.packets;
        self.packets += 1;
        match samples {
            Some(samples) => {
                self.coded += SampleCount(u64::from(samples));
                each(packet, samples);
            }
            None => self.problem(ContainerProblem::BadPacket { index }),
        }
    }

    /// Compares where the container says that the next packet lies with what the packets so far hold.
    pub(super) fn compare(&mut self, said: u64, tolerance: u64) {
        let at = self.coded.0;
        if said > at.saturating_add(tolerance) {
            self.problem(ContainerProblem::Gap { samples: said - at, at });
        } else if at > said.saturating_add(tolerance) {
            self.problem(ContainerProblem::Overlap { samples: at - said, at });
        }
    }

    /// What plays when `end` is where the last packet stops to count, in samples since the first packet's start, and `skip` are
    /// not played.
    pub(super) fn plays_to(&mut self, end: u64, skip: SampleCount) {
        self.total = SampleCount(end.min(self.coded.0).saturating_sub(skip.0));
    }
}
