//! Boxes (ISO/IEC 14496-12 §4.2): a size, a kind, a body.

/// Appends a box whose body `fill` writes.
pub(super) fn put(kind: &[u8; 4], out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; 4]);
    out.extend_from_slice(kind);
    fill(out);
    let size = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends a box with a version and 24 bits of flags.
pub(super) fn put_full(kind: &[u8; 4], version: u8, flags: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    put(kind, out, |out| {
        out.extend((u32::from(version) << 24 | flags).to_be_bytes());
        fill(out);
    });
}

pub(super) fn put_u16(value: u16, out: &mut Vec<u8>) {
    out.extend(value.to_be_bytes());
}

pub(super) fn put_u32(value: u32, out: &mut Vec<u8>) {
    out.extend(value.to_be_bytes());
}

pub(super) fn put_u64(value: u64, out: &mut Vec<u8>) {
    out.extend(value.to_be_bytes());
}

/// What stands at the start of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// More bytes are needed.
    Short,
    /// No box begins like this.
    Bad,
    /// A box; the size is that of its body, `None` where it goes to the end of the file.
    Box { kind: [u8; 4], size: Option<u64>, header: usize },
}

/// Reads a box's start.
pub(super) fn start(bytes: &[u8]) -> Start {
    let mut fields = Fields(bytes);
    let (Some(size), Some(kind)) = (fields.u32(), fields.array::<4>()) else { return Start::Short };
    if !kind.iter().all(|byte| (0x20..0x7f).contains(byte) || *byte == 0xa9) {
        return Start::Bad;
    }
    let (size, header) = match size {
        0 => return Start::Box { kind, size: None, header: 8 },
        1 => match fields.u64() {
            Some(size) => (size, 16),
            None => return Start::Short,
        },
        size => (u64::from(size), 8),
    };
    match size.checked_sub(header) {
        Some(size) => Start::Box { kind, size: Some(size), header: header as usize },
        None => Start::Bad,
    }
}

/// The boxes in a body, up to the first that is malformed.
#[derive(Clone, Copy)]
pub(super) struct Boxes<'a>(pub &'a [u8]);

impl<'a> Iterator for Boxes<'a> {
    type Item = ([u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let Start::Box { kind, size, header } = start(self.0) else { return None };
        let rest = self.0.get(header..)?;
        let size = size.map_or(Some(rest.len()), |size| usize::try_from(size).ok())?;
        let (body, rest) = rest.split_at_checked(size)?;
        self.0 = rest;
        Some((kind, body))
    }
}

/// The body of the first box of each kind of `path`, from the outermost on.
pub(super) fn find<'a>(body: &'a [u8], path: &[&[u8; 4]]) -> Option<&'a [u8]> {
    path.iter().try_fold(body, |body, kind| Boxes(body).find(|(found, _)| found == *kind).map(|(_, body)| body))
}

/// Big-endian fields, from the front.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A box's version and flags.
    pub(super) fn full(&mut self) -> Option<(u8, u32)> {
        self.u32().map(|word| ((word >> 24) as u8, word & 0xff_ffff))
    }

    /// 64 bits in version 1, else 32.
    pub(super) fn wide(&mut self, version: u8) -> Option<u64> {
        if version == 1 { self.u64() } else { self.u32().map(u64::from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        put(b"moov", &mut bytes, |out| put_full(b"mehd", 1, 5, out, |out| put_u64(7, out)));
        let mut fields = Fields(find(&bytes, &[b"moov", b"mehd"]).unwrap());
        assert_eq!((fields.full(), fields.wide(1)), (Some((1, 5)), Some(7)));
        assert_eq!(start(&bytes), Start::Box { kind: *b"moov", size: Some(20), header: 8 });
        assert_eq!(start(b"\0\0\0\x07free"), Start::Bad);
        assert_eq!(
            start(b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x12"),
            Start::Box { kind: *b"mdat", size: Some(2), header: 16 }
        );
        assert_eq!(start(b"\0\0\0\0mdat"), Start::Box { kind: *b"mdat", size: None, header: 8 });
    }
}
