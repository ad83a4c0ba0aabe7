//! Alerts and dashboard ask for figures by name, and a name that nobody shows is an alert that never fires. So each name, each
//! label and each value of a label is looked for in what a running Tollgate and a running Envoy show.
//!
//! What needs Prometheus' own tools is in `scripts/test-ops`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use sqlx::{Connection, SqliteConnection};
use tollgate_local::stack::{ACME, ALICE, PAUPER, Tollgate, wait_for};
use tollgate_local::standin::Fault;

use crate::harness::documented::families;
use crate::harness::{Edge, SOON, answer, binary, postgres_database};
use crate::mtls::{self, Pki};

/// Metric → label → values, as shown.
#[derive(Default)]
struct Shown(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Shown {
    fn add(&mut self, page: &str) {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, _)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let known = self.0.entry(name.to_owned()).or_default();
            for (label, _, value) in matchers(labels.trim_end_matches('}')) {
                known.entry(label).or_default().insert(value);
            }
        }
    }

    fn is_label(&self, word: &str) -> bool {
        self.0.values().any(|labels| labels.contains_key(word))
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// `a="b", c=~"d"` as (label, operator, value).
fn matchers(text: &str) -> Vec<(String, String, String)> {
    let mut rest = text;
    let mut found = Vec::new();
    while let Some((before, after)) = rest.split_once('"') {
        let Some((value, after)) = after.split_once('"') else { break };
        let before = before.trim_start_matches([',', ' ']);
        let label = before.trim_end_matches(['=', '~', '!', ' ']);
        found.push((label.to_owned(), before[label.len()..].trim().to_owned(), value.to_owned()));
        rest = after;
    }
    found
}

/// Names of metrics and labels, without what is quoted.
fn words(expression: &str) -> BTreeSet<String> {
    let bare: String = expression.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let words = bare.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["tollgate_", "envoy_", "process_"];
    words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
}

/// `(metric, label, value)` of everything that a label is compared with.
fn comparisons(expression: &str) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let start =
            expression[..at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |before| before + 1);
        let (name, labels) = (&expression[start..at], expression[at + 1..].split('}').next().unwrap_or_default());
        for (label, _, value) in matchers(labels) {
            // Given by Prometheus, and by the dashboard's variables.
            if !words(name).is_empty() && !["job", "instance"].contains(&label.as_str()) {
                found.extend(value.split('|').map(|value| (name.to_owned(), label.clone(), value.to_owned())));
            }
        }
    }
    found
}

/// Every expression of the alerts. Their file is read as text: where an expression begins and ends is plain there.
fn alert_expressions() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut inside = false;
    for line in read("ops/prometheus/alerts.yaml").lines() {
        if let Some(first) = line.strip_prefix("    expr: ") {
            found.push(first.trim_matches('\'').to_owned());
            inside = true;
        } else if inside && line.starts_with("      ") {
            found.last_mut().expect("one was begun").push_str(line);
        } else {
            inside = false;
        }
    }
    assert!(found.len() > 30, "{found:?}");
    found
}

/// Every expression of the dashboard's panels.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&read("ops/grafana/tollgate.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let found: Vec<String> = targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect();
    assert!(found.len() > 40, "{found:?}");
    found
}

/// The text of all sources: a value that only trouble brings about is at least one that the program knows.
fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path: PathBuf = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else {
            // Not all are text.
            text.push_str(&String::from_utf8_lossy(&std::fs::read(&path).expect("a source")));
        }
    }
}

/// Something of everything, so that every family has a series: they begin with their first event.
async fn some_of_everything(edge: &Edge, secret: &Path) {
    let (workflow, tasks) = edge.submit(ALICE.token, 2).await;
    for task in &tasks {
        edge.post_result(ACME.token, task).await;
    }
    edge.entries(2).await;
    answer(edge.get(&format!("/api/v1/workflows/{workflow}?view=status")).bearer_auth(ALICE.token)).await;
    assert_eq!(answer(edge.submission(PAUPER.token, 1)).await.status, 402);
    assert_eq!(answer(edge.get("/api/v1/workflows").bearer_auth("nonsense")).await.status, 401);
    edge.stack.lum_id.fail_with(Fault::status(500));
    assert_eq!(answer(edge.get("/api/v1/workflows").bearer_auth("unheard-of")).await.status, 503);
    // A ledger that somebody else writes to for long: the submission goes through without its row.
    let ledger = format!("sqlite:{}", edge.dir.path().join("ledger.db").display());
    let mut ledger = SqliteConnection::connect(&ledger).await.expect("opened");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut ledger).await.expect("locked");
    edge.submit(ALICE.token, 1).await;
    sqlx::query("ROLLBACK").execute(&mut ledger).await.expect("unlocked");
    std::fs::write(secret, "").expect("emptied");
    edge.metric("tollgate_secret_reloads_total{outcome=\"failed\"}", 1.0).await;
}

