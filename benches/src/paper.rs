//! "On paper": what the measured costs of one piece come to for many users.

use std::fmt::Write as _;

use crate::{figure::Figure, section::Told};

/// Users for whom it is calculated.
const USERS: [f64; 3] = [100.0, 10_000.0, 1_000_000.0];

// What is assumed of them. Whoever knows better multiplies.
/// Requests of an active user in a minute: mostly a client that polls its task every ten seconds.
const REQUESTS_A_MINUTE: f64 = 6.0;
/// Tasks of a user in a day.
const TASKS_A_DAY: f64 = 20.0;
/// How much of the day's work falls into its busiest hour.
const BUSIEST_HOUR: f64 = 0.2;
const TASKS_OF_A_WORKFLOW: f64 = 4.0;
/// What FlowMesh, lum.id and Runmesh take to answer.
const ANSWER_SECONDS: f64 = 0.02;
/// How long a workflow runs; it is asked after 5, 15, 35, 75, 155, 315 and 615 s later.
const SWEEPS_OF_A_WORKFLOW: f64 = 7.0;
/// A result is there some moments before its task is over, so that every other task is asked after twice.
const ASKS_OF_A_TASK: f64 = 1.5;
/// Of a task the log tells of its result, and twice of somebody who sees it done; of a workflow of its submission.
const EVENTS_OF_A_TASK: f64 = 3.0 + 1.0 / TASKS_OF_A_WORKFLOW;
/// One workflow in FlowMesh's list: `GET /api/v1/workflows?view=status`.
const BYTES_IN_THE_LIST: f64 = 250.0;

// What Tollgate is built with: the fields of `config::Limits`, and constants of its modules.
const CACHE: f64 = 10_000.0;
/// An answer of lum.id's is asked for again in its second half, when the next request comes.
const REFRESH_SECONDS: f64 = 30.0 + 60.0 / REQUESTS_A_MINUTE / 2.0;
const INTROSPECTIONS_AT_ONCE: f64 = 192.0 + 64.0;
const SETTLING_AT_ONCE: f64 = 8.0;
const SWEEPING_AT_ONCE: f64 = 4.0;
const RETENTION_DAYS: f64 = 90.0;
/// The longest list of workflows that is read (256 MiB).
const LIST_BYTES: f64 = 268_435_456.0;

/// The measured costs.
#[derive(Debug, Clone, Copy)]
struct Costs {
    /// Processor time in seconds.
    check: f64,
    unknown_check: f64,
    entry: f64,
    settle: f64,
    sweep: f64,
    post: f64,
    /// Pieces per second on one core.
    durable_rate: f64,
    settle_rate: f64,
    sweep_rate: f64,
    post_rate: f64,
    bytes_per_charge: f64,
    bytes_per_token: f64,
}

/// What so many users are, in numbers.
#[derive(Debug, Clone, Copy)]
struct Load {
    users: f64,
    checks: f64,
    known: f64,
    introspections: f64,
    tasks_a_day: f64,
    tasks: f64,
    cores: f64,
    ledger_bytes: f64,
    settles: f64,
    sweeps: f64,
    /// What FlowMesh lists of workflows after as many days as the ledger keeps; it forgets none by itself.
    list_bytes: f64,
}

/// Something of which there is only so much.
struct Resource {
    name: &'static str,
    /// What is wanted, and what there is.
    wanted: f64,
    there: f64,
    unit: &'static str,
    then: &'static str,
}

impl Resource {
    fn use_of(&self) -> f64 {
        self.wanted / self.there
    }
}

/// The text of the section, in Markdown without a heading; `None` when a figure that it needs was not measured.
///
/// It is made from the figures alone whenever the report is rendered, so that it can never disagree with them.
#[must_use]
pub fn on_paper(sections: &[Told]) -> Option<String> {
    let costs = Costs::measured(sections)?;
    let loads = USERS.map(|users| Load::of(users, &costs));
    let mut text = assumptions();
    table(&loads, &mut text);
    let _ = write!(text, "\nWhat breaks first, in the busiest hour:\n\n");
    for load in &loads {
        breaks(load, &costs, &mut text);
    }
    let _ = write!(
        text,
        "\nOne replica is what there is: the SQLite ledger has one writer and one process, which a lock file sees to. A replica \
         that shares the load needs a ledger that can be shared. What FlowMesh itself can answer is not in here.\n"
    );
    Some(text)
}

