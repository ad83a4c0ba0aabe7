//! `tollgate ledger attribute`.

use std::io::Write;

use anyhow::bail;
use jiff::Timestamp;

use super::{list, text};
use crate::ledger::OpenSubmission;
use crate::ledger::books::{Books, Named, Naming};

#[derive(Debug, clap::Args)]
pub struct Flags {
    /// The workflow
    #[arg(value_name = "WORKFLOW")]
    workflow: String,
    /// lum.id's `sub` of who pays
    #[arg(value_name = "PRINCIPAL")]
    principal: String,
    /// Where bills of a principal go whose e-mail address the ledger does not know
    #[arg(long, value_name = "ADDR")]
    email: Option<String>,
}

pub async fn run(flags: &Flags, books: &dyn Books, now: Timestamp, out: &mut impl Write) -> anyhow::Result<()> {
    let Flags { workflow: workflow_id, principal: principal_id, email } = flags;
    if principal_id.trim().is_empty() {
        bail!("attribute: the principal is empty");
    }
    let email = email.as_deref().map(str::trim);
    if email.is_some_and(|email| !email.contains('@') || email.contains(char::is_whitespace)) {
        bail!("--email: that is no e-mail address");
    }
    let theirs = match books.workflow(workflow_id).await? {
        Some(workflow) => list::candidates(&workflow, books).await?,
        None => Vec::new(),
    };
    let theirs: Vec<&OpenSubmission> =
        theirs.iter().filter(|candidate| candidate.principal_id == *principal_id).collect();
    // One of several would be a guess, and the others may yet have made another workflow.
    let submission_id = match theirs.as_slice() {
        [only] => Some(only.submission_id.as_str()),
        _ => None,
    };
    let naming = Naming { workflow_id, principal_id, email, submission_id, at: now };
    let (workflow, principal) = (text::plain(workflow_id), text::plain(principal_id));
    let (released, held, used_submission) = match books.name_owner(naming).await? {
        Named::Done { released, held, used_submission } => (released, held, used_submission),
        Named::UnknownWorkflow => bail!("the ledger knows no workflow {workflow}"),
        Named::Ignored => {
            bail!("workflow {workflow} is older than the ledger, or than what it keeps, and never billed")
        }
        Named::UnknownPrincipal => bail!(
            "{principal} has never submitted anything, so that nobody knows where to send bills: is the name right? If so, \
             say --email ADDR"
        ),
        Named::OtherEmail => bail!("--email: lum.id gave another address for {principal}; leave it out"),
        Named::Posted { principal_id } => bail!(
            "workflow {workflow} is {}'s, and charges of it are posted: that can only be put right at Runmesh",
            text::plain(&principal_id)
        ),
        Named::BeingPosted { principal_id } => bail!(
            "workflow {workflow} is {}'s, and a charge of it is being posted at this moment: look again in a minute",
            text::plain(&principal_id)
        ),
    };
    writeln!(out, "workflow {workflow} is {principal}'s: {} released", text::count(released, "charge"))?;
    if held > 0 {
        let held = text::count(held, "charge");
        writeln!(out, "{held} held until {principal} submits with an e-mail address, or you say --email ADDR")?;
    }
    if let (true, Some(submission)) = (used_submission, submission_id) {
        writeln!(out, "submission {submission} is what made it")?;
    } else if theirs.len() > 1 {
        writeln!(
            out,
            "{} of theirs may be what made it; none is used up",
            text::count(theirs.len() as u64, "submission")
        )?;
    }
    if released > 0 {
        writeln!(out, "posted within ten seconds where `tollgate serve` runs")?;
    }
    Ok(())
}
