//! RFC 4571: packets on a byte stream, each behind its length in two bytes, high byte first.

/// Appends `packet` to `out` behind its length. A packet that is too long for a frame is left out and `false` returned.
pub(in super::super) fn encode(packet: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(packet.len()) else { return false };
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(packet);
    true
}

/// Cuts a byte stream into packets. Holds at most one unfinished packet and what was pushed last.
#[derive(Debug, Default)]
pub(in super::super) struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes what was read from the stream.
    pub(in super::super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole packet; empty ones are skipped.
    pub(in super::super) fn next_packet(&mut self) -> Option<&[u8]> {
        loop {
            let rest = self.bytes.get(self.start..)?;
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_be_bytes(*length));
            if rest.len() < length {
                return None;
            }
            let first = self.start + 2;
            self.start = first + length;
            if length > 0 {
                return self.bytes.get(first..self.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_may_arrive_byte_by_byte() {
        let mut stream = Vec::new();
        assert!(encode(b"stun", &mut stream) && encode(b"", &mut stream) && encode(b"rtp", &mut stream));
        let mut decoder = Decoder::default();
        let mut packets = Vec::new();
        for byte in stream {
            decoder.push(&[byte]);
            while let Some(packet) = decoder.next_packet() {
                packets.push(packet.to_vec());
            }
        }
        assert_eq!(packets, [b"stun".to_vec(), b"rtp".to_vec()]);
    }

    #[test]
    fn a_packet_longer_than_a_frame_is_refused() {
        let mut out = Vec::new();
        assert!(encode(&vec![0; usize::from(u16::MAX)], &mut out));
        let before = out.len();
        assert!(!encode(&vec![0; usize::from(u16::MAX) + 1], &mut out));
        assert_eq!(out.len(), before);
    }

    proptest! {
        #[test]
        fn packets_come_out_as_they_went_in(
            packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 0..20),
            cut in 1usize..97,
        ) {
            let mut stream = Vec::new();
            for packet in &packets {
                prop_assert!(encode(packet, &mut stream));
            }
            let mut decoder = Decoder::default();
            let mut out = Vec::new();
            for chunk in stream.chunks(cut) {
                decoder.push(chunk);
                while let Some(packet) = decoder.next_packet() {
                    out.push(packet.to_vec());
                }
            }
            prop_assert_eq!(out, packets);
        }
    }
}
