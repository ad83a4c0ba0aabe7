use std::io::{Seek, Write};
use std::process::Command;

use serde_json::{Value, json};

use super::*;

fn task(status: &str, usages: &Value) -> Task {
    serde_json::from_value(json!({"task_id": "tsk-1", "workflow_id": "wfl-1", "status": status,
        "assigned_worker": "wrk-9", "usages": usages}))
    .expect("a task")
}

fn usage(status: &str, total_cost: &Value) -> Value {
    json!({"started_at": "2026-11-22T08:00:02Z", "finished_at": "2026-11-22T08:01:14.5Z", "runtime_sec": 72.5,
        "hardware": {}, "cost_per_hour": 1.5, "total_cost": total_cost, "status": status})
}

fn charged(verdict: Verdict) -> Usage {
    match verdict {
        Verdict::Over(Settlement::Usage(usage)) => usage,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_finished_task_costs_what_flowmesh_reported_digit_for_digit() {
    let task = task("DONE", &json!([usage("DONE", &json!(0.030_208_333_333_333_334))]));
    assert_eq!(
        charged(decide(&task)),
        Usage {
            cost: "0.030208333333333334".into(),
            duration_sec: 72,
            cost_per_hour: "1.5".into(),
            task_status: "DONE".into(),
            assigned_worker: Some("wrk-9".into()),
            started_at: Some("2026-11-22T08:00:02Z".into()),
            finished_at: Some("2026-11-22T08:01:14.5Z".into()),
            supplier_id: None,
        }
    );
}

#[test]
fn a_task_that_still_runs_or_has_a_status_of_a_later_version_is_not_over() {
    for status in ["PENDING", "DISPATCHED", "CANCELLING", "PAUSED", "done"] {
        assert_eq!(decide(&task(status, &json!([usage("DONE", &json!(1))]))), Verdict::NotOver);
    }
}

#[test]
fn a_task_that_never_ran_costs_nothing() {
    for status in ["FAILED", "CANCELLED", "DONE"] {
        assert_eq!(decide(&task(status, &json!([]))), Verdict::Over(Settlement::Nothing));
    }
}

#[test]
fn failed_and_cancelled_tasks_with_usage_are_charged_like_done_ones() {
    for status in ["FAILED", "CANCELLED"] {
        let usage = charged(decide(&task(status, &json!([usage(status, &json!("0.25"))]))));
        assert_eq!((usage.cost.as_str(), usage.task_status.as_str()), ("0.25", status));
    }
}

#[test]
fn of_several_usages_the_one_with_the_status_of_the_task_is_charged() {
    let usages = json!([usage("DONE", &json!(2)), usage("FAILED", &json!(1)), usage("FAILED", &json!(3.5))]);
    assert_eq!(charged(decide(&task("DONE", &usages))).cost, "2");
    assert_eq!(charged(decide(&task("FAILED", &usages))).cost, "3.5");
}

#[test]
fn a_cost_that_cannot_be_read_is_never_taken_for_nothing() {
    for cost in [json!(null), json!("much"), json!(-1.5), json!([1])] {
        let verdict = decide(&task("DONE", &json!([usage("DONE", &cost)])));
        assert!(matches!(verdict, Verdict::Unreadable(_)), "{cost}: {verdict:?}");
    }
}

/// Python, in which FlowMesh is written, has the last word: it prints the number as FlowMesh would, and what it ought to
/// become.
#[test]
fn costs_read_as_python_prints_them() {
    let mut costs: Vec<f64> =
        vec![0.0, 1.0, 0.1, 0.42, 1e-4, 9.999e-5, 1e-7, 5e-324, 123.0, 1e15, 1e16, 1.5e16, 1e17, 1e22, 1.7e308];
    // A fixed walk through all magnitudes, so that a failure can be repeated.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    while costs.len() < 5000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        costs.push(f64::from_bits(state >> 1));
        costs.retain(|cost| cost.is_finite());
    }
    let script = "import sys, json\nfrom decimal import Decimal\n\
        for l in sys.stdin: x = float(l); print(json.dumps(x), format(Decimal(str(x)), 'f'))";
    // A file, not a pipe: writing all of a pipe before reading the other one would wait for ever.
    let mut input = tempfile::tempfile().expect("temp file");
    for cost in &costs {
        writeln!(input, "{cost:e}").expect("written");
    }
    input.rewind().expect("rewound");
    let output = Command::new("python3").args(["-c", script]).stdin(input).output().expect("python3 is a prerequisite");
    let lines = String::from_utf8(output.stdout).expect("ASCII");
    assert_eq!(lines.lines().count(), costs.len());
    for line in lines.lines() {
        let (reported, expected) = line.split_once(' ').expect("two words");
        assert_eq!(plain_decimal(reported).as_deref(), Some(expected), "{reported}");
    }
}

#[test]
fn other_spellings_of_a_number_are_written_plainly_and_impossible_ones_are_refused() {
    for (number, plain) in [
        ("7", Some("7")),
        ("1e2", Some("100")),
        ("1.50E+1", Some("15.0")),
        ("2.5e-3", Some("0.0025")),
        ("0e5", Some("0")),
        ("123456789012345678901234567890", Some("123456789012345678901234567890")),
        ("0.3000000000000000444089209850062616169452667236328125", Some("0.30000000000000004")),
        ("-0.1", None),
        ("1e999", None),
        ("1e99999999999999999999", None),
        ("1e-9223372036854775808", None),
    ] {
        assert_eq!(plain_decimal(number).as_deref(), plain, "{number}");
    }
}
