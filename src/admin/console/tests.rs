//! The whole page from made-up views: what is told in which order, and an hour of load in its charts.

use std::time::Duration;

use jiff::Timestamp;

use super::page::page;
use super::verdict::{Finding, Gravity, findings};
use super::view::{Shelf, View};
use crate::admin::history::{History, MINUTES};
use crate::identity::Figures;
use crate::ledger::Backlog;
use crate::ledger::books::{Charge, ChargeState, Glance};
use crate::telemetry::{Cache, DecisionLabels, KindLabels, Metrics, OutcomeLabels};
use crate::upstream::health::{Account, Heard};

/// Where findings send their readers.
const MANUAL: &str = include_str!("../../../docs/OPERATING.md");

/// So many minutes and seconds after a quarter past two.
fn at(minute: i64, second: i64) -> Timestamp {
    Timestamp::from_second(1_795_270_500 + minute * 60 + second).expect("valid")
}

fn answers() -> Account {
    let unchanged_for = Duration::from_hours(2);
    Account { heard: Heard::Answers, unchanged_for, is_failing: false, last_failure: None }
}

fn fails(error: &str) -> Account {
    let ago = Duration::from_secs(3);
    Account {
        heard: Heard::Failed { ago, error: error.to_owned() },
        unchanged_for: Duration::from_mins(4),
        is_failing: true,
        last_failure: Some((ago, error.to_owned())),
    }
}

/// A healthy Tollgate at the end of an hour in which `each` minute brought something.
fn view(each: impl Fn(u64, &Metrics)) -> View {
    let metrics = Metrics::unread();
    let history = History::new(&metrics, at(0, 0));
    for (minute, number) in (0..).zip(0..MINUTES as u64) {
        let _ = history.hour(at(minute, 1));
        each(number, &metrics);
    }
    View {
        now: at(59, 42),
        started: at(0, 0),
        draining: false,
        hour: history.hour(at(59, 42)),
        identity: Figures { active: 1234, refused: 12, sources: 3, in_flight: 0, waiting: 0 },
        lum_id: answers(),
        flowmesh: answers(),
        runmesh: Some(answers()),
        posting_paused: false,
        asking_paused: false,
        log_streams: 4,
        last_check: Some(at(59, 40)),
        shelf: Shelf::Read { backlog: Backlog::default(), glance: Glance::default() },
        warnings: Vec::new(),
        certificate_end: None,
    }
}

fn calm() -> View {
    view(|_, _| {})
}

fn with_backlog(backlog: Backlog) -> View {
    View { shelf: Shelf::Read { backlog, glance: Glance::default() }, ..calm() }
}

fn decided(metrics: &Metrics, reason: &'static str, times: u64) {
    metrics.decisions.get_or_create(&DecisionLabels { reason }).inc_by(times);
}

fn submitted(metrics: &Metrics, is_time: bool) {
    if is_time {
        metrics.submissions.get_or_create(&OutcomeLabels { outcome: "opened" }).inc();
    }
}

/// Of an hour's minutes, the one under way.
fn is_last(minute: u64) -> bool {
    minute + 1 == MINUTES as u64
}

/// Whether a section there is called so.
fn is_in_the_manual(name: &str) -> bool {
    MANUAL.contains(&format!("### {name}\n"))
}

/// That this is the one thing that is told, with this to do about it.
fn assert_told(view: &View, gravity: Gravity, what: &str, then: &str) {
    let found = findings(view);
    let [Finding { gravity: told, what: said, then: advised, .. }] = found.as_slice() else {
        panic!("{what}: {found:?}")
    };
    assert_eq!(*told, gravity, "{said}");
    assert!(said.contains(what) && advised.contains(then), "{said} / {advised}");
    let page = page(view, true).into_string();
    assert_eq!(page.contains("All is well."), gravity == Gravity::Note, "{said}");
    assert!(found[0].read.is_none_or(is_in_the_manual), "the manual has no {:?}", found[0].read);
}

