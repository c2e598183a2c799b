//! Frames of MPEG audio layer III (ISO 11172-3 §2.4), and the frame of no sound that tells about the others.

/// Bytes of a frame's header.
pub(super) const HEADER: usize = 4;
/// Samples that a decoder is late by, beside the encoder's own delay.
pub(super) const DECODER_DELAY: u64 = 529;
/// Bits a second / 1000, MPEG-1 layer III.
pub(super) const KBPS: [u16; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const KBPS_LSF: [u16; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub rate: u32,
    pub channels: u8,
    /// Samples a channel.
    pub samples: u32,
    /// The whole frame.
    pub bytes: usize,
    /// Where its side information ends.
    pub side_end: usize,
}

impl Frame {
    /// Reads a header; `None` where it is none of layer III, or one without a bitrate.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER>()?;
        let version = header[1] >> 3 & 3;
        let (bitrate, rate) = (usize::from(header[2] >> 4), usize::from(header[2] >> 2 & 3));
        let is_layer_3 = header[0] == 0xff && header[1] & 0xe6 == 0xe2;
        if !is_layer_3 || version == 1 || bitrate == 0 || bitrate == 15 || rate == 3 || header[3] & 3 == 2 {
            return None;
        }
        let full = version == 3;
        let halvings = match version {
            3 => 0,
            2 => 1,
            _ => 2,
        };
        let rate = [44_100u32, 48_000, 32_000][rate] >> halvings;
        let kbps = u32::from(if full { KBPS[bitrate] } else { KBPS_LSF[bitrate] });
        let mono = header[3] >> 6 == 3;
        let samples = if full { 1152 } else { 576 };
        let side = match (full, mono) {
            (true, false) => 32,
            (true, true) | (false, false) => 17,
            (false, true) => 9,
        };
        let crc = if header[1] & 1 == 0 { 2 } else { 0 };
        let side_end = HEADER + crc + side;
        let bytes = (samples / 8 * kbps * 1000 / rate) as usize + usize::from(header[2] >> 1 & 1);
        let frame = Self { rate, channels: if mono { 1 } else { 2 }, samples, bytes, side_end };
        (bytes >= side_end).then_some(frame)
    }

    /// Whether both can stand in one stream.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.rate, self.channels, self.samples) == (other.rate, other.channels, other.samples)
    }
}

/// What the frame at the beginning tells about the others (Xing, with LAME's extension).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// Frames after this one.
    pub frames: Option<u32>,
    /// Bytes from this frame to the last.
    pub bytes: Option<u32>,
    /// What LAME's extension says.
    pub lame: Option<Lame>,
}

/// LAME's extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lame {
    /// Samples a channel before the sound begins, without the decoder's own.
    pub delay: u16,
    /// Samples a channel after it has ended.
    pub padding: u16,
    /// Bytes from this frame to the last, 0 where that is not known.
    pub bytes: u32,
    /// The checksum of the frames after this one.
    pub crc: u16,
    /// Whether the checksum of this frame is right.
    pub intact: bool,
}

impl Told {
    /// Reads a whole frame; `None` where it holds sound.
    pub(super) fn parse(frame: &Frame, bytes: &[u8]) -> Option<Self> {
        let body = bytes.get(frame.side_end..)?;
        let (id, rest) = body.split_first_chunk::<4>()?;
        if id != b"Info" && id != b"Xing" {
            return None;
        }
        let (flags, mut rest) = rest.split_first_chunk::<4>()?;
        let mut told = Self::default();
        let mut next = |flag: u8| {
            if flags[3] & flag == 0 {
                return None;
            }
            let (value, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            Some(u32::from_be_bytes(*value))
        };
        told.frames = next(1);
        told.bytes = next(2);
        if flags[3] & 4 != 0 {
            rest = rest.get(100..).unwrap_or_default();
        }
        if flags[3] & 8 != 0 {
            rest = rest.get(4..).unwrap_or_default();
        }
        let at = bytes.len() - rest.len();
        if let Some(lame) = rest.first_chunk::<36>()
            && (lame.starts_with(b"LAME") || lame.starts_with(b"Lav"))
        {
            let sum = crc16(0, &bytes[..at + 34]);
            told.lame = Some(Lame {
                delay: u16::from(lame[21]) << 4 | u16::from(lame[22]) >> 4,
                padding: u16::from(lame[22] & 15) << 8 | u16::from(lame[23]),
                bytes: u32::from_be_bytes([lame[28], lame[29], lame[30], lame[31]]),
                crc: u16::from_be_bytes([lame[32], lame[33]]),
                intact: sum.to_be_bytes() == lame[34..],
            });
        }
        Some(told)
    }
}

const CRC_TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut value = n as u16;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 != 0 { value >> 1 ^ 0xa001 } else { value >> 1 };
            bit += 1;
        }
        table[n] = value;
        n += 1;
    }
    table
};

/// Continues LAME's checksum (generator 0x8005, reflected).
pub(super) fn crc16(crc: u16, bytes: &[u8]) -> u16 {
    bytes.iter().fold(crc, |crc, byte| crc >> 8 ^ CRC_TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_the_standard_says() {
        let stereo = Frame { rate: 48_000, channels: 2, samples: 1152, bytes: 384, side_end: 36 };
        assert_eq!(Frame::parse(&[0xff, 0xfb, 0x94, 0x44]), Some(stereo));
        let mono = Frame { rate: 22_050, channels: 1, samples: 576, bytes: 105, side_end: 15 };
        assert_eq!(Frame::parse(&[0xff, 0xf2, 0x42, 0xc4]), Some(mono));
        for other in [[0xff, 0xfd, 0x94, 0x44], [0xff, 0xfb, 0x04, 0], [0xff, 0xfb, 0xf4, 0], [0xff, 0xfb, 0x9c, 0]] {
            assert_eq!(Frame::parse(&other), None, "{other:x?}");
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_catalogue() {
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }
}
