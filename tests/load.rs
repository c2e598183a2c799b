//! Many calls at once are recorded whole, in one process and in many, and the report of it holds together.

#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Duration;

use callreel::clock;
use callreel::config::OutputKind;
use callreel::mix::Mixing;
use callreel::testkit::load::{self, Load, Mode, Plan, Programs, Recording, Report, Sound, Source, freeze};

const CALLS: usize = 4;

fn plan(mode: Mode) -> Plan {
    Plan {
        programs: Programs {
            load: PathBuf::from(env!("CARGO_BIN_EXE_callreel-load")),
            callreel: PathBuf::from(env!("CARGO_BIN_EXE_callreel")),
        },
        source: Source::Server,
        mode,
        recording: Recording { outputs: vec![OutputKind::Mix], mixing: Mixing::Auto, analysis: true },
        talkers: 2,
        sound: Sound::default(),
        recorder_cores: Vec::new(),
    }
}

async fn record(plan: Plan) -> Report {
    let report = load::run(plan, CALLS, Duration::from_secs(6)).await.unwrap();
    println!("{report}");
    report
}

fn assert_whole(report: &Report) {
    assert!(report.broken.is_empty(), "{:?}", report.broken);
    assert_eq!(report.outcomes.get("complete"), Some(&CALLS), "{report}");
    assert_eq!((report.packets.missing, report.packets.recorder_down), (0, 0), "{report}");
    assert_eq!((report.packets.dropped_by_recorder, report.level.dropped), (0, 0), "{report}");
    let (sent, received) = (report.packets.sent, report.packets.received);
    // Each of the eight talks for ten seconds and more; what was said before a recorder came it does not get.
    assert!(received > 8 * 300 && received <= sent, "{report}");
    assert!(report.alignment.looked_for > 0 && report.alignment.missing == 0, "{report}");
    assert!(report.alignment.worst_ms.abs() < 10.0, "{report}");
}

fn assert_plausible(report: &Report) {
    let level = &report.level;
    assert_eq!((level.calls, level.talkers), (CALLS, 2));
    for part in [&level.recorder, &level.publishers, &level.server] {
        assert!(part.cores > 0.0 && part.rss_mib > 1.0 && part.threads > 0, "{report}");
    }
    assert!(level.calls_per_core > 0.0, "{report}");
    // A hundred packets a second come for each call: one wake-up serves several.
    assert!((0.5..90.0).contains(&level.recorder.sleeps_per_call), "{report}");
    for latency in [&report.join_ms, &report.first_packet_ms, &report.completion_ms] {
        assert!(0.0 < latency.p50 && latency.p50 <= latency.p95 && latency.p95 <= latency.max, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_share_a_process_are_recorded_whole() {
    let report = record(plan(Mode::Pooled)).await;
    assert_whole(&report);
    assert_plausible(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_with_a_process_each_are_recorded_whole() {
    let report = record(plan(Mode::Process)).await;
    assert_whole(&report);
    assert_plausible(&report);
    // A recorder of its own each, with threads of its own.
    assert!(report.level.recorder.threads >= 2 * CALLS, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_a_service_are_recorded_whole() {
    let report = record(plan(Mode::Service)).await;
    assert_whole(&report);
    assert_plausible(&report);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_recorded_whole_without_a_server() {
    let sound = Sound { dtx: true, noise: None };
    let report = record(Plan { source: Source::Replay, ..plan(Mode::Pooled) }).await;
    assert_whole(&report);
    assert_eq!(report.level.server, load::Part::default());
    // Who leaves silence out sends less, and what is left lies where it was said.
    let report = record(Plan { source: Source::Replay, sound, ..plan(Mode::Pooled) }).await;
    assert!(report.broken.is_empty() && report.outcomes.get("complete") == Some(&CALLS), "{report}");
    assert!(report.packets.received < report.packets.sent + 1 && report.packets.missing == 0, "{report}");
    assert!(report.alignment.looked_for > 0 && report.alignment.missing == 0, "{report}");
    assert!(report.alignment.worst_ms.abs() < 10.0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorder_without_processor_for_seconds_goes_on_where_it_was_and_accounts_for_what_it_missed() {
    let mut load = Load::begin(plan(Mode::Pooled)).await.unwrap();
    let begun = clock::now();
    load.grow(CALLS).await.unwrap();
    let grown = (clock::now() - begun).as_secs_f64();
    let pids = load.recorder_pids();
    assert_eq!(pids.len(), 1);
    freeze(pids[0], true).unwrap();
    let frozen = load.measure(Duration::from_secs(3)).await;
    freeze(pids[0], false).unwrap();
    // Its threads stop one after the other.
    assert!(frozen.recorder.sleeps_per_call < 3.0, "it was not frozen: {frozen}");
    assert!(frozen.waiting_bytes > 0, "{frozen}");

    let level = load.measure(Duration::from_secs(10)).await;
    let report = load.finish(level).await.unwrap();
    println!("{report}");
    assert!(report.broken.is_empty(), "{report}");
    let whole = report.outcomes.get("complete").copied().unwrap_or(0);
    let lacking = report.outcomes.get("degraded").copied().unwrap_or(0);
    assert_eq!(whole + lacking, CALLS, "{report}");
    // What was sent before the recorder came, which was told to four seconds before all had grown, and after it was
    // told to stop; and one track's first packet comes a moment after another's.
    let outside =
        grown - 4.0 + (report.join_ms.max + report.first_packet_ms.max + report.completion_ms.max) / 1e3 + 0.5;
    let outside = CALLS as u64 * 2 * (outside * 50.0) as u64;
    println!("{outside} outside");
    let accounted = report.packets.received + report.packets.missing + report.packets.recorder_down;
    assert!(accounted + outside >= report.packets.sent, "{report}");
    if lacking == 0 {
        assert_eq!((report.packets.missing, report.packets.recorder_down), (0, 0), "{report}");
    }
    assert!(report.alignment.looked_for >= 2 * CALLS && report.alignment.missing == 0, "{report}");
    assert!(report.alignment.worst_ms.abs() < 10.0, "{report}");
}
