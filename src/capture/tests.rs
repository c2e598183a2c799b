//! Behaviour of a whole capture, one rule a test.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::time::SampleCount;

const TRACK: TrackKey = TrackKey(1);
/// SILK wideband, 20 ms, mono; no LBRR.
const SPEECH: &[u8] = &[0x48, 0x80, 7, 7];
/// The same with the LBRR flag set.
const SPEECH_FEC: &[u8] = &[0x48, 0xc0, 7, 7];

/// A capture with one track published at sample 0, driven by hand.
struct Call {
    capture: Capture,
    settled: Vec<Settled>,
    now: i64,
}

impl Call {
    fn new(kind: ParticipantKind) -> Self {
        let mut capture = Capture::new(CaptureConfig::default()).unwrap();
        capture.publish(TRACK, TrackSpec { kind, codec: Codec::Opus, muted: false }, ClockTime::ZERO);
        Self { capture, settled: Vec::new(), now: 0 }
    }

    /// Moves the clock to `millis`, looking in every 20 ms.
    fn until(&mut self, millis: i64) -> &mut Self {
        while self.now < millis {
            self.now = (self.now + 20).min(millis);
            self.capture.advance(ClockTime::from_millis(self.now), &mut self.settled);
        }
        self
    }

    fn packet(&mut self, seq: u64, rtp: i64, millis: i64) -> &mut Self {
        self.payload(seq, rtp, millis, SPEECH)
    }

    fn payload(&mut self, seq: u64, rtp: i64, millis: i64, payload: &'static [u8]) -> &mut Self {
        self.of_stream(1, seq, rtp, millis, payload)
    }

    fn of_stream(&mut self, ssrc: u32, seq: u64, rtp: i64, millis: i64, payload: &'static [u8]) -> &mut Self {
        self.until(millis);
        let packet = Packet {
            ssrc,
            codec: Codec::Opus,
            seq: Seq(seq),
            rtp: RtpTime(rtp),
            marker: false,
            payload: Bytes::from_static(payload),
            undecryptable: false,
        };
        self.capture.packet(TRACK, packet, ClockTime::from_millis(millis));
        self
    }

    /// Packets `from..to` of an undisturbed stream whose packet 0 arrives at 1000 ms.
    fn stream(&mut self, packets: std::ops::Range<u64>) -> &mut Self {
        for i in packets {
            self.packet(i, i as i64 * 960, 1000 + i as i64 * 20);
        }
        self
    }

    fn finish(&mut self, millis: i64) -> TrackLedger {
        self.until(millis);
        self.capture.finish(ClockTime::from_millis(millis), &mut self.settled);
        let ledger = self.capture.ledger(TRACK).unwrap();
        ledger.check_identity().unwrap();
        let mut at = ledger.start;
        for stretch in &self.settled {
            assert_eq!(stretch.start, at, "no hole, no overlap");
            assert!(stretch.end > stretch.start);
            at = stretch.end;
        }
        assert_eq!(at, ledger.end);
        ledger
    }

    /// Where the packets lie, in milliseconds.
    fn starts(&self) -> Vec<i64> {
        let packets = self.settled.iter().filter(|stretch| matches!(stretch.content, Content::Packet { .. }));
        packets.map(|stretch| (stretch.start.0 + 24).div_euclid(48)).collect()
    }
}

fn rows(ledger: &TrackLedger) -> Vec<(Reason, i64)> {
    ledger.rows.iter().map(|row| (row.reason, (row.end.0 - row.start.0 + 24) / 48)).collect()
}

#[test]
fn a_quiet_call_is_all_received() {
    let ledger = Call::new(ParticipantKind::Standard).stream(0..200).finish(5000);
    assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 4000)]);
    assert_eq!(ledger.counters.packets_received, 200);
}

