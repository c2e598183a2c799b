//! What each format costs beside the Ogg stream that it is made of: the fixtures' conversation, a quarter of a second at a time.

use callreel::encode::{Depth, Format, Mapping, OggOpusWriter, OpusConfig, OpusEncoder, OpusHead, OpusTags};
use callreel::render::{Quality, Render, Rendering};
use callreel::testkit::{Audio, checkout};
use callreel::time::SampleCount;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn fixture(name: &str) -> Audio {
    Audio::read(checkout().join("fixtures").join(name)).expect("the fixture is there")
}

/// The conversation's packets.
fn packets(mix: &[f32]) -> (OpusHead, Vec<Vec<u8>>) {
    let mut encoder = OpusEncoder::new(&OpusConfig::mono()).expect("the usual configuration");
    let head = OpusHead::new(Mapping::Mono, encoder.pre_skip());
    let encoded = mix.chunks_exact(960).map(|frame| encoder.encode(frame).expect("a whole frame").to_vec());
    (head, encoded.collect())
}

/// Writes packets as Ogg, and hands out pages as the recorder does.
fn write(head: OpusHead, packets: &[Vec<u8>], mut take: impl FnMut(&[u8])) {
    let page = SampleCount::from_millis(250);
    let mut writer = OggOpusWriter::new(head, &OpusTags::new(), 1, page).expect("a mapping that is written");
    let mut bytes = Vec::new();
    for packet in packets {
        writer.write_packet(packet, 960).expect("a packet of 20 ms");
        if writer.take_bytes(&mut bytes) > 0 {
            take(&bytes);
            bytes.clear();
        }
    }
    writer.finish(writer.samples()).expect("the end of the last packet");
    writer.take_bytes(&mut bytes);
    take(&bytes);
}

fn formats(c: &mut Criterion) {
    let mut mix = fixture("agent.flac");
    mix.add(&fixture("caller.flac"), 0);
    let mix = mix.channel(0);
    let (head, encoded) = packets(mix);
    let mut group = c.benchmark_group("formats");
    group.throughput(Throughput::Elements(encoded.len() as u64 * 960));
    group.bench_function("opus, encoded", |b| b.iter(|| packets(mix)));
    group.bench_function("ogg", |b| {
        b.iter(|| {
            write(head, &encoded, |bytes| {
                std::hint::black_box(bytes);
            });
        });
    });
    let sixteen = Quality::default();
    for (name, format, quality) in [
        ("webm", Format::Webm, sixteen),
        ("mp4", Format::Mp4, sixteen),
        ("wav, 16 bits", Format::Wav, sixteen),
        ("flac, 16 bits", Format::Flac, sixteen),
        ("flac, 24 bits", Format::Flac, Quality { depth: Depth::Bits24, ..sixteen }),
        ("mp3, as it needs", Format::Mp3, sixteen),
        ("mp3, 64 kbit/s", Format::Mp3, Quality { mp3_bitrate: Some(64_000), ..sixteen }),
        #[cfg(feature = "aac")]
        ("mp4 of aac", Format::Mp4, Quality { mp4_codec: callreel::encode::Mp4Codec::Aac, ..sixteen }),
    ] {
        group.bench_function(format!("ogg and {name}"), |b| {
            b.iter(|| {
                let mut render = Render::new(Rendering { format, quality }).expect("a format of this build");
                let mut bytes = Vec::new();
                write(head, &encoded, |pages| {
                    render.push(pages).expect("pages of one stream");
                    bytes.clear();
                    render.take_bytes(&mut bytes);
                });
                bytes
            });
        });
    }
    group.finish();
}

criterion_group!(all, formats);
criterion_main!(all);
