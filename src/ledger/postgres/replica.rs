//! One of several Tollgates that share a ledger.
//!
//! Each says every second that it is there, and up to when all submissions that it let through have their row: whoever finds
//! an owner by elimination must know of everybody. One whose word has not come for long, as told by the clock of who
//! waits for it and only while that one reaches the database itself, leaves a gap. One that comes back after a kill leaves one
//! too, unless it kept a file of what was missing.
//!
//! With the same word it asks for the duty: what one of them does for all.

mod membership;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Mutex, Notify, watch};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::text::stored;
use super::{Figures, Store, text};
use crate::config;
use crate::identity::{Identity, Purge};
use crate::ledger::duty::Duty;
use crate::ledger::unrecorded::Unrecorded;
use crate::ledger::{Error, ms, time};
use crate::lifecycle::TaskError;
use crate::telemetry::{KindLabels, Metrics, Sparing};

/// Between two words.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// How long the duty is somebody's by the database's clock, and by their own, counted from when they asked for it: they stop
/// before another one begins.
const DUTY_HELD: &str = "15 seconds";
const DUTY_TRUSTED: Duration = Duration::from_secs(10);
/// Before the listener is made anew, when the database does not let it listen.
const LISTEN_AGAIN: Duration = Duration::from_secs(2);
/// And when the database does: a connection that nothing can reach any more does not tell.
const LISTENS_FOR: Duration = Duration::from_mins(5);
/// Connections beside the ledger's pool: for the word, and for who is told of a purge. The listener has one more.
const CONNECTIONS: u32 = 2;
/// Purges read at once.
const PURGES_AT_ONCE: i64 = 1000;
/// Told apart from the database's clock by more than this, leases and matches are in doubt: a submission is believed to have been open
/// at a time that another clock told up to 5 s before.
const CLOCKS_APART: Duration = Duration::from_secs(3);
/// How long a purge is kept for those that missed it.
const PURGE_KEPT: &str = "1 day";
const CHANNEL: &str = "tollgate_purges";

/// Of words that could not be said: while the database is away it is each.
static NOT_SAID: Sparing = Sparing::of_work();

/// This replica. Cheap to clone.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    store: Store,
    /// `TOLLGATE_REPLICA`.
    configured: String,
    /// This start of it, and when that was.
    incarnation: String,
    began: Instant,
    unrecorded: Unrecorded,
    lost_after: Duration,
    duty: watch::Sender<Option<Instant>>,
    /// Until when it does not ask for it.
    left_until: watch::Sender<Option<Instant>>,
    /// Whether the others know of it, since it began.
    known: watch::Sender<bool>,
    /// What it said last.
    said: Mutex<Said>,
    woken: Notify,
    figures: Figures,
    metrics: Metrics,
}

#[derive(Default)]
struct Said {
    /// Under which name the others know it.
    name: Option<String>,
    /// The last purge that it has seen.
    purge: Option<i64>,
    /// The others by incarnation: how often they were heard of, and since when not any more.
    others: HashMap<String, (i64, Instant)>,
    /// When it heard of them last.
    heard: Option<Instant>,
    /// Whether the clocks are too far apart for what it says to be believed.
    is_doubtful: bool,
    /// By the database's clock, when they last were not.
    agreed: Option<Timestamp>,
}

impl Replica {
    /// A replica on connections of its own.
    #[must_use]
    pub fn new(
        database: &config::Postgres,
        unrecorded: Unrecorded,
        lost_after: Duration,
        (figures, metrics): (Figures, Metrics),
    ) -> Self {
        let store = Store::new(database, CONNECTIONS, Timestamp::now());
        Self(Arc::new(Inner {
            store,
            configured: database.replica.clone(),
            incarnation: Uuid::now_v7().simple().to_string(),
            began: Instant::now(),
            unrecorded,
            lost_after,
            duty: watch::Sender::new(None),
            left_until: watch::Sender::new(None),
            known: watch::Sender::new(false),
            said: Mutex::default(),
            woken: Notify::new(),
            figures,
            metrics,
        }))
    }

    /// Whether it is this one that does what one does for all.
    #[must_use]
    pub fn duty(&self) -> Duty {
        Duty::told(self.0.duty.subscribe(), self.0.left_until.clone())
    }

