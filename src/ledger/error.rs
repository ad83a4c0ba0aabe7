//! Why the ledger did not do what was asked, and whether that can pass.

/// Why a ledger operation failed. All but [`Error::Open`] may pass by themselves.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// At start: the store cannot be used.
    #[error("cannot open the ledger {place}: {reason}")]
    Open { place: String, reason: String },
    /// A row breaks a rule of the schema, or cannot be a row: it never will be one.
    #[error("ledger: a row is refused: {0}")]
    Refused(String),
    /// The database failed: a full disk, a lock, a network.
    #[error("ledger: {0}")]
    Database(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let is_of_the_row = match &error {
            sqlx::Error::Database(database) => is_of_the_row(database.code().as_deref().unwrap_or_default()),
            sqlx::Error::Encode(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::RowNotFound => true,
            _ => false,
        };
        if is_of_the_row { Self::Refused(error.to_string()) } else { Self::Database(error.to_string()) }
    }
}

/// Whether a code of the database's says that it is a row's fault, and nobody else's. SQLite has numbers: TOOBIG, CONSTRAINT and
/// MISMATCH, by the low byte; PostgreSQL five characters, of which two are the class: wrong data, a broken constraint, a limit
/// of the program's.
fn is_of_the_row(code: &str) -> bool {
    match code.get(..2) {
        Some(class) if code.len() == 5 => matches!(class, "22" | "23" | "54"),
        _ => code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 18..=20)),
    }
}
