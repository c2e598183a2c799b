//! The account of a track: how each sample of its span was settled, and what was counted beside it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::{MediaTime, SampleCount};

/// Rows kept one by one. Even a call that loses a packet every second fills them only after fourteen hours; beyond, the
/// sums go on exactly in [`TrackLedger::beyond`] and memory stays below 3 MiB a track.
const MAX_ROWS: usize = 100_000;

/// How a stretch of a track's timeline was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// The packet arrived, the first time or retransmitted.
    Received,
    /// Lost, and restored from the in-band FEC of the packet after it.
    Recovered,
    /// Lost, and concealed by the decoder: at most 120 ms in a row.
    Concealed,
    /// Published, but no packet yet.
    NotStarted,
    /// Timestamps went on without packets, and no sequence number is missing.
    SilentDtx,
    /// The publisher had muted.
    SilentMuted,
    /// The sender stopped, and its clock with it; or a new stream took over.
    SilentSenderStopped,
    /// Lost for good, or arrived too late to be placed.
    Lost,
    /// The recorder was not there.
    RecorderDown,
    /// The recording was paused.
    Withheld,
    /// The packet arrived end-to-end encrypted, and no key opens it.
    Undecryptable,
}

impl Reason {
    /// Every reason, in the order of the sums.
    pub const ALL: [Self; 11] = [
        Self::Received,
        Self::Recovered,
        Self::Concealed,
        Self::NotStarted,
        Self::SilentDtx,
        Self::SilentMuted,
        Self::SilentSenderStopped,
        Self::Lost,
        Self::RecorderDown,
        Self::Withheld,
        Self::Undecryptable,
    ];

    /// Whether audio that was spoken is missing there.
    pub fn degrades(self) -> bool {
        matches!(self, Self::Lost | Self::RecorderDown | Self::Undecryptable)
    }
}

/// Samples by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sums {
    /// Samples [received](Reason::Received).
    pub received: u64,
    /// Samples [recovered](Reason::Recovered).
    pub recovered: u64,
    /// Samples [concealed](Reason::Concealed).
    pub concealed: u64,
    /// Samples before the [first packet](Reason::NotStarted).
    pub not_started: u64,
    /// Samples of [discontinuous transmission](Reason::SilentDtx).
    pub silent_dtx: u64,
    /// Samples [muted](Reason::SilentMuted).
    pub silent_muted: u64,
    /// Samples while the [sender had stopped](Reason::SilentSenderStopped).
    pub silent_sender_stopped: u64,
    /// Samples [lost](Reason::Lost).
    pub lost: u64,
    /// Samples while the [recorder was down](Reason::RecorderDown).
    pub recorder_down: u64,
    /// Samples [withheld](Reason::Withheld).
    pub withheld: u64,
    /// Samples [undecryptable](Reason::Undecryptable).
    pub undecryptable: u64,
}

impl Sums {
    /// The sum of one reason.
    pub fn get(&self, reason: Reason) -> SampleCount {
        let mut copy = *self;
        SampleCount(*copy.slot(reason))
    }

    /// All of them together.
    pub fn total(&self) -> SampleCount {
        SampleCount(Reason::ALL.iter().fold(0, |sum, reason| sum.saturating_add(self.get(*reason).0)))
    }

    fn add(&mut self, reason: Reason, samples: SampleCount) {
        let sum = self.slot(reason);
        // A ledger that was read from a file may claim anything.
        *sum = sum.saturating_add(samples.0);
    }

    fn slot(&mut self, reason: Reason) -> &mut u64 {
        match reason {
            Reason::Received => &mut self.received,
            Reason::Recovered => &mut self.recovered,
            Reason::Concealed => &mut self.concealed,
            Reason::NotStarted => &mut self.not_started,
            Reason::SilentDtx => &mut self.silent_dtx,
            Reason::SilentMuted => &mut self.silent_muted,
            Reason::SilentSenderStopped => &mut self.silent_sender_stopped,
            Reason::Lost => &mut self.lost,
            Reason::RecorderDown => &mut self.recorder_down,
            Reason::Withheld => &mut self.withheld,
            Reason::Undecryptable => &mut self.undecryptable,
        }
    }
}

