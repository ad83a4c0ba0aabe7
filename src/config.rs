//! Environment and flags → one validated [`Config`].
//!
//! Every setting is an environment variable and a flag; the flag wins. An empty value counts as unset, because that is
//! what `VAR=${VAR:-}` in a compose file gives. A wrong value is one [`Error`] that names the variable; what is risky
//! but allowed is a line in [`Config::warnings`]. Past this module nothing reads the environment.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// Settings as they were given, before validation. Field docs are the `--help` texts.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Settings")]
pub struct Options {
    /// lum.id, the identity provider [default: `https://lum.id`]
    #[arg(long, global = true, env = "LUM_ID_BASE_URL", value_name = "URL")]
    pub lum_id_base_url: Option<String>,
    /// Runmesh; empty disables billing and the guard
    #[arg(long, global = true, env = "RUNMESH_BILLING_BASE_URL", value_name = "URL")]
    pub runmesh_billing_base_url: Option<String>,
    /// Runmesh's shared secret; empty disables billing and the guard. Better in a file: flags can be seen in `ps`
    #[arg(long, global = true, env = "FLOWMESH_BRIDGE_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub flowmesh_bridge_secret: Option<String>,
    /// File that holds Runmesh's shared secret
    #[arg(long, global = true, env = "FLOWMESH_BRIDGE_SECRET_FILE", value_name = "PATH")]
    pub flowmesh_bridge_secret_file: Option<String>,
    /// `on`: refuse submissions of users without balance at Runmesh [default: off]
    #[arg(long, global = true, env = "LUMID_BALANCE_GUARD", value_name = "on|off")]
    pub lumid_balance_guard: Option<String>,
    /// The org stamped on every request [default: lumid]
    #[arg(long, global = true, env = "LUMID_ORG_ID", value_name = "ID")]
    pub lumid_org_id: Option<String>,
    /// Seconds an expired cache entry may serve while lum.id is out of reach; never past the token's expiry [default: 0]
    #[arg(long, global = true, env = "LUMID_STALE_IF_ERROR_SECS", value_name = "SECS")]
    pub lumid_stale_if_error_secs: Option<String>,
    /// FlowMesh as Tollgate reaches it, for settling and the worker directory [default: `http://127.0.0.1:8000`]
    #[arg(long, global = true, env = "FLOWMESH_BASE_URL", value_name = "URL")]
    pub flowmesh_base_url: Option<String>,
    /// Bearer for Tollgate's own calls to FlowMesh, where it wants one
    #[arg(long, global = true, env = "FLOWMESH_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub flowmesh_api_key: Option<String>,
    /// File that holds that bearer
    #[arg(long, global = true, env = "FLOWMESH_API_KEY_FILE", value_name = "PATH")]
    pub flowmesh_api_key_file: Option<String>,
    /// Where Envoy reaches Tollgate: `host:port` or `unix:/path` [default: 127.0.0.1:9001]
    #[arg(long, global = true, env = "TOLLGATE_GRPC_LISTEN", value_name = "ADDR")]
    pub grpc_listen: Option<String>,
    /// `on`: allow a gRPC listener that others than this machine can reach [default: off]
    #[arg(long, global = true, env = "TOLLGATE_INSECURE_LISTEN", value_name = "on|off")]
    pub insecure_listen: Option<String>,
    /// Health and metrics [default: 127.0.0.1:9090]
    #[arg(long, global = true, env = "TOLLGATE_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// The durable store: `sqlite:PATH` [default: sqlite:tollgate.db]
    #[arg(long, global = true, env = "TOLLGATE_LEDGER", value_name = "URL")]
    pub ledger: Option<String>,
    /// `on`: keep the caller's bearer on the way to FlowMesh [default: off]
    #[arg(long, global = true, env = "TOLLGATE_FORWARD_AUTHORIZATION", value_name = "on|off")]
    pub forward_authorization: Option<String>,
    /// Seconds between comparisons of FlowMesh's workflow list with the ledger [default: 600]
    #[arg(long, global = true, env = "TOLLGATE_RECONCILE_INTERVAL_SECS", value_name = "SECS")]
    pub reconcile_interval_secs: Option<String>,
    /// Seconds a workflow's own log entry is waited for before it is matched with open submissions [default: 30]
    #[arg(long, global = true, env = "TOLLGATE_RECONCILE_GRACE_SECS", value_name = "SECS")]
    pub reconcile_grace_secs: Option<String>,
    /// Log filter, such as `info` or `info,tollgate::authz=debug` [default: info]
    #[arg(long, global = true, env = "TOLLGATE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// `text` for people, `json` for machines [default: text]
    #[arg(long, global = true, env = "TOLLGATE_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<String>,
}

