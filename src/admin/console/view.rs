//! What the page shows, gathered once, so that all of it is of the same moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

use crate::admin::Admin;
use crate::admin::gauges::age;
use crate::admin::history::{History, Hour};
use crate::authz::last::LastCheck;
use crate::config::{Secret, expose};
use crate::identity::Figures;
use crate::ledger::Backlog;
use crate::ledger::books::{Books, Charge, Glance};
use crate::upstream::health::{Account, Health};

use super::text;

/// How long the ledger has to tell what it holds: the page comes anyway.
const PATIENCE: Duration = Duration::from_secs(2);
/// Rows of each table.
pub const ROWS: u32 = 20;

/// What the console knows beside the other pages.
pub struct Console {
    pub history: History,
    /// Absent without billing. On a connection of its own, so that who looks at the page keeps no Check waiting.
    pub books: Option<Arc<dyn Books>>,
    pub started: Timestamp,
    pub last_check: LastCheck,
    pub flowmesh: Arc<Health>,
    /// Absent without billing.
    pub runmesh: Option<Arc<Health>>,
    /// What Runmesh might repeat in an answer.
    pub secret: Option<Secret>,
    /// Of the configuration.
    pub warnings: Vec<String>,
    /// When the certificate that Envoy is shown ends, in seconds since 1970; 0 without mTLS.
    pub certificate_end: Gauge,
}

/// The ledger, as far as it can be read.
#[expect(clippy::large_enum_variant, reason = "there is one, for as long as a page is written")]
pub enum Shelf {
    /// No billing.
    Off,
    Unreadable(String),
    Read {
        backlog: Backlog,
        glance: Glance,
    },
}

impl Shelf {
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Off)
    }
}

/// The page's content.
pub struct View {
    pub now: Timestamp,
    pub started: Timestamp,
    pub draining: bool,
    pub hour: Hour,
    pub identity: Figures,
    pub lum_id: Account,
    pub flowmesh: Account,
    /// Absent without billing.
    pub runmesh: Option<Account>,
    pub posting_paused: bool,
    pub asking_paused: bool,
    pub log_streams: i64,
    pub last_check: Option<Timestamp>,
    pub shelf: Shelf,
    pub warnings: Vec<String>,
    /// Absent without mTLS.
    pub certificate_end: Option<Timestamp>,
}

impl View {
    pub async fn gather(admin: &Admin) -> Self {
        let console = &admin.console;
        let shelf = shelf(admin).await;
        let (now, instant) = (Timestamp::now(), Instant::now());
        Self {
            now,
            started: console.started,
            draining: admin.stopping.drain.is_cancelled(),
            hour: console.history.hour(now),
            identity: admin.identity.figures(),
            lum_id: admin.identity.account(),
            flowmesh: console.flowmesh.account(instant),
            runmesh: console.runmesh.as_ref().map(|health| health.account(instant)),
            posting_paused: admin.metrics.posting_paused.get() != 0,
            asking_paused: admin.metrics.asking_paused.get() != 0,
            log_streams: admin.metrics.log_streams.get(),
            last_check: console.last_check.at(),
            shelf,
            warnings: console.warnings.clone(),
            certificate_end: Some(console.certificate_end.get())
                .filter(|end| *end != 0)
                .and_then(|end| Timestamp::from_second(end).ok()),
        }
    }

    /// Seconds since the oldest charge not posted was settled; 0 without one.
    pub fn backlog_age(&self) -> i64 {
        match &self.shelf {
            Shelf::Read { backlog, .. } => age(backlog.oldest_pending, self.now),
            Shelf::Off | Shelf::Unreadable(_) => 0,
        }
    }
}

async fn shelf(admin: &Admin) -> Shelf {
    let (Some(ledger), Some(books)) = (&admin.ledger, &admin.console.books) else { return Shelf::Off };
    let read = async { tokio::try_join!(ledger.backlog(), books.glance(ROWS)) };
    match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok((backlog, mut glance))) => {
            discreet(&mut glance, admin.console.secret.as_ref());
            Shelf::Read { backlog, glance }
        }
        Ok(Err(error)) => Shelf::Unreadable(text::plain(&error.to_string())),
        Err(_) => Shelf::Unreadable(format!("it did not answer within {} s", PATIENCE.as_secs())),
    }
}

/// Takes out what is nobody's business who merely looks at the page.
fn discreet(glance: &mut Glance, secret: Option<&Secret>) {
    let secret = secret.map(Secret::get);
    let secrets: Vec<&str> = secret.iter().map(expose).collect();
    let Glance { latest, held, rejected, held_workflows, held_tasks } = glance;
    let hide = |text: &mut Option<String>| *text = text.take().map(|text| text::discreet(&text, &secrets));
    for Charge { email, last_error, .. } in latest.iter_mut().chain(held).chain(rejected) {
        *email = None;
        hide(last_error);
    }
    for workflow in held_workflows {
        workflow.email = None;
        hide(&mut workflow.hold_reason);
    }
    for task in held_tasks {
        hide(&mut task.hold_reason);
    }
}
