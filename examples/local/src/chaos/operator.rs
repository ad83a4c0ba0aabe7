//! The operator: says whose the workflows are that nobody could decide.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use tokio::process::Command;

use super::{
    verify::{Books, Held},
    world::World,
};

/// Names the owner of every workflow that is rightly held. Returns how many there were.
pub(super) async fn name_owners(world: &World, tollgate: &Path) -> Result<usize> {
    let rows = world.ledger.read().await?;
    let Held { undecidable, row_lost, .. } = Books::of(world).held(world, &rows);
    world.record.tick("workflows held for a lost row", u64::try_from(row_lost.len())?);
    let held: BTreeMap<String, String> = undecidable.into_iter().chain(row_lost).collect();
    for (workflow, owner) in &held {
        let output = Command::new(tollgate)
            .env("TOLLGATE_LEDGER", world.ledger.setting())
            .args(["ledger", "attribute", workflow, owner])
            .output()
            .await
            .with_context(|| format!("cannot run {}", tollgate.display()))?;
        let said = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
        // One whose owner has been found meanwhile is refused; whatever stays held is seen at the end.
        world.record.note(format_args!("the operator: {}", said.trim_end()));
    }
    Ok(held.len())
}

/// Whether this Tollgate lets an operator do so.
pub(super) async fn may_name_owners(tollgate: &Path) -> bool {
    let output = Command::new(tollgate).args(["ledger", "attribute", "--help"]).output().await;
    output.is_ok_and(|output| output.status.success())
}