    /// Says every second that it is there, takes and holds the duty, and forgets what others say is to be forgotten, until the
    /// stop.
    ///
    /// # Errors
    /// Never by itself.
    pub async fn keep(self, identity: Identity, stop: CancellationToken) -> Result<(), TaskError> {
        let listening = async {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.listen() => {}
            }
        };
        let beating = async {
            // What is given up half-way has not been.
            while Box::pin(stop.run_until_cancelled(self.beat(&identity))).await.is_some() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.0.woken.notified() => {}
                    () = tokio::time::sleep(BEAT_EVERY) => {}
                }
            }
        };
        tokio::join!(listening, beating);
        self.0.duty.send_replace(None);
        Ok(())
    }

    /// Returns when the others know of it, or after a while: nobody is kept waiting by a database that is away.
    pub async fn known(&self, within: Duration) {
        let mut known = self.0.known.subscribe();
        let _ = tokio::time::timeout(within, known.wait_for(|known| *known)).await;
    }

    /// Tells the others what is to be forgotten.
    ///
    /// # Errors
    /// When they could not be told.
    pub async fn announce(&self, purge: &Purge) -> Result<(), Error> {
        let store = &self.0.store;
        let telling = async {
            // Under the writer's lock, so that the numbers become visible in their order.
            let mut writing = store.write().await?;
            sqlx::query(
                "WITH old AS (DELETE FROM purges WHERE at < now() - $2::text::interval),
                      new AS (INSERT INTO purges (what) VALUES ($1) RETURNING number)
                 SELECT pg_notify($3, number::text) FROM new",
            )
            .bind(stored(&purge.to_json()))
            .bind(PURGE_KEPT)
            .bind(CHANNEL)
            .execute(writing.tx())
            .await?;
            Ok(writing.commit().await?)
        };
        store.pool.bounded(telling).await
    }

    /// Says that it is no more, when nothing that it let through is missing. At the end of an orderly stop.
    pub async fn leave(&self) {
        let said = self.0.said.lock().await;
        if let Some(name) = &said.name
            && !self.0.unrecorded.is_uncertain()
            && let Err(error) = self.0.strike_off(name).await
        {
            tracing::warn!(%error, "cannot tell the other replicas that this one is no more: {error}");
        }
        self.0.store.pool.close().await;
    }

    /// Wakes whoever reads purges when there is one, for as long as it is let.
    async fn listen(&self) {
        loop {
            if let Err(error) = self.hear().await {
                // Each word looks for purges, too, so none is missed.
                tracing::debug!(%error, "cannot listen for purges: {error}");
            }
            tokio::time::sleep(LISTEN_AGAIN).await;
        }
    }

    async fn hear(&self) -> Result<(), sqlx::Error> {
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(self.0.store.pool.options());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        let heard = tokio::time::timeout(LISTENS_FOR, async {
            loop {
                listener.recv().await?;
                self.0.woken.notify_one();
            }
        });
        heard.await.unwrap_or(Ok(()))
    }

    async fn beat(&self, identity: &Identity) {
        let inner = &self.0;
        let mut said = inner.said.lock().await;
        match inner.store.pool.bounded(inner.say(&mut said, identity)).await {
            Ok(()) => {}
            Err(error) => {
                inner.metrics.ledger_errors.get_or_create(&KindLabels { kind: "heartbeat" }).inc();
                if let Some(unsaid) = NOT_SAID.say() {
                    tracing::error!(%error, unsaid = unsaid.count(), "the ledger does not hear of this replica: {error}{unsaid}");
                }
            }
        }
        inner.figures.on_duty.set(i64::from(self.duty().is_mine()));
    }
}

