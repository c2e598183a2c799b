//! What an Opus packet tells without being decoded (RFC 6716 §3), packets of silence, and self-delimited framing.

use super::{EncodeError, MaxBandwidth};

/// The longest an Opus packet may last: 120 ms (RFC 6716 §3.4, R5), in samples at 48 kHz.
pub const MAX_SAMPLES: u32 = 5760;

/// A packet of 20 ms of digital silence (CELT, fullband, mono). What was said before does not ring on into it.
pub const SILENCE_20_MS: [u8; 3] = [0xf8, 0xff, 0xfe];

/// How an Opus packet is coded (RFC 6716 §3.1, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Linear prediction only.
    Silk,
    /// Linear prediction below 8 kHz, transform above.
    Hybrid,
    /// Transform only.
    Celt,
}

/// The coding mode of a packet, or `None` if it is empty.
pub fn mode(packet: &[u8]) -> Option<Mode> {
    Some(match packet.first()? >> 3 {
        0..=11 => Mode::Silk,
        12..=15 => Mode::Hybrid,
        _ => Mode::Celt,
    })
}

/// Whether a packet is coded in stereo, or `None` if it is empty.
pub fn is_stereo(packet: &[u8]) -> Option<bool> {
    Some(packet.first()? & 0x04 != 0)
}

/// Samples at 48 kHz in each frame of a packet that begins with `toc` (RFC 6716 §3.1, table 2).
pub fn frame_samples(toc: u8) -> u32 {
    let config = toc >> 3;
    match config {
        0..=11 => [480, 960, 1920, 2880][usize::from(config & 3)],
        12..=15 => [480, 960][usize::from(config & 1)],
        _ => [120, 240, 480, 960][usize::from(config & 3)],
    }
}

/// Samples at 48 kHz in a packet, or `None` where it is empty or claims more than 120 ms.
pub fn samples(packet: &[u8]) -> Option<u32> {
    let toc = *packet.first()?;
    let frames = match toc & 3 {
        0 => 1,
        1 | 2 => 2,
        _ => u32::from(packet.get(1)? & 0x3f),
    };
    let samples = frames * frame_samples(toc);
    (1..=MAX_SAMPLES).contains(&samples).then_some(samples)
}

/// Samples at 48 kHz in a packet whose framing keeps the rules of RFC 6716 §3.4; no frame of it is decoded.
///
/// # Errors
/// [`EncodeError::Packet`] where it does not.
pub fn check(packet: &[u8]) -> Result<u32, EncodeError> {
    frame_layout(packet)?;
    samples(packet).ok_or(EncodeError::Packet("empty, or longer than 120 ms"))
}

/// The highest audio bandwidth in a packet that begins with `toc` (RFC 6716 §3.1, table 2).
pub fn bandwidth(toc: u8) -> MaxBandwidth {
    match toc >> 3 {
        0..=3 | 16..=19 => MaxBandwidth::Narrowband,
        4..=7 => MaxBandwidth::Mediumband,
        8..=11 | 20..=23 => MaxBandwidth::Wideband,
        12..=13 | 24..=27 => MaxBandwidth::Superwideband,
        _ => MaxBandwidth::Fullband,
    }
}

/// Writes a packet in which nothing is coded, of the same mode and duration as `like`, over what is in `out`: a decoder
/// conceals it.
///
/// # Errors
/// [`EncodeError::Packet`] where `like` is no Opus packet.
pub fn write_concealed(like: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let (Some(toc), Some(_)) = (like.first(), samples(like)) else {
        return Err(EncodeError::Packet("empty, or longer than 120 ms"));
    };
    out.clear();
    out.push(*toc);
    if toc & 3 == 2 {
        out[0] -= 1;
    }
    if let (3, Some(count)) = (toc & 3, like.get(1)) {
        out.push(count & 0x3f);
    }
    Ok(())
}

/// Writes a packet of digital silence of `samples` samples (120, 240, 480, 960, 1920 or 2880) over what is in `out`.
pub fn write_silence(samples: u32, stereo: bool, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    const FRAME: [u8; 2] = [0xff, 0xfe];
    let (config, frames) = match samples {
        120 => (28u8, 1),
        240 => (29, 1),
        480 => (30, 1),
        960 => (31, 1),
        1920 => (31, 2),
        2880 => (31, 3),
        _ => return Err(EncodeError::Packet("silence comes in 2.5, 5, 10, 20, 40 or 60 ms")),
    };
    let toc = config << 3 | u8::from(stereo) << 2;
    out.clear();
    match frames {
        1 => out.push(toc),
        2 => out.push(toc | 1),
        _ => out.extend([toc | 3, frames]),
    }
    for _ in 0..frames {
        out.extend(FRAME);
    }
    Ok(())
}

