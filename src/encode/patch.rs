//! Bytes at a file's beginning that are only known at its end: durations, sizes, the place of the index.

/// Bytes that replace those at `offset`, of the same length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// Where, in bytes since the start of the file.
    pub offset: u64,
    /// What stands there from then on.
    pub bytes: Vec<u8>,
}

impl Patch {
    /// Where the bytes end that it replaces.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

/// Applies `patches` to `bytes`, which begin at the start of the file. Gives whether all of them lay within; those that do
/// not are left out.
pub fn apply(patches: &[Patch], bytes: &mut [u8]) -> bool {
    let mut all = true;
    for patch in patches {
        let place = usize::try_from(patch.offset).ok().zip(usize::try_from(patch.end()).ok());
        match place.and_then(|(start, end)| bytes.get_mut(start..end)) {
            Some(place) => place.copy_from_slice(&patch.bytes),
            None => all = false,
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_within_is_replaced() {
        let mut bytes = *b"0123456789";
        assert!(apply(
            &[Patch { offset: 2, bytes: b"ab".to_vec() }, Patch { offset: 9, bytes: b"z".to_vec() }],
            &mut bytes
        ));
        assert_eq!(&bytes, b"01ab45678z");
        assert!(!apply(&[Patch { offset: 9, bytes: b"xy".to_vec() }], &mut bytes));
        assert!(!apply(&[Patch { offset: u64::MAX, bytes: b"xy".to_vec() }], &mut bytes));
        assert_eq!(&bytes, b"01ab45678z");
    }
}