impl Inner {
    async fn say(&self, said: &mut Said, identity: &Identity) -> Result<(), Error> {
        let name = match &said.name {
            Some(name) => name.clone(),
            None => self.register(said, identity).await?,
        };
        // What is asked for is held from now on, and not from when the answer comes.
        let asked = Instant::now();
        let wants_duty = self.left_until.borrow().is_none_or(|until| until <= asked);
        let recorded_until = self.unrecorded.recorded_until();
        let mut lent = self.store.get().await?;
        let row = sqlx::query(
            "WITH beat AS (UPDATE replicas SET beats = beats + 1, recorded_until = $3
                           WHERE name = $1 AND incarnation = $2 RETURNING name),
                  duty AS (INSERT INTO duties (duty, incarnation, until)
                           SELECT 'all', $2, clock_timestamp() + $4::text::interval FROM beat WHERE $5
                           ON CONFLICT (duty) DO UPDATE SET incarnation = excluded.incarnation, until = excluded.until
                           WHERE duties.incarnation = excluded.incarnation OR duties.until < clock_timestamp()
                           RETURNING duty)
             SELECT EXISTS (SELECT 1 FROM beat) AS is_known, EXISTS (SELECT 1 FROM duty) AS is_on_duty,
                 COALESCE((SELECT MAX(number) FROM purges), 0) AS purge,
                 (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock",
        )
        .bind(stored(&name))
        .bind(&self.incarnation)
        .bind(ms(recorded_until))
        .bind(DUTY_HELD)
        .bind(wants_duty)
        .fetch_one(&mut *lent)
        .await?;
        let others = sqlx::query("SELECT name, incarnation, beats FROM replicas WHERE incarnation <> $1")
            .bind(&self.incarnation)
            .fetch_all(&mut *lent)
            .await?;
        self.compare_clocks(said, time(row.try_get("clock")?), asked, recorded_until).await;
        let seen = said.purge.unwrap_or_default();
        if row.try_get::<i64, _>("purge")? > seen {
            let news = sqlx::query("SELECT number, what FROM purges WHERE number > $1 ORDER BY number LIMIT $2")
                .bind(seen)
                .bind(PURGES_AT_ONCE)
                .fetch_all(&mut *lent)
                .await?;
            for row in &news {
                forget(identity, &text(row, "what")?);
                said.purge = Some(row.try_get("number")?);
            }
        }
        lent.give_back();
        if !row.try_get::<bool, _>("is_known")? {
            // The others gave it up, or another one took its name.
            said.name = None;
            self.duty.send_replace(None);
            tracing::error!(replica = name, "the other replicas have given {name} up: it says anew that it is there");
            return Ok(());
        }
        let is_on_duty: bool = row.try_get("is_on_duty")?;
        let was_on_duty = self.duty.send_replace(is_on_duty.then(|| asked + DUTY_TRUSTED)).is_some();
        if is_on_duty && !was_on_duty {
            tracing::info!(replica = name, "{name} sweeps, compares with FlowMesh and prunes from now on");
        } else if was_on_duty && !wants_duty {
            tracing::warn!(
                replica = name,
                "{name} leaves sweeping and comparing to another replica: it cannot do that"
            );
        }
        self.figures.known.set(i64::try_from(others.len() + 1).unwrap_or(i64::MAX));
        self.look_after(said, &others, is_on_duty).await
    }

    /// Leases are by the clocks of those who take them, and so is whose submission was open at a time. As long as this one's is not to be
    /// believed, its submissions count as missing, so nobody's owner is found by elimination; and then they are a gap.
    async fn compare_clocks(&self, said: &mut Said, clock: Timestamp, asked: Instant, recorded_until: Timestamp) {
        let now = Timestamp::now();
        let apart = now.duration_since(clock).unsigned_abs().saturating_sub(asked.elapsed());
        self.figures.clock_offset.set(apart.as_secs_f64());
        if apart <= CLOCKS_APART {
            if std::mem::take(&mut said.is_doubtful) {
                self.unrecorded.lost();
            }
            said.agreed = Some(clock);
            return;
        }
        if !std::mem::replace(&mut said.is_doubtful, true) {
            let seconds = apart.as_secs();
            tracing::error!(
                seconds,
                "this machine's clock and the database's are {seconds} s apart: no owner is found by elimination until they agree"
            );
            // It may have gone wrong while the database was away, and what was let through since then has times of its own.
            let agreed = said.agreed.unwrap_or_else(|| clock - self.began.elapsed());
            self.unrecorded.begin(recorded_until.min(clock).min(agreed)).await;
        }
        // Up to now by both. By itself, because what began must be told of its end whatever becomes of this word.
        let unrecorded = self.unrecorded.clone();
        tokio::spawn(async move {
            unrecorded.begin(now.max(clock)).await;
            unrecorded.recorded();
        });
    }
}

/// Forgets what another replica says is to be forgotten.
fn forget(identity: &Identity, what: &str) {
    if let Some(purge) = Purge::parse(what.as_bytes()) {
        let purged = identity.purge(&purge);
        tracing::info!(purged, "cache purge of {purge}, asked of a replica: {purged} forgotten");
    } else {
        tracing::error!("a purge that cannot be understood");
    }
}