/// Appends to `out` two packets as one of a two-stream Ogg Opus packet: `first` self-delimited (RFC 6716 appendix B),
/// `second` as it is (RFC 7845 §5.1.1). Both must last equally long.
///
/// # Errors
/// [`EncodeError::Packet`] where one of them is malformed or their lengths differ; `out` is then left as it was.
pub fn join_streams(first: &[u8], second: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if samples(first) != samples(second) {
        return Err(EncodeError::Packet("the two streams' packets last differently long"));
    }
    frame_layout(second)?;
    write_self_delimited(first, out)?;
    out.extend_from_slice(second);
    Ok(())
}

/// Takes apart what [`join_streams`] made: the first packet in its ordinary framing is written over `first`, the second
/// returned.
///
/// # Errors
/// [`EncodeError::Packet`] where `joined` does not begin with a self-delimited packet.
pub fn split_streams<'a>(joined: &'a [u8], first: &mut Vec<u8>) -> Result<&'a [u8], EncodeError> {
    let mut reader = Reader(joined);
    let toc = reader.byte()?;
    first.clear();
    first.push(toc);
    let mut padding = 0;
    let data = match toc & 3 {
        0 => reader.length()?,
        1 => 2 * reader.length()?,
        2 => {
            let one = reader.length()?;
            push_length(one, first);
            one + reader.length()?
        }
        _ => {
            let count = reader.byte()?;
            first.push(count);
            if count & 0x40 != 0 {
                padding = reader.padding(|byte| first.push(byte))?;
            }
            let frames = usize::from(count & 0x3f);
            if frames == 0 {
                return Err(EncodeError::Packet("no frames"));
            }
            if count & 0x80 == 0 {
                frames * reader.length()?
            } else {
                let mut sum = 0;
                for _ in 1..frames {
                    let length = reader.length()?;
                    push_length(length, first);
                    sum += length;
                }
                sum + reader.length()?
            }
        }
    };
    first.extend_from_slice(reader.take(data + padding)?);
    Ok(reader.0)
}

/// The parts of a packet in ordinary framing that matter for re-framing it.
struct Layout {
    /// Bytes before the frames' data: TOC, count, padding length, lengths of all frames but the last.
    header: usize,
    /// Bytes of the last frame (of each frame, at constant bitrate).
    last: usize,
}

fn write_self_delimited(packet: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let layout = frame_layout(packet)?;
    out.extend_from_slice(&packet[..layout.header]);
    push_length(layout.last, out);
    out.extend_from_slice(&packet[layout.header..]);
    Ok(())
}

/// Checks a packet against RFC 6716 §3.4 and finds where its frames begin.
fn frame_layout(packet: &[u8]) -> Result<Layout, EncodeError> {
    const LONGEST_FRAME: usize = 1275;
    if samples(packet).is_none() {
        return Err(EncodeError::Packet("empty, or longer than 120 ms"));
    }
    let mut reader = Reader(packet);
    let toc = reader.byte()?;
    let (header, last) = match toc & 3 {
        0 => (1, reader.0.len()),
        1 => {
            let data = reader.0.len();
            if data % 2 != 0 {
                return Err(EncodeError::Packet("two equal frames in an odd number of bytes"));
            }
            (1, data / 2)
        }
        2 => {
            let one = reader.length()?;
            let header = packet.len() - reader.0.len();
            reader.take(one)?;
            (header, reader.0.len())
        }
        _ => {
            let count = reader.byte()?;
            let padding = if count & 0x40 != 0 { reader.padding(|_| ())? } else { 0 };
            let frames = usize::from(count & 0x3f);
            let short = EncodeError::Packet("shorter than its frames");
            if count & 0x80 == 0 {
                let data = reader.0.len().checked_sub(padding).ok_or(short)?;
                if data % frames != 0 {
                    return Err(EncodeError::Packet("equal frames in a number of bytes that does not divide"));
                }
                (packet.len() - reader.0.len(), data / frames)
            } else {
                let mut sum = padding;
                for _ in 1..frames {
                    sum += reader.length()?;
                }
                (packet.len() - reader.0.len(), reader.0.len().checked_sub(sum).ok_or(short)?)
            }
        }
    };
    if last > LONGEST_FRAME {
        return Err(EncodeError::Packet("a frame of more than 1275 bytes"));
    }
    Ok(Layout { header, last })
}

