use super::*;

const MEASURED: [(&str, f64); 12] = [
    ("growth.check_many", 40.0),
    ("growth.check_unknown", 150.0),
    ("access_log.entries_per_core_second", 200_000.0),
    ("growth.settle_many", 500.0),
    ("growth.sweep_many", 400.0),
    ("access_log.durable_per_second", 30_000.0),
    ("growth.settle_rate", 1000.0),
    ("growth.sweep_rate", 1000.0),
    ("billing.cost", 100.0),
    ("billing.entries_per_second", 2000.0),
    ("reading.bytes_per_charge", 1000.0),
    ("growth.bytes_per_token", 800.0),
];

fn sections(figures: &[(&str, f64)]) -> Vec<Told> {
    let figures = figures.iter().map(|(id, value)| Figure::new(id, "", "", vec![*value], "")).collect();
    let [name, title, about] = ["a", "A", ""].map(ToOwned::to_owned);
    vec![Told { name, title, about, figures, notes: Vec::new() }]
}

#[test]
fn without_every_figure_there_is_nothing_to_calculate_from() {
    assert!(on_paper(&sections(&MEASURED)).is_some());
    for (missing, _) in MEASURED {
        let figures: Vec<_> = MEASURED.into_iter().filter(|(id, _)| *id != missing).collect();
        assert_eq!(on_paper(&sections(&figures)), None, "{missing}");
    }
}

#[test]
fn what_is_calculated_can_be_calculated_by_hand() {
    let costs = Costs::measured(&sections(&MEASURED)).unwrap();
    let about =
        |value: f64, expected: f64| assert!((value / expected - 1.0).abs() < 0.001, "{value} is not {expected}");
    let load = Load::of(10_000.0, &costs);
    about(load.checks, 1000.0);
    about(load.introspections, 10_000.0 / 35.0);
    about(load.tasks_a_day, 200_000.0);
    about(load.tasks, 40_000.0 / 3600.0);
    about(load.ledger_bytes, 18e9);
    about(load.list_bytes, 50_000.0 * 90.0 * 250.0);
    // Checks and entries 45 ms, events 1.2 ms, settling 8.3 ms, sweeping 7.8 ms, posting 1.1 ms in each second.
    about(load.cores, 0.0450 + 0.0012 + 0.00833 + 0.00778 + 0.00111);
    let load = Load::of(1_000_000.0, &costs);
    about(load.known, 0.01);
    about(load.introspections, 10_000.0 / 35.0 + 99_000.0);
}

#[test]
fn what_breaks_first_is_what_is_overdrawn_most() {
    let text = on_paper(&sections(&MEASURED)).unwrap();
    assert!(text.contains("\n\n| Active users | 100 | 10 000 | 1 000 000 |\n| --- | ---: | ---: | ---: |\n"), "{text}");
    assert!(text.contains("| Ledger after 90 days | 180 MB | 18 GB | 1.8 TB |"), "{text}");
    assert!(text.contains("- 100 users: nothing."), "{text}");
    assert!(text.contains("- 10 000 users: **FlowMesh's list of workflows after 90 days, 1 125 of 268 MB**"), "{text}");
    assert!(
        text.contains("- 1 000 000 users: **FlowMesh's list of workflows after 90 days, 112 500 of 268 MB**"),
        "{text}"
    );
    assert!(text.contains("Memory for all 1 000 000 tokens would be 800 MB, at 800 B each."), "{text}");
}

#[test]
fn numbers_have_three_digits_that_count() {
    let cases = [
        (0.0, "0"),
        (0.001, "< 0.01"),
        (0.1234, "0.12"),
        (1.0, "1"),
        (1.26, "1.3"),
        (12.34, "12"),
        (99.9, "100"),
        (1234.5, "1 234"),
        (1e6, "1 000 000"),
    ];
    for (value, text) in cases {
        assert_eq!(number(value), text);
    }
    assert_eq!(bytes(1.5e9), "1.5 GB");
}
