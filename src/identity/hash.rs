//! What stands for a token wherever it is remembered or shown.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// SHA-256 of a token: the key of every cache. Logs show its first 8 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

/// What is no SHA-256 in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 64 hexadecimal digits")]
pub struct NotAHash;

impl TokenHash {
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// All 64 digits, for whoever is to find the same token again.
    #[must_use]
    pub fn to_hex(&self) -> String {
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or_default();
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for TokenHash {
    type Err = NotAHash;

    /// All 64 digits, as `sha256sum` prints them.
    fn from_str(text: &str) -> Result<Self, NotAHash> {
        // Digits only: the integer's own parser would also take a sign.
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAHash);
        }
        let mut hash = [0; 32];
        for (at, byte) in hash.iter_mut().enumerate() {
            let digits = text.get(2 * at..2 * at + 2).ok_or(NotAHash)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| NotAHash)?;
        }
        Ok(Self(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_shows_eight_digits_and_nothing_of_the_token() {
        assert_eq!(TokenHash::of("abc").to_string(), "ba7816bf");
    }

    #[test]
    fn a_hash_is_read_as_sha256sum_prints_it() {
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(text.parse(), Ok(TokenHash::of("abc")));
        assert_eq!(TokenHash::of("abc").to_hex(), text);
        assert_eq!(text.to_uppercase().parse(), Ok(TokenHash::of("abc")));
        for wrong in ["", "ba7816bf", &format!("{text}0"), &text.replace("ba", "+a"), &text.replace('b', "ü")] {
            assert_eq!(wrong.parse::<TokenHash>(), Err(NotAHash), "{wrong}");
        }
    }
}
