//! Where the ledger is: a file of SQLite's, or a PostgreSQL that several Tollgates share.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::options::Options;
use super::secret::secret;
use super::{Error, Secret, expose, given, is_loopback, is_visible_ascii, seconds, whole, wrong};

const LEDGER: &str = "TOLLGATE_LEDGER";
const PASSWORD: &str = "TOLLGATE_POSTGRES_PASSWORD";
const REPLICA: &str = "TOLLGATE_REPLICA";
/// What of a URL's query is understood, in libpq's words; anything else would be ignored without a word.
const PARAMETERS: [&str; 6] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port"];

/// The ledger's place. Displays as it is given, without a password.
#[derive(Debug, Clone)]
pub enum Store {
    /// One file, and one `serve`.
    Sqlite(PathBuf),
    Postgres(Box<Postgres>),
}

/// A database that several Tollgates share.
#[derive(Clone)]
pub struct Postgres {
    options: PgConnectOptions,
    /// As it was given, without its password.
    url: String,
    pub password: Option<Secret>,
    /// Connections at most.
    pub pool: u32,
    /// How long it may take to connect, and to get one of the connections that there are.
    pub connect_timeout: Duration,
    /// How long the database may work on one statement.
    pub statement_timeout: Duration,
    /// The name of this Tollgate among those that share the ledger.
    pub replica: String,
    /// Where this Tollgate keeps what it must not forget; `None`: nowhere.
    pub state_dir: Option<PathBuf>,
}

impl Postgres {
    /// How to connect, with the password that is in force now.
    #[must_use]
    pub fn connect_options(&self) -> PgConnectOptions {
        match &self.password {
            Some(password) => self.options.clone().password(expose(&password.get())),
            None => self.options.clone(),
        }
    }
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Postgres").field("url", &self.url).field("replica", &self.replica).finish_non_exhaustive()
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(database) => database.fmt(f),
        }
    }
}

impl fmt::Display for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

impl Store {
    /// The secret that opens it, where that may change.
    #[must_use]
    pub fn password(&self) -> Option<&Secret> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(database) => database.password.as_ref(),
        }
    }

    /// Validates what was given.
    pub(super) fn parse(options: &Options, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let url = given(options.ledger.clone()).unwrap_or_else(|| "sqlite:tollgate.db".to_owned());
        match url.split_once(':') {
            // Of `sqlite://name` nobody could tell whether it is below the current folder or the root.
            Some(("sqlite", path)) if !path.is_empty() && !path.starts_with("//") && !path.contains(":memory:") => {
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            Some(("sqlite", _)) => {
                Err(wrong(LEDGER, "wants the path of a file, such as sqlite:tollgate.db or sqlite:/var/…"))
            }
            Some(("postgres" | "postgresql", _)) => {
                Ok(Self::Postgres(Box::new(Postgres::parse(&url, options, warnings)?)))
            }
            // The rest of the text may hold a password.
            Some((scheme, _)) => Err(wrong(
                LEDGER,
                format!("this version has no {scheme} ledger, only sqlite:PATH and postgres://USER@HOST/DATABASE"),
            )),
            None => Err(wrong(LEDGER, "is of neither form, sqlite:PATH or postgres://USER@HOST/DATABASE")),
        }
    }
}

impl Postgres {
    fn parse(text: &str, options: &Options, warnings: &mut Vec<String>) -> Result<Self, Error> {
        let mut url = Url::parse(text).map_err(|error| wrong(LEDGER, format!("not a URL: {error}")))?;
        if let Some((unknown, _)) = url.query_pairs().find(|(key, _)| !PARAMETERS.contains(&key.as_ref())) {
            return Err(wrong(LEDGER, format!("knows no '{unknown}', only {}", PARAMETERS.join(", "))));
        }
        if !url.has_host() {
            return Err(wrong(LEDGER, "names no host"));
        }
        if url.username().is_empty() {
            return Err(wrong(LEDGER, "names no user"));
        }
        if url.path().trim_matches('/').is_empty() {
            return Err(wrong(LEDGER, "names no database"));
        }
        // Its own message may repeat the text.
        let connect = PgConnectOptions::from_str(text)
            .map_err(|_| wrong(LEDGER, "cannot be understood: is sslmode one of libpq's?"))?
            .application_name("tollgate");
        let password = secret(
            PASSWORD,
            "TOLLGATE_POSTGRES_PASSWORD_FILE",
            options.postgres_password.clone(),
            options.postgres_password_file.clone(),
        )?;
        if url.password().is_some() {
            if password.is_some() {
                return Err(wrong(PASSWORD, format!("is set, and {LEDGER} has one, too: which one?")));
            }
            let _ = url.set_password(Some("***"));
        }
        let is_near = connect.get_socket().is_some() || is_loopback(connect.get_host());
        if !is_near && !matches!(connect.get_ssl_mode(), PgSslMode::VerifyFull | PgSslMode::VerifyCa) {
            warnings.push(format!(
                "{LEDGER}: without sslmode=verify-full somebody on the network may read the ledger, or take its place"
            ));
        }
        Ok(Self {
            options: connect,
            url: url.to_string(),
            password,
            pool: u32::try_from(whole(
                "TOLLGATE_POSTGRES_POOL",
                options.postgres_pool.clone(),
                "connections",
                8,
                4..=64,
            )?)
            .unwrap_or(64),
            // Together well within a lease of work: whoever waited for longer than that would work on what is another one's.
            connect_timeout: seconds(
                "TOLLGATE_POSTGRES_CONNECT_TIMEOUT_SECS",
                options.postgres_connect_timeout_secs.clone(),
                3,
                1..=10,
            )?,
            statement_timeout: seconds(
                "TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS",
                options.postgres_statement_timeout_secs.clone(),
                10,
                1..=15,
            )?,
            replica: replica(options.replica.clone())?,
            state_dir: given(options.state_dir.clone()).map(PathBuf::from),
        })
    }
}

/// The name that was given, or the host's.
fn replica(value: Option<String>) -> Result<String, Error> {
    let name = given(value)
        .or_else(|| given(std::fs::read_to_string("/proc/sys/kernel/hostname").ok()))
        .ok_or_else(|| wrong(REPLICA, "is not set, and this host has no name"))?;
    if is_visible_ascii(&name) && name.len() <= 253 {
        Ok(name)
    } else {
        Err(wrong(REPLICA, "is no name of visible characters"))
    }
}

#[cfg(test)]
impl Postgres {
    /// A test's own database.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn of_test(url: &str) -> Self {
        let options = Options { replica: Some("test".into()), ..Options::default() };
        Self::parse(url, &options, &mut Vec::new()).expect("a test's own URL is valid")
    }
}