#[test]
fn a_retransmitted_packet_costs_nothing() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100).stream(101..130).packet(100, 96_000, 3600).stream(130..200);
    let ledger = call.finish(5000);
    assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 4000)]);
    assert_eq!(ledger.counters.packets_retransmitted, 1);
}

#[test]
fn one_lost_packet_is_recovered_from_the_next_where_that_carries_it() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100).payload(101, 101 * 960, 3020, SPEECH_FEC).stream(102..200);
    let ledger = call.finish(5000);
    assert_eq!(ledger.sums.get(Reason::Recovered), SampleCount(960));
    assert_eq!(ledger.sums.concealed + ledger.sums.lost, 0);
}

#[test]
fn two_lost_packets_are_concealed_though_the_next_carries_the_second() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..99).payload(101, 101 * 960, 3020, SPEECH_FEC).stream(102..200);
    let ledger = call.finish(5000);
    assert_eq!(ledger.sums.get(Reason::Concealed), SampleCount(2 * 960));
    assert_eq!(ledger.sums.recovered, 0);
}

#[test]
fn one_lost_packet_without_fec_is_concealed() {
    let ledger = Call::new(ParticipantKind::Standard).stream(0..100).stream(101..200).finish(5000);
    assert_eq!(ledger.sums.get(Reason::Concealed), SampleCount(960));
    assert_eq!(ledger.sums.lost, 0);
}

#[test]
fn concealment_ends_after_120_ms() {
    let mut call = Call::new(ParticipantKind::Standard);
    let ledger = call.stream(0..100).stream(110..200).finish(5000);
    assert_eq!(ledger.sums.get(Reason::Concealed), SampleCount::from_millis(120));
    assert_eq!(ledger.sums.get(Reason::Lost), SampleCount::from_millis(80));
    let runs: Vec<u64> = call
        .settled
        .iter()
        .filter_map(|stretch| match stretch.content {
            Content::Concealed { into_run } => Some(into_run.0),
            _ => None,
        })
        .collect();
    assert_eq!(runs, [0, 960, 1920, 2880, 3840, 4800]);
}

#[test]
fn timestamps_that_go_on_without_packets_are_silence() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    for i in 0..100 {
        call.packet(100 + i, (i as i64 + 150) * 960, 4000 + i as i64 * 20);
    }
    let ledger = call.finish(6000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 2000), (Reason::SilentDtx, 1000), (Reason::Received, 2000)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn muting_by_signalling_names_the_silence() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.capture.mute(TRACK, true, ClockTime::from_millis(3000));
    call.until(13_000);
    call.capture.mute(TRACK, false, ClockTime::from_millis(13_000));
    for i in 0..100 {
        call.packet(100 + i, (i as i64 + 600) * 960, 13_000 + i as i64 * 20);
    }
    let ledger = call.finish(15_000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 2000), (Reason::SilentMuted, 10_000), (Reason::Received, 2000)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn a_telephone_leg_that_held_goes_on_where_it_arrives() {
    let mut call = Call::new(ParticipantKind::Sip);
    call.stream(0..100);
    for i in 100..200 {
        call.packet(i, i as i64 * 960, 8000 + (i as i64 - 100) * 20);
    }
    let ledger = call.finish(10_000);
    assert_eq!(call.starts()[100], 8000);
    let expected = [
        (Reason::NotStarted, 1000),
        (Reason::Received, 2000),
        (Reason::SilentSenderStopped, 5000),
        (Reason::Received, 2000),
    ];
    assert_eq!(rows(&ledger), expected);
    assert_eq!(ledger.counters.collapses, 1);
}

#[test]
fn a_stall_that_catches_up_loses_and_moves_nothing() {
    for kind in [ParticipantKind::Sip, ParticipantKind::Standard] {
        let mut call = Call::new(kind);
        call.stream(0..100);
        for i in 100..250 {
            call.packet(i, i as i64 * 960, 6000 + (i as i64 - 100) / 10);
        }
        let ledger = call.stream(250..300).finish(7000);
        assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 6000)], "{kind:?}");
        assert_eq!(ledger.counters.re_anchors, 0);
    }
}

