//! Messages that differ in numbers only: one real message, encoded once, with places where a number goes.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};

/// Digits of a number in a message; what is replaced by them has the same length, so that no length changes.
pub const DIGITS: usize = 12;

/// An encoded message with places for numbers.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Template {
    /// `message` with a place wherever one of these texts occurs. Each is [`DIGITS`] long and occurs at least once.
    pub fn new(message: Vec<u8>, texts: &[&str]) -> Result<Self> {
        let mut places = Vec::new();
        for text in texts {
            ensure!(text.len() == DIGITS, "{text:?} does not have {DIGITS} characters");
            let before = places.len();
            places.extend(
                message.windows(DIGITS).enumerate().filter(|(_, part)| *part == text.as_bytes()).map(|(at, _)| at),
            );
            ensure!(places.len() > before, "{text:?} does not occur in the message");
        }
        Ok(Self { bytes: message, places })
    }

    /// How long every message is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Appends the message with this number in every place.
    pub fn write(&self, number: u64, to: &mut BytesMut) {
        let start = to.len();
        to.extend_from_slice(&self.bytes);
        let mut digits = String::with_capacity(DIGITS);
        // Writing to a string does not fail.
        let _ = write!(digits, "{number:0DIGITS$}");
        for place in &self.places {
            to[start + place..start + place + DIGITS].copy_from_slice(digits.as_bytes());
        }
    }

    /// The message with this number in every place.
    #[must_use]
    pub fn message(&self, number: u64) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.len());
        self.write(number, &mut bytes);
        bytes.freeze()
    }
}

/// Messages of a log stream: so many entries each, one after the other, of these templates in turn.
#[derive(Debug, Clone)]
pub struct Log {
    /// What the first message of a stream says of who sends it.
    identifier: Vec<u8>,
    entries: Vec<Template>,
    in_a_message: u64,
}

impl Log {
    /// `identifier` is the encoded identifier of a stream.
    #[must_use]
    pub fn new(identifier: Vec<u8>, entries: Vec<Template>, in_a_message: u64) -> Self {
        Self { identifier, entries, in_a_message }
    }

    /// The message whose first entry has this number, with no entry from `end` on. Entry `n` is of the template `n` modulo
    /// their count, and has that number divided by their count, so that neighbours of different kinds share a number.
    #[must_use]
    pub fn message(&self, first: u64, end: u64, is_first: bool) -> Bytes {
        let kinds = self.entries.len() as u64;
        let numbers = first..end.min(first + self.in_a_message);
        let template = |number: u64| &self.entries[usize::try_from(number % kinds).unwrap_or(0)];
        let inner: usize =
            numbers.clone().map(|number| 1 + varint_len(template(number).len()) + template(number).len()).sum();
        let mut message = BytesMut::with_capacity(inner + self.identifier.len() + 16);
        if is_first {
            field(1, self.identifier.len(), &mut message);
            message.extend_from_slice(&self.identifier);
        }
        field(2, inner, &mut message);
        for number in numbers {
            let template = template(number);
            field(1, template.len(), &mut message);
            template.write(number / kinds, &mut message);
        }
        message.freeze()
    }

    /// Where the messages of `numbers` begin.
    pub fn starts(&self, numbers: std::ops::Range<u64>) -> impl Iterator<Item = u64> + use<> {
        numbers.step_by(usize::try_from(self.in_a_message).unwrap_or(1))
    }
}

/// The head of a length-delimited field.
fn field(number: u8, length: usize, to: &mut BytesMut) {
    to.extend_from_slice(&[number << 3 | 2]);
    prost::encode_length_delimiter(length, to).unwrap_or_default();
}

fn varint_len(length: usize) -> usize {
    prost::length_delimiter_len(length)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::data::accesslog::v3::HttpAccessLogEntry;
    use envoy_types::pb::envoy::data::accesslog::v3::{AccessLogCommon, HttpRequestProperties};
    use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{Identifier, LogEntries};
    use prost::Message as _;

    use super::*;

    fn entry(path: &str) -> Vec<u8> {
        HttpAccessLogEntry {
            common_properties: Some(AccessLogCommon { stream_id: "abcdefghijkl".into(), ..Default::default() }),
            request: Some(HttpRequestProperties { path: path.into(), ..Default::default() }),
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn a_number_goes_into_every_place_and_nothing_else_changes() {
        let template = Template::new(entry("/tsk-abcdefghijkl/x"), &["abcdefghijkl"]).unwrap();
        let made = HttpAccessLogEntry::decode(template.message(42)).unwrap();
        assert_eq!(made.request.unwrap().path, "/tsk-000000000042/x");
        assert_eq!(made.common_properties.unwrap().stream_id, "000000000042");
        assert!(Template::new(entry("/"), &["mnopqrstuvwx"]).is_err());
        assert!(Template::new(entry("/"), &["abc"]).is_err());
    }

    #[test]
    fn a_log_message_is_what_envoy_would_have_encoded() {
        let kinds =
            ["/a/abcdefghijkl", "/bb/abcdefghijkl"].map(|path| Template::new(entry(path), &["abcdefghijkl"]).unwrap());
        let identifier = Identifier { log_name: "flowmesh".into(), ..Default::default() };
        let log = Log::new(identifier.encode_to_vec(), kinds.to_vec(), 3);
        assert_eq!(log.starts(2..9).collect::<Vec<_>>(), [2, 5, 8]);
        let decode = |bytes: Bytes| StreamAccessLogsMessage::decode(bytes).unwrap();
        let paths = |message: StreamAccessLogsMessage| match message.log_entries {
            Some(LogEntries::HttpLogs(logs)) => {
                logs.log_entry.into_iter().map(|entry| entry.request.unwrap().path).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        let first = decode(log.message(2, 9, true));
        assert_eq!(first.identifier, Some(identifier));
        assert_eq!(paths(first), ["/a/000000000001", "/bb/000000000001", "/a/000000000002"]);
        let last = decode(log.message(8, 9, false));
        assert_eq!(last.identifier, None);
        assert_eq!(paths(last), ["/a/000000000004"]);
    }
}
