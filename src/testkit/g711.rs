//! G.711 encoding (ITU-T G.711), for publishers that send what telephones send.

/// One sample, ±1.0, as µ-law.
pub fn to_ulaw(sample: f32) -> u8 {
    const BIAS: i32 = 0x84;
    const CLIP: i32 = 32_635;
    let pcm = to_i16(sample);
    let sign = if pcm < 0 { 0x80 } else { 0 };
    let magnitude = pcm.abs().min(CLIP) + BIAS;
    // The bias puts the leading one at bit 7 or above: the segment is how far above.
    let segment = 24 - magnitude.leading_zeros() as i32;
    let mantissa = (magnitude >> (segment + 3)) & 0x0f;
    !(sign | (segment << 4) | mantissa) as u8
}

/// One sample, ±1.0, as A-law.
pub fn to_alaw(sample: f32) -> u8 {
    let pcm = to_i16(sample) >> 3;
    let (sign, magnitude) = if pcm < 0 { (0, -pcm - 1) } else { (0x80, pcm) };
    let segment = (27 - (magnitude | 0x1f).leading_zeros() as i32).max(0);
    let shift = if segment < 2 { 1 } else { segment };
    let mantissa = (magnitude >> shift) & 0x0f;
    ((sign | (segment << 4) | mantissa) ^ 0x55) as u8
}

fn to_i16(sample: f32) -> i32 {
    (sample.clamp(-1.0, 1.0) * 32_767.0).round() as i32
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// What ffmpeg's decoder makes of every code.
    fn table(format: &str) -> Vec<i16> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("codes");
        std::fs::write(&path, (0..=255).collect::<Vec<u8>>()).unwrap();
        let output = Command::new("ffmpeg")
            .args(["-nostdin", "-loglevel", "error", "-f", format, "-ar", "8000", "-i"])
            .arg(&path)
            .args(["-f", "s16le", "-"])
            .stderr(Stdio::inherit())
            .output()
            .expect("ffmpeg is one of the tools that the tests need");
        output.stdout.chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    fn worst_relative_error(table: &[i16], encode: fn(f32) -> u8) -> f32 {
        let error = |pcm: i32| {
            let decoded = i32::from(table[usize::from(encode(pcm as f32 / 32_767.0))]);
            (decoded - pcm).abs() as f32 / (pcm.abs() as f32 + 256.0)
        };
        (-32_000..=32_000).map(error).fold(0.0, f32::max)
    }

    #[test]
    fn codes_decode_to_what_was_said() {
        assert!(worst_relative_error(&table("mulaw"), to_ulaw) < 0.04);
        assert!(worst_relative_error(&table("alaw"), to_alaw) < 0.04);
        assert_eq!(to_ulaw(0.0), 0xff);
        assert_eq!(to_alaw(0.0), 0xd5);
    }
}