/// Environment variables with Tollgate's prefix that this version reads, to warn about any other.
const OWN_VARIABLES: [&str; 9] = [
    "TOLLGATE_GRPC_LISTEN",
    "TOLLGATE_INSECURE_LISTEN",
    "TOLLGATE_ADMIN_LISTEN",
    "TOLLGATE_LEDGER",
    "TOLLGATE_FORWARD_AUTHORIZATION",
    "TOLLGATE_RECONCILE_INTERVAL_SECS",
    "TOLLGATE_RECONCILE_GRACE_SECS",
    "TOLLGATE_LOG",
    "TOLLGATE_LOG_FORMAT",
];

/// A setting that cannot be used. Displays as one line that names the variable.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: {reason}")]
pub struct Error {
    variable: &'static str,
    reason: String,
}

/// An `http` or `https` base URL without query, fragment, credentials or trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

impl BaseUrl {
    /// Whether connections to it need TLS.
    #[must_use]
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }

    /// Whether it is on this machine, as far as its host's name tells.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let host = Url::parse(&self.0).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }

    /// This base followed by `path`, which starts with a slash.
    #[must_use]
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }

    /// The URL itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Runmesh: present only when both its URL and its secret are.
#[derive(Debug, Clone)]
pub struct Billing {
    pub base_url: BaseUrl,
    /// Sent as `X-Bridge-Secret`.
    pub secret: SecretString,
}

/// FlowMesh, for Tollgate's own calls.
#[derive(Debug, Clone)]
pub struct Flowmesh {
    pub base_url: BaseUrl,
    pub api_key: Option<SecretString>,
}

/// Where the gRPC listener is bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Sizes, counts and times that are not the operator's business but must not hide in code either.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Principals kept in memory.
    pub identity_cache_entries: u64,
    /// How long an introspection answer is trusted.
    pub identity_cache_ttl: Duration,
    /// lum.id's time limit.
    pub introspection_timeout: Duration,
    /// Runmesh's time limit for a preflight.
    pub preflight_timeout: Duration,
    /// Runmesh's time limit for an entry.
    pub post_timeout: Duration,
    /// FlowMesh's time limit when settling and sweeping, where nobody waits.
    pub flowmesh_timeout: Duration,
    /// How long a Check waits for FlowMesh to name a supplier before it goes without.
    pub supplier_timeout: Duration,
    /// How long a Check waits for the submission row before it goes without.
    pub submission_timeout: Duration,
    /// Workers and task assignments kept in memory.
    pub supplier_cache_entries: u64,
    /// How often the worker directory is read anew.
    pub supplier_refresh: Duration,
    /// Log events received and not yet committed; past it the streams are not read.
    pub intake_queue: usize,
    /// Log events committed in one transaction at most.
    pub intake_batch: usize,
    /// Largest access-log message: above Envoy's buffer (2 MiB in the shipped bootstrap).
    pub log_message_bytes: usize,
    /// Tasks asked after at once.
    pub settling_concurrency: usize,
    /// Workflows asked after at once.
    pub sweeping_concurrency: usize,
    /// Posts in flight at once.
    pub posting_concurrency: usize,
    /// From the log service's NOT_SERVING to the end of its streams: Envoy must have noticed by then.
    pub drain_delay: Duration,
    /// From the end of the drain to the end of the process, whatever is still under way.
    pub shutdown_deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            identity_cache_entries: 10_000,
            identity_cache_ttl: Duration::from_mins(1),
            introspection_timeout: Duration::from_secs(3),
            preflight_timeout: Duration::from_secs(5),
            post_timeout: Duration::from_secs(10),
            flowmesh_timeout: Duration::from_secs(10),
            supplier_timeout: Duration::from_millis(300),
            submission_timeout: Duration::from_secs(1),
            supplier_cache_entries: 10_000,
            supplier_refresh: Duration::from_secs(15),
            intake_queue: 4096,
            intake_batch: 512,
            log_message_bytes: 16 * 1024 * 1024,
            settling_concurrency: 8,
            sweeping_concurrency: 4,
            posting_concurrency: 32,
            drain_delay: Duration::from_millis(2500),
            shutdown_deadline: Duration::from_secs(15),
        }
    }
}

