//! Short rounds of faults under load; `make chaos` plays long ones. `tollgate_local::chaos` says what they are.

use std::time::Duration;

use tollgate_local::chaos::{Figures, Progress, Round, play};

use crate::harness::{binary, envoy_binary};

/// Plays the round of a seed.
async fn round(seed: u64, seconds: u64) -> Figures {
    let round = Round {
        tollgate: binary().to_owned(),
        envoy: envoy_binary(),
        seed,
        replicas: 1,
        uncut: None,
        length: Duration::from_secs(seconds),
        outage: Duration::from_secs(2),
        patience: Duration::from_secs(90),
        disk: false,
        parent: std::env::temp_dir().canonicalize().expect("a folder"),
    };
    let report = play(&round, &Progress::default()).await.expect("played");
    assert!(report.failures.is_empty(), "seed {seed}, kept in {:?}: {:#?}", report.kept, report.failures);
    report.figures
}

#[tokio::test]
async fn with_one_person_there_whenever_log_entries_are_lost_everything_is_billed() {
    let figures = round(3, 15).await;
    assert!(figures.counts.contains_key("calm rounds") && figures.held == 0, "{figures:?}");
    assert!(figures.entries > 10, "{figures:?}");
}

#[tokio::test]
async fn with_everybody_there_all_the_time_only_what_nobody_can_decide_is_held() {
    let figures = round(11, 10).await;
    assert!(figures.counts.contains_key("crowded rounds"), "{figures:?}");
    assert!(figures.entries > 10, "{figures:?}");
}
