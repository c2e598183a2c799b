//! What a packet tells about itself without being decoded: how long it lasts, and whether it carries the one before it.

use crate::call::Codec;
use crate::time::SampleCount;

/// The longest packet there may be: 120 ms (RFC 6716 §3.2.5; the same bound is put on G.711).
pub const LONGEST_PACKET: SampleCount = SampleCount::from_millis(120);

/// Bytes of a blank packet of the server.
const BLANK_BYTES: usize = 80;

/// How long `payload` lasts at 48 kHz, or `None` where no decoder would take it.
///
/// Opus: frame size and count of the TOC byte (RFC 6716 §3.1 and §3.2). G.711: one byte is one sample at 8 kHz
/// (RFC 3551 §4.5.14).
pub fn duration(codec: Codec, payload: &[u8]) -> Option<SampleCount> {
    let samples = match codec {
        Codec::Opus => frame_samples(*payload.first()?) * frame_count(payload)?,
        Codec::Pcmu | Codec::Pcma => u64::try_from(payload.len()).ok()? * 6,
    };
    (1..=LONGEST_PACKET.0).contains(&samples).then_some(SampleCount(samples))
}

/// Whether `payload` is one of the silent packets that a LiveKit server puts in after a mute or a leave: an Opus packet
/// `f8 ff fe`, filled up with zeros to 80 bytes. The server sets the marker bit on these, and on no other audio packet.
pub fn is_blank(codec: Codec, marker: bool, payload: &[u8]) -> bool {
    marker
        && codec == Codec::Opus
        && payload.len() == BLANK_BYTES
        && payload.starts_with(&[0xf8, 0xff, 0xfe])
        && payload[3..].iter().all(|byte| *byte == 0)
}

/// How much of the time before it an Opus packet's in-band FEC (LBRR) restores, or `None` where it carries none.
///
/// Only the SILK layer has LBRR (RFC 6716 §2.1.7); its presence is the flag after the VAD flags of the first frame
/// (§4.2.3, §4.2.4), which stand uncoded in the first bits (§4.2.3). A decoder takes it from the first frame alone.
pub fn in_band_fec(payload: &[u8]) -> Option<SampleCount> {
    let toc = *payload.first()?;
    let config = toc >> 3;
    if config >= 16 {
        return None;
    }
    let first = *first_frame(payload)?.first()?;
    let frame = frame_samples(toc);
    // One VAD flag a SILK frame of 20 ms (10 ms frames have one, too).
    let vad_flags = frame.div_ceil(960).clamp(1, 3) as u32;
    let flag = |bit: u32| first & (0x80 >> bit) != 0;
    let mid = flag(vad_flags);
    let side = toc & 0x04 != 0 && flag(2 * vad_flags + 1);
    (mid || side).then_some(SampleCount(frame))
}

/// Whether the encoder found a voice in an Opus packet's first frame, or `None` where the packet does not tell: packets
/// without a SILK layer do not.
///
/// The flags, one a SILK frame and channel, stand uncoded in the first bits of the frame (RFC 6716 §4.2.3).
pub fn voice(payload: &[u8]) -> Option<bool> {
    let toc = *payload.first()?;
    if toc >> 3 >= 16 {
        return None;
    }
    let Some(first) = first_frame(payload).and_then(|frame| frame.first()) else { return Some(false) };
    let vad_flags = frame_samples(toc).div_ceil(960).clamp(1, 3) as u32;
    let flags = |from: u32| (from..from + vad_flags).any(|bit| first & (0x80 >> bit) != 0);
    // The flag for FEC stands between both channels' flags.
    Some(flags(0) || toc & 0x04 != 0 && flags(vad_flags + 1))
}

/// Samples at 48 kHz of one frame (RFC 6716 §3.1, table 2).
fn frame_samples(toc: u8) -> u64 {
    let size = usize::from((toc >> 3) & 3);
    match toc >> 3 {
        0..=11 => [480, 960, 1920, 2880][size],
        12..=15 => [480, 960][size & 1],
        _ => [120, 240, 480, 960][size],
    }
}

/// Frames in the packet (RFC 6716 §3.2).
fn frame_count(payload: &[u8]) -> Option<u64> {
    match payload.first()? & 3 {
        0 => Some(1),
        1 | 2 => Some(2),
        _ => Some(u64::from(payload.get(1)? & 0x3f)).filter(|count| *count > 0),
    }
}

/// The packet from its first frame's first byte on (RFC 6716 §3.2.2 to §3.2.5), `None` where that frame is empty.
fn first_frame(payload: &[u8]) -> Option<&[u8]> {
    let (length, rest) = match payload.first()? & 3 {
        0 | 1 => (None, payload.get(1..)?),
        2 => frame_length(payload.get(1..)?)?,
        _ => {
            let head = *payload.get(1)?;
            let mut rest = payload.get(2..)?;
            if head & 0x40 != 0 {
                while *rest.first()? == 255 {
                    rest = &rest[1..];
                }
                rest = &rest[1..];
            }
            let mut length = None;
            if head & 0x80 != 0 {
                for frame in 1..head & 0x3f {
                    let (this, after) = frame_length(rest)?;
                    length = if frame == 1 { this } else { length };
                    rest = after;
                }
            }
            (length, rest)
        }
    };
    (length != Some(0)).then_some(rest)
}