/// What Tollgate runs with.
#[derive(Debug, Clone)]
pub struct Config {
    pub lum_id_base_url: BaseUrl,
    /// `None`: no ledger is opened, no log entry is asked for, nothing is posted.
    pub billing: Option<Billing>,
    /// What `RUNMESH_BILLING_BASE_URL` and the secret were, also where the other one is missing.
    given_for_billing: (Option<BaseUrl>, bool),
    /// Whether submissions pass a preflight; never true without billing.
    pub balance_guard: bool,
    /// Stamped as `x-flowmesh-org-id`; visible ASCII.
    pub org_id: String,
    pub stale_if_error: Duration,
    pub flowmesh: Flowmesh,
    pub grpc_listen: Listen,
    pub admin_listen: SocketAddr,
    /// The SQLite file.
    pub ledger: PathBuf,
    pub forward_authorization: bool,
    pub reconcile_interval: Duration,
    pub reconcile_grace: Duration,
    pub log: String,
    pub log_format: LogFormat,
    pub limits: Limits,
    /// Risky or useless combinations, one line each, to be said at start.
    pub warnings: Vec<String>,
}

impl Config {
    /// Validates what was given.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn parse(options: Options) -> Result<Self, Error> {
        let mut warnings = Vec::new();
        let runmesh = given(options.runmesh_billing_base_url)
            .map(|url| base_url("RUNMESH_BILLING_BASE_URL", &url))
            .transpose()?;
        let secret = secret(
            "FLOWMESH_BRIDGE_SECRET",
            "FLOWMESH_BRIDGE_SECRET_FILE",
            options.flowmesh_bridge_secret,
            options.flowmesh_bridge_secret_file,
        )?;
        let given_for_billing = (runmesh.clone(), secret.is_some());
        let billing = match (runmesh, secret) {
            (Some(base_url), Some(secret)) => Some(Billing { base_url, secret }),
            (Some(_), None) => {
                warnings.push("billing is off: FLOWMESH_BRIDGE_SECRET is empty".to_owned());
                None
            }
            (None, Some(_)) => {
                warnings.push("billing is off: RUNMESH_BILLING_BASE_URL is empty".to_owned());
                None
            }
            (None, None) => None,
        };
        let guard = on_off("LUMID_BALANCE_GUARD", options.lumid_balance_guard)?;
        if guard && billing.is_none() {
            warnings.push("LUMID_BALANCE_GUARD is on, but without billing there is nothing to ask".to_owned());
        }
        let insecure = on_off("TOLLGATE_INSECURE_LISTEN", options.insecure_listen)?;
        let grpc_listen = grpc_listen(options.grpc_listen, insecure, &mut warnings)?;
        let stale_if_error = seconds("LUMID_STALE_IF_ERROR_SECS", options.lumid_stale_if_error_secs, 0, 0..=86_400)?;
        if !stale_if_error.is_zero() {
            warnings.push(format!(
                "LUMID_STALE_IF_ERROR_SECS: while lum.id is out of reach, a revoked token may serve up to {} s longer",
                stale_if_error.as_secs()
            ));
        }
        let lum_id_base_url = base_url(
            "LUM_ID_BASE_URL",
            &given(options.lum_id_base_url).unwrap_or_else(|| "https://lum.id".to_owned()),
        )?;
        let in_clear = |url: &BaseUrl| !url.is_https() && !url.is_loopback();
        if in_clear(&lum_id_base_url) {
            warnings.push("LUM_ID_BASE_URL is http: tokens go over the network in clear".to_owned());
        }
        if billing.as_ref().is_some_and(|billing| in_clear(&billing.base_url)) {
            warnings.push("RUNMESH_BILLING_BASE_URL is http: its secret goes over the network in clear".to_owned());
        }
        let admin_listen = address(
            "TOLLGATE_ADMIN_LISTEN",
            &given(options.admin_listen).unwrap_or_else(|| "127.0.0.1:9090".to_owned()),
        )?;
        if !admin_listen.ip().is_loopback() {
            warnings.push(format!("TOLLGATE_ADMIN_LISTEN: others than this machine can read {admin_listen}"));
        }
        Ok(Self {
            lum_id_base_url,
            balance_guard: guard && billing.is_some(),
            billing,
            given_for_billing,
            org_id: org_id(options.lumid_org_id)?,
            stale_if_error,
            flowmesh: Flowmesh {
                base_url: base_url(
                    "FLOWMESH_BASE_URL",
                    &given(options.flowmesh_base_url).unwrap_or_else(|| "http://127.0.0.1:8000".to_owned()),
                )?,
                api_key: self::secret(
                    "FLOWMESH_API_KEY",
                    "FLOWMESH_API_KEY_FILE",
                    options.flowmesh_api_key,
                    options.flowmesh_api_key_file,
                )?,
            },
            grpc_listen,
            admin_listen,
            ledger: ledger(options.ledger)?,
            forward_authorization: on_off("TOLLGATE_FORWARD_AUTHORIZATION", options.forward_authorization)?,
            reconcile_interval: seconds(
                "TOLLGATE_RECONCILE_INTERVAL_SECS",
                options.reconcile_interval_secs,
                600,
                1..=86_400,
            )?,
            reconcile_grace: seconds("TOLLGATE_RECONCILE_GRACE_SECS", options.reconcile_grace_secs, 30, 0..=3_600)?,
            log: log_filter(options.log)?,
            log_format: match given(options.log_format).as_deref() {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(other) => return Err(wrong("TOLLGATE_LOG_FORMAT", format!("'{other}' is neither text nor json"))),
            },
            limits: Limits::default(),
            warnings,
        })
    }

    /// Adds a warning for each variable with Tollgate's prefix that this version does not read.
    #[must_use]
    pub fn warn_of_unknown(mut self, names: impl Iterator<Item = String>) -> Self {
        for name in names.filter(|name| name.starts_with("TOLLGATE_") && !OWN_VARIABLES.contains(&name.as_str())) {
            self.warnings.push(format!("{name} is set, but this version knows no such variable"));
        }
        self
    }

    /// The effective values, one per variable, secrets masked.
    #[must_use]
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let masked = |present: bool| if present { "********" } else { "" }.to_owned();
        let on = |on: bool| if on { "on" } else { "off" }.to_owned();
        vec![
            ("LUM_ID_BASE_URL", self.lum_id_base_url.0.clone()),
            (
                "RUNMESH_BILLING_BASE_URL",
                self.given_for_billing.0.as_ref().map(|url| url.0.clone()).unwrap_or_default(),
            ),
            ("FLOWMESH_BRIDGE_SECRET", masked(self.given_for_billing.1)),
            ("LUMID_BALANCE_GUARD", on(self.balance_guard)),
            ("LUMID_ORG_ID", self.org_id.clone()),
            ("LUMID_STALE_IF_ERROR_SECS", self.stale_if_error.as_secs().to_string()),
            ("FLOWMESH_BASE_URL", self.flowmesh.base_url.0.clone()),
            ("FLOWMESH_API_KEY", masked(self.flowmesh.api_key.is_some())),
            ("TOLLGATE_GRPC_LISTEN", self.grpc_listen.to_string()),
            ("TOLLGATE_ADMIN_LISTEN", self.admin_listen.to_string()),
            ("TOLLGATE_LEDGER", format!("sqlite:{}", self.ledger.display())),
            ("TOLLGATE_FORWARD_AUTHORIZATION", on(self.forward_authorization)),
            ("TOLLGATE_RECONCILE_INTERVAL_SECS", self.reconcile_interval.as_secs().to_string()),
            ("TOLLGATE_RECONCILE_GRACE_SECS", self.reconcile_grace.as_secs().to_string()),
            ("TOLLGATE_LOG", self.log.clone()),
            ("TOLLGATE_LOG_FORMAT", if self.log_format == LogFormat::Json { "json" } else { "text" }.to_owned()),
        ]
    }
}

