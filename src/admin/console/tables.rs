//! Charges, and what is held. On a narrow screen each row becomes a card.

use jiff::Timestamp;
use maud::{Markup, html};

use super::text;
use crate::ledger::books::{Charge, ChargeState, Task, Workflow};

/// A table whose rows turn to cards. The roles stay when the style takes the display of a table from it.
pub fn table(class: &str, label: &str, columns: &[&str], rows: &[Markup]) -> Markup {
    html! {
        table class=(class) role="table" aria-label=(label) {
            thead role="rowgroup" {
                tr role="row" { @for column in columns { th role="columnheader" scope="col" { (column) } } }
            }
            tbody role="rowgroup" { @for row in rows { (row) } }
        }
    }
}

fn cell(class: &str, content: &Markup) -> Markup {
    html! { td role="cell" class=(class) { (content) } }
}

/// An id of somebody else's, or a dash.
fn id(of: Option<&str>, none: &str) -> Markup {
    html! {
        @if let Some(id) = of { span class="id" { (text::foreign(id)) } } @else { span class="none" { (none) } }
    }
}

/// Mark, word and colour of a state.
fn state(state: ChargeState) -> Markup {
    let mark = match state {
        ChargeState::Pending => "…",
        ChargeState::Held => "‖",
        ChargeState::Rejected => "✕",
        ChargeState::Posted => "✓",
    };
    let word = state.as_str();
    html! { span class={ "state " (word) } { span class="mark" aria-hidden="true" { (mark) } (word) } }
}

fn cost(charge: &Charge) -> Markup {
    html! { span title={ "$" (charge.cost) } { (text::dollars(&charge.cost)) } }
}

/// Why a charge is where it is.
fn reason(charge: &Charge) -> String {
    match (charge.state, charge.hold_reason.as_deref(), &charge.last_error) {
        (ChargeState::Held, Some("no_owner"), _) => "nobody is known to own it".to_owned(),
        (ChargeState::Held, Some("no_email"), _) => "its owner was not seen with an e-mail address".to_owned(),
        (ChargeState::Held, Some(other), _) => other.to_owned(),
        (ChargeState::Rejected | ChargeState::Pending, _, Some(error)) => error.clone(),
        _ => String::new(),
    }
}

/// The newest charges, whatever became of them.
pub fn latest(charges: &[Charge], now: Timestamp) -> Markup {
    let row = |charge: &Charge| {
        html! {
            tr role="row" {
                (cell("time", &text::moment(charge.created_at, now)))
                (cell("task", &id(Some(&charge.task_id), "")))
                (cell("workflow", &id(charge.workflow_id.as_deref(), "no workflow")))
                (cell("principal", &id(charge.principal_id.as_deref(), "no owner")))
                (cell("cost", &cost(charge)))
                (cell("what", &state(charge.state)))
            }
        }
    };
    let columns = ["Settled", "Task", "Workflow", "Principal", "Cost", "State"];
    table("cards latest", "The latest charges", &columns, &charges.iter().map(row).collect::<Vec<_>>())
}

/// Charges that go nowhere by themselves, with their reason.
pub fn stuck(charges: &[Charge], label: &str, now: Timestamp) -> Markup {
    let row = |charge: &Charge| {
        html! {
            tr role="row" {
                (cell("time", &text::moment(charge.created_at, now)))
                (cell("task", &id(Some(&charge.task_id), "")))
                (cell("principal", &id(charge.principal_id.as_deref(), "no owner")))
                (cell("cost", &cost(charge)))
                (cell("what", &state(charge.state)))
                (cell("why", &text::foreign(&reason(charge))))
            }
        }
    };
    let columns = ["Settled", "Task", "Principal", "Cost", "State", "Reason"];
    table("cards stuck", label, &columns, &charges.iter().map(row).collect::<Vec<_>>())
}

pub fn held_workflows(workflows: &[Workflow], now: Timestamp) -> Markup {
    let row = |workflow: &Workflow| {
        html! {
            tr role="row" {
                (cell("time", &text::moment(workflow.submitted_at.unwrap_or(workflow.noted_at), now)))
                (cell("task", &id(Some(&workflow.workflow_id), "")))
                (cell("why", &text::foreign(workflow.hold_reason.as_deref().unwrap_or_default())))
            }
        }
    };
    let rows: Vec<Markup> = workflows.iter().map(row).collect();
    table("cards held", "Workflows that nobody owns", &["Submitted", "Workflow", "Reason"], &rows)
}

pub fn held_tasks(tasks: &[Task], now: Timestamp) -> Markup {
    let asked = |task: &Task| task.asked_at.map_or_else(|| html! { "never" }, |at| text::moment(at, now));
    let row = |task: &Task| {
        html! {
            tr role="row" {
                (cell("time", &asked(task)))
                (cell("task", &id(Some(&task.task_id), "")))
                (cell("why", &text::foreign(task.hold_reason.as_deref().unwrap_or_default())))
            }
        }
    };
    let rows: Vec<Markup> = tasks.iter().map(row).collect();
    table("cards held", "Tasks whose cost cannot be read", &["Asked", "Task", "Reason"], &rows)
}
