//! The console: what it says in each state.

mod looks;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use tollgate_local::stack::{ACME, ALICE, BOB, PAUPER, PEOPLE, wait_for};
use tollgate_local::standin::{Fault, Outcome};

use crate::harness::{Answer, Edge, SOON, answer};

/// What Runmesh might say, to break the page or to give somebody away.
const HOSTILE: &str = "</td><script>alert(1)</script><img src=\"http://192.0.2.1/x\"> \u{202e}moor alice@example.com";
/// A task's id, as long as it may be, that breaks nowhere by itself.
const LONG: &str = "tsk-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";

async fn page(edge: &Edge) -> Answer {
    let answer = answer(edge.http.get(format!("{}/", edge.stack.tollgate.admin_url()))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_discreet(&answer.body);
    answer
}

/// Nothing that is nobody's business who merely looks at the page.
fn assert_discreet(page: &str) {
    for person in PEOPLE {
        assert!(!page.contains(person.token) && !page.contains(person.email), "{} is on the page", person.sub);
    }
    assert!(!page.contains("local-bridge-secret") && !page.contains("<form") && !page.contains("<script"), "{page}");
}

/// The text of a page, as somebody reads it.
fn text(page: &str) -> String {
    let style = page.find("</style>").map_or(page, |end| &page[end..]);
    let mut text = String::new();
    for part in style.split('<') {
        text.push_str(part.split_once('>').map_or("", |(_, after)| after));
        // What is in different elements is not one word.
        text.push(' ');
    }
    let text = text.replace('\u{202f}', " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Waits until the page says all of this.
async fn says(edge: &Edge, wanted: &[&str]) -> String {
    let last = std::cell::RefCell::new(String::new());
    let said = wait_for(format!("the console to say {wanted:?}"), SOON, async || {
        let told = text(&page(edge).await.body);
        let all = wanted.iter().all(|wanted| told.contains(wanted));
        last.replace(told.clone());
        all.then_some(told)
    });
    said.await.unwrap_or_else(|error| panic!("{error}; it says: {}", last.borrow()))
}

async fn ledger(edge: &Edge) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(edge.dir.path().join("ledger.db"));
    options.busy_timeout(SOON).connect().await.expect("the ledger is there")
}

async fn get(edge: &Edge, path: &str, token: &str) -> u16 {
    answer(edge.get(path).bearer_auth(token)).await.status
}

/// A healthy stack that is at work.
async fn busy() -> Edge {
    let edge = Edge::with(&[("LUMID_BALANCE_GUARD", "on")]).await;
    for (person, tasks) in [(ALICE, 2), (BOB, 1), (ALICE, 3)] {
        let (workflow, tasks) = edge.submit(person.token, tasks).await;
        for task in tasks {
            edge.post_result(ACME.token, &task).await;
        }
        for _ in 0..12 {
            assert_eq!(get(&edge, &format!("/api/v1/workflows/{workflow}"), person.token).await, 200);
        }
    }
    for (token, status) in [("nobody", 401), ("nobody", 401), ("no-one", 401), (ALICE.token, 200)] {
        assert_eq!(get(&edge, "/api/v1/workers", token).await, status);
    }
    assert_eq!(answer(edge.get("/api/v1/workers")).await.status, 401);
    assert_eq!(answer(edge.submission(PAUPER.token, 1)).await.status, 402);
    edge.entries(6).await;
    edge.quiet().await;
    edge
}

/// Whatever can be wrong, all at once.
async fn failing() -> Edge {
    let edge = Edge::with(&[("TOLLGATE_RECONCILE_INTERVAL_SECS", "1"), ("LUMID_STALE_IF_ERROR_SECS", "60")]).await;
    let (_, tasks) = edge.submit(ALICE.token, 2).await;
    edge.stack.runmesh.fail_entries_with(Fault::Status(422, HOSTILE.to_owned(), Vec::new()));
    edge.post_result(ACME.token, &tasks[0]).await;
    edge.metric("tollgate_charges_rejected", 1.0).await;
    let nobodys = edge.stack.flowmesh.submit(2).1;
    for task in &nobodys {
        edge.stack.flowmesh.complete(task, Outcome::done(10.0, 1.5));
    }
    edge.metric("tollgate_charges_held", 2.0).await;
    edge.stack.flowmesh.set_task_json(&tasks[1], json!({"usages": [{"total_cost": null, "status": "DONE"}]}));
    edge.stack.flowmesh.complete(&tasks[1], Outcome::done(1.0, 1.5));
    assert_eq!(get(&edge, &format!("/api/v1/tasks/{}?view=status", tasks[1]), ALICE.token).await, 200);
    edge.metric("tollgate_held_tasks", 1.0).await;

    edge.stack.runmesh.fail_with(Fault::status(401));
    let (_, tasks) = edge.submit(BOB.token, 3).await;
    for task in &tasks {
        edge.post_result(ACME.token, task).await;
    }
    edge.metric("tollgate_charges_pending", 3.0).await;
    edge.metric("tollgate_posting_paused", 1.0).await;
    edge.stack.flowmesh.fail_with(Fault::status(503));
    edge.stack.lum_id.fail_with(Fault::status(500));
    assert_eq!(get(&edge, "/api/v1/workers", PAUPER.token).await, 503);
    says(&edge, &["FlowMesh does not answer"]).await;
    edge
}

/// A charge that came from nowhere, as far as anybody here knows.
async fn plant(edge: &Edge, task: &str, principal: &str, state: &str, error: &str) {
    let mut ledger = ledger(edge).await;
    let at = Timestamp::now().as_millisecond();
    sqlx::query("INSERT OR IGNORE INTO principals (principal_id, seen_at) VALUES (?, ?)")
        .bind(principal)
        .bind(at)
        .execute(&mut ledger)
        .await
        .expect("planted");
    sqlx::query(
        "INSERT INTO charges (task_id, workflow_id, principal_id, cost, duration_sec, cost_per_hour, task_status, state,
             hold_reason, post_at, last_error, created_at)
         VALUES (?1, ?1, ?2, '0.0000004', 1, '1', 'DONE', ?3, IIF(?3 = 'held', 'no_email', NULL), ?4, ?5, ?4)",
    )
    .bind(task)
    .bind(principal)
    .bind(state)
    .bind(at)
    .bind(error)
    .execute(&mut ledger)
    .await
    .expect("planted");
    ledger.close().await.expect("closed");
}

#[tokio::test]
async fn a_console_that_was_just_started_is_calm_and_safe_to_open() {
    let edge = Edge::start().await;
    let page = page(&edge).await;
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(page.header(name), Some(value), "{page:?}");
    }
    let policy = page.header("content-security-policy").expect("a policy");
    for part in ["default-src 'none'; style-src 'sha256-", "frame-ancestors 'none'", "form-action 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    let told = text(&page.body);
    for said in [
        "All is well.",
        "No request has come yet; no charge waits.",
        "lum.id – not asked yet",
        "Envoy – not heard yet",
        "0 log streams open",
        "No charge yet.",
        concat!("version ", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(told.contains(said), "{said:?} is not in: {told}");
    }
    assert!(page.body.contains(r#"<meta http-equiv="refresh" content="10">"#));
    let still = answer(edge.http.get(format!("{}/?refresh=off", edge.stack.tollgate.admin_url()))).await;
    assert!(still.status == 200 && !still.body.contains("http-equiv"), "{}", still.body);
    edge.finish().await;
}

#[tokio::test]
async fn a_busy_console_tells_what_went_through_what_was_refused_and_what_it_cost() {
    let edge = busy().await;
    // All within one hour, and most likely within two minutes.
    let told = says(
        &edge,
        &[
            "All is well.",
            "no charge waits",
            "lum.id ✓ answers for",
            "Runmesh ✓ answers",
            "FlowMesh ✓ answers",
            "Envoy ✓ asks",
        ],
    )
    .await;
    for said in ["inactive token", "no bearer", "balance", "of 50 in 1 h", "lum.id does not accept it 3 ", "last Check"]
    {
        assert!(told.contains(said), "{said:?} is not in: {told}");
    }
    assert!(!told.contains("0 log streams open") && !told.contains("identity provider"), "{told}");
    let page = page(&edge).await.body;
    // Three submissions, six results, 37 reads.
    assert!(page.contains("46 requests let through since"), "{told}");
    assert!(page.contains("5 requests refused since") && page.contains("6 charges posted since"), "{told}");
    for entry in edge.stack.runmesh.entries() {
        assert!(told.contains(&entry.task_id) && page.contains(&format!("title=\"${}\"", entry.cost)), "{entry:?}");
    }
    assert_eq!(told.matches("✓ posted").count(), 6, "{told}");
    edge.finish().await;
}

#[tokio::test]
async fn a_failing_console_names_everything_that_is_wrong_and_what_to_do() {
    let edge = failing().await;
    let told = says(
        &edge,
        &[
            "lum.id does not answer: status 500.",
            "Runmesh does not accept the secret: status 401.",
            "3 charges wait, the oldest for",
            "FlowMesh does not answer Tollgate's own questions: status 503.",
            "Runmesh refused 1 charge for good.",
            "1 workflow has no owner.",
            "The cost of 1 task cannot be read.",
            "LUMID_STALE_IF_ERROR_SECS: while lum.id is out of reach",
            "posting is paused",
            "docs/OPERATING.md, “WorkflowsHeld”.",
            "tollgate ledger retry --rejected",
            "(e-mail)",
            r"\u{202e}moor",
            "All 1.",
            "nobody is known to own it",
        ],
    )
    .await;
    assert!(!told.contains("All is well"), "{told}");
    let place = |text: &str| told.find(text).unwrap_or(usize::MAX);
    assert!(place("lum.id does not answer") < place("Runmesh refused 1"), "the worst comes first: {told}");
    assert!(place("Runmesh refused 1") < place("Configuration:"), "{told}");
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn what_others_wrote_is_shown_as_it_is_and_does_nothing() {
    let edge = Edge::start().await;
    let principal = r#""><img/src="http://192.0.2.1/"onerror="alert(1)"#;
    let task = "tsk-\u{202e}gpj\u{200b}\u{7}\u{1b}[31m<b>bold</b>&amp;";
    plant(&edge, task, principal, "rejected", "status 422: <i>no</i> to bob@example.com by local-bridge-secret").await;
    plant(&edge, LONG, &"y".repeat(256), "held", "").await;
    says(&edge, &[LONG, "Runmesh refused 1 charge for good.", "1 charge is held."]).await;
    let page = page(&edge).await.body;
    for shown in [
        r"tsk-\u{202e}gpj\u{200b}\u{7}\u{1b}[31m&lt;b&gt;bold&lt;/b&gt;&amp;amp;",
        "&quot;&gt;&lt;img/src=&quot;http://192.0.2.1/&quot;onerror=&quot;alert(1)",
        "status 422: &lt;i&gt;no&lt;/i&gt; to (e-mail) by (secret)",
        "&lt;$0.000001",
    ] {
        assert!(page.contains(shown), "{shown} is not on the page");
    }
    assert!(
        !page.contains(['\u{202e}', '\u{200b}', '\u{7}', '\u{1b}']) && !page.contains("<img") && !page.contains("<b>")
    );
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn a_web_page_whose_name_was_made_to_resolve_to_this_listener_reads_nothing() {
    let edge = Edge::with(&[("TOLLGATE_ADMIN_HOSTS", "console.example.com")]).await;
    let url = |path: &str| format!("{}{path}", edge.stack.tollgate.admin_url());
    let status = async |path: &str, host: &str| answer(edge.http.get(url(path)).header("host", host)).await.status;
    let purge = async |host: &str| {
        let purge = edge.http.post(url("/cache/purge")).json(&json!({"all": true}));
        answer(purge.header("host", host)).await.status
    };
    for own in ["localhost:9090", "10.0.0.5", "[::1]:9090", "tollgate:9090", "console.example.com"] {
        assert_eq!((status("/", own).await, status("/config", own).await, purge(own).await), (200, 200, 200), "{own}");
    }
    for strange in ["evil.example:9090", "127.0.0.1.evil.example"] {
        let refused = answer(edge.http.get(url("/")).header("host", strange)).await;
        assert_eq!(refused.status, 421, "{strange}");
        assert!(refused.body.contains("TOLLGATE_ADMIN_HOSTS"), "{}", refused.body);
        assert_eq!((status("/config", strange).await, purge(strange).await), (421, 421), "{strange}");
        for machines in ["/healthz", "/readyz", "/metrics"] {
            assert_eq!(status(machines, strange).await, 200, "{machines} by {strange}");
        }
    }
    edge.finish().await;
}

#[tokio::test]
async fn without_billing_the_console_says_so_and_shows_the_rest() {
    let edge = Edge::with(&[("RUNMESH_BILLING_BASE_URL", "")]).await;
    assert_eq!(get(&edge, "/api/v1/workers", ALICE.token).await, 200);
    let told = says(&edge, &["All is well.", "Billing is off", "Runmesh – billing is off", "lum.id ✓ answers"]).await;
    assert!(told.contains("1 request was let through") && !told.contains("charge"), "{told}");
    assert!(told.contains("Configuration: billing is off: RUNMESH_BILLING_BASE_URL is empty"), "{told}");
    edge.finish_unbilled().await;
}

/// Keeps everybody from reading a ledger, as a process that hangs while it recovers the write-ahead log does.
struct Locked(Child);

impl Locked {
    fn lock(edge: &Edge) -> Self {
        // The locks that readers take, by their place in the file: SQLite's WAL-index format.
        let script = "import fcntl, sys\nf = open(sys.argv[1], 'r+b')\nfcntl.lockf(f, fcntl.LOCK_EX, 5, 123)\n\
                      print('locked', flush=True)\nsys.stdin.read()";
        let mut command = Command::new("python3");
        command.args(["-c", script]).arg(edge.dir.path().join("ledger.db-shm"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 is there");
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line);
        assert!(read.is_ok() && line == "locked\n", "{line}");
        Self(child)
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_ledger_that_is_locked_or_broken_is_told_in_its_place_and_soon() {
    let edge = busy().await;
    let locked = Locked::lock(&edge);
    let started = Instant::now();
    let told = text(&page(&edge).await.body);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    let said = "The ledger cannot be read: it did not answer within 2 s.";
    assert!(told.contains(said) && told.contains("46 in 1 h") && told.contains("lum.id ✓ answers"), "{told}");
    drop(locked);
    says(&edge, &["All is well.", "Latest charges"]).await;

    // Whatever is in it now, it is no ledger any more.
    let mut ledger = ledger(&edge).await;
    sqlx::query("DROP TABLE charges").execute(&mut ledger).await.expect("dropped");
    ledger.close().await.expect("closed");
    let told = says(&edge, &["The ledger cannot be read: ", "no such table: charges"]).await;
    assert!(told.contains("lum.id ✓ answers") && !told.contains("All is well"), "{told}");
    edge.stack.kill_hard().await;
}

#[tokio::test]
async fn a_hundred_thousand_held_and_rejected_charges_do_not_make_it_slow() {
    let edge = Edge::start().await;
    let mut ledger = ledger(&edge).await;
    sqlx::query(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 300000)
         INSERT INTO charges (task_id, workflow_id, cost, duration_sec, cost_per_hour, task_status, state, hold_reason,
             post_at, last_error, created_at, posted_at)
         SELECT 'tsk-' || n, 'wfl-' || (n / 10), '0.42', 1, '1', 'DONE',
             CASE n % 3 WHEN 0 THEN 'held' WHEN 1 THEN 'rejected' ELSE 'posted' END,
             IIF(n % 3 = 0, 'no_owner', NULL), n, IIF(n % 3 = 1, 'status 422: no', NULL), n, IIF(n % 3 = 2, n, NULL)
         FROM n",
    )
    .execute(&mut ledger)
    .await
    .expect("planted");
    ledger.close().await.expect("closed");
    let told = says(&edge, &["The latest 20 of 100 000; tollgate ledger list --state held"]).await;
    assert!(told.contains("100 000 charges are held") && told.contains("tsk-300000 "), "{told}");
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        assert!(page(&edge).await.body.len() < 200_000);
        times.push(started.elapsed());
    }
    // The quickest: a machine that is busy with something else makes some of them slow.
    assert!(times.iter().min().is_some_and(|least| *least < Duration::from_millis(500)), "{times:?}");
    edge.stack.kill_hard().await;
}