/// A half-open stretch `[start, end)` of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// First sample.
    pub start: MediaTime,
    /// One past the last sample.
    pub end: MediaTime,
    /// How it was settled.
    pub reason: Reason,
}

/// What is counted beside the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Counters {
    /// Packets taken in, blank ones and duplicates not counted.
    pub packets_received: u64,
    /// Payload bytes of those.
    pub bytes_received: u64,
    /// Of those, packets that filled a hole which later packets had opened.
    pub packets_retransmitted: u64,
    /// Packets that were there already.
    pub packets_duplicate: u64,
    /// Packets that came after their place had been settled.
    pub packets_late: u64,
    /// Packets whose time another packet had covered already.
    pub packets_overlap: u64,
    /// Silent packets that the server put in.
    pub packets_blank: u64,
    /// Packets that no decoder would take.
    pub packets_malformed: u64,
    /// Single packets with a timestamp that neither their neighbours nor the clock agree with.
    pub packets_stray: u64,
    /// Packets withheld while the recording was paused.
    pub packets_withheld: u64,
    /// Packets that arrived end-to-end encrypted, and no key opens.
    pub packets_undecryptable: u64,
    /// Times the clock map broke and was laid anew: a new stream, a timestamp reset, collapsed time, a return from mute.
    pub re_anchors: u64,
    /// Of those, times the sender's clock had stood still while it did not send.
    pub collapses: u64,
    /// Times the path became longer or shorter while the map stood.
    pub route_changes: u64,
    /// Times the buffer was full and was emptied before its time.
    pub overflows: u64,
}

/// How well the clock map fitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Alignment {
    /// How much slower (positive) or faster the sender's clock runs than ours, in parts per million, as last estimated.
    pub skew_ppm: f64,
    /// The furthest that a packet was placed from where the map wanted it once the map had converged, in samples.
    pub worst_offset_samples: f64,
    /// The same while the map was still converging.
    pub worst_offset_converging_samples: f64,
}

/// The ledger of one track. Its rows, and the sums beyond them, cover `[start, end)` without hole or overlap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrackLedger {
    /// Where the span begins: published, or sample 0.
    pub start: MediaTime,
    /// Where it ends: unpublished, or as far as the track is settled.
    pub end: MediaTime,
    /// The sum of each reason over the whole span.
    pub sums: Sums,
    /// The rows in order; neighbours have different reasons.
    pub rows: Vec<Row>,
    /// The sums of what lies after the last row, where there were too many rows to keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beyond: Option<Sums>,
    /// Packets.
    pub counters: Counters,
    /// The clock map.
    pub alignment: Alignment,
}

impl TrackLedger {
    pub(super) fn new(start: MediaTime) -> Self {
        Self {
            start,
            end: start,
            sums: Sums::default(),
            rows: Vec::new(),
            beyond: None,
            counters: Counters::default(),
            alignment: Alignment::default(),
        }
    }

    /// Adds the stretch from the ledger's end to `end`; does nothing where that is no stretch.
    pub(super) fn extend(&mut self, end: MediaTime, reason: Reason) {
        let Some(samples) = end.checked_since(self.end).filter(|samples| samples.0 > 0) else { return };
        self.sums.add(reason, samples);
        let start = std::mem::replace(&mut self.end, end);
        if let Some(beyond) = &mut self.beyond {
            return beyond.add(reason, samples);
        }
        let full = self.rows.len() == MAX_ROWS;
        match self.rows.last_mut() {
            Some(last) if last.reason == reason => last.end = end,
            _ if full => self.beyond.get_or_insert_default().add(reason, samples),
            _ => self.rows.push(Row { start, end, reason }),
        }
    }

    /// Checks the identity: rows without hole or overlap that, together with what lies beyond them, cover the span to
    /// the sample, and sums that agree with them.
    pub fn check_identity(&self) -> Result<(), LedgerError> {
        self.check(self.start, self.end.since(self.start))
    }