#[test]
fn a_stall_that_catches_up_slowly_is_no_stopped_clock() {
    let mut call = Call::new(ParticipantKind::Sip);
    call.stream(0..100);
    for i in 100..300 {
        // Two seconds late, and caught up two seconds later, at twice the speed.
        call.packet(i, i as i64 * 960, (5000 + (i as i64 - 100) * 10).max(1000 + i as i64 * 20));
    }
    let ledger = call.finish(7000);
    assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 6000)]);
    assert_eq!(ledger.counters.re_anchors, 0);
}

#[test]
fn a_longer_route_moves_nothing_and_a_stopped_clock_of_half_a_second_does() {
    for (step, moved) in [(150, 0), (-150, 0), (480, 0), (520, 520)] {
        let mut call = Call::new(ParticipantKind::Standard);
        call.stream(0..100);
        for i in 100..300 {
            call.packet(i, i as i64 * 960, 1000 + i as i64 * 20 + step);
        }
        call.finish(8000);
        assert_eq!(call.starts()[150], 4000 + moved, "a step of {step} ms");
    }
}

/// A standard participant whose packets come `step` ms late from the second second on, and whose sender reports then
/// break by `told` ms; gives where the last packets lie against their timestamps, in milliseconds.
fn moved_by_report(step: i64, told: i64) -> i64 {
    let mut call = Call::new(ParticipantKind::Standard);
    let report = |call: &mut Call, seconds: u64, rtp: i64| {
        call.until(call.now + 1);
        let at = ClockTime::from_millis(call.now);
        call.capture.sender_report(TRACK, seconds << 32, RtpTime(rtp), at);
    };
    call.stream(0..100);
    report(&mut call, 100, 100 * 960);
    for i in 100..300 {
        call.packet(i, i as i64 * 960, 1000 + step + i as i64 * 20);
        if i == 130 {
            report(&mut call, 101, 100 * 960 + (1000 - told) * 48);
        }
    }
    call.finish(8000);
    assert_eq!(call.starts()[99], 2980);
    call.starts()[280] - 6600
}

#[test]
fn sender_reports_that_break_with_the_packets_prove_a_stopped_clock() {
    assert_eq!(moved_by_report(300, 300), 300);
}

#[test]
fn sender_reports_that_break_by_another_amount_prove_nothing() {
    assert_eq!(moved_by_report(150, 400), 0);
}

#[test]
fn blank_packets_of_the_server_lengthen_nothing() {
    let mut blank = vec![0_u8; 80];
    blank[..3].copy_from_slice(&[0xf8, 0xff, 0xfe]);
    let mut call = Call::new(ParticipantKind::Sip);
    call.stream(0..100);
    call.capture.unpublish(TRACK, ClockTime::from_millis(3005));
    for i in 0..11 {
        call.until(3010 + i * 20);
        let packet = Packet {
            ssrc: 1,
            codec: Codec::Opus,
            seq: Seq(100 + i as u64),
            rtp: RtpTime(99 * 960 + i * 250_000),
            marker: true,
            payload: Bytes::from(blank.clone()),
            undecryptable: false,
        };
        call.capture.packet(TRACK, packet, ClockTime::from_millis(call.now));
    }
    let ledger = call.finish(4000);
    assert_eq!(ledger.counters.packets_blank, 11);
    let expected = [(Reason::NotStarted, 1000), (Reason::Received, 2000), (Reason::SilentSenderStopped, 5)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn a_track_given_up_is_not_waited_for_and_what_it_was_is_told_later() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100).until(12_000);
    let frontier = call.capture.advance(ClockTime::from_millis(12_000), &mut call.settled);
    assert_eq!(frontier, MediaTime(11_500 * 48));
    for i in 0..100 {
        call.packet(500 + i, (500 + i as i64) * 960, 12_000 - 1000 + i as i64 * 20);
    }
    let ledger = call.finish(14_000);
    assert_eq!(ledger.sums.get(Reason::Lost).0 + ledger.sums.concealed, (8000 + 500) * 48);
    assert_eq!(ledger.counters.packets_late, 25);
}

