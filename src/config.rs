//! Environment and flags → one validated [`Config`].
//!
//! Every setting is an environment variable and a flag; the flag wins. An empty value counts as unset, because that is
//! what `VAR=${VAR:-}` in a compose file gives. A wrong value is one [`Error`] that names the variable; what is risky
//! but allowed is a line in [`Config::warnings`]. Past this module nothing reads the environment.

mod describe;
mod file;
mod hosts;
mod ledger;
mod limits;
mod listen;
mod log_filter;
mod options;
mod otel;
mod secret;

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use reqwest::Url;

pub use describe::{Origin, Origins, Setting};
pub use file::SettingFile;
pub use hosts::AdminHosts;
pub use ledger::{Postgres, Store};
pub use limits::Limits;
pub use listen::{Listen, TLS_CERT, TLS_CLIENT_CA, TLS_KEY, TlsFiles};
pub use log_filter::LogFilter;
pub use options::Options;
pub use secret::{Secret, expose};

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
        Url::parse(&self.0).ok().and_then(|url| url.host_str().map(is_loopback)).unwrap_or_default()
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
    pub secret: Secret,
}

/// FlowMesh, for Tollgate's own calls.
#[derive(Debug, Clone)]
pub struct Flowmesh {
    pub base_url: BaseUrl,
    pub api_key: Option<Secret>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What was given and does not show in what Tollgate runs with.
#[derive(Debug, Clone)]
struct Given {
    /// Also where the secret is missing.
    runmesh: Option<BaseUrl>,
    /// Whether there is one, also where the URL is missing.
    secret: bool,
    /// Also without billing.
    guard: bool,
    insecure_listen: bool,
    /// Why no spans are exported although a collector was given.
    no_spans: Option<&'static str>,
}

/// What Tollgate runs with.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "settings that are on or off, each by its own variable")]
pub struct Config {
    pub lum_id_base_url: BaseUrl,
    /// `None`: no ledger is opened, no log entry is asked for, nothing is posted.
    pub billing: Option<Billing>,
    given: Given,
    origins: Origins,
    /// Whether submissions pass a preflight; never true without billing.
    pub balance_guard: bool,
    /// Stamped as `x-flowmesh-org-id`; visible ASCII.
    pub org_id: String,
    pub stale_if_error: Duration,
    pub flowmesh: Flowmesh,
    pub grpc_listen: Listen,
    /// `None`: the gRPC listener speaks plain text. Never present with a Unix socket.
    pub tls: Option<TlsFiles>,
    /// Whether the gRPC listener tells what it serves.
    pub grpc_reflection: bool,
    pub admin_listen: SocketAddr,
    pub admin_hosts: AdminHosts,
    pub ledger: Store,
    /// How long what is over stays in the ledger.
    pub retention: Duration,
    pub forward_authorization: bool,
    pub reconcile_interval: Duration,
    pub reconcile_grace: Duration,
    pub log: LogFilter,
    /// The collector of spans; `None`: none are exported.
    pub otlp_endpoint: Option<BaseUrl>,
    pub log_format: LogFormat,
    /// Whether a terminal gets plain text, too: `NO_COLOR` is set, by the convention of that name.
    pub no_colour: bool,
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
        let ledger = Store::parse(&options, &mut warnings)?;
        let runmesh = optional_url("RUNMESH_BILLING_BASE_URL", options.runmesh_billing_base_url)?;
        let secret = secret::secret(
            "FLOWMESH_BRIDGE_SECRET",
            "FLOWMESH_BRIDGE_SECRET_FILE",
            options.flowmesh_bridge_secret,
            options.flowmesh_bridge_secret_file,
        )?;
        let guard = on_off("LUMID_BALANCE_GUARD", options.lumid_balance_guard)?;
        let insecure = on_off("TOLLGATE_INSECURE_LISTEN", options.insecure_listen)?;
        let was_given = Given {
            runmesh: runmesh.clone(),
            secret: secret.is_some(),
            guard,
            insecure_listen: insecure,
            no_spans: None,
        };
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
        if guard && billing.is_none() {
            warnings.push("LUMID_BALANCE_GUARD is on, but without billing there is nothing to ask".to_owned());
        }
        let tls = listen::tls_files(options.tls_cert, options.tls_key, options.tls_client_ca)?;
        let grpc_listen = listen::grpc_listen(options.grpc_listen, tls.as_ref(), insecure, &mut warnings)?;
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
        let admin_listen = admin_listen(options.admin_listen, &mut warnings)?;
        Ok(Self {
            lum_id_base_url,
            balance_guard: guard && billing.is_some(),
            billing,
            given: was_given,
            origins: options.origins,
            org_id: org_id(options.lumid_org_id)?,
            stale_if_error,
            flowmesh: Flowmesh {
                base_url: base_url(
                    "FLOWMESH_BASE_URL",
                    &given(options.flowmesh_base_url).unwrap_or_else(|| "http://127.0.0.1:8000".to_owned()),
                )?,
                api_key: secret::secret(
                    "FLOWMESH_API_KEY",
                    "FLOWMESH_API_KEY_FILE",
                    options.flowmesh_api_key,
                    options.flowmesh_api_key_file,
                )?,
            },
            grpc_listen,
            tls,
            grpc_reflection: on_off("TOLLGATE_GRPC_REFLECTION", options.grpc_reflection)?,
            admin_listen,
            admin_hosts: AdminHosts::parse(options.admin_hosts)?,
            ledger,
            // A month's bill must be there when it is disputed.
            retention: days("TOLLGATE_RETENTION_DAYS", options.retention_days, 90, 32..=36_500)?,
            forward_authorization: on_off("TOLLGATE_FORWARD_AUTHORIZATION", options.forward_authorization)?,
            reconcile_interval: seconds(
                "TOLLGATE_RECONCILE_INTERVAL_SECS",
                options.reconcile_interval_secs,
                600,
                1..=86_400,
            )?,
            reconcile_grace: seconds("TOLLGATE_RECONCILE_GRACE_SECS", options.reconcile_grace_secs, 30, 0..=3_600)?,
            otlp_endpoint: optional_url("OTEL_EXPORTER_OTLP_ENDPOINT", options.otlp_endpoint)?,
            log: LogFilter::parse(options.log, options.log_file)?,
            log_format: log_format(options.log_format)?,
            no_colour: false,
            limits: Limits::default(),
            warnings,
        })
    }