#[test]
fn each_trouble_is_told_with_its_gravity_and_with_what_to_do() {
    use Gravity::{Attention, Failing, Note};
    for (view, gravity, what, then) in [
        (View { draining: true, ..calm() }, Attention, "is stopping", "answered to the end"),
        (
            View { shelf: Shelf::Unreadable("disk I/O error".into()), ..calm() },
            Failing,
            "cannot be read: disk I/O error",
            "permissions",
        ),
        (
            View { lum_id: fails("status 500"), ..calm() },
            Failing,
            "lum.id does not answer: status 500",
            "LUM_ID_BASE_URL",
        ),
        (
            View { runmesh: Some(fails("status 403")), posting_paused: true, ..calm() },
            Failing,
            "does not accept the secret",
            "FLOWMESH_BRIDGE_SECRET",
        ),
        (
            View { runmesh: Some(fails("time limit exceeded")), posting_paused: true, ..calm() },
            Failing,
            "Nothing is posted to Runmesh: time limit exceeded",
            "None is lost",
        ),
        (
            View { runmesh: Some(fails("status 500")), ..calm() },
            Attention,
            "Runmesh fails: status 500",
            "No charge waits",
        ),
        (View { posting_paused: true, ..calm() }, Failing, "it failed several times in a row", "by itself"),
        (View { flowmesh: fails("status 503"), ..calm() }, Failing, "own questions: status 503", "none is forgotten"),
        (View { flowmesh: fails("x"), shelf: Shelf::Off, ..calm() }, Failing, "own questions", "without the supplier"),
        (View { asking_paused: true, ..calm() }, Failing, "own questions", "FLOWMESH_BASE_URL"),
        (
            with_backlog(Backlog { pending_charges: 2, oldest_pending: Some(at(30, 0)), ..Backlog::default() }),
            Attention,
            "the oldest for 29 min",
            "last try",
        ),
        (
            with_backlog(Backlog { rejected_charges: 2, ..Backlog::default() }),
            Attention,
            "refused 2 charges for good",
            "retry",
        ),
        (
            with_backlog(Backlog { held_workflows: 1, held_charges: 4, ..Backlog::default() }),
            Attention,
            "1 workflow has no owner",
            "attribute",
        ),
        (with_backlog(Backlog { held_charges: 1, ..Backlog::default() }), Attention, "1 charge is held", "by itself"),
        (
            with_backlog(Backlog { held_tasks: 3, ..Backlog::default() }),
            Attention,
            "cost of 3 tasks",
            "within the hour",
        ),
        (with_backlog(Backlog { gone_tasks: 3, ..Backlog::default() }), Note, "FlowMesh forgot 3 tasks", "not billed"),
        (View { warnings: vec!["guard is on".into()], ..calm() }, Note, "Configuration: guard is on", ""),
    ] {
        assert_told(&view, gravity, what, then);
    }
}

#[test]
fn a_certificate_that_ends_and_a_task_that_nobody_comes_to_are_told_in_time() {
    use Gravity::{Attention, Failing};
    for (view, gravity, what, then) in [
        (
            with_backlog(Backlog { due_tasks: 1, oldest_due_task: Some(at(-120, 0)), ..Backlog::default() }),
            Attention,
            "has been due for 2 h",
            "FlowMesh answers",
        ),
        (View { certificate_end: Some(at(59, 41)), ..calm() }, Failing, "has ended", "TOLLGATE_TLS_CERT"),
        (View { certificate_end: Some(at(4379, 43)), ..calm() }, Attention, "ends in 3 days", "TOLLGATE_TLS_CERT"),
    ] {
        assert_told(&view, gravity, what, then);
    }
}

#[test]
fn what_went_wrong_within_minutes_is_told_also_when_it_goes_well_again() {
    let refused = |reason| view(move |minute, metrics| decided(metrics, reason, if is_last(minute) { 7 } else { 0 }));
    let ledger_error = view(|minute, metrics| {
        if is_last(minute) {
            metrics.ledger_errors.get_or_create(&KindLabels { kind: "claim" }).inc();
        }
    });
    let unjudged = view(|minute, metrics| {
        if is_last(minute) {
            metrics.preflights.get_or_create(&OutcomeLabels { outcome: "malformed" }).inc();
        }
    });
    let secret = view(|minute, metrics| {
        if minute == 5 {
            metrics.secret_reloads.get_or_create(&OutcomeLabels { outcome: "failed" }).inc();
        }
    });
    let unlogged = View { log_streams: 0, ..view(|minute, metrics| submitted(metrics, is_last(minute + 1))) };
    for (view, what, then) in [
        (ledger_error, "The ledger failed once", "log"),
        (refused("too_many_unknown"), "7 requests were refused in the last 5 minutes", "address"),
        (refused("identity_unavailable"), "7 requests were refused in the last 5 minutes over lum.id", "last failure"),
        (unjudged, "1 submission went through in the last 5 minutes without a balance check", "as agreed"),
        (secret, "A changed secret file could not be used, once in the last hour", "from before"),
        (unlogged, "no Envoy sends its access log", "envoy-config"),
    ] {
        assert_told(&view, Gravity::Attention, what, then);
    }
}