#[test]
fn a_stall_of_the_recorder_itself_gives_nothing_up() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.packet(101, 101 * 960, 3020);
    call.now = 5500;
    call.capture.advance(ClockTime::from_millis(5500), &mut call.settled);
    for i in (100..101).chain(102..225) {
        call.packet(i, i as i64 * 960, 5500);
    }
    let ledger = call.stream(225..300).finish(7000);
    assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 6000)]);
}

#[test]
fn withheld_time_leaves_as_silence_whenever_it_arrives() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.capture.withhold(MediaTime(2000 * 48), MediaTime(3000 * 48));
    let ledger = call.stream(0..200).finish(5000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 1000), (Reason::Withheld, 1000), (Reason::Received, 2000)];
    assert_eq!(rows(&ledger), expected);
    assert_eq!(ledger.counters.packets_withheld, 50);
}

#[test]
fn one_track_is_withheld_as_far_back_as_it_is_kept_back() {
    let config = CaptureConfig { lookback: Duration::from_millis(700), ..CaptureConfig::default() };
    let mut call = Call::new(ParticipantKind::Sip);
    call.capture = Capture::new(config).unwrap();
    let spec = TrackSpec { kind: ParticipantKind::Sip, codec: Codec::Opus, muted: false };
    call.capture.publish(TRACK, spec, ClockTime::ZERO);
    call.capture.withhold_of(TrackKey(9), MediaTime::ZERO, MediaTime(4_000 * 48));
    call.stream(0..150).until(4_000);
    call.capture.withhold_of(TRACK, MediaTime(3_400 * 48), MediaTime(4_400 * 48));
    let ledger = call.stream(150..250).finish(6_000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 2400), (Reason::Withheld, 1000), (Reason::Received, 1600)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn a_new_stream_takes_over_at_its_arrival() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    for i in 0..100 {
        call.of_stream(2, 60_000 + i as u64, 4_000_000_000 + i * 960, 3500 + i * 20, SPEECH);
    }
    let ledger = call.finish(5500);
    assert_eq!(call.starts()[100], 3500);
    assert_eq!(ledger.counters.re_anchors, 1);
    assert_eq!(ledger.sums.get(Reason::Received), SampleCount::from_millis(4000));
}

#[test]
fn one_absurd_timestamp_is_a_stray_and_many_are_a_new_clock() {
    let mut call = Call::new(ParticipantKind::Standard);
    let ledger = call.stream(0..100).packet(100, 1 << 40, 3000).stream(101..200).finish(5000);
    assert_eq!((ledger.counters.packets_stray, ledger.counters.re_anchors), (1, 0));
    assert_eq!(ledger.sums.get(Reason::Concealed), SampleCount(960));
    assert_eq!(ledger.end, MediaTime(5000 * 48));

    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    for i in 100..200 {
        call.packet(i, (1 << 40) + i as i64 * 960, 1000 + i as i64 * 20);
    }
    let ledger = call.finish(5000);
    assert_eq!(ledger.counters.re_anchors, 1);
    assert_eq!(ledger.sums.get(Reason::Received), SampleCount::from_millis(4000));
}

#[test]
fn silence_at_the_end_while_the_connection_was_down_is_loss() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.capture.media(false, ClockTime::from_millis(3000));
    call.until(4000).capture.media(true, ClockTime::from_millis(4000));
    let ledger = call.finish(5000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 2000), (Reason::Lost, 1000), (Reason::SilentDtx, 1000)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn what_is_noticed_late_to_have_been_a_broken_connection_is_loss_from_the_break_on() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.until(12_000).capture.media(false, ClockTime::from_millis(2_990));
    let ledger = call.finish(20_000);
    assert_eq!(ledger.sums.lost, 17_000 * 48, "{:?}", rows(&ledger));
}

