//! The page: from a [`View`] to HTML. Everything that came from outside is escaped by `maud`, and made harmless by [`text`].

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::Series;
use super::verdict::{Finding, Gravity, ago, calm, findings};
use super::view::{ROWS, Shelf, View};
use super::{STYLE, tables, text};
use crate::admin::history::{Counts, LET_THROUGH, MINUTES, REASONS};
use crate::ledger::Backlog;
use crate::ledger::books::Glance;
use crate::upstream::health::{Account, Heard};

/// Seconds between two looks, as long as nobody stops them.
const REFRESH: u32 = 10;
/// After so many minutes without a Check, Envoy is called quiet.
const QUIET: i64 = 300;

/// What each reason means, in the order of [`REASONS`] from the first refusal on.
const MEANINGS: [(&str, &str); REASONS.len() - LET_THROUGH] = [
    ("identity provider", "503: lum.id did not answer"),
    ("too many unknown", "429: too many refused tokens of one source"),
    ("balance", "402: not enough of it at Runmesh"),
    ("inactive token", "401: lum.id does not accept it"),
    ("no bearer", "401: none, malformed, or more than one"),
    ("path", "400: not in normal form"),
    ("given up", "Envoy, or its client, did not wait for the answer"),
    ("other", "a reason that this page does not know"),
];

/// Mark and class of a finding.
fn look(gravity: Option<Gravity>) -> (&'static str, &'static str, &'static str) {
    match gravity {
        Some(Gravity::Failing) => ("✕", "failing", "Failing"),
        Some(Gravity::Attention) => ("!", "attention", "Wants a look"),
        Some(Gravity::Note) => ("i", "note", "Note"),
        None => ("✓", "well", "Well"),
    }
}

pub fn page(view: &View, refresh: bool) -> Markup {
    let findings = findings(view);
    let worst = findings.first().map(|finding| finding.gravity).filter(|gravity| *gravity != Gravity::Note);
    let (mark, class, word) = look(worst);
    let headline = match findings.first() {
        Some(finding) if worst.is_some() => finding.what.clone(),
        _ => "All is well".to_owned(),
    };
    let colour = match worst {
        Some(Gravity::Failing) => "%23b3261e",
        Some(_) => "%238a5300",
        None => "%231a6e3c",
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { (word) " · Tollgate" }
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if refresh { meta http-equiv="refresh" content=(REFRESH); }
                link rel="icon" href={
                    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
                    "<circle cx='8' cy='8' r='7' fill='" (colour) "'/></svg>"
                };
                style { (PreEscaped(STYLE)) }
            }
            body {
                (header(view, refresh))
                main {
                    section class={ "verdict " (class) } aria-labelledby="verdict" {
                        h2 id="verdict" {
                            span class="mark" aria-hidden="true" { (mark) }
                            span { span class="unseen" { (word) ": " } (headline) "." }
                        }
                        @if worst.is_none() { p { (calm(view)) } }
                        @if let Some(first) = findings.first().filter(|_| worst.is_some()) { (advice(first)) }
                        @let rest = findings.get(usize::from(worst.is_some())..).unwrap_or_default();
                        @if !rest.is_empty() { ul class="findings" { @for finding in rest { (listed(finding)) } } }
                    }
                    (peers(view))
                    div class="halves" { (requests(view)) (billing(view)) }
                    @if let Shelf::Read { backlog, glance } = &view.shelf { (ledger(view, backlog, glance)) }
                }
                footer {
                    p {
                        "Nothing on this page moves money. Times are UTC; the last bar of each chart is the minute under way"
                        @if view.hour.minutes.iter().any(Option::is_none) { ", and what is shaded was before the start" }
                        ". Figures for machines are at " a href="/metrics" { "/metrics" } ", the settings at "
                        a href="/config" { "/config" } "."
                    }
                }
            }
        }
    }
}

fn header(view: &View, refresh: bool) -> Markup {
    let up = text::seconds(view.now.duration_since(view.started).as_secs());
    html! {
        header {
            h1 { "Tollgate" }
            p {
                span { "version " (env!("CARGO_PKG_VERSION")) }
                span { "up " (up) }
                span { time datetime=(format!("{:.0}", view.now)) { (view.now.strftime("%F %T").to_string()) } " UTC" }
                @if refresh {
                    span { "new every " (REFRESH) " s, " a href="/?refresh=off" { "stop that" } }
                } @else {
                    span { "stands still, " a href="/" { "keep it current" } }
                }
            }
        }
    }
}

/// What to do about a finding; what stands between backticks is to be typed.
fn advice(finding: &Finding) -> Markup {
    let Finding { then, command, read, .. } = finding;
    html! {
        @if !then.is_empty() || command.is_some() || read.is_some() {
            p class="then" {
                @for (n, part) in then.split('`').enumerate() {
                    @if n % 2 == 1 { code { (part) } } @else { (part) }
                }
                @if let Some(command) = command { " " code { (command) } }
                @if let Some(read) = read { " " span class="read" { "docs/OPERATING.md, “" (read) "”." } }
            }
        }
    }
}

