//! Texts as PostgreSQL keeps them: it takes every character but U+0000.
//!
//! Whoever wrote a token, a worker or an execution decides what is in it, and SQLite keeps it as it is. So an escape, which
//! nobody writes, stands for what cannot be stored: U+E000 and `0` for U+0000, and U+E000 twice for itself.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Sqlite, Type};

const ESCAPE: char = '\u{e000}';
const ESCAPED_NUL: &str = "\u{e000}0";
const ESCAPED_ESCAPE: &str = "\u{e000}\u{e000}";

/// A text as it is to be stored.
#[must_use]
pub fn stored(text: &str) -> Cow<'_, str> {
    if text.contains(['\0', ESCAPE]) {
        Cow::Owned(text.replace(ESCAPE, ESCAPED_ESCAPE).replace('\0', ESCAPED_NUL))
    } else {
        Cow::Borrowed(text)
    }
}

/// What a stored text says.
fn read(text: &str) -> String {
    if !text.contains(ESCAPE) {
        return text.to_owned();
    }
    let mut said = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        said.push(match character {
            ESCAPE if characters.next() == Some('0') => '\0',
            character => character,
        });
    }
    said
}

/// Rows for a statement, as JSON whose texts are stored texts.
///
/// # Errors
/// Never of what the ledger hands over.
pub fn json(rows: impl Serialize) -> Result<String, sqlx::Error> {
    let mut bytes = Vec::with_capacity(256);
    rows.serialize(&mut Serializer::with_formatter(&mut bytes, Stored))
        .map_err(|error| sqlx::Error::Encode(error.into()))?;
    String::from_utf8(bytes).map_err(|error| sqlx::Error::Encode(error.into()))
}

struct Stored;

impl Formatter for Stored {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        writer.write_all(stored(fragment).as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, writer: &mut W, escape: CharEscape) -> io::Result<()> {
        match escape {
            CharEscape::AsciiControl(0) => writer.write_all(ESCAPED_NUL.as_bytes()),
            other => serde_json::ser::CompactFormatter.write_char_escape(writer, other),
        }
    }
}

/// A text column of either database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(pub String);

impl Type<Postgres> for Text {
    fn type_info() -> PgTypeInfo {
        <String as Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <String as Type<Postgres>>::compatible(ty)
    }
}

impl<'r> Decode<'r, Postgres> for Text {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(read(<&str as Decode<Postgres>>::decode(value)?)))
    }
}

impl Type<Sqlite> for Text {
    fn type_info() -> sqlx::sqlite::SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }

    fn compatible(ty: &sqlx::sqlite::SqliteTypeInfo) -> bool {
        <String as Type<Sqlite>>::compatible(ty)
    }
}

impl<'r> Decode<'r, Sqlite> for Text {
    fn decode(value: sqlx::sqlite::SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(<String as Decode<Sqlite>>::decode(value)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_and_is_stored_without_what_cannot_be(text in "[\0\u{e000}0a\\\\\"]{0,12}|.{0,12}") {
            let kept = stored(&text);
            prop_assert!(!kept.contains('\0'));
            prop_assert_eq!(read(&kept), text.clone());
            // And so in JSON, by whichever way it was written.
            let rows = json([&text]).expect("texts");
            let [back]: [String; 1] = serde_json::from_str(&rows).expect("JSON");
            prop_assert_eq!(back, kept);
        }
    }
}
