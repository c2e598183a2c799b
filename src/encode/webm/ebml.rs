//! EBML elements (RFC 8794): an identifier, a size, a body.

/// A size of seven bytes that says it is not known.
pub(super) const UNKNOWN_SIZE: [u8; 8] = [0x01, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];

/// Appends an identifier, which carries its own length marker.
pub(super) fn put_id(id: u32, out: &mut Vec<u8>) {
    let bytes = id.to_be_bytes();
    out.extend_from_slice(&bytes[id.leading_zeros() as usize / 8..]);
}

/// Appends a size in as few bytes as it takes.
pub(super) fn put_size(size: u64, out: &mut Vec<u8>) {
    let length = (1..8).find(|length| size < (1 << (7 * length)) - 1).unwrap_or(8);
    let bytes = (size | 1 << (7 * length)).to_be_bytes();
    out.extend_from_slice(&bytes[8 - length as usize..]);
}

/// A size in eight bytes.
pub(super) fn wide_size(size: u64) -> [u8; 8] {
    (size | 1 << 56).to_be_bytes()
}

pub(super) fn put(id: u32, body: &[u8], out: &mut Vec<u8>) {
    put_id(id, out);
    put_size(body.len() as u64, out);
    out.extend_from_slice(body);
}

pub(super) fn put_uint(id: u32, value: u64, out: &mut Vec<u8>) {
    let bytes = value.to_be_bytes();
    put(id, &bytes[(value.leading_zeros() as usize / 8).min(7)..], out);
}

pub(super) fn put_float(id: u32, value: f64, out: &mut Vec<u8>) {
    put(id, &value.to_be_bytes(), out);
}

pub(super) fn put_text(id: u32, value: &str, out: &mut Vec<u8>) {
    put(id, value.as_bytes(), out);
}

/// Appends an element whose body `fill` writes.
pub(super) fn put_master(id: u32, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    fill(&mut body);
    put(id, &body, out);
}

/// Appends `length` bytes that mean nothing; from 2 to 128.
pub(super) fn put_void(length: usize, out: &mut Vec<u8>) {
    put(super::id::VOID, &[0; 126][..length - 2], out);
}

/// What stands at the start of an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// More bytes are needed.
    Short,
    /// No element begins like this.
    Bad,
    /// An element; the size is that of its body, `None` if not known.
    Element { id: u32, size: Option<u64>, header: usize },
}

/// Reads an element's start.
pub(super) fn start(bytes: &[u8]) -> Start {
    let Some(first) = bytes.first() else { return Start::Short };
    let id_length = first.leading_zeros() as usize + 1;
    if id_length > 4 {
        return Start::Bad;
    }
    let Some(id) = bytes.get(..id_length) else { return Start::Short };
    let id = id.iter().fold(0, |id, byte| id << 8 | u32::from(*byte));
    match vint(&bytes[id_length..]) {
        Vint::Short => Start::Short,
        Vint::Bad => Start::Bad,
        Vint::Value { value, length } => Start::Element { id, size: value, header: id_length + length },
    }
}

/// What a variable-size integer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vint {
    /// More bytes are needed.
    Short,
    /// It would be longer than eight bytes.
    Bad,
    /// Its value, `None` where all bits are set, and how many bytes it takes.
    Value { value: Option<u64>, length: usize },
}

/// Reads a variable-size integer without its length marker.
pub(super) fn vint(bytes: &[u8]) -> Vint {
    let Some(first) = bytes.first() else { return Vint::Short };
    let length = first.leading_zeros() as usize + 1;
    if length > 8 {
        return Vint::Bad;
    }
    let Some(bytes) = bytes.get(..length) else { return Vint::Short };
    let all = (1u64 << (7 * length)) - 1;
    let value = bytes.iter().fold(0u64, |value, byte| value << 8 | u64::from(*byte)) & all;
    Vint::Value { value: (value != all).then_some(value), length }
}

/// The elements in a body, up to the first that is malformed.
pub(super) struct Elements<'a>(pub &'a [u8]);

impl<'a> Iterator for Elements<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let Start::Element { id, size: Some(size), header } = start(self.0) else { return None };
        let (body, rest) = self.0.get(header..)?.split_at_checked(usize::try_from(size).ok()?)?;
        self.0 = rest;
        Some((id, body))
    }
}

/// The body of the first element `id` in `body`.
pub(super) fn find(body: &[u8], id: u32) -> Option<&[u8]> {
    Elements(body).find(|(found, _)| *found == id).map(|(_, body)| body)
}

/// The value of an unsigned integer element's body; its lowest 64 bits.
pub(super) fn uint(body: &[u8]) -> u64 {
    body.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The value of a signed integer element's body, or `None` where it is longer than 64 bits.
pub(super) fn int(body: &[u8]) -> Option<i64> {
    let negative = body.first().is_some_and(|byte| byte & 0x80 != 0);
    let mut bytes = [if negative { 0xff } else { 0 }; 8];
    let start = 8usize.checked_sub(body.len())?;
    bytes[start..].copy_from_slice(body);
    Some(i64::from_be_bytes(bytes))
}

/// The value of a float element's body, or `None` where it has another length than 4 or 8.
pub(super) fn float(body: &[u8]) -> Option<f64> {
    if let Ok(bytes) = <[u8; 8]>::try_from(body) {
        return Some(f64::from_be_bytes(bytes));
    }
    <[u8; 4]>::try_from(body).ok().map(|bytes| f64::from(f32::from_be_bytes(bytes)))
}

/// The value of a string element's body, without the zeros it may be padded with.
pub(super) fn text(body: &[u8]) -> String {
    let end = body.iter().position(|byte| *byte == 0).unwrap_or(body.len());
    String::from_utf8_lossy(&body[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_they_were_written() {
        for size in [0, 1, 126, 127, 128, 16_382, 16_383, 2_097_150, 2_097_151, 1 << 40, (1 << 56) - 2] {
            let mut bytes = Vec::new();
            put_size(size, &mut bytes);
            assert_eq!(vint(&bytes), Vint::Value { value: Some(size), length: bytes.len() });
            assert_eq!(vint(&bytes[..bytes.len() - 1]), Vint::Short);
            assert_eq!(vint(&wide_size(size)), Vint::Value { value: Some(size), length: 8 });
        }
        assert_eq!(vint(&UNKNOWN_SIZE), Vint::Value { value: None, length: 8 });
        assert_eq!(vint(&[0xff]), Vint::Value { value: None, length: 1 });
        assert_eq!(vint(&[0]), Vint::Bad);
    }

    #[test]
    fn elements_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        put_uint(super::super::id::TRACK_UID, 0x1234, &mut bytes);
        put_uint(super::super::id::TRACK_TYPE, 0, &mut bytes);
        put_void(11, &mut bytes);
        assert_eq!(bytes, [0x73, 0xc5, 0x82, 0x12, 0x34, 0x83, 0x81, 0, 0xec, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let found: Vec<_> = Elements(&bytes).map(|(id, body)| (id, uint(body))).collect();
        assert_eq!(found, [(0x73c5, 0x1234), (0x83, 0), (0xec, 0)]);
    }

    #[test]
    fn signed_integers_keep_their_sign() {
        assert_eq!(int(&[0xff]), Some(-1));
        assert_eq!(int(&[0x00, 0xff]), Some(255));
        assert_eq!(int(&[]), Some(0));
        assert_eq!(int(&[0; 9]), None);
    }
}