/// What Tollgate and Envoy show after that, and a Tollgate with mTLS.
async fn shown() -> Shown {
    let dir = tempfile::tempdir().expect("a folder");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "local-bridge-secret").expect("written");
    let settings = [
        ("FLOWMESH_BRIDGE_SECRET", ""),
        ("FLOWMESH_BRIDGE_SECRET_FILE", secret.to_str().expect("text")),
        ("LUMID_BALANCE_GUARD", "on"),
    ];
    let edge = Edge::with(&settings).await;
    some_of_everything(&edge, &secret).await;
    Pki::write(dir.path());
    let mut with_tls = mtls::settings(dir.path()).to_vec();
    with_tls.extend(["TOLLGATE_GRPC_LISTEN", "TOLLGATE_ADMIN_LISTEN"].map(|name| (name, "127.0.0.1:0".to_owned())));
    let with_tls = Tollgate::start(binary(), &with_tls, None).await.expect("starts");
    std::fs::write(dir.path().join("tollgate.pem"), "nothing").expect("spoilt");
    let reloaded = async || with_tls.metric("tollgate_tls_reloads_total{outcome=\"failed\"}").await;
    wait_for("the bad certificate to be noticed", SOON, reloaded).await.expect("noticed");

    let mut shown = Shown::default();
    let envoy = format!("{}/stats/prometheus", edge.stack.envoy.admin_url());
    let mut pages =
        [edge.stack.tollgate.admin_url(), with_tls.admin_url()].map(|url| format!("{url}/metrics")).to_vec();
    let replica = replica().await;
    if let Some(replica) = &replica {
        pages.push(format!("{}/metrics", replica.admin_url()));
    } else {
        let of_replicas = families().into_iter().filter(|(_, family)| family.of_replicas);
        shown.0.extend(of_replicas.map(|(name, _)| (name, BTreeMap::default())));
    }
    for page in pages.into_iter().chain([envoy]) {
        let page = answer(edge.http.get(&page)).await;
        assert_eq!(page.status, 200, "{}", page.body);
        shown.add(&page.body);
    }
    with_tls.kill_hard().await.expect("killed");
    if let Some(replica) = replica {
        replica.kill_hard().await.expect("killed");
    }
    edge.finish_unbilled().await;
    shown
}

