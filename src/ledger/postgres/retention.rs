//! Pruning, in PostgreSQL's words.

use sqlx::AssertSqlSafe;

use super::text::{json, stored};
use super::{PostgresLedger, Text};
use crate::ledger::Error;
use crate::ledger::pruning::Pruning;

impl Pruning for PostgresLedger {
    const ROW: &'static str = "ctid";
    const IDS: &'static str = "(SELECT jsonb_array_elements_text($1::text::jsonb) AS id) AS ids";

    async fn is_so(&self, query: String) -> Result<bool, Error> {
        let reading = async {
            let mut lent = self.store.get().await?;
            let is_so = sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&mut *lent).await?;
            lent.give_back();
            Ok(is_so)
        };
        self.store.pool.bounded(reading).await
    }

    async fn find(&self, query: String, after: &(i64, String)) -> Result<Vec<(i64, String)>, Error> {
        let reading = async {
            let mut lent = self.store.get().await?;
            let query = sqlx::query_as(AssertSqlSafe(query)).bind(after.0).bind(stored(&after.1));
            let found: Vec<(i64, Text)> = query.fetch_all(&mut *lent).await?;
            lent.give_back();
            Ok(found.into_iter().map(|(at, id)| (at, id.0)).collect())
        };
        self.store.pool.bounded(reading).await
    }

    async fn execute(&self, statement: String, ids: Option<&[String]>) -> Result<u64, Error> {
        let deleting = async {
            let mut writing = self.store.write().await?;
            let mut query = sqlx::query(AssertSqlSafe(statement));
            if let Some(ids) = ids {
                query = query.bind(json(ids)?);
            }
            let rows = query.execute(writing.tx()).await?.rows_affected();
            writing.commit().await?;
            Ok(rows)
        };
        self.store.pool.bounded(deleting).await
    }
}