    /// The ledger's place alone, for commands that need nothing else.
    ///
    /// # Errors
    /// When a setting of it cannot be used.
    pub fn store(options: &Options) -> Result<Store, Error> {
        Store::parse(options, &mut Vec::new())
    }
}

/// Whether a URL's host is this machine, as far as its name tells.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn wrong(variable: &'static str, reason: impl Into<String>) -> Error {
    Error { variable, reason: reason.into() }
}

fn given(value: Option<String>) -> Option<String> {
    value.map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn admin_listen(value: Option<String>, warnings: &mut Vec<String>) -> Result<SocketAddr, Error> {
    let given = given(value).unwrap_or_else(|| "127.0.0.1:9090".to_owned());
    let admin_listen = address("TOLLGATE_ADMIN_LISTEN", &given)?;
    if !admin_listen.ip().is_loopback() {
        warnings.push(format!("TOLLGATE_ADMIN_LISTEN: others than this machine can read {admin_listen}"));
    }
    Ok(admin_listen)
}

fn log_format(value: Option<String>) -> Result<LogFormat, Error> {
    match given(value).as_deref() {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(wrong("TOLLGATE_LOG_FORMAT", format!("'{other}' is neither text nor json"))),
    }
}

fn optional_url(variable: &'static str, value: Option<String>) -> Result<Option<BaseUrl>, Error> {
    given(value).map(|url| base_url(variable, &url)).transpose()
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
    whole(variable, value, "seconds", default, range).map(Duration::from_secs)
}

const SECONDS_A_DAY: u64 = 86_400;

fn days(
    variable: &'static str,
    value: Option<String>,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Duration, Error> {
    whole(variable, value, "days", default, range).map(|days| Duration::from_secs(days * SECONDS_A_DAY))
}

fn whole(
    variable: &'static str,
    value: Option<String>,
    unit: &str,
    default: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<u64, Error> {
    let Some(value) = given(value) else { return Ok(default) };
    value.parse::<u64>().ok().filter(|number| range.contains(number)).ok_or_else(|| {
        let (from, to) = (range.start(), range.end());
        wrong(variable, format!("'{value}' is not a whole number of {unit} from {from} to {to}"))
    })
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

fn org_id(value: Option<String>) -> Result<String, Error> {
    let org_id = given(value).unwrap_or_else(|| "lumid".to_owned());
    if is_visible_ascii(&org_id) { Ok(org_id) } else { Err(wrong("LUMID_ORG_ID", "cannot be sent in a header")) }
}

/// Whether a text can be a header value as it is.
#[must_use]
pub fn is_visible_ascii(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
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
mod tests;
