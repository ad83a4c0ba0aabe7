//! Pruning, in SQLite's words.

use sqlx::AssertSqlSafe;

use super::SqliteLedger;
use super::events::json;
use crate::ledger::Error;
use crate::ledger::pruning::Pruning;

impl Pruning for SqliteLedger {
    const ROW: &'static str = "rowid";
    const IDS: &'static str = "(SELECT value AS id FROM json_each($1))";

    async fn is_so(&self, query: String) -> Result<bool, Error> {
        Ok(sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(&self.read).await?)
    }

    async fn find(&self, query: String, after: &(i64, String)) -> Result<Vec<(i64, String)>, Error> {
        Ok(sqlx::query_as(AssertSqlSafe(query)).bind(after.0).bind(&after.1).fetch_all(&self.read).await?)
    }

    async fn execute(&self, statement: String, ids: Option<&[String]>) -> Result<u64, Error> {
        let mut query = sqlx::query(AssertSqlSafe(statement));
        if let Some(ids) = ids {
            query = query.bind(json(ids)?);
        }
        Ok(query.execute(&self.write).await?.rows_affected())
    }
}