fn listed(finding: &Finding) -> Markup {
    let (mark, class, word) = look(Some(finding.gravity));
    html! {
        li class=(class) {
            p {
                span class="mark" aria-hidden="true" { (mark) }
                span { span class="unseen" { (word) ": " } (finding.what) "." }
            }
            (advice(finding))
        }
    }
}

fn peers(view: &View) -> Markup {
    let posting = view.posting_paused.then_some("posting is paused, with a probe now and then");
    let asking = view.asking_paused.then_some("asking is paused, with a probe now and then");
    html! {
        section aria-labelledby="peers" {
            h2 id="peers" { "Peers" }
            ul class="peers" {
                (peer("lum.id", &view.lum_id, None))
                @match &view.runmesh {
                    Some(runmesh) => (peer("Runmesh", runmesh, posting)),
                    None => li { h3 { "Runmesh" } p class="is" { span class="mark" aria-hidden="true" { "–" } "billing is off" } },
                }
                (peer("FlowMesh", &view.flowmesh, asking))
                (envoy(view))
            }
        }
    }
}

fn peer(name: &str, account: &Account, paused: Option<&str>) -> Markup {
    let (class, mark, word) = match (&account.heard, account.is_failing) {
        (Heard::Nothing, _) => ("", "–", "not asked yet"),
        (_, true) => ("failing", "✕", "fails"),
        (Heard::Failed { .. }, false) => ("attention", "!", "answers again"),
        (Heard::Answers, false) => ("well", "✓", "answers"),
    };
    html! {
        li {
            h3 { (name) }
            p class={ "is " (class) } {
                span class="mark" aria-hidden="true" { (mark) }
                (word)
                @if account.heard != Heard::Nothing { span class="since" { " for " (ago(account.unchanged_for)) } }
            }
            @if let Some(paused) = paused { p { (paused) } }
            @if let Some((when, error)) = &account.last_failure {
                p { "last failure " (ago(*when)) " ago: " (text::foreign(error)) }
            }
        }
    }
}

fn envoy(view: &View) -> Markup {
    let since = view.last_check.map(|at| view.now.duration_since(at).as_secs());
    let (class, mark, word) = match since {
        None => ("", "–", "not heard yet"),
        Some(QUIET..) => ("", "–", "quiet"),
        Some(_) => ("well", "✓", "asks"),
    };
    html! {
        li {
            h3 { "Envoy" }
            p class={ "is " (class) } { span class="mark" aria-hidden="true" { (mark) } (word) }
            @if let Some(since) = since { p { "last Check " (text::seconds(since)) " ago" } }
            p { (text::count(view.log_streams.unsigned_abs(), "log stream")) " open" }
        }
    }
}

fn figure(name: &str, value: &str, more: &str) -> Markup {
    html! {
        div { dt { (name) } dd { span class="value" { (value) } @if !more.is_empty() { span class="more" { (more) } } } }
    }
}

