//! What `/metrics` says, and that docs/METRICS.md says the same.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use tollgate_local::stack::{ACME, ALICE, Tollgate, wait_for};

use crate::harness::direct::{read_from, request, status};
use crate::harness::documented::{Exposed, families};
use crate::harness::{Direct, Edge, SOON, binary, postgres_database};
use crate::mtls;

/// A Tollgate of which nothing is wanted but its figures.
async fn start(settings: &[(&str, String)]) -> Tollgate {
    let nobody = "http://127.0.0.1:1".to_owned();
    let mut all = vec![
        ("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
        ("LUM_ID_BASE_URL", nobody.clone()),
        ("FLOWMESH_BASE_URL", nobody),
    ];
    all.extend_from_slice(settings);
    Tollgate::start(binary(), &all, None).await.expect("starts")
}

async fn exposed(tollgate: &Tollgate) -> Exposed {
    let url = format!("{}/metrics", tollgate.admin_url());
    let answer = reqwest::get(url).await.expect("an answer").error_for_status().expect("figures");
    Exposed::parse(&answer.text().await.expect("text"))
}

#[tokio::test]
async fn the_page_of_metrics_has_what_is_served_and_everything_is_there_from_the_start() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let _pki = mtls::Pki::write(dir.path());
    let mut settings = mtls::settings(dir.path()).to_vec();
    settings.extend([
        ("RUNMESH_BILLING_BASE_URL", "http://127.0.0.1:1/Runmesh".to_owned()),
        ("FLOWMESH_BRIDGE_SECRET", "hunter2".to_owned()),
        ("LUMID_BALANCE_GUARD", "on".to_owned()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1".to_owned()),
        ("TOLLGATE_LEDGER", format!("sqlite:{}", dir.path().join("ledger.db").display())),
    ]);
    let tollgate = start(&settings).await;
    let exposed = exposed(&tollgate).await;
    exposed.assert_documented();
    let families = families();
    let served: BTreeSet<&String> = exposed.kinds.keys().collect();
    let alone = families.iter().filter(|(_, family)| !family.of_replicas);
    assert_eq!(served, alone.clone().map(|(name, _)| name).collect(), "on the right: docs/METRICS.md");
    for (name, family) in alone {
        for (label, values) in family.labels.iter().filter(|(_, values)| !values.is_empty()) {
            assert_eq!(exposed.values(name, label), values.iter().cloned().collect(), "{name}, {label}");
        }
    }
    for (name, kind) in &exposed.kinds {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
        assert!(name.starts_with("tollgate_") || name.starts_with("process_"), "{name}");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        // The library ends each text with a period.
        let help = exposed.help[name].strip_suffix('.').unwrap_or_else(|| panic!("{name}"));
        assert!(!help.is_empty() && !help.ends_with('.'), "{name}: {help}");
    }
    for enabled in ["tollgate_billing_enabled", "tollgate_guard_enabled"] {
        assert_eq!(tollgate.metric(enabled).await, Some(1.0));
    }
    tollgate.kill_hard().await.expect("killed");
}

#[tokio::test]
async fn without_billing_mtls_and_spans_only_their_families_are_missing() {
    let tollgate = start(&[]).await;
    let exposed = exposed(&tollgate).await;
    exposed.assert_documented();
    for (name, family) in families() {
        let expected = !family.of_billing && !family.of_mtls && !family.of_spans && !family.of_replicas;
        assert_eq!(exposed.kinds.contains_key(&name), expected, "{name}");
    }
    for enabled in ["tollgate_billing_enabled", "tollgate_guard_enabled"] {
        assert_eq!(tollgate.metric(enabled).await, Some(0.0));
    }
    let version = format!("tollgate_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(tollgate.metric(&version).await, Some(1.0));
    tollgate.kill_hard().await.expect("killed");
}

#[tokio::test]
async fn a_replica_shows_what_it_knows_of_the_others() {
    let Some(ledger) = postgres_database().await else { return };
    let tollgate = start(&[
        ("RUNMESH_BILLING_BASE_URL", "http://127.0.0.1:1/Runmesh".to_owned()),
        ("FLOWMESH_BRIDGE_SECRET", "hunter2".to_owned()),
        ("TOLLGATE_LEDGER", ledger),
    ])
    .await;
    let on_duty = async || tollgate.metric("tollgate_replica_on_duty").await.filter(|duty| *duty > 0.0);
    wait_for("the only one to have the duty", SOON, on_duty).await.expect("it has");
    let exposed = exposed(&tollgate).await;
    exposed.assert_documented();
    for (name, _) in families().into_iter().filter(|(_, family)| family.of_replicas) {
        assert!(exposed.kinds.contains_key(&name), "{name}");
    }
    assert_eq!(tollgate.metric("tollgate_replicas").await, Some(1.0));
    assert!(tollgate.metric("tollgate_ledger_clock_offset_seconds").await.is_some_and(|apart| apart < 1.0));
    tollgate.kill_hard().await.expect("killed");
}

#[tokio::test]
async fn prometheus_is_given_openmetrics_and_everybody_else_what_anything_can_read() {
    let tollgate = start(&[]).await;
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                      text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (accept, content_type, last) in [
        (prometheus, "application/openmetrics-text; version=1.0.0; charset=utf-8", Some("# EOF")),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", None),
    ] {
        let url = format!("{}/metrics", tollgate.admin_url());
        let answer = reqwest::Client::new().get(url).header(ACCEPT, accept).send().await.expect("an answer");
        assert_eq!(answer.headers()[CONTENT_TYPE], content_type);
        let text = answer.text().await.expect("text");
        assert_eq!(text.lines().rfind(|line| *line == "# EOF"), last);
        assert!(text.contains("\ntollgate_posts_total{outcome=\"posted\"} 0\n"), "{text}");
    }
    tollgate.kill_hard().await.expect("killed");
}

#[tokio::test]
async fn the_figures_of_the_process_are_those_of_the_system() {
    let tollgate = start(&[]).await;
    let figure = async |name: &str| tollgate.metric(name).await.unwrap_or_else(|| panic!("no {name}"));
    let mib = 1024.0 * 1024.0;
    let resident = figure("process_resident_memory_bytes").await;
    assert!((2.0 * mib..1024.0 * mib).contains(&resident), "{resident}");
    assert!(figure("process_virtual_memory_bytes").await > resident);
    let open = figure("process_open_fds").await;
    assert!((5.0..figure("process_max_fds").await).contains(&open), "{open}");
    assert!(figure("process_threads").await >= 2.0);
    assert!(figure("process_cpu_seconds_total").await < 60.0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let age = now - figure("process_start_time_seconds").await;
    // The system counts from a boot whose time it rounds to seconds.
    assert!((-2.0..60.0).contains(&age), "{age}");
    tollgate.kill_hard().await.expect("killed");
}

#[tokio::test]
async fn checks_are_timed_by_what_the_cache_knew() {
    let edge = Edge::start().await;
    let mut direct = Direct::connect(&edge).await;
    let mut counted = Vec::new();
    for (what, wanted, cache) in [
        (request("GET", "/healthz", &[]), 200, "none"),
        (request("GET", "/api/v1/tasks", &[]), 401, "none"),
        (request("GET", "/api//v1/tasks", &[]), 400, "none"),
        (read_from("192.0.2.1", ALICE.token), 200, "miss"),
        (read_from("192.0.2.1", ALICE.token), 200, "hit"),
        (read_from("192.0.2.1", "lm_pat_live_nobody"), 401, "miss"),
        (read_from("192.0.2.1", "lm_pat_live_nobody"), 401, "refused"),
    ] {
        assert_eq!(status(&direct.check(what).await), wanted, "{cache}");
        counted.push(cache);
        for cache in ["hit", "stale", "refused", "miss", "none"] {
            let series = format!("tollgate_check_duration_seconds_count{{cache=\"{cache}\"}}");
            let expected = counted.iter().filter(|counted| **counted == cache).count();
            edge.metric(&series, f64::from(u32::try_from(expected).expect("few"))).await;
        }
    }
    edge.stack.lum_id.stop().await;
    assert_eq!(status(&direct.check(read_from("192.0.2.2", "lm_pat_live_other")).await), 503);
    edge.metric("tollgate_check_duration_seconds_count{cache=\"miss\"}", 3.0).await;
    edge.finish().await;
}

#[tokio::test]
async fn calls_to_the_other_side_are_timed_by_peer_and_call() {
    let edge = Edge::with(&[("LUMID_BALANCE_GUARD", "on")]).await;
    let slow = Duration::from_millis(300);
    edge.stack.runmesh.fail_entries_with(tollgate_local::standin::Fault::AfterEffect(Box::new(
        tollgate_local::standin::Fault::Slow(slow),
    )));
    let (_, tasks) = edge.submit(ALICE.token, 1).await;
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.entries(1).await;
    edge.quiet().await;
    let series = |what: &str, peer: &str, call: &str| {
        format!("tollgate_upstream_duration_seconds_{what}{{peer=\"{peer}\",call=\"{call}\"}}")
    };
    for (peer, call) in [
        ("lum.id", "introspect"),
        ("runmesh", "preflight"),
        ("runmesh", "entry"),
        ("flowmesh", "task"),
        ("flowmesh", "workflow"),
        ("flowmesh", "workflows"),
        ("flowmesh", "workers"),
    ] {
        let name = series("count", peer, call);
        let made = async || edge.stack.tollgate.metric(&name).await.filter(|count| *count > 0.0);
        wait_for(format!("{name} to be above 0"), SOON, made).await.expect("counted");
    }
    let took = edge.stack.tollgate.metric(&series("sum", "runmesh", "entry")).await;
    assert!(took.is_some_and(|took| took >= slow.as_secs_f64()), "{took:?}: to the end of the answer");
    edge.finish().await;
}