/// Frame lengths take one byte below 252, else two (RFC 6716 §3.2.1).
fn push_length(length: usize, out: &mut Vec<u8>) {
    if length < 252 {
        out.push(length as u8);
    } else {
        let low = 252 + (length & 3);
        out.extend([low as u8, ((length - low) >> 2) as u8]);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, EncodeError> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], EncodeError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(EncodeError::Packet("shorter than it says"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn length(&mut self) -> Result<usize, EncodeError> {
        let low = usize::from(self.byte()?);
        if low < 252 { Ok(low) } else { Ok(4 * usize::from(self.byte()?) + low) }
    }

    /// Bytes of padding; each byte that says so goes to `seen`.
    fn padding(&mut self, mut seen: impl FnMut(u8)) -> Result<usize, EncodeError> {
        let mut sum = 0;
        loop {
            let byte = self.byte()?;
            seen(byte);
            if byte < 255 {
                return Ok(sum + usize::from(byte));
            }
            sum += 254;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_agree_with_libopus() {
        for toc in 0..=255u8 {
            for count in 0..=255u8 {
                let packet = [toc, count, 0, 0];
                let theirs = opus::packet::get_nb_samples(&packet, 48_000).ok().and_then(|n| u32::try_from(n).ok());
                assert_eq!(samples(&packet), theirs.filter(|n| *n > 0), "TOC {toc:#04x}, count {count:#04x}");
            }
        }
        assert_eq!(samples(&[]), None);
    }

    #[test]
    fn silence_packets_decode_to_nothing_of_their_length() {
        for (samples, stereo) in
            [(120, false), (240, true), (480, false), (960, false), (1920, true), (2880, false), (2880, true)]
        {
            let mut packet = Vec::new();
            write_silence(samples, stereo, &mut packet).unwrap();
            assert_eq!(is_stereo(&packet), Some(stereo));
            let mut decoder = opus::Decoder::new(48_000, opus::Channels::Stereo).unwrap();
            let mut pcm = vec![1.0; 2 * MAX_SAMPLES as usize];
            let got = decoder.decode_float(&packet, &mut pcm, false).unwrap();
            assert_eq!(got, samples as usize);
            let loudest = pcm[..2 * got].iter().fold(0.0, |most: f32, s| most.max(s.abs()));
            assert!(loudest < 1e-9, "{loudest}");
        }
        assert!(write_silence(961, false, &mut Vec::new()).is_err());
    }

    #[test]
    fn a_packet_to_be_concealed_lasts_as_long_as_its_model() {
        for like in
            [&[0x08, 1, 2][..], &[0x09, 1, 2], &[0x0a, 1, 2, 3], &[0x0b, 0x83, 1, 1, 9, 9, 9], &[0xfb, 0x03, 1, 2, 3]]
        {
            let mut packet = Vec::new();
            write_concealed(like, &mut packet).unwrap();
            assert_eq!(samples(&packet), samples(like));
            let mut decoder = opus::Decoder::new(48_000, opus::Channels::Mono).unwrap();
            let frames = decoder.decode_float(&packet, &mut [0.0; 5760], false).unwrap();
            assert_eq!(u32::try_from(frames).ok(), samples(like));
        }
        assert!(write_concealed(&[], &mut Vec::new()).is_err());
    }

    #[test]
    fn streams_of_different_duration_are_not_joined() {
        let mut out = vec![1, 2, 3];
        assert!(join_streams(&[0xf8, 0xff, 0xfe], &[0xf0, 0xff, 0xfe], &mut out).is_err());
        assert_eq!(out, [1, 2, 3]);
    }

    proptest! {
        #[test]
        fn a_joined_packet_comes_apart_again(
            code in 0u8..3,
            first_frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 2..=2),
            second in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut first = vec![0x08 | code];
            match code {
                0 => first.extend(&first_frames[0]),
                1 => {
                    first.extend(&first_frames[0]);
                    first.extend(&first_frames[0]);
                }
                _ => {
                    push_length(first_frames[0].len(), &mut first);
                    first.extend(&first_frames[0]);
                    first.extend(&first_frames[1]);
                }
            }
            let mut other = vec![if code == 0 { 0x08 } else { 0x10 }];
            other.extend(&second);
            let mut joined = Vec::new();
            join_streams(&first, &other, &mut joined).unwrap();
            let mut back = Vec::new();
            let rest = split_streams(&joined, &mut back).unwrap();
            prop_assert_eq!(back, first);
            prop_assert_eq!(rest, &other[..]);
        }

        #[test]
        fn a_joined_packet_of_many_frames_comes_apart_again(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..=6),
            padding in prop::option::of(0usize..700),
            constant in any::<bool>(),
        ) {
            let mut first = vec![0x0b, frames.len() as u8 | u8::from(!constant) << 7];
            if let Some(padding) = padding {
                first[1] |= 0x40;
                first.extend(std::iter::repeat_n(255, padding / 254));
                first.push((padding % 254) as u8);
            }
            if !constant {
                frames[..frames.len() - 1].iter().for_each(|frame| push_length(frame.len(), &mut first));
            }
            frames.iter().for_each(|frame| first.extend(if constant { &frames[0] } else { frame }));
            first.extend(std::iter::repeat_n(0, padding.unwrap_or(0)));
            let mut second = vec![0x0b, frames.len() as u8];
            second.extend(vec![7; frames.len() * 3]);
            let mut joined = Vec::new();
            join_streams(&first, &second, &mut joined).unwrap();
            let mut back = Vec::new();
            prop_assert_eq!(split_streams(&joined, &mut back).unwrap(), &second[..]);
            prop_assert_eq!(back, first);
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut out = Vec::new();
            let _ = samples(&bytes);
            let _ = write_concealed(&bytes, &mut out);
            let _ = join_streams(&bytes, &bytes, &mut out);
            let _ = split_streams(&bytes, &mut out);
        }
    }
}