fn wrong(variable: &'static str, reason: impl Into<String>) -> Error {
    Error { variable, reason: reason.into() }
}

fn given(value: Option<String>) -> Option<String> {
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn base_url(variable: &'static str, text: &str) -> Result<BaseUrl, Error> {
    // The text itself is not repeated: a mistaken value may well be a secret.
    let url = Url::parse(text).map_err(|error| wrong(variable, format!("not a URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong(variable, "not an http or https URL"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong(variable, "holds credentials, which would end up in logs"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong(variable, "holds a query or a fragment"));
    }
    Ok(BaseUrl(url.as_str().trim_end_matches('/').to_owned()))
}

fn secret(
    variable: &'static str,
    file_variable: &'static str,
    value: Option<String>,
    file: Option<String>,
) -> Result<Option<SecretString>, Error> {
    let (origin, secret) = match (given(value), given(file)) {
        (Some(_), Some(_)) => return Err(wrong(variable, format!("is set, and so is {file_variable}: which one?"))),
        (None, None) => return Ok(None),
        (Some(value), None) => (variable, value),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| wrong(file_variable, format!("cannot read {path}: {error}")))?;
            let Some(text) = given(Some(text)) else {
                return Err(wrong(file_variable, format!("{path} is empty")));
            };
            (file_variable, text)
        }
    };
    // It becomes a header value; anything else would fail at the first call instead of at start.
    if !is_visible_ascii(&secret) {
        return Err(wrong(origin, "holds spaces or characters that cannot be sent in a header"));
    }
    Ok(Some(SecretString::from(secret)))
}

fn on_off(variable: &'static str, value: Option<String>) -> Result<bool, Error> {
    match given(value).as_deref() {
        None | Some("off") => Ok(false),
        Some("on") => Ok(true),
        Some(other) => Err(wrong(variable, format!("'{other}' is neither on nor off"))),
    }
}

fn seconds(
    variable: &'static str,
    value: Option<String>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Duration, Error> {
    let Some(value) = given(value) else { return Ok(Duration::from_secs(default)) };
    match value.parse::<u64>() {
        Ok(seconds) if range.contains(&seconds) => Ok(Duration::from_secs(seconds)),
        _ => Err(wrong(
            variable,
            format!("'{value}' is not a whole number of seconds from {} to {}", range.start(), range.end()),
        )),
    }
}

fn address(variable: &'static str, text: &str) -> Result<SocketAddr, Error> {
    let addresses: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| wrong(variable, format!("'{text}' is not host:port: {error}")))?
        .collect();
    // As the bootstrap looks up names: else `localhost` could be one address here and another one there.
    let found = addresses.iter().find(|address| address.is_ipv4()).or(addresses.first());
    found.copied().ok_or_else(|| wrong(variable, format!("'{text}' resolves to no address")))
}

/// Whoever reaches the gRPC port can write bills, so anything that another machine could reach must be asked for.
fn grpc_listen(value: Option<String>, insecure: bool, warnings: &mut Vec<String>) -> Result<Listen, Error> {
    const VARIABLE: &str = "TOLLGATE_GRPC_LISTEN";
    let text = given(value).unwrap_or_else(|| "127.0.0.1:9001".to_owned());
    if let Some(path) = text.strip_prefix("unix:") {
        // sun_path holds 108 bytes including the final NUL; bind's own error does not say so.
        if !path.starts_with('/') || path.len() > 107 {
            return Err(wrong(VARIABLE, "unix: wants an absolute path of at most 107 bytes"));
        }
        return Ok(Listen::Unix(PathBuf::from(path)));
    }
    let address = address(VARIABLE, &text)?;
    if !address.ip().is_loopback() {
        if !insecure {
            return Err(wrong(
                VARIABLE,
                format!(
                    "{address} can be reached from other machines, and whoever reaches it can write bills: \
                     use a loopback address or unix:/path, or set TOLLGATE_INSECURE_LISTEN=on"
                ),
            ));
        }
        warnings.push(format!("TOLLGATE_INSECURE_LISTEN: whoever reaches {address} can write bills"));
    }
    Ok(Listen::Tcp(address))
}

fn org_id(value: Option<String>) -> Result<String, Error> {
    let org_id = given(value).unwrap_or_else(|| "lumid".to_owned());
    if is_visible_ascii(&org_id) { Ok(org_id) } else { Err(wrong("LUMID_ORG_ID", "cannot be sent in a header")) }
}

fn ledger(value: Option<String>) -> Result<PathBuf, Error> {
    const VARIABLE: &str = "TOLLGATE_LEDGER";
    let url = given(value).unwrap_or_else(|| "sqlite:tollgate.db".to_owned());
    match url.split_once(':') {
        // Of `sqlite://name` nobody could tell whether it is below the current folder or the root.
        Some(("sqlite", path)) if !path.is_empty() && !path.starts_with("//") && !path.contains(":memory:") => {
            Ok(PathBuf::from(path))
        }
        Some(("sqlite", _)) => {
            Err(wrong(VARIABLE, "wants the path of a file, such as sqlite:tollgate.db or sqlite:/var/…"))
        }
        // The rest of the text may hold a password.
        Some((scheme, _)) => Err(wrong(VARIABLE, format!("this version has no {scheme} ledger, only sqlite:PATH"))),
        None => Err(wrong(VARIABLE, "is not of the form sqlite:PATH")),
    }
}

fn log_filter(value: Option<String>) -> Result<String, Error> {
    let filter = given(value).unwrap_or_else(|| "info".to_owned());
    filter
        .parse::<tracing_subscriber::filter::Targets>()
        .map_err(|error| wrong("TOLLGATE_LOG", format!("'{filter}' is not a log filter: {error}")))?;
    Ok(filter)
}

/// Whether a text can be a header value as it is.
#[must_use]
pub fn is_visible_ascii(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The value of a secret, for the one place that sends it.
#[must_use]
pub fn expose(secret: &SecretString) -> &str {
    secret.expose_secret()
}

#[cfg(test)]
impl BaseUrl {
    /// The base URL of a test's own server.
    ///
    /// # Panics
    /// When it is not one.
    #[must_use]
    pub fn of_test(url: &str) -> Self {
        base_url("TEST", url).expect("a test's own URL is valid")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut Options)) -> Result<Config, String> {
        let mut options = Options::default();
        change(&mut options);
        Config::parse(options).map_err(|error| error.to_string())
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is what the fields hold")]
    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn without_any_setting_identity_works_and_billing_is_off() {
        let config = parse(|_| {}).expect("defaults are valid");
        assert_eq!(config.lum_id_base_url.as_str(), "https://lum.id");
        assert!(config.billing.is_none());
        assert_eq!(config.grpc_listen, Listen::Tcp(([127, 0, 0, 1], 9001).into()));
        assert!(config.warnings.is_empty());
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        let config = parse(|o| {
            o.lum_id_base_url = some("");
            o.lumid_balance_guard = some(" ");
        });
        assert_eq!(config.expect("empty is unset").lum_id_base_url.as_str(), "https://lum.id");
    }

    #[test]
    fn every_error_is_one_line_that_names_its_variable() {
        type Change = fn(&mut Options);
        let cases: [(&str, Change); 17] = [
            ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("lum.id")),
            ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("ftp://lum.id")),
            ("LUM_ID_BASE_URL", |o| o.lum_id_base_url = some("https://u:p@lum.id")),
            ("RUNMESH_BILLING_BASE_URL", |o| o.runmesh_billing_base_url = some("https://r?x=1")),
            ("FLOWMESH_BRIDGE_SECRET", |o| o.flowmesh_bridge_secret = some("a b")),
            ("FLOWMESH_BRIDGE_SECRET_FILE", |o| o.flowmesh_bridge_secret_file = some("/nonexistent/secret")),
            ("LUMID_BALANCE_GUARD", |o| o.lumid_balance_guard = some("yes")),
            ("LUMID_STALE_IF_ERROR_SECS", |o| o.lumid_stale_if_error_secs = some("-1")),
            ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("0.0.0.0:9001")),
            ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("unix:relative.sock")),
            ("TOLLGATE_GRPC_LISTEN", |o| o.grpc_listen = some("unix:@abstract")),
            ("TOLLGATE_ADMIN_LISTEN", |o| o.admin_listen = some("9090")),
            ("TOLLGATE_LEDGER", |o| o.ledger = some("sqlite::memory:")),
            ("TOLLGATE_LEDGER", |o| o.ledger = some("sqlite://ledger.db")),
            ("TOLLGATE_LEDGER", |o| o.ledger = some("postgres://user:hunter2@db/x")),
            ("TOLLGATE_LOG", |o| o.log = some("tollgate=loud")),
            ("TOLLGATE_LOG_FORMAT", |o| o.log_format = some("xml")),
        ];
        for (variable, change) in cases {
            let error = parse(change).expect_err(variable);
            assert!(error.starts_with(&format!("{variable}: ")), "{error}");
            assert!(!error.contains('\n') && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_open_listener_must_be_asked_for_and_is_warned_about() {
        let config = parse(|o| {
            o.grpc_listen = some("0.0.0.0:9001");
            o.insecure_listen = some("on");
        });
        assert_eq!(config.expect("asked for").warnings.len(), 1);
    }

    #[test]
    fn what_goes_over_a_network_in_clear_is_warned_about_and_loopback_is_not() {
        let warnings = |url: &str| parse(|o| o.lum_id_base_url = some(url)).expect("valid").warnings.len();
        assert_eq!(warnings("http://lum.internal"), 1);
        for url in ["https://lum.internal", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"] {
            assert_eq!(warnings(url), 0, "{url}");
        }
        let config = parse(|o| o.admin_listen = some("0.0.0.0:9090")).expect("valid");
        assert_eq!(config.warnings.len(), 1);
    }

    #[test]
    fn billing_needs_both_url_and_secret_and_says_which_is_missing() {
        let config = parse(|o| o.runmesh_billing_base_url = some("https://kv.run:8000/Runmesh/")).expect("valid");
        assert!(config.billing.is_none());
        assert_eq!(config.warnings, ["billing is off: FLOWMESH_BRIDGE_SECRET is empty"]);
        let config = parse(|o| {
            o.runmesh_billing_base_url = some("https://kv.run:8000/Runmesh/");
            o.flowmesh_bridge_secret = some("s3cret");
        })
        .expect("valid");
        let billing = config.billing.as_ref().expect("both are there");
        assert_eq!(billing.base_url.join("/billing/x"), "https://kv.run:8000/Runmesh/billing/x");
        assert!(!format!("{config:?} {:?}", config.describe()).contains("s3cret"));
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_newline_but_not_from_both_places() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        std::fs::write(file.path(), "from-file\n").expect("written");
        let path = file.path().to_str().map(str::to_owned);
        let config = parse(|o| o.flowmesh_api_key_file = path.clone()).expect("valid");
        assert_eq!(config.flowmesh.api_key.as_ref().map(expose), Some("from-file"));
        let error = parse(|o| {
            o.flowmesh_api_key_file = path;
            o.flowmesh_api_key = some("x");
        });
        assert!(error.expect_err("ambiguous").contains("FLOWMESH_API_KEY_FILE"));
    }

    #[test]
    fn an_unknown_variable_with_our_prefix_is_warned_about() {
        let names = ["TOLLGATE_TLS_CERT", "TOLLGATE_LOG", "PATH"].map(str::to_owned);
        let config = parse(|_| {}).expect("valid").warn_of_unknown(names.into_iter());
        assert_eq!(config.warnings, ["TOLLGATE_TLS_CERT is set, but this version knows no such variable"]);
    }
}