#[test]
fn until_the_server_sends_a_track_in_a_new_connection_it_is_lost() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.capture.media(false, ClockTime::from_millis(3000));
    call.until(3200).capture.media(true, ClockTime::from_millis(3200));
    for i in 0..100 {
        call.of_stream(2, 60_000 + i as u64, 4_000_000_000 + i * 960, 3500 + i * 20, SPEECH);
    }
    let ledger = call.finish(5500);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 2000), (Reason::Lost, 500), (Reason::Received, 2000)];
    assert_eq!(rows(&ledger), expected);
}

#[test]
fn what_is_missing_while_the_recorder_was_away_is_its_own_fault() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.capture.recorder_down(ClockTime::from_millis(3000), ClockTime::from_millis(5000));
    let ledger = call.stream(200..300).finish(7000);
    assert_eq!(ledger.sums.get(Reason::RecorderDown).0 + ledger.sums.concealed, 2000 * 48);
    assert_eq!(ledger.sums.lost, 0);
}

#[test]
fn a_sender_that_counts_anew_under_its_old_ssrc_is_heard_again() {
    let mut call = Call::new(ParticipantKind::Standard);
    for i in 0..100 {
        call.packet(60_000 + i, i as i64 * 960, 1000 + i as i64 * 20);
    }
    for i in 0..100 {
        call.packet(i, 7_000_000 + i as i64 * 960, 3000 + i as i64 * 20);
    }
    let ledger = call.finish(5000);
    assert_eq!(ledger.counters.re_anchors, 1);
    assert_eq!(ledger.sums.get(Reason::Received), SampleCount(198 * 960), "the first two are not believed");
}

#[test]
fn packets_that_signalling_overtook_are_in_the_recording() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..100);
    call.capture.unpublish(TRACK, ClockTime::from_millis(2985));
    let ledger = call.stream(100..110).finish(4000);
    assert_eq!(rows(&ledger), [(Reason::NotStarted, 1000), (Reason::Received, 2200)]);
}

#[test]
fn the_frontier_runs_without_anybody() {
    let mut capture = Capture::new(CaptureConfig::default()).unwrap();
    let mut out = Vec::new();
    for i in 0..500 {
        capture.advance(ClockTime::from_millis(i * 20), &mut out);
    }
    assert_eq!(capture.advance(ClockTime::from_millis(10_000), &mut out), MediaTime(9000 * 48));
    assert!(out.is_empty());
}

#[test]
fn what_cannot_be_decrypted_keeps_its_place_as_silence_of_its_own() {
    let mut call = Call::new(ParticipantKind::Standard);
    call.stream(0..50);
    for i in 50..60 {
        // All that is known of it is its first byte.
        call.until(1000 + i * 20);
        let packet = Packet {
            ssrc: 1,
            codec: Codec::Opus,
            seq: Seq(i as u64),
            rtp: RtpTime(i * 960),
            marker: false,
            payload: Bytes::copy_from_slice(&SPEECH[..1]),
            undecryptable: true,
        };
        call.capture.packet(TRACK, packet, ClockTime::from_millis(call.now));
    }
    call.stream(60..100);
    let ledger = call.finish(3000);
    let expected =
        [(Reason::NotStarted, 1000), (Reason::Received, 1000), (Reason::Undecryptable, 200), (Reason::Received, 800)];
    assert_eq!(rows(&ledger), expected);
    assert_eq!((ledger.counters.packets_undecryptable, ledger.sums.lost), (10, 0));
    let silent =
        call.settled.iter().filter(|stretch| matches!(stretch.content, Content::Silence(Silence::Undecryptable)));
    assert_eq!(silent.count(), 10);
    assert!(Reason::Undecryptable.degrades());
}