#[test]
fn what_is_over_or_not_yet_long_is_no_trouble() {
    let fresh = Backlog { pending_charges: 2, oldest_pending: Some(at(55, 0)), ..Backlog::default() };
    for view in [
        calm(),
        with_backlog(fresh),
        view(|minute, metrics| {
            if minute < 50 {
                decided(metrics, "too_many_unknown", 7);
            }
        }),
        view(|minute, metrics| {
            if minute < 50 {
                decided(metrics, "identity_unavailable", 7);
            }
        }),
        View { log_streams: 0, ..view(|minute, metrics| submitted(metrics, is_last(minute))) },
        View { log_streams: 0, ..view(|minute, metrics| submitted(metrics, minute < 50)) },
        with_backlog(Backlog { due_tasks: 1, oldest_due_task: Some(at(30, 0)), ..Backlog::default() }),
        View { certificate_end: Some(at(30 * 1440, 0)), ..calm() },
        View { runmesh: None, shelf: Shelf::Off, ..calm() },
        View { lum_id: Account { is_failing: false, ..fails("status 500") }, ..calm() },
    ] {
        assert_eq!(findings(&view), Vec::new());
    }
}

/// An hour as a small site has it.
fn an_hour(minute: u64, metrics: &Metrics) {
    let wave = (minute * 7) % 23;
    decided(metrics, "allowed", 40 + 2 * minute + wave * 3);
    decided(metrics, "public", 2);
    decided(metrics, "inactive_token", wave / 4);
    decided(metrics, "missing_bearer", u64::from(minute.is_multiple_of(9)));
    if (20..26).contains(&minute) {
        decided(metrics, "identity_unavailable", 30 - minute);
    }
    metrics.identity_cache.get_or_create(&OutcomeLabels { outcome: "hit" }).inc_by(97);
    metrics.identity_cache.get_or_create(&OutcomeLabels { outcome: "miss" }).inc_by(3);
    metrics.posts.get_or_create(&OutcomeLabels { outcome: "posted" }).inc_by(wave / 2);
    metrics.check_times.of(Cache::Hit).observe(0.000_04);
}

#[test]
fn an_hour_of_load_is_drawn_with_a_scale_and_told_in_words() {
    let page = page(&view(an_hour), false).into_string();
    for shown in [
        "<span>14:15</span><span>14:45</span><span>15:14</span>",
        "<span>300</span><span class=\"half\">150</span><span>0</span>",
        "requests let through since 14:15 UTC; at most",
        "at 15:14, 203 in the last whole minute",
        "45 refusals (identity provider) since 14:15 UTC; at most 10 in a minute, at 14:35, 0 in the last",
        "<span class=\"value\">97.0 %</span>",
        "≤ 0.05 ms",
        "identity provider",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
    assert!(!page.contains("given up"), "what did not happen has no row");
}

#[test]
fn charges_of_each_state_are_told_by_word_and_with_their_reason() {
    let charge = |state: ChargeState, hold_reason: Option<&str>, last_error: Option<&str>| Charge {
        number: 1,
        task_id: format!("tsk-{}", state.as_str()),
        workflow_id: None,
        principal_id: Some("user-1".into()),
        email: None,
        supplier_id: None,
        cost: "0.1".into(),
        duration_sec: 1,
        cost_per_hour: "1".into(),
        task_status: "DONE".into(),
        assigned_worker: None,
        started_at: None,
        finished_at: None,
        state,
        hold_reason: hold_reason.map(str::to_owned),
        attempts: 0,
        post_at: at(0, 0),
        leased_until: at(0, 0),
        last_error: last_error.map(str::to_owned),
        created_at: at(0, 0),
        posted_at: None,
    };
    let glance = Glance {
        latest: ChargeState::ALL.map(|state| charge(state, None, None)).into(),
        held: vec![charge(ChargeState::Held, Some("no_email"), None)],
        rejected: vec![charge(ChargeState::Rejected, None, Some("status 422: no"))],
        ..Glance::default()
    };
    let backlog = Backlog { held_charges: 1, rejected_charges: 1000, ..Backlog::default() };
    let page = page(&View { shelf: Shelf::Read { backlog, glance }, ..calm() }, true).into_string();
    for state in ChargeState::ALL {
        assert!(page.contains(&format!("</span>{}</span>", state.as_str())), "{state:?}");
    }
    for shown in [
        "its owner was not seen with an e-mail address",
        "status 422: no",
        "The latest 20 of 1\u{202f}000; <code>tollgate ledger list --state rejected</code>",
        "no workflow",
    ] {
        assert!(page.contains(shown), "{shown} is not in {page}");
    }
}
