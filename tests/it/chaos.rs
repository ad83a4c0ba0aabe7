//! Short rounds of faults under load; `make chaos` plays long ones. `tollgate_local::chaos` says what they are.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tollgate_local::chaos::{Figures, Progress, Round, play_apart};

use crate::harness::{binary, envoy_binary, shared};

/// Of a round in which the network is cut and PostgreSQL fails.
const SHARED_SEED: u64 = 1;

/// Plays the round of a seed with so many Tollgates.
async fn round(seed: u64, replicas: u8, seconds: u64) -> Figures {
    let round = Round {
        tollgate: binary().to_owned(),
        envoy: envoy_binary(),
        seed,
        replicas,
        uncut: (replicas == 1).then(|| "there is one Tollgate".to_owned()),
        length: Duration::from_secs(seconds),
        outage: Duration::from_secs(2),
        // Of a workflow of which no log entry told the last sweeps are minutes apart, and with several Tollgates more is lost.
        patience: Duration::from_secs(if replicas == 1 { 90 } else { 240 }),
        disk: false,
        parent: std::env::temp_dir().canonicalize().expect("a folder"),
    };
    let report = play_apart(round, Progress::default(), CancellationToken::new()).await.expect("played");
    assert!(report.failures.is_empty(), "seed {seed}, kept in {:?}: {:#?}", report.kept, report.failures);
    report.figures
}

#[tokio::test]
async fn with_one_person_there_whenever_log_entries_are_lost_everything_is_billed() {
    let figures = round(3, 1, 15).await;
    assert!(figures.counts.contains_key("calm rounds") && figures.held == 0, "{figures:?}");
    assert!(figures.entries > 10, "{figures:?}");
}

#[tokio::test]
async fn with_everybody_there_all_the_time_only_what_nobody_can_decide_is_held() {
    let figures = round(11, 1, 10).await;
    assert!(figures.counts.contains_key("crowded rounds"), "{figures:?}");
    assert!(figures.entries > 10, "{figures:?}");
}

#[tokio::test]
async fn with_three_tollgates_on_one_postgresql_everything_is_billed_as_well() {
    if !shared::is_there() {
        return;
    }
    let figures = round(SHARED_SEED, 3, 15).await;
    let saw = |what: &str| figures.counts.keys().any(|kind| kind.starts_with(what));
    assert!(saw("PostgreSQL") && saw("Tollgate killed"), "{figures:?}");
    assert!(saw("cut off") || saw("no network"), "{figures:?}");
    assert!(figures.entries > 10, "{figures:?}");
}
