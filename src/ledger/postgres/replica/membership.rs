//! Who is one of those that share the ledger: under which name, and until when the others wait for it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::{Inner, Said};
use crate::identity::{Identity, Purge};
use crate::ledger::postgres::text::stored;
use crate::ledger::postgres::{Writing, migrating, text, work};
use crate::ledger::{Error, ms, time};

/// Longer than this between two words, and one could not be said.
const DEAF: Duration = Duration::from_secs(5);

impl Inner {
    /// Makes itself known. Returns its name.
    pub(super) async fn register(&self, said: &mut Said, identity: &Identity) -> Result<String, Error> {
        let mut writing = self.store.write().await?;
        // It may have begun after this one had looked.
        migrating::refuse_half(writing.tx(), &self.store.place).await?;
        let name = self.free_name(&mut writing).await?;
        let last_purge: i64 =
            sqlx::query_scalar("SELECT COALESCE(MAX(number), 0) FROM purges").fetch_one(writing.tx()).await?;
        let recorded_until = ms(self.unrecorded.recorded_until());
        sqlx::query(
            "INSERT INTO replicas (name, incarnation, recorded_until) VALUES ($1, $2, $3)
             ON CONFLICT (name) DO UPDATE SET incarnation = excluded.incarnation, beats = 0,
                 recorded_until = excluded.recorded_until",
        )
        .bind(stored(&name))
        .bind(&self.incarnation)
        .bind(recorded_until)
        .execute(writing.tx())
        .await?;
        writing.commit().await?;
        self.unrecorded.belongs_to(&self.incarnation).await;
        if said.purge.is_none() {
            // What was asked of the others before this is not known any more, and whoever began without a database may have
            // answered by then.
            let _ = identity.purge(&Purge::All);
            said.purge = Some(last_purge);
        }
        said.name = Some(name.clone());
        self.known.send_replace(true);
        tracing::info!(replica = name, "this replica is {name}");
        Ok(name)
    }

    /// Its name, after whoever had it before has been seen to. When one of that name was given up, or took it, while this one
    /// lived, there are two, and this one takes another name: else they would take it from each other for ever.
    async fn free_name(&self, writing: &mut Writing) -> Result<String, Error> {
        let name = &self.configured;
        let before = sqlx::query("SELECT incarnation, beats, recorded_until FROM replicas WHERE name = $1")
            .bind(stored(name))
            .fetch_optional(writing.tx())
            .await?;
        let Some(before) = before else { return Ok(name.clone()) };
        let incarnation: String = before.try_get("incarnation")?;
        if incarnation == self.incarnation {
            // It was said, and the answer got lost.
            return Ok(name.clone());
        }
        // Ids of starts grow with time.
        if incarnation > self.incarnation {
            let name = format!("{name}#{}", &self.incarnation[self.incarnation.len() - 8..]);
            tracing::error!(
                replica = name,
                "another Tollgate calls itself {}: give each a TOLLGATE_REPLICA of its own. This one goes by {name}",
                self.configured
            );
            return Ok(name);
        }
        let (since, now) = (time(before.try_get("recorded_until")?), Timestamp::now());
        if !self.unrecorded.remembers(&incarnation, since) {
            work::note_gap(writing.tx(), since, now).await?;
            tracing::warn!(
                replica = name,
                "{name} did not stop in order: submissions from {since} to {now} may be missing, and workflows of that time that \
                 no log entry tells of are held"
            );
        }
        sqlx::query("DELETE FROM duties WHERE incarnation = $1").bind(incarnation).execute(writing.tx()).await?;
        Ok(name.clone())
    }

    /// Gives up who was not heard of for long.
    pub(super) async fn look_after(&self, said: &mut Said, others: &[PgRow], is_on_duty: bool) -> Result<(), Error> {
        let now = Instant::now();
        // While this one heard nothing the others may have been there.
        let deaf = said.heard.replace(now).map_or(Duration::ZERO, |heard| now.duration_since(heard));
        let deaf = if deaf > DEAF { deaf } else { Duration::ZERO };
        let mut heard = HashMap::with_capacity(others.len());
        for row in others {
            let (incarnation, beats): (String, i64) = (row.try_get("incarnation")?, row.try_get("beats")?);
            let since = match said.others.get(&incarnation) {
                Some((before, since)) if *before == beats => (*since + deaf).min(now),
                _ => now,
            };
            if is_on_duty && now.duration_since(since) >= self.lost_after {
                self.give_up(&text(row, "name")?, &incarnation, beats).await?;
            } else {
                heard.insert(incarnation, (beats, since));
            }
        }
        said.others = heard;
        Ok(())
    }

    async fn give_up(&self, name: &str, incarnation: &str, beats: i64) -> Result<(), Error> {
        let mut writing = self.store.write().await?;
        let since: Option<i64> = sqlx::query_scalar(
            "DELETE FROM replicas WHERE name = $1 AND incarnation = $2 AND beats = $3 RETURNING recorded_until",
        )
        .bind(stored(name))
        .bind(incarnation)
        .bind(beats)
        .fetch_optional(writing.tx())
        .await?;
        if let Some(since) = since.map(time) {
            let now = Timestamp::now();
            work::note_gap(writing.tx(), since, now).await?;
            writing.commit().await?;
            self.figures.given_up.inc();
            tracing::error!(
                replica = name,
                "replica {name} is given up: submissions from {since} to {now} may be missing, and workflows of that time that \
                 no log entry tells of are held"
            );
        }
        Ok(())
    }

    pub(super) async fn strike_off(&self, name: &str) -> Result<(), Error> {
        let striking = async {
            let mut writing = self.store.write().await?;
            sqlx::query(
                "WITH duty AS (DELETE FROM duties WHERE incarnation = $2)
                 DELETE FROM replicas WHERE name = $1 AND incarnation = $2",
            )
            .bind(stored(name))
            .bind(&self.incarnation)
            .execute(writing.tx())
            .await?;
            Ok(writing.commit().await?)
        };
        self.store.pool.bounded(striking).await
    }
}
