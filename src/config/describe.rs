//! The effective values with where each came from, and the names of all variables.
//!
//! No secret is ever among the values: one that is set is a mask of fixed length.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command};
use serde::Serialize;

use super::{
    BaseUrl, Config, LogFormat, Options, Postgres, SECONDS_A_DAY, Store, TLS_CERT, TLS_CLIENT_CA, TLS_KEY, TlsFiles,
    given,
};

/// What stands in a secret's place.
const MASK: &str = "********";
/// A name that differs in more letters was not meant.
const MOST_EDITS: usize = 3;
/// What the names of most variables begin with.
const PREFIX: &str = "TOLLGATE_";

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing was given, or nothing but spaces.
    Default,
    Environment,
    Flag,
    /// A secret or a log filter out of this file.
    File(String),
    /// Something else was given, and this is why it has no effect.
    Overruled(&'static str),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
            Self::File(path) => write!(f, "file {path}"),
            Self::Overruled(why) => f.write_str(why),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where the settings that were given came from, by variable.
#[derive(Debug, Clone, Default)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// As the command line was read. An empty value is none, wherever it stood.
    #[must_use]
    pub fn read(matches: &ArgMatches) -> Self {
        let command = Options::augment_args(Command::new(""));
        let arguments = command.get_arguments().filter_map(|argument| {
            let id = argument.get_id().as_str();
            let origin = match matches.value_source(id)? {
                ValueSource::CommandLine => Origin::Flag,
                ValueSource::EnvVariable => Origin::Environment,
                _ => return None,
            };
            let value = given(matches.get_one::<String>(id).cloned())?;
            let variable = argument.get_env()?.to_str()?.to_owned();
            match variable.strip_suffix("_FILE") {
                Some(secret) => Some((secret.to_owned(), Origin::File(value))),
                None => Some((variable, origin)),
            }
        });
        Self(arguments.collect())
    }

    fn of(&self, variable: &str) -> Origin {
        self.0.get(variable).cloned().unwrap_or(Origin::Default)
    }
}

/// One effective value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    pub variable: &'static str,
    pub value: String,
    pub origin: Origin,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}  # {}", self.variable, self.value, self.origin)
    }
}

impl Config {
    /// The effective values, one per variable, secrets masked.
    #[must_use]
    pub fn describe(&self) -> Vec<Setting> {
        let masked = |present: bool| if present { MASK } else { "" }.to_owned();
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        let url = |url: Option<&BaseUrl>| url.map(|url| url.as_str().to_owned()).unwrap_or_default();
        let tls = |file: fn(&TlsFiles) -> &PathBuf| {
            self.tls.as_ref().map(|files| file(files).display().to_string()).unwrap_or_default()
        };
        let database = |value: fn(&Postgres) -> String| match &self.ledger {
            Store::Sqlite(_) => String::new(),
            Store::Postgres(database) => value(database),
        };
        let state_dir = |database: &Postgres| {
            database.state_dir.as_ref().map(|folder| folder.display().to_string()).unwrap_or_default()
        };
        let format = if self.log_format == LogFormat::Json { "json" } else { "text" };
        let values = [
            ("LUM_ID_BASE_URL", url(Some(&self.lum_id_base_url))),
            ("RUNMESH_BILLING_BASE_URL", url(self.given.runmesh.as_ref())),
            ("FLOWMESH_BRIDGE_SECRET", masked(self.given.secret)),
            ("LUMID_BALANCE_GUARD", on(self.balance_guard)),
            ("LUMID_ORG_ID", self.org_id.clone()),
            ("LUMID_STALE_IF_ERROR_SECS", self.stale_if_error.as_secs().to_string()),
            ("FLOWMESH_BASE_URL", url(Some(&self.flowmesh.base_url))),
            ("FLOWMESH_API_KEY", masked(self.flowmesh.api_key.is_some())),
            ("TOLLGATE_GRPC_LISTEN", self.grpc_listen.to_string()),
            (TLS_CERT, tls(|files| &files.cert)),
            (TLS_KEY, tls(|files| &files.key)),
            (TLS_CLIENT_CA, tls(|files| &files.client_ca)),
            ("TOLLGATE_INSECURE_LISTEN", on(self.given.insecure_listen)),
            ("TOLLGATE_GRPC_REFLECTION", on(self.grpc_reflection)),
            ("TOLLGATE_ADMIN_LISTEN", self.admin_listen.to_string()),
            ("TOLLGATE_ADMIN_HOSTS", self.admin_hosts.to_string()),
            ("TOLLGATE_LEDGER", self.ledger.to_string()),
            ("TOLLGATE_POSTGRES_PASSWORD", masked(self.ledger.password().is_some())),
            ("TOLLGATE_POSTGRES_POOL", database(|database| database.pool.to_string())),
            ("TOLLGATE_POSTGRES_CONNECT_TIMEOUT_SECS", database(|it| it.connect_timeout.as_secs().to_string())),
            ("TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS", database(|it| it.statement_timeout.as_secs().to_string())),
            ("TOLLGATE_REPLICA", database(|database| database.replica.clone())),
            ("TOLLGATE_STATE_DIR", database(state_dir)),
            ("TOLLGATE_RETENTION_DAYS", (self.retention.as_secs() / SECONDS_A_DAY).to_string()),
            ("TOLLGATE_FORWARD_AUTHORIZATION", on(self.forward_authorization)),
            ("TOLLGATE_RECONCILE_INTERVAL_SECS", self.reconcile_interval.as_secs().to_string()),
            ("TOLLGATE_RECONCILE_GRACE_SECS", self.reconcile_grace.as_secs().to_string()),
            ("TOLLGATE_LOG", self.log.get()),
            ("TOLLGATE_LOG_FORMAT", format.to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", url(self.otlp_endpoint.as_ref())),
        ];
        let is_overruled = |variable| variable == "LUMID_BALANCE_GUARD" && self.given.guard && !self.balance_guard;
        let origin = |variable| match self.given.no_spans {
            Some(why) if variable == "OTEL_EXPORTER_OTLP_ENDPOINT" => Origin::Overruled(why),
            _ if is_overruled(variable) => Origin::Overruled("because billing is off"),
            _ => self.origins.of(variable),
        };
        values.map(|(variable, value)| Setting { variable, value, origin: origin(variable) }).into()
    }

    /// Adds a warning for each variable with Tollgate's prefix that this version does not read.
    #[must_use]
    pub fn warn_of_unknown(mut self, names: impl Iterator<Item = String>) -> Self {
        let known = variables();
        for name in names.filter(|name| name.starts_with(PREFIX) && !known.contains(name)) {
            let meant = nearest(&name, &known).map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            self.warnings.push(format!("{name} is set, but this version knows no such variable{meant}"));
        }
        self
    }
}

/// Every variable that this version reads.
fn variables() -> Vec<String> {
    let command = Options::augment_args(Command::new(""));
    command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())).collect()
}

/// The known name that was most likely meant: a slip of the pen, or the prefix where none belongs.
fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a str> {
    let without = name.strip_prefix(PREFIX).unwrap_or(name);
    let edits = |known: &str| {
        let as_it_is = strsim::osa_distance(name, known);
        if known.starts_with(PREFIX) { as_it_is } else { as_it_is.min(strsim::osa_distance(without, known)) }
    };
    let (edits, nearest) = known.iter().map(|known| (edits(known), known.as_str())).min()?;
    (edits <= MOST_EDITS).then_some(nearest)
}
