//! The flags and environment variables, as they are given. The docs of the fields are the texts of `--help`.

use super::Origins;

/// Settings as they were given, before validation.
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
    /// PEM file of the certificate, and its chain, that Tollgate shows Envoy; with it TCP is mTLS
    #[arg(long, global = true, env = "TOLLGATE_TLS_CERT", value_name = "PATH")]
    pub tls_cert: Option<String>,
    /// PEM file of that certificate's key
    #[arg(long, global = true, env = "TOLLGATE_TLS_KEY", value_name = "PATH")]
    pub tls_key: Option<String>,
    /// PEM file of the CA that must have signed Envoy's certificate. Any that it signed may write bills
    #[arg(long, global = true, env = "TOLLGATE_TLS_CLIENT_CA", value_name = "PATH")]
    pub tls_client_ca: Option<String>,
    /// `on`: allow a gRPC listener that others than this machine can reach without mTLS [default: off]
    #[arg(long, global = true, env = "TOLLGATE_INSECURE_LISTEN", value_name = "on|off")]
    pub insecure_listen: Option<String>,
    /// `on`: gRPC server reflection, for `grpcurl` and its like [default: off]
    #[arg(long, global = true, env = "TOLLGATE_GRPC_REFLECTION", value_name = "on|off")]
    pub grpc_reflection: Option<String>,
    /// Console, health and metrics [default: 127.0.0.1:9090]
    #[arg(long, global = true, env = "TOLLGATE_ADMIN_LISTEN", value_name = "ADDR")]
    pub admin_listen: Option<String>,
    /// Names, separated by commas, by which that address is asked for its console, such as a reverse proxy's
    #[arg(long, global = true, env = "TOLLGATE_ADMIN_HOSTS", value_name = "NAMES")]
    pub admin_hosts: Option<String>,
    /// The durable store: `sqlite:PATH`, or `postgres://USER@HOST/DATABASE?sslmode=verify-full`, which several replicas share
    /// [default: sqlite:tollgate.db]
    #[arg(long, global = true, env = "TOLLGATE_LEDGER", value_name = "URL", hide_env_values = true)]
    pub ledger: Option<String>,
    /// PostgreSQL's password, where the URL has none. Better in a file: flags can be seen in `ps`
    #[arg(long, global = true, env = "TOLLGATE_POSTGRES_PASSWORD", value_name = "PASSWORD", hide_env_values = true)]
    pub postgres_password: Option<String>,
    /// File that holds PostgreSQL's password
    #[arg(long, global = true, env = "TOLLGATE_POSTGRES_PASSWORD_FILE", value_name = "PATH")]
    pub postgres_password_file: Option<String>,
    /// Connections to PostgreSQL at most, 4 to 64 [default: 8]
    #[arg(long, global = true, env = "TOLLGATE_POSTGRES_POOL", value_name = "N")]
    pub postgres_pool: Option<String>,
    /// Seconds to wait for a connection to PostgreSQL [default: 3]
    #[arg(long, global = true, env = "TOLLGATE_POSTGRES_CONNECT_TIMEOUT_SECS", value_name = "SECS")]
    pub postgres_connect_timeout_secs: Option<String>,
    /// Seconds that PostgreSQL may work on one statement [default: 10]
    #[arg(long, global = true, env = "TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS", value_name = "SECS")]
    pub postgres_statement_timeout_secs: Option<String>,
    /// This replica's name among those that share the ledger, the same after a restart [default: the host's name]
    #[arg(long, global = true, env = "TOLLGATE_REPLICA", value_name = "NAME")]
    pub replica: Option<String>,
    /// Folder where a replica remembers, over a kill, submissions that went through while PostgreSQL was away; empty: nowhere
    #[arg(long, global = true, env = "TOLLGATE_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Days that what is over stays in the ledger, 32 at least; what is not posted stays until it is [default: 90]
    #[arg(long, global = true, env = "TOLLGATE_RETENTION_DAYS", value_name = "DAYS")]
    pub retention_days: Option<String>,
    /// `on`: keep the caller's bearer on the way to FlowMesh [default: off]
    #[arg(long, global = true, env = "TOLLGATE_FORWARD_AUTHORIZATION", value_name = "on|off")]
    pub forward_authorization: Option<String>,
    /// Seconds between comparisons of FlowMesh's workflow list with the ledger [default: 600]
    #[arg(long, global = true, env = "TOLLGATE_RECONCILE_INTERVAL_SECS", value_name = "SECS")]
    pub reconcile_interval_secs: Option<String>,
    /// Seconds a workflow's own log entry is waited for before it is matched with open submissions [default: 30]
    #[arg(long, global = true, env = "TOLLGATE_RECONCILE_GRACE_SECS", value_name = "SECS")]
    pub reconcile_grace_secs: Option<String>,
    /// Log filter, such as `info,tollgate::authz=debug`; or a file has it [default: info]
    #[arg(long, global = true, env = "TOLLGATE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// File that holds the log filter, which then can be changed while Tollgate runs
    #[arg(long, global = true, env = "TOLLGATE_LOG_FILE", value_name = "PATH")]
    pub log_file: Option<String>,
    /// `text` for people, `json` for machines [default: text]
    #[arg(long, global = true, env = "TOLLGATE_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<String>,
    /// Collector that gets spans, by OTLP over HTTP; empty exports none
    #[arg(long, global = true, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    #[arg(skip)]
    pub origins: Origins,
}