impl Costs {
    fn measured(sections: &[Told]) -> Option<Self> {
        let figure = |id: &str| {
            let figures = sections.iter().flat_map(|section| &section.figures);
            let median = figures.filter(|figure| figure.id == id).map(Figure::median).next()?;
            (median.is_finite() && median > 0.0).then_some(median)
        };
        let micros = |id: &str| figure(id).map(|micros| micros / 1e6);
        Some(Self {
            check: micros("growth.check_many")?,
            unknown_check: micros("growth.check_unknown")?,
            entry: 1.0 / figure("access_log.entries_per_core_second")?,
            settle: micros("growth.settle_many")?,
            sweep: micros("growth.sweep_many")?,
            durable_rate: figure("access_log.durable_per_second")?,
            settle_rate: figure("growth.settle_rate")?,
            sweep_rate: figure("growth.sweep_rate")?,
            post: micros("billing.cost")?,
            post_rate: figure("billing.entries_per_second")?,
            bytes_per_charge: figure("reading.bytes_per_charge")?,
            bytes_per_token: figure("growth.bytes_per_token")?,
        })
    }
}

impl Load {
    fn of(users: f64, costs: &Costs) -> Self {
        let checks = users * REQUESTS_A_MINUTE / 60.0;
        // The one who was longest away makes room: with more tokens than room, and all of them busy, the next request of a token
        // finds it remembered with this chance at best.
        let known = (CACHE / users).min(1.0);
        let introspections = known * users / REFRESH_SECONDS + (1.0 - known) * checks;
        let tasks_a_day = users * TASKS_A_DAY;
        let tasks = tasks_a_day * BUSIEST_HOUR / 3600.0;
        let workflows = tasks / TASKS_OF_A_WORKFLOW;
        let (settles, sweeps) = (tasks * ASKS_OF_A_TASK, workflows * SWEEPS_OF_A_WORKFLOW);
        // Nearly every request is one whose log entry is wanted.
        let cores = checks * (known * costs.check + (1.0 - known) * costs.unknown_check + costs.entry)
            + tasks * EVENTS_OF_A_TASK / costs.durable_rate
            + settles * costs.settle
            + sweeps * costs.sweep
            + tasks * costs.post;
        Self {
            users,
            checks,
            known,
            introspections,
            tasks_a_day,
            tasks,
            cores,
            ledger_bytes: tasks_a_day * RETENTION_DAYS * costs.bytes_per_charge,
            settles,
            sweeps,
            list_bytes: tasks_a_day / TASKS_OF_A_WORKFLOW * RETENTION_DAYS * BYTES_IN_THE_LIST,
        }
    }

    /// Everything that may be too little.
    fn resources(&self, costs: &Costs) -> Vec<Resource> {
        let resource = |name, wanted, there, unit, then| Resource { name, wanted, there, unit, then };
        vec![
            resource(
                "tokens in memory",
                self.users,
                CACHE,
                "",
                "Checks of those beyond wait for lum.id; the bound is `identity_cache_entries`, which is no setting",
            ),
            resource(
                "calls to lum.id a second",
                self.introspections,
                INTROSPECTIONS_AT_ONCE / ANSWER_SECONDS,
                "/s",
                "Checks wait for a place for 0.3 s and are then answered 503",
            ),
            resource(
                "events a second, durable",
                self.tasks * EVENTS_OF_A_TASK,
                costs.durable_rate,
                "/s",
                "the log streams are not read, and Envoy's buffers fill: then entries are lost and the sweep finds the tasks",
            ),
            resource(
                "tasks asked after a second",
                self.settles,
                costs.settle_rate.min(SETTLING_AT_ONCE / ANSWER_SECONDS),
                "/s",
                "charges are written later than their tasks end; `settling_concurrency` / FlowMesh's answer time bounds it",
            ),
            resource(
                "workflows swept a second",
                self.sweeps,
                costs.sweep_rate.min(SWEEPING_AT_ONCE / ANSWER_SECONDS),
                "/s",
                "tasks of which no log told are found later; `sweeping_concurrency` / FlowMesh's answer time bounds it",
            ),
            resource(
                "charges posted a second",
                self.tasks,
                costs.post_rate,
                "/s",
                "the outbox grows over the busiest hour and empties after it",
            ),
            resource(
                "FlowMesh's list of workflows after 90 days",
                self.list_bytes / 1e6,
                LIST_BYTES / 1e6,
                " MB",
                "the list that is compared with the ledger every ten minutes is too long to be read: what no log told of is not \
                 found, and nothing is pruned",
            ),
            resource("cores", self.cores, 8.0, "", "everything waits; eight cores are taken for what one machine has"),
        ]
    }
}