/// One row for each thing that is counted: its name, what it means, its sum, its peak, and its bars.
fn rows(label: &str, rows: &[(&str, &str, Series<'_>)]) -> Markup {
    html! {
        table class="rows" aria-label=(label) {
            thead {
                tr {
                    th scope="col" { "Reason" }
                    th scope="col" class="figure" { "Hour" }
                    th scope="col" class="figure" { "Peak" }
                    th scope="col" { span class="unseen" { "Per minute" } }
                }
            }
            tbody {
                @for (name, meaning, series) in rows {
                    tr {
                        th scope="row" { (name) span class="meaning" { (meaning) } }
                        td class="figure" { (text::number(series.sum())) }
                        td class="figure" { (text::number(series.peak())) }
                        td { (series.spark()) }
                    }
                }
            }
        }
    }
}

fn requests(view: &View) -> Markup {
    let hour = &view.hour;
    let (all, lately) = (hour.sum(MINUTES), hour.sum(5));
    let bound = |counts, of| hour.percentile(counts, of).map_or_else(|| "–".to_owned(), text::at_most);
    let refused: Vec<_> = MEANINGS
        .iter()
        .zip(LET_THROUGH..)
        .map(|((name, meaning), place)| {
            (*name, *meaning, Series::new(hour, format!("refusals ({name})"), "refused", move |c| c.decisions[place]))
        })
        .filter(|(.., series)| series.sum() > 0)
        .collect();
    let lookups = format!("of {} in 1 h", text::number(all.lookups));
    let tokens = format!("{} refused", text::number(view.identity.refused));
    html! {
        section class="card" aria-labelledby="requests" {
            h2 id="requests" { "Requests" }
            (Series::new(hour, "requests let through", "passed", Counts::let_through).chart("Let through"))
            (Series::new(hour, "requests refused", "refused", Counts::refused).chart("Refused"))
            @if !refused.is_empty() { (rows("Why requests were refused, in the last hour", &refused)) }
            dl class="figures" {
                (figure("Cache hit ratio", &text::ratio(all.hits, all.lookups), &lookups))
                (figure("Tokens known", &text::number(view.identity.active), &tokens))
                (figure("Check p50", &bound(&lately, 50), &format!("in 1 h: {}", bound(&all, 50))))
                (figure("Check p99", &bound(&lately, 99), &format!("in 1 h: {}", bound(&all, 99))))
            }
            p class="aside" { "Times of a Check are of the last 5 minutes, as bounds of the histogram." }
        }
    }
}

fn billing(view: &View) -> Markup {
    let hour = &view.hour;
    let body = match &view.shelf {
        Shelf::Off => html! {
            p class="empty" {
                "Billing is off: no ledger is opened and nothing is posted. "
                code { "RUNMESH_BILLING_BASE_URL" } " and " code { "FLOWMESH_BRIDGE_SECRET" } " turn it on."
            }
        },
        shelf => {
            let others = [
                (
                    "tried again",
                    "Runmesh did not take it that time",
                    Series::new(hour, "posts to try again", "retried", |c| c.retried),
                ),
                (
                    "rejected",
                    "Runmesh refused it for good",
                    Series::new(hour, "posts rejected", "refused", |c| c.rejected),
                ),
            ];
            let others: Vec<_> = others.into_iter().filter(|(.., series)| series.sum() > 0).collect();
            html! {
                (Series::new(hour, "charges posted", "posted", |c| c.posted).chart("Posted"))
                @if !others.is_empty() { (rows("Posts that did not go well, in the last hour", &others)) }
                @match shelf {
                    Shelf::Read { backlog, .. } => (figures(view, backlog)),
                    Shelf::Unreadable(why) => p class="empty failing" {
                        span class="mark" aria-hidden="true" { "✕" } "The ledger cannot be read: " (why) "."
                    },
                    Shelf::Off => {}
                }
            }
        }
    };
    html! { section class="card" aria-labelledby="billing" { h2 id="billing" { "Billing" } (body) } }
}

fn figures(view: &View, backlog: &Backlog) -> Markup {
    let oldest = match backlog.pending_charges {
        0 => "none waits".to_owned(),
        _ => format!("the oldest for {}", text::seconds(view.backlog_age())),
    };
    let ownerless = format!("workflows: {}", text::number(backlog.held_workflows));
    html! {
        dl class="figures three" {
            (figure("To be posted", &text::number(backlog.pending_charges), &oldest))
            (figure("Held", &text::number(backlog.held_charges), &ownerless))
            (figure("Rejected", &text::number(backlog.rejected_charges), ""))
            (figure("Tasks to ask after", &text::number(backlog.due_tasks), &format!("{} held", text::number(backlog.held_tasks))))
            (figure("Workflows open", &text::number(backlog.open_workflows), ""))
            (figure("Submissions open", &text::number(backlog.open_submissions), "no workflow known yet"))
        }
    }
}

/// How much is shown of how much, and what shows the rest.
fn extent(shown: usize, all: u64, command: &str) -> Markup {
    html! {
        p class="extent" {
            @if all > shown as u64 { "The latest " (ROWS) " of " (text::number(all)) "; " code { (command) } " lists them all." }
            @else { "All " (text::number(all)) ". " code { (command) } }
        }
    }
}

fn ledger(view: &View, backlog: &Backlog, glance: &Glance) -> Markup {
    let Glance { latest, held, rejected, held_workflows, held_tasks } = glance;
    let now = view.now;
    let part = |title: &str, shown: usize, all: u64, command: &str, table: Markup| {
        html! { @if shown > 0 { section class="card" { h2 { (title) } (extent(shown, all, command)) (table) } } }
    };
    let list_held = "tollgate ledger list --held";
    html! {
        (part("Rejected charges", rejected.len(), backlog.rejected_charges, "tollgate ledger list --state rejected",
            tables::stuck(rejected, "Rejected charges", now)))
        (part("Workflows that nobody owns", held_workflows.len(), backlog.held_workflows, list_held,
            tables::held_workflows(held_workflows, now)))
        (part("Held charges", held.len(), backlog.held_charges, "tollgate ledger list --state held",
            tables::stuck(held, "Held charges", now)))
        (part("Tasks whose cost cannot be read", held_tasks.len(), backlog.held_tasks, list_held,
            tables::held_tasks(held_tasks, now)))
        section class="card" aria-labelledby="latest" {
            h2 id="latest" { "Latest charges" }
            @if latest.is_empty() {
                p class="empty" { "No charge yet. The first one is here a moment after a task has ended." }
            } @else {
                p class="extent" { "The last " (text::count(latest.len() as u64, "charge")) " to be settled. " code { "tollgate ledger list" } }
                (tables::latest(latest, now))
            }
        }
    }
}
