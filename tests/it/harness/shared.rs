//! Tollgates that share a PostgreSQL: one behind Envoy, and others beside it.

use std::path::PathBuf;

use sqlx::{Connection, PgConnection};
use tollgate_local::cast::BRIDGE_SECRET;
use tollgate_local::stack::{Postgres, Tollgate, free_port, wait_for};

use super::{Edge, SOON, binary};

/// A PostgreSQL of the test's own, and a stack that has its ledger there.
pub struct Shared {
    pub edge: Edge,
    pub postgres: Postgres,
    dir: tempfile::TempDir,
}

/// Begins a transaction that keeps everybody else from writing.
pub const LOCK: &str = "BEGIN; SELECT pg_advisory_xact_lock('ledger'::regclass::oid::bigint)";

/// Whether there is a PostgreSQL to test with. In CI there has to be.
pub fn is_there() -> bool {
    let version = Postgres::version();
    assert!(version.is_ok() || std::env::var_os("CI").is_none(), "{version:?}");
    if let Err(error) = &version {
        eprintln!("SKIPPED: {error:#}");
    }
    version.is_ok()
}

impl Shared {
    /// `None` where there is no PostgreSQL.
    pub async fn start() -> Option<Self> {
        if !is_there() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port().expect("a port");
        let postgres = Postgres::start_new(dir.path(), "127.0.0.1", port).expect("PostgreSQL starts");
        let state = dir.path().to_str().expect("text").to_owned();
        let edge = Edge::with(&[
            ("TOLLGATE_LEDGER", postgres.url()),
            ("TOLLGATE_REPLICA", "first"),
            ("TOLLGATE_STATE_DIR", &state),
            ("TOLLGATE_POSTGRES_STATEMENT_TIMEOUT_SECS", "2"),
        ])
        .await;
        Some(Self { edge, postgres, dir })
    }

    /// The settings of another Tollgate on the same ledger.
    pub fn settings(&self, name: &str) -> Vec<(&'static str, String)> {
        let stack = &self.edge.stack;
        let state = self.dir.path().join(name);
        std::fs::create_dir_all(&state).expect("made");
        vec![
            ("LUM_ID_BASE_URL", stack.lum_id.url()),
            ("RUNMESH_BILLING_BASE_URL", stack.runmesh.billing_url()),
            ("FLOWMESH_BRIDGE_SECRET", BRIDGE_SECRET.to_owned()),
            ("FLOWMESH_BASE_URL", stack.flowmesh.url()),
            ("TOLLGATE_LEDGER", self.postgres.url().to_owned()),
            ("TOLLGATE_REPLICA", name.to_owned()),
            ("TOLLGATE_STATE_DIR", state.to_str().expect("text").to_owned()),
            ("TOLLGATE_GRPC_LISTEN", format!("unix:{}", self.socket(name).display())),
            ("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
            ("TOLLGATE_RECONCILE_GRACE_SECS", "1".to_owned()),
            ("TOLLGATE_LOG", "debug".to_owned()),
        ]
    }

    /// Another Tollgate on the same ledger.
    pub async fn another(&self, name: &str) -> Tollgate {
        Tollgate::start(binary(), &self.settings(name), None).await.expect("starts")
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().expect("a path").join(format!("{name}.sock"))
    }

    /// A connection of the test's own to the ledger.
    pub async fn ledger(&self) -> PgConnection {
        PgConnection::connect(self.postgres.url()).await.expect("connected")
    }

    /// Keeps every Tollgate from writing until the connection ends.
    pub async fn lock(&self) -> PgConnection {
        let mut ledger = self.ledger().await;
        sqlx::raw_sql(LOCK).execute(&mut ledger).await.expect("locked");
        ledger
    }

    /// Waits until a metric of one of the Tollgates has a value.
    pub async fn metric(&self, tollgate: &Tollgate, name: &str, wanted: f64) {
        let seen = async || tollgate.metric(name).await.filter(|value| (value - wanted).abs() < f64::EPSILON);
        let seen = wait_for(format!("{name} to be {wanted}"), SOON, seen).await;
        seen.unwrap_or_else(|error| panic!("{error}; {:#?}", tollgate.lines()));
    }
}
