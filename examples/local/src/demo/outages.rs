//! What goes down, and that nothing is lost and nobody let through by it.

use anyhow::{Context as _, Result};
use tollgate_local::{
    stack::{ALICE, wait_for},
    standin::Outcome,
};

use super::{Answer, Demo, unseen_token};

/// Envoy's worker threads learn one by one that Tollgate is back, and connections spread over them.
const ANSWERS_IN_A_ROW: usize = 8;

impl Demo {
    pub(super) async fn runmesh_down(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice", ALICE, request).await?;
        let task_id = submitted.task_ids.first().context("a submission without tasks")?;
        self.world.runmesh.stop().await?;
        let answer = self.post_result(task_id).await?;
        self.narrator.compare("Runmesh is down; the worker posts its result", 200, answer.status);
        wait_for("Tollgate to try to post the charge", self.world.charge_limit, async || {
            let pending = self.world.tollgate.metric("tollgate_charges_pending").await?;
            let tried = pending >= 1.0 && self.world.tollgate.has_said(&["not posted", task_id]).await.ok()?;
            tried.then_some(())
        })
        .await?;
        let request = self.submission(&ALICE, 1)?;
        let meanwhile = self.submit("  another submission meanwhile, unguarded", ALICE, request).await?;
        self.world.flowmesh.complete(&meanwhile.task_ids, Outcome::done(0.75, 1.5)).await?;
        self.world.runmesh.resume().await.context("the Runmesh stand-in cannot come back")?;
        self.expect_entry("Runmesh is back: the entry", &submitted.task_ids, self.world.charge_limit * 2).await?;
        self.expect_entry("  that of the other submission", &meanwhile.task_ids, self.world.charge_limit * 2).await
    }

    pub(super) async fn tollgate_killed(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice, then Tollgate is killed at once", ALICE, request).await?;
        self.world.tollgate.kill_hard().await?;
        // Nobody tells Tollgate: no result passes through the edge.
        self.world.flowmesh.complete(&submitted.task_ids, Outcome::done(12.5, 2.4)).await?;
        self.world.tollgate.restart().await?;
        self.expect_entry("Tollgate is back: the entry", &submitted.task_ids, self.world.charge_limit * 2).await?;
        let answer = self.recovered().await?;
        self.narrator.compare("  a read after it", 200, answer.status);
        Ok(())
    }

    /// A process that dies by itself is for its supervisor to bring back, and only containers have one here.
    pub(super) async fn tollgate_dies(&mut self) -> Result<()> {
        let step = "submission by alice, then Tollgate's process dies";
        let Some(container) = self.world.tollgate.container() else { return Ok(()) };
        let process = match container.first_process().await? {
            Ok(process) => process,
            Err(reason) => {
                self.narrator.left_out(step, &reason);
                return Ok(());
            }
        };
        let restarts = container.restarts().await?;
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit(step, ALICE, request).await?;
        process.kill()?;
        self.world.flowmesh.complete(&submitted.task_ids, Outcome::done(7.25, 2.4)).await?;
        let container = self.world.tollgate.container().context("a container does not become a process")?;
        let came_back = container.came_back(restarts).await;
        // If it has not, this is one failure, and none of all that comes after it.
        self.world.tollgate.restart().await?;
        self.narrator.compare("  times that the engine starts it again by itself", 1, came_back? - restarts);
        self.expect_entry("Tollgate is back: the entry", &submitted.task_ids, self.world.charge_limit * 2).await?;
        let answer = self.recovered().await?;
        self.narrator.compare("  a read after it", 200, answer.status);
        Ok(())
    }

    pub(super) async fn envoy_killed(&mut self) -> Result<()> {
        let request = self.submission(&ALICE, 1)?;
        let submitted = self.submit("submission by alice, then Envoy is killed at once", ALICE, request).await?;
        self.world.envoy.kill_hard().await?;
        self.world.flowmesh.complete(&submitted.task_ids, Outcome::done(33.0, 1.5)).await?;
        self.world.envoy.restart().await?;
        self.recovered().await?;
        self.expect_entry("Envoy is back: the entry", &submitted.task_ids, self.world.charge_limit * 2).await
    }

    pub(super) async fn lum_id_down(&mut self) -> Result<()> {
        let unseen = unseen_token();
        self.known_to_all().await?;
        self.world.lum_id.stop().await?;
        let answer = self.get("/api/v1/workflows", Some(&unseen)).await?;
        let unavailable = r#"503 {"detail":"Identity provider unavailable"}"#;
        self.narrator.compare("lum.id is down; an unseen token", unavailable, answer.whole());
        let has_retry_after = answer.header("retry-after") != "none";
        self.narrator.compare("  with retry-after", true, has_retry_after);
        let answer = self.get("/api/v1/workflows", Some(ALICE.token)).await?;
        self.narrator.compare("  a token that is known", 200, answer.status);
        self.world.lum_id.resume().await.context("the lum.id stand-in cannot come back")?;
        let answer = self.get("/api/v1/workflows", Some(&unseen)).await?;
        self.narrator.compare("lum.id is back; the same token", 401, answer.status);
        Ok(())
    }

    /// Alice reads until each Tollgate has her token in memory, whenever that was emptied: they share a ledger, and not this.
    async fn known_to_all(&self) -> Result<()> {
        let checks = async || self.world.tollgate.metric_of_each("tollgate_check_decisions_total").await;
        let before = checks().await.context("Tollgate does not say how many Checks it decided")?;
        wait_for("each Tollgate to be asked about alice", self.world.recovery_limit, async || {
            // Nobody else is at the edge, so a Check from here on was hers.
            self.get("/api/v1/workflows", Some(ALICE.token)).await.ok()?;
            let now = checks().await?;
            now.iter().zip(&before).all(|(now, before)| now > before).then_some(())
        })
        .await
    }

    pub(super) async fn tollgate_stopped(&mut self) -> Result<()> {
        let code = self.world.tollgate.terminate().await?;
        self.narrator.compare("Tollgate is told to stop, its exit code", 0, code);
        let before = self.world.flowmesh.request_count().await?;
        let answer = self.send(self.submission(&ALICE, 1)?).await?;
        let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
        let detail = body["detail"].as_str().unwrap_or("no detail");
        let seen = format!("{} {detail}", answer.status);
        self.narrator.compare("submission without Tollgate", "503 Authorization service unavailable", seen);
        self.narrator.compare("  its content-type", "application/json", answer.header("content-type"));
        let reached = self.world.flowmesh.request_count().await? - before;
        self.narrator.compare("  requests that reached FlowMesh", 0, reached);
        self.world.tollgate.restart().await?;
        let answer = self.recovered().await?;
        self.narrator.compare("Tollgate is back; a read", 200, answer.status);
        Ok(())
    }

    /// An answer to a read, once it is not Envoy's refusal any more.
    pub(super) async fn recovered(&self) -> Result<Answer> {
        let mut in_a_row = 0;
        wait_for("the edge to let requests through again", self.world.recovery_limit, async || {
            let answer = self.get("/api/v1/workflows", Some(ALICE.token)).await.ok();
            in_a_row = if answer.as_ref().is_some_and(|answer| answer.status != 503) { in_a_row + 1 } else { 0 };
            answer.filter(|_| in_a_row >= ANSWERS_IN_A_ROW)
        })
        .await
    }
}