fn assumptions() -> String {
    format!(
        "Assumed of each active user: one token; {REQUESTS_A_MINUTE} requests a minute, nearly all of which are logged; \
         {TASKS_A_DAY} tasks a day in workflows of {TASKS_OF_A_WORKFLOW}, {} % of them in the busiest hour; workflows that run for \
         ten minutes ({SWEEPS_OF_A_WORKFLOW} sweeps), {ASKS_OF_A_TASK} questions a task, {EVENTS_OF_A_TASK} durable events a task. Of \
         the others: lum.id, FlowMesh and Runmesh answer in {} ms, and one workflow has {BYTES_IN_THE_LIST} bytes in FlowMesh's list. \
         Of Tollgate, as it ships: {} tokens in memory, each asked for again every {REFRESH_SECONDS} s while it is in use; \
         {RETENTION_DAYS} days in the ledger. All else is measured above; rates are those of the busiest hour.\n\n",
        BUSIEST_HOUR * 100.0,
        ANSWER_SECONDS * 1e3,
        number(CACHE),
    )
}

fn table(loads: &[Load], text: &mut String) {
    let mut row = |name: &str, value: &dyn Fn(&Load) -> String| {
        let cells: Vec<String> = loads.iter().map(value).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    };
    text_head(&mut row);
    row("Checks a second", &|load| number(load.checks));
    row("…of tokens that are remembered", &|load| format!("{} %", number(load.known * 100.0)));
    row("Calls to lum.id a second", &|load| number(load.introspections));
    row("Tasks a day", &|load| number(load.tasks_a_day));
    row("Tasks a second", &|load| number(load.tasks));
    row("Calls to FlowMesh a second", &|load| number(load.settles + load.sweeps));
    row("Posts to Runmesh a second", &|load| number(load.tasks));
    row("Cores busy in Tollgate", &|load| number(load.cores));
    row("Machines of eight cores", &|load| number((load.cores / 8.0).ceil()));
    row("Ledger after 90 days", &|load| bytes(load.ledger_bytes));
}

fn text_head(row: &mut impl FnMut(&str, &dyn Fn(&Load) -> String)) {
    row("Active users", &|load| number(load.users));
    row("---", &|_| "---:".to_owned());
}

fn breaks(load: &Load, costs: &Costs, text: &mut String) {
    let mut resources = load.resources(costs);
    resources.sort_by(|one, other| other.use_of().total_cmp(&one.use_of()));
    let told = |resource: &Resource| {
        let Resource { name, wanted, there, unit, .. } = resource;
        format!("{name}, {} of {}{unit}", number(*wanted), number(*there))
    };
    let over: Vec<&Resource> = resources.iter().filter(|resource| resource.use_of() > 1.0).collect();
    let users = number(load.users);
    let _ = match (over.split_first(), resources.first()) {
        (Some((first, others)), _) => {
            let others: Vec<String> = others.iter().map(|resource| told(resource)).collect();
            let others = if others.is_empty() { String::new() } else { format!(" Then: {}.", others.join("; ")) };
            let reached = number(load.users / first.use_of());
            writeln!(text, "- {users} users: **{}**, reached at {reached} users: {}.{others}", told(first), first.then)
        }
        (None, Some(first)) => writeln!(
            text,
            "- {users} users: nothing. Nearest is {} ({} %): {}.",
            told(first),
            number(first.use_of() * 100.0),
            first.then
        ),
        (None, None) => Ok(()),
    };
    if load.bytes_in_memory(costs) > 0.0 && load.users > CACHE {
        let _ = writeln!(
            text,
            "  Memory for all {users} tokens would be {}, at {} each.",
            bytes(load.bytes_in_memory(costs)),
            bytes(costs.bytes_per_token)
        );
    }
}

impl Load {
    fn bytes_in_memory(&self, costs: &Costs) -> f64 {
        self.users * costs.bytes_per_token
    }
}

/// Three digits that say something, thousands apart.
fn number(value: f64) -> String {
    if value > 0.0 && value < 0.005 {
        return "< 0.01".to_owned();
    }
    if value < 99.95 {
        let digits = if value < 0.9995 { 2 } else { usize::from(value < 9.995) };
        let text = format!("{value:.digits$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let text = format!("{value:.0}");
    let mut grouped = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at) % 3 == 0 {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    grouped
}

fn bytes(value: f64) -> String {
    let (unit, per) = match value {
        value if value >= 1e12 => ("TB", 1e12),
        value if value >= 1e9 => ("GB", 1e9),
        value if value >= 1e6 => ("MB", 1e6),
        value if value >= 1e3 => ("kB", 1e3),
        _ => ("B", 1.0),
    };
    format!("{} {unit}", number(value / per))
}

#[cfg(test)]
mod tests;
