use super::*;

fn report() -> Report {
    let ratio = Figure {
        goal: Some(Goal::AtLeast(1.0)),
        ..Figure::new("a.ratio", "Tollgate / floor | either", "×", vec![1.0, 0.75, 1.25], "")
    };
    let missed = Figure { goal: Some(Goal::AtMost(1.1)), ..Figure::new("a.p99_ratio", "p99", "×", vec![1.2], "") };
    let figures = vec![
        Figure::new("a.rate", "Tollgate", "1/s", vec![12345.6, 9000.0], "`h2load -c 2`"),
        Figure::new("a.floor", "floor", "1/s", vec![12000.0, 11000.0], "`h2load -c 2`"),
        ratio,
        missed,
    ];
    Report {
        date: "2026-11-22".into(),
        machine: Machine {
            cpu: "A Processor".into(),
            cores: 2,
            memory_gb: 16,
            kernel: "6.1".into(),
            others: 0.1,
            pinning: "Nothing is pinned.".into(),
        },
        versions: vec![Version { program: "Envoy".into(), version: "1.40.0".into() }],
        rounds: 2,
        sections: vec![Told {
            name: "a".into(),
            title: "First".into(),
            about: "What is compared.\n".into(),
            figures,
            notes: vec!["A note.".into()],
        }],
    }
}

#[test]
fn a_small_report_reads_like_this() {
    let body = "## Where

A Processor, 2 cores, 16 GB, Linux 6.1; 2026-11-22. Nothing is pinned.

Envoy 1.40.0. 2 rounds.

## Goals

| figure | goal | measured | |
|---|---|---|---|
| Tollgate / floor \\| either | ≥ 1.00 × | 1.00 × [0.75 – 1.25, of 3] | met |
| p99 | ≤ 1.10 × | 1.20 × | **not met** |

## First

What is compared.

| figure | measured |
|---|---|
| Tollgate | 10 673 1/s [9000 – 12 346, of 2] |
| floor | 11 500 1/s [11 000 – 12 000, of 2] |

`h2load -c 2`

| figure | measured |
|---|---|
| Tollgate / floor \\| either | 1.00 × [0.75 – 1.25, of 3] |
| p99 | 1.20 × |

- A note.
";
    assert_eq!(report().to_markdown(), format!("{HEAD}{body}"));
}

#[test]
fn a_machine_that_was_busy_is_called_so() {
    let mut report = report();
    assert!(!report.to_markdown().contains("Something else"));
    report.machine.others = 0.9;
    assert!(report.to_markdown().contains("**Something else took 90 % of the processors when this began"));
}

#[test]
fn what_went_into_json_comes_out_again() {
    let report = report();
    assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap(), report);
}

#[test]
fn numbers_have_three_digits_that_count_and_thousands_apart() {
    for (value, text) in [
        (0.0, "0"),
        (0.00123, "0.0012"),
        (0.0995, "0.10"),
        (1.0, "1.00"),
        (9.996, "10.0"),
        (45.67, "45.7"),
        (99.96, "100"),
        (1234.5, "1234"),
        (9999.6, "10 000"),
        (1_234_567.8, "1 234 568"),
        (-12_345.0, "-12 345"),
    ] {
        assert_eq!(number(value), text, "{value}");
    }
}

/// Nobody edits either by hand.
#[test]
fn the_report_that_is_there_is_what_its_figures_make() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let report = Report::from_json(&std::fs::read_to_string(docs.join(JSON)).unwrap()).unwrap();
    assert_eq!(std::fs::read_to_string(docs.join(MARKDOWN)).unwrap(), report.to_markdown());
    for figure in report.sections.iter().flat_map(|section| &section.figures) {
        assert_eq!(figure.goal, crate::goals::of(&figure.id), "{}", figure.id);
    }
}
