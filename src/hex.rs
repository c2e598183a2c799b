//! Bytes as hexadecimal digits, two a byte.

/// The digits of `bytes`, in lower case.
pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that `text` says, or `None` for what is no digit.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.as_bytes().chunks(2).map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = encode(&bytes);
        assert_eq!((text.len(), &text[..8], &text[508..]), (512, "00010203", "feff"));
        assert_eq!(decode(&text), Some(bytes));
        assert_eq!(decode("0g"), None);
    }
}