    /// Checks the [identity](Self::check_identity) against a span known from elsewhere.
    pub fn check(&self, start: MediaTime, span: SampleCount) -> Result<(), LedgerError> {
        if self.start != start || self.end != start + span {
            return Err(LedgerError::OtherSpan { start: self.start, end: self.end });
        }
        let mut sums = self.beyond.unwrap_or_default();
        let mut at = self.start;
        for (index, row) in self.rows.iter().enumerate() {
            if row.start != at || row.end <= row.start {
                return Err(LedgerError::Row { index, row: *row, expected: at });
            }
            sums.add(row.reason, row.end.since(row.start));
            at = row.end;
        }
        if self.beyond.is_none() && at != self.end {
            return Err(LedgerError::Row {
                index: self.rows.len(),
                row: Row { start: at, end: at, reason: Reason::Lost },
                expected: self.end,
            });
        }
        if sums != self.sums || self.sums.total() != span {
            return Err(LedgerError::Sum { total: self.sums.total(), span });
        }
        Ok(())
    }
}

/// A ledger that does not add up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The ledger covers another span than it should.
    #[error("the ledger covers [{start}, {end}), which is not the track's span")]
    OtherSpan {
        /// Its start.
        start: MediaTime,
        /// Its end.
        end: MediaTime,
    },
    /// A row does not begin where the one before it ended, or is empty.
    #[error("row {index} ({row}) should begin at sample {}", expected.0)]
    Row {
        /// Its index.
        index: usize,
        /// The row.
        row: Row,
        /// Where it should have begun.
        expected: MediaTime,
    },
    /// The sums do not agree with the rows or the span.
    #[error("the sums make {} samples of a span of {}", total.0, span.0)]
    Sum {
        /// The sum of sums.
        total: SampleCount,
        /// The span.
        span: SampleCount,
    },
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}) {:?}", self.start.0, self.end.0, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_the_identity_holds() {
        let mut ledger = TrackLedger::new(MediaTime(100));
        ledger.extend(MediaTime(200), Reason::NotStarted);
        ledger.extend(MediaTime(1160), Reason::Received);
        ledger.extend(MediaTime(1160), Reason::Lost);
        ledger.extend(MediaTime(2121), Reason::Received);
        assert_eq!(ledger.rows.len(), 2);
        assert_eq!(ledger.sums.get(Reason::Received), SampleCount(1921));
        assert_eq!(ledger.check_identity(), Ok(()));
        assert_eq!(ledger.check(MediaTime(100), SampleCount(2021)), Ok(()));
        assert!(ledger.check(MediaTime(0), SampleCount(2121)).is_err());
    }

    #[test]
    fn what_does_not_add_up_is_found() {
        let mut ledger = TrackLedger::new(MediaTime(0));
        ledger.extend(MediaTime(960), Reason::Received);
        ledger.extend(MediaTime(1920), Reason::Lost);
        let mut gap = ledger.clone();
        gap.rows[1].start = MediaTime(961);
        assert!(matches!(gap.check_identity(), Err(LedgerError::Row { index: 1, .. })));
        let mut sum = ledger.clone();
        sum.sums.lost += 1;
        assert!(matches!(sum.check_identity(), Err(LedgerError::Sum { .. })));
        ledger.rows.pop();
        assert!(ledger.check_identity().is_err());
    }

    #[test]
    fn too_many_rows_go_on_as_sums() {
        let mut ledger = TrackLedger::new(MediaTime(0));
        for i in 0..MAX_ROWS as i64 + 11 {
            let reason = if i % 2 == 0 { Reason::Received } else { Reason::Lost };
            ledger.extend(MediaTime((i + 1) * 960), reason);
        }
        assert_eq!(ledger.rows.len(), MAX_ROWS);
        assert_eq!(ledger.beyond.unwrap().total(), SampleCount(11 * 960));
        assert_eq!(ledger.check_identity(), Ok(()));
    }

    #[test]
    fn it_survives_json() {
        let mut ledger = TrackLedger::new(MediaTime(0));
        ledger.extend(MediaTime(960), Reason::SilentSenderStopped);
        let json = serde_json::to_string(&ledger).unwrap();
        assert!(json.contains(r#""reason":"silent_sender_stopped""#), "{json}");
        assert_eq!(serde_json::from_str::<TrackLedger>(&json).unwrap(), ledger);
    }
}
