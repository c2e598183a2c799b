//! What each part of an analysis costs: the fixtures' conversation, 20 ms at a time.

use callreel::analysis::{Analysis, AnalysisConfig};
use callreel::call::TrackKey;
use callreel::decode::Level;
use callreel::testkit::{Audio, checkout};
use callreel::time::MediaTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn fixture(name: &str) -> Audio {
    Audio::read(checkout().join("fixtures").join(name)).expect("the fixture is there")
}

fn analysing(c: &mut Criterion) {
    let sides = [fixture("agent.flac"), fixture("caller.flac")];
    let mut mix = sides[0].clone();
    mix.add(&sides[1], 0);
    let mix = mix.channel(0);
    let levels: Vec<[Level; 2]> = (0..mix.len() / 960)
        .map(|slot| [0, 1].map(|side| Level::of(&sides[side].channel(0)[slot * 960..(slot + 1) * 960])))
        .collect();
    let mut group = c.benchmark_group("analysis of two people");
    group.throughput(Throughput::Elements(mix.len() as u64));
    for (name, config) in [
        ("speakers", AnalysisConfig { speakers: true, ..AnalysisConfig::OFF }),
        ("peaks", AnalysisConfig { peaks: true, ..AnalysisConfig::OFF }),
        ("loudness", AnalysisConfig { loudness: true, ..AnalysisConfig::OFF }),
        ("all", AnalysisConfig::default()),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut analysis = Analysis::new(config, 1).expect("something is wanted");
                for (slot, pcm) in mix.chunks(960).enumerate() {
                    for (side, level) in levels.get(slot).into_iter().flatten().enumerate() {
                        if level.peak > 0.0 {
                            analysis.heard(TrackKey(side as u32), MediaTime(slot as i64 * 960), 960, *level);
                        }
                    }
                    analysis.mixed(pcm);
                }
                analysis
            });
        });
    }
    group.finish();
}

criterion_group!(analysis, analysing);
criterion_main!(analysis);