/// A frame length of one or two bytes (RFC 6716 §3.2.1), and what follows it.
fn frame_length(bytes: &[u8]) -> Option<(Option<usize>, &[u8])> {
    let first = usize::from(*bytes.first()?);
    if first < 252 {
        return Some((Some(first), &bytes[1..]));
    }
    let second = usize::from(*bytes.get(1)?);
    Some((Some(second * 4 + first), &bytes[2..]))
}

#[cfg(test)]
mod tests {
    use opus::{Application, Bandwidth, Channels, Encoder};

    use super::*;

    /// A voice-like tone, so that the encoder takes the SILK layer and finds something worth protecting.
    fn voice(encoder: &mut Encoder, channels: usize, frame: usize, packets: usize) -> Vec<Vec<u8>> {
        let mut phase = 0.0_f32;
        let mut random = fastrand::Rng::with_seed(7);
        (0..packets)
            .map(|_| {
                let pcm: Vec<f32> = (0..frame)
                    .flat_map(|_| {
                        phase += 140.0 / 48_000.0;
                        let saw = 0.3 * (phase.fract() - 0.5) + 0.02 * (random.f32() - 0.5);
                        vec![saw; channels]
                    })
                    .collect();
                encoder.encode_vec_float(&pcm, 1500).unwrap()
            })
            .collect()
    }

    fn encoder(channels: Channels, fec: bool) -> Encoder {
        let mut encoder = Encoder::new(48_000, channels, Application::Voip).unwrap();
        encoder.set_bitrate(opus::Bitrate::Bits(20_000)).unwrap();
        encoder.set_bandwidth(Bandwidth::Wideband).unwrap();
        encoder.set_inband_fec(fec).unwrap();
        encoder.set_packet_loss_perc(if fec { 25 } else { 0 }).unwrap();
        encoder
    }

    #[test]
    fn durations_of_all_frame_sizes_agree_with_libopus() {
        for config in 0..32_u8 {
            for code in 0..4_u8 {
                for count in 0..64_u8 {
                    let packet = [config << 3 | code, count, 0, 0];
                    let theirs = opus::packet::get_nb_samples(&packet, 48_000).ok().filter(|samples| *samples > 0);
                    let ours = duration(Codec::Opus, &packet).map(|samples| samples.0 as usize);
                    assert_eq!(ours, theirs, "config {config} code {code} count {count}");
                }
            }
        }
        assert_eq!(duration(Codec::Opus, &[]), None);
        assert_eq!(duration(Codec::Pcmu, &[0xff; 160]), Some(SampleCount::from_millis(20)));
        assert_eq!(duration(Codec::Pcma, &[0xd5; 961]), None);
    }

    #[test]
    fn fec_is_found_where_libopus_puts_it_and_nowhere_else() {
        for channels in [Channels::Mono, Channels::Stereo] {
            for frame in [480, 960, 1920, 2880] {
                let width = channels as usize;
                let with = voice(&mut encoder(channels, true), width, frame, 50);
                let without = voice(&mut encoder(channels, false), width, frame, 50);
                let found = with.iter().filter(|p| in_band_fec(p) == Some(SampleCount(frame as u64))).count();
                // The encoder protects what it finds worth it: the longer the packets, the fewer.
                assert!(found > 5, "{channels:?} {frame}: {found} of 50 carry FEC");
                assert!(without.iter().all(|p| in_band_fec(p).is_none()), "{channels:?} {frame}");
            }
        }
    }

    #[test]
    fn a_voice_is_told_from_silence_without_decoding() {
        for channels in [Channels::Mono, Channels::Stereo] {
            for frame in [480, 960, 1920, 2880] {
                let mut encoder = encoder(channels, false);
                let spoken = voice(&mut encoder, channels as usize, frame, 50);
                let quiet = vec![0.0; frame * channels as usize];
                let silent: Vec<_> = (0..50).map(|_| encoder.encode_vec_float(&quiet, 1500).unwrap()).collect();
                let voiced = |packets: &[Vec<u8>]| packets.iter().filter(|p| super::voice(p) == Some(true)).count();
                // Neither is noticed at once: the encoder is careful.
                assert!(voiced(&spoken) >= 30, "{channels:?} {frame}: {} of 50", voiced(&spoken));
                assert_eq!(voiced(&silent[25..]), 0, "{channels:?} {frame}");
            }
        }
        assert_eq!(super::voice(&[0x08]), Some(false), "an empty frame");
        assert_eq!(super::voice(&[]), None);
    }

    #[test]
    fn celt_packets_carry_no_fec() {
        assert_eq!(in_band_fec(&[0xfc, 0xff, 0xff, 0xff]), None);
        assert_eq!(super::voice(&[0xfc, 0xff, 0xff, 0xff]), None);
    }

    #[test]
    fn torn_packets_are_taken_calmly() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..100_000 {
            let packet: Vec<u8> = (0..random.usize(0..12)).map(|_| random.u8(..)).collect();
            let _ = (
                duration(Codec::Opus, &packet),
                in_band_fec(&packet),
                super::voice(&packet),
                is_blank(Codec::Opus, true, &packet),
            );
        }
    }

    #[test]
    fn only_the_servers_own_packet_is_blank() {
        let mut blank = vec![0; BLANK_BYTES];
        blank[..3].copy_from_slice(&[0xf8, 0xff, 0xfe]);
        assert!(is_blank(Codec::Opus, true, &blank));
        assert!(!is_blank(Codec::Opus, false, &blank), "the marker is part of it");
        assert!(!is_blank(Codec::Opus, true, &blank[..3]), "a publisher's digital silence is short");
        blank[79] = 1;
        assert!(!is_blank(Codec::Opus, true, &blank));
    }
}
