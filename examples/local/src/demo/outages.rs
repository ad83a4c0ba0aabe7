//! What goes down, and that nothing is lost and nobody let through by it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tollgate_local::{
    stack::{ALICE, wait_for},
    standin::Outcome,
};

use super::{Answer, CHARGE_LIMIT, Demo};

/// How long Envoy may take to find that Tollgate is back.
const RECOVERY_LIMIT: Duration = Duration::from_secs(15);

impl Demo {
    pub(super) async fn runmesh_down(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice", ALICE, request).await?;
        let task_id = submitted.task_ids.first().context("a submission without tasks")?;
        self.stack.runmesh.stop().await;
        let answer = self.post_result(task_id).await?;
        self.narrator.compare("Runmesh is down; the worker posts its result", 200, answer.status);
        wait_for("Tollgate to try to post the charge", CHARGE_LIMIT, async || {
            let pending = self.stack.tollgate.metric("tollgate_charges_pending").await?;
            let tried =
                self.stack.tollgate.lines().iter().any(|line| line.contains("not posted") && line.contains(task_id));
            ((pending - 1.0).abs() < f64::EPSILON && tried).then_some(())
        })
        .await?;
        let request = self.submission(&ALICE, 1)?;
        let meanwhile = self.submit("  another submission meanwhile, unguarded", ALICE, request).await?;
        for task in &meanwhile.task_ids {
            self.stack.flowmesh.complete(task, Outcome::done(0.75, 1.5));
        }
        self.stack.runmesh.resume().await.context("the Runmesh stand-in cannot come back")?;
        self.expect_entry("Runmesh is back: the entry", &submitted.task_ids, CHARGE_LIMIT * 2).await?;
        self.expect_entry("  that of the other submission", &meanwhile.task_ids, CHARGE_LIMIT * 2).await
    }

    pub(super) async fn tollgate_killed(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice, then Tollgate is killed at once", ALICE, request).await?;
        self.stack.tollgate.kill_hard().await?;
        for task in &submitted.task_ids {
            // Nobody tells Tollgate: no result passes through the edge.
            self.stack.flowmesh.complete(task, Outcome::done(12.5, 2.4));
        }
        self.stack.tollgate.restart().await?;
        self.expect_entry("Tollgate is back: the entry", &submitted.task_ids, CHARGE_LIMIT * 2).await?;
        let answer = self.recovered().await?;
        self.narrator.compare("  a read after it", 200, answer.status);
        Ok(())
    }

    pub(super) async fn envoy_killed(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice, then Envoy is killed at once", ALICE, request).await?;
        self.stack.envoy.kill_hard().await?;
        for task in &submitted.task_ids {
            self.stack.flowmesh.complete(task, Outcome::done(33.0, 1.5));
        }
        self.stack.envoy.restart().await?;
        self.stack.envoy.wait_for_tollgate(RECOVERY_LIMIT).await?;
        self.expect_entry("Envoy is back: the entry", &submitted.task_ids, CHARGE_LIMIT * 2).await
    }

    pub(super) async fn lum_id_down(&mut self) -> Result<()> {
        // So that it is in memory, whenever that was emptied.
        self.get("/api/v1/workflows", Some(ALICE.token)).await?;
        self.stack.lum_id.stop().await;
        let answer = self.get("/api/v1/workflows", Some("never-seen-before")).await?;
        let unavailable = r#"503 {"detail":"Identity provider unavailable"}"#;
        self.narrator.compare("lum.id is down; an unseen token", unavailable, answer.whole());
        let has_retry_after = answer.header("retry-after") != "none";
        self.narrator.compare("  with retry-after", true, has_retry_after);
        let answer = self.get("/api/v1/workflows", Some(ALICE.token)).await?;
        self.narrator.compare("  a token that is known", 200, answer.status);
        self.stack.lum_id.resume().await.context("the lum.id stand-in cannot come back")?;
        let answer = self.get("/api/v1/workflows", Some("never-seen-before")).await?;
        self.narrator.compare("lum.id is back; the same token", 401, answer.status);
        Ok(())
    }

    pub(super) async fn tollgate_stopped(&mut self) -> Result<()> {
        let status = self.stack.tollgate.terminate().await?;
        self.narrator.compare("Tollgate is told to stop, its exit code", 0, status.code().unwrap_or(-1));
        let before = self.stack.flowmesh.requests().len();
        let answer = self.send(self.submission(&ALICE, 1)?).await?;
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let detail = body["detail"].as_str().unwrap_or("no detail");
        let seen = format!("{} {detail}", answer.status);
        self.narrator.compare("submission without Tollgate", "503 Authorization service unavailable", seen);
        self.narrator.compare("  its content-type", "application/json", answer.header("content-type"));
        let reached = self.stack.flowmesh.requests().len() - before;
        self.narrator.compare("  requests that reached FlowMesh", 0, reached);
        self.stack.tollgate.restart().await?;
        let answer = self.recovered().await?;
        self.narrator.compare("Tollgate is back; a read", 200, answer.status);
        Ok(())
    }

    /// The first answer to a read that is not Envoy's refusal. Its worker threads learn a moment after
    /// its own pages that Tollgate is healthy again.
    async fn recovered(&self) -> Result<Answer> {
        self.stack.envoy.wait_for_tollgate(RECOVERY_LIMIT).await?;
        wait_for("the edge to let requests through again", RECOVERY_LIMIT, async || {
            let answer = self.get("/api/v1/workflows", Some(ALICE.token)).await.ok()?;
            (answer.status != 503).then_some(answer)
        })
        .await
    }
}
