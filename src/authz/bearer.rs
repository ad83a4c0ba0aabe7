//! Where a request carries its token. Pure.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// JWTs of lum.id have up to 4 KiB; anything over twice that is no token.
pub const LONGEST_TOKEN: usize = 8 * 1024;

/// The token of a request, and the raw query keys that carried it and must not reach FlowMesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer<'a> {
    pub token: Cow<'a, str>,
    pub query_keys: Vec<String>,
}

/// Finds the one token of a request: exactly one `Authorization: Bearer …`, or, on a WebSocket upgrade, exactly one
/// `?token=…`. `None` when there is none, more than one, or it is malformed: all of that is one refusal.
#[must_use]
pub fn find<'a>(authorization: &'a [impl AsRef<[u8]>], query: Option<&str>, is_websocket: bool) -> Option<Bearer<'a>> {
    let in_query = if is_websocket { query_tokens(query.unwrap_or_default()) } else { Vec::new() };
    match (authorization, in_query.as_slice()) {
        ([header], []) => Some(Bearer { token: header_token(header.as_ref())?.into(), query_keys: Vec::new() }),
        ([], [(key, token)]) if is_token(token) => {
            Some(Bearer { token: token.clone().into(), query_keys: vec![(*key).to_owned()] })
        }
        _ => None,
    }
}

fn header_token(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    let token = token.trim_matches(' ');
    (scheme.eq_ignore_ascii_case("bearer") && is_token(token)).then_some(token)
}

/// Envoy joins duplicate headers with a comma, so a comma is two tokens.
fn is_token(token: &str) -> bool {
    (1..=LONGEST_TOKEN).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}

/// Raw key and decoded value of each parameter whose decoded key is `token`.
fn query_tokens(query: &str) -> Vec<(&str, String)> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(key, _)| decode(key) == "token")
        .map(|(key, value)| (key, decode(value)))
        .collect()
}

/// As FastAPI decodes a query: `+` is a space, bytes that are no UTF-8 are replaced.
fn decode(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: &[&[u8]] = &[];

    fn header(value: &[u8]) -> Option<String> {
        find(&[value], None, false).map(|bearer| bearer.token.into_owned())
    }

    #[test]
    fn the_scheme_is_case_insensitive() {
        for value in ["Bearer abc", "bearer abc", "BEARER abc", "Bearer  abc "] {
            assert_eq!(header(value.as_bytes()).as_deref(), Some("abc"), "{value}");
        }
    }

    #[test]
    fn anything_but_one_well_formed_bearer_is_none() {
        let long = format!("Bearer {}", "a".repeat(LONGEST_TOKEN + 1));
        for value in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer   ",
            b"Basic YTpi",
            b"Bearerabc",
            b"Bearer a b",
            b"Bearer a,Bearer b",
            b"Bearer a,b",
            b"Bearer \xff\xfe",
            b"Bearer a\tb",
            b" Bearer a",
            long.as_bytes(),
        ] {
            assert_eq!(header(value), None, "{}", String::from_utf8_lossy(value));
        }
        assert_eq!(find(&[b"Bearer a", b"Bearer a"], None, false), None);
        assert_eq!(find(NONE, None, false), None);
    }

    #[test]
    fn a_query_token_counts_on_a_websocket_upgrade_only() {
        assert_eq!(find(NONE, Some("token=abc"), false), None);
        let bearer = find(NONE, Some("a=1&token=ab%63&b=2"), true).expect("a token");
        assert_eq!((bearer.token.as_ref(), bearer.query_keys), ("abc", vec!["token".to_owned()]));
    }

    #[test]
    fn an_encoded_key_is_removed_by_its_raw_spelling() {
        let bearer = find(NONE, Some("%74oken=abc"), true).expect("a token");
        assert_eq!(bearer.query_keys, ["%74oken"]);
    }

    #[test]
    fn more_than_one_token_is_none_wherever_they_are() {
        assert_eq!(find(NONE, Some("token=a&token=a"), true), None);
        assert_eq!(find(NONE, Some("token=a&%74oken=b"), true), None);
        assert_eq!(find(&[b"Bearer a"], Some("token=a"), true), None);
        assert_eq!(find(NONE, Some("token="), true), None);
    }

    proptest! {
        #[test]
        fn no_input_panics_and_every_token_is_one_visible_word(header in prop::collection::vec(any::<u8>(), 0..64),
                query in "\\PC{0,64}", websocket: bool) {
            for found in [find(&[header.as_slice()], None, false), find(NONE, Some(&query), websocket)].into_iter().flatten() {
                prop_assert!(is_token(&found.token));
            }
        }
    }
}