/// One whose ledger others may share, where there is a PostgreSQL.
async fn replica() -> Option<Tollgate> {
    let ledger = postgres_database().await?;
    let settings = [
        ("TOLLGATE_LEDGER", ledger),
        ("RUNMESH_BILLING_BASE_URL", "http://127.0.0.1:1/Runmesh".to_owned()),
        ("FLOWMESH_BRIDGE_SECRET", "hunter2".to_owned()),
        ("TOLLGATE_GRPC_LISTEN", "127.0.0.1:0".to_owned()),
        ("TOLLGATE_ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    Some(Tollgate::start(binary(), &settings, None).await.expect("starts"))
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_figures_that_a_running_tollgate_and_envoy_show() {
    let shown = shown().await;
    let mut known = String::new();
    sources(&root().join("src"), &mut known);
    let mut unknown = BTreeSet::new();
    for expression in alert_expressions().into_iter().chain(dashboard_expressions()) {
        for word in words(&expression) {
            if !shown.0.contains_key(&word) && !shown.is_label(&word) {
                unknown.insert(word);
            }
        }
        for (metric, label, value) in comparisons(&expression) {
            let values = shown.0.get(&metric).and_then(|labels| labels.get(&label));
            let is_shown = values.is_some_and(|values| values.contains(&value));
            let is_known =
                values.is_some() && metric.starts_with("tollgate_") && known.contains(&format!("\"{value}\""));
            if !is_shown && !is_known {
                unknown.insert(format!("{metric}{{{label}=\"{value}\"}}"));
            }
        }
    }
    assert!(unknown.is_empty(), "nobody shows {unknown:#?}");
}

/// The filter of the sample configuration keeps what alerts and dashboard need.
#[test]
fn the_sample_of_a_scrape_keeps_every_figure_that_is_asked_for() {
    let sample = read("ops/prometheus/prometheus.yaml");
    let kept = sample.lines().find_map(|line| line.trim().strip_prefix("regex: ")).expect("a filter");
    let kept = expand(kept);
    for expression in alert_expressions().into_iter().chain(dashboard_expressions()) {
        let bare = expression.split(['{', '}', '(', ')']).step_by(1).collect::<Vec<_>>();
        for word in bare.iter().flat_map(|part| words(part)).filter(|word| word.starts_with("envoy_")) {
            let is_label = ["envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_response_code_class"];
            let is_kept = kept.iter().any(|kept| match kept.strip_suffix(".*") {
                Some(prefix) => word.starts_with(prefix),
                None => *kept == word,
            });
            assert!(is_kept || is_label.contains(&word.as_str()), "{word} is thrown away: {kept:#?}");
        }
    }
}

/// Every alternative of an expression that has nothing but nested groups, `|` and a last `.*`.
fn expand(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('(') else { return vec![pattern.to_owned()] };
    let (mut depth, mut parts, mut part) = (1, Vec::new(), String::new());
    let mut end = rest.len();
    for (at, c) in rest.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            end = at;
            break;
        }
        if c == '|' && depth == 1 {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(c);
        }
    }
    parts.push(part);
    let after = expand(&rest[end + 1..]);
    let inside = parts.iter().flat_map(|part| expand(part));
    inside.flat_map(|inside| after.iter().map(move |after| format!("{before}{inside}{after}"))).collect()
}

/// (flag, variable) of every setting, as `--help` has them.
fn settings() -> Vec<(String, String)> {
    let help = std::process::Command::new(binary()).arg("--help").env_clear().output().expect("tollgate runs").stdout;
    let help = String::from_utf8(help).expect("text");
    let mut flag = String::new();
    let mut found = Vec::new();
    for line in help.lines() {
        if let Some(rest) = line.trim_start().strip_prefix("--") {
            rest.split(' ').next().unwrap_or_default().clone_into(&mut flag);
        }
        if let Some((_, rest)) = line.split_once("[env: ") {
            found.push((flag.clone(), rest.split(['=', ']']).next().unwrap_or_default().to_owned()));
        }
    }
    assert!(found.len() > 20, "{help}");
    found
}

#[test]
fn every_setting_is_in_the_readme_under_the_flag_that_its_rule_gives_and_can_be_made_of_a_composed_stack() {
    // What the composition decides: one machine, a socket, a volume.
    let composed = ["TOLLGATE_GRPC_LISTEN", "TOLLGATE_INSECURE_LISTEN", "TOLLGATE_ADMIN_LISTEN", "TOLLGATE_STATE_DIR"];
    let readme = read("README.md");
    let rows: Vec<&str> = readme.lines().filter_map(|line| line.strip_prefix("| `")).collect();
    let compose = read("docker-compose.yml") + &read("docker-compose.production.yml");
    let example = read(".env.example");
    for (flag, variable) in settings() {
        let base = variable.strip_suffix("_FILE").unwrap_or(&variable);
        let is_file = variable != base;
        let row =
            rows.iter().find(|row| row.split(" |").next().is_some_and(|names| names.contains(&format!("{base}`"))));
        assert!(row.is_some_and(|row| !is_file || row.contains("(`_FILE`)")), "README.md has no {variable}");
        let rule = variable.strip_prefix("TOLLGATE_").unwrap_or(&variable).to_lowercase().replace('_', "-");
        assert!(flag == rule || readme.contains(&format!("only `{variable}` is `--{flag}`")), "{variable}: --{flag}");
        if composed.contains(&variable.as_str()) || variable.starts_with("TOLLGATE_TLS_") {
            continue;
        }
        assert!(compose.contains(&format!(" {variable}: ")), "no compose file passes {variable}");
        // The secret's file has one place, in the folder that is mounted; FlowMesh's address is Envoy's, too.
        if !["FLOWMESH_BRIDGE_SECRET_FILE", "FLOWMESH_BASE_URL"].contains(&variable.as_str()) {
            assert!(example.contains(&format!("\n#{variable}=")), ".env.example has no {variable}");
        }
    }
}

/// `#like-this`, as GitHub makes it of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(|c: char| !c.is_alphanumeric() && !" -_".contains(c), "");
    kept.trim().replace(' ', "-")
}

#[test]
fn every_link_from_a_page_of_the_repository_to_another_leads_somewhere() {
    let pages = [
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "docs/LEDGER.md",
        "docs/LOGGING.md",
        "docs/METRICS.md",
        "docs/OPERATING.md",
        "envoy/README.md",
        "examples/local/README.md",
        "ops/kubernetes/README.md",
    ];
    for page in pages {
        let text = read(page);
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, section) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { root().join(page) } else { root().join(page).with_file_name(path) };
            assert!(path.exists(), "{page}: {target}");
            if !section.is_empty() {
                let text = std::fs::read_to_string(&path).expect("a page");
                let mut headings = text.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| anchor(line.trim_start_matches('#')) == section), "{page}: {target}");
            }
        }
    }
}
