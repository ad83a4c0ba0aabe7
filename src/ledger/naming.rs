//! The operator's word on whose a workflow is, whatever the database.

use super::books::{Named, Naming};
use super::ms;
use super::recording::{LogTables, see_principals};

/// The statements by which a database takes it. Times are ms since the epoch.
pub trait NamingTables: LogTables {
    /// A workflow's state and owner.
    fn owned_workflow(
        &mut self,
        workflow_id: &str,
    ) -> impl Future<Output = Result<Option<(String, Option<String>)>, sqlx::Error>> + Send;

    /// Whether something was posted for a workflow, and whether something is being posted now.
    fn posts_of(
        &mut self,
        workflow_id: &str,
        at: i64,
    ) -> impl Future<Output = Result<(bool, bool), sqlx::Error>> + Send;

    /// The e-mail of a principal that is known.
    fn email_of(
        &mut self,
        principal_id: &str,
    ) -> impl Future<Output = Result<Option<Option<String>>, sqlx::Error>> + Send;

    /// How many charges of the workflow are the principal's, pending and held.
    fn unposted(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
    ) -> impl Future<Output = Result<(u64, u64), sqlx::Error>> + Send;

    /// Makes a workflow theirs, unless it is.
    fn name_owner(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
        at: i64,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Says that it came of a submission of theirs that is still open. Whether it was.
    fn use_submission(
        &mut self,
        workflow_id: &str,
        principal_id: &str,
        submission_id: &str,
    ) -> impl Future<Output = Result<bool, sqlx::Error>> + Send;
}

/// Names the owner of a workflow. Everything is judged before anything is written.
pub async fn name_owner<T: NamingTables>(to: &mut T, naming: Naming<'_>) -> Result<Named, sqlx::Error> {
    let Naming { workflow_id, principal_id, email, submission_id, at } = naming;
    let Some((state, owner)) = to.owned_workflow(workflow_id).await? else { return Ok(Named::UnknownWorkflow) };
    if state == "ignored" {
        return Ok(Named::Ignored);
    }
    if let Some(owner) = owner.filter(|owner| owner != principal_id) {
        match to.posts_of(workflow_id, ms(at)).await? {
            (true, _) => return Ok(Named::Posted { principal_id: owner }),
            (false, true) => return Ok(Named::BeingPosted { principal_id: owner }),
            (false, false) => {}
        }
    }
    let known = to.email_of(principal_id).await?;
    let (pending_before, _) = to.unposted(workflow_id, principal_id).await?;
    match (known, email) {
        (None, None) => return Ok(Named::UnknownPrincipal),
        // lum.id knows better, and other charges go there, too.
        (Some(Some(known)), Some(given)) if known != given => return Ok(Named::OtherEmail),
        (None | Some(None), Some(_)) => see_principals(to, &[(principal_id, (email, ms(at)))].into(), at).await?,
        (Some(_), _) => {}
    }
    to.name_owner(workflow_id, principal_id, ms(at)).await?;
    let mut used_submission = false;
    if let Some(submission_id) = submission_id
        && to.use_submission(workflow_id, principal_id, submission_id).await?
    {
        to.resolve_submissions(&[(submission_id, workflow_id, ms(at))]).await?;
        used_submission = true;
    }
    to.release(&[workflow_id], ms(at)).await?;
    let (pending, held) = to.unposted(workflow_id, principal_id).await?;
    Ok(Named::Done { released: pending.saturating_sub(pending_before), held, used_submission })
}
